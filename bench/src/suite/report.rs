//! All that was measured: a file for programs, a table for people.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::environment::Environment;
use super::measure::{Measure, Metric};
use super::rounds::{Measured, Sample};
use super::statistics::Interval;
use super::summary::{Ratio, Summary};
use super::target::targets;
use super::wire::Wire;
use crate::contender::Contender;
use crate::{Error, Result};

/// Number of the file's format. It changes when a reader of the old one would misunderstand.
const FORMAT: u32 = 1;

/// All that was measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// [`FORMAT`].
    format: u32,
    /// Where and with what.
    pub environment: Environment,
    /// Seconds of each transfer.
    pub seconds: u32,
    /// Version, mode and engine of each contender.
    pub engines: BTreeMap<Contender, String>,
    /// Ratios to the kernel's VXLAN device.
    pub ratios: Vec<Ratio>,
    /// Everything, sample by sample.
    pub samples: Vec<Sample>,
}

impl Report {
    /// Of what was measured here and now.
    pub fn new(environment: Environment, seconds: u32, measured: Measured) -> Self {
        Self {
            format: FORMAT,
            environment,
            seconds,
            engines: measured.engines,
            ratios: Summary(&measured.samples).ratios(),
            samples: measured.samples,
        }
    }

    /// Writes it as JSON.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write(&self, path: &Path) -> Result<()> {
        let what = path.display().to_string();
        let text = serde_json::to_vec_pretty(self).map_err(|e| Error::io(&what)(e.into()))?;
        fs::write(path, text).map_err(Error::io(what))
    }

    /// Reads what [`Report::write`] wrote.
    ///
    /// # Errors
    /// When it cannot be read, or is of another format.
    pub fn read(path: &Path) -> Result<Self> {
        let what = path.display().to_string();
        let text = fs::read_to_string(path).map_err(Error::io(&what))?;
        let report: Self = serde_json::from_str(&text)
            .map_err(|error| Error::Unexpected(format!("{what}: {error}")))?;
        if report.format == FORMAT {
            Ok(report)
        } else {
            Err(Error::Unexpected(format!(
                "{what} has format {}, and {FORMAT} is understood; measure anew",
                report.format
            )))
        }
    }

    fn cell(
        &self,
        f: &mut fmt::Formatter<'_>,
        wire: Wire,
        measure: Measure,
        contenders: &[Contender],
    ) -> fmt::Result {
        let summary = Summary(&self.samples);
        let headline = measure.headline();
        write!(f, "\n{measure:30}{:>12}{:>17}", headline.unit().0, "[95 %]")?;
        for metric in measure.beside() {
            write!(f, "{:>12}", metric.unit().0)?;
        }
        let reference = Contender::KernelVxlan;
        let compared = measure.compared().contains(&headline) && contenders.contains(&reference);
        if compared {
            write!(f, "{:>24}", format!("/ {reference} [95 %]"))?;
        }
        writeln!(f)?;
        for contender in contenders {
            write!(f, "{contender:30}")?;
            let (taken, refused) = summary.refusals(wire, measure, *contender);
            if let Some(figure) = summary.figure(wire, measure, *contender, headline) {
                let interval = figure.interval.map(|i| range(i, headline.unit().1));
                write!(
                    f,
                    "{:>12}{:>17}",
                    scaled(figure.median, headline),
                    interval.unwrap_or_default()
                )?;
                for metric in measure.beside() {
                    let beside = summary.figure(wire, measure, *contender, *metric);
                    let text = beside.map_or_else(String::new, |b| scaled(b.median, *metric));
                    write!(f, "{text:>12}")?;
                }
                let ratio = summary.ratio(wire, measure, headline, *contender, reference);
                if let Some(ratio) = ratio.filter(|_| compared && *contender != reference) {
                    write!(f, "{:>24}", with_interval(&ratio))?;
                }
            } else if refused.is_empty() {
                write!(f, "{:>12}", "-")?;
            }
            writeln!(f)?;
            let mut reasons = BTreeMap::<&str, usize>::new();
            for reason in &refused {
                *reasons.entry(reason).or_default() += 1;
            }
            for (reason, times) in reasons {
                writeln!(f, "    refused, {times} of {taken} rounds: {reason}")?;
            }
        }
        Ok(())
    }

    fn targets(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let summary = Summary(&self.samples);
        let mut heading = true;
        for target in targets() {
            let Some(ratio) = target.ratio(&summary) else {
                continue;
            };
            if std::mem::take(&mut heading) {
                writeln!(
                    f,
                    "\n== Targets\n\n{:82}{:>20}{:>25}{:>25}",
                    "", "ratio [95 %]", "floor", "goal"
                )?;
            }
            let name = format!(
                "{} / {}, {}, {}",
                target.contender,
                ratio.reference,
                target.measure,
                target.metric.unit().0
            );
            let verdict = |bound: f64| {
                let sign = if target.metric.more_is_better() {
                    ">="
                } else {
                    "<="
                };
                format!("{sign} {bound:.2} {}", target.verdict(&ratio, bound))
            };
            let place = match target.wire {
                Wire::True => "",
                Wire::Pinned => "pinned: ",
                _ => "virtual wire: ",
            };
            writeln!(
                f,
                "{:82}{:>20}{:>25}{:>25}",
                format!("{place}{name}"),
                with_interval(&ratio),
                verdict(target.floor),
                verdict(target.goal)
            )?;
        }
        Ok(())
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let here = &self.environment;
        let dirty = if here.dirty { ", with changes" } else { "" };
        writeln!(
            f,
            "Commit {}{dirty}; kernel {}; {} cores of {}, shared by nodes, pods, iperf3 and \
             contenders;\n{}; transfers of {} s. The machine's default congestion control is {}, \
             each row names its own.\n\nFigures are medians of interleaved rounds. A ratio is the \
             median of the ratios of each round. [95 %] is the\ninterval that 95 % of the medians \
             of resampled rounds fall into. A bound is reached when the whole interval is past \
             it.\n\n== Contenders\n",
            here.commit,
            here.kernel,
            here.cores,
            here.cpu,
            here.iperf3,
            self.seconds,
            here.default_congestion_control,
        )?;
        for (contender, engine) in &self.engines {
            writeln!(f, "{contender:23} {engine}")?;
        }
        let mut last = None;
        for ((wire, measure), contenders) in Summary(&self.samples).cells() {
            if last.replace(wire) != Some(wire) {
                writeln!(f, "\n== {wire}")?;
            }
            self.cell(f, wire, measure, &contenders)?;
        }
        self.targets(f)
    }
}

