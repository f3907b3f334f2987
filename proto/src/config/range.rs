//! What values the `[dataplane]` section may have on any machine.

use std::fmt::Display;

use super::DataplaneConfig;

/// Most workers: the XDP program has as many heartbeats.
const MAX_WORKERS: u16 = 64;
/// Frames that a worker needs at least: the rings of an uplink and a pod at work, and a burst.
const MIN_FRAMES: u32 = 1024;
/// The region is addressed by 32-bit offsets, 4096 bytes a frame.
const MAX_FRAMES_IN_ALL: u64 = (1 << 20) - 1;

/// A field of the section has a value out of its range.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("dataplane.{field} = {value}: {remedy}")]
pub struct OutOfRange {
    field: &'static str,
    value: String,
    remedy: String,
}

impl OutOfRange {
    /// `field` has `value`; `remedy` says what to write instead.
    pub fn new(field: &'static str, value: &dyn Display, remedy: impl Into<String>) -> Self {
        Self {
            field,
            value: value.to_string(),
            remedy: remedy.into(),
        }
    }
}

impl DataplaneConfig {
    /// Checks every value that is in or out of range whatever the machine; whether it has the cores
    /// is seen on it.
    ///
    /// # Errors
    /// [`OutOfRange`] names the first field that is not, and what to write instead.
    pub fn check(&self) -> Result<(), OutOfRange> {
        let range =
            |field, value: &dyn Display, remedy: String| Err(OutOfRange::new(field, value, remedy));
        let workers = self.workers;
        if !(1..=MAX_WORKERS).contains(&workers) {
            return range("workers", &workers, format!("use 1 to {MAX_WORKERS}"));
        }
        if !self.cores.is_empty() && self.cores.len() != usize::from(workers) {
            let remedy = format!("name one core for each of {workers} workers");
            return range("cores", &format!("{:?}", self.cores), remedy);
        }
        let most = MAX_FRAMES_IN_ALL / u64::from(workers);
        if self.frames < MIN_FRAMES || u64::from(self.frames) > most {
            let remedy = format!("use {MIN_FRAMES} to {most}");
            return range("frames", &self.frames, remedy);
        }
        if !self.ring_size.is_power_of_two() || !(64..=16384).contains(&self.ring_size) {
            let remedy = "use a power of two from 64 to 16384".to_owned();
            return range("ring-size", &self.ring_size, remedy);
        }
        if self.spin_microseconds > 100_000 {
            let remedy = "use up to 100000; for more, set wait = \"spin\"".to_owned();
            return range("spin-microseconds", &self.spin_microseconds, remedy);
        }
        if self.doze_microseconds > 1000 {
            let remedy = "use up to 1000: packets wait in the ring meanwhile".to_owned();
            return range("doze-microseconds", &self.doze_microseconds, remedy);
        }
        if self
            .cpu_latency_microseconds
            .is_some_and(|latency| latency > 1_000_000)
        {
            let latency = self.cpu_latency_microseconds.unwrap_or_default();
            let remedy = "use up to 1000000, or leave it out".to_owned();
            return range("cpu-latency-microseconds", &latency, remedy);
        }
        if !self.source_ports.is_power_of_two() || !(2..=16384).contains(&self.source_ports) {
            let remedy = "use a power of two from 2 to 16384".to_owned();
            return range("source-ports", &self.source_ports, remedy);
        }
        Ok(())
    }
}
