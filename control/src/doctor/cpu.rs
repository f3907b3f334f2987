//! Processors and who has them.

use std::collections::BTreeMap;

use podway_proto::config::WaitMode;

use super::{Facts, Findings};

/// Stolen time beyond this shows in latency, in hundredths.
const STOLEN: u64 = 5;

pub(super) fn cores(facts: &Facts, findings: &mut Findings) {
    let workers = facts.workers();
    let section = &facts.configuration.config.dataplane;
    if workers.len() > facts.cpu.count && facts.cpu.count > 0 {
        findings.warn(
            "",
            format!(
                "{} workers on {} processors",
                workers.len(),
                facts.cpu.count
            ),
            "use fewer dataplane.workers",
        );
    }
    let mut of_core: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for cpu in workers.iter().flatten() {
        let core = facts.cpu.cores.get(cpu).copied().unwrap_or(*cpu);
        of_core.entry(core).or_default().push(*cpu);
    }
    let mut shared = false;
    for (core, cpus) in of_core.iter().filter(|(_, cpus)| cpus.len() > 1) {
        shared = true;
        let listed: Vec<String> = cpus.iter().map(usize::to_string).collect();
        let message = format!(
            "{} workers share one core (CPUs {})",
            cpus.len(),
            listed.join(", ")
        );
        let subject = format!("core of CPU {core}");
        let remedy = "give each worker a core of its own in dataplane.cores";
        match section.wait {
            WaitMode::Spin => findings.fault(&subject, message + ", and spin on it", remedy),
            _ => findings.warn(&subject, message, remedy),
        }
    }
    if !shared && workers.len() <= facts.cpu.count {
        findings.ok(
            "",
            format!("{} workers, none on a core of another", workers.len()),
        );
    }
}

pub(super) fn governor(facts: &Facts, findings: &mut Findings) {
    let slow = facts
        .cpu
        .governors
        .iter()
        .filter(|(_, name)| *name == "powersave");
    match slow.count() {
        0 if facts.cpu.governors.is_empty() => {
            findings.ok("", "frequencies are not this machine's to set")
        }
        0 => findings.ok("", "no processor is told to save power"),
        count => findings.warn(
            "",
            format!(
                "{count} processors save power (governor powersave): they are slow to speed up"
            ),
            "cpupower frequency-set -g performance",
        ),
    }
}

pub(super) fn steal(facts: &Facts, findings: &mut Findings) {
    match facts.cpu.steal_percent {
        Some(percent) if percent > STOLEN => findings.warn(
            "",
            format!("{percent} % of the time is stolen by other machines on the same host"),
            "give this machine processors of its own",
        ),
        Some(percent) => findings.ok("", format!("{percent} % of the time is stolen")),
        None => findings.ok("", "not shown"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Verdict::{Fault, Ok, Warning};
    use super::super::facts::Control;
    use super::super::testing::{healthy, verdict};
    use super::*;

    #[test]
    fn workers_have_cores_of_their_own() {
        let with = |cores: &[usize], wait| {
            let mut facts = healthy();
            facts.control = Control::Away;
            facts.cpu.cores = BTreeMap::from([(0, 0), (1, 1), (2, 0), (3, 1)]);
            facts.cpu.count = 4;
            let section = &mut facts.configuration.config.dataplane;
            section.workers = u16::try_from(cores.len()).unwrap();
            section.cores = cores.to_vec();
            section.wait = wait;
            verdict("cores", &facts)
        };
        assert_eq!(with(&[0, 1], WaitMode::Spin), Ok);
        assert_eq!(with(&[0, 0], WaitMode::Adaptive), Warning);
        assert_eq!(
            with(&[0, 2], WaitMode::Adaptive),
            Warning,
            "threads of one core"
        );
        assert_eq!(with(&[1, 3], WaitMode::Spin), Fault);
        let mut facts = healthy();
        facts.control = Control::Away;
        facts.configuration.config.dataplane.workers = 8;
        assert_eq!(verdict("cores", &facts), Warning);
    }

    #[test]
    fn slow_and_stolen_processors_are_named() {
        let mut facts = healthy();
        facts.cpu.governors.insert(1, "powersave".to_owned());
        assert_eq!(verdict("cpu-governor", &facts), Warning);
        facts.cpu.governors.clear();
        assert_eq!(verdict("cpu-governor", &facts), Ok);
        facts.cpu.steal_percent = Some(6);
        assert_eq!(verdict("cpu-steal", &facts), Warning);
        facts.cpu.steal_percent = None;
        assert_eq!(verdict("cpu-steal", &facts), Ok);
    }
}
