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
