//! The documents of both protocols, as they cross the sockets, against golden files: a change of
//! a file is a change of the protocol, which may need a new [`VERSION`].
//!
//! `PODWAY_BLESS=1 cargo test -p podway-proto --test golden` writes the files anew.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::path::Path;

use podway_proto::control::{self, PortRoleSpec, ViaSpec};
use podway_proto::dataplane::{self, Change};
use podway_proto::digest::{Digest, Digests};
use podway_proto::entries::{Difference, Entries, EntryKey, RefusedEntry};
use podway_proto::perf::{Perf, Sampled, Spread, Stage, StagePerf, Work, WorkerPerf};
use podway_proto::reasons::{DropReason, Explanation, LossCause, PassCause, RefuseCause};
use podway_proto::trace::{self, Verdict};
use podway_proto::types::{
    Link, LocalNode, MacAddr, Mode, Neighbor, Node, Path as NodePath, Port, PortRole, Route, Via,
    Vni,
};
use podway_proto::watch::{
    WatchFlow, WatchNextHop, WatchNextHopKind, WatchPoint, WatchRecord, WatchRoute, WatchSender,
    WatchSpec, Watched,
};
use podway_proto::{ErrorBody, ErrorCode, VERSION};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Compares `examples` with the file `name`, both ways, and asserts that every variant of the enum
/// has an example. `tag` is the field that tells variants apart.
fn compare<T>(name: &str, tag: &str, examples: &[T])
where
    T: Serialize + DeserializeOwned + PartialEq + Debug,
{
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden")
        .join(name);
    let text = serde_json::to_string_pretty(examples).unwrap() + "\n";
    if std::env::var_os("PODWAY_BLESS").is_some() {
        std::fs::write(&path, &text).unwrap();
    }
    let golden = std::fs::read_to_string(&path).unwrap();
    assert_eq!(
        text, golden,
        "{name}: the protocol has changed; does VERSION (now {VERSION}) have to be raised?"
    );
    assert_eq!(
        serde_json::from_str::<Vec<T>>(&golden).unwrap(),
        examples,
        "{name}"
    );
    assert_eq!(
        tags(tag, examples),
        variants::<T>(tag),
        "{name}: a variant has no example"
    );
}

/// The tags that occur in `examples`.
fn tags<T: Serialize>(tag: &str, examples: &[T]) -> BTreeSet<String> {
    let tag_of = |example| {
        let value = serde_json::to_value(example).unwrap();
        value[tag].as_str().unwrap().to_owned()
    };
    examples.iter().map(tag_of).collect()
}

/// The tags of all variants of `T`, as the error about a wrong one lists them in backquotes.
fn variants<T: DeserializeOwned + Debug>(tag: &str) -> BTreeSet<String> {
    let wrong = serde_json::json!({ tag: "?" });
    let error = serde_json::from_value::<T>(wrong).unwrap_err().to_string();
    let (_, list) = error.split_once("expected").unwrap();
    list.split('`')
        .skip(1)
        .step_by(2)
        .map(str::to_owned)
        .collect()
}

fn parse<T: std::str::FromStr<Err: Debug>>(text: &str) -> T {
    text.parse().unwrap()
}

fn path() -> NodePath {
    NodePath {
        interface: "eth0".into(),
        next_hop: parse("192.168.1.2"),
        source: parse("192.168.1.1"),
        mtu: 1500,
    }
}

