//! What the daemons may do.

use super::facts::{Process, Role};
use super::{Facts, Findings};

/// Capabilities by their bits (linux/capability.h).
const NET_ADMIN: (u32, &str) = (12, "CAP_NET_ADMIN");
const NET_RAW: (u32, &str) = (13, "CAP_NET_RAW");
const IPC_LOCK: (u32, &str) = (14, "CAP_IPC_LOCK");
const SYS_ADMIN: (u32, &str) = (21, "CAP_SYS_ADMIN");
const PERFMON: (u32, &str) = (38, "CAP_PERFMON");
const BPF: (u32, &str) = (39, "CAP_BPF");

/// Bytes of a frame of the dataplane's memory.
const FRAME: u64 = 4096;

fn has(capabilities: u64, (bit, _): (u32, &str)) -> bool {
    capabilities >> bit & 1 == 1
}

/// What a process of this role cannot do without.
fn missing(role: Role, capabilities: u64) -> Vec<&'static str> {
    let needed: &[_] = match role {
        Role::Control => &[NET_ADMIN, NET_RAW],
        Role::Dataplane | Role::This => &[NET_ADMIN, NET_RAW, BPF, PERFMON],
    };
    let lacks = |(bit, name): &(u32, &str)| {
        let by_sys_admin = [BPF.0, PERFMON.0].contains(bit) && has(capabilities, SYS_ADMIN);
        !has(capabilities, (*bit, name)) && !by_sys_admin
    };
    let missing = needed.iter().filter(|needed| lacks(needed));
    missing.map(|(_, name)| *name).collect()
}

pub(super) fn namespace(facts: &Facts, findings: &mut Findings) {
    for process in &facts.processes {
        match process.here {
            Some(true) => findings.ok(&process.name, "is in this network namespace"),
            Some(false) => findings.fault(
                &process.name,
                "is in another network namespace than this command, which therefore looks at the \
                 wrong interfaces",
                "run podway doctor there: nsenter --net=/proc/PID/ns/net podway doctor",
            ),
            None => findings.warn(
                &process.name,
                "whether it is in this network namespace cannot be seen",
                "run podway doctor as root",
            ),
        }
    }
}

pub(super) fn capabilities(facts: &Facts, findings: &mut Findings) {
    for Process {
        name,
        role,
        capabilities,
        ..
    } in &facts.processes
    {
        let Some(capabilities) = capabilities else {
            findings.warn(
                name,
                "its capabilities cannot be seen",
                "run podway doctor as root",
            );
            continue;
        };
        let missing = missing(*role, *capabilities).join(", ");
        match role {
            _ if missing.is_empty() => findings.ok(name, "has the capabilities that it needs"),
            Role::This => findings.warn(
                name,
                format!("has not {missing}, which the daemons need"),
                "start the daemons as root, or with AmbientCapabilities= of their units",
            ),
            _ => findings.fault(
                name,
                format!("has not {missing}"),
                format!(
                    "give its unit AmbientCapabilities={}",
                    missing.replace(',', "")
                ),
            ),
        }
    }
}

/// The memory of AF_XDP sockets counts as locked, unless the process may lock any.
pub(super) fn memlock(facts: &Facts, findings: &mut Findings) {
    let section = &facts.configuration.config.dataplane;
    let needed = u64::from(section.workers) * u64::from(section.frames) * FRAME;
    let of = facts
        .processes
        .iter()
        .filter(|process| process.role != Role::Control);
    for process in of {
        let may_lock = process.capabilities.is_some_and(|caps| has(caps, IPC_LOCK));
        match process.memlock {
            _ if may_lock => findings.ok(&process.name, "may lock any memory"),
            Some(limit) if limit >= needed => {
                findings.ok(
                    &process.name,
                    format!("may lock the {needed} bytes of its frames"),
                );
            }
            // What this shell may says little of the unit that will be started.
            Some(limit) if process.role == Role::This => findings.warn(
                &process.name,
                format!("may lock {limit} bytes, and the dataplane's frames have {needed}"),
                "set LimitMEMLOCK=infinity in the unit of podway-dataplane",
            ),
            Some(limit) => findings.fault(
                &process.name,
                format!("may lock {limit} bytes, and its frames have {needed}"),
                "set LimitMEMLOCK=infinity in its unit (ulimit -l unlimited)",
            ),
            None => findings.warn(
                &process.name,
                "its limit of locked memory cannot be seen",
                "run podway doctor as root",
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Verdict::{Fault, Ok, Warning};
    use super::super::testing::{healthy, verdict};
    use super::*;

    #[test]
    fn the_general_capability_stands_for_those_that_came_later() {
        let net = 1 << NET_ADMIN.0 | 1 << NET_RAW.0;
        assert_eq!(missing(Role::Dataplane, net), ["CAP_BPF", "CAP_PERFMON"]);
        assert_eq!(missing(Role::Control, net), Vec::<&str>::new());
        let all = net | 1 << SYS_ADMIN.0;
        assert_eq!(missing(Role::Dataplane, all), Vec::<&str>::new());
        assert_eq!(missing(Role::Control, 1 << NET_RAW.0), ["CAP_NET_ADMIN"]);
    }

    #[test]
    fn what_daemons_lack_is_named() {
        let with = |change: fn(&mut Process)| {
            let mut facts = healthy();
            let mut dataplane = facts.processes.iter_mut();
            change(dataplane.find(|p| p.role == Role::Dataplane).unwrap());
            facts
        };
        let bare = with(|p| p.capabilities = Some(0));
        assert_eq!(verdict("capabilities", &bare), Fault);
        assert_eq!(verdict("memlock", &bare), Ok, "the limit is high enough");
        assert_eq!(
            verdict("capabilities", &with(|p| p.capabilities = None)),
            Warning
        );
        let low = with(|p| {
            p.capabilities = Some(1 << 39);
            p.memlock = Some(65536);
        });
        assert_eq!(verdict("memlock", &low), Fault);
        let shell = with(|p| {
            p.role = Role::This;
            p.capabilities = Some(0);
            p.memlock = Some(65536);
        });
        assert_eq!(verdict("memlock", &shell), Warning);
        let locks = with(|p| p.memlock = Some(0));
        assert_eq!(verdict("memlock", &locks), Ok, "it may lock any");
        let unseen = with(|p| {
            p.capabilities = None;
            p.memlock = None;
        });
        assert_eq!(verdict("memlock", &unseen), Warning);
        assert_eq!(verdict("namespace", &with(|p| p.here = Some(false))), Fault);
        assert_eq!(verdict("namespace", &with(|p| p.here = None)), Warning);
        let before = with(|p| {
            p.role = Role::This;
            p.capabilities = Some(0);
        });
        assert_eq!(verdict("capabilities", &before), Warning);
    }
}
