//! `podway route`: routes as they are written for `ip route`.

use std::net::IpAddr;
use std::path::PathBuf;

use clap::{Args, Subcommand};
use ipnet::IpNet;
use podway_proto::control::{RouteSpec, ViaSpec};
use podway_proto::types::Vni;

const LOAD: &str = "\
A line is what 'podway route add' takes; what follows a # says nothing:
  10.9.0.0/16 via node-b
  10.10.0.0/16 via 192.168.1.9 dev eth0
  10.99.0.0/24 via node-b via node-c

Examples:
  podway route load routes.txt
  generate-routes | podway route load -";

/// What is done to routes.
#[derive(Debug, Subcommand)]
pub(super) enum RouteCommand {
    /// Add a route.
    #[command(
        override_usage = "podway route add PREFIX via NODE [vni VNI]|IP [dev IF] [via ...]",
        after_help = "\
Examples:
  podway route add 10.9.0.0/16 via node-b
  podway route add 10.99.0.0/24 via node-b via node-c
  podway route add 10.77.0.0/16 via node-b vni 77
  podway route add 10.10.0.0/16 via 192.168.1.9 dev eth0"
    )]
    Add(RouteArgs),
    /// Add a route, or change the way of the one to the same prefix.
    #[command(
        override_usage = "podway route replace PREFIX via NODE [vni VNI]|IP [dev IF] [via ...]",
        after_help = "\
Example:
  podway route replace 10.9.0.0/16 via node-c"
    )]
    Replace(RouteArgs),
    /// Withdraw a route that was added.
    #[command(after_help = "\
Example:
  podway route del 10.9.0.0/16")]
    Del {
        /// The route's prefix.
        prefix: IpNet,
    },
    /// Add or change the routes of a file, all of them or none; other routes stay.
    #[command(after_help = LOAD)]
    Load {
        /// One route a line; `-` is standard input.
        file: PathBuf,
        /// Only say what would change.
        #[arg(long)]
        dry_run: bool,
    },
    /// List all routes, those of PodCIDRs and of local pods included.
    #[command(
        visible_alias = "list",
        after_help = "\
Example:
  podway route show"
    )]
    Show,
    /// Where packets to an address go.
    #[command(after_help = "\
Example:
  podway route get 10.0.1.7")]
    Get {
        /// The destination.
        address: IpAddr,
    },
}

#[derive(Debug, Args)]
pub(super) struct RouteArgs {
    /// What is reached, such as 10.9.0.0/16.
    #[arg(value_name = "PREFIX")]
    prefix: IpNet,
    /// `via` and the name of a node and, if need be, `vni` and a VNI of `also-vnis`; or the address of
    /// a router on an uplink and, if need be, `dev` and that uplink. Several, up to 16, share the flows.
    #[arg(value_name = "via NODE [vni VNI]|IP [dev IF]", required = true, num_args = 2..)]
    ways: Vec<String>,
}

impl RouteArgs {
    pub(super) fn into_spec(self) -> Result<RouteSpec, String> {
        Ok(RouteSpec {
            prefix: self.prefix,
            via: {
                let words: Vec<&str> = self.ways.iter().map(String::as_str).collect();
                ways(&words)?
            },
        })
    }
}

/// The next hops that words name, each as `via NODE [vni VNI]` or `via IP [dev IF]`.
pub(super) fn ways(mut words: &[&str]) -> Result<ViaSpec, String> {
    let mut members = Vec::new();
    while !words.is_empty() {
        let (target, rest) = match *words {
            ["via", target, ref rest @ ..] => (target, rest),
            _ => break,
        };
        let (member, rest) = match *rest {
            ["dev", interface, ref rest @ ..] => (via(target, Some(interface), None)?, rest),
            ["vni", vni, ref rest @ ..] => (via(target, None, Some(vni))?, rest),
            ref rest => (via(target, None, None)?, rest),
        };
        members.push(member);
        words = rest;
    }
    match (members.len(), members.pop(), words) {
        (1, Some(only), []) => Ok(only),
        (_, Some(last), []) => {
            members.push(last);
            Ok(ViaSpec::Multipath { members })
        }
        _ => Err(
            "write PREFIX via NODE [vni VNI] or via IP [dev IF], and [via ...] for each further \
             next hop"
                .to_owned(),
        ),
    }
}