#[test]
fn control_requests() {
    use control::Request;
    let node = |vtep_mac, mode| {
        Request::NodeSet(control::NodeSpec {
            name: "node-b".into(),
            underlay: parse("192.168.1.2"),
            underlay6: Some("fd00:100::2".parse().unwrap()),
            pod_cidrs: vec![parse("10.0.1.0/24"), parse("fd00:1::/64")],
            vtep_mac,
            mode,
        })
    };
    let route = |via| control::RouteSpec {
        prefix: parse("10.9.0.0/16"),
        via,
    };
    let port = |role| {
        Request::PortAdd(control::PortSpec {
            interface: "veth-a".into(),
            role,
        })
    };
    let gateway = |interface| ViaSpec::Gateway {
        address: parse("192.168.1.9"),
        interface,
    };
    let requests = [
        Request::Hello { version: 1 },
        Request::Status,
        node(None, None),
        node(Some(parse("02:00:00:00:00:0b")), Some(Mode::Native)),
        Request::NodeDel {
            name: "node-b".into(),
        },
        Request::NodeList,
        Request::RouteAdd(route(ViaSpec::Node {
            node: "node-b".into(),
            vni: None,
        })),
        Request::RouteReplace(route(gateway(None))),
        Request::RouteReplace(route(gateway(Some("eth0".into())))),
        Request::RouteReplace(route(ViaSpec::Multipath {
            members: vec![
                ViaSpec::Node {
                    node: "node-b".into(),
                    vni: Some(Vni::try_from(77).unwrap()),
                },
                gateway(None),
            ],
        })),
        Request::RouteDel {
            prefix: parse("10.9.0.0/16"),
        },
        Request::RouteShow,
        Request::RouteGet {
            address: parse("10.0.1.7"),
        },
        port(PortRoleSpec::Pod {
            addresses: vec![parse("10.0.0.2")],
            mac: None,
            any_source: false,
        }),
        port(PortRoleSpec::Pod {
            addresses: vec![parse("10.0.0.2"), parse("fd00::2")],
            mac: Some(parse("02:00:00:00:00:aa")),
            any_source: false,
        }),
        port(PortRoleSpec::Uplink {
            accept_partial_checksums: None,
        }),
        port(PortRoleSpec::Uplink {
            accept_partial_checksums: Some(false),
        }),
        Request::PortDel {
            interface: "veth-a".into(),
        },
        Request::PortShow,
        Request::Counters,
        Request::Drops,
        Request::TracePacket(packet(None)),
        Request::TracePacket(packet(Some(None))),
        Request::Perf,
        Request::PerfReset,
        Request::Log {
            directives: "debug".into(),
            daemon: None,
        },
        Request::Log {
            directives: "debug".into(),
            daemon: Some(control::Daemon::Control),
        },
        Request::Log {
            directives: "debug".into(),
            daemon: Some(control::Daemon::Dataplane),
        },
        Request::Export,
        Request::BulkBegin {
            replace: false,
            dry_run: true,
        },
        Request::BulkPart(entries()),
        Request::BulkEnd,
    ];
    compare("control-requests.json", "request", &requests);
    for request in requests {
        let document = serde_json::to_value(&request).unwrap();
        assert_eq!(document["request"], request.name());
    }
}

