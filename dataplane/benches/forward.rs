//! What a packet costs between the rings: nanoseconds of `forward()` and rewriting, and of gathering bulk
//! data.
//!
//! Packets are hot: a burst's headers are written just before, as the kernel's copy does. What is
//! measured is the loop over a burst; putting the headers back is not.

mod common;

use std::hint::black_box;
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use podway_dataplane::egress::{Gather, Pushed};
use podway_dataplane::fib::{PortId, Tables};
use podway_dataplane::forward::forward;
use podway_dataplane::packet::Packet;
use podway_dataplane::verdict::{Send, Verdict};
use podway_proto::types::Via;

use common::{
    ALSO_VNIS, BURST, HEADROOM, Ip, Memory, NODES, PODS, Random, UPLINK, bursts, in_tunnel,
    segment, tables, to_one_node,
};

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
            Self::One => to_one_node(route),
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
                send.rewrite(&mut packet);
                black_box(send);
                sent += 1;
            }
        }
        time += start.elapsed();
        assert_eq!(sent, BURST, "a packet was dropped");
    }
    time.mul_f64(packets as f64 / (rounds * BURST as u64) as f64)
}

/// The name in reports.
fn name(ip: Ip) -> &'static str {
    match ip {
        Ip::V4 => "ipv4",
        Ip::V6 => "ipv6",
    }
}

/// One packet of a small payload, on its way out to a random route and in to a random pod.
fn bench_forward(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("forward");
    group.throughput(Throughput::Elements(1));
    for routes in [1_000, 100_000] {
        let tables = tables(routes, to_one_node);
        let mut memory = Memory::new(BURST);
        let mut random = Random(0x2545_f491);
        for ip in [Ip::V4, Ip::V6] {
            let out = bursts(|| {
                let to = ip.remote(random.below(routes), random.byte(250));
                segment(ip.pod(1), to, 1, &[7; 64])
            });
            let id = BenchmarkId::new(format!("encap/{}", name(ip)), routes);
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
            let id = BenchmarkId::new(format!("decap/{}", name(ip)), routes);
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
        let tables = tables(ROUTES, |route| ways.via(route));
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
        let tables = tables(ROUTES, to_one_node);
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

/// What [`forward`] says of a packet, which it must send, rewritten.
fn sent<'t>(packet: &mut Packet<'_>, from: PortId, tables: &'t Tables) -> Send<'t> {
    match forward(packet, from, tables) {
        Verdict::Send(send) => {
            send.rewrite(packet);
            send
        }
        Verdict::Drop(reason) => panic!("{reason:?}"),
    }
}

/// 64 KiB of one flow: cut out of a super-frame into a tunnel, and joined from a tunnel's segments.
/// Both read each byte once for its checksum.
fn bench_gather(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("gather");
    let tables = tables(10, to_one_node);
    let data: Vec<u8> = (0..=255).cycle().take(65_000).collect();
    for ip in [Ip::V4, Ip::V6] {
        group.throughput(Throughput::Bytes(data.len() as u64));
        let mut memory = Memory::new(BURST);
        let frames = chain(&mut memory, &segment(ip.pod(1), ip.remote(3, 9), 1, &data));
        let mut packet = Packet::new(&memory.region, &mut memory.frames[..frames]).unwrap();
        let send = sent(&mut packet, PortId(1), &tables);
        let mut gather = Gather::new();
        group.bench_function(format!("cut/{}", name(ip)), |bencher| {
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
        group.bench_function(format!("join/{}", name(ip)), |bencher| {
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

criterion_group!(benches, bench_forward, bench_ways, bench_gather);
criterion_main!(benches);
