//! IPv4 header.
//! <https://www.rfc-editor.org/rfc/rfc791>; forwarding rules in RFC 1812, section 5.2.

use std::net::Ipv4Addr;

use super::checksum::{self, Sum};
use super::{Malformed, get, put};

/// Length of the header in bytes, without options.
pub const HEADER_LEN: usize = 20;

mod field {
    use crate::wire::Field;

    pub(super) const VERSION_IHL: usize = 0;
    pub(super) const TOS: usize = 1;
    pub(super) const TOTAL_LEN: Field = 2..4;
    pub(super) const IDENT: Field = 4..6;
    pub(super) const FLAGS_FRAG: Field = 6..8;
    pub(super) const TTL: usize = 8;
    pub(super) const PROTOCOL: usize = 9;
    pub(super) const CHECKSUM: Field = 10..12;
    pub(super) const SRC_ADDR: Field = 12..16;
    pub(super) const DST_ADDR: Field = 16..20;
}

const RESERVED: u16 = 0x8000;
const DONT_FRAG: u16 = 0x4000;
const MORE_FRAGS: u16 = 0x2000;
const FRAG_OFFSET: u16 = 0x1fff;

/// A view of an IPv4 packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ipv4Packet<T: AsRef<[u8]>> {
    buffer: T,
}

impl<T: AsRef<[u8]>> Ipv4Packet<T> {
    /// A view of `buffer`, whose length is not checked.
    #[inline]
    pub const fn new_unchecked(buffer: T) -> Self {
        Self { buffer }
    }

    /// A view of `buffer`, if that holds the header; see [`Self::check_len`].
    #[inline]
    pub fn new_checked(buffer: T) -> Result<Self, Malformed> {
        let packet = Self::new_unchecked(buffer);
        packet.check_len()?;
        Ok(packet)
    }

    /// Whether the buffer holds the whole header, options included: [`Malformed::Truncated`] if
    /// not, [`Malformed::BadHeaderLength`] if the header says that it is below 20 bytes.
    #[inline]
    pub fn check_len(&self) -> Result<(), Malformed> {
        let have = self.buffer.as_ref().len();
        if have < HEADER_LEN {
            Err(Malformed::Truncated)
        } else if self.header_len() < HEADER_LEN {
            Err(Malformed::BadHeaderLength)
        } else if have < self.header_len() {
            Err(Malformed::Truncated)
        } else {
            Ok(())
        }
    }

    /// Whether the header may be forwarded (RFC 1812, 5.2.2), in a packet of `packet_len` bytes
    /// from the start of this header. Needs no earlier check. The packet may be longer than its
    /// total length, by the padding of a short Ethernet frame.
    #[inline]
    pub fn check(&self, packet_len: usize) -> Result<(), Malformed> {
        if self.buffer.as_ref().len() < HEADER_LEN {
            return Err(Malformed::Truncated);
        }
        if self.version() != 4 {
            return Err(Malformed::BadVersion);
        }
        if self.header_len() > packet_len {
            return Err(Malformed::BadHeaderLength);
        }
        self.check_len()?;
        let total_len = usize::from(self.total_len());
        if total_len < self.header_len() || total_len > packet_len {
            return Err(Malformed::BadTotalLength);
        }
        if !self.verify_checksum() {
            return Err(Malformed::BadChecksum);
        }
        Ok(())
    }

    /// The buffer that was given.
    #[inline]
    pub fn into_inner(self) -> T {
        self.buffer
    }

    /// Version: 4 in a valid packet.
    #[inline]
    pub fn version(&self) -> u8 {
        self.buffer.as_ref()[field::VERSION_IHL] >> 4
    }

    /// Length of the header in bytes, options included; below 20 only in a malformed packet.
    #[inline]
    pub fn header_len(&self) -> usize {
        usize::from(self.buffer.as_ref()[field::VERSION_IHL] & 0x0f) * 4
    }

    /// The byte of DSCP (upper six bits) and ECN (lower two), once "type of service".
    #[inline]
    pub fn tos(&self) -> u8 {
        self.buffer.as_ref()[field::TOS]
    }

