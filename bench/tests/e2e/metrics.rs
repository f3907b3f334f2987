//! A real Prometheus server scrapes real nodes.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use podway_bench::monitoring::queries;
use podway_bench::netns::{Netns, wait_until};
use podway_bench::podway::{Agent, Options};
use podway_bench::prometheus::{Prometheus, Target};
use podway_bench::topology::UPLINK;
use podway_proto::dataplane::Counters;
use podway_proto::perf::Work;
use podway_proto::types::Mode;

use crate::support::{Network, options, ping_all, spec};

const ADDRESS: &str = "127.0.0.1:9467";
/// How long the next scrape may be away on a machine that others load.
const PATIENCE: Duration = Duration::from_secs(20);

/// What a client of the node's own namespace reads from the address.
fn page(netns: &Netns) -> String {
    let line = format!(r"printf 'GET /metrics HTTP/1.1\r\n\r\n' | socat -t 10 - TCP:{ADDRESS}");
    let answer = netns.run("sh", &["-c", &line]).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
    body.to_owned()
}

/// What a server holds of a metric, by one of its labels.
fn held(server: &Prometheus, metric: &str, label: &str) -> BTreeMap<String, f64> {
    let series = server.instant(metric).unwrap().into_iter();
    let by_label = series.map(|series| (series.metric[label].clone(), series.values[0].1));
    by_label.collect()
}

/// Waits until the server holds exactly what was counted.
#[expect(clippy::cast_precision_loss, reason = "few packets")]
fn agrees(server: &Prometheus, counters: &Counters) {
    let ports = |field: fn(&podway_proto::dataplane::PortCounters) -> u64| {
        let ports = counters.ports.iter();
        ports
            .map(move |(name, port)| (name.clone(), field(port) as f64))
            .collect()
    };
    let drops = counters
        .drops
        .iter()
        .map(|(reason, n)| (reason.clone(), *n as f64));
    let bursts = counters.workers.iter().enumerate();
    let expected: [(&str, &str, BTreeMap<String, f64>); 6] = [
        (
            "podway_rx_packets_total",
            "interface",
            ports(|p| p.rx_packets),
        ),
        ("podway_rx_bytes_total", "interface", ports(|p| p.rx_bytes)),
        (
            "podway_tx_packets_total",
            "interface",
            ports(|p| p.tx_packets),
        ),
        ("podway_tx_bytes_total", "interface", ports(|p| p.tx_bytes)),
        ("podway_dropped_packets_total", "reason", drops.collect()),
        (
            "podway_worker_bursts_total",
            "worker",
            bursts
                .map(|(n, worker)| (n.to_string(), worker.bursts as f64))
                .collect(),
        ),
    ];
    wait_until("Prometheus holds what was counted", PATIENCE, || {
        for (metric, label, expected) in &expected {
            let held = held(server, metric, label);
            if held != *expected {
                return Err(format!("{metric}: {held:?}, counted {expected:?}"));
            }
        }
        Ok(())
    })
    .unwrap();
}

/// What `podway perf` says is what was counted, and one burst in 61 was measured.
fn measured(agent: &Agent, counters: &Counters) {
    let perf = agent.perf().unwrap();
    assert_eq!(perf.workers.len(), counters.workers.len());
    let sum = |field: fn(&Work) -> u64| perf.workers.iter().map(|w| field(&w.work)).sum::<u64>();
    assert_eq!(sum(|w| w.received), counters.books.packets_received);
    assert_eq!(sum(|w| w.sent), counters.books.packets_sent);
    for (worker, counted) in perf.workers.iter().zip(&counters.workers) {
        let sampled = worker.sampled.as_ref().unwrap();
        assert_eq!(worker.work.bursts, counted.bursts);
        assert_eq!(sampled.bursts, counted.bursts / 61, "{worker:?}");
        assert!(sampled.packets >= sampled.bursts, "{worker:?}");
        for stage in &sampled.stages {
            assert_eq!(stage.per_burst.count, sampled.bursts, "{worker:?}");
            assert_eq!(stage.per_packet.count, sampled.packets, "{worker:?}");
        }
    }
    let bursts = perf.workers.iter().filter_map(|w| w.sampled.as_ref());
    assert!(bursts.map(|s| s.bursts).sum::<u64>() > 0, "{perf:?}");
    agent.cli(&["perf", "--reset"]).unwrap();
    for worker in agent.perf().unwrap().workers {
        assert_eq!((worker.work.bursts, worker.work.received), (0, 0));
        assert_eq!(worker.sampled.unwrap().bursts, 0);
    }
}

