//! Longest-prefix match: a trie for IPv4, a hash table for each length of prefix for IPv6.
//!
//! What a lookup costs is the memory that it waits for. In IPv4 ([`LpmV4`]) few levels of arrays
//! cover an address, and the upper ones stay in the cache. In IPv6 ([`LpmV6`]) the levels would
//! be many and each would have to wait for the one above; tables by length are asked all at once.
//!
//! Both keep a prefix' length beside its next hop. That is what tells, when a prefix goes, which
//! entries were its own. What then covers them is told by the caller, who has the RIB.

mod hash;
mod leaf;
mod lengths;
mod trie;

pub use lengths::LpmV6;
pub use trie::{LpmV4, LpmV4Builder};

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

#[cfg(test)]
mod tests;
