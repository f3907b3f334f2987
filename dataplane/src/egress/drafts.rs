//! Messages and headers in the making, in memory that is made once.

use std::ops::Range;

use super::message::{Message, Piece, Source, To};

/// Messages that one flush can hold: two for each packet of a burst of 64, since a super-frame of
/// 64 KiB needs a second message once its headers are repeated in each segment.
pub(super) const MAX_MESSAGES: usize = 128;

/// Most pieces of a message. The kernel takes 1024 (`UIO_MAXIOV`) with the virtio-net header
/// among them; 128 segments of a header and two pieces of payload each are 384.
pub(super) const MAX_PIECES: usize = 512;

/// Most bytes of a message, Ethernet header included. IP lengths have 16 bits, and a device whose
/// `gso_max_size` is the usual 65536 has a frame of that size or more cut in software
/// (`gso_features_check` in net/core/dev.c).
pub(super) const MAX_BYTES: usize = 65535;

/// Bytes of headers that one flush can hold. A super-frame of 64 KiB at an MTU of 576 over IPv6
/// is cut into 162 segments with at most 122 bytes of headers each: 20 KiB. Small, so that it
/// stays in the cache.
pub(super) const HEADER_BYTES: usize = 64 * 1024;

/// Which message of a flush.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Slot(usize);

/// The messages of a flush and their headers. Callers ask for room first; without room they grow,
/// correctly and slowly.
#[derive(Debug)]
pub(super) struct Drafts {
    /// Those before `used` are of this flush, the others wait for reuse.
    messages: Vec<Message>,
    used: usize,
    headers: Vec<u8>,
}

impl Drafts {
    /// Makes all memory at once.
    pub(super) fn new() -> Self {
        let message = || Message::with_capacity(MAX_PIECES);
        Self {
            messages: std::iter::repeat_with(message).take(MAX_MESSAGES).collect(),
            used: 0,
            headers: Vec::with_capacity(HEADER_BYTES),
        }
    }

    /// Whether so many messages and bytes of headers more fit in what was made at the start.
    #[inline]
    pub(super) fn has_room(&self, messages: usize, header_bytes: usize) -> bool {
        self.used + messages <= MAX_MESSAGES && self.headers.len() + header_bytes <= HEADER_BYTES
    }

    /// Whether nothing was begun since the last [`Drafts::clear`].
    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        self.used == 0
    }

    /// The messages so far, in order of creation.
    #[inline]
    pub(super) fn messages(&self) -> &[Message] {
        self.messages.get(..self.used).unwrap_or_default()
    }

    /// The bytes that header pieces name.
    #[inline]
    pub(super) fn headers(&self) -> &[u8] {
        &self.headers
    }

    /// Forgets messages and headers and keeps their memory.
    #[inline]
    pub(super) fn clear(&mut self) {
        self.used = 0;
        self.headers.clear();
    }

    /// Begins an empty message behind all others.
    #[inline]
    pub(super) fn open(&mut self, to: To) -> Slot {
        let slot = Slot(self.used);
        if self.used == self.messages.len() {
            self.messages.push(Message::with_capacity(MAX_PIECES));
        }
        if let Some(message) = self.messages.get_mut(slot.0) {
            message.reset(to);
        }
        self.used += 1;
        slot
    }

    /// The message `slot`; `None` only for a slot from before the last [`Drafts::clear`].
    #[inline]
    pub(super) fn message(&mut self, slot: Slot) -> Option<&mut Message> {
        self.messages.get_mut(..self.used)?.get_mut(slot.0)
    }

    /// Adds a piece to the end of the message `slot`.
    #[inline]
    pub(super) fn append(&mut self, slot: Slot, piece: Piece) {
        if let Some(message) = self.message(slot) {
            message.append(piece);
        }
    }

    /// Copies header bytes; the piece names the copy.
    #[inline]
    pub(super) fn write(&mut self, bytes: &[u8]) -> Piece {
        let piece = Piece::of_headers(self.headers.len(), bytes.len());
        self.headers.extend_from_slice(bytes);
        piece
    }

    /// Pieces and header bytes that there is memory for.
    #[cfg(test)]
    pub(super) fn memory(&self) -> (usize, usize) {
        let pieces = self.messages.iter().map(|m| m.pieces.capacity()).sum();
        (pieces, self.headers.capacity())
    }

    /// The header bytes that `piece` names; nothing for a piece of the region.
    #[inline]
    pub(super) fn header(&self, piece: Piece) -> &[u8] {
        self.headers.get(range(piece)).unwrap_or_default()
    }

    /// The header bytes that `piece` names, to be patched.
    #[inline]
    pub(super) fn header_mut(&mut self, piece: Piece) -> &mut [u8] {
        self.headers.get_mut(range(piece)).unwrap_or_default()
    }
}

/// Where a header piece lies; nowhere for a piece of the region.
#[inline]
fn range(piece: Piece) -> Range<usize> {
    match piece.source() {
        Source::Headers => piece.offset()..piece.offset() + piece.len(),
        Source::Region => 0..0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fib::PortId;

    const TO: To = To {
        port: PortId(1),
        ifindex: 11,
        ethertype: 0x0800,
        uplink: false,
        encapsulated: false,
    };

    #[test]
    fn memory_is_reused_and_room_is_told() {
        let mut drafts = Drafts::new();
        assert!(drafts.is_empty());
        assert!(drafts.has_room(MAX_MESSAGES, HEADER_BYTES));
        assert!(!drafts.has_room(MAX_MESSAGES + 1, 0));
        let slot = drafts.open(TO);
        let piece = drafts.write(b"abcd");
        drafts.append(slot, piece);
        drafts.header_mut(piece)[0] = b'x';
        assert_eq!(drafts.header(piece), b"xbcd");
        assert_eq!(drafts.header(Piece::of_region(0, 4)), b"");
        assert!(!drafts.has_room(MAX_MESSAGES, 0));
        assert!(!drafts.has_room(0, HEADER_BYTES - 3));
        assert_eq!(drafts.messages().len(), 1);
        drafts.clear();
        assert!(drafts.is_empty() && drafts.headers().is_empty());
        assert!(drafts.message(slot).is_none());
        assert_eq!(drafts.header(piece), b"");
    }

    #[test]
    fn without_room_it_grows() {
        let mut drafts = Drafts::new();
        for n in 0..=MAX_MESSAGES {
            assert_eq!(drafts.open(TO), Slot(n));
        }
        assert_eq!(drafts.messages().len(), MAX_MESSAGES + 1);
    }
}
