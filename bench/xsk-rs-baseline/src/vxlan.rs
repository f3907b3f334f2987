//! Outer headers: Ethernet, IPv4, UDP, VXLAN (RFC 7348).

use std::net::Ipv4Addr;
use std::str::FromStr;

/// Ethernet 14, IPv4 20, UDP 8, VXLAN 8.
pub(crate) const OVERHEAD: usize = 50;
/// The shortest frame with two MACs and a type.
const ETHERNET_HEADER: usize = 14;
const IP: usize = ETHERNET_HEADER;
const UDP: usize = IP + 20;
const VXLAN: usize = UDP + 8;
/// Ephemeral ports as RFC 7348, section 5, recommends: 49152 to 65535.
const FIRST_SOURCE_PORT: u16 = 0xc000;

/// A MAC address.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Mac([u8; 6]);

impl FromStr for Mac {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bytes: Result<Vec<u8>, _> = text
            .split(':')
            .map(|part| u8::from_str_radix(part, 16))
            .collect();
        let bytes = bytes.ok().and_then(|bytes| bytes.try_into().ok());
        bytes.map(Self).ok_or("a MAC is written 02:00:00:00:00:01")
    }
}

/// A tunnel to one other node.
#[derive(Debug)]
pub(crate) struct Tunnel {
    /// The outer headers as sent, but for lengths, checksum and source port.
    template: [u8; OVERHEAD],
}

impl Tunnel {
    /// From the own to the peer's VTEP.
    pub(crate) fn new(own: (Mac, Ipv4Addr), peer: (Mac, Ipv4Addr), port: u16, vni: u32) -> Self {
        let mut template = [0; OVERHEAD];
        template[..6].copy_from_slice(&peer.0.0);
        template[6..12].copy_from_slice(&own.0.0);
        template[12..14].copy_from_slice(&0x0800_u16.to_be_bytes());
        let ip = &mut template[IP..UDP];
        ip[0] = 0x45;
        ip[6] = 0x40; // Don't fragment.
        ip[8] = 64;
        ip[9] = 17;
        ip[12..16].copy_from_slice(&own.1.octets());
        ip[16..20].copy_from_slice(&peer.1.octets());
        template[UDP + 2..UDP + 4].copy_from_slice(&port.to_be_bytes());
        template[VXLAN] = 0x08; // A VNI is there.
        template[VXLAN + 4..].copy_from_slice(&(vni << 8).to_be_bytes());
        Self { template }
    }

    /// The outer headers for a pod's frame, and the frame itself; `None` when it is too long. The
    /// outer UDP checksum is left out, which IPv4 allows.
    pub(crate) fn encap<'f>(&self, frame: &'f [u8]) -> Option<([u8; OVERHEAD], &'f [u8])> {
        let mut header = self.template;
        let ip_length = u16::try_from(OVERHEAD - IP + frame.len()).ok()?;
        header[IP + 2..IP + 4].copy_from_slice(&ip_length.to_be_bytes());
        let sum = checksum(&header[IP..UDP]);
        header[IP + 10..IP + 12].copy_from_slice(&sum.to_be_bytes());
        header[UDP..UDP + 2].copy_from_slice(&source_port(frame).to_be_bytes());
        let udp_length = ip_length - 20;
        header[UDP + 4..UDP + 6].copy_from_slice(&udp_length.to_be_bytes());
        Some((header, frame))
    }

    /// The frame inside a VXLAN packet from the peer, with nothing before it; `None` for anything
    /// else.
    pub(crate) fn decap<'f>(&self, frame: &'f [u8]) -> Option<([u8; 0], &'f [u8])> {
        let header = frame.get(..OVERHEAD)?;
        let template = &self.template;
        let from_peer = header[IP + 12..IP + 16] == template[IP + 16..IP + 20]
            && header[IP + 16..IP + 20] == template[IP + 12..IP + 16];
        let is_tunnel = header[12..14] == template[12..14]
            && header[IP] == template[IP]
            && header[IP + 9] == template[IP + 9]
            && header[UDP + 2..UDP + 4] == template[UDP + 2..UDP + 4]
            && header[VXLAN] & 0x08 != 0
            && header[VXLAN + 4..VXLAN + 7] == template[VXLAN + 4..VXLAN + 7];
        if !(is_tunnel && from_peer) {
            return None;
        }
        // A frame may be longer than the packet in it: Ethernet pads to 60 bytes.
        let ip_length = u16::from_be_bytes([header[IP + 2], header[IP + 3]]);
        let payload = frame.get(OVERHEAD..IP + usize::from(ip_length))?;
        (payload.len() >= ETHERNET_HEADER).then_some(([], payload))
    }
}

