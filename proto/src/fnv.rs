//! FNV-1a with 64 bits, wherever processes of different releases have to make the same of the same
//! bytes: hashers of libraries promise nothing from one release to the next. It is no secret and keeps
//! nobody from making two inputs of one hash.

use std::io;

/// A hash that is being made (draft-eastlake-fnv, section 2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fnv1a(u64);

impl Fnv1a {
    /// Of nothing yet.
    pub const fn new() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }

    /// With these bytes behind those before.
    #[must_use]
    pub fn with(self, bytes: &[u8]) -> Self {
        let absorb =
            |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        Self(bytes.iter().fold(self.0, absorb))
    }

    /// The hash.
    pub const fn finish(self) -> u64 {
        self.0
    }
}

impl Default for Fnv1a {
    fn default() -> Self {
        Self::new()
    }
}

impl io::Write for Fnv1a {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        *self = self.with(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Test vectors of the draft, appendix C.
    #[test]
    fn hashes_are_those_of_the_draft() {
        for (text, hash) in [
            ("", 0xcbf2_9ce4_8422_2325),
            ("a", 0xaf63_dc4c_8601_ec8c),
            ("foobar", 0x8594_4171_f739_67e8),
        ] {
            assert_eq!(Fnv1a::new().with(text.as_bytes()).finish(), hash, "{text}");
        }
        let parts = Fnv1a::new().with(b"foo").with(b"bar");
        assert_eq!(parts, Fnv1a::new().with(b"foobar"));
    }
}
