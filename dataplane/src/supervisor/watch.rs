//! Watches: arms them at the workers, collects what they have recorded, and gives it names.
//!
//! A watch lives as long as its [`WatchHandle`], which the connection that asked for it holds.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use podway_proto::types::{MacAddr, Vni};
use podway_proto::watch::{
    MAX_FILTER, MAX_SNAP, MAX_WATCHES, WatchNextHop, WatchNextHopKind, WatchRecord, WatchRoute,
    WatchSender, WatchSpec, Watched,
};
use podway_proto::{ErrorBody, ErrorCode};

use super::{Supervisor, system};
use crate::fib::{Fib, PortId};
use crate::watch::{Exit, Filter, Note, Reader, Watch, ring};
use crate::worker::{Command, Reply};

/// Records that are given at once: an answer is made while every other client waits.
const MOST_RECORDS: usize = 1024;
/// Bytes of packets in them, but for the last one.
const MOST_BYTES: usize = 256 << 10;

/// Keeps a watch armed.
#[derive(Debug)]
pub struct WatchHandle(Arc<u64>);

/// A watch as the API thread knows it.
#[derive(Debug)]
pub(super) struct ArmedWatch {
    id: Arc<u64>,
    /// By worker.
    readers: Vec<Reader>,
    /// Packets that may still be taken; `None`: any number.
    left: Option<Arc<AtomicU64>>,
    /// The worker whose records are read first next time.
    first: usize,
    /// Whether workers still have it.
    armed: bool,
}

impl Supervisor {
    /// Arms a watch. It is armed at every worker, or at none.
    ///
    /// # Errors
    /// What is wrong with the filter or the numbers; [`ErrorCode::Busy`] when there are as many as may
    /// be; a worker that does not answer.
    pub fn begin_watch(&mut self, spec: &WatchSpec) -> Result<WatchHandle, ErrorBody> {
        let filter = self.checked(spec)?;
        // One whose connection has just closed is in nobody's way.
        self.end_orphaned_watches();
        if self.watches.iter().filter(|watch| watch.armed).count() >= MAX_WATCHES {
            let message = format!(
                "{MAX_WATCHES} watches are armed, which are as many as may be; end a `podway capture`, \
                 `flows`, `trace live` or `top`"
            );
            return Err(ErrorBody::new(ErrorCode::Busy, message));
        }
        self.commands += 1;
        let id = Arc::new(self.commands);
        let left = spec.limit.map(|limit| Arc::new(AtomicU64::new(limit)));
        let snap = spec.snap.min(MAX_SNAP) as usize;
        let mut armed = ArmedWatch {
            id: Arc::clone(&id),
            readers: Vec::new(),
            left: left.clone(),
            first: 0,
            armed: true,
        };
        for worker in (0..).take(self.workers.len()) {
            let (writer, reader) = ring(snap);
            armed.readers.push(reader);
            let watch = Watch::new(*id, filter.clone(), spec, left.clone(), writer);
            // A worker that is stuck already is told nothing.
            let told = worker + u16::from(!self.worker(worker)?.is_stuck());
            let refused = match self.ask(worker, Command::Watch(Box::new(watch))) {
                Ok(Reply::Watching) => continue,
                Ok(_) => system(format!("worker {worker} has as many watches as may be")),
                Err(error) => error,
            };
            self.disarm(*id, told);
            return Err(refused);
        }
        self.watches.push(armed);
        Ok(WatchHandle(id))
    }

    fn checked(&self, spec: &WatchSpec) -> Result<Filter, ErrorBody> {
        let invalid = |message: String| Err(ErrorBody::new(ErrorCode::Invalid, message));
        if spec.points.is_empty() {
            return invalid(
                "no point is named; name one of ingress, decap, egress, dropped".into(),
            );
        }
        if spec.sample == 0 || spec.limit == Some(0) {
            return invalid("sample and limit are at least 1".into());
        }
        if spec.filter.len() > MAX_FILTER {
            return invalid(format!(
                "the filter is longer than {MAX_FILTER} bytes; shorten it"
            ));
        }
        let port = |name: &str| self.ports.get(name).map(|port| port.id);
        let filter = Filter::parse(&spec.filter, &port);
        filter.map_err(|error| ErrorBody::new(ErrorCode::Invalid, error.to_string()))
    }

