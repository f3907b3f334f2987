//! UDP header.
//! <https://www.rfc-editor.org/rfc/rfc768>

use super::{Malformed, get, put};

/// Length of the header in bytes.
pub const HEADER_LEN: usize = 8;

mod field {
    use crate::wire::Field;

    pub(super) const SRC_PORT: Field = 0..2;
    pub(super) const DST_PORT: Field = 2..4;
    pub(super) const LEN: Field = 4..6;
    pub(super) const CHECKSUM: Field = 6..8;
}

/// Offset of the checksum field from the start of the header: `csum_offset` of virtio-net.
pub const CHECKSUM_OFFSET: usize = field::CHECKSUM.start;

/// A view of a UDP datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UdpDatagram<T: AsRef<[u8]>> {
    buffer: T,
}

impl<T: AsRef<[u8]>> UdpDatagram<T> {
    /// A view of `buffer`, whose length is not checked.
    #[inline]
    pub const fn new_unchecked(buffer: T) -> Self {
        Self { buffer }
    }

    /// A view of `buffer`, or [`Malformed::Truncated`].
    #[inline]
    pub fn new_checked(buffer: T) -> Result<Self, Malformed> {
        let datagram = Self::new_unchecked(buffer);
        datagram.check_len()?;
        Ok(datagram)
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

    /// Whether the header is sound in an IP payload of `l4_len` bytes. Needs no earlier check. The
    /// datagram may end before the IP payload does: UDP options (RFC 9868) live in between.
    #[inline]
    pub fn check(&self, l4_len: usize) -> Result<(), Malformed> {
        if self.buffer.as_ref().len().min(l4_len) < HEADER_LEN {
            return Err(Malformed::Truncated);
        }
        let len = usize::from(self.len());
        if len < HEADER_LEN || len > l4_len {
            return Err(Malformed::BadTotalLength);
        }
        Ok(())
    }

    /// The buffer that was given.
    #[inline]
    pub fn into_inner(self) -> T {
        self.buffer
    }

    /// Source port.
    #[inline]
    pub fn src_port(&self) -> u16 {
        u16::from_be_bytes(get(self.buffer.as_ref(), field::SRC_PORT))
    }

    /// Destination port.
    #[inline]
    pub fn dst_port(&self) -> u16 {
        u16::from_be_bytes(get(self.buffer.as_ref(), field::DST_PORT))
    }

    /// Length in bytes of header and payload.
    #[inline]
    #[allow(
        clippy::len_without_is_empty,
        reason = "a header field, not a collection's size"
    )]
    pub fn len(&self) -> u16 {
        u16::from_be_bytes(get(self.buffer.as_ref(), field::LEN))
    }

    /// Checksum as it stands, zero for none; see [`super::checksum::is_partial`].
    #[inline]
    pub fn checksum(&self) -> u16 {
        u16::from_be_bytes(get(self.buffer.as_ref(), field::CHECKSUM))
    }
}

impl<'a, T: AsRef<[u8]> + ?Sized> UdpDatagram<&'a T> {
    /// What of the payload lies in the buffer, anything behind the datagram included.
    #[inline]
    pub fn payload(&self) -> &'a [u8] {
        &self.buffer.as_ref()[HEADER_LEN..]
    }
}

impl<T: AsRef<[u8]> + AsMut<[u8]>> UdpDatagram<T> {
    /// Sets the source port.
    #[inline]
    pub fn set_src_port(&mut self, port: u16) {
        put(self.buffer.as_mut(), field::SRC_PORT, port.to_be_bytes());
    }

    /// Sets the destination port.
    #[inline]
    pub fn set_dst_port(&mut self, port: u16) {
        put(self.buffer.as_mut(), field::DST_PORT, port.to_be_bytes());
    }

    /// Sets the length of header and payload.
    #[inline]
    pub fn set_len(&mut self, len: u16) {
        put(self.buffer.as_mut(), field::LEN, len.to_be_bytes());
    }

    /// Sets the checksum. A finished one is never zero: [`super::Sum::finish_udp`].
    #[inline]
    pub fn set_checksum(&mut self, checksum: u16) {
        put(
            self.buffer.as_mut(),
            field::CHECKSUM,
            checksum.to_be_bytes(),
        );
    }

