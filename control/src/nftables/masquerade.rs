//! Masquerading: what this node's pods send out of the cluster gets the node's address, so that
//! answers find back. The kernel has all these packets: the dataplane takes only what stays inside.
//! Pure.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use podway_proto::control::PortRoleSpec;

use super::list;
use crate::kernel::device_name;
use crate::world::World;

/// What is masqueraded.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Masquerade {
    v4: Option<Sides<Ipv4Net>>,
    v6: Option<Sides<Ipv6Net>>,
    /// Interfaces by which nothing leaves the cluster: pods' and the tunnels'.
    inside: BTreeSet<String>,
}

/// Packets of one IP version.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Sides<N> {
    /// Where they come from: this node's PodCIDRs.
    sources: Vec<N>,
    /// Where pods are known by their own addresses.
    inside: Vec<N>,
}

impl Masquerade {
    /// The rules as they should be; `None` when masquerading is switched off.
    pub fn of(world: &World<'_>) -> Option<Self> {
        let settings = world.settings;
        if !settings.masquerade {
            return None;
        }
        let own = world.own().into_iter().flat_map(|own| &own.pod_cidrs);
        let (sources4, sources6) = split(own);
        let nodes = world.desired.nodes.values();
        let (mut inside4, mut inside6) = split(nodes.flat_map(|node| &node.pod_cidrs));
        inside4.extend(settings.ipv4_native_routing_cidr);
        inside6.extend(settings.ipv6_native_routing_cidr);
        let v4 = settings.ipv4_native_routing_cidr.map(|_| Sides {
            sources: sources4,
            inside: Ipv4Net::aggregate(&inside4),
        });
        let v6 = settings.ipv6_native_routing_cidr.map(|_| Sides {
            sources: sources6,
            inside: Ipv6Net::aggregate(&inside6),
        });
        let is_pod = |role: &PortRoleSpec| matches!(role, PortRoleSpec::Pod { .. });
        let ports = world.desired.ports.iter();
        let pods = ports.filter(|(_, role)| is_pod(role));
        let inside = pods.map(|(name, _)| name.clone());
        let devices = settings.vnis().map(|vni| device_name(world, vni));
        Some(Self {
            v4: v4.filter(|sides| !sides.sources.is_empty()),
            v6: v6.filter(|sides| !sides.sources.is_empty()),
            inside: inside.chain(devices).collect(),
        })
    }

    /// Adds sets and chain to a table.
    pub(super) fn add(&self, text: &mut String) {
        let interfaces = list(self.inside.iter().map(|name| format!("\"{name}\"")));
        let _ = writeln!(
            text,
            "set inside {{ type ifname; elements = {{ {interfaces} }} }}"
        );
        let mut rules = String::new();
        if let Some(sides) = &self.v4 {
            sides.add("ip", "ipv4_addr", text, &mut rules);
        }
        if let Some(sides) = &self.v6 {
            sides.add("ip6", "ipv6_addr", text, &mut rules);
        }
        let _ = writeln!(
            text,
            "chain postrouting {{\ntype nat hook postrouting priority srcnat; policy accept;\n\
             {rules}}}"
        );
    }
}

impl<N: ToString> Sides<N> {
    fn add(&self, version: &str, address: &str, sets: &mut String, rules: &mut String) {
        let inside = list(self.inside.iter().map(N::to_string));
        let sources = list(self.sources.iter().map(N::to_string));
        let _ = writeln!(
            sets,
            "set inside-{version} {{ type {address}; flags interval; elements = {{ {inside} }} }}"
        );
        let _ = writeln!(
            rules,
            "{version} saddr {{ {sources} }} {version} daddr != @inside-{version} \
             oifname != @inside masquerade"
        );
    }
}

fn split<'a>(cidrs: impl Iterator<Item = &'a IpNet>) -> (Vec<Ipv4Net>, Vec<Ipv6Net>) {
    let (mut v4, mut v6) = (Vec::new(), Vec::new());
    for cidr in cidrs {
        match cidr {
            IpNet::V4(cidr) => v4.push(*cidr),
            IpNet::V6(cidr) => v6.push(*cidr),
        }
    }
    (v4, v6)
}

#[cfg(test)]
mod tests {
    use super::super::Rules;
    use crate::world::tests::Fixture;

    #[test]
    fn pods_are_masqueraded_outside_of_what_knows_them() {
        let mut fixture = Fixture::new();
        fixture.settings.allow_unknown_vteps = true;
        assert_eq!(Rules::of(&fixture.world()), None);
        fixture.settings.masquerade = true;
        fixture.settings.ipv4_native_routing_cidr = Some("10.0.0.0/23".parse().unwrap());
        let own = fixture.desired.nodes.get_mut("a").unwrap();
        own.pod_cidrs.push("fd00::/64".parse().unwrap());
        let text = Rules::of(&fixture.world()).unwrap().text();
        assert_eq!(
            text,
            "add table inet podway\n\
             delete table inet podway\n\
             table inet podway {\n\
             set inside { type ifname; elements = { \"podway.vx\", \"veth-a\" } }\n\
             set inside-ip { type ipv4_addr; flags interval; elements = { 10.0.0.0/23 } }\n\
             chain postrouting {\n\
             type nat hook postrouting priority srcnat; policy accept;\n\
             ip saddr { 10.0.0.0/24 } ip daddr != @inside-ip oifname != @inside masquerade\n\
             }\n\
             }\n"
        );
        // A PodCIDR outside the native-routing-cidr is inside the cluster.
        fixture.settings.ipv6_native_routing_cidr = Some("fd00:9::/32".parse().unwrap());
        let text = Rules::of(&fixture.world()).unwrap().text();
        assert!(
            text.contains("elements = { fd00::/64, fd00:1::/64, fd00:9::/32 }"),
            "{text}"
        );
        // Without PodCIDRs of its own a node has nothing to masquerade.
        fixture.desired.nodes.remove("a");
        let text = Rules::of(&fixture.world()).unwrap().text();
        assert!(!text.contains("masquerade"), "{text}");
    }
}
