use podway_proto::control::PathState;
use proptest::prelude::*;

use super::*;

const INTERVAL: Duration = Duration::from_secs(10);

fn ip(number: u32) -> IpAddr {
    IpAddr::from((0x0a00_0000 + number).to_be_bytes())
}

/// A node with both paths; on the overlay it is a million addresses further.
fn targets(number: u32) -> Targets {
    let (underlay, overlay) = (ip(number), ip(1_000_000 + number));
    Targets {
        underlay: Some(underlay),
        overlay: Some(overlay),
        sources: vec![(underlay, Layer::Underlay), (overlay, Layer::Overlay)],
    }
}

/// Nodes `n1` and on, told to node `own`, and the time.
struct Bench {
    peers: Peers,
    begin: Instant,
    now: Instant,
}

impl Bench {
    fn new(count: u32) -> Self {
        let begin = Instant::now();
        let mut peers = Peers::new("own", INTERVAL, begin);
        for number in 1..=count {
            peers.set(&format!("n{number}"), targets(number), begin);
        }
        Self {
            peers,
            begin,
            now: begin,
        }
    }

    /// Lets time pass as the main loop does, and gives what was sent when, in milliseconds.
    fn run(&mut self, time: Duration, sent: Sent) -> Vec<(u128, Layer, IpAddr, Probe)> {
        let end = self.now + time;
        let mut all = Vec::new();
        while let Some(next) = self.peers.deadline().filter(|next| *next <= end) {
            self.now = self.now.max(next);
            let at = (self.now - self.begin).as_millis();
            self.peers.turn(self.now, |layer, to, probe| {
                all.push((at, layer, to, *probe));
                sent
            });
        }
        self.now = end;
        all
    }

    /// As [`Bench::run`], with every probe answered at once.
    fn run_answered(&mut self, time: Duration) -> usize {
        let end = self.now + time;
        let mut count = 0;
        while self.now < end {
            for (_, layer, to, probe) in self.run(Duration::from_millis(100), Sent::Yes) {
                count += 1;
                self.answer(layer, to, &probe);
            }
        }
        count
    }

    fn answer(&mut self, layer: Layer, from: IpAddr, request: &Probe) {
        let number = self.peers.sources[&from].0;
        let response = Probe {
            kind: Kind::Response,
            sender: self.peers.peers[&number].id,
            ..*request
        };
        let now = self.now;
        self.peers.response(layer, from, &response, true, now);
    }

    fn states(&self, name: &str) -> (PathState, PathState) {
        let report = self.peers.report(name, self.now).unwrap();
        (report.underlay.state, report.overlay.state)
    }
}

fn unknown(reason: UnknownReason) -> PathState {
    PathState::Unknown { reason }
}

#[test]
fn five_thousand_nodes_are_probed_evenly() {
    let mut bench = Bench::new(5000);
    // Ten minutes, answered or not: those that are lost are confirmed at first.
    assert_eq!(bench.run(INTERVAL * 2, Sent::Yes).len() / 10_000, 3);
    let sent = bench.run(INTERVAL * 58, Sent::Yes);
    let each = sent.len() / 10_000;
    assert!((57..=59).contains(&each), "{each}");
    let mut by_second = vec![0; 600];
    let mut by_tick = vec![0; 60_001];
    for (at, ..) in &sent {
        if let Some(count) = by_second.get_mut(usize::try_from(at / 1000).unwrap()) {
            *count += 1;
        }
        by_tick[usize::try_from(at / 10).unwrap()] += 1;
    }
    let in_second = &by_second[20..];
    let (least, most) = (in_second.iter().min(), in_second.iter().max());
    let bounds = (*least.unwrap(), *most.unwrap());
    assert!(bounds.0 > 800 && bounds.1 < 1200, "{bounds:?} in a second");
    let most = *by_tick.iter().max().unwrap();
    assert!(most < 40, "{most} in a tick");
}

#[test]
fn a_few_nodes_are_probed_at_once_and_then_each_interval() {
    let mut bench = Bench::new(4);
    assert_eq!(bench.run_answered(Duration::from_millis(100)), 8);
    assert_eq!(
        bench.states("n4"),
        (PathState::Reachable, PathState::Reachable)
    );
    let count = bench.run_answered(INTERVAL * 100);
    assert!((780..=820).contains(&count), "{count}");
}

