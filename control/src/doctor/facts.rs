//! What the checks look at.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use podway_proto::config::Config;
use podway_proto::control::{NodeEntry, Status};
use podway_proto::dataplane;

use crate::netlink::LinkDetails;

/// A machine, its daemons and the nodes that it reaches. `None` is what could not be found out.
#[derive(Debug, Clone, Default)]
pub struct Facts {
    /// The kernel.
    pub kernel: Kernel,
    /// The configuration file.
    pub configuration: Configuration,
    /// What control says.
    pub control: Control,
    /// The daemons that control tells of; this process where there are none.
    pub processes: Vec<Process>,
    /// Interfaces that somebody has named.
    pub named: Vec<Named>,
    /// All links.
    pub links: Vec<LinkDetails>,
    /// Features of the uplinks and of the kernel's VXLAN devices by name, as `ethtool -k` shows them;
    /// missing where they are not told.
    pub features: BTreeMap<String, BTreeSet<String>>,
    /// Queues in use of the uplinks by name, where the driver tells.
    pub queues: BTreeMap<String, u32>,
    /// The pods' ends of ports.
    pub pods: Vec<PodEnd>,
    /// Ports whose pods' ends could not be looked at.
    pub unseen: Vec<UnseenPod>,
    /// BPF programs on links.
    pub programs: Programs,
    /// How the kernel forwards.
    pub forwarding: Forwarding,
    /// The other nodes and this one, as control tells them.
    pub nodes: Vec<NodeEntry>,
    /// Whether packets of full size get to other nodes.
    pub paths: Vec<PathProbe>,
    /// The processors.
    pub cpu: Cpu,
}

/// The kernel.
#[derive(Debug, Clone, Default)]
pub struct Kernel {
    /// As `uname -r` says.
    pub release: String,
    /// Whether it has AF_XDP sockets.
    pub af_xdp: Option<bool>,
    /// Whether it tells its types.
    pub btf: bool,
    /// `net.core.bpf_jit_enable`; in network namespaces other than the first it is not shown.
    pub jit: Option<u32>,
    /// `kernel.unprivileged_bpf_disabled`.
    pub unprivileged_bpf_disabled: Option<u32>,
    /// Whether a BPF filesystem is mounted at its place.
    pub bpf_filesystem: bool,
    /// The clock source in use.
    pub clock_source: Option<String>,
    /// Seconds since 1970 by its clock.
    pub seconds: u64,
}

/// The configuration file.
#[derive(Debug, Clone, Default)]
pub struct Configuration {
    /// Its path; `None` where there is none and the defaults count.
    pub path: Option<String>,
    /// What it says.
    pub config: Config,
    /// Why it cannot be used.
    pub error: Option<String>,
}

/// What control says.
#[derive(Debug, Clone, Default)]
pub enum Control {
    /// Nobody serves its socket.
    #[default]
    Away,
    /// It does not answer as it should.
    Failed {
        /// What is wrong.
        reason: String,
        /// Whether it is only that this process has not the right to ask.
        for_want_of_rights: bool,
    },
    /// How the node is.
    Running(Box<Status>),
}

/// A process.
#[derive(Debug, Clone)]
pub struct Process {
    /// Its name.
    pub name: String,
    /// Its number.
    pub pid: u32,
    /// Which of the daemons it is.
    pub role: Role,
    /// Its effective capabilities.
    pub capabilities: Option<u64>,
    /// Bytes that it may lock.
    pub memlock: Option<u64>,
    /// Whether it is in the network namespace of this process.
    pub here: Option<bool>,
}

/// Which of the daemons a process is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// `podway-control`.
    Control,
    /// `podway-dataplane`.
    Dataplane,
    /// This process, which stands for both before they are started.
    This,
}

/// An interface that somebody has named.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Named {
    /// Its name.
    pub interface: String,
    /// Whether it leads to other nodes; a pod is behind it otherwise.
    pub uplink: bool,
    /// What it waits for, as control says.
    pub waiting: Option<String>,
}

/// A pod's end of a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodEnd {
    /// The port's interface on the node.
    pub port: String,
    /// Name of the pod's interface, in the pod.
    pub interface: String,
    /// A file that leads to the pod's network namespace.
    pub namespace: String,
    /// MTU of the pod's interface.
    pub mtu: u32,
    /// MTU of the pod's route to another node's pods, if it was given one.
    pub route_mtu: Option<u32>,
    /// Features of the pod's interface.
    pub features: Option<BTreeSet<String>>,
}

/// A port whose pod's end could not be looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnseenPod {
    /// The port's interface on the node.
    pub port: String,
    /// Why.
    pub reason: String,
}

