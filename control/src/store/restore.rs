//! What is done about a damaged state file: the last good state is found, offered, and taken up
//! when the operator says so.

use std::path::{Path, PathBuf};

use super::{FILE, PREVIOUS, Store, StoreError};
use crate::state::Desired;

/// Where a damaged file is kept.
const DAMAGED: &str = "state.json.damaged";

/// The last good state.
#[derive(Debug)]
struct Good {
    state: Desired,
    /// Of the newest file.
    generation: u64,
    /// Where it is from, and what it lacks.
    is: String,
}

impl Good {
    /// All that is left is the file before.
    fn previous(state: Desired, generation: u64) -> Self {
        let is = format!("what {PREVIOUS} says, without what was changed after it");
        Self {
            state,
            generation,
            is,
        }
    }
}

impl Store {
    /// Takes up the last good state in place of a damaged file, which is kept. Says what was done.
    ///
    /// # Errors
    /// When another process has the directory, when there is no good state, or a step fails.
    pub fn restore(directory: &Path) -> Result<String, StoreError> {
        let mut store = Self::lock(directory)?;
        let path = store.path(FILE);
        let content = store.read(FILE)?;
        let whole = content.is_some_and(|content| content.state().is_ok());
        if whole || !(path.exists() || store.path(PREVIOUS).exists()) {
            return Ok(format!(
                "the state in {} is whole; nothing was done",
                directory.display()
            ));
        }
        let Some(good) = store.last_good()? else {
            return Err(store.damaged("damaged".to_owned()));
        };
        let kept = store.free_name();
        store.generation = good.generation;
        store.replace(&good.state, Some(&kept))?;
        let mut said = format!("{} is now {}", path.display(), good.is);
        if kept.exists() {
            said += &format!("; the damaged file is {}", kept.display());
        }
        Ok(said)
    }

    /// The error for a file that is `what`: with what is left, and how it is brought back.
    pub(super) fn damaged(&self, what: String) -> StoreError {
        let offer = match self.last_good() {
            Ok(Some(good)) => format!(
                "it was left as it is. To go on with {}, run\n  podway-control --state-dir {} \
                 --restore-state",
                good.is,
                self.directory.display()
            ),
            Ok(None) => format!(
                "no good state is beside it. Move {}* away to start empty, and bring back by \
                 podway import what podway export has written",
                self.path(FILE).display()
            ),
            Err(error) => format!("the file before it is of no use: {error}"),
        };
        StoreError::Damaged {
            path: self.path(FILE),
            what,
            offer,
        }
    }

    /// The newest state that can be trusted.
    fn last_good(&self) -> Result<Option<Good>, StoreError> {
        let current = self.read(FILE)?;
        let previous = match self.read(PREVIOUS)? {
            Some(content) => content.head.zip(content.state().ok()),
            None => None,
        };
        let newest = current.as_ref().and_then(|current| current.head);
        let newest = newest.map_or(0, |head| head.generation);
        let after = previous.as_ref().map_or(0, |(head, _)| head.generation + 1);
        let previous = previous.map(|(_, state)| state);
        let (mut state, is, current) = match (current, previous) {
            (Some(mut current), previous) => {
                let snapshot = std::mem::replace(&mut current.snapshot, Ok(Desired::default()));
                match (snapshot, previous) {
                    (Ok(state), _) => (state, format!("what is whole of {FILE}"), current),
                    // It began with what the one before it ended with.
                    (Err(_), Some(state)) if current.head.is_some() && newest == after => {
                        (state, format!("what {PREVIOUS} says"), current)
                    }
                    (Err(_), Some(state)) => return Ok(Some(Good::previous(state, after))),
                    (Err(_), None) => return Ok(None),
                }
            }
            (None, previous) => return Ok(previous.map(|state| Good::previous(state, after))),
        };
        let changes = match current.changes.len() {
            0 => String::new(),
            1 => " and the change after it".to_owned(),
            count => format!(" and the {count} changes after it"),
        };
        current
            .changes
            .into_iter()
            .for_each(|entry| entry.put(&mut state));
        let lacks = match (current.flaw, current.lines) {
            (None, _) => "which is all that was acknowledged".to_owned(),
            (Some(flaw), last) if flaw.line == last => format!("without what line {last} changed"),
            (Some(flaw), last) => format!("without what lines {} to {last} changed", flaw.line),
        };
        Ok(Some(Good {
            state,
            generation: newest,
            is: format!("{is}{changes}, {lacks}"),
        }))
    }

    /// A name for the damaged file that no other has.
    fn free_name(&self) -> PathBuf {
        let first = self.path(DAMAGED);
        let others = (2..).map(|number| self.path(&format!("{DAMAGED}-{number}")));
        let mut names = std::iter::once(first.clone()).chain(others);
        names.find(|name| !name.exists()).unwrap_or(first)
    }
}
