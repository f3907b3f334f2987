//! What was dropped or not taken, as the protocol gives it: counts, rates, interfaces and the last
//! packets.

mod describe;
mod rates;

use std::collections::BTreeMap;
use std::time::Instant;

use podway_proto::ErrorBody;
use podway_proto::dataplane::{DropCount, DroppedPacket, Drops, PassCount, PortCounters};
use podway_proto::reasons::{DropReason, Explanation, LossCause, PassCause, RefuseCause};
use podway_xdp_redirect::LastPacket;

use super::ports::is_pod;
use super::{Supervisor, system};
use crate::clock::monotonic_nanoseconds;
use crate::last_drop::LastDrop;
use crate::wire::ethernet;
use crate::wire::glance::glance;
use describe::describe;

pub(super) use rates::DropRates;

/// Why a worker, or before it the kernel or a program on a port, had no use for a packet.
#[derive(Debug, Clone, Copy)]
enum Reason {
    Drop(DropReason),
    Lose(LossCause),
    Refuse(RefuseCause),
    Pass(PassCause),
}

impl Reason {
    /// In the order of `podway_proto::reasons::all`.
    fn all() -> impl Iterator<Item = Self> {
        let dropped = DropReason::ALL.iter().copied().map(Self::Drop);
        let lost = LossCause::ALL.iter().copied().map(Self::Lose);
        let refused = RefuseCause::ALL.iter().copied().map(Self::Refuse);
        let passed = PassCause::ALL.iter().copied().map(Self::Pass);
        dropped.chain(lost).chain(refused).chain(passed)
    }

    fn explain(self) -> Explanation {
        match self {
            Self::Drop(reason) => reason.explain(),
            Self::Lose(cause) => cause.explain(),
            Self::Refuse(cause) => cause.explain(),
            Self::Pass(cause) => cause.explain(),
        }
    }
}

impl Supervisor {
    /// What was dropped, lost and refused, and what was left to the kernel, by reason.
    ///
    /// # Errors
    /// When what the programs count and keep cannot be read.
    pub fn drops(&self) -> Result<Drops, ErrorBody> {
        let counts = self.drop_counts()?;
        let now = Instant::now();
        let rates = self.drop_rates.per_second(now, &counts);
        let minute = self.drop_rates.last_minute(now, &counts);
        let ports = self.port_counters()?;
        let mut told = Drops::default();
        let all = Reason::all().zip(counts).zip(rates).zip(minute);
        for (((reason, packets), packets_per_second), last_minute) in all {
            let explanation = reason.explain();
            let mut count = DropCount {
                reason: explanation.name.to_owned(),
                places: explanation.places.to_vec(),
                packets,
                packets_per_second,
                last_minute,
                interfaces: BTreeMap::new(),
                last: None,
                meaning: explanation.meaning.to_owned(),
                remedy: explanation.remedy.to_owned(),
            };
            if packets > 0 {
                count.interfaces = self.interfaces(reason, &ports)?;
                count.last = self.last(reason)?;
            }
            match reason {
                Reason::Pass(_) => told.passed.push(pass_count(count)),
                _ => told.drops.push(count),
            }
        }
        Ok(told)
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

    /// Packets by reason, over all workers and ports, in the order of [`Reason::all`].
    fn drop_counts(&self) -> Result<Vec<u64>, ErrorBody> {
        let program = self.program_counters()?;
        let losses = self.losses(&program)?;
        let count = |reason| match reason {
            Reason::Drop(reason) => self.workers.iter().map(|w| w.sheet.dropped(reason)).sum(),
            Reason::Lose(cause) => losses.of(cause),
            Reason::Refuse(cause) => program.refused_for(cause),
            Reason::Pass(cause) => program.passed_for(cause),
        };
        Ok(Reason::all().map(count).collect())
    }

    /// Packets by interface, as far as that is counted.
    fn interfaces(
        &self,
        reason: Reason,
        ports: &BTreeMap<String, PortCounters>,
    ) -> Result<BTreeMap<String, u64>, ErrorBody> {
        let packets = |port: &PortCounters| match reason {
            Reason::Lose(LossCause::RingFull) => port.rx_ring_full,
            Reason::Lose(LossCause::NoFrame) => port.rx_dropped,
            Reason::Refuse(cause) => port.xdp_refused.get(cause.name()).copied().unwrap_or(0),
            Reason::Pass(cause) => port.xdp_passed.get(cause.name()).copied().unwrap_or(0),
            Reason::Drop(_) | Reason::Lose(LossCause::TapFull) => 0,
        };
        let mut all: BTreeMap<_, _> = match reason {
            Reason::Lose(LossCause::TapFull) => self.lost_by_taps()?.collect(),
            _ => ports
                .iter()
                .map(|(name, port)| (name.clone(), packets(port)))
                .collect(),
        };
        all.retain(|_, packets| *packets > 0);
        Ok(all)
    }

    /// The last packet, if Podway has seen it.
    fn last(&self, reason: Reason) -> Result<Option<DroppedPacket>, ErrorBody> {
        let kept = match reason {
            Reason::Drop(reason) => {
                let of_workers = self.workers.iter();
                let of_workers = of_workers.filter_map(|w| w.sheet.last_drop(reason));
                return Ok(of_workers
                    .max_by_key(|last| last.at)
                    .map(|last| self.describe(&last)));
            }
            // What finds the ring of a socket full the kernel has lost.
            Reason::Lose(LossCause::RingFull) => self.redirect.last_ring_full(),
            Reason::Lose(LossCause::NoFrame | LossCause::TapFull) => return Ok(None),
            Reason::Refuse(cause) => self.redirect.last_refused(cause),
            Reason::Pass(cause) => self.redirect.last_passed(cause),
        };
        let kept = kept.map_err(system)?;
        Ok(kept.map(|kept: LastPacket| {
            let last = LastDrop::new(kept.at_ns, kept.ifindex, kept.bytes as usize, &kept.header);
            self.describe(&last)
        }))
    }

    fn describe(&self, last: &LastDrop) -> DroppedPacket {
        let mut ports = self.ports.iter();
        let port = ports.find(|(_, port)| port.interface.ifindex == last.ifindex);
        // The tunnels of pods are their own business, on the uplink too, when they are routed natively.
        let local = &self.local.addresses;
        let outer = glance(last.header(), ethernet::HEADER_LEN, last.header().len());
        let between_nodes =
            outer.is_some_and(|outer| local.contains(&outer.src) || local.contains(&outer.dst));
        let of_pod = port.is_some_and(|(_, port)| is_pod(&port.role));
        let vxlan = (self.local.vxlan_port).filter(|_| between_nodes && !of_pod);
        let name = port.map(|(name, _)| name.clone());
        describe(last, name, vxlan, monotonic_nanoseconds())
    }
}

fn pass_count(count: DropCount) -> PassCount {
    PassCount {
        cause: count.reason,
        places: count.places,
        packets: count.packets,
        packets_per_second: count.packets_per_second,
        last_minute: count.last_minute,
        interfaces: count.interfaces,
        last: count.last,
        meaning: count.meaning,
        remedy: count.remedy,
    }
}

#[cfg(test)]
mod tests {
    use podway_proto::reasons;

    use super::*;

    #[test]
    fn reasons_are_told_in_the_order_of_the_protocol() {
        let here = Reason::all().map(Reason::explain);
        assert!(here.eq(reasons::all()));
    }
}