/// BPF programs on links.
#[derive(Debug, Clone, Default)]
pub struct Programs {
    /// Numbers of those that the dataplane holds; `None` when that cannot be seen.
    pub ours: Option<BTreeSet<u32>>,
    /// Names by number, of those that were asked for.
    pub names: BTreeMap<u32, String>,
    /// tcx programs; `None` when they cannot be listed.
    pub tcx: Option<Vec<Tcx>>,
}

/// A tcx program on a link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tcx {
    /// The link.
    pub interface: String,
    /// The program's number.
    pub program: u32,
    /// The program's name.
    pub name: String,
}

/// How the kernel forwards.
#[derive(Debug, Clone, Default)]
pub struct Forwarding {
    /// Whether it forwards IPv4.
    pub ipv4: Option<bool>,
    /// Whether it forwards IPv6; `None` also where it has no IPv6.
    pub ipv6: Option<bool>,
    /// `rp_filter` of `all` and of the uplinks, by name.
    pub rp_filter: BTreeMap<String, u32>,
    /// Chains of nftables at the hook of what is forwarded that drop by default; `None` when they
    /// cannot be listed.
    pub dropping: Option<Vec<String>>,
    /// Programs of the old iptables whose chain FORWARD drops by default.
    pub dropping_legacy: Vec<String>,
    /// Entries of the conntrack table and how many it takes.
    pub conntrack: Option<(u64, u64)>,
}

/// What became of a packet of full size to a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PathProbe {
    /// The node.
    pub node: String,
    /// Its underlay address.
    pub address: IpAddr,
    /// Size in bytes of the packet.
    pub size: u32,
    /// What became of it.
    pub outcome: Outcome,
}

/// Bytes of the headers of an ICMP echo to an address: IP's without options (RFC 791, RFC 8200), and eight
/// of ICMP.
pub fn echo_headers(address: IpAddr) -> u32 {
    match address {
        IpAddr::V4(_) => 20 + 8,
        IpAddr::V6(_) => 40 + 8,
    }
}

/// What became of a packet of full size.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It was answered.
    Fits,
    /// A router says what fits.
    TooBig(u32),
    /// Small ones are answered, it is not.
    Lost,
    /// Small ones are not answered either.
    NoAnswer,
    /// It could not be sent.
    NotSent(String),
    /// It was not sent: the kernel has no route there.
    NoWay,
    /// It was not sent: other nodes have taken all the time that there was.
    NotAsked,
}

/// The processors.
#[derive(Debug, Clone, Default)]
pub struct Cpu {
    /// How many there are.
    pub count: usize,
    /// Governors by processor, where they are shown.
    pub governors: BTreeMap<usize, String>,
    /// Hundredths of the time that was stolen by the host of this machine, lately.
    pub steal_percent: Option<u64>,
    /// Which processors are threads of one core: each with the first of them.
    pub cores: BTreeMap<usize, usize>,
}

impl Facts {
    /// How the node is, if control says it.
    pub fn status(&self) -> Option<&Status> {
        match &self.control {
            Control::Running(status) => Some(status),
            _ => None,
        }
    }

    /// How the dataplane is, if it says it.
    pub fn dataplane(&self) -> Option<&dataplane::Status> {
        self.status()?.dataplane.status()
    }

    /// Whether a port is served by AF_XDP, as the dataplane says.
    pub fn is_by_af_xdp(&self, port: &str) -> bool {
        let ports = self
            .dataplane()
            .into_iter()
            .flat_map(|status| &status.ports);
        let mut ports = ports.filter(|status| status.interface == port);
        ports.any(|status| status.ingress.starts_with("af-xdp"))
    }

    /// The CPU of each worker, `None` for one that is not pinned.
    pub fn workers(&self) -> Vec<Option<usize>> {
        match self.dataplane() {
            Some(status) => status.workers.iter().map(|worker| worker.cpu).collect(),
            None => {
                let section = &self.configuration.config.dataplane;
                let workers = 0..usize::from(section.workers);
                workers.map(|n| section.cores.get(n).copied()).collect()
            }
        }
    }

    /// The names of the uplinks.
    pub fn uplinks(&self) -> impl Iterator<Item = &str> {
        let uplinks = self.named.iter().filter(|named| named.uplink);
        uplinks.map(|named| named.interface.as_str())
    }

    /// The link of that name.
    pub fn link(&self, name: &str) -> Option<&LinkDetails> {
        self.links.iter().find(|link| link.link.name == name)
    }

    /// The other nodes.
    pub fn others(&self) -> impl Iterator<Item = &NodeEntry> {
        self.nodes.iter().filter(|node| !node.local)
    }
}
