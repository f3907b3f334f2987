//! A digest of the facts, for control to compare with its own. It is made from what is there when it
//! is asked for, and not kept beside it: it is to find what got lost.

use podway_proto::digest::{Digest, Digests};
use podway_proto::types::{Link, Neighbor, Port, Route, Via};

use super::build::Fib;
use super::facts::{Facts, PortFacts};
use super::resolve::Target;
use super::rib::Rib;

impl Fib {
    /// A digest of every fact. It takes as long as it takes to write them all down: half a
    /// microsecond for a route.
    pub fn digests(&self) -> Digests {
        let (facts, rib) = self.parts();
        Digests {
            local: Digest::of(facts.local()),
            ports: Digest::of(facts.ports.values().map(|named| port(&named.fact))),
            neighbors: Digest::of(neighbors(facts)),
            nodes: Digest::of(facts.nodes.values().map(|named| &named.fact)),
            routes: Digest::of(routes(rib)),
        }
    }
}

/// A port as control tells it, with the link that was found.
fn port(port: &PortFacts) -> Port {
    Port {
        interface: port.interface.clone(),
        role: port.role.clone(),
        link: Some(Link {
            ifindex: port.ifindex,
            mtu: port.mtu.into(),
            mac: port.mac,
        }),
    }
}

fn neighbors(facts: &Facts) -> impl Iterator<Item = Neighbor> {
    facts.neighbors.iter().flat_map(|(interface, link)| {
        link.iter().map(|(address, named)| Neighbor {
            interface: interface.clone(),
            address: *address,
            mac: named.fact,
        })
    })
}

fn routes(rib: &Rib) -> impl Iterator<Item = Route> {
    let routes = rib.routes();
    routes.filter_map(|(prefix, target)| via(target).map(|via| Route { prefix, via }))
}

/// Who a route leads to, in the order of [`Via::sorted`], which is that of targets; none of a pod.
fn via(target: &Target) -> Option<Via> {
    Some(match target.clone() {
        Target::Node { name: node, vni } => Via::Node { node, vni },
        Target::Gateway { address, interface } => Via::Gateway { address, interface },
        Target::Group(members) => Via::Multipath {
            members: members.iter().filter_map(via).collect(),
        },
        Target::Pod(_) => return None,
    })
}
