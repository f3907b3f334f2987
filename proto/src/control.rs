//! Requests and responses of `control.sock`.
//!
//! The client says what should be; the control process checks it against all else that it was
//! told, writes it to its state file, brings kernel and dataplane in line, and only then answers.
//! A refused request leaves everything as it was. Root and the daemon's own user may ask for
//! changes; others who can connect may ask how things are.

use std::net::{IpAddr, Ipv6Addr};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::dataplane;
use crate::entries::{Difference, Entries, RefusedEntry};
use crate::fnv::Fnv1a;
use crate::perf::Perf;
use crate::trace::{TraceAnswer, TracePacket};
#[cfg(doc)]
use crate::types::check_multipath;
use crate::types::{MacAddr, Mode, Path, Via, Vni};
use crate::{ErrorBody, ErrorCode};

/// What a client may ask of the control process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Request {
    /// First request of a connection. Answer: [`Response::Hello`].
    Hello {
        /// The client's [`crate::VERSION`].
        version: u32,
    },
    /// How this node is. Answer: [`Response::Status`].
    Status,
    /// Adds a node of the cluster or replaces all that was said of it. The entry that bears this
    /// node's own name describes this node, so that every node can be told the same list. Answer:
    /// [`Response::Done`].
    NodeSet(NodeSpec),
    /// Forgets a node with its PodCIDRs. Refused while routes that were added name it. Answer:
    /// [`Response::Done`].
    NodeDel {
        /// The node's name.
        name: String,
    },
    /// The nodes. Answer: [`Response::Nodes`].
    NodeList,
    /// Adds a route; one to the same prefix by another way is in the way. Answer:
    /// [`Response::Done`].
    RouteAdd(RouteSpec),
    /// Adds a route or changes the way of the one to the same prefix. Answer: [`Response::Done`].
    RouteReplace(RouteSpec),
    /// Withdraws a route that was added. Answer: [`Response::Done`].
    RouteDel {
        /// The route's prefix.
        prefix: IpNet,
    },
    /// All routes, those of PodCIDRs and of local pods included. Answer: [`Response::Routes`].
    RouteShow,
    /// Where packets to an address go. Answer: [`Response::RouteGet`].
    RouteGet {
        /// The destination.
        address: IpAddr,
    },
    /// Makes an interface a port. Answer: [`Response::Done`].
    PortAdd(PortSpec),
    /// Leaves an interface to the kernel. Answer: [`Response::Done`].
    PortDel {
        /// The interface.
        interface: String,
    },
    /// The ports. Answer: [`Response::Ports`].
    PortShow,
    /// What the dataplane has counted. Answer: [`Response::Counters`].
    Counters,
    /// What the dataplane has dropped, and the programs on the ports have refused. Answer:
    /// [`Response::Drops`].
    Drops,
    /// What would happen to a packet. Answer: [`Response::TracePacket`].
    TracePacket(TracePacket),
    /// What the dataplane's workers spend their time on. Answer: [`Response::Perf`].
    Perf,
    /// Begins that anew. Answer: [`Response::Done`].
    PerfReset,
    /// Changes what the daemons log, until they end or it is changed again. Answer: [`Response::Done`].
    Log {
        /// A level, or directives such as `warn,podway_control::health=debug`.
        directives: String,
        /// Which daemon; both, or neither of them if one cannot, when it is not told.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        daemon: Option<Daemon>,
    },
    /// All that was told. Answer: [`Response::Entries`].
    Export,
    /// Begins a bulk: entries by the thousand that come into force together or not at all. One that
    /// this connection has begun is forgotten. One client has a bulk under way at a time; it loses
    /// it when it says nothing of it for ten seconds and another begins one. Answer:
    /// [`Response::Done`].
    BulkBegin {
        /// Whether what is not in the bulk is removed. Otherwise it stays, and an entry of the bulk
        /// takes the place of the one of the same name, prefix or interface.
        replace: bool,
        /// Whether nothing is to be changed in the end, only answered.
        dry_run: bool,
    },
    /// Entries of the bulk that was begun on this connection, in any order, up to
    /// [`MAX_BULK`](crate::entries::MAX_BULK) bytes of lines in all. Nothing of them is looked at
    /// before the end. Answer: [`Response::Done`].
    BulkPart(Entries),
    /// Puts the bulk into force, all of it or nothing. Answer: [`Response::BulkDone`] or
    /// [`Response::BulkRefused`].
    BulkEnd,
}

