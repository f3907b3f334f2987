//! Rules of others: what control sees of them and says about them. Rules and kernel are real.

mod common;

use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;
use std::time::Duration;

use common::{Cluster, Daemon, eventually, run, within};

const CONFIG: &str = "uplink = 'eth0'\n";

#[test]
#[ignore = "needs root: network namespaces"]
fn an_nft_that_hangs_does_not_hang_control() {
    let cluster = Cluster::new();
    let program = cluster.directory.path().join("nft");
    std::fs::write(&program, "#!/bin/sh\nexec sleep 1000\n").unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    let line = format!(
        "PATH=$PATH:/usr/sbin:/sbin; mount --bind {} \"$(command -v nft)\"",
        program.display()
    );
    let daemon = Daemon::spawn(cluster.daemon_after("a", CONFIG, &line));
    let said = "is not known: nft has not ended within 3s, and was killed";
    eventually("the chains are asked for", || {
        cluster.podway("a", "status").contains(said)
    });
    cluster.tell_nodes("a", "");
    let pid = daemon.pid().to_string();
    let children = Command::new("ps")
        .args(["--ppid", &pid, "-o", "stat=,args="])
        .output()
        .unwrap();
    assert_eq!(String::from_utf8(children.stdout).unwrap(), "");
}

/// Has the kernel make a table of iptables without nftables, as `iptables-legacy` does by asking for
/// it (`IPT_SO_GET_INFO`, linux/netfilter_ipv4/ip_tables.h; the same number for IPv6).
fn make_legacy_table(cluster: &Cluster, node: &str, version: u8, table: &str) {
    let (family, level) = match version {
        4 => (libc::AF_INET, libc::SOL_IP),
        _ => (libc::AF_INET6, libc::SOL_IPV6),
    };
    let program = format!(
        "use Socket; socket(my $socket, {family}, SOCK_DGRAM, 0) or die $!; \
         my $info = pack('a32 x52', '{table}'); my $length = pack('i', 84); \
         syscall({}, fileno($socket), {level}, 64, $info, $length) == 0 or die $!",
        libc::SYS_getsockopt
    );
    run(cluster.inside(node, "perl").args(["-e", &program]));
}

#[test]
#[ignore = "needs root: network namespaces"]
fn tables_of_iptables_without_nftables_are_seen_though_the_kernel_tells_nothing() {
    let cluster = Cluster::new();
    let daemons = ["a", "b"].map(|node| cluster.start(node, CONFIG));
    let services = |node: &str| {
        let status = cluster.podway(node, "status");
        status.contains("connections that conntrack translates are left to the kernel")
    };
    for (node, version) in [("a", 4), ("b", 6)] {
        assert!(!services(node));
        make_legacy_table(&cluster, node, version, "nat");
        within(Duration::from_secs(7), "the table is seen", || {
            services(node)
        });
    }
    let status = cluster.podway("a", "status");
    assert!(!status.contains("-legacy"), "{status}");
    for (node, version, program) in [("a", 4, "iptables-legacy"), ("b", 6, "ip6tables-legacy")] {
        make_legacy_table(&cluster, node, version, "filter");
        let hint = format!("{program} has a filter table, which control cannot read");
        within(Duration::from_secs(7), "it is said", || {
            cluster.podway(node, "status").contains(&hint)
        });
    }
    for daemon in daemons {
        daemon.stop();
    }
}

fn nft(cluster: &Cluster, node: &str, text: &str) {
    run(cluster.inside(node, "nft").arg(text));
}

/// What `podway status` says is missing about a chain.
fn hint_of(cluster: &Cluster, node: &str, chain: &str) -> Option<String> {
    let status = cluster.podway(node, "status");
    let begin = format!("the nftables chain {chain} drops");
    let mut lines = status.lines().filter_map(|line| line.split_once(&begin));
    lines.next().map(|(_, hint)| hint.to_owned())
}

/// The command that a hint gives as an example.
fn example(hint: &str) -> &str {
    let (_, example) = hint.split_once("(for example: ").unwrap();
    example.strip_suffix(')').unwrap()
}

