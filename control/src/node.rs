//! The node: what was told, what is seen, and the work of bringing both together.
//!
//! Each round of the main loop takes in what the kernel tells and what clients ask, and then, if
//! anything has changed, brings kernel and dataplane in line once. Changes are answered after
//! that: what was acknowledged is in the state file and in force in the kernel, and on its way to
//! the dataplane.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use mio::Registry;
use podway_proto::control::{DataplaneLink, PortRoleSpec, Request, Response, ViaSpec};
use podway_proto::dataplane;
use podway_proto::server::ClientId;
use podway_proto::{ErrorBody, ErrorCode};

use crate::facts::Facts;
use crate::import::Import;
use crate::kernel::{self, DEVICE, DeviceWant, Want};
use crate::masquerade::{Rules, nft};
use crate::netlink::{self, Lookup, Monitor, Requests};
use crate::observed::Observed;
use crate::path_mtu;
use crate::report;
use crate::session::{LinkState, Session, Ticket};
use crate::settings::Settings;
use crate::state::{Desired, Fixed};
use crate::store::Store;
use crate::world::{LearnedMacs, Ways, World};

/// When the kernel is brought in line again after a step failed.
const RETRY_KERNEL: Duration = Duration::from_secs(1);
/// Rounds of looking and changing until the kernel stays as it is: the device, what is on it, and
/// what follows from its addresses. One more finds nothing to do.
const SETTLE_ROUNDS: u32 = 4;
/// Ways are asked again at most this often: a routing daemon that loads a table makes thousands
/// of changes a second, each of which may change any way.
const WAYS_PERIOD: Duration = Duration::from_millis(50);

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
    masquerade: nft::Keeper,
    session: Session,
    kernel_errors: Vec<String>,
    retry_kernel: Option<Instant>,
    /// Whether something has changed since kernel and dataplane were brought in line.
    changed: bool,
    ways_asked: Option<Instant>,
    /// Whether ways have to be asked again when their period is over.
    ways_stale: bool,
    /// Errors of routers that packets are too large; `None` where nothing may listen to them.
    errors: Option<path_mtu::Errors>,
    /// Ways that have to be asked again, and when: a router has said something of them, or the
    /// kernel forgets what it was told.
    doubtful: BTreeMap<IpAddr, Instant>,
    /// Clients that wait for an answer of the dataplane.
    questions: BTreeMap<Ticket, (ClientId, Question)>,
}

