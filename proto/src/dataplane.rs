//! Requests and responses of `dataplane.sock`.
//!
//! After `hello`, a control process that wants the dataplane to hold exactly its facts sends
//! `sync-begin`, any number of `apply`, and `sync-end`: what was there before and was not named
//! in between is then removed. Afterwards it sends `apply` for each change, and `digest` now and
//! then, to see that what it told is what is held. The facts stay when the connection closes: a
//! restart of control costs no packet.
//!
//! Who watches packets connects for that ([`crate::watch`]).

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::ErrorBody;
use crate::digest::Digests;
use crate::perf::Perf;
use crate::reasons::Place;
use crate::trace::{Trace, TracePacket};
use crate::types::{LocalNode, Neighbor, Node, Port, Route};
use crate::watch::{WatchSpec, Watched};

/// What a client may ask of the dataplane.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Request {
    /// First request of a connection. Answer: [`Response::Hello`].
    Hello {
        /// The client's [`crate::VERSION`].
        version: u32,
    },
    /// Marks every fact as not yet named. Answer: [`Response::Done`].
    SyncBegin,
    /// Adds, replaces or removes facts. Answer: [`Response::Applied`].
    Apply {
        /// The changes, applied in order; a refused one does not stop those after it.
        changes: Vec<Change>,
    },
    /// Removes every fact that no `apply` has named since `sync-begin`. Answer:
    /// [`Response::Done`].
    SyncEnd,
    /// What the dataplane is. Answer: [`Response::Status`].
    Status,
    /// What it has counted. Answer: [`Response::Counters`].
    Counters,
    /// What it has dropped or lost, and the programs on the ports have refused. Answer:
    /// [`Response::Drops`].
    Drops,
    /// Which facts it holds, in short. Answer: [`Response::Digest`].
    Digest,
    /// Arms a watch, which is the connection's own. Answer: [`Response::WatchBegun`].
    WatchBegin(WatchSpec),
    /// What it has recorded since the last time. Answer: [`Response::Watched`].
    WatchRead,
    /// Disarms it; what it has recorded may still be read. Answer: [`Response::Done`].
    WatchEnd,
    /// What would happen to a packet. Answer: [`Response::TracePacket`].
    TracePacket(TracePacket),
    /// What its workers spend their time on. Answer: [`Response::Perf`].
    Perf,
    /// Begins that anew. Answer: [`Response::Done`].
    PerfReset,
    /// Changes what it logs until it ends. Answer: [`Response::Done`].
    Log {
        /// A level, or directives.
        directives: String,
    },
}

impl Request {
    /// Whether it leaves everything as it is, so that whoever can connect may ask it. What is not
    /// named here is a change; so is a watch, which costs workers time and shows what pods say.
    pub fn only_asks(&self) -> bool {
        matches!(
            self,
            Self::Hello { .. }
                | Self::Status
                | Self::Counters
                | Self::Drops
                | Self::Digest
                | Self::TracePacket(_)
        )
    }
}

/// One change of the facts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "change", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Change {
    /// Sets what concerns the node as a whole.
    SetLocal(LocalNode),
    /// Attaches a port, or replaces the role of an attached one.
    SetPort(Port),
    /// Detaches a port.
    DelPort {
        /// Its interface.
        interface: String,
    },
    /// Adds or replaces a remote node.
    SetNode(Node),
    /// Forgets a remote node; its routes become the kernel's.
    DelNode {
        /// Its name.
        name: String,
    },
    /// Adds or replaces a route.
    SetRoute(Route),
    /// Withdraws a route.
    DelRoute {
        /// Its prefix.
        prefix: IpNet,
    },
    /// Adds or replaces a resolved neighbour.
    SetNeighbor(Neighbor),
    /// Forgets a neighbour that is no longer resolved.
    DelNeighbor {
        /// Its link.
        interface: String,
        /// Its address.
        address: IpAddr,
    },
}

/// What the dataplane answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "response", rename_all = "kebab-case")]
pub enum Response {
    /// To [`Request::Hello`].
    Hello {
        /// The dataplane's [`crate::VERSION`].
        version: u32,
        /// Process id of the dataplane.
        pid: u32,
    },
    /// The request was carried out and has nothing to tell.
    Done,
    /// To [`Request::Apply`].
    Applied {
        /// The refused changes; empty when all were taken.
        refused: Vec<Refused>,
    },
    /// To [`Request::Status`].
    Status(Status),
    /// To [`Request::Counters`].
    Counters(Counters),
    /// To [`Request::Drops`].
    Drops(Drops),
    /// To [`Request::Digest`].
    Digest(Digests),
    /// To [`Request::WatchBegin`]: from now on packets are recorded.
    WatchBegun,
    /// To [`Request::WatchRead`].
    Watched(Watched),
    /// To [`Request::TracePacket`].
    TracePacket(Box<Trace>),
    /// To [`Request::Perf`].
    Perf(Perf),
    /// The request was refused as a whole; nothing has changed.
    Error(ErrorBody),
}

