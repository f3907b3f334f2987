//! What the fuzz targets run. Each function takes any bytes and panics where a rule is broken; the
//! same functions run as unit tests over their seeds, over noise, and over whatever once failed.
//!
//! Inputs are read front to back; what is missing at the end reads as zero.

use std::cell::RefCell;
use std::collections::HashMap;

use super::kernel::{self, Out, segment, wire};
use super::node::{Forwarded, Node};
use super::packets::{
    ACK, CWR, ECE, FIN, Offsets, PSH, RST, SYN, Spec, URG, finish, fix_ip, fold, get16, hop_limit,
    ip_checksum_is_right, ip_len_is_right, l4_checksum_is_right, looks_partial, payload, pseudo,
    put16, sum16, tos, without_hops,
};
use super::plan::{
    self, BIG_POD, GONE, Mtus, NATIVE, POD, REAL_WIRE, UPLINK, VXLAN_V4, VXLAN_V6, pod, tables,
};
use crate::egress::VnetHeader;
use crate::fib::{NextHopKind, PortId};
use crate::limits::Limits;
use crate::packet::{MAX_CHAIN, Offload, Packet};
use crate::tunnel::Decapped;
use crate::verdict::{DropReason, Send};
use crate::wire::parse::parse;

/// The node that all happens on.
const ME: u8 = 1;

/// Bytes of a packet's chunks.
const ANY_CHUNKS: [usize; 8] = [3500, 1500, 700, 128, 66, 54, 33, 2];

/// Frames of one input.
const MAX_FRAMES: usize = 100;

/// Bit of the layout: see [`Limits`].
pub(super) const OVERHEARS: u8 = 0x40;

thread_local! {
    /// Kept from input to input, since its memory is large; not kept over a panic.
    static NODE: RefCell<Option<Node>> = const { RefCell::new(None) };
}

fn with_node(work: impl FnOnce(&mut Node)) {
    let kept = NODE.with_borrow_mut(Option::take);
    let mut node = kept.unwrap_or_else(|| Node::new(tables(ME, Mtus::default())));
    work(&mut node);
    NODE.with_borrow_mut(|place| *place = Some(node));
}

/// Reads an input.
struct Input<'i>(&'i [u8]);

impl<'i> Input<'i> {
    fn byte(&mut self) -> u8 {
        self.take(1).first().copied().unwrap_or(0)
    }

    fn number(&mut self) -> usize {
        usize::from(self.byte()) << 8 | usize::from(self.byte())
    }

    fn take(&mut self, count: usize) -> &'i [u8] {
        let (taken, rest) = self.0.split_at(count.min(self.0.len()));
        self.0 = rest;
        taken
    }

    /// One of `choices`, chosen by a byte.
    fn one_of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[usize::from(self.byte()) % choices.len()]
    }

    /// How frames lie in chunks of one of these sizes, and in the upper bits whether super-frames go
    /// into tunnels whole, and whether the node overhears what peers and routers tell.
    fn layout(&mut self, node: &mut Node, chunks: &[usize]) {
        node.chunk = self.one_of(chunks);
        let byte = self.byte();
        node.headroom = [256, 0, 7, 8][usize::from(byte) % 4];
        node.send_tunnels_whole(byte & 0x80 != 0);
        node.limits = (byte & OVERHEARS != 0).then(Limits::default);
        node.offload = None;
    }

    /// A frame: a byte of modes, how many bytes follow, and how long the frame is, if it is longer
    /// than those. With [`TOLD`] among the modes, the kernel says something of it: the size of
    /// segments comes last.
    fn frame(&mut self, node: &mut Node) -> Vec<u8> {
        let (modes, count, len) = (self.byte(), self.number(), self.number());
        let mut frame = self.take(count).to_vec();
        let longest = (MAX_CHAIN * node.chunk).min(65_535 + 14);
        frame.truncate(longest);
        if len > frame.len() {
            frame.extend(payload(len.min(longest) - frame.len()));
        }
        repair(&mut frame, modes);
        node.offload = (modes & TOLD != 0).then(|| {
            let segment = likely_segment(self.number(), frame.len());
            Offload {
                segment,
                ..unfinished(&frame)
            }
        });
        frame
    }
}

/// The size of segments in `len` bytes: not so small that there is no room for their headers.
pub(super) fn likely_segment(segment: usize, len: usize) -> u16 {
    match segment {
        0 => 0,
        _ => u16::try_from(segment.max(len / 128 + 1)).unwrap_or(u16::MAX),
    }
}

