//! The forwarding decision: a pure function of a packet and the tables.
//!
//! No I/O, no clock, no log, no lock, no allocation. Tests, fuzzing and benches call the very
//! function that the workers call.
//!
//! Of the packet's bytes it changes next to nothing: outer headers are pulled, and [`Send::rewrite`] makes
//! of what is left what leaves. Between the two it is shown to [`crate::watch`]. What depends on how
//! it is sent (segmentation, checksums, outer headers) is left to egress, which learns it from [`Send`].

use std::net::IpAddr;

use crate::fib::{NextHop, NextHopKind, PortId, Tables};
use crate::packet::Packet;
use crate::tunnel::{Congestion, decap};
use crate::verdict::{DropReason, Send, Verdict};
use crate::wire::parse::{Headers, IpVersion, parse_to};
use crate::wire::{
    Ipv4Packet, Ipv6Packet, UdpDatagram, checksum, ethernet, flow_hash, ipv4, ipv6, protocol,
};

/// Decides what becomes of `packet`, which came in by the port `from`. One that is sent begins at the
/// Ethernet header that is to be sent, and is then to be given to [`Send::rewrite`].
///
/// A copy for each caller, so that a second one, such as a trace, is no reason for the compiler to move
/// it out of the worker's loop.
#[inline(always)]
pub fn forward<'t>(packet: &mut Packet<'_>, from: PortId, tables: &'t Tables) -> Verdict<'t> {
    match route(packet, from, tables) {
        Ok(send) => Verdict::Send(send),
        Err(reason) => Verdict::Drop(reason),
    }
}

#[inline(always)]
fn route<'t>(
    packet: &mut Packet<'_>,
    from: PortId,
    tables: &'t Tables,
) -> Result<Send<'t>, DropReason> {
    let ingress = tables.port(from).ok_or(DropReason::PortGone)?;
    let mut ingress_mtu = ingress.mtu;
    let mut congestion = Congestion::default();
    if ingress.is_uplink {
        let decapped = decap(packet, tables)?;
        ingress_mtu = ingress_mtu.saturating_sub(decapped.overhead);
        congestion = decapped.congestion;
    }

    let mut headers = Headers::UNREAD;
    parse_to(
        &mut headers,
        packet.head(),
        ethernet::HEADER_LEN,
        packet.len(),
    )?;
    headers.tos = congestion.combined(headers.tos)?;
    if headers.hop_limit <= 1 {
        return Err(DropReason::TtlExpired);
    }
    let partial_checksum = match packet.offload() {
        // The kernel knows; also of what it has joined, whatever the wire carried.
        Some(offload) => match offload.unfinished {
            Some(start) if start != headers.l4 => {
                finish_inside(packet, &headers, start, offload.checksum);
                false
            }
            unfinished => unfinished.is_some(),
        },
        None if !is_partial(packet, &headers) => false,
        None if ingress.accept_partial => true,
        // One finished checksum in 65536 looks unfinished.
        None if is_finished(packet, &headers) => false,
        None => return Err(DropReason::PartialChecksum),
    };

    let flow_hash = flow_hash::hash(&headers);
    let next_hop = next_hop(headers.dst, flow_hash, tables)?;
    match next_hop.kind {
        NextHopKind::Unresolved | NextHopKind::Group(_) => return Err(DropReason::NoNeighbor),
        // A packet from another node ends here: sending it on would make loops possible.
        NextHopKind::Native | NextHopKind::Tunnel(_) if ingress.is_uplink => {
            return Err(DropReason::NotLocal);
        }
        _ => {}
    }
    // A super-frame is cut to what both the sender's link and the path carry.
    let max_l3_len = next_hop.mtu.min(ingress_mtu);
    let in_front = u32::from(headers.payload.saturating_sub(headers.l3));
    let longest = match packet.segment() {
        Some(segment) => headers.l3_len.min(in_front + u32::from(segment)),
        None => headers.l3_len,
    };
    if longest > u32::from(max_l3_len) {
        if headers.protocol != protocol::TCP || headers.fragment {
            return Err(DropReason::TooBig);
        }
        // Its segments get new checksums, which must not make a damaged packet good.
        if packet.segment().is_none() && !partial_checksum && !is_finished(packet, &headers) {
            return Err(DropReason::BadChecksum);
        }
    }

    headers.hop_limit -= 1;
    Ok(Send {
        next_hop,
        flow_hash,
        headers,
        partial_checksum,
        max_l3_len,
    })
}

