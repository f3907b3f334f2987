//! What was dropped, as the protocol gives it: counts, rates and the last packets.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use podway_proto::dataplane::{DropCount, DroppedPacket, Drops, PassCount};
use podway_proto::reasons::{self, DropReason, Explanation, PassCause, RefuseCause};
use podway_proto::{ErrorBody, hex};

use super::{Supervisor, system};
use crate::clock::monotonic_nanoseconds;
use crate::last_drop::LastDrop;
use crate::wire::glance::glance;
use crate::wire::{Headers, ethernet, protocol};

/// What rates are of.
const WINDOW: Duration = Duration::from_secs(10);
/// How far back packets are counted.
const MINUTE: Duration = Duration::from_secs(60);
/// How often the counts are looked at for them.
const PERIOD: Duration = Duration::from_secs(1);

impl Supervisor {
    /// What was dropped, lost and refused, and what was left to the kernel, by reason.
    ///
    /// # Errors
    /// When the XDP program's counters cannot be read.
    pub fn drops(&self) -> Result<Drops, ErrorBody> {
        let counts = self.drop_counts()?;
        let now = Instant::now();
        let rates = self.drop_rates.per_second(now, &counts);
        let minute = self.drop_rates.last_minute(now, &counts);
        // Only workers keep headers.
        let dropped = DropReason::ALL.iter().map(|&reason| self.last_drop(reason));
        let last = dropped.chain(std::iter::repeat(None));
        let counts = counts.into_iter().zip(rates).zip(minute).zip(last);
        let entry = |(reason, (((packets, rate), minute), last))| DropCount {
            last_minute: minute,
            ..entry(reason, packets, rate, last)
        };
        let mut passed = [0; PassCause::COUNT];
        for slot in 0..self.slots {
            let counters = self.redirect.counters(slot.into()).map_err(system)?;
            for (sum, (_, packets)) in passed.iter_mut().zip(counters.passed_by_cause()) {
                *sum += packets;
            }
        }
        let passed = PassCause::ALL.iter().zip(passed);
        Ok(Drops {
            drops: reasons::fatal().zip(counts).map(entry).collect(),
            passed: passed
                .map(|(cause, packets)| pass_count(*cause, packets))
                .collect(),
        })
    }

    /// Looks at the counts, for the rates; called now and then by the API thread.
    pub fn sample_drops(&mut self) {
        let now = Instant::now();
        // Who asks for them is told what is wrong with the counters.
        if self.drop_rates.is_due(now)
            && let Ok(counts) = self.drop_counts()
        {
            self.drop_rates.add(now, counts);
        }
    }

    /// Packets by reason, over all workers and ports, in the order of [`reasons::fatal`].
    fn drop_counts(&self) -> Result<Vec<u64>, ErrorBody> {
        let sum = |&reason| self.workers.iter().map(|w| w.sheet.dropped(reason)).sum();
        let mut counts: Vec<u64> = DropReason::ALL.iter().map(sum).collect();
        counts.extend(self.losses()?.by_cause().map(|(_, packets)| packets));
        let mut refused = [0; RefuseCause::COUNT];
        for slot in 0..self.slots {
            let counters = self.redirect.counters(slot.into()).map_err(system)?;
            for (sum, count) in refused.iter_mut().zip(counters.refused) {
                *sum += count;
            }
        }
        counts.extend(refused);
        Ok(counts)
    }

    fn last_drop(&self, reason: DropReason) -> Option<DroppedPacket> {
        let of_workers = self
            .workers
            .iter()
            .filter_map(|w| w.sheet.last_drop(reason));
        let last = of_workers.max_by_key(|last| last.at)?;
        let mut ports = self.ports.iter();
        let port = ports.find(|(_, port)| port.interface.ifindex == last.ifindex);
        let name = port.map(|(name, _)| name.clone());
        Some(describe(&last, name, monotonic_nanoseconds()))
    }
}

/// Counts of the last seconds, a second apart.
#[derive(Debug)]
pub(super) struct DropRates(VecDeque<(Instant, Vec<u64>)>);

