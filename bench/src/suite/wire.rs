//! The wires between the nodes.

use std::fmt;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use crate::contender::Contender;
use crate::topology::ClusterSpec;

/// MTU of the link in the middle of [`Wire::NarrowMiddle`], in bytes.
const NARROW_MTU: u16 = 1400;
/// What pods announce on [`Wire::SmallSegments`], in bytes: what hosts do that know of no path.
const SMALL_MSS: u16 = 536;
/// MTU of jumbo frames, in bytes.
const JUMBO_MTU: u16 = 9000;

/// What joins the nodes, and what senders may leave to it. A wire is *true* when it carries
/// frames of at most its MTU.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ValueEnum,
)]
#[serde(rename_all = "kebab-case")]
pub enum Wire {
    /// True, 1500 bytes; unfinished checksums pass, as a veth allows.
    True,
    /// True, 1500 bytes; checksums are finished by the sender, as for a NIC without offloads.
    TrueTxOff,
    /// True, 9000 bytes; unfinished checksums pass.
    Jumbo,
    /// True, 9000 bytes; checksums are finished by the sender.
    JumboTxOff,
    /// A veth as it is, super-frames and all: two virtual machines of one host.
    Virtual,
    /// Two routers with a link of 1400 bytes between them, of which the nodes are not told. True,
    /// finished checksums.
    NarrowMiddle,
    /// As [`Wire::TrueTxOff`]; pods announce a maximum segment size of 536 bytes.
    SmallSegments,
    /// As [`Wire::True`], with everything but a spinning worker on core 0.
    Pinned,
}

impl Wire {
    /// The network to build for it.
    pub fn spec(self, prefix: &str) -> ClusterSpec {
        let spec = ClusterSpec {
            pods_per_node: 1,
            ..ClusterSpec::new(prefix)
        };
        match self {
            Self::True | Self::Pinned => spec,
            Self::TrueTxOff => ClusterSpec {
                uplink_tx_checksum: false,
                ..spec
            },
            Self::Jumbo => ClusterSpec {
                uplink_mtu: JUMBO_MTU,
                ..spec
            },
            Self::JumboTxOff => ClusterSpec {
                uplink_mtu: JUMBO_MTU,
                uplink_tx_checksum: false,
                ..spec
            },
            Self::Virtual => ClusterSpec {
                wire_true: false,
                ..spec
            },
            Self::SmallSegments => ClusterSpec {
                announced_mss: Some(SMALL_MSS),
                uplink_tx_checksum: false,
                ..spec
            },
            Self::NarrowMiddle => ClusterSpec {
                narrow_middle: Some(NARROW_MTU),
                uplink_tx_checksum: false,
                ..spec
            },
        }
    }

    /// Whether a contender can be measured on it. The switches know no frames over 1500 bytes and no
    /// routers, and put pods on one link with routes of their own; a spinning worker needs a core of
    /// its own; a full node is compared on one wire only, AF_XDP natively where segments are small
    /// and on the wire to compare these with.
    pub fn suits(self, contender: Contender) -> bool {
        match contender {
            Contender::PodwayVxlanFull
            | Contender::Hosts
            | Contender::HostsBesidePodway
            | Contender::KernelWorld
            | Contender::PodwayWorld => return self == Self::True,
            Contender::PodwayNativeAfXdp => {
                return matches!(
                    self,
                    Self::TrueTxOff | Self::NarrowMiddle | Self::SmallSegments
                );
            }
            _ => {}
        }
        let spins = contender == Contender::PodwaySpin;
        match self {
            Self::Jumbo | Self::JumboTxOff | Self::NarrowMiddle | Self::SmallSegments => {
                !contender.is_switch() && !spins
            }
            Self::Pinned => true,
            Self::True | Self::TrueTxOff | Self::Virtual => !spins,
        }
    }

    /// The core that everything is kept on, but for workers with a core of their own.
    pub fn core(self) -> Option<usize> {
        (self == Self::Pinned).then_some(0)
    }
}

impl fmt::Display for Wire {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::True => "wire-true, MTU 1500, tx on",
            Self::TrueTxOff => "wire-true, MTU 1500, tx off",
            Self::Jumbo => "wire-true, MTU 9000, tx on",
            Self::JumboTxOff => "wire-true, MTU 9000, tx off",
            Self::Virtual => "virtual wire, offloads left on",
            Self::NarrowMiddle => "1400-byte link in the middle, tx off",
            Self::SmallSegments => "wire-true, MTU 1500, tx off, MSS 536 announced",
            Self::Pinned => "wire-true, MTU 1500, tx on; all but a spinning worker on core 0",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_virtual_wire_carries_super_frames() {
        for wire in Wire::value_variants() {
            assert_eq!(wire.spec("x").wire_true, *wire != Wire::Virtual);
        }
    }

    #[test]
    fn contenders_are_measured_where_they_can_be() {
        assert!(Wire::True.suits(Contender::KernelNative));
        assert!(Wire::NarrowMiddle.suits(Contender::PodwayNative));
        assert!(!Wire::NarrowMiddle.suits(Contender::OvsAfxdp));
        assert!(Wire::SmallSegments.suits(Contender::PodwayNativeAfXdp));
        assert!(!Wire::True.suits(Contender::PodwayNativeAfXdp));
        assert!(!Wire::True.suits(Contender::PodwaySpin));
        assert!(Wire::True.suits(Contender::PodwayVxlanFull));
        assert!(!Wire::Jumbo.suits(Contender::PodwayVxlanFull));
        assert!(Wire::True.suits(Contender::OvsAfxdp));
        assert!(!Wire::Jumbo.suits(Contender::OvsAfxdp));
        assert!(Wire::Pinned.suits(Contender::PodwaySpin));
    }
}
