//! The whole path: a pod on one node, its node, the wire, the other node, the other pod.

use super::kernel::{Out, wire};
use super::node::Node;
use super::packets::{
    ACK, CWR, FIN, Offsets, PSH, SYN, Spec, fragment, get16, hop_limit, icmp, payload, tos, verify,
    without_hops,
};
use super::plan::{
    BIG_POD, Mtus, NARROW, NATIVE, POD, REAL_WIRE, UPLINK, VXLAN_V4, VXLAN_V6, pod, pod_mac,
    port_mac, tables, uplink_mac,
};
use crate::egress::VnetHeader;
use crate::fib::PortId;

/// Where the sender's node is.
const ME: u8 = 1;

const LINKS: [u8; 4] = [VXLAN_V4, VXLAN_V6, NATIVE, NARROW];

/// What became of a burst of a pod's frames.
struct Crossing {
    /// Messages of the first node.
    sent: Vec<Out>,
    /// Frames on the wire.
    wire: Vec<Vec<u8>>,
    /// Messages of the second node.
    arrived: Vec<Out>,
}

impl Crossing {
    /// The frames that the pod's kernel makes of what arrived, if it cuts it.
    fn delivered(&self) -> Vec<Vec<u8>> {
        self.arrived.iter().flat_map(wire).collect()
    }
}

/// Takes frames from the first pod of node 1 to the first of `other`; on the wire, super-frames are
/// cut and checksums finished.
fn cross(other: u8, mtus: Mtus, frames: &[Vec<u8>]) -> Crossing {
    let mut near = Node::new(tables(ME, mtus));
    for frame in frames {
        near.receive(POD, frame).unwrap();
    }
    let sent = near.flush();
    let in_tunnel = [VXLAN_V4, VXLAN_V6].contains(&other);
    assert!(sent.iter().all(|out| out.encapsulated == in_tunnel));
    let wire: Vec<_> = sent.iter().flat_map(wire).collect();
    for frame in &wire {
        assert!(
            frame.len() <= 14 + usize::from(mtus.uplink),
            "too long for the wire"
        );
        assert_eq!(frame[..6], uplink_mac(other).0);
        assert_eq!(frame[6..12], uplink_mac(ME).0);
    }
    let arrived = arrive(other, mtus, REAL_WIRE, &wire);
    Crossing {
        sent,
        wire,
        arrived,
    }
}

fn arrive(other: u8, mtus: Mtus, port: PortId, frames: &[Vec<u8>]) -> Vec<Out> {
    let mut far = Node::new(tables(other, mtus));
    for frame in frames {
        far.receive(port, frame).unwrap();
    }
    let arrived = far.flush();
    for out in &arrived {
        assert_eq!(out.ifindex, 10 + u32::from(POD.0));
        assert!(!out.encapsulated);
        assert_eq!(out.bytes[..6], pod_mac(other, 1).0);
        assert_eq!(out.bytes[6..12], port_mac(other, 1).0);
    }
    arrived
}

fn spec(v6: bool, other: u8, spec: Spec) -> Spec {
    let spec = Spec {
        v6,
        ttl: 64,
        flow_label: 0,
        ..spec
    };
    spec.between(pod(v6, ME, 1), pod(v6, other, 1))
}

#[test]
fn a_super_frame_arrives_as_one_whatever_lies_between() {
    let lens = [1500, 2000, 8948, 13_780, 30_001, 60_000, 65_000];
    let mtus = [(1500, 1500), (9000, 9000), (1400, 1500), (1500, 1446)];
    for other in LINKS {
        for v6 in [false, true] {
            for (len, (pod_mtu, uplink)) in lens.iter().flat_map(|l| mtus.map(|m| (*l, m))) {
                let mtus = Mtus {
                    pod: pod_mtu,
                    uplink,
                };
                let data = payload(len);
                let tcp = Spec {
                    flags: ACK | PSH,
                    partial: true,
                    ..Spec::tcp(77, 65_520, &data)
                };
                let tcp = spec(v6, other, tcp);
                let crossing = cross(other, mtus, &[tcp.build()]);
                let what = format!("{len} bytes to {other}, v6 {v6}, {mtus:?}");

                crossing.wire.iter().for_each(|frame| verify(frame));
                assert_eq!(
                    crossing.sent.iter().map(|o| o.packets).sum::<u32>(),
                    1,
                    "{what}"
                );
                assert_eq!(crossing.arrived.len(), 1, "{what}");
                let arrived = &crossing.arrived[0];
                assert_eq!(hop_limit(&arrived.bytes), 62);
                let at = Offsets::of(&arrived.bytes);
                assert!(arrived.bytes[at.payload..] == data, "{what}");
                let sent = Spec {
                    ttl: 62,
                    ..tcp.clone()
                }
                .build();
                if crossing.wire.len() > 1 {
                    // The headers too: sequence number, flags, options, id, unfinished checksum.
                    assert!(
                        without_hops(&arrived.bytes) == without_hops(&sent),
                        "{what}"
                    );
                } else {
                    // One segment that fits arrives with its checksum finished.
                    verify(&arrived.bytes);
                }
                let overhead = match other {
                    VXLAN_V4 => 50,
                    VXLAN_V6 => 70,
                    _ => 0,
                };
                let path = if other == NARROW {
                    uplink.min(1400)
                } else {
                    uplink - overhead
                };
                let header_len = u16::try_from(tcp.header_len()).unwrap();
                let size = path.min(pod_mtu) - header_len;
                let segments = len.div_ceil(size.into());
                assert_eq!(crossing.wire.len(), segments, "{what}");
                let gso = arrived.vnet;
                assert_eq!(gso.gso_size, if segments > 1 { size } else { 0 }, "{what}");
                crossing.delivered().iter().for_each(|frame| verify(frame));
            }
        }
    }
}

