//! Two reports, ratio by ratio.
//!
//! Ratios, not figures: they were taken on machines, or at times, that differ.

use std::fmt;

use super::report::{Report, with_interval};
use super::summary::Ratio;

/// What can be said of a ratio before and after.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// The intervals overlap: no change is proven.
    Overlap,
    /// They do not, and the second is better.
    Better,
    /// They do not, and the second is worse.
    Worse,
    /// One has no interval, for want of rounds.
    Unknown,
}

impl Change {
    /// From one ratio to the same one of another report.
    pub fn between(before: &Ratio, after: &Ratio) -> Self {
        let (Some(one), Some(two)) = (before.interval, after.interval) else {
            return Self::Unknown;
        };
        if one.overlaps(two) {
            Self::Overlap
        } else if (two.low > one.high) == before.metric.more_is_better() {
            Self::Better
        } else {
            Self::Worse
        }
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Overlap => "overlap",
            Self::Better => "better",
            Self::Worse => "worse",
            Self::Unknown => "too few rounds",
        })
    }
}

/// Two reports beside each other.
#[derive(Debug, Clone, PartialEq)]
pub struct Comparison {
    pairs: Vec<(Ratio, Ratio)>,
    /// Ratios that only one of the two has.
    unpaired: usize,
}

impl Comparison {
    /// Of a report before and one after.
    pub fn new(before: &Report, after: &Report) -> Self {
        let key = |r: &Ratio| (r.wire, r.measure, r.metric, r.contender, r.reference);
        let pairs: Vec<_> = before
            .ratios
            .iter()
            .filter_map(|one| {
                let two = after.ratios.iter().find(|two| key(one) == key(two))?;
                Some((*one, *two))
            })
            .collect();
        Self {
            unpaired: before.ratios.len() + after.ratios.len() - 2 * pairs.len(),
            pairs,
        }
    }

    /// The changes, in the order of the lines.
    pub fn changes(&self) -> impl Iterator<Item = Change> {
        self.pairs
            .iter()
            .map(|(one, two)| Change::between(one, two))
    }
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut last = None;
        for (before, after) in &self.pairs {
            if last.replace(before.wire) != Some(before.wire) {
                writeln!(f, "\n== {}", before.wire)?;
            }
            let name = format!(
                "{} / {}, {}, {}",
                before.contender,
                before.reference,
                before.measure,
                before.metric.unit().0
            );
            writeln!(
                f,
                "{name:80}{:>20}{:>20}  {}",
                with_interval(before),
                with_interval(after),
                Change::between(before, after)
            )?;
        }
        if self.unpaired > 0 {
            writeln!(f, "\n{} ratios are in one of the two only", self.unpaired)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::report::tests::report;
    use super::super::summary::tests::sample;
    use super::*;
    use crate::contender::Contender;

    fn measured(podway: [f64; 3]) -> Report {
        let each = (1..).zip(podway).flat_map(|(round, podway)| {
            [
                sample(Contender::KernelVxlan, round, 10.0),
                sample(Contender::PodwayVxlan, round, podway),
            ]
        });
        report(each.collect())
    }

    fn changes(before: [f64; 3], after: [f64; 3]) -> Vec<Change> {
        let comparison = Comparison::new(&measured(before), &measured(after));
        comparison.changes().collect()
    }

    #[test]
    fn a_change_is_proven_when_the_intervals_are_apart() {
        use Change::{Better, Overlap, Worse};
        // Of throughput, and of cost, which is its inverse here and better when less.
        let before = [4.0, 5.0, 6.0];
        assert_eq!(changes(before, [6.1, 7.0, 8.0]), [Better, Better]);
        assert_eq!(changes(before, [6.0, 7.0, 8.0]), [Overlap, Overlap]);
        assert_eq!(changes(before, [1.0, 2.0, 3.0]), [Worse, Worse]);
    }

    #[test]
    fn a_single_round_proves_no_change() {
        let (mut one, two) = (measured([4.0; 3]), measured([8.0; 3]));
        one = report(one.samples[..2].to_vec());
        let comparison = Comparison::new(&one, &two);
        assert_eq!(
            comparison.changes().collect::<Vec<_>>(),
            [Change::Unknown; 2]
        );
    }

    #[test]
    fn what_only_one_has_is_counted() {
        let (one, two) = (measured([4.0; 3]), report(Vec::new()));
        let text = Comparison::new(&one, &two).to_string();
        assert_eq!(text, "\n2 ratios are in one of the two only\n");
        let text = Comparison::new(&one, &one).to_string();
        assert!(text.contains("Podway VXLAN / kernel VXLAN, TCP, 1 stream, cubic, Gbit/s"));
        assert!(text.contains("  overlap\n"));
    }
}
