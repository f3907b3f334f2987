//! Table tests of the parser, and the frames that its tests are made from.

use etherparse::{IpHeaders, Ipv4Header, Ipv6Header, PacketBuilder};

use super::*;

/// The L4 part of a test packet.
#[derive(Debug, Clone, Copy)]
pub(super) enum L4 {
    Tcp,
    TcpWithOptions,
    Udp,
    Icmp,
}

/// A valid frame with traffic class 0xb9, hop limit 61 and ports 40000 to 5201.
pub(super) fn frame(version: IpVersion, l4: L4, payload: &[u8]) -> Vec<u8> {
    let ip = match version {
        IpVersion::V4 => {
            let addrs = ([10, 0, 0, 10], [10, 0, 1, 20]);
            let mut header =
                Ipv4Header::new(0, 61, etherparse::ip_number::UDP, addrs.0, addrs.1).unwrap();
            header.dscp = etherparse::IpDscp::try_new(0x2e).unwrap();
            header.ecn = etherparse::IpEcn::try_new(1).unwrap();
            IpHeaders::Ipv4(header, Default::default())
        }
        IpVersion::V6 => {
            let header = Ipv6Header {
                traffic_class: 0xb9,
                hop_limit: 61,
                source: [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x10],
                destination: [0xfd, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0x20],
                ..Default::default()
            };
            IpHeaders::Ipv6(header, Default::default())
        }
    };
    let builder = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]).ip(ip);
    let mut bytes = Vec::new();
    match (l4, version) {
        (L4::Tcp, _) => builder.tcp(40000, 5201, 7, 512).write(&mut bytes, payload),
        (L4::TcpWithOptions, _) => builder
            .tcp(40000, 5201, 7, 512)
            .options_raw(&[1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2])
            .unwrap()
            .write(&mut bytes, payload),
        (L4::Udp, _) => builder.udp(40000, 5201).write(&mut bytes, payload),
        (L4::Icmp, IpVersion::V4) => builder.icmpv4_echo_request(1, 2).write(&mut bytes, payload),
        (L4::Icmp, IpVersion::V6) => builder.icmpv6_echo_request(1, 2).write(&mut bytes, payload),
    }
    .unwrap();
    bytes
}

fn v4(l4: L4, payload: &[u8]) -> Vec<u8> {
    frame(IpVersion::V4, l4, payload)
}

fn v6(l4: L4, payload: &[u8]) -> Vec<u8> {
    frame(IpVersion::V6, l4, payload)
}

/// The frame with bytes set and the IPv4 header checksum true again.
pub(super) fn with(mut bytes: Vec<u8>, changes: &[(usize, u8)]) -> Vec<u8> {
    for (at, value) in changes {
        bytes[*at] = *value;
    }
    if bytes[12..14] == [0x08, 0x00] && bytes.len() >= 14 + usize::from(bytes[14] & 0xf) * 4 {
        Ipv4Packet::new_unchecked(&mut bytes[14..]).fill_checksum();
    }
    bytes
}

pub(super) fn parse_all(bytes: &[u8]) -> Result<Headers, ParseError> {
    parse(bytes, 14, bytes.len())
}

#[test]
fn good_ipv4_packets_parse() {
    let tcp = Headers {
        version: IpVersion::V4,
        protocol: 6,
        fragment: false,
        tos: 0xb9,
        hop_limit: 61,
        l3: 14,
        l4: 34,
        payload: 54,
        sport: 40000,
        dport: 5201,
        l3_len: 140,
        src: "10.0.0.10".parse().unwrap(),
        dst: "10.0.1.20".parse().unwrap(),
    };
    assert_eq!(parse_all(&v4(L4::Tcp, &[1; 100])), Ok(tcp));
    let options = Headers {
        payload: 66,
        l3_len: 152,
        ..tcp
    };
    assert_eq!(parse_all(&v4(L4::TcpWithOptions, &[1; 100])), Ok(options));
    let udp = Headers {
        protocol: 17,
        payload: 42,
        l3_len: 128,
        ..tcp
    };
    assert_eq!(parse_all(&v4(L4::Udp, &[1; 100])), Ok(udp));
    let icmp = Headers {
        protocol: 1,
        payload: 34,
        sport: 0,
        dport: 0,
        l3_len: 128,
        ..tcp
    };
    assert_eq!(parse_all(&v4(L4::Icmp, &[1; 100])), Ok(icmp));
}

