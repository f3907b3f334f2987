//! VXLAN devices of others, which may have the tunnels in place of the kernel's own of Podway.

use super::{Facts, Findings};
use crate::kernel::is_device;
use crate::netlink::LinkKind;

pub(super) fn device(facts: &Facts, findings: &mut Findings) {
    let (port, vnis) = match facts.status() {
        Some(status) => {
            let also = status.also_vnis.iter().copied();
            (
                status.vxlan_port,
                also.chain([status.vni]).map(u32::from).collect::<Vec<_>>(),
            )
        }
        None => {
            let config = &facts.configuration.config;
            let also = config.also_vnis.iter().copied();
            (
                config.vxlan_port,
                also.chain([config.vni]).map(u32::from).collect(),
            )
        }
    };
    let mut found = false;
    for link in &facts.links {
        let LinkKind::Vxlan(vxlan) = &link.link.kind else {
            continue;
        };
        let name = &link.link.name;
        if is_device(name) {
            continue;
        }
        let same_vni = vnis.contains(&vxlan.vni);
        let what = format!(
            "the VXLAN device has VNI {} and port {}",
            vxlan.vni, vxlan.port
        );
        match (same_vni, vxlan.port == port) {
            (true, true) => {
                found = true;
                findings.fault(
                    name,
                    what + ", both Podway's: the kernel gives it the tunnels",
                    format!("ip link del {name}, or another vni"),
                );
            }
            (false, true) => {
                found = true;
                findings.warn(
                    name,
                    what + ", the latter Podway's: both share the port, and Podway leaves its tunnels alone",
                    "none is needed; another vxlan-port keeps them apart",
                );
            }
            (true, false) => {
                found = true;
                findings.warn(
                    name,
                    what + ", the former Podway's: it may be another network's of the same nodes",
                    format!("ip link del {name}, if Podway has taken its place"),
                );
            }
            (false, false) => {}
        }
    }
    if !found {
        findings.ok(
            "",
            format!("no other device has VNI or port {port} of Podway"),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::super::Verdict::{Fault, Ok, Warning};
    use super::super::facts::Control;
    use super::super::testing::{healthy, verdict};
    use super::*;
    use crate::netlink::Vxlan;

    #[test]
    fn devices_of_others_with_vni_or_port_are_named() {
        for (name, vni, port, expected) in [
            ("flannel.1", 1, 4789, Fault),
            ("flannel.1", 1, 8472, Warning),
            ("vx9", 9, 4789, Warning),
            ("vx9", 9, 8472, Ok),
            ("podway.vx", 1, 4789, Ok),
        ] {
            let mut facts = healthy();
            let mut link = facts.links[0].clone();
            link.link.name = name.to_owned();
            link.link.kind = LinkKind::Vxlan(Vxlan {
                vni,
                port,
                local: None,
                link: 0,
                learning: false,
                zero_checksum_v6: false,
            });
            facts.links.push(link);
            assert_eq!(
                verdict("vxlan-device", &facts),
                expected,
                "{name} {vni} {port}"
            );
            facts.control = Control::Away;
            assert_eq!(
                verdict("vxlan-device", &facts),
                expected,
                "before the start"
            );
        }
    }
}
