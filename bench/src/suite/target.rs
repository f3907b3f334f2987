//! What Podway shall reach, as ratios.

use std::fmt;

use super::measure::{Measure, Metric};
use super::packets::{Direction, Load};
use super::summary::{Ratio, Summary};
use super::wire::Wire;
use crate::contender::Contender;

/// A ratio with what is asked of it.
#[derive(Debug, Clone)]
pub struct Target {
    /// What joins the nodes.
    pub wire: Wire,
    /// What is measured.
    pub measure: Measure,
    /// In what.
    pub metric: Metric,
    /// Whose figure.
    pub contender: Contender,
    /// Against the best of these.
    pub against: Vec<Contender>,
    /// What the next step must reach.
    pub floor: f64,
    /// What it aims at.
    pub goal: f64,
}

/// Whether a bound is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The whole interval is on the right side.
    Reached,
    /// A part of the interval is not.
    NotReached,
    /// There are too few rounds for an interval.
    Unknown,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Reached => "reached",
            Self::NotReached => "not reached",
            Self::Unknown => "too few rounds",
        })
    }
}

/// All targets, in the order of the table.
pub fn targets() -> Vec<Target> {
    use Contender::{
        Hosts, HostsBesidePodway, KernelNative, KernelVxlan, KernelWorld, OvsAfxdp, OvsSystem,
        PodwayNative, PodwaySpin, PodwayVxlan, PodwayVxlanFull, PodwayWorld, XskRsBaseline,
    };
    // Without threads that poll, Open vSwitch's AF_XDP ports are slower.
    let peers = [OvsAfxdp, OvsSystem, XskRsBaseline];
    let tcp = |contender, against: &[Contender], floor, goal| Target {
        wire: Wire::True,
        measure: Measure::TCP,
        metric: Metric::BitsPerSecond,
        contender,
        against: against.to_vec(),
        floor,
        goal,
    };
    let mut targets: Vec<_> = [1, 4, 8]
        .map(|streams| Target {
            measure: Measure::tcp(streams),
            ..tcp(PodwayVxlan, &[KernelVxlan], 0.7, 1.1)
        })
        .into();
    targets.extend([
        tcp(PodwayVxlan, &peers, 2.0, 4.0),
        tcp(PodwayVxlan, &[KernelNative, PodwayNative], 0.5, 0.95),
        tcp(PodwayNative, &[KernelNative], 0.5, 0.95),
        tcp(PodwayVxlanFull, &[PodwayVxlan], 0.9, 1.0),
        // What attaching Podway costs who is not Podway's.
        tcp(PodwayWorld, &[KernelWorld], 0.75, 0.95),
        tcp(HostsBesidePodway, &[Hosts], 0.95, 1.0),
        Target {
            wire: Wire::Virtual,
            ..tcp(PodwayVxlan, &[KernelVxlan], 0.6, 1.0)
        },
        Target {
            metric: Metric::CpuSecondsPerGigabyte,
            ..tcp(PodwayVxlan, &[KernelVxlan], 1.8, 1.0)
        },
    ]);
    let alone = Measure::Latency { beside_bulk: false };
    let beside = Measure::Latency { beside_bulk: true };
    targets.extend(
        [
            (
                Wire::Pinned,
                alone,
                Metric::RoundTripP50,
                PodwaySpin,
                1.0,
                0.7,
            ),
            (
                Wire::True,
                alone,
                Metric::RoundTripP50,
                PodwayVxlan,
                2.5,
                1.2,
            ),
            (
                Wire::True,
                beside,
                Metric::RoundTripP99,
                PodwayVxlan,
                1.2,
                0.7,
            ),
        ]
        .map(|(wire, measure, metric, contender, floor, goal)| Target {
            wire,
            measure,
            metric,
            ..tcp(contender, &[KernelVxlan], floor, goal)
        }),
    );
    // 64 bytes; every number of flows that a size measures.
    targets.extend(
        [Direction::Out, Direction::In]
            .into_iter()
            .flat_map(|direction| {
                [1, 16, 256, 10_000].map(|flows| Target {
                    measure: Measure::PacketCost(Load {
                        direction,
                        size: 64,
                        flows,
                    }),
                    metric: Metric::PacketsPerCpuSecond,
                    ..tcp(PodwayVxlan, &[KernelVxlan], 1.0, 2.0)
                })
            }),
    );
    targets
}

