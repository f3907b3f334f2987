//! ICMP echo: exact counts and round-trip times.
//!
//! The requests are our own and not those of `ping`, which waits for the last answers no longer
//! than twice the longest round trip so far: on a busy machine that calls late answers lost.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use rustix::net::{AddressFamily, SocketType, ipproto};

use crate::netns::{Netns, join};
use crate::{Error, Result};

/// How long answers are waited for after the last request.
const PATIENCE: Duration = Duration::from_secs(1);
/// The longest wait that an interruption has to wait for.
const GLANCE: Duration = Duration::from_millis(100);
/// Receive buffer in bytes: answers are kept while this thread does not get its core.
const RECEIVE_BUFFER: usize = 4 << 20;
/// Type, code, checksum, identifier and sequence number, RFC 792 and RFC 4443.
const HEADER: usize = 8;
const ECHO_REQUEST: u8 = 8;
const ECHO_REQUEST_V6: u8 = 128;

/// A run of echo requests.
#[derive(Debug, Clone)]
pub struct Ping {
    /// Requests to send.
    pub count: u16,
    /// Time between two requests.
    pub interval: Duration,
    /// Payload in bytes.
    pub size: u16,
    /// Source address; the kernel's choice by default.
    pub source: Option<IpAddr>,
}

impl Default for Ping {
    fn default() -> Self {
        Self {
            count: 10,
            interval: Duration::from_millis(10),
            size: 56,
            source: None,
        }
    }
}

/// What came back.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Replies {
    /// Requests sent.
    pub sent: u16,
    /// Different requests that were answered.
    pub received: u16,
    /// Answers beyond the first to the same request.
    pub duplicates: u16,
    /// Most requests in a row that were not answered.
    pub longest_gap: u16,
    /// Round-trip times in microseconds, in order of arrival, duplicates left out.
    pub microseconds: Vec<u64>,
}

impl Ping {
    /// Pings `target` from a namespace.
    ///
    /// # Errors
    /// When there is no route or no socket. Lost packets are no error.
    pub fn run(&self, from: &Netns, target: IpAddr) -> Result<Replies> {
        self.start(from, target).finish()
    }

    /// Starts pinging `target` in the background.
    pub fn start(&self, from: &Netns, target: IpAddr) -> Running {
        let plan = self.clone();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = from.thread(move || Exchange::begin(&plan, target)?.run(&stopped));
        Running {
            thread: Some(thread),
            stop,
        }
    }
}

/// Echo requests in the background.
#[derive(Debug)]
pub struct Running {
    thread: Option<JoinHandle<Result<Replies>>>,
    stop: Arc<AtomicBool>,
}

