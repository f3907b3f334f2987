//! Gathering: the packets of a burst become as few messages as may be.
//!
//! Towards pods and native uplinks a packet goes as it is; TCP segments of one flow, and towards pods
//! UDP datagrams, are joined to a super-frame ([`super::join`]), and a super-frame stays one, with
//! the size of its segments told to the kernel. Towards tunnels blocks of equal size are concatenated ([`super::run`]); a
//! super-frame goes into the tunnel whole where there is a TAP to send it by, and is cut into such
//! blocks where there is none ([`super::cut`]).
//!
//! Order: messages leave in the order of creation. A packet either goes to the end of the one open
//! run of its flow, or that run is closed and the packet begins a message behind it. So packets of
//! one flow never overtake each other.

use super::cut::Cut;
use super::drafts::{Drafts, HEADER_BYTES, MAX_BYTES, MAX_MESSAGES};
use super::join::{Joins, Segment};
use super::message::{Message, To, TunnelLayers, VnetHeader};
use super::offload::{
    finish_checksum, header_bytes, is_sound, lone_vnet, super_frame, super_frame_vnet,
};
use super::run::{Runs, Way};
use crate::fib::{NextHopKind, Tables};
use crate::packet::Packet;
use crate::tunnel::{OuterHeader, encap};
use crate::verdict::{DropReason, Send};
use crate::wire::flow_hash::SourcePorts;
use crate::wire::tcp::flag;
use crate::wire::{EtherType, Headers, IpVersion, TcpSegment, protocol, udp, vxlan};

/// What became of a packet that was pushed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Pushed {
    /// It is in a message. Its frames are kept until that was sent.
    Gathered,
    /// There is no room left, and the packet is as it was: send what is there, [`Gather::clear`],
    /// and push it again. An empty `Gather` is never full.
    Full,
    /// It dies here.
    Drop(DropReason),
}

/// What a flush sends.
#[derive(Debug, Clone, Copy)]
pub struct Flush<'g> {
    /// Messages, to be sent in this order.
    pub messages: &'g [Message],
    /// The bytes that their header pieces name.
    pub headers: &'g [u8],
}

/// The messages of one worker between two flushes. Its memory is made once.
#[derive(Debug)]
pub struct Gather {
    drafts: Drafts,
    joins: Joins,
    runs: Runs,
    /// Whether a super-frame goes into a tunnel whole.
    whole: bool,
    source_ports: SourcePorts,
}

impl Default for Gather {
    fn default() -> Self {
        Self::new()
    }
}

impl Gather {
    /// Makes all memory: about 1 MiB, of which a burst of bulk traffic touches some 20 KiB.
    pub fn new() -> Self {
        Self {
            drafts: Drafts::new(),
            joins: Joins::new(),
            runs: Runs::new(),
            whole: false,
            source_ports: SourcePorts::ALL,
        }
    }

    /// Says whether super-frames go into tunnels whole: then their messages have
    /// [`Message::tunnel`]. They do not at the start.
    pub fn send_tunnels_whole(&mut self, whole: bool) {
        self.whole = whole;
    }

    /// Says which outer source ports tunnels have; all at the start. Not while there is something
    /// to send: a flow would go on in another message, before the one that it is in.
    pub fn set_source_ports(&mut self, ports: SourcePorts) {
        self.source_ports = ports;
    }

