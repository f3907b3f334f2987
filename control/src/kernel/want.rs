//! Which kernel objects there should be. Pure.
//!
//! One VXLAN device serves all remote nodes, and one for each further VNI the routes that name it. A node's pods are reached by a route through the
//! first address of its PodCIDR, which is an address of the VXLAN device there; that address has
//! a permanent neighbour with the node's VTEP MAC, and the MAC a forwarding entry with the node's
//! underlay address. So the kernel never has to resolve or learn anything on the device.
//!
//! This node's own PodCIDRs are unreachable but for the pods that are here, whose routes are longer.
//! Otherwise a packet for a pod that has gone would follow the default route, natively back to where
//! it came from, time and again, and out of a tunnel to the underlay.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv6Addr};

use ipnet::IpNet;
use podway_proto::control::{NodeSpec, PortRoleSpec, ViaSpec};
use podway_proto::types::{MacAddr, Mode, Vni};

use crate::import::{self, Imported};
use crate::index::Index;
use crate::kernel::{Devices, device_name};
use crate::netlink::{Hop, Route, Vxlan};
use crate::routing;
use crate::world::{World, node_vtep_mac};

/// The VXLAN device as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceWant {
    /// Its name.
    pub name: String,
    /// MAC of this node's VTEP.
    pub mac: MacAddr,
    /// MTU in bytes.
    pub mtu: u32,
    /// Its parameters.
    pub vxlan: Vxlan,
}

impl DeviceWant {
    /// The devices as they should be; none while the uplink or its address is missing.
    pub fn all(world: &World<'_>) -> Vec<Self> {
        let vnis = world.settings.vnis();
        vnis.filter_map(|vni| Self::of(world, vni)).collect()
    }

    fn of(world: &World<'_>, vni: Vni) -> Option<Self> {
        let uplink = world.uplink()?;
        let local = world.underlay()?;
        Some(Self {
            name: device_name(world, vni),
            mac: world.vtep_mac()?,
            mtu: uplink.mtu.checked_sub(world.overhead())?,
            vxlan: Vxlan {
                vni: vni.get(),
                port: world.settings.vxlan_port,
                local: Some(local),
                link: uplink.index,
                learning: false,
                // RFC 7348, section 5, has every receiver take them; over IPv6 it is allowed since
                // RFC 6935, and the kernel wants to be told.
                zero_checksum_v6: local.is_ipv6(),
            },
        })
    }
}

/// All objects beside the device and the routes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Want {
    /// Indexes of the VXLAN devices. They have the same forwarding entries and neighbours.
    pub devices: BTreeSet<u32>,
    /// Addresses of each, without neighbours on the link. They are the source of what the node itself
    /// sends to pods of other nodes, and what those send answers to. A device without one would fail
    /// the kernel's check of sources wherever the way back is another (`no_addr` of
    /// `__fib_validate_source`, net/ipv4/fib_frontend.c).
    pub addresses: BTreeSet<IpAddr>,
    /// Prefixes to which packets are refused that no longer route has.
    pub unreachable: BTreeSet<IpNet>,
    /// Underlay addresses by VTEP MAC.
    pub fdb: BTreeMap<MacAddr, IpAddr>,
    /// Permanent neighbours on each device.
    pub neighbors: BTreeMap<IpAddr, MacAddr>,
    /// Neighbours by link that the kernel is to keep resolved.
    pub managed: BTreeSet<(u32, IpAddr)>,
    /// What cannot be expressed, one sentence each.
    pub errors: Vec<String>,
}

