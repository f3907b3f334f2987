//! What becomes of a packet.

pub use podway_proto::reasons::DropReason;

use crate::fib::NextHop;
use crate::wire::parse::{Headers, ParseError};

/// The decision of [`crate::forward`] about one packet.
#[derive(Debug)]
pub enum Verdict<'t> {
    /// It leaves by a next hop.
    Send(Send<'t>),
    /// It dies here.
    Drop(DropReason),
}

/// How a packet leaves. It starts at the Ethernet header to be sent (the inner one for a tunnel). After
/// [`Send::rewrite`] what is left to do is segmentation, checksums and the outer headers of a tunnel.
#[derive(Debug, Clone)]
pub struct Send<'t> {
    /// Where to, with the finished rewrite and the path's MTU.
    pub next_hop: &'t NextHop,
    /// Offsets and fields of the packet as it is to be sent (after decap), `l3` at 14.
    pub headers: Headers,
    /// Hash of the flow; chooses the outer source port.
    pub flow_hash: u32,
    /// Whether the L4 checksum field holds the folded pseudo-header sum only (CHECKSUM_PARTIAL).
    pub partial_checksum: bool,
    /// Largest L3 packet in bytes that may leave: a TCP packet over it is cut to this size.
    pub max_l3_len: u16,
}

impl From<ParseError> for DropReason {
    fn from(error: ParseError) -> Self {
        match error {
            ParseError::TruncatedEthernet => Self::TruncatedEthernet,
            ParseError::UnknownEtherType => Self::UnknownEtherType,
            ParseError::TruncatedIpv4 => Self::TruncatedIpv4,
            ParseError::Ipv4BadVersion => Self::Ipv4BadVersion,
            ParseError::Ipv4BadHeaderLength => Self::Ipv4BadHeaderLength,
            ParseError::Ipv4Options => Self::Ipv4Options,
            ParseError::Ipv4BadTotalLength => Self::Ipv4BadTotalLength,
            ParseError::Ipv4BadChecksum => Self::Ipv4BadChecksum,
            ParseError::TruncatedIpv6 => Self::TruncatedIpv6,
            ParseError::Ipv6BadVersion => Self::Ipv6BadVersion,
            ParseError::Ipv6BadPayloadLength => Self::Ipv6BadPayloadLength,
            ParseError::Ipv6ExtensionHeader => Self::Ipv6ExtensionHeader,
            ParseError::TruncatedTcp => Self::TruncatedTcp,
            ParseError::TcpBadDataOffset => Self::TcpBadDataOffset,
            ParseError::TruncatedUdp => Self::TruncatedUdp,
            ParseError::UdpBadLength => Self::UdpBadLength,
            ParseError::TruncatedIcmp => Self::TruncatedIcmp,
            ParseError::UnsupportedProtocol => Self::UnsupportedProtocol,
            ParseError::TruncatedVxlan => Self::TruncatedVxlan,
            ParseError::VxlanFlagClear => Self::VxlanFlagClear,
        }
    }
}