/// A change that was refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refused {
    /// Position in the request's list, from 0. Behind the last one: none of the changes, but the
    /// fast path as a whole, which stays closed until the dataplane is started anew.
    pub index: usize,
    /// Why.
    pub error: ErrorBody,
}

/// What the dataplane is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// Program version.
    pub version: String,
    /// Process id.
    pub pid: u32,
    /// Seconds since start.
    pub uptime_seconds: u64,
    /// What it logs: a level, or directives.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub log: String,
    /// Whether the XDP programs redirect (the gate of design section 7).
    pub gate_open: bool,
    /// Wait mode: `spin`, `adaptive` or `sleep`.
    pub wait: String,
    /// The workers.
    pub workers: Vec<WorkerStatus>,
    /// The ports, by interface name.
    pub ports: Vec<PortStatus>,
    /// The tables.
    pub tables: TableStatus,
}

/// One worker.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct WorkerStatus {
    /// Its number, from 0.
    pub worker: u16,
    /// The CPU it is pinned to; `None` when it is not.
    pub cpu: Option<usize>,
    /// Seconds spent forwarding since start, so that CPU use means something.
    pub busy_seconds: f64,
    /// Frames made for this worker.
    pub frames: u64,
}

/// One port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortStatus {
    /// Interface name.
    pub interface: String,
    /// Interface index.
    pub ifindex: u32,
    /// `pod` or `uplink`.
    pub role: String,
    /// MTU of the interface in bytes.
    pub mtu: u16,
    /// Where the program runs: `tcx`, or as XDP `native` or `generic`; `none` while there is none.
    pub xdp_mode: String,
    /// Why not a better one, when there is one.
    pub xdp_mode_reason: Option<String>,
    /// Ingress engine, for example `af-xdp copy`.
    pub ingress: String,
    /// Why not a better one, when there is one.
    pub ingress_reason: Option<String>,
    /// Egress engine, for example `af-packet gso`.
    pub egress: String,
    /// Which worker serves which queue: index is the queue.
    pub queue_workers: Vec<u16>,
    /// The last packet that came by this port and was left to the kernel because its route carries
    /// less, as `xdp_passed` counts under `oversize`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oversize: Option<Oversize>,
}

/// A packet that was too large; in a tunnel the one inside.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Oversize {
    /// Its source.
    pub source: IpAddr,
    /// Its destination.
    pub destination: IpAddr,
    /// Bytes of the IP packet.
    pub bytes: u32,
    /// Bytes that the route carries.
    pub mtu: u16,
}

/// Sizes of the tables.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableStatus {
    /// Number of the snapshot that was published last.
    pub generation: u64,
    /// Number of the oldest snapshot that a worker may still read.
    pub adopted: u64,
    /// Routes, those to local pods included.
    pub routes: u64,
    /// Routes whose next hop is not resolved; their packets are the kernel's.
    pub unresolved: u64,
    /// Remote nodes.
    pub nodes: u64,
    /// Resolved neighbours.
    pub neighbors: u64,
}

/// What was counted since start. Counters of detached ports stay in the sums.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counters {
    /// By interface.
    pub ports: BTreeMap<String, PortCounters>,
    /// By worker.
    pub workers: Vec<WorkerCounters>,
    /// Dropped packets by reason name; every reason is listed, also at 0.
    pub drops: BTreeMap<String, u64>,
    /// Help text of each drop reason.
    pub drop_help: BTreeMap<String, String>,
    /// Packets that were redirected and lost before a worker had them, by the name of the cause; every
    /// cause is listed, also at 0. Together they are [`Books::xdp_lost`].
    #[serde(default)]
    pub losses: BTreeMap<String, u64>,
    /// The two books.
    pub books: Books,
}

/// What was dropped, and what was not taken, since the dataplane was started.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Drops {
    /// Every reason to drop, to lose and to refuse, also at 0, in the order of their counters.
    pub drops: Vec<DropCount>,
    /// What the programs on the ports have left to the kernel, which may have no use for it: every cause,
    /// also at 0.
    #[serde(default)]
    pub passed: Vec<PassCount>,
}

