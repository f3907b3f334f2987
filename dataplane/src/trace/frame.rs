//! A packet of the kind that somebody asks about, as it would come by its port.

use std::net::IpAddr;

use podway_proto::trace::TracePacket;
use podway_proto::types::MacAddr;

use crate::wire::{
    EtherType, EthernetFrame, IcmpMessage, Ipv4Packet, Ipv6Packet, Sum, TcpSegment, UdpDatagram,
    ethernet, icmp, ipv4, ipv6, protocol, tcp, udp, vxlan,
};

/// ACK: a segment in the middle of a connection, from which nothing is learned.
const ACK: u16 = 0x10;

/// What the packet's Ethernet headers have.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ends {
    /// The port's own MAC.
    pub(crate) port: MacAddr,
    /// Whoever sends: the pod, or somebody on the underlay.
    pub(crate) sender: MacAddr,
    /// This node's VTEP, in a tunnel.
    pub(crate) vtep: MacAddr,
    /// MTU of the port in bytes.
    pub(crate) mtu: u16,
    /// UDP port of VXLAN.
    pub(crate) vxlan_port: u16,
    /// Whether the sender is a pod, whose kernel leaves checksums unfinished.
    pub(crate) from_pod: bool,
}

/// A packet that was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Made {
    /// Its bytes, from the Ethernet header on.
    pub(crate) frame: Vec<u8>,
    /// Where the Ethernet header begins that is forwarded.
    pub(crate) inner: usize,
    /// Payload bytes of a super-frame's segments.
    pub(crate) segment: Option<u16>,
    /// Where the L4 header begins whose checksum is unfinished, and the checksum's place in it.
    pub(crate) unfinished: Option<(u16, u16)>,
}

/// Makes a packet.
///
/// # Errors
/// What of it cannot be, in a sentence.
pub(crate) fn make(asked: &TracePacket, ends: &Ends) -> Result<Made, String> {
    let tunnel = asked.tunnel.as_ref();
    let macs = match tunnel {
        Some(_) => (ends.vtep, MacAddr::default()),
        None => (ends.port, ends.sender),
    };
    let l4_len = l4_len(asked.protocol);
    let ip_len = ip_len(asked.destination);
    let size = usize::try_from(asked.size).unwrap_or(usize::MAX);
    let least = ip_len + l4_len;
    if !(least..=65535).contains(&size) {
        return Err(format!(
            "a packet of this kind has {least} to 65535 bytes, not {}; give another --size",
            asked.size
        ));
    }
    let partial = ends.from_pod && matches!(asked.protocol, protocol::TCP | protocol::UDP);
    let l4 = l4(asked, size - ip_len, partial);
    let mut frame = packet(
        macs,
        (asked.source, asked.destination),
        (asked.protocol, asked.hop_limit, asked.dont_fragment),
        &l4,
    )?;
    let mut inner = 0;
    if let Some(tunnel) = tunnel {
        let destination = tunnel.destination.ok_or(
            "this node's underlay address is not known, so no tunnel ends here; see podway status",
        )?;
        let header = (0x08_u64 << 56 | u64::from(tunnel.vni.get()) << 8).to_be_bytes();
        let datagram_len = udp::HEADER_LEN + header.len() + frame.len();
        let mut datagram = vec![0; udp::HEADER_LEN];
        datagram.extend(header);
        datagram.extend(&frame);
        let len = u16::try_from(datagram_len)
            .map_err(|_| "there is no room for it in a tunnel; give a smaller --size")?;
        let mut udp = UdpDatagram::new_unchecked(datagram.as_mut_slice());
        udp.set_src_port(49_152);
        udp.set_dst_port(ends.vxlan_port);
        udp.set_len(len);
        frame = packet(
            (ends.port, ends.sender),
            (tunnel.source, destination),
            (protocol::UDP, 64, true),
            &datagram,
        )?;
        inner = frame.len() - (datagram_len - udp::HEADER_LEN - vxlan::HEADER_LEN);
    }
    let is_super =
        asked.protocol == protocol::TCP && frame.len() - ethernet::HEADER_LEN > ends.mtu.into();
    let in_front = inner + least;
    let segment = usize::from(ends.mtu)
        .checked_sub(in_front)
        .filter(|_| is_super);
    let checksum = match asked.protocol {
        protocol::TCP => tcp::CHECKSUM_OFFSET,
        _ => udp::CHECKSUM_OFFSET,
    };
    let start = inner + ethernet::HEADER_LEN + ip_len;
    let narrow = |n: usize| u16::try_from(n).unwrap_or(u16::MAX);
    Ok(Made {
        frame,
        inner,
        segment: segment.map(narrow),
        unfinished: partial.then(|| (narrow(start), narrow(checksum))),
    })
}

fn ip_len(address: IpAddr) -> usize {
    if address.is_ipv4() {
        ipv4::HEADER_LEN
    } else {
        ipv6::HEADER_LEN
    }
}

