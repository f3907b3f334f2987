//! What peers and paths take: the sizes of segments that are told only to the pods themselves.
//!
//! A super-frame from a TAP comes with the size of its segments. One from an AF_XDP socket does not,
//! and the MTUs that the tables know say too much where the peer announced a smaller maximum segment
//! size, or where a router on a native path carries less: the pod would send the same bytes for ever.
//! So the worker overhears what pods are told, and cuts to that:
//!
//! - *Announced by the peer*, in its SYN or SYN-ACK: for that flow alone, since each socket has a
//!   maximum of its own. A flow begins once, so an entry has no end; the flow's use of it keeps it.
//! - *Learned of the path*, from an ICMP error: for both addresses, since the pod's kernel keeps it
//!   by destination and makes all its flows there fit, of which no router complains again. Not for
//!   the destination alone: errors are easily forged, and should harm no other pod. It ends after
//!   ten minutes, as in the pod.
//!
//! Both are kept as the largest IP packet, in bytes. Only what is less than the tables say is kept,
//! and only of packets on their way to a pod: so in most clusters the tables here are empty, and
//! cost a packet one comparison. All workers share them (module `table`), since the two directions
//! of a flow may be served by two.
//!
//! What was not overheard (a flow from before the start, one whose entry had to give way, or one
//! that outlives a raised MTU) is cut by the tables of routes and ports alone. Unlike a pod's kernel, nothing here follows sequence numbers: a forged SYN
//! or error makes segments small, but not below 256 bytes, and larger ones never.

mod table;

use std::hash::{BuildHasher as _, RandomState};
use std::net::IpAddr;

use rustix::time::{ClockId, clock_gettime};

use crate::fib::{NextHopKind, Tables};
use crate::packet::Packet;
use crate::verdict::Send;
use crate::wire::tcp::flag;
use crate::wire::{Headers, IcmpMessage, IpVersion, Ipv4Packet, Ipv6Packet, Sum, TcpSegment};
use crate::wire::{icmp, ipv4, ipv6, protocol, tcp};
use table::{Age, LimitTable};

/// Sets of the table of flows, 256 KiB: 32768 flows with a peer that takes less than the path. A
/// full node has 110 pods: 300 such flows for each.
const FLOW_SETS: usize = 4096;
/// Sets of the table of paths, 32 KiB: 4096 pairs of a pod and a destination behind a narrow link.
const PATH_SETS: usize = 512;
/// Linux' `net.ipv4.route.mtu_expires` and `net.ipv6.route.mtu_expires`, in seconds.
const PATH_LIFETIME: u64 = 600;

/// Nothing smaller is believed, in bytes: the headers of a super-frame of 64 KiB in segments of this
/// size, all options included, fit in one flush.
const LEAST: u16 = 256;
/// Nothing smaller is believed of an IPv4 path: Linux' `net.ipv4.route.min_pmtu`, in bytes.
const LEAST_PATH_V4: u16 = 552;
/// The least MTU of IPv6. An error that tells less is to be discarded (RFC 8201, section 4).
const LEAST_PATH_V6: u16 = 1280;

/// Maximum segment size without the option (RFC 9293, section 3.7.1), over IPv4 and IPv6.
const DEFAULT_MSS_V4: u16 = 536;
const DEFAULT_MSS_V6: u16 = 1220;

/// Offset of the TCP flags, but for the upper four, from the start of the header.
const FLAGS: usize = 13;

/// What was overheard, of all workers.
#[derive(Debug)]
pub struct Limits {
    announced: LimitTable,
    paths: LimitTable,
    /// Keys of one process, so that nobody can tell which flows meet in the tables.
    hasher: RandomState,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            announced: LimitTable::new(FLOW_SETS, None),
            paths: LimitTable::new(PATH_SETS, Some(PATH_LIFETIME)),
            hasher: RandomState::new(),
        }
    }
}

impl Limits {
    /// Learns from a packet that is to be sent, and lowers the size that it may be cut to by what
    /// was learned before.
    #[inline]
    pub fn apply(&self, packet: &Packet<'_>, send: &mut Send<'_>, tables: &Tables) {
        if matches!(send.next_hop.kind, NextHopKind::Pod) {
            match send.headers.protocol {
                protocol::TCP if is_syn(packet, &send.headers) => {
                    self.learn_announced(packet, send, tables);
                }
                protocol::ICMP | protocol::ICMPV6 => self.learn_path(packet, send, tables),
                _ => {}
            }
        }
        let len = send.headers.l3_len;
        if self.announced.concerns(len) || self.paths.concerns(len) {
            self.lower(packet, send);
        }
    }

    /// Lowers the size that a packet may be cut to.
    fn lower(&self, packet: &Packet<'_>, send: &mut Send<'_>) {
        let headers = &send.headers;
        // Who has told the size of segments, or finished the checksum, has cut it himself. What is
        // too long all the same was verified when that was found.
        let is_cut = !send.partial_checksum && headers.l3_len <= send.max_l3_len.into();
        if headers.protocol != protocol::TCP
            || headers.fragment
            || packet.offload().is_some()
            || is_cut
        {
            return;
        }
        let now = now();
        let mut least = send.max_l3_len;
        if self.announced.concerns(headers.l3_len) {
            let flow = (headers.src, headers.dst, headers.sport, headers.dport);
            let announced = self.announced.get(self.hasher.hash_one(flow), now);
            least = announced.map_or(least, |size| size.min(least));
        }
        if self.paths.concerns(headers.l3_len) {
            let pair = (headers.src, headers.dst);
            let path = self.paths.get(self.hasher.hash_one(pair), now);
            least = path.map_or(least, |size| size.min(least));
        }
        send.max_l3_len = least;
    }

