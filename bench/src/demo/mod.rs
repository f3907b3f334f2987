//! The article's table: how fast pods on different nodes talk, and who carries their packets.
//!
//! Rows are measured in interleaved rounds, since a shared machine drifts: each round puts every
//! contender in charge once. A row is the median of its rounds.

mod table;

use std::fs;
use std::io::{self, Write};
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde::Serialize;

pub use table::{Row, Table};

use crate::contender::{Contender, InCharge};
use crate::iperf::{Iperf, Measured};
use crate::netns::Netns;
use crate::ping::Ping;
use crate::podway::{Options, Podway, program};
use crate::topology::{Cluster, ClusterSpec};
use crate::{Error, Result, cleanup, cpu};

/// First part of the names of the demo's clusters.
pub const PREFIX: &str = "podway-demo";
/// How long an idle dataplane is watched.
const IDLE_TIME: Duration = Duration::from_secs(5);
/// Echo requests per row and round.
const PINGS: u16 = 100;

/// What to show.
#[derive(Debug, Clone)]
pub struct Demo {
    /// Nodes, 2 to 3.
    pub nodes: u8,
    /// Seconds of each iperf3 run.
    pub seconds: u32,
    /// Rounds.
    pub rounds: u32,
    /// The rows.
    pub contenders: Vec<Contender>,
    /// Whether the cluster stays up afterwards, with Podway in VXLAN mode in charge.
    pub keep: bool,
    /// Where to write every measured value as JSON.
    pub json: Option<PathBuf>,
}

/// One row in one round.
#[derive(Debug, Clone, Serialize)]
pub struct Sample {
    /// Who was in charge.
    pub contender: Contender,
    /// The round, from 1.
    pub round: u32,
    /// Payload bits per second that arrived.
    pub bits_per_second: f64,
    /// TCP segments that were sent again.
    pub retransmits: u64,
    /// CPU-seconds of the whole machine per gigabyte that arrived.
    pub cpu_seconds_per_gigabyte: f64,
    /// Average size in bytes of the frames on the uplink.
    pub average_frame: u64,
    /// Round-trip times of ping in microseconds.
    pub ping_microseconds: Vec<u64>,
}

/// All that was measured.
#[derive(Debug, Serialize)]
struct Report<'a> {
    kernel: String,
    cpus: usize,
    nodes: u8,
    seconds: u32,
    samples: &'a [Sample],
    idle_percent: Option<f64>,
}

impl Demo {
    /// Builds the network, measures, prints the table to `out`, and removes the network.
    ///
    /// # Errors
    /// When a step fails; the network is removed then, too.
    pub fn run(&self, out: &mut impl Write) -> Result<()> {
        let mut progress = Progress::new(out);
        if self.needs_podway() {
            for name in ["podway", "podway-control", "podway-dataplane"] {
                program(name)?;
            }
        }
        progress.say(&self.announcement())?;
        let cluster = Cluster::new(ClusterSpec {
            nodes: self.nodes,
            pods_per_node: 1,
            ..ClusterSpec::new(PREFIX)
        })?;
        progress.say(&format!("the network {} is up", cluster.name()))?;
        let (mut samples, mut idle) = (Vec::new(), None);
        for round in 1..=self.rounds {
            for contender in &self.contenders {
                let last = round == self.rounds;
                let (sample, percent) = self.sample(&cluster, *contender, round, last)?;
                progress.say(&format!(
                    "round {round} of {}: {:13} {:6.2} Gbit/s",
                    self.rounds,
                    contender.label(),
                    sample.bits_per_second / 1e9
                ))?;
                samples.push(sample);
                idle = percent.or(idle);
            }
        }
        let table = Table::new(&samples, idle);
        progress.print(&format!("\n{table}"))?;
        self.write_json(&samples, idle)?;
        if self.keep {
            self.leave_up(cluster, &mut progress)
        } else {
            let left = cluster.remove();
            if left.is_empty() {
                progress.say("the network is removed")
            } else {
                Err(Error::Unexpected(left.join("; ")))
            }
        }
    }