/// What the kernel says of a checksum: where one is unfinished, or nothing.
pub(super) fn unfinished(frame: &[u8]) -> Offload {
    let partial =
        |frame: &[u8]| has_headers(frame) && ip_len_is_right(frame) && looks_partial(frame);
    let told = |in_front, frame| {
        let at = Offsets::of(frame);
        Offload {
            segment: 0,
            unfinished: u16::try_from(in_front + at.l4).ok(),
            checksum: u16::try_from(at.checksum - at.l4).unwrap_or(0),
        }
    };
    if !has_headers(frame) {
        return Offload::default();
    }
    let in_front = Offsets::of(frame).payload + 8;
    match frame.get(in_front..) {
        Some(inner) if partial(inner) => told(in_front, inner),
        _ if partial(frame) => told(0, frame),
        _ => Offload::default(),
    }
}

/// Whether [`Offsets`] and what reads by them find their bytes.
fn has_headers(frame: &[u8]) -> bool {
    match frame.get(12..15) {
        Some([0x08, 0x00, 0x45]) => frame.len() >= 54,
        Some([0x86, 0xdd, _]) => frame.len() >= 74,
        _ => false,
    }
}

/// Mode of [`repair`]: IP lengths and the IPv4 header checksum.
pub(super) const REPAIR_IP: u8 = 1;
/// Mode of [`repair`]: the L4 checksum.
pub(super) const REPAIR_L4: u8 = 2;
/// Mode of [`repair`]: with [`REPAIR_L4`], an unfinished one.
pub(super) const PARTIAL: u8 = 4;
/// Mode of [`repair`]: in a tunnel, the same for the inner frame.
pub(super) const REPAIR_INNER: u8 = 8;

/// Mode: the kernel says what it knows of segments and checksum.
const TOLD: u8 = 16;

/// Makes true in a frame what random changes nearly always make false.
pub(super) fn repair(frame: &mut [u8], modes: u8) {
    if !has_headers(frame) {
        return;
    }
    let at = Offsets::of(frame);
    if modes & REPAIR_INNER != 0 && at.payload + 8 < frame.len() {
        repair(&mut frame[at.payload + 8..], modes & !REPAIR_INNER);
    }
    if modes & REPAIR_IP != 0 {
        fix_ip(frame);
    }
    if modes & REPAIR_L4 != 0 && matches!(frame[at.protocol], 6 | 17) {
        let pseudo = fold(pseudo(frame, frame.len() - at.l4));
        put16(frame, at.checksum, pseudo);
        if modes & PARTIAL == 0 {
            finish(frame, at.l4, at.checksum);
        }
    }
}

/// Frames through [`crate::forward::forward`] and gathering.
///
/// Input: two bytes of layout; then for each frame a port and the frame.
///
/// Rules: no panic; each packet has one verdict; a packet that is sent is what came but for what a
/// router changes, with its time to live one lower; one that is dropped is answered as in [`icmp`]; nothing is written beside a frame's data; no
/// frame is lost; messages keep their limits; what they are on the wire has right lengths and, if
/// it had them when it came, right checksums.
pub fn forward(input: &[u8]) {
    with_node(|node| {
        let mut input = Input(input);
        input.layout(node, &ANY_CHUNKS);
        node.answers = true;
        let mut gathered = 0;
        let mut all_sound = true;
        for _ in 0..MAX_FRAMES {
            if input.0.is_empty() {
                break;
            }
            let port = input.one_of(&[POD, BIG_POD, UPLINK, REAL_WIRE, GONE]);
            let frame = input.frame(node);
            let told = node.offload;
            let verdict = node.receive_with(port, &frame, |died_of, send, packet| {
                match died_of {
                    None => check_sent(port, &frame, send, packet),
                    Some(reason) => check_answer(&frame, told, reason, send, &whole(packet)),
                }
                all_sound &= is_sound(&whole(packet), send);
            });
            match verdict {
                Ok(()) => gathered += 1,
                Err(reason) => assert!(
                    !matches!(reason, DropReason::EgressFull | DropReason::EgressRefused),
                    "{reason:?} without egress"
                ),
            }
        }
        node.answers = false;
        gathered += std::mem::take(&mut node.answered);
        let out = node.flush();
        assert_eq!(out.iter().map(|out| out.packets).sum::<u32>(), gathered);
        out.iter().for_each(|out| check_out(out, all_sound));
    });
}

