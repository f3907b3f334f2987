//! Answers to questions about how things are. Pure but for the switches of `/proc/sys`.

use std::net::IpAddr;

use ipnet::IpNet;
use podway_proto::control::{
    DataplaneLink, DriftStatus, HealthStatus, KernelStatus, NodeEntry, PortEntry, PortRoleSpec,
    RouteAnswer, RouteEntry, RouteOrigin, RouteTarget, Status, ViaSpec,
};
use podway_proto::types::Mode;
use podway_proto::{ErrorBody, ErrorCode};

use crate::facts::told_ports;
use crate::health::Health;
use crate::import;
use crate::index::Index;
use crate::kernel::{DEVICE, device_name};
use crate::observed::Observed;
use crate::routing;
use crate::world::{World, node_vtep_mac};

/// How this node is; `dataplane` and `drift` are what the link to it says.
pub fn status(
    world: &World<'_>,
    index: &Index,
    dataplane: DataplaneLink,
    drift: DriftStatus,
    kernel_errors: Vec<String>,
    health: Option<HealthStatus>,
) -> Status {
    let uplink = world.uplink();
    let (pod_mtu, pod_mtu_by) = pod_mtu(world).unzip();
    Status {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        pid: std::process::id(),
        log: podway_proto::log::current(),
        node: world.settings.node_name.clone(),
        pod_cidrs: world
            .own()
            .map(|own| own.pod_cidrs.clone())
            .unwrap_or_default(),
        mode: world.settings.default_mode,
        underlay: world.underlay(),
        vtep_mac: world.vtep_mac(),
        vni: world.settings.vni,
        also_vnis: world.settings.also_vnis.clone(),
        vxlan_port: world.settings.vxlan_port,
        uplink: world.uplink_name().map(str::to_owned),
        uplink_mtu: uplink.map(|link| link.mtu),
        pod_mtu,
        pod_mtu_by: pod_mtu_by.flatten(),
        dataplane,
        drift,
        kernel: KernelStatus {
            device: DEVICE.to_owned(),
            in_sync: kernel_errors.is_empty() && devices_are_there(world),
            errors: kernel_errors,
        },
        translates: world.chains.translates,
        defragments: world.defragments(),
        health,
        hints: hints(world, index),
    }
}

fn devices_are_there(world: &World<'_>) -> bool {
    let mut vnis = world.settings.vnis();
    vnis.all(|vni| {
        world
            .observed
            .link_named(&device_name(world, vni))
            .is_some()
    })
}

/// The largest packets in bytes that fit each way to another node, and the node whose path takes less
/// than the uplink would.
fn pod_mtu(world: &World<'_>) -> Option<(u32, Option<String>)> {
    let uplink = world.uplink()?.mtu;
    let less = |mtu: u32, mode| match mode {
        Mode::Vxlan => mtu.saturating_sub(world.overhead()),
        Mode::Native => mtu,
    };
    let ways = world.remote_nodes().map(|node| {
        let mode = world.mode(node);
        let path = world
            .path(node.underlay)
            .map_or(uplink, |path| path.mtu.into());
        let narrow = path < uplink;
        (less(path, mode), narrow.then(|| node.name.clone()))
    });
    let alone = || (less(uplink, world.settings.default_mode), None);
    Some(ways.min_by_key(|(mtu, _)| *mtu).unwrap_or_else(alone))
}

