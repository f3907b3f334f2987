//! "Why does my packet not arrive?": each fault of docs/troubleshooting.md is made, and the one command
//! that the document names answers.

use std::collections::BTreeMap;
use std::fs;
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

use crate::doctor::{wait_for_one, wait_until_reached};
use crate::malformed::mac_of;
use crate::support::{Network, counted, options, ping_all, spec, wait_for_answer};
use crate::watch::Running;

/// The machine may be busy.
const PATIENCE: Duration = Duration::from_secs(20);
/// Frames of each kind.
const FRAMES: u64 = 5;
/// For less than the second after which the programs take a worker for dead.
const FLOOD: Duration = Duration::from_millis(400);

#[test]
#[ignore = "needs root; scripts/test runs it"]
fn one_command_tells_why_packets_do_not_arrive() {
    let with_health = Options {
        config: "health-interval-seconds = 1\n".to_owned(),
        ..options(Mode::Vxlan)
    };
    let mut network = Network::up(spec(), &with_health);
    ping_all(
        &network.pod(0, 0).netns,
        network.pod(1, 0).ipv4.into(),
        56,
        1,
    );
    let documented = include_str!("../../../docs/troubleshooting.md");
    for (heading, fault) in [
        (
            "The pod's MTU is too large",
            mtu_too_large as fn(&mut Network),
        ),
        (
            "The pod sends from an address that is not its own",
            foreign_source,
        ),
        ("Something damages headers", damaged),
        ("A filter breaks the checksum of TCP or UDP", wrong_checksum),
        ("The other node has another VNI", another_vni),
        ("A worker cannot keep up", overloaded),
        ("The neighbour does not answer", missing_neighbor),
        ("The other node is dead", dead_peer),
    ] {
        assert!(
            documented.contains(&format!("\n## {heading}\n")),
            "{heading}"
        );
        fault(&mut network);
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

/// How many packets more than `before` are told under a name, and its row; at least [`FRAMES`].
fn grown(network: &Network, name: &str, before: u64) -> (u64, String) {
    let counted = wait_until("the packets are counted", PATIENCE, || {
        let (after, row) = told(network, name);
        match after - before >= FRAMES {
            true => Ok((after - before, row)),
            false => Err(row),
        }
    });
    counted.unwrap()
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

/// Datagrams that a program in the pod sends to the peer's port 9.
fn send_from_socket(network: &Network) {
    let target = (network.pod(1, 0).ipv4, 9);
    let sending = network.pod(0, 0).netns.thread(move || {
        let socket = UdpSocket::bind(("0.0.0.0", 0)).unwrap();
        for _ in 0..FRAMES {
            // The peer's answer, that nobody listens, is an error of a later call.
            let _ = socket.send_to(&[0xa5; 64], target);
        }
        Ok(())
    });
    join(sending).unwrap();
}

/// A rule in the pod for what it sends to port 9, until `meanwhile` is done.
fn with_rule(network: &Network, rule: &str, meanwhile: impl FnOnce()) {
    let pod = &network.pod(0, 0).netns;
    let table = format!(
        "add table ip damage; add chain ip damage out {{ type filter hook output priority 0; }}; add \
         rule ip damage out udp dport 9 {rule}"
    );
    pod.run("nft", &[&table]).unwrap();
    meanwhile();
    pod.run("nft", &["delete table ip damage"]).unwrap();
}

/// Waits until nodes and pods reach each other again.
fn wait_until_whole(network: &Network) {
    let (pod, peer) = (network.pod(0, 0), network.pod(1, 0));
    wait_for_answer(&pod.netns, peer.ipv4.into(), PATIENCE);
    for (agent, other) in [(0, 1), (1, 0)] {
        let (agent, other) = (network.agent(agent), &network.node(other).name);
        wait_for_one(agent, ("neighbor", other, "ok"));
        wait_until_reached(agent, other);
    }
}

fn mtu_too_large(network: &mut Network) {
    let (before, _) = told(network, "oversize");
    let frame = datagram(network, network.pod(0, 0).ipv4.octets(), 1480 - 28);
    send(network, &frame);
    let (packets, row) = grown(network, "oversize", before);
    assert_eq!(packets, FRAMES, "{row}");
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

fn foreign_source(network: &mut Network) {
    let (before, _) = told(network, "spoofed_source");
    let frame = datagram(network, [203, 0, 113, 9], 64);
    send(network, &frame);
    let (packets, row) = grown(network, "spoofed_source", before);
    assert_eq!(packets, FRAMES, "{row}");
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

/// A wrong checksum in IPv4 headers, which the worker sees.
fn damaged(network: &mut Network) {
    let pod = network.pod(0, 0);
    let (before, _) = told(network, "ipv4_bad_checksum");
    with_rule(network, "@nh,80,16 set 0xbeef", || {
        send_from_socket(network);
    });
    network.counters();
    let (packets, row) = grown(network, "ipv4_bad_checksum", before);
    assert_eq!(packets, FRAMES, "{row}");
    let header = format!("{}:", pod.ipv4);
    assert!(
        row.contains(&header) && row.contains(&pod.host_interface),
        "{row}"
    );
}

/// A wrong checksum in UDP headers: the datagrams get to the other pod, and no farther.
fn wrong_checksum(network: &mut Network) {
    let peer = network.pod(1, 0);
    let (filter, dropped) = (format!("udp dst port 9 and host {}", peer.ipv4), || {
        counted(&peer.netns, "Udp", "InCsumErrors")
    });
    let mut arguments = vec!["trace", "live", "--checksums", "--count", "1"];
    arguments.extend(filter.split(' '));
    let before = dropped();
    let mut trace = Running::podway(network.agent(0), &arguments);
    with_rule(network, "@th,48,16 set 0xbeef", || {
        trace.ends(|| send_from_socket(network));
    });
    let text = String::from_utf8(trace.finish()).unwrap();
    let line = "\n  checksum of udp is 0xbeef and should be 0x";
    assert!(text.contains(line) && text.contains("\n  sent "), "{text}");
    network.counters();
    assert!(dropped() - before >= FRAMES, "the pod took them");
}

/// Of one that has changed, what the other node's packets count under is told with the remedy.
fn another_vni(network: &mut Network) {
    let path = network.agent(1).config_path();
    let text = fs::read_to_string(&path).unwrap();
    let run_with = |network: &mut Network, text: &str| {
        let agent = network.podway.agent_mut(1);
        agent.stop_control().unwrap();
        fs::write(&path, text).unwrap();
        agent.start_control().unwrap();
        agent.wait_ready().unwrap();
    };
    run_with(network, &format!("vni = 99\n{text}"));
    let (before, _) = told(network, "unknown_vni");
    let to = network.pod(0, 0).ipv4.to_string();
    // Nothing comes back.
    let count = FRAMES.to_string();
    let ping = ["-c", &count, "-i", "0.2", "-W", "1", &to];
    network.pod(1, 0).netns.run("ping", &ping).unwrap_err();
    let (_, row) = grown(network, "unknown_vni", before);
    let (here, there) = (network.node(0), network.node(1));
    for told in [
        format!("{}:", there.underlay),
        format!(" -> {}:", here.underlay),
        " VNI 99 with ".to_owned(),
        format!(" bytes, {UPLINK}, "),
    ] {
        assert!(row.contains(&told), "{row}");
    }
    is_explained(
        network,
        "unknown_vni",
        "VXLAN of a network that this node does not serve",
    );
    let drops = said(network.agent(0), &["drops"]);
    let remedy = "give all nodes the same `vni` and `also-vnis`";
    assert!(drops.contains(remedy), "{drops}");
    let found = wait_for_one(network.agent(0), ("node", &network.node(1).name, "fault"));
    assert!(
        found.message.contains("not as its pods would be") && found.remedy.contains("vni"),
        "{found:?}"
    );
    run_with(network, &text);
    wait_until_whole(network);
}

/// More than a ring holds while its worker is held up.
fn overloaded(network: &mut Network) {
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

/// The other node is there, and answers no ARP.
fn missing_neighbor(network: &mut Network) {
    let (here, there) = (network.node(0), network.node(1));
    let arp = |on: &str| {
        let line = format!("link set {UPLINK} arp {on}");
        there.netns.ip(&[line]).unwrap();
    };
    arp("off");
    let forget = format!("neigh del {} dev {UPLINK}", there.underlay);
    here.netns.ip(&[forget]).unwrap();
    let found = wait_for_one(network.agent(0), ("neighbor", &there.name, "fault"));
    let whom = format!("nobody answers for {} on {UPLINK}", there.underlay);
    assert_eq!(found.message, whom);
    assert!(found.remedy.contains("answers ARP"), "{found:?}");
    let trace = traced(network, "100");
    assert!(
        trace.contains("verdict: left to the kernel: unresolved"),
        "{trace}"
    );
    arp("on");
    wait_until_whole(network);
}

fn dead_peer(network: &mut Network) {
    let there = network.node(1);
    let set = |state: &str| {
        let line = format!("link set {UPLINK} {state}");
        there.netns.ip(&[line]).unwrap();
    };
    set("down");
    let whom = format!("{} has not answered for ", there.underlay);
    // The last answer of one path may be later than that of the other: then only one is silent yet.
    let found = wait_until("neither path of the node answers", PATIENCE, || {
        let found = wait_for_one(network.agent(0), ("node", &there.name, "fault"));
        match found.message.starts_with(&whom) {
            true => Ok(found),
            false => Err(found.message),
        }
    });
    let found = found.unwrap();
    assert!(
        found.remedy.contains("see whether the node runs"),
        "{found:?}"
    );
    set("up");
    wait_until_whole(network);
}
