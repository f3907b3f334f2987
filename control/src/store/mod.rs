//! The desired state on the disk: one file of checksummed lines, to which each group of changes
//! adds one.
//!
//! A line is on the disk before its changes are acknowledged, so that a change costs the same at a
//! thousand routes and at a million, and what was acknowledged survives a power cut. When as much
//! was added as the state itself takes, the file is written anew beside the old one, forced to the
//! disk and renamed over it; the old one is kept as one generation. There is at every moment one
//! whole file. `lines` has the form, `restore` what is done about a damaged one.

mod error;
mod lines;
mod restore;
mod schema1;
#[cfg(test)]
mod tests;

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

pub use error::StoreError;
use error::failed;
use lines::{Chain, Content, Head, SCHEMA};

use crate::entry::Entry;
use crate::state::Desired;

const FILE: &str = "state.json";
/// The file that was in force before [`FILE`].
const PREVIOUS: &str = "state.json.previous";
const TEMPORARY: &str = "state.json.new";
/// A second name of a file that is on its way to another.
const LINK: &str = "state.json.link";
const LOCK: &str = "lock";

/// The file is not written anew before so many bytes were added.
const LEAST_ADDED: u64 = 256 << 10;
/// A new file is handed to the kernel in parts of this size.
const PART: usize = 1 << 20;
/// How long a directory that is in use is waited for: a daemon that was killed may just be ending.
const BUSY_RETRY: Duration = Duration::from_secs(1);
const BUSY_PAUSE: Duration = Duration::from_millis(10);

/// The state's directory. While this lives no other process has it.
#[derive(Debug)]
pub struct Store {
    directory: PathBuf,
    /// The generation of the newest file.
    generation: u64,
    /// The file that lines are added to; `None` if the next change needs a new one.
    log: Option<Log>,
    /// Whether the file may say changes that could not be saved.
    ahead: bool,
    /// Held while the process lives; the kernel lets go of it however the process ends.
    _lock: File,
}

/// A whole file.
#[derive(Debug)]
struct Log {
    file: File,
    chain: Chain,
    length: u64,
    /// The length at which a new file is written.
    due: u64,
}

impl Store {
    /// Takes up the directory, which is made if it is missing, and the state in it, which is empty
    /// if none was ever saved. A file that has grown, and one of schema 1, is written anew.
    ///
    /// # Errors
    /// When another process has the directory, or a file cannot be used; it is left as it is.
    pub fn open(directory: &Path) -> Result<(Self, Desired), StoreError> {
        let mut store = Self::lock(directory)?;
        let Some(content) = store.read(FILE)? else {
            if store.path(PREVIOUS).exists() {
                return Err(store.damaged("missing, and the one before it is there".to_owned()));
            }
            return Ok((store, Desired::default()));
        };
        let head = content.head;
        store.generation = head.map_or(0, |head| head.generation);
        if let Some(torn) = content.torn {
            tracing::warn!(
                "line {torn} of {} was not written to its end; nobody was told that it was, and \
                 it is left out",
                store.path(FILE).display()
            );
        }
        let (end, added) = (content.end, !content.changes.is_empty());
        let desired = match content.state() {
            Ok(desired) => desired,
            Err(flaw) => {
                return Err(store.damaged(format!("damaged in line {}: {}", flaw.line, flaw.what)));
            }
        };
        if let Some(chain) = end {
            store.log = Some(store.log_of(chain)?);
        }
        if (added || store.log.is_none())
            && let Err(error) = store.write_anew(&desired)
        {
            tracing::warn!("{error}; going on with the file as it is");
        }
        Ok((store, desired))
    }

