//! `podway flows`: who talks to whom through the dataplane, and what becomes of it.

use std::io::Write;
use std::net::IpAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use clap::Args;
use podway_proto::client::Client;
use podway_proto::codec;
use podway_proto::control::{Request, Response};
use serde::Serialize;

use super::stream::Stream;
use super::{Failure, goes_on};
use crate::flows::{FlowRecord, Flows, Verdict};
use crate::show;
use crate::watch::Reach;

pub(super) const EXAMPLES: &str = "\
A record tells a flow in one period: what its packets have in common, and how many there were. Those with
most bytes come first. With --json a document behind those of a period says what is missing in them.
Nothing is kept of what has passed before. Filters are joined by 'and'; FILTER is
that of `podway capture`. With --sample N one of N packets is looked at, and counts for N: use it where
many packets pass.

Examples:
  podway flows --follow
  podway flows --seconds 10 --pod 10.0.1.7 --verdict dropped
  podway flows --follow --node node-b --port 443 --json
  podway flows --sample 100 udp and net 10.0.0.0/8";

/// Which flows, and for how long.
#[derive(Debug, Args)]
pub(super) struct FlowArgs {
    /// Go on until interrupted, with the flows of each second.
    #[arg(long, conflicts_with = "seconds")]
    follow: bool,
    /// Watch for so many seconds, and tell their flows.
    #[arg(long, value_name = "S", default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..))]
    seconds: u64,
    /// Look at one of so many packets.
    #[arg(long, value_name = "N", default_value_t = 1,
          value_parser = clap::value_parser!(u32).range(1..))]
    sample: u32,
    /// Only from or to this pod.
    #[arg(long, value_name = "IP")]
    pod: Option<IpAddr>,
    /// Only from or to pods of this node, by its PodCIDRs.
    #[arg(long, value_name = "NAME")]
    node: Option<String>,
    /// Only from or to this port of TCP or UDP.
    #[arg(long, value_name = "N")]
    port: Option<u16>,
    /// Only what was sent on, or what was dropped.
    #[arg(long)]
    verdict: Option<Verdict>,
    /// Which packets; all without it.
    #[arg(value_name = "FILTER", trailing_var_arg = true)]
    filter: Vec<String>,
}

/// A flow as JSON.
#[derive(Debug, Serialize)]
struct Document<'f> {
    response: &'static str,
    #[serde(flatten)]
    flow: &'f FlowRecord,
    /// One of so many packets was looked at.
    sample: u32,
}

/// What comes behind the flows of a period as JSON: what is missing in them.
#[derive(Debug, Serialize)]
struct Period {
    response: &'static str,
    /// How many flows were told.
    flows: usize,
    /// Packets that were looked at and not recorded in time.
    lost: u64,
    /// Packets of flows beyond those.
    others: u64,
}

impl FlowArgs {
    /// Tells flows until it is over, and on standard error what is missing.
    pub(super) fn run(
        self,
        reach: &Reach,
        control: &Path,
        json: bool,
        out: &mut impl Write,
    ) -> Result<(), Failure> {
        let filter = self.expression(|node| node_networks(control, reach.timeout, node))?;
        let spec = Flows::watch(filter, self.verdict, self.sample);
        let seconds = (!self.follow).then_some(self.seconds);
        let period = Duration::from_secs(if self.follow { 1 } else { u64::MAX });
        let mut stream = Stream::begin(reach, spec, seconds)?;
        let mut flows = Flows::new(self.sample);
        let (mut lost, mut others) = (0, 0);
        let mut begun = Instant::now();
        while let Some(watched) = stream.read()? {
            watched.records.iter().for_each(|record| flows.add(record));
            if begun.elapsed() >= period {
                begun = Instant::now();
                let lately = stream.lost() - lost;
                let (more, is_read) = self.tell(&mut flows, lately, json, out)?;
                (lost, others) = (lost + lately, others + more);
                if !is_read {
                    return Ok(());
                }
            }
        }
        let lately = stream.lost() - lost;
        others += self.tell(&mut flows, lately, json, out)?.0;
        lost += lately;
        if !json && (lost > 0 || others > 0) {
            eprintln!(
                "podway: {lost} packets were not recorded in time and {others} are of flows beyond the \
                 first; look at fewer, by a filter or --sample"
            );
        }
        Ok(())
    }

