//! What two pods say to each other, and which packets the dataplanes between have of it.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use podway_bench::topology::{Pod, UPLINK};

use super::Family;
use crate::sockets::{self, Datagrams};
use crate::support::{Delta, Network, ping_all, wait_for_answer};

/// Echoes of each size from each end.
const PINGS: u16 = 3;
/// Bytes of a connection each way; no multiple of any segment's.
const TRANSFER: usize = 3_000_001;
/// Datagrams of each size from each end that no fragments are needed for.
const DATAGRAMS: u32 = 100;
const WINDOW: u32 = 16;
/// Datagrams of each size from each end that only fragments can carry.
const BIG_DATAGRAMS: u32 = 3;
/// Header of ICMP echo and of UDP, in bytes.
const HEADER: usize = 8;
const FRAGMENT_HEADER: usize = 8;
/// How the programs call what neighbours ask each other at any time, and the kernel answers. To a node
/// itself, by an IPv6 underlay, it is `not_vxlan`.
const NEIGHBORS: [&str; 6] = [
    "link_local",
    "multicast",
    "neighbor_discovery",
    "not_for_us",
    "not_ip",
    "not_vxlan",
];
/// How long the first packet may take, for which everyone on the way asks for a neighbour.
const PATIENCE: Duration = Duration::from_secs(10);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Traffic {
    /// Echoes, from small to some fragments.
    Ping,
    /// A connection with content both ways.
    Tcp,
    /// Datagrams that fit the path.
    Udp,
    /// Datagrams that only fragments can carry, up to the largest that there are.
    BigUdp,
}

impl Traffic {
    pub(super) const ALL: [Self; 4] = [Self::Ping, Self::Tcp, Self::Udp, Self::BigUdp];

    fn name(self) -> &'static str {
        match self {
            Self::Ping => "ping",
            Self::Tcp => "TCP, bytes",
            Self::Udp => "UDP",
            Self::BigUdp => "big UDP",
        }
    }
}

/// What arrived of one traffic between two pods.
#[derive(Debug)]
pub(super) struct Row {
    /// Node and pod of both.
    pods: String,
    family: Family,
    traffic: &'static str,
    /// Echoes, bytes or datagrams: as many as were sent.
    arrived: u64,
    /// Packets that dataplanes carried, each counted once; of TCP they are as the kernel makes them.
    by_podway: Option<u64>,
    /// Fragments that are the kernel's.
    by_kernel: u64,
}

impl Row {
    pub(super) const HEAD: &str =
        "  pods        inside traffic       arrived   packets  fragments by kernel";
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let packets = self.by_podway.map_or("-".to_owned(), |n| n.to_string());
        write!(
            f,
            "  {:<11} {:<6} {:<11} {:>9} {packets:>9} {:>20}",
            self.pods, self.family, self.traffic, self.arrived, self.by_kernel
        )
    }
}

/// The packets of one direction; there are as many in the other.
#[derive(Debug, Clone, Copy, Default)]
struct Packets {
    /// Of the fast path.
    fast: u64,
    /// Fragments that are left to the kernel.
    passed: u64,
}

impl Packets {
    fn add(&mut self, other: Self, times: u64) {
        self.fast += times * other.fast;
        self.passed += times * other.passed;
    }
}

/// Two pods of a network that speak one IP version.
pub(super) struct Flow<'a> {
    pub(super) network: &'a Network,
    /// Node and pod.
    pub(super) pods: [(usize, usize); 2],
    pub(super) family: Family,
    /// What the pods' routes carry, in bytes.
    pub(super) mtu: usize,
}

