//! Malformed frames: each is dropped under a reason of its own, or left to the kernel under a
//! cause of its own where it cannot be told whose it is. None of them stops a worker.

use std::collections::BTreeMap;
use std::thread::sleep;
use std::time::Duration;

use etherparse::PacketBuilder;
use podway_bench::frames::send_raw;
use podway_bench::netns::{Netns, run};
use podway_bench::topology::{Node, POD_INTERFACE, Pod, UPLINK};
use podway_proto::dataplane::{DropCount, DroppedPacket};
use podway_proto::reasons::Place;
use podway_proto::types::{MacAddr, Mode};

use crate::support::{Delta, Network, options, ping_all, spec};

/// Longer than a tick of the kernel's coarse clock.
const TICK: Duration = Duration::from_millis(15);
/// Bytes that are told of a frame whose headers cannot be read.
const UNREAD: usize = 64;

/// Offset of the IP header behind an Ethernet header.
const IP: usize = 14;
/// Offset of the L4 header behind an IPv4 header without options.
const L4: usize = IP + 20;
/// Offset of the L4 header behind an IPv6 header.
const L4_OF_IPV6: usize = IP + 40;
/// Outer Ethernet, IPv4, UDP and VXLAN headers.
const OUTER: usize = IP + 20 + 8 + 8;

