//! IPv6: a hash table for each length of prefix.
//!
//! A lookup asks the table of each length that is in use, and none of the questions waits for
//! another: the processor has the cache lines of all of them under way at once, and those of the
//! next lookups too, since no branch depends on what they answer. The answer of the longest prefix
//! is the greatest one. PodCIDRs and the addresses of pods are two lengths, so two cache lines.
//!
//! Up to four lengths share a table, by the last of them: a /62 is the four /64 in it (controlled
//! prefix expansion). So the lengths of the Internet's table, nearly all from /29 to /48, are six.

use super::super::address::Prefix;
use super::NextHopIndex;
use super::hash::{Key, Table};
use super::leaf::{Leaf, Paint};

/// Lengths that share a table.
const STRIDE: u8 = 4;

/// A table, and its own writer: a clone is a snapshot that shares what is not written afterwards.
///
/// A prefix writes one key, up to eight if it is shorter than its table's; a key's page is 16 KiB.
/// A million /64 take 28 MB; the memory of a length is freed with the last prefix of it.
#[derive(Debug, Clone, Default)]
pub struct LpmV6 {
    /// The prefix of no bits.
    default: Leaf,
    /// Lengths up to 64. Both by length.
    short: Vec<Table<u64, 5, 6>>,
    /// Longer ones.
    long: Vec<Table<u128, 3, 4>>,
}

impl LpmV6 {
    /// The next hop of the longest prefix that `address` lies in.
    #[inline]
    pub fn lookup(&self, address: u128) -> Option<NextHopIndex> {
        let high = high(address);
        let mut longest = self.default;
        for table in &self.short {
            longest = longest.max(table.get(high));
        }
        for table in &self.long {
            longest = longest.max(table.get(address));
        }
        longest.next_hop()
    }

    /// Adds `prefix`, or gives it another next hop.
    pub fn insert(&mut self, prefix: Prefix<u128>, next_hop: NextHopIndex) {
        self.change(prefix, Paint::insert(prefix.len(), next_hop));
    }

    /// Removes `prefix`. `covering` is the longest prefix that remains and covers it: its length
    /// and next hop. A prefix that is not there changes nothing.
    pub fn remove(&mut self, prefix: Prefix<u128>, covering: Option<(u8, NextHopIndex)>) {
        // A prefix of another table is found there.
        let covering = covering.filter(|(len, _)| table_len(*len) == table_len(prefix.len()));
        self.change(prefix, Paint::remove(prefix.len(), covering));
    }

    fn change(&mut self, prefix: Prefix<u128>, paint: Paint) {
        let len = table_len(prefix.len());
        if len == 0 {
            self.default = paint.apply(self.default);
            return;
        }
        let unit = 1_u128 << (128 - len);
        let keys = (0..1_u128 << (len - prefix.len())).map(|n| prefix.bits() | (n * unit));
        let mask = unit.wrapping_neg();
        if len <= 64 {
            change(&mut self.short, high(mask), keys.map(high), paint);
        } else {
            change(&mut self.long, mask, keys, paint);
        }
    }

    /// Memory of the tables in bytes.
    pub fn bytes(&self) -> usize {
        let short = self.short.iter().map(Table::bytes);
        short.chain(self.long.iter().map(Table::bytes)).sum()
    }
}

/// Paints `keys` in the table of prefixes of that mask.
fn change<K: Key, const N: usize, const M: usize>(
    tables: &mut Vec<Table<K, N, M>>,
    mask: K,
    keys: impl Iterator<Item = K>,
    paint: Paint,
) {
    let place = tables.binary_search_by_key(&mask, Table::mask);
    let at = place.unwrap_or_else(|at| {
        tables.insert(at, Table::new(mask));
        at
    });
    let Some(table) = tables.get_mut(at) else {
        return;
    };
    for key in keys {
        let old = table.get(key);
        table.set(key, paint.apply(old));
    }
    if table.is_empty() {
        tables.remove(at);
    }
}

/// The length of the prefixes in the table that one of `len` bits goes to.
fn table_len(len: u8) -> u8 {
    len.next_multiple_of(STRIDE)
}

/// The first 64 bits.
#[inline]
fn high(address: u128) -> u64 {
    (address >> 64) as u64
}

#[cfg(test)]
impl LpmV6 {
    /// Every rule of the tables that lookups or later changes rely on.
    pub(super) fn check_shape(&self) {
        assert!(self.short.is_sorted_by_key(Table::mask));
        assert!(self.long.is_sorted_by_key(Table::mask));
        self.short.iter().for_each(Table::check_shape);
        self.long.iter().for_each(Table::check_shape);
    }
}