/// What is missing, one sentence each with the remedy.
fn hints(world: &World<'_>, index: &Index) -> Vec<String> {
    let mut hints = Vec::new();
    let name = &world.settings.node_name;
    match (world.uplink_name(), world.uplink()) {
        (None, _) => hints.push(
            "there is no uplink: name it in the configuration (uplink) or with podway port add IF \
             --uplink"
                .to_owned(),
        ),
        (Some(uplink), None) => hints.push(format!(
            "the uplink {uplink} does not exist yet; it is taken up when it appears"
        )),
        (Some(uplink), Some(link)) if !link.up => {
            hints.push(format!("the uplink is down: ip link set {uplink} up"));
        }
        _ => {}
    }
    match world.own() {
        None => hints.push(format!(
            "this node's own PodCIDRs are not known: podway node set {name} --underlay IP \
             --pod-cidr CIDR"
        )),
        Some(own) => {
            if world.underlay() != Some(own.underlay) {
                hints.push(format!(
                    "this node was told as {}, and its underlay-address is {}; make them agree",
                    own.underlay,
                    world
                        .underlay()
                        .map_or_else(|| "not known".to_owned(), |a| a.to_string())
                ));
            }
            if world.vtep_mac() != Some(node_vtep_mac(own)) {
                hints.push(format!(
                    "other nodes take this node's VTEP MAC for {}; tell them vtep-mac of the \
                     configuration with podway node set {name} --vtep-mac",
                    node_vtep_mac(own)
                ));
            }
        }
    }
    if let Some(underlay) = world.underlay()
        && !world.observed.addresses().any(|a| a.address == underlay)
    {
        hints.push(format!(
            "the underlay address {underlay} is on no link of this node"
        ));
    }
    let nodes = world.remote_nodes();
    let addresses = nodes.flat_map(|node| node.underlays().map(move |address| (node, address)));
    for (node, underlay) in addresses.filter(|(_, address)| world.path(*address).is_none()) {
        let name = &node.name;
        hints.push(format!(
            "the kernel has no route to node {name}: ip route get {underlay}"
        ));
    }
    hints.extend(routing::hints(world, index));
    hints.extend(missing_routers(world, index));
    for (version, is_v4) in [("ipv4", true), ("ipv6", false)] {
        let told = index.uncommon(world.desired);
        let told = told.filter(|(_, via)| via.is_multipath());
        let imported = world.import.multipath();
        let mut prefixes = told.map(|(prefix, _)| prefix).chain(imported);
        let setting = "fib_multipath_hash_policy";
        if prefixes.any(|prefix| prefix.addr().is_ipv4() == is_v4)
            && switched_off(&format!("/proc/sys/net/{version}/{setting}"))
        {
            hints.push(format!(
                "for routes with several next hops the kernel underneath tells flows apart by \
                 addresses alone: sysctl -w net.{version}.{setting}=1"
            ));
        }
    }
    if switched_off("/proc/sys/net/ipv4/ip_forward") {
        hints.push("the kernel does not forward IPv4: sysctl -w net.ipv4.ip_forward=1".to_owned());
    }
    if has_ipv6_pods(world) && switched_off("/proc/sys/net/ipv6/conf/all/forwarding") {
        hints.push(
            "the kernel does not forward IPv6: sysctl -w net.ipv6.conf.all.forwarding=1".to_owned(),
        );
    }
    hints
}

/// Routers of several that the kernel cannot use; their share goes by the others.
fn missing_routers(world: &World<'_>, index: &Index) -> Vec<String> {
    let told = index.uncommon(world.desired);
    let members =
        told.flat_map(|(prefix, via)| via.members().iter().map(move |member| (prefix, member)));
    let missing = members.filter_map(|(prefix, member)| match member {
        ViaSpec::Gateway { address, interface } => {
            let link = world.gateway_link(*address, interface.as_deref());
            let is_up = link.is_some_and(|link| link.up);
            (!is_up).then(|| {
                format!(
                    "route {prefix}: the router {address} is on no link that is up; its share goes \
                     by the others"
                )
            })
        }
        _ => None,
    });
    missing.collect()
}

/// Whether a switch of the kernel is there and off. The file shows the network namespace of the
/// process that reads it.
fn switched_off(path: &str) -> bool {
    std::fs::read_to_string(path).is_ok_and(|text| text.trim() == "0")
}

