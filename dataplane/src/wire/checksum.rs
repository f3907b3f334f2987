//! The Internet checksum.
//! <https://www.rfc-editor.org/rfc/rfc1071>; incremental update in RFC 1624.
//!
//! Sums are kept in memory order and swapped once at the end (RFC 1071, section 2, B), so the same
//! loop serves either byte order.

use std::net::{Ipv4Addr, Ipv6Addr};

/// A one's-complement sum over pieces of a packet, laid end to end.
///
/// It remembers whether an odd number of bytes came so far, so that pieces may have any length.
#[derive(Debug, Clone, Copy, Default)]
pub struct Sum {
    /// Sum of the 16-bit words in memory order, with end-around carry in 64 bits.
    words: u64,
    /// Whether the next byte is the second of a word.
    odd: bool,
}

impl Sum {
    /// The sum of one piece.
    #[inline]
    pub fn of(bytes: &[u8]) -> Self {
        Self {
            words: sum_words(bytes),
            odd: !bytes.len().is_multiple_of(2),
        }
    }

    /// The pseudo-header of TCP and UDP over IPv4 (RFC 9293, 3.1). `l4_len` is the length in bytes
    /// of L4 header and payload.
    #[inline]
    pub fn pseudo_header_v4(src: Ipv4Addr, dst: Ipv4Addr, protocol: u8, l4_len: u32) -> Self {
        let mut sum = Self::default();
        sum.add_u32(src.to_bits());
        sum.add_u32(dst.to_bits());
        sum.add_u16(u16::from(protocol));
        sum.add_u32(l4_len);
        sum
    }

    /// The pseudo-header of TCP, UDP and ICMP over IPv6 (RFC 8200, 8.1). `l4_len` is the length in
    /// bytes of L4 header and payload.
    #[inline]
    pub fn pseudo_header_v6(src: Ipv6Addr, dst: Ipv6Addr, protocol: u8, l4_len: u32) -> Self {
        let mut sum = Self::of(&src.octets());
        sum.add(&dst.octets());
        sum.add_u16(u16::from(protocol));
        sum.add_u32(l4_len);
        sum
    }

    /// Adds the next piece.
    #[inline]
    pub fn add(&mut self, bytes: &[u8]) {
        let words = sum_words(bytes);
        // At an odd offset each byte of the piece sits in the other half of its word; swapping the
        // bytes of the folded sum puts them right (RFC 1071, section 2, B).
        let words = if self.odd {
            u64::from(fold(words).swap_bytes())
        } else {
            words
        };
        self.words = add_carry(self.words, words);
        self.odd ^= !bytes.len().is_multiple_of(2);
    }

    /// Adds a number as if it were a word of the packet at an even offset, whatever came before.
    #[inline]
    pub fn add_u16(&mut self, value: u16) {
        self.words = add_carry(self.words, u64::from(value.to_be()));
    }

    /// Adds a number as if it were two words of the packet at an even offset, whatever came before.
    #[inline]
    pub fn add_u32(&mut self, value: u32) {
        self.words = add_carry(self.words, u64::from(value.to_be()));
    }

    /// The sum itself, not complemented: what a CHECKSUM_PARTIAL field holds of its pseudo-header.
    /// Zero only if nothing but zeros was added.
    #[inline]
    pub fn fold(self) -> u16 {
        u16::from_be(fold(self.words))
    }

    /// The checksum: the complement of the sum. Zero over bytes that hold a right checksum.
    #[inline]
    pub fn finish(self) -> u16 {
        !self.fold()
    }

    /// The checksum for a UDP header, where zero means none and 0xffff stands for zero (RFC 768).
    #[inline]
    pub fn finish_udp(self) -> u16 {
        match self.finish() {
            0 => 0xffff,
            checksum => checksum,
        }
    }
}

/// The checksum after one aligned word of what it covers changed from `old` to `new` (RFC 1624,
/// equation 3). Equal to a new computation, except over data that have become all zero, where it
/// gives the other representation of zero. No IP header is all zero.
#[inline]
pub fn update_u16(checksum: u16, old: u16, new: u16) -> u16 {
    let sum = u32::from(!checksum) + u32::from(!old) + u32::from(new);
    !u16::from_be(fold(u64::from(sum)).to_be())
}

/// Whether an L4 checksum field is that of an unfinished packet (CHECKSUM_PARTIAL): it holds the
/// folded sum of the pseudo-header, not complemented. Seen on Linux 6.18 for TCP and UDP over both
/// IP versions; in a super-frame the pseudo-header's length is that of the whole super-frame.
///
/// A finished checksum looks like this by accident once in 65535 packets. Finishing such a packet
/// again is harmless, because it results in the same checksum. Dropping it is not: where partial
/// checksums are unwelcome, drop only if the sum over pseudo-header and L4 part is wrong too.
#[inline]
pub fn is_partial(field: u16, pseudo_header: Sum) -> bool {
    field == pseudo_header.fold()
}

