//! What is joined, and what is not.

use super::super::message::VnetHeader;
use super::super::testing::{
    ACK, CWR, ECE, FIN, Out, PSH, Rig, SYN, Spec, URG, fix_ip, next_hop, payload, put16, wire,
};
use super::*;
use crate::egress::Pushed;
use crate::fib::NextHopKind;

/// `count` segments of 1000 bytes in order.
fn bulk(v6: bool, count: u16) -> Vec<Spec> {
    let data = payload(1000 * usize::from(count));
    let segment = |n: u16| {
        let at = usize::from(n) * 1000;
        Spec {
            v6,
            ..Spec::tcp(
                (u32::MAX - 1500).wrapping_add(u32::from(n) * 1000),
                65534_u16.wrapping_add(n),
                &data[at..at + 1000],
            )
        }
    };
    (0..count).map(segment).collect()
}

fn to_pod(specs: &[Spec]) -> Vec<Out> {
    Rig::new().send(&next_hop(3, NextHopKind::Pod), 1450, specs)
}

fn packets(out: &[Out]) -> Vec<u32> {
    out.iter().map(|o| o.packets).collect()
}

fn built(specs: &[Spec]) -> Vec<Vec<u8>> {
    specs.iter().map(Spec::build).collect()
}

#[test]
fn segments_in_order_become_a_super_frame() {
    for v6 in [false, true] {
        for chunk in [400, 3500] {
            let mut specs = bulk(v6, 5);
            specs[4].flags |= PSH | FIN;
            specs[4].payload.truncate(999);
            let mut rig = Rig::new();
            rig.chunk = chunk;
            let out = rig.send(&next_hop(3, NextHopKind::Pod), 1450, &specs);
            assert_eq!(out.len(), 1);
            let ip = if v6 { 40 } else { 20 };
            let expected = VnetHeader {
                flags: VnetHeader::NEEDS_CSUM,
                gso_type: if v6 {
                    VnetHeader::GSO_TCPV6
                } else {
                    VnetHeader::GSO_TCPV4
                },
                hdr_len: 14 + ip + 32,
                gso_size: 1000,
                csum_start: 14 + ip,
                csum_offset: 16,
            };
            assert_eq!(out[0].vnet, expected);
            assert_eq!((out[0].packets, out[0].joined, out[0].cut), (5, 4, 0));
            // What the kernel would cut it to again is what came.
            assert_eq!(wire(&out[0]), built(&specs));
        }
    }
}

#[test]
fn partial_checksums_count_as_verified() {
    let mut specs = bulk(false, 3);
    specs[1].partial = true;
    let out = to_pod(&specs);
    assert_eq!(packets(&out), [3]);
    specs[1].partial = false;
    assert_eq!(wire(&out[0]), built(&specs));
}

#[test]
fn a_wrong_checksum_is_passed_on_alone() {
    for (bad, expected) in [(0, &[1, 3][..]), (2, &[2, 1, 1]), (3, &[3, 1])] {
        let mut frames = built(&bulk(false, 4));
        *frames[bad].last_mut().unwrap() ^= 1;
        let mut rig = Rig::new();
        for frame in &frames {
            let pushed = rig.push(&next_hop(3, NextHopKind::Pod), 1450, frame);
            assert_eq!(pushed, Pushed::Gathered);
        }
        let out = rig.flush();
        assert_eq!(packets(&out), expected);
        assert_eq!(out.iter().flat_map(wire).collect::<Vec<_>>(), frames);
    }
}

