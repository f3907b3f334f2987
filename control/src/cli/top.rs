//! `podway top`: from the command line to the terminal.

use std::path::Path;
use std::time::Duration;

use podway_proto::client::Client;

use super::Failure;
use crate::top::{self, TopError};
use crate::watch::Reach;

pub(super) const HELP: &str = "\
Workers with their load, ports with their rates, flows with most traffic first, and what was dropped, once a
second. It ends by q, Escape or Ctrl-C. Where there is no terminal: podway status --verbose --watch.

The flows are those of a watch at the dataplane, which only root and the dataplane's user may have; where
there is none the panel says why. Where many packets pass, one of several is looked at and counts for as
many; the panel says of how many. podway flows tells more of them.

Example:
  podway top";

pub(super) fn run(socket: &Path, timeout: Duration, json: bool) -> Result<(), Failure> {
    if json {
        let complaint = "podway top draws; use podway --json status --verbose --watch";
        return Err(Failure::Usage(complaint.to_owned()));
    }
    // The dataplane of the same node, whatever its control's socket was found by.
    let run_dir = socket.parent().unwrap_or(Path::new("."));
    let dataplane = Reach::new(None, run_dir, timeout);
    let socket = socket.to_owned();
    let connect = move || Client::connect(&socket, timeout);
    top::run(connect, dataplane).map_err(|error| match error {
        TopError::Client(error) => Failure::Client(error),
        TopError::NoTerminal => Failure::Usage(error.to_string()),
        TopError::Terminal(error) => Failure::Output(error),
    })
}
