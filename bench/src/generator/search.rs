//! The highest rate without loss, in the manner of RFC 2544, section 26.1.

use std::time::Duration;

use serde::Serialize;

use super::pacing::part;
use super::rig::{Refusal, Rig, Trial};
use super::run::Rate;
use crate::{Error, Result};

/// A trial that the generator spoilt is repeated this often: another process may have had its CPU.
const ATTEMPTS: u32 = 3;

/// How to search.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Search {
    /// Lowest rate of interest, in packets per second.
    pub lowest: u64,
    /// Highest rate of interest, in packets per second.
    pub highest: u64,
    /// How close the answer shall be, as a part of it: 0.02 is two percent.
    pub resolution: f64,
    /// Part of the packets that may be lost: 0 for RFC 2544.
    pub tolerance: f64,
    /// Length of a trial. RFC 2544 has 60 s; a queue that fills slowly needs the time.
    #[serde(rename = "trial_seconds", serialize_with = "seconds")]
    pub trial: Duration,
}

fn seconds<S: serde::Serializer>(
    duration: &Duration,
    serializer: S,
) -> std::result::Result<S::Ok, S::Error> {
    serializer.serialize_f64(duration.as_secs_f64())
}

/// What kept the rate from being higher.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub enum Limit {
    /// The node lost packets at the next higher rate.
    Loss,
    /// The generator could not send at the next higher rate, for this reason: the node may be
    /// faster.
    Generator(Refusal),
    /// The highest rate of interest: the node may be faster.
    Highest,
}

/// The answer, with all that was seen on the way.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Found {
    /// The trial at the highest rate without loss; `None` if the lowest rate was one too many.
    pub best: Option<Trial>,
    /// What kept it from being higher.
    pub limit: Limit,
    /// All trials in order, refused ones too.
    pub trials: Vec<Trial>,
}

impl Found {
    /// The rate in packets per second, as it was reached; `None` without any.
    pub fn packets_per_second(&self) -> Option<f64> {
        self.best.as_ref().map(Trial::offered)
    }
}

impl Search {
    /// Searches on a rig.
    ///
    /// # Errors
    /// When a trial cannot be made, or the counts of one do not agree.
    pub fn on(&self, rig: &Rig) -> Result<Found> {
        self.with(|rate| rig.trial(Rate::PerSecond(rate), self.trial))
    }

    /// Searches by trials of any kind.
    fn with(&self, mut trial: impl FnMut(u64) -> Result<Trial>) -> Result<Found> {
        if self.lowest == 0 || self.lowest > self.highest || self.resolution <= 0.0 {
            return Err(Error::Unexpected(format!("nothing to search in: {self:?}")));
        }
        let mut trials = Vec::new();
        let mut best = None;
        let mut limit = Limit::Highest;
        // Without loss below, with loss above.
        let (mut below, mut above) = (self.lowest, self.highest);
        let mut rate = self.highest;
        loop {
            match self.judge(rate, &mut trial, &mut trials)? {
                Ok(lossless) => {
                    best = Some(lossless);
                    below = rate;
                }
                Err(why) => {
                    limit = why;
                    above = rate;
                }
            }
            rate = if best.is_none() && below == above {
                // The lowest rate has failed.
                break;
            } else if best.is_none() && part(above - below, below) <= self.resolution {
                below
            } else if part(above - below, below) <= self.resolution || above - below < 2 {
                break;
            } else {
                below + (above - below) / 2
            };
        }
        Ok(Found {
            best,
            limit,
            trials,
        })
    }