    /// Removes the clusters that were kept. Says what it did.
    ///
    /// # Errors
    /// When something would not go.
    pub fn down(out: &mut impl Write) -> Result<()> {
        let (removed, errors) = cleanup::remove_kept(PREFIX);
        let mut progress = Progress::new(out);
        if removed.is_empty() {
            progress.print("there is no kept cluster\n")?;
        }
        for cluster in removed {
            progress.print(&format!("{cluster} is removed\n"))?;
        }
        if errors.is_empty() {
            Ok(())
        } else {
            Err(Error::Unexpected(errors.join("; ")))
        }
    }

    fn needs_podway(&self) -> bool {
        let podway = [Contender::PodwayVxlan, Contender::PodwayNative];
        self.keep || self.contenders.iter().any(|c| podway.contains(c))
    }

    fn announcement(&self) -> String {
        // Beside iperf3: pings, and putting the contender in charge.
        let each = self.seconds + 3;
        let rows = u32::try_from(self.contenders.len()).unwrap_or(u32::MAX);
        let total = self.rounds.saturating_mul(rows).saturating_mul(each);
        format!(
            "{} nodes, {} rounds of {rows} rows, {} s of TCP each: about {total} s in all; \
             Ctrl-C removes everything",
            self.nodes, self.rounds, self.seconds
        )
    }

    /// Puts one contender in charge, measures, and takes it away. In the last round an idle
    /// Podway is watched as well: the second value is its CPU use in percent of a core.
    fn sample(
        &self,
        cluster: &Cluster,
        contender: Contender,
        round: u32,
        last: bool,
    ) -> Result<(Sample, Option<f64>)> {
        let in_charge = InCharge::put(contender, cluster)?;
        let (from, to, address) = ends(cluster, contender);
        reach(cluster, contender)?;
        let ping = Ping {
            count: PINGS,
            ..Ping::default()
        };
        let replies = ping.run(from, address)?;
        let measured = Iperf::tcp(self.seconds).measure(cluster, from, to, address)?;
        let mut idle = None;
        if let Some(podway) = in_charge.podway() {
            for agent in podway.agents() {
                agent.balanced()?;
            }
            if last {
                idle = Some(idle_percent(podway)?);
            }
        }
        in_charge.take_away(cluster)?;
        Ok((
            sample(contender, round, &measured, replies.microseconds),
            idle,
        ))
    }

    fn write_json(&self, samples: &[Sample], idle_percent: Option<f64>) -> Result<()> {
        let Some(path) = &self.json else {
            return Ok(());
        };
        let report = Report {
            kernel: rustix::system::uname()
                .release()
                .to_string_lossy()
                .into_owned(),
            cpus: std::thread::available_parallelism().map_or(0, usize::from),
            nodes: self.nodes,
            seconds: self.seconds,
            samples,
            idle_percent,
        };
        let what = path.display().to_string();
        let file = fs::File::create(path).map_err(Error::io(&what))?;
        serde_json::to_writer_pretty(file, &report).map_err(|error| Error::io(what)(error.into()))
    }

    fn leave_up(&self, cluster: Cluster, progress: &mut Progress<'_, impl Write>) -> Result<()> {
        let options = Options {
            detached: true,
            ..Options::default()
        };
        let podway = Podway::start(&cluster, &options)?;
        let help = how_to_enter(&cluster)?;
        cluster.keep()?;
        podway.detach();
        progress.print(&help)
    }
}

fn sample(
    contender: Contender,
    round: u32,
    measured: &Measured,
    ping_microseconds: Vec<u64>,
) -> Sample {
    Sample {
        contender,
        round,
        bits_per_second: measured.throughput.bits_per_second,
        retransmits: measured.throughput.retransmits,
        cpu_seconds_per_gigabyte: measured.cpu_seconds_per_gigabyte(),
        average_frame: measured.average_frame,
        ping_microseconds,
    }
}

