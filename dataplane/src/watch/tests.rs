use std::collections::BTreeSet;

use podway_proto::watch::WatchNextHopKind;

use super::*;
use crate::egress::VnetHeader;
use crate::packet::Offload;
use crate::testing::node::Node;
use crate::testing::packets::{Spec, hop_limit, icmp, payload, tos, vxlan};
use crate::testing::plan::{
    GATEWAY, LOST, Mtus, NATIVE, NOWHERE, POD, UPLINK, VNI, VXLAN_V4, VXLAN_V6, pod, port_mac,
    tables, tunnelled, underlay, uplink_mac,
};

const ME: u8 = 1;

fn all() -> WatchSpec {
    WatchSpec {
        filter: String::new(),
        points: WatchPoint::ALL.into(),
        snap: MAX_SNAP,
        sample: 1,
        limit: None,
    }
}

fn filtered(filter: &str) -> WatchSpec {
    WatchSpec {
        filter: filter.into(),
        ..all()
    }
}

/// A node with watches, and the readers' ends of their rings.
struct Watched {
    node: Node,
    readers: Vec<Reader>,
}

impl Watched {
    fn by(specs: &[WatchSpec]) -> Self {
        let mut node = Node::new(tables(ME, Mtus::default()));
        let mut readers = Vec::new();
        for (id, spec) in (0..).zip(specs) {
            let (writer, reader) = ring(spec.snap as usize);
            let filter = Filter::parse(&spec.filter, &|_| None).unwrap();
            let left = spec.limit.map(|limit| Arc::new(AtomicU64::new(limit)));
            assert!(
                node.watches
                    .arm(Watch::new(id, filter, spec, left, writer))
                    .is_none()
            );
            readers.push(reader);
        }
        Self { node, readers }
    }

    fn read(&mut self, watch: usize) -> Vec<(Note, Vec<u8>)> {
        let reader = &mut self.readers[watch];
        std::iter::from_fn(|| reader.read()).collect()
    }

    fn points(&mut self, watch: usize) -> Vec<WatchPoint> {
        let records = self.read(watch);
        records.iter().map(|(note, _)| note.point).collect()
    }
}

fn spec(v6: bool, other: u8, spec: Spec) -> Spec {
    spec.between(pod(v6, ME, 1), pod(v6, other, 1))
}

fn back(v6: bool, other: u8, spec: Spec) -> Spec {
    spec.between(pod(v6, other, 1), pod(v6, ME, 1))
}

#[test]
fn a_packet_into_a_tunnel_is_recorded_as_it_came_and_as_it_leaves() {
    for (other, v6_underlay) in [(VXLAN_V4, false), (VXLAN_V6, true)] {
        for v6 in [false, true] {
            for len in [0, 20, 300, 1300] {
                let mut watched = Watched::by(&[all()]);
                let frame = spec(v6, other, Spec::udp(&payload(len))).build();
                watched.node.receive(POD, &frame).unwrap();
                let sent = watched.node.flush();
                let records = watched.read(0);
                let [(came, as_it_came), (left, as_it_left)] = &records[..] else {
                    panic!("{records:?}");
                };
                assert_eq!(
                    (came.point, left.point),
                    (WatchPoint::Ingress, WatchPoint::Egress)
                );
                assert_eq!(*as_it_came, frame, "{len} bytes, v6 {v6}");
                // Whoever sends fills in the UDP checksum of the outer header, and may do so later.
                assert_eq!(*as_it_left, sent[0].bytes, "{len} bytes, v6 {v6}");
                assert_eq!(left.length as usize, sent[0].bytes.len());
                assert_eq!((came.length as usize, came.frames), (frame.len(), 1));
                assert_eq!((came.packet, left.packet), (1, 1));
                assert!(came.time > 0 && came.time == left.time);
                assert_eq!((came.came_by, left.came_by), (POD, POD));
                assert_eq!((came.exit, came.vni, left.vni), (None, None, None));
                assert_eq!(came.sender, None);
                let to = ExitTo {
                    kind: WatchNextHopKind::Vxlan,
                    mac: uplink_mac(other),
                    tunnel: Some((underlay(v6_underlay, other), VNI)),
                    mtu: if v6_underlay { 1430 } else { 1450 },
                };
                let exit = Exit {
                    port: UPLINK,
                    to: Some(to),
                };
                assert_eq!(left.exit, Some(exit));
                let flow = WatchFlow {
                    source: pod(v6, ME, 1),
                    destination: pod(v6, other, 1),
                    protocol: 17,
                    source_port: Some(40_000),
                    destination_port: Some(5201),
                };
                assert_eq!(
                    left.flow.map(|f| (f.source, f.destination)),
                    Some((flow.source, flow.destination))
                );
                assert_eq!(left.flow, came.flow);
            }
        }
    }
}

