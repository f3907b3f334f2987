//! Why packets are dropped, lost, refused or left to the kernel: names, meanings, places and remedies.
//!
//! The dataplane counts by these lists, the programs on the ports have the causes in the same order
//! (`xdp-redirect/src/bpf/shared.h`), `podway explain` prints them, and docs/counters.md lists them with
//! their places and meanings; tests compare them.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Where on its path through Podway a packet is when it is dropped, refused or passed; see the figure
/// in docs/counters.md.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Place {
    /// The program on the port, XDP or tcx, before a worker has the packet.
    Xdp,
    /// It waits for its worker, redirected by the program on the port.
    Queue,
    /// Its headers are read: of a tunnel's packet the outer ones, then the inner.
    Parse,
    /// The outer headers of a tunnel come off.
    Decap,
    /// Its destination is looked up.
    Lookup,
    /// It is checked against its next hop.
    Forward,
    /// It becomes part of a message.
    Gather,
    /// The message is handed to the kernel.
    Send,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Xdp => "xdp",
            Self::Queue => "queue",
            Self::Parse => "parse",
            Self::Decap => "decap",
            Self::Lookup => "lookup",
            Self::Forward => "forward",
            Self::Gather => "gather",
            Self::Send => "send",
        })
    }
}

/// What becomes of a packet for a reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fate {
    /// The dataplane drops it.
    Drop,
    /// There is no room for it on the way to its worker.
    Lose,
    /// The program on the port drops it.
    Refuse,
    /// The program on the port leaves it to the kernel.
    Pass,
}

impl fmt::Display for Fate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Drop => "dropped by the dataplane",
            Self::Lose => "lost before a worker had it",
            Self::Refuse => "refused by the program on the port: nobody has it",
            Self::Pass => "passed to the kernel: nothing is lost",
        })
    }
}

/// All that is said of a reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Explanation {
    /// Stable name, as counters show it. A drop reason and a cause to pass may share one.
    pub name: &'static str,
    /// What becomes of the packet.
    pub fate: Fate,
    /// Where; in more than one place, the packet's order.
    pub places: &'static [Place],
    /// What happened.
    pub meaning: &'static str,
    /// What an operator does about it, in sentences.
    pub remedy: &'static str,
}

/// Every reason: those by which nobody has the packet, and those to pass, in the order of their counters.
pub fn all() -> impl Iterator<Item = Explanation> {
    fatal().chain(PassCause::ALL.iter().map(|cause| cause.explain()))
}

/// The reasons by which nobody has the packet: to drop, to lose and to refuse.
pub fn fatal() -> impl Iterator<Item = Explanation> {
    let drops = DropReason::ALL.iter().map(|reason| reason.explain());
    let lost = LossCause::ALL.iter().map(|cause| cause.explain());
    let refused = RefuseCause::ALL.iter().map(|cause| cause.explain());
    drops.chain(lost).chain(refused)
}

/// Makes an enum and its texts from one list: an entry without one of them does not compile.
macro_rules! reasons {
    (
        $(#[$doc:meta])*
        $Reason:ident, $Fate:ident;
        $(
            $reason:ident $name:literal [$($place:ident),+]
            $meaning:literal
            $remedy:expr;
        )+
    ) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum $Reason { $(#[doc = $meaning] $reason,)+ }

        impl $Reason {
            /// All of them, by counter slot.
            pub const ALL: &'static [Self] = &[$(Self::$reason,)+];
            /// How many there are.
            pub const COUNT: usize = Self::ALL.len();

            /// Stable name, as counters and metrics show it.
            pub fn name(self) -> &'static str {
                self.explain().name
            }

            /// What happened.
            pub fn meaning(self) -> &'static str {
                self.explain().meaning
            }

            /// All that is said of it.
            pub fn explain(self) -> Explanation {
                match self {
                    $(Self::$reason => Explanation {
                        name: $name,
                        fate: Fate::$Fate,
                        places: &[$(Place::$place),+],
                        meaning: $meaning,
                        remedy: $remedy,
                    },)+
                }
            }
        }
    };
}

/// Of packets that the programs leave to the kernel, so that no worker should see them.
const NEVER: &str = "The program on the port leaves such packets to the kernel: please report this with the packet's header.";
/// Of packets that somebody damages or makes wrong.
const DAMAGED: &str = "Find the sender by the source address; it, its network card or a device on the way makes or damages such packets (try there with offloads switched off: `ethtool -K IF tx off`).";
/// Of packets that are the kernel's by nature.
const KERNELS: &str = "None is needed: the kernel has these packets.";
/// Of packets that belong to a size that the pods should keep to.
const SMALLER: &str = "Give the pods' interfaces or routes the MTU that `podway status` names, so that senders make packets that fit.";

