//! A TAP device: packets to and from the kernel with all their offloads.
//!
//! The tcx program of a port redirects a packet to the TAP of its worker, which reads it with the
//! metadata that AF_XDP loses: the size of the segments of a super-frame, and which checksum is
//! unfinished. What the worker writes, the program on the TAP sends out of the port that the source
//! MAC names. A VXLAN super-frame goes so with one set of headers and an unfinished inner checksum
//! (Linux 6.17: `TUN_F_UDP_TUNNEL_GSO`, `virtio_net_hdr_tnl_to_skb` in linux/virtio_net.h); nobody
//! reads its payload.
//!
//! Only TCP needs that, and few others; everything else comes by the worker's packet ring.
//!
//! The device has no address and nothing is routed to it. It goes with the process.

use std::fs;
use std::io::{self, IoSliceMut};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use crate::egress::VnetHeader;
use crate::sys::interface::Interface;
use crate::sys::tun;

/// What precedes each frame: `struct virtio_net_hdr_v1_hash_tunnel` of linux/virtio_net.h, in the
/// machine's byte order but for the last two fields, which are little-endian.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(C)]
pub struct TapHeader {
    /// The part that AF_PACKET has, too.
    pub vnet: VnetHeader,
    /// Number of buffers; not looked at.
    buffers: u16,
    /// A hash; not looked at.
    hash: [u16; 4],
    /// Offset from the frame's start of the tunnel's UDP header, for a super-frame in a tunnel.
    outer_transport: u16,
    /// Offset from the frame's start of the inner IP header, for a super-frame in a tunnel.
    inner_network: u16,
}

impl TapHeader {
    /// Its length in bytes.
    pub const LEN: usize = size_of::<Self>();
    /// In `gso_type`: the super-frame is in a UDP tunnel over IPv4.
    pub const GSO_UDP_TUNNEL_IPV4: u8 = 0x20;
    /// In `gso_type`: the super-frame is in a UDP tunnel over IPv6.
    pub const GSO_UDP_TUNNEL_IPV6: u8 = 0x40;
    /// In `flags`: the tunnel's UDP checksum is wanted as well; its field holds the folded sum of
    /// the pseudo-header.
    pub const UDP_TUNNEL_CSUM: u8 = 8;

    /// The header of a frame in no tunnel.
    pub fn of(vnet: VnetHeader) -> Self {
        Self {
            vnet,
            ..Self::default()
        }
    }

    /// The header of a super-frame in a tunnel.
    pub fn of_tunnel(vnet: VnetHeader, outer_transport: u16, inner_network: u16) -> Self {
        Self {
            vnet,
            outer_transport: outer_transport.to_le(),
            inner_network: inner_network.to_le(),
            ..Self::default()
        }
    }

    /// The header in `bytes`, as it is read.
    #[inline]
    pub(crate) fn parse(bytes: [u8; Self::LEN]) -> Self {
        let word = |at: usize| u16::from_ne_bytes([bytes[at], bytes[at + 1]]);
        Self {
            vnet: VnetHeader {
                flags: bytes[0],
                gso_type: bytes[1],
                hdr_len: word(2),
                gso_size: word(4),
                csum_start: word(6),
                csum_offset: word(8),
            },
            buffers: word(10),
            hash: [word(12), word(14), word(16), word(18)],
            outer_transport: word(20),
            inner_network: word(22),
        }
    }
}

/// A TAP device cannot be had.
#[derive(Debug, thiserror::Error)]
#[error("TAP {name}: cannot {step}: {source}")]
pub struct TapError {
    name: String,
    step: &'static str,
    source: io::Error,
}

/// The TAP device of a worker.
#[derive(Debug)]
pub struct Tap {
    fd: OwnedFd,
    name: String,
    ifindex: u32,
}

impl Tap {
    /// Makes the device of worker `number` and brings it up.
    ///
    /// # Errors
    /// [`TapError`] names the step: a kernel before 6.17 has no offloads inside UDP tunnels, a
    /// process without `CAP_NET_ADMIN` may make no device.
    pub fn open(number: u16) -> Result<Self, TapError> {
        let name = format!("podway.tap{number}");
        let failed = |(step, source)| TapError {
            name: name.clone(),
            step,
            source,
        };
        let length = u8::try_from(TapHeader::LEN).unwrap_or(u8::MAX);
        let fd = tun::open(&name, length).map_err(failed)?;
        // Or the kernel would look for routers there. Without IPv6 there is nothing to switch off.
        let _ = fs::write(format!("/proc/sys/net/ipv6/conf/{name}/disable_ipv6"), "1");
        tun::bring_up(&name).map_err(|error| failed(("bring it up", error)))?;
        let interface = Interface::by_name(&name).map_err(|error| failed(("look it up", error)))?;
        Ok(Self {
            fd,
            ifindex: interface.ifindex,
            name,
        })
    }

    /// Its interface index.
    pub fn ifindex(&self) -> u32 {
        self.ifindex
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Packets that were redirected to the device and found its queue full, since it was made.
    pub fn dropped(&self) -> u64 {
        // The directory of this thread's network namespace.
        let table = fs::read_to_string("/proc/thread-self/net/dev").unwrap_or_default();
        column(&table, &self.name, SENDING_DROPPED)
    }

    /// Reads one frame, header first, into `parts`. Gives its length in bytes, the header's
    /// included; `None` when there is no frame. What has no room is cut off.
    #[inline]
    pub(crate) fn read(&self, parts: &mut [IoSliceMut<'_>]) -> Option<usize> {
        rustix::io::readv(&self.fd, parts).ok()
    }
}

impl AsFd for Tap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Columns of `/proc/net/dev`: bytes, packets, errors, drops and four more of receiving, then the
/// same of sending.
const SENDING_DROPPED: usize = 11;

/// A column of an interface in `/proc/net/dev`.
fn column(table: &str, name: &str, number: usize) -> u64 {
    let line = table
        .lines()
        .find_map(|line| line.trim_start().strip_prefix(name)?.strip_prefix(':'));
    let count = line.and_then(|line| line.split_whitespace().nth(number));
    count.and_then(|count| count.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_header_is_the_kernels() {
        assert_eq!(TapHeader::LEN, 24);
        let bytes = std::array::from_fn(|at| u8::try_from(at).unwrap());
        let header = TapHeader::parse(bytes);
        assert_eq!((header.vnet.flags, header.vnet.gso_type), (0, 1));
        assert_eq!(header.vnet.gso_size, u16::from_ne_bytes([4, 5]));
        assert_eq!(header.vnet.csum_start, u16::from_ne_bytes([6, 7]));
        assert_eq!(header.inner_network, u16::from_ne_bytes([22, 23]));
        let tunnel = TapHeader::of_tunnel(header.vnet, 34, 64);
        assert_eq!(u16::from_le(tunnel.outer_transport), 34);
        assert_eq!(u16::from_le(tunnel.inner_network), 64);
    }

    #[test]
    fn drops_are_read_from_the_column_of_sending() {
        let table = "Inter-|   Receive  |  Transmit\n face |bytes ...\n\
            lo: 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16\n\
            podway.tap1: 1 2 3 40 5 6 7 8 9 10 11 99 13 14 15 16\n\
            podway.tap10: 1 2 3 0 5 6 7 8 9 10 11 77 13 14 15 16\n";
        assert_eq!(column(table, "podway.tap1", SENDING_DROPPED), 99);
        assert_eq!(column(table, "podway.tap10", SENDING_DROPPED), 77);
        assert_eq!(column(table, "podway.tap2", SENDING_DROPPED), 0);
    }
}
