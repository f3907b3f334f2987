//! ICMP errors: the headers in front of the packet that an error is about, which it quotes.
//! <https://www.rfc-editor.org/rfc/rfc1812#section-4.3> and
//! <https://www.rfc-editor.org/rfc/rfc4443#section-3>; MTUs in RFC 1191, section 4.

use std::net::IpAddr;

use super::{IcmpMessage, IpVersion, Ipv4Packet, Ipv6Packet, Sum, icmp, ipv4, ipv6, protocol};

/// Time to live or hop limit, that of Linux.
pub const HOP_LIMIT: u8 = 64;

/// Most bytes of an error over IPv4, its header included: "as much of the original datagram as
/// possible without the length of the ICMP datagram exceeding 576 bytes" (RFC 1812, section 4.3.2.3).
const MAX_LEN_V4: usize = 576;

/// The least MTU of IPv6, which an error may fill (RFC 4443, section 2.4 (c)). No smaller MTU is told
/// to anybody: it would be discarded (RFC 8201, section 4), and Linux tells this one too.
const MIN_MTU_V6: u16 = 1280;

/// Internetwork control, as precedence and as class selector 6 (RFC 1812, section 4.3.2.5).
const INTERNETWORK_CONTROL: u8 = 0xc0;
/// Explicit congestion notification, the lower two bits; no error takes part in it.
const ECN: u8 = 0b11;

/// What is wrong with a packet, to be told to its sender.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IcmpError {
    /// Its time to live ran out.
    TimeExceeded,
    /// No route leads to its destination.
    NoRoute,
    /// It is larger than what the next hop takes, in bytes, and not to be fragmented.
    TooBig(u16),
}

impl IcmpError {
    /// Type, code, and the four bytes behind the checksum.
    fn fields(self, version: IpVersion) -> (u8, u8, u32) {
        use icmp::{v4, v6};
        match (version, self) {
            (IpVersion::V4, Self::TimeExceeded) => (v4::TIME_EXCEEDED, 0, 0),
            (IpVersion::V4, Self::NoRoute) => (v4::DST_UNREACHABLE, v4::NET_UNREACHABLE, 0),
            (IpVersion::V4, Self::TooBig(mtu)) => {
                (v4::DST_UNREACHABLE, v4::FRAG_NEEDED, mtu.into())
            }
            (IpVersion::V6, Self::TimeExceeded) => (v6::TIME_EXCEEDED, 0, 0),
            (IpVersion::V6, Self::NoRoute) => (v6::DST_UNREACHABLE, v6::NO_ROUTE, 0),
            (IpVersion::V6, Self::TooBig(mtu)) => {
                (v6::PACKET_TOO_BIG, 0, mtu.max(MIN_MTU_V6).into())
            }
        }
    }
}

/// Length in bytes of the IP header of an error.
pub const fn ip_len(version: IpVersion) -> u8 {
    match version {
        IpVersion::V4 => 20,
        IpVersion::V6 => 40,
    }
}

/// Length in bytes of what is in front of the quoted packet: IP and ICMP header.
pub const fn header_len(version: IpVersion) -> usize {
    match version {
        IpVersion::V4 => ipv4::HEADER_LEN + icmp::HEADER_LEN,
        IpVersion::V6 => ipv6::HEADER_LEN + icmp::HEADER_LEN,
    }
}

/// How many bytes may be quoted of a packet, from its IP header on, in an error over a way that takes
/// `mtu`.
pub fn most_quoted(version: IpVersion, mtu: u16) -> usize {
    let most = match version {
        IpVersion::V4 => MAX_LEN_V4,
        IpVersion::V6 => MIN_MTU_V6.into(),
    };
    most.min(mtu.into()).saturating_sub(header_len(version))
}

/// TOS or traffic class of an error about a packet with this one: over IPv4 the packet's own with the
/// precedence of internetwork control, over IPv6 zero; both as Linux has it.
pub const fn tos(version: IpVersion, quoted: u8) -> u8 {
    match version {
        IpVersion::V4 => quoted & !ECN | INTERNETWORK_CONTROL,
        IpVersion::V6 => 0,
    }
}