/// What was left to the kernel for one cause. Fields are those of [`DropCount`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PassCount {
    /// The cause's stable name.
    pub cause: String,
    /// Where on their path the packets were.
    #[serde(default)]
    pub places: Vec<Place>,
    /// Packets.
    pub packets: u64,
    /// Packets per second in the last ten seconds, or since the dataplane was started.
    #[serde(default)]
    pub packets_per_second: f64,
    /// Packets in the last minute.
    #[serde(default)]
    pub last_minute: u64,
    /// The same packets by the port that they came by.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub interfaces: BTreeMap<String, u64>,
    /// The last of them.
    #[serde(default)]
    pub last: Option<DroppedPacket>,
    /// What they are.
    pub meaning: String,
    /// What an operator does about it, if the kernel drops them.
    pub remedy: String,
}

/// What died of one reason since the dataplane was started.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DropCount {
    /// The reason's stable name.
    pub reason: String,
    /// Where on their path the packets were.
    pub places: Vec<Place>,
    /// Packets.
    pub packets: u64,
    /// Packets per second in the last ten seconds, or since the dataplane was started.
    pub packets_per_second: f64,
    /// Packets in the last minute.
    #[serde(default)]
    pub last_minute: u64,
    /// The same packets by interface, without zeros: by the port that they came by, or the TAP that had no
    /// room for them. Empty for what workers drop; ports that were detached since are left out.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub interfaces: BTreeMap<String, u64>,
    /// The last of them, or one of the same 10 milliseconds. `None` where there was none, and where the
    /// kernel alone has seen it, as it lost it on the way to a worker.
    pub last: Option<DroppedPacket>,
    /// What happened.
    pub meaning: String,
    /// What an operator does about it.
    pub remedy: String,
}

/// A packet that was dropped, or not taken, as it was at that place: in the tunnel that it came by until that is off,
/// and at `send` in the one that it was to leave by.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DroppedPacket {
    /// How long ago.
    pub seconds_ago: u64,
    /// The port that it came by; of what was dropped at `send`, the one that it was to leave by.
    /// `None` when that is detached.
    pub interface: Option<String>,
    /// Its size in bytes, Ethernet header included.
    pub bytes: u32,
    /// Source address; `None` where no IP header can be read. Of ARP, the sender's.
    pub source: Option<IpAddr>,
    /// Destination address. Of ARP, the one that is asked for or told.
    pub destination: Option<IpAddr>,
    /// Number of the protocol that the IP header names. `None` beside addresses: it is ARP.
    pub protocol: Option<u8>,
    /// Source port of TCP and UDP; `None` where none can be read.
    pub source_port: Option<u16>,
    /// Destination port of TCP and UDP.
    pub destination_port: Option<u16>,
    /// What is inside, when it is a tunnel's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inside: Option<TunneledPacket>,
    /// Its first bytes from the Ethernet header on, up to 128, in hexadecimal; no payload where its headers
    /// can be read, and 64 bytes at most where they cannot.
    pub header: String,
}

/// A packet inside a VXLAN tunnel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TunneledPacket {
    /// The tunnel's network.
    pub vni: u32,
    /// As of [`DroppedPacket`].
    pub source: Option<IpAddr>,
    /// As of [`DroppedPacket`].
    pub destination: Option<IpAddr>,
    /// As of [`DroppedPacket`].
    pub protocol: Option<u8>,
    /// As of [`DroppedPacket`].
    pub source_port: Option<u16>,
    /// As of [`DroppedPacket`].
    pub destination_port: Option<u16>,
}

