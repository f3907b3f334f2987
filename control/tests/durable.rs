//! What was acknowledged stays, whatever ends the daemon or fills the disk.

mod common;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use common::{Cluster, Daemon, run};
use ipnet::IpNet;
use podway_control::bulk;
use podway_control::store::Store;
use podway_proto::client::{BulkOptions, Client, ClientError};
use podway_proto::control::{Request, RouteSpec, ViaSpec};
use podway_proto::entries::Entries;

const CONFIG: &str = "uplink = 'eth0'\n";
/// The environment variable that says how often the daemon is killed.
const KILLS: &str = "PODWAY_TEST_KILLS";
/// The clients that make changes: the second octets of their prefixes.
const CLIENTS: [u8; 3] = [64, 65, 66];
const FULL: &str = "No space left on device (os error 28); free space on its file system";

type Routes = BTreeMap<IpNet, ViaSpec>;

/// Numbers that look random (xorshift64), the same for the same seed.
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % end
    }

    fn octet(&mut self, end: u64) -> u8 {
        u8::try_from(self.below(end)).unwrap()
    }
}

fn via(node: &str) -> ViaSpec {
    ViaSpec::Node {
        node: node.into(),
        vni: None,
    }
}

fn prefix(second: u8, third: u8) -> IpNet {
    IpNet::new([100, second, third, 0].into(), 24).unwrap()
}

fn told(entries: &Entries) -> Routes {
    let routes = entries.routes.iter();
    routes
        .map(|route| (route.prefix, route.via.clone()))
        .collect()
}

/// Adds, changes and withdraws routes in 100.`second`.0.0/16 until the daemon is gone. What was
/// acknowledged, and what the last change would have made of it.
fn change_until_gone(
    mut client: Client,
    mut routes: Routes,
    second: u8,
    mut random: Random,
) -> (Routes, Routes) {
    loop {
        let mut after = routes.clone();
        let changed = prefix(second, random.octet(50));
        let result = match random.below(20) {
            // Many at once, some of which are there. One client at a time may.
            0 if second == CLIENTS[0] => {
                let (first, node) = (
                    random.octet(100),
                    if random.below(2) == 0 { "b" } else { "c" },
                );
                let many = (0..100).map(|number| prefix(second, first + number));
                let many = many.map(|prefix| (prefix, via(node)));
                after.extend(many.clone());
                let routes = many.map(|(prefix, via)| RouteSpec { prefix, via });
                let entries = Entries {
                    routes: routes.collect(),
                    ..Entries::default()
                };
                let done = client.bulk(BulkOptions::default(), &entries, |_| {});
                done.map(|refused| drop(refused.unwrap()))
            }
            1..8 if routes.contains_key(&changed) => {
                after.remove(&changed);
                client
                    .call(&Request::RouteDel { prefix: changed })
                    .map(drop)
            }
            number => {
                let via = via(if number % 2 == 0 { "b" } else { "c" });
                after.insert(changed, via.clone());
                let prefix = changed;
                client
                    .call(&Request::RouteReplace(RouteSpec { prefix, via }))
                    .map(drop)
            }
        };
        match result {
            Ok(()) => routes = after,
            Err(ClientError::Lost { .. }) => return (routes, after),
            Err(error) => panic!("{error}"),
        }
    }
}

