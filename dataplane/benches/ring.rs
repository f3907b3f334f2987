//! The rings: frames onto the tx ring, and back by the completion ring once the kernel has sent
//! them. The other end of the veth has nobody who listens. Needs root.
#![allow(
    unsafe_code,
    reason = "the network namespace of the socket tests has no safe interface"
)]

#[path = "../tests/support/mod.rs"]
#[allow(unused_imports, reason = "nothing is captured here")]
mod support;

use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput};
use podway_dataplane::xsk::{Queue, QueueConfig};
use support::{Bench, in_namespace};

/// Frames that are sent together, as in a worker.
const BURST: usize = 64;
/// Length of each in bytes.
const LENGTH: usize = 64;

fn main() {
    in_namespace(|| {
        let mut criterion = Criterion::default().configure_from_args();
        let mut bench = Bench::new(1, 256);
        let config = QueueConfig {
            posted: 64,
            tx_size: Some(256),
            completion_size: 256,
            ..QueueConfig::default()
        };
        let mut queue = bench.open(0, &config).unwrap();
        let mut group = criterion.benchmark_group("ring");
        group.throughput(Throughput::Elements(BURST as u64));
        group.bench_function("fill a burst", |bencher| {
            bencher.iter_custom(|times| (0..times).map(|_| fill(&mut bench, &mut queue)).sum());
        });
        group.bench_function("send a burst and reap it", |bencher| {
            bencher.iter_custom(|times| (0..times).map(|_| round(&mut bench, &mut queue)).sum());
        });
        group.finish();
        bench.close(queue);
        criterion.final_summary();
    });
}

/// Puts a burst on the tx ring without telling the kernel, which is ring work alone. Clearing the
/// ring again is not measured.
fn fill(bench: &mut Bench, queue: &mut Queue) -> Duration {
    let begin = Instant::now();
    push(bench, queue);
    let time = begin.elapsed();
    reap(bench, queue);
    time
}

/// A burst through the kernel and back, its copies and the veth included.
fn round(bench: &mut Bench, queue: &mut Queue) -> Duration {
    let begin = Instant::now();
    push(bench, queue);
    reap(bench, queue);
    begin.elapsed()
}

fn push(bench: &mut Bench, queue: &mut Queue) {
    let tx = queue.tx.as_mut().unwrap();
    for _ in 0..BURST {
        let mut frame = bench.pool.get().unwrap();
        assert!(frame.set_data(tx.headroom_needed(), LENGTH));
        tx.send(frame, None).unwrap();
    }
}

fn reap(bench: &mut Bench, queue: &mut Queue) {
    let tx = queue.tx.as_mut().unwrap();
    while tx.outstanding() > 0 {
        tx.flush().unwrap();
        tx.reap(&mut bench.pool);
    }
}
