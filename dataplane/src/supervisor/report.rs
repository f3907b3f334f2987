//! Status and counters, as the protocol gives them.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering::Relaxed;

use podway_proto::ErrorBody;
use podway_proto::dataplane::{
    Books, Counters, Oversize, PortCounters, PortStatus, Status, TableStatus, WorkerCounters,
    WorkerStatus,
};
use podway_proto::digest::Digests;
use podway_proto::reasons::LossCause;
use podway_xdp_redirect::{PortStats, UNKNOWN_PORT_SLOT};

use super::ports::{AttachedPort, Program, is_pod};
use super::{Supervisor, system};
use crate::counters::{Counter, PortSheet, Sheet};
use crate::fib::PortId;
use crate::verdict::DropReason;
use crate::xsk::{BindMode, Statistics};

impl Supervisor {
    /// What did not fit of what came by a port.
    fn oversize(&self, port: &AttachedPort) -> Option<Oversize> {
        let found = self.redirect.oversize(port.id.0.into()).ok()??;
        Some(Oversize {
            source: found.source,
            destination: found.destination,
            bytes: found.length,
            mtu: found.mtu,
        })
    }

    /// What the dataplane is.
    pub fn status(&self) -> Status {
        let counts = self.fib.counts();
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            uptime_seconds: self.started.elapsed().as_secs(),
            log: podway_proto::log::current(),
            gate_open: self.redirect.gate_is_open(),
            wait: self.config.wait.to_string(),
            workers: (0..)
                .zip(&self.workers)
                .map(|(number, worker)| WorkerStatus {
                    worker: number,
                    cpu: worker.cpu,
                    #[expect(clippy::cast_precision_loss, reason = "seconds for people")]
                    busy_seconds: worker.sheet.busy_nanoseconds.get() as f64 / 1e9,
                    frames: worker.sheet.frames_made.get(),
                })
                .collect(),
            ports: self
                .ports
                .iter()
                .map(|(name, port)| PortStatus {
                    oversize: self.oversize(port),
                    ..port_status(name, port, self.no_tap.as_deref())
                })
                .collect(),
            tables: TableStatus {
                generation: self.publisher.published(),
                adopted: self.publisher.adopted_min(),
                routes: counts.routes as u64,
                unresolved: counts.unresolved as u64,
                nodes: counts.nodes as u64,
                neighbors: counts.neighbors as u64,
            },
        }
    }

    /// Which facts the tables are made from.
    pub fn digests(&self) -> Digests {
        self.fib.digests()
    }

    /// What was counted.
    ///
    /// # Errors
    /// When the XDP program's counters cannot be read.
    pub fn counters(&self) -> Result<Counters, ErrorBody> {
        let program = self.program_counters()?;
        let losses = self.losses(&program)?;
        let sheets = || self.workers.iter().map(|worker| &*worker.sheet);
        let dropped = |reason| sheets().map(|sheet| sheet.dropped(reason)).sum::<u64>();
        Ok(Counters {
            ports: self.port_counters()?,
            workers: sheets().map(worker_counters).collect(),
            drops: DropReason::ALL
                .iter()
                .map(|&r| (r.name().to_owned(), dropped(r)))
                .collect(),
            drop_help: DropReason::ALL
                .iter()
                .map(|r| (r.name().to_owned(), r.meaning().to_owned()))
                .collect(),
            losses: LossCause::ALL
                .iter()
                .map(|&cause| (cause.name().to_owned(), losses.of(cause)))
                .collect(),
            books: self.books(&program, losses),
        })
    }

    /// What was counted by the ports that are there.
    ///
    /// # Errors
    /// When the XDP program's counters cannot be read.
    pub(super) fn port_counters(&self) -> Result<BTreeMap<String, PortCounters>, ErrorBody> {
        let mut ports = BTreeMap::new();
        for (name, port) in &self.ports {
            let mut counters = self.slot_counters(port.id)?;
            subtract(&mut counters, &port.baseline);
            let lost = lost(port);
            counters.rx_dropped = lost.no_frame;
            counters.rx_ring_full += lost.ring_full;
            ports.insert(name.clone(), counters);
        }
        Ok(ports)
    }

    /// What the programs have counted for all ports that ever were, and for interfaces that are none.
    ///
    /// # Errors
    /// When the counters cannot be read.
    pub(super) fn program_counters(&self) -> Result<PortStats, ErrorBody> {
        let mut sum = PortStats::default();
        for slot in (0..self.slots.into()).chain([UNKNOWN_PORT_SLOT]) {
            sum += self.redirect.counters(slot).map_err(system)?;
        }
        Ok(sum)
    }

    fn books(&self, program: &PortStats, losses: Losses) -> Books {
        let sum = |field: fn(&Sheet) -> u64| self.workers.iter().map(|w| field(&w.sheet)).sum();
        Books {
            frames_made: sum(|s| s.frames_made.get()),
            frames_pooled: sum(|s| s.frames_pooled.get()),
            frames_posted: sum(|s| s.frames_posted.get()),
            frames_held: sum(|s| s.frames_held.get()),
            packets_received: sum(|s| s.totals().received),
            packets_made: sum(|s| s.totals().made),
            packets_sent: sum(|s| s.totals().sent),
            packets_dropped: sum(|s| DropReason::ALL.iter().map(|&r| s.dropped(r)).sum()),
            xdp_redirected: program.redirected,
            xdp_lost: LossCause::ALL.iter().map(|&cause| losses.of(cause)).sum(),
        }
    }

    /// What was redirected and never reached a worker, of all ports that ever were, of which the
    /// programs have counted `program`.
    ///
    /// # Errors
    /// When the XDP program's memory cannot be read.
    pub(super) fn losses(&self, program: &PortStats) -> Result<Losses, ErrorBody> {
        let mut losses = self.lost_before;
        for port in self.ports.values() {
            let of_port = lost(port);
            losses.no_frame += of_port.no_frame;
            losses.ring_full += of_port.ring_full;
        }
        losses.ring_full += program.ring_full;
        losses.tap_full += self.lost_by_taps()?.map(|(_, lost)| lost).sum::<u64>();
        Ok(losses)
    }

    /// What the TAP of each worker had no room for, by its name.
    ///
    /// # Errors
    /// When the XDP program's memory cannot be read.
    pub(super) fn lost_by_taps(&self) -> Result<impl Iterator<Item = (String, u64)>, ErrorBody> {
        let mut taps = Vec::new();
        for (number, worker) in (0..).zip(&self.workers) {
            let Some(devices) = &worker.devices else {
                continue;
            };
            // A bell that found the TAP full is no packet.
            let bells = self.redirect.bells(number).map_err(system)?;
            let silent = bells.saturating_sub(worker.sheet.bells.get());
            let (name, lost) = devices.lost();
            // A bell that the worker has not heard yet counts as such for a moment: less than before
            // is never the truth.
            let lost = lost.saturating_sub(silent);
            let before = worker.tap_full.fetch_max(lost, Relaxed);
            taps.push((name.to_owned(), lost.max(before)));
        }
        Ok(taps.into_iter())
    }

    /// What was ever counted in the slot of `id`, by this port and by those before it.
    pub(super) fn slot_counters(&self, id: PortId) -> Result<PortCounters, ErrorBody> {
        let xdp = self.redirect.counters(id.0.into()).map_err(system)?;
        let sum = |field: fn(&PortSheet) -> &Counter| {
            let sheets = self
                .workers
                .iter()
                .filter_map(|worker| worker.sheet.port(id));
            sheets.map(|sheet| field(sheet).get()).sum()
        };
        Ok(PortCounters {
            xdp_redirected: xdp.redirected,
            xdp_passed: xdp
                .passed_by_cause()
                .map(|(cause, count)| (cause.name().to_owned(), count))
                .collect(),
            xdp_refused: xdp
                .refused_by_cause()
                .map(|(cause, count)| (cause.name().to_owned(), count))
                .collect(),
            rx_packets: sum(|s| &s.rx_packets),
            rx_bytes: sum(|s| &s.rx_bytes),
            rx_frames: sum(|s| &s.rx_frames),
            rx_dropped: 0,
            rx_ring_full: xdp.ring_full,
            tx_packets: sum(|s| &s.tx_packets),
            tx_bytes: sum(|s| &s.tx_bytes),
            tx_messages: sum(|s| &s.tx_messages),
            joined: sum(|s| &s.joined),
            cut: sum(|s| &s.cut),
            icmp_sent: sum(|s| &s.icmp_sent),
            icmp_suppressed: sum(|s| &s.icmp_suppressed),
        })
    }
}

