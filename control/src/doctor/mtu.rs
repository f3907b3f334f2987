//! Packets that are too large for a part of their way.

use super::facts::{Outcome, echo_headers};
use super::{Facts, Findings};

/// A packet as large as the uplink takes is sent to each node.
pub(super) fn uplink(facts: &Facts, findings: &mut Findings) {
    let mtu = facts.status().and_then(|status| status.uplink_mtu);
    for probe in &facts.paths {
        let (node, size, address) = (&probe.node, probe.size, probe.address);
        let path = facts.others().find(|other| other.underlay == address);
        let narrow = path.and_then(|node| node.path.as_ref());
        let narrow = narrow.filter(|path| mtu.is_some_and(|mtu| u32::from(path.mtu) < mtu));
        match &probe.outcome {
            Outcome::Lost => findings.fault(
                node,
                format!(
                    "packets of {size} bytes are lost on the way to {address} and nobody says so; \
                     small ones arrive"
                ),
                "give the uplinks of all nodes the MTU that the network between them carries",
            ),
            Outcome::TooBig(fits) => findings.warn(
                node,
                format!(
                    "the way to {address} carries {fits} bytes and the uplink {size}: packets are \
                     cut smaller"
                ),
                format!("give the uplink an MTU of {fits}, or the network one of {size}"),
            ),
            Outcome::NotSent(error) => findings.warn(
                node,
                format!("no packet of {size} bytes could be sent to {address}: {error}"),
                format!("run podway doctor as root, and see ip route get {address}"),
            ),
            Outcome::NoWay => findings.warn(
                node,
                format!("there is no way to {address}"),
                format!("give this node a route there, and see ip route get {address}"),
            ),
            Outcome::NotAsked => findings.warn(
                node,
                format!(
                    "the way to {address} was not looked at, since too many nodes before it do not \
                     answer"
                ),
                format!(
                    // Which does not count headers.
                    "see to those; and ping -M do -s {} {address}",
                    size.saturating_sub(echo_headers(address))
                ),
            ),
            Outcome::NoAnswer => findings.warn(
                node,
                format!("{address} answers no pings, so what the way carries is not known"),
                "let ICMP echo pass between nodes; see the check node on whether it is reached",
            ),
            Outcome::Fits => match narrow {
                Some(path) => findings.warn(
                    node,
                    format!(
                        "the kernel takes the way to {address} for one of {} bytes",
                        path.mtu
                    ),
                    match address.is_ipv6() {
                        true => format!("ip route get {address}; ip -6 route flush cache"),
                        false => format!("ip route get {address}; ip route flush cache"),
                    },
                ),
                None => findings.ok(node, format!("packets of {size} bytes arrive at {address}")),
            },
        }
    }
}

/// What the pods' packets may have so that they fit the way to each node.
pub(super) fn pod(facts: &Facts, findings: &mut Findings) {
    let Some(status) = facts.status() else {
        return;
    };
    let Some(fits) = status.pod_mtu else {
        return;
    };
    let by = match &status.pod_mtu_by {
        Some(node) => format!(", for the path to {node}"),
        None => String::new(),
    };
    for pod in &facts.pods {
        let mtu = pod.route_mtu.unwrap_or(pod.mtu).min(pod.mtu);
        match mtu {
            large if large > fits => findings.warn(
                &pod.port,
                format!("the pod makes packets of {mtu} bytes, and {fits} fit{by}: large ones are refused"),
                format!("give the pod's routes mtu {fits}, as the container network's configuration may say"),
            ),
            _ => findings.ok(&pod.port, format!("the pod makes packets of {mtu} bytes, and {fits} fit")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Verdict::{Fault, Ok, Warning};
    use super::super::testing::{found, healthy, verdict};
    use super::*;

    #[test]
    fn what_became_of_a_large_packet_has_its_verdict() {
        for (outcome, expected) in [
            (Outcome::Fits, Ok),
            (Outcome::TooBig(1400), Warning),
            (Outcome::Lost, Fault),
            (Outcome::NoAnswer, Warning),
            (Outcome::NotSent("no".to_owned()), Warning),
            (Outcome::NoWay, Warning),
            (Outcome::NotAsked, Warning),
        ] {
            let mut facts = healthy();
            facts.paths[0].outcome = outcome.clone();
            assert_eq!(verdict("uplink-mtu", &facts), expected, "{outcome:?}");
        }
        let mut late = healthy();
        late.paths[0].outcome = Outcome::NotAsked;
        let remedy = "see to those; and ping -M do -s 1472 192.168.1.2".to_owned();
        let expected = [(Warning, "node-b".to_owned(), remedy)];
        assert_eq!(found("uplink-mtu", &late), expected);
        late.paths[0].address = "fd77::2".parse().unwrap();
        let remedy = "see to those; and ping -M do -s 1452 fd77::2".to_owned();
        let expected = [(Warning, "node-b".to_owned(), remedy)];
        assert_eq!(found("uplink-mtu", &late), expected);
        let mut learned = healthy();
        let other = learned.nodes.iter_mut().find(|node| !node.local).unwrap();
        other.path.as_mut().unwrap().mtu = 1400;
        assert_eq!(verdict("uplink-mtu", &learned), Warning);
        // What is known of the way to the first address says nothing of another one.
        learned.paths[0].address = "fd77::2".parse().unwrap();
        assert_eq!(verdict("uplink-mtu", &learned), Ok);
    }

    #[test]
    fn pods_make_packets_that_fit() {
        let mut facts = healthy();
        facts.pods[0].mtu = 9000;
        assert_eq!(verdict("pod-mtu", &facts), Ok, "by its route");
        facts.pods[0].route_mtu = None;
        assert_eq!(verdict("pod-mtu", &facts), Warning);
        facts.pods[0].mtu = 1450;
        assert_eq!(verdict("pod-mtu", &facts), Ok);
        facts.pods[0].route_mtu = Some(1451);
        assert_eq!(verdict("pod-mtu", &facts), Ok, "the smaller one counts");
    }
}