    /// Learns from a SYN what the pod that it is for may send back.
    #[cold]
    fn learn_announced(&self, packet: &Packet<'_>, send: &Send<'_>, tables: &Tables) {
        let headers = &send.headers;
        let header = packet
            .head()
            .get(headers.l4.into()..headers.payload.into())
            .and_then(|bytes| TcpSegment::new_checked(bytes).ok());
        let (Some(header), Some(known)) = (header, known_limit(send, headers.src, tables)) else {
            return;
        };
        // Options come out of the segment (RFC 6691), so that the packet is as long with them.
        let (default, in_front) = match headers.version {
            IpVersion::V4 => (DEFAULT_MSS_V4, ipv4::HEADER_LEN + tcp::HEADER_LEN),
            IpVersion::V6 => (DEFAULT_MSS_V6, ipv6::HEADER_LEN + tcp::HEADER_LEN),
        };
        // As in Linux, an option of zero is none.
        let announced = header.max_segment_size().filter(|mss| *mss > 0);
        let in_front = u16::try_from(in_front).unwrap_or(u16::MAX);
        let limit = announced.unwrap_or(default).saturating_add(in_front);
        let back = (headers.dst, headers.src, headers.dport, headers.sport);
        let hash = self.hasher.hash_one(back);
        if limit < known {
            self.announced.put(hash, limit.max(LEAST), now());
        } else {
            // Of an earlier flow between the same ports.
            self.announced.remove(hash);
        }
    }

    /// Learns from an ICMP error what the path of the pod that it is for takes.
    #[cold]
    fn learn_path(&self, packet: &Packet<'_>, send: &Send<'_>, tables: &Tables) {
        let headers = &send.headers;
        if headers.fragment {
            return;
        }
        let message = packet.head().get(headers.l4.into()..headers.end());
        let Some((destination, mtu)) = message.and_then(|message| too_big(message, headers)) else {
            return;
        };
        let pair = (headers.dst, destination);
        if known_limit(send, destination, tables).is_some_and(|known| mtu < known) {
            self.paths.put(self.hasher.hash_one(pair), mtu, now());
        }
    }
}

/// The largest packet in bytes that the tables let the pod, to which `send` goes, send to
/// `destination`, by any next hop of a group; `None` where they know no route: those packets are
/// the kernel's.
fn known_limit(send: &Send<'_>, destination: IpAddr, tables: &Tables) -> Option<u16> {
    let pod = tables.port(send.next_hop.port)?;
    Some(pod.mtu.min(tables.lookup(destination)?.widest()))
}

#[inline]
fn is_syn(packet: &Packet<'_>, headers: &Headers) -> bool {
    let flags = packet.head().get(usize::from(headers.l4) + FLAGS);
    !headers.fragment && flags.is_some_and(|flags| u16::from(*flags) & flag::SYN != 0)
}

/// What an ICMP message says if it is an error about a packet that was too big and that its receiver
/// has sent: that packet's destination, and the MTU in bytes.
fn too_big(message: &[u8], headers: &Headers) -> Option<(IpAddr, u16)> {
    let error = IcmpMessage::new_checked(message).ok()?;
    let quoted = error.payload();
    let (source, destination, mtu): (IpAddr, IpAddr, u16) =
        match (headers.version, error.msg_type(), error.msg_code()) {
            (IpVersion::V4, icmp::v4::DST_UNREACHABLE, icmp::v4::FRAG_NEEDED) => {
                let ip = Ipv4Packet::new_checked(quoted).ok()?;
                let mtu = u16::try_from(error.rest() & 0xffff).ok()?;
                let mtu = mtu.max(LEAST_PATH_V4);
                (ip.src_addr().into(), ip.dst_addr().into(), mtu)
            }
            (IpVersion::V6, icmp::v6::PACKET_TOO_BIG, _) => {
                let ip = Ipv6Packet::new_checked(quoted).ok()?;
                let mtu = u16::try_from(error.rest()).ok()?;
                if mtu < LEAST_PATH_V6 {
                    return None;
                }
                (ip.src_addr().into(), ip.dst_addr().into(), mtu)
            }
            _ => return None,
        };
    let seed = match headers.version {
        IpVersion::V4 => Sum::default(),
        IpVersion::V6 => headers.pseudo_header(headers.l4_len()),
    };
    (source == headers.dst && error.verify_checksum(seed)).then_some((destination, mtu))
}

/// The coarse clock costs no read of the hardware, and is exact enough.
fn now() -> Age {
    let now = clock_gettime(ClockId::MonotonicCoarse);
    Age::at(u64::try_from(now.tv_sec).unwrap_or(0))
}

#[cfg(test)]
mod tests;
