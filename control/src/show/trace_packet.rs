//! What would happen to a packet, as text.

use std::fmt::Write;

use podway_proto::trace::{
    At, KernelPart, OutTunnel, Sending, TraceAnswer, TracePacket, TracedRoute, Verdict, Why,
};

use super::drops::{end, protocol};
use super::phrases::program;
use super::{or_dash, way};

/// Where the second column begins.
const COLUMN: usize = 14;

/// Each step with its outcome, and at the end what becomes of the packet.
pub(super) fn text(answer: &TraceAnswer) -> String {
    let TraceAnswer { packet, trace, .. } = answer;
    let mut text = asked(packet, answer.from_node.as_deref());
    for (at, title) in [
        (
            At::Program,
            format!("port {}, {}", packet.from_port, program(&trace.program)),
        ),
        (At::Worker, "worker".to_owned()),
    ] {
        let steps = || trace.steps.iter().filter(|step| step.at == at);
        if steps().next().is_none() {
            continue;
        }
        let _ = writeln!(text, "\n{title}");
        for step in steps() {
            line(&mut text, &step.rule, &step.found);
        }
    }
    if let Some(sending) = &trace.sending {
        sent(&mut text, trace.route.as_ref(), sending);
    }
    if let Some(kernel) = &answer.kernel {
        by_kernel(&mut text, kernel);
    }
    text.push('\n');
    verdict(&mut text, answer);
    text
}

fn line(text: &mut String, name: &str, value: &str) {
    let _ = writeln!(text, "  {name:<COLUMN$}{value}");
}

fn asked(packet: &TracePacket, from_node: Option<&str>) -> String {
    let has_ports = matches!(packet.protocol, 6 | 17);
    let port = |port| has_ports.then_some(port);
    let mut text = format!(
        "{} {} -> {}, {} bytes, ttl {}{}\n",
        protocol(Some(packet.protocol)),
        end(packet.source, port(packet.source_port)),
        end(packet.destination, port(packet.destination_port)),
        packet.size,
        packet.hop_limit,
        if packet.dont_fragment { ", df" } else { "" },
    );
    if let Some(tunnel) = &packet.tunnel {
        let _ = writeln!(
            text,
            "in VXLAN of VNI {}, {} -> {}, from {}",
            tunnel.vni,
            tunnel.source,
            or_dash(tunnel.destination),
            from_node.map_or("no node that is known".into(), |node| format!(
                "node {node}"
            )),
        );
    }
    text
}

fn sent(text: &mut String, route: Option<&TracedRoute>, sending: &Sending) {
    text.push_str("\nsent\n");
    if let Some(route) = route {
        line(
            text,
            "route",
            &format!("{} {}", route.prefix, way(&route.via)),
        );
        if let Some(member) = &route.member {
            line(
                text,
                "next hop",
                &format!("{}, by the flow's hash", way(member)),
            );
        }
        let found = format!(
            "{} of the route, {} may leave",
            or_dash(route.mtu),
            sending.largest
        );
        line(text, "mtu", &found);
        line(text, "flow", &format!("hash {:08x}", route.flow_hash));
    }
    if let Some(tunnel) = &sending.tunnel {
        let OutTunnel {
            vni,
            source,
            destination,
            source_port,
            destination_port,
        } = tunnel;
        line(
            text,
            "tunnel",
            &format!("VNI {vni}, {source} -> {destination}"),
        );
        line(text, "udp", &format!("{source_port} -> {destination_port}"));
    }
    if sending.segments > 1 {
        let found = format!(
            "{} of up to {} bytes",
            sending.segments, sending.segment_bytes
        );
        line(text, "segments", &found);
    }
    line(
        text,
        "link",
        &format!("dev {} to {}", sending.interface, sending.mac),
    );
    line(text, "engine", &sending.engine);
}

fn by_kernel(text: &mut String, kernel: &KernelPart) {
    text.push_str("\nkernel\n");
    let found = match &kernel.way {
        _ if kernel.local => format!("{} is this node's own", kernel.address),
        None => format!("no way to {}", kernel.address),
        Some(way) => {
            let mut found = format!("{} dev {}", kernel.address, way.interface);
            if let Some(gateway) = way.gateway {
                let _ = write!(found, " via {gateway}");
            }
            if let Some(mtu) = way.mtu {
                let _ = write!(found, " mtu {mtu}");
            }
            found
        }
    };
    line(text, "route", &found);
    match kernel.agrees {
        Some(true) => line(text, "agrees", "with Podway's own route"),
        Some(false) => line(
            text,
            "differs",
            "from Podway's own route: podway route get, podway status",
        ),
        None => {}
    }
}

fn verdict(text: &mut String, answer: &TraceAnswer) {
    let mut why = |what: &str,
                   Why {
                       reason,
                       meaning,
                       remedy,
                   }: &Why| {
        let _ = writeln!(text, "verdict: {what}: {reason}");
        line(text, "meaning", meaning);
        line(text, "remedy", remedy);
    };
    match &answer.trace.verdict {
        Verdict::Sent => {
            let by = answer.trace.sending.as_ref();
            let by = or_dash(by.map(|sending| &sending.interface));
            let _ = writeln!(text, "verdict: sent by {by}");
        }
        Verdict::Dropped {
            why: reason,
            answered,
        } => {
            why("dropped by the worker", reason);
            let told = match answered {
                true => "by ICMP, unless there are too many",
                false => "no",
            };
            line(text, "sender told", told);
        }
        Verdict::Refused(reason) => why("refused by the program; nobody has it", reason),
        Verdict::Kernel(reason) => why("left to the kernel", reason),
    }
}

