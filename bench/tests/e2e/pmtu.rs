//! Pods that believe in a larger path than there is, and tools that look for it: every router on the way
//! answers, in both modes.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::process::Command;
use std::time::Duration;

use podway_bench::contender::pod_mtu;
use podway_bench::iperf::Iperf;
use podway_bench::netns::{Netns, run};
use podway_bench::podway::{Agent, Options};
use podway_bench::topology::{ClusterSpec, Pod, UPLINK};
use podway_proto::types::Mode;

use crate::mtu::{NARROW, narrow};
use crate::sockets::{self, Datagrams};
use crate::support::{Delta, Network, af_xdp, map_id, options, ping_all, spec, wait_for_answer};

/// A path on which segments are lost for their size is orders of magnitude below this.
const TCP_FLOOR: f64 = 1e8;
/// Bytes of a connection each way, enough to learn what a path carries.
const TRANSFER: usize = 1_000_000;
/// How long the first packet may take, for which everyone on the way asks for a neighbour.
const PATIENCE: Duration = Duration::from_secs(10);

/// What `ping` says of one echo that must not be fragmented.
fn unfragmented(from: &Netns, to: IpAddr, payload: u16) -> String {
    let (payload, to) = (payload.to_string(), to.to_string());
    let args = ["-n", "-c", "1", "-W", "2", "-M", "do", "-s", &payload, &to];
    let output = from.command("ping").args(args).output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    String::from_utf8_lossy(&text).into_owned()
}

/// Sends two echoes that need not arrive; the kernel tells of the second that it was too large where it
/// has learned by the first.
fn too_large(from: &Netns, to: IpAddr, payload: u16) {
    let (payload, to) = (payload.to_string(), to.to_string());
    let how = ["-n", "-c", "2", "-i", "0.05", "-W", "0.2", "-M", "do", "-s"];
    let mut command = from.command("ping");
    command.args(how).args([&payload, &to]).output().unwrap();
}

/// The MTU of the pod's route to `to`, once it has learned one.
fn learned(from: &Netns, to: IpAddr) -> String {
    from.run("ip", &["route", "get", &to.to_string()]).unwrap()
}

/// A pod whose route says 1500 where a tunnel leaves 1450 of them: one router's answer is enough.
#[test]
#[ignore = "needs root; scripts/test runs it"]
fn a_wrong_route_mtu_recovers() {
    let network = Network::up(spec(), &options(Mode::Vxlan));
    network.cluster.set_pod_mtu(1500).unwrap();
    let (from, server) = (network.pod(0, 0), network.pod(1, 0));
    for (to, mtu, header) in [
        (IpAddr::from(server.ipv4), 1450, 28),
        (server.ipv6.into(), 1450, 48),
    ] {
        // Too large: the node says so, and what fits. From then on the pod itself knows.
        let said = unfragmented(&from.netns, to, 1500 - header);
        assert!(said.contains(&mtu.to_string()), "{said}");
        let route = learned(&from.netns, to);
        assert!(route.contains(&format!("mtu {mtu}")), "{route}");
        let said = unfragmented(&from.netns, to, mtu - header);
        assert!(said.contains("1 received"), "{said}");
        for run in [Iperf::tcp(1), Iperf::tcp(1).reversed()] {
            let got = run.run(&from.netns, &server.netns, to).unwrap();
            assert!(got.bits_per_second > TCP_FLOOR, "{got:?}");
        }
    }
    network.finish();
}

/// TCP of pods with a wrong route, over a link in the middle that carries less still.
#[test]
#[ignore = "needs root; scripts/test runs it"]
fn a_wrong_route_mtu_recovers_over_a_narrow_link() {
    for mode in [Mode::Vxlan, Mode::Native] {
        let network = Network::up(narrow(), &options(mode));
        network.cluster.set_pod_mtu(1500).unwrap();
        let (from, server) = (network.pod(0, 0), network.pod(1, 0));
        let before = network.counters();
        for run in [Iperf::tcp(1), Iperf::tcp(1).reversed()] {
            let got = run
                .run(&from.netns, &server.netns, server.ipv4.into())
                .unwrap();
            assert!(got.bits_per_second > TCP_FLOOR, "{mode}: {got:?}");
        }
        for (before, after) in before.iter().zip(&network.counters()) {
            assert_eq!(Delta { before, after }.drops().len(), 0, "{after:?}");
        }
        network.finish();
    }
}

/// The addresses of the hops that `traceroute` has seen, one probe each.
fn hops(from: &Netns, to: IpAddr, how: &[&str]) -> Vec<String> {
    let to = to.to_string();
    let args = ["-n", "-q", "1", "-w", "2", "-m", "8"];
    let text = from
        .run("traceroute", &[&args, how, &[to.as_str()]].concat())
        .unwrap();
    let lines = text.lines().skip(1);
    let hop = |line: &str| line.split_whitespace().nth(1).unwrap_or("").to_owned();
    lines.map(hop).collect()
}

