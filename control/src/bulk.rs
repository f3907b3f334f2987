//! Bulks: many entries that come into force together or not at all.
//!
//! What a client hands over stays with its connection until the end, and goes with it. Then all
//! entries, those that stay and those that come, are checked against each other: so their order is
//! no matter, and what one takes from another may be told in one go.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::{Rc, Weak};
use std::time::{Duration, Instant};

use podway_proto::control::{NodeSpec, PortSpec, RouteSpec};
use podway_proto::entries::{Difference, Entries, EntryKey, MAX_BULK, RefusedEntry};
use podway_proto::{ErrorBody, ErrorCode};

use crate::index::Index;
use crate::state::{Desired, Fixed};

/// Most refusals that are told: who reads more than these?
pub const MAX_REFUSED: usize = 1000;
/// How long a client may say nothing of its bulk while another wants to begin one.
const SILENCE: Duration = Duration::from_secs(10);

/// A bulk that is whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bulk {
    /// Whether what it does not name is removed.
    pub replace: bool,
    /// Whether nothing is to be changed.
    pub dry_run: bool,
    /// What it brings.
    pub entries: Entries,
}

/// The one bulk that may be on its way in, so that what clients can make the daemon hold is bounded.
#[derive(Debug, Default)]
pub struct Turn(Weak<RefCell<Option<Staged>>>);

/// A connection's end of it.
#[derive(Debug, Default)]
pub struct Handle(Rc<RefCell<Option<Staged>>>);

#[derive(Debug)]
struct Staged {
    bulk: Bulk,
    /// Bytes of the lines that brought it.
    bytes: usize,
    /// When the client has said something of it last.
    heard: Instant,
}

impl Turn {
    /// Begins a bulk on the connection of `handle`; one that it has begun is forgotten.
    ///
    /// # Errors
    /// [`ErrorCode::Busy`] while another connection has one that it works on.
    pub fn begin(
        &mut self,
        handle: &Handle,
        replace: bool,
        dry_run: bool,
        now: Instant,
    ) -> Result<(), ErrorBody> {
        if let Some(holder) = self.0.upgrade().filter(|h| !Rc::ptr_eq(h, &handle.0)) {
            let mut holder = holder.borrow_mut();
            let works = |staged: &Staged| now.saturating_duration_since(staged.heard) < SILENCE;
            if holder.as_ref().is_some_and(works) {
                let message = "another client hands over many entries; try again when it is done";
                return Err(ErrorBody::new(ErrorCode::Busy, message));
            }
            *holder = None;
        }
        let bulk = Bulk {
            replace,
            dry_run,
            entries: Entries::default(),
        };
        *handle.0.borrow_mut() = Some(Staged {
            bulk,
            bytes: 0,
            heard: now,
        });
        self.0 = Rc::downgrade(&handle.0);
        Ok(())
    }
}

impl Handle {
    /// Adds entries that came in a line of so many `bytes`.
    ///
    /// # Errors
    /// When none was begun, or it grows too large; then it is forgotten.
    pub fn add(&self, entries: Entries, bytes: usize, now: Instant) -> Result<(), ErrorBody> {
        let mut held = self.0.borrow_mut();
        let staged = held.as_mut().ok_or_else(not_begun)?;
        staged.bytes += bytes;
        staged.heard = now;
        if staged.bytes > MAX_BULK {
            *held = None;
            let message = format!("a bulk has up to {MAX_BULK} bytes; hand over less at once");
            return Err(ErrorBody::new(ErrorCode::Invalid, message));
        }
        staged.bulk.entries.append(entries);
        Ok(())
    }

    /// What was handed over.
    ///
    /// # Errors
    /// When none was begun.
    pub fn end(&self) -> Result<Bulk, ErrorBody> {
        let staged = self.0.borrow_mut().take();
        staged.map(|staged| staged.bulk).ok_or_else(not_begun)
    }
}

fn not_begun() -> ErrorBody {
    let message = "no bulk is under way on this connection; send bulk-begin first";
    ErrorBody::new(ErrorCode::BadRequest, message)
}

