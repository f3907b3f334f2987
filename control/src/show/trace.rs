//! The way of a packet as text.

use std::fmt::Write;

use podway_proto::dataplane::Status;
use podway_proto::watch::{WatchNextHopKind, WatchPoint, WatchRecord, WatchSender};

use super::drops::protocol;
use super::watch::{flow, next_hop, time};
use super::{or_dash, way};
use crate::checksum::Wrong;
use crate::cli::explanation;

/// The steps of a packet: its records, in order, and what is wrong with its checksum. `status` knows the
/// ports.
pub fn text(records: &[WatchRecord], wrong: Option<Wrong>, status: &Status) -> String {
    let Some(last) = records.last() else {
        return String::new();
    };
    let mut text = format!("{} {}\n", time(last.time), flow(last.flow.as_ref()));
    let mut step = |name: &str, said: String| {
        let _ = writeln!(text, "  {name:<9}{said}");
    };
    let came = records.iter().find(|r| r.point == WatchPoint::Ingress);
    match (came, &last.came_by) {
        (Some(came), _) => step("came", arrival(came, status)),
        (None, Some(_)) => step("came", arrival(last, status)),
        (None, None) if last.point == WatchPoint::Egress => {
            step(
                "made",
                "here: an answer to the sender of a packet that was dropped".into(),
            );
        }
        (None, None) => {}
    }
    let from = came.and_then(|came| came.tunnel_from.as_ref());
    let inside = records.iter().find(|r| r.point == WatchPoint::Decap);
    let vni = or_dash(last.vni);
    if let Some(inside) = inside {
        let from = from.map_or_else(String::new, |from| format!(", from {}", sender(from)));
        let bytes = inside.length;
        step("decap", format!("VNI {vni}{from}, {bytes} bytes inside"));
    } else if let Some(from) = from {
        step(
            "tunnel",
            format!("VNI {vni}, from {}, not taken off", sender(from)),
        );
    }
    if let Some(wrong) = wrong {
        let whose = protocol(Some(wrong.protocol));
        let Wrong {
            found, computed, ..
        } = wrong;
        step(
            "checksum",
            format!(
                "of {whose} is {found:#06x} and should be {computed:#06x}: wrong as it came, and the \
                 receiver will drop it"
            ),
        );
        step("remedy", DAMAGED.into());
    }
    if let Some(route) = last.route.as_ref() {
        step("route", format!("{} {}", route.prefix, way(&route.via)));
    }
    if let Some(to) = last.next_hop.as_ref().filter(|to| to.kind.is_some()) {
        step("goes to", next_hop(to));
        if let (Some(mtu), Some(cut)) = (to.mtu, cut(last)) {
            step(
                "cut",
                format!("{cut} (the path carries IP packets of {mtu} bytes)"),
            );
        }
    }
    let interface = last.interface().unwrap_or("a port that is gone");
    match (&last.reason, last.point) {
        (Some(reason), _) => {
            let told = explanation(reason);
            let meaning = told.map_or("", |told| told.meaning);
            step(
                "dropped",
                format!("{reason}, {} bytes: {meaning}", last.length),
            );
            if let Some(told) = told {
                step("remedy", told.remedy.to_owned());
            }
        }
        (None, WatchPoint::Egress) => {
            let mac = last.next_hop.as_ref().and_then(|to| to.mac);
            let mac = mac.map_or_else(String::new, |mac| format!(" to {mac}"));
            step(
                "sent",
                format!("by {interface}{mac}, {} bytes", last.length),
            );
        }
        (None, _) => step("lost", "what became of it found no room".into()),
    }
    text
}

/// What to do about a wrong checksum.
const DAMAGED: &str = "Look before this port for what changes packets without their checksum: rules \
                       (`nft list ruleset`, `tc filter show`) where it came from, offloads of cards \
                       (`ethtool -k`), a machine on the way.";

/// Who has sent a tunnel.
fn sender(from: &WatchSender) -> String {
    match &from.node {
        Some(node) => format!("{node} ({})", from.address),
        None => format!("{}, which is no node's", from.address),
    }
}

/// By what a packet came.
fn arrival(came: &WatchRecord, status: &Status) -> String {
    let name = came.came_by.as_deref().unwrap_or("a port that is gone");
    let port = status.ports.iter().find(|port| port.interface == name);
    let engine = port.map_or_else(String::new, |port| format!(" ({})", port.ingress));
    let mut text = format!("by {name}{engine}, worker {}", came.worker);
    if came.point == WatchPoint::Ingress {
        let _ = write!(text, ", {} bytes", came.length);
    }
    let _ = match came.frames {
        1 => Ok(()),
        frames => write!(text, " in {frames} frames"),
    };
    if let Some(segment) = came.segment {
        let _ = write!(text, ", a super-frame of segments of {segment}");
    }
    text
}

