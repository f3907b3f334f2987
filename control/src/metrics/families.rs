//! Answers as families of metrics.
//!
//! Names follow <https://prometheus.io/docs/practices/naming/>. What is counted has the name that
//! `podway counters` gives it, with a unit and `_total`; docs/counters.md places it on the packet
//! path. A label has as many values as the node has interfaces, workers, nodes, reasons or causes;
//! there is none of a flow.

use std::collections::BTreeMap;

use podway_proto::control::{
    DataplaneLink, DriftStatus, HealthStatus, KernelStatus, NodeEntry, NodeHealth, PathHealth,
    PathState, PortEntry, PortRoleSpec, Status,
};
use podway_proto::dataplane::{self, BURST_SIZES, Books, Counters, PortCounters, WorkerCounters};

use super::scrape::Scrape;
use super::text::{Page, Sample, distribution, flag, one, sample};
use crate::COMMIT;

/// The page of a scrape.
pub(super) fn page(scrape: &Scrape) -> String {
    let mut page = Page::default();
    let version = env!("CARGO_PKG_VERSION");
    page.gauge(
        "podway_build_info",
        "Version of podway-control, and the commit that it was built of; always 1.",
        [sample(&[("version", version), ("commit", COMMIT)], 1)],
    );
    page.gauge(
        "podway_control_up",
        "Whether the main loop of podway-control answers.",
        one(flag(scrape.status.is_some())),
    );
    requests(&mut page, scrape);
    let dataplane = scrape.status.as_ref().and_then(|s| s.dataplane.status());
    page.gauge(
        "podway_dataplane_up",
        "Whether podway-dataplane answers; without it the kernel forwards.",
        one(flag(dataplane.is_some())),
    );
    if let Some(status) = &scrape.status {
        node(&mut page, status);
        link(&mut page, &status.dataplane);
        drift(&mut page, &status.drift);
        kernel(&mut page, &status.kernel);
        if let Some(health) = &status.health {
            health_counts(&mut page, health);
        }
    }
    nodes(&mut page, &scrape.nodes);
    told_ports(&mut page, &scrape.ports);
    if let Some(dataplane) = dataplane {
        process(&mut page, dataplane);
        tables(&mut page, &dataplane.tables);
        workers(&mut page, &dataplane.workers);
        ports(&mut page, &dataplane.ports);
    }
    if let Some((counters, imbalances)) = &scrape.counters {
        counted(&mut page, counters);
        page.gauge(
            "podway_book_imbalances",
            "Books that do not balance; while packets flow, those on their way show here.",
            one(imbalances),
        );
    }
    page.finish()
}

fn requests(page: &mut Page, scrape: &Scrape) {
    page.counter(
        "podway_control_requests_total",
        "Requests at control.sock by what was asked for and the code of the answer; scrapes are among them.",
        scrape.requests.iter().map(|(verb, code, count)| {
            sample(&[("verb", verb), ("code", code)], count)
        }),
    );
}

fn node(page: &mut Page, status: &Status) {
    let bytes = |mtu: Option<u32>| mtu.map(|mtu| sample(&[], mtu));
    page.gauge(
        "podway_node_info",
        "Name of this node, and how it sends to nodes that were told without a mode; always 1.",
        [sample(
            &[
                ("node", &status.node),
                ("mode", &status.mode.to_string()),
                ("vni", &status.vni.to_string()),
            ],
            1,
        )],
    );
    page.gauge(
        "podway_uplink_mtu_bytes",
        "MTU of the uplink.",
        bytes(status.uplink_mtu),
    );
    page.gauge(
        "podway_pod_mtu_bytes",
        "Largest MTU of pods' routes whose packets fit each way to another node.",
        bytes(status.pod_mtu),
    );
    page.gauge(
        "podway_hints",
        "Things that are missing, as podway status names them.",
        one(status.hints.len()),
    );
}

fn link(page: &mut Page, link: &DataplaneLink) {
    let (synced, refused) = match link {
        DataplaneLink::Disconnected { .. } => (false, None),
        DataplaneLink::Syncing { refused, .. } => (false, Some(refused)),
        DataplaneLink::Synced { refused, .. } => (true, Some(refused)),
    };
    page.gauge(
        "podway_dataplane_synced",
        "Whether the dataplane has been told all facts.",
        one(flag(synced)),
    );
    page.gauge(
        "podway_dataplane_refused_facts",
        "Facts that the dataplane has refused.",
        refused.map(|refused| sample(&[], refused.len())),
    );
}

