//! Who carries the pods' packets.
//!
//! A [`Contender`] is a name that can be chosen, printed and written to a file. Put in charge
//! ([`InCharge`]), it is a [`Carrier`], which knows its processes, its engine and its drop
//! counters. A further contender is a variant, its line in each function of [`Contender`], and a
//! type that implements [`Carrier`].

use std::collections::BTreeMap;
use std::fmt;

use clap::ValueEnum;
use podway_proto::config::{IngressChoice, WaitMode};
use podway_proto::types::Mode;
use serde::{Deserialize, Serialize};

use crate::baseline::Baseline;
use crate::ovs::{OpenVSwitch, Ports};
use crate::podway::{Options, Podway, program};
use crate::topology::{Cluster, Node, UPLINK};
use crate::{Error, Result, baseline, cpu, kernel, ovs};

/// What a VXLAN tunnel over IPv4 adds to a packet, in bytes: inner Ethernet 14, VXLAN 8, UDP 8,
/// IPv4 20.
pub const VXLAN_OVERHEAD: u16 = 50;

/// The core that a spinning worker has for itself; everything else runs on core 0.
pub const OWNED_CORE: usize = 1;

/// Pods of a full node: what the kubelet allows unless it is told otherwise.
pub const FULL_NODE: u8 = 110;

/// Bytes that a tunnel over IPv6 adds beyond one over IPv4.
const IPV6_LONGER: u16 = 20;

/// The MTU of pods' routes that an underlay of `uplink_mtu` allows, in bytes; `underlay6`: nodes
/// know each other by IPv6 addresses.
pub fn pod_mtu(uplink_mtu: u16, mode: Mode, underlay6: bool) -> u16 {
    match mode {
        Mode::Vxlan if underlay6 => uplink_mtu - VXLAN_OVERHEAD - IPV6_LONGER,
        Mode::Vxlan => uplink_mtu - VXLAN_OVERHEAD,
        Mode::Native => uplink_mtu,
    }
}

/// Someone who can carry the packets.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ValueEnum,
)]
#[serde(rename_all = "kebab-case")]
pub enum Contender {
    /// Between the nodes themselves: no pod, no routing.
    Hosts,
    /// The same, with Podway attached to the uplinks, which carries none of it.
    HostsBesidePodway,
    /// From a pod to the other node itself, by the kernel's routing.
    KernelWorld,
    /// The same, with Podway attached, which carries none of it.
    PodwayWorld,
    /// Between pods by the kernel's VXLAN device.
    KernelVxlan,
    /// The same with the uplinks' GRO off.
    KernelVxlanNoGro,
    /// Between pods by the kernel's routing.
    KernelNative,
    /// Between pods by Podway in VXLAN mode.
    PodwayVxlan,
    /// Podway in VXLAN mode that receives by AF_XDP, whatever it would choose.
    PodwayVxlanAfXdp,
    /// Podway in VXLAN mode on nodes that are full: 110 pods have a port, all but those that are
    /// measured idle.
    PodwayVxlanFull,
    /// Between pods by Podway in native mode.
    PodwayNative,
    /// Podway in native mode that receives by AF_XDP, whatever it would choose.
    PodwayNativeAfXdp,
    /// Podway in VXLAN mode on the first node only, its worker spinning on a core of its own; the
    /// kernel's VXLAN device on the others.
    PodwaySpin,
    /// Between pods by Open vSwitch with AF_XDP ports, polled.
    OvsAfxdp,
    /// Between pods by Open vSwitch with AF_XDP ports, in its main thread.
    OvsAfxdpNonpmd,
    /// Between pods by Open vSwitch with AF_PACKET ports.
    OvsSystem,
    /// Between pods by the plainest forwarder on `xsk-rs`.
    XskRsBaseline,
}

impl Contender {
    /// Those that must be installed: `scripts/setup --install-peers`.
    pub const PEERS: [Self; 4] = [
        Self::OvsAfxdp,
        Self::OvsAfxdpNonpmd,
        Self::OvsSystem,
        Self::XskRsBaseline,
    ];

