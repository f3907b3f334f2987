//! Packets in, packets out: what is sent, with what offload state, and what it looks like then.
//! What is dropped is in [`super::drop_tests`].

use super::*;
use crate::fib::NextHop;
use crate::packet::Offload;
use crate::testing::harness::combined;
use crate::testing::kernel::wire;
use crate::testing::node::Node;
use crate::testing::packets::{
    Offsets, Spec, finish, fold, fragment, get16, icmp, l4_checksum_is_right, payload, pseudo,
    put16, sum16, verify,
};
use crate::testing::plan::{
    BIG_POD, GATEWAY, LOST, Mtus, NARROW, NATIVE, POD, REAL_WIRE, UPLINK, VXLAN_V4, VXLAN_V6,
    facts, multipath, pod, pod_mac, port_mac, tables, tunnelled, uplink_mac, vtep_mac,
};
use crate::wire::parse::parse;

const ME: u8 = 1;

fn node() -> Node {
    Node::new(tables(ME, Mtus::default()))
}

/// A TCP segment from pod `from.1` of node `from.0` to pod `to.1` of node `to.0`.
fn tcp(v6: bool, from: (u8, u8), to: (u8, u8)) -> Spec {
    let spec = Spec {
        v6,
        ttl: 64,
        tos: 0xb8,
        flow_label: 0xabc,
        ..Spec::tcp(7, 8, &payload(100))
    };
    spec.between(pod(v6, from.0, from.1), pod(v6, to.0, to.1))
}

fn udp(v6: bool, from: (u8, u8), to: (u8, u8)) -> Spec {
    Spec {
        udp: true,
        ..tcp(v6, from, to)
    }
}

/// The frame with other link addresses.
fn with_macs(mut frame: Vec<u8>, to: [u8; 6], from: [u8; 6]) -> Vec<u8> {
    frame[..6].copy_from_slice(&to);
    frame[6..12].copy_from_slice(&from);
    frame
}

/// What the kind of a next hop is, by name.
fn kind(next_hop: &NextHop) -> &'static str {
    match &next_hop.kind {
        NextHopKind::Pod => "pod",
        NextHopKind::Native => "native",
        NextHopKind::Tunnel(outer) if outer.is_v4() => "tunnel over IPv4",
        NextHopKind::Tunnel(_) => "tunnel over IPv6",
        NextHopKind::Group(_) => "group",
        NextHopKind::Unresolved => "unresolved",
    }
}

#[test]
fn a_pod_s_packet_takes_the_way_to_its_destination_s_node() {
    let up = |node| (uplink_mac(node).0, uplink_mac(ME).0);
    let cases = [
        (
            (VXLAN_V4, 9),
            "tunnel over IPv4",
            UPLINK,
            (vtep_mac(2).0, vtep_mac(ME).0),
            1450,
        ),
        (
            (VXLAN_V6, 9),
            "tunnel over IPv6",
            UPLINK,
            (vtep_mac(3).0, vtep_mac(ME).0),
            1430,
        ),
        ((NATIVE, 9), "native", UPLINK, up(NATIVE), 1500),
        ((NARROW, 9), "native", UPLINK, up(NARROW), 1400),
        ((GATEWAY, 9), "native", UPLINK, up(254), 1500),
        (
            (ME, 2),
            "pod",
            BIG_POD,
            (pod_mac(ME, 2).0, port_mac(ME, 2).0),
            1500,
        ),
        (
            (ME, 1),
            "pod",
            POD,
            (pod_mac(ME, 1).0, port_mac(ME, 1).0),
            1500,
        ),
    ];
    for v6 in [false, true] {
        for (to, expected_kind, port, macs, max_l3_len) in cases {
            for spec in [tcp(v6, (ME, 1), to), udp(v6, (ME, 1), to)] {
                let mut node = node();
                let sent = node.forward(POD, &spec.build()).unwrap();
                let what = format!("{to:?} {spec:?}");
                assert_eq!(kind(sent.send.next_hop), expected_kind, "{what}");
                assert_eq!(sent.send.next_hop.port, port, "{what}");
                assert_eq!(sent.send.max_l3_len, max_l3_len, "{what}");
                assert!(!sent.send.partial_checksum, "{what}");
                // Nothing but the time to live, with its checksum, and the link addresses.
                let lower = Spec { ttl: 63, ..spec }.build();
                assert_eq!(sent.bytes, with_macs(lower, macs.0, macs.1), "{what}");
                verify(&sent.bytes);
                let parsed = parse(&sent.bytes, 14, sent.bytes.len());
                assert_eq!(Ok(sent.send.headers), parsed, "{what}");
            }
        }
    }
}

