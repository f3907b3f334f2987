//! Properties of gathering as a whole, over random bursts.

use std::collections::HashMap;

use proptest::collection::vec;
use proptest::prelude::*;

use super::drafts::{MAX_BYTES, MAX_MESSAGES, MAX_PIECES};
use super::testing::{ACK, CWR, FIN, Offsets, Out, PSH, Rig, Spec};
use super::testing::{
    decap, looks_partial, next_hop, payload, put16, segment, tunnel, verify, wire,
};
use super::{Pushed, VnetHeader};
use crate::fib::{NextHop, NextHopKind};
use crate::testing::tcp_options::tcp_options;

/// One packet of a burst: which flow, how it goes on, and what it looks like.
#[derive(Debug, Clone)]
struct Step {
    flow: u8,
    len: usize,
    flags: u8,
    tos: u8,
    /// Leaves a hole before the segment.
    skip: bool,
    partial: bool,
    corrupt: bool,
    chunk: usize,
    /// Payload bytes of each segment, as the kernel tells them; 0: it does not.
    told: u16,
    /// TCP options that the flow's other packets do not have.
    options: Option<Vec<u8>>,
}

fn step() -> impl Strategy<Value = Step> {
    let len = prop_oneof![
        4 => Just(1000_usize),
        1 => 0..1300_usize,
        1 => 2000..40_000_usize,
    ];
    let flags = prop_oneof![8 => Just(0), 1 => Just(PSH), 1 => Just(CWR), 1 => Just(FIN | PSH)];
    let tos = prop_oneof![9 => Just(0_u8), 1 => Just(3)];
    let told = prop_oneof![4 => Just(0_u16), 1 => 200..3000_u16, 1 => Just(1000)];
    (
        (0..FLOWS, len, flags, tos),
        (
            prop::bool::weighted(0.1),
            any::<bool>(),
            prop::bool::weighted(0.05),
        ),
        1400..3500_usize,
        told,
        prop::option::weighted(0.1, tcp_options()),
    )
        .prop_map(
            |((flow, len, flags, tos), (skip, partial, corrupt), chunk, told, options)| Step {
                flow,
                len,
                flags,
                tos,
                skip,
                // A super-frame's checksum is always partial.
                partial: partial || len >= 2000,
                corrupt: corrupt && len > 0 && len < 2000 && !partial && told == 0,
                chunk,
                // Super-frames of UDP are left to the kernel.
                told: if flow >= 4 { 0 } else { told },
                options,
            },
        )
}

/// Flows, told apart by their number.
const FLOWS: u8 = 6;

/// Gives each step of a flow its place in the flow. `options` are those of each flow.
fn specs(steps: &[Step], options: &[Vec<u8>]) -> Vec<Spec> {
    let mut places: HashMap<u8, (u32, u16)> = HashMap::new();
    let mut spec = |step: &Step| {
        let place = places.entry(step.flow);
        let (seq, id) = place.or_insert((u32::MAX - 20_000, 65_500));
        *seq = seq.wrapping_add(if step.skip { 1 } else { 0 });
        let spec = Spec {
            v6: step.flow % 2 == 1,
            host: step.flow,
            sport: 40_000 + u16::from(step.flow),
            flags: ACK | step.flags,
            tos: step.tos,
            udp: step.flow >= 4 && step.len < 2000,
            partial: step.partial,
            options: step
                .options
                .as_ref()
                .unwrap_or(&options[usize::from(step.flow)])
                .clone(),
            ..Spec::tcp(*seq, *id, &payload(step.len))
        };
        *seq = seq.wrapping_add(u32::try_from(step.len).unwrap());
        *id = id.wrapping_add(u16::try_from(step.len.div_ceil(MSS_V4).max(1)).unwrap());
        spec
    };
    steps.iter().map(&mut spec).collect()
}

const MAX_L3: u16 = 1430;
const MSS_V4: usize = MAX_L3 as usize - 52;

