//! Arguments in, exit code out: see [`greenshield::cli`].

use std::process::ExitCode;

use mimalloc::MiMalloc;

/// Ciphertexts, JSON and rows are many small allocations: with libc's allocator they cost a sixth of the
/// processor time of a busy fleet.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

fn main() -> ExitCode {
    greenshield::cli::main()
}
