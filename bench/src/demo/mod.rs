//! The article's table: how fast pods on different nodes talk, and who carries their packets.
//!
//! It is the suite on one wire, in one measure, short. A row is the median of its rounds.

mod table;

use std::io::Write;
use std::path::PathBuf;

pub use table::{Row, Table};

use crate::contender::Contender;
use crate::podway::{Options, Podway, program};
use crate::suite::{Environment, Measure, Outcome, Progress, Report, Rounds, Sample, Wire};
use crate::topology::{Cluster, ClusterSpec};
use crate::{Error, Result, cleanup};

/// First part of the names of the demo's clusters.
pub const PREFIX: &str = "podway-demo";

/// The rows of the table, in order.
pub const ROWS: [Contender; 5] = [
    Contender::Hosts,
    Contender::KernelVxlan,
    Contender::KernelNative,
    Contender::PodwayVxlan,
    Contender::PodwayNative,
];

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

impl Demo {
    /// Builds the network, measures, prints the table to `out`, and removes the network.
    ///
    /// # Errors
    /// When a step fails or a figure is refused; the network is removed then, too.
    pub fn run(&self, out: &mut impl Write) -> Result<()> {
        let mut progress = Progress::new(out);
        let kept = self.keep.then_some(Contender::PodwayVxlan);
        let mut needed = self.contenders.iter().chain(&kept);
        needed.try_for_each(|contender| contender.check_installed())?;
        let rounds = self.rounds();
        progress.say(&format!(
            "{} nodes, {} rounds of {} rows, {} s of TCP each: about {} s in all; Ctrl-C removes \
             everything",
            self.nodes,
            self.rounds,
            self.contenders.len(),
            self.seconds,
            rounds.estimate()
        ))?;
        let (cluster, measured) = rounds.run(|sample| {
            progress.sample(&rounds, sample)?;
            insist(sample)
        })?;
        let table = Table::new(&measured.samples);
        progress.print(&format!("\n{table}"))?;
        if let Some(path) = &self.json {
            Report::new(Environment::here(), self.seconds, measured).write(path)?;
        }
        if self.keep {
            leave_up(cluster, &mut progress)
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

    fn rounds(&self) -> Rounds {
        let wire = Wire::True;
        Rounds {
            wire,
            spec: ClusterSpec {
                nodes: self.nodes,
                ..wire.spec(PREFIX)
            },
            contenders: self.contenders.clone(),
            measures: vec![Measure::Ping, Measure::TCP, Measure::Idle],
            rounds: self.rounds,
            seconds: self.seconds,
        }
    }
}

/// The demo has no row without a figure.
fn insist(sample: &Sample) -> Result<()> {
    match &sample.outcome {
        Outcome::Values(_) => Ok(()),
        Outcome::Refused(reason) => Err(Error::Unexpected(format!(
            "{}, {}: {reason}",
            sample.contender, sample.measure
        ))),
    }
}

fn leave_up(cluster: Cluster, progress: &mut Progress<'_, impl Write>) -> Result<()> {
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
