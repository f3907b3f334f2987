//! How the XDP program's prefix maps follow the tables.

use std::collections::HashSet;

use ipnet::IpNet;

/// What the XDP program's prefix maps need to be equal to the tables again. Each prefix is in at
/// most one of the lists.
///
/// The program redirects what it finds a prefix for, unless its MTU there is 0; once redirected, a
/// packet can only be sent or dropped. So the maps must never promise what a worker's tables do
/// not hold, be those still the old ones or already the new: the maps lose what the tables will
/// lose before these are published, and get what the tables have got after every worker has
/// adopted them.
///
/// This holds for whether a packet is forwarded at all. A packet of a size between the MTUs of two
/// prefixes that cover it, one of which comes or goes, may be dropped as too big meanwhile.
///
/// A delta starts from the maps as the one before left them. If that one's later half could not
/// be written yet, because a worker is slow to adopt, [`XdpDelta::carry`] takes it over.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[must_use = "the XDP program's maps must follow the tables"]
pub struct XdpDelta {
    /// To be written before the tables are published.
    pub before: XdpWrites,
    /// To be written after every worker has adopted the tables.
    pub after: XdpWrites,
}

/// Writes to the XDP program's prefix maps; their order does not matter. Both lists are sorted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct XdpWrites {
    /// Prefixes to be removed.
    pub remove: Vec<IpNet>,
    /// Prefixes to be added or changed, with the largest L3 packet in bytes that they carry; 0
    /// leaves their packets to the kernel, since the next hop is not resolved.
    pub set: Vec<(IpNet, u16)>,
}

impl XdpDelta {
    /// Whether the maps are equal to the tables already.
    pub fn is_empty(&self) -> bool {
        self.before.is_empty() && self.after.is_empty()
    }

    /// Takes over `pending`, the later half of the delta before this one, none of which was
    /// written. Until every worker has adopted this delta's tables, prefixes that both speak of
    /// are the kernel's.
    pub fn carry(&mut self, pending: XdpWrites) {
        let set = pending.set.iter().map(|(prefix, _)| *prefix);
        let both: HashSet<_> = pending.remove.iter().copied().chain(set).collect();
        // What the maps hold of these is not known here, nor what tables before the last ones
        // held: 0 is within any promise.
        let Self { before, after } = self;
        before.remove.retain(|prefix| {
            let retained = !both.contains(prefix);
            if !retained {
                before.set.push((*prefix, 0));
                after.remove.push(*prefix);
            }
            retained
        });
        for (prefix, mtu) in &mut before.set {
            if *mtu > 0 && both.contains(prefix) {
                after.set.push((*prefix, *mtu));
                *mtu = 0;
            }
        }
        let zero = before.set.iter().filter(|(_, mtu)| *mtu == 0);
        let mut named: HashSet<_> = zero.map(|(prefix, _)| *prefix).collect();
        named.extend(&after.remove);
        named.extend(after.set.iter().map(|(prefix, _)| *prefix));
        let pending_remove = pending.remove.into_iter();
        after
            .remove
            .extend(pending_remove.filter(|prefix| !named.contains(prefix)));
        let pending_set = pending.set.into_iter();
        after
            .set
            .extend(pending_set.filter(|(prefix, _)| !named.contains(prefix)));
        self.sort();
    }

    /// Adds a prefix that had the MTU `old`, and has `new`; `None` stands for no prefix, 0 for an
    /// unresolved next hop.
    pub(super) fn add(&mut self, prefix: IpNet, old: Option<u16>, new: Option<u16>) {
        match (old, new) {
            (None, None) => {}
            // A shorter prefix may then admit packets that the old tables still find this one for.
            (Some(0), None) => self.after.remove.push(prefix),
            (Some(_), None) => self.before.remove.push(prefix),
            // A shorter prefix may admit packets until now.
            (None, Some(0)) => self.before.set.push((prefix, 0)),
            (None, Some(new)) => self.after.set.push((prefix, new)),
            (Some(old), Some(new)) if new < old => self.before.set.push((prefix, new)),
            (Some(old), Some(new)) if new > old => self.after.set.push((prefix, new)),
            (Some(_), Some(_)) => {}
        }
    }

    pub(super) fn sort(&mut self) {
        for writes in [&mut self.before, &mut self.after] {
            writes.remove.sort_unstable();
            writes.set.sort_unstable();
        }
    }
}

impl XdpWrites {
    /// Whether there is nothing to write.
    pub fn is_empty(&self) -> bool {
        self.remove.is_empty() && self.set.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_loses_comes_before_and_what_gains_after() {
        enum Expected {
            Nothing,
            SetBefore,
            SetAfter,
            RemoveBefore,
            RemoveAfter,
        }
        use Expected::{Nothing, RemoveAfter, RemoveBefore, SetAfter, SetBefore};
        let cases = [
            (None, None, Nothing),
            (None, Some(0), SetBefore),
            (None, Some(1450), SetAfter),
            (Some(0), None, RemoveAfter),
            (Some(0), Some(0), Nothing),
            (Some(0), Some(1450), SetAfter),
            (Some(1450), None, RemoveBefore),
            (Some(1450), Some(0), SetBefore),
            (Some(1450), Some(1400), SetBefore),
            (Some(1450), Some(1450), Nothing),
            (Some(1450), Some(1500), SetAfter),
        ];
        let prefix: IpNet = "10.0.1.0/24".parse().unwrap();
        for (old, new, expected) in cases {
            let mut delta = XdpDelta::default();
            delta.add(prefix, old, new);
            let set = vec![(prefix, new.unwrap_or_default())];
            let remove = vec![prefix];
            let mut wanted = XdpDelta::default();
            match expected {
                Nothing => assert!(delta.is_empty()),
                SetBefore => wanted.before.set = set,
                SetAfter => wanted.after.set = set,
                RemoveBefore => wanted.before.remove = remove,
                RemoveAfter => wanted.after.remove = remove,
            }
            assert_eq!(delta, wanted, "{old:?} -> {new:?}");
        }
    }
    #[test]
    fn what_was_pending_is_carried_on() {
        let prefix: IpNet = "10.0.1.0/24".parse().unwrap();
        let other: IpNet = "10.0.2.0/24".parse().unwrap();
        // The prefix as it was, became and is; then what is written before and after.
        type Set = Option<u16>;
        let cases: [([Set; 3], Set, Set, bool); 7] = [
            ([None, Some(1450), Some(1450)], None, Some(1450), false),
            ([None, Some(1450), Some(1500)], None, Some(1500), false),
            ([None, Some(1450), Some(1400)], Some(0), Some(1400), false),
            ([Some(0), Some(1450), Some(0)], Some(0), None, false),
            ([Some(0), Some(1450), None], Some(0), None, true),
            ([Some(0), None, Some(0)], Some(0), None, false),
            ([Some(0), None, Some(1450)], None, Some(1450), false),
        ];
        for ([first, second, third], set_before, set_after, remove_after) in cases {
            let mut last = XdpDelta::default();
            last.add(prefix, first, second);
            last.add(other, Some(0), None);
            let mut delta = XdpDelta::default();
            delta.add(prefix, second, third);
            delta.carry(last.after);
            let mut wanted = XdpDelta::default();
            wanted
                .before
                .set
                .extend(set_before.map(|mtu| (prefix, mtu)));
            wanted.after.set.extend(set_after.map(|mtu| (prefix, mtu)));
            wanted.after.remove.extend(remove_after.then_some(prefix));
            wanted.after.remove.push(other);
            assert_eq!(delta, wanted, "{first:?} -> {second:?} -> {third:?}");
        }
    }
}