/// The sum in memory order of all 16-bit words; an odd last byte counts as a word with zero.
///
/// Reads every payload byte that leaves without checksum offload, so its speed counts. Two 128-bit
/// accumulators take eight bytes per add and carry: a third faster than 32-bit lanes as the
/// compiler puts them into the vectors of plain x86-64, and without their fixed cost on headers.
#[inline]
fn sum_words(bytes: &[u8]) -> u64 {
    let (blocks, mut rest) = bytes.as_chunks::<32>();
    let (mut even, mut odd) = (0_u128, 0_u128);
    for block in blocks {
        let (words, _) = block.as_chunks::<8>();
        let (pairs, _) = words.as_chunks::<2>();
        for [a, b] in pairs {
            even += u128::from(u64::from_ne_bytes(*a));
            odd += u128::from(u64::from_ne_bytes(*b));
        }
    }
    let mut total = even + odd;
    while let Some((word, tail)) = rest.split_first_chunk() {
        total += u128::from(u64::from_ne_bytes(*word));
        rest = tail;
    }
    if let Some((word, tail)) = rest.split_first_chunk() {
        total += u128::from(u32::from_ne_bytes(*word));
        rest = tail;
    }
    if let Some((word, tail)) = rest.split_first_chunk() {
        total += u128::from(u16::from_ne_bytes(*word));
        rest = tail;
    }
    if let [last] = rest {
        total += u128::from(u16::from_ne_bytes([*last, 0]));
    }
    halve(total)
}

/// Folds to 64 bits with end-around carry.
#[inline]
#[allow(
    clippy::cast_possible_truncation,
    reason = "takes the halves of a number"
)]
fn halve(total: u128) -> u64 {
    add_carry((total >> 64) as u64, total as u64)
}

/// Addition with end-around carry.
#[inline]
fn add_carry(a: u64, b: u64) -> u64 {
    let (sum, carry) = a.overflowing_add(b);
    sum + u64::from(carry)
}

