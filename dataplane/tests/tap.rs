//! The TAP against a veth pair and the programs of `podway-xdp-redirect`: what leaves by it, and
//! what it tells of packets that arrive. Each test has a network namespace of its own; they need
//! root.
#![allow(missing_docs, reason = "tests are described by their names")]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use podway_dataplane::counters::Sheet;
use podway_dataplane::egress::{Egress, PacketGso, TapGso, VnetHeader};
use podway_dataplane::fib::{Fib, PortFacts, PortId, Tables};
use podway_dataplane::forward::forward;
use podway_dataplane::ingress::{Burst, RingReader, TapIngress};
use podway_dataplane::last_drop::HEADER;
use podway_dataplane::packet::{Offload, Packet};
use podway_dataplane::tap::Tap;
use podway_dataplane::verdict::{DropReason, Verdict};
use podway_dataplane::watch::Watches;
use podway_dataplane::wire::flow_hash::SourcePorts;
use podway_dataplane::xsk::{CHUNK_SIZE, Frame, FramePool, Region};
use podway_proto::types::{LocalNode, MacAddr, Mode, Neighbor, Node, Path, PortRole, Route, Via};
use podway_xdp_redirect::{
    Heartbeat, PacketRing, PassCause, PortEntry, Redirect, Role, TcxAttachment, port_tag,
};

use support::frames::{
    ipv4_checksum_is_valid, pattern, tcp_super_frame, udp, udp_checksum_is_valid, udp_super_frame,
    unfinish,
};
use support::namespace::{ip, make_a_wire_of, patiently, run, wait_for};
use support::{Capture, Pair, Sender, in_namespace};

/// The slots, and so the ids, of the ports.
const POD: PortId = PortId(3);
const UPLINK: PortId = PortId(700);

/// What the frames of [`support::frames`] are sent from and to.
const POD_MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);
const PORT_MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 2]);
const UPLINK_MAC: MacAddr = MacAddr([2, 0, 0, 0, 1, 1]);
const OTHER_UPLINK_MAC: MacAddr = MacAddr([2, 0, 0, 0, 1, 2]);
const VTEP_MAC: MacAddr = MacAddr([2, 0, 0, 0, 2, 1]);
const OTHER_VTEP_MAC: MacAddr = MacAddr([2, 0, 0, 0, 2, 2]);
const VNI: u32 = 42;
const VXLAN_PORT: u16 = 4789;

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// The underlay addresses of this node and the other.
fn underlay(v6: bool) -> (IpAddr, IpAddr) {
    if v6 {
        (address("2001:db8::1"), address("2001:db8::2"))
    } else {
        (address("192.0.2.1"), address("192.0.2.2"))
    }
}

/// The tables of a node whose pod sends by VXLAN over an underlay of 1500 bytes.
fn tables(uplink: u32, v6_underlay: bool) -> Tables {
    let (here, there) = underlay(v6_underlay);
    let mut fib = Fib::new();
    fib.set_local(LocalNode {
        vni: VNI.try_into().unwrap(),
        also_vnis: Vec::new(),
        vxlan_port: VXLAN_PORT,
        vtep_mac: VTEP_MAC,
        addresses: vec![here],
        translates: false,
        defragments: false,
        allow_unknown_vteps: false,
    })
    .unwrap();
    fib.attach_port(PortFacts {
        id: POD,
        interface: "pod".into(),
        // Nothing is sent there.
        ifindex: u32::MAX,
        mtu: 1500,
        mac: PORT_MAC,
        carries_runs: false,
        role: PortRole::Pod {
            addresses: vec![address("10.0.0.1")],
            mac: POD_MAC,
            any_source: false,
        },
    })
    .unwrap();
    fib.attach_port(PortFacts {
        id: UPLINK,
        interface: "far".into(),
        ifindex: uplink,
        mtu: 1500,
        mac: UPLINK_MAC,
        carries_runs: false,
        role: PortRole::Uplink {
            accept_partial_checksums: false,
        },
    })
    .unwrap();
    fib.set_node(Node {
        name: "other".into(),
        underlay: there,
        vtep_mac: OTHER_VTEP_MAC,
        mode: Mode::Vxlan,
        path: Some(Path {
            interface: "far".into(),
            next_hop: there,
            source: here,
            mtu: 1500,
        }),
    })
    .unwrap();
    for prefix in ["10.0.1.0/24", "fe00::/8"] {
        fib.set_route(Route {
            prefix: prefix.parse().unwrap(),
            via: Via::Node {
                node: "other".into(),
                vni: None,
            },
        })
        .unwrap();
    }
    fib.set_neighbor(Neighbor {
        interface: "far".into(),
        address: there,
        mac: OTHER_UPLINK_MAC,
    })
    .unwrap();
    fib.build().tables
}

/// The way out of a worker, with a TAP or without.
struct Worker {
    egress: Egress,
    watches: Watches,
    region: Arc<Region>,
    frames: Vec<Frame>,
    sheet: Sheet,
    _transmitter: Option<TcxAttachment>,
}

