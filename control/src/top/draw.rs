//! One picture of `podway top`.

mod flows;

use podway_proto::control::DataplaneLink;
use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Borders, Paragraph};

use super::Picture;
use crate::overview::{Overview, PortRate, WorkerLoad};
use crate::show::overview::number;
use crate::show::phrases;

/// Workers that are always shown; more where there is room.
const WORKERS: u16 = 4;
/// Reasons to drop that are shown.
const REASONS: u16 = 3;
/// Characters of a worker's bar.
const BAR: usize = 24;

/// Lines of a panel with a title, names of columns, and one row.
const LEAST: u16 = 3;

/// Draws it all.
pub(super) fn draw(frame: &mut Frame<'_>, picture: &Picture) {
    let overview = &picture.overview;
    let count = |rows: usize| u16::try_from(rows).unwrap_or(u16::MAX);
    // What would take the room of ports and flows is cut.
    let most = WORKERS.max(frame.area().height / 4);
    let load = count(overview.workers.len()).clamp(1, most) + 2;
    let drops = count(overview.drops.len()).clamp(1, REASONS) + 1;
    let rest = frame.area().height.saturating_sub(2 + load + drops + 1);
    let talk = height_of_flows(rest, count(overview.ports.len()), picture.flows.is_ok());
    let [head, load, traffic, talk, dropped, foot] = Layout::vertical([
        Constraint::Length(2),
        Constraint::Length(load),
        Constraint::Min(LEAST),
        Constraint::Length(talk),
        Constraint::Length(drops),
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
    flows::draw(frame, talk, &picture.flows);
    let block = Block::new()
        .borders(Borders::TOP)
        .title(" dropped in the last minute ");
    let lines = reasons(overview);
    frame.render_widget(Paragraph::new(lines).block(block), dropped);
    frame.render_widget(
        Paragraph::new(footer(overview, picture.error.as_deref())),
        foot,
    );
}

/// Lines of the flows in what ports and flows have: half of them, and what the ports leave over; for why
/// there are none a title and a line. Where the ports would have no row there are no flows.
fn height_of_flows(room: u16, ports: u16, are_seen: bool) -> u16 {
    let least = if are_seen { LEAST } else { 2 };
    match are_seen {
        _ if room < LEAST + least => 0,
        true => room - ports.saturating_add(2).clamp(LEAST, room / 2),
        false => least,
    }
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
        (link, Some(of)) => format!(
            "{}, {}, up {} s",
            phrases::sync(link),
            phrases::gate(of),
            of.uptime_seconds
        ),
    };
    let first = Line::from(vec![
        Span::styled(format!("podway {}", status.node), bold),
        Span::raw(format!("  {}  {dataplane}", status.mode)),
    ]);
    let kernel = phrases::kernel(&status.kernel);
    let drift = if status.drift.found.is_empty() {
        "none"
    } else {
        "found"
    };
    let tables = status.dataplane.status().map_or_else(String::new, |of| {
        format!("{}  ", phrases::routes(&of.tables))
    });
    let nodes = reached(overview);
    let second = format!("{tables}kernel {kernel}  drift {drift}  {nodes}");
    vec![first, Line::raw(second)]
}

fn reached(overview: &Overview) -> String {
    let others = || overview.nodes.iter().filter(|node| !node.local);
    match overview.status.health {
        None => format!("nodes {}", others().count()),
        Some(_) => format!(
            "nodes {}/{} reached",
            others().filter(|node| node.is_reached()).count(),
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
    let style = Style::new().add_modifier(Modifier::DIM);
    Line::styled(
        format!("q quits    loads and rates {}", overview.span()),
        style,
    )
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    use super::super::Panel;
    use super::super::flows::tests::period;
    use super::*;
    use crate::golden::golden;
    use crate::overview::tests::{look, overview};

    fn shown(overview: Overview, flows: Panel, width: u16, height: u16) -> String {
        let picture = Picture {
            overview,
            error: None,
            flows,
            last: look(Instant::now(), 3),
        };
        drawn(&picture, width, height)
    }

    fn drawn(picture: &Picture, width: u16, height: u16) -> String {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| draw(frame, picture)).unwrap();
        let buffer = terminal.backend().buffer();
        let line = |y| -> String {
            let cells = (0..width).map(|x| buffer[(x, y)].symbol());
            cells.collect::<String>().trim_end().to_owned() + "\n"
        };
        (0..height).map(line).collect()
    }

    #[test]
    fn a_usual_terminal_has_it_all() {
        let shown = shown(overview(), Ok(period()), 80, 24);
        golden("top.txt", &shown);
    }

    #[test]
    fn without_flows_the_ports_have_their_room() {
        let why = "user 1000 may only ask; changes are for root: use sudo";
        let mut many = overview();
        let port = many.ports[1].clone();
        many.ports.extend((0..9).map(|number| PortRate {
            interface: format!("veth-{number}"),
            ..port.clone()
        }));
        let shown = shown(many, Err(why.into()), 80, 24);
        golden("top-without-flows.txt", &shown);
    }

    #[test]
    fn many_of_all_leave_room_for_each_other() {
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
        let mut flows = period();
        let flow = flows.flows[0].clone();
        flows.flows.extend(std::iter::repeat_n(flow, 1000));
        let shown = shown(many, Ok(flows), 80, 24);
        for text in [
            "veth-a ",
            " more ports\n",
            "1005 seen",
            "10.0.0.2:40000 ",
            "spoofed_source",
            "q quits",
        ] {
            assert!(shown.contains(text), "{text} in {shown}");
        }
    }

    #[test]
    fn flows_have_what_the_ports_leave_over() {
        // Room, ports, with flows and without.
        for (room, ports, seen, not_seen) in [
            (14, 5, 7, 2),
            (14, 2, 10, 2),
            (14, 110, 7, 2),
            (10, 110, 5, 2),
            (7, 110, 4, 2),
            (6, 110, 3, 2),
            (5, 110, 0, 2),
            (5, 1, 0, 2),
            (4, 1, 0, 0),
            (0, 1, 0, 0),
            (u16::MAX, u16::MAX, 32_768, 2),
        ] {
            let heights = [true, false].map(|are_seen| height_of_flows(room, ports, are_seen));
            assert_eq!(heights, [seen, not_seen], "{ports} ports in {room} lines");
        }
    }

    #[test]
    fn no_terminal_is_too_small_and_no_error_goes_unseen() {
        for width in [1, 5, 20, 40, 80, 300, 1000] {
            for height in [1, 5, 8, 12, 16, 24, 100] {
                shown(overview(), Ok(period()), width, height);
                shown(overview(), Err("no watch".into()), width, height);
            }
        }
        let mut quiet = overview();
        quiet.drops.clear();
        let mut picture = Picture {
            overview: quiet,
            error: Some("nobody listens".into()),
            flows: Err("no watch".into()),
            last: look(Instant::now(), 3),
        };
        let shown = drawn(&picture, 80, 24);
        assert!(shown.ends_with("not asked: nobody listens\n"), "{shown}");
        assert!(shown.contains("\nno watch\n"), "{shown}");
        assert!(shown.contains("\nnothing\n"), "{shown}");
        picture.error = None;
        assert!(!drawn(&picture, 80, 24).contains("not asked"));
    }
}