/// Bytes of the L4 header; none of a protocol that is not known.
fn l4_len(number: u8) -> usize {
    match number {
        protocol::TCP => tcp::HEADER_LEN,
        protocol::UDP => udp::HEADER_LEN,
        protocol::ICMP | protocol::ICMPV6 => icmp::HEADER_LEN,
        _ => 0,
    }
}

/// The L4 header and a payload of zeros, `len` bytes in all.
fn l4(asked: &TracePacket, len: usize, partial: bool) -> Vec<u8> {
    let mut bytes = vec![0; len];
    let whole = u32::try_from(len).unwrap_or(u32::MAX);
    let pseudo = match (asked.source, asked.destination) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            Sum::pseudo_header_v4(from, to, asked.protocol, whole)
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            Sum::pseudo_header_v6(from, to, asked.protocol, whole)
        }
        // Refused where the IP header is made.
        _ => Sum::default(),
    };
    // A pod's kernel leaves the pseudo-header's sum in its place.
    let checksum = |bytes: &[u8]| match partial {
        true => pseudo.fold(),
        false => {
            let mut sum = pseudo;
            sum.add(bytes);
            match asked.protocol {
                protocol::UDP => sum.finish_udp(),
                _ => sum.finish(),
            }
        }
    };
    match asked.protocol {
        protocol::TCP => {
            let mut tcp = TcpSegment::new_unchecked(bytes.as_mut_slice());
            tcp.set_src_port(asked.source_port);
            tcp.set_dst_port(asked.destination_port);
            tcp.set_header_len(u8::try_from(tcp::HEADER_LEN).unwrap_or(u8::MAX));
            tcp.set_flags(ACK);
            let checksum = checksum(&bytes);
            TcpSegment::new_unchecked(bytes.as_mut_slice()).set_checksum(checksum);
        }
        protocol::UDP => {
            let mut udp = UdpDatagram::new_unchecked(bytes.as_mut_slice());
            udp.set_src_port(asked.source_port);
            udp.set_dst_port(asked.destination_port);
            udp.set_len(u16::try_from(len).unwrap_or(u16::MAX));
            let checksum = checksum(&bytes);
            UdpDatagram::new_unchecked(bytes.as_mut_slice()).set_checksum(checksum);
        }
        protocol::ICMP | protocol::ICMPV6 => {
            let (request, seed) = match asked.protocol {
                protocol::ICMP => (icmp::v4::ECHO_REQUEST, Sum::default()),
                _ => (icmp::v6::ECHO_REQUEST, pseudo),
            };
            let mut icmp = IcmpMessage::new_unchecked(bytes.as_mut_slice());
            icmp.set_msg_type(request);
            icmp.fill_checksum(seed);
        }
        _ => {}
    }
    bytes
}