    /// Makes `directory` this process's own.
    fn lock(directory: &Path) -> Result<Self, StoreError> {
        make(directory).map_err(failed("make the directory", directory))?;
        let path = directory.join(LOCK);
        let mut options = OpenOptions::new();
        let options = options.write(true).create(true).truncate(false).mode(0o640);
        let lock = options.open(&path).map_err(failed("open", &path))?;
        let deadline = Instant::now() + BUSY_RETRY;
        loop {
            match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => break,
                Err(Errno::WOULDBLOCK | Errno::INTR) if Instant::now() < deadline => {
                    std::thread::sleep(BUSY_PAUSE);
                }
                Err(Errno::WOULDBLOCK) => return Err(StoreError::InUse(directory.to_owned())),
                Err(error) => return Err(failed("lock", &path)(error.into())),
            }
        }
        Ok(Self {
            directory: directory.to_owned(),
            generation: 0,
            log: None,
            ahead: false,
            _lock: lock,
        })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// What a file says; `None` if there is none.
    fn read(&self, name: &str) -> Result<Option<Content>, StoreError> {
        let path = self.path(name);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed("read", &path)(error)),
        };
        let content = if lines::are_in(&bytes) {
            lines::read(&bytes)
        } else {
            schema1::read(&bytes)
        };
        match content.head {
            Some(Head { schema, .. }) if schema > SCHEMA => {
                Err(StoreError::TooNew { path, schema })
            }
            _ => Ok(Some(content)),
        }
    }

    /// The file as it is, to add to. A process that was killed may have left it, or its name, in
    /// memory only.
    fn log_of(&self, chain: Chain) -> Result<Log, StoreError> {
        let path = self.path(FILE);
        let file = OpenOptions::new().append(true).open(&path);
        let file = file.map_err(failed("open", &path))?;
        file.sync_all().map_err(failed("write to", &path))?;
        self.sync_directory()?;
        let length = file.metadata().map_err(failed("look at", &path))?.len();
        Ok(Log::new(file, chain, length))
    }

    /// Saves a group of changes, which `state` has already; they are on the disk when this returns.
    ///
    /// # Errors
    /// When a step fails; the file may say the changes until [`Self::take_back`].
    pub fn save(&mut self, changes: &[Entry], state: &Desired) -> Result<(), StoreError> {
        let path = self.path(FILE);
        // What is added to a file that somebody has moved away is not found again.
        let Some(log) = self.log.as_mut().filter(|log| log.is_at(&path)) else {
            let before = self.generation;
            let written = self.write_anew(state);
            if written.is_err() && self.generation != before {
                // The new file has its name; that this lasts is not sure. The next one, which does
                // not say the changes, takes its place.
                self.generation = before;
                self.ahead = true;
            }
            return written;
        };
        let (mut chain, mut line) = (log.chain, Vec::new());
        chain.put(&mut line, changes);
        let written = log.file.write_all(&line);
        let whole = written.is_ok();
        let Err(error) = written.and_then(|()| log.file.sync_data()) else {
            log.chain = chain;
            log.length += line.len() as u64;
            return Ok(());
        };
        // Nobody is to find the part that was written. After a sync that failed the kernel may take
        // pages for written that are not: such a file is not to be trusted.
        let shortened = log
            .file
            .set_len(log.length)
            .and_then(|()| log.file.sync_data());
        self.ahead |= shortened.is_err();
        if whole || shortened.is_err() {
            self.log = None;
        }
        Err(failed("write to", &path)(error))
    }

    /// After changes that could not be saved and were taken back: sees to it that the file does not
    /// say them, since it is read at the next start. `state` is without them.
    pub fn take_back(&mut self, state: &Desired) {
        // The previous file stays that of what was acknowledged.
        if self.ahead
            && let Err(error) = self.replace(state, None)
        {
            tracing::error!("{error}; the state file may say what was refused");
        }
    }

    /// Writes a new file when the old one has grown enough. `state` is what it says.
    pub fn tidy(&mut self, state: &Desired) {
        let due = self.log.as_ref().is_some_and(|log| log.length >= log.due);
        if !due {
            return;
        }
        let begin = Instant::now();
        match self.write_anew(state) {
            Ok(()) => tracing::info!(took = ?begin.elapsed(), "wrote a new state file"),
            Err(error) => {
                tracing::warn!("{error}; going on with the old file");
                if let Some(log) = &mut self.log {
                    log.due = 2 * log.length;
                }
            }
        }
    }

    /// Writes a new file and keeps the old one as the previous one. When this fails the old file is
    /// in force.
    fn write_anew(&mut self, state: &Desired) -> Result<(), StoreError> {
        self.replace(state, Some(&self.path(PREVIOUS)))
    }

    /// Writes a new file and gives the old one, if there is one, the name `kept`.
    fn replace(&mut self, state: &Desired, kept: Option<&Path>) -> Result<(), StoreError> {
        let (path, temporary) = (self.path(FILE), self.path(TEMPORARY));
        let generation = self.generation + 1;
        let written = write(&temporary, state, generation);
        if written.is_err() {
            // What is left of it has no use, and may be what fills the disk.
            let _ = fs::remove_file(&temporary);
        }
        let (file, chain, length) = written.map_err(failed("write", &temporary))?;
        if let Some(kept) = kept {
            self.keep(&path, kept)?;
        }
        fs::rename(&temporary, &path).map_err(failed("replace", &path))?;
        self.generation = generation;
        self.ahead = false;
        self.log = None;
        self.sync_directory()?;
        self.log = Some(Log::new(file, chain, length));
        Ok(())
    }

    /// Gives the file at `path` another name in place of the file that had it. It has both until a
    /// new one takes its own: there is no moment without a file.
    fn keep(&self, path: &Path, kept: &Path) -> Result<(), StoreError> {
        let link = self.path(LINK);
        // Of an earlier attempt.
        let _ = fs::remove_file(&link);
        match fs::hard_link(path, &link) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            result => result.map_err(failed("keep", path))?,
        }
        fs::rename(&link, kept).map_err(failed("replace", kept))?;
        // Both may be names of one file already; then nothing was renamed.
        let _ = fs::remove_file(&link);
        Ok(())
    }

    fn sync_directory(&self) -> Result<(), StoreError> {
        sync_names(&self.directory).map_err(failed("write to", &self.directory))
    }
}

