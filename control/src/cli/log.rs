//! `podway log`: what the daemons log.

use clap::{Args, ValueEnum};
use podway_proto::control::{Daemon, Request};

pub(super) const EXAMPLES: &str = "\
A daemon logs so until it ends; podway status tells what is logged. The flag --log of both daemons,
or the variable PODWAY_LOG, is for the time from their start.

Examples:
  podway log debug
  podway log warn,podway_control::health=debug --daemon control
  podway log info --daemon dataplane";

#[derive(Debug, Args)]
pub(super) struct Log {
    /// error, warn, info, debug, trace or off; or directives by module, with commas between them.
    #[arg(value_name = "LEVEL-OR-DIRECTIVES")]
    directives: String,
    /// Only one of the two.
    #[arg(long)]
    daemon: Option<DaemonArg>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum DaemonArg {
    Control,
    Dataplane,
}

impl Log {
    pub(super) fn into_request(self) -> Request {
        Request::Log {
            directives: self.directives,
            daemon: self.daemon.map(|daemon| match daemon {
                DaemonArg::Control => Daemon::Control,
                DaemonArg::Dataplane => Daemon::Dataplane,
            }),
        }
    }
}
