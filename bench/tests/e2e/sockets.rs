//! What programs in pods send each other by UDP and TCP; all that arrives is compared byte by byte.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{
    IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket,
};
use std::sync::mpsc;
use std::time::Duration;

use podway_bench::netns::{Netns, join};

const PORT: u16 = 7001;
/// Longer than one datagram takes on a machine that others load.
const PATIENCE: Duration = Duration::from_secs(5);
/// Receive buffer in bytes: a window of datagrams is kept while the receiver does not get its core.
const RECEIVE_BUFFER: usize = 4 << 20;

fn io(error: std::io::Error) -> podway_bench::Error {
    podway_bench::Error::Unexpected(error.to_string())
}

/// Bytes that nothing of another number has.
fn content(number: u32, size: usize) -> Vec<u8> {
    let mut bytes = vec![0; size];
    fastrand::Rng::with_seed(number.into()).fill(&mut bytes);
    bytes
}

/// Datagrams of one size.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Datagrams {
    pub(crate) size: usize,
    pub(crate) count: u32,
    /// How many are on their way at once.
    pub(crate) window: u32,
}

impl Datagrams {
    /// Sends them as one flow; how many arrive whole and in order until one does not. One more when
    /// anything arrives after the last one.
    pub(crate) fn arriving(self, from: &Netns, to: &Netns, address: IpAddr) -> u32 {
        let Self {
            size,
            count,
            window,
        } = self;
        let target = SocketAddr::new(address, PORT);
        let (ready, wait) = mpsc::channel();
        let (arrived, next) = mpsc::channel();
        let receiving = to.thread(move || {
            let socket = UdpSocket::bind(target).map_err(io)?;
            rustix::net::sockopt::set_socket_recv_buffer_size_force(&socket, RECEIVE_BUFFER)
                .map_err(|errno| io(errno.into()))?;
            socket.set_read_timeout(Some(PATIENCE)).map_err(io)?;
            ready.send(()).unwrap();
            let mut buffer = vec![0; size + 1];
            for number in 0..count {
                let Ok((length, _)) = socket.recv_from(&mut buffer) else {
                    return Ok(number);
                };
                assert!(buffer[..length] == content(number, size), "{number}");
                // The sender may have gone after the last one.
                let _ = arrived.send(());
            }
            socket.set_nonblocking(true).map_err(io)?;
            match socket.recv_from(&mut buffer) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(count),
                Err(error) => Err(io(error)),
                Ok(_) => Ok(count + 1),
            }
        });
        wait.recv().unwrap();
        // Linux sets DF on what fits the route, and not on what it cuts to fragments.
        let sending = from.thread(move || {
            let any: IpAddr = match address {
                IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
                IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
            };
            let socket = UdpSocket::bind((any, 0)).map_err(io)?;
            for number in 0..count {
                if number >= window && next.recv().is_err() {
                    break;
                }
                socket.send_to(&content(number, size), target).map_err(io)?;
            }
            Ok(())
        });
        let count = join(receiving).unwrap();
        join(sending).unwrap();
        count
    }
}

/// A connection that carries `bytes` there and then as many back; how many arrived at either end. What
/// arrives is what was sent.
pub(crate) fn tcp(from: &Netns, to: &Netns, address: IpAddr, bytes: usize) -> (usize, usize) {
    const THERE: u32 = 1;
    const BACK: u32 = 2;
    let target = SocketAddr::new(address, PORT);
    let (listening, wait) = mpsc::channel();
    let server = to.thread(move || {
        let listener = TcpListener::bind(target).map_err(io)?;
        listening.send(()).unwrap();
        let (mut stream, _) = listener.accept().map_err(io)?;
        let arrived = read(&mut stream, THERE)?;
        write(&mut stream, BACK, bytes)?;
        Ok(arrived)
    });
    wait.recv().unwrap();
    let client = from.thread(move || {
        let mut stream = TcpStream::connect_timeout(&target, PATIENCE).map_err(io)?;
        write(&mut stream, THERE, bytes)?;
        read(&mut stream, BACK)
    });
    let back = join(client).unwrap();
    (join(server).unwrap(), back)
}

fn write(stream: &mut TcpStream, number: u32, bytes: usize) -> podway_bench::Result<()> {
    stream.write_all(&content(number, bytes)).map_err(io)?;
    stream.shutdown(Shutdown::Write).map_err(io)
}

/// Reads to the end.
fn read(stream: &mut TcpStream, number: u32) -> podway_bench::Result<usize> {
    stream.set_read_timeout(Some(PATIENCE)).map_err(io)?;
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).map_err(io)?;
    assert!(bytes == content(number, bytes.len()), "{}", bytes.len());
    Ok(bytes.len())
}
