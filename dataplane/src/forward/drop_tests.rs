//! Each reason for which a packet is dropped, with packets that are.

use std::collections::HashSet;

use super::*;
use crate::testing::node::Node;
use crate::testing::packets::{
    Offsets, Spec, fix_ip, fold, fragment, icmp, payload, put16, sum16, vxlan,
};
use crate::testing::plan::{
    GONE, LOST, Mtus, NATIVE, NOWHERE, POD, REAL_WIRE, UPLINK, VNI, VXLAN_V4, VXLAN_V6, pod,
    tables, tunnelled, underlay, vtep_mac,
};

const ME: u8 = 1;

fn node() -> Node {
    Node::new(tables(ME, Mtus::default()))
}

fn reason(from: PortId, frame: &[u8]) -> Option<DropReason> {
    node().forward(from, frame).err()
}

fn tcp(v6: bool, from: u8, to: u8) -> Vec<u8> {
    let spec = Spec {
        v6,
        ttl: 64,
        flow_label: 0,
        ..Spec::tcp(7, 8, &payload(40))
    };
    spec.between(pod(v6, from, 1), pod(v6, to, 1)).build()
}

fn udp(v6: bool, from: u8, to: u8, len: usize) -> Vec<u8> {
    let spec = Spec {
        v6,
        ttl: 64,
        flow_label: 0,
        ..Spec::udp(&payload(len))
    };
    spec.between(pod(v6, from, 1), pod(v6, to, 1)).build()
}

/// The frame with bytes set. IPv4 header checksums are made right again, lengths are not.
fn with(mut frame: Vec<u8>, changes: &[(usize, u8)]) -> Vec<u8> {
    for (at, value) in changes {
        frame[*at] = *value;
    }
    fill_checksum(&mut frame);
    frame
}

fn fill_checksum(frame: &mut [u8]) {
    if frame[12..14] == [8, 0] {
        let len = 14 + usize::from(frame[14] & 15) * 4;
        put16(frame, 24, 0);
        let sum = fold(sum16(&frame[14..len]));
        put16(frame, 24, !sum);
    }
}

/// In a tunnel to this node from `node`, with the inner frame as it is given.
fn in_tunnel(node: u8, vni: u32, inner: &[u8]) -> Vec<u8> {
    let v6 = node == VXLAN_V6;
    let outer = Spec {
        dport: 4789,
        flow_label: 0,
        ..Spec::udp(b"")
    };
    vxlan(
        &outer.between(underlay(v6, node), underlay(v6, ME)),
        vni,
        inner,
    )
}

