//! What is known of one path to one node: what became of the probes that were sent on it. Pure.

use std::time::{Duration, Instant};

use podway_proto::control::{PathHealth, PathState, UnknownReason};

/// How long an answer may take.
pub const TIMEOUT: Duration = Duration::from_secs(1);
/// How many probes in a row make a path unreachable when they are lost, and unknown when the other
/// end's kernel refuses them. Until then they follow each other at once.
const MISSES: u32 = 3;
/// A smoothed round trip takes over one eighth of each new one (RFC 6298, alpha).
const SMOOTHING: u32 = 8;

/// One path to one node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Track {
    state: PathState,
    since: Instant,
    /// Of the probe that was sent last; it wraps.
    sequence: u32,
    sent: Instant,
    fate: Fate,
    /// Probes that were lost since one was answered or refused.
    lost_in_row: u32,
    /// Probes that were refused since one was answered.
    refused_in_row: u32,
    /// A bit for each of the last probes that were answered or lost, the newest lowest; set: lost.
    history: u64,
    /// How many bits of the history are in use.
    probes: u32,
    /// In microseconds.
    round_trip: Option<u32>,
    smoothed: Option<u32>,
}

/// What became of the probe that was sent last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    NotSent,
    Waiting,
    Answered,
    Refused,
    Lost,
}

/// When the next probe is to be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pace {
    /// At once: what the last one said needs confirming.
    AtOnce,
    /// An interval after the last one.
    Interval,
}

impl Track {
    /// A path of which nothing is known, for `reason`.
    pub fn new(reason: UnknownReason, now: Instant) -> Self {
        Self {
            state: PathState::Unknown { reason },
            since: now,
            sequence: 0,
            sent: now,
            fate: Fate::NotSent,
            lost_in_row: 0,
            refused_in_row: 0,
            history: 0,
            probes: 0,
            round_trip: None,
            smoothed: None,
        }
    }

    /// The sequence number of the probe to be sent next.
    pub fn next_sequence(&self) -> u32 {
        self.sequence.wrapping_add(1)
    }

    /// Notes that the next probe has left, and gives its sequence number.
    pub fn send(&mut self, now: Instant) -> u32 {
        self.sequence = self.next_sequence();
        self.sent = now;
        self.fate = Fate::Waiting;
        self.sequence
    }

    /// Notes that no probe can be sent for now.
    pub fn cannot_send(&mut self, reason: UnknownReason, now: Instant) {
        self.fate = Fate::NotSent;
        self.lost_in_row = 0;
        self.refused_in_row = 0;
        self.turn_to(PathState::Unknown { reason }, now);
    }

    /// Takes in an answer. `prompt`: it came just now, so the time since the request is the round
    /// trip; otherwise it has waited for this process. Whether it answers anything: duplicates, and
    /// answers to what was answered or never asked, do not.
    pub fn answered(&mut self, sequence: u32, prompt: bool, now: Instant) -> bool {
        let age = self.sequence.wrapping_sub(sequence);
        if self.fate == Fate::Waiting && age == 0 {
            self.fate = Fate::Answered;
            self.record(false);
            if prompt {
                self.measure(now);
            }
        } else {
            // Those that were lost in a row are the last ones before the one that waits.
            let waiting = u32::from(self.fate == Fate::Waiting);
            let late = age
                .checked_sub(waiting)
                .is_some_and(|age| age < self.lost_in_row);
            if !late {
                return false;
            }
            // It stays a lost one in the history, but the path carries.
        }
        self.lost_in_row = 0;
        self.refused_in_row = 0;
        self.turn_to(PathState::Reachable, now);
        true
    }

    /// Takes in that the other end's kernel has nobody who would take a probe. Such a probe is
    /// neither answered nor lost.
    pub fn refused(&mut self, sequence: u32, now: Instant) {
        if self.fate != Fate::Waiting || sequence != self.sequence {
            return;
        }
        self.fate = Fate::Refused;
        self.lost_in_row = 0;
        self.refused_in_row = self.refused_in_row.saturating_add(1);
        if self.refused_in_row >= MISSES {
            let reason = UnknownReason::NoListener;
            self.turn_to(PathState::Unknown { reason }, now);
        }
    }

    /// Judges the last probe when its time is over.
    pub fn judge(&mut self, now: Instant) -> Pace {
        if self.fate == Fate::Waiting {
            self.fate = Fate::Lost;
            self.record(true);
            self.lost_in_row = self.lost_in_row.saturating_add(1);
            if self.lost_in_row >= MISSES {
                self.turn_to(PathState::Unreachable, now);
            }
        }
        match self.fate {
            Fate::Lost if self.lost_in_row < MISSES => Pace::AtOnce,
            Fate::Refused if self.refused_in_row < MISSES => Pace::AtOnce,
            _ => Pace::Interval,
        }
    }