impl Target {
    /// The ratio, against the one of the others with the best median; `None` when one of them was
    /// not measured.
    pub fn ratio(&self, summary: &Summary<'_>) -> Option<Ratio> {
        let (wire, measure, metric) = (self.wire, self.measure, self.metric);
        let measured = |other: &Contender| summary.figure(wire, measure, *other, metric).is_some();
        if !self.against.iter().all(measured) {
            return None;
        }
        let reference = summary.best(wire, measure, metric, self.against.iter().copied())?;
        summary.ratio(wire, measure, metric, self.contender, reference)
    }

    /// Whether a ratio reaches a bound: the interval's worse end does.
    pub fn verdict(&self, ratio: &Ratio, bound: f64) -> Verdict {
        let reached = |interval: super::statistics::Interval| {
            if self.metric.more_is_better() {
                interval.low >= bound
            } else {
                interval.high <= bound
            }
        };
        match ratio.interval.map(reached) {
            Some(true) => Verdict::Reached,
            Some(false) => Verdict::NotReached,
            None => Verdict::Unknown,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::summary::tests::sample;
    use super::*;

    fn rounds(podway: [f64; 3]) -> Vec<super::super::rounds::Sample> {
        let each = (1..).zip(podway).flat_map(|(round, podway)| {
            [
                sample(Contender::KernelVxlan, round, 10.0),
                sample(Contender::PodwayVxlan, round, podway),
            ]
        });
        each.collect()
    }

    fn verdicts(target: &Target, podway: [f64; 3]) -> (Verdict, Verdict) {
        let samples = rounds(podway);
        let ratio = target.ratio(&Summary(&samples)).unwrap();
        (
            target.verdict(&ratio, target.floor),
            target.verdict(&ratio, target.goal),
        )
    }

    #[test]
    fn a_bound_is_reached_when_the_whole_interval_is_past_it() {
        let target = &targets()[0];
        let (reached, not) = (Verdict::Reached, Verdict::NotReached);
        assert_eq!(verdicts(target, [7.5, 8.0, 9.0]), (reached, not));
        assert_eq!(verdicts(target, [6.9, 8.0, 9.0]), (not, not));
        assert_eq!(verdicts(target, [11.0, 12.0, 13.0]), (reached, reached));
    }

    #[test]
    fn of_cost_less_is_better() {
        let target = targets();
        let target = target
            .iter()
            .find(|t| t.metric == Metric::CpuSecondsPerGigabyte)
            .unwrap();
        // Cost is the inverse of throughput in these samples: 1.25 to 1.43 times the kernel's.
        assert_eq!(
            verdicts(target, [7.0, 7.5, 8.0]),
            (Verdict::Reached, Verdict::NotReached)
        );
    }

    #[test]
    fn one_round_proves_nothing() {
        let samples = &rounds([9.0; 3])[..2];
        let target = &targets()[0];
        let ratio = target.ratio(&Summary(samples)).unwrap();
        assert_eq!(target.verdict(&ratio, target.floor), Verdict::Unknown);
    }

    #[test]
    fn the_best_of_some_is_known_when_all_are() {
        let mut samples = rounds([9.0; 3]);
        let natives = [Contender::PodwayNative, Contender::KernelNative];
        let target = targets().into_iter().find(|target| {
            target.contender == Contender::PodwayVxlan && target.against.contains(&natives[0])
        });
        let target = target.unwrap();
        samples.push(sample(natives[0], 1, 3.0));
        assert_eq!(target.ratio(&Summary(&samples)), None);
        samples.push(sample(natives[1], 1, 18.0));
        let ratio = target.ratio(&Summary(&samples)).unwrap();
        assert_eq!((ratio.median, ratio.reference), (0.5, natives[1]));
    }

    #[test]
    fn what_was_not_measured_has_no_ratio() {
        assert_eq!(targets()[1].ratio(&Summary(&rounds([9.0; 3]))), None);
    }
}
