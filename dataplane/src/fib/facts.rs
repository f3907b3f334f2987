//! What the API thread mirrors of control's facts, and which of them it takes.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use ipnet::IpNet;
use podway_proto::types::{
    BadMultipath, LocalNode, MacAddr, Mode, Neighbor, Node, PortRole, Route, Via, check_multipath,
};
use podway_proto::{ErrorBody, ErrorCode};

use super::next_hop::PortId;
use crate::tunnel::{VXLAN_OVERHEAD_V4, VXLAN_OVERHEAD_V6};

/// The smallest MTU in bytes that a port, or a path less its tunnel's overhead, may have: every
/// IPv4 host takes packets of this size (RFC 791, section 3.1), and below it headers would
/// outweigh what they carry.
pub const MIN_MTU: u16 = 576;

/// Most prefixes of one family, those of local pods included: what the XDP program's maps hold.
pub const MAX_PREFIXES: usize = 1 << 20;

/// An attached port, as its worker side found it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortFacts {
    /// Its index.
    pub id: PortId,
    /// Interface name.
    pub interface: String,
    /// Interface index.
    pub ifindex: u32,
    /// MTU of the interface: its largest L3 packet in bytes.
    pub mtu: u16,
    /// MAC of the interface itself.
    pub mac: MacAddr,
    /// Whether a run of datagrams (UDP GSO) would get uncut to whoever is at its other end.
    pub carries_runs: bool,
    /// What is behind it.
    pub role: PortRole,
}

impl PortFacts {
    /// The addresses of the pod behind it; none for an uplink.
    pub(super) fn pod_addresses(&self) -> &[IpAddr] {
        match &self.role {
            PortRole::Pod { addresses, .. } => addresses,
            PortRole::Uplink { .. } => &[],
        }
    }
}

/// A fact and the synchronisation in which it was last named.
#[derive(Debug, Clone)]
pub(super) struct Named<T> {
    pub(super) fact: T,
    pub(super) epoch: u64,
}

/// Every fact but the routes, which are in the RIB.
#[derive(Debug, Default)]
pub(super) struct Facts {
    pub(super) local: Option<Named<LocalNode>>,
    pub(super) nodes: HashMap<String, Named<Node>>,
    /// By link, then by address.
    pub(super) neighbors: HashMap<String, BTreeMap<IpAddr, Named<MacAddr>>>,
    pub(super) ports: HashMap<String, Named<PortFacts>>,
}

impl Facts {
    pub(super) fn local(&self) -> Option<&LocalNode> {
        self.local.as_ref().map(|named| &named.fact)
    }

    pub(super) fn node(&self, name: &str) -> Option<&Node> {
        self.nodes.get(name).map(|named| &named.fact)
    }

    pub(super) fn neighbor(&self, interface: &str, address: IpAddr) -> Option<MacAddr> {
        let link = self.neighbors.get(interface)?;
        link.get(&address).map(|named| named.fact)
    }

    pub(super) fn port(&self, interface: &str) -> Option<&PortFacts> {
        self.ports.get(interface).map(|named| &named.fact)
    }
}

