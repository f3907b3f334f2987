//! Facts in, snapshots out.

mod property;
mod support;
mod sync;

use podway_proto::ErrorCode;
use podway_proto::types::{LocalNode, MacAddr, Mode, Neighbor, Node, PortRole, Route, Vni};

use super::facts::FactError;
use super::*;
use crate::tunnel::OuterHeader;
use support::*;

fn outer(neighbor: u8, underlay: &str) -> OuterHeader {
    outer_of(neighbor, underlay, local().vni)
}

fn outer_of(neighbor: u8, underlay: &str, vni: Vni) -> OuterHeader {
    OuterHeader::new(
        (mac(0x10), ip("192.0.2.1")),
        (mac(neighbor), ip(underlay)),
        4789,
        vni,
    )
    .unwrap()
}

#[test]
fn snapshots_cross_threads() {
    fn crosses<T: Send>() {}
    crosses::<Reader<Tables>>();
    crosses::<Publisher<Tables>>();
    let (_publisher, mut readers) = Publisher::new(two_nodes().build().tables, 1);
    let mut reader = readers.remove(0);
    let worker = std::thread::spawn(move || {
        reader.refresh();
        reader.get().is_vtep(ip("192.0.2.2"))
    });
    assert!(worker.join().unwrap());
}

#[test]
fn a_route_by_vxlan_has_a_finished_next_hop() {
    let mut fib = two_nodes();
    fib.set_route(by_node("10.0.2.0/24", "n2")).unwrap();
    let Build { tables, xdp } = fib.build();
    let expected = NextHop {
        port: PortId(0),
        l2: L2Rewrite::new(mac(0x92), mac(0x91)),
        mtu: 1450,
        kind: NextHopKind::Tunnel(Box::new(outer(0x22, "192.0.2.2"))),
    };
    assert_eq!(tables.lookup(ip("10.0.2.7")), Some(&expected));
    assert_eq!(tables.lookup(ip("10.0.3.7")), None);
    assert_eq!(xdp.before, XdpWrites::default());
    assert_eq!(xdp.after.set, [(net("10.0.2.0/24"), 1450)]);
    assert_eq!(xdp.after.remove, []);
}

#[test]
fn an_ipv6_underlay_takes_twenty_bytes_more() {
    let mut fib = two_nodes();
    let mut node = node("n6", "2001:db8::6", Mode::Vxlan);
    node.path = Some(path("2001:db8::6", "2001:db8::1", 1500));
    fib.set_node(node).unwrap();
    fib.set_neighbor(neighbor("eth0", "2001:db8::6", 0x66))
        .unwrap();
    fib.set_route(by_node("10.0.6.0/24", "n6")).unwrap();
    let tables = fib.build().tables;
    let hop = tables.lookup(ip("10.0.6.1")).unwrap();
    assert_eq!(hop.mtu, 1430);
    let NextHopKind::Tunnel(outer) = &hop.kind else {
        panic!("{hop:?}");
    };
    assert_eq!((outer.is_v4(), outer.bytes().len()), (false, 70));
}

#[test]
fn a_native_route_takes_the_link_rewrite_and_the_path_mtu() {
    let mut fib = two_nodes();
    fib.set_node(node("n2", "192.0.2.2", Mode::Native)).unwrap();
    fib.set_route(by_node("fd00:2::/64", "n2")).unwrap();
    fib.set_route(by_gateway("10.9.0.0/16", "192.0.2.2", "eth0"))
        .unwrap();
    let tables = fib.build().tables;
    let expected = NextHop {
        port: PortId(0),
        l2: L2Rewrite::new(mac(0x22), mac(0x10)),
        mtu: 1500,
        kind: NextHopKind::Native,
    };
    assert_eq!(tables.lookup(ip("fd00:2::7")), Some(&expected));
    // A gateway is taken with the MTU of its link.
    assert_eq!(
        tables.lookup(ip("10.9.1.1")),
        Some(&NextHop {
            mtu: 9000,
            ..expected
        })
    );
}