    /// Its name for people.
    pub fn label(self) -> &'static str {
        match self {
            Self::Hosts => "between hosts",
            Self::HostsBesidePodway => "between hosts, Podway",
            Self::KernelWorld => "pod to host",
            Self::PodwayWorld => "pod to host, Podway",
            Self::KernelVxlan => "kernel VXLAN",
            Self::KernelVxlanNoGro => "kernel VXLAN, GRO off",
            Self::KernelNative => "kernel native",
            Self::PodwayVxlan => "Podway VXLAN",
            Self::PodwayVxlanAfXdp => "Podway VXLAN, AF_XDP",
            Self::PodwayVxlanFull => "Podway VXLAN, 110 pods",
            Self::PodwayNative => "Podway native",
            Self::PodwayNativeAfXdp => "Podway native, AF_XDP",
            Self::PodwaySpin => "Podway VXLAN, spinning",
            Self::OvsAfxdp => "OVS afxdp",
            Self::OvsAfxdpNonpmd => "OVS afxdp-nonpmd",
            Self::OvsSystem => "OVS system",
            Self::XskRsBaseline => "xsk-rs baseline",
        }
    }

    /// Whether pods are reached without a tunnel.
    pub fn is_native(self) -> bool {
        self.mode() == Mode::Native
    }

    /// How packets are sent to other nodes.
    pub fn mode(self) -> Mode {
        match self {
            Self::Hosts
            | Self::HostsBesidePodway
            | Self::KernelWorld
            | Self::PodwayWorld
            | Self::KernelNative
            | Self::PodwayNative
            | Self::PodwayNativeAfXdp => Mode::Native,
            Self::KernelVxlan
            | Self::KernelVxlanNoGro
            | Self::PodwayVxlan
            | Self::PodwayVxlanAfXdp
            | Self::PodwayVxlanFull
            | Self::PodwaySpin
            | Self::OvsAfxdp
            | Self::OvsAfxdpNonpmd
            | Self::OvsSystem
            | Self::XskRsBaseline => Mode::Vxlan,
        }
    }

    /// Whether it carries between pods, and not between the nodes themselves.
    pub fn has_pods(self) -> bool {
        !matches!(self, Self::Hosts | Self::HostsBesidePodway)
    }

    /// Whether it carries from a pod to the other node itself.
    pub fn is_to_host(self) -> bool {
        matches!(self, Self::KernelWorld | Self::PodwayWorld)
    }

    /// Whether it switches where the others route: the pods are on one link then, and finish the
    /// checksums of what they send (`tx off`), because it cannot.
    pub fn is_switch(self) -> bool {
        Self::PEERS.contains(&self)
    }

    /// Fails when a program that it needs is missing, before anything is built for it.
    ///
    /// # Errors
    /// With what is missing and what to do.
    pub fn check_installed(self) -> Result<()> {
        let there = match self {
            Self::PodwayVxlan
            | Self::PodwayVxlanAfXdp
            | Self::PodwayVxlanFull
            | Self::PodwayNative
            | Self::PodwayNativeAfXdp
            | Self::PodwayWorld
            | Self::HostsBesidePodway
            | Self::PodwaySpin => {
                let programs = ["podway", "podway-control", "podway-dataplane"];
                let mut found = programs.iter().map(|name| program(name));
                return found.try_for_each(|found| found.map(drop));
            }
            Self::OvsAfxdp | Self::OvsAfxdpNonpmd | Self::OvsSystem => ovs::installed(),
            Self::XskRsBaseline => baseline::installed(),
            Self::Hosts
            | Self::KernelWorld
            | Self::KernelVxlan
            | Self::KernelVxlanNoGro
            | Self::KernelNative => true,
        };
        if there {
            return Ok(());
        }
        Err(Error::Unexpected(format!(
            "{self} is not installed; scripts/bench --install-peers does it"
        )))
    }

    fn carrier(self, cluster: &Cluster, nodes: &[Node]) -> Result<Box<dyn Carrier>> {
        let pods = nodes.first().map_or(0, |node| node.pods.len());
        let podway = |ingress| -> Result<Box<dyn Carrier>> {
            let others = FULL_NODE.saturating_sub(u8::try_from(pods).unwrap_or(u8::MAX));
            let options = Options {
                mode: self.mode(),
                ingress,
                idle_ports: if self == Self::PodwayVxlanFull {
                    others
                } else {
                    0
                },
                ..Options::default()
            };
            Ok(Box::new(Podway::start_on(cluster, nodes, &options)?))
        };
        match self {
            Self::Hosts => Ok(Box::new(Nobody)),
            Self::KernelVxlan => Ok(Box::new(kernel::Vxlan::put(cluster, nodes, None)?)),
            Self::KernelVxlanNoGro => {
                Ok(Box::new(kernel::Vxlan::put(cluster, nodes, Some(false))?))
            }
            Self::KernelNative | Self::KernelWorld => {
                Ok(Box::new(kernel::Native::put(cluster, nodes)?))
            }
            Self::PodwayVxlan
            | Self::PodwayVxlanFull
            | Self::PodwayNative
            | Self::PodwayWorld
            | Self::HostsBesidePodway => podway(IngressChoice::Auto),
            Self::PodwayVxlanAfXdp | Self::PodwayNativeAfXdp => podway(IngressChoice::AfXdp),
            Self::PodwaySpin => Ok(Box::new(Spinning::put(cluster)?)),
            Self::OvsAfxdp => Ok(Box::new(OpenVSwitch::put(cluster, Ports::Afxdp)?)),
            Self::OvsAfxdpNonpmd => Ok(Box::new(OpenVSwitch::put(cluster, Ports::AfxdpNonpmd)?)),
            Self::OvsSystem => Ok(Box::new(OpenVSwitch::put(cluster, Ports::System)?)),
            Self::XskRsBaseline => Ok(Box::new(Baseline::put(cluster)?)),
        }
    }
}