/// A node with a route by several next hops to 10.0.9.0/24 and fd00:0:0:9::/64.
fn node_with(nodes: &[u8]) -> Node {
    let mut fib = facts(ME, Mtus::default()).fib();
    for v6 in [false, true] {
        fib.set_route(multipath(v6, nodes)).unwrap();
    }
    Node::new(fib.build().tables)
}

#[test]
fn a_flow_of_a_multipath_route_goes_by_one_member_and_all_members_are_used() {
    let mut node = node_with(&[VXLAN_V4, NARROW, LOST]);
    for v6 in [false, true] {
        let mut ways = [0; 2];
        for sport in 1000..1256 {
            let spec = Spec {
                sport,
                ..tcp(v6, (ME, 1), (9, 1))
            };
            let way = |node: &mut Node, spec: &Spec| {
                let sent = node.forward(POD, &spec.build()).unwrap().send;
                (kind(sent.next_hop), sent.max_l3_len)
            };
            let first = way(&mut node, &spec);
            match first {
                ("tunnel over IPv4", 1450) => ways[0] += 1,
                // Its own MTU, not that of the group.
                ("native", 1400) => ways[1] += 1,
                other => panic!("{other:?}"),
            }
            let later = Spec {
                seq: 77,
                payload: payload(1000),
                ..spec
            };
            assert_eq!(way(&mut node, &later), first);
        }
        // Four standard deviations.
        assert!(
            ways.iter().all(|flows| (96..=160).contains(flows)),
            "{ways:?}"
        );
    }
}

#[test]
fn fragments_of_a_multipath_route_go_by_one_member() {
    let mut node = node_with(&[VXLAN_V4, NATIVE]);
    let mut ways = std::collections::BTreeMap::new();
    for host in 1..33 {
        for sport in 1000..1008 {
            let whole = Spec {
                sport,
                payload: payload(1000),
                ..udp(false, (ME, 1), (9, host))
            };
            for (offset, more) in [(0, true), (512, false)] {
                let part = fragment(whole.build(), offset, more);
                let sent = node.forward(POD, &part).unwrap().send;
                assert!(sent.headers.fragment);
                let known = ways.entry(host).or_insert(kind(sent.next_hop));
                assert_eq!(*known, kind(sent.next_hop), "{host} {sport}");
            }
        }
    }
    assert!(ways.values().any(|kind| *kind == "native"));
    assert!(ways.values().any(|kind| *kind == "tunnel over IPv4"));
}

#[test]
fn a_multipath_route_without_a_resolved_member_is_the_kernel_s() {
    let fails = |node: &mut Node, port, v6, from: (u8, u8)| {
        let frame = tcp(v6, from, (9, 1)).build();
        node.forward(port, &frame).unwrap_err()
    };
    for v6 in [false, true] {
        let mut lost = node_with(&[LOST, 99]);
        assert_eq!(fails(&mut lost, POD, v6, (ME, 1)), DropReason::NoNeighbor);
        let mut node = node_with(&[VXLAN_V4, NATIVE]);
        let from_outside = fails(&mut node, UPLINK, v6, (NATIVE, 1));
        assert_eq!(from_outside, DropReason::NotLocal, "no loops");
    }
}

#[test]
fn an_icmp_message_is_forwarded() {
    for v6 in [false, true] {
        let frame = icmp(pod(v6, ME, 1), pod(v6, NATIVE, 1), &payload(56));
        let mut node = node();
        let sent = node.forward(POD, &frame).unwrap();
        assert!(!sent.send.partial_checksum);
        assert_eq!(
            sent.bytes[Offsets::of(&frame).l4..],
            frame[Offsets::of(&frame).l4..]
        );
    }
}

