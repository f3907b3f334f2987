//! Attaching and detaching ports.

use std::io;
use std::net::IpAddr;
use std::time::Duration;

use podway_proto::config::{IngressChoice, XdpModeChoice};
use podway_proto::types::{MacAddr, Port, PortRole};
use podway_proto::{ErrorBody, ErrorCode};
use podway_xdp_redirect::{
    AttachError, Attachment, MAX_SOCKETS, ModeChoice, PortEntry, Role, TcxAttachment,
    UNKNOWN_PORT_SLOT, XdpMode, offers_zero_copy,
};

use super::{HEARTBEAT_LIMIT, Supervisor, let_packets_arrive, system};
use crate::fib::{PortFacts, PortId};
use crate::ingress::{Ingress, LEAST_POSTED, RingIngress};
use crate::sys::interface::Interface;
use crate::worker::{Command, Reply, ServedQueue};
use crate::xsk::{BindMode, FramePool, Queue, QueueConfig, StatsHandle, XskError};

/// Entries of a pod's rings at most: small memory stays hot, and a pod's burst is a few
/// super-frames.
const POD_RING_SIZE: u32 = 512;
/// How long a bind waits for a queue whose former socket is being closed.
const BUSY_RETRY: Duration = Duration::from_secs(1);

/// A port as the API thread knows it.
#[derive(Debug)]
pub(super) struct AttachedPort {
    pub(super) id: PortId,
    pub(super) role: PortRole,
    pub(super) interface: Interface,
    /// Index of queue 0 in the XDP program's map of sockets.
    xsk_base: u32,
    pub(super) queues: Vec<AttachedQueue>,
    /// Why it is received by a TAP, where it is.
    pub(super) by_tap: Option<String>,
    /// The program; `None` until everything behind it stands.
    pub(super) attachment: Option<Program>,
    /// What counted in this port's slot before this port.
    pub(super) baseline: podway_proto::dataplane::PortCounters,
}

/// What redirects a port's packets.
#[derive(Debug)]
pub(super) enum Program {
    /// To the TAPs of the workers.
    Tcx { _link: TcxAttachment },
    /// To AF_XDP sockets.
    Xdp(Attachment),
}

#[derive(Debug)]
pub(super) struct AttachedQueue {
    pub(super) worker: u16,
    /// `None`: the queue's packets go to the worker's TAP.
    pub(super) socket: Option<AttachedSocket>,
}

#[derive(Debug)]
pub(super) struct AttachedSocket {
    pub(super) mode: BindMode,
    pub(super) reason: Option<String>,
    pub(super) statistics: StatsHandle,
}

impl Supervisor {
    /// Attaches a port, or gives an attached one its new role.
    pub(super) fn set_port(&mut self, port: &Port) -> Result<(), ErrorBody> {
        check(&port.role)?;
        let interface = Interface::by_name(&port.interface)
            .map_err(|error| interface_error(&port.interface, &error))?;
        if let Some(attached) = self.ports.get(&port.interface) {
            let same_kind = is_pod(&attached.role) == is_pod(&port.role);
            if attached.interface == interface && same_kind {
                return self.set_role(port);
            }
            // Another interface of the same name, another queue, MAC, MTU or offload, or another kind.
            self.del_port(&port.interface)?;
        }
        let attached = self.attach(port, interface);
        if attached.is_err()
            && self.ports.contains_key(&port.interface)
            && let Err(error) = self.del_port(&port.interface)
        {
            tracing::error!(interface = port.interface, %error, "cannot undo a failed attachment");
        }
        attached
    }