#[test]
fn control_responses() {
    use control::{
        DataplaneLink, PathState, Response, RouteEntry, RouteOrigin, RouteTarget, UnknownReason,
    };
    let node = |underlay, overlay| control::NodeEntry {
        name: "node-b".into(),
        local: false,
        underlay: parse("192.168.1.2"),
        underlay6: None,
        pod_cidrs: vec![parse("10.0.1.0/24")],
        vtep_mac: parse("02:50:c0:a8:01:02"),
        mode: Mode::Vxlan,
        path: Some(path()),
        next_hop_mac: Some(parse("02:00:00:00:00:0b")),
        health: Some(control::NodeHealth {
            underlay: path_health(underlay),
            overlay: path_health(overlay),
        }),
    };
    let route = |via, origin| RouteEntry {
        prefix: parse("10.0.1.0/24"),
        via,
        origin,
    };
    let to_node = RouteTarget::Node {
        node: "node-b".into(),
        vni: None,
    };
    let answer = control::RouteAnswer {
        address: parse("10.0.1.7"),
        route: route(to_node.clone(), RouteOrigin::PodCidr),
        mode: Some(Mode::Vxlan),
        tunnel_to: Some(parse("192.168.1.2")),
        interface: Some("eth0".into()),
        next_hop: Some(parse("192.168.1.2")),
        next_hop_mac: None,
        mtu: Some(1500),
        members: Vec::new(),
    };
    let port = |interface: &str, role| control::PortEntry {
        spec: control::PortSpec {
            interface: interface.into(),
            role,
        },
        mac: None,
        configured: false,
        waiting: Some("the pod's MAC".into()),
    };
    let status = |dataplane| {
        Response::Status(Box::new(control::Status {
            version: "0.1.0".into(),
            pid: 7,
            log: "info".into(),
            node: "node-a".into(),
            pod_cidrs: vec![parse("10.0.0.0/24")],
            mode: Mode::Vxlan,
            underlay: Some(parse("192.168.1.1")),
            vtep_mac: Some(parse("02:50:c0:a8:01:01")),
            vni: Vni::try_from(1).unwrap(),
            also_vnis: vec![Vni::try_from(77).unwrap()],
            vxlan_port: 4789,
            uplink: Some("eth0".into()),
            uplink_mtu: Some(1500),
            pod_mtu: Some(1450),
            pod_mtu_by: None,
            dataplane,
            drift: control::DriftStatus {
                compared_seconds_ago: Some(4),
                found: vec!["routes: the dataplane holds 1 and was told 2".into()],
                passed_over: vec!["ports".into()],
                mended: 1,
                last_mended: vec!["nodes: the dataplane holds 0 and was told 1".into()],
            },
            kernel: control::KernelStatus {
                device: "podway.vx".into(),
                in_sync: false,
                errors: vec!["why".into()],
            },
            translates: true,
            defragments: true,
            health: Some(health_status()),
            hints: vec!["what to do".into()],
        }))
    };
    compare(
        "control-responses.json",
        "response",
        &[
            Response::Hello { version: 1, pid: 7 },
            Response::Done,
            status(DataplaneLink::Disconnected {
                reason: "nobody listens".into(),
            }),
            status(DataplaneLink::Syncing {
                refused: Vec::new(),
                status: None,
            }),
            status(DataplaneLink::Synced {
                refused: vec!["port eth0: the queue is taken".into()],
                status: Some(Box::new(dataplane_status())),
            }),
            Response::Nodes {
                nodes: vec![
                    node(PathState::Reachable, PathState::Unreachable),
                    control::NodeEntry {
                        underlay6: Some(parse("fd00:100::2")),
                        ..node(
                            PathState::Unknown {
                                reason: UnknownReason::NoListener,
                            },
                            PathState::Unknown {
                                reason: UnknownReason::NoAddress,
                            },
                        )
                    },
                ],
            },
            Response::Routes {
                routes: vec![
                    route(
                        RouteTarget::Node {
                            node: "node-b".into(),
                            vni: None,
                        },
                        RouteOrigin::PodCidr,
                    ),
                    route(
                        RouteTarget::Pod {
                            interface: "veth-a".into(),
                        },
                        RouteOrigin::Pod,
                    ),
                    route(
                        RouteTarget::Gateway {
                            address: parse("192.168.1.9"),
                            interface: None,
                        },
                        RouteOrigin::Added,
                    ),
                    route(
                        RouteTarget::Gateway {
                            address: parse("192.168.1.9"),
                            interface: Some("eth0".into()),
                        },
                        RouteOrigin::Kernel,
                    ),
                    route(
                        RouteTarget::Multipath {
                            members: vec![
                                RouteTarget::Node {
                                    node: "node-b".into(),
                                    vni: None,
                                },
                                RouteTarget::Node {
                                    node: "node-c".into(),
                                    vni: Some(Vni::try_from(77).unwrap()),
                                },
                            ],
                        },
                        RouteOrigin::Added,
                    ),
                ],
            },
            Response::RouteGet(answer.clone()),
            Response::RouteGet(control::RouteAnswer {
                address: answer.address,
                route: route(
                    RouteTarget::Multipath {
                        members: vec![to_node.clone()],
                    },
                    RouteOrigin::Added,
                ),
                mode: None,
                tunnel_to: None,
                interface: None,
                next_hop: None,
                next_hop_mac: None,
                mtu: None,
                members: vec![answer],
            }),
            Response::Ports {
                ports: vec![
                    port(
                        "veth-a",
                        PortRoleSpec::Pod {
                            addresses: vec![parse("10.0.0.2")],
                            mac: None,
                            any_source: false,
                        },
                    ),
                    port(
                        "veth-b",
                        PortRoleSpec::Pod {
                            addresses: vec![parse("10.0.0.3"), parse("fd00::3")],
                            mac: Some(parse("02:00:00:00:00:0a")),
                            any_source: true,
                        },
                    ),
                    port(
                        "eth0",
                        PortRoleSpec::Uplink {
                            accept_partial_checksums: Some(true),
                        },
                    ),
                ],
            },
            Response::Counters {
                counters: counters(),
                imbalances: vec!["frames".into()],
            },
            Response::Drops(drops()),
            Response::TracePacket(Box::new(trace::TraceAnswer {
                packet: packet(Some(Some(parse("192.168.1.1")))),
                trace: traced(Verdict::Kernel(why(PassCause::Options.explain()))),
                from_node: Some("node-b".into()),
                kernel: Some(trace::KernelPart {
                    address: parse("10.0.1.7"),
                    local: false,
                    way: Some(trace::KernelWay {
                        interface: "podway.vx".into(),
                        gateway: Some(parse("10.0.1.0")),
                        mtu: Some(1450),
                    }),
                    agrees: Some(true),
                }),
            })),
            Response::Perf(perf()),
            Response::Entries(entries()),
            Response::BulkDone(Difference {
                removed: Entries::default(),
                added: entries(),
            }),
            Response::BulkRefused {
                refused: [
                    EntryKey::Node {
                        name: "node-b".into(),
                    },
                    EntryKey::Route {
                        prefix: parse("10.9.0.0/16"),
                    },
                    EntryKey::Port {
                        interface: "veth-a".into(),
                    },
                ]
                .map(|entry| RefusedEntry {
                    entry,
                    error: no_node(),
                })
                .to_vec(),
            },
            Response::Error(no_node()),
        ],
    );
}