#[test]
fn silence_is_noticed_in_the_time_that_is_promised() {
    let mut bench = Bench::new(1);
    bench.run_answered(INTERVAL * 3);
    bench.run(Duration::from_millis(2800), Sent::Yes);
    assert_eq!(bench.states("n1").0, PathState::Reachable);
    bench.run(INTERVAL * 11 / 10 + TIMEOUT * 3 + TICK * 4, Sent::Yes);
    assert_eq!(
        bench.states("n1"),
        (PathState::Unreachable, PathState::Unreachable)
    );
    bench.run_answered(INTERVAL * 11 / 10 + TICK * 4);
    assert_eq!(
        bench.states("n1"),
        (PathState::Reachable, PathState::Reachable)
    );
    let report = bench.peers.report("n1", bench.now).unwrap();
    // Silence may have begun just before a probe was due, or just after.
    assert!((3..=4).contains(&report.underlay.lost), "{report:?}");
}

#[test]
fn a_process_that_was_away_sends_no_burst() {
    let mut bench = Bench::new(5000);
    bench.run(INTERVAL * 2, Sent::Yes);
    bench.now += INTERVAL * 5;
    let mut most = 0;
    for _ in 0..200 {
        let now = bench.now;
        let mut count = 0;
        bench.peers.turn(now, |_, _, _| {
            count += 1;
            Sent::Yes
        });
        most = most.max(count);
        bench.now += TICK;
    }
    assert!(most <= MOST_PER_TICK, "{most}");
}

#[test]
fn what_could_not_leave_is_not_lost() {
    let mut bench = Bench::new(1);
    bench.run(INTERVAL * 3, Sent::Later);
    let waits = unknown(UnknownReason::NotProbedYet);
    assert_eq!(bench.states("n1"), (waits, waits));
    bench.run(INTERVAL, Sent::NoSocket);
    let without = unknown(UnknownReason::NoSocket);
    assert_eq!(bench.states("n1"), (without, without));
    let report = bench.peers.report("n1", bench.now).unwrap();
    assert_eq!((report.underlay.lost, report.underlay.probes), (0, 0));
}

#[test]
fn a_node_without_overlay_address_is_probed_on_the_underlay_only() {
    let mut bench = Bench::new(0);
    let only = Targets {
        overlay: None,
        ..targets(1)
    };
    bench.peers.set("n1", only, bench.now);
    bench.run_answered(INTERVAL);
    let none = unknown(UnknownReason::NoAddress);
    assert_eq!(bench.states("n1"), (PathState::Reachable, none));
}

#[test]
fn a_node_that_moves_is_a_new_one_and_its_old_address_a_stranger() {
    let mut bench = Bench::new(1);
    let sent = bench.run(INTERVAL, Sent::Yes);
    bench.run_answered(INTERVAL);
    bench.peers.set("n1", targets(1), bench.now);
    assert_eq!(bench.states("n1").0, PathState::Reachable, "nothing is new");
    bench.peers.set("n1", targets(2), bench.now);
    assert_eq!(bench.states("n1").0, unknown(UnknownReason::NotProbedYet));
    let (_, layer, to, _) = sent[0];
    assert!(!bench.peers.sources.contains_key(&to));
    let request = request_of("n1");
    let now = bench.now;
    assert_eq!(bench.peers.request(layer, to, &request, now), None);
    bench.peers.retain(|_| false);
    assert!(bench.peers.sources.is_empty() && bench.peers.peers.is_empty());
    assert_eq!(bench.run(INTERVAL * 2, Sent::Yes), []);
    assert_eq!(bench.peers.deadline(), None);
}

fn request_of(name: &str) -> Probe {
    Probe {
        kind: Kind::Request,
        sequence: 5,
        cookie: 77,
        sender: NodeId::of(name),
    }
}