impl Request {
    /// Its name, as in JSON.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Hello { .. } => "hello",
            Self::Status => "status",
            Self::NodeSet(_) => "node-set",
            Self::NodeDel { .. } => "node-del",
            Self::NodeList => "node-list",
            Self::RouteAdd(_) => "route-add",
            Self::RouteReplace(_) => "route-replace",
            Self::RouteDel { .. } => "route-del",
            Self::RouteShow => "route-show",
            Self::RouteGet { .. } => "route-get",
            Self::PortAdd(_) => "port-add",
            Self::PortDel { .. } => "port-del",
            Self::PortShow => "port-show",
            Self::Counters => "counters",
            Self::Drops => "drops",
            Self::TracePacket(_) => "trace-packet",
            Self::Perf => "perf",
            Self::PerfReset => "perf-reset",
            Self::Log { .. } => "log",
            Self::Export => "export",
            Self::BulkBegin { .. } => "bulk-begin",
            Self::BulkPart(_) => "bulk-part",
            Self::BulkEnd => "bulk-end",
        }
    }

    /// Whether it leaves everything as it is, so that whoever can connect may ask it. What is not
    /// named here is a change; a bulk is one even if it is only tried, since one client at a time
    /// has one under way.
    pub fn only_asks(&self) -> bool {
        matches!(
            self,
            Self::Hello { .. }
                | Self::Status
                | Self::NodeList
                | Self::RouteShow
                | Self::RouteGet { .. }
                | Self::PortShow
                | Self::Counters
                | Self::Drops
                | Self::TracePacket(_)
                | Self::Export
        )
    }
}

/// One of the two daemons of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Daemon {
    /// `podway-control`.
    Control,
    /// `podway-dataplane`.
    Dataplane,
}

/// A node, as it is told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeSpec {
    /// Its name, unique in the cluster.
    pub name: String,
    /// Its address on the underlay: the remote end of tunnels.
    pub underlay: IpAddr,
    /// Its IPv6 address beside an IPv4 one: the router to its IPv6 PodCIDRs natively, and nothing
    /// else.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub underlay6: Option<Ipv6Addr>,
    /// What its pods' addresses are taken from; no two nodes' may overlap. None where routes to
    /// them are told by other means.
    pub pod_cidrs: Vec<IpNet>,
    /// MAC of its VTEP. When it is not told it is made from the underlay address, as a node that
    /// is not told its own does: see [`derived_vtep_mac`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vtep_mac: Option<MacAddr>,
    /// How packets are sent to it; the configuration's `tunnel` says it otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<Mode>,
}

impl NodeSpec {
    /// Its addresses on the underlay.
    pub fn underlays(&self) -> impl Iterator<Item = IpAddr> {
        let second = self.underlay6.map(IpAddr::from);
        std::iter::once(self.underlay).chain(second)
    }

    /// The address of these that is the router to `prefix` natively.
    pub fn router_to(&self, prefix: IpNet) -> IpAddr {
        match (prefix, self.underlay6) {
            (IpNet::V6(_), Some(second)) => second.into(),
            _ => self.underlay,
        }
    }
}

/// A route, as it is told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RouteSpec {
    /// What is reached.
    pub prefix: IpNet,
    /// By whom.
    pub via: ViaSpec,
}

/// Who takes the packets of a route, as it is told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum ViaSpec {
    /// A remote node, in its mode.
    Node {
        /// The node's name.
        node: String,
        /// The VXLAN network identifier, one of the configuration's; its `vni` if it is not told.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        vni: Option<Vni>,
    },
    /// A router on a link of this node, natively.
    Gateway {
        /// The router's address.
        address: IpAddr,
        /// The uplink that it is on; the kernel's route to the address says it otherwise.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        interface: Option<String>,
    },
    /// Several of these, each for its share of the flows; see [`check_multipath`].
    Multipath {
        /// The next hops.
        members: Vec<ViaSpec>,
    },
}

