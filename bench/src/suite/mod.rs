//! The suite: every contender on every wire, interleaved, with honest figures.
//!
//! - [`plan`](fn@plan): what a size measures: wires, contenders, measures.
//! - [`Wire`]: what joins the nodes; [`Measure`]: what is measured; [`Rounds`]: the interleaving.
//! - [`Summary`]: samples to figures and ratios of paired rounds, with intervals.
//! - [`Report`]: the file and the table; [`chart`]: the picture; [`Comparison`]: two reports.
//!
//! A measurement whose wire, books or pacing was not as it should be is refused with its reason
//! ([`Outcome::Refused`]), and is a figure nowhere.

pub mod chart;
mod compare;
mod environment;
mod measure;
mod packets;
mod plan;
mod progress;
mod report;
mod rounds;
mod statistics;
mod summary;
mod target;
mod wire;

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

pub use compare::{Change, Comparison};
pub use environment::Environment;
pub use measure::{Measure, Metric, Outcome, Values, ends};
pub use packets::{Direction, Load};
pub use plan::{Size, plan};
pub use progress::Progress;
pub use report::Report;
pub use rounds::{Measured, Rounds, Sample};
pub use statistics::{Interval, interval_of_median, median};
pub use summary::{Figure, Ratio, Summary};
pub use target::{Target, Verdict, targets};
pub use wire::Wire;

use crate::{Error, Result};

/// A run of the suite.
#[derive(Debug, Clone)]
pub struct Suite {
    /// What to measure.
    pub sections: Vec<Rounds>,
    /// First part of the names of the files that are written.
    pub name: String,
    /// Where they are written; made if it is not there.
    pub directory: PathBuf,
}

impl Suite {
    /// Measures, prints the table to `out`, and writes it beside JSON and picture.
    ///
    /// # Errors
    /// When a program is missing, a network cannot be built, or a file cannot be written.
    pub fn run(&self, out: &mut impl Write) -> Result<()> {
        for section in &self.sections {
            let mut contenders = section.contenders.iter();
            contenders.try_for_each(|contender| contender.check_installed())?;
        }
        fs::create_dir_all(&self.directory)
            .map_err(Error::io(self.directory.display().to_string()))?;
        let environment = Environment::here();
        let mut progress = Progress::new(out);
        let minutes = self
            .sections
            .iter()
            .map(Rounds::estimate)
            .sum::<u64>()
            .div_ceil(60);
        progress.say(&format!(
            "about {minutes} minutes; Ctrl-C removes everything"
        ))?;
        let mut all = Measured::default();
        for section in &self.sections {
            let (cluster, measured) = section.run(|sample| progress.sample(section, sample))?;
            all.samples.extend(measured.samples);
            all.engines.extend(measured.engines);
            let left = cluster.remove();
            if !left.is_empty() {
                return Err(Error::Unexpected(left.join("; ")));
            }
        }
        let seconds = self.sections.first().map_or(0, |section| section.seconds);
        let report = Report::new(environment, seconds, all);
        let text = report.to_string();
        progress.print(&format!("\n{text}\n"))?;
        report.write(&self.file("json"))?;
        let table = self.file("txt");
        fs::write(&table, text).map_err(Error::io(table.display().to_string()))?;
        chart::write(&report, &self.file("svg"), &self.file("png"))?;
        progress.say(&format!(
            "written to {} with .txt, .json, .svg and .png",
            Path::new(&self.directory).join(&self.name).display()
        ))
    }

    fn file(&self, extension: &str) -> PathBuf {
        self.directory.join(format!("{}.{extension}", self.name))
    }
}
