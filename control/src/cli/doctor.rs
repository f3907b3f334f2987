//! `podway doctor`: what is wrong with a node, seen from the machine itself.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use podway_proto::codec;
use serde::Serialize;

use crate::doctor::collect::{Sources, collect};
use crate::doctor::{Finding, Verdict, examine, worst};
use crate::show;

pub(super) const EXAMPLES: &str = "\
It looks at kernel, interfaces, programs, MTUs, forwarding, processors, the daemons where they run
and the other nodes that they know. Run it as root: what it may not see it warns of.

Exit code 0: no fault; 1: at least one.

Examples:
  podway doctor
  podway doctor --config /etc/podway/podway.toml
  podway --json doctor | jq '.findings[] | select(.verdict != \"ok\")'";

#[derive(Debug, Args)]
pub(super) struct Doctor {
    /// The daemons' configuration file; /etc/podway/podway.toml by default, if it is there.
    #[arg(long, value_name = "FILE")]
    pub(super) config: Option<PathBuf>,
}

impl Doctor {
    /// What is found, as text or as a document, and whether there is a fault in it.
    pub(super) fn run(&self, socket: &Path, timeout: Duration, json: bool) -> (Vec<u8>, ExitCode) {
        let config = self.config.as_deref();
        let findings = examine(&collect(Sources {
            socket,
            timeout,
            config,
        }));
        let answer = match json {
            true => document(&findings),
            false => show::doctor::text(&findings).into_bytes(),
        };
        let code = match worst(&findings) {
            Verdict::Fault => ExitCode::FAILURE,
            Verdict::Ok | Verdict::Warning => ExitCode::SUCCESS,
        };
        (answer, code)
    }
}

/// The findings as one line for programs.
pub(crate) fn document(findings: &[Finding]) -> Vec<u8> {
    #[derive(Serialize)]
    struct Document<'a> {
        response: &'static str,
        verdict: Verdict,
        findings: &'a [Finding],
    }
    codec::encode(&Document {
        response: "doctor",
        verdict: worst(findings),
        findings,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::golden::golden_json;

    #[test]
    fn the_document_has_the_same_fields_for_each_finding() {
        let finding = Finding {
            name: "ip-forward",
            subject: "IPv4".to_owned(),
            verdict: Verdict::Fault,
            message: "the kernel does not forward".to_owned(),
            remedy: "sysctl -w net.ipv4.ip_forward=1".to_owned(),
        };
        let good = Finding {
            name: "btf",
            subject: String::new(),
            verdict: Verdict::Ok,
            message: "there".to_owned(),
            remedy: String::new(),
        };
        golden_json("doctor.json", &document(&[finding, good]));
    }
}
