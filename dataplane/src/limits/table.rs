//! A table of sizes by the hash of a key, which all workers read and write without a lock.
//!
//! It is set-associative: the hash chooses a set of eight entries, one cache line, and a tag of 32
//! bits tells the keys of a set apart. Its memory is made once; a key that finds its set full takes
//! the place of the entry that was renewed longest ago.
//!
//! Why it is sound without locks: an entry is one word, which holds all that is known of its key and
//! refers to nothing else. So any word that a load finds is true as it stands, no order between two
//! words matters, and every access may be relaxed. A word is only ever replaced by an exchange that
//! names the word it was judged by: a reader that renews an entry cannot bring back one that a
//! writer has replaced meanwhile. Two workers that write one key at once may leave two entries of
//! it; the lesser one counts.
//!
//! Another key with the same tag in the same set is taken for the key: at eight entries to a set,
//! once in 500 million keys. All that it costs is that the size found may be too small.

use std::sync::atomic::{AtomicU16, AtomicU64, Ordering::Relaxed};

/// Entries of a set: those of a cache line.
const WAYS: usize = 8;

/// How often a write that others have overtaken begins again. Each time, another worker has written
/// to the same set.
const TRIES: usize = 8;

/// Seconds of one step of [`Age`].
const STEP: u64 = 16;

/// When an entry was renewed, in steps of 16 seconds. It is 16 bits wide, so that an entry of which
/// nobody has heard for twelve days counts as new again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Age(u16);

impl Age {
    /// That of a monotonic time in seconds.
    #[inline]
    pub(super) fn at(seconds: u64) -> Self {
        #[allow(
            clippy::cast_possible_truncation,
            reason = "ages are compared modulo 2^16"
        )]
        Self((seconds / STEP) as u16)
    }

    /// Steps from `earlier` to this one; 0 if that is later by a step, as one of another worker's
    /// may be.
    #[inline]
    fn since(self, earlier: Self) -> u16 {
        match self.0.wrapping_sub(earlier.0) {
            u16::MAX => 0,
            steps => steps,
        }
    }
}

/// One entry as a word: the tag in the upper half, then the age, then the size. A size of 0 is no
/// entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Entry(u64);

impl Entry {
    const NONE: Self = Self(0);

    #[inline]
    fn new(tag: u32, age: Age, size: u16) -> Self {
        Self(u64::from(tag) << 32 | u64::from(age.0) << 16 | u64::from(size))
    }

    #[inline]
    #[allow(clippy::cast_possible_truncation, reason = "takes the lowest quarter")]
    fn size(self) -> u16 {
        self.0 as u16
    }

    #[inline]
    #[allow(clippy::cast_possible_truncation, reason = "takes the second quarter")]
    fn age(self) -> Age {
        Age((self.0 >> 16) as u16)
    }

    #[inline]
    fn is_of(self, tag: u32) -> bool {
        self.0 >> 32 == u64::from(tag) && self.size() != 0
    }
}

/// The entries that a hash may be in.
#[derive(Debug, Default)]
#[repr(align(64))]
struct Set([AtomicU64; WAYS]);

/// Sizes in bytes by the hash of a key.
#[derive(Debug)]
pub(super) struct LimitTable {
    sets: Box<[Set]>,
    /// No entry was ever less.
    least: AtomicU16,
    /// Steps of age that an entry lives after it was put; `None`: until its place is needed, and
    /// each use renews it.
    lifetime: Option<u16>,
}

impl LimitTable {
    /// An empty table of `sets` sets of eight entries. An entry lives so many seconds, rounded up
    /// to 16; or, with `None`, as long as there is room for it.
    pub(super) fn new(sets: usize, lifetime: Option<u64>) -> Self {
        let lifetime = lifetime.map(|seconds| {
            let steps = seconds.div_ceil(STEP);
            u16::try_from(steps).unwrap_or(u16::MAX)
        });
        Self {
            sets: std::iter::repeat_with(Set::default).take(sets).collect(),
            least: AtomicU16::new(u16::MAX),
            lifetime,
        }
    }

    /// Whether a packet of `size` bytes can be over any size in the table. False, at the cost of
    /// this load, for everything as long as the table is empty.
    #[inline]
    pub(super) fn concerns(&self, size: u32) -> bool {
        size > u32::from(self.least.load(Relaxed))
    }

