//! The configuration file of a node, as it is written. Both daemons read the same file and
//! validate their own part; names follow Cilium's where the idea is the same.

mod range;

use std::net::{IpAddr, SocketAddr};

use ipnet::{Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};

use crate::types::{MacAddr, Vni};

pub use range::OutOfRange;

/// Where both daemons look for the file when nobody says; they go on with the defaults if it is not
/// there.
pub const DEFAULT_PATH: &str = "/etc/podway/podway.toml";

/// `podway.toml`. Every field has a default.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Config {
    /// Name of this node in the cluster; the host name by default.
    pub node_name: Option<String>,
    /// How packets to nodes are sent that are set without a mode of their own.
    pub tunnel: Tunnel,
    /// VXLAN network identifier.
    pub vni: Vni,
    /// Further identifiers: tunnels with them are accepted, and routes may name them.
    pub also_vnis: Vec<Vni>,
    /// UDP port of VXLAN.
    pub vxlan_port: u16,
    /// The interface towards other nodes.
    pub uplink: Option<String>,
    /// This node's address on the underlay; the first global one of the uplink by default.
    pub underlay_address: Option<IpAddr>,
    /// MAC of this node's VTEP; made from the underlay address by default.
    pub vtep_mac: Option<MacAddr>,
    /// Whether control installs kernel routes to the PodCIDRs of native nodes through their
    /// underlay address, which must then be on the same link. Otherwise the operator or a
    /// routing daemon installs them.
    pub auto_direct_node_routes: bool,
    /// What is reached natively without masquerading over IPv4.
    pub ipv4_native_routing_cidr: Option<Ipv4Net>,
    /// What is reached natively without masquerading over IPv6.
    pub ipv6_native_routing_cidr: Option<Ipv6Net>,
    /// Whether tunnels are taken from sources that are no known nodes, by the dataplane and by the
    /// kernel.
    pub allow_unknown_vteps: bool,
    /// Whether control has nftables masquerade what this node's pods send out of the cluster: to
    /// where neither `ipv4-native-routing-cidr` (or `ipv6-`) nor a PodCIDR leads. IP versions
    /// without a native-routing-cidr are not masqueraded.
    pub masquerade: bool,
    /// The kernel's routing table whose routes are taken over as if they had been added: where a
    /// routing daemon such as FRR or BIRD writes what it learns.
    pub import_kernel_table: Option<KernelTable>,
    /// Whether control probes the other nodes and answers their probes.
    pub health: bool,
    /// UDP port of the probes, the same on every node. The default is one of those beside VXLAN's
    /// that IANA has assigned to nobody.
    pub health_port: u16,
    /// Seconds between two probes of one path to a node.
    pub health_interval_seconds: u16,
    /// Where control serves metrics for Prometheus, such as `127.0.0.1:9467`; nowhere by default.
    pub metrics: Option<SocketAddr>,
    /// How `podway-dataplane` runs.
    pub dataplane: DataplaneConfig,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            node_name: None,
            tunnel: Tunnel::Vxlan,
            vni: Vni::DEFAULT,
            also_vnis: Vec::new(),
            vxlan_port: 4789,
            uplink: None,
            underlay_address: None,
            vtep_mac: None,
            auto_direct_node_routes: false,
            ipv4_native_routing_cidr: None,
            ipv6_native_routing_cidr: None,
            allow_unknown_vteps: false,
            masquerade: false,
            import_kernel_table: None,
            health: true,
            health_port: 4799,
            health_interval_seconds: 10,
            metrics: None,
            dataplane: DataplaneConfig::default(),
        }
    }
}

/// A routing table of the kernel, written as its number or as `"main"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "TableName", into = "TableName")]
pub struct KernelTable(u32);

impl KernelTable {
    /// The table that the kernel looks into unless rules say otherwise.
    pub const MAIN: Self = Self(254);
    /// The one with the host's own addresses.
    const LOCAL: u32 = 255;

    /// Its number.
    pub fn number(self) -> u32 {
        self.0
    }
}

/// How a table is written.
#[derive(Serialize, Deserialize)]
#[serde(
    untagged,
    expecting = "write the number of a routing table, or \"main\""
)]
enum TableName {
    Number(u32),
    Name(String),
}

/// There is no such table to take routes from.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("routes cannot be taken from the table {0}; write its number, or \"main\"")]
pub struct BadTable(String);

impl TryFrom<TableName> for KernelTable {
    type Error = BadTable;

