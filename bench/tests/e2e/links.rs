//! Interfaces live: they go down and up, change, are renamed, move away and come back, and pods come
//! and go by the hundred. Ports follow, and no other port notices.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::time::Duration;

use podway_bench::netns::wait_until;
use podway_bench::ping::{Ping, Running};
use podway_bench::podway::Agent;
use podway_bench::topology::{ClusterSpec, POD_INTERFACE, Pod, UPLINK};
use podway_bench::{cpu, link};
use podway_proto::control::{DataplaneLink, PortRoleSpec};
use podway_proto::dataplane::{Counters, PortStatus};
use podway_proto::entries::Entries;
use podway_proto::types::Mode;

use crate::neighbors::is_fast;
use crate::support::{Network, entries, options, ping_all, spec, wait_for_answer};

/// How long a port may take to follow, on a machine that others load.
const PATIENCE: Duration = Duration::from_secs(5);

fn two_pods() -> ClusterSpec {
    ClusterSpec {
        pods_per_node: 2,
        ..spec()
    }
}

/// The port as the dataplane serves it; `None` while it does not.
fn served(agent: &Agent, interface: &str) -> Option<PortStatus> {
    let link = agent.status().unwrap().dataplane;
    let mut ports = link.status()?.ports.iter();
    ports.find(|port| port.interface == interface).cloned()
}

/// A ping every millisecond between two pods that nothing happens to.
fn bystanders(network: &Network, seconds: u16) -> Running {
    let ping = Ping {
        count: seconds * 1000,
        interval: Duration::from_millis(1),
        ..Ping::default()
    };
    let (from, to) = (network.pod(0, 1), network.pod(1, 1));
    ping.start(&from.netns, to.ipv4.into())
}

fn all_answered(running: Running) {
    let replies = running.finish().unwrap();
    assert_eq!(replies.received, replies.sent);
    assert_eq!(replies.duplicates, 0);
}

#[test]
#[ignore = "needs root; scripts/test runs it"]
fn a_port_follows_its_link() {
    let network = Network::up(two_pods(), &options(Mode::Vxlan));
    let (agent, node) = (network.agent(0), &network.node(0).netns);
    let (pod, peer) = (network.pod(0, 0), network.pod(1, 0));
    let link = &pod.host_interface;
    let ip = |words: String| node.ip(&[words]).unwrap();
    let is_served = |what: &str, wanted: &dyn Fn(&PortStatus) -> bool| {
        wait_until(what, PATIENCE, || match served(agent, link) {
            Some(port) if wanted(&port) => Ok(()),
            other => Err(format!("{other:?}")),
        })
        .unwrap();
        wait_for_answer(&pod.netns, peer.ipv4.into(), PATIENCE);
        ping_all(&pod.netns, peer.ipv4.into(), 56, 10);
        ping_all(&peer.netns, pod.ipv4.into(), 56, 10);
    };
    let is_gone = |what: &str| {
        wait_until(what, PATIENCE, || match served(agent, link) {
            None => Ok(()),
            Some(port) => Err(format!("{port:?}")),
        })
        .unwrap();
    };
    is_served("the port is served", &|_| true);
    let ifindex = served(agent, link).unwrap().ifindex;
    let others = bystanders(&network, 10);

    ip(format!("link set dev {link} down"));
    ip(format!("link set dev {link} up"));
    is_served("it is after down and up", &|port| port.ifindex == ifindex);

    ip(format!("link set dev {link} mtu 1400"));
    is_served("its MTU is followed", &|port| port.mtu == 1400);
    ip(format!("link set dev {link} mtu 1500"));
    is_served("and followed again", &|port| port.mtu == 1500);

    // The pod learns the new MAC of its gateway by itself.
    ip(format!("link set dev {link} address 02:00:00:00:99:01"));
    pod.netns.ip(&["neigh flush all".to_owned()]).unwrap();
    is_served("it has another MAC", &|_| true);

    ip(format!("link set dev {link} down"));
    ip(format!("link set dev {link} name away0"));
    is_gone("a renamed link is no port");
    let shown = agent.cli(&["port", "show"]).unwrap();
    let waits = format!("waiting for the link {link}");
    assert!(shown.contains(&waits), "{shown}");
    ip(format!("link set dev away0 name {link}"));
    ip(format!("link set dev {link} up"));
    is_served("it has its name again", &|port| port.ifindex == ifindex);

    // Into the namespace of another pod, where it does no harm, and back.
    let elsewhere = &network.pod(0, 1).netns;
    ip(format!("link set dev {link} netns {}", elsewhere.name()));
    is_gone("a link that has moved away is no port");
    let back = format!("link set dev {link} netns {}", node.name());
    elsewhere.ip(&[back]).unwrap();
    ip(format!("link set dev {link} up"));
    is_served("it is back", &|_| true);
    all_answered(others);
    network.finish();
}