#[test]
fn a_packet_from_a_tunnel_is_recorded_with_and_without_it() {
    for other in [VXLAN_V4, VXLAN_V6] {
        for v6 in [false, true] {
            for len in [0, 1, 60, 1200] {
                let mut watched = Watched::by(&[all()]);
                let capable = Spec {
                    tos: 0b10,
                    ..Spec::tcp(1, 1, &payload(len))
                };
                let inner = back(v6, other, capable).build();
                // Congestion was experienced on the way: the inner header is changed, too.
                let frame = tunnelled(other, 0b11, &inner);
                watched.node.receive(UPLINK, &frame).unwrap();
                let sent = watched.node.flush();
                let records = watched.read(0);
                let points: Vec<_> = records.iter().map(|(note, _)| note.point).collect();
                assert_eq!(
                    points,
                    [WatchPoint::Ingress, WatchPoint::Decap, WatchPoint::Egress]
                );
                let [(_, came), (decap, inside), (left, leaves)] = &records[..] else {
                    panic!("{records:?}");
                };
                assert!(*came == frame, "{len} bytes, v6 {v6}");
                let overhead = if other == VXLAN_V6 { 70 } else { 50 };
                assert!(*inside == frame[overhead..], "{len} bytes, v6 {v6}");
                assert!(*leaves == sent[0].bytes, "{len} bytes, v6 {v6}");
                assert_eq!(hop_limit(leaves) + 1, hop_limit(inside));
                assert_eq!((tos(inside), tos(leaves)), (0b10, 0b11));
                assert_eq!(leaves[6..12], port_mac(ME, 1).0);
                assert!(records.iter().all(|(note, _)| note.vni == Some(VNI)));
                let senders: Vec<_> = records.iter().map(|(note, _)| note.sender).collect();
                let sender = Some(underlay(other == VXLAN_V6, other));
                assert_eq!(senders, [sender, sender, None]);
                assert_eq!(decap.length as usize, inner.len());
                let to = left.exit.unwrap().to.unwrap();
                assert_eq!((to.kind, to.tunnel), (WatchNextHopKind::Pod, None));
            }
        }
    }
}

#[test]
fn only_what_is_asked_for_is_recorded() {
    let only = |point| WatchSpec {
        points: BTreeSet::from([point]),
        snap: 33,
        ..all()
    };
    let specs = WatchPoint::ALL.map(only);
    let mut watched = Watched::by(&specs);
    let inner = back(false, VXLAN_V4, Spec::udp(b"hello")).build();
    let frame = tunnelled(VXLAN_V4, 0, &inner);
    watched.node.receive(UPLINK, &frame).unwrap();
    let sent = watched.node.flush();
    for (watch, whole) in [(0, &frame[..]), (1, &frame[50..]), (2, &sent[0].bytes)] {
        let records = watched.read(watch);
        assert_eq!(records.len(), 1);
        assert_eq!(records[0].0.point, WatchPoint::ALL[watch]);
        assert_eq!(records[0].1, whole[..33]);
        assert_eq!(records[0].0.length as usize, whole.len());
    }
    assert_eq!(watched.read(3), []);
    // Facts alone.
    let mut watched = Watched::by(&[WatchSpec { snap: 0, ..all() }]);
    watched.node.receive(UPLINK, &frame).unwrap();
    watched.node.flush();
    let records = watched.read(0);
    assert_eq!(records.len(), 3);
    assert!(records.iter().all(|(_, bytes)| bytes.is_empty()));
}

