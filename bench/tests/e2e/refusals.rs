//! What cannot work ends with the name of the thing and the remedy.

use std::process::Command;
use std::time::{Duration, Instant};

use podway_bench::Error;
use podway_bench::netns::{Netns, run, wait_until};
use podway_bench::podway::{Agent, Options, program};
use podway_bench::topology::{Cluster, Node, UPLINK};
use podway_proto::client::Lines;
use podway_proto::config::IngressChoice;
use podway_proto::control::{DataplaneLink, PortEntry, Response};
use podway_proto::dataplane::{self, Change};
use podway_proto::types::Mode;
use podway_proto::{DATAPLANE_SOCKET, ErrorBody, ErrorCode, VERSION};
use rustix::process::{Gid, Uid};
use rustix::thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid};

use crate::support::{Network, attach_foreign_program, map_id, options, ping_all, spec};

/// A daemon that refuses to start does so at once; binds retry for a second.
const REFUSAL: &str = "10";

#[test]
#[ignore = "needs root; scripts/test runs it"]
fn a_wrong_interface_is_named() {
    let network = Network::up(spec(), &options(Mode::Vxlan));
    let agent = network.agent(0);
    for interface in [UPLINK, "lx0"] {
        assert_eq!(port(agent, interface).waiting, None);
    }
    for role in [&["--uplink"][..], &["--pod-ip", "10.0.0.99"]] {
        let mut command = agent.cli_command().unwrap();
        command.args(["port", "add", "nope0"]).args(role);
        let output = command.output().unwrap();
        let words = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(3), "{words}");
        assert!(words.contains("nope0"), "{words}");
    }
    // Nothing has changed by it.
    let shown = agent.cli(&["port", "show"]).unwrap();
    assert!(!shown.contains("nope0"), "{shown}");
    ping_all(
        &network.pod(0, 0).netns,
        network.pod(1, 0).ipv4.into(),
        56,
        10,
    );
    network.finish();
}

#[test]
#[ignore = "needs root; scripts/test runs it"]
fn a_taken_interface_is_named_with_the_remedy() {
    let cluster = Cluster::new(spec()).unwrap();
    let node = &cluster.nodes()[0];
    let pod = &node.pods[0];
    attach_foreign_program(node, &pod.host_interface);

    // AF_XDP needs the one place that an interface has for XDP; tcx has room for many.
    let options = Options {
        ingress: IngressChoice::AfXdp,
        ..Options::default()
    };
    let mut agent = started(node, &options);
    let text = match agent.cli(&["port", "add", &pod.host_interface, "--pod-ip", "10.0.0.10"]) {
        Err(refusal) => refusal.to_string(),
        // Control has taken note of it and tells what the dataplane said.
        Ok(_) => wait_until("the refusal is told", Duration::from_secs(5), || {
            let status = agent.status().map_err(|error| error.to_string())?;
            match status.dataplane {
                DataplaneLink::Synced { refused, .. } if !refused.is_empty() => {
                    Ok(refused.join(" "))
                }
                other => Err(format!("{other:?}")),
            }
        })
        .unwrap(),
    };
    assert!(text.contains(&pod.host_interface), "{text}");
    assert!(text.contains("xdp off"), "no remedy: {text}");
    agent.stop().unwrap();
    assert_eq!(cluster.remove(), Vec::<String>::new());
}

#[test]
#[ignore = "needs root; scripts/test runs it"]
fn a_missing_capability_is_named() {
    let cluster = Cluster::new(spec()).unwrap();
    let node = &cluster.nodes()[0];
    let directory = |name: &str| node.directory.join(name).to_string_lossy().into_owned();
    let (run_dir, state_dir, config) = (directory("run"), directory("state"), directory("c.toml"));
    std::fs::write(&config, "").unwrap();
    let common = ["--run-dir", &run_dir, "--config", &config];
    let dataplane = refusal(
        &node.netns,
        &["--bounding-set", "-all"],
        "podway-dataplane",
        &common,
    );
    assert!(dataplane.contains("CAP_"), "{dataplane}");
    let control = refusal(
        &node.netns,
        &["--bounding-set", "-all"],
        "podway-control",
        &[&common[..], &["--state-dir", &state_dir]].concat(),
    );
    assert!(control.contains("CAP_NET_ADMIN"), "{control}");
}

