use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream as StdStream};

use mio::{Events, Poll};
use podway_proto::codec;
use podway_proto::control::PortRoleSpec;
use podway_proto::dataplane::Change;
use podway_proto::types::MacAddr;

use super::*;
use crate::netlink::Event;
use crate::observed::tests::link;
use crate::world::tests::Fixture;

/// The peer's protocol is the subject here, so the peer is a script.
struct Peer {
    reader: BufReader<StdStream>,
    writer: StdStream,
}

struct Bench {
    poll: Poll,
    session: Session,
    listener: UnixListener,
    _directory: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("dataplane.sock");
        Self {
            poll: Poll::new().unwrap(),
            listener: UnixListener::bind(&path).unwrap(),
            session: Session::new(path, Token(1)),
            _directory: directory,
        }
    }

    fn accept(&mut self) -> Peer {
        self.advance();
        let (stream, _) = self.listener.accept().unwrap();
        Peer {
            reader: BufReader::new(stream.try_clone().unwrap()),
            writer: stream,
        }
    }

    fn advance(&mut self) {
        self.advance_at(Instant::now());
    }

    fn advance_at(&mut self, now: Instant) {
        self.session.advance(self.poll.registry(), now);
    }

    /// The peer takes one request and gives `response` to it.
    fn answer(&mut self, peer: &mut Peer, response: &Response) -> Request {
        let mut line = Vec::new();
        peer.reader.read_until(b'\n', &mut line).unwrap();
        peer.writer.write_all(&codec::encode(response)).unwrap();
        let mut events = Events::with_capacity(4);
        self.poll
            .poll(&mut events, Some(Duration::from_secs(5)))
            .unwrap();
        self.advance();
        codec::decode(&line).unwrap()
    }

    fn update(&mut self, fixture: &Fixture) {
        let (world, index) = (fixture.world(), fixture.index());
        self.session.update(&world, &index, &Dirt::all());
    }

    /// The next that is due by itself is a comparison.
    fn assert_nothing_to_tell(&self) {
        let due = self.session.drift.due();
        assert!(due.is_some() && self.session.deadline() == due, "{due:?}");
    }

    fn sync(&mut self, peer: &mut Peer) -> Vec<Change> {
        let hello = Response::Hello {
            version: VERSION,
            pid: 1,
        };
        assert_eq!(
            self.answer(peer, &hello),
            Request::Hello { version: VERSION }
        );
        let changes = self.sync_again(peer);
        assert_eq!(self.session.state(), LinkState::Synced);
        changes
    }

    fn sync_again(&mut self, peer: &mut Peer) -> Vec<Change> {
        assert_eq!(self.answer(peer, &Response::Done), Request::SyncBegin);
        let Request::Apply { changes } = self.answer(peer, &none_refused()) else {
            panic!()
        };
        assert_eq!(self.session.state(), LinkState::Syncing);
        assert_eq!(self.answer(peer, &Response::Done), Request::SyncEnd);
        changes
    }
}

fn none_refused() -> Response {
    Response::Applied {
        refused: Vec::new(),
    }
}

fn all_changes(fixture: &Fixture) -> Vec<Change> {
    let facts = Facts::of(&fixture.world(), &fixture.index());
    facts
        .after(None)
        .filter_map(|key| facts.tell(&key))
        .collect()
}

#[test]
fn everything_is_told_after_each_connection_and_then_the_changes() {
    let mut fixture = Fixture::new();
    let mut bench = Bench::new();
    bench.update(&fixture);
    let mut peer = bench.accept();
    assert_eq!(bench.sync(&mut peer), all_changes(&fixture));
    fixture.desired.nodes.remove("b");
    bench.update(&fixture);
    bench.advance();
    let applied = Response::Applied {
        refused: Vec::new(),
    };
    let request = bench.answer(&mut peer, &applied);
    assert_eq!(
        request,
        Request::Apply {
            changes: vec![
                Change::DelRoute {
                    prefix: "fd00:1::/64".parse().unwrap()
                },
                Change::DelRoute {
                    prefix: "10.0.1.0/24".parse().unwrap()
                },
                Change::DelNode { name: "b".into() },
            ]
        }
    );
    drop(peer);
    bench.advance();
    assert!(matches!(bench.session.state(), LinkState::Disconnected(_)));
    bench.advance_at(Instant::now() + RECONNECT);
    let mut peer = bench.accept();
    assert_eq!(bench.sync(&mut peer), all_changes(&fixture));
}