impl Worker {
    fn new(tap: Option<(u16, &Redirect)>) -> Self {
        let (region, frames) = Region::new(256).unwrap();
        let tap = tap.map(|(number, redirect)| {
            let tap = Tap::open(number).unwrap();
            let transmitter = redirect.attach_transmitter(tap.ifindex()).unwrap();
            let unsent = redirect.unsent(number.into()).unwrap();
            (TapGso::new(Arc::new(tap), unsent), transmitter)
        });
        let (tap, transmitter) = tap.unzip();
        Self {
            egress: Egress::new(PacketGso::new().unwrap(), tap, SourcePorts::ALL),
            watches: Watches::default(),
            region,
            frames,
            sheet: Sheet::default(),
            _transmitter: transmitter,
        }
    }

    /// Forwards packets from the pod and sends them in one burst. All must leave.
    fn send(&mut self, tables: &Tables, packets: &[(Vec<u8>, VnetHeader)]) {
        let before = self.sent();
        self.try_send(tables, packets);
        assert_eq!(self.sent() - before, packets.len() as u64);
    }

    fn sent(&self) -> u64 {
        self.sheet.port(UPLINK).unwrap().tx_packets.get()
    }

    /// As [`Self::send`], but some may be lost on the way out.
    fn try_send(&mut self, tables: &Tables, packets: &[(Vec<u8>, VnetHeader)]) {
        let Self {
            egress,
            watches,
            region,
            frames,
            sheet,
            ..
        } = self;
        let mut free = &mut frames[..];
        for (bytes, vnet) in packets {
            let count = bytes.len().div_ceil(CHUNK_SIZE - 256);
            let (chain, rest) = free.split_at_mut(count);
            free = rest;
            for (frame, part) in chain.iter_mut().zip(bytes.chunks(CHUNK_SIZE - 256)) {
                assert!(frame.set_data(256, part.len()));
                region.bytes_mut(frame).copy_from_slice(part);
            }
            let offload = Offload {
                segment: vnet.gso_size,
                unfinished: (vnet.flags != 0).then_some(vnet.csum_start),
                checksum: vnet.csum_offset,
            };
            let packet = Packet::new(region, chain).unwrap();
            let mut packet = packet.with_offload(Some(offload));
            match forward(&mut packet, POD, tables) {
                Verdict::Send(send) => {
                    send.rewrite(&mut packet);
                    egress
                        .push(&mut packet, &send, tables, region, sheet, watches)
                        .unwrap();
                }
                Verdict::Drop(reason) => panic!("{reason:?}"),
            }
        }
        egress.flush(region, sheet, watches);
    }
}

/// The programs, which lead from TAPs out of the far end as the uplink.
fn leading_out_of(pair: &Pair) -> Redirect {
    let redirect = Redirect::load().unwrap();
    redirect
        .set_exit(UPLINK.0.into(), pair.far, UPLINK_MAC.0)
        .unwrap();
    redirect
}

/// The next `count` frames, which need nothing done to them.
fn frames(capture: &Capture, count: usize) -> Vec<Vec<u8>> {
    let mut frames = Vec::new();
    for _ in 0..count {
        let frame = capture.next().unwrap();
        assert_eq!(frame.vnet, VnetHeader::default());
        frames.push(frame.bytes);
    }
    frames
}

/// The outer headers and the inner frame.
fn split(frame: &[u8]) -> (&[u8], &[u8]) {
    frame.split_at(if frame[12] == 0x86 { 70 } else { 50 })
}

#[test]
fn a_super_frame_leaves_as_the_frames_that_are_cut_here() {
    in_namespace(|| {
        let pair = Pair::new(1);
        make_a_wire_of("far");
        let capture = Capture::new(pair.near);
        let redirect = leading_out_of(&pair);
        let mut whole = Worker::new(Some((0, &redirect)));
        let mut cut = Worker::new(None);
        let mut sent = Vec::new();
        for v6 in [false, true] {
            // One that fits, one whose segments are too large, one whose checksum is finished, as
            // that of a joined packet is.
            sent.push(tcp_super_frame(v6, 20_000, 1000));
            sent.push(tcp_super_frame(v6, 60_000, 1460));
            let (packet, vnet) = tcp_super_frame(v6, 5000, 1300);
            sent.push((packet, VnetHeader { flags: 0, ..vnet }));
            let (packet, mut vnet) = tcp_super_frame(v6, 5000, 1300);
            vnet.gso_type |= VnetHeader::GSO_ECN;
            sent.push((with_cwr(packet, v6), vnet));
        }
        for v6_underlay in [false, true] {
            let tables = tables(pair.far, v6_underlay);
            for packet in &sent {
                let headers = usize::from(packet.1.hdr_len);
                let room = if v6_underlay { 1430 } else { 1450 } + 14 - headers;
                let size = usize::from(packet.1.gso_size).min(room);
                let count = (packet.0.len() - headers).div_ceil(size);
                let [whole, cut] = [&mut whole, &mut cut].map(|worker| {
                    worker.send(&tables, std::slice::from_ref(packet));
                    frames(&capture, count)
                });
                for (number, (whole, cut)) in whole.iter().zip(&cut).enumerate() {
                    check_outer(whole, u16::try_from(number).unwrap());
                    assert_eq!(whole, cut, "frame {number}");
                }
            }
        }
        assert_eq!(capture.next(), None);
        let counted = |worker: &Worker| {
            let port = worker.sheet.port(UPLINK).unwrap();
            (port.cut.get() > 0, port.tx_packets.get())
        };
        assert_eq!(counted(&whole), (false, 16));
        assert_eq!(counted(&cut), (true, 16));
    });
}

