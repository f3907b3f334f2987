//! Which routes the dataplane is told, and why the others are left to the kernel. Pure.
//!
//! A packet that the dataplane sends must go where the kernel would send it, since the kernel
//! takes over whenever the dataplane ends. So the dataplane is told a native way only where the
//! kernel has it, too: one that control installs (`auto-direct-node-routes`, and routers that were
//! told), or one that the kernel's own table names.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use podway_proto::control::{NodeSpec, ViaSpec};
use podway_proto::types::{Mode, Via, Vni};

use crate::import;
use crate::index::Index;
use crate::kernel::DEVICE;
use crate::netlink::{Link, Lookup};
use crate::world::World;

/// Why packets of a route are the kernel's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KernelOnly {
    /// It is native and not inside this `native-routing-cidr`.
    OutsideNative(IpNet),
    /// The kernel has no way for it that leaves by an uplink.
    NoWay,
    /// Its router is not on an uplink.
    NotByUplink,
    /// The node is behind this router, so that it is no router itself.
    BehindRouter(IpAddr),
    /// It is IPv6, and the node's underlay address IPv4: no router for it.
    OtherVersion,
    /// The configuration has not this VNI any more.
    NoVni(Vni),
}

/// A route, and who takes its packets.
#[derive(Debug, Clone)]
pub struct Decision<'a> {
    /// What is reached.
    pub prefix: IpNet,
    /// The node that it leads to; `None` for one through a router or by several ways.
    pub node: Option<&'a NodeSpec>,
    /// Who takes its packets, or why that is the kernel's to say.
    pub via: Result<Via, KernelOnly>,
}

/// All routes to other nodes and routers. A route through a node that was never told has none.
pub fn decisions<'a>(world: &World<'a>, index: &Index) -> Vec<Decision<'a>> {
    let routes = world.desired.routes.iter();
    let added = routes.filter_map(|(prefix, spec)| added(world, *prefix, spec));
    let pod_cidrs = world.remote_nodes().flat_map(|node| {
        let cidrs = node.pod_cidrs.iter();
        cidrs.map(move |prefix| pod_cidr(world, *prefix, node))
    });
    let imported = world.import.prefixes();
    let imported = imported.filter_map(|prefix| imported_route(world, index, prefix));
    added.chain(pod_cidrs).chain(imported).collect()
}

/// The route to exactly `prefix`.
pub fn decision<'a>(world: &World<'a>, index: &Index, prefix: IpNet) -> Option<Decision<'a>> {
    let holder = index.node_of_cidr(prefix);
    let holder = holder.filter(|name| *name != world.settings.node_name);
    match holder.and_then(|name| world.desired.nodes.get(name)) {
        Some(node) => Some(pod_cidr(world, prefix, node)),
        None => match world.desired.routes.get(&prefix) {
            Some(spec) => added(world, prefix, spec),
            None => imported_route(world, index, prefix),
        },
    }
}

fn imported_route<'a>(world: &World<'a>, index: &Index, prefix: IpNet) -> Option<Decision<'a>> {
    let route = import::route(world, index, prefix)?;
    let router = |router: &import::Router<'_>| match router.tunnel {
        Some(node) => Ok(Via::Node {
            node: node.name.clone(),
            vni: None,
        }),
        None => check_native(world, prefix).map(|()| Via::Gateway {
            address: router.hop.gateway,
            interface: router.link.name.clone(),
        }),
    };
    let vias: Result<Vec<Via>, KernelOnly> = route.routers.iter().map(router).collect();
    Some(Decision {
        prefix,
        node: match route.routers[..] {
            [only] => only.tunnel,
            _ => None,
        },
        via: vias.and_then(|vias| together(vias).ok_or(KernelOnly::NoWay)),
    })
}

/// The ways as one; `None` for none.
fn together(vias: Vec<Via>) -> Option<Via> {
    let mut named: Vec<Via> = Vec::new();
    for via in vias {
        if !named.contains(&via) {
            named.push(via);
        }
    }
    if named.len() > 1 {
        Some(Via::Multipath { members: named })
    } else {
        named.pop()
    }
}

