//! Many entries at once: routes that are loaded, exports and imports.

mod common;

use std::fmt::Write as _;
use std::io::Write as _;
use std::process::{Output, Stdio};
use std::time::{Duration, Instant};

use common::{Cluster, Daemon};
use podway_proto::client::Client;
use podway_proto::control::{Request, Response};

const CONFIG: &str = "uplink = 'eth0'\n";

/// Node a with its daemon, which knows both nodes.
fn node_a() -> (Cluster, Daemon) {
    let cluster = Cluster::new();
    let daemon = cluster.start("a", CONFIG);
    cluster.tell_nodes("a", "");
    (cluster, daemon)
}

/// A file with this text; its path.
fn file(cluster: &Cluster, name: &str, text: &str) -> String {
    let path = cluster.directory.path().join(name);
    std::fs::write(&path, text).unwrap();
    path.display().to_string()
}

fn routes_of(client: &mut Client) -> usize {
    client.export().unwrap().routes.len()
}

/// What it says on standard error, and its exit code.
fn failure(output: &Output) -> (String, Option<i32>) {
    let said = String::from_utf8(output.stderr.clone()).unwrap();
    (said, output.status.code())
}

#[test]
#[ignore = "needs root: network namespaces"]
fn a_hundred_thousand_routes_are_loaded_in_seconds() {
    let (cluster, _daemon) = node_a();
    let mut text = String::new();
    for number in 0..100_000_u32 {
        let [_, high, middle, low] = (number * 4).to_be_bytes();
        writeln!(text, "100.{}.{middle}.{low}/30 via b", 64 + high).unwrap();
    }
    let path = file(&cluster, "routes", &text);
    let begin = Instant::now();
    let said = cluster.podway("a", &format!("route load {path}"));
    let took = begin.elapsed();
    eprintln!("100,000 routes took {took:?}");
    assert_eq!(said, "100000 added, 0 changed, 0 removed\n");
    assert_eq!(routes_of(&mut cluster.client("a")), 100_000);
    // The kernel has them all when the daemon has answered.
    let routes = cluster.ip("a", "-4 route show proto 80 type unicast");
    assert_eq!(routes.lines().count(), 100_001);
    assert!(took < Duration::from_secs(20), "{took:?}");
    let again = cluster.podway("a", &format!("route load {path}"));
    assert_eq!(again, "nothing changes\n");
}

