//! How fast the counts grow.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use podway_proto::reasons;

/// What rates are of.
const WINDOW: Duration = Duration::from_secs(10);
/// How far back packets are counted.
const MINUTE: Duration = Duration::from_secs(60);
/// How often the counts are looked at for them.
const PERIOD: Duration = Duration::from_secs(1);

/// Counts of the last seconds, a second apart, in the order of [`reasons::all`].
#[derive(Debug)]
pub(crate) struct DropRates(VecDeque<(Instant, Vec<u64>)>);

impl DropRates {
    /// Rates since `now`, when nothing is dropped yet.
    pub(crate) fn new(now: Instant) -> Self {
        Self(VecDeque::from([(now, vec![0; reasons::all().count()])]))
    }

    pub(super) fn is_due(&self, now: Instant) -> bool {
        let newest = self.0.back();
        newest.is_none_or(|(then, _)| now.duration_since(*then) >= PERIOD)
    }

    pub(super) fn add(&mut self, now: Instant, counts: Vec<u64>) {
        self.0.push_back((now, counts));
        // One that is as old as a minute is enough.
        while self
            .0
            .get(1)
            .is_some_and(|(then, _)| now.duration_since(*then) >= MINUTE)
        {
            self.0.pop_front();
        }
    }

    /// By how much the counts have grown a second since the look that was a window ago, or since the
    /// first, to a tenth.
    pub(super) fn per_second(&self, now: Instant, counts: &[u64]) -> Vec<f64> {
        let Some((then, before)) = self.look(now, WINDOW) else {
            return vec![0.0; counts.len()];
        };
        let seconds = now.duration_since(*then).max(PERIOD).as_secs_f64();
        #[expect(clippy::cast_precision_loss, reason = "a rate for people")]
        let rate = |(now, before): (&u64, &u64)| now.saturating_sub(*before) as f64 / seconds;
        let rates = counts.iter().zip(before).map(rate);
        rates.map(|rate| (rate * 10.0).round() / 10.0).collect()
    }

    /// By how much the counts have grown in the last minute, or since the first look.
    pub(super) fn last_minute(&self, now: Instant, counts: &[u64]) -> Vec<u64> {
        let Some((_, before)) = self.look(now, MINUTE) else {
            return vec![0; counts.len()];
        };
        let grown = counts.iter().zip(before);
        grown
            .map(|(now, before)| now.saturating_sub(*before))
            .collect()
    }

    /// The last look that is as long ago as that, or the first.
    fn look(&self, now: Instant, ago: Duration) -> Option<&(Instant, Vec<u64>)> {
        let is_whole = |(then, _): &&(Instant, _)| now.duration_since(*then) >= ago;
        self.0.iter().rev().find(is_whole).or(self.0.front())
    }
}

#[cfg(test)]
mod tests {
    use podway_proto::reasons::DropReason;

    use super::*;

    #[test]
    fn rates_are_of_the_last_ten_seconds() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let counts = |first| {
            let mut counts = vec![0; DropReason::COUNT];
            counts[0] = first;
            counts
        };
        let mut rates = DropRates::new(start);
        assert_eq!(
            rates.per_second(start, &counts(7))[0],
            7.0,
            "of a second at least"
        );
        assert_eq!(rates.per_second(at(4), &counts(10))[0], 2.5);
        assert!(!rates.is_due(start + Duration::from_millis(999)));
        // One packet in each of the first 20 seconds.
        for second in 1..=20 {
            assert!(rates.is_due(at(second)));
            rates.add(at(second), counts(second));
        }
        assert_eq!(rates.0.len(), 21);
        let seen = rates.per_second(at(20), &counts(20));
        assert_eq!((seen[0], seen[1]), (1.0, 0.0));
        assert_eq!(rates.per_second(at(25), &counts(20))[0], 0.5);
        assert_eq!(rates.last_minute(at(25), &counts(20))[..2], [20, 0]);
        assert_eq!(rates.last_minute(at(70), &counts(23))[0], 13);
        // The API thread was held up for long.
        rates.add(at(100), counts(20));
        assert_eq!(rates.0.len(), 2);
        assert_eq!(rates.per_second(at(110), &counts(25))[0], 0.5);
    }
}
