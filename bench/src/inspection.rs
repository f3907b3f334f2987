//! What it costs to look inside: the nanoseconds that a worker spends on a packet while nobody looks,
//! while metrics are scraped each second, and while a capture or a trace is armed whose filter no
//! packet matches.
//!
//! One node carries packets flat out, out of a pod and into one. All cases take turns in each round,
//! on the same daemons; what is shown is the difference to the turn of the same round in which nobody
//! looked. The times are those of `podway perf`, which measures one of 61 bursts, always.

use std::fmt;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path as FilePath;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use podway_proto::perf::{Stage, WorkerPerf};
use serde::{Deserialize, Serialize};

use crate::generator::rig::{Path, Rig};
use crate::generator::run::Rate;
use crate::netns::{Netns, join};
use crate::podway::{Agent, Options, Podway};
use crate::process::Daemon;
use crate::suite::{Direction, Environment, Interval, interval_of_median, median};
use crate::topology::{Cluster, ClusterSpec, Node};
use crate::{Error, Result, cleanup, cpu};

/// Where the node serves metrics.
const METRICS: &str = "127.0.0.1:9467";
/// Between two scrapes.
const SCRAPE_EVERY: Duration = Duration::from_secs(1);
/// Until a watch is armed at the workers, and until what was before is out of the queues.
const SETTLE: Duration = Duration::from_millis(300);
/// A narrow filter: no packet here has that address.
const FILTER: [&str; 6] = ["host", "192.0.2.99", "and", "tcp", "port", "99"];
/// Bytes of the packets, and their flows.
const LOAD: (u16, u16) = (64, 16);

/// What to measure.
#[derive(Debug, Clone)]
pub struct Inspection {
    /// Interleaved rounds.
    pub rounds: u32,
    /// Seconds of packets in each turn.
    pub seconds: u32,
}

/// Who looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Look {
    /// Nobody.
    Off,
    /// Metrics are scraped each second.
    Scrape,
    /// `podway capture` to a file, with bytes of packets as they came.
    Capture,
    /// `podway trace live`.
    Trace,
}

impl Look {
    const ALL: [Self; 4] = [Self::Off, Self::Scrape, Self::Capture, Self::Trace];
}

impl fmt::Display for Look {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Off => "nobody looks",
            Self::Scrape => "metrics each second",
            Self::Capture => "capture, no match",
            Self::Trace => "trace, no match",
        })
    }
}

/// One turn.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Turn {
    /// The way of the packets.
    pub direction: Direction,
    /// Who looked.
    pub look: Look,
    /// From 0.
    pub round: u32,
    /// Packets that the worker received.
    pub packets: u64,
    /// Nanoseconds of the forwarding stage for a packet: the mean over the measured bursts.
    pub forward_ns: f64,
    /// Nanoseconds of the worker for a packet, all stages, over all bursts.
    pub busy_ns: f64,
    /// Scrapes, and the CPU time of control meanwhile in seconds.
    pub scrapes: u32,
    /// See above.
    pub control_seconds: f64,
}

/// What was measured, and where.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct InspectionReport {
    /// The machine and the program.
    pub environment: Environment,
    /// In the order in which they were.
    pub turns: Vec<Turn>,
}

impl Inspection {
    /// Measures, and prints a table to `out`.
    ///
    /// # Errors
    /// When the network cannot be built, or a turn has no packets.
    pub fn run(&self, out: &mut impl Write) -> Result<InspectionReport> {
        let cluster = Cluster::new(ClusterSpec {
            pods_per_node: 1,
            ..ClusterSpec::new("podway-inspection")
        })?;
        let options = Options {
            config: format!("metrics = \"{METRICS}\"\n"),
            ..Options::default()
        };
        let node = cluster
            .nodes()
            .first()
            .map_or(&[][..], std::slice::from_ref);
        let podway = Podway::start_on(&cluster, node, &options)?;
        let mut turns = Vec::new();
        for direction in [Direction::Out, Direction::In] {
            let (size, flows) = LOAD;
            let path = match direction {
                Direction::Out => Path::out_of_pod(&cluster, size, flows)?,
                Direction::In => Path::into_pod_by_vxlan(&cluster, size, flows)?,
            };
            let rig = Rig::set_up(path)?;
            for round in 0..self.rounds {
                // Who is first changes, since the machine does, too.
                let mut looks = Look::ALL;
                looks.rotate_left(round as usize % Look::ALL.len());
                for look in looks {
                    cleanup::interrupted()?;
                    let agent = &podway.agents()[0];
                    let turn = self.turn(agent, &rig, (direction, look, round))?;
                    turns.push(turn);
                }
            }
        }
        podway.stop()?;
        print(&turns, out)?;
        Ok(InspectionReport {
            environment: Environment::here(),
            turns,
        })
    }

    fn turn(
        &self,
        agent: &Agent,
        rig: &Rig,
        (direction, look, round): (Direction, Look, u32),
    ) -> Result<Turn> {
        let looking = Looking::begin(look, agent)?;
        thread::sleep(SETTLE);
        let control = cpu::process_busy(agent.control_pid()?)?;
        agent.cli(&["perf", "--reset"])?;
        let before = worker(agent)?;
        rig.trial(Rate::FlatOut, Duration::from_secs(self.seconds.into()))?;
        let after = worker(agent)?;
        let control = cpu::process_busy(agent.control_pid()?)?.saturating_sub(control);
        let scrapes = looking.end()?;
        let nothing = || Error::Unexpected(format!("{look}: the worker had no packets"));
        let sampled = after.sampled.as_ref().filter(|sampled| sampled.packets > 0);
        let sampled = sampled.ok_or_else(nothing)?;
        let forward = sampled
            .stages
            .iter()
            .find(|stage| stage.stage == Stage::Forward);
        let work = after.work.since(&before.work);
        Ok(Turn {
            direction,
            look,
            round,
            packets: work.received,
            forward_ns: ratio(
                forward.map_or(0, |stage| stage.nanoseconds),
                sampled.packets,
            ),
            busy_ns: ratio(work.busy_nanoseconds, work.received),
            scrapes,
            control_seconds: control.as_secs_f64(),
        })
    }
}

