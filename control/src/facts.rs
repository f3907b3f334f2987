//! The facts that the dataplane is to hold, and the changes between two sets of them. Pure.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use podway_proto::control::{PortRoleSpec, PortSpec};
use podway_proto::dataplane::Change;
use podway_proto::types::{Link, LocalNode, Neighbor, Node, Port, PortRole, Route};

use crate::netlink::LinkKind;
use crate::routing;
use crate::world::{World, node_vtep_mac};

/// All facts of a node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Facts {
    local: Option<LocalNode>,
    ports: BTreeMap<String, Port>,
    nodes: BTreeMap<String, Node>,
    routes: BTreeMap<IpNet, Route>,
    neighbors: BTreeMap<(String, IpAddr), Neighbor>,
}

impl Facts {
    /// The facts as they should be now.
    pub fn of(world: &World<'_>) -> Self {
        Self {
            local: local(world),
            ports: ports(world),
            nodes: nodes(world),
            routes: routes(world),
            neighbors: neighbors(world),
        }
    }

    /// What leads from these facts to `want`, in an order in which each change finds what it
    /// names: what is named is set first and removed last.
    pub fn changes_to(&self, want: &Self) -> Vec<Change> {
        let mut changes = Vec::new();
        for prefix in gone(&self.routes, &want.routes) {
            changes.push(Change::DelRoute { prefix: *prefix });
        }
        for name in gone(&self.nodes, &want.nodes) {
            changes.push(Change::DelNode { name: name.clone() });
        }
        for (interface, address) in gone(&self.neighbors, &want.neighbors) {
            let (interface, address) = (interface.clone(), *address);
            changes.push(Change::DelNeighbor { interface, address });
        }
        for interface in gone(&self.ports, &want.ports) {
            changes.push(Change::DelPort {
                interface: interface.clone(),
            });
        }
        if let Some(local) = want.local.as_ref().filter(|_| self.local != want.local) {
            changes.push(Change::SetLocal(local.clone()));
        }
        changes.extend(new(&self.ports, &want.ports).cloned().map(Change::SetPort));
        changes.extend(
            new(&self.neighbors, &want.neighbors)
                .cloned()
                .map(Change::SetNeighbor),
        );
        changes.extend(new(&self.nodes, &want.nodes).cloned().map(Change::SetNode));
        changes.extend(
            new(&self.routes, &want.routes)
                .cloned()
                .map(Change::SetRoute),
        );
        changes
    }

    /// Takes out the fact that `change` would have set: the dataplane does not hold it.
    pub fn forget(&mut self, change: &Change) {
        match change {
            Change::SetLocal(_) => self.local = None,
            Change::SetPort(port) => drop(self.ports.remove(&port.interface)),
            Change::SetNode(node) => drop(self.nodes.remove(&node.name)),
            Change::SetRoute(route) => drop(self.routes.remove(&route.prefix)),
            Change::SetNeighbor(neighbor) => {
                self.neighbors
                    .remove(&(neighbor.interface.clone(), neighbor.address));
            }
            // What it will not remove it may hold; the next full sync settles it.
            Change::DelPort { .. }
            | Change::DelNode { .. }
            | Change::DelRoute { .. }
            | Change::DelNeighbor { .. } => {}
        }
    }
}

/// The fact that `change` is about, for people.
pub fn subject(change: &Change) -> String {
    match change {
        Change::SetLocal(_) => "this node".to_owned(),
        Change::SetPort(Port { interface, .. }) | Change::DelPort { interface } => {
            format!("port {interface}")
        }
        Change::SetNode(Node { name, .. }) | Change::DelNode { name } => format!("node {name}"),
        Change::SetRoute(Route { prefix, .. }) | Change::DelRoute { prefix } => {
            format!("route {prefix}")
        }
        Change::SetNeighbor(Neighbor {
            interface, address, ..
        })
        | Change::DelNeighbor { interface, address } => {
            format!("neighbor {address} dev {interface}")
        }
    }
}

