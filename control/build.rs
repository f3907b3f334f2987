//! Tells the programs which commit they are built of: `PODWAY_COMMIT`, for builds without a repository,
//! or git's HEAD. What is not committed does not show.

use std::env;
use std::path::Path;
use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=PODWAY_COMMIT");
    let told = env::var("PODWAY_COMMIT").ok();
    let commit = told.filter(|told| !told.is_empty()).or_else(head);
    let commit = commit.as_deref().unwrap_or("unknown");
    println!("cargo::rustc-env=PODWAY_COMMIT={commit}");
}

/// The commit of the repository that this file is of, which a repository around the source may not be.
fn head() -> Option<String> {
    git(&["ls-files", "--error-unmatch", "build.rs"])?;
    // Where git notes each move of HEAD; HEAD itself where it notes none.
    let paths = ["logs/HEAD", "HEAD"].into_iter();
    let mut paths = paths.filter_map(|name| git(&["rev-parse", "--git-path", name]));
    if let Some(path) = paths.find(|path| Path::new(path).exists()) {
        println!("cargo::rerun-if-changed={path}");
    }
    git(&["rev-parse", "--short=12", "HEAD"])
}

/// What git says in one line; `None` where it or the repository is missing.
fn git(words: &[&str]) -> Option<String> {
    // A relative one, as hooks have it, is not meant from here.
    let output = Command::new("git")
        .args(words)
        .env_remove("GIT_DIR")
        .output()
        .ok()?;
    let line = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| line.trim().to_owned())
}
