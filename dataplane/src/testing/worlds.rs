//! Any facts and any packets, for what must hold of all of them.
//!
//! Names and addresses are those of [`super::plan`]: this node is 1, others are 2 to 6, prefixes
//! reach to 9.

use ipnet::IpNet;
use podway_proto::types::{LocalNode, Mode, Neighbor, Node, Path, PortRole, Route, Via};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

use super::harness::{
    PARTIAL, REPAIR_INNER, REPAIR_IP, REPAIR_L4, likely_segment, repair, unfinished,
};
use super::packets::{
    Offsets, Spec, fix_ip, fold, fragment, icmp, narrow, payload, put16, sum16, vxlan,
};
use super::plan::{
    BIG_POD, Facts, GONE, Mtus, POD, REAL_WIRE, UPLINK, pod, ports, underlay, uplink_mac, vtep_mac,
};
use super::router::Arrival;
use crate::fib::{PortFacts, PortId};
use crate::packet::{MAX_CHAIN, Offload};

const ME: u8 = 1;
const ROUTER: u8 = 254;

const MTUS: [u16; 5] = [576, 1280, 1400, 1500, 9000];
/// No MTU of a path to a node may be less: it must carry a tunnel of 70 bytes more.
const PATH_MTUS: [u16; 4] = [646, 1400, 1500, 9000];
/// IP versions of this node's underlay addresses: whether they are 6.
const FAMILIES: [&[bool]; 3] = [&[false, true], &[false], &[true]];
/// The last one is nobody's.
const LINKS: [&str; 3] = ["up", "wire", "gone"];

/// Facts of this node; some are missing, and prefixes overlap.
pub(crate) fn facts() -> impl Strategy<Value = Facts> {
    let nodes: Vec<_> = (2..=6)
        .map(|number| prop::option::weighted(0.9, node(number)).boxed())
        .collect();
    (
        prop::option::weighted(0.97, local()),
        any_ports(),
        nodes,
        vec(route(), 0..20),
        neighbors(),
    )
        .prop_map(|(local, ports, nodes, routes, neighbors)| Facts {
            local,
            ports,
            nodes: nodes.into_iter().flatten().collect(),
            routes,
            neighbors,
        })
}

fn local() -> impl Strategy<Value = LocalNode> {
    let families = select(&FAMILIES[..]);
    let vni = select(&[1_u32, 42, 0xff_ffff][..]);
    let port = select(&[4789_u16, 8472][..]);
    let strangers = prop::bool::weighted(0.1);
    const ALSO: [&[u32]; 4] = [&[], &[77], &[77, 5], &[42, 77]];
    let also = select(&ALSO[..]);
    let any = (vni, also, port, families, strangers);
    any.prop_map(|(vni, also, vxlan_port, families, strangers)| LocalNode {
        vni: vni.try_into().unwrap(),
        also_vnis: also
            .iter()
            .map(|vni: &u32| (*vni).try_into().unwrap())
            .collect(),
        vxlan_port,
        vtep_mac: vtep_mac(ME),
        addresses: (families.iter())
            .flat_map(|v6| [underlay(*v6, ME), pod(*v6, ME, 254)])
            .collect(),
        translates: false,
        defragments: false,
        allow_unknown_vteps: strangers,
    })
}

fn any_ports() -> impl Strategy<Value = Vec<PortFacts>> {
    let each = prop::option::weighted(0.97, select(&MTUS[..]));
    (vec(each, 4), any::<bool>()).prop_map(|(mtus, moved)| {
        let ports = ports(ME, Mtus::default()).into_iter().zip(mtus);
        let ports = ports.filter_map(|(port, mtu)| Some(PortFacts { mtu: mtu?, ..port }));
        let mut ports: Vec<_> = ports.collect();
        // A pod that has come here from node 3, to whose prefix its addresses belong.
        for port in ports.iter_mut().filter(|port| moved && port.id == POD) {
            if let PortRole::Pod { addresses, .. } = &mut port.role {
                addresses.extend([pod(false, 3, 1), pod(true, 3, 1)]);
            }
        }
        ports
    })
}