impl ViaSpec {
    /// The next hops: itself, or each that a multipath route has.
    pub fn members(&self) -> &[Self] {
        match self {
            Self::Multipath { members } => members,
            one => std::slice::from_ref(one),
        }
    }

    /// Whether it has several next hops.
    pub fn is_multipath(&self) -> bool {
        matches!(self, Self::Multipath { .. })
    }
}

/// A port, as it is told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PortSpec {
    /// Interface name in the node's network namespace.
    pub interface: String,
    /// What is behind the interface.
    pub role: PortRoleSpec,
}

/// What is behind a port, as it is told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum PortRoleSpec {
    /// The node's end of a pod's veth.
    Pod {
        /// The pod's addresses; the only sources that it may send from.
        addresses: Vec<IpAddr>,
        /// MAC of the pod's end; when it is not told, the kernel asks the pod for it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        mac: Option<MacAddr>,
        /// Whether it may send from any other address as well.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        any_source: bool,
    },
    /// An interface towards other nodes.
    Uplink {
        /// Whether packets may arrive with unfinished (partial) inner L4 checksums; when it is
        /// not told, a veth may carry them and nothing else.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        accept_partial_checksums: Option<bool>,
    },
}

/// What the control process answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "response", rename_all = "kebab-case")]
pub enum Response {
    /// To [`Request::Hello`].
    Hello {
        /// The control process's [`crate::VERSION`].
        version: u32,
        /// Its process id.
        pid: u32,
    },
    /// The request was carried out and has nothing to tell.
    Done,
    /// To [`Request::Status`].
    Status(Box<Status>),
    /// To [`Request::NodeList`].
    Nodes {
        /// The nodes by name, this one included.
        nodes: Vec<NodeEntry>,
    },
    /// To [`Request::RouteShow`].
    Routes {
        /// The routes by prefix.
        routes: Vec<RouteEntry>,
    },
    /// To [`Request::RouteGet`].
    RouteGet(RouteAnswer),
    /// To [`Request::PortShow`].
    Ports {
        /// The ports by interface.
        ports: Vec<PortEntry>,
    },
    /// To [`Request::Counters`].
    Counters {
        /// What the dataplane has counted.
        counters: dataplane::Counters,
        /// What of the two books does not balance, one sentence each. While packets flow, packets
        /// on their way show here.
        imbalances: Vec<String>,
    },
    /// To [`Request::Drops`].
    Drops(dataplane::Drops),
    /// To [`Request::TracePacket`].
    TracePacket(Box<TraceAnswer>),
    /// To [`Request::Perf`].
    Perf(Perf),
    /// To [`Request::Export`].
    Entries(Entries),
    /// To [`Request::BulkEnd`]: what has changed, or would have.
    BulkDone(Difference),
    /// To [`Request::BulkEnd`]: nothing has changed.
    BulkRefused {
        /// The entries that stand in the way; up to a thousand.
        refused: Vec<RefusedEntry>,
    },
    /// The request was refused; nothing has changed.
    Error(ErrorBody),
}

/// How a node is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// Version of the control process.
    pub version: String,
    /// Its process id.
    pub pid: u32,
    /// What control logs: a level, or directives.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub log: String,
    /// Name of this node.
    pub node: String,
    /// This node's own PodCIDRs.
    pub pod_cidrs: Vec<IpNet>,
    /// How packets are sent to nodes that were told without a mode.
    pub mode: Mode,
    /// This node's address on the underlay; `None` while the uplink has none.
    pub underlay: Option<IpAddr>,
    /// MAC of this node's VTEP; `None` until the underlay address is known.
    pub vtep_mac: Option<MacAddr>,
    /// The VXLAN network identifier.
    pub vni: Vni,
    /// Further identifiers that tunnels may have.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub also_vnis: Vec<Vni>,
    /// UDP port of VXLAN.
    pub vxlan_port: u16,
    /// The uplink that tunnels leave by; `None` when none was named.
    pub uplink: Option<String>,
    /// MTU of the uplink in bytes; `None` while it does not exist.
    pub uplink_mtu: Option<u32>,
    /// Largest MTU in bytes that the pods' routes may have so that their packets fit each way to another
    /// node, in the tunnel that it may take; `None` while the uplink does not exist.
    pub pod_mtu: Option<u32>,
    /// The node whose path carries less than the uplink and so sets `pod_mtu`, if there is one.
    #[serde(default)]
    pub pod_mtu_by: Option<String>,
    /// The link to the dataplane.
    pub dataplane: DataplaneLink,
    /// Whether the dataplane holds what it was told.
    #[serde(default)]
    pub drift: DriftStatus,
    /// The kernel underneath.
    pub kernel: KernelStatus,
    /// Whether rules of this node translate addresses (NAT), as for services, so that the dataplane
    /// leaves the connections that conntrack translates to the kernel.
    #[serde(default)]
    pub translates: bool,
    /// Whether the kernel may put IPv4 fragments together before it forwards them, as it does for
    /// conntrack (masquerading, rules), so that the dataplane leaves all of them to it.
    #[serde(default)]
    pub defragments: bool,
    /// Which other nodes are reached; `None` when health is switched off.
    pub health: Option<HealthStatus>,
    /// What is missing for all of this to work, one sentence each with the remedy.
    pub hints: Vec<String>,
}