impl Want {
    /// The objects as they should be. Costs what there are of nodes, routers and ports, of routes
    /// through native nodes that follow the kernel's, and of uncommon ones.
    pub fn of(world: &World<'_>, index: &Index, devices: &Devices) -> Self {
        let mut want = Self {
            devices: devices.values().copied().collect(),
            ..Self::default()
        };
        let own = world.own().into_iter().flat_map(|own| &own.pod_cidrs);
        want.unreachable = own.copied().collect();
        if !want.devices.is_empty() {
            want.addresses = want.unreachable.iter().map(IpNet::network).collect();
        }
        // Not by a shorter prefix, which another VNI or no tunnel at all may carry.
        let told = index.uncommon(world.desired);
        let stranded = told.filter(|(_, spec)| {
            let mut members = spec.members().iter();
            members.all(|member| routing::has_no_vni(world, member))
        });
        want.unreachable.extend(stranded.map(|(prefix, _)| prefix));
        for ((address, interface), _) in index.routers() {
            let link = world.gateway_link(*address, interface.as_deref());
            if let Some(link) = link {
                want.manage(world, link.index, *address);
            }
        }
        for node in world.remote_nodes() {
            want.add_node(world, index, node);
        }
        for (interface, role) in &world.desired.ports {
            want.add_port(world, interface, role);
        }
        for (link, gateway) in world.import.routers() {
            let by_uplink = world.observed.link(link);
            if by_uplink.is_some_and(|link| world.is_uplink(&link.name)) {
                want.manage(world, link, gateway);
            }
        }
        want
    }

    fn add_node(&mut self, world: &World<'_>, index: &Index, node: &NodeSpec) {
        let second = |address: &IpAddr| *address != node.underlay;
        let native = world.mode(node) == Mode::Native;
        for address in node.underlays().filter(|a| native || !second(a)) {
            if let Some(way) = world.way(address) {
                self.manage(world, way.link, way.gateway.unwrap_or(address));
            }
        }
        match world.mode(node) {
            Mode::Vxlan if !self.devices.is_empty() => self.add_tunnel(world, index, node),
            // The route is the operator's or a routing daemon's; its next hop has to be resolved
            // for the dataplane to use it.
            Mode::Native if !world.settings.auto_direct_node_routes => {
                let added = index.routes_by_node(&node.name);
                for prefix in node.pod_cidrs.iter().copied().chain(added) {
                    if let Some((link, way)) = routing::kernel_way(world, prefix) {
                        self.manage(
                            world,
                            link.index,
                            way.gateway.unwrap_or(node.router_to(prefix)),
                        );
                    }
                }
            }
            _ => {}
        }
    }

    fn add_tunnel(&mut self, world: &World<'_>, index: &Index, node: &NodeSpec) {
        if is_of_other_version(world, node) {
            self.errors.push(format!(
                "node {}: its underlay address {} is of another IP version than this node's; \
                 tell an address of the same version",
                node.name, node.underlay
            ));
            return;
        }
        self.fdb.insert(node_vtep_mac(node), node.underlay);
        // Of the routes that were added one of each IP version says it all; IPv4 comes first.
        let mut added = index.routes_by_node(&node.name);
        let some = added.next().into_iter().chain(added.next_back());
        for prefix in some.chain(node.pod_cidrs.iter().copied()) {
            let gateway = tunnel_gateway(node, prefix);
            self.neighbors.insert(gateway, node_vtep_mac(node));
        }
    }

    fn add_port(&mut self, world: &World<'_>, interface: &str, role: &PortRoleSpec) {
        let PortRoleSpec::Pod {
            addresses,
            mac: None,
            ..
        } = role
        else {
            return;
        };
        if let Some(link) = world.observed.link_named(interface) {
            for address in addresses {
                self.manage(world, link.index, *address);
            }
        }
    }

    /// A link that is down has no neighbours.
    fn manage(&mut self, world: &World<'_>, link: u32, address: IpAddr) {
        if world.observed.link(link).is_some_and(|link| link.up) {
            self.managed.insert((link, address));
        }
    }
}

/// Our route to exactly `prefix`, as it should be; `None` for none.
///
/// # Errors
/// A sentence that says why there should be one and cannot.
pub fn route(
    world: &World<'_>,
    index: &Index,
    devices: &Devices,
    prefix: IpNet,
) -> Result<Option<Route>, String> {
    // Of several the pod's wins, as in the dataplane.
    let port = index.port_of(prefix);
    let link = port.and_then(|interface| world.observed.link_named(interface));
    if let Some(link) = link.filter(|link| link.up) {
        return Ok(Some(route_by(prefix, None, link.index, false)));
    }
    let device = devices.get(&world.settings.vni).copied();
    let holder = index.node_of_cidr(prefix);
    let holder = holder.and_then(|name| world.desired.nodes.get(name));
    match (holder, world.desired.routes.get(&prefix)) {
        (Some(node), _) if node.name == world.settings.node_name => Ok(None),
        (Some(node), _) => Ok(route_to_node(world, prefix, node, device)),
        (None, Some(spec)) => told_route(world, prefix, spec, devices),
        (None, None) => match import::route(world, index, prefix) {
            Some(imported) => Ok(imported_route(world, &imported, devices)),
            None => Ok(None),
        },
    }
}

