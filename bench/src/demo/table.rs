//! Samples to rows to text.

use std::fmt;

use crate::contender::Contender;
use crate::suite::{Figure, Measure, Metric, Sample, Summary, Wire};

/// One contender over all rounds.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// Who was in charge.
    pub contender: Contender,
    /// Payload bits per second.
    pub bits_per_second: Figure,
    /// Median of the CPU-seconds per gigabyte.
    pub cpu_seconds_per_gigabyte: Option<f64>,
    /// Median of the average frame sizes on the uplink, in bytes.
    pub average_frame: Option<f64>,
    /// Medians of the median and of the 99th percentile of ping's round-trip times, in
    /// microseconds.
    pub ping: Option<(f64, f64)>,
    /// CPU use of its idle processes in percent of a core; `None` where it has none.
    pub idle_percent: Option<f64>,
    /// Share of the best native row's median; `None` when there is no native row.
    pub share: Option<f64>,
}

/// The article's table.
#[derive(Debug, Clone, PartialEq)]
pub struct Table {
    rows: Vec<Row>,
    rounds: u32,
}

impl Table {
    /// Makes rows of samples, in the order in which the contenders first appear.
    pub fn new(samples: &[Sample]) -> Self {
        let summary = Summary(samples);
        let cells = summary.cells();
        let transfers = cells.iter().find(|((_, m), _)| *m == Measure::TCP);
        let contenders = transfers.map_or(&[][..], |(_, contenders)| contenders);
        let mut rows: Vec<Row> = contenders
            .iter()
            .filter_map(|contender| row(&summary, *contender))
            .collect();
        let natives = rows
            .iter()
            .filter(|row| row.contender.has_pods() && row.contender.is_native());
        let best = natives
            .map(|row| row.bits_per_second.median)
            .reduce(f64::max);
        for row in &mut rows {
            row.share = best.map(|best| row.bits_per_second.median / best);
        }
        Self {
            rows,
            rounds: samples.iter().map(|s| s.round).max().unwrap_or(0),
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
        let idle = self.rows.iter().filter_map(|row| row.idle_percent);
        if let Some(percent) = idle.reduce(f64::max) {
            writeln!(
                f,
                "\nTwo idle nodes with Podway use {percent:.2} % of a core."
            )?;
        }
        Ok(())
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let giga = |bits: f64| bits / 1e9;
        let Figure { median, range, .. } = self.bits_per_second;
        let spread = format!("{:.2}..{:.2}", giga(range.low), giga(range.high));
        let share = self
            .share
            .map_or_else(String::new, |s| format!("{:.0} %", 100.0 * s));
        let ping = self
            .ping
            .map_or_else(String::new, |(p50, p99)| format!("{p50:.0} / {p99:.0}"));
        write!(
            f,
            "{:14}{:>8.2}{spread:>15}{:>7.0}{share:>11}{:>10.2}{:>9.0}{ping:>22}",
            self.contender.label(),
            giga(median),
            median / 8e6,
            self.cpu_seconds_per_gigabyte.unwrap_or_default(),
            self.average_frame.unwrap_or_default(),
        )
    }
}

fn row(summary: &Summary<'_>, contender: Contender) -> Option<Row> {
    let of = |measure, metric| summary.figure(Wire::True, measure, contender, metric);
    let median = |measure, metric| of(measure, metric).map(|figure| figure.median);
    Some(Row {
        contender,
        bits_per_second: of(Measure::TCP, Metric::BitsPerSecond)?,
        cpu_seconds_per_gigabyte: median(Measure::TCP, Metric::CpuSecondsPerGigabyte),
        average_frame: median(Measure::TCP, Metric::AverageFrame),
        ping: median(Measure::Ping, Metric::RoundTripP50)
            .zip(median(Measure::Ping, Metric::RoundTripP99)),
        idle_percent: median(Measure::Idle, Metric::IdlePercent),
        share: None,
    })
}

#[cfg(test)]
mod tests {
    use super::super::ROWS;
    use super::*;
    use crate::suite::{Outcome, Values};

    fn samples(contender: Contender, round: u32, gigabits: f64) -> Vec<Sample> {
        let sample = |measure, values: &[(Metric, f64)]| Sample {
            wire: Wire::True,
            measure,
            contender,
            round,
            outcome: Outcome::Values(Values::from_iter(values.iter().copied())),
        };
        vec![
            sample(
                Measure::TCP,
                &[
                    (Metric::BitsPerSecond, gigabits * 1e9),
                    (Metric::CpuSecondsPerGigabyte, 1.5),
                    (Metric::AverageFrame, 1514.0),
                ],
            ),
            sample(
                Measure::Ping,
                &[(Metric::RoundTripP50, 59.0), (Metric::RoundTripP99, 61.0)],
            ),
            sample(Measure::Idle, &[(Metric::IdlePercent, 0.4)]),
        ]
    }

    #[test]
    fn a_row_is_the_median_of_its_rounds() {
        let rounds = [(6.0, 8.0), (4.0, 9.0), (5.0, 10.0)];
        let samples: Vec<Sample> = (1..)
            .zip(rounds)
            .flat_map(|(round, (vxlan, native))| {
                let mut both = samples(Contender::KernelVxlan, round, vxlan);
                both.extend(samples(Contender::KernelNative, round, native));
                both
            })
            .collect();
        let table = Table::new(&samples);
        let [vxlan, native] = table.rows() else {
            panic!("{table:?}");
        };
        assert!((vxlan.bits_per_second.median - 5e9).abs() < 1.0);
        let range = vxlan.bits_per_second.range;
        assert_eq!((range.low, range.high), (4e9, 6e9));
        assert!((vxlan.share.unwrap() - 5.0 / 9.0).abs() < 1e-9);
        assert!((native.share.unwrap() - 1.0).abs() < 1e-9);
        assert_eq!(vxlan.ping, Some((59.0, 61.0)));
    }

    #[test]
    fn the_table_fits_in_100_columns() {
        let samples: Vec<Sample> = ROWS
            .into_iter()
            .flat_map(|contender| samples(contender, 1, 123.456))
            .collect();
        let text = Table::new(&samples).to_string();
        assert!(text.lines().all(|line| line.len() <= 100), "{text}");
        assert_eq!(text.lines().count(), 11);
        assert!(text.contains(
            "kernel VXLAN    123.46 123.46..123.46  15432      100 %      1.50     1514"
        ));
    }
}
