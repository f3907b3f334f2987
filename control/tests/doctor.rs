//! `podway doctor` on real ways and in real pods.

mod common;

use std::fmt::Write as _;
use std::fs::File;
use std::net::IpAddr;
use std::process::Command;
use std::time::Duration;

use common::{Cluster, run, within};
use podway_proto::client::Client;
use podway_proto::control::{NodeSpec, PortRoleSpec, PortSpec, Request, Response};
use podway_proto::types::Mode;
use serde::Deserialize;

const CONFIG: &str = "uplink = 'eth0'\n";
/// Each look takes a second or more, and the machine may be busy.
const PATIENCE: Duration = Duration::from_secs(30);

#[derive(Debug, Clone, Deserialize)]
struct Finding {
    name: String,
    subject: String,
    verdict: String,
    message: String,
}

#[derive(Debug, Deserialize)]
struct Document {
    findings: Vec<Finding>,
}

/// What a check finds on node a.
fn found(cluster: &Cluster, check: &str) -> Vec<Finding> {
    let output = cluster.try_podway("a", "--json doctor");
    let document: Document = serde_json::from_slice(&output.stdout).unwrap();
    let findings = document.findings.into_iter();
    findings.filter(|found| found.name == check).collect()
}

/// A finding: subject, verdict, message.
type Told = (String, String, String);

/// Waits until this is what the check of large packets finds. Control learns of ways one by one, and on
/// a busy machine an answer may be late.
fn wait_for_ways(cluster: &Cluster, expected: &[Told]) {
    within(PATIENCE, "the ways are found as they are", || {
        let found = found(cluster, "uplink-mtu").into_iter();
        let found: Vec<Told> = found
            .map(|way| (way.subject, way.verdict, way.message))
            .collect();
        let is_so = found == expected;
        if !is_so {
            eprintln!("{found:#?}");
        }
        is_so
    });
}

/// Gives the link between the nodes IPv6 addresses, fd77::1 and fd77::2.
fn give_ipv6(cluster: &Cluster) {
    for (node, number) in [("a", 1), ("b", 2)] {
        cluster.ip(node, &format!("addr add fd77::{number}/64 dev eth0 nodad"));
    }
}

fn set_node(client: &mut Client, name: &str, underlay: &str, underlay6: Option<&str>) {
    let node = NodeSpec {
        name: name.to_owned(),
        underlay: underlay.parse().unwrap(),
        underlay6: underlay6.map(|address| address.parse().unwrap()),
        pod_cidrs: Vec::new(),
        vtep_mac: None,
        mode: Some(Mode::Native),
    };
    let answer = client.call(&Request::NodeSet(node)).unwrap();
    assert!(matches!(answer, Response::Done), "{answer:?}");
}

#[test]
#[ignore = "needs root: network namespaces"]
fn more_nodes_than_are_asked_at_once_are_all_asked() {
    let cluster = Cluster::new();
    give_ipv6(&cluster);
    // All of these are node b's own addresses.
    cluster.ip("b", "route add local 10.9.0.0/24 dev lo");
    cluster.ip("b", "-6 route add local fd09::/64 dev lo");
    cluster.ip("a", "route add 10.9.0.0/24 via 192.168.77.2");
    cluster.ip("a", "-6 route add fd09::/64 via fd77::2");
    let _daemon = cluster.start("a", CONFIG);
    let addresses: Vec<String> = (1..=40)
        .flat_map(|n| [format!("10.9.0.{n}"), format!("fd09::{n}")])
        .collect();
    let mut client = cluster.client("a");
    set_node(&mut client, "a", "192.168.77.1", None);
    for (number, address) in addresses.iter().enumerate() {
        set_node(&mut client, &format!("node-{number:03}"), address, None);
    }
    let expected = addresses.iter().enumerate().map(|(number, address)| {
        let message = format!("packets of 1500 bytes arrive at {address}");
        (format!("node-{number:03}"), "ok".to_owned(), message)
    });
    wait_for_ways(&cluster, &expected.collect::<Vec<_>>());
}

