//! Interfaces that were named.

use super::{Facts, Findings};

pub(super) fn interface(facts: &Facts, findings: &mut Findings) {
    let name_one = "name it in the configuration (uplink) or with podway port add IF --uplink";
    if facts.uplinks().next().is_none() {
        match facts.status() {
            Some(_) => findings.fault("", "there is no uplink", name_one),
            None => findings.warn("", "no uplink is named", name_one),
        }
    }
    for named in &facts.named {
        let name = &named.interface;
        match facts.link(name) {
            None if named.uplink => findings.fault(
                name,
                "the uplink does not exist",
                "create it, or name another one",
            ),
            None => findings.warn(
                name,
                "the pod's interface does not exist",
                format!("podway port del {name}, unless it is still to come"),
            ),
            Some(link) if !link.link.up => findings.fault(
                name,
                "the interface is down",
                format!("ip link set {name} up"),
            ),
            Some(link) if !link.carrier => findings.fault(
                name,
                "nobody is at the other end (no carrier)",
                match named.uplink {
                    true => "see to the cable, or the switch",
                    false => "bring the pod's end up",
                },
            ),
            Some(link) => findings.ok(name, format!("up, MTU {}", link.link.mtu)),
        }
    }
}

/// A queue belongs to one worker.
pub(super) fn queues(facts: &Facts, findings: &mut Findings) {
    let workers = facts.workers().len();
    for name in facts.uplinks() {
        let Some(link) = facts.link(name) else {
            continue;
        };
        let told = facts.queues.get(name).copied();
        let queues = told.unwrap_or(link.rx_queues);
        match queues as usize {
            less if less < workers => findings.warn(
                name,
                format!("{queues} queues for {workers} workers: some receive nothing from it"),
                format!("ethtool -L {name} combined {workers}, or fewer dataplane.workers"),
            ),
            _ => findings.ok(name, format!("{queues} queues for {workers} workers")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Verdict::{Fault, Ok, Warning};
    use super::super::facts::Control;
    use super::super::testing::{found, healthy, link, verdict};

    #[test]
    fn named_interfaces_exist_and_are_up() {
        let mut facts = healthy();
        link(&mut facts, "eth0").link.up = false;
        assert_eq!(
            found("interface", &facts),
            [(Fault, "eth0".to_owned(), "ip link set eth0 up".to_owned())]
        );
        let mut facts = healthy();
        link(&mut facts, "veth-a").carrier = false;
        assert_eq!(verdict("interface", &facts), Fault);
        let mut facts = healthy();
        facts.links.retain(|link| link.link.name != "veth-a");
        assert_eq!(verdict("interface", &facts), Warning);
        facts.links.clear();
        assert_eq!(verdict("interface", &facts), Fault);
        facts.named.clear();
        assert_eq!(verdict("interface", &facts), Fault);
        facts.control = Control::Away;
        assert_eq!(verdict("interface", &facts), Warning);
    }

    #[test]
    fn each_worker_has_a_queue() {
        let mut facts = healthy();
        facts.queues.insert("eth0".to_owned(), 1);
        facts.control = Control::Away;
        assert_eq!(verdict("queues", &facts), Ok);
        facts.configuration.config.dataplane.workers = 4;
        assert_eq!(verdict("queues", &facts), Warning);
        facts.queues.clear();
        link(&mut facts, "eth0").rx_queues = 4;
        assert_eq!(verdict("queues", &facts), Ok);
    }
}
