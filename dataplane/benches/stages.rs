//! What measuring stages costs a burst: one in 61 is measured, all the others only count down.

use criterion::{Criterion, criterion_group, criterion_main};
use podway_dataplane::stages::{EVERY, Stages};
use podway_proto::perf::Stage;

/// A burst of `packets`, all of its time spent on measuring.
fn burst(stages: &mut Stages, packets: usize) {
    for stage in [Stage::Receive, Stage::Forward, Stage::Send] {
        stages.lap(stage);
    }
    stages.end(packets);
}

fn stages(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("stages");
    let mut stages = Stages::default();
    group.bench_function("any burst", |bench| bench.iter(|| burst(&mut stages, 16)));
    let mut stages = Stages::default();
    group.bench_function("61 bursts, one of them measured", |bench| {
        bench.iter(|| (0..EVERY).for_each(|_| burst(&mut stages, 16)));
    });
}

criterion_group!(benches, stages);
criterion_main!(benches);
