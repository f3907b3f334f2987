//! Podway on one node.

use std::collections::BTreeMap;
use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use podway_proto::control::{NodeEntry, Response, RouteEntry, Status};
use podway_proto::dataplane::{Counters, Drops};
use podway_proto::perf::Perf;
use podway_proto::types::{MacAddr, Mode};
use rustix::process::Signal;

use super::{Options, READY_DEADLINE, program, ready};
use crate::netns::{run, wait_until};
use crate::process::{self, send, stop};
use crate::topology::{Node, Pod, UPLINK};
use crate::{Error, Result};

const DATAPLANE: &str = "podway-dataplane";
const CONTROL: &str = "podway-control";

/// Packets on their way leave the books unbalanced; they arrive in far less.
const REST_DEADLINE: Duration = Duration::from_secs(5);

/// Last byte of the address behind the first idle port; the pods' own are below.
const IDLE_HOSTS: u8 = 130;

/// Podway on one node: its two daemons, and `podway` with the node's run directory.
#[derive(Debug)]
pub struct Agent {
    node: Node,
    options: Options,
    dataplane: Option<Child>,
    control: Option<Child>,
}

impl Agent {
    /// Writes the configuration and starts both daemons.
    ///
    /// # Errors
    /// When they cannot be started. Whether they are well is told by [`Agent::wait_ready`].
    pub fn start(node: &Node, options: &Options) -> Result<Self> {
        let mut agent = Self {
            node: node.clone(),
            options: options.clone(),
            dataplane: None,
            control: None,
        };
        agent.write_config()?;
        agent.start_dataplane()?;
        agent.start_control()?;
        Ok(agent)
    }

    /// The node.
    pub fn node(&self) -> &Node {
        &self.node
    }

    /// How it is run.
    pub(super) fn options(&self) -> &Options {
        &self.options
    }

    /// Starts the dataplane, which must not be running.
    ///
    /// # Errors
    /// When the program cannot be started.
    pub fn start_dataplane(&mut self) -> Result<()> {
        let program = program(DATAPLANE)?;
        self.start_dataplane_of(&program)
    }

    /// Starts another program as the dataplane, which must not be running.
    ///
    /// # Errors
    /// When the program cannot be started.
    pub fn start_dataplane_of(&mut self, program: &Path) -> Result<()> {
        let child = self.start_daemon(DATAPLANE, program, &[])?;
        self.dataplane = Some(child);
        Ok(())
    }

    /// Starts control, which must not be running.
    ///
    /// # Errors
    /// When the program cannot be started.
    pub fn start_control(&mut self) -> Result<()> {
        let state = self.path("state");
        let program = program(CONTROL)?;
        let child = self.start_daemon(CONTROL, &program, &["--state-dir", &state])?;
        self.control = Some(child);
        Ok(())
    }

    /// Runs `podway` with arguments and gives what it prints.
    ///
    /// # Errors
    /// When it exits with a code other than 0.
    pub fn cli(&self, args: &[&str]) -> Result<String> {
        run(self.cli_command()?.args(args))
    }

    /// The command `podway` for this node, without arguments yet.
    ///
    /// # Errors
    /// When there is no such program.
    pub fn cli_command(&self) -> Result<Command> {
        // A socket in the file system is reached from every network namespace.
        let mut command = Command::new(program("podway")?);
        command.args(["--run-dir", &self.path("run")]);
        Ok(command)
    }

    /// The same inside the node's network namespace, for the commands that look at the machine
    /// themselves.
    ///
    /// # Errors
    /// When there is no such program.
    pub fn cli_inside(&self) -> Result<Command> {
        let program = program("podway")?;
        let mut command = self.node.netns.command(&program.to_string_lossy());
        command.args(["--run-dir", &self.path("run")]);
        Ok(command)
    }

    /// The configuration file of both daemons.
    pub fn config_path(&self) -> String {
        self.path("podway.toml")
    }

    /// `podway status --json`.
    ///
    /// # Errors
    /// When control cannot be reached.
    pub fn status(&self) -> Result<Status> {
        match self.ask(&["--json", "status"])? {
            Response::Status(status) => Ok(*status),
            other => Err(unexpected("status", &other)),
        }
    }

