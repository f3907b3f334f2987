//! What the kernel tells of changes of nftables.

use std::io::{self, ErrorKind};
use std::os::fd::{AsRawFd, RawFd};

use netlink_sys::{Socket, protocols::NETLINK_NETFILTER};

/// Multicast group of all changes of nftables (`NFNLGRP_NFTABLES`, linux/netfilter/nfnetlink.h).
const GROUP: u32 = 7;
/// Room for a message of the kernel; of a longer one the beginning is enough.
const MESSAGE: usize = 8192;

/// Listens, without blocking.
#[derive(Debug)]
pub struct Changes {
    socket: Socket,
}

impl Changes {
    /// Listens from now on.
    ///
    /// # Errors
    /// What the kernel says to opening the socket.
    pub fn listen() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_NETFILTER)?;
        socket.bind_auto()?;
        socket.add_membership(GROUP)?;
        socket.set_non_blocking(true)?;
        Ok(Self { socket })
    }

    /// Reads all that was told since the last call. Whether there was something that matters, by
    /// `matters`, or may have been: some was lost.
    pub fn any(&self, matters: impl Fn(&[u8]) -> bool) -> bool {
        let mut buffer = Vec::with_capacity(MESSAGE);
        let mut any = false;
        loop {
            buffer.clear();
            match self.socket.recv(&mut buffer, 0) {
                Ok(_) => any |= matters(&buffer),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return any,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                // ENOBUFS, once per overrun: reading goes on after it.
                Err(_) => any = true,
            }
        }
    }
}

impl AsRawFd for Changes {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}
