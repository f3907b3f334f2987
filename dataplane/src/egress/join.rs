//! Joining TCP segments on their way to pods and native uplinks, and UDP datagrams on their way to
//! pods, by the rules of the kernel's GRO.
//!
//! Rules and their source: `tcp_gro_receive` and `tcp_gro_complete` (net/ipv4/tcp_offload.c),
//! `udp_gro_receive_segment` (net/ipv4/udp_offload.c), `inet_gro_receive` (net/ipv4/af_inet.c),
//! `ipv6_gro_receive` (net/ipv6/ip6_offload.c).
//! Headers must be equal but for lengths, checksums, the sequence number, which goes on, the IPv4
//! id, which goes on or stays, and FIN and PSH, which end the run. Other flags are not joined at
//! all, CWR among them; ECE joins with ECE. Datagrams are of one size, but for the last, and one
//! without a checksum is not joined. The kernel takes them apart again before a socket of the pod
//! sees them, unless that has asked for more at once (`udp_queue_rcv_skb`, `UDP_GRO`). On an uplink
//! nobody needs to: a virtual wire would carry them to a node that cannot know their size.
//!
//! What reads a joined packet trusts it (its checksum is partial), so that each segment's own
//! checksum is verified before. That reads the payload; the kernel's copy into its socket buffer
//! reads it next, then from the cache.

use super::drafts::{Drafts, MAX_BYTES, MAX_PIECES, Slot};
use super::message::Piece;
use super::offload::{header_bytes, lone_vnet, split, super_frame, super_frame_vnet};
use super::run::MAX_BLOCKS;
use crate::fib::PortId;
use crate::packet::{MAX_CHAIN, Packet};
use crate::verdict::Send;
use crate::wire::tcp::flag;
use crate::wire::{Headers, IpVersion, Ipv4Packet, Ipv6Packet, TcpSegment, UdpDatagram, protocol};

/// Open runs. A burst of 64 packets has few bulk flows; beyond these, one is closed for a new one.
const MAX_RUNS: usize = 16;

/// Flags that a segment may have and still be joined.
const JOINABLE: u16 = flag::ACK | flag::ECE | ENDING;

/// Flags that a segment may have as the last of its run.
const ENDING: u16 = flag::PSH | flag::FIN;

/// The runs that may still grow, one per flow and port at most.
#[derive(Debug)]
pub(super) struct Joins {
    runs: Vec<Run>,
    /// The run that makes room for the next one when all are in use; goes round.
    victim: usize,
}

/// A message of at least one segment that the next of its flow may join.
#[derive(Debug)]
struct Run {
    slot: Slot,
    port: PortId,
    flow_hash: u32,
    /// The first segment's.
    headers: Headers,
    /// Copy of the first segment's header bytes; the message's first piece once there is a second
    /// segment.
    bytes: Piece,
    /// The first segment's checksum was partial.
    partial: bool,
    /// Payload bytes of each segment but the last.
    size: u32,
    /// Payload bytes of all.
    payload: u32,
    segments: usize,
    /// Sequence number of the next segment; `None` of datagrams.
    next_seq: Option<u32>,
    /// IPv4 id of the last segment.
    id: u16,
    /// By how much the id grows, 0 or 1; known from the second segment on.
    id_step: Option<u16>,
    /// FIN and PSH of the last segment.
    ending: u16,
}

/// A segment or datagram that may be joined, as far as its own headers say.
#[derive(Debug, Clone, Copy)]
pub(super) struct Segment {
    /// Sequence number; `None` of a datagram.
    seq: Option<u32>,
    id: u16,
    /// TCP flags; none of a datagram.
    flags: u16,
    payload: u32,
}

impl Segment {
    /// The segment that `packet` is; `None` if it must not be joined, whatever its checksum says.
    #[inline]
    pub(super) fn of(packet: &Packet<'_>, headers: &Headers) -> Option<Self> {
        let payload = headers.payload_len();
        if headers.fragment || payload == 0 {
            return None;
        }
        let (ip, l4) = split(header_bytes(packet, headers)?, headers)?;
        let (seq, flags) = match headers.protocol {
            protocol::TCP => {
                let tcp = TcpSegment::new_checked(l4).ok()?;
                let flags = tcp.flags();
                let may = flags & !JOINABLE == 0 && flags & flag::ACK != 0;
                (Some(tcp.seq()), may.then_some(flags)?)
            }
            protocol::UDP => {
                let udp = UdpDatagram::new_checked(l4).ok()?;
                let is_whole = u32::from(udp.len()) == headers.l4_len();
                (None, (is_whole && udp.checksum() != 0).then_some(0)?)
            }
            _ => return None,
        };
        let id = match headers.version {
            IpVersion::V4 => Ipv4Packet::new_checked(ip).ok()?.ident(),
            IpVersion::V6 => 0,
        };
        Some(Self {
            seq,
            id,
            flags,
            payload,
        })
    }

