//! Facts of a healthy node, for tests to break.

use std::collections::{BTreeMap, BTreeSet};

use podway_proto::control::{Response, Status};

use super::facts::{
    Control, Facts, Kernel, Named, Outcome, PathProbe, PodEnd, Process, Programs, Role,
};
use super::{Verdict, examine};
use crate::netlink::{Link, LinkDetails, LinkKind};

fn features() -> BTreeSet<String> {
    let names = [
        "rx-gro",
        "tx-tcp-segmentation",
        "tx-generic-segmentation",
        "tx-checksum-ip-generic",
    ];
    names.map(str::to_owned).into()
}

/// A node with an uplink eth0, a pod behind veth-a, and another node.
pub(super) fn healthy() -> Facts {
    let response = serde_json::json!({
        "response": "status", "version": env!("CARGO_PKG_VERSION"), "pid": 7, "node": "node-a",
        "pod_cidrs": ["10.0.0.0/24"], "mode": "vxlan", "underlay": "192.168.1.1",
        "vtep_mac": "02:50:c0:a8:01:01", "vni": 1, "vxlan_port": 4789, "uplink": "eth0",
        "uplink_mtu": 1500, "pod_mtu": 1450,
        "dataplane": {"state": "synced", "refused": [], "status": {
            "version": env!("CARGO_PKG_VERSION"), "pid": 8, "uptime_seconds": 60, "gate_open": true,
            "wait": "adaptive",
            "workers": [{"worker": 0, "cpu": null, "busy_seconds": 1.5, "frames": 8192}],
            "ports": [
                {"interface": "eth0", "ifindex": 2, "role": "uplink", "mtu": 1500, "xdp_mode": "tcx",
                 "ingress": "tap", "egress": "af-packet gso", "queue_workers": [0]},
                {"interface": "veth-a", "ifindex": 3, "role": "pod", "mtu": 1500, "xdp_mode": "tcx",
                 "ingress": "tap", "egress": "af-packet gso", "queue_workers": [0]}],
            "tables": {"generation": 4, "adopted": 4, "routes": 3, "unresolved": 0, "nodes": 1,
                       "neighbors": 1}}},
        "kernel": {"device": "podway.vx", "in_sync": true, "errors": []},
        "health": {"port": 4799, "interval_seconds": 10, "nodes": 1, "reachable": 1,
                   "unreachable": 0, "troubles": [], "errors": []},
        "hints": []
    });
    let Response::Status(status) = serde_json::from_value(response).unwrap() else {
        panic!("it is a status");
    };
    let path = serde_json::json!({"state": "reachable", "seconds": 90, "rtt_microseconds": 210,
        "smoothed_rtt_microseconds": 230, "lost": 0, "probes": 64});
    let nodes = serde_json::from_value(serde_json::json!([
        {"name": "node-a", "local": true, "underlay": "192.168.1.1", "pod_cidrs": ["10.0.0.0/24"],
         "vtep_mac": "02:50:c0:a8:01:01", "mode": "vxlan"},
        {"name": "node-b", "local": false, "underlay": "192.168.1.2", "pod_cidrs": ["10.0.1.0/24"],
         "vtep_mac": "02:50:c0:a8:01:02", "mode": "vxlan",
         "path": {"interface": "eth0", "next_hop": "192.168.1.2", "source": "192.168.1.1", "mtu": 1500},
         "next_hop_mac": "02:00:00:00:00:0b", "health": {"underlay": path, "overlay": path}}
    ]));
    let link = |index, name: &str, kind| LinkDetails {
        link: Link {
            index,
            name: name.to_owned(),
            up: true,
            mtu: 1500,
            mac: None,
            kind,
        },
        carrier: true,
        rx_queues: 1,
        xdp: None,
        peer: None,
    };
    let named = |interface: &str, uplink| Named {
        interface: interface.to_owned(),
        uplink,
        waiting: None,
    };
    let process = |name: &str, role| Process {
        name: name.to_owned(),
        pid: 7,
        role,
        capabilities: Some(u64::MAX),
        memlock: Some(u64::MAX),
        here: Some(true),
    };
    let mut facts = Facts {
        kernel: Kernel {
            release: "6.18.1".to_owned(),
            af_xdp: Some(true),
            btf: true,
            jit: Some(1),
            unprivileged_bpf_disabled: Some(2),
            bpf_filesystem: true,
            clock_source: Some("tsc".to_owned()),
            seconds: 2_000_000_000,
        },
        control: Control::Running(status),
        processes: vec![
            process("podway-control", Role::Control),
            process("podway-dataplane", Role::Dataplane),
        ],
        named: vec![named("eth0", true), named("veth-a", false)],
        links: vec![
            link(2, "eth0", LinkKind::Other),
            link(3, "veth-a", LinkKind::Veth),
        ],
        features: BTreeMap::from([("eth0".to_owned(), features())]),
        pods: vec![PodEnd {
            port: "veth-a".to_owned(),
            interface: "net1".to_owned(),
            namespace: "/run/netns/pod-a".to_owned(),
            mtu: 1500,
            route_mtu: Some(1450),
            features: Some(features()),
        }],
        programs: Programs {
            ours: Some(BTreeSet::from([7])),
            tcx: Some(Vec::new()),
            names: BTreeMap::new(),
        },
        nodes: nodes.unwrap(),
        paths: vec![PathProbe {
            node: "node-b".to_owned(),
            address: "192.168.1.2".parse().unwrap(),
            size: 1500,
            outcome: Outcome::Fits,
        }],
        ..Facts::default()
    };
    facts.configuration.path = Some("podway.toml".to_owned());
    facts.forwarding.ipv4 = Some(true);
    facts.forwarding.ipv6 = Some(true);
    facts.forwarding.dropping = Some(Vec::new());
    facts.cpu.count = 2;
    facts.cpu.steal_percent = Some(0);
    facts
}

/// What control says.
pub(super) fn status(facts: &mut Facts) -> &mut Status {
    match &mut facts.control {
        Control::Running(status) => status,
        other => panic!("{other:?}"),
    }
}

/// The link of that name.
pub(super) fn link<'a>(facts: &'a mut Facts, name: &str) -> &'a mut LinkDetails {
    let mut links = facts.links.iter_mut();
    links.find(|link| link.link.name == name).unwrap()
}

/// What a check finds that is not as it should be: verdict, subject, remedy.
pub(super) fn found(name: &str, facts: &Facts) -> Vec<(Verdict, String, String)> {
    let findings = examine(facts).into_iter();
    let bad = findings.filter(|f| f.name == name && f.verdict != Verdict::Ok);
    bad.map(|f| (f.verdict, f.subject, f.remedy)).collect()
}

/// The worst that a check finds.
pub(super) fn verdict(name: &str, facts: &Facts) -> Verdict {
    let found = found(name, facts);
    let verdicts = found.into_iter().map(|(verdict, _, _)| verdict);
    verdicts.max().unwrap_or(Verdict::Ok)
}
