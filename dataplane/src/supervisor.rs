//! The API thread's side: owns facts, ports, XDP programs and workers, and keeps them in step.
//!
//! A change of facts goes one way: facts, then what must leave the XDP maps, then the published
//! tables, then what may enter the XDP maps. So a packet is redirected only while the tables know
//! its destination.

mod devices;
mod drops;
mod perf;
mod ports;
mod report;
mod trace;
mod watch;

use std::collections::{BTreeMap, HashSet};
use std::io;
use std::net::IpAddr;
use std::num::NonZeroU64;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use podway_proto::dataplane::{Change, Refused};
use podway_proto::types::{LocalNode, Vni};
use podway_proto::{ErrorBody, ErrorCode};
use podway_xdp_redirect::{AttachError, Redirect};
use rustix::thread::{MembarrierCommand, membarrier};

use crate::answer::Answers;
use crate::config::Config;
use crate::counters::Sheet;
use crate::cpu_latency::CpuLatency;
use crate::egress::{Egress, PacketGso, TapGso};
use crate::fib::{Build, Fib, Publisher, Tables, XdpWrites};
use crate::limits::Limits;
use crate::stages::Stages;
use crate::tap::TapError;
use crate::wait::{Waiter, Waker};
use crate::watch::Watches;
use crate::worker::{Command, Link, Queues, Reply, Worker};
use crate::xsk::{Frame, FramePool, Region, Umem};

pub use watch::WatchHandle;

use devices::{WorkerDevices, make_devices};
use drops::DropRates;
use perf::Begun;
use ports::AttachedPort;
use report::Losses;
use watch::ArmedWatch;

/// How long a worker may take to answer; it looks at its commands once a round. Control waits longer
/// for the answer to changes.
const ANSWER_LIMIT: Duration = Duration::from_secs(2);
/// How long a change waits for the workers to adopt new tables before it is answered: one slow worker
/// must not hold up the API.
const ADOPTION_LIMIT: Duration = Duration::from_millis(20);
/// A worker that has adopted nothing for so long has not beaten either, and the programs on the ports
/// pass its packets to the kernel.
const HEARTBEAT_LIMIT: Duration = Duration::from_secs(1);
/// How long a CPU may be in the middle of a packet, where the kernel does not tell.
const MIDST: Duration = Duration::from_millis(10);

/// A running dataplane.
#[derive(Debug)]
pub struct Supervisor {
    config: Config,
    started: Instant,
    // Closed before the workers stop, so that the kernel has the packets.
    redirect: Redirect,
    umem: Umem,
    fib: Fib,
    publisher: Publisher<Tables>,
    pending: Option<Pending>,
    /// The local node as it was told last, until the XDP program knows it.
    told_local: Option<LocalNode>,
    workers: Vec<WorkerHandle>,
    ports: BTreeMap<String, AttachedPort>,
    /// What workers overhear, where they do.
    limits: Option<Arc<Limits>>,
    /// Why workers have no devices of their own, when they have none.
    no_tap: Option<String>,
    /// What the XDP program holds of the local node.
    local: XdpLocal,
    /// Whether a sync is in progress.
    syncing: bool,
    /// Slots of the XDP program's counters that were ever used: those below.
    slots: u16,
    /// Why the XDP maps may differ from the facts, so that the gate stays closed.
    broken: Option<ErrorBody>,
    /// Commands given to workers.
    commands: u64,
    /// What detached sockets had lost.
    lost_before: Losses,
    /// What rates of drops are made from.
    drop_rates: DropRates,
    watches: Vec<ArmedWatch>,
    /// Since when the workers' time is told.
    perf_begun: Begun,
    /// Keeps CPUs awake, if that is wanted.
    _cpu_latency: Option<CpuLatency>,
}

/// The API thread's end of a worker.
#[derive(Debug)]
struct WorkerHandle {
    cpu: Option<usize>,
    link: Arc<Link>,
    waker: Waker,
    sheet: Arc<Sheet>,
    thread: Option<JoinHandle<()>>,
    devices: Option<WorkerDevices>,
    /// Rounds that it had made when a command was given up; nothing is waited for before the next.
    stuck_after: Option<u64>,
    /// Packets that its TAP had no room for, as they were told last.
    tap_full: AtomicU64,
}

impl WorkerHandle {
    /// Whether a command was given up and the worker has made no round since.
    fn is_stuck(&self) -> bool {
        self.stuck_after == Some(self.sheet.rounds.get())
    }
}

