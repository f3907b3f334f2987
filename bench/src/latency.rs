//! Request and response between two namespaces: how long a round trip takes.
//!
//! One request is under way at a time. Client and server block in the kernel between packets, as
//! most programs do, so waking them up is part of the time, for every contender alike.

use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use serde::Serialize;

use crate::netns::{Netns, join};
use crate::{Error, Result, cleanup};

/// A request that is not answered within this is lost.
const LOST_AFTER: Duration = Duration::from_secs(1);
/// How often the server looks whether it shall end.
const LOOK: Duration = Duration::from_millis(50);
/// A request opens with its number, in network byte order.
const NUMBER_LENGTH: usize = 4;
/// Largest request in bytes.
const LARGEST: usize = 65_000;
/// Three digits of any time up to this, in nanoseconds.
const LONGEST_NS: u64 = 60_000_000_000;

/// What carries requests and responses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Transport {
    /// One datagram each.
    Udp,
    /// One connection for all of them, without Nagle's delay.
    Tcp,
}

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Latency {
    /// What carries requests and responses.
    pub transport: Transport,
    /// Bytes of payload of each request and of each response, 4 to 65000.
    pub size: usize,
    /// Requests whose times count.
    pub count: u32,
    /// Requests before them, whose times do not.
    pub warm_up: u32,
    /// Pause between a response and the next request: long enough, all sleep in between.
    pub pause: Duration,
}

impl Default for Latency {
    fn default() -> Self {
        Self {
            transport: Transport::Udp,
            size: 64,
            count: 10_000,
            warm_up: 500,
            pause: Duration::ZERO,
        }
    }
}

/// What was measured. Times are in microseconds, to three digits.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct RoundTrips {
    /// Requests whose response came.
    pub answered: u64,
    /// Requests without a response within a second, warm-up included; UDP only.
    pub lost: u64,
    /// The shortest.
    pub min_us: f64,
    /// Half took no longer.
    pub p50_us: f64,
    /// 99 of 100 took no longer.
    pub p99_us: f64,
    /// 999 of 1000 took no longer.
    pub p999_us: f64,
    /// The longest.
    pub max_us: f64,
}

impl Latency {
    /// Runs a server at `address` of one namespace and a client in another.
    ///
    /// # Errors
    /// When a socket cannot be made or used, a response is not what was asked for, or no request
    /// is answered. A lost datagram is no error.
    pub fn run(&self, client: &Netns, server: &Netns, address: IpAddr) -> Result<RoundTrips> {
        if !(NUMBER_LENGTH..=LARGEST).contains(&self.size) {
            return Err(Error::Unexpected(format!(
                "requests have {NUMBER_LENGTH} to {LARGEST} bytes, not {}",
                self.size
            )));
        }
        match self.transport {
            Transport::Udp => self.run_udp(client, server, address),
            Transport::Tcp => self.run_tcp(client, server, address),
        }
    }

    fn run_udp(&self, client: &Netns, server: &Netns, address: IpAddr) -> Result<RoundTrips> {
        let far = bind_udp(server, address, LOOK)?;
        let target = far.local_addr().map_err(Error::io("local address"))?;
        let near = bind_udp(client, unspecified(address), LOST_AFTER)?;
        near.connect(target)
            .map_err(Error::io(format!("connect {target}")))?;
        let end = Arc::new(AtomicBool::new(false));
        let echo = {
            let end = Arc::clone(&end);
            thread::spawn(move || echo_udp(&far, &end))
        };
        let result = self.ask(|request, response| exchange_udp(&near, request, response));
        end.store(true, Ordering::Relaxed);
        join(echo)?;
        result
    }

    fn run_tcp(&self, client: &Netns, server: &Netns, address: IpAddr) -> Result<RoundTrips> {
        let listener = join(server.thread(move || {
            TcpListener::bind((address, 0)).map_err(Error::io(format!("listen on {address}")))
        }))?;
        let target = listener.local_addr().map_err(Error::io("local address"))?;
        let mut near = join(client.thread(move || {
            TcpStream::connect_timeout(&target, LOST_AFTER * 5)
                .map_err(Error::io(format!("connect {target}")))
        }))?;
        // The connection stands, so this does not wait.
        let (far, _) = listener.accept().map_err(Error::io("accept"))?;
        for stream in [&near, &far] {
            let set = stream.set_nodelay(true);
            set.map_err(Error::io("switch Nagle's delay off"))?;
        }
        // TCP sends again what is lost: a response may take several of its timeouts.
        near.set_read_timeout(Some(LOST_AFTER * 10))
            .map_err(Error::io("set timeout"))?;
        let echo = thread::spawn(move || echo_tcp(far));
        let result = self.ask(|request, response| {
            near.write_all(request)?;
            near.read_exact(response)?;
            Ok(true)
        });
        drop(near);
        join(echo)?;
        result
    }

