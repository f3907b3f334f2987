//! Routes that are added.

use ipnet::IpNet;
use podway_proto::control::{RouteSpec, ViaSpec};
use podway_proto::types::check_multipath;

use super::values::{check_interface_name, check_prefix, check_unicast};
use super::{Check, Desired, Fixed, exists, invalid, not_found};
use crate::index::Index;

impl Desired {
    /// Adds a route; with `replace` also in place of one to the same prefix. `index` is of this
    /// state.
    ///
    /// # Errors
    /// When the prefix is taken, the node is not known, or the values make no route.
    pub fn set_route(
        &mut self,
        route: RouteSpec,
        replace: bool,
        fixed: Fixed<'_>,
        index: &Index,
    ) -> Check {
        let prefix = route.prefix;
        check_prefix(prefix)?;
        if let ViaSpec::Multipath { members } = &route.via {
            let checked = check_multipath(members, ViaSpec::is_multipath);
            checked.map_err(|error| invalid(error.to_string()))?;
        }
        for via in route.via.members() {
            self.check_via(prefix, via, fixed, index)?;
        }
        if let Some(node) = index.node_of_cidr(prefix) {
            return Err(exists(format!(
                "{prefix} is a PodCIDR of node {node}; change it with podway node set"
            )));
        }
        match self.routes.get(&prefix) {
            Some(old) if *old != route.via && !replace => Err(exists(format!(
                "there is another route to {prefix}; change it with podway route replace"
            ))),
            _ => {
                self.routes.insert(prefix, route.via);
                Ok(())
            }
        }
    }

    fn check_via(&self, prefix: IpNet, via: &ViaSpec, fixed: Fixed<'_>, index: &Index) -> Check {
        match via {
            ViaSpec::Node { node, .. } if node == fixed.node_name => Err(invalid(format!(
                "{node} is this node; name another or a router"
            ))),
            ViaSpec::Node { node, .. } if !self.nodes.contains_key(node) => Err(not_found(
                format!("there is no node {node}; add it with podway node set"),
            )),
            ViaSpec::Node { vni: Some(vni), .. } if !fixed.has_vni(*vni) => Err(invalid(format!(
                "VNI {vni} is not configured; add it to also-vnis in the configuration of every node"
            ))),
            ViaSpec::Node { node, .. } => match index.node_in(prefix) {
                Some((other, underlay)) => Err(invalid(format!(
                    "{prefix} holds the underlay address {underlay} of node {other}; packets to \
                     that node would be sent to node {node}"
                ))),
                None => Ok(()),
            },
            ViaSpec::Multipath { .. } => Ok(()),
            ViaSpec::Gateway { address, interface } => {
                check_unicast(*address, "a router")?;
                if address.is_ipv4() != prefix.addr().is_ipv4() {
                    return Err(invalid(format!(
                        "the router {address} is of another IP version than {prefix}"
                    )));
                }
                if prefix.contains(address) && prefix.prefix_len() == prefix.max_prefix_len() {
                    return Err(invalid(format!("{address} cannot be reached via itself")));
                }
                interface.as_deref().map_or(Ok(()), check_interface_name)
            }
        }
    }

