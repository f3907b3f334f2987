//! The kernel as it was last seen: a mirror of its links, addresses, neighbours and our objects.
//!
//! It starts from a dump and follows events. Each change of ours comes back as an event, too, so
//! the mirror is never written by hand and never ahead of the kernel.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use podway_proto::types::MacAddr;

use crate::netlink::{Address, Event, FdbEntry, Hop, Link, Neighbor, Route};

/// The mirror.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Observed {
    links: BTreeMap<u32, Link>,
    /// Their indices by name.
    names: BTreeMap<String, u32>,
    addresses: BTreeSet<Address>,
    neighbors: BTreeMap<(u32, IpAddr), Neighbor>,
    fdb: BTreeMap<(u32, MacAddr), IpAddr>,
    our_routes: BTreeMap<IpNet, Route>,
    /// The same by link.
    routes_by_link: BTreeSet<(u32, IpNet)>,
    unreachable: BTreeSet<IpNet>,
    stale: Stale,
}

/// Prefixes that are noted one by one. With more, asking for all ways costs less than to look which
/// are meant.
const MOST_PREFIXES: usize = 1024;

/// Ways that have to be asked again because events do not tell of them.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Stale {
    /// All: a link, an address or somebody else's route has changed.
    pub all: bool,
    /// Those to addresses inside these prefixes: a route of ours has come or gone.
    pub inside: BTreeSet<IpNet>,
}

impl Stale {
    /// Adds what another names.
    pub fn merge(&mut self, other: Self) {
        self.all |= other.all;
        other
            .inside
            .into_iter()
            .for_each(|prefix| self.insert(prefix));
    }

    fn insert(&mut self, prefix: IpNet) {
        self.all |= self.inside.len() >= MOST_PREFIXES;
        if self.all {
            self.inside.clear();
        } else {
            self.inside.insert(prefix);
        }
    }
}

impl Observed {
    /// The mirror of what a dump said. Everything else counts as stale.
    pub fn from_dump(events: Vec<Event>) -> Self {
        let mut observed = Self::default();
        for event in events {
            observed.apply(event);
        }
        observed.stale = Stale {
            all: true,
            inside: BTreeSet::new(),
        };
        observed
    }

    /// Takes one event in; whether it changed anything that matters.
    pub fn apply(&mut self, event: Event) -> bool {
        match event {
            Event::Link(link) => self.set_link(link),
            Event::LinkGone { index } => self.remove_link(index),
            Event::Address(address) => self.touch_addresses(|all| all.insert(address)),
            Event::AddressGone(address) => {
                let changed = self.touch_addresses(|all| all.remove(&address));
                let is_ipv4 = |a: &Address| a.index == address.index && a.address.is_ipv4();
                if is_ipv4(&address) && !self.addresses.iter().any(is_ipv4) {
                    self.drop_ipv4_routes(address.index);
                }
                changed
            }
            Event::Neighbor(neighbor) => {
                let key = (neighbor.index, neighbor.address);
                self.neighbors.insert(key, neighbor) != Some(neighbor)
            }
            Event::NeighborGone(n) => self.neighbors.remove(&(n.index, n.address)).is_some(),
            Event::Fdb(entry) => {
                self.fdb.insert((entry.index, entry.mac), entry.remote) != Some(entry.remote)
            }
            Event::FdbGone(entry) => self.fdb.remove(&(entry.index, entry.mac)).is_some(),
            Event::OurRoute(route) => {
                let prefix = route.prefix;
                let old = self.our_routes.get(&prefix);
                if old == Some(&route) {
                    return false;
                }
                for link in old.into_iter().flat_map(Route::links) {
                    self.routes_by_link.remove(&(link, prefix));
                }
                let links = route.links().map(|link| (link, prefix));
                self.routes_by_link.extend(links);
                self.our_routes.insert(prefix, route);
                self.stale.insert(prefix);
                true
            }
            // What it hid may now be the way to what was behind it.
            Event::OurRouteGone(route) => self.remove_routers(&route),
            Event::Unreachable(prefix) => self.touch_unreachable(prefix, |all| all.insert(prefix)),
            Event::UnreachableGone(prefix) => {
                self.touch_unreachable(prefix, |all| all.remove(&prefix))
            }
            // What changes by it is seen when ways are asked again.
            Event::ForeignRoute { route, replaces } => {
                self.stale.insert(route.prefix);
                let takes_place = replaces && route.is_in_our_place();
                if takes_place {
                    // The kernel does not tell that ours is gone.
                    self.remove_our_route(route.prefix);
                }
                takes_place
            }
            Event::ForeignRouteGone(route) => {
                self.stale.insert(route.prefix);
                // It may have been left there as it said the same.
                route.is_in_our_place() && !self.our_routes.contains_key(&route.prefix)
            }
            Event::NextHop { .. } | Event::RouteNoise => {
                self.stale.all = true;
                false
            }
        }
    }