/// A packet that is asked about; in a tunnel, to an address that may be told.
fn packet(tunnel: Option<Option<std::net::IpAddr>>) -> trace::TracePacket {
    trace::TracePacket {
        from_port: "veth-a".into(),
        source: parse("10.0.0.2"),
        destination: parse("10.0.1.7"),
        protocol: 6,
        source_port: 40_000,
        destination_port: 80,
        size: 60_000,
        hop_limit: 64,
        dont_fragment: true,
        tunnel: tunnel.map(|destination| trace::InTunnel {
            vni: Vni::try_from(1).unwrap(),
            source: parse("192.168.1.2"),
            destination,
        }),
    }
}

fn why(reason: Explanation) -> trace::Why {
    // Texts may change; the documents do not.
    trace::Why {
        reason: reason.name.to_owned(),
        meaning: "what happened".into(),
        remedy: "what to do".into(),
    }
}

fn traced(verdict: Verdict) -> trace::Trace {
    let step = |at, rule: &str, found: &str| trace::Step {
        at,
        rule: rule.into(),
        found: found.into(),
    };
    let node = || control::RouteTarget::Node {
        node: "node-b".into(),
        vni: None,
    };
    trace::Trace {
        role: "pod".into(),
        program: "tcx".into(),
        steps: vec![
            step(trace::At::Program, "gate", "open"),
            step(trace::At::Worker, "lookup", "10.0.1.0/24 by node node-b"),
        ],
        route: Some(trace::TracedRoute {
            prefix: parse("10.0.1.0/24"),
            via: node(),
            member: Some(node()),
            flow_hash: 7,
            mtu: Some(1450),
        }),
        sending: Some(trace::Sending {
            interface: "eth0".into(),
            mac: parse("02:00:00:00:00:0b"),
            tunnel: Some(trace::OutTunnel {
                vni: Vni::try_from(1).unwrap(),
                source: parse("192.168.1.1"),
                destination: parse("192.168.1.2"),
                source_port: 51_234,
                destination_port: 4789,
            }),
            largest: 1450,
            segments: 43,
            segment_bytes: 1450,
            engine: "tap".into(),
        }),
        verdict,
    }
}

fn path_health(state: control::PathState) -> control::PathHealth {
    let known = state != control::PathState::Unreachable;
    control::PathHealth {
        state,
        seconds: 90,
        rtt_microseconds: known.then_some(210),
        smoothed_rtt_microseconds: known.then_some(230),
        lost: 1,
        probes: 64,
    }
}

fn health_status() -> control::HealthStatus {
    use control::{Layer, PathState, Trouble, UnknownReason};
    let trouble = |layer, state| Trouble {
        node: "node-b".into(),
        layer,
        state,
        seconds: 90,
    };
    let reasons = [UnknownReason::NotProbedYet, UnknownReason::NoSocket];
    let unknown = reasons.map(|reason| trouble(Layer::Underlay, PathState::Unknown { reason }));
    let mut troubles = vec![trouble(Layer::Overlay, PathState::Unreachable)];
    troubles.extend(unknown);
    control::HealthStatus {
        port: 4799,
        interval_seconds: 10,
        nodes: 5,
        reachable: 3,
        unreachable: 1,
        troubles,
        errors: vec!["the port is taken".into()],
    }
}

fn no_node() -> ErrorBody {
    ErrorBody::new(ErrorCode::NotFound, "there is no node b")
}

fn entries() -> Entries {
    Entries {
        nodes: vec![
            control::NodeSpec {
                name: "node-b".into(),
                underlay: parse("192.168.1.2"),
                underlay6: None,
                pod_cidrs: vec![parse("10.0.1.0/24")],
                vtep_mac: None,
                mode: Some(Mode::Vxlan),
            },
            control::NodeSpec {
                name: "node-c".into(),
                underlay: parse("192.168.1.3"),
                underlay6: Some(parse("fd00:100::3")),
                pod_cidrs: Vec::new(),
                vtep_mac: Some(parse("02:00:00:00:00:0c")),
                mode: None,
            },
        ],
        routes: vec![control::RouteSpec {
            prefix: parse("10.9.0.0/16"),
            via: ViaSpec::Node {
                node: "node-b".into(),
                vni: None,
            },
        }],
        ports: vec![control::PortSpec {
            interface: "veth-a".into(),
            role: PortRoleSpec::Pod {
                addresses: vec![parse("10.0.0.2")],
                mac: None,
                any_source: false,
            },
        }],
    }
}

