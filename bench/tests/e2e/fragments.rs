//! Datagrams that only fragments can carry.

use std::net::{SocketAddr, UdpSocket};
use std::sync::mpsc;
use std::time::Duration;

use podway_bench::netns::join;
use podway_bench::podway::Options;
use podway_bench::topology::{Pod, UPLINK};
use podway_proto::types::Mode;

use crate::mtu::{learn, narrow};
use crate::support::{Delta, Network, options};

const PORT: u16 = 7001;
/// Datagrams of each size in each direction.
const DATAGRAMS: u32 = 50;
/// Longer than one takes on a machine that others load.
const PATIENCE: Duration = Duration::from_secs(5);

fn io(error: std::io::Error) -> podway_bench::Error {
    podway_bench::Error::Unexpected(error.to_string())
}

/// What a datagram carries: nothing that another one does.
fn content(number: u32, size: usize) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(number.into());
    std::iter::repeat_with(|| random.u8(..))
        .take(size)
        .collect()
}

/// Sends datagrams from pod to pod, each when the one before has arrived; how many arrive whole until
/// one does not.
fn arriving(from: &Pod, to: &Pod, size: usize) -> u32 {
    let target = SocketAddr::new(to.ipv4.into(), PORT);
    let (ready, wait) = mpsc::channel();
    let (arrived, next) = mpsc::channel();
    let receiving = to.netns.thread(move || {
        let socket = UdpSocket::bind(target).map_err(io)?;
        socket.set_read_timeout(Some(PATIENCE)).map_err(io)?;
        ready.send(()).unwrap();
        let mut buffer = vec![0; size + 1];
        for number in 0..DATAGRAMS {
            let Ok((length, _)) = socket.recv_from(&mut buffer) else {
                return Ok(number);
            };
            assert!(buffer[..length] == content(number, size), "{number}");
            // The sender may have gone after the last one.
            let _ = arrived.send(());
        }
        Ok(DATAGRAMS)
    });
    wait.recv().unwrap();
    // Linux sets DF on what fits the route, and not on what it cuts to fragments.
    let sending = from.netns.thread(move || {
        let socket = UdpSocket::bind("0.0.0.0:0").map_err(io)?;
        for number in 0..DATAGRAMS {
            socket.send_to(&content(number, size), target).map_err(io)?;
            if next.recv().is_err() {
                break;
            }
        }
        Ok(())
    });
    let count = join(receiving).unwrap();
    join(sending).unwrap();
    count
}

/// The first fragments of a datagram are too large for the path and the kernel's, the last would fit
/// the fast path; but the kernel, which masquerades, waits for all of them.
#[test]
#[ignore = "needs root; scripts/test runs it"]
fn masqueraded_nodes_lose_no_fragment() {
    let options = Options {
        config: "health = false\nmasquerade = true\n".to_owned(),
        ..options(Mode::Vxlan)
    };
    let network = Network::up(narrow(), &options);
    learn(&network);
    let (one, two) = (network.pod(0, 0), network.pod(1, 0));
    let before = network.counters();
    let mut fragments = 0;
    for size in [8_000, 65_000] {
        for (from, to) in [(one, two), (two, one)] {
            let count = arriving(from, to, size);
            assert_eq!(count, DATAGRAMS, "of {size} bytes from {}", from.ipv4);
        }
        // With a UDP header; a fragment has a multiple of eight bytes in the route's 1450.
        fragments += u64::from(DATAGRAMS) * (size as u64 + 8).div_ceil((1450 - 20) / 8 * 8);
    }
    for (node, (before, after)) in before.iter().zip(&network.counters()).enumerate() {
        let delta = Delta { before, after };
        let port = &network.pod(node, 0).host_interface;
        assert_eq!(delta.passed(port).get("fragment"), Some(&fragments));
        for port in [port, UPLINK] {
            assert_eq!(delta.packets(port), (0, 0), "by {port} of node {node}");
        }
        assert_eq!(delta.drops().len(), 0, "{:?}", delta.drops());
    }
    network.finish();
}
