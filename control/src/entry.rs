//! One entry of the desired state: what a request changes and a line of the store holds.

use ipnet::IpNet;
use podway_proto::control::{NodeSpec, PortSpec, Request, RouteSpec};
use podway_proto::entries::{Difference, Entries};
use serde::{Deserialize, Serialize};

use crate::state::Desired;

/// What one name or prefix stands for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Entry {
    /// There is this node.
    Node(NodeSpec),
    /// There is no node of this name.
    NoNode(String),
    /// There is this route.
    Route(RouteSpec),
    /// There is no route to exactly this prefix.
    NoRoute(IpNet),
    /// There is this port.
    Port(PortSpec),
    /// This interface is no port.
    NoPort(String),
}

impl Entry {
    /// The entry that `request` is about, as it is in `desired`; `None` if it asks for no change.
    pub fn about(request: &Request, desired: &Desired) -> Option<Self> {
        match request {
            Request::NodeSet(NodeSpec { name, .. }) | Request::NodeDel { name } => {
                Some(Self::node(name, desired))
            }
            Request::RouteAdd(RouteSpec { prefix, .. })
            | Request::RouteReplace(RouteSpec { prefix, .. })
            | Request::RouteDel { prefix } => Some(Self::route(*prefix, desired)),
            Request::PortAdd(PortSpec { interface, .. }) | Request::PortDel { interface } => {
                Some(Self::port(interface, desired))
            }
            Request::Hello { .. }
            | Request::Status
            | Request::NodeList
            | Request::RouteShow
            | Request::RouteGet { .. }
            | Request::PortShow
            | Request::Counters
            | Request::Drops
            | Request::TracePacket(_)
            | Request::Perf
            | Request::PerfReset
            | Request::Log { .. }
            | Request::Export
            | Request::BulkBegin { .. }
            | Request::BulkPart(_)
            | Request::BulkEnd => None,
        }
    }

    fn node(name: &str, desired: &Desired) -> Self {
        let node = desired.nodes.get(name).cloned();
        node.map_or_else(|| Self::NoNode(name.to_owned()), Self::Node)
    }

    fn route(prefix: IpNet, desired: &Desired) -> Self {
        let via = desired.routes.get(&prefix).cloned();
        via.map_or(Self::NoRoute(prefix), |via| {
            Self::Route(RouteSpec { prefix, via })
        })
    }

    fn port(interface: &str, desired: &Desired) -> Self {
        let interface = interface.to_owned();
        match desired.ports.get(&interface).cloned() {
            Some(role) => Self::Port(PortSpec { interface, role }),
            None => Self::NoPort(interface),
        }
    }

    /// Everything that is in `desired`.
    pub fn all(desired: &Desired) -> impl Iterator<Item = Self> {
        let nodes = desired.nodes.values().cloned().map(Self::Node);
        let routes = desired.routes.iter().map(|(prefix, via)| {
            Self::Route(RouteSpec {
                prefix: *prefix,
                via: via.clone(),
            })
        });
        let ports = desired.ports.iter().map(|(interface, role)| {
            Self::Port(PortSpec {
                interface: interface.clone(),
                role: role.clone(),
            })
        });
        nodes.chain(routes).chain(ports)
    }

    /// What brings a difference into force, one after the other.
    pub fn of(difference: &Difference) -> Vec<Self> {
        let Entries {
            nodes,
            routes,
            ports,
        } = &difference.removed;
        let nodes = nodes.iter().map(|node| Self::NoNode(node.name.clone()));
        let routes = routes.iter().map(|route| Self::NoRoute(route.prefix));
        let ports = ports
            .iter()
            .map(|port| Self::NoPort(port.interface.clone()));
        let removed = nodes.chain(routes).chain(ports);
        let Entries {
            nodes,
            routes,
            ports,
        } = &difference.added;
        let nodes = nodes.iter().cloned().map(Self::Node);
        let routes = routes.iter().cloned().map(Self::Route);
        let ports = ports.iter().cloned().map(Self::Port);
        removed.chain(nodes).chain(routes).chain(ports).collect()
    }

    /// How many entries [`Entry::all`] gives.
    pub fn count(desired: &Desired) -> usize {
        desired.nodes.len() + desired.routes.len() + desired.ports.len()
    }

    /// Makes `desired` say this.
    pub fn put(self, desired: &mut Desired) {
        match self {
            Self::Node(node) => drop(desired.nodes.insert(node.name.clone(), node)),
            Self::NoNode(name) => drop(desired.nodes.remove(&name)),
            Self::Route(RouteSpec { prefix, via }) => drop(desired.routes.insert(prefix, via)),
            Self::NoRoute(prefix) => drop(desired.routes.remove(&prefix)),
            Self::Port(port) => drop(desired.ports.insert(port.interface, port.role)),
            Self::NoPort(interface) => drop(desired.ports.remove(&interface)),
        }
    }
}

#[cfg(test)]
mod tests {
    use podway_proto::control::{PortRoleSpec, ViaSpec};

    use super::*;

    #[test]
    fn what_is_put_is_there_and_what_was_before_can_be_put_back() {
        let node = NodeSpec {
            name: "b".into(),
            underlay: "192.168.1.2".parse().unwrap(),
            underlay6: None,
            pod_cidrs: vec!["10.0.1.0/24".parse().unwrap()],
            vtep_mac: None,
            mode: None,
        };
        let prefix = "10.9.0.0/16".parse().unwrap();
        let via = ViaSpec::Node {
            node: "b".into(),
            vni: None,
        };
        let route = RouteSpec { prefix, via };
        let port = PortSpec {
            interface: "eth0".into(),
            role: PortRoleSpec::Uplink {
                accept_partial_checksums: None,
            },
        };
        let name = "b".to_owned();
        let interface = "eth0".to_owned();
        let mut desired = Desired::default();
        let mut before = Vec::new();
        for (add, delete, entry) in [
            (
                Request::NodeSet(node.clone()),
                Request::NodeDel { name },
                Entry::Node(node),
            ),
            (
                Request::RouteAdd(route.clone()),
                Request::RouteDel { prefix },
                Entry::Route(route),
            ),
            (
                Request::PortAdd(port.clone()),
                Request::PortDel { interface },
                Entry::Port(port),
            ),
        ] {
            before.push(Entry::about(&add, &desired).unwrap());
            assert_eq!(Entry::about(&delete, &desired), before.last().cloned());
            entry.clone().put(&mut desired);
            assert_eq!(Entry::about(&delete, &desired), Some(entry));
        }
        assert_eq!(Entry::count(&desired), 3);
        let mut copy = Desired::default();
        Entry::all(&desired).for_each(|entry| entry.put(&mut copy));
        assert_eq!(copy, desired);
        before.into_iter().for_each(|entry| entry.put(&mut desired));
        assert_eq!(desired, Desired::default());
        assert_eq!(Entry::about(&Request::Status, &desired), None);
    }
}
