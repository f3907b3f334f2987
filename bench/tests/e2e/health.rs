//! Probes between the nodes, with the dataplane's programs on every port.

use std::net::IpAddr;
use std::time::Duration;

use podway_bench::netns::wait_until;
use podway_bench::podway::Options;
use podway_bench::topology::{ClusterSpec, UPLINK};
use podway_proto::control::{NodeHealth, PathState};
use podway_proto::types::Mode;

use crate::support::{Delta, Network, options, ping_all, spec};

const REACHABLE: PathState = PathState::Reachable;
const UNREACHABLE: PathState = PathState::Unreachable;
/// An interval of a second with its jitter, three timeouts of a second, and the test's own time.
const NOTICED: Duration = Duration::from_millis(1100 + 3000 + 1000);

fn probing(mode: Mode) -> Options {
    Options {
        config: "health-interval-seconds = 1\n".to_owned(),
        ..options(mode)
    }
}

/// What a node says of another one.
fn health(network: &Network, from: usize, to: usize) -> NodeHealth {
    let nodes = network.agent(from).nodes().unwrap();
    let name = &network.node(to).name;
    let entry = nodes.into_iter().find(|entry| entry.name == *name);
    entry.unwrap().health.unwrap()
}

/// Waits until every node says this of every other one; `expected` gives both paths by pair.
fn wait_for(network: &Network, expected: impl Fn(usize, usize) -> (PathState, PathState)) {
    let count = network.cluster.nodes().len();
    for (from, to) in (0..count).flat_map(|from| (0..count).map(move |to| (from, to))) {
        if from == to {
            continue;
        }
        let what = format!("node {from} says how it reaches node {to}");
        wait_until(&what, NOTICED, || {
            let health = health(network, from, to);
            let states = (health.underlay.state, health.overlay.state);
            if states == expected(from, to) {
                Ok(())
            } else {
                Err(format!("{health:?}"))
            }
        })
        .unwrap();
    }
}

/// All nodes reach each other, and probes are the kernel's: the fast path passes them.
fn all_reach_each_other(spec: ClusterSpec, mode: Mode) {
    let network = Network::up(spec, &probing(mode));
    wait_for(&network, |_, _| (REACHABLE, REACHABLE));
    let before = network.counters();
    std::thread::sleep(Duration::from_secs(3));
    for (before, after) in before.iter().zip(&network.counters()) {
        let delta = Delta { before, after };
        assert_eq!(delta.packets(UPLINK), (0, 0), "the dataplane has none");
        assert!(!delta.passed(UPLINK).is_empty(), "the kernel has them");
        assert!(delta.drops().is_empty(), "{after:?}");
    }
    let to: IpAddr = network.pod(1, 0).ipv4.into();
    ping_all(&network.pod(0, 0).netns, to, 56, 3);
    let health = health(&network, 0, 1);
    for path in [health.underlay, health.overlay] {
        let rtt = path.rtt_microseconds.unwrap();
        assert!((10..100_000).contains(&rtt), "{path:?}");
    }
    network.finish();
}

#[test]
#[ignore = "needs root; scripts/test runs it"]
fn three_nodes_reach_each_other_through_tunnels() {
    all_reach_each_other(ClusterSpec { nodes: 3, ..spec() }, Mode::Vxlan);
}

#[test]
#[ignore = "needs root; scripts/test runs it"]
fn nodes_reach_each_other_natively() {
    all_reach_each_other(spec(), Mode::Native);
}

#[test]
#[ignore = "needs root; scripts/test runs it"]
fn one_node_of_three_that_filters_tunnels_is_told() {
    let network = Network::up(ClusterSpec { nodes: 3, ..spec() }, &probing(Mode::Vxlan));
    wait_for(&network, |_, _| (REACHABLE, REACHABLE));
    let broken = &network.node(2).netns;
    let rules = "add table inet broken; \
                 add chain inet broken in { type filter hook input priority 0; }; \
                 add rule inet broken in udp dport 4789 drop";
    broken.run("nft", &[rules]).unwrap();
    wait_for(&network, |from, to| match (from, to) {
        (2, _) | (_, 2) => (REACHABLE, UNREACHABLE),
        _ => (REACHABLE, REACHABLE),
    });
    let status = network.agent(0).status().unwrap().health.unwrap();
    let counts = (status.nodes, status.reachable, status.unreachable);
    assert_eq!(counts, (2, 1, 1));
    // Between pods the dataplane takes tunnels before the filter sees them: what probes tell is how
    // the kernel would carry on without it.
    let to: IpAddr = network.pod(2, 0).ipv4.into();
    ping_all(&network.pod(0, 0).netns, to, 56, 3);
    broken.run("nft", &["delete table inet broken"]).unwrap();
    wait_for(&network, |_, _| (REACHABLE, REACHABLE));
    network.finish();
}
