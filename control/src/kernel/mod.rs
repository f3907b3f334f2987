//! The kernel underneath (design section 7): the same state as the dataplane's, in kernel
//! objects, in the manner of flannel.
//!
//! - [`want`]: which objects there should be. Pure.
//! - this file: what has to be done about the difference, and doing it.
//!
//! Objects that are Podway's are recognised by the device that they are on or by
//! [`netlink::PROTOCOL`], so that a control process that starts finds what its predecessor left:
//! what is still wanted stays untouched, the rest is removed. When control stops it removes
//! nothing, since the kernel is to carry on; [`cleanup`] does.

pub mod want;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use crate::netlink::{self, Address, FdbEntry, Hop, Link, LinkKind, Order, Requests, Route};
use crate::observed::Observed;
use crate::world::World;
use ipnet::IpNet;
use podway_proto::types::Vni;

pub use self::want::{DeviceWant, Want, route};

/// Name of the kernel's VXLAN device. The dot keeps it apart from names of physical devices.
pub const DEVICE: &str = "podway.vx";
/// First part of the names of those of further VNIs, which follow; any VNI fits an interface's name.
const FURTHER: &str = "podway.";

/// Indexes of VXLAN devices that are up, by VNI.
pub type Devices = BTreeMap<Vni, u32>;

/// Name of the device of a VNI: [`DEVICE`] for the configuration's `vni`, `podway.77` for another one.
pub fn device_name(world: &World<'_>, vni: Vni) -> String {
    if vni == world.settings.vni {
        DEVICE.to_owned()
    } else {
        format!("{FURTHER}{vni}")
    }
}

/// Whether it is the name of one of the VXLAN devices.
pub fn is_device(name: &str) -> bool {
    let further = name.strip_prefix(FURTHER);
    name == DEVICE || further.is_some_and(|vni| vni.parse::<u32>().is_ok())
}

/// The VXLAN devices that are up, by VNI.
pub fn devices(world: &World<'_>) -> Devices {
    let devices = world.settings.vnis().filter_map(|vni| {
        let link = world.observed.link_named(&device_name(world, vni))?;
        link.up.then_some((vni, link.index))
    });
    devices.collect()
}

/// Indexes of the devices of VNIs that are not configured any more.
pub fn stale_devices(world: &World<'_>) -> Vec<u32> {
    let wanted = world.settings.vnis().map(|vni| device_name(world, vni));
    let wanted: BTreeSet<String> = wanted.collect();
    let ours = world.observed.links().filter(|link| is_our_device(link));
    let stale = ours.filter(|link| !wanted.contains(&link.name));
    stale.map(|link| link.index).collect()
}

/// Whether it is one of the VXLAN devices.
pub fn is_our_device(link: &Link) -> bool {
    is_device(&link.name) && matches!(link.kind, LinkKind::Vxlan(_))
}

/// Brings a VXLAN device in line. Whether anything was done.
///
/// # Errors
/// A sentence that names what is in the way.
pub fn apply_device(
    requests: &mut Requests,
    observed: &Observed,
    want: &DeviceWant,
) -> Result<bool, String> {
    if let Some(rival) = rival(observed, want) {
        return Err(format!(
            "the VXLAN device {rival} already uses vni {} and port {}; delete it (ip link del \
             {rival}) or choose another vni or vxlan-port in the configuration of every node",
            want.vxlan.vni, want.vxlan.port
        ));
    }
    let text = |error: netlink::Error| error.to_string();
    if let Some(link) = observed.link_named(&want.name) {
        if link.kind == LinkKind::Vxlan(want.vxlan.clone()) {
            let right = link.up && link.mac == Some(want.mac) && link.mtu == want.mtu;
            if !right {
                requests
                    .set_link(link.index, want.mac, want.mtu)
                    .map_err(text)?;
            }
            return Ok(!right);
        }
        requests.delete_link(link.index).map_err(text)?;
    }
    let created = requests.create_vxlan(&want.name, want.mac, want.mtu, &want.vxlan);
    created.map(|()| true).map_err(text)
}

/// The VXLAN device of somebody else that has our VNI and port.
fn rival<'a>(observed: &'a Observed, want: &DeviceWant) -> Option<&'a str> {
    let is_rival = |kind: &LinkKind| match kind {
        LinkKind::Vxlan(vxlan) => vxlan.vni == want.vxlan.vni && vxlan.port == want.vxlan.port,
        _ => false,
    };
    let mut links = observed.links().filter(|link| !is_device(&link.name));
    links
        .find(|link| is_rival(&link.kind))
        .map(|link| link.name.as_str())
}

