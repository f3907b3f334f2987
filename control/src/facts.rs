//! The facts that the dataplane is to hold, and the changes between two sets of them. Pure.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::ops::Bound;

use ipnet::IpNet;
use podway_proto::control::{NodeSpec, PortRoleSpec, PortSpec};
use podway_proto::dataplane::Change;
use podway_proto::digest::{Digest, Digests};
use podway_proto::types::{Link, LocalNode, Neighbor, Node, Port, PortRole, Route};
use serde::Serialize;

use crate::dirt::Dirt;
use crate::index::Index;
use crate::netlink::{self, LinkKind};
use crate::routing::{self, Decision};
use crate::world::{World, node_vtep_mac};

/// All facts of a node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Facts {
    local: Option<LocalNode>,
    ports: BTreeMap<String, Port>,
    nodes: BTreeMap<String, Node>,
    routes: BTreeMap<IpNet, Route>,
    neighbors: BTreeMap<(String, IpAddr), Neighbor>,
    /// Of all of them, kept beside them: a million are not gone through each time that it is wanted.
    digests: Digests,
}

impl Facts {
    /// The facts as they should be now.
    pub fn of(world: &World<'_>, index: &Index) -> Self {
        let mut facts = Self {
            local: local(world),
            ports: ports(world),
            nodes: nodes(world),
            routes: routes(world, index),
            neighbors: neighbors(world),
            digests: Digests::default(),
        };
        facts.digests = Digests {
            local: Digest::of(&facts.local),
            ports: Digest::of(facts.ports.values()),
            neighbors: Digest::of(facts.neighbors.values()),
            nodes: Digest::of(facts.nodes.values()),
            routes: Digest::of(facts.routes.values()),
        };
        facts
    }

    /// Brings the facts up to date with what `dirt` names. Gives those that changed, each with what
    /// was there before.
    pub fn update(&mut self, world: &World<'_>, index: &Index, dirt: &Dirt) -> Vec<(Key, Before)> {
        let mut changed = Vec::new();
        if dirt.all || dirt.local {
            let local = local(world);
            if self.local != local {
                changed.push((Key::Local, Before::of(self.local.as_ref())));
                self.digests.local = Digest::of(&local);
                self.local = local;
            }
        }
        if dirt.all || dirt.ports {
            let begin = changed.len();
            let before = replace(
                (&mut self.ports, &mut self.digests.ports),
                ports(world),
                Key::Port,
                &mut changed,
            );
            for (key, held) in &mut changed[begin..] {
                if let Key::Port(interface) = key
                    && lets_go(before.get(interface), self.ports.get(interface))
                {
                    *held = Before::InTheWay;
                }
            }
        }
        if dirt.all {
            let key = |(interface, address)| Key::Neighbor(interface, address);
            replace(
                (&mut self.neighbors, &mut self.digests.neighbors),
                neighbors(world),
                key,
                &mut changed,
            );
            replace(
                (&mut self.nodes, &mut self.digests.nodes),
                nodes(world),
                Key::Node,
                &mut changed,
            );
            replace(
                (&mut self.routes, &mut self.digests.routes),
                routes(world, index),
                Key::Route,
                &mut changed,
            );
            return changed;
        }
        for (link, address) in &dirt.neighbors {
            // One on a link that is gone went with it: a link with neighbours here is an uplink.
            let Some(link) = world.observed.link(*link) else {
                continue;
            };
            let found = world.observed.neighbor(link.index, *address);
            let fact = found.and_then(|found| neighbor(world, found));
            let key = (link.name.clone(), *address);
            if let Some(held) = set(
                (&mut self.neighbors, &mut self.digests.neighbors),
                key,
                fact,
            ) {
                changed.push((Key::Neighbor(link.name.clone(), *address), held));
            }
        }
        for name in &dirt.nodes {
            let told = world.desired.nodes.get(name);
            let remote = told.filter(|_| *name != world.settings.node_name);
            let fact = remote.map(|spec| node(world, spec));
            if let Some(held) = set(
                (&mut self.nodes, &mut self.digests.nodes),
                name.clone(),
                fact,
            ) {
                changed.push((Key::Node(name.clone()), held));
            }
        }
        for prefix in &dirt.routes {
            let fact = routing::decision(world, index, *prefix).and_then(route);
            if let Some(held) = set((&mut self.routes, &mut self.digests.routes), *prefix, fact) {
                changed.push((Key::Route(*prefix), held));
            }
        }
        changed
    }

