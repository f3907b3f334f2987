//! Paths and pods that carry less than the uplinks do.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use podway_bench::iperf::Iperf;
use podway_bench::netns::{Netns, wait_until};
use podway_bench::topology::{ClusterSpec, POD_INTERFACE, Pod, UPLINK};
use podway_bench::wiretap::Wiretap;
use podway_proto::types::Mode;

use crate::support::{Delta, Network, options, ping_all, spec};

/// What the link between the nodes' routers carries, in bytes.
pub(crate) const NARROW: u16 = 1400;
/// What goes before the inner IP header in a tunnel: Ethernet, IPv4, UDP, VXLAN, Ethernet.
pub(crate) const TUNNEL: u64 = 64;
pub(crate) const ETHERNET: u64 = 14;
/// A path on which segments are lost for their size is orders of magnitude below this.
const TCP_FLOOR: f64 = 1e8;

pub(crate) fn narrow() -> ClusterSpec {
    ClusterSpec {
        narrow_middle: Some(NARROW),
        ..spec()
    }
}

/// MTU of the path from a node to the other one.
fn path_mtu(network: &Network, node: usize) -> u16 {
    let other = network.node(1 - node).name.clone();
    let nodes = network.agent(node).nodes().unwrap();
    let entry = nodes.into_iter().find(|entry| entry.name == other).unwrap();
    entry.path.unwrap().mtu
}

/// Has both nodes learn the narrow link, by TCP between their first pods.
pub(crate) fn learn(network: &Network) {
    let (client, server) = (network.pod(0, 0), network.pod(1, 0));
    for (node, run) in [Iperf::tcp(1), Iperf::tcp(1).reversed()]
        .into_iter()
        .enumerate()
    {
        let got = run
            .run(&client.netns, &server.netns, server.ipv4.into())
            .unwrap();
        assert!(got.bits_per_second > TCP_FLOOR, "{got:?}");
        let learned = || match path_mtu(network, node) {
            NARROW => Ok(()),
            other => Err(format!("{other}")),
        };
        wait_until("the path's MTU is learned", Duration::from_secs(2), learned).unwrap();
    }
}

/// A second of TCP from the first pod of node 1 to that of node 2. Returns the longest frame that
/// left an uplink, in bytes.
fn longest_frame(network: &Network) -> u64 {
    let (client, server) = (network.pod(0, 0), network.pod(1, 0));
    let tap = Wiretap::on(&network.cluster);
    let run = Iperf::tcp(1);
    let got = run
        .run(&client.netns, &server.netns, server.ipv4.into())
        .unwrap();
    assert!(got.bits_per_second > TCP_FLOOR, "{got:?}");
    tap.finish().unwrap().longest
}

#[test]
#[ignore = "needs root; scripts/test runs it"]
fn a_narrow_link_is_learned_and_forgotten() {
    let network = Network::up(narrow(), &options(Mode::Vxlan));
    for node in network.cluster.nodes() {
        node.netns
            .sysctl(&["net.ipv4.route.mtu_expires=10"])
            .unwrap();
    }
    for node in [0, 1] {
        assert_eq!(path_mtu(&network, node), 1500);
    }
    let before = network.counters();
    learn(&network);
    for (before, after) in before.iter().zip(&network.counters()) {
        assert_eq!(Delta { before, after }.drops().len(), 0, "{after:?}");
    }
    too_large_is_named(&network);
    for node in [0, 1] {
        let forgotten = || match path_mtu(&network, node) {
            1500 => Ok(()),
            other => Err(format!("{other}")),
        };
        wait_until(
            "the path's MTU is forgotten",
            Duration::from_secs(15),
            forgotten,
        )
        .unwrap();
    }
    network.finish();
}

/// The ports say what did not fit, and what would.
fn too_large_is_named(network: &Network) {
    let (pod, other) = (network.pod(0, 0), network.pod(1, 0));
    let target = other.ipv4.to_string();
    let mut ping = pod.netns.command("ping");
    // With headers 1428 bytes; the answer is that they do not fit.
    ping.args(["-M", "do", "-s", "1400", "-c", "1", "-W", "1", &target]);
    ping.output().unwrap();
    let shown = network.agent(0).cli(&["port", "show"]).unwrap();
    let fit = NARROW - 50;
    for line in [
        format!(
            "too large on {}: {} to {target} with 1428 bytes, of which {fit} fit",
            pod.host_interface, pod.ipv4
        ),
        format!(
            "pods' routes fit with an MTU up to {fit}, for the path to {}",
            network.node(1).name
        ),
    ] {
        assert!(shown.contains(&line), "{line}\n{shown}");
    }
}

