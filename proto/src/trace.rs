//! What would happen to a packet: what `podway trace packet` asks, and what it is told.
//!
//! Nothing is sent. The dataplane goes through the rules of the programs on the ports in user space, on
//! the maps as they are, and gives a packet of this kind to the very function that its workers call, with
//! the tables that they have. Control adds what the kernel underneath says.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::control::RouteTarget;
use crate::types::{MacAddr, Vni};

/// A packet that may come by a port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TracePacket {
    /// The port that it comes by.
    pub from_port: String,
    /// Its source; in a tunnel that of the packet inside, as of all that follows.
    pub source: IpAddr,
    /// Its destination.
    pub destination: IpAddr,
    /// Number of its protocol.
    pub protocol: u8,
    /// Source port of TCP and UDP.
    #[serde(default)]
    pub source_port: u16,
    /// Destination port of TCP and UDP.
    #[serde(default)]
    pub destination_port: u16,
    /// Bytes of the IP packet. TCP over the MTU of the port is a super-frame, whose segments are as
    /// long as that MTU lets them be.
    pub size: u32,
    /// Time to live, or hop limit.
    pub hop_limit: u8,
    /// Whether IPv4 must not fragment it.
    #[serde(default)]
    pub dont_fragment: bool,
    /// The tunnel that it comes in, by an uplink.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tunnel: Option<InTunnel>,
}

/// The tunnel that a packet comes in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InTunnel {
    /// The VXLAN network identifier.
    pub vni: Vni,
    /// Who sends it on the underlay.
    pub source: IpAddr,
    /// To whom; control fills in this node's underlay address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub destination: Option<IpAddr>,
}

/// What would happen to a packet in the dataplane.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trace {
    /// `pod` or `uplink`: what the port that it comes by is.
    pub role: String,
    /// Where the program on that port runs: `tcx`, `native` or `generic`; `none` while there is none.
    pub program: String,
    /// What is asked on its way, in order. The last one decides.
    pub steps: Vec<Step>,
    /// The route that it would take, if it gets so far.
    pub route: Option<TracedRoute>,
    /// How it leaves, if it does.
    pub sending: Option<Sending>,
    /// What becomes of it.
    pub verdict: Verdict,
}

/// One question on a packet's way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// Who asks it.
    pub at: At,
    /// What is asked, in a word or two.
    pub rule: String,
    /// What was found.
    pub found: String,
}

/// Who has the packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum At {
    /// The program on the port.
    Program,
    /// The worker.
    Worker,
}

/// The route of a packet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TracedRoute {
    /// Its prefix.
    pub prefix: IpNet,
    /// By whom.
    pub via: RouteTarget,
    /// Of several next hops the one that this flow has.
    pub member: Option<RouteTarget>,
    /// Hash of the flow, which chooses among several next hops, and the source port of a tunnel.
    pub flow_hash: u32,
    /// Largest IP packet in bytes that the route carries; `None` while its next hop is not resolved.
    pub mtu: Option<u16>,
}

/// How a packet leaves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sending {
    /// The port that it leaves by.
    pub interface: String,
    /// Whom it is sent to on that link.
    pub mac: MacAddr,
    /// The tunnel that it is put into.
    pub tunnel: Option<OutTunnel>,
    /// Largest IP packet in bytes that may leave: of what the route, the port that it came by and what
    /// was overheard of the path allow.
    pub largest: u16,
    /// Into how many segments it is to be cut, here or behind; 1: not at all.
    pub segments: u32,
    /// Bytes of the IP packet of each of them, but the last.
    pub segment_bytes: u32,
    /// By which engine: `tap`, or `af-packet`.
    pub engine: String,
}

/// The tunnel that a packet is put into.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutTunnel {
    /// The VXLAN network identifier.
    pub vni: Vni,
    /// This node's address.
    pub source: IpAddr,
    /// The other node's.
    pub destination: IpAddr,
    /// UDP source port.
    pub source_port: u16,
    /// UDP destination port.
    pub destination_port: u16,
}

/// What becomes of a packet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Verdict {
    /// It is sent, as [`Trace::sending`] says.
    Sent,
    /// A worker drops it.
    Dropped {
        /// Why.
        #[serde(flatten)]
        why: Why,
        /// Whether its sender is told so by ICMP.
        answered: bool,
    },
    /// The program on the port drops it.
    Refused(Why),
    /// The program on the port leaves it to the kernel.
    Kernel(Why),
}

/// A reason, as `podway explain` tells it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Why {
    /// Its stable name.
    pub reason: String,
    /// What happened.
    pub meaning: String,
    /// What an operator does about it.
    pub remedy: String,
}

impl From<crate::reasons::Explanation> for Why {
    fn from(reason: crate::reasons::Explanation) -> Self {
        Self {
            reason: reason.name.to_owned(),
            meaning: reason.meaning.to_owned(),
            remedy: reason.remedy.to_owned(),
        }
    }
}

/// What would happen to a packet, as control tells it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TraceAnswer {
    /// The packet, with all that was filled in.
    pub packet: TracePacket,
    /// What the dataplane says.
    #[serde(flatten)]
    pub trace: Trace,
    /// The node whose underlay address the tunnel that it comes in has; `None` when it comes in none, or
    /// from nobody that is known.
    pub from_node: Option<String>,
    /// What the kernel would do, if it has the packet.
    pub kernel: Option<KernelPart>,
}

/// What the kernel would do with a packet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KernelPart {
    /// The packet's destination.
    pub address: IpAddr,
    /// Whether that is this node's own.
    pub local: bool,
    /// The way there; `None` when there is none, or when it is this node's own.
    pub way: Option<KernelWay>,
    /// Whether that is the way that Podway's own route says; `None` where Podway has none.
    pub agrees: Option<bool>,
}

/// A way by the kernel's routes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KernelWay {
    /// The link.
    pub interface: String,
    /// The router on it, if there is one.
    pub gateway: Option<IpAddr>,
    /// The MTU in bytes that the route was given or the kernel has learned, if any.
    pub mtu: Option<u32>,
}
