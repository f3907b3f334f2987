use etherparse::{Icmpv4Slice, Icmpv6Slice, NetSlice, SlicedPacket, TransportSlice};

use super::*;
use crate::packet::Offload;
use crate::testing::kernel::{self, wire};
use crate::testing::node::Node;
use crate::testing::packets::{
    Offsets, PSH, Spec, fix_ip, fragment, get16, icmp, l4_checksum_is_right, payload, put16,
};
use crate::testing::plan::underlay as node_address;
use crate::testing::plan::{
    BIG_POD, Facts, GATEWAY, LOST, Mtus, NARROW, NATIVE, NOWHERE, POD, UPLINK, VXLAN_V4, VXLAN_V6,
    facts, multipath, pod, pod_mac, port_mac, tables, tunnelled, underlay, uplink_mac,
};

const ME: u8 = 1;

fn node() -> Node {
    Node::new(tables(ME, Mtus::default()))
}

/// A datagram of `len` bytes with its IP header.
fn datagram(v6: bool, from: (u8, u8), to: (u8, u8), len: usize) -> Spec {
    let headers = if v6 { 48 } else { 28 };
    let spec = Spec {
        ttl: 64,
        flow_label: 0,
        ..Spec::udp(&payload(len - headers))
    };
    spec.between(pod(v6, from.0, from.1), pod(v6, to.0, to.1))
}

/// An answer as etherparse reads it, its checksums verified: source, destination, TOS, type, code, the
/// four bytes behind the checksum, and the quote.
#[derive(Debug, PartialEq, Eq)]
struct Read {
    ends: (IpAddr, IpAddr),
    tos: u8,
    kind: (u8, u8),
    rest: u32,
    quote: Vec<u8>,
}

fn read(frame: &[u8]) -> Read {
    let packet = SlicedPacket::from_ethernet(frame).unwrap();
    let four = |bytes: [u8; 4]| u32::from_be_bytes(bytes);
    match (packet.net.unwrap(), packet.transport.unwrap()) {
        (NetSlice::Ipv4(ip), TransportSlice::Icmpv4(icmp)) => {
            let icmp: Icmpv4Slice<'_> = icmp;
            let header = ip.header().to_header();
            assert_eq!(header.header_checksum, header.calc_header_checksum());
            assert_eq!(usize::from(header.total_len) + 14, frame.len());
            let sum = icmp.icmp_type().calc_checksum(icmp.payload());
            assert_eq!(icmp.checksum(), sum);
            assert_eq!((header.time_to_live, header.dont_fragment), (64, true));
            Read {
                ends: (header.source.into(), header.destination.into()),
                tos: header.dscp.value() << 2 | header.ecn.value(),
                kind: (icmp.type_u8(), icmp.code_u8()),
                rest: four(icmp.bytes5to8()),
                quote: icmp.payload().to_vec(),
            }
        }
        (NetSlice::Ipv6(ip), TransportSlice::Icmpv6(icmp)) => {
            let icmp: Icmpv6Slice<'_> = icmp;
            let header = ip.header().to_header();
            assert_eq!(usize::from(header.payload_length) + 54, frame.len());
            assert!(icmp.is_checksum_valid(header.source, header.destination));
            assert_eq!(header.hop_limit, 64);
            Read {
                ends: (header.source.into(), header.destination.into()),
                tos: header.traffic_class,
                kind: (icmp.type_u8(), icmp.code_u8()),
                rest: four(icmp.bytes5to8()),
                quote: icmp.payload().to_vec(),
            }
        }
        other => panic!("{other:?}"),
    }
}

fn answer(node: &mut Node, from: PortId, frame: &[u8]) -> Option<Read> {
    node.answer(from, frame).map(|answer| read(&answer.bytes))
}