fn gone<'a, K: Ord, V>(
    have: &'a BTreeMap<K, V>,
    want: &'a BTreeMap<K, V>,
) -> impl Iterator<Item = &'a K> {
    have.keys().filter(|key| !want.contains_key(key))
}

fn new<'a, K: Ord, V: PartialEq>(
    have: &'a BTreeMap<K, V>,
    want: &'a BTreeMap<K, V>,
) -> impl Iterator<Item = &'a V> {
    want.iter()
        .filter(|(key, value)| have.get(key) != Some(value))
        .map(|(_, value)| value)
}

fn local(world: &World<'_>) -> Option<LocalNode> {
    let mut addresses: Vec<IpAddr> = world.observed.addresses().map(|a| a.address).collect();
    addresses.sort_unstable();
    addresses.dedup();
    Some(LocalNode {
        vni: world.settings.vni,
        vxlan_port: world.settings.vxlan_port,
        vtep_mac: world.vtep_mac()?,
        addresses,
    })
}

/// Every port as it was told: the configuration's uplink and those that were added.
pub fn told_ports(world: &World<'_>) -> Vec<PortSpec> {
    let configured = world.settings.uplink.iter().map(|interface| PortSpec {
        interface: interface.clone(),
        // A request may say of the configuration's uplink what the file has no word for.
        role: match world.desired.ports.get(interface) {
            Some(role @ PortRoleSpec::Uplink { .. }) => role.clone(),
            _ => PortRoleSpec::Uplink {
                accept_partial_checksums: None,
            },
        },
    });
    let is_configured = |name: &&String| world.settings.uplink.as_ref() == Some(name);
    let added = world
        .desired
        .ports
        .iter()
        .filter(|(name, _)| !is_configured(name));
    let added = added.map(|(interface, role)| PortSpec {
        interface: interface.clone(),
        role: role.clone(),
    });
    let mut ports: Vec<PortSpec> = configured.chain(added).collect();
    ports.sort_by(|a, b| a.interface.cmp(&b.interface));
    ports
}

fn ports(world: &World<'_>) -> BTreeMap<String, Port> {
    let mut ports = BTreeMap::new();
    for PortSpec { interface, role } in told_ports(world) {
        let Some(link) = world.observed.link_named(&interface) else {
            continue;
        };
        let role = match role {
            PortRoleSpec::Uplink {
                accept_partial_checksums: told,
            } => PortRole::Uplink {
                accept_partial_checksums: told.unwrap_or(link.kind == LinkKind::Veth),
            },
            PortRoleSpec::Pod { addresses, mac } => match world.pod_mac(&interface, mac) {
                Some(mac) => PortRole::Pod { addresses, mac },
                None => continue,
            },
        };
        let link = link.mac.map(|mac| Link {
            ifindex: link.index,
            mtu: link.mtu,
            mac,
        });
        let port = Port {
            interface: interface.clone(),
            role,
            link,
        };
        ports.insert(interface, port);
    }
    ports
}

fn nodes(world: &World<'_>) -> BTreeMap<String, Node> {
    let facts = world.remote_nodes().map(|node| Node {
        name: node.name.clone(),
        underlay: node.underlay,
        vtep_mac: node_vtep_mac(node),
        mode: world.mode(node),
        path: world.path(node.underlay),
    });
    facts.map(|node| (node.name.clone(), node)).collect()
}

fn routes(world: &World<'_>) -> BTreeMap<IpNet, Route> {
    let told = routing::decisions(world)
        .into_iter()
        .filter_map(|decision| {
            let prefix = decision.prefix;
            let via = decision.via.ok()?;
            Some((prefix, Route { prefix, via }))
        });
    told.collect()
}

