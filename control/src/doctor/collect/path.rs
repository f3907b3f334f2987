//! Whether a packet as large as the uplink takes gets to each node: an ICMP echo (RFC 792) that nobody may
//! cut. The IPv4 header is made here, so that the kernel minds the link alone and not what it has
//! learned of the way. Over IPv6 nobody is asked so.

use std::collections::BTreeMap;
use std::io::{self, Read as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use etherparse::{
    IcmpEchoHeader, Icmpv4Header, Icmpv4Slice, Icmpv4Type, IpNumber, Ipv4Header, Ipv4HeaderSlice,
};
use podway_proto::control::NodeEntry;
use socket2::{Domain, Protocol, Socket, Type};

use super::super::facts::{Outcome, PathProbe};
use super::link_named;
use crate::netlink::LinkDetails;

/// How long an answer may take before the question is asked again.
const PATIENCE: Duration = Duration::from_millis(400);
const ATTEMPTS: u32 = 3;
/// Beyond this many the answers would not fit the socket at once.
const MOST: usize = 64;
/// IPv4 and ICMP header.
const HEADERS: u32 = 28;
/// Bytes behind the headers of a small one.
const SMALL: u32 = 56;

/// What has come back of the packets to one node.
#[derive(Debug, Default)]
struct Heard {
    small: bool,
    large: bool,
    too_big: Option<u32>,
}

/// Sends packets of full size to the other nodes, and small ones beside them.
pub(super) fn probe(nodes: &[NodeEntry], links: &[LinkDetails]) -> Vec<PathProbe> {
    let targets: Vec<(&str, Ipv4Addr, Ipv4Addr, u32)> = nodes
        .iter()
        .filter(|node| !node.local)
        .filter_map(|node| {
            let path = node.path.as_ref()?;
            let mtu = link_named(links, &path.interface)?.link.mtu;
            match (path.source, node.underlay) {
                (IpAddr::V4(source), IpAddr::V4(address)) => {
                    Some((node.name.as_str(), source, address, mtu.min(65_535)))
                }
                _ => None,
            }
        })
        .take(MOST)
        .collect();
    if targets.is_empty() {
        return Vec::new();
    }
    let sent = ask(&targets);
    targets
        .iter()
        .map(|(node, _, address, size)| PathProbe {
            node: (*node).to_owned(),
            address: (*address).into(),
            size: *size,
            outcome: match &sent {
                Err(error) => Outcome::NotSent(error.to_string()),
                Ok((heard, errors)) => match (heard.get(address), errors.get(address)) {
                    (_, Some(error)) => Outcome::NotSent(error.clone()),
                    (Some(Heard { large: true, .. }), _) => Outcome::Fits,
                    (
                        Some(Heard {
                            too_big: Some(fits),
                            ..
                        }),
                        _,
                    ) => Outcome::TooBig(*fits),
                    (Some(Heard { small: true, .. }), _) => Outcome::Lost,
                    _ => Outcome::NoAnswer,
                },
            },
        })
        .collect()
}

type Answers = (BTreeMap<Ipv4Addr, Heard>, BTreeMap<Ipv4Addr, String>);

fn ask(targets: &[(&str, Ipv4Addr, Ipv4Addr, u32)]) -> io::Result<Answers> {
    let mut socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::ICMPV4))?;
    socket.set_header_included_v4(true)?;
    let [low, high, ..] = std::process::id().to_ne_bytes();
    let id = u16::from_ne_bytes([low, high]);
    let (mut heard, mut errors) = Answers::default();
    for (_, _, address, _) in targets {
        heard.insert(*address, Heard::default());
    }
    for _ in 0..ATTEMPTS {
        for (_, source, address, size) in targets {
            let Some(heard) = heard.get(address) else {
                continue;
            };
            let to = SocketAddr::from((*address, 0)).into();
            // What one node's route or rules refuse says nothing of the others.
            if !heard.small
                && let Err(error) = socket.send_to(&echo(*source, *address, id, SMALL), &to)
            {
                errors.insert(*address, error.to_string());
            }
            if !heard.large && heard.too_big.is_none() {
                let packet = echo(*source, *address, id, size.saturating_sub(HEADERS));
                if let Err(error) = socket.send_to(&packet, &to) {
                    errors.insert(*address, error.to_string());
                }
            }
        }
        let end = Instant::now() + PATIENCE;
        let is_done = |heard: &BTreeMap<Ipv4Addr, Heard>| {
            let mut all = heard.iter();
            all.all(|(address, heard)| {
                heard.large || heard.too_big.is_some() || errors.contains_key(address)
            })
        };
        while !is_done(&heard) {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            socket.set_read_timeout(Some(left))?;
            let mut packet = [0; 65_536];
            match socket.read(&mut packet) {
                Ok(length) => take(packet.get(..length).unwrap_or_default(), id, &mut heard),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        if is_done(&heard) {
            break;
        }
    }
    Ok((heard, errors))
}

/// An echo request without options that may not be cut.
fn echo(source: Ipv4Addr, destination: Ipv4Addr, id: u16, payload: u32) -> Vec<u8> {
    let payload = vec![0x50; payload as usize];
    let icmp = Icmpv4Type::EchoRequest(IcmpEchoHeader { id, seq: 1 });
    let icmp = Icmpv4Header::with_checksum(icmp, &payload);
    let length = icmp.header_len() + payload.len();
    let length = u16::try_from(length).unwrap_or(u16::MAX);
    let Ok(mut ip) = Ipv4Header::new(
        length,
        64,
        IpNumber::ICMP,
        source.octets(),
        destination.octets(),
    ) else {
        return Vec::new();
    };
    ip.dont_fragment = true;
    let mut packet = ip.to_bytes().to_vec();
    packet.extend_from_slice(&icmp.to_bytes());
    packet.extend_from_slice(&payload);
    packet
}

/// Notes what a packet says: an answer by its length, or that a router cannot forward one.
fn take(packet: &[u8], id: u16, heard: &mut BTreeMap<Ipv4Addr, Heard>) {
    let Ok(ip) = Ipv4HeaderSlice::from_slice(packet) else {
        return;
    };
    let inside = packet.get(ip.slice().len()..).unwrap_or_default();
    let Ok(icmp) = Icmpv4Slice::from_slice(inside) else {
        return;
    };
    match icmp.icmp_type() {
        Icmpv4Type::EchoReply(echo) if echo.id == id => {
            if let Some(heard) = heard.get_mut(&ip.source_addr()) {
                match packet.len() > (HEADERS + SMALL) as usize {
                    true => heard.large = true,
                    false => heard.small = true,
                }
            }
        }
        Icmpv4Type::DestinationUnreachable(
            etherparse::icmpv4::DestUnreachableHeader::FragmentationNeeded { next_hop_mtu },
        ) => {
            let quoted = Ipv4HeaderSlice::from_slice(icmp.payload());
            let quoted = quoted
                .ok()
                .filter(|quoted| quoted.protocol() == IpNumber::ICMP);
            if let Some(heard) = quoted.and_then(|quoted| heard.get_mut(&quoted.destination_addr()))
            {
                heard.too_big = Some(next_hop_mtu.into());
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: Ipv4Addr = Ipv4Addr::new(192, 168, 1, 1);
    const THERE: Ipv4Addr = Ipv4Addr::new(192, 168, 1, 2);

    fn heard_of(packet: &[u8]) -> Heard {
        let mut heard = BTreeMap::from([(THERE, Heard::default())]);
        take(packet, 7, &mut heard);
        heard.remove(&THERE).unwrap()
    }

    /// The answer to a request.
    fn answer(mut request: Vec<u8>) -> Vec<u8> {
        for (a, b) in (12..16).zip(16..20) {
            request.swap(a, b);
        }
        request[20] = 0;
        request
    }

    #[test]
    fn a_request_is_as_large_as_it_should_be_and_not_to_be_cut() {
        let packet = echo(HERE, THERE, 7, 1500 - HEADERS);
        assert_eq!(packet.len(), 1500);
        let ip = Ipv4HeaderSlice::from_slice(&packet).unwrap();
        assert!(ip.dont_fragment());
        assert_eq!(usize::from(ip.total_len()), 1500);
        assert_eq!(ip.destination_addr(), THERE);
    }

    #[test]
    fn answers_are_told_apart_by_their_length() {
        let large = heard_of(&answer(echo(HERE, THERE, 7, 1472)));
        assert!(large.large && !large.small);
        let small = heard_of(&answer(echo(HERE, THERE, 7, SMALL)));
        assert!(small.small && !small.large);
        let of_others = heard_of(&answer(echo(HERE, THERE, 8, 1472)));
        assert!(!of_others.large);
        assert!(!heard_of(&echo(HERE, THERE, 7, 1472)).large, "a request");
    }

    #[test]
    fn a_router_tells_what_fits() {
        let request = echo(HERE, THERE, 7, 1472);
        let error =
            etherparse::icmpv4::DestUnreachableHeader::FragmentationNeeded { next_hop_mtu: 1400 };
        let quoted = &request[..28];
        let icmp = Icmpv4Header::with_checksum(Icmpv4Type::DestinationUnreachable(error), quoted);
        let length = u16::try_from(icmp.header_len() + quoted.len()).unwrap();
        let router = [192, 168, 1, 9];
        let ip = Ipv4Header::new(length, 64, IpNumber::ICMP, router, HERE.octets()).unwrap();
        let packet = [&ip.to_bytes()[..], &icmp.to_bytes(), quoted].concat();
        assert_eq!(heard_of(&packet).too_big, Some(1400));
        for length in 0..packet.len() {
            let _ = heard_of(&packet[..length]);
        }
    }
}
