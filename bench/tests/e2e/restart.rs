//! Ends and restarts of the daemons cost speed for a moment, not connectivity.

use std::fs;
use std::time::Duration;

use podway_bench::link;
use podway_bench::netns::wait_until;
use podway_bench::ping::Ping;
use podway_bench::podway::no_program;
use podway_bench::takeover::StuckThread;
use podway_proto::control::DataplaneLink;
use podway_proto::types::Mode;
use rustix::process::Signal;

use crate::support::{Delta, Network, af_xdp, options, ping_all, spec, wait_for_answer};

/// The heartbeat is a second old at most when packets go to the kernel again.
const HANG_LIMIT: Duration = Duration::from_secs(2);

#[test]
#[ignore = "needs root; scripts/test runs it"]
fn the_kernel_carries_on_after_kill_by_vxlan() {
    survives_a_kill(Mode::Vxlan);
}

#[test]
#[ignore = "needs root; scripts/test runs it"]
fn the_kernel_carries_on_after_kill_natively() {
    survives_a_kill(Mode::Native);
}

fn survives_a_kill(mode: Mode) {
    let mut network = Network::up(spec(), &options(mode));
    let (from, to) = (network.pod(0, 0).clone(), network.pod(1, 0).clone());
    ping_all(&from.netns, to.ipv4.into(), 56, 10);
    network.counters();

    network.podway.agent_mut(0).kill_dataplane().unwrap();
    no_program(network.node(0)).unwrap();
    ping_all(&from.netns, to.ipv4.into(), 56, 50);
    ping_all(&to.netns, from.ipv4.into(), 8000, 10);
    ping_all(&from.netns, network.pod(0, 1).ipv4.into(), 56, 10);

    network.podway.agent_mut(0).start_dataplane().unwrap();
    takes_up_again(&mut network);
    network.finish();
}

#[test]
#[ignore = "needs root; scripts/test runs it"]
fn an_immediate_restart_takes_up_where_control_says() {
    let mut network = Network::up(spec(), &options(Mode::Vxlan));
    // The sockets of the killed process are still being closed when the next one binds.
    for _ in 0..3 {
        network.podway.agent_mut(0).kill_dataplane().unwrap();
        network.podway.agent_mut(0).start_dataplane().unwrap();
        takes_up_again(&mut network);
    }
    network.finish();
}

#[test]
#[ignore = "needs root; scripts/test runs it"]
fn an_orderly_stop_loses_nothing() {
    let mut network = Network::up(spec(), &options(Mode::Vxlan));
    let (from, to) = (network.pod(0, 0).clone(), network.pod(1, 0).clone());
    let ping = Ping {
        count: 300,
        interval: Duration::from_millis(10),
        ..Ping::default()
    };
    let running = ping.start(&from.netns, to.ipv4.into());
    network.podway.agent_mut(0).stop_dataplane().unwrap();
    no_program(network.node(0)).unwrap();
    network.podway.agent_mut(0).start_dataplane().unwrap();
    network.podway.wait_ready().unwrap();
    let replies = running.finish().unwrap();
    // The gate closes first, and the kernel forwards the same packets in the same format.
    assert_eq!(
        (replies.sent, replies.received, replies.duplicates),
        (300, 300, 0)
    );
    network.finish();
}

#[test]
#[ignore = "needs root; scripts/test runs it"]
fn the_kernel_carries_on_when_the_dataplane_hangs() {
    let mut network = Network::up(spec(), &options(Mode::Vxlan));
    let (from, to) = (network.pod(0, 0).clone(), network.pod(1, 0).clone());
    ping_all(&from.netns, to.ipv4.into(), 56, 10);

    network.agent(0).signal_dataplane(Signal::STOP).unwrap();
    wait_for_answer(&from.netns, to.ipv4.into(), HANG_LIMIT);
    ping_all(&from.netns, to.ipv4.into(), 56, 20);
    ping_all(&to.netns, from.ipv4.into(), 56, 20);
    assert!(
        !link::programs(&network.node(0).netns).unwrap().is_empty(),
        "the programs stay and pass"
    );

    network.agent(0).signal_dataplane(Signal::CONT).unwrap();
    takes_up_again(&mut network);
    network.finish();
}

