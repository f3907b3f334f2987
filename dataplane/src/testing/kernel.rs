//! A reference of what the kernel makes of a message.

use super::packets::{
    CWR, FIN, Offsets, PSH, finish, fix_ip, fold, get16, ip_checksum_is_right, ip_len_is_right,
    l4_checksum_is_right, narrow, pseudo, put16, tos,
};
use crate::egress::message::Source;
use crate::egress::{Message, Piece, TunnelLayers, VnetHeader};
use crate::xsk::{Frame, Region};

/// Length in bytes of a VXLAN header.
const VXLAN_LEN: usize = 8;

/// A message as it came out, with its bytes.
#[derive(Debug)]
pub(crate) struct Out {
    pub(crate) ifindex: u32,
    pub(crate) ethertype: u16,
    pub(crate) vnet: VnetHeader,
    pub(crate) tunnel: Option<TunnelLayers>,
    pub(crate) encapsulated: bool,
    pub(crate) bytes: Vec<u8>,
    pub(crate) packets: u32,
    pub(crate) joined: u32,
    pub(crate) cut: u32,
    pub(crate) pieces: usize,
}

impl Out {
    /// Reads a message: `headers` are those of its flush, `frames` those that its packets are in.
    pub(crate) fn read<'f>(
        message: &Message,
        headers: &[u8],
        region: &Region,
        frames: impl Iterator<Item = &'f Frame> + Clone,
    ) -> Self {
        let mut bytes = Vec::new();
        for piece in &message.pieces {
            match piece.source() {
                Source::Headers => {
                    bytes.extend(&headers[piece.offset()..piece.offset() + piece.len()]);
                }
                Source::Region => read_region(region, frames.clone(), *piece, &mut bytes),
            }
        }
        assert_eq!(bytes.len(), message.bytes as usize);
        Self {
            ifindex: message.ifindex,
            ethertype: message.ethertype,
            vnet: message.vnet,
            tunnel: message.tunnel,
            encapsulated: message.encapsulated,
            bytes,
            packets: message.packets,
            joined: message.joined,
            cut: message.cut,
            pieces: message.pieces.len(),
        }
    }
}

fn read_region<'f>(
    region: &Region,
    frames: impl Iterator<Item = &'f Frame> + Clone,
    piece: Piece,
    out: &mut Vec<u8>,
) {
    let (mut at, end) = (piece.offset(), piece.offset() + piece.len());
    while at < end {
        let holds = |frame: &&Frame| {
            let whole = frame.piece(0..frame.len());
            whole.offset() <= at && at < whole.offset() + whole.len()
        };
        let frame = frames
            .clone()
            .find(holds)
            .expect("a piece lies in frames that are held");
        let whole = frame.piece(0..frame.len());
        let stop = end.min(whole.offset() + whole.len());
        out.extend(&region.bytes(frame)[at - whole.offset()..stop - whole.offset()]);
        at = stop;
    }
}

/// The frames that the kernel puts on the wire for a message: segmentation and checksums by
/// net/core/{skbuff,gso}.c, net/ipv4/{tcp,udp}_offload.c and include/linux/virtio_net.h.
pub(crate) fn wire(out: &Out) -> Vec<Vec<u8>> {
    match out.tunnel {
        None => segment(&out.bytes, &out.vnet),
        Some(tunnel) => segment_tunnelled(&out.bytes, &out.vnet, tunnel),
    }
}

/// As [`segment`], of a super-frame in a tunnel (`virtio_net_hdr_tnl_to_skb` of
/// include/linux/virtio_net.h, `__skb_udp_tunnel_segment` of net/ipv4/udp_offload.c): the inner
/// packet is cut, and each segment gets the outer headers with finished lengths and checksums.
fn segment_tunnelled(bytes: &[u8], vnet: &VnetHeader, tunnel: TunnelLayers) -> Vec<Vec<u8>> {
    let at = Offsets::of(bytes);
    let in_front = at.payload + VXLAN_LEN;
    assert_eq!(usize::from(tunnel.outer_transport), at.l4);
    assert_eq!(usize::from(tunnel.inner_network), in_front + 14);
    assert!(ip_len_is_right(bytes) && ip_checksum_is_right(bytes));
    assert_eq!(usize::from(get16(bytes, at.l4 + 4)), bytes.len() - at.l4);
    assert_eq!(
        get16(bytes, at.checksum),
        fold(pseudo(bytes, bytes.len() - at.l4))
    );
    let (outer, inner) = bytes.split_at(in_front);
    let inner_vnet = VnetHeader {
        hdr_len: vnet.hdr_len - narrow(in_front),
        csum_start: vnet.csum_start - narrow(in_front),
        ..*vnet
    };
    assert_ne!(vnet.gso_type, VnetHeader::GSO_NONE, "no super-frame");
    let wrap = |(n, inner): (usize, Vec<u8>)| {
        let mut frame = [outer, &inner].concat();
        if !at.v6 {
            put16(&mut frame, 18, get16(bytes, 18).wrapping_add(narrow(n)));
        }
        finish_datagram(&mut frame, &at);
        frame
    };
    let segments = segment(inner, &inner_vnet);
    segments.into_iter().enumerate().map(wrap).collect()
}

