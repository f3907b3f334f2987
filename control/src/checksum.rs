//! Whether the checksum of a watched packet was right when it came: that of TCP, UDP and ICMP, by the bytes
//! of its record. No worker looks at it, and who receives a packet with a wrong one drops it in silence.

use etherparse::{EtherType, IpNumber, IpSlice};
use podway_proto::watch::{WatchPoint, WatchRecord};
use serde::Serialize;

/// Bytes of each packet with which one of a usual Ethernet can be looked at: 1500 and a tunnel around it.
const SNAP: u32 = 2048;

const ETHERNET: usize = 14;
/// UDP and VXLAN header.
const TUNNEL: usize = 16;

/// Bytes that a watch has to keep of each packet. Without any a worker has less to do for the packets that
/// nobody wants.
pub fn snap(is_wanted: bool) -> u32 {
    if is_wanted { SNAP } else { 0 }
}

/// A wrong checksum.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Wrong {
    /// Number of the protocol whose it is.
    pub protocol: u8,
    /// What the packet says.
    pub found: u16,
    /// What its bytes give.
    pub computed: u16,
}

/// What is wrong with the checksum of a packet as it came. `None` when it is right, is not there, is
/// unfinished (some kernel or card on its way finishes it), or cannot be told: of a fragment, a
/// super-frame, a packet of which not all is kept, and at other points than `ingress` and `decap`.
///
/// Of a packet in a tunnel it is the one inside: a sender may leave out the outer one.
pub fn wrong(record: &WatchRecord) -> Option<Wrong> {
    let is_whole = record.bytes.len() >= usize::try_from(record.length).ok()?;
    if !is_whole || record.segment.is_some() {
        return None;
    }
    let bytes = &*record.bytes;
    let frame = match record.point {
        WatchPoint::Ingress if record.vni.is_some() => {
            ip(bytes)?.payload().payload.get(TUNNEL..)?
        }
        WatchPoint::Ingress | WatchPoint::Decap => bytes,
        WatchPoint::Egress | WatchPoint::Dropped => return None,
    };
    of_packet(&ip(frame)?)
}

fn ip(frame: &[u8]) -> Option<IpSlice<'_>> {
    let (header, packet) = frame.split_at_checked(ETHERNET)?;
    let ether_type = header.last_chunk().copied().map(u16::from_be_bytes)?;
    let is_ip = [EtherType::IPV4, EtherType::IPV6].contains(&EtherType(ether_type));
    is_ip.then(|| IpSlice::from_slice(packet).ok()).flatten()
}

fn of_packet(packet: &IpSlice<'_>) -> Option<Wrong> {
    let payload = packet.payload();
    let is_v4 = packet.ipv4().is_some();
    let (at, has_pseudo_header) = match payload.ip_number {
        _ if payload.fragmented => return None,
        IpNumber::TCP => (16, true),
        IpNumber::UDP => (6, true),
        IpNumber::ICMP if is_v4 => (2, false),
        IpNumber::IPV6_ICMP if !is_v4 => (2, true),
        _ => return None,
    };
    let mut bytes = payload.payload;
    if payload.ip_number == IpNumber::UDP {
        let length = bytes
            .get(4..6)?
            .first_chunk()
            .copied()
            .map(u16::from_be_bytes)?;
        bytes = bytes.get(..usize::from(length))?;
    }
    let found = bytes
        .get(at..)?
        .first_chunk()
        .copied()
        .map(u16::from_be_bytes)?;
    let protocol = payload.ip_number.0;
    let pseudo = match has_pseudo_header {
        true => pseudo_header(packet, protocol, bytes.len()),
        false => 0,
    };
    // RFC 768: the sender made none. And a sender whose card is to finish it has left the sum of the
    // pseudo-header in its place (CHECKSUM_PARTIAL).
    let is_none = payload.ip_number == IpNumber::UDP && is_v4 && found == 0;
    let is_unfinished = has_pseudo_header && found == fold(pseudo);
    let all = fold(pseudo + sum(bytes));
    if is_none || is_unfinished || all == u16::MAX {
        return None;
    }
    let (before, rest) = bytes.split_at_checked(at)?;
    let computed = !fold(pseudo + sum(before) + sum(rest.get(2..)?));
    Some(Wrong {
        protocol,
        found,
        computed: match computed {
            0 if payload.ip_number == IpNumber::UDP => u16::MAX,
            computed => computed,
        },
    })
}

