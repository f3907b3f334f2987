//! How Podway bears many routes and nodes: time until everything is in place, time of one change,
//! memory.
//!
//! Both daemons of one node run as they do in production; the other nodes are behind a router and
//! do not exist. The state file is written beforehand, so that a start has everything to do; it is
//! of the oldest form that control reads, and a cold start converts it.
//!
//! - *cold*: from the start of both daemons until the workers have every route and the gate is
//!   open, and until the kernel has every route of its own, read from its trie.
//! - *dataplane again*, *control again*: the same after one of the two was ended and started.
//! - *change*: from sending `route-add` or `route-del` until it is answered, and until every worker
//!   has adopted tables with or without the route, as the dataplane's own status tells.

use std::fs::{self, File};
use std::io::Write;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::time::{Duration, Instant};

use podway_proto::client;
use podway_proto::control::{self, NodeSpec, PortRoleSpec, RouteSpec, ViaSpec};
use podway_proto::{CONTROL_SOCKET, DATAPLANE_SOCKET, VERSION, dataplane};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::podway::{Agent, Options};
use crate::suite::Environment;
use crate::topology::{Cluster, ClusterSpec, Node};
use crate::{Error, Result, cleanup};

/// Nobody waits longer than this for a table.
const DEADLINE: Duration = Duration::from_secs(300);
/// Underlay addresses of the nodes that do not exist: this and those after it.
const NODES: Ipv4Addr = Ipv4Addr::new(172, 16, 0, 1);
/// PodCIDRs of the nodes that do not exist: /24 from here.
const POD_CIDRS: Ipv4Addr = Ipv4Addr::new(10, 128, 0, 0);
/// Routes through them: /30 from here.
const ROUTES: Ipv4Addr = Ipv4Addr::new(100, 64, 0, 0);
/// Most routes: what is left of the dataplane's tables beside the nodes' own, and one to change.
pub const MAX_ROUTES: u32 = (1 << 20) - MAX_NODES - 8;
/// Most nodes.
pub const MAX_NODES: u32 = 16_384;

/// What to measure.
#[derive(Debug, Clone)]
pub struct Scale {
    /// Numbers of routes, one row each; at most [`MAX_ROUTES`].
    pub routes: Vec<u32>,
    /// Other nodes, each with a PodCIDR; at most [`MAX_NODES`].
    pub nodes: u32,
    /// Single changes of a route.
    pub changes: u32,
}

/// What was measured, and where.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ScaleReport {
    /// The machine and the program.
    pub environment: Environment,
    /// By number of routes.
    pub rows: Vec<Row>,
}

/// What was measured with one number of routes. Times are in milliseconds, memory in KiB of
/// resident memory (`VmRSS`).
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Row {
    /// Routes through other nodes, beside one PodCIDR each.
    pub routes: u32,
    /// Other nodes.
    pub nodes: u32,
    /// Cold start until the workers have everything.
    pub cold_workers: f64,
    /// Cold start until the kernel has everything.
    pub cold_kernel: f64,
    /// Until the workers have everything after the dataplane was killed and started.
    pub dataplane_again: f64,
    /// Until control has taken up what is there after it was stopped and started.
    pub control_again: f64,
    /// One changed route until it is acknowledged.
    pub acknowledged: Quantiles,
    /// One changed route until all workers read it.
    pub adopted: Quantiles,
    /// A line appended to a file in the state file's directory and forced to the disk: what of
    /// `acknowledged` is the disk's.
    pub disk: Quantiles,
    /// Memory of control.
    pub control_memory: u64,
    /// Memory of the dataplane, the frames of its workers included.
    pub dataplane_memory: u64,
}

/// Median, 99th percentile and greatest of a sample.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Quantiles {
    /// The median.
    pub median: f64,
    /// The 99th percentile.
    pub p99: f64,
    /// The greatest.
    pub most: f64,
}

impl Quantiles {
    fn of(mut sample: Vec<f64>) -> Self {
        sample.sort_by(f64::total_cmp);
        let at = |part: usize| {
            let rank = (sample.len() * part).div_ceil(100).saturating_sub(1);
            sample.get(rank).copied().unwrap_or(f64::NAN)
        };
        Self {
            median: at(50),
            p99: at(99),
            most: at(100),
        }
    }
}

