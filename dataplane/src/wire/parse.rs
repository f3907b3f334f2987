//! All headers of a packet, checked once.
//!
//! The packet path parses each packet here, and everything behind goes by the offsets and fields of
//! [`Headers`]. What the XDP program passes to the kernel on purpose (options, extension headers,
//! other protocols) is refused here too, each under a reason of its own: the program decides, this
//! is the second lock on the door.

use podway_proto::types::Vni;

pub use super::headers::{Headers, IpVersion};
use super::{EtherType, EthernetFrame, Ipv4Packet, Ipv6Packet, Malformed, TcpSegment, UdpDatagram};
use super::{VxlanHeader, ethernet, icmp, ipv4, ipv6, protocol, udp, vxlan};

/// Largest offset of an IP header. Offsets are kept in 16 bits, and an IPv6 header and the longest
/// TCP header (60 bytes) fit behind this one. No first chunk comes near.
const MAX_L3: u16 = u16::MAX - 40 - 60;

/// Why a packet is refused. Each is a drop reason of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// The frame is shorter than an Ethernet header.
    #[error("the frame is shorter than an Ethernet header")]
    TruncatedEthernet,
    /// The frame is neither IPv4 nor IPv6.
    #[error("the frame is neither IPv4 nor IPv6")]
    UnknownEtherType,
    /// The packet ends inside its IPv4 header.
    #[error("the packet ends inside its IPv4 header")]
    TruncatedIpv4,
    /// The version field of an IPv4 packet is not 4.
    #[error("the version of an IPv4 packet is not 4")]
    Ipv4BadVersion,
    /// The IPv4 header length is below 20 bytes or beyond the packet.
    #[error("the IPv4 header length is below 20 or beyond the packet")]
    Ipv4BadHeaderLength,
    /// The IPv4 packet has options.
    #[error("the IPv4 packet has options")]
    Ipv4Options,
    /// The IPv4 total length is below its header's or beyond the packet.
    #[error("the IPv4 total length is below its header's or beyond the packet")]
    Ipv4BadTotalLength,
    /// The IPv4 header checksum is wrong.
    #[error("the IPv4 header checksum is wrong")]
    Ipv4BadChecksum,
    /// The packet ends inside its IPv6 header.
    #[error("the packet ends inside its IPv6 header")]
    TruncatedIpv6,
    /// The version field of an IPv6 packet is not 6.
    #[error("the version of an IPv6 packet is not 6")]
    Ipv6BadVersion,
    /// The IPv6 payload length goes beyond the packet.
    #[error("the IPv6 payload length goes beyond the packet")]
    Ipv6BadPayloadLength,
    /// The IPv6 packet has extension headers.
    #[error("the IPv6 packet has extension headers")]
    Ipv6ExtensionHeader,
    /// The packet ends inside its TCP header.
    #[error("the packet ends inside its TCP header")]
    TruncatedTcp,
    /// The TCP data offset is below 5 or beyond the packet.
    #[error("the TCP data offset is below 5 or beyond the packet")]
    TcpBadDataOffset,
    /// The packet ends inside its UDP header.
    #[error("the packet ends inside its UDP header")]
    TruncatedUdp,
    /// The UDP length does not agree with the IP packet's.
    #[error("the UDP length does not agree with the IP packet's")]
    UdpBadLength,
    /// The packet ends inside its ICMP header.
    #[error("the packet ends inside its ICMP header")]
    TruncatedIcmp,
    /// Neither TCP, UDP nor ICMP.
    #[error("neither TCP, UDP nor ICMP")]
    UnsupportedProtocol,
    /// The packet ends inside its VXLAN header or the inner Ethernet header.
    #[error("the packet ends inside its VXLAN header or the inner Ethernet header")]
    TruncatedVxlan,
    /// The I flag of the VXLAN header is clear.
    #[error("the I flag of the VXLAN header is clear")]
    VxlanFlagClear,
}

/// Checks the headers of a packet, from Ethernet to L4.
///
/// `head` is the packet's first chunk and must hold all headers; `l3` is the offset of the IP
/// header, right behind the EtherType; `packet_len` is the length in bytes from the start of `head`
/// to the end of the packet over all its chunks. Bytes of `head` behind `packet_len` are not looked
/// at. For an inner packet, `head` still starts at the outer frame and `packet_len` is the outer
/// packet's [`Headers::end`].
///
/// L4 checksums are not judged: they may be unfinished, and their payload may be in other chunks.
pub fn parse(head: &[u8], l3: usize, packet_len: usize) -> Result<Headers, ParseError> {
    let mut headers = Headers::UNREAD;
    parse_to(&mut headers, head, l3, packet_len)?;
    Ok(headers)
}

