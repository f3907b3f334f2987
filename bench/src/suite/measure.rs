//! What is measured of a contender in charge.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::packets::{self, Load};
use crate::contender::{Carrier, Contender, InCharge};
use crate::generator::cost::Own;
use crate::iperf::{Congestion, Iperf, Protocol, Throughput};
use crate::latency::{Latency, RoundTrips};
use crate::netns::{Netns, join};
use crate::ping::{Ping, percentiles};
use crate::topology::Cluster;
use crate::watch::{Observed, Watch};
use crate::{Error, Result, cpu};

/// Echo requests of [`Measure::Ping`].
const PINGS: u16 = 100;
/// Requests of [`Measure::Latency`] for each second of a transfer, and the pause before each: time
/// enough to fall asleep.
const ALONE: u32 = 2500;
const PAUSE: Duration = Duration::from_micros(200);
/// Requests beside a bulk transfer, without a pause; they are done before it ends.
const BESIDE_BULK: u32 = 1000;
/// Answers that a quantile must have beyond it, or it is not told: fewer are chance.
const BEYOND: f64 = 5.0;
/// A transfer has left slow start by then.
const BULK_UNDER_WAY: Duration = Duration::from_millis(500);
/// How long idle processes are watched.
const IDLE_TIME: Duration = Duration::from_secs(2);

/// One measurement. A further one is a variant, its lines here, and what it calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Measure {
    /// A bulk transfer by iperf3.
    Tcp {
        /// Parallel streams.
        streams: u8,
        /// Congestion control of the sender.
        congestion: Congestion,
        /// Whether the pod of the second node sends.
        reverse: bool,
    },
    /// Datagrams by iperf3, as fast as it can.
    Udp {
        /// Payload of each in bytes.
        length: u16,
    },
    /// Round-trip times of single echo requests.
    Ping,
    /// Round-trip times of requests and responses of 64 bytes over UDP, one at a time.
    Latency {
        /// Whether one stream of TCP runs beside them.
        beside_bulk: bool,
    },
    /// Packets of one node per CPU-second that it spends on them, flat out.
    PacketCost(Load),
    /// The highest rate of packets that one node forwards without loss.
    Lossless(Load),
    /// What the contender's processes cost while nothing is sent.
    Idle,
}

/// What a figure is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Metric {
    /// Payload that arrived, in bits per second.
    BitsPerSecond,
    /// Packets that arrived, per second.
    PacketsPerSecond,
    /// CPU-seconds of the whole machine per gigabyte of payload that arrived.
    CpuSecondsPerGigabyte,
    /// Median round-trip time in microseconds.
    RoundTripP50,
    /// 99th percentile of the round-trip time in microseconds.
    RoundTripP99,
    /// 99.9th percentile of the round-trip time in microseconds.
    RoundTripP999,
    /// Packets per second of the node's CPU time.
    PacketsPerCpuSecond,
    /// CPU use of idle processes in percent of a core.
    IdlePercent,
    /// Resident memory of all processes in bytes.
    ResidentBytes,
    /// TCP segments that were sent again.
    Retransmits,
    /// Share of the datagrams that did not arrive, 0 to 1.
    LostShare,
    /// Packets that rings and queues of the contender have lost.
    RingDrops,
    /// Frames that interfaces of nodes and pods have dropped.
    LinkDrops,
    /// Average size in bytes of the frames on the busiest uplink.
    AverageFrame,
}

impl Metric {
    /// Whether more of it is better.
    pub fn more_is_better(self) -> bool {
        matches!(
            self,
            Self::BitsPerSecond | Self::PacketsPerSecond | Self::PacketsPerCpuSecond
        )
    }

    /// Its unit for people, and how many of its own units make one of those.
    pub fn unit(self) -> (&'static str, f64) {
        match self {
            Self::BitsPerSecond => ("Gbit/s", 1e9),
            Self::PacketsPerSecond => ("Mpps", 1e6),
            Self::CpuSecondsPerGigabyte => ("CPU-s/GB", 1.0),
            Self::RoundTripP50 => ("p50 us", 1.0),
            Self::RoundTripP99 => ("p99 us", 1.0),
            Self::RoundTripP999 => ("p99.9 us", 1.0),
            Self::PacketsPerCpuSecond => ("Mp/CPU-s", 1e6),
            Self::IdlePercent => ("idle % core", 1.0),
            Self::ResidentBytes => ("MB resident", 1e6),
            Self::Retransmits => ("retrans", 1.0),
            Self::LostShare => ("lost share", 1.0),
            Self::RingDrops => ("ring drops", 1.0),
            Self::LinkDrops => ("link drops", 1.0),
            Self::AverageFrame => ("frame B", 1.0),
        }
    }
}

