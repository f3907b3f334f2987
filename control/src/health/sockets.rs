//! The sockets that probes leave by and come to: one for each of this node's addresses that other
//! nodes know. What comes to it came on that path.

use std::io::{self, ErrorKind};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::time::{Duration, Instant};

use mio::unix::SourceFd;
use mio::{Interest, Registry, Token};
use podway_proto::control::Layer;
use rustix::net::sockopt::{set_socket_recv_buffer_size_force, set_socket_send_buffer_size_force};
use socket2::{Domain, Protocol, Socket, Type};

use super::peers::Sent;
use super::probe::{LENGTH, Probe};

/// Buffers in bytes, beyond the limits of net.core as `CAP_NET_ADMIN` allows. The kernel charges
/// each datagram with 768 bytes: these are some five thousand that wait for this process, or for
/// neighbours that do not answer.
const BUFFER: usize = 4 << 20;
/// Datagrams that are taken from a socket at once, so that a flood of them does not hold up the
/// round.
const MOST_AT_ONCE: usize = 1024;
/// When a socket that could not be opened is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// All sockets.
#[derive(Debug)]
pub(super) struct Sockets {
    port: u16,
    token: Token,
    wanted: Vec<(Layer, IpAddr)>,
    open: Vec<Open>,
    errors: Vec<String>,
    /// When those that are missing are tried again; `None` when none is.
    retry: Option<Instant>,
}

#[derive(Debug)]
struct Open {
    layer: Layer,
    address: IpAddr,
    socket: UdpSocket,
}

impl Sockets {
    /// None yet; events come by `token`.
    pub(super) fn new(port: u16, token: Token) -> Self {
        Self {
            port,
            token,
            wanted: Vec::new(),
            open: Vec::new(),
            errors: Vec::new(),
            retry: None,
        }
    }

    /// Says on which of this node's addresses there are to be sockets.
    pub(super) fn want(&mut self, wanted: Vec<(Layer, IpAddr)>, now: Instant) {
        if self.wanted == wanted {
            return;
        }
        let is_wanted = |open: &Open| wanted.contains(&(open.layer, open.address));
        self.open.retain(is_wanted);
        self.wanted = wanted;
        self.retry = Some(now);
    }

    /// When a socket is to be opened.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.retry
    }

    /// Opens what is missing, when it is time to.
    pub(super) fn open(&mut self, registry: &Registry, now: Instant) {
        if self.retry.is_none_or(|at| now < at) {
            return;
        }
        let before = std::mem::take(&mut self.errors);
        for &(layer, address) in &self.wanted {
            let is_open = |open: &Open| (open.layer, open.address) == (layer, address);
            if self.open.iter().any(is_open) {
                continue;
            }
            let opened = open(address, self.port).and_then(|socket| {
                let fd = socket.as_raw_fd();
                registry.register(&mut SourceFd(&fd), self.token, Interest::READABLE)?;
                Ok(socket)
            });
            match opened {
                Ok(socket) => self.open.push(Open {
                    layer,
                    address,
                    socket,
                }),
                Err(error) => self.errors.push(complaint(address, self.port, &error)),
            }
        }
        for error in self.errors.iter().filter(|error| !before.contains(error)) {
            tracing::warn!("{error}");
        }
        self.retry = (!self.errors.is_empty()).then(|| now + RETRY);
    }

    /// Why sockets are missing.
    pub(super) fn errors(&self) -> &[String] {
        &self.errors
    }

    /// Sends a probe from the address of `layer` that has the IP version of `to`.
    pub(super) fn send(&self, layer: Layer, to: IpAddr, probe: &Probe) -> Sent {
        let fits = |open: &&Open| open.layer == layer && open.address.is_ipv4() == to.is_ipv4();
        let Some(open) = self.open.iter().find(fits) else {
            return Sent::NoSocket;
        };
        send(&open.socket, SocketAddr::new(to, self.port), probe)
    }

    /// Gives the probes that have come to `take`, and sends back what that answers. Whether there
    /// may be more.
    pub(super) fn receive(
        &self,
        mut take: impl FnMut(Layer, IpAddr, &Probe) -> Option<Probe>,
    ) -> bool {
        let mut more = false;
        for open in &self.open {
            // A byte more, so that a longer datagram does not look like one of ours.
            let mut bytes = [0; LENGTH + 1];
            let mut left = MOST_AT_ONCE;
            loop {
                if left == 0 {
                    more = true;
                    break;
                }
                left -= 1;
                let (length, from) = match open.socket.recv_from(&mut bytes) {
                    Ok(received) => received,
                    Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                    Err(_) => break,
                };
                let probe = bytes.get(..length).and_then(Probe::decode);
                if let Some(probe) = probe.filter(|_| from.port() == self.port)
                    && let Some(answer) = take(open.layer, from.ip(), &probe)
                {
                    // One that cannot leave is one that was lost.
                    send(&open.socket, from, &answer);
                }
            }
        }
        more
    }
}

fn open(address: IpAddr, port: u16) -> io::Result<UdpSocket> {
    let domain = Domain::for_address(SocketAddr::new(address, port));
    let socket = Socket::new(domain, Type::DGRAM, Some(Protocol::UDP))?;
    // The address may come after us: the VXLAN device's does.
    if address.is_ipv4() {
        socket.set_freebind_v4(true)?;
    } else {
        socket.set_freebind_v6(true)?;
    }
    set_socket_recv_buffer_size_force(&socket, BUFFER)?;
    set_socket_send_buffer_size_force(&socket, BUFFER)?;
    socket.set_nonblocking(true)?;
    socket.bind(&SocketAddr::new(address, port).into())?;
    Ok(socket.into())
}

fn complaint(address: IpAddr, port: u16, error: &io::Error) -> String {
    let remedy = if error.kind() == ErrorKind::AddrInUse {
        "stop the program that has it (ss -ulnp), or set health-port to another one on every node"
    } else {
        "or set health = false"
    };
    format!("cannot probe other nodes from {address} port {port}: {error}; {remedy}")
}

fn send(socket: &UdpSocket, to: SocketAddr, probe: &Probe) -> Sent {
    match socket.send_to(&probe.encode(), to) {
        Err(error) if is_full(&error) => Sent::Later,
        // A network without a way, or with a filter in it, loses probes as it loses all else.
        _ => Sent::Yes,
    }
}

/// Whether a probe could not leave for want of room.
fn is_full(error: &io::Error) -> bool {
    error.kind() == ErrorKind::WouldBlock || error.raw_os_error() == Some(libc::ENOBUFS)
}