#[test]
fn a_path_is_no_wider_than_its_port() {
    let mut fib = two_nodes();
    fib.set_route(by_node("10.0.2.0/24", "n2")).unwrap();
    let _ = fib.build();
    fib.attach_port(PortFacts {
        mtu: 1400,
        ..uplink("eth0", 0)
    })
    .unwrap();
    let Build { tables, xdp } = fib.build();
    assert_eq!(tables.lookup(ip("10.0.2.7")).unwrap().mtu, 1350);
    assert_eq!(xdp.before.set, [(net("10.0.2.0/24"), 1350)]);
    assert!(xdp.after.is_empty());
}

#[test]
fn a_pod_is_reached_by_its_port() {
    let mut fib = Fib::new();
    fib.attach_port(pod("veth1", 3, &["10.0.1.5", "fd00:1::5"]))
        .unwrap();
    let Build { tables, xdp } = fib.build();
    let expected = NextHop {
        port: PortId(3),
        l2: L2Rewrite::new(mac(0xa3), mac(0x13)),
        mtu: 1450,
        kind: NextHopKind::Pod,
    };
    assert_eq!(tables.lookup(ip("10.0.1.5")), Some(&expected));
    assert_eq!(tables.lookup(ip("fd00:1::5")), Some(&expected));
    assert_eq!(tables.lookup(ip("10.0.1.6")), None);
    assert_eq!(
        xdp.after.set,
        [(net("10.0.1.5/32"), 1450), (net("fd00:1::5/128"), 1450)]
    );
    assert_eq!(
        tables.port(PortId(3)),
        Some(&PortEntry {
            ifindex: 103,
            mtu: 1450,
            mac: mac(0x13),
            accept_partial: true,
            is_uplink: false,
            carries_runs: false,
        })
    );
    assert_eq!(tables.port(PortId(2)), None);
    assert_eq!(tables.port(PortId(u16::MAX)), None);

    // One address goes, one comes.
    fib.attach_port(pod("veth1", 3, &["fd00:1::5", "10.0.1.6"]))
        .unwrap();
    let Build { tables, xdp } = fib.build();
    assert_eq!(tables.lookup(ip("10.0.1.5")), None);
    assert_eq!(tables.lookup(ip("10.0.1.6")), Some(&expected));
    assert_eq!(xdp.before.remove, [net("10.0.1.5/32")]);
    assert_eq!(xdp.after.set, [(net("10.0.1.6/32"), 1450)]);

    fib.detach_port("veth1").unwrap();
    let Build { tables, xdp } = fib.build();
    assert_eq!(tables.lookup(ip("fd00:1::5")), None);
    assert_eq!(tables.port(PortId(3)), None);
    assert_eq!(xdp.before.remove.len(), 2);
    assert_eq!(fib.counts(), Counts::default());
}

#[test]
fn any_missing_fact_leaves_the_route_to_the_kernel() {
    type Edit = fn(&mut Fib);
    let cases: [(&str, Edit, Edit); 4] = [
        (
            "neighbour",
            |fib| {
                fib.del_neighbor("eth0", ip("192.0.2.2")).unwrap();
            },
            |fib| {
                fib.set_neighbor(neighbor("eth0", "192.0.2.2", 0x22))
                    .unwrap()
            },
        ),
        (
            "port",
            |fib| fib.detach_port("eth0").unwrap(),
            |fib| fib.attach_port(uplink("eth0", 0)).unwrap(),
        ),
        (
            "node",
            |fib| fib.del_node("n2").unwrap(),
            |fib| fib.set_node(node("n2", "192.0.2.2", Mode::Vxlan)).unwrap(),
        ),
        (
            "path",
            |fib| {
                let node = Node {
                    path: None,
                    ..node("n2", "192.0.2.2", Mode::Vxlan)
                };
                fib.set_node(node).unwrap();
            },
            |fib| fib.set_node(node("n2", "192.0.2.2", Mode::Vxlan)).unwrap(),
        ),
    ];
    for (what, take, give) in cases {
        let mut fib = two_nodes();
        fib.set_route(by_node("10.0.2.0/24", "n2")).unwrap();
        fib.set_route(by_node("fd00:2::/64", "n2")).unwrap();
        let resolved = fib.build().tables;

        take(&mut fib);
        let Build { tables, xdp } = fib.build();
        let hop = tables.lookup(ip("10.0.2.7")).unwrap();
        assert_eq!(
            (&hop.kind, hop.mtu),
            (&NextHopKind::Unresolved, 0),
            "{what}"
        );
        let both = [(net("10.0.2.0/24"), 0), (net("fd00:2::/64"), 0)];
        assert_eq!(xdp.before.set, both, "{what}");
        assert!(xdp.after.is_empty() && xdp.before.remove.is_empty());
        assert_eq!(fib.counts().unresolved, 2, "{what}");

        give(&mut fib);
        let Build { tables, xdp } = fib.build();
        for address in ["10.0.2.7", "fd00:2::7"].map(ip) {
            assert_eq!(tables.lookup(address), resolved.lookup(address), "{what}");
        }
        let both = [(net("10.0.2.0/24"), 1450), (net("fd00:2::/64"), 1450)];
        assert_eq!(xdp.after.set, both, "{what}");
        assert!(xdp.before.is_empty());
        assert_eq!(fib.counts().unresolved, 0, "{what}");
    }
}

