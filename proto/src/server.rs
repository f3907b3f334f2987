//! The serving side of both sockets: lines in, lines out, never blocking, on the caller's thread.
//!
//! A client has one line at a time with the daemon. What it sends meanwhile stays in its socket,
//! and so does everything while it does not read what it was answered. So what a client can make
//! the daemon hold is bounded, and a slow one waits alone.
//!
//! A daemon that answers each line at once calls [`LineServer::handle`] for each event. One whose
//! answers may come later goes in rounds: [`LineServer::ready`] for each event,
//! [`LineServer::take_lines`], [`LineServer::respond`] and [`LineServer::flush`].

mod client;
mod peer;
#[cfg(test)]
mod tests;

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use mio::net::{UnixListener, UnixStream};
use mio::{Interest, Registry, Token};
use rustix::fs::{FlockOperation, Mode, fchmod, flock};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, listen, socket_with,
};

use client::{Client, refusal};
pub use peer::Peer;

use crate::{ErrorBody, ErrorCode, VERSION, mismatch};

/// Most clients at once. A further one takes the place of another: of the process that holds most
/// connections, the one that has been silent for longest. It is told so and closed.
pub const MAX_CLIENTS: usize = 64;
/// Lines that [`LineServer::handle`] answers for one event before other events get their turn.
const LINES_PER_EVENT: usize = 64;

/// Who may connect: the owner and the group.
const SOCKET_MODE: u32 = 0o660;
/// How many may wait to be taken in: as many as the kernel allows (`net.core.somaxconn`).
const BACKLOG: i32 = i32::MAX;

/// How long [`LineServer::bind`] waits for a path that is in use: a killed dataplane lets go of its
/// files only after its AF_XDP sockets, each of which waits for the kernel's grace periods. With 100
/// of them that took 1.3 s.
const BUSY_RETRY: Duration = Duration::from_secs(3);
/// Between two looks at it.
const BUSY_PAUSE: Duration = Duration::from_millis(10);

/// Names a connected client. Not used again while the server lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClientId(usize);

/// What becomes of a line that was taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// This line, its newline included.
    Now(Vec<u8>),
    /// The same, and the connection ends when the client has it.
    Last(Vec<u8>),
    /// Nothing yet: [`LineServer::respond`] brings it, and no line of the client is taken before.
    Later,
}

/// A listening socket and its clients. `S` is what the daemon keeps for each connection.
#[derive(Debug)]
pub struct LineServer<S> {
    path: PathBuf,
    listener: UnixListener,
    /// Token of the listener; clients have the ones after it.
    first: usize,
    next: usize,
    /// By token.
    clients: BTreeMap<usize, Client<S>>,
    /// Token of the client that was served last: the one after it comes first.
    last: usize,
    /// Lines taken so far, and clients: the clock by which silence is told.
    now: u64,
    /// What is wrong with the directory, though the socket could be made.
    warning: Option<String>,
    /// Held while the process lives; the kernel lets go of it however the process ends.
    _lock: File,
}

/// The socket cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Another process serves it.
    #[error(
        "another process serves {}; stop it, or give this one a --run-dir of its own",
        .0.display()
    )]
    InUse(PathBuf),
    /// The system refuses.
    #[error("cannot {step} {}: {source}; choose a --run-dir that this user may write", path.display())]
    System {
        /// What was tried.
        step: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
}

impl<S: Default> LineServer<S> {
    /// Listens on `path`. Its directory is made with mode 0750 if it is missing, and one that is
    /// there is left as it is (see [`Self::warning`]); the socket has mode 0660, and a socket that
    /// nobody answers on is replaced. A lock file beside it, which stays, sees to it that of several
    /// daemons that start at once one serves. Blocks for up to three seconds while another process
    /// has the path. The tokens from `first` on are the server's.
    ///
    /// # Errors
    /// [`BindError`] names the file and the remedy.
    pub fn bind(path: &Path, registry: &Registry, first: usize) -> Result<Self, BindError> {
        Self::bind_with(path, registry, first, std::thread::sleep)
    }