fn name(node: u8) -> String {
    format!("node-{node}")
}

fn node(number: u8) -> impl Strategy<Value = Node> {
    // Two nodes may have one address.
    let address = prop_oneof![9 => Just(number), 1 => 2..=6_u8];
    let next_hop = prop_oneof![4 => Just(number), 1 => Just(ROUTER)];
    let link = prop_oneof![8 => Just("up"), 1 => select(&LINKS[..])];
    let path = prop::option::weighted(0.95, (link, next_hop, select(&PATH_MTUS[..])));
    (any::<(bool, bool)>(), address, path).prop_map(move |((v6, vxlan), address, path)| Node {
        name: name(number),
        underlay: underlay(v6, address),
        vtep_mac: vtep_mac(number),
        mode: if vxlan { Mode::Vxlan } else { Mode::Native },
        path: path.map(|(link, next_hop, mtu)| Path {
            interface: link.to_owned(),
            next_hop: underlay(v6, next_hop),
            source: underlay(v6, ME),
            mtu,
        }),
    })
}

fn route() -> impl Strategy<Value = Route> {
    let vni = prop::option::weighted(0.3, select(&[42_u32, 77][..]));
    let by_node = (2..=7_u8, vni).prop_map(|(node, vni)| Via::Node {
        node: name(node),
        vni: vni.map(|vni| vni.try_into().unwrap()),
    });
    let router = prop_oneof![Just(ROUTER), 2..=6_u8];
    let gateway = (any::<bool>(), router, select(&LINKS[..]));
    let by_gateway = gateway.prop_map(|(v6, router, link)| Via::Gateway {
        address: underlay(v6, router),
        interface: link.to_owned(),
    });
    let via = prop_oneof![4 => by_node, 1 => by_gateway];
    (prefix(), via).prop_map(|(prefix, via)| Route { prefix, via })
}

fn prefix() -> impl Strategy<Value = IpNet> {
    const V4: [u8; 13] = [0, 8, 15, 16, 20, 22, 23, 24, 24, 24, 25, 31, 32];
    const V6: [u8; 13] = [0, 16, 48, 60, 62, 63, 64, 64, 64, 65, 112, 127, 128];
    (any::<bool>(), 0..=9_u8, 0..=9_u8, 0..13_usize).prop_map(|(v6, node, host, len)| {
        let len = if v6 { V6[len] } else { V4[len] };
        IpNet::new(pod(v6, node, host), len).unwrap().trunc()
    })
}

fn neighbors() -> impl Strategy<Value = Vec<Neighbor>> {
    let all: Vec<_> = (2..=6)
        .chain([ROUTER])
        .flat_map(|node| [(false, node), (true, node)])
        .flat_map(|(v6, node)| {
            ["up", "wire"].map(|link| Neighbor {
                interface: link.to_owned(),
                address: underlay(v6, node),
                mac: uplink_mac(node),
            })
        })
        .collect();
    let known = vec(prop::bool::weighted(0.95), all.len());
    known.prop_map(move |known| {
        let all = all.iter().zip(known);
        all.filter(|(_, known)| *known)
            .map(|(neighbor, _)| neighbor.clone())
            .collect()
    })
}

/// A packet that is well made, whatever a router thinks of it.
#[derive(Debug, Clone)]
pub(crate) struct Shape {
    port: PortId,
    kind: Kind,
    /// All but addresses and payload.
    spec: Spec,
    reserved_flag: bool,
    /// Node and number of pods.
    from: (u8, u8),
    to: (u8, u8),
    /// The pod of this node that it is for, if it comes by an uplink.
    inward: Option<u8>,
    /// Bytes of the L3 packet, if it can be so small.
    l3_len: usize,
    padding: usize,
    tunnel: Option<Tunnel>,
    chunk: usize,
    /// The size of segments that the kernel tells, if it tells anything.
    told: Option<usize>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Tcp,
    Udp,
    Icmp,
    /// At a multiple of eight bytes, and whether it is not the last one; IPv4 only.
    Fragment(u16, bool),
    /// UDP with a frame inside whose checksum is unfinished: a pod's own tunnel.
    OwnTunnel,
}

