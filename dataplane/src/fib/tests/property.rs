//! After any changes, the tables are those that the facts make at once.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use podway_proto::digest::{Digest, Digests};
use podway_proto::types::{Link, LocalNode, Mode, Neighbor, Node, Port, Route};
use prefix_trie::joint::map::JointPrefixMap;
use proptest::prelude::*;
use proptest::sample::select;

use super::super::*;
use super::support::*;

/// The facts, kept as simply as can be.
#[derive(Debug, Clone, Default)]
struct Model {
    local: Option<LocalNode>,
    ports: BTreeMap<String, PortFacts>,
    nodes: BTreeMap<String, Node>,
    routes: BTreeMap<IpNet, Route>,
    neighbors: BTreeMap<(String, IpAddr), Neighbor>,
}

impl Model {
    fn fib(&self) -> Fib {
        let mut fib = Fib::new();
        for route in self.routes.values() {
            fib.set_route(route.clone()).unwrap();
        }
        for node in self.nodes.values() {
            fib.set_node(node.clone()).unwrap();
        }
        for neighbor in self.neighbors.values() {
            fib.set_neighbor(neighbor.clone()).unwrap();
        }
        if let Some(local) = &self.local {
            fib.set_local(local.clone()).unwrap();
        }
        for port in self.ports.values() {
            fib.attach_port(port.clone()).unwrap();
        }
        fib
    }

    /// As control makes them of what it tells.
    fn digests(&self) -> Digests {
        let ports = self.ports.values().map(|port| Port {
            interface: port.interface.clone(),
            role: port.role.clone(),
            link: Some(Link {
                ifindex: port.ifindex,
                mtu: port.mtu.into(),
                mac: port.mac,
            }),
        });
        Digests {
            local: Digest::of(&self.local),
            ports: Digest::of(ports),
            neighbors: Digest::of(self.neighbors.values()),
            nodes: Digest::of(self.nodes.values()),
            routes: Digest::of(self.routes.values().map(|route| Route {
                prefix: route.prefix,
                via: route.via.clone().sorted(),
            })),
        }
    }
}

#[derive(Debug, Clone)]
enum Step {
    Local(u16, bool),
    Attach(PortFacts),
    Detach(String),
    Node(Node),
    DelNode(String),
    Route(Route),
    DelRoute(IpNet),
    Neighbor(Neighbor),
    DelNeighbor(IpAddr),
    Sync,
    /// Whether the workers adopt the snapshot at once, or have not when the next one is made.
    Build(bool),
}

const NODES: [&str; 3] = ["n2", "n3", "n4"];
const UNDERLAYS: [&str; 4] = ["192.0.2.2", "192.0.2.3", "192.0.2.254", "2001:db8::2"];
const PREFIXES: [&str; 9] = [
    "0.0.0.0/0",
    "10.0.0.0/16",
    "10.0.2.0/24",
    "10.0.2.128/25",
    "10.0.1.5/32",
    "10.0.1.6/32",
    "::/0",
    "fd00:2::/64",
    "fd00:1::5/128",
];
const PROBES: [&str; 10] = [
    "9.9.9.9",
    "10.0.0.1",
    "10.0.2.1",
    "10.0.2.200",
    "10.0.1.5",
    "10.0.1.6",
    "2001:db8::9",
    "fd00:2::9",
    "fd00:1::5",
    "fd00:1::6",
];

/// A route by the last `nodes` of the nodes and the first `gateways` of the routers, by both links.
fn group(prefix: &str, nodes: usize, gateways: usize) -> Route {
    let nodes = NODES.iter().rev().take(nodes.max(2));
    let gateways = UNDERLAYS.iter().take(gateways).zip(["eth0", "eth1"]);
    let members: Vec<Route> = nodes
        .map(|name| by_node(prefix, name))
        .chain(gateways.map(|(address, link)| by_gateway(prefix, address, link)))
        .collect();
    by_all(prefix, &members)
}

