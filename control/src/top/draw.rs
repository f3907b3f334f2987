//! One picture of `podway top`.

use podway_proto::control::{DataplaneLink, PathState};
use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Borders, Paragraph};

use crate::overview::{Overview, PortRate, WorkerLoad};
use crate::show::overview::number;

/// Workers that are always shown; more where there is room.
const WORKERS: u16 = 4;
/// Reasons to drop that are shown.
const REASONS: u16 = 3;
/// Characters of a worker's bar.
const BAR: usize = 24;

/// Draws `overview`; `error` is why it is old.
pub(super) fn draw(frame: &mut Frame<'_>, overview: &Overview, error: Option<&str>) {
    let workers = u16::try_from(overview.workers.len()).unwrap_or(u16::MAX);
    let drops = u16::try_from(overview.drops.len()).unwrap_or(u16::MAX);
    // What would take the ports' room is cut.
    let most = WORKERS.max(frame.area().height / 3);
    let [head, load, traffic, dropped, foot] = Layout::vertical([
        Constraint::Length(2),
        Constraint::Length(workers.clamp(1, most) + 2),
        Constraint::Min(3),
        Constraint::Length(drops.clamp(1, REASONS) + 1),
        Constraint::Length(1),
    ])
    .areas(frame.area());
    frame.render_widget(Paragraph::new(heading(overview)), head);
    let rows = overview.workers.iter().map(worker).collect();
    let columns = format!(
        "    CPU  BUSY  {:BAR$}  {:>9}  {:>9}  {:>7}",
        "", "PACKETS/S", "BURSTS/S", "P/BURST"
    );
    panel(frame, load, " workers ", &columns, rows);
    let columns = format!(
        "{:15} {:>8} {:>9} {:>8} {:>9} {:>8} {:>8}",
        "", "RX/S", "RX-BIT/S", "TX/S", "TX-BIT/S", "KERNEL/S", "LOST/S"
    );
    let room = usize::from(traffic.height.saturating_sub(2));
    panel(
        frame,
        traffic,
        " ports ",
        &columns,
        ports(&overview.ports, room),
    );
    let block = Block::new()
        .borders(Borders::TOP)
        .title(" dropped in the last minute ");
    let lines = reasons(overview);
    frame.render_widget(Paragraph::new(lines).block(block), dropped);
    frame.render_widget(Paragraph::new(footer(overview, error)), foot);
}

/// Rows under a title and the names of their columns.
fn panel(frame: &mut Frame<'_>, area: Rect, title: &str, columns: &str, rows: Vec<Line<'_>>) {
    let block = Block::new().borders(Borders::TOP).title(title);
    let names = Line::styled(columns.to_owned(), Style::new().add_modifier(Modifier::DIM));
    let lines: Vec<Line<'_>> = std::iter::once(names).chain(rows).collect();
    frame.render_widget(Paragraph::new(lines).block(block), area);
}

fn heading(overview: &Overview) -> Vec<Line<'static>> {
    let status = &overview.status;
    let bold = Style::new().add_modifier(Modifier::BOLD);
    let dataplane = match (&status.dataplane, status.dataplane.status()) {
        (DataplaneLink::Disconnected { .. }, _) => "no dataplane".to_owned(),
        (_, None) => "the dataplane does not answer".to_owned(),
        (link, Some(of)) => {
            let sync = match link {
                DataplaneLink::Synced { .. } => "in sync",
                _ => "not in sync yet",
            };
            let gate = if of.gate_open { "open" } else { "closed" };
            format!("{sync}, gate {gate}, up {} s", of.uptime_seconds)
        }
    };
    let first = Line::from(vec![
        Span::styled(format!("podway {}", status.node), bold),
        Span::raw(format!("  {}  {dataplane}", status.mode)),
    ]);
    let kernel = match status.kernel.in_sync {
        true => "in sync",
        false => "not in sync",
    };
    let drift = if status.drift.found.is_empty() {
        "none"
    } else {
        "found"
    };
    let tables = status.dataplane.status().map_or_else(String::new, |of| {
        let tables = &of.tables;
        format!(
            "routes {} ({} unresolved)  ",
            tables.routes, tables.unresolved
        )
    });
    let nodes = reached(overview);
    let second = format!("{tables}kernel {kernel}  drift {drift}  {nodes}");
    vec![first, Line::raw(second)]
}

fn reached(overview: &Overview) -> String {
    let others = || overview.nodes.iter().filter(|node| !node.local);
    let is_reached = |node: &&podway_proto::control::NodeEntry| {
        let reachable = |state| state == PathState::Reachable;
        let health = node.health.as_ref();
        health.is_some_and(|h| reachable(h.underlay.state) && reachable(h.overlay.state))
    };
    match overview.status.health {
        None => format!("nodes {}", others().count()),
        Some(_) => format!(
            "nodes {}/{} reached",
            others().filter(is_reached).count(),
            others().count()
        ),
    }
}

