//! Hears the ICMP errors by which routers say that a tunnel's packets are too large.
//!
//! The kernel takes what they say itself: an error that quotes a datagram of a tunnel is for the
//! socket of the VXLAN device, and becomes an exception of the route (`__udp4_lib_err_encap` and
//! `ipv4_sk_update_pmtu`, net/ipv4; `__udp6_lib_err_encap` and `ip6_sk_update_pmtu`, net/ipv6),
//! which expires (`net.ipv4.route.mtu_expires`) and which the answer to a question for the route
//! tells. For that the error must quote the VXLAN header (`vxlan_err_lookup`), as nearly all do.
//! But no event tells of it, and so the errors are when to ask. Nothing in them is believed but the
//! address that the kernel is asked about.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;
use std::os::fd::RawFd;

use etherparse::icmpv4::DestUnreachableHeader;
use etherparse::{
    Icmpv4Slice, Icmpv4Type, Icmpv6Slice, Icmpv6Type, IpNumber, Ipv4HeaderSlice, Ipv6HeaderSlice,
};

use crate::icmp::{Filter, Listener};

/// Fragmentation needed and DF set (RFC 792); packet too big, whose code says nothing (RFC 4443).
const TOO_LARGE: Filter = Filter {
    v4: (3, 4),
    v6: (2, None),
    port: None,
};

/// The sockets that the errors come to. They never block.
#[derive(Debug)]
pub struct Errors(Listener);

impl Errors {
    /// Begins to listen in this thread's network namespace.
    ///
    /// # Errors
    /// What the kernel says: `EPERM` without the capability `CAP_NET_RAW`.
    pub fn listen() -> io::Result<Self> {
        Listener::open(TOO_LARGE).map(Self)
    }

    /// What is readable when an error has come.
    pub fn fds(&self) -> impl Iterator<Item = RawFd> {
        self.0.fds()
    }

    /// The nodes to which a datagram was too large, by the errors that have come.
    pub fn drain(&mut self) -> BTreeSet<IpAddr> {
        self.0.drain(quoted_v4, quoted_v6).into_iter().collect()
    }
}

/// Destination of the UDP datagram that an error quotes, an IPv4 packet as the socket gives it.
fn quoted_v4(packet: &[u8]) -> Option<IpAddr> {
    let ip = Ipv4HeaderSlice::from_slice(packet).ok()?;
    let icmp = Icmpv4Slice::from_slice(packet.get(ip.slice().len()..)?).ok()?;
    let Icmpv4Type::DestinationUnreachable(DestUnreachableHeader::FragmentationNeeded { .. }) =
        icmp.icmp_type()
    else {
        return None;
    };
    let quoted = Ipv4HeaderSlice::from_slice(icmp.payload()).ok()?;
    (quoted.protocol() == IpNumber::UDP).then(|| quoted.destination_addr().into())
}

/// As [`quoted_v4`], of an ICMPv6 message: such a socket gives no IPv6 header.
fn quoted_v6(message: &[u8]) -> Option<IpAddr> {
    let icmp = Icmpv6Slice::from_slice(message).ok()?;
    let Icmpv6Type::PacketTooBig { .. } = icmp.icmp_type() else {
        return None;
    };
    let quoted = Ipv6HeaderSlice::from_slice(icmp.payload()).ok()?;
    (quoted.next_header() == IpNumber::UDP).then(|| quoted.destination_addr().into())
}

#[cfg(test)]
mod tests {
    use etherparse::PacketBuilder;

    use super::*;

    const NODE: [u8; 4] = [192, 168, 1, 2];
    const NODE6: [u8; 16] = [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2];

    /// The first bytes of a tunnel's datagram: what every router quotes (RFC 792).
    fn quote(v6: bool) -> Vec<u8> {
        let own = [192, 168, 1, 1];
        let own6 = [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
        let mut packet = Vec::new();
        let length = if v6 {
            let builder = PacketBuilder::ipv6(own6, NODE6, 64).udp(50_000, 4789);
            builder.write(&mut packet, &[0; 1400]).unwrap();
            48
        } else {
            let builder = PacketBuilder::ipv4(own, NODE, 64).udp(50_000, 4789);
            builder.write(&mut packet, &[0; 1400]).unwrap();
            28
        };
        packet.truncate(length);
        packet
    }

    fn error_v4(kind: Icmpv4Type, quote: &[u8]) -> Vec<u8> {
        let mut packet = Vec::new();
        let builder = PacketBuilder::ipv4([10, 9, 9, 9], [192, 168, 1, 1], 64).icmpv4(kind);
        builder.write(&mut packet, quote).unwrap();
        packet
    }

    fn too_big_v4() -> Icmpv4Type {
        let next_hop_mtu = 1400;
        let header = DestUnreachableHeader::FragmentationNeeded { next_hop_mtu };
        Icmpv4Type::DestinationUnreachable(header)
    }

    fn error_v6(kind: Icmpv6Type, quote: &[u8]) -> Vec<u8> {
        let mut message = kind
            .to_header([1; 16], NODE6, quote)
            .unwrap()
            .to_bytes()
            .to_vec();
        message.extend(quote);
        message
    }

    #[test]
    fn the_quoted_destination_is_the_node() {
        let packet = error_v4(too_big_v4(), &quote(false));
        assert_eq!(quoted_v4(&packet), Some(NODE.into()));
        let message = error_v6(Icmpv6Type::PacketTooBig { mtu: 1400 }, &quote(true));
        assert_eq!(quoted_v6(&message), Some(NODE6.into()));
    }

    #[test]
    fn other_errors_and_other_quotes_name_no_node() {
        let port = Icmpv4Type::DestinationUnreachable(DestUnreachableHeader::Port);
        assert_eq!(quoted_v4(&error_v4(port, &quote(false))), None);
        let mut tcp = quote(false);
        tcp[9] = 6;
        assert_eq!(quoted_v4(&error_v4(too_big_v4(), &tcp)), None);
        let mut tcp = quote(true);
        tcp[6] = 6;
        let message = error_v6(Icmpv6Type::PacketTooBig { mtu: 1400 }, &tcp);
        assert_eq!(quoted_v6(&message), None);
    }

    #[test]
    fn what_is_cut_short_names_no_node() {
        let packet = error_v4(too_big_v4(), &quote(false));
        for length in 0..48 {
            assert_eq!(quoted_v4(&packet[..length]), None, "{length}");
        }
        let message = error_v6(Icmpv6Type::PacketTooBig { mtu: 1400 }, &quote(true));
        for length in 0..48 {
            assert_eq!(quoted_v6(&message[..length]), None, "{length}");
        }
    }
}
