//! The receiving half of a queue: fill ring and rx ring.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use super::ledger::Ledger;
use super::ring::{KernelConsumer, KernelProducer};
use super::statistics::{Statistics, StatsHandle};
use super::sys;
use super::umem::{Frame, FramePool};

/// Receives the packets that the XDP program redirects to one queue of one interface.
#[derive(Debug)]
pub struct RxQueue {
    // The rings are unmapped before the socket goes: fields drop in this order.
    rx: KernelConsumer<libc::xdp_desc>,
    fill: KernelProducer<u64>,
    socket: Arc<super::Socket>,
    posted: Ledger,
    malformed: u64,
}

impl RxQueue {
    pub(super) fn new(
        rx: KernelConsumer<libc::xdp_desc>,
        fill: KernelProducer<u64>,
        socket: Arc<super::Socket>,
        posted: Ledger,
    ) -> Self {
        Self {
            rx,
            fill,
            socket,
            posted,
            malformed: 0,
        }
    }

    /// The socket, for an XSKMAP and for epoll. A duplicate of it keeps the queue taken after
    /// [`super::Queue::close`], so make none.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.socket.fd()
    }

    /// Takes about `max` received frames and hands each to `sink`, with whether more frames of the
    /// same packet follow (`XDP_PKT_CONTD`).
    ///
    /// A packet is not split over two calls: when the limit falls within one, its remaining frames
    /// are taken too. The kernel publishes whole packets only. Returns the number of frames.
    #[inline]
    pub fn receive(&mut self, max: usize, sink: impl FnMut(Frame, bool)) -> usize {
        let taken = self.take(max, sink);
        self.release();
        taken
    }

    /// [`RxQueue::receive`] without [`RxQueue::release`].
    #[inline]
    pub fn take(&mut self, max: usize, mut sink: impl FnMut(Frame, bool)) -> usize {
        let mut taken = 0;
        let mut within_packet = false;
        while taken < max || within_packet {
            let Some(desc) = self.rx.pop() else { break };
            within_packet = desc.options & libc::XDP_PKT_CONTD != 0;
            if let Some(frame) = self.posted.take(desc.addr, desc.len) {
                sink(frame, within_packet);
                taken += 1;
            } else {
                self.malformed += 1;
            }
        }
        taken
    }

    /// Gives the kernel the entries back whose frames were taken: one store, best once a burst.
    #[inline]
    pub fn release(&mut self) {
        self.rx.release();
    }

    /// Frames that have arrived and wait to be taken; no system call.
    #[inline]
    pub fn received(&mut self) -> usize {
        self.rx.available(u32::MAX) as usize
    }

    /// Posts frames of `pool` until [`RxQueue::posted`] is `target`, or the fill ring is full, or
    /// the pool is empty, and wakes the driver where it waits for that. Returns the number posted.
    #[inline]
    pub fn refill(&mut self, pool: &mut FramePool, target: usize) -> usize {
        let posted = self.fill_from(pool, target);
        // A driver that found the ring empty sets the flag and looks at the ring once more. Our
        // store of the index must not be overtaken by the load of the flag, or both sides wait.
        if posted > 0 {
            fence(Ordering::SeqCst);
            if self.fill.needs_wakeup() {
                sys::wake_rx(self.socket.fd());
            }
        }
        posted
    }

    /// [`RxQueue::refill`] without the system call, which an unbound socket would refuse.
    #[inline]
    pub(super) fn fill_from(&mut self, pool: &mut FramePool, target: usize) -> usize {
        let missing = target.saturating_sub(self.posted.marked());
        let mut posted = 0;
        let room = self.fill.room(u32::try_from(missing).unwrap_or(u32::MAX));
        while posted < missing.min(room as usize) {
            let Some(frame) = pool.get() else { break };
            match self.posted.give(frame) {
                Ok(address) => {
                    self.fill.push(address);
                    posted += 1;
                }
                Err(frame) => {
                    pool.put(frame);
                    break;
                }
            }
        }
        self.fill.publish();
        posted
    }

    /// Frames that the kernel has: on the fill ring, filled and not yet taken from the rx ring, or
    /// set aside by the kernel for the next packet.
    #[inline]
    pub fn posted(&self) -> usize {
        self.posted.marked()
    }

    /// Received descriptors that named no frame we had posted. They are ignored; a kernel that
    /// makes them is broken.
    pub fn malformed(&self) -> u64 {
        self.malformed
    }

    /// What the kernel has counted on this socket.
    ///
    /// # Errors
    /// What `getsockopt` says.
    pub fn statistics(&self) -> std::io::Result<Statistics> {
        Statistics::read(self.socket.fd())
    }

    /// A handle to the same counts for another thread; it ends with the queue.
    pub fn stats_handle(&self) -> StatsHandle {
        StatsHandle::new(&self.socket)
    }

    /// Unmaps the rings; what is left for [`super::Queue::close`].
    pub(super) fn into_parts(self) -> (Arc<super::Socket>, Ledger) {
        (self.socket, self.posted)
    }
}

impl AsFd for RxQueue {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd()
    }
}
