//! The configuration and the daemons, by what control says.

use podway_proto::control::DataplaneLink;

use super::facts::Control;
use super::{Facts, Findings};

const VERSION: &str = env!("CARGO_PKG_VERSION");

pub(super) fn configuration(facts: &Facts, findings: &mut Findings) {
    let configuration = &facts.configuration;
    let path = configuration.path.as_deref().unwrap_or_default();
    match (&configuration.error, &configuration.path) {
        (Some(error), _) => findings.fault(path, error, format!("podway config check {path}")),
        (None, Some(_)) => findings.ok(path, "is a valid configuration"),
        (None, None) => findings.ok("", "there is no file: the defaults count"),
    }
}

pub(super) fn control(facts: &Facts, findings: &mut Findings) {
    match &facts.control {
        Control::Running(status) => {
            findings.ok(
                &status.node,
                format!("podway-control runs (pid {})", status.pid),
            );
        }
        Control::Away => findings.warn(
            "",
            "podway-control does not run, so what it would tell is not checked",
            "start podway-control, or name its --run-dir",
        ),
        Control::Failed {
            reason,
            for_want_of_rights: true,
        } => findings.warn("", reason, "run podway doctor as root"),
        Control::Failed { reason, .. } => {
            findings.fault("", reason, "see the log of podway-control")
        }
    }
}

pub(super) fn version(facts: &Facts, findings: &mut Findings) {
    let control = facts
        .status()
        .map(|s| ("podway-control", s.version.as_str()));
    let dataplane = facts
        .dataplane()
        .map(|s| ("podway-dataplane", s.version.as_str()));
    for (name, version) in control.into_iter().chain(dataplane) {
        match version {
            VERSION => findings.ok(name, VERSION),
            other => findings.warn(
                name,
                format!("is version {other}, and this command {VERSION}"),
                format!("restart {name} after an upgrade"),
            ),
        }
    }
}

pub(super) fn dataplane(facts: &Facts, findings: &mut Findings) {
    let Some(status) = facts.status() else {
        return;
    };
    match &status.dataplane {
        DataplaneLink::Disconnected { reason } => findings.fault(
            "",
            format!("podway-control has no connection to it: {reason}"),
            "start podway-dataplane with the same --run-dir",
        ),
        DataplaneLink::Syncing { refused, .. } | DataplaneLink::Synced { refused, .. }
            if !refused.is_empty() =>
        {
            for refusal in refused {
                findings.fault("", format!("it has refused {refusal}"), "see podway status");
            }
        }
        DataplaneLink::Syncing { .. } => findings.warn(
            "",
            "it has not been told everything yet",
            "look again; podway status says what it waits for",
        ),
        DataplaneLink::Synced { status: None, .. } => {
            findings.fault("", "it is connected and does not answer", "see its log")
        }
        DataplaneLink::Synced {
            status: Some(_), ..
        } => findings.ok("", "it holds this node's facts"),
    }
}

pub(super) fn gate(facts: &Facts, findings: &mut Findings) {
    let Some(dataplane) = facts.dataplane() else {
        return;
    };
    match dataplane.gate_open {
        true => findings.ok("", "the fast path is open"),
        false => findings.fault(
            "",
            "the fast path is closed: the kernel carries all packets",
            "see podway status and the log of podway-dataplane; it opens when all is told",
        ),
    }
}

pub(super) fn drift(facts: &Facts, findings: &mut Findings) {
    let Some(status) = facts.status() else {
        return;
    };
    let drift = &status.drift;
    if !drift.found.is_empty() {
        let found = drift.found.join("; ");
        return findings.fault(
            "",
            found,
            "it is told anew at once; if it comes back, see the logs",
        );
    }
    match drift.mended {
        0 => findings.ok("", "the dataplane holds what it was told"),
        times => findings.warn(
            "",
            format!(
                "mended {times} times, last: {}",
                drift.last_mended.join("; ")
            ),
            "see who else speaks to dataplane.sock, or report it",
        ),
    }
}

pub(super) fn kernel_state(facts: &Facts, findings: &mut Findings) {
    let Some(status) = facts.status() else {
        return;
    };
    let kernel = &status.kernel;
    for error in &kernel.errors {
        findings.fault(
            &kernel.device,
            error,
            "see podway status; it is tried again every second",
        );
    }
    match kernel.in_sync {
        true => findings.ok(
            &kernel.device,
            "devices, routes and neighbours are as they should be",
        ),
        false if kernel.errors.is_empty() => findings.fault(
            &kernel.device,
            "the VXLAN device is missing",
            "see podway status; the device is made when the uplink has an address",
        ),
        false => {}
    }
}