/// Writes lengths and checksums of a UDP datagram that ends where its frame ends.
fn finish_datagram(frame: &mut [u8], at: &Offsets) {
    let len = frame.len() - at.l4;
    put16(frame, at.l4 + 4, narrow(len));
    fix_ip(frame);
    let pseudo = fold(pseudo(frame, len));
    put16(frame, at.checksum, pseudo);
    finish(frame, at.l4, at.checksum);
}

/// As [`wire`], of bytes and metadata.
pub(crate) fn segment(bytes: &[u8], vnet: &VnetHeader) -> Vec<Vec<u8>> {
    let at = Offsets::of(bytes);
    if vnet.gso_type == VnetHeader::GSO_NONE {
        assert_eq!((vnet.hdr_len, vnet.gso_size), (0, 0));
        let mut frame = bytes.to_vec();
        if vnet.flags == VnetHeader::NEEDS_CSUM {
            let field = usize::from(vnet.csum_start + vnet.csum_offset);
            finish(&mut frame, vnet.csum_start.into(), field);
        } else {
            assert_eq!(*vnet, VnetHeader::default());
        }
        return vec![frame];
    }
    let tcp = vnet.gso_type & !VnetHeader::GSO_ECN != VnetHeader::GSO_UDP_L4;
    assert_eq!(vnet.flags, VnetHeader::NEEDS_CSUM);
    assert_eq!(usize::from(vnet.csum_start), at.l4);
    assert_eq!(usize::from(vnet.csum_start + vnet.csum_offset), at.checksum);
    assert_eq!(usize::from(vnet.hdr_len), at.payload);
    assert_eq!(
        get16(bytes, at.checksum),
        fold(pseudo(bytes, bytes.len() - at.l4))
    );
    let (header, payload) = bytes.split_at(at.payload);
    let size = usize::from(vnet.gso_size);
    assert!(payload.len() > size, "no super-frame");
    if !tcp {
        assert!(payload.len() <= 128 * size, "too many segments");
    }
    let count = payload.len().div_ceil(size);
    let mut frames = Vec::new();
    for (n, part) in payload.chunks(size).enumerate() {
        let mut frame = [header, part].concat();
        if !at.v6 {
            put16(&mut frame, 18, get16(bytes, 18).wrapping_add(narrow(n)));
        }
        if tcp {
            let seq = u32::from_be_bytes(frame[at.l4 + 4..at.l4 + 8].try_into().unwrap());
            let seq = seq.wrapping_add(u32::try_from(n * size).unwrap());
            frame[at.l4 + 4..at.l4 + 8].copy_from_slice(&seq.to_be_bytes());
            if n > 0 {
                frame[at.l4 + 13] &= !CWR;
            }
            if n + 1 < count {
                frame[at.l4 + 13] &= !(FIN | PSH);
            }
            fix_ip(&mut frame);
            let pseudo = fold(pseudo(&frame, frame.len() - at.l4));
            put16(&mut frame, at.checksum, pseudo);
            finish(&mut frame, at.l4, at.checksum);
        } else {
            finish_datagram(&mut frame, &at);
        }
        frames.push(frame);
    }
    frames
}

/// The inner frame of a tunnel's frame, after all that RFC 7348 demands of the outer headers, and
/// the outer source port.
pub(crate) fn decap(frame: &[u8]) -> (u16, Vec<u8>) {
    #[cfg(test)]
    super::packets::verify(frame);
    assert!(ip_len_is_right(frame) && ip_checksum_is_right(frame) && l4_checksum_is_right(frame));
    let at = Offsets::of(frame);
    assert_eq!(frame[at.protocol], 17);
    assert_eq!(get16(frame, at.l4 + 2), 4789);
    assert_ne!(get16(frame, at.checksum), 0);
    assert_eq!(frame[at.payload..at.payload + 8], [8, 0, 0, 0, 0, 0, 42, 0]);
    if !at.v6 {
        assert_eq!(frame[20] & 0x40, 0x40, "DF");
    }
    let inner = frame[at.payload + 8..].to_vec();
    assert_eq!(tos(frame), tos(&inner), "DSCP and ECN are copied");
    (get16(frame, at.l4), inner)
}