    fn attach(&mut self, port: &Port, interface: Interface) -> Result<(), ErrorBody> {
        let id = self.free_id()?;
        let xsk_base = self.free_sockets(interface.rx_queues)?;
        self.slots = self.slots.max(id.0 + 1);
        self.redirect.forget_oversize(id.0.into()).map_err(system)?;
        let attached = AttachedPort {
            id,
            role: port.role.clone(),
            interface: interface.clone(),
            xsk_base,
            queues: Vec::new(),
            by_tap: None,
            attachment: None,
            baseline: self.slot_counters(id)?,
        };
        self.ports.insert(port.interface.clone(), attached);

        let why_tap = self.open_queues(&port.interface, id, &interface, xsk_base)?;
        let by_tap = why_tap.is_some();
        if let Some(attached) = self.ports.get_mut(&port.interface) {
            attached.by_tap = why_tap;
        }
        self.redirect
            .set_exit(id.0.into(), interface.ifindex, interface.mac.0)
            .map_err(system)?;
        self.fib.attach_port(facts(port, id, &interface))?;
        self.publish()?;
        self.await_adoption(self.publisher.published(), HEARTBEAT_LIMIT);
        for &address in addresses(&port.role) {
            self.redirect
                .add_pod(address, interface.ifindex)
                .map_err(system)?;
        }
        self.tell_program(&port.interface)?;
        let attachment = if by_tap {
            let attached = self.redirect.attach_classifier(interface.ifindex);
            Program::Tcx {
                _link: attached.map_err(attach_error)?,
            }
        } else {
            let choice = if is_pod(&port.role) {
                self.config.pod_xdp_mode
            } else {
                self.config.uplink_xdp_mode
            };
            let attached = self.redirect.attach(interface.ifindex, mode(choice));
            Program::Xdp(attached.map_err(attach_error)?)
        };
        tracing::info!(
            interface = port.interface,
            program = attachment.name(),
            "attached"
        );
        if let Some(attached) = self.ports.get_mut(&port.interface) {
            attached.attachment = Some(attachment);
        }
        Ok(())
    }

    /// Tells the program what it knows of a port.
    fn tell_program(&self, name: &str) -> Result<(), ErrorBody> {
        let Some(port) = self.ports.get(name) else {
            return Ok(());
        };
        let (role, any_source) = match port.role {
            PortRole::Pod { any_source, .. } => (Role::Pod, any_source),
            PortRole::Uplink { .. } => (Role::Uplink, false),
        };
        let entry = PortEntry {
            role,
            mac: port.interface.mac.0,
            slot: port.id.0.into(),
            xsk_base: port.xsk_base,
            queues: port.interface.rx_queues,
            mtu: port.interface.mtu,
            any_source,
        };
        let told = self.redirect.set_port(port.interface.ifindex, &entry);
        told.map_err(system)
    }

    /// Opens all queues by the best engine. A driver that needs no copy serves AF_XDP best; every
    /// other one loses its offloads there, and its queues go to the workers' TAPs where there are some:
    /// then returns why.
    fn open_queues(
        &mut self,
        name: &str,
        id: PortId,
        interface: &Interface,
        xsk_base: u32,
    ) -> Result<Option<String>, ErrorBody> {
        let queues = 0..interface.rx_queues;
        let mut why_tap = match (&self.no_tap, self.config.ingress) {
            (Some(_), _) => None,
            (None, IngressChoice::Tap) => Some("set by dataplane.ingress".to_owned()),
            (None, _) => (!offers_zero_copy(interface.ifindex))
                .then(|| "the driver offers no AF_XDP without a copy".to_owned()),
        };
        if why_tap.is_none() {
            for queue in queues.clone() {
                self.open_queue(name, id, interface, xsk_base, queue)?;
            }
            if self.no_tap.is_none() {
                why_tap = self.refused_zero_copy(name);
            }
            if why_tap.is_some()
                && let Some(port) = self.ports.get_mut(name)
            {
                let opened = std::mem::take(&mut port.queues);
                self.close_queues(id, xsk_base, &opened)?;
            }
        }
        if why_tap.is_some() {
            for queue in queues {
                self.give_queue(name, id, xsk_base, queue)?;
            }
        }
        Ok(why_tap)
    }

    /// Why a queue of the port is copied, although its driver said that it need not be.
    fn refused_zero_copy(&self, name: &str) -> Option<String> {
        let mut sockets = self
            .ports
            .get(name)?
            .queues
            .iter()
            .filter_map(|queue| queue.socket.as_ref());
        let copied = sockets.find(|socket| socket.mode == BindMode::Copy)?;
        let why = copied.reason.as_deref().unwrap_or("no reason was given");
        Some(format!(
            "the driver offers AF_XDP without a copy, but: {why}"
        ))
    }