#[test]
fn a_pod_is_told_by_an_address_of_the_node() {
    for v6 in [false, true] {
        let expired = Spec {
            ttl: 1,
            tos: 0xb9,
            ..datagram(v6, (ME, 1), (NATIVE, 1), 100)
        };
        let nowhere = datagram(v6, (ME, 1), (NOWHERE, 1), 100);
        let too_big = datagram(v6, (ME, 1), (VXLAN_V4, 1), 1451);
        let cases = [
            (expired, [(11, 0), (3, 0)], 0, [0xf8, 0]),
            (nowhere, [(3, 0), (1, 0)], 0, [0xc0, 0]),
            (too_big, [(3, 4), (2, 0)], 1450, [0xc0, 0]),
        ];
        for (spec, kinds, rest, classes) in cases {
            let frame = spec.build();
            let mut node = node();
            let sent = node.answer(POD, &frame).unwrap();
            let macs = [pod_mac(ME, 1).0, port_mac(ME, 1).0].concat();
            assert_eq!(sent.bytes[..12], macs);
            assert_eq!((sent.send.next_hop.port, sent.send.max_l3_len), (POD, 1500));
            let most = if v6 { 1232 } else { 548 };
            let expected = Read {
                ends: (node_address(v6, ME), pod(v6, ME, 1)),
                tos: classes[usize::from(v6)],
                kind: kinds[usize::from(v6)],
                rest,
                quote: frame[14..].iter().take(most).copied().collect(),
            };
            assert_eq!(read(&sent.bytes), expected);
        }
    }
}

#[test]
fn of_the_nodes_addresses_the_one_next_to_the_pod_answers() {
    let mut facts = facts(ME, Mtus::default());
    let local = facts.local.as_mut().unwrap();
    for other in [
        "10.0.1.0",
        "10.0.1.254",
        "169.254.1.1",
        "10.0.9.1",
        "fe80::1",
        "fd00:0:0:1::fe",
    ] {
        local.addresses.push(other.parse().unwrap());
    }
    let mut node = Node::new(facts.tables());
    for (v6, gateway) in [(false, "10.0.1.0"), (true, "fd00:0:0:1::fe")] {
        let source = |read: Option<Read>| read.unwrap().ends.0.to_string();
        let out = datagram(v6, (ME, 1), (NOWHERE, 1), 100).build();
        assert_eq!(source(answer(&mut node, POD, &out)), gateway);
        // Also to the sender on another node, whatever the prefix of that.
        let gone = datagram(v6, (VXLAN_V4, 1), (ME, 9), 100).build();
        let tunnelled = tunnelled(VXLAN_V4, 0, &gone);
        assert_eq!(source(answer(&mut node, UPLINK, &tunnelled)), gateway);
    }
}

/// A pod that is not here any more.
#[test]
fn a_sender_on_another_node_is_told_by_the_way_back() {
    for v6 in [false, true] {
        for from in [VXLAN_V4, VXLAN_V6, NATIVE] {
            let inner = datagram(v6, (from, 1), (ME, 9), 100).build();
            let frame = match from {
                NATIVE => inner.clone(),
                _ => tunnelled(from, 0, &inner),
            };
            let mut node = node();
            node.answers = true;
            assert_eq!(node.receive(UPLINK, &frame), Err(DropReason::NoRoute));
            let out = node.flush();
            assert_eq!((out.len(), node.answered), (1, 1));
            let frames = wire(&out[0]);
            assert_eq!(frames[0][..6], uplink_mac(from).0);
            let told = match from {
                NATIVE => frames[0].clone(),
                _ => kernel::decap(&frames[0]).1,
            };
            let expected = Read {
                ends: (underlay(v6, ME), pod(v6, from, 1)),
                tos: if v6 { 0 } else { 0xc0 },
                kind: if v6 { (1, 0) } else { (3, 0) },
                rest: 0,
                quote: inner[14..].to_vec(),
            };
            assert_eq!(read(&told), expected);
        }
    }
}

/// RFC 1812, section 4.3.2.3: what the frame is padded with is no part of the datagram.
#[test]
fn a_short_packet_is_quoted_whole_and_without_padding() {
    for v6 in [false, true] {
        let frame = datagram(v6, (ME, 1), (NOWHERE, 1), 50).build();
        let padded = [&frame[..], &[0xee; 10]].concat();
        let read = answer(&mut node(), POD, &padded).unwrap();
        assert_eq!(read.quote, frame[14..]);
    }
}