/// What the outer headers owe to the wire.
fn check_outer(frame: &[u8], number: u16) {
    let v6 = frame[12] == 0x86;
    assert!(frame.len() <= 1514, "{}", frame.len());
    assert_eq!(frame[..6], OTHER_UPLINK_MAC.0);
    assert_eq!(frame[6..12], UPLINK_MAC.0);
    assert!(udp_checksum_is_valid(frame));
    if !v6 {
        assert!(ipv4_checksum_is_valid(frame));
        assert_eq!(frame[18..20], number.to_be_bytes(), "the id");
        assert_eq!(frame[20..22], [0x40, 0], "DF");
    }
    let (_, inner) = split(frame);
    assert_eq!(inner[..12], [OTHER_VTEP_MAC.0, VTEP_MAC.0].concat());
}

/// The super-frame with the CWR flag, its checksum unfinished.
fn with_cwr(mut packet: Vec<u8>, v6: bool) -> Vec<u8> {
    packet[if v6 { 54 } else { 34 } + 13] |= 0x80;
    packet
}

#[test]
fn blocks_and_super_frames_of_a_flow_leave_in_order() {
    in_namespace(|| {
        let pair = Pair::new(1);
        make_a_wire_of("far");
        let capture = Capture::new(pair.near);
        let redirect = leading_out_of(&pair);
        let mut worker = Worker::new(Some((0, &redirect)));
        let tables = tables(pair.far, false);
        let mut burst = Vec::new();
        let mut seq = 0_u32;
        for payload in [500, 500, 9000, 500, 9000, 9000, 500, 500] {
            let (mut packet, mut vnet) = tcp_super_frame(false, payload, 1000);
            packet[38..42].copy_from_slice(&seq.to_be_bytes());
            if payload <= 1000 {
                (vnet.gso_type, vnet.gso_size, vnet.hdr_len) = (VnetHeader::GSO_NONE, 0, 0);
            }
            seq += u32::try_from(payload).unwrap();
            burst.push((packet, vnet));
        }
        for _ in 0..20 {
            worker.send(&tables, &burst);
            let frames = frames(&capture, 5 + 3 * 9);
            let seen: Vec<_> = frames.iter().map(|frame| sequence(frame)).collect();
            assert!(seen.is_sorted(), "{seen:?}");
        }
        assert_eq!(capture.next(), None);
    });
}

/// Once all that the TAP sent left by the first queue.
#[test]
fn a_flow_leaves_by_one_queue_by_tap_and_by_socket() {
    const QUEUES: u16 = 4;
    in_namespace(|| {
        let pair = Pair::new(QUEUES.into());
        make_a_wire_of("far");
        let captures = (0..QUEUES).map(|queue: u16| {
            let capture = Capture::new(pair.near);
            capture.only_by_queue(queue);
            capture
        });
        let captures: Vec<_> = captures.collect();
        let redirect = leading_out_of(&pair);
        let mut worker = Worker::new(Some((0, &redirect)));
        let tables = tables(pair.far, false);
        let flows = 1..=32_u16;
        for flow in flows.clone() {
            let datagram = || (udp(flow, &pattern(100)), VnetHeader::default());
            // A run, which is cut, and one that is not.
            worker.send(&tables, &[datagram(), datagram()]);
            worker.send(&tables, &[datagram()]);
        }
        let mut seen: BTreeMap<u16, BTreeMap<usize, u32>> = BTreeMap::new();
        for (queue, capture) in captures.iter().enumerate() {
            while let Some(frame) = capture.next() {
                let (_, inner) = split(&frame.bytes);
                let flow = u16::from_be_bytes([inner[34], inner[35]]);
                *seen.entry(flow).or_default().entry(queue).or_default() += 1;
            }
        }
        let of_one_queue = |queues: &BTreeMap<usize, u32>| queues.values().copied().eq([3]);
        assert!(seen.values().all(of_one_queue), "{seen:?}");
        assert!(seen.keys().copied().eq(flows), "{seen:?}");
        let used: BTreeSet<_> = seen.values().flat_map(BTreeMap::keys).collect();
        assert_eq!(used.len(), usize::from(QUEUES), "{seen:?}");
    });
}

