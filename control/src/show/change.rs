//! Entries as the file of `podway export`, and what changes them.

use std::collections::BTreeSet;
use std::fmt::Write;

use podway_proto::control::{NodeSpec, PortRoleSpec, PortSpec, RouteSpec, ViaSpec};
use podway_proto::entries::{Difference, Entries, EntryKey, RefusedEntry};
use serde::Serialize;

use super::table::list;

/// `entries` as one JSON document with an entry a line, so that two of them compare line by line.
pub fn entries(entries: &Entries) -> String {
    format!(
        "{{\n  \"nodes\": {},\n  \"routes\": {},\n  \"ports\": {}\n}}\n",
        array(&entries.nodes),
        array(&entries.routes),
        array(&entries.ports)
    )
}

fn array<T: Serialize>(items: &[T]) -> String {
    let line = |item| {
        let text = serde_json::to_string(item);
        // Types of the protocol have string keys and no values that JSON lacks.
        "\n    ".to_owned() + &text.unwrap_or_else(|error| unreachable!("{error}"))
    };
    let lines: Vec<String> = items.iter().map(line).collect();
    if lines.is_empty() {
        return "[]".to_owned();
    }
    format!("[{}\n  ]", lines.join(","))
}

/// How much changes.
pub fn summary(difference: &Difference) -> String {
    if difference.is_empty() {
        return "nothing changes\n".to_owned();
    }
    let (removed, added) = (keys(&difference.removed), keys(&difference.added));
    let changed = removed.intersection(&added).count();
    format!(
        "{} added, {changed} changed, {} removed\n",
        added.len() - changed,
        removed.len() - changed
    )
}

/// What changes, an entry a line: `-` before what goes, `+` before what comes.
pub fn lines(difference: &Difference) -> String {
    let mut text = String::new();
    for (sign, entries) in [('-', &difference.removed), ('+', &difference.added)] {
        let nodes = entries.nodes.iter().map(node);
        let routes = entries.routes.iter().map(route);
        for line in nodes.chain(routes).chain(entries.ports.iter().map(port)) {
            let _ = writeln!(text, "{sign} {line}");
        }
    }
    text
}

/// One line for each entry that was refused.
pub fn refused(refused: &[RefusedEntry]) -> Vec<String> {
    let line = |refused: &RefusedEntry| format!("{}: {}", refused.entry, refused.error);
    refused.iter().map(line).collect()
}

fn keys(entries: &Entries) -> BTreeSet<EntryKey> {
    let nodes = entries.nodes.iter().map(EntryKey::from);
    let routes = entries.routes.iter().map(EntryKey::from);
    let ports = entries.ports.iter().map(EntryKey::from);
    nodes.chain(routes).chain(ports).collect()
}

fn node(node: &NodeSpec) -> String {
    let mut text = format!("node {} --underlay {}", node.name, node.underlay);
    if let Some(second) = node.underlay6 {
        let _ = write!(text, " --underlay6 {second}");
    }
    if !node.pod_cidrs.is_empty() {
        let _ = write!(text, " --pod-cidr {}", list(&node.pod_cidrs));
    }
    if let Some(mac) = node.vtep_mac {
        let _ = write!(text, " --vtep-mac {mac}");
    }
    if let Some(mode) = node.mode {
        let _ = write!(text, " --mode {mode}");
    }
    text
}

fn route(route: &RouteSpec) -> String {
    let ways = route.via.members().iter().map(way);
    format!("route {}{}", route.prefix, ways.collect::<String>())
}

fn way(via: &ViaSpec) -> String {
    match via {
        ViaSpec::Node { node, vni } => {
            let vni = vni.iter().map(|vni| format!(" vni {vni}"));
            format!(" via {node}{}", vni.collect::<String>())
        }
        ViaSpec::Gateway { address, interface } => {
            let dev = interface.iter().map(|name| format!(" dev {name}"));
            format!(" via {address}{}", dev.collect::<String>())
        }
        ViaSpec::Multipath { members } => members.iter().map(way).collect(),
    }
}

fn port(port: &PortSpec) -> String {
    let interface = &port.interface;
    match &port.role {
        PortRoleSpec::Pod {
            addresses,
            mac,
            any_source,
        } => {
            let mac = mac.iter().map(|mac| format!(" --mac {mac}"));
            let mac: String = mac.collect();
            let any = if *any_source { " --any-source" } else { "" };
            format!("port {interface} --pod-ip {}{mac}{any}", list(addresses))
        }
        PortRoleSpec::Uplink {
            accept_partial_checksums,
        } => {
            let told = accept_partial_checksums.map(|yes| if yes { "yes" } else { "no" });
            let told = told.map(|told| format!(" --accept-partial-checksums {told}"));
            format!("port {interface} --uplink{}", told.unwrap_or_default())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn some() -> Entries {
        let text = r#"{
  "nodes": [
    {"name":"b","underlay":"192.168.1.2","pod_cidrs":["10.0.1.0/24","fd00:1::/64"],"mode":"native"}
  ],
  "routes": [
    {"prefix":"10.8.0.0/16","via":{"kind":"node","node":"b"}},
    {"prefix":"10.9.0.0/16","via":{"kind":"gateway","address":"192.168.1.9","interface":"eth0"}},
    {"prefix":"10.10.0.0/16","via":{"kind":"multipath","members":[{"kind":"node","node":"b"},{"kind":"gateway","address":"192.168.1.9","interface":"eth0"}]}}
  ],
  "ports": []
}
"#;
        let parsed: Entries = serde_json::from_str(text).unwrap();
        assert_eq!(entries(&parsed), text);
        parsed
    }

    #[test]
    fn a_change_is_shown_line_by_line_and_counted() {
        let mut after = some();
        after.nodes.clear();
        let ViaSpec::Gateway { interface, .. } = &mut after.routes[1].via else {
            panic!("not the router");
        };
        *interface = None;
        after.ports.push(PortSpec {
            interface: "veth-a".into(),
            role: PortRoleSpec::Pod {
                addresses: vec!["10.0.0.2".parse().unwrap()],
                mac: None,
                any_source: false,
            },
        });
        let mut before = some();
        before.routes.remove(0);
        after.routes.remove(0);
        before.routes.swap(0, 1);
        after.routes.remove(1);
        let difference = Difference {
            removed: before,
            added: after,
        };
        assert_eq!(
            lines(&difference),
            "- node b --underlay 192.168.1.2 --pod-cidr 10.0.1.0/24,fd00:1::/64 --mode native\n\
             - route 10.10.0.0/16 via b via 192.168.1.9 dev eth0\n\
             - route 10.9.0.0/16 via 192.168.1.9 dev eth0\n\
             + route 10.9.0.0/16 via 192.168.1.9\n\
             + port veth-a --pod-ip 10.0.0.2\n"
        );
        assert_eq!(summary(&difference), "1 added, 1 changed, 2 removed\n");
        assert_eq!(summary(&Difference::default()), "nothing changes\n");
    }
}
