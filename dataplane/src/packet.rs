//! One received packet: a frame, or a chain of frames seen as one.

use crate::egress::Piece;
use crate::wire::{Headers, Sum, udp};
use crate::xsk::{Frame, Region};

/// Frames that a chain has room for without an allocation. The kernel makes at most 18: 64 KiB in
/// frames of 3840 bytes.
pub const MAX_CHAIN: usize = 32;

/// What the kernel says of a packet beside its bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Offload {
    /// Payload bytes of each segment of a super-frame but the last; 0: it is none.
    pub segment: u16,
    /// Where the L4 header begins whose checksum is unfinished, as an offset from the packet's
    /// start.
    pub unfinished: Option<u16>,
    /// Where that checksum lies, as an offset from the L4 header's start.
    pub checksum: u16,
}

/// A packet whose frames a burst owns. Headers live in the first frame, the head.
#[derive(Debug)]
pub struct Packet<'a> {
    region: &'a Region,
    /// Never empty.
    frames: &'a mut [Frame],
    /// Bytes of all frames.
    len: usize,
    offload: Option<Offload>,
}

impl<'a> Packet<'a> {
    /// The packet that `frames` hold; `None` when there is no frame.
    #[inline]
    pub fn new(region: &'a Region, frames: &'a mut [Frame]) -> Option<Self> {
        let len = frames.iter().map(Frame::len).sum();
        if frames.is_empty() {
            None
        } else {
            Some(Self {
                region,
                frames,
                len,
                offload: None,
            })
        }
    }

    /// The packet with what the kernel says of it; `None` when it says nothing, as over AF_XDP.
    #[inline]
    #[must_use]
    pub fn with_offload(self, offload: Option<Offload>) -> Self {
        Self { offload, ..self }
    }

    /// What the kernel says of it.
    #[inline]
    pub fn offload(&self) -> Option<Offload> {
        self.offload
    }

    /// Forgets what the kernel said: the packet has become another one, whole and finished.
    #[inline]
    pub fn forget_offload(&mut self) {
        self.offload = self.offload.map(|_| Offload::default());
    }

    /// Payload bytes of each segment of a super-frame, when the kernel told them.
    #[inline]
    pub fn segment(&self) -> Option<u16> {
        let segment = self.offload?.segment;
        (segment > 0).then_some(segment)
    }

    /// Frames that it lies in.
    #[inline]
    pub fn frames(&self) -> usize {
        self.frames.len()
    }

    /// Bytes free in front of it: as many more as were pulled.
    #[inline]
    pub fn headroom(&self) -> usize {
        self.frames.first().map_or(0, Frame::headroom)
    }

