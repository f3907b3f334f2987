//! The kernel as it was last seen: a mirror of its links, addresses, neighbours and our objects.
//!
//! It starts from a dump and follows events. Each change of ours comes back as an event, too, so
//! the mirror is never written by hand and never ahead of the kernel.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use podway_proto::types::MacAddr;

use crate::netlink::{Address, Event, FdbEntry, Link, Neighbor, Route};

/// The mirror.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Observed {
    links: BTreeMap<u32, Link>,
    addresses: BTreeSet<Address>,
    neighbors: BTreeMap<(u32, IpAddr), Neighbor>,
    fdb: BTreeMap<(u32, MacAddr), IpAddr>,
    our_routes: BTreeMap<IpNet, Route>,
    stale: Stale,
}

/// What has to be asked again because events do not tell it.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Stale {
    /// Ways to addresses: a link, an address or a route has changed.
    ways: bool,
    /// Our routes: with a link that goes down or an address that goes away the kernel removes
    /// IPv4 routes without telling (`fib_sync_down_dev`, `fib_sync_down_addr`).
    our_routes: bool,
}

impl Observed {
    /// The mirror of what a dump said. Everything else counts as stale.
    pub fn from_dump(events: Vec<Event>) -> Self {
        let mut observed = Self::default();
        for event in events {
            observed.apply(event);
        }
        observed.stale = Stale {
            ways: true,
            our_routes: false,
        };
        observed
    }

    /// Takes one event in; whether it changed anything that matters.
    pub fn apply(&mut self, event: Event) -> bool {
        match event {
            Event::Link(link) => self.set_link(link),
            Event::LinkGone { index } => self.remove_link(index),
            Event::Address(address) => self.touch_addresses(|all| all.insert(address)),
            Event::AddressGone(address) => self.touch_addresses(|all| all.remove(&address)),
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
                let old = self.our_routes.insert(route.prefix, route.clone());
                let changed = old.as_ref() != Some(&route);
                self.stale.ways |= changed;
                changed
            }
            // What it hid may now be the way to what was behind it.
            Event::OurRouteGone(route) => {
                let changed = self.our_routes.remove(&route.prefix).is_some();
                self.stale.ways |= changed;
                changed
            }
            // What changes by it is seen when ways are asked again; a routing daemon that loads a
            // table makes thousands of these.
            Event::ForeignRoute { .. } | Event::ForeignRouteGone(_) | Event::RouteNoise => {
                self.stale.ways = true;
                false
            }
        }
    }

    fn set_link(&mut self, link: Link) -> bool {
        let index = link.index;
        let old = self.links.insert(index, link);
        let changed = old.as_ref() != self.links.get(&index);
        if changed {
            self.stale = Stale {
                ways: true,
                our_routes: true,
            };
        }
        changed
    }

    fn remove_link(&mut self, index: u32) -> bool {
        let existed = self.links.remove(&index).is_some();
        // The kernel tells of what was on the link before it tells that the link is gone, but not
        // of all of it.
        self.addresses.retain(|address| address.index != index);
        self.neighbors.retain(|(on, _), _| *on != index);
        self.fdb.retain(|(on, _), _| *on != index);
        self.our_routes.retain(|_, route| route.link != index);
        self.stale = Stale {
            ways: true,
            our_routes: true,
        };
        existed
    }

    fn touch_addresses(&mut self, change: impl FnOnce(&mut BTreeSet<Address>) -> bool) -> bool {
        let changed = change(&mut self.addresses);
        if changed {
            self.stale = Stale {
                ways: true,
                our_routes: true,
            };
        }
        changed
    }

    /// Whether ways have to be asked again; from now on they have not.
    pub fn take_stale_ways(&mut self) -> bool {
        std::mem::take(&mut self.stale.ways)
    }

    /// Whether our routes have to be asked again; from now on they have not.
    pub fn take_stale_routes(&mut self) -> bool {
        std::mem::take(&mut self.stale.our_routes)
    }

    /// Replaces our routes by what a dump said.
    pub fn set_our_routes(&mut self, events: Vec<Event>) {
        self.our_routes.clear();
        for event in events {
            self.apply(event);
        }
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
        self.links.values().find(|link| link.name == name)
    }

    /// All addresses, by link.
    pub fn addresses(&self) -> impl Iterator<Item = &Address> {
        self.addresses.iter()
    }

    /// All neighbours, by link.
    pub fn neighbors(&self) -> impl Iterator<Item = &Neighbor> {
        self.neighbors.values()
    }

    /// A neighbour on a link.
    pub fn neighbor(&self, index: u32, address: IpAddr) -> Option<&Neighbor> {
        self.neighbors.get(&(index, address))
    }

    /// The forwarding database of a VXLAN device.
    pub fn fdb(&self, index: u32) -> impl Iterator<Item = FdbEntry> {
        let of_device = move |((on, _), _): &(&(u32, MacAddr), &IpAddr)| *on == index;
        self.fdb
            .iter()
            .filter(of_device)
            .map(|((index, mac), remote)| FdbEntry {
                index: *index,
                mac: *mac,
                remote: *remote,
            })
    }

    /// Our routes by prefix.
    pub fn our_routes(&self) -> &BTreeMap<IpNet, Route> {
        &self.our_routes
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use crate::netlink::LinkKind;

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
        assert!(observed.take_stale_ways() && observed.take_stale_routes());
        assert!(!observed.take_stale_ways() && !observed.take_stale_routes());
    }

    #[test]
    fn with_a_link_goes_what_is_on_it() {
        let prefix = "10.0.0.2/32".parse().unwrap();
        let route = Route {
            prefix,
            gateway: None,
            link: 1,
            onlink: false,
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
    fn a_renamed_link_is_found_by_its_new_name() {
        let mut observed = Observed::from_dump(vec![Event::Link(link(1, "eth0"))]);
        assert!(observed.apply(Event::Link(link(1, "wan"))));
        assert!(observed.link_named("eth0").is_none());
        assert_eq!(observed.link_named("wan").map(|link| link.index), Some(1));
    }
}
