//! Counts the generator's packets where they arrive, and drops them.

use std::mem::MaybeUninit;
use std::os::fd::AsFd as _;
use std::time::{Duration, Instant};

use libbpf_rs::skel::{OpenSkel as _, SkelBuilder as _};
use libbpf_rs::{MapCore as _, MapFlags, MapHandle};
use serde::Serialize;

use super::attach::{Attachment, Place};
use super::skel::sink::SinkSkelBuilder;
use crate::netns::{Netns, join};
use crate::{Error, Result, cleanup};

/// Packets on their way arrive within this, or are lost.
const QUIET: Duration = Duration::from_millis(100);
/// No queue here holds packets for longer.
const SETTLE_DEADLINE: Duration = Duration::from_secs(5);

/// What arrived.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Arrived {
    /// Packets of the generator.
    pub packets: u64,
    /// Frames that they arrived in.
    pub frames: u64,
    /// Bytes of their frames, Ethernet headers included.
    pub bytes: u64,
    /// Frames that held several packets, which no real wire carries.
    pub super_frames: u64,
}

impl Arrived {
    /// What arrived since `earlier`.
    #[must_use]
    pub fn since(self, earlier: Self) -> Self {
        Self {
            packets: self.packets - earlier.packets,
            frames: self.frames - earlier.frames,
            bytes: self.bytes - earlier.bytes,
            super_frames: self.super_frames - earlier.super_frames,
        }
    }
}

/// A counter on the receiving side of an interface, which lets nothing of the generator by.
/// Dropping it removes it.
#[derive(Debug)]
pub struct Sink {
    totals: MapHandle,
    flows: MapHandle,
    _attachment: Attachment,
}

impl Sink {
    /// Puts a counter on an interface. Packets in VXLAN to UDP port `vxlan_port` are known too.
    ///
    /// # Errors
    /// When there is no such interface, or the kernel has no tcx (6.6 with
    /// `CONFIG_NET_XGRESS`).
    pub fn attach(netns: &Netns, interface: &str, vxlan_port: u16) -> Result<Self> {
        let interface = interface.to_owned();
        join(netns.thread(move || {
            let mut object = MaybeUninit::uninit();
            let mut open = SinkSkelBuilder::default().open(&mut object)?;
            let Some(constants) = open.maps.rodata_data.as_deref_mut() else {
                return Err(Error::Unexpected("the sink has no constants".to_owned()));
            };
            constants.vxlan_port = vxlan_port;
            let loaded = open.load()?;
            let program = loaded.progs.podway_sink.as_fd();
            Ok(Self {
                totals: MapHandle::try_from(&loaded.maps.totals)?,
                flows: MapHandle::try_from(&loaded.maps.flows)?,
                _attachment: Attachment::new(program, Place::TcIngress, &interface)?,
            })
        }))
    }

    /// What has arrived so far.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn arrived(&self) -> Result<Arrived> {
        let cpus = per_cpu(&self.totals, 0)?;
        let field = |offset| cpus.iter().filter_map(|cpu| word(cpu, offset)).sum();
        Ok(Arrived {
            packets: field(0),
            frames: field(8),
            bytes: field(16),
            super_frames: field(24),
        })
    }

    /// What has arrived, once nothing more does for a tenth of a second.
    ///
    /// # Errors
    /// When packets go on arriving.
    pub fn settled(&self) -> Result<Arrived> {
        let deadline = Instant::now() + SETTLE_DEADLINE;
        let mut last = self.arrived()?;
        while Instant::now() < deadline {
            std::thread::sleep(QUIET);
            cleanup::interrupted()?;
            let now = self.arrived()?;
            if now == last {
                return Ok(now);
            }
            last = now;
        }
        Err(Error::Timeout {
            what: "no more packets at the sink".to_owned(),
            after: SETTLE_DEADLINE,
            last: format!("{last:?}"),
        })
    }

    /// Frames that have arrived so far of each of the first `flows` flows.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn by_flow(&self, flows: u16) -> Result<Vec<u64>> {
        let counts = (0..u32::from(flows)).map(|flow| {
            let cpus = per_cpu(&self.flows, flow)?;
            Ok(cpus.iter().filter_map(|cpu| word(cpu, 0)).sum())
        });
        counts.collect()
    }
}

/// The cheapest end there is: an XDP program in the driver that drops everything. Dropping this
/// removes it.
#[derive(Debug)]
pub struct Dropper {
    _attachment: Attachment,
}

impl Dropper {
    /// Puts it on an interface.
    ///
    /// # Errors
    /// When there is no such interface or its driver has no native XDP.
    pub fn attach(netns: &Netns, interface: &str) -> Result<Self> {
        let interface = interface.to_owned();
        join(netns.thread(move || {
            let mut object = MaybeUninit::uninit();
            let loaded = SinkSkelBuilder::default().open(&mut object)?.load()?;
            let program = loaded.progs.podway_drop.as_fd();
            Ok(Self {
                _attachment: Attachment::new(program, Place::NativeXdp, &interface)?,
            })
        }))
    }
}

fn per_cpu(map: &MapHandle, key: u32) -> Result<Vec<Vec<u8>>> {
    let found = map.lookup_percpu(&key.to_ne_bytes(), MapFlags::ANY)?;
    found.ok_or_else(|| Error::Unexpected(format!("the sink's map has no entry {key}")))
}

fn word(bytes: &[u8], offset: usize) -> Option<u64> {
    let word = bytes.get(offset..)?.first_chunk()?;
    Some(u64::from_ne_bytes(*word))
}
