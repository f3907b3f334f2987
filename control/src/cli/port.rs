//! `podway port`: interfaces that Podway serves.

use std::net::IpAddr;

use clap::{Args, Subcommand, ValueEnum};
use podway_proto::control::{PortRoleSpec, PortSpec, Request};
use podway_proto::types::MacAddr;

/// What is done to ports.
#[derive(Debug, Subcommand)]
pub(super) enum PortCommand {
    /// Make an interface a port.
    #[command(after_help = "\
Examples:
  podway port add veth-a --pod-ip 10.0.0.2 --pod-ip fd00:10::2
  podway port add eth0 --uplink --accept-partial-checksums no")]
    Add(PortAdd),
    /// Leave an interface to the kernel.
    #[command(after_help = "\
Example:
  podway port del veth-a")]
    Del {
        /// The interface.
        interface: String,
    },
    /// List the ports: what was told of them and what the dataplane got.
    #[command(
        visible_alias = "list",
        after_help = "\
Example:
  podway port show"
    )]
    Show,
}

/// A port and its role.
#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("role").required(true).args(["pod_ips", "uplink"]))]
pub(super) struct PortAdd {
    /// Interface name on the node.
    interface: String,
    /// An address of the pod behind it.
    #[arg(long = "pod-ip", value_name = "IP", num_args = 1.., value_delimiter = ',')]
    pod_ips: Vec<IpAddr>,
    /// MAC of the pod's end; by default the kernel asks the pod for it.
    #[arg(long, value_name = "MAC", conflicts_with = "uplink")]
    mac: Option<MacAddr>,
    /// The pod may send from addresses that are not its own, as a router does.
    #[arg(long, conflicts_with = "uplink")]
    any_source: bool,
    /// The interface leads to other nodes.
    #[arg(long)]
    uplink: bool,
    /// Whether packets may arrive there with unfinished checksums; by default only on a veth.
    #[arg(long, requires = "uplink", conflicts_with = "pod_ips")]
    accept_partial_checksums: Option<YesNo>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum YesNo {
    Yes,
    No,
}

impl PortCommand {
    pub(super) fn into_request(self) -> Request {
        match self {
            Self::Add(port) => Request::PortAdd(PortSpec {
                interface: port.interface,
                role: if port.uplink {
                    let told = port.accept_partial_checksums;
                    PortRoleSpec::Uplink {
                        accept_partial_checksums: told.map(|told| told == YesNo::Yes),
                    }
                } else {
                    PortRoleSpec::Pod {
                        addresses: port.pod_ips,
                        mac: port.mac,
                        any_source: port.any_source,
                    }
                },
            }),
            Self::Del { interface } => Request::PortDel { interface },
            Self::Show => Request::PortShow,
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::super::Cli;
    use super::super::tests::request;
    use super::*;

    #[test]
    fn a_port_has_one_role() {
        assert_eq!(
            request("podway port add veth-a --pod-ip 10.0.0.2"),
            Request::PortAdd(PortSpec {
                interface: "veth-a".into(),
                role: PortRoleSpec::Pod {
                    addresses: vec!["10.0.0.2".parse().unwrap()],
                    mac: None,
                    any_source: false,
                }
            })
        );
        for (option, accept_partial_checksums) in [
            ("", None),
            (" --accept-partial-checksums yes", Some(true)),
            (" --accept-partial-checksums no", Some(false)),
        ] {
            assert_eq!(
                request(&format!("podway port add eth0 --uplink{option}")),
                Request::PortAdd(PortSpec {
                    interface: "eth0".into(),
                    role: PortRoleSpec::Uplink {
                        accept_partial_checksums
                    }
                })
            );
        }
        for wrong in [
            "podway port add eth0",
            "podway port add eth0 --uplink --accept-partial-checksums maybe",
            "podway port add veth-a --pod-ip 10.0.0.2 --accept-partial-checksums yes",
            "podway port add eth0 --uplink --pod-ip 10.0.0.2",
            "podway port add eth0 --uplink --mac 02:00:00:00:00:01",
        ] {
            assert!(
                Cli::try_parse_from(wrong.split_whitespace()).is_err(),
                "{wrong}"
            );
        }
    }
}