    /// What tells of the fact of `key`; `None` when there is none.
    pub fn tell(&self, key: &Key) -> Option<Change> {
        Some(match key {
            Key::Local => Change::SetLocal(self.local.clone()?),
            Key::Port(interface) => Change::SetPort(self.ports.get(interface)?.clone()),
            Key::Neighbor(interface, address) => {
                let key = (interface.clone(), *address);
                Change::SetNeighbor(self.neighbors.get(&key)?.clone())
            }
            Key::Node(name) => Change::SetNode(self.nodes.get(name)?.clone()),
            Key::Route(prefix) => Change::SetRoute(self.routes.get(prefix)?.clone()),
        })
    }

    /// Whether there is the fact of `key`.
    pub fn has(&self, key: &Key) -> bool {
        match key {
            Key::Local => self.local.is_some(),
            Key::Port(interface) => self.ports.contains_key(interface),
            Key::Neighbor(interface, address) => {
                self.neighbors.contains_key(&(interface.clone(), *address))
            }
            Key::Node(name) => self.nodes.contains_key(name),
            Key::Route(prefix) => self.routes.contains_key(prefix),
        }
    }

    /// The facts after `last`, or all, in their order.
    pub fn after(&self, last: Option<&Key>) -> impl Iterator<Item = Key> {
        let local = (last.is_none() && self.local.is_some()).then_some(Key::Local);
        let (mut port, mut neighbor, mut node, mut route) = (None, None, None, None);
        // Kinds before that of `last` are left out.
        let kind = last.map_or(0, |last| match last.clone() {
            Key::Local => 0,
            Key::Port(interface) => {
                port = Some(interface);
                0
            }
            Key::Neighbor(link, address) => {
                neighbor = Some((link, address));
                1
            }
            Key::Node(name) => {
                node = Some(name);
                2
            }
            Key::Route(prefix) => {
                route = Some(prefix);
                3
            }
        });
        let ports = rest(&self.ports, port, kind == 0);
        let neighbors = rest(&self.neighbors, neighbor, kind <= 1);
        let nodes = rest(&self.nodes, node, kind <= 2);
        let routes = rest(&self.routes, route, true);
        let neighbors = neighbors.map(|(link, address)| Key::Neighbor(link.clone(), *address));
        local
            .into_iter()
            .chain(ports.cloned().map(Key::Port))
            .chain(neighbors)
            .chain(nodes.cloned().map(Key::Node))
            .chain(routes.copied().map(Key::Route))
    }

    /// What the dataplane is to answer when it is asked what it holds.
    pub fn digests(&self) -> Digests {
        self.digests
    }

    /// How many routes, nodes and neighbours there are.
    pub fn counts(&self) -> [usize; 3] {
        [self.routes.len(), self.nodes.len(), self.neighbors.len()]
    }
}

/// Names a fact. In this order each fact finds what it names, so they are set in it and removed
/// against it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Key {
    /// What concerns the node as a whole.
    Local,
    /// A port by interface.
    Port(String),
    /// A neighbour by link and address.
    Neighbor(String, IpAddr),
    /// A remote node by name.
    Node(String),
    /// A route by prefix.
    Route(IpNet),
}

impl Key {
    /// What removes the fact; `None` for the one that only changes.
    pub fn remove(&self) -> Option<Change> {
        Some(match self.clone() {
            Self::Local => return None,
            Self::Port(interface) => Change::DelPort { interface },
            Self::Neighbor(interface, address) => Change::DelNeighbor { interface, address },
            Self::Node(name) => Change::DelNode { name },
            Self::Route(prefix) => Change::DelRoute { prefix },
        })
    }
}

