//! The trie against prefix-trie, and its shape against its own rules.

use std::collections::HashSet;

use ipnet::{Ipv4Net, Ipv6Net};
use prefix_trie::PrefixMap;
use proptest::prelude::*;

use super::super::address::Prefix;
use super::*;

fn hop(index: usize) -> NextHopIndex {
    NextHopIndex::new(index).unwrap()
}

/// An address family with its oracle's prefix type.
trait Family: Address {
    type Net: prefix_trie::Prefix + Copy + PartialEq + std::fmt::Debug;
    fn net(prefix: Prefix<Self>) -> Self::Net;
    fn prefix(net: Self::Net) -> Prefix<Self>;
    /// Addresses where the outcome may change: first and last of `prefix`, and those beside it.
    fn edges(prefix: Prefix<Self>) -> [Self; 4];
    /// An address with few bits that vary, so that prefixes overlap.
    fn address() -> BoxedStrategy<Self>;
}

impl Family for u32 {
    type Net = Ipv4Net;
    fn net(prefix: Prefix<Self>) -> Ipv4Net {
        Ipv4Net::new(prefix.bits().into(), prefix.len()).unwrap()
    }
    fn prefix(net: Ipv4Net) -> Prefix<Self> {
        net.into()
    }
    fn edges(prefix: Prefix<Self>) -> [Self; 4] {
        let first = prefix.bits();
        let host_bits = Self::MAX.checked_shr(u32::from(prefix.len()));
        let last = first | host_bits.unwrap_or(0);
        [first, last, first.wrapping_sub(1), last.wrapping_add(1)]
    }
    fn address() -> BoxedStrategy<Self> {
        let byte = prop_oneof![Just(0_u8), Just(1), Just(0x7f), Just(0xff), 0..=7_u8];
        prop::array::uniform4(byte)
            .prop_map(Self::from_be_bytes)
            .boxed()
    }
}

impl Family for u128 {
    type Net = Ipv6Net;
    fn net(prefix: Prefix<Self>) -> Ipv6Net {
        Ipv6Net::new(prefix.bits().into(), prefix.len()).unwrap()
    }
    fn prefix(net: Ipv6Net) -> Prefix<Self> {
        net.into()
    }
    fn edges(prefix: Prefix<Self>) -> [Self; 4] {
        let first = prefix.bits();
        let host_bits = Self::MAX.checked_shr(u32::from(prefix.len()));
        let last = first | host_bits.unwrap_or(0);
        [first, last, first.wrapping_sub(1), last.wrapping_add(1)]
    }
    fn address() -> BoxedStrategy<Self> {
        let change = (0..16_usize, prop_oneof![Just(0x80_u8), 0..=3_u8]);
        prop::collection::vec(change, 0..4)
            .prop_map(|changes| {
                let mut bytes = [0; 16];
                for (at, value) in changes {
                    bytes[at] = value;
                }
                Self::from_be_bytes(bytes)
            })
            .boxed()
    }
}

fn prefix<A: Family>() -> BoxedStrategy<Prefix<A>> {
    let len = prop_oneof![
        4 => 0..=A::BITS,
        1 => Just(0),
        2 => Just(A::BITS),
        4 => (2..=A::BITS / 8).prop_map(|bytes| bytes * 8),
    ];
    (A::address(), len)
        .prop_map(|(address, len)| Prefix::new(address, len))
        .boxed()
}

#[derive(Debug, Clone)]
enum Step<A> {
    Insert(Prefix<A>, usize),
    Remove(Prefix<A>),
    /// Removes one that is there, by position.
    RemoveOld(prop::sample::Index),
    Snapshot,
}

fn step<A: Family>() -> BoxedStrategy<Step<A>> {
    prop_oneof![
        6 => (prefix::<A>(), 0..3_usize).prop_map(|(prefix, hop)| Step::Insert(prefix, hop)),
        1 => prefix::<A>().prop_map(Step::Remove),
        4 => any::<prop::sample::Index>().prop_map(Step::RemoveOld),
        1 => Just(Step::Snapshot),
    ]
    .boxed()
}

