//! Drops as text.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::net::IpAddr;
use std::time::Duration;

use podway_proto::control::Response;
use podway_proto::dataplane::{DropCount, DroppedPacket, Drops, PassCount, TunneledPacket};
use podway_proto::reasons::Place;

use super::table::{Table, or_dash, words};

/// Interfaces that are named of a reason: those with the most packets.
const INTERFACES: usize = 5;

/// How much is shown of a header that cannot be read: 32 bytes.
const DIGITS: usize = 64;

/// An answer to `drops`; with `all` also the reasons that have dropped nothing.
pub fn text(response: &Response, all: bool) -> String {
    match response {
        Response::Drops(drops) => told(drops, all),
        other => super::text(other),
    }
}

/// As [`text`], with the rates between two answers.
pub fn between(before: &Response, after: &Response, elapsed: Duration, all: bool) -> String {
    let (Response::Drops(old), Response::Drops(new)) = (before, after) else {
        return text(after, all);
    };
    let seconds = elapsed.as_secs_f64().max(f64::MIN_POSITIVE);
    #[expect(clippy::cast_precision_loss, reason = "a rate for people")]
    let rate = |now: u64, before: Option<u64>| {
        now.saturating_sub(before.unwrap_or_default()) as f64 / seconds
    };
    let mut drops = new.clone();
    for drop in &mut drops.drops {
        let base = old.drops.iter().find(|old| old.reason == drop.reason);
        drop.packets_per_second = rate(drop.packets, base.map(|old| old.packets));
    }
    for pass in &mut drops.passed {
        let base = old.passed.iter().find(|old| old.cause == pass.cause);
        pass.packets_per_second = rate(pass.packets, base.map(|old| old.packets));
    }
    told(&drops, all)
}

pub(super) fn told(drops: &Drops, all: bool) -> String {
    let dropped = table("REASON", drops.drops.iter().map(Row::from), all);
    let mut text = dropped.unwrap_or_else(|| "nothing dropped\n".to_owned());
    let passed = drops.passed.iter().map(Row::from);
    if let Some(passed) = table("LEFT TO THE KERNEL", passed, all) {
        let _ = write!(text, "\n{passed}");
    }
    text
}

/// What is told of a reason, whatever became of its packets.
struct Row<'d> {
    name: &'d str,
    places: &'d [Place],
    packets: u64,
    packets_per_second: f64,
    interfaces: &'d BTreeMap<String, u64>,
    last: Option<&'d DroppedPacket>,
    meaning: &'d str,
    remedy: &'d str,
}

impl<'d> From<&'d DropCount> for Row<'d> {
    fn from(drop: &'d DropCount) -> Self {
        Self {
            name: &drop.reason,
            places: &drop.places,
            packets: drop.packets,
            packets_per_second: drop.packets_per_second,
            interfaces: &drop.interfaces,
            last: drop.last.as_ref(),
            meaning: &drop.meaning,
            remedy: &drop.remedy,
        }
    }
}

impl<'d> From<&'d PassCount> for Row<'d> {
    fn from(pass: &'d PassCount) -> Self {
        Self {
            name: &pass.cause,
            places: &pass.places,
            packets: pass.packets,
            packets_per_second: pass.packets_per_second,
            interfaces: &pass.interfaces,
            last: pass.last.as_ref(),
            meaning: &pass.meaning,
            remedy: &pass.remedy,
        }
    }
}

/// Rows and, below them, what each means; `None` where there is none to tell.
fn table<'d>(title: &str, rows: impl Iterator<Item = Row<'d>>, all: bool) -> Option<String> {
    let rows: Vec<_> = rows.filter(|row| all || row.packets > 0).collect();
    if rows.is_empty() {
        return None;
    }
    let mut table = Table::new([title, "WHERE", "PACKETS", "PER-SECOND", "LAST PACKET"]);
    for row in &rows {
        table.row([
            row.name.to_owned(),
            words(row.places),
            row.packets.to_string(),
            format!("{:.1}", row.packets_per_second),
            or_dash(row.last.map(packet)),
        ]);
    }
    let mut text = table.render();
    for row in rows {
        let _ = writeln!(text, "\n{}: {}", row.name, row.meaning);
        if !row.interfaces.is_empty() {
            let _ = writeln!(text, "  by interface: {}", by_interface(row.interfaces));
        }
        let _ = writeln!(text, "  remedy: {}", row.remedy);
    }
    Some(text)
}

