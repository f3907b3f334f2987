//! The plainest forwarder on the crate `xsk-rs` as contender: what Podway's own ring layer is
//! measured against (`bench/xsk-rs-baseline`, a package outside the workspace).
//!
//! It carries the first pod of each of two nodes, in an overlay of layer 2, and takes every frame
//! of the uplink: the nodes themselves are unreachable meanwhile.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use podway_proto::config::Config;
use podway_proto::types::MacAddr;
use rustix::process::Signal;

use crate::netns::wait_until;
use crate::podway::{no_program, program};
use crate::process::Daemon;
use crate::topology::{Cluster, Node, UPLINK};
use crate::{Error, Result, link, overlay};

/// Name of the program.
const NAME: &str = "xsk-rs-baseline";
/// Where its own build puts it.
const OWN_BUILD: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/xsk-rs-baseline/target/release/xsk-rs-baseline"
);
/// What its build has locked, which tells the version of `xsk-rs`.
const LOCK: &str = include_str!("../xsk-rs-baseline/Cargo.lock");
/// Loading its XDP programs takes some hundred milliseconds.
const START_DEADLINE: Duration = Duration::from_secs(10);
/// It looks at its signals ten times a second at least.
const ANSWER_DEADLINE: Duration = Duration::from_secs(2);

/// The baseline in charge of a cluster.
#[derive(Debug)]
pub struct Baseline {
    forwarders: Vec<(Node, Daemon)>,
}

impl Baseline {
    /// Puts it in charge: joins the pods to one link, starts a forwarder on each node, and waits
    /// until the pods reach each other.
    ///
    /// # Errors
    /// When it is not built, the cluster has other than two nodes, or something does not come
    /// up; what was done is undone then.
    pub fn put(cluster: &Cluster) -> Result<Self> {
        let [one, two] = cluster.nodes() else {
            return Err(Error::Unexpected(format!(
                "{NAME} has one peer, and the cluster {} nodes",
                cluster.nodes().len()
            )));
        };
        let program = find()?;
        let mut this = Self {
            forwarders: Vec::new(),
        };
        match this.start(
            cluster,
            &program.to_string_lossy(),
            [(one, two), (two, one)],
        ) {
            Ok(()) => Ok(this),
            Err(error) => {
                let forwarders = this.forwarders.iter();
                let logs: String = forwarders.map(|(_, daemon)| daemon.tail()).collect();
                // The first error is the one to tell.
                let _ = this.take_away(cluster);
                Err(match error {
                    Error::Interrupted => error,
                    other => Error::Unexpected(format!("{other}\n{logs}")),
                })
            }
        }
    }

    /// Takes it away, and gives the pods back their settings.
    ///
    /// # Errors
    /// The first of what went wrong; all the rest is done nevertheless.
    pub fn take_away(mut self, cluster: &Cluster) -> Result<()> {
        let mut results: Vec<Result<()>> = Vec::new();
        for (node, daemon) in &mut self.forwarders {
            results.push(daemon.stop());
            results.push(no_program(node));
        }
        results.push(overlay::part_pods(cluster));
        results.into_iter().collect()
    }

    /// Version and mode.
    pub fn engine(&self) -> String {
        format!(
            "xsk-rs {}, libxdp's XDP program in native mode, copy mode, one thread with poll",
            locked_version(LOCK, "xsk-rs").unwrap_or("?")
        )
    }

    /// The forwarder of each node.
    pub fn pids(&self) -> Vec<u32> {
        let daemons = self.forwarders.iter().map(|(_, daemon)| daemon);
        daemons.filter_map(Daemon::pid).collect()
    }