fn whole(packet: &Packet<'_>) -> Vec<u8> {
    packet.chunks().collect::<Vec<_>>().concat()
}

fn is_uplink(port: PortId) -> bool {
    [UPLINK, REAL_WIRE].contains(&port)
}

/// What [`crate::forward::forward`] owes to a packet that it sends.
fn check_sent(port: PortId, came: &[u8], send: &Send<'_>, packet: &Packet<'_>) {
    let (left, headers) = (whole(packet), &send.headers);
    assert_eq!(parse(packet.head(), 14, packet.len()).as_ref(), Ok(headers));
    assert_eq!(headers.end(), left.len(), "padding is trimmed");
    assert_eq!(left[..12], send.next_hop.l2.0);
    assert!(hop_limit(&left) > 0);

    let changed = |frame: &[u8]| {
        let mut frame = without_hops(frame);
        // ECN.
        frame[15] &= if frame[12] == 0x86 {
            0b1100_1111
        } else {
            0b1111_1100
        };
        frame
    };
    let outer_lens: &[usize] = if is_uplink(port) { &[0, 50, 70] } else { &[0] };
    let outer_ecn = tos(came) & 3;
    let is_from = |outer: &usize| {
        let came = came.get(*outer..*outer + left.len());
        came.is_some_and(|came| {
            let mut came = came.to_vec();
            finish_inside(&mut came, packet.offload(), headers.l4.into());
            let mark = match *outer {
                0 => Some(tos(&came) & 3),
                _ => combined(tos(&came) & 3, outer_ecn),
            };
            changed(&came) == changed(&left)
                && hop_limit(&came) == hop_limit(&left) + 1
                && mark == Some(tos(&left) & 3)
        })
    };
    assert!(outer_lens.iter().any(is_from), "bytes have changed");

    let tcp = headers.protocol == 6 && !headers.fragment;
    let longest = match packet.segment() {
        Some(segment) => u32::from(headers.payload - headers.l3) + u32::from(segment),
        None => u32::MAX,
    };
    assert!(
        tcp || headers.l3_len.min(longest) <= u32::from(send.max_l3_len),
        "too big"
    );
    assert!(send.max_l3_len <= send.next_hop.mtu);
    if is_uplink(port) {
        assert_eq!(send.next_hop.kind, NextHopKind::Pod, "sent on");
    }
    match packet.offload() {
        Some(told) => {
            assert_eq!(send.partial_checksum, told.unfinished == Some(headers.l4));
        }
        None => assert!(!send.partial_checksum || port != REAL_WIRE),
    }
}

/// A frame through [`crate::answer`], as if it were dropped.
///
/// Input: two bytes of layout, a port, a reason to drop it, and the frame.
///
/// Rules: no panic; nothing is written beside the frame's data but in front of it; an answer has right
/// lengths and checksums, is no longer than its RFC allows, comes from an address of this node, goes to
/// the sender, says what the reason is, and quotes the frame; and never is one to what must not be
/// answered.
pub fn icmp(input: &[u8]) {
    with_node(|node| {
        let mut input = Input(input);
        input.layout(node, &ANY_CHUNKS);
        let port = input.one_of(&[POD, BIG_POD, UPLINK, REAL_WIRE, GONE]);
        let reason = input.one_of(&[
            DropReason::TtlExpired,
            DropReason::NoRoute,
            DropReason::TooBig,
            DropReason::NotLocal,
        ]);
        let frame = input.frame(node);
        let told = node.offload;
        if let Some(Forwarded { send, bytes }) = node.answer_for(port, &frame, reason) {
            check_answer(&frame, told, reason, &send, &bytes);
        }
        node.flush();
    });
}

