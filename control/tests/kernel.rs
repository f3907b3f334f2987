//! The kernel underneath, with no dataplane at all.

mod common;

use std::time::Duration;

use common::{
    Cluster, Muted, cpu_ticks, device_neighbors, eventually, fdb, our_routes, run, unreachable,
};

const CONFIG: &str = "uplink = 'eth0'\nauto-direct-node-routes = true\n";
const TUNNEL_ROUTES: [&str; 2] = [
    "10.0.0.2 via - dev veth0",
    "10.0.1.0/24 via 10.0.1.0 dev podway.vx",
];

fn device(cluster: &Cluster, node: &str) -> serde_json::Value {
    cluster.json(node, "-d link show podway.vx")[0].clone()
}

#[test]
#[ignore = "needs root: network namespaces"]
fn pods_and_hosts_reach_each_other_over_the_kernel_alone() {
    let cluster = Cluster::new();
    let daemons = ["a", "b"].map(|node| cluster.start(node, CONFIG));
    for (node, number) in [("a", 0), ("b", 1)] {
        cluster.tell_nodes(node, "");
        cluster.podway(
            node,
            &format!("port add veth0 --pod-ip 10.0.{number}.2 --pod-ip fd00:{number}::2"),
        );
    }

    let device = device(&cluster, "a");
    assert_eq!(device["address"], "02:50:c0:a8:4d:01");
    assert_eq!(device["mtu"], 1450);
    let data = &device["linkinfo"]["info_data"];
    assert_eq!(data["id"], 1);
    assert_eq!(data["port"], 4789);
    assert_eq!(data["local"], "192.168.77.1");
    assert_eq!(data["link"], "eth0");
    assert_eq!(data["learning"], false);
    assert_eq!(fdb(&cluster, "a"), ["02:50:c0:a8:4d:02 dst 192.168.77.2"]);
    assert_eq!(
        device_neighbors(&cluster, "a"),
        ["10.0.1.0 02:50:c0:a8:4d:02", "fd00:1:: 02:50:c0:a8:4d:02"]
    );
    assert_eq!(our_routes(&cluster, "a", "-4"), TUNNEL_ROUTES);
    assert_eq!(
        our_routes(&cluster, "a", "-6"),
        [
            "fd00:1::/64 via fd00:1:: dev podway.vx",
            "fd00::2 via - dev veth0"
        ]
    );
    for (from, to) in [
        ("pod-a", "10.0.1.2"),
        ("pod-b", "10.0.0.2"),
        ("pod-a", "fd00:1::2"),
        ("a", "10.0.1.2"),
        ("b", "fd00:0::2"),
    ] {
        assert!(cluster.pings(from, to, 56), "{from} to {to}");
        assert!(cluster.pings(from, to, 8000), "{from} to {to}, 8000 bytes");
    }

    // A change of mode replaces the routes and takes the tunnel away.
    for (node, other, number) in [("a", "b", 1), ("b", "a", 0)] {
        let underlay = format!("192.168.77.{}", number + 1);
        let set = format!(
            "node set {other} --underlay {underlay} --pod-cidr 10.0.{number}.0/24 --mode native"
        );
        cluster.podway(node, &set);
    }
    assert_eq!(
        our_routes(&cluster, "a", "-4"),
        [
            "10.0.0.2 via - dev veth0",
            "10.0.1.0/24 via 192.168.77.2 dev eth0"
        ]
    );
    assert!(fdb(&cluster, "a").is_empty());
    assert!(device_neighbors(&cluster, "a").is_empty());
    assert!(cluster.pings("pod-a", "10.0.1.2", 56));
    assert!(cluster.pings("pod-b", "10.0.0.2", 8000));
    for daemon in daemons {
        daemon.stop();
    }
    assert!(
        cluster.pings("pod-a", "10.0.1.2", 56),
        "the kernel carries on"
    );
}

