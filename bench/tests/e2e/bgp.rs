//! Real routing daemons tell where pods are: BIRD on node 1, FRR on the others, configured as
//! docs/native-routing.md shows.

use std::collections::BTreeSet;
use std::fs;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use podway_bench::netns::{Netns, run, wait_until};
use podway_bench::ping::Ping;
use podway_bench::podway::{Agent, Options};
use podway_bench::topology::{ClusterSpec, Node};
use podway_proto::control::RouteOrigin;
use podway_proto::types::Mode;

use crate::support::{Delta, Network, options, ping_all, redirected, spec};

const DOCUMENT: &str = include_str!("../../../docs/native-routing.md");
/// Sessions come up and routes arrive.
const CONVERGED: Duration = Duration::from_secs(20);
/// Routes that BIRD injects at once.
const MANY: u32 = 100_000;

/// The daemons of a node; dropping it kills them.
struct Daemons(Vec<Child>);

impl Daemons {
    /// Ends them without a word to anybody but the closed connections.
    fn kill(&mut self) {
        for child in &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Drop for Daemons {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The document's block in that language.
fn example(language: &str) -> String {
    let begin = format!("```{language}\n");
    let (_, rest) = DOCUMENT.split_once(&begin).unwrap();
    rest.split_once("```").unwrap().0.to_owned()
}

fn bird(node: &Node, config: &str) -> Daemons {
    let path = |name: &str| node.directory.join(name).to_string_lossy().into_owned();
    fs::write(path("bird.conf"), config).unwrap();
    let socket = path("bird.ctl");
    let args = ["-f", "-c", &path("bird.conf"), "-s", &socket];
    Daemons(vec![node.netns.spawn("bird", &args).unwrap()])
}

/// FRR's daemons, as the user that Debian's package makes for them, in a directory of theirs.
fn frr(node: &Node, config: &str) -> Daemons {
    let directory = node.directory.join("frr");
    fs::create_dir_all(&directory).unwrap();
    let path = |name: String| directory.join(name).to_string_lossy().into_owned();
    fs::write(path("zebra.conf".to_owned()), "").unwrap();
    fs::write(path("bgpd.conf".to_owned()), config).unwrap();
    let directory = path(String::new());
    run(Command::new("chown").args(["-R", "frr:frrvty", &directory])).unwrap();
    let zserv = path("zserv".to_owned());
    let mut daemons = Daemons(Vec::new());
    for name in ["zebra", "bgpd"] {
        let config = path(format!("{name}.conf"));
        let (pid, log) = (path(format!("{name}.pid")), path(format!("{name}.log")));
        let log = format!("file:{log}");
        let mut args = vec!["-f", &config, "-i", &pid, "-z", &zserv, "-P", "0"];
        args.extend(["--vty_socket", &directory, "--log", &log]);
        let program = format!("/usr/lib/frr/{name}");
        daemons.0.push(node.netns.spawn(&program, &args).unwrap());
        if name == "zebra" {
            let listens = || fs::metadata(&zserv).map_err(|error| error.to_string());
            wait_until("zebra listens", Duration::from_secs(5), listens).unwrap();
        }
    }
    daemons
}

/// FRR's example, which is node 2's, for another node; without its route map for `main`.
fn frr_config(node: &Node, table: &str) -> String {
    let mut text = example("frr");
    if node.number == 3 {
        text = text.replace("192.168.100.3", "192.168.100.0");
        text = text.replace("192.168.100.2", "192.168.100.3");
        text = text.replace("192.168.100.0", "192.168.100.2");
        text = text.replace("10.0.1.0/24", "10.0.2.0/24");
    }
    match table {
        "main" => text.replace("  neighbor nodes route-map podway in\n", ""),
        _ => text,
    }
}

/// Prefixes that control has from the kernel's table.
fn imported(agent: &Agent) -> BTreeSet<String> {
    let routes = agent.routes().unwrap().into_iter();
    let imported = routes.filter(|route| route.origin == RouteOrigin::Kernel);
    imported.map(|route| route.prefix.to_string()).collect()
}

fn wait_for(agent: &Agent, within: Duration, prefixes: &[&str]) {
    let wanted: BTreeSet<String> = prefixes.iter().map(|&prefix| prefix.to_owned()).collect();
    wait_until("control has the routes", within, || match imported(agent) {
        found if found == wanted => Ok(()),
        found => Err(format!("{found:?}, not {wanted:?}\n{}", agent.logs())),
    })
    .unwrap();
}

#[test]
#[ignore = "needs root; scripts/test runs it"]
fn routing_daemons_lead_tunnels() {
    three_nodes(Mode::Vxlan, "100");
}

#[test]
#[ignore = "needs root; scripts/test runs it"]
fn routing_daemons_lead_native_packets() {
    three_nodes(Mode::Native, "main");
}

fn three_nodes(mode: Mode, table: &str) {
    let spec = ClusterSpec {
        nodes: 3,
        pods_per_node: 1,
        ..spec()
    };
    let options = Options {
        tell_pod_cidrs: false,
        config: format!(
            "import-kernel-table = {}\n",
            if table == "main" { "'main'" } else { table }
        ),
        ..options(mode)
    };
    let mut network = Network::up(spec, &options);
    let nodes = network.cluster.nodes().to_vec();
    let mut bird_config = example("bird");
    if table == "main" {
        bird_config = bird_config.replace("    kernel table 100;\n", "");
    }
    let mut daemons = vec![bird(&nodes[0], &bird_config)];
    daemons.extend(
        nodes[1..]
            .iter()
            .map(|node| frr(node, &frr_config(node, table))),
    );
    let cidrs = ["10.0.0.0/24", "10.0.1.0/24", "10.0.2.0/24"];
    let others = |of: usize| -> Vec<&str> {
        let all = cidrs.iter().enumerate();
        all.filter(|(number, _)| *number != of)
            .map(|(_, cidr)| *cidr)
            .collect()
    };
    for number in 0..3 {
        wait_for(network.agent(number), CONVERGED, &others(number));
    }
    network.podway.wait_ready().unwrap();
    let before = network.counters();
    let pod = |node: usize| network.pod(node, 0).clone();
    for (from, to) in [(0, 1), (1, 2), (2, 0)] {
        ping_all(&pod(from).netns, pod(to).ipv4.into(), 56, 20);
    }
    for (number, (before, after)) in before.iter().zip(&network.counters()).enumerate() {
        // Requests and answers of two pings, all of them by the dataplane.
        assert_eq!(
            Delta { before, after }.packets("lx0"),
            (40, 40),
            "node {number}"
        );
    }

    // One leaves: the others forget its pods, and nothing else.
    let running = Ping {
        count: 200,
        ..Ping::default()
    }
    .start(&pod(0).netns, pod(1).ipv4.into());
    let begin = Instant::now();
    daemons[2].kill();
    for (number, rest) in [(0, "10.0.1.0/24"), (1, "10.0.0.0/24")] {
        wait_for(network.agent(number), Duration::from_secs(1), &[rest]);
        let gone = || match redirected(network.agent(number)).contains(cidrs[2]) {
            true => Err("the dataplane has it".to_owned()),
            false => Ok(()),
        };
        wait_until("the dataplane forgets it", Duration::from_secs(1), gone).unwrap();
    }
    eprintln!("withdrawn after {:?}", begin.elapsed());
    let replies = running.finish().unwrap();
    assert_eq!((replies.sent, replies.received), (200, 200));
    drop(daemons);
    network.finish();
}

#[test]
#[ignore = "needs root; scripts/test runs it"]
fn a_hundred_thousand_routes_arrive_whole() {
    let options = Options {
        config: "import-kernel-table = 100\nipv6-native-routing-cidr = 'fd00::/16'\n".to_owned(),
        ..options(Mode::Vxlan)
    };
    let network = Network::up_on_first(spec(), &options);
    let node = network.node(0).clone();
    let (begin, agent) = (Instant::now(), network.agent(0));
    let prefix = |n: u32| {
        format!(
            "10.{}.{}.{}/28",
            128 + (n >> 12),
            (n >> 4) & 255,
            (n & 15) << 4
        )
    };
    let mut config = "router id 192.168.100.1;\nprotocol device {}\nprotocol kernel {\n    kernel table 100;\n    ipv4 { export all; };\n}\nprotocol static {\n    ipv4 {};\n".to_owned();
    for n in 0..MANY {
        config += &format!("    route {} via 192.168.100.2;\n", prefix(n));
    }
    config += "    route 10.64.0.0/16 blackhole;\n    route 10.65.0.0/16 unreachable;\n}\n";
    let daemon = bird(&node, &config);
    let whole = || {
        let link = agent.status().unwrap().dataplane;
        match link.status().ok_or("no status")?.tables.routes {
            routes if routes >= u64::from(MANY) => Ok(()),
            routes => Err(format!("{routes} routes\n{}", agent.logs())),
        }
    };
    wait_until("all routes are there", Duration::from_secs(20), whole).unwrap();
    eprintln!("{MANY} routes after {:?}", begin.elapsed());
    let wanted: BTreeSet<String> = (0..MANY).map(prefix).collect();
    assert_eq!(of_table(&node.netns, "100"), wanted, "the kernel's table");
    assert!(imported(agent) == wanted, "control");
    let is_many = |prefix: &String| prefix.ends_with("/28");
    let dataplane: BTreeSet<String> = redirected(agent).into_iter().filter(is_many).collect();
    assert!(dataplane == wanted, "the dataplane: {}", dataplane.len());
    let main: BTreeSet<String> = of_table(&node.netns, "main")
        .into_iter()
        .filter(is_many)
        .collect();
    assert!(main == wanted, "the kernel underneath: {}", main.len());
    drop(daemon);
    // Killed, BIRD leaves its routes; the table is emptied and with it everything.
    node.netns
        .ip(&["route flush table 100".to_owned()])
        .unwrap();
    let empty = || match imported(agent).len() {
        0 => Ok(()),
        left => Err(format!("{left} routes")),
    };
    wait_until("all routes are gone", Duration::from_secs(20), empty).unwrap();
    let left = of_table(&node.netns, "main");
    assert!(!left.iter().any(is_many));
    network.finish();
}

/// The unicast prefixes of a table.
fn of_table(netns: &Netns, table: &str) -> BTreeSet<String> {
    let text = netns
        .run("ip", &["-4", "route", "show", "table", table])
        .unwrap();
    let lines = text.lines().filter(|line| line.contains(" via "));
    lines
        .map(|line| line.split(' ').next().unwrap().to_owned())
        .collect()
}
