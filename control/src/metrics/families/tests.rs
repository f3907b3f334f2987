use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use podway_proto::control::Response;
use podway_proto::dataplane::PortStatus;

use super::*;
use crate::golden::golden;

/// The examples of the protocol: every field of every answer is there.
fn example() -> Scrape {
    let golden = include_str!("../../../../proto/tests/golden/control-responses.json");
    let responses: Vec<Response> = serde_json::from_str(golden).unwrap();
    let mut scrape = Scrape::default();
    for response in responses {
        match response {
            Response::Status(status) => {
                let old = scrape.status.as_ref();
                if old.and_then(|old| old.dataplane.status()).is_none() {
                    scrape.status = Some(*status);
                }
            }
            Response::Nodes { nodes } => scrape.nodes = nodes,
            Response::Ports { ports } => scrape.ports = ports,
            Response::Counters {
                counters,
                imbalances,
            } => scrape.counters = Some((counters, imbalances.len())),
            _ => {}
        }
    }
    let asked = |verb, code: &str, count| (verb, code.to_owned(), count);
    scrape.requests = vec![asked("route-add", "not-found", 1), asked("status", "ok", 7)];
    scrape
}

/// Name, kind and help of each family of a page.
fn families(page: &str) -> BTreeMap<&str, (&str, &str)> {
    let mut families = BTreeMap::new();
    let mut help = "";
    for line in page.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            help = rest.split_once(' ').unwrap().1;
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            assert_eq!(families.insert(name, (kind, help)), None, "{name} twice");
        } else {
            let name = line.split(['{', ' ']).next().unwrap();
            let parts = ["_bucket", "_sum", "_count"].map(|part| name.strip_suffix(part));
            let histogram = parts.into_iter().flatten().next();
            let histogram = histogram.and_then(|name| families.get(name));
            let is_histogram = histogram.is_some_and(|(kind, _)| *kind == "histogram");
            assert!(
                is_histogram || families.contains_key(name),
                "{line}: no family"
            );
        }
    }
    families
}

fn document(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/monitoring");
    std::fs::read_to_string(path.join(name)).unwrap()
}

/// The words of `text` that are names of our metrics.
fn named(text: &str) -> BTreeSet<&str> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    words.filter(|word| word.starts_with("podway_")).collect()
}

#[test]
fn the_page_of_the_examples_is_as_before() {
    let commit = format!("commit=\"{COMMIT}\"");
    let page = page(&example()).replace(&commit, "commit=\"unknown\"");
    golden("metrics.txt", &page);
}

#[test]
fn names_tell_units_and_kinds() {
    let page = page(&example());
    for (name, (kind, help)) in families(&page) {
        assert!(name.starts_with("podway_"), "{name}");
        assert_eq!(kind == "counter", name.ends_with("_total"), "{name}");
        assert!(help.ends_with('.') && help.len() > 10, "{name}: {help}");
    }
}

#[test]
fn every_number_of_the_answers_is_on_the_page() {
    // Numbers that are no others', in place of those of the examples.
    let number = std::cell::Cell::new(1_000_000_u64);
    let next = || {
        number.set(number.get() + 1);
        number.get()
    };
    fn renumber(value: &mut serde_json::Value, next: &impl Fn() -> u64) {
        match value {
            serde_json::Value::Number(_) => *value = next().into(),
            serde_json::Value::Array(values) => values.iter_mut().for_each(|v| renumber(v, next)),
            serde_json::Value::Object(fields) => {
                fields.values_mut().for_each(|v| renumber(v, next))
            }
            _ => {}
        }
    }
    let mut scrape = example();
    let (counters, _) = scrape.counters.take().unwrap();
    let mut document = serde_json::to_value(counters).unwrap();
    renumber(&mut document, &next);
    let last = number.get();
    let mut counters: Counters = serde_json::from_value(document).unwrap();
    // Of those there are sums, which the test of the histogram has.
    let sizes = counters
        .workers
        .iter_mut()
        .map(|worker| std::mem::take(&mut worker.burst_sizes));
    let sizes: BTreeSet<u64> = sizes.flatten().collect();
    assert_eq!(sizes.len(), BURST_SIZES.len());
    scrape.counters = Some((counters, 0));
    let page = page(&scrape);
    for number in (1_000_001..=last).filter(|number| !sizes.contains(number)) {
        // Nanoseconds become seconds.
        #[expect(clippy::cast_precision_loss, reason = "small")]
        let seconds = format!(" {}\n", number as f64 / 1e9);
        let found = page.contains(&format!(" {number}\n")) || page.contains(&seconds);
        assert!(found, "{number} is missing:\n{page}");
    }
}

