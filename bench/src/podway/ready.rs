//! When a node is ready.

use podway_proto::control::{DataplaneLink, Status};
use podway_proto::dataplane;

/// Whether the dataplane has everything that control was told and serves these ports, and the
/// kernel underneath is in line; or what is missing.
pub(super) fn is_ready(status: &Status, ports: &[String]) -> std::result::Result<(), String> {
    let DataplaneLink::Synced {
        refused,
        status: dataplane,
    } = &status.dataplane
    else {
        return Err(format!("dataplane {:?}", status.dataplane));
    };
    if !refused.is_empty() {
        return Err(format!("the dataplane refuses: {}", refused.join("; ")));
    }
    if !status.kernel.in_sync {
        return Err(format!(
            "the kernel underneath: {}",
            status.kernel.errors.join("; ")
        ));
    }
    let Some(dataplane) = dataplane else {
        return Err("the dataplane did not tell its status in time".to_owned());
    };
    serves(dataplane, ports)
}

fn serves(status: &dataplane::Status, ports: &[String]) -> std::result::Result<(), String> {
    let attached = |name: &String| status.ports.iter().any(|port| port.interface == *name);
    let missing: Vec<_> = ports
        .iter()
        .filter(|name| !attached(name))
        .cloned()
        .collect();
    let tables = &status.tables;
    if !missing.is_empty() {
        Err(format!("not attached yet: {}", missing.join(", ")))
    } else if tables.unresolved > 0 {
        Err(format!("{} routes are not resolved", tables.unresolved))
    } else if tables.adopted < tables.generation {
        Err("a worker has not taken the tables yet".to_owned())
    } else if !status.gate_open {
        Err("the gate is closed".to_owned())
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use podway_proto::dataplane::{PortStatus, TableStatus};

    use super::*;

    fn status() -> dataplane::Status {
        dataplane::Status {
            version: String::new(),
            pid: 1,
            uptime_seconds: 0,
            log: String::new(),
            gate_open: true,
            wait: "adaptive".to_owned(),
            workers: Vec::new(),
            ports: vec![PortStatus {
                interface: "lx0".to_owned(),
                ifindex: 2,
                role: "pod".to_owned(),
                mtu: 1500,
                xdp_mode: "generic".to_owned(),
                xdp_mode_reason: None,
                ingress: String::new(),
                ingress_reason: None,
                egress: String::new(),
                queue_workers: vec![0],
                oversize: None,
            }],
            tables: TableStatus {
                generation: 4,
                adopted: 4,
                routes: 1,
                unresolved: 0,
                nodes: 1,
                neighbors: 1,
            },
        }
    }

    #[test]
    fn what_is_missing_is_told() {
        let ports = ["lx0".to_owned()];
        assert_eq!(serves(&status(), &ports), Ok(()));
        let told = |change: &dyn Fn(&mut dataplane::Status)| {
            let mut status = status();
            change(&mut status);
            serves(&status, &ports).unwrap_err()
        };
        assert_eq!(told(&|s| s.ports.clear()), "not attached yet: lx0");
        assert_eq!(
            told(&|s| s.tables.unresolved = 2),
            "2 routes are not resolved"
        );
        assert_eq!(
            told(&|s| s.tables.adopted = 3),
            "a worker has not taken the tables yet"
        );
        assert_eq!(told(&|s| s.gate_open = false), "the gate is closed");
    }
}
