//! Native routing and masquerading, seen by a host outside of the cluster.

use std::net::UdpSocket;
use std::time::Duration;

use podway_bench::netns::{Netns, join, wait_until};
use podway_bench::podway::Options;
use podway_bench::topology::{ClusterSpec, UPLINK};
use podway_proto::types::Mode;

use crate::support::{Delta, Network, options, ping_all, spec};

const PORT: u16 = 7000;

/// Sends a datagram from one namespace to an address in another; the source that arrives.
fn source(from: &Netns, to: &Netns, address: &str) -> String {
    let (target, own) = (format!("{address}:{PORT}"), format!("{address}:{PORT}"));
    let io = |error: std::io::Error| podway_bench::Error::Unexpected(error.to_string());
    let (ready, wait) = std::sync::mpsc::channel();
    let receiver = to.thread(move || {
        let socket = UdpSocket::bind(own).map_err(io)?;
        socket
            .set_read_timeout(Some(Duration::from_secs(3)))
            .map_err(io)?;
        ready.send(()).unwrap();
        let (_, from) = socket.recv_from(&mut [0; 16]).map_err(io)?;
        Ok(from.ip().to_string())
    });
    wait.recv().unwrap();
    let sender = from.thread(move || {
        let socket = UdpSocket::bind("0.0.0.0:0").map_err(io)?;
        socket.send_to(b"who am I", target).map(drop).map_err(io)
    });
    join(sender).unwrap();
    join(receiver).unwrap()
}

/// How long control may take to make the rules, on a machine that others load.
const PATIENCE: Duration = Duration::from_secs(5);

#[test]
#[ignore = "needs root; scripts/test runs it"]
fn pods_are_masqueraded_towards_the_world_only() {
    let spec = ClusterSpec {
        pods_per_node: 1,
        ..spec()
    };
    let options = Options {
        config: "masquerade = true\n".to_owned(),
        ..options(Mode::Native)
    };
    let mut network = Network::up(spec, &options);
    let (node, pod, other) = (
        network.node(0).clone(),
        network.pod(0, 0).clone(),
        network.pod(1, 0).clone(),
    );
    // The other node's namespace has an address that no route of Podway leads to: the world.
    let world = network.node(1).netns.clone();
    world
        .ip(&["addr add 203.0.113.9/32 dev lo".to_owned()])
        .unwrap();
    node.netns
        .ip(&[format!(
            "route add 203.0.113.9/32 via {} dev {UPLINK}",
            network.node(1).underlay
        )])
        .unwrap();
    let to_world = || source(&pod.netns, &world, "203.0.113.9");
    let (own, masqueraded) = (pod.ipv4.to_string(), node.underlay.to_string());
    // Control makes the rules once it knows its node, on its own time.
    let is_masqueraded = || match to_world() {
        source if source == masqueraded => Ok(()),
        source => Err(format!("seen from {source}")),
    };
    wait_until("the rules are made", PATIENCE, is_masqueraded).unwrap();
    ping_all(&pod.netns, "203.0.113.9".parse().unwrap(), 56, 3);
    let before = network.counters();
    assert_eq!(
        source(&pod.netns, &other.netns, &other.ipv4.to_string()),
        own
    );
    ping_all(&pod.netns, other.ipv4.into(), 56, 10);
    let after = network.counters();
    let delta = Delta {
        before: &before[0],
        after: &after[0],
    };
    // The datagram, ten requests and ten answers, all of them by the dataplane.
    assert_eq!(delta.packets(UPLINK), (10, 11));

    // The rules come back when somebody flushes them, and stay when control stops.
    node.netns.run("nft", &["flush", "ruleset"]).unwrap();
    let listing = || node.netns.run("nft", &["list", "table", "inet", "podway"]);
    let back = || match listing() {
        Ok(text) if text.contains("masquerade") => Ok(()),
        other => Err(format!("{other:?}")),
    };
    wait_until("the rules are made anew", PATIENCE, back).unwrap();
    wait_until("they are whole again", PATIENCE, is_masqueraded).unwrap();
    network.podway.agent_mut(0).stop_control().unwrap();
    assert_eq!(to_world(), masqueraded);
    network.podway.agent_mut(0).start_control().unwrap();
    network.podway.wait_ready().unwrap();

    // With the daemons goes the table.
    network.podway.agent_mut(0).stop().unwrap();
    assert!(listing().is_err(), "the table is left");
    assert_eq!(network.cluster.remove(), Vec::<String>::new());
}
