//! Frames to be sent, made by a library that shares no code with the project.

use etherparse::{PacketBuilder, TcpHeader};
use podway_dataplane::egress::VnetHeader;

const FAR_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const NEAR_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];

/// Bytes of Ethernet, IPv4 and UDP headers.
pub(crate) const UDP4_HEADERS: usize = 14 + 20 + 8;

/// A UDP datagram over IPv4 with finished checksums, its flow told by the source port.
pub(crate) fn udp(source_port: u16, payload: &[u8]) -> Vec<u8> {
    let builder = PacketBuilder::ethernet2(FAR_MAC, NEAR_MAC)
        .ipv4([10, 0, 0, 1], [10, 0, 1, 1], 64)
        .udp(source_port, 4789);
    let mut bytes = Vec::new();
    builder.write(&mut bytes, payload).unwrap();
    bytes
}

/// `length` bytes that tell their position.
pub(crate) fn pattern(length: usize) -> Vec<u8> {
    (0..length)
        .map(|at| u8::try_from(at * 7 % 251).unwrap())
        .collect()
}

/// A TCP super-frame with `payload` bytes and an unfinished checksum, and its offload metadata.
pub(crate) fn tcp_super_frame(ipv6: bool, payload: usize, segment: u16) -> (Vec<u8>, VnetHeader) {
    let ethernet = PacketBuilder::ethernet2(FAR_MAC, NEAR_MAC);
    let ip = if ipv6 {
        ethernet.ipv6([0xfd; 16], [0xfe; 16], 64)
    } else {
        ethernet.ipv4([10, 0, 0, 1], [10, 0, 1, 1], 64)
    };
    let mut tcp = TcpHeader::new(40_000, 5201, 1, 1000);
    tcp.ack = true;
    let mut bytes = Vec::new();
    ip.tcp_header(tcp)
        .write(&mut bytes, &pattern(payload))
        .unwrap();
    let l4: u16 = if ipv6 { 54 } else { 34 };
    unfinish(&mut bytes, ipv6, usize::from(l4) + 16, 6);
    let vnet = VnetHeader {
        flags: VnetHeader::NEEDS_CSUM,
        gso_type: if ipv6 {
            VnetHeader::GSO_TCPV6
        } else {
            VnetHeader::GSO_TCPV4
        },
        hdr_len: l4 + 20,
        gso_size: segment,
        csum_start: l4,
        csum_offset: 16,
    };
    (bytes, vnet)
}

/// UDP whose payload is `blocks` blocks of `block` bytes, to be sent as a datagram each.
pub(crate) fn udp_super_frame(ipv6: bool, blocks: usize, block: u16) -> (Vec<u8>, VnetHeader) {
    let ethernet = PacketBuilder::ethernet2(FAR_MAC, NEAR_MAC);
    let ip = if ipv6 {
        ethernet.ipv6([0xfd; 16], [0xfe; 16], 64)
    } else {
        ethernet.ipv4([10, 0, 0, 1], [10, 0, 1, 1], 64)
    };
    let payload = pattern(blocks * usize::from(block));
    let mut bytes = Vec::new();
    ip.udp(50_000, 4789).write(&mut bytes, &payload).unwrap();
    let l4: u16 = if ipv6 { 54 } else { 34 };
    unfinish(&mut bytes, ipv6, usize::from(l4) + 6, 17);
    let vnet = VnetHeader {
        flags: VnetHeader::NEEDS_CSUM,
        gso_type: VnetHeader::GSO_UDP_L4,
        hdr_len: l4 + 8,
        gso_size: block,
        csum_start: l4,
        csum_offset: 6,
    };
    (bytes, vnet)
}

/// Puts the folded sum of the pseudo-header into the checksum field at `field`.
pub(crate) fn unfinish(bytes: &mut [u8], ipv6: bool, field: usize, protocol: u8) {
    let (addresses, l4) = if ipv6 { (22..54, 54) } else { (26..34, 34) };
    let length = u32::try_from(bytes.len() - l4).unwrap();
    let sum = sum(&bytes[addresses]) + length + u32::from(protocol);
    bytes[field..field + 2].copy_from_slice(&fold(sum).to_be_bytes());
}

/// Whether the UDP checksum of an IPv4 or IPv6 frame is right; 0, no checksum, is not.
pub(crate) fn udp_checksum_is_valid(bytes: &[u8]) -> bool {
    let ipv6 = bytes[12..14] == [0x86, 0xdd];
    let (addresses, l4) = if ipv6 { (22..54, 54) } else { (26..34, 34) };
    let udp = &bytes[l4..];
    let length = u32::from(u16::from_be_bytes([udp[4], udp[5]]));
    let total = sum(&bytes[addresses]) + 17 + length + sum(&udp[..length as usize]);
    udp[6..8] != [0, 0] && fold(total) == 0xffff
}

/// Whether the IPv4 header checksum is right.
pub(crate) fn ipv4_checksum_is_valid(bytes: &[u8]) -> bool {
    fold(sum(&bytes[14..34])) == 0xffff
}

fn sum(bytes: &[u8]) -> u32 {
    bytes
        .chunks(2)
        .map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)))
        .sum()
}

fn fold(mut sum: u32) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    u16::try_from(sum).unwrap()
}
