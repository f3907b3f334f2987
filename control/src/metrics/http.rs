//! As much of an HTTP server as a scrape needs: `GET /metrics`, bounded in every direction.
//!
//! One thread, which waits for several connections at once, so that one which says nothing holds up
//! nobody. All scrapes that are ready in a round are answered with one page.

use std::collections::BTreeMap;
use std::io::{self, ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token};

use super::text::CONTENT_TYPE;

/// Connections at a time; a further one takes the place of the oldest.
const MAX_CONNECTIONS: usize = 16;
/// Bytes of a request with its headers.
const MAX_REQUEST: usize = 8192;
/// How long a client may take to send its request, and then to take the answer.
const PATIENCE: Duration = Duration::from_secs(5);

const LISTENER: usize = 0;

/// A listening socket and who is connected to it.
#[derive(Debug)]
pub(super) struct Server {
    poll: Poll,
    listener: TcpListener,
    /// By token, so that the oldest comes first.
    connections: BTreeMap<usize, Connection>,
    last_token: usize,
}

#[derive(Debug)]
struct Connection {
    stream: TcpStream,
    deadline: Instant,
    request: Vec<u8>,
    /// What is left to be written; `None` until the request is read.
    answer: Option<Vec<u8>>,
    written: usize,
}

/// What is to become of a connection.
#[derive(Debug, PartialEq, Eq)]
enum Next {
    /// It waits for its client.
    Wait,
    /// It is owed a page.
    Page,
    /// It is done with, well or not.
    Close,
}

impl Server {
    /// Listens at `address`.
    ///
    /// # Errors
    /// What the system says.
    pub(super) fn bind(address: SocketAddr) -> io::Result<Self> {
        let poll = Poll::new()?;
        let mut listener = TcpListener::bind(address)?;
        let token = Token(LISTENER);
        poll.registry()
            .register(&mut listener, token, Interest::READABLE)?;
        Ok(Self {
            poll,
            listener,
            connections: BTreeMap::new(),
            last_token: LISTENER,
        })
    }

    /// Serves `page` for good; comes back only with what went wrong.
    pub(super) fn run(&mut self, mut page: impl FnMut() -> String) -> io::Error {
        let mut events = Events::with_capacity(64);
        loop {
            if let Err(error) = self.round(&mut events, &mut page) {
                return error;
            }
        }
    }

    fn round(&mut self, events: &mut Events, page: &mut impl FnMut() -> String) -> io::Result<()> {
        let now = Instant::now();
        let first = self.connections.values().map(|c| c.deadline).min();
        // A millisecond more: the system call rounds down.
        let left = |at: Instant| at.saturating_duration_since(now) + Duration::from_millis(1);
        match self.poll.poll(events, first.map(left)) {
            Err(error) if error.kind() == ErrorKind::Interrupted => return Ok(()),
            result => result?,
        }
        self.accept();
        let mut text = None;
        let now = Instant::now();
        self.connections.retain(|_, connection| {
            let mut next = connection.advance(now);
            if next == Next::Page {
                let text = text.get_or_insert_with(&mut *page);
                connection.answer(response("200 OK", CONTENT_TYPE, text));
                next = connection.advance(now);
            }
            next == Next::Wait
        });
        Ok(())
    }

    /// Takes who wants to connect. An error is that of one client, or of want of descriptors, and
    /// then the next one to come is tried again.
    fn accept(&mut self) {
        while let Ok((mut stream, _)) = self.listener.accept() {
            self.last_token += 1;
            let (token, registry) = (self.last_token, self.poll.registry());
            let interest = Interest::READABLE | Interest::WRITABLE;
            if registry
                .register(&mut stream, Token(token), interest)
                .is_err()
            {
                continue;
            }
            if self.connections.len() >= MAX_CONNECTIONS {
                self.connections.pop_first();
            }
            let connection = Connection {
                stream,
                deadline: Instant::now() + PATIENCE,
                request: Vec::new(),
                answer: None,
                written: 0,
            };
            self.connections.insert(token, connection);
        }
    }
}

impl Connection {
    /// Reads and writes what the client has sent and takes.
    fn advance(&mut self, now: Instant) -> Next {
        if self.answer.is_none() {
            match self.read() {
                Ok(true) => match refusal(&self.request) {
                    None => return Next::Page,
                    Some(status) => self.answer(response(status, "text/plain", status)),
                },
                Ok(false) if now < self.deadline => return Next::Wait,
                _ => return Next::Close,
            }
        }
        match self.write() {
            Ok(false) if now < self.deadline => Next::Wait,
            _ => Next::Close,
        }
    }