#[test]
#[ignore = "needs root; scripts/test runs it"]
fn a_wrong_configuration_is_named_by_line_or_value() {
    let cluster = Cluster::new(spec()).unwrap();
    let node = &cluster.nodes()[0];
    let run_dir = node.directory.join("run");
    let file = node.directory.join("wrong.toml");
    for (text, expected) in [
        ("tunnel = \"vxlan\"\nvni = = 1\n", "2"),
        ("tunnel = \"gre\"\n", "gre"),
        ("vni = 16777216\n", "16777216"),
        ("colour = \"blue\"\n", "colour"),
        ("[dataplane]\nworkers = 0\n", "workers"),
        ("[dataplane]\nring-size = 1000\n", "ring-size"),
    ] {
        std::fs::write(&file, text).unwrap();
        let words = refusal(
            &node.netns,
            &[],
            "podway-dataplane",
            &[
                "--run-dir",
                &run_dir.to_string_lossy(),
                "--config",
                &file.to_string_lossy(),
            ],
        );
        assert!(words.contains(expected), "{text:?}: {words}");
    }
    let missing = refusal(
        &node.netns,
        &[],
        "podway-dataplane",
        &[
            "--run-dir",
            &run_dir.to_string_lossy(),
            "--config",
            "/nonexistent/podway.toml",
        ],
    );
    assert!(missing.contains("/nonexistent/podway.toml"), "{missing}");
}

#[test]
#[ignore = "needs root; scripts/test runs it"]
fn a_second_daemon_on_the_same_directory_is_refused() {
    let network = Network::up(spec(), &options(Mode::Vxlan));
    let node = network.node(0);
    let directory = |name: &str| node.directory.join(name).to_string_lossy().into_owned();
    let (run_dir, config) = (directory("run"), directory("podway.toml"));
    let common = ["--run-dir", &run_dir, "--config", &config];
    for (name, more) in [
        ("podway-dataplane", vec![]),
        (
            "podway-control",
            vec!["--state-dir".to_owned(), directory("state")],
        ),
    ] {
        let more: Vec<&str> = more.iter().map(String::as_str).collect();
        let words = refusal(&node.netns, &[], name, &[&common[..], &more].concat());
        // The dataplane finds its memory's anchor taken before it comes to the socket.
        let named = words.contains(&run_dir) || words.contains("another dataplane");
        assert!(named, "{name}: {words}");
    }
    ping_all(
        &network.pod(0, 0).netns,
        network.pod(1, 0).ipv4.into(),
        56,
        10,
    );
    network.finish();
}

#[test]
#[ignore = "needs root; scripts/test runs it"]
fn a_fast_path_that_has_closed_for_good_is_told_with_the_remedy() {
    let mut network = Network::up(spec(), &options(Mode::Vxlan));
    // A map that takes nothing any more, as a full one.
    let map = map_id(network.agent(0), "prefixes4");
    run(Command::new("bpftool").args(["map", "freeze", "id", &map])).unwrap();
    let agent = network.agent(0);
    let peer = network.node(1).name.as_str();
    let refused = wait_until("it is told", Duration::from_secs(5), || {
        for args in [
            &["route", "add", "10.9.0.0/16", "via", peer][..],
            &["route", "del", "10.9.0.0/16"],
        ] {
            agent.cli(args).map_err(|error| error.to_string())?;
        }
        match agent.status().map_err(|error| error.to_string())?.dataplane {
            DataplaneLink::Synced {
                refused,
                status: Some(status),
            } if !status.gate_open && !refused.is_empty() => Ok(refused),
            other => Err(format!("{other:?}")),
        }
    })
    .unwrap();
    assert_eq!(refused.len(), 1, "{refused:?}");
    let told = &refused[0];
    assert!(told.starts_with("the fast path: "), "{told}");
    let remedy = "the kernel has all packets: restart podway-dataplane";
    assert!(told.ends_with(remedy), "{told}");
    let (from, to) = (network.pod(0, 0).clone(), network.pod(1, 0).ipv4);
    ping_all(&from.netns, to.into(), 56, 10);

    network.podway.agent_mut(0).stop_dataplane().unwrap();
    network.podway.agent_mut(0).start_dataplane().unwrap();
    network.podway.wait_ready().unwrap();
    ping_all(&from.netns, to.into(), 56, 10);
    network.finish();
}

