//! Runs: blocks of equal size to one tunnel, concatenated in one message.
//!
//! A block is a VXLAN header and an inner frame. One outer header goes before all blocks of a
//! message, and the kernel or the NIC repeats it for each (UDP GSO), so that all have the same
//! destination, source port and TOS. A shorter block may only be the last.
//!
//! Where nothing cuts the message before the next node has it, each block is a message of its own
//! ([`Way::alone`]): that node's program leaves a message of several to the kernel, which would
//! deliver it before those that a worker still holds.

use super::drafts::{Drafts, MAX_BYTES, MAX_PIECES, Slot};
use super::message::{Piece, To, VnetHeader};
use crate::fib::PortId;
use crate::packet::MAX_CHAIN;
use crate::tunnel::{OuterHeader, encap};
use crate::wire::{udp, vxlan};

/// Most blocks of a message: `UDP_MAX_SEGMENTS` (include/linux/udp.h); with more
/// `virtio_net_hdr_to_skb` refuses the message.
pub(super) const MAX_BLOCKS: usize = 128;

/// Open runs: tunnel and source port pairs of one burst. Beyond these, one is closed for a new one.
const MAX_RUNS: usize = 16;

/// The runs that may still grow, one per tunnel and source port at most.
#[derive(Debug)]
pub(super) struct Runs {
    runs: Vec<Run>,
    /// The run that makes room for the next one when all are in use; goes round.
    victim: usize,
}

/// Where a block goes, and what its outer header has of its own.
#[derive(Debug, Clone, Copy)]
pub(super) struct Way<'t> {
    /// The uplink.
    pub(super) port: PortId,
    /// Its interface.
    pub(super) ifindex: u32,
    /// The tunnel.
    pub(super) outer: &'t OuterHeader,
    /// Outer source port: the same for all packets of a flow.
    pub(super) source_port: u16,
    /// DSCP and ECN.
    pub(super) tos: u8,
    /// Whether no other block may follow in the same message.
    pub(super) alone: bool,
}

impl<'t> Way<'t> {
    /// Where its messages go.
    #[inline]
    pub(super) fn to(&self) -> To {
        To {
            port: self.port,
            ifindex: self.ifindex,
            ethertype: self.outer.ethertype(),
            uplink: true,
            encapsulated: true,
        }
    }

    /// The outer header template up to the end of UDP.
    #[inline]
    pub(super) fn header(&self) -> &'t [u8] {
        self.split().0
    }

    /// The finished VXLAN header.
    #[inline]
    pub(super) fn vxlan(&self) -> &'t [u8] {
        self.split().1
    }

    #[inline]
    fn split(&self) -> (&'t [u8], &'t [u8]) {
        let bytes = self.outer.bytes();
        bytes.split_at(bytes.len().saturating_sub(vxlan::HEADER_LEN))
    }
}

/// A message of at least one block that the next to the same tunnel and port may join.
#[derive(Debug)]
struct Run {
    slot: Slot,
    port: PortId,
    outer: OuterHeader,
    source_port: u16,
    tos: u8,
    /// The copy of the outer header, up to the end of UDP.
    header: Piece,
    /// Bytes of each block but the last.
    size: usize,
    /// Bytes of all blocks.
    payload: usize,
    blocks: usize,
}

impl Runs {
    /// No run yet; all memory is made here.
    pub(super) fn new() -> Self {
        Self {
            runs: Vec::with_capacity(MAX_RUNS),
            victim: 0,
        }
    }

    /// Whether a message can hold a block of `size` bytes at all.
    #[inline]
    pub(super) fn can_hold(way: &Way<'_>, size: usize) -> bool {
        way.header().len() + size <= MAX_BYTES
    }

    /// How many blocks of `size` bytes fill an empty message.
    #[inline]
    pub(super) fn blocks_per_message(way: &Way<'_>, size: usize) -> usize {
        let room = MAX_BYTES.saturating_sub(way.header().len());
        (room / size.max(1)).clamp(1, MAX_BLOCKS)
    }

