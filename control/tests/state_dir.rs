//! State directories and files that cannot be used: what the daemon says, and how they are mended.

mod common;

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown};
use std::process::Command;

use common::{Cluster, Daemon};

const CONFIG: &str = "uplink = 'eth0'\n";
const NOBODY: u32 = 65534;

/// What a daemon says that ends by itself.
fn refusal(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let said = String::from_utf8(output.stderr).unwrap();
    let said = said.strip_prefix("podway-control: ").unwrap_or(&said);
    said.trim_end().to_owned()
}

#[test]
#[ignore = "needs root: network namespaces"]
fn a_read_only_directory_is_refused() {
    let cluster = Cluster::new();
    let line = "mount -t tmpfs -o ro none \"$1\"";
    let said = refusal(&mut cluster.daemon_after("a", CONFIG, line));
    let expected = format!(
        "cannot open {}/lock: Read-only file system (os error 30); its file system is read-only: \
         mount it read-write, or name another directory with --state-dir",
        cluster.state_dir("a").display()
    );
    assert_eq!(said, expected);
}

#[test]
#[ignore = "needs root: network namespaces"]
fn what_belongs_to_another_user_is_refused() {
    let cluster = Cluster::new();
    let state = cluster.state_dir("a");
    fs::create_dir_all(&state).unwrap();
    let mode = |path: &std::path::Path, mode| {
        fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    };
    // The program may be where nobody else may look.
    let program = cluster.directory.path().join("podway-control");
    fs::copy(env!("CARGO_BIN_EXE_podway-control"), &program).unwrap();
    mode(cluster.directory.path(), 0o755);
    mode(&state, 0o750);
    mode(&cluster.run_dir("a"), 0o750);
    chown(cluster.run_dir("a"), Some(NOBODY), None).unwrap();
    let line = format!(
        "shift; exec setpriv --reuid={NOBODY} --clear-groups --inh-caps=+net_admin \
         --ambient-caps=+net_admin \"$0\" \"$@\""
    );
    let program = program.to_str().unwrap();
    let daemon = || cluster.daemon("a", CONFIG, &["sh", "-c", &line, program]);
    let name = state.display();
    let remedy = format!(
        "and podway-control runs as user {NOBODY}: give it to that user by chown, or name another \
         directory with --state-dir"
    );
    let said = refusal(&mut daemon());
    let expected = format!(
        "cannot open {name}/lock: Permission denied (os error 13); {name} is user 0's with mode \
         0750, {remedy}"
    );
    assert_eq!(said, expected);

    chown(&state, Some(NOBODY), None).unwrap();
    fs::write(state.join("state.json"), "").unwrap();
    mode(&state.join("state.json"), 0o600);
    let said = refusal(&mut daemon());
    let expected = format!(
        "cannot read {name}/state.json: Permission denied (os error 13); {name}/state.json is user \
         0's with mode 0600, {remedy}"
    );
    assert_eq!(said, expected);
}

#[test]
#[ignore = "needs root: network namespaces"]
fn a_second_daemon_on_the_same_state_is_refused() {
    let cluster = Cluster::new();
    let daemon = cluster.start("a", CONFIG);
    cluster.tell_nodes("a", "");
    let mut second = cluster.inside("b", env!("CARGO_BIN_EXE_podway-control"));
    second.arg("--run-dir").arg(cluster.run_dir("b"));
    second.arg("--state-dir").arg(cluster.state_dir("a"));
    second
        .arg("--config")
        .arg(cluster.directory.path().join("a.toml"));
    let expected = format!(
        "another podway-control keeps its state in {}; stop it, or give this one a --state-dir of \
         its own",
        cluster.state_dir("a").display()
    );
    assert_eq!(refusal(&mut second), expected);
    second.arg("--restore-state");
    assert_eq!(refusal(&mut second), expected);
    let before = cluster.podway("a", "export");
    // However it ends, the next one has the directory.
    daemon.kill();
    let _daemon = cluster.start("a", CONFIG);
    assert_eq!(cluster.podway("a", "export"), before);
}

#[test]
#[ignore = "needs root: network namespaces"]
fn a_damaged_file_is_refused_and_comes_back_by_the_command_that_is_told() {
    let cluster = Cluster::new();
    let daemon = cluster.start("a", CONFIG);
    cluster.tell_nodes("a", "");
    daemon.stop();
    let daemon = cluster.start("a", CONFIG);
    cluster.podway("a", "route add 10.8.0.0/16 via b");
    let export = cluster.podway("a", "export");
    daemon.stop();

    // A digit of a node's address.
    let path = cluster.state_dir("a").join("state.json");
    let damaged = fs::read_to_string(&path)
        .unwrap()
        .replace("192.168.77.2", "192.168.77.3");
    fs::write(&path, &damaged).unwrap();
    let said = refusal(&mut cluster.daemon("a", CONFIG, &[]));
    let directory = cluster.state_dir("a");
    let command = format!(
        "podway-control --state-dir {} --restore-state",
        directory.display()
    );
    let is = "what state.json.previous says and the change after it, which is all that was \
              acknowledged";
    let expected = format!(
        "the state file {} is damaged in line 3: its checksum is another's: it was changed, or a \
         line before it is missing; it was left as it is. To go on with {is}, run\n  {command}",
        path.display()
    );
    assert_eq!(said, expected);
    assert_eq!(fs::read_to_string(&path).unwrap(), damaged);

    let mut words = command.split(' ').skip(1);
    let mut restore = Command::new(env!("CARGO_BIN_EXE_podway-control"));
    let said = common::run(restore.args(words.by_ref()));
    let kept = directory.join("state.json.damaged");
    let expected = format!(
        "{} is now {is}; the damaged file is {}\n",
        path.display(),
        kept.display()
    );
    assert_eq!(said, expected);
    assert_eq!(fs::read_to_string(kept).unwrap(), damaged);
    let daemon = Daemon::spawn(cluster.daemon("a", CONFIG, &[]));
    assert_eq!(cluster.podway("a", "export"), export);
    daemon.stop();
}
