//! `podway node`: the nodes of the cluster.

use std::net::{IpAddr, Ipv6Addr};

use clap::{Args, Subcommand, ValueEnum};
use ipnet::IpNet;
use podway_proto::control::{NodeSpec, Request};
use podway_proto::types::{MacAddr, Mode};

/// What is done to nodes.
#[derive(Debug, Subcommand)]
pub(super) enum NodeCommand {
    /// Add a node or replace all that was said of it. The node of this machine's own name
    /// describes this machine, so that all nodes can be told the same.
    #[command(after_help = "\
Example:
  podway node set node-b --underlay 192.168.1.2 --pod-cidr 10.0.1.0/24 --mode native")]
    Set(NodeSet),
    /// Forget a node.
    #[command(after_help = "\
Example:
  podway node del node-b")]
    Del {
        /// The node's name.
        name: String,
    },
    /// List the nodes.
    #[command(
        visible_alias = "show",
        after_help = "\
Example:
  podway node list"
    )]
    List,
}

/// A node, told whole.
#[derive(Debug, Args)]
pub(super) struct NodeSet {
    /// Its name, unique in the cluster.
    name: String,
    /// Its address on the underlay.
    #[arg(long, value_name = "IP")]
    underlay: IpAddr,
    /// Its IPv6 address on the underlay beside an IPv4 one: natively the router to its IPv6 PodCIDRs.
    #[arg(long, value_name = "IPV6")]
    underlay6: Option<Ipv6Addr>,
    /// What its pods' addresses are taken from; one IPv4 and one IPv6, for example. None where a
    /// routing daemon tells it (import-kernel-table).
    #[arg(long = "pod-cidr", value_name = "CIDR", num_args = 1..,
          value_delimiter = ',')]
    pod_cidrs: Vec<IpNet>,
    /// MAC of its VTEP, if it was told another than the one made from its underlay address.
    #[arg(long, value_name = "MAC")]
    vtep_mac: Option<MacAddr>,
    /// How packets are sent to it; by default what the configuration's `tunnel` says.
    #[arg(long)]
    mode: Option<ModeArg>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum ModeArg {
    Vxlan,
    Native,
}

impl NodeCommand {
    pub(super) fn into_request(self) -> Request {
        match self {
            Self::Set(node) => Request::NodeSet(NodeSpec {
                name: node.name,
                underlay: node.underlay,
                underlay6: node.underlay6,
                pod_cidrs: node.pod_cidrs,
                vtep_mac: node.vtep_mac,
                mode: node.mode.map(|mode| match mode {
                    ModeArg::Vxlan => Mode::Vxlan,
                    ModeArg::Native => Mode::Native,
                }),
            }),
            Self::Del { name } => Request::NodeDel { name },
            Self::List => Request::NodeList,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::request;
    use super::*;

    #[test]
    fn a_node_has_its_options() {
        assert_eq!(
            request(
                "podway --json node set b --underlay 192.168.1.2 --pod-cidr 10.0.1.0/24 \
                 --pod-cidr fd00:1::/64 --vtep-mac 02:00:00:00:00:0b --mode native"
            ),
            Request::NodeSet(NodeSpec {
                name: "b".into(),
                underlay: "192.168.1.2".parse().unwrap(),
                underlay6: None,
                pod_cidrs: vec![
                    "10.0.1.0/24".parse().unwrap(),
                    "fd00:1::/64".parse().unwrap()
                ],
                vtep_mac: Some(MacAddr([2, 0, 0, 0, 0, 0xb])),
                mode: Some(Mode::Native),
            })
        );
    }
}
