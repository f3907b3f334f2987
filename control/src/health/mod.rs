//! Whether other nodes are reached, by the underlay and by the overlay: control processes send each
//! other small datagrams and answer them (docs/decisions/0021-health.md).
//!
//! - [`probe`]: the datagrams. [`track`]: what is known of one path. [`peers`]: all nodes, whom to
//!   probe when and whom to answer. All pure.
//! - `sockets`: where probes leave and come in. `refusal`: nodes that have nobody who answers.
//! - this file: the addresses, and the turns of the main loop.
//!
//! Nothing here decides on where packets go: it is told to whoever asks.

pub mod peers;
pub mod probe;
mod refusal;
mod sockets;
pub mod track;

use std::net::IpAddr;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use mio::unix::SourceFd;
use mio::{Interest, Registry, Token};
use podway_proto::control::{
    HealthStatus, Layer, NodeHealth, NodeSpec, PathHealth, PathState, Trouble, UnknownReason,
};

use crate::dirt::Dirt;
use crate::settings::HealthSettings;
use crate::world::World;
use peers::{Peers, Targets};
use probe::Kind;
use refusal::Refusals;
use sockets::Sockets;

/// Troubles that a status names.
const MAX_TROUBLES: usize = 20;
/// What came while this process did something else for longer than this was not measured.
const PROMPT: Duration = Duration::from_millis(1);

/// All that probes and answers.
#[derive(Debug)]
pub struct Health {
    settings: HealthSettings,
    token: Token,
    sockets: Sockets,
    peers: Peers,
    /// `None` where nothing may listen to ICMP errors: nodes without health are then unreachable.
    refusals: Option<Refusals>,
    /// Whether the refusals' sockets wake the main loop yet.
    registered: bool,
    /// When datagrams were taken last, and whether some were left.
    received: Instant,
    more: bool,
}

impl Health {
    /// Knows no node yet. Events come by `token`.
    pub fn new(settings: HealthSettings, own: &str, token: Token) -> Self {
        let refusals = Refusals::listen(settings.port);
        let refusals = refusals.inspect_err(|error| {
            tracing::warn!(
                "cannot listen to ICMP errors: {error}; a node without health is shown as \
                 unreachable; give podway-control CAP_NET_RAW"
            );
        });
        let now = Instant::now();
        Self {
            settings,
            token,
            sockets: Sockets::new(settings.port, token),
            peers: Peers::new(own, settings.interval, now),
            refusals: refusals.ok(),
            registered: false,
            received: now,
            more: false,
        }
    }

    /// When there is something to be done though nothing came.
    pub fn deadline(&self) -> Option<Instant> {
        let more = self.more.then_some(self.received);
        let deadlines = [more, self.peers.deadline(), self.sockets.deadline()];
        deadlines.into_iter().flatten().min()
    }

    /// Takes in which nodes there are, as far as `dirt` names them.
    pub fn update(&mut self, world: &World<'_>, dirt: &Dirt, now: Instant) {
        let own = Own::of(world);
        self.sockets.want(own.sockets(), now);
        if dirt.all {
            let is_remote = |name: &str| {
                name != world.settings.node_name && world.desired.nodes.contains_key(name)
            };
            self.peers.retain(is_remote);
            for node in world.remote_nodes() {
                self.peers.set(&node.name, own.targets(node), now);
            }
            return;
        }
        for name in &dirt.nodes {
            let told = world.desired.nodes.get(name);
            match told.filter(|_| *name != world.settings.node_name) {
                Some(node) => self.peers.set(name, own.targets(node), now),
                None => self.peers.remove(name),
            }
        }
    }

    /// Takes what has come and answers it. `idle` is since when the main loop had been waiting for
    /// something to come: what was there before has waited for the main loop.
    pub fn receive(&mut self, idle: Instant) {
        let now = Instant::now();
        let prompt = idle.saturating_duration_since(self.received) < PROMPT;
        self.received = now;
        let peers = &mut self.peers;
        self.more = self.sockets.receive(|layer, from, probe| match probe.kind {
            Kind::Request => peers.request(layer, from, probe, now),
            Kind::Response => {
                peers.response(layer, from, probe, prompt, now);
                None
            }
        });
        for (to, probe) in self.refusals.iter_mut().flat_map(Refusals::drain) {
            self.peers.refused(to, &probe, now);
        }
    }

