//! What it costs to seal and to open a value.

use std::hint::black_box;

use criterion::{Criterion, Throughput};
use greenshield::{model::BotId, store::Sealer};

pub fn run(criterion: &mut Criterion, sealer: &Sealer) {
    for (name, bytes) in [("sealing_300_bytes", 300), ("sealing_3000_bytes", 3000)] {
        let mut group = criterion.benchmark_group(name);
        group.throughput(Throughput::Bytes(bytes as u64));
        let value = vec![b'x'; bytes];
        let bot = Some(BotId(7));
        let sealed = sealer.seal("events", bot, &value).expect("seals");
        group.bench_function("seal", |b| {
            b.iter(|| sealer.seal("events", bot, black_box(&value)).expect("seals"));
        });
        group.bench_function("open", |b| {
            b.iter(|| sealer.open("events", bot, black_box(&sealed)).expect("opens"));
        });
        group.finish();
    }
}