/// Counters of one port, summed over workers and CPUs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortCounters {
    /// Packets that the XDP program redirected to us.
    pub xdp_redirected: u64,
    /// Packets that the XDP program left to the kernel, by cause.
    pub xdp_passed: BTreeMap<String, u64>,
    /// Packets that the XDP program refused, by cause: neither we nor the kernel have them.
    #[serde(default)]
    pub xdp_refused: BTreeMap<String, u64>,
    /// Packets received, a super-frame counting one.
    pub rx_packets: u64,
    /// Bytes received, Ethernet header included.
    pub rx_bytes: u64,
    /// Frames received: a super-frame counts each of its chunks.
    pub rx_frames: u64,
    /// Redirected packets that the kernel lost for want of a posted frame.
    pub rx_dropped: u64,
    /// Redirected packets that were lost because the worker's packet ring or the rx ring was full.
    pub rx_ring_full: u64,
    /// Packets that left by this port: received on any, or made here.
    pub tx_packets: u64,
    /// Bytes handed to the kernel by this port, headers that we added included.
    pub tx_bytes: u64,
    /// Messages handed to the kernel; a super-frame is one.
    pub tx_messages: u64,
    /// Received packets that left inside another packet's message.
    pub joined: u64,
    /// Segments that received super-frames were cut to in user space.
    pub cut: u64,
    /// ICMP errors that the dataplane made about packets that came by this port.
    #[serde(default)]
    pub icmp_sent: u64,
    /// ICMP errors that it did not make, because it had made so many.
    #[serde(default)]
    pub icmp_suppressed: u64,
}

/// Most packets of the bursts that one number of [`WorkerCounters::burst_sizes`] is of.
pub const BURST_SIZES: [u64; 9] = [1, 2, 4, 8, 16, 32, 64, 128, 256];

/// Counters of one worker.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkerCounters {
    /// Bursts that had at least one packet.
    pub bursts: u64,
    /// Bursts by how many packets they had: up to as many as [`BURST_SIZES`] says, and more than the one
    /// before says.
    #[serde(default)]
    pub burst_sizes: Vec<u64>,
    /// Packets received, a super-frame counting one.
    #[serde(default)]
    pub packets: u64,
    /// Rounds of the loop.
    pub rounds: u64,
    /// Times the worker blocked or dozed.
    pub sleeps: u64,
    /// System calls to receive: by a TAP one for each packet, and one more when there is none left.
    #[serde(default)]
    pub rx_calls: u64,
    /// System calls to send.
    pub tx_calls: u64,
    /// System calls to find ready queues, and to wait for one.
    #[serde(default)]
    pub wait_calls: u64,
    /// Nanoseconds spent forwarding.
    pub busy_nanoseconds: u64,
}

/// The two books of design section 3.5, as of the last burst of each worker. They balance when
/// the dataplane is at rest.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Books {
    /// Frames made.
    pub frames_made: u64,
    /// Frames in the workers' pools.
    pub frames_pooled: u64,
    /// Frames posted to the kernel: on fill rings, or filled and not yet taken from rx rings.
    pub frames_posted: u64,
    /// Frames held elsewhere: in bursts, in tx rings.
    pub frames_held: u64,
    /// Packets received.
    pub packets_received: u64,
    /// Packets made by the dataplane itself: ICMP errors.
    #[serde(default)]
    pub packets_made: u64,
    /// Packets sent, each that was received or made counting once.
    pub packets_sent: u64,
    /// Packets dropped, all reasons.
    pub packets_dropped: u64,
    /// Packets redirected by the XDP programs.
    pub xdp_redirected: u64,
    /// Packets redirected and lost before we received them.
    pub xdp_lost: u64,
}

impl Books {
    /// What does not balance, one sentence each; empty when both books do.
    pub fn imbalances(&self) -> Vec<String> {
        let mut found = Vec::new();
        let mut check = |name: &str, left: u64, right: u64| {
            if left != right {
                found.push(format!("{name}: {left} is not {right}"));
            }
        };
        check(
            "frames made = pooled + posted + held",
            self.frames_made,
            self.frames_pooled + self.frames_posted + self.frames_held,
        );
        check(
            "packets received + made = sent + dropped",
            self.packets_received + self.packets_made,
            self.packets_sent + self.packets_dropped,
        );
        check(
            "redirected = received + lost before receipt",
            self.xdp_redirected,
            self.packets_received + self.xdp_lost,
        );
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn balanced_books_have_no_imbalance() {
        let books = Books {
            frames_made: 10,
            frames_pooled: 3,
            frames_posted: 6,
            frames_held: 1,
            packets_received: 7,
            packets_made: 1,
            packets_sent: 6,
            packets_dropped: 2,
            xdp_redirected: 9,
            xdp_lost: 2,
        };
        assert_eq!(books.imbalances(), Vec::<String>::new());
        for wrong in [
            Books {
                frames_held: 0,
                ..books.clone()
            },
            Books {
                packets_dropped: 1,
                ..books.clone()
            },
            Books {
                packets_made: 0,
                ..books.clone()
            },
            Books {
                xdp_lost: 3,
                ..books.clone()
            },
        ] {
            assert_eq!(wrong.imbalances().len(), 1, "{wrong:?}");
        }
    }
}
