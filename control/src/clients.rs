//! `control.sock`: lines of clients to requests, responses to lines.
//!
//! What is no request, what comes before `hello`, and a bulk that is not whole yet are answered
//! here; the main loop sees tasks only, one of a client at a time.

use std::collections::HashMap;
use std::path::Path;
use std::time::Instant;

use mio::{Registry, Token};
use podway_proto::codec::{decode, encode};
use podway_proto::control::{Request, Response};
use podway_proto::server::{BindError, ClientId, Handshake, LineServer, Reply};
use podway_proto::{CONTROL_SOCKET, ErrorBody, VERSION};

use crate::bulk::{Bulk, Handle, Turn};
use crate::tally::{NO_REQUEST, Tally};

/// Lines taken in one round: enough to share the work that follows a change among them, few
/// enough that the kernel and the dataplane get their turn.
const LINES_PER_ROUND: usize = 64;

/// The socket and the clients that are connected to it.
#[derive(Debug)]
pub struct Clients {
    server: LineServer<Connection>,
    bulks: Turn,
    tally: Tally,
    /// What each client that is owed a response has asked for.
    asked: HashMap<ClientId, &'static str>,
}

/// What is kept for a connection.
#[derive(Debug, Default)]
struct Connection {
    handshake: Handshake,
    bulk: Handle,
}

/// What the main loop does for a client.
#[derive(Debug, PartialEq, Eq)]
pub enum Task {
    /// A request as it came.
    Request(Request),
    /// A bulk that was handed over as a whole.
    Bulk(Bulk),
}

impl Clients {
    /// Opens the socket in `run_dir`. The tokens from `first` on are its own.
    ///
    /// # Errors
    /// [`BindError`] names the file, or says that a second daemon is running.
    pub fn listen(run_dir: &Path, registry: &Registry, first: usize) -> Result<Self, BindError> {
        let server = LineServer::bind(&run_dir.join(CONTROL_SOCKET), registry, first)?;
        if let Some(warning) = server.warning() {
            tracing::warn!("{warning}");
        }
        Ok(Self {
            server,
            bulks: Turn::default(),
            tally: Tally::default(),
            asked: HashMap::new(),
        })
    }

    /// What was asked for so far, and from now on.
    pub fn tally(&self) -> Tally {
        self.tally.clone()
    }

    /// Notes an event of one of its tokens.
    pub fn ready(&mut self, token: Token, registry: &Registry) {
        self.server.ready(token, registry);
    }

    /// The tasks of a round. Each is owed a [`Clients::respond`].
    pub fn take_tasks(&mut self) -> Vec<(ClientId, Task)> {
        let mut tasks = Vec::new();
        let (bulks, now) = (&mut self.bulks, Instant::now());
        let (tally, asked) = (&self.tally, &mut self.asked);
        self.server
            .take_lines(LINES_PER_ROUND, |client, peer, connection, line| {
                let request = match decode(line) {
                    Ok(request) => request,
                    Err(error) => {
                        tally.count(NO_REQUEST, Some(error.code));
                        return Reply::Now(refusal(error));
                    }
                };
                let name = Request::name(&request);
                if let Request::Hello { version } = request {
                    let greeted = connection.handshake.hello(version);
                    tally.count(name, greeted.as_ref().err().map(|error| error.code));
                    return greet(greeted);
                }
                let checked = connection.handshake.check().and_then(|()| {
                    if request.only_asks() {
                        Ok(())
                    } else {
                        peer.check_change()
                    }
                });
                match checked.and_then(|()| connection.take(request, line.len(), bulks, now)) {
                    Ok(Some(task)) => {
                        asked.insert(client, name);
                        tasks.push((client, task));
                        Reply::Later
                    }
                    Ok(None) => {
                        tally.count(name, None);
                        Reply::Now(encode(&Response::Done))
                    }
                    Err(error) => {
                        tally.count(name, Some(error.code));
                        Reply::Now(refusal(error))
                    }
                }
            });
        tasks
    }

    /// Gives a client the response to its request.
    pub fn respond(&mut self, client: ClientId, response: &Response) {
        if let Some(name) = self.asked.remove(&client) {
            self.tally.answered(name, response);
        }
        self.server.respond(client, encode(response));
    }

    /// Writes what clients take. Whether the next round must not wait for an event.
    #[must_use = "requests that wait are not told of again"]
    pub fn flush(&mut self, registry: &Registry) -> bool {
        self.server.flush(registry)
    }
}

impl Connection {
    /// What is to be done for a request that came in so many `bytes`; nothing yet for a part of a
    /// bulk.
    fn take(
        &self,
        request: Request,
        bytes: usize,
        bulks: &mut Turn,
        now: Instant,
    ) -> Result<Option<Task>, ErrorBody> {
        match request {
            Request::BulkBegin { replace, dry_run } => {
                bulks.begin(&self.bulk, replace, dry_run, now)?;
                Ok(None)
            }
            Request::BulkPart(entries) => {
                self.bulk.add(entries, bytes, now)?;
                Ok(None)
            }
            Request::BulkEnd => Ok(Some(Task::Bulk(self.bulk.end()?))),
            request => Ok(Some(Task::Request(request))),
        }
    }
}

