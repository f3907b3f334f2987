//! The last packet that died of each reason, for `podway drops`.
//!
//! A worker writes the records of its own sheet, and only when it drops a packet; the API thread
//! reads them meanwhile. Neither waits for the other: a record is a sequence lock of one writer. The
//! generation is odd while the words are being written. A reader that finds it odd, or changed when
//! it has read the words, has read parts of two packets, and reads again.
//!
//! Why that finds every torn read: the writer's release fence orders the odd generation before its
//! words, so that a reader that has loaded any of those words finds, behind its acquire fence, at
//! least that generation; and the release store of the even one orders the words before it, so that
//! a reader that begins with it sees all of them.

use std::sync::atomic::{
    AtomicU64, Ordering::Acquire, Ordering::Relaxed, Ordering::Release, fence,
};

/// Bytes of a packet that are kept: as many as the programs on the ports keep.
pub const HEADER: usize = podway_xdp_redirect::KEPT_BYTES;

/// Words of a record: when, interface and length, length of the header; then the header.
const WORDS: usize = 3 + HEADER / 8;

/// How often a reader begins again. A worker that drops each packet of a flood writes for a small
/// part of the time.
const TRIES: usize = 1000;

/// A packet that was dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LastDrop {
    /// When: CLOCK_MONOTONIC in nanoseconds.
    pub at: u64,
    /// The interface that it came by or was to leave by; 0: none that is attached.
    pub ifindex: u32,
    /// Its size in bytes.
    pub bytes: u32,
    header: [u8; HEADER],
    header_len: u8,
}

impl LastDrop {
    /// A packet of `bytes` bytes that begins with `header`, of which as much is kept as fits.
    pub fn new(at: u64, ifindex: u32, bytes: usize, header: &[u8]) -> Self {
        let mut kept = [0; HEADER];
        let mut header_len = 0;
        for (kept, byte) in kept.iter_mut().zip(header) {
            *kept = *byte;
            header_len += 1;
        }
        Self {
            at,
            ifindex,
            bytes: u32::try_from(bytes).unwrap_or(u32::MAX),
            header: kept,
            header_len,
        }
    }

    /// Its first bytes.
    pub fn header(&self) -> &[u8] {
        let len = usize::from(self.header_len);
        self.header.get(..len).unwrap_or(&self.header)
    }

    fn to_words(self) -> [u64; WORDS] {
        let mut words = [0; WORDS];
        let first = [
            self.at,
            u64::from(self.ifindex) << 32 | u64::from(self.bytes),
            self.header_len.into(),
        ];
        let (header, []) = self.header.as_chunks() else {
            unreachable!("a header is whole words");
        };
        let header = header.iter().map(|bytes| u64::from_ne_bytes(*bytes));
        for (word, value) in words.iter_mut().zip(first.into_iter().chain(header)) {
            *word = value;
        }
        words
    }

    #[expect(
        clippy::cast_possible_truncation,
        reason = "takes the halves of a word"
    )]
    fn of_words([at, interface_and_bytes, header_len, words @ ..]: [u64; WORDS]) -> Self {
        let mut header = [0; HEADER];
        for (bytes, word) in header.chunks_exact_mut(8).zip(words) {
            bytes.copy_from_slice(&word.to_ne_bytes());
        }
        Self {
            at,
            ifindex: (interface_and_bytes >> 32) as u32,
            bytes: interface_and_bytes as u32,
            header,
            header_len: header_len as u8,
        }
    }
}

/// Where a worker leaves the last packet that died of one reason.
#[derive(Debug, Default)]
pub struct Record {
    /// 0: nothing was ever written; odd: it is being written.
    generation: AtomicU64,
    words: [AtomicU64; WORDS],
}

impl Record {
    /// Replaces the packet. Only the owning worker may.
    pub fn set(&self, last: LastDrop) {
        let generation = self.generation.load(Relaxed);
        self.generation.store(generation.wrapping_add(1), Relaxed);
        fence(Release);
        for (word, value) in self.words.iter().zip(last.to_words()) {
            word.store(value, Relaxed);
        }
        self.generation.store(generation.wrapping_add(2), Release);
    }

    /// The packet; `None` when there was none, or no whole one could be read.
    pub fn get(&self) -> Option<LastDrop> {
        for _ in 0..TRIES {
            let generation = self.generation.load(Acquire);
            if generation == 0 {
                return None;
            }
            let words = self.words.each_ref().map(|word| word.load(Relaxed));
            fence(Acquire);
            if generation.is_multiple_of(2) && self.generation.load(Relaxed) == generation {
                return Some(LastDrop::of_words(words));
            }
            std::hint::spin_loop();
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use super::*;

    #[test]
    fn a_packet_is_read_as_it_was_written() {
        let record = Record::default();
        assert_eq!(record.get(), None);
        for len in [0, 1, 13, 127, 128, 129, 1500] {
            let bytes: Vec<u8> = (1..=u8::MAX).cycle().take(len).collect();
            let last = LastDrop::new(u64::MAX - 1, 7, len, &bytes);
            record.set(last);
            assert_eq!(record.get(), Some(last));
            assert_eq!(last.header(), &bytes[..len.min(HEADER)]);
            assert_eq!((last.bytes as usize, last.ifindex), (len, 7));
        }
    }

    #[test]
    fn no_reader_sees_parts_of_two_packets() {
        // Each packet is made of one number, so that parts of two are told.
        let packet = |n: u32| {
            let header: Vec<u8> = n.to_ne_bytes().into_iter().cycle().take(HEADER).collect();
            LastDrop::new(n.into(), n, n as usize, &header)
        };
        let record = Record::default();
        record.set(packet(1));
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut last = 0;
                let mut seen = 0;
                while seen < 1000 || !done.load(Relaxed) {
                    let Some(found) = record.get() else { continue };
                    assert_eq!(found, packet(found.ifindex));
                    assert!(found.ifindex >= last, "time goes on");
                    last = found.ifindex;
                    seen += 1;
                }
            });
            (2..200_000).for_each(|n| record.set(packet(n)));
            done.store(true, Relaxed);
        });
        assert_eq!(record.get(), Some(packet(199_999)));
    }

    #[test]
    fn a_torn_record_is_no_packet() {
        let record = Record::default();
        let packet = LastDrop::new(1, 2, 3, &[4; HEADER]);
        record.set(packet);
        // A writer that has begun and stopped in between.
        record.generation.store(3, Relaxed);
        record.words[5].store(0, Relaxed);
        assert_eq!(record.get(), None);
        record.generation.store(2, Relaxed);
        record.set(packet);
        assert_eq!(record.get(), Some(packet));
    }
}