#[test]
#[ignore = "needs root: network namespaces"]
fn what_was_acknowledged_is_there_after_every_kill() {
    let kills = std::env::var(KILLS).map_or(50, |number| number.parse().unwrap());
    let cluster = Cluster::new();
    let mut daemon = cluster.start("a", CONFIG);
    cluster.tell_nodes("a", "");
    cluster.podway(
        "a",
        "node set c --underlay 192.168.77.3 --pod-cidr 10.0.2.0/24",
    );
    let nodes = cluster.client("a").export().unwrap().nodes;
    let mut models = CLIENTS.map(|_| Routes::new());
    let (mut changes, mut open) = (0, 0);
    for kill in 0..kills {
        let mut pause = Random(kill + 1);
        pause.below(2);
        let pause = Duration::from_micros(pause.below(60_000));
        let ends = std::thread::scope(|scope| {
            let clients: Vec<_> = CLIENTS
                .into_iter()
                .zip(models.clone())
                .map(|(second, model)| {
                    let client = cluster.client("a");
                    let random = Random((kill + 1) << 8 | u64::from(second));
                    scope.spawn(move || change_until_gone(client, model, second, random))
                })
                .collect();
            std::thread::sleep(pause);
            daemon.kill();
            let ends = clients.into_iter().map(|client| client.join().unwrap());
            ends.collect::<Vec<_>>()
        });
        if kill % 4 == 0 {
            // Once more while it takes the state up, which writes a new file.
            let mut starting = cluster.daemon("a", CONFIG, &[]);
            let mut starting = starting.stderr(Stdio::null()).spawn().unwrap();
            std::thread::sleep(pause / 2);
            starting.kill().unwrap();
            starting.wait().unwrap();
        }
        daemon = cluster.start("a", CONFIG);
        let entries = cluster.client("a").export().unwrap();
        assert_eq!(entries.nodes, nodes);
        let mut all = told(&entries);
        for ((second, model), (acknowledged, asked)) in
            CLIENTS.into_iter().zip(&mut models).zip(ends)
        {
            let of_client = IpNet::new([100, second, 0, 0].into(), 16).unwrap();
            let (loaded, others): (Routes, Routes) = all
                .into_iter()
                .partition(|(prefix, _)| of_client.contains(prefix));
            all = others;
            // The change that was under way is there as a whole or not at all.
            if loaded != acknowledged {
                assert_eq!(loaded, asked, "kill {kill} after {pause:?}");
                open += 1;
            }
            changes += usize::from(loaded != *model);
            *model = loaded;
        }
        assert_eq!(all, Routes::new());
    }
    assert!(changes > 0, "no change was made");
    eprintln!("{kills} kills; {open} changes were made and not acknowledged");
    // The kernel has what was told: the routes, and the PodCIDRs of the other nodes.
    let routes: usize = models.iter().map(Routes::len).sum();
    assert_eq!(common::our_routes(&cluster, "a", "-4").len(), routes + 2);
    daemon.stop();
}

/// The state in a copy of the directory's file.
fn state_of(directory: &Path) -> Entries {
    let copy = tempfile::tempdir().unwrap();
    for name in ["state.json", "state.json.previous"] {
        let path = directory.join(name);
        if path.exists() {
            std::fs::copy(path, copy.path().join(name)).unwrap();
        }
    }
    let (_store, state) = Store::open(copy.path()).unwrap();
    bulk::entries(&state)
}

#[test]
#[ignore = "needs root: network namespaces, a loop device"]
fn a_power_cut_takes_nothing_that_was_acknowledged() {
    let cluster = Cluster::new();
    let file = |name: &str| cluster.directory.path().join(name);
    let disk = file("disk");
    std::fs::File::create(&disk)
        .unwrap()
        .set_len(16 << 20)
        .unwrap();
    run(Command::new("mkfs.ext4").arg("-q").arg(&disk));
    let line = format!("mount -o loop {} \"$1\"", disk.display());
    let daemon = Daemon::spawn(cluster.daemon_after("a", CONFIG, &line));
    let directory = daemon.sees(&cluster.state_dir("a"));
    cluster.tell_nodes("a", "");
    let mut client = cluster.client("a");
    let (copy, cut) = (file("copy"), file("cut"));
    std::fs::create_dir(&cut).unwrap();
    for third in 0..10 {
        let prefix = prefix(64, third);
        let change = match third % 3 {
            2 => Request::NodeDel {
                name: "c".to_owned(),
            },
            1 => Request::NodeSet(podway_proto::control::NodeSpec {
                name: "c".to_owned(),
                underlay: "192.168.77.3".parse().unwrap(),
                underlay6: None,
                pod_cidrs: Vec::new(),
                vtep_mac: None,
                mode: None,
            }),
            _ => Request::RouteAdd(RouteSpec {
                prefix,
                via: via("b"),
            }),
        };
        // What nobody has synced is in memory only: so the copy of the disk shows what a cut leaves.
        // A new file each time: ext4 itself syncs one that is written anew.
        let not_synced = format!("not-synced-{third}");
        std::fs::write(directory.join(&not_synced), "x").unwrap();
        client.call(&change).unwrap();
        std::fs::copy(&disk, &copy).unwrap();
        let told = client.export().unwrap();
        let left = file("left");
        std::fs::create_dir_all(&left).unwrap();
        let line = format!(
            "mount -o loop {} {1} && cp {1}/state.json {2} && (cat {1}/{not_synced} || true)",
            copy.display(),
            cut.display(),
            left.display()
        );
        let in_cut = run(Command::new("unshare").args(["-m", "sh", "-c", &line]));
        assert_eq!(in_cut, "");
        assert_eq!(state_of(&left), told);
    }
    daemon.stop();
}

