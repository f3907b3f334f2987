//! A node that runs only the kernel's VXLAN device, flannel style, is a full peer.

use podway_bench::iperf::Iperf;
use podway_bench::kernel;
use podway_bench::topology::{ClusterSpec, UPLINK};
use podway_proto::types::Mode;

use crate::support::{Delta, Network, options, ping_all, spec};

#[test]
#[ignore = "needs root; scripts/test runs it"]
fn with_unfinished_checksums_on_the_uplinks() {
    talks_to_the_kernel(true);
}

#[test]
#[ignore = "needs root; scripts/test runs it"]
fn with_finished_checksums_on_the_uplinks() {
    talks_to_the_kernel(false);
}

fn talks_to_the_kernel(uplink_tx_checksum: bool) {
    let spec = ClusterSpec {
        uplink_tx_checksum,
        ..spec()
    };
    let network = Network::up_on_first(spec, &options(Mode::Vxlan));
    kernel::add_vxlan(&network.cluster, network.node(1)).unwrap();
    let (ours, theirs) = (network.pod(0, 0), network.pod(1, 0));
    // The kernel's neighbour entries on the way are resolved by the first packets.
    ping_all(&ours.netns, theirs.ipv4.into(), 56, 1);

    let before = network.counters();
    ping_all(&ours.netns, theirs.ipv4.into(), 56, 10);
    ping_all(&theirs.netns, ours.ipv4.into(), 56, 10);
    let after = network.counters();
    let delta = Delta {
        before: &before[0],
        after: &after[0],
    };
    assert_eq!(delta.packets(&ours.host_interface), (20, 20));
    assert_eq!(delta.packets(UPLINK), (20, 20));

    ping_all(&ours.netns, theirs.ipv4.into(), 8000, 10);
    ping_all(&theirs.netns, ours.ipv4.into(), 8000, 10);
    ping_all(&ours.netns, theirs.ipv6.into(), 56, 10);
    for run in [Iperf::tcp(2), Iperf::tcp(2).reversed()] {
        let before = network.counters();
        let target = theirs.ipv4.into();
        let got = run.run(&ours.netns, &theirs.netns, target).unwrap();
        assert!(got.bits_per_second > 1e8, "{got:?}");
        let after = network.counters();
        let delta = Delta {
            before: &before[0],
            after: &after[0],
        };
        let port = if run.reverse {
            &*ours.host_interface
        } else {
            UPLINK
        };
        assert!(delta.tx_bytes(port) >= got.bytes, "{port}: {got:?}");
    }
    network.finish();
}