/// A table and its oracle.
struct Pair<A: Family> {
    builder: LpmBuilder<A>,
    oracle: PrefixMap<A::Net, NextHopIndex>,
}

impl<A: Family> Pair<A> {
    fn new() -> Self {
        Self {
            builder: LpmBuilder::new(),
            oracle: PrefixMap::new(),
        }
    }

    fn insert(&mut self, prefix: Prefix<A>, next_hop: NextHopIndex) {
        self.builder.insert(prefix, next_hop);
        self.oracle.insert(A::net(prefix), next_hop);
    }

    fn remove(&mut self, prefix: Prefix<A>) {
        self.oracle.remove(&A::net(prefix));
        let covering = self.oracle.get_lpm(&A::net(prefix));
        let covering = covering.map(|(net, hop)| (A::prefix(net).len(), *hop));
        self.builder.remove(prefix, covering);
    }
}

/// What the oracle finds, if anything.
fn expected<A: Family>(
    oracle: &PrefixMap<A::Net, NextHopIndex>,
    address: A,
) -> Option<NextHopIndex> {
    let host = A::net(Prefix::new(address, A::BITS));
    oracle.get_lpm(&host).map(|(_, hop)| *hop)
}

fn run<A: Family>(steps: Vec<Step<A>>, probes: &[A]) -> Result<(), TestCaseError> {
    let mut pair = Pair::<A>::new();
    let mut present = Vec::new();
    let mut snapshots = Vec::new();
    for step in steps {
        match step {
            Step::Insert(prefix, index) => {
                pair.insert(prefix, hop(index));
                present.push(prefix);
            }
            Step::Remove(prefix) => pair.remove(prefix),
            Step::RemoveOld(at) if !present.is_empty() => {
                pair.remove(present.swap_remove(at.index(present.len())));
            }
            Step::RemoveOld(_) => {}
            Step::Snapshot => {
                check_shape(&pair.builder)?;
                snapshots.push((pair.builder.snapshot(), pair.oracle.clone()));
            }
        }
    }
    check_shape(&pair.builder)?;
    snapshots.push((pair.builder.snapshot(), pair.oracle.clone()));
    for (table, oracle) in &snapshots {
        let edges = oracle.keys().flat_map(|net| A::edges(A::prefix(net)));
        for address in edges.chain(probes.iter().copied()) {
            prop_assert_eq!(table.lookup(address), expected(oracle, address));
        }
    }
    for prefix in present {
        pair.remove(prefix);
    }
    check_shape(&pair.builder)?;
    for net in pair.oracle.keys().collect::<Vec<_>>() {
        pair.remove(A::prefix(net));
    }
    prop_assert_eq!(pair.builder.chunks(), 0);
    let table = pair.builder.snapshot();
    for address in probes {
        prop_assert_eq!(table.lookup(*address), None);
    }
    Ok(())
}