    /// `exchange` sends a request and receives its response; it gives false if that is lost.
    fn ask(
        &self,
        mut exchange: impl FnMut(&[u8], &mut [u8]) -> io::Result<bool>,
    ) -> Result<RoundTrips> {
        let mut times = Histogram::<u64>::new_with_bounds(1, LONGEST_NS, 3)
            .map_err(|error| Error::Unexpected(error.to_string()))?;
        let (mut request, mut response) = (vec![0xa5; self.size], vec![0; self.size]);
        let mut lost = 0;
        for number in 0..self.warm_up.saturating_add(self.count) {
            cleanup::interrupted()?;
            request[..NUMBER_LENGTH].copy_from_slice(&number.to_be_bytes());
            let begin = Instant::now();
            let answered = exchange(&request, &mut response);
            let time = begin.elapsed();
            if !answered.map_err(Error::io(format!("request {number}")))? {
                lost += 1;
            } else if response != request {
                return Err(Error::Unexpected(format!(
                    "the response to request {number} is not what was sent"
                )));
            } else if number >= self.warm_up {
                times.saturating_record(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));
            }
            if !self.pause.is_zero() {
                thread::sleep(self.pause);
            }
        }
        if times.is_empty() {
            return Err(Error::Unexpected(format!(
                "none of {} requests was answered",
                self.count
            )));
        }
        Ok(RoundTrips {
            answered: times.len(),
            lost,
            min_us: microseconds(times.min()),
            p50_us: microseconds(times.value_at_quantile(0.5)),
            p99_us: microseconds(times.value_at_quantile(0.99)),
            p999_us: microseconds(times.value_at_quantile(0.999)),
            max_us: microseconds(times.max()),
        })
    }
}

fn bind_udp(netns: &Netns, address: IpAddr, timeout: Duration) -> Result<UdpSocket> {
    let socket = join(netns.thread(move || {
        UdpSocket::bind((address, 0)).map_err(Error::io(format!("bind {address}")))
    }))?;
    socket
        .set_read_timeout(Some(timeout))
        .map_err(Error::io("set timeout"))?;
    Ok(socket)
}

fn unspecified(like: IpAddr) -> IpAddr {
    match like {
        IpAddr::V4(_) => std::net::Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => std::net::Ipv6Addr::UNSPECIFIED.into(),
    }
}

fn exchange_udp(socket: &UdpSocket, request: &[u8], response: &mut [u8]) -> io::Result<bool> {
    socket.send(request)?;
    let begin = Instant::now();
    loop {
        match socket.recv(response) {
            // A late response to an earlier request, which has been counted as lost.
            Ok(_) if response.get(..NUMBER_LENGTH) != request.get(..NUMBER_LENGTH) => {}
            Ok(_) => return Ok(true),
            Err(error) if is_timeout(&error) => return Ok(false),
            Err(error) => return Err(error),
        }
        if begin.elapsed() > LOST_AFTER {
            return Ok(false);
        }
    }
}

fn echo_udp(socket: &UdpSocket, end: &AtomicBool) -> Result<()> {
    let mut buffer = vec![0; LARGEST];
    while !end.load(Ordering::Relaxed) {
        let (length, from): (usize, SocketAddr) = match socket.recv_from(&mut buffer) {
            Ok(received) => received,
            Err(error) if is_timeout(&error) => continue,
            Err(error) => return Err(Error::io("receive a request")(error)),
        };
        socket
            .send_to(&buffer[..length], from)
            .map_err(Error::io(format!("respond to {from}")))?;
    }
    Ok(())
}

/// Ends with the connection, however that ends: the client tells.
fn echo_tcp(mut stream: TcpStream) -> Result<()> {
    let mut buffer = vec![0; LARGEST];
    while let Ok(length @ 1..) = stream.read(&mut buffer) {
        if stream.write_all(&buffer[..length]).is_err() {
            break;
        }
    }
    Ok(())
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut)
}

#[expect(
    clippy::cast_precision_loss,
    reason = "a minute has far fewer than 2^53 ns"
)]
fn microseconds(nanoseconds: u64) -> f64 {
    nanoseconds as f64 / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn latency(count: u32, warm_up: u32) -> Latency {
        Latency {
            count,
            warm_up,
            ..Latency::default()
        }
    }

    #[test]
    fn warm_up_and_lost_requests_have_no_time() {
        let mut number = 0;
        let trips = latency(100, 10).ask(|request, response| {
            number += 1;
            response.copy_from_slice(request);
            if number <= 10 {
                thread::sleep(Duration::from_millis(20));
            }
            Ok(number % 50 != 0)
        });
        let trips = trips.unwrap();
        assert_eq!((trips.answered, trips.lost), (98, 2));
        assert!(trips.max_us < 20_000.0, "{trips:?}");
    }

    #[test]
    fn quantiles_are_of_the_times() {
        let mut number = 0;
        let trips = latency(20, 0).ask(|request, response| {
            number += 1;
            response.copy_from_slice(request);
            if number == 20 {
                thread::sleep(Duration::from_millis(30));
            }
            Ok(true)
        });
        let trips = trips.unwrap();
        assert!(trips.min_us <= trips.p50_us && trips.p50_us < 30_000.0);
        assert!(trips.p99_us >= 30_000.0 && trips.p999_us <= trips.max_us);
    }

    #[test]
    fn silence_and_nonsense_are_errors() {
        let silent = latency(3, 0).ask(|_, _| Ok(false)).unwrap_err();
        assert_eq!(silent.to_string(), "none of 3 requests was answered");
        let other = latency(3, 0).ask(|_, _| Ok(true)).unwrap_err();
        assert!(other.to_string().contains("request 0 is not"), "{other}");
        let large = Latency {
            size: LARGEST + 1,
            ..Latency::default()
        };
        let anywhere = Netns::named("nowhere");
        let address = std::net::Ipv4Addr::LOCALHOST.into();
        assert!(large.run(&anywhere, &anywhere, address).is_err());
    }
}