    /// Whether there is nothing to send.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.drafts.is_empty()
    }

    /// Adds `packet` to the messages, as `send` says.
    ///
    /// May change the packet's headers in place; with [`Pushed::Full`] it has not.
    #[inline]
    pub fn push(&mut self, packet: &mut Packet<'_>, send: &Send<'_>, tables: &Tables) -> Pushed {
        match tables.port(send.next_hop.port) {
            Some(port) => self.push_to(packet, send, port.ifindex, port.carries_runs),
            None => Pushed::Drop(DropReason::PortGone),
        }
    }

    /// Finishes what is open and shows all messages. Packets pushed later begin new messages.
    pub fn flush(&mut self) -> Flush<'_> {
        self.joins.close_all(&mut self.drafts);
        self.runs.close_all(&mut self.drafts);
        Flush {
            messages: self.drafts.messages(),
            headers: self.drafts.headers(),
        }
    }

    /// Forgets all messages, sent or not. Their packets' frames are free after this.
    pub fn clear(&mut self) {
        // A run that is still open must not outlive its message.
        self.joins.close_all(&mut self.drafts);
        self.runs.close_all(&mut self.drafts);
        self.drafts.clear();
    }

    /// As [`Gather::push`], to an interface that is known, and whether it carries runs uncut.
    pub(super) fn push_to(
        &mut self,
        packet: &mut Packet<'_>,
        send: &Send<'_>,
        ifindex: u32,
        carries_runs: bool,
    ) -> Pushed {
        let headers = &send.headers;
        // The parser has seen to both; a packet that was changed since must still not go out wrong.
        if headers.end() > packet.len() {
            return Pushed::Drop(match headers.version {
                IpVersion::V4 => DropReason::Ipv4BadTotalLength,
                IpVersion::V6 => DropReason::Ipv6BadPayloadLength,
            });
        }
        let Ok(segment) = segment_of(packet, send) else {
            return Pushed::Drop(DropReason::TooBig);
        };
        match (&send.next_hop.kind, segment) {
            (NextHopKind::Tunnel(outer), segment) => {
                let way = self.way(outer, send, ifindex);
                match segment {
                    None => {
                        // A node that receives by TAP as well would leave the run to its kernel.
                        let alone = carries_runs && self.whole;
                        self.push_block(packet, send, &Way { alone, ..way })
                    }
                    Some(size) if self.whole && fits_tunnel(&way, headers) => {
                        self.push_tunnelled(packet, send, &way, size)
                    }
                    Some(size) => self.push_cut(packet, send, &way, size),
                }
            }
            (NextHopKind::Pod | NextHopKind::Native, None) => {
                self.push_packet(packet, send, ifindex)
            }
            (NextHopKind::Pod | NextHopKind::Native, Some(size)) => {
                self.push_super_frame(packet, send, ifindex, size)
            }
            (NextHopKind::Unresolved | NextHopKind::Group(_), _) => {
                Pushed::Drop(DropReason::NoNeighbor)
            }
        }
    }

    /// The way into a tunnel. The outer header takes DSCP and ECN from the inner (RFC 2983, uniform
    /// model; RFC 6040, normal mode).
    #[inline]
    fn way<'t>(&self, outer: &'t OuterHeader, send: &Send<'_>, ifindex: u32) -> Way<'t> {
        Way {
            port: send.next_hop.port,
            ifindex,
            outer,
            source_port: self.source_port(send),
            tos: send.headers.tos,
            alone: false,
        }
    }

    /// The outer source port of a packet's flow.
    #[inline]
    pub(super) fn source_port(&self, send: &Send<'_>) -> u16 {
        self.source_ports.of(send.flow_hash)
    }

    /// A packet that goes as it is, alone or joined.
    fn push_packet(&mut self, packet: &Packet<'_>, send: &Send<'_>, ifindex: u32) -> Pushed {
        let Self { drafts, joins, .. } = self;
        let headers = &send.headers;
        if !drafts.has_room(1, headers.payload.into()) {
            return self.full();
        }
        let to_pod = matches!(send.next_hop.kind, NextHopKind::Pod);
        let segment = Segment::of(packet, headers).filter(|s| to_pod || !s.is_datagram());
        let run = joins.find(send);
        if let Some(segment) = segment {
            let fits = run.filter(|&run| joins.fits(run, drafts, packet, headers, &segment));
            if (fits.is_some() || segment.can_lead()) && is_sound(packet, send) {
                if let Some(run) = fits {
                    joins.add(run, drafts, packet, headers, &segment);
                    return Pushed::Gathered;
                }
                if let Some(run) = run {
                    joins.close(run, drafts);
                }
                let slot = drafts.open(to(send, ifindex));
                joins.lead(slot, drafts, packet, send, &segment);
                return Pushed::Gathered;
            }
        }
        if headers.fragment {
            joins.close_between(send, drafts);
        } else if let Some(run) = run {
            joins.close(run, drafts);
        }
        let slot = drafts.open(to(send, ifindex));
        if let Some(message) = drafts.message(slot) {
            for piece in packet.pieces(0, headers.end()) {
                message.append(piece);
            }
            message.vnet = lone_vnet(headers, send.partial_checksum);
            message.packets = 1;
        }
        Pushed::Gathered
    }

    /// A super-frame that the kernel or the NIC cuts, if anybody does: a pod takes it whole.
    fn push_super_frame(
        &mut self,
        packet: &mut Packet<'_>,
        send: &Send<'_>,
        ifindex: u32,
        size: u16,
    ) -> Pushed {
        let Self { drafts, joins, .. } = self;
        let headers = &send.headers;
        let Some(flags) = flags_of(packet, headers) else {
            return Pushed::Drop(DropReason::TooBig);
        };
        if !drafts.has_room(1, 0) {
            return self.full();
        }
        if let Some(run) = joins.find(send) {
            joins.close(run, drafts);
        }
        make_partial(packet, send);
        let slot = drafts.open(to(send, ifindex));
        if let Some(message) = drafts.message(slot) {
            for piece in packet.pieces(0, headers.end()) {
                message.append(piece);
            }
            message.vnet = super_frame_vnet(headers, size.into(), flags & flag::CWR);
            message.packets = 1;
        }
        Pushed::Gathered
    }

    /// A super-frame that goes into a tunnel whole, to be cut by the kernel or the NIC.
    fn push_tunnelled(
        &mut self,
        packet: &mut Packet<'_>,
        send: &Send<'_>,
        way: &Way<'_>,
        size: u16,
    ) -> Pushed {
        let Self { drafts, runs, .. } = self;
        let headers = &send.headers;
        let Some(flags) = flags_of(packet, headers) else {
            return Pushed::Drop(DropReason::TooBig);
        };
        let outer = way.outer.bytes();
        if !drafts.has_room(1, outer.len()) {
            return self.full();
        }
        runs.close_way(drafts, way);
        make_partial(packet, send);
        let slot = drafts.open(way.to());
        let header = drafts.write(outer);
        let narrow = |n: usize| u16::try_from(n).unwrap_or(u16::MAX);
        let bytes = drafts.header_mut(header);
        encap::begin(bytes, way.tos, way.source_port);
        encap::finish(bytes, narrow(vxlan::HEADER_LEN + headers.end()));
        let vnet = super_frame_vnet(headers, size.into(), flags & flag::CWR);
        let in_front = narrow(outer.len());
        if let Some(message) = drafts.message(slot) {
            message.append(header);
            for piece in packet.pieces(0, headers.end()) {
                message.append(piece);
            }
            message.vnet = VnetHeader {
                hdr_len: vnet.hdr_len + in_front,
                csum_start: vnet.csum_start + in_front,
                ..vnet
            };
            message.tunnel = Some(TunnelLayers {
                outer_transport: narrow(way.header().len() - udp::HEADER_LEN),
                inner_network: in_front + headers.l3,
            });
            message.packets = 1;
        }
        Pushed::Gathered
    }

    /// A packet that goes into a tunnel as one block.
    fn push_block(&mut self, packet: &mut Packet<'_>, send: &Send<'_>, way: &Way<'_>) -> Pushed {
        let Self { drafts, runs, .. } = self;
        let headers = &send.headers;
        let size = vxlan::HEADER_LEN + headers.end();
        if !Runs::can_hold(way, size) {
            return Pushed::Drop(DropReason::TooBig);
        }
        if !drafts.has_room(1, way.header().len() + vxlan::HEADER_LEN) {
            return self.full();
        }
        if send.partial_checksum {
            finish_checksum(packet, headers);
        }
        let slot = runs.take(drafts, way, size);
        let mut skip = 0;
        // In the headroom, the VXLAN header and the frame are one piece.
        if packet.push_front(vxlan::HEADER_LEN) {
            if let Some(bytes) = packet.head_mut().get_mut(..vxlan::HEADER_LEN) {
                bytes.copy_from_slice(way.vxlan());
            }
        } else {
            let header = drafts.write(way.vxlan());
            drafts.append(slot, header);
            skip = vxlan::HEADER_LEN;
        }
        if let Some(message) = drafts.message(slot) {
            for piece in packet.pieces(0, size - skip) {
                message.append(piece);
            }
            message.joined += u32::from(message.packets > 0);
            message.packets += 1;
        }
        Pushed::Gathered
    }

    /// A TCP super-frame that goes into a tunnel cut into blocks.
    fn push_cut(
        &mut self,
        packet: &Packet<'_>,
        send: &Send<'_>,
        way: &Way<'_>,
        size: u16,
    ) -> Pushed {
        let Self { drafts, runs, .. } = self;
        let Some(cut) = Cut::new(packet, &send.headers, way, size) else {
            return Pushed::Drop(DropReason::TooBig);
        };
        let (messages, header_bytes) = cut.room(way);
        if !Runs::can_hold(way, cut.block())
            || messages > MAX_MESSAGES
            || header_bytes > HEADER_BYTES
        {
            return Pushed::Drop(DropReason::TooBig);
        }
        if !drafts.has_room(messages, header_bytes) {
            return self.full();
        }
        cut.append(packet, &send.headers, way, runs, drafts);
        Pushed::Gathered
    }

    /// Pieces and header bytes that there is memory for.
    #[cfg(test)]
    pub(super) fn memory(&self) -> (usize, usize) {
        self.drafts.memory()
    }

    /// There is no room. In an empty `Gather` that is the packet's own fault.
    fn full(&self) -> Pushed {
        if self.is_empty() {
            Pushed::Drop(DropReason::TooBig)
        } else {
            Pushed::Full
        }
    }
}

