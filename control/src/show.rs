//! Responses as text for people.

pub mod change;
pub mod doctor;
pub mod drops;
pub mod explain;
pub mod flows;
mod health;
pub mod overview;
pub mod perf;
pub(crate) mod phrases;
mod ports;
mod table;
pub mod trace;
mod trace_packet;
pub mod watch;

use std::fmt::Write;
use std::time::Duration;

use podway_proto::control::{
    DataplaneLink, DriftStatus, NodeEntry, PortEntry, Response, RouteAnswer, RouteEntry,
    RouteOrigin, RouteTarget, Status,
};
use podway_proto::dataplane::{self, Counters};

use table::{Table, list, or_dash};

/// `response` as text that ends with a newline, or nothing when there is nothing to tell.
pub fn text(response: &Response) -> String {
    match response {
        Response::Hello { .. } | Response::Done => String::new(),
        Response::Status(status) => show_status(status),
        Response::Nodes { nodes } => show_nodes(nodes),
        Response::Routes { routes } => show_routes(routes),
        Response::RouteGet(answer) => show_route_answer(answer),
        Response::Ports { ports } => ports::told(ports, None),
        Response::Counters {
            counters,
            imbalances,
        } => show_counters(counters, imbalances),
        Response::Drops(drops) => drops::told(drops, false),
        Response::TracePacket(answer) => trace_packet::text(answer),
        Response::Perf(perf) => perf::told(perf, None),
        Response::Entries(entries) => change::entries(entries),
        Response::BulkDone(difference) => change::summary(difference),
        Response::BulkRefused { refused } => change::refused(refused).join("\n") + "\n",
        Response::Error(error) => format!("{error}\n"),
    }
}

/// The ports with what the dataplane got for them, as far as `status` tells.
pub fn ports(ports: &[PortEntry], status: &Response) -> String {
    let Response::Status(status) = status else {
        return ports::told(ports, None);
    };
    let got = status.dataplane.status();
    ports::told(ports, got.map(|status| status.ports.as_slice())) + &pods_fit(status)
}

/// The MTU that pods may have.
fn pods_fit(status: &Status) -> String {
    let Some(mtu) = status.pod_mtu else {
        return String::new();
    };
    match &status.pod_mtu_by {
        Some(node) => format!("pods' routes fit with an MTU up to {mtu}, for the path to {node}\n"),
        None => format!("pods' routes fit with an MTU up to {mtu}\n"),
    }
}

/// Packets and bits per second of each port between two answers to `counters`.
pub fn rates(before: &Response, after: &Response, elapsed: Duration) -> String {
    let (Response::Counters { counters: old, .. }, Response::Counters { counters: new, .. }) =
        (before, after)
    else {
        return String::new();
    };
    let per_second = |old: u64, new: u64| {
        let micros = u64::try_from(elapsed.as_micros())
            .unwrap_or(u64::MAX)
            .max(1);
        u128::from(new.saturating_sub(old)) * 1_000_000 / u128::from(micros)
    };
    let mut table = Table::new([
        "PER SECOND",
        "RX-PACKETS",
        "RX-MBIT",
        "TX-PACKETS",
        "TX-MBIT",
    ]);
    for (name, port) in &new.ports {
        let base = old.ports.get(name).cloned().unwrap_or_default();
        let megabits = |old, new| per_second(old, new) * 8 / 1_000_000;
        table.row([
            name.clone(),
            per_second(base.rx_packets, port.rx_packets).to_string(),
            megabits(base.rx_bytes, port.rx_bytes).to_string(),
            per_second(base.tx_packets, port.tx_packets).to_string(),
            megabits(base.tx_bytes, port.tx_bytes).to_string(),
        ]);
    }
    format!("\n{}", table.render())
}