/// Those with the most packets first.
fn by_interface(interfaces: &BTreeMap<String, u64>) -> String {
    let mut all: Vec<_> = interfaces.iter().collect();
    all.sort_by_key(|(_, packets)| std::cmp::Reverse(**packets));
    let shown = all.iter().take(INTERFACES);
    let shown = shown.map(|(name, packets)| format!("{name} {packets}"));
    let mut text = shown.collect::<Vec<_>>().join(", ");
    if let Some(others @ 1..) = all.len().checked_sub(INTERFACES) {
        let _ = write!(text, " and {others} others");
    }
    text
}

fn packet(packet: &DroppedPacket) -> String {
    let mut text = match flow(
        packet.protocol,
        (packet.source, packet.source_port),
        (packet.destination, packet.destination_port),
    ) {
        Some(flow) => format!("{flow}, "),
        None => match packet.header.get(..DIGITS) {
            Some(start) if start != packet.header => format!("no IP header ({start}...), "),
            _ => format!("no IP header ({}), ", packet.header),
        },
    };
    if let Some(inside) = &packet.inside {
        let _ = write!(text, "{}, ", tunneled(inside));
    }
    let _ = write!(text, "{} bytes", packet.bytes);
    if let Some(interface) = &packet.interface {
        let _ = write!(text, ", {interface}");
    }
    let _ = write!(text, ", {} s ago", packet.seconds_ago);
    text
}

fn tunneled(inside: &TunneledPacket) -> String {
    let flow = flow(
        inside.protocol,
        (inside.source, inside.source_port),
        (inside.destination, inside.destination_port),
    );
    let vni = inside.vni;
    match flow {
        Some(flow) => format!("VNI {vni} with {flow}"),
        None => format!("VNI {vni}"),
    }
}

/// From whom to whom; `None` where that cannot be read.
fn flow(
    number: Option<u8>,
    (source, source_port): (Option<IpAddr>, Option<u16>),
    (destination, destination_port): (Option<IpAddr>, Option<u16>),
) -> Option<String> {
    let name = match number {
        None => "arp".to_owned(),
        number => protocol(number),
    };
    Some(format!(
        "{} -> {} {name}",
        end(source?, source_port),
        end(destination?, destination_port),
    ))
}

pub(crate) fn end(address: IpAddr, port: Option<u16>) -> String {
    match (address, port) {
        (address, None) => address.to_string(),
        (IpAddr::V4(v4), Some(port)) => format!("{v4}:{port}"),
        (IpAddr::V6(v6), Some(port)) => format!("[{v6}]:{port}"),
    }
}

