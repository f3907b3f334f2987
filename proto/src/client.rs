//! A client of `control.sock`, which `podway` itself uses, and of `dataplane.sock`.
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

use std::fmt::Debug;
use std::io::{self, ErrorKind};
use std::marker::PhantomData;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::{ErrorBody, VERSION, control, dataplane, mismatch};

use serde::Serialize;
use serde::de::DeserializeOwned;

pub use bulk::BulkOptions;
pub use lines::Lines;

/// What differs between the two protocols for who asks.
pub trait Protocol: Debug {
    /// What may be asked.
    type Request: Serialize;
    /// What is answered.
    type Response: DeserializeOwned;
    /// The program that answers.
    const DAEMON: &str;

    /// The first request of a connection.
    fn hello(version: u32) -> Self::Request;
    /// Takes hello and refusals out of the answers.
    fn sort(response: Self::Response) -> Answer<Self::Response>;
}

/// An answer of either protocol.
#[derive(Debug)]
pub enum Answer<R> {
    /// To hello: the daemon's version.
    Hello(u32),
    /// The request was refused.
    Refused(ErrorBody),
    /// Any other.
    Other(R),
}

/// The protocol of `control.sock`.
#[derive(Debug)]
pub struct Control;

/// The protocol of `dataplane.sock`.
#[derive(Debug)]
pub struct Dataplane;

impl Protocol for Control {
    type Request = control::Request;
    type Response = control::Response;
    const DAEMON: &str = "podway-control";

    fn hello(version: u32) -> control::Request {
        control::Request::Hello { version }
    }

    fn sort(response: control::Response) -> Answer<control::Response> {
        match response {
            control::Response::Hello { version, .. } => Answer::Hello(version),
            control::Response::Error(error) => Answer::Refused(error),
            other => Answer::Other(other),
        }
    }
}

impl Protocol for Dataplane {
    type Request = dataplane::Request;
    type Response = dataplane::Response;
    const DAEMON: &str = "podway-dataplane";

    fn hello(version: u32) -> dataplane::Request {
        dataplane::Request::Hello { version }
    }

    fn sort(response: dataplane::Response) -> Answer<dataplane::Response> {
        match response {
            dataplane::Response::Hello { version, .. } => Answer::Hello(version),
            dataplane::Response::Error(error) => Answer::Refused(error),
            other => Answer::Other(other),
        }
    }
}

/// A connection to `podway-control`.
pub type Client = Connection<Control>;

/// A connection to `podway-dataplane`.
pub type DataplaneClient = Connection<Dataplane>;

/// A connection to a daemon after `hello`. Requests are answered one by one, in order.
#[derive(Debug)]
pub struct Connection<P> {
    socket: PathBuf,
    lines: Lines,
    timeout: Duration,
    protocol: PhantomData<P>,
}

/// Why a call has no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody serves the socket, or this process may not speak to who does.
    #[error("cannot reach {daemon} at {}: {source}; {}", socket.display(), remedy(daemon, source))]
    Unreachable {
        /// The daemon's program.
        daemon: &'static str,
        /// The socket.
        socket: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The daemon took no connection, or gave no answer, in time. Whether the request was carried
    /// out is not known; the connection is of no more use.
    #[error(
        "{daemon} at {} did not answer within {} s; see its log, or give it more time with \
         --timeout", socket.display(), timeout.as_secs_f64()
    )]
    TimedOut {
        /// The daemon's program.
        daemon: &'static str,
        /// The socket.
        socket: PathBuf,
        /// How long was waited.
        timeout: Duration,
    },
    /// The connection broke before the answer. Whether the request was carried out is not known.
    #[error("{daemon} at {} did not answer: {source}; see its log", socket.display())]
    Lost {
        /// The daemon's program.
        daemon: &'static str,
        /// The socket.
        socket: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// What came is no answer of this protocol.
    #[error(
        "what serves {} gave no answer of protocol version {VERSION}: {message}; is it \
         {daemon}?", socket.display()
    )]
    Nonsense {
        /// The daemon's program.
        daemon: &'static str,
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

fn remedy(daemon: &str, error: &io::Error) -> String {
    match error.kind() {
        ErrorKind::PermissionDenied => "run as root or as a member of its group".to_owned(),
        _ => format!("is {daemon} running, and is its --run-dir where you look?"),
    }
}

impl<P: Protocol> Connection<P> {
    /// Connects to `socket` and says `hello`. `timeout` is how long to wait for the connection
    /// with its greeting, and then for each answer as a whole.
    ///
    /// # Errors
    /// [`ClientError`]; [`Refused`](ClientError::Refused) when client and daemon speak different
    /// versions of the protocol, or too many clients are connected.
    pub fn connect(socket: &Path, timeout: Duration) -> Result<Self, ClientError> {
        let daemon = P::DAEMON;
        let deadline = Instant::now() + timeout;
        let lines = Lines::connect(socket, timeout).map_err(|source| {
            let socket = socket.to_owned();
            match source.kind() {
                ErrorKind::WouldBlock => ClientError::TimedOut {
                    daemon,
                    socket,
                    timeout,
                },
                _ => ClientError::Unreachable {
                    daemon,
                    socket,
                    source,
                },
            }
        })?;
        let mut client = Self {
            socket: socket.to_owned(),
            lines,
            timeout,
            protocol: PhantomData,
        };
        match client.exchange(&P::hello(VERSION), deadline)? {
            Answer::Hello(VERSION) => Ok(client),
            Answer::Hello(version) => Err(ClientError::Refused(mismatch(VERSION, version))),
            _ => Err(client.nonsense("hello was not answered by hello")),
        }
    }

    /// Sends a request and waits for its answer, which is never an error or hello.
    ///
    /// # Errors
    /// [`ClientError`]. After one other than [`Refused`](ClientError::Refused) connect anew.
    pub fn call(&mut self, request: &P::Request) -> Result<P::Response, ClientError> {
        match self.exchange(request, Instant::now() + self.timeout)? {
            Answer::Other(response) => Ok(response),
            _ => Err(self.nonsense("it was answered by hello")),
        }
    }

    fn exchange(
        &mut self,
        request: &P::Request,
        deadline: Instant,
    ) -> Result<Answer<P::Response>, ClientError> {
        let response = self.lines.exchange(request, deadline);
        match P::sort(response.map_err(|error| self.failed(error))?) {
            Answer::Refused(error) => Err(ClientError::Refused(error)),
            answer => Ok(answer),
        }
    }

    fn failed(&self, source: io::Error) -> ClientError {
        let (daemon, socket) = (P::DAEMON, self.socket.clone());
        match source.kind() {
            ErrorKind::WouldBlock | ErrorKind::TimedOut => ClientError::TimedOut {
                daemon,
                socket,
                timeout: self.timeout,
            },
            ErrorKind::InvalidData => self.nonsense(&source.to_string()),
            _ => ClientError::Lost {
                daemon,
                socket,
                source,
            },
        }
    }

    /// That what was answered is no answer to what was asked.
    pub fn nonsense(&self, message: &str) -> ClientError {
        ClientError::Nonsense {
            daemon: P::DAEMON,
            socket: self.socket.clone(),
            message: message.to_owned(),
        }
    }
}
