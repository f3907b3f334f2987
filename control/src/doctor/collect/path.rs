//! Whether a packet as large as the uplink takes gets to each node: an ICMP echo that nobody may cut.

mod echo;
mod schedule;
mod sockets;

use std::io;
use std::net::IpAddr;
use std::time::Instant;

use podway_proto::control::NodeEntry;

use super::super::facts::{Outcome, PathProbe};
use super::link_named;
use crate::netlink::{LinkDetails, Lookup, Requests};
use schedule::{Schedule, Target};
use sockets::Sockets;

/// Sends packets of full size to the other nodes, and small ones beside them.
pub(super) fn probe(nodes: &[NodeEntry], links: &[LinkDetails]) -> Vec<PathProbe> {
    let mut requests = Requests::open().ok();
    let (targets, no_way) = targets(nodes, links, |address| {
        requests.as_mut()?.lookup(address).ok().flatten()
    });
    let asked = ask(&targets);
    let became = |target: &Target<'_>| match &asked {
        Ok(schedule) => schedule.outcome(target.address),
        Err(error) => Outcome::NotSent(error.to_string()),
    };
    let asked = targets.iter().map(|target| PathProbe {
        node: target.node.to_owned(),
        address: target.address,
        size: target.size,
        outcome: became(target),
    });
    asked.chain(no_way).collect()
}

/// Each underlay address of the other nodes to which there is a way, and the others. Control tells the way
/// to the first address, and the check of neighbours that there is none; `way` is what the kernel says of
/// the way to another one.
fn targets<'n>(
    nodes: &'n [NodeEntry],
    links: &[LinkDetails],
    mut way: impl FnMut(IpAddr) -> Option<Lookup>,
) -> (Vec<Target<'n>>, Vec<PathProbe>) {
    let (mut targets, mut no_way) = (Vec::new(), Vec::new());
    for node in nodes.iter().filter(|node| !node.local) {
        let target = |source, address, link: &LinkDetails| Target {
            node: &node.name,
            source,
            address,
            size: link.link.mtu.min(65_535),
        };
        if let Some(path) = &node.path
            && let Some(link) = link_named(links, &path.interface)
        {
            targets.push(target(path.source, node.underlay, link));
        }
        let Some(second) = node.underlay6.map(IpAddr::from) else {
            continue;
        };
        let way = way(second).and_then(|way| {
            let link = links.iter().find(|link| link.link.index == way.link)?;
            Some((way.source?, link))
        });
        match way {
            Some((source, link)) => targets.push(target(source, second, link)),
            None => no_way.push(PathProbe {
                node: node.name.clone(),
                address: second,
                size: 0,
                outcome: Outcome::NoWay,
            }),
        }
    }
    (targets, no_way)
}

fn ask<'t>(targets: &'t [Target<'t>]) -> io::Result<Schedule<'t>> {
    let mut schedule = Schedule::new(targets, Instant::now());
    let mut sockets = Sockets::new();
    loop {
        let now = Instant::now();
        if schedule.is_done(now) {
            return Ok(schedule);
        }
        for question in schedule.due(now) {
            let sent = sockets.send(&question);
            schedule.asked(question.target.address, sent, Instant::now());
        }
        if let Some(until) = schedule.next()
            && let Some((address, reply)) = sockets.receive(until)?
        {
            schedule.heard(address, reply);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::testing::healthy;
    use super::*;

    #[test]
    fn every_address_of_the_other_nodes_is_asked() {
        let mut facts = healthy();
        let other = facts.nodes.iter_mut().find(|node| !node.local).unwrap();
        other.underlay6 = Some("fd77::2".parse().unwrap());
        let source: IpAddr = "fd77::1".parse().unwrap();
        let link = facts.links[0].link.index;
        facts.links[0].link.mtu = 9000;
        let way = |address: IpAddr| {
            assert_eq!(address.to_string(), "fd77::2");
            Some(Lookup {
                link,
                gateway: None,
                source: Some(source),
                mtu: Some(1400),
                expires: None,
            })
        };
        let target = |source: &str, address: &str| Target {
            node: "node-b",
            source: source.parse().unwrap(),
            address: address.parse().unwrap(),
            size: 9000,
        };
        let first = target("192.168.1.1", "192.168.1.2");
        let both = [first.clone(), target("fd77::1", "fd77::2")];
        assert_eq!(
            targets(&facts.nodes, &facts.links, way),
            (both.to_vec(), Vec::new())
        );
        let no_way = vec![PathProbe {
            node: "node-b".to_owned(),
            address: "fd77::2".parse().unwrap(),
            size: 0,
            outcome: Outcome::NoWay,
        }];
        assert_eq!(
            targets(&facts.nodes, &facts.links, |_| None),
            (vec![first], no_way.clone())
        );
        let other = facts.nodes.iter_mut().find(|node| !node.local).unwrap();
        other.path = None;
        assert_eq!(
            targets(&facts.nodes, &facts.links, |_| None),
            (Vec::new(), no_way)
        );
    }
}
