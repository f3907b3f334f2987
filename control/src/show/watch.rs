//! Records of watched packets as text.

use std::fmt::Write;

use podway_proto::watch::{WatchFlow, WatchNextHop, WatchNextHopKind, WatchPoint, WatchRecord};

use super::drops::{end, protocol};
use crate::checksum;

/// A record as a line.
pub fn line(record: &WatchRecord) -> String {
    let mut line = format!(
        "{} worker {} {:<7} {} {}, {} bytes",
        time(record.time),
        record.worker,
        record.point,
        record.interface().unwrap_or("-"),
        flow(record.flow.as_ref()),
        record.length
    );
    if let Some(segment) = record.segment {
        let _ = write!(line, ", segments of {segment}");
    }
    if let (WatchPoint::Ingress, Some(vni)) = (record.point, record.vni) {
        let _ = write!(line, ", VNI {vni}");
    }
    if let (WatchPoint::Egress, Some(to)) = (record.point, &record.next_hop) {
        let _ = write!(line, ", to {}", next_hop(to));
    }
    if let Some(wrong) = checksum::wrong(record) {
        let whose = protocol(Some(wrong.protocol));
        let _ = write!(line, ", wrong {whose} checksum");
    }
    if let Some(reason) = &record.reason {
        let _ = write!(line, ": {reason}");
    }
    line.push('\n');
    line
}

/// Nanoseconds since 1970 as a time of the day, UTC.
pub(super) fn time(nanoseconds: u64) -> String {
    let (seconds, fraction) = (nanoseconds / 1_000_000_000, nanoseconds % 1_000_000_000);
    let (hours, minutes) = (seconds / 3600 % 24, seconds / 60 % 60);
    format!("{hours:02}:{minutes:02}:{:02}.{fraction:09}", seconds % 60)
}

/// Who speaks to whom.
pub(super) fn flow(flow: Option<&WatchFlow>) -> String {
    flow.map_or_else(
        || "no IP header".to_owned(),
        |flow| {
            format!(
                "{} -> {} {}",
                end(flow.source, flow.source_port),
                end(flow.destination, flow.destination_port),
                protocol(Some(flow.protocol))
            )
        },
    )
}

/// Who has the packet next.
pub(super) fn next_hop(to: &WatchNextHop) -> String {
    let mac = || to.mac.map_or_else(|| "-".to_owned(), |mac| mac.to_string());
    let whom = match (&to.node, to.address) {
        (Some(node), Some(address)) => format!("{node} ({address})"),
        (None, Some(address)) => address.to_string(),
        _ => mac(),
    };
    match (to.kind, to.vni) {
        (Some(WatchNextHopKind::Pod), _) => format!("the pod ({})", mac()),
        (Some(WatchNextHopKind::Native), _) => format!("{whom} natively"),
        (Some(WatchNextHopKind::Vxlan), Some(vni)) => format!("{whom} by VXLAN, VNI {vni}"),
        _ => whom,
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use etherparse::PacketBuilder;

    use super::*;

    /// A datagram from 10.0.0.2:40000 to 10.0.1.2:9 as it came.
    pub(crate) fn record() -> WatchRecord {
        WatchRecord {
            time: 1_700_000_000_123_456_789,
            worker: 0,
            packet: 7,
            point: WatchPoint::Ingress,
            came_by: Some("veth-a".into()),
            length: 106,
            segment: None,
            frames: 1,
            flow: Some(WatchFlow {
                source: [10, 0, 0, 2].into(),
                destination: [10, 0, 1, 2].into(),
                protocol: 17,
                source_port: Some(40_000),
                destination_port: Some(9),
            }),
            vni: None,
            tunnel_from: None,
            route: None,
            next_hop: None,
            reason: None,
            bytes: Vec::new(),
        }
    }

    /// Into a tunnel to node-b.
    pub(crate) fn tunnel() -> WatchNextHop {
        WatchNextHop {
            kind: Some(WatchNextHopKind::Vxlan),
            interface: Some("eth0".into()),
            mac: Some("02:00:00:00:01:02".parse().unwrap()),
            address: Some([192, 168, 1, 2].into()),
            node: Some("node-b".into()),
            vni: Some(42.try_into().unwrap()),
            mtu: Some(1450),
        }
    }

    #[test]
    fn a_record_is_a_line() {
        let shown = line(&record());
        assert_eq!(
            shown,
            "22:13:20.123456789 worker 0 ingress veth-a 10.0.0.2:40000 -> 10.0.1.2:9 udp, 106 bytes\n"
        );
        let mut bytes = Vec::new();
        PacketBuilder::ethernet2([2; 6], [4; 6])
            .ipv4([10, 0, 0, 2], [10, 0, 1, 2], 64)
            .udp(40_000, 9)
            .write(&mut bytes, &[0xa5; 64])
            .unwrap();
        let mut whole = WatchRecord { bytes, ..record() };
        assert_eq!(line(&whole), shown);
        whole.bytes[50] ^= 1;
        let wrong = shown.replace('\n', ", wrong udp checksum\n");
        assert_eq!(line(&whole), wrong);
        let left = WatchRecord {
            point: WatchPoint::Egress,
            next_hop: Some(tunnel()),
            segment: Some(1398),
            length: 60_000,
            ..record()
        };
        assert_eq!(
            line(&left),
            "22:13:20.123456789 worker 0 egress  eth0 10.0.0.2:40000 -> 10.0.1.2:9 udp, 60000 \
             bytes, segments of 1398, to node-b (192.168.1.2) by VXLAN, VNI 42\n"
        );
        let dropped = WatchRecord {
            point: WatchPoint::Dropped,
            flow: None,
            reason: Some("truncated_ethernet".into()),
            ..record()
        };
        assert_eq!(
            line(&dropped),
            "22:13:20.123456789 worker 0 dropped veth-a no IP header, 106 bytes: \
             truncated_ethernet\n"
        );
    }

    #[test]
    fn a_next_hop_is_told_by_what_is_known_of_it() {
        let native = WatchNextHop {
            kind: Some(WatchNextHopKind::Native),
            vni: None,
            ..tunnel()
        };
        assert_eq!(next_hop(&native), "node-b (192.168.1.2) natively");
        let router = WatchNextHop {
            node: None,
            ..native.clone()
        };
        assert_eq!(next_hop(&router), "192.168.1.2 natively");
        let unknown = WatchNextHop {
            address: None,
            ..router
        };
        assert_eq!(next_hop(&unknown), "02:00:00:00:01:02 natively");
        let pod = WatchNextHop {
            kind: Some(WatchNextHopKind::Pod),
            ..unknown
        };
        assert_eq!(next_hop(&pod), "the pod (02:00:00:00:01:02)");
        assert_eq!(next_hop(&WatchNextHop::default()), "-");
    }
}
