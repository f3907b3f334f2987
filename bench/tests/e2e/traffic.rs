//! Everything that pods do reaches its end, by Podway and not around it.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use podway_bench::contender::FULL_NODE;
use podway_bench::iperf::{Iperf, Throughput};
use podway_bench::netns::Netns;
use podway_bench::podway::Options;
use podway_bench::topology::{ClusterSpec, POD_INTERFACE, UPLINK};
use podway_bench::{cpu, link};
use podway_proto::config::WaitMode;
use podway_proto::types::Mode;

use crate::support::{Delta, Network, af_xdp, lost_by_sockets, options, ping_all, spec};

const PINGS: u16 = 10;
/// An echo of 8000 bytes is 8008 bytes of ICMP; a fragment carries 1424 of them through the
/// tunnel and 1480 natively.
const FRAGMENTS: u16 = 6;
/// A path with wrong checksums or lost super-frames is orders of magnitude below this.
const TCP_FLOOR: f64 = 1e8;

#[test]
#[ignore = "needs root; scripts/test runs it"]
fn vxlan_between_two_nodes() {
    carries_everything(spec(), Mode::Vxlan, 1);
}

#[test]
#[ignore = "needs root; scripts/test runs it"]
fn native_between_two_nodes() {
    carries_everything(spec(), Mode::Native, 1);
}

#[test]
#[ignore = "needs root; scripts/test runs it"]
fn vxlan_between_three_nodes_with_finished_checksums() {
    let spec = ClusterSpec {
        nodes: 3,
        uplink_tx_checksum: false,
        ..spec()
    };
    carries_everything(spec, Mode::Vxlan, 1);
}

#[test]
#[ignore = "needs root; scripts/test runs it"]
fn native_between_three_nodes_with_finished_checksums() {
    let spec = ClusterSpec {
        nodes: 3,
        uplink_tx_checksum: false,
        ..spec()
    };
    carries_everything(spec, Mode::Native, 1);
}

#[test]
#[ignore = "needs root; scripts/test runs it"]
fn vxlan_with_two_workers_and_two_queues() {
    let spec = ClusterSpec {
        queues: 2,
        ..spec()
    };
    carries_everything(spec, Mode::Vxlan, 2);
}

#[test]
#[ignore = "needs root; scripts/test runs it"]
fn native_with_two_workers_and_two_queues() {
    let spec = ClusterSpec {
        queues: 2,
        ..spec()
    };
    carries_everything(spec, Mode::Native, 2);
}

/// Busy ports would have all frames, and leave none for those that come later.
#[test]
#[ignore = "needs root; scripts/test runs it"]
fn few_frames_are_enough_for_many_ports() {
    let spec = ClusterSpec {
        pods_per_node: 12,
        ..spec()
    };
    let options = Options {
        frames: Some(1024),
        ..af_xdp(Mode::Vxlan)
    };
    let network = Network::up(spec, &options);
    for round in 0..2 {
        for pod in 0..12 {
            let to = network.pod(1, (pod + round) % 12).ipv4.into();
            ping_all(&network.pod(0, pod).netns, to, 56, 50);
        }
    }
    network.finish();
}

#[test]
#[ignore = "needs root; scripts/test runs it"]
fn a_full_node_forwards_as_one_with_two_pods() {
    let options = Options {
        idle_ports: FULL_NODE - 2,
        ..options(Mode::Vxlan)
    };
    let network = Network::up(spec(), &options);
    remote_pings(&network, 0, 1);
    let (from, to) = (network.pod(0, 0), network.pod(1, 0));
    tcp(
        &network,
        &from.netns,
        &to.netns,
        to.ipv4.into(),
        &Iperf::tcp(1),
    );
    network.finish();
}

#[test]
#[ignore = "needs root; scripts/test runs it"]
fn spinning_workers_forward_as_well() {
    let options = Options {
        wait: WaitMode::Spin,
        ..options(Mode::Vxlan)
    };
    let network = Network::up(spec(), &options);
    let to = network.pod(1, 0).ipv4.into();
    ping_all(&network.pod(0, 0).netns, to, 56, PINGS);
    network.finish();
}