fn show_status(status: &Status) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: String| {
        let _ = writeln!(text, "{name:<12}{value}");
    };
    line(
        "node",
        format!(
            "{} (podway-control {}, pid {})",
            status.node, status.version, status.pid
        ),
    );
    line("pod-cidr", list(&status.pod_cidrs));
    line("mode", status.mode.to_string());
    line("underlay", phrases::underlay(status));
    line(
        "vtep",
        format!(
            "mac {} vni {} port {}",
            or_dash(status.vtep_mac),
            phrases::vnis(status),
            status.vxlan_port
        ),
    );
    line("mtu", phrases::mtus(status));
    let drift = &status.drift;
    match &status.dataplane {
        // It may be busy, or speak another version: whether it forwards is not known.
        DataplaneLink::Disconnected { reason } => {
            line(
                "dataplane",
                format!(
                    "not connected ({reason}): if it runs, it goes on with what it was told last"
                ),
            );
        }
        link @ (DataplaneLink::Syncing { refused, status }
        | DataplaneLink::Synced { refused, status }) => {
            let state = phrases::sync(link);
            line(
                "dataplane",
                match status {
                    Some(status) => format!("{state}, {}", dataplane_summary(status)),
                    None => format!("{state}, and it does not answer"),
                },
            );
            for refusal in refused {
                line("", format!("refused: {refusal}"));
            }
            for row in drift_rows(drift) {
                line("", row);
            }
            if let Some(status) = status {
                for row in ports::got(&status.ports).lines() {
                    line("", row.to_owned());
                }
            }
        }
    }
    let state = phrases::kernel(&status.kernel);
    line(
        "kernel",
        format!("{state}, device {}", status.kernel.device),
    );
    for error in &status.kernel.errors {
        line("", error.clone());
    }
    let mut names = ["health"].into_iter();
    for row in health::of_status(status.health.as_ref()) {
        line(names.next().unwrap_or_default(), row);
    }
    if status.translates {
        let words = "connections that conntrack translates are left to the kernel";
        line("services", words.to_owned());
    }
    if status.defragments {
        let words = "left to the kernel, which puts them together where it tracks connections";
        line("fragments", words.to_owned());
    }
    let of_dataplane = status.dataplane.status().map(|status| status.log.as_str());
    match (status.log.as_str(), of_dataplane.unwrap_or_default()) {
        ("", "") => {}
        (own, "") => line("log", own.to_owned()),
        (own, other) if own == other => line("log", own.to_owned()),
        (own, other) => line("log", format!("{own}; dataplane {other}")),
    }
    for hint in &status.hints {
        line("missing", hint.clone());
    }
    text
}

/// Whether the dataplane holds what it was told.
fn drift_rows(drift: &DriftStatus) -> Vec<String> {
    let mut rows: Vec<String> = drift.found.iter().map(|e| format!("drift: {e}")).collect();
    if let (Some(ago), true) = (drift.compared_seconds_ago, rows.is_empty()) {
        let but = match drift.passed_over.join(", ") {
            kinds if kinds.is_empty() => kinds,
            kinds => format!(", but for {kinds}, of which it has refused some"),
        };
        rows.push(format!("holds what it was told{but}, compared {ago} s ago"));
    }
    if drift.mended > 0 {
        let (times, last) = (drift.mended, drift.last_mended.join("; "));
        rows.push(format!("drift mended so far: {times}, last: {last}"));
    }
    rows
}

fn dataplane_summary(status: &dataplane::Status) -> String {
    format!(
        "pid {}, up {} s, {}, {} workers ({}), {}",
        status.pid,
        status.uptime_seconds,
        phrases::gate(status),
        status.workers.len(),
        status.wait,
        phrases::tables(&status.tables)
    )
}

