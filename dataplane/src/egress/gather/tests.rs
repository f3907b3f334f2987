//! What becomes of packets, one by one.

use super::super::testing::{CWR, Out, PSH, Rig, SYN, Spec, decap, next_hop, payload};
use super::super::testing::{segment, tunnel, verify, wire};
use super::*;

#[test]
fn a_lone_packet_goes_as_it_is() {
    let pod = next_hop(3, NextHopKind::Pod);
    let mut rig = Rig::new();
    let syn = Spec {
        flags: SYN,
        ..Spec::tcp(1, 0, b"")
    };
    let out = rig.send(&pod, 1450, &[syn.clone(), Spec::udp(b"odd")]);
    assert_eq!(out.len(), 2);
    assert_eq!((out[0].ifindex, out[0].ethertype), (11, 0x0800));
    assert_eq!(out[0].bytes, syn.build());
    assert_eq!(out[0].vnet, VnetHeader::default());
    assert_eq!((out[0].packets, out[0].joined, out[0].cut), (1, 0, 0));
    assert_eq!((out[0].pieces, out[1].pieces), (1, 1));
    assert_eq!(out[1].bytes, Spec::udp(b"odd").build());
}

#[test]
fn the_kernel_finishes_a_partial_checksum() {
    let pod = next_hop(3, NextHopKind::Native);
    for (v6, udp, start, offset) in [
        (false, false, 34, 16),
        (false, true, 34, 6),
        (true, false, 54, 16),
        (true, true, 54, 6),
    ] {
        let spec = Spec {
            v6,
            udp,
            partial: true,
            ..Spec::tcp(1, 0, b"abc")
        };
        let out = Rig::new().send(&pod, 1450, std::slice::from_ref(&spec));
        assert_eq!(out[0].ethertype, if v6 { 0x86dd } else { 0x0800 });
        let expected = VnetHeader {
            flags: VnetHeader::NEEDS_CSUM,
            csum_start: start,
            csum_offset: offset,
            ..VnetHeader::default()
        };
        assert_eq!(out[0].vnet, expected);
        assert_eq!(out[0].bytes, spec.build());
        verify(&wire(&out[0])[0]);
    }
}

#[test]
fn a_super_frame_stays_one() {
    for (v6, partial) in [(false, true), (true, true), (false, false), (true, false)] {
        let spec = Spec {
            v6,
            partial,
            flags: CWR | PSH | 16,
            ..Spec::tcp(u32::MAX - 5000, 65534, &payload(20_000))
        };
        let mut rig = Rig::new();
        let out = rig.send(
            &next_hop(3, NextHopKind::Pod),
            1450,
            std::slice::from_ref(&spec),
        );
        let ip = if v6 { 40 } else { 20 };
        let gso = if v6 {
            VnetHeader::GSO_TCPV6
        } else {
            VnetHeader::GSO_TCPV4
        };
        let expected = VnetHeader {
            flags: VnetHeader::NEEDS_CSUM,
            gso_type: gso | VnetHeader::GSO_ECN,
            hdr_len: 14 + ip + 32,
            gso_size: 1450 - ip - 32,
            csum_start: 14 + ip,
            csum_offset: 16,
        };
        assert_eq!(out[0].vnet, expected);
        assert_eq!((out[0].packets, out[0].joined, out[0].cut), (1, 0, 0));
        let whole = Spec {
            partial: true,
            ..spec
        };
        assert_eq!(out[0].bytes, whole.build());
        let segments = wire(&out[0]);
        assert_eq!(
            segments.len(),
            20_000_usize.div_ceil(expected.gso_size.into())
        );
        segments.iter().for_each(|frame| verify(frame));
    }
}

/// A super-frame of TCP with all that the first and the last segment have of their own.
fn marked(v6: bool, partial: bool) -> Spec {
    Spec {
        v6,
        partial,
        tos: 0xb9,
        flags: CWR | PSH | 16,
        ..Spec::tcp(u32::MAX - 5000, 65534, &payload(20_000))
    }
}

/// Payload bytes of a segment that fits where super-frames are sent to in these tests.
fn room(max: u16, v6: bool) -> u16 {
    max - if v6 { 40 } else { 20 } - 32
}