/// Of the next hops of a multipath route the first that is a native node whose routes are not
/// control's: then the whole route is as the kernel has it.
pub fn followed<'a>(world: &World<'a>, members: &[ViaSpec]) -> Option<&'a NodeSpec> {
    let mut members = members.iter();
    members.find_map(|member| match member {
        ViaSpec::Node { node, .. } if !world.settings.auto_direct_node_routes => {
            let node = world.desired.nodes.get(node)?;
            (world.mode(node) == Mode::Native).then_some(node)
        }
        _ => None,
    })
}

/// The next hops together. One by which the kernel has no route is left out here as well; one by which
/// the kernel has one that cannot be the dataplane's leaves all to the kernel, or its share would go
/// elsewhere.
fn multipath(world: &World<'_>, prefix: IpNet, members: &[ViaSpec]) -> Result<Via, KernelOnly> {
    if let Some(node) = followed(world, members) {
        return through_node(world, prefix, node, None);
    }
    let mut vias = Vec::new();
    for member in members {
        match added(world, prefix, member).map(|decision| decision.via) {
            Some(Ok(via)) => vias.push(via),
            Some(Err(why @ (KernelOnly::OutsideNative(_) | KernelOnly::NotByUplink))) => {
                return Err(why);
            }
            Some(Err(_)) | None => {}
        }
    }
    together(vias).ok_or(KernelOnly::NoWay)
}

fn added<'a>(world: &World<'a>, prefix: IpNet, spec: &ViaSpec) -> Option<Decision<'a>> {
    let (node, via) = match spec {
        ViaSpec::Multipath { members } => (None, multipath(world, prefix, members)),
        ViaSpec::Node { node, vni } => {
            let node = world.desired.nodes.get(node)?;
            (Some(node), through_node(world, prefix, node, *vni))
        }
        ViaSpec::Gateway { .. } => (None, through_router(world, prefix, spec)),
    };
    Some(Decision { prefix, node, via })
}

fn pod_cidr<'a>(world: &World<'a>, prefix: IpNet, node: &'a NodeSpec) -> Decision<'a> {
    Decision {
        prefix,
        node: Some(node),
        via: through_node(world, prefix, node, None),
    }
}

/// Who takes packets to `prefix` behind `node`, in tunnels by those of `vni`.
///
/// # Errors
/// Why that is the kernel's to say.
pub fn through_node(
    world: &World<'_>,
    prefix: IpNet,
    node: &NodeSpec,
    vni: Option<Vni>,
) -> Result<Via, KernelOnly> {
    let vni = world.told_vni(vni);
    if let Some(vni) = vni
        && !world.settings.also_vnis.contains(&vni)
    {
        return Err(KernelOnly::NoVni(vni));
    }
    if world.mode(node) == Mode::Native {
        check_native(world, prefix)?;
        if world.settings.auto_direct_node_routes {
            let link = direct(world, prefix, node)?;
            let router = node.router_to(prefix);
            if router != node.underlay {
                let link = world.observed.link(link).ok_or(KernelOnly::NoWay)?;
                return Ok(Via::Gateway {
                    address: router,
                    interface: link.name.clone(),
                });
            }
        } else {
            let (link, way) = kernel_way(world, prefix).ok_or(KernelOnly::NoWay)?;
            return Ok(Via::Gateway {
                // On the link itself the node is who answers for its pods.
                address: way.gateway.unwrap_or(node.router_to(prefix)),
                interface: link.name.clone(),
            });
        }
    }
    Ok(Via::Node {
        node: node.name.clone(),
        vni: vni.filter(|_| world.mode(node) == Mode::Vxlan),
    })
}

/// The link, by index, on which `node` is the router to `prefix`: the route that
/// `auto-direct-node-routes` gives the kernel, and by it the dataplane.
///
/// # Errors
/// Why there is none.
pub fn direct(world: &World<'_>, prefix: IpNet, node: &NodeSpec) -> Result<u32, KernelOnly> {
    let node = node.router_to(prefix);
    let way = world.way(node).ok_or(KernelOnly::NoWay)?;
    match way.gateway {
        Some(router) => Err(KernelOnly::BehindRouter(router)),
        // IPv4 by an IPv6 router there is (RFC 5549).
        None if prefix.addr().is_ipv6() && node.is_ipv4() => Err(KernelOnly::OtherVersion),
        None => Ok(way.link),
    }
}

