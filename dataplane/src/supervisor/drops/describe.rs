//! What can be read of a packet that may be broken anywhere.

use std::net::{IpAddr, Ipv4Addr};

use podway_proto::dataplane::{DroppedPacket, TunneledPacket};
use podway_proto::hex;

use crate::last_drop::LastDrop;
use crate::wire::glance::{glance, vxlan_at};
use crate::wire::{EtherType, Headers, IpVersion, VxlanHeader, ethernet, protocol, vxlan};

/// Bytes that are told of a packet whose headers cannot be read.
const UNREAD: usize = 64;

/// What one packet's headers say, in a tunnel or not.
#[derive(Debug, Default)]
struct Read {
    source: Option<IpAddr>,
    destination: Option<IpAddr>,
    protocol: Option<u8>,
    ports: Option<(u16, u16)>,
    /// Where they end.
    end: usize,
}

/// The packet of `last`, which has come or was to leave by an interface; `vxlan` is the port of tunnels
/// there.
pub(super) fn describe(
    last: &LastDrop,
    interface: Option<String>,
    vxlan: Option<u16>,
    now: u64,
) -> DroppedPacket {
    let bytes = last.header();
    let found = read(bytes, ethernet::HEADER_LEN);
    let tunneled = inside(bytes, vxlan);
    // Whoever can connect may ask: what pods say to each other is not told.
    let end = match (&found, &tunneled) {
        (_, Some((_, inner))) => inner.end,
        (Some(found), None) => found.end,
        (None, None) => UNREAD,
    };
    let Read {
        source,
        destination,
        protocol,
        ports,
        ..
    } = found.unwrap_or_default();
    DroppedPacket {
        seconds_ago: now.saturating_sub(last.at) / 1_000_000_000,
        interface,
        bytes: last.bytes,
        source,
        destination,
        protocol,
        source_port: ports.map(|(source, _)| source),
        destination_port: ports.map(|(_, destination)| destination),
        inside: tunneled.map(|(vni, inner)| TunneledPacket {
            vni,
            source: inner.source,
            destination: inner.destination,
            protocol: inner.protocol,
            source_port: inner.ports.map(|(source, _)| source),
            destination_port: inner.ports.map(|(_, destination)| destination),
        }),
        header: hex::encode(bytes.get(..end).unwrap_or(bytes)),
    }
}

/// The header at offset `l3`, right behind an EtherType.
fn read(bytes: &[u8], l3: usize) -> Option<Read> {
    let Some(found) = glance(bytes, l3, bytes.len()) else {
        return arp(bytes, l3);
    };
    // The later fragments of a packet have payload where the first one has a header.
    let is_later = found.version == IpVersion::V4
        && bytes
            .get(l3 + 6..l3 + 8)
            .is_some_and(|field| u16::from_be_bytes([field[0] & 0x1f, field[1]]) != 0);
    let l4 = match found.protocol {
        _ if is_later => 0,
        protocol::TCP => 20,
        protocol::UDP | protocol::ICMP | protocol::ICMPV6 => 8,
        _ => 0,
    };
    Some(Read {
        source: Some(found.src),
        destination: Some(found.dst),
        protocol: Some(found.protocol),
        ports: found.ports(),
        end: usize::from(found.l4) + l4,
    })
}

/// ARP for IPv4 over Ethernet (RFC 826): who says that an address is its own, to whom.
fn arp(bytes: &[u8], l3: usize) -> Option<Read> {
    const LEN: usize = 28;
    let (ethernet, arp) = bytes.split_at_checked(l3)?;
    let arp: &[u8; LEN] = arp.first_chunk()?;
    let &[.., high, low] = ethernet else {
        return None;
    };
    let is_ipv4 = arp.starts_with(&[0, 1, 8, 0, 6, 4]);
    let address = |at: usize| {
        let octets: [u8; 4] = *arp.get(at..)?.first_chunk()?;
        Some(Ipv4Addr::from(octets).into())
    };
    let is_arp = EtherType(u16::from_be_bytes([high, low])) == EtherType::ARP && is_ipv4;
    is_arp.then(|| Read {
        source: address(14),
        destination: address(24),
        end: l3 + LEN,
        ..Read::default()
    })
}

