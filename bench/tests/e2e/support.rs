//! What every end-to-end test needs: a network with Podway in charge, and its orderly end.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::IpAddr;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use podway_bench::netns::{run, wait_until};
use podway_bench::ping::Ping;
use podway_bench::podway::{Agent, Options, Podway};
use podway_bench::topology::{Cluster, ClusterSpec, Node, Pod};
use podway_bench::{cleanup, link};
use podway_proto::config::IngressChoice;
use podway_proto::dataplane::{Counters, PortCounters};
use podway_proto::types::Mode;

/// First part of the names of all networks of the tests.
pub(crate) const PREFIX: &str = "podway-e2e";

/// How long it may take until no change is under way.
const COMPARED: Duration = Duration::from_secs(10);

/// A cluster and who runs Podway on it.
pub(crate) struct Network {
    pub(crate) cluster: Cluster,
    pub(crate) podway: Podway,
    /// XDP programs that were seen; none may outlive the network.
    programs: BTreeSet<u32>,
    /// How often node 1's dataplane has held something else than it was told, by the test's doing.
    pub(crate) mended: u64,
}

/// Workers of each dataplane and queues of each interface that the tests use which do not choose
/// them: scripts/test runs all of them with one and with two.
fn width() -> u8 {
    let width = std::env::var("PODWAY_TEST_WORKERS").ok();
    width.map_or(1, |width| {
        width
            .parse()
            .expect("PODWAY_TEST_WORKERS is a small number")
    })
}

pub(crate) fn spec() -> ClusterSpec {
    ClusterSpec {
        queues: width(),
        ..ClusterSpec::new(PREFIX)
    }
}

/// Without probes between the nodes, which would be among the packets that tests count.
pub(crate) fn options(mode: Mode) -> Options {
    Options {
        mode,
        workers: width().into(),
        config: "health = false\n".to_owned(),
        ..Options::default()
    }
}

/// As [`options`], with every port received by AF_XDP.
pub(crate) fn af_xdp(mode: Mode) -> Options {
    Options {
        ingress: IngressChoice::AfXdp,
        ..options(mode)
    }
}

impl Network {
    /// Podway on every node.
    pub(crate) fn up(spec: ClusterSpec, options: &Options) -> Self {
        let cluster = Cluster::new(spec).unwrap();
        let podway = Podway::start(&cluster, options).unwrap_or_else(|error| panic!("{error}"));
        Self::with(cluster, podway)
    }

    /// Podway on node 1 only.
    pub(crate) fn up_on_first(spec: ClusterSpec, options: &Options) -> Self {
        let cluster = Cluster::new(spec).unwrap();
        let podway = Podway::start_on(&cluster, &cluster.nodes()[..1], options)
            .unwrap_or_else(|error| panic!("{error}"));
        Self::with(cluster, podway)
    }

    fn with(cluster: Cluster, podway: Podway) -> Self {
        let mut network = Self {
            cluster,
            podway,
            programs: BTreeSet::new(),
            mended: 0,
        };
        for agent in network.podway.agents() {
            let programs = link::programs(&agent.node().netns).unwrap();
            let ports = agent.interfaces().count();
            // The others are on the workers' own devices.
            let on_ports = programs
                .iter()
                .filter(|(name, _)| !name.starts_with("podway."));
            assert_eq!(on_ports.count(), ports, "one program on each port");
            network
                .programs
                .extend(programs.into_iter().map(|(_, id)| id));
        }
        network
    }

    pub(crate) fn node(&self, number: usize) -> &Node {
        &self.cluster.nodes()[number]
    }

    pub(crate) fn pod(&self, node: usize, pod: usize) -> &Pod {
        self.cluster.pod(node, pod)
    }

    pub(crate) fn agent(&self, number: usize) -> &Agent {
        &self.podway.agents()[number]
    }

    /// The counters of every node that runs Podway, at rest and with balanced books.
    pub(crate) fn counters(&self) -> Vec<Counters> {
        let agents = self.podway.agents().iter();
        let counters = agents.map(|agent| {
            let balanced = agent.balanced();
            balanced.unwrap_or_else(|error| panic!("{error}\n{}", agent.logs()))
        });
        counters.collect()
    }

    /// Packets that rings without room have lost on all nodes since `before`.
    pub(crate) fn lost_since(&self, before: &[Counters]) -> u64 {
        let after = self.counters();
        let lost = |counters: &Counters| counters.books.xdp_lost;
        after.iter().map(lost).sum::<u64>() - before.iter().map(lost).sum::<u64>()
    }

