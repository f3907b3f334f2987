//! IPv4: a multibit trie with pushed leaves.
//!
//! The root is an array over an address' first 16 bits. Below it are chunks, arrays over eight
//! further bits each. An entry of either is nothing, a leaf, or a chunk. A leaf stands for the
//! longest prefix that covers the whole entry, so a lookup ends at the first leaf it meets: for a
//! /24 that is one entry of the root and one of a chunk, the only memory that other lookups have
//! not already brought to the cache.
//!
//! After V. Srinivasan, G. Varghese, "Fast address lookups using controlled prefix expansion",
//! ACM TOCS 17(1), 1999.

use std::ops::Range;

use super::super::address::{Address, Prefix};
use super::super::cow::CowVec;
use super::NextHopIndex;
use super::leaf::{Leaf, Paint};

/// Address bits that the root takes.
const ROOT_BITS: u8 = 16;
/// Address bits that a chunk takes.
const CHUNK_BITS: u8 = 8;

/// The table that lookups read. A clone is a snapshot: it shares every page with its original
/// until one of them is written.
#[derive(Debug, Clone, Default)]
pub struct LpmV4 {
    /// By the first 16 bits. 4 KiB pages.
    root: CowVec<Leaf, 1024>,
    /// The chunks; number 0 is not used. Pages of 32 KiB: at 65,000 chunks the directory is
    /// 16 KiB.
    chunks: CowVec<Chunk, 32>,
}

/// An entry for each value of eight address bits. One that is not zero and no leaf is the number of
/// a further chunk.
#[derive(Debug, Clone, PartialEq)]
struct Chunk([Leaf; 256]);

impl Default for Chunk {
    fn default() -> Self {
        Self([Leaf::NONE; 256])
    }
}

impl LpmV4 {
    /// The next hop of the longest prefix that `address` lies in.
    #[inline]
    pub fn lookup(&self, address: u32) -> Option<NextHopIndex> {
        let mut entry = *self.root.get(address.top())?;
        let mut offset = ROOT_BITS;
        // Ends: below the last eight bits there are leaves only.
        while let Some(number) = chunk_number(entry) {
            entry = self.chunks.get(number)?.0[usize::from(address.byte(offset))];
            offset += CHUNK_BITS;
        }
        entry.next_hop()
    }
}

/// The number of the chunk that `entry` leads to.
#[inline]
fn chunk_number(entry: Leaf) -> Option<usize> {
    (entry != Leaf::NONE && !entry.is_leaf()).then_some(entry.0 as usize)
}

/// The writer's side of an [`LpmV4`].
///
/// A prefix costs what it covers: a /16, /24 or /32 writes one entry, a /0 the whole root. At most
/// two chunks of 1 KiB are made for a prefix, and chunks that are no longer needed are used again.
#[derive(Debug, Default)]
pub struct LpmV4Builder {
    table: LpmV4,
    /// Chunks that were made and are not in use.
    free: Vec<u32>,
    /// The highest chunk number that was ever used; numbers start at 1.
    made: u32,
}

impl LpmV4Builder {
    /// The table as it is now; later changes do not touch it.
    pub fn snapshot(&self) -> LpmV4 {
        self.table.clone()
    }

    /// How many chunks are in use; each takes 1 KiB.
    pub fn chunks(&self) -> usize {
        self.made as usize - self.free.len()
    }

    /// Adds `prefix`, or gives it another next hop.
    pub fn insert(&mut self, prefix: Prefix<u32>, next_hop: NextHopIndex) {
        self.change(prefix, Paint::insert(prefix.len(), next_hop));
    }

    /// Removes `prefix`. `covering` is the longest prefix that remains and covers it: its length
    /// and next hop. A prefix that is not there changes nothing.
    pub fn remove(&mut self, prefix: Prefix<u32>, covering: Option<(u8, NextHopIndex)>) {
        self.change(prefix, Paint::remove(prefix.len(), covering));
    }

