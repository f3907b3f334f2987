//! Cutting against the kernel's own GSO: a super-frame goes through both, and the frames on the
//! wire must be the same bytes. The test has a network namespace of its own; it needs root.
//!
//! ```text
//!   the super-frame, by AF_PACKET ----------> far, no offload =====> near: the kernel's segments
//!   our egress, blocks cut for a tunnel ----> far, no offload =====> near: ours, in VXLAN
//! ```
#![allow(missing_docs, reason = "tests are described by their names")]

mod support;

use std::cell::RefCell;

use podway_dataplane::egress::VnetHeader;
use proptest::prelude::*;
use proptest::test_runner::{RngAlgorithm, TestRng, TestRunner};

use support::gathered::Gathered;
use support::namespace::make_a_wire_of;
use support::packets::{
    CWR, Offsets, Spec, finish, fix_ip, fold, l4_checksum_is_right, payload, pseudo, put16,
};
use support::tcp_options::tcp_options;
use support::{Capture, Pair, Sender, in_namespace};

/// Largest inner packet of a tunnel over IPv6 on a link with an MTU of 1500.
const MAX_L3_LEN: u16 = 1430;

/// Most segments of a super-frame here.
const MAX_SEGMENTS: usize = 100;

/// A super-frame.
#[derive(Debug, Clone)]
struct SuperFrame {
    v6: bool,
    /// All eight, in any combination.
    flags: u8,
    /// AE and the reserved ones.
    reserved_flags: u8,
    urgent: u16,
    tos: u8,
    ttl: u8,
    df: bool,
    /// The bit before DF.
    reserved_bit: bool,
    id: u16,
    seq: u32,
    ack: u32,
    window: u16,
    options: Vec<u8>,
    len: usize,
    /// Payload bytes of each segment.
    size: u16,
    chunk: usize,
    /// The checksum is finished, as that of what a device has joined may be.
    finished: bool,
}

fn super_frame() -> impl Strategy<Value = SuperFrame> {
    let size = prop_oneof![4 => 100..1330_u16, 1 => 1..100_u16];
    let len = prop_oneof![1..65_000_usize, 1..10_usize, Just(64_000)];
    (
        any::<(bool, u8, u16, u8, bool, bool)>(),
        (any::<(u16, u32, u32, u16)>(), 0..16_u8, 2..=255_u8),
        (
            tcp_options(),
            len,
            size,
            700..3500_usize,
            prop::bool::weighted(0.2),
        ),
    )
        .prop_map(
            |(
                (v6, flags, urgent, tos, df, reserved_bit),
                ((id, seq, ack, window), reserved_flags, ttl),
                (options, len, size, chunk, finished),
            )| SuperFrame {
                v6,
                flags,
                reserved_flags,
                urgent,
                tos,
                ttl,
                df,
                reserved_bit,
                id,
                seq,
                ack,
                window,
                options,
                // More than one segment, and not too many.
                len: usize::from(size) + len.min((MAX_SEGMENTS - 1) * usize::from(size)),
                size,
                chunk,
                finished,
            },
        )
        .prop_map(|s| SuperFrame {
            len: s.len.min(65_535 - 140),
            ..s
        })
}

impl SuperFrame {
    fn build(&self) -> (Vec<u8>, VnetHeader) {
        let spec = Spec {
            v6: self.v6,
            tos: self.tos,
            ttl: self.ttl,
            df: self.df,
            ack: self.ack,
            flags: self.flags,
            window: self.window,
            options: self.options.clone(),
            ..Spec::tcp(self.seq, self.id, &payload(self.len))
        };
        let mut frame = spec.build();
        let at = Offsets::of(&frame);
        frame[at.l4 + 12] |= self.reserved_flags;
        put16(&mut frame, at.l4 + 18, self.urgent);
        if self.reserved_bit && !self.v6 {
            frame[20] |= 0x80;
            fix_ip(&mut frame);
        }
        let pseudo = fold(pseudo(&frame, frame.len() - at.l4));
        put16(&mut frame, at.checksum, pseudo);
        let narrow = |n: usize| u16::try_from(n).unwrap();
        let ecn = if self.flags & CWR == 0 {
            0
        } else {
            VnetHeader::GSO_ECN
        };
        let kind = if self.v6 {
            VnetHeader::GSO_TCPV6
        } else {
            VnetHeader::GSO_TCPV4
        };
        let mut vnet = VnetHeader {
            flags: VnetHeader::NEEDS_CSUM,
            gso_type: kind | ecn,
            hdr_len: narrow(at.payload),
            gso_size: self.size,
            csum_start: narrow(at.l4),
            csum_offset: narrow(at.checksum - at.l4),
        };
        if self.finished {
            finish(&mut frame, at.l4, at.checksum);
            (vnet.flags, vnet.csum_start, vnet.csum_offset) = (0, 0, 0);
        }
        (frame, vnet)
    }
}

/// The next `count` frames, which need nothing done to them.
fn frames(capture: &Capture, count: usize) -> Vec<Vec<u8>> {
    let frame = |n| {
        let frame = capture
            .next()
            .unwrap_or_else(|| panic!("{n} of {count} frames"));
        assert_eq!(frame.vnet, VnetHeader::default());
        assert!(l4_checksum_is_right(&frame.bytes));
        frame.bytes
    };
    (0..count).map(frame).collect()
}

/// Half of the cases that proptest runs by itself, or that `PROPTEST_CASES` says; the same in each
/// run.
#[test]
#[ignore = "needs root; scripts/test runs it"]
fn super_frames_are_cut_as_by_the_kernel() {
    in_namespace(|| {
        let pair = Pair::new(1);
        make_a_wire_of("far");
        let capture = Capture::new(pair.near);
        let sender = RefCell::new(Sender::new());
        let tunnels = [false, true].map(|v6| RefCell::new(Gathered::to_tunnel(pair.far, v6)));
        let config = ProptestConfig {
            cases: ProptestConfig::default().cases / 2,
            failure_persistence: None,
            ..ProptestConfig::default()
        };
        let rng = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
        let check = |(case, v6_underlay): (SuperFrame, bool)| {
            let packet = case.build();
            let count = case.len.div_ceil(case.size.into());
            let sent = sender.borrow_mut().send(pair.far, &packet.0, packet.1);
            assert_eq!(sent, Ok(()));
            let kernel = frames(&capture, count);
            tunnels[usize::from(v6_underlay)].borrow_mut().send(
                std::slice::from_ref(&packet),
                MAX_L3_LEN,
                case.chunk,
            );
            let outer = if v6_underlay { 70 } else { 50 };
            for (n, (ours, kernel)) in frames(&capture, count).iter().zip(&kernel).enumerate() {
                assert_eq!(&ours[outer..], kernel, "segment {n} of {count}");
            }
            Ok(())
        };
        let result =
            TestRunner::new_with_rng(config, rng).run(&(super_frame(), any::<bool>()), check);
        result.unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(capture.next(), None);
    });
}