fn has_ipv6_pods(world: &World<'_>) -> bool {
    let is_v6 = |role: &PortRoleSpec| match role {
        PortRoleSpec::Pod { addresses, .. } => addresses.iter().any(IpAddr::is_ipv6),
        PortRoleSpec::Uplink { .. } => false,
    };
    world.desired.ports.values().any(is_v6)
        || world
            .own()
            .is_some_and(|own| own.pod_cidrs.iter().any(|cidr| cidr.addr().is_ipv6()))
}

/// The nodes by name.
pub fn nodes(world: &World<'_>, health: Option<&Health>) -> Vec<NodeEntry> {
    let entry = |node: &podway_proto::control::NodeSpec| {
        let local = node.name == world.settings.node_name;
        let path = world.path(node.underlay).filter(|_| !local);
        NodeEntry {
            name: node.name.clone(),
            local,
            underlay: node.underlay,
            underlay6: node.underlay6,
            pod_cidrs: node.pod_cidrs.clone(),
            vtep_mac: node_vtep_mac(node),
            mode: world.mode(node),
            next_hop_mac: path
                .as_ref()
                .and_then(|path| world.neighbor_mac(&path.interface, path.next_hop)),
            path,
            health: health.and_then(|health| health.of_node(&node.name)),
        }
    };
    world.desired.nodes.values().map(entry).collect()
}

/// All routes by prefix.
pub fn routes(world: &World<'_>, index: &Index) -> Vec<RouteEntry> {
    let mut routes = Vec::new();
    for (prefix, spec) in &world.desired.routes {
        routes.push(RouteEntry {
            prefix: *prefix,
            via: target(world, spec),
            origin: RouteOrigin::Added,
        });
    }
    for node in world.remote_nodes() {
        for prefix in &node.pod_cidrs {
            let via = RouteTarget::Node {
                node: node.name.clone(),
                vni: None,
            };
            routes.push(RouteEntry {
                prefix: *prefix,
                via,
                origin: RouteOrigin::PodCidr,
            });
        }
    }
    for (interface, role) in &world.desired.ports {
        let PortRoleSpec::Pod { addresses, .. } = role else {
            continue;
        };
        for address in addresses {
            let via = RouteTarget::Pod {
                interface: interface.clone(),
            };
            let prefix = IpNet::from(*address);
            routes.push(RouteEntry {
                prefix,
                via,
                origin: RouteOrigin::Pod,
            });
        }
    }
    let imported = world.import.prefixes();
    let imported = imported.filter_map(|prefix| import::route(world, index, prefix));
    routes.extend(imported.map(|route| RouteEntry {
        prefix: route.prefix,
        via: imported_target(&route.routers),
        origin: RouteOrigin::Kernel,
    }));
    routes.sort_by_key(|route| route.prefix);
    routes
}

fn imported_target(routers: &[import::Router<'_>]) -> RouteTarget {
    let target = |router: &import::Router<'_>| match router.tunnel {
        Some(node) => RouteTarget::Node {
            node: node.name.clone(),
            vni: None,
        },
        None => RouteTarget::Gateway {
            address: router.hop.gateway,
            interface: Some(router.link.name.clone()),
        },
    };
    match routers {
        [only] => target(only),
        several => RouteTarget::Multipath {
            members: several.iter().map(target).collect(),
        },
    }
}

/// The way of a route that was added.
fn target(world: &World<'_>, spec: &ViaSpec) -> RouteTarget {
    match (spec, world.via(spec)) {
        (ViaSpec::Multipath { members }, _) => RouteTarget::Multipath {
            members: members.iter().map(|via| target(world, via)).collect(),
        },
        (_, Some(via)) => via.into(),
        (ViaSpec::Node { node, vni }, None) => RouteTarget::Node {
            node: node.clone(),
            vni: *vni,
        },
        (ViaSpec::Gateway { address, interface }, None) => RouteTarget::Gateway {
            address: *address,
            interface: interface.clone(),
        },
    }
}