#[test]
fn dataplane_requests() {
    use dataplane::Request;
    compare(
        "dataplane-requests.json",
        "request",
        &[
            Request::Hello { version: 1 },
            Request::SyncBegin,
            Request::Apply {
                changes: vec![Change::DelNode {
                    name: "node-b".into(),
                }],
            },
            Request::SyncEnd,
            Request::Status,
            Request::Counters,
            Request::Drops,
            Request::Perf,
            Request::PerfReset,
            Request::Digest,
            Request::WatchBegin(WatchSpec {
                filter: "tcp and host 10.0.0.2".into(),
                points: WatchPoint::ALL.into(),
                snap: 128,
                sample: 10,
                limit: Some(100),
            }),
            Request::WatchRead,
            Request::WatchEnd,
            Request::TracePacket(packet(Some(Some(parse("192.168.1.1"))))),
            Request::Log {
                directives: "debug".into(),
            },
        ],
    );
}

#[test]
fn dataplane_changes() {
    let port = |role, link| {
        Change::SetPort(Port {
            interface: "veth-a".into(),
            role,
            link,
        })
    };
    let link = Link {
        ifindex: 7,
        mtu: 1500,
        mac: MacAddr([2, 0, 0, 0, 0, 0xab]),
    };
    let node = |path| {
        Change::SetNode(Node {
            name: "node-b".into(),
            underlay: parse("192.168.1.2"),
            vtep_mac: parse("02:50:c0:a8:01:02"),
            mode: Mode::Vxlan,
            path,
        })
    };
    let route = |via| {
        Change::SetRoute(Route {
            prefix: parse("10.0.1.0/24"),
            via,
        })
    };
    compare(
        "dataplane-changes.json",
        "change",
        &[
            Change::SetLocal(LocalNode {
                vni: Vni::try_from(1).unwrap(),
                also_vnis: vec![Vni::try_from(77).unwrap()],
                vxlan_port: 4789,
                vtep_mac: parse("02:50:c0:a8:01:01"),
                addresses: vec![parse("192.168.1.1"), parse("fd00::1")],
                translates: true,
                defragments: true,
                allow_unknown_vteps: true,
            }),
            port(
                PortRole::Pod {
                    addresses: vec![parse("10.0.0.2")],
                    mac: MacAddr([2, 0, 0, 0, 0, 0xaa]),
                    any_source: false,
                },
                Some(link),
            ),
            port(
                PortRole::Uplink {
                    accept_partial_checksums: true,
                },
                None,
            ),
            Change::DelPort {
                interface: "veth-a".into(),
            },
            node(Some(path())),
            node(None),
            Change::DelNode {
                name: "node-b".into(),
            },
            route(Via::Node {
                node: "node-b".into(),
                vni: None,
            }),
            route(Via::Gateway {
                address: parse("192.168.1.9"),
                interface: "eth0".into(),
            }),
            route(Via::Multipath {
                members: vec![
                    Via::Node {
                        node: "node-b".into(),
                        vni: None,
                    },
                    Via::Gateway {
                        address: parse("192.168.1.9"),
                        interface: "eth0".into(),
                    },
                ],
            }),
            Change::DelRoute {
                prefix: parse("10.0.1.0/24"),
            },
            Change::SetNeighbor(Neighbor {
                interface: "eth0".into(),
                address: parse("192.168.1.2"),
                mac: parse("02:00:00:00:00:0b"),
            }),
            Change::DelNeighbor {
                interface: "eth0".into(),
                address: parse("192.168.1.2"),
            },
        ],
    );
}

