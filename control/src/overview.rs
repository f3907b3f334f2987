//! A node at a glance, for `podway status --verbose` and `podway top`: what several answers of the daemon
//! say, and what follows from two looks at the counters.

use std::time::{Duration, Instant};

use podway_proto::client::{Client, ClientError};
use podway_proto::control::{NodeEntry, Request, Response, Status};
use podway_proto::dataplane::{Counters, DropCount, Drops, PortCounters, WorkerCounters};
use serde::Serialize;

/// All that is asked at a time.
#[derive(Debug, Clone)]
pub struct Look {
    /// When the counters were read.
    pub at: Instant,
    /// How the node is.
    pub status: Status,
    /// What was counted; `None` while there is no dataplane.
    pub counters: Option<Counters>,
    /// What was dropped; `None` likewise.
    pub drops: Option<Drops>,
    /// The nodes of the cluster.
    pub nodes: Vec<NodeEntry>,
}

impl Look {
    /// Asks the daemon.
    ///
    /// # Errors
    /// When it cannot be reached or does not answer. A dataplane that is not there is none.
    pub fn take(client: &mut Client) -> Result<Self, ClientError> {
        let counters = optional(client.call(&Request::Counters))?;
        let at = Instant::now();
        let drops = optional(client.call(&Request::Drops))?;
        let status = match client.call(&Request::Status)? {
            Response::Status(status) => *status,
            _ => return Err(strange()),
        };
        let nodes = match client.call(&Request::NodeList)? {
            Response::Nodes { nodes } => nodes,
            _ => return Err(strange()),
        };
        Ok(Self {
            at,
            status,
            counters: match counters {
                Some(Response::Counters { counters, .. }) => Some(counters),
                _ => None,
            },
            drops: match drops {
                Some(Response::Drops(drops)) => Some(drops),
                _ => None,
            },
            nodes,
        })
    }
}

fn optional(answer: Result<Response, ClientError>) -> Result<Option<Response>, ClientError> {
    match answer {
        Ok(response) => Ok(Some(response)),
        Err(ClientError::Refused(_)) => Ok(None),
        Err(error) => Err(error),
    }
}

/// A daemon that answers something else.
fn strange() -> ClientError {
    ClientError::Refused(podway_proto::ErrorBody::new(
        podway_proto::ErrorCode::System,
        "podway-control answered something else; install both from one release",
    ))
}

/// A node at a glance: one document, whose shape is stable as those of the protocol are.
#[derive(Debug, Clone, Serialize)]
pub struct Overview {
    /// `overview`.
    pub response: &'static str,
    /// How many seconds loads and rates are of.
    pub seconds: f64,
    /// Whether that is since the dataplane was started.
    pub since_start: bool,
    /// As `podway status` gives it.
    pub status: Status,
    /// The load of each worker.
    pub workers: Vec<WorkerLoad>,
    /// What goes by each port, by interface.
    pub ports: Vec<PortRate>,
    /// What was dropped, lost and refused in the last minute, what was most first; reasons without
    /// packets are left out.
    pub drops: Vec<DropCount>,
    /// As `podway node list` gives it.
    pub nodes: Vec<NodeEntry>,
}

/// The load of a worker.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct WorkerLoad {
    /// Its number.
    pub worker: u16,
    /// The CPU that it is pinned to.
    pub cpu: Option<usize>,
    /// The share of the time that it spent forwarding, 0 to 1.
    pub busy: f64,
    /// Packets that it received.
    pub packets_per_second: f64,
    /// Bursts in which it received them.
    pub bursts_per_second: f64,
    /// Packets of a burst; `None` where there was none.
    pub packets_per_burst: Option<f64>,
}

/// What goes by a port.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PortRate {
    /// Its interface.
    pub interface: String,
    /// Packets that came by it, to the dataplane.
    pub rx_packets_per_second: f64,
    /// Bits of them.
    pub rx_bits_per_second: f64,
    /// Packets that left by it.
    pub tx_packets_per_second: f64,
    /// Bits of them.
    pub tx_bits_per_second: f64,
    /// Packets that were left to the kernel.
    pub passed_per_second: f64,
    /// Packets that were lost before a worker had them, or refused.
    pub lost_per_second: f64,
}

impl Overview {
    /// The overview of two looks.
    pub fn between(before: &Look, now: Look) -> Self {
        let elapsed = now.at.saturating_duration_since(before.at);
        let old = before.counters.clone().unwrap_or_default();
        Self::of(&old, elapsed, false, now)
    }

