//! The command line of Podway.

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    podway_control::cli::Cli::parse().run(&mut std::io::stdout().lock())
}