#[test]
fn without_local_facts_there_is_no_tunnel_but_native_goes() {
    let mut fib = Fib::new();
    fib.attach_port(uplink("eth0", 0)).unwrap();
    fib.set_neighbor(neighbor("eth0", "192.0.2.2", 0x22))
        .unwrap();
    fib.set_node(node("n2", "192.0.2.2", Mode::Vxlan)).unwrap();
    fib.set_route(by_node("10.0.2.0/24", "n2")).unwrap();
    assert_eq!(fib.build().tables.local(), None);
    assert_eq!(fib.counts().unresolved, 1);
    fib.set_node(node("n2", "192.0.2.2", Mode::Native)).unwrap();
    let _ = fib.build();
    assert_eq!(fib.counts().unresolved, 0);
}

#[test]
fn a_changed_neighbour_reaches_every_route_behind_it_and_no_other() {
    let mut fib = two_nodes();
    fib.set_node(node("n3", "192.0.2.3", Mode::Vxlan)).unwrap();
    fib.set_neighbor(neighbor("eth0", "192.0.2.3", 0x33))
        .unwrap();
    for n in 0..200 {
        fib.set_route(by_node(&format!("10.2.{n}.0/24"), "n2"))
            .unwrap();
    }
    fib.set_route(by_node("10.3.0.0/24", "n3")).unwrap();
    let before = fib.build().tables;
    fib.set_neighbor(neighbor("eth0", "192.0.2.2", 0x77))
        .unwrap();
    let Build { tables, xdp } = fib.build();
    assert!(xdp.is_empty(), "the XDP program does not know of MACs");
    for n in 0..200 {
        let hop = tables.lookup(ip(&format!("10.2.{n}.1"))).unwrap();
        let tunnel = NextHopKind::Tunnel(Box::new(outer(0x77, "192.0.2.2")));
        assert_eq!(hop.kind, tunnel);
        let old = before.lookup(ip(&format!("10.2.{n}.1"))).unwrap();
        assert_ne!(old.kind, tunnel, "the older snapshot stays as it was");
    }
    let third = ip("10.3.0.1");
    assert_eq!(tables.lookup(third), before.lookup(third));
}

#[test]
fn a_pod_takes_precedence_over_a_route_to_its_address() {
    let mut fib = two_nodes();
    fib.set_route(by_node("10.0.1.5/32", "n2")).unwrap();
    let routed = fib.build().tables;
    fib.attach_port(pod("veth1", 1, &["10.0.1.5"])).unwrap();
    let tables = fib.build().tables;
    let hop = tables.lookup(ip("10.0.1.5")).unwrap();
    assert_eq!(hop.kind, NextHopKind::Pod);
    // The route may come, change and go meanwhile.
    fib.set_route(by_node("10.0.1.5/32", "n9")).unwrap();
    assert_eq!(fib.build().xdp, XdpDelta::default());
    assert_eq!(fib.counts().unresolved, 0, "its next hop is the pod");
    fib.set_route(by_node("10.0.1.5/32", "n2")).unwrap();
    fib.detach_port("veth1").unwrap();
    let tables = fib.build().tables;
    let address = ip("10.0.1.5");
    assert_eq!(tables.lookup(address), routed.lookup(address));
    fib.del_route(net("10.0.1.5/32")).unwrap();
    assert_eq!(fib.build().tables.lookup(address), None);
}

