//! Routes that a routing daemon writes into a table of the kernel, taken over as if they had been
//! added. Pure.
//!
//! [`Import`] mirrors the table: it starts from a dump and follows events. Whatever an event does
//! not tell for certain makes it doubtful, and then a new dump replaces it.
//!
//! - Of several routes to a prefix the kernel takes the one with the lowest metric, and so do we.
//!   Of several routers of a route those on uplinks share the flows; but where the first of them
//!   means a tunnel, those that mean none are left out, and the other way round.
//! - What is told otherwise wins: routes that were added, PodCIDRs and local pods.
//! - Left alone are the default route, and every prefix with the underlay address of a node in it:
//!   a tunnel cannot carry its own packets, and nodes are reached as the kernel says.
//! - The main table is what the kernel itself goes by, so its routes are native, by the router that
//!   they name. Any other table is Podway's to carry out: a router that is the underlay address of a
//!   node with tunnels means a tunnel to it, and control writes each route into the main table.
//!   (Were that done for the main table's own routes, too, zebra would take ours for the better
//!   one, withdraw its own, and with it the reason for ours.)

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use podway_proto::config::KernelTable;
use podway_proto::control::NodeSpec;
use podway_proto::types::{MULTIPATH, Mode};

use crate::index::Index;
use crate::netlink::{Event, ForeignRoute, Hop, Link};
use crate::state::check_prefix;
use crate::world::World;

/// The table is read anew at most this often.
const READ_PERIOD: Duration = Duration::from_millis(500);

/// The mirror of the table.
#[derive(Debug, Default)]
pub struct Import {
    table: Option<KernelTable>,
    /// Each prefix' routes, no two with one metric, the lowest first.
    routes: BTreeMap<IpNet, Vec<ForeignRoute>>,
    /// How many routes name each router, by link.
    routers: BTreeMap<(u32, IpAddr), usize>,
    /// How many routes name each next-hop object.
    objects: BTreeMap<u32, usize>,
    /// Links that went down under routers of the table: the kernel uses those again, without telling,
    /// when they come up.
    down: BTreeSet<u32>,
    doubtful: bool,
    read: Option<Instant>,
}

impl Import {
    /// An empty mirror of `table`, doubtful until the table was read. Without a table it stays as
    /// it is.
    pub fn of(table: Option<KernelTable>) -> Self {
        Self {
            table,
            doubtful: table.is_some(),
            ..Self::default()
        }
    }

    /// Takes in what the kernel tells; whether that is of a route of the table.
    pub fn apply(&mut self, event: &Event) -> bool {
        match event {
            Event::ForeignRoute { route, replaces } if self.follows(route) => {
                self.set(route, *replaces);
                return true;
            }
            Event::ForeignRouteGone(route) if self.follows(route) => {
                self.remove(route);
                return true;
            }
            // With a link or an address the kernel removes IPv4 routes without telling
            // (`fib_sync_down_dev`, `fib_sync_down_addr`).
            Event::Link(Link { index, up, .. }) => {
                if *up {
                    self.doubtful |= self.down.remove(index);
                } else if self.doubt_link(*index) {
                    self.down.insert(*index);
                }
            }
            Event::LinkGone { index } => {
                self.doubt_link(*index);
                self.down.remove(index);
            }
            Event::AddressGone(address) => {
                self.doubt_link(address.index);
            }
            Event::NextHop { object } => self.doubtful |= self.objects.contains_key(object),
            _ => {}
        }
        false
    }

    /// Whether a route is one of the table.
    pub fn follows(&self, route: &ForeignRoute) -> bool {
        self.table.map(KernelTable::number) == Some(route.table)
    }

    fn set(&mut self, route: &ForeignRoute, replaces: bool) {
        let all = self.routes.entry(route.prefix).or_default();
        match all.binary_search_by_key(&route.metric, |known| known.metric) {
            Ok(at) => {
                // Beside the other one and not in its place: IPv4 takes the one in front, IPv6
                // makes one of both.
                self.doubtful |= !replaces && all[at] != *route;
                let old = std::mem::replace(&mut all[at], route.clone());
                self.forget_routers(&old);
            }
            Err(at) => all.insert(at, route.clone()),
        }
        self.note_routers(route);
    }

