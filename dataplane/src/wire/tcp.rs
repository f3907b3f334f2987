//! TCP header.
//! <https://www.rfc-editor.org/rfc/rfc9293#section-3.1>

use super::{Malformed, get, put};

/// Length of the header in bytes, without options.
pub const HEADER_LEN: usize = 20;

/// Flags of [`TcpSegment::flags`]. The four bits above [`CWR`](flag::CWR) are reserved or still
/// in experiment (AE, RFC 9768, is 0x100).
pub mod flag {
    /// No more data from the sender.
    pub const FIN: u16 = 0x001;
    /// Synchronise sequence numbers.
    pub const SYN: u16 = 0x002;
    /// Reset the connection.
    pub const RST: u16 = 0x004;
    /// Push to the application.
    pub const PSH: u16 = 0x008;
    /// The acknowledgement number counts.
    pub const ACK: u16 = 0x010;
    /// The urgent pointer counts.
    pub const URG: u16 = 0x020;
    /// ECN echo, RFC 3168.
    pub const ECE: u16 = 0x040;
    /// Congestion window reduced, RFC 3168.
    pub const CWR: u16 = 0x080;
}

mod field {
    use crate::wire::Field;

    pub(super) const SRC_PORT: Field = 0..2;
    pub(super) const DST_PORT: Field = 2..4;
    pub(super) const SEQ: Field = 4..8;
    pub(super) const ACK: Field = 8..12;
    /// Data offset (4 bits), reserved (4), flags (8).
    pub(super) const OFFSET_FLAGS: Field = 12..14;
    pub(super) const WINDOW: Field = 14..16;
    pub(super) const CHECKSUM: Field = 16..18;
    pub(super) const URGENT: Field = 18..20;
}

/// Offset of the checksum field from the start of the header: `csum_offset` of virtio-net.
pub const CHECKSUM_OFFSET: usize = field::CHECKSUM.start;

/// All bits of [`TcpSegment::flags`].
const FLAGS: u16 = 0x0fff;

/// Option kinds, RFC 9293, 3.1.
mod option {
    pub(super) const END: u8 = 0;
    pub(super) const NOP: u8 = 1;
    pub(super) const MAX_SEGMENT_SIZE: u8 = 2;
}

/// A view of a TCP segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TcpSegment<T: AsRef<[u8]>> {
    buffer: T,
}

impl<T: AsRef<[u8]>> TcpSegment<T> {
    /// A view of `buffer`, whose length is not checked.
    #[inline]
    pub const fn new_unchecked(buffer: T) -> Self {
        Self { buffer }
    }

    /// A view of `buffer`, if that holds the header; see [`Self::check_len`].
    #[inline]
    pub fn new_checked(buffer: T) -> Result<Self, Malformed> {
        let segment = Self::new_unchecked(buffer);
        segment.check_len()?;
        Ok(segment)
    }

    /// Whether the buffer holds the whole header, options included: [`Malformed::Truncated`] if
    /// not, [`Malformed::BadHeaderLength`] if the data offset is below 5.
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