/// Makes a directory, and those that it is in, if they are missing.
fn make(directory: &Path) -> io::Result<()> {
    let missing = directory.ancestors().take_while(|path| !path.exists());
    let missing: Vec<&Path> = missing.collect();
    let mut builder = DirBuilder::new();
    builder.recursive(true).mode(0o750).create(directory)?;
    for made in missing {
        match made.parent() {
            Some(parent) if parent != Path::new("") => sync_names(parent)?,
            _ => sync_names(Path::new("."))?,
        }
    }
    Ok(())
}

/// Forces the names in a directory to the disk. What is in a file that has none is lost.
fn sync_names(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

impl Log {
    fn new(file: File, chain: Chain, length: u64) -> Self {
        Self {
            file,
            chain,
            length,
            due: length + length.max(LEAST_ADDED),
        }
    }

    /// Whether this is the file at `path`.
    fn is_at(&self, path: &Path) -> bool {
        let same = self.file.metadata().and_then(|ours| {
            let there = fs::metadata(path)?;
            Ok((ours.dev(), ours.ino()) == (there.dev(), there.ino()))
        });
        same.unwrap_or(false)
    }
}

/// Writes a file that says `state` and forces it to the disk.
fn write(path: &Path, state: &Desired, generation: u64) -> io::Result<(File, Chain, u64)> {
    let mut options = OpenOptions::new();
    // A stranger's file or link there is none of ours.
    let _ = fs::remove_file(path);
    let mut file = options
        .append(true)
        .create_new(true)
        .mode(0o640)
        .open(path)?;
    let (mut chain, mut part, mut length) = (Chain::default(), Vec::with_capacity(2 * PART), 0);
    let head = Head {
        schema: SCHEMA,
        generation,
        entries: Entry::count(state),
    };
    chain.head(&mut part, head);
    for entry in Entry::all(state) {
        chain.put(&mut part, std::slice::from_ref(&entry));
        if part.len() >= PART {
            file.write_all(&part)?;
            length += part.len() as u64;
            part.clear();
        }
    }
    file.write_all(&part)?;
    length += part.len() as u64;
    file.sync_all()?;
    Ok((file, chain, length))
}
