//! The API thread: requests over the socket to the [`Supervisor`], answers back.

use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use mio::net::UnixStream;
use mio::{Events, Interest, Poll, Token};
use podway_proto::codec::{decode, encode};
use podway_proto::dataplane::{Request, Response};
use podway_proto::server::{BindError, Handshake, LineServer, Peer};
use podway_proto::{DATAPLANE_SOCKET, ErrorBody, ErrorCode, VERSION};

use crate::supervisor::{Supervisor, WatchHandle};

const SIGNAL: Token = Token(0);
const SERVER: usize = 1;

/// How often the supervisor does what had to wait for the workers.
const SETTLE: Duration = Duration::from_millis(100);

/// What is kept for a connection.
#[derive(Debug, Default)]
struct Session {
    handshake: Handshake,
    /// The watch that it has armed: it ends with the connection.
    watch: Option<WatchHandle>,
}

/// The socket cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// The socket cannot be made.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// Polling fails.
    #[error("cannot wait for requests: {0}")]
    Poll(#[from] io::Error),
}

/// Serves `supervisor` on the socket in `run_dir` until a byte arrives on `signal`.
///
/// # Errors
/// When the socket cannot be made or polled.
pub fn serve(
    supervisor: &mut Supervisor,
    run_dir: &Path,
    mut signal: UnixStream,
) -> Result<(), ApiError> {
    let mut poll = Poll::new()?;
    poll.registry()
        .register(&mut signal, SIGNAL, Interest::READABLE)?;
    let socket = run_dir.join(DATAPLANE_SOCKET);
    let mut server = LineServer::<Session>::bind(&socket, poll.registry(), SERVER)?;
    if let Some(warning) = server.warning() {
        tracing::warn!("{warning}");
    }
    tracing::info!(socket = %socket.display(), "ready");

    let mut events = Events::with_capacity(64);
    loop {
        match poll.poll(&mut events, Some(SETTLE)) {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error.into()),
            _ => {}
        }
        for event in &events {
            if event.token() == SIGNAL {
                return Ok(());
            }
            server.handle(event.token(), poll.registry(), |peer, session, line| {
                let response =
                    answer(supervisor, peer, session, line).unwrap_or_else(Response::Error);
                encode(&response)
            });
        }
        supervisor.end_orphaned_watches();
        supervisor.sample_drops();
        if let Err(error) = supervisor.settle() {
            tracing::error!(%error, "cannot bring the XDP maps to the tables");
        }
        // When there is more to tell this comes here anyway.
        podway_proto::log::tell_suppressed(Instant::now());
    }
}

fn answer(
    supervisor: &mut Supervisor,
    peer: Peer,
    session: &mut Session,
    line: &[u8],
) -> Result<Response, ErrorBody> {
    let request: Request = decode(line)?;
    if let Request::Hello { version } = request {
        session.handshake.hello(version)?;
        return Ok(Response::Hello {
            version: VERSION,
            pid: std::process::id(),
        });
    }
    session.handshake.check()?;
    if !request.only_asks() {
        peer.check_change()?;
    }
    match request {
        Request::Hello { .. } => {}
        Request::SyncBegin => supervisor.sync_begin(),
        Request::Apply { changes } => {
            return Ok(Response::Applied {
                refused: supervisor.apply(&changes),
            });
        }
        Request::SyncEnd => supervisor.sync_end()?,
        Request::Status => return Ok(Response::Status(supervisor.status())),
        Request::Counters => return Ok(Response::Counters(supervisor.counters()?)),
        Request::Drops => return Ok(Response::Drops(supervisor.drops()?)),
        Request::TracePacket(asked) => {
            let trace = supervisor.trace(&asked)?;
            return Ok(Response::TracePacket(Box::new(trace)));
        }
        Request::Perf => return Ok(Response::Perf(supervisor.perf())),
        Request::PerfReset => supervisor.begin_perf()?,
        Request::Log { directives } => {
            podway_proto::log::set(&directives)?;
            tracing::info!(directives, "what is logged has changed");
        }
        Request::Digest => return Ok(Response::Digest(supervisor.digests())),
        Request::WatchBegin(spec) => {
            if supervisor.is_watching(session.watch.as_ref()) {
                let message =
                    "this connection has a watch; end it first, or open another connection";
                return Err(ErrorBody::new(ErrorCode::Busy, message));
            }
            // One that has ended is in nobody's way.
            session.watch = None;
            session.watch = Some(supervisor.begin_watch(&spec)?);
            return Ok(Response::WatchBegun);
        }
        Request::WatchRead => {
            let watched = supervisor.read_watch(session.watch.as_ref())?;
            return Ok(Response::Watched(watched));
        }
        Request::WatchEnd => supervisor.end_watch(session.watch.as_ref())?,
    }
    Ok(Response::Done)
}