/// Adds routes until one is refused for want of space; how many were added.
fn add_until_refused(cluster: &Cluster, second: u8) -> u8 {
    let state = cluster.state_dir("a").join("state.json");
    for third in 0..=u8::MAX {
        let output = cluster.try_podway("a", &format!("route add 100.{second}.{third}.0/24 via b"));
        if output.status.success() {
            continue;
        }
        let expected = format!(
            "podway: nothing was changed: cannot write to {}: {FULL}\n",
            state.display()
        );
        assert_eq!(String::from_utf8(output.stderr).unwrap(), expected);
        assert_eq!(output.status.code(), Some(1));
        return third;
    }
    panic!("the disk does not get full");
}

/// Adds fifty routes as far as there is space for them; which were acknowledged.
fn add_what_is_taken(mut client: Client, second: u8) -> Routes {
    let mut taken = Routes::new();
    for third in 0..50 {
        let route = RouteSpec {
            prefix: prefix(second, third),
            via: via("b"),
        };
        match client.call(&Request::RouteAdd(route.clone())) {
            Ok(_) => drop(taken.insert(route.prefix, route.via)),
            Err(error) => assert!(error.to_string().ends_with(FULL), "{error}"),
        }
    }
    taken
}

/// Fills the file system of a directory to the last block.
fn fill(directory: &Path) -> PathBuf {
    let filler = directory.join("filler");
    let error = std::fs::write(&filler, vec![0; 1 << 20]).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::StorageFull);
    filler
}

