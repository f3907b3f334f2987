//! What can go wrong on the test network.

use std::io;
use std::time::Duration;

/// Shorthand for results of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// Why a step of a test or of the demo failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A command could not be started or its pipes broke.
    #[error("{what}: {source}")]
    Io {
        /// What was being done.
        what: String,
        /// The system's word on it.
        source: io::Error,
    },
    /// A command ended with an error.
    #[error("`{command}` ended with {status}: {stderr}")]
    Command {
        /// The command line.
        command: String,
        /// Its exit status.
        status: std::process::ExitStatus,
        /// What it wrote to standard error, or to standard output if that was empty.
        stderr: String,
    },
    /// Something did not come true in time.
    #[error("{what}: not within {} s{}", .after.as_secs_f32(), suffix(.last))]
    Timeout {
        /// What was waited for.
        what: String,
        /// For how long.
        after: Duration,
        /// What was seen last; may be empty.
        last: String,
    },
    /// A tool answered in a form that is not understood, or with values that must not be.
    #[error("{0}")]
    Unexpected(String),
    /// A BPF program could not be loaded, or its maps not be read.
    #[error("BPF: {0:#}")]
    Bpf(#[from] libbpf_rs::Error),
    /// A signal asked the process to end; the network is being removed.
    #[error("interrupted")]
    Interrupted,
}

fn suffix(last: &str) -> String {
    if last.is_empty() {
        String::new()
    } else {
        format!("; last seen: {last}")
    }
}

impl Error {
    /// An [`Error::Io`] that says what was being done.
    pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }
}