    fn change(&mut self, prefix: Prefix<u32>, paint: Paint) {
        let first = prefix.bits().top();
        for slot in first..first + (1 << ROOT_BITS.saturating_sub(prefix.len())) {
            let old = self.table.root.get(slot).copied().unwrap_or_default();
            let new = self.change_below(old, ROOT_BITS, prefix, paint);
            if new != old {
                *self.table.root.get_mut(slot) = new;
            }
        }
    }

    /// Paints what `prefix` covers of the addresses that lead to an entry, by their first `end`
    /// bits. Returns what that entry is to be.
    fn change_below(&mut self, entry: Leaf, end: u8, prefix: Prefix<u32>, paint: Paint) -> Leaf {
        let number = chunk_number(entry);
        if number.is_none() && prefix.len() <= end {
            return paint.apply(entry);
        }
        let old = number.and_then(|number| self.table.chunks.get(number));
        let mut chunk = old.cloned().unwrap_or(Chunk([entry; 256]));
        for below in chunk.0.get_mut(covered(end, prefix)).unwrap_or_default() {
            *below = self.change_below(*below, end + CHUNK_BITS, prefix, paint);
        }
        self.keep(number, end, chunk)
    }

    /// Keeps a chunk, under the number that it has or a new one, if it is needed: the same prefixes
    /// always make the same trie. Returns the entry that stands for it.
    fn keep(&mut self, number: Option<usize>, end: u8, chunk: Chunk) -> Leaf {
        let [first, ..] = chunk.0;
        // Equal leaves are one prefix' only if that is no longer than what they share: two /25 with
        // one next hop look like a /24 and must stay apart, or neither could be removed.
        let needless = first.len().is_none_or(|len| len <= end)
            && chunk_number(first).is_none()
            && chunk.0.iter().all(|entry| *entry == first);
        if needless {
            // Numbers come out of 31 bits.
            self.free
                .extend(number.and_then(|number| u32::try_from(number).ok()));
            return first;
        }
        let number = number.unwrap_or_else(|| {
            let number = self.free.pop().unwrap_or_else(|| {
                self.made += 1;
                self.made
            });
            number as usize
        });
        if self.table.chunks.get(number) != Some(&chunk) {
            *self.table.chunks.get_mut(number) = chunk;
        }
        Leaf(u32::try_from(number).unwrap_or_default())
    }
}

/// The entries that `prefix` covers in a chunk that it leads to or that lies below it, and whose
/// entries the eight bits from `offset` on choose.
fn covered(offset: u8, prefix: Prefix<u32>) -> Range<usize> {
    let first = usize::from(prefix.bits().byte(offset));
    let open = (offset + CHUNK_BITS).saturating_sub(prefix.len());
    if open < CHUNK_BITS {
        first..first + (1 << open)
    } else {
        0..256
    }
}

#[cfg(test)]
impl LpmV4Builder {
    /// The highest chunk number that was ever used.
    pub(super) fn made(&self) -> u32 {
        self.made
    }

    /// Every rule of the trie that lookups or later changes rely on.
    pub(super) fn check_shape(&self) {
        let mut seen = std::collections::HashSet::new();
        let root = (0..1 << ROOT_BITS).map_while(|top| self.table.root.get(top));
        let mut entries: Vec<_> = root.map(|entry| (*entry, ROOT_BITS)).collect();
        while let Some((entry, end)) = entries.pop() {
            let Some(number) = chunk_number(entry) else {
                assert!(entry.len().is_none_or(|len| len <= end));
                continue;
            };
            assert!(number > 0 && end < 32);
            assert!(seen.insert(number), "{number} hangs off twice");
            let Chunk(chunk) = self.table.chunks.get(number).unwrap();
            // The chunk is needed: its entries are not all one prefix'.
            let needed = chunk_number(chunk[0]).is_some()
                || chunk[0].len().is_some_and(|len| len > end)
                || chunk.iter().any(|entry| *entry != chunk[0]);
            assert!(needed, "a chunk that decides nothing");
            entries.extend(chunk.iter().map(|entry| (*entry, end + CHUNK_BITS)));
        }
        assert_eq!(seen.len(), self.chunks());
    }
}
