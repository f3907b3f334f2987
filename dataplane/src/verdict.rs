//! What becomes of a packet, and the one list of drop reasons.

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

/// How a packet leaves. Its frame already starts at the Ethernet header to be sent (the inner one
/// for a tunnel), with TTL decremented and addresses rewritten; what is left to do is segmentation,
/// checksums and the outer headers of a tunnel.
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

macro_rules! drop_reasons {
    ($($(#[doc = $help:literal])+ $variant:ident = $name:literal,)+) => {
        /// Why a packet died. Append only: names are stable, the order is the counter slot.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum DropReason { $($(#[doc = $help])+ $variant,)+ }

        impl DropReason {
            /// Every reason, in slot order.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// Stable name, as counters and metrics show it.
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)+ }
            }

            /// What happened and what to do about it.
            pub fn help(self) -> &'static str {
                match self { $(Self::$variant => concat!($($help,)+).trim_ascii(),)+ }
            }
        }
    };
}

drop_reasons! {
    /// The frame is shorter than an Ethernet header.
    TruncatedEthernet = "truncated_ethernet",
    /// The frame is neither IPv4 nor IPv6.
    UnknownEtherType = "unknown_ethertype",
    /// The packet ends inside its IPv4 header.
    TruncatedIpv4 = "truncated_ipv4",
    /// The version field of an IPv4 packet is not 4.
    Ipv4BadVersion = "ipv4_bad_version",
    /// The IPv4 header length is below 20 bytes or beyond the packet.
    Ipv4BadHeaderLength = "ipv4_bad_header_length",
    /// The IPv4 packet has options; the kernel routes those, the XDP program passes them.
    Ipv4Options = "ipv4_options",
    /// The IPv4 total length is below its header's or beyond the packet.
    Ipv4BadTotalLength = "ipv4_bad_total_length",
    /// The IPv4 header checksum is wrong (RFC 1812, 5.2.2).
    Ipv4BadChecksum = "ipv4_bad_checksum",
    /// The packet ends inside its IPv6 header.
    TruncatedIpv6 = "truncated_ipv6",
    /// The version field of an IPv6 packet is not 6.
    Ipv6BadVersion = "ipv6_bad_version",
    /// The IPv6 payload length goes beyond the packet.
    Ipv6BadPayloadLength = "ipv6_bad_payload_length",
    /// The IPv6 packet has extension headers; the kernel routes those.
    Ipv6ExtensionHeader = "ipv6_extension_header",
    /// The packet ends inside its TCP header.
    TruncatedTcp = "truncated_tcp",
    /// The TCP data offset is below 5 or beyond the packet.
    TcpBadDataOffset = "tcp_bad_data_offset",
    /// The packet ends inside its UDP header.
    TruncatedUdp = "truncated_udp",
    /// The UDP length does not agree with the IP packet's.
    UdpBadLength = "udp_bad_length",
    /// The packet ends inside its ICMP header.
    TruncatedIcmp = "truncated_icmp",
    /// Neither TCP, UDP nor ICMP; the kernel routes those.
    UnsupportedProtocol = "unsupported_protocol",
    /// The packet ends inside its VXLAN header or the inner Ethernet header.
    TruncatedVxlan = "truncated_vxlan",
    /// The I flag of the VXLAN header is clear (RFC 7348, section 5).
    VxlanFlagClear = "vxlan_flag_clear",
    /// The VNI is not one of ours.
    UnknownVni = "unknown_vni",
    /// The tunnel's source is no known node; add it with `podway node set`, or set
    /// `allow-unknown-vteps`.
    UnknownVtep = "unknown_vtep",
    /// A packet from an uplink that is not for a pod of this node.
    NotLocal = "not_local",
    /// Congestion was marked on the outer header of a flow that cannot carry the mark (RFC 6040).
    EcnNotCapable = "ecn_not_capable",
    /// Time to live ran out.
    TtlExpired = "ttl_expired",
    /// No route to the destination; it was withdrawn while the packet waited.
    NoRoute = "no_route",
    /// The next hop has no neighbour entry; it was lost while the packet waited.
    NoNeighbor = "no_neighbor",
    /// The packet is larger than the path's MTU and is not TCP, so it cannot be cut.
    TooBig = "too_big",
    /// The unfinished checksum of a packet from an uplink that must not carry those.
    PartialChecksum = "partial_checksum",
    /// The port that the packet came from or goes to was detached while it waited.
    PortGone = "port_gone",
    /// The kernel had no room: the socket's buffer, the interface's queue or the pod's receive queue
    /// was full, the uplink was down or without a carrier, or the packet was larger than the pod's
    /// own MTU.
    EgressFull = "egress_full",
    /// The kernel refused the packet on egress: interface down, or MTU changed below the packet.
    EgressRefused = "egress_refused",
    /// A TCP packet that must be cut to the path's MTU has a wrong checksum.
    BadChecksum = "bad_checksum",
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

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn slots_names_and_help_are_in_order_and_unique() {
        let mut names = HashSet::new();
        for (slot, reason) in DropReason::ALL.iter().enumerate() {
            assert_eq!(*reason as usize, slot);
            assert!(names.insert(reason.name()), "{} twice", reason.name());
            assert!(reason.help().ends_with('.'), "{}", reason.help());
        }
    }
}
