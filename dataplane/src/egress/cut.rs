//! Cutting a TCP super-frame into the blocks of a tunnel.
//!
//! Each segment gets a header block of its own (VXLAN, Ethernet, IP, TCP) with finished checksums;
//! the payload stays where it is. The rules are the kernel's (`tcp_gso_segment`,
//! net/ipv4/tcp_offload.c; `inet_gso_segment`, net/ipv4/af_inet.c): sequence number and IPv4 id go
//! on, FIN and PSH are on the last segment only, CWR on the first only. `tests/kernel_gso.rs` holds
//! the segments against the kernel's, byte by byte.

use super::drafts::Drafts;
use super::message::Piece;
use super::offload::{header_bytes, set_ip_len, split, split_mut};
use super::run::{Runs, Way};
use crate::packet::Packet;
use crate::wire::tcp::flag;
use crate::wire::{Headers, IpVersion, Ipv4Packet, TcpSegment, protocol, vxlan};

/// Longest header block: VXLAN, Ethernet, IPv6 and TCP with all options.
const MAX_HEADER: usize = 8 + 14 + 40 + 60;

/// How a super-frame is to be cut.
#[derive(Debug)]
pub(super) struct Cut {
    /// Payload bytes of each segment but the last.
    size: usize,
    /// Payload bytes of all.
    payload: usize,
    /// The header block of the first segment; the next ones are made from it.
    bytes: [u8; MAX_HEADER],
    /// Its length.
    header_len: usize,
    ident: u16,
    seq: u32,
    flags: u16,
}

impl Cut {
    /// The cut of `packet` to `size` bytes of payload each; `None` if it is not TCP or `size` is 0.
    pub(super) fn new(
        packet: &Packet<'_>,
        headers: &Headers,
        way: &Way<'_>,
        size: u16,
    ) -> Option<Self> {
        if headers.protocol != protocol::TCP || headers.fragment || size == 0 {
            return None;
        }
        let head = header_bytes(packet, headers)?;
        let (ip, tcp) = split(head, headers)?;
        let tcp = TcpSegment::new_checked(tcp).ok()?;
        let ident = match headers.version {
            IpVersion::V4 => Ipv4Packet::new_checked(ip).ok()?.ident(),
            IpVersion::V6 => 0,
        };
        let header_len = vxlan::HEADER_LEN + head.len();
        let mut bytes = [0; MAX_HEADER];
        let (vxlan, inner) = bytes
            .get_mut(..header_len)?
            .split_at_mut_checked(vxlan::HEADER_LEN)?;
        vxlan.copy_from_slice(way.vxlan());
        inner.copy_from_slice(head);
        Some(Self {
            size: size.into(),
            payload: headers.payload_len() as usize,
            bytes,
            header_len,
            ident,
            seq: tcp.seq(),
            flags: tcp.flags(),
        })
    }

    /// Bytes of a block, the last one excepted.
    #[inline]
    pub(super) fn block(&self) -> usize {
        self.header_len + self.size
    }

    /// How many messages and bytes of headers it takes at most.
    #[inline]
    pub(super) fn room(&self, way: &Way<'_>) -> (usize, usize) {
        let segments = self.payload.div_ceil(self.size);
        let per_message = Runs::blocks_per_message(way, self.block());
        // The first blocks may fill a run that is open, the last begin a message of their own.
        let messages = segments.div_ceil(per_message) + 1;
        let headers = segments * self.header_len + messages * way.header().len();
        (messages, headers)
    }

