//! `podway status`, and with `--verbose` a node at a glance.

use std::io::Write;
use std::thread::sleep;
use std::time::Duration;

use clap::Args;
use podway_proto::client::Client;
use podway_proto::codec;

use super::repeat::CLEAR;
use super::{Failure, print};
use crate::overview::{Look, Overview};
use crate::show;

/// Between two looks.
pub(super) const PERIOD: Duration = Duration::from_secs(1);

#[derive(Debug, Args)]
#[command(after_help = "\
With --verbose, loads and rates are those between two looks at the counters, a second apart. With
--json that is one document; docs/json.md has its fields.

Examples:
  podway status
  podway --json status | jq .hints
  podway status --verbose
  podway status --verbose --watch")]
pub(super) struct StatusArgs {
    /// One screen with ports, load of the workers, drops of the last minute and health of the nodes.
    #[arg(short, long)]
    pub(super) verbose: bool,
    /// Once a second until interrupted.
    #[arg(long, requires = "verbose")]
    watch: bool,
    /// Loads and rates since the dataplane was started, from one look.
    #[arg(long, requires = "verbose", conflicts_with = "watch")]
    since_start: bool,
}

/// Looks and prints.
pub(super) fn run(
    args: &StatusArgs,
    client: &mut Client,
    json: bool,
    out: &mut impl Write,
) -> Result<(), Failure> {
    let mut before = Look::take(client)?;
    if args.since_start {
        return print(out, &told(&Overview::since_start(before), json));
    }
    loop {
        sleep(PERIOD);
        let now = Look::take(client)?;
        let text = told(&Overview::between(&before, now.clone()), json);
        if !args.watch {
            return print(out, &text);
        }
        let clear = if json { "" } else { CLEAR };
        let written = write!(out, "{clear}").and_then(|()| out.write_all(&text));
        if written.and_then(|()| out.flush()).is_err() {
            return Ok(());
        }
        before = now;
    }
}

fn told(overview: &Overview, json: bool) -> Vec<u8> {
    match json {
        true => codec::encode(overview),
        false => show::overview::text(overview).into_bytes(),
    }
}