/// What [`crate::answer`] owes to whoever gets an answer. `came` is the frame that it is about, in its
/// tunnel or not, and `told` what the kernel said of it.
fn check_answer(
    came: &[u8],
    told: Option<Offload>,
    reason: DropReason,
    send: &Send<'_>,
    left: &[u8],
) {
    assert_eq!(parse(left, 14, left.len()).as_ref(), Ok(&send.headers));
    assert_eq!(left[..12], send.next_hop.l2.0);
    assert!(ip_len_is_right(left) && ip_checksum_is_right(left));
    assert!(!send.partial_checksum && send.headers.hop_limit == 64);
    let at = Offsets::of(left);
    let most = if at.v6 { 1280 } else { 576 };
    assert!(left.len() <= 14 + most && left.len() <= 14 + usize::from(send.next_hop.mtu));
    let sum = match at.v6 {
        true => pseudo(left, left.len() - at.l4),
        false => 0,
    };
    assert_eq!(fold(sum + sum16(&left[at.l4..])), 0xffff, "the checksum");
    assert!([plan::underlay(false, ME), plan::underlay(true, ME)].contains(&send.headers.src));

    let message = &left[at.l4..at.l4 + 8];
    let quote = &left[at.l4 + 8..];
    let number = |at: usize| usize::from(get16(quote, at));
    let (said, quoted_len) = match at.v6 {
        false => ((message[0], message[1]), number(2)),
        true => ((message[0], message[1]), 40 + number(4)),
    };
    let mtu = match reason {
        DropReason::TtlExpired => {
            assert_eq!(said, if at.v6 { (3, 0) } else { (11, 0) });
            0
        }
        DropReason::NoRoute => {
            assert_eq!(said, if at.v6 { (1, 0) } else { (3, 0) });
            0
        }
        DropReason::TooBig => {
            assert_eq!(said, if at.v6 { (2, 0) } else { (3, 4) });
            assert!(at.v6 || quote[6] & 0x40 != 0, "may be fragmented");
            let mtu = get16(message, 6);
            assert!(quoted_len > mtu.into() || mtu == 1280, "fits");
            mtu
        }
        other => panic!("{other:?} has no answer"),
    };
    assert_eq!(message[4..], u32::from(mtu).to_be_bytes());

    // Whom it goes to, and what must have no answer.
    let (source, destination, protocol) = match at.v6 {
        false => (12..16, 16..20, quote[9]),
        true => (8..24, 24..40, quote[6]),
    };
    let to = if at.v6 { 38..54 } else { 30..34 };
    assert_eq!(quote[source.clone()], left[to]);
    for end in [&quote[source], &quote[destination]] {
        assert!(end[0] != 0xff && (at.v6 || !(224..=255).contains(&end[0]) && end[0] != 0));
    }
    assert!(at.v6 || number(6) & 0x1fff == 0, "a later fragment");
    let msg_type = quote.get(if at.v6 { 40 } else { 20 });
    match protocol {
        1 => assert!(!matches!(msg_type, None | Some(3 | 4 | 5 | 11 | 12 | 19..))),
        58 => assert!(!matches!(msg_type, None | Some(..128 | 137))),
        _ => {}
    }

    // The quote is what came, but for a checksum that was not finished: its own, or one further inside,
    // which forwarding may have finished before it dropped the packet.
    let same = |came: &[u8]| {
        let same = |range: std::ops::Range<usize>| {
            let range = range.start.min(quote.len())..range.end.min(quote.len());
            quote[range.clone()] == came[range]
        };
        let (l4, checksum) = match (at.v6, protocol) {
            (_, 6) => (at.l4 - 14, 16),
            (_, 17) => (at.l4 - 14, 6),
            _ => (at.l4 - 14, quote.len()),
        };
        same(0..l4 + checksum) && same(l4 + checksum + 2..quote.len())
    };
    let is_from = |l3: &usize| {
        let Some(came) = came.get(..l3 + quoted_len) else {
            return false;
        };
        let mut finished = came.to_vec();
        let l4 = l3 + at.l4 - 14;
        finish_inside(&mut finished, told, l4);
        same(&came[*l3..]) || same(&finished[*l3..])
    };
    let l3_lens = [14, 14 + 50, 14 + 70];
    assert!(l3_lens.iter().any(is_from), "another packet is quoted");
    let whole = quote.len() == quoted_len;
    assert!(
        whole || left.len() == 14 + most.min(send.next_hop.mtu.into()),
        "more would fit"
    );
}

/// Finishes the checksum that the kernel says is not, unless it is that of the packet itself, whose
/// L4 header begins at `l4`: that one is left to whoever sends it.
fn finish_inside(frame: &mut [u8], told: Option<Offload>, l4: usize) {
    let Some(told) = told else { return };
    let Some(start) = told.unfinished.map(usize::from) else {
        return;
    };
    let field = start + usize::from(told.checksum);
    if start != l4 && field + 2 <= frame.len() {
        finish(frame, start, field);
    }
}