    /// `podway node list --json`.
    ///
    /// # Errors
    /// When control cannot be reached.
    pub fn nodes(&self) -> Result<Vec<NodeEntry>> {
        match self.ask(&["--json", "node", "list"])? {
            Response::Nodes { nodes } => Ok(nodes),
            other => Err(unexpected("node list", &other)),
        }
    }

    /// `podway route list --json`.
    ///
    /// # Errors
    /// When control cannot be reached.
    pub fn routes(&self) -> Result<Vec<RouteEntry>> {
        match self.ask(&["--json", "route", "list"])? {
            Response::Routes { routes } => Ok(routes),
            other => Err(unexpected("route list", &other)),
        }
    }

    /// `podway counters --json`.
    ///
    /// # Errors
    /// When control or the dataplane cannot be reached.
    pub fn counters(&self) -> Result<Counters> {
        match self.ask(&["--json", "counters"])? {
            Response::Counters { counters, .. } => Ok(counters),
            other => Err(unexpected("counters", &other)),
        }
    }

    /// `podway drops --json`.
    ///
    /// # Errors
    /// When control or the dataplane cannot be reached.
    pub fn drops(&self) -> Result<Drops> {
        match self.ask(&["--json", "drops"])? {
            Response::Drops(drops) => Ok(drops),
            other => Err(unexpected("drops", &other)),
        }
    }

    /// `podway perf --json`.
    ///
    /// # Errors
    /// When control or the dataplane cannot be reached.
    pub fn perf(&self) -> Result<Perf> {
        match self.ask(&["--json", "perf"])? {
            Response::Perf(perf) => Ok(perf),
            other => Err(unexpected("perf", &other)),
        }
    }

    /// Waits until the dataplane has everything that control was told, its ports attached, its
    /// routes resolved, its gate open, and until the kernel underneath is in line.
    ///
    /// # Errors
    /// [`Error::Timeout`] with what is missing and the ends of both logs.
    pub fn wait_ready(&mut self) -> Result<()> {
        let what = format!("Podway on {} is ready", self.node.name);
        let ports: Vec<_> = self.interfaces().collect();
        let result = wait_until(&what, READY_DEADLINE, || {
            let status = self.status().map_err(|error| error.to_string())?;
            ready::is_ready(&status, &ports)
        });
        self.with_logs(result)
    }

    /// Waits until the dataplane is at rest and gives its counters.
    ///
    /// # Errors
    /// When its books do not balance at rest: each imbalance.
    pub fn balanced(&self) -> Result<Counters> {
        let what = format!("the books of {} balance", self.node.name);
        let mut last: Option<Counters> = None;
        wait_until(&what, REST_DEADLINE, || {
            let now = self.counters().map_err(|error| error.to_string())?;
            let imbalances = now.books.imbalances();
            let moved = last.as_ref().is_none_or(|last| last.books != now.books);
            last = Some(now.clone());
            if !imbalances.is_empty() {
                Err(imbalances.join("; "))
            } else if moved {
                Err("packets are still on their way".to_owned())
            } else {
                Ok(now)
            }
        })
    }

    /// Process id of the dataplane.
    ///
    /// # Errors
    /// When it is not running.
    pub fn dataplane_pid(&self) -> Result<u32> {
        pid(self.dataplane.as_ref(), "the dataplane")
    }

    /// Process id of control.
    ///
    /// # Errors
    /// When it is not running.
    pub fn control_pid(&self) -> Result<u32> {
        pid(self.control.as_ref(), "control")
    }

    /// Version, wait mode and the engines of an interface, for people.
    ///
    /// # Errors
    /// When the dataplane cannot be asked or does not serve the interface.
    pub fn engine(&self, interface: &str) -> Result<String> {
        let link = self.status()?.dataplane;
        let status = link
            .status()
            .ok_or_else(|| Error::Unexpected("the dataplane tells no status".to_owned()))?;
        let port = status.ports.iter().find(|p| p.interface == interface);
        let port = port.ok_or_else(|| {
            Error::Unexpected(format!("the dataplane does not serve {interface}"))
        })?;
        Ok(format!(
            "podway {}, {} wait, {} worker(s); {interface}: {} XDP, {} in, {} out",
            status.version,
            status.wait,
            status.workers.len(),
            port.xdp_mode,
            port.ingress,
            port.egress
        ))
    }