fn imported_route(world: &World<'_>, imported: &Imported<'_>, devices: &Devices) -> Option<Route> {
    let device = devices.get(&world.settings.vni).copied();
    let (mut hops, mut mtus) = (Vec::new(), Vec::new());
    for router in &imported.routers {
        match router.tunnel {
            Some(node) => {
                let route = route_to_node(world, imported.prefix, node, device);
                hops.extend(route.iter().flat_map(Route::hops));
                mtus.extend(route.and_then(|route| route.mtu));
            }
            None if world.import.carries_out() => hops.push(router.hop),
            None => {}
        }
    }
    route_by_all(imported.prefix, hops, mtus)
}

fn told_route(
    world: &World<'_>,
    prefix: IpNet,
    spec: &ViaSpec,
    devices: &Devices,
) -> Result<Option<Route>, String> {
    match spec {
        ViaSpec::Node { node, vni } => {
            let node = world.desired.nodes.get(node);
            let device = devices.get(&vni.unwrap_or(world.settings.vni)).copied();
            Ok(node.and_then(|node| route_to_node(world, prefix, node, device)))
        }
        ViaSpec::Gateway { address, interface } => {
            match world.gateway_link(*address, interface.as_deref()) {
                // A link that was told counts, whatever its prefixes are.
                Some(link) if link.up => {
                    let onlink = interface.is_some();
                    Ok(Some(route_by(prefix, Some(*address), link.index, onlink)))
                }
                _ => Err(format!(
                    "route {prefix}: the router {address} is on no link that is up; name one with \
                     dev"
                )),
            }
        }
        ViaSpec::Multipath { members } => multipath(world, prefix, members, devices),
    }
}

/// By all that there can be a route by; others come when they can.
fn multipath(
    world: &World<'_>,
    prefix: IpNet,
    members: &[ViaSpec],
    devices: &Devices,
) -> Result<Option<Route>, String> {
    if routing::followed(world, members).is_some() {
        return Ok(None);
    }
    let (mut hops, mut mtus, mut complaint) = (Vec::new(), Vec::new(), None);
    for member in members {
        match told_route(world, prefix, member, devices) {
            Ok(route) => {
                hops.extend(route.iter().flat_map(Route::hops));
                mtus.extend(route.and_then(|route| route.mtu));
            }
            Err(text) => complaint = Some(text),
        }
    }
    match (route_by_all(prefix, hops, mtus), complaint) {
        (None, Some(complaint)) => Err(complaint),
        (route, _) => Ok(route),
    }
}

fn route_to_node(
    world: &World<'_>,
    prefix: IpNet,
    node: &NodeSpec,
    device: Option<u32>,
) -> Option<Route> {
    match world.mode(node) {
        Mode::Vxlan if is_of_other_version(world, node) => None,
        Mode::Vxlan => device.map(|device| {
            let gateway = tunnel_gateway(node, prefix);
            Route {
                mtu: tunnel_mtu(world, node),
                ..route_by(prefix, Some(gateway), device, true)
            }
        }),
        Mode::Native if world.settings.auto_direct_node_routes => {
            // Why there is none is told by the hints.
            let link = routing::direct(world, prefix, node).ok();
            link.map(|link| route_by(prefix, Some(node.router_to(prefix)), link, false))
        }
        // The operator's or a routing daemon's.
        Mode::Native => None,
    }
}

fn route_by(prefix: IpNet, gateway: Option<IpAddr>, link: u32, onlink: bool) -> Route {
    Route {
        prefix,
        gateway,
        link,
        onlink,
        also: Vec::new(),
        mtu: None,
    }
}