#[test]
fn an_uplink_s_packet_goes_to_its_pod_however_it_came() {
    for v6 in [false, true] {
        for (number, to) in [(1, POD), (2, BIG_POD)] {
            for (from, max_l3_len) in [(NATIVE, 1500), (VXLAN_V4, 1450), (VXLAN_V6, 1430)] {
                for spec in [
                    tcp(v6, (from, 9), (ME, number)),
                    udp(v6, (from, 9), (ME, number)),
                ] {
                    let frame = spec.build();
                    let frame = if from == NATIVE {
                        frame
                    } else {
                        tunnelled(from, 0xb8, &frame)
                    };
                    for (port, chunk) in [(UPLINK, 3500), (REAL_WIRE, 3500), (UPLINK, 160)] {
                        let mut node = node();
                        node.chunk = chunk;
                        let sent = node.forward(port, &frame).unwrap();
                        assert_eq!(kind(sent.send.next_hop), "pod");
                        assert_eq!(sent.send.next_hop.port, to);
                        assert_eq!(sent.send.max_l3_len, max_l3_len);
                        let lower = Spec {
                            ttl: 63,
                            ..spec.clone()
                        }
                        .build();
                        let macs = (pod_mac(ME, number).0, port_mac(ME, number).0);
                        assert_eq!(
                            sent.bytes,
                            with_macs(lower, macs.0, macs.1),
                            "{from} {spec:?}"
                        );
                    }
                }
            }
        }
    }
}

/// A receiver does not care how this node would send to where a packet came from.
#[test]
fn both_forms_are_taken_from_each_node() {
    for (from, in_tunnel) in [(VXLAN_V4, false), (NATIVE, true), (NARROW, true)] {
        let frame = tcp(false, (from, 1), (ME, 1)).build();
        let frame = if in_tunnel {
            tunnelled(from, 0, &frame)
        } else {
            frame
        };
        assert!(node().forward(REAL_WIRE, &frame).is_ok(), "{from}");
    }
}

#[test]
fn a_super_frame_is_cut_to_the_least_of_links_and_path() {
    // MTU of the pod, of the uplink; destination; what is left.
    let cases = [
        (1500, 1500, VXLAN_V4, 1450),
        (1500, 1500, VXLAN_V6, 1430),
        (1400, 1500, VXLAN_V4, 1400),
        (1450, 1500, VXLAN_V6, 1430),
        (9000, 1500, NATIVE, 1500),
        (1500, 9000, NATIVE, 1500),
        (9000, 9000, NARROW, 1400),
        (9000, 9000, VXLAN_V4, 8950),
        (9000, 9000, GATEWAY, 9000),
    ];
    for v6 in [false, true] {
        for (pod_mtu, uplink, to, least) in cases {
            let spec = Spec {
                partial: true,
                ..tcp(v6, (ME, 1), (to, 1))
            };
            let frame = Spec {
                payload: payload(40_000),
                ..spec
            }
            .build();
            let mut node = Node::new(tables(
                ME,
                Mtus {
                    pod: pod_mtu,
                    uplink,
                },
            ));
            let sent = node.forward(POD, &frame).unwrap();
            assert_eq!(sent.send.max_l3_len, least, "{pod_mtu} {uplink} {to}");
            assert_eq!(sent.bytes.len(), frame.len());
            assert!(sent.send.partial_checksum);
        }
        // Inward: the uplink less the tunnel, and the pod.
        for (pod_mtu, uplink, from, least) in [
            (1500, 1500, VXLAN_V4, 1450),
            (1500, 1600, VXLAN_V6, 1500),
            (1400, 9000, VXLAN_V4, 1400),
            (9000, 1500, NATIVE, 1500),
            (1500, 9000, NATIVE, 1500),
        ] {
            let frame = tcp(v6, (from, 1), (ME, 1)).build();
            let frame = if from == NATIVE {
                frame
            } else {
                tunnelled(from, 0, &frame)
            };
            let mut node = Node::new(tables(
                ME,
                Mtus {
                    pod: pod_mtu,
                    uplink,
                },
            ));
            let sent = node.forward(UPLINK, &frame).unwrap();
            assert_eq!(sent.send.max_l3_len, least, "{pod_mtu} {uplink} {from}");
        }
    }
}

#[test]
fn a_packet_of_just_the_path_s_size_passes_and_tcp_may_be_larger() {
    for v6 in [false, true] {
        for (to, max) in [
            (VXLAN_V4, 1450),
            (VXLAN_V6, 1430),
            (NATIVE, 1500),
            (NARROW, 1400),
        ] {
            let of_size = |spec: Spec, size: usize| {
                let len = size - spec.header_len();
                Spec {
                    payload: payload(len),
                    ..spec
                }
                .build()
            };
            let just = of_size(udp(v6, (ME, 1), (to, 1)), max);
            assert!(node().forward(POD, &just).is_ok());
            let over = of_size(udp(v6, (ME, 1), (to, 1)), max + 1);
            assert_eq!(node().forward(POD, &over).unwrap_err(), DropReason::TooBig);
            let over = of_size(tcp(v6, (ME, 1), (to, 1)), max + 1);
            assert!(node().forward(POD, &over).is_ok());
        }
    }
}