#[test]
#[ignore = "needs root; scripts/test runs it"]
fn who_is_not_root_may_only_ask_the_dataplane() {
    const OTHER: u32 = 4242;
    let network = Network::up(spec(), &options(Mode::Vxlan));
    let run_dir = network.node(0).directory.join("run");
    let socket = run_dir.join(DATAPLANE_SOCKET);
    for path in [&run_dir, &socket] {
        std::os::unix::fs::chown(path, None, Some(OTHER)).unwrap();
    }
    let other = std::thread::spawn(move || {
        // Of this thread alone: the system call knows nothing of the others.
        let (user, group) = (Uid::from_raw(OTHER), Gid::from_raw(OTHER));
        set_thread_groups(&[]).unwrap();
        set_thread_res_gid(group, group, group).unwrap();
        set_thread_res_uid(user, user, user).unwrap();
        let limit = Duration::from_secs(5);
        let mut lines = Lines::connect(&socket, limit).unwrap();
        let mut ask = |request| -> dataplane::Response {
            lines.exchange(&request, Instant::now() + limit).unwrap()
        };
        let hello = dataplane::Request::Hello { version: VERSION };
        assert!(matches!(ask(hello), dataplane::Response::Hello { .. }));
        let status = ask(dataplane::Request::Status);
        assert!(matches!(status, dataplane::Response::Status(_)));
        let counters = ask(dataplane::Request::Counters);
        assert!(matches!(counters, dataplane::Response::Counters(_)));
        let changes = vec![Change::DelPort {
            interface: UPLINK.to_owned(),
        }];
        for change in [
            dataplane::Request::SyncBegin,
            dataplane::Request::Apply { changes },
            dataplane::Request::SyncEnd,
        ] {
            let words = "user 4242 may only ask; changes are for root: use sudo";
            let refused = ErrorBody::new(ErrorCode::PermissionDenied, words);
            assert_eq!(ask(change), dataplane::Response::Error(refused));
        }
    });
    other.join().unwrap();
    // It has all that it had.
    let ports = network.counters()[0].ports.len();
    assert_eq!(ports, network.agent(0).interfaces().count());
    ping_all(
        &network.pod(0, 0).netns,
        network.pod(1, 0).ipv4.into(),
        56,
        10,
    );
    network.finish();
}

#[test]
#[ignore = "needs root; scripts/test runs it"]
fn exit_codes_tell_kinds_of_failure() {
    let network = Network::up(spec(), &options(Mode::Vxlan));
    let agent = network.agent(0);
    for (args, code) in [
        (&["status"][..], 0),
        (
            &[
                "node",
                "set",
                "n9",
                "--underlay",
                "192.168.100.9",
                "--pod-cidr",
                "10.0.0.0/25",
            ],
            1,
        ),
        (&["route", "add", "10.9.0.0/33", "via", "n2"], 2),
        (&["node", "del", "nobody"], 3),
        (&["route", "add", "10.9.0.0/16", "via", "nobody"], 3),
    ] {
        let output = agent.cli_command().unwrap().args(args).output().unwrap();
        let words = String::from_utf8_lossy(&output.stderr);
        assert_eq!(
            output.status.code(),
            Some(code),
            "podway {}: {words}",
            args.join(" ")
        );
        assert_eq!(
            words.is_empty(),
            code == 0,
            "podway {}: {words}",
            args.join(" ")
        );
    }
    let mut unreachable = Command::new(program("podway").unwrap());
    unreachable.args(["--run-dir", "/nonexistent", "status"]);
    assert_eq!(unreachable.output().unwrap().status.code(), Some(4));
    network.finish();
}

/// Runs a daemon that must refuse to start, and gives its words.
fn refusal(netns: &Netns, privileges: &[&str], name: &str, args: &[&str]) -> String {
    let path = program(name).unwrap();
    let mut command = netns.command("timeout");
    command
        .args([REFUSAL, "setpriv"])
        .args(privileges)
        .arg(path)
        .args(args);
    match run(&mut command) {
        Err(Error::Command { status, stderr, .. }) => {
            assert_ne!(status.code(), Some(124), "{name} goes on: {stderr}");
            assert!(
                status.code().is_some(),
                "{name} ended with {status}: {stderr}"
            );
            assert!(!stderr.contains("panicked"), "{stderr}");
            stderr
        }
        other => panic!("{name} {args:?}: {other:?}"),
    }
}

fn port(agent: &Agent, interface: &str) -> PortEntry {
    let text = agent.cli(&["--json", "port", "show"]).unwrap();
    let Response::Ports { ports } = serde_json::from_str(&text).unwrap() else {
        panic!("{text}");
    };
    let mut entries = ports.into_iter();
    let found = entries.find(|entry| entry.spec.interface == interface);
    found.unwrap_or_else(|| panic!("no {interface} in {text}"))
}

fn started(node: &Node, options: &Options) -> Agent {
    let agent = Agent::start(node, options).unwrap();
    wait_until("podway-control answers", Duration::from_secs(10), || {
        agent.status().map(drop).map_err(|error| error.to_string())
    })
    .unwrap();
    agent
}
