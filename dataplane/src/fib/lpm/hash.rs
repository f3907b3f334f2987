//! A hash table of prefixes of one length, in shared pages.
//!
//! Made for lookups that must not guess: a key is in one cache line or nowhere, all keys of the
//! line are compared without a branch, and what is not found is [`Leaf::NONE`] out of the same line.
//! Only a line that was full when another key came, one of a few dozen, sends lookups on to the next.
//!
//! The table grows by a page at a time (W. Litwin, "Linear hashing", VLDB 1980), so that no single
//! change has to copy it all.

use std::fmt::Debug;
use std::hash::{BuildHasher, RandomState};
use std::ops::BitAnd;
use std::sync::Arc;

use super::leaf::Leaf;

/// The bits of a prefix.
pub(super) trait Key: Copy + Default + Debug + Ord + BitAnd<Output = Self> {
    /// A hash of all bits, in all bits.
    fn hash(self, seed: u64) -> u64;
}

impl Key for u64 {
    #[inline]
    fn hash(self, seed: u64) -> u64 {
        fold(self ^ seed)
    }
}

impl Key for u128 {
    #[inline]
    #[expect(clippy::cast_possible_truncation, reason = "takes the halves")]
    fn hash(self, seed: u64) -> u64 {
        fold(fold((self >> 64) as u64 ^ seed) ^ self as u64)
    }
}

/// Both halves of the product with 2^64 divided by the golden ratio.
#[inline]
#[expect(clippy::cast_possible_truncation, reason = "takes the halves")]
fn fold(number: u64) -> u64 {
    let product = u128::from(number) * 0x9e37_79b9_7f4a_7c15;
    (product >> 64) as u64 ^ product as u64
}

/// Lines of a page. A hash has its line in the upper eight bits, its page in the lower ones.
const LINES: usize = 256;

/// What is in the place of a key that is not in a line and may be in the next one: no leaf.
const SPILLED: Leaf = Leaf(1);

/// A cache line of `N` prefixes; `M` is one more.
#[derive(Debug, Clone)]
#[repr(align(64))]
struct Line<K, const N: usize, const M: usize> {
    /// The keys in use come first.
    keys: [K; N],
    /// The first one is for what is not here: nothing, or [`SPILLED`], which only a full line has.
    /// Then those of the keys.
    leaves: [Leaf; M],
}

impl<K: Key, const N: usize, const M: usize> Line<K, N, M> {
    #[inline]
    fn get(&self, key: K) -> Leaf {
        // The first of equal keys: an unused one may look like a key, and then has no leaf.
        let mut place = 0;
        for (number, other) in self.keys.iter().enumerate().rev() {
            place = if *other == key { number + 1 } else { place };
        }
        self.leaves.get(place).copied().unwrap_or_default()
    }

    /// The keys in use with their leaves.
    fn iter(&self) -> impl Iterator<Item = (K, Leaf)> {
        let leaves = self.leaves.iter().skip(1);
        let all = self.keys.iter().copied().zip(leaves.copied());
        all.filter(|(_, leaf)| leaf.is_leaf())
    }

    /// The places of `key` and its leaf; of `None`, the first ones that are free.
    fn place(&mut self, key: Option<K>) -> Option<(&mut K, &mut Leaf)> {
        let leaves = self.leaves.iter_mut().skip(1);
        let mut places = self.keys.iter_mut().zip(leaves);
        places.find(|(other, leaf)| match key {
            Some(key) => **other == key && leaf.is_leaf(),
            None => !leaf.is_leaf(),
        })
    }

    /// Removes a key that is here; the last one takes its place.
    fn remove(&mut self, key: K) {
        let last = self.iter().last();
        if let Some(((key, leaf), place)) = last.zip(self.place(Some(key))) {
            (*place.0, *place.1) = (key, leaf);
            let used = self.iter().count();
            self.leaves[used] = Leaf::NONE;
        }
    }
}

/// Lines in a ring: what one has no room for goes to the next.
#[derive(Debug, Clone)]
struct Page<K, const N: usize, const M: usize> {
    lines: [Line<K, N, M>; LINES],
    /// Keys in use.
    used: usize,
}

