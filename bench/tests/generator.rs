//! Generator, sink, search and latency on real interfaces, and that their checks find what is wrong.
//!
//! ```text
//! cargo build --release
//! PODWAY_BIN_DIR=target/release cargo test -p podway-bench --test generator -- --ignored --test-threads=1
//! ```
//!
//! Needs root. The node under test is node 1 of a cluster of two, with the kernel in charge; "alone"
//! means that the sink is where the packets enter the node.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use podway_bench::contender::{Contender, InCharge};
use podway_bench::generator::cost::{Cost, Own};
use podway_bench::generator::pacing::Unpaced;
use podway_bench::generator::receive;
use podway_bench::generator::rig::{Path, Refusal, Rig, Trial};
use podway_bench::generator::run::{Disturbance, Rate};
use podway_bench::generator::search::{Limit, Search};
use podway_bench::generator::traffic::Traffic;
use podway_bench::latency::{Latency, Transport};
use podway_bench::link::feature_is_on;
use podway_bench::netns::{Netns, join};
use podway_bench::podway::{Options, Podway};
use podway_bench::topology::{Cluster, ClusterSpec};
use podway_bench::{Error, cleanup};
use rustix::net::{AddressFamily, RecvFlags, SocketType, recv, socket};

const RATE: Rate = Rate::PerSecond(20_000);
const MOMENT: Duration = Duration::from_millis(150);

fn cluster() -> Cluster {
    Cluster::new(ClusterSpec::new("podway-gen")).unwrap()
}

fn remove(cluster: Cluster) {
    let name = cluster.name().to_owned();
    assert_eq!(cluster.remove(), Vec::<String>::new());
    let left = cleanup::leftovers(&name, &Default::default());
    assert_eq!(left, Vec::<String>::new(), "left behind");
}

/// Another process may have had the CPU: what was found out counts, not how often it took.
fn until(good: impl Fn(&Trial) -> bool, mut trial: impl FnMut() -> Trial) -> Trial {
    for _ in 0..9 {
        let made = trial();
        if good(&made) {
            return made;
        }
    }
    trial()
}

fn paced(trial: impl FnMut() -> Trial) -> Trial {
    until(|made| made.check().is_ok(), trial)
}

fn lossless(trial: impl FnMut() -> Trial) -> Trial {
    until(|made| made.check().is_ok() && made.lost() == 0, trial)
}

/// UDP datagrams in all packets that a namespace sees for a while, as the wire has them.
fn capture(
    netns: &Netns,
    during: Duration,
) -> std::thread::JoinHandle<podway_bench::Result<Vec<Vec<u8>>>> {
    netns.thread(move || {
        let all = rustix::net::eth::ALL;
        let tap = socket(AddressFamily::PACKET, SocketType::RAW, Some(all))
            .map_err(|errno| Error::Unexpected(errno.to_string()))?;
        let mut frames = Vec::new();
        let mut buffer = vec![0; 4096];
        let end = Instant::now() + during;
        while Instant::now() < end {
            match recv(&tap, &mut buffer[..], RecvFlags::DONTWAIT) {
                Ok((length, _)) => frames.push(buffer[..length].to_vec()),
                Err(_) => std::thread::sleep(Duration::from_millis(1)),
            }
        }
        Ok(frames)
    })
}

/// Source port and payload of a UDP packet whose lengths and checksums are all right.
fn verified(frame: &[u8]) -> (u16, Vec<u8>) {
    let packet = SlicedPacket::from_ethernet(frame).unwrap();
    let Some(NetSlice::Ipv4(ip)) = &packet.net else {
        panic!("not IPv4: {frame:02x?}");
    };
    let header = ip.header().to_header();
    assert_eq!(header.header_checksum, header.calc_header_checksum());
    let Some(TransportSlice::Udp(udp)) = &packet.transport else {
        panic!("not UDP: {frame:02x?}");
    };
    let expected = udp
        .to_header()
        .calc_checksum_ipv4(&header, udp.payload())
        .unwrap();
    assert_eq!(udp.checksum(), expected, "{frame:02x?}");
    (udp.source_port(), udp.payload().to_vec())
}

