//! The finished outer header of a tunnel: Ethernet, IPv4 or IPv6, UDP, VXLAN (RFC 7348, section 5).

use std::fmt;
use std::net::IpAddr;

use podway_proto::trace::OutTunnel;
use podway_proto::types::{MacAddr, Vni};

use crate::wire::{
    Ipv4Packet, Ipv6Packet, VxlanHeader, ethernet::HEADER_LEN as ETHERNET_LEN, vxlan,
};

/// Bytes of an outer header over IPv4: 14 Ethernet, 20 IPv4, 8 UDP, 8 VXLAN.
pub const OUTER_V4_LEN: usize = 50;
/// Bytes of an outer header over IPv6: 14 Ethernet, 40 IPv6, 8 UDP, 8 VXLAN.
pub const OUTER_V6_LEN: usize = 70;

const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_IPV6: u16 = 0x86dd;
const PROTOCOL_UDP: u8 = 17;
/// As the kernel's default for what it originates, `net.ipv4.ip_default_ttl`.
const HOP_LIMIT: u8 = 64;

/// Everything in front of the inner frame, in wire order, made when the next hop is.
///
/// What differs from packet to packet is zero here and is filled in when it is sent: the IP and
/// UDP lengths, the type of service or traffic class, the IPv4 id and header checksum, the IPv6
/// flow label, the UDP source port and checksum.
///
/// The rest is final: DF is set, since a VTEP must not fragment (RFC 7348, section 4.3), the hop
/// limit is 64, of the VXLAN flags only I is set and reserved bits are zero.
#[derive(Clone, PartialEq, Eq)]
pub struct OuterHeader {
    bytes: [u8; OUTER_V6_LEN],
    /// 50 or 70.
    len: u8,
}

impl OuterHeader {
    /// The header of frames from `source` to `destination`: their MACs on the underlay link and
    /// their IP addresses. `vxlan_port` is in host byte order. `None` if the addresses are not of
    /// one family.
    pub fn new(
        source: (MacAddr, IpAddr),
        destination: (MacAddr, IpAddr),
        vxlan_port: u16,
        vni: Vni,
    ) -> Option<Self> {
        let mut writer = Writer {
            bytes: [0; OUTER_V6_LEN],
            len: 0,
        };
        writer.put(&destination.0.0);
        writer.put(&source.0.0);
        match (source.1, destination.1) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                writer.put(&ETHERTYPE_IPV4.to_be_bytes());
                // Version 4, five words of header; TOS, length, id.
                writer.put(&[0x45, 0, 0, 0, 0, 0]);
                // DF, no offset.
                writer.put(&[0x40, 0]);
                writer.put(&[HOP_LIMIT, PROTOCOL_UDP, 0, 0]);
                writer.put(&source.octets());
                writer.put(&destination.octets());
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                writer.put(&ETHERTYPE_IPV6.to_be_bytes());
                // Version 6; traffic class, flow label, payload length.
                writer.put(&[0x60, 0, 0, 0, 0, 0]);
                writer.put(&[PROTOCOL_UDP, HOP_LIMIT]);
                writer.put(&source.octets());
                writer.put(&destination.octets());
            }
            _ => return None,
        }
        // UDP: source port, destination port, length, checksum.
        writer.put(&[0, 0]);
        writer.put(&vxlan_port.to_be_bytes());
        writer.put(&[0, 0, 0, 0]);
        // VXLAN: flags with I alone, 24 reserved bits, VNI, 8 reserved bits.
        writer.put(&[0x08, 0, 0, 0]);
        writer.put(&(vni.get() << 8).to_be_bytes());
        Some(Self {
            bytes: writer.bytes,
            len: u8::try_from(writer.len).ok()?,
        })
    }

    /// The header, 50 or 70 bytes.
    #[inline]
    pub fn bytes(&self) -> &[u8] {
        self.bytes
            .get(..usize::from(self.len))
            .unwrap_or(&self.bytes)
    }

    /// The far end's address.
    pub fn destination(&self) -> IpAddr {
        let ip = self.bytes.split_at(ETHERNET_LEN).1;
        if self.is_v4() {
            Ipv4Packet::new_unchecked(ip).dst_addr().into()
        } else {
            Ipv6Packet::new_unchecked(ip).dst_addr().into()
        }
    }

    /// The network's identifier.
    #[inline]
    pub fn vni(&self) -> Vni {
        let at = usize::from(self.len) - vxlan::HEADER_LEN;
        VxlanHeader::new_unchecked(self.bytes.split_at(at).1).vni()
    }

    /// Whether the underlay is IPv4; else it is IPv6.
    #[inline]
    pub fn is_v4(&self) -> bool {
        usize::from(self.len) == OUTER_V4_LEN
    }

    /// What it says, with the UDP source port that it is to get.
    pub(crate) fn told(&self, source_port: u16) -> Option<OutTunnel> {
        let bytes = self.bytes();
        let address = |at: usize| -> Option<IpAddr> {
            let bytes = bytes.get(at..)?;
            match self.is_v4() {
                true => Some(IpAddr::from(*bytes.first_chunk::<4>()?)),
                false => Some(IpAddr::from(*bytes.first_chunk::<16>()?)),
            }
        };
        let (source, destination) = if self.is_v4() { (26, 30) } else { (22, 38) };
        let [.., a, b, _, _, _, _, _, _, _, _, c, d, e, _] = *bytes.get(bytes.len() - 18..)? else {
            return None;
        };
        Some(OutTunnel {
            vni: Vni::try_from(u32::from_be_bytes([0, c, d, e])).ok()?,
            source: address(source)?,
            destination: address(destination)?,
            source_port,
            destination_port: u16::from_be_bytes([a, b]),
        })
    }

    /// The EtherType, in host byte order.
    #[inline]
    pub fn ethertype(&self) -> u16 {
        if self.is_v4() {
            ETHERTYPE_IPV4
        } else {
            ETHERTYPE_IPV6
        }
    }
}

