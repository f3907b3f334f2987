//! Pods and nodes reach services: addresses that are nobody's, which the kernel translates to a pod's
//! by kube-proxy's rules. What is between pods by their own addresses stays on the fast path.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use podway_bench::netns::{Netns, wait_until};
use podway_bench::ping::Ping;
use podway_bench::topology::{ClusterSpec, Node, Pod, UPLINK};
use podway_proto::dataplane::Counters;
use podway_proto::types::Mode;

use crate::kube_proxy::{
    NETWORKS, Server, Service, TARGET_PORT, address_of, by_tcp, by_udp, delete_rules, write_rules,
};
use crate::support::{Delta, Network, options, ping_all, spec};

/// How long control may take to see rules, on a machine that others load.
const PATIENCE: Duration = Duration::from_secs(5);
/// Pings between two pods that have nothing to do with the services, by the fast path.
const PINGS: u16 = 50;
/// Ports of the client's node: its own, that of the pod beside it, and that of the one that pings.
const CLIENT: &str = "lx0";
const LOCAL: &str = "lx1";
const BYSTANDER: &str = "lx2";
const NODE_PORT: u16 = 30080;

#[test]
#[ignore = "needs root; scripts/test runs it"]
fn pods_reach_services_by_vxlan() {
    reaches_services(Mode::Vxlan, &[false, true]);
}

#[test]
#[ignore = "needs root; scripts/test runs it"]
fn pods_reach_services_natively() {
    // Pods' IPv6 addresses are reached natively by IPv6 underlay addresses only.
    reaches_services(Mode::Native, &[false]);
}

/// What both dataplanes have counted while something was done.
struct Counted([(Counters, Counters); 2]);

impl Counted {
    fn node(&self, number: usize) -> Delta<'_> {
        let (before, after) = &self.0[number];
        Delta { before, after }
    }

    /// Nothing that the client's node has seen was the fast path's, but for the pings.
    fn assert_all_by_the_kernel(&self, what: &str) {
        let delta = self.node(0);
        let pings = (PINGS.into(), PINGS.into());
        for (port, packets) in [
            (CLIENT, (0, 0)),
            (LOCAL, (0, 0)),
            (BYSTANDER, pings),
            (UPLINK, pings),
        ] {
            assert_eq!(delta.packets(port), packets, "{what}: {port}");
        }
        for node in 0..2 {
            let drops = self.node(node).drops();
            assert!(drops.is_empty(), "{what}: {drops:?}");
        }
        // The other node sees the addresses of pods and nodes only.
        let passed = self.node(1).passed(UPLINK);
        assert_eq!(passed.get("translated"), None, "{what}");
    }
}

/// Does something while two pods ping each other, each of whose packets is counted.
fn beside_pings(network: &Network, work: impl FnOnce()) -> Counted {
    let before = network.counters();
    let ping = Ping {
        count: PINGS,
        interval: Duration::from_millis(1),
        ..Ping::default()
    };
    let (from, to) = (network.pod(0, 2), network.pod(1, 2));
    let pings = ping.start(&from.netns, to.ipv4.into());
    work();
    let replies = pings.finish().unwrap();
    assert_eq!((replies.received, replies.duplicates), (PINGS, 0));
    let after = network.counters();
    let mut pairs = before.into_iter().zip(after);
    Counted([pairs.next().unwrap(), pairs.next().unwrap()])
}

fn wait_for_translation(network: &Network, wanted: bool) {
    for number in 0..2 {
        wait_until("control has seen the rules", PATIENCE, || {
            let status = network.agent(number).status().map_err(|e| e.to_string())?;
            let seen = status.translates == wanted;
            seen.then_some(()).ok_or_else(|| "not yet".to_owned())
        })
        .unwrap();
    }
}

/// Asks once by each protocol.
fn by_both(client: &Netns, to: SocketAddr) {
    assert_eq!(by_tcp(client, to), Ok(()), "{to} by TCP");
    assert_eq!(by_udp(client, to), Ok(()), "{to} by UDP");
}