pub(super) fn port(facts: &Facts, findings: &mut Findings) {
    for named in &facts.named {
        // That its link is missing is told by the check of interfaces.
        let is_there = facts.link(&named.interface).is_some();
        if let Some(waiting) = named.waiting.as_ref().filter(|_| is_there) {
            findings.warn(
                &named.interface,
                format!("the port waits for {waiting}"),
                "see podway port show",
            );
        }
    }
}

/// Words in hints of control that have a check of their own.
const CHECKED: [&str; 7] = [
    "net.ipv4.ip_forward",
    "net.ipv6.conf.all.forwarding",
    "conf.all.rp_filter",
    super::forwarding::DROPS_FORWARDED,
    "there is no uplink",
    "the uplink ",
    "the kernel has no route to node",
];

pub(super) fn hint(facts: &Facts, findings: &mut Findings) {
    let hints = facts.status().into_iter().flat_map(|status| &status.hints);
    for hint in hints.filter(|hint| !CHECKED.iter().any(|words| hint.contains(words))) {
        findings.warn("", hint, "as it says");
    }
}

#[cfg(test)]
mod tests {
    use super::super::Verdict::{Fault, Ok, Warning};
    use super::super::testing::{found, healthy, status, verdict};
    use super::*;

    #[test]
    fn the_file_is_named() {
        let mut facts = healthy();
        facts.configuration.path = None;
        assert_eq!(verdict("configuration", &facts), Ok);
        facts.configuration.path = Some("a.toml".to_owned());
        facts.configuration.error = Some("line 2".to_owned());
        let remedy = "podway config check a.toml".to_owned();
        assert_eq!(
            found("configuration", &facts),
            [(Fault, "a.toml".to_owned(), remedy)]
        );
    }

    #[test]
    fn control_that_does_not_run_is_no_fault() {
        let mut facts = healthy();
        facts.control = Control::Away;
        assert_eq!(verdict("control", &facts), Warning);
        let failed = |for_want_of_rights| Control::Failed {
            reason: "why".to_owned(),
            for_want_of_rights,
        };
        facts.control = failed(true);
        assert_eq!(verdict("control", &facts), Warning);
        facts.control = failed(false);
        assert_eq!(verdict("control", &facts), Fault);
    }

    #[test]
    fn what_control_says_of_the_dataplane_has_its_verdict() {
        let with = |link| {
            let mut facts = healthy();
            status(&mut facts).dataplane = link;
            verdict("dataplane", &facts)
        };
        let reason = "nobody listens".to_owned();
        assert_eq!(with(DataplaneLink::Disconnected { reason }), Fault);
        let syncing = |refused| DataplaneLink::Syncing {
            refused,
            status: None,
        };
        assert_eq!(with(syncing(Vec::new())), Warning);
        assert_eq!(with(syncing(vec!["port eth0: taken".to_owned()])), Fault);
        let silent = DataplaneLink::Synced {
            refused: Vec::new(),
            status: None,
        };
        assert_eq!(with(silent), Fault);
    }

    #[test]
    fn closed_gates_drift_and_kernels_out_of_line_are_faults() {
        let mut facts = healthy();
        if let DataplaneLink::Synced { status, .. } = &mut status(&mut facts).dataplane {
            status.as_mut().unwrap().gate_open = false;
        }
        assert_eq!(verdict("gate", &facts), Fault);
        let mut facts = healthy();
        status(&mut facts).drift.mended = 1;
        assert_eq!(verdict("drift", &facts), Warning);
        status(&mut facts).drift.found = vec!["routes".to_owned()];
        assert_eq!(verdict("drift", &facts), Fault);
        let mut facts = healthy();
        status(&mut facts).kernel.in_sync = false;
        assert_eq!(verdict("kernel-state", &facts), Fault);
        status(&mut facts).kernel.errors = vec!["why".to_owned(), "and why".to_owned()];
        assert_eq!(found("kernel-state", &facts).len(), 2);
        let mut facts = healthy();
        status(&mut facts).version = "0.0.1".to_owned();
        assert_eq!(verdict("version", &facts), Warning);
    }

    #[test]
    fn hints_are_told_once() {
        let mut facts = healthy();
        facts.named[1].waiting = Some("the pod's MAC".to_owned());
        assert_eq!(verdict("port", &facts), Warning);
        status(&mut facts).hints = vec![
            "the kernel does not forward IPv4: sysctl -w net.ipv4.ip_forward=1".to_owned(),
            "route 10.9.0.0/16: the router is on no link".to_owned(),
        ];
        assert_eq!(found("hint", &facts).len(), 1);
    }
}
