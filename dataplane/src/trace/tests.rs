//! What is told of a packet against what workers do with the same one.

use std::net::IpAddr;

use podway_proto::trace::{InTunnel, TracePacket};

use super::*;
use crate::testing::node::Node;
use crate::testing::plan::{
    BIG_POD, GATEWAY, LOST, Mtus, NARROW, NATIVE, NOWHERE, POD, REAL_WIRE, UPLINK, VNI, VXLAN_V4,
    VXLAN_V6, facts, multipath, pod, pod_mac, port_mac, tables, underlay, uplink_mac, vtep_mac,
};

const ME: u8 = 1;

fn asked(source: IpAddr, destination: IpAddr, protocol: u8, size: u32) -> TracePacket {
    TracePacket {
        from_port: "pod".into(),
        source,
        destination,
        protocol,
        source_port: 40_000,
        destination_port: 5201,
        size,
        hop_limit: 64,
        dont_fragment: true,
        tunnel: None,
    }
}

fn ends(port: PortId) -> Ends {
    let from_pod = [POD, BIG_POD].contains(&port);
    let number = if port == POD { 1 } else { 2 };
    Ends {
        port: if from_pod {
            port_mac(ME, number)
        } else {
            uplink_mac(ME)
        },
        sender: if from_pod {
            pod_mac(ME, number)
        } else {
            uplink_mac(2)
        },
        vtep: vtep_mac(ME),
        mtu: if port == BIG_POD { 9000 } else { 1500 },
        vxlan_port: 4789,
        from_pod,
    }
}

/// Asks, and compares with a worker's functions on the same frame.
fn compared(asked: &TracePacket, port: PortId, by_tap: bool, tables: Tables) -> Forwarded {
    let made = make(asked, &ends(port)).unwrap();
    let served = Served {
        port,
        by_tap,
        has_tap: by_tap,
        source_ports: SourcePorts::ALL,
        limits: None,
    };
    let told = forwarded(&made, &served, &tables).unwrap();
    let mut node = Node::new(tables);
    node.send_tunnels_whole(by_tap);
    node.offload = by_tap.then(|| Offload {
        segment: made.segment.unwrap_or(0),
        unfinished: made.unfinished.map(|(start, _)| start),
        checksum: made.unfinished.map_or(0, |(_, field)| field),
    });
    let happened = node.receive(port, &made.frame);
    match (&told.outcome, happened) {
        (Err(dropped), Err(reason)) => assert_eq!(dropped.reason, reason),
        (Ok(sent), Ok(())) => {
            let out = node.flush();
            let wire: Vec<_> = out.iter().flat_map(crate::testing::kernel::wire).collect();
            // A pod takes a super-frame whole; what is told are the segments that it says it has.
            if !matches!(sent.next_hop.kind, NextHopKind::Pod) {
                assert_eq!(wire.len(), sent.segments as usize, "{asked:?}");
            }
            let overhead = match &sent.next_hop.kind {
                NextHopKind::Tunnel(outer) => outer.bytes().len(),
                _ => 0,
            };
            if sent.segments > 1 || matches!(sent.next_hop.kind, NextHopKind::Tunnel(_)) {
                let longest = wire.iter().map(Vec::len).max().unwrap();
                if !matches!(sent.next_hop.kind, NextHopKind::Pod) {
                    assert_eq!(
                        longest,
                        14 + overhead + sent.segment_bytes as usize,
                        "{asked:?}"
                    );
                }
            }
        }
        (told, happened) => panic!("{asked:?}: told {told:?}, and it is {happened:?}"),
    }
    told
}

#[test]
fn what_is_told_is_what_workers_do() {
    let destinations = [VXLAN_V4, VXLAN_V6, NATIVE, NARROW, LOST, GATEWAY, NOWHERE];
    let mut outcomes = std::collections::BTreeMap::<String, u32>::new();
    for v6 in [false, true] {
        for to in destinations {
            for protocol in [1, 6, 17, 58, 132] {
                for size in [80, 1280, 1431, 1451, 1500, 1501, 30_000] {
                    for by_tap in [false, true] {
                        let asked = asked(pod(v6, ME, 1), pod(v6, to, 1), protocol, size);
                        let told = compared(&asked, POD, by_tap, tables(ME, Mtus::default()));
                        let name = match told.outcome {
                            Ok(_) => "sent".to_owned(),
                            Err(dropped) => dropped.reason.name().to_owned(),
                        };
                        *outcomes.entry(name).or_default() += 1;
                    }
                }
            }
        }
    }
    let seen: Vec<&str> = outcomes.keys().map(String::as_str).collect();
    assert_eq!(
        seen,
        [
            "no_neighbor",
            "no_route",
            "sent",
            "too_big",
            "unsupported_protocol"
        ],
        "{outcomes:?}"
    );
}