#[test]
fn a_super_frame_is_joined_whole_by_the_next_node() {
    in_namespace(|| {
        let pair = Pair::new(1);
        make_a_wire_of("far");
        run("ethtool", "-K near gro on");
        // GRO looks into tunnels whose port somebody listens on.
        ip("link add vxlan0 type vxlan id 42 dstport 4789 local 192.0.2.2");
        ip("link set vxlan0 up");
        let capture = Capture::new(pair.near);
        let redirect = leading_out_of(&pair);
        let mut worker = Worker::new(Some((0, &redirect)));
        let tables = tables(pair.far, false);
        for v6 in [false, true] {
            let (mut packet, vnet) = tcp_super_frame(v6, 20_000, 1000);
            // PSH, as on nearly every super-frame: its last segment waits for no other.
            packet[if v6 { 54 } else { 34 } + 13] |= 0x08;
            let length = packet.len();
            worker.send(&tables, &[(packet, vnet)]);
            let joined = capture.next().unwrap();
            assert_eq!(
                (joined.bytes.len(), joined.vnet.gso_size),
                (50 + length, 1000)
            );
        }
        assert_eq!(capture.next(), None);
    });
}

/// The write to the TAP succeeds, whatever the program there can do with the packet.
#[test]
fn what_is_lost_behind_the_tap_is_a_drop() {
    in_namespace(|| {
        let pair = Pair::new(1);
        make_a_wire_of("far");
        let capture = Capture::new(pair.near);
        let redirect = Redirect::load().unwrap();
        let exit = |ifindex| {
            let slot = UPLINK.0.into();
            redirect.set_exit(slot, ifindex, UPLINK_MAC.0).unwrap();
        };
        let mut worker = Worker::new(Some((0, &redirect)));
        let tables = tables(pair.far, false);
        // A run of three, a super-frame, another one: three messages by the TAP.
        let datagrams = (0..3).map(|_| (udp(9, &pattern(100)), VnetHeader::default()));
        let mut burst: Vec<_> = datagrams.collect();
        burst.push(tcp_super_frame(false, 5000, 1000));
        burst.push(tcp_super_frame(false, 9000, 1000));
        let packets = burst.len() as u64;
        let mut counted = [0; 3];
        let mut check = |what, sent, full, refused| {
            worker.try_send(&tables, &burst);
            counted = [counted[0] + sent, counted[1] + full, counted[2] + refused];
            let dropped = |reason| worker.sheet.dropped(reason);
            let (full, refused) = (DropReason::EgressFull, DropReason::EgressRefused);
            let now = [worker.sent(), dropped(full), dropped(refused)];
            assert_eq!(now, counted, "{what}: sent, full, refused");
            let port = worker.sheet.port(UPLINK).unwrap();
            assert_eq!(port.tx_messages.get() * packets, 3 * counted[0], "{what}");
        };
        check("no exit", 0, 0, packets);
        exit(pair.far);
        check("an exit", packets, 0, 0);
        assert_eq!(frames(&capture, 3 + 5 + 9).len(), 17);
        ip("link set far down");
        check("down", 0, packets, 0);
        ip("link set far up");
        wait_for("far");
        check("up", packets, 0, 0);
        assert_eq!(frames(&capture, 3 + 5 + 9).len(), 17);
        run("tc", "qdisc add dev far root pfifo limit 0");
        check("a full queue", 0, packets, 0);
        run("tc", "qdisc replace dev far root pfifo limit 10");
        check("a queue", packets, 0, 0);
        assert_eq!(frames(&capture, 3 + 5 + 9).len(), 17);
        exit(0);
        check("no exit any more", 0, 0, packets);
        assert_eq!(capture.next(), None);
        // The last message of the burst, as it was to go on the wire.
        for reason in [DropReason::EgressFull, DropReason::EgressRefused] {
            let last = worker.sheet.last_drop(reason).unwrap();
            let (inner, _) = burst.last().unwrap();
            assert_eq!(
                (last.ifindex, last.bytes as usize),
                (pair.far, 50 + inner.len())
            );
            assert_eq!(last.header().len(), HEADER);
            let header = &last.header()[14..];
            assert_eq!((header[0], header[9]), (0x45, 17), "{reason:?}");
            assert_eq!(header[20 + 2..][..2], 4789_u16.to_be_bytes(), "{reason:?}");
        }
    });
}

/// The inner TCP sequence number of a tunnel's frame over IPv4.
fn sequence(frame: &[u8]) -> u32 {
    let (_, inner) = split(frame);
    u32::from_be_bytes(inner[38..42].try_into().unwrap())
}

/// A port that redirects to a TAP, and the TAP's reader.
struct Reader {
    redirect: Redirect,
    heartbeat: Heartbeat,
    ingress: Option<TapIngress>,
    tap: Arc<Tap>,
    region: Arc<Region>,
    pool: FramePool,
    _classifier: TcxAttachment,
}

