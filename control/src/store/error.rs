//! What may be wrong with the state's directory and files, each with its remedy.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::io::Errno;

use super::lines::SCHEMA;

/// The state cannot be loaded or saved.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A step on a file failed.
    #[error("cannot {step} {}: {source}; {remedy}", path.display())]
    Io {
        /// What was tried.
        step: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// Why not.
        source: io::Error,
        /// What to do.
        remedy: String,
    },
    /// Another process has locked the directory.
    #[error(
        "another podway-control keeps its state in {}; stop it, or give this one a --state-dir of \
         its own",
        .0.display()
    )]
    InUse(PathBuf),
    /// The file was written by a later release.
    #[error(
        "{} is of schema {schema}, and this program knows {SCHEMA}; install the release that wrote \
         it, or move it away to start empty",
        path.display()
    )]
    TooNew {
        /// The file.
        path: PathBuf,
        /// What it says.
        schema: u32,
    },
    /// The file does not say what was written. It is left as it is.
    #[error("the state file {} is {what}; {offer}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// In which line and how.
        what: String,
        /// What is left of the state, and the command that takes it up.
        offer: String,
    },
}

/// Makes an error of what the system says to `step`, a verb with what it is done to, on `path`.
pub(super) fn failed(step: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StoreError {
    let path = path.to_owned();
    move |source| StoreError::Io {
        step,
        remedy: remedy(&path, &source),
        path,
        source,
    }
}

fn remedy(path: &Path, error: &io::Error) -> String {
    match Errno::from_io_error(error) {
        Some(Errno::NOSPC | Errno::DQUOT) => "free space on its file system".to_owned(),
        Some(Errno::ROFS) => "its file system is read-only: mount it read-write, or name another \
                              directory with --state-dir"
            .to_owned(),
        Some(Errno::ACCESS | Errno::PERM) => forbidden(path),
        Some(Errno::IO) => "the disk fails: see dmesg, and name a directory on another with \
                            --state-dir"
            .to_owned(),
        _ => "look whether it is as it should be, or name another directory with --state-dir"
            .to_owned(),
    }
}

/// Whose what is in the way is. A file in a directory that may not be searched is not seen.
fn forbidden(path: &Path) -> String {
    let user = rustix::process::geteuid().as_raw();
    let mut seen = path
        .ancestors()
        .filter_map(|path| Some((path, fs::metadata(path).ok()?)));
    let whose = seen.next().map_or_else(String::new, |(path, metadata)| {
        format!(
            "{} is user {}'s with mode {:04o}, and ",
            path.display(),
            metadata.uid(),
            metadata.mode() & 0o7777
        )
    });
    format!(
        "{whose}podway-control runs as user {user}: give it to that user by chown, or name another \
         directory with --state-dir"
    )
}
