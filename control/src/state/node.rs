//! Nodes: what may be said of one beside all else.

use std::net::IpAddr;

use ipnet::IpNet;
use podway_proto::control::{NodeSpec, ViaSpec, derived_vtep_mac};
use podway_proto::types::MacAddr;
use podway_proto::{ErrorBody, ErrorCode};

use super::values::{check_mac, check_node_name, check_prefix, check_unicast, overlap};
use super::{Check, Desired, MAX_LIST, exists, invalid, not_found};
use crate::index::{Index, pod_addresses};

impl Desired {
    /// Adds a node or replaces all that was said of it.
    ///
    /// # Errors
    /// When the node cannot be, or cannot be beside the others.
    pub fn set_node(&mut self, node: NodeSpec) -> Check {
        check_node_name(&node.name)?;
        for address in node.underlays() {
            check_unicast(address, "an underlay address")?;
        }
        if node.underlay6.is_some() && node.underlay.is_ipv6() {
            return Err(invalid(
                "underlay6 is for nodes whose underlay address is IPv4; leave it out",
            ));
        }
        if node.pod_cidrs.len() > MAX_LIST {
            return Err(invalid(format!(
                "give node {} {MAX_LIST} PodCIDRs at most",
                node.name
            )));
        }
        if let Some(mac) = node.vtep_mac {
            check_mac(mac, "VTEP")?;
        }
        for (at, cidr) in node.pod_cidrs.iter().enumerate() {
            check_prefix(*cidr)?;
            if let Some(address) = node.underlays().find(|address| cidr.contains(address)) {
                return Err(invalid(format!(
                    "PodCIDR {cidr} holds the node's own underlay address {address}; packets to \
                     the node would be tunnelled to itself"
                )));
            }
            if let Some(other) = node.pod_cidrs.iter().take(at).find(|o| overlap(cidr, o)) {
                return Err(invalid(format!(
                    "PodCIDRs {cidr} and {other} overlap; give one"
                )));
            }
            if self.routes.contains_key(cidr) {
                return Err(exists(format!(
                    "a route to {cidr} was added; delete it first: podway route del {cidr}"
                )));
            }
        }
        for address in node.underlays() {
            if let Some((prefix, through)) = self.route_through_node_to(address) {
                return Err(invalid(format!(
                    "underlay address {address} lies in {prefix}, to which there is a route via \
                     node {through}: packets to node {} would be sent to that one; delete it \
                     first: podway route del {prefix}",
                    node.name
                )));
            }
        }
        let others = self.nodes.values().filter(|other| other.name != node.name);
        for other in others {
            self.check_beside(&node, other)?;
        }
        for (interface, role) in &self.ports {
            for address in pod_addresses(role) {
                check_node_and_pod(&node, *address).map_err(|error| {
                    exists(format!("{}; the pod is behind {interface}", error.message))
                })?;
            }
        }
        self.nodes.insert(node.name.clone(), node);
        Ok(())
    }

    /// A route that was added through a node and holds `address`, and the node.
    fn route_through_node_to(&self, address: IpAddr) -> Option<(IpNet, &str)> {
        let host = IpNet::from(address);
        // Few lookups, however many routes there are.
        let mut holding = (0..=host.max_prefix_len()).filter_map(|length| {
            let prefix = IpNet::new(address, length).ok()?.trunc();
            Some((prefix, self.routes.get(&prefix)?))
        });
        holding.find_map(|(prefix, via)| {
            via.members().iter().find_map(|via| match via {
                ViaSpec::Node { node, .. } => Some((prefix, node.as_str())),
                ViaSpec::Gateway { .. } | ViaSpec::Multipath { .. } => None,
            })
        })
    }

    fn check_beside(&self, node: &NodeSpec, other: &NodeSpec) -> Check {
        let name = &other.name;
        let theirs = |address: &IpAddr| other.underlays().any(|theirs| theirs == *address);
        if let Some(address) = node.underlays().find(theirs) {
            return Err(exists(format!(
                "node {name} already has underlay address {address}"
            )));
        }
        if vtep_mac(node) == vtep_mac(other) {
            return Err(exists(format!(
                "node {name} already has VTEP MAC {}; tell another with --vtep-mac, on that node \
                 too",
                vtep_mac(node)
            )));
        }
        for cidr in &node.pod_cidrs {
            if let Some(theirs) = other.pod_cidrs.iter().find(|theirs| overlap(cidr, theirs)) {
                return Err(exists(format!(
                    "PodCIDR {cidr} overlaps {theirs} of node {name}"
                )));
            }
            if let Some(address) = other.underlays().find(|address| cidr.contains(address)) {
                return Err(invalid(format!(
                    "PodCIDR {cidr} holds the underlay address {address} of node {name}"
                )));
            }
        }
        for address in node.underlays() {
            let mut cidrs = other.pod_cidrs.iter();
            if let Some(theirs) = cidrs.find(|theirs| theirs.contains(&address)) {
                return Err(invalid(format!(
                    "underlay address {address} lies in PodCIDR {theirs} of node {name}"
                )));
            }
        }
        Ok(())
    }

    /// Forgets a node. `index` is of this state.
    ///
    /// # Errors
    /// When there is none, or a route that was added goes through it.
    pub fn delete_node(&mut self, name: &str, index: &Index) -> Check {
        if !self.nodes.contains_key(name) {
            return Err(not_found(format!(
                "there is no node {name}; see podway node list"
            )));
        }
        if let Some(prefix) = index.routes_by_node(name).next() {
            return Err(ErrorBody::new(
                ErrorCode::Busy,
                format!(
                    "route {prefix} goes via {name}; delete it first: podway route del {prefix}"
                ),
            ));
        }
        self.nodes.remove(name);
        Ok(())
    }
}

