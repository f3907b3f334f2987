//! IPv6 header.
//! <https://www.rfc-editor.org/rfc/rfc8200#section-3>

use std::net::Ipv6Addr;

use super::{Malformed, get, put};

/// Length of the header in bytes, without extension headers.
pub const HEADER_LEN: usize = 40;

mod field {
    use crate::wire::Field;

    /// Version (4 bits), traffic class (8), flow label (20).
    pub(super) const VER_TC_FLOW: Field = 0..4;
    pub(super) const PAYLOAD_LEN: Field = 4..6;
    pub(super) const NEXT_HEADER: usize = 6;
    pub(super) const HOP_LIMIT: usize = 7;
    pub(super) const SRC_ADDR: Field = 8..24;
    pub(super) const DST_ADDR: Field = 24..40;
}

/// A view of an IPv6 packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ipv6Packet<T: AsRef<[u8]>> {
    buffer: T,
}

impl<T: AsRef<[u8]>> Ipv6Packet<T> {
    /// A view of `buffer`, whose length is not checked.
    #[inline]
    pub const fn new_unchecked(buffer: T) -> Self {
        Self { buffer }
    }

    /// A view of `buffer`, or [`Malformed::Truncated`].
    #[inline]
    pub fn new_checked(buffer: T) -> Result<Self, Malformed> {
        let packet = Self::new_unchecked(buffer);
        packet.check_len()?;
        Ok(packet)
    }

    /// Whether the buffer holds the whole header.
    #[inline]
    pub fn check_len(&self) -> Result<(), Malformed> {
        if self.buffer.as_ref().len() < HEADER_LEN {
            Err(Malformed::Truncated)
        } else {
            Ok(())
        }
    }

    /// Whether the header is sound in a packet of `packet_len` bytes from the start of this header.
    /// Needs no earlier check. The packet may be longer than its payload length says, by the
    /// padding of a short Ethernet frame.
    #[inline]
    pub fn check(&self, packet_len: usize) -> Result<(), Malformed> {
        self.check_len()?;
        if self.version() != 6 {
            return Err(Malformed::BadVersion);
        }
        if HEADER_LEN + usize::from(self.payload_len()) > packet_len {
            return Err(Malformed::BadTotalLength);
        }
        Ok(())
    }

    /// The buffer that was given.
    #[inline]
    pub fn into_inner(self) -> T {
        self.buffer
    }

    /// Version: 6 in a valid packet.
    #[inline]
    pub fn version(&self) -> u8 {
        self.buffer.as_ref()[field::VER_TC_FLOW.start] >> 4
    }

    /// The byte of DSCP (upper six bits) and ECN (lower two).
    #[inline]
    pub fn traffic_class(&self) -> u8 {
        let [high, low] = get(self.buffer.as_ref(), 0..2);
        high << 4 | low >> 4
    }

    /// The ECN codepoint, 0 to 3 (RFC 3168).
    #[inline]
    pub fn ecn(&self) -> u8 {
        self.traffic_class() & 0x03
    }

    /// Flow label, 20 bits.
    #[inline]
    pub fn flow_label(&self) -> u32 {
        self.ver_tc_flow() & 0x000f_ffff
    }

    /// Length in bytes of all that follows this header.
    #[inline]
    pub fn payload_len(&self) -> u16 {
        u16::from_be_bytes(get(self.buffer.as_ref(), field::PAYLOAD_LEN))
    }

    /// What follows this header: an extension header or a protocol of [`super::protocol`].
    #[inline]
    pub fn next_header(&self) -> u8 {
        self.buffer.as_ref()[field::NEXT_HEADER]
    }

    /// Hop limit.
    #[inline]
    pub fn hop_limit(&self) -> u8 {
        self.buffer.as_ref()[field::HOP_LIMIT]
    }

    /// Source address.
    #[inline]
    pub fn src_addr(&self) -> Ipv6Addr {
        Ipv6Addr::from(get::<16>(self.buffer.as_ref(), field::SRC_ADDR))
    }

    /// Destination address.
    #[inline]
    pub fn dst_addr(&self) -> Ipv6Addr {
        Ipv6Addr::from(get::<16>(self.buffer.as_ref(), field::DST_ADDR))
    }

    #[inline]
    fn ver_tc_flow(&self) -> u32 {
        u32::from_be_bytes(get(self.buffer.as_ref(), field::VER_TC_FLOW))
    }
}