    /// The overview of one look, with loads and rates since the start.
    pub fn since_start(now: Look) -> Self {
        let uptime = now
            .status
            .dataplane
            .status()
            .map_or(0, |s| s.uptime_seconds);
        Self::of(&Counters::default(), Duration::from_secs(uptime), true, now)
    }

    /// The time that loads and rates are of, in words.
    pub fn span(&self) -> String {
        match self.since_start {
            true => "since the dataplane was started".to_owned(),
            false => format!("of the last {:.1} s", self.seconds),
        }
    }

    fn of(old: &Counters, elapsed: Duration, since_start: bool, now: Look) -> Self {
        let seconds = elapsed.as_secs_f64();
        let per_second = |old: u64, new: u64| rate(old, new, seconds);
        let new = now.counters.unwrap_or_default();
        let ports = new.ports.iter().map(|(name, port)| {
            let nothing = PortCounters::default();
            let base = old.ports.get(name).unwrap_or(&nothing);
            let bits = |old: u64, new: u64| 8.0 * per_second(old, new);
            let sum = |of: &PortCounters| of.xdp_passed.values().sum::<u64>();
            PortRate {
                interface: name.clone(),
                rx_packets_per_second: per_second(base.rx_packets, port.rx_packets),
                rx_bits_per_second: bits(base.rx_bytes, port.rx_bytes),
                tx_packets_per_second: per_second(base.tx_packets, port.tx_packets),
                tx_bits_per_second: bits(base.tx_bytes, port.tx_bytes),
                passed_per_second: per_second(sum(base), sum(port)),
                lost_per_second: per_second(lost(base), lost(port)),
            }
        });
        let cpus = now.status.dataplane.status();
        let cpus = cpus.map_or(&[][..], |status| status.workers.as_slice());
        let workers = (0..).zip(&new.workers).map(|(number, worker)| {
            let nothing = WorkerCounters::default();
            let base = old.workers.get(usize::from(number)).unwrap_or(&nothing);
            let busy = per_second(base.busy_nanoseconds, worker.busy_nanoseconds) / 1e9;
            let packets = per_second(base.packets, worker.packets);
            let bursts = per_second(base.bursts, worker.bursts);
            WorkerLoad {
                worker: number,
                cpu: cpus.iter().find(|w| w.worker == number).and_then(|w| w.cpu),
                busy: busy.min(1.0),
                packets_per_second: packets,
                bursts_per_second: bursts,
                packets_per_burst: (bursts > 0.0).then(|| packets / bursts),
            }
        });
        let mut drops = now.drops.unwrap_or_default().drops;
        drops.retain(|drop| drop.last_minute > 0);
        drops.sort_by_key(|drop| std::cmp::Reverse(drop.last_minute));
        Self {
            response: "overview",
            seconds,
            since_start,
            workers: workers.collect(),
            ports: ports.collect(),
            drops,
            status: now.status,
            nodes: now.nodes,
        }
    }
}

fn lost(port: &PortCounters) -> u64 {
    port.rx_dropped + port.rx_ring_full + port.xdp_refused.values().sum::<u64>()
}

/// What was counted in a second.
#[expect(clippy::cast_precision_loss, reason = "a rate for people")]
pub(crate) fn rate(old: u64, new: u64, seconds: f64) -> f64 {
    // A dataplane that was started anew counts from nothing.
    let grown = new.checked_sub(old).unwrap_or(new) as f64;
    if seconds > 0.0 { grown / seconds } else { 0.0 }
}

#[cfg(test)]
pub(crate) mod tests {
    use podway_proto::control::{
        DataplaneLink, DriftStatus, HealthStatus, KernelStatus, NodeHealth, PathHealth, PathState,
    };
    use podway_proto::dataplane::{self, PortStatus, TableStatus, WorkerStatus};
    use podway_proto::reasons::{DropReason, RefuseCause};
    use podway_proto::types::Mode;

    use super::*;

    fn port(interface: &str, role: &str) -> PortStatus {
        PortStatus {
            interface: interface.into(),
            ifindex: 2,
            role: role.into(),
            mtu: 1500,
            xdp_mode: "tcx".into(),
            xdp_mode_reason: None,
            ingress: "tap for tcp, ring for the rest".into(),
            ingress_reason: Some("the driver offers no AF_XDP without a copy".into()),
            egress: "af-packet gso".into(),
            queue_workers: vec![0],
            oversize: None,
        }
    }

