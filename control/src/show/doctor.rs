//! What `podway doctor` finds, a line each.

use std::fmt::Write;

use super::table::Table;
use crate::doctor::{Finding, Verdict};

/// The findings in their order, and how many there are of each kind.
pub fn text(findings: &[Finding]) -> String {
    let mut table = Table::new(["VERDICT", "CHECK", "SUBJECT", "FOUND"]);
    for finding in findings {
        let mut found = finding.message.clone();
        if !finding.remedy.is_empty() {
            let _ = write!(found, "; remedy: {}", finding.remedy);
        }
        table.row([
            finding.verdict.to_string(),
            finding.name.to_owned(),
            match finding.subject.as_str() {
                "" => "-".to_owned(),
                subject => subject.to_owned(),
            },
            // One that came over several lines stays one.
            found.split_whitespace().collect::<Vec<_>>().join(" "),
        ]);
    }
    let count = |verdict| findings.iter().filter(|f| f.verdict == verdict).count();
    let mut text = table.render();
    let _ = writeln!(
        text,
        "{} faults, {} warnings, {} ok",
        count(Verdict::Fault),
        count(Verdict::Warning),
        count(Verdict::Ok)
    );
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_finding_is_a_line_with_its_remedy() {
        let finding = |name, subject: &str, verdict, message: &str, remedy: &str| Finding {
            name,
            subject: subject.to_owned(),
            verdict,
            message: message.to_owned(),
            remedy: remedy.to_owned(),
        };
        assert_eq!(
            text(&[
                finding("btf", "", Verdict::Ok, "the kernel tells its types", ""),
                finding(
                    "interface",
                    "eth0",
                    Verdict::Fault,
                    "the interface is\ndown",
                    "ip link set eth0 up"
                ),
                finding(
                    "queues",
                    "eth0",
                    Verdict::Warning,
                    "1 queues for 2 workers",
                    "ethtool -L"
                ),
            ]),
            "\
VERDICT  CHECK      SUBJECT  FOUND
ok       btf        -        the kernel tells its types
fault    interface  eth0     the interface is down; remedy: ip link set eth0 up
warning  queues     eth0     1 queues for 2 workers; remedy: ethtool -L
1 faults, 1 warnings, 1 ok
"
        );
    }
}
