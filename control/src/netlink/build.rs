//! Types of this module to messages for the kernel.

use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::{
    AddressAttribute, AddressHeaderFlags, AddressMessage, AddressScope,
};
use netlink_packet_route::link::{
    AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoData, InfoKind, InfoVxlan, LinkAttribute,
    LinkFlags, LinkInfo, LinkMessage,
};
use netlink_packet_route::neighbour::{
    NeighbourAttribute, NeighbourExtFlags, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteMetric, RouteNextHop,
    RouteNextHopFlags, RouteProtocol, RouteScope, RouteType, RouteVia,
};
use podway_proto::types::MacAddr;

use super::{Address, FdbEntry, Hop, PROTOCOL, Route, UNREACHABLE_METRIC, Vxlan};

pub(super) fn family(address: IpAddr) -> AddressFamily {
    match address {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    }
}

/// Asks for a new VXLAN device, down.
///
/// Its outer headers are without DF, other than the dataplane's. What it forwards the kernel makes as
/// large as the device's MTU allows, whatever it has learned of the path (`ip_dst_mtu_maybe_forward`,
/// include/net/ip.h; unless `net.ipv4.ip_forward_use_pmtu` is set). Behind a narrow link all that is
/// large would be lost with DF (`IFLA_VXLAN_DF`), each time; without, it is the outer packets that are
/// cut to fragments. Those over IPv6 nobody cuts: there the routes tell the size (`tunnel_mtu`,
/// control/src/kernel/want.rs).
pub(super) fn vxlan_device(name: &str, mac: MacAddr, mtu: u32, vxlan: &Vxlan) -> LinkMessage {
    let mut data = vec![
        InfoVxlan::Id(vxlan.vni),
        InfoVxlan::Port(vxlan.port),
        InfoVxlan::Link(vxlan.link),
        InfoVxlan::Learning(vxlan.learning),
        InfoVxlan::UDPCsum(true),
        // Of those that it receives: the kernel's `UDP_ZERO_CSUM6_RX`.
        InfoVxlan::UDPZeroCsumRX(vxlan.zero_checksum_v6),
    ];
    match vxlan.local {
        Some(IpAddr::V4(local)) => data.push(InfoVxlan::Local(local)),
        Some(IpAddr::V6(local)) => data.push(InfoVxlan::Local6(local)),
        None => {}
    }
    let mut message = LinkMessage::default();
    message.attributes = vec![
        LinkAttribute::IfName(name.to_owned()),
        LinkAttribute::Mtu(mtu),
        LinkAttribute::Address(mac.0.to_vec()),
        LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Vxlan),
            LinkInfo::Data(InfoData::Vxlan(data)),
        ]),
    ];
    message
}

/// Asks that a link makes no IPv6 link-local address on its own. It takes effect before the link
/// comes up, and creation refuses it (`EAFNOSUPPORT`: there is no `inet6_dev` yet).
pub(super) fn no_own_address(name: &str) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.attributes = vec![
        LinkAttribute::IfName(name.to_owned()),
        LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(vec![AfSpecInet6::AddrGenMode(
            In6AddrGenMode::None,
        )])]),
    ];
    message
}

/// Asks that a link is up.
pub(super) fn link_up(name: &str) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.flags = LinkFlags::Up;
    message.header.change_mask = LinkFlags::Up;
    message.attributes = vec![LinkAttribute::IfName(name.to_owned())];
    message
}

/// Asks for a link's MAC and MTU, and that it is up.
pub(super) fn link_settings(index: u32, mac: MacAddr, mtu: u32) -> LinkMessage {
    let mut message = link(index);
    message.header.flags = LinkFlags::Up;
    message.header.change_mask = LinkFlags::Up;
    message.attributes = vec![
        LinkAttribute::Mtu(mtu),
        LinkAttribute::Address(mac.0.to_vec()),
    ];
    message
}

pub(super) fn link(index: u32) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message
}

pub(super) fn address(address: &Address) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = family(address.address);
    message.header.prefix_len = address.prefix_len;
    message.header.index = address.index;
    message.header.scope = AddressScope::Universe;
    // Nobody else is on this link to have the same address, and a tentative one is no source.
    message.header.flags = AddressHeaderFlags::Nodad;
    message.attributes = vec![
        AddressAttribute::Local(address.address),
        AddressAttribute::Address(address.address),
    ];
    message
}

fn neighbor(index: u32, address: IpAddr) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = family(address);
    message.header.ifindex = index;
    message.attributes = vec![NeighbourAttribute::Destination(address.into())];
    message
}

/// A neighbour that the kernel is to keep resolved.
pub(super) fn managed_neighbor(index: u32, address: IpAddr) -> NeighbourMessage {
    let mut message = neighbor(index, address);
    message.attributes.extend([
        NeighbourAttribute::Protocol(RouteProtocol::Other(PROTOCOL)),
        NeighbourAttribute::ExtFlags(NeighbourExtFlags::Managed),
    ]);
    message
}

