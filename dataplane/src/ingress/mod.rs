//! Ingress: from a queue to a burst of packets.
//!
//! [`RingIngress`] takes descriptors from an AF_XDP socket: that of a port whose driver needs no
//! copy. [`RingReader`] copies packets from the worker's packet ring, where the tcx programs of all
//! other ports put most lone packets. [`TapIngress`] reads what they redirect to the worker's TAP,
//! TCP above all. A burst owns its frames until they are recycled, after the messages made of them were sent.

mod packet_ring;
mod ring;
mod tap;

use std::os::fd::BorrowedFd;

pub use packet_ring::RingReader;
pub use ring::{LEAST_POSTED, RingIngress};
pub use tap::TapIngress;

use crate::fib::PortId;
use crate::packet::{Offload, Packet};
use crate::xsk::{Frame, FramePool, Region};

/// Most packets of a burst.
pub const BURST: usize = 64;
/// Most frames of a burst; room for them is made once.
const MOST_FRAMES: usize = 2048;
/// Frames that hold the longest frame: 65535 bytes of IP, an Ethernet header, and any headroom.
const CHAIN: usize = 17;
/// Bytes left free in a packet's first frame, for headers.
const HEADROOM: usize = 256;
/// Most packets of a burst from a packet ring. They are small or few; the longer the burst, the more
/// of them leave together.
pub const RING_BURST: usize = 256;

/// Where a worker's packets come from.
#[derive(Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "a queue is made once and never copied; a box would cost a cache miss a burst"
)]
pub enum Ingress {
    /// One queue of one port.
    Ring(RingIngress),
    /// The TAP of many ports.
    Tap(TapIngress),
    /// The packet ring of many ports.
    PacketRing(RingReader),
}

impl Ingress {
    /// The descriptor to wait for; none where the worker looks into memory.
    pub fn fd(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Self::Ring(ring) => Some(ring.fd()),
            Self::Tap(tap) => Some(tap.fd()),
            Self::PacketRing(_) => None,
        }
    }

    /// Moves what has arrived into `burst`. `port` is that of a queue;
    /// [`PortId::NONE`] where each packet names its own.
    #[inline]
    pub fn receive(
        &mut self,
        port: PortId,
        burst: &mut Burst,
        pool: &mut FramePool,
        region: &Region,
    ) {
        match self {
            Self::Ring(ring) => ring.receive(port, burst),
            Self::Tap(tap) => tap.receive(burst, pool, region),
            Self::PacketRing(ring) => ring.receive(burst, pool, region),
        }
    }

    /// Gives the kernel frames of `pool` to go on with. The last `reserve` of the pool stay there,
    /// beyond [`LEAST_POSTED`].
    #[inline]
    pub fn refill(&mut self, pool: &mut FramePool, reserve: usize) {
        match self {
            Self::Ring(ring) => ring.refill(pool, reserve),
            // A read brings its frames along.
            Self::Tap(_) | Self::PacketRing(_) => {}
        }
    }

    /// Frames that wait for packets or are filled and not yet received.
    pub fn posted(&self) -> usize {
        match self {
            Self::Ring(ring) => ring.posted(),
            Self::Tap(tap) => tap.posted(),
            Self::PacketRing(_) => 0,
        }
    }

    /// What waits in the ring, and how much it has room for; none where that is not told.
    pub fn waiting(&mut self) -> Option<(usize, usize)> {
        match self {
            Self::Ring(ring) => Some(ring.waiting()),
            Self::Tap(_) => None,
            Self::PacketRing(ring) => Some(ring.waiting()),
        }
    }

    /// How much was taken from a TAP, and how much is taken at most: more may wait there then. None of
    /// what tells how much waits.
    pub fn taken(&self, burst: &Burst) -> Option<(usize, usize)> {
        match self {
            Self::Tap(_) => Some(TapIngress::taken(burst)),
            Self::Ring(_) | Self::PacketRing(_) => None,
        }
    }

    /// Frames that are posted for packets to come, and how many should be; none where none are.
    pub fn prepared(&self) -> Option<(usize, usize)> {
        match self {
            Self::Ring(ring) => Some(ring.prepared()),
            Self::Tap(_) | Self::PacketRing(_) => None,
        }
    }

    /// Frames of an unfinished chain.
    pub fn held(&self) -> usize {
        match self {
            Self::Ring(ring) => ring.held(),
            Self::Tap(_) | Self::PacketRing(_) => 0,
        }
    }

    /// Ends receiving and gives up all frames.
    pub fn close(self) -> Vec<Frame> {
        match self {
            Self::Ring(ring) => ring.close(),
            Self::Tap(tap) => tap.close(),
            Self::PacketRing(_) => Vec::new(),
        }
    }
}

