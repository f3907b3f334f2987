//! Open vSwitch as contender: its user-space datapath between the pods and the uplink.
//!
//! Each node runs an instance of its own, with its own database: a bridge `br-phy` with the uplink
//! and the node's address, and a bridge `br-int` with the pods and a VXLAN port that tunnels by
//! `br-phy`. The pods are in one subnet then, an overlay of layer 2.
//!
//! Segmentation offload (`userspace-tso-enable`) is none of the variants: with it, and with pods
//! that leave segmentation and checksums to it, no TCP connection came about through the tunnel
//! port of Open vSwitch 3.1.0; without such pods it changes nothing.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use podway_proto::config::Config;

use crate::netns::{run, wait_until};
use crate::podway::no_program;
use crate::process::Daemon;
use crate::topology::{Cluster, Node, UPLINK};
use crate::{Error, Result, overlay};

/// Where Debian puts the schema of the database.
const SCHEMA: &str = "/usr/share/openvswitch/vswitch.ovsschema";
/// The database listens within milliseconds; a loaded machine may take longer.
const START_DEADLINE: Duration = Duration::from_secs(10);

/// By what Open vSwitch has its ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ports {
    /// AF_XDP sockets in native mode, each node's served by a busy-polling thread on a core of
    /// its own.
    Afxdp,
    /// AF_XDP sockets in native mode, served by the main thread, which sleeps when idle.
    AfxdpNonpmd,
    /// AF_PACKET sockets.
    System,
}

impl Ports {
    /// Its name for these ports, as `type` of an interface.
    fn interface_type(self) -> &'static str {
        match self {
            Self::Afxdp => "afxdp",
            Self::AfxdpNonpmd => "afxdp-nonpmd",
            Self::System => "system",
        }
    }

    fn options(self) -> &'static [&'static str] {
        match self {
            // Measured best of the combinations; a veth cannot do zero-copy.
            Self::Afxdp | Self::AfxdpNonpmd => &[
                "options:xdp-mode=native",
                "options:use-need-wakeup=false",
                "options:n_rxq=1",
            ],
            Self::System => &[],
        }
    }
}

/// Open vSwitch in charge of a cluster.
#[derive(Debug)]
pub struct OpenVSwitch {
    ports: Ports,
    version: String,
    instances: Vec<Instance>,
}

impl OpenVSwitch {
    /// Puts it in charge: joins the pods to one link, starts an instance on each node, and waits
    /// until pods reach each other.
    ///
    /// # Errors
    /// When it is not installed or something does not come up; what was done is undone then.
    pub fn put(cluster: &Cluster, ports: Ports) -> Result<Self> {
        let mut this = Self {
            ports,
            version: version()?,
            instances: Vec::new(),
        };
        match this.start(cluster) {
            Ok(()) => Ok(this),
            Err(error) => {
                let logs: String = this.instances.iter().map(Instance::logs).collect();
                // The first error is the one to tell.
                let _ = this.take_away(cluster);
                Err(match error {
                    Error::Interrupted => error,
                    other => Error::Unexpected(format!("{other}\n{logs}")),
                })
            }
        }
    }

    /// Takes it away, and gives the pods and uplinks back their settings.
    ///
    /// # Errors
    /// The first of what went wrong; all the rest is done nevertheless.
    pub fn take_away(mut self, cluster: &Cluster) -> Result<()> {
        let mut results: Vec<Result<()>> = Vec::new();
        for instance in &mut self.instances {
            results.push(instance.stop());
            results.push(cluster.set_gro(&instance.node.netns));
        }
        results.push(overlay::part_pods(cluster));
        results.into_iter().collect()
    }

    /// Version, datapath and mode.
    pub fn engine(&self) -> String {
        let threads = match self.ports {
            Ports::Afxdp => "native, need-wakeup off, a polling thread per node",
            Ports::AfxdpNonpmd => "native, need-wakeup off, in the main thread",
            Ports::System => "AF_PACKET, in the main thread",
        };
        format!(
            "{}, user-space datapath, {} ports ({threads})",
            self.version,
            self.ports.interface_type()
        )
    }

    /// The switch of each node.
    pub fn pids(&self) -> Vec<u32> {
        let switches = self.instances.iter().map(|instance| &instance.switch);
        switches.filter_map(Daemon::pid).collect()
    }

    /// What has been lost so far, summed over the nodes: drops of the datapath by cause, and of
    /// the ports. Causes that never happened are left out.
    ///
    /// # Errors
    /// When an instance does not answer.
    pub fn lost(&self) -> Result<BTreeMap<String, u64>> {
        let mut lost = BTreeMap::new();
        for instance in &self.instances {
            let coverage = instance.appctl(&["coverage/show"])?;
            let ports = instance.appctl(&["dpctl/show", "-s"])?;
            for (name, count) in coverage_drops(&coverage).chain(port_drops(&ports)) {
                *lost.entry(name).or_default() += count;
            }
        }
        lost.retain(|_, count| *count > 0);
        Ok(lost)
    }

