//! One connection to the dataplane: requests out one by one, answers in.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::time::{Duration, Instant};

use mio::net::UnixStream;
use podway_proto::codec::{self, LineBuffer};
use podway_proto::dataplane::{Change, Request, Response};

use super::{RECONNECT, RECONNECT_AFTER_FAULT, Ticket};

/// Bytes of changes in one request: far below [`codec::MAX_LINE`], whatever one change adds.
const BATCH_BYTES: usize = 256 << 10;

/// What a request that is under way is for.
#[derive(Debug)]
pub(super) enum Purpose {
    Hello,
    SyncBegin,
    Apply(Vec<Change>),
    SyncEnd,
    Question(Ticket),
}

/// One connection, from `hello` to its end.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) stream: UnixStream,
    input: LineBuffer,
    output: Vec<u8>,
    /// Requests that are not sent yet.
    pub(super) waiting: VecDeque<(Purpose, Request)>,
    /// The request that waits for its answer, and since when.
    pub(super) under_way: Option<(Purpose, Instant)>,
    /// Whether everything was told.
    pub(super) synced: bool,
}

/// Why a connection is given up, and how long until the next.
pub(super) struct Fault {
    pub(super) text: String,
    pub(super) pause: Duration,
}

impl Fault {
    pub(super) fn slow(text: &str) -> Self {
        Self {
            text: text.to_owned(),
            pause: RECONNECT_AFTER_FAULT,
        }
    }

    pub(super) fn broken(text: &str) -> Self {
        Self {
            text: text.to_owned(),
            pause: RECONNECT,
        }
    }
}

impl From<io::Error> for Fault {
    fn from(error: io::Error) -> Self {
        Self::broken(&error.to_string())
    }
}

impl Connection {
    /// A connection on `stream` that begins with `first`.
    pub(super) fn new(stream: UnixStream, first: (Purpose, Request)) -> Self {
        Self {
            stream,
            input: LineBuffer::default(),
            output: Vec::new(),
            waiting: VecDeque::from([first]),
            under_way: None,
            synced: false,
        }
    }

    pub(super) fn queue_apply(&mut self, changes: Vec<Change>) {
        let request = Request::Apply {
            changes: changes.clone(),
        };
        self.waiting.push_back((Purpose::Apply(changes), request));
    }

    /// Whether changes are waiting or under way.
    pub(super) fn tells(&self) -> bool {
        let is_apply = |purpose: &Purpose| matches!(purpose, Purpose::Apply(_));
        self.under_way
            .as_ref()
            .is_some_and(|(purpose, _)| is_apply(purpose))
            || self.waiting.iter().any(|(purpose, _)| is_apply(purpose))
    }

    pub(super) fn send_next(&mut self, now: Instant) {
        if self.under_way.is_none()
            && let Some((purpose, request)) = self.waiting.pop_front()
        {
            self.output.extend(codec::encode(&request));
            self.under_way = Some((purpose, now));
        }
    }

    pub(super) fn write(&mut self) -> io::Result<()> {
        while !self.output.is_empty() {
            match self.stream.write(&self.output) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => drop(self.output.drain(..count)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// The answer to what is under way, if it has come.
    pub(super) fn next_answer(&mut self) -> Result<Option<(Purpose, Response)>, Fault> {
        let mut bytes = [0; 16 << 10];
        loop {
            let line = self
                .input
                .next_line()
                .map_err(|error| Fault::slow(&error.to_string()))?;
            if let Some(line) = line {
                let response = codec::decode(line).map_err(|error| Fault::slow(&error.message))?;
                let Some((purpose, _)) = self.under_way.take() else {
                    return Err(Fault::slow("answered where nothing was asked"));
                };
                return Ok(Some((purpose, response)));
            }
            match self.stream.read(&mut bytes) {
                Ok(0) => return Err(Fault::broken("it closed the connection")),
                Ok(count) => self.input.extend(bytes.get(..count).unwrap_or_default()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// Cuts a list of changes into requests that fit in a line.
pub(super) fn batches(changes: Vec<Change>) -> Vec<Vec<Change>> {
    let mut batches = Vec::new();
    let mut batch = Vec::new();
    let mut bytes = 0;
    for change in changes {
        bytes += codec::encode(&change).len();
        batch.push(change);
        if bytes >= BATCH_BYTES {
            batches.push(std::mem::take(&mut batch));
            bytes = 0;
        }
    }
    if !batch.is_empty() {
        batches.push(batch);
    }
    batches
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_large_table_goes_in_several_lines() {
        let change = |n: u32| Change::DelRoute {
            prefix: ipnet::Ipv4Net::new(n.into(), 32).unwrap().into(),
        };
        let changes: Vec<Change> = (0..20_000).map(change).collect();
        let batches = batches(changes.clone());
        assert!(batches.len() > 1);
        for batch in &batches {
            let line = codec::encode(&Request::Apply {
                changes: batch.clone(),
            });
            assert!(line.len() < codec::MAX_LINE / 2, "{}", line.len());
        }
        assert_eq!(batches.concat(), changes);
    }
}
