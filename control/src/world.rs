//! What was told and what the kernel shows, put together: answers that both the dataplane's facts
//! and the kernel's objects are made from. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use podway_proto::control::{NodeSpec, PortRoleSpec, ViaSpec, derived_vtep_mac};
use podway_proto::types::{MacAddr, Mode, Path, VXLAN_OVERHEAD_V4, VXLAN_OVERHEAD_V6, Via, Vni};

use crate::import::Import;
use crate::index::Index;
use crate::netfilter::Chains;
use crate::netlink::{Link, Lookup};
use crate::observed::Observed;
use crate::routing;
use crate::settings::Settings;
use crate::state::{self, Desired};

/// Ways to addresses, as the kernel says; `None` where it has none.
pub type Ways = BTreeMap<IpAddr, Option<Lookup>>;
/// MACs that pods answered with, by port. A pod that is quiet for a while keeps its MAC.
pub type LearnedMacs = BTreeMap<String, MacAddr>;

/// All that decisions are made from.
#[derive(Debug, Clone, Copy)]
pub struct World<'a> {
    /// The configuration.
    pub settings: &'a Settings,
    /// What was told.
    pub desired: &'a Desired,
    /// What the kernel shows.
    pub observed: &'a Observed,
    /// What it says of ways.
    pub ways: &'a Ways,
    /// What pods said of themselves.
    pub learned: &'a LearnedMacs,
    /// What a routing daemon tells.
    pub import: &'a Import,
    /// What others' rules of nftables mean.
    pub chains: &'a Chains,
}

