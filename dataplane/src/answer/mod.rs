//! ICMP errors to the senders of packets that were dropped.
//!
//! A packet that is known to need an answer never gets here: the program on its port leaves it to the
//! kernel. What is answered here was redirected before the tables changed.
//!
//! [`Answer`] is as pure as [`crate::forward`]: whether there is to be one, and the packet turned into it
//! in its own frames. [`Answers`] is what a worker keeps between packets.

mod limiter;

use std::net::IpAddr;

use rustix::time::{ClockId, clock_gettime};

use crate::counters::Sheet;
use crate::fib::{NextHop, NextHopKind, PortId, Tables};
use crate::forward::{is_partial, next_hop};
use crate::packet::Packet;
use crate::verdict::{DropReason, Send};
use crate::wire::parse::{Headers, IpVersion, parse};
use crate::wire::{
    EtherType, EthernetFrame, IcmpError, Ipv4Packet, ethernet, flow_hash, icmp, icmp_error,
    protocol,
};
use limiter::Limiter;

/// The ICMP errors of one worker.
#[derive(Debug, Default)]
pub struct Answers {
    limiter: Limiter,
}

impl Answers {
    /// Turns `packet`, which came by the port `from` and which [`crate::forward`] has dropped, into an
    /// error to its sender; `None` when it gets none.
    #[cold]
    pub fn answer<'t>(
        &mut self,
        packet: &mut Packet<'_>,
        from: PortId,
        reason: DropReason,
        tables: &'t Tables,
        sheet: &Sheet,
    ) -> Option<Send<'t>> {
        if !has_answer(reason) {
            return None;
        }
        let (counters, now) = (sheet.port(from)?, now());
        // Before anything is read: all of a flow may be dropped.
        if !self.limiter.has(from, now) {
            counters.icmp_suppressed.add(1);
            return None;
        }
        let answer = Answer::to(packet, from, reason, tables)?;
        self.limiter.take(from, now);
        let send = answer.build(packet)?;
        counters.icmp_sent.add(1);
        Some(send)
    }
}

/// Whether there is anything to say. Only these come of a packet whose headers were read, the outer ones
/// pulled.
fn has_answer(reason: DropReason) -> bool {
    use DropReason::{NoRoute, TooBig, TtlExpired};
    matches!(reason, TtlExpired | NoRoute | TooBig)
}

/// The coarse clock costs no read of the hardware.
fn now() -> u64 {
    let now = clock_gettime(ClockId::MonotonicCoarse);
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    seconds * 1_000_000_000 + u64::try_from(now.tv_nsec).unwrap_or(0)
}

/// An ICMP error that is to be sent.
#[derive(Debug)]
pub struct Answer<'t> {
    error: IcmpError,
    next_hop: &'t NextHop,
    /// Of the dropped packet.
    about: Headers,
    /// Bytes of it that are quoted, from its IP header on.
    quoted: u16,
    /// Of the answer.
    headers: Headers,
    flow_hash: u32,
}

impl<'t> Answer<'t> {
    /// The answer to a packet that came by the port `from` and was dropped for `reason`; `None` when
    /// there is none: the reason has none, the packet must not have one, or no way leads back.
    pub fn to(
        packet: &Packet<'_>,
        from: PortId,
        reason: DropReason,
        tables: &'t Tables,
    ) -> Option<Self> {
        if !has_answer(reason) {
            return None;
        }
        let about = parse(packet.head(), ethernet::HEADER_LEN, packet.len()).ok()?;
        let local = tables.local()?;
        if !may_be_answered(packet, &about) || local.is_local(about.src) {
            return None;
        }
        let error = match reason {
            DropReason::TtlExpired => IcmpError::TimeExceeded,
            DropReason::NoRoute => IcmpError::NoRoute,
            _ => too_big(packet, &about, tables)?,
        };
        // Of this node's addresses the one that is next to its pod: what leads to the pods leads to it,
        // so that no filter on the way takes it for forged.
        let pod = match tables.port(from)?.is_uplink {
            true => about.dst,
            false => about.src,
        };
        let source = local.addresses.nearest(pod, is_routed)?;
        let mut headers = answering(&about, source);
        let flow_hash = flow_hash::hash(&headers);
        let next_hop = next_hop(headers.dst, flow_hash, tables).ok()?;
        if matches!(
            next_hop.kind,
            NextHopKind::Unresolved | NextHopKind::Group(_)
        ) {
            return None;
        }
        let room = icmp_error::most_quoted(about.version, next_hop.mtu);
        let quoted = u16::try_from(room.min(about.l3_len as usize)).ok()?;
        headers.l3_len =
            u32::try_from(icmp_error::header_len(about.version)).ok()? + u32::from(quoted);
        Some(Self {
            error,
            next_hop,
            about,
            quoted,
            headers,
            flow_hash,
        })
    }

