//! Generator and sink around a node, and trials whose counts are checked.

use std::net::Ipv4Addr;
use std::time::Duration;

use podway_proto::config::Config;
use podway_proto::types::MacAddr;
use serde::Serialize;

use super::pacing::{Intervals, Unpaced, part};
use super::run::{Disturbance, Plan, Rate, run};
use super::sink::{Arrived, Sink};
use super::traffic::{Endpoint, Traffic, Tunnel};
use crate::link::feature_is_on;
use crate::netns::Netns;
use crate::topology::{Cluster, Node, POD_INTERFACE, Pod, UPLINK};
use crate::{Error, Result, cpu};

/// The name of GRO in `ethtool -k`.
const GRO: &str = "generic-receive-offload";

/// An interface by namespace and name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interface {
    /// Where it is.
    pub netns: Netns,
    /// Its name there.
    pub name: String,
}

impl Interface {
    /// The interface of that name.
    pub fn new(netns: &Netns, name: impl Into<String>) -> Self {
        Self {
            netns: netns.clone(),
            name: name.into(),
        }
    }

    /// Its Ethernet address.
    ///
    /// # Errors
    /// When there is no such interface.
    pub fn mac(&self) -> Result<MacAddr> {
        // /sys shows the namespace of whoever mounted it, and `ip netns exec` mounts it anew.
        let path = format!("/sys/class/net/{}/address", self.name);
        let text = self.netns.run("cat", &[&path])?;
        MacAddr::try_from(text.trim().to_owned())
            .map_err(|error| Error::Unexpected(format!("{path}: {error}")))
    }
}

/// The way of the packets: out of `source`, into the node under test by its interface `entry` at
/// the other end of that veth, and to `exit`, which is beyond the node.
#[derive(Debug, Clone)]
pub struct Path {
    /// Where the generator sends.
    pub source: Interface,
    /// Where the node receives.
    pub entry: Interface,
    /// Where the sink counts.
    pub exit: Interface,
    /// What is sent.
    pub traffic: Traffic,
}

impl Path {
    /// From the first pod of the first node towards the pods of the second: the first node
    /// encapsulates or routes. Only the first one needs a contender.
    ///
    /// # Errors
    /// When the cluster lacks an interface.
    pub fn out_of_pod(cluster: &Cluster, size: u16, flows: u16) -> Result<Self> {
        let [node, peer] = ends(cluster)?;
        let (pod, target) = (first_pod(node)?, first_pod(peer)?);
        let entry = Interface::new(&node.netns, &pod.host_interface);
        Ok(Self {
            traffic: Traffic {
                from: endpoint(pod.mac, pod.ipv4),
                to: endpoint(entry.mac()?, target.ipv4),
                destinations: 1,
                flows,
                size,
                tunnel: None,
            },
            source: Interface::new(&pod.netns, POD_INTERFACE),
            entry,
            exit: Interface::new(&peer.netns, UPLINK),
        })
    }

    /// From the second node to the first pod of the first, in VXLAN: the first node decapsulates.
    ///
    /// # Errors
    /// When the cluster lacks an interface.
    pub fn into_pod_by_vxlan(cluster: &Cluster, size: u16, flows: u16) -> Result<Self> {
        let [node, peer] = ends(cluster)?;
        let mut path = Self::into_pod(cluster, size, flows)?;
        let defaults = Config::default();
        let inner = &mut path.traffic;
        inner.tunnel = Some(Tunnel {
            from: endpoint(inner.from.mac, peer.underlay),
            to: endpoint(inner.to.mac, node.underlay),
            vni: defaults.vni,
            port: defaults.vxlan_port,
        });
        inner.from.mac = peer.vtep_mac();
        inner.to.mac = node.vtep_mac();
        Ok(path)
    }

    /// From the second node to the first pod of the first, without a tunnel: the first node routes.
    ///
    /// # Errors
    /// When the cluster lacks an interface.
    pub fn into_pod(cluster: &Cluster, size: u16, flows: u16) -> Result<Self> {
        let [node, peer] = ends(cluster)?;
        let (pod, sender) = (first_pod(node)?, first_pod(peer)?);
        let source = Interface::new(&peer.netns, UPLINK);
        let entry = Interface::new(&node.netns, UPLINK);
        Ok(Self {
            traffic: Traffic {
                from: endpoint(source.mac()?, sender.ipv4),
                to: endpoint(entry.mac()?, pod.ipv4),
                destinations: 1,
                flows,
                size,
                tunnel: None,
            },
            source,
            entry,
            exit: Interface::new(&pod.netns, POD_INTERFACE),
        })
    }

    /// The same packets, counted where they enter the node: what generator and sink do alone.
    #[must_use]
    pub fn alone(&self) -> Self {
        Self {
            exit: self.entry.clone(),
            ..self.clone()
        }
    }
}