#[test]
#[ignore = "needs root; scripts/test runs it"]
fn every_packet_arrives_over_a_plain_veth() {
    let cluster = cluster();
    for (size, flows) in [(60, 1), (1400, 16), (64, 10_000)] {
        let path = Path::out_of_pod(&cluster, size, flows).unwrap().alone();
        let entry = path.entry.clone();
        let gro = || feature_is_on(&entry.netns, &entry.name, "generic-receive-offload").unwrap();
        assert!(!gro());
        let rig = Rig::set_up(path).unwrap();
        assert!(gro());
        let trial = rig.trial(RATE, MOMENT).unwrap();
        assert_eq!(trial.sent, trial.given);
        assert!(trial.sent > 500, "{trial:?}");
        assert_eq!((trial.arrived.packets, trial.lost()), (trial.sent, 0));
        assert_eq!(trial.arrived.bytes, trial.sent * u64::from(size));
        assert_eq!(trial.arrived.super_frames, 0);
        assert!(trial.gro_switched_on);

        let before = rig.sink().by_flow(flows).unwrap();
        let flat_out = rig.trial(Rate::FlatOut, MOMENT).unwrap();
        assert_eq!(flat_out.check(), Ok(()));
        let taken = flat_out.sent - flat_out.refused_by_ring;
        assert_eq!(flat_out.arrived.packets, taken, "{flat_out:?}");
        let after = rig.sink().by_flow(flows).unwrap();
        let counts: Vec<u64> = after.iter().zip(before).map(|(a, b)| a - b).collect();
        assert_eq!(counts.iter().sum::<u64>(), taken);
        assert!(counts.iter().all(|count| *count > 0), "{counts:?}");
        println!(
            "{size} bytes, {flows} flows, alone: {:.2} Mpps",
            flat_out.offered() / 1e6
        );
        drop(rig);
        assert!(!gro());
    }
    remove(cluster);
}

#[test]
#[ignore = "needs root; scripts/test runs it"]
fn packets_are_valid_and_of_all_flows_and_addresses() {
    const FLOWS: u16 = 300;
    let cluster = cluster();
    let paths = [
        Path::out_of_pod(&cluster, 61, FLOWS).unwrap(),
        Path::into_pod_by_vxlan(&cluster, 99, FLOWS).unwrap(),
    ];
    for path in paths {
        let traffic = Traffic {
            destinations: 3,
            ..path.traffic
        };
        let path = Path { traffic, ..path }.alone();
        let tap = capture(&path.entry.netns, MOMENT * 8);
        let rig = Rig::set_up(path).unwrap();
        rig.trial(Rate::PerSecond(3000), MOMENT * 4).unwrap();
        let mut flows = BTreeMap::new();
        let mut outer_ports = BTreeMap::new();
        for frame in join(tap).unwrap() {
            if frame.len() != traffic.frame_length() {
                continue;
            }
            let mut inner = frame.clone();
            if let Some(tunnel) = traffic.tunnel {
                let (port, payload) = verified(&frame);
                let vni = u32::from(tunnel.vni) << 8;
                assert_eq!(payload[4..8], vni.to_be_bytes());
                inner = payload[8..].to_vec();
                *outer_ports.entry(port).or_insert(0) += 1;
            }
            let (port, payload) = verified(&inner);
            let flow = u32::from_be_bytes(*payload[4..].first_chunk().unwrap());
            assert_eq!(u32::from(port), 10_000 + flow);
            let address = u32::from(traffic.to.ipv4) + flow % 3;
            assert_eq!(inner[30..34], address.to_be_bytes());
            *flows.entry(flow).or_insert(0) += 1;
        }
        assert_eq!(flows.len(), usize::from(FLOWS));
        if traffic.tunnel.is_some() {
            assert!(outer_ports.len() > 250, "{}", outer_ports.len());
            assert!(outer_ports.keys().all(|port| *port >= 49152));
        }
    }
    remove(cluster);
}