    /// Insists that the dataplanes hold what control has told, and that they always have.
    fn assert_in_step(&self) {
        for (number, agent) in self.podway.agents().iter().enumerate() {
            let compared = || {
                let status = agent.status().map_err(|error| error.to_string())?;
                match status.drift.compared_seconds_ago {
                    Some(0) => Ok(status.drift),
                    _ => Err(format!("{:?}, {:?}", status.drift, status.dataplane)),
                }
            };
            let drift = wait_until("what is held is compared", COMPARED, compared);
            let drift = drift.unwrap_or_else(|error| panic!("{error}\n{}", agent.logs()));
            let mended = if number == 0 { self.mended } else { 0 };
            assert_eq!((&drift.found, drift.mended), (&vec![], mended), "{drift:?}");
        }
    }

    /// The end of every test.
    pub(crate) fn finish(self) {
        self.counters();
        self.assert_in_step();
        let name = self.cluster.name().to_owned();
        self.podway.stop().unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(self.cluster.remove(), Vec::<String>::new());
        let left = cleanup::leftovers(&name, &self.programs);
        assert_eq!(left, Vec::<String>::new(), "left behind");
    }
}

/// Pings and insists on every answer.
pub(crate) fn ping_all(from: &podway_bench::netns::Netns, to: IpAddr, size: u16, count: u16) {
    let ping = Ping {
        count,
        size,
        ..Ping::default()
    };
    let replies = ping.run(from, to).unwrap();
    assert_eq!(
        (replies.sent, replies.received, replies.duplicates),
        (count, count, 0),
        "{to} from {} with {size} bytes: sent, received, duplicates",
        from.name()
    );
}

/// What the kernel of a namespace has counted of a protocol of IPv4 since it was made, by the names in
/// `/proc/net/snmp`.
pub(crate) fn counted(netns: &podway_bench::netns::Netns, protocol: &str, name: &str) -> u64 {
    let text = netns.run("cat", &["/proc/net/snmp"]).unwrap();
    let prefix = format!("{protocol}: ");
    let mut lines = text.lines().filter_map(|line| line.strip_prefix(&prefix));
    let (names, values) = (lines.next().unwrap(), lines.next().unwrap());
    let mut columns = names.split(' ').zip(values.split(' '));
    let (_, value) = columns.find(|(column, _)| *column == name).unwrap();
    value.parse().unwrap()
}

/// Datagrams that the sockets of a namespace have lost for want of room, since it was made.
pub(crate) fn lost_by_sockets(netns: &podway_bench::netns::Netns) -> u64 {
    counted(netns, "Udp", "RcvbufErrors")
}

/// Waits until a single ping is answered, for at most `within`.
pub(crate) fn wait_for_answer(from: &podway_bench::netns::Netns, to: IpAddr, within: Duration) {
    let ping = Ping {
        count: 1,
        ..Ping::default()
    };
    podway_bench::netns::wait_until(&format!("{to} answers"), within, || {
        match ping.run(from, to) {
            Ok(replies) if replies.received == 1 => Ok(()),
            Ok(_) => Err("no answer".to_owned()),
            Err(error) => Err(error.to_string()),
        }
    })
    .unwrap();
}

/// Somebody else's XDP program, which passes everything.
pub(crate) fn attach_foreign_program(node: &Node, interface: &str) {
    let directory = tempfile::tempdir().unwrap();
    let (source, object) = (
        directory.path().join("pass.c"),
        directory.path().join("pass.o"),
    );
    let text = "__attribute__((section(\"xdp\"), used)) int pass(void *ctx) { return 2; }\n\
                char terms[] __attribute__((section(\"license\"), used)) = \"GPL\";\n";
    fs::write(&source, text).unwrap();
    let paths: [&Path; 2] = [&object, &source];
    run(Command::new("clang")
        .args(["-O2", "-g", "-target", "bpf", "-c", "-o"])
        .args(paths))
    .unwrap();
    let object = object.to_string_lossy();
    let line = format!("link set dev {interface} xdpgeneric obj {object} sec xdp");
    node.netns.ip(&[line]).unwrap();
}

/// The id of a map of the dataplane's programs.
pub(crate) fn map_id(agent: &Agent, name: &str) -> String {
    let held = format!("/proc/{}/fdinfo", agent.dataplane_pid().unwrap());
    let held = fs::read_dir(held).unwrap().filter_map(|entry| {
        // One may be closed meanwhile.
        let text = fs::read_to_string(entry.unwrap().path()).ok()?;
        let (_, rest) = text.split_once("map_id:")?;
        Some(rest.lines().next()?.trim().to_owned())
    });
    let held: BTreeSet<String> = held.collect();
    let maps = run(Command::new("bpftool").args(["-j", "map", "show"])).unwrap();
    let maps: Vec<serde_json::Value> = serde_json::from_str(&maps).unwrap();
    let ours = maps
        .iter()
        .find(|map| map["name"] == name && held.contains(&map["id"].to_string()));
    ours.unwrap()["id"].to_string()
}

