//! Ethernet II header, IEEE 802.3 with a type field.
//! <https://www.rfc-editor.org/rfc/rfc894>

use podway_proto::types::MacAddr;

use super::{Malformed, get, put};

/// Length of the header in bytes, without VLAN tags.
pub const HEADER_LEN: usize = 14;

/// What an Ethernet frame carries, as the IANA registry of EtherTypes numbers it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct EtherType(pub u16);

impl EtherType {
    /// IPv4, RFC 894.
    pub const IPV4: Self = Self(0x0800);
    /// ARP, RFC 826.
    pub const ARP: Self = Self(0x0806);
    /// IPv6, RFC 2464.
    pub const IPV6: Self = Self(0x86dd);
}

mod field {
    use crate::wire::Field;

    pub(super) const DST_ADDR: Field = 0..6;
    pub(super) const SRC_ADDR: Field = 6..12;
    pub(super) const ETHERTYPE: Field = 12..14;
}

/// A view of an Ethernet frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EthernetFrame<T: AsRef<[u8]>> {
    buffer: T,
}

impl<T: AsRef<[u8]>> EthernetFrame<T> {
    /// A view of `buffer`, whose length is not checked.
    #[inline]
    pub const fn new_unchecked(buffer: T) -> Self {
        Self { buffer }
    }

    /// A view of `buffer`, or [`Malformed::Truncated`].
    #[inline]
    pub fn new_checked(buffer: T) -> Result<Self, Malformed> {
        let frame = Self::new_unchecked(buffer);
        frame.check_len()?;
        Ok(frame)
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

    /// Destination address.
    #[inline]
    pub fn dst_addr(&self) -> MacAddr {
        MacAddr(get(self.buffer.as_ref(), field::DST_ADDR))
    }

    /// Source address.
    #[inline]
    pub fn src_addr(&self) -> MacAddr {
        MacAddr(get(self.buffer.as_ref(), field::SRC_ADDR))
    }

    /// What the frame carries. A VLAN tag shows as its own type.
    #[inline]
    pub fn ethertype(&self) -> EtherType {
        EtherType(u16::from_be_bytes(get(
            self.buffer.as_ref(),
            field::ETHERTYPE,
        )))
    }
}

impl<'a, T: AsRef<[u8]> + ?Sized> EthernetFrame<&'a T> {
    /// What of the payload lies in the buffer.
    #[inline]
    pub fn payload(&self) -> &'a [u8] {
        &self.buffer.as_ref()[HEADER_LEN..]
    }
}

impl<T: AsRef<[u8]> + AsMut<[u8]>> EthernetFrame<T> {
    /// Sets the destination address.
    #[inline]
    pub fn set_dst_addr(&mut self, addr: MacAddr) {
        put(self.buffer.as_mut(), field::DST_ADDR, addr.0);
    }

    /// Sets the source address.
    #[inline]
    pub fn set_src_addr(&mut self, addr: MacAddr) {
        put(self.buffer.as_mut(), field::SRC_ADDR, addr.0);
    }

    /// Sets what the frame carries.
    #[inline]
    pub fn set_ethertype(&mut self, ethertype: EtherType) {
        put(
            self.buffer.as_mut(),
            field::ETHERTYPE,
            ethertype.0.to_be_bytes(),
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
    use super::*;

    const FRAME: [u8; 16] = [
        0x02, 0x00, 0x5e, 0x10, 0x00, 0x01, 0x02, 0x00, 0x5e, 0x10, 0x00, 0x02, 0x86, 0xdd, 0x60,
        0x0f,
    ];
    const DST: MacAddr = MacAddr([0x02, 0x00, 0x5e, 0x10, 0x00, 0x01]);
    const SRC: MacAddr = MacAddr([0x02, 0x00, 0x5e, 0x10, 0x00, 0x02]);

    #[test]
    fn fields_are_read() {
        let frame = EthernetFrame::new_checked(&FRAME).unwrap();
        assert_eq!(frame.dst_addr(), DST);
        assert_eq!(frame.src_addr(), SRC);
        assert_eq!(frame.ethertype(), EtherType::IPV6);
        assert_eq!(frame.payload(), [0x60, 0x0f]);
    }

    #[test]
    fn fields_are_written() {
        let mut bytes = [0xa5; 16];
        let mut frame = EthernetFrame::new_unchecked(&mut bytes);
        frame.set_dst_addr(DST);
        frame.set_src_addr(SRC);
        frame.set_ethertype(EtherType::IPV6);
        frame.payload_mut().copy_from_slice(&[0x60, 0x0f]);
        assert_eq!(bytes, FRAME);
    }

    #[test]
    fn a_short_buffer_is_refused() {
        for len in 0..HEADER_LEN {
            let view = EthernetFrame::new_checked(&FRAME[..len]);
            assert_eq!(view.unwrap_err(), Malformed::Truncated, "{len}");
        }
        let view = EthernetFrame::new_checked(&FRAME[..HEADER_LEN]).unwrap();
        assert_eq!(view.payload(), [0_u8; 0]);
    }
}
