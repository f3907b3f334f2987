//! The cluster that tests take place in: who has which addresses, and the tables that follow.
//!
//! Node `n` has the pods 10.0.`n`.1 and 10.0.`n`.2 (fd00:0:0:`n`::1 and ::2) behind the ports
//! [`POD`] and [`BIG_POD`], and the underlay addresses 192.0.2.`n` and 2001:db8::`n` on the uplinks
//! [`UPLINK`] and [`REAL_WIRE`]. How two nodes send to each other follows from the higher number.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use podway_proto::types::{LocalNode, MacAddr, Mode, Neighbor, Node, Path, PortRole, Route, Via};

use super::packets::{Spec, vxlan};
use crate::fib::{Fib, PortFacts, PortId, Tables};

/// The port of the first pod; its MTU is [`Mtus::pod`].
pub(crate) const POD: PortId = PortId(0);
/// The port of the second pod, whose MTU is 9000.
pub(crate) const BIG_POD: PortId = PortId(1);
/// An uplink that is a virtual wire: it carries unfinished checksums.
pub(crate) const UPLINK: PortId = PortId(2);
/// An uplink that must not.
pub(crate) const REAL_WIRE: PortId = PortId(3);
/// No port.
pub(crate) const GONE: PortId = PortId(4);

/// A node that is sent to by VXLAN over IPv4.
pub(crate) const VXLAN_V4: u8 = 2;
/// A node that is sent to by VXLAN over IPv6.
pub(crate) const VXLAN_V6: u8 = 3;
/// A node that is sent to natively.
pub(crate) const NATIVE: u8 = 4;
/// A node that is sent to natively over a path of 1400 bytes.
pub(crate) const NARROW: u8 = 5;
/// A node whose path is not known.
pub(crate) const LOST: u8 = 6;
/// No node, but pods behind a router.
pub(crate) const GATEWAY: u8 = 7;
/// Nothing: no route.
pub(crate) const NOWHERE: u8 = 8;

/// The overlay's VXLAN network identifier.
pub(crate) const VNI: u32 = 42;

/// MTUs in bytes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Mtus {
    /// Of the first pod's port.
    pub(crate) pod: u16,
    /// Of the uplinks and of all paths but the narrow one.
    pub(crate) uplink: u16,
}

impl Default for Mtus {
    fn default() -> Self {
        Self {
            pod: 1500,
            uplink: 1500,
        }
    }
}

/// The address of pod `pod` of node `node`.
pub(crate) fn pod(v6: bool, node: u8, pod: u8) -> IpAddr {
    match v6 {
        false => Ipv4Addr::new(10, 0, node, pod).into(),
        true => Ipv6Addr::new(0xfd00, 0, 0, node.into(), 0, 0, 0, pod.into()).into(),
    }
}

/// The underlay address of a node.
pub(crate) fn underlay(v6: bool, node: u8) -> IpAddr {
    match v6 {
        false => Ipv4Addr::new(192, 0, 2, node).into(),
        true => Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, node.into()).into(),
    }
}

/// The MAC of a node's VTEP.
pub(crate) fn vtep_mac(node: u8) -> MacAddr {
    MacAddr([2, 0, 0, 0, 2, node])
}

/// The MAC of a node's uplinks, and of the router 254.
pub(crate) fn uplink_mac(node: u8) -> MacAddr {
    MacAddr([2, 0, 0, 0, 1, node])
}

/// The MAC of a pod.
pub(crate) fn pod_mac(node: u8, pod: u8) -> MacAddr {
    MacAddr([2, 0, 0, 4, node, pod])
}

/// The MAC of a pod's port, at its node's end.
pub(crate) fn port_mac(node: u8, pod: u8) -> MacAddr {
    MacAddr([2, 0, 0, 3, node, pod])
}

/// A frame of the tunnel from `node` to node 1, whose outer header has this TOS. The inner frame
/// gets the MACs of the VTEPs.
pub(crate) fn tunnelled(node: u8, tos: u8, inner: &[u8]) -> Vec<u8> {
    let v6 = node == VXLAN_V6;
    let outer = Spec {
        tos,
        dport: 4789,
        flow_label: 0,
        ..Spec::udp(b"")
    };
    let mut inner = inner.to_vec();
    inner[..6].copy_from_slice(&vtep_mac(1).0);
    inner[6..12].copy_from_slice(&vtep_mac(node).0);
    vxlan(
        &outer.between(underlay(v6, node), underlay(v6, 1)),
        VNI,
        &inner,
    )
}

/// A route by several next hops to the pods of node 9, and to those of no node.
pub(crate) fn multipath(v6: bool, nodes: &[u8]) -> Route {
    let by_node = |other: &u8| Via::Node {
        node: format!("node-{other}"),
        vni: None,
    };
    Route {
        prefix: ipnet::IpNet::new(pod(v6, 9, 0), if v6 { 64 } else { 24 }).unwrap(),
        via: Via::Multipath {
            members: nodes.iter().map(by_node).collect(),
        },
    }
}

