//! The interleaving: every round puts every contender in charge once.
//!
//! A shared machine drifts, so figures are compared within a round. Each round begins with
//! another contender, so that none always follows the same one.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::measure::{Measure, Outcome, first_line};
use super::wire::Wire;
use crate::contender::{Contender, InCharge};
use crate::netns::Netns;
use crate::ping::Ping;
use crate::topology::{Cluster, ClusterSpec};
use crate::{Error, Result, cpu};

/// One measurement of one contender in one round.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// What joined the nodes.
    pub wire: Wire,
    /// What was measured.
    pub measure: Measure,
    /// Who was in charge.
    pub contender: Contender,
    /// The round, from 1.
    pub round: u32,
    /// What came of it.
    pub outcome: Outcome,
}

/// Contenders that are compared with each other on one wire.
#[derive(Debug, Clone)]
pub struct Rounds {
    /// What joins the nodes.
    pub wire: Wire,
    /// The network of that wire.
    pub spec: ClusterSpec,
    /// Who is compared.
    pub contenders: Vec<Contender>,
    /// In what.
    pub measures: Vec<Measure>,
    /// How often.
    pub rounds: u32,
    /// How long each transfer lasts.
    pub seconds: u32,
}

/// What was measured, with the engines that were.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Measured {
    /// The samples in the order in which they were taken.
    pub samples: Vec<Sample>,
    /// Version, mode and engine of each contender that came up.
    pub engines: BTreeMap<Contender, String>,
}

impl Rounds {
    /// Measures, telling of each sample as it is taken. The network is made for it, and left to
    /// the caller. What cannot be measured is refused with its reason: a contender that does not
    /// come up, carries nothing or does not end well is a result.
    ///
    /// # Errors
    /// When the network cannot be built, `told` fails, or the user wishes to end; the network is
    /// removed then.
    pub fn run(&self, mut told: impl FnMut(&Sample) -> Result<()>) -> Result<(Cluster, Measured)> {
        let missing = self.missing_core();
        cpu::pin_this_thread(self.wire.core())?;
        let result = self.measure(missing.as_deref(), &mut told);
        cpu::pin_this_thread(None)?;
        result
    }

    /// About how long all of it takes, in seconds.
    pub fn estimate(&self) -> u64 {
        // Putting a contender in charge and taking it away.
        let change = 2;
        let turns = self.contenders.iter().map(|contender| {
            let measures = self.measures_of(*contender);
            let times = measures.map(|measure| measure.duration(self.seconds).as_secs());
            change + times.sum::<u64>()
        });
        u64::from(self.rounds) * turns.sum::<u64>()
    }

    /// What is measured of a contender. The generator's packets are for a router; a full node, and
    /// what is not between pods, is asked for one flow.
    fn measures_of(&self, contender: Contender) -> impl Iterator<Item = Measure> {
        let measures = self.measures.iter().copied();
        measures.filter(move |measure| match contender {
            Contender::PodwayVxlanFull
            | Contender::Hosts
            | Contender::HostsBesidePodway
            | Contender::KernelWorld
            | Contender::PodwayWorld => *measure == Measure::TCP,
            _ => !(measure.is_of_one_node() && contender.is_switch()),
        })
    }

    fn measure(
        &self,
        missing: Option<&str>,
        told: &mut impl FnMut(&Sample) -> Result<()>,
    ) -> Result<(Cluster, Measured)> {
        let mut cluster = Cluster::new(self.spec.clone())?;
        let mut measured = Measured::default();
        for round in 1..=self.rounds {
            let mut order = self.contenders.clone();
            let first = (round as usize - 1) % order.len().max(1);
            order.rotate_left(first);
            for contender in order {
                let turn = match missing {
                    Some(reason) => Ok(self.all_refused(contender, reason)),
                    None => self.turn(&cluster, contender, &mut measured.engines),
                };
                let outcomes = match turn {
                    Ok(outcomes) => outcomes,
                    Err(Error::Interrupted) => return Err(Error::Interrupted),
                    Err(error) => {
                        // Who knows what is left of it: the next one gets a network of its own.
                        drop(cluster);
                        cluster = Cluster::new(self.spec.clone())?;
                        self.all_refused(contender, &first_line(&error))
                    }
                };
                for (measure, outcome) in outcomes {
                    let sample = Sample {
                        wire: self.wire,
                        measure,
                        contender,
                        round,
                        outcome,
                    };
                    told(&sample)?;
                    measured.samples.push(sample);
                }
            }
        }
        Ok((cluster, measured))
    }

