//! What a packet costs between the rings: nanoseconds of `forward()`, of being watched, and of gathering
//! bulk data.
//!
//! Packets are hot: a burst's headers are written just before, as the kernel's copy does. What is
//! measured is the loop over a burst; putting the headers back is not.

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use etherparse::PacketBuilder;
use ipnet::IpNet;
use podway_dataplane::egress::{Gather, Pushed};
use podway_dataplane::fib::{Fib, PortFacts, PortId, Tables};
use podway_dataplane::forward::forward;
use podway_dataplane::packet::Packet;
use podway_dataplane::verdict::{Send, Verdict};
use podway_dataplane::watch::{Filter, Watch, Watches, ring};
use podway_dataplane::xsk::{Frame, Region};
use podway_proto::types::{LocalNode, MacAddr, Mode, Neighbor, Node, Path, PortRole, Route, Via};
use podway_proto::watch::{WatchPoint, WatchSpec};

/// Packets that are forwarded together, as in a worker.
const BURST: usize = 64;
/// Different bursts, so that destinations are not in the branch predictor.
const BURSTS: usize = 64;
/// Pods of a full node.
const PODS: u8 = 110;
/// Nodes that the routes lead to.
const NODES: u8 = 100;
const UPLINK: PortId = PortId(200);
const HEADROOM: usize = 256;
const VTEP: MacAddr = MacAddr([2, 0, 0, 0, 2, 1]);

/// One of the two IP versions.
#[derive(Debug, Clone, Copy)]
enum Ip {
    V4,
    V6,
}

impl Ip {
    /// The name in reports.
    fn name(self) -> &'static str {
        match self {
            Self::V4 => "ipv4",
            Self::V6 => "ipv6",
        }
    }

    /// The address of this node's pod `number`.
    fn pod(self, number: u8) -> IpAddr {
        match self {
            Self::V4 => Ipv4Addr::new(10, 0, 0, number).into(),
            Self::V6 => Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, number.into()).into(),
        }
    }

    /// An address in the PodCIDR of route `route`.
    fn remote(self, route: u32, host: u8) -> IpAddr {
        match self {
            Self::V4 => Ipv4Addr::from(0x0b00_0000 | route << 8 | u32::from(host)).into(),
            Self::V6 => {
                let net = 0xfd01_u128 << 112 | u128::from(route) << 64;
                Ipv6Addr::from(net | u128::from(host)).into()
            }
        }
    }
}

fn underlay(node: u8) -> IpAddr {
    Ipv4Addr::new(192, 0, 2, node).into()
}

/// Networks of a node beside 42.
const ALSO_VNIS: [u32; 3] = [77, 78, 79];

/// How a route leads to nodes.
#[derive(Debug, Clone, Copy)]
enum Ways {
    /// To one, in the node's own network.
    One,
    /// To so many, each for its share of the flows.
    Several(u8),
    /// To one, in one of four networks.
    Networks,
}

impl Ways {
    fn via(self, route: u32) -> Via {
        let node = |offset: u32| {
            let node = (route + offset) % u32::from(NODES);
            format!("n{}", 2 + node)
        };
        let to = |node, vni| Via::Node { node, vni };
        match self {
            Self::One => to(node(0), None),
            Self::Several(count) => Via::Multipath {
                members: (0..count.into())
                    .map(|offset| to(node(offset), None))
                    .collect(),
            },
            Self::Networks => {
                let vni = ALSO_VNIS.get(route as usize % 4);
                to(node(0), vni.map(|vni| (*vni).try_into().unwrap()))
            }
        }
    }
}

