//! The API thread's side of the tables: facts go in, snapshots come out.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use podway_proto::trace::TracedRoute;
use podway_proto::types::{LocalNode, MacAddr, Neighbor, Node, PortRole, Route};

use super::address::AddressSet;
use super::facts::{self, FactError, Facts, Named, PortFacts};
use super::next_hop::{NextHopKind, PortId};
use super::resolve::Target;
use super::rib::Rib;
use super::tables::{LocalTable, PortEntry, Ports, Tables};
use super::xdp_delta::XdpDelta;

/// The facts, and the tables that follow from them.
///
/// Setting what is there already is fine and changes nothing. A change that is refused leaves
/// everything as it was. After any number of changes, [`Fib::build`] makes the next snapshot; it
/// copies what the changes touched.
///
/// For a synchronisation with control: [`Fib::mark_all`], then the facts that control has, then
/// [`Fib::sweep`].
#[derive(Debug, Default)]
pub struct Fib {
    facts: Facts,
    rib: Rib,
    ports: Ports,
    /// Interface of each port in `ports`.
    port_names: HashMap<PortId, String>,
    vteps: Arc<AddressSet>,
    /// How many nodes have each of `vteps`.
    vtep_nodes: HashMap<IpAddr, usize>,
    local: Option<Arc<LocalTable>>,
    generation: u64,
    epoch: u64,
    changed: bool,
}

/// The next snapshot, and what the XDP program's maps need to follow: write [`XdpDelta::before`],
/// publish the tables, and when every worker has adopted them write [`XdpDelta::after`].
#[derive(Debug)]
#[must_use = "a snapshot is to be published"]
pub struct Build {
    /// To be published.
    pub tables: Tables,
    /// The difference to the snapshot before.
    pub xdp: XdpDelta,
}

/// Sizes of the tables.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Prefixes, the addresses of local pods included.
    pub routes: usize,
    /// Those of them whose next hop is not resolved.
    pub unresolved: usize,
    /// Remote nodes.
    pub nodes: usize,
    /// Resolved neighbours.
    pub neighbors: usize,
}

/// Keeps a fact; whether that changed it.
fn keep<T: PartialEq>(place: &mut Option<Named<T>>, fact: T, epoch: u64) -> bool {
    let changed = place.as_ref().is_none_or(|old| old.fact != fact);
    *place = Some(Named { fact, epoch });
    changed
}

impl Fib {
    /// No facts.
    pub fn new() -> Self {
        Self::default()
    }

    /// Attaches a port, or changes an attached one. The addresses of its pod become routes.
    ///
    /// # Errors
    ///
    /// If the index or an address belongs to another port, or a value cannot be used.
    pub fn attach_port(&mut self, port: PortFacts) -> Result<(), FactError> {
        facts::check_port(&port)?;
        if let Some(other) = self.port_names.get(&port.id)
            && *other != port.interface
        {
            return Err(FactError::PortIdTaken {
                interface: port.interface,
                other: other.clone(),
            });
        }
        for address in port.pod_addresses() {
            if let Some(other) = self.rib.pod(*address)
                && other != port.interface
            {
                return Err(FactError::AddressTaken {
                    address: *address,
                    other: other.to_owned(),
                });
            }
        }
        let prefixes: Vec<_> = port.pod_addresses().iter().map(|a| (*a).into()).collect();
        self.rib.check_room(&prefixes)?;

        let old = self.facts.ports.remove(&port.interface);
        let named = Named {
            fact: port,
            epoch: self.epoch,
        };
        let port = &named.fact;
        if old.as_ref().is_none_or(|old| old.fact != *port) {
            self.changed = true;
            let left = old.iter().flat_map(|old| old.fact.pod_addresses());
            for address in left.filter(|address| !port.pod_addresses().contains(address)) {
                self.rib.del_pod(*address);
            }
            for address in port.pod_addresses() {
                self.rib.set_pod(*address, &port.interface);
            }
            if let Some(old) = old.filter(|old| old.fact.id != port.id) {
                self.clear_port(old.fact.id);
            }
            self.port_names.insert(port.id, port.interface.clone());
            *self.ports.get_mut(usize::from(port.id.0)) = Some(port_entry(port));
            self.rib.hops_mut().mark_link(&port.interface);
        }
        self.facts.ports.insert(named.fact.interface.clone(), named);
        Ok(())
    }

