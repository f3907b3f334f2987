//! Nodes that know each other by IPv6 addresses.

use std::net::IpAddr;

use podway_bench::iperf::Iperf;
use podway_bench::podway::Options;
use podway_bench::topology::{ClusterSpec, UPLINK};
use podway_proto::types::Mode;

use crate::support::{Delta, Network, options, ping_all, spec};

const PINGS: u16 = 20;
/// Two or three fragments of an echo of 2000 bytes: by a tunnel 1430 bytes fit, natively 1500.
const FRAGMENTED: u16 = 2000;
/// A path with wrong checksums or lost super-frames is orders of magnitude below this.
const TCP_FLOOR: f64 = 1e8;

fn by_ipv6(mode: Mode) -> Options {
    Options {
        underlay6: true,
        ..options(mode)
    }
}

/// Finished checksums: a zero or wrong one in the outer header would be seen.
fn strict() -> ClusterSpec {
    ClusterSpec {
        uplink_tx_checksum: false,
        ..spec()
    }
}

#[test]
#[ignore = "needs root; scripts/test runs it"]
fn tunnels_over_ipv6_carry_both() {
    let network = Network::up(strict(), &by_ipv6(Mode::Vxlan));
    let to = network.pod(1, 0);
    for address in [IpAddr::from(to.ipv4), to.ipv6.into()] {
        carries(&network, address);
    }
    // IPv4 is fragmented by the pod, and its fragments keep to the fast path.
    ping_all(&network.pod(0, 0).netns, to.ipv4.into(), FRAGMENTED, PINGS);
    network.finish();
}

#[test]
#[ignore = "needs root; scripts/test runs it"]
fn ipv6_is_routed_natively() {
    let network = Network::up(strict(), &by_ipv6(Mode::Native));
    carries(&network, network.pod(1, 0).ipv6.into());
    network.finish();
}

#[test]
#[ignore = "needs root; scripts/test runs it"]
fn nodes_with_both_addresses_route_both_natively() {
    let mut network = Network::up(strict(), &options(Mode::Native));
    for (here, there) in [(0, 1), (1, 0)] {
        let other = network.node(there);
        let (underlay, underlay6) = (other.underlay.to_string(), other.underlay6.to_string());
        let (cidr, cidr6) = (other.pod_cidr(), other.pod_cidr6());
        let set = ["node", "set", &other.name, "--underlay", &underlay];
        let second = ["--underlay6", &underlay6, "--mode", "native"];
        let pods = ["--pod-cidr", &cidr, "--pod-cidr", &cidr6];
        let args = [&set[..], &second, &pods].concat();
        network.agent(here).cli(&args).unwrap();
    }
    network.podway.wait_ready().unwrap();
    let to = network.pod(1, 0);
    for address in [IpAddr::from(to.ipv4), to.ipv6.into()] {
        carries(&network, address);
    }
    // Without dataplanes the kernel has the same routes.
    for node in [0, 1] {
        network.podway.agent_mut(node).stop_dataplane().unwrap();
    }
    let (from, to) = (network.pod(0, 0), network.pod(1, 0));
    for address in [IpAddr::from(to.ipv4), to.ipv6.into()] {
        ping_all(&from.netns, address, 56, PINGS);
    }
    for node in [0, 1] {
        network.podway.agent_mut(node).start_dataplane().unwrap();
    }
    network.podway.wait_ready().unwrap();
    network.finish();
}

/// Pings are counted one by one at both uplinks, and TCP runs both ways, all by the fast path.
fn carries(network: &Network, to: IpAddr) {
    let (from, server) = (network.pod(0, 0), network.pod(1, 0));
    ping_all(&from.netns, to, 56, 1);
    let before = network.counters();
    ping_all(&from.netns, to, 56, PINGS);
    let after = network.counters();
    for (before, after) in before.iter().zip(&after) {
        let delta = Delta { before, after };
        let pings = u64::from(PINGS);
        assert_eq!(delta.packets(UPLINK), (pings, pings), "pings of {to}");
        assert_eq!(delta.drops().len(), 0, "{after:?}");
    }
    let before = after;
    for run in [Iperf::tcp(1), Iperf::tcp(1).reversed()] {
        let got = run.run(&from.netns, &server.netns, to).unwrap();
        assert!(got.bits_per_second > TCP_FLOOR, "{got:?}");
    }
    for (before, after) in before.iter().zip(&network.counters()) {
        let delta = Delta { before, after };
        let (received, sent) = delta.packets(UPLINK);
        assert!(received > 1000 && sent > 1000, "{received} in, {sent} out");
        assert_eq!(delta.drops().len(), 0, "{after:?}");
    }
}
