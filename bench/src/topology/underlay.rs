//! How the nodes are joined.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::{Cluster, ClusterSpec, Node, UPLINK, make_namespace};
use crate::Result;
use crate::link::{set_tx_checksum, set_wire_true};
use crate::netns::Netns;

/// Gives a node the addresses of its place in such a cluster.
pub(super) fn place(node: Node, spec: &ClusterSpec) -> Node {
    if !spec.routed && spec.narrow_middle.is_none() {
        return node;
    }
    let (underlay, underlay6) = subnet_host(node.number, 1);
    Node {
        underlay,
        underlay6,
        router: Some(subnet_router(node.number).0),
        ..node
    }
}

/// A host in the subnet of a node, where each has its own.
fn subnet_host(node: u8, host: u8) -> (Ipv4Addr, Ipv6Addr) {
    (
        Ipv4Addr::new(192, 168, 100 + node, host),
        Ipv6Addr::new(0xfd00, 0x100, 0, node.into(), 0, 0, 0, host.into()),
    )
}

fn subnet_router(node: u8) -> (Ipv4Addr, Ipv6Addr) {
    subnet_host(node, 254)
}

/// A router's addresses on the link between the routers, counted from 1.
fn middle(router: u8) -> (Ipv4Addr, Ipv6Addr) {
    (
        Ipv4Addr::new(192, 168, 200, router),
        Ipv6Addr::new(0xfd00, 0x200, 0, 0, 0, 0, 0, router.into()),
    )
}

impl Cluster {
    pub(super) fn join_nodes(&self) -> Result<()> {
        match (self.nodes.as_slice(), self.spec.narrow_middle) {
            (nodes, _) if self.spec.routed => self.join_by_router(nodes),
            ([one, two], None) => self.join_directly(one, two),
            ([one, two], Some(mtu)) => self.join_by_routers([one, two], mtu),
            (nodes, _) => self.join_by_bridge(nodes),
        }
    }

    fn put_on_link(node: &Node) -> Result<()> {
        node.netns.ip(&[
            format!("addr add {}/24 dev {UPLINK}", node.underlay),
            format!("addr add {}/64 dev {UPLINK} nodad", node.underlay6),
        ])
    }

    fn join_directly(&self, one: &Node, two: &Node) -> Result<()> {
        let (queues, mtu) = (self.queues(), self.spec.uplink_mtu);
        one.netns.ip(&[format!(
            "link add name {UPLINK} mtu {mtu} {queues} type veth peer name {UPLINK} mtu {mtu} \
             netns {} {queues}",
            two.netns.name()
        )])?;
        for node in [one, two] {
            self.set_uplink(&node.netns, UPLINK)?;
            self.set_gro(&node.netns)?;
            Self::put_on_link(node)?;
        }
        Ok(())
    }

    /// Each node has a router of its own as its only neighbour; the routers share the link.
    fn join_by_routers(&self, nodes: [&Node; 2], middle_mtu: u16) -> Result<()> {
        let routers = [1, 2].map(|n| Netns::named(format!("{}-r{n}", self.name)));
        for (router, node) in routers.iter().zip(nodes) {
            make_namespace(router, true)?;
            self.put_behind(node, router)?;
        }
        let [one, two] = &routers;
        one.ip(&[format!(
            "link add name middle mtu {middle_mtu} type veth peer name middle mtu {middle_mtu} \
             netns {}",
            two.name()
        )])?;
        for (router, number) in [(one, 1), (two, 2)] {
            self.set_uplink(router, "middle")?;
            let (ipv4, ipv6) = middle(number);
            router.ip(&[
                format!("addr add {ipv4}/24 dev middle"),
                format!("addr add {ipv6}/64 dev middle nodad"),
            ])?;
        }
        for (router, number, beyond) in [(one, 2, nodes[1]), (two, 1, nodes[0])] {
            let (ipv4, ipv6) = middle(number);
            router.ip(&[
                format!("route add {} via {ipv4}", beyond.underlay),
                format!("route add {} via {ipv4}", beyond.pod_cidr()),
                format!("route add {} via {ipv6}", beyond.underlay6),
                format!("route add {} via {ipv6}", beyond.pod_cidr6()),
            ])?;
        }
        Ok(())
    }

