//! Internet checksums: of a packet's bytes, and of one changed field.

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use podway_dataplane::wire::Sum;
use podway_dataplane::wire::checksum::update_u16;

/// An IPv4 header, the smallest packets' payload, an MTU, and a super-frame, in bytes.
const LENGTHS: [usize; 4] = [20, 64, 1448, 65_160];

fn sums(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("checksum");
    for length in LENGTHS {
        let bytes: Vec<u8> = (0..=255).cycle().take(length).collect();
        group.throughput(Throughput::Bytes(length as u64));
        group.bench_function(BenchmarkId::new("sum", length), |bencher| {
            bencher.iter(|| Sum::of(black_box(&bytes)).finish());
        });
    }
    group.throughput(Throughput::Elements(1));
    group.bench_function("update", |bencher| {
        bencher.iter(|| update_u16(black_box(0x1234), black_box(0x4006), black_box(0x3f06)));
    });
    group.finish();
}

criterion_group!(benches, sums);
criterion_main!(benches);
