//! What `podway capture`, `podway flows` and `podway trace live` have in common: a watch that is read
//! until it is over.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use podway_proto::dataplane::Status;
use podway_proto::watch::{WatchSpec, Watched};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::Failure;
use crate::watch::{Reach, Watch};

/// How long to wait where nothing has come.
const PAUSE: Duration = Duration::from_millis(20);

/// A watch that is armed until its limit, for some time, or until SIGINT or SIGTERM.
#[derive(Debug)]
pub(super) struct Stream {
    watch: Watch,
    stop: Arc<AtomicBool>,
    until: Option<Instant>,
    ended: bool,
}

impl Stream {
    /// Arms a watch.
    pub(super) fn begin(
        reach: &Reach,
        spec: WatchSpec,
        seconds: Option<u64>,
    ) -> Result<Self, Failure> {
        let stop = Arc::new(AtomicBool::new(false));
        for signal in [libc::SIGINT, libc::SIGTERM] {
            signal_hook::flag::register(signal, Arc::clone(&stop))?;
        }
        let watch = Watch::begin(reach, spec)?;
        let until =
            seconds.and_then(|seconds| Instant::now().checked_add(Duration::from_secs(seconds)));
        Ok(Self {
            watch,
            stop,
            until,
            ended: false,
        })
    }

    /// What the dataplane is.
    pub(super) fn status(&mut self) -> Result<Status, Failure> {
        Ok(self.watch.status()?)
    }

    /// Records that found no room.
    pub(super) fn lost(&self) -> u64 {
        self.watch.lost()
    }

    /// The next records, waiting for them; `None` when there are no more, or nobody reads standard
    /// output any more.
    pub(super) fn next(&mut self) -> Result<Option<Watched>, Failure> {
        loop {
            match self.read()? {
                Some(watched) if watched.records.is_empty() => {}
                other => return Ok(other),
            }
        }
    }

    /// What has come, or nothing after a little while; `None` when there is no more, or nobody reads
    /// standard output any more.
    pub(super) fn read(&mut self) -> Result<Option<Watched>, Failure> {
        let is_over = self.until.is_some_and(|until| Instant::now() >= until);
        if !self.ended && (is_over || self.stop.load(Relaxed)) {
            // What was recorded until now comes yet.
            self.watch.end()?;
            self.ended = true;
        }
        let watched = self.watch.read()?;
        let is_end = watched.done || (watched.records.is_empty() && nobody_reads());
        Ok((!is_end).then_some(watched))
    }
}

/// Waits a little for the reader of standard output to go away; whether it has. An interrupted system
/// call is no matter: it was a signal.
fn nobody_reads() -> bool {
    let stdout = io::stdout();
    // Without events: errors alone are told. A pipe has one when its other end is closed.
    let mut fds = [PollFd::new(&stdout, PollFlags::empty())];
    let pause = Timespec {
        tv_sec: 0,
        tv_nsec: PAUSE.as_nanos().try_into().unwrap_or(0),
    };
    let told = poll(&mut fds, Some(&pause));
    told.is_ok() && fds.iter().any(|fd| fd.revents().contains(PollFlags::ERR))
}