fn through_router(world: &World<'_>, prefix: IpNet, spec: &ViaSpec) -> Result<Via, KernelOnly> {
    check_native(world, prefix)?;
    match world.via(spec) {
        Some(Via::Gateway { interface, .. }) if !world.is_uplink(&interface) => {
            Err(KernelOnly::NotByUplink)
        }
        Some(via) => Ok(via),
        None => Err(KernelOnly::NoWay),
    }
}

fn check_native(world: &World<'_>, prefix: IpNet) -> Result<(), KernelOnly> {
    match world.settings.native_routing_cidr(prefix) {
        Some(cidr) if !cidr.contains(&prefix) => Err(KernelOnly::OutsideNative(cidr)),
        _ => Ok(()),
    }
}

/// The kernel's own way to `prefix`, if it leaves by an uplink.
pub fn kernel_way<'a>(world: &World<'a>, prefix: IpNet) -> Option<(&'a Link, &'a Lookup)> {
    let way = world.way(first_host(prefix))?;
    let link = world.observed.link(way.link)?;
    let by_uplink = link.name != DEVICE && world.is_uplink(&link.name);
    by_uplink.then_some((link, way))
}

/// The addresses whose ways say where the prefixes of native nodes lead.
pub fn needed_ways(world: &World<'_>, index: &Index) -> Vec<IpAddr> {
    if world.settings.auto_direct_node_routes {
        return Vec::new();
    }
    let native = world
        .remote_nodes()
        .filter(|node| world.mode(node) == Mode::Native);
    let prefixes = native.flat_map(|node| prefixes_of(index, node));
    prefixes.map(first_host).collect()
}

/// The first address of `prefix` that a host may have: not the network's own (RFC 4291 section
/// 2.6.1 for IPv6), unless the prefix has no more than two addresses (RFC 3021, RFC 6164).
pub fn first_host(prefix: IpNet) -> IpAddr {
    let skip = u8::from(prefix.max_prefix_len() - prefix.prefix_len() > 1);
    match prefix.network() {
        IpAddr::V4(a) => Ipv4Addr::from_bits(a.to_bits() | u32::from(skip)).into(),
        IpAddr::V6(a) => Ipv6Addr::from_bits(a.to_bits() | u128::from(skip)).into(),
    }
}

/// Prefixes that one sentence names at most.
const MOST_NAMED: usize = 8;

/// What keeps native routes from the dataplane, one sentence each with the remedy. Costs what there
/// are of native routes, not of tunnels.
pub fn hints(world: &World<'_>, index: &Index) -> Vec<String> {
    let is_native = |node: &&NodeSpec| world.mode(node) == Mode::Native;
    let is_left = |prefix: &IpNet, why: KernelOnly| {
        let decision = decision(world, index, *prefix);
        decision.is_some_and(|decision| decision.via == Err(why))
    };
    let mut hints = Vec::new();
    for node in world.remote_nodes().filter(is_native) {
        hints.extend(node_hints(world, index, node));
    }
    let told = index.uncommon(world.desired);
    let without = told.filter(|(_, spec)| spec.members().iter().any(|via| has_no_vni(world, via)));
    if let Some(prefixes) = named(without.map(|(prefix, _)| prefix)) {
        hints.push(format!(
            "{prefixes}: by a VNI that the configuration does not name; add it to also-vnis"
        ));
    }
    for (name, cidr) in [
        (
            "ipv4",
            world.settings.ipv4_native_routing_cidr.map(IpNet::V4),
        ),
        (
            "ipv6",
            world.settings.ipv6_native_routing_cidr.map(IpNet::V6),
        ),
    ] {
        let Some(cidr) = cidr else { continue };
        let routers = index.routers().flat_map(|(_, prefixes)| prefixes).copied();
        let nodes = world.remote_nodes().filter(is_native);
        let native = routers
            .chain(nodes.flat_map(|node| prefixes_of(index, node)))
            .chain(world.import.prefixes());
        let outside = native.filter(|p| is_left(p, KernelOnly::OutsideNative(cidr)));
        if let Some(prefixes) = named(outside) {
            hints.push(format!(
                "{prefixes}: native and not inside {name}-native-routing-cidr {cidr}, so left to \
                 the kernel; widen it to have Podway send them"
            ));
        }
    }
    hints
}