    fn bind_with(
        path: &Path,
        registry: &Registry,
        first: usize,
        pause: impl FnMut(Duration),
    ) -> Result<Self, BindError> {
        let failed = |step, path: &Path| {
            let path = path.to_owned();
            move |source| BindError::System { step, path, source }
        };
        if let Some(directory) = path.parent() {
            let mut builder = DirBuilder::new();
            let builder = builder.recursive(true).mode(0o750);
            builder
                .create(directory)
                .map_err(failed("make", directory))?;
        }
        let lock_path = path.with_extension("lock");
        let lock = File::create(&lock_path).map_err(failed("make", &lock_path))?;
        let claimed = insist(|| claim(&lock, path), pause);
        if !claimed.map_err(failed("lock", &lock_path))? {
            return Err(BindError::InUse(path.to_owned()));
        }
        match fs::remove_file(path) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                return Err(failed("remove the stale socket", path)(error));
            }
            _ => {}
        }
        let mut listener = listener(path).map_err(failed("listen on", path))?;
        registry
            .register(&mut listener, Token(first), Interest::READABLE)
            .map_err(failed("listen on", path))?;
        Ok(Self {
            path: path.to_owned(),
            listener,
            first,
            next: first + 1,
            clients: BTreeMap::new(),
            last: first,
            now: 0,
            warning: path.parent().and_then(too_wide),
            _lock: lock,
        })
    }

    /// That the directory, which was there, lets more people in than the socket does; for the log.
    pub fn warning(&self) -> Option<&str> {
        self.warning.as_deref()
    }

    /// Notes an event of token `token`: takes in clients that knock, or remembers that a client's
    /// socket has become ready. Other tokens are no matter.
    pub fn ready(&mut self, token: Token, registry: &Registry) {
        if token.0 == self.first {
            self.accept(registry);
        } else if let Some(client) = self.clients.get_mut(&token.0) {
            client.ready();
        }
    }

    fn accept(&mut self, registry: &Registry) {
        loop {
            let mut stream = match self.listener.accept() {
                Ok((stream, _)) => stream,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                // Mostly WouldBlock. Who is not taken in for want of descriptors is with the next.
                Err(_) => return,
            };
            if self.clients.len() >= MAX_CLIENTS && !self.make_room(registry) {
                let message = format!("{MAX_CLIENTS} clients are connected; try again later");
                turn_away(&mut stream, ErrorBody::new(ErrorCode::Busy, message));
                continue;
            }
            let interest = Interest::READABLE | Interest::WRITABLE;
            match registry.register(&mut stream, Token(self.next), interest) {
                Ok(()) => {
                    self.now += 1;
                    let client = Client::new(stream, self.now);
                    self.clients.insert(self.next, client);
                }
                Err(error) => {
                    let message = format!("cannot wait for requests: {error}; try again later");
                    turn_away(&mut stream, ErrorBody::new(ErrorCode::System, message));
                }
            }
            self.next += 1;
        }
    }

    /// Lets go of one client, so that whoever opens many connections locks nobody else out. Whether
    /// there was one that the daemon owes nothing.
    fn make_room(&mut self, registry: &Registry) -> bool {
        let mut held: BTreeMap<i32, usize> = BTreeMap::new();
        for client in self.clients.values() {
            *held.entry(client.process()).or_default() += 1;
        }
        let silent = self.clients.iter().filter_map(|(&token, client)| {
            let held = held.get(&client.process()).copied().unwrap_or(0);
            Some((Reverse(held), client.silent_since()?, token))
        });
        let Some((.., token)) = silent.min() else {
            return false;
        };
        let Some(mut client) = self.clients.remove(&token) else {
            return false;
        };
        let message = format!(
            "{MAX_CLIENTS} clients are connected, and this one has been silent for long; connect again"
        );
        client.dismiss(ErrorBody::new(ErrorCode::Busy, message));
        // The socket leaves the poll with its descriptor; an error changes nothing.
        let _ = registry.deregister(client.stream());
        true
    }

    /// Gives up to `limit` lines, without their newlines, to `take`: one of each client in turn,
    /// beginning after the client that was served last.
    pub fn take_lines(
        &mut self,
        limit: usize,
        mut take: impl FnMut(ClientId, Peer, &mut S, &[u8]) -> Reply,
    ) {
        let mut left = limit;
        loop {
            let before = left;
            let after = self.clients.range(self.last + 1..);
            let turn: Vec<usize> = after
                .chain(self.clients.range(..=self.last))
                .map(|(&token, _)| token)
                .collect();
            for token in turn {
                if left == 0 {
                    return;
                }
                if let Some(client) = self.clients.get_mut(&token)
                    && client
                        .take_line(|peer, state, line| take(ClientId(token), peer, state, line))
                {
                    self.last = token;
                    left -= 1;
                    self.now += 1;
                    client.heard(self.now);
                }
            }
            if left == before {
                return;
            }
        }
    }

    /// Gives a client the answer, its newline included, to the line that was to be answered
    /// [`Reply::Later`]. The client may have gone meanwhile.
    pub fn respond(&mut self, client: ClientId, line: Vec<u8>) {
        if let Some(client) = self.clients.get_mut(&client.0) {
            client.respond(line);
        }
    }

    /// Writes what clients take and lets go of those that are done. Whether there may be lines to
    /// take that no event will tell of: then the next round must not wait for one.
    #[must_use = "lines that wait are not told of again"]
    pub fn flush(&mut self, registry: &Registry) -> bool {
        self.clients.retain(|_, client| {
            let keep = client.flush();
            if !keep {
                // The socket leaves the poll with its descriptor; an error changes nothing.
                let _ = registry.deregister(client.stream());
            }
            keep
        });
        self.clients.values().any(Client::may_be_taken)
    }

    /// A round for a daemon that answers each line at once. `answer` gets who it is, the connection's
    /// state and one line, and gives the line to be sent back, its newline included.
    pub fn handle(
        &mut self,
        token: Token,
        registry: &Registry,
        mut answer: impl FnMut(Peer, &mut S, &[u8]) -> Vec<u8>,
    ) {
        self.ready(token, registry);
        self.take_lines(LINES_PER_EVENT, |_, peer, state, line| {
            Reply::Now(answer(peer, state, line))
        });
        if self.flush(registry) {
            for (&token, client) in self.clients.iter_mut().filter(|(_, c)| c.may_be_taken()) {
                // Registering anew makes another event of what is ready already. It cannot fail
                // for a socket that is registered.
                let interest = Interest::READABLE | Interest::WRITABLE;
                let _ = registry.reregister(client.stream(), Token(token), interest);
            }
        }
    }
}

