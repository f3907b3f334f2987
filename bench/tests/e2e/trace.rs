//! What `podway trace packet` says of a packet is what then becomes of it, counted exactly.

use std::net::{IpAddr, Ipv4Addr};

use etherparse::PacketBuilder;
use podway_bench::frames::send_raw;
use podway_bench::netns::Netns;
use podway_bench::topology::{POD_INTERFACE, UPLINK};
use podway_proto::control::{Response, RouteTarget, derived_vtep_mac};
use podway_proto::trace::{TraceAnswer, Verdict};
use podway_proto::types::{MacAddr, Mode};

use crate::malformed::mac_of;
use crate::support::{Delta, Network, af_xdp, counted, options, ping_all, spec};

/// Frames of each kind.
const COUNT: u64 = 5;
/// Nobody's, and in no fast-path prefix.
const NOWHERE: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
/// IP and UDP headers, and Ethernet with it.
const HEADERS: usize = 28;

/// A packet that is asked about and then sent.
struct Case {
    what: &'static str,
    port: String,
    source: Ipv4Addr,
    destination: Ipv4Addr,
    size: usize,
    /// VNI and source of the tunnel that it comes in.
    tunnel: Option<(u32, Ipv4Addr)>,
    /// What is said, in the words of [`word`].
    said: &'static str,
}

/// A verdict in a word or two.
fn word(verdict: &Verdict) -> String {
    match verdict {
        Verdict::Sent => "sent".to_owned(),
        Verdict::Dropped { why, .. } => format!("dropped {}", why.reason),
        Verdict::Refused(why) => format!("refused {}", why.reason),
        Verdict::Kernel(why) => format!("kernel {}", why.reason),
    }
}

fn udp(macs: (MacAddr, MacAddr), ends: (Ipv4Addr, Ipv4Addr), port: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    PacketBuilder::ethernet2(macs.0.0, macs.1.0)
        .ipv4(ends.0.octets(), ends.1.octets(), 64)
        .udp(40_000, port)
        .write(&mut frame, payload)
        .unwrap();
    frame
}

#[test]
#[ignore = "needs root; scripts/test runs it"]
fn what_is_predicted_happens() {
    predictions(options(Mode::Vxlan));
}

#[test]
#[ignore = "needs root; scripts/test runs it"]
fn what_is_predicted_by_af_xdp_happens() {
    predictions(af_xdp(Mode::Vxlan));
}

fn predictions(options: podway_bench::podway::Options) {
    let network = Network::up(spec(), &options);
    let (here, there) = (network.node(0).clone(), network.node(1).clone());
    let (pod, second) = (network.pod(0, 0).clone(), network.pod(0, 1).clone());
    let peer = network.pod(1, 0).clone();
    ping_all(&pod.netns, peer.ipv4.into(), 56, 1);
    let stranger = {
        let [a, b, c, _] = there.underlay.octets();
        Ipv4Addr::new(a, b, c, 77)
    };
    let from_pod = |what, source, destination, size, said| Case {
        what,
        port: pod.host_interface.clone(),
        source,
        destination,
        size,
        tunnel: None,
        said,
    };
    let from_uplink = |what, vni, outer, destination, said| Case {
        what,
        port: UPLINK.to_owned(),
        source: peer.ipv4,
        destination,
        size: 100,
        tunnel: Some((vni, outer)),
        said,
    };
    let own = pod.ipv4;
    #[rustfmt::skip]
    let cases = [
        from_pod("by a tunnel", own, peer.ipv4, 100, "sent"),
        from_pod("to a pod of this node", own, second.ipv4, 100, "sent"),
        from_pod("of another pod's", second.ipv4, peer.ipv4, 100, "refused spoofed_source"),
        from_pod("no route", own, NOWHERE, 100, "kernel no_route"),
        from_pod("too big", own, peer.ipv4, 1480, "kernel oversize"),
        from_uplink("out of a tunnel", 1, there.underlay, own, "sent"),
        from_uplink("unknown VTEP", 1, stranger, own, "dropped unknown_vtep"),
        from_uplink("unknown VNI", 2, there.underlay, own, "kernel unknown_vni"),
        from_uplink("no pod", 1, there.underlay, NOWHERE, "kernel no_such_pod"),
    ];
    for case in cases {
        let answer = ask(&network, &case);
        assert_eq!(
            word(&answer.trace.verdict),
            case.said,
            "{}: {answer:?}",
            case.what
        );
        let frame = frame(&case, &network);
        let (from, by): (&Netns, _) = match case.tunnel {
            None => (&pod.netns, POD_INTERFACE),
            Some(_) => (&there.netns, UPLINK),
        };
        let receiver = [&peer, &second, &pod]
            .into_iter()
            .find(|pod| pod.ipv4 == case.destination);
        let arrived = || receiver.map_or(0, |pod| counted(&pod.netns, "Udp", "NoPorts"));
        let (arrived_before, before) = (arrived(), network.counters());
        (0..COUNT).for_each(|_| send_raw(from, by, &frame).unwrap());
        let after = network.counters();
        let delta = Delta {
            before: &before[0],
            after: &after[0],
        };
        let what = case.what;
        let drops: Vec<_> = delta.drops().into_iter().collect();
        let redirected = delta.packets(&case.port).0;
        match &answer.trace.verdict {
            Verdict::Sent => {
                let sending = answer.trace.sending.as_ref().unwrap();
                assert_eq!(redirected, COUNT, "{what}");
                assert_eq!(delta.packets(&sending.interface).1, COUNT, "{what}");
                assert_eq!((drops, sending.segments), (vec![], 1), "{what}");
                let there = podway_bench::netns::wait_until(
                    what,
                    std::time::Duration::from_secs(5),
                    || match arrived() - arrived_before {
                        COUNT => Ok(()),
                        other => Err(format!("{other} have arrived")),
                    },
                );
                there.unwrap();
            }
            Verdict::Dropped { why, .. } => {
                assert_eq!(redirected, COUNT, "{what}");
                assert_eq!(drops, [(why.reason.clone(), COUNT)], "{what}");
            }
            Verdict::Refused(why) => {
                let refused = delta.refused(&case.port);
                assert_eq!(
                    refused.get(&why.reason),
                    Some(&COUNT),
                    "{what}: {refused:?}"
                );
                assert_eq!((redirected, drops), (0, vec![]), "{what}");
            }
            Verdict::Kernel(why) => {
                let passed = delta.passed(&case.port);
                assert_eq!(passed.get(&why.reason), Some(&COUNT), "{what}: {passed:?}");
                assert_eq!((redirected, drops), (0, vec![]), "{what}");
            }
        }
        told(&case, &answer, (&here.underlay, &there.underlay));
    }
    // A super-frame, of which no wire has seen a segment.
    let ends = [pod.ipv4, peer.ipv4].map(|address| address.to_string());
    let port = pod.host_interface.as_str();
    let words = ["--from-port", port, "--src", &ends[0], "--dst", &ends[1]];
    let stream = trace(
        &network,
        &[&words[..], &["--proto", "tcp", "--size", "60000"]].concat(),
    );
    let sending = stream.trace.sending.unwrap();
    assert_eq!(
        (sending.segment_bytes, sending.segments),
        (1450, 59_960_u32.div_ceil(1410))
    );
    network.finish();
}