/// The frames that a packet is on the wire, whose segments are told to be of `told` bytes.
fn expected(spec: &Spec, frame: &[u8], told: u16) -> Vec<Vec<u8>> {
    let ip = if spec.v6 { 40 } else { 20 };
    let header_len = u16::try_from(spec.header_len()).unwrap();
    let room = MAX_L3 - header_len;
    let size = if told == 0 { room } else { told.min(room) };
    let is_super_frame = !spec.udp && spec.payload.len() > size.into();
    // Its checksums are made anew.
    let partial = Spec {
        partial: true,
        ..spec.clone()
    };
    let partial = is_super_frame.then(|| partial.build());
    let frame = partial.as_deref().unwrap_or(frame);
    let mut vnet = VnetHeader::default();
    if spec.partial || looks_partial(frame) {
        vnet.flags = VnetHeader::NEEDS_CSUM;
        vnet.csum_start = 14 + ip;
        vnet.csum_offset = if spec.udp { 6 } else { 16 };
    }
    if is_super_frame {
        vnet.gso_type = if spec.v6 {
            VnetHeader::GSO_TCPV6
        } else {
            VnetHeader::GSO_TCPV4
        };
        vnet.hdr_len = 14 + header_len;
        vnet.gso_size = size;
    }
    segment(frame, &vnet)
}

/// Addresses, protocol and ports.
fn flow_of(frame: &[u8]) -> Vec<u8> {
    let at = Offsets::of(frame);
    let addresses = if at.v6 {
        &frame[22..54]
    } else {
        &frame[26..34]
    };
    [addresses, &[frame[at.protocol]], &frame[at.l4..at.l4 + 4]].concat()
}

/// Frames in order, flow by flow.
fn by_flow(frames: impl IntoIterator<Item = Vec<u8>>) -> HashMap<Vec<u8>, Vec<Vec<u8>>> {
    let mut flows = HashMap::<_, Vec<_>>::new();
    for frame in frames {
        flows.entry(flow_of(&frame)).or_default().push(frame);
    }
    flows
}

fn check_limits(out: &[Out]) {
    assert!(out.len() <= MAX_MESSAGES);
    for message in out {
        assert!(message.bytes.len() <= MAX_BYTES);
        assert!(message.pieces <= MAX_PIECES);
    }
}

/// Pushes all, flushing when full, and returns the messages and how many packets they say. With
/// `whole`, super-frames go into tunnels whole.
fn run(to: &NextHop, whole: bool, steps: &[Step], frames: &[Vec<u8>]) -> (Vec<Out>, u32) {
    let mut rig = Rig::new();
    rig.gather.send_tunnels_whole(whole);
    let memory = rig.gather.memory();
    let mut out = Vec::new();
    for (step, frame) in steps.iter().zip(frames) {
        (rig.chunk, rig.segment) = (step.chunk, step.told);
        let mut pushed = rig.push(to, MAX_L3, frame);
        if pushed == Pushed::Full {
            let some = rig.flush();
            check_limits(&some);
            out.extend(some);
            pushed = rig.push(to, MAX_L3, frame);
        }
        assert_eq!(pushed, Pushed::Gathered);
    }
    let rest = rig.flush();
    check_limits(&rest);
    assert_eq!(rig.gather.memory(), memory, "memory is made once");
    out.extend(rest);
    let packets = out.iter().map(|o| o.packets).sum();
    (out, packets)
}