    fn note_routers(&mut self, route: &ForeignRoute) {
        for hop in &route.hops {
            *self.routers.entry((hop.link, hop.gateway)).or_default() += 1;
        }
        if let Some(object) = route.object {
            *self.objects.entry(object).or_default() += 1;
        }
    }

    fn forget_routers(&mut self, route: &ForeignRoute) {
        for hop in &route.hops {
            forget(&mut self.routers, (hop.link, hop.gateway));
        }
        if let Some(object) = route.object {
            forget(&mut self.objects, object);
        }
    }

    fn remove(&mut self, route: &ForeignRoute) {
        let known = self.routes.get_mut(&route.prefix);
        let at = known
            .as_ref()
            .and_then(|all| all.iter().position(|one| one == route));
        match (known, at) {
            (Some(all), Some(at)) => {
                all.remove(at);
                if all.is_empty() {
                    self.routes.remove(&route.prefix);
                }
                self.forget_routers(route);
            }
            // One router of several, or one that stood beside another.
            (Some(_), None) => self.doubtful = true,
            (None, _) => {}
        }
    }

    /// Has the table read anew if it has routers on that link; whether it has.
    fn doubt_link(&mut self, index: u32) -> bool {
        let mut hops = self.routes.values().flatten().flat_map(|one| &one.hops);
        let has = hops.any(|hop| hop.link == index);
        self.doubtful |= has;
        has
    }

    /// Has the table read anew: events of it were lost.
    pub fn doubt(&mut self) {
        self.doubtful = self.table.is_some();
    }

    /// When the table has to be read anew, if it has.
    pub fn deadline(&self) -> Option<Instant> {
        let soonest = || self.read.map_or_else(Instant::now, |at| at + READ_PERIOD);
        self.doubtful.then(soonest)
    }

    /// The table to be read now, if it has to be.
    pub fn due(&self, now: Instant) -> Option<u32> {
        let recently = |at| now.saturating_duration_since(at) < READ_PERIOD;
        if !self.doubtful || self.read.is_some_and(recently) {
            return None;
        }
        self.table.map(KernelTable::number)
    }

    /// Replaces everything by what a dump said; `whole` when it surely said all. Whether it said
    /// something else than what was known.
    pub fn replace(&mut self, routes: Vec<ForeignRoute>, whole: bool, now: Instant) -> bool {
        let old = std::mem::take(&mut self.routes);
        self.routers.clear();
        self.objects.clear();
        for route in routes {
            let all = self.routes.entry(route.prefix).or_default();
            let found = all.binary_search_by_key(&route.metric, |known| known.metric);
            // Of several with one metric the kernel names the one that it takes first.
            if let Err(at) = found {
                all.insert(at, route.clone());
                self.note_routers(&route);
            }
        }
        self.doubtful = !whole;
        self.read = Some(now);
        self.routes != old
    }

    /// Notes that the table could not be read.
    pub fn failed(&mut self, now: Instant) {
        self.read = Some(now);
    }

    /// The prefixes of the table.
    pub fn prefixes(&self) -> impl Iterator<Item = IpNet> {
        self.routes.keys().copied()
    }

    /// Those of them that have several routers.
    pub fn multipath(&self) -> impl Iterator<Item = IpNet> {
        let first = self.routes.iter();
        let several = first.filter(|(_, all)| all.first().is_some_and(|one| one.hops.len() > 1));
        several.map(|(prefix, _)| *prefix)
    }

    /// Whether the table has a route to exactly `prefix`.
    pub fn has(&self, prefix: IpNet) -> bool {
        self.routes.contains_key(&prefix)
    }

    /// The routers that its routes name, by link.
    pub fn routers(&self) -> impl Iterator<Item = (u32, IpAddr)> {
        self.routers.keys().copied()
    }

    /// The prefixes whose routes a node with this underlay address is in the way of or takes.
    pub fn touched_by(&self, underlay: IpAddr) -> impl Iterator<Item = IpNet> {
        let routes = self.routes.iter().filter(move |(prefix, all)| {
            let mut hops = all.iter().flat_map(|route| &route.hops);
            prefix.contains(&underlay) || hops.any(|hop| hop.gateway == underlay)
        });
        routes.map(|(prefix, _)| *prefix)
    }

