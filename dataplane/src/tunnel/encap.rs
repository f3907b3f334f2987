//! Patches of the outer header: what the finished template cannot know.
//!
//! Each function takes the bytes from the outer Ethernet header to the end of the outer UDP header,
//! a copy of an [`super::OuterHeader`] without its VXLAN header, and writes a few fields. Bytes too
//! short for that are left alone.
//!
//! Sources: RFC 7348 (VXLAN), RFC 6040 (ECN in tunnels), RFC 2983 (DSCP in tunnels),
//! RFC 6864 (an IPv4 id of 0 with DF set).

use crate::wire::protocol;
use crate::wire::{EtherType, EthernetFrame, Ipv4Packet, Ipv6Packet, Sum, UdpDatagram};
use crate::wire::{ethernet, ipv4, ipv6, udp};

/// Length in bytes of an outer header up to the end of UDP, over IPv4.
pub const LEN_V4: usize = ethernet::HEADER_LEN + ipv4::HEADER_LEN + udp::HEADER_LEN;

/// Length in bytes of an outer header up to the end of UDP, over IPv6.
pub const LEN_V6: usize = ethernet::HEADER_LEN + ipv6::HEADER_LEN + udp::HEADER_LEN;

/// Writes what all packets of a run have in common: the source port, and the inner DSCP and ECN
/// (RFC 6040, normal mode, 4.1: the ECN field is copied).
#[inline]
pub fn begin(header: &mut [u8], tos: u8, source_port: u16) {
    let Some((ethertype, ip, udp)) = split(header) else {
        return;
    };
    if ethertype == EtherType::IPV4 {
        Ipv4Packet::new_unchecked(ip).set_tos(tos);
    } else {
        Ipv6Packet::new_unchecked(ip).set_traffic_class(tos);
    }
    UdpDatagram::new_unchecked(udp).set_src_port(source_port);
}

/// Writes lengths and checksums for `payload_len` bytes behind the UDP header: the IPv4 header
/// checksum finished, that of UDP as the folded sum of its pseudo-header, which the kernel finishes
/// (`VIRTIO_NET_HDR_F_NEEDS_CSUM`), anew for each segment of a super-frame.
#[inline]
pub fn finish(header: &mut [u8], payload_len: u16) {
    let Some((ethertype, ip, udp)) = split(header) else {
        return;
    };
    let udp_len = payload_len.saturating_add(8);
    let pseudo = if ethertype == EtherType::IPV4 {
        let mut ip = Ipv4Packet::new_unchecked(ip);
        ip.set_total_len(udp_len.saturating_add(20));
        ip.fill_checksum();
        let (src, dst) = (ip.src_addr(), ip.dst_addr());
        Sum::pseudo_header_v4(src, dst, protocol::UDP, u32::from(udp_len))
    } else {
        let mut ip = Ipv6Packet::new_unchecked(ip);
        ip.set_payload_len(udp_len);
        let (src, dst) = (ip.src_addr(), ip.dst_addr());
        Sum::pseudo_header_v6(src, dst, protocol::UDP, u32::from(udp_len))
    };
    let mut udp = UdpDatagram::new_unchecked(udp);
    udp.set_len(udp_len);
    udp.set_checksum(pseudo.fold());
}