/// A node with all its pods, and so many routes of each IP version to VXLAN nodes.
fn tables(routes: u32, ways: Ways) -> Tables {
    let mut fib = Fib::new();
    let mac = |kind, number| MacAddr([2, 0, 0, 0, kind, number]);
    fib.set_local(LocalNode {
        vni: 42.try_into().unwrap(),
        also_vnis: ALSO_VNIS.map(|vni| vni.try_into().unwrap()).to_vec(),
        vxlan_port: 4789,
        vtep_mac: VTEP,
        addresses: vec![underlay(1)],
        translates: false,
        defragments: false,
        allow_unknown_vteps: false,
    })
    .unwrap();
    for number in 1..=PODS {
        fib.attach_port(PortFacts {
            id: PortId(number.into()),
            interface: format!("pod{number}"),
            ifindex: number.into(),
            mtu: 1450,
            mac: mac(3, number),
            carries_runs: false,
            role: PortRole::Pod {
                addresses: vec![Ip::V4.pod(number), Ip::V6.pod(number)],
                mac: mac(4, number),
                any_source: false,
            },
        })
        .unwrap();
    }
    fib.attach_port(PortFacts {
        id: UPLINK,
        interface: "up".into(),
        ifindex: 200,
        mtu: 1500,
        mac: mac(1, 1),
        carries_runs: false,
        role: PortRole::Uplink {
            accept_partial_checksums: false,
        },
    })
    .unwrap();
    for node in 2..2 + NODES {
        fib.set_node(Node {
            name: format!("n{node}"),
            underlay: underlay(node),
            vtep_mac: mac(2, node),
            mode: Mode::Vxlan,
            path: Some(Path {
                interface: "up".into(),
                next_hop: underlay(node),
                source: underlay(1),
                mtu: 1500,
            }),
        })
        .unwrap();
        fib.set_neighbor(Neighbor {
            interface: "up".into(),
            address: underlay(node),
            mac: mac(1, node),
        })
        .unwrap();
    }
    for route in 0..routes {
        for (ip, len) in [(Ip::V4, 24), (Ip::V6, 64)] {
            let prefix = IpNet::new(ip.remote(route, 0), len).unwrap();
            fib.set_route(Route {
                prefix,
                via: ways.via(route),
            })
            .unwrap();
        }
    }
    fib.build().tables
}

/// Numbers without a pattern (xorshift), the same in each run.
struct Random(u32);

impl Random {
    fn below(&mut self, limit: u32) -> u32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 17;
        self.0 ^= self.0 << 5;
        self.0 % limit
    }

    fn byte(&mut self, limit: u8) -> u8 {
        u8::try_from(self.below(limit.into())).unwrap()
    }
}

/// A TCP segment with timestamps.
fn segment(from: IpAddr, to: IpAddr, seq: u32, payload: &[u8]) -> Vec<u8> {
    let ethernet = PacketBuilder::ethernet2([2, 0, 0, 0, 2, 2], VTEP.0);
    let ip = match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => ethernet.ipv4(from.octets(), to.octets(), 64),
        (IpAddr::V6(from), IpAddr::V6(to)) => ethernet.ipv6(from.octets(), to.octets(), 64),
        mixed => panic!("{mixed:?}"),
    };
    let tcp = ip.tcp(40_000, 5201, seq, 500).ack(1);
    let tcp = tcp
        .options_raw(&[1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2])
        .unwrap();
    let mut frame = Vec::new();
    tcp.write(&mut frame, payload).unwrap();
    frame
}

/// The frame in a tunnel from a node to this one.
fn in_tunnel(node: u8, vni: u8, inner: &[u8]) -> Vec<u8> {
    let payload = [&[8, 0, 0, 0, 0, 0, vni, 0], inner].concat();
    let udp = PacketBuilder::ethernet2([2, 0, 0, 0, 1, node], [2, 0, 0, 0, 1, 1])
        .ipv4([192, 0, 2, node], [192, 0, 2, 1], 64)
        .udp(50_000, 4789);
    let mut frame = Vec::new();
    udp.write(&mut frame, &payload).unwrap();
    frame
}

/// Memory, and packets in it that are written anew for each burst.
struct Memory {
    region: Arc<Region>,
    frames: Vec<Frame>,
}

impl Memory {
    fn new(frames: usize) -> Self {
        let (region, frames) = Region::new(u32::try_from(frames).unwrap()).unwrap();
        Self { region, frames }
    }

    /// Puts a packet into each frame.
    fn write(&mut self, packets: &[Vec<u8>]) {
        for (frame, packet) in self.frames.iter_mut().zip(packets) {
            assert!(frame.set_data(HEADROOM, packet.len()));
            self.region.bytes_mut(frame).copy_from_slice(packet);
        }
    }
}

/// Time of [`forward`] for `packets` packets, taken from `bursts` in turn.
fn time_forward(
    memory: &mut Memory,
    tables: &Tables,
    from: PortId,
    bursts: &[Vec<Vec<u8>>],
    packets: u64,
) -> Duration {
    let rounds = packets.div_ceil(BURST as u64);
    let mut time = Duration::ZERO;
    for (_, burst) in (0..rounds).zip(bursts.iter().cycle()) {
        memory.write(burst);
        let mut sent = 0;
        let start = Instant::now();
        for frame in &mut memory.frames {
            let Some(mut packet) = Packet::new(&memory.region, std::slice::from_mut(frame)) else {
                continue;
            };
            if let Verdict::Send(send) = forward(&mut packet, from, tables) {
                black_box(send);
                sent += 1;
            }
        }
        time += start.elapsed();
        assert_eq!(sent, BURST, "a packet was dropped");
    }
    time.mul_f64(packets as f64 / (rounds * BURST as u64) as f64)
}

