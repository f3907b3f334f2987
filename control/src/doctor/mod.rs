//! `podway doctor`: what a node needs, checked on the machine itself, before the daemons start or beside
//! them.
//!
//! A collector ([`collect`]) fills [`Facts`]; each check is a pure function of them that tells its
//! findings, and is tested on facts that were made up. What could not be collected is `None` in the
//! facts, and a warning where it matters. docs/doctor.md lists the checks.

pub mod collect;
mod cpu;
pub mod facts;
mod forwarding;
mod kernel;
mod links;
mod mtu;
mod nodes;
mod offloads;
mod podway;
mod process;
mod programs;
#[cfg(test)]
mod testing;
mod vxlan;

use std::fmt;

use serde::Serialize;

pub use facts::Facts;

/// What a check has found of a subject.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The check's stable name.
    pub name: &'static str,
    /// What was looked at: an interface, a node, a process; empty where it is the machine.
    pub subject: String,
    /// How it is.
    pub verdict: Verdict,
    /// What was seen.
    pub message: String,
    /// What to do about it; empty where there is nothing to do.
    pub remedy: String,
}

/// How a subject is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// As it should be.
    Ok,
    /// It works, with less speed or less safety; or it cannot be told.
    Warning,
    /// Packets are lost, or will be.
    Fault,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Fault => "fault",
        })
    }
}

/// Takes the findings of one check.
#[derive(Debug)]
pub(crate) struct Findings {
    name: &'static str,
    found: Vec<Finding>,
}

impl Findings {
    fn add(&mut self, verdict: Verdict, subject: &str, message: String, remedy: String) {
        self.found.push(Finding {
            name: self.name,
            subject: subject.to_owned(),
            verdict,
            message,
            remedy,
        });
    }

    fn ok(&mut self, subject: &str, message: impl Into<String>) {
        self.add(Verdict::Ok, subject, message.into(), String::new());
    }

    fn warn(&mut self, subject: &str, message: impl Into<String>, remedy: impl Into<String>) {
        self.add(Verdict::Warning, subject, message.into(), remedy.into());
    }

    fn fault(&mut self, subject: &str, message: impl Into<String>, remedy: impl Into<String>) {
        self.add(Verdict::Fault, subject, message.into(), remedy.into());
    }
}

/// A check: its name, and what it makes of the facts.
type Check = (&'static str, fn(&Facts, &mut Findings));

/// All checks, in the order in which they are told: what others rest on comes first.
const CHECKS: &[Check] = &[
    ("kernel", kernel::version),
    ("af-xdp", kernel::af_xdp),
    ("btf", kernel::btf),
    ("bpf-jit", kernel::jit),
    ("unprivileged-bpf", kernel::unprivileged_bpf),
    ("bpf-filesystem", kernel::bpf_filesystem),
    ("clock", kernel::clock),
    ("configuration", podway::configuration),
    ("control", podway::control),
    ("namespace", process::namespace),
    ("capabilities", process::capabilities),
    ("memlock", process::memlock),
    ("version", podway::version),
    ("dataplane", podway::dataplane),
    ("gate", podway::gate),
    ("drift", podway::drift),
    ("kernel-state", podway::kernel_state),
    ("port", podway::port),
    ("hint", podway::hint),
    ("interface", links::interface),
    ("queues", links::queues),
    ("xdp-generic", programs::generic),
    ("xdp-program", programs::xdp),
    ("tcx-program", programs::tcx),
    ("offloads", offloads::uplink),
    ("pod-offloads", offloads::pod),
    ("uplink-mtu", mtu::uplink),
    ("pod-mtu", mtu::pod),
    ("vxlan-device", vxlan::device),
    ("ip-forward", forwarding::ip_forward),
    ("rp-filter", forwarding::rp_filter),
    ("forward-rules", forwarding::rules),
    ("conntrack", forwarding::conntrack),
    ("neighbor", nodes::neighbor),
    ("node", nodes::node),
    ("cores", cpu::cores),
    ("cpu-governor", cpu::governor),
    ("cpu-steal", cpu::steal),
];

/// All that is found.
pub fn examine(facts: &Facts) -> Vec<Finding> {
    let mut all = Vec::new();
    for (name, check) in CHECKS {
        let mut findings = Findings {
            name,
            found: Vec::new(),
        };
        check(facts, &mut findings);
        all.append(&mut findings.found);
    }
    all
}

/// The worst of what was found.
pub fn worst(findings: &[Finding]) -> Verdict {
    let verdicts = findings.iter().map(|finding| finding.verdict);
    verdicts.max().unwrap_or(Verdict::Ok)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::testing::{healthy, status};
    use super::*;

    #[test]
    fn a_healthy_node_is_found_so_by_every_check() {
        let findings = examine(&healthy());
        let bad: Vec<_> = findings
            .iter()
            .filter(|f| f.verdict != Verdict::Ok)
            .collect();
        assert!(bad.is_empty(), "{bad:#?}");
        assert_eq!(worst(&findings), Verdict::Ok);
        // Ports that wait and hints are told only where there are some.
        let silent = ["port", "hint"];
        let told: BTreeSet<&str> = findings.iter().map(|f| f.name).chain(silent).collect();
        assert_eq!(told, CHECKS.iter().map(|(name, _)| *name).collect());
    }

    #[test]
    fn nothing_is_found_good_that_was_not_looked_at() {
        let findings = examine(&Facts::default());
        assert_eq!(worst(&findings), Verdict::Fault, "there is no BTF");
        assert!(
            findings
                .iter()
                .all(|f| f.verdict == Verdict::Ok || !f.remedy.is_empty())
        );
    }

    #[test]
    fn an_interface_that_is_missing_is_told_once_and_nothing_good_of_it() {
        let mut facts = healthy();
        facts.links.clear();
        facts.features.clear();
        for named in &mut facts.named {
            named.waiting = Some(format!("the link {}", named.interface));
        }
        // As control says it.
        status(&mut facts).hints =
            vec!["the uplink eth0 does not exist yet; it is taken up when it appears".to_owned()];
        let findings = examine(&facts);
        for (subject, verdict) in [("eth0", Verdict::Fault), ("veth-a", Verdict::Warning)] {
            let of = findings.iter().filter(|found| {
                found.subject == subject || found.message.contains(&format!("{subject} "))
            });
            // What is seen of the pod's end is seen in the pod.
            let of = of.filter(|found| !found.name.starts_with("pod-"));
            let told: Vec<_> = of.map(|found| (found.name, found.verdict)).collect();
            assert_eq!(told, [("interface", verdict)], "{subject}: {findings:#?}");
        }
    }

    #[test]
    fn the_checks_are_those_of_the_documentation() {
        let text = include_str!("../../../docs/doctor.md");
        let rows = text.lines().filter_map(|line| line.strip_prefix("| `"));
        let documented: Vec<&str> = rows.filter_map(|row| row.split('`').next()).collect();
        let names: Vec<&str> = CHECKS.iter().map(|(name, _)| *name).collect();
        assert_eq!(documented, names);
    }
}
