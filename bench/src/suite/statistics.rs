//! Medians, and how sure one can be of them.

/// How often rounds are drawn anew. The interval's ends are then stable to about a percent of
/// its width.
const RESAMPLES: usize = 10_000;
/// The same samples give the same interval.
const SEED: u64 = 1;
/// Share of the resamples that the interval holds.
const CONFIDENCE: f64 = 0.95;

/// A range of values, ends included.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Interval {
    /// Its lower end.
    pub low: f64,
    /// Its upper end.
    pub high: f64,
}

impl Interval {
    /// Whether the two have a value in common.
    pub fn overlaps(self, other: Self) -> bool {
        self.low <= other.high && other.low <= self.high
    }
}

/// The middle value, or the mean of the two in the middle; `None` without any.
pub fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => None,
        n if n % 2 == 1 => Some(sorted[middle]),
        _ => Some(f64::midpoint(sorted[middle - 1], sorted[middle])),
    }
}

/// The interval that holds the median with a confidence of 95 %, by the percentile bootstrap:
/// values (one of each round) are drawn with replacement, and the medians of many such draws
/// sorted. `None` with fewer than three values: nothing is known of their spread then.
pub fn interval_of_median(values: &[f64]) -> Option<Interval> {
    if values.len() < 3 {
        return None;
    }
    let mut random = fastrand::Rng::with_seed(SEED);
    let mut draw = vec![0.0; values.len()];
    let mut medians: Vec<f64> = (0..RESAMPLES)
        .filter_map(|_| {
            draw.fill_with(|| values[random.usize(..values.len())]);
            median(&draw)
        })
        .collect();
    medians.sort_unstable_by(f64::total_cmp);
    let outside = (1.0 - CONFIDENCE) / 2.0;
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "a share of a small positive number"
    )]
    let cut = (outside * RESAMPLES as f64) as usize;
    Some(Interval {
        low: *medians.get(cut)?,
        high: *medians.get(medians.len().checked_sub(1 + cut)?)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_in_the_middle() {
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[3.0, 1.0, 9.0]), Some(3.0));
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), Some(2.5));
    }

    #[test]
    fn two_values_have_no_interval() {
        assert_eq!(interval_of_median(&[1.0, 2.0]), None);
    }

    #[test]
    fn of_three_values_the_interval_is_their_range() {
        // Two or three draws of the same value happen in 7 of 27 resamples, more than 5 %.
        let interval = interval_of_median(&[0.5, 0.4, 0.7]).unwrap();
        assert_eq!((interval.low, interval.high), (0.4, 0.7));
    }

    #[test]
    fn equal_values_leave_no_doubt() {
        let interval = interval_of_median(&[0.8; 7]).unwrap();
        assert_eq!((interval.low, interval.high), (0.8, 0.8));
    }

    #[test]
    fn of_many_values_it_is_that_of_the_order_statistics() {
        // For the median of 101 values, the binomial distribution gives the 41st and 61st value
        // (P(Bin(101, 1/2) <= 40) = 2.3 %); the bootstrap is the same up to one value.
        let values: Vec<f64> = (1..=101).map(f64::from).collect();
        let interval = interval_of_median(&values).unwrap();
        assert!((40.0..=42.0).contains(&interval.low), "{interval:?}");
        assert!((60.0..=62.0).contains(&interval.high), "{interval:?}");
    }

    #[test]
    fn it_holds_the_truth_about_as_often_as_it_says() {
        let mut random = fastrand::Rng::with_seed(7);
        let held = (0..40).filter(|_| {
            let values: Vec<f64> = (0..15).map(|_| random.f64()).collect();
            let interval = interval_of_median(&values).unwrap();
            interval.low <= 0.5 && 0.5 <= interval.high
        });
        let held = held.count();
        assert!((34..=40).contains(&held), "{held} of 40");
    }

    #[test]
    fn intervals_overlap_at_their_ends() {
        let interval = |low, high| Interval { low, high };
        assert!(interval(0.0, 1.0).overlaps(interval(1.0, 2.0)));
        assert!(interval(0.0, 3.0).overlaps(interval(1.0, 2.0)));
        assert!(!interval(0.0, 0.9).overlaps(interval(1.0, 2.0)));
    }
}