/// As [`parse`], into `headers`, which are worth nothing after an error. The packet path calls this
/// one: to move what has just been written field by field makes the processor wait.
#[inline]
pub fn parse_to(
    headers: &mut Headers,
    head: &[u8],
    l3: usize,
    packet_len: usize,
) -> Result<(), ParseError> {
    let head = head.get(..packet_len).unwrap_or(head);
    let (link, bytes) = head
        .split_at_checked(l3)
        .ok_or(ParseError::TruncatedEthernet)?;
    let ethernet: &[u8; ethernet::HEADER_LEN] =
        link.last_chunk().ok_or(ParseError::TruncatedEthernet)?;
    let l3_offset = u16::try_from(l3)
        .ok()
        .filter(|l3| *l3 <= MAX_L3)
        .ok_or(ParseError::TruncatedEthernet)?;
    let room = packet_len.saturating_sub(l3);
    let l4 = match EthernetFrame::new_unchecked(ethernet).ethertype() {
        EtherType::IPV4 => parse_ipv4(headers, bytes, l3_offset, room)?,
        EtherType::IPV6 => parse_ipv6(headers, bytes, l3_offset, room)?,
        _ => return Err(ParseError::UnknownEtherType),
    };
    if headers.fragment {
        return Ok(());
    }
    let bytes = l4.bytes.get(..l4.len).unwrap_or(l4.bytes);
    match headers.protocol {
        protocol::TCP => parse_tcp(headers, bytes, l4.len)?,
        protocol::UDP => {
            let whole = head.len() == packet_len;
            parse_udp(headers, bytes, l4.len, whole)?;
        }
        // Nothing else came through the IP parsers.
        _ if bytes.len() < icmp::HEADER_LEN => return Err(ParseError::TruncatedIcmp),
        _ => {}
    }
    Ok(())
}

/// What follows an IP header.
struct Behind<'a> {
    /// What of it, and of what follows it, lies in the first chunk.
    bytes: &'a [u8],
    /// Its length by the IP header.
    len: usize,
}

/// Checks the VXLAN header at offset `vxlan` of `head` and the room for an inner Ethernet header
/// behind it. Returns the VNI and the offset of the inner IP header, for [`parse`]. `head` and
/// `packet_len` are as there.
#[inline]
pub fn parse_vxlan(
    head: &[u8],
    vxlan: usize,
    packet_len: usize,
) -> Result<(Vni, usize), ParseError> {
    let head = head.get(..packet_len).unwrap_or(head);
    let header = head.get(vxlan..).unwrap_or_default();
    if header.len() < vxlan::HEADER_LEN + ethernet::HEADER_LEN {
        return Err(ParseError::TruncatedVxlan);
    }
    let header = VxlanHeader::new_unchecked(header);
    if !header.has_vni() {
        return Err(ParseError::VxlanFlagClear);
    }
    Ok((
        header.vni(),
        vxlan + vxlan::HEADER_LEN + ethernet::HEADER_LEN,
    ))
}

/// The offset behind a header of `len` bytes, at most 60, that starts at `offset`.
#[inline]
fn behind(offset: u16, len: usize) -> u16 {
    offset.saturating_add(u16::try_from(len).unwrap_or(u16::MAX))
}

#[inline(always)]
fn parse_ipv4<'a>(
    headers: &mut Headers,
    bytes: &'a [u8],
    l3: u16,
    room: usize,
) -> Result<Behind<'a>, ParseError> {
    // Version 4 and no options, as nearly all: then its length is known when this is compiled.
    let header = match bytes.split_first_chunk::<{ ipv4::HEADER_LEN }>() {
        Some((header, bytes)) if header[0] == 0x45 => Some((header, bytes)),
        _ => None,
    };
    let Some((header, bytes)) = header else {
        return Err(why_not_plain(bytes, room));
    };
    let packet = Ipv4Packet::new_unchecked(header);
    packet.check(room).map_err(ipv4_error)?;
    if !matches!(
        packet.protocol(),
        protocol::TCP | protocol::UDP | protocol::ICMP
    ) {
        return Err(ParseError::UnsupportedProtocol);
    }
    let l4 = behind(l3, ipv4::HEADER_LEN);
    *headers = Headers {
        version: IpVersion::V4,
        protocol: packet.protocol(),
        fragment: packet.is_fragment(),
        tos: packet.tos(),
        hop_limit: packet.hop_limit(),
        l3,
        l4,
        payload: l4,
        sport: 0,
        dport: 0,
        l3_len: u32::from(packet.total_len()),
        src: packet.src_addr().into(),
        dst: packet.dst_addr().into(),
    };
    let len = usize::from(packet.total_len()).saturating_sub(ipv4::HEADER_LEN);
    Ok(Behind { bytes, len })
}

