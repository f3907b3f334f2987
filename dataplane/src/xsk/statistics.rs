//! What the kernel counts on an AF_XDP socket.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Weak};

use super::{Socket, sys};

/// `struct xdp_statistics` (linux/if_xdp.h), counted since the socket was made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Redirected packets lost for want of a posted frame, or because they were too long.
    pub rx_dropped: u64,
    /// Addresses on the fill ring that the kernel refused.
    pub rx_invalid_descs: u64,
    /// Descriptors on the tx ring that the kernel refused.
    pub tx_invalid_descs: u64,
    /// Redirected packets lost because the rx ring was full.
    pub rx_ring_full: u64,
    /// Times the kernel found the fill ring empty.
    pub rx_fill_ring_empty_descs: u64,
    /// Times the kernel found the tx ring empty.
    pub tx_ring_empty_descs: u64,
}

impl Statistics {
    pub(super) fn read(fd: BorrowedFd<'_>) -> io::Result<Self> {
        let raw: libc::xdp_statistics = sys::get_option(fd, libc::SOL_XDP, libc::XDP_STATISTICS)?;
        Ok(Self {
            rx_dropped: raw.rx_dropped,
            rx_invalid_descs: raw.rx_invalid_descs,
            tx_invalid_descs: raw.tx_invalid_descs,
            rx_ring_full: raw.rx_ring_full,
            rx_fill_ring_empty_descs: raw.rx_fill_ring_empty_descs,
            tx_ring_empty_descs: raw.tx_ring_empty_descs,
        })
    }
}

/// Reads the statistics of a queue from any thread. It does not keep the queue's socket, since a
/// socket that lives on keeps the queue taken and its frames in use.
#[derive(Debug, Clone)]
pub struct StatsHandle {
    socket: Weak<Socket>,
}

impl StatsHandle {
    pub(super) fn new(socket: &Arc<Socket>) -> Self {
        Self {
            socket: Arc::downgrade(socket),
        }
    }

    /// The counts of now; `None` when the queue was closed.
    pub fn read(&self) -> Option<Statistics> {
        let socket = self.socket.upgrade()?;
        Statistics::read(socket.fd()).ok()
    }
}
