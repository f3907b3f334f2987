//! "Why does my packet not arrive?": each fault of docs/troubleshooting.md is made, and the one command
//! that the document names answers.

use std::collections::BTreeMap;
use std::net::UdpSocket;
use std::time::{Duration, Instant};

use etherparse::PacketBuilder;
use podway_bench::frames::send_raw;
use podway_bench::netns::{join, wait_until};
use podway_bench::podway::{Agent, Options};
use podway_bench::topology::{POD_INTERFACE, UPLINK};
use podway_proto::dataplane::DroppedPacket;
use podway_proto::hex;
use podway_proto::types::Mode;
use rustix::process::Signal;

use crate::malformed::mac_of;
use crate::support::{Network, options, ping_all, spec};

/// Probes are ten seconds apart, three in a row must be lost, and the kernel keeps a neighbour for up to
/// 45 seconds; the machine may be busy.
const PATIENCE: Duration = Duration::from_secs(60);
/// Frames of each kind.
const FRAMES: u64 = 5;
/// For less than the second after which the programs take a worker for dead.
const FLOOD: Duration = Duration::from_millis(400);

#[test]
#[ignore = "needs root; scripts/test runs it"]
fn one_command_tells_why_packets_do_not_arrive() {
    let with_health = Options {
        config: String::new(),
        ..options(Mode::Vxlan)
    };
    let network = Network::up(spec(), &with_health);
    ping_all(
        &network.pod(0, 0).netns,
        network.pod(1, 0).ipv4.into(),
        56,
        1,
    );
    let documented = include_str!("../../../docs/troubleshooting.md");
    for (heading, fault) in [
        ("The pod's MTU is too large", mtu_too_large as fn(&Network)),
        (
            "The pod sends from an address that is not its own",
            foreign_source,
        ),
        ("Something damages packets", damaged),
        ("The other node has another VNI", unknown_vni),
        ("A worker cannot keep up", overloaded),
        (
            "The other node is dead, or its neighbour entry is",
            dead_peer,
        ),
    ] {
        assert!(
            documented.contains(&format!("\n## {heading}\n")),
            "{heading}"
        );
        fault(&network);
    }
    network.finish();
}

/// What `podway` prints.
fn said(agent: &Agent, arguments: &[&str]) -> String {
    let text = agent.cli(arguments);
    text.unwrap_or_else(|error| panic!("{arguments:?}: {error}"))
}

/// Packets that `podway drops` tells under a name, with its row.
fn told(network: &Network, name: &str) -> (u64, String) {
    let drops = network.agent(0).drops().unwrap();
    let dropped = drops.drops.iter().map(|d| (&d.reason, d.packets));
    let passed = drops.passed.iter().map(|p| (&p.cause, p.packets));
    // A reason to drop and a cause to pass may share a name.
    let named = dropped.chain(passed).filter(|(reason, _)| *reason == name);
    let packets = named.map(|(_, packets)| packets).sum();
    let text = said(network.agent(0), &["drops"]);
    let row = text
        .lines()
        .find(|line| line.starts_with(&format!("{name} ")));
    (packets, row.unwrap_or_default().to_owned())
}

/// The row of a name under which [`FRAMES`] packets more are told than before.
fn grown(network: &Network, name: &str, before: u64) -> String {
    let counted = wait_until("the packets are counted", PATIENCE, || {
        let (after, row) = told(network, name);
        match after - before >= FRAMES {
            true => Ok((after - before, row)),
            false => Err(row),
        }
    });
    let (packets, row) = counted.unwrap();
    assert_eq!(packets, FRAMES, "{row}");
    row
}

/// `podway drops` says below its rows what is meant by a name, and what to do.
fn is_explained(network: &Network, name: &str, meaning: &str) {
    let text = said(network.agent(0), &["drops"]);
    let (_, told) = text
        .split_once(&format!("\n{name}: {meaning}"))
        .expect(&text);
    let told = told.split("\n\n").next().unwrap_or_default();
    assert!(told.contains("\n  remedy: "), "{text}");
}

/// What `podway trace packet` says of a datagram from a pod of node 1 to one of node 2.
fn traced(network: &Network, size: &str) -> String {
    let (pod, peer) = (network.pod(0, 0), network.pod(1, 0));
    let (from, to) = (pod.ipv4.to_string(), peer.ipv4.to_string());
    let arguments = [
        "trace",
        "packet",
        "--from-port",
        &pod.host_interface,
        "--src",
        &from,
        "--dst",
        &to,
        "--proto",
        "udp",
        "--dport",
        "9",
        "--df",
        "--size",
        size,
    ];
    said(network.agent(0), &arguments)
}

