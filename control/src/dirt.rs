//! What may have to be brought in line: which facts of the dataplane and which objects of the
//! kernel follow from what has changed. Pure.
//!
//! It may name too much, which costs time, and must not name too little: `tests` below compares
//! what was brought in line by it with what is made from scratch.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;
use podway_proto::control::{NodeSpec, PortRoleSpec, ViaSpec};
use podway_proto::entries::Difference;
use podway_proto::types::Mode;

use crate::entry::Entry;
use crate::index::{Index, pod_addresses};
use crate::kernel::is_device;
use crate::netlink::{Event, LinkKind};
use crate::routing::first_host;
use crate::world::World;

/// What may have to be brought in line.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Dirt {
    /// Everything.
    pub all: bool,
    /// What concerns this node as a whole.
    pub local: bool,
    /// The ports.
    pub ports: bool,
    /// The kernel's objects beside routes: some for each node, router and port.
    pub objects: bool,
    /// Remote nodes by name.
    pub nodes: BTreeSet<String>,
    /// Routes by prefix, the kernel's and the dataplane's.
    pub routes: BTreeSet<IpNet>,
    /// Neighbours by link and address.
    pub neighbors: BTreeSet<(u32, IpAddr)>,
}

impl Dirt {
    /// Everything.
    pub fn all() -> Self {
        Self {
            all: true,
            ..Self::default()
        }
    }

    /// Whether there is nothing.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Adds what another names.
    pub fn merge(&mut self, other: Self) {
        self.all |= other.all;
        self.local |= other.local;
        self.ports |= other.ports;
        self.objects |= other.objects;
        self.nodes.extend(other.nodes);
        self.routes.extend(other.routes);
        self.neighbors.extend(other.neighbors);
    }

    /// Notes that an entry of the desired state has changed, in `world` and `index` already.
    pub fn entry(&mut self, before: &Entry, after: &Entry, world: &World<'_>, index: &Index) {
        for entry in [before, after] {
            match entry {
                Entry::Node(node) => self.node(node, world, index),
                Entry::Route(route) => {
                    self.routes.insert(route.prefix);
                    self.objects |= route_has_objects(route.prefix, &route.via, world, index);
                }
                Entry::Port(port) => self.port(&port.role),
                Entry::NoNode(_) | Entry::NoRoute(_) | Entry::NoPort(_) => {}
            }
        }
    }

    /// Notes that many entries have changed at once, in `world` and `index` already.
    pub fn bulk(&mut self, change: &Difference, world: &World<'_>, index: &Index) {
        for entries in [&change.removed, &change.added] {
            for node in &entries.nodes {
                self.node(node, world, index);
            }
            self.routes.extend(entries.routes.iter().map(|r| r.prefix));
            for port in &entries.ports {
                self.port(&port.role);
            }
        }
        // Which route is the first through its router does not show when many come at once.
        self.objects |= !change.is_empty();
    }

    fn node(&mut self, node: &NodeSpec, world: &World<'_>, index: &Index) {
        // This node's own entry says who it is, and all depends on that.
        self.all |= node.name == world.settings.node_name;
        self.objects = true;
        self.routes.extend(&node.pod_cidrs);
        self.routes.extend(index.routes_by_node(&node.name));
        for underlay in node.underlays() {
            self.routes.extend(world.import.touched_by(underlay));
        }
        self.nodes.insert(node.name.clone());
    }

    fn port(&mut self, role: &PortRoleSpec) {
        // Which links are uplinks decides on routes and neighbours.
        self.all |= matches!(role, PortRoleSpec::Uplink { .. });
        self.ports = true;
        self.objects = true;
        let addresses = pod_addresses(role).iter();
        self.routes.extend(addresses.copied().map(IpNet::from));
    }

