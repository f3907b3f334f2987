//! Raw sockets that send requests and hear what comes back, for each IP version that is in use.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::sockopt::{
    Ipv4PathMtuDiscovery, Ipv6PathMtuDiscovery, set_ip_mtu_discover, set_ipv6_mtu_discover,
};
use rustix::net::{RecvFlags, recvfrom};
use socket2::{Domain, Protocol, Socket, Type};

use super::echo::{self, Reply};
use super::schedule::{Question, Target};

/// The sockets; those of an IP version are opened with the first request that needs them.
#[derive(Debug)]
pub(super) struct Sockets {
    v4: Option<Pair>,
    v6: Option<Pair>,
    /// Tells our requests from those of others.
    id: u16,
    room: Vec<u8>,
}

/// Those of one IP version.
#[derive(Debug)]
struct Pair {
    requests: Socket,
    answers: Socket,
}

impl Sockets {
    pub(super) fn new() -> Self {
        let [low, high, ..] = std::process::id().to_ne_bytes();
        Self {
            v4: None,
            v6: None,
            id: u16::from_ne_bytes([low, high]),
            room: vec![0; 65_536],
        }
    }

    /// Does not wait for room: packets for a neighbour that does not answer would keep it for seconds.
    ///
    /// # Errors
    /// What the kernel says, of the socket or of a packet.
    pub(super) fn send(&mut self, question: &Question<'_>) -> io::Result<()> {
        let Target {
            source,
            address,
            size,
            ..
        } = *question.target;
        let small = question
            .small
            .then(|| echo::small(source, address, self.id));
        let large = echo::large(source, address, self.id, size);
        let to = SocketAddr::from((address, 0)).into();
        let Pair { requests, .. } = self.pair(address)?;
        for packet in small.into_iter().chain([large]) {
            requests.send_to_with_flags(&packet?, &to, libc::MSG_DONTWAIT)?;
        }
        Ok(())
    }

    fn pair(&mut self, address: IpAddr) -> io::Result<&Pair> {
        let pair = match address {
            IpAddr::V4(_) => &mut self.v4,
            IpAddr::V6(_) => &mut self.v6,
        };
        match pair {
            Some(pair) => Ok(pair),
            none => Ok(none.insert(Pair::open(address)?)),
        }
    }

    /// The next answer, if one comes in time.
    ///
    /// # Errors
    /// What the kernel says of a socket.
    pub(super) fn receive(&mut self, until: Instant) -> io::Result<Option<(IpAddr, Reply)>> {
        let pairs = || [&self.v4, &self.v6].into_iter().flatten();
        let mut heeded: Vec<_> = pairs()
            .map(|pair| PollFd::new(&pair.answers, PollFlags::IN))
            .collect();
        let left = until.saturating_duration_since(Instant::now());
        let left = Timespec::try_from(left).map_err(io::Error::other)?;
        match poll(&mut heeded, Some(&left)) {
            Ok(0) | Err(Errno::INTR) => return Ok(None),
            other => other?,
        };
        for Pair { answers, .. } in pairs() {
            match recvfrom(answers, &mut *self.room, RecvFlags::DONTWAIT) {
                Ok((length, _, from)) => {
                    let from = from.and_then(|from| SocketAddr::try_from(from).ok());
                    let bytes = self.room.get(..length).unwrap_or_default();
                    return Ok(from.and_then(|from| echo::reply(from.ip(), bytes, self.id)));
                }
                Err(Errno::AGAIN | Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(None)
    }
}

impl Pair {
    fn open(address: IpAddr) -> io::Result<Self> {
        let (domain, icmp) = match address {
            IpAddr::V4(_) => (Domain::IPV4, Protocol::ICMPV4),
            IpAddr::V6(_) => (Domain::IPV6, Protocol::ICMPV6),
        };
        // By this protocol the IP header comes along, in IPv6 too (`inet6_create`): one that does not fit
        // the link is refused and not cut.
        let raw = Protocol::from(libc::IPPROTO_RAW);
        let requests = Socket::new(domain, Type::RAW, Some(raw))?;
        // What was learned of the way counts otherwise behind that (`ip_skb_dst_mtu`, `ip6_skb_dst_mtu`).
        match address {
            IpAddr::V4(_) => set_ip_mtu_discover(&requests, Ipv4PathMtuDiscovery::PROBE)?,
            IpAddr::V6(_) => set_ipv6_mtu_discover(&requests, Ipv6PathMtuDiscovery::PROBE)?,
        }
        let answers = Socket::new(domain, Type::RAW, Some(icmp))?;
        Ok(Self { requests, answers })
    }
}