reasons! {
    /// Why a packet died in the dataplane. Append only: names are stable, the order is the counter
    /// slot.
    DropReason, Drop;

    TruncatedEthernet "truncated_ethernet" [Parse]
    "The frame is shorter than an Ethernet header."
    NEVER;

    UnknownEtherType "unknown_ethertype" [Parse]
    "The frame is neither IPv4 nor IPv6."
    NEVER;

    TruncatedIpv4 "truncated_ipv4" [Parse]
    "The packet ends inside its IPv4 header."
    NEVER;

    Ipv4BadVersion "ipv4_bad_version" [Parse]
    "The version field of an IPv4 packet is not 4."
    NEVER;

    Ipv4BadHeaderLength "ipv4_bad_header_length" [Parse]
    "The IPv4 header length is below 20 bytes or beyond the packet."
    NEVER;

    Ipv4Options "ipv4_options" [Parse]
    "The IPv4 packet has options; the kernel routes those, the XDP program passes them."
    NEVER;

    Ipv4BadTotalLength "ipv4_bad_total_length" [Parse]
    "The IPv4 total length is below its header's or beyond the packet."
    DAMAGED;

    Ipv4BadChecksum "ipv4_bad_checksum" [Parse]
    "The IPv4 header checksum is wrong (RFC 1812, 5.2.2)."
    DAMAGED;

    TruncatedIpv6 "truncated_ipv6" [Parse]
    "The packet ends inside its IPv6 header."
    NEVER;

    Ipv6BadVersion "ipv6_bad_version" [Parse]
    "The version field of an IPv6 packet is not 6."
    NEVER;

    Ipv6BadPayloadLength "ipv6_bad_payload_length" [Parse]
    "The IPv6 payload length goes beyond the packet."
    DAMAGED;

    Ipv6ExtensionHeader "ipv6_extension_header" [Parse]
    "The IPv6 packet has extension headers; the kernel routes those."
    NEVER;

    TruncatedTcp "truncated_tcp" [Parse]
    "The packet ends inside its TCP header."
    DAMAGED;

    TcpBadDataOffset "tcp_bad_data_offset" [Parse]
    "The TCP data offset is below 5 or beyond the packet."
    DAMAGED;

    TruncatedUdp "truncated_udp" [Parse]
    "The packet ends inside its UDP header."
    DAMAGED;

    UdpBadLength "udp_bad_length" [Parse]
    "The UDP length does not agree with the IP packet's."
    DAMAGED;

    TruncatedIcmp "truncated_icmp" [Parse]
    "The packet ends inside its ICMP header."
    DAMAGED;

    UnsupportedProtocol "unsupported_protocol" [Parse]
    "Neither TCP, UDP nor ICMP; the kernel routes those."
    NEVER;

    TruncatedVxlan "truncated_vxlan" [Decap]
    "The packet ends inside its VXLAN header or the inner Ethernet header."
    NEVER;

    VxlanFlagClear "vxlan_flag_clear" [Decap]
    "The I flag of the VXLAN header is clear (RFC 7348, section 5)."
    NEVER;

    UnknownVni "unknown_vni" [Decap]
    "The VNI is not one of ours."
    "None is needed for packets that were on their way while the VNI changed; if it goes on, give all nodes the same `vni` and `also-vnis`.";

    UnknownVtep "unknown_vtep" [Decap]
    "The tunnel's source is no known node."
    "Add the node by `podway node set`, or set `allow-unknown-vteps` where everybody on the underlay may send; `nft list table inet podway` counts what the kernel has dropped of these.";

    NotLocal "not_local" [Decap, Lookup]
    "A packet from an uplink that is not for a pod of this node."
    "See that the sender's routes lead to the right node (`podway route get ADDRESS` there) and that the pod is a port here (`podway port show`).";

    EcnNotCapable "ecn_not_capable" [Decap]
    "Congestion was marked on the outer header of a flow that cannot carry the mark (RFC 6040)."
    "A router on the underlay is congested, and drops or marks; the sender of the tunnel should copy the inner ECN field to the outer header, as Podway and the kernel do.";

    TtlExpired "ttl_expired" [Forward]
    "Time to live ran out."
    NEVER;

    NoRoute "no_route" [Lookup]
    "No route to the destination; it was withdrawn while the packet waited."
    "None is needed after a route was withdrawn; if it goes on, look at `podway route get ADDRESS` and `podway status`.";

    NoNeighbor "no_neighbor" [Lookup, Gather]
    "The next hop has no neighbour entry; it was lost while the packet waited."
    "See whether the next hop answers: `podway route get ADDRESS` names it, `ip neigh` has its state.";

    TooBig "too_big" [Forward, Gather]
    "The packet is larger than the path's MTU and is not TCP, so it cannot be cut."
    SMALLER;

    PartialChecksum "partial_checksum" [Forward]
    "The unfinished checksum of a packet from an uplink that must not carry those."
    "If the uplink is a virtual device between machines of one host, add it with `--accept-partial-checksums yes`; otherwise the sender leaves checksums to a device that does not finish them: `ethtool -K IF tx off` there.";

    PortGone "port_gone" [Forward, Gather]
    "The port that the packet came from or goes to was detached while it waited."
    "None is needed when a pod has ended; if it goes on, see `podway port show`.";

    EgressFull "egress_full" [Send]
    "The kernel had no room: the socket's buffer, the interface's queue or the pod's receive queue was full, the uplink was down or without a carrier, or the packet was larger than the pod's own MTU."
    "Look at the interface of the last packet: `ip -s link` for carrier and drops, `tc -s qdisc` for its queue, the pod's own MTU; a pod that reads too slowly needs more CPU or larger socket buffers.";

    EgressRefused "egress_refused" [Send]
    "The kernel refused the packet on egress: interface down, or MTU changed below the packet."
    "Look at the interface of the last packet with `ip link`: set it up, and its MTU to that of its peer.";

    BadChecksum "bad_checksum" [Forward]
    "A TCP packet that must be cut to the path's MTU has a wrong checksum."
    DAMAGED;
}

