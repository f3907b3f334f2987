//! Checksums and lengths, by who finishes the former and who segments: the kernel, told by a
//! [`VnetHeader`], or we.

use super::message::VnetHeader;
use crate::packet::Packet;
use crate::verdict::Send;
use crate::wire::tcp::flag;
use crate::wire::{Headers, IpVersion, Ipv4Packet, Ipv6Packet, TcpSegment, UdpDatagram, protocol};

/// Whether the L4 checksum is right, or partial, which its sender vouches for.
#[inline]
pub(super) fn is_sound(packet: &Packet<'_>, send: &Send<'_>) -> bool {
    send.partial_checksum || packet.checksum_is_right(&send.headers)
}

/// Finishes the partial L4 checksum of a packet in place. Does nothing for a packet without one.
pub(super) fn finish_checksum(packet: &mut Packet<'_>, headers: &Headers) {
    let l4 = usize::from(headers.l4);
    let at = headers.checksum_offset();
    if let Some(field) = at.and_then(|at| at.checked_sub(l4)) {
        packet.finish_checksum(l4, headers.l4_len() as usize, field);
    }
}

/// The metadata of a packet that is sent as it is.
#[inline]
pub(super) fn lone_vnet(headers: &Headers, partial: bool) -> VnetHeader {
    let field = headers.checksum_offset().filter(|_| partial);
    field.map_or_else(VnetHeader::default, |field| VnetHeader {
        flags: VnetHeader::NEEDS_CSUM,
        csum_start: headers.l4,
        csum_offset: u16::try_from(field)
            .unwrap_or(u16::MAX)
            .saturating_sub(headers.l4),
        ..VnetHeader::default()
    })
}

/// The metadata of a super-frame, whose first segment has the TCP flags `flags`.
#[inline]
pub(super) fn super_frame_vnet(headers: &Headers, size: u32, flags: u16) -> VnetHeader {
    let kind = match (headers.protocol, headers.version) {
        (protocol::UDP, _) => VnetHeader::GSO_UDP_L4,
        (_, IpVersion::V4) => VnetHeader::GSO_TCPV4,
        (_, IpVersion::V6) => VnetHeader::GSO_TCPV6,
    };
    let ecn = if flags & flag::CWR != 0 {
        VnetHeader::GSO_ECN
    } else {
        0
    };
    VnetHeader {
        gso_type: kind | ecn,
        hdr_len: headers.payload,
        gso_size: u16::try_from(size).unwrap_or(u16::MAX),
        ..lone_vnet(headers, true)
    }
}

/// Writes into the headers `bytes` (from the frame's start) what a super-frame of `l4_len` bytes
/// of TCP or UDP header and payload has: lengths, the IPv4 checksum, the TCP flags `ending`, and
/// the pseudo-header's sum in place of the checksum.
#[inline]
pub(super) fn super_frame(bytes: &mut [u8], headers: &Headers, l4_len: u32, ending: u16) {
    let Some((ip, l4)) = split_mut(bytes, headers) else {
        return;
    };
    set_ip_len(ip, headers, l4_len);
    let pseudo = headers.pseudo_header(l4_len).fold();
    if headers.protocol == protocol::UDP {
        if let Ok(mut udp) = UdpDatagram::new_checked(l4) {
            udp.set_len(u16::try_from(l4_len).unwrap_or(u16::MAX));
            udp.set_checksum(pseudo);
        }
    } else if let Ok(mut tcp) = TcpSegment::new_checked(l4) {
        tcp.set_flags(tcp.flags() | ending);
        tcp.set_checksum(pseudo);
    }
}