/// What goes by ports, routes and neighbours in the kernel: the entries of the programs' maps, and what
/// belongs to the VXLAN device.
pub(crate) fn entries(agent: &Agent) -> BTreeMap<&'static str, BTreeSet<String>> {
    let maps = [
        "ports",
        "vnis",
        "prefixes4",
        "prefixes6",
        "local4",
        "local6",
        "pods4",
        "pods6",
    ];
    let of_map = |name| {
        let id = map_id(agent, name);
        let dump = run(Command::new("bpftool").args(["-j", "map", "dump", "id", &id])).unwrap();
        let dump: Vec<serde_json::Value> = serde_json::from_str(&dump).unwrap();
        let bytes = |value: &serde_json::Value| value.to_string();
        let entry = |entry: &serde_json::Value| bytes(&entry["key"]) + &bytes(&entry["value"]);
        dump.iter().map(entry).collect()
    };
    let lines = |program, words: &str| -> BTreeSet<String> {
        let words: Vec<&str> = words.split(' ').collect();
        let text = agent.node().netns.run(program, &words).unwrap();
        text.lines().map(|line| line.trim().to_owned()).collect()
    };
    let mut all: BTreeMap<_, _> = maps.into_iter().map(|name| (name, of_map(name))).collect();
    for (name, words) in [
        ("routes", "route show proto 80"),
        ("routes6", "-6 route show proto 80"),
        ("neighbors", "neigh show nud permanent dev podway.vx"),
    ] {
        all.insert(name, lines("ip", words));
    }
    all.insert("fdb", lines("bridge", "fdb show dev podway.vx"));
    all
}

/// What the programs on the ports redirect: the IPv4 prefixes of the dataplane's published tables.
pub(crate) fn redirected(agent: &Agent) -> BTreeSet<String> {
    let id = map_id(agent, "prefixes4");
    let dump = run(Command::new("bpftool").args(["-j", "map", "dump", "id", &id])).unwrap();
    let dump: Vec<serde_json::Value> = serde_json::from_str(&dump).unwrap();
    let entries = dump.iter().map(|entry| {
        let bytes = entry["key"].as_array().unwrap().iter();
        let key: Vec<u8> = bytes
            .map(|byte| u8::from_str_radix(&byte.as_str().unwrap()[2..], 16).unwrap())
            .collect();
        format!("{}.{}.{}.{}/{}", key[4], key[5], key[6], key[7], key[0])
    });
    entries.collect()
}

/// What was counted between two states of one dataplane.
pub(crate) struct Delta<'a> {
    pub(crate) before: &'a Counters,
    pub(crate) after: &'a Counters,
}

impl Delta<'_> {
    /// Packets that came in by a port and that left by it.
    pub(crate) fn packets(&self, port: &str) -> (u64, u64) {
        let (before, after) = (of(self.before, port), of(self.after, port));
        (
            after.rx_packets - before.rx_packets,
            after.tx_packets - before.tx_packets,
        )
    }

    /// Bytes that left by a port.
    pub(crate) fn tx_bytes(&self, port: &str) -> u64 {
        of(self.after, port).tx_bytes - of(self.before, port).tx_bytes
    }

    /// ICMP errors about packets that came by a port: sent, and suppressed.
    pub(crate) fn icmp_errors(&self, port: &str) -> (u64, u64) {
        let (before, after) = (of(self.before, port), of(self.after, port));
        (
            after.icmp_sent - before.icmp_sent,
            after.icmp_suppressed - before.icmp_suppressed,
        )
    }

    /// What the XDP program of a port has passed to the kernel, by cause, without zeros.
    pub(crate) fn passed(&self, port: &str) -> BTreeMap<String, u64> {
        let (before, after) = (of(self.before, port), of(self.after, port));
        differences(&before.xdp_passed, &after.xdp_passed)
    }

    /// What the XDP program of a port has refused, by cause, without zeros.
    pub(crate) fn refused(&self, port: &str) -> BTreeMap<String, u64> {
        let (before, after) = (of(self.before, port), of(self.after, port));
        differences(&before.xdp_refused, &after.xdp_refused)
    }

    /// Drops by reason, without zeros.
    pub(crate) fn drops(&self) -> BTreeMap<String, u64> {
        differences(&self.before.drops, &self.after.drops)
    }
}

fn of(counters: &Counters, port: &str) -> PortCounters {
    counters.ports.get(port).cloned().unwrap_or_default()
}

fn differences(
    before: &BTreeMap<String, u64>,
    after: &BTreeMap<String, u64>,
) -> BTreeMap<String, u64> {
    let each = after.iter().map(|(name, value)| {
        let earlier = before.get(name).copied().unwrap_or(0);
        (name.clone(), value - earlier)
    });
    each.filter(|(_, difference)| *difference > 0).collect()
}
