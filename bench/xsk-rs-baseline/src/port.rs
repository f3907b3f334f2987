//! One interface: a memory region of its own, an AF_XDP socket on queue 0, and its frames.

use std::error::Error;
use std::io::{self, Write as _};
use std::num::NonZeroU32;
use std::os::fd::{AsRawFd as _, BorrowedFd};

use xsk_rs::config::{BindFlags, QueueSize, SocketConfig, UmemConfig};
use xsk_rs::{CompQueue, FillQueue, FrameDesc, RxQueue, Socket, TxQueue, Umem};

/// Entries of each ring, and frames for each direction. Larger rings are slower: they no longer
/// fit the cache.
const RING: u32 = 512;
/// Frames handled together.
const BURST: usize = 64;

/// One interface.
pub(crate) struct Port {
    umem: Umem,
    rx: RxQueue,
    tx: TxQueue,
    fill: FillQueue,
    completion: CompQueue,
    /// Frames to send with. Those to receive into are in the fill ring.
    free: Vec<FrameDesc>,
    /// Received and not to be forwarded.
    refused: u64,
    /// Not sent for want of a frame, of room in it, or of a ring entry.
    tx_dropped: u64,
}

impl Port {
    /// Opens an AF_XDP socket on queue 0, with the XDP program that libxdp loads by itself.
    pub(crate) fn open(interface: &str) -> Result<Self, Box<dyn Error>> {
        let size = QueueSize::new(RING)?;
        let umem_config = UmemConfig::builder()
            .fill_queue_size(size)
            .comp_queue_size(size)
            .build()?;
        let frames = NonZeroU32::new(2 * RING).ok_or("no frames")?;
        let (umem, mut free) = Umem::new(umem_config, frames, false)?;
        let config = SocketConfig::builder()
            .rx_queue_size(size)
            .tx_queue_size(size)
            .bind_flags(BindFlags::XDP_USE_NEED_WAKEUP)
            .build();
        // SAFETY: the region is used by this socket alone, so that no ring has two owners.
        let (tx, rx, queues) = unsafe { Socket::new(config, &umem, &interface.parse()?, 0) }
            .map_err(|error| {
                let source = error.source().map_or_else(String::new, ToString::to_string);
                format!("{interface}: {error}: {source}")
            })?;
        let (mut fill, completion) = queues.ok_or("the socket has no fill ring")?;
        let receive = free.split_off(RING as usize);
        // SAFETY: these frames are of this region, and nobody else has them from here on.
        unsafe { fill.produce(&receive) };
        Ok(Self {
            umem,
            rx,
            tx,
            fill,
            completion,
            free,
            refused: 0,
            tx_dropped: 0,
        })
    }

    /// The socket, to wait for frames on.
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the socket lives as long as `self`, which the borrow holds.
        unsafe { BorrowedFd::borrow_raw(self.rx.fd().as_raw_fd()) }
    }

    /// Takes a burst of received frames, and for each sends by `to` what `rewrite` makes of it: a
    /// header and a payload. Gives the number of frames received.
    pub(crate) fn forward<H: AsRef<[u8]>>(
        &mut self,
        to: &mut Self,
        rewrite: impl Fn(&[u8]) -> Option<(H, &[u8])>,
    ) -> io::Result<usize> {
        let mut received = [FrameDesc::default(); BURST];
        // SAFETY: a port's rings and descriptors are all of its one region.
        let count = unsafe { self.rx.consume(&mut received) };
        let received = &received[..count];
        to.reap();
        for frame in received {
            // SAFETY: the frame is of this region, and ours until it is in the fill ring again.
            let data = unsafe { self.umem.data(frame) };
            match rewrite(&data) {
                Some((header, payload)) => to.send(header.as_ref(), payload),
                None => self.refused += 1,
            }
        }
        // SAFETY: these frames have just come from this region's receive ring. All of them fit:
        // the fill ring has as many entries as there are frames to receive into.
        unsafe { self.fill.produce(received) };
        to.flush()?;
        Ok(count)
    }

    /// The counters as words; the kernel's are from its socket.
    pub(crate) fn counters(&self, name: &str) -> io::Result<String> {
        let kernel = self.rx.fd().xdp_statistics()?;
        Ok(format!(
            "{name}_refused={} {name}_tx_dropped={} {name}_rx_ring_full={} \
             {name}_fill_ring_empty={} {name}_rx_dropped={}",
            self.refused,
            self.tx_dropped,
            kernel.rx_ring_full(),
            kernel.rx_fill_ring_empty_descs(),
            kernel.rx_dropped(),
        ))
    }

    /// Puts header and payload into a frame of this port and that into the transmit ring, or
    /// drops them.
    fn send(&mut self, header: &[u8], payload: &[u8]) {
        let Some(mut frame) = self.free.pop() else {
            self.tx_dropped += 1;
            return;
        };
        // SAFETY: the frame is of this region, and ours while it is neither in the transmit nor
        // in the completion ring.
        let mut data = unsafe { self.umem.data_mut(&mut frame) };
        let mut cursor = data.cursor();
        cursor.set_pos(0);
        let written = cursor
            .write_all(header)
            .and_then(|()| cursor.write_all(payload));
        // SAFETY: as above; from here on the frame is the kernel's until it is reaped.
        if written.is_err() || unsafe { self.tx.produce_one(&frame) } == 0 {
            self.tx_dropped += 1;
            self.free.push(frame);
        }
    }

    /// Lets the kernel send what is in the transmit ring: 32 frames with each call.
    fn flush(&mut self) -> io::Result<()> {
        let mut free = self.tx.nb_free_exact();
        while free < RING && self.tx.needs_wakeup() {
            self.tx.wakeup()?;
            let now = self.tx.nb_free_exact();
            if now == free {
                // The interface takes no more for now; poll tries again as well.
                break;
            }
            free = now;
        }
        Ok(())
    }

    /// Takes back the frames that have been sent.
    fn reap(&mut self) {
        let mut sent = [FrameDesc::default(); BURST];
        loop {
            // SAFETY: a port's rings and descriptors are all of its one region.
            let count = unsafe { self.completion.consume(&mut sent) };
            self.free.extend_from_slice(&sent[..count]);
            if count < BURST {
                return;
            }
        }
    }
}