/// Where packets to `address` go.
///
/// # Errors
/// `NotFound` when no route matches: such packets are the kernel's.
pub fn route_get(
    world: &World<'_>,
    index: &Index,
    address: IpAddr,
) -> Result<RouteAnswer, ErrorBody> {
    let matching = routes(world, index)
        .into_iter()
        .filter(|route| route.prefix.contains(&address));
    // Of two routes to one address the pod's wins, as in the kernel and the dataplane.
    let longest = matching.max_by_key(|r| (r.prefix.prefix_len(), r.origin == RouteOrigin::Pod));
    let Some(route) = longest else {
        return Err(ErrorBody::new(
            ErrorCode::NotFound,
            format!("no route to {address}; its packets are the kernel's: ip route get {address}"),
        ));
    };
    Ok(answer_by(world, address, route))
}

/// Where packets to `address` go by `route`.
fn answer_by(world: &World<'_>, address: IpAddr, route: RouteEntry) -> RouteAnswer {
    let mut answer = RouteAnswer {
        address,
        route,
        mode: None,
        tunnel_to: None,
        interface: None,
        next_hop: None,
        next_hop_mac: None,
        mtu: None,
        members: Vec::new(),
    };
    match answer.route.via.clone() {
        RouteTarget::Pod { interface } => {
            let told = match world.desired.ports.get(&interface) {
                Some(PortRoleSpec::Pod { mac, .. }) => *mac,
                _ => None,
            };
            answer.next_hop = Some(address);
            answer.next_hop_mac = world.pod_mac(&interface, told);
            answer.mtu = mtu(world, &interface);
            answer.interface = Some(interface);
        }
        RouteTarget::Node { node, .. } => {
            if let Some(node) = world.desired.nodes.get(&node) {
                let mode = world.mode(node);
                answer.mode = Some(mode);
                answer.tunnel_to = (mode == Mode::Vxlan).then_some(node.underlay);
                let follows_kernel =
                    mode == Mode::Native && !world.settings.auto_direct_node_routes;
                // Where neither kernel nor dataplane has a way, the hints say why.
                let prefix = answer.route.prefix;
                let router = match mode {
                    Mode::Vxlan => node.underlay,
                    Mode::Native => node.router_to(prefix),
                };
                let reached = mode == Mode::Vxlan || routing::direct(world, prefix, node).is_ok();
                if follows_kernel {
                    if let Some((link, way)) = routing::kernel_way(world, prefix) {
                        let router = way.gateway.unwrap_or(node.router_to(prefix));
                        answer.next_hop = Some(router);
                        answer.next_hop_mac = world.neighbor_mac(&link.name, router);
                        answer.mtu = mtu(world, &link.name);
                        answer.interface = Some(link.name.clone());
                    }
                } else if let Some(path) = world.path(router).filter(|_| reached) {
                    answer.next_hop = Some(path.next_hop);
                    answer.next_hop_mac = world.neighbor_mac(&path.interface, path.next_hop);
                    answer.mtu = Some(path.mtu);
                    answer.interface = Some(path.interface);
                }
            }
        }
        RouteTarget::Gateway {
            address: router,
            interface,
        } => {
            answer.mode = Some(Mode::Native);
            answer.next_hop = Some(router);
            if let Some(interface) = &interface {
                answer.next_hop_mac = world.neighbor_mac(interface, router);
                answer.mtu = mtu(world, interface);
            }
            answer.interface = interface;
        }
        RouteTarget::Multipath { members } => {
            let entry = |via| RouteEntry {
                via,
                ..answer.route.clone()
            };
            let members = members.into_iter().map(entry);
            let members = members.map(|route| answer_by(world, address, route));
            answer.members = members.collect();
        }
    }
    answer
}

fn mtu(world: &World<'_>, interface: &str) -> Option<u16> {
    let link = world.observed.link_named(interface)?;
    Some(u16::try_from(link.mtu).unwrap_or(u16::MAX))
}

