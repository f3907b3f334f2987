//! What an egress engine sends: one packet or super-frame with its offload metadata.

use crate::fib::PortId;

/// A run of bytes of a message: in a frame, or in the headers that gathering has written.
///
/// It names bytes and does not keep them: a message is sent before its frames are recycled and
/// before the headers are cleared. A late one would send wrong bytes, never touch foreign memory,
/// since region and headers stay mapped as long as the worker runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    /// Byte offset from the start of its source.
    offset: u32,
    /// Length in bytes.
    len: u32,
    source: Source,
}

/// What [`Piece`] offsets count from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// The start of the memory region.
    Region,
    /// The start of the worker's header buffer.
    Headers,
}

impl Piece {
    /// A piece of the region. Regions are smaller than 4 GiB, so offsets fit.
    #[inline]
    pub(crate) fn of_region(offset: usize, len: usize) -> Self {
        Self::new(offset, len, Source::Region)
    }

    /// A piece of the header buffer.
    #[inline]
    pub(crate) fn of_headers(offset: usize, len: usize) -> Self {
        Self::new(offset, len, Source::Headers)
    }

    #[inline]
    fn new(offset: usize, len: usize, source: Source) -> Self {
        let narrow = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        Self {
            offset: narrow(offset),
            len: narrow(len),
            source,
        }
    }

    /// Byte offset from the start of its source.
    #[inline]
    pub(crate) fn offset(self) -> usize {
        self.offset as usize
    }

    /// Length in bytes.
    #[inline]
    #[expect(
        clippy::len_without_is_empty,
        reason = "an empty piece is no special case"
    )]
    pub fn len(self) -> usize {
        self.len as usize
    }

    /// What the offset counts from.
    #[inline]
    pub(crate) fn source(self) -> Source {
        self.source
    }

    /// The first `count` bytes and the rest; all and nothing when there are fewer.
    #[inline]
    pub(crate) fn split_at(self, count: usize) -> (Self, Self) {
        let count = u32::try_from(count).unwrap_or(u32::MAX).min(self.len);
        let first = Self { len: count, ..self };
        let rest = Self {
            offset: self.offset.saturating_add(count),
            len: self.len - count,
            ..self
        };
        (first, rest)
    }

    /// Both as one piece, when `next` follows directly in the same source.
    #[inline]
    fn with(self, next: Self) -> Option<Self> {
        let adjoins =
            self.source == next.source && self.offset.checked_add(self.len) == Some(next.offset);
        let len = self.len.checked_add(next.len).filter(|_| adjoins)?;
        Some(Self { len, ..self })
    }
}

/// One `virtio_net_hdr` (linux/virtio_net.h), 10 bytes, in the machine's byte order as
/// AF_PACKET's `PACKET_VNET_HDR` takes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(C)]
pub struct VnetHeader {
    /// [`VnetHeader::NEEDS_CSUM`] or 0.
    pub flags: u8,
    /// One of the `GSO_*` constants, with [`VnetHeader::GSO_ECN`] added where CWR is set.
    pub gso_type: u8,
    /// Length in bytes of the headers that every segment repeats; 0 without GSO.
    pub hdr_len: u16,
    /// Payload bytes of a segment, the last one excepted; 0 without GSO.
    pub gso_size: u16,
    /// Offset from the frame's start at which the checksum begins to sum.
    pub csum_start: u16,
    /// Offset of the checksum field from `csum_start`.
    pub csum_offset: u16,
}

impl VnetHeader {
    /// The kernel or the device finishes the checksum at `csum_start + csum_offset`.
    pub const NEEDS_CSUM: u8 = 1;
    /// No segmentation.
    pub const GSO_NONE: u8 = 0;
    /// TCP over IPv4.
    pub const GSO_TCPV4: u8 = 1;
    /// TCP over IPv6.
    pub const GSO_TCPV6: u8 = 4;
    /// UDP, each segment a datagram of its own (`VIRTIO_NET_HDR_GSO_UDP_L4`).
    pub const GSO_UDP_L4: u8 = 5;
    /// Added to a TCP type when the CWR flag is set.
    pub const GSO_ECN: u8 = 0x80;
}

/// Where the layers of a super-frame in a tunnel begin, as offsets from the frame's start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TunnelLayers {
    /// The outer UDP header.
    pub outer_transport: u16,
    /// The inner IP header.
    pub inner_network: u16,
}

/// Where a message goes.
#[derive(Debug, Clone, Copy)]
pub(super) struct To {
    /// The port that it leaves by.
    pub(super) port: PortId,
    /// Interface index of that port.
    pub(super) ifindex: u32,
    /// EtherType of the outermost header, host byte order.
    pub(super) ethertype: u16,
    /// Whether the port is an uplink.
    pub(super) uplink: bool,
    /// Whether it begins with the headers of a tunnel that were put in front here.
    pub(super) encapsulated: bool,
}

