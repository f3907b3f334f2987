//! The node: what was told, what is seen, and the work of bringing both together.
//!
//! Each round of the main loop takes in what the kernel tells and what clients ask, notes what
//! follows from that ([`Dirt`]), and brings so much of kernel and dataplane in line, once. Changes
//! are answered after that: what was acknowledged is in the state file and in force in the kernel,
//! and on its way to the dataplane.

mod change;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use mio::{Registry, Token};
use podway_proto::control::{Daemon, DataplaneLink, PortRoleSpec, Request, Response};
use podway_proto::dataplane;
use podway_proto::server::ClientId;
use podway_proto::trace::{Trace, TracePacket};
use podway_proto::{ErrorBody, ErrorCode};

use crate::bulk;
use crate::clients::Task;
use crate::dirt::Dirt;
use crate::health::Health;
use crate::import::Import;
use crate::index::Index;
use crate::kernel::{self, DeviceWant, Want};
use crate::netfilter::Watch;
use crate::netlink::{self, Event, Lookup, Monitor, Requests};
use crate::nftables::{Rules, nft};
use crate::observed::{Observed, Stale};
use crate::path_mtu;
use crate::report;
use crate::reverse_path::{self, ReversePath};
use crate::session::{LinkState, Session, Ticket};
use crate::settings::Settings;
use crate::state::Desired;
use crate::store::Store;
use crate::trace;
use crate::world::{LearnedMacs, Ways, World};

/// When the kernel is brought in line again after a step failed.
const RETRY_KERNEL: Duration = Duration::from_secs(1);
/// Rounds of looking and changing until the kernel stays as it is: the device, what is on it, and
/// what follows from its addresses. One more finds nothing to do.
const SETTLE_ROUNDS: u32 = 4;
/// Ways are asked again at most this often: a routing daemon that loads a table makes thousands
/// of changes a second, each of which may change any way.
const WAYS_PERIOD: Duration = Duration::from_millis(50);
/// After all ways were asked for, nothing is asked for this many times as long as that took.
const WAYS_REST: u32 = 20;
/// Orders to the kernel before what it tells of them is read.
const ORDERS_AT_ONCE: usize = 4096;

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

/// What a client wants that waits for an answer of the dataplane.
#[derive(Debug, Clone)]
enum Question {
    Status,
    Counters,
    Drops,
    Trace(Box<TracePacket>),
    Perf,
    PerfReset,
    /// That its log is changed, and then control's if that is wanted.
    Log {
        directives: String,
        both: bool,
    },
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

    /// Takes in what the kernel tells.
    pub fn follow_kernel(&mut self) {
        match self.monitor.drain() {
            Ok(events) => {
                for event in events {
                    self.follow(event);
                }
            }
            Err(netlink::Overrun) => {
                tracing::warn!("changes of the kernel were lost; taking everything anew");
                self.import.doubt();
                self.take_anew();
            }
        }
        self.stale_ways.merge(self.observed.take_stale_ways());
        self.table.follow();
        self.netfilter.follow();
    }

    /// Takes the mirror anew. Where that fails it stays what it is, and is tried again.
    fn take_anew(&mut self) {
        let before = self.mirror_error.take();
        self.mirror_error = match self.requests.dump_all() {
            Ok((events, whole)) => {
                self.observed = Observed::from_dump(events);
                self.dirt.all = true;
                unless_whole(whole)
            }
            Err(error) => Some(format!("changes of the kernel were lost: {error}")),
        };
        if let Some(error) = &self.mirror_error {
            if before.as_ref() != Some(error) {
                tracing::error!("{error}");
            }
            self.retry_kernel = Some(Instant::now() + RETRY_KERNEL);
        }
    }

    /// Reads the table that routes are taken from anew, where events have not told all.
    fn read_table(&mut self, now: Instant) {
        let Some(table) = self.import.due(now) else {
            return;
        };
        match self.requests.dump_table(table) {
            Ok((routes, whole)) => self.dirt.all |= self.import.replace(routes, whole, now),
            Err(error) => {
                tracing::warn!("{error}");
                self.import.failed(now);
            }
        }
    }

