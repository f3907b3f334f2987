//! Flows as text.

use std::fmt::Write;

use crate::flows::{FlowRecord, Verdict};

use super::watch::{flow, time};

/// A flow as a line.
pub fn line(record: &FlowRecord) -> String {
    let key = &record.key;
    let mut line = format!("{} {} ", time(record.last), flow(key.flow.as_ref()));
    let came_by = key.came_by.as_deref().unwrap_or("-");
    let _ = match (key.verdict, &key.reason) {
        (Verdict::Forwarded, _) => {
            let leaves_by = key.leaves_by.as_deref().unwrap_or("-");
            write!(line, "forwarded {came_by} -> {leaves_by}")
        }
        (Verdict::Dropped, reason) => {
            let reason = reason.as_deref().unwrap_or("-");
            write!(line, "DROPPED {came_by}: {reason}")
        }
    };
    if let Some(node) = &key.node {
        let _ = write!(line, ", to {node}");
    }
    if let Some(vni) = key.vni {
        let _ = write!(line, " by VNI {vni}");
    }
    let _ = writeln!(line, ", {} packets, {} bytes", record.packets, record.bytes);
    line
}

#[cfg(test)]
mod tests {
    use podway_proto::watch::{WatchPoint, WatchRecord};

    use super::super::watch::tests::{record, tunnel};
    use super::*;
    use crate::flows::Flows;

    fn told(record: &WatchRecord) -> String {
        let mut flows = Flows::new(1);
        flows.add(record);
        flows.take().0.iter().map(line).collect()
    }

    #[test]
    fn a_flow_is_a_line() {
        let sent = WatchRecord {
            point: WatchPoint::Egress,
            next_hop: Some(tunnel()),
            length: 156,
            ..record()
        };
        assert_eq!(
            told(&sent),
            "22:13:20.123456789 10.0.0.2:40000 -> 10.0.1.2:9 udp forwarded veth-a -> eth0, to node-b \
             by VNI 42, 1 packets, 156 bytes\n"
        );
        let dropped = WatchRecord {
            point: WatchPoint::Dropped,
            reason: Some("no_route".into()),
            ..record()
        };
        assert_eq!(
            told(&dropped),
            "22:13:20.123456789 10.0.0.2:40000 -> 10.0.1.2:9 udp DROPPED veth-a: no_route, 1 packets, \
             106 bytes\n"
        );
    }
}
