//! Longest-prefix match: a multibit trie with pushed leaves and skipped levels.
//!
//! The root is an array over an address' first 16 bits. Below it are chunks, arrays over eight
//! further bits each. An entry of either is nothing, a leaf, or a chunk. A leaf stands for the
//! longest prefix that covers the whole entry, so a lookup ends at the first leaf it meets: for a
//! /24 that is one entry of the root and one of a chunk, the only memory that other lookups have
//! not already brought to the cache.
//!
//! A chunk that would be the only one in its parent hangs off the grandparent instead, and so on:
//! an entry names the level of the chunk that it leads to. The chunk keeps the bits that were
//! skipped, and what an address gets that does not have them. A lone /128 is thus two steps away
//! from the root and not fourteen; the pods of one node share those two steps.
//!
//! Leaves keep their prefix' length. That is what tells, when a prefix goes, which entries were
//! its own. What then covers them is told by the caller, who has the RIB.
//!
//! After V. Srinivasan, G. Varghese, "Fast address lookups using controlled prefix expansion",
//! ACM TOCS 17(1), 1999, with the path compression of a Patricia trie.

mod builder;

pub use builder::LpmBuilder;

use super::address::Address;
use super::cow::CowVec;

/// Index of a next hop. Fits in 23 bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NextHopIndex(u32);

impl NextHopIndex {
    /// The lowest index.
    pub const MIN: Self = Self(0);
    /// The highest index.
    pub const MAX: Self = Self((1 << 23) - 1);

    /// The index `index`; `None` above [`NextHopIndex::MAX`].
    pub fn new(index: usize) -> Option<Self> {
        let index = u32::try_from(index).ok()?;
        (index <= Self::MAX.0).then_some(Self(index))
    }

    /// The index as a position in an array.
    #[inline]
    pub fn get(self) -> usize {
        self.0 as usize
    }
}

/// The table that lookups read. A clone is a snapshot: it shares every page with its original
/// until one of them is written.
#[derive(Debug, Clone)]
pub struct Lpm<A> {
    /// By the first 16 bits. 4 KiB pages.
    root: CowVec<Entry, 1024>,
    /// The chunks; number 0 is not used. Pages of 32 to 34 KiB: at 65,000 chunks, a full Internet
    /// table's, the directory is 16 KiB.
    chunks: CowVec<Chunk<A>, 32>,
}

impl<A: Address> Lpm<A> {
    /// The next hop of the longest prefix that `address` lies in.
    #[inline]
    pub fn lookup(&self, address: A) -> Option<NextHopIndex> {
        let mut entry = *self.root.get(address.top())?;
        // The offset of a chunk that hangs off `entry` with nothing skipped in between.
        let mut next = ROOT_BITS;
        // Ends: offsets grow from chunk to chunk, and a chunk's `miss` is no chunk.
        while let Some((offset, number)) = entry.chunk() {
            let chunk = self.chunks.get(number)?;
            if offset != next && address.common(chunk.path) < offset {
                entry = chunk.miss;
            } else {
                entry = chunk.entries[usize::from(address.byte(offset))];
                next = offset + CHUNK_BITS;
            }
        }
        entry.next_hop()
    }
}

impl<A: Address> Default for Lpm<A> {
    /// A table without prefixes.
    fn default() -> Self {
        Self {
            root: CowVec::new(),
            chunks: CowVec::new(),
        }
    }
}

/// Address bits that the root takes.
const ROOT_BITS: u8 = 16;
/// Address bits that a chunk takes.
const CHUNK_BITS: u8 = 8;

/// What an array of the trie leads to: 0 is nothing; bit 31 set is a leaf, with the prefix length
/// in bits 23-30 and the next hop in bits 0-22; else a chunk, with its level in bits 27-30 and its
/// number, which is never 0, in bits 0-26.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Entry(u32);

impl Entry {
    /// No prefix covers this.
    const NONE: Self = Self(0);
    const LEAF: u32 = 1 << 31;
    const NUMBER: u32 = (1 << 27) - 1;

    /// A leaf of a prefix of `len` bits.
    fn leaf(len: u8, next_hop: NextHopIndex) -> Self {
        Self(Self::LEAF | u32::from(len) << 23 | next_hop.0)
    }

    /// The chunk `number` (below 2^27), whose entries are chosen by the eight bits from `offset`
    /// on.
    fn to_chunk(offset: u8, number: u32) -> Self {
        Self(u32::from((offset - ROOT_BITS) / CHUNK_BITS) << 27 | number)
    }

    /// This entry, a chunk, with the chunk at another offset.
    fn at(self, offset: u8) -> Self {
        Self::to_chunk(offset, self.0 & Self::NUMBER)
    }

    /// Offset and number of the chunk that this leads to.
    #[inline]
    fn chunk(self) -> Option<(u8, usize)> {
        if self.0 == 0 || self.0 & Self::LEAF != 0 {
            return None;
        }
        let level = (self.0 >> 27 & 0xf) as u8;
        Some((
            ROOT_BITS + CHUNK_BITS * level,
            (self.0 & Self::NUMBER) as usize,
        ))
    }

    /// The next hop, if this is a leaf.
    #[inline]
    fn next_hop(self) -> Option<NextHopIndex> {
        (self.0 & Self::LEAF != 0).then_some(NextHopIndex(self.0 & NextHopIndex::MAX.0))
    }

    /// The prefix length, if this is a leaf.
    fn len(self) -> Option<u8> {
        (self.0 & Self::LEAF != 0).then_some((self.0 >> 23 & 0xff) as u8)
    }
}

/// An array over eight address bits, the ones from the chunk's offset on.
#[derive(Debug, Clone)]
struct Chunk<A> {
    entries: [Entry; 256],
    /// The address bits that lead here, up to the chunk's offset; zero after it.
    path: A,
    /// What an address gets that comes to this chunk and has not its skipped bits; never a chunk.
    /// Without meaning in a chunk that skips none.
    miss: Entry,
}

impl<A: Address> Default for Chunk<A> {
    fn default() -> Self {
        Self {
            entries: [Entry::NONE; 256],
            path: A::default(),
            miss: Entry::NONE,
        }
    }
}

#[cfg(test)]
mod tests;