#[test]
fn dataplane_responses() {
    use dataplane::{Refused, Response};
    let error = ErrorBody::new(ErrorCode::Busy, "the queue is taken");
    compare(
        "dataplane-responses.json",
        "response",
        &[
            Response::Hello { version: 1, pid: 8 },
            Response::Done,
            Response::Applied {
                refused: vec![Refused {
                    index: 3,
                    error: error.clone(),
                }],
            },
            Response::Status(dataplane_status()),
            Response::Counters(counters()),
            Response::Drops(drops()),
            Response::Perf(perf()),
            Response::Digest(Digests {
                local: Digest { count: 1, sum: 7 },
                routes: Digest::of(["a", "b"]),
                ..Digests::default()
            }),
            Response::WatchBegun,
            Response::Watched(Watched {
                records: watch_records(),
                lost: 3,
                done: false,
            }),
            Response::TracePacket(Box::new(traced(Verdict::Sent))),
            Response::TracePacket(Box::new(traced(Verdict::Dropped {
                why: why(DropReason::TooBig.explain()),
                answered: true,
            }))),
            Response::TracePacket(Box::new(traced(Verdict::Refused(why(
                RefuseCause::SpoofedSource.explain(),
            ))))),
            Response::Error(error),
        ],
    );
}

#[test]
fn error_codes_keep_their_names() {
    use ErrorCode as Code;
    let all = [
        (Code::BadRequest, "bad-request"),
        (Code::LineTooLong, "line-too-long"),
        (Code::VersionMismatch, "version-mismatch"),
        (Code::NotFound, "not-found"),
        (Code::AlreadyExists, "already-exists"),
        (Code::Invalid, "invalid"),
        (Code::NoSuchInterface, "no-such-interface"),
        (Code::Busy, "busy"),
        (Code::PermissionDenied, "permission-denied"),
        (Code::Unsupported, "unsupported"),
        (Code::Unavailable, "unavailable"),
        (Code::System, "system"),
    ];
    for (code, name) in all {
        assert_eq!(serde_json::to_value(code).unwrap(), name);
    }
}

#[test]
fn unknown_fields_are_refused() {
    for line in [
        r#"{"request":"node-del","name":"b","force":true}"#,
        r#"{"request":"node-set","name":"b","underlay":"192.168.1.2","pod_cidrs":[],"mtu":1}"#,
        r#"{"request":"port-add","interface":"a","role":{"kind":"uplink"},"mac":null}"#,
        r#"{"request":"nonsense"}"#,
    ] {
        assert!(
            serde_json::from_str::<control::Request>(line).is_err(),
            "{line}"
        );
    }
}

/// Ethernet, IPv4 and UDP without a payload, whose checksum is wrong.
#[rustfmt::skip]
const DATAGRAM: [u8; 42] = [
    0x02, 0, 0, 0, 0, 0x01, 0x02, 0, 0, 0, 0, 0x02, 0x08, 0,
    0x45, 0, 0, 0x1c, 0, 0, 0x40, 0, 0x40, 0x11, 0x25, 0xce, 0x0a, 0, 0, 0x02, 0x0a, 0, 0x01, 0x02,
    0x9c, 0x40, 0, 0x09, 0, 0x08, 0, 0x01,
];

fn watch_records() -> Vec<WatchRecord> {
    let came = WatchRecord {
        time: 1_700_000_000_123_456_789,
        worker: 0,
        packet: 7,
        point: WatchPoint::Ingress,
        came_by: Some("veth-a".into()),
        length: 42,
        segment: None,
        frames: 1,
        flow: Some(WatchFlow {
            source: parse("10.0.0.2"),
            destination: parse("10.0.1.2"),
            protocol: 17,
            source_port: Some(40_000),
            destination_port: Some(9),
        }),
        vni: None,
        tunnel_from: None,
        route: None,
        next_hop: None,
        reason: None,
        bytes: DATAGRAM.into(),
    };
    let sent = WatchRecord {
        point: WatchPoint::Egress,
        length: 92,
        segment: Some(1400),
        route: Some(WatchRoute {
            prefix: parse("10.0.1.0/24"),
            via: control::RouteTarget::Node {
                node: "node-b".into(),
                vni: None,
            },
        }),
        next_hop: Some(WatchNextHop {
            kind: Some(WatchNextHopKind::Vxlan),
            interface: Some("eth0".into()),
            mac: Some(parse("02:00:00:00:01:02")),
            address: Some(parse("192.168.1.2")),
            node: Some("node-b".into()),
            vni: Some(parse_vni(42)),
            mtu: Some(1450),
        }),
        bytes: Vec::new(),
        ..came.clone()
    };
    let dropped = WatchRecord {
        point: WatchPoint::Dropped,
        came_by: None,
        flow: None,
        vni: Some(parse_vni(42)),
        reason: Some(DropReason::NoRoute.name().into()),
        ..came.clone()
    };
    let from_tunnel = WatchRecord {
        came_by: Some("eth0".into()),
        vni: Some(parse_vni(42)),
        tunnel_from: Some(WatchSender {
            address: parse("192.168.1.2"),
            node: Some("node-b".into()),
        }),
        ..came.clone()
    };
    vec![came, sent, dropped, from_tunnel]
}