    /// Notes an event that has changed the mirror. `name` is what the link was called before, if
    /// the event is about one.
    pub fn event(&mut self, event: &Event, name: Option<&str>, world: &World<'_>, index: &Index) {
        match event {
            Event::Link(link) => {
                let is_tunnel = matches!(link.kind, LinkKind::Vxlan(_));
                self.all |= is_tunnel;
                for name in name.into_iter().chain([link.name.as_str()]) {
                    self.link(name, link.index, world, index);
                }
            }
            Event::LinkGone { index: gone } => match name {
                Some(name) => {
                    self.local = true;
                    self.link(name, *gone, world, index);
                    // The address that tunnels come from may have gone with the link.
                    let own = world.own().map(|own| own.underlay);
                    let mut own = [world.underlay(), own].into_iter().flatten();
                    let has = |own| world.observed.addresses().any(|a| a.address == own);
                    self.all |= !own.all(has);
                }
                None => self.all = true,
            },
            Event::Address(address) | Event::AddressGone(address) => {
                self.local = true;
                let link = world.observed.link(address.index);
                let name = link.map(|link| link.name.as_str());
                self.objects |= name.is_some_and(is_device);
                let own = world.own().map(|own| own.underlay);
                self.all |= [world.underlay(), own].contains(&Some(address.address));
                match name {
                    Some(name) => self.link(name, address.index, world, index),
                    None => self.all = true,
                }
            }
            Event::Neighbor(neighbor) | Event::NeighborGone(neighbor) => {
                self.neighbors.insert((neighbor.index, neighbor.address));
                // A pod has told its MAC.
                self.ports |= index.port_of(neighbor.address.into()).is_some();
                self.objects = true;
            }
            Event::Fdb(_)
            | Event::FdbGone(_)
            | Event::Unreachable(_)
            | Event::UnreachableGone(_) => self.objects = true,
            Event::OurRoute(route) | Event::OurRouteGone(route) => {
                self.routes.insert(route.prefix);
            }
            Event::ForeignRoute { route, .. } | Event::ForeignRouteGone(route) => {
                self.routes.insert(route.prefix);
                // The routers of the table that routes are taken over from are kept resolved.
                self.objects |= world.import.follows(route);
            }
            // The table is read anew.
            Event::NextHop { .. } | Event::RouteNoise => {}
        }
    }

    /// A link has changed, or an address on it. Nodes and routes depend on few links; of the many
    /// that there may be each is a port at most.
    fn link(&mut self, name: &str, number: u32, world: &World<'_>, index: &Index) {
        let named = |interface: &Option<String>| interface.as_deref() == Some(name);
        self.all |= is_device(name)
            || world.is_uplink(name)
            || world.ways.values().flatten().any(|way| way.link == number)
            || index.routers().any(|((_, interface), _)| named(interface));
        if let Some(role) = world.desired.ports.get(name) {
            self.port(role);
        }
    }

    /// Notes that the ways to these addresses have changed.
    pub fn ways(&mut self, changed: &BTreeSet<IpAddr>, world: &World<'_>, index: &Index) {
        if self.all || changed.is_empty() {
            return;
        }
        self.objects = true;
        for address in changed {
            self.routes.extend(index.routes_by_router(*address));
            let node = index.node_at(*address);
            if let Some(node) = node.and_then(|name| world.desired.nodes.get(name)) {
                self.nodes.insert(node.name.clone());
                // The kernel's routes through tunnels over IPv6 tell what the path carries.
                if world.mode(node) == Mode::Native || address.is_ipv6() {
                    self.node(node, world, index);
                }
            }
        }
        if !world.settings.auto_direct_node_routes {
            let native = world
                .remote_nodes()
                .filter(|node| world.mode(node) == Mode::Native);
            for node in native {
                let cidrs = node.pod_cidrs.iter().copied();
                let prefixes = cidrs.chain(index.routes_by_node(&node.name));
                let led = prefixes.filter(|prefix| changed.contains(&first_host(*prefix)));
                self.routes.extend(led);
            }
        }
    }
}

