//! What a page is made of: answers of this daemon, asked as any client asks.

use std::path::Path;
use std::time::Duration;

use podway_proto::client::{Client, ClientError};
use podway_proto::control::{NodeEntry, PortEntry, Request, Response, Status};
use podway_proto::dataplane::Counters;

use crate::tally::Tally;

/// How long to wait for each answer: a little longer than the daemon waits for the dataplane.
const PATIENCE: Duration = Duration::from_secs(6);

/// Answers; what could not be asked is empty.
#[derive(Debug, Default)]
pub(super) struct Scrape {
    /// How the node is.
    pub(super) status: Option<Status>,
    /// Its nodes.
    pub(super) nodes: Vec<NodeEntry>,
    /// Its ports as they were told.
    pub(super) ports: Vec<PortEntry>,
    /// What the dataplane has counted, and how many sentences there are of what does not balance.
    pub(super) counters: Option<(Counters, usize)>,
    /// Requests of all clients, this one among them: name, code and how many.
    pub(super) requests: Vec<(&'static str, String, u64)>,
}

impl Scrape {
    /// Asks the daemon behind `socket`, which counts its requests in `tally`.
    pub(super) fn take(socket: &Path, tally: &Tally) -> Self {
        let mut scrape = Self::default();
        if let Err(error) = scrape.ask(socket) {
            tracing::debug!(%error, "metrics are not whole");
        }
        scrape.requests = tally.all();
        scrape
    }

    fn ask(&mut self, socket: &Path) -> Result<(), ClientError> {
        let mut client = Client::connect(socket, PATIENCE)?;
        if let Response::Status(status) = client.call(&Request::Status)? {
            self.status = Some(*status);
        }
        if let Response::Nodes { nodes } = client.call(&Request::NodeList)? {
            self.nodes = nodes;
        }
        if let Response::Ports { ports } = client.call(&Request::PortShow)? {
            self.ports = ports;
        }
        // Who has just not answered is not waited for a second time.
        let link = self.status.as_ref().map(|status| &status.dataplane);
        if link.is_some_and(|link| link.status().is_some())
            && let Response::Counters {
                counters,
                imbalances,
            } = client.call(&Request::Counters)?
        {
            self.counters = Some((counters, imbalances.len()));
        }
        Ok(())
    }
}
