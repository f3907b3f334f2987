//! Ingress: from a queue to a burst of packets.
//!
//! [`RingIngress`] takes descriptors from AF_XDP sockets, the engine of every port. A burst owns its
//! frames until they are recycled, after the messages made of them were sent.

mod ring;

pub use ring::{LEAST_POSTED, RingIngress};

use crate::packet::Packet;
use crate::xsk::{Frame, FramePool, Region};

/// Most packets of a burst.
pub const BURST: usize = 64;

/// Packets that were taken from one queue at once.
#[derive(Debug)]
pub struct Burst {
    frames: Vec<Frame>,
    /// How many of `frames` each packet has, in order.
    chains: Vec<usize>,
}

impl Default for Burst {
    fn default() -> Self {
        Self {
            frames: Vec::with_capacity(32 * BURST),
            chains: Vec::with_capacity(BURST),
        }
    }
}

impl Burst {
    /// Packets.
    #[inline]
    pub fn len(&self) -> usize {
        self.chains.len()
    }

    /// Whether there is no packet.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.chains.is_empty()
    }

    /// Frames of all packets.
    #[inline]
    pub fn frames(&self) -> usize {
        self.frames.len()
    }

    /// The packets, in the order in which they came.
    #[inline]
    pub fn packets<'a>(&'a mut self, region: &'a Region) -> impl Iterator<Item = Packet<'a>> {
        let mut rest = &mut self.frames[..];
        self.chains.iter().filter_map(move |&frames| {
            let (chain, behind) = std::mem::take(&mut rest).split_at_mut_checked(frames)?;
            rest = behind;
            Packet::new(region, chain)
        })
    }

    /// Adds a packet of `frames`, which are taken out of their vector.
    #[inline]
    fn push(&mut self, frames: &mut Vec<Frame>) {
        self.chains.push(frames.len());
        self.frames.append(frames);
    }

    /// Gives every frame back to `pool`.
    #[inline]
    pub fn recycle(&mut self, pool: &mut FramePool) {
        self.chains.clear();
        for frame in self.frames.drain(..) {
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
            burst.push(&mut chain);
            assert!(chain.is_empty());
        }
        assert_eq!((burst.len(), burst.frames(), pool.available()), (3, 5, 3));
        assert_eq!(
            burst.packets(&region).map(|p| p.len()).collect::<Vec<_>>(),
            [5, 6, 9]
        );
        burst.recycle(&mut pool);
        assert!(burst.is_empty());
        assert_eq!(pool.available(), 8);
    }
}
