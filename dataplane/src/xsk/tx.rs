//! The sending half of a queue: tx ring and completion ring.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use super::ledger::Ledger;
use super::ring::{KernelConsumer, KernelProducer};
use super::sys;
use super::umem::{Frame, FramePool, Region};

/// Bytes of `struct xsk_tx_metadata` (linux/if_xdp.h): flags, checksum request, launch time. It
/// lies in front of the data, so each frame to be sent needs as much headroom.
pub const TX_METADATA_LEN: usize = 24;

/// Frames that the kernel sends per wake in copy mode unless told otherwise (`TX_BATCH_SIZE` in
/// net/xdp/xsk.c).
const KERNEL_BATCH: u32 = 32;

/// A request to the kernel or the device to finish a checksum.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TxMetadata {
    /// Offset in bytes from the frame's start at which the checksum begins to sum.
    pub csum_start: u16,
    /// Offset in bytes of the checksum field from `csum_start`. The field holds the folded sum of
    /// the pseudo-header.
    pub csum_offset: u16,
}

/// A packet that the tx ring did not take; its frames are given back.
#[derive(Debug)]
pub enum TxRefusal<T> {
    /// The ring has no room until completions are reaped.
    RingFull(T),
    /// The kernel would refuse it and never give it back: a frame of another region, without data
    /// or with less than [`TxQueue::headroom_needed`] bytes in front of it, or a checksum request
    /// that does not fit.
    Invalid(T),
}

impl<T> TxRefusal<T> {
    /// What was to be sent.
    pub fn into_inner(self) -> T {
        match self {
            Self::RingFull(inner) | Self::Invalid(inner) => inner,
        }
    }
}

/// Sends frames by the tx ring of one queue of one interface.
#[derive(Debug)]
pub struct TxQueue {
    // The rings are unmapped before the socket goes: fields drop in this order.
    tx: KernelProducer<libc::xdp_desc>,
    completion: KernelConsumer<u64>,
    socket: Arc<super::Socket>,
    region: Arc<Region>,
    sent: Ledger,
    /// Wakes that one flush may need.
    wakes: u32,
    metadata: bool,
    malformed: u64,
}

impl TxQueue {
    pub(super) fn new(
        tx: KernelProducer<libc::xdp_desc>,
        completion: KernelConsumer<u64>,
        socket: Arc<super::Socket>,
        region: Arc<Region>,
        size: u32,
        metadata: bool,
    ) -> Self {
        Self {
            tx,
            completion,
            socket,
            sent: Ledger::new(&region),
            region,
            wakes: size / KERNEL_BATCH + 1,
            metadata,
            malformed: 0,
        }
    }

    /// Whether [`TxMetadata`] is taken.
    pub fn checksum_offload(&self) -> bool {
        self.metadata
    }

    /// Bytes in front of the data that each frame must have free. The kernel demands them of
    /// every descriptor once metadata is registered, also of those without a request.
    pub fn headroom_needed(&self) -> usize {
        if self.metadata { TX_METADATA_LEN } else { 0 }
    }

    /// Puts a packet of one frame on the ring, to be sent by the next [`TxQueue::flush`].
    ///
    /// # Errors
    /// [`TxRefusal`] gives the frame back.
    #[inline]
    pub fn send(
        &mut self,
        mut frame: Frame,
        metadata: Option<TxMetadata>,
    ) -> Result<(), TxRefusal<Frame>> {
        if !self.valid(&frame) || !metadata.is_none_or(|m| self.write_metadata(&mut frame, m)) {
            return Err(TxRefusal::Invalid(frame));
        }
        if self.tx.room(1) == 0 {
            return Err(TxRefusal::RingFull(frame));
        }
        let options = if metadata.is_some() {
            libc::XDP_TX_METADATA
        } else {
            0
        };
        self.push(frame, options).map_err(TxRefusal::Invalid)
    }

    /// Puts a packet of several frames on the ring: all of them, or none. Its checksum must be
    /// finished. In copy mode the kernel takes at most 18 frames (one and `MAX_SKB_FRAGS`) and drops
    /// longer packets, whose frames complete; a zero-copy device has a limit of its own.
    ///
    /// # Errors
    /// [`TxRefusal`] leaves `frames` as they were; it is empty on success.
    #[inline]
    pub fn send_chain(&mut self, frames: &mut Vec<Frame>) -> Result<(), TxRefusal<()>> {
        let count = frames.len();
        if count == 0 || !frames.iter().all(|frame| self.valid(frame)) {
            return Err(TxRefusal::Invalid(()));
        }
        if (self.room() as usize) < count {
            return Err(TxRefusal::RingFull(()));
        }
        let mut left = count;
        for frame in frames.drain(..) {
            left -= 1;
            let options = if left > 0 { libc::XDP_PKT_CONTD } else { 0 };
            // Every token is the only one of its chunk, so none is refused here.
            let pushed = self.push(frame, options);
            debug_assert!(pushed.is_ok(), "a chunk has two tokens");
        }
        Ok(())
    }