/// The outer headers.
#[derive(Debug, Clone)]
struct Tunnel {
    v6: bool,
    node: u8,
    tos: u8,
    sport: u16,
    /// Where it is not what this node expects.
    wrong: Option<Wrong>,
    /// Without a checksum.
    unsummed: bool,
    padding: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wrong {
    Vni,
    Port,
    Mac,
    /// To another node.
    Address,
}

/// Any packet.
pub(crate) fn shape() -> impl Strategy<Value = Shape> {
    let port = prop_oneof![
        8 => Just(POD),
        4 => Just(BIG_POD),
        8 => Just(UPLINK),
        8 => Just(REAL_WIRE),
        1 => Just(GONE),
    ];
    let kind = prop_oneof![
        6 => Just(Kind::Tcp),
        4 => Just(Kind::Udp),
        1 => Just(Kind::Icmp),
        1 => (0..0x1fff_u16, any::<bool>()).prop_map(|(at, more)| Kind::Fragment(at, more)),
        1 => Just(Kind::OwnTunnel),
    ];
    // One more or less than what carries it is where mistakes are made.
    let carried = [
        576, 596, 1210, 1230, 1280, 1330, 1350, 1400, 1430, 1450, 1500, 8930, 8950, 9000,
    ];
    let l3_len = prop_oneof![
        2 => 0..200_usize,
        3 => (select(carried.to_vec()), 0..3_usize).prop_map(|(len, more)| len + more - 1),
        1 => 1500..65_000_usize,
    ];
    let padding = || prop_oneof![4 => Just(0), 1 => 1..30_usize];
    let told = prop::option::of(prop_oneof![Just(0), 500..1500_usize, 1..9000_usize]);
    (
        (port, kind, spec(), prop::bool::weighted(0.05)),
        (1..=9_u8, 0..=9_u8),
        (1..=9_u8, 0..=9_u8),
        prop::option::weighted(0.9, 1..=2_u8),
        (l3_len, padding(), 64..=3840_usize, told),
        prop::option::of((tunnel(), padding())),
    )
        .prop_map(
            |((port, kind, spec, reserved_flag), from, to, inward, sizes, tunnel)| {
                let (l3_len, padding, chunk, told) = sizes;
                let tunnel = tunnel.map(|(tunnel, padding)| Tunnel { padding, ..tunnel });
                Shape {
                    port,
                    kind,
                    spec,
                    reserved_flag,
                    // A pod speaks for itself.
                    from: match port {
                        POD => (ME, 1),
                        BIG_POD => (ME, 2),
                        _ => from,
                    },
                    to,
                    inward: inward.filter(|_| is_uplink(port)),
                    l3_len,
                    padding,
                    tunnel: tunnel.filter(|_| is_uplink(port)),
                    chunk,
                    told,
                }
            },
        )
}

fn is_uplink(port: PortId) -> bool {
    [UPLINK, REAL_WIRE].contains(&port)
}

fn spec() -> impl Strategy<Value = Spec> {
    let ttl = prop_oneof![8 => 2..=255_u8, 1 => 0..=2_u8];
    let ports = (
        any::<u16>(),
        prop_oneof![Just(5201_u16), Just(4789), any::<u16>()],
    );
    (
        any::<(bool, bool, bool, u8, u16, u16)>(),
        any::<(u32, u32, u8, u16)>(),
        (ttl, ports, 0..=10_usize),
    )
        .prop_map(
            |(
                (v6, df, partial, tos, id, flow_label),
                (seq, ack, flags, window),
                (ttl, (sport, dport), options),
            )| Spec {
                v6,
                df,
                partial,
                tos,
                ttl,
                flow_label,
                sport,
                dport,
                ack,
                flags,
                window,
                options: vec![1; options * 4],
                ..Spec::tcp(seq, id, b"")
            },
        )
}

fn tunnel() -> impl Strategy<Value = Tunnel> {
    let wrong = select(&[Wrong::Vni, Wrong::Port, Wrong::Mac, Wrong::Address][..]);
    let wrong = prop::option::weighted(0.15, wrong);
    (any::<(bool, u8, u16)>(), 2..=7_u8, wrong, any::<bool>()).prop_map(
        |((v6, tos, sport), node, wrong, unsummed)| Tunnel {
            v6,
            node,
            tos,
            sport,
            wrong,
            unsummed,
            padding: 0,
        },
    )
}

impl Shape {
    /// The packet, for a node with these facts.
    pub(crate) fn arrival(&self, facts: &Facts) -> Arrival {
        let mut frame = self.inner();
        if let Some(tunnel) = &self.tunnel {
            frame = tunnel.wrap(frame, facts.local.as_ref());
        }
        let offload = self.told.map(|segment| self.offload(&frame, segment));
        Arrival {
            port: self.port,
            frame,
            chunk: self.chunk,
            offload,
        }
    }