impl<K: Key, const N: usize, const M: usize> Default for Page<K, N, M> {
    fn default() -> Self {
        let empty = |_| Line {
            keys: [K::default(); N],
            leaves: [Leaf::NONE; M],
        };
        Self {
            lines: std::array::from_fn(empty),
            used: 0,
        }
    }
}

impl<K: Key, const N: usize, const M: usize> Page<K, N, M> {
    /// Keys that it may have: then some line is not full, where a search ends.
    const ROOM: usize = LINES * N / 8 * 7;

    #[inline]
    fn get(&self, key: K, hash: u64) -> Leaf {
        let mut at = line(hash);
        loop {
            let leaf = self.lines[usize::from(at)].get(key);
            if leaf != SPILLED {
                return leaf;
            }
            at = at.wrapping_add(1);
        }
    }

    /// Adds a key that is not there.
    fn add(&mut self, key: K, hash: u64, leaf: Leaf) {
        let mut at = line(hash);
        loop {
            let line = &mut self.lines[usize::from(at)];
            if let Some(place) = line.place(None) {
                (*place.0, *place.1) = (key, leaf);
                self.used += 1;
                return;
            }
            line.leaves[0] = SPILLED;
            at = at.wrapping_add(1);
        }
    }

    /// Gives a key that is there another leaf.
    fn replace(&mut self, key: K, hash: u64, leaf: Leaf) {
        let mut at = line(hash);
        loop {
            let line = &mut self.lines[usize::from(at)];
            if let Some((_, place)) = line.place(Some(key)) {
                *place = leaf;
                return;
            }
            at = at.wrapping_add(1);
        }
    }

    /// Removes a key that is there. `seed` is that of all hashes.
    fn remove(&mut self, key: K, hash: u64, seed: u64) {
        let line = &mut self.lines[usize::from(line(hash))];
        if line.leaves[0] != SPILLED {
            line.remove(key);
            self.used -= 1;
            return;
        }
        // Written anew, so that no line that has room sends lookups on.
        let mut new = Self::default();
        for (other, leaf) in self.iter().filter(|(other, _)| *other != key) {
            new.add(other, other.hash(seed), leaf);
        }
        *self = new;
    }

    /// The keys with their leaves.
    fn iter(&self) -> impl Iterator<Item = (K, Leaf)> {
        self.lines.iter().flat_map(Line::iter)
    }
}

/// The line of a page that a key of this hash belongs to.
#[inline]
fn line(hash: u64) -> u8 {
    (hash >> 56) as u8
}

/// A table; its clone is a snapshot.
#[derive(Debug, Clone)]
pub(super) struct Table<K, const N: usize, const M: usize> {
    /// The directory, a power of two long: by the lower bits of the hash. While it grows from one
    /// power to the next, a page that is not split yet has two places, and the second is above
    /// `count`.
    pages: Arc<[Arc<Page<K, N, M>>]>,
    /// The bits of an address that are a key.
    mask: K,
    /// Random, so that nobody who announces prefixes can choose them to meet.
    seed: u64,
    /// Pages.
    count: usize,
    /// Keys.
    used: usize,
}

impl<K: Key, const N: usize, const M: usize> Table<K, N, M> {
    /// An empty table.
    pub(super) fn new(mask: K) -> Self {
        Self {
            pages: Arc::new([Arc::default()]),
            mask,
            seed: RandomState::new().hash_one(0),
            count: 1,
            used: 0,
        }
    }

    /// The bits of an address that are a key.
    pub(super) fn mask(&self) -> K {
        self.mask
    }

    /// Whether there is no key.
    pub(super) fn is_empty(&self) -> bool {
        self.used == 0
    }

    /// Memory of the pages in bytes.
    pub(super) fn bytes(&self) -> usize {
        self.count * size_of::<Page<K, N, M>>()
    }

    /// The leaf of the prefix that `address` lies in; [`Leaf::NONE`] if it is not here.
    #[inline]
    pub(super) fn get(&self, address: K) -> Leaf {
        let key = address & self.mask;
        let hash = key.hash(self.seed);
        let page = self.pages.get(place(hash, self.pages.len()));
        page.map_or(Leaf::NONE, |page| page.get(key, hash))
    }