    /// Withdraws a route that was added.
    ///
    /// # Errors
    /// When there is none to exactly this prefix.
    pub fn delete_route(&mut self, prefix: IpNet) -> Check {
        match self.routes.remove(&prefix) {
            Some(_) => Ok(()),
            None => Err(not_found(format!(
                "no route to {prefix} was added; see podway route show"
            ))),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use podway_proto::ErrorCode;

    use super::super::testing::{delete_node, node, refused, set_route, two_nodes, via};
    use super::*;

    #[test]
    fn routes_that_cannot_be_are_refused() {
        let add = |spec: RouteSpec| move |desired: &mut Desired| set_route(desired, spec, false);
        let gateway = |prefix: &str, address: &str| RouteSpec {
            prefix: prefix.parse().unwrap(),
            via: ViaSpec::Gateway {
                address: address.parse().unwrap(),
                interface: None,
            },
        };
        refused(ErrorCode::NotFound, add(via("10.8.0.0/16", "c")));
        refused(ErrorCode::Invalid, add(via("10.8.0.0/16", "a")));
        refused(ErrorCode::Invalid, add(via("10.8.0.1/16", "b")));
        refused(ErrorCode::AlreadyExists, add(via("10.0.1.0/24", "b")));
        refused(
            ErrorCode::AlreadyExists,
            add(gateway("10.9.0.0/16", "192.168.1.9")),
        );
        refused(ErrorCode::Invalid, add(gateway("10.8.0.0/16", "fd00::9")));
        refused(ErrorCode::Invalid, add(gateway("10.8.0.1/32", "10.8.0.1")));
        // Nodes are reached on the underlay, and not through one of them.
        for underlay in ["192.168.0.0/16", "192.168.1.1/32", "192.168.1.2/32"] {
            refused(ErrorCode::Invalid, add(via(underlay, "b")));
        }
        // A router is a part of the underlay.
        let mut desired = two_nodes();
        let route = gateway("192.168.0.0/16", "192.168.7.9");
        set_route(&mut desired, route, false).unwrap();
        let third = node("c", "192.168.2.3", &["10.0.2.0/24"]);
        desired.set_node(third).unwrap();
        let several = |members: &[RouteSpec]| RouteSpec {
            prefix: "10.8.0.0/16".parse().unwrap(),
            via: ViaSpec::Multipath {
                members: members.iter().map(|route| route.via.clone()).collect(),
            },
        };
        let b = via("10.8.0.0/16", "b");
        let router = gateway("10.8.0.0/16", "192.168.1.9");
        let nested = several(&[b.clone(), router.clone()]);
        for (code, members) in [
            (ErrorCode::Invalid, vec![b.clone()]),
            (ErrorCode::Invalid, vec![b.clone(), b.clone()]),
            (ErrorCode::Invalid, vec![b.clone(), nested]),
            (ErrorCode::Invalid, vec![b.clone(), via("10.8.0.0/16", "a")]),
            (
                ErrorCode::NotFound,
                vec![b.clone(), via("10.8.0.0/16", "c")],
            ),
            (
                ErrorCode::Invalid,
                vec![router, gateway("10.8.0.0/16", "fd00::9")],
            ),
        ] {
            refused(code, add(several(&members)));
        }
        refused(ErrorCode::NotFound, |d| {
            d.delete_route("10.9.0.0/17".parse().unwrap())
        });
    }

    #[test]
    fn a_node_that_a_multipath_route_needs_stays() {
        let mut desired = two_nodes();
        desired.set_node(node("c", "192.168.1.3", &[])).unwrap();
        let members = ["b", "c"].map(|name| via("10.9.0.0/16", name).via);
        let route = RouteSpec {
            prefix: "10.9.0.0/16".parse().unwrap(),
            via: ViaSpec::Multipath {
                members: members.to_vec(),
            },
        };
        set_route(&mut desired, route.clone(), false).unwrap();
        for name in ["b", "c"] {
            let error = delete_node(&mut desired, name).unwrap_err();
            assert_eq!(error.code, ErrorCode::Busy, "{name}");
        }
        // With fewer next hops it is another route.
        let fewer = via("10.9.0.0/16", "b");
        let error = set_route(&mut desired, fewer.clone(), false).unwrap_err();
        assert_eq!(error.code, ErrorCode::AlreadyExists);
        set_route(&mut desired, fewer, true).unwrap();
        delete_node(&mut desired, "c").unwrap();
    }

    #[test]
    fn a_route_is_added_twice_replaced_and_deleted() {
        let mut desired = two_nodes();
        let prefix = "10.9.0.0/16".parse().unwrap();
        set_route(&mut desired, via("10.9.0.0/16", "b"), false).unwrap();
        set_route(&mut desired, via("10.9.0.0/16", "b"), false).unwrap();
        let gateway = ViaSpec::Gateway {
            address: "192.168.1.9".parse().unwrap(),
            interface: None,
        };
        let other = RouteSpec {
            prefix,
            via: gateway.clone(),
        };
        set_route(&mut desired, other, true).unwrap();
        assert_eq!(desired.routes, BTreeMap::from([(prefix, gateway)]));
        desired.delete_route(prefix).unwrap();
        assert!(desired.routes.is_empty());
    }
}
