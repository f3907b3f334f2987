//! ICMP echo: exact counts and round-trip times.

use std::net::IpAddr;
use std::time::Duration;

use hdrhistogram::Histogram;

use crate::netns::Netns;
use crate::{Error, Result, netns};

/// A run of `ping`.
#[derive(Debug, Clone)]
pub struct Ping {
    /// Requests to send.
    pub count: u32,
    /// Time between two requests.
    pub interval: Duration,
    /// Payload in bytes; 56 is what `ping` sends by itself.
    pub size: u16,
    /// Source address; the kernel's choice by default.
    pub source: Option<IpAddr>,
}

impl Default for Ping {
    fn default() -> Self {
        Self {
            count: 10,
            interval: Duration::from_millis(10),
            size: 56,
            source: None,
        }
    }
}

/// What came back.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Replies {
    /// Requests sent.
    pub sent: u32,
    /// Different requests that were answered.
    pub received: u32,
    /// Answers beyond the first to the same request.
    pub duplicates: u32,
    /// Round-trip times in microseconds, in order of arrival, duplicates left out.
    pub microseconds: Vec<u64>,
}

impl Ping {
    /// Pings `target` from a namespace.
    ///
    /// # Errors
    /// When `ping` cannot be run or answers in another form. Lost packets are no error.
    pub fn run(&self, from: &Netns, target: IpAddr) -> Result<Replies> {
        let started = self.start(from, target)?;
        started.finish()
    }

    /// Starts pinging `target` in the background.
    ///
    /// # Errors
    /// When `ping` cannot be started.
    pub fn start(&self, from: &Netns, target: IpAddr) -> Result<Running> {
        let mut command = from.command("ping");
        command.args([
            "-n",
            "-c",
            &self.count.to_string(),
            "-s",
            &self.size.to_string(),
        ]);
        command.args(["-i", &self.interval.as_secs_f64().to_string()]);
        // An answer takes far less than a second here; the last one is not waited for longer.
        command.args(["-W", "1"]);
        if let Some(source) = self.source {
            command.args(["-I", &source.to_string()]);
        }
        command.arg(target.to_string());
        command.stdout(std::process::Stdio::piped());
        command.stderr(std::process::Stdio::piped());
        let child = netns::spawn(&mut command)?;
        Ok(Running { child: Some(child) })
    }
}

/// A `ping` in the background.
#[derive(Debug)]
pub struct Running {
    child: Option<std::process::Child>,
}

impl Running {
    /// Waits for its end.
    ///
    /// # Errors
    /// As [`Ping::run`].
    pub fn finish(mut self) -> Result<Replies> {
        let Some(child) = self.child.take() else {
            unreachable!("finish consumes what start made");
        };
        let output = child.wait_with_output().map_err(Error::io("ping"))?;
        crate::cleanup::interrupted()?;
        let text = String::from_utf8_lossy(&output.stdout);
        // Exit status 1 means that answers are missing, which the text tells better.
        parse(&text).ok_or_else(|| {
            let stderr = String::from_utf8_lossy(&output.stderr);
            Error::Unexpected(format!("ping: {} {}", stderr.trim(), text.trim()))
        })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn parse(text: &str) -> Option<Replies> {
    let mut replies = Replies::default();
    for line in text.lines() {
        if let Some((sent, _)) = line.split_once(" packets transmitted, ") {
            replies.sent = sent.parse().ok()?;
            replies.received = u32::try_from(replies.microseconds.len()).ok()?;
            return Some(replies);
        }
        let Some((_, time)) = line.split_once(" time=") else {
            continue;
        };
        if line.ends_with("(DUP!)") {
            replies.duplicates += 1;
        } else if line.contains(" bytes from ") {
            replies
                .microseconds
                .push(parse_milliseconds(time.split(' ').next()?)?);
        }
    }
    None
}

/// "0.059" and "12.3" to microseconds, without a detour over floating point.
fn parse_milliseconds(text: &str) -> Option<u64> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, "0"));
    let micros = format!("{fraction:0<3.3}").parse::<u64>().ok()?;
    Some(whole.parse::<u64>().ok()? * 1000 + micros)
}

/// Median and 99th percentile of round-trip times in microseconds; `None` without any.
pub fn percentiles(microseconds: &[u64]) -> Option<(u64, u64)> {
    if microseconds.is_empty() {
        return None;
    }
    // Three digits from 1 us to a minute.
    let mut histogram = Histogram::<u32>::new_with_bounds(1, 60_000_000, 3).ok()?;
    for value in microseconds {
        histogram.saturating_record(*value);
    }
    Some((
        histogram.value_at_quantile(0.5),
        histogram.value_at_quantile(0.99),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replies_are_counted_one_by_one() {
        let text = "PING 10.0.1.10 (10.0.1.10) 56(84) bytes of data.\n\
            64 bytes from 10.0.1.10: icmp_seq=1 ttl=62 time=0.059 ms\n\
            64 bytes from 10.0.1.10: icmp_seq=1 ttl=62 time=0.080 ms (DUP!)\n\
            64 bytes from 10.0.1.10: icmp_seq=3 ttl=62 time=12.3 ms\n\n\
            --- 10.0.1.10 ping statistics ---\n\
            3 packets transmitted, 2 received, +1 duplicates, 33.3333% packet loss, time 32ms\n";
        let replies = parse(text).unwrap();
        assert_eq!(
            (replies.sent, replies.received, replies.duplicates),
            (3, 2, 1)
        );
        assert_eq!(replies.microseconds, [59, 12_300]);
    }

    #[test]
    fn another_form_is_refused() {
        assert_eq!(parse("ping: connect: Network is unreachable\n"), None);
    }

    #[test]
    fn percentiles_are_of_all_values() {
        let values: Vec<u64> = (1..=100).collect();
        assert_eq!(percentiles(&values), Some((50, 99)));
        assert_eq!(percentiles(&[]), None);
    }
}