impl<'a> World<'a> {
    /// This node's own entry, if it was told.
    pub fn own(&self) -> Option<&'a NodeSpec> {
        self.desired.nodes.get(&self.settings.node_name)
    }

    /// The other nodes.
    pub fn remote_nodes(&self) -> impl Iterator<Item = &'a NodeSpec> {
        let own = &self.settings.node_name;
        self.desired
            .nodes
            .values()
            .filter(move |node| node.name != *own)
    }

    /// Names of all uplinks: the configuration's and those that were added.
    pub fn uplinks(&self) -> BTreeSet<&'a str> {
        let added = self.desired.ports.iter();
        added
            .filter(|(_, role)| matches!(role, PortRoleSpec::Uplink { .. }))
            .map(|(name, _)| name.as_str())
            .chain(self.settings.uplink.as_deref())
            .collect()
    }

    /// Whether a link is one of the uplinks.
    pub fn is_uplink(&self, name: &str) -> bool {
        let added = self.desired.ports.get(name);
        self.settings.uplink.as_deref() == Some(name)
            || matches!(added, Some(PortRoleSpec::Uplink { .. }))
    }

    /// Name of the uplink that tunnels leave by: the configuration's, or the first one added.
    pub fn uplink_name(&self) -> Option<&'a str> {
        let configured = self.settings.uplink.as_deref();
        configured.or_else(|| self.uplinks().into_iter().next())
    }

    /// The link of [`Self::uplink_name`].
    pub fn uplink(&self) -> Option<&'a Link> {
        self.observed.link_named(self.uplink_name()?)
    }

    /// This node's address on the underlay: what the configuration says, else what the node's own
    /// entry says, else the lowest global one of the uplink.
    pub fn underlay(&self) -> Option<IpAddr> {
        let told = self
            .settings
            .underlay
            .or_else(|| self.own().map(|own| own.underlay));
        told.or_else(|| {
            let uplink = self.uplink()?.index;
            let mut addresses = self.observed.addresses();
            addresses
                .find(|a| a.index == uplink && a.global)
                .map(|a| a.address)
        })
    }

    /// MAC of this node's VTEP: what the configuration says, else what the node's own entry says,
    /// else the one made from the underlay address.
    pub fn vtep_mac(&self) -> Option<MacAddr> {
        let told = self
            .settings
            .vtep_mac
            .or_else(|| self.own().and_then(|own| own.vtep_mac));
        told.or_else(|| self.underlay().map(derived_vtep_mac))
    }

    /// Bytes that a tunnel takes of each packet on the uplink.
    pub fn overhead(&self) -> u32 {
        u32::from(match self.underlay() {
            Some(IpAddr::V6(_)) => VXLAN_OVERHEAD_V6,
            _ => VXLAN_OVERHEAD_V4,
        })
    }

    /// How packets are sent to `node`.
    pub fn mode(&self, node: &NodeSpec) -> Mode {
        node.mode.unwrap_or(self.settings.default_mode)
    }

    /// The addresses whose ways have to be known.
    pub fn needed_ways(&self, index: &Index) -> BTreeSet<IpAddr> {
        let routers = index.routers();
        let routers = routers.filter(|((_, interface), _)| interface.is_none());
        self.remote_nodes()
            .flat_map(NodeSpec::underlays)
            .chain(routers.map(|((address, _), _)| *address))
            .chain(routing::needed_ways(self, index))
            .collect()
    }

    /// What the kernel says of the way to `address`.
    pub fn way(&self, address: IpAddr) -> Option<&'a Lookup> {
        self.ways.get(&address)?.as_ref()
    }

    /// The first step towards a node. Its source is this node's underlay address, by which other
    /// nodes know it, unless that is of the other IP version or not this node's.
    pub fn path(&self, underlay: IpAddr) -> Option<Path> {
        let way = self.way(underlay)?;
        let link = self.observed.link(way.link)?;
        let is_ours = |address: &IpAddr| self.observed.addresses().any(|a| a.address == *address);
        let ours = self
            .underlay()
            .filter(|a| a.is_ipv4() == underlay.is_ipv4())
            .filter(is_ours);
        Some(Path {
            interface: link.name.clone(),
            next_hop: way.gateway.unwrap_or(underlay),
            source: ours.or(way.source)?,
            mtu: u16::try_from(way.mtu.unwrap_or(link.mtu)).unwrap_or(u16::MAX),
        })
    }

    /// The link of a router: the one that was told, or the one that the kernel would use.
    pub fn gateway_link(&self, address: IpAddr, told: Option<&str>) -> Option<&'a Link> {
        match told {
            Some(name) => self.observed.link_named(name),
            // A router that is itself behind a router is on no link of ours.
            None => self
                .way(address)
                .filter(|way| way.gateway.is_none())
                .and_then(|way| self.observed.link(way.link)),
        }
    }

    /// Who takes the packets of a route that was added; `None` while the router's link is not
    /// known.
    pub fn via(&self, spec: &ViaSpec) -> Option<Via> {
        Some(match spec {
            ViaSpec::Node { node, vni } => Via::Node {
                node: node.clone(),
                vni: self.told_vni(*vni),
            },
            ViaSpec::Gateway { address, interface } => Via::Gateway {
                address: *address,
                interface: self
                    .gateway_link(*address, interface.as_deref())?
                    .name
                    .clone(),
            },
            ViaSpec::Multipath { members } => Via::Multipath {
                members: members
                    .iter()
                    .map(|member| self.via(member))
                    .collect::<Option<_>>()?,
            },
        })
    }

    /// The VNI of a route as it is told: not, if it is that of all others.
    pub fn told_vni(&self, vni: Option<Vni>) -> Option<Vni> {
        vni.filter(|vni| *vni != self.settings.vni)
    }

    /// Whether the kernel may put IPv4 fragments together before it forwards them (`nf_defrag_ipv4`),
    /// for which it needs all of them: masquerading does that, and so may others' rules.
    pub fn defragments(&self) -> bool {
        self.settings.masquerade || self.chains.may_track
    }

    /// MAC of a neighbour on a link, while it is resolved.
    pub fn neighbor_mac(&self, interface: &str, address: IpAddr) -> Option<MacAddr> {
        let index = self.observed.link_named(interface)?.index;
        self.observed.neighbor(index, address)?.mac
    }

    /// MAC of the pod behind a port, told or learned.
    pub fn pod_mac(&self, interface: &str, told: Option<MacAddr>) -> Option<MacAddr> {
        told.or_else(|| self.learned.get(interface).copied())
    }

    /// What a port waits for.
    pub fn port_waits_for(&self, interface: &str, role: &PortRoleSpec) -> Option<String> {
        let Some(link) = self.observed.link_named(interface) else {
            return Some(format!("the link {interface}"));
        };
        match role {
            PortRoleSpec::Pod { mac, .. } if self.pod_mac(interface, *mac).is_none() => {
                Some(if link.up {
                    "the pod's MAC".to_owned()
                } else {
                    "the pod's MAC; the link is down".to_owned()
                })
            }
            _ => None,
        }
    }
}

/// MAC of a node's VTEP.
pub fn node_vtep_mac(node: &NodeSpec) -> MacAddr {
    state::vtep_mac(node)
}

#[cfg(test)]
pub(crate) mod tests {
    use podway_proto::config::Config;

    use super::*;
    use crate::netlink::{Event, Neighbor};
    use crate::observed::tests::{address, link};

    /// A node `a` with uplink `eth0` (link 2), a pod behind `veth-a` (link 3) and a remote node
    /// `b` on the uplink's link.
    pub(crate) struct Fixture {
        pub(crate) settings: Settings,
        pub(crate) desired: Desired,
        pub(crate) observed: Observed,
        pub(crate) ways: Ways,
        pub(crate) learned: LearnedMacs,
        pub(crate) import: Import,
        pub(crate) chains: Chains,
    }