#[test]
fn a_change_is_in_sync_when_the_dataplane_has_answered() {
    let mut fixture = Fixture::new();
    let mut bench = Bench::new();
    bench.update(&fixture);
    let mut peer = bench.accept();
    bench.sync(&mut peer);
    fixture.desired.nodes.remove("b");
    bench.update(&fixture);
    assert_eq!(bench.session.state(), LinkState::Syncing, "not told");
    bench.advance();
    assert_eq!(bench.session.state(), LinkState::Syncing, "under way");
    fixture.desired.ports.remove("veth-a");
    fixture.settings.uplink = None;
    bench.update(&fixture);
    bench.advance();
    let applied = Response::Applied {
        refused: Vec::new(),
    };
    bench.answer(&mut peer, &applied);
    assert_eq!(bench.session.state(), LinkState::Syncing, "another");
    bench.answer(&mut peer, &applied);
    assert_eq!(bench.session.state(), LinkState::Synced);
}

#[test]
fn ports_that_swap_addresses_are_told_in_an_order_that_the_dataplane_takes() {
    let mut fixture = Fixture::new();
    fixture.observed.apply(Event::Link(link(4, "veth-b")));
    let tell = |fixture: &mut Fixture, ports: [(&str, &str); 2]| {
        for (interface, address) in ports {
            let role = PortRoleSpec::Pod {
                addresses: vec![address.parse().unwrap()],
                mac: Some(MacAddr([2, 0, 0, 0, 0, 0xaa])),
                any_source: false,
            };
            fixture.desired.ports.insert(interface.into(), role);
        }
    };
    tell(
        &mut fixture,
        [("veth-a", "10.0.0.2"), ("veth-b", "10.0.0.3")],
    );
    let mut bench = Bench::new();
    bench.update(&fixture);
    let mut peer = bench.accept();
    bench.sync(&mut peer);
    tell(
        &mut fixture,
        [("veth-a", "10.0.0.3"), ("veth-b", "10.0.0.2")],
    );
    bench.update(&fixture);
    bench.advance();
    let applied = Response::Applied {
        refused: Vec::new(),
    };
    let Request::Apply { changes } = bench.answer(&mut peer, &applied) else {
        panic!()
    };
    let facts = Facts::of(&fixture.world(), &fixture.index());
    let names = ["veth-b", "veth-a"].map(str::to_owned);
    let goes = names.clone().map(|interface| Change::DelPort { interface });
    let comes = names.map(|name| facts.tell(&Key::Port(name)).unwrap());
    assert_eq!(changes[..2], goes);
    assert_eq!(changes[2..], [comes[1].clone(), comes[0].clone()]);
}

#[test]
fn a_refused_fact_is_told_again_after_a_second_and_not_before() {
    let fixture = Fixture::new();
    let mut bench = Bench::new();
    bench.update(&fixture);
    let mut peer = bench.accept();
    bench.answer(
        &mut peer,
        &Response::Hello {
            version: VERSION,
            pid: 1,
        },
    );
    bench.answer(&mut peer, &Response::Done);
    let error = ErrorBody::new(ErrorCode::Busy, "the queue is taken");
    let refused = vec![Refused { index: 1, error }];
    bench.answer(&mut peer, &Response::Applied { refused });
    bench.answer(&mut peer, &Response::Done);
    assert_eq!(bench.session.refused(), ["port eth0: the queue is taken"]);
    let retry = bench.session.deadline().unwrap();
    bench.advance_at(retry - Duration::from_millis(1));
    assert!(
        bench
            .session
            .connection
            .as_ref()
            .unwrap()
            .under_way
            .is_none()
    );
    bench.advance_at(retry);
    let applied = Response::Applied {
        refused: Vec::new(),
    };
    let Request::Apply { changes } = bench.answer(&mut peer, &applied) else {
        panic!()
    };
    let facts = Facts::of(&fixture.world(), &fixture.index());
    let eth0 = facts.tell(&Key::Port("eth0".into()));
    assert_eq!(changes, eth0.into_iter().collect::<Vec<_>>());
    assert!(bench.session.refused().is_empty());
    bench.assert_nothing_to_tell();
}

