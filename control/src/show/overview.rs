//! A node at a glance: one screen of 80 columns, however many ports, workers and nodes there are.

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
/// Kinds of ports that are described; a usual node has two.
const KINDS: usize = 4;
/// Workers that are shown, those with most to do.
const WORKERS: usize = 4;
/// Ports with traffic that are shown, those with most.
const PORTS: usize = 4;
/// Other nodes that are shown; where some are not reached, only those.
const NODES: usize = 3;

/// One screen.
pub fn text(overview: &Overview) -> String {
    let status = &overview.status;
    let mut screen = Screen::default();
    of_node(&mut screen, status);
    let dataplane = status.dataplane.status();
    of_dataplane(&mut screen, status, dataplane);
    of_kernel(&mut screen, status);
    if let Some(dataplane) = dataplane {
        of_ports(&mut screen, &dataplane.ports);
    }
    screen.table("workers", &workers(&overview.workers));
    screen.table("traffic", &traffic(&overview.ports));
    if dataplane.is_some() {
        of_drops(&mut screen, overview);
    }
    of_nodes(&mut screen, status, &overview.nodes);
    for hint in &status.hints {
        screen.row("missing", hint);
    }
    screen.row("time", &format!("loads and rates are {}", overview.span()));
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
    let node = format!(
        "{}, pods {} (podway-control {}, pid {})",
        status.node,
        list(&status.pod_cidrs).replace(',', ", "),
        status.version,
        status.pid
    );
    screen.row("node", &node);
    let mode = format!(
        "{}, vni {}, udp port {}; underlay {}",
        status.mode,
        phrases::vnis(status),
        status.vxlan_port,
        phrases::underlay(status)
    );
    screen.row("mode", &mode);
    screen.row("mtu", &phrases::mtus(status));
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
            let tables = &of.tables;
            let adopted = match tables.adopted == tables.generation {
                true => String::new(),
                false => format!(", a worker has {}", tables.adopted),
            };
            let generation = tables.generation;
            let tables = phrases::tables(tables);
            let value = format!("{tables}; generation {generation}{adopted}");
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

/// The ports, those together that are alike, each engine and mode with why it is no better one.
fn of_ports(screen: &mut Screen, ports: &[PortStatus]) {
    let kinds = kinds(ports);
    // Which port it was that got its packets in this way for this reason.
    let mut told: Vec<((&str, Option<&str>), &str)> = Vec::new();
    for (port, names) in kinds.iter().take(KINDS) {
        let shown: Vec<&str> = names.iter().take(3).copied().collect();
        let more = match names.len().saturating_sub(shown.len()) {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        let program = phrases::program(&port.xdp_mode);
        let program = because(program, why(port, &port.xdp_mode_reason));
        let value = format!("{}{more}, mtu {}, {program}", shown.join(", "), port.mtu);
        screen.row(&port.role, &value);
        let ingress = (port.ingress.as_str(), why(port, &port.ingress_reason));
        let same = told.iter().find(|(before, _)| *before == ingress);
        let received = match same {
            Some((_, first)) => format!("as {first}"),
            None => because(port.ingress.clone(), ingress.1),
        };
        // Last what may be long, and have any words.
        screen.row("  engines", &format!("out {}; in {received}", port.egress));
        told.push((ingress, &port.interface));
    }
    if kinds.len() > KINDS {
        let more = kinds.len() - KINDS;
        screen.row(
            "",
            &format!("and {more} more kinds of ports: podway status"),
        );
    }
}

/// Ports that differ in nothing but their names: the first of each kind, and all names.
fn kinds(ports: &[PortStatus]) -> Vec<(&PortStatus, Vec<&str>)> {
    fn kind(port: &PortStatus) -> (u16, [&str; 4], [Option<&str>; 2]) {
        let words = [&port.role, &port.xdp_mode, &port.ingress, &port.egress];
        let reasons = [&port.xdp_mode_reason, &port.ingress_reason];
        let reasons = reasons.map(|reason| why(port, reason));
        (port.mtu, words.map(String::as_str), reasons)
    }
    let mut kinds: Vec<(&PortStatus, Vec<&str>)> = Vec::new();
    for port in ports {
        match kinds
            .iter_mut()
            .find(|(first, _)| kind(first) == kind(port))
        {
            Some((_, names)) => names.push(&port.interface),
            None => kinds.push((port, vec![&port.interface])),
        }
    }
    kinds
}

/// A reason that does not name the port, so that those of ports that are alike are alike.
fn why<'a>(port: &PortStatus, reason: &'a Option<String>) -> Option<&'a str> {
    let reason = reason.as_deref()?;
    Some(super::ports::without_name(reason, &port.interface))
}