#[test]
#[ignore = "needs root: network namespaces"]
fn a_restart_keeps_what_is_right_and_sweeps_what_is_not() {
    let cluster = Cluster::new();
    let daemon = cluster.start("a", CONFIG);
    cluster.tell_nodes("a", "");
    cluster.podway("a", "port add veth0 --pod-ip 10.0.0.2");
    let index = device(&cluster, "a")["ifindex"].clone();
    daemon.stop();
    assert_eq!(our_routes(&cluster, "a", "-4"), TUNNEL_ROUTES);

    cluster.ip("a", "route del 10.0.1.0/24");
    cluster.ip(
        "a",
        "route add 10.0.9.0/24 via 10.0.9.0 dev podway.vx onlink proto 80",
    );
    cluster.ip("a", "route add 10.77.0.0/16 via 192.168.77.2 proto static");
    cluster.ip(
        "a",
        "neigh add 10.0.9.0 lladdr 02:00:00:00:00:09 dev podway.vx proto 80",
    );
    cluster.ip("a", "addr add 10.0.9.0/32 dev podway.vx");
    run(cluster
        .inside("a", "bridge")
        .args("fdb add 02:00:00:00:00:09 dev podway.vx dst 192.168.77.9".split(' ')));
    let daemon = cluster.start("a", CONFIG);
    eventually("the kernel is in line", || {
        our_routes(&cluster, "a", "-4") == TUNNEL_ROUTES
    });
    let status = cluster.podway("a", "status");
    assert!(status.contains("kernel      in sync"), "{status}");
    assert_eq!(fdb(&cluster, "a"), ["02:50:c0:a8:4d:02 dst 192.168.77.2"]);
    assert_eq!(device_neighbors(&cluster, "a").len(), 2);
    assert_eq!(
        device(&cluster, "a")["ifindex"],
        index,
        "the device was not made anew"
    );
    assert!(!cluster.ip("a", "addr show podway.vx").contains("10.0.9.0"));
    assert_eq!(
        cluster.json("a", "route show proto static").len(),
        1,
        "not ours"
    );
    daemon.stop();

    // Other parameters under our name: replaced.
    let daemon = cluster.start("a", "uplink = 'eth0'\nvni = 7\nvxlan-port = 8472\n");
    eventually("a new device", || {
        // The device is missing for a moment.
        let links = cluster.json("a", "-d link");
        let found = links.iter().find(|link| link["ifname"] == "podway.vx");
        let data = found.map(|link| &link["linkinfo"]["info_data"]);
        data.is_some_and(|data| data["id"] == 7 && data["port"] == 8472)
    });
    eventually("its routes", || {
        our_routes(&cluster, "a", "-4") == TUNNEL_ROUTES
    });

    let mut cleanup = cluster.inside("a", env!("CARGO_BIN_EXE_podway-control"));
    cleanup
        .arg("--run-dir")
        .arg(cluster.run_dir("a"))
        .arg("--cleanup");
    let refused = cleanup.output().unwrap();
    assert_eq!(refused.status.code(), Some(1), "{refused:?}");
    daemon.stop();
    run(&mut cleanup);
    assert!(our_routes(&cluster, "a", "-4").is_empty());
    assert!(our_routes(&cluster, "a", "-6").is_empty());
    assert!(!cluster.ip("a", "link").contains("podway"));
    assert!(!cluster.ip("a", "neigh").contains("proto 80"));
    assert_eq!(
        cluster.json("a", "route show proto static").len(),
        1,
        "not ours"
    );
}

