//! Whether nodes are reached, with the kernel underneath and no dataplane.

mod common;

use std::fs::File;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::AsFd as _;
use std::time::{Duration, Instant};

use common::{Cluster, eventually, run};
use podway_control::health::probe::{Kind, LENGTH, NodeId, Probe};
use podway_proto::control::{Layer, NodeHealth, PathState, Response, Status, UnknownReason};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// A probe a second, so that what is to be seen is seen soon.
const CONFIG: &str = "uplink = 'eth0'\nhealth-interval-seconds = 1\n";
const PORT: u16 = 4799;
/// Within which a path is judged: an interval and its jitter, three timeouts of a second, and the
/// time that the test's own questions take.
const NOTICED: Duration = Duration::from_millis(1100 + 3000 + 1000);
const REACHABLE: PathState = PathState::Reachable;
const UNREACHABLE: PathState = PathState::Unreachable;
const NO_LISTENER: PathState = PathState::Unknown {
    reason: UnknownReason::NoListener,
};

/// What `node` says of the other one.
fn health(cluster: &Cluster, node: &str) -> NodeHealth {
    let text = cluster.podway(node, "--json node list");
    let Response::Nodes { nodes } = serde_json::from_str(&text).unwrap() else {
        panic!("{text}")
    };
    let (local, remote): (Vec<_>, Vec<_>) = nodes.into_iter().partition(|node| node.local);
    assert_eq!(local[0].health, None, "of itself it says nothing");
    remote[0].health.unwrap()
}

fn states(cluster: &Cluster, node: &str) -> (PathState, PathState) {
    let health = health(cluster, node);
    (health.underlay.state, health.overlay.state)
}

fn status(cluster: &Cluster, node: &str) -> Status {
    let text = cluster.podway(node, "--json status");
    match serde_json::from_str(&text).unwrap() {
        Response::Status(status) => *status,
        other => panic!("{other:?}"),
    }
}

