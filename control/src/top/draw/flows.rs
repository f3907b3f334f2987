//! The panel of flows.

use ratatui::Frame;
use ratatui::layout::Rect;
use ratatui::style::{Color, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Borders, Paragraph};

use super::super::flows::{Panel, Period};
use super::panel;
use crate::flows::{FlowRecord, Verdict};
use crate::show::drops::{end, protocol};
use crate::show::overview::number;

/// Characters of a protocol, and of a number.
const SHORT: usize = 6;
/// Of an interface's name.
const NAME: usize = 15;
/// Of the longest address with a port.
const LONGEST_END: usize = 47;

/// Draws the flows, or why there are none.
pub(super) fn draw(frame: &mut Frame<'_>, area: Rect, flows: &Panel) {
    let period = match flows {
        Ok(period) => period,
        Err(why) => {
            let block = Block::new().borders(Borders::TOP).title(" flows ");
            let why = Line::styled(why.as_str(), Style::new().fg(Color::Yellow));
            return frame.render_widget(Paragraph::new(why).block(block), area);
        }
    };
    let widths = Widths::of(area.width.into());
    let room = usize::from(area.height.saturating_sub(2));
    let flows = period.flows.iter().take(room);
    let mut rows: Vec<_> = flows.map(|flow| row(period, flow, &widths)).collect();
    if rows.is_empty() {
        rows.push(Line::raw("nothing"));
    }
    let names = ["SOURCE", "DESTINATION", "", "TO", "BIT/S", "PKT/S"];
    panel(
        frame,
        area,
        &title(period),
        &widths.cells(names).concat(),
        rows,
    );
}

fn title(period: &Period) -> String {
    let packets = match period.sample {
        1 => "all packets".to_owned(),
        sample => format!("1 of {sample} packets"),
    };
    let lost = match period.lost {
        0 => String::new(),
        lost => format!(", {lost} not recorded"),
    };
    let seen = period.flows.len();
    format!(" flows with most traffic: {seen} seen in {packets}{lost} ")
}

fn row(period: &Period, flow: &FlowRecord, widths: &Widths) -> Line<'static> {
    let key = &flow.key;
    let [source, destination, of] = match &key.flow {
        Some(flow) => [
            end(flow.source, flow.source_port),
            end(flow.destination, flow.destination_port),
            protocol(Some(flow.protocol)),
        ],
        None => ["no IP header", "-", "-"].map(str::to_owned),
    };
    let leaves = || key.node.as_deref().or(key.leaves_by.as_deref());
    let (to, style) = match key.verdict {
        Verdict::Forwarded => (leaves(), Style::new()),
        Verdict::Dropped => (key.reason.as_deref(), Style::new().fg(Color::Red)),
    };
    let bits = number(8.0 * period.per_second(flow.bytes));
    let packets = number(period.per_second(flow.packets));
    let to = to.unwrap_or("-");
    let cells = widths.cells([&source, &destination, &of, to, &bits, &packets]);
    let [source, destination, of, to, bits, packets] = cells;
    Line::from(vec![
        Span::raw(source + &destination + &of),
        Span::styled(to, style),
        Span::raw(bits + &packets),
    ])
}

/// Characters of the columns that have what there is.
#[derive(Debug, PartialEq, Eq)]
struct Widths {
    /// Source and destination.
    end: usize,
    /// Node, port, or reason of a drop.
    to: usize,
}

impl Widths {
    fn of(width: usize) -> Self {
        // Five spaces between six columns.
        let rest = width.saturating_sub(3 * SHORT + 5);
        let name = NAME.min(rest / 3);
        let end = ((rest - name) / 2).min(LONGEST_END);
        let to = rest - 2 * end;
        Self { end, to }
    }

    /// Source, destination, protocol, where to, bits and packets, each with the space before it.
    fn cells(&self, cells: [&str; 6]) -> [String; 6] {
        let [source, destination, protocol, to, bits, packets] = cells;
        let Self { end, to: name } = *self;
        [
            format!("{:end$}", shortened(source, end)),
            format!(" {:end$}", shortened(destination, end)),
            format!(" {:SHORT$}", shortened(protocol, SHORT)),
            format!(" {:name$}", shortened(to, name)),
            format!(" {bits:>SHORT$}"),
            format!(" {packets:>SHORT$}"),
        ]
    }
}

/// At most `width` characters of a text, without some of its middle: of an address the end tells most, and
/// behind it is the port.
fn shortened(text: &str, width: usize) -> String {
    let length = text.chars().count();
    if length <= width {
        return text.to_owned();
    }
    let Some(kept) = width.checked_sub(1) else {
        return String::new();
    };
    let first = kept / 3;
    let last = length - (kept - first);
    let first = text.chars().take(first);
    let last = text.chars().skip(last);
    first.chain(['…']).chain(last).collect()
}

#[cfg(test)]
mod tests {
    use super::super::super::flows::tests::period;
    use super::*;

    #[test]
    fn columns_have_the_width_that_there_is() {
        let widths = |width| {
            let Widths { end, to } = Widths::of(width);
            (end, to)
        };
        assert_eq!(widths(80), (21, 15));
        assert_eq!(widths(81), (21, 16));
        assert_eq!(widths(132), (47, 15));
        assert_eq!(widths(200), (47, 83));
        assert_eq!(widths(50), (9, 9));
        assert_eq!(widths(23), (0, 0));
        assert_eq!(widths(0), (0, 0));
        for width in 23..200 {
            let cells = Widths::of(width).cells(["source", "-", "tcp", "é…", "1.00G", "2"]);
            assert_eq!(cells.concat().chars().count(), width);
        }
    }

    #[test]
    fn long_addresses_keep_their_end() {
        let address = "[fd00:10:244:17:89ab:cdef:1234:5678]:40000";
        assert_eq!(shortened(address, 42), address);
        assert_eq!(shortened(address, 21), "[fd00:…34:5678]:40000");
        assert_eq!(shortened("éèà", 2), "…à");
        assert_eq!(shortened("abc", 1), "…");
        assert_eq!(shortened("abc", 0), "");
        assert_eq!(shortened("", 0), "");
    }

    #[test]
    fn the_title_says_what_was_looked_at() {
        assert_eq!(
            title(&period()),
            " flows with most traffic: 5 seen in 1 of 61 packets "
        );
        let all = Period {
            sample: 1,
            lost: 12,
            flows: Vec::new(),
            ..period()
        };
        assert_eq!(
            title(&all),
            " flows with most traffic: 0 seen in all packets, 12 not recorded "
        );
    }
}
