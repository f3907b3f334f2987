//! Nodes and pods in network namespaces, with daemons in them.

#![allow(dead_code, reason = "each test file uses a part of this")]

use std::fs::Permissions;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use podway_proto::CONTROL_SOCKET;
use podway_proto::client::Client;
use serde_json::Value;

static CLUSTERS: AtomicU32 = AtomicU32::new(0);

/// Two nodes with a pod each; see README.md beside this folder.
pub(crate) struct Cluster {
    prefix: String,
    namespaces: Vec<String>,
    pub(crate) directory: tempfile::TempDir,
}

impl Cluster {
    pub(crate) fn new() -> Self {
        let number = CLUSTERS.fetch_add(1, Ordering::Relaxed);
        let mut cluster = Self {
            prefix: format!("pwc-{}-{number}", std::process::id()),
            namespaces: Vec::new(),
            directory: tempfile::tempdir().unwrap(),
        };
        for name in ["a", "b", "pod-a", "pod-b"] {
            cluster.add_namespace(name);
        }
        let peer = cluster.namespace("b");
        cluster.ip(
            "a",
            &format!("link add eth0 type veth peer name eth0 netns {peer}"),
        );
        for (node, address) in [("a", "192.168.77.1/24"), ("b", "192.168.77.2/24")] {
            cluster.sysctl(node, "net.ipv4.ip_forward=1");
            cluster.sysctl(node, "net.ipv6.conf.all.forwarding=1");
            cluster.ip(node, &format!("addr add {address} dev eth0"));
            cluster.ip(node, "link set eth0 up");
        }
        cluster.add_pod("a", 0);
        cluster.add_pod("b", 1);
        cluster
    }

    fn add_namespace(&mut self, name: &str) {
        let full = format!("{}-{name}", self.prefix);
        run(&mut ip_command(&format!("netns add {full}")));
        self.namespaces.push(full);
        self.ip(name, "link set lo up");
    }

    /// Connects the pod of `node`; it reaches everything through the node.
    fn add_pod(&self, node: &str, number: u8) {
        let pod = format!("pod-{node}");
        let netns = self.namespace(&pod);
        self.ip(
            node,
            &format!("link add veth0 type veth peer name eth0 netns {netns}"),
        );
        // A node's end without IPv4 address answers ARP for the link-local router of its pod.
        self.sysctl(node, "net.ipv4.conf.veth0.proxy_arp=1");
        self.sysctl(node, "net.ipv4.neigh.veth0.proxy_delay=0");
        self.ip(node, "addr add 169.254.1.1/32 dev veth0");
        self.ip(node, "addr add fe80::1/64 dev veth0 nodad");
        self.ip(node, "link set veth0 up");
        self.ip(&pod, "link set eth0 up mtu 1450");
        self.ip(&pod, &format!("addr add 10.0.{number}.2/32 dev eth0"));
        self.ip(
            &pod,
            &format!("addr add fd00:{number}::2/128 dev eth0 nodad"),
        );
        self.ip(&pod, "route add 169.254.1.1 dev eth0");
        self.ip(&pod, "route add default via 169.254.1.1");
        self.ip(&pod, "route add default via fe80::1 dev eth0");
    }

    pub(crate) fn namespace(&self, name: &str) -> String {
        format!("{}-{name}", self.prefix)
    }

    /// Runs `ip` with `arguments` in a namespace and gives what it prints.
    pub(crate) fn ip(&self, namespace: &str, arguments: &str) -> String {
        run(&mut ip_command(&format!(
            "-n {} {arguments}",
            self.namespace(namespace)
        )))
    }

    /// What `ip -j` prints.
    pub(crate) fn json(&self, namespace: &str, arguments: &str) -> Vec<Value> {
        let text = self.ip(namespace, &format!("-j {arguments}"));
        serde_json::from_str(if text.trim().is_empty() { "[]" } else { &text }).unwrap()
    }

    pub(crate) fn sysctl(&self, namespace: &str, setting: &str) {
        run(self.inside(namespace, "sysctl").args(["-qw", setting]));
    }

    /// A command in a namespace.
    pub(crate) fn inside(&self, namespace: &str, program: &str) -> Command {
        let mut command = ip_command(&format!("netns exec {}", self.namespace(namespace)));
        command.arg(program);
        command
    }

    /// Whether every one of three pings of `bytes` is answered.
    pub(crate) fn pings(&self, from: &str, to: &str, bytes: u32) -> bool {
        let bytes = bytes.to_string();
        let arguments = ["-c", "3", "-i", "0.05", "-W", "1", "-s", &bytes, to];
        self.inside(from, "ping")
            .args(arguments)
            .output()
            .unwrap()
            .status
            .success()
    }