impl Flow<'_> {
    /// Has everyone on the way find its neighbours.
    pub(super) fn begin(&self) {
        let [from, to] = self.ends();
        wait_for_answer(&from.netns, self.family.address(to), PATIENCE);
    }

    /// Both pods send, and everything arrives; each dataplane has its packets and no others.
    pub(super) fn carries(&self, traffic: Traffic) -> Row {
        let before = self.network.counters();
        let (arrived, packets) = match traffic {
            Traffic::Ping => self.pings(),
            Traffic::Tcp => (self.tcp(), None),
            Traffic::Udp => {
                let sizes = [1, 512, self.room() - HEADER];
                self.datagrams(&sizes, DATAGRAMS, WINDOW)
            }
            Traffic::BigUdp => {
                let sizes = [8_000, 20_000, 65_000, self.largest()];
                self.datagrams(&sizes, BIG_DATAGRAMS, 1)
            }
        };
        for (node, (before, after)) in before.iter().zip(&self.network.counters()).enumerate() {
            let delta = Delta { before, after };
            assert_eq!(delta.drops(), BTreeMap::new(), "{traffic:?}, node {node}");
            for port in self.network.agent(node).interfaces() {
                let what = format!(
                    "{traffic:?} by {port} of node {node}, {:?}",
                    self.addresses()
                );
                self.check(&port, &delta, packets, self.is_on_path(node, &port), &what);
            }
        }
        let [(node, pod), (other, other_pod)] = self.pods;
        Row {
            pods: format!("{node}.{pod} - {other}.{other_pod}"),
            family: self.family,
            traffic: traffic.name(),
            arrived,
            by_podway: packets.map(|packets| 2 * packets.fast),
            by_kernel: packets.map_or(0, |packets| 2 * packets.passed),
        }
    }

    fn pings(&self) -> (u64, Option<Packets>) {
        let sizes = [56, self.room() - HEADER, self.room() - HEADER + 1, 8_000];
        let (mut answered, mut packets) = (0, Packets::default());
        for size in sizes {
            let each = self.packets(size + HEADER);
            for (from, to) in self.ways() {
                let size = size.try_into().unwrap();
                ping_all(&from.netns, self.family.address(to), size, PINGS);
                answered += u64::from(PINGS);
                // A request one way and an answer the other.
                packets.add(each, PINGS.into());
            }
        }
        (answered, Some(packets))
    }

    fn tcp(&self) -> u64 {
        let mut bytes = 0;
        for (from, to) in self.ways() {
            let address = self.family.address(to);
            let arrived = sockets::tcp(&from.netns, &to.netns, address, TRANSFER);
            assert_eq!(arrived, (TRANSFER, TRANSFER), "{:?}", self.addresses());
            bytes += arrived.0 + arrived.1;
        }
        bytes as u64
    }

    fn datagrams(&self, sizes: &[usize], count: u32, window: u32) -> (u64, Option<Packets>) {
        let (mut arrived, mut packets) = (0, Packets::default());
        for &size in sizes {
            for (from, to) in self.ways() {
                let address = self.family.address(to);
                let datagrams = Datagrams {
                    size,
                    count,
                    window,
                };
                let whole = datagrams.arriving(&from.netns, &to.netns, address);
                assert_eq!(whole, count, "of {size} bytes to {address}");
                arrived += u64::from(whole);
            }
            packets.add(self.packets(size + HEADER), count.into());
        }
        (arrived, Some(packets))
    }

    /// What a port has had of it. Either end sends as much as the other, so that each port on the
    /// path has as much in as out.
    fn check(
        &self,
        port: &str,
        delta: &Delta<'_>,
        packets: Option<Packets>,
        on_path: bool,
        what: &str,
    ) {
        let mut passed = delta.passed(port);
        passed.retain(|cause, _| !NEIGHBORS.contains(&cause.as_str()));
        let mut fragments = BTreeMap::new();
        match packets {
            None if on_path => {
                let bytes = delta.tx_bytes(port);
                assert!(bytes > 2 * TRANSFER as u64, "{what}: {bytes} bytes");
            }
            _ => {
                let Packets { fast, passed } = match packets {
                    Some(packets) if on_path => packets,
                    _ => Packets::default(),
                };
                assert_eq!(delta.packets(port), (fast, fast), "{what}");
                fragments.extend((passed > 0).then(|| ("fragment".to_owned(), passed)));
            }
        }
        assert_eq!(passed, fragments, "{what}");
        assert_eq!(delta.refused(port), BTreeMap::new(), "{what}");
    }

    fn is_on_path(&self, node: usize, port: &str) -> bool {
        let [(one, _), (two, _)] = self.pods;
        if port == UPLINK {
            return one != two && [one, two].contains(&node);
        }
        let mut ends = self.pods.iter().zip(self.ends());
        ends.any(|((at, _), pod)| *at == node && pod.host_interface == port)
    }

    fn ends(&self) -> [&Pod; 2] {
        self.pods.map(|(node, pod)| self.network.pod(node, pod))
    }

    fn ways(&self) -> [(&Pod, &Pod); 2] {
        let [one, two] = self.ends();
        [(one, two), (two, one)]
    }

    fn addresses(&self) -> [IpAddr; 2] {
        self.ends().map(|pod| self.family.address(pod))
    }

    /// Bytes behind the IP header of a packet that fits the pods' routes.
    fn room(&self) -> usize {
        self.mtu - self.ip_header()
    }

    fn ip_header(&self) -> usize {
        match self.family {
            Family::V4 => 20,
            Family::V6 => 40,
        }
    }

    /// The most that a datagram carries. An IPv6 header does not count to the length of its packet.
    fn largest(&self) -> usize {
        let most = usize::from(u16::MAX) - HEADER;
        match self.family {
            Family::V4 => most - self.ip_header(),
            Family::V6 => most,
        }
    }

    /// What Linux makes of `size` bytes behind the IP header. All fragments but the last have a
    /// multiple of eight bytes; those of IPv6 are the kernel's on every node.
    fn packets(&self, size: usize) -> Packets {
        let room = self.room();
        if size <= room {
            return Packets { fast: 1, passed: 0 };
        }
        let count = |last: usize| 1 + (size - last).div_ceil(last / 8 * 8) as u64;
        match self.family {
            Family::V4 => Packets {
                fast: count(room),
                passed: 0,
            },
            Family::V6 => Packets {
                fast: 0,
                passed: count(room - FRAGMENT_HEADER),
            },
        }
    }
}
