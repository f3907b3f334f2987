//! A connection to a daemon's socket: documents out, documents in, within a time.

use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::codec::{MAX_RESPONSE, encode};

/// Bytes asked of the socket at once.
const READ: usize = 64 << 10;

/// The asking side of either socket, before anything is said.
#[derive(Debug)]
pub struct Lines {
    stream: UnixStream,
    /// What the daemon sent after the last answer: nothing, if it keeps to the protocol.
    input: Vec<u8>,
}

impl Lines {
    /// Connects to the socket at `path`.
    ///
    /// # Errors
    /// What the system says; `WouldBlock` when the daemon takes no connection within `timeout`.
    pub fn connect(path: &Path, timeout: Duration) -> io::Result<Self> {
        let address = SocketAddrUnix::new(path)?;
        let flags = SocketFlags::CLOEXEC;
        let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        // A daemon that accepts nobody has a full queue, and connecting waits for a place in it: for
        // as long as a send may take (`unix_stream_connect` of net/unix/af_unix.c).
        set_socket_timeout(&socket, Timeout::Send, Some(timeout))?;
        loop {
            match connect(&socket, &address) {
                Ok(()) => break,
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(Self {
            stream: socket.into(),
            input: Vec::new(),
        })
    }

    /// Sends `request` and waits until `deadline` for its answer as a whole. After an error the
    /// connection is of no more use.
    ///
    /// # Errors
    /// What the system says; `WouldBlock` or `TimedOut` when it is too late, `UnexpectedEof` when
    /// the daemon has closed the connection, `InvalidData` when the answer is too long or no
    /// `Response`.
    pub fn exchange<Request: Serialize, Response: DeserializeOwned>(
        &mut self,
        request: &Request,
        deadline: Instant,
    ) -> io::Result<Response> {
        // A daemon that closes at once, such as one that turns a client away, may have answered
        // before: what it said counts more than that it does not listen.
        let sent = self.send(&encode(request), deadline);
        let line = match (self.receive(deadline), sent) {
            (Ok(line), _) => line,
            (Err(_), Err(error)) | (Err(error), Ok(())) => return Err(error),
        };
        serde_json::from_slice(&line).map_err(|error| io::Error::new(ErrorKind::InvalidData, error))
    }

    fn send(&mut self, mut bytes: &[u8], deadline: Instant) -> io::Result<()> {
        while !bytes.is_empty() {
            self.stream.set_write_timeout(Some(left(deadline)?))?;
            match self.stream.write(bytes) {
                Ok(written) => bytes = bytes.get(written..).unwrap_or_default(),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// One line without its newline.
    fn receive(&mut self, deadline: Instant) -> io::Result<Vec<u8>> {
        let mut searched = 0;
        loop {
            let newline = self.input[searched..].iter().position(|&b| b == b'\n');
            if let Some(at) = newline {
                let rest = self.input.split_off(searched + at + 1);
                let mut line = std::mem::replace(&mut self.input, rest);
                line.pop();
                return Ok(line);
            }
            searched = self.input.len();
            if searched >= MAX_RESPONSE {
                let message = format!("the answer is longer than {MAX_RESPONSE} bytes");
                return Err(io::Error::new(ErrorKind::InvalidData, message));
            }
            self.stream.set_read_timeout(Some(left(deadline)?))?;
            self.input.resize(searched + READ, 0);
            let read = self.stream.read(&mut self.input[searched..]);
            let got = read.as_ref().copied().unwrap_or(0);
            self.input.truncate(searched + got);
            match read {
                Ok(0) => {
                    let message = "it closed the connection";
                    return Err(io::Error::new(ErrorKind::UnexpectedEof, message));
                }
                Err(error) if error.kind() != ErrorKind::Interrupted => return Err(error),
                _ => {}
            }
        }
    }
}

/// The time that is left, which is more than nothing: zero would mean for ever.
fn left(deadline: Instant) -> io::Result<Duration> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return Err(ErrorKind::TimedOut.into());
    }
    // Below a microsecond the system call rounds down to zero.
    Ok(left.max(Duration::from_micros(1)))
}