impl Scale {
    /// Measures, and writes a row to `out` as soon as it is there.
    ///
    /// # Errors
    /// When a daemon cannot be started or does not get there, with the ends of its logs.
    pub fn run(&self, out: &mut impl Write) -> Result<ScaleReport> {
        let print = Error::io("print");
        writeln!(
            out,
            "{:>8} {:>6} | full sync, ms: cold      kernel  dataplane    control | one change, ms: \
             acknowledged p50/p99    at the workers p50/p99/max   the disk p50/p99 | MiB: control  \
             dataplane",
            "routes", "nodes"
        )
        .map_err(print)?;
        let mut rows = Vec::new();
        for &routes in &self.routes {
            let row = self.measure(routes)?;
            writeln!(
                out,
                "{:>8} {:>6} | {:>19.0} {:>11.0} {:>10.0} {:>10.0} | {:>29.2}/{:>5.2} \
                 {:>17.2}/{:>5.2}/{:>5.2} {:>12.2}/{:>5.2} | {:>12} {:>10}",
                row.routes,
                row.nodes,
                row.cold_workers,
                row.cold_kernel,
                row.dataplane_again,
                row.control_again,
                row.acknowledged.median,
                row.acknowledged.p99,
                row.adopted.median,
                row.adopted.p99,
                row.adopted.most,
                row.disk.median,
                row.disk.p99,
                row.control_memory >> 10,
                row.dataplane_memory >> 10,
            )
            .map_err(Error::io("print"))?;
            rows.push(row);
        }
        Ok(ScaleReport {
            environment: Environment::here(),
            rows,
        })
    }

    fn measure(&self, routes: u32) -> Result<Row> {
        let mut spec = ClusterSpec::new("podway-scale");
        spec.pods_per_node = 1;
        let cluster = Cluster::new(spec)?;
        let (node, router) = (&cluster.nodes()[0], cluster.nodes()[1].underlay);
        let to_nodes = format!("route add 172.16.0.0/12 via {router}");
        node.netns.ip(&[to_nodes])?;
        write_state(node, self.nodes, routes)?;

        let begin = Instant::now();
        let mut agent = Agent::start(node, &Options::default())?;
        let result = self.measure_agent(&mut agent, begin, routes);
        let row = agent.with_logs(result)?;
        // Ended without the network's clean-up of each route: the namespace goes as a whole.
        agent.stop_control()?;
        agent.stop_dataplane()?;
        Ok(row)
    }

    fn measure_agent(&self, agent: &mut Agent, begin: Instant, routes: u32) -> Result<Row> {
        let run_dir = agent.node().directory.join("run");
        // The pod's two addresses are routes, too.
        let (in_tables, in_kernel) = (u64::from(routes + self.nodes) + 2, routes + self.nodes);
        let mut dataplane = Dataplane::connect(&run_dir)?;
        dataplane.wait_for(in_tables)?;
        let cold_workers = ms(begin);
        let control_pid = agent.control_pid()?;
        wait_for_kernel(control_pid, in_kernel)?;
        let cold_kernel = ms(begin).max(cold_workers);
        let (acknowledged, adopted) = self.change(&run_dir, &mut dataplane, in_tables)?;
        let disk = self.disk(&agent.node().directory.join("state"))?;
        let control_memory = resident(control_pid)?;
        let dataplane_memory = resident(agent.dataplane_pid()?)?;

        agent.kill_dataplane()?;
        let begin = Instant::now();
        agent.start_dataplane()?;
        Dataplane::connect(&run_dir)?.wait_for(in_tables)?;
        let dataplane_again = ms(begin);

        agent.stop_control()?;
        let begin = Instant::now();
        agent.start_control()?;
        wait_for_control(&run_dir)?;
        let control_again = ms(begin);
        Ok(Row {
            routes,
            nodes: self.nodes,
            cold_workers,
            cold_kernel,
            dataplane_again,
            control_again,
            acknowledged,
            adopted,
            disk,
            control_memory,
            dataplane_memory,
        })
    }

    /// Adds and withdraws a route in turn.
    fn change(
        &self,
        run_dir: &Path,
        dataplane: &mut Dataplane,
        in_tables: u64,
    ) -> Result<(Quantiles, Quantiles)> {
        let mut control = Lines::connect(&run_dir.join(CONTROL_SOCKET), &hello_control())?;
        let spec = route(MAX_ROUTES + 1, self.nodes)?;
        let (mut acknowledged, mut adopted) = (Vec::new(), Vec::new());
        for change in 0..self.changes {
            // Not in step with anything that is done at intervals.
            std::thread::sleep(Duration::from_micros(20_000 + u64::from(change) * 137));
            let (request, routes) = if change % 2 == 0 {
                (control::Request::RouteAdd(spec.clone()), in_tables + 1)
            } else {
                let prefix = spec.prefix;
                (control::Request::RouteDel { prefix }, in_tables)
            };
            let begin = Instant::now();
            match control.ask(&request)? {
                control::Response::Done => acknowledged.push(ms(begin)),
                other => return Err(Error::Unexpected(format!("{other:?} to {request:?}"))),
            }
            while !dataplane.has(routes)? {
                cleanup::interrupted()?;
                if begin.elapsed() > DEADLINE {
                    return Err(late("one change", String::new()));
                }
                std::thread::sleep(Duration::from_micros(50));
            }
            adopted.push(ms(begin));
        }
        Ok((Quantiles::of(acknowledged), Quantiles::of(adopted)))
    }