#[test]
fn each_congestion_mark_is_given_to_the_inner_packet() {
    let marks = (0..4).flat_map(|inner| (0..4).map(move |outer| (inner, outer)));
    for (inner_ecn, outer_ecn) in marks {
        for (other, v6) in [VXLAN_V4, VXLAN_V6]
            .map(|other| [(other, false), (other, true)])
            .concat()
        {
            // DSCP is the inner's own, whatever the outer has become (RFC 2983, 3.1).
            let inner = Spec {
                tos: 0xb8 | inner_ecn,
                ..tcp(v6, (other, 1), (ME, 1))
            };
            let frame = tunnelled(other, 0x28 | outer_ecn, &inner.build());
            let mut node = node();
            let sent = node.forward(UPLINK, &frame);
            let sent = sent.map(|sent| (sent.send.headers.tos, sent.bytes[12..].to_vec()));
            let expected = combined(inner_ecn, outer_ecn).map(|ecn| {
                let tos = 0xb8 | ecn;
                let left = Spec {
                    tos,
                    ttl: 63,
                    ..inner
                };
                (tos, left.build()[12..].to_vec())
            });
            assert_eq!(
                sent,
                expected.ok_or(DropReason::EcnNotCapable),
                "inner {inner_ecn:02b}, outer {outer_ecn:02b}"
            );
        }
    }
}

#[test]
fn padding_is_trimmed_inside_and_outside_of_tunnels() {
    for v6 in [false, true] {
        let short = Spec {
            payload: Vec::new(),
            ..udp(v6, (NATIVE, 1), (ME, 1))
        };
        let bare = short.build();
        let padded = [&bare[..], &[0xee; 20]].concat();
        let in_tunnel = tunnelled(VXLAN_V4, 0, &padded);
        let twice = [&in_tunnel[..], &[0xdd; 9]].concat();
        for frame in [padded, in_tunnel, twice] {
            for chunk in [3500, frame.len() - 3] {
                let mut node = node();
                node.chunk = chunk;
                let sent = node.forward(UPLINK, &frame).unwrap();
                let lower = Spec {
                    ttl: 63,
                    ..short.clone()
                }
                .build();
                assert_eq!(sent.bytes[12..], lower[12..]);
            }
        }
    }
}

#[test]
fn the_last_hop_that_may_be_taken_is_taken() {
    for v6 in [false, true] {
        let spec = Spec {
            ttl: 2,
            ..tcp(v6, (ME, 1), (NATIVE, 1))
        };
        let mut node = node();
        let sent = node.forward(POD, &spec.build()).unwrap();
        assert_eq!(sent.send.headers.hop_limit, 1);
        assert_eq!(sent.bytes[12..], Spec { ttl: 1, ..spec }.build()[12..]);
    }
}

#[test]
fn a_flow_has_one_hash_in_whatever_form_its_packets_come() {
    for v6 in [false, true] {
        let hash = |port, frame: &[u8], chunk| {
            let mut node = node();
            node.chunk = chunk;
            node.forward(port, frame).unwrap().send.flow_hash
        };
        let out = tcp(v6, (ME, 1), (VXLAN_V4, 1));
        let other = Spec {
            seq: 99,
            ttl: 9,
            tos: 3,
            payload: payload(30_000),
            partial: true,
            ..out.clone()
        };
        assert_eq!(
            hash(POD, &out.build(), 3500),
            hash(POD, &other.build(), 1000)
        );
        let inward = tcp(v6, (VXLAN_V4, 1), (ME, 1)).build();
        let plain = hash(UPLINK, &inward, 3500);
        for node in [VXLAN_V4, VXLAN_V6] {
            assert_eq!(hash(UPLINK, &tunnelled(node, 0, &inward), 3500), plain);
        }
        let next = Spec {
            sport: 40_001,
            ..out.clone()
        };
        assert_ne!(
            hash(POD, &out.build(), 3500),
            hash(POD, &next.build(), 3500)
        );
    }
}