impl<'a, T: AsRef<[u8]> + ?Sized> Ipv6Packet<&'a T> {
    /// What of the payload lies in the buffer, padding behind the packet included.
    #[inline]
    pub fn payload(&self) -> &'a [u8] {
        &self.buffer.as_ref()[HEADER_LEN..]
    }
}

impl<T: AsRef<[u8]> + AsMut<[u8]>> Ipv6Packet<T> {
    /// Sets the version.
    #[inline]
    pub fn set_version(&mut self, version: u8) {
        self.set_ver_tc_flow(0xf000_0000, u32::from(version) << 28);
    }

    /// Sets DSCP and ECN.
    #[inline]
    pub fn set_traffic_class(&mut self, traffic_class: u8) {
        self.set_ver_tc_flow(0x0ff0_0000, u32::from(traffic_class) << 20);
    }

    /// Sets the flow label, whose upper 12 bits are ignored.
    #[inline]
    pub fn set_flow_label(&mut self, flow_label: u32) {
        self.set_ver_tc_flow(0x000f_ffff, flow_label);
    }

    /// Sets the length of all that follows this header.
    #[inline]
    pub fn set_payload_len(&mut self, len: u16) {
        put(self.buffer.as_mut(), field::PAYLOAD_LEN, len.to_be_bytes());
    }

    /// Sets what follows this header.
    #[inline]
    pub fn set_next_header(&mut self, next_header: u8) {
        self.buffer.as_mut()[field::NEXT_HEADER] = next_header;
    }

    /// Sets the hop limit.
    #[inline]
    pub fn set_hop_limit(&mut self, hop_limit: u8) {
        self.buffer.as_mut()[field::HOP_LIMIT] = hop_limit;
    }

    /// Lowers the hop limit by one and returns the new value. Zero stays zero: the caller drops at
    /// one or below, before it comes here.
    #[inline]
    pub fn decrement_hop_limit(&mut self) -> u8 {
        let lower = self.hop_limit().saturating_sub(1);
        self.set_hop_limit(lower);
        lower
    }

    /// Sets the source address.
    #[inline]
    pub fn set_src_addr(&mut self, addr: Ipv6Addr) {
        put(self.buffer.as_mut(), field::SRC_ADDR, addr.octets());
    }

    /// Sets the destination address.
    #[inline]
    pub fn set_dst_addr(&mut self, addr: Ipv6Addr) {
        put(self.buffer.as_mut(), field::DST_ADDR, addr.octets());
    }

    /// What of the payload lies in the buffer, to be written.
    #[inline]
    pub fn payload_mut(&mut self) -> &mut [u8] {
        &mut self.buffer.as_mut()[HEADER_LEN..]
    }

    #[inline]
    fn set_ver_tc_flow(&mut self, mask: u32, bits: u32) {
        let value = self.ver_tc_flow() & !mask | bits & mask;
        put(
            self.buffer.as_mut(),
            field::VER_TC_FLOW,
            value.to_be_bytes(),
        );
    }
}

#[cfg(test)]
mod tests {
    use etherparse::{IpNumber, Ipv6FlowLabel, Ipv6Header};
    use proptest::prelude::*;

    use super::*;

    /// Traffic class 0xb9 (EF, ECT(1)), flow label 0x12345, 10 bytes of UDP of which two are here.
    const PACKET: [u8; 42] = [
        0x6b, 0x91, 0x23, 0x45, 0x00, 0x0a, 0x11, 0x3f, 0x20, 0x01, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0,
        0, 0, 0, 0, 0, 0x01, 0x20, 0x01, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x02, 0xca,
        0xfe,
    ];

    #[test]
    fn fields_are_read() {
        let packet = Ipv6Packet::new_checked(&PACKET).unwrap();
        assert_eq!(packet.check(50), Ok(()));
        assert_eq!(packet.version(), 6);
        assert_eq!(packet.traffic_class(), 0xb9);
        assert_eq!(packet.ecn(), 1);
        assert_eq!(packet.flow_label(), 0x12345);
        assert_eq!(packet.payload_len(), 10);
        assert_eq!(packet.next_header(), 17);
        assert_eq!(packet.hop_limit(), 63);
        assert_eq!(
            packet.src_addr(),
            "2001:db8::1".parse::<Ipv6Addr>().unwrap()
        );
        assert_eq!(
            packet.dst_addr(),
            "2001:db8::2".parse::<Ipv6Addr>().unwrap()
        );
        assert_eq!(packet.payload(), [0xca, 0xfe]);
    }