    /// As many lines as there are changes, as far apart.
    fn disk(&self, directory: &Path) -> Result<Quantiles> {
        let path = directory.join("disk-alone");
        let mut file = File::create(&path).map_err(Error::io("make a file"))?;
        let mut sample = Vec::new();
        for line in 0..self.changes {
            std::thread::sleep(Duration::from_micros(20_000 + u64::from(line) * 137));
            let begin = Instant::now();
            let written = file.write_all(&LINE).and_then(|()| file.sync_data());
            written.map_err(Error::io("write to the disk"))?;
            sample.push(ms(begin));
        }
        fs::remove_file(&path).map_err(Error::io("remove a file"))?;
        Ok(Quantiles::of(sample))
    }
}

/// About as long as a line of the state file.
const LINE: [u8; 128] = [b'-'; 128];

/// A connection to a daemon's socket.
struct Lines(client::Lines);

impl Lines {
    /// Connects as soon as somebody listens, and greets.
    fn connect<Hello: Serialize>(path: &Path, hello: &Hello) -> Result<Self> {
        let begin = Instant::now();
        let lines = loop {
            match client::Lines::connect(path, DEADLINE) {
                Ok(lines) => break lines,
                Err(error) if begin.elapsed() > DEADLINE => {
                    return Err(late(&path.display().to_string(), error.to_string()));
                }
                Err(_) => std::thread::sleep(Duration::from_millis(1)),
            }
            cleanup::interrupted()?;
        };
        let mut lines = Self(lines);
        lines.ask::<_, serde_json::Value>(hello)?;
        Ok(lines)
    }

    fn ask<Request: Serialize, Response: DeserializeOwned>(
        &mut self,
        request: &Request,
    ) -> Result<Response> {
        let deadline = Instant::now() + DEADLINE;
        let answer = self.0.exchange(request, deadline);
        answer.map_err(Error::io("ask a daemon"))
    }
}

/// The dataplane's socket, asked without control between.
struct Dataplane(Lines);

impl Dataplane {
    fn connect(run_dir: &Path) -> Result<Self> {
        let hello = dataplane::Request::Hello { version: VERSION };
        Lines::connect(&run_dir.join(DATAPLANE_SOCKET), &hello).map(Self)
    }

    fn status(&mut self) -> Result<dataplane::Status> {
        match self.0.ask(&dataplane::Request::Status)? {
            dataplane::Response::Status(status) => Ok(status),
            other => Err(Error::Unexpected(format!("{other:?} to status"))),
        }
    }

    /// Whether all workers read tables with this many resolved routes.
    fn has(&mut self, routes: u64) -> Result<bool> {
        let tables = self.status()?.tables;
        Ok(
            tables.routes == routes
                && tables.unresolved == 0
                && tables.adopted == tables.generation,
        )
    }

