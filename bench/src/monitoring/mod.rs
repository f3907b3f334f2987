//! The picture of the dashboard: two nodes carry TCP and datagrams while a Prometheus server asks
//! them, and the dashboard's own queries are drawn.

mod panel;
mod picture;

use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::iperf::Iperf;
use crate::podway::{Options, Podway};
use crate::prometheus::{Prometheus, Target};
use crate::suite::Environment;
use crate::topology::{Cluster, ClusterSpec};
use crate::{Error, Result};

use panel::panels;
pub use panel::queries;

/// Where the nodes serve metrics: on the underlay too, for the other node's server.
const PORT: u16 = 9467;
/// Between two scrapes.
const INTERVAL: Duration = Duration::from_secs(1);
/// At rest, before the traffic, between its parts and behind it.
const REST: Duration = Duration::from_secs(5);

/// What to draw.
#[derive(Debug, Clone)]
pub struct Monitoring {
    /// Seconds of each part of the traffic.
    pub seconds: u32,
    /// The dashboard.
    pub dashboard: PathBuf,
    /// Where the picture is written.
    pub svg: PathBuf,
}

impl Monitoring {
    /// Runs the traffic, and draws what the server holds of it.
    ///
    /// # Errors
    /// When a program is missing, the network cannot be built, or a file not be read or written.
    pub fn run(&self, out: &mut impl Write) -> Result<()> {
        let text = fs::read_to_string(&self.dashboard);
        let text = text.map_err(Error::io(self.dashboard.display().to_string()))?;
        let panels = panels(&text)?;
        let cluster = Cluster::new(ClusterSpec {
            pods_per_node: 1,
            ..ClusterSpec::new("podway-monitoring")
        })?;
        let options = Options {
            config: format!("metrics = \"0.0.0.0:{PORT}\"\nhealth-interval-seconds = 1\n"),
            ..Options::default()
        };
        let podway = Podway::start(&cluster, &options)?;
        let targets = cluster.nodes().iter().map(|node| Target {
            instance: node.name.clone(),
            address: format!("{}:{PORT}", node.underlay),
        });
        let (targets, first) = (targets.collect::<Vec<_>>(), &cluster.nodes()[0]);
        let server = Prometheus::start(&first.netns, &first.directory, &targets, INTERVAL, None)?;
        let from = now();
        self.carry(&cluster)?;
        let to = now();
        let mut drawn = Vec::new();
        for panel in &panels {
            drawn.push((panel, panel.ask(&server, from, to)?));
        }
        let picture = picture::draw(&drawn, (from, to), &Environment::here());
        fs::write(&self.svg, picture).map_err(Error::io(self.svg.display().to_string()))?;
        server.stop()?;
        podway.stop()?;
        writeln!(out, "{} panels: {}", panels.len(), self.svg.display()).map_err(Error::io("print"))
    }

    /// One stream of TCP, then datagrams as fast as they go.
    fn carry(&self, cluster: &Cluster) -> Result<()> {
        let (from, to) = (cluster.pod(0, 0), cluster.pod(1, 0));
        thread::sleep(REST);
        for traffic in [Iperf::tcp(self.seconds), Iperf::udp(self.seconds, 0, 64)] {
            traffic.run(&from.netns, &to.netns, to.ipv4.into())?;
            thread::sleep(REST);
        }
        Ok(())
    }
}

fn now() -> f64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.unwrap_or_default().as_secs_f64()
}
