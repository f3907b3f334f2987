//! The prefixes: which next hop each has, and the tables and differences that follow from it.

use std::collections::HashMap;
use std::net::IpAddr;

use ipnet::IpNet;
use prefix_trie::joint::map::JointPrefixMap;

use super::address::Prefix;
use super::facts::{FactError, Facts, MAX_PREFIXES};
use super::hops::Hops;
use super::lpm::{LpmV4, LpmV4Builder, LpmV6, NextHopIndex};
use super::resolve::Target;
use super::tables::NextHops;
use super::xdp_delta::XdpDelta;

/// The routing information base: every prefix, with the LPM tables kept equal to it.
#[derive(Debug, Default)]
pub(super) struct Rib {
    prefixes: JointPrefixMap<IpNet, Entry>,
    v4: LpmV4Builder,
    v6: LpmV6,
    hops: Hops,
    /// What was last told of the prefixes that may have changed since: their MTU, 0 for an
    /// unresolved one, `None` for one that was not there.
    told: HashMap<IpNet, Option<u16>>,
}

/// Who wants the packets of a prefix.
#[derive(Debug, Clone, Copy, Default)]
struct Entry {
    /// A pod of this node, whose address it is: before any route. A pod that moves here may be
    /// attached before the route to its old place is withdrawn.
    pod: Option<NextHopIndex>,
    /// The route, and the synchronisation in which it was last named.
    route: Option<(NextHopIndex, u64)>,
    /// The prefix' position among those of its next hop.
    position: usize,
}

impl Entry {
    fn next_hop(&self) -> Option<NextHopIndex> {
        self.pod.or(self.route.map(|(index, _)| index))
    }
}

impl Rib {
    /// How many prefixes there are.
    pub(super) fn len(&self) -> usize {
        self.prefixes.len()
    }

    pub(super) fn tables(&self) -> (LpmV4, LpmV6, NextHops) {
        (
            self.v4.snapshot(),
            self.v6.clone(),
            self.hops.table().clone(),
        )
    }

    pub(super) fn hops(&self) -> &Hops {
        &self.hops
    }

    /// The next hops, to mark those that a changed fact may have changed.
    pub(super) fn hops_mut(&mut self) -> &mut Hops {
        &mut self.hops
    }

    /// Sets the route of `prefix`; whether that changed it.
    pub(super) fn set_route(
        &mut self,
        prefix: IpNet,
        target: &Target,
        epoch: u64,
    ) -> Result<bool, FactError> {
        if let Some(entry) = self.prefixes.get_mut(&prefix)
            && let Some((index, named)) = &mut entry.route
            && self.hops.target(*index) == Some(target)
        {
            *named = epoch;
            return Ok(false);
        }
        self.check_room(&[prefix])?;
        let index = self.hops.acquire(target).ok_or(FactError::TableFull)?;
        self.change(prefix, |entry| {
            let old = entry.route.replace((index, epoch));
            old.map(|(old, _)| old)
        });
        Ok(true)
    }

    /// Withdraws the route of `prefix`.
    pub(super) fn del_route(&mut self, prefix: IpNet) -> Result<(), FactError> {
        let entry = self.prefixes.get(&prefix);
        if entry.is_none_or(|entry| entry.route.is_none()) {
            return Err(FactError::NoSuchRoute(prefix));
        }
        self.change(prefix, |entry| entry.route.take().map(|(old, _)| old));
        Ok(())
    }

    /// The prefixes whose route was last named in another synchronisation than `epoch`.
    pub(super) fn routes_not_of(&self, epoch: u64) -> Vec<IpNet> {
        self.prefixes
            .iter()
            .filter(|(_, entry)| entry.route.is_some_and(|(_, named)| named != epoch))
            .map(|(prefix, _)| prefix)
            .collect()
    }

    /// Every route, those included that wait behind the address of a pod.
    pub(super) fn routes(&self) -> impl Iterator<Item = (IpNet, &Target)> {
        self.prefixes.iter().filter_map(|(prefix, entry)| {
            let (index, _) = entry.route?;
            Some((prefix, self.hops.target(index)?))
        })
    }

    /// The longest prefix that holds `address`, with its next hop.
    pub(super) fn longest(&self, address: IpAddr) -> Option<(IpNet, NextHopIndex)> {
        let (prefix, entry) = self.prefixes.get_lpm(&IpNet::from(address))?;
        Some((prefix, entry.next_hop()?))
    }

    /// The interface of the pod that has `address`.
    pub(super) fn pod(&self, address: IpAddr) -> Option<&str> {
        let entry = self.prefixes.get(&IpNet::from(address))?;
        match self.hops.target(entry.pod?)? {
            Target::Pod(interface) => Some(interface),
            Target::Node { .. } | Target::Gateway { .. } | Target::Group(_) => None,
        }
    }