#[test]
fn a_super_frame_goes_into_a_tunnel_whole_and_leaves_it_as_if_cut_here() {
    let max = 1430;
    for (v6, v6_underlay, partial) in [
        (false, false, true),
        (true, false, true),
        (false, true, true),
        (true, true, true),
        (false, false, false),
        (true, true, false),
    ] {
        let room = room(max, v6);
        // Not told, told a size that fits, and one that does not.
        for (told, size) in [(0, room), (900, 900), (room, room), (room + 1, room)] {
            let spec = marked(v6, partial);
            let to = tunnel(v6_underlay, 2);
            let (mut rig, mut cutter) = (Rig::whole(), Rig::new());
            (rig.segment, cutter.segment) = (told, told);
            // Headers lie in the first chunk, the payload anywhere.
            rig.chunk = 1021;
            let out = rig.send(&to, max, std::slice::from_ref(&spec));
            assert_eq!(out.len(), 1);
            let message = &out[0];
            let (ip, outer) = (if v6 { 40 } else { 20 }, if v6_underlay { 70 } else { 50 });
            let gso = if v6 {
                VnetHeader::GSO_TCPV6
            } else {
                VnetHeader::GSO_TCPV4
            };
            let expected = VnetHeader {
                flags: VnetHeader::NEEDS_CSUM,
                gso_type: gso | VnetHeader::GSO_ECN,
                hdr_len: outer + 14 + ip + 32,
                gso_size: size,
                csum_start: outer + 14 + ip,
                csum_offset: 16,
            };
            assert_eq!(message.vnet, expected);
            let layers = TunnelLayers {
                outer_transport: outer - 16,
                inner_network: outer + 14,
            };
            assert_eq!(message.tunnel, Some(layers));
            assert_eq!(message.ethertype, if v6_underlay { 0x86dd } else { 0x0800 });
            assert_eq!((message.packets, message.joined, message.cut), (1, 0, 0));
            assert_eq!(message.bytes[..6], [2, 0, 0, 0, 1, 2]);

            let cut = cutter.send(&to, max, std::slice::from_ref(&spec));
            assert!(cut.iter().all(|message| message.tunnel.is_none()));
            let cut: Vec<_> = cut.iter().flat_map(wire).collect();
            assert_eq!(cut.len(), 20_000_usize.div_ceil(size.into()));
            assert!(wire(message) == cut, "{v6} {v6_underlay} {partial} {told}");
            for frame in wire(message) {
                verify(&decap(&frame).1);
            }
        }
    }
}

#[test]
fn a_super_frame_that_outer_headers_make_too_long_is_cut_here() {
    let spec = |l3_len: usize| Spec {
        partial: true,
        ..Spec::tcp(1, 1, &payload(l3_len - 52))
    };
    // With 14 bytes of Ethernet and the outer headers, 65535 bytes and one more.
    for (v6, outer) in [(false, 50), (true, 70)] {
        let longest = 65535 - 14 - outer;
        for (l3_len, whole) in [(longest, true), (longest + 1, false), (65535, false)] {
            let spec = spec(l3_len);
            let out = Rig::whole().send(&tunnel(v6, 2), 1430, std::slice::from_ref(&spec));
            assert_eq!(out[0].tunnel.is_some(), whole, "{l3_len}");
            assert_eq!(out.iter().map(|o| o.packets).sum::<u32>(), 1);
            let joined: Vec<u8> = out
                .iter()
                .flat_map(wire)
                .flat_map(|frame| decap(&frame).1[66..].to_vec())
                .collect();
            assert!(joined == spec.payload);
        }
    }
}

/// They are left to the kernel, which alone knows whether a tunnel is inside.
#[test]
fn a_super_frame_of_datagrams_is_dropped() {
    let spec = Spec {
        partial: true,
        ..Spec::udp(&payload(6000))
    };
    let frame = spec.build();
    let too_big = Pushed::Drop(DropReason::TooBig);
    for to in [
        next_hop(3, NextHopKind::Pod),
        tunnel(false, 2),
        tunnel(true, 2),
    ] {
        let mut rig = Rig::whole();
        for told in [0, 1, 1000, 1402, 1403, 6000] {
            rig.segment = told;
            assert_eq!(rig.push(&to, 1430, &frame), too_big, "{told}");
        }
        let small = Spec::udp(&payload(1000)).build();
        rig.segment = 500;
        assert_eq!(rig.push(&to, 1430, &small), too_big);
        // Nobody cuts a fragment, and nobody knows how to cut another protocol.
        let tcp = Spec::tcp(1, 1, &payload(6000)).build();
        let fragment = rig.push_as(&to, 1430, &tcp, |send| send.headers.fragment = true);
        assert_eq!(fragment, too_big);
        let other = rig.push_as(&to, 1430, &tcp, |send| send.headers.protocol = 1);
        assert_eq!(other, too_big);
        assert!(rig.gather.is_empty());
    }
}