    fn node(name: &str, state: Option<PathState>) -> NodeEntry {
        let path = |state| PathHealth {
            state,
            seconds: 90,
            rtt_microseconds: Some(210),
            smoothed_rtt_microseconds: Some(230),
            lost: 1,
            probes: 64,
        };
        NodeEntry {
            name: name.into(),
            local: state.is_none(),
            underlay: "192.168.1.2".parse().unwrap(),
            underlay6: None,
            pod_cidrs: vec!["10.0.1.0/24".parse().unwrap()],
            vtep_mac: "02:50:c0:a8:01:02".parse().unwrap(),
            mode: Mode::Vxlan,
            path: None,
            next_hop_mac: None,
            health: state.map(|state| NodeHealth {
                underlay: path(PathState::Reachable),
                overlay: path(state),
            }),
        }
    }

    fn status() -> Status {
        let mut ports = vec![port("eth0", "uplink")];
        ports[0].egress = "tap for what is cut on the way, else af-packet".into();
        ports.extend(["a", "b", "c", "d"].map(|pod| port(&format!("veth-{pod}"), "pod")));
        let worker = |worker| WorkerStatus {
            worker,
            cpu: (worker == 1).then_some(3),
            busy_seconds: 1.0,
            frames: 8192,
        };
        Status {
            version: "0.1.0".into(),
            pid: 7,
            log: "info".into(),
            node: "node-a".into(),
            pod_cidrs: vec!["10.0.0.0/24".parse().unwrap()],
            mode: Mode::Vxlan,
            underlay: Some("192.168.1.1".parse().unwrap()),
            vtep_mac: Some("02:50:c0:a8:01:01".parse().unwrap()),
            vni: 1.try_into().unwrap(),
            also_vnis: Vec::new(),
            vxlan_port: 4789,
            uplink: Some("eth0".into()),
            uplink_mtu: Some(1500),
            pod_mtu: Some(1450),
            pod_mtu_by: None,
            dataplane: DataplaneLink::Synced {
                refused: Vec::new(),
                status: Some(Box::new(dataplane::Status {
                    version: "0.1.0".into(),
                    pid: 8,
                    uptime_seconds: 100,
                    log: "info".into(),
                    gate_open: true,
                    wait: "adaptive".into(),
                    workers: vec![worker(0), worker(1)],
                    ports,
                    tables: TableStatus {
                        generation: 12,
                        adopted: 12,
                        routes: 5,
                        unresolved: 0,
                        nodes: 2,
                        neighbors: 2,
                    },
                })),
            },
            drift: DriftStatus {
                compared_seconds_ago: Some(4),
                ..DriftStatus::default()
            },
            kernel: KernelStatus {
                device: "podway.vx".into(),
                in_sync: true,
                errors: Vec::new(),
            },
            translates: false,
            defragments: false,
            health: Some(HealthStatus {
                port: 4790,
                interval_seconds: 10,
                nodes: 2,
                reachable: 1,
                unreachable: 1,
                troubles: Vec::new(),
                errors: Vec::new(),
            }),
            hints: vec!["the kernel does not forward IPv4: sysctl -w net.ipv4.ip_forward=1".into()],
        }
    }

    fn dropped(reason: podway_proto::reasons::Explanation, last_minute: u64) -> DropCount {
        DropCount {
            reason: reason.name.into(),
            places: reason.places.to_vec(),
            packets: last_minute + 5,
            packets_per_second: 0.5,
            last_minute,
            interfaces: Default::default(),
            last: None,
            meaning: reason.meaning.into(),
            remedy: reason.remedy.into(),
        }
    }