#[test]
#[ignore = "needs root: network namespaces"]
fn a_chain_that_drops_is_named_until_pods_have_a_way() {
    let cluster = Cluster::new();
    let config = format!("{CONFIG}auto-direct-node-routes = true\n");
    let _daemons = ["a", "b"].map(|node| cluster.start(node, &config));
    for (node, number) in [("a", 0), ("b", 1)] {
        cluster.tell_nodes(node, "");
        cluster.podway(node, &format!("port add veth0 --pod-ip 10.0.{number}.2"));
    }
    let hint = || hint_of(&cluster, "a", "inet fw forward");
    for (mode, ways) in [
        ("vxlan", r#"{ "podway.vx", "veth0" }"#),
        ("native", r#"{ "eth0", "veth0" }"#),
    ] {
        for (node, other, number) in [("a", "b", 1), ("b", "a", 0)] {
            let underlay = format!("192.168.77.{}", number + 1);
            let set = format!(
                "node set {other} --underlay {underlay} --pod-cidr 10.0.{number}.0/24 --mode {mode}"
            );
            cluster.podway(node, &set);
        }
        assert!(cluster.pings("pod-a", "10.0.1.2", 56), "{mode}");
        nft(
            &cluster,
            "a",
            "add table inet fw; add chain inet fw forward \
             { type filter hook forward priority 0; policy drop; }",
        );
        eventually("the chain is named", || hint().is_some());
        assert!(!cluster.pings("pod-a", "10.0.1.2", 56), "{mode}");
        let hint_now = hint().unwrap();
        let command = example(&hint_now);
        assert_eq!(
            command,
            format!("nft 'insert rule inet fw forward iifname {ways} oifname {ways} accept'")
        );
        run(cluster.inside("a", "sh").args(["-c", command]));
        assert!(cluster.pings("pod-a", "10.0.1.2", 56), "{mode}");
        assert!(cluster.pings("pod-b", "10.0.0.2", 56), "{mode}");
        eventually("the hint is gone", || hint().is_none());
        nft(&cluster, "a", "flush chain inet fw forward");
        eventually("it is back without the rule", || hint().is_some());
        nft(&cluster, "a", "delete table inet fw");
        eventually("it goes with the chain", || hint().is_none());
    }
}

#[test]
#[ignore = "needs root: network namespaces"]
fn invalid_packets_that_are_dropped_are_named_as_conntrack_is_set() {
    let cluster = Cluster::new();
    let _daemon = cluster.start("a", CONFIG);
    cluster.tell_nodes("a", "");
    cluster.podway("a", "port add veth0 --pod-ip 10.0.0.2");
    // As kube-proxy has it: in a chain that is called.
    nft(
        &cluster,
        "a",
        "add table ip filter; add chain ip filter KUBE-FORWARD; \
         add rule ip filter KUBE-FORWARD ct state invalid counter drop; \
         add chain ip filter FORWARD { type filter hook forward priority 0; policy accept; }; \
         add rule ip filter FORWARD counter jump KUBE-FORWARD",
    );
    let hint = || hint_of(&cluster, "a", "ip filter FORWARD");
    eventually("the rule is named", || hint().is_some());
    let setting = |name: &str, value: u8| {
        cluster.sysctl(
            "a",
            &format!("net.netfilter.nf_conntrack_tcp_{name}={value}"),
        );
    };
    for (loose, liberal, expected) in [
        (
            1,
            0,
            Some("sysctl -w net.netfilter.nf_conntrack_tcp_be_liberal=1; or: "),
        ),
        (1, 1, None),
        (
            0,
            1,
            Some(
                "sysctl -w net.netfilter.nf_conntrack_tcp_loose=1 \
                 net.netfilter.nf_conntrack_tcp_be_liberal=1; or: ",
            ),
        ),
    ] {
        setting("loose", loose);
        setting("be_liberal", liberal);
        let hint = hint();
        let command = hint.as_deref().map(example);
        let begin = command.map(|command| command.split("nft").next().unwrap());
        assert_eq!(begin, expected, "loose {loose}, liberal {liberal}");
    }
    // A rule in front of it is as good.
    let hint_now = hint().unwrap();
    let (_, command) = example(&hint_now).split_once("; or: ").unwrap();
    run(cluster.inside("a", "sh").args(["-c", command]));
    eventually("the hint is gone", || hint().is_none());
    nft(&cluster, "a", "flush chain ip filter FORWARD");
    nft(
        &cluster,
        "a",
        "add rule ip filter FORWARD ct state vmap { invalid : drop, established : accept }",
    );
    eventually("the map is named", || hint().is_some());
}
