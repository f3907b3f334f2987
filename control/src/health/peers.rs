//! The other nodes: whom to probe when, whom to answer, and what came of it. Pure.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::{BuildHasher as _, RandomState};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use podway_proto::control::{Layer, NodeHealth, UnknownReason};

use super::probe::{Kind, NodeId, Probe};
use super::track::{Pace, TIMEOUT, Track};

const LAYERS: [Layer; 2] = [Layer::Underlay, Layer::Overlay];
/// Between the first probes of nodes that are told at once: five thousand are asked within ten
/// seconds, and a handful at once.
const FIRST_GAP: Duration = Duration::from_millis(1);
/// How often it is looked what is due: what falls together wakes the process once.
const TICK: Duration = Duration::from_millis(10);
/// What is done in one tick, so that no burst leaves after this process was away: ten times what
/// five thousand nodes ask for.
const MOST_PER_TICK: usize = 256;
/// Requests of one node on one path that are answered in a second. Nobody who keeps to the shortest
/// interval and to [`TIMEOUT`] sends more than one.
const ANSWERS_PER_SECOND: u8 = 10;

/// Where a node is reached.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Targets {
    /// Its underlay address, if this node has one of the same IP version.
    pub underlay: Option<IpAddr>,
    /// Its overlay address, likewise.
    pub overlay: Option<IpAddr>,
    /// Its underlay address and its overlay addresses: where its requests come from. No address is
    /// of both kinds.
    pub sources: Vec<(IpAddr, Layer)>,
}

/// What became of a probe that was to be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sent {
    /// It has left, or the network would not have it.
    Yes,
    /// This process's own buffers are full.
    Later,
    /// There is no socket.
    NoSocket,
}

/// All other nodes.
#[derive(Debug)]
pub struct Peers {
    own: NodeId,
    interval: Duration,
    /// Makes cookies that nobody can guess, and spreads probes.
    secret: RandomState,
    numbers: BTreeMap<String, Number>,
    /// In boxes, since a map may have twice the places that it needs.
    peers: HashMap<Number, Box<Peer>>,
    sources: HashMap<IpAddr, (Number, Layer)>,
    /// What is to be done when; entries of nodes that are gone say nothing.
    schedule: BTreeSet<(Instant, Number, Layer, Act)>,
    /// When the first probe of a node that was told last leaves.
    first: Instant,
    last: Number,
    looked: Instant,
}

/// Tells a node apart from others, and from itself before its addresses changed.
type Number = u32;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Act {
    /// Send a probe.
    Send,
    /// Judge the one that was sent last.
    Judge,
}

#[derive(Debug)]
struct Peer {
    id: NodeId,
    targets: Targets,
    underlay: Side,
    overlay: Side,
}

/// One of the paths to a node.
#[derive(Debug)]
struct Side {
    track: Track,
    cookie: u64,
    /// Begin of the second in which requests are counted, and how many were answered in it.
    second: Instant,
    answers: u8,
}

impl Peer {
    fn side(&mut self, layer: Layer) -> &mut Side {
        match layer {
            Layer::Underlay => &mut self.underlay,
            Layer::Overlay => &mut self.overlay,
        }
    }

    fn target(&self, layer: Layer) -> Option<IpAddr> {
        match layer {
            Layer::Underlay => self.targets.underlay,
            Layer::Overlay => self.targets.overlay,
        }
    }
}

impl Peers {
    /// None yet; `own` is the name of this node.
    pub fn new(own: &str, interval: Duration, now: Instant) -> Self {
        Self {
            own: NodeId::of(own),
            interval,
            secret: RandomState::new(),
            numbers: BTreeMap::new(),
            peers: HashMap::new(),
            sources: HashMap::new(),
            schedule: BTreeSet::new(),
            first: now,
            last: 0,
            looked: now,
        }
    }

    /// Takes in where a node is reached. What is known of it stays as long as that is the same.
    pub fn set(&mut self, name: &str, targets: Targets, now: Instant) {
        let known = self.numbers.get(name).and_then(|n| self.peers.get(n));
        if known.is_some_and(|peer| peer.targets == targets) {
            return;
        }
        self.remove(name);
        self.last = self.last.wrapping_add(1);
        let number = self.last;
        let id = NodeId::of(name);
        let side = |layer, target: Option<IpAddr>| Side {
            track: Track::new(
                match target {
                    Some(_) => UnknownReason::NotProbedYet,
                    None => UnknownReason::NoAddress,
                },
                now,
            ),
            cookie: self.secret.hash_one((id, number, layer)),
            second: now,
            answers: 0,
        };
        let peer = Peer {
            id,
            underlay: side(Layer::Underlay, targets.underlay),
            overlay: side(Layer::Overlay, targets.overlay),
            targets,
        };
        for layer in LAYERS {
            if peer.target(layer).is_some() {
                self.first = now.max(self.first + FIRST_GAP);
                self.schedule.insert((self.first, number, layer, Act::Send));
            }
        }
        for (address, layer) in &peer.targets.sources {
            self.sources.insert(*address, (number, *layer));
        }
        self.numbers.insert(name.to_owned(), number);
        self.peers.insert(number, Box::new(peer));
    }

    /// Forgets a node.
    pub fn remove(&mut self, name: &str) {
        let Some(number) = self.numbers.remove(name) else {
            return;
        };
        let Some(peer) = self.peers.remove(&number) else {
            return;
        };
        for (address, layer) in peer.targets.sources {
            // Another node may have the address by now.
            if self.sources.get(&address) == Some(&(number, layer)) {
                self.sources.remove(&address);
            }
        }
    }

