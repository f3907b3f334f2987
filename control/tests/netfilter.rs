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
        within(Duration::from_secs(7), "the table is seen", || services(node));
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
