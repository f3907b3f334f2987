//! Rules of a node's firewall that keep the kernel from carrying on are named, and the remedy helps.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use podway_bench::netns::{Netns, join, wait_until};
use podway_bench::ping::Ping;
use podway_bench::topology::Pod;
use podway_proto::types::Mode;

use crate::support::{Network, options, ping_all, spec};

/// How long control may take to see rules, on a machine that others load.
const PATIENCE: Duration = Duration::from_secs(5);
const PORT: u16 = 7100;
/// Some of TCP's retransmissions.
const STALLED: Duration = Duration::from_secs(2);
/// Longer than until the next one after these.
const RECOVERED: Duration = Duration::from_secs(15);

/// Gives the node a chain that what is forwarded passes.
fn add_chain(node: &Netns, policy: &str, rules: &str) {
    let text = format!(
        "add table inet fw; \
         add chain inet fw forward {{ type filter hook forward priority 0; policy {policy}; }}; \
         {rules}"
    );
    node.run("nft", &[&text]).unwrap();
}

/// What status says of the chain, and the commands that it gives as an example.
fn hint(network: &Network) -> Option<(String, String)> {
    let hints = network.agent(0).status().unwrap().hints;
    let is_it = |hint: &String| hint.starts_with("the nftables chain inet fw forward drops");
    let hint = hints.into_iter().find(is_it)?;
    let (_, example) = hint.split_once("(for example: ").unwrap();
    let example = example.strip_suffix(')').unwrap().to_owned();
    Some((hint, example))
}

fn wait_for_hint(network: &Network) -> (String, String) {
    let found = || hint(network).ok_or_else(|| "no hint".to_owned());
    wait_until("the chain is named", PATIENCE, found).unwrap()
}

fn wait_for_no_hint(network: &Network) {
    let gone = || hint(network).map_or(Ok(()), |(hint, _)| Err(hint));
    wait_until("the hint is gone", PATIENCE, gone).unwrap();
}

#[test]
#[ignore = "needs root; scripts/test runs it"]
fn a_forward_policy_of_drop_is_named_by_vxlan() {
    names_a_policy_of_drop(Mode::Vxlan);
}

#[test]
#[ignore = "needs root; scripts/test runs it"]
fn a_forward_policy_of_drop_is_named_natively() {
    names_a_policy_of_drop(Mode::Native);
}

fn names_a_policy_of_drop(mode: Mode) {
    let mut network = Network::up(spec(), &options(mode));
    let from = network.pod(0, 0).clone();
    let others = [network.pod(1, 0), network.pod(0, 1)].map(|pod| pod.ipv4.into());
    let node = network.node(0).netns.clone();
    add_chain(&node, "drop", "");
    let (_, command) = wait_for_hint(&network);
    for other in others {
        // The fast path does not go by it.
        ping_all(&from.netns, other, 56, 10);
    }
    network.counters();
    network.podway.agent_mut(0).stop_dataplane().unwrap();
    for other in others {
        let replies = Ping::default().run(&from.netns, other).unwrap();
        assert_eq!(replies.received, 0, "{other}");
    }
    node.run("sh", &["-c", &command]).unwrap();
    for other in others {
        ping_all(&from.netns, other, 56, 10);
    }
    wait_for_no_hint(&network);
    network.podway.agent_mut(0).start_dataplane().unwrap();
    network.podway.wait_ready().unwrap();
    network.finish();
}

/// A TCP connection between pods.
struct Connection {
    client: TcpStream,
    server: TcpStream,
}

impl Connection {
    fn open(from: &Pod, to: &Pod) -> Self {
        let io = |error: std::io::Error| podway_bench::Error::Unexpected(error.to_string());
        let address = SocketAddr::new(to.ipv4.into(), PORT);
        let listening = to
            .netns
            .thread(move || TcpListener::bind(address).map_err(io));
        let listener = join(listening).unwrap();
        let connecting = from
            .netns
            .thread(move || TcpStream::connect_timeout(&address, PATIENCE).map_err(io));
        let client = join(connecting).unwrap();
        let (server, _) = listener.accept().unwrap();
        Self { client, server }
    }