fn endpoint(mac: MacAddr, ipv4: Ipv4Addr) -> Endpoint {
    Endpoint { mac, ipv4 }
}

fn ends(cluster: &Cluster) -> Result<[&Node; 2]> {
    match cluster.nodes() {
        [node, peer] => Ok([node, peer]),
        nodes => Err(Error::Unexpected(format!(
            "packets are generated between two nodes, not {}",
            nodes.len()
        ))),
    }
}

fn first_pod(node: &Node) -> Result<&Pod> {
    let first = node.pods.first();
    first.ok_or_else(|| Error::Unexpected(format!("{} has no pod", node.name)))
}

/// Why a trial counts for nothing.
#[derive(Debug, Clone, PartialEq, Serialize, thiserror::Error)]
pub enum Refusal {
    /// The generator did not send what it says.
    #[error("the generator says that it sent {sent} packets; its interface was given {given}")]
    Miscounted {
        /// What the generator says.
        sent: u64,
        /// What its interface says: taken or refused by the entry's ring.
        given: u64,
    },
    /// The generator was not even or not fast enough.
    #[error(transparent)]
    Unpaced(Unpaced),
    /// More arrived than was sent.
    #[error("{arrived} packets arrived of {sent} sent")]
    Multiplied {
        /// Packets sent.
        sent: u64,
        /// Packets that arrived.
        arrived: u64,
    },
}

/// One run of the generator, and what became of its packets.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Trial {
    /// What was asked for.
    pub rate: Rate,
    /// Length of the packets in bytes, Ethernet header included, tunnel not.
    pub size: u16,
    /// Flows.
    pub flows: u16,
    /// Packets sent, as the generator counts.
    pub sent: u64,
    /// Packets sent, as the interface counts that they left by.
    pub given: u64,
    /// Those of them that the entry's ring had no room for.
    pub refused_by_ring: u64,
    /// What arrived at the sink.
    pub arrived: Arrived,
    /// From the first packet sent to the last, in nanoseconds.
    pub nanoseconds: u64,
    /// Times between packets sent.
    pub intervals: Intervals,
    /// CPU time of the whole machine until the last packet had arrived, in seconds.
    pub busy_seconds: f64,
    /// Whether GRO had to be switched on at the entry for it to take the generator's frames.
    pub gro_switched_on: bool,
}

impl Trial {
    /// Whether the trial counts.
    ///
    /// # Errors
    /// [`Refusal`] with the reason.
    pub fn check(&self) -> std::result::Result<(), Refusal> {
        if self.sent != self.given {
            return Err(Refusal::Miscounted {
                sent: self.sent,
                given: self.given,
            });
        }
        if self.arrived.packets > self.sent {
            return Err(Refusal::Multiplied {
                sent: self.sent,
                arrived: self.arrived.packets,
            });
        }
        match self.rate {
            Rate::FlatOut => Ok(()),
            Rate::PerSecond(_) => self
                .intervals
                .check(self.sent, self.nanoseconds)
                .map_err(Refusal::Unpaced),
        }
    }

    /// Packets that did not arrive.
    pub fn lost(&self) -> u64 {
        self.sent.saturating_sub(self.arrived.packets)
    }

    /// Part of the packets that arrived, 0 to 1; not a number if none was sent.
    pub fn delivered(&self) -> f64 {
        part(self.arrived.packets, self.sent)
    }

    /// Packets per second that were sent.
    pub fn offered(&self) -> f64 {
        part(self.sent.saturating_sub(1), self.nanoseconds) * 1e9
    }
}

/// Generator and sink on a [`Path`]. Dropping it leaves the interfaces as they were.
#[derive(Debug)]
pub struct Rig {
    path: Path,
    sink: Sink,
    gro_switched_on: bool,
}

impl Rig {
    /// Puts the sink in place, and switches GRO on at the entry if it is off: without it the
    /// entry's veth has no ring to take frames with.
    ///
    /// # Errors
    /// When an interface is not there.
    pub fn set_up(path: Path) -> Result<Self> {
        let vxlan_port = Config::default().vxlan_port;
        let sink = Sink::attach(&path.exit.netns, &path.exit.name, vxlan_port)?;
        let gro_switched_on = !feature_is_on(&path.entry.netns, &path.entry.name, GRO)?;
        if gro_switched_on {
            set_gro(&path.entry, "on")?;
        }
        Ok(Self {
            path,
            sink,
            gro_switched_on,
        })
    }

    /// The way of the packets.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The sink.
    pub fn sink(&self) -> &Sink {
        &self.sink
    }

    /// Sends for a while and counts. The counts are not judged: see [`Trial::check`].
    ///
    /// # Errors
    /// When the generator cannot be run, or packets do not stop arriving.
    pub fn trial(&self, rate: Rate, duration: Duration) -> Result<Trial> {
        self.disturbed(rate, duration, Disturbance::None)
    }

