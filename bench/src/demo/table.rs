//! Samples to rows to text.

use std::fmt;

use super::Sample;
use crate::contender::Contender;
use crate::ping::percentiles;

/// One contender over all rounds.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// Who was in charge.
    pub contender: Contender,
    /// Median of the payload bits per second.
    pub bits_per_second: f64,
    /// Lowest and highest of them.
    pub spread: (f64, f64),
    /// Median of the CPU-seconds per gigabyte.
    pub cpu_seconds_per_gigabyte: f64,
    /// Median of the average frame sizes on the uplink, in bytes.
    pub average_frame: u64,
    /// Median and 99th percentile of ping's round-trip times of all rounds, in microseconds.
    pub ping: Option<(u64, u64)>,
    /// Share of the best native row's median; `None` when there is no native row.
    pub share: Option<f64>,
}

/// The article's table.
#[derive(Debug, Clone, PartialEq)]
pub struct Table {
    rows: Vec<Row>,
    rounds: usize,
    idle_percent: Option<f64>,
}

impl Table {
    /// Makes rows of samples, in the order in which the contenders first appear.
    pub fn new(samples: &[Sample], idle_percent: Option<f64>) -> Self {
        let mut contenders: Vec<Contender> = Vec::new();
        for sample in samples {
            if !contenders.contains(&sample.contender) {
                contenders.push(sample.contender);
            }
        }
        let of = |contender: &Contender| -> Vec<&Sample> {
            samples
                .iter()
                .filter(|s| s.contender == *contender)
                .collect()
        };
        let rounds = contenders.iter().map(|c| of(c).len()).max().unwrap_or(0);
        let mut rows: Vec<Row> = contenders.iter().map(|c| row(*c, &of(c))).collect();
        let natives = rows.iter().filter(|row| row.contender.is_native());
        let best = natives.map(|row| row.bits_per_second).reduce(f64::max);
        for row in &mut rows {
            row.share = best.map(|best| row.bits_per_second / best);
        }
        Self {
            rows,
            rounds,
            idle_percent,
        }
    }

    /// Its rows.
    pub fn rows(&self) -> &[Row] {
        &self.rows
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "TCP, one stream, cubic; the link between the nodes carries MTU-size frames only.\n\
             Medians of interleaved runs: {} of each row.\n",
            self.rounds
        )?;
        writeln!(
            f,
            "{:14}{:>8}{:>15}{:>7}{:>11}{:>10}{:>9}{:>22}",
            "",
            "Gbit/s",
            "min..max",
            "MB/s",
            "of native",
            "CPU-s/GB",
            "frame B",
            "ping p50 / p99 us"
        )?;
        for row in &self.rows {
            writeln!(f, "{row}")?;
        }
        if let Some(percent) = self.idle_percent {
            writeln!(f, "\nAn idle dataplane uses {percent:.2} % of a core.")?;
        }
        Ok(())
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let giga = |bits: f64| bits / 1e9;
        let (lowest, highest) = self.spread;
        let spread = format!("{:.2}..{:.2}", giga(lowest), giga(highest));
        let share = self
            .share
            .map_or_else(String::new, |s| format!("{:.0} %", 100.0 * s));
        let ping = self
            .ping
            .map_or_else(String::new, |(p50, p99)| format!("{p50} / {p99}"));
        write!(
            f,
            "{:14}{:>8.2}{spread:>15}{:>7.0}{share:>11}{:>10.2}{:>9}{ping:>22}",
            self.contender.label(),
            giga(self.bits_per_second),
            self.bits_per_second / 8e6,
            self.cpu_seconds_per_gigabyte,
            self.average_frame,
        )
    }
}

fn row(contender: Contender, samples: &[&Sample]) -> Row {
    let rates: Vec<f64> = samples.iter().map(|s| s.bits_per_second).collect();
    let costs = samples.iter().map(|s| s.cpu_seconds_per_gigabyte).collect();
    let mut frames: Vec<u64> = samples.iter().map(|s| s.average_frame).collect();
    frames.sort_unstable();
    let pings: Vec<u64> = samples
        .iter()
        .flat_map(|s| s.ping_microseconds.clone())
        .collect();
    Row {
        contender,
        spread: (
            rates.iter().copied().fold(f64::INFINITY, f64::min),
            rates.iter().copied().fold(0.0, f64::max),
        ),
        bits_per_second: median(rates),
        cpu_seconds_per_gigabyte: median(costs),
        average_frame: frames.get(frames.len() / 2).copied().unwrap_or(0),
        ping: percentiles(&pings),
        share: None,
    }
}

/// The middle value, or the mean of the two in the middle; 0 without any.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => 0.0,
        n if n % 2 == 1 => values[middle],
        _ => f64::midpoint(values[middle - 1], values[middle]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(contender: Contender, gigabits: f64) -> Sample {
        Sample {
            contender,
            round: 1,
            bits_per_second: gigabits * 1e9,
            retransmits: 0,
            cpu_seconds_per_gigabyte: 1.5,
            average_frame: 1514,
            ping_microseconds: vec![59, 61],
        }
    }

    #[test]
    fn a_row_is_the_median_of_its_rounds() {
        let samples = [
            sample(Contender::KernelVxlan, 6.0),
            sample(Contender::KernelNative, 8.0),
            sample(Contender::KernelVxlan, 4.0),
            sample(Contender::KernelNative, 9.0),
            sample(Contender::KernelVxlan, 5.0),
            sample(Contender::KernelNative, 10.0),
        ];
        let table = Table::new(&samples, Some(0.4));
        let [vxlan, native] = table.rows() else {
            panic!("{table:?}");
        };
        assert!((vxlan.bits_per_second - 5e9).abs() < 1.0);
        assert_eq!(vxlan.spread, (4e9, 6e9));
        assert!((vxlan.share.unwrap() - 5.0 / 9.0).abs() < 1e-9);
        assert!((native.share.unwrap() - 1.0).abs() < 1e-9);
        assert_eq!(vxlan.ping, Some((59, 61)));
    }

    #[test]
    fn the_table_fits_in_100_columns() {
        let samples = Contender::ALL.map(|contender| sample(contender, 123.456));
        let text = Table::new(&samples, Some(0.4)).to_string();
        assert!(text.lines().all(|line| line.len() <= 100), "{text}");
        assert_eq!(text.lines().count(), 11);
        assert!(text.contains(
            "kernel VXLAN    123.46 123.46..123.46  15432      100 %      1.50     1514"
        ));
    }

    #[test]
    fn the_median_of_an_even_count_is_between() {
        assert!((median(vec![4.0, 1.0, 2.0, 3.0]) - 2.5).abs() < 1e-9);
        assert!(median(Vec::new()).abs() < 1e-9);
    }
}
