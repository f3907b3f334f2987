//! VXLAN header.
//! <https://www.rfc-editor.org/rfc/rfc7348#section-5>

use podway_proto::types::Vni;

use super::{Malformed, get};

/// Length of the header in bytes.
pub const HEADER_LEN: usize = 8;

/// The I flag: the VNI counts.
const FLAG_VNI: u8 = 0x08;

mod field {
    use crate::wire::Field;

    pub(super) const FLAGS: usize = 0;
    pub(super) const VNI: Field = 4..7;
}

/// A view of a VXLAN header and the inner frame behind it. Reserved bits are not shown: they are
/// ignored on receipt and zero on send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VxlanHeader<T: AsRef<[u8]>> {
    buffer: T,
}

impl<T: AsRef<[u8]>> VxlanHeader<T> {
    /// A view of `buffer`, whose length is not checked.
    #[inline]
    pub const fn new_unchecked(buffer: T) -> Self {
        Self { buffer }
    }

    /// A view of `buffer`, or [`Malformed::Truncated`].
    #[inline]
    pub fn new_checked(buffer: T) -> Result<Self, Malformed> {
        let header = Self::new_unchecked(buffer);
        header.check_len()?;
        Ok(header)
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

    /// Whether the I flag is set. Without it the packet is to be dropped.
    #[inline]
    pub fn has_vni(&self) -> bool {
        self.buffer.as_ref()[field::FLAGS] & FLAG_VNI != 0
    }

    /// The network identifier.
    #[inline]
    #[allow(
        clippy::expect_used,
        reason = "three bytes always make a number of 24 bits"
    )]
    pub fn vni(&self) -> Vni {
        let [high, middle, low] = get(self.buffer.as_ref(), field::VNI);
        Vni::try_from(u32::from_be_bytes([0, high, middle, low])).expect("24 bits")
    }
}

impl<'a, T: AsRef<[u8]> + ?Sized> VxlanHeader<&'a T> {
    /// What of the inner Ethernet frame lies in the buffer.
    #[inline]
    pub fn payload(&self) -> &'a [u8] {
        &self.buffer.as_ref()[HEADER_LEN..]
    }
}

/// Writes a whole header, reserved bits zero.
#[inline]
pub fn write(header: &mut [u8; HEADER_LEN], vni: Vni) {
    *header = (u64::from(FLAG_VNI) << 56 | u64::from(vni.get()) << 8).to_be_bytes();
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn vni(number: u32) -> Vni {
        Vni::try_from(number).unwrap()
    }

    #[test]
    fn fields_are_read() {
        let bytes = [0x08, 0, 0, 0, 0x12, 0x34, 0x56, 0, 0xca, 0xfe];
        let header = VxlanHeader::new_checked(&bytes).unwrap();
        assert!(header.has_vni());
        assert_eq!(header.vni(), vni(0x12_3456));
        assert_eq!(header.payload(), [0xca, 0xfe]);
    }

    #[test]
    fn reserved_bits_are_ignored_on_receipt() {
        let bytes = [0xff, 0xff, 0xff, 0xff, 0x00, 0x00, 0x2a, 0xff];
        let header = VxlanHeader::new_checked(&bytes).unwrap();
        assert!(header.has_vni());
        assert_eq!(header.vni(), vni(42));
        let bytes = [0xf7, 0xff, 0xff, 0xff, 0x00, 0x00, 0x2a, 0xff];
        assert!(!VxlanHeader::new_checked(&bytes).unwrap().has_vni());
    }

    #[test]
    fn reserved_bits_are_zero_on_send() {
        let mut bytes = [0xa5; 8];
        write(&mut bytes, vni(0xff_fffe));
        assert_eq!(bytes, [0x08, 0, 0, 0, 0xff, 0xff, 0xfe, 0]);
        write(&mut bytes, vni(0));
        assert_eq!(bytes, [0x08, 0, 0, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn a_short_buffer_is_refused() {
        for len in 0..HEADER_LEN {
            let view = VxlanHeader::new_checked(&[0x08_u8; 8][..len]);
            assert_eq!(view.unwrap_err(), Malformed::Truncated, "{len}");
        }
    }

    proptest! {
        #[test]
        fn a_header_reads_what_it_writes(number in 0_u32..1 << 24) {
            let mut bytes = [0xa5; 8];
            write(&mut bytes, vni(number));
            let header = VxlanHeader::new_checked(&bytes).unwrap();
            prop_assert!(header.has_vni());
            prop_assert_eq!(header.vni().get(), number);
        }

        #[test]
        fn noise_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..20)) {
            if let Ok(header) = VxlanHeader::new_checked(&bytes) {
                header.vni();
                header.has_vni();
                header.payload();
            }
        }
    }
}