/// Payload bytes of each segment that the packet is to be cut to; `None` if it goes as it is. The
/// size that its sender has chosen, which knows its peer and its path, but never more than fits.
///
/// # Errors
/// It does not fit and may not be cut: datagrams only where their sender would have.
#[inline]
pub(crate) fn segment_of(packet: &Packet<'_>, send: &Send<'_>) -> Result<Option<u16>, ()> {
    let headers = &send.headers;
    let told = packet.segment();
    if headers.l3_len <= u32::from(send.max_l3_len) && told.is_none() {
        return Ok(None);
    }
    let in_front = headers.payload.checked_sub(headers.l3).ok_or(())?;
    let room = send.max_l3_len.checked_sub(in_front).ok_or(())?;
    let size = told.map_or(room, |told| told.min(room));
    let may = headers.protocol == protocol::TCP && size > 0;
    if headers.payload_len() <= size.into() {
        Ok(None)
    } else if may && !headers.fragment {
        Ok(Some(size))
    } else {
        Err(())
    }
}

/// Whether the outer headers leave the packet's length below what an IP header can say.
#[inline]
fn fits_tunnel(way: &Way<'_>, headers: &Headers) -> bool {
    way.outer.bytes().len() + headers.end() <= MAX_BYTES
}

/// The TCP flags of a super-frame's first segment; `None` if there is no TCP header.
#[inline]
fn flags_of(packet: &Packet<'_>, headers: &Headers) -> Option<u16> {
    let tcp = header_bytes(packet, headers)?.get(headers.l4.into()..)?;
    Some(TcpSegment::new_checked(tcp).ok()?.flags())
}

/// No wire carried a packet of a super-frame's size. If its checksum is not partial yet, then a
/// device joined it, which had verified the segments and left the first one's checksum.
#[inline]
fn make_partial(packet: &mut Packet<'_>, send: &Send<'_>) {
    if !send.partial_checksum {
        super_frame(packet.head_mut(), &send.headers, send.headers.l4_len(), 0);
    }
}

/// Where a packet goes that goes as it is.
#[inline]
fn to(send: &Send<'_>, ifindex: u32) -> To {
    let ethertype = match send.headers.version {
        IpVersion::V4 => EtherType::IPV4,
        IpVersion::V6 => EtherType::IPV6,
    };
    To {
        port: send.next_hop.port,
        ifindex,
        ethertype: ethertype.0,
        uplink: !matches!(send.next_hop.kind, NextHopKind::Pod),
        encapsulated: false,
    }
}

#[cfg(test)]
mod tests;