impl fmt::Debug for OuterHeader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OuterHeader(")?;
        for byte in self.bytes() {
            write!(f, "{byte:02x}")?;
        }
        f.write_str(")")
    }
}

/// Appends to the header. What does not fit is left out; nothing written here does not fit.
struct Writer {
    bytes: [u8; OUTER_V6_LEN],
    len: usize,
}

impl Writer {
    fn put(&mut self, part: &[u8]) {
        for (to, from) in self.bytes.iter_mut().skip(self.len).zip(part) {
            *to = *from;
            self.len += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use etherparse::{NetSlice, SlicedPacket, TransportSlice};

    use super::*;

    const SOURCE: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);
    const DESTINATION: MacAddr = MacAddr([2, 0, 0, 0, 0, 2]);

    fn header(source: &str, destination: &str) -> Option<OuterHeader> {
        OuterHeader::new(
            (SOURCE, source.parse().unwrap()),
            (DESTINATION, destination.parse().unwrap()),
            4789,
            Vni::try_from(0x0a_0b0c).unwrap(),
        )
    }

    #[test]
    fn v4_byte_by_byte() {
        let header = header("192.0.2.1", "192.0.2.2").unwrap();
        let ip = etherparse::Ipv4Header {
            dont_fragment: true,
            time_to_live: 64,
            protocol: etherparse::IpNumber::UDP,
            source: [192, 0, 2, 1],
            destination: [192, 0, 2, 2],
            ..Default::default()
        };
        let mut expected = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0];
        let mut ip = ip.to_bytes();
        // The oracle writes the length of an empty packet.
        ip[2..4].fill(0);
        expected.extend_from_slice(&ip);
        expected.extend_from_slice(&[0, 0, 0x12, 0xb5, 0, 0, 0, 0]);
        expected.extend_from_slice(&[8, 0, 0, 0, 0x0a, 0x0b, 0x0c, 0]);
        assert_eq!(header.bytes(), expected);
        assert_eq!(header.bytes().len(), OUTER_V4_LEN);
        assert!(header.is_v4());
        assert_eq!(header.ethertype(), 0x0800);
    }

    #[test]
    fn v6_byte_by_byte() {
        let header = header("2001:db8::1", "2001:db8::2").unwrap();
        let ip = etherparse::Ipv6Header {
            next_header: etherparse::IpNumber::UDP,
            hop_limit: 64,
            source: "2001:db8::1"
                .parse::<std::net::Ipv6Addr>()
                .unwrap()
                .octets(),
            destination: "2001:db8::2"
                .parse::<std::net::Ipv6Addr>()
                .unwrap()
                .octets(),
            ..Default::default()
        };
        let mut expected = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 0x86, 0xdd];
        expected.extend_from_slice(&ip.to_bytes());
        expected.extend_from_slice(&[0, 0, 0x12, 0xb5, 0, 0, 0, 0]);
        expected.extend_from_slice(&[8, 0, 0, 0, 0x0a, 0x0b, 0x0c, 0]);
        assert_eq!(header.bytes(), expected);
        assert_eq!(header.bytes().len(), OUTER_V6_LEN);
        assert!(!header.is_v4());
        assert_eq!(header.ethertype(), 0x86dd);
    }

    #[test]
    fn with_its_lengths_it_is_a_packet() {
        let mut v4 = header("192.0.2.1", "192.0.2.2").unwrap().bytes().to_vec();
        v4[16..18].copy_from_slice(&36_u16.to_be_bytes());
        v4[38..40].copy_from_slice(&16_u16.to_be_bytes());
        let mut v6 = header("fd00::1", "fd00::2").unwrap().bytes().to_vec();
        v6[18..20].copy_from_slice(&16_u16.to_be_bytes());
        v6[58..60].copy_from_slice(&16_u16.to_be_bytes());
        for packet in [v4, v6] {
            let sliced = SlicedPacket::from_ethernet(&packet).unwrap();
            match sliced.net {
                Some(NetSlice::Ipv4(ip)) => assert!(ip.header().dont_fragment()),
                Some(NetSlice::Ipv6(ip)) => assert_eq!(ip.header().hop_limit(), 64),
                other => panic!("{other:?}"),
            }
            let Some(TransportSlice::Udp(udp)) = sliced.transport else {
                panic!("no UDP");
            };
            assert_eq!(udp.destination_port(), 4789);
            assert_eq!(udp.payload(), [8, 0, 0, 0, 0x0a, 0x0b, 0x0c, 0]);
        }
    }

    #[test]
    fn the_highest_vni_leaves_the_reserved_byte_zero() {
        let header = OuterHeader::new(
            (SOURCE, "192.0.2.1".parse().unwrap()),
            (DESTINATION, "192.0.2.2".parse().unwrap()),
            8472,
            Vni::try_from(0xff_ffff).unwrap(),
        );
        assert_eq!(
            header.unwrap().bytes()[42..],
            [8, 0, 0, 0, 0xff, 0xff, 0xff, 0]
        );
    }

    #[test]
    fn families_do_not_mix() {
        assert_eq!(header("192.0.2.1", "fd00::2"), None);
        assert_eq!(header("fd00::1", "192.0.2.2"), None);
    }
}
