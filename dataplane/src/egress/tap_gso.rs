//! The worker's TAP as an egress engine: what is to be cut on its way to another node, one system
//! call each.
//!
//! The source MAC of a message names the port that it leaves by (`port_tag`); the program on the
//! TAP puts the port's own in its place and sends the packet out within the same system call, so
//! that messages of both engines leave in the order in which they are sent. It sends it without a
//! socket, which no AF_PACKET socket can: see `podway_transmit` in `redirect.bpf.c`. What it cannot
//! send it tells in memory ([`Unsent`]), since the system call has succeeded by then.
#![allow(
    unsafe_code,
    reason = "messages are handed to the kernel by pointer; the block states its invariant"
)]

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;

use podway_xdp_redirect::Unsent;

use super::drafts::MAX_PIECES;
use super::message::{Message, VnetHeader};
use super::packet_gso::{SendError, classify};
use super::sources::Sources;
use crate::tap::{Tap, TapHeader};
use crate::wire::EtherType;
use crate::xsk::Region;

/// Bytes of a message that are written anew: both MAC addresses.
const MACS: usize = 12;

/// Sends by a TAP.
#[derive(Debug)]
pub struct TapGso {
    tap: Arc<Tap>,
    unsent: Unsent,
    /// The message in hand as the kernel takes it: pointers that are read within [`TapGso::send`]
    /// only.
    iovecs: Vec<libc::iovec>,
}

// SAFETY: the pointers are written and read within one call, by the thread that has `&mut self`.
unsafe impl Send for TapGso {}

impl TapGso {
    /// An engine on `tap`, whose program tells by `unsent` what did not leave.
    pub fn new(tap: Arc<Tap>, unsent: Unsent) -> Self {
        Self {
            tap,
            unsent,
            iovecs: Vec::with_capacity(MAX_PIECES + 3),
        }
    }

    /// Sends a message that is to be cut on its way. Its pieces lie in `region` and in `headers`.
    ///
    /// # Errors
    /// As for a message of the AF_PACKET socket.
    pub fn send(
        &mut self,
        message: &Message,
        region: &Region,
        headers: &[u8],
    ) -> Result<(), SendError> {
        let sources = Sources::new(region, headers);
        let outside = SendError::Refused(libc::EFAULT);
        let (first, others) = message.pieces.split_first().ok_or(outside)?;
        let (front, first) = first.split_at(MACS);
        let front = sources.iovec(front).filter(|front| front.iov_len == MACS);
        let front = front
            .ok_or(outside)?
            .iov_base
            .cast_const()
            .cast::<[u8; MACS]>();
        // SAFETY: the bytes were checked to be so many and to lie in borrowed memory; the frame that
        // has them is the worker's own until the burst is recycled, so that nobody writes them.
        let mut macs = unsafe { front.read() };
        macs[6..].copy_from_slice(&self.unsent.tag(message.port.0));
        let header = header(message);
        self.iovecs.clear();
        self.iovecs.push(iovec(&header));
        self.iovecs.push(iovec(&macs));
        for piece in std::iter::once(&first).chain(others) {
            self.iovecs.push(sources.iovec(*piece).ok_or(outside)?);
        }
        let count = libc::c_int::try_from(self.iovecs.len());
        let count = count.map_err(|_| SendError::Refused(libc::EMSGSIZE))?;
        let fd = self.tap.as_fd().as_raw_fd();
        // SAFETY: there are `count` iovecs: header and addresses, which live on our stack, and pieces
        // that were checked to lie in borrowed memory. The kernel only reads them.
        let sent = unsafe { libc::writev(fd, self.iovecs.as_ptr(), count) };
        let errno = if sent >= 0 {
            self.unsent.take()
        } else {
            let error = io::Error::last_os_error();
            Some(error.raw_os_error().unwrap_or(libc::EIO))
        };
        errno.map_or(Ok(()), |errno| Err(classify(errno)))
    }
}

fn iovec<T>(value: &T) -> libc::iovec {
    libc::iovec {
        iov_base: std::ptr::from_ref(value).cast_mut().cast(),
        iov_len: size_of::<T>(),
    }
}

/// What precedes the frame. The type of a tunnel is that of the outer IP header.
fn header(message: &Message) -> TapHeader {
    let vnet = message.vnet;
    let Some(tunnel) = message.tunnel else {
        return TapHeader::of(vnet);
    };
    let over = match EtherType(message.ethertype) {
        EtherType::IPV4 => TapHeader::GSO_UDP_TUNNEL_IPV4,
        _ => TapHeader::GSO_UDP_TUNNEL_IPV6,
    };
    let vnet = VnetHeader {
        flags: vnet.flags | TapHeader::UDP_TUNNEL_CSUM,
        gso_type: vnet.gso_type | over,
        ..vnet
    };
    TapHeader::of_tunnel(vnet, tunnel.outer_transport, tunnel.inner_network)
}

#[cfg(test)]
mod tests {
    use super::super::message::TunnelLayers;
    use super::*;

    #[test]
    fn the_type_tells_the_tunnel() {
        let mut message = Message::with_capacity(0);
        message.vnet = VnetHeader {
            flags: VnetHeader::NEEDS_CSUM,
            gso_type: VnetHeader::GSO_TCPV4 | VnetHeader::GSO_ECN,
            ..VnetHeader::default()
        };
        assert_eq!(header(&message), TapHeader::of(message.vnet));
        for (outer, outer_transport, over) in
            [(EtherType::IPV4, 34, 0x20), (EtherType::IPV6, 54, 0x40)]
        {
            message.ethertype = outer.0;
            message.tunnel = Some(TunnelLayers {
                outer_transport,
                inner_network: outer_transport + 30,
            });
            let header = header(&message);
            assert_eq!(header.vnet.gso_type, 0x81 | over);
            assert_eq!(header.vnet.flags, 9);
        }
    }
}
