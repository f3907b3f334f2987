//! Who carries the pods' packets.

use std::collections::BTreeMap;

use podway_proto::types::Mode;
use serde::Serialize;

use crate::baseline::Baseline;
use crate::ovs::{OpenVSwitch, Ports};
use crate::podway::{Options, Podway};
use crate::topology::Cluster;
use crate::{Result, baseline, kernel, ovs};

/// What a VXLAN tunnel over IPv4 adds to a packet, in bytes: inner Ethernet 14, VXLAN 8, UDP 8,
/// IPv4 20.
pub const VXLAN_OVERHEAD: u16 = 50;

/// The MTU of pods' routes that an underlay of `uplink_mtu` allows, in bytes.
pub fn pod_mtu(uplink_mtu: u16, mode: Mode) -> u16 {
    match mode {
        Mode::Vxlan => uplink_mtu - VXLAN_OVERHEAD,
        Mode::Native => uplink_mtu,
    }
}

/// A row of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Contender {
    /// Between the nodes themselves: no pod, no routing.
    Hosts,
    /// Between pods by the kernel's VXLAN device.
    KernelVxlan,
    /// Between pods by the kernel's routing.
    KernelNative,
    /// Between pods by Podway in VXLAN mode.
    PodwayVxlan,
    /// Between pods by Podway in native mode.
    PodwayNative,
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
    /// Those that are always there, in the order of the table.
    pub const ALL: [Self; 5] = [
        Self::Hosts,
        Self::KernelVxlan,
        Self::KernelNative,
        Self::PodwayVxlan,
        Self::PodwayNative,
    ];

    /// Those that must be installed: `scripts/setup --install-peers`.
    pub const PEERS: [Self; 4] = [
        Self::OvsAfxdp,
        Self::OvsAfxdpNonpmd,
        Self::OvsSystem,
        Self::XskRsBaseline,
    ];

    /// Whether it can be put in charge on this machine.
    pub fn installed(self) -> bool {
        match self {
            Self::OvsAfxdp | Self::OvsAfxdpNonpmd | Self::OvsSystem => ovs::installed(),
            Self::XskRsBaseline => baseline::installed(),
            _ => true,
        }
    }

    /// Its name in the table.
    pub fn label(self) -> &'static str {
        match self {
            Self::Hosts => "between hosts",
            Self::KernelVxlan => "kernel VXLAN",
            Self::KernelNative => "kernel native",
            Self::PodwayVxlan => "Podway VXLAN",
            Self::PodwayNative => "Podway native",
            Self::OvsAfxdp => "OVS afxdp",
            Self::OvsAfxdpNonpmd => "OVS nonpmd",
            Self::OvsSystem => "OVS system",
            Self::XskRsBaseline => "xsk-rs",
        }
    }

    /// Whether pods are reached without a tunnel.
    pub fn is_native(self) -> bool {
        matches!(self, Self::KernelNative | Self::PodwayNative)
    }
}

/// A contender in charge of a cluster.
#[derive(Debug)]
pub struct InCharge {
    contender: Contender,
    podway: Option<Podway>,
    peer: Option<Peer>,
}

#[derive(Debug)]
enum Peer {
    Ovs(OpenVSwitch),
    Baseline(Baseline),
}

impl InCharge {
    /// Puts a contender in charge. Nobody else may be.
    ///
    /// # Errors
    /// When a command fails or Podway does not come up.
    pub fn put(contender: Contender, cluster: &Cluster) -> Result<Self> {
        let mtu = cluster.spec().uplink_mtu;
        let (mut podway, mut peer) = (None, None);
        match contender {
            Contender::Hosts => {}
            Contender::KernelVxlan => {
                cluster.set_pod_mtu(pod_mtu(mtu, Mode::Vxlan))?;
                for node in cluster.nodes() {
                    kernel::add_vxlan(cluster, node)?;
                }
            }
            Contender::KernelNative => {
                cluster.set_pod_mtu(pod_mtu(mtu, Mode::Native))?;
                for node in cluster.nodes() {
                    kernel::add_native(cluster, node)?;
                }
            }
            Contender::PodwayVxlan | Contender::PodwayNative => {
                let mode = if contender.is_native() {
                    Mode::Native
                } else {
                    Mode::Vxlan
                };
                let options = Options {
                    mode,
                    ..Options::default()
                };
                podway = Some(Podway::start(cluster, &options)?);
            }
            Contender::OvsAfxdp => peer = Some(Peer::ovs(cluster, Ports::Afxdp)?),
            Contender::OvsAfxdpNonpmd => peer = Some(Peer::ovs(cluster, Ports::AfxdpNonpmd)?),
            Contender::OvsSystem => peer = Some(Peer::ovs(cluster, Ports::System)?),
            Contender::XskRsBaseline => peer = Some(Peer::Baseline(Baseline::put(cluster)?)),
        }
        Ok(Self {
            contender,
            podway,
            peer,
        })
    }

    /// Podway, if it is in charge.
    pub fn podway(&self) -> Option<&Podway> {
        self.podway.as_ref()
    }

    /// Version and mode of a peer, if one is in charge.
    pub fn peer_engine(&self) -> Option<String> {
        self.peer.as_ref().map(|peer| match peer {
            Peer::Ovs(ovs) => ovs.engine(),
            Peer::Baseline(baseline) => baseline.engine(),
        })
    }

    /// The processes of a peer that carry packets, one on each node; empty without a peer.
    pub fn peer_pids(&self) -> Vec<u32> {
        match &self.peer {
            Some(Peer::Ovs(ovs)) => ovs.pids(),
            Some(Peer::Baseline(baseline)) => baseline.pids(),
            None => Vec::new(),
        }
    }

    /// What a peer has lost so far, by cause; empty without a peer.
    ///
    /// # Errors
    /// When the peer does not answer.
    pub fn peer_lost(&self) -> Result<BTreeMap<String, u64>> {
        match &self.peer {
            Some(Peer::Ovs(ovs)) => ovs.lost(),
            Some(Peer::Baseline(baseline)) => baseline.lost(),
            None => Ok(BTreeMap::new()),
        }
    }

    /// Takes the contender away again.
    ///
    /// # Errors
    /// When a command fails, or Podway does not end well.
    pub fn take_away(self, cluster: &Cluster) -> Result<()> {
        match self.peer {
            Some(Peer::Ovs(ovs)) => return ovs.take_away(cluster),
            Some(Peer::Baseline(baseline)) => return baseline.take_away(cluster),
            None => {}
        }
        match (self.podway, self.contender) {
            (Some(podway), _) => podway.stop(),
            (None, Contender::KernelVxlan) => {
                cluster.nodes().iter().try_for_each(kernel::del_vxlan)
            }
            (None, Contender::KernelNative) => {
                let mut nodes = cluster.nodes().iter();
                nodes.try_for_each(|node| kernel::del_native(cluster, node))
            }
            (None, _) => Ok(()),
        }
    }
}

impl Peer {
    fn ovs(cluster: &Cluster, ports: Ports) -> Result<Self> {
        OpenVSwitch::put(cluster, ports).map(Self::Ovs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tunnel_takes_fifty_bytes() {
        assert_eq!(pod_mtu(1500, Mode::Vxlan), 1450);
        assert_eq!(pod_mtu(1500, Mode::Native), 1500);
    }
}
