//! `podway trace`: the way of single packets through the dataplane.

mod packet;

use std::collections::BTreeMap;
use std::io::Write;

use clap::{Args, Subcommand};
use podway_proto::codec;
use podway_proto::reasons::{DropReason, Explanation};
use podway_proto::watch::{WatchPoint, WatchRecord, WatchSpec};
use serde::Serialize;

use super::stream::Stream;
use super::{Failure, goes_on};
use crate::checksum::{self, Wrong};
use crate::show;
use crate::watch::Reach;

/// Ways to trace.
#[derive(Debug, Subcommand)]
pub(super) enum TraceCommand {
    /// What would happen to a packet, step by step; nothing is sent.
    Packet(packet::PacketArgs),
    /// Packets that pass now: by which port they came, where they go, and why those that die do.
    #[command(after_help = "\
The filter is that of `podway capture`.

Examples:
  podway trace live host 10.0.1.7 and tcp
  podway trace live --checksums host 10.0.1.7
  podway trace live --count 1 reason no_route")]
    Live(Live),
}

/// Which packets.
#[derive(Debug, Args)]
pub(super) struct Live {
    /// End after so many packets.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// Look at the checksums of TCP, UDP and ICMP as packets come, but for super-frames, which have none
    /// yet, and what is longer than 2048 bytes.
    #[arg(long)]
    checksums: bool,
    /// Which packets; all without it.
    #[arg(value_name = "FILTER", trailing_var_arg = true)]
    filter: Vec<String>,
}

impl Live {
    /// Tells of packets until it is over.
    pub(super) fn run(
        self,
        reach: &Reach,
        json: bool,
        out: &mut impl Write,
    ) -> Result<(), Failure> {
        let spec = WatchSpec {
            filter: self.filter.join(" "),
            points: WatchPoint::ALL.into(),
            snap: checksum::snap(self.checksums),
            sample: 1,
            limit: self.count,
        };
        let mut stream = Stream::begin(reach, spec, None)?;
        let status = stream.status()?;
        let mut packets = Packets::default();
        while let Some(watched) = stream.next()? {
            for record in watched.records {
                let Some(mut records) = packets.add(record) else {
                    continue;
                };
                let wrong = records.iter().find_map(checksum::wrong);
                // All that they were for.
                records.iter_mut().for_each(|record| record.bytes.clear());
                let text = match json {
                    true => codec::encode(&Document::new(&records, wrong)),
                    false => show::trace::text(&records, wrong, &status).into_bytes(),
                };
                if !goes_on(out.write_all(&text).and_then(|()| out.flush()))? {
                    return Ok(());
                }
            }
        }
        let lost = stream.lost();
        if json {
            let response = "trace-end";
            let end = codec::encode(&End { response, lost });
            goes_on(out.write_all(&end).and_then(|()| out.flush()))?;
        } else if lost > 0 {
            eprintln!("podway: {lost} records found no room and are lost");
        }
        Ok(())
    }
}

/// Puts the records of a packet together.
#[derive(Debug, Default)]
struct Packets {
    /// What has come of a packet that has not come to its end, by worker.
    begun: BTreeMap<u16, Vec<WatchRecord>>,
}

impl Packets {
    /// All records of the packet that `record` is the last of.
    fn add(&mut self, record: WatchRecord) -> Option<Vec<WatchRecord>> {
        let is_last = matches!(record.point, WatchPoint::Egress | WatchPoint::Dropped);
        let begun = self.begun.entry(record.worker).or_default();
        let is_of = |other: &WatchRecord| other.packet == record.packet;
        match begun.first() {
            Some(first) if is_of(first) => {}
            // A message that was not taken, in the middle of another packet's way.
            Some(_) if is_last && record.came_by.is_none() => return Some(vec![record]),
            // Of one whose end found no room.
            Some(_) => begun.clear(),
            None => {}
        }
        begun.push(record);
        is_last.then(|| std::mem::take(begun))
    }
}

/// A packet as JSON.
#[derive(Debug, Serialize)]
struct Document<'r> {
    response: &'static str,
    records: &'r [WatchRecord],
    /// Why it was dropped.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<Explanation>,
    /// What is wrong with its checksum as it came.
    #[serde(skip_serializing_if = "Option::is_none")]
    wrong_checksum: Option<Wrong>,
}

impl<'r> Document<'r> {
    fn new(records: &'r [WatchRecord], wrong_checksum: Option<Wrong>) -> Self {
        let name = records.last().and_then(|record| record.reason.as_deref());
        Self {
            response: "trace",
            records,
            reason: name.and_then(explanation),
            wrong_checksum,
        }
    }
}

/// What comes behind the last packet as JSON.
#[derive(Debug, Serialize)]
struct End {
    response: &'static str,
    /// Records that found no room: packets without some of their points, or without any.
    lost: u64,
}

/// What is said of a drop reason of this name.
pub(crate) fn explanation(name: &str) -> Option<Explanation> {
    let mut all = DropReason::ALL.iter();
    let reason = all.find(|reason| reason.name() == name)?;
    Some(reason.explain())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::show::watch::tests::record;

    #[test]
    fn a_packet_is_whole_with_its_last_record() {
        let at = |packet, point| WatchRecord {
            packet,
            point,
            ..record()
        };
        let numbers = |records: Option<Vec<WatchRecord>>| {
            let records = records.unwrap_or_default().into_iter();
            records.map(|r| (r.packet, r.point)).collect::<Vec<_>>()
        };
        let mut packets = Packets::default();
        let (ingress, egress) = (WatchPoint::Ingress, WatchPoint::Egress);
        assert_eq!(numbers(packets.add(at(1, ingress))), []);
        // Another worker's, and a message that was not taken meanwhile.
        let other = WatchRecord {
            worker: 1,
            ..at(1, egress)
        };
        assert_eq!(numbers(packets.add(other)), [(1, egress)]);
        let not_sent = WatchRecord {
            came_by: None,
            ..at(2, WatchPoint::Dropped)
        };
        assert_eq!(numbers(packets.add(not_sent)), [(2, WatchPoint::Dropped)]);
        assert_eq!(
            numbers(packets.add(at(1, egress))),
            [(1, ingress), (1, egress)]
        );
        // The end of one was lost.
        assert_eq!(numbers(packets.add(at(3, ingress))), []);
        assert_eq!(numbers(packets.add(at(4, ingress))), []);
        assert_eq!(
            numbers(packets.add(at(4, egress))),
            [(4, ingress), (4, egress)]
        );
    }

    #[test]
    fn a_packet_is_a_document_with_what_is_said_of_its_reason() {
        let dropped = WatchRecord {
            point: WatchPoint::Dropped,
            reason: Some("no_route".into()),
            ..record()
        };
        let records = [record(), dropped];
        let document = serde_json::to_value(Document::new(&records, None)).unwrap();
        assert_eq!(document["response"], "trace");
        assert_eq!(document["records"].as_array().unwrap().len(), 2);
        assert_eq!(document["reason"]["name"], "no_route");
        assert_eq!(document.get("wrong_checksum"), None);
        let wrong = Wrong {
            protocol: 17,
            found: 0xbeef,
            computed: 1,
        };
        let document = serde_json::to_value(Document::new(&records[..1], Some(wrong))).unwrap();
        assert_eq!(document.get("reason"), None);
        let told = serde_json::json!({"protocol": 17, "found": 0xbeef, "computed": 1});
        assert_eq!(document["wrong_checksum"], told);
    }
}