/// By several routers, with the least of what some of them carry.
fn route_by_all(prefix: IpNet, hops: Vec<Hop>, mtus: Vec<u32>) -> Option<Route> {
    let route = Route::by(prefix, hops)?;
    let mtu = mtus.into_iter().min();
    Some(Route { mtu, ..route })
}

/// What a tunnel over a path that carries less than the uplink carries itself, in bytes; `None` where
/// the device's own MTU does. The kernel makes what it forwards as large as route or device allow,
/// whatever it has learned of the path (`ip_dst_mtu_maybe_forward`, include/net/ip.h). Over IPv4 the
/// outer packets are cut on their way; no router cuts those of IPv6, and all that is large was lost.
fn tunnel_mtu(world: &World<'_>, node: &NodeSpec) -> Option<u32> {
    if node.underlay.is_ipv4() {
        return None;
    }
    let way = world.way(node.underlay)?;
    let path = way
        .mtu
        .or_else(|| Some(world.observed.link(way.link)?.mtu))?;
    let narrower = path < world.uplink()?.mtu;
    narrower.then(|| path.saturating_sub(world.overhead()))
}

/// Whether no tunnel from here can end at a node.
fn is_of_other_version(world: &World<'_>, node: &NodeSpec) -> bool {
    let underlay = world.underlay();
    underlay.is_some_and(|ours| ours.is_ipv4() != node.underlay.is_ipv4())
}