/// Packets that were taken from one queue at once.
#[derive(Debug)]
pub struct Burst {
    frames: Vec<Frame>,
    /// What is known of each packet, in order.
    packets: Vec<Received>,
    /// Bells that came with them.
    bells: u64,
    /// System calls that it took.
    calls: u64,
}

#[derive(Debug, Clone, Copy)]
struct Received {
    port: PortId,
    /// How many of the burst's frames are its own.
    frames: usize,
    offload: Option<Offload>,
}

impl Default for Burst {
    fn default() -> Self {
        Self {
            frames: Vec::with_capacity(MOST_FRAMES),
            packets: Vec::with_capacity(RING_BURST),
            bells: 0,
            calls: 0,
        }
    }
}

impl Burst {
    /// Packets.
    #[inline]
    pub fn len(&self) -> usize {
        self.packets.len()
    }

    /// Whether there is no packet.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.packets.is_empty()
    }

    /// Frames of all packets.
    #[inline]
    pub fn frames(&self) -> usize {
        self.frames.len()
    }

    /// The packets with the ports that they came by, in the order in which they came.
    #[inline]
    pub fn packets<'a>(
        &'a mut self,
        region: &'a Region,
    ) -> impl Iterator<Item = (PortId, Packet<'a>)> {
        let mut rest = &mut self.frames[..];
        self.packets.iter().filter_map(move |received| {
            let (chain, behind) =
                std::mem::take(&mut rest).split_at_mut_checked(received.frames)?;
            rest = behind;
            let packet = Packet::new(region, chain)?.with_offload(received.offload);
            Some((received.port, packet))
        })
    }

    /// How often the worker was woken for its packet ring; none from now on.
    #[inline]
    pub fn take_bells(&mut self) -> u64 {
        std::mem::take(&mut self.bells)
    }

    /// System calls that it took to receive; none from now on.
    #[inline]
    pub fn take_calls(&mut self) -> u64 {
        std::mem::take(&mut self.calls)
    }

    /// Adds a packet.
    #[inline]
    fn push(
        &mut self,
        port: PortId,
        frames: impl Iterator<Item = Frame>,
        offload: Option<Offload>,
    ) {
        let before = self.frames.len();
        self.frames.extend(frames);
        self.packets.push(Received {
            port,
            frames: self.frames.len() - before,
            offload,
        });
    }

    /// Gives every frame back to `pool`, the last one first: so the pool gives them out in the same
    /// order again, neighbours stay together, and a message has fewer pieces.
    #[inline]
    pub fn recycle(&mut self, pool: &mut FramePool) {
        self.packets.clear();
        for frame in self.frames.drain(..).rev() {
            pool.put(frame);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_gives_its_packets_in_order_and_its_frames_back() {
        let (region, frames) = Region::new(8).unwrap();
        let mut pool = FramePool::new(frames);
        let mut burst = Burst::default();
        for lengths in [&[5][..], &[3, 2, 1], &[9]] {
            let mut chain = Vec::new();
            for &len in lengths {
                let mut frame = pool.get().unwrap();
                assert!(frame.set_data(256, len));
                chain.push(frame);
            }
            burst.push(
                PortId(lengths.len().try_into().unwrap()),
                chain.into_iter(),
                None,
            );
        }
        assert_eq!((burst.len(), burst.frames(), pool.available()), (3, 5, 3));
        assert_eq!(
            burst
                .packets(&region)
                .map(|(port, p)| (port.0, p.len()))
                .collect::<Vec<_>>(),
            [(1, 5), (3, 6), (1, 9)]
        );
        burst.recycle(&mut pool);
        assert!(burst.is_empty());
        assert_eq!(pool.available(), 8);
    }
}
