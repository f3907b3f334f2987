//! Writing the trie.
//!
//! Words used here: a *slot* is a place that holds an entry, in the root or in a chunk; its *end*
//! is the number of address bits that lead to it. A leaf in a slot is never longer than the
//! slot's end.

use std::ops::Range;

use super::super::address::{Address, Prefix};
use super::{CHUNK_BITS, Chunk, Entry, Lpm, NextHopIndex, ROOT_BITS};

/// The writer's side of an [`Lpm`].
///
/// A prefix costs what it covers: one that ends at the end of a level writes one entry, a /0
/// writes the whole root. At most two chunks of about 1 KiB are made for a prefix, and chunks
/// that are no longer needed are used again.
#[derive(Debug)]
pub struct LpmBuilder<A> {
    pub(super) table: Lpm<A>,
    /// Chunks that were made and are not in use.
    free: Vec<u32>,
    /// The highest chunk number that was ever used; numbers start at 1.
    pub(super) made: u32,
}

impl<A: Address> Default for LpmBuilder<A> {
    fn default() -> Self {
        Self::new()
    }
}

/// What a change does to the entries that its prefix covers.
#[derive(Clone, Copy)]
enum Paint {
    /// Becomes the leaf of a prefix of this length wherever no longer prefix is.
    Insert(u8, Entry),
    /// Entries of the prefix of this length become what covers it.
    Remove(u8, Entry),
}

impl Paint {
    /// What `entry`, no chunk, becomes.
    fn apply(self, entry: Entry) -> Entry {
        match self {
            Self::Insert(len, leaf) if entry.len().is_none_or(|old| old <= len) => leaf,
            Self::Remove(len, covering) if entry.len() == Some(len) => covering,
            _ => entry,
        }
    }
}

impl<A: Address> LpmBuilder<A> {
    /// A table without prefixes.
    pub fn new() -> Self {
        Self {
            table: Lpm::default(),
            free: Vec::new(),
            made: 0,
        }
    }

    /// The table as it is now; later changes do not touch it.
    pub fn snapshot(&self) -> Lpm<A> {
        self.table.clone()
    }

    /// How many chunks are in use; each takes about 1 KiB.
    pub fn chunks(&self) -> usize {
        self.made as usize - self.free.len()
    }

    /// Adds `prefix`, or gives it another next hop.
    pub fn insert(&mut self, prefix: Prefix<A>, next_hop: NextHopIndex) {
        let leaf = Entry::leaf(prefix.len(), next_hop);
        if prefix.len() <= ROOT_BITS {
            self.paint_root(prefix, Paint::Insert(prefix.len(), leaf));
        } else {
            let slot = prefix.bits().top();
            let old = self.root(slot);
            let new = self.insert_below(old, ROOT_BITS, prefix, leaf);
            self.set_root(slot, new);
        }
    }

    /// Removes `prefix`. `covering` is the longest prefix that remains and covers it: its length
    /// and next hop. A prefix that is not there changes nothing.
    pub fn remove(&mut self, prefix: Prefix<A>, covering: Option<(u8, NextHopIndex)>) {
        let covering = covering.map_or(Entry::NONE, |(len, hop)| Entry::leaf(len, hop));
        let paint = Paint::Remove(prefix.len(), covering);
        if prefix.len() <= ROOT_BITS {
            self.paint_root(prefix, paint);
        } else {
            let slot = prefix.bits().top();
            let old = self.root(slot);
            let new = self.remove_below(old, ROOT_BITS, prefix, paint);
            self.set_root(slot, new);
        }
    }

    fn root(&self, slot: usize) -> Entry {
        self.table.root.get(slot).copied().unwrap_or_default()
    }

    fn set_root(&mut self, slot: usize, entry: Entry) {
        if self.root(slot) != entry {
            *self.table.root.get_mut(slot) = entry;
        }
    }

    /// Paints the slots of the root that `prefix`, of at most 16 bits, covers.
    fn paint_root(&mut self, prefix: Prefix<A>, paint: Paint) {
        let first = prefix.bits().top();
        for slot in first..first + (1 << (ROOT_BITS - prefix.len())) {
            let old = self.root(slot);
            let new = self.paint_slot(old, paint);
            self.set_root(slot, new);
        }
    }

