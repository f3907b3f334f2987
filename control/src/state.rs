//! The desired state of the node: what was told, checked against all else that was told.
//!
//! Pure: no kernel, no file. Each change either is made as a whole or refused with a sentence
//! that says what to change, and then nothing has changed.
//!
//! The changes are by what they are of: `node`, `route` and `port`; `values` has what a single
//! value must be.

mod node;
mod port;
mod route;
#[cfg(test)]
mod testing;
mod values;

use std::collections::BTreeMap;

use ipnet::IpNet;
use podway_proto::control::{NodeSpec, PortRoleSpec, ViaSpec};
use podway_proto::types::Vni;
use podway_proto::{ErrorBody, ErrorCode};

pub use node::vtep_mac;
pub use values::check_node_name;
pub(crate) use values::check_prefix;

/// Most PodCIDRs of a node and most addresses of a pod: far above what a cluster hands out, far
/// below what would not fit in a line of the protocol.
const MAX_LIST: usize = 64;

type Check = Result<(), ErrorBody>;

/// What is fixed about this node while the process runs.
#[derive(Debug, Clone, Copy)]
pub struct Fixed<'a> {
    /// This node's own name.
    pub node_name: &'a str,
    /// The uplink that the configuration names.
    pub uplink: Option<&'a str>,
    /// The VXLAN network identifier of the configuration.
    pub vni: Vni,
    /// Its further ones.
    pub also_vnis: &'a [Vni],
}

impl Fixed<'_> {
    fn has_vni(&self, vni: Vni) -> bool {
        vni == self.vni || self.also_vnis.contains(&vni)
    }
}

/// All that was told.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Desired {
    /// The nodes by name, this one among them if it was told.
    pub nodes: BTreeMap<String, NodeSpec>,
    /// The routes that were added, by prefix.
    pub routes: BTreeMap<IpNet, ViaSpec>,
    /// The ports by interface.
    pub ports: BTreeMap<String, PortRoleSpec>,
}

fn invalid(message: impl Into<String>) -> ErrorBody {
    ErrorBody::new(ErrorCode::Invalid, message)
}

fn not_found(message: impl Into<String>) -> ErrorBody {
    ErrorBody::new(ErrorCode::NotFound, message)
}

fn exists(message: impl Into<String>) -> ErrorBody {
    ErrorBody::new(ErrorCode::AlreadyExists, message)
}
