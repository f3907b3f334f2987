//! The link to the dataplane: connect, tell everything, then tell what changes.
//!
//! One request is under way at a time. Nothing here blocks: the main loop calls in when the
//! socket is ready and when [`Session::deadline`] has passed. A question that waits behind changes for
//! too long is answered without the dataplane. After a connection breaks, by either
//! side's restart, all facts are told anew between `sync-begin` and `sync-end`; the dataplane
//! forwards by the old ones meanwhile. So they are when the dataplane turns out to hold something
//! else than it was told: it is asked for a digest now and then, while nothing changes.

mod connection;
mod drift;
mod untold;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use mio::net::UnixStream;
use mio::{Interest, Registry, Token};
use podway_proto::control::DriftStatus;
use podway_proto::dataplane::{Refused, Request, Response};
use podway_proto::digest::Digests;
use podway_proto::{ErrorBody, ErrorCode, VERSION, mismatch};

use self::connection::{Connection, Fault, Purpose};
use self::drift::{Drift, Outcome};
use self::untold::{Batch, Told, Untold};
use crate::dirt::Dirt;
use crate::facts::{Before, Facts, Key};
use crate::index::Index;
use crate::world::World;

/// How often a connection is tried while the dataplane is not there.
const RECONNECT: Duration = Duration::from_millis(100);
/// How long after a dataplane that does not speak our language, or does not answer.
const RECONNECT_AFTER_FAULT: Duration = Duration::from_secs(1);
/// How long the dataplane may take for an answer.
const ANSWER: Duration = Duration::from_secs(5);
/// How long for changes: more than it may take for a request's worth of them. Attaching a port waits
/// for RCU grace periods, and up to a second for a queue that is taken; a stuck worker is waited for
/// once, two seconds.
const CHANGES: Duration = Duration::from_secs(30);
/// When a fact that was refused is told again.
const RETRY_REFUSED: Duration = Duration::from_secs(1);
/// Questions of clients that may wait for an answer.
const MAX_QUESTIONS: usize = 256;

/// Names a question, so that its answer can be told from others.
pub type Ticket = u64;

/// The answer to a question, or why there is none.
pub type Answer = (Ticket, Result<Response, ErrorBody>);

/// How the link is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LinkState<'a> {
    /// No connection; what the last attempt said.
    Disconnected(&'a str),
    /// Connected, and there is something that the dataplane has not answered yet or was not told, or
    /// that it is known to hold otherwise.
    Syncing,
    /// The dataplane holds our facts, but for those that it refused.
    Synced,
}

/// The link.
#[derive(Debug)]
pub struct Session {
    path: PathBuf,
    token: Token,
    connection: Option<Connection>,
    reason: String,
    next_attempt: Instant,
    facts: Facts,
    untold: Untold,
    /// Facts that were refused, and why.
    refused: BTreeMap<Key, String>,
    /// Why the dataplane leaves all packets to the kernel, facts or not.
    closed: Option<String>,
    retry_refused: Option<Instant>,
    drift: Drift,
    next_ticket: Ticket,
    answers: Vec<Answer>,
}

impl Session {
    /// A link to the dataplane's socket at `path`; its events come under `token`.
    pub fn new(path: PathBuf, token: Token) -> Self {
        Self {
            path,
            token,
            connection: None,
            reason: "no attempt yet".to_owned(),
            next_attempt: Instant::now(),
            facts: Facts::default(),
            untold: Untold::default(),
            refused: BTreeMap::new(),
            closed: None,
            retry_refused: None,
            drift: Drift::default(),
            next_ticket: 0,
            answers: Vec::new(),
        }
    }