#[test]
fn what_fits_one_segment_is_no_super_frame() {
    let tcp = Spec {
        partial: true,
        ..Spec::tcp(1, 1, &payload(1000))
    };
    for spec in [
        tcp.clone(),
        Spec {
            udp: true,
            ..tcp.clone()
        },
    ] {
        for told in [1000, 1001, 60_000] {
            let mut rig = Rig::whole();
            rig.segment = told;
            let to = next_hop(3, NextHopKind::Pod);
            let out = rig.send(&to, 1430, std::slice::from_ref(&spec));
            assert_eq!(out[0].vnet.gso_type, VnetHeader::GSO_NONE);
            assert_eq!(out[0].bytes, spec.build());
            let out = rig.send(&tunnel(false, 2), 1430, std::slice::from_ref(&spec));
            assert_eq!((out[0].vnet.gso_type, out[0].tunnel), (0, None));
            let finished = Spec {
                partial: false,
                ..spec.clone()
            };
            assert_eq!(decap(&wire(&out[0])[0]).1, finished.build());
        }
    }
    // And one byte more is.
    for (to, tunnel) in [
        (next_hop(3, NextHopKind::Pod), false),
        (tunnel(true, 2), true),
    ] {
        let mut rig = Rig::whole();
        rig.segment = 999;
        let out = rig.send(&to, 1430, std::slice::from_ref(&tcp));
        assert_eq!((out[0].vnet.gso_type, out[0].vnet.gso_size), (1, 999));
        assert_eq!(out[0].tunnel.is_some(), tunnel);
        assert_eq!(wire(&out[0]).len(), 2);
    }
}

#[test]
fn blocks_and_super_frames_of_a_flow_keep_their_order() {
    let mut seq = 1;
    let mut specs = Vec::new();
    for length in [1000, 1000, 5000, 1000, 1000, 5000, 5000, 1000] {
        specs.push(Spec {
            partial: true,
            ..Spec::tcp(seq, 1, &payload(length))
        });
        seq += u32::try_from(length).unwrap();
    }
    // A flow beside it, whose run goes on.
    let beside = Spec {
        sport: 40_001,
        ..Spec::udp(&payload(1000))
    };
    let seqs = |out: &[Out], tunnelled: bool| -> Vec<u32> {
        let inner = |frame: Vec<u8>| {
            if tunnelled { decap(&frame).1 } else { frame }
        };
        let frames = out.iter().flat_map(wire).map(inner);
        let tcp = frames.filter(|frame| frame[23] == 6);
        tcp.map(|frame| u32::from_be_bytes(frame[38..42].try_into().unwrap()))
            .collect()
    };
    for to in [
        tunnel(false, 2),
        tunnel(true, 2),
        next_hop(3, NextHopKind::Pod),
        next_hop(3, NextHopKind::Native),
    ] {
        let tunnelled = matches!(to.kind, NextHopKind::Tunnel(_));
        let mut rig = Rig::whole();
        for spec in &specs {
            assert_eq!(rig.push(&to, 1430, &spec.build()), Pushed::Gathered);
            assert_eq!(rig.push(&to, 1430, &beside.build()), Pushed::Gathered);
        }
        let out = rig.flush();
        let seqs = seqs(&out, tunnelled);
        assert!(seqs.is_sorted(), "{seqs:?}");
        assert_eq!(seqs.len(), 5 + 3 * 4);
        let packets: Vec<_> = out.iter().map(|o| (o.packets, o.vnet.gso_size)).collect();
        if tunnelled {
            // Block runs have the sizes of blocks, super-frames that of their segments.
            let (tcp, udp) = (8 + 14 + 52 + 1000, 8 + 14 + 28 + 1000);
            let room = room(1430, false);
            assert_eq!(
                packets,
                [
                    (2, tcp),
                    (8, udp),
                    (1, room),
                    (2, tcp),
                    (1, room),
                    (1, room),
                    (1, 0),
                ]
            );
        }
    }
}

#[test]
fn padding_is_not_sent() {
    let spec = Spec::udp(b"x");
    let mut padded = spec.build();
    padded.resize(60, 0);
    for to in [next_hop(3, NextHopKind::Pod), tunnel(false, 2)] {
        let mut rig = Rig::new();
        assert_eq!(rig.push(&to, 1450, &padded), Pushed::Gathered);
        let out = rig.flush();
        assert!(out[0].bytes.ends_with(&spec.build()));
    }
}

