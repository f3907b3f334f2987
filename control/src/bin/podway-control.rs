//! The daemon that holds the desired state of a node.

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    podway_control::daemon::Args::parse().main()
}