    /// Sets the leaf of a key; [`Leaf::NONE`] removes it.
    pub(super) fn set(&mut self, key: K, leaf: Leaf) {
        let old = self.get(key);
        let hash = key.hash(self.seed);
        match (old.is_leaf(), leaf.is_leaf()) {
            _ if leaf == old => {}
            (true, true) => self.edit(hash, |page| page.replace(key, hash, leaf)),
            (true, false) => {
                self.used -= 1;
                let seed = self.seed;
                self.edit(hash, |page| page.remove(key, hash, seed));
            }
            (false, _) => {
                self.used += 1;
                // Lines are half full: 45 in 100, of pages not yet split up to twice that.
                while self.used > self.count * (LINES * N / 20 * 9) || !self.has_room(hash) {
                    self.grow();
                }
                self.edit(hash, |page| page.add(key, hash, leaf));
            }
        }
    }

    /// The number of the page that a key of this hash is in.
    fn number(&self, hash: u64) -> usize {
        let number = place(hash, self.pages.len());
        if number < self.count {
            number
        } else {
            number - self.pages.len() / 2
        }
    }

    fn has_room(&self, hash: u64) -> bool {
        let page = self.pages.get(self.number(hash));
        page.is_some_and(|page| page.used < Page::<K, N, M>::ROOM)
    }

    /// Changes the page that a key of this hash is in. Copies it if a snapshot has it.
    fn edit(&mut self, hash: u64, edit: impl FnOnce(&mut Page<K, N, M>)) {
        let number = self.number(hash);
        let pages = Arc::make_mut(&mut self.pages);
        let second = number + pages.len() / 2;
        let second = (self.count..pages.len())
            .contains(&second)
            .then_some(second);
        if let Some(second) = second {
            // Else the page would be copied for its own second place. Page 0 has none.
            pages[second] = Arc::clone(&pages[0]);
        }
        edit(Arc::make_mut(&mut pages[number]));
        if let Some(second) = second {
            pages[second] = Arc::clone(&pages[number]);
        }
    }

    /// Adds a page: splits the next one in turn by one more bit of the hash.
    fn grow(&mut self) {
        if self.count == self.pages.len() {
            let both = self.pages.iter().chain(&*self.pages);
            self.pages = both.cloned().collect();
        }
        let len = self.pages.len();
        let split = self.count - len / 2;
        let (mut low, mut high) = (Page::default(), Page::default());
        for (key, leaf) in self.pages[split].iter() {
            let hash = key.hash(self.seed);
            let page = if place(hash, len) == split {
                &mut low
            } else {
                &mut high
            };
            page.add(key, hash, leaf);
        }
        let pages = Arc::make_mut(&mut self.pages);
        pages[split] = Arc::new(low);
        pages[self.count] = Arc::new(high);
        self.count += 1;
    }
}

/// The place of a key of this hash in a directory of `len`, a power of two.
#[inline]
#[expect(clippy::cast_possible_truncation, reason = "the lower bits are wanted")]
fn place(hash: u64, len: usize) -> usize {
    hash as usize & len.wrapping_sub(1)
}

#[cfg(test)]
impl<K: Key, const N: usize, const M: usize> Table<K, N, M> {
    /// Every rule that lookups or later changes rely on.
    pub(super) fn check_shape(&self) {
        let len = self.pages.len();
        assert!(len.is_power_of_two() && (len / 2 + 1..=len).contains(&self.count));
        assert!(self.used > 0, "an empty table is asked for nothing");
        for (second, page) in self.pages.iter().enumerate().skip(self.count) {
            assert!(Arc::ptr_eq(page, &self.pages[second - len / 2]));
        }
        let mut used = 0;
        for (number, page) in self.pages.iter().take(self.count).enumerate() {
            assert_eq!(page.iter().count(), page.used);
            assert!(page.used <= Page::<K, N, M>::ROOM);
            used += page.used;
            for line in &page.lines {
                let full = line.iter().count() == N;
                assert!(line.leaves[0] == Leaf::NONE || line.leaves[0] == SPILLED && full);
                assert!(line.leaves[1..].is_sorted_by_key(|leaf| !leaf.is_leaf()));
            }
            for (key, leaf) in page.iter() {
                assert_eq!(key, key & self.mask);
                assert_eq!(self.number(key.hash(self.seed)), number);
                assert_eq!(self.get(key), leaf);
            }
        }
        assert_eq!(used, self.used);
    }
}
