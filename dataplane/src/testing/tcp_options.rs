//! Any options of a TCP header, well made or not.

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

/// Most bytes of options: a header has at most 60.
const MOST: usize = 40;

/// Kinds, and how many bytes follow the length: MSS, window scale, SACK permitted, timestamps (RFC
/// 9293, 7323, 2018), and a cookie of Fast Open (RFC 7413), which may be empty.
const KNOWN: [(u8, usize); 7] = [(2, 2), (3, 1), (4, 0), (8, 8), (34, 0), (34, 8), (34, 16)];

/// Options, padded: 0 to 40 bytes, a multiple of four. What does not fit is cut off, also in the
/// middle of an option.
pub(crate) fn tcp_options() -> impl Strategy<Value = Vec<u8>> {
    (vec(option(), 0..6), 0..=1_u8).prop_map(|(options, padding)| {
        let mut bytes = options.concat();
        bytes.truncate(MOST);
        bytes.resize(bytes.len().next_multiple_of(4), padding);
        bytes
    })
}

fn option() -> impl Strategy<Value = Vec<u8>> {
    let known = select(&KNOWN[..]);
    let sack = (1..=4_usize).prop_map(|blocks| (5, blocks * 8));
    let known = prop_oneof![3 => known, 1 => sack];
    let known = (known, any::<[u8; 32]>()).prop_map(|((kind, len), data)| {
        let mut bytes = vec![kind, u8::try_from(len + 2).unwrap()];
        bytes.extend(&data[..len]);
        bytes
    });
    // Of any kind and any length, the bytes of which may be there or not.
    let unknown = (any::<[u8; 2]>(), vec(any::<u8>(), 0..12))
        .prop_map(|(head, data)| [&head[..], &data].concat());
    prop_oneof![
        // The end of the list, behind which anything may follow.
        1 => Just(vec![0]),
        2 => Just(vec![1]),
        4 => known,
        2 => unknown,
    ]
}