fn neighbors(world: &World<'_>) -> BTreeMap<(String, IpAddr), Neighbor> {
    let uplinks = world.uplinks();
    let mut neighbors = BTreeMap::new();
    for neighbor in world.observed.neighbors() {
        let Some(mac) = neighbor.mac.filter(|mac| !mac.is_multicast()) else {
            continue;
        };
        let Some(link) = world.observed.link(neighbor.index) else {
            continue;
        };
        if uplinks.contains(link.name.as_str()) && !neighbor.address.is_multicast() {
            let fact = Neighbor {
                interface: link.name.clone(),
                address: neighbor.address,
                mac,
            };
            neighbors.insert((link.name.clone(), neighbor.address), fact);
        }
    }
    neighbors
}

#[cfg(test)]
mod tests {
    use podway_proto::control::ViaSpec;
    use podway_proto::types::{MacAddr, Mode};

    use super::*;
    use crate::netlink::{self, Event};
    use crate::world::tests::Fixture;

    fn changes(from: &Facts, fixture: &Fixture) -> Vec<Change> {
        from.changes_to(&Facts::of(&fixture.world()))
    }

    #[test]
    fn everything_is_told_in_an_order_that_holds() {
        let mut fixture = Fixture::new();
        fixture
            .learned
            .insert("veth-a".into(), MacAddr([2, 0, 0, 0, 0, 0xaa]));
        let all = changes(&Facts::default(), &fixture);
        let subjects: Vec<String> = all.iter().map(subject).collect();
        assert_eq!(
            subjects,
            [
                "this node",
                "port eth0",
                "port veth-a",
                "neighbor 192.168.1.2 dev eth0",
                "node b",
                "route 10.0.1.0/24",
                "route fd00:1::/64",
            ]
        );
        let Change::SetPort(uplink) = &all[1] else {
            panic!("{:?}", all[1])
        };
        assert_eq!(
            uplink.role,
            PortRole::Uplink {
                accept_partial_checksums: true
            }
        );
        assert_eq!(changes(&Facts::of(&fixture.world()), &fixture), []);
    }

    #[test]
    fn a_pod_whose_mac_is_not_known_is_not_told() {
        let fixture = Fixture::new();
        let facts = Facts::of(&fixture.world());
        assert_eq!(facts.ports.keys().collect::<Vec<_>>(), ["eth0"]);
    }

    #[test]
    fn a_link_that_vanishes_takes_its_port_along() {
        let mut fixture = Fixture::new();
        let before = Facts::of(&fixture.world());
        fixture.observed.apply(Event::LinkGone { index: 2 });
        assert_eq!(
            changes(&before, &fixture),
            [
                Change::DelNeighbor {
                    interface: "eth0".into(),
                    address: "192.168.1.2".parse().unwrap()
                },
                Change::DelPort {
                    interface: "eth0".into()
                },
                Change::SetLocal(LocalNode {
                    addresses: vec![],
                    ..before.local.clone().unwrap()
                }),
                Change::SetNode(Node {
                    path: None,
                    ..before.nodes["b"].clone()
                }),
            ]
        );
    }

    #[test]
    fn a_link_that_changes_is_told_again() {
        let mut fixture = Fixture::new();
        let was = fixture.observed.link_named("eth0").unwrap().clone();
        let told = |fixture: &Fixture, before: &Facts| -> Vec<Option<Link>> {
            let ports = changes(before, fixture)
                .into_iter()
                .filter_map(|c| match c {
                    Change::SetPort(port) => Some(port.link),
                    _ => None,
                });
            ports.collect()
        };
        let mac = was.mac.unwrap();
        let other = MacAddr([2, 0, 0, 0, 0, 0xee]);
        for (mtu, now) in [(1400, mac), (1500, other)] {
            let before = Facts::of(&fixture.world());
            let mut link = was.clone();
            link.mtu = mtu;
            link.mac = Some(now);
            fixture.observed.apply(Event::Link(link));
            let expected = Link {
                ifindex: 2,
                mtu,
                mac: now,
            };
            assert_eq!(told(&fixture, &before), [Some(expected)]);
        }
        // Gone and made anew before control looked: the index alone differs.
        let before = Facts::of(&fixture.world());
        fixture.observed.apply(Event::LinkGone { index: 2 });
        let mut link = was;
        (link.index, link.mac) = (7, Some(other));
        fixture.observed.apply(Event::Link(link));
        let expected = Link {
            ifindex: 7,
            mtu: 1500,
            mac: other,
        };
        assert_eq!(told(&fixture, &before), [Some(expected)]);
    }