fn parse_vni(number: u32) -> Vni {
    number.try_into().unwrap()
}

fn dataplane_status() -> dataplane::Status {
    dataplane::Status {
        version: "0.1.0".into(),
        pid: 8,
        uptime_seconds: 60,
        log: "warn,podway_dataplane=debug".into(),
        gate_open: true,
        wait: "adaptive".into(),
        workers: vec![dataplane::WorkerStatus {
            worker: 0,
            cpu: Some(2),
            busy_seconds: 1.5,
            frames: 8192,
        }],
        ports: vec![dataplane::PortStatus {
            interface: "eth0".into(),
            ifindex: 2,
            role: "uplink".into(),
            mtu: 1500,
            xdp_mode: "native".into(),
            xdp_mode_reason: None,
            ingress: "af-xdp copy".into(),
            ingress_reason: Some("zero-copy: not supported by the driver".into()),
            egress: "af-packet gso".into(),
            queue_workers: vec![0],
            oversize: Some(dataplane::Oversize {
                source: parse("10.0.0.2"),
                destination: parse("10.0.1.2"),
                bytes: 1480,
                mtu: 1450,
            }),
        }],
        tables: dataplane::TableStatus {
            generation: 4,
            adopted: 4,
            routes: 3,
            unresolved: 0,
            nodes: 1,
            neighbors: 1,
        },
    }
}

fn drops() -> dataplane::Drops {
    let drop = |reason: Explanation, packets_per_second, last| dataplane::DropCount {
        reason: reason.name.into(),
        places: reason.places.to_vec(),
        packets: 1,
        packets_per_second,
        last_minute: 7,
        interfaces: BTreeMap::new(),
        last,
        meaning: "what happened".into(),
        remedy: "what to do".into(),
    };
    let last = dataplane::DroppedPacket {
        seconds_ago: 3,
        interface: Some("veth-a".into()),
        bytes: 106,
        source: Some(parse("10.0.0.2")),
        destination: Some(parse("10.0.1.7")),
        protocol: Some(17),
        source_port: Some(40_000),
        destination_port: Some(9),
        inside: None,
        header: "02000000000b02000000000a0800".into(),
    };
    let unread = dataplane::DroppedPacket {
        seconds_ago: 3,
        interface: None,
        bytes: 13,
        source: None,
        destination: None,
        protocol: None,
        source_port: None,
        destination_port: None,
        inside: None,
        header: "02000000000b02000000000a08".into(),
    };
    let arp = dataplane::DroppedPacket {
        source: Some(parse("203.0.113.9")),
        destination: Some(parse("10.0.0.1")),
        interface: Some("veth-a".into()),
        ..unread.clone()
    };
    let tunneled = dataplane::DroppedPacket {
        interface: Some("eth0".into()),
        source: Some(parse("192.168.1.2")),
        destination: Some(parse("192.168.1.1")),
        destination_port: Some(4789),
        inside: Some(dataplane::TunneledPacket {
            vni: 99,
            source: last.source,
            destination: last.destination,
            protocol: last.protocol,
            source_port: last.source_port,
            destination_port: last.destination_port,
        }),
        ..last.clone()
    };
    let by = |interface: &str| BTreeMap::from([(interface.to_owned(), 1)]);
    let drops = vec![
        drop(DropReason::NotLocal.explain(), 0.1, Some(last)),
        drop(DropReason::TruncatedEthernet.explain(), 0.1, Some(unread)),
        dataplane::DropCount {
            interfaces: by("podway.tap0"),
            ..drop(LossCause::TapFull.explain(), 0.1, None)
        },
        dataplane::DropCount {
            interfaces: by("veth-a"),
            ..drop(RefuseCause::SpoofedSource.explain(), 0.1, Some(arp))
        },
    ];
    let unknown_vni = PassCause::UnknownVni.explain();
    let passed = vec![dataplane::PassCount {
        cause: unknown_vni.name.into(),
        places: unknown_vni.places.to_vec(),
        packets: 1,
        packets_per_second: 0.1,
        last_minute: 7,
        interfaces: by("eth0"),
        last: Some(tunneled),
        meaning: "what they are".into(),
        remedy: "what to do".into(),
    }];
    dataplane::Drops { drops, passed }
}

