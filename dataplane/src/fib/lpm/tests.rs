//! Both tables against prefix-trie, and their shape against their own rules.

use ipnet::{Ipv4Net, Ipv6Net};
use prefix_trie::PrefixMap;
use proptest::prelude::*;

use super::super::address::{Address, Prefix};
use super::*;

fn hop(index: usize) -> NextHopIndex {
    NextHopIndex::new(index).unwrap()
}

/// An address family with its table, and its oracle's prefix type.
trait Family: Address {
    type Net: prefix_trie::Prefix + Copy + PartialEq + std::fmt::Debug;
    type Builder: Default;
    type Table;
    fn insert(builder: &mut Self::Builder, prefix: Prefix<Self>, hop: NextHopIndex);
    fn remove(
        builder: &mut Self::Builder,
        prefix: Prefix<Self>,
        covering: Option<(u8, NextHopIndex)>,
    );
    fn snapshot(builder: &Self::Builder) -> Self::Table;
    fn lookup(table: &Self::Table, address: Self) -> Option<NextHopIndex>;
    /// Every rule that lookups or later changes rely on.
    fn check_shape(builder: &Self::Builder);
    /// Whether the builder holds nothing.
    fn is_empty(builder: &Self::Builder) -> bool;
    fn net(prefix: Prefix<Self>) -> Self::Net;
    fn prefix(net: Self::Net) -> Prefix<Self>;
    /// Addresses where the outcome may change: first and last of `prefix`, and those beside it.
    fn edges(prefix: Prefix<Self>) -> [Self; 4];
    /// An address with few bits that vary, so that prefixes overlap.
    fn address() -> BoxedStrategy<Self>;
}

impl Family for u32 {
    type Net = Ipv4Net;
    type Builder = LpmV4Builder;
    type Table = LpmV4;
    fn insert(builder: &mut LpmV4Builder, prefix: Prefix<Self>, hop: NextHopIndex) {
        builder.insert(prefix, hop);
    }
    fn remove(
        builder: &mut LpmV4Builder,
        prefix: Prefix<Self>,
        covering: Option<(u8, NextHopIndex)>,
    ) {
        builder.remove(prefix, covering);
    }
    fn snapshot(builder: &LpmV4Builder) -> LpmV4 {
        builder.snapshot()
    }
    fn lookup(table: &LpmV4, address: Self) -> Option<NextHopIndex> {
        table.lookup(address)
    }
    fn check_shape(builder: &LpmV4Builder) {
        builder.check_shape();
    }
    fn is_empty(builder: &LpmV4Builder) -> bool {
        builder.chunks() == 0
    }
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
    type Builder = LpmV6;
    type Table = LpmV6;
    fn insert(builder: &mut LpmV6, prefix: Prefix<Self>, hop: NextHopIndex) {
        builder.insert(prefix, hop);
    }
    fn remove(builder: &mut LpmV6, prefix: Prefix<Self>, covering: Option<(u8, NextHopIndex)>) {
        builder.remove(prefix, covering);
    }
    fn snapshot(builder: &LpmV6) -> LpmV6 {
        builder.clone()
    }
    fn lookup(table: &LpmV6, address: Self) -> Option<NextHopIndex> {
        table.lookup(address)
    }
    fn check_shape(builder: &LpmV6) {
        builder.check_shape();
    }
    fn is_empty(builder: &LpmV6) -> bool {
        builder.bytes() == 0
    }
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
    builder: A::Builder,
    oracle: PrefixMap<A::Net, NextHopIndex>,
}

impl<A: Family> Pair<A> {
    fn new() -> Self {
        Self {
            builder: A::Builder::default(),
            oracle: PrefixMap::new(),
        }
    }

    fn insert(&mut self, prefix: Prefix<A>, next_hop: NextHopIndex) {
        A::insert(&mut self.builder, prefix, next_hop);
        self.oracle.insert(A::net(prefix), next_hop);
    }

