//! What depends on what among the things that were told: lookups the other way round, so that one
//! change costs what it touches.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use podway_proto::control::{NodeSpec, PortRoleSpec, ViaSpec};

use crate::entry::Entry;
use crate::state::Desired;

/// A router as routes name it: its address, and its link if that was told.
pub type Router = (IpAddr, Option<String>);

/// The lookups. They follow the desired state entry by entry.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Index {
    by_node: BTreeMap<String, BTreeSet<IpNet>>,
    by_router: BTreeMap<Router, BTreeSet<IpNet>>,
    uncommon: BTreeSet<IpNet>,
    pod_cidrs: BTreeMap<IpNet, String>,
    underlays: BTreeMap<IpAddr, String>,
    pods: BTreeMap<IpAddr, String>,
}

impl Index {
    /// The lookups for all of `desired`.
    pub fn of(desired: &Desired) -> Self {
        let mut index = Self::default();
        for node in desired.nodes.values() {
            index.add_node(node);
        }
        for (prefix, via) in &desired.routes {
            index.add_route(*prefix, via);
        }
        for (interface, role) in &desired.ports {
            index.add_port(interface, role);
        }
        index
    }

    /// Follows a change of one entry.
    pub fn change(&mut self, before: &Entry, after: &Entry) {
        match before {
            Entry::Node(node) => {
                for cidr in &node.pod_cidrs {
                    self.pod_cidrs.remove(cidr);
                }
                for address in node.underlays() {
                    self.underlays.remove(&address);
                }
            }
            Entry::Route(route) => self.remove_route(route.prefix, &route.via),
            Entry::Port(port) => {
                for address in pod_addresses(&port.role) {
                    self.pods.remove(address);
                }
            }
            Entry::NoNode(_) | Entry::NoRoute(_) | Entry::NoPort(_) => {}
        }
        match after {
            Entry::Node(node) => self.add_node(node),
            Entry::Route(route) => self.add_route(route.prefix, &route.via),
            Entry::Port(port) => self.add_port(&port.interface, &port.role),
            Entry::NoNode(_) | Entry::NoRoute(_) | Entry::NoPort(_) => {}
        }
    }

    fn add_node(&mut self, node: &NodeSpec) {
        for cidr in &node.pod_cidrs {
            self.pod_cidrs.insert(*cidr, node.name.clone());
        }
        let addresses = node.underlays();
        self.underlays
            .extend(addresses.map(|address| (address, node.name.clone())));
    }

    fn add_port(&mut self, interface: &str, role: &PortRoleSpec) {
        for address in pod_addresses(role) {
            self.pods.insert(*address, interface.to_owned());
        }
    }

    fn add_route(&mut self, prefix: IpNet, via: &ViaSpec) {
        if is_uncommon(via) {
            self.uncommon.insert(prefix);
        }
        let routes = match via {
            ViaSpec::Node { node, .. } => self.by_node.entry(node.clone()).or_default(),
            ViaSpec::Gateway { address, interface } => {
                let router = (*address, interface.clone());
                self.by_router.entry(router).or_default()
            }
            ViaSpec::Multipath { members } => {
                members.iter().for_each(|via| self.add_route(prefix, via));
                return;
            }
        };
        routes.insert(prefix);
    }

    fn remove_route(&mut self, prefix: IpNet, via: &ViaSpec) {
        self.uncommon.remove(&prefix);
        match via {
            ViaSpec::Node { node, .. } => {
                let routes = self.by_node.get_mut(node);
                if routes.is_some_and(|routes| routes.remove(&prefix) && routes.is_empty()) {
                    self.by_node.remove(node);
                }
            }
            ViaSpec::Gateway { address, interface } => {
                let router = (*address, interface.clone());
                let routes = self.by_router.get_mut(&router);
                if routes.is_some_and(|routes| routes.remove(&prefix) && routes.is_empty()) {
                    self.by_router.remove(&router);
                }
            }
            ViaSpec::Multipath { members } => {
                members
                    .iter()
                    .for_each(|via| self.remove_route(prefix, via));
            }
        }
    }

    /// The routes that were added through a node, in order: IPv4 first.
    pub fn routes_by_node(&self, node: &str) -> impl DoubleEndedIterator<Item = IpNet> {
        self.by_node.get(node).into_iter().flatten().copied()
    }

    /// The routes that were added by several next hops or by a VNI of their own, few among many.
    pub fn uncommon<'a>(
        &'a self,
        desired: &'a Desired,
    ) -> impl Iterator<Item = (IpNet, &'a ViaSpec)> {
        let prefixes = self.uncommon.iter();
        prefixes.filter_map(|prefix| Some((*prefix, desired.routes.get(prefix)?)))
    }

    /// The routers of routes that were added, each with its routes.
    pub fn routers(&self) -> impl Iterator<Item = (&Router, &BTreeSet<IpNet>)> {
        self.by_router.iter()
    }

    /// The routes through a router whose link was not told.
    pub fn routes_by_router(&self, address: IpAddr) -> impl Iterator<Item = IpNet> {
        let routes = self.by_router.get(&(address, None));
        routes.into_iter().flatten().copied()
    }

    /// How many routes name a router in this way.
    pub fn users(&self, router: &Router) -> usize {
        self.by_router.get(router).map_or(0, BTreeSet::len)
    }

    /// The node that has a PodCIDR.
    pub fn node_of_cidr(&self, prefix: IpNet) -> Option<&str> {
        self.pod_cidrs.get(&prefix).map(String::as_str)
    }

    /// The node that has an underlay address.
    pub fn node_at(&self, underlay: IpAddr) -> Option<&str> {
        self.underlays.get(&underlay).map(String::as_str)
    }

    /// A node whose underlay address is in a prefix, and that address.
    pub fn node_in(&self, prefix: IpNet) -> Option<(&str, IpAddr)> {
        let hosts = prefix.network()..=prefix.broadcast();
        let mut inside = self.underlays.range(hosts);
        inside
            .next()
            .map(|(address, name)| (name.as_str(), *address))
    }

    /// The port of the pod that has exactly this address.
    pub fn port_of(&self, prefix: IpNet) -> Option<&str> {
        if prefix.prefix_len() < prefix.max_prefix_len() {
            return None;
        }
        self.pods.get(&prefix.addr()).map(String::as_str)
    }

    /// Every prefix that may be routed: those that were added, PodCIDRs, and pods' addresses. One
    /// may come twice.
    pub fn prefixes<'a>(&'a self, desired: &'a Desired) -> impl Iterator<Item = IpNet> + 'a {
        let added = desired.routes.keys().copied();
        let pods = self.pods.keys().map(|address| IpNet::from(*address));
        added.chain(self.pod_cidrs.keys().copied()).chain(pods)
    }
}

/// The addresses of the pod behind a port.
pub fn pod_addresses(role: &PortRoleSpec) -> &[IpAddr] {
    match role {
        PortRoleSpec::Pod { addresses, .. } => addresses,
        PortRoleSpec::Uplink { .. } => &[],
    }
}
/// Whether it is one of [`Index::uncommon`]; a member of one by several next hops is not asked.
fn is_uncommon(via: &ViaSpec) -> bool {
    via.is_multipath() || matches!(via, ViaSpec::Node { vni: Some(_), .. })
}