/// Whether a next hop is by a VNI that is not configured.
pub fn has_no_vni(world: &World<'_>, next_hop: &ViaSpec) -> bool {
    match next_hop {
        ViaSpec::Node { vni: Some(vni), .. } => world.settings.vnis().all(|known| known != *vni),
        _ => false,
    }
}

/// The same of the routes through one native node.
fn node_hints(world: &World<'_>, index: &Index, node: &NodeSpec) -> Vec<String> {
    let left: Vec<(IpNet, KernelOnly)> = prefixes_of(index, node)
        .filter_map(|prefix| {
            let why = decision(world, index, prefix)?.via.err()?;
            Some((prefix, why))
        })
        .collect();
    let of = |why: KernelOnly| {
        let of = left.iter().filter(|(_, found)| *found == why);
        named(of.map(|(prefix, _)| *prefix))
    };
    let name = &node.name;
    let mut hints = Vec::new();
    // Where it is on, it is the node itself that there is no way to, which is told for every mode.
    if !world.settings.auto_direct_node_routes
        && let Some(prefixes) = of(KernelOnly::NoWay)
    {
        hints.push(format!(
            "node {name} is native, auto-direct-node-routes is off and the kernel has no route by \
             an uplink to {prefixes}: set it or add the route"
        ));
    }
    let routers = node
        .underlays()
        .filter_map(|address| world.way(address)?.gateway);
    for router in routers {
        let Some(prefixes) = of(KernelOnly::BehindRouter(router)) else {
            continue;
        };
        hints.push(format!(
            "node {name} is behind the router {router}, so auto-direct-node-routes cannot serve \
             {prefixes}; set it with --mode vxlan, or turn that off and let a routing daemon \
             install routes"
        ));
    }
    if let Some(prefixes) = of(KernelOnly::OtherVersion) {
        hints.push(format!(
            "{prefixes}: IPv6 cannot be routed by the IPv4 underlay address of node {name}; tell its \
             IPv6 one with --underlay6, or set the node with --mode vxlan"
        ));
    }
    hints
}

/// All that is reached through a node, imported routes aside.
fn prefixes_of<'a>(index: &'a Index, node: &'a NodeSpec) -> impl Iterator<Item = IpNet> + 'a {
    let cidrs = node.pod_cidrs.iter().copied();
    cidrs.chain(index.routes_by_node(&node.name))
}

