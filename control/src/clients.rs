//! `control.sock`: lines of clients to requests, responses to lines.
//!
//! What is no request, and what comes before `hello`, is answered here; the main loop sees
//! requests only, one of a client at a time.

use std::path::Path;

use mio::{Registry, Token};
use podway_proto::codec::{decode, encode};
use podway_proto::control::{Request, Response};
use podway_proto::server::{BindError, ClientId, Handshake, LineServer, Reply};
use podway_proto::{CONTROL_SOCKET, ErrorBody, VERSION};

/// Lines taken in one round: enough to share the work that follows a change among them, few
/// enough that the kernel and the dataplane get their turn.
const LINES_PER_ROUND: usize = 64;

/// The socket and the clients that are connected to it.
#[derive(Debug)]
pub struct Clients {
    server: LineServer<Handshake>,
}

impl Clients {
    /// Opens the socket in `run_dir`. The tokens from `first` on are its own.
    ///
    /// # Errors
    /// [`BindError`] names the file, or says that a second daemon is running.
    pub fn listen(run_dir: &Path, registry: &Registry, first: usize) -> Result<Self, BindError> {
        let server = LineServer::bind(&run_dir.join(CONTROL_SOCKET), registry, first)?;
        Ok(Self { server })
    }

    /// Notes an event of one of its tokens.
    pub fn ready(&mut self, token: Token, registry: &Registry) {
        self.server.ready(token, registry);
    }

    /// The requests of a round. Each is owed a [`Clients::respond`].
    pub fn take_requests(&mut self) -> Vec<(ClientId, Request)> {
        let mut requests = Vec::new();
        self.server
            .take_lines(LINES_PER_ROUND, |client, handshake, line| {
                let request = match decode(line) {
                    Ok(request) => request,
                    Err(error) => return Reply::Now(refusal(error)),
                };
                if let Request::Hello { version } = request {
                    return greet(handshake, version);
                }
                if let Err(error) = handshake.check() {
                    return Reply::Now(refusal(error));
                }
                requests.push((client, request));
                Reply::Later
            });
        requests
    }

    /// Gives a client the response to its request.
    pub fn respond(&mut self, client: ClientId, response: &Response) {
        self.server.respond(client, encode(response));
    }

    /// Writes what clients take. Whether the next round must not wait for an event.
    #[must_use = "requests that wait are not told of again"]
    pub fn flush(&mut self, registry: &Registry) -> bool {
        self.server.flush(registry)
    }
}

fn greet(handshake: &mut Handshake, version: u32) -> Reply {
    match handshake.hello(version) {
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

        /// The client sends `text`; the requests that the main loop gets of it, all answered.
        fn send(&mut self, text: &str) -> Vec<Request> {
            self.client.get_mut().write_all(text.as_bytes()).unwrap();
            self.clients.ready(Token(FIRST + 1), self.poll.registry());
            let mut all = Vec::new();
            loop {
                for (client, request) in self.clients.take_requests() {
                    self.clients.respond(client, &Response::Done);
                    all.push(request);
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
        assert_eq!(bench.send(&text), [Request::Status, Request::NodeList]);
        let greeting = Response::Hello {
            version: VERSION,
            pid: std::process::id(),
        };
        assert_eq!(bench.receive(), greeting);
        assert_eq!(bench.receive(), Response::Done);
        assert_eq!(bench.refusal(), ErrorCode::BadRequest);
        assert_eq!(bench.receive(), Response::Done);
    }
}