impl Running {
    /// Waits for the end.
    ///
    /// # Errors
    /// As [`Ping::run`].
    pub fn finish(mut self) -> Result<Replies> {
        let Some(thread) = self.thread.take() else {
            unreachable!("finish consumes what start made");
        };
        let replies = join(thread);
        crate::cleanup::interrupted()?;
        replies
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Requests and answers of one run, on an ICMP datagram socket: the kernel chooses the identifier,
/// gives the socket only answers that bear it, and makes and checks the checksums.
struct Exchange {
    plan: Ping,
    socket: UdpSocket,
    request: Vec<u8>,
    /// When each request was sent; `None` once it is answered.
    sent: Vec<Option<Instant>>,
    replies: Replies,
}

impl Exchange {
    fn begin(plan: &Ping, target: IpAddr) -> Result<Self> {
        let (family, protocol, request_type) = match target {
            IpAddr::V4(_) => (AddressFamily::INET, ipproto::ICMP, ECHO_REQUEST),
            IpAddr::V6(_) => (AddressFamily::INET6, ipproto::ICMPV6, ECHO_REQUEST_V6),
        };
        let socket: OwnedFd = rustix::net::socket(family, SocketType::DGRAM, Some(protocol))
            .map_err(|errno| Error::io("ICMP socket")(errno.into()))?;
        rustix::net::sockopt::set_socket_recv_buffer_size_force(&socket, RECEIVE_BUFFER)
            .map_err(|errno| Error::io("set receive buffer")(errno.into()))?;
        if let Some(source) = plan.source {
            rustix::net::bind(&socket, &SocketAddr::new(source, 0))
                .map_err(|errno| Error::io(format!("bind {source}"))(errno.into()))?;
        }
        let socket = UdpSocket::from(socket);
        socket
            .connect(SocketAddr::new(target, 0))
            .map_err(Error::io(format!("ping {target}")))?;
        let mut request = vec![0xa5; HEADER + usize::from(plan.size)];
        request[..HEADER].fill(0);
        request[0] = request_type;
        Ok(Self {
            plan: plan.clone(),
            socket,
            request,
            sent: Vec::new(),
            replies: Replies::default(),
        })
    }

    fn run(mut self, stop: &AtomicBool) -> Result<Replies> {
        let mut next = Instant::now();
        for number in 0..self.plan.count {
            self.receive_until(next, stop)?;
            self.request[6..HEADER].copy_from_slice(&number.to_be_bytes());
            self.sent.push(Some(Instant::now()));
            self.replies.sent += 1;
            if let Err(error) = self.socket.send(&self.request) {
                lost_on_the_way(error)?;
            }
            next += self.plan.interval;
        }
        self.receive_until(Instant::now() + PATIENCE, stop)?;
        self.replies.longest_gap = self.longest_gap();
        Ok(self.replies)
    }

    /// Takes answers until a time, or until nothing is outstanding and everything was sent.
    fn receive_until(&mut self, deadline: Instant, stop: &AtomicBool) -> Result<()> {
        let mut buffer = vec![0; self.request.len() + 1];
        while !stop.load(Ordering::Relaxed) {
            let left = deadline.saturating_duration_since(Instant::now());
            let all_sent = self.replies.sent == self.plan.count;
            if left.is_zero() || (all_sent && self.replies.received == self.plan.count) {
                break;
            }
            self.socket
                .set_read_timeout(Some(left.min(GLANCE)))
                .map_err(Error::io("set timeout"))?;
            match self.socket.recv(&mut buffer) {
                Ok(length) => self.answer(&buffer[..length], Instant::now()),
                Err(error) => lost_on_the_way(error)?,
            }
        }
        Ok(())
    }

    fn longest_gap(&self) -> u16 {
        let gaps = self.sent.split(Option::is_none).map(<[_]>::len);
        gaps.max().unwrap_or(0).try_into().unwrap_or(u16::MAX)
    }

    /// Counts an answer if it bears the payload of its request.
    fn answer(&mut self, reply: &[u8], now: Instant) {
        let Some((header, payload)) = reply.split_at_checked(HEADER) else {
            return;
        };
        let number = usize::from(u16::from_be_bytes([header[6], header[7]]));
        let Some(sent) = self.sent.get_mut(number) else {
            return;
        };
        if payload != &self.request[HEADER..] {
            return;
        }
        match sent.take() {
            Some(sent) => {
                let time = now.saturating_duration_since(sent).as_micros();
                self.replies.received += 1;
                let time = u64::try_from(time).unwrap_or(u64::MAX);
                self.replies.microseconds.push(time);
            }
            None => self.replies.duplicates += 1,
        }
    }
}

/// Errors of a connected socket that tell of one packet, by an ICMP error or a route that is gone.
fn lost_on_the_way(error: std::io::Error) -> Result<()> {
    match error.kind() {
        ErrorKind::WouldBlock
        | ErrorKind::TimedOut
        | ErrorKind::Interrupted
        | ErrorKind::HostUnreachable
        | ErrorKind::NetworkUnreachable
        | ErrorKind::ConnectionRefused => Ok(()),
        _ => Err(Error::io("ping")(error)),
    }
}

/// Median and 99th percentile of round-trip times in microseconds; `None` without any.
pub fn percentiles(microseconds: &[u64]) -> Option<(u64, u64)> {
    if microseconds.is_empty() {
        return None;
    }
    // Three digits from 1 us to a minute.
    let mut histogram = Histogram::<u32>::new_with_bounds(1, 60_000_000, 3).ok()?;
    for value in microseconds {
        histogram.saturating_record(*value);
    }
    Some((
        histogram.value_at_quantile(0.5),
        histogram.value_at_quantile(0.99),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exchange() -> Exchange {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let mut request = vec![0xa5; HEADER + 2];
        request[..HEADER].fill(0);
        Exchange {
            plan: Ping::default(),
            socket,
            request,
            sent: vec![Some(Instant::now()); 3],
            replies: Replies::default(),
        }
    }

    #[test]
    fn replies_are_counted_one_by_one() {
        let mut exchange = exchange();
        let reply = |number, payload: &[u8]| [&[0, 0, 0, 0, 9, 9, 0, number], payload].concat();
        let later = Instant::now() + Duration::from_millis(5);
        for (number, payload) in [
            (1, &[0xa5, 0xa5][..]),
            (1, &[0xa5, 0xa5]),
            (0, &[0xa5, 0xa5]),
            // Damaged, cut, never sent.
            (2, &[0xa5, 0xa4]),
            (2, &[0xa5]),
            (9, &[0xa5, 0xa5]),
        ] {
            exchange.answer(&reply(number, payload), later);
        }
        assert_eq!(exchange.longest_gap(), 1);
        let replies = exchange.replies;
        assert_eq!((replies.received, replies.duplicates), (2, 1));
        assert!(replies.microseconds.iter().all(|time| *time >= 5000));
    }

    #[test]
    fn a_lost_packet_is_no_failure() {
        assert!(lost_on_the_way(ErrorKind::HostUnreachable.into()).is_ok());
        assert!(lost_on_the_way(ErrorKind::PermissionDenied.into()).is_err());
    }

    #[test]
    fn percentiles_are_of_all_values() {
        let values: Vec<u64> = (1..=100).collect();
        assert_eq!(percentiles(&values), Some((50, 99)));
        assert_eq!(percentiles(&[]), None);
    }
}
