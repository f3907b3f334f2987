//! Where a worker's time goes, stage by stage, and how full its rings are: of one burst in
//! [`EVERY`], always.
//!
//! Histograms have their buckets from the start, and what is beyond them counts as their largest
//! value, so that recording never allocates. Who wants to know what was measured gives the worker empty
//! ones for those that it has filled ([`Stages::exchange`]), and adds them up itself: the worker copies
//! nothing.

use hdrhistogram::Histogram;
use podway_proto::perf::{Sampled, Spread, Stage, StagePerf};

use crate::clock::monotonic_nanoseconds;
use crate::ingress::{Burst, Ingress};
use crate::xsk::FramePool;

/// One burst of so many is measured. A prime: bursts of TAP and packet ring that take turns are both
/// met.
pub const EVERY: u32 = 61;

/// Digits that times are kept to; numbers below a thousand are whole.
const TIMES: u8 = 2;
const NUMBERS: u8 = 3;
/// Nanoseconds that a stage may take with a burst and, by packets, with a packet.
const LONGEST_BURST: u64 = 1_000_000_000;
const LONGEST_PACKET: u64 = 10_000_000;
/// Packets of a burst.
const LONGEST: u64 = 1024;
const STAGES: usize = Stage::ALL.len();

/// Measures a worker's bursts.
#[derive(Debug)]
pub struct Stages {
    /// Bursts until one is measured; 0: the one under way is.
    left: u32,
    /// When the stage under way began.
    began: u64,
    /// Nanoseconds of the stages of the burst under way.
    laps: [u64; STAGES],
    /// How full the rings were when it began, and what was taken.
    levels: Levels,
    measured: Box<Measured>,
}

/// What was measured of a worker's bursts: a quarter of a megabyte.
#[derive(Debug)]
pub struct Measured {
    bursts: u64,
    packets: u64,
    times: [Times; STAGES],
    burst_packets: Histogram<u64>,
    ring: Histogram<u64>,
    tap_burst: Histogram<u64>,
    posted: Histogram<u64>,
    pool: Histogram<u64>,
}

/// Percentages; none where there is no such ring.
#[derive(Debug, Clone, Copy, Default)]
struct Levels {
    ring: Option<u64>,
    tap_burst: Option<u64>,
    posted: Option<u64>,
    pool: Option<u64>,
}

#[derive(Debug)]
struct Times {
    sum: u64,
    per_burst: Histogram<u64>,
    per_packet: Histogram<u64>,
}

impl Default for Times {
    fn default() -> Self {
        Self {
            sum: 0,
            per_burst: histogram(LONGEST_BURST, TIMES),
            per_packet: histogram(LONGEST_PACKET, TIMES),
        }
    }
}

impl Default for Stages {
    fn default() -> Self {
        Self {
            left: EVERY - 1,
            began: 0,
            laps: [0; STAGES],
            levels: Levels::default(),
            measured: Box::default(),
        }
    }
}

impl Default for Measured {
    fn default() -> Self {
        Self {
            bursts: 0,
            packets: 0,
            times: Default::default(),
            burst_packets: histogram(LONGEST, NUMBERS),
            ring: histogram(100, NUMBERS),
            tap_burst: histogram(100, NUMBERS),
            posted: histogram(100, NUMBERS),
            pool: histogram(100, NUMBERS),
        }
    }
}

#[expect(clippy::expect_used, reason = "constants, which the tests have")]
fn histogram(most: u64, digits: u8) -> Histogram<u64> {
    Histogram::new_with_bounds(1, most, digits).expect("bounds and digits that fit")
}

impl Stages {
    /// A burst may begin: it does if anything is received.
    #[inline]
    pub fn start(&mut self, ingress: &mut Ingress, pool: &FramePool) {
        if self.left == 0 {
            self.look(ingress, pool);
        }
    }

    /// The burst was taken: [`Stage::Receive`] has ended.
    #[inline]
    pub fn received(&mut self, ingress: &Ingress, burst: &Burst) {
        if self.left == 0 {
            self.note(Stage::Receive);
            self.levels.tap_burst = ingress.taken(burst).and_then(percent);
        }
    }

    /// A stage has ended, and the next one begins.
    #[inline]
    pub fn lap(&mut self, stage: Stage) {
        if self.left == 0 {
            self.note(stage);
        }
    }