    /// Takes away what the kernel tells to be gone: the whole route, or of an IPv6 one with several
    /// routers some of them (`fib6_del_route` of net/ipv6/ip6_fib.c tells of each alone).
    fn remove_routers(&mut self, gone: &Route) -> bool {
        let Some(old) = self.our_routes.get(&gone.prefix) else {
            return false;
        };
        let gone_hops: Vec<Hop> = gone.hops().collect();
        let left = old.hops().filter(|hop| !gone_hops.contains(hop)).collect();
        let (prefix, mtu) = (old.prefix, old.mtu);
        let left = Route::by(prefix, left).filter(|_| prefix.addr().is_ipv6());
        self.remove_our_route(prefix);
        match left {
            Some(left) => self.apply(Event::OurRoute(Route { mtu, ..left })),
            None => true,
        }
    }

    fn remove_our_route(&mut self, prefix: IpNet) -> bool {
        let Some(old) = self.our_routes.remove(&prefix) else {
            return false;
        };
        for link in old.links() {
            self.routes_by_link.remove(&(link, prefix));
        }
        self.stale.insert(prefix);
        true
    }

    fn set_link(&mut self, link: Link) -> bool {
        let (index, up) = (link.index, link.up);
        self.forget_name(index);
        self.names.insert(link.name.clone(), index);
        let old = self.links.insert(index, link);
        let changed = old.as_ref() != self.links.get(&index);
        self.stale.all |= changed;
        if !up && old.is_some_and(|old| old.up) {
            self.drop_ipv4_routes(index);
        }
        changed
    }

    /// With a link that goes down, and with the last IPv4 address of one, the kernel removes the
    /// IPv4 routes on it without a word (`fib_disable_ip` of net/ipv4/fib_frontend.c). One that has
    /// routers on other links, too, stays.
    fn drop_ipv4_routes(&mut self, link: u32) {
        for prefix in self.routes_on(link) {
            let route = self.our_routes.get(&prefix);
            let is_alone = route.is_none_or(|route| route.links().all(|on| on == link));
            if prefix.addr().is_ipv4() && is_alone {
                self.remove_our_route(prefix);
            }
        }
    }

    fn routes_on(&self, link: u32) -> Vec<IpNet> {
        let first = IpNet::V4(Ipv4Net::default());
        let last = IpNet::V6(Ipv6Net::new_assert(u128::MAX.into(), 128));
        let on_link = self.routes_by_link.range((link, first)..=(link, last));
        on_link.map(|(_, prefix)| *prefix).collect()
    }

    fn forget_name(&mut self, index: u32) {
        if let Some(link) = self.links.get(&index)
            && self.names.get(&link.name) == Some(&index)
        {
            self.names.remove(&link.name);
        }
    }

    fn remove_link(&mut self, index: u32) -> bool {
        self.forget_name(index);
        let before = self.size();
        self.links.remove(&index);
        // The kernel tells of what was on the link before it tells that the link is gone, but not
        // of all of it.
        self.addresses.retain(|address| address.index != index);
        self.neighbors.retain(|(on, _), _| *on != index);
        self.fdb.retain(|(on, _), _| *on != index);
        for prefix in self.routes_on(index) {
            self.remove_our_route(prefix);
        }
        self.stale.all = true;
        self.size() != before
    }

    /// How much is in the mirror.
    fn size(&self) -> usize {
        self.links.len()
            + self.addresses.len()
            + self.neighbors.len()
            + self.fdb.len()
            + self.our_routes.len()
    }

    fn touch_addresses(&mut self, change: impl FnOnce(&mut BTreeSet<Address>) -> bool) -> bool {
        let changed = change(&mut self.addresses);
        self.stale.all |= changed;
        changed
    }

    fn touch_unreachable(
        &mut self,
        prefix: IpNet,
        change: impl FnOnce(&mut BTreeSet<IpNet>) -> bool,
    ) -> bool {
        let changed = change(&mut self.unreachable);
        if changed {
            self.stale.insert(prefix);
        }
        changed
    }

    /// The ways that have to be asked again; from now on none.
    pub fn take_stale_ways(&mut self) -> Stale {
        std::mem::take(&mut self.stale)
    }

    /// All links by index.
    pub fn links(&self) -> impl Iterator<Item = &Link> {
        self.links.values()
    }

