//! `podway perf`: what workers spend their time on.

use std::io::Write;
use std::time::Duration;

use clap::Args;
use podway_proto::client::Client;
use podway_proto::codec;
use podway_proto::control::{Request, Response};

use super::repeat::watch;
use super::{Failure, print};
use crate::show;

const EXAMPLES: &str = "\
One of 61 bursts is measured, always. Times are nanoseconds: those of a packet are those of its
burst by its packets. docs/performance.md says how to read it. Only root and the daemon's user may ask,
since it costs workers time.

Examples:
  podway perf
  podway perf --reset
  podway perf --watch";

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Perf {
    /// Begin anew: forget what was measured so far.
    #[arg(long)]
    reset: bool,
    /// Once a second until interrupted; counts are those between two looks.
    #[arg(long)]
    watch: bool,
}

impl Perf {
    /// Asks, and writes the answer to `out`.
    pub(super) fn run(
        self,
        client: &mut Client,
        json: bool,
        out: &mut impl Write,
    ) -> Result<(), Failure> {
        let mut response = None;
        if self.reset {
            response = Some(client.call(&Request::PerfReset)?);
        }
        if self.watch {
            let text = |now: &Response, last: Option<(Duration, &Response)>| {
                show::perf::text(now, last.map(|(elapsed, before)| (before, elapsed)))
            };
            return watch(client, &Request::Perf, json, out, text);
        }
        let response = match response {
            Some(response) => response,
            None => client.call(&Request::Perf)?,
        };
        match json {
            true => print(out, &codec::encode(&response)),
            false => print(out, show::perf::text(&response, None).as_bytes()),
        }
    }
}