    fn inner(&self) -> Vec<u8> {
        let v6 = self.spec.v6;
        let to = self.inward.map_or(self.to, |number| (ME, number));
        let ends = (pod(v6, self.from.0, self.from.1), pod(v6, to.0, to.1));
        let spec = Spec {
            udp: !matches!(self.kind, Kind::Tcp),
            ..self.spec.clone()
        };
        let spec = spec.between(ends.0, ends.1);
        // Headers of a tunnel, and padding, come to it.
        let longest = (MAX_CHAIN * self.chunk).min(65_535) - 200;
        let len = self.l3_len.min(longest).saturating_sub(spec.header_len());
        let spec = Spec {
            payload: payload(len),
            ..spec
        };
        let mut frame = match self.kind {
            Kind::Tcp | Kind::Udp => spec.build(),
            Kind::Icmp => with_hop_limit(icmp(ends.0, ends.1, &spec.payload), spec.ttl),
            Kind::Fragment(..) if v6 => spec.build(),
            Kind::Fragment(at, more) => fragment(spec.build(), at << 3, more),
            Kind::OwnTunnel => {
                let inside = Spec {
                    partial: true,
                    payload: payload(len.saturating_sub(120)),
                    ..Spec::tcp(1, 1, b"")
                };
                vxlan(&spec, 7, &inside.build())
            }
        };
        if self.reserved_flag && !v6 {
            frame[20] |= 0x80;
            fix_ip(&mut frame);
        }
        frame.extend(vec![0xee; self.padding]);
        frame
    }

