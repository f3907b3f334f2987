//! What [`super::parse`] learns about a packet: offsets and fields that the packet path goes by.

use std::net::{IpAddr, Ipv4Addr};

use super::checksum::Sum;
use super::{protocol, tcp, udp};

/// The version of a packet's IP header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum IpVersion {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// Where the headers of a packet are, and the fields that decide its way. Offsets are in bytes from
/// the start of the bytes that were parsed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Headers {
    /// IP version. `src` and `dst` are of this version too.
    pub version: IpVersion,
    /// What is at `l4`: one of [`super::protocol`].
    pub protocol: u8,
    /// Whether this is a fragment, the first included. Then there is no L4 header to look at:
    /// `payload` equals `l4` and the ports are zero.
    pub fragment: bool,
    /// DSCP and ECN.
    pub tos: u8,
    /// IPv4 time to live or IPv6 hop limit.
    pub hop_limit: u8,
    /// Offset of the IP header.
    pub l3: u16,
    /// Offset behind the IP header.
    pub l4: u16,
    /// Offset behind the TCP (options included) or UDP header; equals `l4` for anything else.
    pub payload: u16,
    /// Source port of TCP and UDP, otherwise zero.
    pub sport: u16,
    /// Destination port of TCP and UDP, otherwise zero.
    pub dport: u16,
    /// Length in bytes of the IP packet, its header included. Padding of the frame is not in it.
    pub l3_len: u32,
    /// Source address.
    pub src: IpAddr,
    /// Destination address.
    pub dst: IpAddr,
}

impl Headers {
    /// Those of no packet, to be read into.
    pub const UNREAD: Self = Self {
        version: IpVersion::V4,
        protocol: 0,
        fragment: false,
        tos: 0,
        hop_limit: 0,
        l3: 0,
        l4: 0,
        payload: 0,
        sport: 0,
        dport: 0,
        l3_len: 0,
        src: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        dst: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
    };

    /// Length in bytes of what follows the IP header.
    #[inline]
    pub fn l4_len(&self) -> u32 {
        self.l3_len
            .saturating_sub(u32::from(self.l4.saturating_sub(self.l3)))
    }

    /// Length in bytes of what follows the TCP or UDP header. For UDP this counts from the IP
    /// length, so that it includes what may lie behind the datagram (RFC 9868).
    #[inline]
    pub fn payload_len(&self) -> u32 {
        self.l3_len
            .saturating_sub(u32::from(self.payload.saturating_sub(self.l3)))
    }

    /// Offset behind the IP packet. Bytes behind it are padding.
    #[inline]
    pub fn end(&self) -> usize {
        usize::from(self.l3) + self.l3_len as usize
    }

    /// Source and destination port; `None` for fragments and anything but TCP and UDP.
    #[inline]
    pub fn ports(&self) -> Option<(u16, u16)> {
        let has_ports = matches!(self.protocol, protocol::TCP | protocol::UDP) && !self.fragment;
        has_ports.then_some((self.sport, self.dport))
    }

    /// Offset of the L4 checksum field of TCP and UDP; `None` for fragments and anything else.
    #[inline]
    pub fn checksum_offset(&self) -> Option<usize> {
        let l4 = usize::from(self.l4);
        match self.protocol {
            _ if self.fragment => None,
            protocol::TCP => Some(l4 + tcp::CHECKSUM_OFFSET),
            protocol::UDP => Some(l4 + udp::CHECKSUM_OFFSET),
            _ => None,
        }
    }

    /// The sum of the packet's pseudo-header, for an L4 part of `l4_len` bytes: [`Self::l4_len`] for
    /// the packet as it is.
    #[inline]
    pub fn pseudo_header(&self, l4_len: u32) -> Sum {
        match (self.src, self.dst) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => {
                Sum::pseudo_header_v4(src, dst, self.protocol, l4_len)
            }
            (IpAddr::V6(src), IpAddr::V6(dst)) => {
                Sum::pseudo_header_v6(src, dst, self.protocol, l4_len)
            }
            _ => Sum::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TCP: Headers = Headers {
        version: IpVersion::V4,
        protocol: protocol::TCP,
        fragment: false,
        tos: 0,
        hop_limit: 64,
        l3: 14,
        l4: 34,
        payload: 66,
        sport: 40000,
        dport: 5201,
        l3_len: 1500,
        src: IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1)),
        dst: IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 1, 1)),
    };

    #[test]
    fn lengths_follow_from_the_offsets() {
        assert_eq!(TCP.l4_len(), 1480);
        assert_eq!(TCP.payload_len(), 1448);
        assert_eq!(TCP.end(), 1514);
    }

    #[test]
    fn only_whole_tcp_and_udp_have_a_checksum_offset() {
        assert_eq!(TCP.checksum_offset(), Some(50));
        assert_eq!(
            Headers {
                protocol: protocol::UDP,
                ..TCP
            }
            .checksum_offset(),
            Some(40)
        );
        assert_eq!(
            Headers {
                protocol: protocol::ICMP,
                ..TCP
            }
            .checksum_offset(),
            None
        );
        assert_eq!(
            Headers {
                fragment: true,
                ..TCP
            }
            .checksum_offset(),
            None
        );
    }

    #[test]
    fn the_pseudo_header_is_of_the_version() {
        let expected = Sum::of(&[10, 0, 0, 1, 10, 0, 1, 1, 0, 6, 0x05, 0xc8]);
        assert_eq!(TCP.pseudo_header(TCP.l4_len()).fold(), expected.fold());
        let v6 = Headers {
            version: IpVersion::V6,
            src: "fd00::1".parse().unwrap(),
            dst: "fd00::2".parse().unwrap(),
            ..TCP
        };
        let expected = Sum::of(&[0xfd, 0, 0, 1, 0xfd, 0, 0, 2, 0, 6, 0, 1, 0x11, 0x70]);
        assert_eq!(v6.pseudo_header(70000).fold(), expected.fold());
    }

    /// Two of them and what a worker needs beside fit in two cache lines.
    #[test]
    fn the_size_is_known() {
        assert!(size_of::<Headers>() <= 56);
    }
}