reasons! {
    /// Why a packet that was redirected never reached its worker.
    LossCause, Lose;

    RingFull "ring_full" [Queue]
    "the worker's packet ring, or the rx ring of the port's socket, was full: packets come faster than the worker takes them"
    "See the worker's load in `podway status --verbose`. If it is busy all the time, give Podway more workers (`dataplane.workers`) or cores of their own; if only bursts are lost, raise `dataplane.ring-size`.";

    NoFrame "no_frame" [Queue]
    "the port's socket had no frame posted for it (AF_XDP)"
    "Raise `dataplane.frames`, or `dataplane.ring-size` if bursts are lost while the worker is not busy.";

    TapFull "tap_full" [Queue]
    "the queue of the worker's TAP was full: super-frames come faster than the worker takes them"
    "See the worker's load in `podway status --verbose`. TCP sends again by itself; if it stays so, give Podway more workers (`dataplane.workers`) or cores of their own.";
}

reasons! {
    /// Why the program on a port refused a packet: nobody has it. The order is that of the program.
    RefuseCause, Refuse;

    SpoofedSource "spoofed_source" [Xdp]
    "pod port: the sender is not the pod by its address, ARP included"
    "If the pod has further addresses, name them all by `podway port add IF --pod-ip IP`; if it is a router, add `--any-source`; otherwise find out what it runs.";

    OwnSource "own_source" [Xdp]
    "uplink: the sender has an address of this node, or in a tunnel of one of its pods"
    "Look for a loop in the underlay, for another machine with an address of this node, and for somebody who forges it.";
}