#[derive(Debug, Clone, Copy)]
enum Fate {
    /// Dropped by the dataplane for this reason.
    Dropped(&'static str),
    /// Left to the kernel by the XDP program for this cause.
    Passed(&'static str),
    /// Dropped by the XDP program for this cause, so that neither has it.
    Refused(&'static str),
    /// Forwarded: the frame that the others are made from is good.
    Sent,
}
use Fate::{Dropped, Passed, Refused, Sent};

struct Case {
    what: &'static str,
    frame: Vec<u8>,
    fate: Fate,
}

fn case(what: &'static str, frame: Vec<u8>, fate: Fate) -> Case {
    Case { what, frame, fate }
}

#[test]
#[ignore = "needs root; scripts/test runs it"]
fn from_a_pod() {
    let network = Network::up(spec(), &options(Mode::Vxlan));
    let (node, pod, peer) = (network.node(0), network.pod(0, 0), network.pod(1, 0));
    let port = &*pod.host_interface;
    let gateway = mac_of(&node.netns, port);
    ping_all(&pod.netns, peer.ipv4.into(), 56, 1);
    for case in pod_cases(pod, peer, node, gateway) {
        meets(&network, &case, port, UPLINK, || {
            send_raw(&pod.netns, POD_INTERFACE, &case.frame).unwrap();
        });
    }
    are_told(&network, pod, peer);
    ping_all(&pod.netns, peer.ipv4.into(), 56, 10);
    network.finish();
}

/// What `podway drops` tells of the frames of [`pod_cases`].
fn are_told(network: &Network, pod: &Pod, peer: &Pod) {
    let bad = drop_of(network, "ipv4_bad_checksum");
    assert_eq!((bad.packets, &bad.places[..]), (1, &[Place::Parse][..]));
    let last = bad.last.unwrap();
    let told = DroppedPacket {
        seconds_ago: last.seconds_ago,
        interface: Some(pod.host_interface.clone()),
        bytes: 14 + 20 + 8 + 64,
        source: Some(pod.ipv4.into()),
        destination: Some(peer.ipv4.into()),
        protocol: Some(17),
        source_port: Some(40_000),
        destination_port: Some(9),
        inside: None,
        header: last.header.clone(),
    };
    assert_eq!(last, told);
    let refused = drop_of(network, "spoofed_source");
    assert_eq!(
        (refused.packets, &refused.places[..]),
        (3, &[Place::Xdp][..])
    );
    let by_port = BTreeMap::from([(pod.host_interface.clone(), 3)]);
    assert_eq!(refused.interfaces, by_port);
    let last = refused.last.unwrap();
    let mut foreign = pod.ipv6.octets();
    foreign[15] ^= 1;
    let told = DroppedPacket {
        seconds_ago: last.seconds_ago,
        interface: Some(pod.host_interface.clone()),
        bytes: 14 + 40 + 8 + 64,
        source: Some(foreign.into()),
        destination: Some(peer.ipv6.into()),
        protocol: Some(0),
        source_port: None,
        destination_port: None,
        inside: None,
        header: last.header.clone(),
    };
    assert_eq!(last, told);
    // All that is there is told in the text, and nothing else.
    let text = network.agent(0).cli(&["drops"]).unwrap();
    let (text, _) = text
        .split_once("\nLEFT TO THE KERNEL ")
        .expect("some were passed");
    for drop in network.agent(0).drops().unwrap().drops {
        let row = format!("\n{} ", drop.reason);
        assert_eq!(
            text.contains(&row),
            drop.packets > 0,
            "{}: {text}",
            drop.reason
        );
    }
}

#[test]
#[ignore = "needs root; scripts/test runs it"]
fn from_the_uplink() {
    let network = Network::up(spec(), &options(Mode::Vxlan));
    let (here, there) = (network.node(0), network.node(1));
    let (pod, peer) = (network.pod(0, 0), network.pod(1, 0));
    let (to, from) = (mac_of(&here.netns, UPLINK), mac_of(&there.netns, UPLINK));
    ping_all(&pod.netns, peer.ipv4.into(), 56, 1);
    let wire = Wire {
        here,
        there,
        to,
        from,
    };
    for case in uplink_cases(&wire, pod, peer) {
        meets(&network, &case, UPLINK, &pod.host_interface, || {
            send_raw(&there.netns, UPLINK, &case.frame).unwrap();
        });
    }
    ping_all(&pod.netns, peer.ipv4.into(), 56, 10);
    network.finish();
}

/// Sends one frame to node 1 and compares what became of it with what must.
fn meets(network: &Network, case: &Case, ingress: &str, egress: &str, send: impl Fn()) {
    let state = || network.agent(0).balanced().unwrap();
    let before = state();
    // Of one tick the programs keep but one packet.
    sleep(TICK);
    send();
    // The frame has been through the XDP program when the sender's system call returns, since a
    // veth delivers on the same CPU; the dataplane's part is waited for by `balanced`.
    let after = state();
    let delta = Delta {
        before: &before,
        after: &after,
    };
    let one = |name: &str| BTreeMap::from([(name.to_owned(), 1)]);
    let (received, _) = delta.packets(ingress);
    let (_, sent) = delta.packets(egress);
    let seen = (received, sent, delta.drops());
    let what = case.what;
    match case.fate {
        Dropped(reason) => {
            assert_eq!(seen, (1, 0, one(reason)), "{what}");
            is_named(network, case, reason, ingress, after.drops[reason]);
        }
        Sent => assert_eq!(seen, (1, 1, BTreeMap::new()), "{what}"),
        Passed(cause) => {
            assert_eq!(seen, (0, 0, BTreeMap::new()), "{what}");
            let passed = delta.passed(ingress);
            assert_eq!(passed.get(cause), Some(&1), "{what}: {passed:?}");
            let passed = network.agent(0).drops().unwrap().passed;
            let pass = passed.into_iter().find(|pass| pass.cause == cause);
            is_kept(case, ingress, &pass.unwrap().last.unwrap());
        }
        Refused(cause) => {
            assert_eq!(seen, (0, 0, BTreeMap::new()), "{what}");
            assert_eq!(delta.refused(ingress), one(cause), "{what}");
            is_kept(case, ingress, &drop_of(network, cause).last.unwrap());
        }
    }
}

/// What a program has kept is the frame that was just sent.
fn is_kept(case: &Case, ingress: &str, last: &DroppedPacket) {
    let what = case.what;
    assert_eq!(last.interface.as_deref(), Some(ingress), "{what}");
    assert_eq!(last.bytes as usize, case.frame.len(), "{what}: {last:?}");
    assert!(last.seconds_ago < 60, "{what}: {last:?}");
    assert!(is_header(last, &case.frame, 0), "{what}: {last:?}");
}

/// Whether the header that is told is the frame's from a digit on, with all that is in front of the
/// payload where it can be read.
fn is_header(last: &DroppedPacket, frame: &[u8], from: usize) -> bool {
    let least = if last.source.is_some() { L4 } else { UNREAD };
    let frame: String = frame.iter().map(|byte| format!("{byte:02x}")).collect();
    let (told, sent) = (last.header.get(from..), frame.get(from..));
    let starts = sent
        .zip(told)
        .is_some_and(|(sent, told)| sent.starts_with(told));
    starts && last.header.len() >= (2 * least).min(frame.len())
}

/// `podway drops` names the frame that was just dropped: whole, or without its tunnel.
fn is_named(network: &Network, case: &Case, reason: &str, ingress: &str, packets: u64) {
    let what = case.what;
    let drop = drop_of(network, reason);
    assert_eq!(drop.packets, packets, "{what}");
    let last = drop.last.unwrap();
    assert_eq!(last.interface.as_deref(), Some(ingress), "{what}");
    assert!(last.seconds_ago < 60, "{what}: {last:?}");
    let inner = case.frame.get(OUTER..).unwrap_or_default();
    // In place of the destination MAC a TAP's packet has its port.
    let is_it = |frame: &[u8]| last.bytes as usize == frame.len() && is_header(&last, frame, 12);
    assert!(is_it(&case.frame) || is_it(inner), "{what}: {last:?}");
}

fn drop_of(network: &Network, reason: &str) -> DropCount {
    let mut drops = network.agent(0).drops().unwrap().drops.into_iter();
    drops.find(|drop| drop.reason == reason).unwrap()
}

fn pod_cases(pod: &Pod, peer: &Pod, node: &Node, gateway: MacAddr) -> Vec<Case> {
    let ethernet = || PacketBuilder::ethernet2(pod.mac.0, gateway.0);
    let ipv4 = |ttl| ethernet().ipv4(pod.ipv4.octets(), peer.ipv4.octets(), ttl);
    let ipv6 = || ethernet().ipv6(pod.ipv6.octets(), peer.ipv6.octets(), 64);
    let write = |frame: &mut Vec<u8>,
                 builder: etherparse::PacketBuilderStep<etherparse::UdpHeader>| {
        builder.write(frame, &[0xa5; 64]).unwrap();
    };
    let mut udp = Vec::new();
    write(&mut udp, ipv4(64).udp(40_000, 9));
    let mut dying = Vec::new();
    write(&mut dying, ipv4(1).udp(40_000, 9));
    let mut udp6 = Vec::new();
    write(&mut udp6, ipv6().udp(40_000, 9));
    let mut tcp = Vec::new();
    ipv4(64)
        .tcp(40_000, 9, 1, 1000)
        .write(&mut tcp, &[0xa5; 64])
        .unwrap();
    let mut icmp = Vec::new();
    ipv4(64)
        .icmpv4_echo_reply(1, 1)
        .write(&mut icmp, &[0xa5; 64])
        .unwrap();
    let with = |frame: &[u8], change: &dyn Fn(&mut Vec<u8>)| {
        let mut frame = frame.to_owned();
        change(&mut frame);
        frame
    };
    // A changed IPv4 header with a right checksum again.
    let v4 = |frame: &[u8], change: &dyn Fn(&mut Vec<u8>)| {
        with(frame, &|f| {
            change(f);
            finish_ipv4(f, IP);
        })
    };
    vec![
        case("good UDP", udp.clone(), Sent),
        case("good UDP over IPv6", udp6.clone(), Sent),
        case("good TCP", tcp.clone(), Sent),
        case(
            "bad IPv4 checksum",
            with(&udp, &|f| f[IP + 10] ^= 1),
            Dropped("ipv4_bad_checksum"),
        ),
        case(
            "total length beyond the packet",
            v4(&udp, &|f| put(f, IP + 2, 200)),
            Dropped("ipv4_bad_total_length"),
        ),
        case(
            "total length below the header",
            v4(&udp, &|f| put(f, IP + 2, 10)),
            Dropped("ipv4_bad_total_length"),
        ),
        case(
            "UDP length beyond the packet",
            with(&udp, &|f| put(f, L4 + 4, 200)),
            Dropped("udp_bad_length"),
        ),
        case(
            "UDP length below its header",
            with(&udp, &|f| put(f, L4 + 4, 4)),
            Dropped("udp_bad_length"),
        ),
        case(
            "cut UDP header",
            v4(&udp, &|f| cut(f, L4 + 4)),
            Dropped("truncated_udp"),
        ),
        case(
            "cut TCP header",
            v4(&tcp, &|f| cut(f, L4 + 10)),
            Dropped("truncated_tcp"),
        ),
        case(
            "TCP data offset 4",
            with(&tcp, &|f| f[L4 + 12] = 0x40),
            Dropped("tcp_bad_data_offset"),
        ),
        case(
            "TCP data offset beyond the packet",
            v4(&tcp, &|f| {
                cut(f, L4 + 24);
                f[L4 + 12] = 0xf0;
            }),
            Dropped("tcp_bad_data_offset"),
        ),
        case(
            "cut ICMP header",
            v4(&icmp, &|f| cut(f, L4 + 3)),
            Dropped("truncated_icmp"),
        ),
        case(
            "IPv6 payload length beyond the packet",
            with(&udp6, &|f| put(f, IP + 4, 200)),
            Dropped("ipv6_bad_payload_length"),
        ),
        case(
            "cut UDP header over IPv6",
            with(&udp6, &|f| {
                f.truncate(L4_OF_IPV6 + 4);
                put(f, IP + 4, 4);
            }),
            Dropped("truncated_udp"),
        ),
        case(
            "cut IPv4 header",
            with(&udp, &|f| f.truncate(IP + 12)),
            Passed("malformed"),
        ),
        case(
            "cut IPv6 header",
            with(&udp6, &|f| f.truncate(IP + 30)),
            Passed("malformed"),
        ),
        case(
            "IPv4 with version 5",
            with(&udp, &|f| f[IP] = 0x55),
            Passed("malformed"),
        ),
        case(
            "IPv6 with version 4",
            with(&udp6, &|f| f[IP] = 0x40),
            Passed("malformed"),
        ),
        case(
            "IPv4 header of 16 bytes",
            v4(&udp, &|f| f[IP] = 0x44),
            Passed("malformed"),
        ),
        case(
            "IPv4 options",
            v4(&udp, &|f| f[IP] = 0x46),
            Passed("options"),
        ),
        case(
            "unknown EtherType",
            with(&udp, &|f| put(f, 12, 0x1234)),
            Passed("not_ip"),
        ),
        case(
            "unknown protocol",
            v4(&udp, &|f| f[IP + 9] = 47),
            Passed("protocol"),
        ),
        case("TTL 1", dying, Passed("hop_limit")),
        case(
            "IPv6 fragment",
            with(&udp6, &|f| f[IP + 6] = 44),
            Passed("fragment"),
        ),
        case(
            "IPv6 extension header",
            with(&udp6, &|f| f[IP + 6] = 0),
            Passed("extension_header"),
        ),
        case(
            "source of another pod",
            v4(&udp, &|f| f[IP + 15] ^= 1),
            Refused("spoofed_source"),
        ),
        case(
            "fragment from the source of another pod",
            v4(&udp, &|f| {
                f[IP + 6] = 0x20;
                f[IP + 15] ^= 1;
            }),
            Refused("spoofed_source"),
        ),
        case(
            "IPv6 extension header from the source of another pod",
            with(&udp6, &|f| {
                f[IP + 6] = 0;
                f[IP + 8 + 15] ^= 1;
            }),
            Refused("spoofed_source"),
        ),
        case(
            "to the node",
            v4(&udp, &|f| {
                f[IP + 16..IP + 20].copy_from_slice(&node.underlay.octets());
            }),
            Passed("local_address"),
        ),
        case(
            "outside of every PodCIDR",
            v4(&udp, &|f| f[IP + 17] = 77),
            Passed("no_route"),
        ),
    ]
}

struct Wire<'a> {
    here: &'a Node,
    there: &'a Node,
    to: MacAddr,
    from: MacAddr,
}

impl Wire<'_> {
    /// The frame in a VXLAN tunnel of VNI 1, as the other node sends it.
    fn tunnel(&self, inner: &[u8]) -> Vec<u8> {
        let mut payload = vec![0x08, 0, 0, 0, 0, 0, 1, 0];
        payload.extend_from_slice(inner);
        let mut frame = Vec::new();
        PacketBuilder::ethernet2(self.from.0, self.to.0)
            .ipv4(
                self.there.underlay.octets(),
                self.here.underlay.octets(),
                64,
            )
            .udp(50_000, 4789)
            .write(&mut frame, &payload)
            .unwrap();
        // RFC 7348: zero is accepted, and spares these cases a sum over what they change.
        put(&mut frame, L4 + 6, 0);
        frame
    }
}

fn uplink_cases(wire: &Wire<'_>, pod: &Pod, peer: &Pod) -> Vec<Case> {
    let (source, target) = (peer.ipv4.octets(), pod.ipv4.octets());
    let (from, to) = (wire.there.vtep_mac(), wire.here.vtep_mac());
    let mut inner = Vec::new();
    let builder = PacketBuilder::ethernet2(from.0, to.0).ipv4(source, target, 64);
    builder
        .udp(40_000, 9)
        .write(&mut inner, &[0xa5; 64])
        .unwrap();
    let mut native = Vec::new();
    let builder = PacketBuilder::ethernet2(wire.from.0, wire.to.0).ipv4(source, target, 64);
    builder
        .udp(40_000, 9)
        .write(&mut native, &[0xa5; 64])
        .unwrap();
    let with = |frame: &[u8], change: &dyn Fn(&mut Vec<u8>)| {
        let mut frame = frame.to_owned();
        change(&mut frame);
        frame
    };
    let inside = |change: &dyn Fn(&mut Vec<u8>)| {
        wire.tunnel(&with(&inner, &|f| {
            change(f);
            finish_ipv4(f, IP);
        }))
    };
    let good = wire.tunnel(&inner);
    let outside = |change: &dyn Fn(&mut Vec<u8>)| {
        with(&good, &|f| {
            change(f);
            finish_ipv4(f, IP);
        })
    };
    vec![
        case("good tunnel", good.clone(), Sent),
        case(
            "reserved bits of VXLAN set",
            outside(&|f| f[L4 + 8] = 0xff),
            Sent,
        ),
        case("good native packet", native.clone(), Sent),
        case(
            "bad outer IPv4 checksum",
            with(&good, &|f| f[IP + 10] ^= 1),
            Dropped("ipv4_bad_checksum"),
        ),
        case(
            "outer UDP length beyond the packet",
            outside(&|f| put(f, L4 + 4, 1000)),
            Dropped("udp_bad_length"),
        ),
        case(
            "tunnel of an unknown node",
            outside(&|f| f[IP + 15] = 77),
            Dropped("unknown_vtep"),
        ),
        case(
            "congestion marked on a flow that cannot carry it",
            outside(&|f| f[IP + 1] = 3),
            Dropped("ecn_not_capable"),
        ),
        case(
            "bad inner IPv4 checksum",
            with(&good, &|f| f[OUTER + IP + 10] ^= 1),
            Dropped("ipv4_bad_checksum"),
        ),
        case(
            "inner total length beyond the packet",
            inside(&|f| put(f, IP + 2, 200)),
            Dropped("ipv4_bad_total_length"),
        ),
        case(
            "cut inner UDP header",
            inside(&|f| cut(f, L4 + 4)),
            Dropped("truncated_udp"),
        ),
        case(
            "bad native IPv4 checksum",
            with(&native, &|f| f[IP + 10] ^= 1),
            Dropped("ipv4_bad_checksum"),
        ),
        case(
            "I flag clear",
            outside(&|f| f[L4 + 8] = 0),
            Passed("not_vxlan"),
        ),
        case(
            "another UDP port",
            outside(&|f| put(f, L4 + 2, 4790)),
            Passed("not_vxlan"),
        ),
        case(
            "unknown VNI",
            outside(&|f| f[L4 + 14] = 2),
            Passed("unknown_vni"),
        ),
        case(
            "cut VXLAN header",
            outside(&|f| cut_outer(f, L4 + 12)),
            Passed("malformed"),
        ),
        case(
            "cut inner Ethernet header",
            outside(&|f| cut_outer(f, OUTER + 10)),
            Passed("malformed"),
        ),
        case(
            "cut inner IPv4 header",
            outside(&|f| cut_outer(f, OUTER + IP + 12)),
            Passed("malformed"),
        ),
        case(
            "inner IPv4 options",
            inside(&|f| f[IP] = 0x46),
            Passed("options"),
        ),
        case(
            "inner TTL 1",
            inside(&|f| f[IP + 8] = 1),
            Passed("hop_limit"),
        ),
        case(
            "a pod of this node as the source in a tunnel",
            inside(&|f| f.copy_within(IP + 16..IP + 20, IP + 12)),
            Refused("own_source"),
        ),
        case(
            "no such pod",
            inside(&|f| f[IP + 19] = 99),
            Passed("no_such_pod"),
        ),
        case(
            "another destination MAC",
            with(&good, &|f| f[5] ^= 1),
            Passed("not_for_us"),
        ),
    ]
}

/// Cuts a packet, and its IPv4 total length with it.
fn cut(frame: &mut Vec<u8>, length: usize) {
    frame.truncate(length);
    put(frame, IP + 2, u16::try_from(length - IP).unwrap());
}

/// Cuts a tunnelled packet, and its outer UDP length with it.
fn cut_outer(frame: &mut Vec<u8>, length: usize) {
    cut(frame, length);
    put(frame, L4 + 4, u16::try_from(length - L4).unwrap());
}

pub(crate) fn put(frame: &mut [u8], offset: usize, value: u16) {
    frame[offset..offset + 2].copy_from_slice(&value.to_be_bytes());
}

/// Writes the checksum of the 20-byte IPv4 header at `offset`, as far as the frame reaches.
pub(crate) fn finish_ipv4(frame: &mut [u8], offset: usize) {
    // Also of a header that lies about its length.
    let length = (usize::from(frame[offset] & 0xf) * 4).max(20);
    let end = frame.len().min(offset + length);
    let header = &mut frame[offset..end];
    header[10..12].fill(0);
    let words = header
        .chunks(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])));
    let sum: u32 = words.sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    let folded = (folded & 0xffff) + (folded >> 16);
    let checksum = !u16::try_from(folded).unwrap();
    header[10..12].copy_from_slice(&checksum.to_be_bytes());
}

pub(crate) fn mac_of(netns: &Netns, interface: &str) -> MacAddr {
    let path = format!("/sys/class/net/{interface}/address");
    let text = run(netns.command("cat").arg(path)).unwrap();
    text.trim().parse().unwrap()
}
