#![allow(
    unsafe_code,
    reason = "ptrace has no safe interface; each block states its invariant"
)]
//! One thread of another process, stopped while the others go on: what a worker looks like that hangs.

use std::fs;
use std::io;
use std::time::Duration;

use crate::{Error, Result};

/// A thread that is stopped as long as this is held, by the thread that holds it (ptrace(2)).
#[derive(Debug)]
pub struct StuckThread {
    tid: libc::pid_t,
}

impl StuckThread {
    /// Stops the thread of a process that has a name.
    ///
    /// # Errors
    /// When there is none, or it may not be stopped.
    pub fn stop(pid: u32, name: &str) -> Result<Self> {
        let tasks = format!("/proc/{pid}/task");
        let missing = || Error::Unexpected(format!("process {pid} has no thread {name}"));
        let entries = fs::read_dir(&tasks).map_err(Error::io(tasks))?;
        let task = entries.flatten().find(|entry| {
            fs::read_to_string(entry.path().join("comm")).is_ok_and(|comm| comm.trim() == name)
        });
        let tid = task.ok_or_else(missing)?.file_name();
        let tid = tid.to_string_lossy().parse().map_err(|_| missing())?;
        let stuck = Self { tid };
        stuck.ask(libc::PTRACE_SEIZE, "seize")?;
        // From here on dropping it lets the thread go.
        stuck.ask(libc::PTRACE_INTERRUPT, "interrupt")?;
        let mut status = 0;
        // SAFETY: waits for one thread and writes to `status`.
        let waited = unsafe { libc::waitpid(tid, &raw mut status, libc::__WALL) };
        if waited != tid {
            return Err(Error::io("wait for the thread to stop")(
                io::Error::last_os_error(),
            ));
        }
        Ok(stuck)
    }

    fn ask(&self, request: libc::c_uint, what: &str) -> Result<()> {
        let none = std::ptr::null_mut::<libc::c_void>();
        // SAFETY: these requests take no memory.
        let result = unsafe { libc::ptrace(request, self.tid, none, none) };
        if result == 0 {
            return Ok(());
        }
        Err(Error::io(format!("{what} the thread"))(
            io::Error::last_os_error(),
        ))
    }
}

impl Drop for StuckThread {
    fn drop(&mut self) {
        if self.ask(libc::PTRACE_DETACH, "release").is_ok() {
            return;
        }
        // It is ending. As long as nobody has waited for it, its process is not gone.
        let options = libc::__WALL | libc::WNOHANG;
        for _ in 0..100 {
            // SAFETY: looks after one thread and writes nothing.
            let waited = unsafe { libc::waitpid(self.tid, std::ptr::null_mut(), options) };
            if waited != 0 {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}