fn drift(page: &mut Page, drift: &DriftStatus) {
    page.gauge(
        "podway_drift_found",
        "Kinds of facts of which the dataplane holds something else than it was told.",
        one(drift.found.len()),
    );
    page.counter(
        "podway_drift_mended_total",
        "How often what the dataplane holds was told anew since control was started.",
        one(drift.mended),
    );
    page.gauge(
        "podway_drift_compared_age_seconds",
        "Time since what it holds was compared last.",
        drift.compared_seconds_ago.map(|ago| sample(&[], ago)),
    );
}

fn kernel(page: &mut Page, kernel: &KernelStatus) {
    page.gauge(
        "podway_kernel_in_sync",
        "Whether VXLAN device, routes and neighbours of the kernel are as they should be.",
        one(flag(kernel.in_sync)),
    );
    page.gauge(
        "podway_kernel_errors",
        "Things in the kernel that are not.",
        one(kernel.errors.len()),
    );
}

fn health_counts(page: &mut Page, health: &HealthStatus) {
    let known = health.reachable + health.unreachable;
    let states = [
        ("reachable", health.reachable),
        ("unreachable", health.unreachable),
        ("unknown", health.nodes.saturating_sub(known)),
    ];
    page.gauge(
        "podway_nodes",
        "Other nodes, by whether they are reached by probes.",
        states.map(|(state, count)| sample(&[("state", state)], count)),
    );
    page.gauge(
        "podway_health_errors",
        "Things that keep probes from being sent.",
        one(health.errors.len()),
    );
}

/// Both paths to each node that is probed.
fn nodes(page: &mut Page, nodes: &[NodeEntry]) {
    let paths = || {
        let probed = nodes.iter().filter_map(|n| Some((&*n.name, n.health?)));
        probed.flat_map(|(name, NodeHealth { underlay, overlay })| {
            [(name, "underlay", underlay), (name, "overlay", overlay)]
        })
    };
    let gauge = |page: &mut Page, name, help, value: fn(&PathHealth) -> Option<String>| {
        let samples = paths().filter_map(|(node, layer, path)| {
            Some(sample(&[("node", node), ("layer", layer)], value(&path)?))
        });
        page.gauge(name, help, samples);
    };
    gauge(
        page,
        "podway_node_reachable",
        "Whether the node is reached by this path; missing while that is not known.",
        |path| match path.state {
            PathState::Reachable => Some("1".to_owned()),
            PathState::Unreachable => Some("0".to_owned()),
            PathState::Unknown { .. } => None,
        },
    );
    gauge(
        page,
        "podway_node_rtt_seconds",
        "Smoothed round trip of probes; the control processes on both sides are in it.",
        |path| {
            let rtt = path.smoothed_rtt_microseconds?;
            Some((f64::from(rtt) / 1e6).to_string())
        },
    );
    gauge(
        page,
        "podway_node_loss_ratio",
        "How many of the last probes, up to 64, were not answered in time.",
        |path| {
            let ratio = f64::from(path.lost) / f64::from(path.probes);
            (path.probes > 0).then(|| ratio.to_string())
        },
    );
}

fn told_ports(page: &mut Page, ports: &[PortEntry]) {
    page.gauge(
        "podway_port_waiting",
        "Whether a port that was told waits for something, such as its link or the pod's MAC.",
        ports.iter().map(|port| {
            let waiting = flag(port.waiting.is_some());
            sample(&[("interface", &port.spec.interface)], waiting)
        }),
    );
    page.gauge(
        "podway_pod_info",
        "The first address of the pod behind a port, by which Kubernetes knows its name; always 1.",
        ports.iter().filter_map(|port| {
            let PortRoleSpec::Pod { addresses, .. } = &port.spec.role else {
                return None;
            };
            let address = addresses.first()?.to_string();
            let labels = [("interface", &*port.spec.interface), ("pod_ip", &*address)];
            Some(sample(&labels, 1))
        }),
    );
}

fn process(page: &mut Page, status: &dataplane::Status) {
    page.gauge(
        "podway_dataplane_info",
        "Version of podway-dataplane and how its workers wait; always 1.",
        [sample(
            &[("version", &status.version), ("wait", &status.wait)],
            1,
        )],
    );
    page.gauge(
        "podway_dataplane_uptime_seconds",
        "Time since the dataplane was started.",
        one(status.uptime_seconds),
    );
    page.gauge(
        "podway_gate_open",
        "Whether the programs on the ports redirect; otherwise the kernel has all packets.",
        one(flag(status.gate_open)),
    );
}

fn tables(page: &mut Page, tables: &dataplane::TableStatus) {
    for (name, help, value) in [
        (
            "podway_fib_generation",
            "Number of the tables that were published last.",
            tables.generation,
        ),
        (
            "podway_fib_adopted_generation",
            "Number of the oldest tables that a worker may still read.",
            tables.adopted,
        ),
        (
            "podway_fib_routes",
            "Routes, those to local pods included.",
            tables.routes,
        ),
        (
            "podway_fib_unresolved_routes",
            "Routes whose next hop is not resolved; their packets are the kernel's.",
            tables.unresolved,
        ),
        ("podway_fib_nodes", "Remote nodes.", tables.nodes),
        (
            "podway_fib_neighbors",
            "Resolved neighbours.",
            tables.neighbors,
        ),
    ] {
        page.gauge(name, help, one(value));
    }
}