#[test]
#[ignore = "needs root; scripts/test runs it"]
fn traceroute_shows_the_nodes_between() {
    for mode in [Mode::Vxlan, Mode::Native] {
        let network = Network::up(spec(), &options(mode));
        let (from, to) = (&network.pod(0, 0).netns, network.pod(1, 0));
        ping_all(from, to.ipv4.into(), 56, 1);
        // Of the other node, the address of the interface by which the packet came.
        let second = match mode {
            Mode::Vxlan => network.node(1).pod_network().to_string(),
            Mode::Native => network.node(1).underlay.to_string(),
        };
        for how in [&["-U", "-p", "33434"][..], &["-I"], &["-T", "-p", "9"]] {
            let seen = hops(from, to.ipv4.into(), how);
            let wanted = ["10.0.0.1".to_owned(), second.clone(), to.ipv4.to_string()];
            assert_eq!(seen, wanted, "{mode} {how:?}");
        }
        network.finish();
    }
}

#[test]
#[ignore = "needs root; scripts/test runs it"]
fn tracepath_shows_what_the_path_carries() {
    for (mode, mtu) in [(Mode::Vxlan, 1450), (Mode::Native, 1500)] {
        let network = Network::up(spec(), &options(mode));
        network.cluster.set_pod_mtu(1500).unwrap();
        let (from, to) = (&network.pod(0, 0).netns, network.pod(1, 0).ipv4);
        let text = from
            .run("tracepath", &["-n", "-m", "8", &to.to_string()])
            .unwrap();
        let wanted = format!("Resume: pmtu {mtu} hops 3 back 3");
        assert!(text.contains(&wanted), "{mode}: {text}");
        network.finish();
    }
}

/// Behind a link that carries less than their routes say, pods are told so, or what they send is cut on
/// its way: both IP versions, in tunnels over both and natively.
#[test]
#[ignore = "needs root; scripts/test runs it"]
fn nothing_is_lost_on_a_narrow_link_that_is_known() {
    for (mode, underlay6) in [
        (Mode::Vxlan, false),
        (Mode::Vxlan, true),
        (Mode::Native, false),
        (Mode::Native, true),
    ] {
        let spec = ClusterSpec {
            pods_per_node: 1,
            uplink_tx_checksum: false,
            ..narrow()
        };
        let options = Options {
            underlay6,
            ..options(mode)
        };
        let network = Network::up(spec, &options);
        let before = network.counters();
        for inside6 in [false, true] {
            if mode == Mode::Vxlan || inside6 == underlay6 {
                fits_or_is_told(&network, mode, underlay6, inside6);
            }
        }
        for (before, after) in before.iter().zip(&network.counters()) {
            assert_eq!(Delta { before, after }.drops().len(), 0, "{after:?}");
        }
        network.finish();
    }
}

fn fits_or_is_told(network: &Network, mode: Mode, underlay6: bool, inside6: bool) {
    let what = format!("{mode}, IPv6 outside {underlay6}, inside {inside6}");
    let (one, two) = (network.pod(0, 0), network.pod(1, 0));
    let address = |pod: &Pod| -> IpAddr {
        if inside6 {
            pod.ipv6.into()
        } else {
            pod.ipv4.into()
        }
    };
    let header = if inside6 { 48 } else { 28 };
    let told = pod_mtu(1500, mode, underlay6);
    let carried = pod_mtu(NARROW, mode, underlay6);
    let ways = [(one, two), (two, one)];
    wait_for_answer(&one.netns, address(two), PATIENCE);
    for (from, to) in ways {
        let arrived = sockets::tcp(&from.netns, &to.netns, address(to), TRANSFER);
        assert_eq!(arrived, (TRANSFER, TRANSFER), "{what}");
    }
    for (from, to) in ways {
        if mode == Mode::Vxlan && !underlay6 && !inside6 {
            // Tunnels over IPv4 are cut by whoever cannot forward them.
            let said = unfragmented(&from.netns, address(to), told - header);
            assert!(said.contains("1 received"), "{what}: {said}");
        } else {
            too_large(&from.netns, address(to), told - header);
            let route = learned(&from.netns, address(to));
            assert!(route.contains(&format!("mtu {carried}")), "{what}: {route}");
        }
        let said = unfragmented(&from.netns, address(to), carried - header);
        assert!(said.contains("1 received"), "{what}: {said}");
    }
    for size in [usize::from(told - header), 8_000, 20_000, 65_000] {
        for (from, to) in ways {
            let datagrams = Datagrams {
                size,
                count: 5,
                window: 1,
            };
            let arrived = datagrams.arriving(&from.netns, &to.netns, address(to));
            assert_eq!(arrived, 5, "{what}: of {size} bytes from {}", address(from));
        }
    }
}

/// Puts an entry into a map of the dataplane's programs that its tables know nothing of.
fn lead_astray(agent: &Agent, map: &str, key: &[u8], value: [u8; 4]) {
    let hex = |bytes: &[u8]| {
        bytes
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect::<Vec<_>>()
    };
    let args = ["map", "update", "id", &map_id(agent, map)].map(str::to_owned);
    let args = [&args[..], &["key".into(), "hex".into()], &hex(key)].concat();
    let args = [&args[..], &["value".into(), "hex".into()], &hex(&value)].concat();
    run(Command::new("bpftool").args(args)).unwrap();
}

