//! ICMP header, IPv4 and IPv6: their first eight bytes have one layout.
//! <https://www.rfc-editor.org/rfc/rfc792> and <https://www.rfc-editor.org/rfc/rfc4443#section-2.1>

use super::checksum::Sum;
use super::{Malformed, get, put};

/// Length of the header in bytes. Every message that either RFC defines has the eight bytes that
/// most of them need, and Linux takes nothing shorter.
pub const HEADER_LEN: usize = 8;

/// Offset of the checksum from the start of the header.
pub const CHECKSUM_OFFSET: usize = field::CHECKSUM.start;

/// Types and codes for IPv4.
pub mod v4 {
    /// Echo reply.
    pub const ECHO_REPLY: u8 = 0;
    /// Destination unreachable.
    pub const DST_UNREACHABLE: u8 = 3;
    /// Code of [`DST_UNREACHABLE`]: no route to the network.
    pub const NET_UNREACHABLE: u8 = 0;
    /// Code of [`DST_UNREACHABLE`]: too big and not to be fragmented. The MTU is the lower half
    /// of [`super::IcmpMessage::rest`] (RFC 1191, section 4).
    pub const FRAG_NEEDED: u8 = 4;
    /// Echo request.
    pub const ECHO_REQUEST: u8 = 8;
    /// Time exceeded; code 0 in transit.
    pub const TIME_EXCEEDED: u8 = 11;

    /// Whether a message is an error, or may be one for all that is known of its type. As in Linux
    /// (`icmp_pointers` in net/ipv4/icmp.c), the others are echo, router discovery (RFC 1256),
    /// timestamp, information and address mask.
    pub const fn may_be_error(msg_type: u8) -> bool {
        !matches!(msg_type, ECHO_REPLY | ECHO_REQUEST | 9 | 10 | 13..=18)
    }
}

/// Types and codes for IPv6.
pub mod v6 {
    /// Destination unreachable.
    pub const DST_UNREACHABLE: u8 = 1;
    /// Code of [`DST_UNREACHABLE`]: no route to the destination.
    pub const NO_ROUTE: u8 = 0;
    /// Packet too big. The MTU is [`super::IcmpMessage::rest`].
    pub const PACKET_TOO_BIG: u8 = 2;
    /// Time exceeded; code 0 in transit.
    pub const TIME_EXCEEDED: u8 = 3;
    /// Echo request.
    pub const ECHO_REQUEST: u8 = 128;
    /// Echo reply.
    pub const ECHO_REPLY: u8 = 129;
    /// Redirect (RFC 4861, section 4.5).
    pub const REDIRECT: u8 = 137;

    /// Whether a message is an error (RFC 4443, section 2.1), or a redirect, which is answered as
    /// little (section 2.4 (e.2)).
    pub const fn may_be_error(msg_type: u8) -> bool {
        msg_type < 128 || msg_type == REDIRECT
    }
}

mod field {
    use crate::wire::Field;

    pub(super) const TYPE: usize = 0;
    pub(super) const CODE: usize = 1;
    pub(super) const CHECKSUM: Field = 2..4;
    pub(super) const REST: Field = 4..8;
}

/// A view of an ICMP message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IcmpMessage<T: AsRef<[u8]>> {
    buffer: T,
}

impl<T: AsRef<[u8]>> IcmpMessage<T> {
    /// A view of `buffer`, whose length is not checked.
    #[inline]
    pub const fn new_unchecked(buffer: T) -> Self {
        Self { buffer }
    }