    /// How the path is.
    pub fn state(&self) -> PathState {
        self.state
    }

    /// All that is known of the path.
    pub fn report(&self, now: Instant) -> PathHealth {
        PathHealth {
            state: self.state,
            seconds: now.saturating_duration_since(self.since).as_secs(),
            rtt_microseconds: self.round_trip,
            smoothed_rtt_microseconds: self.smoothed,
            lost: self.history.count_ones(),
            probes: self.probes,
        }
    }

    fn turn_to(&mut self, state: PathState, now: Instant) {
        if self.state != state {
            self.state = state;
            self.since = now;
        }
    }

    fn record(&mut self, lost: bool) {
        self.history = self.history << 1 | u64::from(lost);
        self.probes = u64::BITS.min(self.probes + 1);
    }

    fn measure(&mut self, now: Instant) {
        let took = now.saturating_duration_since(self.sent).as_micros();
        let took = u32::try_from(took).unwrap_or(u32::MAX);
        self.round_trip = Some(took);
        self.smoothed = Some(match self.smoothed {
            None => took,
            Some(before) => before - before / SMOOTHING + took / SMOOTHING,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REACHABLE: PathState = PathState::Reachable;
    const UNREACHABLE: PathState = PathState::Unreachable;

    fn unknown(reason: UnknownReason) -> PathState {
        PathState::Unknown { reason }
    }

    /// A path and the time.
    struct Bench {
        track: Track,
        now: Instant,
    }

    impl Bench {
        fn new() -> Self {
            let now = Instant::now();
            let track = Track::new(UnknownReason::NotProbedYet, now);
            Self { track, now }
        }

        fn pass(&mut self, milliseconds: u64) {
            self.now += Duration::from_millis(milliseconds);
        }

        /// A probe that is answered after so many milliseconds.
        fn answer_after(&mut self, milliseconds: u64) -> Pace {
            let sequence = self.track.send(self.now);
            self.pass(milliseconds);
            assert!(self.track.answered(sequence, true, self.now));
            self.pass(1000 - milliseconds);
            self.track.judge(self.now)
        }

        /// A probe that is lost, and its sequence number.
        fn lose(&mut self) -> (u32, Pace) {
            let sequence = self.track.send(self.now);
            self.pass(1000);
            (sequence, self.track.judge(self.now))
        }

        fn refuse(&mut self) -> Pace {
            let sequence = self.track.send(self.now);
            self.track.refused(sequence, self.now);
            self.pass(1000);
            self.track.judge(self.now)
        }

        fn report(&self) -> PathHealth {
            self.track.report(self.now)
        }
    }

    #[test]
    fn one_answer_makes_a_path_reachable_and_three_losses_unreachable() {
        let mut bench = Bench::new();
        assert_eq!(
            bench.track.state(),
            unknown(UnknownReason::NotProbedYet),
            "nothing is known at first"
        );
        assert_eq!(bench.answer_after(4), Pace::Interval);
        assert_eq!(bench.track.state(), REACHABLE);
        assert_eq!(bench.lose().1, Pace::AtOnce);
        assert_eq!(bench.lose().1, Pace::AtOnce);
        assert_eq!(bench.track.state(), REACHABLE);
        assert_eq!(bench.lose().1, Pace::Interval);
        assert_eq!(bench.track.state(), UNREACHABLE);
        assert_eq!(bench.lose().1, Pace::Interval);
        bench.answer_after(1);
        assert_eq!(bench.track.state(), REACHABLE);
        // Two losses are no outage.
        bench.lose();
        bench.lose();
        bench.answer_after(1);
        bench.lose();
        assert_eq!(bench.track.state(), REACHABLE);
    }

    #[test]
    fn since_when_is_kept_from_change_to_change() {
        let mut bench = Bench::new();
        bench.pass(5000);
        assert_eq!(bench.report().seconds, 5);
        bench.answer_after(0);
        bench.pass(9000);
        bench.answer_after(0);
        assert_eq!(bench.report().seconds, 11);
        for _ in 0..3 {
            bench.lose();
        }
        assert_eq!(bench.report().seconds, 0);
        bench.pass(7000);
        bench.lose();
        assert_eq!(bench.report().seconds, 8);
    }

    #[test]
    fn loss_is_that_of_the_last_64_probes() {
        let mut bench = Bench::new();
        let books = |bench: &Bench| (bench.report().lost, bench.report().probes);
        assert_eq!(books(&bench), (0, 0));
        for _ in 0..3 {
            bench.lose();
        }
        bench.answer_after(0);
        assert_eq!(books(&bench), (3, 4));
        for _ in 0..60 {
            bench.answer_after(0);
        }
        assert_eq!(books(&bench), (3, 64));
        bench.answer_after(0);
        assert_eq!(books(&bench), (2, 64));
        for _ in 0..100 {
            bench.lose();
        }
        assert_eq!(books(&bench), (64, 64));
    }

    #[test]
    fn round_trips_are_told_as_they_are_and_smoothed() {
        let mut bench = Bench::new();
        bench.answer_after(8);
        let times = |bench: &Bench| {
            let report = bench.report();
            (report.rtt_microseconds, report.smoothed_rtt_microseconds)
        };
        assert_eq!(times(&bench), (Some(8000), Some(8000)));
        bench.answer_after(16);
        assert_eq!(times(&bench), (Some(16_000), Some(9000)));
        // What waited for this process says nothing of the path's time.
        let sequence = bench.track.send(bench.now);
        bench.pass(500);
        assert!(bench.track.answered(sequence, false, bench.now));
        assert_eq!(times(&bench), (Some(16_000), Some(9000)));
        assert_eq!(bench.report().lost, 0);
    }

    #[test]
    fn duplicates_and_strange_answers_change_nothing() {
        let mut bench = Bench::new();
        let now = bench.now;
        assert!(!bench.track.answered(0, true, now), "nothing was asked");
        bench.answer_after(2);
        let before = bench.track.clone();
        for sequence in [0, 1, 2, 1000, u32::MAX] {
            assert!(!bench.track.answered(sequence, true, bench.now));
            bench.track.refused(sequence, bench.now);
        }
        assert_eq!(bench.track, before);
    }

    #[test]
    fn a_late_answer_brings_the_path_back_once() {
        let mut bench = Bench::new();
        let lost: Vec<u32> = (0..4).map(|_| bench.lose().0).collect();
        assert_eq!(bench.track.state(), UNREACHABLE);
        // The next one is on its way already.
        bench.track.send(bench.now);
        assert!(bench.track.answered(lost[1], true, bench.now));
        assert_eq!(bench.track.state(), REACHABLE);
        let report = bench.report();
        assert_eq!((report.lost, report.probes), (4, 4), "they came too late");
        assert_eq!(report.rtt_microseconds, None);
        assert!(!bench.track.answered(lost[1], true, bench.now), "again");
        assert_eq!(bench.track.fate, Fate::Waiting);
    }

    #[test]
    fn sequence_numbers_wrap() {
        let mut bench = Bench::new();
        bench.track.sequence = u32::MAX - 1;
        let (before, _) = bench.lose();
        assert_eq!(before, u32::MAX);
        let (after, _) = bench.lose();
        assert_eq!(after, 0);
        assert!(bench.track.answered(before, true, bench.now), "late");
        bench.answer_after(1);
        assert_eq!(bench.track.sequence, 1);
        assert_eq!(bench.report().lost, 2);
    }

    #[test]
    fn a_node_that_refuses_is_unknown_and_nothing_is_lost() {
        let mut bench = Bench::new();
        bench.answer_after(1);
        assert_eq!(bench.refuse(), Pace::AtOnce);
        assert_eq!(bench.refuse(), Pace::AtOnce);
        assert_eq!(bench.track.state(), REACHABLE, "a restart takes as long");
        assert_eq!(bench.refuse(), Pace::Interval);
        assert_eq!(bench.track.state(), unknown(UnknownReason::NoListener));
        assert_eq!((bench.report().lost, bench.report().probes), (0, 1));
        for _ in 0..3 {
            bench.lose();
        }
        assert_eq!(bench.track.state(), UNREACHABLE, "now the path is broken");
        bench.refuse();
        assert_eq!(bench.track.state(), unknown(UnknownReason::NoListener));
        bench.answer_after(1);
        assert_eq!(bench.track.state(), REACHABLE);
    }

    #[test]
    fn a_path_without_socket_is_unknown() {
        let mut bench = Bench::new();
        bench.answer_after(1);
        bench.track.cannot_send(UnknownReason::NoSocket, bench.now);
        assert_eq!(bench.track.state(), unknown(UnknownReason::NoSocket));
        assert_eq!(bench.track.judge(bench.now), Pace::Interval);
    }
}