reasons! {
    /// Why the program on a port left a packet to the kernel. The order is that of the program.
    PassCause, Pass;

    GateClosed "gate_closed" [Xdp]
    "the gate is closed: Podway starts, stops or was told to stand aside"
    "None is needed while Podway starts or stops; otherwise `podway status` says why.";

    WorkerStalled "worker_stalled" [Xdp]
    "the worker of the queue has not beaten for a second"
    "Give the workers cores of their own (`cores` in the configuration); if it goes on, restart podway-dataplane.";

    NoSocket "no_socket" [Xdp]
    "no AF_XDP socket or TAP serves the queue"
    "None is needed while the port is attached or detached; otherwise see `podway port show` and the dataplane's log.";

    UnknownPort "unknown_port" [Xdp]
    "the interface is not a port of this node"
    "None is needed while a port is attached or detached; otherwise see `podway port show`.";

    NotForUs "not_for_us" [Xdp]
    "the destination MAC is not the port's, broadcast and multicast included"
    KERNELS;

    NotIp "not_ip" [Xdp]
    "neither IPv4 nor IPv6: ARP, VLAN-tagged and other frames"
    KERNELS;

    Malformed "malformed" [Xdp]
    "a header that is needed to classify is cut short or has a wrong version"
    "The kernel drops them. If there are many, find the sender with `tcpdump -e -i IF`.";

    Options "options" [Xdp]
    "an IPv4 header with options"
    KERNELS;

    ExtensionHeader "extension_header" [Xdp]
    "an IPv6 extension header other than a fragment header"
    KERNELS;

    Fragment "fragment" [Xdp]
    "an IPv6 fragment; of IPv4, where the kernel puts fragments together, as it does for conntrack"
    "The kernel has these packets, which are slower there. Senders that keep to the MTU of their path make none.";

    Protocol "protocol" [Xdp]
    "neither TCP, UDP nor ICMP"
    KERNELS;

    NeighborDiscovery "neighbor_discovery" [Xdp]
    "ICMPv6 that concerns one link: ND, MLD and their kin"
    KERNELS;

    Multicast "multicast" [Xdp]
    "the destination is multicast, broadcast or reserved (224.0.0.0/3, ff00::/8)"
    KERNELS;

    LinkLocal "link_local" [Xdp]
    "the destination is link-local, loopback or unspecified"
    KERNELS;

    LocalAddress "local_address" [Xdp]
    "a pod speaks to an address of the node"
    KERNELS;

    ForeignSource "foreign_source" [Xdp]
    "a source that no router forwards, or natively that of a pod of this node"
    "The kernel drops most of them. If there are many, find the sender with `tcpdump -e -i IF`.";

    NoSuchPod "no_such_pod" [Xdp]
    "the destination of a packet from the uplink is no attached pod"
    "If the pod is on this node, make its interface a port (`podway port add`); otherwise correct the sender's routes.";

    NoRoute "no_route" [Xdp]
    "the destination, or natively the source of a packet from the uplink, is in no fast-path prefix"
    "If Podway is to forward them, add the node (`podway node set`) or the route (`podway route add`); otherwise none is needed.";

    Unresolved "unresolved" [Xdp]
    "the destination's prefix has no resolved next hop"
    "See whether the next hop answers: `podway route get ADDRESS` names it, `ip neigh` has its state.";

    HopLimit "hop_limit" [Xdp]
    "TTL or hop limit is used up; the kernel answers"
    "None is needed for a traceroute; if there are many, look for routes that lead in a circle.";

    Oversize "oversize" [Xdp]
    "larger than the route or the port carries and not to be cut, or larger than 64 KiB"
    "Give the pods' interfaces or routes the MTU that `podway status` names; `podway port show` names the last packet that did not fit.";

    NotVxlan "not_vxlan" [Xdp]
    "for the node itself and not VXLAN with a VNI on the configured port"
    KERNELS;

    UnknownVni "unknown_vni" [Xdp]
    "VXLAN of a network that this node does not serve"
    "If it comes from a node of this cluster, give all nodes the same `vni` and `also-vnis`; otherwise none is needed.";

    Batch "batch" [Xdp]
    "a tunnel's datagram that holds more than one packet (unsegmented UDP GSO)"
    "None is needed: the kernel takes them apart. They are slower there.";

    Translated "translated" [Xdp]
    "conntrack translates the connection (NAT), as for a service; ICMP errors where it may"
    KERNELS;
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn texts_are_whole_and_names_are_told_apart() {
        let mut names = HashSet::new();
        for Explanation {
            name,
            fate,
            places,
            meaning,
            remedy,
        } in all()
        {
            assert!(names.insert((name, fate.to_string())), "{name} twice");
            let is_snake = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
            assert!(name.chars().all(is_snake), "{name}");
            assert!(remedy.ends_with(['.']), "{name}: {remedy}");
            assert_eq!(meaning.ends_with('.'), fate == Fate::Drop, "{name}");
            match fate {
                Fate::Drop => assert!(!places.contains(&Place::Xdp), "{name}"),
                Fate::Lose => assert_eq!(places, [Place::Queue], "{name}"),
                Fate::Refuse | Fate::Pass => assert_eq!(places, [Place::Xdp], "{name}"),
            }
            // The documentation has them in tables.
            assert!(!meaning.contains(['|', '\n']) && !remedy.contains(['|', '\n']));
        }
        let counts = [
            DropReason::COUNT,
            LossCause::COUNT,
            RefuseCause::COUNT,
            PassCause::COUNT,
        ];
        assert_eq!(names.len(), counts.iter().sum::<usize>());
    }

    #[test]
    fn a_reason_is_its_counter_slot() {
        for (slot, reason) in DropReason::ALL.iter().enumerate() {
            assert_eq!(*reason as usize, slot);
        }
        for (slot, cause) in RefuseCause::ALL.iter().enumerate() {
            assert_eq!(*cause as usize, slot);
        }
        for (slot, cause) in PassCause::ALL.iter().enumerate() {
            assert_eq!(*cause as usize, slot);
        }
    }
}