/// The figures of one measurement.
pub type Values = BTreeMap<Metric, f64>;

/// A measurement's figures, or why there are none.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// The figures.
    Values(Values),
    /// Why they are no figures: what was found, one sentence after another.
    Refused(String),
}

impl Outcome {
    /// A figure, if there is one.
    pub fn value(&self, metric: Metric) -> Option<f64> {
        match self {
            Self::Values(values) => values.get(&metric).copied(),
            Self::Refused(_) => None,
        }
    }
}

impl Measure {
    /// One TCP stream with cubic, from the first node to the second.
    pub const TCP: Self = Self::tcp(1);

    /// TCP streams with cubic, from the first node to the second.
    pub const fn tcp(streams: u8) -> Self {
        Self::Tcp {
            streams,
            congestion: Congestion::Cubic,
            reverse: false,
        }
    }

    /// What it is all about; the other figures stand beside it.
    pub fn headline(self) -> Metric {
        match self {
            Self::Tcp { .. } => Metric::BitsPerSecond,
            Self::Udp { .. } => Metric::PacketsPerSecond,
            Self::Ping | Self::Latency { .. } => Metric::RoundTripP50,
            Self::PacketCost(_) => Metric::PacketsPerCpuSecond,
            Self::Lossless(_) => Metric::PacketsPerSecond,
            Self::Idle => Metric::IdlePercent,
        }
    }