/// Whether the L4 checksum is right, or unfinished, or there is none.
fn is_sound(frame: &[u8], send: &Send<'_>) -> bool {
    let headers = &send.headers;
    headers.fragment
        || !matches!(headers.protocol, 6 | 17)
        || send.partial_checksum
        || l4_checksum_is_right(frame)
}

/// What gathering owes to the wire and to pods.
fn check_out(out: &Out, all_sound: bool) {
    for frame in wire(out) {
        assert!(ip_len_is_right(&frame) && ip_checksum_is_right(&frame));
        let to_wire = out.ifindex == 10 + u32::from(UPLINK.0);
        let longest = if to_wire { 1500 } else { 9000 };
        assert!(frame.len() <= 14 + longest, "too long for the link");
        let inner = if is_tunnel(&frame) {
            kernel::decap(&frame).1
        } else {
            frame
        };
        assert!(ip_len_is_right(&inner) && ip_checksum_is_right(&inner));
        let at = Offsets::of(&inner);
        let fragment = !at.v6 && get16(&inner, 20) & 0x3fff != 0;
        if all_sound && !fragment && matches!(inner[at.protocol], 6 | 17) {
            assert!(l4_checksum_is_right(&inner), "wrong checksum");
        }
    }
}

/// No route leads to the underlay: only tunnels have such destinations.
fn is_tunnel(frame: &[u8]) -> bool {
    let to = |v6: bool, node: u8| match plan::underlay(v6, node) {
        std::net::IpAddr::V4(to) => !Offsets::of(frame).v6 && frame[30..34] == to.octets(),
        std::net::IpAddr::V6(to) => Offsets::of(frame).v6 && frame[38..54] == to.octets(),
    };
    to(false, VXLAN_V4) || to(true, VXLAN_V6)
}

/// A frame through [`crate::tunnel::decap`].
///
/// Input: two bytes of layout and a frame.
///
/// Rules: no panic; a frame is left alone, refused, or is the inner frame then, with the congestion
/// mark of the outer one beside it.
pub fn decap(input: &[u8]) {
    with_node(|node| {
        let mut input = Input(input);
        input.layout(node, &ANY_CHUNKS);
        let frame = input.frame(node);
        let (told, left) = match node.decap(&frame) {
            Ok((Decapped { overhead: 0, .. }, left)) => {
                return assert_eq!(left, frame, "no tunnel, but changed");
            }
            Ok(decapped) => decapped,
            Err(_) => return,
        };
        let overhead = usize::from(told.overhead);
        let v6 = frame[12] == 0x86;
        assert_eq!(overhead, if v6 { 70 } else { 50 });
        let outer = Offsets::of(&frame);
        assert_eq!(
            (frame[outer.protocol], get16(&frame, outer.l4 + 2)),
            (17, 4789)
        );
        assert!(frame[outer.payload] & 8 != 0, "the I flag");
        assert_eq!(frame[outer.payload + 4..outer.payload + 7], [0, 0, 42]);
        let sources = [VXLAN_V4, VXLAN_V6, NATIVE, plan::NARROW, plan::LOST];
        let is_source = |node: &u8| match plan::underlay(*node == VXLAN_V6, *node) {
            std::net::IpAddr::V4(from) => !v6 && frame[26..30] == from.octets(),
            std::net::IpAddr::V6(from) => v6 && frame[22..38] == from.octets(),
        };
        assert!(sources.iter().any(is_source), "no node's");

        let datagram = get16(&frame, outer.l4 + 4);
        let inner = &frame[overhead..outer.l4 + usize::from(datagram)];
        assert_eq!(left[..6], plan::vtep_mac(ME).0);
        assert_eq!(left, inner);
        for inner in 0..4 {
            let expected = combined(inner, tos(&frame) & 3).ok_or(DropReason::EcnNotCapable);
            assert_eq!(told.congestion.combined(inner), expected);
        }
    });
}

/// The inner ECN codepoint that leaves the tunnel (RFC 6040, section 4.2); `None` for a drop.
pub(crate) fn combined(inner: u8, outer: u8) -> Option<u8> {
    // Rows: inner Not-ECT, ECT(1), ECT(0), CE. Columns: outer Not-ECT, ECT(1), ECT(0), CE.
    const FIGURE_4: [[Option<u8>; 4]; 4] = [
        [Some(0), Some(0), Some(0), None],
        [Some(1), Some(1), Some(1), Some(3)],
        [Some(2), Some(1), Some(2), Some(3)],
        [Some(3), Some(3), Some(3), Some(3)],
    ];
    FIGURE_4[usize::from(inner)][usize::from(outer)]
}