/// Whether the kernel has objects beside the route itself that come or go with it.
fn route_has_objects(prefix: IpNet, via: &ViaSpec, world: &World<'_>, index: &Index) -> bool {
    match via {
        ViaSpec::Multipath { members } => members
            .iter()
            .any(|member| route_has_objects(prefix, member, world, index)),
        // The first route through a router or the last one.
        ViaSpec::Gateway { address, interface } => index.users(&(*address, interface.clone())) <= 1,
        ViaSpec::Node { node, .. } => world.desired.nodes.get(node).is_none_or(|node| {
            let same_version = |cidr: &IpNet| cidr.addr().is_ipv4() == prefix.addr().is_ipv4();
            world.mode(node) == Mode::Native || !node.pod_cidrs.iter().any(same_version)
        }),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use podway_proto::control::{PortSpec, Request, RouteSpec};
    use podway_proto::entries::Entries;
    use podway_proto::types::Vni;
    use proptest::prelude::*;

    use super::*;
    use crate::bulk::{self, Bulk};
    use crate::facts::Facts;
    use crate::kernel::{self, DEVICE, Devices, Want};
    use crate::netlink::{Address, Link, Lookup, Neighbor, Route};
    use crate::observed::tests::{address, link};
    use crate::state::Fixed;
    use crate::world::tests::Fixture;

    /// Small sets, so that things meet.
    fn node(number: u8) -> String {
        ["a", "b", "c", "d"][usize::from(number % 4)].to_owned()
    }

    fn underlay(number: u8) -> IpAddr {
        match number % 8 {
            6 | 7 => IpAddr::from([0xfd77, 0, 0, 0, 0, 0, 0, u16::from(number % 8)]),
            last => IpAddr::from([192, 168, 1, 1 + last]),
        }
    }

    fn prefix(number: u8) -> IpNet {
        let texts = [
            "10.0.0.0/24",
            "10.0.1.0/24",
            "10.0.2.0/24",
            "10.0.0.2/32",
            "10.9.0.0/16",
            "fd00:1::/64",
            "fd00:2::/64",
            "fd00::2/128",
        ];
        texts[usize::from(number) % texts.len()].parse().unwrap()
    }

    fn interface(number: u8) -> (u32, &'static str) {
        [(2, "eth0"), (3, "veth-a"), (4, "veth-b"), (9, DEVICE)][usize::from(number % 4)]
    }

    /// A request that may change the desired state, or an event, or what the kernel says of a way.
    #[derive(Debug, Clone)]
    enum Step {
        Ask(Request),
        /// Many entries at once.
        Bulk(Bulk),
        Tell(Event),
        Way(IpAddr, Option<Lookup>),
    }

    fn request() -> impl Strategy<Value = Request> {
        let any = any::<(u8, u8, u8, u8, bool)>();
        (0..8_u8, any).prop_map(|(kind, (one, two, three, four, flag))| match kind {
            0 | 1 => Request::NodeSet(NodeSpec {
                name: node(one),
                underlay: underlay(two),
                underlay6: None,
                pod_cidrs: [three, four].map(prefix)[..1 + usize::from(flag)].to_vec(),
                vtep_mac: None,
                mode: [None, Some(Mode::Native), Some(Mode::Vxlan)][usize::from(one / 4 % 3)],
            }),
            2 => Request::NodeDel { name: node(one) },
            3 | 4 => {
                let by_node = |number| ViaSpec::Node {
                    node: node(number),
                    vni: None,
                };
                let by_router = |two| {
                    let interface = (three % 2 == 0).then(|| interface(four).1.to_owned());
                    let address = underlay(two);
                    ViaSpec::Gateway { address, interface }
                };
                let via = match (flag, four % 3) {
                    (true, 0) => by_node(two),
                    (true, _) => ViaSpec::Multipath {
                        members: vec![by_node(two), by_node(two.wrapping_add(1)), by_router(three)],
                    },
                    (false, 0) => ViaSpec::Multipath {
                        members: vec![by_router(two), by_router(two.wrapping_add(1))],
                    },
                    (false, _) => by_router(two),
                };
                let prefix = prefix(one);
                Request::RouteReplace(RouteSpec { prefix, via })
            }
            5 => Request::RouteDel {
                prefix: prefix(one),
            },
            6 => Request::PortAdd(PortSpec {
                interface: interface(one).1.to_owned(),
                role: if two % 4 == 0 {
                    PortRoleSpec::Uplink {
                        accept_partial_checksums: None,
                    }
                } else {
                    PortRoleSpec::Pod {
                        addresses: vec![prefix(3 + 4 * (three % 2)).addr()],
                        mac: None,
                        any_source: false,
                    }
                },
            }),
            _ => Request::PortDel {
                interface: interface(one).1.to_owned(),
            },
        })
    }

    /// What `requests` tell; of two that tell of the same the last.
    fn bulk(replace: bool, requests: Vec<Request>) -> Bulk {
        let (mut nodes, mut routes) = (BTreeMap::new(), BTreeMap::new());
        let mut ports = BTreeMap::new();
        for request in requests {
            match request {
                Request::NodeSet(node) => drop(nodes.insert(node.name.clone(), node)),
                Request::RouteReplace(route) => drop(routes.insert(route.prefix, route)),
                Request::PortAdd(port) => drop(ports.insert(port.interface.clone(), port)),
                _ => {}
            }
        }
        Bulk {
            replace,
            dry_run: false,
            entries: Entries {
                nodes: nodes.into_values().collect(),
                routes: routes.into_values().collect(),
                ports: ports.into_values().collect(),
            },
        }
    }

    fn event() -> impl Strategy<Value = Event> {
        let any = any::<(u8, u8, bool, bool)>();
        (0..6_u8, any).prop_map(|(kind, (one, two, come, flag))| {
            let (index, name) = interface(one);
            match (kind, come) {
                (0, true) => Event::Link(Link {
                    up: flag,
                    mtu: 1400 + u32::from(two),
                    ..link(index, name)
                }),
                (0, false) => Event::LinkGone { index },
                (1 | 2, _) => {
                    let found = Address {
                        index,
                        ..address(2, &format!("{}/24", underlay(two)))
                    };
                    if come {
                        Event::Address(found)
                    } else {
                        Event::AddressGone(found)
                    }
                }
                (3, _) => {
                    let found = Neighbor {
                        index,
                        address: if flag {
                            underlay(two)
                        } else {
                            prefix(3).addr()
                        },
                        mac: (two % 3 > 0).then_some(podway_proto::types::MacAddr([2; 6])),
                        permanent: false,
                        managed: two % 2 == 0,
                        ours: two % 2 == 0,
                    };
                    if come {
                        Event::Neighbor(found)
                    } else {
                        Event::NeighborGone(found)
                    }
                }
                _ => {
                    let found = Route {
                        prefix: prefix(two),
                        gateway: flag.then(|| underlay(one)),
                        link: index,
                        onlink: flag,
                        also: Vec::new(),
                        mtu: None,
                    };
                    if come {
                        Event::OurRoute(found)
                    } else {
                        Event::OurRouteGone(found)
                    }
                }
            }
        })
    }

    fn step() -> impl Strategy<Value = Step> {
        let way = (any::<u8>(), any::<Option<(u8, bool)>>());
        prop_oneof![
            3 => request().prop_map(Step::Ask),
            1 => (any::<bool>(), prop::collection::vec(request(), 0..8))
                .prop_map(|(replace, requests)| Step::Bulk(bulk(replace, requests))),
            2 => event().prop_map(Step::Tell),
            1 => way.prop_map(|(one, way)| {
                // Routers and nodes, and the first hosts of native nodes' prefixes.
                let address = match one % 2 {
                    0 => underlay(one / 2),
                    _ => first_host(prefix(one / 2)),
                };
                let way = way.map(|(two, routed)| Lookup {
                    link: interface(two).0,
                    gateway: routed.then(|| underlay(two)),
                    source: None,
                    mtu: (one % 3 == 0).then_some(1400),
                    expires: None,
                });
                Step::Way(address, way)
            }),
        ]
    }

    /// Everything that was brought in line, and the kernel, which carries out each order.
    struct Bench {
        fixture: Fixture,
        index: Index,
        facts: Facts,
        want: Want,
        routes: BTreeMap<IpNet, Route>,
    }

    impl Bench {
        fn new(auto_direct: bool, by_ipv6: bool) -> Self {
            let mut fixture = Fixture::new();
            if by_ipv6 {
                fixture.settings.underlay = Some(underlay(6));
            }
            fixture.settings.auto_direct_node_routes = auto_direct;
            fixture.observed.apply(Event::Link(link(9, DEVICE)));
            let mut bench = Self {
                index: fixture.index(),
                fixture,
                facts: Facts::default(),
                want: Want::default(),
                routes: BTreeMap::new(),
            };
            bench.bring_in_line(&Dirt::all());
            bench
        }

        fn devices(&self) -> Devices {
            kernel::devices(&self.fixture.world())
        }

        fn take(&mut self, step: Step) -> Dirt {
            let mut dirt = Dirt::default();
            let fixture = &mut self.fixture;
            match step {
                Step::Ask(request) => {
                    let before = Entry::about(&request, &fixture.desired).unwrap();
                    let fixed = Fixed {
                        node_name: "a",
                        uplink: Some("eth0"),
                        vni: Vni::DEFAULT,
                        also_vnis: &[],
                    };
                    let desired = &mut fixture.desired;
                    // One that is refused has changed nothing.
                    let _ = match request.clone() {
                        Request::NodeSet(node) => desired.set_node(node),
                        Request::NodeDel { name } => desired.delete_node(&name, &self.index),
                        Request::RouteReplace(route) => {
                            desired.set_route(route, true, fixed, &self.index)
                        }
                        Request::RouteDel { prefix } => desired.delete_route(prefix),
                        Request::PortAdd(port) => desired.add_port(port, fixed),
                        Request::PortDel { interface } => desired.delete_port(&interface, fixed),
                        _ => unreachable!(),
                    };
                    let after = Entry::about(&request, desired).unwrap();
                    self.index.change(&before, &after);
                    dirt.entry(&before, &after, &fixture.world(), &self.index);
                }
                Step::Bulk(told) => {
                    let fixed = Fixed {
                        node_name: "a",
                        uplink: Some("eth0"),
                        vni: Vni::DEFAULT,
                        also_vnis: &[],
                    };
                    if let Ok(after) = bulk::apply(&fixture.desired, &told, fixed) {
                        let change = bulk::difference(&fixture.desired, &after);
                        fixture.desired = after;
                        self.index = fixture.index();
                        dirt.bulk(&change, &fixture.world(), &self.index);
                    }
                }
                Step::Tell(event) => {
                    let link = match &event {
                        Event::Link(link) => Some(link.index),
                        Event::LinkGone { index } => Some(*index),
                        _ => None,
                    };
                    let name = link.and_then(|index| fixture.observed.link(index));
                    let name = name.map(|link| link.name.clone());
                    if fixture.observed.apply(event.clone()) {
                        dirt.event(&event, name.as_deref(), &fixture.world(), &self.index);
                    }
                }
                Step::Way(address, way) => {
                    fixture.ways.insert(address, way);
                    let changed = BTreeSet::from([address]);
                    dirt.ways(&changed, &fixture.world(), &self.index);
                }
            }
            dirt
        }

        fn route(&self, prefix: IpNet) -> Option<Route> {
            kernel::route(&self.fixture.world(), &self.index, &self.devices(), prefix)
                .ok()
                .flatten()
        }

        fn bring_in_line(&mut self, dirt: &Dirt) {
            let world = self.fixture.world();
            self.facts.update(&world, &self.index, dirt);
            if dirt.all || dirt.objects {
                self.want = Want::of(&world, &self.index, &self.devices());
            }
            let prefixes: BTreeSet<IpNet> = if dirt.all {
                (0..8).map(prefix).collect()
            } else {
                dirt.routes.clone()
            };
            for prefix in prefixes {
                match self.route(prefix) {
                    Some(route) => drop(self.routes.insert(prefix, route)),
                    None => drop(self.routes.remove(&prefix)),
                }
            }
        }
    }

    proptest! {
        #[test]
        fn what_is_named_is_enough(
            auto_direct in any::<bool>(),
            by_ipv6 in any::<bool>(),
            steps in prop::collection::vec(step(), 1..60),
        ) {
            let mut bench = Bench::new(auto_direct, by_ipv6);
            for step in steps {
                let dirt = bench.take(step.clone());
                bench.bring_in_line(&dirt);
                let world = bench.fixture.world();
                prop_assert_eq!(&bench.index, &bench.fixture.index(), "{:?}", step);
                prop_assert_eq!(&bench.facts, &Facts::of(&world, &bench.index), "{:?}", step);
                let want = Want::of(&world, &bench.index, &bench.devices());
                prop_assert_eq!(&bench.want, &want, "{:?}", step);
                let all = (0..8).map(prefix);
                let routes: BTreeMap<IpNet, Route> =
                    all.filter_map(|p| Some((p, bench.route(p)?))).collect();
                prop_assert_eq!(&bench.routes, &routes, "{:?}", step);
            }
        }
    }
}