/// The VNI of what goes to `address`, if that goes by a tunnel to n2; of those that tests use.
fn vni_to(tables: &Tables, address: &str) -> Option<u32> {
    let NextHopKind::Tunnel(header) = &tables.lookup(ip(address))?.kind else {
        return None;
    };
    let is_it = |vni: &u32| **header == outer_of(0x22, "192.0.2.2", (*vni).try_into().unwrap());
    [42, 77].into_iter().find(is_it)
}

#[test]
fn a_route_may_have_a_vni_of_its_own() {
    let mut fib = two_nodes();
    fib.set_route(by_node("10.0.2.0/24", "n2")).unwrap();
    fib.set_route(by_vni("10.7.0.0/24", "n2", 77)).unwrap();
    let of_both = |fib: &mut Fib| {
        let tables = fib.build().tables;
        ["10.0.2.1", "10.7.0.1"].map(|address| vni_to(&tables, address))
    };
    assert_eq!(of_both(&mut fib), [Some(42), None], "not one of the node's");
    let also_vnis = vec![77.try_into().unwrap()];
    let both = LocalNode {
        also_vnis,
        ..local()
    };
    fib.set_local(both).unwrap();
    assert_eq!(of_both(&mut fib), [Some(42), Some(77)]);
    // What concerns the node concerns both.
    fib.set_node(node("n2", "192.0.2.2", Mode::Native)).unwrap();
    assert_eq!(of_both(&mut fib), [None, None]);
    fib.set_node(node("n2", "192.0.2.2", Mode::Vxlan)).unwrap();
    assert_eq!(of_both(&mut fib), [Some(42), Some(77)]);
    fib.set_local(local()).unwrap();
    assert_eq!(of_both(&mut fib), [Some(42), None]);
}

#[test]
fn nodes_are_known_vteps_in_either_mode() {
    let mut fib = two_nodes();
    fib.set_node(node("n3", "192.0.2.3", Mode::Native)).unwrap();
    // Two names of one node, as while it is renamed.
    fib.set_node(node("n3-new", "192.0.2.3", Mode::Native))
        .unwrap();
    fib.del_node("n3").unwrap();
    fib.set_node(node("n2", "192.0.2.4", Mode::Vxlan)).unwrap();
    let tables = fib.build().tables;
    let known = ["192.0.2.1", "192.0.2.2", "192.0.2.3", "192.0.2.4"].map(|a| tables.is_vtep(ip(a)));
    assert_eq!(known, [false, false, true, true]);
    assert!(tables.is_local(ip("192.0.2.1")));
    assert!(!tables.is_local(ip("192.0.2.2")));
}

#[test]
fn what_is_set_again_changes_nothing() {
    let mut fib = two_nodes();
    fib.set_route(by_node("10.0.2.0/24", "n2")).unwrap();
    fib.attach_port(pod("veth1", 1, &["10.0.1.5"])).unwrap();
    assert!(fib.changed());
    let generation = fib.build().tables.generation();
    assert!(!fib.changed());
    fib.set_local(local()).unwrap();
    fib.set_node(node("n2", "192.0.2.2", Mode::Vxlan)).unwrap();
    fib.set_neighbor(neighbor("eth0", "192.0.2.2", 0x22))
        .unwrap();
    fib.set_route(by_node("10.0.2.0/24", "n2")).unwrap();
    fib.attach_port(pod("veth1", 1, &["10.0.1.5"])).unwrap();
    assert!(!fib.changed());
    let Build { tables, xdp } = fib.build();
    assert!(xdp.is_empty());
    assert_eq!(tables.generation(), generation + 1);
}