    /// Forgets all nodes but those.
    pub fn retain(&mut self, keep: impl Fn(&str) -> bool) {
        let gone = self.numbers.keys().filter(|name| !keep(name));
        let gone: Vec<String> = gone.cloned().collect();
        for name in gone {
            self.remove(&name);
        }
    }

    /// When there is something to be done.
    pub fn deadline(&self) -> Option<Instant> {
        let (first, ..) = self.schedule.first()?;
        Some((*first).max(self.looked + TICK))
    }

    /// Judges the probes whose time is over, and gives those that are due to `send`.
    pub fn turn(&mut self, now: Instant, mut send: impl FnMut(Layer, IpAddr, &Probe) -> Sent) {
        if now < self.looked + TICK {
            return;
        }
        self.looked = now;
        for _ in 0..MOST_PER_TICK {
            let due = self.schedule.first().copied();
            let Some(entry) = due.filter(|(at, ..)| *at <= now) else {
                return;
            };
            self.schedule.remove(&entry);
            let (_, number, layer, act) = entry;
            if let Some((next, act)) = self.step(number, layer, act, now, &mut send) {
                self.schedule.insert((next, number, layer, act));
            }
        }
    }

    /// Does what is due on a path and says what is to be done there next, and when.
    fn step(
        &mut self,
        number: Number,
        layer: Layer,
        act: Act,
        now: Instant,
        send: &mut impl FnMut(Layer, IpAddr, &Probe) -> Sent,
    ) -> Option<(Instant, Act)> {
        let peer = self.peers.get_mut(&number)?;
        let target = peer.target(layer)?;
        let side = peer.side(layer);
        let random = self.secret.hash_one((side.cookie, now));
        let interval = spread(self.interval, random);
        if act == Act::Judge && side.track.judge(now) == Pace::Interval {
            let next = now + interval.saturating_sub(TIMEOUT);
            return Some((next, Act::Send));
        }
        let probe = Probe {
            kind: Kind::Request,
            sequence: side.track.next_sequence(),
            cookie: side.cookie,
            sender: self.own,
        };
        Some(match send(layer, target, &probe) {
            Sent::Yes => {
                side.track.send(now);
                (now + TIMEOUT, Act::Judge)
            }
            Sent::Later => (now + TIMEOUT, Act::Send),
            Sent::NoSocket => {
                side.track.cannot_send(UnknownReason::NoSocket, now);
                (now + interval, Act::Send)
            }
        })
    }

    /// The answer to a request, if it gets one: it came from where a node is known to be, by that
    /// node, and the node has not asked too often.
    pub fn request(
        &mut self,
        layer: Layer,
        from: IpAddr,
        request: &Probe,
        now: Instant,
    ) -> Option<Probe> {
        let (number, known) = *self.sources.get(&from)?;
        let peer = self.peers.get_mut(&number)?;
        if request.kind != Kind::Request || known != layer || request.sender != peer.id {
            return None;
        }
        let side = peer.side(layer);
        if now.saturating_duration_since(side.second) >= Duration::from_secs(1) {
            side.second = now;
            side.answers = 0;
        }
        if side.answers >= ANSWERS_PER_SECOND {
            return None;
        }
        side.answers += 1;
        Some(Probe {
            kind: Kind::Response,
            sender: self.own,
            ..*request
        })
    }

    /// Takes in an answer; see [`Track::answered`] for `prompt`.
    pub fn response(
        &mut self,
        layer: Layer,
        from: IpAddr,
        response: &Probe,
        prompt: bool,
        now: Instant,
    ) {
        if let Some((side, at, id)) = self.asked(from, response.cookie)
            && (response.kind, at, id) == (Kind::Response, layer, response.sender)
        {
            side.track.answered(response.sequence, prompt, now);
        }
    }

    /// Takes in that a request to `to` was refused.
    pub fn refused(&mut self, to: IpAddr, request: &Probe, now: Instant) {
        let own = (Kind::Request, self.own);
        if let Some((side, ..)) = self.asked(to, request.cookie)
            && (request.kind, request.sender) == own
        {
            side.track.refused(request.sequence, now);
        }
    }

    /// The path on which an address is asked with this cookie, and whose it is.
    fn asked(&mut self, address: IpAddr, cookie: u64) -> Option<(&mut Side, Layer, NodeId)> {
        let (number, layer) = *self.sources.get(&address)?;
        let peer = self.peers.get_mut(&number)?;
        let (id, is_target) = (peer.id, peer.target(layer) == Some(address));
        let side = peer.side(layer);
        (is_target && side.cookie == cookie).then_some((side, layer, id))
    }

    /// What is known of a node.
    pub fn report(&self, name: &str, now: Instant) -> Option<NodeHealth> {
        let peer = self.peers.get(self.numbers.get(name)?)?;
        Some(NodeHealth {
            underlay: peer.underlay.track.report(now),
            overlay: peer.overlay.track.report(now),
        })
    }

    /// What is known of all nodes, by name.
    pub fn reports(&self, now: Instant) -> impl Iterator<Item = (&str, NodeHealth)> {
        let names = self.numbers.keys().map(String::as_str);
        names.filter_map(move |name| Some((name, self.report(name, now)?)))
    }
}

/// `interval` give or take a tenth, as `random` says: what was told at once drifts apart.
fn spread(interval: Duration, random: u64) -> Duration {
    // 0 to 1024 parts of a fifth.
    let parts = u32::try_from(random % 1025).unwrap_or(0);
    interval * 9 / 10 + interval / 5 * parts / 1024
}

#[cfg(test)]
mod tests;