fn workers(page: &mut Page, workers: &[dataplane::WorkerStatus]) {
    page.gauge(
        "podway_worker_info",
        "The CPU that a worker is pinned to; always 1.",
        workers.iter().map(|worker| {
            let cpu = worker.cpu.map_or_else(|| "-".to_owned(), |c| c.to_string());
            sample(&[("worker", &worker.worker.to_string()), ("cpu", &cpu)], 1)
        }),
    );
    page.gauge(
        "podway_worker_frames",
        "Frames made for a worker.",
        workers
            .iter()
            .map(|worker| sample(&[("worker", &worker.worker.to_string())], worker.frames)),
    );
}

fn ports(page: &mut Page, ports: &[dataplane::PortStatus]) {
    page.gauge(
        "podway_port_info",
        "What is behind a port, where its program runs, and its engines; always 1.",
        ports.iter().map(|port| {
            let labels = [
                ("interface", &*port.interface),
                ("role", &*port.role),
                ("xdp_mode", &*port.xdp_mode),
                ("ingress", &*port.ingress),
                ("egress", &*port.egress),
            ];
            sample(&labels, 1)
        }),
    );
    page.gauge(
        "podway_port_mtu_bytes",
        "MTU of a port.",
        ports
            .iter()
            .map(|port| sample(&[("interface", &port.interface)], port.mtu)),
    );
}

fn counted(page: &mut Page, counters: &Counters) {
    for (name, help, field) in PORT_COUNTERS {
        let ports = counters.ports.iter();
        let samples = ports.map(|(name, port)| sample(&[("interface", name)], field(port)));
        page.counter(name, help, samples);
    }
    page.counter(
        "podway_xdp_passed_packets_total",
        "Packets that the program on a port left to the kernel; causes at 0 are left out.",
        by_cause(&counters.ports, |port| &port.xdp_passed)
            .filter_map(|(passed, count)| (count > 0).then_some(passed)),
    );
    page.counter(
        "podway_xdp_refused_packets_total",
        "Packets that the program on a port dropped: nobody has them.",
        by_cause(&counters.ports, |port| &port.xdp_refused).map(|(refused, _)| refused),
    );
    for (name, help, field) in WORKER_COUNTERS {
        let workers = counters.workers.iter().enumerate();
        let samples = workers
            .map(|(number, worker)| sample(&[("worker", &number.to_string())], field(worker)));
        page.counter(name, help, samples);
    }
    page.histogram(
        "podway_worker_burst_packets",
        "How many packets the bursts of a worker have had.",
        counters
            .workers
            .iter()
            .enumerate()
            .flat_map(|(number, of)| {
                let sizes = BURST_SIZES.into_iter().zip(of.burst_sizes.iter().copied());
                distribution(("worker", &number.to_string()), sizes, of.packets)
            }),
    );
    page.counter(
        "podway_worker_busy_seconds_total",
        "Time that a worker spent with packets; CPU use beyond this is spinning.",
        counters.workers.iter().enumerate().map(|(number, worker)| {
            let seconds = seconds(worker.busy_nanoseconds);
            sample(&[("worker", &number.to_string())], seconds)
        }),
    );
    page.counter(
        "podway_dropped_packets_total",
        "Packets that the dataplane dropped, by reason; podway explain says what to do.",
        counters
            .drops
            .iter()
            .map(|(reason, count)| sample(&[("reason", reason)], count)),
    );
    page.counter(
        "podway_lost_packets_total",
        "Packets that were redirected and lost before a worker had them, by cause.",
        counters
            .losses
            .iter()
            .map(|(cause, count)| sample(&[("cause", cause)], count)),
    );
    books(page, &counters.books);
}

/// Samples by interface and cause, with their values.
fn by_cause<'a>(
    ports: &'a BTreeMap<String, PortCounters>,
    field: fn(&PortCounters) -> &BTreeMap<String, u64>,
) -> impl Iterator<Item = (Sample, u64)> + use<'a> {
    ports.iter().flat_map(move |(name, port)| {
        field(port).iter().map(move |(cause, &count)| {
            let labels = [("interface", &**name), ("cause", &**cause)];
            (sample(&labels, count), count)
        })
    })
}

/// A number with its family's name and help.
type Field<T> = (&'static str, &'static str, fn(&T) -> u64);

