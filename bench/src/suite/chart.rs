//! The picture: throughput of one TCP stream, wire by wire, with intervals.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use resvg::tiny_skia::{Pixmap, Transform};
use resvg::usvg::{Options, Tree, fontdb};
use svg::Document;
use svg::node::element::{Line, Rectangle, Text};

use super::measure::Measure;
use super::report::{Report, scaled};
use super::summary::{Figure, Summary};
use super::wire::Wire;
use crate::contender::Contender;
use crate::{Error, Result};

const WIDTH: f64 = 860.0;
/// Where bars begin and how long the longest is.
const LEFT: f64 = 200.0;
const LONGEST: f64 = 560.0;
const BAR: f64 = 18.0;
const ROW: f64 = 24.0;
/// Above the first bar of a wire, its name included.
const GAP: f64 = 44.0;
const MARGIN: f64 = 20.0;
/// Pixels of the PNG for each unit of the SVG: sharp on dense screens.
const DENSITY: f32 = 2.0;
pub(crate) const FONT: &str = "DejaVu Sans, Verdana, sans-serif";

// A ground of its own, so that it is legible on a light page and on a dark one.
pub(crate) const GROUND: &str = "#f6f8fa";
pub(crate) const INK: &str = "#1f2328";
pub(crate) const FAINT: &str = "#59636e";
pub(crate) const GRID: &str = "#d1d9e0";

/// Writes the picture as SVG, and as PNG made of it.
///
/// # Errors
/// When a file cannot be written.
pub fn write(report: &Report, svg_path: &Path, png_path: &Path) -> Result<()> {
    let text = draw(report);
    fs::write(svg_path, &text).map_err(Error::io(svg_path.display().to_string()))?;
    let png = to_png(&text)?;
    fs::write(png_path, png).map_err(Error::io(png_path.display().to_string()))
}

/// A wire with the figures on it.
type Group = (Wire, Vec<(Contender, Option<Figure>)>);

fn draw(report: &Report) -> String {
    let groups = groups(report);
    let most = groups.iter().flat_map(|(_, bars)| bars);
    let most = most
        .filter_map(|(_, figure)| figure.map(|f| f.range.high.max(f.median)))
        .fold(0.0, f64::max);
    let place = |value: f64| LEFT + LONGEST * if most > 0.0 { value / most } else { 0.0 };
    #[expect(clippy::cast_precision_loss, reason = "a handful of bars")]
    let rows: f64 = groups
        .iter()
        .map(|(_, bars)| GAP + ROW * bars.len() as f64)
        .sum();
    let height = 3.0 * MARGIN + 30.0 + rows;
    let mut picture = Document::new()
        .set("viewBox", (0, 0, WIDTH, height))
        .set("width", WIDTH)
        .set("height", height)
        .set("font-family", FONT)
        .add(rectangle(0.0, 0.0, WIDTH, height, GROUND).set("rx", 8))
        .add(text(MARGIN, MARGIN + 14.0, 16, INK, title()).set("font-weight", "bold"))
        .add(text(MARGIN, MARGIN + 34.0, 11, FAINT, subtitle(report)));
    let mut y = 2.0 * MARGIN + 14.0;
    for (wire, bars) in groups {
        y += GAP;
        picture = picture
            .add(text(MARGIN, y - 10.0, 13, INK, wire.to_string()).set("font-weight", "bold"))
            .add(line(MARGIN, y - 4.0, WIDTH - MARGIN, y - 4.0, GRID));
        for (contender, figure) in bars {
            let base = y + BAR - 5.0;
            let name = text(LEFT - 8.0, base, 12, INK, contender.to_string());
            picture = picture.add(name.set("text-anchor", "end"));
            let Some(figure) = figure else {
                picture = picture.add(text(LEFT + 4.0, base, 12, FAINT, "refused".to_owned()));
                y += ROW;
                continue;
            };
            let end = place(figure.median);
            picture = picture.add(rectangle(LEFT, y, end - LEFT, BAR, colour(contender)));
            let mut free = end;
            if let Some(interval) = figure.interval {
                let (low, high, middle) =
                    (place(interval.low), place(interval.high), y + BAR / 2.0);
                picture = picture.add(line(low, middle, high, middle, INK));
                for x in [low, high] {
                    picture = picture.add(line(x, middle - 4.0, x, middle + 4.0, INK));
                }
                free = high.max(end);
            }
            let value = scaled(figure.median, Measure::TCP.headline());
            picture = picture.add(text(free + 6.0, base, 12, INK, value));
            y += ROW;
        }
    }
    picture.to_string()
}

fn groups(report: &Report) -> Vec<Group> {
    let summary = Summary(&report.samples);
    let cells = summary.cells().into_iter();
    let transfers = cells.filter(|((_, measure), _)| *measure == Measure::TCP);
    transfers
        .map(|((wire, measure), contenders)| {
            let figure = |c| summary.figure(wire, measure, c, measure.headline());
            (
                wire,
                contenders.into_iter().map(|c| (c, figure(c))).collect(),
            )
        })
        .collect()
}

