//! The other nodes.

use podway_proto::control::{PathHealth, PathState, UnknownReason};

use super::{Facts, Findings};

/// More lost probes than this are a warning, in hundredths.
const LOSSY: u32 = 10;
/// Of fewer probes one that was lost says nothing: the first may come before the neighbour is known.
const FEW: u32 = 16;

pub(super) fn neighbor(facts: &Facts, findings: &mut Findings) {
    if facts.others().next().is_none() {
        findings.ok("", "there is no other node");
    }
    for node in facts.others() {
        let underlay = node.underlay;
        match (&node.path, node.next_hop_mac) {
            (None, _) => findings.fault(
                &node.name,
                "the kernel has no route to it",
                format!("ip route get {underlay}"),
            ),
            (Some(path), None) => findings.fault(
                &node.name,
                format!("nobody answers for {} on {}", path.next_hop, path.interface),
                format!(
                    "ip neigh show {} dev {}; see whether it is up, and answers ARP or neighbour \
                     solicitations",
                    path.next_hop, path.interface
                ),
            ),
            (Some(path), Some(mac)) => {
                findings.ok(
                    &node.name,
                    format!("{} is {mac} on {}", path.next_hop, path.interface),
                );
            }
        }
    }
}

pub(super) fn node(facts: &Facts, findings: &mut Findings) {
    let health = facts.status().and_then(|status| status.health.as_ref());
    if health.is_none() || facts.others().next().is_none() {
        let why = match facts.status() {
            None => "not probed: podway-control does not tell of nodes",
            Some(_) if health.is_none() => "not probed: health is switched off",
            Some(_) => "there is no other node",
        };
        return findings.ok("", why);
    }
    for error in health.into_iter().flat_map(|health| &health.errors) {
        findings.warn(
            "",
            format!("nodes are not probed: {error}"),
            "see docs/health.md",
        );
    }
    for node in facts.others() {
        let Some(health) = node.health else {
            continue;
        };
        let (underlay, overlay) = (health.underlay, health.overlay);
        let name = &node.name;
        match (underlay.state, overlay.state) {
            (PathState::Unreachable, _) => findings.fault(
                name,
                format!(
                    "{} has not answered for {} s",
                    node.underlay, underlay.seconds
                ),
                format!(
                    "see whether the node runs and its underlay is up: ping {}",
                    node.underlay
                ),
            ),
            (_, PathState::Unreachable) => findings.fault(
                name,
                format!(
                    "is reached by the underlay and not as its pods would be, for {} s",
                    overlay.seconds
                ),
                "see that vni and vxlan-port are the same there, that no rule drops tunnels there (UDP \
                 of vxlan-port), and podway doctor there",
            ),
            (
                PathState::Unknown {
                    reason: UnknownReason::NoListener,
                },
                _,
            ) => findings.warn(
                name,
                "podway-control does not answer there",
                "start podway-control there, with health on",
            ),
            (
                PathState::Unknown {
                    reason: UnknownReason::NoSocket,
                },
                _,
            )
            | (
                _,
                PathState::Unknown {
                    reason: UnknownReason::NoSocket,
                },
            ) => {
                findings.warn(
                    name,
                    "is not probed: there is no socket for it",
                    "see podway status",
                );
            }
            _ => match [underlay, overlay].iter().map(lost).max() {
                Some(percent) if percent > LOSSY => findings.warn(
                    name,
                    format!("{percent} % of the last probes were lost"),
                    "see podway node list, and the links between the nodes",
                ),
                _ => findings.ok(name, "is reached"),
            },
        }
    }
}

/// Hundredths of the last probes that were lost, once there are some.
fn lost(path: &PathHealth) -> u32 {
    match path.probes {
        0..FEW => 0,
        probes => path.lost * 100 / probes,
    }
}

#[cfg(test)]
mod tests {
    use podway_proto::control::NodeHealth;

    use super::super::Verdict::{Fault, Ok, Warning};
    use super::super::facts::Control;
    use super::super::testing::{healthy, status, verdict};
    use super::*;

    fn with(change: impl FnOnce(&mut NodeHealth)) -> Facts {
        let mut facts = healthy();
        let other = facts.nodes.iter_mut().find(|node| !node.local).unwrap();
        change(other.health.as_mut().unwrap());
        facts
    }

    #[test]
    fn nodes_that_are_not_reached_are_named() {
        let unknown = |reason| PathState::Unknown { reason };
        let (dead, listener) = (PathState::Unreachable, UnknownReason::NoListener);
        assert_eq!(verdict("node", &with(|h| h.underlay.state = dead)), Fault);
        assert_eq!(verdict("node", &with(|h| h.overlay.state = dead)), Fault);
        assert_eq!(
            verdict("node", &with(|h| h.underlay.state = unknown(listener))),
            Warning
        );
        let no_socket = unknown(UnknownReason::NoSocket);
        assert_eq!(
            verdict("node", &with(|h| h.overlay.state = no_socket)),
            Warning
        );
        let not_yet = unknown(UnknownReason::NotProbedYet);
        assert_eq!(verdict("node", &with(|h| h.underlay.state = not_yet)), Ok);
        let lossy = with(|h| h.overlay.lost = h.overlay.probes / 2);
        assert_eq!(verdict("node", &lossy), Warning);
        let begun = with(|h| (h.overlay.lost, h.overlay.probes) = (1, FEW - 1));
        assert_eq!(verdict("node", &begun), Ok, "too few to tell");
        let mut facts = healthy();
        status(&mut facts).health = None;
        assert_eq!(verdict("node", &facts), Ok, "switched off");
        facts.control = Control::Away;
        assert_eq!(verdict("node", &facts), Ok);
    }

    #[test]
    fn the_way_to_a_node_is_resolved() {
        let mut facts = healthy();
        let other = facts.nodes.iter_mut().find(|node| !node.local).unwrap();
        other.next_hop_mac = None;
        assert_eq!(verdict("neighbor", &facts), Fault);
        let other = facts.nodes.iter_mut().find(|node| !node.local).unwrap();
        other.path = None;
        assert_eq!(verdict("neighbor", &facts), Fault);
        facts.nodes.clear();
        assert_eq!(verdict("neighbor", &facts), Ok);
    }
}
