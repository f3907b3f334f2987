//! Ports: interfaces with a pod or other nodes behind them.

use std::collections::BTreeSet;
use std::net::IpAddr;

use podway_proto::control::{PortRoleSpec, PortSpec};
use podway_proto::types::MacAddr;
use podway_proto::{ErrorBody, ErrorCode};

use super::node::check_node_and_pod;
use super::values::{check_interface_name, check_mac, check_unicast};
use super::{Check, Desired, Fixed, MAX_LIST, exists, invalid, not_found};

impl Desired {
    /// Makes an interface a port.
    ///
    /// # Errors
    /// When it is one with other values, an address is another pod's, or the values make no port.
    pub fn add_port(&mut self, port: PortSpec, fixed: Fixed<'_>) -> Check {
        let interface = &port.interface;
        check_interface_name(interface)?;
        if let PortRoleSpec::Pod { addresses, mac, .. } = &port.role {
            self.check_pod(interface, addresses, *mac)?;
        }
        let configured = fixed.uplink == Some(interface.as_str());
        match (self.ports.get(interface), &port.role) {
            (Some(old), role) if old == role => Ok(()),
            (Some(_), _) => Err(exists(format!(
                "{interface} is a port with other values; delete it first: podway port del \
                 {interface}"
            ))),
            (None, PortRoleSpec::Pod { .. }) if configured => Err(exists(format!(
                "{interface} is the configuration's uplink; change the file and restart"
            ))),
            // The file says that much; only what it does not say has to be kept.
            (
                None,
                PortRoleSpec::Uplink {
                    accept_partial_checksums: None,
                },
            ) if configured => Ok(()),
            (None, _) => {
                self.ports.insert(port.interface, port.role);
                Ok(())
            }
        }
    }

    fn check_pod(&self, interface: &str, addresses: &[IpAddr], mac: Option<MacAddr>) -> Check {
        if addresses.is_empty() || addresses.len() > MAX_LIST {
            return Err(invalid(format!("give the pod 1 to {MAX_LIST} addresses")));
        }
        if let Some(mac) = mac {
            check_mac(mac, "pod")?;
        }
        let mut seen = BTreeSet::new();
        for address in addresses {
            check_unicast(*address, "a pod's address")?;
            if !seen.insert(address) {
                return Err(invalid(format!("address {address} was given twice")));
            }
            let mut nodes = self.nodes.values();
            nodes.try_for_each(|node| check_node_and_pod(node, *address))?;
        }
        let others = self.ports.iter().filter(|(name, _)| *name != interface);
        for (name, role) in others {
            let PortRoleSpec::Pod {
                addresses: theirs, ..
            } = role
            else {
                continue;
            };
            if let Some(address) = theirs.iter().find(|theirs| seen.contains(theirs)) {
                return Err(exists(format!(
                    "address {address} is the pod's behind {name}"
                )));
            }
        }
        Ok(())
    }

    /// Leaves an interface to the kernel.
    ///
    /// # Errors
    /// When it is no port, or the configuration makes it one.
    pub fn delete_port(&mut self, interface: &str, fixed: Fixed<'_>) -> Check {
        if self.ports.remove(interface).is_some() {
            return Ok(());
        }
        if fixed.uplink == Some(interface) {
            return Err(ErrorBody::new(
                ErrorCode::Busy,
                format!("{interface} is the configuration's uplink; change the file and restart"),
            ));
        }
        Err(not_found(format!(
            "{interface} is no port; see podway port show"
        )))
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{FIXED, pod, refused};
    use super::*;

    #[test]
    fn ports_that_cannot_be_are_refused() {
        let add = |spec: PortSpec| move |desired: &mut Desired| desired.add_port(spec, FIXED);
        refused(ErrorCode::AlreadyExists, add(pod("veth-b", "10.0.0.2")));
        refused(ErrorCode::AlreadyExists, add(pod("veth-a", "10.0.0.3")));
        refused(ErrorCode::AlreadyExists, add(pod("eth0", "10.0.0.3")));
        refused(ErrorCode::Invalid, add(pod("veth-b", "10.0.0.0")));
        refused(ErrorCode::Invalid, add(pod("veth-b", "192.168.1.2")));
        refused(ErrorCode::Invalid, add(pod("veth-b", "ff02::1")));
        refused(
            ErrorCode::Invalid,
            add(pod("a-name-that-is-too-long", "10.0.0.3")),
        );
        refused(ErrorCode::Invalid, add(pod("a/b", "10.0.0.3")));
        refused(ErrorCode::NotFound, |desired| {
            desired.delete_port("veth-b", FIXED)
        });
        refused(ErrorCode::Busy, |desired| {
            desired.delete_port("eth0", FIXED)
        });
    }

    #[test]
    fn the_configured_uplink_can_be_added_again() {
        let mut desired = Desired::default();
        let uplink = |accept_partial_checksums| PortSpec {
            interface: "eth0".into(),
            role: PortRoleSpec::Uplink {
                accept_partial_checksums,
            },
        };
        desired.add_port(uplink(None), FIXED).unwrap();
        assert!(desired.ports.is_empty());
        desired.add_port(uplink(Some(false)), FIXED).unwrap();
        assert_eq!(desired.ports["eth0"], uplink(Some(false)).role);
        let error = desired.add_port(uplink(None), FIXED).unwrap_err();
        assert_eq!(error.code, ErrorCode::AlreadyExists);
        desired.delete_port("eth0", FIXED).unwrap();
        desired.add_port(uplink(None), FIXED).unwrap();
        assert!(desired.ports.is_empty());
    }
}
