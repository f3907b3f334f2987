//! The dashboard's panels: what each asks, and in what it is told.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::prometheus::Prometheus;
use crate::{Error, Result};

/// What stands for `$__rate_interval`: five scrapes.
const RATE_INTERVAL: &str = "5s";

/// A graph.
#[derive(Debug)]
pub(super) struct Panel {
    pub(super) title: String,
    unit: String,
    targets: Vec<Asked>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Asked {
    expr: String,
    legend_format: String,
}

/// A line of a graph.
#[derive(Debug)]
pub(super) struct Curve {
    pub(super) name: String,
    /// Time and value.
    pub(super) points: Vec<(f64, f64)>,
}

#[derive(Debug, Deserialize)]
struct Dashboard {
    panels: Vec<Raw>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Raw {
    r#type: String,
    title: String,
    field_config: FieldConfig,
    targets: Vec<Asked>,
}

#[derive(Debug, Deserialize)]
struct FieldConfig {
    defaults: Defaults,
}

#[derive(Debug, Deserialize)]
struct Defaults {
    #[serde(default)]
    unit: String,
}

fn read(dashboard: &str) -> Result<Vec<Raw>> {
    let dashboard: Dashboard = serde_json::from_str(dashboard)
        .map_err(|error| Error::Unexpected(format!("the dashboard: {error}")))?;
    Ok(dashboard.panels)
}

/// What every panel of a dashboard asks, about all nodes, with the panel's title.
///
/// # Errors
/// When it is no dashboard.
pub fn queries(dashboard: &str) -> Result<Vec<(String, String)>> {
    let panels = read(dashboard)?.into_iter();
    let of_panel = |panel: Raw| {
        let Raw { title, targets, .. } = panel;
        let asked = targets.into_iter();
        asked.map(move |asked| (title.clone(), asked.expression()))
    };
    Ok(panels.flat_map(of_panel).collect())
}

/// The graphs of a dashboard, in its order.
pub(super) fn panels(dashboard: &str) -> Result<Vec<Panel>> {
    let graphs = read(dashboard)?.into_iter();
    let graphs = graphs.filter(|panel| panel.r#type == "timeseries");
    let panel = |raw: Raw| Panel {
        title: raw.title,
        unit: raw.field_config.defaults.unit,
        targets: raw.targets,
    };
    Ok(graphs.map(panel).collect())
}

impl Asked {
    /// With Grafana's variables filled in: all nodes.
    fn expression(&self) -> String {
        let expression = self.expr.replace("$__rate_interval", RATE_INTERVAL);
        expression.replace("$instance", ".*")
    }
}

impl Panel {
    /// What the server holds, those that were never anything but 0 left out.
    pub(super) fn ask(&self, server: &Prometheus, from: f64, to: f64) -> Result<Vec<Curve>> {
        let mut curves = Vec::new();
        for asked in &self.targets {
            for series in server.range(&asked.expression(), from, to, 1)? {
                let points = series.values.into_iter();
                curves.push(Curve {
                    name: legend(&asked.legend_format, &series.metric),
                    points: points.filter(|(_, value)| value.is_finite()).collect(),
                });
            }
        }
        let most = |curve: &Curve| curve.points.iter().map(|(_, v)| *v).fold(0.0, f64::max);
        curves.retain(|curve| most(curve) > 0.0);
        curves.sort_by(|a, b| most(b).total_cmp(&most(a)));
        Ok(curves)
    }

    /// A value in the panel's unit.
    pub(super) fn value(&self, value: f64) -> String {
        match &*self.unit {
            "bps" => format!("{}bit/s", scaled(value)),
            "pps" => format!("{}/s", scaled(value)),
            "percentunit" => format!("{:.0} %", value * 100.0),
            "s" => format!("{:.0} us", value * 1e6),
            _ => scaled(value).trim_end().to_owned(),
        }
    }
}

/// Three digits with a prefix of the SI.
fn scaled(value: f64) -> String {
    let (value, prefix) = match value {
        v if v >= 1e9 => (v / 1e9, "G"),
        v if v >= 1e6 => (v / 1e6, "M"),
        v if v >= 1e4 => (v / 1e3, "k"),
        v => (v, ""),
    };
    let digits = match value {
        v if v >= 100.0 => 0,
        v if v >= 10.0 => 1,
        _ => 2,
    };
    format!("{value:.digits$} {prefix}")
}

/// Grafana's legend: `{{label}}` is the label's value.
fn legend(format: &str, labels: &BTreeMap<String, String>) -> String {
    let mut text = String::new();
    let mut rest = format;
    while let Some((before, behind)) = rest.split_once("{{") {
        let (label, after) = behind.split_once("}}").unwrap_or((behind, ""));
        text += before;
        text += labels.get(label).map_or("", String::as_str);
        rest = after;
    }
    text + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_dashboard_has_graphs_that_are_read() {
        let text = include_str!("../../../docs/monitoring/podway-dashboard.json");
        let panels = panels(text).unwrap();
        assert!(panels.len() >= 12, "{}", panels.len());
        for panel in &panels {
            assert!(!panel.targets.is_empty(), "{}", panel.title);
        }
        // And panels of a number each, of which there are no curves.
        let queries = queries(text).unwrap();
        assert!(queries.len() >= panels.len() + 6, "{queries:#?}");
        for (title, expression) in queries {
            assert!(!expression.contains('$'), "{title}: {expression}");
        }
    }

    #[test]
    fn legends_and_values_are_those_of_grafana() {
        let labels = [("instance", "n1"), ("interface", "eth0")];
        let labels = labels.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let labels = BTreeMap::from(labels);
        assert_eq!(
            legend("{{instance}} {{interface}} x{{none}}", &labels),
            "n1 eth0 x"
        );
        assert_eq!(legend("plain", &labels), "plain");
        for (value, text) in [
            (0.5, "0.50 "),
            (12.34, "12.3 "),
            (9_999.0, "9999 "),
            (1.5e6, "1.50 M"),
            (7.25e9, "7.25 G"),
        ] {
            assert_eq!(scaled(value), text);
        }
    }
}
