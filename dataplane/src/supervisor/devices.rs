//! What a worker receives by: its TAP and its packet ring.
//!
//! The tcx programs of the ports redirect to the TAP what needs its header, which tells the segments
//! of super-frames and where a checksum is unfinished: all of TCP, and few others. Everything else
//! they copy to the ring, where the worker finds it without a system call for each packet.

use std::sync::Arc;

use podway_proto::ErrorBody;
use podway_proto::config::IngressChoice;
use podway_xdp_redirect::{PacketRing, Redirect, TcxAttachment};

use super::{StartError, Supervisor, system};
use crate::config::Config;
use crate::fib::PortId;
use crate::ingress::{Ingress, RingReader, TapIngress};
use crate::tap::Tap;
use crate::worker::{RING_QUEUE, ServedQueue, TAP_QUEUE};

/// Bytes of a packet ring for each entry that an AF_XDP ring would have: a small packet's record is
/// half of it, one of the usual MTU four times as large.
const BYTES_PER_ENTRY: u32 = 512;

/// What a worker receives by. It also sends by its TAP, what is cut on an uplink.
#[derive(Debug)]
pub(super) struct WorkerDevices {
    tap: Arc<Tap>,
    /// Until the worker has it.
    ring: Option<PacketRing>,
    /// The program that sends what the worker writes to the TAP.
    _transmitter: TcxAttachment,
}

impl WorkerDevices {
    fn make(number: u16, config: &Config, redirect: &Redirect) -> Result<Self, StartError> {
        let tap = Tap::open(number)?;
        Ok(Self {
            _transmitter: redirect.attach_transmitter(tap.ifindex())?,
            tap: Arc::new(tap),
            ring: Some(PacketRing::new(config.ring_size * BYTES_PER_ENTRY)?),
        })
    }

    /// The TAP, to send by.
    pub(super) fn tap(&self) -> Arc<Tap> {
        Arc::clone(&self.tap)
    }

    /// The TAP's name, and how many packets were redirected to it and lost there.
    pub(super) fn lost(&self) -> (&str, u64) {
        (self.tap.name(), self.tap.dropped())
    }
}

/// The devices of each worker; none, and why, where `auto` may do without.
pub(super) fn make_devices(
    config: &Config,
    redirect: &Redirect,
) -> Result<(Vec<WorkerDevices>, Option<String>), StartError> {
    let all = || {
        let numbers = (0..).take(config.workers.len());
        numbers
            .map(|number| WorkerDevices::make(number, config, redirect))
            .collect()
    };
    match config.ingress {
        IngressChoice::AfXdp => Ok((Vec::new(), Some("set by dataplane.ingress".to_owned()))),
        IngressChoice::Tap => Ok((all()?, None)),
        IngressChoice::Auto => match all() {
            Ok(devices) => Ok((devices, None)),
            Err(error) => {
                tracing::info!(%error, "ports are received by AF_XDP alone");
                Ok((Vec::new(), Some(error.to_string())))
            }
        },
    }
}

impl Supervisor {
    /// Hands each worker its devices.
    pub(super) fn serve_devices(&mut self) -> Result<(), ErrorBody> {
        for worker in (0..).take(self.workers.len()) {
            let Some(devices) = self.devices_of(worker) else {
                continue;
            };
            let (tap, Some(ring)) = (devices.tap(), devices.ring.take()) else {
                continue;
            };
            self.redirect
                .set_ring(worker.into(), &ring)
                .map_err(system)?;
            let tap_ifindex = tap.ifindex();
            for (queue, ingress) in [
                (TAP_QUEUE, Ingress::Tap(TapIngress::new(tap))),
                (RING_QUEUE, Ingress::PacketRing(RingReader::new(ring))),
            ] {
                let queue = ServedQueue {
                    port: PortId::NONE,
                    queue,
                    ingress,
                    active: false,
                };
                self.serve(worker, queue)?;
            }
            self.redirect
                .set_tap(worker.into(), tap_ifindex)
                .map_err(system)?;
        }
        Ok(())
    }

    fn devices_of(&mut self, worker: u16) -> Option<&mut WorkerDevices> {
        self.workers.get_mut(usize::from(worker))?.devices.as_mut()
    }
}
