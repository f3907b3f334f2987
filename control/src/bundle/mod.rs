//! What a report of a bug needs, in one archive: `podway bundle`.
//!
//! Every entry is asked for in turn, has a limit of size and, where a program of somebody else makes it,
//! of time. What cannot be had is named in `manifest.json` with the reason. Nothing of a process's
//! environment or command line is read, no key, and no byte of a packet: `daemons` takes the headers
//! out of what was dropped.

mod archive;
mod daemons;
mod machine;

use std::io;
use std::path::Path;
use std::time::{Duration, SystemTime};

use serde::Serialize;

use crate::doctor::collect::{Sources, collect};
use crate::doctor::{Facts, examine};

/// Bytes of an entry beyond which the rest is left out.
const MOST: usize = 4 << 20;
/// Version of the archive's layout.
const FORMAT: u32 = 1;

/// What is in the archive, and what is not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Manifest {
    /// Version of the layout.
    pub format: u32,
    /// Version of the program that made it.
    pub version: &'static str,
    /// When, in seconds since 1970.
    pub seconds: u64,
    /// The files beside the manifest.
    pub files: Vec<Entry>,
    /// What could not be had.
    pub missing: Vec<Missing>,
}

/// A file of the archive.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Entry {
    /// Its path.
    pub name: String,
    /// Its size in bytes.
    pub bytes: usize,
    /// Whether there was more.
    pub truncated: bool,
}

/// What could not be had.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Missing {
    /// The path that it would have had.
    pub name: String,
    /// Why not.
    pub reason: String,
}

/// Gathers files, and what could not be had.
#[derive(Debug, Default)]
struct Gathered {
    files: Vec<(String, Vec<u8>, bool)>,
    missing: Vec<Missing>,
}

impl Gathered {
    /// Takes the bytes of a file, or why there are none.
    fn add<E: std::fmt::Display>(&mut self, name: &str, content: Result<Vec<u8>, E>) {
        match content {
            Ok(mut bytes) => {
                let truncated = bytes.len() > MOST;
                bytes.truncate(MOST);
                self.files.push((name.to_owned(), bytes, truncated));
            }
            Err(error) => self.missing.push(Missing {
                name: name.to_owned(),
                reason: error.to_string(),
            }),
        }
    }
}

/// Makes the archive: a tar, compressed by gzip.
///
/// # Errors
/// When it cannot be written, which in memory it can.
pub fn make(sources: Sources<'_>, state_dir: &Path) -> io::Result<(Vec<u8>, Manifest)> {
    let facts = collect(sources);
    let mut gathered = Gathered::default();
    doctor(&mut gathered, &facts);
    daemons::gather(&mut gathered, sources, &facts, state_dir);
    machine::gather(&mut gathered, &facts);
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let entry = |(name, bytes, truncated): &(String, Vec<u8>, bool)| Entry {
        name: name.clone(),
        bytes: bytes.len(),
        truncated: *truncated,
    };
    let manifest = Manifest {
        format: FORMAT,
        version: env!("CARGO_PKG_VERSION"),
        seconds: now.unwrap_or(Duration::ZERO).as_secs(),
        files: gathered.files.iter().map(entry).collect(),
        missing: gathered.missing,
    };
    let packed = archive::pack(&gathered.files, &manifest)?;
    Ok((packed, manifest))
}

fn doctor(gathered: &mut Gathered, facts: &Facts) {
    let findings = examine(facts);
    let good = |bytes| Ok::<_, io::Error>(bytes);
    let text = crate::show::doctor::text(&findings).into_bytes();
    gathered.add("doctor.txt", good(text));
    gathered.add("doctor.json", good(crate::cli::doctor_document(&findings)));
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fs;
    use std::process::Command;

    use super::*;

    #[test]
    fn an_archive_without_daemons_has_what_the_manifest_says() {
        let directory = tempfile::tempdir().unwrap();
        let config = directory.path().join("podway.toml");
        fs::write(&config, "uplink = \"lo\"\n").unwrap();
        let state = directory.path().join("state");
        fs::create_dir(&state).unwrap();
        fs::write(state.join("state.json"), "the content is not in it").unwrap();
        let sources = Sources {
            socket: &directory.path().join("control.sock"),
            timeout: Duration::from_secs(1),
            config: Some(&config),
        };
        let (packed, manifest) = make(sources, &state).unwrap();
        let file = directory.path().join("b.tar.gz");
        fs::write(&file, &packed).unwrap();
        let unpack = Command::new("tar")
            .arg("-xzf")
            .arg(&file)
            .arg("-C")
            .arg(directory.path())
            .status();
        assert!(unpack.unwrap().success());
        let root = directory.path().join("podway-bundle");

        let listed = Command::new("tar").arg("-tzf").arg(&file).output().unwrap();
        let listed = String::from_utf8(listed.stdout).unwrap();
        let listed: BTreeSet<&str> = listed
            .lines()
            .map(|line| line.strip_prefix("podway-bundle/").unwrap())
            .collect();
        let files = manifest.files.iter().map(|entry| entry.name.as_str());
        let expected: BTreeSet<&str> = files.chain(["manifest.json"]).collect();
        assert_eq!(listed, expected);
        for Entry { name, bytes, .. } in &manifest.files {
            let size = fs::metadata(root.join(name)).unwrap().len();
            assert_eq!(usize::try_from(size).unwrap(), *bytes, "{name}");
        }
        let written: serde_json::Value =
            serde_json::from_slice(&fs::read(root.join("manifest.json")).unwrap()).unwrap();
        assert_eq!(written, serde_json::to_value(&manifest).unwrap());

        // All that is listed is there or missing, and nothing else is.
        let missing = manifest.missing.iter().map(|missing| missing.name.as_str());
        let all: BTreeSet<&str> = expected.iter().copied().chain(missing).collect();
        let known: BTreeSet<&str> = daemons::NAMES
            .iter()
            .copied()
            .chain(machine::names())
            .chain([
                "doctor.txt",
                "doctor.json",
                "manifest.json",
                "ethtool/lo.txt",
            ])
            .collect();
        assert_eq!(all, known);
        let away: Vec<_> = ["status.json", "routes.json"]
            .iter()
            .filter(|name| manifest.missing.iter().any(|m| m.name == **name))
            .collect();
        assert_eq!(away.len(), 2, "control is away");
        assert!(
            manifest
                .missing
                .iter()
                .all(|missing| !missing.reason.is_empty())
        );
        let sizes = fs::read_to_string(root.join("state-dir.txt")).unwrap();
        assert_eq!(sizes, "24 state.json\n");
        assert_eq!(
            fs::read(root.join("podway.toml")).unwrap(),
            b"uplink = \"lo\"\n"
        );
    }

    #[test]
    fn what_is_too_long_is_cut_and_told() {
        let mut gathered = Gathered::default();
        gathered.add("long", Ok::<_, io::Error>(vec![b'x'; MOST + 1]));
        gathered.add("none", Err(io::Error::from(io::ErrorKind::NotFound)));
        let [(_, bytes, truncated)] = gathered.files.as_slice() else {
            panic!("one file");
        };
        assert_eq!((bytes.len(), *truncated), (MOST, true));
        assert_eq!(gathered.missing[0].reason, "entity not found");
    }
}
