//! Facts of a small cluster: this node is 192.0.2.1, its uplink eth0.

use std::net::IpAddr;

use ipnet::IpNet;
use podway_proto::types::{
    LocalNode, MacAddr, Mode, Neighbor, Node, Path, PortRole, Route, Via, Vni,
};

use super::super::group::BUCKETS;
use super::super::{Fib, NextHop, NextHopKind, PortFacts, PortId, Tables};

pub(super) fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

pub(super) fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

/// A MAC that ends in `last`; 0xff makes a multicast one.
pub(super) fn mac(last: u8) -> MacAddr {
    let first = if last == 0xff { 0xff } else { 2 };
    MacAddr([first, 0, 0, 0, 0, last])
}

pub(super) fn local() -> LocalNode {
    LocalNode {
        vni: Vni::try_from(42).unwrap(),
        also_vnis: Vec::new(),
        vxlan_port: 4789,
        vtep_mac: mac(0x91),
        addresses: vec![ip("192.0.2.1"), ip("2001:db8::1")],
        translates: false,
        defragments: false,
        allow_unknown_vteps: false,
    }
}

/// MTU 9000, MAC 0x10 and its index.
pub(super) fn uplink(interface: &str, id: u16) -> PortFacts {
    PortFacts {
        id: PortId(id),
        interface: interface.to_owned(),
        ifindex: 100 + u32::from(id),
        mtu: 9000,
        mac: mac(0x10 + u8::try_from(id).unwrap()),
        carries_runs: false,
        role: PortRole::Uplink {
            accept_partial_checksums: false,
        },
    }
}

/// MTU 1450, MAC 0x10 and its index, the pod's 0xa0 and its index.
pub(super) fn pod(interface: &str, id: u16, addresses: &[&str]) -> PortFacts {
    PortFacts {
        mtu: 1450,
        role: PortRole::Pod {
            addresses: addresses.iter().map(|address| ip(address)).collect(),
            mac: mac(0xa0 + u8::try_from(id).unwrap()),
            any_source: false,
        },
        ..uplink(interface, id)
    }
}

pub(super) fn path(next_hop: &str, source: &str, mtu: u16) -> Path {
    Path {
        interface: "eth0".to_owned(),
        next_hop: ip(next_hop),
        source: ip(source),
        mtu,
    }
}

/// A node on the link of eth0, path MTU 1500, VTEP MAC 0x92.
pub(super) fn node(name: &str, underlay: &str, mode: Mode) -> Node {
    Node {
        name: name.to_owned(),
        underlay: ip(underlay),
        vtep_mac: mac(0x92),
        mode,
        path: Some(path(underlay, "192.0.2.1", 1500)),
    }
}

pub(super) fn neighbor(interface: &str, address: &str, last: u8) -> Neighbor {
    Neighbor {
        interface: interface.to_owned(),
        address: ip(address),
        mac: mac(last),
    }
}

pub(super) fn by_node(prefix: &str, node: &str) -> Route {
    Route {
        prefix: net(prefix),
        via: Via::Node {
            node: node.to_owned(),
            vni: None,
        },
    }
}

/// In tunnels with another VNI than the overlay's.
pub(super) fn by_vni(prefix: &str, node: &str, vni: u32) -> Route {
    Route {
        prefix: net(prefix),
        via: Via::Node {
            node: node.to_owned(),
            vni: Some(vni.try_into().unwrap()),
        },
    }
}

pub(super) fn by_gateway(prefix: &str, address: &str, interface: &str) -> Route {
    Route {
        prefix: net(prefix),
        via: Via::Gateway {
            address: ip(address),
            interface: interface.to_owned(),
        },
    }
}

/// A route by each of these ways.
pub(super) fn by_all(prefix: &str, routes: &[Route]) -> Route {
    Route {
        prefix: net(prefix),
        via: Via::Multipath {
            members: routes.iter().map(|route| route.via.clone()).collect(),
        },
    }
}

/// What packets to `address` may get: the next hop, or of a group that of each bucket, with the
/// MTU that holds for all of them.
pub(super) fn ways(tables: &Tables, address: IpAddr) -> Option<(u16, Vec<&NextHop>)> {
    let hop = tables.lookup(address)?;
    let NextHopKind::Group(group) = &hop.kind else {
        return Some((hop.mtu, vec![hop]));
    };
    let hashes = 0..u32::try_from(BUCKETS).unwrap();
    let member = |hash| tables.member(group, hash).unwrap();
    Some((hop.mtu, hashes.map(member).collect()))
}

/// This node, its uplink, and the node n2 at 192.0.2.2 with its neighbour; no routes.
pub(super) fn two_nodes() -> Fib {
    let mut fib = Fib::new();
    fib.set_local(local()).unwrap();
    fib.attach_port(uplink("eth0", 0)).unwrap();
    fib.set_node(node("n2", "192.0.2.2", Mode::Vxlan)).unwrap();
    fib.set_neighbor(neighbor("eth0", "192.0.2.2", 0x22))
        .unwrap();
    fib
}