/// Writes the length of an IP packet with `l4_len` bytes behind its header; makes the IPv4 header
/// checksum anew, for which all else in the header must be in place.
#[inline]
pub(super) fn set_ip_len(ip: &mut [u8], headers: &Headers, l4_len: u32) {
    let ip_len = ip.len();
    let narrow = |len: usize| u16::try_from(len).unwrap_or(u16::MAX);
    match headers.version {
        IpVersion::V4 => {
            if let Ok(mut ip) = Ipv4Packet::new_checked(ip) {
                ip.set_total_len(narrow(ip_len + l4_len as usize));
                ip.fill_checksum();
            }
        }
        IpVersion::V6 => {
            if let Ok(mut ip) = Ipv6Packet::new_checked(ip) {
                ip.set_payload_len(narrow(l4_len as usize));
            }
        }
    }
}

/// The packet's bytes up to its payload; `None` if those are not all in the head.
#[inline]
pub(super) fn header_bytes<'p>(packet: &'p Packet<'_>, headers: &Headers) -> Option<&'p [u8]> {
    packet.head().get(..headers.payload.into())
}

/// The IP and the L4 header in bytes from the frame's start to the payload.
#[inline]
pub(super) fn split<'b>(bytes: &'b [u8], headers: &Headers) -> Option<(&'b [u8], &'b [u8])> {
    let (l3, l4) = (headers.l3.into(), headers.l4.into());
    Some((bytes.get(l3..l4)?, bytes.get(l4..headers.payload.into())?))
}

/// As [`split`], to be written.
#[inline]
pub(super) fn split_mut<'b>(
    bytes: &'b mut [u8],
    headers: &Headers,
) -> Option<(&'b mut [u8], &'b mut [u8])> {
    let l4 = usize::from(headers.l4.checked_sub(headers.l3)?);
    bytes
        .get_mut(headers.l3.into()..headers.payload.into())?
        .split_at_mut_checked(l4)
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Spec, get16};
    use super::*;
    use crate::wire::parse::parse;
    use crate::xsk::Region;

    #[test]
    fn the_length_and_the_checksum_of_an_ip_header_go_together() {
        for v6 in [false, true] {
            let spec = |n| Spec {
                v6,
                ..Spec::tcp(1, 1, &vec![7; n])
            };
            let (mut short, long) = (spec(10).build(), spec(1000).build());
            let headers = parse(&short, 14, short.len()).unwrap();
            let (ip, _) = split_mut(&mut short, &headers).unwrap();
            set_ip_len(ip, &headers, 32 + 1000);
            let end = usize::from(headers.l4);
            assert_eq!(short[..end], long[..end]);
        }
    }

    #[test]
    fn what_has_no_checksum_field_is_not_touched() {
        let mut spec = Spec::udp(b"ping data");
        spec.partial = true;
        let mut frame = spec.build();
        let mut headers = parse(&frame, 14, frame.len()).unwrap();
        headers.protocol = protocol::ICMP;
        let (region, mut frames) = Region::new(1).unwrap();
        assert!(frames[0].set_data(256, frame.len()));
        region.bytes_mut(&mut frames[0]).copy_from_slice(&frame);
        let mut packet = Packet::new(&region, &mut frames).unwrap();
        finish_checksum(&mut packet, &headers);
        assert_eq!(packet.head(), frame);
        assert_eq!(lone_vnet(&headers, true), VnetHeader::default());
        headers.protocol = protocol::UDP;
        finish_checksum(&mut packet, &headers);
        spec.partial = false;
        frame = spec.build();
        assert_eq!(get16(packet.head(), 40), get16(&frame, 40));
    }

    #[test]
    fn headers_beyond_the_bytes_are_no_headers() {
        let frame = Spec::tcp(1, 1, b"x").build();
        let good = parse(&frame, 14, frame.len()).unwrap();
        assert!(split(&frame, &good).is_some());
        for (l3, l4, payload) in [(14, 34, 999), (34, 14, 66), (14, 66, 34), (999, 1000, 1001)] {
            let bad = Headers {
                l3,
                l4,
                payload,
                ..good
            };
            assert!(split(&frame, &bad).is_none());
            assert!(split_mut(&mut frame.clone(), &bad).is_none());
            let mut bytes = frame.clone();
            super_frame(&mut bytes, &bad, 5000, 0);
            assert_eq!(bytes, frame);
        }
    }
}