    /// Whether it may be joined on its way to a pod only.
    #[inline]
    pub(super) fn is_datagram(&self) -> bool {
        self.seq.is_none()
    }

    /// Sequence number of what follows it.
    #[inline]
    fn next_seq(&self) -> Option<u32> {
        self.seq.map(|seq| seq.wrapping_add(self.payload))
    }

    /// Whether others may follow it.
    #[inline]
    pub(super) fn can_lead(&self) -> bool {
        self.flags & ENDING == 0
    }
}

impl Joins {
    /// No run yet; all memory is made here.
    pub(super) fn new() -> Self {
        Self {
            runs: Vec::with_capacity(MAX_RUNS),
            victim: 0,
        }
    }

    /// The open run of the packet's flow.
    #[inline]
    pub(super) fn find(&self, send: &Send<'_>) -> Option<usize> {
        self.runs.iter().position(|run| {
            run.flow_hash == send.flow_hash
                && run.port == send.next_hop.port
                && same_flow(&run.headers, &send.headers)
        })
    }

    /// Whether `segment` goes on where run `index` ends, by all headers; its checksum is not
    /// looked at.
    pub(super) fn fits(
        &self,
        index: usize,
        drafts: &mut Drafts,
        packet: &Packet<'_>,
        headers: &Headers,
        segment: &Segment,
    ) -> bool {
        let Some(run) = self.runs.get(index) else {
            return false;
        };
        let room = drafts.message(run.slot).is_some_and(|message| {
            message.bytes as usize + segment.payload as usize <= MAX_BYTES
                && message.pieces.len() + MAX_CHAIN < MAX_PIECES
        });
        // What takes datagrams apart again has a limit, as for those of a tunnel.
        let is_full = run.next_seq.is_none() && run.segments == MAX_BLOCKS;
        room && !is_full
            && segment.seq == run.next_seq
            && segment.payload <= run.size
            && header_bytes(packet, headers).is_some_and(|bytes| {
                run.follows_id(drafts.header(run.bytes), segment)
                    && same_headers(drafts.header(run.bytes), bytes, &run.headers, headers)
                        == Some(true)
            })
    }

    /// Adds a segment that [`Joins::fits`] and whose checksum is right to run `index`.
    #[inline]
    pub(super) fn add(
        &mut self,
        index: usize,
        drafts: &mut Drafts,
        packet: &Packet<'_>,
        headers: &Headers,
        segment: &Segment,
    ) {
        let Some(run) = self.runs.get_mut(index) else {
            return;
        };
        if let Some(message) = drafts.message(run.slot) {
            if run.segments == 1 {
                message.replace_front(run.bytes);
            }
            for piece in packet.pieces(headers.payload.into(), segment.payload as usize) {
                message.append(piece);
            }
            message.packets += 1;
            message.joined += 1;
        }
        run.id_step = Some(segment.id.wrapping_sub(run.id));
        run.id = segment.id;
        run.next_seq = segment.next_seq();
        run.payload += segment.payload;
        run.segments += 1;
        run.ending = segment.flags & ENDING;
        if !segment.can_lead() || segment.payload < run.size {
            self.close(index, drafts);
        }
    }

    /// Begins a run with a segment that [`Segment::can_lead`] and whose checksum is right, in the empty
    /// message `slot`.
    #[inline]
    pub(super) fn lead(
        &mut self,
        slot: Slot,
        drafts: &mut Drafts,
        packet: &Packet<'_>,
        send: &Send<'_>,
        segment: &Segment,
    ) {
        let headers = &send.headers;
        let bytes = drafts.write(header_bytes(packet, headers).unwrap_or_default());
        if let Some(message) = drafts.message(slot) {
            for piece in packet.pieces(0, headers.end()) {
                message.append(piece);
            }
            message.packets = 1;
        }
        if self.runs.len() == MAX_RUNS {
            self.close(self.victim, drafts);
            self.victim = (self.victim + 1) % MAX_RUNS;
        }
        self.runs.push(Run {
            slot,
            port: send.next_hop.port,
            flow_hash: send.flow_hash,
            headers: *headers,
            bytes,
            partial: send.partial_checksum,
            size: segment.payload,
            payload: segment.payload,
            segments: 1,
            next_seq: segment.next_seq(),
            id: segment.id,
            id_step: None,
            ending: 0,
        });
    }

    /// Finishes run `index`: nothing joins it any more.
    #[inline]
    pub(super) fn close(&mut self, index: usize, drafts: &mut Drafts) {
        if index < self.runs.len() {
            self.runs.swap_remove(index).finish(drafts);
        }
    }