#[test]
fn a_fast_path_that_closed_for_good_is_reported_as_long_as_the_dataplane_says_so() {
    let mut fixture = Fixture::new();
    let mut bench = Bench::new();
    bench.update(&fixture);
    let mut peer = bench.accept();
    bench.sync(&mut peer);
    let closed = || Refused {
        index: 1,
        error: ErrorBody::new(ErrorCode::System, "a map is full"),
    };
    let told = vec!["the fast path: a map is full"];
    for (name, refused, expected) in [
        ("c", vec![closed()], told.clone()),
        ("d", vec![closed()], told),
        ("e", vec![], vec![]),
    ] {
        // One change: what is behind it has index 1.
        let mut node = fixture.desired.nodes["b"].clone();
        node.name = name.to_owned();
        node.pod_cidrs.clear();
        fixture.desired.nodes.insert(name.to_owned(), node);
        bench.update(&fixture);
        bench.advance();
        bench.answer(&mut peer, &Response::Applied { refused });
        assert_eq!(bench.session.refused(), expected, "{name}");
    }
    bench.assert_nothing_to_tell();
}

#[test]
fn a_dataplane_that_holds_something_else_is_told_everything_anew() {
    let fixture = Fixture::new();
    let mut bench = Bench::new();
    bench.update(&fixture);
    let mut peer = bench.accept();
    bench.sync(&mut peer);
    let due = bench.session.deadline().unwrap();
    bench.advance_at(due - Duration::from_millis(1));
    assert!(!bench.session.connection.as_ref().unwrap().compares());
    bench.advance_at(due);
    let told = bench.session.facts.digests();
    let mut held = told;
    held.routes.count -= 1;
    let digest = bench.answer(&mut peer, &Response::Digest(held));
    assert_eq!(digest, Request::Digest);
    assert_eq!(bench.session.state(), LinkState::Syncing);
    let lost = ["routes: the dataplane holds 1 and was told 2"];
    assert_eq!(bench.session.drift().found, lost);
    assert_eq!(bench.sync_again(&mut peer), all_changes(&fixture));
    assert_eq!(bench.session.state(), LinkState::Syncing, "not seen yet");
    let digest = bench.answer(&mut peer, &Response::Digest(told));
    assert_eq!(digest, Request::Digest);
    assert_eq!(bench.session.state(), LinkState::Synced);
    let drift = bench.session.drift();
    assert_eq!((drift.found, drift.mended), (Vec::new(), 1));
    assert_eq!(drift.last_mended, lost);
    assert!(bench.session.deadline().unwrap() >= due);
}

#[test]
fn what_changes_is_not_compared() {
    let mut fixture = Fixture::new();
    let mut bench = Bench::new();
    bench.update(&fixture);
    let mut peer = bench.accept();
    bench.sync(&mut peer);
    let late = Instant::now() + 2 * drift::PERIOD;
    fixture.desired.nodes.remove("b");
    bench.update(&fixture);
    bench.session.drift.hurry(late);
    bench.advance_at(late);
    let question = bench.session.ask(Request::Status).unwrap();
    let request = bench.answer(&mut peer, &none_refused());
    assert!(matches!(request, Request::Apply { .. }), "{request:?}");
    // The question was there first; then it is compared as it is now, though it changes again.
    let status = ErrorBody::new(ErrorCode::System, "busy");
    let asked = bench.answer(&mut peer, &Response::Error(status.clone()));
    assert_eq!(asked, Request::Status);
    let told = bench.session.facts.digests();
    fixture.settings.uplink = None;
    bench.update(&fixture);
    bench.advance();
    let asked = bench.answer(&mut peer, &Response::Digest(told));
    assert_eq!(asked, Request::Digest);
    let request = bench.answer(&mut peer, &none_refused());
    assert!(matches!(request, Request::Apply { .. }), "{request:?}");
    assert_eq!(bench.session.state(), LinkState::Synced);
    let answers = bench.session.take_answers();
    assert_eq!(answers, [(question, Ok(Response::Error(status)))]);
}

