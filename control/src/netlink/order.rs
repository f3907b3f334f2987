//! Changes of the kernel that can be ordered many at a time.

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::RouteNetlinkMessage;
use podway_proto::types::MacAddr;

use super::{Address, FdbEntry, Route, build};

/// One change of the kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Order {
    /// Adds an address to a link.
    AddAddress(Address),
    /// Removes an address from a link.
    DeleteAddress(Address),
    /// Writes an entry of a VXLAN device's forwarding database.
    SetFdb(FdbEntry),
    /// Removes an entry of a VXLAN device's forwarding database.
    DeleteFdb(FdbEntry),
    /// Writes a neighbour on a link, by index, that needs no resolving.
    SetNeighbor(u32, IpAddr, MacAddr),
    /// Makes the kernel resolve a neighbour and keep it resolved.
    ManageNeighbor(u32, IpAddr),
    /// Removes a neighbour.
    DeleteNeighbor(u32, IpAddr),
    /// Adds a route of ours: refused with `EEXIST` when there is one to the same prefix.
    AddRoute(Route),
    /// Puts a route of ours in the place of the one to the same prefix.
    ReplaceRoute(Route),
    /// Removes a route of ours.
    DeleteRoute(Route),
    /// Has packets to a prefix refused: `EEXIST` when a route of the same metric does so already.
    AddUnreachable(IpNet),
    /// Takes that back.
    DeleteUnreachable(IpNet),
}

impl Order {
    /// Whether what it names is to be gone.
    pub fn removes(&self) -> bool {
        matches!(
            self,
            Self::DeleteAddress(_)
                | Self::DeleteFdb(_)
                | Self::DeleteNeighbor(..)
                | Self::DeleteRoute(_)
                | Self::DeleteUnreachable(_)
        )
    }

    /// The unicast route that it is about, if it is about one.
    pub fn route(&self) -> Option<&Route> {
        match self {
            Self::AddRoute(route) | Self::ReplaceRoute(route) | Self::DeleteRoute(route) => {
                Some(route)
            }
            _ => None,
        }
    }

    /// The message and its flags.
    pub(super) fn message(&self) -> (RouteNetlinkMessage, u16) {
        use RouteNetlinkMessage as Message;
        let set = NLM_F_CREATE | NLM_F_REPLACE;
        match self {
            Self::AddAddress(address) => (Message::NewAddress(build::address(address)), set),
            Self::DeleteAddress(address) => (Message::DelAddress(build::address(address)), 0),
            Self::SetFdb(entry) => (Message::NewNeighbour(build::fdb_entry(entry)), set),
            Self::DeleteFdb(entry) => (Message::DelNeighbour(build::fdb_entry(entry)), 0),
            Self::SetNeighbor(index, address, mac) => {
                let message = build::permanent_neighbor(*index, *address, *mac);
                (Message::NewNeighbour(message), set)
            }
            Self::ManageNeighbor(index, address) => {
                let message = build::managed_neighbor(*index, *address);
                (Message::NewNeighbour(message), set)
            }
            Self::DeleteNeighbor(index, address) => {
                let message = build::any_neighbor(*index, *address);
                (Message::DelNeighbour(message), 0)
            }
            Self::AddRoute(route) => {
                let message = Message::NewRoute(build::route(route));
                (message, NLM_F_CREATE | NLM_F_EXCL)
            }
            Self::ReplaceRoute(route) => (Message::NewRoute(build::route(route)), set),
            Self::DeleteRoute(route) => (Message::DelRoute(build::any_route(route)), 0),
            Self::AddUnreachable(prefix) => {
                let message = Message::NewRoute(build::unreachable(*prefix));
                (message, NLM_F_CREATE | NLM_F_EXCL)
            }
            Self::DeleteUnreachable(prefix) => (Message::DelRoute(build::unreachable(*prefix)), 0),
        }
    }
}

/// What is ordered, after "cannot".
impl fmt::Display for Order {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AddAddress(address) => write!(f, "add address {}", address.address),
            Self::DeleteAddress(address) => write!(f, "delete address {}", address.address),
            Self::SetFdb(entry) => write!(f, "set forwarding entry {}", entry.mac),
            Self::DeleteFdb(entry) => write!(f, "delete forwarding entry {}", entry.mac),
            Self::SetNeighbor(_, address, mac) => write!(f, "set neighbour {address} to {mac}"),
            Self::ManageNeighbor(_, address) => write!(f, "have neighbour {address} resolved"),
            Self::DeleteNeighbor(_, address) => write!(f, "delete neighbour {address}"),
            Self::AddRoute(route) | Self::ReplaceRoute(route) => {
                write!(f, "add route {}", route.prefix)
            }
            Self::DeleteRoute(route) => write!(f, "delete route {}", route.prefix),
            Self::AddUnreachable(prefix) => write!(f, "make {prefix} unreachable"),
            Self::DeleteUnreachable(prefix) => write!(f, "delete the unreachable route {prefix}"),
        }
    }
}