    /// The ECN codepoint, 0 to 3 (RFC 3168).
    #[inline]
    pub fn ecn(&self) -> u8 {
        self.tos() & 0x03
    }

    /// Length in bytes of header and payload.
    #[inline]
    pub fn total_len(&self) -> u16 {
        u16::from_be_bytes(get(self.buffer.as_ref(), field::TOTAL_LEN))
    }

    /// Identification, shared by the fragments of a packet.
    #[inline]
    pub fn ident(&self) -> u16 {
        u16::from_be_bytes(get(self.buffer.as_ref(), field::IDENT))
    }

    /// Whether the flag is set that nobody has a use for.
    #[inline]
    pub fn reserved_flag(&self) -> bool {
        self.flags_frag() & RESERVED != 0
    }

    /// Whether no router may fragment the packet.
    #[inline]
    pub fn dont_frag(&self) -> bool {
        self.flags_frag() & DONT_FRAG != 0
    }

    /// Whether further fragments follow.
    #[inline]
    pub fn more_frags(&self) -> bool {
        self.flags_frag() & MORE_FRAGS != 0
    }

    /// Where the payload belongs in that of the whole packet, in bytes (a multiple of 8).
    #[inline]
    pub fn frag_offset(&self) -> u16 {
        (self.flags_frag() & FRAG_OFFSET) << 3
    }

    /// Whether the packet is only a part of another, the first part included.
    #[inline]
    pub fn is_fragment(&self) -> bool {
        self.flags_frag() & (MORE_FRAGS | FRAG_OFFSET) != 0
    }

    /// Time to live.
    #[inline]
    pub fn hop_limit(&self) -> u8 {
        self.buffer.as_ref()[field::TTL]
    }

    /// What the payload is; see [`super::protocol`].
    #[inline]
    pub fn protocol(&self) -> u8 {
        self.buffer.as_ref()[field::PROTOCOL]
    }

    /// Header checksum, as it stands.
    #[inline]
    pub fn checksum(&self) -> u16 {
        u16::from_be_bytes(get(self.buffer.as_ref(), field::CHECKSUM))
    }

    /// Source address.
    #[inline]
    pub fn src_addr(&self) -> Ipv4Addr {
        Ipv4Addr::from(get::<4>(self.buffer.as_ref(), field::SRC_ADDR))
    }

    /// Destination address.
    #[inline]
    pub fn dst_addr(&self) -> Ipv4Addr {
        Ipv4Addr::from(get::<4>(self.buffer.as_ref(), field::DST_ADDR))
    }

    /// Whether the header checksum, options included, is right.
    #[inline]
    pub fn verify_checksum(&self) -> bool {
        self.header_sum().finish() == 0
    }

    #[inline]
    fn flags_frag(&self) -> u16 {
        u16::from_be_bytes(get(self.buffer.as_ref(), field::FLAGS_FRAG))
    }

    #[inline]
    fn header_sum(&self) -> Sum {
        let header = &self.buffer.as_ref()[..self.header_len()];
        // A length known at compile time leaves three additions of the loop: nearly all headers.
        match <&[u8; HEADER_LEN]>::try_from(header) {
            Ok(plain) => Sum::of(plain),
            Err(_) => Sum::of(header),
        }
    }
}

impl<'a, T: AsRef<[u8]> + ?Sized> Ipv4Packet<&'a T> {
    /// What of the payload lies in the buffer, padding behind the packet included.
    #[inline]
    pub fn payload(&self) -> &'a [u8] {
        &self.buffer.as_ref()[self.header_len()..]
    }
}

impl<T: AsRef<[u8]> + AsMut<[u8]>> Ipv4Packet<T> {
    /// Sets the version.
    #[inline]
    pub fn set_version(&mut self, version: u8) {
        let byte = &mut self.buffer.as_mut()[field::VERSION_IHL];
        *byte = *byte & 0x0f | version << 4;
    }

    /// Sets the header length in bytes: a multiple of 4, 20 to 60. Voids an earlier check.
    #[inline]
    pub fn set_header_len(&mut self, len: u8) {
        let byte = &mut self.buffer.as_mut()[field::VERSION_IHL];
        *byte = *byte & 0xf0 | len >> 2 & 0x0f;
    }