    /// Detaches a port.
    ///
    /// # Errors
    ///
    /// If it is not attached.
    pub fn detach_port(&mut self, interface: &str) -> Result<(), FactError> {
        let port = self
            .facts
            .ports
            .remove(interface)
            .ok_or_else(|| FactError::NoSuchPort(interface.to_owned()))?;
        for address in port.fact.pod_addresses() {
            self.rib.del_pod(*address);
        }
        self.clear_port(port.fact.id);
        self.rib.hops_mut().mark_link(interface);
        self.changed = true;
        Ok(())
    }

    fn clear_port(&mut self, id: PortId) {
        self.port_names.remove(&id);
        *self.ports.get_mut(usize::from(id.0)) = None;
    }

    /// The name of the node with this underlay address.
    pub fn node_at(&self, underlay: IpAddr) -> Option<&str> {
        let mut nodes = self.facts.nodes.values();
        let node = nodes.find(|node| node.fact.underlay == underlay)?;
        Some(&node.fact.name)
    }

    /// The addresses of the neighbour with this MAC on a link.
    pub fn neighbor_addresses(
        &self,
        interface: &str,
        mac: MacAddr,
    ) -> impl Iterator<Item = IpAddr> {
        let link = self.facts.neighbors.get(interface).into_iter().flatten();
        link.filter(move |(_, named)| named.fact == mac)
            .map(|(address, _)| *address)
    }

    /// An attached port.
    pub fn port(&self, interface: &str) -> Option<&PortFacts> {
        self.facts.port(interface)
    }

    /// Sets what concerns this node as a whole.
    ///
    /// # Errors
    ///
    /// If a value cannot be used.
    pub fn set_local(&mut self, local: LocalNode) -> Result<(), FactError> {
        facts::check_local(&local)?;
        let mut also_vnis = local.also_vnis.clone().into_boxed_slice();
        also_vnis.sort_unstable();
        let table = LocalTable {
            vni: local.vni,
            also_vnis,
            vxlan_port: local.vxlan_port,
            vtep_mac: local.vtep_mac,
            addresses: local.addresses.iter().copied().collect(),
            allow_unknown_vteps: local.allow_unknown_vteps,
        };
        if keep(&mut self.facts.local, local, self.epoch) {
            self.changed = true;
            self.local = Some(Arc::new(table));
            self.rib.hops_mut().mark_all();
        }
        Ok(())
    }

    /// Adds or changes a remote node.
    ///
    /// # Errors
    ///
    /// If a value cannot be used.
    pub fn set_node(&mut self, node: Node) -> Result<(), FactError> {
        facts::check_node(&node)?;
        let name = node.name.clone();
        let underlay = node.underlay;
        let mut place = self.facts.nodes.remove(&name);
        let old = place.as_ref().map(|named| named.fact.underlay);
        if keep(&mut place, node, self.epoch) {
            self.changed = true;
            if old != Some(underlay) {
                self.add_vtep(underlay);
                if let Some(old) = old {
                    self.remove_vtep(old);
                }
            }
            self.rib.hops_mut().mark_node(&name);
        }
        self.facts.nodes.extend(place.map(|named| (name, named)));
        Ok(())
    }

    /// Forgets a remote node. Its routes stay, unresolved.
    ///
    /// # Errors
    ///
    /// If it is not known.
    pub fn del_node(&mut self, name: &str) -> Result<(), FactError> {
        let node = self
            .facts
            .nodes
            .remove(name)
            .ok_or_else(|| FactError::NoSuchNode(name.to_owned()))?;
        self.changed = true;
        self.remove_vtep(node.fact.underlay);
        self.rib.hops_mut().mark_node(name);
        Ok(())
    }