/// A neighbour that needs no resolving.
pub(super) fn permanent_neighbor(index: u32, address: IpAddr, mac: MacAddr) -> NeighbourMessage {
    let mut message = neighbor(index, address);
    message.header.state = NeighbourState::Permanent;
    message.attributes.extend([
        NeighbourAttribute::LinkLayerAddress(mac.0.to_vec()),
        NeighbourAttribute::Protocol(RouteProtocol::Other(PROTOCOL)),
    ]);
    message
}

pub(super) fn any_neighbor(index: u32, address: IpAddr) -> NeighbourMessage {
    neighbor(index, address)
}

/// An entry of a VXLAN device's forwarding database: `NTF_SELF` names the device itself, not a
/// bridge above it, and without ageing the state is the static one.
pub(super) fn fdb_entry(entry: &FdbEntry) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Bridge;
    message.header.ifindex = entry.index;
    message.header.state = NeighbourState::Permanent;
    message.header.flags = NeighbourFlags::Own;
    message.attributes = vec![
        NeighbourAttribute::LinkLayerAddress(entry.mac.0.to_vec()),
        NeighbourAttribute::Destination(entry.remote.into()),
    ];
    message
}

/// A route of ours in the main table.
fn main_route(prefix: IpNet, kind: RouteType) -> RouteMessage {
    let destination = prefix.addr();
    let mut message = RouteMessage::default();
    message.header.address_family = family(destination);
    message.header.destination_prefix_length = prefix.prefix_len();
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.header.protocol = RouteProtocol::Other(PROTOCOL);
    message.header.kind = kind;
    message.attributes = vec![RouteAttribute::Destination(destination.into())];
    message
}

/// Has the kernel refuse packets to `prefix` for which there is no other route to it or to a part of
/// it.
pub(super) fn unreachable(prefix: IpNet) -> RouteMessage {
    let mut message = main_route(prefix, RouteType::Unreachable);
    message.header.scope = RouteScope::Universe;
    let metric = RouteAttribute::Priority(UNREACHABLE_METRIC);
    message.attributes.push(metric);
    message
}

/// A unicast route of ours in the main table.
pub(super) fn route(route: &Route) -> RouteMessage {
    let destination = route.prefix.addr();
    let mut message = main_route(route.prefix, RouteType::Unicast);
    message.header.scope = match route.gateway {
        Some(_) => RouteScope::Universe,
        None => RouteScope::Link,
    };
    if let Some(mtu) = route.mtu {
        let metrics = RouteAttribute::Metrics(vec![RouteMetric::Mtu(mtu)]);
        message.attributes.push(metrics);
    }
    if !route.also.is_empty() {
        let hops = route.hops().map(|hop| next_hop(destination, hop));
        let hops = RouteAttribute::MultiPath(hops.collect());
        message.attributes.push(hops);
        return message;
    }
    if route.onlink {
        message.header.flags = RouteFlags::Onlink;
    }
    message.attributes.push(RouteAttribute::Oif(route.link));
    let gateway = route.gateway.map(|router| gateway(destination, router));
    message.attributes.extend(gateway);
    message
}

/// What is to be removed: with all routers, whatever they are. Naming them would have the kernel
/// remove, and tell of, each alone (IPv6).
pub(super) fn any_route(route: &Route) -> RouteMessage {
    let whatever_size = Route {
        mtu: None,
        ..route.clone()
    };
    let mut message = self::route(&whatever_size);
    if !route.also.is_empty() {
        message.attributes.truncate(1);
    }
    message
}

fn next_hop(destination: IpAddr, hop: Hop) -> RouteNextHop {
    let mut next_hop = RouteNextHop::default();
    next_hop.interface_index = hop.link;
    if hop.onlink {
        next_hop.flags = RouteNextHopFlags::Onlink;
    }
    next_hop.attributes = vec![gateway(destination, hop.gateway)];
    next_hop
}

fn gateway(destination: IpAddr, router: IpAddr) -> RouteAttribute {
    match (destination, router) {
        // An IPv4 route over an IPv6 router, RFC 5549.
        (IpAddr::V4(_), IpAddr::V6(router)) => RouteAttribute::Via(RouteVia::Inet6(router)),
        _ => RouteAttribute::Gateway(router.into()),
    }
}

/// Asks for the way to an address.
pub(super) fn lookup(address: IpAddr) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = family(address);
    message.header.destination_prefix_length = if address.is_ipv4() { 32 } else { 128 };
    message.attributes = vec![RouteAttribute::Destination(RouteAddress::from(address))];
    message
}

/// Asks for the route itself that packets to an address take, with all its routers.
pub(super) fn whole_lookup(address: IpAddr) -> RouteMessage {
    let mut message = lookup(address);
    message.header.flags = RouteFlags::FibMatch;
    message
}

/// Asks for all routes of one family that are marked as ours.
pub(super) fn our_routes(family: AddressFamily) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = family;
    message.header.protocol = RouteProtocol::Other(PROTOCOL);
    message
}

/// Asks for all routes of one family in one table.
pub(super) fn table(family: AddressFamily, table: u32) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = family;
    message.attributes = vec![RouteAttribute::Table(table)];
    message
}