    fn try_from(name: TableName) -> Result<Self, BadTable> {
        match name {
            TableName::Number(number @ (0 | Self::LOCAL)) => Err(BadTable(number.to_string())),
            TableName::Number(number) => Ok(Self(number)),
            TableName::Name(name) if name == "main" => Ok(Self::MAIN),
            TableName::Name(name) => Err(BadTable(name)),
        }
    }
}

impl From<KernelTable> for TableName {
    fn from(table: KernelTable) -> Self {
        match table {
            KernelTable::MAIN => Self::Name("main".to_owned()),
            KernelTable(number) => Self::Number(number),
        }
    }
}

/// The encapsulation between nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Tunnel {
    /// VXLAN to every node.
    Vxlan,
    /// None: packets are routed natively.
    Disabled,
}

/// The `[dataplane]` section.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct DataplaneConfig {
    /// Number of workers, 1 to 64.
    pub workers: u16,
    /// The CPU of each worker, in order; empty: not pinned.
    pub cores: Vec<usize>,
    /// What a worker does when there is nothing to do.
    pub wait: WaitMode,
    /// Adaptive mode: how long a worker spins after the last packet before it blocks, in
    /// microseconds. It yields its core meanwhile.
    pub spin_microseconds: u32,
    /// Adaptive mode: how long a worker dozes, in microseconds, before it spins or blocks, while more
    /// than 50,000 packets a second come: it sleeps, and no packet in its ring wakes it before. 0:
    /// never.
    pub doze_microseconds: u32,
    /// Microseconds that CPUs may take to wake up as long as the dataplane runs; whoever has nothing
    /// to do then sleeps no deeper. 0: not at all, which costs the power of every core of the
    /// machine and makes round trips shortest. Unset: as the machine is set up.
    pub cpu_latency_microseconds: Option<u32>,
    /// Frames of 4096 bytes per worker.
    pub frames: u32,
    /// Entries of an uplink's AF_XDP rings, a power of two from 64 to 16384: what other nodes send at
    /// once must find room. Pod ports have 512 at most. A worker's packet ring has 512 bytes for each,
    /// of which a small packet takes 272 and one of the usual MTU 2064.
    pub ring_size: u32,
    /// How workers receive from ports.
    pub ingress: IngressChoice,
    /// How many outer source ports flows are spread over, a power of two from 2 to 16384. With fewer
    /// ports, small packets of more flows leave in one message; networks and nodes that spread
    /// tunnels by their source port have fewer to spread.
    pub source_ports: u16,
    /// Where the XDP program runs on pod ports. `native` strips TSO from the pod.
    pub pod_xdp_mode: XdpModeChoice,
    /// Where the XDP program runs on uplinks. `generic` switches GRO off on the interface.
    pub uplink_xdp_mode: XdpModeChoice,
}

impl Default for DataplaneConfig {
    fn default() -> Self {
        Self {
            workers: 1,
            cores: Vec::new(),
            wait: WaitMode::Adaptive,
            spin_microseconds: 0,
            doze_microseconds: 50,
            cpu_latency_microseconds: None,
            frames: 8192,
            ring_size: 2048,
            ingress: IngressChoice::Auto,
            source_ports: 16384,
            pod_xdp_mode: XdpModeChoice::Generic,
            uplink_xdp_mode: XdpModeChoice::Auto,
        }
    }
}

/// What a worker does when there is nothing to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WaitMode {
    /// Never blocks; for cores that nobody else uses.
    Spin,
    /// Dozes while many packets come, spins after the last one if it is told to, then blocks.
    Adaptive,
    /// Always blocks.
    Sleep,
}

impl std::fmt::Display for WaitMode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Spin => "spin",
            Self::Adaptive => "adaptive",
            Self::Sleep => "sleep",
        })
    }
}

/// How a worker receives from a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum IngressChoice {
    /// By AF_XDP where the driver needs no copy; elsewhere by the worker's TAP and packet ring if
    /// the kernel has the TAP's offloads inside UDP tunnels (Linux 6.17), else by AF_XDP with a copy.
    Auto,
    /// By TAP and packet ring, or not at all.
    Tap,
    /// By AF_XDP.
    AfXdp,
}

impl std::fmt::Display for IngressChoice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Tap => "tap",
            Self::AfXdp => "af-xdp",
        })
    }
}

/// Where an XDP program runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum XdpModeChoice {
    /// In the driver if it can, else generic.
    Auto,
    /// In the driver, or not at all.
    Native,
    /// Behind the driver, on the kernel's own packet buffers.
    Generic,
}