    /// Sets DSCP and ECN; the checksum stays. See [`Self::rewrite_tos`].
    #[inline]
    pub fn set_tos(&mut self, tos: u8) {
        self.buffer.as_mut()[field::TOS] = tos;
    }

    /// Sets the length of header and payload.
    #[inline]
    pub fn set_total_len(&mut self, len: u16) {
        put(self.buffer.as_mut(), field::TOTAL_LEN, len.to_be_bytes());
    }

    /// Sets the identification.
    #[inline]
    pub fn set_ident(&mut self, ident: u16) {
        put(self.buffer.as_mut(), field::IDENT, ident.to_be_bytes());
    }

    /// Clears all flags (the reserved one too) and the fragment offset.
    #[inline]
    pub fn clear_flags(&mut self) {
        put(self.buffer.as_mut(), field::FLAGS_FRAG, [0, 0]);
    }

    /// Sets whether no router may fragment the packet.
    #[inline]
    pub fn set_dont_frag(&mut self, value: bool) {
        self.set_flags_frag(DONT_FRAG, if value { DONT_FRAG } else { 0 });
    }

    /// Sets whether further fragments follow.
    #[inline]
    pub fn set_more_frags(&mut self, value: bool) {
        self.set_flags_frag(MORE_FRAGS, if value { MORE_FRAGS } else { 0 });
    }

    /// Sets the fragment offset in bytes: a multiple of 8.
    #[inline]
    pub fn set_frag_offset(&mut self, offset: u16) {
        self.set_flags_frag(FRAG_OFFSET, offset >> 3);
    }

    /// Sets the time to live; the checksum stays. See [`Self::decrement_hop_limit`].
    #[inline]
    pub fn set_hop_limit(&mut self, hop_limit: u8) {
        self.buffer.as_mut()[field::TTL] = hop_limit;
    }

    /// Sets what the payload is.
    #[inline]
    pub fn set_protocol(&mut self, protocol: u8) {
        self.buffer.as_mut()[field::PROTOCOL] = protocol;
    }

    /// Sets the header checksum.
    #[inline]
    pub fn set_checksum(&mut self, checksum: u16) {
        put(
            self.buffer.as_mut(),
            field::CHECKSUM,
            checksum.to_be_bytes(),
        );
    }

    /// Sets the source address.
    #[inline]
    pub fn set_src_addr(&mut self, addr: Ipv4Addr) {
        put(self.buffer.as_mut(), field::SRC_ADDR, addr.octets());
    }

    /// Sets the destination address.
    #[inline]
    pub fn set_dst_addr(&mut self, addr: Ipv4Addr) {
        put(self.buffer.as_mut(), field::DST_ADDR, addr.octets());
    }

    /// Computes the header checksum, options included, and sets it.
    #[inline]
    pub fn fill_checksum(&mut self) {
        self.set_checksum(0);
        let checksum = self.header_sum().finish();
        self.set_checksum(checksum);
    }

    /// Lowers the time to live by one, keeps the checksum true (RFC 1624) and returns the new
    /// value. Zero stays zero: the caller drops at one or below, before it comes here.
    #[inline]
    pub fn decrement_hop_limit(&mut self) -> u8 {
        let ttl = self.hop_limit();
        let lower = ttl.saturating_sub(1);
        let protocol = self.protocol();
        let old = u16::from_be_bytes([ttl, protocol]);
        let new = u16::from_be_bytes([lower, protocol]);
        self.set_hop_limit(lower);
        self.set_checksum(checksum::update_u16(self.checksum(), old, new));
        lower
    }

    /// Sets DSCP and ECN and keeps the checksum true (RFC 1624).
    #[inline]
    pub fn rewrite_tos(&mut self, tos: u8) {
        let version_ihl = self.buffer.as_ref()[field::VERSION_IHL];
        let old = u16::from_be_bytes([version_ihl, self.tos()]);
        let new = u16::from_be_bytes([version_ihl, tos]);
        self.set_tos(tos);
        self.set_checksum(checksum::update_u16(self.checksum(), old, new));
    }

    /// What of the payload lies in the buffer, to be written.
    #[inline]
    pub fn payload_mut(&mut self) -> &mut [u8] {
        let header_len = self.header_len();
        &mut self.buffer.as_mut()[header_len..]
    }