    /// The figures whose ratios are told.
    pub fn compared(self) -> &'static [Metric] {
        match self {
            Self::Tcp { .. } => &[Metric::BitsPerSecond, Metric::CpuSecondsPerGigabyte],
            Self::Udp { .. } => &[Metric::PacketsPerSecond, Metric::CpuSecondsPerGigabyte],
            Self::Ping => &[Metric::RoundTripP50, Metric::RoundTripP99],
            Self::Latency { .. } => &[
                Metric::RoundTripP50,
                Metric::RoundTripP99,
                Metric::RoundTripP999,
            ],
            Self::PacketCost(_) => &[Metric::PacketsPerCpuSecond],
            Self::Lossless(_) => &[Metric::PacketsPerSecond],
            // The kernel has no process to compare with.
            Self::Idle => &[],
        }
    }

    /// The figures that stand beside it in the table.
    pub fn beside(self) -> &'static [Metric] {
        match self {
            Self::Tcp { .. } => &[
                Metric::CpuSecondsPerGigabyte,
                Metric::Retransmits,
                Metric::RingDrops,
                Metric::LinkDrops,
            ],
            Self::Udp { .. } => &[
                Metric::CpuSecondsPerGigabyte,
                Metric::LostShare,
                Metric::RingDrops,
                Metric::LinkDrops,
            ],
            Self::Ping => &[Metric::RoundTripP99],
            Self::Latency { .. } => &[
                Metric::RoundTripP99,
                Metric::RoundTripP999,
                Metric::LostShare,
            ],
            Self::PacketCost(_) => &[Metric::PacketsPerSecond, Metric::LostShare],
            Self::Lossless(_) => &[],
            Self::Idle => &[Metric::ResidentBytes],
        }
    }

    /// About how long it takes.
    pub fn duration(self, seconds: u32) -> Duration {
        match self {
            Self::Tcp { .. } | Self::Udp { .. } => Duration::from_secs(u64::from(seconds) + 1),
            Self::Ping => Duration::from_secs(1),
            Self::Latency { beside_bulk: true } => Duration::from_secs(u64::from(seconds) + 1),
            // Of 300 microseconds each.
            Self::Latency { beside_bulk: false } => Duration::from_micros(300) * (ALONE * seconds),
            // Generator and sink alone, each, and with the node.
            Self::PacketCost(_) => 3 * packets::duration(seconds),
            Self::Lossless(_) => packets::SEARCH,
            Self::Idle => IDLE_TIME,
        }
    }

    /// Whether the contender must be in charge of the first node only.
    pub fn is_of_one_node(self) -> bool {
        matches!(self, Self::PacketCost(_) | Self::Lossless(_))
    }

    /// What must be known before a contender is put in charge: the generator's own cost.
    ///
    /// # Errors
    /// When generator and sink are not faultless by themselves.
    pub fn prepare(
        self,
        cluster: &Cluster,
        contender: Contender,
        seconds: u32,
    ) -> Result<Option<Own>> {
        match self {
            Self::PacketCost(load) => load.own(cluster, contender, seconds).map(Some),
            _ => Ok(None),
        }
    }

    /// Measures a contender in charge, transfers lasting `seconds`. What fails is refused with
    /// its reason: a contender that carries nothing is a result. `own` is what
    /// [`Measure::prepare`] gave.
    ///
    /// # Errors
    /// [`Error::Interrupted`] only.
    pub fn run(
        self,
        cluster: &Cluster,
        in_charge: &InCharge,
        own: Option<&Own>,
        seconds: u32,
    ) -> Result<Outcome> {
        match self.watched(cluster, in_charge, own, seconds) {
            Err(Error::Interrupted) => Err(Error::Interrupted),
            Err(error) => Ok(Outcome::Refused(first_line(&error))),
            outcome => outcome,
        }
    }

    fn watched(
        self,
        cluster: &Cluster,
        in_charge: &InCharge,
        own: Option<&Own>,
        seconds: u32,
    ) -> Result<Outcome> {
        let (contender, carrier) = (in_charge.contender(), in_charge.carrier());
        let (from, to, address) = ends(cluster, contender);
        let watch = Watch::begin(cluster, in_charge)?;
        let made = match self {
            Self::Tcp {
                streams,
                congestion,
                reverse,
            } => {
                let run = Iperf {
                    protocol: Protocol::Tcp(congestion),
                    streams,
                    reverse,
                    seconds,
                };
                Made::Sent(run.run(from, to, address)?)
            }
            Self::Udp { length } => {
                Made::Sent(Iperf::udp(seconds, 0, length).run(from, to, address)?)
            }
            Self::Ping => Made::Outcome(Outcome::Values(pings(from, address)?)),
            Self::Latency { beside_bulk } => {
                let bulk = beside_bulk.then(|| Iperf::tcp(seconds));
                let alone = ALONE * seconds;
                Made::Outcome(Outcome::Values(round_trips(
                    from, to, address, bulk, alone,
                )?))
            }
            Self::PacketCost(load) => {
                let own = own.ok_or_else(|| {
                    Error::Unexpected("the generator's own cost is not known".to_owned())
                })?;
                let values = load.cost(cluster, contender, carrier, own, seconds)?;
                Made::Outcome(Outcome::Values(values))
            }
            Self::Lossless(load) => Made::Outcome(load.lossless(cluster, contender)?),
            Self::Idle => Made::Outcome(Outcome::Values(idle(carrier)?)),
        };
        let observed = watch.end()?;
        if !observed.faults.is_empty() {
            return Ok(Outcome::Refused(observed.faults.join("; ")));
        }
        Ok(match made {
            // A stalled connection has no ratio to anything.
            Made::Sent(Throughput { bytes: 0, .. }) => {
                Outcome::Refused("nothing arrived".to_owned())
            }
            Made::Sent(throughput) => Outcome::Values(transfer(&throughput, &observed, seconds)),
            Made::Outcome(outcome) => outcome,
        })
    }
}

/// What a measurement gives before its watch has ended.
enum Made {
    Sent(Throughput),
    Outcome(Outcome),
}

/// An error without the logs that may follow it.
pub(super) fn first_line(error: &Error) -> String {
    let text = error.to_string();
    text.lines().next().unwrap_or_default().to_owned()
}