    #[test]
    fn partial_checksums_are_as_told_or_as_the_link_is() {
        let mut fixture = Fixture::new();
        let accepts = |fixture: &Fixture| match Facts::of(&fixture.world()).ports["eth0"].role {
            PortRole::Uplink {
                accept_partial_checksums,
            } => accept_partial_checksums,
            PortRole::Pod { .. } => panic!("eth0 is an uplink"),
        };
        let tell = |fixture: &mut Fixture, accept_partial_checksums| {
            let role = PortRoleSpec::Uplink {
                accept_partial_checksums,
            };
            fixture.desired.ports.insert("eth0".into(), role);
        };
        assert!(accepts(&fixture));
        tell(&mut fixture, Some(false));
        assert!(!accepts(&fixture), "the configuration's uplink");
        fixture.settings.uplink = None;
        assert!(!accepts(&fixture), "an uplink that was added");
        let mut link = fixture.observed.link_named("eth0").unwrap().clone();
        link.kind = LinkKind::Other;
        fixture.observed.apply(Event::Link(link));
        tell(&mut fixture, None);
        assert!(!accepts(&fixture));
        tell(&mut fixture, Some(true));
        assert!(accepts(&fixture));
    }

    #[test]
    fn a_neighbour_is_followed() {
        let mut fixture = Fixture::new();
        let before = Facts::of(&fixture.world());
        let mut neighbor = netlink::Neighbor {
            mac: Some(MacAddr([2, 0, 0, 0, 0, 0xcc])),
            ..*fixture.observed.neighbors().next().unwrap()
        };
        fixture.observed.apply(Event::Neighbor(neighbor));
        let fact = Neighbor {
            interface: "eth0".into(),
            address: neighbor.address,
            mac: MacAddr([2, 0, 0, 0, 0, 0xcc]),
        };
        assert_eq!(changes(&before, &fixture), [Change::SetNeighbor(fact)]);
        neighbor.mac = None;
        fixture.observed.apply(Event::Neighbor(neighbor));
        let (interface, address) = ("eth0".to_owned(), neighbor.address);
        assert_eq!(
            changes(&before, &fixture),
            [Change::DelNeighbor { interface, address }]
        );
    }

    #[test]
    fn a_router_is_told_only_on_an_uplink() {
        let mut fixture = Fixture::new();
        let gateway = |interface: &str| ViaSpec::Gateway {
            address: "192.168.1.9".parse().unwrap(),
            interface: Some(interface.into()),
        };
        let prefix: IpNet = "10.9.0.0/16".parse().unwrap();
        fixture.desired.routes.insert(prefix, gateway("veth-a"));
        assert!(!Facts::of(&fixture.world()).routes.contains_key(&prefix));
        fixture.desired.routes.insert(prefix, gateway("eth0"));
        assert!(Facts::of(&fixture.world()).routes.contains_key(&prefix));
    }

    #[test]
    fn a_refused_fact_is_told_again() {
        let mut fixture = Fixture::new();
        let want = Facts::of(&fixture.world());
        for change in Facts::default().changes_to(&want) {
            let mut sent = want.clone();
            sent.forget(&change);
            assert_eq!(sent.changes_to(&want), [change]);
        }
        fixture.desired.nodes.get_mut("b").unwrap().mode = Some(Mode::Native);
        // The kernel has no route to a native node's pods.
        let subjects: Vec<String> = changes(&want, &fixture).iter().map(subject).collect();
        assert_eq!(
            subjects,
            ["route 10.0.1.0/24", "route fd00:1::/64", "node b"]
        );
    }
}