fn because(what: String, reason: Option<&str>) -> String {
    match reason {
        Some(reason) => format!("{what}, because {reason}"),
        None => what,
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

/// The workers with most to do, in their order.
fn workers(workers: &[WorkerLoad]) -> String {
    let mut busiest: Vec<&WorkerLoad> = workers.iter().collect();
    busiest.sort_by(|a, b| b.busy.total_cmp(&a.busy));
    busiest.truncate(WORKERS);
    busiest.sort_by_key(|load| load.worker);
    let mut table = Table::new([
        "WORKER",
        "CPU",
        "BUSY",
        "PACKETS/S",
        "BURSTS/S",
        "PACKETS/BURST",
    ]);
    for load in &busiest {
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
    table.render() + &more(workers.len(), busiest.len(), "workers: podway perf")
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
    for port in used.iter().take(PORTS) {
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
    table.render() + &more(used.len(), PORTS, "ports: podway counters --watch")
}

/// A line about what has no place; nothing where all is shown.
fn more(all: usize, shown: usize, what: &str) -> String {
    match all.saturating_sub(shown) {
        0 => String::new(),
        more => format!("and {more} more {what}\n"),
    }
}

fn of_drops(screen: &mut Screen, overview: &Overview) {
    let drops = &overview.drops;
    let sum: u64 = drops.iter().map(|drop| drop.last_minute).sum();
    let Some(first) = drops.first() else {
        screen.row("drops", "none in the last minute");
        return;
    };
    let value = format!(
        "{sum} in the last minute, {} of them {} ({}): podway drops",
        first.last_minute, first.reason, first.meaning
    );
    screen.row("drops", &value);
}

fn of_nodes(screen: &mut Screen, status: &Status, nodes: &[NodeEntry]) {
    let mut rows = health::of_status(status.health.as_ref()).into_iter();
    screen.row("health", &rows.next().unwrap_or_default());
    let mut table = Table::new([
        "NODE", "MODE", "UNDERLAY", "RTT", "LOST", "OVERLAY", "RTT", "LOST",
    ]);
    let others = || nodes.iter().filter(|node| !node.local);
    let is_any_away = others().any(|node| !node.is_reached());
    // Those in trouble, or else any.
    let named = others().filter(|node| !is_any_away || !node.is_reached());
    let named: Vec<_> = named.take(NODES).collect();
    for node in &named {
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
    let more = more(others().count(), named.len(), "nodes: podway node list");
    screen.table("", &more);
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
    use crate::golden::golden;
    use crate::overview::tests::overview;

    /// Compares the screen with a file, and insists that it is one.
    fn is_screen(name: &str, overview: &Overview, lines: usize) {
        let shown = text(overview);
        golden(name, &shown);
        for line in shown.lines() {
            assert!(line.chars().count() <= WIDTH, "{line}");
        }
        assert!(shown.lines().count() <= lines, "{name}");
    }

    fn ports(overview: &mut Overview) -> &mut Vec<PortStatus> {
        match &mut overview.status.dataplane {
            DataplaneLink::Synced {
                status: Some(status),
                ..
            } => &mut status.ports,
            _ => panic!("there is a dataplane"),
        }
    }

    #[test]
    fn a_node_is_one_screen() {
        is_screen("overview.txt", &overview(), 28);
    }

    /// An uplink alone, on a kernel that has no TAP and with a driver that has no XDP.
    #[test]
    fn one_port_is_told_with_both_reasons() {
        let mut one = overview();
        let ports = ports(&mut one);
        ports.truncate(1);
        ports[0].xdp_mode = "generic".into();
        ports[0].xdp_mode_reason = Some("native: the driver of eth0 has no XDP".into());
        ports[0].ingress = "af-xdp copy".into();
        ports[0].ingress_reason = Some(
            "no TAP: the kernel is older than 6.17; eth0 queue 0: cannot bind: no zero-copy".into(),
        );
        ports[0].egress = "af-packet gso".into();
        one.ports.truncate(1);
        one.workers.truncate(1);
        one.drops.clear();
        one.nodes.truncate(2);
        one.status.hints.clear();
        is_screen("overview-1-port.txt", &one, 24);
    }

    /// A full node, whose uplink has AF_XDP without a copy, while some of its pods have XDP programs.
    #[test]
    fn many_ports_workers_and_nodes_are_cut_to_those_with_most() {
        let mut full = overview();
        let uplink = full.ports[0].clone();
        let ports = ports(&mut full);
        ports[0].xdp_mode = "native".into();
        ports[0].ingress = "af-xdp zero-copy".into();
        ports[0].ingress_reason = None;
        ports[0].egress = "af-packet gso".into();
        let pod = ports[1].clone();
        ports.truncate(1);
        full.ports.truncate(1);
        for number in 0..109_u32 {
            let interface = format!("veth-{number}");
            let mut port = pod.clone();
            port.interface.clone_from(&interface);
            if number % 10 == 3 {
                port.xdp_mode = "native".into();
                port.ingress = "af-xdp copy".into();
                port.ingress_reason =
                    Some(format!("{interface} queue 0: cannot bind: not supported"));
            }
            self::ports(&mut full).push(port);
            full.ports.push(PortRate {
                interface,
                rx_packets_per_second: 10.0 * f64::from(number),
                rx_bits_per_second: 80e3 * f64::from(number),
                ..uplink.clone()
            });
        }
        let load = full.workers[0].clone();
        full.workers = (0..8)
            .map(|worker| WorkerLoad {
                worker,
                cpu: Some(worker.into()),
                busy: f64::from(worker % 5) / 10.0,
                ..load.clone()
            })
            .collect();
        let node = full.nodes[1].clone();
        full.nodes.extend((0..9).map(|number| NodeEntry {
            name: format!("node-{number}"),
            ..node.clone()
        }));
        is_screen("overview-110-ports.txt", &full, 36);
        // Kinds of ports are cut as well.
        for (port, mtu) in self::ports(&mut full).iter_mut().skip(1).zip(1400..) {
            port.mtu = mtu;
        }
        let shown = text(&full);
        assert!(
            shown.contains("            and 106 more kinds of ports: podway status\n"),
            "{shown}"
        );
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