    fn remove(&mut self, prefix: Prefix<A>) {
        self.oracle.remove(&A::net(prefix));
        let covering = self.oracle.get_lpm(&A::net(prefix));
        let covering = covering.map(|(net, hop)| (A::prefix(net).len(), *hop));
        A::remove(&mut self.builder, prefix, covering);
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
                A::check_shape(&pair.builder);
                snapshots.push((A::snapshot(&pair.builder), pair.oracle.clone()));
            }
        }
    }
    A::check_shape(&pair.builder);
    snapshots.push((A::snapshot(&pair.builder), pair.oracle.clone()));
    for (table, oracle) in &snapshots {
        let edges = oracle.keys().flat_map(|net| A::edges(A::prefix(net)));
        for address in edges.chain(probes.iter().copied()) {
            prop_assert_eq!(A::lookup(table, address), expected(oracle, address));
        }
    }
    for prefix in present {
        pair.remove(prefix);
    }
    A::check_shape(&pair.builder);
    for net in pair.oracle.keys().collect::<Vec<_>>() {
        pair.remove(A::prefix(net));
    }
    prop_assert!(A::is_empty(&pair.builder));
    let table = A::snapshot(&pair.builder);
    for address in probes {
        prop_assert_eq!(A::lookup(&table, *address), None);
    }
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
    let mut builder = LpmV4Builder::default();
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
    let mut builder = LpmV4Builder::default();
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
    let mut builder = LpmV4Builder::default();
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
    let mut builder = LpmV4Builder::default();
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
fn lengths_of_one_table_and_of_others() {
    let mut table = LpmV6::default();
    for (net, index) in [
        ("::/0", 0),
        ("fd00:10::/29", 1),
        ("fd00:10::/32", 2),
        ("fd00:10:244::/61", 3),
        ("fd00:10:244:1::/64", 4),
        ("fd00:10:244:1::/65", 5),
        ("fd00:10:244:1::7/128", 6),
        ("fd00:10:244:1::/128", 7),
    ] {
        table.insert(v6(net), hop(index));
    }
    let check = |table: &LpmV6, expected: &[(&str, usize)]| {
        for (address, index) in expected {
            let found = table.lookup(v6_bits(address));
            assert_eq!(found, Some(hop(*index)), "{address}");
        }
    };
    let before = table.clone();
    let all = [
        ("::", 0),
        ("fd00:17::1", 1),
        ("fd00:18::1", 0),
        ("fd00:10:245::1", 2),
        ("fd00:10:244:7::1", 3),
        ("fd00:10:244:8::1", 2),
        ("fd00:10:244:1:8000::", 4),
        ("fd00:10:244:1::1", 5),
        ("fd00:10:244:1::7", 6),
        ("fd00:10:244:1::", 7),
    ];
    check(&table, &all);
    table.remove(v6("fd00:10:244:1::/64"), Some((61, hop(3))));
    table.remove(v6("fd00:10:244:1::7/128"), Some((65, hop(5))));
    table.remove(v6("fd00:10::/32"), Some((29, hop(1))));
    check(
        &table,
        &[
            ("fd00:10:244:1:8000::", 3),
            ("fd00:10:244:1::7", 5),
            ("fd00:10:245::1", 1),
            ("fd00:10:244:8::1", 1),
        ],
    );
    check(&before, &all);
}

/// What grows, splits and spills only with many keys; the random prefixes above are too few.
#[test]
fn thousands_of_prefixes_agree_with_the_oracle() {
    let mut pair = Pair::<u128>::new();
    let mut state = 1_u64;
    let mut random = || {
        state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
        state >> 33
    };
    // Few bits vary in the first 64 so that prefixes cover one another.
    let mut prefixes = Vec::new();
    for number in 0..12_000_usize {
        let len = [48, 63, 64, 64, 127, 128][number % 6];
        let bits = u128::from(random() & 0xfff) << 64 | u128::from(random() & 0xff);
        prefixes.push(Prefix::new(0xfd << 120 | bits, len));
    }
    for (number, prefix) in prefixes.iter().enumerate() {
        pair.insert(*prefix, hop(number));
    }
    u128::check_shape(&pair.builder);
    let full = (pair.builder.clone(), pair.oracle.clone());
    for prefix in prefixes.iter().skip(1).step_by(2) {
        pair.remove(*prefix);
    }
    u128::check_shape(&pair.builder);
    for (table, oracle) in [full, (pair.builder.clone(), pair.oracle.clone())] {
        for address in prefixes.iter().flat_map(|prefix| u128::edges(*prefix)) {
            assert_eq!(table.lookup(address), expected(&oracle, address));
        }
    }
    for prefix in prefixes {
        pair.remove(prefix);
    }
    assert_eq!(pair.builder.bytes(), 0);
}

#[test]
fn memory_is_what_the_doc_says() {
    let mut table = LpmV6::default();
    let count = 50_000_u32;
    for number in 0..count {
        table.insert(
            Prefix::new(0xfd_u128 << 120 | u128::from(number) << 64, 64),
            hop(0),
        );
    }
    let each = table.bytes() / count as usize;
    assert!((27..=30).contains(&each), "{each} bytes for a prefix");
}

#[test]
fn chunks_are_used_again() {
    let mut builder = LpmV4Builder::default();
    for round in 0..100_u32 {
        let prefix = Prefix::new(round << 8 | 0x0a00_0000, 32);
        builder.insert(prefix, hop(1));
        builder.remove(prefix, None);
    }
    assert_eq!((builder.made(), builder.chunks()), (2, 0));
}

#[test]
fn a_leaf_keeps_its_extremes() {
    let leaf = leaf::Leaf::new(128, NextHopIndex::MAX);
    assert_eq!(leaf.len(), Some(128));
    assert_eq!(leaf.next_hop(), Some(NextHopIndex::MAX));
    let short = leaf::Leaf::new(0, NextHopIndex::MIN);
    assert_eq!((short.len(), short.next_hop()), (Some(0), Some(hop(0))));
    assert!(leaf::Leaf::new(1, NextHopIndex::MIN) > leaf::Leaf::new(0, NextHopIndex::MAX));
    assert!(short > leaf::Leaf::NONE && !leaf::Leaf::NONE.is_leaf());
    assert_eq!(NextHopIndex::new(1 << 23), None);
}