    /// Paints a slot that the prefix covers, and all that hangs off it. Returns what the slot is
    /// to hold.
    ///
    /// No chunk becomes needless by this: it is there for a prefix longer than the painted one,
    /// and still is.
    fn paint_slot(&mut self, entry: Entry, paint: Paint) -> Entry {
        let Some((_, number)) = entry.chunk() else {
            return paint.apply(entry);
        };
        let miss = self.chunk(number).map_or(Entry::NONE, |chunk| chunk.miss);
        let painted = paint.apply(miss);
        if painted != miss {
            self.table.chunks.get_mut(number).miss = painted;
        }
        self.paint_entries(number, 0..256, paint);
        entry
    }

    /// Paints the `range` of a chunk's entries.
    fn paint_entries(&mut self, number: usize, range: Range<usize>, paint: Paint) {
        let old = self.entries(number, range.clone());
        // Entry by entry may lead to other chunks; they are done first, they need `self`.
        let new: Vec<_> = old.iter().map(|e| self.paint_slot(*e, paint)).collect();
        if new != old {
            let chunk = self.table.chunks.get_mut(number);
            for (entry, new) in chunk.entries.iter_mut().skip(range.start).zip(new) {
                *entry = new;
            }
        }
    }

    /// Inserts a prefix longer than `end` below a slot that holds `entry` and that the prefix
    /// leads to. Returns what the slot is to hold.
    fn insert_below(&mut self, entry: Entry, end: u8, prefix: Prefix<A>, leaf: Entry) -> Entry {
        let paint = Paint::Insert(prefix.len(), leaf);
        let Some((offset, number)) = entry.chunk() else {
            // All that the slot covered is covered by `entry`: also what the new chunk skips.
            let (entry, number) = self.make_chunk(chunk_offset(prefix.len() - 1), prefix, entry);
            self.paint_entries(number, covered(prefix), paint);
            return entry;
        };
        let Some(chunk) = self.chunk(number) else {
            return entry;
        };
        let (path, miss) = (chunk.path, chunk.miss);
        let common = path.common(prefix.bits()).min(offset).min(prefix.len());
        if common < offset {
            // The prefix ends, or leaves the path, in the bits that the chunk skips: a chunk goes
            // in between, with the old one in one of its entries.
            let between = chunk_offset(common.min(prefix.len() - 1));
            let (new, between_number) = self.make_chunk(between, prefix, miss);
            let step = usize::from(path.byte(between));
            self.table.chunks.get_mut(between_number).entries[step] = entry;
            return self.insert_below(new, end, prefix, leaf);
        }
        if prefix.len() == offset {
            self.paint_entries(number, 0..256, paint);
        } else if prefix.len() <= offset + CHUNK_BITS {
            self.paint_entries(number, covered(prefix), paint);
        } else {
            let step = usize::from(prefix.bits().byte(offset));
            let old = self.entry(number, step);
            let new = self.insert_below(old, offset + CHUNK_BITS, prefix, leaf);
            self.set_entry(number, step, new);
            // A leaf that became a chunk may have been all that this chunk was for.
            return self.collapse(entry, end);
        }
        entry
    }

    /// Removes a prefix longer than `end` below a slot that holds `entry` and that the prefix
    /// leads to. Returns what the slot is to hold.
    fn remove_below(&mut self, entry: Entry, end: u8, prefix: Prefix<A>, paint: Paint) -> Entry {
        // A leaf in the slot is shorter than the prefix: the prefix is not there.
        let Some((offset, number)) = entry.chunk() else {
            return entry;
        };
        let path = self.chunk(number).map_or(A::default(), |chunk| chunk.path);
        if path.common(prefix.bits()).min(prefix.len()) < offset {
            // Skipped bits hold no prefix; `insert_below` would have put a chunk there.
            return entry;
        }
        if prefix.len() == offset {
            self.paint_entries(number, 0..256, paint);
        } else if prefix.len() <= offset + CHUNK_BITS {
            self.paint_entries(number, covered(prefix), paint);
        } else {
            let step = usize::from(prefix.bits().byte(offset));
            let old = self.entry(number, step);
            let new = self.remove_below(old, offset + CHUNK_BITS, prefix, paint);
            self.set_entry(number, step, new);
        }
        self.collapse(entry, end)
    }

