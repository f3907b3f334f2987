//! The devices of a worker: its TAP and its ring device.
//!
//! The tcx programs of the ports redirect to the TAP what needs its header, which tells the segments
//! of super-frames and where a checksum is unfinished: all of TCP, and few others. Everything else
//! they redirect to the ring device, of which an AF_XDP socket takes it without a system call for
//! each packet.

use std::sync::Arc;

use podway_proto::ErrorBody;
use podway_proto::config::IngressChoice;
use podway_xdp_redirect::{Redirect, RingAttachment, TcxAttachment};

use super::{StartError, Supervisor, system};
use crate::config::Config;
use crate::fib::PortId;
use crate::ingress::{Ingress, RingIngress, TapIngress};
use crate::tap::Tap;
use crate::worker::{RING_QUEUE, ServedQueue, TAP_QUEUE};
use crate::xsk::StatsHandle;

/// What a worker receives by, and sends super-frames in tunnels by.
#[derive(Debug)]
pub(super) struct WorkerDevices {
    tap: Arc<Tap>,
    /// The program that sends what the worker writes to the TAP.
    _transmitter: TcxAttachment,
    ring: Tap,
    /// The programs that give the packets of the ring device to its socket.
    _deliverer: RingAttachment,
    /// Of that socket, once it is there.
    statistics: Option<StatsHandle>,
}

impl WorkerDevices {
    fn make(number: u16, redirect: &Redirect) -> Result<Self, StartError> {
        let tap = Tap::open(number)?;
        let ring = Tap::open_for_ring(number)?;
        Ok(Self {
            _transmitter: redirect.attach_transmitter(tap.ifindex())?,
            _deliverer: redirect.attach_deliverer(ring.ifindex())?,
            tap: Arc::new(tap),
            ring,
            statistics: None,
        })
    }

    /// The TAP, to send by.
    pub(super) fn tap(&self) -> Arc<Tap> {
        Arc::clone(&self.tap)
    }

    /// Packets that were redirected to the devices and lost there.
    pub(super) fn lost(&self) -> u64 {
        let statistics = self.statistics.as_ref().and_then(StatsHandle::read);
        let by_socket = statistics.map_or(0, |s| s.rx_dropped + s.rx_ring_full);
        self.tap.dropped() + self.ring.dropped_at_ingress() + by_socket
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
            .map(|number| WorkerDevices::make(number, redirect))
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
            let (tap, ring) = (devices.tap(), devices.ring.ifindex());
            let tap_ifindex = tap.ifindex();
            self.serve(
                worker,
                ServedQueue {
                    port: PortId::NONE,
                    queue: TAP_QUEUE,
                    ingress: Ingress::Tap(TapIngress::new(tap)),
                    active: false,
                },
            )?;
            let ring_size = self.config.ring_size;
            let queue = self.open_socket(worker, ring, 0, ring_size)?;
            let statistics = queue.rx.stats_handle();
            let told = self.redirect.set_ring_socket(worker.into(), queue.rx.fd());
            if let Err(error) = told {
                self.give_back(worker, queue.close());
                return Err(system(error));
            }
            self.serve(
                worker,
                ServedQueue {
                    port: PortId::NONE,
                    queue: RING_QUEUE,
                    ingress: Ingress::Ring(RingIngress::new(queue, ring_size, true)),
                    active: false,
                },
            )?;
            if let Some(devices) = self.devices_of(worker) {
                devices.statistics = Some(statistics);
            }
            self.redirect
                .set_devices(worker.into(), tap_ifindex, ring)
                .map_err(system)?;
        }
        Ok(())
    }

    fn devices_of(&mut self, worker: u16) -> Option<&mut WorkerDevices> {
        self.workers.get_mut(usize::from(worker))?.devices.as_mut()
    }
}