/// The ports by interface.
pub fn ports(world: &World<'_>) -> Vec<PortEntry> {
    let entry = |spec: podway_proto::control::PortSpec| PortEntry {
        mac: match &spec.role {
            PortRoleSpec::Pod { mac, .. } => world.pod_mac(&spec.interface, *mac),
            PortRoleSpec::Uplink { .. } => world
                .observed
                .link_named(&spec.interface)
                .and_then(|link| link.mac),
        },
        configured: world.settings.uplink.as_ref() == Some(&spec.interface),
        waiting: world.port_waits_for(&spec.interface, &spec.role),
        spec,
    };
    told_ports(world).into_iter().map(entry).collect()
}

/// Whether `via` names links that are there.
///
/// # Errors
/// `NoSuchInterface` names the one that is not.
pub fn check_link(observed: &Observed, interface: &str) -> Result<(), ErrorBody> {
    match observed.link_named(interface) {
        Some(_) => Ok(()),
        None => Err(ErrorBody::new(
            ErrorCode::NoSuchInterface,
            format!("there is no interface {interface} here; see ip link"),
        )),
    }
}

#[cfg(test)]
mod tests {
    use podway_proto::types::MacAddr;

    use super::*;
    use crate::world::tests::Fixture;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn the_longest_route_wins() {
        let mut fixture = Fixture::new();
        fixture
            .learned
            .insert("veth-a".into(), MacAddr([2, 0, 0, 0, 0, 0xaa]));
        let node = ViaSpec::Node {
            node: "b".into(),
            vni: None,
        };
        fixture
            .desired
            .routes
            .insert("10.0.0.0/8".parse().unwrap(), node);
        let gateway = ViaSpec::Gateway {
            address: ip("192.168.1.2"),
            interface: Some("eth0".into()),
        };
        fixture
            .desired
            .routes
            .insert("10.7.0.0/16".parse().unwrap(), gateway);
        let get =
            |address: &str| route_get(&fixture.world(), &fixture.index(), ip(address)).unwrap();
        let remote = get("10.0.1.9");
        assert_eq!(remote.route.prefix, "10.0.1.0/24".parse().unwrap());
        assert_eq!(remote.mode, Some(Mode::Vxlan));
        assert_eq!(remote.tunnel_to, Some(ip("192.168.1.2")));
        assert_eq!(remote.interface.as_deref(), Some("eth0"));
        assert_eq!(remote.next_hop_mac, Some(MacAddr([2, 0, 0, 0, 0, 0xb])));
        assert_eq!(remote.mtu, Some(1500));
        let pod = get("10.0.0.2");
        assert_eq!(pod.interface.as_deref(), Some("veth-a"));
        assert_eq!(pod.next_hop_mac, Some(MacAddr([2, 0, 0, 0, 0, 0xaa])));
        assert_eq!(pod.mode, None);
        let router = get("10.7.1.1");
        assert_eq!((router.mode, router.tunnel_to), (Some(Mode::Native), None));
        assert_eq!(router.next_hop, Some(ip("192.168.1.2")));
        assert_eq!(
            get("10.200.0.1").route.prefix,
            "10.0.0.0/8".parse().unwrap()
        );
        let error = route_get(&fixture.world(), &fixture.index(), ip("8.8.8.8")).unwrap_err();
        assert_eq!(error.code, ErrorCode::NotFound);
    }