const PORT_COUNTERS: &[Field<PortCounters>] = &[
    (
        "podway_xdp_redirected_packets_total",
        "Packets that the program on a port gave to a worker.",
        |port| port.xdp_redirected,
    ),
    (
        "podway_rx_packets_total",
        "Packets received, a super-frame counting one.",
        |port| port.rx_packets,
    ),
    (
        "podway_rx_bytes_total",
        "Bytes received, Ethernet header included.",
        |port| port.rx_bytes,
    ),
    (
        "podway_rx_frames_total",
        "Frames of memory that the received packets took.",
        |port| port.rx_frames,
    ),
    (
        "podway_rx_dropped_packets_total",
        "Packets that were redirected and lost for want of a posted frame.",
        |port| port.rx_dropped,
    ),
    (
        "podway_rx_ring_full_packets_total",
        "Packets that were redirected and lost because the ring to the worker was full.",
        |port| port.rx_ring_full,
    ),
    (
        "podway_tx_packets_total",
        "Packets sent: received on any port, or made here.",
        |port| port.tx_packets,
    ),
    (
        "podway_tx_bytes_total",
        "Bytes handed to the kernel, with the headers that were added.",
        |port| port.tx_bytes,
    ),
    (
        "podway_tx_messages_total",
        "Messages handed to the kernel: packets or super-frames.",
        |port| port.tx_messages,
    ),
    (
        "podway_joined_packets_total",
        "Packets that left inside another one's message.",
        |port| port.joined,
    ),
    (
        "podway_cut_segments_total",
        "Segments that super-frames were cut into in user space.",
        |port| port.cut,
    ),
    (
        "podway_icmp_sent_packets_total",
        "ICMP errors made about packets that came by a port.",
        |port| port.icmp_sent,
    ),
    (
        "podway_icmp_suppressed_packets_total",
        "ICMP errors not made, because there had been so many.",
        |port| port.icmp_suppressed,
    ),
];

const WORKER_COUNTERS: &[Field<WorkerCounters>] = &[
    (
        "podway_worker_rounds_total",
        "Rounds of a worker's loop; a worker that makes none is stuck.",
        |worker| worker.rounds,
    ),
    (
        "podway_worker_bursts_total",
        "Bursts that had at least one packet.",
        |worker| worker.bursts,
    ),
    (
        "podway_worker_packets_total",
        "Packets that a worker received.",
        |worker| worker.packets,
    ),
    (
        "podway_worker_sleeps_total",
        "Times that a worker blocked or dozed.",
        |worker| worker.sleeps,
    ),
    (
        "podway_worker_rx_calls_total",
        "System calls to receive.",
        |worker| worker.rx_calls,
    ),
    (
        "podway_worker_tx_calls_total",
        "System calls to send.",
        |worker| worker.tx_calls,
    ),
    (
        "podway_worker_wait_calls_total",
        "System calls to find ready queues, and to wait for one.",
        |worker| worker.wait_calls,
    ),
];

const BOOK_COUNTERS: &[Field<Books>] = &[
    (
        "podway_book_received_packets_total",
        "Packets received by all ports that ever were.",
        |books| books.packets_received,
    ),
    (
        "podway_book_made_packets_total",
        "Packets made by the dataplane: ICMP errors.",
        |books| books.packets_made,
    ),
    (
        "podway_book_sent_packets_total",
        "Packets sent, each that was received or made counting once.",
        |books| books.packets_sent,
    ),
    (
        "podway_book_dropped_packets_total",
        "Packets dropped for any reason.",
        |books| books.packets_dropped,
    ),
    (
        "podway_book_redirected_packets_total",
        "Packets redirected by the programs on all ports that ever were.",
        |books| books.xdp_redirected,
    ),
    (
        "podway_book_lost_packets_total",
        "Packets redirected and lost before they were received.",
        |books| books.xdp_lost,
    ),
];

fn books(page: &mut Page, books: &Books) {
    let states = [
        ("pooled", books.frames_pooled),
        ("posted", books.frames_posted),
        ("held", books.frames_held),
    ];
    page.gauge(
        "podway_frames",
        "Frames of memory by where they are: free, with the kernel, or in hand.",
        states.map(|(state, count)| sample(&[("state", state)], count)),
    );
    page.gauge(
        "podway_frames_made",
        "Frames of memory; while the dataplane is at rest, the sum of podway_frames.",
        one(books.frames_made),
    );
    for (name, help, field) in BOOK_COUNTERS {
        page.counter(name, help, one(field(books)));
    }
}

#[expect(
    clippy::cast_precision_loss,
    reason = "so are all values of Prometheus"
)]
fn seconds(nanoseconds: u64) -> f64 {
    nanoseconds as f64 / 1e9
}

#[cfg(test)]
mod tests;
