//! What a table says of addresses, and how a change of a prefix changes it.

use super::NextHopIndex;

/// The longest prefix of some addresses: its length in bits 23-30 and its next hop in bits 0-22,
/// with bit 31 set. What has bit 31 clear is no leaf: 0 is nothing, the rest is for the tables.
///
/// Of two leaves the one of the longer prefix is the greater one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(super) struct Leaf(pub(super) u32);

impl Leaf {
    /// No prefix.
    pub(super) const NONE: Self = Self(0);
    const BIT: u32 = 1 << 31;

    /// The leaf of a prefix of `len` bits.
    pub(super) fn new(len: u8, next_hop: NextHopIndex) -> Self {
        Self(Self::BIT | u32::from(len) << 23 | next_hop.0)
    }

    /// Whether this is a leaf.
    #[inline]
    pub(super) fn is_leaf(self) -> bool {
        self.0 & Self::BIT != 0
    }

    /// The next hop, if this is a leaf.
    #[inline]
    pub(super) fn next_hop(self) -> Option<NextHopIndex> {
        self.is_leaf()
            .then_some(NextHopIndex(self.0 & NextHopIndex::MAX.0))
    }

    /// The prefix length, if this is a leaf.
    pub(super) fn len(self) -> Option<u8> {
        self.is_leaf().then_some((self.0 >> 23 & 0xff) as u8)
    }
}

/// What a change does to the leaves that its prefix covers.
#[derive(Debug, Clone, Copy)]
pub(super) enum Paint {
    /// Becomes this leaf, of a prefix of this length, wherever no longer prefix is.
    Insert(u8, Leaf),
    /// Leaves of the prefix of this length become what covers it.
    Remove(u8, Leaf),
}

impl Paint {
    /// Adds a prefix.
    pub(super) fn insert(len: u8, next_hop: NextHopIndex) -> Self {
        Self::Insert(len, Leaf::new(len, next_hop))
    }

    /// Removes a prefix of `len` bits that is covered by another one, if that is given.
    pub(super) fn remove(len: u8, covering: Option<(u8, NextHopIndex)>) -> Self {
        let covering = covering.map_or(Leaf::NONE, |(len, next_hop)| Leaf::new(len, next_hop));
        Self::Remove(len, covering)
    }

    /// What `old`, a leaf or nothing, becomes.
    pub(super) fn apply(self, old: Leaf) -> Leaf {
        match self {
            Self::Insert(len, leaf) if old.len().is_none_or(|old| old <= len) => leaf,
            Self::Remove(len, covering) if old.len() == Some(len) => covering,
            _ => old,
        }
    }
}