    /// Finishes the runs between two addresses, for a fragment that may be of any of them.
    pub(super) fn close_between(&mut self, send: &Send<'_>, drafts: &mut Drafts) {
        let of = |run: &Run| {
            run.port == send.next_hop.port
                && run.headers.src == send.headers.src
                && run.headers.dst == send.headers.dst
        };
        while let Some(index) = self.runs.iter().position(of) {
            self.close(index, drafts);
        }
    }

    /// Finishes all runs.
    pub(super) fn close_all(&mut self, drafts: &mut Drafts) {
        for run in self.runs.drain(..) {
            run.finish(drafts);
        }
    }
}

impl Run {
    /// Whether the id goes on as it has so far. Ids that stand still say nothing about order, and
    /// are allowed to with DF only (RFC 6864, 4.1).
    #[inline]
    fn follows_id(&self, first: &[u8], segment: &Segment) -> bool {
        if self.headers.version == IpVersion::V6 {
            return true;
        }
        let step = segment.id.wrapping_sub(self.id);
        match self.id_step {
            Some(expected) => step == expected,
            None if step == 0 => split(first, &self.headers)
                .and_then(|(ip, _)| Ipv4Packet::new_checked(ip).ok())
                .is_some_and(|ip| ip.dont_frag()),
            None => step == 1,
        }
    }

    /// Makes the message what its segments are: a lone packet as it came, or a super-frame.
    fn finish(self, drafts: &mut Drafts) {
        let headers = &self.headers;
        let mut vnet = lone_vnet(headers, self.partial);
        if self.segments > 1 {
            let l4_len = u32::from(headers.payload.saturating_sub(headers.l4)) + self.payload;
            super_frame(drafts.header_mut(self.bytes), headers, l4_len, self.ending);
            vnet = super_frame_vnet(headers, self.size, 0);
        }
        if let Some(message) = drafts.message(self.slot) {
            message.vnet = vnet;
        }
    }
}

/// Equal protocol, addresses and ports.
#[inline]
fn same_flow(a: &Headers, b: &Headers) -> bool {
    a.sport == b.sport
        && a.dport == b.dport
        && a.protocol == b.protocol
        && a.src == b.src
        && a.dst == b.dst
}

/// Whether two segments' header bytes agree in all that joining would lose: link addresses, TOS,
/// TTL, DF or flow label, and of TCP acknowledgement number, window, flags other than [`ENDING`]
/// and options. Protocol, addresses and ports are compared by [`same_flow`].
#[inline]
fn same_headers(a: &[u8], b: &[u8], a_at: &Headers, b_at: &Headers) -> Option<bool> {
    if (a_at.l3, a_at.l4, a_at.payload) != (b_at.l3, b_at.l4, b_at.payload) {
        return Some(false);
    }
    let l3 = usize::from(a_at.l3);
    let (a_ip, a_l4) = split(a, a_at)?;
    let (b_ip, b_l4) = split(b, b_at)?;
    let same_ip = match (a_at.version, b_at.version) {
        (IpVersion::V4, IpVersion::V4) => {
            let a = Ipv4Packet::new_checked(a_ip).ok()?;
            let b = Ipv4Packet::new_checked(b_ip).ok()?;
            a.tos() == b.tos() && a.hop_limit() == b.hop_limit() && a.dont_frag() == b.dont_frag()
        }
        (IpVersion::V6, IpVersion::V6) => {
            let a = Ipv6Packet::new_checked(a_ip).ok()?;
            let b = Ipv6Packet::new_checked(b_ip).ok()?;
            a.traffic_class() == b.traffic_class()
                && a.hop_limit() == b.hop_limit()
                && a.flow_label() == b.flow_label()
        }
        _ => false,
    };
    let same_l4 = a_at.protocol != protocol::TCP || same_tcp(a_l4, b_l4)?;
    Some(same_ip && same_l4 && a.get(..l3) == b.get(..l3))
}

#[inline]
fn same_tcp(a: &[u8], b: &[u8]) -> Option<bool> {
    let a = TcpSegment::new_checked(a).ok()?;
    let b = TcpSegment::new_checked(b).ok()?;
    Some(
        a.ack() == b.ack()
            && a.window() == b.window()
            && a.flags() | ENDING == b.flags() | ENDING
            && a.options() == b.options(),
    )
}

#[cfg(test)]
mod tests {
    use super::super::message::VnetHeader;
    use super::super::testing::{
        ACK, CWR, ECE, FIN, Out, PSH, Rig, SYN, Spec, URG, next_hop, payload, put16, wire,
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
}
