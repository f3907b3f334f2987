//! `podway doctor` on nodes that are well, and on nodes with one thing wrong after the other; and what
//! `podway bundle` makes of them.

use std::collections::BTreeSet;
use std::process::Command;
use std::time::Duration;

use podway_bench::link::set_tx_checksum;
use podway_bench::netns::{run, wait_until};
use podway_bench::podway::{Agent, Options};
use podway_bench::topology::{ClusterSpec, Node, POD_INTERFACE, UPLINK};
use podway_proto::types::Mode;
use serde::Deserialize;

use crate::support::{Network, attach_foreign_program, options, spec};

/// Probes are a second apart, and three in a row must be lost; the machine may be busy.
const PATIENCE: Duration = Duration::from_secs(20);

/// In the environment of both daemons, and to be nowhere else.
const SECRET: &str = "hunter2-d41d8cd98f00b204";

#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Finding {
    name: String,
    subject: String,
    verdict: String,
    pub(crate) message: String,
    pub(crate) remedy: String,
}

#[derive(Debug, Deserialize)]
struct Document {
    verdict: String,
    findings: Vec<Finding>,
}

/// What doctor says on a node; its exit code agrees with it.
fn examine(agent: &Agent) -> Vec<Finding> {
    let mut command = agent.cli_inside().unwrap();
    command.args(["--json", "doctor", "--config", &agent.config_path()]);
    let output = command.output().unwrap();
    let document: Document = serde_json::from_slice(&output.stdout).unwrap();
    let code = i32::from(document.verdict == "fault");
    assert_eq!(output.status.code(), Some(code), "{document:?}");
    document.findings
}

/// What is wrong with what, and how much: check, subject, verdict.
pub(crate) type Bad<'f> = (&'f str, &'f str, &'f str);

/// All that is not as it should be, without what the load of the machine alone may bring.
fn bad(findings: &[Finding]) -> Vec<Bad<'_>> {
    let of = |found: &'_ Finding| {
        let by_load = match found.name.as_str() {
            "cpu-steal" => true,
            // Probes that were lost, or answered too late.
            "node" => found.verdict == "warning",
            _ => false,
        };
        found.verdict != "ok" && !by_load
    };
    let bad = findings.iter().filter(|found| of(found));
    bad.map(|found| {
        (
            found.name.as_str(),
            found.subject.as_str(),
            found.verdict.as_str(),
        )
    })
    .collect()
}

/// What is bad and was not before. Of two that are alike one may be.
fn new<'f>(before: &[Bad<'_>], after: &'f [Finding]) -> Vec<Bad<'f>> {
    let mut before = before.to_vec();
    let mut new = bad(after);
    new.retain(
        |found| match before.iter().position(|known| known == found) {
            Some(position) => {
                before.swap_remove(position);
                false
            }
            None => true,
        },
    );
    new.sort_unstable();
    new
}

