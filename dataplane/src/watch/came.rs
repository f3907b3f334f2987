//! What a worker remembers of the packet in hand from before [`crate::verdict::Send::rewrite`].

use crate::fib::PortId;
use crate::packet::Packet;

/// Bytes that are kept of a packet as it came: whatever rewriting may change, which is the IPv6 header
/// behind one over IPv6, 70 + 14 + 40, and padding, of which a frame over that size has none.
const HEAD: usize = 128;

/// What the packet in hand was when it came.
#[derive(Debug)]
pub(super) struct Came {
    /// [`PortId::NONE`] when it was made here.
    pub(super) by: PortId,
    /// Bytes that it had, padding included.
    pub(super) length: usize,
    /// Bytes that were free in front of it.
    pub(super) headroom: usize,
    /// Bytes of its head that are kept; 0 until it is.
    head_len: usize,
    head: [u8; HEAD],
}

impl Default for Came {
    fn default() -> Self {
        Self {
            by: PortId::NONE,
            length: 0,
            headroom: 0,
            head_len: 0,
            head: [0; HEAD],
        }
    }
}

impl Came {
    /// Remembers a packet that has come by `port` and is as it came, but for its head.
    #[inline]
    pub(super) fn remember(&mut self, packet: &Packet<'_>, port: PortId) {
        self.by = port;
        self.length = packet.len();
        self.headroom = packet.headroom();
        self.head_len = 0;
    }

    /// What is kept of its head.
    pub(super) fn head(&self) -> &[u8] {
        self.head.get(..self.head_len).unwrap_or(&self.head)
    }

    /// Bytes that were pulled off it since.
    #[inline]
    pub(super) fn pulled(&self, packet: &Packet<'_>) -> usize {
        packet.headroom().saturating_sub(self.headroom)
    }

    /// Keeps the head of a packet that was not rewritten yet.
    #[inline]
    pub(super) fn keep_head(&mut self, packet: &mut Packet<'_>) {
        let pulled = self.pulled(packet);
        if self.head_len > 0 || !packet.push_front(pulled) {
            return;
        }
        match packet.head().first_chunk() {
            Some(first) => (self.head, self.head_len) = (*first, HEAD),
            None => self.keep_short(packet.head()),
        }
        packet.pull_front(pulled);
    }

    /// Keeps a head that is shorter than [`HEAD`].
    // By itself: together both copies would become one of any length, which is a call.
    #[inline(never)]
    fn keep_short(&mut self, head: &[u8]) {
        if let Some(room) = self.head.get_mut(..head.len()) {
            room.copy_from_slice(head);
            self.head_len = head.len();
        }
    }
}