    /// What a watch has recorded since the last time.
    ///
    /// # Errors
    /// When there is no watch.
    pub fn read_watch(&mut self, handle: Option<&WatchHandle>) -> Result<Watched, ErrorBody> {
        let exhausted = |left: &Arc<AtomicU64>| left.load(Relaxed) == 0;
        if self.watch_of(handle)?.left.as_ref().is_some_and(exhausted) {
            // When each worker has answered, the last packet has all of its records.
            self.end_watch(handle)?;
        }
        let watch = self.watch_of(handle)?;
        let armed = watch.armed;
        let first = watch.first;
        let mut readers = std::mem::take(&mut watch.readers);
        let mut names = Names::new(self);
        let mut watched = Watched::default();
        let mut room = MOST_BYTES;
        // Each in turn is first: an answer may be full before the last one has its turn.
        let (before, from) = readers.split_at_mut(first);
        let numbered = |begin: usize| u16::try_from(begin).unwrap_or(u16::MAX)..;
        let in_turn = numbered(first).zip(from).chain(numbered(0).zip(before));
        for (worker, reader) in in_turn {
            while watched.records.len() < MOST_RECORDS && room > 0 {
                let Some((note, bytes)) = reader.read() else {
                    break;
                };
                room = room.saturating_sub(bytes.len());
                watched.records.push(names.record(worker, &note, bytes));
            }
            watched.lost += reader.lost();
        }
        watched.records.sort_by_key(|record| record.time);
        watched.done = !armed && watched.records.is_empty();
        let watch = self.watch_of(handle)?;
        watch.first = (first + 1) % readers.len().max(1);
        watch.readers = readers;
        Ok(watched)
    }

    /// Whether a watch is armed.
    pub fn is_watching(&mut self, handle: Option<&WatchHandle>) -> bool {
        self.watch_of(handle).is_ok_and(|watch| watch.armed)
    }

    /// Disarms a watch; what it has recorded can still be read.
    ///
    /// # Errors
    /// When there is no watch.
    pub fn end_watch(&mut self, handle: Option<&WatchHandle>) -> Result<(), ErrorBody> {
        let watch = self.watch_of(handle)?;
        let id = *watch.id;
        if std::mem::take(&mut watch.armed) {
            self.disarm(id, u16::MAX);
        }
        Ok(())
    }

    fn watch_of(&mut self, handle: Option<&WatchHandle>) -> Result<&mut ArmedWatch, ErrorBody> {
        let id = handle.map(|handle| *handle.0);
        let watch = self.watches.iter_mut().find(|watch| Some(*watch.id) == id);
        watch.ok_or_else(|| {
            let message = "this connection has no watch; send watch-begin first";
            ErrorBody::new(ErrorCode::Invalid, message)
        })
    }

    /// Disarms watches whose connections are gone.
    pub fn end_orphaned_watches(&mut self) {
        let is_orphan = |watch: &mut ArmedWatch| Arc::strong_count(&watch.id) == 1;
        let orphans: Vec<_> = self.watches.extract_if(.., is_orphan).collect();
        for watch in orphans.into_iter().filter(|watch| watch.armed) {
            self.disarm(*watch.id, u16::MAX);
        }
    }

    /// Takes a watch from the workers below `end`. One that is stuck gives it up when it goes on.
    fn disarm(&mut self, id: u64, end: u16) {
        for worker in (0..end).take(self.workers.len()) {
            if let Err(error) = self.ask(worker, Command::Unwatch(id)) {
                tracing::error!(%error, "a worker goes on to watch");
            }
        }
    }
}