/// What is inside a tunnel, and its VNI.
fn inside(bytes: &[u8], vxlan: Option<u16>) -> Option<(u32, Read)> {
    let outer: Headers = glance(bytes, ethernet::HEADER_LEN, bytes.len())?;
    let at = vxlan_at(&outer, vxlan)?;
    let header = VxlanHeader::new_checked(bytes.get(at..)?).ok()?;
    let inner = at + vxlan::HEADER_LEN + ethernet::HEADER_LEN;
    let unread = || Read {
        end: inner,
        ..Read::default()
    };
    let read = read(bytes, inner).unwrap_or_else(unread);
    header.has_vni().then(|| (header.vni().get(), read))
}

#[cfg(test)]
mod tests {
    use etherparse::PacketBuilder;

    use super::*;
    use crate::last_drop::HEADER;

    fn described(frame: &[u8]) -> DroppedPacket {
        let last = LastDrop::new(5_000_000_000, 3, frame.len(), frame);
        describe(&last, Some("veth-a".into()), Some(4789), 7_500_000_000)
    }

    #[test]
    fn a_packet_is_told_by_its_headers() {
        let ethernet = || PacketBuilder::ethernet2([2; 6], [4; 6]);
        let mut udp = Vec::new();
        let builder = ethernet()
            .ipv4([10, 0, 0, 2], [10, 0, 1, 2], 64)
            .udp(40_000, 9);
        builder.write(&mut udp, &[0; 64]).unwrap();
        let told = DroppedPacket {
            seconds_ago: 2,
            interface: Some("veth-a".into()),
            bytes: 106,
            source: Some([10, 0, 0, 2].into()),
            destination: Some([10, 0, 1, 2].into()),
            protocol: Some(17),
            source_port: Some(40_000),
            destination_port: Some(9),
            inside: None,
            header: hex::encode(&udp[..42]),
        };
        assert_eq!(described(&udp), told);

        let mut tcp = Vec::new();
        let (from, to) = ([0xfd; 16], [0xfe; 16]);
        let builder = ethernet().ipv6(from, to, 64).tcp(80, 50_000, 1, 1);
        builder.write(&mut tcp, &[]).unwrap();
        let seen = described(&tcp);
        assert_eq!(seen.source, Some(IpAddr::from(from)));
        assert_eq!(seen.destination, Some(IpAddr::from(to)));
        assert_eq!(
            (seen.source_port, seen.destination_port),
            (Some(80), Some(50_000))
        );
        assert_eq!((seen.protocol, seen.bytes), (Some(6), 74));
    }

    #[test]
    fn of_a_broken_packet_only_what_is_there_is_told() {
        let mut udp = Vec::new();
        let builder =
            PacketBuilder::ethernet2([2; 6], [4; 6]).ipv4([10, 0, 0, 2], [10, 0, 1, 2], 64);
        builder.udp(40_000, 9).write(&mut udp, &[]).unwrap();
        for len in 0..=udp.len() {
            let seen = described(&udp[..len]);
            assert_eq!(seen.source.is_some(), len >= 34, "{len}");
            assert_eq!(seen.source_port.is_some(), len >= 38, "{len}");
            assert_eq!(seen.header.len(), 2 * len);
        }
        // A second fragment, a header length of 16, another protocol, no IP at all.
        for (offset, value) in [(21, 1), (14, 0x44), (23, 1), (12, 0x12)] {
            let mut frame = udp.clone();
            frame[offset] = value;
            let seen = described(&frame);
            assert_eq!(seen.source_port, None, "{offset}");
            assert_eq!(seen.source.is_some(), offset != 12, "{offset}");
        }
        // Of a later fragment nothing behind the IP header is one.
        let mut later = udp.clone();
        later[21] = 1;
        assert_eq!(described(&later).header, hex::encode(&later[..34]));
    }