/// Why a change was refused. The facts are then as they were.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FactError {
    /// The node to be forgotten is not known.
    #[error("no node '{0}'")]
    NoSuchNode(String),
    /// The route to be withdrawn is not there.
    #[error("no route {0}")]
    NoSuchRoute(IpNet),
    /// The neighbour to be forgotten is not known.
    #[error("no neighbour {address} on {interface}")]
    NoSuchNeighbor {
        /// The link.
        interface: String,
        /// The neighbour's address.
        address: IpAddr,
    },
    /// The port is not attached.
    #[error("no port {0}")]
    NoSuchPort(String),
    /// The port's index belongs to another one.
    #[error("port {interface} has the index of port {other}")]
    PortIdTaken {
        /// The refused port.
        interface: String,
        /// The port that has the index.
        other: String,
    },
    /// A pod's address belongs to a pod behind another port.
    #[error("{address} is the address of the pod behind {other}; detach that port first")]
    AddressTaken {
        /// The address.
        address: IpAddr,
        /// The port that has it.
        other: String,
    },
    /// The prefix has bits set beyond its length.
    #[error("{0} has host bits; write {network}", network = .0.trunc())]
    HostBits(IpNet),
    /// Addresses of the prefix are never routed.
    #[error("{0} cannot be routed: it is {1}")]
    NotRoutable(IpNet, &'static str),
    /// The address is not that of one interface.
    #[error("{address} cannot be {role}: it is not a unicast address")]
    NotUnicast {
        /// The address.
        address: IpAddr,
        /// What it was to be.
        role: &'static str,
    },
    /// The MAC is not that of one interface.
    #[error("{mac} cannot be {role}: it is not a unicast MAC address")]
    BadMac {
        /// The MAC.
        mac: MacAddr,
        /// What it was to be.
        role: &'static str,
    },
    /// Both ends of a tunnel must be of one family.
    #[error("the path to {underlay} cannot start at {source_address}: one is IPv4, one IPv6")]
    FamilyMismatch {
        /// The node's underlay address.
        underlay: IpAddr,
        /// This node's address.
        source_address: IpAddr,
    },
    /// UDP has no port 0.
    #[error("0 is not a UDP port; use 4789 or 8472")]
    VxlanPortZero,
    /// A name is needed.
    #[error("the name is empty")]
    EmptyName,
    /// The MTU is too small to be of use.
    #[error("an MTU of {mtu} bytes is too small; at least {least} are needed here")]
    MtuTooSmall {
        /// The MTU that was given.
        mtu: u16,
        /// The least that is taken.
        least: u16,
    },
    /// The next hops make no multipath route.
    #[error(transparent)]
    Multipath(#[from] BadMultipath),
    /// One more prefix would not fit.
    #[error("the table is full: it takes {MAX_PREFIXES} prefixes of a family")]
    TableFull,
}

impl FactError {
    /// What kind of refusal this is.
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::NoSuchNode(_)
            | Self::NoSuchRoute(_)
            | Self::NoSuchNeighbor { .. }
            | Self::NoSuchPort(_) => ErrorCode::NotFound,
            Self::PortIdTaken { .. } | Self::AddressTaken { .. } => ErrorCode::AlreadyExists,
            _ => ErrorCode::Invalid,
        }
    }
}

impl From<FactError> for ErrorBody {
    fn from(error: FactError) -> Self {
        Self::new(error.code(), error.to_string())
    }
}

pub(super) fn check_local(local: &LocalNode) -> Result<(), FactError> {
    if local.vxlan_port == 0 {
        return Err(FactError::VxlanPortZero);
    }
    check_mac(local.vtep_mac, "a VTEP's")?;
    for address in &local.addresses {
        check_unicast(*address, "an address of this node")?;
    }
    Ok(())
}

pub(super) fn check_node(node: &Node) -> Result<(), FactError> {
    if node.name.is_empty() {
        return Err(FactError::EmptyName);
    }
    check_unicast(node.underlay, "a node's underlay address")?;
    check_mac(node.vtep_mac, "a VTEP's")?;
    let Some(path) = &node.path else {
        return Ok(());
    };
    if path.interface.is_empty() {
        return Err(FactError::EmptyName);
    }
    check_unicast(path.next_hop, "a next hop")?;
    check_unicast(path.source, "the source of a path")?;
    if path.source.is_ipv4() != node.underlay.is_ipv4() {
        return Err(FactError::FamilyMismatch {
            underlay: node.underlay,
            source_address: path.source,
        });
    }
    let least = MIN_MTU
        + match node.mode {
            Mode::Vxlan => overhead(node.underlay),
            Mode::Native => 0,
        };
    check_mtu(path.mtu, least)
}