#[test]
fn a_refused_change_says_why_and_changes_nothing() {
    let mut fib = two_nodes();
    fib.attach_port(pod("veth1", 1, &["10.0.1.5"])).unwrap();
    fib.set_route(by_node("10.0.2.0/24", "n2")).unwrap();
    let _ = fib.build();
    let prefixes: Vec<_> = fib.prefixes().collect();
    let counts = fib.counts();

    let mut refused = Vec::new();
    let mut refuse = |result: Result<(), FactError>| {
        let error = result.unwrap_err();
        refused.push((error.code(), error.to_string()));
    };
    refuse(fib.del_node("n7"));
    refuse(fib.del_route(net("10.0.7.0/24")));
    refuse(fib.del_route(net("10.0.1.5/32")));
    refuse(fib.del_neighbor("eth0", ip("192.0.2.9")));
    refuse(fib.detach_port("eth7"));
    refuse(fib.attach_port(uplink("eth1", 1)));
    refuse(fib.attach_port(pod("veth2", 2, &["10.0.1.6", "10.0.1.5"])));
    refuse(fib.attach_port(pod("veth2", 2, &["ff02::1"])));
    refuse(fib.attach_port(PortFacts {
        mtu: 500,
        ..uplink("eth1", 2)
    }));
    for prefix in ["10.0.2.1/24", "224.0.1.0/24", "fe80::/64", "127.0.0.0/8"] {
        refuse(fib.set_route(by_node(prefix, "n2")));
    }
    refuse(fib.set_route(by_gateway("10.3.0.0/24", "0.0.0.0", "eth0")));
    refuse(fib.set_node(Node {
        path: Some(path("192.0.2.2", "fd00::1", 1500)),
        ..node("n2", "192.0.2.2", Mode::Vxlan)
    }));
    refuse(fib.set_node(Node {
        path: Some(path("192.0.2.2", "192.0.2.1", 600)),
        ..node("n2", "192.0.2.2", Mode::Vxlan)
    }));
    refuse(fib.set_node(node("", "192.0.2.2", Mode::Vxlan)));
    refuse(fib.set_neighbor(neighbor("eth0", "192.0.2.2", 0xff)));
    let mut bad = local();
    bad.vxlan_port = 0;
    refuse(fib.set_local(bad));

    use ErrorCode::{AlreadyExists, Invalid, NotFound};
    let expected = [
        (NotFound, "no node 'n7'"),
        (NotFound, "no route 10.0.7.0/24"),
        (NotFound, "no route 10.0.1.5/32"),
        (NotFound, "no neighbour 192.0.2.9 on eth0"),
        (NotFound, "no port eth7"),
        (AlreadyExists, "port eth1 has the index of port veth1"),
        (
            AlreadyExists,
            "10.0.1.5 is the address of the pod behind veth1; detach that port first",
        ),
        (
            Invalid,
            "ff02::1 cannot be a pod's address: it is not a unicast address",
        ),
        (
            Invalid,
            "an MTU of 500 bytes is too small; at least 576 are needed here",
        ),
        (Invalid, "10.0.2.1/24 has host bits; write 10.0.2.0/24"),
        (Invalid, "224.0.1.0/24 cannot be routed: it is multicast"),
        (Invalid, "fe80::/64 cannot be routed: it is link-local"),
        (Invalid, "127.0.0.0/8 cannot be routed: it is loopback"),
        (
            Invalid,
            "0.0.0.0 cannot be a gateway: it is not a unicast address",
        ),
        (
            Invalid,
            "the path to 192.0.2.2 cannot start at fd00::1: one is IPv4, one IPv6",
        ),
        (
            Invalid,
            "an MTU of 600 bytes is too small; at least 626 are needed here",
        ),
        (Invalid, "the name is empty"),
        (
            Invalid,
            "ff:00:00:00:00:ff cannot be a neighbour's: it is not a unicast MAC address",
        ),
        (Invalid, "0 is not a UDP port; use 4789 or 8472"),
    ];
    let refused: Vec<_> = refused.iter().map(|(c, m)| (*c, m.as_str())).collect();
    assert_eq!(refused, expected);

    assert!(!fib.changed());
    assert!(fib.build().xdp.is_empty());
    assert_eq!(fib.prefixes().collect::<Vec<_>>(), prefixes);
    assert_eq!(fib.counts(), counts);
}

/// The MACs of the neighbours that the flows to `address` go by, one for each bucket.
fn dealt(tables: &Tables, address: &str) -> Vec<MacAddr> {
    let (_, hops) = ways(tables, ip(address)).unwrap();
    let mac = |hop: &NextHop| match &hop.kind {
        NextHopKind::Tunnel(outer) => outer.bytes()[..6].try_into().map(MacAddr).unwrap(),
        NextHopKind::Native => hop.l2.0[..6].try_into().map(MacAddr).unwrap(),
        other => panic!("{other:?}"),
    };
    hops.into_iter().map(mac).collect()
}

