//! The command line of Podway.

use std::process::ExitCode;

fn main() -> ExitCode {
    podway_control::cli::main()
}
