//! Who carries the pods' packets.

use podway_proto::types::Mode;
use serde::Serialize;

use crate::podway::{Options, Podway};
use crate::topology::Cluster;
use crate::{Result, kernel};

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
}

impl Contender {
    /// All of them, in the order of the table.
    pub const ALL: [Self; 5] = [
        Self::Hosts,
        Self::KernelVxlan,
        Self::KernelNative,
        Self::PodwayVxlan,
        Self::PodwayNative,
    ];

    /// Its name in the table.
    pub fn label(self) -> &'static str {
        match self {
            Self::Hosts => "between hosts",
            Self::KernelVxlan => "kernel VXLAN",
            Self::KernelNative => "kernel native",
            Self::PodwayVxlan => "Podway VXLAN",
            Self::PodwayNative => "Podway native",
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
}

impl InCharge {
    /// Puts a contender in charge. Nobody else may be.
    ///
    /// # Errors
    /// When a command fails or Podway does not come up.
    pub fn put(contender: Contender, cluster: &Cluster) -> Result<Self> {
        let mtu = cluster.spec().uplink_mtu;
        let mut podway = None;
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
        }
        Ok(Self { contender, podway })
    }

    /// Podway, if it is in charge.
    pub fn podway(&self) -> Option<&Podway> {
        self.podway.as_ref()
    }

    /// Takes the contender away again.
    ///
    /// # Errors
    /// When a command fails, or Podway does not end well.
    pub fn take_away(self, cluster: &Cluster) -> Result<()> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tunnel_takes_fifty_bytes() {
        assert_eq!(pod_mtu(1500, Mode::Vxlan), 1450);
        assert_eq!(pod_mtu(1500, Mode::Native), 1500);
    }
}
