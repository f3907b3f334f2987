//! Samples to figures, and to ratios of paired rounds.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::measure::{Measure, Metric, Outcome};
use super::rounds::Sample;
use super::statistics::{Interval, interval_of_median, median};
use super::wire::Wire;
use crate::contender::Contender;

/// A figure over all rounds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Figure {
    /// Median of the rounds.
    pub median: f64,
    /// 95 % interval of the median; `None` with fewer than three rounds.
    pub interval: Option<Interval>,
    /// Lowest and highest round.
    pub range: Interval,
}

impl Figure {
    /// Of one value for each round; `None` without any.
    pub fn of(values: &[f64]) -> Option<Self> {
        Some(Self {
            median: median(values)?,
            interval: interval_of_median(values),
            range: Interval {
                low: values.iter().copied().fold(f64::INFINITY, f64::min),
                high: values.iter().copied().fold(f64::NEG_INFINITY, f64::max),
            },
        })
    }
}

/// How one contender compares with another: the median of the ratios of each round.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Ratio {
    /// What joined the nodes.
    pub wire: Wire,
    /// What was measured.
    pub measure: Measure,
    /// In what.
    pub metric: Metric,
    /// Whose figure is divided.
    pub contender: Contender,
    /// By whose.
    pub reference: Contender,
    /// Median of the ratios.
    pub median: f64,
    /// 95 % interval of that median, by drawing rounds; `None` with fewer than three.
    pub interval: Option<Interval>,
    /// Rounds in which neither was refused.
    pub rounds: usize,
}

/// The samples, to be asked for figures.
#[derive(Debug, Clone, Copy)]
pub struct Summary<'s>(pub &'s [Sample]);

