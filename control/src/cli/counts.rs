//! `podway counters` and `podway drops`.

use std::io::Write;
use std::time::Duration;

use podway_proto::client::Client;
use podway_proto::codec;
use podway_proto::control::{Request, Response};

use super::repeat::watch;
use super::{Failure, print};
use crate::show;

/// Counters once a second, with their rates.
pub(super) fn watch_counters(
    client: &mut Client,
    json: bool,
    out: &mut impl Write,
) -> Result<(), Failure> {
    let text = |response: &Response, last: Option<(Duration, &Response)>| {
        let rates = last.map(|(elapsed, before)| show::rates(before, response, elapsed));
        show::text(response) + &rates.unwrap_or_default()
    };
    watch(client, &Request::Counters, json, out, text)
}

/// What was dropped, once a second.
pub(super) fn watch_drops(
    client: &mut Client,
    all: bool,
    json: bool,
    out: &mut impl Write,
) -> Result<(), Failure> {
    let text = |response: &Response, last: Option<(Duration, &Response)>| match last {
        Some((elapsed, before)) => show::drops::between(before, response, elapsed, all),
        None => show::drops::text(response, all),
    };
    watch(client, &Request::Drops, json, out, text)
}

/// What was dropped; with `all` also the reasons that have dropped nothing.
pub(super) fn drops(
    client: &mut Client,
    all: bool,
    json: bool,
    out: &mut impl Write,
) -> Result<(), Failure> {
    let response = client.call(&Request::Drops)?;
    match json {
        true => print(out, &codec::encode(&response)),
        false => print(out, show::drops::text(&response, all).as_bytes()),
    }
}
