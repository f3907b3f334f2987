//! Routes with several next hops: which flows go where, and which move when a next hop comes or goes.

use std::collections::BTreeMap;
use std::net::UdpSocket;
use std::time::{Duration, Instant};

use podway_bench::netns::{Netns, join, wait_until};
use podway_bench::topology::{ClusterSpec, UPLINK};
use podway_proto::types::Mode;

use crate::support::{Delta, Network, options, spec};

/// An address that a pod of node 2 and one of node 3 have, and the route of node 1 to it.
const ANYCAST: &str = "10.0.99.1";
const PREFIX: &str = "10.0.99.0/24";
const PORT: u16 = 7000;
const FLOWS: u16 = 256;
const FIRST_PORT: u16 = 20_000;
/// Flows that are sent at once: a receiver has room for all of them.
const AT_ONCE: usize = 64;
/// How long the next datagram of some may take.
const QUIET: Duration = Duration::from_millis(300);
/// How long anything may take to be followed, on a machine that others load.
const PATIENCE: Duration = Duration::from_secs(15);

/// Where the datagrams of each flow, by source port, came to: 0 is the pod of node 2, 1 that of node
/// 3.
type Places = BTreeMap<u16, usize>;

/// What may be lost while something changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Losses {
    None,
    /// Datagrams of those flows that move.
    OfMoved,
}

struct Flows {
    senders: Vec<UdpSocket>,
    receivers: [UdpSocket; 2],
    sequence: u32,
}

fn sockets(netns: &Netns, address: &'static str, ports: std::ops::Range<u16>) -> Vec<UdpSocket> {
    let io = |error: std::io::Error| podway_bench::Error::Unexpected(error.to_string());
    let made = netns.thread(move || {
        let sockets = ports.map(|port| UdpSocket::bind((address, port)));
        sockets.collect::<Result<_, _>>().map_err(io)
    });
    join(made).unwrap()
}

impl Flows {
    fn new(network: &Network) -> Self {
        let ports = FIRST_PORT..FIRST_PORT + FLOWS;
        let senders = sockets(&network.pod(0, 0).netns, "0.0.0.0", ports);
        let receiver = |node| {
            let mut one = sockets(&network.pod(node, 0).netns, ANYCAST, PORT..PORT + 1);
            let one = one.pop().unwrap();
            one.set_nonblocking(true).unwrap();
            one
        };
        Self {
            senders,
            receivers: [receiver(1), receiver(2)],
            sequence: 0,
        }
    }