/// The neighbour on the VXLAN device that stands for `node` in a route to `prefix`: the first
/// address of the node's first PodCIDR of the same IP version, or of the PodCIDR that is routed.
/// A node without one gets the link-local address made from its VTEP MAC (RFC 4291 appendix A),
/// which IPv4 routes can name, too (RFC 5549).
fn tunnel_gateway(node: &NodeSpec, prefix: IpNet) -> IpAddr {
    if node.pod_cidrs.contains(&prefix) {
        return prefix.network();
    }
    let same_version = |cidr: &&IpNet| cidr.addr().is_ipv4() == prefix.addr().is_ipv4();
    match node.pod_cidrs.iter().find(same_version) {
        Some(cidr) => cidr.network(),
        None => {
            let [a, b, c, d, e, f] = node_vtep_mac(node).0;
            let word = |high, low| u16::from_be_bytes([high, low]);
            let (ab, cf, fd, ef) = (word(a ^ 2, b), word(c, 0xff), word(0xfe, d), word(e, f));
            Ipv6Addr::new(0xfe80, 0, 0, 0, ab, cf, fd, ef).into()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::{Event, Lookup};
    use crate::observed::tests::link;
    use crate::world::tests::Fixture;

    const DEVICE: u32 = 9;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn devices(device: Option<u32>) -> Devices {
        device
            .map(|index| (Vni::DEFAULT, index))
            .into_iter()
            .collect()
    }

    fn want_of(fixture: &Fixture, device: Option<u32>) -> Want {
        Want::of(&fixture.world(), &fixture.index(), &devices(device))
    }

    fn all_routes(fixture: &Fixture, device: Option<u32>) -> Vec<Result<Option<Route>, String>> {
        let (world, index) = (fixture.world(), fixture.index());
        let told = index.prefixes(world.desired);
        let prefixes: BTreeSet<IpNet> = told.chain(world.import.prefixes()).collect();
        let route = |prefix| route(&world, &index, &devices(device), prefix);
        prefixes.into_iter().map(route).collect()
    }

    /// The routes as `ip route` writes them.
    fn routes(fixture: &Fixture, device: Option<u32>) -> Vec<String> {
        let text = |route: &Route| {
            let via = route
                .gateway
                .map(|gateway| format!(" via {gateway}"))
                .unwrap_or_default();
            let onlink = |onlink: bool| if onlink { " onlink" } else { "" };
            let also = route.also.iter().map(|hop| {
                let onlink = onlink(hop.onlink);
                format!(" via {} dev {}{onlink}", hop.gateway, hop.link)
            });
            let (onlink, also) = (onlink(route.onlink), also.collect::<String>());
            format!("{}{via} dev {}{onlink}{also}", route.prefix, route.link)
        };
        let all = all_routes(fixture, device).into_iter();
        let all = all.filter_map(Result::unwrap);
        all.map(|route| text(&route)).collect()
    }

    #[test]
    fn a_tunnel_has_device_forwarding_neighbours_and_routes() {
        let fixture = Fixture::new();
        let world = fixture.world();
        let b = "02:50:c0:a8:01:02".parse().unwrap();
        assert_eq!(
            DeviceWant::all(&world),
            [DeviceWant {
                name: "podway.vx".into(),
                mac: "02:50:c0:a8:01:01".parse().unwrap(),
                mtu: 1450,
                vxlan: Vxlan {
                    vni: 1,
                    port: 4789,
                    local: Some(ip("192.168.1.1")),
                    link: 2,
                    learning: false,
                    zero_checksum_v6: false,
                },
            }]
        );
        let want = want_of(&fixture, Some(DEVICE));
        assert_eq!(want.addresses, BTreeSet::from([ip("10.0.0.0")]));
        let own = "10.0.0.0/24".parse().unwrap();
        assert_eq!(want.unreachable, BTreeSet::from([own]));
        assert_eq!(want.fdb, BTreeMap::from([(b, ip("192.168.1.2"))]));
        assert_eq!(
            want.neighbors,
            BTreeMap::from([(ip("10.0.1.0"), b), (ip("fd00:1::"), b)])
        );
        assert_eq!(
            want.managed,
            BTreeSet::from([(2, ip("192.168.1.2")), (3, ip("10.0.0.2"))])
        );
        assert_eq!(
            routes(&fixture, Some(DEVICE)),
            [
                "10.0.0.2/32 dev 3",
                "10.0.1.0/24 via 10.0.1.0 dev 9 onlink",
                "fd00:1::/64 via fd00:1:: dev 9 onlink",
            ]
        );
        assert_eq!(want.errors, Vec::<String>::new());
    }

    #[test]
    fn a_device_over_ipv6_takes_datagrams_without_checksum() {
        let mut fixture = Fixture::new();
        fixture.settings.underlay = Some(ip("fd77::1"));
        let want = DeviceWant::all(&fixture.world()).remove(0);
        assert!(want.vxlan.zero_checksum_v6);
        assert_eq!(want.mtu, 1430);
    }

    #[test]
    fn routes_through_a_tunnel_over_ipv6_tell_what_a_narrow_path_carries() {
        let mut fixture = Fixture::new();
        fixture.settings.underlay = Some(ip("fd77::1"));
        let far = ip("fd77::2");
        let node = fixture.desired.nodes.get_mut("b").unwrap();
        node.underlay = far;
        let several = ViaSpec::Multipath {
            members: vec![
                ViaSpec::Gateway {
                    address: ip("192.168.1.9"),
                    interface: Some("eth0".into()),
                },
                ViaSpec::Node {
                    node: "b".into(),
                    vni: None,
                },
            ],
        };
        let routes_told = &mut fixture.desired.routes;
        routes_told.insert("10.9.0.0/16".parse().unwrap(), several);
        let mut mtus = |mtu| {
            let way = Lookup {
                link: 2,
                gateway: None,
                source: None,
                mtu,
                expires: None,
            };
            fixture.ways.insert(far, Some(way));
            let all = all_routes(&fixture, Some(DEVICE)).into_iter();
            let tunnels = all
                .filter_map(Result::unwrap)
                .filter(|route| route.links().any(|link| link == DEVICE));
            tunnels.map(|route| route.mtu).collect::<Vec<_>>()
        };
        assert_eq!(mtus(None), [None; 3]);
        assert_eq!(mtus(Some(1400)), [Some(1330); 3]);
        assert_eq!(mtus(Some(1500)), [None; 3], "as much as the uplink");
    }

    #[test]
    fn each_vni_has_a_device_with_all_nodes_on_it() {
        let mut fixture = Fixture::new();
        let vni = Vni::try_from(77).unwrap();
        fixture.settings.also_vnis = vec![vni];
        let wanted = DeviceWant::all(&fixture.world());
        let named: Vec<_> = wanted.iter().map(|w| (&*w.name, w.vxlan.vni)).collect();
        assert_eq!(named, [("podway.vx", 1), ("podway.77", 77)]);
        let node = ViaSpec::Node {
            node: "b".into(),
            vni: Some(vni),
        };
        let prefix = "10.8.0.0/16".parse().unwrap();
        fixture.desired.routes.insert(prefix, node);
        let devices = Devices::from([(Vni::DEFAULT, DEVICE), (vni, 10)]);
        let (world, index) = (fixture.world(), fixture.index());
        let want = Want::of(&world, &index, &devices);
        assert_eq!(want.devices, BTreeSet::from([DEVICE, 10]));
        assert_eq!(want.unreachable, BTreeSet::from([own()]));
        let gateway = |prefix: &str| {
            let route = route(&world, &index, &devices, prefix.parse().unwrap());
            route.unwrap().map(|route| (route.link, route.gateway))
        };
        let by = Some(ip("10.0.1.0"));
        assert_eq!(gateway("10.8.0.0/16"), Some((10, by)));
        assert_eq!(gateway("10.0.1.0/24"), Some((DEVICE, by)));
        // Its configuration has gone.
        let devices = Devices::from([(Vni::DEFAULT, DEVICE)]);
        assert_eq!(route(&world, &index, &devices, prefix), Ok(None));
        fixture.settings.also_vnis = Vec::new();
        let want = Want::of(&fixture.world(), &fixture.index(), &devices);
        assert_eq!(want.unreachable, BTreeSet::from([own(), prefix]));
    }

    fn own() -> IpNet {
        "10.0.0.0/24".parse().unwrap()
    }

    #[test]
    fn native_routes_are_direct_or_the_operators() {
        let mut fixture = Fixture::new();
        fixture.desired.nodes.get_mut("b").unwrap().mode = Some(Mode::Native);
        assert_eq!(routes(&fixture, Some(DEVICE)), ["10.0.0.2/32 dev 3"]);
        fixture.settings.auto_direct_node_routes = true;
        let want = want_of(&fixture, Some(DEVICE));
        assert_eq!(
            routes(&fixture, Some(DEVICE)),
            ["10.0.0.2/32 dev 3", "10.0.1.0/24 via 192.168.1.2 dev 2"]
        );
        assert!(want.fdb.is_empty() && want.neighbors.is_empty());
        let router = Lookup {
            link: 2,
            gateway: Some(ip("192.168.1.254")),
            source: None,
            mtu: None,
            expires: None,
        };
        fixture.ways.insert(ip("192.168.1.2"), Some(router));
        let want = want_of(&fixture, Some(DEVICE));
        assert_eq!(routes(&fixture, Some(DEVICE)), ["10.0.0.2/32 dev 3"]);
        assert!(want.managed.contains(&(2, ip("192.168.1.254"))));
    }

    #[test]
    fn a_told_route_goes_through_a_node_or_a_router() {
        let mut fixture = Fixture::new();
        let node = ViaSpec::Node {
            node: "b".into(),
            vni: None,
        };
        let gateway = ViaSpec::Gateway {
            address: ip("192.168.1.9"),
            interface: Some("eth0".into()),
        };
        let routes_told = &mut fixture.desired.routes;
        routes_told.insert("10.8.0.0/16".parse().unwrap(), node.clone());
        routes_told.insert("10.9.0.0/16".parse().unwrap(), gateway);
        let want = want_of(&fixture, Some(DEVICE));
        assert_eq!(
            routes(&fixture, Some(DEVICE))[2..4],
            [
                "10.8.0.0/16 via 10.0.1.0 dev 9 onlink",
                "10.9.0.0/16 via 192.168.1.9 dev 2 onlink"
            ]
        );
        assert!(want.managed.contains(&(2, ip("192.168.1.9"))));
        fixture
            .desired
            .nodes
            .get_mut("b")
            .unwrap()
            .pod_cidrs
            .remove(0);
        let want = want_of(&fixture, Some(DEVICE));
        assert_eq!(
            routes(&fixture, Some(DEVICE))[1],
            "10.8.0.0/16 via fe80::50:c0ff:fea8:102 dev 9 onlink"
        );
        assert!(want.neighbors.contains_key(&ip("fe80::50:c0ff:fea8:102")));
    }

    #[test]
    fn a_multipath_route_has_all_that_can_be() {
        let mut fixture = Fixture::new();
        let node = ViaSpec::Node {
            node: "b".into(),
            vni: None,
        };
        let by = |last: u8, interface: &str| ViaSpec::Gateway {
            address: IpAddr::from([192, 168, 1, last]),
            interface: Some(interface.into()),
        };
        let members = vec![by(9, "eth0"), node, by(8, "veth-a")];
        fixture.desired.routes.insert(
            "10.9.0.0/16".parse().unwrap(),
            ViaSpec::Multipath { members },
        );
        let told = |fixture: &Fixture| routes(fixture, Some(DEVICE))[2].clone();
        assert_eq!(
            told(&fixture),
            "10.9.0.0/16 via 10.0.1.0 dev 9 onlink via 192.168.1.8 dev 3 onlink \
             via 192.168.1.9 dev 2 onlink"
        );
        let want = want_of(&fixture, Some(DEVICE));
        assert!(want.managed.contains(&(2, ip("192.168.1.9"))));
        let mut down = link(3, "veth-a");
        down.up = false;
        fixture.observed.apply(Event::Link(down));
        let all = routes(&fixture, Some(DEVICE));
        assert_eq!(
            all[1],
            "10.9.0.0/16 via 10.0.1.0 dev 9 onlink via 192.168.1.9 dev 2 onlink"
        );
        // Natively without routes of ours, a part of it is the operator's, and so all.
        fixture.desired.nodes.get_mut("b").unwrap().mode = Some(Mode::Native);
        assert_eq!(routes(&fixture, Some(DEVICE)), Vec::<String>::new());
        fixture.settings.auto_direct_node_routes = true;
        assert_eq!(
            routes(&fixture, Some(DEVICE))[1],
            "10.9.0.0/16 via 192.168.1.2 dev 2 via 192.168.1.9 dev 2 onlink"
        );
    }

    #[test]
    fn an_imported_route_is_carried_out_unless_the_kernel_has_it() {
        let mut fixture = Fixture::new();
        let routes_of = |fixture: &Fixture| {
            let want = want_of(fixture, Some(DEVICE));
            assert!(want.managed.contains(&(2, ip("192.168.1.9"))));
            routes(fixture, Some(DEVICE))
        };
        let both = || {
            vec![
                import::tests::route("10.0.8.0/24", 20, &["192.168.1.2"]),
                import::tests::route("10.0.0.128/25", 20, &["192.168.1.9", "192.168.1.8"]),
            ]
        };
        let told = [
            "10.0.0.2/32 dev 3",
            "10.0.1.0/24 via 10.0.1.0 dev 9 onlink",
            "fd00:1::/64 via fd00:1:: dev 9 onlink",
        ];
        fixture.import = import::tests::import("100", both());
        let imported = [
            "10.0.0.128/25 via 192.168.1.8 dev 2 via 192.168.1.9 dev 2",
            "10.0.8.0/24 via 10.0.1.0 dev 9 onlink",
        ];
        assert_eq!(
            routes_of(&fixture),
            [told[0], imported[0], told[1], imported[1], told[2]]
        );
        fixture.import = import::tests::import("'main'", both());
        assert_eq!(routes_of(&fixture), told);
    }

    #[test]
    fn a_link_that_is_down_carries_nothing() {
        let mut fixture = Fixture::new();
        let mut down = link(3, "veth-a");
        down.up = false;
        fixture.observed.apply(Event::Link(down));
        let want = want_of(&fixture, None);
        assert_eq!(routes(&fixture, None), Vec::<String>::new());
        assert_eq!(want.managed, BTreeSet::from([(2, ip("192.168.1.2"))]));
        assert_eq!(want.unreachable.len(), 1, "needs no link");
    }
}
