//! What a worker notes of a packet: ids in place of names, and where on its path that was.

use std::net::IpAddr;

use podway_proto::types::MacAddr;
use podway_proto::watch::{WatchFlow, WatchNextHopKind, WatchPoint};

use crate::fib::{NextHop, NextHopKind, PortId};
use crate::verdict::{DropReason, Send};

/// Facts of a packet at one point, as a worker writes them: ids in place of names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Note {
    /// When: CLOCK_REALTIME in nanoseconds.
    pub time: u64,
    /// The packet's number in this watch of this worker.
    pub packet: u64,
    /// Where.
    pub point: WatchPoint,
    /// The port that it came by; [`PortId::NONE`] when it came by none.
    pub came_by: PortId,
    /// Its size in bytes there.
    pub length: u32,
    /// Payload bytes of its segments, where they are known.
    pub segment: Option<u16>,
    /// Frames that it lay in.
    pub frames: u16,
    /// Whose it is.
    pub flow: Option<WatchFlow>,
    /// Of the tunnel that it came by.
    pub vni: Option<u32>,
    /// Who has sent that tunnel; of the packet as it came and as it was inside.
    pub sender: Option<IpAddr>,
    /// Where it goes.
    pub exit: Option<Exit>,
    /// Why it died.
    pub reason: Option<DropReason>,
    /// Its bytes that are in the ring.
    pub kept: u32,
}

impl Default for Note {
    fn default() -> Self {
        Self {
            time: 0,
            packet: 0,
            point: WatchPoint::Ingress,
            came_by: PortId::NONE,
            length: 0,
            segment: None,
            frames: 0,
            flow: None,
            vni: None,
            sender: None,
            exit: None,
            reason: None,
            kept: 0,
        }
    }
}

/// Where a packet leaves to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exit {
    /// The port.
    pub port: PortId,
    /// What is there; `None` where only the port is known.
    pub to: Option<ExitTo>,
}

/// What is known of a next hop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExitTo {
    /// What it is.
    pub kind: WatchNextHopKind,
    /// The next station on the link.
    pub mac: MacAddr,
    /// The far end of the tunnel and its VNI.
    pub tunnel: Option<(IpAddr, u32)>,
    /// Largest IP packet that leaves uncut.
    pub mtu: u16,
}

impl Exit {
    pub(super) fn of(send: &Send<'_>) -> Self {
        let NextHop { port, l2, kind, .. } = send.next_hop;
        let link = |l2: &[u8]| MacAddr(l2.first_chunk().copied().unwrap_or_default());
        let (kind, mac, tunnel) = match kind {
            NextHopKind::Tunnel(outer) => {
                let tunnel = (outer.destination(), outer.vni().get());
                (WatchNextHopKind::Vxlan, link(outer.bytes()), Some(tunnel))
            }
            NextHopKind::Pod => (WatchNextHopKind::Pod, link(&l2.0), None),
            _ => (WatchNextHopKind::Native, link(&l2.0), None),
        };
        let to = ExitTo {
            kind,
            mac,
            tunnel,
            mtu: send.max_l3_len,
        };
        Self {
            port: *port,
            to: Some(to),
        }
    }
}

/// A set of points.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Points(u8);

impl Points {
    /// Whether `point` is among them.
    #[inline]
    pub(super) fn has(self, point: WatchPoint) -> bool {
        self.0 & 1 << point as u8 != 0
    }

    /// These and `point`.
    #[inline]
    pub(super) fn and(self, point: WatchPoint) -> Self {
        Self(self.0 | 1 << point as u8)
    }

    /// Whether any of them is among `others`.
    #[inline]
    pub(super) fn meet(self, others: Self) -> bool {
        self.0 & others.0 != 0
    }
}

impl FromIterator<WatchPoint> for Points {
    fn from_iter<I: IntoIterator<Item = WatchPoint>>(points: I) -> Self {
        Self(
            points
                .into_iter()
                .fold(0, |set, point| set | 1 << point as u8),
        )
    }
}