#[test]
fn only_a_known_node_is_answered_from_its_own_address_on_its_own_path() {
    let mut bench = Bench::new(2);
    let now = bench.now;
    let mut answer = |layer, from, probe: &Probe| bench.peers.request(layer, from, probe, now);
    let request = request_of("n1");
    let expected = Probe {
        kind: Kind::Response,
        sender: NodeId::of("own"),
        ..request
    };
    assert_eq!(answer(Layer::Underlay, ip(1), &request), Some(expected));
    assert_eq!(
        answer(Layer::Overlay, ip(1_000_001), &request),
        Some(expected)
    );
    for (layer, from, probe) in [
        (Layer::Underlay, ip(3), request),
        (Layer::Underlay, ip(2), request),
        (Layer::Overlay, ip(1), request),
        (Layer::Underlay, ip(1_000_001), request),
        (Layer::Underlay, ip(1), request_of("own")),
        (Layer::Underlay, ip(1), expected),
    ] {
        assert_eq!(
            answer(layer, from, &probe),
            None,
            "{layer:?} {from} {probe:?}"
        );
    }
}

#[test]
fn a_node_that_asks_without_end_is_answered_ten_times_a_second() {
    let mut bench = Bench::new(2);
    let ask = |bench: &mut Bench, number: u32| {
        let (request, now) = (request_of(&format!("n{number}")), bench.now);
        let answer = bench
            .peers
            .request(Layer::Underlay, ip(number), &request, now);
        usize::from(answer.is_some())
    };
    let flood = |bench: &mut Bench| (0..1000).map(|_| ask(bench, 1)).sum::<usize>();
    assert_eq!(flood(&mut bench), 10);
    assert_eq!(ask(&mut bench, 2), 1, "others are");
    bench.now += Duration::from_secs(1);
    assert_eq!(flood(&mut bench), 10);
}

#[test]
fn nobody_answers_for_another_or_without_having_been_asked() {
    let mut bench = Bench::new(2);
    let sent = bench.run(Duration::from_millis(100), Sent::Yes);
    let now = bench.now;
    let of = |layer, to| {
        let found = sent.iter().find(|(_, l, t, _)| (*l, *t) == (layer, to));
        found.unwrap().3
    };
    let asked = of(Layer::Underlay, ip(1));
    let right = Probe {
        kind: Kind::Response,
        sender: NodeId::of("n1"),
        ..asked
    };
    let other = of(Layer::Overlay, ip(1_000_001));
    for (layer, from, wrong) in [
        (Layer::Underlay, ip(2), right),
        (Layer::Overlay, ip(1), right),
        (Layer::Underlay, ip(1), asked),
        (
            Layer::Underlay,
            ip(1),
            Probe {
                cookie: other.cookie,
                ..right
            },
        ),
        (
            Layer::Underlay,
            ip(1),
            Probe {
                sender: NodeId::of("n2"),
                ..right
            },
        ),
        (
            Layer::Underlay,
            ip(1),
            Probe {
                sequence: 9,
                ..right
            },
        ),
    ] {
        bench.peers.response(layer, from, &wrong, true, now);
        if wrong != asked {
            bench.peers.refused(from, &wrong, now);
        }
        let waits = unknown(UnknownReason::NotProbedYet);
        assert_eq!(
            bench.states("n1"),
            (waits, waits),
            "{layer:?} {from} {wrong:?}"
        );
    }
    bench
        .peers
        .response(Layer::Underlay, ip(1), &right, true, now);
    assert_eq!(bench.states("n1").0, PathState::Reachable);
}

#[test]
fn refusals_make_a_node_unknown() {
    let mut bench = Bench::new(1);
    for _ in 0..40 {
        for (_, _, to, probe) in bench.run(Duration::from_millis(100), Sent::Yes) {
            let now = bench.now;
            bench.peers.refused(to, &probe, now);
        }
    }
    let refuses = unknown(UnknownReason::NoListener);
    assert_eq!(bench.states("n1"), (refuses, refuses));
}

proptest! {
    #[test]
    fn jitter_is_a_tenth_each_way(random: u64, seconds in 1_u64..3600) {
        let interval = Duration::from_secs(seconds);
        let spread = spread(interval, random);
        prop_assert!(spread >= interval * 9 / 10 && spread <= interval * 11 / 10);
    }
}