#[test]
#[ignore = "needs root: network namespaces"]
fn each_vni_has_a_device_that_comes_and_goes_with_the_configuration() {
    let cluster = Cluster::new();
    let config = format!("{CONFIG}also-vnis = [77, 16777215]\n");
    let daemons = ["a", "b"].map(|node| cluster.start(node, &config));
    for (node, number) in [("a", 0), ("b", 1)] {
        cluster.tell_nodes(node, "");
        let pod = format!("--pod-ip 10.0.{number}.2 --pod-ip 10.9.{number}.2");
        cluster.podway(node, &format!("port add veth0 {pod}"));
        let address = format!("addr add 10.9.{number}.2/32 dev lo");
        cluster.ip(&format!("pod-{node}"), &address);
        let other = if node == "a" { "b" } else { "a" };
        let prefix = format!("10.9.{}.0/24", 1 - number);
        cluster.podway(node, &format!("route add {prefix} via {other} vni 77"));
    }
    let links = || -> Vec<(String, u64)> {
        let links = cluster.json("a", "-d link show type vxlan");
        let mut found: Vec<_> = links
            .iter()
            .map(|link| {
                let name = link["ifname"].as_str().unwrap().to_owned();
                (name, link["linkinfo"]["info_data"]["id"].as_u64().unwrap())
            })
            .collect();
        found.sort();
        found
    };
    let all = [
        ("podway.16777215".to_owned(), 16_777_215),
        ("podway.77".to_owned(), 77),
        ("podway.vx".to_owned(), 1),
    ];
    assert_eq!(links(), all);
    assert_eq!(next_hops(&cluster, "10.9.1.0/24"), ["10.0.1.0 podway.77"]);
    let sent = || {
        let links = cluster.json("a", "-s link show podway.77");
        links[0]["stats64"]["tx"]["packets"].as_u64().unwrap()
    };
    let before = sent();
    assert!(cluster.pings("pod-a", "10.9.1.2", 56));
    assert!(sent() > before);
    assert!(cluster.pings("pod-a", "10.9.1.2", 8000));
    for daemon in daemons {
        daemon.stop();
    }
    // The route stays told, and has no VNI.
    let daemon = cluster.start("a", CONFIG);
    eventually("the devices are gone", || links() == all[2..]);
    let hint = "10.9.1.0/24: by a VNI that the configuration does not name";
    eventually("it is said", || {
        cluster.podway("a", "status").contains(hint)
    });
    // Nor does a shorter prefix take its packets.
    let unreachable = || {
        let routes = cluster.json("a", "-4 route show 10.9.1.0/24 proto 80");
        let kinds: Vec<_> = routes.iter().map(|route| route["type"].as_str()).collect();
        kinds == [Some("unreachable")]
    };
    eventually("it is unreachable", unreachable);
    daemon.stop();
    let daemon = cluster.start("a", &config);
    eventually("it has its VNI again", || {
        next_hops(&cluster, "10.9.1.0/24") == ["10.0.1.0 podway.77"]
    });
    daemon.stop();
}

/// The next hops of our route to `prefix`, as `ip` names them, in order.
fn next_hops(cluster: &Cluster, prefix: &str) -> Vec<String> {
    let family = if prefix.contains(':') { "-6" } else { "-4" };
    let routes = cluster.json("a", &format!("{family} route show {prefix} proto 80"));
    let word = |of: &serde_json::Value, name: &str| of[name].as_str().unwrap_or("-").to_owned();
    let next_hop = |of: &serde_json::Value| format!("{} {}", word(of, "gateway"), word(of, "dev"));
    let several = |route: &serde_json::Value| match route["nexthops"].as_array() {
        Some(several) => several.iter().map(next_hop).collect(),
        None => vec![next_hop(route)],
    };
    let mut all: Vec<String> = routes.iter().flat_map(several).collect();
    all.sort();
    all
}