fn step() -> impl Strategy<Value = Step> {
    let name = || select(&NODES[..]);
    let prefix = || select(&PREFIXES[..]).prop_map(net);
    let link = || select(&["eth0", "eth1"][..]);
    let underlay = || select(&UNDERLAYS[..]);
    let mtu = || select(&[1400_u16, 1500, 9000][..]);
    let mode = || select(&[Mode::Vxlan, Mode::Native][..]);
    let port = prop_oneof![
        (mtu(), any::<bool>()).prop_map(|(mtu, pod_too)| {
            let mut port = uplink("eth0", 0);
            port.mtu = mtu;
            if pod_too {
                port.role = pod("eth0", 0, &["10.0.1.6"]).role;
            }
            port
        }),
        mtu().prop_map(|mtu| PortFacts {
            mtu,
            ..uplink("eth1", 1)
        }),
        (2..4_u16).prop_map(|id| pod("veth2", id, &["10.0.1.5", "fd00:1::5"])),
        Just(pod("veth3", 3, &["10.0.1.6", "10.0.1.5", "10.0.1.6"])),
    ];
    let path_of = |underlay: &str, link: &str, next_hop: &str, mtu| {
        let source = if ip(underlay).is_ipv4() {
            "192.0.2.1"
        } else {
            "2001:db8::1"
        };
        let mut path = path(next_hop, source, mtu);
        link.clone_into(&mut path.interface);
        path
    };
    let node = (name(), underlay(), mode(), link(), underlay(), mtu(), 0..4).prop_map(
        move |(name, underlay, mode, link, next_hop, mtu, known)| {
            let path = (known > 0).then(|| path_of(underlay, link, next_hop, mtu));
            Node {
                path,
                ..node(name, underlay, mode)
            }
        },
    );
    let neighbor = (link(), underlay(), 0x20..0x23_u8);
    prop_oneof![
        1 => (select(&[4789_u16, 8472][..]), any::<bool>())
            .prop_map(|(port, also)| Step::Local(port, also)),
        4 => port.prop_map(Step::Attach),
        2 => select(&["eth0", "eth1", "veth2", "veth3"][..])
            .prop_map(|name| Step::Detach(name.to_owned())),
        4 => node.prop_map(Step::Node),
        1 => name().prop_map(|name| Step::DelNode(name.to_owned())),
        8 => prop_oneof![
            (prefix(), name()).prop_map(|(prefix, name)| by_node(&prefix.to_string(), name)),
            (prefix(), name()).prop_map(|(prefix, name)| by_vni(&prefix.to_string(), name, 77)),
            (prefix(), underlay(), link()).prop_map(|(prefix, underlay, link)| {
                by_gateway(&prefix.to_string(), underlay, link)
            }),
            (prefix(), 0..4_usize, 0..3_usize).prop_map(|(prefix, nodes, gateways)| {
                group(&prefix.to_string(), nodes, gateways)
            }),
        ].prop_map(Step::Route),
        3 => prefix().prop_map(Step::DelRoute),
        6 => neighbor.prop_map(|(l, a, m)| Step::Neighbor(self::neighbor(l, a, m))),
        2 => underlay().prop_map(|address| Step::DelNeighbor(ip(address))),
        1 => Just(Step::Sync),
        5 => any::<bool>().prop_map(Step::Build),
    ]
}

/// Takes the step in both; they must agree on whether it is possible.
fn take(fib: &mut Fib, model: &mut Model, step: Step) -> Result<(), TestCaseError> {
    match step {
        Step::Local(vxlan_port, also) => {
            let also = also.then(|| 77.try_into().unwrap());
            let local = LocalNode {
                vxlan_port,
                also_vnis: also.into_iter().collect(),
                ..local()
            };
            fib.set_local(local.clone()).unwrap();
            model.local = Some(local);
        }
        Step::Attach(port) => {
            let clash = model.ports.values().any(|other| {
                let mut addresses = other.pod_addresses().iter();
                let shared = addresses.any(|address| port.pod_addresses().contains(address));
                other.interface != port.interface && (other.id == port.id || shared)
            });
            prop_assert_eq!(fib.attach_port(port.clone()).is_err(), clash);
            if !clash {
                model.ports.insert(port.interface.clone(), port);
            }
        }
        Step::Detach(interface) => {
            let known = model.ports.remove(&interface).is_some();
            prop_assert_eq!(fib.detach_port(&interface).is_ok(), known);
        }
        Step::Node(node) => {
            fib.set_node(node.clone()).unwrap();
            model.nodes.insert(node.name.clone(), node);
        }
        Step::DelNode(name) => {
            let known = model.nodes.remove(&name).is_some();
            prop_assert_eq!(fib.del_node(&name).is_ok(), known);
        }
        Step::Route(route) => {
            fib.set_route(route.clone()).unwrap();
            model.routes.insert(route.prefix, route);
        }
        Step::DelRoute(prefix) => {
            let known = model.routes.remove(&prefix).is_some();
            prop_assert_eq!(fib.del_route(prefix).is_ok(), known);
        }
        Step::Neighbor(neighbor) => {
            fib.set_neighbor(neighbor.clone()).unwrap();
            let key = (neighbor.interface.clone(), neighbor.address);
            model.neighbors.insert(key, neighbor);
        }
        Step::DelNeighbor(address) => {
            let known = model.neighbors.remove(&("eth0".to_owned(), address));
            prop_assert_eq!(fib.del_neighbor("eth0", address).is_ok(), known.is_some());
        }
        Step::Sync => {
            // Everything but the routes is named again.
            fib.mark_all();
            for node in model.nodes.values() {
                fib.set_node(node.clone()).unwrap();
            }
            for neighbor in model.neighbors.values() {
                fib.set_neighbor(neighbor.clone()).unwrap();
            }
            for port in model.ports.values() {
                fib.attach_port(port.clone()).unwrap();
            }
            if let Some(local) = &model.local {
                fib.set_local(local.clone()).unwrap();
            }
            model.routes.clear();
            prop_assert_eq!(fib.sweep(), Vec::<String>::new());
        }
        Step::Build(_) => {}
    }
    Ok(())
}