    /// Turns the packet that it is the answer to into the answer; `None` when its head has no room in
    /// front, and then the packet is worth nothing.
    pub fn build(self, packet: &mut Packet<'_>) -> Option<Send<'t>> {
        let Self {
            about,
            next_hop,
            headers,
            flow_hash,
            ..
        } = self;
        finish_quoted(packet, &about);
        packet.forget_offload();
        packet.truncate(ethernet::HEADER_LEN + usize::from(self.quoted));
        if !packet.push_front(icmp_error::header_len(about.version)) {
            return None;
        }
        let head = packet.head_mut();
        let (link, rest) = head.split_at_mut_checked(ethernet::HEADER_LEN)?;
        let header = rest.get_mut(..icmp_error::header_len(about.version))?;
        link.first_chunk_mut().map(|macs| *macs = next_hop.l2.0)?;
        EthernetFrame::new_unchecked(link).set_ethertype(match about.version {
            IpVersion::V4 => EtherType::IPV4,
            IpVersion::V6 => EtherType::IPV6,
        });
        let ends = (headers.src, headers.dst);
        icmp_error::write(header, self.error, ends, about.tos, self.quoted);
        packet.finish_checksum(
            headers.l4.into(),
            headers.l4_len() as usize,
            icmp::CHECKSUM_OFFSET,
        );
        Some(Send {
            next_hop,
            flow_hash,
            headers,
            partial_checksum: false,
            max_l3_len: next_hop.mtu,
        })
    }
}

/// The headers of an answer from `source` to the sender of a packet, all but their length.
fn answering(about: &Headers, source: IpAddr) -> Headers {
    let protocol = match about.version {
        IpVersion::V4 => protocol::ICMP,
        IpVersion::V6 => protocol::ICMPV6,
    };
    // Both begin at an Ethernet header.
    let l4 = about.l3 + u16::from(icmp_error::ip_len(about.version));
    Headers {
        version: about.version,
        protocol,
        tos: icmp_error::tos(about.version, about.tos),
        hop_limit: icmp_error::HOP_LIMIT,
        l3: about.l3,
        l4,
        payload: l4,
        src: source,
        dst: about.src,
        ..Headers::UNREAD
    }
}

/// What to say of a packet that is too big: for the next hop, and not to be fragmented. One that is so
/// only for the link that it came by was joined by a device, and its sender can do nothing about that.
fn too_big(packet: &Packet<'_>, about: &Headers, tables: &Tables) -> Option<IcmpError> {
    let may_be_fragmented = about.version == IpVersion::V4
        && !packet
            .head()
            .get(about.l3.into()..)
            .is_some_and(|ip| Ipv4Packet::new_unchecked(ip).dont_frag());
    let mtu = next_hop(about.dst, flow_hash::hash(about), tables)
        .ok()?
        .mtu;
    (!may_be_fragmented && about.l3_len > mtu.into()).then_some(IcmpError::TooBig(mtu))
}

/// RFC 1812, section 4.3.2.7, and RFC 4443, section 2.4 (e): no answer to an ICMP error, to what is for
/// many, to fragments but the first, nor to a sender that is no one host.
///
/// For many by its link's address is nothing that comes here: the programs on the ports pass it to the
/// kernel, and decap knows one MAC. The MAC itself tells no more, since a program has tried on it whether
/// the packet has an unfinished checksum (`is_unfinished` in xdp-redirect/src/bpf/redirect.bpf.c).
fn may_be_answered(packet: &Packet<'_>, headers: &Headers) -> bool {
    let head = packet.head();
    let later_fragment = headers.version == IpVersion::V4
        && head
            .get(headers.l3.into()..)
            .is_none_or(|ip| Ipv4Packet::new_unchecked(ip).frag_offset() != 0);
    // A first fragment may end anywhere.
    let msg_type = head
        .get(usize::from(headers.l4))
        .filter(|_| headers.l4_len() > 0);
    let may_be_error = match headers.protocol {
        protocol::ICMP => msg_type.is_none_or(|kind| icmp::v4::may_be_error(*kind)),
        protocol::ICMPV6 => msg_type.is_none_or(|kind| icmp::v6::may_be_error(*kind)),
        _ => false,
    };
    !later_fragment && !may_be_error && is_routed(headers.src) && is_routed(headers.dst)
}

/// Whether routers forward packets from and to the address, and it is that of one host: the rule of the
/// programs on the ports (`scope` in xdp-redirect/src/bpf/rules.h).
fn is_routed(address: IpAddr) -> bool {
    match address {
        // Multicast, reserved and broadcast; this network.
        IpAddr::V4(v4) => {
            let first = v4.octets()[0];
            first < 224 && first != 0 && !v4.is_loopback() && !v4.is_link_local()
        }
        IpAddr::V6(v6) => {
            let scoped = v6.is_multicast() || v6.is_unicast_link_local();
            !scoped && !v6.is_unspecified() && !v6.is_loopback()
        }
    }
}

/// Finishes the packet's own L4 checksum before it is quoted, as its sender's device would have. Of a
/// super-frame the checksum is then as right as its length: that of one packet.
fn finish_quoted(packet: &mut Packet<'_>, headers: &Headers) {
    let l4 = usize::from(headers.l4);
    let unfinished = match packet.offload() {
        Some(offload) => offload.unfinished == Some(headers.l4),
        None => is_partial(packet, headers),
    };
    if let Some(at) = headers.checksum_offset()
        && unfinished
    {
        packet.finish_checksum(l4, headers.l4_len() as usize, at - l4);
    }
}

#[cfg(test)]
mod tests;