#[test]
fn flags_keep_their_place() {
    for other in LINKS {
        for v6 in [false, true] {
            let data = payload(10_000);
            let flags = ACK | CWR | PSH | FIN;
            let tcp = Spec {
                flags,
                partial: true,
                ..Spec::tcp(1, 9, &data)
            };
            let crossing = cross(other, Mtus::default(), &[spec(v6, other, tcp).build()]);
            let delivered = crossing.delivered();
            let flags: Vec<_> = delivered
                .iter()
                .map(|f| f[Offsets::of(f).l4 + 13])
                .collect();
            let (last, others) = flags.split_last().unwrap();
            assert_eq!(*last, ACK | PSH | FIN);
            assert_eq!(others[0], ACK | CWR);
            assert!(others[1..].iter().all(|flags| *flags == ACK), "{flags:?}");
            // CWR is joined with nothing, so that it is not lost and not repeated.
            assert_eq!(crossing.arrived.len(), 2);
            assert_eq!(crossing.arrived[0].vnet.gso_type, VnetHeader::GSO_NONE);
            let payloads = delivered
                .iter()
                .flat_map(|f| f[Offsets::of(f).payload..].to_vec());
            assert!(payloads.eq(data));
        }
    }
}

#[test]
fn super_frames_in_a_row_arrive_in_order() {
    for other in LINKS {
        for v6 in [false, true] {
            let data = payload(3 * 40_000);
            let part = |n: u32| {
                let at = n as usize * 40_000;
                let tcp = Spec::tcp(n * 40_000, 0, &data[at..at + 40_000]);
                let id = u16::try_from(n).unwrap() * 29;
                spec(
                    v6,
                    other,
                    Spec {
                        id,
                        partial: true,
                        ..tcp
                    },
                )
            };
            let frames: Vec<_> = (0..3).map(|n| part(n).build()).collect();
            let crossing = cross(other, Mtus::default(), &frames);
            let delivered = crossing.delivered();
            let mut seq = 0_u32;
            let mut bytes = Vec::new();
            for frame in &delivered {
                verify(frame);
                let at = Offsets::of(frame);
                assert_eq!(frame[at.l4 + 4..at.l4 + 8], seq.to_be_bytes());
                let part = &frame[at.payload..];
                seq += u32::try_from(part.len()).unwrap();
                bytes.extend_from_slice(part);
            }
            assert!(bytes == data);
            let packets = crossing
                .arrived
                .iter()
                .map(|o| o.packets as usize)
                .sum::<usize>();
            assert_eq!(packets, crossing.wire.len());
            assert!(crossing.arrived.len() <= 4, "{}", crossing.arrived.len());
        }
    }
}

#[test]
fn what_is_no_bulk_arrives_byte_for_byte() {
    for other in LINKS {
        for v6 in [false, true] {
            let udp = |bytes| {
                spec(
                    v6,
                    other,
                    Spec {
                        partial: true,
                        ..Spec::udp(bytes)
                    },
                )
            };
            let syn = Spec {
                flags: SYN,
                partial: true,
                ..Spec::tcp(5, 6, b"")
            };
            let ends = (pod(v6, ME, 1), pod(v6, other, 1));
            let specs = [
                udp(b""),
                udp(b"odd"),
                udp(&payload(1200)),
                spec(v6, other, syn),
                spec(
                    v6,
                    other,
                    Spec {
                        tos: 0xb9,
                        ..Spec::tcp(5, 6, b"lone")
                    },
                ),
            ];
            for spec in specs {
                let crossing = cross(other, Mtus::default(), &[spec.build()]);
                crossing.wire.iter().for_each(|frame| verify(frame));
                let finished = Spec {
                    partial: false,
                    ..spec
                }
                .build();
                assert_eq!(crossing.arrived.len(), 1);
                let arrived = &crossing.arrived[0];
                assert_eq!(arrived.vnet, VnetHeader::default());
                assert_eq!(without_hops(&arrived.bytes), without_hops(&finished));
                assert_eq!(hop_limit(&arrived.bytes), 62);
            }
            let echo = icmp(ends.0, ends.1, &payload(56));
            let crossing = cross(other, Mtus::default(), std::slice::from_ref(&echo));
            assert_eq!(without_hops(&crossing.delivered()[0]), without_hops(&echo));
        }
    }
}