/// What happens to four segments when the third is changed.
#[test]
fn headers_that_differ_are_not_joined() {
    type Change = fn(&mut Spec);
    let cases: &[(&str, &[u32], Change)] = &[
        ("nothing", &[4], |_| ()),
        ("tos", &[2, 1, 1], |s| s.tos = 1),
        ("ttl", &[2, 1, 1], |s| s.ttl -= 1),
        ("df", &[2, 1, 1], |s| s.df = false),
        ("id", &[2, 1, 1], |s| s.id = s.id.wrapping_add(7)),
        ("seq", &[2, 1, 1], |s| s.seq = s.seq.wrapping_add(1)),
        ("ack", &[2, 1, 1], |s| s.ack += 1),
        ("window", &[2, 1, 1], |s| s.window += 1),
        ("options", &[2, 1, 1], |s| s.options[7] += 1),
        ("no options", &[2, 1, 1], |s| s.options.clear()),
        ("cwr", &[2, 1, 1], |s| s.flags |= CWR),
        ("ece", &[2, 1, 1], |s| s.flags |= ECE),
        ("urg", &[2, 1, 1], |s| s.flags |= URG),
        ("rst", &[2, 1, 1], |s| s.flags |= 4),
        ("syn", &[2, 1, 1], |s| s.flags |= SYN),
        ("no ack", &[2, 1, 1], |s| s.flags = 0),
        ("psh", &[3, 1], |s| s.flags |= PSH),
        ("fin", &[3, 1], |s| s.flags |= FIN),
        ("empty", &[2, 1, 1], |s| s.payload.clear()),
        ("shorter", &[3, 1], |s| s.payload.truncate(999)),
        ("longer", &[2, 1, 1], |s| s.payload.push(1)),
        ("other flow", &[3, 1], |s| s.sport += 1),
        ("other host", &[3, 1], |s| s.host += 1),
    ];
    for (name, expected, change) in cases {
        let mut specs = bulk(false, 4);
        change(&mut specs[2]);
        if name.starts_with("other") {
            // The fourth goes on where the second ended.
            specs[3].seq = specs[2].seq;
            specs[3].id = specs[2].id;
        }
        let out = to_pod(&specs);
        assert_eq!(packets(&out), *expected, "{name}");
        let mut frames: Vec<_> = out.iter().flat_map(wire).collect();
        let mut sent = built(&specs);
        frames.sort();
        sent.sort();
        assert_eq!(frames, sent, "{name}");
    }
    let mut specs = bulk(true, 4);
    specs[2].flow_label += 1;
    assert_eq!(packets(&to_pod(&specs)), [2, 1, 1]);
}

/// As by the kernel's `inet_gro_receive`, also if they agree in it.
#[test]
fn packets_with_the_reserved_flag_are_not_joined() {
    let reserve = |frame: &mut Vec<u8>| {
        frame[20] |= 0x80;
        fix_ip(frame);
    };
    for specs in [bulk(false, 4), datagrams(false, 4)] {
        for (marked, expected) in [(0..1, &[1, 3][..]), (2..3, &[2, 1, 1]), (0..4, &[1; 4])] {
            let mut frames = built(&specs);
            frames[marked].iter_mut().for_each(reserve);
            let mut rig = Rig::new();
            for frame in &frames {
                let pushed = rig.push(&next_hop(3, NextHopKind::Pod), 1450, frame);
                assert_eq!(pushed, Pushed::Gathered);
            }
            let out = rig.flush();
            assert_eq!(packets(&out), expected);
            assert_eq!(out.iter().flat_map(wire).collect::<Vec<_>>(), frames);
        }
    }
}

/// `count` datagrams of 700 bytes with ids that go on.
fn datagrams(v6: bool, count: u16) -> Vec<Spec> {
    let datagram = |n: u16| Spec {
        v6,
        id: 65_500_u16.wrapping_add(n),
        ..Spec::udp(&[n.to_be_bytes()[1]; 700])
    };
    (0..count).map(datagram).collect()
}

#[test]
fn datagrams_of_one_size_become_a_super_frame() {
    for v6 in [false, true] {
        let mut specs = datagrams(v6, 5);
        specs[4].payload.truncate(699);
        specs[1].partial = true;
        let out = to_pod(&specs);
        let l4 = if v6 { 54 } else { 34 };
        let expected = VnetHeader {
            flags: VnetHeader::NEEDS_CSUM,
            gso_type: VnetHeader::GSO_UDP_L4,
            hdr_len: l4 + 8,
            gso_size: 700,
            csum_start: l4,
            csum_offset: 6,
        };
        assert_eq!((out.len(), out[0].vnet), (1, expected));
        assert_eq!((out[0].packets, out[0].joined, out[0].cut), (5, 4, 0));
        specs[1].partial = false;
        assert_eq!(wire(&out[0]), built(&specs));
    }
}