    /// The link of that index.
    pub fn link(&self, index: u32) -> Option<&Link> {
        self.links.get(&index)
    }

    /// The link of that name.
    pub fn link_named(&self, name: &str) -> Option<&Link> {
        self.links.get(self.names.get(name)?)
    }

    /// All addresses, by link.
    pub fn addresses(&self) -> impl Iterator<Item = &Address> {
        self.addresses.iter()
    }

    /// All neighbours, by link.
    pub fn neighbors(&self) -> impl Iterator<Item = &Neighbor> {
        self.neighbors.values()
    }

    /// All neighbours on a link.
    pub fn neighbors_on(&self, index: u32) -> impl Iterator<Item = &Neighbor> {
        let first = (index, IpAddr::V4(Ipv4Addr::UNSPECIFIED));
        let on_link = self.neighbors.range(first..);
        let on_link = on_link.take_while(move |((link, _), _)| *link == index);
        on_link.map(|(_, neighbor)| neighbor)
    }

    /// A neighbour on a link.
    pub fn neighbor(&self, index: u32, address: IpAddr) -> Option<&Neighbor> {
        self.neighbors.get(&(index, address))
    }

    /// The forwarding database of a VXLAN device.
    pub fn fdb(&self, index: u32) -> impl Iterator<Item = FdbEntry> {
        let (first, last) = (MacAddr([0; 6]), MacAddr([0xff; 6]));
        self.fdb
            .range((index, first)..=(index, last))
            .map(|((index, mac), remote)| FdbEntry {
                index: *index,
                mac: *mac,
                remote: *remote,
            })
    }

    /// Our unicast routes by prefix.
    pub fn our_routes(&self) -> &BTreeMap<IpNet, Route> {
        &self.our_routes
    }