#[test]
fn good_ipv6_packets_parse() {
    let tcp = Headers {
        version: IpVersion::V6,
        protocol: 6,
        fragment: false,
        tos: 0xb9,
        hop_limit: 61,
        l3: 14,
        l4: 54,
        payload: 74,
        sport: 40000,
        dport: 5201,
        l3_len: 160,
        src: "fd00::10".parse().unwrap(),
        dst: "fd00:0:0:1::20".parse().unwrap(),
    };
    assert_eq!(parse_all(&v6(L4::Tcp, &[1; 100])), Ok(tcp));
    let options = Headers {
        payload: 86,
        l3_len: 172,
        ..tcp
    };
    assert_eq!(parse_all(&v6(L4::TcpWithOptions, &[1; 100])), Ok(options));
    let udp = Headers {
        protocol: 17,
        payload: 62,
        l3_len: 148,
        ..tcp
    };
    assert_eq!(parse_all(&v6(L4::Udp, &[1; 100])), Ok(udp));
    let icmp = Headers {
        protocol: 58,
        payload: 54,
        sport: 0,
        dport: 0,
        l3_len: 148,
        ..tcp
    };
    assert_eq!(parse_all(&v6(L4::Icmp, &[1; 100])), Ok(icmp));
}

#[test]
fn each_defect_has_its_reason() {
    let t4 = || v4(L4::Tcp, &[1; 100]);
    let u4 = || v4(L4::Udp, &[1; 100]);
    let t6 = || v6(L4::Tcp, &[1; 100]);
    let u6 = || v6(L4::Udp, &[1; 100]);
    let mut wrong_checksum = t4();
    wrong_checksum[24] ^= 1;
    let cases = [
        (
            "ARP",
            with(t4(), &[(12, 0x08), (13, 0x06)]),
            ParseError::UnknownEtherType,
        ),
        (
            "VLAN",
            with(t4(), &[(12, 0x81), (13, 0x00)]),
            ParseError::UnknownEtherType,
        ),
        (
            "IPv6 as IPv4",
            with(t6(), &[(12, 0x08), (13, 0)]),
            ParseError::Ipv4BadVersion,
        ),
        (
            "IPv4 as IPv6",
            with(t4(), &[(12, 0x86), (13, 0xdd)]),
            ParseError::Ipv6BadVersion,
        ),
        (
            "IHL 4",
            with(t4(), &[(14, 0x44)]),
            ParseError::Ipv4BadHeaderLength,
        ),
        ("IHL 6", with(t4(), &[(14, 0x46)]), ParseError::Ipv4Options),
        (
            "total length 0",
            with(t4(), &[(17, 0)]),
            ParseError::Ipv4BadTotalLength,
        ),
        (
            "total length + 1",
            with(t4(), &[(17, 141)]),
            ParseError::Ipv4BadTotalLength,
        ),
        ("checksum", wrong_checksum, ParseError::Ipv4BadChecksum),
        (
            "GRE",
            with(t4(), &[(23, 47)]),
            ParseError::UnsupportedProtocol,
        ),
        (
            "ICMPv6 in IPv4",
            with(t4(), &[(23, 58)]),
            ParseError::UnsupportedProtocol,
        ),
        (
            "GRE fragment",
            with(t4(), &[(20, 1), (23, 47)]),
            ParseError::UnsupportedProtocol,
        ),
        (
            "payload length + 1",
            with(t6(), &[(19, 121)]),
            ParseError::Ipv6BadPayloadLength,
        ),
        (
            "hop-by-hop",
            with(t6(), &[(20, 0)]),
            ParseError::Ipv6ExtensionHeader,
        ),
        (
            "fragment header",
            with(t6(), &[(20, 44)]),
            ParseError::Ipv6ExtensionHeader,
        ),
        (
            "destination options",
            with(t6(), &[(20, 60)]),
            ParseError::Ipv6ExtensionHeader,
        ),
        (
            "no next header",
            with(t6(), &[(20, 59)]),
            ParseError::UnsupportedProtocol,
        ),
        (
            "ICMPv4 in IPv6",
            with(t6(), &[(20, 1)]),
            ParseError::UnsupportedProtocol,
        ),
        (
            "TCP of 19 bytes",
            with(t4(), &[(17, 39)]),
            ParseError::TruncatedTcp,
        ),
        (
            "TCP of 19 bytes, v6",
            with(t6(), &[(19, 19)]),
            ParseError::TruncatedTcp,
        ),
        (
            "BIG TCP, v6",
            with(t6(), &[(19, 0)]),
            ParseError::TruncatedTcp,
        ),
        (
            "data offset 4",
            with(t4(), &[(46, 0x40)]),
            ParseError::TcpBadDataOffset,
        ),
        (
            "offset 15 of 40 bytes",
            with(t4(), &[(17, 60), (46, 0xf0)]),
            { ParseError::TcpBadDataOffset },
        ),
        (
            "data offset 4, v6",
            with(t6(), &[(66, 0x40)]),
            ParseError::TcpBadDataOffset,
        ),
        (
            "UDP of 7 bytes",
            with(u4(), &[(17, 27)]),
            ParseError::TruncatedUdp,
        ),
        (
            "UDP length 7",
            with(u4(), &[(39, 7)]),
            ParseError::UdpBadLength,
        ),
        (
            "UDP length + 1",
            with(u4(), &[(39, 109)]),
            ParseError::UdpBadLength,
        ),
        (
            "UDP length 0, v6",
            with(u6(), &[(59, 0)]),
            ParseError::UdpBadLength,
        ),
        (
            "UDP length + 1, v6",
            with(u6(), &[(59, 109)]),
            ParseError::UdpBadLength,
        ),
        (
            "ICMP of 7 bytes",
            with(v4(L4::Icmp, &[]), &[(17, 27)]),
            ParseError::TruncatedIcmp,
        ),
        (
            "ICMP of 7 bytes, v6",
            with(v6(L4::Icmp, &[]), &[(19, 7)]),
            ParseError::TruncatedIcmp,
        ),
    ];
    for (defect, bytes, error) in cases {
        assert_eq!(parse_all(&bytes), Err(error), "{defect}");
    }
}

