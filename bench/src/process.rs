//! Background programs: started with a log, ended in order, killed when nobody holds them.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::netns::spawn;
use crate::{Error, Result};

/// Closing AF_XDP sockets waits for RCU grace periods.
const STOP_DEADLINE: Duration = Duration::from_secs(10);
/// Lines of a log that a report of what went wrong shows.
const TAIL: usize = 15;

/// A background program with a log. Dropping it kills it.
#[derive(Debug)]
pub(crate) struct Daemon {
    name: String,
    child: Option<Child>,
    log: PathBuf,
}

impl Daemon {
    /// Starts a command; its output is appended to `log`.
    ///
    /// # Errors
    /// When it cannot be started.
    pub(crate) fn start(name: &str, command: Command, log: PathBuf) -> Result<Self> {
        Ok(Self {
            name: name.to_owned(),
            child: Some(start(command, &log)?),
            log,
        })
    }

    /// Its process id, as long as it has not been stopped.
    pub(crate) fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// Fails once it has ended by itself, with the end of its log.
    pub(crate) fn check_alive(&mut self) -> Result<()> {
        let child = self.child.as_mut();
        match child.map(Child::try_wait) {
            Some(Ok(Some(status))) => Err(Error::Unexpected(format!(
                "{} ended with {status}\n{}",
                self.name,
                self.tail()
            ))),
            Some(Err(error)) => Err(Error::io(self.name.clone())(error)),
            Some(Ok(None)) | None => Ok(()),
        }
    }

    /// Sends a signal.
    pub(crate) fn signal(&self, signal: Signal) -> Result<()> {
        self.pid().map_or(Ok(()), |pid| send(pid, signal))
    }

    /// Ends it by SIGTERM.
    ///
    /// # Errors
    /// When it does not end, or not with success.
    pub(crate) fn stop(&mut self) -> Result<()> {
        self.child
            .take()
            .map_or(Ok(()), |child| stop(&self.name, child))
    }

    /// Waits for its end after it was asked by other means.
    ///
    /// # Errors
    /// As for [`Daemon::stop`].
    pub(crate) fn wait_end(&mut self) -> Result<()> {
        let child = self.child.take();
        child.map_or(Ok(()), |child| wait_end(&self.name, child))
    }

    /// The end of its log.
    pub(crate) fn tail(&self) -> String {
        format!("--- {}:\n{}\n", self.log.display(), tail(&self.log))
    }

    /// The whole log.
    pub(crate) fn log(&self) -> Result<String> {
        fs::read_to_string(&self.log).map_err(Error::io(self.log.display().to_string()))
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Starts a command; its output is appended to `log`.
///
/// # Errors
/// When it cannot be started.
pub(crate) fn start(mut command: Command, log: &Path) -> Result<Child> {
    let what = || log.display().to_string();
    let file = File::options().create(true).append(true).open(log);
    let file = file.map_err(Error::io(what()))?;
    let second = file.try_clone().map_err(Error::io(what()))?;
    command.stdout(file).stderr(second);
    spawn(&mut command)
}

/// Ends a program by SIGTERM.
///
/// # Errors
/// When it does not end (it is killed then), or not with success.
pub(crate) fn stop(name: &str, child: Child) -> Result<()> {
    send(child.id(), Signal::TERM)?;
    wait_end(name, child)
}

/// Sends a signal to a process.
///
/// # Errors
/// When there is no such process.
pub(crate) fn send(pid: u32, signal: Signal) -> Result<()> {
    let id = i32::try_from(pid).ok().and_then(Pid::from_raw);
    let id = id.ok_or_else(|| Error::Unexpected(format!("{pid} is no process id")))?;
    kill_process(id, signal).map_err(|errno| Error::io(format!("signal {pid}"))(errno.into()))
}

/// The last lines of a log; empty when there is none.
pub(crate) fn tail(log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(TAIL)..].join("\n")
}

fn wait_end(name: &str, mut child: Child) -> Result<()> {
    let deadline = Instant::now() + STOP_DEADLINE;
    let status: ExitStatus = loop {
        match child.try_wait().map_err(Error::io(name))? {
            Some(status) => break status,
            None if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(5)),
            None => {
                let _ = child.kill();
                let _ = child.wait();
                return Err(Error::Timeout {
                    what: format!("{name} ends when asked to"),
                    after: STOP_DEADLINE,
                    last: String::new(),
                });
            }
        }
    };
    if status.success() {
        Ok(())
    } else {
        Err(Error::Unexpected(format!("{name} ended with {status}")))
    }
}
