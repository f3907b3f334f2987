#![allow(unsafe_code, reason = "nothing safe sets UDP_SEGMENT")]
//! Raw frames and numbered datagrams, for the end-to-end tests.

use std::io::{ErrorKind, Write as _};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::process::Stdio;
use std::time::{Duration, Instant};

use crate::netns::{Netns, join, spawn};
use crate::{Error, Result};

/// How long a receiver waits for the next datagram before it calls the rest lost.
const QUIET: Duration = Duration::from_secs(1);
/// Receive buffer in bytes: what arrives is kept while the receiver does not get its core.
const RECEIVE_BUFFER: usize = 64 << 20;
/// First bytes of a numbered datagram: its number, in network byte order.
const NUMBER_LENGTH: usize = 4;

/// Sends one frame as it is, Ethernet header first, by an interface of a namespace.
///
/// # Errors
/// When the frame is refused: shorter than an Ethernet header, or longer than the interface's
/// MTU allows.
pub fn send_raw(netns: &Netns, interface: &str, frame: &[u8]) -> Result<()> {
    // socat reads the pipe once and writes once: one frame. -b holds the largest.
    let mut command = netns.command("socat");
    command.args([
        "-u",
        "-b",
        "65536",
        "STDIN",
        &format!("INTERFACE:{interface}"),
    ]);
    command.stdin(Stdio::piped()).stderr(Stdio::piped());
    let mut child = spawn(&mut command)?;
    if let Some(mut pipe) = child.stdin.take() {
        pipe.write_all(frame).map_err(Error::io("socat"))?;
    }
    let output = child.wait_with_output().map_err(Error::io("socat"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(Error::Command {
        command: format!(
            "socat, {} bytes to {interface} in {}",
            frame.len(),
            netns.name()
        ),
        status: output.status,
        stderr: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
    })
}

/// Datagrams with numbers, of one UDP flow.
#[derive(Debug, Clone)]
pub struct Numbered {
    /// How many.
    pub count: u32,
    /// Payload sizes in bytes, used in turn; at least 4 each.
    pub sizes: Vec<usize>,
    /// How many leave by one call, in turn: more than one with `UDP_SEGMENT`, which needs them to be
    /// of one size. Empty: each by a call of its own.
    pub batches: Vec<u32>,
    /// How many are sent at once.
    pub burst: u32,
    /// Pause between two bursts.
    pub pause: Duration,
}

/// What became of them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Arrived {
    /// The numbers that arrived, in order of arrival.
    pub numbers: Vec<u32>,
    /// Arrived datagrams whose length or bytes were not those sent.
    pub damaged: u32,
}

impl Arrived {
    /// Datagrams that arrived after one with a higher number.
    pub fn out_of_order(&self) -> usize {
        self.numbers
            .windows(2)
            .filter(|pair| pair[1] <= pair[0])
            .count()
    }
}

impl Numbered {
    /// Sends them from one namespace to an address of another and gives what arrived.
    ///
    /// # Errors
    /// When a socket cannot be made or used. Loss is no error.
    pub fn run(&self, from: &Netns, to: &Netns, address: IpAddr) -> Result<Arrived> {
        let socket = join(to.thread(move || {
            let socket = UdpSocket::bind(SocketAddr::new(address, 0))
                .map_err(Error::io(format!("bind {address}")))?;
            rustix::net::sockopt::set_socket_recv_buffer_size_force(&socket, RECEIVE_BUFFER)
                .map_err(|errno| Error::io("set receive buffer")(errno.into()))?;
            Ok(socket)
        }))?;
        let target = socket.local_addr().map_err(Error::io("local address"))?;
        socket
            .set_read_timeout(Some(QUIET))
            .map_err(Error::io("set timeout"))?;
        let sending = {
            let plan = self.clone();
            from.thread(move || plan.send(target))
        };
        let arrived = self.receive(&socket)?;
        join(sending)?;
        Ok(arrived)
    }

    fn send(&self, target: SocketAddr) -> Result<()> {
        let any: IpAddr = match target {
            SocketAddr::V4(_) => std::net::Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => std::net::Ipv6Addr::UNSPECIFIED.into(),
        };
        let socket = UdpSocket::bind(SocketAddr::new(any, 0)).map_err(Error::io("bind"))?;
        socket
            .connect(target)
            .map_err(Error::io(format!("connect {target}")))?;
        if !self.batches.is_empty() {
            set_segment(&socket, self.payload(0).len()).map_err(Error::io("set UDP_SEGMENT"))?;
        }
        let (mut number, mut since_pause) = (0, 0);
        let mut batches = self.batches.iter().cycle();
        while number < self.count {
            if since_pause >= self.burst.max(1) {
                since_pause = 0;
                std::thread::sleep(self.pause);
            }
            let batch = batches
                .next()
                .copied()
                .unwrap_or(1)
                .min(self.count - number);
            let payloads = (number..number + batch).flat_map(|number| self.payload(number));
            socket
                .send(&payloads.collect::<Vec<_>>())
                .map_err(Error::io(format!("send to {target}")))?;
            number += batch;
            since_pause += batch;
        }
        Ok(())
    }

    fn receive(&self, socket: &UdpSocket) -> Result<Arrived> {
        let mut arrived = Arrived::default();
        let mut buffer = vec![0; 1 << 16];
        let mut last = Instant::now();
        while arrived.numbers.len() < self.count as usize {
            let length = match socket.recv(&mut buffer) {
                Ok(length) => length,
                Err(error)
                    if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) =>
                {
                    if last.elapsed() >= QUIET {
                        break;
                    }
                    continue;
                }
                Err(error) => return Err(Error::io("receive")(error)),
            };
            last = Instant::now();
            let number = buffer[..length]
                .first_chunk()
                .copied()
                .map(u32::from_be_bytes);
            match number {
                Some(number) if buffer[..length] == self.payload(number) => {
                    arrived.numbers.push(number);
                }
                _ => arrived.damaged += 1,
            }
        }
        Ok(arrived)
    }

    fn payload(&self, number: u32) -> Vec<u8> {
        let sizes = if self.sizes.is_empty() {
            &[NUMBER_LENGTH][..]
        } else {
            &self.sizes
        };
        let size = sizes[number as usize % sizes.len()].max(NUMBER_LENGTH);
        let number = number.to_be_bytes();
        // The number again and again: what is cut, joined or shifted wrongly does not fit.
        number.into_iter().cycle().take(size).collect()
    }
}

