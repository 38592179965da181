//! Arguments in, exit code out: see [`greenshield::cli`].

use std::process::ExitCode;

fn main() -> ExitCode {
    greenshield::cli::main()
}