    /// The router is every node's neighbour, and routes between them.
    fn join_by_router(&self, nodes: &[Node]) -> Result<()> {
        let router = Netns::named(format!("{}-r1", self.name));
        make_namespace(&router, true)?;
        nodes
            .iter()
            .try_for_each(|node| self.put_behind(node, &router))
    }

    /// Makes a router the only neighbour of a node, and the way to its pods.
    fn put_behind(&self, node: &Node, router: &Netns) -> Result<()> {
        let (queues, mtu, port) = (self.queues(), self.spec.uplink_mtu, &node.name);
        node.netns.ip(&[format!(
            "link add name {UPLINK} mtu {mtu} {queues} type veth peer name {port} mtu {mtu} \
             netns {} {queues}",
            router.name()
        )])?;
        self.set_uplink(router, port)?;
        self.set_uplink(&node.netns, UPLINK)?;
        self.set_gro(&node.netns)?;
        Self::put_on_link(node)?;
        let (ipv4, ipv6) = subnet_router(node.number);
        router.ip(&[
            format!("addr add {ipv4}/24 dev {port}"),
            format!("addr add {ipv6}/64 dev {port} nodad"),
            format!("route add {} via {}", node.pod_cidr(), node.underlay),
            format!("route add {} via {}", node.pod_cidr6(), node.underlay6),
        ])?;
        node.netns.ip(&[
            format!("route add default via {ipv4} dev {UPLINK}"),
            format!("route add ::/0 via {ipv6} dev {UPLINK}"),
        ])
    }

    fn join_by_bridge(&self, nodes: &[Node]) -> Result<()> {
        let (queues, mtu) = (self.queues(), self.spec.uplink_mtu);
        let wire = Netns::named(format!("{}-wire", self.name));
        make_namespace(&wire, false)?;
        wire.ip(&[
            format!("link add name br0 mtu {mtu} type bridge stp_state 0 forward_delay 0"),
            "link set dev br0 up".to_owned(),
        ])?;
        for node in nodes {
            let port = &node.name;
            wire.ip(&[
                format!(
                    "link add name {port} mtu {mtu} {queues} type veth peer name {UPLINK} \
                     mtu {mtu} netns {} {queues}",
                    node.netns.name()
                ),
                format!("link set dev {port} master br0"),
            ])?;
            self.set_uplink(&wire, port)?;
            self.set_uplink(&node.netns, UPLINK)?;
            self.set_gro(&node.netns)?;
            Self::put_on_link(node)?;
        }
        Ok(())
    }

    fn set_uplink(&self, netns: &Netns, interface: &str) -> Result<()> {
        if !self.spec.uplink_tx_checksum {
            set_tx_checksum(netns, interface, false)?;
        }
        if self.spec.wire_true {
            set_wire_true(netns, interface)?;
        }
        netns.ip(&[format!("link set dev {interface} up")])
    }
}

#[cfg(test)]
mod tests {
    use super::super::describe_node;
    use super::*;

    #[test]
    fn a_router_gives_each_node_a_subnet() {
        let spec = ClusterSpec {
            routed: true,
            ..ClusterSpec::new("c")
        };
        let node = place(describe_node("c", 2, 1), &spec);
        assert_eq!(node.underlay.to_string(), "192.168.102.1");
        assert_eq!(node.underlay6.to_string(), "fd00:100:0:2::1");
        assert_eq!(node.router.unwrap().to_string(), "192.168.102.254");
        assert_eq!(node.vtep_mac().to_string(), "02:50:c0:a8:66:01");
        let spec = ClusterSpec::new("c");
        let node = place(describe_node("c", 2, 1), &spec);
        assert_eq!(node.underlay.to_string(), "192.168.100.2");
        assert_eq!(node.router, None);
    }
}