    /// Opens sockets that are missing, and sends the probes that are due.
    pub fn advance(&mut self, registry: &Registry) {
        let now = Instant::now();
        if !self.registered {
            self.registered = true;
            self.register(registry);
        }
        self.sockets.open(registry, now);
        let sockets = &self.sockets;
        self.peers
            .turn(now, |layer, to, probe| sockets.send(layer, to, probe));
    }

    fn register(&mut self, registry: &Registry) {
        let fds = self.refusals.iter().flat_map(Refusals::fds);
        for fd in fds {
            let readable = Interest::READABLE;
            if let Err(error) = registry.register(&mut SourceFd(&fd), self.token, readable) {
                // They are read with whatever else comes, then.
                tracing::warn!("cannot wait for ICMP errors: {error}");
            }
        }
    }

    /// What is known of a node; `None` for this one.
    pub fn of_node(&self, name: &str) -> Option<NodeHealth> {
        self.peers.report(name, Instant::now())
    }

    /// What is known of all nodes together.
    pub fn status(&self) -> HealthStatus {
        let mut status = HealthStatus {
            port: self.settings.port,
            interval_seconds: u16::try_from(self.settings.interval.as_secs()).unwrap_or(u16::MAX),
            nodes: 0,
            reachable: 0,
            unreachable: 0,
            troubles: Vec::new(),
            errors: self.sockets.errors().to_vec(),
        };
        let mut unknown = Vec::new();
        for (name, health) in self.peers.reports(Instant::now()) {
            status.nodes += 1;
            let paths = [health.underlay.state, health.overlay.state];
            if paths.contains(&PathState::Unreachable) {
                status.unreachable += 1;
            } else if is_reached(paths) {
                status.reachable += 1;
                continue;
            }
            for (layer, path) in [
                (Layer::Underlay, health.underlay),
                (Layer::Overlay, health.overlay),
            ] {
                let list = match path.state {
                    PathState::Reachable => continue,
                    PathState::Unreachable => &mut status.troubles,
                    PathState::Unknown { .. } => &mut unknown,
                };
                if list.len() < MAX_TROUBLES {
                    list.push(trouble(name, layer, path));
                }
            }
        }
        status.troubles.extend(unknown);
        status.troubles.truncate(MAX_TROUBLES);
        status
    }
}

/// Whether every path that has an address is reachable, and there is one.
fn is_reached(paths: [PathState; 2]) -> bool {
    let without = PathState::Unknown {
        reason: UnknownReason::NoAddress,
    };
    paths.contains(&PathState::Reachable)
        && paths
            .iter()
            .all(|path| [PathState::Reachable, without].contains(path))
}

fn trouble(node: &str, layer: Layer, path: PathHealth) -> Trouble {
    Trouble {
        node: node.to_owned(),
        layer,
        state: path.state,
        seconds: path.seconds,
    }
}

/// This node's addresses that other nodes know.
struct Own {
    underlay: Option<IpAddr>,
    overlay: Vec<IpAddr>,
}

impl Own {
    fn of(world: &World<'_>) -> Self {
        Self {
            underlay: world.underlay(),
            overlay: world.own().map(overlay_addresses).unwrap_or_default(),
        }
    }

    fn sockets(&self) -> Vec<(Layer, IpAddr)> {
        let underlay = self.underlay.map(|address| (Layer::Underlay, address));
        let overlay = self.overlay.iter().map(|a| (Layer::Overlay, *a));
        underlay.into_iter().chain(overlay).collect()
    }