/// Packets that were redirected and lost before a worker had them.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Losses {
    ring_full: u64,
    no_frame: u64,
    /// Which port they came by is not known.
    tap_full: u64,
}

impl Losses {
    /// Adds what a socket has lost.
    pub(super) fn add(&mut self, socket: &Statistics) {
        self.ring_full += socket.rx_ring_full;
        self.no_frame += socket.rx_dropped;
    }

    /// Those of one cause.
    pub(super) fn of(self, cause: LossCause) -> u64 {
        match cause {
            LossCause::RingFull => self.ring_full,
            LossCause::NoFrame => self.no_frame,
            LossCause::TapFull => self.tap_full,
        }
    }
}

/// What the port's sockets have lost.
fn lost(port: &AttachedPort) -> Losses {
    let sockets = port.queues.iter().filter_map(|queue| queue.socket.as_ref());
    let mut losses = Losses::default();
    for statistics in sockets.filter_map(|socket| socket.statistics.read()) {
        losses.add(&statistics);
    }
    losses
}

fn subtract(counters: &mut PortCounters, baseline: &PortCounters) {
    for (causes, before) in [
        (&mut counters.xdp_passed, &baseline.xdp_passed),
        (&mut counters.xdp_refused, &baseline.xdp_refused),
    ] {
        for (cause, count) in causes {
            *count -= before.get(cause).copied().unwrap_or(0).min(*count);
        }
    }
    for (now, before) in [
        (&mut counters.xdp_redirected, baseline.xdp_redirected),
        (&mut counters.rx_ring_full, baseline.rx_ring_full),
        (&mut counters.rx_packets, baseline.rx_packets),
        (&mut counters.rx_bytes, baseline.rx_bytes),
        (&mut counters.rx_frames, baseline.rx_frames),
        (&mut counters.tx_packets, baseline.tx_packets),
        (&mut counters.tx_bytes, baseline.tx_bytes),
        (&mut counters.tx_messages, baseline.tx_messages),
        (&mut counters.joined, baseline.joined),
        (&mut counters.cut, baseline.cut),
        (&mut counters.icmp_sent, baseline.icmp_sent),
        (&mut counters.icmp_suppressed, baseline.icmp_suppressed),
    ] {
        *now = now.saturating_sub(before);
    }
}