/// Packets of a few flows through gathering.
///
/// Input: two bytes of layout, one of destination; then four or six for each packet (see
/// [`Flows::next`]).
///
/// Rules: as for [`forward`], and on the wire each flow is, byte by byte and in order, what it was
/// when it came, super-frames cut as the kernel cuts them. Ids that stand still may go on.
pub fn gather(input: &[u8]) {
    with_node(|node| {
        let mut input = Input(input);
        // Small chunks would not hold the headers.
        input.layout(node, &ANY_CHUNKS[..4]);
        let (port, from, to, max) = input.one_of(&[
            (POD, (ME, 1), (ME, 2), 1500),
            (POD, (ME, 1), (NATIVE, 1), 1500),
            (POD, (ME, 1), (VXLAN_V4, 1), 1450),
            (POD, (ME, 1), (VXLAN_V6, 1), 1430),
            (UPLINK, (NATIVE, 1), (ME, 1), 1500),
        ]);
        let mut flows = Flows {
            from,
            to,
            places: [(u32::MAX - 20_000, 65_500); 8],
        };
        let mut expected = Vec::new();
        let mut count = 0;
        for _ in 0..MAX_FRAMES {
            if input.0.is_empty() {
                break;
            }
            let (frame, told) = flows.next(&mut input, node.chunk);
            node.offload = told;
            assert_eq!(node.receive(port, &frame), Ok(()));
            expected.extend(on_the_wire(&frame, told, max));
            count += 1;
        }
        let out = node.flush();
        assert_eq!(out.iter().map(|out| out.packets).sum::<u32>(), count);
        for message in &out {
            assert!(message.packets == 0 || message.joined < message.packets);
        }
        let frames = out.iter().flat_map(wire);
        let seen = frames.map(|f| {
            if is_tunnel(&f) {
                kernel::decap(&f).1
            } else {
                f
            }
        });
        assert_same(&by_flow(seen), &by_flow(expected));
    });
}

/// Flows that go on from packet to packet.
struct Flows {
    from: (u8, u8),
    to: (u8, u8),
    /// Sequence number and id of each one's next packet.
    places: [(u32, u16); 8],
}

impl Flows {
    /// The next packet, and what the kernel says of it: a byte for the flow, one for its length, one
    /// for its TCP flags, one for whatever else may differ, and two for the size of segments if
    /// that is told.
    fn next(&mut self, input: &mut Input<'_>, chunk: usize) -> (Vec<u8>, Option<Offload>) {
        let flow = input.byte();
        let len = match usize::from(input.byte()) {
            len @ 0..200 => len * 7,
            len => (len - 199) * 1150,
        };
        let flags = input.one_of(&[
            0,
            0,
            0,
            0,
            0,
            0,
            0,
            PSH,
            FIN,
            PSH | FIN,
            CWR,
            ECE,
            SYN,
            URG,
            RST,
        ]);
        let odd = input.byte();
        let place = &mut self.places[usize::from(flow & 7)];
        let udp = flow & 7 == 7;
        let len = len.min(if udp { 1370 } else { (MAX_CHAIN - 2) * chunk }.min(65_000));
        // 1430 bytes less the headers of IPv6 and TCP with timestamps.
        let big = len > 1358;
        let bit = |n: u8| odd >> n & 1;
        // Bits 7 and 6 of the flow.
        let (told, told_segment) = (flow & 128 != 0, flow & 64 != 0);
        let segment = if told && told_segment {
            likely_segment(input.number(), len)
        } else {
            0
        };
        place.0 = place.0.wrapping_add(bit(0).into());
        let spec = Spec {
            udp,
            ttl: 64 - bit(1),
            sport: 40_000 + u16::from(flow & 7),
            flags: ACK | flags,
            tos: bit(2) * 0xb9,
            df: bit(3) == 0,
            window: 500 + u16::from(bit(4)),
            flow_label: 0,
            // A super-frame's checksum is always unfinished.
            partial: bit(5) == 1 || big,
            options: if bit(6) == 1 {
                Vec::new()
            } else {
                vec![1, 1, 8, 10, 0, 0, 0, 9, 0, 0, 0, 8]
            },
            ..Spec::tcp(place.0, place.1, &payload(len))
        };
        let v6 = flow & 1 == 1;
        let spec = spec.between(
            pod(v6, self.from.0, self.from.1),
            pod(v6, self.to.0, self.to.1),
        );
        place.0 = place.0.wrapping_add(u32::try_from(len).unwrap());
        // Bit 4 of the flow: its ids stand still.
        let segments = u16::try_from(len.div_ceil(1378).max(1)).unwrap();
        place.1 = place
            .1
            .wrapping_add(if flow & 16 == 0 { segments } else { 0 });
        // Super-frames of UDP are left to the kernel.
        let segment = if udp { 0 } else { segment };
        let mut frame = spec.build();
        // A device verifies what it joins.
        if bit(7) == 1 && !spec.partial && len > 0 && segment == 0 {
            *frame.last_mut().unwrap() ^= 0x10;
        }
        let l4 = if v6 { 54 } else { 34 };
        let offload = Offload {
            segment,
            unfinished: spec.partial.then_some(l4),
            checksum: if udp { 6 } else { 16 },
        };
        (frame, told.then_some(offload))
    }
}

