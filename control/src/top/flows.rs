//! The flows of `podway top`: a watch at the dataplane, read on a thread of its own.
//!
//! How many packets pass is not known before, so each period says how many the next one looks at: all
//! where few pass, since of those a sample tells nothing, and so few of many that they cost little.

use std::thread;
use std::time::{Duration, Instant};

use podway_proto::client::ClientError;

use super::PERIOD;
use crate::flows::{FlowRecord, Flows};
use crate::overview::rate;
use crate::watch::{Reach, Watch};

/// One of so many packets is looked at. Primes, so that no rhythm of the packets chooses among them: of
/// questions and answers in turn one in 64 would be questions alone.
const SAMPLES: [u32; 5] = [1, 7, 61, 509, 4093];
/// The first one, which is bearable everywhere.
const FIRST: u32 = 61;
/// Records of a second that are enough, and cost workers and the API thread little.
const ENOUGH: f64 = 2000.0;
/// Between two reads: what comes meanwhile has room in the watch, and what has none is of a period whose
/// sample was too large.
const PAUSE: Duration = Duration::from_millis(100);
/// How long an answer may take: so old is what is shown. A dataplane that was slower is watched anew.
const PATIENCE: Duration = Duration::from_secs(3);

/// What there is to show: the flows of the last period, or why there are none.
pub(super) type Panel = Result<Period, String>;

/// Flows of about a second.
#[derive(Debug)]
pub(super) struct Period {
    /// One of so many packets was looked at, and counts for as many.
    pub(super) sample: u32,
    /// How long that was.
    pub(super) elapsed: Duration,
    /// Packets that were looked at.
    pub(super) records: u64,
    /// Packets beside them whose records found no room.
    pub(super) lost: u64,
    /// What they add up to, those with most bytes first.
    pub(super) flows: Vec<FlowRecord>,
}

/// Watches, and tells what it has seen, until nobody listens.
pub(super) fn follow(reach: Reach, tell: impl Fn(Panel) -> bool) {
    let timeout = reach.timeout.min(PATIENCE);
    let reach = Reach { timeout, ..reach };
    while let Err(error) = watch(&reach, &tell) {
        if !tell(Err(error.to_string())) {
            return;
        }
        thread::sleep(PERIOD);
    }
}

/// Period by period, until nobody listens.
fn watch(reach: &Reach, tell: &impl Fn(Panel) -> bool) -> Result<(), ClientError> {
    let spec = |sample| Flows::watch(String::new(), None, sample);
    let mut sample = FIRST;
    let mut watch = Watch::begin(reach, spec(sample))?;
    loop {
        let period = Period::read(&mut watch, sample)?;
        let next = period.next_sample();
        if !tell(Ok(period)) {
            return Ok(());
        }
        if next != sample {
            watch.replace(spec(next))?;
            sample = next;
        }
    }
}

impl Period {
    /// All that is recorded from now on for a second.
    fn read(watch: &mut Watch, sample: u32) -> Result<Self, ClientError> {
        let begun = Instant::now();
        let lost = watch.lost();
        let mut flows = Flows::new(sample);
        let mut records = 0;
        let mut elapsed = Duration::ZERO;
        while elapsed < PERIOD {
            thread::sleep(PAUSE);
            let watched = watch.read()?;
            elapsed = begun.elapsed();
            records += watched.records.len() as u64;
            watched.records.iter().for_each(|record| flows.add(record));
        }
        // So few records are no more flows than there is room for.
        let (flows, _) = flows.take();
        Ok(Self {
            sample,
            elapsed,
            records,
            lost: watch.lost().saturating_sub(lost),
            flows,
        })
    }

    /// Of a second, what was counted in the period.
    pub(super) fn per_second(&self, count: u64) -> f64 {
        rate(0, count, self.elapsed.as_secs_f64())
    }

    /// The sample by which the next period has about enough records. It looks at more than this one only
    /// if there is room to spare, so that it does not change to and fro.
    fn next_sample(&self) -> u32 {
        let packets =
            self.per_second(self.records.saturating_add(self.lost)) * f64::from(self.sample);
        let fits = |sample: &u32| {
            let spare = if *sample < self.sample { 0.5 } else { 1.0 };
            packets / f64::from(*sample) <= ENOUGH * spare
        };
        let least = SAMPLES.into_iter().find(fits);
        least.unwrap_or(SAMPLES[SAMPLES.len() - 1])
    }
}

