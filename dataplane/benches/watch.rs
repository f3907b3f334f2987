//! What being watched costs a packet between the rings.
//!
//! Criterion tells the time of each case by itself. On a machine whose clock and caches are shared these
//! swing by more than a watch costs, so that the cases are then compared in pairs: blocks of bursts in
//! turn with and without the watch, and the median of the differences.

mod common;

use std::hint::black_box;
use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput};
use podway_dataplane::fib::{PortId, Tables};
use podway_dataplane::forward::forward;
use podway_dataplane::packet::Packet;
use podway_dataplane::verdict::Verdict;
use podway_dataplane::watch::{Filter, Reader, Watch, Watches, ring};
use podway_dataplane::xsk::{Frame, Region};
use podway_proto::watch::{WatchPoint, WatchSpec};

use common::{
    BURST, Ip, Memory, NODES, PODS, Random, UPLINK, bursts, in_tunnel, segment, tables, to_one_node,
};

/// Bursts of a block: long enough for the clock, short enough for the machine to stay the same.
const BLOCK: usize = 8;
/// Pairs of blocks in a round, whose median is one figure.
const PAIRS: usize = 200;
/// Rounds, each at another depth of the stack.
const ROUNDS: usize = 31;
/// Of the sorted figures of the rounds, the ends of the interval that holds their median with a
/// confidence of 95 % (P(Bin(31, 1/2) <= 9) = 1.5 %).
const INTERVAL: [usize; 2] = [9, 21];

/// One way of being watched.
struct Case {
    name: &'static str,
    filter: Option<&'static str>,
    points: &'static [WatchPoint],
    snap: u32,
}

const LATE: &[WatchPoint] = &[WatchPoint::Egress, WatchPoint::Dropped];
const NARROW: &str = "host 192.0.2.99 and tcp port 99";

const CASES: [Case; 6] = [
    Case {
        name: "off",
        filter: None,
        points: LATE,
        snap: 0,
    },
    Case {
        name: "no match",
        filter: Some(NARROW),
        points: LATE,
        snap: 0,
    },
    Case {
        name: "no match, points before",
        filter: Some(NARROW),
        points: &WatchPoint::ALL,
        snap: 128,
    },
    Case {
        name: "no match, but for a reason",
        filter: Some("host 192.0.2.99 and reason no_route"),
        points: &WatchPoint::ALL,
        snap: 128,
    },
    Case {
        name: "match, facts alone",
        filter: Some("tcp"),
        points: LATE,
        snap: 0,
    },
    Case {
        name: "match, 128 bytes at each point",
        filter: Some("tcp"),
        points: &WatchPoint::ALL,
        snap: 128,
    },
];

impl Case {
    fn watches(&self) -> (Watches, Option<Reader>) {
        let mut watches = Watches::default();
        let reader = self.filter.map(|filter| {
            let spec = WatchSpec {
                filter: filter.to_owned(),
                points: self.points.iter().copied().collect(),
                snap: self.snap,
                sample: 1,
                limit: None,
            };
            let (writer, reader) = ring(self.snap as usize);
            let filter = Filter::parse(filter, &|_| None).unwrap();
            let back = watches.arm(Watch::new(1, filter, &spec, None, writer));
            assert!(back.is_none());
            reader
        });
        (watches, reader)
    }
}

/// One way that packets go, and bursts of them.
struct Direction {
    name: &'static str,
    from: PortId,
    bursts: Vec<Vec<Vec<u8>>>,
}

fn directions() -> [Direction; 2] {
    let mut random = Random(0x2545_f491);
    let out = bursts(|| {
        let to = Ip::V4.remote(random.below(1_000), random.byte(250));
        segment(Ip::V4.pod(1), to, 1, &[7; 64])
    });
    let inward = bursts(|| {
        let from = Ip::V4.remote(random.below(1_000), random.byte(250));
        let to = Ip::V4.pod(1 + random.byte(PODS));
        in_tunnel(2 + random.byte(NODES), 42, &segment(from, to, 1, &[7; 64]))
    });
    [
        Direction {
            name: "out",
            from: PortId(1),
            bursts: out,
        },
        Direction {
            name: "in",
            from: UPLINK,
            bursts: inward,
        },
    ]
}

/// A burst as a worker with watches forwards it, but for egress.
#[inline(never)]
fn watched(memory: &mut Memory, from: PortId, tables: &Tables, watches: &mut Watches) -> Duration {
    let start = Instant::now();
    for frame in &mut memory.frames {
        watched_packet(&memory.region, frame, from, tables, watches);
    }
    start.elapsed()
}

#[inline(always)]
fn watched_packet(
    region: &Region,
    frame: &mut Frame,
    from: PortId,
    tables: &Tables,
    watches: &mut Watches,
) {
    let Some(mut packet) = Packet::new(region, std::slice::from_mut(frame)) else {
        return;
    };
    watches.came(&packet, from);
    if let Verdict::Send(send) = forward(&mut packet, from, tables) {
        watches.decided(&mut packet, &send);
        send.rewrite(&mut packet);
        let length = packet.len();
        watches.gathered(&mut packet, &send, length, || 50_000);
        black_box(&send);
    }
}

