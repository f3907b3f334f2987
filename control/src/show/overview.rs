//! A node at a glance, in 80 columns.

use std::fmt::Write;

use podway_proto::control::{DataplaneLink, NodeEntry, Status};
use podway_proto::dataplane::{self, PortStatus};

use super::table::{Table, list, or_dash};
use super::{drift_rows, health, phrases};
use crate::overview::{Overview, PortRate, WorkerLoad};

/// Columns of a screen.
const WIDTH: usize = 80;
/// Where values begin.
const COLUMN: usize = 12;
/// Ports with traffic, and nodes, that are named.
const NAMED: usize = 8;

/// One screen.
pub fn text(overview: &Overview) -> String {
    let status = &overview.status;
    let mut screen = Screen::default();
    of_node(&mut screen, status);
    let dataplane = status.dataplane.status();
    of_dataplane(&mut screen, status, dataplane);
    if let Some(dataplane) = dataplane {
        of_ports(&mut screen, &dataplane.ports);
    }
    of_kernel(&mut screen, status);
    screen.table("workers", &workers(&overview.workers));
    screen.table("traffic", &traffic(&overview.ports));
    if dataplane.is_some() {
        of_drops(&mut screen, overview);
    }
    of_nodes(&mut screen, status, &overview.nodes);
    for hint in &status.hints {
        screen.row("missing", hint);
    }
    let _ = writeln!(screen.0, "\nloads and rates are {}", overview.span());
    screen.0
}

#[derive(Default)]
struct Screen(String);

impl Screen {
    /// A name and a value, which goes on below where it is too long.
    fn row(&mut self, name: &str, value: &str) {
        let mut name = name;
        for line in wrapped(value, WIDTH - COLUMN) {
            let _ = writeln!(self.0, "{name:<COLUMN$}{line}");
            name = "";
        }
    }

    fn table(&mut self, name: &str, table: &str) {
        let mut name = name;
        for line in table.lines() {
            let _ = writeln!(self.0, "{name:<COLUMN$}{line}");
            name = "";
        }
    }
}