/// The link to the dataplane.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "kebab-case")]
pub enum DataplaneLink {
    /// Nobody listens, or the last attempt failed.
    Disconnected {
        /// What the last attempt said.
        reason: String,
    },
    /// Connected, and not yet told everything: of a new connection all, of an old one what has
    /// changed, or all because it holds something else ([`DriftStatus::found`]).
    Syncing {
        /// As when it is synced.
        #[serde(default)]
        refused: Vec<String>,
        /// As when it is synced.
        #[serde(default)]
        status: Option<Box<dataplane::Status>>,
    },
    /// It holds this node's facts.
    Synced {
        /// Facts that it refused, one sentence each.
        refused: Vec<String>,
        /// What it says of itself; `None` when it did not answer in time.
        status: Option<Box<dataplane::Status>>,
    },
}

impl DataplaneLink {
    /// What the dataplane says of itself, if it does.
    pub fn status(&self) -> Option<&dataplane::Status> {
        match self {
            Self::Disconnected { .. } => None,
            Self::Syncing { status, .. } | Self::Synced { status, .. } => status.as_deref(),
        }
    }
}

/// What the dataplane holds, compared with what it was told. That is done every ten seconds while
/// nothing changes, and when somebody asks for the status; what differs is told anew at once.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DriftStatus {
    /// Seconds since it was compared last; `None`: not since the dataplane was connected.
    pub compared_seconds_ago: Option<u64>,
    /// What differed then, one sentence for each kind of facts; empty when nothing did. While there
    /// is anything, the link is not synced.
    pub found: Vec<String>,
    /// Kinds of facts that were not compared, since the dataplane has refused some of them.
    pub passed_over: Vec<String>,
    /// How often drift was mended since control was started.
    pub mended: u64,
    /// What differed the last time that it was.
    pub last_mended: Vec<String>,
}

/// The kernel underneath (design section 7).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KernelStatus {
    /// Name of the kernel's VXLAN device.
    pub device: String,
    /// Whether device, FDB, neighbours and routes are as they should be.
    pub in_sync: bool,
    /// What is not, one sentence each; retried every second.
    pub errors: Vec<String>,
}

/// A node, as it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeEntry {
    /// Its name.
    pub name: String,
    /// Whether it is this node.
    pub local: bool,
    /// Its address on the underlay.
    pub underlay: IpAddr,
    /// Its IPv6 address beside an IPv4 one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub underlay6: Option<Ipv6Addr>,
    /// What its pods' addresses are taken from.
    pub pod_cidrs: Vec<IpNet>,
    /// MAC of its VTEP.
    pub vtep_mac: MacAddr,
    /// How packets are sent to it.
    pub mode: Mode,
    /// How it is reached; `None` when the kernel has no route, and for this node.
    pub path: Option<Path>,
    /// MAC of the path's next hop; `None` while it is not resolved.
    pub next_hop_mac: Option<MacAddr>,
    /// Whether it is reached; `None` for this node, and when health is switched off.
    pub health: Option<NodeHealth>,
}