impl fmt::Display for Contender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.label())
    }
}

/// A contender in charge of a cluster.
#[derive(Debug)]
pub struct InCharge {
    contender: Contender,
    carrier: Box<dyn Carrier>,
}

impl InCharge {
    /// Puts a contender in charge. Nobody else may be. The MTU of the pods' routes is set for it.
    ///
    /// # Errors
    /// When a command fails or a daemon does not come up.
    pub fn put(contender: Contender, cluster: &Cluster) -> Result<Self> {
        Self::put_on(contender, cluster, cluster.nodes())
    }

    /// Puts a contender in charge of some nodes only; the others forward nothing.
    ///
    /// # Errors
    /// As [`InCharge::put`].
    pub fn put_on(contender: Contender, cluster: &Cluster, nodes: &[Node]) -> Result<Self> {
        // A switch gives the pods routes of its own.
        if contender.has_pods() && !contender.is_switch() {
            let mtu = pod_mtu(cluster.spec().uplink_mtu, contender.mode(), false);
            cluster.set_pod_mtu(mtu)?;
        }
        let carrier = contender.carrier(cluster, nodes)?;
        Ok(Self { contender, carrier })
    }

    /// Who it is.
    pub fn contender(&self) -> Contender {
        self.contender
    }

    /// How it is asked.
    pub fn carrier(&self) -> &dyn Carrier {
        &*self.carrier
    }

    /// Takes the contender away; another one can be put in charge then.
    ///
    /// # Errors
    /// When a command fails, or a daemon does not end well.
    pub fn take_away(self, cluster: &Cluster) -> Result<()> {
        self.carrier.take_away(cluster)
    }
}

/// What carries, asked the same of everyone.
pub trait Carrier: fmt::Debug {
    /// Version, mode and engines, for people.
    ///
    /// # Errors
    /// When it cannot be asked.
    fn engine(&self, cluster: &Cluster) -> Result<String>;

    /// Its processes; none where the kernel carries.
    ///
    /// # Errors
    /// When one has ended.
    fn pids(&self) -> Result<Vec<u32>> {
        Ok(Vec::new())
    }

    /// Packets that its rings and queues have lost since it was put in charge, by cause.
    ///
    /// # Errors
    /// When it cannot be asked.
    fn lost(&self) -> Result<BTreeMap<String, u64>> {
        Ok(BTreeMap::new())
    }

    /// Waits until nothing is on its way, and checks its books if it keeps any.
    ///
    /// # Errors
    /// When the books do not balance.
    fn settle(&self) -> Result<()> {
        Ok(())
    }

    /// Undoes all that putting it in charge has done.
    ///
    /// # Errors
    /// When a command fails, or a daemon does not end well.
    fn take_away(self: Box<Self>, cluster: &Cluster) -> Result<()>;
}

/// What the nodes say to each other needs no carrier.
#[derive(Debug)]
struct Nobody;

impl Carrier for Nobody {
    fn engine(&self, cluster: &Cluster) -> Result<String> {
        Ok(kernel::describe(cluster, "no routing"))
    }

    fn take_away(self: Box<Self>, _cluster: &Cluster) -> Result<()> {
        Ok(())
    }
}

