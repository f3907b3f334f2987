//! What can be read of a packet that may be broken anywhere, for those who tell of it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{
    EtherType, Headers, IpVersion, VxlanHeader, ethernet, ipv4, ipv6, protocol, udp, vxlan,
};

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

/// Where the VXLAN header is behind `outer`, if that is of a tunnel to the UDP port `vxlan`.
pub fn vxlan_at(outer: &Headers, vxlan: Option<u16>) -> Option<usize> {
    let is_tunnel =
        outer.protocol == protocol::UDP && !outer.fragment && Some(outer.dport) == vxlan;
    is_tunnel.then(|| usize::from(outer.l4) + udp::HEADER_LEN)
}

/// What can be read of a packet that may be in a tunnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Glanced {
    /// Its headers inside the tunnel, or the frame's own where there is none or they cannot be read.
    pub headers: Headers,
    /// The tunnel's VNI.
    pub vni: Option<u32>,
    /// Who has sent the tunnel.
    pub sender: Option<IpAddr>,
}

/// As [`glance`] at a frame's own IP header, or, where `is_tunnel` says that it is one of a VXLAN tunnel,
/// at the one inside.
pub fn glance_inside(
    bytes: &[u8],
    is_tunnel: impl FnOnce(&Headers) -> bool,
    packet_len: usize,
) -> Option<Glanced> {
    let outer = glance(bytes, ethernet::HEADER_LEN, packet_len)?;
    if !is_tunnel(&outer) {
        return Some(Glanced {
            headers: outer,
            vni: None,
            sender: None,
        });
    }
    let begin = usize::from(outer.l4) + udp::HEADER_LEN;
    let header = bytes.get(begin..).map(VxlanHeader::new_checked);
    let header = header.and_then(Result::ok);
    let inner = begin + vxlan::HEADER_LEN + ethernet::HEADER_LEN;
    Some(Glanced {
        headers: glance(bytes, inner, packet_len).unwrap_or(outer),
        vni: header
            .filter(VxlanHeader::has_vni)
            .map(|header| header.vni().get()),
        sender: Some(outer.src),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::packets::Spec;
    use crate::testing::plan::{VNI, VXLAN_V4, VXLAN_V6, pod, tunnelled, underlay};

    #[test]
    fn a_tunnel_is_read_as_far_as_it_goes() {
        for (other, vxlan) in [(VXLAN_V4, 42), (VXLAN_V6, 62)] {
            let (from, to) = (pod(false, other, 1), pod(false, 1, 1));
            let inner = Spec::udp(b"x").between(from, to).build();
            let frame = tunnelled(other, 0, &inner);
            let glanced = |bytes: &[u8], is_tunnel| {
                glance_inside(bytes, |_| is_tunnel, frame.len()).map(|glanced| {
                    let Glanced {
                        headers,
                        vni,
                        sender,
                    } = glanced;
                    assert_eq!(
                        sender,
                        is_tunnel.then_some(underlay(other == VXLAN_V6, other))
                    );
                    (headers.src, headers.ports(), vni)
                })
            };
            let whole = glanced(&frame, true).unwrap();
            assert_eq!(whole, (from, Some((40_000, 5201)), Some(VNI)));
            let outside = glanced(&frame, false).unwrap();
            assert_eq!((outside.1.unwrap().1, outside.2), (4789, None));
            // The tunnel's header alone: whose packet it is is not known.
            let header = glanced(&frame[..vxlan + 8], true).unwrap();
            assert_eq!(header, (outside.0, outside.1, Some(VNI)));
            for length in 0..vxlan + 8 {
                let read = glanced(&frame[..length], true);
                assert_eq!(read.and_then(|read| read.2), None, "{length}");
            }
            // Without the flag its VNI does not count.
            let mut unmarked = frame.clone();
            unmarked[vxlan] = 0;
            assert_eq!(glanced(&unmarked, true).unwrap().2, None);
        }
    }
}