/// Folds to 16 bits with end-around carry. Zero only if `words` is.
#[inline]
#[allow(clippy::cast_possible_truncation, reason = "folded to 16 bits")]
fn fold(words: u64) -> u16 {
    // The upper half of a number plus its halves swapped is their sum with its end-around carry.
    let sum = (words.wrapping_add(words.rotate_left(32)) >> 32) as u32;
    (sum.wrapping_add(sum.rotate_left(16)) >> 16) as u16
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// RFC 1071, section 4.1, in its plainest form.
    fn naive(bytes: &[u8]) -> u16 {
        let mut sum = 0_u32;
        for pair in bytes.chunks(2) {
            sum += u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0));
            sum = (sum & 0xffff) + (sum >> 16);
        }
        u16::try_from(sum).unwrap()
    }

    fn etherparse_checksum(bytes: &[u8]) -> u16 {
        etherparse::checksum::Sum16BitWords::new()
            .add_slice(bytes)
            .ones_complement()
            .to_be()
    }

    #[test]
    fn the_rfc_example_has_its_sum() {
        // RFC 1071, section 3.
        let bytes = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!(Sum::of(&bytes).fold(), 0xddf2);
        assert_eq!(Sum::of(&bytes).finish(), 0x220d);
    }

    #[test]
    fn only_zeros_sum_to_zero() {
        assert_eq!(Sum::default().fold(), 0);
        assert_eq!(Sum::of(&[0; 99]).fold(), 0);
        assert_eq!(Sum::of(&[0xff; 2]).fold(), 0xffff);
        assert_eq!(Sum::of(&[0xff; 65535]).fold(), 0xff00);
        assert_eq!(Sum::of(&[0xff; 65536]).fold(), 0xffff);
        assert_eq!(Sum::of(&[0xff, 0xfe, 0, 1]).fold(), 0xffff);
    }

    #[test]
    fn carries_do_not_get_lost() {
        let mut sum = Sum::default();
        for _ in 0..9 {
            sum.words = add_carry(sum.words, u64::MAX - 1);
        }
        assert_eq!(sum.words, u64::MAX - 9);
        assert_eq!(add_carry(u64::MAX, 2), 2);
        assert_eq!(fold(u64::MAX), 0xffff);
        assert_eq!(fold(0xffff_ffff_0000_0001), 1);
        assert_eq!(fold(0x1_0000), 1);
    }

    #[test]
    fn a_udp_checksum_is_never_zero() {
        assert_eq!(Sum::of(&[0xff, 0xff]).finish(), 0);
        assert_eq!(Sum::of(&[0xff, 0xff]).finish_udp(), 0xffff);
        assert_eq!(Sum::of(&[0x12, 0x34]).finish_udp(), 0xedcb);
    }

    #[test]
    fn the_pseudo_header_of_ipv4_is_twelve_bytes() {
        let sum = Sum::pseudo_header_v4([10, 0, 1, 2].into(), [10, 0, 2, 254].into(), 6, 65000);
        let bytes = [10, 0, 1, 2, 10, 0, 2, 254, 0, 6, 0xfd, 0xe8];
        assert_eq!(sum.fold(), naive(&bytes));
    }

    #[test]
    fn the_pseudo_header_of_ipv6_is_forty_bytes() {
        let src = Ipv6Addr::from(0x2001_0db8_0000_0001_0000_0000_0000_0007);
        let dst = Ipv6Addr::from(0xfd00_0000_0000_0000_ffff_ffff_ffff_fffe);
        let mut bytes = [src.octets(), dst.octets()].concat();
        bytes.extend([0, 1, 0x86, 0xa0, 0, 0, 0, 58]);
        assert_eq!(
            Sum::pseudo_header_v6(src, dst, 58, 100_000).fold(),
            naive(&bytes)
        );
    }

    #[test]
    fn a_partial_checksum_is_the_sum_of_the_pseudo_header() {
        let pseudo = Sum::pseudo_header_v4([10, 0, 0, 1].into(), [10, 0, 1, 1].into(), 17, 16);
        assert_eq!(pseudo.fold(), 0x1523);
        assert!(is_partial(0x1523, pseudo));
        assert!(!is_partial(!0x1523, pseudo));
        assert!(!is_partial(0, pseudo));
    }

    #[test]
    fn the_update_of_the_rfc_avoids_the_wrong_zero() {
        // RFC 1624, section 4: equation 2 gives 0xffff here.
        assert_eq!(update_u16(0xdd2f, 0x5555, 0x3285), 0x0000);
        assert_eq!(update_u16(0x0000, 0x3285, 0x5555), 0xdd2f);
        assert_eq!(update_u16(0x1234, 0xabcd, 0xabcd), 0x1234);
    }

    proptest! {
        #[test]
        fn a_sum_agrees_with_the_oracles(bytes in prop::collection::vec(any::<u8>(), 0..3000)) {
            prop_assert_eq!(Sum::of(&bytes).fold(), naive(&bytes));
            prop_assert_eq!(Sum::of(&bytes).finish(), etherparse_checksum(&bytes));
        }

        #[test]
        fn pieces_of_any_length_sum_like_the_whole(
            bytes in prop::collection::vec(any::<u8>(), 0..3000),
            mut cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..12),
        ) {
            let mut cuts: Vec<usize> = cuts.drain(..).map(|cut| cut.index(bytes.len() + 1)).collect();
            cuts.push(bytes.len());
            cuts.sort_unstable();
            let mut sum = Sum::default();
            let mut start = 0;
            for cut in cuts {
                sum.add(&bytes[start..cut]);
                start = cut;
            }
            prop_assert_eq!(sum.fold(), naive(&bytes));
        }

        #[test]
        fn numbers_add_like_their_bytes(
            bytes in prop::collection::vec(any::<u8>(), 0..99), word: u16, long: u32,
        ) {
            let mut sum = Sum::of(&bytes);
            sum.add_u16(word);
            sum.add_u32(long);
            let mut all = [&word.to_be_bytes()[..], &long.to_be_bytes()].concat();
            all.extend(&bytes);
            prop_assert_eq!(sum.fold(), naive(&all));
        }

        #[test]
        fn an_update_agrees_with_a_new_sum(
            mut words in prop::collection::vec(prop_oneof![Just(0), Just(0xffff), any::<u16>()], 1..12),
            at: prop::sample::Index,
            new in prop_oneof![Just(0), Just(0xffff), any::<u16>()],
        ) {
            let sum = |words: &[u16]| {
                Sum::of(&words.iter().flat_map(|word| word.to_be_bytes()).collect::<Vec<_>>())
            };
            let before = sum(&words).finish();
            let at = at.index(words.len());
            let old = std::mem::replace(&mut words[at], new);
            let after = update_u16(before, old, new);
            if words.iter().any(|word| *word != 0) {
                prop_assert_eq!(after, sum(&words).finish());
            } else {
                prop_assert!(after == 0 || after == 0xffff);
            }
        }

        /// What [`is_partial`] promises about accidents.
        #[test]
        fn finishing_a_finished_packet_that_looks_partial_changes_nothing(
            src: [u8; 4], dst: [u8; 4], mut l4 in prop::collection::vec(any::<u8>(), 10..200),
        ) {
            let len = u32::try_from(l4.len()).unwrap();
            let pseudo = Sum::pseudo_header_v4(src.into(), dst.into(), 17, len);
            let partial = pseudo.fold();
            l4[6..8].copy_from_slice(&partial.to_be_bytes());
            // Make the checksum right by a choice of two other bytes.
            l4[8..10].fill(0);
            let mut sum = pseudo;
            sum.add(&l4);
            l4[8..10].copy_from_slice(&sum.finish().to_be_bytes());
            let mut sum = pseudo;
            sum.add(&l4);
            prop_assert_eq!(sum.finish(), 0);
            prop_assert_eq!(Sum::of(&l4).finish(), partial);
        }
    }
}
