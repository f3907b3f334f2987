//! What clients do wrong at `control.sock`: the daemon stays up and small, and others are served.

mod common;

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use common::{Cluster, Daemon};
use podway_proto::client::{BulkOptions, Client, ClientError};
use podway_proto::codec::{MAX_LINE, encode};
use podway_proto::control::{PortRoleSpec, PortSpec, Request, RouteSpec, ViaSpec};
use podway_proto::{CONTROL_SOCKET, ErrorCode, VERSION};
use rustix::process::{Gid, Resource, Uid, getrlimit, setrlimit};
use rustix::thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid};

const CONFIG: &str = "uplink = 'eth0'\n";

/// Node a with its daemon, which knows both nodes.
fn node_a() -> (Cluster, Daemon) {
    let cluster = Cluster::new();
    let daemon = cluster.start("a", CONFIG);
    cluster.tell_nodes("a", "");
    (cluster, daemon)
}

fn connect(cluster: &Cluster) -> UnixStream {
    let stream = UnixStream::connect(cluster.run_dir("a").join(CONTROL_SOCKET)).unwrap();
    let limit = Some(Duration::from_secs(5));
    stream.set_read_timeout(limit).unwrap();
    stream.set_write_timeout(limit).unwrap();
    stream
}

/// A connection that has said `hello` and read the answer.
fn greeted(cluster: &Cluster) -> BufReader<UnixStream> {
    let mut stream = BufReader::new(connect(cluster));
    let hello = encode(&Request::Hello { version: VERSION });
    stream.get_mut().write_all(&hello).unwrap();
    assert!(line(&mut stream).starts_with("{\"response\":\"hello\""));
    stream
}

fn line(stream: &mut BufReader<UnixStream>) -> String {
    let mut line = String::new();
    stream.read_line(&mut line).unwrap();
    line
}

/// The daemon answers whoever comes in an orderly way.
fn serves(cluster: &Cluster) {
    let listed = cluster.podway("a", "--timeout 5 node list");
    assert_eq!(listed.lines().count(), 3, "{listed}");
}

/// Resident memory of the daemon in KiB (`VmRSS` of proc(5)).
fn memory(daemon: &Daemon) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", daemon.pid())).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:"));
    let value = line.unwrap().split_whitespace().nth(1).unwrap();
    value.parse().unwrap()
}

#[test]
#[ignore = "needs root: network namespaces"]
fn two_command_lines_and_a_program_change_routes_at_once() {
    const EACH: u8 = 20;
    let (cluster, _daemon) = node_a();
    let socket = cluster.run_dir("a").join(CONTROL_SOCKET);
    std::thread::scope(|scope| {
        for second in [64, 65] {
            let cluster = &cluster;
            scope.spawn(move || {
                for third in 0..EACH {
                    let route = format!("100.{second}.{third}.0/24");
                    cluster.podway("a", &format!("route add {route} via b"));
                }
            });
        }
        scope.spawn(|| {
            let mut client = Client::connect(&socket, Duration::from_secs(10)).unwrap();
            for number in 0..200_u8 {
                let prefix = format!("100.66.{}.0/24", number / 2).parse().unwrap();
                let via = ViaSpec::Node {
                    node: "b".into(),
                    vni: None,
                };
                let request = match number % 2 {
                    0 => Request::RouteAdd(RouteSpec { prefix, via }),
                    _ => Request::RouteDel { prefix },
                };
                client.call(&request).unwrap();
            }
        });
    });
    let mut client = cluster.client("a");
    assert_eq!(client.export().unwrap().routes.len(), 2 * usize::from(EACH));
    // They and b's PodCIDR.
    let routes = common::our_routes(&cluster, "a", "-4");
    assert_eq!(routes.len(), 2 * usize::from(EACH) + 1);
}

#[test]
#[ignore = "needs root: network namespaces"]
fn half_lines_silence_and_garbage_hold_nobody_up() {
    let (cluster, daemon) = node_a();
    let before = memory(&daemon);

    // Half a line, and its other half later.
    let mut half = greeted(&cluster);
    half.get_mut().write_all(b"{\"request\":\"node").unwrap();
    serves(&cluster);

    // One that asks and asks and does not read: it is not listened to in the end.
    let mut deaf = greeted(&cluster);
    let limit = Some(Duration::from_millis(200));
    deaf.get_mut().set_write_timeout(limit).unwrap();
    let ask = encode(&Request::NodeList).repeat(1000);
    let mut asked = 0;
    let error = loop {
        match deaf.get_mut().write(&ask) {
            Ok(count) => asked += count,
            Err(error) => break error,
        }
        assert!(asked < 64 << 20, "it takes everything");
    };
    assert_eq!(error.kind(), ErrorKind::WouldBlock);
    serves(&cluster);

    // Lines that are nearly too long, whole and unfinished, and one that is.
    let mut unfinished = Vec::new();
    for _ in 0..20 {
        let mut client = greeted(&cluster);
        client
            .get_mut()
            .write_all(&vec![b'x'; MAX_LINE - 1])
            .unwrap();
        unfinished.push(client);
    }
    serves(&cluster);
    for client in &mut unfinished {
        client.get_mut().write_all(b"\n").unwrap();
        assert!(line(client).contains("\"bad-request\""));
    }
    let mut long = greeted(&cluster);
    // The daemon closes before all is written.
    let _ = long.get_mut().write_all(&vec![b'x'; MAX_LINE + 1]);
    assert!(line(&mut long).contains("\"line-too-long\""));

    // Garbage, with newlines in it.
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut garbage = vec![0; 256 << 10];
    garbage.fill_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_be_bytes()[0]
    });
    garbage.push(b'\n');
    let lines = garbage.iter().filter(|&&byte| byte == b'\n').count();
    let mut noisy = connect(&cluster);
    let answers = BufReader::new(noisy.try_clone().unwrap());
    let reader = std::thread::spawn(move || {
        let refused = |line: &String| line.contains("\"bad-request\"");
        answers
            .lines()
            .map_while(Result::ok)
            .filter(refused)
            .count()
    });
    noisy.write_all(&garbage).unwrap();
    noisy.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(reader.join().unwrap(), lines);
    serves(&cluster);

    half.get_mut().write_all(b"-list\"}\n").unwrap();
    assert!(line(&mut half).starts_with("{\"response\":\"nodes\""));
    let grown = memory(&daemon).saturating_sub(before);
    assert!(grown < 64 << 10, "{grown} KiB more");
    daemon.stop();
}