    /// Prefixes to which packets are refused by routes of ours.
    pub fn unreachable(&self) -> &BTreeSet<IpNet> {
        &self.unreachable
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use crate::netlink::{ForeignRoute, Hop, LinkKind};

    use super::*;

    pub(crate) fn link(index: u32, name: &str) -> Link {
        Link {
            index,
            name: name.into(),
            up: true,
            mtu: 1500,
            mac: Some(MacAddr([2, 0, 0, 0, 0, u8::try_from(index).unwrap()])),
            kind: LinkKind::Veth,
        }
    }

    pub(crate) fn address(index: u32, text: &str) -> Address {
        let net: IpNet = text.parse().unwrap();
        Address {
            index,
            address: net.addr(),
            prefix_len: net.prefix_len(),
            global: true,
        }
    }

    #[test]
    fn an_event_twice_changes_once() {
        let mut observed = Observed::default();
        for event in [
            Event::Link(link(1, "eth0")),
            Event::Address(address(1, "10.0.0.1/24")),
        ] {
            assert!(observed.apply(event.clone()));
            assert!(!observed.apply(event));
        }
        assert!(observed.take_stale_ways().all);
        assert_eq!(observed.take_stale_ways(), Stale::default());
    }

    #[test]
    fn ways_into_a_prefix_are_asked_again_when_it_is_or_was_unreachable() {
        let prefix: IpNet = "10.0.0.0/24".parse().unwrap();
        let mut observed = Observed::default();
        for event in [Event::Unreachable(prefix), Event::UnreachableGone(prefix)] {
            assert!(observed.apply(event.clone()));
            assert!(!observed.apply(event), "a second time");
            let stale = observed.take_stale_ways();
            assert_eq!((stale.all, stale.inside), (false, BTreeSet::from([prefix])));
        }
        assert!(observed.unreachable().is_empty());
    }

    #[test]
    fn with_a_link_goes_what_is_on_it() {
        let prefix = "10.0.0.2/32".parse().unwrap();
        let route = Route {
            prefix,
            gateway: None,
            link: 1,
            onlink: false,
            also: Vec::new(),
            mtu: None,
        };
        let mut observed = Observed::from_dump(vec![
            Event::Link(link(1, "eth0")),
            Event::Link(link(2, "eth1")),
            Event::Address(address(1, "10.0.0.1/24")),
            Event::Address(address(2, "10.0.1.1/24")),
            Event::OurRoute(route),
        ]);
        assert!(observed.apply(Event::LinkGone { index: 1 }));
        assert!(observed.link_named("eth0").is_none());
        assert_eq!(
            observed.addresses().collect::<Vec<_>>(),
            [&address(2, "10.0.1.1/24")]
        );
        assert!(observed.our_routes().is_empty());
    }

    #[test]
    fn a_route_that_replaces_ours_is_there_in_its_place() {
        let ours = |prefix: &str| Route {
            prefix: prefix.parse().unwrap(),
            gateway: None,
            link: 1,
            onlink: false,
            also: Vec::new(),
            mtu: None,
        };
        let foreign = |prefix: &str, table, metric, replaces| Event::ForeignRoute {
            route: ForeignRoute {
                table,
                prefix: prefix.parse().unwrap(),
                metric,
                hops: Vec::new(),
                object: None,
            },
            replaces,
        };
        let prefixes = ["10.0.1.0/24", "fd00:1::/64"];
        let mut observed = Observed::from_dump(prefixes.map(|p| Event::OurRoute(ours(p))).to_vec());
        for beside in [
            foreign("10.0.1.0/24", 254, 0, false),
            foreign("10.0.1.0/24", 100, 0, true),
            foreign("10.0.1.0/24", 254, 1024, true),
            foreign("fd00:1::/64", 254, 20, true),
        ] {
            assert!(!observed.apply(beside.clone()), "{beside:?}");
            assert_eq!(observed.our_routes().len(), 2, "{beside:?}");
        }
        for (prefix, metric) in prefixes.into_iter().zip([0, 1024]) {
            assert!(observed.apply(foreign(prefix, 254, metric, true)));
            assert!(!observed.our_routes().contains_key(&prefix.parse().unwrap()));
            let gone = |metric| match foreign(prefix, 254, metric, false) {
                Event::ForeignRoute { route, .. } => Event::ForeignRouteGone(route),
                _ => unreachable!(),
            };
            assert!(!observed.apply(gone(7)));
            assert!(observed.apply(gone(metric)), "there is room for ours");
            observed.apply(Event::OurRoute(ours(prefix)));
            assert!(!observed.apply(gone(metric)));
        }
    }

    #[test]
    fn a_multipath_route_outlives_one_of_its_links_but_not_its_end() {
        let hop = |link, last: u8| Hop {
            gateway: IpAddr::from([10, 0, 0, last]),
            link,
            onlink: false,
        };
        let prefix = "10.9.0.0/16".parse().unwrap();
        let whole = || {
            let route = Route::by(prefix, vec![hop(2, 8), hop(1, 9)]).unwrap();
            let links = [link(1, "eth0"), link(2, "eth1")];
            let mut events: Vec<Event> = links.into_iter().map(Event::Link).collect();
            events.push(Event::OurRoute(route));
            Observed::from_dump(events)
        };
        let down = |observed: &mut Observed, index, name| {
            let mut link = link(index, name);
            link.up = false;
            assert!(observed.apply(Event::Link(link)));
        };
        let mut observed = whole();
        down(&mut observed, 1, "eth0");
        assert!(observed.our_routes().contains_key(&prefix));
        let rest = Route::by(prefix, vec![hop(2, 8)]).unwrap();
        assert!(observed.apply(Event::OurRoute(rest)));
        down(&mut observed, 2, "eth1");
        assert!(observed.our_routes().is_empty());
        for index in [1, 2] {
            let mut observed = whole();
            assert!(observed.apply(Event::LinkGone { index }));
            assert!(observed.our_routes().is_empty());
            assert!(observed.routes_by_link.is_empty());
        }
    }

    #[test]
    fn of_several_ipv6_routers_those_told_are_gone() {
        let hop = |last: u16| Hop {
            gateway: std::net::Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, last).into(),
            link: 1,
            onlink: false,
        };
        let prefix: IpNet = "fd09::/64".parse().unwrap();
        let by = |hops: &[u16]| Route::by(prefix, hops.iter().copied().map(hop).collect()).unwrap();
        let mut observed = Observed::from_dump(vec![
            Event::Link(link(1, "eth0")),
            Event::OurRoute(by(&[7, 8, 9])),
        ]);
        assert!(observed.apply(Event::OurRouteGone(by(&[8]))));
        assert_eq!(observed.our_routes().get(&prefix), Some(&by(&[7, 9])));
        assert!(observed.apply(Event::OurRouteGone(by(&[7, 9]))));
        assert!(observed.our_routes().is_empty());
        assert!(!observed.apply(Event::OurRouteGone(by(&[7]))));
    }

    #[test]
    fn a_renamed_link_is_found_by_its_new_name() {
        let mut observed = Observed::from_dump(vec![Event::Link(link(1, "eth0"))]);
        assert!(observed.apply(Event::Link(link(1, "wan"))));
        assert!(observed.link_named("eth0").is_none());
        assert_eq!(observed.link_named("wan").map(|link| link.index), Some(1));
    }
}