#[test]
fn what_must_not_be_answered_is_not() {
    let with = |v6: bool, change: &dyn Fn(&mut Vec<u8>)| {
        let mut frame = datagram(v6, (ME, 1), (NOWHERE, 1), 100).build();
        change(&mut frame);
        fix_ip(&mut frame);
        frame
    };
    let error = |v6: bool, kind: u8| {
        let mut frame = icmp(pod(v6, ME, 1), pod(v6, NOWHERE, 1), &payload(56));
        frame[if v6 { 54 } else { 34 }] = kind;
        frame
    };
    let v4_source = |ip: [u8; 4]| with(false, &move |f| f[26..30].copy_from_slice(&ip));
    let v4_to = |ip: [u8; 4]| with(false, &move |f| f[30..34].copy_from_slice(&ip));
    let v6_at = |at: usize, ip: &'static str| {
        let ip: std::net::Ipv6Addr = ip.parse().unwrap();
        with(true, &move |f| f[at..at + 16].copy_from_slice(&ip.octets()))
    };
    let spec = || datagram(false, (ME, 1), (NOWHERE, 1), 100);
    let mut silent = vec![
        ("a later fragment", fragment(spec().build(), 8, true)),
        ("the last fragment", fragment(spec().build(), 80, false)),
        ("from 0/8", v4_source([0, 0, 0, 0])),
        ("from loopback", v4_source([127, 0, 0, 1])),
        ("from a group", v4_source([224, 0, 0, 1])),
        ("from all", v4_source([255; 4])),
        ("from this node", v4_source([192, 0, 2, ME])),
        ("from a link", v4_source([169, 254, 0, 1])),
        ("from nobody", v6_at(22, "::")),
        ("from loopback, v6", v6_at(22, "::1")),
        ("from a group, v6", v6_at(22, "ff02::1")),
        ("from a link, v6", v6_at(22, "fe80::1")),
        ("to a group", v4_to([224, 0, 0, 1])),
        ("to all", v4_to([255; 4])),
        ("to reserved", v4_to([240, 0, 0, 1])),
        ("to a group, v6", v6_at(38, "ff05::2")),
        // And where nothing leads back.
        ("from nowhere", v4_source([10, 0, NOWHERE, 1])),
        ("from an unresolved way", v4_source([10, 0, LOST, 1])),
    ];
    for kind in [3, 4, 5, 11, 12, 42] {
        silent.push(("an ICMP error", error(false, kind)));
    }
    for kind in [1, 2, 3, 4, 100, 127, 137] {
        silent.push(("an ICMPv6 error", error(true, kind)));
    }
    for (what, frame) in silent {
        for reason in [DropReason::TtlExpired, DropReason::NoRoute] {
            let mut node = node();
            assert!(
                node.answer_for(POD, &frame, reason).is_none(),
                "{what}: {frame:02x?}"
            );
        }
    }
    let answered = [
        ("a datagram", spec().build()),
        // Not a group of the link: its program has tried something on it.
        ("any MAC", with(false, &|f| f[0] ^= 1)),
        ("a first fragment", fragment(spec().build(), 0, true)),
        ("an echo", error(false, 8)),
        ("an echo over IPv6", error(true, 128)),
        ("a timestamp", error(false, 13)),
    ];
    for (what, frame) in answered {
        let mut node = node();
        let answer = node.answer_for(POD, &frame, DropReason::NoRoute);
        assert!(answer.is_some(), "{what}");
    }
}

#[test]
fn other_reasons_have_no_answer() {
    let frame = datagram(false, (ME, 1), (NATIVE, 1), 100).build();
    let mut node = node();
    let told: Vec<_> = (DropReason::ALL.iter())
        .filter(|reason| node.answer_for(POD, &frame, **reason).is_some())
        .collect();
    // It is not too big.
    assert_eq!(told, [&DropReason::TtlExpired, &DropReason::NoRoute]);
}