#[test]
fn a_udp_datagram_without_checksum_stays_without() {
    for other in LINKS {
        let mut frame = spec(false, other, Spec::udp(b"plain")).build();
        frame[40..42].fill(0);
        let crossing = cross(other, Mtus::default(), std::slice::from_ref(&frame));
        assert_eq!(without_hops(&crossing.delivered()[0]), without_hops(&frame));
        assert_eq!(crossing.arrived[0].vnet, VnetHeader::default());
    }
}

#[test]
fn fragments_arrive_as_they_were_and_by_one_outer_port() {
    for other in LINKS {
        let datagram = spec(false, other, Spec::udp(&payload(3000))).build();
        let header = &datagram[..34];
        let parts = datagram[34..].chunks(1400);
        let count = parts.len();
        let fragments: Vec<_> = parts
            .enumerate()
            .map(|(n, part)| {
                let offset = u16::try_from(n).unwrap() * 1400;
                fragment([header, part].concat(), offset, n + 1 < count)
            })
            .collect();
        // 1400 bytes and a header fit the narrow path no more.
        let fits = |f: &Vec<u8>| other != NARROW || f.len() <= 1414;
        let fragments: Vec<_> = fragments.into_iter().filter(fits).collect();
        let crossing = cross(other, Mtus::default(), &fragments);
        let delivered = crossing.delivered();
        assert_eq!(delivered.len(), fragments.len());
        for (delivered, sent) in delivered.iter().zip(&fragments) {
            assert_eq!(without_hops(delivered), without_hops(sent));
        }
        if other <= VXLAN_V6 {
            let port = |f: &Vec<u8>| get16(f, Offsets::of(f).l4);
            assert!(
                crossing
                    .wire
                    .windows(2)
                    .all(|pair| port(&pair[0]) == port(&pair[1]))
            );
        }
    }
}

#[test]
fn dscp_and_ecn_are_on_the_outer_header_and_survive() {
    for other in [VXLAN_V4, VXLAN_V6] {
        for v6 in [false, true] {
            let tcp = Spec {
                tos: 0xba,
                partial: true,
                ..Spec::tcp(1, 9, &payload(5000))
            };
            let crossing = cross(other, Mtus::default(), &[spec(v6, other, tcp).build()]);
            assert!(crossing.wire.iter().all(|frame| tos(frame) == 0xba));
            assert!(crossing.delivered().iter().all(|frame| tos(frame) == 0xba));
        }
    }
}

/// A veth as the wire: nothing cuts super-frames or finishes checksums.
#[test]
fn a_virtual_wire_carries_super_frames_whole() {
    for v6 in [false, true] {
        let data = payload(50_000);
        let tcp = spec(
            v6,
            NATIVE,
            Spec {
                partial: true,
                ..Spec::tcp(1, 9, &data)
            },
        );
        let mut near = Node::new(tables(ME, Mtus::default()));
        near.receive(POD, &tcp.build()).unwrap();
        let sent = near.flush();
        assert_eq!(sent.len(), 1);
        let arrived = arrive(NATIVE, Mtus::default(), UPLINK, &[sent[0].bytes.clone()]);
        assert_eq!(arrived.len(), 1);
        let (sent, arrived) = (&sent[0], &arrived[0]);
        assert!(without_hops(&arrived.bytes) == without_hops(&sent.bytes));
        assert_eq!(arrived.vnet, sent.vnet);
    }
}

#[test]
fn pods_of_one_node_exchange_super_frames_whole() {
    for v6 in [false, true] {
        let data = payload(50_000);
        let ends = (pod(v6, ME, 1), pod(v6, ME, 2));
        let tcp = Spec {
            v6,
            ttl: 64,
            partial: true,
            ..Spec::tcp(1, 9, &data)
        };
        let tcp = tcp.between(ends.0, ends.1);
        let mut node = Node::new(tables(ME, Mtus::default()));
        node.receive(POD, &tcp.build()).unwrap();
        let out = node.flush();
        assert_eq!(out.len(), 1);
        assert_eq!(out[0].ifindex, 10 + u32::from(BIG_POD.0));
        assert_eq!(out[0].bytes[..6], pod_mac(ME, 2).0);
        assert_eq!(hop_limit(&out[0].bytes), 63);
        assert!(without_hops(&out[0].bytes) == without_hops(&tcp.build()));
        // The sender's link is the narrower one.
        let header_len = u16::try_from(tcp.header_len()).unwrap();
        assert_eq!(out[0].vnet.gso_size, 1500 - header_len);
    }
}