    pub(crate) fn run_dir(&self, node: &str) -> PathBuf {
        self.directory.path().join(node)
    }

    pub(crate) fn state_dir(&self, node: &str) -> PathBuf {
        self.run_dir(node).join("state")
    }

    /// Starts the daemon of a node and waits until it serves.
    pub(crate) fn start(&self, node: &str, config: &str) -> Daemon {
        Daemon::spawn(self.daemon(node, config, &[]))
    }

    /// The command that starts the daemon of a node, behind the words of another if there are any.
    /// All become one process after the other, so its id is the daemon's own.
    pub(crate) fn daemon(&self, node: &str, config: &str, before: &[&str]) -> Command {
        let path = self.directory.path().join(format!("{node}.toml"));
        std::fs::write(&path, format!("node-name = '{node}'\n{config}")).unwrap();
        let program = env!("CARGO_BIN_EXE_podway-control");
        let words = [before, &[program]].concat();
        let mut command = self.inside(node, words[0]);
        command.args(&words[1..]);
        command.arg("--run-dir").arg(self.run_dir(node));
        command.arg("--config").arg(&path);
        command.arg("--state-dir").arg(self.state_dir(node));
        command
    }

    /// The same behind a line of shell in a mount namespace of its own, such as one that mounts
    /// something on the state's directory, `$1`.
    pub(crate) fn daemon_after(&self, node: &str, config: &str, line: &str) -> Command {
        let directory = self.state_dir(node);
        std::fs::create_dir_all(&directory).unwrap();
        // Or the daemon would warn of it.
        std::fs::set_permissions(self.run_dir(node), Permissions::from_mode(0o750)).unwrap();
        let line = format!("set -e; {line}; shift; exec \"$@\"");
        // `ip netns exec` makes the mount namespace.
        let directory = directory.to_str().unwrap();
        self.daemon(node, config, &["sh", "-c", &line, "sh", directory])
    }

    /// A client of a node's daemon.
    pub(crate) fn client(&self, node: &str) -> Client {
        let socket = self.run_dir(node).join(CONTROL_SOCKET);
        Client::connect(&socket, Duration::from_secs(10)).unwrap()
    }

    /// Runs the command line against a node's daemon.
    pub(crate) fn try_podway(&self, node: &str, arguments: &str) -> Output {
        let mut command = self.inside(node, env!("CARGO_BIN_EXE_podway"));
        command.arg("--run-dir").arg(self.run_dir(node));
        command.args(arguments.split_whitespace()).output().unwrap()
    }

