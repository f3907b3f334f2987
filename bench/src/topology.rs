//! The test network: nodes with pods behind veths, joined by an underlay.
//!
//! ```text
//!   pod 10.0.0.10 (p1a)   pod 10.0.0.11 (p1b)          pod 10.0.1.10 (p2a)
//!        eth0                  eth0                          eth0
//!         |                     |                             |
//!        lx0                   lx1   10.0.0.1/32             lx0   10.0.1.1/32
//!   node 1: 192.168.100.1 eth1 ----------------- eth1 192.168.100.2 :node 2
//! ```
//!
//! Two nodes are joined by one veth. With three, the node ends of three veths lead to a bridge in a
//! namespace of its own, the wire. Or each is in a subnet of its own, as 192.168.(100+i).1 and
//! fd00:100:0:i::1, with one router for all ([`ClusterSpec::routed`]), or each of two behind its own
//! with a narrow link between the routers, about whose MTU neither node knows.
//! Node `i` (from 1) has the PodCIDRs `10.0.(i-1).0/24` and `fd00:10:0:(i-1)::/64`; pods count
//! from `.10` (`::10`), the gateway `.1` (`::1`) is on every pod veth of the node.
//! A pod has a /32 and everything else through its gateway, so that pods of one node are routed
//! as well. Its MTU is the interface's; what the tunnel takes is on the route
//! ([`Cluster::set_pod_mtu`]).

mod underlay;

use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};

use podway_proto::control::derived_vtep_mac;
use podway_proto::types::MacAddr;

use crate::link::set_gro;
use crate::netns::Netns;
use crate::{Error, Result, cleanup};

/// Name of a node's interface towards the others.
pub const UPLINK: &str = "eth1";
/// Name of a pod's interface.
pub const POD_INTERFACE: &str = "eth0";

/// What to build.
#[derive(Debug, Clone)]
pub struct ClusterSpec {
    /// First part of every name: `<prefix>-<process id>-...`.
    pub prefix: String,
    /// Nodes, 2 to 3.
    pub nodes: u8,
    /// Pods on each node, 1 to 26.
    pub pods_per_node: u8,
    /// Receive and transmit queues of uplinks and of both ends of pod veths.
    pub queues: u8,
    /// MTU of the underlay and of the pods' interfaces in bytes.
    pub uplink_mtu: u16,
    /// MTU in bytes of a link in the middle of the underlay, between two routers; none by default.
    /// It takes two nodes.
    pub narrow_middle: Option<u16>,
    /// Whether each node is in a subnet of its own, with one router that knows the pods of all.
    pub routed: bool,
    /// Maximum segment size in bytes that pods announce to their peers; by their MTU by default.
    pub announced_mss: Option<u16>,
    /// Whether senders leave L4 checksums unfinished on the uplinks (`ethtool -K tx`). A real
    /// wire cannot carry those: off judges correctness, on is the veth's speed.
    pub uplink_tx_checksum: bool,
    /// Whether the uplinks carry frames of at most the MTU, as a real wire does.
    pub wire_true: bool,
    /// Whether the uplinks join received segments (GRO), as every NIC driver does.
    pub uplink_gro: bool,
}

impl ClusterSpec {
    /// Two nodes with two pods each over a wire-true link, one queue everywhere.
    pub fn new(prefix: impl Into<String>) -> Self {
        Self {
            prefix: prefix.into(),
            nodes: 2,
            pods_per_node: 2,
            queues: 1,
            uplink_mtu: 1500,
            narrow_middle: None,
            routed: false,
            announced_mss: None,
            uplink_tx_checksum: true,
            wire_true: true,
            uplink_gro: true,
        }
    }
}

/// A pod: a namespace behind a veth of its node.
#[derive(Debug, Clone)]
pub struct Pod {
    /// Its namespace.
    pub netns: Netns,
    /// The node's end of its veth.
    pub host_interface: String,
    /// Its IPv4 address.
    pub ipv4: Ipv4Addr,
    /// Its IPv6 address.
    pub ipv6: Ipv6Addr,
    /// MAC of its end of the veth.
    pub mac: MacAddr,
}

/// A node: a namespace that routes.
#[derive(Debug, Clone)]
pub struct Node {
    /// `n1`, `n2`, ...
    pub name: String,
    /// Its number, from 1.
    pub number: u8,
    /// Its namespace.
    pub netns: Netns,
    /// Its address on the underlay.
    pub underlay: Ipv4Addr,
    /// Its IPv6 address on the underlay.
    pub underlay6: Ipv6Addr,
    /// The router that all other nodes are behind, if they are.
    pub router: Option<Ipv4Addr>,
    /// Its directory: sockets, logs and state of the daemons.
    pub directory: PathBuf,
    /// Its pods.
    pub pods: Vec<Pod>,
}

impl Node {
    /// The network address of its IPv4 PodCIDR, which the node itself has on its VXLAN device
    /// (flannel's convention).
    pub fn pod_network(&self) -> Ipv4Addr {
        Ipv4Addr::new(10, 0, self.number - 1, 0)
    }