/// A packet that was read.
#[derive(Debug, PartialEq, Eq)]
struct Read {
    port: PortId,
    bytes: Vec<u8>,
    offload: Option<Offload>,
}

impl Reader {
    /// On an interface whose MAC and role are told.
    fn new(tap: u16, ifindex: u32, id: PortId, mac: MacAddr, role: Role) -> Self {
        let redirect = Redirect::load().unwrap();
        let tap = Arc::new(Tap::open(tap).unwrap());
        let port = PortEntry {
            role,
            mac: mac.0,
            slot: id.0.into(),
            xsk_base: 0,
            queues: 1,
            mtu: 1500,
            any_source: false,
        };
        redirect.set_port(ifindex, &port).unwrap();
        redirect.set_tap(0, tap.ifindex()).unwrap();
        let heartbeat = redirect.heartbeat(0).unwrap();
        redirect.open_gate();
        let classifier = redirect.attach_classifier(ifindex).unwrap();
        let (region, frames) = Region::new(256).unwrap();
        Self {
            redirect,
            heartbeat,
            ingress: Some(TapIngress::new(Arc::clone(&tap))),
            tap,
            region,
            pool: FramePool::new(frames),
            _classifier: classifier,
        }
    }

    /// Packets that arrive while `send` runs, and until `count` have come.
    fn read(&mut self, count: usize, send: impl FnOnce()) -> Vec<Read> {
        // Far enough ahead for the longest test.
        self.heartbeat.beat(u64::MAX / 2);
        send();
        let mut packets = Vec::new();
        let mut ingress = self.ingress.take().unwrap();
        patiently(|| {
            packets.extend(self.take(|burst, pool, region| ingress.receive(burst, pool, region)));
            packets.len() >= count
        });
        self.ingress = Some(ingress);
        packets
    }

    /// The packets of one burst.
    fn take(&mut self, receive: impl FnOnce(&mut Burst, &mut FramePool, &Region)) -> Vec<Read> {
        let mut burst = Burst::default();
        let Self { pool, region, .. } = self;
        receive(&mut burst, pool, region);
        let packets = burst.packets(region).map(|(port, packet)| Read {
            port,
            bytes: packet.chunks().collect::<Vec<_>>().concat(),
            offload: packet.offload(),
        });
        let packets = packets.collect();
        burst.recycle(pool);
        packets
    }

    /// Every frame is there again.
    fn close(mut self) {
        assert_eq!(self.tap.dropped(), 0);
        for frame in self.ingress.into_iter().flat_map(TapIngress::close) {
            self.pool.put(frame);
        }
        assert_eq!(self.pool.available(), self.pool.made());
    }
}

/// A packet ring beside the TAP of worker 0.
fn ring_beside(reader: &Reader) -> RingReader {
    let ring = PacketRing::new(1 << 16).unwrap();
    reader.redirect.set_ring(0, &ring).unwrap();
    RingReader::new(ring)
}

/// Asserts that a packet goes by the ring or by the TAP, and is the same afterwards.
fn check_way(
    reader: &mut Reader,
    ring: &mut RingReader,
    what: &str,
    by_ring: bool,
    far: u32,
    (bytes, vnet): (Vec<u8>, VnetHeader),
) {
    let by_tap = usize::from(!by_ring);
    let mut read = reader.read(by_tap, || {
        assert_eq!(Sender::new().send(far, &bytes, vnet), Ok(()));
    });
    assert_eq!(read.len(), by_tap, "{what}");
    if by_ring {
        patiently(|| !ring.is_empty());
        read = reader.take(|burst, pool, region| ring.receive(burst, pool, region));
    }
    let [read] = &read[..] else {
        panic!("{what}: {} packets", read.len());
    };
    assert_eq!(read.offload.is_none(), by_ring, "{what}");
    assert_eq!(read.bytes[6..], bytes[6..], "{what}");
    if let Some(offload) = read.offload {
        let unfinished = (vnet.flags != 0).then_some(vnet.csum_start);
        assert_eq!(offload.unfinished, unfinished, "{what}");
    }
}

/// `inner` in a tunnel from `from` to `to`, its UDP checksum finished.
fn in_tunnel(from: [u8; 4], to: [u8; 4], macs: [MacAddr; 2], inner: &[u8]) -> Vec<u8> {
    let vxlan = [8, 0, 0, 0, 0, 0, u8::try_from(VNI).unwrap(), 0];
    let mut bytes = Vec::new();
    etherparse::PacketBuilder::ethernet2(macs[0].0, macs[1].0)
        .ipv4(from, to, 64)
        .udp(50_000, VXLAN_PORT)
        .write(&mut bytes, &[&vxlan, inner].concat())
        .unwrap();
    bytes
}

const UDP_CHECKSUM: u16 = 6;