    #[inline]
    fn set_flags_frag(&mut self, mask: u16, bits: u16) {
        let value = self.flags_frag() & !mask | bits & mask;
        put(self.buffer.as_mut(), field::FLAGS_FRAG, value.to_be_bytes());
    }
}

#[cfg(test)]
mod tests {
    use etherparse::{IpDscp, IpEcn, IpFragOffset, IpNumber, Ipv4Header};
    use proptest::prelude::*;

    use super::*;

    /// A UDP packet with 95 of 115 bytes left out.
    const PACKET: [u8; 20] = [
        0x45, 0x00, 0x00, 0x73, 0x00, 0x00, 0x40, 0x00, 0x40, 0x11, 0xb8, 0x61, 0xc0, 0xa8, 0x00,
        0x01, 0xc0, 0xa8, 0x00, 0xc7,
    ];

    fn changed(at: usize, value: u8) -> [u8; 20] {
        let mut bytes = PACKET;
        bytes[at] = value;
        bytes
    }

    #[test]
    fn fields_are_read() {
        let packet = Ipv4Packet::new_checked(&PACKET).unwrap();
        assert_eq!(packet.check(115), Ok(()));
        assert_eq!(packet.version(), 4);
        assert_eq!(packet.header_len(), 20);
        assert_eq!(packet.tos(), 0);
        assert_eq!(packet.total_len(), 115);
        assert_eq!(packet.ident(), 0);
        assert!(packet.dont_frag());
        assert!(!packet.reserved_flag());
        assert!(Ipv4Packet::new_unchecked(changed(6, 0x80)).reserved_flag());
        assert!(!packet.more_frags());
        assert!(!packet.is_fragment());
        assert_eq!(packet.frag_offset(), 0);
        assert_eq!(packet.hop_limit(), 64);
        assert_eq!(packet.protocol(), 17);
        assert_eq!(packet.checksum(), 0xb861);
        assert_eq!(packet.src_addr(), Ipv4Addr::new(192, 168, 0, 1));
        assert_eq!(packet.dst_addr(), Ipv4Addr::new(192, 168, 0, 199));
        assert_eq!(packet.payload(), [0_u8; 0]);
    }

    #[test]
    fn fields_are_written() {
        let mut bytes = [0xa5; 20];
        let mut packet = Ipv4Packet::new_unchecked(&mut bytes);
        packet.set_version(4);
        packet.set_header_len(20);
        packet.set_tos(0);
        packet.set_total_len(115);
        packet.set_ident(0);
        packet.clear_flags();
        packet.set_dont_frag(true);
        packet.set_hop_limit(64);
        packet.set_protocol(17);
        packet.set_src_addr(Ipv4Addr::new(192, 168, 0, 1));
        packet.set_dst_addr(Ipv4Addr::new(192, 168, 0, 199));
        packet.fill_checksum();
        assert_eq!(bytes, PACKET);
    }

    #[test]
    fn a_short_buffer_is_refused() {
        for len in 0..HEADER_LEN {
            let view = Ipv4Packet::new_checked(&PACKET[..len]);
            assert_eq!(view.unwrap_err(), Malformed::Truncated, "{len}");
            let view = Ipv4Packet::new_unchecked(&PACKET[..len]);
            assert_eq!(view.check(115), Err(Malformed::Truncated), "{len}");
        }
        // Options that the buffer does not hold.
        let bytes = changed(0, 0x46);
        assert_eq!(
            Ipv4Packet::new_checked(&bytes).unwrap_err(),
            Malformed::Truncated
        );
        assert_eq!(
            Ipv4Packet::new_unchecked(&bytes).check(115),
            Err(Malformed::Truncated)
        );
        let bytes = changed(0, 0x44);
        assert_eq!(
            Ipv4Packet::new_checked(&bytes).unwrap_err(),
            Malformed::BadHeaderLength
        );
    }

