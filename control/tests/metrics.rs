//! Prometheus' own tool agrees with what docs/monitoring has.

use std::path::Path;
use std::process::Command;

fn promtool(words: &[&str]) {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/monitoring");
    let mut command = Command::new("promtool");
    let output = command.current_dir(directory).args(words).output().unwrap();
    assert!(output.status.success(), "{words:?}: {output:?}");
}

#[test]
fn rules_fire_and_the_example_is_a_configuration() {
    promtool(&["check", "rules", "podway.rules.yml"]);
    promtool(&["check", "config", "prometheus.yml"]);
    promtool(&["test", "rules", "podway.rules.test.yml"]);
}

/// Of every alert there is a time at which it fires, and one at which it does not.
#[test]
fn every_alert_is_tested_both_ways() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/monitoring");
    let read = |name: &str| std::fs::read_to_string(directory.join(name)).unwrap();
    let (rules, tests) = (read("podway.rules.yml"), read("podway.rules.test.yml"));
    let alerts = rules
        .lines()
        .filter_map(|line| line.trim().strip_prefix("- alert: "));
    let alerts: Vec<&str> = alerts.collect();
    assert!(alerts.len() >= 17, "{alerts:?}");
    for alert in alerts {
        let silent = format!(", alertname: {alert}}}\n");
        assert!(tests.contains(&silent), "{alert} is nowhere silent");
        let fires = format!("        alertname: {alert}\n        exp_alerts:\n");
        assert!(tests.contains(&fires), "{alert} fires nowhere");
    }
}