    /// A view of `buffer`, or [`Malformed::Truncated`].
    #[inline]
    pub fn new_checked(buffer: T) -> Result<Self, Malformed> {
        let message = Self::new_unchecked(buffer);
        message.check_len()?;
        Ok(message)
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

    /// The buffer that was given.
    #[inline]
    pub fn into_inner(self) -> T {
        self.buffer
    }

    /// Type; see [`v4`] and [`v6`].
    #[inline]
    pub fn msg_type(&self) -> u8 {
        self.buffer.as_ref()[field::TYPE]
    }

    /// Code, whose meaning depends on the type.
    #[inline]
    pub fn msg_code(&self) -> u8 {
        self.buffer.as_ref()[field::CODE]
    }

    /// Checksum as it stands.
    #[inline]
    pub fn checksum(&self) -> u16 {
        u16::from_be_bytes(get(self.buffer.as_ref(), field::CHECKSUM))
    }

    /// The four bytes behind the checksum, whose meaning depends on the type.
    #[inline]
    pub fn rest(&self) -> u32 {
        u32::from_be_bytes(get(self.buffer.as_ref(), field::REST))
    }

    /// Whether the checksum is right; the buffer is the whole message. `seed` is
    /// [`Sum::default`] for IPv4 and [`Sum::pseudo_header_v6`] for IPv6.
    #[inline]
    pub fn verify_checksum(&self, seed: Sum) -> bool {
        let mut sum = seed;
        sum.add(self.buffer.as_ref());
        sum.finish() == 0
    }
}

impl<'a, T: AsRef<[u8]> + ?Sized> IcmpMessage<&'a T> {
    /// What of the body lies in the buffer; in an error the packet that it is about.
    #[inline]
    pub fn payload(&self) -> &'a [u8] {
        &self.buffer.as_ref()[HEADER_LEN..]
    }
}

impl<T: AsRef<[u8]> + AsMut<[u8]>> IcmpMessage<T> {
    /// Sets the type.
    #[inline]
    pub fn set_msg_type(&mut self, msg_type: u8) {
        self.buffer.as_mut()[field::TYPE] = msg_type;
    }

    /// Sets the code.
    #[inline]
    pub fn set_msg_code(&mut self, code: u8) {
        self.buffer.as_mut()[field::CODE] = code;
    }

    /// Sets the checksum.
    #[inline]
    pub fn set_checksum(&mut self, checksum: u16) {
        put(
            self.buffer.as_mut(),
            field::CHECKSUM,
            checksum.to_be_bytes(),
        );
    }

    /// Sets the four bytes behind the checksum.
    #[inline]
    pub fn set_rest(&mut self, rest: u32) {
        put(self.buffer.as_mut(), field::REST, rest.to_be_bytes());
    }

    /// Computes the checksum and sets it; the buffer is the whole message. `seed` as in
    /// [`Self::verify_checksum`].
    #[inline]
    pub fn fill_checksum(&mut self, seed: Sum) {
        self.set_checksum(0);
        let mut sum = seed;
        sum.add(self.buffer.as_ref());
        self.set_checksum(sum.finish());
    }