    /// The size that was put for a key of this hash.
    pub(super) fn get(&self, hash: u64, now: Age) -> Option<u16> {
        let (set, tag) = self.place(hash)?;
        let mut found: Option<u16> = None;
        for word in &set.0 {
            let entry = Entry(word.load(Relaxed));
            if !entry.is_of(tag) {
                continue;
            }
            let age = now.since(entry.age());
            match self.lifetime {
                Some(lifetime) if age > lifetime => {
                    replace(word, entry, Entry::NONE);
                    continue;
                }
                // At most once a step, so that readers do not take the line from each other.
                None if age > 0 => {
                    replace(word, entry, Entry::new(tag, now, entry.size()));
                }
                _ => {}
            }
            found = Some(found.map_or(entry.size(), |other| other.min(entry.size())));
        }
        found
    }

    /// Puts a size, not 0, for a key of this hash.
    pub(super) fn put(&self, hash: u64, size: u16, now: Age) {
        let Some((set, tag)) = self.place(hash) else {
            return;
        };
        for _ in 0..TRIES {
            let entries = set.0.iter().map(|word| (word, Entry(word.load(Relaxed))));
            // The key's own entry, or else one that is free, or else the oldest.
            let worth = |entry: Entry| match entry {
                own if own.is_of(tag) => (2, 0),
                free if free.size() == 0 => (1, 0),
                other => (0, now.since(other.age())),
            };
            let chosen = entries.max_by_key(|(_, entry)| worth(*entry));
            if chosen.is_none_or(|(word, old)| replace(word, old, Entry::new(tag, now, size))) {
                break;
            }
        }
        self.least.fetch_min(size, Relaxed);
    }

    /// Removes what was put for a key of this hash.
    pub(super) fn remove(&self, hash: u64) {
        let Some((set, tag)) = self.place(hash) else {
            return;
        };
        for word in &set.0 {
            let entry = Entry(word.load(Relaxed));
            if entry.is_of(tag) {
                // Whoever has replaced it knows better.
                replace(word, entry, Entry::NONE);
            }
        }
    }

    /// The set of a hash, by its lower half, and the tag in it, the upper half.
    #[inline]
    #[allow(
        clippy::cast_possible_truncation,
        reason = "takes the halves of a number"
    )]
    fn place(&self, hash: u64) -> Option<(&Set, u32)> {
        let set = (hash as u32 as usize).checked_rem(self.sets.len())?;
        Some((self.sets.get(set)?, (hash >> 32) as u32))
    }
}