#[test]
fn what_cannot_be_asked_is_told_as_away() {
    let nothing = page(&Scrape::default());
    let lines: Vec<_> = nothing
        .lines()
        .filter(|line| !line.starts_with('#'))
        .collect();
    let version = env!("CARGO_PKG_VERSION");
    let expected = [
        &*format!("podway_build_info{{version=\"{version}\",commit=\"{COMMIT}\"}} 1"),
        "podway_control_up 0",
        "podway_dataplane_up 0",
    ];
    assert_eq!(lines, expected);

    let mut scrape = example();
    scrape.status.as_mut().unwrap().dataplane = DataplaneLink::Disconnected {
        reason: "gone".to_owned(),
    };
    scrape.counters = None;
    let without = page(&scrape);
    let families = families(&without);
    for line in [
        "podway_control_up 1",
        "podway_dataplane_up 0",
        "podway_dataplane_synced 0",
    ] {
        assert!(without.lines().any(|found| found == line), "{without}");
    }
    assert!(families.contains_key("podway_node_reachable"));
    assert!(!families.contains_key("podway_gate_open"));
    assert!(!families.contains_key("podway_rx_packets_total"));
}

#[test]
fn causes_at_nothing_are_left_out_where_they_lose_nothing() {
    let mut scrape = example();
    let port = PortCounters {
        xdp_passed: BTreeMap::from([("not_ip".into(), 0), ("options".into(), 3)]),
        xdp_refused: BTreeMap::from([("own_source".into(), 0)]),
        ..PortCounters::default()
    };
    let counters = Counters {
        ports: BTreeMap::from([("veth-a".to_owned(), port)]),
        ..Counters::default()
    };
    scrape.counters = Some((counters, 0));
    let page = page(&scrape);
    let passed = "podway_xdp_passed_packets_total{interface=\"veth-a\",cause=";
    assert!(!page.contains(&format!("{passed}\"not_ip\"}}")), "{page}");
    assert!(
        page.contains(&format!("{passed}\"options\"}} 3\n")),
        "{page}"
    );
    let refused = "podway_xdp_refused_packets_total{interface=\"veth-a\",cause=\"own_source\"} 0\n";
    assert!(page.contains(refused), "{page}");
}

#[test]
fn the_documents_name_metrics_that_exist() {
    let page = page(&example());
    let families: BTreeSet<&str> = families(&page).into_keys().collect();
    let table = document("README.md");
    let rows = table.lines().filter_map(|line| line.strip_prefix("| `"));
    let rows: BTreeSet<&str> = rows.map(|row| row.split('`').next().unwrap()).collect();
    let metrics = rows.iter().filter(|name| name.starts_with("podway_"));
    assert_eq!(metrics.copied().collect::<BTreeSet<_>>(), families);
    for name in [
        "podway.rules.yml",
        "podway.rules.test.yml",
        "podway-dashboard.json",
    ] {
        let text = document(name);
        let named = named(&text);
        assert!(named.len() > 5, "{name}: {named:?}");
        let unknown: Vec<_> = named.difference(&families).collect();
        assert_eq!(unknown, Vec::<&&str>::new(), "{name}");
    }
}

/// Modes that the alert about generic uplinks, and the dashboard, are told.
#[test]
fn a_generic_uplink_is_told() {
    let mut scrape = example();
    let DataplaneLink::Synced {
        status: Some(status),
        ..
    } = &mut scrape.status.as_mut().unwrap().dataplane
    else {
        panic!("no status");
    };
    let port: &mut PortStatus = status.ports.first_mut().unwrap();
    port.xdp_mode = "generic".into();
    let page = page(&scrape);
    let info = "podway_port_info{interface=\"eth0\",role=\"uplink\",xdp_mode=\"generic\",";
    assert!(page.contains(info), "{page}");
}