    /// Bytes of the whole packet.
    #[inline]
    #[expect(
        clippy::len_without_is_empty,
        reason = "an empty packet is no special case"
    )]
    pub fn len(&self) -> usize {
        self.len
    }

    /// The first frame's bytes: all headers of a well-formed packet, and the start or all of its
    /// payload.
    #[inline]
    pub fn head(&self) -> &[u8] {
        self.frames
            .first()
            .map_or(&[], |head| self.region.bytes(head))
    }

    /// The first frame's bytes, to be changed.
    #[inline]
    pub fn head_mut(&mut self) -> &mut [u8] {
        self.frames
            .first_mut()
            .map_or(&mut [], |head| self.region.bytes_mut(head))
    }

    /// Bytes of the packet in its frames, in order.
    #[inline]
    pub fn chunks(&self) -> impl Iterator<Item = &[u8]> {
        self.frames.iter().map(|frame| self.region.bytes(frame))
    }

    /// Makes room for `count` bytes in front; false when the headroom is too small.
    #[inline]
    pub fn push_front(&mut self, count: usize) -> bool {
        let done = self
            .frames
            .first_mut()
            .is_some_and(|head| head.push_front(count));
        self.len += if done { count } else { 0 };
        if done {
            self.move_offload(|at| at.checked_add(u16::try_from(count).ok()?));
        }
        done
    }

    /// Takes `count` bytes off the front; false when the head has fewer.
    #[inline]
    pub fn pull_front(&mut self, count: usize) -> bool {
        let done = self
            .frames
            .first_mut()
            .is_some_and(|head| head.pull_front(count));
        self.len -= if done { count } else { 0 };
        if done {
            self.move_offload(|at| at.checked_sub(u16::try_from(count).ok()?));
        }
        done
    }

    /// The packet's start has moved. A header that was pulled takes its checksum with it.
    #[inline]
    fn move_offload(&mut self, moved: impl FnOnce(u16) -> Option<u16>) {
        if let Some(offload) = &mut self.offload {
            offload.unfinished = offload.unfinished.and_then(moved);
        }
    }

    /// Cuts the packet to at most `len` bytes: what follows the IP packet is Ethernet padding.
    #[inline]
    pub fn truncate(&mut self, len: usize) {
        if len >= self.len {
            return;
        }
        let mut left = len;
        for frame in self.frames.iter_mut() {
            frame.truncate(left);
            left -= frame.len();
        }
        self.len = len;
    }

    /// The pieces that hold `len` bytes from offset `from`, in order; fewer when the packet ends
    /// before.
    #[inline]
    pub fn pieces(&self, from: usize, len: usize) -> impl Iterator<Item = Piece> {
        let mut skip = from;
        let mut left = len;
        self.frames.iter().filter_map(move |frame| {
            if skip >= frame.len() {
                skip -= frame.len();
                return None;
            }
            let take = (frame.len() - skip).min(left);
            let piece = frame.piece(skip..skip + take);
            skip = 0;
            left -= take;
            (take > 0).then_some(piece)
        })
    }

    /// The bytes behind [`Packet::pieces`], in order.
    #[inline]
    pub fn slices(&self, from: usize, len: usize) -> impl Iterator<Item = &[u8]> {
        let mut skip = from;
        let mut left = len;
        self.chunks().filter_map(move |bytes| {
            if skip >= bytes.len() {
                skip -= bytes.len();
                return None;
            }
            let take = (bytes.len() - skip).min(left);
            let slice = bytes.get(skip..skip + take)?;
            skip = 0;
            left -= take;
            (take > 0).then_some(slice)
        })
    }

    /// Whether the L4 checksum is right. Reads the packet from there on.
    #[inline]
    pub fn checksum_is_right(&self, headers: &Headers) -> bool {
        let l4_len = headers.l4_len();
        let mut sum = headers.pseudo_header(l4_len);
        for bytes in self.slices(headers.l4.into(), l4_len as usize) {
            sum.add(bytes);
        }
        sum.finish() == 0
    }

    /// Finishes the checksum of the `len` bytes of L4 header and payload from offset `l4`. The field,
    /// `field` bytes behind `l4`, holds the sum of the pseudo-header, and is summed along with the rest.
    #[inline]
    pub fn finish_checksum(&mut self, l4: usize, len: usize, field: usize) {
        let mut sum = Sum::default();
        for bytes in self.slices(l4, len) {
            sum.add(bytes);
        }
        let checksum = match field {
            udp::CHECKSUM_OFFSET => sum.finish_udp(),
            _ => sum.finish(),
        };
        let at = l4 + field;
        if let Some(bytes) = self.head_mut().get_mut(at..at + 2) {
            bytes.copy_from_slice(&checksum.to_be_bytes());
        } else if at + 2 <= self.len {
            self.write(at, checksum.to_be_bytes());
        }
    }

    /// Writes `bytes` at offset `at`, in whatever frames they lie.
    #[cold]
    fn write(&mut self, at: usize, bytes: [u8; 2]) {
        for (mut at, byte) in (at..).zip(bytes) {
            for frame in self.frames.iter_mut() {
                if let Some(place) = self.region.bytes_mut(frame).get_mut(at) {
                    *place = byte;
                    break;
                }
                at -= frame.len();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chain(parts: &[&[u8]]) -> (std::sync::Arc<Region>, Vec<Frame>) {
        let (region, mut frames) = Region::new(u32::try_from(parts.len()).unwrap()).unwrap();
        for (frame, part) in frames.iter_mut().zip(parts) {
            assert!(frame.set_data(256, part.len()));
            region.bytes_mut(frame).copy_from_slice(part);
        }
        (region, frames)
    }

    #[test]
    fn a_checksum_is_written_wherever_its_field_lies() {
        let bytes: Vec<u8> = (1..=40).collect();
        let mut expected = bytes.clone();
        let mut sum = Sum::default();
        sum.add(&bytes[4..]);
        expected[14..16].copy_from_slice(&sum.finish().to_be_bytes());
        for head in [40, 16, 15, 14, 3] {
            let (region, mut frames) = chain(&[&bytes[..head], &bytes[head..]]);
            let frames = if head == 40 {
                &mut frames[..1]
            } else {
                &mut frames
            };
            let mut packet = Packet::new(&region, frames).unwrap();
            packet.finish_checksum(4, 36, 10);
            assert_eq!(
                packet.chunks().collect::<Vec<_>>().concat(),
                expected,
                "{head}"
            );
        }
    }

    #[test]
    fn a_chain_reads_as_one_packet() {
        let (region, mut frames) = chain(&[b"abcd", b"ef", b"ghi"]);
        let packet = Packet::new(&region, &mut frames).unwrap();
        assert_eq!(packet.len(), 9);
        assert_eq!(
            packet.slices(3, 4).collect::<Vec<_>>(),
            [&b"d"[..], b"ef", b"g"]
        );
        assert_eq!(
            packet.pieces(3, 4).map(Piece::len).collect::<Vec<_>>(),
            [1, 2, 1]
        );
        assert_eq!(packet.slices(4, 2).collect::<Vec<_>>(), [&b"ef"[..]]);
        assert_eq!(packet.slices(8, 9).collect::<Vec<_>>(), [&b"i"[..]]);
        assert_eq!(packet.slices(9, 1).count(), 0);
    }

    #[test]
    fn headers_come_and_go_at_the_front() {
        let (region, mut frames) = chain(&[b"abcd", b"ef"]);
        let mut packet = Packet::new(&region, &mut frames).unwrap();
        assert!(packet.pull_front(3));
        assert!(!packet.pull_front(2));
        assert!(packet.push_front(2));
        packet.head_mut().copy_from_slice(b"-->");
        assert_eq!(packet.chunks().collect::<Vec<_>>(), [&b"-->"[..], b"ef"]);
        assert_eq!(packet.len(), 5);
        packet.truncate(4);
        assert_eq!(packet.chunks().collect::<Vec<_>>(), [&b"-->"[..], b"e"]);
        packet.truncate(2);
        assert_eq!(packet.chunks().collect::<Vec<_>>(), [&b"--"[..], b""]);
        assert_eq!(packet.len(), 2);
    }

    #[test]
    fn an_unfinished_checksum_moves_with_the_start() {
        let (region, mut frames) = chain(&[b"abcdefgh"]);
        let offload = Offload {
            segment: 3,
            unfinished: Some(4),
            checksum: 2,
        };
        let packet = Packet::new(&region, &mut frames).unwrap();
        let mut packet = packet.with_offload(Some(offload));
        assert!(packet.push_front(50));
        assert_eq!(packet.offload().unwrap().unfinished, Some(54));
        assert!(packet.pull_front(52));
        assert_eq!(packet.offload().unwrap().unfinished, Some(2));
        assert!(packet.pull_front(3));
        assert_eq!(packet.offload().unwrap().unfinished, None);
        assert_eq!(packet.segment(), Some(3));
    }

    #[test]
    fn no_frame_is_no_packet() {
        let (region, _) = chain(&[b"x"]);
        assert!(Packet::new(&region, &mut []).is_none());
    }
}