#[test]
#[ignore = "needs root: network namespaces"]
fn a_thousand_connections_lock_nobody_out() {
    let mut files = getrlimit(Resource::Nofile);
    files.current = files.maximum;
    setrlimit(Resource::Nofile, files).unwrap();
    let (cluster, daemon) = node_a();
    let before = memory(&daemon);
    let mut clients: Vec<UnixStream> = (0..1000).map(|_| connect(&cluster)).collect();
    serves(&cluster);
    // Those that had to go were told so; the last ones are still there.
    let mut words = String::new();
    clients[0].read_to_string(&mut words).unwrap();
    assert!(words.contains("\"busy\""), "{words}");
    let hello = encode(&Request::Hello { version: VERSION });
    let last = clients.last_mut().unwrap();
    last.write_all(&hello).unwrap();
    assert!(line(&mut BufReader::new(last.try_clone().unwrap())).contains("\"hello\""));
    let open = std::fs::read_dir(format!("/proc/{}/fd", daemon.pid())).unwrap();
    assert!(open.count() < 100);
    let grown = memory(&daemon).saturating_sub(before);
    assert!(grown < 16 << 10, "{grown} KiB more");
    drop(clients);
    serves(&cluster);
    daemon.stop();
}

#[test]
#[ignore = "needs root: network namespaces"]
fn who_is_not_root_may_only_ask() {
    const OTHER: u32 = 4242;
    let (cluster, _daemon) = node_a();
    let socket = cluster.run_dir("a").join(CONTROL_SOCKET);
    // What an operator does who lets a group ask.
    for path in [cluster.directory.path(), &cluster.run_dir("a"), &socket] {
        std::os::unix::fs::chown(path, None, Some(OTHER)).unwrap();
    }
    let mode = std::fs::Permissions::from_mode(0o750);
    std::fs::set_permissions(cluster.directory.path(), mode).unwrap();
    let before = cluster.podway("a", "export");
    let other = std::thread::spawn(move || {
        // Of this thread alone: the system call knows nothing of the others.
        let (user, group) = (Uid::from_raw(OTHER), Gid::from_raw(OTHER));
        set_thread_groups(&[]).unwrap();
        set_thread_res_gid(group, group, group).unwrap();
        set_thread_res_uid(user, user, user).unwrap();
        let mut client = Client::connect(&socket, Duration::from_secs(10)).unwrap();
        let entries = client.export().unwrap();
        for question in [
            Request::Status,
            Request::NodeList,
            Request::RouteShow,
            Request::PortShow,
            Request::RouteGet {
                address: "10.0.1.2".parse().unwrap(),
            },
        ] {
            client.call(&question).unwrap();
        }
        let route = RouteSpec {
            prefix: "10.9.0.0/16".parse().unwrap(),
            via: ViaSpec::Node {
                node: "b".into(),
                vni: None,
            },
        };
        let (prefix, name, interface) = (route.prefix, "b".to_owned(), "veth0".to_owned());
        let port = PortSpec {
            interface: interface.clone(),
            role: PortRoleSpec::Uplink {
                accept_partial_checksums: None,
            },
        };
        for change in [
            Request::NodeSet(entries.nodes[0].clone()),
            Request::NodeDel { name },
            Request::RouteAdd(route.clone()),
            Request::RouteReplace(route),
            Request::RouteDel { prefix },
            Request::PortAdd(port),
            Request::PortDel { interface },
            Request::BulkBegin {
                replace: false,
                dry_run: true,
            },
            Request::BulkPart(entries.clone()),
            Request::BulkEnd,
        ] {
            let refused = client.call(&change).unwrap_err().to_string();
            let expected = "user 4242 may only ask; changes are for root: use sudo";
            assert_eq!(refused, expected, "{change:?}");
        }
        let error = client.bulk(BulkOptions::default(), &entries, |_| {});
        let Err(ClientError::Refused(error)) = error else {
            panic!("{error:?}")
        };
        assert_eq!(error.code, ErrorCode::PermissionDenied);
    });
    other.join().unwrap();
    assert_eq!(cluster.podway("a", "export"), before);

    // A stranger to the group cannot even connect.
    let socket = cluster.run_dir("a").join(CONTROL_SOCKET);
    let stranger = std::thread::spawn(move || {
        let user = Uid::from_raw(OTHER + 1);
        set_thread_groups(&[]).unwrap();
        let group = Gid::from_raw(OTHER + 1);
        set_thread_res_gid(group, group, group).unwrap();
        set_thread_res_uid(user, user, user).unwrap();
        UnixStream::connect(socket).unwrap_err().kind()
    });
    assert_eq!(stranger.join().unwrap(), ErrorKind::PermissionDenied);
}