fn bursts(mut packet: impl FnMut() -> Vec<u8>) -> Vec<Vec<Vec<u8>>> {
    let burst = |_| (0..BURST).map(|_| packet()).collect();
    (0..BURSTS).map(burst).collect()
}

/// One packet of a small payload, on its way out to a random route and in to a random pod.
fn bench_forward(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("forward");
    group.throughput(Throughput::Elements(1));
    for routes in [1_000, 100_000] {
        let tables = tables(routes, Ways::One);
        let mut memory = Memory::new(BURST);
        let mut random = Random(0x2545_f491);
        for ip in [Ip::V4, Ip::V6] {
            let out = bursts(|| {
                let to = ip.remote(random.below(routes), random.byte(250));
                segment(ip.pod(1), to, 1, &[7; 64])
            });
            let id = BenchmarkId::new(format!("encap/{}", ip.name()), routes);
            group.bench_function(id, |bencher| {
                bencher.iter_custom(|packets| {
                    time_forward(&mut memory, &tables, PortId(1), &out, packets)
                });
            });
            let inward = bursts(|| {
                let from = ip.remote(random.below(routes), random.byte(250));
                let to = ip.pod(1 + random.byte(PODS));
                in_tunnel(2 + random.byte(NODES), 42, &segment(from, to, 1, &[7; 64]))
            });
            let id = BenchmarkId::new(format!("decap/{}", ip.name()), routes);
            group.bench_function(id, |bencher| {
                bencher.iter_custom(|packets| {
                    time_forward(&mut memory, &tables, UPLINK, &inward, packets)
                });
            });
        }
    }
    group.finish();
}

/// As [`bench_forward`], to routes of several next hops, and with several networks.
fn bench_ways(criterion: &mut Criterion) {
    const ROUTES: u32 = 1_000;
    let mut group = criterion.benchmark_group("ways");
    group.throughput(Throughput::Elements(1));
    for (name, ways) in [
        ("one", Ways::One),
        ("2-next-hops", Ways::Several(2)),
        ("16-next-hops", Ways::Several(16)),
        ("4-networks", Ways::Networks),
    ] {
        let tables = tables(ROUTES, ways);
        let mut memory = Memory::new(BURST);
        let mut random = Random(0x2545_f491);
        let out = bursts(|| {
            let to = Ip::V4.remote(random.below(ROUTES), random.byte(250));
            segment(Ip::V4.pod(1), to, 1, &[7; 64])
        });
        group.bench_function(BenchmarkId::new("encap", name), |bencher| {
            bencher.iter_custom(|packets| {
                time_forward(&mut memory, &tables, PortId(1), &out, packets)
            });
        });
    }
    for (name, vnis) in [("one", &[42][..]), ("4-networks", &[42, 77, 78, 79])] {
        let tables = tables(ROUTES, Ways::One);
        let mut memory = Memory::new(BURST);
        let mut random = Random(0x2545_f491);
        let inward = bursts(|| {
            let from = Ip::V4.remote(random.below(ROUTES), random.byte(250));
            let to = Ip::V4.pod(1 + random.byte(PODS));
            let vni = vnis[random.below(4) as usize % vnis.len()];
            in_tunnel(2 + random.byte(NODES), vni, &segment(from, to, 1, &[7; 64]))
        });
        group.bench_function(BenchmarkId::new("decap", name), |bencher| {
            bencher.iter_custom(|packets| {
                time_forward(&mut memory, &tables, UPLINK, &inward, packets)
            });
        });
    }
    group.finish();
}

/// A packet of `bytes` in as many frames as it takes.
fn chain(memory: &mut Memory, bytes: &[u8]) -> usize {
    let room = 4096 - HEADROOM;
    let parts: Vec<_> = bytes.chunks(room).map(<[u8]>::to_vec).collect();
    memory.write(&parts);
    parts.len()
}

/// What [`forward`] says of a packet, which it must send.
fn sent<'t>(packet: &mut Packet<'_>, from: PortId, tables: &'t Tables) -> Send<'t> {
    match forward(packet, from, tables) {
        Verdict::Send(send) => send,
        Verdict::Drop(reason) => panic!("{reason:?}"),
    }
}