    #[test]
    fn each_defect_has_its_name() {
        let cases = [
            (
                "version 6",
                changed(0, 0x65),
                115,
                Err(Malformed::BadVersion),
            ),
            (
                "version 0",
                changed(0, 0x05),
                115,
                Err(Malformed::BadVersion),
            ),
            (
                "header of 16 bytes",
                changed(0, 0x44),
                115,
                Err(Malformed::BadHeaderLength),
            ),
            (
                "header beyond the packet",
                changed(0, 0x46),
                23,
                Err(Malformed::BadHeaderLength),
            ),
            (
                "total length 0",
                changed(3, 0),
                115,
                Err(Malformed::BadTotalLength),
            ),
            (
                "total length 19",
                changed(3, 19),
                115,
                Err(Malformed::BadTotalLength),
            ),
            (
                "packet one byte short",
                PACKET,
                114,
                Err(Malformed::BadTotalLength),
            ),
            (
                "checksum",
                changed(11, 0x62),
                115,
                Err(Malformed::BadChecksum),
            ),
            (
                "TTL without checksum",
                changed(8, 63),
                115,
                Err(Malformed::BadChecksum),
            ),
            ("none", PACKET, 115, Ok(())),
            ("none, padded", PACKET, 9000, Ok(())),
        ];
        for (defect, bytes, packet_len, result) in cases {
            assert_eq!(
                Ipv4Packet::new_unchecked(&bytes).check(packet_len),
                result,
                "{defect}"
            );
        }
    }

    #[test]
    fn flags_and_offset_keep_apart() {
        let mut bytes = PACKET;
        let mut packet = Ipv4Packet::new_unchecked(&mut bytes);
        packet.set_dont_frag(false);
        packet.set_more_frags(true);
        assert!(packet.is_fragment());
        packet.set_frag_offset(1480);
        assert_eq!((packet.dont_frag(), packet.more_frags()), (false, true));
        assert_eq!(packet.frag_offset(), 1480);
        packet.set_more_frags(false);
        assert!(packet.is_fragment());
        packet.set_frag_offset(65528);
        assert_eq!(packet.frag_offset(), 65528);
        assert_eq!((packet.dont_frag(), packet.more_frags()), (false, false));
        packet.set_frag_offset(0);
        assert!(!packet.is_fragment());
        assert_eq!(bytes[6..8], [0, 0]);
    }

    #[test]
    fn options_belong_to_the_header() {
        let mut bytes = [0; 26];
        bytes[..20].copy_from_slice(&PACKET);
        bytes[20..].copy_from_slice(&[0x94, 0x04, 0, 0, 0xca, 0xfe]);
        let mut packet = Ipv4Packet::new_unchecked(&mut bytes);
        packet.set_header_len(24);
        packet.fill_checksum();
        let packet = Ipv4Packet::new_checked(&bytes).unwrap();
        assert_eq!(packet.check(115), Ok(()));
        assert_eq!(packet.checksum(), naive_checksum(&bytes[..24]));
        assert_eq!(packet.payload(), [0xca, 0xfe]);
    }

    fn naive_checksum(header: &[u8]) -> u16 {
        let words = header.chunks(2).enumerate().filter(|(i, _)| *i != 5);
        let sum: u32 = words
            .map(|(_, w)| u32::from(w[0]) << 8 | u32::from(w[1]))
            .sum();
        !u16::try_from((sum & 0xffff) + (sum >> 16)).unwrap()
    }

    #[test]
    fn ttl_zero_stays_zero() {
        let mut bytes = changed(8, 0);
        let mut packet = Ipv4Packet::new_unchecked(&mut bytes);
        packet.fill_checksum();
        let checksum = packet.checksum();
        assert_eq!(packet.decrement_hop_limit(), 0);
        assert_eq!((packet.hop_limit(), packet.checksum()), (0, checksum));
    }

