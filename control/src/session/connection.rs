//! One connection to the dataplane: requests out one by one, answers in.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::time::{Duration, Instant};

use mio::net::UnixStream;
use podway_proto::codec::{self, LineBuffer};
use podway_proto::dataplane::{Request, Response};
use podway_proto::digest::Digests;

use super::untold::{Batch, Told};
use super::{ANSWER, CHANGES, RECONNECT, RECONNECT_AFTER_FAULT, Ticket};
use crate::facts::Key;

/// What a request that is under way is for.
#[derive(Debug)]
pub(super) enum Purpose {
    Hello,
    SyncBegin,
    Apply(Vec<Told>),
    SyncEnd,
    /// With what was told by then.
    Compare(Digests),
    /// And since when it is asked.
    Question(Ticket, Instant),
}

impl Purpose {
    /// How long the answer may take.
    pub(super) fn limit(&self) -> Duration {
        match self {
            Self::Apply(_) | Self::SyncEnd => CHANGES,
            Self::Hello | Self::SyncBegin | Self::Compare(_) | Self::Question(..) => ANSWER,
        }
    }
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
    /// While everything is being told: the fact that was queued last.
    pub(super) syncing: Option<Option<Key>>,
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
            syncing: None,
            synced: false,
        }
    }

    pub(super) fn queue(&mut self, request: (Purpose, Request)) {
        self.waiting.push_back(request);
    }

    /// The questions that wait to be sent, and since when.
    pub(super) fn questions(&self) -> impl Iterator<Item = (Ticket, Instant)> {
        self.waiting
            .iter()
            .filter_map(|(purpose, _)| match purpose {
                Purpose::Question(ticket, asked) => Some((*ticket, *asked)),
                _ => None,
            })
    }

    /// Takes away the questions that have waited for so long.
    pub(super) fn take_questions(&mut self, now: Instant, limit: Duration) -> Vec<Ticket> {
        let is_late = |asked: Instant| now.saturating_duration_since(asked) >= limit;
        let late = self.questions().filter(|(_, asked)| is_late(*asked));
        let late: Vec<Ticket> = late.map(|(ticket, _)| ticket).collect();
        self.waiting.retain(|(purpose, _)| match purpose {
            Purpose::Question(_, asked) => !is_late(*asked),
            _ => true,
        });
        late
    }

    pub(super) fn queue_apply(&mut self, batch: Batch) {
        let Batch { told, changes } = batch;
        self.queue((Purpose::Apply(told), Request::Apply { changes }));
    }

    /// Whether changes are waiting. While others are under way the next may be made ready.
    pub(super) fn has_changes(&self) -> bool {
        let is_apply = |(purpose, _): &(Purpose, Request)| matches!(purpose, Purpose::Apply(_));
        self.waiting.iter().any(is_apply)
    }

    /// Whether it was told everything, and no changes are waiting or under way.
    pub(super) fn has_told_all(&self) -> bool {
        let under_way = self.under_way.as_ref();
        let applies = under_way.is_some_and(|(purpose, _)| matches!(purpose, Purpose::Apply(_)));
        self.synced && !applies && !self.has_changes()
    }

    /// Whether it is being asked what it holds.
    pub(super) fn compares(&self) -> bool {
        let under_way = self.under_way.iter().map(|(purpose, _)| purpose);
        let waiting = self.waiting.iter().map(|(purpose, _)| purpose);
        let mut all = under_way.chain(waiting);
        all.any(|purpose| matches!(purpose, Purpose::Compare(_)))
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