#[test]
#[ignore = "needs root; scripts/test runs it"]
fn a_generator_that_is_not_what_it_says_is_refused() {
    let cluster = cluster();
    let path = Path::out_of_pod(&cluster, 64, 16).unwrap().alone();
    let rig = Rig::set_up(path).unwrap();

    // The control: the same without a fault passes.
    let even = paced(|| rig.trial(RATE, MOMENT).unwrap());
    assert_eq!(even.check(), Ok(()));

    let lossy = rig.disturbed(RATE, MOMENT, Disturbance::Loses(2)).unwrap();
    assert_eq!(
        lossy.check(),
        Err(Refusal::Miscounted {
            sent: lossy.sent,
            given: lossy.sent.div_ceil(2)
        })
    );
    // Two or three of thousands are enough.
    let lossy = rig
        .disturbed(RATE, MOMENT, Disturbance::Loses(1000))
        .unwrap();
    assert!(matches!(lossy.check(), Err(Refusal::Miscounted { .. })));

    let bursty = rig.disturbed(RATE, MOMENT, Disturbance::Bursts(8)).unwrap();
    let Err(Refusal::Unpaced(Unpaced::Uneven { share })) = bursty.check() else {
        panic!("{bursty:?}");
    };
    assert!(share > 0.9, "{share}");
    // The rate was right, and nothing was lost: only the histogram tells.
    assert_eq!(bursty.lost(), 0);

    // Nobody makes a hundred million packets in a second.
    let slow = rig.trial(Rate::PerSecond(100_000_000), MOMENT).unwrap();
    assert!(matches!(slow.check(), Err(Refusal::Unpaced(_))));
    drop(rig);
    remove(cluster);
}

#[test]
#[ignore = "needs root; scripts/test runs it"]
fn a_node_that_forwards_half_is_shown_as_what_it_is() {
    let cluster = cluster();
    let kernel = InCharge::put(Contender::KernelNative, &cluster).unwrap();
    let whole = Path::out_of_pod(&cluster, 64, 16).unwrap();
    let traffic = Traffic {
        destinations: 2,
        ..whole.traffic
    };
    let path = Path { traffic, ..whole };
    let rig = Rig::set_up(path).unwrap();
    let search = Search {
        lowest: 2_000,
        highest: 16_000,
        resolution: 0.5,
        tolerance: 0.0,
        trial: MOMENT,
    };

    let trial = lossless(|| rig.trial(RATE, MOMENT).unwrap());
    assert_eq!((trial.check(), trial.lost()), (Ok(()), 0));
    let found = search.on(&rig).unwrap();
    let best = found.best.unwrap();
    assert_eq!(
        (best.rate, found.limit),
        (Rate::PerSecond(16_000), Limit::Highest)
    );

    // Every second packet is for the second address.
    let second = &cluster.pod(1, 1).ipv4;
    let node = &cluster.nodes()[0].netns;
    node.ip(&[format!("route add blackhole {second}/32")])
        .unwrap();
    let trial = paced(|| rig.trial(RATE, MOMENT).unwrap());
    assert_eq!(trial.check(), Ok(()), "the generator is not to blame");
    assert!((trial.delivered() - 0.5).abs() < 0.001, "{trial:?}");
    let found = search.on(&rig).unwrap();
    assert_eq!((found.best, found.limit), (None, Limit::Loss));
    let half = Search {
        tolerance: 0.51,
        ..search
    };
    assert!(half.on(&rig).unwrap().best.is_some());

    drop(rig);
    kernel.take_away(&cluster).unwrap();
    remove(cluster);
}