    fn judge(
        &self,
        rate: u64,
        trial: &mut impl FnMut(u64) -> Result<Trial>,
        trials: &mut Vec<Trial>,
    ) -> Result<std::result::Result<Trial, Limit>> {
        let mut attempt = 1;
        loop {
            let made = trial(rate)?;
            trials.push(made.clone());
            match made.check() {
                Ok(()) if part(made.lost(), made.sent) <= self.tolerance => return Ok(Ok(made)),
                Ok(()) => return Ok(Err(Limit::Loss)),
                Err(refusal @ Refusal::Unpaced(_)) if attempt == ATTEMPTS => {
                    return Ok(Err(Limit::Generator(refusal)));
                }
                Err(Refusal::Unpaced(_)) => attempt += 1,
                // Not a matter of the rate: no result of this generator is worth anything.
                Err(refusal) => return Err(Error::Unexpected(refusal.to_string())),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::pacing::{BINS, Intervals};
    use super::super::rig::tests;
    use super::*;

    const SEARCH: Search = Search {
        lowest: 1000,
        highest: 1_000_000,
        resolution: 0.01,
        tolerance: 0.0,
        trial: Duration::from_secs(1),
    };

    /// A second at `rate`, at the pace of the plan.
    fn second(rate: u64, arrived: u64) -> Trial {
        let mut bins = vec![0; BINS];
        bins[16] = rate;
        Trial {
            rate: Rate::PerSecond(rate),
            nanoseconds: 1_000_000_000,
            intervals: Intervals {
                target_ns: 1_000_000_000 / rate,
                bins,
            },
            ..tests::trial(rate + 1, arrived)
        }
    }

    /// A node that loses what is beyond `capacity`.
    fn node(capacity: u64) -> impl FnMut(u64) -> Result<Trial> {
        move |rate| Ok(second(rate, (rate + 1).min(capacity)))
    }

    #[test]
    fn the_capacity_of_a_node_is_found() {
        for capacity in [1500, 77_777, 420_000, 999_000] {
            let found = SEARCH.with(node(capacity)).unwrap();
            let sent = found.best.unwrap().sent;
            assert!(sent <= capacity, "{sent} of {capacity}");
            let short = part(capacity - sent, capacity);
            assert!(short <= SEARCH.resolution, "{sent} of {capacity}");
            assert_eq!(found.limit, Limit::Loss);
            assert!(found.trials.len() <= 20, "{}", found.trials.len());
        }
    }

    #[test]
    fn a_node_that_is_faster_than_all_rates_is_asked_once() {
        let found = SEARCH.with(node(u64::MAX)).unwrap();
        assert_eq!(found.best.unwrap().sent, 1_000_001);
        assert_eq!((found.limit, found.trials.len()), (Limit::Highest, 1));
    }

    #[test]
    fn a_node_that_always_loses_has_no_rate() {
        let found = SEARCH.with(|rate| Ok(second(rate, rate / 2))).unwrap();
        assert_eq!((found.best, found.limit), (None, Limit::Loss));
        assert_eq!(found.trials.last().unwrap().sent, SEARCH.lowest + 1);
    }

    #[test]
    fn tolerated_loss_is_no_loss() {
        let search = Search {
            tolerance: 0.5,
            ..SEARCH
        };
        let found = search.with(node(100_000)).unwrap();
        let sent = found.best.unwrap().sent;
        assert!((195_000..=200_000).contains(&sent), "{sent}");
    }

    #[test]
    fn a_generator_at_its_end_is_named_as_the_limit() {
        let slow = |rate: u64| {
            let mut trial = second(rate, rate + 1);
            if rate > 500_000 {
                trial.nanoseconds *= 2;
            }
            Ok(trial)
        };
        let found = SEARCH.with(slow).unwrap();
        let sent = found.best.unwrap().sent;
        assert!((490_000..=500_001).contains(&sent), "{sent}");
        assert!(matches!(found.limit, Limit::Generator(Refusal::Unpaced(_))));
    }

    #[test]
    fn a_single_disturbance_of_the_generator_is_forgiven() {
        let mut calls = 0;
        let disturbed = |rate| {
            calls += 1;
            let mut trial = second(rate, rate + 1);
            if calls == 1 {
                trial.nanoseconds *= 2;
            }
            Ok(trial)
        };
        let found = SEARCH.with(disturbed).unwrap();
        assert_eq!((found.limit, found.trials.len()), (Limit::Highest, 2));
    }

    #[test]
    fn a_generator_that_miscounts_ends_the_search() {
        let error = SEARCH.with(|rate| {
            Ok(Trial {
                given: 1,
                ..second(rate, rate)
            })
        });
        assert!(error.unwrap_err().to_string().contains("was given 1"));
    }
}