#[test]
#[ignore = "needs root; scripts/test runs it"]
fn restarts_of_control_lose_no_packet() {
    let mut network = Network::up(spec(), &options(Mode::Vxlan));
    let (from, to) = (network.pod(0, 0).clone(), network.pod(1, 0).clone());
    let before = network.counters();
    let ping = Ping {
        count: 500,
        interval: Duration::from_millis(10),
        ..Ping::default()
    };
    let running = ping.start(&from.netns, to.ipv4.into());
    for agent in 0..2 {
        network.podway.agent_mut(agent).stop_control().unwrap();
        network.podway.agent_mut(agent).start_control().unwrap();
        network.podway.wait_ready().unwrap();
    }
    let replies = running.finish().unwrap();
    assert_eq!(
        (replies.sent, replies.received, replies.duplicates),
        (500, 500, 0)
    );
    // Not one of them went around the dataplane either.
    let after = network.counters();
    for node in 0..2 {
        let delta = Delta {
            before: &before[node],
            after: &after[node],
        };
        assert_eq!(delta.packets("lx0"), (500, 500), "node {node}");
    }
    network.finish();
}

/// A program takes its time to end with a stuck worker: two seconds for the first command, and some.
const STOP_LIMIT: Duration = Duration::from_secs(8);

#[test]
#[ignore = "needs root; scripts/test runs it"]
fn a_stuck_worker_costs_neither_the_connection_nor_the_stop() {
    let mut network = Network::up(spec(), &af_xdp(Mode::Vxlan));
    let (from, to) = (network.pod(0, 0).clone(), network.pod(1, 0).clone());
    let pid = network.agent(0).dataplane_pid().unwrap();
    let stuck = || StuckThread::stop(pid, "worker-0").unwrap();

    // Both need the worker, or one of them does where there are two.
    let held = stuck();
    for pod in &network.node(0).pods {
        let agent = network.agent(0);
        agent.cli(&["port", "del", &pod.host_interface]).unwrap();
        agent.add_pod_port(pod).unwrap();
    }
    let refused = wait_until("it is told", STOP_LIMIT, || {
        match network.agent(0).status().unwrap().dataplane {
            DataplaneLink::Disconnected { reason } => panic!("{reason}"),
            DataplaneLink::Synced { refused, .. } if !refused.is_empty() => Ok(refused),
            other => Err(format!("{other:?}")),
        }
    })
    .unwrap();
    let words = "worker 0 is stuck: it has left a command unanswered for 2s";
    assert!(
        refused.iter().all(|told| told.contains(words)),
        "{refused:?}"
    );
    wait_for_answer(&from.netns, to.ipv4.into(), HANG_LIMIT);
    ping_all(&from.netns, to.ipv4.into(), 56, 10);
    // What was refused is told again by itself.
    drop(held);
    takes_up_again(&mut network);

    let held = stuck();
    network.agent(0).signal_dataplane(Signal::TERM).unwrap();
    let stat = format!("/proc/{pid}/stat");
    wait_until("it ends", STOP_LIMIT, || {
        let stat = fs::read_to_string(&stat).unwrap();
        // Its name is in parentheses, and then its state.
        match stat.rsplit_once(") ").unwrap().1.starts_with('Z') {
            true => Ok(()),
            false => Err(stat),
        }
    })
    .unwrap();
    drop(held);
    network.podway.agent_mut(0).stop_dataplane().unwrap();
    ping_all(&from.netns, to.ipv4.into(), 56, 10);
    network.podway.agent_mut(0).start_dataplane().unwrap();
    takes_up_again(&mut network);
    network.finish();
}

/// Waits until node 1 has everything again and insists that packets go through it.
fn takes_up_again(network: &mut Network) {
    let (from, to) = (network.pod(0, 0).clone(), network.pod(1, 0).clone());
    network.podway.wait_ready().unwrap();
    let before = network.counters();
    ping_all(&from.netns, to.ipv4.into(), 56, 20);
    let after = network.counters();
    let delta = Delta {
        before: &before[0],
        after: &after[0],
    };
    assert_eq!(delta.packets(&from.host_interface), (20, 20));
}
