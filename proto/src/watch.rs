//! Watching packets on their way through the dataplane, over `dataplane.sock`.
//!
//! `watch-begin` arms a watch, `watch-read` brings what it has recorded since the last one, and
//! `watch-end` disarms it: what it has recorded until then can still be read. The end of the connection
//! disarms it as well. Nobody waits for a reader: what finds no room is counted in `lost`, and the
//! packets go their way.
//!
//! Addresses and ports of a filter and of a record are those of the pods' packets, inside the tunnel.
//! Only of a packet that dies before its tunnel is off, and inside of which nothing can be read, they
//! are the outer ones.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::control::RouteTarget;
use crate::types::{MacAddr, Vni};

/// Most watches at once.
pub const MAX_WATCHES: usize = 4;
/// Longest filter in bytes.
pub const MAX_FILTER: usize = 4096;
/// Most bytes of a packet that are kept.
pub const MAX_SNAP: u32 = 65_535 + 14 + 70;

/// What is to be watched.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WatchSpec {
    /// Which packets, in the language of docs/watching.md; all when it is empty.
    #[serde(default)]
    pub filter: String,
    /// Where on their path.
    pub points: BTreeSet<WatchPoint>,
    /// Bytes of each packet that are kept; 0: only the facts.
    #[serde(default)]
    pub snap: u32,
    /// One of so many packets that match.
    #[serde(default = "every")]
    pub sample: u32,
    /// Packets after which the watch ends, each with all of its records.
    #[serde(default)]
    pub limit: Option<u64>,
}

fn every() -> u32 {
    1
}

/// Where on its path through the dataplane a packet is recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WatchPoint {
    /// As a worker has received it.
    Ingress,
    /// As it was inside the tunnel that it came by.
    Decap,
    /// As it leaves, with the outer headers of the tunnel that it goes into.
    Egress,
    /// As it was when it was dropped.
    Dropped,
}

impl WatchPoint {
    /// All points, in the packet's order.
    pub const ALL: [Self; 4] = [Self::Ingress, Self::Decap, Self::Egress, Self::Dropped];

    /// Its name, as in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ingress => "ingress",
            Self::Decap => "decap",
            Self::Egress => "egress",
            Self::Dropped => "dropped",
        }
    }
}

impl fmt::Display for WatchPoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// There is no such point.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is no point; there are ingress, decap, egress and dropped")]
pub struct BadPoint(String);

impl FromStr for WatchPoint {
    type Err = BadPoint;

    fn from_str(text: &str) -> Result<Self, BadPoint> {
        let mut all = Self::ALL.into_iter();
        all.find(|point| point.name() == text)
            .ok_or_else(|| BadPoint(text.to_owned()))
    }
}

/// What was recorded since the last time.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Watched {
    /// In order of time for each worker. There may be more: read again until there are none.
    pub records: Vec<WatchRecord>,
    /// Records since the beginning that found no room.
    pub lost: u64,
    /// Whether nothing more will come: the limit is reached or the watch ended, and all was read.
    pub done: bool,
}

/// A packet at one point.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WatchRecord {
    /// When: nanoseconds since 1970 (CLOCK_REALTIME). All records of a packet that is sent have the
    /// time at which its fate was decided.
    pub time: u64,
    /// The worker that had the packet.
    pub worker: u16,
    /// The packet's number among those of the worker and the watch: its records have the same.
    pub packet: u64,
    /// Where.
    pub point: WatchPoint,
    /// The port that the packet came by; `None` when it was made here, is one of a message that the
    /// kernel did not take, or the port is detached.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub came_by: Option<String>,
    /// Its size in bytes there, Ethernet header included. Of a message that the kernel did not take:
    /// the message's.
    pub length: u32,
    /// Payload bytes of each segment of a super-frame, where its sender's kernel tells.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub segment: Option<u16>,
    /// Frames that it lay in.
    pub frames: u16,
    /// Whose it is; `None` when no IP header can be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub flow: Option<WatchFlow>,
    /// Of the tunnel that it came by.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vni: Option<Vni>,
    /// Who has sent that tunnel on the underlay; at `ingress` and `decap`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tunnel_from: Option<WatchSender>,
    /// The route to its destination, if it got so far that one was taken: as the tables are when the
    /// record is read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub route: Option<WatchRoute>,
    /// Where it leaves to, as was decided before it was sent or dropped; `None` before that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_hop: Option<WatchNextHop>,
    /// The name of the reason, if it was dropped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Its first bytes from the Ethernet header on, in hexadecimal.
    #[serde(default, skip_serializing_if = "Vec::is_empty", with = "crate::hex")]
    pub bytes: Vec<u8>,
}

impl WatchRecord {
    /// The port at this point: where it came by, or leaves.
    pub fn interface(&self) -> Option<&str> {
        let leaves_by = self
            .next_hop
            .as_ref()
            .and_then(|to| to.interface.as_deref());
        match (self.point, self.came_by.as_deref()) {
            (WatchPoint::Egress, _) | (WatchPoint::Dropped, None) => leaves_by,
            (_, came_by) => came_by,
        }
    }
}

/// Addresses, protocol and ports of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct WatchFlow {
    /// Source address.
    pub source: IpAddr,
    /// Destination address.
    pub destination: IpAddr,
    /// Number of the protocol that the IP header names.
    pub protocol: u8,
    /// Source port of TCP and UDP; `None` where there is none, as in a fragment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_port: Option<u16>,
    /// Destination port of TCP and UDP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub destination_port: Option<u16>,
}

/// Who has sent a tunnel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WatchSender {
    /// Its address on the underlay.
    pub address: IpAddr,
    /// The node with that address; `None` when there is no such node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
}

/// A route that a packet took: the longest prefix with its destination.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WatchRoute {
    /// The prefix; of a pod of this node its address.
    pub prefix: IpNet,
    /// By whom. Which of several next hops it was is in the packet's next hop.
    pub via: RouteTarget,
}

/// Where a packet leaves to.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WatchNextHop {
    /// What is there; `None` for a message that the kernel did not take.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<WatchNextHopKind>,
    /// The port that it leaves by; `None` when that is detached.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<String>,
    /// MAC of the next station on the link.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<MacAddr>,
    /// Of a tunnel the far end; natively the router or node on the link.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<IpAddr>,
    /// The node with that address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// Of the tunnel that it goes into.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vni: Option<Vni>,
    /// Largest IP packet in bytes that the path takes; what is longer is cut.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u16>,
}

/// What is at the other end of a next hop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WatchNextHopKind {
    /// A pod of this node.
    Pod,
    /// A node or router, packets as they are.
    Native,
    /// A node behind a tunnel.
    Vxlan,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_are_named_as_in_json() {
        for point in WatchPoint::ALL {
            assert_eq!(serde_json::to_value(point).unwrap(), point.name());
            assert_eq!(point.name().parse(), Ok(point));
        }
        let error = "out".parse::<WatchPoint>().unwrap_err();
        assert_eq!(
            error.to_string(),
            "'out' is no point; there are ingress, decap, egress and dropped"
        );
    }
}