/// The words of `text` in lines of up to `width` characters; a longer word has a line of its own.
fn wrapped(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split(' ') {
        let line = lines.last().map_or(0, |line| line.chars().count());
        match lines.last_mut() {
            Some(last) if line == 0 => last.push_str(word),
            Some(last) if line + 1 + word.chars().count() <= width => {
                last.push(' ');
                last.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

fn of_node(screen: &mut Screen, status: &Status) {
    let control = format!("podway-control {}, pid {}", status.version, status.pid);
    screen.row("node", &format!("{} ({control})", status.node));
    let mode = format!(
        "{}, vni {}, udp port {}",
        status.mode,
        phrases::vnis(status),
        status.vxlan_port
    );
    screen.row("mode", &mode);
    screen.row("pod-cidr", &list(&status.pod_cidrs).replace(',', ", "));
    screen.row("mtu", &phrases::mtus(status));
    screen.row("underlay", &phrases::underlay(status));
}

fn of_dataplane(screen: &mut Screen, status: &Status, dataplane: Option<&dataplane::Status>) {
    let state = phrases::sync(&status.dataplane);
    let refused = match &status.dataplane {
        DataplaneLink::Disconnected { reason } => {
            screen.row("dataplane", &format!("{state}: {reason}"));
            return;
        }
        DataplaneLink::Syncing { refused, .. } | DataplaneLink::Synced { refused, .. } => refused,
    };
    match dataplane {
        None => screen.row("dataplane", &format!("{state}, and it does not answer")),
        Some(of) => {
            let value = format!(
                "{state}, {} (podway-dataplane {}, pid {}, up {} s)",
                phrases::gate(of),
                of.version,
                of.pid,
                of.uptime_seconds
            );
            screen.row("dataplane", &value);
            let value = format!(
                "{}; generation {}, adopted {}",
                phrases::tables(&of.tables),
                of.tables.generation,
                of.tables.adopted
            );
            screen.row("tables", &value);
        }
    }
    for refusal in refused {
        screen.row("", &format!("refused: {refusal}"));
    }
    for row in drift_rows(&status.drift) {
        screen.row("", &row);
    }
}

/// The ports, those together that are alike.
fn of_ports(screen: &mut Screen, ports: &[PortStatus]) {
    let mut groups: Vec<(&PortStatus, Vec<&str>)> = Vec::new();
    for port in ports {
        let alike = |of: &&PortStatus| {
            let key = |p: &PortStatus| {
                let why = |reason: &Option<String>| {
                    let of = super::ports::without_name;
                    reason
                        .as_ref()
                        .map(|reason| of(reason, &p.interface).to_owned())
                };
                (
                    (
                        p.role.clone(),
                        p.mtu,
                        p.xdp_mode.clone(),
                        why(&p.xdp_mode_reason),
                    ),
                    (p.ingress.clone(), p.egress.clone(), why(&p.ingress_reason)),
                )
            };
            key(of) == key(port)
        };
        match groups.iter_mut().find(|(first, _)| alike(first)) {
            Some((_, names)) => names.push(&port.interface),
            None => groups.push((port, vec![&port.interface])),
        }
    }
    let mut name = "ports";
    for (port, names) in groups {
        let shown: Vec<&str> = names.iter().take(3).copied().collect();
        let more = match names.len().saturating_sub(shown.len()) {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        let program = phrases::program(&port.xdp_mode);
        let role = &port.role;
        let value = format!(
            "{}{more}: {role}, {program}, mtu {}",
            shown.join(", "),
            port.mtu
        );
        screen.row(std::mem::take(&mut name), &value);
        screen.row("  in", &port.ingress);
        screen.row("  out", &port.egress);
        let reasons = [&port.xdp_mode_reason, &port.ingress_reason];
        for reason in reasons.into_iter().flatten() {
            let reason = super::ports::without_name(reason, &port.interface);
            screen.row("  because", reason);
        }
    }
}

fn of_kernel(screen: &mut Screen, status: &Status) {
    let kernel = &status.kernel;
    let state = phrases::kernel(kernel);
    screen.row(
        "kernel",
        &format!("fallback {state}, device {}", kernel.device),
    );
    for error in &kernel.errors {
        screen.row("", error);
    }
}

fn workers(workers: &[WorkerLoad]) -> String {
    let mut table = Table::new([
        "WORKER",
        "CPU",
        "BUSY",
        "PACKETS/S",
        "BURSTS/S",
        "PACKETS/BURST",
    ]);
    for load in workers {
        table.row([
            load.worker.to_string(),
            or_dash(load.cpu),
            format!("{:.0}%", 100.0 * load.busy),
            number(load.packets_per_second),
            number(load.bursts_per_second),
            or_dash(
                load.packets_per_burst
                    .map(|packets| format!("{packets:.1}")),
            ),
        ]);
    }
    if table.is_empty() {
        return "-\n".to_owned();
    }
    table.render()
}

/// The ports with most traffic.
fn traffic(ports: &[PortRate]) -> String {
    let sum = |port: &PortRate| port.rx_bits_per_second + port.tx_bits_per_second;
    let is_used =
        |port: &&PortRate| sum(port) > 0.0 || port.passed_per_second + port.lost_per_second > 0.0;
    let mut used: Vec<_> = ports.iter().filter(is_used).collect();
    used.sort_by(|a, b| sum(b).total_cmp(&sum(a)));
    let mut table = Table::new([
        "PORT", "RX/S", "RX-BIT/S", "TX/S", "TX-BIT/S", "KERNEL/S", "LOST/S",
    ]);
    for port in used.iter().take(NAMED) {
        table.row([
            port.interface.clone(),
            number(port.rx_packets_per_second),
            number(port.rx_bits_per_second),
            number(port.tx_packets_per_second),
            number(port.tx_bits_per_second),
            number(port.passed_per_second),
            number(port.lost_per_second),
        ]);
    }
    if table.is_empty() {
        return "none\n".to_owned();
    }
    let more = match used.len().saturating_sub(NAMED) {
        0 => String::new(),
        more => format!("and {more} more ports: podway counters --watch\n"),
    };
    table.render() + &more
}

fn of_drops(screen: &mut Screen, overview: &Overview) {
    let drops = &overview.drops;
    let sum: u64 = drops.iter().map(|drop| drop.last_minute).sum();
    let Some(first) = drops.first() else {
        screen.row("drops", "none in the last minute");
        return;
    };
    let others = match drops.len() - 1 {
        0 => String::new(),
        others => format!(", {others} other reasons: podway drops"),
    };
    let value = format!(
        "{sum} in the last minute, of {} {}{others}",
        first.reason, first.last_minute
    );
    screen.row("drops", &value);
    screen.row("", &first.meaning);
    screen.row("  remedy", &first.remedy);
}

fn of_nodes(screen: &mut Screen, status: &Status, nodes: &[NodeEntry]) {
    let mut rows = health::of_status(status.health.as_ref()).into_iter();
    screen.row("health", &rows.next().unwrap_or_default());
    let mut table = Table::new([
        "NODE", "MODE", "UNDERLAY", "RTT", "LOST", "OVERLAY", "RTT", "LOST",
    ]);
    let mut others: Vec<_> = nodes.iter().filter(|node| !node.local).collect();
    // Those in trouble first.
    others.sort_by_key(|node| node.is_reached());
    for node in others.iter().take(NAMED) {
        let health = node.health.as_ref();
        let [underlay, rtt, lost, _] = health::cells(health.map(|h| &h.underlay));
        let [overlay, overlay_rtt, overlay_lost, _] = health::cells(health.map(|h| &h.overlay));
        table.row([
            node.name.clone(),
            node.mode.to_string(),
            underlay,
            rtt,
            lost,
            overlay,
            overlay_rtt,
            overlay_lost,
        ]);
    }
    if !table.is_empty() && status.health.is_some() {
        screen.table("", &table.render());
    }
    if others.len() > NAMED {
        let more = others.len() - NAMED;
        screen.row("", &format!("and {more} more nodes: podway node list"));
    }
    for error in status.health.iter().flat_map(|health| &health.errors) {
        screen.row("", error);
    }
}

/// A number in three digits, with a unit of a thousand, a million, or a billion.
pub(crate) fn number(value: f64) -> String {
    // Of little the first digit behind the point counts.
    if value < 9.95 && value.fract() > 0.0 {
        return format!("{value:.1}");
    }
    let (mut value, mut unit) = (value, "");
    for next in ["k", "M", "G"] {
        // What is rounded to a thousand has the next unit.
        if value < 999.5 {
            break;
        }
        (value, unit) = (value / 1000.0, next);
    }
    let digits = match value {
        _ if unit.is_empty() => 0,
        value if value < 9.995 => 2,
        value => usize::from(value < 99.95),
    };
    format!("{value:.digits$}{unit}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::overview::tests::overview;

    #[test]
    fn a_node_is_one_screen() {
        let shown = text(&overview());
        assert_eq!(shown, include_str!("overview.golden"));
        for line in shown.lines() {
            assert!(line.chars().count() <= WIDTH, "{line}");
        }
    }

    #[test]
    fn without_a_dataplane_there_is_no_traffic() {
        let mut overview = overview();
        let reason = "nobody listens at /run/podway/dataplane.sock; is podway-dataplane running?";
        overview.status.dataplane = DataplaneLink::Disconnected {
            reason: reason.into(),
        };
        overview.workers.clear();
        overview.ports.clear();
        let shown = text(&overview);
        assert!(
            shown.contains("dataplane   not connected: nobody listens at"),
            "{shown}"
        );
        assert!(
            shown.contains("\nworkers     -\ntraffic     none\nhealth "),
            "{shown}"
        );
    }

    #[test]
    fn lines_are_broken_between_words() {
        assert_eq!(wrapped("", 5), [""]);
        assert_eq!(wrapped("ab cd ef", 5), ["ab cd", "ef"]);
        assert_eq!(wrapped("abcdefgh ij", 5), ["abcdefgh", "ij"]);
    }

    #[test]
    fn numbers_are_short() {
        for (value, text) in [
            (0.0, "0"),
            (0.5, "0.5"),
            (7.0, "7"),
            (999.4, "999"),
            (1_000.0, "1.00k"),
            (81_000.0, "81.0k"),
            (9.96, "10"),
            (99.6, "100"),
            (999.7, "1.00k"),
            (9_996.0, "10.0k"),
            (99_960.0, "100k"),
            (999_499.0, "999k"),
            (999_700.0, "1.00M"),
            (999_999_999.0, "1.00G"),
            (1e9, "1.00G"),
            (40e9, "40.0G"),
            (2e12, "2000G"),
        ] {
            assert_eq!(number(value), text);
        }
    }
}