#[test]
fn a_dataplane_that_does_not_know_the_question_is_asked_once() {
    let mut bench = Bench::new();
    bench.update(&Fixture::new());
    let mut peer = bench.accept();
    bench.sync(&mut peer);
    bench.session.ask(Request::Status).unwrap();
    bench.advance();
    let error = ErrorBody::new(ErrorCode::BadRequest, "unknown variant `digest`");
    let asked = bench.answer(&mut peer, &Response::Error(error.clone()));
    assert_eq!(asked, Request::Digest);
    let asked = bench.answer(&mut peer, &Response::Error(error));
    assert_eq!(asked, Request::Status);
    assert_eq!(bench.session.state(), LinkState::Synced);
    assert_eq!(bench.session.drift(), DriftStatus::default());
    assert_eq!(bench.session.deadline(), None);
}

#[test]
fn a_question_is_answered_or_refused_within_the_time() {
    let mut bench = Bench::new();
    assert_eq!(
        bench.session.ask(Request::Status).unwrap_err().code,
        ErrorCode::Unavailable
    );
    let mut peer = bench.accept();
    let hello = Response::Hello {
        version: VERSION,
        pid: 1,
    };
    bench.answer(&mut peer, &hello);
    bench.answer(&mut peer, &Response::Done);
    bench.answer(&mut peer, &Response::Done);
    let ticket = bench.session.ask(Request::Counters).unwrap();
    bench.advance();
    let counters = Response::Counters(Default::default());
    bench.answer(&mut peer, &counters);
    assert_eq!(bench.session.take_answers(), [(ticket, Ok(counters))]);
    let ticket = bench.session.ask(Request::Status).unwrap();
    bench.advance();
    bench.advance_at(Instant::now() + ANSWER);
    let answers = bench.session.take_answers();
    assert_eq!(answers.len(), 1);
    assert_eq!(answers[0].0, ticket);
    assert_eq!(
        answers[0].1.as_ref().unwrap_err().code,
        ErrorCode::Unavailable
    );
}

#[test]
fn changes_may_take_longer_than_questions_that_wait_behind_them() {
    let mut fixture = Fixture::new();
    let mut bench = Bench::new();
    bench.update(&fixture);
    let mut peer = bench.accept();
    bench.sync(&mut peer);
    fixture.desired.nodes.remove("b");
    bench.update(&fixture);
    bench.advance();
    let ticket = bench.session.ask(Request::Counters).unwrap();
    let begin = Instant::now();
    assert!(bench.session.deadline().unwrap() <= begin + ANSWER);
    bench.advance_at(begin + ANSWER - Duration::from_millis(100));
    assert_eq!(bench.session.take_answers(), []);
    bench.advance_at(begin + ANSWER);
    let answers = bench.session.take_answers();
    assert_eq!(answers.len(), 1);
    assert_eq!(answers[0].0, ticket);
    assert_eq!(answers[0].1.as_ref().unwrap_err().code, ErrorCode::Busy);
    // Changes go on, and what was given up is not asked.
    assert_eq!(bench.session.state(), LinkState::Syncing);
    let later = bench.session.deadline().unwrap();
    assert!(later > begin + 2 * ANSWER);
    let refused = Vec::new();
    bench.answer(&mut peer, &Response::Applied { refused });
    assert_eq!(bench.session.state(), LinkState::Synced);
    bench.assert_nothing_to_tell();

    fixture.settings.uplink = None;
    bench.update(&fixture);
    bench.advance();
    bench.advance_at(Instant::now() + CHANGES);
    let LinkState::Disconnected(reason) = bench.session.state() else {
        panic!()
    };
    assert_eq!(reason, "no answer within 30s; is it stopped?");
}

#[test]
fn another_version_is_left_alone_for_a_while() {
    let mut bench = Bench::new();
    let mut peer = bench.accept();
    bench.answer(
        &mut peer,
        &Response::Hello {
            version: VERSION + 1,
            pid: 1,
        },
    );
    let LinkState::Disconnected(reason) = bench.session.state() else {
        panic!()
    };
    assert!(reason.contains("protocol version"), "{reason}");
    assert!(bench.session.deadline().unwrap() > Instant::now() + RECONNECT);
}