/// Sender, receiver and the receiver's address.
pub fn ends(cluster: &Cluster, contender: Contender) -> (&Netns, &Netns, IpAddr) {
    let (node, host) = (&cluster.nodes()[0], &cluster.nodes()[1]);
    if !contender.has_pods() {
        return (&node.netns, &host.netns, host.underlay.into());
    }
    let (from, to) = (cluster.pod(0, 0), cluster.pod(1, 0));
    if contender.is_to_host() {
        return (&from.netns, &host.netns, host.underlay.into());
    }
    (&from.netns, &to.netns, to.ipv4.into())
}

#[expect(clippy::cast_precision_loss, reason = "figures for people")]
fn transfer(throughput: &Throughput, observed: &Observed, seconds: u32) -> Values {
    let mut values = Values::from([
        (Metric::BitsPerSecond, throughput.bits_per_second),
        (
            Metric::RingDrops,
            observed.lost.values().sum::<u64>() as f64,
        ),
        (Metric::LinkDrops, observed.link_drops as f64),
        (Metric::AverageFrame, observed.average_frame as f64),
    ]);
    if let Some(cost) = observed.cpu_seconds_per_gigabyte(throughput.bytes) {
        values.insert(Metric::CpuSecondsPerGigabyte, cost);
    }
    if throughput.datagrams > 0 {
        let arrived = throughput.datagrams.saturating_sub(throughput.lost) as f64;
        values.insert(Metric::PacketsPerSecond, arrived / f64::from(seconds));
        let lost = throughput.lost as f64 / throughput.datagrams as f64;
        values.insert(Metric::LostShare, lost);
    } else {
        values.insert(Metric::Retransmits, throughput.retransmits as f64);
    }
    values
}

#[expect(clippy::cast_precision_loss, reason = "microseconds, below 2^53")]
fn pings(from: &Netns, address: IpAddr) -> Result<Values> {
    let ping = Ping {
        count: PINGS,
        ..Ping::default()
    };
    let replies = ping.run(from, address)?;
    let Some((p50, p99)) = percentiles(&replies.microseconds) else {
        return Err(Error::Unexpected(format!("no answer from {address}")));
    };
    if replies.received != replies.sent {
        return Err(Error::Unexpected(format!(
            "{} of {} echo requests were answered",
            replies.received, replies.sent
        )));
    }
    Ok(Values::from([
        (Metric::RoundTripP50, p50 as f64),
        (Metric::RoundTripP99, p99 as f64),
    ]))
}

/// Requests and responses, beside a transfer or so many `alone`.
fn round_trips(
    from: &Netns,
    to: &Netns,
    address: IpAddr,
    bulk: Option<Iperf>,
    alone: u32,
) -> Result<Values> {
    let beside = bulk.map(|iperf| {
        let (from, to) = (from.clone(), to.clone());
        std::thread::spawn(move || iperf.run(&from, &to, address))
    });
    let latency = if beside.is_some() {
        std::thread::sleep(BULK_UNDER_WAY);
        Latency {
            count: BESIDE_BULK,
            warm_up: 0,
            ..Latency::default()
        }
    } else {
        Latency {
            pause: PAUSE,
            count: alone,
            ..Latency::default()
        }
    };
    let trips = latency.run(from, to, address);
    if let Some(beside) = beside {
        join(beside)?;
    }
    Ok(quantiles(&trips?))
}

/// The quantiles that there are answers enough for, and what was lost.
#[expect(clippy::cast_precision_loss, reason = "requests, below 2^53")]
fn quantiles(trips: &RoundTrips) -> Values {
    let (answered, lost) = (trips.answered as f64, trips.lost as f64);
    let all = [
        (Metric::RoundTripP50, 0.5, trips.p50_us),
        (Metric::RoundTripP99, 0.01, trips.p99_us),
        (Metric::RoundTripP999, 0.001, trips.p999_us),
    ];
    let told = all
        .into_iter()
        .filter(|(_, beyond, _)| answered * beyond >= BEYOND);
    let mut values: Values = told.map(|(metric, _, time)| (metric, time)).collect();
    values.insert(Metric::LostShare, lost / (answered + lost).max(1.0));
    values
}

