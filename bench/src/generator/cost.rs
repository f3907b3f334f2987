//! Packets per busy CPU-second of one node.
//!
//! Flat out only: a paced generator spins, and what the node does on the generator's CPU would
//! hide in the time that the generator has to spare. Each packet sent flat out costs the generator
//! the same, with a node behind it and without.

use std::thread;
use std::time::Duration;

use serde::Serialize;

use super::rig::{Path, Rig, Trial};
use super::run::{Plan, Rate, run};
use super::sink::Dropper;
use crate::{Error, Result, cpu};

/// How long the machine is watched doing nothing.
const BACKGROUND: Duration = Duration::from_millis(500);

/// What generator and sink cost by themselves, for packets of one kind.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Own {
    /// CPUs that were busy before anything was sent. Whatever they worked on goes on, and is
    /// taken for the node's work: near 0, or no figure means much.
    pub background_cpus: f64,
    /// CPU time of the generator per packet sent, in nanoseconds: sent to an end that drops in
    /// the driver.
    pub generator_ns: f64,
    /// CPU time of receipt and sink per frame arrived, in nanoseconds.
    pub sink_ns: f64,
    /// Packets sent to the dropping end.
    pub dropped: u64,
    /// CPU time that the machine spent meanwhile, in seconds.
    pub dropped_busy_seconds: f64,
    /// The run with the sink at the other end of the generator's own veth.
    pub sunk: Trial,
}

/// What a node did with its CPU time.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Cost {
    /// What was sent and what arrived.
    pub trial: Trial,
    /// Part of the machine's busy time that the generator had, in seconds.
    pub generator_seconds: f64,
    /// Part of it that the sink had, in seconds.
    pub sink_seconds: f64,
    /// The rest, in seconds: the node's.
    pub node_seconds: f64,
    /// Packets that arrived per second of the node's CPU time.
    pub packets_per_cpu_second: f64,
}

impl Own {
    /// Measures generator and sink without a node in between, flat out, `duration` each. No
    /// contender may be in charge of the path's entry.
    ///
    /// # Errors
    /// When the counts do not agree, or a packet was lost that the entry's ring had taken:
    /// nothing that such a generator measures is worth anything.
    pub fn measure(path: &Path, duration: Duration) -> Result<Self> {
        let background = cpu::machine_busy()?;
        thread::sleep(BACKGROUND);
        let background = cpu::machine_busy()?.saturating_sub(background);
        let (dropped, busy) = {
            let _dropper = Dropper::attach(&path.entry.netns, &path.entry.name)?;
            let plan = Plan::new(path.traffic, Rate::FlatOut, duration);
            let before = cpu::machine_busy()?;
            let sent = run(&path.source.netns, &path.source.name, &plan)?;
            let busy = cpu::machine_busy()?.saturating_sub(before);
            (sent.packets, busy.as_secs_f64())
        };
        let sunk = Rig::set_up(path.alone())?.trial(Rate::FlatOut, duration)?;
        faultless(&sunk)?;
        let generator_ns = busy * 1e9 / count(dropped);
        let beyond = sunk.busy_seconds - generator_ns * count(sunk.sent) / 1e9;
        Ok(Self {
            background_cpus: background.as_secs_f64() / BACKGROUND.as_secs_f64(),
            generator_ns,
            sink_ns: beyond.max(0.0) * 1e9 / count(sunk.arrived.frames),
            dropped,
            dropped_busy_seconds: busy,
            sunk,
        })
    }
}

impl Cost {
    /// Measures the node on the rig's path: flat out for `duration`, with `own` subtracted.
    ///
    /// # Errors
    /// When the trial's counts do not agree, or nothing is left after the subtraction.
    pub fn measure(rig: &Rig, own: &Own, duration: Duration) -> Result<Self> {
        Self::of(rig.trial(Rate::FlatOut, duration)?, own)
    }

    fn of(trial: Trial, own: &Own) -> Result<Self> {
        trial
            .check()
            .map_err(|refusal| Error::Unexpected(refusal.to_string()))?;
        let busy_seconds = trial.busy_seconds;
        let generator_seconds = own.generator_ns * count(trial.sent) / 1e9;
        // A super-frame is received once, whatever it holds.
        let sink_seconds = own.sink_ns * count(trial.arrived.frames) / 1e9;
        let node_seconds = busy_seconds - generator_seconds - sink_seconds;
        if node_seconds <= 0.0 {
            return Err(Error::Unexpected(format!(
                "generator and sink alone take {:.2} CPU-seconds for what took {busy_seconds:.2} \
                 with the node: the difference is no measurement",
                generator_seconds + sink_seconds
            )));
        }
        Ok(Self {
            packets_per_cpu_second: count(trial.arrived.packets) / node_seconds,
            trial,
            generator_seconds,
            sink_seconds,
            node_seconds,
        })
    }
}

/// Between generator and sink alone nothing is lost, but to the ring of the veth.
fn faultless(trial: &Trial) -> Result<()> {
    trial
        .check()
        .map_err(|refusal| Error::Unexpected(refusal.to_string()))?;
    let taken = trial.given - trial.refused_by_ring;
    if trial.arrived.packets == taken && taken > 0 {
        return Ok(());
    }
    Err(Error::Unexpected(format!(
        "generator and sink alone lose packets: {} arrived of {taken}",
        trial.arrived.packets
    )))
}

#[expect(
    clippy::cast_precision_loss,
    reason = "packets of a run are far below 2^53"
)]
fn count(packets: u64) -> f64 {
    packets as f64
}

#[cfg(test)]
mod tests {
    use super::super::rig::tests::trial;
    use super::*;

    fn own() -> Own {
        Own {
            background_cpus: 0.0,
            generator_ns: 200.0,
            sink_ns: 100.0,
            dropped: 0,
            dropped_busy_seconds: 0.0,
            sunk: trial(2, 2),
        }
    }

    #[test]
    fn generator_and_sink_are_subtracted_by_what_they_handled() {
        let cost = Cost::of(trial(2_000_000, 1_000_000), &own()).unwrap();
        assert!((cost.generator_seconds - 0.4).abs() < 1e-9);
        assert!((cost.sink_seconds - 0.1).abs() < 1e-9);
        assert!((cost.node_seconds - 1.0).abs() < 1e-9);
        assert!((cost.packets_per_cpu_second - 1e6).abs() < 1.0);
        let mut joined = trial(2_000_000, 1_000_000);
        joined.arrived.frames = 250_000;
        let cost = Cost::of(joined, &own()).unwrap();
        assert!((cost.sink_seconds - 0.025).abs() < 1e-9);
    }

    #[test]
    fn nothing_left_is_no_result() {
        let idle = Trial {
            busy_seconds: 0.5,
            ..trial(2_000_000, 1_000_000)
        };
        let error = Cost::of(idle, &own()).unwrap_err();
        assert!(error.to_string().contains("is no measurement"), "{error}");
    }

    #[test]
    fn only_the_ring_may_lose_between_generator_and_sink() {
        let full = Trial {
            refused_by_ring: 10,
            ..trial(100, 90)
        };
        assert!(faultless(&full).is_ok());
        assert!(faultless(&trial(100, 90)).is_err());
        assert!(faultless(&Trial { given: 90, ..full }).is_err());
    }
}