pub(crate) fn protocol(number: Option<u8>) -> String {
    match number {
        Some(1) => "icmp".to_owned(),
        Some(6) => "tcp".to_owned(),
        Some(17) => "udp".to_owned(),
        Some(58) => "icmpv6".to_owned(),
        Some(other) => format!("protocol {other}"),
        None => "-".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use podway_proto::reasons::{DropReason, Explanation, LossCause, PassCause, RefuseCause};

    use super::*;

    fn drop(reason: Explanation, packets: u64, packets_per_second: f64) -> DropCount {
        DropCount {
            reason: reason.name.into(),
            places: reason.places.to_vec(),
            packets,
            packets_per_second,
            last_minute: 0,
            interfaces: BTreeMap::new(),
            last: None,
            meaning: "It died.".into(),
            remedy: "Let it live.".into(),
        }
    }

    fn last(interface: Option<&str>) -> DroppedPacket {
        DroppedPacket {
            seconds_ago: 3,
            interface: interface.map(str::to_owned),
            bytes: 106,
            source: Some([10, 0, 0, 2].into()),
            destination: Some([10, 9, 0, 1].into()),
            protocol: Some(17),
            source_port: Some(40_000),
            destination_port: Some(9),
            inside: None,
            header: "0200".into(),
        }
    }

    fn by<const N: usize>(interfaces: [(&str, u64); N]) -> BTreeMap<String, u64> {
        let interfaces = interfaces.into_iter();
        interfaces.map(|(name, n)| (name.to_owned(), n)).collect()
    }

    fn pass(cause: PassCause, packets: u64, packets_per_second: f64) -> PassCount {
        let explanation = cause.explain();
        PassCount {
            cause: explanation.name.into(),
            places: explanation.places.to_vec(),
            packets,
            packets_per_second,
            last_minute: 0,
            interfaces: BTreeMap::new(),
            last: None,
            meaning: "It is not ours.".into(),
            remedy: "Let it be.".into(),
        }
    }

    /// Each kind: dropped by a worker, lost, refused, passed; and some that have not happened.
    fn some() -> Drops {
        let drops = vec![
            DropCount {
                last: Some(last(Some("veth-a"))),
                ..drop(DropReason::NoRoute.explain(), 12, 1.25)
            },
            drop(DropReason::TooBig.explain(), 0, 0.0),
            DropCount {
                interfaces: by([("podway.tap0", 4)]),
                ..drop(LossCause::TapFull.explain(), 4, 0.4)
            },
            DropCount {
                interfaces: by([("veth-a", 1), ("veth-b", 2)]),
                last: Some(DroppedPacket {
                    source: Some([203, 0, 113, 9].into()),
                    ..last(Some("veth-b"))
                }),
                ..drop(RefuseCause::SpoofedSource.explain(), 3, 0.0)
            },
        ];
        let outer = DroppedPacket {
            source: Some([192, 168, 1, 2].into()),
            destination: Some([192, 168, 1, 1].into()),
            source_port: Some(50_000),
            destination_port: Some(4789),
            bytes: 156,
            inside: Some(TunneledPacket {
                vni: 99,
                source: Some([10, 0, 0, 2].into()),
                destination: Some([10, 9, 0, 1].into()),
                protocol: Some(6),
                source_port: Some(40_000),
                destination_port: Some(80),
            }),
            ..last(Some("eth0"))
        };
        let passed = vec![
            PassCount {
                interfaces: by([("eth0", 2)]),
                last: Some(outer),
                ..pass(PassCause::UnknownVni, 2, 0.2)
            },
            pass(PassCause::NotIp, 0, 0.0),
        ];
        Drops { drops, passed }
    }

    #[test]
    fn what_was_dropped_is_told_with_what_to_do() {
        let response = Response::Drops(some());
        let expected = "\
REASON          WHERE   PACKETS  PER-SECOND  LAST PACKET
no_route        lookup  12       1.2         10.0.0.2:40000 -> 10.9.0.1:9 udp, 106 bytes, veth-a, 3 s ago
tap_full        queue   4        0.4         -
spoofed_source  xdp     3        0.0         203.0.113.9:40000 -> 10.9.0.1:9 udp, 106 bytes, veth-b, 3 s ago

no_route: It died.
  remedy: Let it live.

tap_full: It died.
  by interface: podway.tap0 4
  remedy: Let it live.

spoofed_source: It died.
  by interface: veth-b 2, veth-a 1
  remedy: Let it live.

LEFT TO THE KERNEL  WHERE  PACKETS  PER-SECOND  LAST PACKET
unknown_vni         xdp    2        0.2         192.168.1.2:50000 -> 192.168.1.1:4789 udp, VNI 99 with 10.0.0.2:40000 -> 10.9.0.1:80 tcp, 156 bytes, eth0, 3 s ago

unknown_vni: It is not ours.
  by interface: eth0 2
  remedy: Let it be.
";
        assert_eq!(text(&response, false), expected);
        let all = text(&response, true);
        for row in [
            "\ntoo_big         forward, gather  0        0.0         -\n",
            "\nnot_ip              xdp    0        0.0         -\n",
            "\nnot_ip: It is not ours.\n  remedy: Let it be.\n",
        ] {
            assert!(all.contains(row), "{all}");
        }
        let none = Response::Drops(Drops::default());
        assert_eq!(text(&none, true), "nothing dropped\n");
        let passed = Drops {
            drops: Vec::new(),
            ..some()
        };
        let passed = text(&Response::Drops(passed), false);
        assert!(passed.starts_with("nothing dropped\n\nLEFT TO THE KERNEL "));
    }

    #[test]
    fn rates_between_two_looks_are_per_second() {
        let before = Response::Drops(some());
        let mut drops = some();
        drops.drops[0].packets += 5;
        drops.drops[3].packets += 3;
        drops.passed[0].packets += 1;
        let after = Response::Drops(drops);
        let shown = between(&before, &after, Duration::from_secs(2), false);
        for row in [
            "\nno_route        lookup  17       2.5         10.",
            "\ntap_full        queue   4        0.0         -\n",
            "\nspoofed_source  xdp     6        1.5         203.",
            "\nunknown_vni         xdp    3        0.5         192.",
        ] {
            assert!(shown.contains(row), "{shown}");
        }
    }

    #[test]
    fn of_many_interfaces_those_with_the_most_are_named() {
        let two = by([("a", 1), ("b", 3)]);
        assert_eq!(by_interface(&two), "b 3, a 1");
        let many: Vec<_> = ('a'..='h').map(|c| (c.to_string(), 5)).collect();
        let many = many.into_iter().collect();
        assert_eq!(by_interface(&many), "a 5, b 5, c 5, d 5, e 5 and 3 others");
    }

    #[test]
    fn a_packet_is_told_as_far_as_it_can_be_read() {
        let v6 = DroppedPacket {
            source: Some("fd00::2".parse().unwrap()),
            destination: Some("fd00:1::2".parse().unwrap()),
            protocol: Some(58),
            source_port: None,
            destination_port: None,
            ..last(None)
        };
        assert_eq!(
            packet(&v6),
            "fd00::2 -> fd00:1::2 icmpv6, 106 bytes, 3 s ago"
        );
        let tcp = DroppedPacket {
            protocol: Some(6),
            source_port: Some(80),
            destination_port: Some(81),
            ..v6.clone()
        };
        assert_eq!(
            packet(&tcp),
            "[fd00::2]:80 -> [fd00:1::2]:81 tcp, 106 bytes, 3 s ago"
        );
        let tunneled = DroppedPacket {
            inside: Some(TunneledPacket {
                vni: 7,
                source: None,
                destination: None,
                protocol: None,
                source_port: None,
                destination_port: None,
            }),
            ..tcp
        };
        assert_eq!(
            packet(&tunneled),
            "[fd00::2]:80 -> [fd00:1::2]:81 tcp, VNI 7, 106 bytes, 3 s ago"
        );
        let arp = DroppedPacket {
            protocol: None,
            source: Some([203, 0, 113, 9].into()),
            destination: Some([10, 0, 0, 1].into()),
            ..v6.clone()
        };
        assert_eq!(
            packet(&arp),
            "203.0.113.9 -> 10.0.0.1 arp, 106 bytes, 3 s ago"
        );
        let other = DroppedPacket { source: None, ..v6 };
        assert_eq!(packet(&other), "no IP header (0200), 106 bytes, 3 s ago");
        let of = |digits: usize| DroppedPacket {
            header: "f".repeat(digits),
            ..other.clone()
        };
        let shown = "f".repeat(64);
        for (digits, more) in [(64, ""), (66, "...")] {
            assert_eq!(
                packet(&of(digits)),
                format!("no IP header ({shown}{more}), 106 bytes, 3 s ago")
            );
        }
    }
}