impl Send<'_> {
    /// Makes of a packet that [`crate::forward`] sends what leaves: without padding, with the MACs of its
    /// next station, one hop fewer (RFC 1812, section 5.3.1; RFC 8200, section 3), and the congestion mark
    /// of the tunnel that it came by.
    #[inline(always)]
    pub fn rewrite(&self, packet: &mut Packet<'_>) {
        let Self {
            headers, next_hop, ..
        } = self;
        packet.truncate(headers.end());
        let head = packet.head_mut();
        if let Some(macs) = head.get_mut(..next_hop.l2.0.len()) {
            macs.copy_from_slice(&next_hop.l2.0);
        }
        let Some(bytes) = head.get_mut(usize::from(headers.l3)..) else {
            return;
        };
        // As arrays, whose length is checked once.
        match headers.version {
            IpVersion::V4 => {
                if let Some(header) = bytes.first_chunk_mut::<{ ipv4::HEADER_LEN }>() {
                    let mut ip = Ipv4Packet::new_unchecked(header);
                    ip.decrement_hop_limit();
                    if ip.tos() != headers.tos {
                        ip.rewrite_tos(headers.tos);
                    }
                }
            }
            IpVersion::V6 => {
                if let Some(header) = bytes.first_chunk_mut::<{ ipv6::HEADER_LEN }>() {
                    let mut ip = Ipv6Packet::new_unchecked(header);
                    ip.decrement_hop_limit();
                    if ip.traffic_class() != headers.tos {
                        ip.set_traffic_class(headers.tos);
                    }
                }
            }
        }
    }
}

/// The next hop to `destination` of the flow with that hash; it may be unresolved.
#[inline(always)]
pub(crate) fn next_hop(
    destination: IpAddr,
    flow_hash: u32,
    tables: &Tables,
) -> Result<&NextHop, DropReason> {
    let next_hop = tables.lookup(destination).ok_or(DropReason::NoRoute)?;
    if let NextHopKind::Group(group) = &next_hop.kind {
        let member = tables.member(group, flow_hash);
        return member.ok_or(DropReason::NoNeighbor);
    }
    Ok(next_hop)
}

/// Whether the L4 checksum is unfinished (CHECKSUM_PARTIAL, design fact 3): its field then holds
/// the folded sum of the pseudo-header. One finished checksum in 65536 looks the same; finishing it
/// again gives the same value, so nothing is lost by the mistake.
#[inline]
pub(crate) fn is_partial(packet: &Packet<'_>, headers: &Headers) -> bool {
    let field = headers
        .checksum_offset()
        .and_then(|at| packet.head().get(at..at + 2));
    match field {
        // Over UDP, zero means that there is no checksum.
        Some(&[0, 0]) if headers.protocol == protocol::UDP => false,
        Some(&[high, low]) => {
            let pseudo_header = headers.pseudo_header(headers.l4_len());
            checksum::is_partial(u16::from_be_bytes([high, low]), pseudo_header)
                && fills_packet(packet, headers)
        }
        _ => false,
    }
}

/// Finishes the checksum of a packet inside the packet: a pod's own tunnel left it to the device.
#[cold]
fn finish_inside(packet: &mut Packet<'_>, headers: &Headers, start: u16, field: u16) {
    let start = usize::from(start);
    let len = headers.end().saturating_sub(start);
    packet.finish_checksum(start, len, field.into());
}

/// Whether the L4 part is all that follows the IP header. A UDP datagram may be shorter, with
/// options behind it (RFC 9868) that its checksum does not cover; no offload makes such packets.
#[inline]
fn fills_packet(packet: &Packet<'_>, headers: &Headers) -> bool {
    let udp = packet
        .head()
        .get(headers.l4.into()..)
        .map(UdpDatagram::new_checked);
    headers.protocol != protocol::UDP
        || matches!(udp, Some(Ok(udp)) if u32::from(udp.len()) == headers.l4_len())
}

/// Whether the L4 checksum is right. Reads the whole packet: for the few that are neither the work
/// of TSO nor left as they are.
#[cold]
fn is_finished(packet: &Packet<'_>, headers: &Headers) -> bool {
    packet.checksum_is_right(headers)
}

#[cfg(test)]
mod drop_tests;
#[cfg(test)]
mod oracle_tests;
#[cfg(test)]
mod tests;