    #[test]
    fn of_a_tunnel_both_headers_are_told() {
        let tunnel = |outer: etherparse::PacketBuilderStep<_>, vni: u8, inner: &[u8]| {
            let vxlan = [8, 0, 0, 0, 0, 0, vni, 0];
            let mut frame = Vec::new();
            let payload = [&vxlan, inner].concat();
            outer.udp(50_000, 4789).write(&mut frame, &payload).unwrap();
            frame
        };
        let ethernet = || PacketBuilder::ethernet2([2; 6], [4; 6]);
        let ipv4 = || ethernet().ipv4([192, 168, 1, 2], [192, 168, 1, 1], 64);
        let mut inner = Vec::new();
        let builder = ethernet().ipv6([0xfd; 16], [0xfe; 16], 64).udp(40_000, 9);
        builder.write(&mut inner, &[0xaa; 64]).unwrap();
        let inside = TunneledPacket {
            vni: 7,
            source: Some([0xfd; 16].into()),
            destination: Some([0xfe; 16].into()),
            protocol: Some(17),
            source_port: Some(40_000),
            destination_port: Some(9),
        };
        let frame = tunnel(ipv4(), 7, &inner);
        let seen = described(&frame);
        assert_eq!(seen.source, Some([192, 168, 1, 2].into()));
        assert_eq!(seen.destination_port, Some(4789));
        assert_eq!(seen.inside, Some(inside.clone()));
        assert_eq!(seen.header, hex::encode(&frame[..50 + 62]));

        // As much as is kept has the ports.
        let frame = tunnel(ethernet().ipv6([1; 16], [2; 16], 64), 7, &inner);
        let seen = described(&frame);
        assert_eq!(seen.inside, Some(inside.clone()));
        assert_eq!(seen.header, hex::encode(&frame[..HEADER]));

        // Of a cut one the VNI at least.
        let unread = TunneledPacket {
            vni: 7,
            source: None,
            destination: None,
            protocol: None,
            source_port: None,
            destination_port: None,
        };
        let frame = tunnel(ipv4(), 7, &inner);
        let cut = described(&frame[..70]);
        assert_eq!(cut.inside, Some(unread));
        assert_eq!(cut.header, hex::encode(&frame[..64]), "and no payload");
        // No tunnel by its port, its flag or its length; one of a pod is not looked into.
        let with = |at: usize, value: u8| {
            let mut frame = frame.clone();
            frame[at] = value;
            described(&frame)
        };
        for seen in [with(37, 0), with(42, 0), described(&frame[..49])] {
            assert_eq!(seen.inside, None);
            assert_eq!(
                seen.header,
                hex::encode(&frame[..42]).replace("12b5", &seen.header[72..76])
            );
        }
        let last = LastDrop::new(1, 3, frame.len(), &frame);
        assert_eq!(describe(&last, None, None, 1).inside, None);
    }

    #[test]
    fn arp_is_told_by_its_addresses_and_other_frames_by_few_bytes() {
        let mut arp = [[0xff; 6], [2; 6]].concat();
        arp.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
        arp.extend([2; 6].iter().chain(&[203, 0, 113, 9]));
        arp.extend([0; 6].iter().chain(&[10, 0, 0, 1]));
        arp.resize(60, 0xaa);
        let seen = described(&arp);
        assert_eq!(seen.source, Some([203, 0, 113, 9].into()));
        assert_eq!(seen.destination, Some([10, 0, 0, 1].into()));
        assert_eq!((seen.protocol, seen.source_port), (None, None));
        assert_eq!(seen.header, hex::encode(&arp[..42]));
        assert_eq!(described(&arp[..41]).source, None);
        arp[15] = 6;
        assert_eq!(described(&arp).source, None, "not over Ethernet");

        let other = [[0x12; 14].as_slice(), &[0xaa; 114]].concat();
        assert_eq!(described(&other).header, hex::encode(&other[..64]));
    }
}
