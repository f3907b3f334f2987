//! An overlay of layer 2, as switches want it: all pods in one subnet, their Ethernet frames
//! tunnelled as they are.
//!
//! The network's pods have /32 addresses behind a gateway. For the time of such a contender each
//! reaches all others on the link.

use std::time::Duration;

use podway_proto::types::Mode;

use crate::Result;
use crate::contender::pod_mtu;
use crate::netns::wait_until;
use crate::ping::Ping;
use crate::topology::{Cluster, POD_INTERFACE, UPLINK};

/// Neighbours are asked for once a second, on the overlay and then on the underlay.
const JOIN_DEADLINE: Duration = Duration::from_secs(15);
/// All pods of all nodes.
const SUBNETS: [&str; 2] = ["10.0.0.0/16", "fd00:10::/48"];

/// Puts all pods on one link. They finish their checksums themselves then (`ethtool -K tx off`,
/// which loses TSO as well): a peer's user space takes a frame as it is.
///
/// # Errors
/// When `ip` or `ethtool` fails.
pub(crate) fn join_pods(cluster: &Cluster) -> Result<()> {
    let mtu = pod_mtu(cluster.spec().uplink_mtu, Mode::Vxlan, false);
    let routes = SUBNETS.map(|net| format!("route add {net} dev {POD_INTERFACE} mtu {mtu}"));
    each_pod(cluster, "off", &routes)
}

/// Puts the pods behind their gateways again, when the overlay itself has gone. The nodes forget
/// each other's MAC address: that of a bridge that had a node's address would be asked in vain
/// for longer than the next contender is given.
///
/// # Errors
/// When `ip` or `ethtool` fails.
pub(crate) fn part_pods(cluster: &Cluster) -> Result<()> {
    for node in cluster.nodes() {
        node.netns.ip(&[format!("neigh flush dev {UPLINK}")])?;
    }
    let mut lines = SUBNETS
        .map(|net| format!("route del {net} dev {POD_INTERFACE}"))
        .to_vec();
    lines.push(format!("neigh flush dev {POD_INTERFACE}"));
    each_pod(cluster, "on", &lines)
}

/// Waits until the first pods of all nodes reach each other.
///
/// # Errors
/// [`crate::Error::Timeout`] with the pair that does not.
pub(crate) fn wait_joined(cluster: &Cluster) -> Result<()> {
    let ping = Ping {
        count: 1,
        ..Ping::default()
    };
    for from in cluster.nodes() {
        for to in cluster.nodes().iter().filter(|to| to.number != from.number) {
            let (source, target) = (&from.pods[0], &to.pods[0]);
            let what = format!("{} reaches {}", source.ipv4, target.ipv4);
            wait_until(&what, JOIN_DEADLINE, || {
                match ping.run(&source.netns, target.ipv4.into()) {
                    Ok(replies) if replies.received == 1 => Ok(()),
                    Ok(_) => Err("no answer".to_owned()),
                    Err(error) => Err(error.to_string()),
                }
            })?;
        }
    }
    Ok(())
}

fn each_pod(cluster: &Cluster, checksums: &str, lines: &[String]) -> Result<()> {
    for pod in cluster.nodes().iter().flat_map(|node| &node.pods) {
        pod.netns.ip(lines)?;
        let offload = ["-K", POD_INTERFACE, "tx", checksums];
        pod.netns.run("ethtool", &offload)?;
    }
    Ok(())
}