#[test]
fn the_fragments_of_a_packet_have_one_hash() {
    let datagram = udp(false, (ME, 1), (VXLAN_V4, 1)).build();
    let other = Spec {
        sport: 9,
        ..udp(false, (ME, 1), (VXLAN_V4, 1))
    }
    .build();
    let hash = |frame: Vec<u8>| {
        let mut node = node();
        let sent = node.forward(POD, &frame).unwrap();
        assert!(sent.send.headers.fragment);
        sent.send.flow_hash
    };
    let first = hash(fragment(datagram.clone(), 0, true));
    assert_eq!(hash(fragment(datagram.clone(), 1480, true)), first);
    assert_eq!(hash(fragment(datagram, 2960, false)), first);
    assert_eq!(
        hash(fragment(other, 1480, false)),
        first,
        "ports do not count"
    );
}

#[test]
fn an_unfinished_checksum_is_known_where_it_may_come() {
    for v6 in [false, true] {
        for spec in [tcp(v6, (ME, 1), (NATIVE, 1)), udp(v6, (ME, 1), (NATIVE, 1))] {
            for partial in [false, true] {
                let frame = Spec {
                    partial,
                    ..spec.clone()
                }
                .build();
                let mut node = node();
                assert_eq!(
                    node.forward(POD, &frame).unwrap().send.partial_checksum,
                    partial
                );
            }
        }
        for spec in [tcp(v6, (NATIVE, 1), (ME, 1)), udp(v6, (NATIVE, 1), (ME, 1))] {
            let plain = Spec {
                partial: true,
                ..spec
            }
            .build();
            for frame in [
                tunnelled(VXLAN_V4, 0, &plain),
                tunnelled(VXLAN_V6, 0, &plain),
                plain,
            ] {
                let mut node = node();
                assert!(node.forward(UPLINK, &frame).unwrap().send.partial_checksum);
                let verdict = node.forward(REAL_WIRE, &frame);
                assert_eq!(verdict.unwrap_err(), DropReason::PartialChecksum);
            }
        }
    }
}

/// What the kernel says counts on every port, and no more is guessed.
#[test]
fn an_unfinished_checksum_is_what_the_kernel_says() {
    let told = |unfinished| {
        Some(Offload {
            unfinished,
            checksum: 16,
            ..Offload::default()
        })
    };
    for v6 in [false, true] {
        let l4 = if v6 { 54 } else { 34 };
        for (port, from, to) in [
            (POD, (ME, 1), (NATIVE, 1)),
            (UPLINK, (NATIVE, 1), (ME, 1)),
            (REAL_WIRE, (NATIVE, 1), (ME, 1)),
        ] {
            for spec in [tcp(v6, from, to), udp(v6, from, to)] {
                // One finished checksum in 65536 looks unfinished.
                for partial in [false, true] {
                    let frame = Spec {
                        partial,
                        ..spec.clone()
                    };
                    for unfinished in [Some(l4), None] {
                        let mut node = node();
                        node.offload = told(unfinished);
                        let sent = node.forward(port, &frame.build()).unwrap();
                        assert_eq!(sent.send.partial_checksum, unfinished.is_some());
                        assert_eq!(sent.bytes[l4.into()..], frame.build()[l4.into()..]);
                    }
                }
            }
        }
        // In a tunnel it is the inner packet's; one of the outer headers goes with them.
        for (from, outer, outer_l4) in [(VXLAN_V4, 50, 34), (VXLAN_V6, 70, 54)] {
            let inner = tcp(v6, (from, 1), (ME, 1)).build();
            let frame = tunnelled(from, 0xb8, &inner);
            for (unfinished, expected) in [
                (Some(outer + l4), true),
                (Some(outer_l4), false),
                (None, false),
            ] {
                let mut node = node();
                node.offload = told(unfinished);
                let sent = node.forward(REAL_WIRE, &frame).unwrap();
                assert_eq!(sent.send.partial_checksum, expected, "{unfinished:?}");
                assert_eq!(sent.bytes[l4.into()..], inner[l4.into()..]);
            }
        }
    }
}