#[test]
#[ignore = "needs root; scripts/test runs it"]
fn an_idle_dataplane_uses_less_than_one_percent_of_a_core() {
    const WATCHED: Duration = Duration::from_secs(5);
    let network = Network::up(spec(), &options(Mode::Vxlan));
    ping_all(
        &network.pod(0, 0).netns,
        network.pod(1, 0).ipv4.into(),
        56,
        PINGS,
    );
    let pids: Vec<_> = network
        .podway
        .agents()
        .iter()
        .map(|a| a.dataplane_pid().unwrap())
        .collect();
    let busy = || -> Vec<_> {
        pids.iter()
            .map(|p| cpu::process_busy(*p).unwrap())
            .collect()
    };
    let (before, begin) = (busy(), Instant::now());
    std::thread::sleep(WATCHED);
    let limit = begin.elapsed() / 100;
    for (after, before) in busy().into_iter().zip(before) {
        assert!(
            after - before < limit,
            "{:?} of {limit:?} allowed",
            after - before
        );
    }
    network.finish();
}

#[test]
#[ignore = "needs root; scripts/test runs it"]
fn the_mode_changes_under_a_running_flow() {
    let mut network = Network::up(spec(), &options(Mode::Vxlan));
    let (from, to) = (network.pod(0, 0).clone(), network.pod(1, 0).clone());
    ping_all(&from.netns, to.ipv4.into(), 56, PINGS);
    for mode in [Mode::Native, Mode::Vxlan] {
        network.podway.set_mode(&network.cluster, mode).unwrap();
        remote_pings(&network, 0, 1);
        tcp(
            &network,
            &from.netns,
            &to.netns,
            to.ipv4.into(),
            &Iperf::tcp(1),
        );
    }
    network.finish();
}

#[test]
#[ignore = "needs root; scripts/test runs it"]
fn vxlan_by_af_xdp() {
    carries_everything_by(spec(), af_xdp(Mode::Vxlan));
}

#[test]
#[ignore = "needs root; scripts/test runs it"]
fn native_by_af_xdp_with_two_workers_and_finished_checksums() {
    let spec = ClusterSpec {
        queues: 2,
        uplink_tx_checksum: false,
        ..spec()
    };
    let mut options = af_xdp(Mode::Native);
    options.workers = 2;
    carries_everything_by(spec, options);
}

fn carries_everything(spec: ClusterSpec, mode: Mode, workers: u16) {
    let mut options = options(mode);
    options.workers = workers;
    carries_everything_by(spec, options);
}

fn carries_everything_by(spec: ClusterSpec, options: Options) {
    let nodes = usize::from(spec.nodes);
    let (mode, workers) = (options.mode, options.workers);
    let network = Network::up(spec, &options);
    for agent in network.podway.agents() {
        let served = agent.balanced().unwrap().workers.len();
        assert_eq!(served, usize::from(workers), "workers");
    }
    for from in 0..nodes {
        for to in (0..nodes).filter(|to| *to != from) {
            remote_pings(&network, from, to);
            host_pings(&network, from, to);
        }
        local_pings(&network, from);
    }
    if mode == Mode::Vxlan {
        let (from, to) = (network.pod(0, 0), network.pod(1, 0));
        ping_all(&from.netns, to.ipv6.into(), 56, PINGS);
        ping_all(&from.netns, to.ipv6.into(), 8000, PINGS);
        tcp(
            &network,
            &from.netns,
            &to.netns,
            to.ipv6.into(),
            &Iperf::tcp(1),
        );
    }
    streams(&network);
    for node in network.cluster.nodes() {
        for pod in &node.pods {
            for feature in ["tx-checksumming", "tcp-segmentation-offload"] {
                let on = link::feature_is_on(&pod.netns, POD_INTERFACE, feature).unwrap();
                assert!(on, "{feature} of {}", pod.netns.name());
            }
        }
    }
    network.finish();
}