#[cfg(test)]
mod tests {
    use podway_proto::control::RouteTarget;
    use podway_proto::reasons::{DropReason, PassCause};
    use podway_proto::trace::{InTunnel, KernelWay, Step, Trace};

    use super::*;

    fn step(at: At, rule: &str, found: &str) -> Step {
        Step {
            at,
            rule: rule.into(),
            found: found.into(),
        }
    }

    fn answer(verdict: Verdict) -> TraceAnswer {
        TraceAnswer {
            packet: TracePacket {
                from_port: "veth-a".into(),
                source: "10.0.0.2".parse().unwrap(),
                destination: "10.0.1.7".parse().unwrap(),
                protocol: 6,
                source_port: 40_000,
                destination_port: 80,
                size: 60_000,
                hop_limit: 64,
                dont_fragment: true,
                tunnel: None,
            },
            trace: Trace {
                role: "pod".into(),
                program: "tcx".into(),
                steps: vec![
                    step(At::Program, "gate", "open"),
                    step(
                        At::Program,
                        "route",
                        "a fast-path prefix that carries 1450 bytes",
                    ),
                ],
                route: None,
                sending: None,
                verdict,
            },
            from_node: None,
            kernel: None,
        }
    }

    #[test]
    fn a_packet_that_is_sent() {
        let mut answer = answer(Verdict::Sent);
        let found = "10.0.1.0/24 by node node-b";
        answer.trace.steps.push(step(At::Worker, "lookup", found));
        let node = |name: &str| RouteTarget::Node {
            node: name.into(),
            vni: None,
        };
        answer.trace.route = Some(TracedRoute {
            prefix: "10.0.1.0/24".parse().unwrap(),
            via: RouteTarget::Multipath {
                members: vec![node("node-b"), node("node-c")],
            },
            member: Some(node("node-b")),
            flow_hash: 0x1234,
            mtu: Some(1450),
        });
        answer.trace.sending = Some(Sending {
            interface: "eth0".into(),
            mac: "02:00:00:00:00:0b".parse().unwrap(),
            tunnel: Some(OutTunnel {
                vni: 1.try_into().unwrap(),
                source: "192.168.1.1".parse().unwrap(),
                destination: "192.168.1.2".parse().unwrap(),
                source_port: 51_234,
                destination_port: 4789,
            }),
            largest: 1450,
            segments: 43,
            segment_bytes: 1450,
            engine: "tap".into(),
        });
        assert_eq!(
            text(&answer),
            "\
tcp 10.0.0.2:40000 -> 10.0.1.7:80, 60000 bytes, ttl 64, df

port veth-a, program at tcx
  gate          open
  route         a fast-path prefix that carries 1450 bytes

worker
  lookup        10.0.1.0/24 by node node-b

sent
  route         10.0.1.0/24 via node-b via node-c
  next hop      via node-b, by the flow's hash
  mtu           1450 of the route, 1450 may leave
  flow          hash 00001234
  tunnel        VNI 1, 192.168.1.1 -> 192.168.1.2
  udp           51234 -> 4789
  segments      43 of up to 1450 bytes
  link          dev eth0 to 02:00:00:00:00:0b
  engine        tap

verdict: sent by eth0
"
        );
    }

    #[test]
    fn a_packet_that_the_kernel_has() {
        let mut answer = answer(Verdict::Kernel(PassCause::Options.explain().into()));
        answer.packet.protocol = 1;
        answer.trace.program = "generic".into();
        answer.kernel = Some(KernelPart {
            address: "10.0.1.7".parse().unwrap(),
            local: false,
            way: Some(KernelWay {
                interface: "podway.vx".into(),
                gateway: Some("10.0.1.0".parse().unwrap()),
                mtu: Some(1450),
            }),
            agrees: Some(true),
        });
        assert_eq!(
            text(&answer),
            "\
icmp 10.0.0.2 -> 10.0.1.7, 60000 bytes, ttl 64, df

port veth-a, program as XDP (generic)
  gate          open
  route         a fast-path prefix that carries 1450 bytes

kernel
  route         10.0.1.7 dev podway.vx via 10.0.1.0 mtu 1450
  agrees        with Podway's own route

verdict: left to the kernel: options
  meaning       an IPv4 header with options
  remedy        None is needed: the kernel has these packets.
"
        );
        let kernel = answer.kernel.as_mut().unwrap();
        (kernel.way, kernel.agrees) = (None, Some(false));
        let shown = text(&answer);
        let rows = "  route         no way to 10.0.1.7\n  differs       from Podway's own route: podway \
                    route get, podway status\n";
        assert!(shown.contains(rows), "{shown}");
        answer.kernel.as_mut().unwrap().local = true;
        assert!(text(&answer).contains("10.0.1.7 is this node's own"));
    }

    #[test]
    fn a_packet_out_of_a_tunnel_that_is_dropped() {
        let mut answer = answer(Verdict::Dropped {
            why: DropReason::UnknownVtep.explain().into(),
            answered: false,
        });
        answer.packet.tunnel = Some(InTunnel {
            vni: 7.try_into().unwrap(),
            source: "192.168.1.77".parse().unwrap(),
            destination: Some("192.168.1.1".parse().unwrap()),
        });
        let shown = text(&answer);
        let second = "in VXLAN of VNI 7, 192.168.1.77 -> 192.168.1.1, from no node that is known";
        assert_eq!(shown.lines().nth(1), Some(second));
        let rows = "verdict: dropped by the worker: unknown_vtep\n  meaning       The tunnel's source \
                    is no known node.\n";
        assert!(shown.contains(rows), "{shown}");
        assert!(shown.ends_with("  sender told   no\n"), "{shown}");
        answer.from_node = Some("node-b".into());
        assert!(text(&answer).contains("from node node-b\n"));
    }
}