    /// How the link is.
    pub fn state(&self) -> LinkState<'_> {
        match &self.connection {
            None => LinkState::Disconnected(&self.reason),
            Some(_) if self.has_told_all() && !self.drift.is_known() => LinkState::Synced,
            Some(_) => LinkState::Syncing,
        }
    }

    /// Whether the dataplane was told everything and has answered to it.
    fn has_told_all(&self) -> bool {
        let connection = self.connection.as_ref();
        connection.is_some_and(Connection::has_told_all) && self.untold.is_empty()
    }

    /// Whether the dataplane holds what it was told.
    pub fn drift(&self) -> DriftStatus {
        self.drift.status(Instant::now())
    }

    /// What the dataplane refused, one sentence each: the fast path as a whole, and facts.
    pub fn refused(&self) -> Vec<String> {
        let closed = self.closed.iter();
        let closed = closed.map(|error| format!("the fast path: {error}"));
        let facts = self.refused.iter();
        let facts = facts.map(|(fact, error)| format!("{fact}: {error}"));
        closed.chain(facts).collect()
    }

    /// Brings the facts that the dataplane is to hold up to date with what `dirt` names.
    pub fn update(&mut self, world: &World<'_>, index: &Index, dirt: &Dirt) {
        let changed = self.facts.update(world, index, dirt);
        // A new connection is told everything.
        if self.connection.is_none() {
            return;
        }
        for (key, before) in changed {
            let has = self.facts.has(&key);
            self.untold.note(key, before, has);
        }
    }

    /// Asks the dataplane something; the answer comes from [`Self::take_answers`].
    ///
    /// # Errors
    /// `Unavailable` when there is no connection, `Busy` when too many questions wait.
    pub fn ask(&mut self, request: Request) -> Result<Ticket, ErrorBody> {
        if request == Request::Status {
            let now = Instant::now();
            self.drift.hurry(now);
            self.queue_comparison(now);
        }
        let Some(connection) = &mut self.connection else {
            return Err(ErrorBody::new(
                ErrorCode::Unavailable,
                format!("podway-dataplane is not connected: {}", self.reason),
            ));
        };
        let is_question = |(purpose, _): &&(Purpose, _)| matches!(purpose, Purpose::Question(..));
        if connection.waiting.iter().filter(is_question).count() >= MAX_QUESTIONS {
            return Err(ErrorBody::new(
                ErrorCode::Busy,
                "too many clients ask; ask again later",
            ));
        }
        self.next_ticket += 1;
        let purpose = Purpose::Question(self.next_ticket, Instant::now());
        connection.queue((purpose, request));
        Ok(self.next_ticket)
    }

    /// The answers that have come since the last call.
    pub fn take_answers(&mut self) -> Vec<Answer> {
        std::mem::take(&mut self.answers)
    }

    /// When [`Self::advance`] has something to do though nothing came.
    pub fn deadline(&self) -> Option<Instant> {
        match &self.connection {
            None => Some(self.next_attempt),
            Some(connection) => {
                let under_way = connection.under_way.as_ref();
                let answer = under_way.map(|(purpose, since)| *since + purpose.limit());
                let question = connection.questions().map(|(_, asked)| asked + ANSWER);
                let compare = self.drift.due().filter(|_| self.may_compare());
                let all = answer.into_iter().chain(self.retry_refused);
                all.chain(question.min()).chain(compare).min()
            }
        }
    }

    /// Does all that can be done now: connects, reads, writes, gives up on what takes too long.
    pub fn advance(&mut self, registry: &Registry, now: Instant) {
        if self.connection.is_none() && now >= self.next_attempt {
            self.connect(registry, now);
        }
        if self.connection.is_some()
            && let Err(reason) = self.exchange(now)
        {
            self.disconnect(registry, now, reason);
        }
        self.give_up_questions(now);
    }

    /// Answers questions that have waited behind changes for too long.
    fn give_up_questions(&mut self, now: Instant) {
        let Some(connection) = &mut self.connection else {
            return;
        };
        let late = connection.take_questions(now, ANSWER);
        self.answers.extend(late.into_iter().map(|ticket| {
            let error = "podway-dataplane is busy with changes; ask again later";
            (ticket, Err(ErrorBody::new(ErrorCode::Busy, error)))
        }));
    }

    fn connect(&mut self, registry: &Registry, now: Instant) {
        let connected = UnixStream::connect(&self.path).and_then(|mut stream| {
            let interest = Interest::READABLE | Interest::WRITABLE;
            registry.register(&mut stream, self.token, interest)?;
            Ok(stream)
        });
        match connected {
            Ok(stream) => {
                let hello = Request::Hello { version: VERSION };
                self.connection = Some(Connection::new(stream, (Purpose::Hello, hello)));
            }
            Err(error) => {
                let path = self.path.display();
                self.reason = format!("{path}: {error}; start podway-dataplane");
                self.next_attempt = now + RECONNECT;
            }
        }
    }

    fn disconnect(&mut self, registry: &Registry, now: Instant, reason: Fault) {
        let Some(mut connection) = self.connection.take() else {
            return;
        };
        tracing::warn!(reason = %reason.text, "lost the dataplane");
        let _ = registry.deregister(&mut connection.stream);
        self.next_attempt = now + reason.pause;
        self.reason = reason.text;
        self.untold = Untold::default();
        self.refused.clear();
        self.closed = None;
        self.retry_refused = None;
        self.drift.forget();
        let under_way = connection.under_way.map(|(purpose, _)| purpose);
        let waiting = connection.waiting.into_iter().map(|(purpose, _)| purpose);
        for purpose in under_way.into_iter().chain(waiting) {
            if let Purpose::Question(ticket, _) = purpose {
                let error = format!("podway-dataplane did not answer: {}", self.reason);
                self.answers
                    .push((ticket, Err(ErrorBody::new(ErrorCode::Unavailable, error))));
            }
        }
    }

    /// Reads, handles, queues and writes until the socket has no more and takes no more.
    fn exchange(&mut self, now: Instant) -> Result<(), Fault> {
        loop {
            self.queue_changes(now);
            self.queue_comparison(now);
            let Some(connection) = &mut self.connection else {
                return Ok(());
            };
            connection.send_next(now);
            connection.write()?;
            match connection.next_answer()? {
                Some((purpose, response)) => self.handle(purpose, response, now)?,
                None => {
                    let under_way = connection.under_way.as_ref();
                    let late = under_way.map(|(purpose, since)| (purpose.limit(), *since));
                    return match late {
                        Some((limit, since)) if now.saturating_duration_since(since) >= limit => {
                            let text = format!("no answer within {limit:?}; is it stopped?");
                            Err(Fault::slow(&text))
                        }
                        _ => Ok(()),
                    };
                }
            }
        }
    }

    /// Queues the next changes, once the dataplane has dealt with those before.
    fn queue_changes(&mut self, now: Instant) {
        let Some(connection) = &mut self.connection else {
            return;
        };
        if connection.has_changes() {
            return;
        }
        if let Some(last) = &connection.syncing {
            let rest = self.facts.after(last.as_ref());
            let batch = Batch::of(rest.filter_map(|key| {
                let change = self.facts.tell(&key)?;
                Some((key, change))
            }));
            match batch.last() {
                Some(last) => {
                    connection.syncing = Some(Some(last.clone()));
                    connection.queue_apply(batch);
                }
                None => {
                    connection.syncing = None;
                    connection.queue((Purpose::SyncEnd, Request::SyncEnd));
                }
            }
            return;
        }
        if !connection.synced {
            return;
        }
        if self.retry_refused.is_some_and(|at| now >= at) {
            self.retry_refused = None;
            for key in self.refused.keys() {
                let has = self.facts.has(key);
                self.untold.note(key.clone(), Before::Other, has);
            }
        }
        let (untold, facts) = (&mut self.untold, &self.facts);
        let batch = Batch::of(std::iter::from_fn(|| untold.next(facts)));
        if batch.last().is_some() {
            connection.queue_apply(batch);
        }
    }

    /// Whether the dataplane may be asked what it holds: not while that changes, nor twice.
    fn may_compare(&self) -> bool {
        let connection = self.connection.as_ref();
        self.has_told_all() && connection.is_some_and(|connection| !connection.compares())
    }

    /// Queues the question what the dataplane holds, if it is time for it. What changes from now on
    /// is told after it has answered.
    fn queue_comparison(&mut self, now: Instant) {
        if self.drift.due().is_none_or(|due| now < due) || !self.may_compare() {
            return;
        }
        let told = self.facts.digests();
        self.drift.ask(now);
        if let Some(connection) = &mut self.connection {
            connection.queue((Purpose::Compare(told), Request::Digest));
        }
    }

    fn compare(&mut self, told: Digests, held: &Digests, now: Instant) {
        let outcome = self.drift.compare(told, held, &self.refused, now);
        if outcome == Outcome::TellAnew {
            self.queue_full_sync();
        }
    }

    fn handle(&mut self, purpose: Purpose, response: Response, now: Instant) -> Result<(), Fault> {
        match (purpose, response) {
            (Purpose::Question(ticket, _), response) => self.answers.push((ticket, Ok(response))),
            (
                Purpose::Hello,
                Response::Hello {
                    version: VERSION,
                    pid,
                },
            ) => {
                tracing::info!(pid, "connected to the dataplane");
                self.queue_full_sync();
            }
            (Purpose::Hello, Response::Hello { version, .. }) => {
                return Err(Fault::slow(&mismatch(VERSION, version).message));
            }
            (Purpose::SyncBegin, Response::Done) => {}
            (Purpose::Apply(told), Response::Applied { refused }) => {
                self.note_refused(&told, &refused, now);
            }
            (Purpose::SyncEnd, Response::Done) => {
                if let Some(connection) = &mut self.connection {
                    connection.synced = true;
                }
                self.drift.told_all(now);
                tracing::info!("the dataplane holds this node's facts");
            }
            (Purpose::Compare(told), Response::Digest(held)) => self.compare(told, &held, now),
            (Purpose::Compare(_), Response::Error(error))
                if error.code == ErrorCode::BadRequest =>
            {
                self.drift.cannot_be_asked();
            }
            (_, Response::Error(error)) => return Err(Fault::slow(&error.message)),
            (purpose, response) => {
                return Err(Fault::slow(&format!(
                    "answered {response:?} to {purpose:?}"
                )));
            }
        }
        Ok(())
    }

    fn queue_full_sync(&mut self) {
        let Some(connection) = &mut self.connection else {
            return;
        };
        connection.queue((Purpose::SyncBegin, Request::SyncBegin));
        connection.syncing = Some(None);
        connection.synced = false;
        self.untold = Untold::default();
    }

    fn note_refused(&mut self, told: &[Told], refused: &[Refused], now: Instant) {
        for Told { key, .. } in told {
            self.refused.remove(key);
        }
        let was_closed = self.closed.take();
        for Refused { index, error } in refused {
            let Some(Told { key, removes }) = told.get(*index) else {
                if was_closed.is_none() {
                    tracing::error!(%error, "the dataplane has closed the fast path");
                }
                self.closed = Some(error.message.clone());
                continue;
            };
            // What is to be removed and is not there is as it should be.
            if *removes && error.code == ErrorCode::NotFound {
                continue;
            }
            tracing::warn!(fact = %key, %error, "the dataplane refused a fact");
            self.refused.insert(key.clone(), error.message.clone());
            self.retry_refused = Some(now + RETRY_REFUSED);
        }
    }
}

#[cfg(test)]
mod tests;