    /// What of the payload lies in the buffer, to be written.
    #[inline]
    pub fn payload_mut(&mut self) -> &mut [u8] {
        &mut self.buffer.as_mut()[HEADER_LEN..]
    }
}

#[cfg(test)]
mod tests {
    use etherparse::UdpHeader;
    use proptest::prelude::*;

    use super::*;

    const DATAGRAM: [u8; 12] = [
        0xc3, 0x50, 0x12, 0xb5, 0x00, 0x0c, 0x12, 0x4d, 0xaa, 0x00, 0x00, 0xff,
    ];

    #[test]
    fn fields_are_read() {
        let datagram = UdpDatagram::new_checked(&DATAGRAM).unwrap();
        assert_eq!(datagram.check(12), Ok(()));
        assert_eq!(datagram.src_port(), 50000);
        assert_eq!(datagram.dst_port(), 4789);
        assert_eq!(datagram.len(), 12);
        assert_eq!(datagram.checksum(), 0x124d);
        assert_eq!(datagram.payload(), [0xaa, 0x00, 0x00, 0xff]);
    }

    #[test]
    fn fields_are_written() {
        let mut bytes = [0xa5; 12];
        let mut datagram = UdpDatagram::new_unchecked(&mut bytes);
        datagram.set_src_port(50000);
        datagram.set_dst_port(4789);
        datagram.set_len(12);
        datagram.set_checksum(0x124d);
        datagram
            .payload_mut()
            .copy_from_slice(&[0xaa, 0x00, 0x00, 0xff]);
        assert_eq!(bytes, DATAGRAM);
    }

    #[test]
    fn a_short_buffer_is_refused() {
        for len in 0..HEADER_LEN {
            let view = UdpDatagram::new_checked(&DATAGRAM[..len]);
            assert_eq!(view.unwrap_err(), Malformed::Truncated, "{len}");
            let view = UdpDatagram::new_unchecked(&DATAGRAM[..len]);
            assert_eq!(view.check(12), Err(Malformed::Truncated), "{len}");
        }
    }

    #[test]
    fn each_defect_has_its_name() {
        let datagram = UdpDatagram::new_unchecked(&DATAGRAM);
        assert_eq!(datagram.check(7), Err(Malformed::Truncated));
        assert_eq!(datagram.check(11), Err(Malformed::BadTotalLength));
        // UDP options behind the datagram.
        assert_eq!(datagram.check(13), Ok(()));
        for len in 0..8 {
            let mut bytes = DATAGRAM;
            bytes[5] = len;
            let datagram = UdpDatagram::new_unchecked(&bytes);
            assert_eq!(datagram.check(12), Err(Malformed::BadTotalLength), "{len}");
        }
    }

    proptest! {
        #[test]
        fn etherparse_agrees(ports: (u16, u16), length: u16, checksum: u16) {
            let header =
                UdpHeader { source_port: ports.0, destination_port: ports.1, length, checksum };
            let bytes = header.to_bytes();
            let datagram = UdpDatagram::new_checked(&bytes).unwrap();
            prop_assert_eq!(datagram.src_port(), ports.0);
            prop_assert_eq!(datagram.dst_port(), ports.1);
            prop_assert_eq!(datagram.len(), length);
            prop_assert_eq!(datagram.checksum(), checksum);

            let mut written = [0xa5; HEADER_LEN];
            let mut copy = UdpDatagram::new_unchecked(&mut written);
            copy.set_src_port(ports.0);
            copy.set_dst_port(ports.1);
            copy.set_len(length);
            copy.set_checksum(checksum);
            prop_assert_eq!(written, bytes);
        }

        #[test]
        fn noise_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..20), len in 0_usize..30) {
            if UdpDatagram::new_unchecked(&bytes).check(len).is_ok() {
                let datagram = UdpDatagram::new_checked(&bytes).unwrap();
                prop_assert!((8..=len).contains(&usize::from(datagram.len())));
                datagram.payload();
            }
        }
    }
}