    fn add_vtep(&mut self, underlay: IpAddr) {
        let nodes = self.vtep_nodes.entry(underlay).or_default();
        *nodes += 1;
        if *nodes == 1 {
            Arc::make_mut(&mut self.vteps).insert(underlay);
        }
    }

    fn remove_vtep(&mut self, underlay: IpAddr) {
        let nodes = self.vtep_nodes.entry(underlay).or_default();
        *nodes = nodes.saturating_sub(1);
        if *nodes == 0 {
            self.vtep_nodes.remove(&underlay);
            Arc::make_mut(&mut self.vteps).remove(underlay);
        }
    }

    /// Adds or changes a route. The route of a prefix that is the address of a local pod waits
    /// until the pod has gone.
    ///
    /// # Errors
    ///
    /// If a value cannot be used, or the table is full.
    pub fn set_route(&mut self, route: Route) -> Result<(), FactError> {
        facts::check_route(&route)?;
        let target = Target::from(route.via);
        self.changed |= self.rib.set_route(route.prefix, &target, self.epoch)?;
        Ok(())
    }

    /// Withdraws a route.
    ///
    /// # Errors
    ///
    /// If it is not there.
    pub fn del_route(&mut self, prefix: IpNet) -> Result<(), FactError> {
        self.rib.del_route(prefix)?;
        self.changed = true;
        Ok(())
    }

    /// Adds or changes a resolved neighbour.
    ///
    /// # Errors
    ///
    /// If a value cannot be used.
    pub fn set_neighbor(&mut self, neighbor: Neighbor) -> Result<(), FactError> {
        facts::check_neighbor(&neighbor)?;
        let Neighbor {
            interface,
            address,
            mac,
        } = neighbor;
        let mut link = self.facts.neighbors.remove(&interface).unwrap_or_default();
        let mut place = link.remove(&address);
        if keep(&mut place, mac, self.epoch) {
            self.changed = true;
            self.rib.hops_mut().mark_neighbor(&interface, address);
        }
        link.extend(place.map(|named| (address, named)));
        self.facts.neighbors.insert(interface, link);
        Ok(())
    }

    /// Forgets a neighbour that is no longer resolved.
    ///
    /// # Errors
    ///
    /// If it is not known.
    pub fn del_neighbor(&mut self, interface: &str, address: IpAddr) -> Result<(), FactError> {
        let removed = self.facts.neighbors.get_mut(interface).and_then(|link| {
            let removed = link.remove(&address)?;
            Some((removed, link.is_empty()))
        });
        let Some((_, last)) = removed else {
            return Err(FactError::NoSuchNeighbor {
                interface: interface.to_owned(),
                address,
            });
        };
        if last {
            self.facts.neighbors.remove(interface);
        }
        self.changed = true;
        self.rib.hops_mut().mark_neighbor(interface, address);
        Ok(())
    }

    /// Begins a synchronisation: every fact counts as not named.
    pub fn mark_all(&mut self) {
        self.epoch += 1;
    }

    /// Ends a synchronisation: removes every fact that was not named since [`Fib::mark_all`].
    /// Ports are not removed but returned, by interface: they are for the caller to detach.
    #[must_use = "the ports are to be detached"]
    pub fn sweep(&mut self) -> Vec<String> {
        let epoch = self.epoch;
        // None of these can fail: what is removed is there.
        for prefix in self.rib.routes_not_of(epoch) {
            let _ = self.del_route(prefix);
        }
        for name in stale(&self.facts.nodes, epoch) {
            let _ = self.del_node(&name);
        }
        let links = self.facts.neighbors.iter();
        let neighbors: Vec<_> = links
            .flat_map(|(link, neighbors)| {
                let stale = neighbors.iter().filter(|(_, named)| named.epoch != epoch);
                stale.map(|(address, _)| (link.clone(), *address))
            })
            .collect();
        for (interface, address) in neighbors {
            let _ = self.del_neighbor(&interface, address);
        }
        if self
            .facts
            .local
            .take_if(|local| local.epoch != epoch)
            .is_some()
        {
            self.changed = true;
            self.local = None;
            self.rib.hops_mut().mark_all();
        }
        let mut ports = stale(&self.facts.ports, epoch);
        ports.sort_unstable();
        ports
    }

