//! Prometheus' text format, version 0.0.4
//! (<https://prometheus.io/docs/instrumenting/exposition_formats/>).

use std::fmt::{Display, Write};

/// What the page is, for the HTTP header.
pub(super) const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// A page under construction.
#[derive(Debug, Default)]
pub(super) struct Page {
    text: String,
}

/// One sample of a family: its labels, and its value as text.
#[derive(Debug)]
pub(super) struct Sample {
    /// What its name has behind that of the family.
    part: &'static str,
    labels: String,
    value: String,
}

impl Page {
    /// Adds a level or a flag. A family without samples is left out.
    pub(super) fn gauge(
        &mut self,
        name: &str,
        help: &str,
        samples: impl IntoIterator<Item = Sample>,
    ) {
        self.family("gauge", name, help, samples);
    }

    /// Adds what only grows.
    pub(super) fn counter(
        &mut self,
        name: &str,
        help: &str,
        samples: impl IntoIterator<Item = Sample>,
    ) {
        self.family("counter", name, help, samples);
    }

    /// Adds histograms, one for each set of labels: see [`distribution`].
    pub(super) fn histogram(
        &mut self,
        name: &str,
        help: &str,
        samples: impl IntoIterator<Item = Sample>,
    ) {
        self.family("histogram", name, help, samples);
    }

    fn family(
        &mut self,
        kind: &str,
        name: &str,
        help: &str,
        samples: impl IntoIterator<Item = Sample>,
    ) {
        let mut samples = samples.into_iter().peekable();
        if samples.peek().is_none() {
            return;
        }
        let help = help.replace('\\', "\\\\").replace('\n', "\\n");
        let _ = writeln!(self.text, "# HELP {name} {help}\n# TYPE {name} {kind}");
        for Sample {
            part,
            labels,
            value,
        } in samples
        {
            let _ = writeln!(self.text, "{name}{part}{labels} {value}");
        }
    }

    /// The page.
    pub(super) fn finish(self) -> String {
        self.text
    }
}

/// A sample with labels.
pub(super) fn sample(labels: &[(&str, &str)], value: impl Display) -> Sample {
    let mut text = String::new();
    for (position, (name, value)) in labels.iter().enumerate() {
        let begin = if position == 0 { '{' } else { ',' };
        let value = value
            .replace('\\', "\\\\")
            .replace('"', "\\\"")
            .replace('\n', "\\n");
        let _ = write!(text, "{begin}{name}=\"{value}\"");
    }
    if !text.is_empty() {
        text.push('}');
    }
    Sample {
        part: "",
        labels: text,
        value: value.to_string(),
    }
}

/// The samples of one histogram with one label: how many values there are above one bound and up to the
/// next, and the sum of them all. What is above the last bound counts as that.
pub(super) fn distribution(
    (label, value): (&str, &str),
    counts: impl Iterator<Item = (u64, u64)>,
    sum: u64,
) -> Vec<Sample> {
    let mut samples = Vec::new();
    let mut seen = 0;
    let bucket = |bound: &str, seen: u64| Sample {
        part: "_bucket",
        ..sample(&[(label, value), ("le", bound)], seen)
    };
    for (bound, count) in counts {
        seen += count;
        samples.push(bucket(&bound.to_string(), seen));
    }
    samples.push(bucket("+Inf", seen));
    for (part, number) in [("_sum", sum), ("_count", seen)] {
        let labels = [(label, value)];
        samples.push(Sample {
            part,
            ..sample(&labels, number)
        });
    }
    samples
}

/// The only sample of a family.
pub(super) fn one(value: impl Display) -> [Sample; 1] {
    [sample(&[], value)]
}

/// A flag.
pub(super) fn flag(value: bool) -> u8 {
    u8::from(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_family_has_help_type_and_samples() {
        let mut page = Page::default();
        page.counter("a_total", "With a \\ and\na break.", one(u64::MAX));
        page.gauge("none", "Nothing.", []);
        let labels = [("interface", "a\"b"), ("cause", "c\\d\ne")];
        page.gauge("b", "Two.", [sample(&labels, 1.5), sample(&[], 0)]);
        let expected = "\
# HELP a_total With a \\\\ and\\na break.
# TYPE a_total counter
a_total 18446744073709551615
# HELP b Two.
# TYPE b gauge
b{interface=\"a\\\"b\",cause=\"c\\\\d\\ne\"} 1.5
b 0
";
        assert_eq!(page.finish(), expected);
    }

    #[test]
    fn a_histogram_has_sums_up_to_each_bound() {
        let mut page = Page::default();
        let samples = distribution(("worker", "0"), [(1, 3), (2, 0), (4, 2)].into_iter(), 10);
        page.histogram("bursts", "Packets.", samples);
        let expected = "\
# HELP bursts Packets.
# TYPE bursts histogram
bursts_bucket{worker=\"0\",le=\"1\"} 3
bursts_bucket{worker=\"0\",le=\"2\"} 3
bursts_bucket{worker=\"0\",le=\"4\"} 5
bursts_bucket{worker=\"0\",le=\"+Inf\"} 5
bursts_sum{worker=\"0\"} 10
bursts_count{worker=\"0\"} 5
";
        assert_eq!(page.finish(), expected);
    }
}
