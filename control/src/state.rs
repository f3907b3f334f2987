//! The desired state of the node: what was told, checked against all else that was told.
//!
//! Pure: no kernel, no file. Each change either is made as a whole or refused with a sentence
//! that says what to change, and then nothing has changed.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use podway_proto::control::{
    NodeSpec, PortRoleSpec, PortSpec, RouteSpec, ViaSpec, derived_vtep_mac,
};
use podway_proto::types::{MacAddr, Vni, check_multipath};
use podway_proto::{ErrorBody, ErrorCode};

use crate::index::{Index, pod_addresses};

/// Longest node name in bytes; a DNS name fits (RFC 1035).
const MAX_NAME: usize = 253;
/// Longest interface name in bytes (`IFNAMSIZ` of linux/if.h without its NUL).
const MAX_INTERFACE: usize = 15;
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

    /// Adds a route; with `replace` also in place of one to the same prefix. `index` is of this
    /// state.
    ///
    /// # Errors
    /// When the prefix is taken, the node is not known, or the values make no route.
    pub fn set_route(
        &mut self,
        route: RouteSpec,
        replace: bool,
        fixed: Fixed<'_>,
        index: &Index,
    ) -> Check {
        let prefix = route.prefix;
        check_prefix(prefix)?;
        if let ViaSpec::Multipath { members } = &route.via {
            let checked = check_multipath(members, ViaSpec::is_multipath);
            checked.map_err(|error| invalid(error.to_string()))?;
        }
        for via in route.via.members() {
            self.check_via(prefix, via, fixed, index)?;
        }
        if let Some(node) = index.node_of_cidr(prefix) {
            return Err(exists(format!(
                "{prefix} is a PodCIDR of node {node}; change it with podway node set"
            )));
        }
        match self.routes.get(&prefix) {
            Some(old) if *old != route.via && !replace => Err(exists(format!(
                "there is another route to {prefix}; change it with podway route replace"
            ))),
            _ => {
                self.routes.insert(prefix, route.via);
                Ok(())
            }
        }
    }

    fn check_via(&self, prefix: IpNet, via: &ViaSpec, fixed: Fixed<'_>, index: &Index) -> Check {
        match via {
            ViaSpec::Node { node, .. } if node == fixed.node_name => Err(invalid(format!(
                "{node} is this node; name another or a router"
            ))),
            ViaSpec::Node { node, .. } if !self.nodes.contains_key(node) => Err(not_found(
                format!("there is no node {node}; add it with podway node set"),
            )),
            ViaSpec::Node { vni: Some(vni), .. } if !fixed.has_vni(*vni) => Err(invalid(format!(
                "VNI {vni} is not configured; add it to also-vnis in the configuration of every node"
            ))),
            ViaSpec::Node { node, .. } => match index.node_in(prefix) {
                Some((other, underlay)) => Err(invalid(format!(
                    "{prefix} holds the underlay address {underlay} of node {other}; packets to \
                     that node would be sent to node {node}"
                ))),
                None => Ok(()),
            },
            ViaSpec::Multipath { .. } => Ok(()),
            ViaSpec::Gateway { address, interface } => {
                check_unicast(*address, "a router")?;
                if address.is_ipv4() != prefix.addr().is_ipv4() {
                    return Err(invalid(format!(
                        "the router {address} is of another IP version than {prefix}"
                    )));
                }
                if prefix.contains(address) && prefix.prefix_len() == prefix.max_prefix_len() {
                    return Err(invalid(format!("{address} cannot be reached via itself")));
                }
                interface.as_deref().map_or(Ok(()), check_interface_name)
            }
        }
    }

    /// Withdraws a route that was added.
    ///
    /// # Errors
    /// When there is none to exactly this prefix.
    pub fn delete_route(&mut self, prefix: IpNet) -> Check {
        match self.routes.remove(&prefix) {
            Some(_) => Ok(()),
            None => Err(not_found(format!(
                "no route to {prefix} was added; see podway route show"
            ))),
        }
    }

    /// Makes an interface a port.
    ///
    /// # Errors
    /// When it is one with other values, an address is another pod's, or the values make no port.
    pub fn add_port(&mut self, port: PortSpec, fixed: Fixed<'_>) -> Check {
        let interface = &port.interface;
        check_interface_name(interface)?;
        if let PortRoleSpec::Pod { addresses, mac, .. } = &port.role {
            self.check_pod(interface, addresses, *mac)?;
        }
        let configured = fixed.uplink == Some(interface.as_str());
        match (self.ports.get(interface), &port.role) {
            (Some(old), role) if old == role => Ok(()),
            (Some(_), _) => Err(exists(format!(
                "{interface} is a port with other values; delete it first: podway port del \
                 {interface}"
            ))),
            (None, PortRoleSpec::Pod { .. }) if configured => Err(exists(format!(
                "{interface} is the configuration's uplink; change the file and restart"
            ))),
            // The file says that much; only what it does not say has to be kept.
            (
                None,
                PortRoleSpec::Uplink {
                    accept_partial_checksums: None,
                },
            ) if configured => Ok(()),
            (None, _) => {
                self.ports.insert(port.interface, port.role);
                Ok(())
            }
        }
    }

    fn check_pod(&self, interface: &str, addresses: &[IpAddr], mac: Option<MacAddr>) -> Check {
        if addresses.is_empty() || addresses.len() > MAX_LIST {
            return Err(invalid(format!("give the pod 1 to {MAX_LIST} addresses")));
        }
        if let Some(mac) = mac {
            check_mac(mac, "pod")?;
        }
        let mut seen = BTreeSet::new();
        for address in addresses {
            check_unicast(*address, "a pod's address")?;
            if !seen.insert(address) {
                return Err(invalid(format!("address {address} was given twice")));
            }
            let mut nodes = self.nodes.values();
            nodes.try_for_each(|node| check_node_and_pod(node, *address))?;
        }
        let others = self.ports.iter().filter(|(name, _)| *name != interface);
        for (name, role) in others {
            let PortRoleSpec::Pod {
                addresses: theirs, ..
            } = role
            else {
                continue;
            };
            if let Some(address) = theirs.iter().find(|theirs| seen.contains(theirs)) {
                return Err(exists(format!(
                    "address {address} is the pod's behind {name}"
                )));
            }
        }
        Ok(())
    }

    /// Leaves an interface to the kernel.
    ///
    /// # Errors
    /// When it is no port, or the configuration makes it one.
    pub fn delete_port(&mut self, interface: &str, fixed: Fixed<'_>) -> Check {
        if self.ports.remove(interface).is_some() {
            return Ok(());
        }
        if fixed.uplink == Some(interface) {
            return Err(ErrorBody::new(
                ErrorCode::Busy,
                format!("{interface} is the configuration's uplink; change the file and restart"),
            ));
        }
        Err(not_found(format!(
            "{interface} is no port; see podway port show"
        )))
    }
}

