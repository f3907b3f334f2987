//! What would happen to a packet: the program on its port, then a worker. Nothing is sent or counted.

use podway_proto::control::RouteTarget;
use podway_proto::reasons::PassCause;
use podway_proto::trace::{At, Sending, Step, Trace, TracePacket, TracedRoute, Verdict};
use podway_proto::types::{MacAddr, PortRole};
use podway_proto::{ErrorBody, ErrorCode};
use podway_xdp_redirect::{Arrival, Fate, Finding, Kind, Way};

use super::ports::{AttachedPort, Program, is_pod};
use super::{Supervisor, system};
use crate::fib::NextHopKind;
use crate::trace::{Dropped, Ends, Forwarded, Made, Sent, Served, forwarded, make};
use crate::wire::{flow_hash, parse};

/// Who sends by an uplink: of no interest to any rule.
const NEIGHBOR: MacAddr = MacAddr([2, 0, 0, 0, 0, 0]);

impl Supervisor {
    /// What would happen to a packet now.
    ///
    /// # Errors
    /// When the port is not attached, such a packet cannot be, or a map cannot be read.
    pub fn trace(&self, asked: &TracePacket) -> Result<Trace, ErrorBody> {
        let port = self.ports.get(&asked.from_port).ok_or_else(|| {
            let message = format!(
                "{} is no port of the dataplane; see podway port show",
                asked.from_port
            );
            ErrorBody::new(ErrorCode::NotFound, message)
        })?;
        let invalid = |message| ErrorBody::new(ErrorCode::Invalid, message);
        if asked.tunnel.is_some() && is_pod(&port.role) {
            let message = format!(
                "{} is the port of a pod, and tunnels come by uplinks; leave --vni out",
                asked.from_port
            );
            return Err(invalid(message));
        }
        let made = make(asked, &self.ends(port)).map_err(invalid)?;
        let mut trace = Trace {
            role: role(&port.role).to_owned(),
            program: port
                .attachment
                .as_ref()
                .map_or("none".into(), Program::name),
            steps: Vec::new(),
            route: None,
            sending: None,
            verdict: Verdict::Sent,
        };
        let fate = match &port.attachment {
            Some(program) => self.at_the_port(port, program, &made, &mut trace)?,
            None => {
                trace
                    .steps
                    .push(at(At::Program, "program", "none is attached yet"));
                Fate::Pass(PassCause::UnknownPort)
            }
        };
        match fate {
            Fate::Redirect { by, .. } => self.at_a_worker(port, by, asked, &made, &mut trace)?,
            Fate::Pass(cause) => {
                trace.verdict = Verdict::Kernel(cause.explain().into());
                // What Podway's own route is, that it is not taken by.
                trace.route = self.route(asked, &made);
            }
            Fate::Refuse(cause) => trace.verdict = Verdict::Refused(cause.explain().into()),
        }
        Ok(trace)
    }

    fn ends(&self, port: &AttachedPort) -> Ends {
        let local = self.publisher.current().and_then(|tables| tables.local());
        Ends {
            port: port.interface.mac,
            sender: match port.role {
                PortRole::Pod { mac, .. } => mac,
                PortRole::Uplink { .. } => NEIGHBOR,
            },
            vtep: local.map_or(NEIGHBOR, |local| local.vtep_mac),
            mtu: port.interface.mtu,
            vxlan_port: local.map_or(0, |local| local.vxlan_port),
            from_pod: is_pod(&port.role),
        }
    }

    fn at_the_port(
        &self,
        port: &AttachedPort,
        program: &Program,
        made: &Made,
        trace: &mut Trace,
    ) -> Result<Fate, ErrorBody> {
        let arrival = Arrival {
            ifindex: port.interface.ifindex,
            queue: 0,
            program: match program {
                Program::Tcx { .. } => Kind::Tcx,
                Program::Xdp(_) => Kind::Xdp,
            },
            frame: &made.frame,
            // XDP does not know.
            gso: made.segment.is_some() && matches!(program, Program::Tcx { .. }),
        };
        let walk = self.redirect.walk(&arrival).map_err(system)?;
        let steps = walk
            .findings
            .into_iter()
            .map(|Finding { rule, found }| Step {
                at: At::Program,
                rule: rule.to_owned(),
                found,
            });
        trace.steps.extend(steps);
        Ok(walk.fate)
    }

