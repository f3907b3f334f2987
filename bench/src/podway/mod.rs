//! The daemons and the command line of Podway, used as an operator uses them.
//!
//! [`Agent`] is Podway on one node, [`Podway`] on all nodes of a cluster.

mod agent;
mod ready;

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use podway_proto::config::{IngressChoice, WaitMode};
use podway_proto::types::Mode;

pub use agent::Agent;

use crate::contender::pod_mtu;
use crate::netns::wait_until;
use crate::topology::{Cluster, Node, UPLINK};
use crate::{Error, Result, link};

/// Directory of the programs, in place of the one where this program was built.
pub const BIN_DIR_VARIABLE: &str = "PODWAY_BIN_DIR";
/// Start-up includes binds that retry for a second and sockets of an earlier process that the
/// kernel is still closing.
const READY_DEADLINE: Duration = Duration::from_secs(15);

/// How the daemons of a cluster are run.
#[derive(Debug, Clone)]
pub struct Options {
    /// How packets are sent to other nodes.
    pub mode: Mode,
    /// Whether nodes are told by their IPv6 underlay addresses.
    pub underlay6: bool,
    /// Workers of each dataplane.
    pub workers: u16,
    /// Frames of each worker; the dataplane's own default by default.
    pub frames: Option<u32>,
    /// What a worker does when there is nothing to do.
    pub wait: WaitMode,
    /// How workers receive from ports.
    pub ingress: IngressChoice,
    /// The CPU of each worker, in order; empty: not pinned.
    pub cores: Vec<usize>,
    /// Ports that each node has beside those of its pods, behind which nobody is; at most 120.
    pub idle_ports: u8,
    /// Whether nodes are told each other's PodCIDRs. Otherwise a routing daemon does that.
    pub tell_pod_cidrs: bool,
    /// Further lines of the configuration, before its first section.
    pub config: String,
    /// How long CPUs may take to wake up, in microseconds; as the machine has it by default.
    pub cpu_latency: Option<u32>,
    /// Variables of the daemons' environment, beside those of this process.
    pub environment: Vec<(String, String)>,
    /// Whether the daemons outlive this process.
    pub detached: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            mode: Mode::Vxlan,
            underlay6: false,
            workers: 1,
            frames: None,
            wait: WaitMode::Adaptive,
            ingress: IngressChoice::Auto,
            cores: Vec::new(),
            idle_ports: 0,
            tell_pod_cidrs: true,
            config: String::new(),
            cpu_latency: None,
            environment: Vec::new(),
            detached: false,
        }
    }
}

impl Options {
    /// The underlay address by which a node is told.
    pub fn underlay_of(&self, node: &Node) -> IpAddr {
        if self.underlay6 {
            node.underlay6.into()
        } else {
            node.underlay.into()
        }
    }
}

/// A program of Podway: in the directory that `PODWAY_BIN_DIR` names, or else where this program
/// is (test programs are one level below).
///
/// # Errors
/// When there is none, with what to do.
pub fn program(name: &str) -> Result<PathBuf> {
    let directory = match std::env::var_os(BIN_DIR_VARIABLE) {
        Some(directory) => PathBuf::from(directory),
        None => {
            let own = std::env::current_exe().map_err(Error::io("find this program"))?;
            let parent = own.parent().unwrap_or(Path::new("/"));
            if parent.ends_with("deps") {
                parent.parent().unwrap_or(parent).to_owned()
            } else {
                parent.to_owned()
            }
        }
    };
    let path = directory.join(name);
    if path.is_file() {
        return Ok(path);
    }
    Err(Error::Unexpected(format!(
        "there is no {}; build it by `cargo build --release` and set {BIN_DIR_VARIABLE} to \
         target/release if it is elsewhere",
        path.display()
    )))
}

/// Podway on every node of a cluster.
#[derive(Debug)]
pub struct Podway {
    agents: Vec<Agent>,
}

impl Podway {
    /// Starts the daemons on every node and tells them of all nodes and of their own ports,
    /// command by command as an operator would; waits until all of it is in place.
    ///
    /// # Errors
    /// When a command is refused or something does not come up, with the logs.
    pub fn start(cluster: &Cluster, options: &Options) -> Result<Self> {
        Self::start_on(cluster, cluster.nodes(), options)
    }

    /// Starts the daemons on some nodes only; the others must be taught by other means.
    ///
    /// # Errors
    /// As [`Podway::start`].
    pub fn start_on(cluster: &Cluster, nodes: &[Node], options: &Options) -> Result<Self> {
        let agents = nodes.iter().map(|node| Agent::start(node, options));
        let mut podway = Self {
            agents: agents.collect::<Result<_>>()?,
        };
        for agent in &mut podway.agents {
            wait_for_control(agent)?;
            let result = tell_ports(agent);
            agent.with_logs(result)?;
            agent.add_idle_ports()?;
        }
        podway.set_mode(cluster, options.mode)?;
        Ok(podway)
    }