/// Waits until both nodes say the same of each other, for at most `within`.
fn wait_for(cluster: &Cluster, within: Duration, expected: (PathState, PathState)) {
    let end = Instant::now() + within;
    for node in ["a", "b"] {
        loop {
            let states = states(cluster, node);
            if states == expected {
                break;
            }
            let now = Instant::now();
            assert!(now < end, "{node} says {states:?} after {within:?}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

/// A socket in a namespace; it waits for a second.
fn socket(cluster: &Cluster, namespace: &str, address: &str) -> UdpSocket {
    let path = format!("/run/netns/{}", cluster.namespace(namespace));
    let address = address.to_owned();
    let bind = move || {
        let netns = File::open(path).unwrap();
        move_into_link_name_space(netns.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
        UdpSocket::bind(address).unwrap()
    };
    // A thread is in a namespace of its own.
    let socket = std::thread::spawn(bind).join().unwrap();
    let limit = Some(Duration::from_secs(1));
    socket.set_read_timeout(limit).unwrap();
    socket
}

#[test]
#[ignore = "needs root: network namespaces"]
fn a_link_that_fails_takes_both_paths_and_gives_them_back() {
    let cluster = Cluster::new();
    let _daemons = ["a", "b"].map(|node| cluster.start(node, CONFIG));
    for node in ["a", "b"] {
        cluster.tell_nodes(node, "");
    }
    wait_for(&cluster, NOTICED, (REACHABLE, REACHABLE));
    eventually("a few probes", || health(&cluster, "a").overlay.probes >= 3);
    for node in ["a", "b"] {
        let health = health(&cluster, node);
        for path in [health.underlay, health.overlay] {
            let rtt = path.rtt_microseconds.unwrap();
            assert!((10..100_000).contains(&rtt), "{path:?}");
            assert!(path.smoothed_rtt_microseconds.is_some(), "{path:?}");
        }
        let status = status(&cluster, node).health.unwrap();
        assert_eq!((status.port, status.interval_seconds), (PORT, 1));
        assert_eq!((status.nodes, status.reachable), (1, 1));
        assert_eq!((status.unreachable, status.troubles.len()), (0, 0));
    }

    let since = health(&cluster, "a").underlay.seconds;
    cluster.ip("b", "link set eth0 down");
    wait_for(&cluster, NOTICED, (UNREACHABLE, UNREACHABLE));
    for node in ["a", "b"] {
        let health = health(&cluster, node);
        assert!(health.underlay.lost >= 3 && health.overlay.lost >= 3);
        assert!(health.underlay.seconds <= 5, "{since} s before: {health:?}");
    }
    let text = cluster.podway("a", "status");
    assert!(text.contains("0 of 1 nodes reachable, 1 not"), "{text}");
    assert!(
        text.contains("b: unreachable by the underlay for "),
        "{text}"
    );
    assert!(
        text.contains("b: unreachable by the overlay for "),
        "{text}"
    );
    let listed = cluster.podway("a", "node list");
    assert_eq!(listed.matches(" unreachable  -  ").count(), 2, "{listed}");

    cluster.ip("b", "link set eth0 up");
    wait_for(&cluster, NOTICED, (REACHABLE, REACHABLE));
}

#[test]
#[ignore = "needs root: network namespaces"]
fn a_tunnel_that_is_filtered_is_told_from_a_link_that_fails() {
    let cluster = Cluster::new();
    let _daemons = ["a", "b"].map(|node| cluster.start(node, CONFIG));
    for node in ["a", "b"] {
        cluster.tell_nodes(node, "");
    }
    wait_for(&cluster, NOTICED, (REACHABLE, REACHABLE));
    let rules = "add table inet broken; \
                 add chain inet broken in { type filter hook input priority 0; }; \
                 add rule inet broken in udp dport 4789 drop";
    run(cluster.inside("b", "nft").arg(rules));
    wait_for(&cluster, NOTICED, (REACHABLE, UNREACHABLE));
    let troubles = status(&cluster, "a").health.unwrap().troubles;
    let troubles: Vec<_> = troubles
        .iter()
        .map(|t| (&*t.node, t.layer, t.state))
        .collect();
    assert_eq!(troubles, [("b", Layer::Overlay, UNREACHABLE)]);
    run(cluster.inside("b", "nft").arg("delete table inet broken"));
    wait_for(&cluster, NOTICED, (REACHABLE, REACHABLE));
}

#[test]
#[ignore = "needs root: network namespaces"]
fn a_node_without_health_is_unknown() {
    let cluster = Cluster::new();
    let _a = cluster.start("a", CONFIG);
    let b = cluster.start("b", "uplink = 'eth0'\nhealth = false\n");
    for node in ["a", "b"] {
        cluster.tell_nodes(node, "");
    }
    eventually("b is unknown", || {
        states(&cluster, "a") == (NO_LISTENER, NO_LISTENER)
    });
    assert_eq!(health(&cluster, "a").underlay.lost, 0);
    let counts = status(&cluster, "a").health.unwrap();
    assert_eq!(
        (counts.nodes, counts.reachable, counts.unreachable),
        (1, 0, 0)
    );
    let text = cluster.podway("b", "status");
    assert!(text.contains("health      off"), "{text}");
    let listed = cluster.podway("b", "node list");
    assert!(!listed.contains("reachable"), "{listed}");
    // It makes no difference whether control runs there at all: the kernel answers.
    b.stop();
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(states(&cluster, "a"), (NO_LISTENER, NO_LISTENER));
    let _b = cluster.start("b", CONFIG);
    wait_for(&cluster, NOTICED, (REACHABLE, REACHABLE));
}

#[test]
#[ignore = "needs root: network namespaces"]
fn a_restart_of_the_other_end_loses_nothing_for_long() {
    let cluster = Cluster::new();
    let _a = cluster.start("a", CONFIG);
    let b = cluster.start("b", CONFIG);
    for node in ["a", "b"] {
        cluster.tell_nodes(node, "");
    }
    wait_for(&cluster, NOTICED, (REACHABLE, REACHABLE));
    let before = health(&cluster, "a");
    b.stop();
    let _b = cluster.start("b", CONFIG);
    std::thread::sleep(Duration::from_secs(3));
    let after = health(&cluster, "a");
    for (before, after) in [
        (before.underlay, after.underlay),
        (before.overlay, after.overlay),
    ] {
        assert_eq!(after.state, REACHABLE);
        assert!(after.seconds >= 3, "it was so all the time: {after:?}");
        assert!(after.probes >= before.probes + 2, "{after:?}");
    }
    assert_eq!(states(&cluster, "b"), (REACHABLE, REACHABLE));
}

#[test]
#[ignore = "needs root: network namespaces"]
fn natively_both_paths_are_probed() {
    let cluster = Cluster::new();
    let config = format!("{CONFIG}auto-direct-node-routes = true\n");
    let _daemons = ["a", "b"].map(|node| cluster.start(node, &config));
    for node in ["a", "b"] {
        cluster.tell_nodes(node, "--mode native");
    }
    wait_for(&cluster, NOTICED, (REACHABLE, REACHABLE));
}

#[test]
#[ignore = "needs root: network namespaces"]
fn over_ipv6_both_paths_are_probed() {
    let cluster = Cluster::new();
    for (node, address) in [("a", "fd77::1/64"), ("b", "fd77::2/64")] {
        cluster.ip(node, &format!("addr add {address} dev eth0 nodad"));
    }
    let tell = |node: &str| {
        for (name, number) in [("a", 0), ("b", 1)] {
            let underlay = format!("fd77::{}", number + 1);
            let cidr = format!("fd00:{number}::/64");
            let set = format!("node set {name} --underlay {underlay} --pod-cidr {cidr}");
            cluster.podway(node, &set);
        }
    };
    let _a = cluster.start("a", CONFIG);
    tell("a");
    // b's kernel has no tunnel yet, and says that nobody listens to probes.
    eventually("b has no control process", || {
        states(&cluster, "a") == (NO_LISTENER, UNREACHABLE)
    });
    let _b = cluster.start("b", CONFIG);
    tell("b");
    wait_for(&cluster, NOTICED, (REACHABLE, REACHABLE));
    let rtt = health(&cluster, "a").overlay.rtt_microseconds.unwrap();
    assert!((10..100_000).contains(&rtt), "{rtt}");
}

#[test]
#[ignore = "needs root: network namespaces"]
fn strangers_are_not_answered() {
    let cluster = Cluster::new();
    let _a = cluster.start("a", CONFIG);
    cluster.tell_nodes("a", "");
    cluster.ip("b", "addr add 192.168.77.9/24 dev eth0");
    let a: SocketAddr = "192.168.77.1:4799".parse().unwrap();
    let request = |name: &str| Probe {
        kind: Kind::Request,
        sequence: 7,
        cookie: 9,
        sender: NodeId::of(name),
    };
    // A node that is known, by its own address and the right port.
    let known = socket(&cluster, "b", &format!("192.168.77.2:{PORT}"));
    let ask = |from: &UdpSocket, bytes: &[u8]| {
        from.send_to(bytes, a).unwrap();
        // a asks b, too.
        let mut answer = [0; 2000];
        let end = Instant::now() + Duration::from_millis(500);
        while Instant::now() < end {
            let Ok((length, _)) = from.recv_from(&mut answer) else {
                continue;
            };
            let probe = Probe::decode(&answer[..length]);
            if probe.is_none_or(|probe| probe.kind == Kind::Response) {
                return Some(answer[..length].to_vec());
            }
        }
        None
    };
    known
        .set_read_timeout(Some(Duration::from_millis(100)))
        .unwrap();
    let response = Probe {
        kind: Kind::Response,
        sender: NodeId::of("a"),
        ..request("b")
    };
    let expected = Some(response.encode().to_vec());
    assert_eq!(ask(&known, &request("b").encode()), expected);

    // Another one, a node that is another, another address, another port, and what is no probe.
    assert_eq!(ask(&known, &request("c").encode()), None);
    assert_eq!(ask(&known, &request("a").encode()), None);
    assert_eq!(ask(&known, &response.encode()), None);
    assert_eq!(ask(&known, &[0; LENGTH]), None);
    assert_eq!(ask(&known, b""), None);
    let longer = [&request("b").encode()[..], &[0; 1000]].concat();
    assert_eq!(ask(&known, &longer), None);
    let stranger = socket(&cluster, "b", &format!("192.168.77.9:{PORT}"));
    assert_eq!(ask(&stranger, &request("b").encode()), None);
    let other_port = socket(&cluster, "b", "192.168.77.2:5000");
    assert_eq!(ask(&other_port, &request("b").encode()), None);

    // However often it asks, it is answered ten times a second.
    std::thread::sleep(Duration::from_secs(1));
    for _ in 0..500 {
        known.send_to(&request("b").encode(), a).unwrap();
    }
    let mut answers = 0;
    let mut bytes = [0; 2000];
    while let Ok((length, from)) = known.recv_from(&mut bytes) {
        assert_eq!(from, a);
        let probe = Probe::decode(&bytes[..length]).unwrap();
        answers += usize::from(probe.kind == Kind::Response);
    }
    assert_eq!(answers, 10);
    assert_eq!(cluster.podway("a", "node list").lines().count(), 3);
}

#[test]
#[ignore = "needs root: network namespaces"]
fn a_port_that_is_taken_is_told_and_taken_when_it_is_free() {
    let cluster = Cluster::new();
    let other = socket(&cluster, "a", &format!("0.0.0.0:{PORT}"));
    let _daemons = ["a", "b"].map(|node| cluster.start(node, CONFIG));
    for node in ["a", "b"] {
        cluster.tell_nodes(node, "");
    }
    eventually("it is told", || {
        let health = status(&cluster, "a").health.unwrap();
        health.errors.iter().any(|e| e.contains("health-port"))
    });
    let without = PathState::Unknown {
        reason: UnknownReason::NoSocket,
    };
    eventually("it is unknown", || {
        states(&cluster, "a") == (without, without)
    });
    drop(other);
    wait_for(&cluster, NOTICED, (REACHABLE, REACHABLE));
    assert_eq!(status(&cluster, "a").health.unwrap().errors, [""; 0]);
    let address: IpAddr = "192.168.77.1".parse().unwrap();
    assert_eq!(status(&cluster, "a").underlay, Some(address));
}