/// Replaces an entry, unless somebody else has done so since it was read.
#[inline]
fn replace(word: &AtomicU64, old: Entry, new: Entry) -> bool {
    word.compare_exchange(old.0, new.0, Relaxed, Relaxed)
        .is_ok()
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    const NOW: Age = Age(7);

    /// The hash of a key by set and tag.
    fn hash(set: u32, tag: u32) -> u64 {
        u64::from(tag) << 32 | u64::from(set)
    }

    #[test]
    fn what_was_put_is_found_and_removed() {
        let table = LimitTable::new(4, None);
        assert_eq!(table.get(hash(1, 0), NOW), None);
        table.put(hash(1, 0), 576, NOW);
        table.put(hash(1, 9), 1400, NOW);
        table.put(hash(2, 9), 1300, NOW);
        assert_eq!(table.get(hash(1, 0), NOW), Some(576));
        assert_eq!(table.get(hash(1, 9), NOW), Some(1400));
        assert_eq!(table.get(hash(2, 9), NOW), Some(1300));
        assert_eq!(table.get(hash(3, 9), NOW), None);
        table.put(hash(1, 9), 1450, NOW);
        assert_eq!(table.get(hash(1, 9), NOW), Some(1450));
        table.remove(hash(1, 9));
        table.remove(hash(1, 77));
        assert_eq!(table.get(hash(1, 9), NOW), None);
        assert_eq!(table.get(hash(1, 0), NOW), Some(576));
    }

    #[test]
    fn an_empty_table_concerns_no_packet() {
        let table = LimitTable::new(4, None);
        assert!(!table.concerns(65_535));
        table.put(hash(0, 1), 1400, NOW);
        table.put(hash(0, 2), 576, NOW);
        table.put(hash(0, 3), 1300, NOW);
        assert!(!table.concerns(576));
        assert!(table.concerns(577));
    }

    #[test]
    fn a_full_set_gives_up_what_was_used_longest_ago() {
        let table = LimitTable::new(1, None);
        for tag in 0..8 {
            table.put(hash(0, tag), 1000, Age(100 + u16::try_from(tag).unwrap()));
        }
        // Use renews.
        assert_eq!(table.get(hash(0, 0), Age(120)), Some(1000));
        table.put(hash(0, 8), 1000, Age(121));
        table.put(hash(0, 9), 1000, Age(121));
        let kept = (0..10).filter(|tag| table.get(hash(0, *tag), Age(122)).is_some());
        assert_eq!(kept.collect::<Vec<_>>(), [0, 3, 4, 5, 6, 7, 8, 9]);
    }

    #[test]
    fn an_entry_with_a_lifetime_ends_whether_used_or_not() {
        let table = LimitTable::new(1, Some(600));
        let put = Age::at(1000);
        table.put(hash(0, 5), 1400, put);
        for later in [0, 16, 300, 600] {
            assert_eq!(table.get(hash(0, 5), Age::at(1000 + later)), Some(1400));
        }
        assert_eq!(table.get(hash(0, 5), Age::at(1000 + 632)), None);
        // It is gone, not hidden.
        assert_eq!(table.get(hash(0, 5), put), None);
    }

    #[test]
    fn ages_go_round() {
        assert_eq!(Age(3).since(Age(u16::MAX)), 4);
        assert_eq!(Age(3).since(Age(4)), 0);
        assert_eq!(Age::at(16 * 65_536 + 33), Age(2));
    }

    /// Each of four threads puts sizes that only its keys have, into sets that all share.
    #[test]
    fn threads_never_find_what_was_put_for_another_key() {
        const KEYS: u32 = 6;
        const THREADS: u32 = 4;
        let table = LimitTable::new(2, None);
        let size = |thread: u32, turn: u32| u16::try_from(1 + thread * 10_000 + turn % 9000);
        std::thread::scope(|scope| {
            for thread in 0..THREADS {
                let table = &table;
                scope.spawn(move || {
                    for turn in 0..20_000 {
                        let key = |thread| hash(turn % 2, thread * KEYS + turn % KEYS);
                        let now = Age(u16::try_from(turn / 100).unwrap());
                        table.put(key(thread), size(thread, turn).unwrap(), now);
                        for other in 0..THREADS {
                            if let Some(found) = table.get(key(other), now) {
                                assert_eq!(u32::from(found - 1) / 10_000, other);
                            }
                        }
                        if turn % 7 == 0 {
                            table.remove(key(thread));
                        }
                    }
                });
            }
        });
        // Nobody else writes now: what is put is found, and removed for good.
        for tag in 0..THREADS * KEYS {
            table.put(hash(0, tag), 5, Age(300));
            assert_eq!(table.get(hash(0, tag), Age(300)), Some(5));
            table.remove(hash(0, tag));
            assert_eq!(table.get(hash(0, tag), Age(300)), None);
        }
    }

    proptest! {
        /// With no more keys than a set holds, it is a map.
        #[test]
        fn few_keys_are_kept_as_by_a_map(
            steps in prop::collection::vec((0..8_u32, 0..600_u16, any::<bool>()), 0..200),
        ) {
            let table = LimitTable::new(1, None);
            let mut map = HashMap::new();
            for (turn, (tag, size, put)) in (0_u16..).zip(steps) {
                let now = Age(turn / 4);
                if put && size > 0 {
                    table.put(hash(0, tag), size, now);
                    map.insert(tag, size);
                } else if size % 2 == 0 {
                    table.remove(hash(0, tag));
                    map.remove(&tag);
                }
                for tag in 0..8 {
                    prop_assert_eq!(table.get(hash(0, tag), now), map.get(&tag).copied());
                }
            }
        }

        /// However many keys there are, what is found was put for that key.
        #[test]
        fn what_is_found_was_put(
            steps in prop::collection::vec((any::<u64>(), 1..u16::MAX), 0..300),
        ) {
            let table = LimitTable::new(2, None);
            let mut map = HashMap::new();
            for (hash, size) in steps {
                table.put(hash, size, NOW);
                map.insert(hash, size);
                prop_assert_eq!(table.get(hash, NOW), Some(size));
                for (hash, size) in &map {
                    let found = table.get(*hash, NOW);
                    prop_assert!(found.is_none() || found == Some(*size));
                }
            }
        }
    }
}