/// Writes the headers of `error`, in front of `quoted` bytes of the packet that it is about, whose TOS
/// was `quoted_tos`. `header` has [`header_len`] bytes of the version of the addresses, which are of
/// one; otherwise nothing is written.
///
/// The ICMP checksum is left unfinished: its field holds the sum of the pseudo-header, as far as there
/// is one.
pub fn write(
    header: &mut [u8],
    error: IcmpError,
    (src, dst): (IpAddr, IpAddr),
    quoted_tos: u8,
    quoted: u16,
) {
    let icmp_len = quoted.saturating_add(8);
    let (version, pseudo_header) = match (src, dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) if header.len() == header_len(IpVersion::V4) => {
            // Whole for ever, so that its id says nothing (RFC 6864, section 4.1).
            header[..ipv4::HEADER_LEN].fill(0);
            let mut ip = Ipv4Packet::new_unchecked(&mut *header);
            ip.set_version(4);
            ip.set_header_len(ip_len(IpVersion::V4));
            ip.set_tos(tos(IpVersion::V4, quoted_tos));
            ip.set_total_len(icmp_len.saturating_add(ip_len(IpVersion::V4).into()));
            ip.set_dont_frag(true);
            ip.set_hop_limit(HOP_LIMIT);
            ip.set_protocol(protocol::ICMP);
            ip.set_src_addr(src);
            ip.set_dst_addr(dst);
            ip.fill_checksum();
            (IpVersion::V4, 0)
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) if header.len() == header_len(IpVersion::V6) => {
            header[..ipv6::HEADER_LEN].fill(0);
            let mut ip = Ipv6Packet::new_unchecked(&mut *header);
            ip.set_version(6);
            ip.set_traffic_class(tos(IpVersion::V6, quoted_tos));
            ip.set_payload_len(icmp_len);
            ip.set_next_header(protocol::ICMPV6);
            ip.set_hop_limit(HOP_LIMIT);
            ip.set_src_addr(src);
            ip.set_dst_addr(dst);
            let sum = Sum::pseudo_header_v6(src, dst, protocol::ICMPV6, icmp_len.into());
            (IpVersion::V6, sum.fold())
        }
        _ => return,
    };
    let (msg_type, code, rest) = error.fields(version);
    let at = header.len() - icmp::HEADER_LEN;
    let mut message = IcmpMessage::new_unchecked(&mut header[at..]);
    message.set_msg_type(msg_type);
    message.set_msg_code(code);
    message.set_rest(rest);
    message.set_checksum(pseudo_header);
}

#[cfg(test)]
mod tests {
    use etherparse::icmpv4::{DestUnreachableHeader, TimeExceededCode as CodeV4};
    use etherparse::icmpv6::{DestUnreachableCode, TimeExceededCode as CodeV6};
    use etherparse::{
        Icmpv4Header, Icmpv4Type, Icmpv6Header, Icmpv6Type, IpDscp, IpNumber, Ipv4Header,
        Ipv6Header,
    };
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    /// What [`write`] makes, with its checksum finished and the quoted bytes behind.
    fn written(error: IcmpError, ends: (IpAddr, IpAddr), quoted_tos: u8, quoted: &[u8]) -> Vec<u8> {
        let version = match ends.0 {
            IpAddr::V4(_) => IpVersion::V4,
            IpAddr::V6(_) => IpVersion::V6,
        };
        let len = header_len(version);
        let mut bytes = vec![0xa5; len];
        let quoted_len = u16::try_from(quoted.len()).unwrap();
        write(&mut bytes, error, ends, quoted_tos, quoted_len);
        bytes.extend(quoted);
        let at = len - icmp::HEADER_LEN;
        let checksum = Sum::of(&bytes[at..]).finish();
        IcmpMessage::new_unchecked(&mut bytes[at..]).set_checksum(checksum);
        bytes
    }

    fn error() -> impl Strategy<Value = IcmpError> {
        prop_oneof![
            Just(IcmpError::TimeExceeded),
            Just(IcmpError::NoRoute),
            any::<u16>().prop_map(IcmpError::TooBig),
        ]
    }