    /// The worker of a queue. Queues are dealt in turn, those of different ports beginning at
    /// different workers.
    fn worker_of(&self, id: PortId, queue: u32) -> u16 {
        let count = u32::try_from(self.workers.len()).unwrap_or(1).max(1);
        u16::try_from((u32::from(id.0) + queue) % count).unwrap_or(0)
    }

    /// Gives one queue to the TAP of its worker.
    fn give_queue(
        &mut self,
        name: &str,
        id: PortId,
        xsk_base: u32,
        queue: u32,
    ) -> Result<(), ErrorBody> {
        let worker = self.worker_of(id, queue);
        self.redirect
            .set_queue_worker(xsk_base + queue, worker.into())
            .map_err(system)?;
        if let Some(port) = self.ports.get_mut(name) {
            port.queues.push(AttachedQueue {
                worker,
                socket: None,
            });
        }
        Ok(())
    }

    /// Opens one queue and hands it to its worker.
    fn open_queue(
        &mut self,
        name: &str,
        id: PortId,
        interface: &Interface,
        xsk_base: u32,
        queue: u32,
    ) -> Result<(), ErrorBody> {
        let is_uplink = self.ports.get(name).is_some_and(|port| !is_pod(&port.role));
        let worker = self.worker_of(id, queue);
        let ring_size = match is_uplink {
            true => self.config.ring_size,
            false => self.config.ring_size.min(POD_RING_SIZE),
        };
        let opened = self.open_socket(worker, interface.ifindex, queue, ring_size)?;
        let attached = AttachedQueue {
            worker,
            socket: Some(AttachedSocket {
                mode: opened.mode,
                reason: opened.reason.clone(),
                statistics: opened.rx.stats_handle(),
            }),
        };
        let index = xsk_base + queue;
        let told = self
            .redirect
            .set_queue_worker(index, worker.into())
            .and_then(|()| self.redirect.set_socket(index, opened.rx.fd()));
        if let Err(error) = told {
            self.give_back(worker, opened.close());
            return Err(system(error));
        }
        let ingress = Ingress::Ring(RingIngress::new(opened, ring_size, is_uplink));
        let served = ServedQueue {
            port: id,
            queue,
            ingress,
            active: false,
        };
        self.serve(worker, served)?;
        if let Some(port) = self.ports.get_mut(name) {
            port.queues.push(attached);
        }
        Ok(())
    }

    /// Opens the socket of a queue with frames of its worker's.
    pub(super) fn open_socket(
        &mut self,
        worker: u16,
        ifindex: u32,
        queue: u32,
        ring_size: u32,
    ) -> Result<Queue, ErrorBody> {
        let Reply::Lent(frames) = self.ask(worker, Command::Lend(LEAST_POSTED))? else {
            return Err(system(
                "a worker gave the wrong answer to a request for frames",
            ));
        };
        if frames.len() < LEAST_POSTED {
            self.give_back(worker, frames);
            let message = format!(
                "worker {worker} has no frames left for another queue; raise dataplane.frames in \
                 the configuration and restart podway-dataplane"
            );
            return Err(ErrorBody::new(ErrorCode::Busy, message));
        }
        let mut pool = FramePool::new(frames);
        let config = QueueConfig {
            rx_size: ring_size,
            fill_size: ring_size,
            tx_size: None,
            completion_size: 2,
            // Before the bind, as some zero-copy drivers demand.
            posted: LEAST_POSTED,
            try_zero_copy: true,
            busy_retry: BUSY_RETRY,
        };
        let opened = self.umem.open_queue(ifindex, queue, &config, &mut pool);
        let left: Vec<_> = std::iter::from_fn(|| pool.get()).collect();
        self.give_back(worker, left);
        opened.map_err(|error| xsk_error(&error))
    }