    /// What of the body lies in the buffer, to be written.
    #[inline]
    pub fn payload_mut(&mut self) -> &mut [u8] {
        &mut self.buffer.as_mut()[HEADER_LEN..]
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv6Addr;

    use etherparse::{Icmpv4Header, Icmpv4Type, Icmpv6Header, Icmpv6Type, icmpv4, icmpv6};
    use proptest::prelude::*;

    use super::*;

    /// "Fragmentation needed" with MTU 1450 and four bytes of the packet.
    const MESSAGE: [u8; 12] = [
        0x03, 0x04, 0xc1, 0x95, 0x00, 0x00, 0x05, 0xaa, 0x10, 0x20, 0x25, 0x9c,
    ];

    #[test]
    fn fields_are_read() {
        let message = IcmpMessage::new_checked(&MESSAGE).unwrap();
        assert_eq!(message.msg_type(), v4::DST_UNREACHABLE);
        assert_eq!(message.msg_code(), v4::FRAG_NEEDED);
        assert_eq!(message.checksum(), 0xc195);
        assert_eq!(message.rest(), 1450);
        assert_eq!(message.payload(), [0x10, 0x20, 0x25, 0x9c]);
        assert!(message.verify_checksum(Sum::default()));
    }

    #[test]
    fn fields_are_written() {
        let mut bytes = [0xa5; 12];
        let mut message = IcmpMessage::new_unchecked(&mut bytes);
        message.set_msg_type(v4::DST_UNREACHABLE);
        message.set_msg_code(v4::FRAG_NEEDED);
        message.set_rest(1450);
        message
            .payload_mut()
            .copy_from_slice(&[0x10, 0x20, 0x25, 0x9c]);
        message.fill_checksum(Sum::default());
        assert_eq!(bytes, MESSAGE);
    }

    #[test]
    fn errors_are_told_from_the_rest() {
        let errors = |may_be: fn(u8) -> bool| (0..=255).filter(|t| may_be(*t)).collect::<Vec<_>>();
        // Of RFC 792: unreachable, source quench, redirect, time exceeded, parameter problem.
        let of_v4 = errors(v4::may_be_error);
        assert!([3, 4, 5, 11, 12].iter().all(|t| of_v4.contains(t)));
        assert!([0, 8, 9, 10, 13, 18].iter().all(|t| !of_v4.contains(t)));
        assert!((19..=255).all(|t| of_v4.contains(&t)));
        let of_v6: Vec<_> = (0..128).chain([137]).collect();
        assert_eq!(errors(v6::may_be_error), of_v6);
    }

    #[test]
    fn a_short_buffer_is_refused() {
        for len in 0..HEADER_LEN {
            let view = IcmpMessage::new_checked(&MESSAGE[..len]);
            assert_eq!(view.unwrap_err(), Malformed::Truncated, "{len}");
        }
    }

    proptest! {
        #[test]
        fn etherparse_agrees_on_ipv4(
            mtu: u16, payload in prop::collection::vec(any::<u8>(), 0..600),
        ) {
            let kind = icmpv4::DestUnreachableHeader::FragmentationNeeded { next_hop_mtu: mtu };
            let header =
                Icmpv4Header::with_checksum(Icmpv4Type::DestinationUnreachable(kind), &payload);
            let expected = [&header.to_bytes()[..], &payload].concat();
            let mut bytes = vec![0xa5; expected.len()];
            let mut message = IcmpMessage::new_unchecked(&mut bytes);
            message.set_msg_type(v4::DST_UNREACHABLE);
            message.set_msg_code(v4::FRAG_NEEDED);
            message.set_rest(u32::from(mtu));
            message.payload_mut().copy_from_slice(&payload);
            message.fill_checksum(Sum::default());
            prop_assert!(message.verify_checksum(Sum::default()));
            prop_assert_eq!(bytes, expected);
        }

        #[test]
        fn etherparse_agrees_on_ipv6(
            mtu: u32, src: [u8; 16], dst: [u8; 16],
            payload in prop::collection::vec(any::<u8>(), 0..1232),
        ) {
            let kind = Icmpv6Type::PacketTooBig { mtu };
            let header = Icmpv6Header::with_checksum(kind, src, dst, &payload).unwrap();
            let expected = [&header.to_bytes()[..], &payload].concat();
            prop_assert_eq!(icmpv6::TYPE_PACKET_TOO_BIG, v6::PACKET_TOO_BIG);
            let mut bytes = vec![0xa5; expected.len()];
            let len = u32::try_from(bytes.len()).unwrap();
            let seed = Sum::pseudo_header_v6(Ipv6Addr::from(src), Ipv6Addr::from(dst), 58, len);
            let mut message = IcmpMessage::new_unchecked(&mut bytes);
            message.set_msg_type(v6::PACKET_TOO_BIG);
            message.set_msg_code(0);
            message.set_rest(mtu);
            message.payload_mut().copy_from_slice(&payload);
            message.fill_checksum(seed);
            prop_assert!(message.verify_checksum(seed));
            prop_assert_eq!(bytes, expected);
        }
    }
}