impl Carrier for Podway {
    fn engine(&self, _cluster: &Cluster) -> Result<String> {
        let agent = self.agents().first();
        agent.map_or_else(|| Ok(String::new()), |agent| agent.engine(UPLINK))
    }

    fn pids(&self) -> Result<Vec<u32>> {
        let agents = self.agents().iter();
        let each = agents.map(|agent| Ok([agent.dataplane_pid()?, agent.control_pid()?]));
        Ok(each.collect::<Result<Vec<_>>>()?.concat())
    }

    fn lost(&self) -> Result<BTreeMap<String, u64>> {
        let mut sums = BTreeMap::new();
        for agent in self.agents() {
            for (name, count) in agent.lost()? {
                *sums.entry(name).or_default() += count;
            }
        }
        Ok(sums)
    }

    fn settle(&self) -> Result<()> {
        let mut agents = self.agents().iter();
        agents.try_for_each(|agent| agent.balanced().map(drop))
    }

    fn take_away(self: Box<Self>, _cluster: &Cluster) -> Result<()> {
        self.stop()
    }
}

impl Carrier for OpenVSwitch {
    fn engine(&self, _cluster: &Cluster) -> Result<String> {
        Ok(self.engine())
    }

    fn pids(&self) -> Result<Vec<u32>> {
        Ok(self.pids())
    }

    fn lost(&self) -> Result<BTreeMap<String, u64>> {
        self.lost()
    }

    fn take_away(self: Box<Self>, cluster: &Cluster) -> Result<()> {
        Self::take_away(*self, cluster)
    }
}

impl Carrier for Baseline {
    fn engine(&self, _cluster: &Cluster) -> Result<String> {
        Ok(self.engine())
    }

    fn pids(&self) -> Result<Vec<u32>> {
        Ok(self.pids())
    }

    fn lost(&self) -> Result<BTreeMap<String, u64>> {
        self.lost()
    }

    fn take_away(self: Box<Self>, cluster: &Cluster) -> Result<()> {
        Self::take_away(*self, cluster)
    }
}

/// [`Contender::PodwaySpin`].
#[derive(Debug)]
struct Spinning {
    podway: Podway,
}

impl Spinning {
    fn put(cluster: &Cluster) -> Result<Self> {
        let (first, others) = cluster.nodes().split_at(1);
        let options = Options {
            wait: WaitMode::Spin,
            cores: vec![OWNED_CORE],
            cpu_latency: Some(0),
            ..Options::default()
        };
        // Its worker has a core to itself; whoever measures may keep to the others.
        let podway = cpu::on_all_cores(|| Podway::start_on(cluster, first, &options))?;
        for node in others {
            kernel::add_vxlan(cluster, node)?;
        }
        Ok(Self { podway })
    }
}

impl Carrier for Spinning {
    fn engine(&self, cluster: &Cluster) -> Result<String> {
        let podway = self.podway.engine(cluster)?;
        let kernel = kernel::describe(cluster, "VXLAN device");
        Ok(format!(
            "{podway}, on core {OWNED_CORE}, idle CPUs kept awake; peer: {kernel}"
        ))
    }

    fn pids(&self) -> Result<Vec<u32>> {
        self.podway.pids()
    }

    fn lost(&self) -> Result<BTreeMap<String, u64>> {
        self.podway.lost()
    }

    fn settle(&self) -> Result<()> {
        self.podway.settle()
    }

    fn take_away(self: Box<Self>, cluster: &Cluster) -> Result<()> {
        self.podway.stop()?;
        let mut others = cluster.nodes().iter().skip(1);
        others.try_for_each(kernel::del_vxlan)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tunnel_takes_fifty_bytes_or_seventy() {
        assert_eq!(pod_mtu(1500, Mode::Vxlan, false), 1450);
        assert_eq!(pod_mtu(1500, Mode::Vxlan, true), 1430);
        for underlay6 in [false, true] {
            assert_eq!(pod_mtu(1500, Mode::Native, underlay6), 1500);
        }
    }

    #[test]
    fn names_of_the_command_line_and_of_files_are_the_same() {
        for contender in Contender::value_variants() {
            let argument = contender.to_possible_value().unwrap();
            let text = serde_json::to_string(contender).unwrap();
            assert_eq!(text, format!("\"{}\"", argument.get_name()));
        }
    }
}
