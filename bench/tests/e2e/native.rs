//! Native routing and masquerading, seen by a host outside of the cluster; and pods that nobody has.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use podway_bench::link::LinkCounters;
use podway_bench::netns::{Netns, join, wait_until};
use podway_bench::podway::Options;
use podway_bench::topology::{ClusterSpec, UPLINK};
use podway_proto::types::Mode;

use crate::mtu::narrow;
use crate::support::{Delta, Network, counted, options, ping_all, spec};

const PORT: u16 = 7000;
/// How long a datagram or a connection is waited for.
const ARRIVAL: Duration = Duration::from_secs(3);
/// Bytes of an answer by TCP: some segments.
const ANSWER: usize = 100_000;

fn io(error: std::io::Error) -> podway_bench::Error {
    podway_bench::Error::Unexpected(error.to_string())
}

/// Sends a datagram from one namespace to an address in another, which is answered; the source that
/// arrives.
fn source(from: &Netns, to: &Netns, address: IpAddr) -> podway_bench::Result<IpAddr> {
    let target = SocketAddr::new(address, PORT);
    let (ready, wait) = std::sync::mpsc::channel();
    let receiver = to.thread(move || {
        let socket = UdpSocket::bind(target).map_err(io)?;
        socket.set_read_timeout(Some(ARRIVAL)).map_err(io)?;
        ready.send(()).unwrap();
        let (_, from) = socket.recv_from(&mut [0; 16]).map_err(io)?;
        socket.send_to(b"you", from).map_err(io)?;
        Ok(from.ip())
    });
    wait.recv().unwrap();
    let sender = from.thread(move || {
        let any: IpAddr = match target {
            SocketAddr::V4(_) => std::net::Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => std::net::Ipv6Addr::UNSPECIFIED.into(),
        };
        let socket = UdpSocket::bind((any, 0)).map_err(io)?;
        socket.set_read_timeout(Some(ARRIVAL)).map_err(io)?;
        // Answers from any other address are not given to the socket.
        socket.connect(target).map_err(io)?;
        socket.send(b"who am I").map_err(io)?;
        socket.recv(&mut [0; 16]).map(drop).map_err(io)
    });
    let (sent, source) = (join(sender), join(receiver));
    sent.and(source)
}

/// The same by TCP, with an answer of [`ANSWER`] bytes.
fn source_by_tcp(from: &Netns, to: &Netns, address: IpAddr) -> IpAddr {
    let target = SocketAddr::new(address, PORT);
    let (ready, wait) = std::sync::mpsc::channel();
    let server = to.thread(move || {
        let listener = TcpListener::bind(target).map_err(io)?;
        ready.send(()).unwrap();
        let (mut stream, from) = listener.accept().map_err(io)?;
        stream.write_all(&[0x5a; ANSWER]).map_err(io)?;
        Ok(from.ip())
    });
    wait.recv().unwrap();
    let client = from.thread(move || {
        let mut stream = TcpStream::connect_timeout(&target, ARRIVAL).map_err(io)?;
        stream.set_read_timeout(Some(ARRIVAL)).map_err(io)?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).map_err(io)?;
        Ok(answer)
    });
    let answer = join(client).unwrap();
    assert!(answer == [0x5a; ANSWER], "{} bytes", answer.len());
    join(server).unwrap()
}

/// How long control may take to make the rules, on a machine that others load.
const PATIENCE: Duration = Duration::from_secs(5);

#[test]
#[ignore = "needs root; scripts/test runs it"]
fn pods_are_masqueraded_towards_the_world_only() {
    let spec = ClusterSpec {
        pods_per_node: 1,
        ..spec()
    };
    let options = Options {
        config: "masquerade = true\n".to_owned(),
        ..options(Mode::Native)
    };
    let mut network = Network::up(spec, &options);
    let (node, pod, other) = (
        network.node(0).clone(),
        network.pod(0, 0).clone(),
        network.pod(1, 0).clone(),
    );
    // The other node's namespace has an address that no route of Podway leads to: the world.
    let world = network.node(1).netns.clone();
    let outside: IpAddr = "203.0.113.9".parse().unwrap();
    world
        .ip(&[format!("addr add {outside}/32 dev lo")])
        .unwrap();
    node.netns
        .ip(&[format!(
            "route add {outside}/32 via {} dev {UPLINK}",
            network.node(1).underlay
        )])
        .unwrap();
    let to_world = || source(&pod.netns, &world, outside);
    let (own, masqueraded): (IpAddr, IpAddr) = (pod.ipv4.into(), node.underlay.into());
    // Control makes the rules once it knows its node, on its own time.
    let is_masqueraded = || match to_world() {
        Ok(source) if source == masqueraded => Ok(()),
        other => Err(format!("seen from {other:?}")),
    };
    wait_until("the rules are made", PATIENCE, is_masqueraded).unwrap();
    assert_eq!(source_by_tcp(&pod.netns, &world, outside), masqueraded);
    ping_all(&pod.netns, outside, 56, 3);
    let before = network.counters();
    let between = source(&pod.netns, &other.netns, other.ipv4.into());
    assert_eq!(between.unwrap(), own);
    ping_all(&pod.netns, other.ipv4.into(), 56, 10);
    let after = network.counters();
    let delta = Delta {
        before: &before[0],
        after: &after[0],
    };
    // The datagram and ten requests, and as many answers, all of them by the dataplane.
    assert_eq!(delta.packets(UPLINK), (11, 11));

    // The rules come back when somebody flushes them, and stay when control stops.
    node.netns.run("nft", &["flush", "ruleset"]).unwrap();
    let listing = || node.netns.run("nft", &["list", "table", "inet", "podway"]);
    let back = || match listing() {
        Ok(text) if text.contains("masquerade") => Ok(()),
        other => Err(format!("{other:?}")),
    };
    wait_until("the rules are made anew", PATIENCE, back).unwrap();
    wait_until("they are whole again", PATIENCE, is_masqueraded).unwrap();
    network.podway.agent_mut(0).stop_control().unwrap();
    assert_eq!(to_world().unwrap(), masqueraded);
    network.podway.agent_mut(0).start_control().unwrap();
    network.podway.wait_ready().unwrap();

    // With the daemons goes the table.
    network.podway.agent_mut(0).stop().unwrap();
    assert!(listing().is_err(), "the table is left");
    assert_eq!(network.cluster.remove(), Vec::<String>::new());
}