#[test]
fn what_cannot_leave_is_dropped_under_its_reason() {
    let mut rig = Rig::new();
    let pod = next_hop(3, NextHopKind::Pod);
    let big = Spec::udp(&payload(1500)).build();
    let drop = Pushed::Drop;
    assert_eq!(rig.push(&pod, 1450, &big), drop(DropReason::TooBig));
    assert_eq!(
        rig.push(&tunnel(false, 2), 1450, &big),
        drop(DropReason::TooBig)
    );
    let lost = next_hop(3, NextHopKind::Unresolved);
    assert_eq!(rig.push(&lost, 9000, &big), drop(DropReason::NoNeighbor));
    let tcp = Spec::tcp(1, 1, &payload(3000)).build();
    for to in [&pod, &tunnel(false, 2), &tunnel(true, 2)] {
        for max in [0, 19, 51, 52] {
            assert_eq!(rig.push(to, max, &tcp), drop(DropReason::TooBig));
        }
    }
    // So small that the headers of one packet would fill everything.
    assert_eq!(
        rig.push(&tunnel(true, 2), 53, &tcp),
        drop(DropReason::TooBig)
    );
    let longer = |send: &mut Send<'_>| send.headers.l3_len += 1;
    assert_eq!(
        rig.push_as(&pod, 9000, &tcp, longer),
        drop(DropReason::Ipv4BadTotalLength)
    );
    assert!(rig.gather.is_empty());
    assert!(rig.flush().is_empty());
}

#[test]
fn a_port_that_is_gone_drops() {
    let (region, mut frames) = crate::xsk::Region::new(1).unwrap();
    let bytes = Spec::udp(b"x").build();
    assert!(frames[0].set_data(256, bytes.len()));
    region.bytes_mut(&mut frames[0]).copy_from_slice(&bytes);
    let mut packet = Packet::new(&region, &mut frames).unwrap();
    let headers = crate::wire::parse::parse(&bytes, 14, bytes.len()).unwrap();
    let send = Send {
        next_hop: &next_hop(3, NextHopKind::Pod),
        headers,
        flow_hash: 0,
        partial_checksum: false,
        max_l3_len: 1450,
    };
    let pushed = Gather::new().push(&mut packet, &send, &Tables::default());
    assert_eq!(pushed, Pushed::Drop(DropReason::PortGone));
}

#[test]
fn full_leaves_the_packet_alone_and_takes_it_after_clear() {
    let to = tunnel(false, 2);
    let spec = |n: u16| Spec {
        sport: n,
        partial: true,
        ..Spec::udp(b"abc")
    };
    let mut rig = Rig::new();
    let (mut pushed, mut left) = (0, 0);
    for n in 0..400 {
        let frame = spec(n).build();
        if rig.push(&to, 1450, &frame) == Pushed::Full {
            let out = rig.flush();
            assert!(out.len() <= MAX_MESSAGES);
            left += out.iter().map(|o| o.packets).sum::<u32>();
            assert_eq!(rig.push(&to, 1450, &frame), Pushed::Gathered);
        }
        pushed += 1;
    }
    assert!(left >= 128);
    left += rig.flush().iter().map(|o| o.packets).sum::<u32>();
    assert_eq!(left, pushed);
}

#[test]
fn the_largest_super_frame_at_the_smallest_mtu_finds_room() {
    for v6 in [false, true] {
        let spec = Spec {
            v6: true,
            options: vec![1; 40],
            partial: true,
            ..Spec::tcp(1, 1, &payload(65535 - 60))
        };
        let max = if v6 { 576 - 70 } else { 576 - 50 };
        let out = Rig::new().send(&tunnel(v6, 2), max, std::slice::from_ref(&spec));
        let segments: Vec<_> = out.iter().flat_map(wire).collect();
        let whole = VnetHeader {
            flags: VnetHeader::NEEDS_CSUM,
            gso_type: VnetHeader::GSO_TCPV6,
            hdr_len: 114,
            gso_size: max - 100,
            csum_start: 54,
            csum_offset: 16,
        };
        assert_eq!(segments.len(), segment(&spec.build(), &whole).len());
        assert!(out.iter().all(|o| o.bytes.len() <= MAX_BYTES));
    }
}