/// The address of a node that it takes towards its own pods: their gateway's.
fn gateway(node: &Node, v6: bool) -> IpAddr {
    let network = if v6 {
        node.pod_network6().into()
    } else {
        node.pod_network().into()
    };
    match network {
        IpAddr::V4(v4) => IpAddr::from((u32::from(v4) + 1).to_be_bytes()),
        IpAddr::V6(v6) => IpAddr::from((u128::from(v6) + 1).to_be_bytes()),
    }
}

fn reaches_services(mode: Mode, families: &[bool]) {
    let spec = ClusterSpec {
        pods_per_node: 3,
        ..spec()
    };
    let network = Network::up(spec, &options(mode));
    let (client, local, remote) = (network.pod(0, 0), network.pod(0, 1), network.pod(1, 0));
    let service = |name, number, endpoints: &[_]| Service {
        name,
        number,
        endpoints: endpoints.to_vec(),
        node_port: (name == "local").then_some(NODE_PORT),
    };
    let services = [
        service("remote", 10, &[remote]),
        service("local", 11, &[local]),
        service("own", 12, &[client]),
        service("both", 13, &[remote, local]),
        service("none", 14, &[]),
    ];
    for (node, other) in [(0, 1), (1, 0)] {
        let (node, other) = (network.node(node), network.node(other));
        // A node asks only where it has a route to; in a cluster it has a default one.
        let [v4, v6] = NETWORKS;
        let lines = [
            format!("route add {v4} via {} dev {UPLINK}", other.underlay),
            format!("route add {v6} via {} dev {UPLINK}", other.underlay6),
        ];
        node.netns.ip(&lines).unwrap();
        // Or a pod is told of an error once a second, and once after it was told of a better way.
        let limits = ["net.ipv4.icmp_ratelimit=0", "net.ipv6.icmp.ratelimit=0"];
        node.netns.sysctl(&limits).unwrap();
        write_rules(node, &services);
    }
    // Control sees the rules on its own time.
    wait_for_translation(&network, true);
    for v6 in families {
        reaches_all(&network, mode, *v6, &services);
    }

    // Without the rules nothing is asked any more.
    for number in 0..2 {
        delete_rules(&network.node(number).netns);
    }
    wait_for_translation(&network, false);
    ping_all(&client.netns, remote.ipv4.into(), 56, 10);
    network.finish();
}