impl NodeEntry {
    /// Whether both paths to it are known to lead there.
    pub fn is_reached(&self) -> bool {
        let reached = |path: PathHealth| path.state == PathState::Reachable;
        let health = self.health;
        health.is_some_and(|health| reached(health.underlay) && reached(health.overlay))
    }
}

/// Whether a node is reached by probes that its control process answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeHealth {
    /// From underlay address to underlay address.
    pub underlay: PathHealth,
    /// As packets between pods go: through the tunnel, or natively.
    pub overlay: PathHealth,
}

/// How a path to a node is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PathHealth {
    /// Whether the node is reached by it.
    #[serde(flatten)]
    pub state: PathState,
    /// For how many seconds that has been so.
    pub seconds: u64,
    /// Round trip of the last answer that came in time, in microseconds. The control processes on
    /// both sides are in it.
    pub rtt_microseconds: Option<u32>,
    /// The same, smoothed (RFC 6298).
    pub smoothed_rtt_microseconds: Option<u32>,
    /// How many of [`PathHealth::probes`] were not answered in time.
    pub lost: u32,
    /// The last probes that were answered or lost, up to 64.
    pub probes: u32,
}

/// Whether a node is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "kebab-case")]
pub enum PathState {
    /// It answers.
    Reachable,
    /// It has not answered several times in a row.
    Unreachable,
    /// That cannot be told.
    Unknown {
        /// Why not.
        reason: UnknownReason,
    },
}

/// Why it cannot be told whether a node is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum UnknownReason {
    /// No probe was answered yet, nor have enough been lost.
    NotProbedYet,
    /// The node says that nobody listens to probes there: its control process does not run, or has
    /// health switched off.
    NoListener,
    /// One of the two nodes has no address on this path that the other can reach: on the overlay a
    /// PodCIDR of the same IP version.
    NoAddress,
    /// This node has no socket for it; [`HealthStatus::errors`] says why.
    NoSocket,
}

/// Which other nodes are reached. Those that are neither reachable nor unreachable are unknown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealthStatus {
    /// UDP port of the probes.
    pub port: u16,
    /// Seconds between two probes of one path.
    pub interval_seconds: u16,
    /// How many other nodes there are.
    pub nodes: usize,
    /// How many are reached by every path that has an address.
    pub reachable: usize,
    /// How many are not reached by one path or by both.
    pub unreachable: usize,
    /// Paths by which nodes are not reached, and then those that are unknown, by name; twenty at
    /// most.
    pub troubles: Vec<Trouble>,
    /// What keeps probes from being sent, one sentence each; retried every second.
    pub errors: Vec<String>,
}

/// A path by which a node is not reached, as far as is known.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trouble {
    /// The node.
    pub node: String,
    /// Which of its paths.
    pub layer: Layer,
    /// How it is.
    #[serde(flatten)]
    pub state: PathState,
    /// For how many seconds that has been so.
    pub seconds: u64,
}

/// Of two paths to a node the one that is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Layer {
    /// From underlay address to underlay address.
    Underlay,
    /// As packets between pods go.
    Overlay,
}

/// Why there is a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RouteOrigin {
    /// It was added.
    Added,
    /// It is a PodCIDR of a remote node.
    PodCidr,
    /// It is an address of a local pod.
    Pod,
    /// It is in the kernel's table that routes are taken from.
    Kernel,
}

/// A route, as it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteEntry {
    /// What is reached.
    pub prefix: IpNet,
    /// By whom.
    pub via: RouteTarget,
    /// Why there is this route.
    pub origin: RouteOrigin,
}

/// Who takes the packets of a route.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum RouteTarget {
    /// A local pod.
    Pod {
        /// Its port.
        interface: String,
    },
    /// A remote node.
    Node {
        /// Its name.
        node: String,
        /// The VXLAN network identifier, if it is not the configuration's `vni`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        vni: Option<Vni>,
    },
    /// A router.
    Gateway {
        /// Its address.
        address: IpAddr,
        /// Its link; `None` while the kernel has no route to the address.
        interface: Option<String>,
    },
    /// Several of these, each for its share of the flows.
    Multipath {
        /// The next hops.
        members: Vec<RouteTarget>,
    },
}

