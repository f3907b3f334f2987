//! Over IPv4 (RFC 792). A raw socket receives packets with their IP header.

use std::net::Ipv4Addr;

use etherparse::icmpv4::DestUnreachableHeader;
use etherparse::{
    IcmpEchoHeader, Icmpv4Header, Icmpv4Slice, Icmpv4Type, IpNumber, Ipv4Header, Ipv4HeaderSlice,
};

use super::{Reply, answered, is_ours};

/// A request without options, not to be cut.
pub(super) fn request(
    source: Ipv4Addr,
    destination: Ipv4Addr,
    id: u16,
    payload: &[u8],
) -> Option<Vec<u8>> {
    let icmp = Icmpv4Type::EchoRequest(IcmpEchoHeader { id, seq: 1 });
    let icmp = Icmpv4Header::with_checksum(icmp, payload);
    let length = u16::try_from(icmp.header_len() + payload.len()).ok()?;
    let (from, to) = (source.octets(), destination.octets());
    let mut ip = Ipv4Header::new(length, 64, IpNumber::ICMP, from, to).ok()?;
    ip.dont_fragment = true;
    Some([&ip.to_bytes()[..], &icmp.to_bytes(), payload].concat())
}

pub(super) fn reply(packet: &[u8], id: u16) -> Option<(Ipv4Addr, Reply)> {
    let ip = Ipv4HeaderSlice::from_slice(packet).ok()?;
    let icmp = Icmpv4Slice::from_slice(packet.get(ip.slice().len()..)?).ok()?;
    match icmp.icmp_type() {
        Icmpv4Type::EchoReply(echo) if echo.id == id => {
            Some((ip.source_addr(), answered(icmp.payload())))
        }
        Icmpv4Type::DestinationUnreachable(DestUnreachableHeader::FragmentationNeeded {
            next_hop_mtu,
        }) => {
            let quoted = Ipv4HeaderSlice::from_slice(icmp.payload()).ok()?;
            let echo = icmp.payload().get(quoted.slice().len()..)?;
            let is_ours = quoted.protocol() == IpNumber::ICMP && is_ours(echo, id);
            let too_big = Reply::TooBig(next_hop_mtu.into());
            is_ours.then(|| (quoted.destination_addr(), too_big))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: Ipv4Addr = Ipv4Addr::new(192, 168, 1, 1);
    const THERE: Ipv4Addr = Ipv4Addr::new(192, 168, 1, 2);

    fn asked(payload: usize) -> Vec<u8> {
        request(HERE, THERE, 7, &vec![0x50; payload]).unwrap()
    }

    /// The answer to a request.
    fn answer(mut request: Vec<u8>) -> Vec<u8> {
        for (a, b) in (12..16).zip(16..20) {
            request.swap(a, b);
        }
        request[20] = 0;
        request
    }

    #[test]
    fn a_request_is_as_large_as_it_should_be_and_not_to_be_cut() {
        let packet = asked(1472);
        assert_eq!(packet.len(), 1500);
        let ip = Ipv4HeaderSlice::from_slice(&packet).unwrap();
        assert!(ip.dont_fragment());
        assert_eq!(usize::from(ip.total_len()), 1500);
        assert_eq!(ip.destination_addr(), THERE);
    }

    #[test]
    fn answers_are_told_apart_by_their_length() {
        let large = answer(asked(1472));
        assert_eq!(reply(&large, 7), Some((THERE, Reply::Large)));
        let small = answer(asked(56));
        assert_eq!(reply(&small, 7), Some((THERE, Reply::Small)));
        assert_eq!(reply(&large, 8), None, "another's");
        assert_eq!(reply(&asked(1472), 7), None, "a request");
    }

    #[test]
    fn a_router_tells_what_fits() {
        let error = DestUnreachableHeader::FragmentationNeeded { next_hop_mtu: 1400 };
        let quoted = &asked(1472)[..28];
        let icmp = Icmpv4Header::with_checksum(Icmpv4Type::DestinationUnreachable(error), quoted);
        let length = u16::try_from(icmp.header_len() + quoted.len()).unwrap();
        let router = [192, 168, 1, 9];
        let ip = Ipv4Header::new(length, 64, IpNumber::ICMP, router, HERE.octets()).unwrap();
        let packet = [&ip.to_bytes()[..], &icmp.to_bytes(), quoted].concat();
        assert_eq!(reply(&packet, 7), Some((THERE, Reply::TooBig(1400))));
        assert_eq!(reply(&packet, 8), None, "another's");
        for length in 0..packet.len() {
            let _ = reply(&packet[..length], 7);
        }
    }
}