    /// The same for a command that has to succeed.
    pub(crate) fn podway(&self, node: &str, arguments: &str) -> String {
        let output = self.try_podway(node, arguments);
        assert!(output.status.success(), "podway {arguments}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Tells a node of both nodes.
    pub(crate) fn tell_nodes(&self, node: &str, options: &str) {
        for (name, number) in [("a", 0), ("b", 1)] {
            let underlay = format!("192.168.77.{}", number + 1);
            self.podway(
                node,
                &format!(
                    "node set {name} --underlay {underlay} --pod-cidr 10.0.{number}.0/24 \
                     --pod-cidr fd00:{number}::/64 {options}"
                ),
            );
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for namespace in &self.namespaces {
            let _ = ip_command(&format!("netns del {namespace}")).status();
        }
    }
}

/// A running `podway-control`; killed when dropped.
pub(crate) struct Daemon {
    child: Child,
    /// What it has logged since it is ready.
    log: Arc<Mutex<String>>,
}

impl Daemon {
    pub(crate) fn spawn(mut command: Command) -> Self {
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let mut log = BufReader::new(child.stderr.take().unwrap());
        let mut daemon = Self {
            child,
            log: Arc::default(),
        };
        let mut line = String::new();
        while !line.contains("ready") {
            line.clear();
            if log.read_line(&mut line).unwrap() == 0 {
                panic!("the daemon ended: {:?}", daemon.child.wait());
            }
            eprint!("{line}");
        }
        let all = Arc::clone(&daemon.log);
        std::thread::spawn(move || {
            for line in log.lines().map_while(Result::ok) {
                eprintln!("{line}");
                all.lock().unwrap().push_str(&line);
            }
        });
        daemon
    }

    /// Whether it has logged `words`.
    pub(crate) fn said(&self, words: &str) -> bool {
        self.log.lock().unwrap().contains(words)
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Stops it in an orderly way and asserts that it ends well.
    pub(crate) fn stop(mut self) {
        let pid = self.pid().to_string();
        run(Command::new("kill").args(["-TERM", &pid]));
        let status = self.child.wait().unwrap();
        assert!(status.success(), "{status}");
    }
}

impl Daemon {
    /// Ends it without a word.
    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// A path as the daemon sees it.
    pub(crate) fn sees(&self, path: &Path) -> PathBuf {
        let root = PathBuf::from(format!("/proc/{}/root", self.pid()));
        root.join(path.strip_prefix("/").unwrap())
    }
}

/// A process whose netlink requests fail, and whatever else it sends by `sendto`; until dropped.
pub(crate) struct Muted {
    tracer: Child,
    /// Open as long as the tracer may write to it.
    _stderr: BufReader<ChildStderr>,
}

impl Muted {
    pub(crate) fn new(pid: u32) -> Self {
        let pid = pid.to_string();
        let inject = ["-e", "trace=sendto", "-e", "inject=sendto:error=ENOBUFS"];
        let mut command = Command::new("strace");
        command.args(["-o", "/dev/null", "-p", &pid]).args(inject);
        let mut tracer = command.stderr(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        let mut stderr = BufReader::new(tracer.stderr.take().unwrap());
        stderr.read_line(&mut line).unwrap();
        assert!(line.contains("attached"), "{line}");
        Self {
            tracer,
            _stderr: stderr,
        }
    }
}

impl Drop for Muted {
    fn drop(&mut self) {
        // Killed with SIGKILL it might leave the process stopped.
        let pid = self.tracer.id().to_string();
        let _ = Command::new("kill").args(["-TERM", &pid]).status();
        let _ = self.tracer.wait();
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn ip_command(arguments: &str) -> Command {
    let mut command = Command::new("ip");
    command.args(arguments.split_whitespace());
    command
}

/// Runs a command that has to succeed and gives what it prints.
pub(crate) fn run(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// Waits up to five seconds until `is_so`.
pub(crate) fn eventually(what: &str, is_so: impl FnMut() -> bool) {
    within(Duration::from_secs(5), what, is_so);
}

/// Waits until `is_so`, for at most `limit`.
pub(crate) fn within(limit: Duration, what: &str, mut is_so: impl FnMut() -> bool) {
    let end = Instant::now() + limit;
    while !is_so() {
        assert!(Instant::now() < end, "not within {limit:?}: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Our unicast routes by the parts that matter here: `prefix via gateway dev interface`.
pub(crate) fn our_routes(cluster: &Cluster, node: &str, family: &str) -> Vec<String> {
    let text = |route: &Value| {
        let field = |name: &str| route[name].as_str().unwrap_or("-").to_owned();
        format!(
            "{} via {} dev {}",
            field("dst"),
            field("gateway"),
            field("dev")
        )
    };
    let mut routes: Vec<String> = cluster
        .json(node, &format!("{family} route show proto 80 type unicast"))
        .iter()
        .map(text)
        .collect();
    routes.sort();
    routes
}

/// Prefixes that are unreachable by routes of ours, each with the route's metric.
pub(crate) fn unreachable(cluster: &Cluster, node: &str, family: &str) -> Vec<String> {
    let arguments = format!("{family} route show proto 80 type unreachable");
    let routes = cluster.json(node, &arguments);
    let text = |route: &Value| format!("{} {}", route["dst"].as_str().unwrap(), route["metric"]);
    routes.iter().map(text).collect()
}

/// The forwarding database of the VXLAN device: `MAC dst address`.
pub(crate) fn fdb(cluster: &Cluster, node: &str) -> Vec<String> {
    let text = run(cluster
        .inside(node, "bridge")
        .args(["-j", "fdb", "show", "dev", "podway.vx"]));
    let entries: Vec<Value> = serde_json::from_str(&text).unwrap();
    let text = |e: &Value| {
        format!(
            "{} dst {}",
            e["mac"].as_str().unwrap(),
            e["dst"].as_str().unwrap()
        )
    };
    entries.iter().map(text).collect()
}

/// `address MAC` of each permanent neighbour on the VXLAN device.
pub(crate) fn device_neighbors(cluster: &Cluster, node: &str) -> Vec<String> {
    let text = |n: &Value| {
        format!(
            "{} {}",
            n["dst"].as_str().unwrap(),
            n["lladdr"].as_str().unwrap()
        )
    };
    let mut neighbors: Vec<String> = cluster
        .json(node, "neigh show dev podway.vx nud permanent")
        .iter()
        .map(text)
        .collect();
    neighbors.sort();
    neighbors
}

/// CPU time of a process in clock ticks (`utime` and `stime` of proc(5)).
pub(crate) fn cpu_ticks(pid: u32) -> u64 {
    let stat =
        std::fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("stat")).unwrap();
    let (_, fields) = stat.rsplit_once(") ").unwrap();
    let fields: Vec<&str> = fields.split(' ').collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}