/// The desired state when `bulk` has come to `current`.
///
/// # Errors
/// The entries that cannot be, or cannot be beside the others.
pub fn apply(
    current: &Desired,
    bulk: &Bulk,
    fixed: Fixed<'_>,
) -> Result<Desired, Vec<RefusedEntry>> {
    let told = &bulk.entries;
    let none = Desired::default();
    let stays = if bulk.replace { &none } else { current };
    let mut new = Desired::default();
    let mut refused = Vec::new();
    // Who was there comes first: of two that cannot be together, the one that comes is named. What
    // was there and is untouched was checked when it came: many nodes are not checked again for a
    // route.
    let same_nodes = told.nodes.is_empty();
    if same_nodes {
        new.nodes.clone_from(&stays.nodes);
    } else {
        let stays: Vec<NodeSpec> = stays.nodes.values().cloned().collect();
        add_all(&stays, &told.nodes, &mut refused, |node| new.set_node(node));
    }
    let index = Index::of(&new);
    let mut add = |new: &mut Desired, stays: &[RouteSpec]| {
        add_all(stays, &told.routes, &mut refused, |route| {
            new.set_route(route, true, fixed, &index)
        });
    };
    if same_nodes {
        new.routes.clone_from(&stays.routes);
        add(&mut new, &[]);
    } else {
        add(&mut new, &routes(stays));
    }
    if same_nodes && told.ports.is_empty() {
        new.ports.clone_from(&stays.ports);
    } else {
        add_all(&ports(stays), &told.ports, &mut refused, |port| {
            new.add_port(port, fixed)
        });
    }
    if refused.is_empty() {
        Ok(new)
    } else {
        refused.truncate(MAX_REFUSED);
        Err(refused)
    }
}

/// Adds what `stays`, as far as `told` does not name it, and then what is told.
fn add_all<T: Clone + PartialEq>(
    stays: &[T],
    told: &[T],
    refused: &mut Vec<RefusedEntry>,
    mut add: impl FnMut(T) -> Result<(), ErrorBody>,
) where
    for<'a> EntryKey: From<&'a T>,
{
    let mut keys = BTreeMap::new();
    for entry in told {
        let first = keys.entry(EntryKey::from(entry)).or_insert(entry);
        if *first != entry {
            let message = "it is told twice, with different values; tell it once";
            refused.push(RefusedEntry {
                entry: EntryKey::from(entry),
                error: ErrorBody::new(ErrorCode::Invalid, message),
            });
        }
    }
    let staying = stays
        .iter()
        .filter(|entry| !keys.contains_key(&EntryKey::from(*entry)));
    for entry in staying.chain(keys.values().copied()) {
        if let Err(error) = add(entry.clone()) {
            let entry = EntryKey::from(entry);
            refused.push(RefusedEntry { entry, error });
        }
    }
}

/// All that is desired, in order.
pub fn entries(desired: &Desired) -> Entries {
    Entries {
        nodes: desired.nodes.values().cloned().collect(),
        routes: routes(desired),
        ports: ports(desired),
    }
}

fn routes(desired: &Desired) -> Vec<RouteSpec> {
    let routes = desired.routes.iter();
    let spec = |(prefix, via): (&_, &_)| RouteSpec {
        prefix: *prefix,
        via: Clone::clone(via),
    };
    routes.map(spec).collect()
}

fn ports(desired: &Desired) -> Vec<PortSpec> {
    let ports = desired.ports.iter();
    let spec = |(interface, role): (&String, &_)| PortSpec {
        interface: interface.clone(),
        role: Clone::clone(role),
    };
    ports.map(spec).collect()
}

/// What changes from `before` to `after`.
pub fn difference(before: &Desired, after: &Desired) -> Difference {
    Difference {
        removed: beyond(before, after),
        added: beyond(after, before),
    }
}