/// What is wrong with an IPv4 packet whose header is cut off, of another version or not 20 bytes.
#[cold]
fn why_not_plain(bytes: &[u8], room: usize) -> ParseError {
    match Ipv4Packet::new_unchecked(bytes).check(room) {
        Ok(()) => ParseError::Ipv4Options,
        Err(malformed) => ipv4_error(malformed),
    }
}

fn ipv4_error(malformed: Malformed) -> ParseError {
    match malformed {
        Malformed::Truncated => ParseError::TruncatedIpv4,
        Malformed::BadVersion => ParseError::Ipv4BadVersion,
        Malformed::BadHeaderLength => ParseError::Ipv4BadHeaderLength,
        Malformed::BadTotalLength => ParseError::Ipv4BadTotalLength,
        Malformed::BadChecksum => ParseError::Ipv4BadChecksum,
    }
}

#[inline(always)]
fn parse_ipv6<'a>(
    headers: &mut Headers,
    bytes: &'a [u8],
    l3: u16,
    room: usize,
) -> Result<Behind<'a>, ParseError> {
    let (header, bytes) = bytes
        .split_first_chunk::<{ ipv6::HEADER_LEN }>()
        .ok_or(ParseError::TruncatedIpv6)?;
    let packet = Ipv6Packet::new_unchecked(header);
    packet.check(room).map_err(|malformed| match malformed {
        Malformed::Truncated | Malformed::BadHeaderLength => ParseError::TruncatedIpv6,
        Malformed::BadVersion => ParseError::Ipv6BadVersion,
        Malformed::BadTotalLength | Malformed::BadChecksum => ParseError::Ipv6BadPayloadLength,
    })?;
    match packet.next_header() {
        protocol::TCP | protocol::UDP | protocol::ICMPV6 => {}
        header if is_extension_header(header) => return Err(ParseError::Ipv6ExtensionHeader),
        _ => return Err(ParseError::UnsupportedProtocol),
    }
    let l4 = behind(l3, ipv6::HEADER_LEN);
    *headers = Headers {
        version: IpVersion::V6,
        protocol: packet.next_header(),
        fragment: false,
        tos: packet.traffic_class(),
        hop_limit: packet.hop_limit(),
        l3,
        l4,
        payload: l4,
        sport: 0,
        dport: 0,
        l3_len: u32::from(behind(0, ipv6::HEADER_LEN)) + u32::from(packet.payload_len()),
        src: packet.src_addr().into(),
        dst: packet.dst_addr().into(),
    };
    let len = usize::from(packet.payload_len());
    Ok(Behind { bytes, len })
}

/// The IPv6 extension header types that IANA lists (RFC 7045): hop-by-hop options, routing,
/// fragment, ESP, AH, destination options, mobility, HIP, Shim6, and two for experiments.
#[inline]
fn is_extension_header(next_header: u8) -> bool {
    matches!(
        next_header,
        0 | 43 | 44 | 50 | 51 | 60 | 135 | 139 | 140 | 253 | 254
    )
}

#[inline(always)]
fn parse_tcp(headers: &mut Headers, bytes: &[u8], l4_len: usize) -> Result<(), ParseError> {
    let segment = TcpSegment::new_unchecked(bytes);
    segment.check(l4_len).map_err(|malformed| match malformed {
        Malformed::BadHeaderLength => ParseError::TcpBadDataOffset,
        _ => ParseError::TruncatedTcp,
    })?;
    headers.sport = segment.src_port();
    headers.dport = segment.dst_port();
    headers.payload = behind(headers.l4, segment.header_len());
    Ok(())
}

/// `whole`: the packet has no further chunks. One that has is a super-frame or a jumbo frame, whose
/// payload is handed on by the IP length alone; its UDP length must say the same. Linux writes it so
/// into a UDP super-frame (`udp_send_skb`), before the cutting gives each segment its own.
#[inline(always)]
fn parse_udp(
    headers: &mut Headers,
    bytes: &[u8],
    l4_len: usize,
    whole: bool,
) -> Result<(), ParseError> {
    let datagram = UdpDatagram::new_unchecked(bytes);
    datagram
        .check(l4_len)
        .map_err(|malformed| match malformed {
            Malformed::Truncated => ParseError::TruncatedUdp,
            _ => ParseError::UdpBadLength,
        })?;
    if !whole && usize::from(datagram.len()) != l4_len {
        return Err(ParseError::UdpBadLength);
    }
    headers.sport = datagram.src_port();
    headers.dport = datagram.dst_port();
    headers.payload = behind(headers.l4, udp::HEADER_LEN);
    Ok(())
}

#[cfg(test)]
mod tests;

#[cfg(test)]
mod oracle;