/// What beside the verdict has to be right.
fn told(case: &Case, answer: &TraceAnswer, (here, there): (&Ipv4Addr, &Ipv4Addr)) {
    let trace = &answer.trace;
    match case.what {
        "by a tunnel" => {
            let tunnel = trace.sending.as_ref().unwrap().tunnel.as_ref().unwrap();
            let ends = (tunnel.source, tunnel.destination, tunnel.vni.get());
            assert_eq!(ends, (IpAddr::from(*here), IpAddr::from(*there), 1));
            let route = trace.route.as_ref().unwrap();
            assert!(matches!(route.via, RouteTarget::Node { .. }), "{route:?}");
            assert_eq!(route.mtu, Some(1450));
        }
        "to a pod of this node" => assert!(trace.sending.as_ref().unwrap().tunnel.is_none()),
        "too big" => {
            let kernel = answer.kernel.as_ref().unwrap();
            assert_eq!(kernel.agrees, Some(true), "{kernel:?}");
            assert_eq!(kernel.way.as_ref().unwrap().interface, "podway.vx");
        }
        "out of a tunnel" | "unknown VNI" => assert!(answer.from_node.is_some()),
        "unknown VTEP" => assert_eq!(answer.from_node, None),
        _ => {}
    }
}

fn trace(network: &Network, words: &[&str]) -> TraceAnswer {
    let words = [&["--json", "trace", "packet"], words].concat();
    let printed = network.agent(0).cli(&words).unwrap();
    match serde_json::from_str(&printed).unwrap() {
        Response::TracePacket(answer) => *answer,
        other => panic!("{other:?}"),
    }
}

fn ask(network: &Network, case: &Case) -> TraceAnswer {
    let mut words = vec!["--from-port".to_owned(), case.port.clone()];
    words.extend(["--src".to_owned(), case.source.to_string()]);
    words.extend(["--dst".to_owned(), case.destination.to_string()]);
    words.extend(["--size".to_owned(), case.size.to_string()]);
    words.extend(["--proto", "udp", "--dport", "9"].map(str::to_owned));
    if let Some((vni, source)) = case.tunnel {
        words.extend(["--vni".to_owned(), vni.to_string()]);
        words.extend(["--outer-src".to_owned(), source.to_string()]);
    }
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    trace(network, &words)
}

fn frame(case: &Case, network: &Network) -> Vec<u8> {
    let (here, there) = (network.node(0), network.node(1));
    let pod = network.pod(0, 0);
    let ends = (case.source, case.destination);
    let payload = vec![0xa5; case.size - HEADERS];
    let Some((vni, outer)) = case.tunnel else {
        let gateway = mac_of(&here.netns, &pod.host_interface);
        return udp((pod.mac, gateway), ends, 9, &payload);
    };
    let vtep_mac = |underlay: Ipv4Addr| derived_vtep_mac(underlay.into());
    let vteps = (vtep_mac(there.underlay), vtep_mac(here.underlay));
    let mut datagram = (0x08_u64 << 56 | u64::from(vni) << 8)
        .to_be_bytes()
        .to_vec();
    datagram.extend(udp(vteps, ends, 9, &payload));
    let uplinks = (mac_of(&there.netns, UPLINK), mac_of(&here.netns, UPLINK));
    udp(uplinks, (outer, here.underlay), 4789, &datagram)
}