    /// Whether the header is sound in an IP payload of `l4_len` bytes. Needs no earlier check.
    #[inline]
    pub fn check(&self, l4_len: usize) -> Result<(), Malformed> {
        if self.buffer.as_ref().len().min(l4_len) < HEADER_LEN {
            return Err(Malformed::Truncated);
        }
        if self.header_len() > l4_len {
            return Err(Malformed::BadHeaderLength);
        }
        self.check_len()
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

    /// Sequence number of the first payload byte (of the SYN, if that is set).
    #[inline]
    pub fn seq(&self) -> u32 {
        u32::from_be_bytes(get(self.buffer.as_ref(), field::SEQ))
    }

    /// Acknowledgement number.
    #[inline]
    pub fn ack(&self) -> u32 {
        u32::from_be_bytes(get(self.buffer.as_ref(), field::ACK))
    }

    /// Length of the header in bytes, options included; below 20 only in a malformed segment.
    #[inline]
    pub fn header_len(&self) -> usize {
        usize::from(self.offset_flags() >> 12) * 4
    }

    /// The twelve bits of [`flag`] and reserved ones.
    #[inline]
    pub fn flags(&self) -> u16 {
        self.offset_flags() & FLAGS
    }

    /// Receive window, not scaled.
    #[inline]
    pub fn window(&self) -> u16 {
        u16::from_be_bytes(get(self.buffer.as_ref(), field::WINDOW))
    }

    /// Checksum as it stands; see [`super::checksum::is_partial`].
    #[inline]
    pub fn checksum(&self) -> u16 {
        u16::from_be_bytes(get(self.buffer.as_ref(), field::CHECKSUM))
    }

    /// Urgent pointer.
    #[inline]
    pub fn urgent(&self) -> u16 {
        u16::from_be_bytes(get(self.buffer.as_ref(), field::URGENT))
    }

    #[inline]
    fn offset_flags(&self) -> u16 {
        u16::from_be_bytes(get(self.buffer.as_ref(), field::OFFSET_FLAGS))
    }
}

impl<'a, T: AsRef<[u8]> + ?Sized> TcpSegment<&'a T> {
    /// The options, padding included: 0 to 40 bytes.
    #[inline]
    pub fn options(&self) -> &'a [u8] {
        &self.buffer.as_ref()[HEADER_LEN..self.header_len()]
    }

    /// The maximum segment size that the sender takes, in bytes of TCP payload. Counts on a SYN
    /// only. `None` if the option is absent, or the options before it are malformed.
    pub fn max_segment_size(&self) -> Option<u16> {
        let mut rest = self.options();
        loop {
            rest = match *rest {
                [] | [option::END, ..] => return None,
                [option::NOP, ref tail @ ..] => tail,
                [option::MAX_SEGMENT_SIZE, 4, high, low, ..] => {
                    return Some(u16::from_be_bytes([high, low]));
                }
                // The length counts kind and length too: below 2 the walk would not move on.
                [_, len, ..] if len >= 2 => rest.get(usize::from(len)..)?,
                _ => return None,
            };
        }
    }

    /// What of the payload lies in the buffer, padding behind the packet included.
    #[inline]
    pub fn payload(&self) -> &'a [u8] {
        &self.buffer.as_ref()[self.header_len()..]
    }
}

impl<T: AsRef<[u8]> + AsMut<[u8]>> TcpSegment<T> {
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

    /// Sets the sequence number.
    #[inline]
    pub fn set_seq(&mut self, seq: u32) {
        put(self.buffer.as_mut(), field::SEQ, seq.to_be_bytes());
    }

    /// Sets the acknowledgement number.
    #[inline]
    pub fn set_ack(&mut self, ack: u32) {
        put(self.buffer.as_mut(), field::ACK, ack.to_be_bytes());
    }

    /// Sets the header length in bytes: a multiple of 4, 20 to 60. Voids an earlier check.
    #[inline]
    pub fn set_header_len(&mut self, len: u8) {
        let value = self.flags() | u16::from(len >> 2) << 12;
        put(
            self.buffer.as_mut(),
            field::OFFSET_FLAGS,
            value.to_be_bytes(),
        );
    }

    /// Sets the twelve flag bits; those above are ignored.
    #[inline]
    pub fn set_flags(&mut self, flags: u16) {
        let value = self.offset_flags() & !FLAGS | flags & FLAGS;
        put(
            self.buffer.as_mut(),
            field::OFFSET_FLAGS,
            value.to_be_bytes(),
        );
    }

    /// Sets the receive window, not scaled.
    #[inline]
    pub fn set_window(&mut self, window: u16) {
        put(self.buffer.as_mut(), field::WINDOW, window.to_be_bytes());
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

    /// Sets the urgent pointer.
    #[inline]
    pub fn set_urgent(&mut self, urgent: u16) {
        put(self.buffer.as_mut(), field::URGENT, urgent.to_be_bytes());
    }

    /// What of the payload lies in the buffer, to be written.
    #[inline]
    pub fn payload_mut(&mut self) -> &mut [u8] {
        let header_len = self.header_len();
        &mut self.buffer.as_mut()[header_len..]
    }
}

#[cfg(test)]
mod tests {
    use etherparse::{TcpHeader, TcpOptions};
    use proptest::prelude::*;

