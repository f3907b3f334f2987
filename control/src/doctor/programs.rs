//! BPF programs on links.

use super::{Facts, Findings};

/// What the names of Podway's programs begin with.
const OURS: &str = "podway";

pub(super) fn generic(facts: &Facts, findings: &mut Findings) {
    for name in facts.uplinks() {
        // One that is missing is named by the check of interfaces, here as below.
        let Some(link) = facts.link(name) else {
            continue;
        };
        match link.xdp {
            Some(xdp) if xdp.generic => findings.fault(
                name,
                "an XDP program runs behind the driver (generic mode), which switches GRO off for \
                 all that the host receives",
                format!(
                    "ip link set dev {name} xdpgeneric off; or, where it is Podway's, \
                     uplink-xdp-mode = \"auto\""
                ),
            ),
            _ => findings.ok(name, "no XDP program runs in generic mode"),
        }
    }
}

/// An XDP program of somebody else has packets before Podway's has them.
pub(super) fn xdp(facts: &Facts, findings: &mut Findings) {
    let ports = facts.dataplane().map(|status| status.ports.as_slice());
    let ports = ports.unwrap_or_default();
    for named in &facts.named {
        let name = &named.interface;
        let Some(link) = facts.link(name) else {
            continue;
        };
        let Some(xdp) = link.xdp else {
            findings.ok(name, "no XDP program of somebody else");
            continue;
        };
        let number = xdp.program;
        let off = format!("ip link set dev {name} xdp off, if it is not needed");
        let known = facts.programs.names.get(&number);
        let what = match known {
            Some(known) => format!("the XDP program {known} (number {number})"),
            None => format!("the XDP program with the number {number}"),
        };
        let is_named_so = known.is_some_and(|known| known.starts_with(OURS));
        let port = ports.iter().find(|port| port.interface == *name);
        let by_xdp =
            port.is_some_and(|port| ["native", "generic"].contains(&port.xdp_mode.as_str()));
        match &facts.programs.ours {
            Some(ours) if ours.contains(&number) => {
                findings.ok(name, "the dataplane's XDP program")
            }
            Some(_) if is_named_so => findings.fault(
                name,
                what + " is left of a Podway that has ended",
                format!("ip link set dev {name} xdp off"),
            ),
            Some(_) if port.is_some() && !by_xdp => findings.warn(
                name,
                what + " is somebody else's and has packets before Podway's program has them",
                off,
            ),
            Some(_) => findings.fault(
                name,
                what + " is somebody else's, in the place of Podway's",
                off,
            ),
            None => findings.warn(
                name,
                what + " is there; whose it is cannot be seen",
                "run it as root",
            ),
        }
    }
}

pub(super) fn tcx(facts: &Facts, findings: &mut Findings) {
    let Some(tcx) = &facts.programs.tcx else {
        findings.warn(
            "",
            "tcx programs cannot be listed",
            "install bpftool and run podway doctor as root",
        );
        return;
    };
    let ours = facts.programs.ours.clone().unwrap_or_default();
    let stale: Vec<_> = tcx
        .iter()
        .filter(|program| program.name.starts_with(OURS) && !ours.contains(&program.program))
        .collect();
    for program in &stale {
        let interface = &program.interface;
        let what = format!(
            "the tcx program {} (number {})",
            program.name, program.program
        );
        match facts.programs.ours {
            Some(_) => findings.fault(
                interface,
                what + " is of no Podway that is known here",
                format!("end the process that holds it: bpftool link show; bpftool net show dev {interface}"),
            ),
            None => findings.warn(interface, what + " is there; whose it is cannot be seen", "run it as root"),
        }
    }
    if stale.is_empty() {
        findings.ok("", "no tcx program of a Podway that has ended");
    }
}

#[cfg(test)]
mod tests {
    use super::super::Verdict::{Fault, Ok, Warning};
    use super::super::facts::{Control, Tcx};
    use super::super::testing::{healthy, link, verdict};
    use super::*;
    use crate::netlink::Xdp;

    fn with(name: &str, program: u32, generic: bool) -> Facts {
        let mut facts = healthy();
        link(&mut facts, name).xdp = Some(Xdp { program, generic });
        facts
    }

    #[test]
    fn generic_mode_on_an_uplink_is_a_fault() {
        assert_eq!(verdict("xdp-generic", &with("eth0", 99, true)), Fault);
        assert_eq!(verdict("xdp-generic", &with("eth0", 99, false)), Ok);
        assert_eq!(
            verdict("xdp-generic", &with("veth-a", 99, true)),
            Ok,
            "of a pod"
        );
    }

    #[test]
    fn xdp_programs_of_others_are_named() {
        assert_eq!(
            verdict("xdp-program", &with("veth-a", 7, false)),
            Ok,
            "the dataplane's"
        );
        assert_eq!(
            verdict("xdp-program", &with("veth-a", 99, false)),
            Warning,
            "beside tcx"
        );
        let mut stale = with("eth0", 99, false);
        stale
            .programs
            .names
            .insert(99, "podway_redirect".to_owned());
        assert_eq!(verdict("xdp-program", &stale), Fault);
        let mut by_xdp = with("eth0", 99, false);
        if let Control::Running(status) = &mut by_xdp.control
            && let podway_proto::control::DataplaneLink::Synced { status, .. } =
                &mut status.dataplane
        {
            status.as_mut().unwrap().ports[0].xdp_mode = "native".to_owned();
        }
        assert_eq!(
            verdict("xdp-program", &by_xdp),
            Fault,
            "in the place of Podway's"
        );
        let mut unseen = with("eth0", 99, false);
        unseen.programs.ours = None;
        assert_eq!(verdict("xdp-program", &unseen), Warning);
    }

    #[test]
    fn tcx_programs_outlive_no_podway() {
        let mut facts = healthy();
        let program = |program, name: &str| Tcx {
            interface: "eth0".into(),
            program,
            name: name.into(),
        };
        facts.programs.tcx = Some(vec![
            program(7, "podway_classify"),
            program(50, "cil_from_netdev"),
        ]);
        assert_eq!(verdict("tcx-program", &facts), Ok);
        facts.programs.tcx = Some(vec![program(51, "podway_classify")]);
        assert_eq!(verdict("tcx-program", &facts), Fault);
        facts.programs.ours = None;
        assert_eq!(verdict("tcx-program", &facts), Warning);
        facts.programs.tcx = None;
        assert_eq!(verdict("tcx-program", &facts), Warning);
    }
}
