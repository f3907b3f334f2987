//! A client of `control.sock`, which `podway` itself uses.
//!
//! ```no_run
//! use std::path::Path;
//! use std::time::Duration;
//!
//! use podway_proto::client::{Client, ClientError};
//! use podway_proto::control::{Request, Response, RouteSpec, ViaSpec};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let socket = Path::new("/run/podway/control.sock");
//! let mut client = Client::connect(socket, Duration::from_secs(10))?;
//! let route = RouteSpec {
//!     prefix: "10.9.0.0/16".parse()?,
//!     via: ViaSpec::Node { node: "node-b".into(), vni: None },
//! };
//! match client.call(&Request::RouteAdd(route)) {
//!     Ok(_) => println!("added"),
//!     Err(ClientError::Refused(error)) => println!("{:?}: {error}", error.code),
//!     Err(error) => return Err(error.into()),
//! }
//! if let Response::Routes { routes } = client.call(&Request::RouteShow)? {
//!     println!("{} routes", routes.len());
//! }
//! # Ok(())
//! # }
//! ```

mod bulk;
mod lines;
#[cfg(test)]
mod tests;

use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::control::{Request, Response};
use crate::{ErrorBody, VERSION, mismatch};

pub use bulk::BulkOptions;
pub use lines::Lines;

/// A connection to `podway-control` after `hello`. Requests are answered one by one, in order.
#[derive(Debug)]
pub struct Client {
    socket: PathBuf,
    lines: Lines,
    timeout: Duration,
}

/// Why a call has no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody serves the socket, or this process may not speak to who does.
    #[error("cannot reach podway-control at {}: {source}; {}", socket.display(), remedy(source))]
    Unreachable {
        /// The socket.
        socket: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The daemon took no connection, or gave no answer, in time. Whether the request was carried
    /// out is not known; the connection is of no more use.
    #[error(
        "podway-control at {} did not answer within {} s; see its log, or give it more time with \
         --timeout", socket.display(), timeout.as_secs_f64()
    )]
    TimedOut {
        /// The socket.
        socket: PathBuf,
        /// How long was waited.
        timeout: Duration,
    },
    /// The connection broke before the answer. Whether the request was carried out is not known.
    #[error("podway-control at {} did not answer: {source}; see its log", socket.display())]
    Lost {
        /// The socket.
        socket: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// What came is no answer of this protocol.
    #[error(
        "what serves {} gave no answer of protocol version {VERSION}: {message}; is it \
         podway-control?", socket.display()
    )]
    Nonsense {
        /// The socket.
        socket: PathBuf,
        /// What is wrong with it.
        message: String,
    },
    /// The daemon refused; nothing has changed. With
    /// [`VersionMismatch`](crate::ErrorCode::VersionMismatch) it says which side to upgrade.
    #[error("{0}")]
    Refused(ErrorBody),
}

fn remedy(error: &io::Error) -> &'static str {
    match error.kind() {
        ErrorKind::PermissionDenied => "run as root or as a member of its group",
        _ => "is podway-control running, and is its --run-dir where you look?",
    }
}

impl Client {
    /// Connects to `socket` and says `hello`. `timeout` is how long to wait for the connection
    /// with its greeting, and then for each answer as a whole.
    ///
    /// # Errors
    /// [`ClientError`]; [`Refused`](ClientError::Refused) when client and daemon speak different
    /// versions of the protocol, or too many clients are connected.
    pub fn connect(socket: &Path, timeout: Duration) -> Result<Self, ClientError> {
        let deadline = Instant::now() + timeout;
        let lines = Lines::connect(socket, timeout).map_err(|source| {
            let socket = socket.to_owned();
            match source.kind() {
                ErrorKind::WouldBlock => ClientError::TimedOut { socket, timeout },
                _ => ClientError::Unreachable { socket, source },
            }
        })?;
        let mut client = Self {
            socket: socket.to_owned(),
            lines,
            timeout,
        };
        let hello = Request::Hello { version: VERSION };
        match client.exchange(&hello, deadline)? {
            Response::Hello {
                version: VERSION, ..
            } => Ok(client),
            Response::Hello { version, .. } => {
                Err(ClientError::Refused(mismatch(VERSION, version)))
            }
            _ => Err(client.nonsense("hello was not answered by hello")),
        }
    }

    /// Sends a request and waits for its answer, which is never [`Response::Error`].
    ///
    /// # Errors
    /// [`ClientError`]. After one other than [`Refused`](ClientError::Refused) connect anew.
    pub fn call(&mut self, request: &Request) -> Result<Response, ClientError> {
        self.exchange(request, Instant::now() + self.timeout)
    }

    fn exchange(&mut self, request: &Request, deadline: Instant) -> Result<Response, ClientError> {
        match self.lines.exchange(request, deadline) {
            Ok(Response::Error(error)) => Err(ClientError::Refused(error)),
            Ok(response) => Ok(response),
            Err(error) => Err(self.failed(error)),
        }
    }

    fn failed(&self, source: io::Error) -> ClientError {
        let socket = self.socket.clone();
        match source.kind() {
            ErrorKind::WouldBlock | ErrorKind::TimedOut => ClientError::TimedOut {
                socket,
                timeout: self.timeout,
            },
            ErrorKind::InvalidData => self.nonsense(&source.to_string()),
            _ => ClientError::Lost { socket, source },
        }
    }

    fn nonsense(&self, message: &str) -> ClientError {
        ClientError::Nonsense {
            socket: self.socket.clone(),
            message: message.to_owned(),
        }
    }
}
