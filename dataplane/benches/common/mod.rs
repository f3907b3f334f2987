//! What the benches of the packet path share: a node's tables, its packets, and memory for a burst.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use etherparse::PacketBuilder;
use ipnet::IpNet;
use podway_dataplane::fib::{Fib, PortFacts, PortId, Tables};
use podway_dataplane::xsk::{Frame, Region};
use podway_proto::types::{LocalNode, MacAddr, Mode, Neighbor, Node, Path, PortRole, Route, Via};

/// Packets that are forwarded together, as in a worker.
pub(crate) const BURST: usize = 64;
/// Different bursts, so that destinations are not in the branch predictor.
pub(crate) const BURSTS: usize = 64;
/// Pods of a full node.
pub(crate) const PODS: u8 = 110;
/// Nodes that the routes lead to.
pub(crate) const NODES: u8 = 100;
pub(crate) const UPLINK: PortId = PortId(200);
pub(crate) const HEADROOM: usize = 256;
pub(crate) const VTEP: MacAddr = MacAddr([2, 0, 0, 0, 2, 1]);

/// One of the two IP versions.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Ip {
    V4,
    V6,
}

impl Ip {
    /// The address of this node's pod `number`.
    pub(crate) fn pod(self, number: u8) -> IpAddr {
        match self {
            Self::V4 => Ipv4Addr::new(10, 0, 0, number).into(),
            Self::V6 => Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, number.into()).into(),
        }
    }

    /// An address in the PodCIDR of route `route`.
    pub(crate) fn remote(self, route: u32, host: u8) -> IpAddr {
        match self {
            Self::V4 => Ipv4Addr::from(0x0b00_0000 | route << 8 | u32::from(host)).into(),
            Self::V6 => {
                let net = 0xfd01_u128 << 112 | u128::from(route) << 64;
                Ipv6Addr::from(net | u128::from(host)).into()
            }
        }
    }
}

/// Route `route` to one node, in that node's own network.
pub(crate) fn to_one_node(route: u32) -> Via {
    Via::Node {
        node: format!("n{}", 2 + route % u32::from(NODES)),
        vni: None,
    }
}

fn underlay(node: u8) -> IpAddr {
    Ipv4Addr::new(192, 0, 2, node).into()
}

/// Networks of a node beside 42.
pub(crate) const ALSO_VNIS: [u32; 3] = [77, 78, 79];

/// A node with all its pods, and so many routes of each IP version to VXLAN nodes, each as `via` says.
pub(crate) fn tables(routes: u32, via: impl Fn(u32) -> Via) -> Tables {
    let mut fib = Fib::new();
    let mac = |kind, number| MacAddr([2, 0, 0, 0, kind, number]);
    fib.set_local(LocalNode {
        vni: 42.try_into().unwrap(),
        also_vnis: ALSO_VNIS.map(|vni| vni.try_into().unwrap()).to_vec(),
        vxlan_port: 4789,
        vtep_mac: VTEP,
        addresses: vec![underlay(1)],
        translates: false,
        defragments: false,
        allow_unknown_vteps: false,
    })
    .unwrap();
    for number in 1..=PODS {
        fib.attach_port(PortFacts {
            id: PortId(number.into()),
            interface: format!("pod{number}"),
            ifindex: number.into(),
            mtu: 1450,
            mac: mac(3, number),
            carries_runs: false,
            role: PortRole::Pod {
                addresses: vec![Ip::V4.pod(number), Ip::V6.pod(number)],
                mac: mac(4, number),
                any_source: false,
            },
        })
        .unwrap();
    }
    fib.attach_port(PortFacts {
        id: UPLINK,
        interface: "up".into(),
        ifindex: 200,
        mtu: 1500,
        mac: mac(1, 1),
        carries_runs: false,
        role: PortRole::Uplink {
            accept_partial_checksums: false,
        },
    })
    .unwrap();
    for node in 2..2 + NODES {
        fib.set_node(Node {
            name: format!("n{node}"),
            underlay: underlay(node),
            vtep_mac: mac(2, node),
            mode: Mode::Vxlan,
            path: Some(Path {
                interface: "up".into(),
                next_hop: underlay(node),
                source: underlay(1),
                mtu: 1500,
            }),
        })
        .unwrap();
        fib.set_neighbor(Neighbor {
            interface: "up".into(),
            address: underlay(node),
            mac: mac(1, node),
        })
        .unwrap();
    }
    for route in 0..routes {
        for (ip, len) in [(Ip::V4, 24), (Ip::V6, 64)] {
            let prefix = IpNet::new(ip.remote(route, 0), len).unwrap();
            fib.set_route(Route {
                prefix,
                via: via(route),
            })
            .unwrap();
        }
    }
    fib.build().tables
}

/// Numbers without a pattern (xorshift), the same in each run.
pub(crate) struct Random(pub(crate) u32);

impl Random {
    pub(crate) fn below(&mut self, limit: u32) -> u32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 17;
        self.0 ^= self.0 << 5;
        self.0 % limit
    }

    pub(crate) fn byte(&mut self, limit: u8) -> u8 {
        u8::try_from(self.below(limit.into())).unwrap()
    }
}

/// A TCP segment with timestamps.
pub(crate) fn segment(from: IpAddr, to: IpAddr, seq: u32, payload: &[u8]) -> Vec<u8> {
    let ethernet = PacketBuilder::ethernet2([2, 0, 0, 0, 2, 2], VTEP.0);
    let ip = match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => ethernet.ipv4(from.octets(), to.octets(), 64),
        (IpAddr::V6(from), IpAddr::V6(to)) => ethernet.ipv6(from.octets(), to.octets(), 64),
        mixed => panic!("{mixed:?}"),
    };
    let tcp = ip.tcp(40_000, 5201, seq, 500).ack(1);
    let tcp = tcp
        .options_raw(&[1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2])
        .unwrap();
    let mut frame = Vec::new();
    tcp.write(&mut frame, payload).unwrap();
    frame
}

/// The frame in a tunnel from a node to this one.
pub(crate) fn in_tunnel(node: u8, vni: u8, inner: &[u8]) -> Vec<u8> {
    let payload = [&[8, 0, 0, 0, 0, 0, vni, 0], inner].concat();
    let udp = PacketBuilder::ethernet2([2, 0, 0, 0, 1, node], [2, 0, 0, 0, 1, 1])
        .ipv4([192, 0, 2, node], [192, 0, 2, 1], 64)
        .udp(50_000, 4789);
    let mut frame = Vec::new();
    udp.write(&mut frame, &payload).unwrap();
    frame
}

/// Memory, and packets in it that are written anew for each burst.
pub(crate) struct Memory {
    pub(crate) region: Arc<Region>,
    pub(crate) frames: Vec<Frame>,
}

impl Memory {
    pub(crate) fn new(frames: usize) -> Self {
        let (region, frames) = Region::new(u32::try_from(frames).unwrap()).unwrap();
        Self { region, frames }
    }

    /// Puts a packet into each frame.
    pub(crate) fn write(&mut self, packets: &[Vec<u8>]) {
        for (frame, packet) in self.frames.iter_mut().zip(packets) {
            assert!(frame.set_data(HEADROOM, packet.len()));
            self.region.bytes_mut(frame).copy_from_slice(packet);
        }
    }
}

pub(crate) fn bursts(mut packet: impl FnMut() -> Vec<u8>) -> Vec<Vec<Vec<u8>>> {
    let burst = |_| (0..BURST).map(|_| packet()).collect();
    (0..BURSTS).map(burst).collect()
}
