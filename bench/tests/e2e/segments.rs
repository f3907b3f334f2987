//! Super-frames of which nobody tells the size of the segments: ports with AF_XDP. Here the
//! dataplane alone sees to it that they fit the peer and the path.

use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use podway_bench::Error;
use podway_bench::netns::join;
use podway_bench::topology::{POD_INTERFACE, Pod};
use podway_bench::wiretap::Wiretap;
use podway_proto::types::Mode;

use crate::mtu::{ETHERNET, NARROW, TUNNEL, narrow, set_mtu, set_route};
use crate::support::{Delta, Network, af_xdp, spec};

/// Length in bytes of what is sent over and over: no multiple of any segment.
const PATTERN: usize = 1_000_003;
/// The look at the frames begins 0.3 s after the start.
const SENDING: Duration = Duration::from_secs(1);
/// Bytes that arrive in that time at least. Where segments are lost for their size, what arrives is
/// what timers send again: some kilobytes.
const FLOOR: u64 = 12_500_000;
const STALLED: Duration = Duration::from_secs(10);

#[test]
#[ignore = "needs root; scripts/test runs it"]
fn af_xdp_keeps_to_the_announced_size_in_tunnels() {
    announces_536(Mode::Vxlan, TUNNEL);
}

#[test]
#[ignore = "needs root; scripts/test runs it"]
fn af_xdp_keeps_to_the_announced_size_natively() {
    announces_536(Mode::Native, ETHERNET);
}

fn announces_536(mode: Mode, in_front: u64) {
    let network = Network::up(spec(), &af_xdp(mode));
    let (client, server) = (network.pod(0, 0), network.pod(1, 0));
    set_route(server, "advmss 536");
    let carried = Carried::between(&network, client, server);
    assert_eq!(carried.longest, in_front + 576);
    network.finish();
}

/// Routers tell the pods alone.
#[test]
#[ignore = "needs root; scripts/test runs it"]
fn af_xdp_keeps_to_a_narrow_path_natively() {
    let network = Network::up(narrow(), &af_xdp(Mode::Native));
    let (client, server) = (network.pod(0, 0), network.pod(1, 0));
    let learned = |pod: &Pod, to: Ipv4Addr| {
        let route = pod.netns.run("ip", &["route", "get", &to.to_string()]);
        route.unwrap().contains(&format!("mtu {NARROW}"))
    };
    let carried = Carried::between(&network, client, server);
    assert_eq!(carried.longest, ETHERNET + u64::from(NARROW));
    assert!(learned(client, server.ipv4), "by an ICMP error");
    // From now on the client announces segments that fit.
    let carried = Carried::between(&network, server, client);
    assert_eq!(carried.longest, ETHERNET + u64::from(NARROW));
    assert!(!learned(server, client.ipv4), "by the announcement");
    network.finish();
}

#[test]
#[ignore = "needs root; scripts/test runs it"]
fn af_xdp_keeps_to_the_smaller_mtu_of_two_pods() {
    const SMALL: u64 = 1300;
    for both_ends in [true, false] {
        let network = Network::up(spec(), &af_xdp(Mode::Vxlan));
        let (large, small) = (network.pod(0, 0), network.pod(1, 0));
        set_mtu(&small.netns, POD_INTERFACE, SMALL);
        set_route(small, &format!("mtu {SMALL}"));
        if both_ends {
            set_mtu(&network.node(1).netns, &small.host_interface, SMALL);
        }
        let carried = Carried::between(&network, large, small);
        assert_eq!(carried.longest, TUNNEL + SMALL, "both ends: {both_ends}");
        // Where the node's end does not tell, what the pod sends is cut to what path and peer take.
        let sent = if both_ends { SMALL } else { 1450 };
        let carried = Carried::between(&network, small, large);
        assert_eq!(carried.longest, TUNNEL + sent, "both ends: {both_ends}");
        // And on one node.
        let neighbor = network.pod(1, 1);
        for (from, to) in [(neighbor, small), (small, neighbor)] {
            Carried::between(&network, from, to);
        }
        network.finish();
    }
}

/// What one connection has carried.
struct Carried {
    /// Length in bytes of the longest frame seen on an uplink.
    longest: u64,
}

impl Carried {
    /// Sends for a while. Every byte must arrive and be right, none be lost in the dataplanes, and
    /// the books of both nodes balance.
    fn between(network: &Network, from: &Pod, to: &Pod) -> Self {
        let pattern: Vec<u8> = (0_u32..)
            .map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8)
            .take(PATTERN)
            .collect();
        let before = network.counters();
        let tap = Wiretap::on(&network.cluster);
        let target = SocketAddr::from((to.ipv4, 7000));
        let (listening, wait) = std::sync::mpsc::channel();
        let expected = pattern.clone();
        let failed = |error: io::Error| Error::Unexpected(error.to_string());
        let receiver = to.netns.thread(move || {
            let listener = TcpListener::bind(target).map_err(failed)?;
            listening.send(()).unwrap();
            let (stream, _) = listener.accept().map_err(failed)?;
            receive(stream, &expected).map_err(failed)
        });
        wait.recv().unwrap();
        let sender = from.netns.thread(move || {
            let stream = TcpStream::connect_timeout(&target, STALLED).map_err(failed)?;
            send(stream, &pattern).map_err(failed)
        });
        let sent = join(sender).unwrap();
        let received = join(receiver).unwrap();
        assert_eq!(received, sent, "bytes");
        assert!(sent > FLOOR, "{sent} bytes");
        let longest = tap.finish().unwrap().longest;
        for (before, after) in before.iter().zip(&network.counters()) {
            let drops = Delta { before, after }.drops();
            assert_eq!(drops.len(), 0, "{drops:?}");
        }
        Self { longest }
    }
}

/// Sends the pattern over and over, and says how many bytes that was.
fn send(mut stream: TcpStream, pattern: &[u8]) -> io::Result<u64> {
    stream.set_write_timeout(Some(STALLED))?;
    let (begin, mut sent) = (Instant::now(), 0);
    while begin.elapsed() < SENDING {
        stream.write_all(pattern)?;
        sent += pattern.len() as u64;
    }
    Ok(sent)
}

/// Counts the bytes until the end, each of which must be the pattern's.
fn receive(mut stream: TcpStream, pattern: &[u8]) -> io::Result<u64> {
    stream.set_read_timeout(Some(STALLED))?;
    let (mut buffer, mut received, mut at) = (vec![0; 1 << 16], 0, 0);
    loop {
        let count = stream.read(&mut buffer)?;
        if count == 0 {
            return Ok(received);
        }
        let mut rest = &buffer[..count];
        while !rest.is_empty() {
            let here = rest.len().min(pattern.len() - at);
            let (part, later) = rest.split_at(here);
            assert!(
                part == &pattern[at..at + here],
                "damaged after {received} bytes"
            );
            received += here as u64;
            at = (at + here) % pattern.len();
            rest = later;
        }
    }
}