/// What happens to four datagrams when the third is changed.
#[test]
fn datagrams_that_differ_are_not_joined() {
    type Change = fn(&mut Spec);
    let cases: &[(&str, &[u32], Change)] = &[
        ("tos", &[2, 1, 1], |s| s.tos = 1),
        ("ttl", &[2, 1, 1], |s| s.ttl -= 1),
        ("df", &[2, 1, 1], |s| s.df = false),
        ("id", &[2, 1, 1], |s| s.id = s.id.wrapping_add(7)),
        ("empty", &[2, 1, 1], |s| s.payload.clear()),
        ("shorter", &[3, 1], |s| s.payload.truncate(699)),
        // The fourth is shorter than the third, and follows it.
        ("longer", &[2, 2], |s| s.payload.push(1)),
        // The first two, and the fourth behind them, but for its id.
        ("other protocol", &[2, 1, 1], |s| s.udp = false),
    ];
    for (name, expected, change) in cases {
        let mut specs = datagrams(false, 4);
        change(&mut specs[2]);
        let out = to_pod(&specs);
        assert_eq!(packets(&out), *expected, "{name}");
        let frames: Vec<_> = out.iter().flat_map(wire).collect();
        assert_eq!(frames, built(&specs), "{name}");
    }
}

#[test]
fn a_datagram_whose_checksum_says_nothing_is_not_joined() {
    let frames = built(&datagrams(false, 4));
    let wrong = |frame: &mut Vec<u8>| *frame.last_mut().unwrap() ^= 1;
    let none = |frame: &mut Vec<u8>| put16(frame, 40, 0);
    // One byte behind the datagram, which its length does not count. The sum stays right.
    let longer = |frame: &mut Vec<u8>| {
        let field = |at: usize| u16::from_be_bytes([frame[at], frame[at + 1]]);
        let (len, checksum) = (field(38), field(40));
        put16(frame, 38, len - 1);
        put16(frame, 40, checksum + 1);
    };
    let changes: [fn(&mut Vec<u8>); 3] = [wrong, none, longer];
    for change in changes {
        let mut frames = frames.clone();
        change(&mut frames[1]);
        let mut rig = Rig::new();
        for frame in &frames {
            let pushed = rig.push(&next_hop(3, NextHopKind::Pod), 1450, frame);
            assert_eq!(pushed, Pushed::Gathered);
        }
        let out = rig.flush();
        assert_eq!(packets(&out), [1, 1, 2]);
        assert_eq!(out.iter().flat_map(wire).collect::<Vec<_>>(), frames);
    }
}

#[test]
fn a_message_has_128_datagrams_at_most() {
    let tiny = |n: u16| Spec {
        id: n,
        ..Spec::udp(b"x")
    };
    let out = to_pod(&(0..200).map(tiny).collect::<Vec<_>>());
    assert_eq!(packets(&out), [128, 72]);
}

#[test]
fn what_ends_a_run_does_not_lead_one() {
    for change in [PSH, FIN, CWR] {
        let mut specs = bulk(false, 3);
        specs[0].flags |= change;
        assert_eq!(packets(&to_pod(&specs)), [1, 2]);
    }
    let mut specs = bulk(false, 3);
    specs.iter_mut().for_each(|s| s.flags = ACK | ECE);
    assert_eq!(packets(&to_pod(&specs)), [3]);
}