#[test]
#[ignore = "needs root; scripts/test runs it"]
fn the_cost_of_a_packet_is_the_nodes_alone() {
    let cluster = cluster();
    let duration = Duration::from_millis(500);
    for out in [true, false] {
        let path = if out {
            Path::out_of_pod(&cluster, 64, 256).unwrap()
        } else {
            Path::into_pod_by_vxlan(&cluster, 64, 256).unwrap()
        };
        let own = Own::measure(&path, duration).unwrap();
        receive::set_rps(&path.entry, 0b11).unwrap();
        let kernel = InCharge::put(Contender::KernelVxlan, &cluster).unwrap();
        let rig = Rig::set_up(path).unwrap();
        let cost = Cost::measure(&rig, &own, duration).unwrap();
        drop(rig);
        kernel.take_away(&cluster).unwrap();
        println!(
            "kernel VXLAN, {}: {:.2} of {:.2} Mpps, {:.2} Mpps per CPU-second; generator {:.0} ns, \
             sink {:.0} ns; busy {:.2} s, node {:.2} s",
            if out { "encap" } else { "decap" },
            cost.trial.offered() * cost.trial.delivered() / 1e6,
            cost.trial.offered() / 1e6,
            cost.packets_per_cpu_second / 1e6,
            own.generator_ns,
            own.sink_ns,
            cost.trial.busy_seconds,
            cost.node_seconds,
        );
        assert!(cost.trial.arrived.packets > 10_000, "{cost:?}");
        let parts = cost.generator_seconds + cost.sink_seconds + cost.node_seconds;
        assert!((parts - cost.trial.busy_seconds).abs() < 1e-6, "{cost:?}");
        assert!(cost.trial.busy_seconds > 0.25, "{cost:?}");
    }
    remove(cluster);
}

#[test]
#[ignore = "needs root; scripts/test runs it"]
fn podway_takes_the_generators_packets() {
    let cluster = cluster();
    let options = Options::default();
    let mut podway = Podway::start_on(&cluster, &cluster.nodes()[..1], &options).unwrap();
    podway.wait_ready().unwrap();
    let agent = &podway.agents()[0];
    let ways = [
        Path::out_of_pod(&cluster, 64, 256).unwrap(),
        Path::into_pod_by_vxlan(&cluster, 64, 256).unwrap(),
        Path::into_pod(&cluster, 64, 256).unwrap(),
    ];
    for path in ways {
        let port = path.entry.name.clone();
        let rig = Rig::set_up(path).unwrap();
        let received = || agent.balanced().unwrap().ports[&port].rx_packets;
        let mut before = 0;
        let trial = lossless(|| {
            before = received();
            rig.trial(RATE, MOMENT).unwrap()
        });
        assert_eq!((trial.check(), trial.lost()), (Ok(()), 0), "{trial:?}");
        // By Podway, and not by the kernel underneath.
        assert_eq!(received() - before, trial.sent);
        assert_eq!(trial.arrived.super_frames, 0);
    }
    podway.stop().unwrap();
    remove(cluster);
}

#[test]
#[ignore = "needs root; scripts/test runs it"]
fn round_trips_have_times_and_lost_ones_are_counted() {
    let cluster = cluster();
    let kernel = InCharge::put(Contender::KernelNative, &cluster).unwrap();
    let (client, server) = (cluster.pod(0, 0), cluster.pod(1, 0));
    for transport in [Transport::Udp, Transport::Tcp] {
        for address in [server.ipv4.into(), server.ipv6.into()] {
            let latency = Latency {
                transport,
                count: 2000,
                warm_up: 100,
                ..Latency::default()
            };
            let trips = latency.run(&client.netns, &server.netns, address).unwrap();
            assert_eq!((trips.answered, trips.lost), (2000, 0));
            assert!(trips.min_us > 0.0 && trips.min_us <= trips.p50_us);
            assert!(trips.p50_us <= trips.p99_us && trips.p99_us <= trips.p999_us);
            println!("{transport:?} {address}: {trips:?}");
        }
    }
    kernel.take_away(&cluster).unwrap();
    remove(cluster);
}