fn title() -> String {
    format!("Pod to pod, {}, Gbit/s", Measure::TCP)
}

fn subtitle(report: &Report) -> String {
    let here = &report.environment;
    format!(
        "Medians with 95 % intervals; kernel {}, {} cores of {}, commit {:.12}{}",
        here.kernel,
        here.cores,
        here.cpu,
        here.commit,
        if here.dirty { " with changes" } else { "" }
    )
}

fn colour(contender: Contender) -> &'static str {
    match contender {
        Contender::Hosts | Contender::HostsBesidePodway => "#8c959f",
        Contender::KernelNative | Contender::KernelWorld => "#6e9bd1",
        Contender::KernelVxlan => "#3f74b5",
        Contender::KernelVxlanNoGro => "#2b4f7d",
        Contender::PodwayNative | Contender::PodwayWorld => "#f2a65a",
        Contender::PodwayVxlan | Contender::PodwayVxlanFull | Contender::PodwaySpin => "#e36209",
        Contender::PodwayVxlanAfXdp | Contender::PodwayNativeAfXdp => "#a04100",
        Contender::OvsAfxdp | Contender::OvsAfxdpNonpmd | Contender::OvsSystem => "#5a9e6f",
        Contender::XskRsBaseline => "#8250df",
    }
}

pub(crate) fn rectangle(x: f64, y: f64, width: f64, height: f64, fill: &str) -> Rectangle {
    Rectangle::new()
        .set("x", x)
        .set("y", y)
        .set("width", width)
        .set("height", height)
        .set("fill", fill)
}

pub(crate) fn line(x1: f64, y1: f64, x2: f64, y2: f64, stroke: &str) -> Line {
    Line::new()
        .set("x1", x1)
        .set("y1", y1)
        .set("x2", x2)
        .set("y2", y2)
        .set("stroke", stroke)
        .set("stroke-width", 1.5)
}

pub(crate) fn text(x: f64, y: f64, size: u8, fill: &str, content: String) -> Text {
    Text::new(content)
        .set("x", x)
        .set("y", y)
        .set("font-size", size)
        .set("fill", fill)
}

fn to_png(text: &str) -> Result<Vec<u8>> {
    let failed = |what: &dyn std::fmt::Display| Error::Unexpected(format!("draw the PNG: {what}"));
    // Fonts of our own: the picture is the same on a machine that has none.
    let mut fonts = fontdb::Database::new();
    fonts.load_font_data(dejavu::sans::regular().to_vec());
    fonts.load_font_data(dejavu::sans::bold().to_vec());
    let options = Options {
        fontdb: Arc::new(fonts),
        ..Options::default()
    };
    let tree = Tree::from_str(text, &options).map_err(|error| failed(&error))?;
    let size = tree.size().to_int_size().scale_by(DENSITY);
    let size = size.ok_or_else(|| failed(&"it has no size"))?;
    let pixmap = Pixmap::new(size.width(), size.height());
    let mut pixmap = pixmap.ok_or_else(|| failed(&"it is too large"))?;
    let scale = Transform::from_scale(DENSITY, DENSITY);
    resvg::render(&tree, scale, &mut pixmap.as_mut());
    pixmap.encode_png().map_err(|error| failed(&error))
}

#[cfg(test)]
mod tests {
    use super::super::report::tests::report;
    use super::super::summary::tests::{refused, sample};
    use super::*;

    fn picture() -> String {
        let mut samples = Vec::new();
        for (round, podway) in [(1, 5.0), (2, 6.0), (3, 5.5)] {
            samples.push(sample(Contender::KernelVxlan, round, 10.0));
            samples.push(sample(Contender::PodwayVxlan, round, podway));
            samples.push(refused(Contender::PodwayNative, round, "a lie"));
        }
        draw(&report(samples))
    }

    #[test]
    fn bars_are_as_long_as_their_medians() {
        let picture = picture();
        for length in [LONGEST, LONGEST * 0.55] {
            let bar = format!("width=\"{length}\"");
            assert!(picture.contains(&bar), "{bar} is missing in {picture}");
        }
        assert!(picture.contains("refused"));
        assert!(picture.contains("wire-true, MTU 1500, tx on"));
    }

    #[test]
    fn the_png_has_ink_on_its_ground() {
        let png = to_png(&picture()).unwrap();
        let pixmap = Pixmap::decode_png(&png).unwrap();
        let dark = pixmap
            .pixels()
            .iter()
            .filter(|pixel| pixel.red() < 0x60 && pixel.blue() < 0x60);
        // Without fonts, only the whiskers of the intervals would be dark.
        assert!(dark.count() > 3000);
    }

    #[test]
    fn nothing_measured_is_a_picture_as_well() {
        assert!(to_png(&draw(&report(Vec::new()))).is_ok());
    }
}