impl Summary<'_> {
    /// A contender's figure; `None` when every round was refused or nothing was measured.
    pub fn figure(
        &self,
        wire: Wire,
        measure: Measure,
        contender: Contender,
        metric: Metric,
    ) -> Option<Figure> {
        let values: Vec<f64> = self
            .by_round(wire, measure, contender, metric)
            .into_values()
            .collect();
        Figure::of(&values)
    }

    /// The ratio of two contenders; `None` without a round in which neither was refused.
    pub fn ratio(
        &self,
        wire: Wire,
        measure: Measure,
        metric: Metric,
        contender: Contender,
        reference: Contender,
    ) -> Option<Ratio> {
        let ours = self.by_round(wire, measure, contender, metric);
        let theirs = self.by_round(wire, measure, reference, metric);
        let pairs = ours
            .iter()
            .filter_map(|(round, ours)| Some((*ours, *theirs.get(round)?)));
        let ratios: Vec<f64> = pairs
            .filter(|(_, theirs)| *theirs > 0.0)
            .map(|(ours, theirs)| ours / theirs)
            .collect();
        Some(Ratio {
            wire,
            measure,
            metric,
            contender,
            reference,
            median: median(&ratios)?,
            interval: interval_of_median(&ratios),
            rounds: ratios.len(),
        })
    }

    /// The one of some contenders with the best median.
    pub fn best(
        &self,
        wire: Wire,
        measure: Measure,
        metric: Metric,
        among: impl IntoIterator<Item = Contender>,
    ) -> Option<Contender> {
        let figures = among.into_iter().filter_map(|contender| {
            let figure = self.figure(wire, measure, contender, metric)?;
            Some((contender, figure.median))
        });
        let better = |a: f64, b: f64| {
            if metric.more_is_better() {
                a > b
            } else {
                a < b
            }
        };
        let best = figures.reduce(
            |best, other| {
                if better(other.1, best.1) { other } else { best }
            },
        );
        best.map(|(contender, _)| contender)
    }

    /// Every contender's ratios to the kernel's VXLAN device on the same wire.
    pub fn ratios(&self) -> Vec<Ratio> {
        let reference = Contender::KernelVxlan;
        let cells = self.cells();
        let each = cells.iter().flat_map(|((wire, measure), contenders)| {
            let others = contenders.iter().filter(move |c| **c != reference);
            others.flat_map(move |contender| {
                let metrics = measure.compared().iter();
                metrics.filter_map(move |metric| {
                    self.ratio(*wire, *measure, *metric, *contender, reference)
                })
            })
        });
        each.collect()
    }

    /// The wires and measures in the order of their first samples, with the contenders of each.
    pub fn cells(&self) -> Vec<((Wire, Measure), Vec<Contender>)> {
        let mut cells: Vec<((Wire, Measure), Vec<Contender>)> = Vec::new();
        for sample in self.0 {
            let key = (sample.wire, sample.measure);
            let found = cells.iter().position(|(cell, _)| *cell == key);
            let at = found.unwrap_or_else(|| {
                cells.push((key, Vec::new()));
                cells.len() - 1
            });
            let contenders = &mut cells[at].1;
            if !contenders.contains(&sample.contender) {
                contenders.push(sample.contender);
            }
        }
        cells
    }

    /// How many rounds were taken of a contender, and the reasons of those that were refused.
    pub fn refusals(
        &self,
        wire: Wire,
        measure: Measure,
        contender: Contender,
    ) -> (usize, Vec<&str>) {
        let of = |s: &&Sample| (s.wire, s.measure, s.contender) == (wire, measure, contender);
        let samples: Vec<_> = self.0.iter().filter(of).collect();
        let reasons = samples.iter().filter_map(|sample| match &sample.outcome {
            Outcome::Refused(reason) => Some(reason.as_str()),
            Outcome::Values(_) => None,
        });
        (samples.len(), reasons.collect())
    }

    fn by_round(
        &self,
        wire: Wire,
        measure: Measure,
        contender: Contender,
        metric: Metric,
    ) -> BTreeMap<u32, f64> {
        let of = |s: &&Sample| (s.wire, s.measure, s.contender) == (wire, measure, contender);
        let samples = self.0.iter().filter(of);
        samples
            .filter_map(|sample| Some((sample.round, sample.outcome.value(metric)?)))
            .collect()
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::measure::Values;
    use super::*;

    /// A TCP sample on the true wire.
    pub(in super::super) fn sample(contender: Contender, round: u32, gigabits: f64) -> Sample {
        let values = Values::from([
            (Metric::BitsPerSecond, gigabits * 1e9),
            (Metric::CpuSecondsPerGigabyte, 10.0 / gigabits),
        ]);
        with(contender, round, Outcome::Values(values))
    }

    pub(in super::super) fn refused(contender: Contender, round: u32, reason: &str) -> Sample {
        with(contender, round, Outcome::Refused(reason.to_owned()))
    }

    fn with(contender: Contender, round: u32, outcome: Outcome) -> Sample {
        Sample {
            wire: Wire::True,
            measure: Measure::TCP,
            contender,
            round,
            outcome,
        }
    }

    #[test]
    fn ratios_are_of_the_same_round() {
        // The machine is twice as fast in the second round: the ratio is the same.
        let samples = [
            sample(Contender::KernelVxlan, 1, 4.0),
            sample(Contender::PodwayVxlan, 1, 2.0),
            sample(Contender::KernelVxlan, 2, 8.0),
            sample(Contender::PodwayVxlan, 2, 4.0),
            sample(Contender::KernelVxlan, 3, 6.0),
            refused(Contender::PodwayVxlan, 3, "a lie"),
        ];
        let ratio = Summary(&samples)
            .ratio(
                Wire::True,
                Measure::TCP,
                Metric::BitsPerSecond,
                Contender::PodwayVxlan,
                Contender::KernelVxlan,
            )
            .unwrap();
        assert_eq!((ratio.median, ratio.rounds), (0.5, 2));
        assert_eq!(
            ratio.interval, None,
            "two rounds tell nothing of the spread"
        );
    }

    #[test]
    fn a_refused_round_is_no_figure() {
        let samples = [
            sample(Contender::KernelVxlan, 1, 4.0),
            refused(Contender::KernelVxlan, 2, "a lie"),
        ];
        let summary = Summary(&samples);
        let cell = (Wire::True, Measure::TCP, Contender::KernelVxlan);
        let figure = summary.figure(cell.0, cell.1, cell.2, Metric::BitsPerSecond);
        assert_eq!(figure.unwrap().median, 4e9);
        assert_eq!(summary.refusals(cell.0, cell.1, cell.2), (2, vec!["a lie"]));
        let only = Summary(&samples[1..]);
        let figure = only.figure(cell.0, cell.1, cell.2, Metric::BitsPerSecond);
        assert_eq!(figure, None);
    }

    #[test]
    fn the_best_depends_on_the_metric() {
        let samples = [
            sample(Contender::KernelNative, 1, 8.0),
            sample(Contender::PodwayNative, 1, 4.0),
        ];
        let natives = [Contender::PodwayNative, Contender::KernelNative];
        let best = |metric| Summary(&samples).best(Wire::True, Measure::TCP, metric, natives);
        assert_eq!(best(Metric::BitsPerSecond), Some(Contender::KernelNative));
        assert_eq!(
            best(Metric::CpuSecondsPerGigabyte),
            Some(Contender::KernelNative)
        );
        assert_eq!(best(Metric::RoundTripP50), None);
    }
}