fn show_nodes(nodes: &[NodeEntry]) -> String {
    let mut table = Table::new([
        "NODE",
        "UNDERLAY",
        "POD-CIDR",
        "MODE",
        "VTEP-MAC",
        "DEV",
        "NEXT-HOP",
        "NEXT-HOP-MAC",
        "MTU",
        "BY-UNDERLAY",
        "RTT",
        "LOST",
        "SINCE",
        "BY-OVERLAY",
        "RTT",
        "LOST",
        "SINCE",
    ]);
    for node in nodes {
        let path = node.path.as_ref();
        let health = node.health.as_ref();
        let [underlay, rtt, lost, since] = health::cells(health.map(|h| &h.underlay));
        let [overlay, overlay_rtt, overlay_lost, overlay_since] =
            health::cells(health.map(|h| &h.overlay));
        table.row([
            if node.local {
                format!("{} (this)", node.name)
            } else {
                node.name.clone()
            },
            match node.underlay6 {
                Some(second) => format!("{}, {second}", node.underlay),
                None => node.underlay.to_string(),
            },
            list(&node.pod_cidrs),
            if node.local {
                "-".to_owned()
            } else {
                node.mode.to_string()
            },
            node.vtep_mac.to_string(),
            or_dash(path.map(|path| &path.interface)),
            or_dash(path.map(|path| path.next_hop)),
            or_dash(node.next_hop_mac),
            or_dash(path.map(|path| path.mtu)),
            underlay,
            rtt,
            lost,
            since,
            overlay,
            overlay_rtt,
            overlay_lost,
            overlay_since,
        ]);
    }
    table.render()
}

fn origin(origin: RouteOrigin) -> &'static str {
    match origin {
        RouteOrigin::Added => "added",
        RouteOrigin::PodCidr => "pod-cidr",
        RouteOrigin::Pod => "pod",
        RouteOrigin::Kernel => "kernel",
    }
}

/// A route in the words of `ip route`.
fn route_line(route: &RouteEntry) -> String {
    let way = way(&route.via);
    format!("{} {way} origin {}", route.prefix, origin(route.origin))
}

fn way(target: &RouteTarget) -> String {
    match target {
        RouteTarget::Pod { interface } => format!("dev {interface}"),
        RouteTarget::Node { node, vni: None } => format!("via {node}"),
        RouteTarget::Node {
            node,
            vni: Some(vni),
        } => format!("via {node} vni {vni}"),
        RouteTarget::Gateway { address, interface } => {
            format!("via {address} dev {}", or_dash(interface.as_ref()))
        }
        RouteTarget::Multipath { members } => {
            let ways: Vec<String> = members.iter().map(way).collect();
            ways.join(" ")
        }
    }
}

fn show_routes(routes: &[RouteEntry]) -> String {
    routes
        .iter()
        .map(|route| route_line(route) + "\n")
        .collect()
}

fn show_route_answer(answer: &RouteAnswer) -> String {
    let mut text = format!("{} by {}\n", answer.address, route_line(&answer.route));
    if answer.members.is_empty() {
        next_hop(&mut text, answer);
    }
    for member in &answer.members {
        let _ = writeln!(text, "  {}", way(&member.route.via));
        next_hop(&mut text, member);
    }
    text
}

fn next_hop(text: &mut String, answer: &RouteAnswer) {
    if let Some(mode) = answer.mode {
        let _ = write!(text, "    {mode}");
        if let Some(remote) = answer.tunnel_to {
            let _ = write!(text, " to {remote}");
        }
        text.push('\n');
    }
    let _ = writeln!(
        text,
        "    dev {} next hop {} mac {} mtu {}",
        or_dash(answer.interface.as_ref()),
        or_dash(answer.next_hop),
        or_dash(answer.next_hop_mac),
        or_dash(answer.mtu)
    );
}