    fn follow(&mut self, event: Event) {
        let link = match &event {
            Event::Link(link) => Some(link.index),
            Event::LinkGone { index } => Some(*index),
            _ => None,
        };
        let name = link.and_then(|index| self.observed.link(index));
        let name = name.map(|link| link.name.clone());
        let imported = self.import.apply(&event);
        if self.observed.apply(event.clone()) || imported {
            let mut dirt = std::mem::take(&mut self.dirt);
            dirt.event(&event, name.as_deref(), &self.world(), &self.index);
            self.dirt = dirt;
        }
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

    /// Brings kernel and dataplane in line if anything has changed.
    fn settle(&mut self, now: Instant) {
        self.ask_doubtful(now);
        self.read_table(now);
        self.dirt.all |= self.netfilter.look(now);
        if self.dirt.all || self.dirt.objects {
            self.rules = Rules::of(&self.world());
        }
        self.table.keep(self.rules.as_ref(), now);
        let mut errors = self.ask_stale_ways(now);
        if self.retry_kernel.is_some_and(|at| now >= at) {
            self.retry_kernel = None;
            self.dirt.objects = true;
            self.dirt.routes.extend(self.route_errors.keys());
            if self.mirror_error.is_some() {
                self.take_anew();
            }
        }
        if self.dirt.is_empty() {
            return;
        }
        let mut settled = Dirt::default();
        for _ in 0..SETTLE_ROUNDS {
            let mut dirt = std::mem::take(&mut self.dirt);
            if dirt.all || dirt.objects {
                self.ask_new_ways(&mut dirt, &mut errors);
            }
            self.settle_kernel(now, &dirt, &errors);
            settled.merge(dirt);
            self.follow_kernel();
            if self.dirt.is_empty() {
                break;
            }
        }
        if settled.all || settled.ports {
            self.learn_macs();
        }
        let world = World {
            settings: &self.settings,
            desired: &self.desired,
            observed: &self.observed,
            ways: &self.ways,
            learned: &self.learned,
            import: &self.import,
            chains: self.netfilter.chains(),
        };
        if settled.all || settled.ports {
            self.reverse_path.follow(&world);
        }
        self.session.update(&world, &self.index, &settled);
        if let Some(health) = &mut self.health {
            health.update(&world, &settled, now);
        }
    }

    /// Asks for the ways that are needed and not known, and forgets those that are not needed.
    fn ask_new_ways(&mut self, dirt: &mut Dirt, errors: &mut BTreeSet<String>) {
        let needed = self.world().needed_ways(&self.index);
        self.ways.retain(|address, _| needed.contains(address));
        let new = needed.into_iter();
        let new: Vec<IpAddr> = new.filter(|a| !self.ways.contains_key(a)).collect();
        self.ask_ways(&new, dirt, errors);
    }

    /// Asks again for the ways that may have changed, when it is time to.
    fn ask_stale_ways(&mut self, now: Instant) -> BTreeSet<String> {
        let mut errors = BTreeSet::new();
        if self.stale_ways == Stale::default() || now < self.ways_due {
            return errors;
        }
        let stale = std::mem::take(&mut self.stale_ways);
        let addresses: Vec<IpAddr> = if stale.all {
            self.ways.keys().copied().collect()
        } else {
            let inside = stale.inside.iter();
            let ways = inside.flat_map(|p| self.ways.range(p.network()..=p.broadcast()));
            ways.map(|(address, _)| *address).collect()
        };
        if !addresses.is_empty() {
            let mut dirt = std::mem::take(&mut self.dirt);
            let asked = self.ask_ways(&addresses, &mut dirt, &mut errors);
            let took = now.elapsed();
            self.ways_due = now + WAYS_PERIOD.max(took * WAYS_REST);
            if !asked {
                self.stale_ways.merge(stale);
                self.ways_due = now + RETRY_KERNEL;
                // The error is told with theirs.
                dirt.objects = true;
            }
            self.dirt = dirt;
        }
        errors
    }

    /// Asks for ways; whether there are answers. Without them the ways stay what they were.
    fn ask_ways(
        &mut self,
        addresses: &[IpAddr],
        dirt: &mut Dirt,
        errors: &mut BTreeSet<String>,
    ) -> bool {
        match self.requests.lookup_all(addresses) {
            Ok(ways) => {
                let ways = addresses.iter().zip(ways);
                let changed = ways
                    .filter_map(|(address, way)| self.set_way(*address, way).then_some(*address));
                let changed = changed.collect();
                dirt.ways(&changed, &self.world(), &self.index);
                true
            }
            Err(error) => {
                errors.insert(error.to_string());
                false
            }
        }
    }

    /// Takes what the kernel says of a way; whether it is something else than before.
    fn set_way(&mut self, address: IpAddr, way: Option<Lookup>) -> bool {
        if let Some(expires) = way.as_ref().and_then(|way| way.expires) {
            // Not before it has gone: told again then without its end, it would stay for good.
            self.doubt(address, expires + WAYS_PERIOD);
        }
        let same = match (self.ways.get(&address), &way) {
            (Some(Some(old)), Some(new)) => old.agrees(new),
            (Some(None), None) => true,
            _ => false,
        };
        self.ways.insert(address, way);
        !same
    }

    /// Has the way to `address` asked again when `after` is over.
    fn doubt(&mut self, address: IpAddr, after: Duration) {
        let at = Instant::now() + after;
        let due = self.doubtful.entry(address).or_insert(at);
        *due = at.min(*due);
    }

    /// Takes in what routers say. The kernel takes it in only after it has given it to us.
    pub fn follow_errors(&mut self) {
        let nodes = self.errors.as_mut().map(path_mtu::Errors::drain);
        for node in nodes.into_iter().flatten() {
            if self.ways.contains_key(&node) {
                self.doubt(node, WAYS_PERIOD);
            }
        }
    }

    /// Takes in what other nodes ask and answer; see [`Health::receive`] for `idle`.
    pub fn follow_health(&mut self, idle: Instant) {
        if let Some(health) = &mut self.health {
            health.receive(idle);
        }
    }

    /// Asks again for the ways of which it is time to. One that cannot be asked for stays what it
    /// was and is tried again.
    fn ask_doubtful(&mut self, now: Instant) {
        let due = self.doubtful.iter().filter(|(_, at)| **at <= now);
        let due: Vec<IpAddr> = due.map(|(address, _)| *address).collect();
        for address in due {
            self.doubtful.remove(&address);
            if !self.ways.contains_key(&address) {
                continue;
            }
            match self.requests.lookup(address) {
                Ok(way) => {
                    let mtu = way.as_ref().and_then(|way| way.mtu);
                    if self.set_way(address, way) {
                        tracing::info!(%address, mtu, "the way to a node has changed");
                        let mut dirt = std::mem::take(&mut self.dirt);
                        dirt.ways(&BTreeSet::from([address]), &self.world(), &self.index);
                        self.dirt = dirt;
                    }
                }
                Err(error) => {
                    tracing::warn!("{error}");
                    self.doubt(address, RETRY_KERNEL);
                }
            }
        }
    }

    /// Brings those objects of the kernel in line that `dirt` names; what fails is tried again in
    /// a second, `way_errors` too.
    fn settle_kernel(&mut self, now: Instant, dirt: &Dirt, way_errors: &BTreeSet<String>) {
        let mut errors: Vec<String> = way_errors.iter().cloned().collect();
        let objects = dirt.all || dirt.objects;
        if objects {
            errors.extend(self.settle_devices());
        }
        let devices = kernel::devices(&self.world());
        let (mut orders, mut removals) = (Vec::new(), Vec::new());
        if objects {
            let want = Want::of(&self.world(), &self.index, &devices);
            (orders, removals) = kernel::orders(&self.observed, &want);
            errors.extend(want.errors);
        }
        let prefixes: Vec<IpNet> = if dirt.all {
            let told = self.index.prefixes(&self.desired);
            let imported = self.import.prefixes();
            let ours = self.observed.our_routes().keys().copied();
            let mut all: Vec<IpNet> = told.chain(imported).chain(ours).collect();
            all.sort_unstable();
            all.dedup();
            all
        } else {
            dirt.routes.iter().copied().collect()
        };
        let (mut routes, mut refused) = (Vec::new(), BTreeMap::new());
        for prefix in &prefixes {
            let want = kernel::route(&self.world(), &self.index, &devices, *prefix);
            let want = want.unwrap_or_else(|error| {
                refused.insert(*prefix, error);
                None
            });
            routes.extend(kernel::route_order(&self.observed, *prefix, want));
        }
        // For each route the kernel searches all gateways of the link, the newest first
        // (`fib_find_info` of net/ipv4/fib_semantics.c hashes by link, not by gateway): routes
        // through one gateway after the other are found at once.
        routes.sort_by_key(|order| order.route().map(|route| (route.link, route.gateway)));
        orders.extend(routes);
        orders.extend(removals);
        for some in orders.chunks(ORDERS_AT_ONCE) {
            for (position, error) in kernel::carry_out(&mut self.requests, some) {
                match some[position].route() {
                    Some(route) => drop(refused.insert(route.prefix, error)),
                    None => errors.push(error),
                }
            }
            // The kernel tells of each, and the monitor does not hold any number. Other nodes wait a
            // second for an answer.
            self.follow_kernel();
            self.follow_health(Instant::now());
        }
        for prefix in prefixes {
            match refused.remove(&prefix) {
                Some(error) => self.note_route_error(prefix, error),
                None => drop(self.route_errors.remove(&prefix)),
            }
        }
        if objects {
            for error in errors
                .iter()
                .filter(|error| !self.kernel_errors.contains(error))
            {
                tracing::warn!("{error}");
            }
            self.kernel_errors = errors;
        }
        if !(self.kernel_errors.is_empty() && self.route_errors.is_empty()) {
            self.retry_kernel.get_or_insert(now + RETRY_KERNEL);
        }
    }

    /// Brings the VXLAN devices in line; what is in the way.
    fn settle_devices(&mut self) -> Vec<String> {
        let (mut errors, mut done) = (Vec::new(), false);
        // First: one of them may have a VNI that another is to get.
        for index in kernel::stale_devices(&self.world()) {
            match self.requests.delete_link(index) {
                Ok(()) => done = true,
                Err(error) => errors.push(error.to_string()),
            }
        }
        for want in DeviceWant::all(&self.world()) {
            match kernel::apply_device(&mut self.requests, &self.observed, &want) {
                Ok(true) if !self.settings.also_vnis.is_empty() => {
                    done = true;
                    errors.extend(reverse_path::loosen(&want.name).err());
                }
                Ok(changed) => done |= changed,
                Err(error) => errors.push(error),
            }
        }
        if done {
            self.follow_kernel();
        }
        errors
    }

    /// Keeps what is wrong with a route, and logs it once.
    fn note_route_error(&mut self, prefix: IpNet, error: String) {
        if self.route_errors.get(&prefix) != Some(&error) {
            tracing::warn!("{error}");
            self.route_errors.insert(prefix, error);
        }
    }

    /// Notes the MACs that pods have answered with, and forgets those of links that are gone.
    fn learn_macs(&mut self) {
        let mut learned = LearnedMacs::new();
        for (interface, role) in &self.desired.ports {
            let PortRoleSpec::Pod {
                addresses,
                mac: None,
                ..
            } = role
            else {
                continue;
            };
            let Some(link) = self.observed.link_named(interface) else {
                continue;
            };
            let seen = addresses.iter().find_map(|address| {
                self.observed
                    .neighbor(link.index, *address)
                    .and_then(|neighbor| neighbor.mac)
            });
            let mac = seen.or_else(|| self.learned.get(interface).copied());
            learned.extend(mac.map(|mac| (interface.clone(), mac)));
        }
        self.learned = learned;
    }

    /// Answers a question, or notes that the dataplane has to be asked first.
    fn answer(&mut self, client: ClientId, request: &Request) -> Option<Response> {
        let world = self.world();
        Some(match request {
            Request::NodeList => Response::Nodes {
                nodes: report::nodes(&world, self.health.as_ref()),
            },
            Request::RouteShow => Response::Routes {
                routes: report::routes(&world, &self.index),
            },
            Request::PortShow => Response::Ports {
                ports: report::ports(&world),
            },
            Request::RouteGet { address } => match report::route_get(&world, &self.index, *address)
            {
                Ok(answer) => Response::RouteGet(answer),
                Err(error) => Response::Error(error),
            },
            Request::Export => Response::Entries(bulk::entries(&self.desired)),
            Request::Status => return self.ask(client, Question::Status),
            Request::Counters => return self.ask(client, Question::Counters),
            Request::Drops => return self.ask(client, Question::Drops),
            Request::TracePacket(asked) => {
                let asked = trace::whole(asked, &world);
                return self.ask(client, Question::Trace(Box::new(asked)));
            }
            Request::Perf => return self.ask(client, Question::Perf),
            Request::PerfReset => return self.ask(client, Question::PerfReset),
            Request::Log { directives, daemon } => return self.log(client, directives, *daemon),
            // Clients are greeted before they come here, and changes were made before.
            _ => Response::Error(ErrorBody::new(ErrorCode::BadRequest, "not a question")),
        })
    }

    fn ask(&mut self, client: ClientId, question: Question) -> Option<Response> {
        let request = match &question {
            Question::Status => dataplane::Request::Status,
            Question::Counters => dataplane::Request::Counters,
            Question::Drops => dataplane::Request::Drops,
            Question::Trace(asked) => dataplane::Request::TracePacket(TracePacket::clone(asked)),
            Question::Perf => dataplane::Request::Perf,
            Question::PerfReset => dataplane::Request::PerfReset,
            Question::Log { directives, .. } => dataplane::Request::Log {
                directives: directives.clone(),
            },
        };
        match self.session.ask(request) {
            Ok(ticket) => {
                self.questions.insert(ticket, (client, question));
                None
            }
            Err(error) => Some(self.relay(question, Err(error))),
        }
    }

    /// Changes what is logged. Of both daemons the dataplane is first: where it cannot, nothing has
    /// changed.
    fn log(
        &mut self,
        client: ClientId,
        directives: &str,
        daemon: Option<Daemon>,
    ) -> Option<Response> {
        if let Err(error) = podway_proto::log::check(directives) {
            return Some(Response::Error(error));
        }
        if daemon == Some(Daemon::Control) {
            return Some(change_log(directives).into());
        }
        let question = Question::Log {
            directives: directives.to_owned(),
            both: daemon.is_none(),
        };
        self.ask(client, question)
    }

    /// The response to a client whose question the dataplane answered, or did not.
    fn relay(
        &mut self,
        question: Question,
        result: Result<dataplane::Response, ErrorBody>,
    ) -> Response {
        match (question, result) {
            (Question::Status, Ok(dataplane::Response::Status(status))) => {
                self.status(Some(Box::new(status)))
            }
            (Question::Status, _) => self.status(None),
            (Question::Counters, Ok(dataplane::Response::Counters(counters))) => {
                Response::Counters {
                    imbalances: counters.books.imbalances(),
                    counters,
                }
            }
            (Question::Drops, Ok(dataplane::Response::Drops(drops))) => Response::Drops(drops),
            (Question::Trace(asked), Ok(dataplane::Response::TracePacket(trace))) => {
                self.traced(*asked, *trace)
            }
            (Question::Perf, Ok(dataplane::Response::Perf(perf))) => Response::Perf(perf),
            (Question::PerfReset, Ok(dataplane::Response::Done)) => Response::Done,
            (Question::Log { directives, both }, Ok(dataplane::Response::Done)) => match both {
                true => change_log(&directives).into(),
                false => Response::Done,
            },
            (_, Ok(dataplane::Response::Error(error)) | Err(error)) => Response::Error(error),
            (_, Ok(_)) => Response::Error(ErrorBody::new(
                ErrorCode::System,
                "podway-dataplane answered something else; install both from one release",
            )),
        }
    }

    /// Adds what the kernel says, if it has the packet.
    fn traced(&mut self, packet: TracePacket, trace: Trace) -> Response {
        let way = match trace::asks_kernel(&packet, &trace) {
            None => None,
            Some(address) => match self.requests.lookup(address) {
                Ok(way) => Some((address, way)),
                Err(error) => return system_error(&error),
            },
        };
        let answer = trace::answer(&self.world(), &self.index, packet, trace, way);
        Response::TracePacket(Box::new(answer))
    }

    fn status(&self, status: Option<Box<dataplane::Status>>) -> Response {
        let dataplane = match self.session.state() {
            LinkState::Disconnected(reason) => DataplaneLink::Disconnected {
                reason: reason.to_owned(),
            },
            LinkState::Syncing => DataplaneLink::Syncing {
                refused: self.session.refused(),
                status,
            },
            LinkState::Synced => DataplaneLink::Synced {
                refused: self.session.refused(),
                status,
            },
        };
        let errors = self.kernel_errors.iter().chain(self.route_errors.values());
        let mut errors: BTreeSet<String> = errors.cloned().collect();
        errors.extend(self.table.error().map(str::to_owned));
        errors.extend(self.mirror_error.clone());
        let mut status = report::status(
            &self.world(),
            &self.index,
            dataplane,
            self.session.drift(),
            errors.into_iter().collect(),
            self.health.as_ref().map(Health::status),
        );
        status.hints.extend(self.netfilter.hints(&self.world()));
        status.hints.extend(self.reverse_path.hints());
        Response::Status(Box::new(status))
    }
}

fn system_error(error: &netlink::Error) -> Response {
    Response::Error(ErrorBody::new(ErrorCode::System, error.to_string()))
}

/// What is wrong with a mirror, if it was not taken as a whole.
fn unless_whole(whole: bool) -> Option<String> {
    (!whole).then(|| netlink::NOT_WHOLE.to_owned())
}

/// Changes what this process logs.
fn change_log(directives: &str) -> Result<(), ErrorBody> {
    podway_proto::log::set(directives)?;
    tracing::info!(directives, "what is logged has changed");
    Ok(())
}