    fn start(&mut self, cluster: &Cluster) -> Result<()> {
        overlay::join_pods(cluster)?;
        for node in cluster.nodes() {
            // Joined segments are longer than what the ports take.
            let gro = ["-K", UPLINK, "gro", "off"];
            node.netns.run("ethtool", &gro)?;
            self.instances.push(Instance::start(node)?);
        }
        for instance in &mut self.instances {
            instance.configure(cluster, self.ports)?;
        }
        overlay::wait_joined(cluster)
    }
}

/// Whether Open vSwitch is there; `scripts/setup --install-peers` installs it.
pub fn installed() -> bool {
    version().is_ok()
}

fn version() -> Result<String> {
    let text = run(Command::new("ovs-vswitchd").arg("--version"))?;
    // "ovs-vswitchd (Open vSwitch) 3.1.0"
    let number = text.lines().next().and_then(|line| line.rsplit(' ').next());
    Ok(format!("Open vSwitch {}", number.unwrap_or("?")))
}

/// Open vSwitch on one node.
#[derive(Debug)]
struct Instance {
    node: Node,
    directory: PathBuf,
    // Dropped in this order: the switch goes before its database.
    switch: Daemon,
    database: Daemon,
}

impl Instance {
    fn start(node: &Node) -> Result<Self> {
        let directory = node.directory.join("ovs");
        // What an earlier instance has left: its logs and its database.
        let _ = std::fs::remove_dir_all(&directory);
        std::fs::create_dir_all(&directory)
            .map_err(Error::io(format!("make {}", directory.display())))?;
        let path = |name: &str| directory.join(name).to_string_lossy().into_owned();
        let daemon = |name: &str, args: &[String]| {
            let mut command = node.netns.command(name);
            for variable in ["OVS_RUNDIR", "OVS_DBDIR", "OVS_LOGDIR"] {
                command.env(variable, &directory);
            }
            command.args(args).arg("--no-chdir");
            Daemon::start(name, command, directory.join(format!("{name}.log")))
        };
        run(Command::new("ovsdb-tool").args(["create", &path("conf.db"), SCHEMA]))?;
        let database = daemon(
            "ovsdb-server",
            &[
                path("conf.db"),
                format!("--remote=punix:{}", path("db.sock")),
                format!("--unixctl={}", path("database.ctl")),
            ],
        )?;
        let switch = daemon(
            "ovs-vswitchd",
            &[
                format!("unix:{}", path("db.sock")),
                format!("--unixctl={}", path("switch.ctl")),
            ],
        )?;
        Ok(Self {
            node: node.clone(),
            directory,
            switch,
            database,
        })
    }

    fn configure(&mut self, cluster: &Cluster, ports: Ports) -> Result<()> {
        let settings = self.settings(ports);
        let mut init = vec!["--no-wait", "init"];
        init.extend(settings.iter().map(String::as_str));
        wait_until("Open vSwitch's database answers", START_DEADLINE, || {
            let alive = self.database.check_alive();
            let done = alive.and_then(|()| self.vsctl(&init));
            done.map(drop).map_err(|error| error.to_string())
        })?;
        self.add_bridge("br-phy", &[UPLINK], ports)?;
        let pods = self.node.pods.iter().map(|pod| pod.host_interface.as_str());
        self.add_bridge("br-int", &pods.collect::<Vec<_>>(), ports)?;
        self.add_tunnels(cluster)?;
        self.check_interfaces()?;
        let address = format!("{}/24", self.node.underlay);
        self.node.netns.ip(&[
            format!("addr del {address} dev {UPLINK}"),
            format!("addr add {address} dev br-phy"),
            "link set dev br-phy up".to_owned(),
            "link set dev br-int up".to_owned(),
        ])
    }

    /// What the switch must know from its first moment, as further words of `init`.
    fn settings(&self, ports: Ports) -> Vec<String> {
        if ports != Ports::Afxdp {
            return Vec::new();
        }
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let core = usize::from(self.node.number - 1) % cores;
        let mask = format!("other_config:pmd-cpu-mask={:x}", 1_u128 << core);
        ["--", "set", "Open_vSwitch", ".", &mask]
            .map(str::to_owned)
            .to_vec()
    }

    fn add_bridge(&self, bridge: &str, interfaces: &[&str], ports: Ports) -> Result<()> {
        let mut args = vec!["add-br", bridge, "--", "set", "bridge", bridge];
        args.extend(["datapath_type=netdev", "fail-mode=standalone"]);
        let interface_type = format!("type={}", ports.interface_type());
        for interface in interfaces {
            args.extend(["--", "add-port", bridge, interface]);
            args.extend(["--", "set", "interface", interface, &interface_type]);
            args.extend(ports.options());
        }
        self.vsctl(&args).map(drop)
    }