#[test]
#[ignore = "needs root: network namespaces"]
fn a_route_by_several_next_hops_is_the_kernels_too() {
    const PREFIXES: [&str; 3] = ["10.9.0.0/24", "fd09::/64", "10.8.0.0/24"];
    let cluster = Cluster::new();
    for line in [
        "link add eth1 type veth peer name eth1p",
        "addr add 192.168.78.1/24 dev eth1",
        "link set eth1p up",
        "link set eth1 up",
    ] {
        cluster.ip("a", line);
    }
    cluster.sysctl("a", "net.ipv4.fib_multipath_hash_policy=0");
    let daemon = cluster.start("a", CONFIG);
    cluster.tell_nodes("a", "");
    let other = "node set c --underlay 192.168.77.3 --pod-cidr 10.0.2.0/24 --pod-cidr fd00:2::/64";
    cluster.podway("a", other);
    for prefix in ["10.9.0.0/24", "fd09::/64"] {
        cluster.podway("a", &format!("route add {prefix} via c via b"));
    }
    cluster.podway(
        "a",
        "route add 10.8.0.0/24 via 192.168.78.9 dev eth1 via 192.168.77.2",
    );
    let whole = [
        ["10.0.1.0 podway.vx", "10.0.2.0 podway.vx"],
        ["fd00:1:: podway.vx", "fd00:2:: podway.vx"],
        ["192.168.77.2 eth0", "192.168.78.9 eth1"],
    ];
    let is_whole = || {
        let pairs = PREFIXES.iter().zip(&whole);
        pairs
            .into_iter()
            .all(|(prefix, want)| next_hops(&cluster, prefix) == want)
    };
    for (prefix, want) in PREFIXES.iter().zip(&whole) {
        assert_eq!(next_hops(&cluster, prefix), want, "{prefix}");
    }
    let status = cluster.podway("a", "status");
    assert!(status.contains("kernel      in sync"), "{status}");
    assert!(
        status.contains("sysctl -w net.ipv4.fib_multipath_hash_policy=1"),
        "{status}"
    );
    let shown = cluster.podway("a", "route show");
    let line = "10.8.0.0/24 via 192.168.78.9 dev eth1 via 192.168.77.2 dev eth0 origin added\n";
    assert!(shown.contains(line), "{shown}");

    // Who starts finds them right and touches none.
    daemon.stop();
    let mut monitor = cluster.inside("a", "timeout");
    monitor.args("3 ip monitor route".split(' '));
    let monitor = monitor
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    std::thread::sleep(Duration::from_millis(300));
    let daemon = cluster.start("a", CONFIG);
    eventually("the kernel is in line", || {
        let status = cluster.podway("a", "status");
        status.contains("kernel      in sync")
    });
    let seen = String::from_utf8(monitor.wait_with_output().unwrap().stdout).unwrap();
    for prefix in PREFIXES {
        assert!(!seen.contains(prefix), "{seen}");
    }

    // A link that is down carries nothing, and the kernel says nothing of that.
    cluster.ip("a", "link set eth1 down");
    eventually("one router is left", || {
        next_hops(&cluster, "10.8.0.0/24") == ["192.168.77.2 eth0"]
    });
    cluster.ip("a", "link set eth1 up");
    eventually("both routers are back", is_whole);
    cluster.ip("a", "link del eth1");
    eventually("one router is left again", || {
        next_hops(&cluster, "10.8.0.0/24") == ["192.168.77.2 eth0"]
    });

    for (prefix, one) in [
        ("10.9.0.0/24", "10.0.2.0 podway.vx"),
        ("fd09::/64", "fd00:2:: podway.vx"),
    ] {
        cluster.podway("a", &format!("route replace {prefix} via c"));
        assert_eq!(next_hops(&cluster, prefix), [one]);
        cluster.podway("a", &format!("route replace {prefix} via b via c"));
        assert_eq!(next_hops(&cluster, prefix).len(), 2, "{prefix}");
        // Somebody takes it away; and of the IPv6 one a next hop, of which the kernel tells alone.
        cluster.ip("a", &format!("route del {prefix}"));
        eventually("the route is back", || {
            next_hops(&cluster, prefix).len() == 2
        });
        if prefix.contains("::") {
            let part = format!("route del {prefix} via fd00:2:: dev podway.vx");
            cluster.ip("a", &part);
            eventually("both next hops are back", || {
                next_hops(&cluster, prefix).len() == 2
            });
        }
        cluster.podway("a", &format!("route del {prefix}"));
        assert!(next_hops(&cluster, prefix).is_empty(), "{prefix}");
    }
    let status = cluster.podway("a", "status");
    assert!(status.contains("kernel      in sync"), "{status}");
    daemon.stop();
}

#[test]
#[ignore = "needs root: network namespaces"]
fn what_others_undo_is_done_again() {
    let cluster = Cluster::new();
    let _daemon = cluster.start("a", CONFIG);
    cluster.tell_nodes("a", "");
    cluster.podway("a", "port add veth0 --pod-ip 10.0.0.2");
    let is_whole = || {
        // The device may be missing while this looks.
        cluster.ip("a", "link").contains("podway.vx")
            && our_routes(&cluster, "a", "-4") == TUNNEL_ROUTES
            && fdb(&cluster, "a") == ["02:50:c0:a8:4d:02 dst 192.168.77.2"]
            && device_neighbors(&cluster, "a").len() == 2
    };
    assert!(is_whole());
    cluster.ip("a", "route del 10.0.1.0/24");
    eventually("the route is back", is_whole);
    // The kernel tells of a route that replaces ours, not that ours is gone. Others' routes are
    // theirs to remove.
    for (prefix, other, named) in [
        (
            "10.0.1.0/24",
            "via 192.168.77.2",
            "the kernel already has another route to 10.0.1.0/24; delete it",
        ),
        (
            "fd00:1::/64",
            "via fe80::99 dev eth0",
            "cannot add route fd00:1::/64: Invalid argument (os error 22); another route leads to \
             the router fd00:1:: by another link",
        ),
    ] {
        cluster.ip("a", &format!("route replace {prefix} {other}"));
        eventually("the other route is named", || {
            cluster.podway("a", "status").contains(named)
        });
        cluster.ip("a", &format!("route del {prefix} {other}"));
    }
    eventually("both routes are back", || {
        is_whole() && our_routes(&cluster, "a", "-6").len() == 1
    });
    let status = cluster.podway("a", "status");
    assert!(status.contains("kernel      in sync"), "{status}");
    cluster.ip("a", "neigh del 10.0.1.0 dev podway.vx");
    eventually("the neighbour is back", is_whole);
    run(cluster
        .inside("a", "bridge")
        .args("fdb del 02:50:c0:a8:4d:02 dev podway.vx".split(' ')));
    eventually("the forwarding entry is back", is_whole);
    cluster.ip("a", "link del podway.vx");
    eventually("the device is back", is_whole);
    // With a link that goes down the kernel removes IPv4 routes without a word.
    cluster.ip("a", "link set veth0 down");
    cluster.ip("a", "link set veth0 up");
    eventually("the pod's route is back", is_whole);
    cluster.ip("a", "link set eth0 mtu 1400");
    eventually("the device follows the uplink", || {
        device(&cluster, "a")["mtu"] == 1350
    });
}

