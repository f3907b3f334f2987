//! What the packet path reads: one immutable snapshot of everything.

use std::net::IpAddr;
use std::sync::Arc;

use podway_proto::types::{MacAddr, Vni};

use super::address::AddressSet;
use super::cow::CowVec;
use super::group::Group;
use super::lpm::{LpmV4, LpmV6, NextHopIndex};
use super::next_hop::{NextHop, PortId};

/// One snapshot of the tables. A clone shares everything and costs a few reference counts.
#[derive(Debug, Clone, Default)]
pub struct Tables {
    pub(super) generation: u64,
    pub(super) v4: LpmV4,
    pub(super) v6: LpmV6,
    pub(super) next_hops: NextHops,
    pub(super) ports: Ports,
    pub(super) vteps: Arc<AddressSet>,
    pub(super) local: Option<Arc<LocalTable>>,
}

/// The next hops by index; `None` is one that is not in use.
pub(super) type NextHops = CowVec<Option<NextHop>, 64>;

/// The ports by [`PortId`]; `None` is one that is not attached.
pub(super) type Ports = CowVec<Option<PortEntry>, 64>;

impl Tables {
    /// Number of this snapshot; each later one has a higher number.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// The next hop of an IPv4 destination, given in host byte order; `None` when no route covers
    /// it.
    #[inline]
    pub fn lookup_v4(&self, destination: u32) -> Option<&NextHop> {
        self.next_hop(self.v4.lookup(destination)?)
    }

    /// The next hop of an IPv6 destination, given in host byte order; `None` when no route covers
    /// it.
    #[inline]
    pub fn lookup_v6(&self, destination: u128) -> Option<&NextHop> {
        self.next_hop(self.v6.lookup(destination)?)
    }

    /// The next hop of a destination; `None` when no route covers it.
    #[inline]
    pub fn lookup(&self, destination: IpAddr) -> Option<&NextHop> {
        match destination {
            IpAddr::V4(v4) => self.lookup_v4(v4.to_bits()),
            IpAddr::V6(v6) => self.lookup_v6(v6.to_bits()),
        }
    }

    /// The next hop of a group that takes the flows of that hash.
    #[inline]
    pub fn member(&self, group: &Group, hash: u32) -> Option<&NextHop> {
        self.next_hop(group.member(hash)?)
    }

    #[inline]
    fn next_hop(&self, index: NextHopIndex) -> Option<&NextHop> {
        self.next_hops.get(index.get())?.as_ref()
    }

    /// An attached port.
    #[inline]
    pub fn port(&self, id: PortId) -> Option<&PortEntry> {
        self.ports.get(usize::from(id.0))?.as_ref()
    }

    /// Whether `address` is the underlay address of a known remote node, in whatever mode this
    /// node sends to it.
    #[inline]
    pub fn is_vtep(&self, address: IpAddr) -> bool {
        self.vteps.contains(address)
    }

    /// What concerns this node; `None` until control has told.
    #[inline]
    pub fn local(&self) -> Option<&LocalTable> {
        self.local.as_deref()
    }

    /// Whether `address` is one of this node's own.
    #[inline]
    pub fn is_local(&self, address: IpAddr) -> bool {
        self.local().is_some_and(|local| local.is_local(address))
    }
}

/// What the packet path needs to know of a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortEntry {
    /// Interface index.
    pub ifindex: u32,
    /// MTU of the interface: its largest L3 packet in bytes.
    pub mtu: u16,
    /// MAC of the interface.
    pub mac: MacAddr,
    /// Whether packets may arrive with unfinished (partial) L4 checksums: from every pod, and from
    /// an uplink that is a virtual wire.
    pub accept_partial: bool,
    /// Whether the port leads to other nodes; else a pod is behind it.
    pub is_uplink: bool,
    /// Whether a run of datagrams (UDP GSO) would get uncut to whoever is at the port's other end.
    pub carries_runs: bool,
}

/// What the packet path needs to know of this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalTable {
    /// The overlay's VXLAN network identifier.
    pub vni: Vni,
    /// Further identifiers that tunnels may have, in order.
    pub also_vnis: Box<[Vni]>,
    /// UDP port of VXLAN, in host byte order.
    pub vxlan_port: u16,
    /// MAC of this node's VTEP: source of inner frames that are sent, destination of those that
    /// are received.
    pub vtep_mac: MacAddr,
    /// This node's own addresses.
    pub addresses: AddressSet,
    /// Whether tunnels are taken from sources that are no known nodes.
    pub allow_unknown_vteps: bool,
}

impl LocalTable {
    /// Whether tunnels may have this identifier.
    #[inline]
    pub fn has_vni(&self, vni: Vni) -> bool {
        vni == self.vni || self.also_vnis.binary_search(&vni).is_ok()
    }

    /// Whether `address` is one of this node's own.
    #[inline]
    pub fn is_local(&self, address: IpAddr) -> bool {
        self.addresses.contains(address)
    }
}
