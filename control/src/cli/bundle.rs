//! `podway bundle`: what a report of a bug needs.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use podway_proto::codec;
use serde::Serialize;

use super::Failure;
use crate::bundle::{Manifest, make};
use crate::doctor::collect::Sources;

pub(super) const EXAMPLES: &str = "\
In it are what podway doctor finds, what the daemons say of themselves, their configuration and logs,
and how the kernel is set up; manifest.json lists all, and what could not be had. There is nothing of
environments, keys or packets. Addresses and names of nodes and interfaces are in it.

Examples:
  podway bundle
  podway bundle report.tar.gz
  podway bundle - | ssh host 'cat > report.tar.gz'";

#[derive(Debug, Args)]
pub(super) struct Bundle {
    /// The archive, which must not exist; `-` is standard output. podway-bundle-SECONDS.tar.gz by
    /// default.
    file: Option<PathBuf>,
    /// The daemons' configuration file; /etc/podway/podway.toml by default.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Directory of the state file, of which the sizes are told.
    #[arg(long, value_name = "DIR", default_value = "/var/lib/podway")]
    state_dir: PathBuf,
}

impl Bundle {
    /// Makes the archive and gives what is to be printed.
    pub(super) fn run(
        &self,
        socket: &Path,
        timeout: Duration,
        json: bool,
    ) -> Result<Vec<u8>, Failure> {
        let config = self.config.as_deref();
        let sources = Sources {
            socket,
            timeout,
            config,
        };
        let (archive, manifest) = make(sources, &self.state_dir)?;
        let file = match &self.file {
            Some(file) if file.as_os_str() == "-" => return Ok(archive),
            Some(file) => file.clone(),
            None => format!("podway-bundle-{}.tar.gz", manifest.seconds).into(),
        };
        let written = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&file)
            .map_err(|error| Failure::Usage(format!("cannot write {}: {error}", file.display())))?
            .write_all(&archive);
        if let Err(error) = written {
            // Half of an archive is of no use, and in the way of the next one.
            let _ = std::fs::remove_file(&file);
            return Err(error.into());
        }
        Ok(said(&file, &manifest, json))
    }
}

fn said(file: &Path, manifest: &Manifest, json: bool) -> Vec<u8> {
    #[derive(Serialize)]
    struct Document<'a> {
        response: &'static str,
        file: String,
        manifest: &'a Manifest,
    }
    let name = file.display().to_string();
    if json {
        return codec::encode(&Document {
            response: "bundle",
            file: name,
            manifest,
        });
    }
    let mut text = format!("{name} has {} files\n", manifest.files.len() + 1);
    for missing in &manifest.missing {
        text += &format!("without {}: {}\n", missing.name, missing.reason);
    }
    text.into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bundle::{Entry, Missing};
    use crate::golden::golden_json;

    #[test]
    fn what_is_missing_is_told() {
        let manifest = Manifest {
            format: 1,
            version: "0.1.0",
            seconds: 7,
            files: vec![Entry {
                name: "doctor.txt".to_owned(),
                bytes: 3,
                truncated: false,
            }],
            missing: vec![Missing {
                name: "status.json".to_owned(),
                reason: "nobody listens".to_owned(),
            }],
        };
        let said = |json| said(Path::new("b.tar.gz"), &manifest, json);
        assert_eq!(
            String::from_utf8(said(false)).unwrap(),
            "b.tar.gz has 2 files\nwithout status.json: nobody listens\n"
        );
        golden_json("bundle.json", &said(true));
    }
}
