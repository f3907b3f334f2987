//! Flows from records of single packets: who talks to whom, and how much.

use std::collections::HashMap;

use clap::ValueEnum;
use podway_proto::types::Vni;
use podway_proto::watch::{WatchFlow, WatchPoint, WatchRecord, WatchSpec};
use serde::Serialize;

/// Most flows that are told apart in a period. What further ones send is counted together.
pub const MAX_FLOWS: usize = 65_536;

/// What became of a flow's packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// They were sent on.
    Forwarded,
    /// They died in the dataplane.
    Dropped,
}

/// What packets of one flow have in common.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct FlowKey {
    /// Whose they are; `None` for those without a readable IP header.
    #[serde(flatten)]
    pub flow: Option<WatchFlow>,
    /// What became of them.
    pub verdict: Verdict,
    /// Why they were dropped.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The port that they came by; `None` for what was made here, or when it is detached.
    pub came_by: Option<String>,
    /// The port that they leave by.
    pub leaves_by: Option<String>,
    /// The node that they are sent to; `None` for a pod of this node and for a router.
    pub node: Option<String>,
    /// Of the tunnel that they leave by.
    pub vni: Option<Vni>,
}

impl FlowKey {
    fn of(record: &WatchRecord) -> Self {
        let to = record.next_hop.as_ref();
        Self {
            flow: record.flow,
            verdict: match record.reason {
                Some(_) => Verdict::Dropped,
                None => Verdict::Forwarded,
            },
            reason: record.reason.clone(),
            came_by: record.came_by.clone(),
            leaves_by: to.and_then(|to| to.interface.clone()),
            node: to.and_then(|to| to.node.clone()),
            vni: to.and_then(|to| to.vni),
        }
    }
}

/// A flow in a period of time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FlowRecord {
    /// Whose.
    #[serde(flatten)]
    pub key: FlowKey,
    /// When its first packet of the period was recorded: nanoseconds since 1970.
    pub first: u64,
    /// When the last one was.
    pub last: u64,
    /// Packets; a super-frame is one. Where one of several is recorded, those that it stands for.
    pub packets: u64,
    /// Their bytes as they leave or die, with Ethernet and outer headers.
    pub bytes: u64,
}

/// The flows of a period.
#[derive(Debug)]
pub struct Flows {
    /// Packets that a record stands for.
    sample: u32,
    flows: HashMap<FlowKey, FlowRecord>,
    /// Packets of flows that found no room.
    others: u64,
}

impl Flows {
    /// The watch whose records are to be added: of one in `sample` packets that match `filter`, with one
    /// verdict or either.
    pub fn watch(filter: String, verdict: Option<Verdict>, sample: u32) -> WatchSpec {
        let points = [
            (WatchPoint::Egress, Verdict::Forwarded),
            (WatchPoint::Dropped, Verdict::Dropped),
        ];
        let points = points.into_iter();
        let points = points.filter(|(_, of)| verdict.is_none_or(|wanted| wanted == *of));
        WatchSpec {
            filter,
            points: points.map(|(point, _)| point).collect(),
            snap: 0,
            sample,
            limit: None,
        }
    }

    /// None yet, of records of one in `sample` packets.
    pub fn new(sample: u32) -> Self {
        Self {
            sample,
            flows: HashMap::new(),
            others: 0,
        }
    }

    /// Adds a packet by its last record. Its other records tell nothing more.
    pub fn add(&mut self, record: &WatchRecord) {
        if !matches!(record.point, WatchPoint::Egress | WatchPoint::Dropped) {
            return;
        }
        let (packets, bytes) = (
            u64::from(self.sample),
            u64::from(record.length) * u64::from(self.sample),
        );
        let key = FlowKey::of(record);
        if let Some(flow) = self.flows.get_mut(&key) {
            flow.first = flow.first.min(record.time);
            flow.last = flow.last.max(record.time);
            flow.packets += packets;
            flow.bytes += bytes;
        } else if self.flows.len() < MAX_FLOWS {
            let flow = FlowRecord {
                key: key.clone(),
                first: record.time,
                last: record.time,
                packets,
                bytes,
            };
            self.flows.insert(key, flow);
        } else {
            self.others += packets;
        }
    }

    /// The flows since the last call, those with most bytes first, and the packets of all that found no
    /// room.
    pub fn take(&mut self) -> (Vec<FlowRecord>, u64) {
        let mut flows: Vec<_> = self.flows.drain().map(|(_, flow)| flow).collect();
        flows.sort_unstable_by(|a, b| b.bytes.cmp(&a.bytes).then_with(|| a.key.cmp(&b.key)));
        (flows, std::mem::take(&mut self.others))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::show::watch::tests::{record, tunnel};

    fn sent(port: u16, time: u64, length: u32) -> WatchRecord {
        let flow = record().flow.map(|flow| WatchFlow {
            source_port: Some(port),
            ..flow
        });
        WatchRecord {
            point: WatchPoint::Egress,
            next_hop: Some(tunnel()),
            time,
            length,
            flow,
            ..record()
        }
    }

    #[test]
    fn packets_of_a_flow_are_added_up() {
        let mut flows = Flows::new(10);
        flows.add(&sent(1, 20, 100));
        flows.add(&sent(1, 10, 50));
        flows.add(&sent(2, 30, 1000));
        // Its own first record, of another point.
        flows.add(&record());
        let dropped = WatchRecord {
            point: WatchPoint::Dropped,
            reason: Some("no_route".into()),
            next_hop: None,
            ..sent(1, 40, 100)
        };
        flows.add(&dropped);
        let (seen, others) = flows.take();
        let facts: Vec<_> = seen
            .iter()
            .map(|f| (f.key.verdict, f.first, f.last, f.packets, f.bytes))
            .collect();
        assert_eq!(
            facts,
            [
                (Verdict::Forwarded, 30, 30, 10, 10_000),
                (Verdict::Forwarded, 10, 20, 20, 1500),
                (Verdict::Dropped, 40, 40, 10, 1000),
            ]
        );
        assert_eq!(seen[1].key.node.as_deref(), Some("node-b"));
        assert_eq!(seen[2].key.reason.as_deref(), Some("no_route"));
        assert_eq!((others, flows.take()), (0, (vec![], 0)));
    }

    #[test]
    fn a_verdict_is_a_point() {
        let points = |verdict| {
            let spec = Flows::watch("udp".into(), verdict, 7);
            assert_eq!(
                (spec.filter.as_str(), spec.snap, spec.sample),
                ("udp", 0, 7)
            );
            spec.points.into_iter().collect::<Vec<_>>()
        };
        let (egress, dropped) = (WatchPoint::Egress, WatchPoint::Dropped);
        assert_eq!(points(None), [egress, dropped]);
        assert_eq!(points(Some(Verdict::Forwarded)), [egress]);
        assert_eq!(points(Some(Verdict::Dropped)), [dropped]);
    }

    #[test]
    fn flows_without_end_take_no_memory_without_end() {
        let mut flows = Flows::new(1);
        for n in 0..=u16::MAX {
            flows.add(&sent(n, 1, 100));
        }
        flows.add(&sent(5, 1, 100));
        let one_more = WatchRecord {
            came_by: None,
            ..sent(5, 1, 100)
        };
        flows.add(&one_more);
        flows.add(&one_more);
        let (seen, others) = flows.take();
        assert_eq!((seen.len(), others), (MAX_FLOWS, 2));
        assert_eq!(seen[0].packets, 2);
    }
}
