//! What ends, hangs and changes of Podway cost the traffic that is running: a TCP flow as fast as it
//! goes, and an echo request every millisecond beside it, from a pod of one node to a pod of the
//! other, while something happens to the first node's daemons.
//!
//! A row of the table is one event. It happens two seconds after the traffic has begun, and is undone
//! two seconds later where there is something to undo; both moments count.

mod event;
mod stuck;

use std::fmt;
use std::io::Write;
use std::thread;
use std::time::Duration;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

pub use event::Event;
pub use stuck::StuckThread;

use crate::iperf::Iperf;
use crate::netns::{Netns, join, run};
use crate::ping::Ping;
use crate::podway::{Options, Podway};
use crate::suite::Environment;
use crate::topology::{Cluster, ClusterSpec};
use crate::{Error, Result, cleanup};

/// From the start of the traffic to the event, and from there to its end.
const BEFORE: Duration = Duration::from_secs(2);
const BETWEEN: Duration = Duration::from_secs(2);
/// How long the traffic lasts.
const SECONDS: u16 = 8;
/// Pods of a node that are measured.
const PODS: u8 = 1;

/// What to measure.
#[derive(Debug, Clone)]
pub struct Takeover {
    /// Ports of each node, the uplink among them; one table each.
    pub ports: Vec<u8>,
    /// Rules of the nodes beside Podway's; one table each.
    pub rules: Vec<Rules>,
    /// What happens; one row each.
    pub events: Vec<Event>,
    /// How often each is measured.
    pub rounds: u32,
}

/// Rules of nftables on both nodes, as a firewall or kube-proxy may have them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Rules {
    /// None.
    None,
    /// What is forwarded is tracked.
    Conntrack,
    /// And dropped where conntrack does not know what it is.
    InvalidDrop,
    /// Nothing is forwarded.
    ForwardDrop,
}

impl Rules {
    fn put(self, netns: &Netns) -> Result<()> {
        let (policy, rule) = match self {
            Self::None => return Ok(()),
            Self::Conntrack => ("accept", "ct state established accept"),
            Self::InvalidDrop => ("accept", "ct state invalid drop"),
            Self::ForwardDrop => ("drop", "counter"),
        };
        let text = format!(
            "add table inet bench; \
             add chain inet bench forward {{ type filter hook forward priority 0; policy {policy}; }}; \
             add rule inet bench forward {rule}"
        );
        run(netns.command("nft").arg(text)).map(drop)
    }

    fn take_away(self, netns: &Netns) -> Result<()> {
        match self {
            Self::None => Ok(()),
            _ => run(netns.command("nft").arg("delete table inet bench")).map(drop),
        }
    }
}

impl fmt::Display for Rules {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::None => "no rules",
            Self::Conntrack => "conntrack",
            Self::InvalidDrop => "ct state invalid drop",
            Self::ForwardDrop => "FORWARD policy drop",
        })
    }
}

/// What was measured, and where.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct TakeoverReport {
    /// The machine and the program.
    pub environment: Environment,
    /// Event by event, in the order in which they were measured.
    pub rows: Vec<Row>,
}

/// What one event has cost.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Row {
    /// Ports of each node.
    pub ports: u8,
    /// The nodes' rules.
    pub rules: Rules,
    /// What has happened.
    pub event: Event,
    /// The round, from 1.
    pub round: u32,
    /// Echo requests, one a millisecond.
    pub sent: u16,
    /// Those without an answer.
    pub lost: u16,
    /// Most of them in a row: about so many milliseconds long everything was lost.
    pub longest_gap: u16,
    /// The longest that an answer took, in milliseconds: what waited in a queue meanwhile.
    pub slowest: u64,
    /// What TCP has carried, in bits per second; none when the connection broke, or stood still for
    /// longer than the traffic lasts.
    pub tcp: Option<f64>,
}

impl Takeover {
    /// Measures, and writes a row to `out` as soon as it is there.
    ///
    /// # Errors
    /// When a daemon cannot be started or does not come back, with the ends of its logs.
    pub fn run(&self, out: &mut impl Write) -> Result<TakeoverReport> {
        writeln!(
            out,
            "{:>5}  {:<22} {:<26} {:>5} {:>6} {:>8} {:>12} {:>7}",
            "ports", "rules", "event", "round", "lost", "gap, ms", "slowest, ms", "Gbit/s"
        )
        .map_err(Error::io("print"))?;
        let mut rows = Vec::new();
        for &ports in &self.ports {
            let cluster = Cluster::new(ClusterSpec {
                pods_per_node: PODS,
                ..ClusterSpec::new("podway-takeover")
            })?;
            let idle_ports = ports.saturating_sub(1 + PODS);
            let mut podway = Podway::start(
                &cluster,
                &Options {
                    idle_ports,
                    ..Options::default()
                },
            )?;
            for &rules in &self.rules {
                for node in cluster.nodes() {
                    rules.put(&node.netns)?;
                }
                for round in 1..=self.rounds {
                    for &event in &self.events {
                        let row = measure(&cluster, &mut podway, event, (ports, rules, round));
                        let row = podway.agent_mut(0).with_logs(row)?;
                        print(&row, out)?;
                        rows.push(row);
                    }
                }
                for node in cluster.nodes() {
                    rules.take_away(&node.netns)?;
                }
            }
            podway.stop()?;
        }
        Ok(TakeoverReport {
            environment: Environment::here(),
            rows,
        })
    }
}

fn print(row: &Row, out: &mut impl Write) -> Result<()> {
    let tcp = row.tcp.map(|rate| format!("{:.2}", rate / 1e9));
    writeln!(
        out,
        "{:>5}  {:<22} {:<26} {:>5} {:>6} {:>8} {:>12} {:>7}",
        row.ports,
        row.rules,
        row.event,
        row.round,
        row.lost,
        row.longest_gap,
        row.slowest,
        tcp.as_deref().unwrap_or("broke")
    )
    .map_err(Error::io("print"))
}

fn measure(
    cluster: &Cluster,
    podway: &mut Podway,
    event: Event,
    (ports, rules, round): (u8, Rules, u32),
) -> Result<Row> {
    cleanup::interrupted()?;
    podway.wait_ready()?;
    let (from, to) = (cluster.pod(0, 0), cluster.pod(1, 0));
    let bulk = {
        let (from, to) = (from.clone(), to.clone());
        thread::spawn(move || {
            Iperf::tcp(SECONDS.into()).run(&from.netns, &to.netns, to.ipv4.into())
        })
    };
    let ping = Ping {
        count: SECONDS * 1000,
        interval: Duration::from_millis(1),
        ..Ping::default()
    };
    let ping = ping.start(&from.netns, to.ipv4.into());
    thread::sleep(BEFORE);
    let undo = event.happen(cluster, podway)?;
    thread::sleep(BETWEEN);
    undo.run(cluster, podway)?;
    let replies = ping.finish()?;
    let tcp = match join(bulk) {
        Ok(throughput) => (throughput.bytes > 0).then_some(throughput.bits_per_second),
        Err(Error::Interrupted) => return Err(Error::Interrupted),
        // What iperf3 calls an error is what is measured.
        Err(_) => None,
    };
    Ok(Row {
        ports,
        rules,
        event,
        round,
        sent: replies.sent,
        lost: replies.sent - replies.received,
        longest_gap: replies.longest_gap,
        slowest: replies
            .microseconds
            .iter()
            .max()
            .map_or(0, |most| most / 1000),
        tcp,
    })
}