    /// The network address of its IPv6 PodCIDR.
    pub fn pod_network6(&self) -> Ipv6Addr {
        pod_ipv6(self.number, 0)
    }

    /// Its IPv4 PodCIDR.
    pub fn pod_cidr(&self) -> String {
        format!("{}/24", self.pod_network())
    }

    /// Its IPv6 PodCIDR.
    pub fn pod_cidr6(&self) -> String {
        format!("{}/64", self.pod_network6())
    }

    /// MAC of its VTEP, as `podway-control` makes it of its IPv4 underlay address.
    pub fn vtep_mac(&self) -> MacAddr {
        derived_vtep_mac(self.underlay.into())
    }
}

/// The network. Dropping it removes everything, what else runs in its namespaces included.
#[derive(Debug)]
pub struct Cluster {
    name: String,
    spec: ClusterSpec,
    nodes: Vec<Node>,
}

impl Cluster {
    /// Builds the network, after sweeping what a killed run of the same prefix has left.
    ///
    /// # Errors
    /// When a command fails; nothing stays behind then.
    pub fn new(spec: ClusterSpec) -> Result<Self> {
        if !(2..=3).contains(&spec.nodes) || !(1..=26).contains(&spec.pods_per_node) {
            return Err(Error::Unexpected(format!(
                "a cluster has 2 or 3 nodes with 1 to 26 pods each, not {} with {}",
                spec.nodes, spec.pods_per_node
            )));
        }
        if spec.narrow_middle.is_some() && (spec.nodes != 2 || spec.routed) {
            return Err(Error::Unexpected(format!(
                "a narrow link is in the middle of 2 nodes with a router each, not of {}",
                spec.nodes
            )));
        }
        if !rustix::process::geteuid().is_root() {
            return Err(Error::Unexpected(
                "network namespaces need root; run this as root, for example by sudo".to_owned(),
            ));
        }
        cleanup::sweep(&spec.prefix);
        let name = unused_name(&spec.prefix);
        cleanup::own(&name)?;
        // From here on dropping `cluster` removes what is there, complete or not.
        let nodes = (1..=spec.nodes).map(|n| {
            let node = describe_node(&name, n, spec.pods_per_node);
            underlay::place(node, &spec)
        });
        let cluster = Self {
            nodes: nodes.collect(),
            name,
            spec,
        };
        cluster.build()?;
        Ok(cluster)
    }

    /// Its name: the first part of the names of its namespaces, and its directory under `/run`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What was asked for.
    pub fn spec(&self) -> &ClusterSpec {
        &self.spec
    }

    /// The nodes, in order.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// A pod by node and position, both from 0.
    ///
    /// # Panics
    /// When there is none.
    pub fn pod(&self, node: usize, pod: usize) -> &Pod {
        &self.nodes[node].pods[pod]
    }

    /// Sets what the pods' routes carry, in bytes: the uplink's MTU less 50 for VXLAN.
    ///
    /// # Errors
    /// When `ip` fails.
    pub fn set_pod_mtu(&self, mtu: u16) -> Result<()> {
        let announced = self.spec.announced_mss;
        let advmss = announced.map_or_else(String::new, |mss| format!(" advmss {mss}"));
        for node in &self.nodes {
            let gateway = pod_ipv4(node.number, 1);
            let gateway6 = pod_ipv6(node.number, 1);
            for pod in &node.pods {
                pod.netns.ip(&[
                    format!(
                        "route replace default via {gateway} dev {POD_INTERFACE} mtu {mtu}{advmss}"
                    ),
                    format!(
                        "route replace ::/0 via {gateway6} dev {POD_INTERFACE} mtu {mtu}{advmss}"
                    ),
                ])?;
            }
        }
        Ok(())
    }

    /// Leaves the network up when this process ends.
    ///
    /// # Errors
    /// When the mark for it cannot be written; the network is then removed.
    pub fn keep(self) -> Result<()> {
        cleanup::keep(&self.name)?;
        std::mem::forget(self);
        Ok(())
    }

    /// Removes the network now and says what would not go.
    pub fn remove(self) -> Vec<String> {
        let errors = cleanup::remove(&self.name);
        std::mem::forget(self);
        errors
    }

    fn build(&self) -> Result<()> {
        for node in &self.nodes {
            make_directory(&node.directory)?;
            make_namespace(&node.netns, true)?;
            for pod in &node.pods {
                make_namespace(&pod.netns, false)?;
                self.join_pod(node, pod)?;
            }
        }
        self.join_nodes()?;
        self.set_pod_mtu(self.spec.uplink_mtu)
    }