    /// The burst, and with it the last stage, has ended.
    #[inline]
    pub fn end(&mut self, packets: usize) {
        match self.left.checked_sub(1) {
            Some(left) => self.left = left,
            None => self.record(packets as u64),
        }
    }

    #[cold]
    fn look(&mut self, ingress: &mut Ingress, pool: &FramePool) {
        self.levels = Levels {
            ring: ingress.waiting().and_then(percent),
            tap_burst: None,
            posted: ingress.prepared().and_then(percent),
            pool: percent((pool.available(), pool.made())),
        };
        self.began = monotonic_nanoseconds();
    }

    #[cold]
    fn note(&mut self, stage: Stage) {
        let now = monotonic_nanoseconds();
        if let Some(lap) = self.laps.get_mut(stage as usize) {
            *lap = now.saturating_sub(self.began);
        }
        self.began = now;
    }

    #[cold]
    fn record(&mut self, packets: u64) {
        self.note(Stage::Recycle);
        self.left = EVERY - 1;
        if packets > 0 {
            self.measured.record(packets, &self.laps, self.levels);
        }
    }

    /// Gives away what was measured since the last time, and goes on in `empty`.
    pub fn exchange(&mut self, empty: Box<Measured>) -> Box<Measured> {
        std::mem::replace(&mut self.measured, empty)
    }
}

impl Measured {
    fn record(&mut self, packets: u64, laps: &[u64; STAGES], levels: Levels) {
        self.bursts += 1;
        self.packets += packets;
        for (times, &lap) in self.times.iter_mut().zip(laps) {
            times.sum += lap;
            times.per_burst.saturating_record(lap);
            times.per_packet.saturating_record_n(lap / packets, packets);
        }
        self.burst_packets.saturating_record(packets);
        for (histogram, level) in [
            (&mut self.ring, levels.ring),
            (&mut self.tap_burst, levels.tap_burst),
            (&mut self.posted, levels.posted),
            (&mut self.pool, levels.pool),
        ] {
            if let Some(level) = level {
                histogram.saturating_record(level);
            }
        }
    }

    /// Adds what was measured at another time.
    pub fn add(&mut self, other: &Self) {
        let Self {
            bursts,
            packets,
            times,
            burst_packets,
            ring,
            tap_burst,
            posted,
            pool,
        } = self;
        *bursts += other.bursts;
        *packets += other.packets;
        for (times, other) in times.iter_mut().zip(&other.times) {
            times.sum += other.sum;
            add(&mut times.per_burst, &other.per_burst);
            add(&mut times.per_packet, &other.per_packet);
        }
        add(burst_packets, &other.burst_packets);
        add(ring, &other.ring);
        add(tap_burst, &other.tap_burst);
        add(posted, &other.posted);
        add(pool, &other.pool);
    }

    /// All of it as the protocol has it.
    pub fn sampled(&self) -> Sampled {
        let stage = |(&stage, times): (&Stage, &Times)| StagePerf {
            stage,
            nanoseconds: times.sum,
            per_burst: spread(&times.per_burst),
            per_packet: spread(&times.per_packet),
        };
        Sampled {
            every: EVERY,
            bursts: self.bursts,
            packets: self.packets,
            stages: Stage::ALL.iter().zip(&self.times).map(stage).collect(),
            burst_packets: spread(&self.burst_packets),
            ring_percent: spread(&self.ring),
            tap_burst_percent: spread(&self.tap_burst),
            posted_percent: spread(&self.posted),
            pool_percent: spread(&self.pool),
        }
    }
}

fn add(sum: &mut Histogram<u64>, other: &Histogram<u64>) {
    // Only one with larger values than this one takes is refused, and both have the same bounds.
    let added = sum.add(other);
    debug_assert_eq!(added, Ok(()));
}

fn percent((part, whole): (usize, usize)) -> Option<u64> {
    (part * 100)
        .checked_div(whole)
        .map(|percent| percent as u64)
}