    /// The message that the next block of `size` bytes is appended to: that of the open run, if it
    /// fits there, or a new one. The caller has asked for room for a message and its header, and
    /// appends `size` bytes before it calls again.
    #[inline]
    pub(super) fn take(&mut self, drafts: &mut Drafts, way: &Way<'_>, size: usize) -> Slot {
        if let Some(index) = self.find(way) {
            if let Some(slot) = self.extend(index, drafts, way, size) {
                return slot;
            }
            self.close(index, drafts);
        }
        self.open(drafts, way, size)
    }

    /// Finishes the run that `way` would go on with.
    #[inline]
    pub(super) fn close_way(&mut self, drafts: &mut Drafts, way: &Way<'_>) {
        if let Some(index) = self.find(way) {
            self.close(index, drafts);
        }
    }

    /// Finishes all runs.
    pub(super) fn close_all(&mut self, drafts: &mut Drafts) {
        for run in self.runs.drain(..) {
            run.finish(drafts);
        }
    }

    /// The open run of the tunnel and source port. Its TOS is not asked for: a flow whose TOS
    /// changes must not go on in a message before that with the other TOS.
    #[inline]
    fn find(&self, way: &Way<'_>) -> Option<usize> {
        self.runs.iter().position(|run| {
            run.source_port == way.source_port && run.port == way.port && run.outer == *way.outer
        })
    }

    #[inline]
    fn extend(
        &mut self,
        index: usize,
        drafts: &mut Drafts,
        way: &Way<'_>,
        size: usize,
    ) -> Option<Slot> {
        let run = self.runs.get_mut(index)?;
        let message = drafts.message(run.slot)?;
        let fits = run.tos == way.tos
            && size <= run.size
            && run.blocks < MAX_BLOCKS
            && message.bytes as usize + size <= MAX_BYTES
            && message.pieces.len() + MAX_CHAIN < MAX_PIECES;
        if !fits {
            return None;
        }
        let slot = run.slot;
        run.blocks += 1;
        run.payload += size;
        if size < run.size {
            self.close(index, drafts);
        }
        Some(slot)
    }

    fn open(&mut self, drafts: &mut Drafts, way: &Way<'_>, size: usize) -> Slot {
        if self.runs.len() == MAX_RUNS {
            self.close(self.victim, drafts);
            self.victim = (self.victim + 1) % MAX_RUNS;
        }
        let slot = drafts.open(way.to());
        let header = drafts.write(way.header());
        encap::begin(drafts.header_mut(header), way.tos, way.source_port);
        drafts.append(slot, header);
        let run = Run {
            slot,
            port: way.port,
            outer: way.outer.clone(),
            source_port: way.source_port,
            tos: way.tos,
            header,
            size,
            payload: size,
            blocks: 1,
        };
        if way.alone {
            run.finish(drafts);
        } else {
            self.runs.push(run);
        }
        slot
    }

    #[inline]
    fn close(&mut self, index: usize, drafts: &mut Drafts) {
        if index < self.runs.len() {
            self.runs.swap_remove(index).finish(drafts);
        }
    }
}