    fn targets(&self, node: &NodeSpec) -> Targets {
        let overlay = overlay_addresses(node);
        let has_version = |target: &IpAddr| {
            let mut own = self.overlay.iter();
            own.any(|own| own.is_ipv4() == target.is_ipv4())
        };
        let same_version = |own: IpAddr| own.is_ipv4() == node.underlay.is_ipv4();
        let sources = overlay.iter().map(|address| (*address, Layer::Overlay));
        Targets {
            underlay: self
                .underlay
                .is_some_and(same_version)
                .then_some(node.underlay),
            overlay: overlay.iter().copied().find(has_version),
            sources: [(node.underlay, Layer::Underlay)]
                .into_iter()
                .chain(sources)
                .collect(),
        }
    }
}

/// A node's addresses on the overlay: the first of its first PodCIDR of each IP version, which its
/// VXLAN device has ([`crate::kernel`]).
fn overlay_addresses(node: &NodeSpec) -> Vec<IpAddr> {
    let first = |v4: bool| {
        let mut cidrs = node.pod_cidrs.iter();
        cidrs.find(|cidr| cidr.addr().is_ipv4() == v4)
    };
    let each = [first(true), first(false)];
    each.into_iter().flatten().map(IpNet::network).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::world::tests::Fixture;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn node(underlay: &str, cidrs: &[&str]) -> NodeSpec {
        NodeSpec {
            name: "n".into(),
            underlay: ip(underlay),
            underlay6: None,
            pod_cidrs: cidrs.iter().map(|cidr| cidr.parse().unwrap()).collect(),
            vtep_mac: None,
            mode: None,
        }
    }

    #[test]
    fn a_node_is_probed_where_both_sides_have_addresses_of_one_version() {
        let own = Own {
            underlay: Some(ip("192.168.1.1")),
            overlay: vec![ip("fd00::")],
        };
        let targets = own.targets(&node("192.168.1.2", &["10.0.1.0/24", "fd00:1::/64"]));
        assert_eq!(targets.underlay, Some(ip("192.168.1.2")));
        assert_eq!(targets.overlay, Some(ip("fd00:1::")));
        let sources = [
            (ip("192.168.1.2"), Layer::Underlay),
            (ip("10.0.1.0"), Layer::Overlay),
            (ip("fd00:1::"), Layer::Overlay),
        ];
        assert_eq!(targets.sources, sources);
        let targets = own.targets(&node("2001:db8::2", &["10.0.1.0/24"]));
        assert_eq!((targets.underlay, targets.overlay), (None, None));
    }

    #[test]
    fn sockets_are_where_other_nodes_know_this_one() {
        let mut fixture = Fixture::new();
        let sockets = |fixture: &Fixture| Own::of(&fixture.world()).sockets();
        let expected = [
            (Layer::Underlay, ip("192.168.1.1")),
            (Layer::Overlay, ip("10.0.0.0")),
        ];
        assert_eq!(sockets(&fixture), expected);
        fixture.desired.nodes.remove("a");
        assert_eq!(sockets(&fixture), expected[..1]);
    }

    #[test]
    fn a_status_counts_nodes_and_names_what_is_wrong() {
        let fixture = Fixture::new();
        let settings = fixture.settings.health.unwrap();
        let mut health = Health::new(settings, "a", Token(0));
        health.update(&fixture.world(), &Dirt::all(), Instant::now());
        let status = health.status();
        assert_eq!((status.port, status.interval_seconds), (4799, 10));
        let counts = (status.nodes, status.reachable, status.unreachable);
        assert_eq!(counts, (1, 0, 0));
        let troubles: Vec<_> = status
            .troubles
            .iter()
            .map(|t| (&*t.node, t.layer))
            .collect();
        assert_eq!(troubles, [("b", Layer::Underlay), ("b", Layer::Overlay)]);
        assert_eq!(health.of_node("a"), None);
    }

    #[test]
    fn a_node_is_reached_by_all_paths_that_it_has() {
        let unknown = |reason| PathState::Unknown { reason };
        let (yes, no) = (PathState::Reachable, PathState::Unreachable);
        let none = unknown(UnknownReason::NoAddress);
        assert!(is_reached([yes, yes]) && is_reached([yes, none]));
        for paths in [
            [yes, no],
            [none, none],
            [yes, unknown(UnknownReason::NoListener)],
        ] {
            assert!(!is_reached(paths), "{paths:?}");
        }
    }
}