/// Waits until the entries of the maps and of the kernel are what they were.
fn are_again(agent: &Agent, before: &BTreeMap<&'static str, BTreeSet<String>>) {
    wait_until("all entries are as before", PATIENCE, || {
        let now = entries(agent);
        let differ = now.iter().filter(|(name, lines)| before[*name] != **lines);
        let differ: Vec<_> = differ
            .map(|(name, now)| (name, &before[name], now))
            .collect();
        match differ.as_slice() {
            [] => Ok(()),
            differ => Err(format!("{differ:#?}")),
        }
    })
    .unwrap();
}

/// Lets two pods of node 1 ping each other, and one of them a pod of node 2, while something happens.
/// The first two notice nothing of it.
fn beside_flows(network: &Network, work: impl FnOnce()) {
    let ping = Ping {
        count: 500,
        interval: Duration::from_millis(1),
        ..Ping::default()
    };
    let (one, two) = (network.pod(0, 0), network.pod(0, 1));
    let within = ping.start(&one.netns, two.ipv4.into());
    let across = ping.start(&two.netns, network.pod(1, 1).ipv4.into());
    work();
    all_answered(within);
    assert_eq!(across.finish().unwrap().duplicates, 0);
}

#[test]
#[ignore = "needs root; scripts/test runs it"]
fn an_uplink_follows_its_link() {
    let network = Network::up(two_pods(), &options(Mode::Vxlan));
    let (agent, node) = (network.agent(0), &network.node(0).netns);
    let (pod, peer) = (network.pod(0, 0), network.pod(1, 0));
    let ip = |words: &str| node.ip(&[words.to_owned()]).unwrap();
    // The kernel forgets them with each time that the link goes down.
    let addresses = format!(
        "addr replace {}/64 dev {UPLINK} nodad",
        network.node(0).underlay6
    );
    let both_ways = || {
        wait_for_answer(&pod.netns, peer.ipv4.into(), PATIENCE);
        ping_all(&pod.netns, peer.ipv4.into(), 56, 10);
        ping_all(&peer.netns, pod.ipv6.into(), 56, 10);
    };
    let is_served = |what: &str, wanted: &dyn Fn(&PortStatus) -> bool| {
        wait_until(what, PATIENCE, || match served(agent, UPLINK) {
            Some(port) if wanted(&port) => Ok(()),
            other => Err(format!("{other:?}")),
        })
        .unwrap();
        both_ways();
    };
    is_served("the uplink is served", &|_| true);
    is_fast(&network);
    let first = served(agent, UPLINK).unwrap();
    let before = entries(agent);

    beside_flows(&network, || {
        ip(&format!("link set dev {UPLINK} down"));
        ip(&format!("link set dev {UPLINK} up"));
        is_served("it is after down and up", &|port| *port == first);
    });
    is_fast(&network);

    // By another name it is no port: the kernel has the packets, and status says why.
    beside_flows(&network, || {
        ip(&format!("link set dev {UPLINK} down"));
        ip(&format!("link set dev {UPLINK} name away0"));
        ip("link set dev away0 up");
        wait_until("a renamed uplink is no port", PATIENCE, || {
            served(agent, UPLINK).map_or(Ok(()), |port| Err(format!("{port:?}")))
        })
        .unwrap();
        both_ways();
        let hints = agent.status().unwrap().hints;
        let missing = format!("the uplink {UPLINK} does not exist");
        assert!(
            hints.iter().any(|hint| hint.contains(&missing)),
            "{hints:?}"
        );
    });
    beside_flows(&network, || {
        ip("link set dev away0 down");
        ip(&format!("link set dev away0 name {UPLINK}"));
        ip(&format!("link set dev {UPLINK} up"));
        is_served("it has its name again", &|port| *port == first);
    });
    is_fast(&network);

    let device_mtu = || {
        let shown = node
            .run("ip", &["-j", "link", "show", "podway.vx"])
            .unwrap();
        let shown: serde_json::Value = serde_json::from_str(&shown).unwrap();
        shown[0]["mtu"].as_u64().unwrap()
    };
    for mtu in [1400, 1500] {
        beside_flows(&network, || {
            ip(&format!("link set dev {UPLINK} mtu {mtu}"));
            is_served("its MTU is followed", &|port| port.mtu == mtu);
        });
        is_fast(&network);
        let inside = u32::from(mtu) - 50;
        assert_eq!(agent.status().unwrap().pod_mtu, Some(inside));
        assert_eq!(device_mtu(), u64::from(inside));
    }

    // The other node hears of a new MAC by gratuitous ARP.
    let notify = format!("net.ipv4.conf.{UPLINK}.arp_notify=1");
    node.sysctl(&[&notify]).unwrap();
    let own = link::mac(node, UPLINK).unwrap();
    for mac in ["02:00:00:00:99:03", &own.to_string()] {
        beside_flows(&network, || {
            ip(&format!("link set dev {UPLINK} address {mac}"));
            is_served("it has another MAC", &|_| true);
        });
        is_fast(&network);
    }

    ip(&addresses);
    are_again(agent, &before);
    network.finish();
}