/// A figure in its unit for people.
pub(super) fn scaled(value: f64, metric: Metric) -> String {
    number(value / metric.unit().1)
}

fn number(value: f64) -> String {
    if value.abs() >= 1000.0 || value == 0.0 {
        format!("{value:.0}")
    } else if value.abs() >= 0.1 {
        format!("{value:.2}")
    } else {
        format!("{value:.4}")
    }
}

fn range(interval: Interval, unit: f64) -> String {
    format!(
        "[{}..{}]",
        number(interval.low / unit),
        number(interval.high / unit)
    )
}

/// A ratio and its interval.
pub(super) fn with_interval(ratio: &Ratio) -> String {
    let interval = ratio.interval.map(|interval| range(interval, 1.0));
    format!("{:.2} {}", ratio.median, interval.unwrap_or_default())
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::summary::tests::{refused, sample};
    use super::*;

    pub(in super::super) fn report(samples: Vec<Sample>) -> Report {
        let environment = Environment {
            time: 1,
            commit: "0123abc".to_owned(),
            dirty: true,
            kernel: "6.18".to_owned(),
            cpu: "Some CPU".to_owned(),
            cores: 2,
            default_congestion_control: "bbr".to_owned(),
            iperf3: "iperf 3.12".to_owned(),
        };
        let engine = "podway 0.1.0, adaptive wait; eth1: native XDP".to_owned();
        let measured = Measured {
            samples,
            engines: BTreeMap::from([(Contender::PodwayVxlan, engine)]),
        };
        Report::new(environment, 4, measured)
    }

    fn samples() -> Vec<Sample> {
        let mut samples = Vec::new();
        for (round, podway) in [(1, 5.0), (2, 6.0), (3, 5.5)] {
            samples.push(sample(Contender::KernelVxlan, round, 10.0));
            samples.push(sample(Contender::PodwayVxlan, round, podway));
            samples.push(refused(Contender::PodwayNative, round, "a lie"));
        }
        samples
    }

    #[test]
    fn the_table_says_where_with_what_and_how_sure() {
        let text = report(samples()).to_string();
        for part in [
            "Commit 0123abc, with changes; kernel 6.18; 2 cores of Some CPU",
            "Podway VXLAN            podway 0.1.0, adaptive wait",
            "TCP, 1 stream, cubic",
            "5.50     [5.00..6.00]",
            "0.55 [0.50..0.60]",
            "refused, 3 of 3 rounds: a lie",
            ">= 0.70 not reached",
        ] {
            assert!(text.contains(part), "{part} is missing in\n{text}");
        }
    }

    #[test]
    fn a_refused_figure_is_never_printed() {
        let text = report(samples()).to_string();
        let line = text.lines().find(|line| line.starts_with("Podway native"));
        assert_eq!(line.unwrap().trim(), "Podway native");
    }

    #[test]
    fn a_file_gives_back_what_was_written() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.json");
        // Of values whose ratios are short: parsing may change the last bit of others.
        let samples = [10.0, 5.0].map(|gigabits| sample(Contender::KernelVxlan, 1, gigabits));
        let report = report(samples.into());
        report.write(&path).unwrap();
        assert_eq!(Report::read(&path).unwrap(), report);

        let text = fs::read_to_string(&path).unwrap();
        fs::write(&path, text.replace("\"format\": 1", "\"format\": 9")).unwrap();
        let error = Report::read(&path).unwrap_err().to_string();
        assert!(error.contains("format 9, and 1 is understood"), "{error}");
    }
}