    /// One contender's turn: in charge of all nodes, and then of the first one only.
    fn turn(
        &self,
        cluster: &Cluster,
        contender: Contender,
        engines: &mut BTreeMap<Contender, String>,
    ) -> Result<Vec<(Measure, Outcome)>> {
        forget_path_mtus(cluster)?;
        let measures = self.measures_of(contender);
        let (one, all): (Vec<_>, Vec<_>) = measures.partition(|measure| measure.is_of_one_node());
        let mut outcomes = Vec::new();
        if !all.is_empty() {
            let in_charge = InCharge::put(contender, cluster)?;
            reach(cluster, contender)?;
            engines.insert(contender, in_charge.carrier().engine(cluster)?);
            for measure in all {
                let outcome = measure.run(cluster, &in_charge, None, self.seconds)?;
                outcomes.push((measure, outcome));
            }
            in_charge.take_away(cluster)?;
        }
        if !one.is_empty() {
            let prepared = one.iter().map(|measure| {
                let own = measure.prepare(cluster, contender, self.seconds);
                Ok((*measure, interrupted(own)?))
            });
            let prepared = prepared.collect::<Result<Vec<_>>>()?;
            let in_charge = InCharge::put_on(contender, cluster, &cluster.nodes()[..1])?;
            for (measure, own) in prepared {
                let outcome = match own {
                    Ok(own) => measure.run(cluster, &in_charge, own.as_ref(), self.seconds)?,
                    Err(error) => Outcome::Refused(first_line(&error)),
                };
                outcomes.push((measure, outcome));
            }
            in_charge.take_away(cluster)?;
        }
        Ok(outcomes)
    }

    fn all_refused(&self, contender: Contender, reason: &str) -> Vec<(Measure, Outcome)> {
        let measures = self.measures_of(contender);
        measures
            .map(|measure| (measure, Outcome::Refused(reason.to_owned())))
            .collect()
    }

    fn missing_core(&self) -> Option<String> {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        (self.wire.core().is_some() && cores < 2)
            .then(|| format!("a worker with a core of its own needs two cores, not {cores}"))
    }
}

/// Sets the user's wish to end apart from what went wrong.
fn interrupted<T>(result: Result<T>) -> Result<std::result::Result<T, Error>> {
    match result {
        Err(Error::Interrupted) => Err(Error::Interrupted),
        other => Ok(other),
    }
}

/// What routers have told nodes and pods of their paths is not for the next contender to know.
fn forget_path_mtus(cluster: &Cluster) -> Result<()> {
    for node in cluster.nodes() {
        let pods = node.pods.iter().map(|pod| &pod.netns);
        for netns in pods.chain([&node.netns]) {
            netns.sysctl(&["net.ipv4.route.flush=1"])?;
        }
    }
    Ok(())
}

/// How long pods may take to reach each other: one lost pair of pings is no verdict.
const REACH_LIMIT: Duration = Duration::from_secs(5);

/// Every pod (or node) must reach every other before anything is measured.
fn reach(cluster: &Cluster, contender: Contender) -> Result<()> {
    let ends: Vec<(&Netns, std::net::IpAddr)> = cluster
        .nodes()
        .iter()
        .map(|node| {
            if contender.has_pods() {
                (&node.pods[0].netns, node.pods[0].ipv4.into())
            } else {
                (&node.netns, node.underlay.into())
            }
        })
        .collect();
    let ping = Ping {
        count: 2,
        ..Ping::default()
    };
    for (from, own) in &ends {
        for (_, target) in ends.iter().filter(|(_, target)| target != own) {
            let deadline = Instant::now() + REACH_LIMIT;
            while ping.run(from, *target)?.received == 0 {
                if Instant::now() > deadline {
                    return Err(Error::Unexpected(format!(
                        "{}: {own} does not reach {target}",
                        contender.label()
                    )));
                }
            }
        }
    }
    Ok(())
}