/// One packet or super-frame on its way to the kernel.
#[derive(Debug)]
pub struct Message {
    /// The port that it leaves by.
    pub port: PortId,
    /// Interface index of that port.
    pub ifindex: u32,
    /// EtherType of the outermost header, host byte order.
    pub ethertype: u16,
    /// Offload metadata.
    pub vnet: VnetHeader,
    /// The layers of a super-frame in a tunnel, which only a TAP can send.
    pub tunnel: Option<TunnelLayers>,
    /// Whether the port is an uplink, behind which another node's GRO may be.
    pub uplink: bool,
    /// Whether it begins with the headers of a tunnel that were put in front here: a pod's own tunnel
    /// looks the same.
    pub encapsulated: bool,
    /// The bytes from the Ethernet header on, in order. Keeps its capacity when reused.
    pub pieces: Vec<Piece>,
    /// Bytes of all pieces.
    pub bytes: u32,
    /// Received packets that leave in this message. A super-frame that was cut over several
    /// messages is counted in the first of them only.
    pub packets: u32,
    /// Those of [`Message::packets`] that were added to what an earlier one began.
    pub joined: u32,
    /// Segments in this message that super-frames were cut into.
    pub cut: u32,
}

impl Message {
    /// An empty message with room for `pieces` pieces.
    pub(super) fn with_capacity(pieces: usize) -> Self {
        Self {
            port: PortId(0),
            ifindex: 0,
            ethertype: 0,
            vnet: VnetHeader::default(),
            tunnel: None,
            uplink: false,
            encapsulated: false,
            pieces: Vec::with_capacity(pieces),
            bytes: 0,
            packets: 0,
            joined: 0,
            cut: 0,
        }
    }

    /// Whether it is to be cut on its way to another node.
    #[inline]
    pub(crate) fn is_cut_on_uplink(&self) -> bool {
        self.uplink && self.vnet.gso_type != VnetHeader::GSO_NONE
    }

    /// Empties the message and addresses it anew.
    #[inline]
    pub(super) fn reset(&mut self, to: To) {
        self.pieces.clear();
        *self = Self {
            port: to.port,
            ifindex: to.ifindex,
            ethertype: to.ethertype,
            uplink: to.uplink,
            encapsulated: to.encapsulated,
            pieces: std::mem::take(&mut self.pieces),
            ..Self::with_capacity(0)
        };
    }

    /// Puts `piece` in place of as many bytes at the front, which the first piece has.
    #[inline]
    pub(super) fn replace_front(&mut self, piece: Piece) {
        if let Some(first) = self.pieces.first_mut() {
            *first = first.split_at(piece.len()).1;
            self.pieces.insert(0, piece);
        }
    }

    /// Adds `piece` to the end, as a longer last piece where it adjoins that.
    #[inline]
    pub(super) fn append(&mut self, piece: Piece) {
        self.bytes = self.bytes.saturating_add(piece.len);
        match self.pieces.last_mut() {
            Some(last) if last.with(piece).is_some() => last.len += piece.len,
            _ => self.pieces.push(piece),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_piece_is_cut_in_two_and_grows_back() {
        let piece = Piece::of_headers(100, 30);
        let (first, rest) = piece.split_at(12);
        assert_eq!((first.offset(), first.len()), (100, 12));
        assert_eq!((rest.offset(), rest.len()), (112, 18));
        assert_eq!(first.with(rest), Some(piece));
        assert_eq!(rest.with(first), None);
        assert_eq!(first.with(Piece::of_region(112, 18)), None);
        assert_eq!(piece.split_at(31), (piece, Piece::of_headers(130, 0)));
    }

    #[test]
    fn the_front_is_replaced_byte_for_byte() {
        let mut message = Message::with_capacity(4);
        message.append(Piece::of_region(256, 142));
        message.append(Piece::of_region(8192, 10));
        message.replace_front(Piece::of_headers(7, 42));
        let expected = [
            Piece::of_headers(7, 42),
            Piece::of_region(298, 100),
            Piece::of_region(8192, 10),
        ];
        assert_eq!((&message.pieces[..], message.bytes), (&expected[..], 152));
    }

    #[test]
    fn pieces_that_adjoin_become_one() {
        let mut message = Message::with_capacity(4);
        message.append(Piece::of_headers(0, 42));
        message.append(Piece::of_headers(42, 74));
        message.append(Piece::of_region(42 + 74, 10));
        assert_eq!(
            message.pieces,
            [Piece::of_headers(0, 116), Piece::of_region(116, 10)]
        );
        assert_eq!(message.bytes, 126);
        message.packets = 3;
        message.reset(To {
            port: PortId(7),
            ifindex: 9,
            ethertype: 0x0800,
            uplink: true,
            encapsulated: true,
        });
        assert_eq!((message.port, message.ifindex), (PortId(7), 9));
        assert!(message.uplink && message.encapsulated && !message.is_cut_on_uplink());
        assert_eq!((message.bytes, message.packets), (0, 0));
        assert!(message.pieces.is_empty() && message.pieces.capacity() >= 4);
    }
}
