//! Whether the dataplane holds what it was told: when it is asked, and what came of it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use podway_proto::control::DriftStatus;
use podway_proto::digest::Digests;

use crate::facts::Key;

/// How often it is asked while nothing changes.
pub(super) const PERIOD: Duration = Duration::from_secs(10);
/// A comparison that is not older answers for now.
const FRESH: Duration = Duration::from_secs(1);
/// After a comparison there is none for this many times as long as the answer took: a million routes
/// must not keep the dataplane at it.
const REST: u32 = 100;
/// The same when somebody asks.
const REST_WHEN_ASKED: u32 = 10;

/// What is to follow from a comparison.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// Nothing: it holds what it was told, or still does not though it was told anew.
    Wait,
    /// It is to be told everything anew.
    TellAnew,
}

/// Comparisons of what the dataplane holds with what it was told.
#[derive(Debug, Default)]
pub(super) struct Drift {
    /// When the next one is; none before all was told, nor of a dataplane that cannot be asked.
    due: Option<Instant>,
    /// Not before this, whoever asks.
    rest_until: Option<Instant>,
    /// When it was asked last.
    asked: Option<Instant>,
    /// When the last one was.
    compared: Option<Instant>,
    /// What differed then.
    found: Vec<String>,
    /// Kinds of facts that could not be compared.
    passed_over: Vec<String>,
    /// Whether all was told anew because of that.
    told_anew: bool,
    mended: u64,
    last_mended: Vec<String>,
}

impl Drift {
    /// When the next comparison is to be.
    pub(super) fn due(&self) -> Option<Instant> {
        self.due
    }

    /// Whether the dataplane is known to hold something else.
    pub(super) fn is_known(&self) -> bool {
        !self.found.is_empty()
    }

    /// The connection is gone: the next is told everything, and its dataplane may be another.
    pub(super) fn forget(&mut self) {
        *self = Self {
            mended: self.mended,
            last_mended: std::mem::take(&mut self.last_mended),
            ..Self::default()
        };
    }

    /// All was told. Whether that has mended what was found is to be seen at once.
    pub(super) fn told_all(&mut self, now: Instant) {
        self.due = Some(if self.is_known() { now } else { now + PERIOD });
    }

    /// Somebody wants to know how it is now.
    pub(super) fn hurry(&mut self, now: Instant) {
        let is_fresh = |at: Instant| now.saturating_duration_since(at) < FRESH;
        if !self.compared.is_some_and(is_fresh) {
            let soonest = self.rest_until.map_or(now, |until| until.max(now));
            self.due = self.due.map(|due| due.min(soonest));
        }
    }

    /// It is being asked.
    pub(super) fn ask(&mut self, now: Instant) {
        self.asked = Some(now);
        self.due = Some(now + PERIOD);
    }

    /// The dataplane is of before and does not know the question.
    pub(super) fn cannot_be_asked(&mut self) {
        tracing::info!("this dataplane cannot tell what it holds, so that drift is not noticed");
        self.due = None;
    }

    /// It holds `held` and was told `told`, of which it has refused some facts.
    pub(super) fn compare(
        &mut self,
        mut told: Digests,
        held: &Digests,
        refused: &BTreeMap<Key, String>,
        now: Instant,
    ) -> Outcome {
        let took = self.asked.map(|asked| now.saturating_duration_since(asked));
        let took = took.unwrap_or_default();
        self.due = self.due.map(|due| due.max(now + took * REST));
        let rest = took * REST_WHEN_ASKED;
        self.rest_until = Some(now + rest);
        // What it holds in the place of one that it refused is not known here.
        let mut passed_over = BTreeSet::new();
        for key in refused.keys() {
            passed_over.insert(match key {
                Key::Local => {
                    told.local = held.local;
                    "this node"
                }
                Key::Port(_) => {
                    told.ports = held.ports;
                    "ports"
                }
                Key::Neighbor(..) => {
                    told.neighbors = held.neighbors;
                    "neighbors"
                }
                Key::Node(_) => {
                    told.nodes = held.nodes;
                    "nodes"
                }
                Key::Route(_) => {
                    told.routes = held.routes;
                    "routes"
                }
            });
        }
        self.passed_over = passed_over.into_iter().map(str::to_owned).collect();
        self.compared = Some(now);
        let found = told.differences(held);
        let before = std::mem::replace(&mut self.found, found);
        if self.found.is_empty() {
            self.told_anew = false;
            if !before.is_empty() {
                tracing::info!("the dataplane holds what it was told again");
                self.mended += 1;
                self.last_mended = before;
            }
            return Outcome::Wait;
        }
        if before != self.found {
            let found = self.found.join("; ");
            tracing::warn!("drift: {found}; telling everything anew");
        }
        // What telling anew does not mend is told anew after a while, not in a loop.
        self.told_anew = !self.told_anew;
        if self.told_anew {
            return Outcome::TellAnew;
        }
        self.rest_until = Some(now + rest.max(PERIOD));
        Outcome::Wait
    }