/// Every rule of the trie that lookups or later changes rely on.
fn check_shape<A: Address>(builder: &LpmBuilder<A>) -> Result<(), TestCaseError> {
    let table = &builder.table;
    let mut seen = HashSet::new();
    let mut slots = Vec::new();
    for top in 0..1 << 16 {
        match table.root.get(top) {
            Some(entry) => slots.push((*entry, ROOT_BITS, None)),
            None => break,
        }
    }
    while let Some((entry, end, parent)) = slots.pop() {
        let Some((offset, number)) = entry.chunk() else {
            prop_assert!(entry.len().is_none_or(|len| len <= end));
            continue;
        };
        prop_assert!(
            number > 0 && seen.insert(number),
            "{number} hangs off twice"
        );
        prop_assert!(offset >= end && offset < A::BITS);
        let chunk = table.chunks.get(number).unwrap();
        prop_assert_eq!(chunk.path, chunk.path.masked(offset));
        if let Some((path, offset, step)) = parent {
            let path: A = path;
            prop_assert!(path.common(chunk.path) >= offset);
            prop_assert_eq!(usize::from(chunk.path.byte(offset)), step);
        }
        let skips = offset != end;
        if skips {
            prop_assert!(chunk.miss.chunk().is_none());
            prop_assert!(chunk.miss.len().is_none_or(|len| len <= end));
        }
        // The chunk is needed: its entries are neither all one prefix', nor all but one that only
        // leads on.
        let [first, second, third, ..] = chunk.entries;
        let rest = if first == second { first } else { third };
        let others = chunk.entries.iter().filter(|entry| **entry != rest);
        match others.collect::<Vec<_>>()[..] {
            _ if rest.len().is_some_and(|len| len > offset) => {}
            [] => prop_assert!(false, "a chunk that decides nothing"),
            [only] => {
                if let Some((next_offset, next)) = only.chunk() {
                    let miss = table.chunks.get(next).unwrap().miss;
                    prop_assert!(next_offset != offset + CHUNK_BITS && miss != rest);
                }
            }
            _ => {}
        }
        for (step, entry) in chunk.entries.iter().enumerate() {
            slots.push((
                *entry,
                offset + CHUNK_BITS,
                Some((chunk.path, offset, step)),
            ));
        }
    }
    prop_assert_eq!(seen.len(), builder.chunks());
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn v4_agrees_with_the_oracle(
        steps in prop::collection::vec(step::<u32>(), 0..60),
        probes in prop::collection::vec(u32::address(), 50),
    ) {
        run(steps, &probes)?;
    }

    #[test]
    fn v6_agrees_with_the_oracle(
        steps in prop::collection::vec(step::<u128>(), 0..60),
        probes in prop::collection::vec(u128::address(), 50),
    ) {
        run(steps, &probes)?;
    }
}

fn v4(net: &str) -> Prefix<u32> {
    net.parse::<Ipv4Net>().unwrap().into()
}

fn v6(net: &str) -> Prefix<u128> {
    net.parse::<Ipv6Net>().unwrap().into()
}

fn v4_bits(address: &str) -> u32 {
    address.parse::<std::net::Ipv4Addr>().unwrap().to_bits()
}

fn v6_bits(address: &str) -> u128 {
    address.parse::<std::net::Ipv6Addr>().unwrap().to_bits()
}

#[test]
fn the_longest_prefix_wins() {
    let mut builder = LpmBuilder::new();
    for (net, index) in [
        ("0.0.0.0/0", 0),
        ("10.0.0.0/8", 1),
        ("10.0.1.0/24", 2),
        ("10.0.1.128/25", 3),
        ("10.0.1.129/32", 4),
    ] {
        builder.insert(v4(net), hop(index));
    }
    let table = builder.snapshot();
    for (address, index) in [
        ("0.0.0.0", 0),
        ("255.255.255.255", 0),
        ("10.0.0.255", 1),
        ("10.0.1.0", 2),
        ("10.0.1.127", 2),
        ("10.0.1.128", 3),
        ("10.0.1.129", 4),
        ("10.0.1.130", 3),
        ("10.0.2.0", 1),
    ] {
        assert_eq!(
            table.lookup(v4_bits(address)),
            Some(hop(index)),
            "{address}"
        );
    }
}

#[test]
fn a_removed_prefix_uncovers_the_one_around_it() {
    let mut builder = LpmBuilder::new();
    builder.insert(v4("10.0.0.0/8"), hop(1));
    builder.insert(v4("10.0.1.0/24"), hop(2));
    builder.insert(v4("10.0.1.0/24"), hop(3));
    let before = builder.snapshot();
    builder.remove(v4("10.0.1.0/24"), Some((8, hop(1))));
    assert_eq!(builder.snapshot().lookup(v4_bits("10.0.1.7")), Some(hop(1)));
    assert_eq!(before.lookup(v4_bits("10.0.1.7")), Some(hop(3)));
    assert_eq!(builder.chunks(), 0);
    builder.remove(v4("10.0.0.0/8"), None);
    assert_eq!(builder.snapshot().lookup(v4_bits("10.0.1.7")), None);
}