#[test]
fn super_frames_are_recorded_whole_over_all_their_frames() {
    let mut watched = Watched::by(&[all()]);
    watched.node.send_tunnels_whole(true);
    let tcp = Spec {
        partial: true,
        ..Spec::tcp(1, 1, &payload(30_000))
    };
    let frame = spec(false, VXLAN_V4, tcp).build();
    watched.node.offload = Some(Offload {
        segment: 1398,
        unfinished: Some(34),
        checksum: 16,
    });
    watched.node.receive(POD, &frame).unwrap();
    let sent = watched.node.flush();
    let records = watched.read(0);
    assert!(records[0].1 == frame && records[1].1 == sent[0].bytes);
    for (note, _) in &records {
        assert_eq!((note.segment, note.frames), (Some(1398), 9));
    }
}

#[test]
fn padding_is_recorded_where_it_came() {
    let mut watched = Watched::by(&[all()]);
    let frame = spec(false, NATIVE, Spec::udp(b"x")).build();
    let padded = [&frame[..], &[0xee; 17]].concat();
    watched.node.receive(POD, &padded).unwrap();
    let sent = watched.node.flush();
    let records = watched.read(0);
    assert_eq!((&records[0].1, &records[1].1), (&padded, &sent[0].bytes));
    let lengths = [0, 1].map(|n| records[n].0.length as usize);
    assert_eq!(lengths, [padded.len(), frame.len()]);
}

/// Only a filter that asks for the reason matches when it is rewritten already.
#[test]
fn what_dies_on_its_way_out_is_recorded_as_it_came() {
    let specs = ["reason too_big", "udp", "tcp or reason too_big", "tcp"].map(filtered);
    let datagrams = Spec {
        partial: true,
        ..Spec::udp(&payload(1000))
    };
    let from_pod = spec(false, VXLAN_V4, datagrams.clone()).build();
    let from_tunnel = tunnelled(VXLAN_V6, 0, &back(false, VXLAN_V6, datagrams).build());
    for (port, frame, overhead) in [(POD, from_pod, 0), (UPLINK, from_tunnel, 70)] {
        let mut watched = Watched::by(&specs);
        // A super-frame of datagrams, which egress does not cut.
        watched.node.offload = Some(Offload {
            segment: 500,
            unfinished: Some(overhead + 34),
            checksum: 6,
        });
        assert_eq!(watched.node.receive(port, &frame), Err(DropReason::TooBig));
        for watch in [0, 1, 2] {
            let records = watched.read(watch);
            let (first, last) = (records.first().unwrap(), records.last().unwrap());
            assert_eq!(first.0.point, WatchPoint::Ingress);
            assert!(first.1 == frame, "watch {watch} by {port:?}");
            let inner = &frame[overhead.into()..];
            if overhead > 0 {
                assert_eq!(records[1].0.point, WatchPoint::Decap);
                assert!(records[1].1 == inner, "watch {watch}");
            }
            assert_eq!(last.0.reason, Some(DropReason::TooBig));
            assert_eq!(hop_limit(&last.1) + 1, hop_limit(inner));
        }
        assert_eq!(watched.read(3), []);
    }
}

#[test]
fn a_drop_is_recorded_with_its_reason_and_as_far_as_it_was_known() {
    let cases = [
        // No way leads there.
        (
            POD,
            spec(false, NOWHERE, Spec::udp(b"x")).build(),
            DropReason::NoRoute,
        ),
        // It ends here.
        (
            POD,
            spec(
                false,
                VXLAN_V4,
                Spec {
                    ttl: 1,
                    ..Spec::udp(b"x")
                },
            )
            .build(),
            DropReason::TtlExpired,
        ),
        // Too big, which is known when it is already decided where to.
        (
            POD,
            spec(false, VXLAN_V4, Spec::udp(&payload(1450))).build(),
            DropReason::TooBig,
        ),
        (
            POD,
            spec(false, LOST, Spec::udp(b"x")).build(),
            DropReason::NoNeighbor,
        ),
        (POD, vec![7; 13], DropReason::TruncatedEthernet),
    ];
    for (port, frame, reason) in cases {
        let mut watched = Watched::by(&[
            all(),
            filtered(&format!("reason {}", reason.name())),
            filtered("reason bad_checksum"),
        ]);
        assert_eq!(watched.node.receive(port, &frame), Err(reason));
        watched.node.flush();
        for watch in [0, 1] {
            let records = watched.read(watch);
            let points: Vec<_> = records.iter().map(|(note, _)| note.point).collect();
            assert_eq!(
                points,
                [WatchPoint::Ingress, WatchPoint::Dropped],
                "{reason:?}"
            );
            let (note, bytes) = &records[1];
            assert_eq!((note.reason, note.came_by), (Some(reason), port));
            assert_eq!(*bytes, frame);
            assert_eq!(records[0].1, frame);
            assert_eq!(note.flow.is_some(), frame.len() > 13);
        }
        assert_eq!(watched.read(2), []);
    }
}