    /// Packets that were redirected to the dataplane or received by it, and then lost: by ring or
    /// by drop reason, without zeros.
    ///
    /// # Errors
    /// As [`Agent::counters`].
    pub fn lost(&self) -> Result<BTreeMap<String, u64>> {
        let counters = self.counters()?;
        let rings = counters.ports.values().flat_map(|port| {
            [
                ("rx_dropped", port.rx_dropped),
                ("rx_ring_full", port.rx_ring_full),
            ]
        });
        let mut lost: BTreeMap<String, u64> = counters.drops;
        for (name, count) in rings {
            *lost.entry(name.to_owned()).or_default() += count;
        }
        lost.retain(|_, count| *count > 0);
        Ok(lost)
    }

    /// Sends a signal to the dataplane: STOP makes it hang, CONT goes on.
    ///
    /// # Errors
    /// When it is not running.
    pub fn signal_dataplane(&self, signal: Signal) -> Result<()> {
        send(self.dataplane_pid()?, signal)
    }

    /// Kills the dataplane (SIGKILL) and waits for its end.
    ///
    /// # Errors
    /// When it was not running.
    pub fn kill_dataplane(&mut self) -> Result<()> {
        kill(DATAPLANE, self.dataplane.take())
    }

    /// Kills control (SIGKILL) and waits for its end.
    ///
    /// # Errors
    /// When it was not running.
    pub fn kill_control(&mut self) -> Result<()> {
        kill(CONTROL, self.control.take())
    }

    /// Stops the dataplane in an orderly way.
    ///
    /// # Errors
    /// When it does not end, or not with success.
    pub fn stop_dataplane(&mut self) -> Result<()> {
        let child = self.dataplane.take();
        let result = child.map_or(Ok(()), |child| stop(DATAPLANE, child));
        self.with_logs(result)
    }

    /// Stops control in an orderly way. The dataplane and the kernel carry on as they are.
    ///
    /// # Errors
    /// When it does not end, or not with success.
    pub fn stop_control(&mut self) -> Result<()> {
        let child = self.control.take();
        let result = child.map_or(Ok(()), |child| stop(CONTROL, child));
        self.with_logs(result)
    }

    /// Stops both daemons and takes back what control has set in the kernel.
    ///
    /// # Errors
    /// When a daemon does not end well, or the kernel is not cleaned up.
    pub fn stop(&mut self) -> Result<()> {
        self.stop_control()?;
        self.stop_dataplane()?;
        let program = program(CONTROL)?;
        let mut command = self.node.netns.command(&program.to_string_lossy());
        run(self.common_args(&mut command).args([
            "--state-dir",
            &self.path("state"),
            "--cleanup",
        ]))?;
        let lines = self
            .idle_interfaces()
            .map(|name| format!("link del dev {name}"));
        self.node.netns.ip(&lines.collect::<Vec<_>>())
    }

    /// Tells of the port of a pod.
    ///
    /// # Errors
    /// When it is refused.
    pub fn add_pod_port(&self, pod: &Pod) -> Result<()> {
        let (ipv4, ipv6) = (pod.ipv4.to_string(), pod.ipv6.to_string());
        let interface = &pod.host_interface;
        let args = [
            "port", "add", interface, "--pod-ip", &ipv4, "--pod-ip", &ipv6,
        ];
        self.cli(&args).map(drop)
    }

    /// Makes the idle ports and tells of them.
    ///
    /// # Errors
    /// When `ip` fails or a port is refused.
    pub(super) fn add_idle_ports(&self) -> Result<()> {
        let lines = self.idle_interfaces().flat_map(|name| {
            [
                format!("link add name {name} type veth peer name {name}p"),
                format!("link set dev {name} up"),
                format!("link set dev {name}p up"),
            ]
        });
        self.node.netns.ip(&lines.collect::<Vec<_>>())?;
        let [a, b, c, _] = self.node.pod_network().octets();
        for (interface, host) in self.idle_interfaces().zip(IDLE_HOSTS..=u8::MAX) {
            let address = Ipv4Addr::new(a, b, c, host).to_string();
            let mac = MacAddr([0x0a, 0x58, a, b, c, host]).to_string();
            let args = [
                "port", "add", &interface, "--pod-ip", &address, "--mac", &mac,
            ];
            let told = self.cli(&args).map(drop);
            self.with_logs(told)?;
        }
        Ok(())
    }