/// Node "far" is behind b, in pod b's network namespace.
#[test]
#[ignore = "needs root: network namespaces"]
fn what_a_part_of_the_way_carries_is_found_over_ipv4_and_ipv6() {
    const FAR: [&str; 2] = ["10.8.0.2", "fd08::2"];
    let cluster = Cluster::new();
    give_ipv6(&cluster);
    for address in FAR {
        cluster.ip("b", &format!("route add {address} dev veth0"));
    }
    cluster.ip("pod-b", "addr add 10.8.0.2 dev eth0");
    cluster.ip("pod-b", "addr add fd08::2 dev eth0 nodad");
    cluster.ip("a", "route add 10.8.0.2 via 192.168.77.2");
    cluster.ip("a", "-6 route add fd08::2 via fd77::2");
    let _daemon = cluster.start("a", CONFIG);
    let mut client = cluster.client("a");
    set_node(&mut client, "a", "192.168.77.1", Some("fd77::1"));
    set_node(&mut client, "b", "192.168.77.2", Some("fd77::2"));
    set_node(&mut client, "far", FAR[0], Some(FAR[1]));
    let expected = |verdict: &str, message: &dyn Fn(&str) -> String| {
        let well = |address| {
            let message = format!("packets of 1500 bytes arrive at {address}");
            ("b".to_owned(), "ok".to_owned(), message)
        };
        let far = FAR.map(|address| ("far".to_owned(), verdict.to_owned(), message(address)));
        [&["192.168.77.2", "fd77::2"].map(well)[..], &far].concat()
    };

    // The pod's end of the veth takes 1450 bytes, and the veth drops what is larger.
    let lost = expected("fault", &|address| {
        format!(
            "packets of 1500 bytes are lost on the way to {address} and nobody says so; small \
             ones arrive"
        )
    });
    wait_for_ways(&cluster, &lost);

    cluster.ip("pod-b", "link set eth0 mtu 1500");
    let fits = expected("ok", &|address| {
        format!("packets of 1500 bytes arrive at {address}")
    });
    wait_for_ways(&cluster, &fits);

    cluster.ip("b", "link set veth0 mtu 1400");
    let narrow = expected("warning", &|address| {
        format!(
            "the way to {address} carries 1400 bytes and the uplink 1500: packets are cut smaller"
        )
    });
    wait_for_ways(&cluster, &narrow);
    // By now the kernel of a has learned of it.
    for address in FAR {
        let way = cluster.ip("a", &format!("route get {address}"));
        assert!(way.contains(" mtu 1400 "), "{way}");
    }
    wait_for_ways(&cluster, &narrow);
}

#[test]
#[ignore = "needs root: network namespaces"]
fn every_pod_is_looked_at_or_named() {
    const PODS: u16 = 300;
    let cluster = Cluster::new();
    let (pods, forgotten) = (cluster.namespace("pod-a"), cluster.namespace("pod-b"));
    let mut links = format!("link add lost type veth peer name lost netns {forgotten}\n");
    for number in 0..PODS {
        let name = format!("p{number:03}");
        writeln!(
            links,
            "link add {name} type veth peer name {name} netns {pods}"
        )
        .unwrap();
    }
    let batch = cluster.directory.path().join("links");
    std::fs::write(&batch, links).unwrap();
    cluster.ip("a", &format!("-batch {}", batch.display()));
    // It stays as long as somebody has it open, but nothing leads to it.
    let _open = File::open(format!("/run/netns/{forgotten}")).unwrap();
    run(Command::new("ip").args(["netns", "del", &forgotten]));

    let _daemon = cluster.start("a", CONFIG);
    let mut client = cluster.client("a");
    let mut add = |interface: &str, address: IpAddr| {
        let role = PortRoleSpec::Pod {
            addresses: vec![address],
            mac: None,
            any_source: false,
        };
        let interface = interface.to_owned();
        let port = PortSpec { interface, role };
        let answer = client.call(&Request::PortAdd(port)).unwrap();
        assert!(matches!(answer, Response::Done), "{answer:?}");
    };
    add("lost", [10, 0, 9, 1].into());
    for number in 0..PODS {
        let [high, low] = number.to_be_bytes();
        add(&format!("p{number:03}"), [10, 1, high, low].into());
    }
    let findings = found(&cluster, "pod-offloads");
    let (well, bad): (Vec<_>, Vec<_>) = findings.into_iter().partition(|f| f.verdict == "ok");
    let well: Vec<String> = well.into_iter().map(|found| found.subject).collect();
    let expected = (0..PODS).map(|number| format!("p{number:03}"));
    assert_eq!(well, expected.collect::<Vec<_>>());
    let [lost] = &bad[..] else {
        panic!("{bad:?}");
    };
    let said = "the pod's interface is not looked at, nor is its MTU: no name and no process that \
                can be seen leads to its network namespace";
    assert_eq!(
        (&*lost.subject, &*lost.verdict, &*lost.message),
        ("lost", "warning", said)
    );
}
