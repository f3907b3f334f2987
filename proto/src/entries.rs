//! Many things at once: all that was told as one document, and what changes it.

use std::fmt;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::ErrorBody;
use crate::control::{NodeSpec, PortSpec, RouteSpec};

/// Most bytes of the lines of one bulk: over a million routes.
pub const MAX_BULK: usize = 128 << 20;

/// Things that were told, or are to be: what `podway export` writes and `podway import` reads.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entries {
    /// Nodes; in answers by name.
    #[serde(default)]
    pub nodes: Vec<NodeSpec>,
    /// Routes that were added; in answers by prefix.
    #[serde(default)]
    pub routes: Vec<RouteSpec>,
    /// Ports; in answers by interface.
    #[serde(default)]
    pub ports: Vec<PortSpec>,
}

impl Entries {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.nodes.len() + self.routes.len() + self.ports.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Puts `other` behind these.
    pub fn append(&mut self, mut other: Self) {
        self.nodes.append(&mut other.nodes);
        self.routes.append(&mut other.routes);
        self.ports.append(&mut other.ports);
    }
}

/// What an entry is told apart by.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum EntryKey {
    /// A node.
    Node {
        /// Its name.
        name: String,
    },
    /// A route that was added.
    Route {
        /// Its prefix.
        prefix: IpNet,
    },
    /// A port.
    Port {
        /// Its interface.
        interface: String,
    },
}

impl From<&NodeSpec> for EntryKey {
    fn from(node: &NodeSpec) -> Self {
        Self::Node {
            name: node.name.clone(),
        }
    }
}

impl From<&RouteSpec> for EntryKey {
    fn from(route: &RouteSpec) -> Self {
        Self::Route {
            prefix: route.prefix,
        }
    }
}

impl From<&PortSpec> for EntryKey {
    fn from(port: &PortSpec) -> Self {
        Self::Port {
            interface: port.interface.clone(),
        }
    }
}

impl fmt::Display for EntryKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Node { name } => write!(f, "node {name}"),
            Self::Route { prefix } => write!(f, "route {prefix}"),
            Self::Port { interface } => write!(f, "port {interface}"),
        }
    }
}

/// An entry that stands in the way of a bulk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefusedEntry {
    /// Which. It may be one that was there before and cannot be beside the new ones.
    pub entry: EntryKey,
    /// Why.
    pub error: ErrorBody,
}

/// What a bulk changes. An entry that was there with other values is in both lists.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Difference {
    /// What was in force and is no more.
    pub removed: Entries,
    /// What is in force from now on and was not.
    pub added: Entries,
}

impl Difference {
    /// Whether nothing changes.
    pub fn is_empty(&self) -> bool {
        self.removed.is_empty() && self.added.is_empty()
    }
}
