//! Messages of the kernel to the types of this module.

use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;
use netlink_packet_core::NLM_F_REPLACE;
use netlink_packet_route::address::{AddressAttribute, AddressMessage, AddressScope};
use netlink_packet_route::link::{
    InfoData, InfoKind, InfoVxlan, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourExtFlags, NeighbourFlags, NeighbourMessage,
    NeighbourState,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteMetric, RouteNextHop,
    RouteNextHopFlags, RouteProtocol, RouteType, RouteVia,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use podway_proto::types::MacAddr;

use super::{
    Address, FdbEntry, ForeignRoute, Hop, Link, LinkKind, Lookup, Neighbor, PROTOCOL, Route,
    UNREACHABLE_METRIC, Vxlan,
};

/// Unit of times in answers: the kernel's `USER_HZ` is 100 on all platforms that Podway runs on.
const CLOCK_TICK: Duration = Duration::from_millis(10);

/// A change that the kernel told of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A link is new or has changed.
    Link(Link),
    /// A link is gone, and with it all that is on it.
    LinkGone {
        /// Its index.
        index: u32,
    },
    /// An address was added or has changed.
    Address(Address),
    /// An address was removed.
    AddressGone(Address),
    /// A neighbour is new or has changed.
    Neighbor(Neighbor),
    /// A neighbour was removed.
    NeighborGone(Neighbor),
    /// An entry of a VXLAN device's forwarding database is new or has changed.
    Fdb(FdbEntry),
    /// An entry of a VXLAN device's forwarding database was removed.
    FdbGone(FdbEntry),
    /// A route of ours is new or has changed.
    OurRoute(Route),
    /// A route of ours was removed.
    OurRouteGone(Route),
    /// Packets to the prefix are refused by a route of ours.
    Unreachable(IpNet),
    /// The same was removed.
    UnreachableGone(IpNet),
    /// A route of somebody else was added or changed: ways may differ from now on.
    ForeignRoute {
        /// The route.
        route: ForeignRoute,
        /// Whether it takes the place of the one to the same prefix with the same metric.
        replaces: bool,
    },
    /// A route of somebody else was removed: ways may differ from now on.
    ForeignRouteGone(ForeignRoute),
    /// A next-hop object has changed or is gone, and routes through it with it: those the kernel
    /// does not tell of one by one.
    NextHop {
        /// Its number.
        object: u32,
    },
    /// Something about a route that is told in no other event: ways may differ from now on.
    RouteNoise,
}

/// What `message` tells, if it tells something that matters here.
/// `flags` are those of its header.
pub(super) fn event(message: RouteNetlinkMessage, flags: u16) -> Option<Event> {
    use RouteNetlinkMessage as Message;
    match message {
        // Bridges speak of their ports in the same messages with a family of their own; only
        // the plain ones say whether a link exists.
        Message::NewLink(m) if m.header.interface_family == AddressFamily::Unspec => {
            link(&m).map(Event::Link)
        }
        Message::DelLink(m) if m.header.interface_family == AddressFamily::Unspec => {
            Some(Event::LinkGone {
                index: m.header.index,
            })
        }
        Message::NewAddress(m) => address(&m).map(Event::Address),
        Message::DelAddress(m) => address(&m).map(Event::AddressGone),
        Message::NewNeighbour(m) if m.header.family == AddressFamily::Bridge => {
            fdb_entry(&m).map(Event::Fdb)
        }
        Message::DelNeighbour(m) if m.header.family == AddressFamily::Bridge => {
            fdb_entry(&m).map(Event::FdbGone)
        }
        Message::NewNeighbour(m) => neighbor(&m).map(Event::Neighbor),
        Message::DelNeighbour(m) => neighbor(&m).map(Event::NeighborGone),
        Message::NewRoute(m) if is_ours(&m) => {
            let other = || unreachable(&m).map(Event::Unreachable);
            our_route(&m).map(Event::OurRoute).or_else(other)
        }
        Message::DelRoute(m) if is_ours(&m) => {
            let other = || unreachable(&m).map(Event::UnreachableGone);
            our_route(&m).map(Event::OurRouteGone).or_else(other)
        }
        Message::NewRoute(m) => Some(match foreign_route(&m) {
            Some(route) => Event::ForeignRoute {
                route,
                replaces: flags & NLM_F_REPLACE != 0,
            },
            None => Event::RouteNoise,
        }),
        Message::DelRoute(m) => {
            Some(foreign_route(&m).map_or(Event::RouteNoise, Event::ForeignRouteGone))
        }
        _ => None,
    }
}