/// Whether a pod may have an address beside a node.
pub(super) fn check_node_and_pod(node: &NodeSpec, pod: IpAddr) -> Check {
    if node.underlays().any(|address| address == pod) {
        return Err(invalid(format!(
            "{pod} is the underlay address of node {}",
            node.name
        )));
    }
    let is_device_address =
        |cidr: &&IpNet| cidr.network() == pod && cidr.prefix_len() < cidr.max_prefix_len();
    if let Some(cidr) = node.pod_cidrs.iter().find(is_device_address) {
        return Err(invalid(format!(
            "{pod} is the first address of PodCIDR {cidr}, which the node itself uses"
        )));
    }
    Ok(())
}

/// MAC of a node's VTEP, told or derived.
pub fn vtep_mac(node: &NodeSpec) -> MacAddr {
    node.vtep_mac
        .unwrap_or_else(|| derived_vtep_mac(node.underlay))
}

#[cfg(test)]
mod tests {
    use super::super::testing::{delete_node, node, refused, two_nodes};
    use super::*;

    #[test]
    fn a_node_can_be_told_again_with_other_values() {
        let mut desired = two_nodes();
        desired
            .set_node(node("b", "192.168.1.3", &["10.0.1.0/25"]))
            .unwrap();
        assert_eq!(
            desired.nodes["b"].pod_cidrs,
            ["10.0.1.0/25".parse().unwrap()]
        );
        assert_eq!(desired.nodes.len(), 2);
    }

    #[test]
    fn nodes_that_cannot_be_are_refused() {
        let set = |spec: NodeSpec| move |desired: &mut Desired| desired.set_node(spec);
        let c = |cidrs: &[&str]| node("c", "192.168.1.3", cidrs);
        refused(ErrorCode::AlreadyExists, set(c(&["10.0.1.128/25"])));
        refused(ErrorCode::AlreadyExists, set(c(&["10.0.0.0/16"])));
        refused(ErrorCode::AlreadyExists, set(c(&["10.9.0.0/16"])));
        refused(
            ErrorCode::AlreadyExists,
            set(node("c", "192.168.1.2", &["10.0.2.0/24"])),
        );
        for wrong in [
            c(&["10.0.2.1/24"]),
            c(&["224.0.0.0/8"]),
            c(&["0.0.0.0/0"]),
            c(&["127.1.0.0/16"]),
            c(&["10.0.2.0/24", "10.0.2.0/25"]),
            c(&["192.168.1.0/24"]),
            c(&["192.168.1.2/32"]),
            node("c", "224.0.0.1", &["10.0.2.0/24"]),
            node("c", "10.0.1.9", &["10.0.2.0/24"]),
            node("c c", "192.168.1.3", &["10.0.2.0/24"]),
            node("10.0.0.1", "192.168.1.3", &["10.0.2.0/24"]),
            // In a route through node b.
            node("c", "10.9.1.1", &["10.0.2.0/24"]),
        ] {
            refused(ErrorCode::Invalid, set(wrong));
        }
        // What a pod has: the first address of a PodCIDR, and an underlay address.
        let smaller = node("a", "192.168.1.1", &["10.0.0.2/31", "10.0.2.0/24"]);
        refused(ErrorCode::AlreadyExists, set(smaller));
        refused(ErrorCode::AlreadyExists, |desired| {
            desired.set_node(node("a", "192.168.1.1", &[])).unwrap();
            let result = desired.set_node(node("c", "10.0.0.2", &[]));
            desired
                .set_node(node("a", "192.168.1.1", &["10.0.0.0/24"]))
                .unwrap();
            result
        });
        let mut same_mac = c(&["10.0.2.0/24"]);
        same_mac.vtep_mac = Some("02:50:c0:a8:01:02".parse().unwrap());
        refused(ErrorCode::AlreadyExists, set(same_mac));
    }

    #[test]
    fn a_node_that_a_route_needs_stays() {
        refused(ErrorCode::Busy, |desired| delete_node(desired, "b"));
        refused(ErrorCode::NotFound, |desired| delete_node(desired, "c"));
    }

    #[test]
    fn a_second_underlay_address_is_checked_as_the_first() {
        let with = |name: &str, underlay: &str, second: &str| NodeSpec {
            underlay6: Some(second.parse().unwrap()),
            ..node(name, underlay, &[])
        };
        let mut desired = Desired::default();
        let first = NodeSpec {
            pod_cidrs: vec!["fd00:1::/64".parse().unwrap()],
            ..with("b", "192.168.1.2", "fd77::2")
        };
        desired.set_node(first).unwrap();
        let mut refused = |node: NodeSpec, says: &str| {
            let error = desired.set_node(node).unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        };
        refused(with("c", "fd77::9", "fd77::3"), "leave it out");
        refused(with("c", "192.168.1.3", "fd77::2"), "already has");
        refused(with("c", "192.168.1.3", "fd00:1::3"), "lies in PodCIDR");
        refused(with("c", "192.168.1.3", "ff02::1"), "underlay address");
        let own = NodeSpec {
            pod_cidrs: vec!["fd77::/64".parse().unwrap()],
            ..with("c", "192.168.1.3", "fd77::3")
        };
        refused(own, "own underlay address");
    }
}
