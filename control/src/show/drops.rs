//! Drops as text.

use std::fmt::Write;
use std::net::IpAddr;
use std::time::Duration;

use podway_proto::control::Response;
use podway_proto::dataplane::{DropCount, DroppedPacket, Drops};

use super::table::{Table, or_dash, words};

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
    let mut drops = new.clone();
    for drop in &mut drops.drops {
        let base = old.drops.iter().find(|old| old.reason == drop.reason);
        let base = base.map_or(0, |old| old.packets);
        #[expect(clippy::cast_precision_loss, reason = "a rate for people")]
        let rate = drop.packets.saturating_sub(base) as f64 / seconds;
        drop.packets_per_second = rate;
    }
    told(&drops, all)
}

pub(super) fn told(drops: &Drops, all: bool) -> String {
    let mut text = dropped(&drops.drops, all);
    let passed = drops.passed.iter();
    let passed: Vec<_> = passed.filter(|pass| all || pass.packets > 0).collect();
    if passed.is_empty() {
        return text;
    }
    let mut table = Table::new(["LEFT TO THE KERNEL", "PACKETS", "MEANING"]);
    for pass in passed {
        table.row([
            pass.cause.clone(),
            pass.packets.to_string(),
            pass.meaning.clone(),
        ]);
    }
    let _ = write!(text, "\n{}", table.render());
    text
}

fn dropped(drops: &[DropCount], all: bool) -> String {
    let drops: Vec<_> = drops
        .iter()
        .filter(|drop| all || drop.packets > 0)
        .collect();
    if drops.is_empty() {
        return "nothing dropped\n".to_owned();
    }
    let mut table = Table::new(["REASON", "WHERE", "PACKETS", "PER-SECOND", "LAST PACKET"]);
    for drop in &drops {
        table.row([
            drop.reason.clone(),
            words(&drop.places),
            drop.packets.to_string(),
            format!("{:.1}", drop.packets_per_second),
            or_dash(drop.last.as_ref().map(packet)),
        ]);
    }
    let mut text = table.render();
    for drop in drops {
        let _ = write!(
            text,
            "\n{}: {}\n  remedy: {}\n",
            drop.reason, drop.meaning, drop.remedy
        );
    }
    text
}

fn packet(packet: &DroppedPacket) -> String {
    let mut text = match (packet.source, packet.destination) {
        (Some(source), Some(destination)) => format!(
            "{} -> {} {}, ",
            end(source, packet.source_port),
            end(destination, packet.destination_port),
            protocol(packet.protocol)
        ),
        _ => format!("no IP header ({}), ", packet.header),
    };
    let _ = write!(text, "{} bytes", packet.bytes);
    if let Some(interface) = &packet.interface {
        let _ = write!(text, ", {interface}");
    }
    let _ = write!(text, ", {} s ago", packet.seconds_ago);
    text
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
    use podway_proto::dataplane::PassCount;
    use podway_proto::reasons::{DropReason, Explanation, PassCause, RefuseCause};

    use super::*;

    fn drop(reason: Explanation, packets: u64, packets_per_second: f64) -> DropCount {
        DropCount {
            reason: reason.name.into(),
            places: reason.places.to_vec(),
            packets,
            packets_per_second,
            last_minute: 0,
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
            header: "0200".into(),
        }
    }

    fn some() -> Drops {
        let drops = vec![
            DropCount {
                last: Some(last(Some("veth-a"))),
                ..drop(DropReason::NoRoute.explain(), 12, 1.25)
            },
            drop(DropReason::TooBig.explain(), 0, 0.0),
            drop(RefuseCause::OwnSource.explain(), 3, 0.0),
        ];
        let pass = |cause: PassCause, packets| PassCount {
            cause: cause.explain().name.into(),
            packets,
            meaning: "It is not ours.".into(),
            remedy: "Let it be.".into(),
        };
        Drops {
            drops,
            passed: vec![pass(PassCause::UnknownVni, 2), pass(PassCause::NotIp, 0)],
        }
    }

    #[test]
    fn what_was_dropped_is_told_with_what_to_do() {
        let response = Response::Drops(some());
        let expected = "\
REASON      WHERE   PACKETS  PER-SECOND  LAST PACKET
no_route    lookup  12       1.2         10.0.0.2:40000 -> 10.9.0.1:9 udp, 106 bytes, veth-a, 3 s ago
own_source  xdp     3        0.0         -

no_route: It died.
  remedy: Let it live.

own_source: It died.
  remedy: Let it live.

LEFT TO THE KERNEL  PACKETS  MEANING
unknown_vni         2        It is not ours.
";
        assert_eq!(text(&response, false), expected);
        let all = text(&response, true);
        let row = "\ntoo_big     forward, gather  0        0.0         -\n";
        assert!(all.contains(row), "{all}");
        assert!(
            all.ends_with("\nnot_ip              0        It is not ours.\n"),
            "{all}"
        );
        let none = Response::Drops(Drops::default());
        assert_eq!(text(&none, true), "nothing dropped\n");
    }

    #[test]
    fn rates_between_two_looks_are_per_second() {
        let before = Response::Drops(some());
        let mut drops = some();
        drops.drops[0].packets += 5;
        drops.drops[2].packets += 3;
        let after = Response::Drops(drops);
        let shown = between(&before, &after, Duration::from_secs(2), false);
        assert!(
            shown.contains("\nno_route    lookup  17       2.5         10."),
            "{shown}"
        );
        assert!(
            shown.contains("\nown_source  xdp     6        1.5         -\n"),
            "{shown}"
        );
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
        let other = DroppedPacket { source: None, ..v6 };
        assert_eq!(packet(&other), "no IP header (0200), 106 bytes, 3 s ago");
    }
}
