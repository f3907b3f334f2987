//! The kernel as contender: a VXLAN device in flannel's style, or native routes.
//!
//! Flannel's style is: one address per node on the VXLAN device (the network address of the
//! PodCIDR), and per remote node one FDB entry, one permanent neighbour and one route. The
//! device's MAC and parameters are Podway's defaults, so that a node that runs only this is a
//! full peer of a Podway node.

use std::net::IpAddr;

use podway_proto::config::Config;
use podway_proto::control::derived_vtep_mac;
use podway_proto::types::Mode;

use crate::contender::{Carrier, pod_mtu};
use crate::topology::{Cluster, Node, UPLINK};
use crate::{Result, link};

/// Name of the VXLAN device.
const DEVICE: &str = "kvx0";

/// Release of the running kernel.
pub fn release() -> String {
    let name = rustix::system::uname();
    name.release().to_string_lossy().into_owned()
}

/// The kernel as a contender in words: its release, what it does, and what the uplinks do for it.
pub(crate) fn describe(cluster: &Cluster, what: &str) -> String {
    let node = &cluster.nodes()[0].netns;
    let gro = match link::feature_is_on(node, UPLINK, "generic-receive-offload") {
        Ok(true) => "on",
        Ok(false) => "off",
        Err(_) => "unknown",
    };
    format!("kernel {}, {what}, uplink GRO {gro}", release())
}

/// The kernel's VXLAN device in charge of nodes.
#[derive(Debug)]
pub(crate) struct Vxlan {
    nodes: Vec<Node>,
    /// What GRO of the uplinks is set back to.
    gro: Option<bool>,
}

impl Vxlan {
    /// Puts it in charge, with GRO of the uplinks set so, or left as it is.
    pub(crate) fn put(cluster: &Cluster, nodes: &[Node], gro: Option<bool>) -> Result<Self> {
        for node in nodes {
            add_vxlan(cluster, node)?;
            if let Some(on) = gro {
                link::set_gro(&node.netns, UPLINK, on)?;
            }
        }
        Ok(Self {
            nodes: nodes.to_vec(),
            gro: gro.map(|_| cluster.spec().uplink_gro),
        })
    }
}

impl Carrier for Vxlan {
    fn engine(&self, cluster: &Cluster) -> Result<String> {
        Ok(describe(cluster, "VXLAN device"))
    }

    fn take_away(self: Box<Self>, _cluster: &Cluster) -> Result<()> {
        for node in &self.nodes {
            if let Some(on) = self.gro {
                link::set_gro(&node.netns, UPLINK, on)?;
            }
            del_vxlan(node)?;
        }
        Ok(())
    }
}

/// The kernel's routing in charge of nodes.
#[derive(Debug)]
pub(crate) struct Native {
    nodes: Vec<Node>,
}

impl Native {
    /// Puts it in charge.
    pub(crate) fn put(cluster: &Cluster, nodes: &[Node]) -> Result<Self> {
        let mut each = nodes.iter();
        each.try_for_each(|node| add_native(cluster, node))?;
        Ok(Self {
            nodes: nodes.to_vec(),
        })
    }
}

impl Carrier for Native {
    fn engine(&self, cluster: &Cluster) -> Result<String> {
        Ok(describe(cluster, "routing"))
    }

    fn take_away(self: Box<Self>, cluster: &Cluster) -> Result<()> {
        let mut nodes = self.nodes.iter();
        nodes.try_for_each(|node| del_native(cluster, node))
    }
}

/// Gives the node a route to each of its pods.
///
/// # Errors
/// When `ip` fails.
pub fn add_pod_routes(node: &Node) -> Result<()> {
    node.netns.ip(&pod_routes(node, "replace"))
}

/// Puts the kernel's VXLAN in charge on one node.
///
/// # Errors
/// When `ip` or `bridge` fails.
pub fn add_vxlan(cluster: &Cluster, node: &Node) -> Result<()> {
    add_vxlan_over(cluster, node, false)
}