fn greet(greeted: Result<(), ErrorBody>) -> Reply {
    match greeted {
        Ok(()) => Reply::Now(encode(&Response::Hello {
            version: VERSION,
            pid: std::process::id(),
        })),
        Err(error) => Reply::Last(refusal(error)),
    }
}

fn refusal(error: ErrorBody) -> Vec<u8> {
    encode(&Response::Error(error))
}

#[cfg(test)]
mod tests {
    use std::io::{BufReader, Read, Write};
    use std::os::unix::net::UnixStream;

    use mio::Poll;
    use podway_proto::ErrorCode;
    use podway_proto::entries::Entries;

    use super::*;

    const FIRST: usize = 7;

    struct Bench {
        poll: Poll,
        clients: Clients,
        client: BufReader<UnixStream>,
        _directory: tempfile::TempDir,
    }

    impl Bench {
        /// Clients, one of them connected.
        fn new() -> Self {
            let directory = tempfile::tempdir().unwrap();
            let poll = Poll::new().unwrap();
            let mut clients = Clients::listen(directory.path(), poll.registry(), FIRST).unwrap();
            let stream = UnixStream::connect(directory.path().join(CONTROL_SOCKET)).unwrap();
            clients.ready(Token(FIRST), poll.registry());
            Self {
                poll,
                clients,
                client: BufReader::new(stream),
                _directory: directory,
            }
        }

        /// The client sends `text`; the tasks that the main loop gets of it, all answered.
        fn send(&mut self, text: &str) -> Vec<Task> {
            self.client.get_mut().write_all(text.as_bytes()).unwrap();
            self.clients.ready(Token(FIRST + 1), self.poll.registry());
            let mut all = Vec::new();
            loop {
                for (client, task) in self.clients.take_tasks() {
                    self.clients.respond(client, &Response::Done);
                    all.push(task);
                }
                if !self.clients.flush(self.poll.registry()) {
                    return all;
                }
            }
        }

        fn receive(&mut self) -> Response {
            let mut line = String::new();
            std::io::BufRead::read_line(&mut self.client, &mut line).unwrap();
            serde_json::from_str(&line).unwrap()
        }

        fn refusal(&mut self) -> ErrorCode {
            let Response::Error(error) = self.receive() else {
                panic!("no error")
            };
            error.code
        }
    }

    #[test]
    fn hello_comes_first() {
        let mut bench = Bench::new();
        let text = "{\"request\":\"status\"}\n{\"request\":\"hello\",\"version\":99}\n\
                    {\"request\":\"status\"}\n";
        assert_eq!(bench.send(text), []);
        assert_eq!(bench.refusal(), ErrorCode::BadRequest);
        assert_eq!(bench.refusal(), ErrorCode::VersionMismatch);
        assert_eq!(bench.client.read(&mut [0]).unwrap(), 0);
    }

    #[test]
    fn requests_are_taken_in_order_and_nonsense_is_answered() {
        let mut bench = Bench::new();
        let hello = Request::Hello { version: VERSION };
        let text = String::from_utf8(encode(&hello)).unwrap()
            + "{\"request\":\"status\"}\nnonsense\n{\"request\":\"node-list\"}\n";
        let tasks = [Request::Status, Request::NodeList].map(Task::Request);
        assert_eq!(bench.send(&text), tasks);
        let greeting = Response::Hello {
            version: VERSION,
            pid: std::process::id(),
        };
        assert_eq!(bench.receive(), greeting);
        assert_eq!(bench.receive(), Response::Done);
        assert_eq!(bench.refusal(), ErrorCode::BadRequest);
        assert_eq!(bench.receive(), Response::Done);
        let counted = |name, code: &str| (name, code.to_owned(), 1);
        let all = [
            counted("hello", "ok"),
            counted("node-list", "ok"),
            counted(NO_REQUEST, "bad-request"),
            counted("status", "ok"),
        ];
        assert_eq!(bench.clients.tally().all(), all);
    }

    #[test]
    fn a_bulk_comes_to_the_main_loop_as_a_whole() {
        let mut bench = Bench::new();
        let hello = Request::Hello { version: VERSION };
        let (replace, dry_run) = (true, false);
        let begin = Request::BulkBegin { replace, dry_run };
        let part = Request::BulkPart(Entries::default());
        let lines = [
            &hello,
            &part,
            &begin,
            &part,
            &Request::BulkEnd,
            &Request::BulkEnd,
        ];
        let text: Vec<u8> = lines.into_iter().flat_map(encode).collect();
        let bulk = Bulk {
            replace,
            dry_run,
            entries: Entries::default(),
        };
        let tasks = bench.send(&String::from_utf8(text).unwrap());
        assert_eq!(tasks, [Task::Bulk(bulk)]);
        assert!(matches!(bench.receive(), Response::Hello { .. }));
        assert_eq!(bench.refusal(), ErrorCode::BadRequest);
        for _ in 0..3 {
            assert_eq!(bench.receive(), Response::Done);
        }
        assert_eq!(bench.refusal(), ErrorCode::BadRequest);
    }
}
