//! Packets, built with etherparse and patched where it refuses to build something wrong.

use std::net::IpAddr;

use etherparse::{IpNumber, PacketBuilder};

/// MAC of the ports under test.
pub(crate) const PORT_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
/// MAC of whoever sends.
pub(crate) const PEER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];
/// MAC of the VTEP, inside tunnels.
pub(crate) const VTEP_MAC: [u8; 6] = [2, 0, 0, 0, 0, 3];

/// Offset of the EtherType.
pub(crate) const ETHERTYPE: usize = 12;
/// Offset of the IP header.
pub(crate) const IP: usize = 14;
/// Offset of the L4 header behind an IPv4 header without options.
pub(crate) const L4: usize = IP + 20;
/// Offset of the L4 header behind an IPv6 header.
pub(crate) const L4_V6: usize = IP + 40;
/// Bytes of a VXLAN header and of the UDP header in front of it.
const TUNNEL: usize = 8 + 8;
/// Offset of the inner Ethernet header in a tunnel over IPv4.
pub(crate) const INNER: usize = L4 + TUNNEL;
/// Offset of the inner Ethernet header in a tunnel over IPv6.
pub(crate) const INNER_V6: usize = L4_V6 + TUNNEL;

/// The UDP port of VXLAN under test.
pub(crate) const VXLAN_PORT: u16 = 4789;
/// The VXLAN network under test.
pub(crate) const VNI: u32 = 0x0a_0b_0c;

/// What an IP packet carries.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Carried {
    Tcp,
    /// To a destination port.
    Udp(u16),
    /// An echo request of the packet's family.
    Echo,
    /// ICMPv6 of a type, whatever the packet's family.
    Icmpv6(u8),
    /// A protocol number, or an IPv6 extension header by its number, with opaque content.
    Other(u8),
}
pub(crate) use Carried::{Echo, Icmpv6, Other, Tcp, Udp};

/// An Ethernet frame to the port under test with an IP packet of the addresses' family.
pub(crate) fn packet(from: &str, to: &str, hops: u8, carried: Carried, payload: &[u8]) -> Vec<u8> {
    let ethernet = PacketBuilder::ethernet2(PEER_MAC, PORT_MAC);
    let (from, to) = (from.parse().unwrap(), to.parse().unwrap());
    let ip = match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => ethernet.ipv4(from.octets(), to.octets(), hops),
        (IpAddr::V6(from), IpAddr::V6(to)) => ethernet.ipv6(from.octets(), to.octets(), hops),
        _ => panic!("{from} and {to} are of two families"),
    };
    let mut frame = Vec::new();
    match carried {
        Tcp => ip
            .tcp(40000, 5201, 1, 65535)
            .write(&mut frame, payload)
            .unwrap(),
        Udp(port) => ip.udp(40000, port).write(&mut frame, payload).unwrap(),
        Echo if from.is_ipv4() => {
            ip.icmpv4_echo_request(7, 1)
                .write(&mut frame, payload)
                .unwrap();
        }
        Echo => ip
            .icmpv6_echo_request(7, 1)
            .write(&mut frame, payload)
            .unwrap(),
        Icmpv6(kind) => {
            ip.icmpv6_raw(kind, 0, [0; 4])
                .write(&mut frame, payload)
                .unwrap();
        }
        // etherparse wants to write extension headers itself, so the number is put in afterwards.
        Other(number) => {
            ip.write(&mut frame, IpNumber(253), payload).unwrap();
            frame[IP + if from.is_ipv4() { 9 } else { 6 }] = number;
        }
    }
    frame
}

/// The frame `inner` in a VXLAN tunnel between two addresses of the underlay.
pub(crate) fn tunnel(from: &str, to: &str, vni: u32, inner: &[u8]) -> Vec<u8> {
    let mut payload = vec![0x08, 0, 0, 0];
    payload.extend((vni << 8).to_be_bytes());
    payload.extend(VTEP_MAC);
    payload.extend(&inner[6..]);
    packet(from, to, 64, Udp(VXLAN_PORT), &payload)
}

/// A packet after a change.
pub(crate) fn with(mut frame: Vec<u8>, change: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    change(&mut frame);
    frame
}

/// A packet with one byte replaced.
pub(crate) fn byte(frame: Vec<u8>, offset: usize, value: u8) -> Vec<u8> {
    with(frame, |f| f[offset] = value)
}