    /// Appends the segments to the runs of `way`. The packet is counted with the first.
    pub(super) fn append(
        mut self,
        packet: &Packet<'_>,
        headers: &Headers,
        way: &Way<'_>,
        runs: &mut Runs,
        drafts: &mut Drafts,
    ) {
        let from = headers.payload.into();
        let parts = packet.pieces(from, self.payload);
        let mut parts = Parts::new(parts.zip(packet.slices(from, self.payload)));
        let l4_header = u32::from(headers.payload.saturating_sub(headers.l4));
        let pseudo = headers.pseudo_header(0);
        let mut done = 0;
        while done < self.payload {
            let size = self.size.min(self.payload - done);
            let last = done + size == self.payload;
            let narrow = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
            let l4_len = l4_header + narrow(size);
            let mut sum = pseudo;
            sum.add_u32(l4_len);
            sum.add(self.patch(headers, narrow(done), l4_len, last));

            let slot = runs.take(drafts, way, self.header_len + size);
            let block = drafts.write(self.bytes.get(..self.header_len).unwrap_or_default());
            if let Some(message) = drafts.message(slot) {
                message.append(block);
                parts.take(size, |piece, bytes| {
                    message.append(piece);
                    sum.add(bytes);
                });
                message.cut += 1;
                if done == 0 {
                    message.joined += u32::from(message.packets > 0);
                    message.packets += 1;
                }
            }
            let inner = drafts.header_mut(block).get_mut(vxlan::HEADER_LEN..);
            if let Some((_, tcp)) = split_mut(inner.unwrap_or_default(), headers)
                && let Ok(mut tcp) = TcpSegment::new_checked(tcp)
            {
                tcp.set_checksum(sum.finish());
            }
            self.ident = self.ident.wrapping_add(1);
            done += size;
        }
    }

    /// Makes the header block that of the segment `done` bytes into the payload, with a TCP
    /// checksum of zero. Returns its TCP header.
    #[inline]
    fn patch(&mut self, headers: &Headers, done: u32, l4_len: u32, last: bool) -> &[u8] {
        let inner = self.bytes.get_mut(vxlan::HEADER_LEN..self.header_len);
        let Some((ip, tcp_bytes)) = split_mut(inner.unwrap_or_default(), headers) else {
            return &[];
        };
        if headers.version == IpVersion::V4
            && let Ok(mut ip) = Ipv4Packet::new_checked(&mut *ip)
        {
            ip.set_ident(self.ident);
        }
        set_ip_len(ip, headers, l4_len);
        let mut not_here = 0;
        if done > 0 {
            not_here |= flag::CWR;
        }
        if !last {
            not_here |= flag::FIN | flag::PSH;
        }
        if let Ok(mut tcp) = TcpSegment::new_checked(&mut *tcp_bytes) {
            tcp.set_seq(self.seq.wrapping_add(done));
            tcp.set_flags(self.flags & !not_here);
            tcp.set_checksum(0);
        }
        tcp_bytes
    }
}

/// The parts of a packet, to be taken by the byte.
struct Parts<'p, I> {
    rest: I,
    current: Option<(Piece, &'p [u8])>,
}