/// A datagram that the pod sends.
fn datagram(network: &Network, source: [u8; 4], payload: usize) -> Vec<u8> {
    let (node, pod, peer) = (network.node(0), network.pod(0, 0), network.pod(1, 0));
    let gateway = mac_of(&node.netns, &pod.host_interface);
    let mut frame = Vec::new();
    PacketBuilder::ethernet2(pod.mac.0, gateway.0)
        .ipv4(source, peer.ipv4.octets(), 64)
        .udp(40_000, 9)
        .write(&mut frame, &vec![0xa5; payload])
        .unwrap();
    frame
}

fn send(network: &Network, frame: &[u8]) {
    for _ in 0..FRAMES {
        send_raw(&network.pod(0, 0).netns, POD_INTERFACE, frame).unwrap();
    }
    network.counters();
}

fn mtu_too_large(network: &Network) {
    let (before, _) = told(network, "oversize");
    let frame = datagram(network, network.pod(0, 0).ipv4.octets(), 1480 - 28);
    send(network, &frame);
    let row = grown(network, "oversize", before);
    let (pod, peer) = (network.pod(0, 0), network.pod(1, 0));
    let flow = format!("{}:40000 -> {}:9 udp, 1494 bytes", pod.ipv4, peer.ipv4);
    assert!(row.contains(&flow), "{row}");
    is_explained(network, "oversize", "larger than the route");
    let trace = traced(network, "1480");
    assert!(
        trace.contains("oversize") && trace.contains("1450"),
        "{trace}"
    );
    let ports = said(network.agent(0), &["port", "show"]);
    assert!(
        ports.contains("pods' routes fit with an MTU up to 1450"),
        "{ports}"
    );
}

fn foreign_source(network: &Network) {
    let (before, _) = told(network, "spoofed_source");
    let frame = datagram(network, [203, 0, 113, 9], 64);
    send(network, &frame);
    let row = grown(network, "spoofed_source", before);
    let (pod, peer) = (network.pod(0, 0), network.pod(1, 0));
    let port = &pod.host_interface;
    let last = format!(
        "203.0.113.9:40000 -> {}:9 udp, 106 bytes, {port}, ",
        peer.ipv4
    );
    assert!(row.contains(&last), "{row}");
    let text = said(network.agent(0), &["drops"]);
    assert!(text.contains("podway port add IF --pod-ip IP"), "{text}");
    let mut drops = network.agent(0).drops().unwrap().drops.into_iter();
    let drop = drops.find(|drop| drop.reason == "spoofed_source").unwrap();
    let by_port = BTreeMap::from([(port.clone(), before + FRAMES)]);
    assert_eq!(drop.interfaces, by_port);
    let last = drop.last.unwrap();
    let told = DroppedPacket {
        seconds_ago: last.seconds_ago,
        interface: Some(port.clone()),
        bytes: 106,
        source: Some([203, 0, 113, 9].into()),
        destination: Some(peer.ipv4.into()),
        protocol: Some(17),
        source_port: Some(40_000),
        destination_port: Some(9),
        inside: None,
        header: hex::encode(&frame[..42]),
    };
    assert_eq!(last, told);
}

/// A rule in the pod that writes a wrong checksum into its IPv4 headers.
fn damaged(network: &Network) {
    let (pod, peer) = (network.pod(0, 0), network.pod(1, 0));
    let (before, _) = told(network, "ipv4_bad_checksum");
    pod.netns
        .run(
            "nft",
            &[
                "add table ip damage; add chain ip damage out { type filter hook output \
                       priority 0; }; add rule ip damage out udp dport 9 @nh,80,16 set 0xbeef",
            ],
        )
        .unwrap();
    let target = (peer.ipv4, 9);
    let sending = pod.netns.thread(move || {
        let socket = UdpSocket::bind(("0.0.0.0", 0)).unwrap();
        for _ in 0..FRAMES {
            socket.send_to(&[0xa5; 64], target).unwrap();
        }
        Ok(())
    });
    join(sending).unwrap();
    pod.netns.run("nft", &["delete table ip damage"]).unwrap();
    network.counters();
    let row = grown(network, "ipv4_bad_checksum", before);
    let header = format!("{}:", pod.ipv4);
    assert!(
        row.contains(&header) && row.contains(&pod.host_interface),
        "{row}"
    );
}