    /// What it was told.
    pub(super) fn parts(&self) -> (&Facts, &Rib) {
        (&self.facts, &self.rib)
    }

    /// Whether anything has changed since the last [`Fib::build`].
    pub fn changed(&self) -> bool {
        self.changed
    }

    /// Makes the next snapshot.
    pub fn build(&mut self) -> Build {
        self.rib.settle(&self.facts);
        self.changed = false;
        self.generation += 1;
        let (v4, v6, next_hops) = self.rib.tables();
        let tables = Tables {
            generation: self.generation,
            v4,
            v6,
            next_hops,
            ports: self.ports.clone(),
            vteps: Arc::clone(&self.vteps),
            local: self.local.clone(),
        };
        let xdp = self.rib.take_delta();
        Build { tables, xdp }
    }

    /// The route that packets to `destination` of a flow with that hash take, next hops as of the last
    /// [`Fib::build`]; `None` when there is none.
    pub fn trace(&self, destination: IpAddr, flow_hash: u32) -> Option<TracedRoute> {
        let (prefix, index) = self.rib.longest(destination)?;
        let hops = self.rib.hops();
        let member = match &hops.table().get(index.get())?.as_ref()?.kind {
            NextHopKind::Group(group) => group.member(flow_hash),
            _ => None,
        };
        let mtu = hops.mtu(member.unwrap_or(index));
        Some(TracedRoute {
            prefix,
            via: hops.target(index)?.into(),
            member: member.and_then(|member| Some(hops.target(member)?.into())),
            flow_hash,
            mtu: (mtu > 0).then_some(mtu),
        })
    }

    /// The interface of an attached port.
    pub fn interface(&self, port: PortId) -> Option<&str> {
        self.port_names.get(&port).map(String::as_str)
    }

    /// Every prefix as of the last [`Fib::build`], with the largest L3 packet in bytes that it
    /// carries, 0 while its next hop is not resolved: what the XDP program's maps hold when every
    /// [`XdpDelta`] was applied.
    pub fn prefixes(&self) -> impl Iterator<Item = (IpNet, u16)> {
        self.rib.mtus()
    }

    /// Sizes of the tables, next hops as of the last [`Fib::build`].
    pub fn counts(&self) -> Counts {
        Counts {
            routes: self.rib.len(),
            unresolved: self.rib.hops().unresolved_prefixes(),
            nodes: self.facts.nodes.len(),
            neighbors: self.facts.neighbors.values().map(|link| link.len()).sum(),
        }
    }
}

/// The names of those facts that were not named in `epoch`.
fn stale<T>(facts: &HashMap<String, Named<T>>, epoch: u64) -> Vec<String> {
    let stale = facts.iter().filter(|(_, named)| named.epoch != epoch);
    stale.map(|(name, _)| name.clone()).collect()
}

fn port_entry(port: &PortFacts) -> PortEntry {
    let (accept_partial, is_uplink) = match port.role {
        PortRole::Pod { .. } => (true, false),
        PortRole::Uplink {
            accept_partial_checksums,
        } => (accept_partial_checksums, true),
    };
    PortEntry {
        ifindex: port.ifindex,
        mtu: port.mtu,
        mac: port.mac,
        accept_partial,
        is_uplink,
        carries_runs: port.carries_runs,
    }
}
