//! The network itself, with the kernel in charge: what is compared with must be right as well.

use podway_bench::cleanup;
use podway_bench::contender::{Contender, InCharge};
use podway_bench::iperf::Iperf;
use podway_bench::topology::{Cluster, ClusterSpec};
use podway_bench::watch::Watch;
use std::collections::BTreeSet;

use crate::support::{ping_all, spec};

fn carries(spec: ClusterSpec, contender: Contender) {
    let cluster = Cluster::new(spec).unwrap();
    let name = cluster.name().to_owned();
    let in_charge = InCharge::put(contender, &cluster).unwrap();
    for from in cluster.nodes() {
        for to in cluster.nodes() {
            let (source, target) = (&from.pods[0], &to.pods[1]);
            for size in [56, 8000] {
                ping_all(&source.netns, target.ipv4.into(), size, 3);
                ping_all(&source.netns, target.ipv6.into(), size, 3);
            }
            ping_all(&from.netns, target.ipv4.into(), 56, 3);
        }
    }
    let (client, server) = (cluster.pod(0, 0), cluster.pod(1, 0));
    for run in [Iperf::tcp(1), Iperf::tcp(1).reversed()] {
        let watch = Watch::begin(&cluster, &in_charge).unwrap();
        let target = server.ipv4.into();
        let throughput = run.run(&client.netns, &server.netns, target).unwrap();
        let observed = watch.end().unwrap();
        assert!(throughput.bits_per_second > 1e8, "{throughput:?}");
        assert!(observed.average_frame > 1000, "{observed:?}");
        assert_eq!(observed.faults, Vec::<String>::new());
    }
    in_charge.take_away(&cluster).unwrap();
    for node in cluster.nodes() {
        let routes = node
            .netns
            .run("ip", &["route", "show", "10.0.0.0/8"])
            .unwrap();
        assert_eq!(routes, "", "routes are left on {}", node.name);
    }
    assert_eq!(cluster.remove(), Vec::<String>::new());
    let left = cleanup::leftovers(&name, &BTreeSet::new());
    assert_eq!(left, Vec::<String>::new());
}

#[test]
#[ignore = "needs root; scripts/test runs it"]
fn vxlan_between_two_nodes() {
    carries(spec(), Contender::KernelVxlan);
}

#[test]
#[ignore = "needs root; scripts/test runs it"]
fn native_between_three_nodes_with_finished_checksums_and_two_queues() {
    let spec = ClusterSpec {
        nodes: 3,
        uplink_tx_checksum: false,
        queues: 2,
        ..spec()
    };
    carries(spec, Contender::KernelNative);
}

#[test]
#[ignore = "needs root; scripts/test runs it"]
fn a_network_goes_with_the_processes_in_it() {
    let cluster = Cluster::new(spec()).unwrap();
    let name = cluster.name().to_owned();
    let pod = &cluster.pod(1, 1).netns;
    let mut sleeper = pod.spawn("sleep", &["1000"]).unwrap();
    drop(cluster);
    assert!(!sleeper.wait().unwrap().success());
    let left = cleanup::leftovers(&name, &BTreeSet::new());
    assert_eq!(left, Vec::<String>::new());
}