#[derive(Debug, Default)]
struct XdpLocal {
    vnis: HashSet<Vni>,
    /// UDP port of VXLAN; none: no tunnel is opened.
    vxlan_port: Option<u16>,
    addresses: HashSet<IpAddr>,
}

/// What is to be written to the XDP maps when every worker reads the tables of a number.
#[derive(Debug)]
struct Pending {
    version: u64,
    writes: XdpWrites,
    local: Option<LocalNode>,
}

/// The dataplane cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The XDP program cannot be loaded.
    #[error(transparent)]
    Redirect(#[from] podway_xdp_redirect::Error),
    /// The region cannot be registered.
    #[error(transparent)]
    Xsk(#[from] crate::xsk::XskError),
    /// The socket of a worker's egress cannot be made.
    #[error(transparent)]
    Egress(#[from] crate::egress::OpenError),
    /// Workers are to have TAPs, and one cannot be made.
    #[error(transparent)]
    Tap(#[from] TapError),
    /// Workers are to have TAPs, and the program on one cannot be attached.
    #[error("the worker's devices: {0}")]
    Device(#[from] AttachError),
    /// Something else that the system refuses.
    #[error("cannot {step}: {source}")]
    System {
        /// What was tried, and what to look at.
        step: &'static str,
        /// What the system says.
        source: io::Error,
    },
}

fn step(step: &'static str) -> impl FnOnce(io::Error) -> StartError {
    move |source| StartError::System { step, source }
}

impl Supervisor {
    /// Loads the XDP program, registers the memory and starts the workers. Nothing is attached and
    /// the gate is closed.
    ///
    /// # Errors
    /// A [`StartError`] that names the thing and the remedy.
    pub fn start(config: Config) -> Result<Self, StartError> {
        let redirect = Redirect::load()?;
        let cpu_latency = config.cpu_latency.map(CpuLatency::request).transpose();
        let cpu_latency = cpu_latency.map_err(step(
            "open /dev/cpu_dma_latency (run as root, or leave dataplane.cpu-latency-microseconds out)",
        ))?;
        let count = u32::try_from(config.workers.len()).unwrap_or(u32::MAX);
        let (region, mut frames) = Region::new(config.frames.saturating_mul(count))
            .map_err(step("map memory for the frames (lower dataplane.frames)"))?;
        let umem = Umem::new(Arc::clone(&region))?;
        let (publisher, readers) = Publisher::new(Tables::default(), config.workers.len());
        let (devices, no_tap) = make_devices(&config, &redirect)?;
        // Without TAPs, the size of segments is not told.
        let limits = no_tap.as_ref().map(|_| Arc::new(Limits::default()));
        let mut devices = devices.into_iter();
        let mut workers = Vec::new();
        for (number, (&cpu, tables)) in (0..).zip(config.workers.iter().zip(readers)) {
            let devices = devices.next();
            let unsent = redirect.unsent(number)?;
            let left = frames.len().saturating_sub(config.frames as usize);
            let waiter = Waiter::new(config.wait, config.spin, config.doze)
                .map_err(step("make an epoll set"))?;
            let waker = waiter.waker().map_err(step("duplicate a descriptor"))?;
            let link = Arc::new(Link::default());
            let sheet = Arc::new(Sheet::default());
            let worker = Worker {
                region: Arc::clone(&region),
                pool: FramePool::new(frames.split_off(left)),
                tables,
                limits: limits.clone(),
                answers: Answers::default(),
                egress: Egress::new(
                    PacketGso::new()?,
                    devices
                        .as_ref()
                        .map(|devices| TapGso::new(devices.tap(), unsent)),
                    config.source_ports,
                ),
                waiter,
                sheet: Arc::clone(&sheet),
                watches: Watches::default(),
                stages: Stages::default(),
                heartbeat: redirect.heartbeat(number)?,
                link: Arc::clone(&link),
                queues: Queues::default(),
            };
            let thread = std::thread::Builder::new()
                .name(format!("worker-{number}"))
                .spawn(move || {
                    if let Some(id) = cpu
                        && !core_affinity::set_for_current(core_affinity::CoreId { id })
                    {
                        tracing::error!(
                            "cannot pin worker {number} to core {id}; it runs unpinned"
                        );
                    }
                    // Or each doze would be 50 us longer (timer slack, prctl(2)).
                    let _ = rustix::thread::set_current_timer_slack(NonZeroU64::new(1));
                    worker.run();
                })
                .map_err(step("start a worker thread"))?;
            workers.push(WorkerHandle {
                cpu,
                link,
                waker,
                sheet,
                thread: Some(thread),
                devices,
                stuck_after: None,
                tap_full: AtomicU64::new(0),
            });
        }
        let perf_begun = Begun::at_start(workers.len());
        let mut supervisor = Self {
            config,
            started: Instant::now(),
            redirect,
            umem,
            fib: Fib::new(),
            publisher,
            pending: None,
            told_local: None,
            workers,
            ports: BTreeMap::new(),
            local: XdpLocal::default(),
            syncing: false,
            slots: 0,
            broken: None,
            commands: 0,
            lost_before: Losses::default(),
            drop_rates: DropRates::new(Instant::now()),
            watches: Vec::new(),
            perf_begun,
            _cpu_latency: cpu_latency,
            limits,
            no_tap,
        };
        supervisor.serve_devices().map_err(|error| {
            step("serve a worker's devices")(io::Error::other(error.to_string()))
        })?;
        Ok(supervisor)
    }

    /// Carries out changes in order; a refused one does not stop those after it. The tables are
    /// published once, at the end; that the gate has closed for good is told behind all changes,
    /// each time.
    pub fn apply(&mut self, changes: &[Change]) -> Vec<Refused> {
        let mut refused = Vec::new();
        for (index, change) in changes.iter().enumerate() {
            if let Err(error) = self.apply_one(change) {
                tracing::warn!(?change, %error, "refused");
                refused.push(Refused { index, error });
            }
        }
        // It may have closed before, when no change was under way.
        let _ = self.publish();
        if let Some(error) = self.broken.clone() {
            let index = changes.len();
            refused.push(Refused { index, error });
        }
        refused
    }

    fn apply_one(&mut self, change: &Change) -> Result<(), ErrorBody> {
        match change {
            Change::SetPort(port) => return self.set_port(port),
            Change::DelPort { interface } => return self.del_port(interface),
            Change::SetLocal(local) => {
                self.fib.set_local(local.clone())?;
                self.withdraw_local(local).map_err(system)?;
                self.told_local = Some(local.clone());
            }
            Change::SetNode(node) => self.fib.set_node(node.clone())?,
            Change::DelNode { name } => self.fib.del_node(name)?,
            Change::SetRoute(route) => self.fib.set_route(route.clone())?,
            Change::DelRoute { prefix } => self.fib.del_route(*prefix)?,
            Change::SetNeighbor(neighbor) => self.fib.set_neighbor(neighbor.clone())?,
            Change::DelNeighbor { interface, address } => {
                self.fib.del_neighbor(interface, *address)?;
            }
        }
        Ok(())
    }

    /// Begins a sync: what no change names until [`Supervisor::sync_end`] is removed then.
    pub fn sync_begin(&mut self) {
        self.fib.mark_all();
        self.syncing = true;
    }

    /// Ends a sync. The first one opens the gate: from now on the facts are whole.
    ///
    /// # Errors
    /// When no sync was begun, or the XDP maps cannot be changed.
    pub fn sync_end(&mut self) -> Result<(), ErrorBody> {
        if !std::mem::take(&mut self.syncing) {
            let message = "no sync was begun; send sync-begin first";
            return Err(ErrorBody::new(ErrorCode::Invalid, message));
        }
        for interface in self.fib.sweep() {
            self.del_port(&interface)?;
        }
        self.publish()?;
        if self.broken.is_none() && !self.redirect.gate_is_open() {
            tracing::info!("the facts are whole: the fast path is open");
            self.redirect.open_gate();
        }
        Ok(())
    }

    /// Brings XDP maps and workers to the facts. See the module for the order.
    ///
    /// # Errors
    /// When an XDP map cannot be changed: then the maps may promise what the tables do not hold, so
    /// the gate is closed and the kernel has all packets until the dataplane is started anew.
    fn publish(&mut self) -> Result<(), ErrorBody> {
        if !self.fib.changed() {
            return Ok(());
        }
        let Build { tables, mut xdp } = self.fib.build();
        let mut local = self.told_local.take();
        if let Some(pending) = self.pending.take() {
            xdp.carry(pending.writes);
            local = local.or(pending.local);
        }
        let written = self.write(&xdp.before);
        let version = self.publisher.publish(tables);
        self.pending = Some(Pending {
            version,
            writes: xdp.after,
            local,
        });
        self.or_close_gate(written)?;
        self.await_adoption(version, ADOPTION_LIMIT);
        self.settle()
    }

    /// Writes to the XDP maps what had to wait for the workers, once they all read the tables that
    /// it belongs to, and frees tables that no worker reads any more. Called after each change and
    /// now and then by the API thread, so that no worker ever frees one.
    ///
    /// # Errors
    /// As for a change: an XDP map cannot be changed, and the gate is closed.
    pub fn settle(&mut self) -> Result<(), ErrorBody> {
        self.publisher.reclaim();
        let adopted = self.publisher.adopted_min();
        let Some(pending) = self.pending.take_if(|pending| pending.version <= adopted) else {
            return Ok(());
        };
        let mut written = match &pending.local {
            Some(local) => self.admit_local(local),
            None => Ok(()),
        };
        if written.is_ok() {
            written = self.write(&pending.writes);
        }
        self.or_close_gate(written)
    }

    fn write(&self, writes: &XdpWrites) -> Result<(), podway_xdp_redirect::Error> {
        for &prefix in &writes.remove {
            self.redirect.del_prefix(prefix)?;
        }
        for &(prefix, mtu) in &writes.set {
            self.redirect.add_prefix(prefix, mtu)?;
        }
        Ok(())
    }

    fn or_close_gate(
        &mut self,
        written: Result<(), podway_xdp_redirect::Error>,
    ) -> Result<(), ErrorBody> {
        written.map_err(|error| {
            self.redirect.close_gate();
            let message = format!("{error}; the kernel has all packets: restart podway-dataplane");
            tracing::error!("{message}");
            let error = system(message);
            self.broken = Some(error.clone());
            error
        })
    }

    /// Waits until every worker reads the tables of number `version`, but no longer than `limit`.
    fn await_adoption(&self, version: u64, limit: Duration) {
        let deadline = Instant::now() + limit;
        while self.publisher.adopted_min() < version && Instant::now() < deadline {
            for worker in &self.workers {
                worker.waker.wake();
            }
            std::thread::sleep(Duration::from_micros(50));
        }
    }

    /// Takes from the XDP program the addresses and networks that are no longer this node's, before
    /// the workers' tables lose them.
    fn withdraw_local(&mut self, local: &LocalNode) -> Result<(), podway_xdp_redirect::Error> {
        let wanted: HashSet<IpAddr> = local.addresses.iter().copied().collect();
        for address in self
            .local
            .addresses
            .extract_if(|address| !wanted.contains(address))
        {
            self.redirect.del_local(address)?;
        }
        let wanted = |vni: &Vni| *vni == local.vni || local.also_vnis.contains(vni);
        for vni in self.local.vnis.extract_if(|vni| !wanted(vni)) {
            self.redirect.del_vni(vni.get())?;
        }
        if self
            .local
            .vxlan_port
            .take_if(|port| *port != local.vxlan_port)
            .is_some()
        {
            self.redirect.set_vxlan_port(0);
        }
        if local.translates {
            self.redirect.set_translates(true);
        }
        if local.defragments {
            self.redirect.set_defragments(true);
        }
        Ok(())
    }

    /// Tells the XDP program this node's addresses and networks, after the workers' tables have
    /// them.
    fn admit_local(&mut self, local: &LocalNode) -> Result<(), podway_xdp_redirect::Error> {
        for &address in &local.addresses {
            if self.local.addresses.insert(address) {
                self.redirect.add_local(address)?;
            }
        }
        for &vni in local.also_vnis.iter().chain([&local.vni]) {
            if self.local.vnis.insert(vni) {
                self.redirect.add_vni(vni.get())?;
            }
        }
        if self.local.vxlan_port.replace(local.vxlan_port) != Some(local.vxlan_port) {
            self.redirect.set_vxlan_port(local.vxlan_port);
        }
        self.redirect.set_translates(local.translates);
        self.redirect.set_defragments(local.defragments);
        Ok(())
    }

    /// Sends `command` to a worker and waits for the answer; not if it is stuck, or every change
    /// would wait for it anew.
    fn ask(&mut self, worker: u16, command: Command) -> Result<Reply, ErrorBody> {
        if self.worker(worker)?.is_stuck() {
            // What it has must come back whenever it goes on: `undo` closes it.
            if matches!(command, Command::Detach(..) | Command::Unwatch(_)) {
                self.tell(worker, command)?;
            }
            return Err(stuck(worker));
        }
        let number = self.tell(worker, command)?;
        let deadline = Instant::now() + ANSWER_LIMIT;
        loop {
            let reply = self
                .workers
                .get(usize::from(worker))
                .and_then(|w| w.link.replies.pop());
            match reply {
                Some((answered, reply)) if answered == number => return Ok(reply),
                Some((_, late)) => self.undo(worker, late),
                None if Instant::now() > deadline => return Err(self.give_up(worker)),
                None => std::thread::sleep(Duration::from_micros(100)),
            }
        }
    }

    fn worker(&mut self, number: u16) -> Result<&mut WorkerHandle, ErrorBody> {
        let worker = self.workers.get_mut(usize::from(number));
        worker.ok_or_else(|| system(format!("there is no worker {number}")))
    }

    /// Notes that a worker does not answer.
    fn give_up(&mut self, worker: u16) -> ErrorBody {
        if let Ok(handle) = self.worker(worker) {
            handle.stuck_after = Some(handle.sheet.rounds.get());
        }
        let error = stuck(worker);
        tracing::error!("{error}");
        error
    }

    /// Sends `command` to a worker; waits for room if it is not stuck. Returns its number.
    fn tell(&mut self, worker: u16, command: Command) -> Result<u64, ErrorBody> {
        self.commands += 1;
        let number = self.commands;
        let handle = self.worker(worker)?;
        let deadline = Instant::now() + ANSWER_LIMIT;
        let mut command = (number, command);
        while let Err(back) = handle.link.commands.push(command) {
            if handle.is_stuck() || Instant::now() > deadline {
                return Err(self.give_up(worker));
            }
            command = back;
            handle.waker.wake();
            std::thread::sleep(Duration::from_millis(1));
        }
        handle.waker.wake();
        Ok(number)
    }

    /// Takes back what a worker did after its command was given up.
    fn undo(&mut self, worker: u16, late: Reply) {
        match late {
            Reply::Lent(frames) => self.give_back(worker, frames),
            Reply::Refused(queue, _) | Reply::Detached(Some(queue)) => {
                self.give_back(worker, queue.ingress.close());
            }
            Reply::Attached(port, queue) => {
                // The answer to this comes here as well.
                if let Err(error) = self.tell(worker, Command::Detach(port, queue)) {
                    tracing::error!(%error, "a queue that was given up stays attached");
                }
            }
            Reply::Measured(measured) => self.perf_begun.add(worker, &measured),
            Reply::Detached(None) | Reply::Drained | Reply::Watching | Reply::Unwatched(_) => {}
        }
    }

    fn give_back(&mut self, worker: u16, frames: Vec<Frame>) {
        let count = frames.len();
        if let Err(error) = self.tell(worker, Command::Frames(frames)) {
            tracing::error!(%error, count, "frames are lost");
        }
    }

    /// Stops in order: gate, XDP programs, workers, sockets. The kernel forwards from the first
    /// step on. A worker that is stuck is left to the end of the process.
    pub fn stop(mut self) {
        self.redirect.close_gate();
        // What was redirected before is still forwarded: each port's end drains its queues.
        let_packets_arrive();
        let interfaces: Vec<String> = self.ports.keys().cloned().collect();
        for interface in interfaces {
            if let Err(error) = self.del_port(&interface) {
                tracing::error!(%interface, %error, "cannot detach");
            }
        }
        for worker in (0..).take(self.workers.len()) {
            if let Err(error) = self.tell(worker, Command::Stop) {
                tracing::error!(%error, "cannot stop a worker");
            }
        }
        let deadline = Instant::now() + ANSWER_LIMIT;
        for (number, worker) in self.workers.iter_mut().enumerate() {
            let Some(thread) = worker.thread.take() else {
                continue;
            };
            while !thread.is_finished() && !worker.is_stuck() && Instant::now() < deadline {
                std::thread::sleep(Duration::from_micros(100));
            }
            // All that it works on is its own, or shared: nothing of that goes before it does.
            if !thread.is_finished() {
                tracing::error!("worker {number} is stuck and ends with the process");
            } else if thread.join().is_err() {
                tracing::error!("worker {number} ended by a panic");
            }
        }
    }
}

/// Waits until every packet is in its queue that a program had decided to redirect before this was
/// called. A program runs, and what it redirects is handed on, inside of an RCU read-side section;
/// membarrier(2) waits until those that had begun have ended (`synchronize_rcu` in
/// kernel/sched/membarrier.c), however long another CPU was kept from going on.
fn let_packets_arrive() {
    if membarrier(MembarrierCommand::Global).is_err() {
        // With nohz_full CPUs the kernel refuses.
        std::thread::sleep(MIDST);
    }
}

fn stuck(worker: u16) -> ErrorBody {
    system(format!(
        "worker {worker} is stuck: it has left a command unanswered for {ANSWER_LIMIT:?} and made \
         no round since; if that lasts, restart podway-dataplane"
    ))
}

fn system(error: impl std::fmt::Display) -> ErrorBody {
    ErrorBody::new(ErrorCode::System, error.to_string())
}
