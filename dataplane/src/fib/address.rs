//! Addresses as numbers, prefixes of them, and a set of addresses for the packet path.

use std::collections::HashSet;
use std::fmt;
use std::hash::{BuildHasherDefault, Hasher};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// An IP address as a number in host byte order, with the operations that a lookup needs. Bits
/// are counted from the most significant one.
pub trait Address: Copy + Eq + Default + fmt::Debug + Send + Sync + 'static {
    /// Bits of an address.
    const BITS: u8;

    /// The first 16 bits.
    fn top(self) -> usize;

    /// The eight bits from bit `offset` on; `offset` is at most `BITS - 8`.
    fn byte(self, offset: u8) -> u8;

    /// The first `len` bits, the others zero.
    fn masked(self, len: u8) -> Self;
}

macro_rules! address {
    ($type:ty) => {
        impl Address for $type {
            #[expect(clippy::cast_possible_truncation, reason = "32 or 128")]
            const BITS: u8 = <$type>::BITS as u8;

            #[inline]
            fn top(self) -> usize {
                ((self >> (<Self as Address>::BITS - 16)) & 0xffff) as usize
            }

            #[inline]
            fn byte(self, offset: u8) -> u8 {
                ((self >> (<Self as Address>::BITS - 8).saturating_sub(offset)) & 0xff) as u8
            }

            #[inline]
            fn masked(self, len: u8) -> Self {
                let dropped = <Self as Address>::BITS.saturating_sub(len);
                self & (<$type>::MAX.checked_shl(u32::from(dropped)).unwrap_or(0))
            }
        }
    };
}

address!(u32);
address!(u128);

/// A prefix: its first `len` bits, the others zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Prefix<A> {
    bits: A,
    len: u8,
}

impl<A: Address> Prefix<A> {
    /// The prefix of `len` bits (at most all) that `address` lies in.
    pub fn new(address: A, len: u8) -> Self {
        let len = len.min(A::BITS);
        Self {
            bits: address.masked(len),
            len,
        }
    }

    /// The lowest address.
    pub fn bits(self) -> A {
        self.bits
    }

    /// Length in bits.
    #[expect(
        clippy::len_without_is_empty,
        reason = "a length in bits, not of a collection"
    )]
    pub fn len(self) -> u8 {
        self.len
    }
}

impl From<ipnet::Ipv4Net> for Prefix<u32> {
    fn from(net: ipnet::Ipv4Net) -> Self {
        Self::new(net.addr().to_bits(), net.prefix_len())
    }
}

impl From<ipnet::Ipv6Net> for Prefix<u128> {
    fn from(net: ipnet::Ipv6Net) -> Self {
        Self::new(net.addr().to_bits(), net.prefix_len())
    }
}

/// A set of addresses that is asked once per packet.
///
/// The addresses are this cluster's own, told by control: nobody chooses them to collide, so a
/// multiplication is hash enough, at a tenth of the time of the standard library's SipHash.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AddressSet {
    v4: HashSet<u32, BuildHasherDefault<AddressHasher>>,
    v6: HashSet<u128, BuildHasherDefault<AddressHasher>>,
}