    /// Prints the flows of a period, in which so many packets were lost; returns the packets of others, and
    /// whether somebody still reads.
    fn tell(
        &self,
        flows: &mut Flows,
        lost: u64,
        json: bool,
        out: &mut impl Write,
    ) -> Result<(u64, bool), Failure> {
        let (flows, others) = flows.take();
        for flow in &flows {
            let line = match json {
                true => codec::encode(&Document {
                    response: "flow",
                    flow,
                    sample: self.sample,
                }),
                false => show::flows::line(flow).into_bytes(),
            };
            if !goes_on(out.write_all(&line))? {
                return Ok((others, false));
            }
        }
        let end = json.then(|| {
            codec::encode(&Period {
                response: "flow-period",
                flows: flows.len(),
                lost,
                others,
            })
        });
        let end = end.unwrap_or_default();
        let written = out.write_all(&end).and_then(|()| out.flush());
        Ok((others, goes_on(written)?))
    }

    /// All filters as one; `networks` tells those of a node.
    fn expression(
        &self,
        networks: impl FnOnce(&str) -> Result<Vec<String>, Failure>,
    ) -> Result<String, Failure> {
        let mut all = Vec::new();
        all.extend(self.pod.map(|pod| format!("host {pod}")));
        if let Some(node) = &self.node {
            let nets: Vec<_> = networks(node)?
                .iter()
                .map(|net| format!("net {net}"))
                .collect();
            all.push(format!("({})", nets.join(" or ")));
        }
        all.extend(self.port.map(|port| format!("port {port}")));
        if !self.filter.is_empty() {
            all.push(format!("({})", self.filter.join(" ")));
        }
        Ok(all.join(" and "))
    }
}

/// The PodCIDRs of a node.
fn node_networks(control: &Path, timeout: Duration, name: &str) -> Result<Vec<String>, Failure> {
    let nodes = match Client::connect(control, timeout)?.call(&Request::NodeList)? {
        Response::Nodes { nodes } => nodes,
        _ => Vec::new(),
    };
    let node = nodes.iter().find(|node| node.name == name);
    let Some(node) = node else {
        let message = format!("there is no node {name}; see podway node list");
        return Err(Failure::NotFound(message));
    };
    if node.pod_cidrs.is_empty() {
        let message = format!("node {name} has no PodCIDR; name its pods by a filter, such as net");
        return Err(Failure::NotFound(message));
    }
    Ok(node.pod_cidrs.iter().map(ToString::to_string).collect())
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use podway_proto::watch::{WatchPoint, WatchRecord};

    use super::*;
    use crate::show::watch::tests::{record, tunnel};

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        flows: FlowArgs,
    }

    fn args(line: &str) -> FlowArgs {
        Line::try_parse_from(line.split_whitespace())
            .expect(line)
            .flows
    }

    #[test]
    fn filters_are_joined() {
        let expression = |line: &str| {
            let networks = |node: &str| {
                assert_eq!(node, "b");
                Ok(vec!["10.0.1.0/24".to_owned(), "fd00:1::/64".to_owned()])
            };
            args(line).expression(networks).unwrap()
        };
        assert_eq!(expression("flows"), "");
        assert_eq!(expression("flows --pod 10.0.0.2"), "host 10.0.0.2");
        assert_eq!(
            expression("flows --node b --port 80 --pod fd00::2 tcp or udp"),
            "host fd00::2 and (net 10.0.1.0/24 or net fd00:1::/64) and port 80 and (tcp or udp)"
        );
    }

    #[test]
    fn verdicts_have_names() {
        let verdict = |line: &str| args(line).verdict;
        assert_eq!(verdict("flows"), None);
        let (forwarded, dropped) = (Verdict::Forwarded, Verdict::Dropped);
        assert_eq!(verdict("flows --verdict forwarded"), Some(forwarded));
        assert_eq!(verdict("flows --verdict dropped"), Some(dropped));
    }

    #[test]
    fn a_flow_is_a_document() {
        let args = args("flows --sample 10");
        let mut flows = Flows::new(10);
        flows.add(&WatchRecord {
            point: WatchPoint::Egress,
            next_hop: Some(tunnel()),
            ..record()
        });
        let mut out = Vec::new();
        args.tell(&mut flows, 3, true, &mut out).unwrap();
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "{\"response\":\"flow\",\"source\":\"10.0.0.2\",\"destination\":\"10.0.1.2\",\
             \"protocol\":17,\"source_port\":40000,\"destination_port\":9,\
             \"verdict\":\"forwarded\",\"came_by\":\"veth-a\",\"leaves_by\":\"eth0\",\
             \"node\":\"node-b\",\"vni\":42,\"first\":1700000000123456789,\
             \"last\":1700000000123456789,\"packets\":10,\"bytes\":1060,\"sample\":10}\n\
             {\"response\":\"flow-period\",\"flows\":1,\"lost\":3,\"others\":0}\n"
        );
    }
}
