//! Over IPv6 (RFC 4443), where routers cut nothing anyway. A raw socket receives what is behind the IP
//! header (RFC 3542, section 3); it is told of the sender aside.

use std::net::Ipv6Addr;

use etherparse::{
    IcmpEchoHeader, Icmpv6Header, Icmpv6Slice, Icmpv6Type, IpNumber, Ipv6FlowLabel, Ipv6Header,
    Ipv6HeaderSlice,
};

use super::{Reply, answered, is_ours};

/// A request without extension headers.
pub(super) fn request(
    source: Ipv6Addr,
    destination: Ipv6Addr,
    id: u16,
    payload: &[u8],
) -> Option<Vec<u8>> {
    let (source, destination) = (source.octets(), destination.octets());
    let icmp = Icmpv6Type::EchoRequest(IcmpEchoHeader { id, seq: 1 });
    let icmp = Icmpv6Header::with_checksum(icmp, source, destination, payload).ok()?;
    let ip = Ipv6Header {
        traffic_class: 0,
        flow_label: Ipv6FlowLabel::ZERO,
        payload_length: u16::try_from(icmp.header_len() + payload.len()).ok()?,
        next_header: IpNumber::IPV6_ICMP,
        hop_limit: 64,
        source,
        destination,
    };
    Some([&ip.to_bytes()[..], &icmp.to_bytes(), payload].concat())
}

pub(super) fn reply(from: Ipv6Addr, message: &[u8], id: u16) -> Option<(Ipv6Addr, Reply)> {
    let icmp = Icmpv6Slice::from_slice(message).ok()?;
    match icmp.icmp_type() {
        Icmpv6Type::EchoReply(echo) if echo.id == id => Some((from, answered(icmp.payload()))),
        Icmpv6Type::PacketTooBig { mtu } => {
            let quoted = Ipv6HeaderSlice::from_slice(icmp.payload()).ok()?;
            let echo = icmp.payload().get(quoted.slice().len()..)?;
            let is_ours = quoted.next_header() == IpNumber::IPV6_ICMP && is_ours(echo, id);
            is_ours.then(|| (quoted.destination_addr(), Reply::TooBig(mtu)))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: Ipv6Addr = Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 1);
    const THERE: Ipv6Addr = Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 2);
    const ROUTER: Ipv6Addr = Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 9);

    fn asked(payload: usize) -> Vec<u8> {
        request(HERE, THERE, 7, &vec![0x50; payload]).unwrap()
    }

    /// The answer to a request, as a socket receives it.
    fn answer(request: &[u8]) -> Vec<u8> {
        let mut message = request[Ipv6Header::LEN..].to_vec();
        message[0] = 129;
        message
    }

    #[test]
    fn a_request_is_as_large_as_it_should_be_and_its_checksum_is_finished() {
        let packet = asked(1452);
        assert_eq!(packet.len(), 1500);
        let ip = Ipv6HeaderSlice::from_slice(&packet).unwrap();
        assert_eq!(usize::from(ip.payload_length()), 1460);
        assert_eq!((ip.source_addr(), ip.destination_addr()), (HERE, THERE));
        let icmp = Icmpv6Slice::from_slice(&packet[Ipv6Header::LEN..]).unwrap();
        assert!(icmp.is_checksum_valid(HERE.octets(), THERE.octets()));
    }

    #[test]
    fn answers_are_told_apart_by_their_length() {
        let large = answer(&asked(1452));
        assert_eq!(reply(THERE, &large, 7), Some((THERE, Reply::Large)));
        let small = answer(&asked(56));
        assert_eq!(reply(THERE, &small, 7), Some((THERE, Reply::Small)));
        assert_eq!(reply(THERE, &large, 8), None, "another's");
        let request = &asked(1452)[Ipv6Header::LEN..];
        assert_eq!(reply(HERE, request, 7), None, "a request");
        for length in 0..small.len() {
            let _ = reply(THERE, &small[..length], 7);
        }
    }

    #[test]
    fn a_router_tells_what_fits() {
        // As much of the request as fits the least MTU of IPv6 (RFC 4443, section 3.2).
        let quoted = &asked(1452)[..1232];
        let error = Icmpv6Type::PacketTooBig { mtu: 1400 };
        let (router, here) = (ROUTER.octets(), HERE.octets());
        let icmp = Icmpv6Header::with_checksum(error, router, here, quoted).unwrap();
        let message = [&icmp.to_bytes()[..], quoted].concat();
        let too_big = Some((THERE, Reply::TooBig(1400)));
        assert_eq!(reply(ROUTER, &message, 7), too_big);
        assert_eq!(reply(ROUTER, &message, 8), None, "another's");
        let mut tcp = message.clone();
        tcp[8 + 6] = 6;
        assert_eq!(reply(ROUTER, &tcp, 7), None, "of another protocol");
        for length in 0..message.len() {
            let expected = too_big.filter(|_| length >= 8 + 40 + 6);
            assert_eq!(reply(ROUTER, &message[..length], 7), expected, "{length}");
        }
    }
}