    /// Sends a datagram of each flow. A flow whose datagram did not arrive is missing.
    fn round(&mut self) -> Places {
        self.sequence += 1;
        let mut places = Places::new();
        for some in self.senders.chunks(AT_ONCE) {
            for sender in some {
                let sequence = self.sequence.to_be_bytes();
                sender.send_to(&sequence, (ANYCAST, PORT)).unwrap();
            }
            let (expected, mut last) = (places.len() + some.len(), Instant::now());
            while places.len() < expected && last.elapsed() < QUIET {
                let before = places.len();
                for (place, receiver) in self.receivers.iter().enumerate() {
                    let mut datagram = [0; 4];
                    while let Ok((len, from)) = receiver.recv_from(&mut datagram) {
                        assert_eq!((len, u32::from_be_bytes(datagram)), (4, self.sequence));
                        let twice = places.insert(from.port(), place);
                        assert_eq!(twice, None, "{from} came twice");
                    }
                }
                if places.len() > before {
                    last = Instant::now();
                } else {
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
        }
        places
    }

    /// Sends rounds until one comes as `wanted`. Meanwhile all of `unmoved` come to where they did.
    fn until(&mut self, what: &str, wanted: &Places, unmoved: &Places, losses: Losses) {
        wait_until(what, PATIENCE, || {
            let places = self.round();
            for (flow, place) in unmoved {
                assert_eq!(places.get(flow), Some(place), "flow {flow}: {what}");
            }
            if losses == Losses::None {
                assert_eq!(places.len(), wanted.len(), "{what}");
            }
            let others = places
                .iter()
                .filter(|(flow, at)| wanted.get(flow) != Some(at));
            match (places.len(), others.count()) {
                (len, 0) if len == wanted.len() => Ok(()),
                (len, other) => Err(format!("{len} flows came, {other} of them elsewhere")),
            }
        })
        .unwrap();
    }
}

fn of(places: &Places, place: usize) -> Places {
    let there = places.iter().filter(|(_, at)| **at == place);
    there.map(|(flow, at)| (*flow, *at)).collect()
}

#[test]
#[ignore = "needs root; scripts/test runs it"]
fn only_flows_of_a_lost_next_hop_move_and_they_move_back() {
    for (mode, by_router) in [
        (Mode::Vxlan, false),
        (Mode::Native, false),
        (Mode::Vxlan, true),
    ] {
        flows_move(mode, by_router);
    }
}

/// `by_router`: node 2 is reached as a router, beside a tunnel to node 3.
fn flows_move(mode: Mode, by_router: bool) {
    let spec = ClusterSpec {
        nodes: 3,
        pods_per_node: 1,
        ..spec()
    };
    let mut network = Network::up(spec, &options(mode));
    for node in [1, 2] {
        let pod = network.pod(node, 0);
        let lines = [
            format!("addr add {ANYCAST}/32 dev lo"),
            "link set dev lo up".to_owned(),
        ];
        pod.netns.ip(&lines).unwrap();
        let (port, address) = (&pod.host_interface, pod.ipv4.to_string());
        let agent = network.agent(node);
        agent.cli(&["port", "del", port]).unwrap();
        let args = [
            "port", "add", port, "--pod-ip", &address, "--pod-ip", ANYCAST,
        ];
        agent.cli(&args).unwrap();
    }
    network.podway.wait_ready().unwrap();
    let policy = "net.ipv4.fib_multipath_hash_policy=1";
    network.node(0).netns.sysctl(&[policy]).unwrap();
    let underlay = network.node(1).underlay.to_string();
    let (second, third) = match by_router {
        true => (vec!["via", &underlay, "dev", UPLINK], vec!["via", "n3"]),
        false => (vec!["via", "n2"], vec!["via", "n3"]),
    };
    let tell = |network: &Network, what: &str, ways: &[&[&str]]| {
        let args = [&["route", what, PREFIX], &ways.concat()[..]].concat();
        network.agent(0).cli(&args).unwrap();
    };
    tell(&network, "add", &[&second, &third]);
    // The kernel, which has it sooner, deals by another hash.
    network.podway.wait_ready().unwrap();
    let mut flows = Flows::new(&network);
    let complete = || match flows.round() {
        places if places.len() == usize::from(FLOWS) => Ok(places),
        places => Err(format!("{} flows came", places.len())),
    };
    let whole = wait_until("all flows arrive", PATIENCE, complete).unwrap();

    // Both have their share, each flow its place, and nothing of it was the kernel's.
    let before = network.counters();
    assert_eq!(flows.round(), whole);
    assert_eq!(flows.round(), whole);
    let after = network.counters();
    let packets = |node: usize| {
        let delta = Delta {
            before: &before[node],
            after: &after[node],
        };
        delta.packets(UPLINK)
    };
    let shares = [0, 1].map(|place| of(&whole, place).len());
    // Of 256 flows, four standard deviations of a fair share.
    assert!(
        shares.iter().all(|share| (96..=160).contains(share)),
        "{shares:?}"
    );
    let twice = |share: usize| (u64::try_from(2 * share).unwrap(), 0);
    assert_eq!(packets(0), (0, 2 * u64::from(FLOWS)));
    assert_eq!([packets(1), packets(2)], shares.map(twice));

    // A next hop is told away and told again: no datagram is lost, and no flow of the other moves.
    let all_at_second: Places = whole.keys().map(|flow| (*flow, 0)).collect();
    let unmoved = of(&whole, 0);
    tell(&network, "replace", &[&second]);
    flows.until(
        "the change is followed",
        &all_at_second,
        &unmoved,
        Losses::None,
    );
    tell(&network, "replace", &[&third, &second]);
    flows.until(
        "the change back is followed",
        &whole,
        &unmoved,
        Losses::None,
    );

    // It is lost: its neighbour does not answer any more. Then it is back.
    let arp = |on: &str| {
        let lines = [format!("link set dev {UPLINK} arp {on}")];
        network.node(2).netns.ip(&lines).unwrap();
    };
    arp("off");
    let lost = network.node(2).underlay;
    let forget = [format!("neigh del {lost} dev {UPLINK}")];
    network.node(0).netns.ip(&forget).unwrap();
    flows.until(
        "the loss is followed",
        &all_at_second,
        &unmoved,
        Losses::OfMoved,
    );
    arp("on");
    flows.until("the return is followed", &whole, &unmoved, Losses::OfMoved);
    network.finish();
}