/// Has the programs redirect what is for a prefix and no larger than 1500 bytes.
fn redirect(agent: &Agent, prefix: IpAddr, len: u32) {
    let (map, address) = match prefix {
        IpAddr::V4(v4) => ("prefixes4", v4.octets().to_vec()),
        IpAddr::V6(v6) => ("prefixes6", v6.octets().to_vec()),
    };
    let key = [&len.to_ne_bytes()[..], &address].concat();
    let [low, high] = 1500_u16.to_ne_bytes();
    lead_astray(agent, map, &key, [low, high, 0, 0]);
}

/// On steady tables the programs redirect nothing that needs an answer. So here their maps are behind the
/// tables, as they are for a moment when a route is withdrawn, a pod goes, or a path gets narrower: then
/// the dataplane itself answers, at the sender's node and at the other end of the tunnel.
#[test]
#[ignore = "needs root; scripts/test runs it"]
fn what_was_redirected_and_goes_no_further_is_answered() {
    for options in [options(Mode::Vxlan), af_xdp(Mode::Vxlan)] {
        answers(&options);
    }
}

fn answers(options: &Options) {
    let network = Network::up(spec(), options);
    network.cluster.set_pod_mtu(1500).unwrap();
    let (here, there) = (network.agent(0), network.agent(1));
    let (from, to, third) = (network.pod(0, 0), network.pod(1, 0), network.pod(1, 1));
    ping_all(&from.netns, to.ipv4.into(), 56, 1);
    ping_all(&from.netns, to.ipv6.into(), 56, 1);
    let remote = &network.cluster.nodes()[1];
    let nowhere: [IpAddr; 2] = ["10.77.0.1".parse().unwrap(), "fd77::1".parse().unwrap()];
    let gone: [IpAddr; 2] = [
        "10.0.1.77".parse().unwrap(),
        "fd00:10:0:1::77".parse().unwrap(),
    ];
    redirect(here, remote.pod_network().into(), 24);
    redirect(here, remote.pod_network6().into(), 64);
    for address in nowhere {
        redirect(here, address, if address.is_ipv4() { 32 } else { 128 });
    }
    for address in gone {
        let (map, key) = match address {
            IpAddr::V4(v4) => ("pods4", v4.octets().to_vec()),
            IpAddr::V6(v6) => ("pods6", v6.octets().to_vec()),
        };
        redirect(there, address, if address.is_ipv4() { 32 } else { 128 });
        lead_astray(there, map, &key, 1_u32.to_ne_bytes());
    }
    let before = network.counters();

    let too_big = [(IpAddr::from(to.ipv4), 28), (to.ipv6.into(), 48)];
    for ((to, header), router) in too_big.into_iter().zip(["10.0.0.1", "fd00:10::1"]) {
        let said = unfragmented(&from.netns, to, 1500 - header);
        assert!(said.contains(&format!("From {router} ")), "{said}");
        assert!(said.contains("1450"), "{said}");
        let route = learned(&from.netns, to);
        assert!(route.contains("mtu 1450"), "{route}");
    }
    for (at, router) in [
        (nowhere, ["10.0.0.1", "fd00:10::1"]),
        (gone, ["10.0.1.1", "fd00:10:0:1::1"]),
    ] {
        for (to, router) in at.into_iter().zip(router) {
            let said = unfragmented(&from.netns, to, 56);
            assert!(said.contains(&format!("From {router} ")), "{said}");
            let words = [
                "Destination Net Unreachable",
                "Destination unreachable: No route",
            ];
            let words = words[usize::from(to.is_ipv6())];
            assert!(said.contains(words), "{said}");
        }
    }
    // Its first hop is the kernel's answer, what the path carries the dataplane's.
    let args = ["-n", "-m", "8", &third.ipv4.to_string()];
    let text = from.netns.run("tracepath", &args).unwrap();
    assert!(text.contains("Resume: pmtu 1450 hops 3 back 3"), "{text}");

    let after = network.counters();
    let drops = |node: usize| {
        let delta = Delta {
            before: &before[node],
            after: &after[node],
        };
        (
            delta.drops(),
            delta.icmp_errors(&from.host_interface),
            delta.icmp_errors(UPLINK),
        )
    };
    let counted = |reasons: &[(&str, u64)]| -> BTreeMap<String, u64> {
        let each = reasons
            .iter()
            .map(|(reason, count)| ((*reason).to_owned(), *count));
        each.collect()
    };
    assert_eq!(
        drops(0),
        (counted(&[("no_route", 2), ("too_big", 3)]), (5, 0), (0, 0))
    );
    assert_eq!(drops(1), (counted(&[("no_route", 2)]), (0, 0), (2, 0)));
    network.finish();
}
