//! Microbenchmarks of what every message goes through: sealing, the store's hot calls, and
//! matrix-sdk-crypto on our store beside the same on its store in memory.
//!
//! Needs a database: `scripts/with-postgres --durable cargo bench --bench hot`.

mod crypto;
mod database;
mod pair;
mod sealing;
mod store;

use std::hint::black_box;

use criterion::Criterion;

use self::database::Database;

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .expect("a runtime");
    let database = runtime.block_on(Database::create()).expect("a database");
    let mut criterion = Criterion::default().sample_size(20).configure_from_args();
    sealing::run(&mut criterion, black_box(database.store.sealer()));
    store::run(&mut criterion, &runtime, &database);
    crypto::run(&mut criterion, &runtime, &database);
    criterion.final_summary();
    runtime.block_on(database.drop());
}