/// Has the kernel cut what is sent at once into datagrams of `size` bytes (`UDP_SEGMENT` of
/// linux/udp.h).
fn set_segment(socket: &UdpSocket, size: usize) -> std::io::Result<()> {
    let size = libc::c_int::try_from(size).map_err(std::io::Error::other)?;
    let length = libc::socklen_t::try_from(size_of_val(&size)).map_err(std::io::Error::other)?;
    // SAFETY: value and length are those of `size`, which the kernel reads within the call.
    let set = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_UDP,
            libc::UDP_SEGMENT,
            (&raw const size).cast(),
            length,
        )
    };
    if set < 0 {
        return Err(std::io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disorder_is_counted() {
        let arrived = |numbers: &[u32]| Arrived {
            numbers: numbers.to_vec(),
            damaged: 0,
        };
        assert_eq!(arrived(&[0, 1, 2, 5, 6]).out_of_order(), 0);
        assert_eq!(arrived(&[0, 2, 1, 3, 3]).out_of_order(), 2);
    }

    #[test]
    fn payloads_carry_their_number_in_turn_of_sizes() {
        let plan = Numbered {
            count: 3,
            sizes: vec![4, 9],
            batches: Vec::new(),
            burst: 1,
            pause: Duration::ZERO,
        };
        assert_eq!(plan.payload(0x0102_0304), [1, 2, 3, 4]);
        assert_eq!(plan.payload(3), [0, 0, 0, 3, 0, 0, 0, 3, 0]);
    }
}