fn show_counters(counters: &Counters, imbalances: &[String]) -> String {
    let mut ports = Table::new([
        "PORT",
        "RX-PACKETS",
        "RX-BYTES",
        "RX-FRAMES",
        "RX-LOST",
        "TX-PACKETS",
        "TX-BYTES",
        "TX-MESSAGES",
        "JOINED",
        "CUT",
        "REDIRECTED",
        "PASSED",
    ]);
    for (name, port) in &counters.ports {
        ports.row([
            name.clone(),
            port.rx_packets.to_string(),
            port.rx_bytes.to_string(),
            port.rx_frames.to_string(),
            (port.rx_dropped + port.rx_ring_full).to_string(),
            port.tx_packets.to_string(),
            port.tx_bytes.to_string(),
            port.tx_messages.to_string(),
            port.joined.to_string(),
            port.cut.to_string(),
            port.xdp_redirected.to_string(),
            port.xdp_passed.values().sum::<u64>().to_string(),
        ]);
    }
    let mut workers = Table::new([
        "WORKER",
        "BURSTS",
        "ROUNDS",
        "SLEEPS",
        "RX-CALLS",
        "TX-CALLS",
        "WAIT-CALLS",
        "BUSY-MS",
    ]);
    for (number, worker) in counters.workers.iter().enumerate() {
        workers.row([
            number.to_string(),
            worker.bursts.to_string(),
            worker.rounds.to_string(),
            worker.sleeps.to_string(),
            worker.rx_calls.to_string(),
            worker.tx_calls.to_string(),
            worker.wait_calls.to_string(),
            (worker.busy_nanoseconds / 1_000_000).to_string(),
        ]);
    }
    let mut passed = Table::new(["PASSED TO THE KERNEL", "CAUSE", "PACKETS"]);
    for (name, port) in &counters.ports {
        for (cause, packets) in port.xdp_passed.iter().filter(|(_, packets)| **packets > 0) {
            passed.row([name.clone(), cause.clone(), packets.to_string()]);
        }
    }
    let mut refused = Table::new(["REFUSED", "CAUSE", "PACKETS"]);
    for (name, port) in &counters.ports {
        for (cause, packets) in port.xdp_refused.iter().filter(|(_, packets)| **packets > 0) {
            refused.row([name.clone(), cause.clone(), packets.to_string()]);
        }
    }
    let mut lost = Table::new(["LOST", "PACKETS"]);
    for (cause, packets) in counters.losses.iter().filter(|(_, packets)| **packets > 0) {
        lost.row([cause.clone(), packets.to_string()]);
    }
    let mut drops = Table::new(["DROPPED", "PACKETS", "MEANING"]);
    for (reason, packets) in counters.drops.iter().filter(|(_, packets)| **packets > 0) {
        let help = counters.drop_help.get(reason).cloned().unwrap_or_default();
        drops.row([reason.clone(), packets.to_string(), help]);
    }
    let mut icmp = Table::new(["ICMP ERRORS FOR", "SENT", "SUPPRESSED"]);
    for (name, port) in &counters.ports {
        if port.icmp_sent + port.icmp_suppressed > 0 {
            icmp.row([
                name.clone(),
                port.icmp_sent.to_string(),
                port.icmp_suppressed.to_string(),
            ]);
        }
    }
    let books = &counters.books;
    let mut text = format!("{}\n{}", ports.render(), workers.render());
    if !passed.is_empty() {
        let _ = write!(text, "\n{}", passed.render());
    }
    if !refused.is_empty() {
        let _ = write!(text, "\n{}", refused.render());
    }
    if !lost.is_empty() {
        let _ = write!(text, "\n{}", lost.render());
    }
    if drops.is_empty() {
        text.push_str("\nnothing dropped\n");
    } else {
        let _ = write!(text, "\n{}", drops.render());
    }
    if !icmp.is_empty() {
        let _ = write!(text, "\n{}", icmp.render());
    }
    let _ = writeln!(
        text,
        "\nframes   made {} = pooled {} + posted {} + held {}",
        books.frames_made, books.frames_pooled, books.frames_posted, books.frames_held
    );
    let _ = writeln!(
        text,
        "packets  received {} + made {} = sent {} + dropped {}; redirected {} = received + lost {}",
        books.packets_received,
        books.packets_made,
        books.packets_sent,
        books.packets_dropped,
        books.xdp_redirected,
        books.xdp_lost
    );
    if imbalances.is_empty() {
        text.push_str("both books balance\n");
    }
    for imbalance in imbalances {
        let _ = writeln!(text, "does not balance: {imbalance}");
    }
    text
}