/// What a client wants that waits for an answer of the dataplane.
#[derive(Debug, Clone, Copy)]
enum Question {
    Status,
    Counters,
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
        monitor: Monitor,
        errors: Option<path_mtu::Errors>,
        masquerade: nft::Keeper,
        session: Session,
    ) -> Result<Self, netlink::Error> {
        let mut requests = Requests::open()?;
        let observed = Observed::from_dump(requests.dump_all()?);
        let import = Import::of(settings.import_kernel_table);
        Ok(Self {
            settings,
            desired,
            store,
            requests,
            monitor,
            observed,
            ways: Ways::new(),
            learned: LearnedMacs::new(),
            import,
            masquerade,
            session,
            kernel_errors: Vec::new(),
            retry_kernel: None,
            changed: true,
            ways_asked: None,
            ways_stale: true,
            errors,
            doubtful: BTreeMap::new(),
            questions: BTreeMap::new(),
        })
    }

    /// The node's name.
    pub fn name(&self) -> &str {
        &self.settings.node_name
    }

    /// When something has to be done though nothing came.
    pub fn deadline(&self) -> Option<Instant> {
        let ways = self
            .ways_asked
            .filter(|_| self.ways_stale)
            .map(|at| at + WAYS_PERIOD);
        let doubtful = self.doubtful.values().min().copied();
        let now = self.changed.then(Instant::now);
        [
            self.session.deadline(),
            self.retry_kernel,
            ways,
            doubtful,
            self.import.deadline(),
            self.masquerade.deadline(),
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
                    self.import.apply(&event);
                    self.changed |= self.observed.apply(event);
                }
            }
            Err(netlink::Overrun) => {
                tracing::warn!("changes of the kernel were lost; taking everything anew");
                match self.requests.dump_all() {
                    Ok(events) => self.observed = Observed::from_dump(events),
                    Err(error) => {
                        tracing::error!(%error, "cannot take everything anew");
                        self.kernel_errors = vec![error.to_string()];
                        self.retry_kernel = Some(Instant::now() + RETRY_KERNEL);
                    }
                }
                self.import.doubt();
                self.changed = true;
            }
        }
        self.ways_stale |= self.observed.take_stale_ways();
        self.masquerade.follow();
    }

    /// Reads the table that routes are taken from anew, where events have not told all.
    fn read_table(&mut self, now: Instant) {
        let Some(table) = self.import.due(now) else {
            return;
        };
        match self.requests.dump_table(table) {
            Ok((routes, whole)) => self.changed |= self.import.replace(routes, whole, now),
            Err(error) => {
                tracing::warn!("{error}");
                self.import.failed(now);
            }
        }
    }

    /// Handles the requests of a round and gives the responses that are ready: to them, and to
    /// earlier ones that waited for the dataplane.
    pub fn handle(
        &mut self,
        requests: Vec<(ClientId, Request)>,
        registry: &Registry,
        now: Instant,
    ) -> Vec<(ClientId, Response)> {
        let mut responses = Vec::new();
        let mut questions = Vec::new();
        for (client, request) in requests {
            match self.change(&request) {
                Some(result) => responses.push((client, result.into())),
                None => questions.push((client, request)),
            }
        }
        self.settle(now);
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

    fn world(&self) -> World<'_> {
        World {
            settings: &self.settings,
            desired: &self.desired,
            observed: &self.observed,
            ways: &self.ways,
            learned: &self.learned,
            import: &self.import,
        }
    }

    /// Makes the change that `request` asks for; `None` when it asks for none.
    fn change(&mut self, request: &Request) -> Option<Result<(), ErrorBody>> {
        let mut desired = self.desired.clone();
        let fixed = Fixed {
            node_name: &self.settings.node_name,
            uplink: self.settings.uplink.as_deref(),
        };
        let world = self.world();
        let told_link = |via: &ViaSpec| match via {
            ViaSpec::Gateway {
                interface: Some(interface),
                ..
            } => report::check_link(&world, interface),
            _ => Ok(()),
        };
        let result = match request.clone() {
            Request::NodeSet(node) => desired.set_node(node),
            Request::NodeDel { name } => desired.delete_node(&name),
            Request::RouteAdd(route) => {
                told_link(&route.via).and_then(|()| desired.set_route(route, false, fixed))
            }
            Request::RouteReplace(route) => {
                told_link(&route.via).and_then(|()| desired.set_route(route, true, fixed))
            }
            Request::RouteDel { prefix } => desired.delete_route(prefix),
            Request::PortAdd(port) => report::check_link(&world, &port.interface)
                .and_then(|()| desired.add_port(port, fixed)),
            Request::PortDel { interface } => desired.delete_port(&interface, fixed),
            _ => return None,
        };
        Some(result.and_then(|()| self.adopt(desired)))
    }

    /// Saves what is desired from now on, then takes it as such.
    fn adopt(&mut self, desired: Desired) -> Result<(), ErrorBody> {
        if desired != self.desired {
            let saved = self.store.save(&desired);
            saved.map_err(|error| ErrorBody::new(ErrorCode::System, error.to_string()))?;
            self.desired = desired;
            self.changed = true;
        }
        Ok(())
    }

    /// Brings kernel and dataplane in line if anything has changed.
    fn settle(&mut self, now: Instant) {
        self.ask_doubtful(now);
        self.read_table(now);
        let rules = Rules::of(&self.world());
        self.masquerade.keep(rules.as_ref(), now);
        let retry = self.retry_kernel.is_some_and(|at| now >= at);
        let ways_due = self.ways_stale
            && self
                .ways_asked
                .is_none_or(|at| now.saturating_duration_since(at) >= WAYS_PERIOD);
        if !(self.changed || retry || ways_due) {
            return;
        }
        let mut ask_all = ways_due || retry;
        if ask_all {
            self.ways_stale = false;
            self.ways_asked = Some(now);
        }
        let mut way_errors = BTreeSet::new();
        for _ in 0..SETTLE_ROUNDS {
            self.changed = false;
            self.ask_ways(std::mem::take(&mut ask_all), &mut way_errors);
            self.settle_kernel(now, &way_errors);
            self.follow_kernel();
            if !self.changed {
                break;
            }
        }
        self.learn_macs();
        self.session.set_want(Facts::of(&self.world()));
    }

    /// Asks for the ways that are needed and not known, or for `all` that are needed. A way that
    /// cannot be asked for stays what it was.
    fn ask_ways(&mut self, all: bool, errors: &mut BTreeSet<String>) {
        let needed = self.world().needed_ways();
        self.ways.retain(|address, _| needed.contains(address));
        for address in needed {
            if !all && self.ways.contains_key(&address) {
                continue;
            }
            match self.requests.lookup(address) {
                Ok(way) => drop(self.set_way(address, way)),
                Err(error) => drop(errors.insert(error.to_string())),
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
                        self.changed = true;
                    }
                }
                Err(error) => {
                    tracing::warn!("{error}");
                    self.doubt(address, RETRY_KERNEL);
                }
            }
        }
    }

    /// Brings the kernel in line; what fails is tried again in a second, `way_errors` too.
    fn settle_kernel(&mut self, now: Instant, way_errors: &BTreeSet<String>) {
        let mut errors: Vec<String> = way_errors.iter().cloned().collect();
        if self.observed.take_stale_routes() {
            match self.requests.dump_our_routes() {
                Ok(events) => self.observed.set_our_routes(events),
                Err(error) => errors.push(error.to_string()),
            }
        }
        if let Some(want) = DeviceWant::of(&self.world()) {
            match kernel::apply_device(&mut self.requests, &self.observed, &want) {
                Ok(true) => self.follow_kernel(),
                Ok(false) => {}
                Err(error) => errors.push(error),
            }
        }
        let device = self.observed.link_named(DEVICE).filter(|link| link.up);
        let want = Want::of(&self.world(), device.map(|link| link.index));
        let (_, refused) = kernel::apply(&mut self.requests, &self.observed, &want);
        errors.extend(want.errors);
        errors.extend(refused);
        self.retry_kernel = (!errors.is_empty()).then_some(now + RETRY_KERNEL);
        if errors != self.kernel_errors {
            for error in &errors {
                tracing::warn!("{error}");
            }
            self.kernel_errors = errors;
        }
    }

    /// Notes the MACs that pods have answered with, and forgets those of links that are gone.
    fn learn_macs(&mut self) {
        let mut learned = LearnedMacs::new();
        for (interface, role) in &self.desired.ports {
            let PortRoleSpec::Pod {
                addresses,
                mac: None,
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
                nodes: report::nodes(&world),
            },
            Request::RouteShow => Response::Routes {
                routes: report::routes(&world),
            },
            Request::PortShow => Response::Ports {
                ports: report::ports(&world),
            },
            Request::RouteGet { address } => match report::route_get(&world, *address) {
                Ok(answer) => Response::RouteGet(answer),
                Err(error) => Response::Error(error),
            },
            Request::Status => return self.ask(client, Question::Status),
            Request::Counters => return self.ask(client, Question::Counters),
            // Clients are greeted before they come here, and changes were made before.
            _ => Response::Error(ErrorBody::new(ErrorCode::BadRequest, "not a question")),
        })
    }

    fn ask(&mut self, client: ClientId, question: Question) -> Option<Response> {
        let request = match question {
            Question::Status => dataplane::Request::Status,
            Question::Counters => dataplane::Request::Counters,
        };
        match self.session.ask(request) {
            Ok(ticket) => {
                self.questions.insert(ticket, (client, question));
                None
            }
            Err(error) => Some(self.relay(question, Err(error))),
        }
    }

    /// The response to a client whose question the dataplane answered, or did not.
    fn relay(
        &self,
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
            (Question::Counters, Ok(dataplane::Response::Error(error)) | Err(error)) => {
                Response::Error(error)
            }
            (Question::Counters, Ok(_)) => Response::Error(ErrorBody::new(
                ErrorCode::System,
                "podway-dataplane answered something else; install both from one release",
            )),
        }
    }

    fn status(&self, status: Option<Box<dataplane::Status>>) -> Response {
        let dataplane = match self.session.state() {
            LinkState::Disconnected(reason) => DataplaneLink::Disconnected {
                reason: reason.to_owned(),
            },
            LinkState::Syncing => DataplaneLink::Syncing,
            LinkState::Synced => DataplaneLink::Synced {
                refused: self.session.refused(),
                status,
            },
        };
        let mut errors = self.kernel_errors.clone();
        errors.extend(self.masquerade.error().map(str::to_owned));
        let status = report::status(&self.world(), dataplane, &errors);
        Response::Status(Box::new(status))
    }
}