    /// Whether control writes the routes into the main table.
    pub fn carries_out(&self) -> bool {
        self.table != Some(KernelTable::MAIN)
    }
}

/// Counts one user less.
fn forget<K: Ord>(users: &mut BTreeMap<K, usize>, key: K) {
    if let Entry::Occupied(mut count) = users.entry(key) {
        *count.get_mut() -= 1;
        if *count.get() == 0 {
            count.remove();
        }
    }
}

/// A route of the table that is taken over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Imported<'a> {
    /// What is reached.
    pub prefix: IpNet,
    /// By whom: one or several, all in tunnels or none.
    pub routers: Vec<Router<'a>>,
}

/// A router of a route that is taken over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Router<'a> {
    /// The router.
    pub hop: Hop,
    /// Its link, an uplink.
    pub link: &'a Link,
    /// The node that the router is, if packets go to it in a tunnel.
    pub tunnel: Option<&'a NodeSpec>,
}

/// The route to exactly `prefix`, if there is one that is taken over.
pub fn route<'a>(world: &World<'a>, index: &Index, prefix: IpNet) -> Option<Imported<'a>> {
    let import = world.import;
    let hops = &import.routes.get(&prefix)?.first()?.hops;
    let by_uplink = hops.iter().filter_map(|hop| {
        let link = world.observed.link(hop.link)?;
        world.is_uplink(&link.name).then_some((*hop, link))
    });
    let told = world.desired.routes.contains_key(&prefix)
        || index.node_of_cidr(prefix).is_some()
        || index.port_of(prefix).is_some();
    let own = world.underlay();
    let has_node = index.node_in(prefix).is_some() || own.is_some_and(|own| prefix.contains(&own));
    if told || has_node || check_prefix(prefix).is_err() {
        return None;
    }
    let router = |(hop, link): (Hop, &'a Link)| {
        let node = index.node_at(hop.gateway).filter(|_| import.carries_out());
        let node = node.filter(|name| *name != world.settings.node_name);
        let node = node.and_then(|name| world.desired.nodes.get(name));
        let tunnel = node.filter(|node| world.mode(node) == Mode::Vxlan);
        Router { hop, link, tunnel }
    };
    let mut routers: Vec<Router<'_>> = by_uplink.map(router).collect();
    let in_tunnel = routers.first()?.tunnel.is_some();
    routers.retain(|router| router.tunnel.is_some() == in_tunnel);
    routers.truncate(*MULTIPATH.end());
    Some(Imported { prefix, routers })
}

#[cfg(test)]
pub(crate) mod tests {
    use podway_proto::control::ViaSpec;

    use super::*;
    use crate::observed::tests::{address, link};
    use crate::world::tests::Fixture;

    const TABLE: u32 = 100;

    fn hop(gateway: &str, link: u32) -> Hop {
        Hop {
            gateway: gateway.parse().unwrap(),
            link,
            onlink: false,
        }
    }

    /// A route of the table by routers on the fixture's uplink.
    pub(crate) fn route(prefix: &str, metric: u32, gateways: &[&str]) -> ForeignRoute {
        ForeignRoute {
            table: TABLE,
            prefix: prefix.parse().unwrap(),
            metric,
            hops: gateways.iter().map(|gateway| hop(gateway, 2)).collect(),
            object: None,
        }
    }

    /// The mirror of a table with these routes.
    pub(crate) fn import(table: &str, routes: Vec<ForeignRoute>) -> Import {
        let text = format!("import-kernel-table = {table}");
        let config: podway_proto::config::Config = toml::from_str(&text).unwrap();
        let mut import = Import::of(config.import_kernel_table);
        let table = import.due(Instant::now()).unwrap();
        let own = |route| ForeignRoute { table, ..route };
        let routes = routes.into_iter().map(own).collect();
        assert!(import.replace(routes, true, Instant::now()));
        import
    }

    fn added(route: ForeignRoute) -> Event {
        let replaces = false;
        Event::ForeignRoute { route, replaces }
    }

    fn replaced(route: ForeignRoute) -> Event {
        let replaces = true;
        Event::ForeignRoute { route, replaces }
    }