fn spread(histogram: &Histogram<u64>) -> Spread {
    if histogram.is_empty() {
        return Spread::default();
    }
    let quantile = |share| histogram.value_at_quantile(share);
    Spread {
        count: histogram.len(),
        mean: histogram.mean(),
        p50: quantile(0.5),
        p90: quantile(0.9),
        p99: quantile(0.99),
        p999: quantile(0.999),
        max: histogram.max(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A burst whose stages took so long, and that found its ring so full; one without took half of the
    /// most from a TAP.
    fn burst(stages: &mut Stages, packets: usize, laps: [u64; STAGES], ring: Option<u64>) {
        if stages.left == 0 {
            stages.laps = laps;
            stages.levels.ring = ring;
            stages.levels.tap_burst = ring.is_none().then_some(50);
            // The end of the last stage is noted by the clock.
            stages.began = monotonic_nanoseconds();
        }
        stages.end(packets);
    }

    #[test]
    fn one_burst_of_many_is_measured() {
        let mut stages = Stages::default();
        for _ in 0..3 * EVERY {
            burst(&mut stages, 4, [400, 800, 1600, 0], Some(25));
        }
        let sampled = stages.measured.sampled();
        assert_eq!(
            (sampled.every, sampled.bursts, sampled.packets),
            (61, 3, 12)
        );
        let sent = &sampled.stages[2];
        assert_eq!((sent.stage, sent.nanoseconds), (Stage::Send, 4800));
        assert_eq!((sent.per_burst.count, sent.per_burst.p50), (3, 1607));
        assert_eq!((sent.per_packet.count, sent.per_packet.p50), (12, 401));
        assert_eq!(sampled.burst_packets.max, 4);
        assert_eq!(
            (sampled.ring_percent.count, sampled.ring_percent.p50),
            (3, 25)
        );
        // Nobody has told of those.
        for spread in [sampled.posted_percent, sampled.tap_burst_percent] {
            assert_eq!(spread, Spread::default());
        }
        for _ in 0..EVERY {
            burst(&mut stages, 4, [400, 800, 1600, 0], None);
        }
        let sampled = stages.measured.sampled();
        let tap = sampled.tap_burst_percent;
        assert_eq!((tap.count, tap.p50, sampled.ring_percent.count), (1, 50, 3));
    }

    #[test]
    fn what_is_beyond_the_bounds_counts_as_the_most() {
        let mut stages = Stages::default();
        for _ in 0..EVERY {
            burst(&mut stages, 5000, [u64::MAX / 2, 0, 0, 0], None);
        }
        let sampled = stages.measured.sampled();
        let received = &sampled.stages[0];
        assert!(received.per_burst.max >= LONGEST_BURST);
        assert!(received.per_packet.max >= LONGEST_PACKET);
        assert!(
            (LONGEST..2 * LONGEST).contains(&sampled.burst_packets.max),
            "{sampled:?}"
        );
        assert_eq!(received.per_packet.count, 5000);
    }

    #[test]
    fn a_packet_counts_by_the_burst_that_it_came_with() {
        let mut stages = Stages::default();
        for n in 0..200 * EVERY {
            // One packet alone and slow, 99 together and fast.
            let alone = (n / EVERY).is_multiple_of(2);
            let (packets, time) = if alone { (1, 100_000) } else { (99, 990) };
            burst(&mut stages, packets, [0, time, 0, 0], None);
        }
        let forwarded = &stages.measured.sampled().stages[1];
        assert_eq!(forwarded.per_packet.p90, 10);
        assert!(forwarded.per_packet.p999 > 99_000);
        assert!(forwarded.per_burst.p90 > 99_000);
    }

    #[test]
    fn what_was_given_away_adds_up_to_what_was_measured() {
        let (mut stages, mut whole, mut sum) =
            (Stages::default(), Stages::default(), Measured::default());
        let mut state = 1_u64;
        for n in 0..100 * EVERY {
            // Any numbers, also those beyond the bounds.
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            let packets = usize::try_from(state >> 52).unwrap();
            let laps = [state >> 30, state >> 40, state >> 50, 0];
            let ring = Some(state >> 58);
            burst(&mut stages, packets, laps, ring);
            burst(&mut whole, packets, laps, ring);
            if n.is_multiple_of(500) {
                let left = stages.left;
                sum.add(&stages.exchange(Box::default()));
                assert_eq!(stages.measured.bursts, 0);
                assert_eq!(stages.left, left, "none is measured later for it");
            }
        }
        sum.add(&stages.exchange(Box::default()));
        let (mut sum, mut whole) = (sum.sampled(), whole.measured.sampled());
        assert_eq!((sum.bursts, sum.packets > 100), (whole.bursts, true));
        for sampled in [&mut sum, &mut whole] {
            // Its end is noted by the clock.
            sampled.stages.pop();
        }
        assert_eq!(sum, whole);
    }

    #[test]
    fn percentages_of_nothing_are_none() {
        assert_eq!(percent((1, 3)), Some(33));
        assert_eq!(percent((0, 0)), None);
    }
}
