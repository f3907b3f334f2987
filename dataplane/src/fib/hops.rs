//! The next hops in use: one per target, whom they serve, and what they depend on.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;

use super::facts::Facts;
use super::group::{Member, seed};
use super::lpm::NextHopIndex;
use super::next_hop::NextHop;
use super::resolve::{Dependency, Target, dependency, resolve, to_group, unresolved};
use super::tables::NextHops;

/// The next hops. A change of a fact marks those that depend on it; [`Hops::settle`] then makes
/// them anew, once, however many facts have changed.
#[derive(Debug, Default)]
pub(super) struct Hops {
    table: NextHops,
    /// By index, as in `table`.
    slots: Vec<Option<Slot>>,
    free: Vec<NextHopIndex>,
    by_target: BTreeMap<Target, NextHopIndex>,
    /// By link and neighbour: who depends on it.
    watchers: BTreeSet<(String, IpAddr, NextHopIndex)>,
    /// Those that a changed fact may have changed.
    marked: BTreeSet<NextHopIndex>,
}

#[derive(Debug)]
struct Slot {
    target: Target,
    /// RIB entries that name this next hop, those that another one takes precedence over too.
    users: usize,
    /// Prefixes whose packets go here.
    prefixes: Vec<IpNet>,
    /// What `watchers` says of it.
    watched: Option<Dependency>,
    /// The MTU in `table`; 0 while it is not resolved.
    mtu: u16,
    /// The members of a group, in the order of its target.
    members: Vec<NextHopIndex>,
    /// The groups that it is a member of.
    groups: Vec<NextHopIndex>,
}

impl Hops {
    pub(super) fn table(&self) -> &NextHops {
        &self.table
    }

    /// How many prefixes have an unresolved next hop.
    pub(super) fn unresolved_prefixes(&self) -> usize {
        let slots = self.slots.iter().flatten();
        slots
            .filter(|slot| slot.mtu == 0)
            .map(|slot| slot.prefixes.len())
            .sum()
    }

    /// One more user of the next hop to `target`, which is made if it is the first; `None` if
    /// there is no index left.
    pub(super) fn acquire(&mut self, target: &Target) -> Option<NextHopIndex> {
        if let Some(index) = self.by_target.get(target).copied() {
            if let Some(slot) = self.slot_mut(index) {
                slot.users += 1;
            }
            return Some(index);
        }
        let mut members = Vec::new();
        for member in target.members() {
            match self.acquire(member) {
                Some(member) => members.push(member),
                None => {
                    members.into_iter().for_each(|member| self.release(member));
                    return None;
                }
            }
        }
        let Some(index) = self.free_index() else {
            members.into_iter().for_each(|member| self.release(member));
            return None;
        };
        for member in &members {
            if let Some(slot) = self.slot_mut(*member) {
                slot.groups.push(index);
            }
        }
        *self.slots.get_mut(index.get())? = Some(Slot {
            target: target.clone(),
            users: 1,
            prefixes: Vec::new(),
            watched: None,
            mtu: 0,
            members,
            groups: Vec::new(),
        });
        self.by_target.insert(target.clone(), index);
        *self.table.get_mut(index.get()) = Some(unresolved());
        self.marked.insert(index);
        Some(index)
    }

    fn free_index(&mut self) -> Option<NextHopIndex> {
        self.free.pop().or_else(|| {
            let index = NextHopIndex::new(self.slots.len())?;
            self.slots.push(None);
            Some(index)
        })
    }

    /// One user less; the last one ends the next hop.
    pub(super) fn release(&mut self, index: NextHopIndex) {
        let Some(place) = self.slots.get_mut(index.get()) else {
            return;
        };
        match place {
            Some(slot) if slot.users > 1 => slot.users -= 1,
            place => {
                if let Some(slot) = place.take() {
                    self.by_target.remove(&slot.target);
                    self.watch(slot.watched, None, index);
                    *self.table.get_mut(index.get()) = None;
                    self.free.push(index);
                    for member in slot.members {
                        if let Some(slot) = self.slot_mut(member) {
                            slot.groups.retain(|group| *group != index);
                        }
                        self.release(member);
                    }
                }
            }
        }
    }

    /// Notes that packets to `prefix` go to this next hop. Returns what [`Hops::unlink`] wants.
    pub(super) fn link(&mut self, index: NextHopIndex, prefix: IpNet) -> usize {
        let Some(slot) = self.slot_mut(index) else {
            return 0;
        };
        slot.prefixes.push(prefix);
        slot.prefixes.len() - 1
    }

    /// Takes back a link. Returns the prefix that has its position now, if there is one.
    pub(super) fn unlink(&mut self, index: NextHopIndex, position: usize) -> Option<IpNet> {
        let slot = self.slot_mut(index)?;
        if position < slot.prefixes.len() {
            slot.prefixes.swap_remove(position);
        }
        slot.prefixes.get(position).copied()
    }

    /// Where a next hop leads.
    pub(super) fn target(&self, index: NextHopIndex) -> Option<&Target> {
        self.slot(index).map(|slot| &slot.target)
    }