    /// What the kernel says: of segments only for TCP.
    fn offload(&self, frame: &[u8], segment: usize) -> Offload {
        match self.kind {
            Kind::Tcp => Offload {
                segment: likely_segment(segment, frame.len()),
                ..unfinished(frame)
            },
            Kind::Udp | Kind::OwnTunnel => unfinished(frame),
            Kind::Icmp | Kind::Fragment(..) => Offload::default(),
        }
    }
}

fn with_hop_limit(mut frame: Vec<u8>, hop_limit: u8) -> Vec<u8> {
    let v6 = Offsets::of(&frame).v6;
    frame[if v6 { 21 } else { 22 }] = hop_limit;
    fix_ip(&mut frame);
    frame
}

impl Tunnel {
    fn wrap(&self, mut inner: Vec<u8>, local: Option<&LocalNode>) -> Vec<u8> {
        let (vni, port) = local.map_or((1, 4789), |local| (local.vni.get(), local.vxlan_port));
        let is = |wrong| self.wrong == Some(wrong);
        let me = if is(Wrong::Address) { 9 } else { ME };
        let mac = vtep_mac(if is(Wrong::Mac) { 9 } else { ME });
        inner[..6].copy_from_slice(&mac.0);
        inner[6..12].copy_from_slice(&vtep_mac(self.node).0);
        let outer = Spec {
            tos: self.tos,
            sport: self.sport,
            dport: port ^ u16::from(is(Wrong::Port)),
            flow_label: 0,
            ..Spec::udp(b"")
        };
        let outer = outer.between(underlay(self.v6, self.node), underlay(self.v6, me));
        let also = local.and_then(|local| local.also_vnis.first());
        let vni = also
            .filter(|_| self.sport.is_multiple_of(2))
            .map_or(vni, |vni| vni.get());
        let vni = vni ^ u32::from(is(Wrong::Vni));
        let mut frame = vxlan(&outer, vni, &inner);
        if self.unsummed {
            let field = Offsets::of(&frame).checksum;
            put16(&mut frame, field, 0);
        }
        frame.extend(vec![0xdd; self.padding]);
        frame
    }
}

/// What chance does to a frame, and what is mended of it.
#[derive(Debug, Clone)]
pub(crate) struct Mutation {
    changes: Vec<(usize, Change)>,
    /// Where the frame ends now; what lies behind is lost, what is missing comes.
    len: Option<usize>,
    /// The IPv4 header length in words, with a right checksum.
    ihl: Option<u8>,
    /// The outer IP length is the frame's, however short that is.
    fix_ip: bool,
    /// The outer UDP length is the frame's.
    fix_udp: bool,
    /// Modes of [`repair`].
    modes: u8,
}

#[derive(Debug, Clone, Copy)]
enum Change {
    Set(u8),
    Flip(u8),
}

/// Any mutation.
pub(crate) fn mutation() -> impl Strategy<Value = Mutation> {
    let value = prop_oneof![
        any::<u8>(),
        select(&[0_u8, 1, 4, 5, 6, 8, 17, 44, 58, 0x45, 0x60, 0x86, 0xff][..]),
    ];
    let change = prop_oneof![
        value.prop_map(Change::Set),
        (0..8_u8).prop_map(|bit| Change::Flip(1 << bit)),
    ];
    let modes =
        any::<u8>().prop_map(|bits| bits & (REPAIR_IP | REPAIR_L4 | PARTIAL | REPAIR_INNER));
    (
        vec((0..150_usize, change), 0..4),
        prop::option::weighted(0.3, 0..200_usize),
        prop::option::weighted(0.1, 0..16_u8),
        any::<(bool, bool)>(),
        modes,
    )
        .prop_map(|(changes, len, ihl, (fix_ip, fix_udp), modes)| Mutation {
            changes,
            len,
            ihl,
            fix_ip,
            fix_udp,
            modes,
        })
}

impl Mutation {
    pub(crate) fn apply(&self, arrival: &mut Arrival) {
        let frame = &mut arrival.frame;
        for (at, change) in &self.changes {
            match (frame.get_mut(*at), change) {
                (Some(byte), Change::Set(value)) => *byte = *value,
                (Some(byte), Change::Flip(bit)) => *byte ^= bit,
                (None, _) => {}
            }
        }
        if let Some(len) = self.len {
            frame.resize(len, 0xcc);
        }
        repair(frame, self.modes);
        let has_ip = frame.len() >= 54 || frame.len() >= 34 && frame[12] != 0x86;
        if self.fix_ip && has_ip {
            fix_ip(frame);
        }
        if self.fix_udp && frame.len() >= 62 {
            let at = Offsets::of(frame);
            let len = narrow(frame.len() - at.l4);
            if frame[at.protocol] == 17 {
                put16(frame, at.l4 + 4, len);
            }
        }
        if let Some(words) = self.ihl {
            set_ihl(frame, words);
        }
        if let Some(told) = &mut arrival.offload {
            *told = Offload {
                segment: told.segment,
                ..unfinished(&arrival.frame)
            };
        }
    }
}

/// Makes the IPv4 header one of so many words.
fn set_ihl(frame: &mut [u8], words: u8) {
    let end = 14 + usize::from(words) * 4;
    if frame.len() < 34 || frame[12] == 0x86 {
        return;
    }
    frame[14] = 0x40 | words;
    put16(frame, 24, 0);
    let header = frame.get(14..end).unwrap_or_default();
    let sum = !fold(sum16(header));
    put16(frame, 24, sum);
}