fn worker(agent: &Agent) -> Result<WorkerPerf> {
    let first = agent.perf()?.workers.into_iter().next();
    first.ok_or_else(|| Error::Unexpected("no worker".to_owned()))
}

#[expect(
    clippy::cast_precision_loss,
    reason = "nanoseconds and packets of a few seconds"
)]
fn ratio(value: u64, of: u64) -> f64 {
    value as f64 / of as f64
}

/// Somebody who looks, until asked to end.
enum Looking {
    Nobody,
    Scraper(Arc<AtomicBool>, JoinHandle<Result<u32>>),
    Watch(Daemon),
}

impl Looking {
    fn begin(look: Look, agent: &Agent) -> Result<Self> {
        Ok(match look {
            Look::Off => Self::Nobody,
            Look::Scrape => {
                let stop = Arc::new(AtomicBool::new(false));
                let netns: &Netns = &agent.node().netns;
                let asked = stop.clone();
                Self::Scraper(stop, netns.thread(move || scrape(&asked)))
            }
            Look::Capture => watch(agent, &["capture", "-w", "/dev/null"])?,
            Look::Trace => watch(agent, &["trace", "live"])?,
        })
    }

    /// The number of scrapes.
    fn end(self) -> Result<u32> {
        match self {
            Self::Nobody => Ok(0),
            Self::Scraper(stop, thread) => {
                stop.store(true, Ordering::Relaxed);
                join(thread)
            }
            Self::Watch(mut daemon) => {
                daemon.check_alive()?;
                daemon.stop()?;
                Ok(0)
            }
        }
    }
}

fn watch(agent: &Agent, command: &[&str]) -> Result<Looking> {
    let mut cli = agent.cli_command()?;
    cli.args(command).args(FILTER);
    let node: &Node = agent.node();
    let log = FilePath::new(&node.directory).join("watch.log");
    Ok(Looking::Watch(Daemon::start("podway", cli, log)?))
}

/// Asks for the metrics each second until told to stop. How often it did.
fn scrape(stop: &AtomicBool) -> Result<u32> {
    let failed = |source| Error::Io {
        what: format!("scrape {METRICS}"),
        source,
    };
    let address: SocketAddr = METRICS
        .parse()
        .map_err(|_| Error::Unexpected(format!("{METRICS} is no address")))?;
    let mut scrapes = 0;
    let mut next = Instant::now();
    while !stop.load(Ordering::Relaxed) {
        if Instant::now() < next {
            thread::sleep(Duration::from_millis(10));
            continue;
        }
        next += SCRAPE_EVERY;
        let mut stream = TcpStream::connect(address).map_err(failed)?;
        stream
            .write_all(b"GET /metrics HTTP/1.1\r\nHost: node\r\n\r\n")
            .map_err(failed)?;
        let mut page = String::new();
        stream.read_to_string(&mut page).map_err(failed)?;
        if !page.contains("podway_worker_busy") {
            return Err(Error::Unexpected(format!("no metrics:\n{page}")));
        }
        scrapes += 1;
    }
    Ok(scrapes)
}

/// Medians of all rounds, and of the differences to the turns in which nobody looked.
fn print(turns: &[Turn], out: &mut impl Write) -> Result<()> {
    let mut text = String::from(
        "nanoseconds of the worker for a packet: median, and the difference to nobody in the same \
         round (95 %)\n",
    );
    for direction in [Direction::Out, Direction::In] {
        for look in Look::ALL {
            let of = |look| {
                let turns = turns.iter();
                turns.filter(move |turn| turn.direction == direction && turn.look == look)
            };
            let column = |value: fn(&Turn) -> f64| {
                let with: Vec<f64> = of(look).map(value).collect();
                let pairs = of(look).filter_map(|turn| {
                    let off = of(Look::Off).find(|off| off.round == turn.round)?;
                    Some(value(turn) - value(off))
                });
                let pairs: Vec<f64> = pairs.collect();
                Column {
                    median: median(&with).unwrap_or_default(),
                    difference: median(&pairs).unwrap_or_default(),
                    interval: interval_of_median(&pairs).filter(|_| look != Look::Off),
                }
            };
            let way = match direction {
                Direction::Out => "out",
                Direction::In => "in",
            };
            let forward = column(|turn| turn.forward_ns);
            let busy = column(|turn| turn.busy_ns);
            text += &format!("{way:4} {look:20}  forward {forward}  all stages {busy}\n");
        }
    }
    let scrapes: u32 = turns.iter().map(|turn| turn.scrapes).sum();
    let per_round = |look| {
        let of = turns.iter().filter(|turn| turn.look == look);
        of.map(|turn| turn.control_seconds).sum::<f64>()
    };
    let beyond = per_round(Look::Scrape) - per_round(Look::Off);
    text += &format!(
        "{scrapes} scrapes, {:.2} ms of control's CPU time each\n",
        beyond * 1e3 / f64::from(scrapes.max(1))
    );
    out.write_all(text.as_bytes()).map_err(Error::io("print"))
}

struct Column {
    median: f64,
    difference: f64,
    interval: Option<Interval>,
}

impl fmt::Display for Column {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:6.1}", self.median)?;
        match self.interval {
            None => f.pad(""),
            Some(Interval { low, high }) => {
                write!(f, " {:+5.1} ({low:+.1} to {high:+.1})", self.difference)
            }
        }
    }
}