fn reaches_all(network: &Network, mode: Mode, v6: bool, services: &[Service<'_>; 5]) {
    let [to_remote, to_local, to_own, to_both, to_none] =
        services.each_ref().map(|s| s.address(v6));
    let pods = [network.pod(1, 0), network.pod(0, 1), network.pod(0, 0)];
    let [remote, local, own] = pods;
    let servers = pods.map(Server::start);
    let [at_remote, at_local, at_own] = &servers;
    let asked_by = |server: &Server, address: IpAddr, what: &str| {
        let expected = [("tcp", address), ("udp", address)];
        assert_eq!(server.take_asked(), expected, "{what}");
    };
    let address = |pod: &Pod| address_of(pod, v6);
    let (client, node) = (&own.netns, network.node(0));

    // From a pod, which the pod behind the service sees as it is.
    for (what, to, server, answers_by) in [
        ("a pod of another node", to_remote, at_remote, UPLINK),
        ("a pod of this node", to_local, at_local, LOCAL),
    ] {
        let counted = beside_pings(network, || by_both(client, to));
        asked_by(server, address(own), what);
        counted.assert_all_by_the_kernel(what);
        let passed = counted.node(0).passed(answers_by);
        assert!(passed.contains_key("translated"), "{what}: {passed:?}");
    }
    // On the other node the connection is one between pods: its fast path has it.
    let counted = beside_pings(network, || assert_eq!(by_udp(client, to_remote), Ok(())));
    assert_eq!(at_remote.take_asked(), [("udp", address(own))]);
    assert_eq!(counted.node(1).packets("lx0"), (1, 1));
    counted.assert_all_by_the_kernel("one datagram");

    // A pod that reaches itself by its service sees its node.
    let counted = beside_pings(network, || by_both(client, to_own));
    asked_by(at_own, gateway(node, v6), "a pod by itself");
    counted.assert_all_by_the_kernel("a pod by itself");

    // From the node, by its address on the way to the pod.
    let on_the_way: IpAddr = match (mode, v6) {
        (Mode::Vxlan, false) => node.pod_network().into(),
        (Mode::Vxlan, true) => node.pod_network6().into(),
        (Mode::Native, false) => node.underlay.into(),
        (Mode::Native, true) => node.underlay6.into(),
    };
    for (what, to, server, source) in [
        ("node to remote", to_remote, at_remote, on_the_way),
        ("node to local", to_local, at_local, gateway(node, v6)),
    ] {
        let counted = beside_pings(network, || by_both(&node.netns, to));
        asked_by(server, source, what);
        counted.assert_all_by_the_kernel(what);
    }

    // From outside of the cluster, by an address of the node.
    let outside = &network.node(1).netns;
    let own_address: IpAddr = if v6 {
        node.underlay6.into()
    } else {
        node.underlay.into()
    };
    let to_port = SocketAddr::new(own_address, NODE_PORT);
    let counted = beside_pings(network, || by_both(outside, to_port));
    asked_by(at_local, gateway(node, v6), "a port of the node");
    counted.assert_all_by_the_kernel("a port of the node");

    // One of two pods answers each time.
    let counted = beside_pings(network, || {
        (0..20).for_each(|_| assert_eq!(by_tcp(client, to_both), Ok(())));
    });
    let both = [at_remote, at_local].map(|server| server.take_asked().len());
    assert!(
        both[0] + both[1] == 20 && both[0] > 0 && both[1] > 0,
        "{both:?}"
    );
    counted.assert_all_by_the_kernel("one of two");

    // Nobody is behind it, nor at another port.
    let other_port = SocketAddr::new(to_local.ip(), 81);
    let counted = beside_pings(network, || {
        for to in [to_none, other_port] {
            let refused = Err(ErrorKind::ConnectionRefused);
            for netns in [client, &node.netns] {
                assert_eq!(by_tcp(netns, to), refused, "{to} by TCP");
            }
            assert_eq!(by_udp(client, to), refused, "{to} by UDP");
            let not_sent = Err(ErrorKind::PermissionDenied);
            assert_eq!(by_udp(&node.netns, to), not_sent, "{to} by UDP");
        }
    });
    counted.assert_all_by_the_kernel("nobody");

    // Pod to pod by their own addresses: not a packet of it is the kernel's.
    let direct = SocketAddr::new(address(remote), TARGET_PORT);
    let counted = beside_pings(network, || assert_eq!(by_udp(client, direct), Ok(())));
    assert_eq!(at_remote.take_asked(), [("udp", address(own))]);
    let with_pings = u64::from(PINGS) + 1;
    assert_eq!(counted.node(0).packets(CLIENT), (1, 1));
    for node in 0..2 {
        assert_eq!(counted.node(node).packets(UPLINK), (with_pings, with_pings));
    }
    let counted = beside_pings(network, || by_both(client, direct));
    asked_by(at_remote, address(own), "by its own address");
    for node in 0..2 {
        assert_eq!(counted.node(node).passed(UPLINK).get("translated"), None);
        assert_eq!(counted.node(node).drops().len(), 0);
    }
    let beside = SocketAddr::new(address(local), TARGET_PORT);
    let counted = beside_pings(network, || assert_eq!(by_udp(client, beside), Ok(())));
    assert_eq!(at_local.take_asked(), [("udp", address(own))]);
    for port in [CLIENT, LOCAL] {
        assert_eq!(counted.node(0).packets(port), (1, 1), "{port}");
    }
}
