//! Panels as SVG, three in a row.

use svg::Document;
use svg::node::element::Polyline;

use super::panel::{Curve, Panel};
use crate::suite::Environment;
use crate::suite::chart::{FAINT, FONT, GRID, GROUND, INK, line, rectangle, text};

const COLUMNS: usize = 3;
const WIDTH: f64 = 380.0;
const HEIGHT: f64 = 190.0;
const MARGIN: f64 = 20.0;
/// Of a graph, below its title and legend.
const TOP: f64 = 84.0;
/// Lines that a legend has room for.
const NAMED: usize = 4;
const COLOURS: [&str; 6] = [
    "#e36209", "#3f74b5", "#5a9e6f", "#8250df", "#bf3989", "#8c959f",
];

/// Draws panels with their curves, from a time to another.
pub(super) fn draw(
    panels: &[(&Panel, Vec<Curve>)],
    (from, to): (f64, f64),
    here: &Environment,
) -> String {
    let rows = panels.len().div_ceil(COLUMNS);
    #[expect(clippy::cast_precision_loss, reason = "a handful of panels")]
    let at = |n: usize, size: f64| n as f64 * (size + MARGIN);
    let (width, height) = (at(COLUMNS, WIDTH) + MARGIN, 70.0 + at(rows, HEIGHT));
    let subtitle = format!(
        "{:.0} s of two nodes: at rest, one stream of TCP, datagrams of 64 bytes; kernel {}, {} cores \
         of {}",
        to - from,
        here.kernel,
        here.cores,
        here.cpu
    );
    let mut picture = Document::new()
        .set("viewBox", (0, 0, width, height))
        .set("width", width)
        .set("height", height)
        .set("font-family", FONT)
        .add(rectangle(0.0, 0.0, width, height, GROUND).set("rx", 8))
        .add(text(MARGIN, 32.0, 16, INK, "Podway".to_owned()).set("font-weight", "bold"))
        .add(text(MARGIN, 50.0, 11, FAINT, subtitle));
    for (position, (panel, curves)) in panels.iter().enumerate() {
        let x = MARGIN + at(position % COLUMNS, WIDTH);
        let y = 66.0 + at(position / COLUMNS, HEIGHT);
        picture = draw_one(picture, panel, curves, (x, y), (from, to));
    }
    picture.to_string()
}

fn draw_one(
    mut picture: Document,
    panel: &Panel,
    curves: &[Curve],
    (x, y): (f64, f64),
    (from, to): (f64, f64),
) -> Document {
    let (left, right) = (x + 8.0, x + WIDTH - 8.0);
    let (top, bottom) = (y + TOP, y + HEIGHT - 10.0);
    let title = text(left, y + 20.0, 13, INK, panel.title.clone());
    picture = picture
        .add(
            rectangle(x, y, WIDTH, HEIGHT, "#ffffff")
                .set("stroke", GRID)
                .set("rx", 4),
        )
        .add(title.set("font-weight", "bold"));
    let points = curves.iter().flat_map(|curve| &curve.points);
    let most = points.map(|(_, value)| *value).fold(0.0, f64::max);
    if most <= 0.0 {
        let nothing = text(left, y + 38.0, 11, FAINT, "nothing".to_owned());
        return picture.add(nothing);
    }
    let peak = text(
        right,
        y + 20.0,
        11,
        FAINT,
        format!("up to {}", panel.value(most)),
    );
    picture = picture
        .add(peak.set("text-anchor", "end"))
        .add(line(left, bottom, right, bottom, GRID))
        .add(line(left, top, right, top, GRID));
    // What is largest is drawn last, and so on top.
    for (curve, colour) in curves.iter().zip(COLOURS).rev() {
        let place = |(at, value): &(f64, f64)| {
            let across = left + (right - left) * (at - from) / (to - from);
            let up = bottom - (bottom - top) * value / most;
            format!("{across:.1},{up:.1}")
        };
        let points: Vec<String> = curve.points.iter().map(place).collect();
        picture = picture.add(
            Polyline::new()
                .set("points", points.join(" "))
                .set("fill", "none")
                .set("stroke", colour)
                .set("stroke-width", 1.5),
        );
    }
    let mut lines = y + 36.0;
    for (position, (curve, colour)) in curves.iter().zip(COLOURS).take(NAMED).enumerate() {
        let column = if position % 2 == 0 {
            left
        } else {
            x + WIDTH / 2.0
        };
        picture = picture
            .add(rectangle(column, lines - 7.0, 8.0, 8.0, colour))
            .add(text(column + 12.0, lines, 10, FAINT, curve.name.clone()));
        if position % 2 == 1 {
            lines += 15.0;
        }
    }
    if curves.len() > NAMED {
        let more = format!("and {} more", curves.len() - NAMED);
        picture = picture.add(text(left, lines, 10, FAINT, more));
    }
    picture
}

#[cfg(test)]
mod tests {
    use super::super::panel::panels;
    use super::*;

    #[test]
    fn a_curve_goes_from_the_bottom_to_the_top_of_its_graph() {
        let text = include_str!("../../../docs/monitoring/podway-dashboard.json");
        let panels = panels(text).unwrap();
        let curve = Curve {
            name: "n1 eth0".to_owned(),
            points: vec![(10.0, 0.0), (20.0, 5e9)],
        };
        let drawn = [(&panels[0], vec![curve]), (&panels[1], Vec::new())];
        let picture = draw(&drawn, (10.0, 20.0), &Environment::here());
        assert!(
            picture.contains("points=\"28.0,246.0 392.0,150.0\""),
            "{picture}"
        );
        assert!(picture.contains("up to 5.00 Gbit/s"), "{picture}");
        assert!(
            picture.contains("n1 eth0") && picture.contains("nothing"),
            "{picture}"
        );
    }
}