impl Run {
    /// Writes what depends on how many blocks came.
    fn finish(self, drafts: &mut Drafts) {
        let narrow = |n: usize| u16::try_from(n).unwrap_or(u16::MAX);
        encap::finish(drafts.header_mut(self.header), narrow(self.payload));
        let header_len = narrow(self.header.len());
        let udp_len = narrow(udp::HEADER_LEN);
        let mut vnet = VnetHeader {
            flags: VnetHeader::NEEDS_CSUM,
            csum_start: header_len.saturating_sub(udp_len),
            csum_offset: narrow(udp::CHECKSUM_OFFSET),
            ..VnetHeader::default()
        };
        if self.blocks > 1 {
            vnet.gso_type = VnetHeader::GSO_UDP_L4;
            vnet.hdr_len = header_len;
            vnet.gso_size = narrow(self.size);
        }
        if let Some(message) = drafts.message(self.slot) {
            message.vnet = vnet;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::message::VnetHeader;
    use super::super::testing::{Out, Rig, Spec, decap, get16, payload, tunnel, wire};

    fn inner(out: &[Out]) -> Vec<Vec<u8>> {
        let frames = out.iter().flat_map(wire);
        frames.map(|frame| decap(&frame).1).collect()
    }

    fn built(specs: &[Spec]) -> Vec<Vec<u8>> {
        specs.iter().map(Spec::build).collect()
    }

    fn shape(out: &[Out]) -> Vec<(u32, u32, u16)> {
        let shape = |o: &Out| (o.packets, o.joined, o.vnet.gso_size);
        out.iter().map(shape).collect()
    }

    #[test]
    fn a_lone_packet_has_finished_outer_headers() {
        for v6 in [false, true] {
            let spec = Spec {
                tos: 0x2a,
                ..Spec::udp(b"hello")
            };
            let out = Rig::new().send(&tunnel(v6, 7), 1430, std::slice::from_ref(&spec));
            let start = if v6 { 54 } else { 34 };
            let expected = VnetHeader {
                flags: VnetHeader::NEEDS_CSUM,
                csum_start: start,
                csum_offset: 6,
                ..VnetHeader::default()
            };
            assert_eq!(out[0].vnet, expected);
            assert_eq!(out[0].ethertype, if v6 { 0x86dd } else { 0x0800 });
            assert_eq!(out[0].pieces, 2);
            assert_eq!(inner(&out), [spec.build()]);
            let outer = &wire(&out[0])[0];
            assert_eq!(outer[..12], [2, 0, 0, 0, 1, 7, 2, 0, 0, 0, 1, 1]);
            if !v6 {
                assert_eq!(get16(outer, 18), 0, "the id of a single frame");
            }
        }
    }

    #[test]
    fn equal_blocks_share_a_message_and_a_shorter_one_ends_it() {
        let sizes = [100, 100, 100, 40, 100, 101, 101];
        let specs: Vec<_> = sizes.iter().map(|n| Spec::udp(&payload(*n))).collect();
        let out = Rig::new().send(&tunnel(false, 2), 1430, &specs);
        let block = 8 + 14 + 28;
        assert_eq!(
            shape(&out),
            [(4, 3, block + 100), (1, 0, 0), (2, 1, block + 101)]
        );
        assert_eq!(out[0].vnet.gso_type, VnetHeader::GSO_UDP_L4);
        assert_eq!(out[0].vnet.hdr_len, 42);
        assert_eq!(inner(&out), built(&specs));
        let ids: Vec<_> = wire(&out[0]).iter().map(|f| get16(f, 18)).collect();
        assert_eq!(ids, [0, 1, 2, 3]);
    }

    #[test]
    fn an_uplink_that_carries_runs_gets_none() {
        let specs: Vec<_> = std::iter::repeat_n(Spec::udp(b"abc"), 3).collect();
        let packets = |rig: &mut Rig| {
            let out = rig.send(&tunnel(false, 2), 1430, &specs);
            assert_eq!(inner(&out), built(&specs));
            out.iter().map(|o| o.packets).collect::<Vec<_>>()
        };
        let mut rig = Rig::whole();
        assert_eq!(packets(&mut rig), [3]);
        rig.carries_runs = true;
        assert_eq!(packets(&mut rig), [1, 1, 1]);
        // A super-frame between them is still one.
        let mut order = Vec::new();
        for spec in [&specs[0], &Spec::tcp(1, 1, &payload(5000)), &specs[0]] {
            let _ = rig.push(&tunnel(false, 2), 1430, &spec.build());
        }
        for out in rig.flush() {
            order.push((out.packets, out.vnet.gso_type));
        }
        let none = VnetHeader::GSO_NONE;
        assert_eq!(order, [(1, none), (1, VnetHeader::GSO_TCPV4), (1, none)]);
        // Without a TAP here there is none over there, and super-frames are runs as well.
        let mut rig = Rig::new();
        rig.carries_runs = true;
        assert_eq!(packets(&mut rig), [3]);
    }

    #[test]
    fn a_tunnel_a_port_or_a_tos_of_its_own_is_a_message_of_its_own() {
        let spec = Spec::udp(b"abc");
        let other_flow = Spec {
            sport: 40001,
            ..spec.clone()
        };
        let marked = Spec {
            tos: 3,
            ..spec.clone()
        };
        let (here, there) = (tunnel(false, 2), tunnel(false, 3));
        let mut rig = Rig::new();
        let order = [
            (&here, &spec),
            (&there, &spec),
            (&here, &other_flow),
            (&here, &spec),
            (&here, &marked),
            // Not to the message before: it would overtake the marked one.
            (&here, &spec),
            (&there, &spec),
        ];
        for (to, spec) in order {
            let _ = rig.push(to, 1430, &spec.build());
        }
        let out = rig.flush();
        let packets: Vec<_> = out.iter().map(|o| o.packets).collect();
        assert_eq!(packets, [2, 2, 1, 1, 1]);
    }

    #[test]
    fn no_message_has_more_than_128_blocks_or_64_kib() {
        let specs: Vec<_> = std::iter::repeat_n(Spec::udp(b"x"), 300).collect();
        let out = Rig::new().send(&tunnel(false, 2), 1430, &specs);
        let packets: Vec<_> = out.iter().map(|o| o.packets).collect();
        assert_eq!(packets, [128, 128, 44]);

        let specs: Vec<_> = std::iter::repeat_n(Spec::udp(&payload(3000)), 30).collect();
        for (v6, header) in [(false, 42), (true, 62)] {
            let out = Rig::new().send(&tunnel(v6, 2), 8900, &specs);
            let packets: Vec<_> = out.iter().map(|o| o.packets).collect();
            assert_eq!(packets, [21, 9]);
            assert_eq!(out[0].bytes.len(), header + 21 * 3050);
            assert_eq!(inner(&out), built(&specs));
        }
    }

    #[test]
    fn more_tunnels_than_runs_keep_order_and_count() {
        let mut rig = Rig::new();
        let mut expected = Vec::new();
        for n in 0..120_u8 {
            let to = tunnel(false, 2 + n % 20);
            let spec = Spec::udp(&[n; 9]);
            let pushed = rig.push(&to, 1430, &spec.build());
            assert_eq!(pushed, crate::egress::Pushed::Gathered);
            expected.push((to, n));
        }
        let out = rig.flush();
        assert_eq!(out.iter().map(|o| o.packets).sum::<u32>(), 120);
        for last in 0..20 {
            let of_tunnel = out.iter().filter(|o| o.bytes[33] == 2 + last);
            let seen: Vec<_> = of_tunnel
                .flat_map(wire)
                .map(|frame| *frame.last().unwrap())
                .collect();
            let sent: Vec<_> = (0..120).filter(|n| n % 20 == last).collect();
            assert_eq!(seen, sent);
        }
    }

    #[test]
    fn inner_checksums_are_finished_over_odd_chunks() {
        for (v6, udp) in [(false, false), (false, true), (true, false), (true, true)] {
            let partial = Spec {
                v6,
                udp,
                partial: true,
                ..Spec::tcp(1, 1, &payload(1001))
            };
            let finished = Spec {
                partial: false,
                ..partial.clone()
            };
            for chunk in [111, 333, 2000] {
                let mut rig = Rig::new();
                rig.chunk = chunk;
                let out = rig.send(&tunnel(v6, 2), 1430, std::slice::from_ref(&partial));
                assert_eq!(inner(&out), [finished.build()]);
            }
        }
    }

    #[test]
    fn a_udp_checksum_of_zero_is_sent_as_ffff() {
        // The payload is chosen so that everything sums to 0xffff.
        let mut spec = Spec {
            partial: true,
            ..Spec::udp(&[0, 0])
        };
        let frame = spec.build();
        let rest = frame[34..].chunks(2).map(|w| u64::from(get16(w, 0)));
        let mut sum: u64 = rest.sum();
        while sum > 0xffff {
            sum = (sum >> 16) + (sum & 0xffff);
        }
        spec.payload = (0xffff - u16::try_from(sum).unwrap())
            .to_be_bytes()
            .to_vec();
        let out = Rig::new().send(&tunnel(false, 2), 1430, std::slice::from_ref(&spec));
        assert_eq!(get16(&inner(&out)[0], 40), 0xffff);
    }

    #[test]
    fn without_headroom_the_vxlan_header_is_a_piece_of_its_own() {
        let specs = [Spec::udp(b"abc"), Spec::udp(b"def")];
        let mut rig = Rig::new();
        rig.headroom = 7;
        let out = rig.send(&tunnel(false, 2), 1430, &specs);
        // The first VXLAN header adjoins the outer header.
        assert_eq!(out[0].pieces, 4);
        assert_eq!(inner(&out), built(&specs));
    }
}
