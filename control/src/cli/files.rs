//! Commands about files: all that was told out and in again, and the configuration.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use podway_proto::client::{BulkOptions, Client};
use podway_proto::control::Response;
use podway_proto::entries::Entries;

use super::{Failure, load};
use crate::settings::{Settings, SettingsError};
use crate::show::change;

pub(super) const EXPORT: &str = "\
Example:
  podway export > node-a.json";

pub(super) const IMPORT: &str = "\
What is in force and not in the file stays, unless --replace is given. Interfaces that new entries
name must exist.

Examples:
  podway import --dry-run --replace node-a.json
  podway import --replace node-a.json";

/// What is done with the configuration.
#[derive(Debug, Subcommand)]
pub(super) enum ConfigCommand {
    /// Check a file as both daemons do when they start; no daemon is asked.
    #[command(after_help = "\
Example:
  podway config check /etc/podway/podway.toml")]
    Check {
        /// The file.
        file: PathBuf,
    },
    /// The same as `podway export`.
    #[command(hide = true, after_help = EXPORT)]
    Export,
    /// The same as `podway import`.
    #[command(hide = true, after_help = IMPORT)]
    Import(Import),
}

/// What is brought into force.
#[derive(Debug, Args)]
pub(super) struct Import {
    /// The file; `-` is standard input.
    pub(super) file: PathBuf,
    /// Only show what would change.
    #[arg(long)]
    pub(super) dry_run: bool,
    /// Remove what is not in the file.
    #[arg(long)]
    pub(super) replace: bool,
}

/// Brings what `podway export` has written into force: all of it, or nothing.
pub(super) fn import(
    client: &mut Client,
    file: &Path,
    options: BulkOptions,
) -> Result<Response, Failure> {
    let name = load::name(file);
    let text = load::read(file)?;
    let entries: Entries = serde_json::from_str(&text).map_err(|error| {
        Failure::Usage(format!(
            "nothing is imported: {name} is not what podway export writes: {error}"
        ))
    })?;
    load::bulk(client, options, &entries)?.map_err(|refused| {
        let what = format!("nothing is imported from {name}");
        load::refusal(what, &change::refused(&refused), refused)
    })
}

/// Checks a configuration file as both daemons do when they start. What depends on the machine,
/// such as its cores and links, is left to them.
pub(super) fn check(file: &Path) -> Result<String, Failure> {
    let wrong = |error: &dyn std::fmt::Display| Failure::Config(error.to_string());
    let config = Settings::read(file).map_err(|error| match error {
        SettingsError::Read { source, .. } => load::unreadable(file, &source),
        error => wrong(&error),
    })?;
    let section = config.dataplane.check();
    Settings::from_config(config).map_err(|error| wrong(&error))?;
    section.map_err(|error| wrong(&error))?;
    Ok(format!("{} is a valid configuration\n", file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configuration_is_checked_for_both_daemons() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("podway.toml");
        for (text, complaint) in [
            ("uplink = 'eth0'\n[dataplane]\nworkers = 2\n", None),
            ("vni = 1\nuplink = \n", Some("line 2")),
            ("vxlan-port = 0\n", Some("vxlan-port cannot be used: 0 is")),
            (
                "[dataplane]\nring-size = 300\n",
                Some("dataplane.ring-size = 300: use a power of two"),
            ),
        ] {
            std::fs::write(&path, text).unwrap();
            match (check(&path), complaint) {
                (Ok(said), None) => {
                    assert!(said.ends_with("podway.toml is a valid configuration\n"))
                }
                (Err(error), Some(complaint)) => {
                    assert!(error.to_string().contains(complaint), "{error}");
                    assert_eq!(error.exit_code(), 1);
                }
                (result, _) => panic!("{text}: {result:?}"),
            }
        }
        let missing = check(Path::new("/nonexistent.toml")).unwrap_err();
        let expected = "cannot read /nonexistent.toml: No such file or directory (os error 2)";
        assert_eq!(missing.to_string(), expected);
        assert_eq!(missing.exit_code(), 2);
    }
}
