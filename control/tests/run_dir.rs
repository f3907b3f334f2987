//! Run directories and sockets that belong to another user: what daemon and command line say.

mod common;

use std::fs::{self, File, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Command, Output};

use common::Cluster;
use podway_proto::CONTROL_SOCKET;

const CONFIG: &str = "uplink = 'eth0'\n";
const NOBODY: u32 = 65534;

fn mode(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

/// Runs a program of ours as another user with the one capability that the daemon needs. The program
/// may be where nobody else may look, so a copy of it runs.
fn as_nobody(cluster: &Cluster, program: &str, build: impl FnOnce(&str) -> Command) -> Output {
    let name = Path::new(program).file_name().unwrap();
    let copy = cluster.directory.path().join(name);
    fs::copy(program, &copy).unwrap();
    mode(cluster.directory.path(), 0o755);
    build(copy.to_str().unwrap()).output().unwrap()
}

/// What a daemon of another user says that ends by itself.
fn refusal(cluster: &Cluster) -> String {
    let line = format!(
        "shift; exec setpriv --reuid={NOBODY} --clear-groups --inh-caps=+net_admin \
         --ambient-caps=+net_admin \"$0\" \"$@\""
    );
    let output = as_nobody(cluster, env!("CARGO_BIN_EXE_podway-control"), |program| {
        cluster.daemon("a", CONFIG, &["sh", "-c", &line, program])
    });
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    String::from_utf8(output.stderr).unwrap()
}

#[test]
#[ignore = "needs root: network namespaces"]
fn a_run_directory_of_another_user_is_refused() {
    let cluster = Cluster::new();
    let run_dir = cluster.run_dir("a");
    fs::create_dir(&run_dir).unwrap();
    mode(&run_dir, 0o755);
    let lock = run_dir.join("control.lock");
    let expected = format!(
        "podway-control: cannot make {}: Permission denied (os error 13); choose a --run-dir that \
         this user may write\n",
        lock.display()
    );
    assert_eq!(refusal(&cluster), expected);
    // Its own, in which another's daemon has run.
    chown(&run_dir, Some(NOBODY), None).unwrap();
    File::create(&lock).unwrap();
    mode(&lock, 0o644);
    let socket = run_dir.join(CONTROL_SOCKET);
    drop(UnixListener::bind(&socket).unwrap());
    assert_eq!(refusal(&cluster), expected);
    assert!(socket.exists(), "it was left as it is");
}

#[test]
#[ignore = "needs root: network namespaces"]
fn a_stale_socket_of_another_user_is_replaced_by_root() {
    let cluster = Cluster::new();
    let run_dir = cluster.run_dir("a");
    fs::create_dir(&run_dir).unwrap();
    let socket = run_dir.join(CONTROL_SOCKET);
    drop(UnixListener::bind(&socket).unwrap());
    chown(&socket, Some(NOBODY), Some(NOBODY)).unwrap();
    let daemon = cluster.start("a", CONFIG);
    let metadata = fs::metadata(&socket).unwrap();
    assert_eq!((metadata.uid(), metadata.mode() & 0o777), (0, 0o660));
    cluster.podway("a", "node list");
    daemon.stop();
}

#[test]
#[ignore = "needs root: network namespaces"]
fn a_socket_of_another_user_is_named_to_who_may_not_use_it() {
    let cluster = Cluster::new();
    let daemon = cluster.start("a", CONFIG);
    let run_dir = cluster.run_dir("a");
    mode(&run_dir, 0o755);
    let output = as_nobody(&cluster, env!("CARGO_BIN_EXE_podway"), |program| {
        let mut command = Command::new("setpriv");
        command.arg(format!("--reuid={NOBODY}"));
        command
            .arg(format!("--regid={NOBODY}"))
            .arg("--clear-groups");
        command.arg(program).arg("--run-dir").arg(&run_dir);
        command.arg("status");
        command
    });
    assert_eq!(output.status.code(), Some(4), "{output:?}");
    let expected = format!(
        "podway: cannot reach podway-control at {}: Permission denied (os error 13); run as root or \
         as a member of its group\n",
        run_dir.join(CONTROL_SOCKET).display()
    );
    assert_eq!(String::from_utf8(output.stderr).unwrap(), expected);
    daemon.stop();
}
