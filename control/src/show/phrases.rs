//! What several views say of a node in the same words.

use podway_proto::control::{DataplaneLink, KernelStatus, Status};
use podway_proto::dataplane::{self, TableStatus};

use super::table::or_dash;

/// Whether a dataplane that is connected has been told everything.
pub(crate) fn sync(link: &DataplaneLink) -> &'static str {
    match link {
        DataplaneLink::Synced { .. } => "in sync",
        DataplaneLink::Syncing { .. } => "not in sync yet",
        DataplaneLink::Disconnected { .. } => "not connected",
    }
}

/// Whether the programs on the ports redirect.
pub(crate) fn gate(dataplane: &dataplane::Status) -> &'static str {
    match dataplane.gate_open {
        true => "gate open",
        false => "gate closed",
    }
}

/// Whether the kernel underneath is as it should be.
pub(crate) fn kernel(kernel: &KernelStatus) -> &'static str {
    match kernel.in_sync {
        true => "in sync",
        false => "not in sync",
    }
}

/// How many routes there are, and how many of them lead nowhere.
pub(crate) fn routes(tables: &TableStatus) -> String {
    format!(
        "{} routes ({} unresolved)",
        tables.routes, tables.unresolved
    )
}

/// What the tables have.
pub(super) fn tables(tables: &TableStatus) -> String {
    format!(
        "{}, {} nodes, {} neighbors",
        routes(tables),
        tables.nodes,
        tables.neighbors
    )
}

/// The VNI of this node, and those that it takes beside.
pub(super) fn vnis(status: &Status) -> String {
    let also = status.also_vnis.iter().map(|vni| format!(", {vni}"));
    format!("{}{}", status.vni, also.collect::<String>())
}

/// The address on the underlay, and the interface that has it.
pub(super) fn underlay(status: &Status) -> String {
    format!(
        "{} dev {}",
        or_dash(status.underlay),
        or_dash(status.uplink.as_ref())
    )
}

/// The MTU of the uplink, and the one that pods may have.
pub(super) fn mtus(status: &Status) -> String {
    let by = match &status.pod_mtu_by {
        Some(node) => format!(" by the path to {node}"),
        None => String::new(),
    };
    format!(
        "uplink {}, pods up to {}{by}",
        or_dash(status.uplink_mtu),
        or_dash(status.pod_mtu)
    )
}

/// Where the program of a port is.
pub(super) fn program(mode: &str) -> String {
    match mode {
        "tcx" => "program at tcx".to_owned(),
        "none" => "no program".to_owned(),
        mode => format!("program as XDP ({mode})"),
    }
}
