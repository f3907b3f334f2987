//! What the dataplane is told. The peer is a listener that records, since the protocol is the
//! subject; the kernel is the real one.

mod common;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use common::{Cluster, device_neighbors, eventually, fdb, our_routes, run, within};
use podway_proto::dataplane::{Books, Change, Counters, Request, Response};
use podway_proto::digest::{Digest, Digests};
use podway_proto::perf::Perf;
use podway_proto::types::{Link, LocalNode, Neighbor, Node, Port, PortRole, Route};
use podway_proto::{DATAPLANE_SOCKET, codec};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

const CONFIG: &str = "uplink = 'eth0'\n";

/// What the peer was told: the facts by a name, and how often they were told as a whole.
#[derive(Debug, Default)]
struct Told {
    facts: BTreeMap<String, Value>,
    syncs: u32,
    log: String,
}

/// A listener in the dataplane's place.
struct Peer {
    told: Arc<Mutex<Told>>,
    stop: UnixStream,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Peer {
    fn start(run_dir: &Path) -> Self {
        let path = run_dir.join(DATAPLANE_SOCKET);
        let _ = std::fs::remove_file(&path);
        let listener = UnixListener::bind(&path).unwrap();
        let told = Arc::new(Mutex::new(Told::default()));
        let shared = Arc::clone(&told);
        // The stream that `stop` closes is the connection itself, so that it breaks as when the
        // process ends.
        let (send, receive) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            drop(listener);
            send.send(stream.try_clone().unwrap()).unwrap();
            serve(stream, &shared);
        });
        let stop = receive.recv().unwrap();
        Self {
            told,
            stop,
            thread: Some(thread),
        }
    }

    fn fact(&self, name: &str) -> Option<Value> {
        self.told.lock().unwrap().facts.get(name).cloned()
    }

    fn names(&self) -> Vec<String> {
        self.told.lock().unwrap().facts.keys().cloned().collect()
    }

    fn syncs(&self) -> u32 {
        self.told.lock().unwrap().syncs
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.stop.shutdown(std::net::Shutdown::Both);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn serve(stream: UnixStream, told: &Mutex<Told>) {
    let mut writer = stream.try_clone().unwrap();
    for line in BufReader::new(stream).lines().map_while(Result::ok) {
        let response = match codec::decode(line.as_bytes()).unwrap() {
            Request::Hello { version } => Response::Hello { version, pid: 1 },
            Request::SyncBegin => {
                told.lock().unwrap().facts.clear();
                Response::Done
            }
            Request::Digest => Response::Digest(digests(&told.lock().unwrap().facts)),
            Request::SyncEnd => {
                told.lock().unwrap().syncs += 1;
                Response::Done
            }
            Request::Apply { changes } => {
                changes
                    .into_iter()
                    .for_each(|change| note(&mut told.lock().unwrap().facts, change));
                Response::Applied {
                    refused: Vec::new(),
                }
            }
            Request::Counters => Response::Counters(Counters {
                books: Books {
                    packets_received: 3,
                    packets_sent: 2,
                    ..Books::default()
                },
                ..Counters::default()
            }),
            Request::Drops => Response::Drops(podway_proto::dataplane::Drops::default()),
            Request::Log { directives } => {
                told.lock().unwrap().log = directives;
                Response::Done
            }
            Request::Perf => Response::Perf(Perf {
                seconds: 1.5,
                workers: Vec::new(),
            }),
            Request::PerfReset => Response::Done,
            Request::Status
            | Request::TracePacket(_)
            | Request::WatchBegin(_)
            | Request::WatchRead
            | Request::WatchEnd => Response::Error(podway_proto::ErrorBody::new(
                podway_proto::ErrorCode::Unsupported,
                "not here",
            )),
        };
        if writer.write_all(&codec::encode(&response)).is_err() {
            return;
        }
    }
}

/// The digest of what it was told, whose values are whole facts.
fn digests(facts: &BTreeMap<String, Value>) -> Digests {
    fn of<T: Serialize + DeserializeOwned>(facts: &BTreeMap<String, Value>, kind: &str) -> Digest {
        let of_kind = facts.iter().filter(|(name, _)| name.starts_with(kind));
        // The order of fields counts, and a value has its own.
        Digest::of(of_kind.map(|(_, fact)| serde_json::from_value::<T>(fact.clone()).unwrap()))
    }
    Digests {
        local: of::<LocalNode>(facts, "local"),
        ports: of::<Port>(facts, "port "),
        neighbors: of::<Neighbor>(facts, "neighbor "),
        nodes: of::<Node>(facts, "node "),
        routes: of::<Route>(facts, "route "),
    }
}

fn note(facts: &mut BTreeMap<String, Value>, change: Change) {
    let set = |value: Value| Some(value);
    let (name, value) = match change {
        Change::SetLocal(local) => ("local".to_owned(), set(json!(local))),
        Change::SetPort(port) => (format!("port {}", port.interface), set(json!(port))),
        Change::DelPort { interface } => (format!("port {interface}"), None),
        Change::SetNode(node) => (format!("node {}", node.name), set(json!(node))),
        Change::DelNode { name } => (format!("node {name}"), None),
        Change::SetRoute(route) => (format!("route {}", route.prefix), set(json!(route))),
        Change::DelRoute { prefix } => (format!("route {prefix}"), None),
        Change::SetNeighbor(n) => (
            format!("neighbor {} {}", n.interface, n.address),
            set(json!(n)),
        ),
        Change::DelNeighbor { interface, address } => {
            (format!("neighbor {interface} {address}"), None)
        }
    };
    match value {
        Some(value) => drop(facts.insert(name, value)),
        None => assert!(facts.remove(&name).is_some(), "{name} was not told before"),
    }
}

fn mac(cluster: &Cluster, namespace: &str, interface: &str) -> Value {
    cluster.json(namespace, &format!("link show {interface}"))[0]["address"].clone()
}

fn link(cluster: &Cluster, namespace: &str, interface: &str) -> Link {
    let shown = &cluster.json(namespace, &format!("link show {interface}"))[0];
    let number = |name: &str| u32::try_from(shown[name].as_u64().unwrap()).unwrap();
    Link {
        ifindex: number("ifindex"),
        mtu: number("mtu"),
        mac: serde_json::from_value(shown["address"].clone()).unwrap(),
    }
}

#[test]
#[ignore = "needs root: network namespaces"]
fn the_dataplane_is_told_everything_and_then_what_changes() {
    let cluster = Cluster::new();
    let daemon = cluster.start("a", CONFIG);
    let peer = Peer::start(&cluster.run_dir("a"));
    cluster.tell_nodes("a", "");
    cluster.podway("a", "port add veth0 --pod-ip 10.0.0.2 --pod-ip fd00:0::2");
    cluster.podway("a", "route add 10.9.0.0/16 via b");
    cluster.podway("a", "route add 10.8.0.0/16 via 192.168.77.2");
    let expected = [
        "local",
        "neighbor eth0 192.168.77.2",
        "node b",
        "port eth0",
        "port veth0",
        "route 10.0.1.0/24",
        "route 10.8.0.0/16",
        "route 10.9.0.0/16",
        "route fd00:1::/64",
    ];
    // The neighbours of the uplink hold link-local ones, too, once anybody has spoken.
    let names = || -> Vec<String> {
        peer.names()
            .into_iter()
            .filter(|name| !name.contains("fe80"))
            .collect()
    };
    eventually("all facts", || names() == expected);
    assert_eq!(
        peer.fact("node b").unwrap(),
        json!({
            "name": "b",
            "underlay": "192.168.77.2",
            "vtep_mac": "02:50:c0:a8:4d:02",
            "mode": "vxlan",
            "path": {
                "interface": "eth0",
                "next_hop": "192.168.77.2",
                "source": "192.168.77.1",
                "mtu": 1500
            }
        })
    );
    assert_eq!(
        peer.fact("port veth0").unwrap(),
        json!(Port {
            interface: "veth0".into(),
            role: PortRole::Pod {
                addresses: vec!["10.0.0.2".parse().unwrap(), "fd00::2".parse().unwrap()],
                mac: serde_json::from_value(mac(&cluster, "pod-a", "eth0")).unwrap(),
                any_source: false,
            },
            link: Some(link(&cluster, "a", "veth0")),
        })
    );
    let local = peer.fact("local").unwrap();
    assert_eq!(local["vtep_mac"], "02:50:c0:a8:4d:01");
    let addresses: Vec<&str> = local["addresses"]
        .as_array()
        .unwrap()
        .iter()
        .map(|a| a.as_str().unwrap())
        .collect();
    for address in [
        "10.0.0.0",
        "127.0.0.1",
        "169.254.1.1",
        "192.168.77.1",
        "fd00::",
    ] {
        assert!(addresses.contains(&address), "{address} in {addresses:?}");
    }
    assert_eq!(
        peer.fact("port eth0").unwrap()["role"],
        json!({ "kind": "uplink", "accept_partial_checksums": true })
    );
    assert_eq!(
        peer.fact("route 10.8.0.0/16").unwrap()["via"],
        json!({ "kind": "gateway", "address": "192.168.77.2", "interface": "eth0" })
    );
    let before = mac(&cluster, "b", "eth0");
    let neighbor = || {
        peer.fact("neighbor eth0 192.168.77.2")
            .map(|n| n["mac"].clone())
    };
    assert_eq!(neighbor(), Some(before));

    // The neighbour's MAC is followed.
    cluster.ip("b", "link set eth0 address 02:00:00:00:00:77");
    cluster.pings("b", "192.168.77.1", 56);
    eventually("the new MAC", || {
        neighbor() == Some(json!("02:00:00:00:00:77"))
    });
    // The way is followed.
    cluster.ip("a", "route add 192.168.77.2/32 dev eth0 mtu 1300");
    eventually("the new MTU", || {
        peer.fact("node b").unwrap()["path"]["mtu"] == 1300
    });
    cluster.podway("a", "route del 10.9.0.0/16");
    eventually("the route is gone", || {
        peer.fact("route 10.9.0.0/16").is_none()
    });
    assert_eq!(peer.syncs(), 1, "all of it were increments");

    let text = cluster.try_podway("a", "counters");
    let shown = String::from_utf8_lossy(&text.stdout).into_owned();
    assert!(
        shown.contains("does not balance: packets received + made = sent + dropped"),
        "{shown}"
    );

    // What is logged changes in both, or in one, or not at all.
    let logged = || {
        let status = cluster.podway("a", "--json status");
        let status: Value = serde_json::from_str(&status).unwrap();
        (status["log"].clone(), peer.told.lock().unwrap().log.clone())
    };
    cluster.podway("a", "log debug");
    assert_eq!(logged(), (json!("debug"), "debug".to_owned()));
    cluster.podway("a", "log warn,podway_control=info --daemon control");
    cluster.podway("a", "log error --daemon dataplane");
    let expected_log = (json!("warn,podway_control=info"), "error".to_owned());
    assert_eq!(logged(), expected_log);
    let refused = cluster.try_podway("a", "log loud");
    assert_eq!(refused.status.code(), Some(1));
    let words = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(words.contains("'loud' is no level"), "{words}");
    assert_eq!(logged(), expected_log);
    cluster.podway("a", "log info");

    // A new dataplane is told everything anew, and so is one whose control is new.
    let whole = names();
    drop(peer);
    let peer = Peer::start(&cluster.run_dir("a"));
    let names = || -> Vec<String> {
        peer.names()
            .into_iter()
            .filter(|name| !name.contains("fe80"))
            .collect()
    };
    eventually("all facts again", || peer.syncs() == 1 && names() == whole);
    drop(peer);
    daemon.stop();
    let _daemon = cluster.start("a", CONFIG);
    let peer = Peer::start(&cluster.run_dir("a"));
    let names = || -> Vec<String> {
        peer.names()
            .into_iter()
            .filter(|name| !name.contains("fe80"))
            .collect()
    };
    eventually("all facts from the file", || names() == whole);
}

#[test]
#[ignore = "needs root: network namespaces"]
fn what_a_dataplane_has_lost_or_changed_it_is_told_anew() {
    let cluster = Cluster::new();
    let _daemon = cluster.start("a", CONFIG);
    let peer = Peer::start(&cluster.run_dir("a"));
    cluster.tell_nodes("a", "");
    cluster.podway("a", "port add veth0 --pod-ip 10.0.0.2");
    let status = || cluster.podway("a", "status");
    let whole = "holds what it was told, compared 0 s ago";
    // The first status that finds it at rest compares, and so does the next after a second.
    eventually("a comparison", || status().contains(whole));
    assert!(status().contains("dataplane   in sync"), "{}", status());
    assert_eq!(peer.syncs(), 1);

    // Nobody asks: it is noticed all the same, within a period of ten seconds.
    let (before, drifted) = {
        let mut told = peer.told.lock().unwrap();
        let before = told.facts.clone();
        told.facts.remove("node b").unwrap();
        told.facts.get_mut("route 10.0.1.0/24").unwrap()["via"]["node"] = json!("c");
        let port = told.facts["port veth0"].clone();
        told.facts.insert("port veth9".into(), port);
        let ports = told.facts.keys().filter(|name| name.starts_with("port "));
        let drifted = [
            format!(
                "ports: the dataplane holds {} and was told 2",
                ports.count()
            ),
            "nodes: the dataplane holds 0 and was told 1".to_owned(),
            "routes: the dataplane holds 2, not all of them as told".to_owned(),
        ];
        (before, drifted.join("; "))
    };
    within(Duration::from_secs(20), "it is told anew", || {
        peer.syncs() == 2
    });
    // Neighbours of the link may have come meanwhile.
    let facts = || {
        let mut facts = peer.told.lock().unwrap().facts.clone();
        facts.retain(|name, _| !name.starts_with("neighbor "));
        facts
    };
    let expected: BTreeMap<_, _> = before
        .into_iter()
        .filter(|(name, _)| !name.starts_with("neighbor "))
        .collect();
    assert_eq!(facts(), expected);
    let mended = format!("drift mended so far: 1, last: {drifted}");
    eventually("mended", || status().contains(&mended));
    let now = status();
    assert!(now.contains("dataplane   in sync"), "{now}");
    assert!(!now.contains("drift: "), "{now}");
    assert_eq!(peer.syncs(), 2, "once");
}

/// Datagrams that the netlink sockets of a network namespace had no room for.
fn lost_by_netlink(pid: u32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/net/netlink")).unwrap();
    let mut lines = text.lines();
    let drops = |line: &str| -> u64 {
        // sk Eth Pid Groups Rmem Wmem Dump Locks Drops Inode
        line.split_whitespace().nth(8).unwrap().parse().unwrap()
    };
    assert!(lines.next().unwrap().contains("Drops"));
    lines.map(drops).sum()
}

/// More events than the monitor's socket has room for come while control is stopped, and after them,
/// unheard, changes of all that it follows.
#[test]
#[ignore = "needs root: network namespaces"]
fn what_an_overrun_has_hidden_is_seen_by_taking_everything_anew() {
    const ROUTES: u32 = 30_000;
    let cluster = Cluster::new();
    let daemon = cluster.start("a", "uplink = 'eth0'\nimport-kernel-table = 100\n");
    let peer = Peer::start(&cluster.run_dir("a"));
    cluster.tell_nodes("a", "");
    cluster.podway("a", "port add veth0 --pod-ip 10.0.0.2");
    let prefix = |number: u32| format!("10.{}.{}.0/24", 64 + (number >> 8), number & 255);
    let via = "via 192.168.77.2 dev eth0 table 100 proto bird";
    cluster.ip("a", &format!("route add {} {via}", prefix(0)));
    cluster.ip(
        "a",
        "neigh replace 192.168.77.9 lladdr 02:00:00:00:00:09 dev eth0 nud permanent",
    );
    for name in [
        "port veth0",
        "neighbor eth0 192.168.77.9",
        "route 10.64.0.0/24",
    ] {
        eventually(name, || peer.fact(name).is_some());
    }
    let by_router = peer.fact("route 10.64.0.0/24").unwrap()["via"].clone();
    let (entries, neighbors) = (fdb(&cluster, "a"), device_neighbors(&cluster, "a"));
    let routes6 = our_routes(&cluster, "a", "-6");
    let syncs = peer.syncs();
    assert_eq!(lost_by_netlink(daemon.pid()), 0);

    let pid = rustix::process::Pid::from_raw(daemon.pid().try_into().unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::STOP).unwrap();
    // Each of them comes, all but the last hundred go, and so do neighbours, addresses and the link.
    let last = ROUTES - 100;
    let mut lines: Vec<String> = (1..ROUTES)
        .map(|n| format!("route add {} {via}", prefix(n)))
        .collect();
    lines.extend((0..last).map(|n| format!("route del {} table 100", prefix(n))));
    for number in 0..500 {
        let neighbor = format!("fd77::{number:x} lladdr 02:00:00:01:00:01 dev eth0 nud permanent");
        lines.push(format!("neigh replace {neighbor}"));
        lines.push(format!(
            "addr add 10.255.{}.{}/32 dev eth0",
            number >> 8,
            number & 255
        ));
        lines.push(format!("link set eth0 mtu {}", 1400 + number % 2));
    }
    for number in 1..500 {
        lines.push(format!("neigh del fd77::{number:x} dev eth0"));
        lines.push(format!(
            "addr del 10.255.{}.{}/32 dev eth0",
            number >> 8,
            number & 255
        ));
    }
    let ours = [
        "neigh del 192.168.77.9 dev eth0",
        "link del veth0",
        "link set eth0 mtu 1400",
        // What is Podway's own has gone or is somebody else's.
        "route del 10.0.1.0/24 dev podway.vx",
        "neigh del 10.0.1.0 dev podway.vx",
        "neigh del fd00:1:: dev podway.vx",
        "neigh add 10.0.9.0 lladdr 02:00:00:00:00:77 dev podway.vx nud permanent",
        "route add 10.0.8.0/24 via 10.0.9.0 dev podway.vx onlink proto 80",
    ];
    lines.extend(ours.map(str::to_owned));
    let file = cluster.directory.path().join("burst");
    std::fs::write(&file, lines.join("\n") + "\n").unwrap();
    cluster.ip("a", &format!("-batch {}", file.display()));
    let mac = "02:50:c0:a8:4d:02";
    run(cluster
        .inside("a", "bridge")
        .args(["fdb", "del", mac, "dev", "podway.vx"]));
    assert!(lost_by_netlink(daemon.pid()) > 0);
    assert!(peer.fact("port veth0").is_some(), "nothing of it was heard");
    rustix::process::kill_process(pid, rustix::process::Signal::CONT).unwrap();

    // What is in the kernel is as it was, but for the pod and the routes that are taken over: through the
    // tunnel, since their router is a node.
    let taken_over = (last..ROUTES).map(|n| format!("{} via 10.0.1.0 dev podway.vx", prefix(n)));
    let mut expected: Vec<String> = taken_over.collect();
    expected.push("10.0.1.0/24 via 10.0.1.0 dev podway.vx".to_owned());
    expected.sort();
    let seen = || {
        let mut routes = our_routes(&cluster, "a", "-4");
        routes.sort();
        let routes6 = our_routes(&cluster, "a", "-6");
        let neighbors = device_neighbors(&cluster, "a");
        [routes, routes6, neighbors, fdb(&cluster, "a")]
    };
    let expected = [expected, routes6, neighbors, entries];
    let end = Instant::now() + Duration::from_secs(20);
    while seen() != expected && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(seen(), expected, "the kernel is in line");
    assert!(daemon.said("changes of the kernel were lost; taking everything anew"));
    // So are the facts, to the last.
    let mut expected: Vec<String> = (last..ROUTES)
        .map(|n| format!("route {}", prefix(n)))
        .collect();
    expected.extend(
        [
            "local",
            "neighbor eth0 192.168.77.2",
            "neighbor eth0 fd77::",
            "node b",
            "port eth0",
            "route 10.0.1.0/24",
            "route fd00:1::/64",
        ]
        .map(str::to_owned),
    );
    expected.sort();
    let names = || -> Vec<String> {
        let all = peer.names().into_iter();
        all.filter(|name| !name.contains("fe80")).collect()
    };
    within(Duration::from_secs(20), "the facts are in line", || {
        names() == expected
    });
    for number in last..ROUTES {
        let fact = peer.fact(&format!("route {}", prefix(number))).unwrap();
        assert_eq!(fact["via"], by_router);
    }
    let is = || peer.fact("port eth0").map(|port| port["link"].clone());
    eventually("the MTU", || {
        is() == Some(json!(link(&cluster, "a", "eth0")))
    });
    let local = peer.fact("local").unwrap();
    let addresses = local["addresses"].as_array().unwrap().iter();
    let added = addresses.filter(|address| address.as_str().unwrap().starts_with("10.255."));
    assert_eq!(added.collect::<Vec<_>>(), ["10.255.0.0"]);
    // By what has changed: nothing was told that was told before.
    assert_eq!(peer.syncs(), syncs);
    eventually("all agree", || {
        let status = cluster.podway("a", "status");
        status.contains("holds what it was told") && status.contains("kernel      in sync")
    });
}

#[test]
#[ignore = "needs root: network namespaces"]
fn ports_come_and_go_with_their_links() {
    let cluster = Cluster::new();
    cluster.ip("a", "link set eth0 name later");
    let _daemon = cluster.start("a", CONFIG);
    let peer = Peer::start(&cluster.run_dir("a"));
    cluster.tell_nodes("a", "");
    let status = cluster.podway("a", "status");
    assert!(
        status.contains("the uplink eth0 does not exist yet"),
        "{status}"
    );
    assert_eq!(peer.fact("port eth0"), None);
    cluster.ip("a", "link set later down");
    cluster.ip("a", "link set later name eth0");
    cluster.ip("a", "link set eth0 up");
    eventually("the uplink", || peer.fact("port eth0").is_some());
    eventually("the way over it", || {
        peer.fact("node b").is_some_and(|b| b["path"].is_object())
    });

    // Not told until the pod has answered.
    cluster.ip("pod-a", "link set eth0 down");
    cluster.podway("a", "port add veth0 --pod-ip 10.0.0.2");
    let ports = cluster.podway("a", "port show");
    assert!(ports.contains("waiting for the pod's MAC"), "{ports}");
    assert_eq!(peer.fact("port veth0"), None);
    cluster.ip("pod-a", "link set eth0 up");
    eventually("the pod's port", || peer.fact("port veth0").is_some());

    cluster.ip("a", "link del veth0");
    eventually("the port is gone", || peer.fact("port veth0").is_none());
    let ports = cluster.podway("a", "port show");
    assert!(ports.contains("waiting for the link veth0"), "{ports}");
    let netns = cluster.namespace("pod-a");
    cluster.ip(
        "a",
        &format!("link add veth0 type veth peer name eth0 netns {netns}"),
    );
    cluster.ip("a", "link set veth0 up");
    cluster.ip("pod-a", "addr add 10.0.0.2/32 dev eth0");
    cluster.ip("pod-a", "link set eth0 up");
    cluster.ip("pod-a", "route add default dev eth0");
    let is_new = || peer.fact("port veth0").map(|p| p["role"]["mac"].clone());
    let expected = mac(&cluster, "pod-a", "eth0");
    eventually("the new pod's port", || {
        is_new().as_ref() == Some(&expected)
    });

    // What changes about a link that stays is told, too.
    let told = |name: &str| {
        peer.fact(&format!("port {name}"))
            .map(|p| p["link"].clone())
    };
    let is = |name: &str| Some(json!(link(&cluster, "a", name)));
    assert_eq!(told("veth0"), is("veth0"));
    cluster.ip("a", "link set veth0 mtu 1400");
    eventually("the new MTU", || told("veth0") == is("veth0"));
    assert_eq!(told("veth0").unwrap()["mtu"], 1400);
    cluster.ip("a", "link set eth0 address 02:00:00:00:00:78");
    eventually("the new MAC", || {
        told("eth0").is_some_and(|link| link["mac"] == "02:00:00:00:00:78")
    });
    cluster.podway("a", "port del veth0");
    eventually("the port is detached", || peer.fact("port veth0").is_none());
}

#[test]
#[ignore = "needs root: network namespaces"]
fn a_dataplane_that_hangs_does_not_hang_control() {
    let cluster = Cluster::new();
    let _daemon = cluster.start("a", CONFIG);
    let listener = UnixListener::bind(cluster.run_dir("a").join(DATAPLANE_SOCKET)).unwrap();
    let (_silent, _) = listener.accept().unwrap();
    let started = std::time::Instant::now();
    cluster.tell_nodes("a", "");
    assert!(
        started.elapsed().as_secs() < 3,
        "changes do not wait for the dataplane"
    );
    let status = cluster.podway("a", "status");
    assert!(
        started.elapsed().as_secs() < 9,
        "a question waits five seconds"
    );
    assert!(
        status.contains("not connected") || status.contains("does not answer"),
        "{status}"
    );
}