/// Whether a pod may have an address beside a node.
fn check_node_and_pod(node: &NodeSpec, pod: IpAddr) -> Check {
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

/// Whether `name` may name a node.
///
/// # Errors
/// A sentence on what is allowed.
pub fn check_node_name(name: &str) -> Check {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    if name.is_empty() || name.len() > MAX_NAME || !name.bytes().all(allowed) {
        return Err(invalid(format!(
            "'{}' is no node name; use up to {MAX_NAME} letters, digits, '-', '_' and '.'",
            name.escape_debug().take(MAX_NAME).collect::<String>()
        )));
    }
    if name.parse::<IpAddr>().is_ok() {
        return Err(invalid(format!(
            "'{name}' is an address; a node is named by a word"
        )));
    }
    Ok(())
}

/// Whether `name` may name an interface (`dev_valid_name` of net/core/dev.c).
fn check_interface_name(name: &str) -> Check {
    let forbidden = |c: char| c == '/' || c == ':' || c.is_whitespace() || c.is_control();
    let bad = name.is_empty()
        || name.len() > MAX_INTERFACE
        || name == "."
        || name == ".."
        || name.contains(forbidden);
    if bad {
        return Err(invalid(format!(
            "'{}' is no interface name; see ip link",
            name.escape_debug().take(MAX_NAME).collect::<String>()
        )));
    }
    Ok(())
}

fn check_unicast(address: IpAddr, what: &str) -> Check {
    let bad = address.is_unspecified()
        || address.is_multicast()
        || address.is_loopback()
        || match address {
            IpAddr::V4(v4) => v4.is_broadcast() || v4.is_link_local(),
            IpAddr::V6(v6) => v6.is_unicast_link_local() || v6.to_ipv4_mapped().is_some(),
        };
    if bad {
        return Err(invalid(format!(
            "{address} cannot be {what}; use a routed unicast address"
        )));
    }
    Ok(())
}

fn check_mac(mac: MacAddr, whose: &str) -> Check {
    if mac.is_multicast() || mac == MacAddr::default() {
        return Err(invalid(format!(
            "{mac} cannot be the MAC of a {whose}; use a unicast one"
        )));
    }
    Ok(())
}

/// Whether packets to `prefix` may be Podway's.
pub(crate) fn check_prefix(prefix: IpNet) -> Check {
    if prefix != prefix.trunc() {
        return Err(invalid(format!(
            "{prefix} has host bits set; write {}",
            prefix.trunc()
        )));
    }
    if prefix.prefix_len() == 0 {
        return Err(invalid(format!(
            "{prefix} is the whole world, which stays the kernel's; write what the pods need"
        )));
    }
    let multicast: [IpNet; 2] = [
        IpNet::new_assert(IpAddr::from([224, 0, 0, 0]), 4),
        IpNet::new_assert(IpAddr::from([0xff00, 0, 0, 0, 0, 0, 0, 0]), 8),
    ];
    let loopback = IpNet::new_assert(IpAddr::from([127, 0, 0, 0]), 8);
    if multicast
        .iter()
        .chain([&loopback])
        .any(|special| overlap(special, &prefix))
    {
        return Err(invalid(format!(
            "{prefix} holds addresses that are no unicast ones"
        )));
    }
    Ok(())
}

fn overlap(a: &IpNet, b: &IpNet) -> bool {
    a.contains(b) || b.contains(a)
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIXED: Fixed<'_> = Fixed {
        node_name: "a",
        uplink: Some("eth0"),
        vni: Vni::DEFAULT,
        also_vnis: &[],
    };

    fn node(name: &str, underlay: &str, cidrs: &[&str]) -> NodeSpec {
        NodeSpec {
            name: name.into(),
            underlay: underlay.parse().unwrap(),
            underlay6: None,
            pod_cidrs: cidrs.iter().map(|cidr| cidr.parse().unwrap()).collect(),
            vtep_mac: None,
            mode: None,
        }
    }

    fn pod(interface: &str, address: &str) -> PortSpec {
        PortSpec {
            interface: interface.into(),
            role: PortRoleSpec::Pod {
                addresses: vec![address.parse().unwrap()],
                mac: None,
                any_source: false,
            },
        }
    }

    fn via(prefix: &str, node: &str) -> RouteSpec {
        RouteSpec {
            prefix: prefix.parse().unwrap(),
            via: ViaSpec::Node {
                node: node.into(),
                vni: None,
            },
        }
    }

    fn set_route(desired: &mut Desired, route: RouteSpec, replace: bool) -> Check {
        let index = Index::of(desired);
        desired.set_route(route, replace, FIXED, &index)
    }

    fn delete_node(desired: &mut Desired, name: &str) -> Check {
        let index = Index::of(desired);
        desired.delete_node(name, &index)
    }

    fn two_nodes() -> Desired {
        let mut desired = Desired::default();
        desired
            .set_node(node("a", "192.168.1.1", &["10.0.0.0/24"]))
            .unwrap();
        desired
            .set_node(node("b", "192.168.1.2", &["10.0.1.0/24", "fd00:1::/64"]))
            .unwrap();
        desired
    }

    /// Asserts that `change` is refused with `code` and changes nothing.
    fn refused(code: ErrorCode, change: impl FnOnce(&mut Desired) -> Check) {
        let mut desired = two_nodes();
        set_route(&mut desired, via("10.9.0.0/16", "b"), false).unwrap();
        desired.add_port(pod("veth-a", "10.0.0.2"), FIXED).unwrap();
        let before = desired.clone();
        let error = change(&mut desired).unwrap_err();
        assert_eq!(error.code, code, "{error}");
        assert_eq!(desired, before);
    }

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

    #[test]
    fn routes_that_cannot_be_are_refused() {
        let add = |spec: RouteSpec| move |desired: &mut Desired| set_route(desired, spec, false);
        let gateway = |prefix: &str, address: &str| RouteSpec {
            prefix: prefix.parse().unwrap(),
            via: ViaSpec::Gateway {
                address: address.parse().unwrap(),
                interface: None,
            },
        };
        refused(ErrorCode::NotFound, add(via("10.8.0.0/16", "c")));
        refused(ErrorCode::Invalid, add(via("10.8.0.0/16", "a")));
        refused(ErrorCode::Invalid, add(via("10.8.0.1/16", "b")));
        refused(ErrorCode::AlreadyExists, add(via("10.0.1.0/24", "b")));
        refused(
            ErrorCode::AlreadyExists,
            add(gateway("10.9.0.0/16", "192.168.1.9")),
        );
        refused(ErrorCode::Invalid, add(gateway("10.8.0.0/16", "fd00::9")));
        refused(ErrorCode::Invalid, add(gateway("10.8.0.1/32", "10.8.0.1")));
        // Nodes are reached on the underlay, and not through one of them.
        for underlay in ["192.168.0.0/16", "192.168.1.1/32", "192.168.1.2/32"] {
            refused(ErrorCode::Invalid, add(via(underlay, "b")));
        }
        // A router is a part of the underlay.
        let mut desired = two_nodes();
        let route = gateway("192.168.0.0/16", "192.168.7.9");
        set_route(&mut desired, route, false).unwrap();
        let third = node("c", "192.168.2.3", &["10.0.2.0/24"]);
        desired.set_node(third).unwrap();
        let several = |members: &[RouteSpec]| RouteSpec {
            prefix: "10.8.0.0/16".parse().unwrap(),
            via: ViaSpec::Multipath {
                members: members.iter().map(|route| route.via.clone()).collect(),
            },
        };
        let b = via("10.8.0.0/16", "b");
        let router = gateway("10.8.0.0/16", "192.168.1.9");
        let nested = several(&[b.clone(), router.clone()]);
        for (code, members) in [
            (ErrorCode::Invalid, vec![b.clone()]),
            (ErrorCode::Invalid, vec![b.clone(), b.clone()]),
            (ErrorCode::Invalid, vec![b.clone(), nested]),
            (ErrorCode::Invalid, vec![b.clone(), via("10.8.0.0/16", "a")]),
            (
                ErrorCode::NotFound,
                vec![b.clone(), via("10.8.0.0/16", "c")],
            ),
            (
                ErrorCode::Invalid,
                vec![router, gateway("10.8.0.0/16", "fd00::9")],
            ),
        ] {
            refused(code, add(several(&members)));
        }
        refused(ErrorCode::NotFound, |d| {
            d.delete_route("10.9.0.0/17".parse().unwrap())
        });
    }

    #[test]
    fn a_node_that_a_multipath_route_needs_stays() {
        let mut desired = two_nodes();
        desired.set_node(node("c", "192.168.1.3", &[])).unwrap();
        let members = ["b", "c"].map(|name| via("10.9.0.0/16", name).via);
        let route = RouteSpec {
            prefix: "10.9.0.0/16".parse().unwrap(),
            via: ViaSpec::Multipath {
                members: members.to_vec(),
            },
        };
        set_route(&mut desired, route.clone(), false).unwrap();
        for name in ["b", "c"] {
            let error = delete_node(&mut desired, name).unwrap_err();
            assert_eq!(error.code, ErrorCode::Busy, "{name}");
        }
        // With fewer next hops it is another route.
        let fewer = via("10.9.0.0/16", "b");
        let error = set_route(&mut desired, fewer.clone(), false).unwrap_err();
        assert_eq!(error.code, ErrorCode::AlreadyExists);
        set_route(&mut desired, fewer, true).unwrap();
        delete_node(&mut desired, "c").unwrap();
    }

    #[test]
    fn a_route_is_added_twice_replaced_and_deleted() {
        let mut desired = two_nodes();
        let prefix = "10.9.0.0/16".parse().unwrap();
        set_route(&mut desired, via("10.9.0.0/16", "b"), false).unwrap();
        set_route(&mut desired, via("10.9.0.0/16", "b"), false).unwrap();
        let gateway = ViaSpec::Gateway {
            address: "192.168.1.9".parse().unwrap(),
            interface: None,
        };
        let other = RouteSpec {
            prefix,
            via: gateway.clone(),
        };
        set_route(&mut desired, other, true).unwrap();
        assert_eq!(desired.routes, BTreeMap::from([(prefix, gateway)]));
        desired.delete_route(prefix).unwrap();
        assert!(desired.routes.is_empty());
    }

    #[test]
    fn ports_that_cannot_be_are_refused() {
        let add = |spec: PortSpec| move |desired: &mut Desired| desired.add_port(spec, FIXED);
        refused(ErrorCode::AlreadyExists, add(pod("veth-b", "10.0.0.2")));
        refused(ErrorCode::AlreadyExists, add(pod("veth-a", "10.0.0.3")));
        refused(ErrorCode::AlreadyExists, add(pod("eth0", "10.0.0.3")));
        refused(ErrorCode::Invalid, add(pod("veth-b", "10.0.0.0")));
        refused(ErrorCode::Invalid, add(pod("veth-b", "192.168.1.2")));
        refused(ErrorCode::Invalid, add(pod("veth-b", "ff02::1")));
        refused(
            ErrorCode::Invalid,
            add(pod("a-name-that-is-too-long", "10.0.0.3")),
        );
        refused(ErrorCode::Invalid, add(pod("a/b", "10.0.0.3")));
        refused(ErrorCode::NotFound, |desired| {
            desired.delete_port("veth-b", FIXED)
        });
        refused(ErrorCode::Busy, |desired| {
            desired.delete_port("eth0", FIXED)
        });
    }

    #[test]
    fn the_configured_uplink_can_be_added_again() {
        let mut desired = Desired::default();
        let uplink = |accept_partial_checksums| PortSpec {
            interface: "eth0".into(),
            role: PortRoleSpec::Uplink {
                accept_partial_checksums,
            },
        };
        desired.add_port(uplink(None), FIXED).unwrap();
        assert!(desired.ports.is_empty());
        desired.add_port(uplink(Some(false)), FIXED).unwrap();
        assert_eq!(desired.ports["eth0"], uplink(Some(false)).role);
        let error = desired.add_port(uplink(None), FIXED).unwrap_err();
        assert_eq!(error.code, ErrorCode::AlreadyExists);
        desired.delete_port("eth0", FIXED).unwrap();
        desired.add_port(uplink(None), FIXED).unwrap();
        assert!(desired.ports.is_empty());
    }
}