/// Nodes n2 (VXLAN) and n3 (native), and a router; a route by all three.
fn three_ways() -> Fib {
    let mut fib = two_nodes();
    fib.set_node(node("n3", "192.0.2.3", Mode::Native)).unwrap();
    for last in [3_u8, 4] {
        fib.set_neighbor(neighbor("eth0", &format!("192.0.2.{last}"), 0x11 * last))
            .unwrap();
    }
    fib.set_route(by_all("10.0.9.0/24", &members("10.0.9.0/24")))
        .unwrap();
    fib
}

fn members(prefix: &str) -> [Route; 3] {
    [
        by_node(prefix, "n2"),
        by_node(prefix, "n3"),
        by_gateway(prefix, "192.0.2.4", "eth0"),
    ]
}

#[test]
fn a_lost_member_s_flows_move_and_move_back() {
    let mut fib = three_ways();
    let Build { tables, xdp } = fib.build();
    assert_eq!(xdp.after.set, [(net("10.0.9.0/24"), 1450)], "the least");
    assert_eq!(tables.lookup(ip("10.0.9.1")).unwrap().widest(), 9000);
    let whole = dealt(&tables, "10.0.9.1");
    let share = |of: &[MacAddr], last| of.iter().filter(|to| **to == mac(last)).count();
    assert_eq!(
        [0x22, 0x33, 0x44].map(|last| share(&whole, last)),
        [1342, 1417, 1337]
    );

    fib.del_neighbor("eth0", ip("192.0.2.3")).unwrap();
    let Build { tables, xdp } = fib.build();
    assert!(xdp.is_empty(), "the MTU is the same");
    let without = dealt(&tables, "10.0.9.1");
    for (before, after) in whole.iter().zip(&without) {
        match *before == mac(0x33) {
            true => assert_ne!(after, before),
            false => assert_eq!(after, before),
        }
    }
    // A changed MAC is no other member.
    fib.set_neighbor(neighbor("eth0", "192.0.2.4", 0x55))
        .unwrap();
    let changed = dealt(&fib.build().tables, "10.0.9.1");
    assert_eq!(share(&changed, 0x55), share(&without, 0x44));
    fib.set_neighbor(neighbor("eth0", "192.0.2.4", 0x44))
        .unwrap();
    fib.set_neighbor(neighbor("eth0", "192.0.2.3", 0x33))
        .unwrap();
    assert_eq!(dealt(&fib.build().tables, "10.0.9.1"), whole);

    // The narrowest is lost, and then all.
    fib.del_neighbor("eth0", ip("192.0.2.2")).unwrap();
    assert_eq!(fib.build().xdp.after.set, [(net("10.0.9.0/24"), 1500)]);
    fib.detach_port("eth0").unwrap();
    let Build { tables, xdp } = fib.build();
    assert_eq!(xdp.before.set, [(net("10.0.9.0/24"), 0)]);
    let hop = tables.lookup(ip("10.0.9.1")).unwrap();
    assert_eq!((&hop.kind, hop.widest()), (&NextHopKind::Unresolved, 0));
    assert_eq!(fib.counts().unresolved, 1);
}