/// Carries out orders. Gives the sentence for each that failed, with its position.
pub fn carry_out(requests: &mut Requests, orders: &[Order]) -> Vec<(usize, String)> {
    let mut failures = Vec::new();
    for (position, error) in requests.carry_out(orders) {
        let order = &orders[position];
        let result = match order {
            Order::AddRoute(route) if error.is(libc::EEXIST) => foreign_route(requests, route),
            Order::AddRoute(route) | Order::ReplaceRoute(route) if error.is(libc::EINVAL) => {
                Err(format!("{error}{}", other_way_to_router(requests, route)))
            }
            // Somebody else has thought of it.
            Order::AddUnreachable(_) if error.is(libc::EEXIST) => Ok(()),
            // What was to be removed is gone already: the event of it is on its way.
            _ if order.removes() && is_missing(&error) => Ok(()),
            _ => Err(error.to_string()),
        };
        if let Err(text) = result {
            failures.push((position, text));
        }
    }
    failures
}

fn is_missing(error: &netlink::Error) -> bool {
    let missing = [libc::ENOENT, libc::ESRCH, libc::EADDRNOTAVAIL, libc::ENODEV];
    missing.iter().any(|errno| error.is(*errno))
}

/// Somebody else's route to the same prefix is no harm if it says the same. Ours is added when the
/// kernel tells that it is gone.
fn foreign_route(requests: &mut Requests, route: &Route) -> Result<(), String> {
    let prefix = route.prefix;
    let address = prefix.addr();
    let says_the_same = if route.also.is_empty() {
        let way = requests.lookup(address);
        let way = way.map_err(|error| error.to_string())?;
        way.is_some_and(|way| way.link == route.link && way.gateway == route.gateway)
    } else {
        let found = requests.foreign_route(address);
        let found = found.map_err(|error| error.to_string())?;
        found.is_some_and(|found| {
            let routers = |hop: Hop| (hop.link, hop.gateway);
            let have: BTreeSet<_> = found.hops.into_iter().map(routers).collect();
            found.prefix == prefix && have == route.hops().map(routers).collect()
        })
    };
    if says_the_same {
        return Ok(());
    }
    Err(format!(
        "the kernel already has another route to {prefix}; delete it: ip route del {prefix}"
    ))
}

/// An IPv6 router that counts as on the link must not be reached by another one
/// (`ip6_route_check_nh_onlink` of net/ipv6/route.c): what to do about it if it is, after an error.
fn other_way_to_router(requests: &mut Requests, route: &Route) -> String {
    let router = route.gateway.filter(|_| route.onlink);
    let way = router.and_then(|router| requests.lookup(router).ok()?);
    match (router, way) {
        (Some(router), Some(way)) if way.link != route.link => format!(
            "; another route leads to the router {router} by another link, delete it: ip route get \
             {router}"
        ),
        _ => String::new(),
    }
}

/// What leads from `observed` to `want`, routes aside: what others stand on, which comes before
/// the routes, and what is not wanted any more, which goes after them.
pub fn orders(observed: &Observed, want: &Want) -> (Vec<Order>, Vec<Order>) {
    let (mut orders, mut removals) = (Vec::new(), Vec::new());
    let (have, wanted) = (observed.unreachable(), &want.unreachable);
    let missing = wanted.difference(have).copied();
    orders.extend(missing.map(Order::AddUnreachable));
    let left = have.difference(wanted).copied();
    removals.extend(left.map(Order::DeleteUnreachable));
    for device in &want.devices {
        device_orders(observed, want, *device, &mut orders, &mut removals);
    }
    for (index, address) in &want.managed {
        let known = observed.neighbor(*index, *address);
        if !known.is_some_and(|neighbor| neighbor.managed || neighbor.permanent) {
            orders.push(Order::ManageNeighbor(*index, *address));
        }
    }
    for neighbor in observed
        .neighbors()
        .filter(|n| n.ours && !want.devices.contains(&n.index))
    {
        if !want.managed.contains(&(neighbor.index, neighbor.address)) {
            removals.push(Order::DeleteNeighbor(neighbor.index, neighbor.address));
        }
    }
    (orders, removals)
}

/// What makes our route to `prefix` the wanted one. One that changes is replaced in one step, so
/// that no packet finds none.
pub fn route_order(observed: &Observed, prefix: IpNet, want: Option<Route>) -> Option<Order> {
    match (observed.our_routes().get(&prefix), want) {
        (None, Some(route)) => Some(Order::AddRoute(route)),
        (Some(old), Some(route)) if *old != route => Some(Order::ReplaceRoute(route)),
        (Some(old), None) => Some(Order::DeleteRoute(old.clone())),
        _ => None,
    }
}