fn partial(csum_start: u16) -> VnetHeader {
    VnetHeader {
        flags: VnetHeader::NEEDS_CSUM,
        csum_start,
        csum_offset: UDP_CHECKSUM,
        ..VnetHeader::default()
    }
}

#[test]
fn a_pods_packets_go_by_the_way_that_can_tell_their_checksum() {
    in_namespace(|| {
        let pair = Pair::new(1);
        let mut reader = Reader::new(0, pair.near, POD, PORT_MAC, Role::Pod);
        let mut ring = ring_beside(&reader);
        for pod in ["10.0.0.1", "fdfd:fdfd:fdfd:fdfd:fdfd:fdfd:fdfd:fdfd"] {
            reader.redirect.add_pod(address(pod), pair.near).unwrap();
        }
        for prefix in ["10.0.1.0/24", "fe00::/8"] {
            let prefix = prefix.parse().unwrap();
            reader.redirect.add_prefix(prefix, 1450).unwrap();
        }
        let finished = udp(9, b"a datagram");
        let mut own = finished.clone();
        unfinish(&mut own, false, 40, 17);
        let mut own6 = Vec::new();
        etherparse::PacketBuilder::ethernet2(POD_MAC.0, PORT_MAC.0)
            .ipv6([0xfd; 16], [0xfe; 16], 64)
            .udp(9, 9)
            .write(&mut own6, b"a datagram")
            .unwrap();
        unfinish(&mut own6, true, 60, 17);
        // The pod has a tunnel, and leaves the checksum inside to us.
        let mut inner = finished.clone();
        unfinish(&mut inner, false, 40, 17);
        let inside = in_tunnel([10, 0, 0, 1], [10, 0, 1, 1], [POD_MAC, PORT_MAC], &inner);
        let without = {
            let mut bytes = inside.clone();
            bytes[40..42].fill(0);
            bytes
        };
        let plain = VnetHeader::default();
        for (what, by_ring, packet) in [
            ("a finished checksum", true, (finished, plain)),
            ("its own checksum unfinished", true, (own, partial(34))),
            (
                "its own checksum unfinished, IPv6",
                true,
                (own6, partial(54)),
            ),
            (
                "that in its tunnel unfinished",
                false,
                (inside, partial(84)),
            ),
            (
                "the same, the tunnel has none",
                false,
                (without, partial(84)),
            ),
            ("TCP", false, tcp_super_frame(false, 2000, 1000)),
        ] {
            check_way(&mut reader, &mut ring, what, by_ring, pair.far, packet);
        }
        reader.close();
    });
}

#[test]
fn an_uplinks_packets_go_by_the_way_that_can_tell_their_checksum() {
    in_namespace(|| {
        let pair = Pair::new(1);
        let mut reader = Reader::new(0, pair.near, UPLINK, UPLINK_MAC, Role::Uplink);
        let mut ring = ring_beside(&reader);
        reader.redirect.set_vxlan_port(VXLAN_PORT);
        reader.redirect.add_vni(VNI).unwrap();
        reader.redirect.add_local(underlay(false).0).unwrap();
        let pod = address("10.0.1.1");
        reader.redirect.add_pod(pod, u32::MAX).unwrap();
        reader.redirect.add_prefix(pod.into(), 1500).unwrap();
        let inner = udp(9, b"a datagram");
        let mut unfinished = inner.clone();
        unfinish(&mut unfinished, false, 40, 17);
        let tunnelled = |inner: &[u8]| {
            let macs = [OTHER_UPLINK_MAC, UPLINK_MAC];
            in_tunnel([192, 0, 2, 2], [192, 0, 2, 1], macs, inner)
        };
        let finished = tunnelled(&inner);
        let mut outer = finished.clone();
        unfinish(&mut outer, false, 40, 17);
        let plain = VnetHeader::default();
        for (what, by_ring, packet) in [
            ("all is finished", true, (finished, plain)),
            ("the tunnel's checksum is not", true, (outer, partial(34))),
            (
                "the datagram's checksum is not",
                false,
                (tunnelled(&unfinished), partial(84)),
            ),
        ] {
            check_way(&mut reader, &mut ring, what, by_ring, pair.far, packet);
        }
        reader.close();
    });
}

/// A packet as it is read: the port is where the port's own MAC was.
fn tagged(port: PortId, mut bytes: Vec<u8>) -> Vec<u8> {
    bytes[..6].copy_from_slice(&port_tag(port.0));
    bytes
}