fn unknown_vni(network: &Network) {
    let (here, there) = (network.node(0), network.node(1));
    let status = network.agent(0).status().unwrap();
    let (before, _) = told(network, "unknown_vni");
    let inner = datagram(network, network.pod(0, 0).ipv4.octets(), 64);
    let payload = [&[8, 0, 0, 0, 0, 0, 99, 0][..], &inner].concat();
    let (to, from) = (mac_of(&here.netns, UPLINK), mac_of(&there.netns, UPLINK));
    let mut frame = Vec::new();
    PacketBuilder::ethernet2(from.0, to.0)
        .ipv4(there.underlay.octets(), here.underlay.octets(), 64)
        .udp(50_000, status.vxlan_port)
        .write(&mut frame, &payload)
        .unwrap();
    for _ in 0..FRAMES {
        send_raw(&there.netns, UPLINK, &frame).unwrap();
    }
    network.counters();
    let row = grown(network, "unknown_vni", before);
    let (pod, peer) = (network.pod(0, 0), network.pod(1, 0));
    let tunnel = format!("{}:50000 -> {}:", there.underlay, here.underlay);
    let inside = format!(" VNI 99 with {}:40000 -> {}:9 udp, ", pod.ipv4, peer.ipv4);
    let by_uplink = format!(" bytes, {UPLINK}, ");
    for told in [tunnel, inside, by_uplink] {
        assert!(row.contains(&told), "{row}");
    }
    is_explained(
        network,
        "unknown_vni",
        "VXLAN of a network that this node does not serve",
    );
}

/// More than a ring holds while its worker is held up.
fn overloaded(network: &Network) {
    let (pod, peer) = (network.pod(0, 0), network.pod(1, 0));
    let agent = network.agent(0);
    let before = network.counters();
    let (lost_before, _) = told(network, "ring_full");
    let target = (peer.ipv4, 9);
    agent.signal_dataplane(Signal::STOP).unwrap();
    let flooding = pod.netns.thread(move || {
        let socket = UdpSocket::bind(("0.0.0.0", 0)).unwrap();
        let end = Instant::now() + FLOOD;
        while Instant::now() < end {
            // The peer's answer, that nobody listens, is an error of a later call.
            let _ = socket.send_to(&[0xa5; 1400], target);
        }
        Ok(())
    });
    join(flooding).unwrap();
    agent.signal_dataplane(Signal::CONT).unwrap();
    let lost = network.lost_since(&before);
    let (lost_after, row) = told(network, "ring_full");
    assert!(lost > 0, "the ring held everything");
    assert_eq!(lost_after - lost_before, lost, "{row}");
    let flow = format!(
        "-> {}:9 udp, 1442 bytes, {}, ",
        peer.ipv4, pod.host_interface
    );
    assert!(row.contains("queue") && row.contains(&flow), "{row}");
    let text = said(agent, &["drops"]);
    let by_port = format!("by interface: {} {lost_after}\n", pod.host_interface);
    assert!(text.contains(&by_port), "{text}");
}

fn dead_peer(network: &Network) {
    let (there, agent) = (network.node(1), network.agent(0));
    let name = &*there.name;
    there
        .netns
        .ip(&[format!("link set {UPLINK} down")])
        .unwrap();
    wait_until("the node is told to be unreachable", PATIENCE, || {
        let nodes = said(agent, &["node", "list"]);
        let row = nodes.lines().find(|line| line.starts_with(name));
        match row.is_some_and(|row| row.contains("unreachable")) {
            true => Ok(()),
            false => Err(nodes),
        }
    })
    .unwrap();
    wait_until("its packets are the kernel's", PATIENCE, || {
        let trace = traced(network, "100");
        match trace.contains("unresolved") {
            true => Ok(()),
            false => Err(trace),
        }
    })
    .unwrap();
    there.netns.ip(&[format!("link set {UPLINK} up")]).unwrap();
    // Before the network goes, both nodes are whole again.
    wait_until("its packets are sent again", PATIENCE, || {
        // Somebody has to want something from the neighbour.
        let _ = network
            .pod(0, 0)
            .netns
            .run("ping", &["-c1", "-W1", &network.pod(1, 0).ipv4.to_string()]);
        let trace = traced(network, "100");
        match trace.contains("unresolved") {
            false => Ok(()),
            true => Err(trace),
        }
    })
    .unwrap();
}