/// What a message about a next-hop object tells; the library does not know them. `message` has its
/// header; the attributes follow eight bytes of `struct nhmsg` (linux/nexthop.h).
pub(super) fn next_hop(message: &[u8]) -> Option<Event> {
    const RTM_NEWNEXTHOP: u16 = 104;
    const RTM_DELNEXTHOP: u16 = 105;
    const NHA_ID: u16 = 1;
    const ATTRIBUTES: usize = 16 + 8;
    let word = |at: usize| {
        let bytes = message.get(at..)?.first_chunk::<2>()?;
        Some(u16::from_ne_bytes(*bytes))
    };
    if ![RTM_NEWNEXTHOP, RTM_DELNEXTHOP].contains(&word(4)?) {
        return None;
    }
    // The number comes first (`nh_fill_node` of net/ipv4/nexthop.c).
    if (word(ATTRIBUTES)?, word(ATTRIBUTES + 2)?) != (8, NHA_ID) {
        return Some(Event::RouteNoise);
    }
    let number = message.get(ATTRIBUTES + 4..)?.first_chunk::<4>()?;
    Some(Event::NextHop {
        object: u32::from_ne_bytes(*number),
    })
}

fn is_ours(message: &RouteMessage) -> bool {
    message.header.protocol == RouteProtocol::Other(PROTOCOL)
}

fn mac(bytes: &[u8]) -> Option<MacAddr> {
    bytes.try_into().ok().map(MacAddr)
}

fn link(message: &LinkMessage) -> Option<Link> {
    let mut link = Link {
        index: message.header.index,
        name: String::new(),
        up: message.header.flags.contains(LinkFlags::Up),
        mtu: 0,
        mac: None,
        kind: LinkKind::Other,
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
            LinkAttribute::Address(bytes) => link.mac = mac(bytes),
            LinkAttribute::LinkInfo(infos) => link.kind = link_kind(infos),
            _ => {}
        }
    }
    (!link.name.is_empty()).then_some(link)
}

fn link_kind(infos: &[LinkInfo]) -> LinkKind {
    let mut kind = LinkKind::Other;
    for info in infos {
        match info {
            LinkInfo::Kind(InfoKind::Veth) => kind = LinkKind::Veth,
            LinkInfo::Data(InfoData::Vxlan(data)) => kind = LinkKind::Vxlan(vxlan(data)),
            _ => {}
        }
    }
    kind
}

fn vxlan(data: &[InfoVxlan]) -> Vxlan {
    let mut vxlan = Vxlan {
        vni: 0,
        port: 0,
        local: None,
        link: 0,
        learning: false,
        zero_checksum_v6: false,
    };
    for item in data {
        match item {
            InfoVxlan::Id(vni) => vxlan.vni = *vni,
            InfoVxlan::Port(port) => vxlan.port = *port,
            InfoVxlan::Local(address) => vxlan.local = Some((*address).into()),
            InfoVxlan::Local6(address) => vxlan.local = Some((*address).into()),
            InfoVxlan::Link(index) => vxlan.link = *index,
            InfoVxlan::Learning(learning) => vxlan.learning = *learning,
            InfoVxlan::UDPZeroCsumRX(zero) => vxlan.zero_checksum_v6 = *zero,
            _ => {}
        }
    }
    vxlan
}

fn address(message: &AddressMessage) -> Option<Address> {
    // On point-to-point links `Address` is the peer's and `Local` ours; elsewhere IPv4 has both
    // and IPv6 has `Address` alone.
    let mut local = None;
    let mut other = None;
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(address) => local = Some(*address),
            AddressAttribute::Address(address) => other = Some(*address),
            _ => {}
        }
    }
    Some(Address {
        index: message.header.index,
        address: local.or(other)?,
        prefix_len: message.header.prefix_len,
        global: message.header.scope == AddressScope::Universe,
    })
}

fn neighbor(message: &NeighbourMessage) -> Option<Neighbor> {
    if message.header.flags.contains(NeighbourFlags::Proxy) {
        return None;
    }
    let mut found = Neighbor {
        index: message.header.ifindex,
        address: IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED),
        mac: None,
        permanent: matches!(
            message.header.state,
            NeighbourState::Permanent | NeighbourState::Noarp
        ),
        managed: false,
        ours: false,
    };
    let usable = matches!(
        message.header.state,
        NeighbourState::Reachable
            | NeighbourState::Stale
            | NeighbourState::Delay
            | NeighbourState::Probe
            | NeighbourState::Permanent
            | NeighbourState::Noarp
    );
    let mut has_address = false;
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(destination) => {
                found.address = match destination {
                    NeighbourAddress::Inet(address) => (*address).into(),
                    NeighbourAddress::Inet6(address) => (*address).into(),
                    _ => return None,
                };
                has_address = true;
            }
            NeighbourAttribute::LinkLayerAddress(bytes) if usable => found.mac = mac(bytes),
            NeighbourAttribute::ExtFlags(flags) => {
                found.managed = flags.contains(NeighbourExtFlags::Managed);
            }
            NeighbourAttribute::Protocol(protocol) => {
                found.ours = *protocol == RouteProtocol::Other(PROTOCOL);
            }
            _ => {}
        }
    }
    has_address.then_some(found)
}