fn device_orders(
    observed: &Observed,
    want: &Want,
    device: u32,
    orders: &mut Vec<Order>,
    removals: &mut Vec<Order>,
) {
    let have: Vec<&Address> = observed
        .addresses()
        .filter(|a| a.index == device && a.global)
        .collect();
    for address in &want.addresses {
        let right = |a: &&Address| a.address == *address && a.prefix_len == full_length(*address);
        if !have.iter().any(right) {
            orders.push(Order::AddAddress(device_address(device, *address)));
        }
    }
    for address in have {
        if !want.addresses.contains(&address.address)
            || address.prefix_len != full_length(address.address)
        {
            removals.push(Order::DeleteAddress(*address));
        }
    }
    let mut fdb = want.fdb.clone();
    for entry in observed.fdb(device) {
        match fdb.get(&entry.mac) {
            Some(remote) if *remote == entry.remote => drop(fdb.remove(&entry.mac)),
            // Set again below: NLM_F_REPLACE changes the remote of a MAC in place.
            Some(_) => {}
            None => removals.push(Order::DeleteFdb(entry)),
        }
    }
    let entry = |(mac, remote)| {
        Order::SetFdb(FdbEntry {
            index: device,
            mac,
            remote,
        })
    };
    orders.extend(fdb.into_iter().map(entry));
    for (address, mac) in &want.neighbors {
        let known = observed.neighbor(device, *address);
        if !known.is_some_and(|n| n.permanent && n.mac == Some(*mac)) {
            orders.push(Order::SetNeighbor(device, *address, *mac));
        }
    }
    for neighbor in observed.neighbors_on(device).filter(|n| n.ours) {
        if !want.neighbors.contains_key(&neighbor.address) {
            removals.push(Order::DeleteNeighbor(device, neighbor.address));
        }
    }
}