    /// As [`Rig::trial`], with a fault that the checks must find.
    ///
    /// # Errors
    /// As [`Rig::trial`].
    pub fn disturbed(
        &self,
        rate: Rate,
        duration: Duration,
        disturbance: Disturbance,
    ) -> Result<Trial> {
        let Path {
            source, traffic, ..
        } = &self.path;
        let plan = Plan {
            disturbance,
            ..Plan::new(*traffic, rate, duration)
        };
        let before = (self.sink.arrived()?, Given::read(source)?);
        let busy = cpu::machine_busy()?;
        let sent = run(&source.netns, &source.name, &plan)?;
        let arrived = self.sink.settled()?.since(before.0);
        let busy = cpu::machine_busy()?.saturating_sub(busy);
        let given = Given::read(source)?;
        let refused_by_ring = given.refused - before.1.refused;
        Ok(Trial {
            rate,
            size: traffic.size,
            flows: traffic.flows,
            sent: sent.packets,
            given: given.taken - before.1.taken + refused_by_ring,
            refused_by_ring,
            arrived,
            nanoseconds: sent.nanoseconds,
            intervals: sent.intervals,
            busy_seconds: busy.as_secs_f64(),
            gro_switched_on: self.gro_switched_on,
        })
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        if self.gro_switched_on {
            // The network may have gone before.
            let _ = set_gro(&self.path.entry, "off");
        }
    }
}

fn set_gro(interface: &Interface, state: &str) -> Result<()> {
    let args = ["-K", &interface.name, "gro", state];
    interface.netns.run("ethtool", &args).map(drop)
}

/// Frames that were redirected out of a veth, as its driver counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Given {
    taken: u64,
    refused: u64,
}

impl Given {
    fn read(interface: &Interface) -> Result<Self> {
        let text = interface.netns.run("ethtool", &["-S", &interface.name])?;
        Self::parse(&text).ok_or_else(|| {
            Error::Unexpected(format!(
                "{} is no veth: it does not count redirected frames",
                interface.name
            ))
        })
    }

    fn parse(text: &str) -> Option<Self> {
        let sum = |ending: &str| {
            let counts = text.lines().filter_map(|line| {
                let (name, count) = line.trim().split_once(": ")?;
                let counts = name.starts_with("tx_queue_") && name.ends_with(ending);
                counts.then(|| count.parse::<u64>().ok())?
            });
            counts.reduce(|a, b| a + b)
        };
        Some(Self {
            taken: sum("_xdp_xmit")?,
            refused: sum("_xdp_xmit_errors")?,
        })
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in super::super) fn trial(sent: u64, arrived: u64) -> Trial {
        Trial {
            rate: Rate::FlatOut,
            size: 64,
            flows: 1,
            sent,
            given: sent,
            refused_by_ring: 0,
            arrived: Arrived {
                packets: arrived,
                frames: arrived,
                bytes: 64 * arrived,
                super_frames: 0,
            },
            nanoseconds: 1_000_000,
            intervals: Intervals {
                target_ns: 0,
                bins: vec![sent - 1],
            },
            busy_seconds: 1.5,
            gro_switched_on: false,
        }
    }

    #[test]
    fn a_veths_counters_are_summed_over_queues() {
        let text = "NIC statistics:\n     peer_ifindex: 2\n     rx_queue_0_xdp_tx: 9\n\
                    \x20    tx_queue_0_xdp_xmit: 5\n     tx_queue_0_xdp_xmit_errors: 1\n\
                    \x20    tx_queue_1_xdp_xmit: 20\n     tx_queue_1_xdp_xmit_errors: 2\n";
        let given = Given::parse(text).unwrap();
        assert_eq!((given.taken, given.refused), (25, 3));
        assert_eq!(Given::parse("NIC statistics:\n     tx_packets: 3\n"), None);
    }

    #[test]
    fn a_trial_counts_only_if_its_counts_agree() {
        let good = trial(1001, 900);
        assert_eq!(good.check(), Ok(()));
        assert_eq!((good.lost(), good.delivered()), (101, part(900, 1001)));
        assert!((good.offered() - 1e6).abs() < 1.0);
        let lossy = Trial {
            given: 500,
            ..good.clone()
        };
        assert_eq!(
            lossy.check().unwrap_err().to_string(),
            "the generator says that it sent 1001 packets; its interface was given 500"
        );
        assert!(matches!(
            trial(1000, 1001).check(),
            Err(Refusal::Multiplied { .. })
        ));
    }

    #[test]
    fn pacing_is_judged_when_a_rate_was_asked_for() {
        let paced = Trial {
            rate: Rate::PerSecond(1_000_000),
            ..trial(1001, 1001)
        };
        assert!(matches!(paced.check(), Err(Refusal::Unpaced(_))));
    }
}