/// What control tells a node.
#[derive(Debug, Clone, Default)]
pub(crate) struct Facts {
    pub(crate) local: Option<LocalNode>,
    pub(crate) ports: Vec<PortFacts>,
    pub(crate) nodes: Vec<Node>,
    pub(crate) routes: Vec<Route>,
    pub(crate) neighbors: Vec<Neighbor>,
}

impl Facts {
    /// The tables that follow.
    pub(crate) fn tables(&self) -> Tables {
        self.fib().build().tables
    }

    /// A table that was told all of it.
    pub(crate) fn fib(&self) -> Fib {
        let mut fib = Fib::new();
        if let Some(local) = &self.local {
            fib.set_local(local.clone()).unwrap();
        }
        for port in &self.ports {
            fib.attach_port(port.clone()).unwrap();
        }
        for node in &self.nodes {
            fib.set_node(node.clone()).unwrap();
        }
        for route in &self.routes {
            fib.set_route(route.clone()).unwrap();
        }
        for neighbor in &self.neighbors {
            fib.set_neighbor(neighbor.clone()).unwrap();
        }
        fib
    }
}

/// The tables of node `me`.
pub(crate) fn tables(me: u8, mtus: Mtus) -> Tables {
    facts(me, mtus).tables()
}

/// What control tells node `me`.
pub(crate) fn facts(me: u8, mtus: Mtus) -> Facts {
    let others = (1..=LOST).filter(|other| *other != me);
    let destinations = (1..=GATEWAY).filter(|other| *other != me);
    let neighbors = (1..=LOST).chain([254]).flat_map(|node| {
        [false, true].map(|v6| Neighbor {
            interface: "up".into(),
            address: underlay(v6, node),
            mac: uplink_mac(node),
        })
    });
    Facts {
        local: Some(LocalNode {
            vni: VNI.try_into().unwrap(),
            also_vnis: Vec::new(),
            vxlan_port: 4789,
            vtep_mac: vtep_mac(me),
            addresses: vec![underlay(false, me), underlay(true, me)],
            translates: false,
            defragments: false,
            allow_unknown_vteps: false,
        }),
        ports: ports(me, mtus).to_vec(),
        nodes: others.map(|other| remote_node(me, other, mtus)).collect(),
        routes: destinations.flat_map(routes).collect(),
        neighbors: neighbors.collect(),
    }
}

/// The ports of node `me`.
pub(crate) fn ports(me: u8, mtus: Mtus) -> [PortFacts; 4] {
    let pod_port = |id: PortId, number, interface: &str, mtu| PortFacts {
        id,
        interface: interface.into(),
        ifindex: 10 + u32::from(id.0),
        mtu,
        mac: port_mac(me, number),
        carries_runs: false,
        role: PortRole::Pod {
            addresses: vec![pod(false, me, number), pod(true, me, number)],
            mac: pod_mac(me, number),
            any_source: false,
        },
    };
    let uplink = |id: PortId, interface: &str, accept_partial_checksums| PortFacts {
        id,
        interface: interface.into(),
        ifindex: 10 + u32::from(id.0),
        mtu: mtus.uplink,
        mac: uplink_mac(me),
        carries_runs: false,
        role: PortRole::Uplink {
            accept_partial_checksums,
        },
    };
    [
        pod_port(POD, 1, "pod", mtus.pod),
        pod_port(BIG_POD, 2, "big", 9000),
        uplink(UPLINK, "up", true),
        uplink(REAL_WIRE, "wire", false),
    ]
}

fn remote_node(me: u8, other: u8, mtus: Mtus) -> Node {
    let link = me.max(other);
    let v6 = link == VXLAN_V6;
    let path = Path {
        interface: "up".into(),
        next_hop: underlay(v6, other),
        source: underlay(v6, me),
        mtu: if link == NARROW { 1400 } else { mtus.uplink },
    };
    Node {
        name: format!("node-{other}"),
        underlay: underlay(v6, other),
        vtep_mac: vtep_mac(other),
        mode: if link <= VXLAN_V6 {
            Mode::Vxlan
        } else {
            Mode::Native
        },
        path: (link != LOST).then_some(path),
    }
}

fn routes(other: u8) -> [Route; 2] {
    [(false, 24), (true, 64)].map(|(v6, len)| {
        let network = pod(v6, other, 0);
        let via = match other {
            GATEWAY => Via::Gateway {
                address: underlay(v6, 254),
                interface: "up".into(),
            },
            _ => Via::Node {
                node: format!("node-{other}"),
                vni: None,
            },
        };
        Route {
            prefix: ipnet::IpNet::new(network, len).unwrap(),
            via,
        }
    })
}