/// The prefixes as a list; `None` when there are none.
fn named(mut prefixes: impl Iterator<Item = IpNet>) -> Option<String> {
    let first: Vec<String> = prefixes
        .by_ref()
        .take(MOST_NAMED)
        .map(|prefix| prefix.to_string())
        .collect();
    let list = first.join(", ");
    match (first.is_empty(), prefixes.count()) {
        (true, _) => None,
        (false, 0) => Some(list),
        (false, rest) => Some(format!("{list} and {rest} more")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::Event;
    use crate::observed::tests::link;
    use crate::world::tests::Fixture;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    fn way(link: u32, gateway: Option<&str>) -> Option<Lookup> {
        Some(Lookup {
            link,
            gateway: gateway.map(ip),
            source: None,
            mtu: None,
            expires: None,
        })
    }

    fn via(fixture: &Fixture, prefix: &str) -> Result<Via, KernelOnly> {
        let all = decisions(&fixture.world(), &fixture.index());
        let found = all.into_iter().find(|d| d.prefix == net(prefix));
        found.unwrap().via
    }

    fn native() -> Fixture {
        let mut fixture = Fixture::new();
        fixture.desired.nodes.get_mut("b").unwrap().mode = Some(Mode::Native);
        fixture
    }

    fn router(address: &str, interface: &str) -> Result<Via, KernelOnly> {
        Ok(Via::Gateway {
            address: ip(address),
            interface: interface.into(),
        })
    }

    #[test]
    fn a_vni_is_told_where_it_says_something() {
        let mut fixture = Fixture::new();
        let vni = Vni::try_from(77).unwrap();
        let told = |fixture: &mut Fixture, vni| {
            let node = ViaSpec::Node {
                node: "b".into(),
                vni,
            };
            fixture.desired.routes.insert(net("10.8.0.0/16"), node);
            via(fixture, "10.8.0.0/16")
        };
        let b = |vni| {
            Ok(Via::Node {
                node: "b".into(),
                vni,
            })
        };
        assert_eq!(told(&mut fixture, Some(Vni::DEFAULT)), b(None));
        assert_eq!(told(&mut fixture, Some(vni)), Err(KernelOnly::NoVni(vni)));
        assert_eq!(
            hints(&fixture.world(), &fixture.index()),
            ["10.8.0.0/16: by a VNI that the configuration does not name; add it to also-vnis"]
        );
        fixture.settings.also_vnis = vec![vni];
        assert_eq!(told(&mut fixture, Some(vni)), b(Some(vni)));
        fixture.settings.auto_direct_node_routes = true;
        fixture.desired.nodes.get_mut("b").unwrap().mode = Some(Mode::Native);
        assert_eq!(told(&mut fixture, Some(vni)), b(None));
    }

    #[test]
    fn a_native_node_follows_the_kernels_routes() {
        let mut fixture = native();
        let world = fixture.world();
        assert_eq!(
            needed_ways(&world, &fixture.index()),
            [ip("10.0.1.1"), ip("fd00:1::1")]
        );
        assert_eq!(via(&fixture, "10.0.1.0/24"), Err(KernelOnly::NoWay));
        assert_eq!(
            hints(&fixture.world(), &fixture.index()),
            [
                "node b is native, auto-direct-node-routes is off and the kernel has no route by \
                 an uplink to 10.0.1.0/24, fd00:1::/64: set it or add the route"
            ]
        );
        fixture
            .ways
            .insert(ip("10.0.1.1"), way(2, Some("192.168.1.254")));
        fixture
            .ways
            .insert(ip("fd00:1::1"), way(2, Some("fe80::9")));
        assert_eq!(
            via(&fixture, "10.0.1.0/24"),
            router("192.168.1.254", "eth0")
        );
        assert_eq!(via(&fixture, "fd00:1::/64"), router("fe80::9", "eth0"));
        assert_eq!(
            hints(&fixture.world(), &fixture.index()),
            Vec::<String>::new()
        );
        fixture.ways.insert(ip("10.0.1.1"), way(2, None));
        assert_eq!(via(&fixture, "10.0.1.0/24"), router("192.168.1.2", "eth0"));
        // By the tunnel's device or a link that is no uplink: the kernel's.
        fixture.observed.apply(Event::Link(link(9, DEVICE)));
        for index in [3, 9] {
            fixture.ways.insert(ip("10.0.1.1"), way(index, None));
            assert_eq!(via(&fixture, "10.0.1.0/24"), Err(KernelOnly::NoWay));
        }
    }

    #[test]
    fn what_control_routes_itself_needs_no_way() {
        let mut fixture = native();
        fixture.settings.auto_direct_node_routes = true;
        let b = Ok(Via::Node {
            node: "b".into(),
            vni: None,
        });
        assert_eq!(via(&fixture, "10.0.1.0/24"), b);
        assert!(needed_ways(&fixture.world(), &fixture.index()).is_empty());
        let fixture = Fixture::new();
        assert_eq!(via(&fixture, "10.0.1.0/24"), b, "a tunnel");
        assert!(needed_ways(&fixture.world(), &fixture.index()).is_empty());
    }

    #[test]
    fn ipv6_goes_by_the_second_underlay_address() {
        let mut fixture = native();
        fixture.settings.auto_direct_node_routes = true;
        let node = fixture.desired.nodes.get_mut("b").unwrap();
        node.underlay6 = Some("fd77::2".parse().unwrap());
        let world = fixture.world();
        assert!(world.needed_ways(&fixture.index()).contains(&ip("fd77::2")));
        assert_eq!(via(&fixture, "fd00:1::/64"), Err(KernelOnly::NoWay));
        fixture.ways.insert(ip("fd77::2"), way(2, None));
        assert_eq!(via(&fixture, "fd00:1::/64"), router("fd77::2", "eth0"));
        let b = Ok(Via::Node {
            node: "b".into(),
            vni: None,
        });
        assert_eq!(via(&fixture, "10.0.1.0/24"), b);
        let index = fixture.index();
        let route = crate::kernel::route(
            &fixture.world(),
            &index,
            &crate::kernel::Devices::new(),
            net("fd00:1::/64"),
        );
        let route = route.unwrap().unwrap();
        assert_eq!((route.gateway, route.link), (Some(ip("fd77::2")), 2));
        fixture
            .ways
            .insert(ip("fd77::2"), way(2, Some("fd77::254")));
        let behind = Err(KernelOnly::BehindRouter(ip("fd77::254")));
        assert_eq!(via(&fixture, "fd00:1::/64"), behind);
        let said = hints(&fixture.world(), &fixture.index());
        assert!(said[0].contains("router fd77::254"), "{said:?}");
        // In a tunnel it means nothing.
        fixture.desired.nodes.get_mut("b").unwrap().mode = Some(Mode::Vxlan);
        assert_eq!(via(&fixture, "fd00:1::/64"), b);
    }

    #[test]
    fn what_control_cannot_route_is_not_told_and_named() {
        let mut fixture = native();
        fixture.settings.auto_direct_node_routes = true;
        let b = Ok(Via::Node {
            node: "b".into(),
            vni: None,
        });
        let hints = |fixture: &Fixture| hints(&fixture.world(), &fixture.index());
        assert_eq!(via(&fixture, "10.0.1.0/24"), b);
        assert_eq!(via(&fixture, "fd00:1::/64"), Err(KernelOnly::OtherVersion));
        assert_eq!(
            hints(&fixture),
            [
                "fd00:1::/64: IPv6 cannot be routed by the IPv4 underlay address of node b; tell its \
                 IPv6 one with --underlay6, or set the node with --mode vxlan"
            ]
        );
        let underlay = ip("192.168.1.2");
        let gateway = "192.168.1.254";
        fixture.ways.insert(underlay, way(2, Some(gateway)));
        let behind = Err(KernelOnly::BehindRouter(ip(gateway)));
        for prefix in ["10.0.1.0/24", "fd00:1::/64"] {
            assert_eq!(via(&fixture, prefix), behind, "{prefix}");
        }
        assert_eq!(
            hints(&fixture),
            [
                "node b is behind the router 192.168.1.254, so auto-direct-node-routes cannot serve \
                 10.0.1.0/24, fd00:1::/64; set it with --mode vxlan, or turn that off and let a \
                 routing daemon install routes"
            ]
        );
        fixture.ways.insert(underlay, None);
        assert_eq!(via(&fixture, "10.0.1.0/24"), Err(KernelOnly::NoWay));
        assert_eq!(hints(&fixture), Vec::<String>::new());
        // By an IPv6 underlay both go.
        let node = fixture.desired.nodes.get_mut("b").unwrap();
        node.underlay = ip("fd00:9::2");
        fixture.ways.insert(ip("fd00:9::2"), way(2, None));
        for prefix in ["10.0.1.0/24", "fd00:1::/64"] {
            assert_eq!(via(&fixture, prefix), b, "{prefix}");
        }
        assert_eq!(hints(&fixture), Vec::<String>::new());
    }

    #[test]
    fn native_routes_outside_the_native_cidr_are_the_kernels() {
        let mut fixture = native();
        fixture.settings.auto_direct_node_routes = true;
        let gateway = ViaSpec::Gateway {
            address: ip("192.168.1.2"),
            interface: Some("eth0".into()),
        };
        for prefix in ["10.9.0.0/16", "172.16.0.0/12"] {
            let routes = &mut fixture.desired.routes;
            routes.insert(net(prefix), gateway.clone());
        }
        let cidr = net("10.9.0.0/16");
        fixture.settings.ipv4_native_routing_cidr = Some("10.9.0.0/16".parse().unwrap());
        let outside = Err(KernelOnly::OutsideNative(cidr));
        assert_eq!(via(&fixture, "10.9.0.0/16"), router("192.168.1.2", "eth0"));
        assert_eq!(via(&fixture, "172.16.0.0/12"), outside);
        assert_eq!(via(&fixture, "10.0.1.0/24"), outside);
        let b = Ok(Via::Node {
            node: "b".into(),
            vni: None,
        });
        // A way by which there are routes of both versions.
        let underlay = ip("fd00:9::2");
        fixture.desired.nodes.get_mut("b").unwrap().underlay = underlay;
        fixture.ways.insert(underlay, way(2, None));
        assert_eq!(via(&fixture, "fd00:1::/64"), b, "the other IP version");
        assert_eq!(
            hints(&fixture.world(), &fixture.index()),
            [
                "172.16.0.0/12, 10.0.1.0/24: native and not inside ipv4-native-routing-cidr \
                 10.9.0.0/16, so left to the kernel; widen it to have Podway send them"
            ]
        );
        fixture.desired.nodes.get_mut("b").unwrap().mode = Some(Mode::Vxlan);
        assert_eq!(via(&fixture, "10.0.1.0/24"), b, "a tunnel is not native");
        fixture.settings.ipv6_native_routing_cidr = Some("fd00:2::/64".parse().unwrap());
        fixture.desired.nodes.get_mut("b").unwrap().mode = Some(Mode::Native);
        assert_eq!(
            via(&fixture, "fd00:1::/64"),
            Err(KernelOnly::OutsideNative(net("fd00:2::/64")))
        );
    }

    #[test]
    fn a_multipath_route_goes_by_all_that_there_is_a_way_by() {
        let mut fixture = Fixture::new();
        let by = |address: &str, interface: Option<&str>| ViaSpec::Gateway {
            address: ip(address),
            interface: interface.map(str::to_owned),
        };
        let b = || ViaSpec::Node {
            node: "b".into(),
            vni: None,
        };
        let told = |fixture: &mut Fixture, members: Vec<ViaSpec>| {
            let members = ViaSpec::Multipath { members };
            fixture.desired.routes.insert(net("10.9.0.0/16"), members);
            via(fixture, "10.9.0.0/16")
        };
        let node = || Via::Node {
            node: "b".into(),
            vni: None,
        };
        let both = |first, second: Result<Via, KernelOnly>| {
            let members = vec![first, second.unwrap()];
            Ok(Via::Multipath { members })
        };
        let mixed = vec![b(), by("192.168.1.9", Some("eth0"))];
        assert_eq!(
            told(&mut fixture, mixed.clone()),
            both(node(), router("192.168.1.9", "eth0"))
        );
        // The second one's link is not known yet; and then it is the first one again.
        let waiting = vec![b(), by("192.168.1.9", None)];
        assert_eq!(told(&mut fixture, waiting.clone()), Ok(node()));
        fixture.ways.insert(ip("192.168.1.9"), way(2, None));
        assert_eq!(
            told(&mut fixture, waiting),
            both(node(), router("192.168.1.9", "eth0"))
        );
        let same = vec![by("192.168.1.9", Some("eth0")), by("192.168.1.9", None)];
        assert_eq!(told(&mut fixture, same), router("192.168.1.9", "eth0"));
        let no_uplink = vec![b(), by("192.168.1.9", Some("veth-a"))];
        assert_eq!(told(&mut fixture, no_uplink), Err(KernelOnly::NotByUplink));
        // A native node's routes are the operator's, and so is one that it is a part of.
        fixture.desired.nodes.get_mut("b").unwrap().mode = Some(Mode::Native);
        assert_eq!(told(&mut fixture, mixed.clone()), Err(KernelOnly::NoWay));
        fixture
            .ways
            .insert(ip("10.9.0.1"), way(2, Some("192.168.1.254")));
        assert_eq!(
            told(&mut fixture, mixed.clone()),
            router("192.168.1.254", "eth0")
        );
        fixture.settings.auto_direct_node_routes = true;
        assert_eq!(
            told(&mut fixture, mixed.clone()),
            both(node(), router("192.168.1.9", "eth0"))
        );
        fixture.settings.ipv4_native_routing_cidr = Some("10.8.0.0/16".parse().unwrap());
        let outside = Err(KernelOnly::OutsideNative(net("10.8.0.0/16")));
        assert_eq!(told(&mut fixture, mixed), outside);
    }

    #[test]
    fn the_first_host_is_not_the_network() {
        for (prefix, host) in [
            ("10.0.1.0/24", "10.0.1.1"),
            ("10.0.1.2/31", "10.0.1.2"),
            ("10.0.1.2/32", "10.0.1.2"),
            ("fd00:1::/64", "fd00:1::1"),
            ("fd00:1::2/127", "fd00:1::2"),
            ("fd00:1::2/128", "fd00:1::2"),
        ] {
            assert_eq!(first_host(net(prefix)), ip(host), "{prefix}");
        }
    }
}