    fn seen(fixture: &Fixture) -> Vec<String> {
        let router = |router: &Router<'_>| {
            let node = router.tunnel.map(|node| format!(" node {}", node.name));
            format!(" {}{}", router.hop.gateway, node.unwrap_or_default())
        };
        let text = |route: Imported<'_>| {
            let routers: String = route.routers.iter().map(router).collect();
            format!("{}{routers}", route.prefix)
        };
        let (world, index) = (fixture.world(), fixture.index());
        let prefixes = world.import.prefixes();
        let taken = prefixes.filter_map(|prefix| super::route(&world, &index, prefix));
        taken.map(text).collect()
    }

    #[test]
    fn the_lowest_metric_counts_and_then_the_routers_on_uplinks() {
        let mut fixture = Fixture::new();
        let mut several = route(
            "10.9.0.0/24",
            20,
            &["10.0.0.2", "192.168.1.8", "192.168.1.9"],
        );
        several.hops[0].link = 3;
        fixture.import = import(
            "100",
            vec![several, route("10.8.0.0/24", 32, &["192.168.1.9"])],
        );
        assert_eq!(
            seen(&fixture),
            [
                "10.8.0.0/24 192.168.1.9",
                "10.9.0.0/24 192.168.1.8 192.168.1.9"
            ]
        );
        let better = route("10.8.0.0/24", 20, &["192.168.1.7"]);
        fixture.import.apply(&added(better.clone()));
        assert_eq!(seen(&fixture)[0], "10.8.0.0/24 192.168.1.7");
        // A better one that throws packets away hides the other as well.
        let blackhole = route("10.8.0.0/24", 20, &[]);
        fixture.import.apply(&replaced(blackhole.clone()));
        assert_eq!(seen(&fixture), ["10.9.0.0/24 192.168.1.8 192.168.1.9"]);
        fixture.import.apply(&Event::ForeignRouteGone(blackhole));
        assert_eq!(seen(&fixture)[0], "10.8.0.0/24 192.168.1.9");
        assert_eq!(fixture.import.deadline(), None);
        let other_table = ForeignRoute { table: 7, ..better };
        fixture.import.apply(&added(other_table.clone()));
        fixture.import.apply(&Event::ForeignRouteGone(other_table));
        assert_eq!(seen(&fixture)[0], "10.8.0.0/24 192.168.1.9");
    }

    #[test]
    fn what_an_event_does_not_tell_is_read_anew() {
        let known = route("10.9.0.0/24", 20, &["192.168.1.8", "192.168.1.9"]);
        let doubts = |event: Event| {
            let mut import = import("100", vec![known.clone()]);
            import.apply(&event);
            import.deadline().is_some()
        };
        let one = route("10.9.0.0/24", 20, &["192.168.1.8"]);
        assert!(doubts(added(one.clone())), "beside the other");
        assert!(doubts(Event::ForeignRouteGone(one.clone())), "a part of it");
        assert!(doubts(Event::LinkGone { index: 2 }));
        assert!(doubts(Event::AddressGone(address(2, "192.168.1.1/24"))));
        let mut down = link(2, "eth0");
        assert!(!doubts(Event::Link(down.clone())));
        down.up = false;
        assert!(doubts(Event::Link(down.clone())));
        // The kernel uses a router again without telling.
        let mut import = self::import("100", vec![known.clone()]);
        import.apply(&Event::Link(down.clone()));
        import.replace(vec![one.clone()], true, Instant::now());
        let up = |index| Event::Link(link(index, "eth0"));
        import.apply(&up(3));
        assert_eq!(import.deadline(), None, "another link");
        import.apply(&up(2));
        assert!(import.deadline().is_some());
        import.replace(vec![known.clone()], true, Instant::now());
        import.apply(&up(2));
        assert_eq!(import.deadline(), None, "once");
        assert!(!doubts(replaced(one.clone())));
        assert!(!doubts(added(known.clone())), "said twice");
        assert!(!doubts(Event::ForeignRouteGone(known.clone())));
        assert!(!doubts(Event::LinkGone { index: 3 }), "another link");

        let object = Some(7);
        let by_object = ForeignRoute {
            object,
            ..known.clone()
        };
        let mut import = self::import("100", vec![by_object.clone()]);
        import.apply(&Event::NextHop { object: 8 });
        assert_eq!(import.deadline(), None, "another object");
        import.apply(&Event::ForeignRouteGone(by_object.clone()));
        import.apply(&Event::NextHop { object: 7 });
        assert_eq!(import.deadline(), None, "its routes went before");
        import.apply(&added(by_object));
        import.apply(&Event::NextHop { object: 7 });
        assert!(import.deadline().is_some());

        let mut import = self::import("100", vec![known.clone()]);
        import.doubt();
        let soon = import.deadline().unwrap();
        assert_eq!(import.due(soon - Duration::from_millis(1)), None);
        assert_eq!(import.due(soon), Some(TABLE));
        // Marked and swept: what the dump does not name is gone.
        assert!(import.replace(vec![route("10.7.0.0/24", 0, &["192.168.1.9"])], false, soon));
        assert_eq!(import.routes.len(), 1);
        assert!(import.deadline().is_some(), "not surely all");
        let again = soon + READ_PERIOD;
        let same = vec![route("10.7.0.0/24", 0, &["192.168.1.9"])];
        assert!(!import.replace(same, true, again));
        assert_eq!(import.deadline(), None);
    }

    #[test]
    fn what_is_told_wins_and_nodes_stay_the_kernels() {
        let mut fixture = Fixture::new();
        let by = ["192.168.1.2"];
        let all = [
            "0.0.0.0/0",
            "10.0.0.2/32",
            "10.0.1.0/24",
            "10.8.0.0/16",
            "192.168.0.0/16",
        ];
        let all = all
            .into_iter()
            .chain(["192.168.1.2/32", "224.0.0.0/8", "10.0.1.0/25"]);
        let node = ViaSpec::Node {
            node: "b".into(),
            vni: None,
        };
        let routes = &mut fixture.desired.routes;
        routes.insert("10.8.0.0/16".parse().unwrap(), node);
        fixture.import = import("100", all.map(|prefix| route(prefix, 20, &by)).collect());
        assert_eq!(seen(&fixture), ["10.0.1.0/25 192.168.1.2 node b"]);
        fixture.desired.routes.clear();
        fixture
            .desired
            .nodes
            .get_mut("b")
            .unwrap()
            .pod_cidrs
            .clear();
        assert_eq!(
            seen(&fixture),
            [
                "10.0.1.0/24 192.168.1.2 node b",
                "10.0.1.0/25 192.168.1.2 node b",
                "10.8.0.0/16 192.168.1.2 node b",
            ]
        );
    }

    #[test]
    fn tunnels_and_routers_are_not_mixed() {
        let mut fixture = Fixture::new();
        let by = |gateways: &[&str]| import("100", vec![route("10.9.0.0/24", 20, gateways)]);
        fixture.import = by(&["192.168.1.2", "192.168.1.9"]);
        assert_eq!(seen(&fixture), ["10.9.0.0/24 192.168.1.2 node b"]);
        fixture.import = by(&["192.168.1.9", "192.168.1.2", "192.168.1.8"]);
        assert_eq!(seen(&fixture), ["10.9.0.0/24 192.168.1.9 192.168.1.8"]);
        let many: Vec<String> = (10..30).map(|last| format!("192.168.1.{last}")).collect();
        fixture.import = by(&many.iter().map(String::as_str).collect::<Vec<_>>());
        let (world, index) = (fixture.world(), fixture.index());
        let taken = super::route(&world, &index, "10.9.0.0/24".parse().unwrap());
        assert_eq!(taken.unwrap().routers.len(), 16);
    }

    #[test]
    fn routes_of_the_main_table_and_to_native_nodes_are_native() {
        let mut fixture = Fixture::new();
        let one = || vec![route("10.9.0.0/24", 20, &["192.168.1.2"])];
        fixture.import = import("'main'", one());
        assert_eq!(seen(&fixture), ["10.9.0.0/24 192.168.1.2"]);
        assert!(!fixture.import.carries_out());
        fixture.import = import("100", one());
        assert_eq!(seen(&fixture), ["10.9.0.0/24 192.168.1.2 node b"]);
        assert!(fixture.import.carries_out());
        fixture.desired.nodes.get_mut("b").unwrap().mode = Some(Mode::Native);
        assert_eq!(seen(&fixture), ["10.9.0.0/24 192.168.1.2"]);
    }
}
