//! A Prometheus server in a network namespace, and what it is asked by its own tool.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

use serde::Deserialize;

use crate::netns::{Netns, wait_until};
use crate::process::Daemon;
use crate::{Error, Result};

/// Where it listens, in its own namespace.
const ADDRESS: &str = "127.0.0.1:9090";
/// How long it may take to start on a machine that others load.
const READY: Duration = Duration::from_secs(60);

/// A running server. Dropping it kills it.
#[derive(Debug)]
pub struct Prometheus {
    netns: Netns,
    daemon: Daemon,
}

/// Who is asked for metrics.
#[derive(Debug, Clone)]
pub struct Target {
    /// The name that the label `instance` has.
    pub instance: String,
    /// Address and port.
    pub address: String,
}

/// A series of values with its labels.
#[derive(Debug, Clone, Deserialize)]
pub struct Series {
    /// Its labels, its name among them.
    pub metric: BTreeMap<String, String>,
    /// Time in seconds, and value as text; one of an instant, several of a range.
    #[serde(alias = "value", deserialize_with = "points")]
    pub values: Vec<(f64, f64)>,
}

/// A point or a list of points.
fn points<'de, D: serde::Deserializer<'de>>(
    from: D,
) -> std::result::Result<Vec<(f64, f64)>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Points {
        Several(Vec<(f64, String)>),
        One((f64, String)),
    }
    let points = match Points::deserialize(from)? {
        Points::One(point) => vec![point],
        Points::Several(points) => points,
    };
    let number =
        |(at, value): (f64, String)| Ok((at, value.parse().map_err(serde::de::Error::custom)?));
    points.into_iter().map(number).collect()
}

impl Prometheus {
    /// Starts a server that asks `targets` each `interval`, keeps what it hears in `directory`, and
    /// evaluates the file of `rules` as often.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn start(
        netns: &Netns,
        directory: &Path,
        targets: &[Target],
        interval: Duration,
        rules: Option<&Path>,
    ) -> Result<Self> {
        let directory = directory.join("prometheus");
        fs::create_dir_all(&directory).map_err(Error::io(directory.display().to_string()))?;
        let millis = interval.as_millis();
        let mut text = format!(
            "global: {{scrape_interval: {millis}ms, scrape_timeout: {millis}ms, \
             evaluation_interval: {millis}ms}}\n"
        );
        if let Some(rules) = rules {
            text += &format!("rule_files: ['{}']\n", rules.display());
        }
        text += "scrape_configs:\n- job_name: podway\n  static_configs:\n";
        for Target { instance, address } in targets {
            text +=
                &format!("  - {{targets: ['{address}'], labels: {{instance: '{instance}'}}}}\n");
        }
        let config = directory.join("prometheus.yml");
        fs::write(&config, text).map_err(Error::io(config.display().to_string()))?;
        let mut command = netns.command("prometheus");
        command.args([
            format!("--config.file={}", config.display()),
            format!("--storage.tsdb.path={}", directory.join("data").display()),
            format!("--web.listen-address={ADDRESS}"),
            "--log.level=warn".to_owned(),
        ]);
        let daemon = Daemon::start("prometheus", command, directory.join("log"))?;
        let mut server = Self {
            netns: netns.clone(),
            daemon,
        };
        let up = format!("sum(up) == {}", targets.len());
        wait_until("Prometheus has asked everybody", READY, || {
            server
                .daemon
                .check_alive()
                .map_err(|error| error.to_string())?;
            match server.instant(&up) {
                Ok(series) if !series.is_empty() => Ok(()),
                Ok(_) => Err("not yet".to_owned()),
                Err(error) => Err(error.to_string()),
            }
        })?;
        Ok(server)
    }

    /// What an expression is now.
    ///
    /// # Errors
    /// When the server does not answer.
    pub fn instant(&self, expression: &str) -> Result<Vec<Series>> {
        self.query(&["instant"], expression)
    }

    /// What it was from `from` to `to`, in seconds since 1970, at steps of `step` seconds.
    ///
    /// # Errors
    /// When the server does not answer.
    pub fn range(&self, expression: &str, from: f64, to: f64, step: u32) -> Result<Vec<Series>> {
        let words = [
            "range".to_owned(),
            format!("--start={from:.3}"),
            format!("--end={to:.3}"),
            format!("--step={step}s"),
        ];
        self.query(&words.each_ref().map(String::as_str), expression)
    }

    /// Each rule that it evaluates: the name of its alert, and whether evaluating it goes well, in the
    /// server's words.
    ///
    /// # Errors
    /// When the server does not answer.
    pub fn rules(&self) -> Result<BTreeMap<String, String>> {
        #[derive(Deserialize)]
        struct Answer {
            data: Groups,
        }
        #[derive(Deserialize)]
        struct Groups {
            groups: Vec<Group>,
        }
        #[derive(Deserialize)]
        struct Group {
            rules: Vec<Rule>,
        }
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Rule {
            name: String,
            health: String,
            #[serde(default)]
            last_error: String,
        }
        // The server closes the connection behind the answer to the older version.
        let line =
            format!(r"printf 'GET /api/v1/rules HTTP/1.0\r\n\r\n' | socat -t 10 - TCP:{ADDRESS}");
        let text = self.netns.run("sh", &["-c", &line])?;
        let (_, body) = text.split_once("\r\n\r\n").unwrap_or_default();
        let answer: Answer = serde_json::from_str(body)
            .map_err(|error| Error::Unexpected(format!("rules: {error}: {text}")))?;
        let rules = answer.data.groups.into_iter().flat_map(|group| group.rules);
        let health = |rule: Rule| match &*rule.last_error {
            "" => rule.health,
            error => format!("{}: {error}", rule.health),
        };
        Ok(rules
            .map(|rule| (rule.name.clone(), health(rule)))
            .collect())
    }

    fn query(&self, words: &[&str], expression: &str) -> Result<Vec<Series>> {
        let server = format!("http://{ADDRESS}");
        let end = [&*server, expression];
        let words = [&["query", "--format=json"], words, &end].concat();
        let text = self.netns.run("promtool", &words)?;
        serde_json::from_str(&text)
            .map_err(|error| Error::Unexpected(format!("promtool: {error}: {text}")))
    }

    /// Ends it.
    ///
    /// # Errors
    /// When it does not end, or not with success.
    pub fn stop(mut self) -> Result<()> {
        self.daemon.stop()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_of_an_instant_and_of_a_range_are_read() {
        for (text, values) in [
            (
                r#"[{"metric":{"a":"b"},"value":[1.5,"3"]}]"#,
                vec![(1.5, 3.0)],
            ),
            (
                r#"[{"metric":{"a":"b"},"values":[[1,"3"],[2,"0.5"]]}]"#,
                vec![(1.0, 3.0), (2.0, 0.5)],
            ),
        ] {
            let series: Vec<Series> = serde_json::from_str(text).unwrap();
            assert_eq!(series[0].values, values);
            assert_eq!(series[0].metric["a"], "b");
        }
    }
}
