//! What the daemons say of themselves, their files and their logs.

use std::fmt::Write;
use std::fs;
use std::io;
use std::path::Path;
use std::time::Duration;

use podway_proto::client::Client;
use podway_proto::codec::encode;
use podway_proto::control::{Request, Response};

use super::Gathered;
use crate::COMMIT;
use crate::doctor::Facts;
use crate::doctor::collect::Sources;
use crate::program;

/// Routes beyond these are left out; a full table has a million.
const ROUTES: usize = 10_000;
/// Lines of each log, the last ones.
const LINES: &str = "5000";
/// How long the journal may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// The entries of this module.
#[cfg(test)]
pub(super) const NAMES: &[&str] = &[
    "version.txt",
    "status.json",
    "counters.json",
    "drops.json",
    "perf.json",
    "nodes.json",
    "ports.json",
    "routes.json",
    "podway.toml",
    "state-dir.txt",
    "process/podway-control/status",
    "process/podway-control/limits",
    "process/podway-dataplane/status",
    "process/podway-dataplane/limits",
    "logs/podway-control.txt",
    "logs/podway-dataplane.txt",
];

pub(super) fn gather(
    gathered: &mut Gathered,
    sources: Sources<'_>,
    facts: &Facts,
    state_dir: &Path,
) {
    gathered.add("version.txt", Ok::<_, io::Error>(versions(facts)));
    for (name, request) in [
        ("status.json", Request::Status),
        ("counters.json", Request::Counters),
        ("drops.json", Request::Drops),
        ("perf.json", Request::Perf),
        ("nodes.json", Request::NodeList),
        ("ports.json", Request::PortShow),
        ("routes.json", Request::RouteShow),
    ] {
        // A connection each: one that has timed out is of no more use.
        let answer = Client::connect(sources.socket, sources.timeout)
            .and_then(|mut client| client.call(&request));
        gathered.add(name, answer.map(|answer| encode(&without_packets(answer))));
    }
    let config = match &facts.configuration.path {
        Some(path) => fs::read(path),
        None => Err(io::Error::other("there is no file: the defaults count")),
    };
    gathered.add("podway.toml", config);
    gathered.add("state-dir.txt", sizes(state_dir));
    for name in ["podway-control", "podway-dataplane"] {
        let pid = pid(facts, name);
        for file in ["status", "limits"] {
            let content = match pid {
                Some(pid) => fs::read(format!("/proc/{pid}/{file}")),
                None => Err(io::Error::other("its process is not known")),
            };
            gathered.add(&format!("process/{name}/{file}"), content);
        }
    }
    for unit in ["podway-control", "podway-dataplane"] {
        let words = [
            "-u",
            unit,
            "-n",
            LINES,
            "--no-pager",
            "-q",
            "-o",
            "short-iso",
        ];
        let log = program::run("journalctl", &words, "", PATIENCE);
        let log = log.and_then(|log| match log.is_empty() {
            true => Err(io::Error::other("the journal has nothing of this unit")),
            false => Ok(log.into_bytes()),
        });
        gathered.add(&format!("logs/{unit}.txt"), log);
    }
}

fn pid(facts: &Facts, name: &str) -> Option<u32> {
    let process = facts.processes.iter().find(|process| process.name == name);
    process.map(|process| process.pid)
}

fn versions(facts: &Facts) -> Vec<u8> {
    let mut text = format!(
        "podway (which made this archive) {}, commit {COMMIT}\n",
        env!("CARGO_PKG_VERSION")
    );
    if let Some(status) = facts.status() {
        let _ = writeln!(text, "podway-control {}", status.version);
    }
    if let Some(status) = facts.dataplane() {
        let _ = writeln!(text, "podway-dataplane {}", status.version);
    }
    let _ = writeln!(text, "linux {}", facts.kernel.release);
    text.into_bytes()
}

/// The answer without the first bytes of packets, which may be a pod's data, and with routes that can be
/// read.
fn without_packets(mut answer: Response) -> Response {
    match &mut answer {
        Response::Drops(drops) => {
            let dropped = drops.drops.iter_mut().map(|drop| &mut drop.last);
            let passed = drops.passed.iter_mut().map(|pass| &mut pass.last);
            for last in dropped.chain(passed).flatten() {
                last.header.clear();
            }
        }
        Response::Routes { routes } => routes.truncate(ROUTES),
        _ => {}
    }
    answer
}

/// Names and sizes of the files of a directory: what they say is not told.
fn sizes(directory: &Path) -> io::Result<Vec<u8>> {
    let mut lines = Vec::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        lines.push((name.to_string_lossy().into_owned(), entry.metadata()?.len()));
    }
    lines.sort();
    let line = |(name, bytes): &(String, u64)| format!("{bytes} {name}\n");
    Ok(lines.iter().map(line).collect::<String>().into_bytes())
}

#[cfg(test)]
mod tests {
    use podway_proto::dataplane::{DropCount, DroppedPacket, Drops, PassCount};

    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn no_byte_of_a_packet_is_told() {
        let packet = DroppedPacket {
            seconds_ago: 1,
            interface: Some("eth0".into()),
            bytes: 100,
            source: None,
            destination: None,
            protocol: None,
            source_port: None,
            destination_port: None,
            inside: None,
            header: "70617373776f7264".into(),
        };
        let passed = PassCount {
            cause: "no_route".into(),
            places: Vec::new(),
            packets: 1,
            packets_per_second: 0.0,
            last_minute: 0,
            interfaces: BTreeMap::new(),
            last: Some(packet.clone()),
            meaning: String::new(),
            remedy: String::new(),
        };
        let count = DropCount {
            reason: "no_route".into(),
            places: Vec::new(),
            packets: 1,
            packets_per_second: 0.0,
            last_minute: 0,
            interfaces: BTreeMap::new(),
            last: Some(packet),
            meaning: String::new(),
            remedy: String::new(),
        };
        let told = without_packets(Response::Drops(Drops {
            drops: vec![count],
            passed: vec![passed],
        }));
        let text = String::from_utf8(encode(&told)).unwrap();
        assert_eq!(text.matches("\"header\":\"\"").count(), 2, "{text}");
        assert!(!text.contains("7061"), "{text}");
    }
}
