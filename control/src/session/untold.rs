//! Which facts the dataplane has to be told, and in what order.

use std::collections::{BTreeMap, BTreeSet};

use podway_proto::codec;
use podway_proto::dataplane::Change;

use crate::facts::{Facts, Key};

/// Bytes of changes in one request: far below [`codec::MAX_LINE`], whatever one change adds.
const BATCH_BYTES: usize = 256 << 10;

/// Facts that differ from what the dataplane was told.
#[derive(Debug, Default)]
pub(super) struct Untold {
    /// Those that there are not any more and that it may hold.
    gone: BTreeSet<Key>,
    /// Those that are new or others, each with whether it may hold one.
    set: BTreeMap<Key, bool>,
}

impl Untold {
    /// Notes that a fact has changed: whether there was one before, and whether there is.
    pub(super) fn note(&mut self, key: Key, before: bool, now: bool) {
        // What was noted before says what the dataplane holds.
        let gone = self.gone.remove(&key).then_some(true);
        let held = gone.or_else(|| self.set.remove(&key)).unwrap_or(before);
        if now {
            self.set.insert(key, held);
        } else if held {
            self.gone.insert(key);
        }
    }

    /// The next change: what is gone against the order of facts, then the others in it.
    pub(super) fn next(&mut self, facts: &Facts) -> Option<(Key, Change)> {
        while let Some(key) = self.gone.pop_last() {
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
        let mut bytes = 0;
        for (key, change) in changes {
            bytes += codec::encode(&change).len();
            let removes = matches!(
                change,
                Change::DelPort { .. }
                    | Change::DelNode { .. }
                    | Change::DelRoute { .. }
                    | Change::DelNeighbor { .. }
            );
            batch.told.push(Told { key, removes });
            batch.changes.push(change);
            if bytes >= BATCH_BYTES {
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
        (0..20_000).for_each(|number| untold.note(route(number), true, false));
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
    fn what_was_never_told_is_not_removed() {
        let mut untold = Untold::default();
        // New and gone again; changed and gone; gone and back.
        untold.note(route(1), false, true);
        untold.note(route(1), true, false);
        untold.note(route(2), true, true);
        untold.note(route(2), true, false);
        untold.note(route(3), true, false);
        untold.note(route(3), false, true);
        assert_eq!(untold.gone, BTreeSet::from([route(2)]));
        assert_eq!(untold.set, BTreeMap::from([(route(3), true)]));
    }
}