    fn any_header() -> impl Strategy<Value = Ipv4Header> {
        let flags = (0_u16..=0x1fff, any::<(bool, bool)>());
        let fields = any::<(u8, u16, u16, u8, u8, [u8; 4], [u8; 4])>();
        let options = prop::collection::vec(any::<[u8; 4]>(), 0..=10);
        (flags, fields, options).prop_map(|((offset, (df, mf)), fields, options)| {
            let (tos, total_len, ident, ttl, protocol, source, destination) = fields;
            let mut header = Ipv4Header {
                dscp: IpDscp::try_new(tos >> 2).unwrap(),
                ecn: IpEcn::try_new(tos & 3).unwrap(),
                total_len,
                identification: ident,
                dont_fragment: df,
                more_fragments: mf,
                fragment_offset: IpFragOffset::try_new(offset).unwrap(),
                time_to_live: ttl,
                protocol: IpNumber(protocol),
                header_checksum: 0,
                source,
                destination,
                options: options.concat()[..].try_into().unwrap(),
            };
            header.header_checksum = header.calc_header_checksum();
            header
        })
    }

    proptest! {
        #[test]
        fn etherparse_agrees(header in any_header()) {
            let bytes = header.to_bytes();
            let packet = Ipv4Packet::new_checked(&bytes[..]).unwrap();
            prop_assert_eq!(packet.version(), 4);
            prop_assert_eq!(packet.header_len(), header.header_len());
            prop_assert_eq!(packet.tos(), header.dscp.value() << 2 | header.ecn.value());
            prop_assert_eq!(packet.ecn(), header.ecn.value());
            prop_assert_eq!(packet.total_len(), header.total_len);
            prop_assert_eq!(packet.ident(), header.identification);
            prop_assert_eq!(packet.dont_frag(), header.dont_fragment);
            prop_assert_eq!(packet.more_frags(), header.more_fragments);
            prop_assert_eq!(packet.frag_offset(), header.fragment_offset.byte_offset());
            prop_assert_eq!(packet.is_fragment(), header.is_fragmenting_payload());
            prop_assert_eq!(packet.hop_limit(), header.time_to_live);
            prop_assert_eq!(packet.protocol(), header.protocol.0);
            prop_assert_eq!(packet.checksum(), header.header_checksum);
            prop_assert_eq!(packet.src_addr().octets(), header.source);
            prop_assert_eq!(packet.dst_addr().octets(), header.destination);
            prop_assert!(packet.verify_checksum());

            let mut written = [0xa5; 60];
            written[20..].copy_from_slice(&[bytes[20..].to_vec(), vec![0; 60 - bytes.len()]].concat());
            let mut copy = Ipv4Packet::new_unchecked(&mut written);
            copy.set_version(packet.version());
            copy.set_header_len(u8::try_from(packet.header_len()).unwrap());
            copy.set_tos(packet.tos());
            copy.set_total_len(packet.total_len());
            copy.set_ident(packet.ident());
            copy.clear_flags();
            copy.set_dont_frag(packet.dont_frag());
            copy.set_more_frags(packet.more_frags());
            copy.set_frag_offset(packet.frag_offset());
            copy.set_hop_limit(packet.hop_limit());
            copy.set_protocol(packet.protocol());
            copy.set_src_addr(packet.src_addr());
            copy.set_dst_addr(packet.dst_addr());
            copy.fill_checksum();
            prop_assert_eq!(&written[..bytes.len()], &bytes[..]);
        }

        #[test]
        fn rewrites_keep_the_checksum_true(header in any_header(), tos: u8) {
            let mut bytes = header.to_bytes();
            let mut packet = Ipv4Packet::new_unchecked(&mut bytes[..]);
            let lower = packet.decrement_hop_limit();
            prop_assert_eq!(lower, header.time_to_live.saturating_sub(1));
            packet.rewrite_tos(tos);
            let mut expected = header;
            expected.time_to_live = lower;
            expected.dscp = IpDscp::try_new(tos >> 2).unwrap();
            expected.ecn = IpEcn::try_new(tos & 3).unwrap();
            expected.header_checksum = expected.calc_header_checksum();
            prop_assert_eq!(&bytes[..], &expected.to_bytes()[..]);
        }

        #[test]
        fn noise_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..80), len in 0_usize..99) {
            if let Ok(packet) = Ipv4Packet::new_checked(&bytes) {
                packet.payload();
                packet.dst_addr();
            }
            if Ipv4Packet::new_unchecked(&bytes).check(len).is_ok() {
                let packet = Ipv4Packet::new_checked(&bytes).unwrap();
                prop_assert!(usize::from(packet.total_len()) <= len);
            }
        }
    }
}
