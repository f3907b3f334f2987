//! What the tests of this folder share: next hops, and a rig that gathers packets made by hand.

use std::net::IpAddr;
use std::sync::Arc;

use podway_proto::types::{MacAddr, Vni};

use super::{Gather, Message, Pushed};
use crate::fib::{L2Rewrite, NextHop, NextHopKind, PortId};
use crate::packet::{Offload, Packet};
pub(super) use crate::testing::kernel::{Out, decap, segment, wire};
pub(super) use crate::testing::packets::*;
use crate::tunnel::OuterHeader;
use crate::verdict::Send;
use crate::wire::{Headers, flow_hash, parse};
use crate::xsk::{Frame, Region};

/// A next hop of `kind`; its L2 rewrite has been made already when gathering sees the packet.
pub(super) fn next_hop(port: u16, kind: NextHopKind) -> NextHop {
    NextHop {
        port: PortId(port),
        l2: L2Rewrite([0; 12]),
        mtu: 1450,
        kind,
    }
}

/// A tunnel of VNI 42 to a node of this number on an IPv4 or IPv6 underlay.
pub(super) fn tunnel(v6: bool, node: u8) -> NextHop {
    let address = |last: u8| match v6 {
        true => IpAddr::from([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7, last]),
        false => IpAddr::from([192, 0, 2, last]),
    };
    let mac = |last| MacAddr([2, 0, 0, 0, 1, last]);
    let (source, node) = ((mac(1), address(1)), (mac(node), address(node)));
    let outer = OuterHeader::new(source, node, 4789, Vni::try_from(42).unwrap());
    next_hop(9, NextHopKind::Tunnel(Box::new(outer.unwrap())))
}

/// A `Gather` with a region behind it.
pub(super) struct Rig {
    pub(super) region: Arc<Region>,
    free: Vec<Frame>,
    held: Vec<Frame>,
    pub(super) gather: Gather,
    /// Bytes per frame of the packets pushed next.
    pub(super) chunk: usize,
    /// Bytes free before the head.
    pub(super) headroom: usize,
    /// Payload bytes of each segment of the packets pushed next, as the kernel tells them; 0: it
    /// tells nothing.
    pub(super) segment: u16,
    /// Whether the interface that packets leave by carries runs uncut.
    pub(super) carries_runs: bool,
}

impl Rig {
    pub(super) fn new() -> Self {
        let (region, free) = Region::new(1024).unwrap();
        Self {
            region,
            free,
            held: Vec::new(),
            gather: Gather::new(),
            chunk: 3500,
            headroom: 256,
            segment: 0,
            carries_runs: false,
        }
    }

    /// One whose super-frames go into tunnels whole.
    pub(super) fn whole() -> Self {
        let mut rig = Self::new();
        rig.gather.send_tunnels_whole(true);
        rig
    }

    /// Pushes a frame, which `adapt` may give another `Send` than its headers make.
    pub(super) fn push_as(
        &mut self,
        next_hop: &NextHop,
        max_l3_len: u16,
        frame: &[u8],
        adapt: impl FnOnce(&mut Send<'_>),
    ) -> Pushed {
        let count = frame.len().div_ceil(self.chunk);
        let mut frames = self.free.split_off(self.free.len() - count);
        for (to, bytes) in frames.iter_mut().zip(frame.chunks(self.chunk)) {
            assert!(to.set_data(self.headroom, bytes.len()));
            self.region.bytes_mut(to).copy_from_slice(bytes);
        }
        let told = Offload {
            segment: self.segment,
            ..Offload::default()
        };
        let mut packet = Packet::new(&self.region, &mut frames)
            .unwrap()
            .with_offload((self.segment > 0).then_some(told));
        let headers = parse::parse(packet.head(), 14, packet.len()).unwrap();
        let mut send = Send {
            next_hop,
            headers,
            flow_hash: flow_hash::hash(&headers),
            partial_checksum: is_partial(frame, &headers),
            max_l3_len,
        };
        adapt(&mut send);
        let pushed = self
            .gather
            .push_to(&mut packet, &send, 11, self.carries_runs);
        if pushed == Pushed::Gathered {
            self.held.append(&mut frames);
        } else {
            self.free.append(&mut frames);
        }
        pushed
    }

    pub(super) fn push(&mut self, next_hop: &NextHop, max_l3_len: u16, frame: &[u8]) -> Pushed {
        self.push_as(next_hop, max_l3_len, frame, |_| ())
    }

    /// All messages; the rig is empty after it.
    pub(super) fn flush(&mut self) -> Vec<Out> {
        let flush = self.gather.flush();
        let read = |m: &Message| Out::read(m, flush.headers, &self.region, self.held.iter());
        let out = flush.messages.iter().map(read).collect();
        self.gather.clear();
        assert!(self.gather.is_empty());
        self.free.append(&mut self.held);
        out
    }

    /// Pushes each spec, which must find room, and flushes.
    pub(super) fn send(&mut self, next_hop: &NextHop, max_l3_len: u16, specs: &[Spec]) -> Vec<Out> {
        for spec in specs {
            let pushed = self.push(next_hop, max_l3_len, &spec.build());
            assert_eq!(pushed, Pushed::Gathered, "{spec:?}");
        }
        self.flush()
    }
}

fn is_partial(frame: &[u8], headers: &Headers) -> bool {
    let at = Offsets::of(frame);
    let l4_len = usize::from(headers.l3) + headers.l3_len as usize - at.l4;
    get16(frame, at.checksum) == fold(pseudo(frame, l4_len))
}