/// Names of what records have numbers of; each is looked for once.
struct Names<'s> {
    fib: &'s Fib,
    ports: HashMap<PortId, &'s str>,
    nodes: HashMap<IpAddr, Option<String>>,
    neighbors: HashMap<(PortId, MacAddr), Option<IpAddr>>,
    routes: HashMap<IpAddr, Option<WatchRoute>>,
}

impl<'s> Names<'s> {
    fn new(supervisor: &'s Supervisor) -> Self {
        let ports = supervisor.ports.iter();
        Self {
            fib: &supervisor.fib,
            ports: ports.map(|(name, port)| (port.id, name.as_str())).collect(),
            nodes: HashMap::new(),
            neighbors: HashMap::new(),
            routes: HashMap::new(),
        }
    }

    fn port(&self, id: PortId) -> Option<String> {
        self.ports.get(&id).map(|&name| name.to_owned())
    }

    fn record(&mut self, worker: u16, note: &Note, bytes: Vec<u8>) -> WatchRecord {
        WatchRecord {
            time: note.time,
            worker,
            packet: note.packet,
            point: note.point,
            came_by: self.port(note.came_by),
            length: note.length,
            segment: note.segment,
            frames: note.frames,
            flow: note.flow,
            vni: vni(note.vni),
            tunnel_from: note.sender.map(|address| WatchSender {
                address,
                node: self.node(address),
            }),
            route: self.route(note),
            next_hop: note.exit.map(|exit| self.next_hop(exit)),
            reason: note.reason.map(|reason| reason.name().to_owned()),
            bytes,
        }
    }

    /// The route of a packet whose way was decided.
    fn route(&mut self, note: &Note) -> Option<WatchRoute> {
        note.exit?.to?;
        let destination = note.flow?.destination;
        let find = || {
            // Which of several next hops it was is known, so the flow's hash is not.
            let route = self.fib.trace(destination, 0)?;
            Some(WatchRoute {
                prefix: route.prefix,
                via: route.via,
            })
        };
        let route = self.routes.entry(destination).or_insert_with(find);
        route.clone()
    }

    fn next_hop(&mut self, Exit { port, to }: Exit) -> WatchNextHop {
        let interface = self.port(port);
        let Some(to) = to else {
            return WatchNextHop {
                interface,
                ..WatchNextHop::default()
            };
        };
        let address = match (to.kind, to.tunnel) {
            (_, Some((address, _))) => Some(address),
            (WatchNextHopKind::Native, None) => self.neighbor(port, to.mac),
            _ => None,
        };
        WatchNextHop {
            kind: Some(to.kind),
            interface,
            mac: Some(to.mac),
            address,
            node: address.and_then(|address| self.node(address)),
            vni: vni(to.tunnel.map(|(_, vni)| vni)),
            mtu: Some(to.mtu),
        }
    }

    /// The address of a neighbour; of several, one that is a node's.
    fn neighbor(&mut self, port: PortId, mac: MacAddr) -> Option<IpAddr> {
        if let Entry::Vacant(entry) = self.neighbors.entry((port, mac)) {
            let interface = self.ports.get(&port).copied().unwrap_or_default();
            let addresses = || self.fib.neighbor_addresses(interface, mac);
            let of_node = addresses().find(|address| self.fib.node_at(*address).is_some());
            entry.insert(of_node.or_else(|| addresses().next()));
        }
        self.neighbors.get(&(port, mac)).copied().flatten()
    }

    fn node(&mut self, address: IpAddr) -> Option<String> {
        let find = || self.fib.node_at(address).map(str::to_owned);
        self.nodes.entry(address).or_insert_with(find).clone()
    }
}

fn vni(number: Option<u32>) -> Option<Vni> {
    number.and_then(|number| Vni::try_from(number).ok())
}