    #[test]
    fn fields_are_written() {
        let mut bytes = [0xa5; 42];
        let mut packet = Ipv6Packet::new_unchecked(&mut bytes);
        packet.set_version(6);
        packet.set_traffic_class(0xb9);
        packet.set_flow_label(0xfff1_2345);
        packet.set_payload_len(10);
        packet.set_next_header(17);
        packet.set_hop_limit(64);
        assert_eq!(packet.decrement_hop_limit(), 63);
        packet.set_src_addr("2001:db8::1".parse().unwrap());
        packet.set_dst_addr("2001:db8::2".parse().unwrap());
        packet.payload_mut().copy_from_slice(&[0xca, 0xfe]);
        assert_eq!(bytes, PACKET);
    }

    #[test]
    fn a_short_buffer_is_refused() {
        for len in 0..HEADER_LEN {
            let view = Ipv6Packet::new_checked(&PACKET[..len]);
            assert_eq!(view.unwrap_err(), Malformed::Truncated, "{len}");
            let view = Ipv6Packet::new_unchecked(&PACKET[..len]);
            assert_eq!(view.check(50), Err(Malformed::Truncated), "{len}");
        }
    }

    #[test]
    fn each_defect_has_its_name() {
        let mut old = PACKET;
        old[0] = 0x4b;
        assert_eq!(
            Ipv6Packet::new_unchecked(&old).check(50),
            Err(Malformed::BadVersion)
        );
        let packet = Ipv6Packet::new_unchecked(&PACKET);
        assert_eq!(packet.check(49), Err(Malformed::BadTotalLength));
        assert_eq!(packet.check(60), Ok(()));
    }

    #[test]
    fn hop_limit_zero_stays_zero() {
        let mut bytes = PACKET;
        let mut packet = Ipv6Packet::new_unchecked(&mut bytes);
        packet.set_hop_limit(0);
        assert_eq!(packet.decrement_hop_limit(), 0);
        assert_eq!(packet.hop_limit(), 0);
    }

    proptest! {
        #[test]
        fn etherparse_agrees(
            traffic_class: u8, label in 0_u32..1 << 20, payload_length: u16, next_header: u8,
            hop_limit: u8, source: [u8; 16], destination: [u8; 16],
        ) {
            let header = Ipv6Header {
                traffic_class,
                flow_label: Ipv6FlowLabel::try_new(label).unwrap(),
                payload_length,
                next_header: IpNumber(next_header),
                hop_limit,
                source,
                destination,
            };
            let bytes = header.to_bytes();
            let packet = Ipv6Packet::new_checked(&bytes).unwrap();
            prop_assert_eq!(packet.version(), 6);
            prop_assert_eq!(packet.traffic_class(), traffic_class);
            prop_assert_eq!(packet.ecn(), header.ecn().value());
            prop_assert_eq!(packet.flow_label(), label);
            prop_assert_eq!(packet.payload_len(), payload_length);
            prop_assert_eq!(packet.next_header(), next_header);
            prop_assert_eq!(packet.hop_limit(), hop_limit);
            prop_assert_eq!(packet.src_addr().octets(), source);
            prop_assert_eq!(packet.dst_addr().octets(), destination);

            let mut written = [0xa5; HEADER_LEN];
            let mut copy = Ipv6Packet::new_unchecked(&mut written);
            copy.set_version(6);
            copy.set_traffic_class(traffic_class);
            copy.set_flow_label(label);
            copy.set_payload_len(payload_length);
            copy.set_next_header(next_header);
            copy.set_hop_limit(hop_limit);
            copy.set_src_addr(source.into());
            copy.set_dst_addr(destination.into());
            prop_assert_eq!(written, bytes);
        }

        #[test]
        fn noise_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..60), len in 0_usize..99) {
            if Ipv6Packet::new_unchecked(&bytes).check(len).is_ok() {
                let packet = Ipv6Packet::new_checked(&bytes).unwrap();
                prop_assert!(usize::from(packet.payload_len()) + HEADER_LEN <= len);
                packet.payload();
            }
        }
    }
}