    fn add_tunnels(&self, cluster: &Cluster) -> Result<()> {
        let defaults = Config::default();
        for peer in cluster.nodes() {
            if peer.number == self.node.number {
                continue;
            }
            let port = format!("vx{}", peer.number);
            let options = [
                format!("options:remote_ip={}", peer.underlay),
                format!("options:key={}", defaults.vni),
                format!("options:dst_port={}", defaults.vxlan_port),
            ];
            let mut args = vec!["add-port", "br-int", &port, "--", "set", "interface", &port];
            args.push("type=vxlan");
            args.extend(options.iter().map(String::as_str));
            self.vsctl(&args)?;
        }
        Ok(())
    }

    /// `ovs-vsctl` succeeds even when an interface could not be opened.
    fn check_interfaces(&self) -> Result<()> {
        let args = ["--bare", "--columns=error", "list", "interface"];
        let errors = self.vsctl(&args)?;
        if errors.trim().is_empty() {
            Ok(())
        } else {
            Err(Error::Unexpected(format!(
                "Open vSwitch: {}",
                errors.trim()
            )))
        }
    }

    /// Stops both daemons, and gives the uplink its address back.
    fn stop(&mut self) -> Result<()> {
        // It closes its ports, which takes their XDP programs away.
        let asked = self.appctl(&["exit", "--cleanup"]);
        let ended = asked.and_then(|_| self.switch.wait_end());
        let database = self.control("database.ctl", &["exit"]);
        let database = database.and_then(|_| self.database.wait_end());
        let address = format!("addr replace {}/24 dev {UPLINK}", self.node.underlay);
        let address = self.node.netns.ip(&[address]);
        ended.and(database).and(address)?;
        no_program(&self.node)
    }

    fn appctl(&self, args: &[&str]) -> Result<String> {
        self.control("switch.ctl", args)
    }

    fn control(&self, socket: &str, args: &[&str]) -> Result<String> {
        let mut command = self.command("ovs-appctl");
        command.arg("--target").arg(self.directory.join(socket));
        run(command.args(args))
    }

    fn vsctl(&self, args: &[&str]) -> Result<String> {
        let database = self.directory.join("db.sock");
        let mut command = self.command("ovs-vsctl");
        command.arg(format!("--db=unix:{}", database.display()));
        run(command.args(args))
    }

    /// A tool that waits for a daemon. It reaches the sockets from anywhere, but ends with the
    /// namespace, or with us, only if it is in there.
    fn command(&self, tool: &str) -> Command {
        let mut command = self.node.netns.command(tool);
        command.arg("--timeout=20");
        command
    }

    fn logs(&self) -> String {
        self.database.tail() + &self.switch.tail()
    }
}

/// Lines as `datapath_drop_lock_error  0.0/sec  0.000/sec  0.0000/sec   total: 3`.
fn coverage_drops(text: &str) -> impl Iterator<Item = (String, u64)> {
    text.lines().filter_map(|line| {
        let (name, _) = line.split_once(' ')?;
        let (_, total) = line.rsplit_once("total: ")?;
        let is_drop = name.contains("drop") || name.starts_with("afxdp_");
        is_drop.then(|| Some((name.to_owned(), total.trim().parse().ok()?)))?
    })
}

/// Under each port, lines as `RX packets:7 errors:0 dropped:2 overruns:0 frame:0`.
fn port_drops(text: &str) -> impl Iterator<Item = (String, u64)> {
    text.lines().filter_map(|line| {
        let line = line.trim();
        let (direction, rest) = line.split_once(" packets:")?;
        let dropped = rest
            .split(' ')
            .find_map(|word| word.strip_prefix("dropped:"))?;
        let name = format!("port_{}_dropped", direction.to_ascii_lowercase());
        Some((name, dropped.parse().ok()?))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drops_are_found_among_other_counters() {
        let text = "Event coverage, avg rate over last: 5 seconds, last minute, last hour\n\
            datapath_drop_upcall_error   0.0/sec     0.000/sec        0.0000/sec   total: 3\n\
            netdev_sent              117.2/sec    10.017/sec        0.1669/sec   total: 601\n\
            afxdp_cq_empty             0.0/sec     0.000/sec        0.0000/sec   total: 12\n\
            98 events never hit\n";
        let found: Vec<_> = coverage_drops(text).collect();
        assert_eq!(
            found,
            [
                ("datapath_drop_upcall_error".to_owned(), 3),
                ("afxdp_cq_empty".to_owned(), 12)
            ]
        );
    }

    #[test]
    fn every_port_tells_its_drops() {
        let text = "netdev@ovs-netdev:\n  lookups: hit:9 missed:2 lost:0\n  port 1: eth1 (afxdp)\n\
            \x20   RX packets:7 errors:0 dropped:2 overruns:0 frame:0\n\
            \x20   TX packets:8 errors:0 dropped:? aborted:0 carrier:0\n\
            \x20   RX bytes:735 (735.0 B)  TX bytes:516 (516.0 B)\n";
        let found: Vec<_> = port_drops(text).collect();
        assert_eq!(found, [("port_rx_dropped".to_owned(), 2)]);
    }
}