    /// Gives a slot that leads to a chunk its canonical form, so that the same prefixes always
    /// make the same trie: a chunk that decides nothing is freed, and so is one that decides only
    /// whether another chunk comes next. Returns what the slot is to hold.
    fn collapse(&mut self, entry: Entry, end: u8) -> Entry {
        let Some((offset, number)) = entry.chunk() else {
            return entry;
        };
        let Some(chunk) = self.chunk(number) else {
            return entry;
        };
        let (path, miss) = (chunk.path, chunk.miss);
        let [first, second, third, ..] = chunk.entries;
        // What all addresses get that come here, or all but those that one entry leads on. Equal
        // leaves are one prefix' only if that is no longer than what they share: two /25 with one
        // next hop look like a /24 and must stay apart, or neither could be removed.
        let rest = if first == second { first } else { third };
        if rest.len().is_some_and(|len| len > offset) {
            return entry;
        }
        let mut others = chunk.entries.iter().filter(|entry| **entry != rest);
        let reduced = match (others.next().copied(), others.next()) {
            (None, _) => rest,
            (Some(only), None) => match self.skip_to(only, offset + CHUNK_BITS, rest) {
                Some(next) => next,
                None => return entry,
            },
            (Some(_), Some(_)) => return entry,
        };
        if offset == end || rest == miss {
            self.free_chunk(number);
            return reduced;
        }
        // A prefix that ends where this chunk begins filled it. That is for one entry to say, one
        // level up.
        let above = offset - CHUNK_BITS;
        let mut entries = [miss; 256];
        entries[usize::from(path.byte(above))] = reduced;
        *self.table.chunks.get_mut(number) = Chunk {
            entries,
            path: path.masked(above),
            miss,
        };
        entry.at(above)
    }

    /// `entry`, of a slot with this `end`, made to hang off a slot further up where addresses that
    /// do not come to it get `miss`. `None` if it is no chunk, or skips bits already and gives
    /// other addresses something else.
    fn skip_to(&mut self, entry: Entry, end: u8, miss: Entry) -> Option<Entry> {
        let (offset, number) = entry.chunk()?;
        if self.chunk(number)?.miss != miss {
            if offset != end {
                return None;
            }
            self.table.chunks.get_mut(number).miss = miss;
        }
        Some(entry)
    }

    fn chunk(&self, number: usize) -> Option<&Chunk<A>> {
        self.table.chunks.get(number)
    }

    fn entry(&self, number: usize, step: usize) -> Entry {
        let entry = self.chunk(number).and_then(|chunk| chunk.entries.get(step));
        entry.copied().unwrap_or_default()
    }

    fn entries(&self, number: usize, range: Range<usize>) -> Vec<Entry> {
        let entries = self
            .chunk(number)
            .and_then(|chunk| chunk.entries.get(range));
        entries.unwrap_or_default().to_vec()
    }

    fn set_entry(&mut self, number: usize, step: usize, entry: Entry) {
        if self.entry(number, step) != entry {
            self.table.chunks.get_mut(number).entries[step] = entry;
        }
    }

    /// Makes a chunk at `offset` on the way to `prefix`, all of it `entry`.
    fn make_chunk(&mut self, offset: u8, prefix: Prefix<A>, entry: Entry) -> (Entry, usize) {
        let number = self.free.pop().unwrap_or_else(|| {
            self.made += 1;
            self.made
        });
        *self.table.chunks.get_mut(number as usize) = Chunk {
            entries: [entry; 256],
            path: prefix.bits().masked(offset),
            miss: entry,
        };
        (Entry::to_chunk(offset, number), number as usize)
    }

    fn free_chunk(&mut self, number: usize) {
        // Numbers come out of 27-bit fields.
        self.free.extend(u32::try_from(number));
    }
}

/// Offset of the chunk whose entries bit `bit` of an address chooses; `bit` is 16 or more.
fn chunk_offset(bit: u8) -> u8 {
    bit / CHUNK_BITS * CHUNK_BITS
}

/// The entries that `prefix`, longer than 16 bits, covers in the chunk that it ends in.
fn covered<A: Address>(prefix: Prefix<A>) -> Range<usize> {
    let offset = chunk_offset(prefix.len() - 1);
    let first = usize::from(prefix.bits().byte(offset));
    first..first + (1 << (offset + CHUNK_BITS - prefix.len()))
}