fn destinations() -> [NextHop; 4] {
    [
        next_hop(3, NextHopKind::Pod),
        next_hop(4, NextHopKind::Native),
        tunnel(false, 2),
        tunnel(true, 2),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever was joined, concatenated or cut: on the wire each flow is, byte by byte and in
    /// order, what the kernel would have sent had it got the packets one by one.
    #[test]
    fn each_flow_leaves_as_it_came(
        steps in vec(step(), 1..80),
        options in vec(tcp_options(), usize::from(FLOWS)),
        to in 0..4_usize,
        whole in any::<bool>(),
    ) {
        let to = &destinations()[to];
        let specs = specs(&steps, &options);
        let frames: Vec<_> = specs
            .iter()
            .zip(&steps)
            .map(|(spec, step)| {
                let mut frame = spec.build();
                if step.corrupt {
                    *frame.last_mut().unwrap() ^= 0x10;
                }
                frame
            })
            .collect();
        let (out, packets) = run(to, whole, &steps, &frames);
        prop_assert_eq!(packets as usize, steps.len());
        for message in &out {
            prop_assert!(message.packets == 0 || message.joined < message.packets);
            prop_assert!(message.tunnel.is_none() || whole);
            prop_assert!(message.cut == 0 || !whole);
        }
        let sent = specs.iter().zip(&frames).zip(&steps);
        let sent = sent.flat_map(|((spec, frame), step)| expected(spec, frame, step.told));
        let seen = out.iter().flat_map(wire).map(|frame| match to.kind {
            NextHopKind::Tunnel(_) => inner_frame(&frame),
            _ => frame,
        });
        prop_assert_eq!(by_flow(seen), by_flow(sent));
    }

    /// Cut and put together again, a super-frame's payload is what it was, at any segment size,
    /// in any chunks.
    #[test]
    fn cut_segments_add_up(
        len in 1400..60_000_usize,
        max in 500..1400_u16,
        chunk in 1200..3800_usize,
        v6 in any::<bool>(),
        v6_underlay in any::<bool>(),
        options in tcp_options(),
    ) {
        let spec = Spec {
            v6,
            partial: true,
            options,
            flags: ACK | PSH,
            ..Spec::tcp(u32::MAX - 9000, 65_530, &payload(len))
        };
        let mut rig = Rig::new();
        rig.chunk = chunk;
        prop_assert_eq!(rig.push(&tunnel(v6_underlay, 2), max, &spec.build()), Pushed::Gathered);
        let out = rig.flush();
        check_limits(&out);
        let size = usize::from(max) - spec.header_len();
        prop_assert_eq!(out.iter().map(|o| o.packets).sum::<u32>(), 1);
        prop_assert_eq!(out.iter().map(|o| o.cut as usize).sum::<usize>(), len.div_ceil(size));
        let mut seq = spec.seq;
        let mut joined = Vec::new();
        for frame in out.iter().flat_map(wire) {
            let inner = inner_frame(&frame);
            verify(&inner);
            prop_assert!(inner.len() <= 14 + usize::from(max));
            let at = Offsets::of(&inner);
            prop_assert_eq!(inner[at.l4 + 4..at.l4 + 8].to_vec(), seq.to_be_bytes().to_vec());
            let bytes = &inner[at.payload..];
            seq = seq.wrapping_add(u32::try_from(bytes.len()).unwrap());
            joined.extend_from_slice(bytes);
            let push = inner[at.l4 + 13] & PSH != 0;
            prop_assert_eq!(push, joined.len() == len);
        }
        prop_assert_eq!(joined, spec.payload);
    }

    /// Headers that do not describe the packet are no reason to panic, nor to lose count.
    #[test]
    fn wrong_headers_do_no_harm(
        offsets in vec(any::<(u16, u16, u16)>(), 1..20),
        small in any::<bool>(),
        l3_len in prop_oneof![0..3000_u32, any::<u32>()],
        protocol in prop_oneof![Just(6_u8), Just(17), any::<u8>()],
        max in any::<u16>(),
        partial in any::<bool>(),
        (to, whole) in (0..4_usize, any::<bool>()),
        v6 in any::<bool>(),
        told in prop_oneof![Just(0), 1..100_u16, any::<u16>()],
    ) {
        let to = &destinations()[to];
        let frame = Spec { v6, ..Spec::tcp(1, 1, &payload(2000)) }.build();
        let mut rig = Rig::new();
        rig.gather.send_tunnels_whole(whole);
        (rig.chunk, rig.segment) = (700, told);
        let mut gathered = 0;
        for (l3, l4, payload) in offsets {
            let scale = |n: u16| if small { n % 128 } else { n };
            let pushed = rig.push_as(to, max, &frame, |send| {
                send.headers.l3 = scale(l3);
                send.headers.l4 = scale(l4);
                send.headers.payload = scale(payload);
                send.headers.l3_len = l3_len;
                send.headers.protocol = protocol;
                send.partial_checksum = partial;
            });
            gathered += u32::from(pushed == Pushed::Gathered);
        }
        let out = rig.flush();
        prop_assert_eq!(out.iter().map(|o| o.packets).sum::<u32>(), gathered);
    }
}

/// The inner frame; of a broken packet too, whose checksum the outer one covers all the same.
fn inner_frame(frame: &[u8]) -> Vec<u8> {
    decap(frame).1
}

/// A run of segments with standing ids is one of consecutive ids once it is cut again; nothing
/// else changes.
#[test]
fn standing_ids_change_and_nothing_else() {
    let specs: Vec<_> = (0..4)
        .map(|n| Spec::tcp(n * 1000, 0, &payload(1000)))
        .collect();
    let out = Rig::new().send(&next_hop(3, NextHopKind::Native), 1450, &specs);
    assert_eq!(out.len(), 1);
    for (n, (mut frame, spec)) in wire(&out[0]).into_iter().zip(&specs).enumerate() {
        assert_eq!(usize::from(frame[19]), n);
        verify(&frame);
        let mut sent = spec.build();
        for frame in [&mut frame, &mut sent] {
            put16(frame, 18, 0);
            put16(frame, 24, 0);
        }
        assert_eq!(frame, sent);
    }
}