/// A worker of which two bursts in five are from its TAP, the others from its packet ring.
fn perf() -> Perf {
    let spread = |count, mean, [p50, p90, p99, p999, max]: [u64; 5]| Spread {
        count,
        mean,
        p50,
        p90,
        p99,
        p999,
        max,
    };
    let (bursts, packets) = (10_000, 40_000);
    let stage = |stage, nanoseconds: u32, of_burst, of_packet| StagePerf {
        stage,
        nanoseconds: nanoseconds.into(),
        per_burst: spread(bursts, f64::from(nanoseconds) / 10_000.0, of_burst),
        per_packet: spread(packets, f64::from(nanoseconds) / 40_000.0, of_packet),
    };
    let work = Work {
        rounds: 700_000,
        bursts: 61 * bursts,
        received: 61 * packets,
        sent: 2_430_000,
        messages: 800_000,
        joined: 1_630_000,
        rx_calls: 520_000,
        tx_calls: 610_000,
        wait_calls: 90_000,
        busy_nanoseconds: 2_440_000_000,
    };
    let sampled = Sampled {
        every: 61,
        bursts,
        packets,
        stages: vec![
            stage(
                Stage::Receive,
                9_600_000,
                [890, 1_400, 2_300, 6_100, 48_000],
                [220, 350, 610, 2_300, 12_000],
            ),
            stage(
                Stage::Forward,
                5_200_000,
                [480, 800, 1_100, 2_100, 31_000],
                [120, 180, 260, 700, 8_000],
            ),
            stage(
                Stage::Send,
                24_000_000,
                [2_200, 3_600, 5_900, 14_000, 120_000],
                [560, 870, 1_500, 4_300, 30_000],
            ),
            stage(
                Stage::Recycle,
                1_200_000,
                [110, 180, 260, 600, 4_100],
                [27, 45, 70, 170, 1_000],
            ),
        ],
        burst_packets: spread(bursts, 4.0, [3, 8, 16, 21, 64]),
        ring_percent: spread(6_000, 1.25, [1, 2, 6, 14, 31]),
        tap_burst_percent: spread(4_000, 41.5, [25, 100, 100, 100, 100]),
        posted_percent: Spread::default(),
        pool_percent: spread(bursts, 97.5, [98, 99, 99, 99, 99]),
    };
    Perf {
        seconds: 12.5,
        workers: vec![
            WorkerPerf {
                worker: 0,
                cpu: Some(2),
                work,
                sampled: Some(sampled),
            },
            WorkerPerf {
                worker: 1,
                cpu: None,
                work: Work::default(),
                sampled: None,
            },
        ],
    }
}

fn counters() -> dataplane::Counters {
    let expired = DropReason::TtlExpired;
    let port = dataplane::PortCounters {
        xdp_redirected: 10,
        xdp_passed: BTreeMap::from([(PassCause::NotIp.name().to_owned(), 2)]),
        xdp_refused: BTreeMap::from([(RefuseCause::SpoofedSource.name().to_owned(), 1)]),
        rx_packets: 10,
        rx_bytes: 15_000,
        rx_frames: 12,
        rx_dropped: 0,
        rx_ring_full: 0,
        tx_packets: 9,
        tx_bytes: 14_000,
        tx_messages: 3,
        joined: 6,
        cut: 1,
        icmp_sent: 2,
        icmp_suppressed: 1,
    };
    dataplane::Counters {
        ports: BTreeMap::from([("eth0".to_owned(), port)]),
        workers: vec![dataplane::WorkerCounters {
            bursts: 3,
            burst_sizes: vec![2, 1, 0, 0, 0, 0, 0, 0, 0],
            packets: 4,
            rounds: 5,
            sleeps: 1,
            rx_calls: 12,
            tx_calls: 3,
            wait_calls: 2,
            busy_nanoseconds: 1000,
        }],
        drops: BTreeMap::from([(expired.name().to_owned(), 1)]),
        drop_help: BTreeMap::from([(expired.name().to_owned(), expired.meaning().to_owned())]),
        losses: LossCause::ALL
            .iter()
            .map(|cause| (cause.name().to_owned(), 0))
            .collect(),
        books: dataplane::Books {
            frames_made: 16,
            frames_pooled: 8,
            frames_posted: 8,
            frames_held: 0,
            packets_received: 10,
            packets_made: 2,
            packets_sent: 11,
            packets_dropped: 1,
            xdp_redirected: 10,
            xdp_lost: 0,
        },
    }
}