    use super::*;

    /// A SYN with MSS 1460 behind a NOP, and two bytes of data.
    const SEGMENT: [u8; 30] = [
        0xbf, 0x00, 0x00, 0x50, 0x01, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd, 0xef, 0x71, 0x82, 0x01,
        0x23, 0x01, 0xb6, 0x02, 0x01, 0x01, 0x02, 0x04, 0x05, 0xb4, 0x00, 0x00, 0x00, 0xca, 0xfe,
    ];

    #[test]
    fn fields_are_read() {
        let segment = TcpSegment::new_checked(&SEGMENT).unwrap();
        assert_eq!(segment.check(30), Ok(()));
        assert_eq!(segment.src_port(), 48896);
        assert_eq!(segment.dst_port(), 80);
        assert_eq!(segment.seq(), 0x0123_4567);
        assert_eq!(segment.ack(), 0x89ab_cdef);
        assert_eq!(segment.header_len(), 28);
        assert_eq!(segment.flags(), 0x100 | flag::CWR | flag::SYN);
        assert_eq!(segment.window(), 0x0123);
        assert_eq!(segment.checksum(), 0x01b6);
        assert_eq!(segment.urgent(), 0x0201);
        assert_eq!(segment.options(), [1, 2, 4, 0x05, 0xb4, 0, 0, 0]);
        assert_eq!(segment.max_segment_size(), Some(1460));
        assert_eq!(segment.payload(), [0xca, 0xfe]);
    }

    #[test]
    fn fields_are_written() {
        let mut bytes = [0xa5; 30];
        bytes[20..28].copy_from_slice(&SEGMENT[20..28]);
        let mut segment = TcpSegment::new_unchecked(&mut bytes);
        segment.set_src_port(48896);
        segment.set_dst_port(80);
        segment.set_seq(0x0123_4567);
        segment.set_ack(0x89ab_cdef);
        segment.set_header_len(28);
        segment.set_flags(0xf000 | 0x100 | flag::CWR | flag::SYN);
        segment.set_window(0x0123);
        segment.set_checksum(0x01b6);
        segment.set_urgent(0x0201);
        segment.payload_mut().copy_from_slice(&[0xca, 0xfe]);
        assert_eq!(bytes, SEGMENT);
    }

    #[test]
    fn a_short_buffer_is_refused() {
        for len in 0..28 {
            let view = TcpSegment::new_checked(&SEGMENT[..len]);
            assert_eq!(view.unwrap_err(), Malformed::Truncated, "{len}");
            let view = TcpSegment::new_unchecked(&SEGMENT[..len]);
            assert_eq!(view.check(30), Err(Malformed::Truncated), "{len}");
        }
    }

    #[test]
    fn each_defect_has_its_name() {
        let mut short = SEGMENT;
        short[12] = 0x41;
        let segment = TcpSegment::new_unchecked(&short);
        assert_eq!(segment.check_len(), Err(Malformed::BadHeaderLength));
        assert_eq!(segment.check(30), Err(Malformed::BadHeaderLength));
        let segment = TcpSegment::new_unchecked(&SEGMENT);
        assert_eq!(segment.check(19), Err(Malformed::Truncated));
        assert_eq!(segment.check(27), Err(Malformed::BadHeaderLength));
        assert_eq!(segment.check(28), Ok(()));
    }