/// The same burst without a place for watches.
#[inline(never)]
fn unwatched(memory: &mut Memory, from: PortId, tables: &Tables) -> Duration {
    let start = Instant::now();
    for frame in &mut memory.frames {
        let Some(mut packet) = Packet::new(&memory.region, std::slice::from_mut(frame)) else {
            continue;
        };
        if let Verdict::Send(send) = forward(&mut packet, from, tables) {
            send.rewrite(&mut packet);
            black_box(&send);
        }
    }
    start.elapsed()
}

fn drain(reader: &mut Option<Reader>) {
    while reader
        .as_mut()
        .is_some_and(|reader| reader.read().is_some())
    {}
}

fn bench_watch(criterion: &mut Criterion) {
    let tables = tables(1_000, to_one_node);
    let mut memory = Memory::new(BURST);
    for Direction { name, from, bursts } in directions() {
        let mut group = criterion.benchmark_group(format!("watch/{name}"));
        group.throughput(Throughput::Elements(1));
        for case in &CASES {
            let (mut watches, mut reader) = case.watches();
            group.bench_function(case.name, |bencher| {
                bencher.iter_custom(|packets| {
                    let rounds = packets.div_ceil(BURST as u64);
                    let mut time = Duration::ZERO;
                    for (_, burst) in (0..rounds).zip(bursts.iter().cycle()) {
                        memory.write(burst);
                        time += watched(&mut memory, from, &tables, &mut watches);
                        drain(&mut reader);
                    }
                    time.mul_f64(packets as f64 / (rounds * BURST as u64) as f64)
                });
            });
        }
        group.finish();
    }
}

/// Nanoseconds that a packet takes in `without`, and those that it takes longer in `with`: figures of
/// each round, sorted.
fn differences(
    mut with: impl FnMut(&[Vec<u8>]) -> Duration,
    mut without: impl FnMut(&[Vec<u8>]) -> Duration,
    bursts: &[Vec<Vec<u8>>],
) -> [Vec<f64>; 2] {
    let mut blocks = bursts.chunks_exact(BLOCK).cycle();
    let mut round = || {
        let pair = |number| {
            let block = blocks.next().unwrap();
            let mut with = || block.iter().map(|burst| with(burst)).sum::<Duration>();
            let mut without = || block.iter().map(|burst| without(burst)).sum::<Duration>();
            // Each is first in half of the pairs: what comes second finds the caches warmer.
            let (with, without) = if number % 2 == 0 {
                let first = with();
                (first, without())
            } else {
                let first = without();
                (with(), first)
            };
            let per_packet = |time: Duration| time.as_secs_f64() * 1e9 / (BLOCK * BURST) as f64;
            (per_packet(without), per_packet(with) - per_packet(without))
        };
        let (times, differences) = (0..PAIRS).map(pair).unzip();
        (median(times), median(differences))
    };
    let (times, differences) = (0..ROUNDS).map(|depth| at_depth(depth, &mut round)).unzip();
    [sorted(times), sorted(differences)]
}

/// Calls `function` so many frames deeper. Where the stack lies to the packets, modulo a page, decides
/// which loads wait for stores that only look as if they were to the same place; that is worth more than
/// a watch, and must not be what one run of this program happens to have.
#[inline(never)]
fn at_depth<T>(depth: usize, function: &mut dyn FnMut() -> T) -> T {
    let frame = black_box([0_u8; 128]);
    let result = match depth {
        0 => function(),
        _ => at_depth(depth - 1, function),
    };
    black_box(&frame);
    result
}

fn sorted(mut values: Vec<f64>) -> Vec<f64> {
    values.sort_by(f64::total_cmp);
    values
}

fn median(values: Vec<f64>) -> f64 {
    sorted(values)[PAIRS / 2]
}

/// Prints each case beside the one before it that it is to be judged by.
fn compare() {
    let tables = tables(1_000, to_one_node);
    println!("nanoseconds a packet, median of {ROUNDS} rounds of {PAIRS} pairs (95 %)");
    for Direction { name, from, bursts } in directions() {
        for case in &CASES {
            // Both write into the same memory, so that neither has the better frames.
            let memory = std::cell::RefCell::new(Memory::new(BURST));
            let (mut watches, mut reader) = case.watches();
            let mut off = Watches::default();
            let with = |burst: &[Vec<u8>]| {
                let mut memory = memory.borrow_mut();
                memory.write(burst);
                let time = watched(&mut memory, from, &tables, &mut watches);
                drain(&mut reader);
                time
            };
            let without = |burst: &[Vec<u8>]| {
                let mut memory = memory.borrow_mut();
                memory.write(burst);
                match case.filter {
                    Some(_) => watched(&mut memory, from, &tables, &mut off),
                    None => unwatched(&mut memory, from, &tables),
                }
            };
            let figures = differences(with, without, &bursts);
            let against = match case.filter {
                Some(_) => "off",
                None => "no watches in the code",
            };
            let [time, difference] = figures.map(|rounds| {
                let [low, high] = INTERVAL.map(|at| rounds[at]);
                format!("{:5.1} ({low:.1} to {high:.1})", rounds[ROUNDS / 2])
            });
            println!(
                "{name:3}  {against:22} {time:22}  {:30} + {difference}",
                case.name
            );
        }
    }
}

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    bench_watch(&mut criterion);
    criterion.final_summary();
    compare();
}