/// For people.
impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Local => f.write_str("this node"),
            Self::Port(interface) => write!(f, "port {interface}"),
            Self::Neighbor(interface, address) => write!(f, "neighbor {address} dev {interface}"),
            Self::Node(name) => write!(f, "node {name}"),
            Self::Route(prefix) => write!(f, "route {prefix}"),
        }
    }
}

/// What there was of a fact that has changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Before {
    /// Nothing.
    Nothing,
    /// Another value.
    Other,
    /// A port with an address that it has no more. Another port may have it now, and cannot be told
    /// so before this one has let go of it.
    InTheWay,
}

impl Before {
    fn of<T>(fact: Option<&T>) -> Self {
        fact.map_or(Self::Nothing, |_| Self::Other)
    }
}

/// Whether a port that stays loses an address.
fn lets_go(before: Option<&Port>, after: Option<&Port>) -> bool {
    let addresses = |port: &Port| match &port.role {
        PortRole::Pod { addresses, .. } => addresses.clone(),
        PortRole::Uplink { .. } => Vec::new(),
    };
    before.zip(after).is_some_and(|(before, after)| {
        let kept = addresses(after);
        addresses(before).iter().any(|one| !kept.contains(one))
    })
}

/// The keys after `last`, or all; none unless `wanted`.
fn rest<K: Ord, V>(
    facts: &BTreeMap<K, V>,
    last: Option<K>,
    wanted: bool,
) -> impl Iterator<Item = &K> {
    let begin = last.map_or(Bound::Unbounded, Bound::Excluded);
    let rest = wanted.then(|| facts.range((begin, Bound::Unbounded)));
    rest.into_iter().flatten().map(|(key, _)| key)
}

/// Puts `fact` in the place of `key`. `None` when that changed nothing, else what was there before.
fn set<K: Ord, V: PartialEq + Serialize>(
    (facts, digest): (&mut BTreeMap<K, V>, &mut Digest),
    key: K,
    fact: Option<V>,
) -> Option<Before> {
    if facts.get(&key) == fact.as_ref() {
        return None;
    }
    let before = match fact {
        Some(fact) => {
            digest.add(&fact);
            facts.insert(key, fact)
        }
        None => facts.remove(&key),
    };
    before.iter().for_each(|before| digest.remove(before));
    Some(Before::of(before.as_ref()))
}

/// Puts `want` in the place of all of `facts` and notes what that changed. Gives what was there.
fn replace<K: Ord + Clone, V: PartialEq + Serialize>(
    (facts, digest): (&mut BTreeMap<K, V>, &mut Digest),
    want: BTreeMap<K, V>,
    name: impl Fn(K) -> Key,
    changed: &mut Vec<(Key, Before)>,
) -> BTreeMap<K, V> {
    let have = std::mem::replace(facts, want);
    for (key, fact) in &*facts {
        let before = have.get(key);
        if before != Some(fact) {
            digest.add(fact);
            before.iter().for_each(|before| digest.remove(before));
            changed.push((name(key.clone()), Before::of(before)));
        }
    }
    for (key, before) in have.iter().filter(|(key, _)| !facts.contains_key(key)) {
        digest.remove(before);
        changed.push((name(key.clone()), Before::Other));
    }
    have
}

fn local(world: &World<'_>) -> Option<LocalNode> {
    let all = world.observed.addresses().map(|a| a.address);
    let mut addresses: Vec<IpAddr> = all.filter(is_unicast).collect();
    addresses.sort_unstable();
    addresses.dedup();
    Some(LocalNode {
        vni: world.settings.vni,
        also_vnis: world.settings.also_vnis.clone(),
        vxlan_port: world.settings.vxlan_port,
        vtep_mac: world.vtep_mac()?,
        addresses,
        translates: world.chains.translates,
        defragments: world.defragments(),
        allow_unknown_vteps: world.settings.allow_unknown_vteps,
    })
}

