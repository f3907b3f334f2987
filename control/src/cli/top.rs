//! `podway top`: from the command line to the terminal.

use podway_proto::client::{Client, ClientError};

use super::Failure;
use crate::top::{self, TopError};

pub(super) const HELP: &str = "\
Ports with their rates, workers with their load, and what was dropped, once a second. It ends by q,
Escape or Ctrl-C. Where there is no terminal: podway status --verbose --watch.

Example:
  podway top";

pub(super) fn run(
    connect: impl Fn() -> Result<Client, ClientError> + Send + 'static,
    json: bool,
) -> Result<(), Failure> {
    if json {
        let complaint = "podway top draws; use podway --json status --verbose --watch";
        return Err(Failure::Usage(complaint.to_owned()));
    }
    top::run(connect).map_err(|error| match error {
        TopError::Client(error) => Failure::Client(error),
        TopError::NoTerminal => Failure::Usage(error.to_string()),
        TopError::Terminal(error) => Failure::Output(error),
    })
}
