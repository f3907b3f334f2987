//! The AF_XDP ring as an ingress engine.

use std::os::fd::BorrowedFd;

use super::{BURST, Burst};
use crate::fib::PortId;
use crate::packet::MAX_CHAIN;
use crate::xsk::{Frame, FramePool, Queue};

/// Frames that every queue has posted, however many there are: one super-frame and a burst of
/// small packets. With 110 pods this is what a port costs in memory.
pub const LEAST_POSTED: usize = 32;

/// Most frames of a burst, but for those of its last packet: a few super-frames, little enough to
/// stay in the cache until the messages made of them are sent.
const BURST_FRAMES: usize = 256;

/// Receives from one queue.
#[derive(Debug)]
pub struct RingIngress {
    queue: Queue,
    /// A chain of which the rest has not arrived.
    partial: Vec<Frame>,
    /// Frames that should be posted while the pool can spare them.
    target: usize,
    /// Entries of the rx ring.
    ring_size: usize,
}

impl RingIngress {
    /// An engine on `queue`, whose rings have `ring_size` entries. An uplink, which all pods share,
    /// has all of them filled, a pod's queue half of them: that is how long a worker that does not
    /// get its core can stay away before packets are lost.
    pub fn new(queue: Queue, ring_size: u32, is_uplink: bool) -> Self {
        let ring_size = ring_size as usize;
        let target = if is_uplink {
            ring_size
        } else {
            (ring_size / 2).max(LEAST_POSTED)
        };
        let partial = Vec::with_capacity(MAX_CHAIN);
        Self {
            queue,
            partial,
            target,
            ring_size,
        }
    }

    /// The socket, to wait for.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.queue.rx.fd()
    }

    /// Moves what has arrived by `port` into `burst`, at most [`BURST`] packets.
    #[inline]
    pub fn receive(&mut self, port: PortId, burst: &mut Burst) {
        let mut room = BURST_FRAMES;
        while burst.len() < BURST && room > 0 {
            // Frames are taken one packet at a time, so that a burst ends between packets.
            let taken = self.queue.rx.take(1, |frame, more| {
                self.partial.push(frame);
                if !more {
                    burst.push(port, self.partial.drain(..), None);
                }
            });
            if taken == 0 {
                break;
            }
            room = room.saturating_sub(taken);
        }
        self.queue.rx.release();
    }

    /// Posts frames of `pool` so that the kernel can go on. Beyond [`LEAST_POSTED`], the last
    /// `reserve` frames of the pool stay there.
    #[inline]
    pub fn refill(&mut self, pool: &mut FramePool, reserve: usize) {
        let spare = pool.available().saturating_sub(reserve);
        let most = (self.queue.rx.posted() + spare).max(LEAST_POSTED);
        self.queue.rx.refill(pool, self.target.min(most));
    }

    /// Frames that are with the kernel or on its rings.
    pub fn posted(&self) -> usize {
        self.queue.rx.posted()
    }

    /// Frames that have arrived, of how many the rx ring takes.
    pub fn waiting(&mut self) -> (usize, usize) {
        (self.queue.rx.received(), self.ring_size)
    }

    /// Frames that are with the kernel, of how many should be.
    pub fn prepared(&self) -> (usize, usize) {
        (self.queue.rx.posted(), self.target)
    }

    /// Frames of an unfinished chain.
    pub fn held(&self) -> usize {
        self.partial.len()
    }

    /// Closes the socket and gives up all frames.
    pub fn close(self) -> Vec<Frame> {
        let mut frames = self.queue.close();
        frames.extend(self.partial);
        frames
    }
}
