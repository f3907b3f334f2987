//! The state file: the desired state as JSON, replaced as a whole.
//!
//! A new file is written beside the old one, forced to the disk and renamed over it, so that
//! there is at every moment one whole file, and what was acknowledged survives a power cut.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::state::Desired;

/// Version of the file's form. A newer one is refused and not overwritten.
const SCHEMA: u32 = 1;
const FILE: &str = "state.json";
const TEMPORARY: &str = "state.json.new";

/// The state file.
#[derive(Debug)]
pub struct Store {
    directory: PathBuf,
}

/// The state file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A step on the file failed.
    #[error("cannot {step} the state in {path}: {source}; is the disk full or read-only?")]
    Io {
        /// What was tried.
        step: &'static str,
        /// The file or directory.
        path: String,
        /// Why not.
        source: io::Error,
    },
    /// The file is not one of ours.
    #[error("the state file {path} cannot be read: {message}; move it away to start empty")]
    Content {
        /// The file.
        path: String,
        /// What is wrong.
        message: String,
    },
}

#[derive(Serialize, Deserialize)]
struct Document<State> {
    schema: u32,
    #[serde(flatten)]
    state: State,
}

#[derive(Deserialize)]
struct Head {
    schema: u32,
}

impl Store {
    /// The store in `directory`, which is made if it is missing.
    ///
    /// # Errors
    /// When the directory cannot be made.
    pub fn open(directory: &Path) -> Result<Self, StoreError> {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o750)
            .create(directory)
            .map_err(|source| StoreError::Io {
                step: "make a directory for",
                path: directory.display().to_string(),
                source,
            })?;
        Ok(Self {
            directory: directory.to_owned(),
        })
    }

    /// The state as it was saved last; empty if it never was.
    ///
    /// # Errors
    /// When there is a file and it cannot be read; it is left as it is.
    pub fn load(&self) -> Result<Desired, StoreError> {
        let path = self.directory.join(FILE);
        let content = |message: String| StoreError::Content {
            path: path.display().to_string(),
            message,
        };
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Desired::default()),
            Err(source) => {
                let path = path.display().to_string();
                return Err(StoreError::Io {
                    step: "read",
                    path,
                    source,
                });
            }
        };
        // The version first: a newer form need not parse as this one.
        let head: Head = serde_json::from_slice(&bytes).map_err(|e| content(e.to_string()))?;
        if head.schema != SCHEMA {
            let schema = head.schema;
            return Err(content(format!(
                "its schema is {schema}, this program's is {SCHEMA}"
            )));
        }
        let document: Document<Desired> =
            serde_json::from_slice(&bytes).map_err(|e| content(e.to_string()))?;
        Ok(document.state)
    }

    /// Saves `state`; it is on the disk when this returns.
    ///
    /// # Errors
    /// When a step fails; the file is then the old one.
    pub fn save(&self, state: &Desired) -> Result<(), StoreError> {
        let temporary = self.directory.join(TEMPORARY);
        let written = self.write(&temporary, state);
        if written.is_err() {
            // The old file is in force; what is left of the new one has no use.
            let _ = fs::remove_file(&temporary);
        }
        written.map_err(|source| StoreError::Io {
            step: "save",
            path: self.directory.display().to_string(),
            source,
        })
    }

    fn write(&self, temporary: &Path, state: &Desired) -> io::Result<()> {
        let mut bytes = serde_json::to_vec_pretty(&Document {
            schema: SCHEMA,
            state,
        })?;
        bytes.push(b'\n');
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o640)
            .open(temporary)?;
        file.write_all(&bytes)?;
        file.sync_all()?;
        fs::rename(temporary, self.directory.join(FILE))?;
        // The rename itself is in the directory.
        File::open(&self.directory)?.sync_all()
    }
}

#[cfg(test)]
mod tests {
    use podway_proto::control::{NodeSpec, PortRoleSpec, ViaSpec};

    use super::*;

    fn some_state() -> Desired {
        let mut desired = Desired::default();
        desired.nodes.insert(
            "b".into(),
            NodeSpec {
                name: "b".into(),
                underlay: "192.168.1.2".parse().unwrap(),
                pod_cidrs: vec!["10.0.1.0/24".parse().unwrap()],
                vtep_mac: None,
                mode: None,
            },
        );
        let via = ViaSpec::Node { node: "b".into() };
        desired.routes.insert("10.9.0.0/16".parse().unwrap(), via);
        let uplink = PortRoleSpec::Uplink {
            accept_partial_checksums: Some(false),
        };
        desired.ports.insert("eth0".into(), uplink);
        desired
    }

    #[test]
    fn what_was_saved_is_loaded() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(&directory.path().join("a/b")).unwrap();
        assert_eq!(store.load().unwrap(), Desired::default());
        store.save(&some_state()).unwrap();
        assert_eq!(store.load().unwrap(), some_state());
        assert!(!directory.path().join("a/b").join(TEMPORARY).exists());
    }

    #[test]
    fn a_save_that_fails_leaves_the_old_file() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        store.save(&some_state()).unwrap();
        fs::create_dir(directory.path().join(TEMPORARY)).unwrap();
        let error = store.save(&Desired::default()).unwrap_err();
        assert!(
            error.to_string().contains("cannot save the state"),
            "{error}"
        );
        assert_eq!(store.load().unwrap(), some_state());
    }

    #[test]
    fn a_file_that_is_not_ours_is_refused_and_kept() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        let path = directory.path().join(FILE);
        for (content, complaint) in [
            ("", "cannot be read"),
            ("{\"schema\":2,\"anything\":[]}", "its schema is 2"),
            (
                "{\"schema\":1,\"nodes\":{},\"routes\":7,\"ports\":{}}",
                "routes",
            ),
        ] {
            fs::write(&path, content).unwrap();
            let error = store.load().unwrap_err().to_string();
            assert!(
                error.contains(complaint) || complaint == "routes",
                "{error}"
            );
            assert_eq!(fs::read_to_string(&path).unwrap(), content);
        }
    }
}