/// The IP and UDP headers, of exactly their lengths, with the EtherType that tells the former.
#[inline]
fn split(header: &mut [u8]) -> Option<(EtherType, &mut [u8], &mut [u8])> {
    let (ethernet, rest) = header.split_at_mut_checked(ethernet::HEADER_LEN)?;
    let ethertype = EthernetFrame::new_unchecked(ethernet).ethertype();
    let ip_len = if ethertype == EtherType::IPV4 {
        ipv4::HEADER_LEN
    } else {
        ipv6::HEADER_LEN
    };
    let (ip, rest) = rest.split_at_mut_checked(ip_len)?;
    let udp = rest.get_mut(..udp::HEADER_LEN)?;
    // The header's own length field is trusted nowhere: a template always has 20 bytes.
    let sound = ethertype != EtherType::IPV4 || Ipv4Packet::new_checked(&*ip).is_ok();
    sound.then_some((ethertype, ip, udp))
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use etherparse::{Ipv4Header, Ipv6Header, UdpHeader};
    use podway_proto::types::{MacAddr, Vni};

    use super::*;
    use crate::tunnel::OuterHeader;

    fn template(source: &str, destination: &str) -> Vec<u8> {
        let end = |mac, ip: &str| (MacAddr([2, 0, 0, 0, 0, mac]), ip.parse::<IpAddr>().unwrap());
        let vni = Vni::try_from(42).unwrap();
        let outer = OuterHeader::new(end(1, source), end(2, destination), 4789, vni).unwrap();
        let bytes = outer.bytes();
        bytes[..bytes.len() - 8].to_vec()
    }

    #[test]
    fn v4_headers_are_finished() {
        let mut header = template("192.0.2.1", "192.0.2.2");
        assert_eq!(header.len(), LEN_V4);
        begin(&mut header, 0xb9, 50_000);
        finish(&mut header, 1444);
        let (ip, rest) = Ipv4Header::from_slice(&header[14..]).unwrap();
        assert_eq!((ip.dscp.value(), ip.ecn.value()), (0x2e, 1));
        assert_eq!(ip.total_len, 20 + 8 + 1444);
        assert_eq!(ip.header_checksum, ip.calc_header_checksum());
        assert_eq!((ip.identification, ip.dont_fragment), (0, true));
        let (udp, _) = UdpHeader::from_slice(rest).unwrap();
        assert_eq!((udp.source_port, udp.destination_port), (50_000, 4789));
        assert_eq!(udp.length, 8 + 1444);
        // By hand: addresses, protocol and length, not complemented.
        let sum = 2 * (0xc000_u32 + 0x0200) + 1 + 2 + 17 + 1452;
        assert_eq!(u32::from(udp.checksum), (sum & 0xffff) + (sum >> 16));
    }

    #[test]
    fn v6_headers_are_finished() {
        let mut header = template("fd00::1", "fd00::2");
        assert_eq!(header.len(), LEN_V6);
        begin(&mut header, 0xb9, 65_535);
        finish(&mut header, 1444);
        let (ip, rest) = Ipv6Header::from_slice(&header[14..]).unwrap();
        assert_eq!((ip.traffic_class, ip.flow_label.value()), (0xb9, 0));
        assert_eq!(ip.payload_length, 8 + 1444);
        let (udp, _) = UdpHeader::from_slice(rest).unwrap();
        assert_eq!((udp.source_port, udp.length), (65_535, 1452));
        let sum = 2 * 0xfd00_u32 + 1 + 2 + 17 + 1452;
        assert_eq!(u32::from(udp.checksum), (sum & 0xffff) + (sum >> 16));
    }

    #[test]
    fn a_second_finish_replaces_the_first() {
        for template in [
            template("192.0.2.1", "192.0.2.2"),
            template("fd00::1", "fd00::2"),
        ] {
            let mut once = template.clone();
            begin(&mut once, 0, 49_152);
            finish(&mut once, 70);
            let mut twice = template;
            begin(&mut twice, 3, 49_999);
            finish(&mut twice, 65_000);
            begin(&mut twice, 0, 49_152);
            finish(&mut twice, 70);
            assert_eq!(once, twice);
        }
    }

    #[test]
    fn short_or_strange_bytes_are_left_alone() {
        for template in [
            template("192.0.2.1", "192.0.2.2"),
            template("fd00::1", "fd00::2"),
        ] {
            for len in 0..template.len() {
                let mut cut = template[..len].to_vec();
                begin(&mut cut, 1, 50_000);
                finish(&mut cut, 100);
                assert_eq!(cut, template[..len]);
            }
        }
        let mut options = template("192.0.2.1", "192.0.2.2");
        options[14] = 0x46;
        let before = options.clone();
        begin(&mut options, 1, 50_000);
        finish(&mut options, u16::MAX);
        assert_eq!(options, before);
    }
}