/// The same over an IPv4 or, `underlay6`, an IPv6 underlay.
///
/// # Errors
/// As [`add_vxlan`].
pub fn add_vxlan_over(cluster: &Cluster, node: &Node, underlay6: bool) -> Result<()> {
    let defaults = Config::default();
    let mtu = pod_mtu(cluster.spec().uplink_mtu, Mode::Vxlan, underlay6);
    let underlay = |node: &Node| -> IpAddr {
        if underlay6 {
            node.underlay6.into()
        } else {
            node.underlay.into()
        }
    };
    let own = underlay(node);
    add_pod_routes(node)?;
    let mut lines = vec![
        format!(
            "link add name {DEVICE} address {} mtu {mtu} type vxlan id {} dstport {} local {own} \
             dev {UPLINK} nolearning",
            derived_vtep_mac(own),
            defaults.vni,
            defaults.vxlan_port,
        ),
        format!("link set dev {DEVICE} up"),
        format!("addr add {}/32 dev {DEVICE}", node.pod_network()),
        format!("addr add {}/128 dev {DEVICE} nodad", node.pod_network6()),
    ];
    for peer in peers(cluster, node) {
        let mac = derived_vtep_mac(underlay(peer));
        for gateway in [
            peer.pod_network().to_string(),
            peer.pod_network6().to_string(),
        ] {
            lines.push(format!(
                "neigh replace {gateway} lladdr {mac} dev {DEVICE} nud permanent"
            ));
        }
        lines.push(format!(
            "route add {} via {} dev {DEVICE} onlink",
            peer.pod_cidr(),
            peer.pod_network()
        ));
        lines.push(format!(
            "route add {} via {} dev {DEVICE} onlink",
            peer.pod_cidr6(),
            peer.pod_network6()
        ));
    }
    node.netns.ip(&lines)?;
    let fdb = peers(cluster, node).map(|peer| {
        let to = underlay(peer);
        let mac = derived_vtep_mac(to);
        format!("fdb append {mac} dev {DEVICE} dst {to}")
    });
    node.netns.bridge(&fdb.collect::<Vec<_>>())
}

/// Takes the kernel's VXLAN away again.
///
/// # Errors
/// When `ip` fails.
pub fn del_vxlan(node: &Node) -> Result<()> {
    let mut lines = pod_routes(node, "del");
    // Its addresses, neighbours, FDB and routes go with it.
    lines.push(format!("link del dev {DEVICE}"));
    node.netns.ip(&lines)
}

/// Puts the kernel's routing in charge on one node, without a tunnel.
///
/// # Errors
/// When `ip` fails.
pub fn add_native(cluster: &Cluster, node: &Node) -> Result<()> {
    add_pod_routes(node)?;
    node.netns.ip(&native_routes(cluster, node, "add"))
}

/// Takes the native routes away again.
///
/// # Errors
/// When `ip` fails.
pub fn del_native(cluster: &Cluster, node: &Node) -> Result<()> {
    let mut lines = pod_routes(node, "del");
    lines.extend(native_routes(cluster, node, "del"));
    node.netns.ip(&lines)
}

/// None where a router is the way to everything.
fn native_routes(cluster: &Cluster, node: &Node, verb: &str) -> Vec<String> {
    if node.router.is_some() {
        return Vec::new();
    }
    let each = peers(cluster, node).flat_map(|peer| {
        [
            format!(
                "route {verb} {} via {} dev {UPLINK}",
                peer.pod_cidr(),
                peer.underlay
            ),
            format!(
                "route {verb} {} via {} dev {UPLINK}",
                peer.pod_cidr6(),
                peer.underlay6
            ),
        ]
    });
    each.collect()
}

fn pod_routes(node: &Node, verb: &str) -> Vec<String> {
    let each = node.pods.iter().flat_map(|pod| {
        let interface = &pod.host_interface;
        [
            format!("route {verb} {}/32 dev {interface} scope link", pod.ipv4),
            format!("route {verb} {}/128 dev {interface}", pod.ipv6),
        ]
    });
    each.collect()
}

fn peers<'a>(cluster: &'a Cluster, node: &'a Node) -> impl Iterator<Item = &'a Node> {
    let all = cluster.nodes().iter();
    all.filter(|peer| peer.number != node.number)
}