/// Waits until exactly these findings are bad that were not before; gives all.
fn wait_for(agent: &Agent, before: &[Finding], expected: &[Bad<'_>]) -> Vec<Finding> {
    wait_for_some(agent, before, expected, &[])
}

/// The same where `perhaps` may come along with them.
fn wait_for_some(
    agent: &Agent,
    before: &[Finding],
    expected: &[Bad<'_>],
    perhaps: &[Bad<'_>],
) -> Vec<Finding> {
    let before = bad(before);
    let mut expected = expected.to_vec();
    expected.sort_unstable();
    let what = format!("doctor finds {expected:?} and nothing else");
    wait_until(&what, PATIENCE, || {
        let findings = examine(agent);
        let mut new = new(&before, &findings);
        new.retain(|found| !perhaps.contains(found));
        match new == expected {
            true => Ok(()),
            false => Err(format!("{new:?}: {findings:#?}")),
        }
        .map(|()| findings)
    })
    .unwrap()
}

/// Waits until doctor says this of the subject, and gives what it says.
pub(crate) fn wait_for_one(agent: &Agent, wanted: Bad<'_>) -> Finding {
    let what = format!("doctor finds {wanted:?}");
    let found = wait_until(&what, PATIENCE, || {
        let mut findings = examine(agent);
        let is_wanted =
            |found: &Finding| (&*found.name, &*found.subject, &*found.verdict) == wanted;
        match findings.iter().position(is_wanted) {
            Some(position) => Ok(findings.swap_remove(position)),
            None => Err(format!("{findings:#?}")),
        }
    });
    found.unwrap()
}

/// Waits until doctor finds a node well, but that probes were lost: those count for a minute.
pub(crate) fn wait_until_reached(agent: &Agent, node: &str) {
    let is_of_before = |found: &Finding| {
        let message = found.message.ends_with(" % of the last probes were lost");
        found.verdict == "warning" && message
    };
    wait_until("doctor finds a node well", PATIENCE, || {
        let mut findings = examine(agent);
        findings.retain(|found| found.name == "node" && found.subject == node);
        let is_reached = matches!(&findings[..], [one] if one.verdict == "ok" || is_of_before(one));
        is_reached
            .then_some(())
            .ok_or_else(|| format!("{findings:#?}"))
    })
    .unwrap();
}

/// Waits until doctor finds no fault; what it finds then.
fn wait_until_well(agent: &Agent) -> Vec<Finding> {
    wait_until("doctor finds no fault", PATIENCE, || {
        let findings = examine(agent);
        match findings.iter().any(|found| found.verdict == "fault") {
            true => Err(format!("{:?}", bad(&findings))),
            false => Ok(findings),
        }
    })
    .unwrap()
}

#[derive(Debug, Deserialize)]
struct Manifest {
    files: Vec<Named>,
    missing: Vec<Named>,
}

#[derive(Debug, Deserialize)]
struct Named {
    name: String,
}

/// Makes a bundle, unpacks it, and gives the names of what is in it and what could not be had.
fn bundle(agent: &Agent) -> (BTreeSet<String>, BTreeSet<String>) {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("bundle.tar.gz");
    let mut command = agent.cli_inside().unwrap();
    command.args(["bundle", "--config", &agent.config_path()]);
    run(command.arg(&file)).unwrap();
    let unpack = &mut Command::new("tar");
    let unpack = unpack.arg("-C").arg(directory.path()).arg("-xzf");
    run(unpack.arg(&file)).unwrap();
    let root = directory.path().join("podway-bundle");
    let manifest = std::fs::read_to_string(root.join("manifest.json")).unwrap();
    let manifest: Manifest = serde_json::from_str(&manifest).unwrap();
    let names = |named: Vec<Named>| named.into_iter().map(|named| named.name).collect();
    let files: BTreeSet<String> = names(manifest.files);
    let listed = run(Command::new("tar").arg("-tzf").arg(&file)).unwrap();
    let listed = listed
        .lines()
        .filter_map(|line| line.strip_prefix("podway-bundle/"));
    let listed: BTreeSet<String> = listed.map(str::to_owned).collect();
    let mut expected = files.clone();
    expected.insert("manifest.json".to_owned());
    assert_eq!(listed, expected);
    for name in &listed {
        let bytes = std::fs::read(root.join(name)).unwrap();
        let has_it = bytes
            .windows(SECRET.len())
            .any(|part| part == SECRET.as_bytes());
        assert!(!has_it, "{name} has the daemons' environment in it");
    }
    (files, names(manifest.missing))
}

#[test]
#[ignore = "needs root; scripts/test runs it"]
fn what_is_wrong_is_named_and_nothing_else() {
    let probing = Options {
        config: "health-interval-seconds = 1\n".to_owned(),
        environment: vec![("PODWAY_TEST_TOKEN".to_owned(), SECRET.to_owned())],
        ..options(Mode::Vxlan)
    };
    let mut network = Network::up(ClusterSpec { nodes: 3, ..spec() }, &probing);
    let nodes = [0, 1, 2].map(|number| network.node(number).clone());
    let [node, second, third] = &nodes;
    let pod = network.pod(0, 0).clone();
    let port = pod.host_interface.as_str();
    let agents = network.podway.agents();
    let before: Vec<Vec<Finding>> = agents.iter().map(wait_until_well).collect();
    for (name, subject) in [
        ("uplink-mtu", third.name.as_str()),
        ("node", &third.name),
        ("pod-mtu", port),
        ("pod-offloads", port),
        ("interface", UPLINK),
        ("xdp-program", UPLINK),
        ("tcx-program", ""),
        ("gate", ""),
    ] {
        let is_well = |found: &&Finding| found.name == name && found.subject == subject;
        let found = before[0].iter().find(is_well);
        let verdict = found.map(|found| found.verdict.as_str());
        assert_eq!(verdict, Some("ok"), "{name} {subject}: {:#?}", before[0]);
    }

    let (files, missing) = bundle(network.agent(0));
    for name in [
        "doctor.json",
        "status.json",
        "perf.json",
        "routes.json",
        "podway.toml",
        "process/podway-dataplane/status",
        "ip/link.json",
        "kernel/sysctl.txt",
        &format!("ethtool/{UPLINK}.txt"),
    ] {
        assert!(
            files.contains(name),
            "{name}: {files:?}, without {missing:?}"
        );
    }

    let agent = network.agent(0);
    let ip = |node: &Node, line: &str| node.netns.ip(&[line.to_owned()]).unwrap();
    let finds = |expected: &[Bad<'_>]| wait_for(agent, &before[0], expected);

    node.netns.sysctl(&["net.ipv4.ip_forward=0"]).unwrap();
    ip(node, "link add foreign type vxlan id 1 dstport 8472");
    attach_foreign_program(node, port);
    ip(node, &format!("link set dev {UPLINK} mtu 9000"));
    set_tx_checksum(&pod.netns, POD_INTERFACE, false).unwrap();
    let found = finds(&[
        ("ip-forward", "IPv4", "fault"),
        ("vxlan-device", "foreign", "warning"),
        ("xdp-program", port, "warning"),
        ("pod-offloads", port, "warning"),
        // The wire carries less than the uplink takes, and nobody says so.
        ("uplink-mtu", &second.name, "fault"),
        ("uplink-mtu", &third.name, "fault"),
    ]);
    let documented = include_str!("../../../docs/troubleshooting.md");
    assert!(documented.contains("\n## A part of the way between the nodes carries less\n"));
    let offloads = found.iter().find(|found| found.name == "pod-offloads");
    // As somebody would who reads it.
    run(Command::new("sh").arg("-c").arg(&offloads.unwrap().remedy)).unwrap();
    node.netns.sysctl(&["net.ipv4.ip_forward=1"]).unwrap();
    ip(node, "link del foreign");
    ip(node, &format!("link set dev {port} xdpgeneric off"));
    ip(node, &format!("link set dev {UPLINK} mtu 1500"));
    finds(&[]);

    attach_foreign_program(node, UPLINK);
    finds(&[
        ("xdp-generic", UPLINK, "fault"),
        ("xdp-program", UPLINK, "warning"),
    ]);
    ip(node, &format!("link set dev {UPLINK} xdpgeneric off"));

    ip(third, &format!("link set dev {UPLINK} down"));
    wait_for_some(
        agent,
        &before[0],
        &[
            ("node", &third.name, "fault"),
            ("uplink-mtu", &third.name, "warning"),
        ],
        // The kernel takes its time to find that nobody answers for the address.
        &[("neighbor", &third.name, "fault")],
    );
    wait_for(
        network.agent(2),
        &before[2],
        &[
            ("interface", UPLINK, "fault"),
            ("neighbor", &node.name, "fault"),
            ("neighbor", &second.name, "fault"),
            ("node", &node.name, "fault"),
            ("node", &second.name, "fault"),
        ],
    );
    ip(third, &format!("link set dev {UPLINK} up"));
    for (agent, before) in network.podway.agents().iter().zip(&before) {
        wait_for(agent, before, &[]);
    }

    // Without daemons, what the machine itself shows is still checked.
    network.podway.agent_mut(0).stop_control().unwrap();
    wait_for(network.agent(0), &before[0], &[("control", "", "warning")]);
    let (files, missing) = bundle(network.agent(0));
    assert!(files.contains("doctor.json") && missing.contains("status.json"));
    network.podway.agent_mut(0).start_control().unwrap();
    network.podway.wait_ready().unwrap();
    network.finish();
}
