//! Metrics for Prometheus: `GET /metrics` on the address that the configuration names.
//!
//! A thread of its own asks this daemon's own socket, as `podway` does, and makes text of the
//! answers, so that the main loop and the dataplane know nothing of it; only requests are counted by the
//! main loop itself. What cannot be asked is
//! missing on the page and has a gauge that says so; the page itself is always there.
//! docs/monitoring has the table of metrics, alert rules and a dashboard.

mod families;
mod http;
mod scrape;
mod text;

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

use families::page;
use http::Server;
use scrape::Scrape;

use crate::tally::Tally;

/// Metrics cannot be served.
#[derive(Debug, thiserror::Error)]
#[error(
    "cannot serve metrics at {address}: {source}; choose a free port and an address of this node \
     for `metrics` in the configuration, or leave it out"
)]
pub struct ServeError {
    address: SocketAddr,
    source: io::Error,
}

/// Serves metrics at `address` until the process ends, of what is asked at `socket` and what the `tally`
/// of its requests has.
///
/// # Errors
/// When the address cannot be listened at.
pub fn serve(address: SocketAddr, socket: PathBuf, tally: Tally) -> Result<(), ServeError> {
    let start = || {
        let mut server = Server::bind(address)?;
        std::thread::Builder::new()
            .name("metrics".to_owned())
            .spawn(move || {
                let error = server.run(|| page(&Scrape::take(&socket, &tally)));
                tracing::error!(%error, "metrics are no longer served");
            })
    };
    start().map_err(|source| ServeError { address, source })?;
    tracing::info!(%address, "metrics are served at /metrics");
    Ok(())
}
