//! What workers spend their time on, as the protocol gives it.

use std::time::Instant;

use podway_proto::ErrorBody;
use podway_proto::perf::{Perf, Work, WorkerPerf};

use super::Supervisor;
use crate::counters::Sheet;
use crate::stages::Stages;
use crate::worker::{Command, Reply};

/// When it was begun, and what each worker had done until then.
#[derive(Debug)]
pub(super) struct Begun {
    at: Instant,
    before: Vec<Work>,
}

impl Begun {
    /// From the start on.
    pub(super) fn new(at: Instant) -> Self {
        let before = Vec::new();
        Self { at, before }
    }
}

impl Supervisor {
    /// What the workers did since the start, or [`Supervisor::begin_perf`].
    pub fn perf(&mut self) -> Perf {
        let sampled: Vec<_> = (0..)
            .take(self.workers.len())
            // One that is stuck has its counts all the same.
            .map(|worker| self.stages(worker, false).ok())
            .collect();
        let workers = (0..).zip(&self.workers).zip(sampled);
        let workers = workers.map(|((number, handle), sampled)| {
            let before = self.perf_begun.before.get(usize::from(number));
            WorkerPerf {
                worker: number,
                cpu: handle.cpu,
                work: work(&handle.sheet).since(before.unwrap_or(&Work::default())),
                sampled: sampled.map(|stages| stages.sampled()),
            }
        });
        Perf {
            seconds: self.perf_begun.at.elapsed().as_secs_f64(),
            workers: workers.collect(),
        }
    }

    /// Begins anew, at each worker that answers.
    ///
    /// # Errors
    /// When one does not answer: what it has measured is then of before, too.
    pub fn begin_perf(&mut self) -> Result<(), ErrorBody> {
        let mut done = Ok(());
        for worker in (0..).take(self.workers.len()) {
            done = done.and(self.stages(worker, true).map(drop));
        }
        self.perf_begun = Begun {
            at: Instant::now(),
            before: self.workers.iter().map(|w| work(&w.sheet)).collect(),
        };
        done
    }

    /// What a worker has measured so far; it may be told to begin anew.
    fn stages(&mut self, worker: u16, anew: bool) -> Result<Box<Stages>, ErrorBody> {
        match self.ask(worker, Command::Stages { anew })? {
            Reply::Stages(stages) => Ok(stages),
            other => Err(super::system(format!("a worker answered {other:?}"))),
        }
    }
}

fn work(sheet: &Sheet) -> Work {
    let (totals, messages) = (sheet.totals(), sheet.messages());
    Work {
        rounds: sheet.rounds.get(),
        bursts: sheet.bursts.get(),
        received: totals.received,
        sent: totals.sent,
        messages: messages.sent,
        joined: messages.joined,
        rx_calls: sheet.rx_calls.get(),
        tx_calls: sheet.tx_calls.get(),
        wait_calls: sheet.wait_calls.get(),
        busy_nanoseconds: sheet.busy_nanoseconds.get(),
    }
}
