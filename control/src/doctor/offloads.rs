//! Offloads that speed rests on: packets cross as super-frames only where nobody cuts them before.

use std::collections::BTreeSet;

use super::facts::{PodEnd, UnseenPod};
use super::{Facts, Findings};
use crate::netlink::LinkKind;

/// Those of the uplink, with what is lost without one.
const UPLINK: [(&str, &str); 3] = [
    ("rx-gro", "what is received is not joined (GRO)"),
    (
        "tx-tcp-segmentation",
        "the kernel cuts TCP in place of the interface (TSO)",
    ),
    (
        "tx-generic-segmentation",
        "super-frames are cut before the interface (GSO)",
    ),
];
/// Those of a pod's interface.
const POD: [(&str, &str); 2] = [
    (
        "tx-checksum-ip-generic",
        "the pod finishes checksums itself, and so cuts TCP, too",
    ),
    (
        "tx-tcp-segmentation",
        "the pod cuts its TCP to packets (TSO)",
    ),
];

fn off(
    features: &BTreeSet<String>,
    wanted: &[(&'static str, &'static str)],
) -> Vec<(&'static str, &'static str)> {
    let off = wanted.iter().filter(|(name, _)| !features.contains(*name));
    off.copied().collect()
}

/// `ethtool` is the beginning of the command that switches them on.
fn tell(findings: &mut Findings, subject: &str, ethtool: &str, off: &[(&str, &str)]) {
    if off.is_empty() {
        return findings.ok(subject, "the offloads that speed rests on are in use");
    }
    let (names, losses): (Vec<&str>, Vec<&str>) = off.iter().copied().unzip();
    let switches: Vec<String> = names.iter().map(|name| format!("{name} on")).collect();
    findings.warn(
        subject,
        format!("{}: slower", losses.join("; ")),
        format!("{ethtool} {}", switches.join(" ")),
    );
}

pub(super) fn uplink(facts: &Facts, findings: &mut Findings) {
    for name in facts.uplinks() {
        let Some(link) = facts.link(name) else {
            continue;
        };
        let Some(features) = facts.features.get(name) else {
            findings.warn(
                name,
                "its features are not told",
                format!("see ethtool -k {name}"),
            );
            continue;
        };
        let mut off = off(features, &UPLINK);
        let sums = features.iter().any(|f| f.starts_with("tx-checksum-ip"));
        if !sums {
            off.push((
                "tx-checksum-ip-generic",
                match link.link.kind {
                    LinkKind::Veth => "the kernel finishes the checksum of each packet, which this veth need not have",
                    _ => "the kernel finishes the checksum of each packet",
                },
            ));
        }
        tell(findings, name, &format!("ethtool -K {name}"), &off);
    }
}

pub(super) fn pod(facts: &Facts, findings: &mut Findings) {
    for pod in &facts.pods {
        let Some(features) = &pod.features else {
            findings.warn(
                &pod.port,
                "the features of the pod's interface are not told",
                "run it as root",
            );
            continue;
        };
        let PodEnd {
            namespace,
            interface,
            ..
        } = pod;
        let ethtool = format!("nsenter --net={namespace} ethtool -K {interface}");
        tell(findings, &pod.port, &ethtool, &off(features, &POD));
    }
    for UnseenPod { port, reason } in &facts.unseen {
        findings.warn(
            port,
            format!("the pod's interface is not looked at, nor is its MTU: {reason}"),
            "run podway doctor as root, where it sees the processes of all pods; or look in the pod",
        );
    }
}

#[cfg(test)]
mod tests {
    use super::super::Verdict::{Ok, Warning};
    use super::super::facts::UnseenPod;
    use super::super::testing::{found, healthy, verdict};

    #[test]
    fn offloads_that_are_off_are_named_with_the_switch() {
        let mut facts = healthy();
        let features = facts.features.get_mut("eth0").unwrap();
        features.remove("rx-gro");
        features.remove("tx-tcp-segmentation");
        let remedy = "ethtool -K eth0 rx-gro on tx-tcp-segmentation on".to_owned();
        assert_eq!(
            found("offloads", &facts),
            [(Warning, "eth0".to_owned(), remedy)]
        );
        facts.features.get_mut("eth0").unwrap().clear();
        assert_eq!(verdict("offloads", &facts), Warning);
        facts.features.clear();
        assert_eq!(verdict("offloads", &facts), Warning, "not told");
    }

    #[test]
    fn a_nic_may_have_checksums_by_version() {
        let mut facts = healthy();
        let features = facts.features.get_mut("eth0").unwrap();
        features.remove("tx-checksum-ip-generic");
        features.insert("tx-checksum-ipv4".to_owned());
        assert_eq!(verdict("offloads", &facts), Ok);
    }

    #[test]
    fn offloads_of_pods_are_named() {
        let mut facts = healthy();
        facts.pods[0]
            .features
            .as_mut()
            .unwrap()
            .remove("tx-checksum-ip-generic");
        let remedy = "nsenter --net=/run/netns/pod-a ethtool -K net1 tx-checksum-ip-generic on";
        let expected = (Warning, "veth-a".to_owned(), remedy.to_owned());
        assert_eq!(found("pod-offloads", &facts), [expected]);
        facts.pods[0].features = None;
        assert_eq!(found("pod-offloads", &facts)[0].0, Warning);
    }

    #[test]
    fn pods_that_are_not_looked_at_are_told() {
        let mut facts = healthy();
        facts.unseen.push(UnseenPod {
            port: "veth-b".to_owned(),
            reason: "why".to_owned(),
        });
        let found = found("pod-offloads", &facts);
        let found: Vec<_> = found.iter().map(|(v, port, _)| (*v, &**port)).collect();
        assert_eq!(found, [(Warning, "veth-b")]);
    }
}