    /// Frames that the ring has room for.
    #[inline]
    pub fn room(&mut self) -> u32 {
        self.tx.room(u32::MAX)
    }

    #[inline]
    fn valid(&self, frame: &Frame) -> bool {
        frame.len() > 0 && frame.headroom() >= self.headroom_needed() && self.sent.accepts(frame)
    }

    #[inline]
    fn push(&mut self, frame: Frame, options: u32) -> Result<(), Frame> {
        // At most CHUNK_SIZE.
        let len = u32::try_from(frame.len()).unwrap_or(0);
        let addr = self.sent.give(frame)?;
        self.tx.push(libc::xdp_desc { addr, len, options });
        Ok(())
    }

    /// Writes `request` in front of the data; false when it does not fit.
    #[inline]
    fn write_metadata(&self, frame: &mut Frame, request: TxMetadata) -> bool {
        let end = usize::from(request.csum_start) + usize::from(request.csum_offset) + 2;
        if !self.metadata || end > frame.len() || !frame.push_front(TX_METADATA_LEN) {
            return false;
        }
        if let Some(bytes) = self
            .region
            .bytes_mut(frame)
            .first_chunk_mut::<TX_METADATA_LEN>()
        {
            *bytes = encode(request);
        }
        frame.pull_front(TX_METADATA_LEN)
    }

    /// Hands what was put on the ring to the kernel and wakes it where it waits for that. The
    /// number of system calls is bounded by the ring's size; what the kernel does not take now
    /// stays on the ring for the next call.
    ///
    /// # Errors
    /// `ENETDOWN` while the interface is down, `ENXIO` when it is gone, or what else `sendto`
    /// says; the frames stay on the ring.
    #[inline]
    pub fn flush(&mut self) -> io::Result<()> {
        if self.tx.publish() {
            // See RxQueue::refill.
            fence(Ordering::SeqCst);
        }
        if self.tx.needs_wakeup() {
            self.wake()
        } else {
            Ok(())
        }
    }

    /// In copy mode each call sends a batch in this thread: EAGAIN says that the batch ended or
    /// that the socket's buffer is full, EBUSY that a frame was dropped on the way (its completion
    /// comes), ENOBUFS that memory is short. Goes on as long as that empties the ring.
    fn wake(&mut self) -> io::Result<()> {
        let mut pending = self.tx.pending();
        for _ in 0..self.wakes {
            if pending == 0 {
                break;
            }
            match sys::wake_tx(self.socket.fd()) {
                // A driver that sends by itself from here on.
                Ok(()) => break,
                Err(error) => match error.raw_os_error() {
                    Some(libc::EAGAIN | libc::EBUSY | libc::ENOBUFS | libc::EINTR) => {}
                    _ => return Err(error),
                },
            }
            let before = std::mem::replace(&mut pending, self.tx.pending());
            if pending == before {
                break;
            }
        }
        Ok(())
    }

    /// Takes the frames that were sent back into `pool`; returns their number.
    #[inline]
    pub fn reap(&mut self, pool: &mut FramePool) -> usize {
        let mut reaped = 0;
        while let Some(address) = self.completion.pop() {
            if let Some(frame) = self.sent.take(address, 0) {
                pool.put(frame);
                reaped += 1;
            } else {
                self.malformed += 1;
            }
        }
        self.completion.release();
        reaped
    }

    /// Frames on the ring or with the kernel, not yet reaped.
    #[inline]
    pub fn outstanding(&self) -> usize {
        self.sent.marked()
    }

    /// Completions that named no frame we had sent; ignored.
    pub fn malformed(&self) -> u64 {
        self.malformed
    }

    /// Unmaps the rings; what is left for [`super::Queue::close`].
    pub(super) fn into_parts(self) -> (Arc<super::Socket>, Ledger) {
        (self.socket, self.sent)
    }
}

/// `struct xsk_tx_metadata` with a checksum request, in the machine's byte order.
#[inline]
fn encode(request: TxMetadata) -> [u8; TX_METADATA_LEN] {
    let mut bytes = [0; TX_METADATA_LEN];
    let (flags, rest) = bytes.split_at_mut(8);
    flags.copy_from_slice(&u64::from(libc::XDP_TXMD_FLAGS_CHECKSUM).to_ne_bytes());
    let (start, rest) = rest.split_at_mut(2);
    start.copy_from_slice(&request.csum_start.to_ne_bytes());
    let (offset, _launch_time) = rest.split_at_mut(2);
    offset.copy_from_slice(&request.csum_offset.to_ne_bytes());
    bytes
}