    /// The nodes' daemons, in the order in which they were started.
    pub fn agents(&self) -> &[Agent] {
        &self.agents
    }

    /// The daemons of one of those nodes, counted from 0.
    ///
    /// # Panics
    /// When there are fewer.
    pub fn agent_mut(&mut self, node: usize) -> &mut Agent {
        &mut self.agents[node]
    }

    /// Tells every node of all nodes, to be reached in this mode, fits the pods' route MTU, and
    /// waits until it is in place.
    ///
    /// # Errors
    /// As [`Podway::start`].
    pub fn set_mode(&mut self, cluster: &Cluster, mode: Mode) -> Result<()> {
        self.tell_mode(cluster, mode)?;
        let underlay6 = self.agents.iter().any(|a| a.options().underlay6);
        let mtu = pod_mtu(cluster.spec().uplink_mtu, mode, underlay6);
        cluster.set_pod_mtu(mtu)?;
        self.wait_ready()
    }

    /// Tells every node of all nodes, to be reached in this mode, and leaves the pods as they are.
    ///
    /// # Errors
    /// When a command is refused.
    pub fn tell_mode(&self, cluster: &Cluster, mode: Mode) -> Result<()> {
        for agent in &self.agents {
            for node in cluster.nodes() {
                let result = tell_node(agent, node, mode);
                agent.with_logs(result)?;
            }
        }
        Ok(())
    }

    /// Waits until every node is ready.
    ///
    /// # Errors
    /// As [`Agent::wait_ready`].
    pub fn wait_ready(&mut self) -> Result<()> {
        self.agents.iter_mut().try_for_each(Agent::wait_ready)
    }

    /// Stops Podway on every node and takes back what it has set in the kernel.
    ///
    /// # Errors
    /// When a daemon does not end well, an XDP program stays, or the kernel is not cleaned up.
    pub fn stop(mut self) -> Result<()> {
        for agent in &mut self.agents {
            agent.stop()?;
            no_program(agent.node())?;
        }
        Ok(())
    }

    /// Leaves all daemons running.
    pub fn detach(self) {
        self.agents.into_iter().for_each(Agent::detach);
    }
}

/// Waits until no interface of a node has an XDP program; the kernel detaches a dead process'
/// programs a moment after its end.
///
/// # Errors
/// [`Error::Timeout`] with the interfaces that still have one.
pub fn no_program(node: &Node) -> Result<()> {
    let what = format!("no program is left on {}", node.name);
    wait_until(&what, Duration::from_secs(2), || {
        let programs = link::programs(&node.netns).map_err(|error| error.to_string())?;
        if programs.is_empty() {
            Ok(())
        } else {
            Err(format!("{programs:?}"))
        }
    })
}

fn wait_for_control(agent: &mut Agent) -> Result<()> {
    let what = format!("podway-control on {} answers", agent.node().name);
    let result = wait_until(&what, READY_DEADLINE, || {
        agent.status().map(drop).map_err(|error| error.to_string())
    });
    agent.with_logs(result)
}

fn tell_ports(agent: &Agent) -> Result<()> {
    agent.cli(&["port", "add", UPLINK, "--uplink"])?;
    let pods = &agent.node().pods;
    pods.iter().try_for_each(|pod| agent.add_pod_port(pod))
}

fn tell_node(agent: &Agent, node: &Node, mode: Mode) -> Result<()> {
    let tunnelled = mode == Mode::Vxlan;
    let underlay = agent.options().underlay_of(node);
    let by_ipv6 = underlay.is_ipv6();
    let (underlay, mode) = (underlay.to_string(), mode.to_string());
    let (cidr, cidr6) = (node.pod_cidr(), node.pod_cidr6());
    let mut args = vec!["node", "set", &node.name, "--underlay", &underlay];
    args.extend(["--mode", &mode]);
    if node.name != agent.node().name && !agent.options().tell_pod_cidrs {
        return agent.cli(&args).map(drop);
    }
    // The kernel has no native routes to prefixes of one IP version by a neighbour of the other: those
    // are reached by tunnels only.
    for (cidr, is_ipv6) in [(&cidr, false), (&cidr6, true)] {
        if tunnelled || node.name == agent.node().name || is_ipv6 == by_ipv6 {
            args.extend(["--pod-cidr", cidr]);
        }
    }
    agent.cli(&args).map(drop)
}