pub(super) fn check_route(route: &Route) -> Result<(), FactError> {
    check_prefix(route.prefix)?;
    if let Via::Multipath { members } = &route.via {
        check_multipath(members, |member| matches!(member, Via::Multipath { .. }))?;
    }
    route.via.members().iter().try_for_each(check_via)
}

fn check_via(via: &Via) -> Result<(), FactError> {
    match via {
        Via::Node { node, .. } if node.is_empty() => Err(FactError::EmptyName),
        Via::Gateway { interface, .. } if interface.is_empty() => Err(FactError::EmptyName),
        Via::Node { .. } | Via::Multipath { .. } => Ok(()),
        Via::Gateway { address, .. } => check_unicast(*address, "a gateway"),
    }
}

pub(super) fn check_neighbor(neighbor: &Neighbor) -> Result<(), FactError> {
    if neighbor.interface.is_empty() {
        return Err(FactError::EmptyName);
    }
    check_unicast(neighbor.address, "a neighbour")?;
    check_mac(neighbor.mac, "a neighbour's")
}

pub(super) fn check_port(port: &PortFacts) -> Result<(), FactError> {
    if port.interface.is_empty() {
        return Err(FactError::EmptyName);
    }
    check_mtu(port.mtu, MIN_MTU)?;
    check_mac(port.mac, "a port's")?;
    if let PortRole::Pod { addresses, mac, .. } = &port.role {
        check_mac(*mac, "a pod's")?;
        for address in addresses {
            check_unicast(*address, "a pod's address")?;
            check_prefix(IpNet::from(*address))?;
        }
    }
    Ok(())
}

/// What a tunnel to `underlay` takes from the MTU.
pub(super) fn overhead(underlay: IpAddr) -> u16 {
    if underlay.is_ipv4() {
        VXLAN_OVERHEAD_V4
    } else {
        VXLAN_OVERHEAD_V6
    }
}

fn check_mtu(mtu: u16, least: u16) -> Result<(), FactError> {
    if mtu < least {
        return Err(FactError::MtuTooSmall { mtu, least });
    }
    Ok(())
}

fn check_mac(mac: MacAddr, role: &'static str) -> Result<(), FactError> {
    if mac.is_multicast() || mac == MacAddr::default() {
        return Err(FactError::BadMac { mac, role });
    }
    Ok(())
}

fn check_unicast(address: IpAddr, role: &'static str) -> Result<(), FactError> {
    let broadcast = matches!(address, IpAddr::V4(v4) if v4.is_broadcast());
    if address.is_unspecified() || address.is_multicast() || broadcast {
        return Err(FactError::NotUnicast { address, role });
    }
    Ok(())
}

/// Prefixes that lie in one of these are never forwarded (RFC 6890, section 2.2; RFC 3927, section
/// 7; RFC 4291, section 2.5). One that covers them, such as the default route, is.
fn check_prefix(prefix: IpNet) -> Result<(), FactError> {
    if prefix.trunc() != prefix {
        return Err(FactError::HostBits(prefix));
    }
    let first = prefix.network();
    let len = prefix.prefix_len();
    let why = match first {
        IpAddr::V4(v4) if len >= 4 && v4.is_multicast() => "multicast",
        IpAddr::V4(v4) if len >= 8 && v4.is_loopback() => "loopback",
        IpAddr::V4(v4) if len >= 16 && v4.is_link_local() => "link-local",
        IpAddr::V4(v4) if v4.is_broadcast() => "the broadcast address",
        IpAddr::V4(v4) if len >= 8 && v4.octets()[0] == 0 => "this network",
        IpAddr::V6(v6) if len >= 8 && v6.is_multicast() => "multicast",
        IpAddr::V6(v6) if len == 128 && v6.is_loopback() => "loopback",
        IpAddr::V6(v6) if len >= 10 && v6.is_unicast_link_local() => "link-local",
        IpAddr::V6(v6) if len == 128 && v6.is_unspecified() => "the unspecified address",
        _ => return Ok(()),
    };
    Err(FactError::NotRoutable(prefix, why))
}