#[test]
fn a_told_member_moves_its_share_only() {
    let mut fib = three_ways();
    let three = dealt(&fib.build().tables, "10.0.9.1");
    // In any order it is the same route.
    let mut turned = members("10.0.9.0/24");
    turned.reverse();
    fib.set_route(by_all("10.0.9.0/24", &turned)).unwrap();
    assert!(!fib.changed());
    fib.set_route(by_all("10.0.9.0/24", &turned[..2])).unwrap();
    let two = dealt(&fib.build().tables, "10.0.9.1");
    for (three, two) in three.iter().zip(&two) {
        assert!(three == two || *three == mac(0x22), "{three} {two}");
    }
    fib.set_route(by_all("10.0.9.0/24", &turned)).unwrap();
    assert_eq!(dealt(&fib.build().tables, "10.0.9.1"), three);
    // One that shares the members, and members' own routes, have next hops of their own.
    fib.set_route(by_all("10.0.8.0/24", &turned)).unwrap();
    fib.set_route(by_node("10.0.7.0/24", "n2")).unwrap();
    assert_eq!(dealt(&fib.build().tables, "10.0.8.1"), three);
    for prefix in ["10.0.9.0/24", "10.0.8.0/24"].map(net) {
        fib.del_route(prefix).unwrap();
    }
    let tables = fib.build().tables;
    assert_eq!(tables.lookup(ip("10.0.9.1")), None);
    assert_eq!(dealt(&tables, "10.0.7.1"), [mac(0x22)]);
    fib.del_node("n3").unwrap();
    fib.set_route(by_all("10.0.9.0/24", &turned)).unwrap();
    let gone = dealt(&fib.build().tables, "10.0.9.1");
    assert!(gone.iter().all(|to| [mac(0x22), mac(0x44)].contains(to)));
}

#[test]
fn next_hops_that_make_no_multipath_route_are_refused() {
    let mut fib = three_ways();
    let _ = fib.build();
    let all = members("10.0.9.0/24");
    let nested = by_all("10.0.9.0/24", &all);
    let many: Vec<Route> = (0..17)
        .map(|n| by_node("10.0.9.0/24", &format!("n{n}")))
        .collect();
    for (members, complaint) in [
        (&all[..1], "a multipath route has 2 to 16 next hops, not 1"),
        (&many, "a multipath route has 2 to 16 next hops, not 17"),
        (
            &[all[0].clone(), all[0].clone()],
            "a multipath route names a next hop once; for a greater share there is no word",
        ),
        (
            &[all[0].clone(), nested],
            "a next hop of a multipath route is a node or a router",
        ),
        (
            &[all[0].clone(), by_gateway("10.0.9.0/24", "0.0.0.0", "eth0")],
            "0.0.0.0 cannot be a gateway: it is not a unicast address",
        ),
    ] {
        let refused = fib.set_route(by_all("10.0.9.0/24", members)).unwrap_err();
        assert_eq!(refused.to_string(), complaint);
        assert_eq!(refused.code(), ErrorCode::Invalid);
    }
    assert!(!fib.changed());
}

#[test]
fn the_default_route_is_a_route() {
    let mut fib = two_nodes();
    fib.set_route(by_gateway("0.0.0.0/0", "192.0.2.2", "eth0"))
        .unwrap();
    fib.set_route(by_gateway("::/0", "192.0.2.2", "eth0"))
        .unwrap();
    let tables = fib.build().tables;
    for address in ["8.8.8.8", "2001:db8::1"].map(ip) {
        assert_eq!(tables.lookup(address).unwrap().kind, NextHopKind::Native);
    }
}

#[test]
fn a_port_that_changes_its_role_changes_what_depends_on_it() {
    let mut fib = two_nodes();
    fib.set_route(by_node("10.0.2.0/24", "n2")).unwrap();
    let _ = fib.build();
    let role = pod("eth0", 0, &["10.0.1.9"]).role;
    fib.attach_port(PortFacts {
        role,
        ..uplink("eth0", 0)
    })
    .unwrap();
    let tables = fib.build().tables;
    let kind = |address| &tables.lookup(ip(address)).unwrap().kind;
    assert_eq!(kind("10.0.2.1"), &NextHopKind::Unresolved);
    assert_eq!(kind("10.0.1.9"), &NextHopKind::Pod);
    let port = fib.port("eth0").unwrap();
    assert!(matches!(port.role, PortRole::Pod { .. }));
    // And under another index.
    fib.attach_port(uplink("eth0", 4)).unwrap();
    let tables = fib.build().tables;
    assert_eq!(tables.lookup(ip("10.0.1.9")), None);
    assert_eq!(tables.port(PortId(0)), None);
    assert_eq!(tables.lookup(ip("10.0.2.1")).unwrap().port, PortId(4));
    // A neighbour that nobody depends on is just counted.
    let odd = Neighbor {
        interface: "eth9".to_owned(),
        ..neighbor("eth0", "192.0.2.99", 0x99)
    };
    fib.set_neighbor(odd).unwrap();
    assert_eq!(fib.counts().neighbors, 2);
}