/// Gives a pod the addresses of another. The old ones go last, and its routes stay.
fn readdress(pod: &Pod, other: &Pod) {
    let lines = [
        format!("addr add {}/32 dev {POD_INTERFACE}", other.ipv4),
        format!("addr add {}/128 dev {POD_INTERFACE} nodad", other.ipv6),
        format!("addr del {}/32 dev {POD_INTERFACE}", pod.ipv4),
        format!("addr del {}/128 dev {POD_INTERFACE}", pod.ipv6),
    ];
    pod.netns.ip(&lines).unwrap();
}

#[test]
#[ignore = "needs root; scripts/test runs it"]
fn two_ports_swap_their_addresses() {
    let mut network = Network::up(two_pods(), &options(Mode::Vxlan));
    let [one, two] = [0, 1].map(|pod| network.pod(0, pod).clone());
    let mut told: Entries =
        serde_json::from_str(&network.agent(0).cli(&["export"]).unwrap()).unwrap();
    let is_pod = |role: &PortRoleSpec| matches!(role, PortRoleSpec::Pod { .. });
    let mut pods = told.ports.iter_mut().filter(|port| is_pod(&port.role));
    let (first, second) = (pods.next().unwrap(), pods.next().unwrap());
    std::mem::swap(&mut first.role, &mut second.role);
    let file = network.node(0).directory.join("swapped.json");
    fs::write(&file, serde_json::to_string(&told).unwrap()).unwrap();
    readdress(&one, &two);
    readdress(&two, &one);
    let said = network
        .agent(0)
        .cli(&["import", &file.to_string_lossy()])
        .unwrap();
    assert!(said.ends_with("0 added, 2 changed, 0 removed\n"), "{said}");
    wait_until("both ports are told", PATIENCE, || {
        match network.agent(0).status().unwrap().dataplane {
            DataplaneLink::Synced { refused, .. } if refused.is_empty() => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .unwrap();
    network.podway.wait_ready().unwrap();
    let before = network.counters();
    let peer = network.pod(1, 0);
    wait_for_answer(&one.netns, peer.ipv4.into(), PATIENCE);
    for (pod, address) in [(&one, two.ipv4), (&two, one.ipv4)] {
        ping_all(&pod.netns, peer.ipv4.into(), 56, 10);
        ping_all(&peer.netns, address.into(), 56, 10);
    }
    // The dataplane has carried them, by the ports that have the addresses now.
    let after = network.counters();
    for pod in [&one, &two] {
        let received = |counters: &Counters| counters.ports[&pod.host_interface].rx_packets;
        assert!(received(&after[0]) >= received(&before[0]) + 20);
    }
    network.finish();
}

/// What the dataplane and control hold: descriptors, and resident memory in bytes.
fn holdings(agent: &Agent) -> [(usize, u64); 2] {
    let pids = [agent.dataplane_pid().unwrap(), agent.control_pid().unwrap()];
    pids.map(|pid| {
        let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
        (descriptors, cpu::resident_bytes(pid).unwrap())
    })
}

/// How many pods come and go one after the other: 1,000 in a full run.
fn pods() -> u16 {
    let pods = std::env::var("PODWAY_TEST_PODS").ok();
    pods.map_or(100, |pods| {
        pods.parse().expect("PODWAY_TEST_PODS is a number")
    })
}

#[test]
#[ignore = "needs root; scripts/test runs it"]
fn pods_come_and_go_and_leave_nothing() {
    let network = Network::up(two_pods(), &options(Mode::Vxlan));
    let (agent, node) = (network.agent(0), &network.node(0).netns);
    let [a, b, c, _] = network.node(0).pod_network().octets();
    let host = |number: u16| 100 + number % 100;
    let name = |number: u16| format!("pod{}", number % 100);
    let make = |numbers: &mut dyn Iterator<Item = u16>| {
        let lines = numbers.flat_map(|number| {
            let name = name(number);
            [
                format!("link add name {name} type veth peer name {name}p"),
                format!("link set dev {name} up"),
                format!("link set dev {name}p up"),
            ]
        });
        node.ip(&lines.collect::<Vec<_>>()).unwrap();
    };
    let add = |number: u16| {
        let address = format!("{a}.{b}.{c}.{}", host(number));
        let mac = format!("0a:58:00:00:00:{:02x}", host(number));
        let port = name(number);
        let args = ["port", "add", &port, "--pod-ip", &address, "--mac", &mac];
        agent.cli(&args).unwrap();
    };
    let is = |number: u16, wanted: bool| {
        let port = name(number);
        wait_until(&format!("{port}: {wanted}"), PATIENCE, || {
            match served(agent, &port).is_some() == wanted {
                true => Ok(()),
                false => Err("not yet".to_owned()),
            }
        })
        .unwrap();
    };
    let first = served(agent, &network.pod(0, 0).host_interface);
    // The first ones make what stays: threads, tables, buffers.
    for number in 0..5 {
        make(&mut std::iter::once(number));
        add(number);
        is(number, true);
        agent.cli(&["port", "del", &name(number)]).unwrap();
        is(number, false);
        node.ip(&[format!("link del dev {}", name(number))])
            .unwrap();
    }
    let before = holdings(agent);
    let entries_before = entries(agent);
    let frames = network.counters()[0].books.frames_made;

    let others = bystanders(&network, 20);
    for number in 0..pods() {
        make(&mut std::iter::once(number));
        add(number);
        is(number, true);
        // Every other one is gone before anybody says so.
        if number % 2 == 0 {
            node.ip(&[format!("link del dev {}", name(number))])
                .unwrap();
            is(number, false);
            agent.cli(&["port", "del", &name(number)]).unwrap();
        } else {
            agent.cli(&["port", "del", &name(number)]).unwrap();
            is(number, false);
            node.ip(&[format!("link del dev {}", name(number))])
                .unwrap();
        }
    }
    all_answered(others);

    let others = bystanders(&network, 10);
    make(&mut (0..100));
    std::thread::scope(|scope| {
        for part in 0..4 {
            scope.spawn(move || (0..25).for_each(|number| add(part * 25 + number)));
        }
    });
    (0..100).for_each(|number| is(number, true));
    std::thread::scope(|scope| {
        for part in 0..4 {
            scope.spawn(move || {
                for number in 0..25 {
                    agent
                        .cli(&["port", "del", &name(part * 25 + number)])
                        .unwrap();
                }
            });
        }
    });
    (0..100).for_each(|number| is(number, false));
    let gone = (0..100).map(|number| format!("link del dev {}", name(number)));
    node.ip(&gone.collect::<Vec<_>>()).unwrap();
    all_answered(others);

    let after = holdings(agent);
    let descriptors = |held: [(usize, u64); 2]| held.map(|(descriptors, _)| descriptors);
    assert_eq!(descriptors(after), descriptors(before));
    for ((_, before), (_, after)) in before.iter().zip(after) {
        // A hundred ports at once have grown tables, which stay.
        assert!(after < before + (8 << 20), "{before} bytes, then {after}");
    }
    assert_eq!(network.counters()[0].books.frames_made, frames);
    are_again(agent, &entries_before);
    let now = served(agent, &network.pod(0, 0).host_interface);
    assert_eq!(first, now);
    let ports: BTreeSet<_> = network.counters()[0].ports.keys().cloned().collect();
    let own = network
        .node(0)
        .pods
        .iter()
        .map(|pod| pod.host_interface.clone());
    let own: BTreeSet<_> = own.chain([UPLINK.to_owned()]).collect();
    assert_eq!(ports, own);
    network.finish();
}