/// Sum of the pseudo-header: RFC 9293, 3.1 and RFC 8200, 8.1.
fn pseudo_header(packet: &IpSlice<'_>, protocol: u8, length: usize) -> u64 {
    let addresses = match packet {
        IpSlice::Ipv4(v4) => sum(&v4.header().source()) + sum(&v4.header().destination()),
        IpSlice::Ipv6(v6) => sum(&v6.header().source()) + sum(&v6.header().destination()),
    };
    addresses + u64::from(protocol) + u64::try_from(length).unwrap_or(u64::MAX >> 1)
}

/// Sum of the 16-bit words, an odd byte at the end being the high one of its word.
fn sum(bytes: &[u8]) -> u64 {
    let (words, odd) = bytes.as_chunks();
    let words = words
        .iter()
        .map(|word| u64::from(u16::from_be_bytes(*word)));
    words.sum::<u64>() + odd.first().map_or(0, |odd| u64::from(*odd) << 8)
}

fn fold(mut sum: u64) -> u16 {
    while sum > u64::from(u16::MAX) {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    u16::try_from(sum).unwrap_or(u16::MAX)
}

#[cfg(test)]
mod tests {
    use etherparse::PacketBuilder;

    use super::*;
    use crate::show::watch::tests::record;

    const V4: [[u8; 4]; 2] = [[10, 0, 0, 2], [10, 0, 1, 2]];
    const V6: [[u8; 16]; 2] = [[0xfd; 16], [0xfe; 16]];

    /// A frame of each protocol and IP version, and where its checksum is.
    fn frames() -> Vec<(u8, usize, Vec<u8>)> {
        // Odd, so that the last byte is half a word.
        let payload = [0xa5; 33];
        let mut frames = Vec::new();
        let mut add = |protocol, at, write: &dyn Fn(&mut Vec<u8>)| {
            let mut frame = Vec::new();
            write(&mut frame);
            frames.push((protocol, at, frame));
        };
        let v4 = || PacketBuilder::ethernet2([2; 6], [4; 6]).ipv4(V4[0], V4[1], 64);
        let v6 = || PacketBuilder::ethernet2([2; 6], [4; 6]).ipv6(V6[0], V6[1], 64);
        add(17, 34 + 6, &|f| v4().udp(7, 9).write(f, &payload).unwrap());
        add(17, 54 + 6, &|f| v6().udp(7, 9).write(f, &payload).unwrap());
        add(6, 34 + 16, &|f| {
            v4().tcp(7, 9, 1, 2).write(f, &payload).unwrap()
        });
        add(6, 54 + 16, &|f| {
            v6().tcp(7, 9, 1, 2).write(f, &payload).unwrap()
        });
        add(1, 34 + 2, &|f| {
            v4().icmpv4_echo_request(7, 9).write(f, &payload).unwrap();
        });
        add(58, 54 + 2, &|f| {
            v6().icmpv6_echo_request(7, 9).write(f, &payload).unwrap();
        });
        frames
    }

    fn came(bytes: Vec<u8>) -> WatchRecord {
        WatchRecord {
            length: bytes.len().try_into().unwrap(),
            bytes,
            ..record()
        }
    }

    fn field(frame: &[u8], at: usize) -> u16 {
        u16::from_be_bytes(*frame[at..].first_chunk().unwrap())
    }

    fn with(frame: &[u8], at: usize, value: u16) -> Vec<u8> {
        let mut frame = frame.to_vec();
        frame[at..at + 2].copy_from_slice(&value.to_be_bytes());
        frame
    }

    #[test]
    fn a_wrong_checksum_is_told_with_the_right_one() {
        for (protocol, at, frame) in frames() {
            assert_eq!(wrong(&came(frame.clone())), None, "{protocol}");
            let right = field(&frame, at);
            let found = Some(Wrong {
                protocol,
                found: 0xbeef,
                computed: right,
            });
            assert_eq!(wrong(&came(with(&frame, at, 0xbeef))), found);
            // The padding of a short frame is no part of it.
            let mut padded = frame.clone();
            padded.extend([0xff; 9]);
            assert_eq!(wrong(&came(padded)), None, "{protocol}");
            let mut payload = frame.clone();
            *payload.last_mut().unwrap() ^= 1;
            assert!(wrong(&came(payload)).is_some(), "{protocol}");
        }
    }

    #[test]
    fn none_and_an_unfinished_one_are_not_wrong() {
        for (protocol, at, frame) in frames() {
            let packet = ip(&frame).unwrap();
            let length = packet.payload().payload.len();
            let unfinished = fold(pseudo_header(&packet, protocol, length));
            let told = wrong(&came(with(&frame, at, unfinished)));
            // ICMP has no pseudo-header, and nobody leaves it to a card.
            assert_eq!(told.is_some(), protocol == 1, "{protocol}");
        }
        let (_, at, udp) = frames().swap_remove(0);
        assert_eq!(wrong(&came(with(&udp, at, 0))), None);
        // RFC 8200: over IPv6 there is one.
        let (_, at, udp) = frames().swap_remove(1);
        assert!(wrong(&came(with(&udp, at, 0))).is_some());
    }

    #[test]
    fn what_cannot_be_told_is_not_wrong() {
        let (_, at, frame) = frames().swap_remove(0);
        let bad = came(with(&frame, at, 0xbeef));
        assert!(wrong(&bad).is_some());
        let cut = WatchRecord {
            length: bad.length + 1,
            ..bad.clone()
        };
        let long = WatchRecord {
            segment: Some(1398),
            ..bad.clone()
        };
        let left = WatchRecord {
            point: WatchPoint::Egress,
            ..bad.clone()
        };
        // More of it follows.
        let mut fragment = bad.clone();
        fragment.bytes[20] = 0x20;
        for record in [cut, long, left, fragment] {
            assert_eq!(wrong(&record), None, "{record:?}");
        }
        // Whatever it is cut to, and whatever is in it.
        for length in 0..bad.bytes.len() {
            let mut broken = came(bad.bytes[..length].to_vec());
            assert_eq!(wrong(&broken), None, "{length}");
            broken.vni = Some(7.try_into().unwrap());
            assert_eq!(wrong(&broken), None, "{length} in a tunnel");
        }
        assert_eq!(wrong(&came(vec![0xff; 100])), None);
    }

    #[test]
    fn of_a_tunnel_it_is_the_one_inside() {
        let (_, at, inner) = frames().swap_remove(0);
        let tunnel = |inner: &[u8]| {
            let mut frame = Vec::new();
            let inside = [&[8, 0, 0, 0, 0, 0, 42, 0], inner].concat();
            PacketBuilder::ethernet2([2; 6], [4; 6])
                .ipv4([192, 168, 1, 2], [192, 168, 1, 1], 64)
                .udp(50_000, 4789)
                .write(&mut frame, &inside)
                .unwrap();
            came(with(&frame, 34 + 6, 0))
        };
        let bad = WatchRecord {
            vni: Some(42.try_into().unwrap()),
            ..tunnel(&with(&inner, at, 0xbeef))
        };
        let right = field(&inner, at);
        let told = wrong(&bad).map(|wrong| (wrong.found, wrong.computed));
        assert_eq!(told, Some((0xbeef, right)));
        let inside = WatchRecord {
            point: WatchPoint::Decap,
            ..came(with(&inner, at, 0xbeef))
        };
        assert_eq!(wrong(&inside), wrong(&bad));
        // A pod's own: that of the outer header, which is not there.
        let foreign = WatchRecord { vni: None, ..bad };
        assert_eq!(wrong(&foreign), None);
    }
}
