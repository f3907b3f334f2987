//! Which facts the dataplane has to be told, and in what order.

use std::collections::{BTreeMap, BTreeSet};

use podway_proto::codec;
use podway_proto::dataplane::Change;

use crate::facts::{Before, Facts, Key};

/// Bytes of changes in one request: far below [`codec::MAX_LINE`], whatever one change adds.
const BATCH_BYTES: usize = 256 << 10;

/// Ports in one request: the dataplane may take a second for each, and answers nobody meanwhile.
const BATCH_PORTS: usize = 16;

/// Facts that differ from what the dataplane was told.
#[derive(Debug, Default)]
pub(super) struct Untold {
    /// Those that there are not any more and that it may hold; and ports that were gone, or have
    /// lost an address, and are told anew: what they let go of, another port may have now.
    gone: BTreeSet<Key>,
    /// Those that are new or others, each with whether it may hold one.
    set: BTreeMap<Key, bool>,
}

impl Untold {
    /// Whether it was told everything.
    pub(super) fn is_empty(&self) -> bool {
        self.gone.is_empty() && self.set.is_empty()
    }

    /// Notes that a fact has changed: what there was before, and whether there is one.
    pub(super) fn note(&mut self, key: Key, before: Before, now: bool) {
        // What was noted before says what the dataplane holds.
        let gone = self.gone.remove(&key);
        let noted = gone.then_some(true).or(self.set.remove(&key));
        let held = noted.unwrap_or(before != Before::Nothing);
        let goes = !now || before == Before::InTheWay || (gone && matches!(key, Key::Port(_)));
        if held && goes {
            self.gone.insert(key.clone());
        }
        if now {
            self.set.insert(key, held);
        }
    }

    /// The next change: what is gone against the order of facts, then the others in it.
    pub(super) fn next(&mut self, facts: &Facts) -> Option<(Key, Change)> {
        while let Some(key) = self.gone.pop_last() {
            if let Some(held) = self.set.get_mut(&key) {
                *held = false;
            }
            if let Some(change) = key.remove() {
                return Some((key, change));
            }
        }
        let (key, _) = self.set.pop_first()?;
        let change = facts.tell(&key)?;
        Some((key, change))
    }
}

/// A fact that the dataplane was told.
#[derive(Debug)]
pub(super) struct Told {
    /// Which.
    pub(super) key: Key,
    /// Whether it was told to forget it.
    pub(super) removes: bool,
}

/// Changes for one request.
#[derive(Debug, Default)]
pub(super) struct Batch {
    /// What they are about, one by one.
    pub(super) told: Vec<Told>,
    /// The changes.
    pub(super) changes: Vec<Change>,
}

impl Batch {
    /// As many of `changes` as fit in a line.
    pub(super) fn of(changes: impl Iterator<Item = (Key, Change)>) -> Self {
        let mut batch = Self::default();
        let (mut bytes, mut ports) = (0, 0);
        for (key, change) in changes {
            bytes += codec::encode(&change).len();
            let removes = matches!(
                change,
                Change::DelPort { .. }
                    | Change::DelNode { .. }
                    | Change::DelRoute { .. }
                    | Change::DelNeighbor { .. }
            );
            ports += usize::from(matches!(key, Key::Port(_)));
            batch.told.push(Told { key, removes });
            batch.changes.push(change);
            if bytes >= BATCH_BYTES || ports >= BATCH_PORTS {
                break;
            }
        }
        batch
    }

    /// The last fact that it is about.
    pub(super) fn last(&self) -> Option<&Key> {
        self.told.last().map(|told| &told.key)
    }
}

#[cfg(test)]
mod tests {
    use podway_proto::dataplane::Request;

    use super::*;

    fn route(number: u32) -> Key {
        Key::Route(ipnet::Ipv4Net::new_assert(number.into(), 32).into())
    }

    #[test]
    fn a_large_table_goes_in_several_lines() {
        let mut untold = Untold::default();
        (0..20_000).for_each(|number| untold.note(route(number), Before::Other, false));
        let mut lines = 0;
        let mut keys = Vec::new();
        loop {
            let facts = Facts::default();
            let Batch { told, changes } = Batch::of(std::iter::from_fn(|| untold.next(&facts)));
            if changes.is_empty() {
                break;
            }
            let line = codec::encode(&Request::Apply { changes });
            assert!(line.len() < codec::MAX_LINE / 2, "{}", line.len());
            keys.extend(told.into_iter().map(|told| told.key));
            lines += 1;
        }
        assert_eq!(lines, 4);
        assert_eq!(keys, (0..20_000).rev().map(route).collect::<Vec<_>>());
    }

    #[test]
    fn many_ports_go_in_several_requests() {
        let mut untold = Untold::default();
        for number in 0..40 {
            untold.note(Key::Port(format!("veth{number}")), Before::Other, false);
        }
        untold.note(route(1), Before::Other, false);
        let facts = Facts::default();
        let lengths = std::iter::from_fn(|| {
            let batch = Batch::of(std::iter::from_fn(|| untold.next(&facts)));
            batch.last().map(|_| batch.changes.len())
        });
        assert_eq!(lengths.collect::<Vec<_>>(), [17, 16, 8]);
    }

    #[test]
    fn what_was_never_told_is_not_removed() {
        let mut untold = Untold::default();
        // New and gone again; changed and gone; gone and back.
        untold.note(route(1), Before::Nothing, true);
        untold.note(route(1), Before::Other, false);
        untold.note(route(2), Before::Other, true);
        untold.note(route(2), Before::Other, false);
        untold.note(route(3), Before::Other, false);
        untold.note(route(3), Before::Nothing, true);
        assert_eq!(untold.gone, BTreeSet::from([route(2)]));
        assert_eq!(untold.set, BTreeMap::from([(route(3), true)]));
    }

    #[test]
    fn ports_let_go_of_their_addresses_before_others_have_them() {
        let port = |name: &str| Key::Port(name.into());
        let mut untold = Untold::default();
        // One has lost an address; one was taken away and added; one is new and has lost one since.
        untold.note(port("a"), Before::InTheWay, true);
        untold.note(port("a"), Before::Other, true);
        untold.note(port("b"), Before::Other, false);
        untold.note(port("b"), Before::Nothing, true);
        untold.note(port("c"), Before::Nothing, true);
        untold.note(port("c"), Before::InTheWay, true);
        assert_eq!(untold.gone, BTreeSet::from([port("a"), port("b")]));
        assert_eq!(
            untold.set,
            BTreeMap::from([(port("a"), true), (port("b"), true), (port("c"), false)])
        );
        let facts = Facts::default();
        let (key, change) = untold.next(&facts).unwrap();
        let interface = "b".to_owned();
        assert_eq!((key, change), (port("b"), Change::DelPort { interface }));
        // What has gone is not taken away again.
        untold.note(port("b"), Before::Other, false);
        assert_eq!(untold.gone, BTreeSet::from([port("a")]));
    }
}