/// The same for all packets of a TCP or UDP flow over IPv4, so that they stay in order.
fn source_port(frame: &[u8]) -> u16 {
    let is_ipv4 = frame.get(12..15) == Some(&[0x08, 0x00, 0x45]);
    // Both addresses and both ports.
    let flow = frame.get(26..38).filter(|_| is_ipv4).unwrap_or_default();
    let hash = flow.chunks_exact(2).fold(0_u16, |hash, pair| {
        (hash ^ u16::from_be_bytes([pair[0], pair[1]])).wrapping_mul(0x9e37)
    });
    FIRST_SOURCE_PORT | (hash >> 2)
}

/// The Internet checksum (RFC 1071) of an IPv4 header whose checksum field is zero.
fn checksum(header: &[u8]) -> u16 {
    let words = header
        .chunks_exact(2)
        .map(|w| u16::from_be_bytes([w[0], w[1]]));
    let sum: u32 = words.map(u32::from).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    !u16::try_from((folded & 0xffff) + (folded >> 16)).unwrap_or(u16::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tunnel(own: u8, peer: u8) -> Tunnel {
        let end = |number| {
            (
                Mac([2, 0, 0, 0, 0, number]),
                Ipv4Addr::new(192, 168, 100, number),
            )
        };
        Tunnel::new(end(own), end(peer), 4789, 0x01_0203)
    }

    fn inner() -> Vec<u8> {
        let mut frame = vec![0x11; 100];
        frame[12..15].copy_from_slice(&[0x08, 0x00, 0x45]);
        frame
    }

    fn wrapped() -> Vec<u8> {
        let inner = inner();
        let (header, payload) = tunnel(1, 2).encap(&inner).unwrap();
        [&header, payload].concat()
    }

    #[test]
    fn the_outer_headers_are_those_of_the_rfc() {
        let wire = wrapped();
        assert_eq!(wire[..14], [2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0]);
        assert_eq!(wire[14..24], [0x45, 0, 0, 136, 0, 0, 0x40, 0, 64, 17]);
        // A header with its checksum in place sums up to all ones.
        assert_eq!(checksum(&wire[14..34]), 0);
        assert_eq!(wire[26..34], [192, 168, 100, 1, 192, 168, 100, 2]);
        assert!(wire[34] >= 0xc0, "source port");
        assert_eq!(wire[36..42], [0x12, 0xb5, 0, 116, 0, 0]);
        assert_eq!(wire[42..50], [8, 0, 0, 0, 1, 2, 3, 0]);
        assert_eq!(wire[50..], inner());
        assert!(tunnel(1, 2).encap(&[0; 65_500]).is_none(), "too long");
    }

    #[test]
    fn what_one_end_wraps_the_other_unwraps() {
        // Some padding behind it does not belong to the packet.
        let wire = [wrapped(), vec![0; 9]].concat();
        let unwrapped = tunnel(2, 1).decap(&wire);
        assert_eq!(unwrapped, Some(([], inner().as_slice())));
    }

    #[test]
    fn what_is_not_of_this_tunnel_is_refused() {
        let wire = wrapped();
        let refuses = |frame: &[u8]| tunnel(2, 1).decap(frame).is_none();
        assert!(!refuses(&wire));
        assert!(refuses(&[]));
        assert!(refuses(&wire[..wire.len() - 1]), "cut short");
        // Type, version, protocol, source, destination, port, flag, VNI.
        for at in [12, 14, 23, 29, 33, 37, 42, 48] {
            let mut other = wire.clone();
            other[at] ^= 0xff;
            assert!(refuses(&other), "byte {at}");
        }
    }

    #[test]
    fn flows_spread_and_stay_together() {
        let flow = |port: u8| {
            let mut frame = inner();
            frame[35] = port;
            source_port(&frame)
        };
        assert_eq!(flow(1), flow(1));
        let ports: std::collections::BTreeSet<u16> = (0..100).map(flow).collect();
        assert!(ports.len() > 90, "{ports:?}");
        assert_eq!(source_port(&[0; 20]), FIRST_SOURCE_PORT);
    }

    #[test]
    fn macs_are_parsed() {
        let mac: Mac = "0a:58:0a:00:01:0b".parse().unwrap();
        assert_eq!(mac.0, [0x0a, 0x58, 0x0a, 0, 1, 0x0b]);
        assert!("0a:58".parse::<Mac>().is_err());
        assert!("0a:58:0a:00:01:0x".parse::<Mac>().is_err());
    }
}