#[test]
fn the_mtu_is_that_of_the_next_hop() {
    let mtu = |node: &mut Node, v6, to, len| {
        let frame = datagram(v6, (ME, 2), (to, 1), len).build();
        answer(node, BIG_POD, &frame).map(|read| read.rest)
    };
    for v6 in [false, true] {
        let mut node = node();
        for (to, told) in [
            (VXLAN_V4, 1450_u16),
            (VXLAN_V6, 1430),
            (NATIVE, 1500),
            (NARROW, 1400),
            (GATEWAY, 1500),
            (ME, 1500),
        ] {
            assert_eq!(
                mtu(&mut node, v6, to, usize::from(told) + 1),
                Some(told.into())
            );
            assert_eq!(mtu(&mut node, v6, to, told.into()), None);
        }
    }
    // Of a tunnel over 1300 bytes: IPv6 has none that is smaller than 1280.
    let mut facts = facts(ME, Mtus::default());
    for path in facts.nodes.iter_mut().filter_map(|node| node.path.as_mut()) {
        path.mtu = 1300;
    }
    let mut node = Node::new(facts.tables());
    assert_eq!(mtu(&mut node, false, VXLAN_V4, 1400), Some(1250));
    assert_eq!(mtu(&mut node, true, VXLAN_V4, 1400), Some(1280));
}

#[test]
fn what_may_be_fragmented_is_not_told_to_be_too_big() {
    let mut node = node();
    let spec = Spec {
        df: false,
        ..datagram(false, (ME, 1), (VXLAN_V4, 1), 1500)
    };
    let dropped = node.receive(POD, &spec.build());
    assert_eq!(dropped, Err(DropReason::TooBig));
    assert_eq!(answer(&mut node, POD, &spec.build()), None);
}

/// Of a larger packet than its own link carries: a device has joined it.
#[test]
fn what_only_the_senders_link_is_too_small_for_is_not_told() {
    let mut node = node();
    let frame = datagram(false, (ME, 1), (ME, 2), 3000).build();
    assert_eq!(node.receive(POD, &frame), Err(DropReason::TooBig));
    assert_eq!(answer(&mut node, POD, &frame), None);
}

#[test]
fn of_several_next_hops_the_flows_own_counts() {
    let mut facts = facts(ME, Mtus::default());
    facts.routes.push(multipath(false, &[NARROW, NATIVE]));
    let mut node = Node::new(facts.tables());
    let mtus: std::collections::BTreeSet<_> = (1..100)
        .filter_map(|host| {
            let frame = datagram(false, (ME, 2), (9, host), 1501).build();
            Some(answer(&mut node, BIG_POD, &frame)?.rest)
        })
        .collect();
    assert_eq!(mtus, [1400, 1500].into());
}

/// As its sender's device would have finished it, so that what is quoted is what is known to it.
#[test]
fn an_unfinished_checksum_is_quoted_finished() {
    for (v6, told) in [(false, false), (false, true), (true, false), (true, true)] {
        let finished = datagram(v6, (ME, 1), (NOWHERE, 1), 101);
        let partial = Spec {
            partial: true,
            ..finished.clone()
        };
        let mut node = node();
        node.offload = told.then_some(Offload {
            segment: 0,
            unfinished: Some(if v6 { 54 } else { 34 }),
            checksum: 6,
        });
        let read = answer(&mut node, POD, &partial.build()).unwrap();
        assert_eq!(read.quote, finished.build()[14..], "{v6} {told}");
    }
}

/// Its first bytes, as those of one packet of its length.
#[test]
fn a_super_frame_is_quoted_as_it_is() {
    let spec = Spec {
        flags: 16 | PSH,
        partial: true,
        ..Spec::tcp(1, 1, &payload(20_000))
    };
    let spec = spec.between(pod(false, ME, 1), pod(false, NOWHERE, 1));
    let whole = Spec {
        partial: false,
        ..spec.clone()
    };
    let mut node = node();
    // The quote is of several frames.
    node.chunk = 128;
    node.chunk = node
        .chunk
        .max(20_100_usize.div_ceil(crate::packet::MAX_CHAIN));
    node.offload = Some(Offload {
        segment: 1000,
        unfinished: Some(34),
        checksum: 16,
    });
    let read = answer(&mut node, POD, &spec.build()).unwrap();
    assert_eq!(read.quote, whole.build()[14..14 + 548]);
    assert!(l4_checksum_is_right(&whole.build()));
}