    /// Hands a queue to its worker.
    pub(super) fn serve(&mut self, worker: u16, served: ServedQueue) -> Result<(), ErrorBody> {
        match self.ask(worker, Command::Attach(Box::new(served)))? {
            Reply::Attached(..) => Ok(()),
            Reply::Refused(served, error) => {
                let queue = served.queue;
                self.give_back(worker, served.ingress.close());
                Err(system(format!("cannot wait for queue {queue}: {error}")))
            }
            _ => Err(system("a worker gave the wrong answer to an attachment")),
        }
    }

    /// Gives a port that stays as it is other addresses, another pod MAC or other settings.
    fn set_role(&mut self, port: &Port) -> Result<(), ErrorBody> {
        let Some(attached) = self.ports.get_mut(&port.interface) else {
            return Ok(());
        };
        self.fib
            .attach_port(facts(port, attached.id, &attached.interface))?;
        let old = std::mem::replace(&mut attached.role, port.role.clone());
        let ifindex = attached.interface.ifindex;
        for address in addresses(&old)
            .iter()
            .filter(|a| !addresses(&port.role).contains(a))
        {
            self.redirect.del_pod(*address).map_err(system)?;
        }
        self.publish()?;
        for &address in addresses(&port.role) {
            self.redirect.add_pod(address, ifindex).map_err(system)?;
        }
        self.tell_program(&port.interface)
    }

    /// Detaches a port: first the XDP program, so that the kernel has its packets, then the queues
    /// after their workers forwarded what they held, then its routes. Goes on after a failure, so
    /// that as much as can be is undone, and tells the first one.
    pub(super) fn del_port(&mut self, name: &str) -> Result<(), ErrorBody> {
        let Some(mut port) = self.ports.remove(name) else {
            let message = format!("{name} is no port; see the ports by `podway port show`");
            return Err(ErrorBody::new(ErrorCode::NotFound, message));
        };
        let mut done = Ok(());
        let mut note = |step: Result<(), ErrorBody>| {
            if done.is_ok() {
                done = step;
            }
        };
        drop(port.attachment.take());
        for &address in addresses(&port.role) {
            note(self.redirect.del_pod(address).map_err(system));
        }
        note(
            self.redirect
                .del_port(port.interface.ifindex)
                .map_err(system),
        );
        note(self.close_queues(port.id, port.xsk_base, &port.queues));
        // A port that failed half-way has no facts.
        if self.fib.port(name).is_some() {
            note(self.fib.detach_port(name).map_err(ErrorBody::from));
        }
        note(self.publish());
        let exit = self.redirect.set_exit(port.id.0.into(), 0, [0; 6]);
        note(exit.map_err(system));
        tracing::info!(interface = name, "detached");
        done
    }

    /// Closes queues after their workers forwarded what they hold. Goes on after a failure, and tells
    /// the first one.
    fn close_queues(
        &mut self,
        id: PortId,
        xsk_base: u32,
        queues: &[AttachedQueue],
    ) -> Result<(), ErrorBody> {
        let mut done = Ok(());
        let mut note = |step: Result<(), ErrorBody>| {
            if done.is_ok() {
                done = step;
            }
        };
        for (queue, _) in (0..).zip(queues) {
            note(self.redirect.del_socket(xsk_base + queue).map_err(system));
        }
        if self.redirect.gate_is_open() {
            let_packets_arrive();
        }
        for (queue, attached) in (0..).zip(queues) {
            let Some(socket) = &attached.socket else {
                note(self.ask(attached.worker, Command::Drain).map(drop));
                continue;
            };
            let detached = self.ask(attached.worker, Command::Detach(id, queue));
            if let Some(statistics) = socket.statistics.read() {
                self.lost_before.add(&statistics);
            }
            match detached {
                Ok(Reply::Detached(Some(served))) => {
                    self.give_back(attached.worker, served.ingress.close());
                }
                Ok(_) => {}
                Err(error) => note(Err(error)),
            }
        }
        done
    }

    fn free_id(&self) -> Result<PortId, ErrorBody> {
        let taken = |id: &u16| self.ports.values().any(|port| port.id.0 == *id);
        let message = || format!("{UNKNOWN_PORT_SLOT} ports are attached, which is the most");
        (0..)
            // The last counter slot of the XDP program is for interfaces that are no port.
            .take_while(|id| u32::from(*id) < UNKNOWN_PORT_SLOT)
            .find(|id| !taken(id))
            .map(PortId)
            .ok_or_else(|| ErrorBody::new(ErrorCode::Busy, message()))
    }