/// Whether packets to an address of a link may be for this node alone. Links may have others (`ip addr
/// add 239.1.1.1/32 autojoin`), which are left to the kernel anyhow.
fn is_unicast(address: &IpAddr) -> bool {
    let broadcast = matches!(address, IpAddr::V4(v4) if v4.is_broadcast());
    !(address.is_multicast() || address.is_unspecified() || broadcast)
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
            PortRoleSpec::Pod {
                addresses,
                mac,
                any_source,
            } => match world.pod_mac(&interface, mac) {
                Some(mac) => PortRole::Pod {
                    addresses,
                    mac,
                    any_source,
                },
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
    let nodes = world.remote_nodes();
    nodes
        .map(|spec| (spec.name.clone(), node(world, spec)))
        .collect()
}

fn node(world: &World<'_>, spec: &NodeSpec) -> Node {
    Node {
        name: spec.name.clone(),
        underlay: spec.underlay,
        vtep_mac: node_vtep_mac(spec),
        mode: world.mode(spec),
        path: world.path(spec.underlay),
    }
}

fn routes(world: &World<'_>, index: &Index) -> BTreeMap<IpNet, Route> {
    let told = routing::decisions(world, index)
        .into_iter()
        .filter_map(route);
    told.map(|route| (route.prefix, route)).collect()
}

fn route(decision: Decision<'_>) -> Option<Route> {
    let prefix = decision.prefix;
    // In whatever order they came, it is the same fact.
    let via = decision.via.ok()?.sorted();
    Some(Route { prefix, via })
}

fn neighbors(world: &World<'_>) -> BTreeMap<(String, IpAddr), Neighbor> {
    let neighbors = world.observed.neighbors();
    let facts = neighbors.filter_map(|found| neighbor(world, found));
    facts
        .map(|fact| ((fact.interface.clone(), fact.address), fact))
        .collect()
}

/// A neighbour on an uplink while it is resolved.
fn neighbor(world: &World<'_>, found: &netlink::Neighbor) -> Option<Neighbor> {
    let mac = found.mac.filter(|mac| !mac.is_multicast())?;
    let link = world.observed.link(found.index)?;
    let told = world.is_uplink(&link.name) && !found.address.is_multicast();
    told.then(|| Neighbor {
        interface: link.name.clone(),
        address: found.address,
        mac,
    })
}

#[cfg(test)]
mod tests {
    use podway_proto::control::ViaSpec;
    use podway_proto::types::{MacAddr, Mode};

    use super::*;
    use crate::netlink::{self, Event};
    use crate::observed::tests::address;
    use crate::world::tests::Fixture;

    /// What was found to have changed, as it is told.
    fn changes(from: &Facts, fixture: &Fixture) -> Vec<Change> {
        let mut facts = from.clone();
        let mut changed = facts.update(&fixture.world(), &fixture.index(), &Dirt::all());
        assert_eq!(facts, Facts::of(&fixture.world(), &fixture.index()));
        changed.sort();
        let gone = changed
            .iter()
            .rev()
            .filter(|(key, _)| facts.tell(key).is_none());
        let held = |before: &Before| *before != Before::Nothing;
        let gone = gone.filter_map(|(key, before)| key.remove().filter(|_| held(before)));
        let set = changed.iter().filter_map(|(key, _)| facts.tell(key));
        gone.chain(set).collect()
    }

    fn subjects(from: &Facts, fixture: &Fixture) -> Vec<String> {
        let mut facts = from.clone();
        let changed = facts.update(&fixture.world(), &fixture.index(), &Dirt::all());
        changed.iter().map(|(key, _)| key.to_string()).collect()
    }

    #[test]
    fn everything_is_told_in_an_order_that_holds() {
        let mut fixture = Fixture::new();
        fixture
            .learned
            .insert("veth-a".into(), MacAddr([2, 0, 0, 0, 0, 0xaa]));
        let all = changes(&Facts::default(), &fixture);
        assert_eq!(
            subjects(&Facts::default(), &fixture),
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
        assert_eq!(
            changes(&Facts::of(&fixture.world(), &fixture.index()), &fixture),
            []
        );
    }

    #[test]
    fn of_the_links_addresses_those_of_one_host_are_told() {
        let mut fixture = Fixture::new();
        for odd in [
            "239.1.1.1/32",
            "255.255.255.255/32",
            "0.0.0.0/8",
            "ff05::7/128",
            "127.0.0.1/8",
            "fe80::1/64",
        ] {
            fixture.observed.apply(Event::Address(address(3, odd)));
        }
        let facts = Facts::of(&fixture.world(), &fixture.index());
        let told: Vec<String> = facts
            .local
            .iter()
            .flat_map(|local| &local.addresses)
            .map(IpAddr::to_string)
            .collect();
        assert_eq!(told, ["127.0.0.1", "192.168.1.1", "fe80::1"]);
    }

    #[test]
    fn a_pod_whose_mac_is_not_known_is_not_told() {
        let fixture = Fixture::new();
        let facts = Facts::of(&fixture.world(), &fixture.index());
        assert_eq!(facts.ports.keys().collect::<Vec<_>>(), ["eth0"]);
    }

    #[test]
    fn a_link_that_vanishes_takes_its_port_along() {
        let mut fixture = Fixture::new();
        let before = Facts::of(&fixture.world(), &fixture.index());
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
            let before = Facts::of(&fixture.world(), &fixture.index());
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
        let before = Facts::of(&fixture.world(), &fixture.index());
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
    fn a_port_that_loses_an_address_is_in_the_way() {
        let mut fixture = Fixture::new();
        fixture
            .learned
            .insert("veth-a".into(), MacAddr([2, 0, 0, 0, 0, 0xaa]));
        let mut facts = Facts::of(&fixture.world(), &fixture.index());
        let mut tell = |addresses: &[&str]| {
            let role = PortRoleSpec::Pod {
                addresses: addresses.iter().map(|a| a.parse().unwrap()).collect(),
                mac: None,
                any_source: false,
            };
            fixture.desired.ports.insert("veth-a".into(), role);
            facts.update(&fixture.world(), &fixture.index(), &Dirt::all())
        };
        let port = || Key::Port("veth-a".into());
        assert_eq!(
            tell(&["10.0.0.2", "fd00::2"]),
            [(port(), Before::Other)],
            "one more"
        );
        assert_eq!(tell(&["fd00::2", "10.0.0.2"]), [(port(), Before::Other)]);
        assert_eq!(tell(&["fd00::2"]), [(port(), Before::InTheWay)], "one less");
        assert_eq!(tell(&["fd00::3"]), [(port(), Before::InTheWay)], "another");
    }

    #[test]
    fn partial_checksums_are_as_told_or_as_the_link_is() {
        let mut fixture = Fixture::new();
        let accepts = |fixture: &Fixture| match Facts::of(&fixture.world(), &fixture.index()).ports
            ["eth0"]
            .role
        {
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
        let before = Facts::of(&fixture.world(), &fixture.index());
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
    fn the_kernel_may_put_fragments_together_where_it_masquerades_or_others_have_rules() {
        let mut fixture = Fixture::new();
        let defragments = |fixture: &Fixture| {
            let facts = Facts::of(&fixture.world(), &fixture.index());
            facts.local.unwrap().defragments
        };
        assert!(!defragments(&fixture));
        fixture.settings.masquerade = true;
        assert!(defragments(&fixture));
        fixture.settings.masquerade = false;
        fixture.chains.may_track = true;
        assert!(defragments(&fixture));
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
        assert!(
            !Facts::of(&fixture.world(), &fixture.index())
                .routes
                .contains_key(&prefix)
        );
        fixture.desired.routes.insert(prefix, gateway("eth0"));
        assert!(
            Facts::of(&fixture.world(), &fixture.index())
                .routes
                .contains_key(&prefix)
        );
    }

    #[test]
    fn a_native_node_leaves_its_routes_to_the_kernel() {
        let mut fixture = Fixture::new();
        let want = Facts::of(&fixture.world(), &fixture.index());
        fixture.desired.nodes.get_mut("b").unwrap().mode = Some(Mode::Native);
        // The kernel has no route to a native node's pods.
        assert_eq!(
            subjects(&want, &fixture),
            ["node b", "route 10.0.1.0/24", "route fd00:1::/64"]
        );
    }
}