fn fdb_entry(message: &NeighbourMessage) -> Option<FdbEntry> {
    let mut hardware = None;
    let mut remote = None;
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::LinkLayerAddress(bytes) => hardware = mac(bytes),
            // The family of the message is AF_BRIDGE, so the length alone tells which it is.
            NeighbourAttribute::Destination(destination) => {
                remote = match destination {
                    NeighbourAddress::Inet(address) => Some((*address).into()),
                    NeighbourAddress::Inet6(address) => Some((*address).into()),
                    NeighbourAddress::Other(bytes) => address_from_bytes(bytes),
                    _ => None,
                }
            }
            _ => {}
        }
    }
    Some(FdbEntry {
        index: message.header.ifindex,
        mac: hardware?,
        remote: remote?,
    })
}

fn address_from_bytes(bytes: &[u8]) -> Option<IpAddr> {
    let four = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    four.or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from))
        .ok()
}

fn route_address(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some((*address).into()),
        RouteAddress::Inet6(address) => Some((*address).into()),
        _ => None,
    }
}

/// A unicast route of ours in the main table.
fn our_route(message: &RouteMessage) -> Option<Route> {
    let header = &message.header;
    if header.kind != RouteType::Unicast || header.table != RouteHeader::RT_TABLE_MAIN {
        return None;
    }
    let (mut destination, mut gateway, mut link) = (unspecified(header)?, None, None);
    let (mut several, mut mtu) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(address) => destination = route_address(address)?,
            RouteAttribute::Gateway(address) => gateway = route_address(address),
            RouteAttribute::Via(via) => gateway = via_address(via),
            RouteAttribute::Oif(index) => link = Some(*index),
            RouteAttribute::MultiPath(hops) => several = Some(hops),
            RouteAttribute::Metrics(metrics) => mtu = mtu_of(metrics),
            _ => {}
        }
    }
    let prefix = IpNet::new(destination, header.destination_prefix_length).ok()?;
    if let Some(hops) = several {
        // Those that are dead as well: the kernel uses them again when their link comes up.
        let route = Route::by(prefix, hops.iter().filter_map(next_hop_of).collect())?;
        return Some(Route { mtu, ..route });
    }
    Some(Route {
        prefix,
        gateway,
        link: link?,
        onlink: header.flags.contains(RouteFlags::Onlink),
        also: Vec::new(),
        mtu,
    })
}

fn mtu_of(metrics: &[RouteMetric]) -> Option<u32> {
    metrics.iter().find_map(|metric| match metric {
        RouteMetric::Mtu(mtu) => Some(*mtu),
        _ => None,
    })
}

/// The prefix of an unreachable route, as [`super::build::unreachable`] has it made.
fn unreachable(message: &RouteMessage) -> Option<IpNet> {
    let header = &message.header;
    if header.kind != RouteType::Unreachable || header.table != RouteHeader::RT_TABLE_MAIN {
        return None;
    }
    let (mut destination, mut metric) = (unspecified(header)?, 0);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(address) => destination = route_address(address)?,
            RouteAttribute::Priority(priority) => metric = *priority,
            _ => {}
        }
    }
    let prefix = IpNet::new(destination, header.destination_prefix_length).ok()?;
    (metric == UNREACHABLE_METRIC).then_some(prefix)
}

/// The destination of a route whose message names none.
fn unspecified(header: &RouteHeader) -> Option<IpAddr> {
    match header.address_family {
        AddressFamily::Inet => Some(std::net::Ipv4Addr::UNSPECIFIED.into()),
        AddressFamily::Inet6 => Some(std::net::Ipv6Addr::UNSPECIFIED.into()),
        _ => None,
    }
}

/// A route of somebody else. `None` for a cloned one, which is a cache entry such as a path MTU
/// that was learned, and for those that are only for some sources or services (TOS).
fn foreign_route(message: &RouteMessage) -> Option<ForeignRoute> {
    let header = &message.header;
    if header.flags.contains(RouteFlags::Cloned)
        || header.source_prefix_length != 0
        || header.tos != 0
    {
        return None;
    }
    let mut destination = unspecified(header)?;
    let (mut table, mut metric) = (u32::from(header.table), 0);
    let (mut several, mut object) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(address) => destination = route_address(address)?,
            RouteAttribute::Table(number) => table = *number,
            RouteAttribute::Priority(priority) => metric = *priority,
            RouteAttribute::MultiPath(hops) => several = Some(hops),
            RouteAttribute::NhId(number) => object = Some(*number),
            _ => {}
        }
    }
    let hops = match several {
        _ if header.kind != RouteType::Unicast => Vec::new(),
        Some(hops) => {
            let alive = hops
                .iter()
                .filter(|hop| !hop.flags.contains(RouteNextHopFlags::Dead));
            alive.filter_map(next_hop_of).collect()
        }
        None if header.flags.contains(RouteFlags::Dead) => Vec::new(),
        None => {
            let onlink = header.flags.contains(RouteFlags::Onlink);
            hop(&message.attributes, None, onlink).into_iter().collect()
        }
    };
    Some(ForeignRoute {
        table,
        prefix: IpNet::new(destination, header.destination_prefix_length).ok()?,
        metric,
        hops,
        object,
    })
}