#[test]
fn every_truncation_has_its_reason() {
    for (bytes, l3_end, in_l3, in_l4) in [
        (
            v4(L4::Tcp, &[1; 9]),
            34,
            ParseError::TruncatedIpv4,
            ParseError::Ipv4BadTotalLength,
        ),
        (
            v6(L4::Udp, &[1; 9]),
            54,
            ParseError::TruncatedIpv6,
            ParseError::Ipv6BadPayloadLength,
        ),
    ] {
        for len in 0..bytes.len() {
            let error = match len {
                0..14 => ParseError::TruncatedEthernet,
                _ if len < l3_end => in_l3,
                _ => in_l4,
            };
            assert_eq!(parse_all(&bytes[..len]), Err(error), "{len}");
        }
        assert!(parse_all(&bytes).is_ok());
    }
}

/// The first chunk must hold all headers; later chunks are not looked at.
#[test]
fn a_first_chunk_that_ends_inside_a_header_is_refused() {
    for (bytes, headers_end, error) in [
        (
            v4(L4::TcpWithOptions, &[1; 99]),
            66,
            ParseError::TruncatedTcp,
        ),
        (
            v6(L4::TcpWithOptions, &[1; 99]),
            86,
            ParseError::TruncatedTcp,
        ),
        (v4(L4::Udp, &[1; 99]), 42, ParseError::TruncatedUdp),
        (v6(L4::Icmp, &[1; 99]), 62, ParseError::TruncatedIcmp),
    ] {
        let l4 = usize::from(parse_all(&bytes).unwrap().l4);
        for len in l4..headers_end {
            assert_eq!(parse(&bytes[..len], 14, bytes.len()), Err(error), "{len}");
        }
        for len in headers_end..bytes.len() {
            assert_eq!(
                parse(&bytes[..len], 14, bytes.len()),
                parse_all(&bytes),
                "{len}"
            );
        }
    }
}

#[test]
fn a_super_frame_parses_by_its_first_chunk() {
    let bytes = v4(L4::TcpWithOptions, &vec![7; 65000]);
    let headers = parse(&bytes[..4096], 14, bytes.len()).unwrap();
    assert_eq!((headers.l3_len, headers.payload_len()), (65052, 65000));
    assert_eq!(headers.end(), bytes.len());
    let missing = parse(&bytes[..4096], 14, bytes.len() - 1);
    assert_eq!(missing, Err(ParseError::Ipv4BadTotalLength));
}

#[test]
fn a_udp_length_may_fall_short_in_a_whole_packet_only() {
    let shorter = with(v4(L4::Udp, &[1; 3000]), &[(39, 0xb0)]);
    let headers = parse_all(&shorter).unwrap();
    assert_eq!((headers.l4_len(), headers.payload_len()), (3008, 3000));
    assert_eq!(
        parse(&shorter[..2048], 14, shorter.len()),
        Err(ParseError::UdpBadLength)
    );
    let whole = v4(L4::Udp, &[1; 3000]);
    assert_eq!(parse(&whole[..2048], 14, whole.len()), parse_all(&whole));
}