/// 64 KiB of one flow: cut out of a super-frame into a tunnel, and joined from a tunnel's segments.
/// Both read each byte once for its checksum.
fn bench_gather(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("gather");
    let tables = tables(10, Ways::One);
    let data: Vec<u8> = (0..=255).cycle().take(65_000).collect();
    for ip in [Ip::V4, Ip::V6] {
        group.throughput(Throughput::Bytes(data.len() as u64));
        let mut memory = Memory::new(BURST);
        let frames = chain(&mut memory, &segment(ip.pod(1), ip.remote(3, 9), 1, &data));
        let mut packet = Packet::new(&memory.region, &mut memory.frames[..frames]).unwrap();
        let send = sent(&mut packet, PortId(1), &tables);
        let mut gather = Gather::new();
        group.bench_function(format!("cut/{}", ip.name()), |bencher| {
            bencher.iter(|| {
                assert_eq!(gather.push(&mut packet, &send, &tables), Pushed::Gathered);
                black_box(gather.flush());
                gather.clear();
            });
        });

        let mut memory = Memory::new(BURST);
        let size = 1350;
        let segments = (0_u32..).zip(data.chunks_exact(size)).map(|(n, part)| {
            let seq = n * u32::try_from(size).unwrap();
            in_tunnel(5, 42, &segment(ip.remote(3, 9), ip.pod(1), seq, part))
        });
        let segments: Vec<_> = segments.collect();
        memory.write(&segments);
        let Memory { region, frames } = &mut memory;
        let chains = frames
            .iter_mut()
            .take(segments.len())
            .map(std::slice::from_mut);
        let mut packets: Vec<_> = chains
            .filter_map(|frame| Packet::new(region, frame))
            .map(|mut packet| {
                let send = sent(&mut packet, UPLINK, &tables);
                (packet, send)
            })
            .collect();
        group.throughput(Throughput::Bytes((segments.len() * size) as u64));
        group.bench_function(format!("join/{}", ip.name()), |bencher| {
            bencher.iter(|| {
                for (packet, send) in &mut packets {
                    assert_eq!(gather.push(packet, send, &tables), Pushed::Gathered);
                }
                let flush = black_box(gather.flush());
                assert_eq!(flush.messages.len(), 1);
                gather.clear();
            });
        });
    }
    group.finish();
}

/// A burst through [`forward`] as a worker with watches does it, but for egress: without one, with one
/// that no packet matches, and with one that all do.
fn bench_watch(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("watch");
    group.throughput(Throughput::Elements(1));
    let tables = tables(1_000, Ways::One);
    let mut memory = Memory::new(BURST);
    let mut random = Random(0x2545_f491);
    let out = bursts(|| {
        let to = Ip::V4.remote(random.below(1_000), random.byte(250));
        segment(Ip::V4.pod(1), to, 1, &[7; 64])
    });
    let late = [WatchPoint::Egress, WatchPoint::Dropped];
    for (name, filter, points, snap) in [
        ("off", None, &late[..], 0),
        (
            "no match",
            Some("host 192.0.2.99 and tcp port 99"),
            &late,
            0,
        ),
        (
            "no match, points before",
            Some("host 192.0.2.99"),
            &WatchPoint::ALL,
            128,
        ),
        ("match, facts alone", Some("host 10.0.0.1"), &late, 0),
        (
            "match, 128 bytes at each point",
            Some("host 10.0.0.1"),
            &WatchPoint::ALL,
            128,
        ),
    ] {
        let mut watches = Watches::default();
        let mut reader = filter.map(|filter| {
            let spec = WatchSpec {
                filter: filter.to_owned(),
                points: points.iter().copied().collect(),
                snap,
                sample: 1,
                limit: None,
            };
            let (writer, reader) = ring(snap as usize);
            let filter = Filter::parse(filter, &|_| None).unwrap();
            assert!(
                watches
                    .arm(Watch::new(1, filter, &spec, None, writer))
                    .is_none()
            );
            reader
        });
        group.bench_function(name, |bencher| {
            bencher.iter_custom(|packets| {
                let rounds = packets.div_ceil(BURST as u64);
                let mut time = Duration::ZERO;
                for (_, burst) in (0..rounds).zip(out.iter().cycle()) {
                    memory.write(burst);
                    let start = Instant::now();
                    for frame in &mut memory.frames {
                        watched(&memory.region, frame, &tables, &mut watches);
                    }
                    time += start.elapsed();
                    while reader
                        .as_mut()
                        .is_some_and(|reader| reader.read().is_some())
                    {}
                }
                time.mul_f64(packets as f64 / (rounds * BURST as u64) as f64)
            });
        });
    }
    group.finish();
}

fn watched(region: &Region, frame: &mut Frame, tables: &Tables, watches: &mut Watches) {
    let Some(mut packet) = Packet::new(region, std::slice::from_mut(frame)) else {
        return;
    };
    watches.came(&packet, PortId(1));
    if let Verdict::Send(send) = forward(&mut packet, PortId(1), tables) {
        watches.decided(&mut packet, &send);
        let length = packet.len();
        watches.gathered(&mut packet, &send, length, || 50_000);
        black_box(send);
    }
}

criterion_group!(
    benches,
    bench_forward,
    bench_ways,
    bench_watch,
    bench_gather
);
criterion_main!(benches);