    fn route(&self, asked: &TracePacket, made: &Made) -> Option<TracedRoute> {
        let inner = made.frame.get(made.inner..)?;
        let headers = parse::parse(inner, 14, inner.len());
        let flow_hash = headers.as_ref().map_or(0, flow_hash::hash);
        self.fib.trace(asked.destination, flow_hash)
    }

    fn at_a_worker(
        &self,
        port: &AttachedPort,
        by: Way,
        asked: &TracePacket,
        made: &Made,
        trace: &mut Trace,
    ) -> Result<(), ErrorBody> {
        let Some(tables) = self.publisher.current() else {
            return Ok(());
        };
        let served = Served {
            port: port.id,
            by_tap: by == Way::Tap,
            has_tap: self.no_tap.is_none(),
            source_ports: self.config.source_ports,
            limits: self.limits.as_deref(),
        };
        let mut step = |rule: &str, found: String| trace.steps.push(at(At::Worker, rule, &found));
        if let Some(tunnel) = &asked.tunnel {
            let known = if tables.is_vtep(tunnel.source) {
                "a known node's"
            } else {
                "no node's"
            };
            step(
                "decap",
                format!("the tunnel's source {} is {known}", tunnel.source),
            );
        }
        let Forwarded { flow_hash, outcome } = forwarded(made, &served, tables).map_err(system)?;
        trace.route = flow_hash.and_then(|hash| self.fib.trace(asked.destination, hash));
        if let Some(route) = &trace.route {
            let way = |target: &RouteTarget| match target {
                RouteTarget::Pod { interface } => format!("the pod on {interface}"),
                RouteTarget::Node { node, .. } => format!("node {node}"),
                RouteTarget::Gateway { address, .. } => format!("the router {address}"),
                RouteTarget::Multipath { members } => format!("{} next hops", members.len()),
            };
            let found = match &route.member {
                Some(member) => format!(
                    "{} by {}, of these {}",
                    route.prefix,
                    way(&route.via),
                    way(member)
                ),
                None => format!("{} by {}", route.prefix, way(&route.via)),
            };
            step("lookup", found);
        }
        match outcome {
            Ok(sent) => {
                let found = match (sent.segments, sent.segment_bytes) {
                    (1, _) => format!("{} bytes, of {} that may leave", asked.size, sent.largest),
                    (count, bytes) => format!("cut to {count} segments of up to {bytes} bytes"),
                };
                step("size", found);
                trace.sending = Some(self.sending(&sent));
            }
            Err(Dropped { reason, answered }) => {
                let why = reason.explain();
                let place = why
                    .places
                    .first()
                    .map_or("worker".into(), ToString::to_string);
                step(&place, why.meaning.to_owned());
                let why = why.into();
                trace.verdict = Verdict::Dropped { why, answered };
            }
        }
        Ok(())
    }

    fn sending(&self, sent: &Sent) -> Sending {
        let hop = &sent.next_hop;
        let (tunnel, macs) = match &hop.kind {
            NextHopKind::Tunnel(outer) => {
                let tunnel = outer.told(sent.source_port.unwrap_or(0));
                (tunnel, outer.bytes())
            }
            _ => (None, &hop.l2.0[..]),
        };
        Sending {
            interface: self.fib.interface(hop.port).unwrap_or_default().to_owned(),
            mac: MacAddr(macs.first_chunk().copied().unwrap_or_default()),
            tunnel,
            largest: sent.largest,
            segments: sent.segments,
            segment_bytes: sent.segment_bytes,
            engine: if sent.by_tap { "tap" } else { "af-packet" }.to_owned(),
        }
    }
}

fn role(role: &PortRole) -> &'static str {
    if is_pod(role) { "pod" } else { "uplink" }
}

fn at(at: At, rule: &str, found: &str) -> Step {
    Step {
        at,
        rule: rule.to_owned(),
        found: found.to_owned(),
    }
}