#[test]
fn ids_may_stand_still_with_df_only() {
    let mut specs = bulk(false, 4);
    specs.iter_mut().for_each(|s| s.id = 0);
    let out = to_pod(&specs);
    assert_eq!(packets(&out), [4]);
    specs.iter_mut().for_each(|s| s.df = false);
    assert_eq!(packets(&to_pod(&specs)), [1; 4]);
    let mut specs = bulk(false, 4);
    specs[3].id = specs[2].id;
    assert_eq!(packets(&to_pod(&specs)), [3, 1], "a run keeps to one way");
}

#[test]
fn flows_are_joined_side_by_side_and_more_than_the_runs_hold() {
    let mut specs = Vec::new();
    for segment in bulk(false, 3) {
        for sport in 0..10 {
            specs.push(Spec {
                sport,
                ..segment.clone()
            });
        }
    }
    assert_eq!(packets(&to_pod(&specs)), [3; 10]);
    let first = bulk(false, 1).remove(0);
    let many = (0..100).map(|sport| Spec {
        sport,
        ..first.clone()
    });
    assert_eq!(packets(&to_pod(&many.collect::<Vec<_>>())), [1; 100]);
}

#[test]
fn a_super_frame_stays_below_64_kib_and_512_pieces() {
    let out = to_pod(&bulk(false, 80));
    assert_eq!(packets(&out), [65, 15]);
    assert_eq!(out[0].bytes.len(), 66 + 65_000);

    let segment = |n: u16| Spec::tcp(u32::from(n), n, b"x");
    let out = to_pod(&(0..700).map(segment).collect::<Vec<_>>());
    assert!(out.iter().all(|o| o.pieces <= MAX_PIECES));
    assert_eq!(packets(&out).iter().sum::<u32>(), 700);
    assert_eq!(out.len(), 2);
}

#[test]
fn a_fragment_does_not_overtake_the_segments_before_it() {
    let specs = bulk(false, 3);
    let mut fragment = specs[0].build();
    put16(&mut fragment, 20, 0x2000);
    put16(&mut fragment, 24, 0);
    let checksum = crate::wire::Sum::of(&fragment[14..34]).finish();
    put16(&mut fragment, 24, checksum);
    let pod = next_hop(3, NextHopKind::Pod);
    let mut rig = Rig::new();
    for frame in [
        &specs[0].build(),
        &specs[1].build(),
        &fragment,
        &specs[2].build(),
    ] {
        let not_partial = |send: &mut Send<'_>| send.partial_checksum = false;
        let pushed = rig.push_as(&pod, 1450, frame, not_partial);
        assert_eq!(pushed, Pushed::Gathered);
    }
    let out = rig.flush();
    assert_eq!(packets(&out), [2, 1, 1]);
    assert_eq!(out[1].bytes, fragment);
}

#[test]
fn a_super_frame_between_segments_closes_the_run() {
    let specs = bulk(false, 3);
    let big = Spec {
        partial: true,
        ..Spec::tcp(specs[2].seq, 5, &payload(9000))
    };
    let order = [specs[0].clone(), specs[1].clone(), big, specs[2].clone()];
    assert_eq!(packets(&to_pod(&order)), [2, 1, 1]);
}

#[test]
fn neither_a_hash_nor_a_flow_alone_makes_a_run() {
    let specs = bulk(false, 2);
    let other = Spec {
        host: 9,
        ..specs[1].clone()
    };
    let elsewhere = Spec {
        payload: vec![4; 1000],
        ..specs[1].clone()
    };
    let pod = |port| next_hop(port, NextHopKind::Pod);
    let mut rig = Rig::new();
    let order = [(3, &specs[0]), (3, &other), (4, &elsewhere), (3, &specs[1])];
    for (to, spec) in order {
        let same_hash = |send: &mut Send<'_>| send.flow_hash = 7;
        let pushed = rig.push_as(&pod(to), 1450, &spec.build(), same_hash);
        assert_eq!(pushed, Pushed::Gathered);
    }
    let frames: Vec<_> = rig.flush().iter().map(wire).collect();
    assert_eq!(
        frames,
        [built(&specs), vec![other.build()], vec![elsewhere.build()]]
    );
}