#[test]
fn a_pods_packets_are_read_with_their_offloads() {
    in_namespace(|| {
        let pair = Pair::new(1);
        let mut reader = Reader::new(0, pair.near, POD, PORT_MAC, Role::Pod);
        for pod in ["10.0.0.1", "fdfd:fdfd:fdfd:fdfd:fdfd:fdfd:fdfd:fdfd"] {
            reader.redirect.add_pod(address(pod), pair.near).unwrap();
        }
        for prefix in ["10.0.1.0/24", "fe00::/8"] {
            let prefix = prefix.parse().unwrap();
            reader.redirect.add_prefix(prefix, 1450).unwrap();
        }
        let finished = udp(9, b"lone datagram");
        let mut unfinished = finished.clone();
        unfinish(&mut unfinished, false, 40, 17);
        let told = |segment, unfinished, checksum| Offload {
            segment,
            unfinished,
            checksum,
        };
        let partial = VnetHeader {
            flags: VnetHeader::NEEDS_CSUM,
            csum_start: 34,
            csum_offset: 6,
            ..VnetHeader::default()
        };
        let mut cases = vec![
            ((finished, VnetHeader::default()), told(0, None, 0)),
            ((unfinished, partial), told(0, Some(34), 6)),
            (
                (udp(9, &pattern(1400)), VnetHeader::default()),
                told(0, None, 0),
            ),
        ];
        for (v6, l4) in [(false, 34), (true, 54)] {
            for (payload, segment) in [(2000, 1000), (60_000, 1448), (65_000, 536)] {
                let packet = tcp_super_frame(v6, payload, segment);
                cases.push((packet, told(segment, Some(l4), 16)));
            }
        }
        // The longest frame that veths carry whole.
        cases.push((
            tcp_super_frame(false, 65_535 - 54, 1448),
            told(1448, Some(34), 16),
        ));
        let mut sender = Sender::new();
        for (number, ((bytes, vnet), offload)) in cases.into_iter().enumerate() {
            let read = reader.read(1, || {
                assert_eq!(sender.send(pair.far, &bytes, vnet), Ok(()));
            });
            assert_eq!(read.len(), 1, "case {number}");
            assert_eq!(read[0].port, POD);
            assert_eq!(read[0].offload, Some(offload), "case {number}");
            assert!(read[0].bytes == tagged(POD, bytes), "case {number}");
        }
        // A super-frame of datagrams is left to the kernel, and the next packet is not.
        let (large, vnet) = udp_super_frame(false, 2, 1000);
        let next = udp(9, b"next");
        let read = reader.read(1, || {
            assert_eq!(sender.send(pair.far, &large, vnet), Ok(()));
            sender.send_plain(pair.far, std::slice::from_ref(&next));
        });
        assert_eq!(read.len(), 1);
        assert!(read[0].bytes == tagged(POD, next));
        reader.close();
    });
}

/// What GRO makes may be longer, with its Ethernet header, than a TAP takes at once.
#[test]
fn a_super_frame_that_is_too_long_for_a_tap_is_counted_by_what_arrives() {
    in_namespace(|| {
        let pair = Pair::new(1);
        // Or it would be cut as it is sent.
        ip("link set far gso_max_size 70000");
        let mut reader = Reader::new(0, pair.near, POD, PORT_MAC, Role::Pod);
        let pod = address("fdfd:fdfd:fdfd:fdfd:fdfd:fdfd:fdfd:fdfd");
        reader.redirect.add_pod(pod, pair.near).unwrap();
        let prefix = "fe00::/8".parse().unwrap();
        reader.redirect.add_prefix(prefix, 1450).unwrap();
        let headers: usize = 14 + 40 + 20;
        let mut redirected = 0;
        for (length, segments) in [(65_535, 1), (65_536, 48), (65_549, 48)] {
            let payload = length - headers;
            assert_eq!(payload.div_ceil(1392), 48);
            let (bytes, vnet) = tcp_super_frame(true, payload, 1392);
            let read = reader.read(segments, || {
                assert_eq!(Sender::new().send(pair.far, &bytes, vnet), Ok(()));
            });
            assert_eq!(read.len(), segments, "{length} bytes");
            redirected += segments as u64;
            let stats = reader.redirect.counters(POD.0.into()).unwrap();
            assert_eq!(stats.redirected, redirected, "{length} bytes");
            let numbers = read.iter().map(|read| read.bytes[58..62].to_vec());
            assert!(numbers.is_sorted(), "{length} bytes");
        }
        reader.close();
    });
}