    /// The MTU as of the last [`Hops::settle`]; 0 if it was not resolved then.
    pub(super) fn mtu(&self, index: NextHopIndex) -> u16 {
        self.slot(index).map_or(0, |slot| slot.mtu)
    }

    /// The facts about `target` have changed.
    pub(super) fn mark_target(&mut self, target: &Target) {
        self.marked.extend(self.by_target.get(target));
    }

    /// The facts about a node have changed.
    pub(super) fn mark_node(&mut self, name: &str) {
        let least = Target::Node {
            name: name.to_owned(),
            vni: None,
        };
        let is_it = |target: &Target| matches!(target, Target::Node { name: of, .. } if of == name);
        let of_it = self.by_target.range(least..);
        let of_it = of_it.take_while(|(target, _)| is_it(target));
        self.marked.extend(of_it.map(|(_, index)| *index));
    }

    /// A neighbour has come, changed or gone.
    pub(super) fn mark_neighbor(&mut self, interface: &str, address: IpAddr) {
        let key = |index| (interface.to_owned(), address, index);
        let watchers = self
            .watchers
            .range(key(NextHopIndex::MIN)..=key(NextHopIndex::MAX));
        self.marked.extend(watchers.map(|(_, _, index)| *index));
    }

    /// A port has come, changed or gone.
    pub(super) fn mark_link(&mut self, interface: &str) {
        self.mark_target(&Target::Pod(interface.to_owned()));
        // IPv4 addresses come before IPv6 ones.
        let lowest = IpAddr::from(Ipv4Addr::UNSPECIFIED);
        let watchers = self
            .watchers
            .range((interface.to_owned(), lowest, NextHopIndex::MIN)..)
            .take_while(|(link, _, _)| link == interface);
        self.marked.extend(watchers.map(|(_, _, index)| *index));
    }

    /// The facts about this node have changed.
    pub(super) fn mark_all(&mut self) {
        self.marked.extend(self.by_target.values());
    }

    /// Makes the marked next hops anew. Tells `changed` of each whose MTU or state is another
    /// one now: its prefixes, and the MTU it had, 0 if it was not resolved.
    pub(super) fn settle(&mut self, facts: &Facts, mut changed: impl FnMut(&[IpNet], u16)) {
        // Groups come behind their members, which they follow.
        let marked = std::mem::take(&mut self.marked);
        let is_group = |index: &NextHopIndex| {
            let slot = self.slot(*index);
            slot.is_some_and(|slot| !slot.members.is_empty())
        };
        let (mut groups, others): (BTreeSet<_>, BTreeSet<_>) =
            marked.into_iter().partition(is_group);
        for index in others {
            let Some(Some(slot)) = self.slots.get_mut(index.get()) else {
                continue;
            };
            let hop = resolve(facts, &slot.target).unwrap_or_else(unresolved);
            if hop.mtu != slot.mtu {
                groups.extend(&slot.groups);
            }
            let depends = dependency(facts, &slot.target);
            let watched = std::mem::replace(&mut slot.watched, depends.clone());
            self.watch(watched, depends, index);
            self.put(index, hop, &mut changed);
        }
        for index in groups {
            let members = self.resolved_members(index);
            let hop = to_group(&members).unwrap_or_else(unresolved);
            self.put(index, hop, &mut changed);
        }
    }

    /// Writes a next hop that was made anew, if it is another one now.
    fn put(&mut self, index: NextHopIndex, hop: NextHop, changed: &mut impl FnMut(&[IpNet], u16)) {
        let Some(Some(slot)) = self.slots.get_mut(index.get()) else {
            return;
        };
        if hop.mtu != slot.mtu {
            changed(&slot.prefixes, slot.mtu);
            slot.mtu = hop.mtu;
        }
        if self.table.get(index.get()).and_then(Option::as_ref) != Some(&hop) {
            *self.table.get_mut(index.get()) = Some(hop);
        }
    }

    /// The members of a group that are resolved.
    fn resolved_members(&self, index: NextHopIndex) -> Vec<Member> {
        let slot = self.slot(index);
        let members = slot.map_or(&[][..], |slot| slot.members.as_slice());
        let member = |index: &NextHopIndex| {
            let slot = self.slot(*index)?;
            (slot.mtu > 0).then(|| Member {
                index: *index,
                seed: seed(&slot.target),
                mtu: slot.mtu,
            })
        };
        members.iter().filter_map(member).collect()
    }

    fn watch(&mut self, old: Option<Dependency>, new: Option<Dependency>, index: NextHopIndex) {
        if old == new {
            return;
        }
        if let Some((interface, address)) = old {
            self.watchers.remove(&(interface, address, index));
        }
        if let Some((interface, address)) = new {
            self.watchers.insert((interface, address, index));
        }
    }

    fn slot(&self, index: NextHopIndex) -> Option<&Slot> {
        self.slots.get(index.get())?.as_ref()
    }

    fn slot_mut(&mut self, index: NextHopIndex) -> Option<&mut Slot> {
        self.slots.get_mut(index.get())?.as_mut()
    }
}