#[test]
#[ignore = "needs root; scripts/test runs it"]
fn pods_in_tunnels_are_masqueraded_towards_the_world_only() {
    let spec = ClusterSpec {
        pods_per_node: 1,
        ..spec()
    };
    let base = options(Mode::Vxlan);
    let options = Options {
        config: format!(
            "{}masquerade = true\nipv6-native-routing-cidr = \"fd00:10::/48\"\n",
            base.config
        ),
        ..base
    };
    let network = Network::up(spec, &options);
    let (node, next) = (network.node(0), network.node(1));
    let (pod, other) = (network.pod(0, 0), network.pod(1, 0));
    for (outside, router, masqueraded, inside, own) in [
        (
            "203.0.113.9",
            IpAddr::from(next.underlay),
            IpAddr::from(node.underlay),
            IpAddr::from(other.ipv4),
            IpAddr::from(pod.ipv4),
        ),
        (
            "2001:db8:9::9",
            next.underlay6.into(),
            node.underlay6.into(),
            other.ipv6.into(),
            pod.ipv6.into(),
        ),
    ] {
        let outside: IpAddr = outside.parse().unwrap();
        next.netns
            .ip(&[format!("addr add {outside} dev lo")])
            .unwrap();
        node.netns
            .ip(&[format!("route add {outside} via {router} dev {UPLINK}")])
            .unwrap();
        // Control makes the rules once it knows its node, on its own time.
        let is_masqueraded = || match source(&pod.netns, &next.netns, outside) {
            Ok(source) if source == masqueraded => Ok(()),
            other => Err(format!("seen from {other:?}")),
        };
        wait_until("the rules are made", PATIENCE, is_masqueraded).unwrap();
        let before = network.counters();
        let by_tcp = source_by_tcp(&pod.netns, &next.netns, outside);
        assert_eq!(by_tcp, masqueraded);
        ping_all(&pod.netns, outside, 56, 3);
        let after = network.counters();
        let delta = Delta {
            before: &before[0],
            after: &after[0],
        };
        assert_eq!(delta.packets(UPLINK), (0, 0), "all of it is the kernel's");

        let before = network.counters();
        let between = source(&pod.netns, &other.netns, inside);
        assert_eq!(between.unwrap(), own);
        assert_eq!(source_by_tcp(&pod.netns, &other.netns, inside), own);
        ping_all(&pod.netns, inside, 56, 10);
        let after = network.counters();
        let delta = Delta {
            before: &before[0],
            after: &after[0],
        };
        // A datagram, ten pings, and what TCP makes of 100 kB.
        let (received, sent) = delta.packets(UPLINK);
        assert!(received > 12 && sent > 12, "{received}, {sent}");
        assert_eq!(delta.drops().len(), 0);
    }
    network.finish();
}

/// Sends three echo requests; how often "unreachable" is the answer. `ping` itself may end before the
/// last one comes.
fn unreachable(from: &Netns, to: &str) -> u64 {
    let answers = || counted(from, "Icmp", "InDestUnreachs");
    let before = answers();
    let mut command = from.command("ping");
    let output = command.args(["-c", "3", "-i", "0.2", "-W", "1", to]);
    let said = String::from_utf8(output.output().unwrap().stdout).unwrap();
    assert!(said.contains("Destination Host Unreachable"), "{said}");
    std::thread::sleep(Duration::from_millis(200));
    answers() - before
}

#[test]
#[ignore = "needs root; scripts/test runs it"]
fn an_absent_pod_is_unreachable_and_nothing_loops() {
    // The default route of each node leads to a router that has a route back to the node's pods.
    let absent = "10.0.1.99";
    for mode in [Mode::Native, Mode::Vxlan] {
        let network = Network::up(narrow(), &options(mode));
        let (pod, other) = (network.pod(0, 0), network.pod(1, 0));
        let node = &network.node(1).netns;
        // Or the kernel answers two and no more at once.
        node.sysctl(&["net.ipv4.icmp_ratelimit=0"]).unwrap();
        ping_all(&pod.netns, other.ipv4.into(), 56, 3);
        let on_wire = || LinkCounters::read(node, UPLINK).unwrap();
        let (wire_before, before) = (on_wire(), network.counters());
        assert_eq!(unreachable(&pod.netns, absent), 3, "{mode}");
        assert_eq!(
            unreachable(&other.netns, absent),
            3,
            "{mode}, from the node"
        );
        let (wire, after) = (on_wire().since(wire_before), network.counters());
        let delta = Delta {
            before: &before[1],
            after: &after[1],
        };
        // One that came back would come by once more.
        assert_eq!(delta.passed(UPLINK).get("no_such_pod"), Some(&3), "{mode}");
        // The requests and their answers, and what neighbours have to tell each other.
        assert!(wire.rx_packets < 12 && wire.tx_packets < 12, "{wire:?}");
        ping_all(&pod.netns, other.ipv4.into(), 56, 3);
        network.finish();
    }
}