/// Into what a packet is cut on its way out, as far as that is known here: a pod takes it whole.
fn cut(last: &WatchRecord) -> Option<String> {
    let to = last.next_hop.as_ref()?;
    let is_long = last.point == WatchPoint::Egress && to.kind != Some(WatchNextHopKind::Pod);
    match last.segment {
        Some(segment) if is_long => Some(format!("to segments of {segment} or what fits")),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use podway_proto::control::RouteTarget;
    use podway_proto::dataplane::{PortStatus, TableStatus};
    use podway_proto::watch::WatchRoute;

    use super::super::watch::tests::{record, tunnel};
    use super::*;

    fn status() -> Status {
        Status {
            version: String::new(),
            pid: 1,
            uptime_seconds: 1,
            log: String::new(),
            gate_open: true,
            wait: "adaptive".into(),
            workers: Vec::new(),
            ports: vec![PortStatus {
                interface: "veth-a".into(),
                ifindex: 3,
                role: "pod".into(),
                mtu: 1450,
                xdp_mode: "tcx".into(),
                xdp_mode_reason: None,
                ingress: "tap for tcp, ring for the rest".into(),
                ingress_reason: None,
                egress: "af-packet gso".into(),
                queue_workers: vec![0],
                oversize: None,
            }],
            tables: TableStatus {
                generation: 1,
                adopted: 1,
                routes: 1,
                unresolved: 0,
                nodes: 1,
                neighbors: 1,
            },
        }
    }

    #[test]
    fn a_packet_is_told_step_by_step() {
        let left = WatchRecord {
            point: WatchPoint::Egress,
            route: Some(WatchRoute {
                prefix: "10.0.1.0/24".parse().unwrap(),
                via: RouteTarget::Node {
                    node: "node-b".into(),
                    vni: None,
                },
            }),
            next_hop: Some(tunnel()),
            length: 156,
            ..record()
        };
        assert_eq!(
            text(&[record(), left.clone()], None, &status()),
            "22:13:20.123456789 10.0.0.2:40000 -> 10.0.1.2:9 udp\n  \
             came     by veth-a (tap for tcp, ring for the rest), worker 0, 106 bytes\n  \
             route    10.0.1.0/24 via node-b\n  \
             goes to  node-b (192.168.1.2) by VXLAN, VNI 42\n  \
             sent     by eth0 to 02:00:00:00:01:02, 156 bytes\n"
        );
        let long = |record: WatchRecord| WatchRecord {
            segment: Some(1398),
            frames: 16,
            length: 60_000,
            ..record
        };
        let shown = text(&[long(record()), long(left.clone())], None, &status());
        let came = ", 60000 bytes in 16 frames, a super-frame of segments of 1398\n";
        assert!(shown.contains(came), "{shown}");
        let cut = "  cut      to segments of 1398 or what fits (the path carries IP packets of 1450 bytes)\n";
        assert!(shown.contains(cut), "{shown}");
        let made = WatchRecord {
            came_by: None,
            ..left
        };
        let shown = text(&[made], None, &status());
        assert!(
            shown.contains("  made     here: an answer to the sender"),
            "{shown}"
        );
    }

    #[test]
    fn a_drop_is_told_with_what_to_do() {
        let from_tunnel = WatchRecord {
            came_by: Some("eth0".into()),
            vni: Some(42.try_into().unwrap()),
            tunnel_from: Some(sender(Some("node-b"))),
            ..record()
        };
        let inside = WatchRecord {
            point: WatchPoint::Decap,
            length: 56,
            ..from_tunnel.clone()
        };
        let dropped = WatchRecord {
            point: WatchPoint::Dropped,
            reason: Some("no_route".into()),
            length: 56,
            ..from_tunnel.clone()
        };
        let told = explanation("no_route").unwrap();
        assert_eq!(
            text(&[from_tunnel, inside, dropped], None, &status()),
            format!(
                "22:13:20.123456789 10.0.0.2:40000 -> 10.0.1.2:9 udp\n  \
                 came     by eth0, worker 0, 106 bytes\n  \
                 decap    VNI 42, from node-b (192.168.1.2), 56 bytes inside\n  \
                 dropped  no_route, 56 bytes: {}\n  \
                 remedy   {}\n",
                told.meaning, told.remedy
            )
        );
    }

    fn sender(node: Option<&str>) -> WatchSender {
        WatchSender {
            address: [192, 168, 1, 2].into(),
            node: node.map(str::to_owned),
        }
    }

    #[test]
    fn a_tunnel_of_a_stranger_has_his_address() {
        let came = WatchRecord {
            vni: Some(42.try_into().unwrap()),
            tunnel_from: Some(sender(None)),
            ..record()
        };
        let dropped = WatchRecord {
            point: WatchPoint::Dropped,
            reason: Some("unknown_vtep".into()),
            ..came.clone()
        };
        let shown = text(&[came, dropped], None, &status());
        let line = "  tunnel   VNI 42, from 192.168.1.2, which is no node's, not taken off\n  dropped  \
                    unknown_vtep";
        assert!(shown.contains(line), "{shown}");
    }

    #[test]
    fn a_wrong_checksum_is_a_step() {
        let wrong = Wrong {
            protocol: 17,
            found: 0xbeef,
            computed: 1,
        };
        let left = WatchRecord {
            point: WatchPoint::Egress,
            next_hop: Some(tunnel()),
            ..record()
        };
        let shown = text(&[record(), left], Some(wrong), &status());
        let lines = "106 bytes\n  checksum of udp is 0xbeef and should be 0x0001: wrong as it came, and \
                     the receiver will drop it\n  remedy   Look before this port for what changes \
                     packets without their checksum";
        assert!(shown.contains(lines), "{shown}");
    }
}
