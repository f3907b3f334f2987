//! Joining TCP segments on their way to pods and native uplinks, and UDP datagrams on their way to
//! pods, by the rules of the kernel's GRO.
//!
//! Rules and their source: `tcp_gro_receive` and `tcp_gro_complete` (net/ipv4/tcp_offload.c),
//! `udp_gro_receive_segment` (net/ipv4/udp_offload.c), `inet_gro_receive` (net/ipv4/af_inet.c),
//! `ipv6_gro_receive` (net/ipv6/ip6_offload.c).
//! Headers must be equal but for lengths, checksums, the sequence number, which goes on, the IPv4
//! id, which goes on or stays, and FIN and PSH, which end the run. Other flags are not joined at
//! all, CWR and the reserved one of IPv4 among them; ECE joins with ECE. Datagrams are of one size,
//! but for the last, and one without a checksum is not joined. The kernel takes them apart again
//! before a socket of the pod sees them, unless that has asked for more at once
//! (`udp_queue_rcv_skb`, `UDP_GRO`). On an uplink nobody needs to: a virtual wire would carry them
//! to a node that cannot know their size.
//!
//! `tests/kernel_gro.rs` holds it against the kernel: what is joined here, the kernel joins to the
//! same bytes. It joins more (Linux 6.18): segments without ACK, or with AE or reserved bits, if
//! they agree; equal IPv4 ids without DF; up to 65535 bytes of IP, not of Ethernet. A datagram, or a
//! segment of a wrong checksum, that it does not join overtakes what it holds of the flow; here it
//! ends the run. It joins less: not more than 64 datagrams (`UDP_GRO_CNT_MAX`), here 128; and no
//! packet with bytes behind it, which here are cut off.
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
            IpVersion::V4 => {
                let ip = Ipv4Packet::new_checked(ip).ok()?;
                (!ip.reserved_flag()).then(|| ip.ident())?
            }
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
mod tests;
