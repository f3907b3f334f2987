//! Rules of others: what control sees of them and says about them. Rules and kernel are real.

mod common;

use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;

use common::{Cluster, Daemon, eventually};

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
