//! From facts to a finished next hop.

use std::net::IpAddr;
use std::sync::Arc;

use podway_proto::control::RouteTarget;
use podway_proto::types::{Mode, Node, PortRole, Via, Vni};

use super::facts::{Facts, MIN_MTU, PortFacts, overhead};
use super::group::{Group, Member};
use super::next_hop::{L2Rewrite, NextHop, NextHopKind, PortId};
use crate::tunnel::OuterHeader;

/// What a next hop leads to. Routes to one target share one next hop.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Target {
    /// The pod behind this interface.
    Pod(String),
    /// A remote node.
    Node {
        /// Its name.
        name: String,
        /// The VXLAN network identifier of tunnels to it, if it is not the overlay's.
        vni: Option<Vni>,
    },
    /// A router on a link.
    Gateway {
        /// The router's address.
        address: IpAddr,
        /// The link.
        interface: String,
    },
    /// Several of the others, sorted, each for its share of the flows.
    Group(Vec<Target>),
}

impl Target {
    /// The members of a group; none of another target.
    pub(super) fn members(&self) -> &[Self] {
        match self {
            Self::Group(members) => members,
            _ => &[],
        }
    }
}

impl From<Via> for Target {
    fn from(via: Via) -> Self {
        match via {
            Via::Node { node, vni } => Self::Node { name: node, vni },
            Via::Gateway { address, interface } => Self::Gateway { address, interface },
            Via::Multipath { members } => {
                let mut members: Vec<Self> = members.into_iter().map(Self::from).collect();
                members.sort_unstable();
                Self::Group(members)
            }
        }
    }
}

impl From<&Target> for RouteTarget {
    fn from(target: &Target) -> Self {
        match target {
            Target::Pod(interface) => Self::Pod {
                interface: interface.clone(),
            },
            Target::Node { name, vni } => Self::Node {
                node: name.clone(),
                vni: *vni,
            },
            Target::Gateway { address, interface } => Self::Gateway {
                address: *address,
                interface: Some(interface.clone()),
            },
            Target::Group(members) => Self::Multipath {
                members: members.iter().map(Self::from).collect(),
            },
        }
    }
}

/// A neighbour that a next hop depends on: its link, and its address there.
pub(super) type Dependency = (String, IpAddr);

/// What packets get whose next hop lacks a fact.
pub(super) fn unresolved() -> NextHop {
    NextHop {
        port: PortId(u16::MAX),
        l2: L2Rewrite([0; 12]),
        mtu: 0,
        kind: NextHopKind::Unresolved,
    }
}

/// The link and neighbour that `target` is reached by, whether or not they are known.
pub(super) fn dependency(facts: &Facts, target: &Target) -> Option<Dependency> {
    match target {
        // A group follows its members.
        Target::Pod(_) | Target::Group(_) => None,
        Target::Node { name, .. } => {
            let path = facts.node(name)?.path.as_ref()?;
            Some((path.interface.clone(), path.next_hop))
        }
        Target::Gateway { address, interface } => Some((interface.clone(), *address)),
    }
}

/// The next hop to `target`, which is no group; `None` while a fact is missing.
pub(super) fn resolve(facts: &Facts, target: &Target) -> Option<NextHop> {
    let hop = match target {
        Target::Pod(interface) => to_pod(facts, interface)?,
        Target::Node { name, vni } => to_node(facts, facts.node(name)?, *vni)?,
        Target::Gateway { address, interface } => to_neighbor(facts, interface, *address)?,
        Target::Group(_) => return None,
    };
    (hop.mtu >= MIN_MTU).then_some(hop)
}

/// The next hop of a group with these members that are resolved; `None` when there are none.
pub(super) fn to_group(members: &[Member]) -> Option<NextHop> {
    Some(NextHop {
        port: PortId::NONE,
        mtu: members.iter().map(|member| member.mtu).min()?,
        kind: NextHopKind::Group(Arc::new(Group::of(members)?)),
        ..unresolved()
    })
}

fn to_pod(facts: &Facts, interface: &str) -> Option<NextHop> {
    let port = facts.port(interface)?;
    let PortRole::Pod { mac, .. } = &port.role else {
        return None;
    };
    Some(NextHop {
        port: port.id,
        l2: L2Rewrite::new(*mac, port.mac),
        mtu: port.mtu,
        kind: NextHopKind::Pod,
    })
}

/// Natively by a neighbour on an uplink.
fn to_neighbor(facts: &Facts, interface: &str, address: IpAddr) -> Option<NextHop> {
    let port = uplink(facts, interface)?;
    let mac = facts.neighbor(interface, address)?;
    Some(NextHop {
        port: port.id,
        l2: L2Rewrite::new(mac, port.mac),
        mtu: port.mtu,
        kind: NextHopKind::Native,
    })
}

fn to_node(facts: &Facts, node: &Node, vni: Option<Vni>) -> Option<NextHop> {
    let path = node.path.as_ref()?;
    let port = uplink(facts, &path.interface)?;
    let mac = facts.neighbor(&path.interface, path.next_hop)?;
    // The path may be narrower than its first link, and what the kernel says of it may be older
    // than the link's MTU.
    let mtu = path.mtu.min(port.mtu);
    if node.mode == Mode::Native {
        return Some(NextHop {
            port: port.id,
            l2: L2Rewrite::new(mac, port.mac),
            mtu,
            kind: NextHopKind::Native,
        });
    }
    let local = facts.local()?;
    let vni = vni.unwrap_or(local.vni);
    // The other end would answer with it, and be dropped.
    if vni != local.vni && !local.also_vnis.contains(&vni) {
        return None;
    }
    let outer = OuterHeader::new(
        (port.mac, path.source),
        (mac, node.underlay),
        local.vxlan_port,
        vni,
    )?;
    Some(NextHop {
        port: port.id,
        l2: L2Rewrite::new(node.vtep_mac, local.vtep_mac),
        mtu: mtu.checked_sub(overhead(node.underlay))?,
        kind: NextHopKind::Tunnel(Box::new(outer)),
    })
}

fn uplink<'f>(facts: &'f Facts, interface: &str) -> Option<&'f PortFacts> {
    let port = facts.port(interface)?;
    matches!(port.role, PortRole::Uplink { .. }).then_some(port)
}
