//! The worker's packet ring as an ingress engine: what the tcx programs of the ports have copied
//! there.

use podway_xdp_redirect::PacketRing;

use super::{Burst, CHAIN, HEADROOM, MOST_FRAMES, RING_BURST};
use crate::fib::PortId;
use crate::xsk::{CHUNK_SIZE, FramePool, Region};

/// How many bytes more than [`HEADROOM`] are left free, by turns. Frames begin 4096 bytes apart, so
/// that the headers of a burst would fall into the same few sets of the cache.
const COLORS: usize = 16;
const COLOR: usize = 64;

/// Receives from a packet ring.
#[derive(Debug)]
pub struct RingReader {
    ring: PacketRing,
}

impl RingReader {
    /// An engine on `ring`.
    pub fn new(ring: PacketRing) -> Self {
        Self { ring }
    }

    /// Whether nothing has arrived.
    #[inline]
    pub fn is_empty(&mut self) -> bool {
        self.ring.is_empty()
    }

    /// Bytes that have arrived, of how many there is room for.
    pub fn waiting(&self) -> (usize, usize) {
        self.ring.level()
    }

    /// Copies what has arrived into `burst`, at most [`RING_BURST`] packets. Each names its own port.
    #[inline]
    pub fn receive(&mut self, burst: &mut Burst, pool: &mut FramePool, region: &Region) {
        // Any packet finds its frames, so that none is taken and lost.
        while burst.len() < RING_BURST
            && burst.frames() + CHAIN <= MOST_FRAMES
            && pool.available() >= CHAIN
        {
            let Some(record) = self.ring.next() else {
                break;
            };
            let mut rest = record.bytes;
            let mut start = HEADROOM + burst.len() % COLORS * COLOR;
            let frames = std::iter::from_fn(|| {
                let (part, behind) = rest.split_at(rest.len().min(CHUNK_SIZE - start));
                if part.is_empty() {
                    return None;
                }
                let mut frame = pool.get()?;
                frame.set_data(start, part.len());
                region.bytes_mut(&mut frame).copy_from_slice(part);
                (rest, start) = (behind, 0);
                Some(frame)
            });
            burst.push(PortId(record.slot), frames, None);
        }
        self.ring.release();
    }
}