#[test]
fn packets_out_of_tunnels_are_told_as_well() {
    for v6 in [false, true] {
        for (node, vni, expected) in [
            (VXLAN_V4, VNI, None),
            (VXLAN_V6, VNI, None),
            (VXLAN_V4, VNI + 1, Some(DropReason::UnknownVni)),
            (77, VNI, Some(DropReason::UnknownVtep)),
        ] {
            let over_v6 = node == VXLAN_V6;
            for (port, size) in [(UPLINK, 100), (REAL_WIRE, 1400), (UPLINK, 20_000)] {
                let asked = TracePacket {
                    tunnel: Some(InTunnel {
                        vni: vni.try_into().unwrap(),
                        source: underlay(over_v6, node),
                        destination: Some(underlay(over_v6, ME)),
                    }),
                    ..asked(pod(v6, VXLAN_V4, 1), pod(v6, ME, 1), 6, size)
                };
                let told = compared(&asked, port, true, tables(ME, Mtus::default()));
                let reason = told.outcome.err().map(|dropped| dropped.reason);
                assert_eq!(reason, expected, "{asked:?}");
            }
        }
    }
}

#[test]
fn a_sender_is_told_of_what_the_routes_do_not_carry() {
    let tables = || tables(ME, Mtus::default());
    let told = |destination, size, hop_limit| {
        let asked = TracePacket {
            hop_limit,
            ..asked(pod(false, ME, 1), destination, 17, size)
        };
        compared(&asked, POD, false, tables()).outcome.unwrap_err()
    };
    for (to, size, hops, reason) in [
        (NOWHERE, 100, 64, DropReason::NoRoute),
        (VXLAN_V4, 1500, 64, DropReason::TooBig),
        (VXLAN_V4, 100, 1, DropReason::TtlExpired),
    ] {
        let answered = true;
        assert_eq!(
            told(pod(false, to, 1), size, hops),
            Dropped { reason, answered }
        );
    }
    let lost = told(pod(false, LOST, 1), 100, 64);
    assert_eq!(
        (lost.reason, lost.answered),
        (DropReason::NoNeighbor, false)
    );
}

#[test]
fn a_route_is_told_with_the_member_that_the_flow_has() {
    let mut facts = facts(ME, Mtus::default());
    facts.routes.push(multipath(false, &[VXLAN_V4, NARROW]));
    let mut fib = facts.fib();
    let tables = fib.build().tables;
    let mut members = std::collections::BTreeSet::new();
    for source_port in 0..64 {
        let asked = TracePacket {
            source_port,
            ..asked(pod(false, ME, 1), pod(false, 9, 1), 6, 100)
        };
        let told = compared(&asked, POD, true, tables.clone());
        let route = fib
            .trace(asked.destination, told.flow_hash.unwrap())
            .unwrap();
        assert_eq!(route.prefix.to_string(), "10.0.9.0/24");
        let sent = told.outcome.unwrap();
        assert_eq!(route.mtu, Some(sent.next_hop.mtu));
        let member = match sent.next_hop.kind {
            NextHopKind::Tunnel(_) => "node-2",
            NextHopKind::Native => "node-5",
            other => panic!("{other:?}"),
        };
        let node = podway_proto::control::RouteTarget::Node {
            node: member.into(),
            vni: None,
        };
        assert_eq!(route.member, Some(node));
        members.insert(member);
    }
    assert_eq!(members.len(), 2);
    // No route of its own, one that is unresolved, and a local pod.
    assert_eq!(fib.trace(pod(false, NOWHERE, 1), 0), None);
    assert_eq!(fib.trace(pod(false, LOST, 1), 0).unwrap().mtu, None);
    let local = fib.trace(pod(true, ME, 2), 0).unwrap();
    assert_eq!((local.prefix.prefix_len(), local.mtu), (128, Some(9000)));
}