    /// Gives `address` to the pod behind `interface`. That there is room for it was checked.
    pub(super) fn set_pod(&mut self, address: IpAddr, interface: &str) {
        if self.pod(address) == Some(interface) {
            return;
        }
        if let Some(index) = self.hops.acquire(&Target::Pod(interface.to_owned())) {
            self.change(IpNet::from(address), |entry| entry.pod.replace(index));
        }
    }

    /// Takes `address` from the pod that has it.
    pub(super) fn del_pod(&mut self, address: IpAddr) {
        self.change(IpNet::from(address), |entry| entry.pod.take());
    }

    /// Whether there is room for `prefixes`, some of which may be there already.
    pub(super) fn check_room(&self, prefixes: &[IpNet]) -> Result<(), FactError> {
        let new = |v4: bool| {
            prefixes
                .iter()
                .filter(|prefix| prefix.addr().is_ipv4() == v4)
                .filter(|prefix| !self.prefixes.contains_key(prefix))
                .count()
        };
        let full = self.prefixes.t1.len() + new(true) > MAX_PREFIXES
            || self.prefixes.t2.len() + new(false) > MAX_PREFIXES;
        if full {
            Err(FactError::TableFull)
        } else {
            Ok(())
        }
    }

    /// Makes the next hops anew that changed facts concern.
    pub(super) fn settle(&mut self, facts: &Facts) {
        let told = &mut self.told;
        self.hops.settle(facts, |prefixes, mtu| {
            for prefix in prefixes {
                told.entry(*prefix).or_insert(Some(mtu));
            }
        });
    }

    /// What the XDP program's maps need to follow, since the last call. The next hops must be
    /// settled.
    pub(super) fn take_delta(&mut self) -> XdpDelta {
        let mut delta = XdpDelta::default();
        for (prefix, before) in std::mem::take(&mut self.told) {
            let entry = self.prefixes.get(&prefix);
            let now = entry
                .and_then(Entry::next_hop)
                .map(|hop| self.hops.mtu(hop));
            delta.add(prefix, before, now);
        }
        delta.sort();
        delta
    }

    /// Every prefix with its MTU, 0 for an unresolved one.
    pub(super) fn mtus(&self) -> impl Iterator<Item = (IpNet, u16)> {
        self.prefixes.iter().filter_map(|(prefix, entry)| {
            let hop = entry.next_hop()?;
            Some((prefix, self.hops.mtu(hop)))
        })
    }

    /// Edits the entry of `prefix`, which is made or removed as needed, and lets everything else
    /// follow. `edit` returns the next hop that the entry no longer names.
    fn change(&mut self, prefix: IpNet, edit: impl FnOnce(&mut Entry) -> Option<NextHopIndex>) {
        let mut entry = self.prefixes.get(&prefix).copied().unwrap_or_default();
        let before = entry.next_hop();
        let released = edit(&mut entry);
        let after = entry.next_hop();
        if before != after {
            let mtu = before.map(|hop| self.hops.mtu(hop));
            self.told.entry(prefix).or_insert(mtu);
            if let Some(hop) = before {
                self.unlink(hop, entry.position);
            }
            if let Some(hop) = after {
                entry.position = self.hops.link(hop, prefix);
            }
        }
        match after {
            Some(_) => drop(self.prefixes.insert(prefix, entry)),
            None => drop(self.prefixes.remove(&prefix)),
        }
        if before != after {
            self.write_lpm(prefix, after);
        }
        if let Some(hop) = released {
            self.hops.release(hop);
        }
    }

    fn unlink(&mut self, hop: NextHopIndex, position: usize) {
        if let Some(moved) = self.hops.unlink(hop, position)
            && let Some(entry) = self.prefixes.get_mut(&moved)
        {
            entry.position = position;
        }
    }

    /// Lets the LPM table follow a prefix whose entry is written already.
    fn write_lpm(&mut self, prefix: IpNet, next_hop: Option<NextHopIndex>) {
        match (prefix, next_hop) {
            (IpNet::V4(net), Some(hop)) => self.v4.insert(net.into(), hop),
            (IpNet::V6(net), Some(hop)) => self.v6.insert(net.into(), hop),
            (IpNet::V4(net), None) => self.v4.remove(Prefix::from(net), self.covering(prefix)),
            (IpNet::V6(net), None) => self.v6.remove(Prefix::from(net), self.covering(prefix)),
        }
    }

    /// Length and next hop of the longest prefix that covers `prefix`, which is not there.
    fn covering(&self, prefix: IpNet) -> Option<(u8, NextHopIndex)> {
        let (covering, entry) = self.prefixes.get_lpm(&prefix)?;
        Some((covering.prefix_len(), entry.next_hop()?))
    }
}