/// The XDP program's maps, and the tables that a worker may still read.
struct Xdp {
    map: JointPrefixMap<IpNet, u16>,
    pending: XdpWrites,
    in_flight: Vec<Tables>,
}

impl Xdp {
    fn follow(
        &mut self,
        Build { tables, mut xdp }: Build,
        adopted: bool,
    ) -> Result<(), TestCaseError> {
        xdp.carry(std::mem::take(&mut self.pending));
        self.write(&xdp.before);
        self.check_promise()?;
        self.in_flight.push(tables);
        self.check_promise()?;
        self.pending = xdp.after;
        if adopted {
            self.in_flight.drain(..self.in_flight.len() - 1);
            let pending = std::mem::take(&mut self.pending);
            self.write(&pending);
            self.check_promise()?;
        }
        Ok(())
    }

    fn write(&mut self, writes: &XdpWrites) {
        for prefix in &writes.remove {
            self.map.remove(prefix);
        }
        for (prefix, mtu) in &writes.set {
            self.map.insert(*prefix, *mtu);
        }
    }

    /// The map must not redirect what some tables do not forward.
    fn check_promise(&self) -> Result<(), TestCaseError> {
        for (probe, tables) in PROBES.iter().flat_map(|probe| {
            let tables = self.in_flight.iter();
            tables.map(|tables| (ip(probe), tables))
        }) {
            let found = self.map.get_lpm(&probe.into());
            if found.is_some_and(|(_, mtu)| *mtu > 0) {
                let (_, hops) = ways(tables, probe).unwrap();
                prop_assert!(hops.iter().all(|hop| hop.kind != NextHopKind::Unresolved));
            }
        }
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn changes_lead_where_the_facts_do(steps in prop::collection::vec(step(), 1..60)) {
        let mut fib = Fib::new();
        let mut model = Model::default();
        let mut xdp = Xdp {
            map: JointPrefixMap::new(),
            pending: XdpWrites::default(),
            in_flight: vec![Tables::default()],
        };
        for step in steps.into_iter().chain([Step::Build(true)]) {
            let build = match step {
                Step::Build(adopted) => Some(adopted),
                _ => None,
            };
            take(&mut fib, &mut model, step)?;
            let Some(adopted) = build else {
                continue;
            };
            let next = fib.build();
            let tables = next.tables.clone();
            let mut fresh_fib = model.fib();
            let fresh = fresh_fib.build().tables;

            for probe in PROBES.map(ip) {
                prop_assert_eq!(ways(&tables, probe), ways(&fresh, probe), "{}", probe);
            }
            for address in UNDERLAYS.map(ip) {
                prop_assert_eq!(tables.is_vtep(address), fresh.is_vtep(address));
            }
            for id in (0..5).map(PortId) {
                prop_assert_eq!(tables.port(id), fresh.port(id));
            }
            prop_assert_eq!(tables.local(), fresh.local());
            prop_assert_eq!(fib.counts(), fresh_fib.counts());
            prop_assert_eq!(fib.digests(), model.digests());

            xdp.follow(next, adopted)?;
            if adopted {
                let prefixes: Vec<_> = fib.prefixes().collect();
                let mapped: Vec<_> = xdp.map.iter().map(|(prefix, mtu)| (prefix, *mtu)).collect();
                prop_assert_eq!(prefixes, mapped);
            }
        }
    }
}