/// Between pods of two nodes; every packet and every answer crosses both dataplanes.
fn remote_pings(network: &Network, from: usize, to: usize) {
    let (source, target) = (network.pod(from, 0), network.pod(to, 0));
    for (size, fragments) in [(56, 1), (8000, FRAGMENTS)] {
        let before = network.counters();
        ping_all(&source.netns, target.ipv4.into(), size, PINGS);
        let after = network.counters();
        let expected = u64::from(PINGS * fragments);
        for (node, pod) in [(from, source), (to, target)] {
            let delta = Delta {
                before: &before[node],
                after: &after[node],
            };
            for port in [&*pod.host_interface, UPLINK] {
                let what = format!("in and out by {port} of node {node}, {size} bytes");
                assert_eq!(delta.packets(port), (expected, expected), "{what}");
            }
            assert_eq!(delta.drops().len(), 0, "{:?}", delta.drops());
        }
    }
}

/// Between two pods of one node; the uplink sees nothing of it.
fn local_pings(network: &Network, node: usize) {
    let (source, target) = (network.pod(node, 0), network.pod(node, 1));
    for (size, fragments) in [(56, 1), (8000, FRAGMENTS)] {
        let before = network.counters();
        ping_all(&source.netns, target.ipv4.into(), size, PINGS);
        let after = network.counters();
        let delta = Delta {
            before: &before[node],
            after: &after[node],
        };
        let expected = u64::from(PINGS * fragments);
        for pod in [source, target] {
            let port = &pod.host_interface;
            assert_eq!(
                delta.packets(port),
                (expected, expected),
                "{port}, {size} bytes"
            );
        }
        assert_eq!(delta.packets(UPLINK), (0, 0), "uplink, {size} bytes");
    }
}

/// Host traffic is the kernel's: it must find its way beside Podway, in both directions.
fn host_pings(network: &Network, from: usize, to: usize) {
    let (host, pod) = (network.node(from), network.pod(to, 1));
    for size in [56, 8000] {
        ping_all(&host.netns, pod.ipv4.into(), size, PINGS);
        ping_all(&pod.netns, host.underlay.into(), size, PINGS);
    }
}

/// TCP and UDP in both directions: between nodes, on one node, and between host and pod.
fn streams(network: &Network) {
    let (client, remote, local) = (network.pod(0, 0), network.pod(1, 0), network.pod(0, 1));
    for server in [remote, local] {
        for run in [Iperf::tcp(1), Iperf::tcp(1).reversed()] {
            tcp(
                network,
                &client.netns,
                &server.netns,
                server.ipv4.into(),
                &run,
            );
        }
        let udp = Iperf::udp(1, 20_000_000, 1400);
        for run in [udp.clone(), udp.reversed()] {
            let lost_by_sockets =
                || lost_by_sockets(&client.netns) + lost_by_sockets(&server.netns);
            let (before, lost_before) = (network.counters(), lost_by_sockets());
            let got = run
                .run(&client.netns, &server.netns, server.ipv4.into())
                .unwrap();
            assert!(got.datagrams > 1000, "{got:?}");
            // Whoever did not get its core for long has lost some; each is in somebody's books.
            let lost = network.lost_since(&before) + lost_by_sockets() - lost_before;
            assert!(got.lost <= lost, "{lost} known of {got:?}");
            went_through(network, &before, &got);
        }
    }
    let host = network.node(0);
    for run in [Iperf::tcp(1), Iperf::tcp(1).reversed()] {
        let got = run
            .run(&host.netns, &remote.netns, remote.ipv4.into())
            .unwrap();
        assert!(
            got.bits_per_second > TCP_FLOOR,
            "host and remote pod: {got:?}"
        );
    }
}

fn tcp(network: &Network, client: &Netns, server: &Netns, address: IpAddr, run: &Iperf) {
    let before = network.counters();
    let got = run.run(client, server, address).unwrap();
    assert!(got.bits_per_second > TCP_FLOOR, "{address}: {got:?}");
    went_through(network, &before, &got);
}

/// What arrived must have left by pod ports of dataplanes.
fn went_through(network: &Network, before: &[podway_proto::dataplane::Counters], got: &Throughput) {
    let after = network.counters();
    let mut bytes = 0;
    for (number, (before, after)) in before.iter().zip(&after).enumerate() {
        let delta = Delta { before, after };
        for pod in &network.node(number).pods {
            bytes += delta.tx_bytes(&pod.host_interface);
        }
    }
    assert!(
        bytes >= got.bytes,
        "{bytes} bytes left by pod ports of {got:?}"
    );
}
