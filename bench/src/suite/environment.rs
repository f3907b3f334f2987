//! Where and with what it was measured.

use std::fs;
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::kernel;

/// All that a reader must know before comparing figures.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Environment {
    /// Seconds since 1970.
    pub time: u64,
    /// Commit of the source, or `unknown`.
    pub commit: String,
    /// Whether the source differed from that commit.
    pub dirty: bool,
    /// Release of the kernel.
    pub kernel: String,
    /// Model of the CPUs.
    pub cpu: String,
    /// Number of CPUs, which nodes, pods, iperf3 and contenders share.
    pub cores: usize,
    /// The machine's own congestion control; measurements name theirs.
    pub default_congestion_control: String,
    /// Version of iperf3.
    pub iperf3: String,
}

impl Environment {
    /// Of this machine and this program.
    pub fn here() -> Self {
        let first = |path| fs::read_to_string(path).unwrap_or_default();
        let iperf3 = output(Command::new("iperf3").arg("--version"));
        Self {
            time: SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .map_or(0, |time| time.as_secs()),
            commit: git(&["rev-parse", "HEAD"]).unwrap_or_else(unknown),
            dirty: git(&["status", "--porcelain"]).is_none_or(|changes| !changes.is_empty()),
            kernel: kernel::release(),
            cpu: cpu_model(&first("/proc/cpuinfo")).unwrap_or_else(unknown),
            cores: std::thread::available_parallelism().map_or(0, usize::from),
            default_congestion_control: first("/proc/sys/net/ipv4/tcp_congestion_control")
                .trim()
                .to_owned(),
            iperf3: iperf3
                .and_then(|text| text.lines().next().map(str::to_owned))
                .unwrap_or_else(unknown),
        }
    }
}

fn unknown() -> String {
    "unknown".to_owned()
}

/// What git says of the source that this program was built from.
fn git(args: &[&str]) -> Option<String> {
    output(
        Command::new("git")
            .args(["-C", env!("CARGO_MANIFEST_DIR")])
            .args(args),
    )
}

fn output(command: &mut Command) -> Option<String> {
    let output = command.output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| text.trim().to_owned())
}

fn cpu_model(cpuinfo: &str) -> Option<String> {
    let line = cpuinfo
        .lines()
        .find(|line| line.starts_with("model name"))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cpu_has_a_name() {
        let text = "processor\t: 0\nmodel name\t: Some CPU @ 2 GHz\nmodel name\t: other\n";
        assert_eq!(cpu_model(text).unwrap(), "Some CPU @ 2 GHz");
        assert_eq!(cpu_model("processor : 0\n"), None);
    }

    #[test]
    fn this_machine_can_be_told() {
        let here = Environment::here();
        assert!(here.cores > 0 && here.time > 0 && !here.kernel.is_empty());
    }
}
