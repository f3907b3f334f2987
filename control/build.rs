//! Tells the programs which commit they are built of: `PODWAY_COMMIT`, for builds without a repository,
//! or git's HEAD.

use std::env;
use std::path::Path;
use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=PODWAY_COMMIT");
    // Where git notes each move of HEAD.
    if let Some(log) = git(&["rev-parse", "--git-path", "logs/HEAD"])
        && Path::new(&log).exists()
    {
        println!("cargo::rerun-if-changed={log}");
    }
    let told = env::var("PODWAY_COMMIT").ok();
    let commit = told.or_else(|| git(&["rev-parse", "--short=12", "HEAD"]));
    let commit = commit.as_deref().unwrap_or("unknown");
    println!("cargo::rustc-env=PODWAY_COMMIT={commit}");
}

/// What git says in one line; `None` where it or the repository is missing.
fn git(words: &[&str]) -> Option<String> {
    let output = Command::new("git").args(words).output().ok()?;
    let line = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| line.trim().to_owned())
}
