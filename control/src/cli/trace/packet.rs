//! `podway trace packet`: the packet that is asked about.

use std::net::IpAddr;
use std::str::FromStr;

use clap::Args;
use podway_proto::trace::{InTunnel, TracePacket};
use podway_proto::types::Vni;

/// The packet.
#[derive(Debug, Args)]
#[command(after_help = "\
The rules of the program on the port are gone through on its maps as they are; then a packet of this
kind is given to the functions that workers call, with their tables. If the kernel has it, so has its
own route. What a packet learns on its way (a full queue, a socket that nobody reads) is not known.

Examples:
  podway trace packet --from-port veth-a --src 10.0.0.2 --dst 10.0.1.7
  podway trace packet --from-port veth-a --src 10.0.0.2 --dst 10.0.1.7 --proto tcp --size 60000
  podway trace packet --from-port eth0 --src 10.0.1.7 --dst 10.0.0.2 --vni 1 --outer-src 192.168.1.2")]
pub(in crate::cli) struct PacketArgs {
    /// The port that it comes by.
    #[arg(long, value_name = "IF")]
    from_port: String,
    /// Its source; in a tunnel that of the packet inside, as of all that follows.
    #[arg(long, value_name = "IP")]
    src: IpAddr,
    /// Its destination.
    #[arg(long, value_name = "IP")]
    dst: IpAddr,
    /// What it carries: tcp, udp, icmp (an echo request) or the number of a protocol.
    #[arg(long, value_name = "P", default_value = "icmp")]
    proto: Protocol,
    /// Source port of TCP and UDP.
    #[arg(long, value_name = "N", default_value_t = 40_000)]
    sport: u16,
    /// Destination port of TCP and UDP.
    #[arg(long, value_name = "N", default_value_t = 80)]
    dport: u16,
    /// Bytes of the IP packet. More TCP than the port's MTU is a super-frame.
    #[arg(long, value_name = "BYTES", default_value_t = 100)]
    size: u32,
    /// Time to live, or hop limit.
    #[arg(long, value_name = "N", default_value_t = 64)]
    ttl: u8,
    /// IPv4 must not fragment it.
    #[arg(long)]
    df: bool,
    /// It comes in a tunnel of this VNI, by an uplink.
    #[arg(long, value_name = "N", requires = "outer_src", value_parser = vni)]
    vni: Option<Vni>,
    /// Who sends that tunnel on the underlay.
    #[arg(long, value_name = "IP", requires = "vni")]
    outer_src: Option<IpAddr>,
}

#[derive(Debug, Clone, Copy)]
enum Protocol {
    Icmp,
    Number(u8),
}

impl FromStr for Protocol {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "icmp" => Ok(Self::Icmp),
            "tcp" => Ok(Self::Number(6)),
            "udp" => Ok(Self::Number(17)),
            number => number.parse().map(Self::Number).map_err(|_| {
                format!("'{text}' is no protocol; use tcp, udp, icmp or a number up to 255")
            }),
        }
    }
}

fn vni(text: &str) -> Result<Vni, String> {
    crate::cli::route::number(text)
}

impl From<PacketArgs> for TracePacket {
    fn from(args: PacketArgs) -> Self {
        let protocol = match args.proto {
            Protocol::Icmp if args.dst.is_ipv6() => 58,
            Protocol::Icmp => 1,
            Protocol::Number(number) => number,
        };
        let has_ports = matches!(protocol, 6 | 17);
        Self {
            from_port: args.from_port,
            source: args.src,
            destination: args.dst,
            protocol,
            source_port: if has_ports { args.sport } else { 0 },
            destination_port: if has_ports { args.dport } else { 0 },
            size: args.size,
            hop_limit: args.ttl,
            dont_fragment: args.df,
            tunnel: args.vni.zip(args.outer_src).map(|(vni, source)| InTunnel {
                vni,
                source,
                destination: None,
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use podway_proto::control::Request;

    use super::super::super::Cli;
    use super::*;

    fn asked(line: &str) -> TracePacket {
        let line = format!("podway trace packet {line}");
        let cli = Cli::try_parse_from(line.split_whitespace()).expect(&line);
        match cli.command.into_request() {
            Ok(Request::TracePacket(asked)) => asked,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_is_not_said_is_usual() {
        let plain = TracePacket {
            from_port: "veth-a".into(),
            source: "10.0.0.2".parse().unwrap(),
            destination: "10.0.1.7".parse().unwrap(),
            protocol: 1,
            source_port: 0,
            destination_port: 0,
            size: 100,
            hop_limit: 64,
            dont_fragment: false,
            tunnel: None,
        };
        let ends = "--from-port veth-a --src 10.0.0.2 --dst 10.0.1.7";
        assert_eq!(asked(ends), plain);
        assert_eq!(
            asked(&format!(
                "{ends} --proto udp --dport 53 --size 1400 --ttl 3 --df"
            )),
            TracePacket {
                protocol: 17,
                source_port: 40_000,
                destination_port: 53,
                size: 1400,
                hop_limit: 3,
                dont_fragment: true,
                ..plain.clone()
            }
        );
        let six = asked("--from-port veth-a --src fd00::2 --dst fd00::3");
        assert_eq!(six.protocol, 58);
        assert_eq!(asked(&format!("{ends} --proto 132")).protocol, 132);
        assert_eq!(
            asked(&format!("{ends} --vni 7 --outer-src 192.168.1.2")).tunnel,
            Some(InTunnel {
                vni: 7.try_into().unwrap(),
                source: "192.168.1.2".parse().unwrap(),
                destination: None,
            })
        );
    }

    #[test]
    fn half_a_tunnel_and_no_protocol_are_wrong() {
        let ends = "podway trace packet --from-port e --src 10.0.0.2 --dst 10.0.1.7";
        for more in [
            "--vni 7",
            "--outer-src 192.168.1.2",
            "--proto tpc",
            "--proto 256",
        ] {
            let line = format!("{ends} {more}");
            assert!(
                Cli::try_parse_from(line.split_whitespace()).is_err(),
                "{more}"
            );
        }
    }
}