/// A socket that listens at `path` and that nobody but its owner and group may connect to, at any
/// moment of its life. `unix_bind_bsd` (`net/unix/af_unix.c`) gives the path the mode of the socket's
/// own inode, less the umask. The umask itself is left alone: it is the whole process's, and takes
/// permissions from what other threads make meanwhile.
fn listener(path: &Path) -> io::Result<UnixListener> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    fchmod(&socket, Mode::from_raw_mode(SOCKET_MODE))?;
    bind(&socket, &SocketAddrUnix::new(path)?)?;
    // What the umask has taken from the group.
    fs::set_permissions(path, fs::Permissions::from_mode(SOCKET_MODE))?;
    listen(&socket, BACKLOG)?;
    Ok(UnixListener::from_std(socket.into()))
}

/// A sentence on a directory that lets more people in than one that [`LineServer::bind`] makes. It is
/// left as it is: it may be anybody's, such as `/tmp`.
fn too_wide(directory: &Path) -> Option<String> {
    let mode = fs::metadata(directory).ok()?.permissions().mode() & 0o7777;
    let path = directory.display();
    (mode & 0o027 != 0).then(|| {
        format!(
            "{path} has mode {mode:04o}, wider than 0750: others come to the socket, and who may write \
             there can put another in its place; chmod 0750 {path}"
        )
    })
}

/// Claims something, again and again for as long as [`BUSY_RETRY`] while it is in use. Whether it was
/// got.
fn insist(
    mut claim: impl FnMut() -> io::Result<bool>,
    mut pause: impl FnMut(Duration),
) -> io::Result<bool> {
    let mut waited = Duration::ZERO;
    loop {
        if claim()? {
            return Ok(true);
        }
        if waited >= BUSY_RETRY {
            return Ok(false);
        }
        pause(BUSY_PAUSE);
        waited += BUSY_PAUSE;
    }
}

/// Takes `path` for this process; whether nobody else has it. `lock` may be taken already.
fn claim(lock: &File, path: &Path) -> io::Result<bool> {
    match flock(lock, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(std::os::unix::net::UnixStream::connect(path).is_err()),
        Err(Errno::WOULDBLOCK | Errno::INTR) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

impl<S> Drop for LineServer<S> {
    fn drop(&mut self) {
        // Best effort: a socket that stays is stale, and the next daemon replaces it.
        let _ = fs::remove_file(&self.path);
    }
}

fn turn_away(stream: &mut UnixStream, error: ErrorBody) {
    // The line fits into the buffer of a fresh socket.
    let _ = stream.write(&refusal(error));
}

/// What a connection has said of its version.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Handshake {
    greeted: bool,
}

impl Handshake {
    /// Takes in a `hello` with the client's protocol version.
    ///
    /// # Errors
    /// [`ErrorCode::VersionMismatch`]: nothing more can be said on this connection.
    pub fn hello(&mut self, version: u32) -> Result<(), ErrorBody> {
        self.greeted = version == VERSION;
        if self.greeted {
            return Ok(());
        }
        Err(mismatch(version, VERSION))
    }

    /// Checks that other requests may come.
    ///
    /// # Errors
    /// [`ErrorCode::BadRequest`] when `hello` was not said.
    pub fn check(&self) -> Result<(), ErrorBody> {
        if self.greeted {
            return Ok(());
        }
        let message = "the first request of a connection is hello";
        Err(ErrorBody::new(ErrorCode::BadRequest, message))
    }
}