#[test]
fn equal_halves_stay_two_prefixes() {
    let mut builder = LpmBuilder::new();
    builder.insert(v4("10.0.1.0/25"), hop(1));
    builder.insert(v4("10.0.1.128/25"), hop(1));
    builder.insert(v4("10.0.1.7/32"), hop(2));
    builder.remove(v4("10.0.1.7/32"), Some((25, hop(1))));
    builder.remove(v4("10.0.1.0/25"), None);
    let table = builder.snapshot();
    assert_eq!(table.lookup(v4_bits("10.0.1.7")), None);
    assert_eq!(table.lookup(v4_bits("10.0.1.200")), Some(hop(1)));
}

#[test]
fn a_prefix_that_is_not_there_is_not_removed() {
    let mut builder = LpmBuilder::new();
    builder.insert(v4("10.0.1.0/24"), hop(1));
    for net in [
        "0.0.0.0/0",
        "10.0.0.0/16",
        "10.0.0.0/23",
        "10.0.1.0/25",
        "10.0.1.1/32",
    ] {
        builder.remove(v4(net), None);
        assert_eq!(
            builder.snapshot().lookup(v4_bits("10.0.1.1")),
            Some(hop(1)),
            "{net}"
        );
    }
}

#[test]
fn pods_of_a_node_share_two_chunks() {
    let mut builder = LpmBuilder::new();
    builder.insert(v6("fd00:10:244::/64"), hop(0));
    assert_eq!(builder.chunks(), 1, "nothing between the root and the /64");
    for pod in 1..=110 {
        builder.insert(v6(&format!("fd00:10:244::{pod:x}/128")), hop(pod));
    }
    // One for the /64's own entry, one for the pods.
    assert_eq!(builder.chunks(), 2);
    let table = builder.snapshot();
    assert_eq!(table.lookup(v6_bits("fd00:10:244::1")), Some(hop(1)));
    assert_eq!(table.lookup(v6_bits("fd00:10:244::6e")), Some(hop(110)));
    assert_eq!(table.lookup(v6_bits("fd00:10:244::6f")), Some(hop(0)));
    assert_eq!(table.lookup(v6_bits("fd00:10:244:0:1::1")), Some(hop(0)));
    assert_eq!(table.lookup(v6_bits("fd00:10:244:1::1")), None);
}

#[test]
fn chunks_are_used_again() {
    let mut builder = LpmBuilder::new();
    for round in 0..100_u32 {
        let prefix = Prefix::new(round << 8 | 0x0a00_0000, 32);
        builder.insert(prefix, hop(1));
        builder.remove(prefix, None);
    }
    assert_eq!((builder.made, builder.chunks()), (1, 0));
}

#[test]
fn an_entry_keeps_its_extremes() {
    let leaf = Entry::leaf(128, NextHopIndex::MAX);
    assert_eq!(leaf.len(), Some(128));
    assert_eq!(leaf.next_hop(), Some(NextHopIndex::MAX));
    assert_eq!(leaf.chunk(), None);
    let leaf = Entry::leaf(0, NextHopIndex::MIN);
    assert_eq!((leaf.len(), leaf.next_hop()), (Some(0), Some(hop(0))));
    let chunk = Entry::to_chunk(120, (1 << 27) - 1);
    assert_eq!(chunk.chunk(), Some((120, (1 << 27) - 1)));
    assert_eq!((chunk.len(), chunk.next_hop()), (None, None));
    assert_eq!(NextHopIndex::new(1 << 23), None);
}