fn full_length(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

fn device_address(device: u32, address: IpAddr) -> Address {
    Address {
        index: device,
        address,
        prefix_len: full_length(address),
        global: true,
    }
}

/// Removes all that is Podway's from the kernel. Goes on after failures and gives them all.
pub fn cleanup(requests: &mut Requests, observed: &Observed) -> Vec<String> {
    let routes = observed.our_routes().values().cloned();
    let mut all: Vec<Order> = routes.map(Order::DeleteRoute).collect();
    let (orders, removals) = orders(observed, &Want::default());
    all.extend(orders.into_iter().chain(removals));
    let failures = carry_out(requests, &all).into_iter();
    let mut errors: Vec<String> = failures.map(|(_, text)| text).collect();
    for link in observed.links().filter(|link| is_our_device(link)) {
        if let Err(error) = requests.delete_link(link.index) {
            errors.push(error.to_string());
        }
    }
    errors
}

#[cfg(test)]
mod tests {
    use podway_proto::types::MacAddr;

    use super::*;
    use crate::netlink::{Event, Neighbor, Vxlan};
    use crate::observed::tests::{address, link};

    const REMOTE: MacAddr = MacAddr([2, 0x50, 192, 168, 1, 2]);

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn route(prefix: &str, gateway: Option<&str>, link: u32) -> Route {
        Route {
            prefix: prefix.parse().unwrap(),
            gateway: gateway.map(ip),
            link,
            onlink: gateway.is_some(),
            also: Vec::new(),
            mtu: None,
        }
    }

    /// The one route that is wanted with [`want`].
    fn remote() -> Route {
        route("10.0.1.0/24", Some("10.0.1.0"), 9)
    }

    /// All orders, with `remote` as the only route that is wanted.
    fn steps(observed: &Observed, want: &Want, remote: Route) -> Vec<Order> {
        let (mut all, removals) = orders(observed, want);
        let prefixes: BTreeSet<IpNet> = observed.our_routes().keys().copied().collect();
        for prefix in prefixes.into_iter().chain([remote.prefix]) {
            let wanted = (prefix == remote.prefix).then(|| remote.clone());
            let order = route_order(observed, prefix, wanted);
            if !order.as_ref().is_some_and(|order| all.contains(order)) {
                all.extend(order);
            }
        }
        all.extend(removals);
        all
    }

    fn want() -> Want {
        Want {
            devices: BTreeSet::from([9]),
            addresses: BTreeSet::from([ip("10.0.0.0")]),
            unreachable: BTreeSet::from(["10.0.0.0/24".parse().unwrap()]),
            fdb: BTreeMap::from([(REMOTE, ip("192.168.1.2"))]),
            neighbors: BTreeMap::from([(ip("10.0.1.0"), REMOTE)]),
            managed: BTreeSet::from([(2, ip("192.168.1.2"))]),
            errors: Vec::new(),
        }
    }

    fn neighbor(index: u32, text: &str, mac: Option<MacAddr>) -> Neighbor {
        let permanent = mac.is_some();
        Neighbor {
            index,
            address: ip(text),
            mac,
            permanent,
            managed: !permanent,
            ours: true,
        }
    }

    fn in_line() -> Vec<Event> {
        vec![
            Event::Link(link(2, "eth0")),
            Event::Link(link(9, DEVICE)),
            Event::Address(address(2, "192.168.1.1/24")),
            Event::Address(address(9, "10.0.0.0/32")),
            Event::Fdb(FdbEntry {
                index: 9,
                mac: REMOTE,
                remote: ip("192.168.1.2"),
            }),
            Event::Neighbor(neighbor(9, "10.0.1.0", Some(REMOTE))),
            Event::Neighbor(neighbor(2, "192.168.1.2", None)),
            Event::OurRoute(route("10.0.1.0/24", Some("10.0.1.0"), 9)),
            Event::Unreachable("10.0.0.0/24".parse().unwrap()),
        ]
    }

    #[test]
    fn what_is_in_line_is_left_alone() {
        assert_eq!(
            steps(&Observed::from_dump(in_line()), &want(), remote()),
            []
        );
    }

    #[test]
    fn an_empty_kernel_gets_all_in_order() {
        let observed = Observed::from_dump(in_line().into_iter().take(3).collect());
        assert_eq!(
            steps(&observed, &want(), remote()),
            [
                Order::AddUnreachable("10.0.0.0/24".parse().unwrap()),
                Order::AddAddress(address(9, "10.0.0.0/32")),
                Order::SetFdb(FdbEntry {
                    index: 9,
                    mac: REMOTE,
                    remote: ip("192.168.1.2")
                }),
                Order::SetNeighbor(9, ip("10.0.1.0"), REMOTE),
                Order::ManageNeighbor(2, ip("192.168.1.2")),
                Order::AddRoute(route("10.0.1.0/24", Some("10.0.1.0"), 9)),
            ]
        );
    }

    #[test]
    fn what_a_predecessor_left_is_swept_and_what_is_not_ours_stays() {
        let mut events = in_line();
        let old = MacAddr([2, 0x50, 192, 168, 1, 3]);
        let mut foreign = neighbor(2, "192.168.1.77", None);
        foreign.ours = false;
        events.extend([
            Event::Address(address(9, "10.0.7.0/32")),
            Event::Fdb(FdbEntry {
                index: 9,
                mac: old,
                remote: ip("192.168.1.3"),
            }),
            Event::Neighbor(neighbor(9, "10.0.2.0", Some(old))),
            Event::Neighbor(neighbor(2, "192.168.1.3", None)),
            Event::Neighbor(foreign),
            Event::OurRoute(route("10.0.2.0/24", Some("10.0.2.0"), 9)),
            Event::Unreachable("10.0.7.0/24".parse().unwrap()),
        ]);
        assert_eq!(
            steps(&Observed::from_dump(events), &want(), remote()),
            [
                Order::DeleteRoute(route("10.0.2.0/24", Some("10.0.2.0"), 9)),
                Order::DeleteUnreachable("10.0.7.0/24".parse().unwrap()),
                Order::DeleteAddress(address(9, "10.0.7.0/32")),
                Order::DeleteFdb(FdbEntry {
                    index: 9,
                    mac: old,
                    remote: ip("192.168.1.3")
                }),
                Order::DeleteNeighbor(9, ip("10.0.2.0")),
                Order::DeleteNeighbor(2, ip("192.168.1.3")),
            ]
        );
    }

    #[test]
    fn a_change_of_mode_replaces_the_route_in_one_step() {
        let mut want = want();
        let direct = route("10.0.1.0/24", Some("192.168.1.2"), 2);
        want.fdb.clear();
        want.neighbors.clear();
        assert_eq!(
            steps(&Observed::from_dump(in_line()), &want, direct.clone()),
            [
                Order::ReplaceRoute(direct),
                Order::DeleteFdb(FdbEntry {
                    index: 9,
                    mac: REMOTE,
                    remote: ip("192.168.1.2")
                }),
                Order::DeleteNeighbor(9, ip("10.0.1.0")),
            ]
        );
    }

    #[test]
    fn a_rival_device_is_named() {
        let vxlan = Vxlan {
            vni: 1,
            port: 4789,
            local: None,
            link: 2,
            learning: true,
            zero_checksum_v6: false,
        };
        let rival_link = Link {
            kind: LinkKind::Vxlan(vxlan.clone()),
            ..link(8, "flannel.1")
        };
        let observed = Observed::from_dump(vec![Event::Link(rival_link)]);
        let mut want = DeviceWant {
            name: DEVICE.to_owned(),
            mac: REMOTE,
            mtu: 1450,
            vxlan,
        };
        assert_eq!(rival(&observed, &want), Some("flannel.1"));
        want.vxlan.port = 8472;
        assert_eq!(rival(&observed, &want), None);
    }
}