    fn send(&mut self, bytes: usize) {
        self.client.write_all(&vec![0x5a; bytes]).unwrap();
    }

    /// Whether so many bytes that were sent arrive in time.
    fn arrive(&mut self, bytes: usize, within: Duration) -> bool {
        self.server.set_read_timeout(Some(within)).unwrap();
        self.server.read_exact(&mut vec![0; bytes]).is_ok()
    }

    /// Carries more than conntrack takes for a window.
    fn carry_much(&mut self) {
        const MUCH: usize = 32 << 20;
        let mut client = self.client.try_clone().unwrap();
        let sending = std::thread::spawn(move || client.write_all(&vec![0x5a; MUCH]));
        let begin = Instant::now();
        assert!(self.arrive(MUCH, RECOVERED), "{:?}", begin.elapsed());
        sending.join().unwrap().unwrap();
    }
}

#[test]
#[ignore = "needs root; scripts/test runs it"]
fn connections_that_conntrack_does_not_know_are_named_where_it_is_strict() {
    let mut network = Network::up(spec(), &options(Mode::Vxlan));
    let node = network.node(0).netns.clone();
    node.sysctl(&["net.netfilter.nf_conntrack_tcp_loose=0"])
        .unwrap();
    add_chain(
        &node,
        "accept",
        "add rule inet fw forward ct state invalid drop",
    );
    let (hint, example) = wait_for_hint(&network);
    let which = "TCP connections that it has not seen begin when the dataplane goes away";
    assert!(hint.contains(which), "{hint}");
    let mut connection = Connection::open(network.pod(0, 0), network.pod(1, 0));
    connection.carry_much();
    network.podway.agent_mut(0).stop_dataplane().unwrap();
    connection.send(1000);
    assert!(!connection.arrive(1000, STALLED));
    let (settings, _) = example.split_once("; or: ").unwrap();
    node.run("sh", &["-c", settings]).unwrap();
    assert!(connection.arrive(1000, RECOVERED));
    wait_for_no_hint(&network);
    network.podway.agent_mut(0).start_dataplane().unwrap();
    network.podway.wait_ready().unwrap();
    network.finish();
}

#[test]
#[ignore = "needs root; scripts/test runs it"]
fn connections_that_the_kernel_had_before_are_named() {
    let mut network = Network::up(spec(), &options(Mode::Vxlan));
    let node = network.node(0).netns.clone();
    add_chain(
        &node,
        "accept",
        "add rule inet fw forward ct state invalid drop",
    );
    let (hint, example) = wait_for_hint(&network);
    let which = "TCP connections that the kernel carried before the dataplane did when the";
    assert!(hint.contains(which), "{hint}");
    network.podway.agent_mut(0).stop_dataplane().unwrap();
    let mut seen = Connection::open(network.pod(0, 0), network.pod(1, 0));
    seen.send(1000);
    assert!(seen.arrive(1000, PATIENCE));
    network.podway.agent_mut(0).start_dataplane().unwrap();
    network.podway.wait_ready().unwrap();
    let mut unseen = Connection::open(network.pod(0, 1), network.pod(1, 1));
    seen.carry_much();
    unseen.carry_much();
    network.counters();

    network.podway.agent_mut(0).stop_dataplane().unwrap();
    for connection in [&mut seen, &mut unseen] {
        connection.send(1000);
    }
    assert!(
        unseen.arrive(1000, PATIENCE),
        "it is taken up in the middle"
    );
    assert!(!seen.arrive(1000, STALLED));
    let (settings, _) = example.split_once("; or: ").unwrap();
    node.run("sh", &["-c", settings]).unwrap();
    assert!(seen.arrive(1000, RECOVERED));
    wait_for_no_hint(&network);
    network.podway.agent_mut(0).start_dataplane().unwrap();
    network.podway.wait_ready().unwrap();
    network.finish();
}
