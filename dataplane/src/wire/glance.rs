//! What can be read of a packet that may be broken anywhere, for those who tell of it.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::{EtherType, Headers, IpVersion, ethernet, ipv4, ipv6, protocol};

/// What the IP header at offset `l3` of `bytes` says, whatever is wrong with it, right behind an
/// EtherType; `None` when there is none. Where no ports can be read it is called a fragment.
/// `packet_len` is the length of the packet from the start of `bytes`.
pub fn glance(bytes: &[u8], l3: usize, packet_len: usize) -> Option<Headers> {
    let (ethernet, ip) = bytes.split_at_checked(l3)?;
    let &[.., high, low] = ethernet else {
        return None;
    };
    let narrow = |offset: usize| u16::try_from(offset).ok();
    let l3_len = u32::try_from(packet_len.saturating_sub(l3)).ok()?;
    let read = match EtherType(u16::from_be_bytes([high, low])) {
        EtherType::IPV4 => {
            let source: [u8; 4] = *ip.get(12..16)?.first_chunk()?;
            let destination: [u8; 4] = *ip.get(16..20)?.first_chunk()?;
            let length = usize::from(ip.first()? & 0xf) * 4;
            let offset = u16::from_be_bytes([*ip.get(6)?, *ip.get(7)?]) & 0x1fff;
            Headers {
                version: IpVersion::V4,
                protocol: *ip.get(9)?,
                fragment: offset != 0 || length < ipv4::HEADER_LEN,
                tos: *ip.get(1)?,
                hop_limit: *ip.get(8)?,
                l4: narrow(l3 + length)?,
                src: Ipv4Addr::from(source).into(),
                dst: Ipv4Addr::from(destination).into(),
                ..Headers::UNREAD
            }
        }
        EtherType::IPV6 => {
            let source: [u8; 16] = *ip.get(8..24)?.first_chunk()?;
            let destination: [u8; 16] = *ip.get(24..40)?.first_chunk()?;
            Headers {
                version: IpVersion::V6,
                protocol: *ip.get(6)?,
                hop_limit: *ip.get(7)?,
                l4: narrow(l3 + ipv6::HEADER_LEN)?,
                src: Ipv6Addr::from(source).into(),
                dst: Ipv6Addr::from(destination).into(),
                ..Headers::UNREAD
            }
        }
        _ => return None,
    };
    let l4 = bytes.get(read.l4.into()..).unwrap_or_default();
    let ports = match (read.protocol, l4) {
        (protocol::TCP | protocol::UDP, &[a, b, c, d, ..]) if !read.fragment => {
            Some([[a, b], [c, d]].map(u16::from_be_bytes))
        }
        _ => None,
    };
    let [sport, dport] = ports.unwrap_or_default();
    Some(Headers {
        l3: narrow(l3)?,
        payload: read.l4,
        l3_len,
        fragment: ports.is_none(),
        sport,
        dport,
        ..read
    })
}

/// As [`glance`] at a frame's own IP header, or, where that is of a tunnel to the UDP port `vxlan`, at
/// the one inside, if it can be read.
pub fn glance_inside(bytes: &[u8], vxlan: Option<u16>, packet_len: usize) -> Option<Headers> {
    const IN_FRONT: usize =
        super::udp::HEADER_LEN + super::vxlan::HEADER_LEN + ethernet::HEADER_LEN;
    let outer = glance(bytes, ethernet::HEADER_LEN, packet_len)?;
    let is_tunnel =
        outer.protocol == protocol::UDP && !outer.fragment && Some(outer.dport) == vxlan;
    let inner = is_tunnel.then(|| glance(bytes, usize::from(outer.l4) + IN_FRONT, packet_len));
    inner.flatten().or(Some(outer))
}