impl<'p, I: Iterator<Item = (Piece, &'p [u8])>> Parts<'p, I> {
    #[inline]
    fn new(mut parts: I) -> Self {
        Self {
            current: parts.next(),
            rest: parts,
        }
    }

    /// Gives the next `count` bytes to `each`, in as many parts as they are in; fewer bytes when
    /// the packet ends before.
    #[inline]
    fn take(&mut self, mut count: usize, mut each: impl FnMut(Piece, &'p [u8])) {
        while count > 0
            && let Some((piece, bytes)) = self.current
        {
            let here = count.min(bytes.len());
            let (piece, piece_rest) = piece.split_at(here);
            let (bytes, bytes_rest) = bytes.split_at(here);
            each(piece, bytes);
            count -= here;
            self.current = if bytes_rest.is_empty() {
                self.rest.next()
            } else {
                Some((piece_rest, bytes_rest))
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::message::VnetHeader;
    use super::super::testing::{
        ACK, CWR, FIN, PSH, Rig, Spec, decap, payload, segment, tunnel, wire,
    };

    /// Source ports and inner frames of all messages.
    fn inner(rig: &mut Rig, v6_underlay: bool, spec: &Spec) -> (Vec<u32>, Vec<(u16, Vec<u8>)>) {
        let out = rig.send(&tunnel(v6_underlay, 2), 1430, std::slice::from_ref(spec));
        assert_eq!(out.iter().map(|o| o.packets).sum::<u32>(), 1);
        assert_eq!(out[0].packets, 1);
        let cuts = out.iter().map(|o| o.cut).collect();
        let frames = out.iter().flat_map(wire).map(|frame| decap(&frame));
        (cuts, frames.collect())
    }

    #[test]
    fn the_segments_are_those_that_the_kernel_makes() {
        for v6 in [false, true] {
            for v6_underlay in [false, true] {
                let spec = Spec {
                    v6,
                    tos: 0xb9,
                    flags: ACK | CWR | PSH | FIN,
                    partial: true,
                    ..Spec::tcp(u32::MAX - 5000, 65534, &payload(20_001))
                };
                let ip = if v6 { 40 } else { 20 };
                let vnet = VnetHeader {
                    flags: VnetHeader::NEEDS_CSUM,
                    gso_type: if v6 {
                        VnetHeader::GSO_TCPV6
                    } else {
                        VnetHeader::GSO_TCPV4
                    },
                    hdr_len: 14 + ip + 32,
                    gso_size: 1430 - ip - 32,
                    csum_start: 14 + ip,
                    csum_offset: 16,
                };
                let mut rig = Rig::new();
                rig.chunk = 1021;
                let (cuts, frames) = inner(&mut rig, v6_underlay, &spec);
                assert_eq!(cuts, [15]);
                let port = frames[0].0;
                assert!(port >= 49152);
                assert!(frames.iter().all(|(p, _)| *p == port));
                let frames: Vec<_> = frames.into_iter().map(|(_, frame)| frame).collect();
                assert_eq!(frames, segment(&spec.build(), &vnet));
                let flags: Vec<_> = frames
                    .iter()
                    .map(|f| f[14 + usize::from(ip) + 13])
                    .collect();
                assert_eq!(flags[0], ACK | CWR);
                assert_eq!(flags[1..14], [ACK; 13]);
                assert_eq!(flags[14], ACK | PSH | FIN);
            }
        }
    }

    #[test]
    fn what_one_message_cannot_hold_goes_on_in_the_next() {
        let spec = Spec {
            partial: true,
            ..Spec::tcp(1, 1, &payload(64_000))
        };
        // 1430 bytes of inner IP, 14 Ethernet and 8 VXLAN: 45 blocks and the outer header are
        // 65382 bytes; 64000 bytes are 46 segments of 1378 and one of 612.
        let (cuts, frames) = inner(&mut Rig::new(), false, &spec);
        assert_eq!(cuts, [45, 2]);
        assert_eq!(frames.len(), 47);
        let joined: Vec<u8> = frames.iter().flat_map(|(_, f)| f[66..].to_vec()).collect();
        assert_eq!(joined, spec.payload);
    }

    #[test]
    fn the_next_super_frame_goes_on_in_the_open_run() {
        let spec = |n: u16| Spec {
            partial: true,
            ..Spec::tcp(1 + u32::from(n) * 13780, n * 10, &payload(13_780))
        };
        let specs = [spec(0), spec(1), spec(2)];
        let out = Rig::new().send(&tunnel(false, 2), 1430, &specs);
        assert_eq!(out.len(), 1);
        assert_eq!((out[0].packets, out[0].joined, out[0].cut), (3, 2, 30));
        assert_eq!(out[0].vnet.gso_size, 1430 + 22);
        assert_eq!(wire(&out[0]).len(), 30);
    }

    #[test]
    fn a_complete_checksum_is_made_anew() {
        let spec = Spec::tcp(1, 1, &payload(4000));
        let (cuts, frames) = inner(&mut Rig::new(), true, &spec);
        assert_eq!(cuts, [3]);
        assert_eq!(frames.len(), 3);
    }
}