    /// Leaves both daemons running when this value is dropped.
    pub fn detach(mut self) {
        self.dataplane = None;
        self.control = None;
    }

    /// The ends of both logs, for a report of what went wrong.
    pub fn logs(&self) -> String {
        let tail = |name: &str| {
            let log = self.path(&format!("{name}.log"));
            let end = process::tail(Path::new(&log));
            format!("--- {name} on {}:\n{end}\n", self.node.name)
        };
        tail(DATAPLANE) + &tail(CONTROL)
    }

    fn ask(&self, args: &[&str]) -> Result<Response> {
        let text = self.cli(args)?;
        serde_json::from_str(&text)
            .map_err(|error| Error::Unexpected(format!("podway {}: {error}", args.join(" "))))
    }

    fn write_config(&self) -> Result<()> {
        let tunnel = match self.options.mode {
            Mode::Vxlan => "vxlan",
            Mode::Native => "disabled",
        };
        let mut text = format!(
            "node-name = \"{}\"\ntunnel = \"{tunnel}\"\nuplink = \"{UPLINK}\"\n\
             underlay-address = \"{}\"\nauto-direct-node-routes = {}\n\
             ipv4-native-routing-cidr = \"10.0.0.0/16\"\n{}\n\
             [dataplane]\nworkers = {}\nwait = \"{}\"\ningress = \"{}\"\ncores = {:?}\n",
            self.node.name,
            self.options.underlay_of(&self.node),
            self.node.router.is_none(),
            self.options.config,
            self.options.workers,
            self.options.wait,
            self.options.ingress,
            self.options.cores
        );
        if let Some(frames) = self.options.frames {
            text += &format!("frames = {frames}\n");
        }
        if let Some(latency) = self.options.cpu_latency {
            text += &format!("cpu-latency-microseconds = {latency}\n");
        }
        let path = self.path("podway.toml");
        fs::write(&path, text).map_err(Error::io(path))
    }

    fn start_daemon(&self, name: &str, program: &Path, args: &[&str]) -> Result<Child> {
        let log = self.path(&format!("{name}.log"));
        let program = program.to_string_lossy();
        let mut command = if self.options.detached {
            // A session of its own: the terminal's signals are not for it.
            let mut command = Command::new("setsid");
            command.args(["ip", "netns", "exec", self.node.netns.name(), &program]);
            command.stdin(Stdio::null());
            command
        } else {
            self.node.netns.command(&program)
        };
        self.common_args(&mut command).args(args);
        command.envs(self.options.environment.iter().cloned());
        process::start(command, Path::new(&log))
    }

    fn common_args<'c>(&self, command: &'c mut Command) -> &'c mut Command {
        command.args([
            "--run-dir",
            &self.path("run"),
            "--config",
            &self.path("podway.toml"),
        ])
    }

    fn path(&self, name: &str) -> String {
        self.node
            .directory
            .join(name)
            .to_string_lossy()
            .into_owned()
    }

    /// All its ports.
    pub fn interfaces(&self) -> impl Iterator<Item = String> {
        let pods = self.node.pods.iter().map(|pod| pod.host_interface.clone());
        pods.chain([UPLINK.to_owned()])
            .chain(self.idle_interfaces())
    }

    fn idle_interfaces(&self) -> impl Iterator<Item = String> + use<> {
        (0..self.options.idle_ports).map(|number| format!("idle{number}"))
    }

    pub(crate) fn with_logs<T>(&self, result: Result<T>) -> Result<T> {
        result.map_err(|error| match error {
            Error::Interrupted => error,
            other => Error::Unexpected(format!("{other}\n{}", self.logs())),
        })
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        for mut child in self.control.take().into_iter().chain(self.dataplane.take()) {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn kill(name: &str, child: Option<Child>) -> Result<()> {
    let Some(mut child) = child else {
        return Err(Error::Unexpected(format!("{name} is not running")));
    };
    child.kill().map_err(Error::io(format!("kill {name}")))?;
    let ended = child.wait().map(drop);
    ended.map_err(Error::io(format!("wait for {name}")))
}

fn pid(child: Option<&Child>, what: &str) -> Result<u32> {
    child
        .map(Child::id)
        .ok_or_else(|| Error::Unexpected(format!("{what} is not running")))
}

fn unexpected(what: &str, response: &Response) -> Error {
    Error::Unexpected(format!("podway {what} answered {response:?}"))
}