#[test]
fn of_a_drop_in_a_tunnel_the_inner_packet_counts() {
    let inner = back(false, VXLAN_V4, Spec::udp(b"x")).build();
    let mut frame = tunnelled(VXLAN_V4, 0, &inner);
    // Another network.
    frame[48] = 99;
    let pods = format!("host {}", pod(false, ME, 1));
    let nodes = format!("host {}", underlay(false, ME));
    let mut watched = Watched::by(&[filtered(&pods), filtered(&nodes)]);
    assert_eq!(
        watched.node.receive(UPLINK, &frame),
        Err(DropReason::UnknownVni)
    );
    assert_eq!(
        watched.points(0),
        [WatchPoint::Ingress, WatchPoint::Dropped]
    );
    assert_eq!(watched.points(1), []);
    // A pod's own tunnel is none of ours, wherever it comes from.
    let frame = tunnelled(VXLAN_V4, 0, &inner);
    assert!(watched.node.receive(POD, &frame).is_err());
    assert_eq!(watched.points(0), []);
    assert_eq!(
        watched.points(1),
        [WatchPoint::Ingress, WatchPoint::Dropped]
    );
    let (there, here) = (pod(false, NATIVE, 1), pod(false, ME, 99));
    let outer = Spec {
        dport: 4789,
        ..Spec::udp(b"")
    };
    let frame = vxlan(&outer.between(there, here), VNI, &inner);
    let own = format!("host {here} and not vni {VNI}");
    let mut watched = Watched::by(&[filtered(&pods), filtered(&own)]);
    assert!(watched.node.receive(UPLINK, &frame).is_err());
    assert_eq!(watched.points(0), []);
    assert_eq!(
        watched.points(1),
        [WatchPoint::Ingress, WatchPoint::Dropped]
    );
}

#[test]
fn of_a_drop_in_a_tunnel_the_vni_is_known() {
    let inner = back(false, VXLAN_V4, Spec::udp(b"x")).build();
    let mut foreign = tunnelled(VXLAN_V4, 0, &inner);
    // The last byte of the VNI.
    foreign[48] = 99;
    let stranger = Spec {
        dport: 4789,
        ..Spec::udp(b"")
    }
    .between(underlay(false, 77), underlay(false, ME));
    let stranger = vxlan(&stranger, VNI, &inner);
    // Its tunnel is off when it is found that nobody has the address.
    let lost = Spec::udp(b"x").between(pod(false, VXLAN_V4, 1), pod(false, ME, 99));
    let lost = tunnelled(VXLAN_V4, 0, &lost.build());
    for (frame, reason, vni) in [
        (&foreign, DropReason::UnknownVni, 99),
        (&stranger, DropReason::UnknownVtep, VNI),
        (&lost, DropReason::NoRoute, VNI),
    ] {
        let filters = [99, VNI].map(|vni| filtered(&format!("vni {vni}")));
        let mut watched = Watched::by(&filters);
        assert_eq!(watched.node.receive(UPLINK, frame), Err(reason));
        let (seen, unseen) = if vni == 99 { (0, 1) } else { (1, 0) };
        let records = watched.read(seen);
        assert_eq!(
            records.first().map(|r| r.0.point),
            Some(WatchPoint::Ingress)
        );
        assert_eq!(records.last().map(|r| r.0.point), Some(WatchPoint::Dropped));
        assert!(records.iter().all(|(note, _)| note.vni == Some(vni)));
        assert_eq!(watched.read(unseen), [], "{reason:?}");
    }
}