/// The outer checksum of a pod's own tunnel is made for an inner one that the device finishes.
#[test]
fn a_checksum_inside_a_pod_s_own_tunnel_is_finished() {
    for v6 in [false, true] {
        for inner in [tcp(v6, (9, 1), (9, 2)), udp(v6, (9, 1), (9, 2))] {
            let wrap = |inner: &[u8]| {
                let mut outer = Spec {
                    dport: 8472,
                    ..udp(v6, (ME, 1), (NATIVE, 1))
                };
                outer.payload = [&[8, 0, 0, 0, 0, 0, 7, 0], inner].concat();
                outer.build()
            };
            let finished = wrap(&inner.build());
            let in_front = finished.len() - inner.build().len();
            let at = Offsets::of(&finished[in_front..]);
            let mut frame = finished.clone();
            let partial = Spec {
                partial: true,
                ..inner
            };
            frame[in_front..].copy_from_slice(&partial.build());
            let narrow = |n: usize| u16::try_from(n).unwrap();
            for chunk in [3500, 160] {
                let mut node = node();
                node.chunk = chunk;
                node.offload = Some(Offload {
                    segment: 0,
                    unfinished: Some(narrow(in_front + at.l4)),
                    checksum: narrow(at.checksum - at.l4),
                });
                let sent = node.forward(POD, &frame).unwrap();
                assert!(!sent.send.partial_checksum);
                let l4 = Offsets::of(&finished).l4;
                assert_eq!(sent.bytes[l4..], finished[l4..]);
                verify(&sent.bytes);
            }
        }
    }
}

#[test]
fn a_super_frame_is_cut_to_what_fits_and_only_tcp_is() {
    for v6 in [false, true] {
        let ip = if v6 { 40 } else { 20 };
        let l4 = 14 + ip;
        let node = |segment, in_front: u16| {
            let mut node = node();
            node.offload = Some(Offload {
                segment,
                unfinished: Some(in_front + l4),
                checksum: 16,
            });
            node
        };
        let of = |spec: Spec| Spec {
            payload: payload(9000),
            partial: true,
            ..spec
        };
        let cut = |port, frame: &[u8], segment, in_front: u16| {
            let mut node = node(segment, in_front);
            node.receive(port, frame).unwrap();
            let out = node.flush();
            out.iter()
                .flat_map(wire)
                .map(|frame| frame.len() - 14)
                .max()
        };
        for (to, max, outer) in [
            (NARROW, 1400, 0),
            (NATIVE, 1500, 0),
            (VXLAN_V4, 1450, 50),
            (VXLAN_V6, 1430, 70),
        ] {
            let segments = of(tcp(v6, (ME, 1), (to, 1))).build();
            let headers = usize::from(ip) + 32;
            for (segment, longest) in [
                (0, max),
                (500, headers + 500),
                (max - headers, max),
                (max - headers + 1, max),
                (60_000, max),
            ] {
                let longest = Some(longest + outer);
                let segment = u16::try_from(segment).unwrap();
                assert_eq!(cut(POD, &segments, segment, 0), longest, "{segment}");
            }
            let datagrams = of(udp(v6, (ME, 1), (to, 1))).build();
            for segment in [0, 1, 1000, 9000, u16::MAX] {
                let verdict = node(segment, 0).receive(POD, &datagrams);
                assert_eq!(verdict, Err(DropReason::TooBig), "{segment}");
            }
        }
        // From a tunnel to a pod of 1500 bytes: not larger than what the tunnel carries.
        let outer = tunnelled(VXLAN_V4, 0xb8, &of(tcp(v6, (VXLAN_V4, 1), (ME, 1))).build());
        assert_eq!(cut(REAL_WIRE, &outer, 1400, 50), Some(1450));
    }
    // Nobody cuts a fragment.
    let segment = Spec {
        payload: payload(3000),
        ..tcp(false, (ME, 1), (NATIVE, 1))
    };
    let mut node = node();
    node.offload = Some(Offload {
        segment: 1400,
        ..Offload::default()
    });
    let verdict = node.receive(POD, &fragment(segment.build(), 0, true));
    assert_eq!(verdict, Err(DropReason::TooBig));
}

/// A device that has joined segments has verified them, and leaves the first one's checksum.
#[test]
fn a_joined_super_frame_needs_no_checksum_of_its_own() {
    for v6 in [false, true] {
        let spec = Spec {
            payload: payload(9000),
            ..tcp(v6, (NATIVE, 1), (ME, 1))
        };
        let mut frame = spec.build();
        *frame.last_mut().unwrap() ^= 1;
        for (segment, verdict) in [(1400, Ok(false)), (0, Err(DropReason::BadChecksum))] {
            let mut node = node();
            node.offload = Some(Offload {
                segment,
                ..Offload::default()
            });
            let sent = node.forward(REAL_WIRE, &frame);
            assert_eq!(sent.map(|sent| sent.send.partial_checksum), verdict);
        }
    }
}