#[cfg(test)]
mod tests {
    use podway_proto::control::KernelStatus;
    use podway_proto::dataplane::{Books, PortCounters, WorkerCounters};
    use podway_proto::reasons::{DropReason, LossCause};
    use podway_proto::types::Mode;

    use super::*;

    fn counters(rx_packets: u64) -> Response {
        let mut counters = Counters::default();
        let port = PortCounters {
            rx_packets,
            rx_bytes: rx_packets * 1250,
            xdp_redirected: rx_packets,
            icmp_suppressed: 1,
            ..PortCounters::default()
        };
        counters.ports.insert("eth0".into(), port);
        counters.workers.push(WorkerCounters {
            bursts: 2,
            busy_nanoseconds: 3_500_000,
            ..WorkerCounters::default()
        });
        let expired = DropReason::TtlExpired;
        counters.drops.insert(expired.name().into(), 1);
        counters.drops.insert(DropReason::NoRoute.name().into(), 0);
        counters
            .drop_help
            .insert(expired.name().into(), expired.meaning().into());
        for (cause, packets) in [(LossCause::RingFull, 4), (LossCause::TapFull, 0)] {
            counters.losses.insert(cause.name().into(), packets);
        }
        counters.books = Books {
            packets_received: rx_packets,
            packets_dropped: 1,
            ..Books::default()
        };
        Response::Counters {
            imbalances: counters.books.imbalances(),
            counters,
        }
    }

    fn status(dataplane: DataplaneLink) -> String {
        let kernel = KernelStatus {
            device: "podway.vx".into(),
            in_sync: true,
            errors: Vec::new(),
        };
        text(&Response::Status(Box::new(Status {
            version: "0.1.0".into(),
            pid: 7,
            log: String::new(),
            node: "a".into(),
            pod_cidrs: Vec::new(),
            mode: Mode::Vxlan,
            underlay: None,
            vtep_mac: None,
            vni: 1_u32.try_into().unwrap(),
            also_vnis: vec![77_u32.try_into().unwrap()],
            vxlan_port: 4789,
            uplink: None,
            uplink_mtu: None,
            pod_mtu: None,
            pod_mtu_by: None,
            dataplane,
            drift: DriftStatus::default(),
            kernel,
            translates: false,
            defragments: false,
            health: None,
            hints: Vec::new(),
        })))
    }

    /// What is said of the dataplane, without the lines about its ports.
    fn of_dataplane(dataplane: DataplaneLink) -> String {
        let status = status(dataplane);
        let line = status.lines().find(|line| line.starts_with("dataplane"));
        line.unwrap().to_owned()
    }

    #[test]
    fn a_dataplane_that_is_not_connected_may_forward() {
        let reason = "no answer within 5s; is it stopped?".to_owned();
        assert_eq!(
            of_dataplane(DataplaneLink::Disconnected { reason }),
            "dataplane   not connected (no answer within 5s; is it stopped?): if it runs, it \
             goes on with what it was told last"
        );
    }