    /// The lowest range of `count` free entries in the map of sockets.
    fn free_sockets(&self, count: u32) -> Result<u32, ErrorBody> {
        let mut taken: Vec<_> = self
            .ports
            .values()
            .map(|port| (port.xsk_base, port.xsk_base + port.interface.rx_queues))
            .collect();
        taken.sort_unstable();
        let mut base = 0;
        for (begin, end) in taken {
            if begin - base >= count {
                break;
            }
            base = end;
        }
        if base + count > MAX_SOCKETS {
            let message = format!("{MAX_SOCKETS} queues are attached, which is the most");
            return Err(ErrorBody::new(ErrorCode::Busy, message));
        }
        Ok(base)
    }
}

impl Program {
    /// Where it runs.
    pub(super) fn name(&self) -> String {
        match self {
            Self::Tcx { .. } => "tcx".to_owned(),
            Self::Xdp(attachment) => attachment.mode().to_string(),
        }
    }

    /// Why not where it would run best.
    pub(super) fn reason(&self) -> Option<&str> {
        match self {
            Self::Tcx { .. } => None,
            Self::Xdp(attachment) => attachment.reason(),
        }
    }
}

fn facts(port: &Port, id: PortId, interface: &Interface) -> PortFacts {
    PortFacts {
        id,
        interface: port.interface.clone(),
        ifindex: interface.ifindex,
        mtu: interface.mtu,
        mac: interface.mac,
        carries_runs: interface.carries_runs,
        role: port.role.clone(),
    }
}

pub(super) fn is_pod(role: &PortRole) -> bool {
    matches!(role, PortRole::Pod { .. })
}

fn addresses(role: &PortRole) -> &[IpAddr] {
    match role {
        PortRole::Pod { addresses, .. } => addresses,
        PortRole::Uplink { .. } => &[],
    }
}

fn check(role: &PortRole) -> Result<(), ErrorBody> {
    let invalid = |message: String| Err(ErrorBody::new(ErrorCode::Invalid, message));
    let PortRole::Pod { addresses, mac, .. } = role else {
        return Ok(());
    };
    if addresses.is_empty() {
        return invalid("a pod port needs at least one address".into());
    }
    if mac.is_multicast() || *mac == MacAddr::default() {
        return invalid(format!(
            "{mac} cannot be a pod's MAC; use a unicast address"
        ));
    }
    Ok(())
}

fn mode(choice: XdpModeChoice) -> ModeChoice {
    match choice {
        XdpModeChoice::Auto => ModeChoice::Auto(XdpMode::Native),
        XdpModeChoice::Native => ModeChoice::Native,
        XdpModeChoice::Generic => ModeChoice::Generic,
    }
}

fn interface_error(name: &str, error: &io::Error) -> ErrorBody {
    match error.kind() {
        io::ErrorKind::NotFound => ErrorBody::new(
            ErrorCode::NoSuchInterface,
            format!("there is no interface {name} in this network namespace; see `ip link`"),
        ),
        io::ErrorKind::InvalidInput => ErrorBody::new(
            ErrorCode::Invalid,
            format!("{name} cannot be a port: {error}"),
        ),
        _ => system(format!("cannot look at {name}: {error}")),
    }
}

fn attach_error(error: AttachError) -> ErrorBody {
    let code = match error {
        AttachError::Busy { .. } => ErrorCode::Busy,
        AttachError::NoDevice { .. } => ErrorCode::NoSuchInterface,
        AttachError::Permission { .. } => ErrorCode::PermissionDenied,
        AttachError::Refused { .. } => ErrorCode::Unsupported,
    };
    ErrorBody::new(code, error.to_string())
}

fn xsk_error(error: &XskError) -> ErrorBody {
    let code = if error.is_taken() {
        ErrorCode::Busy
    } else {
        ErrorCode::System
    };
    ErrorBody::new(code, error.to_string())
}