#[test]
#[ignore = "needs root: network namespaces"]
fn routes_are_loaded_all_or_none() {
    let (cluster, _daemon) = node_a();
    let load = |name: &str, text: &str| {
        let path = file(&cluster, name, text);
        cluster.try_podway("a", &format!("route load {path}"))
    };
    let first = load(
        "first",
        "10.8.0.0/16 via b\n10.9.0.0/16 via 192.168.77.2 dev eth0\n",
    );
    assert!(first.status.success(), "{first:?}");

    let wrong = load("wrong", "10.7.0.0/16 via b\n\n10.8.0.0/33 via b\n");
    let (said, code) = failure(&wrong);
    assert_eq!(code, Some(2));
    assert!(said.ends_with("\nline 3: '10.8.0.0/33' is no prefix such as 10.9.0.0/16\n"));

    let refused = load(
        "refused",
        "10.7.0.0/16 via b # fine\n10.8.0.0/16 via c\n10.0.1.0/24 via 192.168.77.2\n",
    );
    let (said, code) = failure(&refused);
    assert_eq!(code, Some(1));
    let lines: Vec<&str> = said.lines().collect();
    assert!(lines[0].ends_with("/refused:"), "{said}");
    assert_eq!(
        lines[1..],
        [
            "line 3: route 10.0.1.0/24: 10.0.1.0/24 is a PodCIDR of node b; change it with podway \
             node set",
            "line 2: route 10.8.0.0/16: there is no node c; add it with podway node set",
        ]
    );
    let no_link = load(
        "no-link",
        "10.7.0.0/16 via b\n10.6.0.0/16 via 192.168.77.9 dev eth9\n",
    );
    let (said, code) = failure(&no_link);
    assert_eq!(code, Some(1));
    assert!(
        said.contains("line 2: route 10.6.0.0/16: there is no interface eth9 here"),
        "{said}"
    );
    assert_eq!(routes_of(&mut cluster.client("a")), 2);

    // Standard input, and what is there changes its way.
    let mut command = cluster.inside("a", env!("CARGO_BIN_EXE_podway"));
    command.arg("--run-dir").arg(cluster.run_dir("a"));
    command.args(["route", "load", "-"]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let text = b"10.9.0.0/16 via b\n10.5.0.0/16 via b\n";
    child.stdin.take().unwrap().write_all(text).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(
        String::from_utf8(output.stdout).unwrap(),
        "1 added, 1 changed, 0 removed\n"
    );
    assert!(
        common::our_routes(&cluster, "a", "-4")
            .contains(&"10.9.0.0/16 via 10.0.1.0 dev podway.vx".to_owned())
    );
    assert!(matches!(
        cluster.client("a").call(&Request::RouteShow).unwrap(),
        Response::Routes { .. }
    ));
}

#[test]
#[ignore = "needs root: network namespaces"]
fn what_was_exported_is_imported_and_changes_nothing() {
    let (cluster, daemon) = node_a();
    cluster.podway("a", "port add veth0 --pod-ip 10.0.0.2");
    cluster.podway("a", "route add 10.8.0.0/16 via b");
    cluster.podway("a", "route add 10.9.0.0/16 via 192.168.77.2 dev eth0");
    let exported = cluster.podway("a", "export");
    let path = file(&cluster, "exported.json", &exported);
    let saved = || std::fs::read(cluster.run_dir("a").join("state/state.json")).unwrap();
    let before = saved();
    for options in ["", "--replace", "--dry-run"] {
        let said = cluster.podway("a", &format!("import {options} {path}"));
        assert_eq!(said, "nothing changes\n", "{options}");
    }
    assert_eq!(saved(), before);

    // Away with all but a node, which is shown before it is done, and back again.
    let less = file(
        &cluster,
        "less.json",
        r#"{"nodes":[{"name":"a","underlay":"192.168.77.1","pod_cidrs":["10.0.0.0/24"]}]}"#,
    );
    let change = "- node a --underlay 192.168.77.1 --pod-cidr 10.0.0.0/24,fd00::/64\n\
                  - node b --underlay 192.168.77.2 --pod-cidr 10.0.1.0/24,fd00:1::/64\n\
                  - route 10.8.0.0/16 via b\n\
                  - route 10.9.0.0/16 via 192.168.77.2 dev eth0\n\
                  - port veth0 --pod-ip 10.0.0.2\n\
                  + node a --underlay 192.168.77.1 --pod-cidr 10.0.0.0/24\n\
                  0 added, 1 changed, 4 removed\n";
    let shown = cluster.podway("a", &format!("import --dry-run --replace {less}"));
    assert_eq!(shown, change);
    assert_eq!(cluster.podway("a", "export"), exported);
    let routes = common::our_routes(&cluster, "a", "-4");
    assert_eq!(
        cluster.podway("a", &format!("import --replace {less}")),
        change
    );
    assert_eq!(common::our_routes(&cluster, "a", "-4"), [""; 0]);
    let said = cluster.podway("a", &format!("import {path}"));
    assert!(
        said.ends_with("\n4 added, 1 changed, 0 removed\n"),
        "{said}"
    );
    assert_eq!(cluster.podway("a", "export"), exported);
    assert_eq!(common::our_routes(&cluster, "a", "-4"), routes);
    daemon.stop();
    let _daemon = cluster.start("a", CONFIG);
    assert_eq!(cluster.podway("a", "export"), exported);

    let wrong = file(
        &cluster,
        "wrong.json",
        "{\n  \"nodes\": [],\n  \"roads\": []\n}\n",
    );
    let (said, code) = failure(&cluster.try_podway("a", &format!("import {wrong}")));
    assert_eq!(code, Some(2));
    assert!(
        said.contains("unknown field `roads`") && said.contains("line 3"),
        "{said}"
    );
    let orphan = r#"{"routes":[{"prefix":"10.7.0.0/16","via":{"kind":"node","node":"c"}}]}"#;
    let orphan = file(&cluster, "orphan.json", orphan);
    let (said, code) = failure(&cluster.try_podway("a", &format!("import {orphan}")));
    assert_eq!(code, Some(1));
    assert!(
        said.contains("\nroute 10.7.0.0/16: there is no node c;"),
        "{said}"
    );
    let (said, code) = failure(&cluster.try_podway("a", &format!("--json import {orphan}")));
    assert_eq!(code, Some(1));
    let document: serde_json::Value = serde_json::from_str(&said).unwrap();
    assert_eq!(document["code"], "invalid");
    assert_eq!(document["refused"][0]["entry"]["prefix"], "10.7.0.0/16");
    assert_eq!(document["refused"][0]["error"]["code"], "not-found");
    let (said, code) = failure(&cluster.try_podway("a", "--json node del c"));
    assert_eq!(code, Some(3));
    let document: serde_json::Value = serde_json::from_str(&said).unwrap();
    assert_eq!(
        (&document["response"], &document["code"]),
        (&"error".into(), &"not-found".into())
    );
}