    #[test]
    fn of_several_next_hops_each_is_told() {
        let mut fixture = Fixture::new();
        let members = vec![
            ViaSpec::Node {
                node: "b".into(),
                vni: None,
            },
            ViaSpec::Gateway {
                address: ip("192.168.1.9"),
                interface: None,
            },
        ];
        let prefix = "10.9.0.0/16".parse().unwrap();
        fixture
            .desired
            .routes
            .insert(prefix, ViaSpec::Multipath { members });
        let answer = route_get(&fixture.world(), &fixture.index(), ip("10.9.0.1")).unwrap();
        let node = RouteTarget::Node {
            node: "b".into(),
            vni: None,
        };
        let router = RouteTarget::Gateway {
            address: ip("192.168.1.9"),
            interface: None,
        };
        assert_eq!(
            answer.route.via,
            RouteTarget::Multipath {
                members: vec![node.clone(), router.clone()]
            }
        );
        assert_eq!((answer.next_hop, answer.mtu), (None, None));
        let each: Vec<_> = answer.members.iter().map(|m| &m.route.via).collect();
        assert_eq!(each, [&node, &router]);
        assert_eq!(answer.members[0].tunnel_to, Some(ip("192.168.1.2")));
        assert_eq!(answer.members[1].next_hop, Some(ip("192.168.1.9")));
        assert_eq!(answer.members[1].interface, None);
    }

    #[test]
    fn the_pod_mtu_is_the_least_of_all_ways() {
        let mut fixture = Fixture::new();
        let of = |fixture: &Fixture| pod_mtu(&fixture.world());
        assert_eq!(of(&fixture), Some((1450, None)));
        for way in fixture.ways.values_mut().flatten() {
            way.mtu = Some(1400);
        }
        assert_eq!(of(&fixture), Some((1350, Some("b".into()))));
        fixture.desired.nodes.get_mut("b").unwrap().mode = Some(Mode::Native);
        assert_eq!(of(&fixture), Some((1400, Some("b".into()))));
        fixture.desired.nodes.remove("b");
        assert_eq!(of(&fixture), Some((1450, None)));
        fixture.settings.default_mode = Mode::Native;
        assert_eq!(of(&fixture), Some((1500, None)));
        fixture.settings.uplink = Some("wan".into());
        assert_eq!(of(&fixture), None);
    }

    #[test]
    fn a_native_route_that_nobody_has_leads_nowhere() {
        let mut fixture = Fixture::new();
        fixture.settings.auto_direct_node_routes = true;
        fixture.desired.nodes.get_mut("b").unwrap().mode = Some(Mode::Native);
        let get =
            |address: &str| route_get(&fixture.world(), &fixture.index(), ip(address)).unwrap();
        assert_eq!(get("10.0.1.9").next_hop, Some(ip("192.168.1.2")));
        let v6 = get("fd00:1::9");
        assert_eq!(v6.mode, Some(Mode::Native));
        assert_eq!((v6.interface, v6.next_hop), (None, None));
    }

    #[test]
    fn ports_say_what_they_wait_for() {
        let mut fixture = Fixture::new();
        let gone = PortRoleSpec::Pod {
            addresses: vec![ip("10.0.0.3")],
            mac: None,
            any_source: false,
        };
        fixture.desired.ports.insert("veth-z".into(), gone);
        let ports = ports(&fixture.world());
        let waits: Vec<(&str, Option<&str>)> = ports
            .iter()
            .map(|p| (p.spec.interface.as_str(), p.waiting.as_deref()))
            .collect();
        assert_eq!(
            waits,
            [
                ("eth0", None),
                ("veth-a", Some("the pod's MAC")),
                ("veth-z", Some("the link veth-z"))
            ]
        );
        assert!(ports[0].configured && !ports[1].configured);
    }

    #[test]
    fn a_status_says_what_is_missing() {
        let mut fixture = Fixture::new();
        let hints_of = |fixture: &Fixture| {
            let mut found = hints(&fixture.world(), &fixture.index());
            found.retain(|hint| !hint.contains("sysctl"));
            found
        };
        assert_eq!(hints_of(&fixture), Vec::<String>::new());
        fixture.ways.clear();
        fixture.settings.uplink = Some("wan".into());
        fixture.desired.nodes.remove("a");
        let found = hints_of(&fixture);
        assert_eq!(found.len(), 3, "{found:?}");
        assert!(
            found[0].contains("wan") && found[1].contains("podway node set a"),
            "{found:?}"
        );
        assert!(found[2].contains("node b"), "{found:?}");
    }
}