#[test]
fn a_quote_may_lie_in_many_frames() {
    for v6 in [false, true] {
        let mut node = node();
        node.chunk = 70;
        let frame = datagram(v6, (ME, 1), (NOWHERE, 1), 1399).build();
        let read = answer(&mut node, POD, &frame).unwrap();
        let most = if v6 { 1232 } else { 548 };
        assert_eq!(read.quote, frame[14..14 + most]);
    }
}

#[test]
fn without_room_in_front_there_is_no_answer() {
    for (v6, needed) in [(false, 28), (true, 48)] {
        let frame = datagram(v6, (ME, 1), (NOWHERE, 1), 100).build();
        let mut node = node();
        node.headroom = needed - 1;
        assert_eq!(answer(&mut node, POD, &frame), None);
        node.headroom = needed;
        assert!(answer(&mut node, POD, &frame).is_some());
    }
}

#[test]
fn a_node_that_has_no_address_is_silent() {
    let frame = datagram(false, (ME, 1), (NOWHERE, 1), 100).build();
    let with = |change: &dyn Fn(&mut Facts)| {
        let mut facts = facts(ME, Mtus::default());
        change(&mut facts);
        answer(&mut Node::new(facts.tables()), POD, &frame)
    };
    assert!(with(&|_| ()).is_some());
    assert_eq!(with(&|facts| facts.local = None), None);
    let of_other_family = |facts: &mut Facts| {
        let local = facts.local.as_mut().unwrap();
        local.addresses.retain(std::net::IpAddr::is_ipv6);
    };
    assert_eq!(with(&of_other_family), None);
}

/// A pod that sends from addresses that are not its own, as a router does: the answer goes where the
/// tables say, and no answer makes another.
#[test]
fn an_answer_to_an_answer_is_none() {
    let mut node = node();
    let frame = datagram(false, (NATIVE, 1), (NOWHERE, 1), 100).build();
    let first = node.answer(POD, &frame).unwrap();
    assert_eq!(first.send.next_hop.port, UPLINK);
    let mut first = first.bytes;
    put16(&mut first, 30, 0x0a00);
    first[32..34].copy_from_slice(&[NOWHERE, 1]);
    fix_ip(&mut first);
    assert_eq!(node.receive(POD, &first), Err(DropReason::NoRoute));
    assert_eq!(answer(&mut node, POD, &first), None);
}

#[test]
fn a_worker_counts_its_answers_and_holds_to_its_rate() {
    let tables = tables(ME, Mtus::default());
    let sheet = Sheet::default();
    let mut answers = Answers::default();
    let frame = datagram(false, (ME, 1), (NOWHERE, 1), 100).build();
    let (region, mut frames) = crate::xsk::Region::new(1).unwrap();
    let mut told = 0;
    for _ in 0..1000 {
        assert!(frames[0].set_data(256, frame.len()));
        region.bytes_mut(&mut frames[0]).copy_from_slice(&frame);
        let mut packet = Packet::new(&region, &mut frames).unwrap();
        let reason = DropReason::NoRoute;
        let send = answers.answer(&mut packet, POD, reason, &tables, &sheet);
        if send.is_some() {
            let head = packet.head();
            assert_eq!(get16(head, Offsets::of(head).l4), 0x0300);
            told += 1;
        }
    }
    // A machine that stands still meanwhile earns a few more.
    assert!((50..1000).contains(&told), "{told}");
    let counted = sheet.port(POD).unwrap();
    assert_eq!(counted.icmp_sent.get(), told);
    assert_eq!(counted.icmp_suppressed.get(), 1000 - told);
    assert_eq!(sheet.totals().made, told);
}