    /// What has been lost so far, summed over the nodes, by cause: `pod_` and `uplink_` followed
    /// by `tx_dropped` (no frame or ring entry to send with), `rx_ring_full`, `rx_dropped` and
    /// `fill_ring_empty` (told by the kernel), and `refused` (not for this tunnel). Causes that
    /// never happened are left out.
    ///
    /// # Errors
    /// When a forwarder does not answer.
    pub fn lost(&self) -> Result<BTreeMap<String, u64>> {
        let mut lost = BTreeMap::new();
        for (node, daemon) in &self.forwarders {
            let before = daemon.log()?.lines().count();
            daemon.signal(Signal::USR1)?;
            let what = format!("{NAME} on {} tells its counters", node.name);
            let line = wait_until(&what, ANSWER_DEADLINE, || {
                let log = daemon.log().map_err(|error| error.to_string())?;
                let line = log.split_inclusive('\n').nth(before);
                let line = line.filter(|line| line.ends_with('\n'));
                line.map(str::to_owned).ok_or_else(|| daemon.tail())
            })?;
            for (name, count) in counters(&line) {
                *lost.entry(name).or_default() += count;
            }
        }
        lost.retain(|_, count| *count > 0);
        Ok(lost)
    }

    fn start(&mut self, cluster: &Cluster, program: &str, ends: [(&Node, &Node); 2]) -> Result<()> {
        overlay::join_pods(cluster)?;
        for (node, peer) in ends {
            self.forwarders
                .push((node.clone(), forwarder(program, node, peer)?));
        }
        for (node, daemon) in &mut self.forwarders {
            let what = format!("{NAME} on {} is ready", node.name);
            wait_until(&what, START_DEADLINE, || {
                daemon.check_alive().map_err(|error| error.to_string())?;
                let log = daemon.log().map_err(|error| error.to_string())?;
                let is_ready = log.lines().any(|line| line == "ready");
                is_ready.then_some(()).ok_or_else(|| daemon.tail())
            })?;
        }
        overlay::wait_joined(cluster)
    }
}

/// Whether the baseline has been built.
pub fn installed() -> bool {
    find().is_ok()
}

fn find() -> Result<PathBuf> {
    let own = PathBuf::from(OWN_BUILD);
    if own.is_file() {
        return Ok(own);
    }
    // Elsewhere when CARGO_TARGET_DIR says so, or with installed programs.
    program(NAME).map_err(|_| {
        Error::Unexpected(format!(
            "there is no {NAME}; build it by `scripts/setup --install-peers` and `cargo build \
             --release --manifest-path bench/{NAME}/Cargo.toml`"
        ))
    })
}

fn forwarder(program: &str, node: &Node, peer: &Node) -> Result<Daemon> {
    let defaults = Config::default();
    let mac = |node: &Node| -> Result<MacAddr> { link::mac(&node.netns, UPLINK) };
    let mut command = node.netns.command(program);
    command.args(["--pod-interface", &node.pods[0].host_interface]);
    command.args(["--uplink", UPLINK]);
    command.args(["--local-ip", &node.underlay.to_string()]);
    command.args(["--local-mac", &mac(node)?.to_string()]);
    command.args(["--peer-ip", &peer.underlay.to_string()]);
    command.args(["--peer-mac", &mac(peer)?.to_string()]);
    command.args(["--vni", &defaults.vni.to_string()]);
    command.args(["--udp-port", &defaults.vxlan_port.to_string()]);
    let log = node.directory.join(format!("{NAME}.log"));
    // An earlier one's "ready" is not this one's.
    let _ = std::fs::remove_file(&log);
    Daemon::start(NAME, command, log)
}

fn counters(line: &str) -> impl Iterator<Item = (String, u64)> {
    line.split_whitespace().filter_map(|word| {
        let (name, count) = word.split_once('=')?;
        Some((name.to_owned(), count.parse().ok()?))
    })
}

fn locked_version<'l>(lock: &'l str, package: &str) -> Option<&'l str> {
    let name = format!("name = \"{package}\"");
    let mut lines = lock.lines().skip_while(|line| *line != name).skip(1);
    let version = lines.next()?.strip_prefix("version = \"")?;
    version.strip_suffix('"')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_the_locked_one() {
        assert!(locked_version(LOCK, "xsk-rs").unwrap().starts_with("0.11."));
        assert_eq!(locked_version(LOCK, "xsk"), None);
    }

    #[test]
    fn counters_are_words() {
        let found: Vec<_> = counters("pod_refused=0 uplink_tx_dropped=12 x\n").collect();
        assert_eq!(
            found,
            [
                ("pod_refused".to_owned(), 0),
                ("uplink_tx_dropped".to_owned(), 12)
            ]
        );
    }
}