    /// Waits until all workers have this many resolved routes and the gate is open.
    fn wait_for(&mut self, routes: u64) -> Result<()> {
        let begin = Instant::now();
        while !(self.has(routes)? && self.status()?.gate_open) {
            cleanup::interrupted()?;
            if begin.elapsed() > DEADLINE {
                let last = format!("{:?}", self.status()?.tables);
                return Err(late("the dataplane has every route", last));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }
}

fn hello_control() -> control::Request {
    control::Request::Hello { version: VERSION }
}

fn late(what: &str, last: String) -> Error {
    Error::Timeout {
        what: what.to_owned(),
        after: DEADLINE,
        last,
    }
}

/// Milliseconds since `begin`.
fn ms(begin: Instant) -> f64 {
    begin.elapsed().as_secs_f64() * 1e3
}

/// Waits until the kernel's IPv4 table of a process' namespace has more than this many prefixes:
/// it has some of its own. Looking walks the table, so it is done a tenth of the time.
fn wait_for_kernel(pid: u32, routes: u32) -> Result<()> {
    let path = format!("/proc/{pid}/net/fib_triestat");
    let begin = Instant::now();
    loop {
        cleanup::interrupted()?;
        let look = Instant::now();
        let text = fs::read_to_string(&path).map_err(Error::io(path.clone()))?;
        // "Main:" comes first or second; its routes are the greater number.
        let prefixes = text.lines().filter_map(|line| {
            let count = line.trim().strip_prefix("Prefixes:")?;
            count.trim().parse::<u32>().ok()
        });
        let most = prefixes.max().unwrap_or(0);
        if most > routes {
            return Ok(());
        }
        if begin.elapsed() > DEADLINE {
            let last = format!("{most} of {routes}");
            return Err(late("the kernel has every route", last));
        }
        std::thread::sleep((look.elapsed() * 10).max(Duration::from_millis(5)));
    }
}

/// Waits until control says that kernel and dataplane are in line.
fn wait_for_control(run_dir: &Path) -> Result<()> {
    let begin = Instant::now();
    let mut control = Lines::connect(&run_dir.join(CONTROL_SOCKET), &hello_control())?;
    loop {
        cleanup::interrupted()?;
        let control::Response::Status(status) = control.ask(&control::Request::Status)? else {
            return Err(Error::Unexpected("no status".to_owned()));
        };
        let synced = matches!(
            status.dataplane,
            control::DataplaneLink::Synced { ref refused, .. } if refused.is_empty()
        );
        if synced && status.kernel.in_sync {
            return Ok(());
        }
        if begin.elapsed() > DEADLINE {
            return Err(late("control is in line", status.kernel.errors.join("; ")));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Resident memory of a process in KiB.
fn resident(pid: u32) -> Result<u64> {
    let path = format!("/proc/{pid}/status");
    let text = fs::read_to_string(&path).map_err(Error::io(path.clone()))?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.trim().strip_suffix("kB"))
        .and_then(|count| count.trim().parse().ok())
        .ok_or_else(|| Error::Unexpected(format!("{path} has no VmRSS")))
}

/// The address `count` blocks of `size` addresses after `first`.
fn nth(first: Ipv4Addr, count: u32, size: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(first.to_bits() + count * size)
}

fn parse<T: std::str::FromStr>(text: &str) -> Result<T> {
    text.parse()
        .map_err(|_| Error::Unexpected(format!("{text} is no such thing")))
}

fn node_name(number: u32) -> String {
    format!("node-{number:05}")
}

fn route(number: u32, nodes: u32) -> Result<RouteSpec> {
    Ok(RouteSpec {
        prefix: parse(&format!("{}/30", nth(ROUTES, number, 4)))?,
        via: ViaSpec::Node {
            node: node_name(number % nodes),
            vni: None,
        },
    })
}

/// Writes the state file as if everything had been told.
fn write_state(node: &Node, nodes: u32, routes: u32) -> Result<()> {
    let mut told = serde_json::Map::new();
    let mut tell = |spec: NodeSpec| {
        let name = spec.name.clone();
        told.insert(name, json!(spec));
    };
    tell(NodeSpec {
        name: node.name.clone(),
        underlay: IpAddr::V4(node.underlay),
        underlay6: None,
        pod_cidrs: vec![parse(&node.pod_cidr())?, parse(&node.pod_cidr6())?],
        vtep_mac: None,
        mode: None,
    });
    for number in 0..nodes {
        tell(NodeSpec {
            name: node_name(number),
            underlay: IpAddr::V4(nth(NODES, number, 1)),
            underlay6: None,
            pod_cidrs: vec![parse(&format!("{}/24", nth(POD_CIDRS, number, 256)))?],
            vtep_mac: None,
            mode: None,
        });
    }
    let pod = node.pods.first();
    let pod = pod.ok_or_else(|| Error::Unexpected("the node has no pod".to_owned()))?;
    let port = PortRoleSpec::Pod {
        addresses: vec![pod.ipv4.into(), pod.ipv6.into()],
        mac: None,
        any_source: false,
    };
    let routes: Vec<RouteSpec> = (0..routes)
        .map(|number| route(number, nodes))
        .collect::<Result<_>>()?;
    let state = json!({
        "schema": 1,
        "nodes": told,
        "routes": routes,
        "ports": { &pod.host_interface: port },
    });
    let directory = node.directory.join("state");
    fs::create_dir_all(&directory).map_err(Error::io(directory.display().to_string()))?;
    let path = directory.join("state.json");
    let text = state.to_string();
    fs::write(&path, text).map_err(Error::io(path.display().to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_of_the_sample() {
        let quantiles = Quantiles::of((1..=200).map(f64::from).rev().collect());
        assert_eq!(
            (quantiles.median, quantiles.p99, quantiles.most),
            (100.0, 198.0, 200.0)
        );
    }

    #[test]
    fn all_blocks_fit_where_they_are_counted() {
        let end = |first, count, size| nth(first, count, size);
        assert!(end(ROUTES, MAX_ROUTES + 1, 4) < Ipv4Addr::new(100, 128, 0, 0));
        assert!(end(POD_CIDRS, MAX_NODES, 256) <= Ipv4Addr::new(11, 0, 0, 0));
        assert!(end(NODES, MAX_NODES, 1) < Ipv4Addr::new(172, 32, 0, 0));
        let route = route(5000, 5000).unwrap();
        assert_eq!(route.prefix.to_string(), "100.64.78.32/30");
    }
}
