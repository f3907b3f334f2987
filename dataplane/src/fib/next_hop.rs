//! The resolved result of a lookup: all that the packet path needs, finished when it was built.

use std::sync::Arc;

use podway_proto::types::MacAddr;

use super::group::Group;
use crate::tunnel::OuterHeader;

/// Index of an attached port, given by the API thread; small and dense.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PortId(pub u16);

impl PortId {
    /// No port has this.
    pub const NONE: Self = Self(u16::MAX);
}

/// Destination and source MAC of the Ethernet header to be sent, in wire order. The EtherType
/// follows from the packet's IP version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct L2Rewrite(pub [u8; 12]);

impl L2Rewrite {
    /// The rewrite that sends from `src` to `dst`.
    pub fn new(dst: MacAddr, src: MacAddr) -> Self {
        let mut bytes = [0; 12];
        bytes[..6].copy_from_slice(&dst.0);
        bytes[6..].copy_from_slice(&src.0);
        Self(bytes)
    }
}

/// Where packets of a route go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NextHop {
    /// The port that they leave by.
    pub port: PortId,
    /// Rewrite of the packet's own Ethernet header: the link's for [`NextHopKind::Pod`] and
    /// [`NextHopKind::Native`], the VTEPs' (inner) for [`NextHopKind::Tunnel`].
    pub l2: L2Rewrite,
    /// Largest L3 packet in bytes that may take this way; for a tunnel the largest inner one, for a
    /// group the largest that all of its members take.
    pub mtu: u16,
    /// What is at the other end.
    pub kind: NextHopKind,
}

impl NextHop {
    /// Largest L3 packet in bytes that any flow may send this way.
    pub fn widest(&self) -> u16 {
        match &self.kind {
            NextHopKind::Group(group) => group.widest(),
            _ => self.mtu,
        }
    }

    /// The outer headers of the tunnel that it leads through.
    pub fn tunnel(&self) -> Option<&OuterHeader> {
        match &self.kind {
            NextHopKind::Tunnel(outer) => Some(outer),
            _ => None,
        }
    }
}

/// What is at the other end of a next hop.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NextHopKind {
    /// A pod of this node.
    Pod,
    /// The next router or node on an uplink, packets as they are.
    Native,
    /// A node behind a VXLAN tunnel; the finished outer header.
    Tunnel(Box<OuterHeader>),
    /// Several of these, of which each flow has one: [`crate::fib::Tables::member`]. Port and
    /// rewrite are the members'.
    Group(Arc<Group>),
    /// The neighbour is not known: the XDP program leaves the prefix to the kernel, which asks.
    Unresolved,
}
