//! Offloads that speed rests on: packets cross as super-frames only where nobody cuts them before.

use std::collections::BTreeSet;

use super::facts::{PodEnd, UnseenPod};
use super::{Facts, Findings};
use crate::kernel::is_our_device;
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
/// Those of the kernel's VXLAN device, with what is lost without one of what the kernel carries.
const VXLAN: [(&str, &str); 2] = [
    (
        "tx-checksum-ip-generic",
        "the kernel finishes checksums before the tunnel, and so cuts TCP, too",
    ),
    (
        "tx-tcp-segmentation",
        "the kernel cuts TCP before the tunnel (TSO)",
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

/// What has to be off where a port has AF_XDP, which does not tell the size of segments: datagrams that
/// fit together, as a program has sent them by `UDP_SEGMENT`, look like one.
const DATAGRAMS: &str = "tx-udp-segmentation";
/// Nor does AF_XDP tell which checksum is unfinished.
const TUNNELS: &str = "; by AF_XDP a pod that makes tunnels itself needs tx off";

fn off(
    features: &BTreeSet<String>,
    wanted: &[(&'static str, &'static str)],
) -> Vec<(&'static str, &'static str)> {
    let off = wanted.iter().filter(|(name, _)| !features.contains(*name));
    off.copied().collect()
}

/// `ethtool` is the beginning of the command that switches them on; `note` is said in any case.
fn tell(findings: &mut Findings, subject: &str, ethtool: &str, off: &[(&str, &str)], note: &str) {
    if off.is_empty() {
        let message = format!("the offloads that speed rests on are in use{note}");
        return findings.ok(subject, message);
    }
    let (names, losses): (Vec<&str>, Vec<&str>) = off.iter().copied().unzip();
    let switches: Vec<String> = names.iter().map(|name| format!("{name} on")).collect();
    findings.warn(
        subject,
        format!("{}: slower{note}", losses.join("; ")),
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
        tell(findings, name, &format!("ethtool -K {name}"), &off, "");
    }
    for device in facts.links.iter().filter(|link| is_our_device(&link.link)) {
        let name = &device.link.name;
        if let Some(features) = facts.features.get(name) {
            let ethtool = format!("ethtool -K {name}");
            tell(findings, name, &ethtool, &off(features, &VXLAN), "");
        }
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
        let mut ethtool = format!("nsenter --net={namespace} ethtool -K {interface}");
        let mut note = "";
        if facts.is_by_af_xdp(&pod.port) {
            // Part of each remedy: what is switched on beside it may bring this one back.
            ethtool = format!("{ethtool} {DATAGRAMS} off");
            note = TUNNELS;
            if features.contains(DATAGRAMS) {
                findings.warn(
                    &pod.port,
                    "datagrams that the pod hands over together (UDP_SEGMENT) may arrive as one by \
                     AF_XDP",
                    &ethtool,
                );
            }
        }
        tell(findings, &pod.port, &ethtool, &off(features, &POD), note);
    }
    for UnseenPod { port, reason } in &facts.unseen {
        findings.warn(
            port,
            format!("the pod's interface is not looked at, nor is its MTU: {reason}"),
            "look in the pod: ip link, ethtool -k. Of veths podway doctor sees all as root, where it sees \
             the processes of pods",
        );
    }
}

#[cfg(test)]
mod tests {
    use podway_proto::control::DataplaneLink;

    use super::super::Verdict::{Ok, Warning};
    use super::super::facts::{Facts, UnseenPod};
    use super::super::testing::{found, healthy, link, status, verdict};
    use crate::netlink::{LinkKind, Vxlan};

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

    fn by_af_xdp(facts: &mut Facts) {
        if let DataplaneLink::Synced { status, .. } = &mut status(facts).dataplane {
            for port in &mut status.as_mut().unwrap().ports {
                port.ingress = "af-xdp copy".to_owned();
            }
        }
    }

    #[test]
    fn datagrams_of_pods_stay_apart_where_the_port_has_af_xdp() {
        let mut facts = healthy();
        let switch = |facts: &mut Facts, name: &str, on: bool| {
            let features = facts.pods[0].features.as_mut().unwrap();
            match on {
                true => assert!(features.insert(name.to_owned())),
                false => assert!(features.remove(name)),
            }
        };
        switch(&mut facts, "tx-udp-segmentation", true);
        assert_eq!(verdict("pod-offloads", &facts), Ok, "by TAP");
        by_af_xdp(&mut facts);
        let of = |remedy: &str| {
            let ethtool = "nsenter --net=/run/netns/pod-a ethtool -K net1 tx-udp-segmentation off";
            (Warning, "veth-a".to_owned(), format!("{ethtool}{remedy}"))
        };
        assert_eq!(found("pod-offloads", &facts), [of("")]);
        // Whoever does what is said of one does not undo the other.
        switch(&mut facts, "tx-checksum-ip-generic", false);
        let both = [of(""), of(" tx-checksum-ip-generic on")];
        assert_eq!(found("pod-offloads", &facts), both);
        switch(&mut facts, "tx-udp-segmentation", false);
        assert_eq!(found("pod-offloads", &facts), both[1..]);
        switch(&mut facts, "tx-checksum-ip-generic", true);
        assert_eq!(verdict("pod-offloads", &facts), Ok);
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

    #[test]
    fn offloads_of_the_kernels_tunnels_are_named() {
        let mut facts = healthy();
        let device = link(&mut facts, "veth-a");
        device.link.name = "podway.vx".to_owned();
        device.link.kind = LinkKind::Vxlan(Vxlan {
            vni: 1,
            port: 4789,
            local: None,
            link: 0,
            learning: false,
            zero_checksum_v6: false,
        });
        assert_eq!(verdict("offloads", &facts), Ok, "not told");
        let mut features = facts.features["eth0"].clone();
        facts
            .features
            .insert("podway.vx".to_owned(), features.clone());
        assert_eq!(verdict("offloads", &facts), Ok);
        features.remove("tx-checksum-ip-generic");
        features.remove("tx-tcp-segmentation");
        facts.features.insert("podway.vx".to_owned(), features);
        let remedy = "ethtool -K podway.vx tx-checksum-ip-generic on tx-tcp-segmentation on";
        let expected = [(Warning, "podway.vx".to_owned(), remedy.to_owned())];
        assert_eq!(found("offloads", &facts), expected);
    }
}