fn worker(load: &WorkerLoad) -> Line<'static> {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "a share of a short bar"
    )]
    let filled = ((load.busy * BAR as f64).round() as usize).min(BAR);
    let color = match load.busy {
        busy if busy >= 0.9 => Color::Red,
        busy if busy >= 0.6 => Color::Yellow,
        _ => Color::Green,
    };
    let cpu = load
        .cpu
        .map_or_else(|| "-".to_owned(), |cpu| cpu.to_string());
    let burst = load.packets_per_burst;
    let burst = burst.map_or_else(|| "-".to_owned(), |packets| format!("{packets:.1}"));
    Line::from(vec![
        Span::raw(format!(
            "{:>3} {cpu:>3}  {:>3.0}%  ",
            load.worker,
            100.0 * load.busy
        )),
        Span::styled("|".repeat(filled), Style::new().fg(color)),
        Span::raw(format!(
            "{}  {:>9}  {:>9}  {burst:>7}",
            ".".repeat(BAR - filled),
            number(load.packets_per_second),
            number(load.bursts_per_second),
        )),
    ])
}

/// The busiest ports, as many as there is room for.
fn ports(ports: &[PortRate], room: usize) -> Vec<Line<'static>> {
    let sum = |port: &PortRate| port.rx_bits_per_second + port.tx_bits_per_second;
    let mut sorted: Vec<&PortRate> = ports.iter().collect();
    sorted.sort_by(|a, b| sum(b).total_cmp(&sum(a)));
    let row = |port: &&PortRate| {
        let lost = Span::styled(
            format!(" {:>8}", number(port.lost_per_second)),
            match port.lost_per_second > 0.0 {
                true => Style::new().fg(Color::Red),
                false => Style::new(),
            },
        );
        Line::from(vec![
            Span::raw(format!(
                "{:15.15} {:>8} {:>9} {:>8} {:>9} {:>8}",
                port.interface,
                number(port.rx_packets_per_second),
                number(port.rx_bits_per_second),
                number(port.tx_packets_per_second),
                number(port.tx_bits_per_second),
                number(port.passed_per_second),
            )),
            lost,
        ])
    };
    let hidden = sorted.len().saturating_sub(room);
    let shown = if hidden > 0 {
        room.saturating_sub(1)
    } else {
        sorted.len()
    };
    let mut rows: Vec<_> = sorted.iter().take(shown).map(row).collect();
    if hidden > 0 {
        rows.push(Line::raw(format!(
            "and {} more ports",
            sorted.len() - shown
        )));
    }
    rows
}

fn reasons(overview: &Overview) -> Vec<Line<'static>> {
    if overview.drops.is_empty() {
        return vec![Line::raw("nothing")];
    }
    let shown = overview.drops.iter().take(REASONS.into());
    let row = shown.map(|drop| {
        let name = format!("{:>8} {:22} ", drop.last_minute, drop.reason);
        let meaning = Span::styled(
            drop.meaning.clone(),
            Style::new().add_modifier(Modifier::DIM),
        );
        Line::from(vec![
            Span::styled(name, Style::new().fg(Color::Red)),
            meaning,
        ])
    });
    row.collect()
}

fn footer(overview: &Overview, error: Option<&str>) -> Line<'static> {
    if let Some(error) = error {
        let style = Style::new().fg(Color::Red);
        return Line::styled(format!("not asked: {error}"), style);
    }
    let of = match overview.since_start {
        true => "since the dataplane was started".to_owned(),
        false => format!("of the last {:.1} s", overview.seconds),
    };
    let style = Style::new().add_modifier(Modifier::DIM);
    Line::styled(format!("q quits    loads and rates {of}"), style)
}

#[cfg(test)]
mod tests {
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    use super::*;
    use crate::overview::tests::overview;

    fn picture(overview: &Overview, error: Option<&str>, width: u16, height: u16) -> String {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| draw(frame, overview, error)).unwrap();
        let buffer = terminal.backend().buffer();
        let line = |y| -> String {
            let cells = (0..width).map(|x| buffer[(x, y)].symbol());
            cells.collect::<String>().trim_end().to_owned() + "\n"
        };
        (0..height).map(line).collect()
    }

    #[test]
    fn a_usual_terminal_has_it_all() {
        let shown = picture(&overview(), None, 80, 24);
        assert_eq!(shown, include_str!("top.golden"));
    }

    #[test]
    fn many_ports_and_many_workers_leave_room_for_each_other() {
        let mut many = overview();
        let port = many.ports[1].clone();
        many.ports.extend((0..110).map(|number| PortRate {
            interface: format!("veth-{number}"),
            ..port.clone()
        }));
        let load = many.workers[0].clone();
        many.workers.extend((2..64).map(|worker| WorkerLoad {
            worker,
            ..load.clone()
        }));
        let shown = picture(&many, None, 80, 24);
        assert!(
            shown.contains("veth-a ") && shown.contains(" more ports\n"),
            "{shown}"
        );
        assert!(shown.contains("spoofed_source"), "{shown}");
        assert!(shown.contains("q quits"), "{shown}");
    }

    #[test]
    fn no_terminal_is_too_small_and_no_error_goes_unseen() {
        for (width, height) in [(1, 1), (20, 5), (80, 8), (300, 100)] {
            picture(&overview(), None, width, height);
        }
        let shown = picture(&overview(), Some("nobody listens"), 80, 24);
        assert!(shown.ends_with("not asked: nobody listens\n"), "{shown}");
        let mut quiet = overview();
        quiet.drops.clear();
        assert!(picture(&quiet, None, 80, 24).contains("\nnothing\n"));
    }
}