/// CPU use and memory of a contender's processes; nothing where the kernel carries.
#[expect(clippy::cast_precision_loss, reason = "bytes, below 2^53")]
fn idle(carrier: &dyn Carrier) -> Result<Values> {
    let pids = carrier.pids()?;
    if pids.is_empty() {
        return Ok(Values::new());
    }
    let busy = || -> Result<Duration> { pids.iter().map(|pid| cpu::process_busy(*pid)).sum() };
    let (before, begin) = (busy()?, Instant::now());
    std::thread::sleep(IDLE_TIME);
    let (after, elapsed) = (busy()?, begin.elapsed());
    let used = after.saturating_sub(before).as_secs_f64();
    let resident: u64 = pids
        .iter()
        .map(|pid| cpu::resident_bytes(*pid))
        .sum::<Result<_>>()?;
    Ok(Values::from([
        (Metric::IdlePercent, 100.0 * used / elapsed.as_secs_f64()),
        (Metric::ResidentBytes, resident as f64),
    ]))
}

impl fmt::Display for Measure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = match self {
            Self::Tcp {
                streams,
                congestion,
                reverse,
            } => {
                let plural = if *streams == 1 { "" } else { "s" };
                let back = if *reverse { ", reverse" } else { "" };
                format!("TCP, {streams} stream{plural}, {}{back}", congestion.name())
            }
            Self::Udp { length } => format!("UDP, {length} B payload"),
            Self::Ping => "ping".to_owned(),
            Self::Latency { beside_bulk: false } => "request/response".to_owned(),
            Self::Latency { beside_bulk: true } => "request/response, busy".to_owned(),
            Self::PacketCost(load) => format!("cost, {load}"),
            Self::Lossless(load) => format!("no loss, {load}"),
            Self::Idle => "idle".to_owned(),
        };
        f.pad(&text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn measures_are_named_with_their_congestion_control() {
        assert_eq!(Measure::TCP.to_string(), "TCP, 1 stream, cubic");
        let measure = Measure::Tcp {
            streams: 4,
            congestion: Congestion::Bbr,
            reverse: true,
        };
        assert_eq!(measure.to_string(), "TCP, 4 streams, bbr, reverse");
    }

    #[test]
    fn a_quantile_is_told_with_five_answers_beyond_it() {
        let trips = |answered| RoundTrips {
            answered,
            lost: 0,
            min_us: 1.0,
            p50_us: 2.0,
            p99_us: 3.0,
            p999_us: 4.0,
            max_us: 5.0,
        };
        let told = |answered| {
            let values = quantiles(&trips(answered));
            [
                Metric::RoundTripP50,
                Metric::RoundTripP99,
                Metric::RoundTripP999,
            ]
            .map(|metric| values.get(&metric).copied())
        };
        assert_eq!(told(499), [Some(2.0), None, None]);
        assert_eq!(told(500), [Some(2.0), Some(3.0), None]);
        assert_eq!(told(5000), [Some(2.0), Some(3.0), Some(4.0)]);
    }

    #[test]
    fn of_an_error_with_logs_the_error_is_told() {
        let failed = Error::Unexpected("no answer\n--- log".to_owned());
        assert_eq!(first_line(&failed), "no answer");
    }

    #[test]
    fn a_transfer_of_datagrams_has_packets_and_losses() {
        let throughput = Throughput {
            bits_per_second: 8e6,
            bytes: 1_000_000,
            retransmits: 0,
            datagrams: 1000,
            lost: 250,
        };
        let observed = Observed {
            cpu: Duration::from_millis(5),
            average_frame: 1000,
            link_drops: 250,
            lost: BTreeMap::from([("rx_dropped".to_owned(), 7)]),
            faults: Vec::new(),
        };
        let values = transfer(&throughput, &observed, 2);
        assert_eq!(values[&Metric::PacketsPerSecond], 375.0);
        assert_eq!(values[&Metric::LostShare], 0.25);
        assert_eq!(values[&Metric::RingDrops], 7.0);
        assert_eq!(values[&Metric::CpuSecondsPerGigabyte], 5.0);
        assert!(!values.contains_key(&Metric::Retransmits));
    }

    #[test]
    fn outcomes_survive_a_file() {
        for outcome in [
            Outcome::Values(Values::from([(Metric::RoundTripP50, 59.0)])),
            Outcome::Refused("a lie".to_owned()),
        ] {
            let text = serde_json::to_string(&outcome).unwrap();
            assert_eq!(serde_json::from_str::<Outcome>(&text).unwrap(), outcome);
        }
    }
}
