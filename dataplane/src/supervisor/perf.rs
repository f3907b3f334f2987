//! What workers spend their time on, as the protocol gives it.

use std::time::Instant;

use podway_proto::ErrorBody;
use podway_proto::perf::{Perf, Work, WorkerPerf};

use super::Supervisor;
use crate::counters::Sheet;
use crate::stages::Measured;
use crate::worker::{Command, Reply};

/// When it was begun, what each worker had done until then, and what it has measured since.
#[derive(Debug)]
pub(super) struct Begun {
    at: Instant,
    before: Vec<Work>,
    measured: Vec<Measured>,
}

impl Begun {
    /// Of workers that have just been started.
    pub(super) fn at_start(workers: usize) -> Self {
        Self::new(vec![Work::default(); workers])
    }

    /// From now on, of workers that have done so much before.
    fn new(before: Vec<Work>) -> Self {
        Self {
            at: Instant::now(),
            measured: before.iter().map(|_| Measured::default()).collect(),
            before,
        }
    }

    /// Adds what a worker has given.
    pub(super) fn add(&mut self, worker: u16, measured: &Measured) {
        if let Some(sum) = self.measured.get_mut(usize::from(worker)) {
            sum.add(measured);
        }
    }
}

impl Supervisor {
    /// What the workers did since the start, or [`Supervisor::begin_perf`].
    pub fn perf(&mut self) -> Perf {
        let sampled: Vec<_> = (0..)
            .take(self.workers.len())
            // One that is stuck has its counts all the same.
            .map(|worker| self.measure(worker).ok().map(Measured::sampled))
            .collect();
        let workers = (0..).zip(&self.workers).zip(sampled);
        let workers = workers.zip(&self.perf_begun.before);
        let workers = workers.map(|(((number, handle), sampled), before)| WorkerPerf {
            worker: number,
            cpu: handle.cpu,
            work: work(&handle.sheet).since(before),
            sampled,
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
            done = done.and(self.measure(worker).map(drop));
        }
        self.perf_begun = Begun::new(self.workers.iter().map(|w| work(&w.sheet)).collect());
        done
    }

    /// Takes what a worker has measured since it was asked last; all since it was begun.
    fn measure(&mut self, worker: u16) -> Result<&Measured, ErrorBody> {
        match self.ask(worker, Command::Measured(Box::default()))? {
            Reply::Measured(measured) => self.perf_begun.add(worker, &measured),
            other => return Err(super::system(format!("a worker answered {other:?}"))),
        }
        let sum = self.perf_begun.measured.get(usize::from(worker));
        sum.ok_or_else(|| super::system(format!("there is no worker {worker}")))
    }
}

fn work(sheet: &Sheet) -> Work {
    let (totals, messages) = (sheet.totals(), sheet.messages());
    Work {
        rounds: sheet.rounds.get(),
        bursts: sheet.burst_sizes().iter().sum(),
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