#[test]
#[ignore = "needs root: network namespaces"]
fn a_route_of_others_that_says_the_same_is_enough_while_it_lasts() {
    let cluster = Cluster::new();
    for address in ["10.0.0.2", "fd00:0::2"] {
        cluster.ip("a", &format!("route add {address} dev veth0 proto static"));
    }
    let _daemon = cluster.start("a", CONFIG);
    cluster.tell_nodes("a", "");
    cluster.podway("a", "port add veth0 --pod-ip 10.0.0.2 --pod-ip fd00:0::2");
    let in_sync = || {
        let status = cluster.podway("a", "status");
        status.contains("kernel      in sync")
    };
    assert!(in_sync());
    let ours = || ["-4", "-6"].map(|family| our_routes(&cluster, "a", family));
    let tunnel6 = "fd00:1::/64 via fd00:1:: dev podway.vx";
    assert_eq!(
        ours(),
        [vec![TUNNEL_ROUTES[1].to_owned()], vec![tunnel6.to_owned()]]
    );
    for address in ["10.0.0.2", "fd00:0::2"] {
        cluster.ip("a", &format!("route del {address} dev veth0 proto static"));
    }
    let whole = || {
        ours()
            == [
                TUNNEL_ROUTES.map(str::to_owned).to_vec(),
                vec![tunnel6.to_owned(), "fd00::2 via - dev veth0".to_owned()],
            ]
    };
    eventually("ours take their places", whole);
    assert!(in_sync());

    // One that says the same, and then something else.
    cluster.ip("a", "route replace 10.0.0.2 dev veth0 proto static");
    eventually("it is enough", || {
        ours()[0] == [TUNNEL_ROUTES[1]] && in_sync()
    });
    cluster.ip("a", "route replace 10.0.0.2 via 192.168.77.2 proto static");
    eventually("it is named", || {
        let status = cluster.podway("a", "status");
        status.contains("the kernel already has another route to 10.0.0.2/32")
    });
    cluster.ip("a", "route del 10.0.0.2");
    eventually("ours is back", || whole() && in_sync());
}