/// The entries of `all` that are not the same in `other`.
fn beyond(all: &Desired, other: &Desired) -> Entries {
    let nodes = all.nodes.values();
    let routes = all.routes.iter();
    let route = |(prefix, via): (&_, &_)| RouteSpec {
        prefix: *prefix,
        via: Clone::clone(via),
    };
    let mut ports = ports(all);
    ports.retain(|port| other.ports.get(&port.interface) != Some(&port.role));
    Entries {
        nodes: nodes
            .filter(|node| other.nodes.get(&node.name) != Some(node))
            .cloned()
            .collect(),
        routes: routes
            .filter(|(prefix, via)| other.routes.get(prefix) != Some(via))
            .map(route)
            .collect(),
        ports,
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use ipnet::IpNet;
    use podway_proto::control::{PortRoleSpec, ViaSpec};
    use podway_proto::types::Vni;
    use proptest::prelude::*;

    use super::*;

    const FIXED: Fixed<'static> = Fixed {
        node_name: "a",
        uplink: Some("eth0"),
        vni: Vni::DEFAULT,
        also_vnis: &[],
    };

    fn node(name: &str, underlay: &str, cidr: &str) -> NodeSpec {
        NodeSpec {
            name: name.into(),
            underlay: underlay.parse().unwrap(),
            underlay6: None,
            pod_cidrs: vec![cidr.parse().unwrap()],
            vtep_mac: None,
            mode: None,
        }
    }

    fn route(prefix: &str, node: &str) -> RouteSpec {
        RouteSpec {
            prefix: prefix.parse().unwrap(),
            via: ViaSpec::Node {
                node: node.into(),
                vni: None,
            },
        }
    }

    fn uplink(interface: &str) -> PortSpec {
        PortSpec {
            interface: interface.into(),
            role: PortRoleSpec::Uplink {
                accept_partial_checksums: None,
            },
        }
    }

    fn bulk(replace: bool, entries: Entries) -> Bulk {
        Bulk {
            replace,
            dry_run: false,
            entries,
        }
    }

    /// Nodes b and c, a route by each, an uplink.
    fn current() -> Desired {
        let entries = Entries {
            nodes: vec![
                node("b", "192.168.1.2", "10.0.1.0/24"),
                node("c", "192.168.1.3", "10.0.2.0/24"),
            ],
            routes: vec![route("10.8.0.0/16", "b"), route("10.9.0.0/16", "c")],
            ports: vec![uplink("eth1")],
        };
        apply(&Desired::default(), &bulk(true, entries), FIXED).unwrap()
    }

    fn refusals(replace: bool, entries: Entries) -> Vec<(String, ErrorCode)> {
        let refused = apply(&current(), &bulk(replace, entries), FIXED).unwrap_err();
        let short = |refused: &RefusedEntry| (refused.entry.to_string(), refused.error.code);
        refused.iter().map(short).collect()
    }

    #[test]
    fn what_is_exported_can_be_put_back() {
        let all = entries(&current());
        assert_eq!(all.len(), 5);
        for (from, replace) in [
            (Desired::default(), false),
            (current(), false),
            (current(), true),
        ] {
            let again = apply(&from, &bulk(replace, all.clone()), FIXED).unwrap();
            assert_eq!(again, current());
        }
        assert!(difference(&current(), &current()).is_empty());
    }

    /// Few, so that nodes, routes and pods meet.
    fn address(number: u8) -> IpAddr {
        IpAddr::from([10, 0, number / 3 % 3, number % 3])
    }

    fn prefix(number: u8) -> IpNet {
        let length = [16, 24, 31, 32][usize::from(number % 4)];
        IpNet::new(address(number / 4), length).unwrap().trunc()
    }

    fn name(number: u8) -> String {
        ["a", "b", "c"][usize::from(number % 3)].to_owned()
    }

    /// Asks for a change that may be refused.
    fn change(desired: &mut Desired, kind: u8, [one, two, three]: [u8; 3]) {
        let index = Index::of(desired);
        let _ = match kind {
            0 | 1 => desired.set_node(NodeSpec {
                name: name(one),
                underlay: address(two),
                underlay6: None,
                pod_cidrs: Vec::from_iter((three % 5 > 0).then(|| prefix(three))),
                vtep_mac: None,
                mode: None,
            }),
            2 => desired.delete_node(&name(one), &index),
            3 | 4 => {
                let node = ViaSpec::Node {
                    node: name(three),
                    vni: None,
                };
                let router = ViaSpec::Gateway {
                    address: address(three),
                    interface: None,
                };
                let via = match two % 4 {
                    0 => router,
                    1 => ViaSpec::Multipath {
                        members: vec![node, router],
                    },
                    _ => node,
                };
                let prefix = prefix(one);
                desired.set_route(RouteSpec { prefix, via }, true, FIXED, &index)
            }
            5 => desired.delete_route(prefix(one)),
            6 => {
                let addresses = vec![address(two)];
                let role = PortRoleSpec::Pod {
                    addresses,
                    mac: None,
                    any_source: false,
                };
                let interface = name(one);
                desired.add_port(PortSpec { interface, role }, FIXED)
            }
            _ => desired.delete_port(&name(one), FIXED),
        };
    }

    proptest! {
        #[test]
        fn whatever_was_accepted_can_be_imported(
            steps in prop::collection::vec((0..8_u8, any::<[u8; 3]>()), 1..40),
        ) {
            let mut desired = Desired::default();
            for (kind, values) in steps {
                change(&mut desired, kind, values);
            }
            let all = bulk(true, entries(&desired));
            prop_assert_eq!(apply(&Desired::default(), &all, FIXED), Ok(desired));
        }
    }

    #[test]
    fn routes_alone_change_nothing_else() {
        let told = Entries {
            routes: vec![route("10.7.0.0/16", "b"), route("10.8.0.0/16", "c")],
            ..Entries::default()
        };
        let new = apply(&current(), &bulk(false, told.clone()), FIXED).unwrap();
        let Difference { removed, added } = difference(&current(), &new);
        assert_eq!(removed.routes, [route("10.8.0.0/16", "b")]);
        assert_eq!(removed.len(), 1);
        assert_eq!(added, told);
    }

    #[test]
    fn routes_come_whatever_ports_there_are() {
        // A pod has the first address of a PodCIDR, in a file of an earlier version.
        let mut current = current();
        let pod = PortRoleSpec::Pod {
            addresses: vec!["10.0.3.0".parse().unwrap()],
            mac: None,
            any_source: false,
        };
        current.ports.insert("veth-a".into(), pod);
        let node = node("d", "192.168.1.4", "10.0.3.0/24");
        current.nodes.insert("d".into(), node);
        let told = Entries {
            routes: vec![route("10.7.0.0/16", "d")],
            ..Entries::default()
        };
        let new = apply(&current, &bulk(false, told.clone()), FIXED).unwrap();
        assert_eq!(difference(&current, &new).added, told);
        assert_eq!(new.ports, current.ports);
    }

    #[test]
    fn a_merge_keeps_what_it_does_not_name_and_a_replacement_does_not() {
        let told = || Entries {
            // The PodCIDR that was b's is c's, in one go; a route changes its way.
            nodes: vec![
                node("c", "192.168.1.3", "10.0.1.0/24"),
                node("b", "192.168.1.2", "10.0.3.0/24"),
            ],
            routes: vec![route("10.8.0.0/16", "c")],
            ports: Vec::new(),
        };
        let merged = apply(&current(), &bulk(false, told()), FIXED).unwrap();
        assert_eq!(merged.routes.len(), 2);
        assert_eq!(merged.ports.len(), 1);
        let change = difference(&current(), &merged);
        assert_eq!(change.removed.len(), 3);
        assert_eq!(change.added.routes, [route("10.8.0.0/16", "c")]);
        let replaced = apply(&current(), &bulk(true, told()), FIXED).unwrap();
        assert_eq!(replaced.routes.len(), 1);
        let removed = difference(&current(), &replaced).removed;
        assert_eq!(removed.ports, [uplink("eth1")]);
    }

    #[test]
    fn entries_that_cannot_be_are_named_all_of_them() {
        let told = Entries {
            nodes: vec![node("d", "192.168.1.2", "10.0.4.0/24")],
            routes: vec![route("10.8.0.0/16", "nobody"), route("10.7.0.0/16", "c")],
            ports: vec![uplink("a/b")],
        };
        let by_name = |name: &str, code| (name.to_owned(), code);
        let expected = [
            by_name("node d", ErrorCode::AlreadyExists),
            by_name("route 10.8.0.0/16", ErrorCode::NotFound),
            by_name("port a/b", ErrorCode::Invalid),
        ];
        assert_eq!(refusals(false, told), expected);
        // A route that stays and cannot be beside a PodCIDR that comes.
        let taken = Entries {
            nodes: vec![node("c", "192.168.1.3", "10.8.0.0/16")],
            ..Entries::default()
        };
        let expected = [by_name("route 10.8.0.0/16", ErrorCode::AlreadyExists)];
        assert_eq!(refusals(false, taken), expected);
        let twice = Entries {
            routes: ["b", "b", "c"]
                .map(|node| route("10.8.0.0/16", node))
                .to_vec(),
            ..Entries::default()
        };
        let expected = [by_name("route 10.8.0.0/16", ErrorCode::Invalid)];
        assert_eq!(refusals(false, twice), expected);
        // Without nodes no route by one.
        let orphan = Entries {
            routes: vec![route("10.8.0.0/16", "b")],
            ..Entries::default()
        };
        let expected = [by_name("route 10.8.0.0/16", ErrorCode::NotFound)];
        assert_eq!(refusals(true, orphan), expected);
    }

    #[test]
    fn one_connection_hands_over_at_a_time_and_within_bounds() {
        let now = Instant::now();
        let mut turn = Turn::default();
        let (first, second) = (Handle::default(), Handle::default());
        let code = |result: Result<(), ErrorBody>| result.unwrap_err().code;
        let all = || entries(&current());
        assert_eq!(code(first.add(all(), 1, now)), ErrorCode::BadRequest);
        turn.begin(&first, false, true, now).unwrap();
        first.add(all(), MAX_BULK, now).unwrap();
        let busy = turn.begin(&second, false, true, now);
        assert_eq!(code(busy), ErrorCode::Busy);
        assert_eq!(code(first.add(all(), 1, now)), ErrorCode::Invalid);
        assert_eq!(code(first.end().map(drop)), ErrorCode::BadRequest);
        turn.begin(&second, false, true, now).unwrap();
        // One that is silent for long loses it, one that is gone does at once.
        turn.begin(&first, true, false, now + SILENCE).unwrap();
        assert_eq!(code(second.end().map(drop)), ErrorCode::BadRequest);
        drop(first);
        turn.begin(&second, true, false, now + SILENCE).unwrap();
        second.add(all(), 10, now).unwrap();
        second.add(Entries::default(), 10, now).unwrap();
        assert_eq!(second.end().unwrap(), bulk(true, all()));
    }
}
