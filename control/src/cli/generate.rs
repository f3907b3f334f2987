//! Shell completions and manual pages, made from the arguments themselves.

use std::path::Path;

use clap::CommandFactory;
use clap_complete::Shell;

use super::{Cli, Failure};

/// The completions for `shell`.
pub(super) fn completions(shell: Shell) -> Vec<u8> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "podway", &mut script);
    script
}

/// Writes `podway.1` and a page for each subcommand into `directory`, which is made if it is
/// missing.
pub(super) fn man(directory: &Path) -> Result<(), Failure> {
    let written = std::fs::create_dir_all(directory)
        .and_then(|()| clap_mangen::generate_to(Cli::command(), directory));
    written.map_err(|error| {
        Failure::Usage(format!("cannot write to {}: {error}", directory.display()))
    })
}

#[cfg(test)]
mod tests {
    use clap::ValueEnum;

    use super::*;

    #[test]
    fn every_shell_completes_the_commands() {
        for shell in Shell::value_variants() {
            let script = String::from_utf8(completions(*shell)).unwrap();
            for word in ["route", "load", "import", "--dry-run"] {
                // Fish and others write options without their dashes.
                assert!(
                    script.contains(word.trim_start_matches('-')),
                    "{shell}: {word}"
                );
            }
        }
    }

    #[test]
    fn there_is_a_page_for_each_command() {
        let directory = tempfile::tempdir().unwrap();
        let pages = directory.path().join("man1");
        man(&pages).unwrap();
        for name in [
            "podway",
            "podway-status",
            "podway-route-load",
            "podway-import",
        ] {
            let page = std::fs::read_to_string(pages.join(format!("{name}.1"))).unwrap();
            assert!(page.contains(&format!(".TH {name} 1")), "{name}: {page}");
        }
        let page = std::fs::read_to_string(pages.join("podway.1")).unwrap();
        assert!(page.contains("Exit codes"), "{page}");
    }
}