/// Sender, receiver and the receiver's address.
fn ends(cluster: &Cluster, contender: Contender) -> (&Netns, &Netns, IpAddr) {
    match contender {
        Contender::Hosts => {
            let (from, to) = (&cluster.nodes()[0], &cluster.nodes()[1]);
            (&from.netns, &to.netns, to.underlay.into())
        }
        _ => {
            let (from, to) = (cluster.pod(0, 0), cluster.pod(1, 0));
            (&from.netns, &to.netns, to.ipv4.into())
        }
    }
}

/// Every pod (or node) must reach every other before anything is measured.
fn reach(cluster: &Cluster, contender: Contender) -> Result<()> {
    let ends: Vec<(&Netns, IpAddr)> = cluster
        .nodes()
        .iter()
        .map(|node| match contender {
            Contender::Hosts => (&node.netns, node.underlay.into()),
            _ => (&node.pods[0].netns, node.pods[0].ipv4.into()),
        })
        .collect();
    for (from, own) in &ends {
        for (_, target) in ends.iter().filter(|(_, target)| target != own) {
            let replies = Ping {
                count: 2,
                ..Ping::default()
            }
            .run(from, *target)?;
            if replies.received == 0 {
                return Err(Error::Unexpected(format!(
                    "{}: {own} does not reach {target}",
                    contender.label()
                )));
            }
        }
    }
    Ok(())
}

/// CPU use in percent of a core of the busiest of the idle dataplanes.
fn idle_percent(podway: &Podway) -> Result<f64> {
    let busy = || -> Result<Vec<Duration>> {
        let agents = podway.agents().iter();
        agents
            .map(|agent| cpu::process_busy(agent.dataplane_pid()?))
            .collect()
    };
    let (before, begin) = (busy()?, Instant::now());
    std::thread::sleep(IDLE_TIME);
    let (after, elapsed) = (busy()?, begin.elapsed());
    let most = after
        .iter()
        .zip(&before)
        .map(|(after, before)| after.saturating_sub(*before));
    let most = most.max().unwrap_or_default();
    Ok(100.0 * most.as_secs_f64() / elapsed.as_secs_f64())
}

fn how_to_enter(cluster: &Cluster) -> Result<String> {
    let (node, pod) = (&cluster.nodes()[0], cluster.pod(0, 0));
    let podway = program("podway")?;
    let run_dir = node.directory.join("run");
    let podway = format!("{} --run-dir {}", podway.display(), run_dir.display());
    Ok(format!(
        "\nThe cluster stays up, with Podway in VXLAN mode in charge. Look around:\n  \
         ip netns exec {pod} ping {target}\n  \
         ip netns exec {host} bash\n  \
         {podway} status\n  \
         {podway} counters --watch\n\
         Remove it by: scripts/demo --down\n",
        pod = pod.netns.name(),
        target = cluster.pod(1, 0).ipv4,
        host = node.netns.name(),
    ))
}

/// Lines with the time since the start.
struct Progress<'o, O: Write> {
    begin: Instant,
    out: &'o mut O,
}

impl<'o, O: Write> Progress<'o, O> {
    fn new(out: &'o mut O) -> Self {
        Self {
            begin: Instant::now(),
            out,
        }
    }

    fn say(&mut self, text: &str) -> Result<()> {
        let seconds = self.begin.elapsed().as_secs_f32();
        self.print(&format!("[{seconds:6.1} s] {text}\n"))
    }

    fn print(&mut self, text: &str) -> Result<()> {
        let written = self.out.write_all(text.as_bytes());
        // Nobody listens to a broken pipe any more; measuring on would be in vain.
        written
            .and_then(|()| self.out.flush())
            .map_err(|error| match error.kind() {
                io::ErrorKind::BrokenPipe => Error::Interrupted,
                _ => Error::io("print")(error),
            })
    }
}