    #[test]
    fn the_mss_is_found_or_not() {
        let cases: [(&str, &[u8], Option<u16>); 9] = [
            ("no options", &[], None),
            ("first", &[2, 4, 0x21, 0x16], Some(8470)),
            (
                "behind timestamps",
                &[8, 10, 0, 0, 0, 1, 0, 0, 0, 2, 2, 4, 2, 24, 1, 1],
                Some(536),
            ),
            ("behind the end", &[0, 2, 4, 5, 0xb4, 0, 0, 0], None),
            ("length 0", &[3, 0, 7, 2, 2, 4, 5, 0xb4], None),
            ("length 1", &[3, 1, 7, 2, 2, 4, 5, 0xb4], None),
            (
                "length beyond the header",
                &[3, 9, 7, 2, 2, 4, 5, 0xb4],
                None,
            ),
            ("MSS of length 3", &[2, 3, 5, 0], None),
            ("MSS cut off", &[1, 1, 2, 4], None),
        ];
        for (name, options, mss) in cases {
            let mut bytes = SEGMENT[..20].to_vec();
            bytes.extend(options);
            bytes[12] = u8::try_from(bytes.len() / 4).unwrap() << 4;
            let segment = TcpSegment::new_checked(&bytes).unwrap();
            assert_eq!(segment.max_segment_size(), mss, "{name}");
        }
    }

    fn flags_of(header: &TcpHeader) -> u16 {
        let flags = [
            (header.fin, flag::FIN),
            (header.syn, flag::SYN),
            (header.rst, flag::RST),
            (header.psh, flag::PSH),
            (header.ack, flag::ACK),
            (header.urg, flag::URG),
            (header.ece, flag::ECE),
            (header.cwr, flag::CWR),
            (header.ns, 0x100),
        ];
        flags
            .iter()
            .filter(|(set, _)| *set)
            .fold(0, |bits, (_, bit)| bits | bit)
    }

    proptest! {
        #[test]
        fn etherparse_agrees(
            ports: (u16, u16), seq: u32, ack: u32, flags in 0_u16..0x200, window: u16,
            sums: (u16, u16), options in prop::collection::vec(any::<[u8; 4]>(), 0..=10),
        ) {
            let set = |bit| flags & bit != 0;
            let header = TcpHeader {
                source_port: ports.0,
                destination_port: ports.1,
                sequence_number: seq,
                acknowledgment_number: ack,
                ns: set(0x100),
                fin: set(flag::FIN),
                syn: set(flag::SYN),
                rst: set(flag::RST),
                psh: set(flag::PSH),
                ack: set(flag::ACK),
                urg: set(flag::URG),
                ece: set(flag::ECE),
                cwr: set(flag::CWR),
                window_size: window,
                checksum: sums.0,
                urgent_pointer: sums.1,
                options: TcpOptions::try_from_slice(&options.concat()).unwrap(),
            };
            let bytes = header.to_bytes();
            let segment = TcpSegment::new_checked(&bytes[..]).unwrap();
            prop_assert_eq!(segment.src_port(), ports.0);
            prop_assert_eq!(segment.dst_port(), ports.1);
            prop_assert_eq!(segment.seq(), seq);
            prop_assert_eq!(segment.ack(), ack);
            prop_assert_eq!(segment.header_len(), header.header_len());
            prop_assert_eq!(segment.flags(), flags_of(&header));
            prop_assert_eq!(segment.window(), window);
            prop_assert_eq!(segment.checksum(), sums.0);
            prop_assert_eq!(segment.urgent(), sums.1);
            prop_assert_eq!(segment.options(), header.options.as_slice());

            let mut written = [0xa5; 20];
            let mut copy = TcpSegment::new_unchecked(&mut written);
            copy.set_src_port(ports.0);
            copy.set_dst_port(ports.1);
            copy.set_seq(seq);
            copy.set_ack(ack);
            copy.set_header_len(u8::try_from(header.header_len()).unwrap());
            copy.set_flags(flags);
            copy.set_window(window);
            copy.set_checksum(sums.0);
            copy.set_urgent(sums.1);
            prop_assert_eq!(&written[..], &bytes[..20]);
        }

        #[test]
        fn noise_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..80), len in 0_usize..99) {
            if let Ok(segment) = TcpSegment::new_checked(&bytes) {
                segment.max_segment_size();
                segment.payload();
            }
            if TcpSegment::new_unchecked(&bytes).check(len).is_ok() {
                prop_assert!(TcpSegment::new_checked(&bytes).unwrap().header_len() <= len);
            }
        }
    }
}