/// The frame of an IP packet: its MACs (destination first), its addresses (source first), and protocol,
/// hop limit and DF.
fn packet(
    (to_mac, from_mac): (MacAddr, MacAddr),
    (source, destination): (IpAddr, IpAddr),
    (protocol, hop_limit, dont_fragment): (u8, u8, bool),
    l4: &[u8],
) -> Result<Vec<u8>, String> {
    let start = ethernet::HEADER_LEN;
    let mut frame = vec![0; start + ip_len(destination)];
    frame.extend(l4);
    let mut ethernet = EthernetFrame::new_unchecked(frame.as_mut_slice());
    ethernet.set_dst_addr(to_mac);
    ethernet.set_src_addr(from_mac);
    ethernet.set_ethertype(match destination {
        IpAddr::V4(_) => EtherType::IPV4,
        IpAddr::V6(_) => EtherType::IPV6,
    });
    let too_long = |_| "it is too long for its headers; give a smaller --size".to_owned();
    let ip_len = ip_len(destination);
    let header = frame.get_mut(start..start + ip_len).unwrap_or_default();
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let mut ip = Ipv4Packet::new_unchecked(header);
            ip.set_version(4);
            ip.set_header_len(u8::try_from(ip_len).unwrap_or(u8::MAX));
            ip.set_total_len(u16::try_from(ip_len + l4.len()).map_err(too_long)?);
            ip.set_dont_frag(dont_fragment);
            ip.set_hop_limit(hop_limit);
            ip.set_protocol(protocol);
            ip.set_src_addr(source);
            ip.set_dst_addr(destination);
            ip.fill_checksum();
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let mut ip = Ipv6Packet::new_unchecked(header);
            ip.set_version(6);
            ip.set_payload_len(u16::try_from(l4.len()).map_err(too_long)?);
            ip.set_next_header(protocol);
            ip.set_hop_limit(hop_limit);
            ip.set_src_addr(source);
            ip.set_dst_addr(destination);
        }
        _ => {
            return Err(format!(
                "{source} and {destination} are of two IP versions; give two of one"
            ));
        }
    }
    Ok(frame)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::packets::{looks_partial, verify};

    const ENDS: Ends = Ends {
        port: MacAddr([2, 0, 0, 0, 0, 1]),
        sender: MacAddr([2, 0, 0, 0, 0, 2]),
        vtep: MacAddr([2, 0, 0, 0, 0, 3]),
        mtu: 1500,
        vxlan_port: 4789,
        from_pod: false,
    };

    fn asked(v6: bool, number: u8, size: u32) -> TracePacket {
        let address = |text: &str, text6: &str| if v6 { text6 } else { text }.parse().unwrap();
        TracePacket {
            from_port: "eth0".into(),
            source: address("10.0.0.2", "fd00::2"),
            destination: address("10.0.1.2", "fd00:1::2"),
            protocol: number,
            source_port: 40_000,
            destination_port: 9,
            size,
            hop_limit: 64,
            dont_fragment: true,
            tunnel: None,
        }
    }

    #[test]
    fn packets_are_as_their_rfcs_want_them() {
        for v6 in [false, true] {
            for number in [protocol::TCP, protocol::UDP] {
                let made = make(&asked(v6, number, 100), &ENDS).unwrap();
                verify(&made.frame);
                assert_eq!(made.frame.len(), 114);
                assert_eq!(made.frame[..6], ENDS.port.0);
                assert_eq!((made.inner, made.segment, made.unfinished), (0, None, None));
                let pod = Ends {
                    from_pod: true,
                    ..ENDS
                };
                let made = make(&asked(v6, number, 100), &pod).unwrap();
                assert!(looks_partial(&made.frame));
                let l4 = if v6 { 54 } else { 34 };
                let field = if number == protocol::TCP { 16 } else { 6 };
                assert_eq!(made.unfinished, Some((l4, field)));
            }
            let number = if v6 { protocol::ICMPV6 } else { protocol::ICMP };
            let frame = make(&asked(v6, number, 100), &ENDS).unwrap().frame;
            let sliced = etherparse::SlicedPacket::from_ethernet(&frame).unwrap();
            match sliced.transport.unwrap() {
                etherparse::TransportSlice::Icmpv4(icmp) => {
                    let header = icmp.header();
                    let sum = header.icmp_type.calc_checksum(icmp.payload());
                    assert_eq!(header.checksum, sum);
                }
                etherparse::TransportSlice::Icmpv6(icmp) => {
                    let header = icmp.header();
                    let to = asked(true, number, 100);
                    let (IpAddr::V6(from), IpAddr::V6(to)) = (to.source, to.destination) else {
                        unreachable!()
                    };
                    let (from, to) = (from.octets(), to.octets());
                    let sum = header
                        .icmp_type
                        .calc_checksum(from, to, icmp.payload())
                        .unwrap();
                    assert_eq!(header.checksum, sum);
                }
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn a_tunnel_is_around_it() {
        let tunnel = podway_proto::trace::InTunnel {
            vni: 42.try_into().unwrap(),
            source: "192.0.2.2".parse().unwrap(),
            destination: Some("192.0.2.1".parse().unwrap()),
        };
        let plain = asked(true, protocol::TCP, 3000);
        let wanted = TracePacket {
            tunnel: Some(tunnel),
            ..plain.clone()
        };
        let made = make(&wanted, &ENDS).unwrap();
        // Its own checksum is 0: none.
        verify(&made.frame[50..]);
        assert_eq!(made.inner, 50);
        assert_eq!(made.frame[42..50], [8, 0, 0, 0, 0, 0, 42, 0]);
        assert_eq!(made.frame[50..56], ENDS.vtep.0);
        assert_eq!(made.frame[62..], make(&plain, &ENDS).unwrap().frame[12..]);
        // 1500 less 50 and the inner headers.
        assert_eq!(made.segment, Some(1390));
        assert_eq!(make(&plain, &ENDS).unwrap().segment, Some(1440));
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let refused = |asked: TracePacket| make(&asked, &ENDS).unwrap_err();
        assert_eq!(
            refused(asked(false, protocol::TCP, 39)),
            "a packet of this kind has 40 to 65535 bytes, not 39; give another --size"
        );
        assert!(refused(asked(false, protocol::UDP, 65_536)).contains("65535"));
        let mixed = TracePacket {
            source: "10.0.0.2".parse().unwrap(),
            ..asked(true, protocol::UDP, 100)
        };
        assert_eq!(
            refused(mixed),
            "10.0.0.2 and fd00:1::2 are of two IP versions; give two of one"
        );
        let lost = TracePacket {
            tunnel: Some(podway_proto::trace::InTunnel {
                vni: 42.try_into().unwrap(),
                source: "192.0.2.2".parse().unwrap(),
                destination: None,
            }),
            ..asked(false, protocol::UDP, 100)
        };
        assert!(refused(lost).contains("not known"));
    }
}
