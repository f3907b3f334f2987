//! One connection: bytes to lines, answers to bytes.

use std::io::{self, ErrorKind, Read, Write};

use mio::net::UnixStream;

use super::{Peer, Reply};
use crate::codec::{LineBuffer, encode};
use crate::{ErrorBody, ErrorCode};

/// Lines are taken only while fewer bytes than this wait to be read by the client.
pub(super) const MAX_OUTPUT: usize = 1 << 20;

/// A client's end: what came and is not taken yet, and what it has not read yet.
#[derive(Debug)]
pub(super) struct Client<S> {
    stream: UnixStream,
    /// The daemon's.
    state: S,
    input: LineBuffer,
    output: Vec<u8>,
    /// How much of `output` is written. What is left moves when it is less than what is not, so that
    /// each byte moves once at most.
    written: usize,
    peer: Peer,
    /// When it said something last, in the server's count of lines.
    heard: u64,
    /// Whether the daemon owes it the answer to a line.
    busy: bool,
    /// Whether the socket may have more to read.
    readable: bool,
    /// Whether all that came was looked at and no whole line is left; an event ends this.
    idle: bool,
    /// Whether it has said its last word.
    ended: bool,
    /// Whether it goes as soon as its output is written.
    closing: bool,
}

impl<S: Default> Client<S> {
    pub(super) fn new(stream: UnixStream, now: u64) -> Self {
        Self {
            written: 0,
            peer: Peer::of(&stream),
            heard: now,
            stream,
            state: S::default(),
            input: LineBuffer::default(),
            output: Vec::new(),
            busy: false,
            readable: true,
            idle: false,
            ended: false,
            closing: false,
        }
    }
}

impl<S> Client<S> {
    /// What a poll waits for.
    pub(super) fn stream(&mut self) -> &mut UnixStream {
        &mut self.stream
    }

    /// Notes that the socket has become ready.
    pub(super) fn ready(&mut self) {
        self.readable = true;
        self.idle = false;
    }

    /// Whether a line may be taken, as far as is known without looking.
    pub(super) fn may_be_taken(&self) -> bool {
        !self.busy && !self.closing && !self.idle && self.unread() < MAX_OUTPUT
    }

    /// Bytes that it has not read yet.
    fn unread(&self) -> usize {
        self.output.len() - self.written
    }

    /// Process at the other end; 0 when the system does not say.
    pub(super) fn process(&self) -> i32 {
        self.peer.process()
    }

    /// When it said something last; `None` while the daemon owes it an answer.
    pub(super) fn silent_since(&self) -> Option<u64> {
        (!self.busy).then_some(self.heard)
    }

    /// Tells it why it has to go, if it listens.
    pub(super) fn dismiss(&mut self, error: ErrorBody) {
        self.say(refusal(error));
        // It goes, whatever the socket takes of this.
        let _ = self.write();
    }

    /// Notes that a line of its was taken.
    pub(super) fn heard(&mut self, now: u64) {
        self.heard = now;
    }

    /// Gives it the answer that was to come later.
    pub(super) fn respond(&mut self, answer: Vec<u8>) {
        self.busy = false;
        self.say(answer);
    }

    /// Writes what the socket takes. Whether the connection goes on.
    pub(super) fn flush(&mut self) -> bool {
        let written = self.write().is_ok();
        let done = self.closing && !self.busy && self.unread() == 0;
        written && !done
    }

    fn say(&mut self, mut answer: Vec<u8>) {
        self.output.append(&mut answer);
    }

    /// Gives one line to `take`, reading until there is one. Whether there was one.
    pub(super) fn take_line(&mut self, take: impl FnOnce(Peer, &mut S, &[u8]) -> Reply) -> bool {
        while self.may_be_taken() {
            match self.input.next_line() {
                Ok(Some(line)) => {
                    match take(self.peer, &mut self.state, line) {
                        Reply::Now(answer) => self.say(answer),
                        Reply::Last(answer) => {
                            self.say(answer);
                            self.closing = true;
                        }
                        Reply::Later => self.busy = true,
                    }
                    return true;
                }
                Ok(None) if self.readable => self.read(),
                Ok(None) => {
                    self.idle = true;
                    self.closing |= self.ended;
                }
                Err(error) => {
                    let error = ErrorBody::new(ErrorCode::LineTooLong, error.to_string());
                    self.say(refusal(error));
                    self.closing = true;
                }
            }
        }
        false
    }

    /// Reads once. Whether there may be more is kept in `readable`.
    fn read(&mut self) {
        let mut bytes = [0; 16 << 10];
        match self.stream.read(&mut bytes) {
            Ok(0) => {
                self.readable = false;
                self.ended = true;
            }
            Ok(count) => self.input.extend(bytes.get(..count).unwrap_or_default()),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => {
                self.readable = false;
                self.closing |= error.kind() != ErrorKind::WouldBlock;
            }
        }
    }

    /// Writes until all is written or the socket takes no more.
    fn write(&mut self) -> io::Result<()> {
        let result = loop {
            let rest = self.output.get(self.written..).unwrap_or_default();
            if rest.is_empty() {
                break Ok(());
            }
            match self.stream.write(rest) {
                Ok(0) => break Err(ErrorKind::WriteZero.into()),
                Ok(count) => self.written += count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => break Err(error),
            }
        };
        if self.unread() <= self.written {
            self.output.drain(..self.written);
            self.written = 0;
        }
        result
    }
}

/// A line with an error in the shape that both protocols give it.
pub(super) fn refusal(error: ErrorBody) -> Vec<u8> {
    #[derive(serde::Serialize)]
    #[serde(tag = "response", rename_all = "kebab-case")]
    enum Refusal {
        Error(ErrorBody),
    }
    encode(&Refusal::Error(error))
}
