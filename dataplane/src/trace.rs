//! What a worker would do with a packet: one of the kind that is asked about is made, and goes through
//! the functions that the workers call, with their tables. It is never sent.

mod frame;

use std::io;

use crate::answer::Answer;
use crate::egress::{Gather, Pushed, segment_of};
use crate::fib::{NextHop, NextHopKind, PortId, Tables};
use crate::forward::forward;
use crate::limits::Limits;
use crate::packet::{Offload, Packet};
use crate::verdict::{DropReason, Verdict};
use crate::wire::flow_hash::{self, SourcePorts};
use crate::wire::parse::parse;
use crate::xsk::{CHUNK_SIZE, Region};

pub(crate) use frame::{Ends, Made, make};

/// Bytes free in front of a packet: for outer headers, or those of an ICMP error.
const HEADROOM: usize = 256;
/// Frames that the longest packet needs.
const FRAMES: u32 = 20;

/// How workers serve the port that the packet comes by, and send.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Served<'a> {
    /// The port.
    pub(crate) port: PortId,
    /// Whether the packet comes by a TAP, which tells its segments.
    pub(crate) by_tap: bool,
    /// Whether workers have TAPs to send by.
    pub(crate) has_tap: bool,
    /// Outer source ports.
    pub(crate) source_ports: SourcePorts,
    /// What was overheard.
    pub(crate) limits: Option<&'a Limits>,
}

/// What a worker would do.
#[derive(Debug)]
pub(crate) struct Forwarded {
    /// Hash of the flow; `None` where the headers cannot be read.
    pub(crate) flow_hash: Option<u32>,
    /// How the packet leaves, or why it does not.
    pub(crate) outcome: Result<Sent, Dropped>,
}

/// A packet that is not sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Dropped {
    pub(crate) reason: DropReason,
    /// Whether there is an answer to its sender.
    pub(crate) answered: bool,
}

/// A packet that is sent.
#[derive(Debug, Clone)]
pub(crate) struct Sent {
    /// Its next hop.
    pub(crate) next_hop: NextHop,
    /// UDP source port of the tunnel, if it goes by one.
    pub(crate) source_port: Option<u16>,
    /// Largest L3 packet that may leave.
    pub(crate) largest: u16,
    /// How many packets of at most so many bytes become of it in the end.
    pub(crate) segments: u32,
    pub(crate) segment_bytes: u32,
    /// Whether it leaves by a TAP.
    pub(crate) by_tap: bool,
}

/// Gives a packet to the functions that workers call.
///
/// # Errors
/// When there is no memory for it.
pub(crate) fn forwarded(
    made: &Made,
    served: &Served<'_>,
    tables: &Tables,
) -> io::Result<Forwarded> {
    let (region, mut frames) = Region::new(FRAMES)?;
    let (mut rest, mut start, mut used) = (made.frame.as_slice(), HEADROOM, 0);
    for frame in &mut frames {
        if rest.is_empty() {
            break;
        }
        let (part, behind) = rest.split_at(rest.len().min(CHUNK_SIZE - start));
        frame.set_data(start, part.len());
        region.bytes_mut(frame).copy_from_slice(part);
        (rest, start, used) = (behind, 0, used + 1);
    }
    let frames = frames.get_mut(..used).unwrap_or_default();
    let packet = Packet::new(&region, frames).ok_or(io::ErrorKind::InvalidInput)?;
    let offload = served.by_tap.then(|| Offload {
        segment: made.segment.unwrap_or(0),
        unfinished: made.unfinished.map(|(start, _)| start),
        checksum: made.unfinished.map_or(0, |(_, field)| field),
    });
    let mut packet = packet.with_offload(offload);
    let inner = made.frame.get(made.inner..).unwrap_or_default();
    let headers = parse(inner, 14, inner.len());
    Ok(Forwarded {
        flow_hash: headers.ok().as_ref().map(flow_hash::hash),
        outcome: outcome(&mut packet, served, tables),
    })
}

fn outcome(packet: &mut Packet<'_>, served: &Served<'_>, tables: &Tables) -> Result<Sent, Dropped> {
    let mut send = match forward(packet, served.port, tables) {
        Verdict::Send(send) => send,
        Verdict::Drop(reason) => {
            let answered = Answer::to(packet, served.port, reason, tables).is_some();
            return Err(Dropped { reason, answered });
        }
    };
    if let Some(limits) = served.limits {
        limits.apply(packet, &mut send, tables);
    }
    send.rewrite(packet);
    let headers = send.headers;
    let in_front = u32::from(headers.payload.saturating_sub(headers.l3));
    let (segments, segment_bytes) = match segment_of(packet, &send) {
        Ok(Some(size)) => (
            headers.payload_len().div_ceil(size.into()),
            in_front + u32::from(size),
        ),
        _ => (1, headers.l3_len),
    };
    let mut gather = Gather::new();
    gather.send_tunnels_whole(served.has_tap);
    gather.set_source_ports(served.source_ports);
    let dropped = |reason| Dropped {
        reason,
        answered: false,
    };
    match gather.push(packet, &send, tables) {
        Pushed::Gathered => {}
        // An empty gathering is never full.
        Pushed::Full => return Err(dropped(DropReason::EgressFull)),
        Pushed::Drop(reason) => return Err(dropped(reason)),
    }
    let messages = gather.flush().messages;
    let is_cut = messages.iter().any(|message| message.is_cut_on_uplink());
    let tunnel = matches!(send.next_hop.kind, NextHopKind::Tunnel(_));
    Ok(Sent {
        next_hop: send.next_hop.clone(),
        source_port: tunnel.then(|| served.source_ports.of(send.flow_hash)),
        largest: send.max_l3_len,
        segments,
        segment_bytes,
        by_tap: served.has_tap && is_cut,
    })
}

#[cfg(test)]
mod tests;
