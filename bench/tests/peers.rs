//! The peers as contenders: each carries the pods' packets, tells what it is, and leaves the
//! network as it found it.
//!
//! ```text
//! scripts/setup --install-peers
//! cargo build --release --manifest-path bench/xsk-rs-baseline/Cargo.toml
//! cargo test -p podway-bench --test peers -- --ignored --test-threads=1
//! ```
//!
//! They need root, Open vSwitch and the baseline's build, and fail without; `scripts/test --full`
//! provides all of it.

use std::collections::BTreeSet;
use std::path::Path;

use podway_bench::contender::{Contender, InCharge};
use podway_bench::iperf::Iperf;
use podway_bench::link::programs as programs_of;
use podway_bench::ping::Ping;
use podway_bench::topology::{Cluster, ClusterSpec, POD_INTERFACE, UPLINK};
use podway_bench::watch::Watch;
use podway_bench::{cleanup, cpu};

const PREFIX: &str = "podway-peers";

/// Addresses, routes and offloads of every namespace.
fn settings(cluster: &Cluster) -> Vec<String> {
    let mut settings = Vec::new();
    for node in cluster.nodes() {
        let pods = node.pods.iter().map(|pod| (&pod.netns, POD_INTERFACE));
        for (netns, interface) in pods.chain([(&node.netns, UPLINK)]) {
            let run = |program, args: &[&str]| netns.run(program, args).unwrap();
            settings.push(run("ip", &["-brief", "address"]));
            settings.push(run("ip", &["route"]));
            settings.push(run("ip", &["-6", "route"]));
            settings.push(run("ethtool", &["-k", interface]));
        }
    }
    settings
}

fn carries(contender: Contender, engine: &str) {
    let cluster = Cluster::new(ClusterSpec {
        pods_per_node: 1,
        ..ClusterSpec::new(PREFIX)
    })
    .unwrap();
    let name = cluster.name().to_owned();
    let before = settings(&cluster);

    let in_charge = InCharge::put(contender, &cluster).unwrap_or_else(|error| panic!("{error}"));
    let told = in_charge.carrier().engine(&cluster).unwrap();
    assert!(told.contains(engine), "{told}");
    let pids = in_charge.carrier().pids().unwrap();
    assert_eq!(pids.len(), cluster.nodes().len());
    for pid in pids {
        cpu::process_busy(pid).unwrap();
    }
    let mut programs = BTreeSet::new();
    for node in cluster.nodes() {
        programs.extend(
            programs_of(&node.netns)
                .unwrap()
                .into_iter()
                .map(|(_, id)| id),
        );
    }
    let mut programs = BTreeSet::new();
    let uses_xdp = contender != Contender::OvsSystem;
    for node in cluster.nodes() {
        for interface in [UPLINK, &node.pods[0].host_interface] {
            let shown = node
                .netns
                .run("ip", &["link", "show", "dev", interface])
                .unwrap();
            // "xdpgeneric" otherwise.
            assert_eq!(shown.contains(" xdp "), uses_xdp, "native mode: {shown}");
        }
        let found = programs_of(&node.netns).unwrap();
        programs.extend(found.into_iter().map(|(_, id)| id));
    }

    let (client, server) = (cluster.pod(0, 0), cluster.pod(1, 0));
    // As long as the pods' MTU of 1450 bytes allows: 20 of IPv4 and 8 of ICMP come to it.
    for (target, size) in [(server.ipv4.into(), 1422), (server.ipv6.into(), 1402)] {
        let ping = Ping {
            size,
            ..Ping::default()
        };
        // The first may wait for a neighbour's answer, and miss its own time.
        ping.run(&client.netns, target).unwrap();
        let replies = ping.run(&client.netns, target).unwrap();
        assert_eq!(
            (replies.received, replies.duplicates),
            (ping.count, 0),
            "{target}"
        );
    }
    let watch = Watch::begin(&cluster, &in_charge).unwrap();
    let target = server.ipv4.into();
    let throughput = Iperf::tcp(2)
        .run(&client.netns, &server.netns, target)
        .unwrap();
    let observed = watch.end().unwrap();
    // Two polling threads and both ends of TCP share what cores there are: on two busy ones
    // little is left.
    assert!(throughput.bytes > 1_000_000, "{throughput:?}");
    assert!(observed.average_frame > 1000, "{observed:?}");
    assert_eq!(observed.faults, Vec::<String>::new());
    println!("{contender}: {throughput:?}, {observed:?}");
    println!("{told}; lost: {:?}", in_charge.carrier().lost().unwrap());

    in_charge.take_away(&cluster).unwrap();
    assert_eq!(settings(&cluster), before);
    assert_eq!(cluster.remove(), Vec::<String>::new());
    assert_eq!(cleanup::leftovers(&name, &programs), Vec::<String>::new());
    // Where libxdp would pin its programs, outside of every namespace.
    assert!(!Path::new("/sys/fs/bpf/xdp").exists());
}

#[test]
#[ignore = "needs root and the peers; scripts/test --full runs it"]
fn open_vswitch_with_polled_af_xdp_ports() {
    carries(Contender::OvsAfxdp, "afxdp ports");
}

#[test]
#[ignore = "needs root and the peers; scripts/test --full runs it"]
fn open_vswitch_with_af_xdp_ports_in_its_main_thread() {
    carries(Contender::OvsAfxdpNonpmd, "afxdp-nonpmd ports");
}

#[test]
#[ignore = "needs root and the peers; scripts/test --full runs it"]
fn open_vswitch_with_af_packet_ports() {
    carries(Contender::OvsSystem, "system ports");
}

#[test]
#[ignore = "needs root and the peers; scripts/test --full runs it"]
fn the_baseline_on_xsk_rs() {
    carries(Contender::XskRsBaseline, "xsk-rs 0.11.");
}

#[test]
#[ignore = "needs root and the peers; scripts/test --full runs it"]
fn a_peer_that_does_not_come_up_undoes_what_it_did() {
    for contender in [Contender::OvsAfxdp, Contender::XskRsBaseline] {
        let cluster = Cluster::new(ClusterSpec {
            pods_per_node: 1,
            // More than an XDP program without multi-buffer support may be attached to.
            uplink_mtu: 9000,
            ..ClusterSpec::new(PREFIX)
        })
        .unwrap();
        let before = settings(&cluster);
        let error = InCharge::put(contender, &cluster).unwrap_err().to_string();
        let interfaces = [UPLINK, &cluster.pod(0, 0).host_interface];
        assert!(
            interfaces.iter().any(|name| error.contains(name)),
            "{error}"
        );
        assert_eq!(settings(&cluster), before);
        let name = cluster.name().to_owned();
        assert_eq!(cluster.remove(), Vec::<String>::new());
        let left = cleanup::leftovers(&name, &BTreeSet::new());
        assert_eq!(left, Vec::<String>::new());
    }
}