impl DropRates {
    /// Rates since `now`, when nothing is dropped yet.
    pub(super) fn new(now: Instant) -> Self {
        Self(VecDeque::from([(now, vec![0; reasons::fatal().count()])]))
    }

    fn is_due(&self, now: Instant) -> bool {
        let newest = self.0.back();
        newest.is_none_or(|(then, _)| now.duration_since(*then) >= PERIOD)
    }

    fn add(&mut self, now: Instant, counts: Vec<u64>) {
        self.0.push_back((now, counts));
        // One that is as old as a minute is enough.
        while self
            .0
            .get(1)
            .is_some_and(|(then, _)| now.duration_since(*then) >= MINUTE)
        {
            self.0.pop_front();
        }
    }

    /// By how much the counts have grown a second since the look that was a window ago, or since the
    /// first, to a tenth.
    fn per_second(&self, now: Instant, counts: &[u64]) -> Vec<f64> {
        let Some((then, before)) = self.look(now, WINDOW) else {
            return vec![0.0; counts.len()];
        };
        let seconds = now.duration_since(*then).max(PERIOD).as_secs_f64();
        #[expect(clippy::cast_precision_loss, reason = "a rate for people")]
        let rate = |(now, before): (&u64, &u64)| now.saturating_sub(*before) as f64 / seconds;
        let rates = counts.iter().zip(before).map(rate);
        rates.map(|rate| (rate * 10.0).round() / 10.0).collect()
    }

    /// By how much the counts have grown in the last minute, or since the first look.
    fn last_minute(&self, now: Instant, counts: &[u64]) -> Vec<u64> {
        let Some((_, before)) = self.look(now, MINUTE) else {
            return vec![0; counts.len()];
        };
        let grown = counts.iter().zip(before);
        grown
            .map(|(now, before)| now.saturating_sub(*before))
            .collect()
    }

    /// The last look that is as long ago as that, or the first.
    fn look(&self, now: Instant, ago: Duration) -> Option<&(Instant, Vec<u64>)> {
        let is_whole = |(then, _): &&(Instant, _)| now.duration_since(*then) >= ago;
        self.0.iter().rev().find(is_whole).or(self.0.front())
    }
}

fn pass_count(cause: PassCause, packets: u64) -> PassCount {
    let explanation = cause.explain();
    PassCount {
        cause: explanation.name.to_owned(),
        packets,
        meaning: explanation.meaning.to_owned(),
        remedy: explanation.remedy.to_owned(),
    }
}

fn entry(
    reason: Explanation,
    packets: u64,
    packets_per_second: f64,
    last: Option<DroppedPacket>,
) -> DropCount {
    DropCount {
        reason: reason.name.to_owned(),
        places: reason.places.to_vec(),
        packets,
        packets_per_second,
        last_minute: 0,
        last,
        meaning: reason.meaning.to_owned(),
        remedy: reason.remedy.to_owned(),
    }
}