#[test]
#[ignore = "needs root: network namespaces"]
fn tunnels_over_ipv6_may_come_without_checksum() {
    const OTHER: &str = "02:00:00:00:00:0b";
    let cluster = Cluster::new();
    for (node, address) in [("a", "fd77::1/64"), ("b", "fd77::2/64")] {
        cluster.ip(node, &format!("addr add {address} dev eth0 nodad"));
    }
    let daemon = cluster.start("a", CONFIG);
    cluster.podway("a", "node set a --underlay fd77::1 --pod-cidr 10.0.0.0/24");
    let set = format!("node set b --underlay fd77::2 --pod-cidr 10.0.1.0/24 --vtep-mac {OTHER}");
    cluster.podway("a", &set);
    cluster.podway("a", "port add veth0 --pod-ip 10.0.0.2");
    let accepts = || {
        // The device may be missing while this looks.
        let links = cluster.json("a", "-d link");
        let found = links.iter().find(|link| link["ifname"] == "podway.vx");
        found.is_some_and(|link| link["linkinfo"]["info_data"]["udp_zero_csum6_rx"] == true)
    };
    assert!(accepts());

    // A kernel of another make, which leaves the checksum out.
    let ours = device(&cluster, "a")["address"]
        .as_str()
        .unwrap()
        .to_owned();
    for line in [
        format!(
            "link add vxlan.b address {OTHER} mtu 1430 type vxlan id 1 dstport 4789 local fd77::2 \
             dev eth0 nolearning udp6zerocsumtx udp6zerocsumrx"
        ),
        "link set vxlan.b up".to_owned(),
        "addr add 10.0.1.0/32 dev vxlan.b".to_owned(),
        format!("neigh add 10.0.0.0 lladdr {ours} dev vxlan.b nud permanent"),
        "route add 10.0.0.0/24 via 10.0.0.0 dev vxlan.b onlink".to_owned(),
        "route add 10.0.1.2 dev veth0".to_owned(),
    ] {
        cluster.ip("b", &line);
    }
    let entry = format!("fdb add {ours} dev vxlan.b dst fd77::1");
    run(cluster.inside("b", "bridge").args(entry.split(' ')));
    assert!(cluster.pings("pod-a", "10.0.1.2", 56));

    // A device of an earlier release is made anew.
    daemon.stop();
    cluster.ip("a", "link del podway.vx");
    cluster.ip(
        "a",
        "link add podway.vx type vxlan id 1 dstport 4789 local fd77::1 dev eth0 nolearning",
    );
    assert!(!accepts());
    let _daemon = cluster.start("a", CONFIG);
    eventually("it is made anew", accepts);
    eventually("it carries as before", || {
        cluster.pings("pod-a", "10.0.1.2", 56)
    });
}