fn worker_counters(sheet: &Sheet) -> WorkerCounters {
    let burst_sizes = sheet.burst_sizes();
    WorkerCounters {
        bursts: burst_sizes.iter().sum(),
        burst_sizes,
        packets: sheet.totals().received,
        rounds: sheet.rounds.get(),
        sleeps: sheet.sleeps.get(),
        rx_calls: sheet.rx_calls.get(),
        tx_calls: sheet.tx_calls.get(),
        wait_calls: sheet.wait_calls.get(),
        busy_nanoseconds: sheet.busy_nanoseconds.get(),
    }
}

fn port_status(name: &str, port: &AttachedPort, no_tap: Option<&str>) -> PortStatus {
    let sockets = || port.queues.iter().filter_map(|queue| queue.socket.as_ref());
    let zero_copy = sockets().all(|socket| socket.mode == BindMode::ZeroCopy);
    let why_copy = sockets().find_map(|socket| socket.reason.clone());
    let (ingress, ingress_reason) = match (&port.by_tap, zero_copy) {
        (Some(why), _) => ("tap for tcp, ring for the rest", Some(why.clone())),
        (None, true) => ("af-xdp zero-copy", None),
        (None, false) => {
            let reasons = [no_tap.map(|why| format!("no TAP: {why}")), why_copy];
            let reasons: Vec<_> = reasons.into_iter().flatten().collect();
            ("af-xdp copy", Some(reasons.join("; ")))
        }
    };
    let egress = match (no_tap, is_pod(&port.role)) {
        (None, false) if port.interface.carries_runs => {
            "tap for super-frames, else af-packet; no runs, which the link would carry uncut"
        }
        (None, false) => "tap for what is cut on the way, else af-packet",
        _ => "af-packet gso",
    };
    let program = port.attachment.as_ref();
    PortStatus {
        interface: name.to_owned(),
        ifindex: port.interface.ifindex,
        role: if is_pod(&port.role) { "pod" } else { "uplink" }.to_owned(),
        mtu: port.interface.mtu,
        xdp_mode: program.map_or("none".into(), Program::name),
        xdp_mode_reason: program.and_then(|program| program.reason().map(str::to_owned)),
        ingress: ingress.to_owned(),
        ingress_reason,
        egress: egress.to_owned(),
        queue_workers: port.queues.iter().map(|queue| queue.worker).collect(),
        oversize: None,
    }
}
