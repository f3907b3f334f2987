//! Whether a packet as large as the uplink takes gets to each node: an ICMP echo that nobody may cut. Over
//! IPv6 nobody is asked so.

mod echo;
mod schedule;

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use podway_proto::control::NodeEntry;
use socket2::{Domain, Protocol, Socket, Type};

use super::super::facts::{Outcome, PathProbe};
use super::link_named;
use crate::netlink::LinkDetails;
use echo::{Reply, SMALL};
use schedule::{Question, Schedule, Target};

/// Sends packets of full size to the other nodes, and small ones beside them.
pub(super) fn probe(nodes: &[NodeEntry], links: &[LinkDetails]) -> Vec<PathProbe> {
    let others = nodes.iter().filter(|node| !node.local);
    let targets: Vec<Target<'_>> = others
        .filter_map(|node| {
            let path = node.path.as_ref()?;
            let mtu = link_named(links, &path.interface)?.link.mtu;
            match (path.source, node.underlay) {
                (IpAddr::V4(source), IpAddr::V4(address)) => Some(Target {
                    node: &node.name,
                    source,
                    address,
                    size: mtu.min(65_535),
                }),
                _ => None,
            }
        })
        .collect();
    let asked = ask(&targets);
    let became = |target: &Target<'_>| match &asked {
        Ok(schedule) => schedule.outcome(target.address),
        Err(error) => Outcome::NotSent(error.to_string()),
    };
    targets
        .iter()
        .map(|target| PathProbe {
            node: target.node.to_owned(),
            address: target.address.into(),
            size: target.size,
            outcome: became(target),
        })
        .collect()
}

fn ask<'t>(targets: &'t [Target<'t>]) -> io::Result<Schedule<'t>> {
    let mut schedule = Schedule::new(targets, Instant::now());
    if targets.is_empty() {
        return Ok(schedule);
    }
    let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::ICMPV4))?;
    socket.set_header_included_v4(true)?;
    let [low, high, ..] = std::process::id().to_ne_bytes();
    let id = u16::from_ne_bytes([low, high]);
    let mut room = vec![0; 65_536];
    loop {
        let now = Instant::now();
        if schedule.is_done(now) {
            return Ok(schedule);
        }
        for question in schedule.due(now) {
            let sent = send(&socket, &question, id);
            schedule.asked(question.target.address, sent, Instant::now());
        }
        if let Some(until) = schedule.next()
            && let Some((address, reply)) = receive(&socket, &mut room, id, until)?
        {
            schedule.heard(address, reply);
        }
    }
}

/// Does not wait for room: packets for a neighbour that does not answer would keep it for seconds.
fn send(socket: &Socket, question: &Question<'_>, id: u16) -> io::Result<()> {
    let Target {
        source,
        address,
        size,
        ..
    } = *question.target;
    let to = SocketAddr::from((address, 0)).into();
    let small = question.small.then_some(SMALL);
    for size in small.into_iter().chain([size]) {
        let packet = echo::request(source, address, id, size);
        socket.send_to_with_flags(&packet, &to, libc::MSG_DONTWAIT)?;
    }
    Ok(())
}

/// The next answer, if one comes in time.
fn receive(
    mut socket: &Socket,
    room: &mut [u8],
    id: u16,
    until: Instant,
) -> io::Result<Option<(Ipv4Addr, Reply)>> {
    let left = until.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return Ok(None);
    }
    // Less than a microsecond would become none, which is to wait for ever.
    socket.set_read_timeout(Some(left.max(Duration::from_micros(1))))?;
    match io::Read::read(&mut socket, room) {
        Ok(length) => Ok(echo::reply(room.get(..length).unwrap_or_default(), id)),
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
            ) =>
        {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_nodes_than_are_asked_at_once_are_all_asked() {
        // All of 127.0.0.0/8 is this machine.
        let target = |n: u8| Target {
            node: "node",
            source: Ipv4Addr::LOCALHOST,
            address: Ipv4Addr::new(127, 0, 9, n),
            size: 1500,
        };
        let targets: Vec<Target<'_>> = (1..=200).map(target).collect();
        let schedule = match ask(&targets) {
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => return,
            schedule => schedule.unwrap(),
        };
        for target in &targets {
            let outcome = schedule.outcome(target.address);
            assert_eq!(outcome, Outcome::Fits, "{}", target.address);
        }
    }
}
