//! The worker's TAP as an egress engine: super-frames in a tunnel, one system call each.
//!
//! The source MAC of a message names the port that it leaves by (`port_tag`); the program on the
//! TAP puts the port's own in its place and sends the packet out within the same system call, so
//! that messages of both engines leave in the order in which they are sent.
#![allow(
    unsafe_code,
    reason = "messages are handed to the kernel by pointer; the block states its invariant"
)]

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;

use super::message::{Message, TunnelLayers, VnetHeader};
use super::packet_gso::{SendError, classify};
use super::sources::Sources;
use crate::packet::MAX_CHAIN;
use crate::tap::{Tap, TapHeader};
use crate::wire::EtherType;
use crate::xsk::Region;

/// Sends by a TAP.
#[derive(Debug)]
pub struct TapGso {
    tap: Arc<Tap>,
}

impl TapGso {
    /// An engine on `tap`.
    pub fn new(tap: Arc<Tap>) -> Self {
        Self { tap }
    }

    /// Sends a super-frame in a tunnel, whose layers are `tunnel`. Its pieces lie in `region` and
    /// in `headers`.
    ///
    /// # Errors
    /// As for a message of the AF_PACKET socket; EMSGSIZE for more pieces than a packet has.
    pub fn send(
        &self,
        message: &Message,
        tunnel: TunnelLayers,
        region: &Region,
        headers: &[u8],
    ) -> Result<(), SendError> {
        let sources = Sources::new(region, headers);
        let header = header(message.vnet, EtherType(message.ethertype), tunnel);
        let mut iovecs = [libc::iovec {
            iov_base: std::ptr::from_ref(&header).cast_mut().cast(),
            iov_len: TapHeader::LEN,
        }; MAX_CHAIN + 2];
        let count = message.pieces.len() + 1;
        let pieces = iovecs
            .get_mut(1..count)
            .ok_or(SendError::Refused(libc::EMSGSIZE))?;
        for (iovec, piece) in pieces.iter_mut().zip(&message.pieces) {
            *iovec = sources
                .iovec(*piece)
                .ok_or(SendError::Refused(libc::EFAULT))?;
        }
        let count = libc::c_int::try_from(count).map_err(|_| SendError::Refused(libc::EMSGSIZE))?;
        // SAFETY: `iovecs` has `count` entries at least: the header, which lives on our stack, and
        // pieces that were checked to lie in borrowed memory. The kernel only reads them.
        let sent = unsafe { libc::writev(self.tap.as_fd().as_raw_fd(), iovecs.as_ptr(), count) };
        if sent >= 0 {
            return Ok(());
        }
        let errno = io::Error::last_os_error().raw_os_error();
        Err(classify(errno.unwrap_or(libc::EIO)))
    }
}

/// The type of the tunnel is that of the outer IP header.
fn header(vnet: VnetHeader, outer: EtherType, tunnel: TunnelLayers) -> TapHeader {
    let over = match outer {
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
    use super::*;

    #[test]
    fn the_type_tells_the_tunnel() {
        for (outer, outer_transport, over) in
            [(EtherType::IPV4, 34, 0x20), (EtherType::IPV6, 54, 0x40)]
        {
            let tunnel = TunnelLayers {
                outer_transport,
                inner_network: outer_transport + 30,
            };
            let vnet = VnetHeader {
                flags: VnetHeader::NEEDS_CSUM,
                gso_type: VnetHeader::GSO_TCPV4 | VnetHeader::GSO_ECN,
                ..VnetHeader::default()
            };
            let header = header(vnet, outer, tunnel);
            assert_eq!(header.vnet.gso_type, 0x81 | over);
            assert_eq!(header.vnet.flags, 9);
        }
    }
}