type Case = (&'static str, PortId, Vec<u8>, DropReason);

/// Defects of a pod's own packet, and of the same packet inside a tunnel.
fn malformed() -> Vec<(&'static str, Vec<u8>, DropReason)> {
    use DropReason::*;
    let (t4, t6) = (|| tcp(false, NATIVE, ME), || tcp(true, NATIVE, ME));
    let (u4, u6) = (|| udp(false, NATIVE, ME, 40), || udp(true, NATIVE, ME, 40));
    let mut bad_sum = t4();
    bad_sum[24] ^= 1;
    vec![
        ("ARP", with(t4(), &[(12, 8), (13, 6)]), UnknownEtherType),
        ("VLAN", with(t4(), &[(12, 0x81), (13, 0)]), UnknownEtherType),
        (
            "EtherType 0",
            with(t6(), &[(12, 0), (13, 0)]),
            UnknownEtherType,
        ),
        (
            "IPv6 as IPv4",
            [&t6()[..12], &[8, 0], &t6()[14..]].concat(),
            Ipv4BadVersion,
        ),
        ("version 5", with(t4(), &[(14, 0x55)]), Ipv4BadVersion),
        ("IHL 0", with(t4(), &[(14, 0x40)]), Ipv4BadHeaderLength),
        ("IHL 4", with(t4(), &[(14, 0x44)]), Ipv4BadHeaderLength),
        ("IHL 6", with(t4(), &[(14, 0x46)]), Ipv4Options),
        ("IHL 15", with(t4(), &[(14, 0x4f)]), Ipv4Options),
        (
            "total length 0",
            with(t4(), &[(16, 0), (17, 0)]),
            Ipv4BadTotalLength,
        ),
        (
            "total length 19",
            with(t4(), &[(16, 0), (17, 19)]),
            Ipv4BadTotalLength,
        ),
        (
            "total length beyond",
            with(t4(), &[(17, 93)]),
            Ipv4BadTotalLength,
        ),
        (
            "total length 65535",
            with(t4(), &[(16, 255), (17, 255)]),
            Ipv4BadTotalLength,
        ),
        ("header checksum", bad_sum, Ipv4BadChecksum),
        (
            "IPv4 as IPv6",
            [&t4()[..12], &[0x86, 0xdd], &t4()[14..]].concat(),
            Ipv6BadVersion,
        ),
        ("version 7", with(t6(), &[(14, 0x70)]), Ipv6BadVersion),
        (
            "payload length beyond",
            with(t6(), &[(19, 73)]),
            Ipv6BadPayloadLength,
        ),
        (
            "payload length 65535",
            with(t6(), &[(18, 255), (19, 255)]),
            Ipv6BadPayloadLength,
        ),
        (
            "payload length 0",
            with(t6(), &[(18, 0), (19, 0)]),
            TruncatedTcp,
        ),
        (
            "hop-by-hop options",
            with(t6(), &[(20, 0)]),
            Ipv6ExtensionHeader,
        ),
        (
            "fragment header",
            with(t6(), &[(20, 44)]),
            Ipv6ExtensionHeader,
        ),
        (
            "destination options",
            with(t6(), &[(20, 60)]),
            Ipv6ExtensionHeader,
        ),
        ("SCTP", with(t4(), &[(23, 132)]), UnsupportedProtocol),
        (
            "ICMPv6 over IPv4",
            with(t4(), &[(23, 58)]),
            UnsupportedProtocol,
        ),
        (
            "ICMP over IPv6",
            with(t6(), &[(20, 1)]),
            UnsupportedProtocol,
        ),
        (
            "no next header",
            with(t6(), &[(20, 59)]),
            UnsupportedProtocol,
        ),
        ("data offset 0", with(t4(), &[(46, 0x00)]), TcpBadDataOffset),
        ("data offset 4", with(t6(), &[(66, 0x40)]), TcpBadDataOffset),
        ("TCP of 19 bytes", with(t4(), &[(17, 39)]), TruncatedTcp),
        (
            "options beyond",
            with(t4(), &[(17, 20 + 31)]),
            TcpBadDataOffset,
        ),
        ("UDP of 7 bytes", with(u4(), &[(17, 27)]), TruncatedUdp),
        ("UDP length 7", with(u4(), &[(39, 7)]), UdpBadLength),
        ("UDP length beyond", with(u6(), &[(59, 49)]), UdpBadLength),
        (
            "UDP length 0",
            with(u6(), &[(58, 0), (59, 0)]),
            UdpBadLength,
        ),
        ("time to live 1", with(t4(), &[(22, 1)]), TtlExpired),
        ("time to live 0", with(t4(), &[(22, 0)]), TtlExpired),
        ("hop limit 1", with(t6(), &[(21, 1)]), TtlExpired),
        ("hop limit 0", with(t6(), &[(21, 0)]), TtlExpired),
        (
            "ICMP of 7 bytes",
            with(t4(), &[(23, 1), (17, 27)]),
            TruncatedIcmp,
        ),
        (
            "ICMPv6 of 7 bytes",
            with(t6(), &[(20, 58), (19, 7)]),
            TruncatedIcmp,
        ),
    ]
}

fn other_cases() -> Vec<Case> {
    use DropReason::*;
    let inner = || {
        let mut inner = tcp(false, VXLAN_V4, ME);
        inner[..6].copy_from_slice(&vtep_mac(ME).0);
        inner
    };
    let changed = |changes: &[(usize, u8)]| with(in_tunnel(VXLAN_V4, VNI, &inner()), changes);
    let not_ect = |tos| tunnelled(VXLAN_V4, tos, &tcp(false, VXLAN_V4, ME));
    let too_big = |to| udp(false, ME, to, 1480);
    let partial = |v6| {
        let spec = Spec {
            partial: true,
            ..Spec::tcp(7, 8, b"x")
        };
        spec.between(pod(v6, NATIVE, 1), pod(v6, ME, 1)).build()
    };
    let big_ping = icmp(pod(true, ME, 1), pod(true, VXLAN_V6, 1), &payload(1400));
    vec![
        ("short", POD, vec![0; 13], TruncatedEthernet),
        (
            "IPv4 header cut",
            POD,
            tcp(false, ME, NATIVE)[..33].to_vec(),
            TruncatedIpv4,
        ),
        (
            "IPv6 header cut",
            POD,
            tcp(true, ME, NATIVE)[..53].to_vec(),
            TruncatedIpv6,
        ),
        ("no I flag", UPLINK, changed(&[(42, 0xf7)]), VxlanFlagClear),
        (
            "no VXLAN header",
            UPLINK,
            shorter(in_tunnel(VXLAN_V4, VNI, &inner()), 49),
            TruncatedVxlan,
        ),
        (
            "no inner Ethernet",
            UPLINK,
            in_tunnel(VXLAN_V4, VNI, &[0; 13]),
            TruncatedVxlan,
        ),
        (
            "other VNI",
            UPLINK,
            in_tunnel(VXLAN_V4, VNI + 1, &inner()),
            UnknownVni,
        ),
        (
            "high VNI",
            UPLINK,
            in_tunnel(VXLAN_V6, 0xff_ff2a, &inner()),
            UnknownVni,
        ),
        (
            "no node's tunnel",
            UPLINK,
            in_tunnel(9, VNI, &inner()),
            UnknownVtep,
        ),
        (
            "from itself",
            UPLINK,
            in_tunnel(ME, VNI, &inner()),
            UnknownVtep,
        ),
        (
            "other inner MAC",
            UPLINK,
            in_tunnel(VXLAN_V4, VNI, &tcp(false, 2, ME)),
            NotLocal,
        ),
        (
            "inner to a remote pod",
            UPLINK,
            tunnelled(2, 0, &tcp(false, 2, NATIVE)),
            NotLocal,
        ),
        (
            "to a remote pod",
            UPLINK,
            tcp(true, VXLAN_V4, NATIVE),
            NotLocal,
        ),
        (
            "to a tunnel's pod",
            REAL_WIRE,
            tcp(true, NATIVE, VXLAN_V4),
            NotLocal,
        ),
        ("congestion", UPLINK, not_ect(3), EcnNotCapable),
        ("no route", POD, tcp(false, ME, NOWHERE), NoRoute),
        ("no route", POD, tcp(true, ME, NOWHERE), NoRoute),
        ("no such pod", UPLINK, tcp(false, NATIVE, NOWHERE), NoRoute),
        ("to the node", UPLINK, to_the_node(5201), NoRoute),
        ("no neighbour", POD, tcp(false, ME, LOST), NoNeighbor),
        ("no neighbour", POD, tcp(true, ME, LOST), NoNeighbor),
        ("large datagram", POD, too_big(NATIVE), TooBig),
        ("large echo", POD, big_ping, TooBig),
        (
            "large fragment",
            POD,
            fragment(too_big(VXLAN_V4), 0, true),
            TooBig,
        ),
        ("large TCP fragment", POD, tcp_fragment(), TooBig),
        ("damaged and to be cut", POD, damaged_jumbo(), BadChecksum),
        ("unfinished", REAL_WIRE, partial(false), PartialChecksum),
        (
            "unfinished in a tunnel",
            REAL_WIRE,
            tunnelled(3, 0, &partial(true)),
            PartialChecksum,
        ),
        ("no port", GONE, tcp(false, ME, NATIVE), PortGone),
    ]
}

/// A segment over the MTU with a finished checksum and one byte changed on the way.
fn damaged_jumbo() -> Vec<u8> {
    let spec = Spec {
        ttl: 64,
        ..Spec::tcp(7, 8, &payload(3000))
    };
    let mut frame = spec
        .between(pod(false, ME, 1), pod(false, NATIVE, 1))
        .build();
    *frame.last_mut().unwrap() ^= 1;
    frame
}

/// A frame cut to `len` bytes, its IP and UDP lengths too.
fn shorter(mut frame: Vec<u8>, len: usize) -> Vec<u8> {
    frame.truncate(len);
    fix_ip(&mut frame);
    let l4 = Offsets::of(&frame).l4;
    put16(&mut frame, l4 + 4, u16::try_from(len - l4).unwrap());
    frame
}

/// A datagram to an address of this node.
fn to_the_node(dport: u16) -> Vec<u8> {
    let spec = Spec {
        dport,
        flow_label: 0,
        ..Spec::udp(b"x")
    };
    spec.between(underlay(false, VXLAN_V4), underlay(false, ME))
        .build()
}

fn tcp_fragment() -> Vec<u8> {
    let spec = Spec {
        df: false,
        ..Spec::tcp(1, 1, &payload(1500))
    };
    fragment(
        spec.between(pod(false, ME, 1), pod(false, NATIVE, 1))
            .build(),
        0,
        true,
    )
}

#[test]
fn each_defect_has_its_reason() {
    for (name, frame, expected) in malformed() {
        for port in [POD, UPLINK, REAL_WIRE] {
            assert_eq!(reason(port, &frame), Some(expected), "{name} from {port:?}");
        }
        for from in [VXLAN_V4, VXLAN_V6] {
            let frame = tunnelled(from, 0, &frame);
            assert_eq!(reason(UPLINK, &frame), Some(expected), "{name} in a tunnel");
        }
    }
    for (name, port, frame, expected) in other_cases() {
        assert_eq!(reason(port, &frame), Some(expected), "{name}");
    }
}

/// Those that [`forward`] cannot give are egress' own.
#[test]
fn each_reason_has_a_packet() {
    let elsewhere = [DropReason::EgressFull, DropReason::EgressRefused];
    let malformed = malformed().into_iter().map(|(_, _, reason)| reason);
    let others = other_cases().into_iter().map(|(_, _, _, reason)| reason);
    let seen: HashSet<_> = malformed.chain(others).chain(elsewhere).collect();
    let unseen: Vec<_> = DropReason::ALL
        .iter()
        .filter(|reason| !seen.contains(reason))
        .collect();
    assert!(unseen.is_empty(), "{unseen:?}");
}

/// What a frame of these headers gets when only `len` bytes of it have come.
fn reason_of_a_cut_frame(v6: bool, len: usize) -> DropReason {
    match len {
        0..14 => DropReason::TruncatedEthernet,
        14..34 if !v6 => DropReason::TruncatedIpv4,
        14..54 if v6 => DropReason::TruncatedIpv6,
        _ if v6 => DropReason::Ipv6BadPayloadLength,
        _ => DropReason::Ipv4BadTotalLength,
    }
}

#[test]
fn a_frame_cut_at_any_byte_is_named_by_the_header_that_misses_it() {
    for v6 in [false, true] {
        let frames = [
            tcp(v6, NATIVE, ME),
            udp(v6, NATIVE, ME, 30),
            icmp(pod(v6, NATIVE, 1), pod(v6, ME, 1), b"echo"),
        ];
        for frame in frames {
            for len in 0..frame.len() {
                let expected = reason_of_a_cut_frame(v6, len);
                assert_eq!(reason(UPLINK, &frame[..len]), Some(expected), "{len}");
            }
            assert_eq!(reason(UPLINK, &frame), None);
        }
    }
}

#[test]
fn a_tunnel_s_frame_cut_at_any_byte_is_named_by_the_outer_header_that_misses_it() {
    for from in [VXLAN_V4, VXLAN_V6] {
        let frame = tunnelled(from, 0, &tcp(false, from, ME));
        for len in 0..frame.len() {
            let expected = reason_of_a_cut_frame(from == VXLAN_V6, len);
            assert_eq!(reason(UPLINK, &frame[..len]), Some(expected), "{len}");
        }
        assert_eq!(reason(UPLINK, &frame), None);
    }
}

#[test]
fn an_inner_frame_cut_at_any_byte_is_named_by_its_own_header() {
    for from in [VXLAN_V4, VXLAN_V6] {
        for v6 in [false, true] {
            let frame = tunnelled(from, 0, &tcp(v6, from, ME));
            let udp = if from == VXLAN_V6 { 54 } else { 34 };
            for len in udp + 8..frame.len() {
                let expected = match len - udp - 8 {
                    0..22 => DropReason::TruncatedVxlan,
                    inner => reason_of_a_cut_frame(v6, inner - 8),
                };
                assert_eq!(
                    reason(UPLINK, &shorter(frame.clone(), len)),
                    Some(expected),
                    "{len}"
                );
            }
        }
    }
}

/// The headers of a chain must be in its first frame.
#[test]
fn a_head_cut_at_any_byte_is_named_by_the_header_that_misses_it() {
    use DropReason::*;
    // Ends of the headers, and what a head gets that ends before.
    let ip = |v6: bool, at: usize| match v6 {
        false => (at + 20, TruncatedIpv4),
        true => (at + 40, TruncatedIpv6),
    };
    let mut cases = Vec::new();
    for v6 in [false, true] {
        let l3 = ip(v6, 14);
        let ends = [(14, TruncatedEthernet), l3];
        let plus = |more: &[(usize, DropReason)]| [&ends[..], more].concat();
        cases.push((tcp(v6, NATIVE, ME), plus(&[(l3.0 + 32, TruncatedTcp)])));
        cases.push((udp(v6, NATIVE, ME, 30), plus(&[(l3.0 + 8, TruncatedUdp)])));
        let echo = icmp(pod(v6, NATIVE, 1), pod(v6, ME, 1), b"echo");
        cases.push((echo, plus(&[(l3.0 + 8, TruncatedIcmp)])));
        for inner_v6 in [false, true] {
            let vxlan = l3.0 + 8;
            let inner = ip(inner_v6, vxlan + 22);
            let from = if v6 { VXLAN_V6 } else { VXLAN_V4 };
            let frame = tunnelled(from, 0, &tcp(inner_v6, from, ME));
            let more = [
                (vxlan, TruncatedUdp),
                (vxlan + 22, TruncatedVxlan),
                inner,
                (inner.0 + 32, TruncatedTcp),
            ];
            cases.push((frame, plus(&more)));
        }
    }
    for (frame, ends) in cases {
        for head in 1..frame.len() {
            let mut node = node();
            node.chunk = head;
            let expected = ends
                .iter()
                .find(|(end, _)| head < *end)
                .map(|(_, reason)| *reason);
            assert_eq!(node.forward(UPLINK, &frame).err(), expected, "{head}");
        }
    }
}

/// Only a packet of one frame may be longer than its datagram says: of a chain, what is handed on
/// is the IP packet.
#[test]
fn a_chain_s_datagram_is_as_long_as_its_packet() {
    let mut frame = udp(false, NATIVE, ME, 100);
    put16(&mut frame, 38, 100);
    let mut node = node();
    assert!(node.forward(UPLINK, &frame).is_ok());
    node.chunk = 60;
    assert_eq!(
        node.forward(UPLINK, &frame).unwrap_err(),
        DropReason::UdpBadLength
    );
}

#[test]
fn without_facts_everything_is_dropped() {
    let mut node = Node::new(Tables::default());
    let verdict = node.forward(POD, &tcp(false, ME, NATIVE));
    assert_eq!(verdict.unwrap_err(), DropReason::PortGone);
}