/// A packet whose finished checksum is, by its payload, also the pseudo-header's sum.
fn finished_but_looks_partial(spec: Spec) -> Vec<u8> {
    let mut frame = Spec {
        payload: vec![0; 2],
        partial: true,
        ..spec
    }
    .build();
    let at = Offsets::of(&frame);
    let sum = pseudo(&frame, frame.len() - at.l4) + sum16(&frame[at.l4..]);
    put16(&mut frame, at.payload, !fold(sum));
    assert!(l4_checksum_is_right(&frame));
    let field = get16(&frame, at.checksum);
    assert_eq!(field, fold(pseudo(&frame, frame.len() - at.l4)));
    frame
}

#[test]
fn a_finished_checksum_that_looks_unfinished_stays_what_it_is() {
    for v6 in [false, true] {
        for spec in [tcp(v6, (NATIVE, 1), (ME, 1)), udp(v6, (NATIVE, 1), (ME, 1))] {
            let frame = finished_but_looks_partial(spec);
            let mut node = node();
            let sent = node.forward(REAL_WIRE, &frame).unwrap();
            assert!(!sent.send.partial_checksum);
            assert_eq!(sent.bytes[26..], {
                let mut lower = frame.clone();
                if v6 {
                    lower[21] -= 1;
                }
                lower[26..].to_vec()
            });
            // Where unfinished ones may come it is finished again, to the same.
            assert!(node.forward(UPLINK, &frame).unwrap().send.partial_checksum);
            let at = Offsets::of(&frame);
            let mut again = frame.clone();
            finish(&mut again, at.l4, at.checksum);
            assert_eq!(again, frame);
        }
    }
}

#[test]
fn a_datagram_without_checksum_is_not_unfinished() {
    for port in [UPLINK, REAL_WIRE] {
        let mut frame = udp(false, (NATIVE, 1), (ME, 1)).build();
        frame[40..42].fill(0);
        let mut node = node();
        let sent = node.forward(port, &frame).unwrap();
        assert!(!sent.send.partial_checksum);
        assert_eq!(sent.bytes[40..42], [0, 0]);
    }
}

/// Behind the datagram there may be options (RFC 9868), which its checksum does not cover. No
/// offload makes such packets: finishing this one would break it.
#[test]
fn a_datagram_shorter_than_its_packet_is_not_unfinished() {
    for v6 in [false, true] {
        let mut frame = udp(v6, (NATIVE, 1), (ME, 1)).build();
        let at = Offsets::of(&frame);
        let l4_len = frame.len() - at.l4;
        put16(&mut frame, at.l4 + 4, u16::try_from(l4_len - 10).unwrap());
        let looks = fold(pseudo(&frame, l4_len));
        put16(&mut frame, at.checksum, looks);
        let mut node = node();
        for port in [UPLINK, REAL_WIRE] {
            let sent = node.forward(port, &frame).unwrap();
            assert!(!sent.send.partial_checksum);
        }
    }
}

#[test]
fn a_fragment_has_no_checksum_to_finish() {
    let partial = Spec {
        partial: true,
        ..udp(false, (NATIVE, 1), (ME, 1))
    };
    let frame = fragment(partial.build(), 0, true);
    let mut node = node();
    assert!(!node.forward(UPLINK, &frame).unwrap().send.partial_checksum);
    assert!(node.forward(REAL_WIRE, &frame).is_ok());
}

/// A VXLAN packet of a pod is a datagram like any other: only what comes from an uplink is pulled.
#[test]
fn a_tunnel_inside_the_overlay_is_not_ended_here() {
    let inner = tcp(false, (NATIVE, 1), (ME, 1)).build();
    let mut outer = Spec {
        dport: 4789,
        ..udp(false, (ME, 1), (NATIVE, 1))
    };
    outer.payload = [&[8, 0, 0, 0, 0, 0, 42, 0], &inner[..]].concat();
    let frame = outer.build();
    let mut node = node();
    let sent = node.forward(POD, &frame).unwrap();
    assert_eq!(sent.bytes.len(), frame.len());
    assert_eq!(sent.bytes[34..], frame[34..]);
}