impl From<Via> for RouteTarget {
    fn from(via: Via) -> Self {
        match via {
            Via::Node { node, vni } => Self::Node { node, vni },
            Via::Gateway { address, interface } => Self::Gateway {
                address,
                interface: Some(interface),
            },
            Via::Multipath { members } => Self::Multipath {
                members: members.into_iter().map(Self::from).collect(),
            },
        }
    }
}

/// Where packets to an address go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteAnswer {
    /// The destination.
    pub address: IpAddr,
    /// The longest matching route.
    pub route: RouteEntry,
    /// How packets are sent; `None` to a local pod.
    pub mode: Option<Mode>,
    /// Underlay address of the node that packets are tunnelled to.
    pub tunnel_to: Option<IpAddr>,
    /// The interface that packets leave by; `None` while it is not known.
    pub interface: Option<String>,
    /// The neighbour that takes them on that link.
    pub next_hop: Option<IpAddr>,
    /// Its MAC; `None` while it is not resolved, and then the kernel has the packets.
    pub next_hop_mac: Option<MacAddr>,
    /// Largest L3 packet in bytes that the first link takes, tunnel headers included.
    pub mtu: Option<u16>,
    /// Of a multipath route the answer for each next hop; the values above are then not there.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub members: Vec<RouteAnswer>,
}

/// A port, as it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortEntry {
    /// What was told.
    #[serde(flatten)]
    pub spec: PortSpec,
    /// MAC of the pod's end, told or learned.
    pub mac: Option<MacAddr>,
    /// Whether it was named in the configuration and not by a request.
    pub configured: bool,
    /// What it waits for, such as its link or the pod's MAC; `None` when it waits for nothing.
    pub waiting: Option<String>,
}

/// MAC of the VTEP of a node whose underlay address is `underlay` and that was not told another:
/// `02:50` (locally administered, unicast) and four bytes. These are the IPv4 address itself, or
/// the two halves, XORed, of the IPv6 address's hash ([`crate::fnv`]), in network byte order; an IPv4 address
/// written as an IPv6 one counts as IPv4. Both ends of a tunnel compute the same without talking.
pub fn derived_vtep_mac(underlay: IpAddr) -> MacAddr {
    let [a, b, c, d] = match underlay.to_canonical() {
        IpAddr::V4(address) => address.octets(),
        IpAddr::V6(address) => {
            let hash = Fnv1a::new().with(&address.octets()).finish();
            let [a, b, c, d, e, f, g, h] = hash.to_be_bytes();
            [a ^ e, b ^ f, c ^ g, d ^ h]
        }
    };
    MacAddr([0x02, 0x50, a, b, c, d])
}

impl From<Result<(), ErrorBody>> for Response {
    fn from(result: Result<(), ErrorBody>) -> Self {
        match result {
            Ok(()) => Self::Done,
            Err(error) => Self::Error(error),
        }
    }
}

impl ErrorCode {
    /// Whether the refusal says that a named thing does not exist.
    pub fn is_not_found(self) -> bool {
        matches!(self, Self::NotFound | Self::NoSuchInterface)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ends_derive_the_same_vtep_mac() {
        for (underlay, mac) in [
            ("192.168.1.7", "02:50:c0:a8:01:07"),
            ("::ffff:192.168.1.7", "02:50:c0:a8:01:07"),
            ("2001:db8::1", "02:50:5a:cf:7d:a3"),
            ("fd00:0:1:2:3:4:5:6", "02:50:10:36:d1:69"),
        ] {
            let derived = derived_vtep_mac(underlay.parse().unwrap());
            assert_eq!(derived.to_string(), mac, "{underlay}");
            assert!(!derived.is_multicast());
        }
    }

    /// Words that are XORed cancel out when a node's number is in two of them.
    #[test]
    fn plans_of_addresses_give_each_node_its_own_mac() {
        let addresses = (0..5000_u16).map(|node| [0xfd00, 0x100, 0, node, 0, 0, 0, node]);
        let macs = addresses.map(|address| derived_vtep_mac(IpAddr::from(address)).0);
        let different: std::collections::BTreeSet<[u8; 6]> = macs.collect();
        assert_eq!(different.len(), 5000);
    }
}