#[test]
#[ignore = "needs root: network namespaces"]
fn a_full_disk_refuses_changes_and_loses_none() {
    let cluster = Cluster::new();
    let line = "mount -t tmpfs -o size=256k none \"$1\"";
    let daemon = Daemon::spawn(cluster.daemon_after("a", CONFIG, line));
    let directory = daemon.sees(&cluster.state_dir("a"));
    cluster.tell_nodes("a", "");
    let filler = fill(&directory);
    // The block that the file ends in takes some.
    let added = add_until_refused(&cluster, 64);
    let all =
        |second: u8, count: u8| (0..count).map(move |third| (prefix(second, third), via("b")));
    let mut expected: Routes = all(64, added).collect();
    let check = |expected: &Routes| {
        let entries = cluster.client("a").export().unwrap();
        assert_eq!(told(&entries), *expected);
        assert_eq!(state_of(&directory), entries);
        let routes = common::our_routes(&cluster, "a", "-4");
        assert_eq!(routes.len(), expected.len() + 1);
    };
    check(&expected);
    // A change of what is there, and many at once.
    let mut client = cluster.client("a");
    let nodes = client.export().unwrap().nodes;
    let refused = [
        client.call(&Request::NodeSet(podway_proto::control::NodeSpec {
            pod_cidrs: (0..60).map(|third| prefix(70, third)).collect(),
            ..nodes[1].clone()
        })),
        client.call(&Request::RouteAdd(RouteSpec {
            prefix: "100.99.0.0/16".parse().unwrap(),
            via: via("b"),
        })),
    ];
    for refused in refused {
        let error = refused.unwrap_err().to_string();
        assert!(
            error.starts_with("nothing was changed: cannot write to "),
            "{error}"
        );
    }
    let entries = Entries {
        routes: all(65, 200)
            .map(|(prefix, via)| RouteSpec { prefix, via })
            .collect(),
        ..Entries::default()
    };
    let error = client
        .bulk(BulkOptions::default(), &entries, |_| {})
        .unwrap_err();
    assert!(error.to_string().ends_with(FULL), "{error}");
    check(&expected);

    // With space again it goes on, without a start.
    std::fs::remove_file(filler).unwrap();
    client
        .bulk(BulkOptions::default(), &entries, |_| {})
        .unwrap()
        .unwrap();
    expected.extend(all(65, 200));
    check(&expected);

    // Many clients at once, whose changes are saved together, and space for a part of them.
    let file = std::fs::OpenOptions::new()
        .write(true)
        .open(fill(&directory))
        .unwrap();
    file.set_len(file.metadata().unwrap().len() - (16 << 10))
        .unwrap();
    let ends = std::thread::scope(|scope| {
        let clients: Vec<_> = (70..78)
            .map(|second| {
                let client = cluster.client("a");
                scope.spawn(move || add_what_is_taken(client, second))
            })
            .collect();
        let ends = clients.into_iter().map(|client| client.join().unwrap());
        ends.collect::<Vec<Routes>>()
    });
    let taken: usize = ends.iter().map(Routes::len).sum();
    assert!((50..400).contains(&taken), "{taken} of 400 were taken");
    expected.extend(ends.into_iter().flatten());
    check(&expected);
    daemon.stop();
}

#[test]
#[ignore = "needs root: network namespaces"]
fn what_was_refused_does_not_come_with_the_next_start() {
    let cluster = Cluster::new();
    // A directory whose names can be changed, and not be forced to the disk.
    let line = "chmod 300 \"$1\"; shift; exec setpriv \
                --bounding-set=-dac_override,-dac_read_search \"$@\"";
    let daemon = Daemon::spawn(cluster.daemon_after("a", CONFIG, line));
    let output = cluster.try_podway("a", "node set b --underlay 192.168.77.2");
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8(output.stderr).unwrap();
    let directory = cluster.state_dir("a");
    let begin = format!(
        "podway: nothing was changed: cannot write to {}: ",
        directory.display()
    );
    assert!(said.starts_with(&begin), "{said}");
    assert_eq!(cluster.client("a").export().unwrap(), Entries::default());
    daemon.kill();
    run(Command::new("chmod").arg("750").arg(&directory));
    let daemon = cluster.start("a", CONFIG);
    assert_eq!(cluster.client("a").export().unwrap(), Entries::default());
    daemon.stop();
}

#[test]
#[ignore = "needs root: network namespaces"]
fn a_daemon_starts_on_a_full_disk() {
    let cluster = Cluster::new();
    let daemon = cluster.start("a", CONFIG);
    cluster.tell_nodes("a", "");
    cluster.podway("a", "route add 100.64.0.0/24 via b");
    let before = cluster.podway("a", "export");
    daemon.kill();
    let line = "cp -r \"$1\" \"$1.copy\"; mount -t tmpfs -o size=64k none \"$1\"; \
                cp \"$1.copy/\"* \"$1\"; (cat /dev/zero > \"$1/filler\" || true) 2> /dev/null";
    let daemon = Daemon::spawn(cluster.daemon_after("a", CONFIG, line));
    assert_eq!(cluster.podway("a", "export"), before);
    let added = add_until_refused(&cluster, 65);
    let filler = cluster.state_dir("a").join("filler");
    std::fs::remove_file(daemon.sees(&filler)).unwrap();
    cluster.podway("a", "route add 100.66.0.0/24 via b");
    let entries = cluster.client("a").export().unwrap();
    assert_eq!(entries.routes.len(), usize::from(added) + 2);
    assert_eq!(state_of(&daemon.sees(&cluster.state_dir("a"))), entries);
    daemon.stop();
}
