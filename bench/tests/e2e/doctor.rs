//! `podway doctor` on nodes that are well, and on nodes with one thing wrong after the other; and what
//! `podway bundle` makes of them.

use std::collections::BTreeSet;
use std::process::Command;
use std::time::Duration;

use podway_bench::netns::{run, wait_until};
use podway_bench::podway::{Agent, Options};
use podway_bench::topology::{ClusterSpec, UPLINK};
use podway_proto::types::Mode;
use serde::Deserialize;

use crate::support::{Network, attach_foreign_program, options, spec};

/// Probes are a second apart, and three in a row must be lost; the machine may be busy.
const PATIENCE: Duration = Duration::from_secs(20);

/// In the environment of both daemons, and to be nowhere else.
const SECRET: &str = "hunter2-d41d8cd98f00b204";

#[derive(Debug, Clone, PartialEq, Deserialize)]
struct Finding {
    name: String,
    subject: String,
    verdict: String,
    message: String,
    remedy: String,
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

fn bad(findings: &[Finding]) -> Vec<&Finding> {
    let bad = findings.iter().filter(|found| found.verdict != "ok");
    bad.collect()
}

/// Waits until doctor says this of the subject.
fn wait_for(agent: &Agent, name: &str, subject: &str, verdict: &str) {
    let what = format!("doctor finds {name} of {subject}: {verdict}");
    wait_until(&what, PATIENCE, || {
        let findings = examine(agent);
        let found = findings.iter().any(|found| {
            (
                found.name.as_str(),
                found.subject.as_str(),
                found.verdict.as_str(),
            ) == (name, subject, verdict)
        });
        match found {
            true => Ok(()),
            false => Err(format!("{:#?}", bad(&findings))),
        }
    })
    .unwrap();
}

/// Waits until doctor finds no fault.
fn wait_until_well(agent: &Agent) {
    wait_until("doctor finds no fault", PATIENCE, || {
        let findings = examine(agent);
        match findings.iter().any(|found| found.verdict == "fault") {
            true => Err(format!("{:#?}", bad(&findings))),
            false => Ok(()),
        }
    })
    .unwrap();
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
    let (node, third) = (network.node(0).clone(), network.node(2).clone());
    let pod = network.pod(0, 0).host_interface.clone();
    for agent in network.podway.agents() {
        wait_until_well(agent);
    }
    let findings = examine(network.agent(0));
    for (name, subject) in [
        ("uplink-mtu", third.name.as_str()),
        ("node", third.name.as_str()),
        ("pod-mtu", pod.as_str()),
        ("interface", UPLINK),
        ("xdp-program", UPLINK),
        ("tcx-program", ""),
        ("gate", ""),
    ] {
        let is_well = |found: &&Finding| found.name == name && found.subject == subject;
        let found = findings.iter().find(is_well);
        let verdict = found.map(|found| found.verdict.as_str());
        assert_eq!(verdict, Some("ok"), "{name} {subject}: {findings:#?}");
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
    let ip = |line: &str| node.netns.ip(&[line.to_owned()]).unwrap();
    let named = |name: &str, subject: &str, verdict: &str| wait_for(agent, name, subject, verdict);

    node.netns.sysctl(&["net.ipv4.ip_forward=0"]).unwrap();
    ip("link add foreign type vxlan id 1 dstport 8472");
    attach_foreign_program(&node, &pod);
    ip(&format!("link set dev {UPLINK} mtu 9000"));
    named("ip-forward", "IPv4", "fault");
    named("vxlan-device", "foreign", "warning");
    named("xdp-program", &pod, "warning");
    named("uplink-mtu", &third.name, "fault");
    node.netns.sysctl(&["net.ipv4.ip_forward=1"]).unwrap();
    ip("link del foreign");
    ip(&format!("link set dev {pod} xdpgeneric off"));
    ip(&format!("link set dev {UPLINK} mtu 1500"));
    wait_until_well(agent);

    attach_foreign_program(&node, UPLINK);
    named("xdp-generic", UPLINK, "fault");
    ip(&format!("link set dev {UPLINK} xdpgeneric off"));

    third
        .netns
        .ip(&[format!("link set dev {UPLINK} down")])
        .unwrap();
    named("node", &third.name, "fault");
    named("interface", UPLINK, "ok");
    wait_for(network.agent(2), "interface", UPLINK, "fault");
    third
        .netns
        .ip(&[format!("link set dev {UPLINK} up")])
        .unwrap();
    for agent in network.podway.agents() {
        wait_until_well(agent);
    }

    // Without daemons, what the machine itself shows is still checked.
    network.podway.agent_mut(0).stop_control().unwrap();
    wait_for(network.agent(0), "control", "", "warning");
    wait_for(network.agent(0), "interface", UPLINK, "ok");
    wait_until_well(network.agent(0));
    let (files, missing) = bundle(network.agent(0));
    assert!(files.contains("doctor.json") && missing.contains("status.json"));
    network.podway.agent_mut(0).start_control().unwrap();
    network.podway.wait_ready().unwrap();
    network.finish();
}
