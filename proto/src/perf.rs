//! What workers spend their time on, stage by stage; `podway perf` shows it.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A part of a worker's work on a burst.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stage {
    /// The burst is taken: read from the TAP, copied from the packet ring, or taken from an AF_XDP
    /// ring.
    Receive,
    /// Each packet is decided on, rewritten and gathered into a message.
    Forward,
    /// What was gathered is handed to the kernel.
    Send,
    /// Frames go back to the pool, and on to the fill ring.
    Recycle,
}

impl Stage {
    /// All of them, in the order of the work.
    pub const ALL: [Self; 4] = [Self::Receive, Self::Forward, Self::Send, Self::Recycle];
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Receive => "receive",
            Self::Forward => "forward",
            Self::Send => "send",
            Self::Recycle => "recycle",
        })
    }
}

/// What the workers did since the dataplane was started, or this was begun anew.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Perf {
    /// How long that is.
    pub seconds: f64,
    /// By worker.
    pub workers: Vec<WorkerPerf>,
}

/// What one worker did.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct WorkerPerf {
    /// Its number, from 0.
    pub worker: u16,
    /// The CPU it is pinned to; `None` when it is not.
    pub cpu: Option<usize>,
    /// Counts of all that it did.
    pub work: Work,
    /// What was measured of some of its bursts; `None` when the worker does not answer.
    pub sampled: Option<Sampled>,
}

/// Counts of a worker. Divided by each other they tell how well work is batched.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Work {
    /// Rounds of the loop.
    pub rounds: u64,
    /// Bursts that had at least one packet.
    pub bursts: u64,
    /// Packets received, a super-frame counting one.
    pub received: u64,
    /// Packets sent.
    pub sent: u64,
    /// Messages that they were sent by.
    pub messages: u64,
    /// Packets of those sent that left inside another one's message.
    pub joined: u64,
    /// System calls to receive.
    pub rx_calls: u64,
    /// System calls to send.
    pub tx_calls: u64,
    /// System calls to find ready queues, and to wait for one.
    pub wait_calls: u64,
    /// Nanoseconds spent with packets.
    pub busy_nanoseconds: u64,
}

impl Work {
    /// What was done since `before`.
    #[must_use]
    pub fn since(&self, before: &Self) -> Self {
        let less = |field: fn(&Self) -> u64| field(self).saturating_sub(field(before));
        Self {
            rounds: less(|w| w.rounds),
            bursts: less(|w| w.bursts),
            received: less(|w| w.received),
            sent: less(|w| w.sent),
            messages: less(|w| w.messages),
            joined: less(|w| w.joined),
            rx_calls: less(|w| w.rx_calls),
            tx_calls: less(|w| w.tx_calls),
            wait_calls: less(|w| w.wait_calls),
            busy_nanoseconds: less(|w| w.busy_nanoseconds),
        }
    }
}

/// What was measured of some of a worker's bursts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Sampled {
    /// One of so many bursts is.
    pub every: u32,
    /// Bursts that were.
    pub bursts: u64,
    /// Packets in them.
    pub packets: u64,
    /// Each stage, in the order of the work.
    pub stages: Vec<StagePerf>,
    /// Packets of a burst.
    pub burst_packets: Spread,
    /// How full, in percent, the ring was that the burst was taken from; a TAP does not tell.
    pub ring_percent: Spread,
    /// How much, in percent, of the most that is taken at once was taken from a TAP: at 100 more may
    /// have waited there, below it was emptied.
    #[serde(default)]
    pub tap_burst_percent: Spread,
    /// How many, in percent, of the frames that an AF_XDP queue is to have posted were posted.
    pub posted_percent: Spread,
    /// How many, in percent, of the worker's frames were in its pool.
    pub pool_percent: Spread,
}

/// The time that one stage took.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StagePerf {
    /// Which.
    pub stage: Stage,
    /// Nanoseconds of all measured bursts.
    pub nanoseconds: u64,
    /// Nanoseconds of a burst.
    pub per_burst: Spread,
    /// Nanoseconds of a packet: those of its burst by its packets.
    pub per_packet: Spread,
}

/// How values are spread; all 0 when there is none. Times are to two digits.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    /// How many there are.
    pub count: u64,
    /// Their mean.
    pub mean: f64,
    /// The median: half of them are not above it.
    pub p50: u64,
    /// 90 of 100 are not above it.
    pub p90: u64,
    /// 99 of 100 are not above it.
    pub p99: u64,
    /// 999 of 1000 are not above it.
    pub p999: u64,
    /// The largest.
    pub max: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_since_is_the_difference_of_each_count() {
        let work = |n: u64| Work {
            rounds: n,
            bursts: 2 * n,
            received: 3 * n,
            sent: 4 * n,
            messages: 5 * n,
            joined: 6 * n,
            rx_calls: 7 * n,
            tx_calls: 8 * n,
            wait_calls: 9 * n,
            busy_nanoseconds: 10 * n,
        };
        assert_eq!(work(5).since(&work(2)), work(3));
        // The dataplane was started anew in between.
        assert_eq!(work(2).since(&work(5)), work(0));
    }
}