/// What the kernel forwards it makes as large as its VXLAN device allows, whatever it has learned of
/// the path; its outer packets may be cut on the way.
#[test]
#[ignore = "needs root; scripts/test runs it"]
fn the_kernel_carries_large_packets_through_a_narrow_link() {
    let mut network = Network::up(narrow(), &options(Mode::Vxlan));
    let (client, server) = (network.pod(0, 0).clone(), network.pod(1, 0).clone());
    let both_ways = |size| {
        for (from, to) in [(&client, &server), (&server, &client)] {
            ping_all(&from.netns, to.ipv4.into(), size, 5);
        }
    };
    for node in [0, 1] {
        network.podway.agent_mut(node).stop_dataplane().unwrap();
    }
    // Nobody has learned the path's MTU yet; then it is known as it is by the dataplane's packets.
    both_ways(8000);
    for node in [0, 1] {
        network.podway.agent_mut(node).start_dataplane().unwrap();
    }
    network.podway.wait_ready().unwrap();
    learn(&network);
    for node in [0, 1] {
        network.podway.agent_mut(node).stop_dataplane().unwrap();
    }
    both_ways(1400);
    both_ways(8000);
    let run = Iperf::tcp(1);
    let got = run
        .run(&client.netns, &server.netns, server.ipv4.into())
        .unwrap();
    assert!(got.bits_per_second > TCP_FLOOR / 10.0, "{got:?}");
    for node in [0, 1] {
        network.podway.agent_mut(node).start_dataplane().unwrap();
    }
    network.podway.wait_ready().unwrap();
    network.finish();
}

#[test]
#[ignore = "needs root; scripts/test runs it"]
fn pods_learn_a_narrow_link_natively() {
    let network = Network::up(narrow(), &options(Mode::Native));
    let (client, server) = (network.pod(0, 0), network.pod(1, 0));
    ping_all(&client.netns, server.ipv4.into(), 56, 3);
    let before = network.counters();
    for run in [Iperf::tcp(1), Iperf::tcp(1).reversed()] {
        let got = run
            .run(&client.netns, &server.netns, server.ipv4.into())
            .unwrap();
        assert!(got.bits_per_second > TCP_FLOOR, "{got:?}");
    }
    for (number, (before, after)) in before.iter().zip(&network.counters()).enumerate() {
        let delta = Delta { before, after };
        let (_, sent) = delta.packets(UPLINK);
        assert!(sent > 1000, "{sent} packets by the uplink of node {number}");
        assert_eq!(delta.drops().len(), 0, "{after:?}");
    }
    // The other one need not learn it: from then on the client announces segments that fit.
    let to = server.ipv4.to_string();
    let route = client.netns.run("ip", &["route", "get", &to]).unwrap();
    assert!(route.contains(&format!("mtu {NARROW}")), "{route}");
    network.finish();
}

#[test]
#[ignore = "needs root; scripts/test runs it"]
fn small_segments_stay_small_in_tunnels() {
    announces_536(Mode::Vxlan, TUNNEL);
}

#[test]
#[ignore = "needs root; scripts/test runs it"]
fn small_segments_stay_small_natively() {
    announces_536(Mode::Native, ETHERNET);
}

/// The receiving pod announces an MSS of 536 bytes: segments are packets of 576 bytes, however
/// large the super-frames are that carry them.
fn announces_536(mode: Mode, in_front: u64) {
    let network = Network::up(spec(), &options(mode));
    let server = network.pod(1, 0);
    set_route(server, "mtu 1400 advmss 536");
    assert_eq!(longest_frame(&network), in_front + 576);
    network.finish();
}

#[test]
#[ignore = "needs root; scripts/test runs it"]
fn a_pod_with_a_smaller_mtu_gets_what_fits() {
    const SMALL: u64 = 1300;
    let network = Network::up(spec(), &options(Mode::Vxlan));
    let (client, server) = (network.pod(0, 0), network.pod(1, 0));
    let node = &network.node(1).netns;
    set_mtu(node, &server.host_interface, SMALL);
    set_mtu(&server.netns, POD_INTERFACE, SMALL);
    set_route(server, &format!("mtu {SMALL}"));
    assert_eq!(longest_frame(&network), TUNNEL + SMALL);
    // What it sends itself reaches a pod with a larger one, and fragments cross both ways.
    let reverse = Iperf::tcp(1).reversed();
    let got = reverse
        .run(&client.netns, &server.netns, server.ipv4.into())
        .unwrap();
    assert!(got.bits_per_second > TCP_FLOOR, "{got:?}");
    ping_all(&server.netns, client.ipv4.into(), 8000, 5);
    network.finish();
}

pub(crate) fn set_mtu(netns: &Netns, interface: &str, mtu: u64) {
    netns
        .ip(&[format!("link set dev {interface} mtu {mtu}")])
        .unwrap();
}

/// Gives a pod's default route an attribute.
pub(crate) fn set_route(pod: &Pod, attributes: &str) {
    let [a, b, c, _] = pod.ipv4.octets();
    let gateway = IpAddr::from(Ipv4Addr::new(a, b, c, 1));
    let route = format!("route replace default via {gateway} dev {POD_INTERFACE} {attributes}");
    pod.netns.ip(&[route]).unwrap();
}