    /// A look after `steps` seconds, each of which was like the others.
    pub(crate) fn look(at: Instant, steps: u64) -> Look {
        let mut counters = Counters::default();
        let uplink = PortCounters {
            rx_packets: 81_000 * steps,
            rx_bytes: 125_000_000 * steps,
            tx_packets: 2_000 * steps,
            tx_bytes: 150_000 * steps,
            xdp_passed: [("not_ip".to_owned(), 3 * steps)].into(),
            rx_ring_full: steps,
            ..PortCounters::default()
        };
        let pod = PortCounters {
            tx_packets: 81_000 * steps,
            tx_bytes: 125_000_000 * steps,
            ..PortCounters::default()
        };
        counters.ports.insert("eth0".into(), uplink);
        counters.ports.insert("veth-a".into(), pod);
        for pod in ["veth-b", "veth-c", "veth-d"] {
            counters.ports.insert(pod.into(), PortCounters::default());
        }
        counters.workers.push(WorkerCounters {
            bursts: 9_000 * steps,
            packets: 81_000 * steps,
            busy_nanoseconds: 420_000_000 * steps,
            ..WorkerCounters::default()
        });
        counters.workers.push(WorkerCounters::default());
        Look {
            at: at + Duration::from_secs(steps),
            status: status(),
            counters: Some(counters),
            drops: Some(Drops {
                drops: vec![
                    dropped(DropReason::NoRoute.explain(), 3),
                    dropped(DropReason::TooBig.explain(), 0),
                    dropped(RefuseCause::SpoofedSource.explain(), 40),
                ],
                passed: Vec::new(),
            }),
            nodes: vec![
                node("node-a", None),
                node("node-b", Some(PathState::Reachable)),
                node("node-c", Some(PathState::Unreachable)),
            ],
        }
    }

    /// What two of them say.
    pub(crate) fn overview() -> Overview {
        let start = Instant::now();
        Overview::between(&look(start, 1), look(start, 3))
    }

    #[test]
    fn two_looks_make_rates() {
        let seen = overview();
        assert_eq!((seen.seconds, seen.since_start), (2.0, false));
        let load = &seen.workers[0];
        assert_eq!((load.busy, load.packets_per_burst), (0.42, Some(9.0)));
        assert_eq!(load.bursts_per_second, 9_000.0);
        let idle = &seen.workers[1];
        assert_eq!(
            (idle.cpu, idle.busy, idle.packets_per_burst),
            (Some(3), 0.0, None)
        );
        let uplink = &seen.ports[0];
        assert_eq!(uplink.rx_packets_per_second, 81_000.0);
        assert_eq!(uplink.rx_bits_per_second, 1e9);
        assert_eq!(
            (uplink.passed_per_second, uplink.lost_per_second),
            (3.0, 1.0)
        );
        let reasons: Vec<_> = seen.drops.iter().map(|drop| drop.reason.as_str()).collect();
        assert_eq!(reasons, ["spoofed_source", "no_route"]);
    }

    #[test]
    fn one_look_makes_rates_since_the_start() {
        let seen = Overview::since_start(look(Instant::now(), 50));
        assert_eq!((seen.seconds, seen.since_start), (100.0, true));
        assert_eq!(seen.workers[0].packets_per_second, 40_500.0);
    }

    #[test]
    fn a_dataplane_that_was_started_anew_counts_from_nothing() {
        let start = Instant::now();
        let mut before = look(start, 5);
        before.at = start;
        let seen = Overview::between(&before, look(start, 1));
        assert_eq!(seen.ports[0].rx_packets_per_second, 81_000.0);
        let mut gone = look(start, 1);
        (gone.counters, gone.drops) = (None, None);
        let seen = Overview::between(&before, gone);
        assert!(seen.ports.is_empty() && seen.workers.is_empty() && seen.drops.is_empty());
    }

    /// The names of the document stay as they are.
    #[test]
    fn the_document_has_a_stable_shape() {
        let document = serde_json::to_value(overview()).unwrap();
        let keys = |value: &serde_json::Value| -> Vec<String> {
            value.as_object().unwrap().keys().cloned().collect()
        };
        assert_eq!(
            keys(&document),
            [
                "drops",
                "nodes",
                "ports",
                "response",
                "seconds",
                "since_start",
                "status",
                "workers"
            ]
        );
        assert_eq!(
            document["workers"][0],
            serde_json::json!({
                "worker": 0,
                "cpu": null,
                "busy": 0.42,
                "packets_per_second": 81000.0,
                "bursts_per_second": 9000.0,
                "packets_per_burst": 9.0,
            })
        );
        assert_eq!(
            document["ports"][1],
            serde_json::json!({
                "interface": "veth-a",
                "rx_packets_per_second": 0.0,
                "rx_bits_per_second": 0.0,
                "tx_packets_per_second": 81000.0,
                "tx_bits_per_second": 1e9,
                "passed_per_second": 0.0,
                "lost_per_second": 0.0,
            })
        );
        assert_eq!(document["status"]["node"], "node-a");
        assert_eq!(document["nodes"][1]["name"], "node-b");
    }
}
