//! What workers spend their time on, as text.

use std::fmt::Write;
use std::time::Duration;

use podway_proto::control::Response;
use podway_proto::perf::{Perf, Sampled, Spread, Work, WorkerPerf};

use super::table::{Table, or_dash};

/// An answer to `perf`; counts are those since the answer before, if there is one.
pub fn text(response: &Response, before: Option<(&Response, Duration)>) -> String {
    let Response::Perf(perf) = response else {
        return super::text(response);
    };
    match before {
        Some((Response::Perf(before), elapsed)) => told(perf, Some((before, elapsed))),
        _ => told(perf, None),
    }
}

pub(super) fn told(perf: &Perf, before: Option<(&Perf, Duration)>) -> String {
    let texts = perf.workers.iter().map(|worker| {
        let none = (Work::default(), perf.seconds);
        let (base, seconds) = before.map_or(none, |(before, elapsed)| {
            let mut same = before.workers.iter().filter(|w| w.worker == worker.worker);
            let base = same.next().map(|w| w.work).unwrap_or_default();
            (base, elapsed.as_secs_f64())
        });
        one(worker, &worker.work.since(&base), seconds)
    });
    texts.collect::<Vec<_>>().join("\n")
}

fn one(worker: &WorkerPerf, work: &Work, seconds: f64) -> String {
    let cpu = or_dash(worker.cpu);
    let busy = number(work.busy_nanoseconds) / 1e7 / seconds;
    let mut text = format!(
        "worker {}, cpu {cpu}: {seconds:.1} s, busy {}\n",
        worker.worker,
        finite(busy, " %")
    );
    let _ = writeln!(
        text,
        "  {} packets in {} bursts: {} a burst, {} a message, {} joined",
        work.received,
        work.bursts,
        ratio(work.received, work.bursts),
        ratio(work.sent, work.messages),
        finite(100.0 * number(work.joined) / number(work.sent), " %")
    );
    let _ = writeln!(
        text,
        "  system calls per packet: {} to receive, {} to send, {} to wait",
        ratio(work.rx_calls, work.received),
        ratio(work.tx_calls, work.received),
        ratio(work.wait_calls, work.received)
    );
    match &worker.sampled {
        Some(sampled) => text += &measured(sampled),
        None => text += "  it does not answer: nothing is known of its stages\n",
    }
    text
}

fn measured(sampled: &Sampled) -> String {
    let mut table = Table::new([
        "MEASURED", "SHARE", "MEAN", "P50", "P90", "P99", "P99.9", "MAX",
    ]);
    let mut row = |name: String, share: String, spread: &Spread| {
        if spread.count > 0 {
            let quantiles = [spread.p50, spread.p90, spread.p99, spread.p999, spread.max];
            let [p50, p90, p99, p999, max] = quantiles.map(|value| value.to_string());
            let mean = format!("{:.0}", spread.mean);
            table.row([name, share, mean, p50, p90, p99, p999, max]);
        }
    };
    let all: u64 = sampled.stages.iter().map(|stage| stage.nanoseconds).sum();
    for stage in &sampled.stages {
        let share = finite(100.0 * number(stage.nanoseconds) / number(all), " %");
        let name = format!("{}, ns a packet", stage.stage);
        row(name, share, &stage.per_packet);
    }
    for stage in &sampled.stages {
        let name = format!("{}, ns a burst", stage.stage);
        row(name, String::new(), &stage.per_burst);
    }
    for (name, spread) in [
        ("packets of a burst", &sampled.burst_packets),
        ("ring filled, %", &sampled.ring_percent),
        ("burst of a TAP, %", &sampled.tap_burst_percent),
        ("frames posted, %", &sampled.posted_percent),
        ("frames in the pool, %", &sampled.pool_percent),
    ] {
        row(name.to_owned(), String::new(), spread);
    }
    let head = format!(
        "  of one burst in {}: {} bursts, {} packets\n",
        sampled.every, sampled.bursts, sampled.packets
    );
    if table.is_empty() {
        return head;
    }
    let of_tap = match sampled.tap_burst_percent.count {
        0 => "",
        _ => "a TAP does not tell how full it is: after a burst of 100 % more may wait there\n",
    };
    head + &table.render() + of_tap
}

fn ratio(part: u64, whole: u64) -> String {
    if whole == 0 {
        return "-".to_owned();
    }
    format!("{:.2}", number(part) / number(whole))
}

/// A number with its unit, or a dash for what was divided by nothing.
fn finite(value: f64, unit: &str) -> String {
    if value.is_finite() {
        format!("{value:.1}{unit}")
    } else {
        "-".to_owned()
    }
}

#[expect(clippy::cast_precision_loss, reason = "ratios for people")]
fn number(count: u64) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::golden::golden;

    /// The example of the protocol.
    fn example() -> Perf {
        let golden = include_str!("../../../proto/tests/golden/control-responses.json");
        let responses: Vec<Response> = serde_json::from_str(golden).unwrap();
        let mut perfs = responses.into_iter().filter_map(|response| match response {
            Response::Perf(perf) => Some(perf),
            _ => None,
        });
        perfs.next().unwrap()
    }

    #[test]
    fn a_worker_is_told_with_its_stages_and_ratios() {
        golden("perf.txt", &told(&example(), None));
    }

    #[test]
    fn counts_are_those_between_two_looks() {
        let before = Response::Perf(example());
        let mut perf = example();
        perf.workers[0].work.received += 300;
        perf.workers[0].work.bursts += 100;
        perf.workers[0].work.busy_nanoseconds += 1_000_000_000;
        let after = Response::Perf(perf);
        let shown = text(&after, Some((&before, Duration::from_secs(2))));
        let expected = "\
worker 0, cpu 2: 2.0 s, busy 50.0 %
  300 packets in 100 bursts: 3.00 a burst, - a message, - joined
";
        assert!(shown.starts_with(expected), "{shown}");
    }
}