#[test]
fn fragments_are_taken_by_their_ip_header() {
    let whole = parse_all(&v4(L4::Udp, &[1; 100])).unwrap();
    let fragment = Headers {
        fragment: true,
        payload: 34,
        sport: 0,
        dport: 0,
        ..whole
    };
    // The first carries a UDP header whose length is that of the whole datagram.
    let first = with(v4(L4::Udp, &[1; 100]), &[(20, 0x20), (38, 0x10)]);
    assert_eq!(parse_all(&first), Ok(fragment));
    let last = with(v4(L4::Udp, &[1; 100]), &[(21, 0xb9), (38, 0xff)]);
    assert_eq!(parse_all(&last), Ok(fragment));
    let tiny = with(v4(L4::Tcp, &[1; 100]), &[(17, 21), (21, 1)]);
    assert_eq!(parse_all(&tiny).map(|headers| headers.l4_len()), Ok(1));
}

#[test]
fn padding_is_not_the_packet() {
    for bytes in [v4(L4::Udp, &[]), v6(L4::Tcp, &[])] {
        let mut padded = bytes.clone();
        padded.resize(128, 0xa5);
        assert_eq!(parse_all(&padded), parse_all(&bytes));
        assert_eq!(parse(&padded, 14, bytes.len()), parse_all(&bytes));
        assert_eq!(parse_all(&padded).unwrap().end(), bytes.len());
    }
}

#[test]
fn an_offset_outside_the_frame_is_refused() {
    let bytes = v4(L4::Tcp, &[1; 10]);
    for l3 in [0, 13, bytes.len() + 1, 65436, 65536, usize::MAX] {
        assert_eq!(
            parse(&bytes, l3, bytes.len()),
            Err(ParseError::TruncatedEthernet),
            "{l3}"
        );
    }
    assert_eq!(parse(&bytes, 14, 13), Err(ParseError::TruncatedEthernet));
    assert_eq!(parse(&[], 14, 0), Err(ParseError::TruncatedEthernet));
    // The furthest that is served.
    let mut far = vec![0; usize::from(MAX_L3) - 14];
    far.extend(v6(L4::TcpWithOptions, &[]));
    let headers = parse(&far, usize::from(MAX_L3), far.len()).unwrap();
    assert_eq!(headers.payload, MAX_L3 + 40 + 32);
}

/// Outer frame, UDP, VXLAN and an inner frame.
fn tunnelled(inner: &[u8]) -> Vec<u8> {
    let mut payload = vec![0x08, 0xff, 0xff, 0xff, 0x00, 0x00, 0x2a, 0xff];
    payload.extend(inner);
    v4(L4::Udp, &payload)
}

#[test]
fn an_inner_packet_parses_in_place() {
    let inner = v6(L4::Tcp, &[1; 100]);
    let mut bytes = tunnelled(&inner);
    bytes.extend([0xa5; 7]);
    let outer = parse_all(&bytes).unwrap();
    let (vni, l3) = parse_vxlan(&bytes, usize::from(outer.payload), outer.end()).unwrap();
    assert_eq!((vni.get(), l3), (42, 64));
    let alone = parse_all(&inner).unwrap();
    let headers = parse(&bytes, l3, outer.end()).unwrap();
    assert_eq!(
        headers,
        Headers {
            l3: 64,
            l4: 104,
            payload: 124,
            ..alone
        }
    );
}

#[test]
fn each_vxlan_defect_has_its_reason() {
    let bytes = tunnelled(&v4(L4::Icmp, &[]));
    for len in 0..64 {
        assert_eq!(
            parse_vxlan(&bytes[..len], 42, bytes.len()),
            Err(ParseError::TruncatedVxlan)
        );
        assert_eq!(
            parse_vxlan(&bytes, 42, len),
            Err(ParseError::TruncatedVxlan),
            "{len}"
        );
    }
    assert!(parse_vxlan(&bytes[..64], 42, 64).is_ok());
    assert_eq!(
        parse_vxlan(&bytes, usize::MAX, bytes.len()),
        Err(ParseError::TruncatedVxlan)
    );
    let clear = with(bytes, &[(42, 0xf7)]);
    assert_eq!(
        parse_vxlan(&clear, 42, clear.len()),
        Err(ParseError::VxlanFlagClear)
    );
}
