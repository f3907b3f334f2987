//! Datagrams that only fragments can carry.

use podway_bench::podway::Options;
use podway_bench::topology::UPLINK;
use podway_proto::types::Mode;

use crate::mtu::{learn, narrow};
use crate::sockets::Datagrams;
use crate::support::{Delta, Network, options};

/// Datagrams of each size in each direction.
const DATAGRAMS: u32 = 50;

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
            let datagrams = Datagrams {
                size,
                count: DATAGRAMS,
                window: 1,
            };
            let count = datagrams.arriving(&from.netns, &to.netns, to.ipv4.into());
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