/// A file of docs/monitoring.
fn document(name: &str) -> PathBuf {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/monitoring");
    directory.canonicalize().unwrap().join(name)
}

/// The server evaluates each rule, of which none fires, and has data for what the dashboard asks, but
/// for drops, of which there were none.
fn dashboard_and_rules_are_answered(server: &Prometheus) {
    let dashboard = std::fs::read_to_string(document("podway-dashboard.json")).unwrap();
    for (title, expression) in queries(&dashboard).unwrap() {
        let has_data = title != "Dropped by reason";
        wait_until(&title, PATIENCE, || match server.instant(&expression) {
            Ok(series) if has_data && series.is_empty() => Err(format!("no data: {expression}")),
            Ok(_) => Ok(()),
            Err(error) => panic!("{title}: {error}"),
        })
        .unwrap();
    }
    let text = std::fs::read_to_string(document("podway.rules.yml")).unwrap();
    let alerts = text
        .lines()
        .filter_map(|line| line.trim().strip_prefix("- alert: "));
    let expected = alerts.map(|alert| (alert.to_owned(), "ok".to_owned()));
    let expected: BTreeMap<String, String> = expected.collect();
    wait_until("each rule was evaluated", PATIENCE, || {
        let rules = server.rules().map_err(|error| error.to_string())?;
        (rules == expected)
            .then_some(())
            .ok_or(format!("{rules:?}"))
    })
    .unwrap();
    let firing = server.instant("ALERTS{alertstate=\"firing\"}").unwrap();
    assert!(firing.is_empty(), "{firing:?}");
}

#[test]
#[ignore = "needs root; scripts/test runs it"]
fn prometheus_holds_what_was_counted() {
    let options = Options {
        config: format!("health-interval-seconds = 1\nmetrics = \"{ADDRESS}\"\n"),
        ..options(Mode::Vxlan)
    };
    let mut network = Network::up(spec(), &options);
    let node = network.node(0).clone();
    let target = Target {
        instance: node.name.clone(),
        address: ADDRESS.to_owned(),
    };
    let (interval, directory) = (Duration::from_millis(500), &node.directory);
    let rules = document("podway.rules.yml");
    let server =
        Prometheus::start(&node.netns, directory, &[target], interval, Some(&rules)).unwrap();

    let (from, to) = (network.pod(0, 0).clone(), network.pod(1, 0).clone());
    ping_all(&from.netns, to.ipv4.into(), 1000, 100);
    let counters = network.counters().swap_remove(0);
    assert!(counters.ports[UPLINK].tx_packets >= 100, "{counters:?}");
    agrees(&server, &counters);

    measured(network.agent(0), &counters);
    dashboard_and_rules_are_answered(&server);

    let text = page(&node.netns);
    let mut command = Command::new("promtool");
    command.args(["check", "metrics"]).stdin(Stdio::piped());
    let mut check = command.stderr(Stdio::inherit()).spawn().unwrap();
    check
        .stdin
        .take()
        .unwrap()
        .write_all(text.as_bytes())
        .unwrap();
    assert!(check.wait().unwrap().success(), "{text}");
    assert!(text.contains("\npodway_dataplane_up 1\n"), "{text}");

    // Without a dataplane the scrape goes on and says so.
    network.podway.agent_mut(0).stop_dataplane().unwrap();
    let text = page(&node.netns);
    for line in ["podway_control_up 1", "podway_dataplane_up 0"] {
        assert!(text.lines().any(|found| found == line), "{text}");
    }
    wait_until("Prometheus knows that it is away", PATIENCE, || {
        let up = held(&server, "up", "job")["podway"];
        let dataplane = held(&server, "podway_dataplane_up", "job")["podway"];
        ((up, dataplane) == (1.0, 0.0))
            .then_some(())
            .ok_or(format!("{up}, {dataplane}"))
    })
    .unwrap();
    network.podway.agent_mut(0).start_dataplane().unwrap();
    network.podway.wait_ready().unwrap();

    server.stop().unwrap();
    network.finish();
}
