//! The generator's histogram of intervals, and when a run counts as paced.

use serde::Serialize;

/// `INTERVAL_BINS` in `bpf/shared.h`.
pub(super) const BINS: usize = 64;
/// `BINS_PER_TARGET` in `bpf/shared.h`: a bin is this part of the target interval.
pub(super) const BINS_PER_TARGET: usize = 16;
/// Bins whose intervals are less than half the target off: from 1/2 to 3/2 of it.
const ON_TARGET: std::ops::Range<usize> = BINS_PER_TARGET / 2..BINS_PER_TARGET * 3 / 2;
/// A run counts as paced with at most this share of intervals off target. What a scheduler does
/// to a spinning thread now and then is below it, any pattern in the sending above.
const MOST_OFF_TARGET: f64 = 0.05;
/// A run counts as paced if it reached at least this part of its rate: a generator that falls
/// behind starts its schedule anew rather than catching up.
const LEAST_REACHED: f64 = 0.98;

/// Times between the packets of a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Intervals {
    /// The interval that was aimed at, in nanoseconds; 0 if the run was not paced.
    pub target_ns: u64,
    /// How many intervals there were, by sixteenths of the target: the n-th counts those from n/16
    /// to less than (n+1)/16 of it, the last also all longer ones.
    pub bins: Vec<u64>,
}

/// Why a run does not count as paced.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, thiserror::Error)]
pub enum Unpaced {
    /// There were fewer than two packets.
    #[error("the generator sent nothing that could be judged")]
    Nothing,
    /// Bursts, gaps or jitter.
    #[error(
        "the generator was not even: {:.1} % of its intervals were off the target by more than \
         half of it", .share * 100.0
    )]
    Uneven {
        /// Part of the intervals that were off, 0 to 1.
        share: f64,
    },
    /// The rate was not reached.
    #[error("the generator reached {:.1} % of its rate", .reached * 100.0)]
    Slow {
        /// Part of the rate that was reached, 0 to 1.
        reached: f64,
    },
}

impl Intervals {
    /// Part of the intervals that were off the target by more than half of it, 0 to 1; `None`
    /// without any interval.
    pub fn off_target(&self) -> Option<f64> {
        let all: u64 = self.bins.iter().sum();
        let on: u64 = self.bins.get(ON_TARGET)?.iter().sum();
        (all > 0).then(|| part(all - on, all))
    }

    /// Judges a run in which `sent` packets took `nanoseconds` from the first to the last.
    ///
    /// # Errors
    /// [`Unpaced`] with the reason.
    pub fn check(&self, sent: u64, nanoseconds: u64) -> Result<(), Unpaced> {
        let share = self.off_target().ok_or(Unpaced::Nothing)?;
        if share > MOST_OFF_TARGET {
            return Err(Unpaced::Uneven { share });
        }
        let planned = self.target_ns * sent.saturating_sub(1);
        let reached = part(planned, nanoseconds.max(1));
        if reached < LEAST_REACHED {
            return Err(Unpaced::Slow { reached });
        }
        Ok(())
    }
}

/// A fraction as a figure for people and for thresholds in percents.
#[expect(
    clippy::cast_precision_loss,
    reason = "counts and nanoseconds of a run are far below 2^53"
)]
pub(super) fn part(of: u64, all: u64) -> f64 {
    of as f64 / all as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn intervals(counts: &[(usize, u64)]) -> Intervals {
        let mut bins = vec![0; BINS];
        for (bin, count) in counts {
            bins[*bin] = *count;
        }
        Intervals {
            target_ns: 1000,
            bins,
        }
    }

    #[test]
    fn an_even_run_is_paced() {
        let even = intervals(&[(15, 400), (16, 560), (20, 20), (63, 20)]);
        assert_eq!(even.off_target(), Some(0.02));
        assert_eq!(even.check(1001, 1_010_000), Ok(()));
    }

    #[test]
    fn bursts_are_refused_though_the_rate_is_right() {
        // Pairs: one interval of nearly nothing, one of twice the target.
        let pairs = intervals(&[(1, 500), (31, 500)]);
        assert_eq!(
            pairs.check(1001, 1_000_000),
            Err(Unpaced::Uneven { share: 1.0 })
        );
    }

    #[test]
    fn the_edges_of_the_target_count() {
        assert_eq!(intervals(&[(8, 1), (23, 1)]).off_target(), Some(0.0));
        assert_eq!(intervals(&[(7, 1), (24, 1)]).off_target(), Some(1.0));
    }

    #[test]
    fn a_slow_run_is_refused_though_it_is_even() {
        let even = intervals(&[(17, 1000)]);
        let error = even.check(1001, 1_100_000).unwrap_err();
        assert_eq!(
            error.to_string(),
            "the generator reached 90.9 % of its rate"
        );
    }

    #[test]
    fn nothing_is_not_paced() {
        assert_eq!(intervals(&[]).check(0, 0), Err(Unpaced::Nothing));
        assert_eq!(intervals(&[]).check(1, 0), Err(Unpaced::Nothing));
    }
}