    /// For people and programs.
    pub(super) fn status(&self, now: Instant) -> DriftStatus {
        let ago = |at: Instant| now.saturating_duration_since(at).as_secs();
        DriftStatus {
            compared_seconds_ago: self.compared.map(ago),
            found: self.found.clone(),
            passed_over: self.passed_over.clone(),
            mended: self.mended,
            last_mended: self.last_mended.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use podway_proto::digest::Digest;

    use super::*;

    fn digests(routes: u64, nodes: u64) -> Digests {
        let of = |count| Digest { count, sum: count };
        Digests {
            routes: of(routes),
            nodes: of(nodes),
            ..Digests::default()
        }
    }

    #[test]
    fn drift_is_told_anew_once_and_then_at_the_next_comparison() {
        let now = Instant::now();
        let mut drift = Drift::default();
        let mut compare = |routes, expected| {
            let outcome = drift.compare(digests(2, 1), &digests(routes, 1), &BTreeMap::new(), now);
            assert_eq!(outcome, expected);
            drift.status(now)
        };
        assert_eq!(compare(2, Outcome::Wait).found, Vec::<String>::new());
        let lost = vec!["routes: the dataplane holds 1 and was told 2".to_owned()];
        assert_eq!(compare(1, Outcome::TellAnew).found, lost);
        assert_eq!(compare(1, Outcome::Wait).found, lost);
        assert_eq!(compare(1, Outcome::TellAnew).mended, 0);
        let mended = DriftStatus {
            compared_seconds_ago: Some(0),
            found: Vec::new(),
            passed_over: Vec::new(),
            mended: 1,
            last_mended: lost,
        };
        assert_eq!(compare(2, Outcome::Wait), mended);
        assert_eq!(compare(1, Outcome::TellAnew).mended, 1);
    }

    #[test]
    fn kinds_of_refused_facts_are_not_compared() {
        let now = Instant::now();
        let mut drift = Drift::default();
        let refused = BTreeMap::from([(Key::Node("b".into()), "why".to_owned())]);
        let (told, held) = (digests(2, 2), digests(2, 1));
        assert_eq!(drift.compare(told, &held, &refused, now), Outcome::Wait);
        assert_eq!(drift.status(now).passed_over, ["nodes"]);
        let outcome = drift.compare(told, &held, &BTreeMap::new(), now);
        assert_eq!(outcome, Outcome::TellAnew);
    }

    #[test]
    fn a_comparison_is_due_after_a_while_or_when_somebody_asks() {
        let now = Instant::now();
        let mut drift = Drift::default();
        drift.hurry(now);
        assert_eq!(drift.due(), None, "not all was told");
        drift.told_all(now);
        assert_eq!(drift.due(), Some(now + PERIOD));
        drift.hurry(now);
        assert_eq!(drift.due(), Some(now));
        drift.ask(now);
        assert_eq!(drift.due(), Some(now + PERIOD));
        let (told, held) = (digests(2, 1), digests(1, 1));
        drift.compare(told, &held, &BTreeMap::new(), now);
        drift.hurry(now + FRESH - Duration::from_millis(1));
        assert_eq!(drift.due(), Some(now + PERIOD));
        drift.hurry(now + FRESH);
        assert_eq!(drift.due(), Some(now + FRESH));
        drift.ask(now);
        let late = now + Duration::from_secs(1);
        drift.compare(told, &held, &BTreeMap::new(), late);
        assert_eq!(drift.due(), Some(late + Duration::from_secs(100)));
        drift.hurry(late + FRESH);
        let rested = late + Duration::from_secs(10);
        assert_eq!(drift.due(), Some(rested), "whoever asks");
        drift.told_all(now);
        assert_eq!(drift.due(), Some(now), "whether it was mended");
        drift.cannot_be_asked();
        drift.hurry(now);
        assert_eq!(drift.due(), None);
    }
}