fn next_hop_of(of: &RouteNextHop) -> Option<Hop> {
    let onlink = of.flags.contains(RouteNextHopFlags::Onlink);
    hop(&of.attributes, Some(of.interface_index), onlink)
}

/// The router that attributes name, if they do and packets go to it as they are.
fn hop(attributes: &[RouteAttribute], link: Option<u32>, onlink: bool) -> Option<Hop> {
    let (mut gateway, mut link) = (None, link);
    for attribute in attributes {
        match attribute {
            RouteAttribute::Gateway(address) => gateway = route_address(address),
            RouteAttribute::Via(via) => gateway = via_address(via),
            RouteAttribute::Oif(index) => link = Some(*index),
            RouteAttribute::EncapType(_) => return None,
            _ => {}
        }
    }
    Some(Hop {
        gateway: gateway?,
        link: link?,
        onlink,
    })
}

fn via_address(via: &RouteVia) -> Option<IpAddr> {
    match via {
        RouteVia::Inet(address) => Some((*address).into()),
        RouteVia::Inet6(address) => Some((*address).into()),
        _ => None,
    }
}

/// The answer to a request for the way to an address; `None` when that is not another host's.
pub(super) fn lookup(message: &RouteMessage) -> Option<Lookup> {
    if message.header.kind != RouteType::Unicast {
        return None;
    }
    let mut found = Lookup {
        link: 0,
        gateway: None,
        source: None,
        mtu: None,
        expires: None,
    };
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Oif(index) => found.link = *index,
            RouteAttribute::Gateway(address) => found.gateway = route_address(address),
            RouteAttribute::Via(via) => found.gateway = via_address(via),
            // A signed number to the kernel: below zero for what has just expired.
            RouteAttribute::CacheInfo(info) if info.expires != 0 => {
                let ticks = info.expires.cast_signed().max(0).cast_unsigned();
                found.expires = Some(CLOCK_TICK * ticks);
            }
            RouteAttribute::PrefSource(address) => found.source = route_address(address),
            RouteAttribute::Metrics(metrics) => found.mtu = mtu_of(metrics),
            _ => {}
        }
    }
    (found.link != 0).then_some(found)
}

#[cfg(test)]
mod tests {
    use super::super::build;
    use super::*;

    #[test]
    fn a_route_of_ours_is_read_as_it_was_made() {
        use RouteNetlinkMessage::NewRoute;
        let hop = |gateway: &str| Hop {
            gateway: gateway.parse().unwrap(),
            link: 9,
            onlink: true,
        };
        for mtu in [None, Some(1330)] {
            for hops in [
                vec![hop("10.0.1.0")],
                vec![hop("10.0.1.0"), hop("10.0.2.0")],
            ] {
                let route = Route::by("10.9.0.0/16".parse().unwrap(), hops).unwrap();
                let route = Route { mtu, ..route };
                let read = event(NewRoute(build::route(&route)), 0);
                assert_eq!(read, Some(Event::OurRoute(route.clone())));
                // Removed it is whatever its size is.
                let removed = build::any_route(&route).attributes;
                let sized = |a: &RouteAttribute| matches!(a, RouteAttribute::Metrics(_));
                assert!(!removed.iter().any(sized), "{removed:?}");
            }
        }
    }

    #[test]
    fn an_unreachable_route_of_ours_is_no_way_and_nobody_elses() {
        use RouteNetlinkMessage::{DelRoute, NewRoute};
        for prefix in ["10.0.0.0/24", "fd00::/64"] {
            let prefix: IpNet = prefix.parse().unwrap();
            let mut message = build::unreachable(prefix);
            assert_eq!(
                event(NewRoute(message.clone()), 0),
                Some(Event::Unreachable(prefix))
            );
            assert_eq!(
                event(DelRoute(message.clone()), 0),
                Some(Event::UnreachableGone(prefix))
            );
            // The kernel names the loopback with those of IPv6.
            message.attributes.push(RouteAttribute::Oif(1));
            assert_eq!(lookup(&message), None);
            message.header.table = 100;
            assert_eq!(event(NewRoute(message), 0), None, "another table");
            let mut other = build::unreachable(prefix);
            other.attributes.pop();
            assert_eq!(event(NewRoute(other), 0), None, "another metric");
        }
    }
}