    /// Reads what has come; whether that is all that is read of the request.
    fn read(&mut self) -> io::Result<bool> {
        let mut part = [0; 1024];
        loop {
            if is_whole(&self.request) || self.request.len() >= MAX_REQUEST {
                return Ok(true);
            }
            match self.stream.read(&mut part) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(count) => self.request.extend(part.iter().take(count)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    fn answer(&mut self, answer: Vec<u8>) {
        self.answer = Some(answer);
        self.deadline = Instant::now() + PATIENCE;
    }

    /// Writes what is taken; whether that was all.
    fn write(&mut self) -> io::Result<bool> {
        let answer = self.answer.as_deref().unwrap_or_default();
        while let Some(rest) = answer.get(self.written..).filter(|rest| !rest.is_empty()) {
            match self.stream.write(rest) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(count) => self.written += count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }
}

/// Whether the empty line behind the headers has come.
fn is_whole(request: &[u8]) -> bool {
    request.windows(4).any(|four| four == b"\r\n\r\n")
}

/// Why a request gets no page, if it does not.
fn refusal(request: &[u8]) -> Option<&'static str> {
    if !is_whole(request) {
        return Some("431 Request Header Fields Too Large");
    }
    let line = request.split(|byte| *byte == b'\r').next();
    let line = line.and_then(|line| std::str::from_utf8(line).ok());
    let mut words = line.unwrap_or_default().split(' ');
    let (method, target, version) = (words.next(), words.next(), words.next());
    if words.next().is_some() || !version.is_some_and(|version| version.starts_with("HTTP/1.")) {
        return Some("400 Bad Request");
    }
    if target.and_then(|target| target.split('?').next()) != Some("/metrics") {
        return Some("404 Not Found");
    }
    (method != Some("GET")).then_some("405 Method Not Allowed")
}

fn response(status: &str, content_type: &str, body: &str) -> Vec<u8> {
    let allow = if status.starts_with("405") {
        "Allow: GET\r\n"
    } else {
        ""
    };
    let length = body.len();
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nContent-Length: {length}\r\n\
         {allow}Connection: close\r\n\r\n"
    );
    [head.as_bytes(), body.as_bytes()].concat()
}

#[cfg(test)]
mod tests {
    use std::net::{Shutdown, TcpStream};

    use super::*;

    /// A server of the page `a 1\n`; where it is.
    fn serve() -> SocketAddr {
        let mut server = Server::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = server.listener.local_addr().unwrap();
        std::thread::spawn(move || server.run(|| "a 1\n".to_owned()));
        address
    }

    fn connect(address: SocketAddr) -> TcpStream {
        let stream = TcpStream::connect(address).unwrap();
        let limit = Some(Duration::from_secs(60));
        stream.set_read_timeout(limit).unwrap();
        stream
    }

    fn rest(mut stream: TcpStream) -> String {
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        text
    }

    fn ask(address: SocketAddr, request: &str) -> String {
        let mut stream = connect(address);
        stream.write_all(request.as_bytes()).unwrap();
        rest(stream)
    }

    const PAGE: &str = "HTTP/1.1 200 OK\r\nContent-Type: text/plain; version=0.0.4; \
                        charset=utf-8\r\nContent-Length: 4\r\nConnection: close\r\n\r\na 1\n";

    #[test]
    fn a_scrape_gets_the_page_and_nothing_else_does() {
        let address = serve();
        let scrape = "GET /metrics HTTP/1.1\r\nHost: a\r\nUser-Agent: b\r\n\r\n";
        assert_eq!(ask(address, scrape), PAGE);
        assert_eq!(ask(address, "GET /metrics?a=b HTTP/1.0\r\n\r\n"), PAGE);
        for (request, status) in [
            ("GET / HTTP/1.1\r\n\r\n", "404"),
            ("GET /metrics/a HTTP/1.1\r\n\r\n", "404"),
            ("POST /metrics HTTP/1.1\r\n\r\n", "405"),
            ("HEAD /metrics HTTP/1.1\r\n\r\n", "405"),
            ("GET /metrics\r\n\r\n", "400"),
            ("GET /metrics HTTP/1.1 a\r\n\r\n", "400"),
            ("\r\n\r\n", "400"),
        ] {
            let answer = ask(address, request);
            let begin = format!("HTTP/1.1 {status} ");
            assert!(answer.starts_with(&begin), "{request:?}: {answer}");
            assert_eq!(answer.contains("\r\nAllow: GET\r\n"), status == "405");
        }
    }

    #[test]
    fn what_is_too_long_or_broken_off_is_refused() {
        let address = serve();
        let long = format!("GET /metrics HTTP/1.1\r\nA: {}", "a".repeat(8192));
        let answer = ask(address, long.get(..MAX_REQUEST).unwrap());
        assert!(answer.starts_with("HTTP/1.1 431 "), "{answer}");
        let mut stream = connect(address);
        stream.write_all(b"GET /metrics HT").unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        assert_eq!(rest(stream), "");
    }

    #[test]
    fn a_request_may_come_in_parts() {
        let mut stream = connect(serve());
        for part in ["GET /met", "rics HTTP/1.1\r\n", "\r", "\n"] {
            stream.write_all(part.as_bytes()).unwrap();
            std::thread::sleep(Duration::from_millis(5));
        }
        assert_eq!(rest(stream), PAGE);
    }

    #[test]
    fn silent_clients_hold_up_nobody() {
        let address = serve();
        let mut silent: Vec<TcpStream> =
            (0..MAX_CONNECTIONS + 4).map(|_| connect(address)).collect();
        let begin = Instant::now();
        assert_eq!(ask(address, "GET /metrics HTTP/1.1\r\n\r\n"), PAGE);
        assert!(begin.elapsed() < PATIENCE);
        // The oldest had to go at once, the others do in the end.
        for stream in silent.drain(..) {
            assert_eq!(rest(stream), "");
        }
    }
}