/// The frames that a packet is on the wire.
fn on_the_wire(frame: &[u8], told: Option<Offload>, max: u16) -> Vec<Vec<u8>> {
    let at = Offsets::of(frame);
    let narrow = |n: usize| u16::try_from(n).unwrap();
    let room = max - narrow(at.payload - 14);
    let size = match told {
        Some(Offload { segment: 1.., .. }) => told.map_or(room, |told| told.segment.min(room)),
        _ => room,
    };
    let is_super_frame = frame.len() - at.payload > size.into();
    let unfinished = told.map_or_else(|| looks_partial(frame), |told| told.unfinished.is_some());
    let mut frame = frame.to_vec();
    let mut vnet = VnetHeader::default();
    if unfinished || is_super_frame {
        let pseudo = fold(pseudo(&frame, frame.len() - at.l4));
        put16(&mut frame, at.checksum, pseudo);
        vnet.flags = VnetHeader::NEEDS_CSUM;
        vnet.csum_start = narrow(at.l4);
        vnet.csum_offset = narrow(at.checksum - at.l4);
    }
    if is_super_frame {
        vnet.gso_type = if at.v6 {
            VnetHeader::GSO_TCPV6
        } else {
            VnetHeader::GSO_TCPV4
        };
        vnet.hdr_len = narrow(at.payload);
        vnet.gso_size = size;
    }
    segment(&frame, &vnet)
}

/// Frames in order, flow by flow, without what routers change and without ids that say nothing.
fn by_flow(frames: impl IntoIterator<Item = Vec<u8>>) -> HashMap<Vec<u8>, Vec<Vec<u8>>> {
    let mut flows = HashMap::<_, Vec<_>>::new();
    for frame in frames {
        let mut frame = without_hops(&frame);
        let at = Offsets::of(&frame);
        if !at.v6 && frame[20] & 0x40 != 0 {
            frame[18..20].fill(0);
        }
        let flow = [&frame[at.l4 - 8..at.l4 + 4], &[frame[at.protocol]]].concat();
        flows.entry(flow).or_default().push(frame);
    }
    flows
}

/// Compares flow by flow, and shows no more than where they differ.
fn assert_same(seen: &HashMap<Vec<u8>, Vec<Vec<u8>>>, expected: &HashMap<Vec<u8>, Vec<Vec<u8>>>) {
    assert_eq!(seen.len(), expected.len(), "flows");
    for (flow, expected) in expected {
        let seen = seen.get(flow).map_or(&[][..], Vec::as_slice);
        for (n, (seen, expected)) in seen.iter().zip(expected).enumerate() {
            let differ = |at: &usize| seen.get(*at) != expected.get(*at);
            if let Some(at) = (0..seen.len().max(expected.len())).find(differ) {
                let headers = |frame: &[u8]| format!("{:02x?}", &frame[12..frame.len().min(74)]);
                panic!(
                    "flow {flow:?}, frame {n}: byte {at} differs\n{}\n{}",
                    headers(seen),
                    headers(expected)
                );
            }
        }
        assert_eq!(seen.len(), expected.len(), "frames of flow {flow:?}");
    }
}