/// Headers that lie in front as far as the IP header and no further: the kernel lays packets out as
/// their sender wants, or a driver.
#[test]
fn headers_that_are_not_in_front_are_read_as_far_as_ports() {
    in_namespace(|| {
        let pair = Pair::new(1);
        for link in ["far", "near"] {
            ip(&format!("link set {link} mtu 9000"));
        }
        let mut reader = Reader::new(0, pair.near, UPLINK, UPLINK_MAC, Role::Uplink);
        reader.redirect.set_vxlan_port(VXLAN_PORT);
        reader.redirect.add_vni(VNI).unwrap();
        let (here, there) = underlay(true);
        reader.redirect.add_local(here).unwrap();
        let pod = address("fefe:fefe:fefe:fefe:fefe:fefe:fefe:fefe");
        reader.redirect.add_pod(pod, u32::MAX).unwrap();
        reader.redirect.add_prefix(pod.into(), 1500).unwrap();
        let octets = |address| match address {
            IpAddr::V6(address) => address.octets(),
            IpAddr::V4(_) => unreachable!("an underlay of IPv6"),
        };
        let datagram = |length| {
            let mut inner = Vec::new();
            etherparse::PacketBuilder::ethernet2(OTHER_VTEP_MAC.0, VTEP_MAC.0)
                .ipv6([0xfd; 16], [0xfe; 16], 64)
                .udp(9, 9)
                .write(&mut inner, &pattern(length))
                .unwrap();
            let vxlan = [8, 0, 0, 0, 0, 0, u8::try_from(VNI).unwrap(), 0];
            let mut bytes = Vec::new();
            etherparse::PacketBuilder::ethernet2(OTHER_UPLINK_MAC.0, UPLINK_MAC.0)
                .ipv6(octets(there), octets(here), 64)
                .udp(50_000, VXLAN_PORT)
                .write(&mut bytes, &[&vxlan, &inner[..]].concat())
                .unwrap();
            bytes
        };
        let in_front = VnetHeader {
            hdr_len: 54,
            ..VnetHeader::default()
        };
        // Too large for the route: the kernel's, and so for a while is what follows it.
        let read = reader.read(0, || {
            for length in [5000, 100] {
                let sent = Sender::new().send(pair.far, &datagram(length), in_front);
                assert_eq!(sent, Ok(()));
            }
        });
        assert_eq!(read, []);
        let mut counted = (0, 0);
        patiently(|| {
            let stats = reader.redirect.counters(UPLINK.0.into()).unwrap();
            counted = (stats.redirected, stats.passed_for(PassCause::Oversize));
            counted.0 + counted.1 == 2
        });
        assert_eq!(counted, (0, 2), "redirected, passed as oversize");
        reader.close();
    });
}

#[test]
fn a_burst_is_read_in_order() {
    in_namespace(|| {
        let pair = Pair::new(1);
        let mut reader = Reader::new(0, pair.near, POD, PORT_MAC, Role::Pod);
        reader
            .redirect
            .add_pod(address("10.0.0.1"), pair.near)
            .unwrap();
        let prefix = "10.0.1.0/24".parse().unwrap();
        reader.redirect.add_prefix(prefix, 1450).unwrap();
        // More than a burst takes at once.
        let packets: Vec<_> = (0..200).map(|n| udp(n, &pattern(n.into()))).collect();
        let read = reader.read(packets.len(), || {
            Sender::new().send_plain(pair.far, &packets);
        });
        let read: Vec<_> = read.into_iter().map(|read| read.bytes).collect();
        let expected: Vec<_> = packets.into_iter().map(|p| tagged(POD, p)).collect();
        assert!(read == expected);
        reader.close();
    });
}

/// From the TAP of one node to that of another over a veth that carries tunnels whole: what is
/// read is what was written, and metadata that is true of the inner packet.
#[test]
fn a_super_frame_in_a_tunnel_is_read_whole() {
    in_namespace(|| {
        let pair = Pair::new(1);
        let redirect = leading_out_of(&pair);
        let mut worker = Worker::new(Some((0, &redirect)));
        let mut reader = Reader::new(1, pair.near, UPLINK, OTHER_UPLINK_MAC, Role::Uplink);
        reader.redirect.set_vxlan_port(VXLAN_PORT);
        reader.redirect.add_vni(VNI).unwrap();
        for pod in ["10.0.1.1", "fefe:fefe:fefe:fefe:fefe:fefe:fefe:fefe"] {
            let pod = address(pod);
            reader.redirect.add_pod(pod, u32::MAX).unwrap();
            reader.redirect.add_prefix(pod.into(), 1500).unwrap();
        }
        for (v6_underlay, outer, node) in [(false, 50, underlay(false)), (true, 70, underlay(true))]
        {
            reader.redirect.add_local(node.1).unwrap();
            let tables = tables(pair.far, v6_underlay);
            for v6 in [false, true] {
                let l4 = if v6 { 54 } else { 34 };
                let (packet, vnet) = tcp_super_frame(v6, 50_000, 1000);
                let sent = [(packet.clone(), vnet)];
                let read = reader.read(1, || worker.send(&tables, &sent));
                let [read] = &read[..] else {
                    panic!("{} packets", read.len());
                };
                let offload = Offload {
                    segment: 1000,
                    unfinished: Some(outer + l4),
                    checksum: 16,
                };
                assert_eq!((read.port, read.offload), (UPLINK, Some(offload)));
                assert_eq!(read.bytes[..6], port_tag(UPLINK.0));
                assert_eq!(read.bytes[6..12], UPLINK_MAC.0);
                let (_, inner) = split(&read.bytes);
                assert_eq!(inner.len(), packet.len());
                // But for what a router changes in the inner headers.
                assert!(inner[l4.into()..] == packet[l4.into()..]);
            }
        }
        reader.close();
    });
}
