//! ICMP echo (RFC 792) of a given size that nobody may cut, and what comes back of it. The IPv4 header is
//! made here, so that the kernel minds the link alone and not what it has learned of the way.

use std::net::Ipv4Addr;

use etherparse::icmpv4::DestUnreachableHeader;
use etherparse::{
    IcmpEchoHeader, Icmpv4Header, Icmpv4Slice, Icmpv4Type, IpNumber, Ipv4Header, Ipv4HeaderSlice,
};

/// IPv4 and ICMP header.
const HEADERS: u32 = 28;
/// Bytes of a small one, headers included.
pub(super) const SMALL: u32 = HEADERS + 56;

/// What a packet says of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reply {
    /// A small one was answered.
    Small,
    /// A large one was answered.
    Large,
    /// A router cannot forward one that is larger than this.
    TooBig(u32),
}

/// A request of `size` bytes, without options.
pub(super) fn request(source: Ipv4Addr, destination: Ipv4Addr, id: u16, size: u32) -> Vec<u8> {
    let payload = vec![0x50; size.saturating_sub(HEADERS) as usize];
    let icmp = Icmpv4Type::EchoRequest(IcmpEchoHeader { id, seq: 1 });
    let icmp = Icmpv4Header::with_checksum(icmp, &payload);
    let length = icmp.header_len() + payload.len();
    let length = u16::try_from(length).unwrap_or(u16::MAX);
    let Ok(mut ip) = Ipv4Header::new(
        length,
        64,
        IpNumber::ICMP,
        source.octets(),
        destination.octets(),
    ) else {
        return Vec::new();
    };
    ip.dont_fragment = true;
    let mut packet = ip.to_bytes().to_vec();
    packet.extend_from_slice(&icmp.to_bytes());
    packet.extend_from_slice(&payload);
    packet
}

/// What a packet says of requests with this `id`, and to whom those were: an answer by its length, or
/// that a router cannot forward one.
pub(super) fn reply(packet: &[u8], id: u16) -> Option<(Ipv4Addr, Reply)> {
    let ip = Ipv4HeaderSlice::from_slice(packet).ok()?;
    let icmp = Icmpv4Slice::from_slice(packet.get(ip.slice().len()..)?).ok()?;
    match icmp.icmp_type() {
        Icmpv4Type::EchoReply(echo) if echo.id == id => {
            let reply = match packet.len() > SMALL as usize {
                true => Reply::Large,
                false => Reply::Small,
            };
            Some((ip.source_addr(), reply))
        }
        Icmpv4Type::DestinationUnreachable(DestUnreachableHeader::FragmentationNeeded {
            next_hop_mtu,
        }) => {
            let quoted = Ipv4HeaderSlice::from_slice(icmp.payload()).ok()?;
            // Eight bytes of it are quoted at least (RFC 792): somebody else's ping has another id.
            let echo = icmp.payload().get(quoted.slice().len()..)?;
            let is_ours =
                quoted.protocol() == IpNumber::ICMP && echo.get(4..6) == Some(&id.to_be_bytes());
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
        let packet = request(HERE, THERE, 7, 1500);
        assert_eq!(packet.len(), 1500);
        let ip = Ipv4HeaderSlice::from_slice(&packet).unwrap();
        assert!(ip.dont_fragment());
        assert_eq!(usize::from(ip.total_len()), 1500);
        assert_eq!(ip.destination_addr(), THERE);
    }

    #[test]
    fn answers_are_told_apart_by_their_length() {
        let large = answer(request(HERE, THERE, 7, 1500));
        assert_eq!(reply(&large, 7), Some((THERE, Reply::Large)));
        let small = answer(request(HERE, THERE, 7, SMALL));
        assert_eq!(reply(&small, 7), Some((THERE, Reply::Small)));
        assert_eq!(reply(&large, 8), None, "another's");
        assert_eq!(reply(&request(HERE, THERE, 7, 1500), 7), None, "a request");
    }

    #[test]
    fn a_router_tells_what_fits() {
        let request = request(HERE, THERE, 7, 1500);
        let error = DestUnreachableHeader::FragmentationNeeded { next_hop_mtu: 1400 };
        let quoted = &request[..28];
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