impl AddressSet {
    /// Whether `address` is in the set.
    #[inline]
    pub fn contains(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(v4) => self.v4.contains(&v4.to_bits()),
            IpAddr::V6(v6) => self.v6.contains(&v6.to_bits()),
        }
    }

    /// Of the addresses that `fits` admits, that which has most leading bits in common with `to`; of
    /// several the highest. Looks at all of them.
    pub fn nearest(&self, to: IpAddr, fits: impl Fn(IpAddr) -> bool) -> Option<IpAddr> {
        match to {
            IpAddr::V4(to) => {
                let all = self.v4.iter().map(|bits| Ipv4Addr::from_bits(*bits));
                let fitting = all.filter(|address| fits((*address).into()));
                let near = |one: &Ipv4Addr| ((one.to_bits() ^ to.to_bits()).leading_zeros(), *one);
                fitting.max_by_key(near).map(IpAddr::from)
            }
            IpAddr::V6(to) => {
                let all = self.v6.iter().map(|bits| Ipv6Addr::from_bits(*bits));
                let fitting = all.filter(|address| fits((*address).into()));
                let near = |one: &Ipv6Addr| ((one.to_bits() ^ to.to_bits()).leading_zeros(), *one);
                fitting.max_by_key(near).map(IpAddr::from)
            }
        }
    }

    /// Adds `address`; whether it was new.
    pub fn insert(&mut self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(v4) => self.v4.insert(v4.to_bits()),
            IpAddr::V6(v6) => self.v6.insert(v6.to_bits()),
        }
    }

    /// Removes `address`; whether it was there.
    pub fn remove(&mut self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(v4) => self.v4.remove(&v4.to_bits()),
            IpAddr::V6(v6) => self.v6.remove(&v6.to_bits()),
        }
    }

    /// How many addresses there are.
    pub fn len(&self) -> usize {
        self.v4.len() + self.v6.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl FromIterator<IpAddr> for AddressSet {
    fn from_iter<I: IntoIterator<Item = IpAddr>>(addresses: I) -> Self {
        let mut set = Self::default();
        for address in addresses {
            set.insert(address);
        }
        set
    }
}

/// Hashes the one number that an address is.
#[derive(Debug, Clone, Copy, Default)]
struct AddressHasher(u64);

impl AddressHasher {
    /// 2^64 divided by the golden ratio, odd: spreads neighbouring numbers (Knuth, volume 3, 6.4).
    const FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;

    #[inline]
    fn mix(&mut self, word: u64) {
        let product = u128::from(self.0 ^ word) * u128::from(Self::FACTOR);
        // Both halves of the product: the table takes its bucket from the low bits and its tag
        // from the top ones.
        let [high, low] = halves(product);
        self.0 = high ^ low;
    }
}

/// The high and the low 64 bits.
#[inline]
fn halves(number: u128) -> [u64; 2] {
    #[expect(clippy::cast_possible_truncation, reason = "the low half is wanted")]
    let low = number as u64;
    [(number >> 64) as u64, low]
}

impl Hasher for AddressHasher {
    #[inline]
    fn finish(&self) -> u64 {
        self.0
    }

    #[inline]
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.mix(u64::from(*byte));
        }
    }

    #[inline]
    fn write_u32(&mut self, number: u32) {
        self.mix(u64::from(number));
    }

    #[inline]
    fn write_u128(&mut self, number: u128) {
        let [high, low] = halves(number);
        self.mix(high);
        self.mix(low);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn bits_are_counted_from_the_top() {
        let address = 0x0a01_02ff_u32;
        assert_eq!(address.top(), 0x0a01);
        assert_eq!(address.byte(16), 0x02);
        assert_eq!(address.byte(24), 0xff);
        assert_eq!(address.masked(0), 0);
        assert_eq!(address.masked(17), 0x0a01_0000);
        assert_eq!(address.masked(32), address);
        let address = 0xfd00_0010_u128 << 96 | 0x77;
        assert_eq!(address.top(), 0xfd00);
        assert_eq!(address.byte(24), 0x10);
        assert_eq!(address.byte(120), 0x77);
        assert_eq!(address.masked(127), address - 1);
    }

    #[test]
    fn a_prefix_has_no_host_bits_and_a_legal_length() {
        assert_eq!(
            Prefix::new(0x0a00_0007_u32, 24),
            Prefix::new(0x0a00_0000, 24)
        );
        assert_eq!(Prefix::new(7_u32, 200).len(), 32);
    }

    #[test]
    fn the_hash_spreads_neighbouring_addresses() {
        // A /16's addresses must fill the low 8 bits and the top 7 bits evenly: no bucket may
        // have more than twice its share.
        let mut low = [0_u32; 256];
        let mut top = [0_u32; 128];
        for address in 0x0a00_0000..0x0a01_0000_u32 {
            let mut hasher = AddressHasher::default();
            hasher.write_u32(address);
            low[(hasher.finish() & 0xff) as usize] += 1;
            top[(hasher.finish() >> 57) as usize] += 1;
        }
        assert!(low.iter().all(|n| *n < 512), "{low:?}");
        assert!(top.iter().all(|n| *n < 1024), "{top:?}");
    }

    #[test]
    fn the_nearest_address_is_of_the_same_prefix() {
        let addresses = [
            "192.168.1.2",
            "10.0.0.0",
            "10.0.0.1",
            "fe80::1",
            "fd00::1",
            "2001:db8::1",
        ];
        let set: AddressSet = addresses.iter().map(|a| a.parse().unwrap()).collect();
        let nearest = |to: &str| {
            let global = |ip: IpAddr| !matches!(ip, IpAddr::V6(v6) if v6.is_unicast_link_local());
            let found = set.nearest(to.parse().unwrap(), global);
            found.map(|address| address.to_string())
        };
        // The highest, where two have as much in common.
        assert_eq!(nearest("10.0.0.10").as_deref(), Some("10.0.0.1"));
        assert_eq!(nearest("192.168.7.1").as_deref(), Some("192.168.1.2"));
        assert_eq!(nearest("fd00::10").as_deref(), Some("fd00::1"));
        assert_eq!(nearest("fe80::2").as_deref(), Some("fd00::1"));
        assert_eq!(
            AddressSet::default().nearest(IpAddr::from([0; 4]), |_| true),
            None
        );
    }

    proptest! {
        #[test]
        fn a_set_agrees_with_the_standard_one(
            steps in prop::collection::vec((any::<bool>(), 0_u8..30, any::<bool>()), 0..100),
        ) {
            let mut set = AddressSet::default();
            let mut model = HashSet::new();
            for (add, number, v6) in steps {
                let address: IpAddr = if v6 {
                    Ipv6Addr::from_bits(u128::from(number)).into()
                } else {
                    Ipv4Addr::from_bits(u32::from(number)).into()
                };
                if add {
                    prop_assert_eq!(set.insert(address), model.insert(address));
                } else {
                    prop_assert_eq!(set.remove(address), model.remove(&address));
                }
                prop_assert_eq!(set.len(), model.len());
                prop_assert_eq!(set.contains(address), add);
            }
        }
    }
}