    impl Fixture {
        pub(crate) fn new() -> Self {
            let node = |name: &str, underlay: &str, cidrs: &[&str]| NodeSpec {
                name: name.into(),
                underlay: underlay.parse().unwrap(),
                underlay6: None,
                pod_cidrs: cidrs.iter().map(|cidr| cidr.parse().unwrap()).collect(),
                vtep_mac: None,
                mode: None,
            };
            let mut desired = Desired::default();
            desired
                .set_node(node("a", "192.168.1.1", &["10.0.0.0/24"]))
                .unwrap();
            desired
                .set_node(node("b", "192.168.1.2", &["10.0.1.0/24", "fd00:1::/64"]))
                .unwrap();
            let pod = PortRoleSpec::Pod {
                addresses: vec!["10.0.0.2".parse().unwrap()],
                mac: None,
                any_source: false,
            };
            desired.ports.insert("veth-a".into(), pod);
            let b: IpAddr = "192.168.1.2".parse().unwrap();
            Self {
                settings: Settings::from_config(Config {
                    node_name: Some("a".into()),
                    uplink: Some("eth0".into()),
                    ..Config::default()
                })
                .unwrap(),
                desired,
                observed: Observed::from_dump(vec![
                    Event::Link(link(2, "eth0")),
                    Event::Link(link(3, "veth-a")),
                    Event::Address(address(2, "192.168.1.1/24")),
                    Event::Neighbor(Neighbor {
                        index: 2,
                        address: b,
                        mac: Some(MacAddr([2, 0, 0, 0, 0, 0xb])),
                        permanent: false,
                        managed: true,
                        ours: true,
                    }),
                ]),
                ways: BTreeMap::from([(
                    b,
                    Some(Lookup {
                        link: 2,
                        gateway: None,
                        source: None,
                        mtu: None,
                        expires: None,
                    }),
                )]),
                learned: LearnedMacs::new(),
                import: Import::default(),
                chains: Chains::default(),
            }
        }

        pub(crate) fn index(&self) -> Index {
            Index::of(&self.desired)
        }

        pub(crate) fn world(&self) -> World<'_> {
            World {
                settings: &self.settings,
                desired: &self.desired,
                observed: &self.observed,
                ways: &self.ways,
                learned: &self.learned,
                import: &self.import,
                chains: &self.chains,
            }
        }
    }

    #[test]
    fn a_path_has_the_routes_mtu_and_the_known_source() {
        let mut fixture = Fixture::new();
        let b: IpAddr = "192.168.1.2".parse().unwrap();
        let path = |fixture: &Fixture| fixture.world().path(b);
        let mut expected = Path {
            interface: "eth0".into(),
            next_hop: b,
            source: "192.168.1.1".parse().unwrap(),
            mtu: 1500,
        };
        assert_eq!(path(&fixture), Some(expected.clone()));
        let way = Lookup {
            link: 2,
            gateway: Some("192.168.1.254".parse().unwrap()),
            source: Some("192.168.1.7".parse().unwrap()),
            mtu: Some(1400),
            expires: None,
        };
        fixture.ways.insert(b, Some(way));
        expected.mtu = 1400;
        expected.next_hop = "192.168.1.254".parse().unwrap();
        assert_eq!(path(&fixture), Some(expected.clone()));
        fixture
            .observed
            .apply(Event::AddressGone(address(2, "192.168.1.1/24")));
        expected.source = "192.168.1.7".parse().unwrap();
        assert_eq!(path(&fixture), Some(expected));
        fixture.ways.insert(b, None);
        assert_eq!(path(&fixture), None);
    }

    #[test]
    fn the_vtep_mac_is_told_or_made_from_the_underlay_address() {
        let mut fixture = Fixture::new();
        let text = |fixture: &Fixture| fixture.world().vtep_mac().map(|mac| mac.to_string());
        assert_eq!(text(&fixture).as_deref(), Some("02:50:c0:a8:01:01"));
        fixture.settings.vtep_mac = Some(MacAddr([2, 0, 0, 0, 0, 9]));
        assert_eq!(text(&fixture).as_deref(), Some("02:00:00:00:00:09"));
        fixture.settings.vtep_mac = None;
        fixture.desired.nodes.remove("a");
        assert_eq!(text(&fixture).as_deref(), Some("02:50:c0:a8:01:01"));
        fixture
            .observed
            .apply(Event::AddressGone(address(2, "192.168.1.1/24")));
        assert_eq!(text(&fixture), None);
    }
}