/// What can be read of a packet that may be broken anywhere.
fn describe(last: &LastDrop, interface: Option<String>, now: u64) -> DroppedPacket {
    let header = last.header();
    let read = glance(header, ethernet::HEADER_LEN, header.len());
    let ports = read.as_ref().and_then(Headers::ports);
    // Whoever can connect may ask: what pods say to each other is not told.
    let end = read.as_ref().map_or(header.len(), |read| {
        let l4 = match read.protocol {
            protocol::TCP => 20,
            protocol::UDP | protocol::ICMP | protocol::ICMPV6 => 8,
            _ => 0,
        };
        usize::from(read.l4) + l4
    });
    DroppedPacket {
        seconds_ago: now.saturating_sub(last.at) / 1_000_000_000,
        interface,
        bytes: last.bytes,
        source: read.as_ref().map(|read| read.src),
        destination: read.as_ref().map(|read| read.dst),
        protocol: read.as_ref().map(|read| read.protocol),
        source_port: ports.map(|(source, _)| source),
        destination_port: ports.map(|(_, destination)| destination),
        header: hex::encode(header.get(..end).unwrap_or(header)),
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use etherparse::PacketBuilder;

    use super::*;

    fn described(frame: &[u8]) -> DroppedPacket {
        let last = LastDrop::new(5_000_000_000, 3, frame.len(), frame);
        describe(&last, Some("veth-a".into()), 7_500_000_000)
    }

    #[test]
    fn a_packet_is_told_by_its_headers() {
        let ethernet = || PacketBuilder::ethernet2([2; 6], [4; 6]);
        let mut udp = Vec::new();
        let builder = ethernet()
            .ipv4([10, 0, 0, 2], [10, 0, 1, 2], 64)
            .udp(40_000, 9);
        builder.write(&mut udp, &[0; 64]).unwrap();
        let told = DroppedPacket {
            seconds_ago: 2,
            interface: Some("veth-a".into()),
            bytes: 106,
            source: Some([10, 0, 0, 2].into()),
            destination: Some([10, 0, 1, 2].into()),
            protocol: Some(17),
            source_port: Some(40_000),
            destination_port: Some(9),
            header: hex::encode(&udp[..42]),
        };
        assert_eq!(described(&udp), told);

        let mut tcp = Vec::new();
        let (from, to) = ([0xfd; 16], [0xfe; 16]);
        let builder = ethernet().ipv6(from, to, 64).tcp(80, 50_000, 1, 1);
        builder.write(&mut tcp, &[]).unwrap();
        let seen = described(&tcp);
        assert_eq!(seen.source, Some(IpAddr::from(from)));
        assert_eq!(seen.destination, Some(IpAddr::from(to)));
        assert_eq!(
            (seen.source_port, seen.destination_port),
            (Some(80), Some(50_000))
        );
        assert_eq!((seen.protocol, seen.bytes), (Some(6), 74));
    }

    #[test]
    fn of_a_broken_packet_only_what_is_there_is_told() {
        let mut udp = Vec::new();
        let builder =
            PacketBuilder::ethernet2([2; 6], [4; 6]).ipv4([10, 0, 0, 2], [10, 0, 1, 2], 64);
        builder.udp(40_000, 9).write(&mut udp, &[]).unwrap();
        for len in 0..=udp.len() {
            let seen = described(&udp[..len]);
            assert_eq!(seen.source.is_some(), len >= 34, "{len}");
            assert_eq!(seen.source_port.is_some(), len >= 38, "{len}");
            assert_eq!(seen.header.len(), 2 * len);
        }
        // A second fragment, a header length of 16, another protocol, no IP at all.
        for (offset, value) in [(21, 1), (14, 0x44), (23, 1), (12, 0x12)] {
            let mut frame = udp.clone();
            frame[offset] = value;
            let seen = described(&frame);
            assert_eq!(seen.source_port, None, "{offset}");
            assert_eq!(seen.source.is_some(), offset != 12, "{offset}");
        }
    }

    #[test]
    fn rates_are_of_the_last_ten_seconds() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let counts = |first| {
            let mut counts = vec![0; DropReason::COUNT];
            counts[0] = first;
            counts
        };
        let mut rates = DropRates::new(start);
        assert_eq!(
            rates.per_second(start, &counts(7))[0],
            7.0,
            "of a second at least"
        );
        assert_eq!(rates.per_second(at(4), &counts(10))[0], 2.5);
        assert!(!rates.is_due(start + Duration::from_millis(999)));
        // One packet in each of the first 20 seconds.
        for second in 1..=20 {
            assert!(rates.is_due(at(second)));
            rates.add(at(second), counts(second));
        }
        assert_eq!(rates.0.len(), 21);
        let seen = rates.per_second(at(20), &counts(20));
        assert_eq!((seen[0], seen[1]), (1.0, 0.0));
        assert_eq!(rates.per_second(at(25), &counts(20))[0], 0.5);
        assert_eq!(rates.last_minute(at(25), &counts(20))[..2], [20, 0]);
        assert_eq!(rates.last_minute(at(70), &counts(23))[0], 13);
        // The API thread was held up for long.
        rates.add(at(100), counts(20));
        assert_eq!(rates.0.len(), 2);
        assert_eq!(rates.per_second(at(110), &counts(25))[0], 0.5);
    }
}