    #[test]
    fn a_dataplane_is_in_sync_when_it_was_told_everything() {
        let refused = || vec!["port eth0: the queue is taken".to_owned()];
        let link = |synced, status: Option<dataplane::Status>| {
            let (refused, status) = (refused(), status.map(Box::new));
            match synced {
                true => DataplaneLink::Synced { refused, status },
                false => DataplaneLink::Syncing { refused, status },
            }
        };
        let says = || dataplane::Status {
            version: "0.1.0".into(),
            pid: 8,
            uptime_seconds: 60,
            log: String::new(),
            gate_open: true,
            wait: "adaptive".into(),
            workers: Vec::new(),
            ports: Vec::new(),
            tables: dataplane::TableStatus {
                generation: 4,
                adopted: 4,
                routes: 3,
                unresolved: 0,
                nodes: 1,
                neighbors: 1,
            },
        };
        let summary = "pid 8, up 60 s, gate open, 0 workers (adaptive), 3 routes (0 unresolved), \
                       1 nodes, 1 neighbors";
        for (synced, state) in [(true, "in sync"), (false, "not in sync yet")] {
            let line = of_dataplane(link(synced, Some(says())));
            assert_eq!(line, format!("dataplane   {state}, {summary}"));
            let line = of_dataplane(link(synced, None));
            assert_eq!(line, format!("dataplane   {state}, and it does not answer"));
            let shown = status(link(synced, Some(says())));
            let refusal = "\n            refused: port eth0: the queue is taken\n";
            assert!(shown.contains(refusal), "{shown}");
        }
    }

    #[test]
    fn drift_is_told_as_long_as_it_is_there_and_that_it_was() {
        let mut drift = DriftStatus::default();
        assert_eq!(drift_rows(&drift), Vec::<String>::new());
        drift.compared_seconds_ago = Some(4);
        let whole = "holds what it was told, compared 4 s ago";
        assert_eq!(drift_rows(&drift), [whole]);
        drift.found = vec!["routes: the dataplane holds 1 and was told 2".into()];
        let row = "drift: routes: the dataplane holds 1 and was told 2";
        assert_eq!(drift_rows(&drift), [row]);
        drift.last_mended = std::mem::take(&mut drift.found);
        drift.mended = 2;
        let mended = "drift mended so far: 2, last: routes: the dataplane holds 1 and was told 2";
        assert_eq!(drift_rows(&drift), [whole, mended]);
    }

    #[test]
    fn routes_read_as_those_of_ip() {
        let route = |via, origin| RouteEntry {
            prefix: "10.0.1.0/24".parse().unwrap(),
            via,
            origin,
        };
        let node = RouteTarget::Node {
            node: "b".into(),
            vni: None,
        };
        let router = RouteTarget::Gateway {
            address: "192.168.1.9".parse().unwrap(),
            interface: None,
        };
        let both = RouteTarget::Multipath {
            members: vec![node.clone(), router.clone()],
        };
        let routes = vec![
            route(node, RouteOrigin::PodCidr),
            route(router, RouteOrigin::Added),
            route(both, RouteOrigin::Added),
        ];
        assert_eq!(
            text(&Response::Routes { routes }),
            "10.0.1.0/24 via b origin pod-cidr\n\
             10.0.1.0/24 via 192.168.1.9 dev - origin added\n\
             10.0.1.0/24 via b via 192.168.1.9 dev - origin added\n"
        );
    }

    #[test]
    fn counters_show_what_was_dropped_and_what_does_not_balance() {
        let shown = text(&counters(5));
        assert!(
            shown.contains("ttl_expired  1        Time to live ran out."),
            "{shown}"
        );
        assert!(
            shown.contains("\nLOST       PACKETS\nring_full  4\n\n"),
            "{shown}"
        );
        assert!(!shown.contains("no_route"), "{shown}");
        let icmp = format!("{:<17}{:<6}{}", "eth0", 0, 1);
        assert!(shown.contains(&icmp), "{shown}");
        assert!(
            shown
                .contains("does not balance: packets received + made = sent + dropped: 5 is not 1"),
            "{shown}"
        );
        assert!(
            shown.contains("0       2       0       0       0         0         0           3"),
            "{shown}"
        );
    }

    #[test]
    fn rates_are_per_second() {
        let shown = rates(&counters(1000), &counters(3000), Duration::from_secs(2));
        assert_eq!(
            shown,
            "\nPER SECOND  RX-PACKETS  RX-MBIT  TX-PACKETS  TX-MBIT\n\
             eth0        1000        10       0           0\n"
        );
        assert_eq!(rates(&Response::Done, &counters(1), Duration::ZERO), "");
    }
}