#[test]
fn an_answer_is_a_packet_of_its_own() {
    let mut watched = Watched::by(&[all()]);
    watched.node.answers = true;
    let frame = spec(false, NOWHERE, Spec::udp(b"x")).build();
    assert_eq!(watched.node.receive(POD, &frame), Err(DropReason::NoRoute));
    assert_eq!(watched.node.answered, 1);
    let sent = watched.node.flush();
    let records = watched.read(0);
    let points: Vec<_> = records.iter().map(|(note, _)| note.point).collect();
    assert_eq!(
        points,
        [WatchPoint::Ingress, WatchPoint::Dropped, WatchPoint::Egress]
    );
    let (note, bytes) = &records[2];
    assert_eq!((note.packet, note.came_by), (2, PortId::NONE));
    assert_eq!(note.flow.unwrap().protocol, 1);
    assert_eq!(*bytes, sent[0].bytes);
}

#[test]
fn filters_samples_and_limits_hold() {
    let limited = |limit| WatchSpec {
        limit: Some(limit),
        ..all()
    };
    let sampled = WatchSpec {
        sample: 3,
        ..filtered("udp")
    };
    let mut watched = Watched::by(&[filtered("icmp"), limited(2), sampled, filtered("vni 42")]);
    let datagram = spec(false, NATIVE, Spec::udp(b"x")).build();
    let (here, there) = (pod(false, ME, 1), pod(false, VXLAN_V4, 1));
    let ping = icmp(here, there, b"ping");
    for frame in [
        &datagram, &ping, &datagram, &datagram, &datagram, &datagram, &datagram,
    ] {
        watched.node.receive(POD, frame).unwrap();
    }
    watched.node.flush();
    let both = [WatchPoint::Ingress, WatchPoint::Egress];
    assert_eq!(watched.points(0), both);
    assert_eq!(watched.points(1), [both, both].concat());
    assert_eq!(watched.points(2), [both, both].concat());
    assert_eq!(watched.points(3), both);
    // Disarmed, and again.
    let taken: Vec<u64> = (0..4)
        .filter_map(|id| watched.node.watches.disarm(id))
        .map(|w| w.taken)
        .collect();
    assert_eq!(taken, [1, 2, 2, 1]);
    assert!(watched.node.watches.disarm(0).is_none());
    watched.node.receive(POD, &datagram).unwrap();
    assert!((0..4).all(|watch| watched.read(watch).is_empty()));
}

#[test]
fn a_message_that_is_not_taken_is_recorded_by_its_head() {
    let inner = spec(false, VXLAN_V4, Spec::udp(b"x")).build();
    let outer = tunnelled(VXLAN_V4, 0, &inner);
    let (source, far) = (pod(false, ME, 1), underlay(false, VXLAN_V4));
    // The same bytes: in a tunnel of ours, and in one of a pod's own, which goes as it is.
    for (encapsulated, whose) in [(true, source), (false, far)] {
        let message = Message {
            port: UPLINK,
            ifindex: 2,
            ethertype: 0x0800,
            vnet: VnetHeader::default(),
            tunnel: None,
            uplink: true,
            encapsulated,
            pieces: Vec::new(),
            bytes: 5000,
            packets: 2,
            joined: 1,
            cut: 0,
        };
        let filters = [
            format!("host {whose}"),
            format!("vni {VNI}"),
            "tcp".to_owned(),
        ];
        let mut watched = Watched::by(&filters.map(|filter| filtered(&filter)));
        let head = &outer[..90];
        (watched.node.watches).not_sent(DropReason::EgressFull, &message, head);
        let records = watched.read(0);
        let [(note, bytes)] = &records[..] else {
            panic!("{records:?}");
        };
        assert_eq!((note.point, note.length), (WatchPoint::Dropped, 5000));
        assert_eq!(note.reason, Some(DropReason::EgressFull));
        assert_eq!(note.exit.map(|exit| exit.port), Some(UPLINK));
        assert_eq!(note.flow.map(|flow| flow.source), Some(whose));
        assert_eq!(*bytes, head);
        assert_eq!(watched.read(1).len(), usize::from(encapsulated));
        assert_eq!(watched.read(2), []);
    }
}

#[test]
fn by_a_router_only_the_station_on_the_link_is_known() {
    let mut watched = Watched::by(&[all()]);
    let frame = spec(false, GATEWAY, Spec::udp(b"x")).build();
    watched.node.receive(POD, &frame).unwrap();
    let sent = watched.node.flush();
    let records = watched.read(0);
    let to = records[1].0.exit.unwrap().to.unwrap();
    assert_eq!((to.kind, to.tunnel), (WatchNextHopKind::Native, None));
    assert_eq!(to.mac.0, sent[0].bytes[..6]);
}