    fn join_pod(&self, node: &Node, pod: &Pod) -> Result<()> {
        let (host, queues) = (&pod.host_interface, self.queues());
        let (gateway, gateway6) = (pod_ipv4(node.number, 1), pod_ipv6(node.number, 1));
        let mtu = self.spec.uplink_mtu;
        node.netns.ip(&[
            format!(
                "link add name {host} mtu {mtu} {queues} type veth peer name {POD_INTERFACE} \
                 address {} mtu {mtu} netns {} {queues}",
                pod.mac,
                pod.netns.name()
            ),
            format!("link set dev {host} up"),
            format!("addr add {gateway}/32 dev {host}"),
            format!("addr add {gateway6}/128 dev {host} nodad"),
        ])?;
        pod.netns.ip(&[
            format!("link set dev {POD_INTERFACE} up"),
            format!("addr add {}/32 dev {POD_INTERFACE}", pod.ipv4),
            format!("addr add {}/128 dev {POD_INTERFACE} nodad", pod.ipv6),
            format!("route add {gateway}/32 dev {POD_INTERFACE} scope link"),
            format!("route add {gateway6}/128 dev {POD_INTERFACE}"),
        ])
    }

    /// Sets receive segment joining on a node's uplink as the specification wants it.
    pub(crate) fn set_gro(&self, netns: &Netns) -> Result<()> {
        set_gro(netns, UPLINK, self.spec.uplink_gro)
    }

    fn queues(&self) -> String {
        format!("numrxqueues {0} numtxqueues {0}", self.spec.queues)
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for error in cleanup::remove(&self.name) {
            eprintln!("podway-bench: {}: {error}", self.name);
        }
    }
}

/// One process may build several clusters, one after another or at once.
fn unused_name(prefix: &str) -> String {
    let pid = std::process::id();
    let names = std::iter::once(format!("{prefix}-{pid}"))
        .chain((2_u32..).map(|n| format!("{prefix}-{pid}.{n}")));
    let mut free = names.filter(|name| !cleanup::directory(name).exists());
    free.next()
        .unwrap_or_else(|| unreachable!("the numbers do not end"))
}

fn describe_node(cluster: &str, number: u8, pods: u8) -> Node {
    let name = format!("n{number}");
    Node {
        number,
        netns: Netns::named(format!("{cluster}-{name}")),
        underlay: Ipv4Addr::new(192, 168, 100, number),
        underlay6: Ipv6Addr::new(0xfd00, 0x100, 0, 0, 0, 0, 0, number.into()),
        router: None,
        directory: cleanup::directory(cluster).join(&name),
        pods: (0..pods)
            .map(|pod| describe_pod(cluster, number, pod))
            .collect(),
        name,
    }
}

fn describe_pod(cluster: &str, node: u8, pod: u8) -> Pod {
    let letter = char::from(b'a' + pod);
    Pod {
        netns: Netns::named(format!("{cluster}-p{node}{letter}")),
        host_interface: format!("lx{pod}"),
        ipv4: pod_ipv4(node, 10 + pod),
        ipv6: pod_ipv6(node, 0x10 + u16::from(pod)),
        mac: MacAddr([0x0a, 0x58, 10, 0, node - 1, 10 + pod]),
    }
}

fn pod_ipv4(node: u8, host: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, node - 1, host)
}

fn pod_ipv6(node: u8, host: u16) -> Ipv6Addr {
    Ipv6Addr::new(0xfd00, 0x10, 0, u16::from(node) - 1, 0, 0, 0, host)
}

/// Congestion control is left as the host has it: where the host's default is another, a network
/// namespace may not make cubic its own (`tcp_set_default_congestion_control` in
/// linux/net/ipv4/tcp_cong.c). Whoever measures names it on the socket.
fn make_namespace(netns: &Netns, routes: bool) -> Result<()> {
    cleanup::add_namespace(netns.name())?;
    netns.ip(&["link set dev lo up".to_owned()])?;
    let forward = u8::from(routes);
    netns.sysctl(&[
        &format!("net.ipv4.ip_forward={forward}"),
        &format!("net.ipv6.conf.all.forwarding={forward}"),
        // Host traffic of a tunnel comes back by another interface than its source is on.
        "net.ipv4.conf.all.rp_filter=0",
        "net.ipv4.conf.default.rp_filter=0",
        // Addresses are usable at once.
        "net.ipv6.conf.all.accept_dad=0",
        "net.ipv6.conf.default.accept_dad=0",
        // ICMP datagram sockets for root's group.
        "net.ipv4.ping_group_range=0 0",
        // A run must not start from what an earlier one has learnt.
        "net.ipv4.tcp_no_metrics_save=1",
    ])
}

fn make_directory(path: &Path) -> Result<()> {
    std::fs::create_dir_all(path).map_err(Error::io(format!("make {}", path.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_the_articles() {
        let node = describe_node("c", 2, 2);
        assert_eq!(node.netns.name(), "c-n2");
        assert_eq!(node.pod_cidr(), "10.0.1.0/24");
        assert_eq!(node.pod_cidr6(), "fd00:10:0:1::/64");
        assert_eq!(node.underlay.to_string(), "192.168.100.2");
        assert_eq!(node.vtep_mac().to_string(), "02:50:c0:a8:64:02");
        let pod = &node.pods[1];
        assert_eq!(pod.netns.name(), "c-p2b");
        assert_eq!(pod.host_interface, "lx1");
        assert_eq!(pod.ipv4.to_string(), "10.0.1.11");
        assert_eq!(pod.ipv6.to_string(), "fd00:10:0:1::11");
        assert_eq!(pod.mac.to_string(), "0a:58:0a:00:01:0b");
    }
}
