//! The same question once a second.

use std::io::Write;
use std::time::{Duration, Instant};

use podway_proto::client::Client;
use podway_proto::codec;
use podway_proto::control::{Request, Response};

use super::Failure;

/// Home and clear to the end: what is left of the last picture goes, without flicker.
pub(super) const CLEAR: &str = "\x1b[H\x1b[J";

/// Asks once a second and shows what `text` makes of the answer, given the one before and how long ago
/// that was; until interrupted or the reader is gone.
pub(super) fn watch(
    client: &mut Client,
    request: &Request,
    json: bool,
    out: &mut impl Write,
    text: impl Fn(&Response, Option<(Duration, &Response)>) -> String,
) -> Result<(), Failure> {
    const PERIOD: Duration = Duration::from_secs(1);
    let mut last: Option<(Instant, Response)> = None;
    loop {
        let response = client.call(request)?;
        let now = Instant::now();
        let written = if json {
            out.write_all(&codec::encode(&response))
        } else {
            let last = last.as_ref().map(|(then, before)| (now - *then, before));
            write!(out, "{CLEAR}{}", text(&response, last))
        };
        if written.and_then(|()| out.flush()).is_err() {
            return Ok(());
        }
        last = Some((now, response));
        std::thread::sleep(PERIOD);
    }
}
