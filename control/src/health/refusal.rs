//! Hears that the kernel of another node has nobody who listens to probes: its control process does
//! not run, or has health switched off. The node is there, and the path to it is.

use std::io;
use std::os::fd::RawFd;

use etherparse::icmpv4::DestUnreachableHeader;
use etherparse::icmpv6::DestUnreachableCode;
use etherparse::{
    Icmpv4Slice, Icmpv4Type, Icmpv6Slice, Icmpv6Type, IpNumber, Ipv4HeaderSlice, Ipv6HeaderSlice,
};
use std::net::IpAddr;

use super::probe::{LENGTH, Probe};
use crate::icmp::{Filter, Listener};

const UDP_HEADER: usize = 8;

/// The sockets that the errors come to. They never block.
#[derive(Debug)]
pub(super) struct Refusals(Listener);

impl Refusals {
    /// Begins to listen in this thread's network namespace to errors about probes to `port`.
    ///
    /// # Errors
    /// What the kernel says: `EPERM` without the capability `CAP_NET_RAW`.
    pub(super) fn listen(port: u16) -> io::Result<Self> {
        // Port unreachable (RFC 792, RFC 4443).
        let filter = Filter {
            v4: (3, 3),
            v6: (1, Some(4)),
            port: Some(port),
        };
        Listener::open(filter).map(Self)
    }

    /// What is readable when an error has come.
    pub(super) fn fds(&self) -> impl Iterator<Item = RawFd> {
        self.0.fds()
    }

    /// The probes that were refused, and where they were sent. Whoever quotes a probe has seen it:
    /// its cookie is the proof.
    pub(super) fn drain(&mut self) -> Vec<(IpAddr, Probe)> {
        self.0.drain(quoted_v4, quoted_v6)
    }
}

/// The probe that an error quotes, an IPv4 packet as the socket gives it.
fn quoted_v4(packet: &[u8]) -> Option<(IpAddr, Probe)> {
    let ip = Ipv4HeaderSlice::from_slice(packet).ok()?;
    let icmp = Icmpv4Slice::from_slice(packet.get(ip.slice().len()..)?).ok()?;
    let Icmpv4Type::DestinationUnreachable(DestUnreachableHeader::Port) = icmp.icmp_type() else {
        return None;
    };
    let quoted = Ipv4HeaderSlice::from_slice(icmp.payload()).ok()?;
    let datagram = icmp.payload().get(quoted.slice().len()..)?;
    let probe = probe(quoted.protocol(), datagram)?;
    Some((quoted.destination_addr().into(), probe))
}

/// As [`quoted_v4`], of an ICMPv6 message.
fn quoted_v6(message: &[u8]) -> Option<(IpAddr, Probe)> {
    let icmp = Icmpv6Slice::from_slice(message).ok()?;
    let Icmpv6Type::DestinationUnreachable(DestUnreachableCode::Port) = icmp.icmp_type() else {
        return None;
    };
    let quoted = Ipv6HeaderSlice::from_slice(icmp.payload()).ok()?;
    let datagram = icmp.payload().get(quoted.slice().len()..)?;
    let probe = probe(quoted.next_header(), datagram)?;
    Some((quoted.destination_addr().into(), probe))
}

fn probe(protocol: IpNumber, datagram: &[u8]) -> Option<Probe> {
    if protocol != IpNumber::UDP {
        return None;
    }
    Probe::decode(datagram.get(UDP_HEADER..UDP_HEADER + LENGTH)?)
}

#[cfg(test)]
mod tests {
    use etherparse::PacketBuilder;
    use proptest::prelude::*;

    use super::*;
    use crate::health::probe::{Kind, NodeId};

    const OWN: [u8; 4] = [192, 168, 1, 1];
    const NODE: [u8; 4] = [192, 168, 1, 2];
    const OWN6: [u8; 16] = [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
    const NODE6: [u8; 16] = [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2];

    fn request() -> Probe {
        Probe {
            kind: Kind::Request,
            sequence: 7,
            cookie: 9,
            sender: NodeId::of("a"),
        }
    }

    fn error_v4(error: DestUnreachableHeader) -> Vec<u8> {
        let (mut quoted, mut packet) = (Vec::new(), Vec::new());
        let builder = PacketBuilder::ipv4(OWN, NODE, 64).udp(4799, 4799);
        builder.write(&mut quoted, &request().encode()).unwrap();
        let kind = Icmpv4Type::DestinationUnreachable(error);
        let builder = PacketBuilder::ipv4(NODE, OWN, 64).icmpv4(kind);
        builder.write(&mut packet, &quoted).unwrap();
        packet
    }

    fn error_v6() -> Vec<u8> {
        let mut quoted = Vec::new();
        let builder = PacketBuilder::ipv6(OWN6, NODE6, 64).udp(4799, 4799);
        builder.write(&mut quoted, &request().encode()).unwrap();
        let kind = Icmpv6Type::DestinationUnreachable(DestUnreachableCode::Port);
        let header = kind.to_header(NODE6, OWN6, &quoted).unwrap();
        let mut message = header.to_bytes().to_vec();
        message.extend(quoted);
        message
    }

    #[test]
    fn an_error_tells_the_probe_and_where_it_went() {
        let packet = error_v4(DestUnreachableHeader::Port);
        assert_eq!(quoted_v4(&packet), Some((NODE.into(), request())));
        assert_eq!(quoted_v6(&error_v6()), Some((NODE6.into(), request())));
    }

    #[test]
    fn other_errors_and_other_quotes_refuse_nothing() {
        assert_eq!(quoted_v4(&error_v4(DestUnreachableHeader::Host)), None);
        let mut tcp = error_v4(DestUnreachableHeader::Port);
        tcp[28 + 9] = 6;
        assert_eq!(quoted_v4(&tcp), None);
        let mut tcp = error_v6();
        tcp[8 + 6] = 6;
        assert_eq!(quoted_v6(&tcp), None);
    }

    #[test]
    fn what_is_cut_short_refuses_nothing() {
        let (v4, v6) = (error_v4(DestUnreachableHeader::Port), error_v6());
        for length in 0..v4.len() {
            assert_eq!(quoted_v4(&v4[..length]), None, "{length}");
        }
        for length in 0..v6.len() {
            assert_eq!(quoted_v6(&v6[..length]), None, "{length}");
        }
    }

    proptest! {
        #[test]
        fn noise_refuses_nothing(bytes in proptest::collection::vec(any::<u8>(), 0..120)) {
            prop_assert!(quoted_v4(&bytes).is_none() && quoted_v6(&bytes).is_none());
        }
    }
}