    proptest! {
        #[test]
        fn etherparse_agrees_on_ipv4(
            error in error(), src: [u8; 4], dst: [u8; 4], tos: u8,
            quoted in vec(any::<u8>(), 0..548),
        ) {
            let kind = match error {
                IcmpError::TimeExceeded => Icmpv4Type::TimeExceeded(CodeV4::TtlExceededInTransit),
                IcmpError::NoRoute => Icmpv4Type::DestinationUnreachable(DestUnreachableHeader::Network),
                IcmpError::TooBig(next_hop_mtu) => Icmpv4Type::DestinationUnreachable(
                    DestUnreachableHeader::FragmentationNeeded { next_hop_mtu },
                ),
            };
            let message = Icmpv4Header::with_checksum(kind, &quoted);
            let mut ip = Ipv4Header {
                dscp: IpDscp::try_new(tos >> 2 | 0b11_0000).unwrap(),
                total_len: u16::try_from(28 + quoted.len()).unwrap(),
                dont_fragment: true,
                time_to_live: 64,
                protocol: IpNumber::ICMP,
                source: src,
                destination: dst,
                ..Ipv4Header::default()
            };
            ip.header_checksum = ip.calc_header_checksum();
            let expected = [&ip.to_bytes()[..], &message.to_bytes(), &quoted].concat();
            prop_assert_eq!(written(error, (src.into(), dst.into()), tos, &quoted), expected);
        }

        #[test]
        fn etherparse_agrees_on_ipv6(
            error in error(), src: [u8; 16], dst: [u8; 16], tos: u8,
            quoted in vec(any::<u8>(), 0..1232),
        ) {
            let kind = match error {
                IcmpError::TimeExceeded => Icmpv6Type::TimeExceeded(CodeV6::HopLimitExceeded),
                IcmpError::NoRoute => Icmpv6Type::DestinationUnreachable(DestUnreachableCode::NoRoute),
                IcmpError::TooBig(mtu) => Icmpv6Type::PacketTooBig { mtu: u32::from(mtu).max(1280) },
            };
            let message = Icmpv6Header::with_checksum(kind, src, dst, &quoted).unwrap();
            let ip = Ipv6Header {
                payload_length: u16::try_from(8 + quoted.len()).unwrap(),
                next_header: IpNumber::IPV6_ICMP,
                hop_limit: 64,
                source: src,
                destination: dst,
                ..Ipv6Header::default()
            };
            let expected = [&ip.to_bytes()[..], &message.to_bytes(), &quoted].concat();
            prop_assert_eq!(written(error, (src.into(), dst.into()), tos, &quoted), expected);
        }
    }

    #[test]
    fn lengths_are_those_of_the_headers() {
        for version in [IpVersion::V4, IpVersion::V6] {
            assert_eq!(usize::from(ip_len(version)) + 8, header_len(version));
        }
    }

    #[test]
    fn an_error_is_as_long_as_its_rfc_and_its_way_allow() {
        assert_eq!(most_quoted(IpVersion::V4, 1500) + 28, 576);
        assert_eq!(most_quoted(IpVersion::V4, 576) + 28, 576);
        assert_eq!(most_quoted(IpVersion::V6, 1500) + 48, 1280);
        assert_eq!(most_quoted(IpVersion::V6, 1000) + 48, 1000);
        assert_eq!(most_quoted(IpVersion::V6, 0), 0);
    }

    #[test]
    fn nothing_is_written_where_it_does_not_fit() {
        let (v4, v6) = (IpAddr::from([10, 0, 0, 1]), IpAddr::from([0; 16]));
        for (len, ends) in [
            (27, (v4, v4)),
            (28, (v6, v6)),
            (28, (v4, v6)),
            (48, (v4, v4)),
        ] {
            let mut header = vec![0xa5; len];
            write(&mut header, IcmpError::NoRoute, ends, 0, 0);
            assert_eq!(header, vec![0xa5; len]);
        }
    }
}
