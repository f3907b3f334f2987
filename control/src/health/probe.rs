//! The datagrams that control processes send each other.
//!
//! All numbers are in network byte order. Every datagram has the same length, so that a response is
//! never longer than its request.
//!
//! | offset | bytes | |
//! |---|---|---|
//! | 0 | 4 | `PWHP` |
//! | 4 | 1 | version: 1 |
//! | 5 | 1 | kind: 1 request, 2 response |
//! | 6 | 2 | zero; ignored on receipt |
//! | 8 | 4 | sequence number; a response has its request's |
//! | 12 | 8 | cookie; a response has its request's |
//! | 20 | 8 | who sends this: see [`NodeId`] |
//!
//! A later version that changes this answers requests of version 1 by responses of version 1 as
//! long as nodes of both are in one cluster: what cannot be read is not answered.

use podway_proto::fnv::Fnv1a;

/// Length of every datagram in bytes.
pub const LENGTH: usize = 28;

const MAGIC: [u8; 4] = *b"PWHP";
const VERSION: u8 = 1;

/// A datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Probe {
    /// Whether it asks or answers.
    pub kind: Kind,
    /// Tells the requests of one sender apart.
    pub sequence: u32,
    /// Known to the sender of the request and to who has received it.
    pub cookie: u64,
    /// Who sends it.
    pub sender: NodeId,
}

/// Whether a datagram asks or answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// It asks.
    Request,
    /// It answers.
    Response,
}

/// A node's name in eight bytes: the hash of it. It tells nodes apart that were given
/// each other's addresses by mistake, and is no secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct NodeId(u64);

impl NodeId {
    /// That of the node called `name`.
    pub fn of(name: &str) -> Self {
        Self(Fnv1a::new().with(name.as_bytes()).finish())
    }
}

impl Probe {
    /// The datagram's bytes.
    pub fn encode(&self) -> [u8; LENGTH] {
        let kind = match self.kind {
            Kind::Request => 1,
            Kind::Response => 2,
        };
        let mut bytes = [0; LENGTH];
        bytes[..4].copy_from_slice(&MAGIC);
        bytes[4] = VERSION;
        bytes[5] = kind;
        bytes[8..12].copy_from_slice(&self.sequence.to_be_bytes());
        bytes[12..20].copy_from_slice(&self.cookie.to_be_bytes());
        bytes[20..].copy_from_slice(&self.sender.0.to_be_bytes());
        bytes
    }

    /// What `bytes` say; `None` when they are no datagram of this version.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let (magic, rest) = <&[u8; LENGTH]>::try_from(bytes).ok()?.split_first_chunk()?;
        let (&[version, kind, _, _], rest) = rest.split_first_chunk()?;
        let (sequence, rest) = rest.split_first_chunk()?;
        let (cookie, sender) = rest.split_first_chunk()?;
        if *magic != MAGIC || version != VERSION {
            return None;
        }
        Some(Self {
            kind: match kind {
                1 => Kind::Request,
                2 => Kind::Response,
                _ => return None,
            },
            sequence: u32::from_be_bytes(*sequence),
            cookie: u64::from_be_bytes(*cookie),
            sender: NodeId(u64::from_be_bytes(sender.try_into().ok()?)),
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const REQUEST: Probe = Probe {
        kind: Kind::Request,
        sequence: 0x0102_0304,
        cookie: 0x1112_1314_1516_1718,
        sender: NodeId(0x2122_2324_2526_2728),
    };
    const GOLDEN: [u8; LENGTH] = [
        b'P', b'W', b'H', b'P', 1, 1, 0, 0, 1, 2, 3, 4, 0x11, 0x12, 0x13, 0x14, 0x15, 0x16, 0x17,
        0x18, 0x21, 0x22, 0x23, 0x24, 0x25, 0x26, 0x27, 0x28,
    ];

    #[test]
    fn the_bytes_are_those_of_the_table() {
        assert_eq!(REQUEST.encode(), GOLDEN);
        let response = Probe {
            kind: Kind::Response,
            ..REQUEST
        };
        let mut bytes = GOLDEN;
        bytes[5] = 2;
        assert_eq!(response.encode(), bytes);
    }

    #[test]
    fn a_name_has_the_same_identity_on_every_node() {
        assert_eq!(NodeId::of(""), NodeId(0xcbf2_9ce4_8422_2325));
        // The test vector of FNV-1a for "foobar".
        assert_eq!(NodeId::of("foobar"), NodeId(0x8594_4171_f739_67e8));
        assert_ne!(NodeId::of("node-a"), NodeId::of("node-b"));
    }

    #[test]
    fn nothing_else_is_read() {
        for (at, value) in [(0, b'p'), (3, 0), (4, 0), (4, 2), (5, 0), (5, 3)] {
            let mut bytes = GOLDEN;
            bytes[at] = value;
            assert_eq!(Probe::decode(&bytes), None, "byte {at} is {value}");
        }
        for length in 0..LENGTH {
            assert_eq!(Probe::decode(&GOLDEN[..length]), None, "{length} bytes");
        }
        let longer = [&GOLDEN[..], &[0]].concat();
        assert_eq!(Probe::decode(&longer), None);
        let mut reserved = GOLDEN;
        reserved[6..8].fill(0xff);
        assert_eq!(Probe::decode(&reserved), Some(REQUEST));
    }

    proptest! {
        #[test]
        fn what_was_written_is_read(
            response: bool,
            sequence: u32,
            cookie: u64,
            sender: u64,
        ) {
            let kind = if response { Kind::Response } else { Kind::Request };
            let probe = Probe { kind, sequence, cookie, sender: NodeId(sender) };
            prop_assert_eq!(Probe::decode(&probe.encode()), Some(probe));
        }

        #[test]
        fn noise_is_no_probe(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            let is_ours = bytes.len() == LENGTH && bytes.starts_with(b"PWHP\x01");
            prop_assert!(is_ours || Probe::decode(&bytes).is_none());
        }
    }
}
