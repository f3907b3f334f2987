//! What is told while measuring.

use std::io::{self, Write};
use std::time::Instant;

use super::measure::Outcome;
use super::report::scaled;
use super::rounds::{Rounds, Sample};
use crate::{Error, Result};

/// Lines with the time since the start.
#[derive(Debug)]
pub struct Progress<'o, O: Write> {
    begin: Instant,
    out: &'o mut O,
}

impl<'o, O: Write> Progress<'o, O> {
    /// Starts the clock.
    pub fn new(out: &'o mut O) -> Self {
        Self {
            begin: Instant::now(),
            out,
        }
    }

    /// Tells a line.
    ///
    /// # Errors
    /// As [`Progress::print`].
    pub fn say(&mut self, text: &str) -> Result<()> {
        let seconds = self.begin.elapsed().as_secs_f32();
        self.print(&format!("[{seconds:6.1} s] {text}\n"))
    }

    /// Tells a sample.
    ///
    /// # Errors
    /// As [`Progress::print`].
    pub fn sample(&mut self, rounds: &Rounds, sample: &Sample) -> Result<()> {
        let headline = sample.measure.headline();
        let result = match &sample.outcome {
            Outcome::Refused(reason) => format!("refused: {reason}"),
            outcome => outcome.value(headline).map_or_else(
                || "-".to_owned(),
                |value| format!("{} {}", scaled(value, headline), headline.unit().0),
            ),
        };
        self.say(&format!(
            "round {} of {}: {:23} {:22} {result}",
            sample.round, rounds.rounds, sample.contender, sample.measure
        ))
    }

    /// Prints text as it is.
    ///
    /// # Errors
    /// [`Error::Interrupted`] when nobody listens any more: measuring on would be in vain.
    pub fn print(&mut self, text: &str) -> Result<()> {
        let written = self.out.write_all(text.as_bytes());
        written
            .and_then(|()| self.out.flush())
            .map_err(|error| match error.kind() {
                io::ErrorKind::BrokenPipe => Error::Interrupted,
                _ => Error::io("print")(error),
            })
    }
}