/// A target that reads as an address is a router, any other a node: node names may not look like
/// addresses.
fn via(target: &str, interface: Option<&str>, vni: Option<&str>) -> Result<ViaSpec, String> {
    match target.parse() {
        Ok(_) if vni.is_some() => Err(format!(
            "'vni' goes with the name of a node, and '{target}' is the address of a router; leave \
             'vni' out"
        )),
        Ok(address) => Ok(ViaSpec::Gateway {
            address,
            interface: interface.map(str::to_owned),
        }),
        Err(_) if interface.is_some() => Err(format!(
            "'dev' goes with the address of a router, and '{target}' is the name of a node; leave \
             'dev' out"
        )),
        Err(_) => Ok(ViaSpec::Node {
            node: target.to_owned(),
            vni: vni.map(number).transpose()?,
        }),
    }
}

pub(super) fn number(vni: &str) -> Result<Vni, String> {
    let number: u32 = vni
        .parse()
        .map_err(|_| format!("'{vni}' is no VNI; use 0 to 16777215"))?;
    Vni::try_from(number).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use podway_proto::control::Request;

    use super::super::Cli;
    use super::super::tests::request;
    use super::*;

    #[test]
    fn a_route_is_written_as_for_ip() {
        let prefix = "10.9.0.0/16".parse().unwrap();
        assert_eq!(
            request("podway route add 10.9.0.0/16 via node-b"),
            Request::RouteAdd(RouteSpec {
                prefix,
                via: ViaSpec::Node {
                    node: "node-b".into(),
                    vni: None
                }
            })
        );
        assert_eq!(
            request("podway route replace 10.9.0.0/16 via 192.168.1.9 dev eth0"),
            Request::RouteReplace(RouteSpec {
                prefix,
                via: ViaSpec::Gateway {
                    address: "192.168.1.9".parse().unwrap(),
                    interface: Some("eth0".into())
                }
            })
        );
        assert_eq!(
            request("podway route add 10.9.0.0/16 via b via 192.168.1.9 dev eth0 via 192.168.1.8"),
            Request::RouteAdd(RouteSpec {
                prefix,
                via: ViaSpec::Multipath {
                    members: vec![
                        ViaSpec::Node {
                            node: "b".into(),
                            vni: None
                        },
                        ViaSpec::Gateway {
                            address: "192.168.1.9".parse().unwrap(),
                            interface: Some("eth0".into())
                        },
                        ViaSpec::Gateway {
                            address: "192.168.1.8".parse().unwrap(),
                            interface: None
                        },
                    ]
                }
            })
        );
        assert_eq!(
            request("podway route add 10.9.0.0/16 via b vni 77 via b"),
            Request::RouteAdd(RouteSpec {
                prefix,
                via: ViaSpec::Multipath {
                    members: [Some(Vni::try_from(77).unwrap()), None]
                        .map(|vni| ViaSpec::Node {
                            node: "b".into(),
                            vni
                        })
                        .to_vec()
                }
            })
        );
        for wrong in [
            "podway route add 10.9.0.0/16",
            "podway route add 10.9.0.0/16 via b vni",
            "podway route add 10.9.0.0/16 via b vni 16777216",
            "podway route add 10.9.0.0/16 via b vni x",
            "podway route add 10.9.0.0/16 via 192.168.1.9 vni 77",
            "podway route add 10.9.0.0/16 via",
            "podway route add 10.9.0.0/16 through node-b",
            "podway route add 10.9.0.0/16 via 192.168.1.9 eth0",
            "podway route add 10.9.0.0/16 via 192.168.1.9 dev",
            "podway route add 10.9.0.0/16 via 192.168.1.9 dev eth0 via",
            "podway route add 10.9.0.0/16 via node-b dev eth0",
            "podway route add 10.9.0.0/33 via 192.168.1.9",
        ] {
            let parsed = Cli::try_parse_from(wrong.split_whitespace());
            let refused = parsed.map_or(true, |cli| cli.command.into_request().is_err());
            assert!(refused, "{wrong}");
        }
    }
}
