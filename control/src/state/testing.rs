//! States for tests to change.

use podway_proto::ErrorCode;
use podway_proto::control::{NodeSpec, PortRoleSpec, PortSpec, RouteSpec, ViaSpec};
use podway_proto::types::Vni;

use super::{Check, Desired, Fixed};
use crate::index::Index;

pub(super) const FIXED: Fixed<'_> = Fixed {
    node_name: "a",
    uplink: Some("eth0"),
    vni: Vni::DEFAULT,
    also_vnis: &[],
};

pub(super) fn node(name: &str, underlay: &str, cidrs: &[&str]) -> NodeSpec {
    NodeSpec {
        name: name.into(),
        underlay: underlay.parse().unwrap(),
        underlay6: None,
        pod_cidrs: cidrs.iter().map(|cidr| cidr.parse().unwrap()).collect(),
        vtep_mac: None,
        mode: None,
    }
}

pub(super) fn pod(interface: &str, address: &str) -> PortSpec {
    PortSpec {
        interface: interface.into(),
        role: PortRoleSpec::Pod {
            addresses: vec![address.parse().unwrap()],
            mac: None,
            any_source: false,
        },
    }
}

pub(super) fn via(prefix: &str, node: &str) -> RouteSpec {
    RouteSpec {
        prefix: prefix.parse().unwrap(),
        via: ViaSpec::Node {
            node: node.into(),
            vni: None,
        },
    }
}

pub(super) fn set_route(desired: &mut Desired, route: RouteSpec, replace: bool) -> Check {
    let index = Index::of(desired);
    desired.set_route(route, replace, FIXED, &index)
}

pub(super) fn delete_node(desired: &mut Desired, name: &str) -> Check {
    let index = Index::of(desired);
    desired.delete_node(name, &index)
}

pub(super) fn two_nodes() -> Desired {
    let mut desired = Desired::default();
    desired
        .set_node(node("a", "192.168.1.1", &["10.0.0.0/24"]))
        .unwrap();
    desired
        .set_node(node("b", "192.168.1.2", &["10.0.1.0/24", "fd00:1::/64"]))
        .unwrap();
    desired
}

/// Asserts that `change` is refused with `code` and changes nothing.
pub(super) fn refused(code: ErrorCode, change: impl FnOnce(&mut Desired) -> Check) {
    let mut desired = two_nodes();
    set_route(&mut desired, via("10.9.0.0/16", "b"), false).unwrap();
    desired.add_port(pod("veth-a", "10.0.0.2"), FIXED).unwrap();
    let before = desired.clone();
    let error = change(&mut desired).unwrap_err();
    assert_eq!(error.code, code, "{error}");
    assert_eq!(desired, before);
}
