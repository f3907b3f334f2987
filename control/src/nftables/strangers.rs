//! Tunnels from unknown nodes. The dataplane drops those that it takes (`unknown_vtep`); these rules
//! keep the kernel's VXLAN devices from the rest: what the programs on the ports pass, options and
//! fragments of tunnels among it, and everything while no dataplane runs. Pure.
//!
//! They look where the kernel has put IPv4 fragments together. Those of IPv6 it puts together behind
//! them, so of these it gets none that begins a tunnel.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use podway_proto::types::Vni;

use super::list;
use crate::world::World;

/// Whose tunnels are taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Strangers {
    port: u16,
    vnis: Vec<Vni>,
    v4: BTreeSet<Ipv4Addr>,
    v6: BTreeSet<Ipv6Addr>,
    /// PodCIDRs of this node.
    own: BTreeSet<IpNet>,
}

impl Strangers {
    /// The nodes as they are known now; `None` if tunnels are taken from anybody.
    pub fn of(world: &World<'_>) -> Option<Self> {
        if world.settings.allow_unknown_vteps {
            return None;
        }
        let mut strangers = Self {
            port: world.settings.vxlan_port,
            vnis: world.settings.vnis().collect(),
            v4: BTreeSet::new(),
            v6: BTreeSet::new(),
            own: world
                .own()
                .into_iter()
                .flat_map(|own| own.pod_cidrs.clone())
                .collect(),
        };
        for node in world.remote_nodes() {
            match node.underlay {
                IpAddr::V4(address) => strangers.v4.insert(address),
                IpAddr::V6(address) => strangers.v6.insert(address),
            };
        }
        Some(strangers)
    }

    /// Adds sets and chain to a table.
    pub(super) fn add(&self, text: &mut String) {
        let nodes = list(self.v4.iter().map(Ipv4Addr::to_string));
        set(text, "nodes-ip", "ipv4_addr", &nodes);
        let nodes = list(self.v6.iter().map(Ipv6Addr::to_string));
        set(text, "nodes-ip6", "ipv6_addr", &nodes);
        let vnis = list(self.vnis.iter().map(Vni::to_string));
        let port = self.port;
        // The VNI is 12 bytes behind the beginning of the UDP header (RFC 7348, section 5): tunnels of
        // other networks on this port are somebody else's.
        let _ = writeln!(
            text,
            "chain input {{\ntype filter hook input priority filter; policy accept;\n\
             udp dport {port} ip saddr != @nodes-ip @th,96,24 {{ {vnis} }} counter drop\n\
             udp dport {port} ip6 saddr != @nodes-ip6 @th,96,24 {{ {vnis} }} counter drop\n\
             udp dport {port} ip6 saddr != @nodes-ip6 exthdr frag exists counter drop\n}}"
        );
        // Masqueraded, a pod's own tunnel would come from a known node.
        let _ = writeln!(
            text,
            "chain forward {{\ntype filter hook forward priority filter; policy accept;"
        );
        for (version, nodes) in [("ip", "nodes-ip"), ("ip6", "nodes-ip6")] {
            let of_version = |cidr: &&IpNet| cidr.addr().is_ipv4() == (version == "ip");
            let own = list(self.own.iter().filter(of_version).map(IpNet::to_string));
            if !own.is_empty() {
                let _ = writeln!(
                    text,
                    "udp dport {port} {version} saddr {{ {own} }} {version} daddr @{nodes} counter \
                     drop"
                );
            }
        }
        text.push_str("}\n");
    }
}

fn set(text: &mut String, name: &str, kind: &str, elements: &str) {
    let _ = match elements {
        "" => writeln!(text, "set {name} {{ type {kind}; }}"),
        _ => writeln!(
            text,
            "set {name} {{ type {kind}; elements = {{ {elements} }} }}"
        ),
    };
}

#[cfg(test)]
mod tests {
    use super::super::Rules;
    use crate::world::tests::Fixture;

    #[test]
    fn the_kernel_takes_tunnels_from_known_nodes_only() {
        let mut fixture = Fixture::new();
        fixture.settings.vni = 42.try_into().unwrap();
        fixture.settings.also_vnis = vec![77.try_into().unwrap()];
        fixture.settings.vxlan_port = 8472;
        assert_eq!(
            Rules::of(&fixture.world()).unwrap().text(),
            "add table inet podway\n\
             delete table inet podway\n\
             table inet podway {\n\
             set nodes-ip { type ipv4_addr; elements = { 192.168.1.2 } }\n\
             set nodes-ip6 { type ipv6_addr; }\n\
             chain input {\n\
             type filter hook input priority filter; policy accept;\n\
             udp dport 8472 ip saddr != @nodes-ip @th,96,24 { 42, 77 } counter drop\n\
             udp dport 8472 ip6 saddr != @nodes-ip6 @th,96,24 { 42, 77 } counter drop\n\
             udp dport 8472 ip6 saddr != @nodes-ip6 exthdr frag exists counter drop\n\
             }\n\
             chain forward {\n\
             type filter hook forward priority filter; policy accept;\n\
             udp dport 8472 ip saddr { 10.0.0.0/24 } ip daddr @nodes-ip counter drop\n\
             }\n\
             }\n"
        );
        let node = fixture.desired.nodes.get_mut("b").unwrap();
        node.underlay = "fd00:2::2".parse().unwrap();
        let text = Rules::of(&fixture.world()).unwrap().text();
        assert!(
            text.contains("set nodes-ip { type ipv4_addr; }\n"),
            "{text}"
        );
        assert!(text.contains("elements = { fd00:2::2 } }"), "{text}");
        fixture.settings.allow_unknown_vteps = true;
        assert_eq!(Rules::of(&fixture.world()), None);
    }
}