#[cfg(test)]
pub(in crate::top) mod tests {
    use podway_proto::watch::{WatchFlow, WatchPoint, WatchRecord};

    use super::*;
    use crate::show::watch::tests::{record, tunnel};

    /// A packet into a tunnel.
    fn sent() -> WatchRecord {
        WatchRecord {
            point: WatchPoint::Egress,
            next_hop: Some(tunnel()),
            length: 1500,
            ..record()
        }
    }

    /// A period of two seconds, of one in 61 packets: some into a tunnel, some to a pod by IPv6, one that
    /// was dropped and one that nothing can be read of.
    pub(in crate::top) fn period() -> Period {
        let between = |source: &str, destination: &str, protocol, ports: Option<(u16, u16)>| {
            Some(WatchFlow {
                source: source.parse().unwrap(),
                destination: destination.parse().unwrap(),
                protocol,
                source_port: ports.map(|(source, _)| source),
                destination_port: ports.map(|(_, destination)| destination),
            })
        };
        let mut answer = tunnel();
        answer.interface = Some("veth-a".into());
        (answer.node, answer.vni) = (None, None);
        let (short, long) = ("fd00:10::2", "fd00:10:244:17:89ab:cdef:1234:5678");
        let by_ipv6 = WatchRecord {
            came_by: Some("eth0".into()),
            flow: between(long, short, 6, Some((5201, 40_000))),
            next_hop: Some(answer),
            length: 60_000,
            ..sent()
        };
        let dropped = WatchRecord {
            point: WatchPoint::Dropped,
            flow: between("255.255.255.255", "10.0.1.99", 17, Some((65_535, 65_535))),
            reason: Some("ipv6_bad_payload_length".into()),
            next_hop: None,
            length: 100,
            ..record()
        };
        let unreadable = WatchRecord {
            flow: None,
            reason: Some("truncated_ipv4".into()),
            length: 20,
            ..dropped.clone()
        };
        let ping = WatchRecord {
            flow: between("10.0.0.2", "10.0.1.2", 1, None),
            length: 98,
            ..sent()
        };
        let mut flows = Flows::new(61);
        for record in [&ping, &sent(), &sent(), &by_ipv6, &dropped, &unreadable] {
            flows.add(record);
        }
        Period {
            sample: 61,
            elapsed: Duration::from_secs(2),
            records: 6,
            lost: 0,
            flows: flows.take().0,
        }
    }

    #[test]
    fn rates_are_of_a_second_and_of_all_packets() {
        let seen = period();
        let rates = seen.flows.iter().map(|flow| {
            let (packets, bytes) = (flow.packets, flow.bytes);
            (seen.per_second(packets), seen.per_second(bytes))
        });
        let rates: Vec<_> = rates.collect();
        let expected = [
            (30.5, 30.5 * 60_000.0),
            (61.0, 30.5 * 3_000.0),
            (30.5, 30.5 * 100.0),
            (30.5, 30.5 * 98.0),
            (30.5, 30.5 * 20.0),
        ];
        assert_eq!(rates, expected);
    }

    #[test]
    fn a_period_looks_at_as_many_packets_as_cost_little() {
        let next = |sample, records, lost| {
            let elapsed = Duration::from_secs(1);
            let seen = Period {
                sample,
                elapsed,
                records,
                lost,
                ..period()
            };
            seen.next_sample()
        };
        // Of few packets all, and all of none.
        assert_eq!(next(61, 0, 0), 1);
        assert_eq!(next(61, 16, 0), 1);
        assert_eq!(next(1, 2000, 0), 1);
        // 2,001 a second, and as many until there is twice the room.
        assert_eq!(next(1, 2001, 0), 7);
        assert_eq!(next(7, 286, 0), 7);
        assert_eq!(next(7, 142, 0), 1);
        assert_eq!(next(61, 1000, 0), 61);
        // A million after a quiet second, and more than there is a sample for.
        assert_eq!(next(1, 10_000, 990_000), 509);
        assert_eq!(next(4093, 1_000_000, 0), 4093);
    }
}
