//! Views of packet headers: typed access to bytes that stay where they are.
//!
//! One header per file. A view wraps any buffer of bytes that starts at its header:
//!
//! - `new_checked` refuses a buffer that does not hold the whole header ([`Malformed::Truncated`],
//!   or [`Malformed::BadHeaderLength`] where the header states its own length). After it no getter
//!   panics.
//! - `new_unchecked` is for a caller that has made the check, or that is about to write the header.
//!   Getters and setters panic if the buffer is shorter than the header.
//! - `check` compares the header's fields with the length of the packet. That length is an argument
//!   and not the buffer's, because the buffer is often only the first chunk of a packet of up to
//!   64 KiB. `payload` is therefore *what of the payload lies in this buffer*, trailing padding of
//!   the link included.
//! - Setters write one field and leave the rest, a checksum included, unless their name says so.
//!   Those that change a stated header length void an earlier `new_checked`, and say that too.
//!
//! All numbers are in host byte order; network byte order does not leave this module. The packet
//! path does not walk these views itself: [`parse::parse`] checks all headers of a packet once and
//! gives the offsets and fields that everything later goes by.
//!
//! BIG TCP (IPv4 total length 0, IPv6 payload length 0 with or without a jumbo option) is not
//! supported: a length of zero is malformed here. Neither a veth nor a NIC makes such packets unless
//! `gso_max_size` was raised above 65536.

pub mod checksum;
pub mod ethernet;
pub mod flow_hash;
pub mod glance;
pub mod headers;
pub mod icmp;
pub mod icmp_error;
pub mod ipv4;
pub mod ipv6;
pub mod parse;
pub mod tcp;
pub mod udp;
pub mod vxlan;

pub use checksum::Sum;
pub use ethernet::{EtherType, EthernetFrame};
pub use headers::{Headers, IpVersion};
pub use icmp::IcmpMessage;
pub use icmp_error::IcmpError;
pub use ipv4::Ipv4Packet;
pub use ipv6::Ipv6Packet;
pub use parse::ParseError;
pub use tcp::TcpSegment;
pub use udp::UdpDatagram;
pub use vxlan::VxlanHeader;

/// IP protocol numbers (IPv4 protocol, IPv6 next header) that the packet path serves.
pub mod protocol {
    /// ICMP for IPv4, RFC 792.
    pub const ICMP: u8 = 1;
    /// TCP, RFC 9293.
    pub const TCP: u8 = 6;
    /// UDP, RFC 768.
    pub const UDP: u8 = 17;
    /// ICMP for IPv6, RFC 4443.
    pub const ICMPV6: u8 = 58;
}

/// What is wrong with a header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// The buffer ends inside the header.
    #[error("the buffer ends inside the header")]
    Truncated,
    /// The version field is not this header's.
    #[error("wrong version")]
    BadVersion,
    /// The stated header length is below the least possible or beyond the packet.
    #[error("wrong header length")]
    BadHeaderLength,
    /// The stated length of header and payload is below the header's or beyond the packet.
    #[error("wrong total length")]
    BadTotalLength,
    /// The header checksum is wrong.
    #[error("wrong checksum")]
    BadChecksum,
}

/// Where a field of several bytes lies in its header.
type Field = std::ops::Range<usize>;

/// The bytes of a field. `N` is the field's length.
#[inline]
fn get<const N: usize>(data: &[u8], field: Field) -> [u8; N] {
    let mut bytes = [0; N];
    bytes.copy_from_slice(&data[field]);
    bytes
}

/// Overwrites a field.
#[inline]
fn put<const N: usize>(data: &mut [u8], field: Field, bytes: [u8; N]) {
    data[field].copy_from_slice(&bytes);
}
