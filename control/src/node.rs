//! The node: what was told, what is seen, and the work of bringing both together.
//!
//! Each round of the main loop takes in what the kernel tells and what clients ask, notes what
//! follows from that ([`Dirt`]), and brings so much of kernel and dataplane in line, once. Changes
//! are answered after that: what was acknowledged is in the state file and in force in the kernel,
//! and on its way to the dataplane. This is [`Node::handle`]; the files beside it have a part each:
//! changes, what is seen, ways, bringing in line, questions.

mod change;
mod observe;
mod questions;
mod settle;
mod ways;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use mio::{Registry, Token};
use podway_proto::control::Response;
use podway_proto::server::ClientId;

use crate::clients::Task;
use crate::dirt::Dirt;
use crate::health::Health;
use crate::import::Import;
use crate::index::Index;
use crate::netfilter::Watch;
use crate::netlink::{self, Monitor, Requests};
use crate::nftables::{Rules, nft};
use crate::observed::{Observed, Stale};
use crate::path_mtu;
use crate::reverse_path::ReversePath;
use crate::session::{Session, Ticket};
use crate::settings::Settings;
use crate::state::Desired;
use crate::store::Store;
use crate::world::{LearnedMacs, Ways, World};
use questions::Question;

/// When the kernel is brought in line again after a step failed.
const RETRY_KERNEL: Duration = Duration::from_secs(1);

/// The node.
#[derive(Debug)]
pub struct Node {
    settings: Settings,
    desired: Desired,
    store: Store,
    requests: Requests,
    monitor: Monitor,
    observed: Observed,
    ways: Ways,
    learned: LearnedMacs,
    import: Import,
    table: nft::Keeper,
    netfilter: Watch,
    rules: Option<Rules>,
    reverse_path: ReversePath,
    session: Session,
    /// What the kernel refused or cannot have, routes aside.
    kernel_errors: Vec<String>,
    /// The same of routes.
    route_errors: BTreeMap<IpNet, String>,
    retry_kernel: Option<Instant>,
    /// Why the mirror may miss what no event will tell of, if it may; it is then taken anew when the
    /// kernel is tried again.
    mirror_error: Option<String>,
    index: Index,
    /// What has changed since kernel and dataplane were brought in line, and follows from it.
    dirt: Dirt,
    /// When ways may be asked again.
    ways_due: Instant,
    /// The ways that have to be asked again then.
    stale_ways: Stale,
    /// Errors of routers that packets are too large; `None` where nothing may listen to them.
    errors: Option<path_mtu::Errors>,
    /// Ways that have to be asked again, and when: a router has said something of them, or the
    /// kernel forgets what it was told.
    doubtful: BTreeMap<IpAddr, Instant>,
    /// Whether other nodes are reached; `None` when they are not probed.
    health: Option<Health>,
    /// Clients that wait for an answer of the dataplane.
    questions: BTreeMap<Ticket, (ClientId, Question)>,
}

/// What hears of changes that nobody asked for, open and listening.
#[derive(Debug)]
pub struct Listeners {
    /// Links, addresses, neighbours and routes.
    pub monitor: Monitor,
    /// ICMP errors, if they may be listened to.
    pub errors: Option<path_mtu::Errors>,
    /// Podway's own table of nftables.
    pub table: nft::Keeper,
    /// Others' chains.
    pub netfilter: Watch,
}

impl Node {
    /// Takes up the node where it was left.
    ///
    /// # Errors
    /// What the kernel says to a connection and the first dump.
    pub fn start(
        settings: Settings,
        desired: Desired,
        store: Store,
        listeners: Listeners,
        session: Session,
    ) -> Result<Self, netlink::Error> {
        let Listeners {
            monitor,
            errors,
            table,
            netfilter,
        } = listeners;
        let mut requests = Requests::open()?;
        let (events, whole) = requests.dump_all()?;
        let import = Import::of(settings.import_kernel_table);
        let mirror_error = unless_whole(whole);
        Ok(Self {
            settings,
            index: Index::of(&desired),
            desired,
            store,
            requests,
            monitor,
            observed: Observed::from_dump(events),
            ways: Ways::new(),
            learned: LearnedMacs::new(),
            import,
            table,
            netfilter,
            rules: None,
            reverse_path: ReversePath::default(),
            session,
            kernel_errors: Vec::new(),
            route_errors: BTreeMap::new(),
            retry_kernel: mirror_error
                .is_some()
                .then(|| Instant::now() + RETRY_KERNEL),
            mirror_error,
            dirt: Dirt::all(),
            ways_due: Instant::now(),
            stale_ways: Stale::default(),
            errors,
            doubtful: BTreeMap::new(),
            health: None,
            questions: BTreeMap::new(),
        })
    }

    /// Begins to probe other nodes and to answer theirs, if the configuration says so. Events come
    /// by `token`.
    pub fn probe_others(&mut self, token: Token) {
        let settings = self.settings.health;
        let own = &self.settings.node_name;
        self.health = settings.map(|settings| Health::new(settings, own, token));
    }

    /// The node's name.
    pub fn name(&self) -> &str {
        &self.settings.node_name
    }

    /// When something has to be done though nothing came.
    pub fn deadline(&self) -> Option<Instant> {
        let ways = (self.stale_ways != Stale::default()).then_some(self.ways_due);
        let doubtful = self.doubtful.values().min().copied();
        let now = (!self.dirt.is_empty()).then(Instant::now);
        [
            self.session.deadline(),
            self.retry_kernel,
            ways,
            doubtful,
            self.import.deadline(),
            self.table.deadline(),
            self.netfilter.deadline(),
            self.health.as_ref().and_then(Health::deadline),
            now,
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// Handles the tasks of a round and gives the responses that are ready: to them, and to earlier
    /// ones that waited for the dataplane.
    pub fn handle(
        &mut self,
        tasks: Vec<(ClientId, Task)>,
        registry: &Registry,
        now: Instant,
    ) -> Vec<(ClientId, Response)> {
        let (mut responses, questions) = self.carry_out(tasks);
        self.settle(now);
        if let Some(health) = &mut self.health {
            health.advance(registry);
        }
        for (client, request) in questions {
            if let Some(response) = self.answer(client, &request) {
                responses.push((client, response));
            }
        }
        self.session.advance(registry, now);
        for (ticket, result) in self.session.take_answers() {
            if let Some((client, question)) = self.questions.remove(&ticket) {
                responses.push((client, self.relay(question, result)));
            }
        }
        responses
    }

    /// Does what may be done when everybody has been answered.
    pub fn tidy(&mut self) {
        self.store.tidy(&self.desired);
    }

    fn world(&self) -> World<'_> {
        World {
            settings: &self.settings,
            desired: &self.desired,
            observed: &self.observed,
            ways: &self.ways,
            learned: &self.learned,
            import: &self.import,
            chains: self.netfilter.chains(),
        }
    }
}

/// What is wrong with a mirror, if it was not taken as a whole.
fn unless_whole(whole: bool) -> Option<String> {
    (!whole).then(|| netlink::NOT_WHOLE.to_owned())
}
