//! Packets of one node: what each costs, and how many it takes without loss.
//!
//! The contender is in charge of the first node only. Generator and sink are at its two sides.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::measure::{Metric, Outcome, Values};
use crate::Result;
use crate::contender::{Carrier, Contender};
use crate::generator::cost::{Cost, Own};
use crate::generator::receive::{set_rps, set_threaded};
use crate::generator::rig::{Interface, Path, Rig};
use crate::generator::search::{Found, Limit, Search};
use crate::topology::Cluster;

/// CPUs that may work on what the kernel receives: both of the generator's machine.
const BOTH_CPUS: u32 = 0b11;
/// Rates of interest of the search, in packets per second.
const RATES: std::ops::RangeInclusive<u64> = 5_000..=2_000_000;
/// How close the search comes to the answer, as a part of it.
const RESOLUTION: f64 = 0.1;
/// Length of a trial of the search: the generator is a real-time thread for no longer.
const TRIAL: Duration = Duration::from_millis(800);
/// About how long a search takes: some eight trials, of which a few are made again.
pub(super) const SEARCH: Duration = Duration::from_secs(12);

/// Which way the packets go through the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Direction {
    /// From a pod to the uplink: encapsulated, or routed where there is no tunnel.
    Out,
    /// From the uplink to a pod: decapsulated, or routed.
    In,
}

/// The packets of a measurement.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Load {
    /// Their way.
    pub direction: Direction,
    /// Their length in bytes, Ethernet header included, tunnel not.
    pub size: u16,
    /// Their flows.
    pub flows: u16,
}

impl fmt::Display for Load {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let way = match self.direction {
            Direction::Out => "out",
            Direction::In => "in",
        };
        write!(f, "{} B {way}, {} flow(s)", self.size, self.flows)
    }
}

impl Load {
    fn path(self, cluster: &Cluster, contender: Contender) -> Result<Path> {
        match (self.direction, contender.is_native()) {
            (Direction::Out, _) => Path::out_of_pod(cluster, self.size, self.flows),
            (Direction::In, false) => Path::into_pod_by_vxlan(cluster, self.size, self.flows),
            (Direction::In, true) => Path::into_pod(cluster, self.size, self.flows),
        }
    }

    /// What generator and sink cost by themselves, with nobody in charge.
    pub(super) fn own(self, cluster: &Cluster, contender: Contender, seconds: u32) -> Result<Own> {
        Own::measure(&self.path(cluster, contender)?, duration(seconds))
    }

    /// Packets per busy CPU-second, flat out.
    pub(super) fn cost(
        self,
        cluster: &Cluster,
        contender: Contender,
        carrier: &dyn Carrier,
        own: &Own,
        seconds: u32,
    ) -> Result<Values> {
        let rig = Rig::set_up(self.path(cluster, contender)?)?;
        let _spread = Spread::over_cpus(&rig.path().entry, carrier)?;
        let cost = Cost::measure(&rig, own, duration(seconds))?;
        Ok(Values::from([
            (Metric::PacketsPerCpuSecond, cost.packets_per_cpu_second),
            (
                Metric::PacketsPerSecond,
                cost.trial.offered() * cost.trial.delivered(),
            ),
            (Metric::LostShare, 1.0 - cost.trial.delivered()),
        ]))
    }

    /// The highest rate without loss. What the entry receives is worked on by a thread of the
    /// kernel's, for every contender: on the generator's CPU it would spoil the pace.
    pub(super) fn lossless(self, cluster: &Cluster, contender: Contender) -> Result<Outcome> {
        let rig = Rig::set_up(self.path(cluster, contender)?)?;
        let _threaded = Threaded::set(&rig.path().entry)?;
        let search = Search {
            lowest: *RATES.start(),
            highest: *RATES.end(),
            resolution: RESOLUTION,
            tolerance: 0.0,
            trial: TRIAL,
        };
        Ok(judge(&search.on(&rig)?))
    }
}

/// A search that the generator ended is no figure of the node.
fn judge(found: &Found) -> Outcome {
    let rate = found.packets_per_second();
    match &found.limit {
        Limit::Generator(refusal) => Outcome::Refused(match rate {
            Some(rate) => {
                format!("{refusal}; the node takes at least {rate:.0} packets per second")
            }
            None => refusal.to_string(),
        }),
        // Not even the lowest rate without loss.
        Limit::Loss | Limit::Highest => Outcome::Values(Values::from([(
            Metric::PacketsPerSecond,
            rate.unwrap_or(0.0),
        )])),
    }
}

/// How long packets are generated at a time: half as long as a transfer, which has its slow start.
pub(super) fn duration(seconds: u32) -> Duration {
    Duration::from_secs(seconds.div_ceil(2).into())
}

/// Every contender may use all CPUs. Those with processes do; the kernel works on the CPU of the
/// generator unless it is told otherwise.
struct Spread<'i>(Option<&'i Interface>);

impl<'i> Spread<'i> {
    fn over_cpus(entry: &'i Interface, carrier: &dyn Carrier) -> Result<Self> {
        if !carrier.pids()?.is_empty() {
            return Ok(Self(None));
        }
        set_rps(entry, BOTH_CPUS)?;
        Ok(Self(Some(entry)))
    }
}

impl Drop for Spread<'_> {
    fn drop(&mut self) {
        if let Some(Err(error)) = self.0.map(|entry| set_rps(entry, 0)) {
            eprintln!("podway-bench: {error}");
        }
    }
}

/// Receipt of an interface by a thread, until dropped.
struct Threaded<'i>(&'i Interface);

impl<'i> Threaded<'i> {
    fn set(entry: &'i Interface) -> Result<Self> {
        set_threaded(entry, true)?;
        Ok(Self(entry))
    }
}

impl Drop for Threaded<'_> {
    fn drop(&mut self) {
        if let Err(error) = set_threaded(self.0, false) {
            eprintln!("podway-bench: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::generator::pacing::Unpaced;
    use crate::generator::rig::Refusal;

    fn found(limit: Limit) -> Found {
        Found {
            best: None,
            limit,
            trials: Vec::new(),
        }
    }

    #[test]
    fn a_search_that_the_generator_ended_is_refused() {
        let uneven = Refusal::Unpaced(Unpaced::Uneven { share: 0.2 });
        let Outcome::Refused(reason) = judge(&found(Limit::Generator(uneven))) else {
            panic!("not refused");
        };
        assert!(
            reason.starts_with("the generator was not even: 20.0 %"),
            "{reason}"
        );
    }

    #[test]
    fn loss_at_every_rate_is_a_figure() {
        let outcome = judge(&found(Limit::Loss));
        assert_eq!(outcome.value(Metric::PacketsPerSecond), Some(0.0));
    }
}