#[test]
#[ignore = "needs root: network namespaces"]
fn a_pod_that_is_not_there_is_unreachable() {
    const METRIC: u32 = 4_278_198_272;
    let cluster = Cluster::new();
    // Without the routes under test it is where packets for such pods would go.
    cluster.ip("a", "route add default via 192.168.77.2");
    cluster.ip("a", "addr add fd77::1/64 dev eth0 nodad");
    cluster.ip("a", "route add default via fd77::2 dev eth0");
    let config = format!("{CONFIG}import-kernel-table = 'main'\n");
    let daemon = cluster.start("a", &config);
    cluster.tell_nodes("a", "");
    cluster.podway("a", "port add veth0 --pod-ip 10.0.0.2 --pod-ip fd00:0::2");
    let expected = [format!("10.0.0.0/24 {METRIC}")];
    let expected_v6 = [format!("fd00::/64 {METRIC}")];
    let is_right = || {
        unreachable(&cluster, "a", "-4") == expected
            && unreachable(&cluster, "a", "-6") == expected_v6
    };
    assert!(is_right());

    let ping = |to: &str| {
        let mut command = cluster.inside("pod-a", "ping");
        let output = command.args(["-c", "1", "-W", "1", to]).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    for to in ["10.0.0.9", "fd00::9"] {
        let said = ping(to);
        assert!(said.to_lowercase().contains("unreachable"), "{said}");
    }
    // The pod that is there, and the node's address on the tunnels, are as they were.
    for to in ["10.0.0.2", "fd00::2", "10.0.0.0"] {
        assert!(cluster.pings("a", to, 56), "{to}");
    }
    let shown = cluster.podway("a", "route show");
    assert!(!shown.contains("origin kernel"), "{shown}");
    let status = cluster.podway("a", "status");
    assert!(status.contains("kernel      in sync"), "{status}");

    // Who has a better use for the prefix comes first.
    cluster.ip("a", "route add 10.0.0.0/24 via 192.168.77.2");
    let way = cluster.ip("a", "route get 10.0.0.9");
    assert!(way.contains("via 192.168.77.2"), "{way}");
    cluster.ip("a", "route del 10.0.0.0/24 via 192.168.77.2");
    assert!(is_right());
    for (family, prefix) in [("-4", "10.0.0.0/24"), ("-6", "fd00::/64")] {
        let delete = format!("{family} route del unreachable {prefix} metric {METRIC}");
        cluster.ip("a", &delete);
        eventually("it is back", is_right);
    }

    // What a predecessor left is swept, and cleaned up.
    daemon.stop();
    assert!(is_right());
    let old = format!("route add unreachable 10.0.7.0/24 metric {METRIC} proto 80");
    cluster.ip("a", &old);
    let daemon = cluster.start("a", &config);
    eventually("the old one is gone", is_right);
    let own = "node set a --underlay 192.168.77.1 --pod-cidr 10.0.8.0/24";
    cluster.podway("a", own);
    assert_eq!(
        unreachable(&cluster, "a", "-4"),
        [format!("10.0.8.0/24 {METRIC}")]
    );
    assert_eq!(unreachable(&cluster, "a", "-6"), [""; 0]);
    daemon.stop();
    let mut cleanup = cluster.inside("a", env!("CARGO_BIN_EXE_podway-control"));
    cleanup.arg("--run-dir").arg(cluster.run_dir("a"));
    run(cleanup.arg("--cleanup"));
    assert_eq!(unreachable(&cluster, "a", "-4"), [""; 0]);
}

#[test]
#[ignore = "needs root: network namespaces"]
fn what_is_in_the_way_is_named() {
    let cluster = Cluster::new();
    cluster.ip(
        "a",
        "link add flannel.1 type vxlan id 1 dstport 4789 dev eth0 local 192.168.77.1",
    );
    cluster.sysctl("a", "net.ipv4.ip_forward=0");
    cluster.ip("a", "route add 10.0.0.2 via 192.168.77.2 proto static");
    let _daemon = cluster.start("a", CONFIG);
    cluster.tell_nodes("a", "");
    cluster.podway("a", "port add veth0 --pod-ip 10.0.0.2");
    let status = cluster.podway("a", "status");
    assert!(
        status.contains("VXLAN device flannel.1 already uses vni 1"),
        "{status}"
    );
    assert!(status.contains("another route to 10.0.0.2/32"), "{status}");
    assert!(
        status.contains("sysctl -w net.ipv4.ip_forward=1"),
        "{status}"
    );
    cluster.ip("a", "link del flannel.1");
    cluster.ip("a", "route del 10.0.0.2");
    eventually("the way is free", || {
        cluster
            .podway("a", "status")
            .contains("kernel      in sync")
    });
}

#[test]
#[ignore = "needs root: network namespaces"]
fn exit_codes_and_idleness() {
    let cluster = Cluster::new();
    let code = |arguments: &str| cluster.try_podway("a", arguments).status.code().unwrap();
    assert_eq!(code("status"), 4);
    let daemon = cluster.start("a", CONFIG);
    cluster.tell_nodes("a", "");
    for (arguments, expected) in [
        ("status", 0),
        ("port add veth0 --pod-ip 10.0.0.2", 0),
        ("port add veth9 --pod-ip 10.0.0.3", 3),
        (
            "node set c --underlay 192.168.77.3 --pod-cidr 10.0.1.0/25",
            1,
        ),
        ("node set c --underlay nonsense --pod-cidr 10.0.2.0/24", 2),
        ("node del c", 3),
        ("route add 10.9.0.0/16 via c", 3),
        ("route add 10.9.0.0/16 via 192.168.77.9 dev eth9", 3),
        ("route get 8.8.8.8", 3),
        ("counters", 1),
    ] {
        assert_eq!(code(arguments), expected, "{arguments}");
    }
    let text = cluster.podway("a", "--json node list");
    let document: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(document["response"], "nodes");
    assert_eq!(document["nodes"][1]["vtep_mac"], "02:50:c0:a8:4d:02");

    let mut second = cluster.inside("a", env!("CARGO_BIN_EXE_podway-control"));
    second
        .arg("--run-dir")
        .arg(cluster.run_dir("a"))
        .arg("--config")
        .arg(cluster.directory.path().join("a.toml"))
        .arg("--state-dir")
        .arg("/nonexistent");
    let output = second.output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    let socket = cluster.run_dir("a").join("control.sock");
    assert_eq!(
        text,
        format!(
            "podway-control: another process serves {}; stop it, or give this one a --run-dir of \
             its own\n",
            socket.display()
        )
    );

    // One tick is 10 ms: under 2 % of a core, with a missing dataplane tried ten times a second.
    let before = cpu_ticks(daemon.pid());
    std::thread::sleep(Duration::from_secs(2));
    let used = cpu_ticks(daemon.pid()) - before;
    assert!(used <= 4, "{used} ticks in two seconds of nothing to do");
}

#[test]
#[ignore = "needs root: network namespaces"]
fn a_missing_capability_is_named() {
    let cluster = Cluster::new();
    let config = cluster.directory.path().join("empty.toml");
    std::fs::write(&config, "").unwrap();
    for more in [&[][..], &["--cleanup"]] {
        let mut command = cluster.inside("a", "setpriv");
        command.args(["--bounding-set", "-net_admin"]);
        command.arg(env!("CARGO_BIN_EXE_podway-control"));
        command.arg("--run-dir").arg(cluster.run_dir("a"));
        command.arg("--config").arg(&config);
        let output = command.args(more).output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        assert_eq!(
            String::from_utf8(output.stderr).unwrap(),
            "podway-control: the capability CAP_NET_ADMIN is missing, and without it the kernel's \
             routes, neighbours and VXLAN device cannot be changed; run as root, or give the unit \
             AmbientCapabilities=CAP_NET_ADMIN CAP_NET_RAW\n"
        );
        assert!(!cluster.run_dir("a").exists(), "it has touched nothing");
    }
}

#[test]
#[ignore = "needs root: network namespaces"]
fn routes_through_a_next_hop_object_go_with_it() {
    let cluster = Cluster::new();
    let daemon = cluster.start("a", "uplink = 'eth0'\nimport-kernel-table = 100\n");
    cluster.ip("a", "nexthop add id 7 via 192.168.77.2 dev eth0");
    cluster.ip("a", "route add 10.7.0.0/24 nhid 7 table 100");
    eventually("the route is taken over", || {
        our_routes(&cluster, "a", "-4") == ["10.7.0.0/24 via 192.168.77.2 dev eth0"]
    });
    // The kernel removes the route, and tells of the object alone.
    cluster.ip("a", "nexthop del id 7");
    eventually("the route is gone", || {
        our_routes(&cluster, "a", "-4").is_empty()
    });
    daemon.stop();
}

#[test]
#[ignore = "needs root: network namespaces"]
fn ways_that_could_not_be_asked_for_are_asked_for_again() {
    let cluster = Cluster::new();
    let daemon = cluster.start("a", "uplink = 'eth0'\nhealth = false\n");
    cluster.tell_nodes("a", "");
    let mtu = || {
        let text = cluster.podway("a", "--json node list");
        let document: serde_json::Value = serde_json::from_str(&text).unwrap();
        document["nodes"][1]["path"]["mtu"].as_u64().unwrap()
    };
    assert_eq!(mtu(), 1500);
    let muted = Muted::new(daemon.pid());
    cluster.ip("a", "route add 192.168.77.2/32 dev eth0 mtu 1300");
    eventually("it asks in vain", || daemon.said("cannot look up routes"));
    drop(muted);
    eventually("the new MTU", || mtu() == 1300);
}

#[test]
#[ignore = "needs root: network namespaces"]
fn what_the_kernel_told_in_vain_is_taken_anew_until_that_works() {
    let cluster = Cluster::new();
    let daemon = cluster.start("a", "uplink = 'eth0'\nhealth = false\n");
    cluster.tell_nodes("a", "");
    assert_eq!(our_routes(&cluster, "a", "-4"), [TUNNEL_ROUTES[1]]);
    let muted = Muted::new(daemon.pid());
    let pid = daemon.pid().to_string();
    let signal = |name: &str| run(std::process::Command::new("kill").args([name, &pid]));
    signal("-STOP");
    // Some 20,000 are what the socket holds.
    let lines = (0..60_000_u32).map(|number| {
        let address = std::net::Ipv4Addr::from(0x0b00_0000 + number);
        format!("route add {address} dev eth0 table 77\n")
    });
    let batch = cluster.directory.path().join("batch");
    std::fs::write(&batch, lines.collect::<String>()).unwrap();
    run(cluster.inside("a", "ip").arg("-batch").arg(&batch));
    cluster.ip("a", "route del 10.0.1.0/24");
    let sockets = run(cluster.inside("a", "cat").arg("/proc/net/netlink"));
    let drops = sockets.lines().filter_map(|line| {
        let column = line.split_whitespace().nth(8)?;
        column.parse::<u64>().ok()
    });
    assert!(drops.sum::<u64>() > 0, "nothing was lost:\n{sockets}");
    signal("-CONT");
    eventually("the first attempt fails", || {
        daemon.said("changes of the kernel were lost: cannot list the links")
    });
    drop(muted);
    eventually("the route is back", || {
        our_routes(&cluster, "a", "-4") == [TUNNEL_ROUTES[1]]
    });
    let status = cluster.podway("a", "status");
    assert!(status.contains("kernel      in sync"), "{status}");
}
