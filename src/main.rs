//! The `onceward` command.

use std::process::ExitCode;

/// A request makes some dozens of small allocations; the system's allocator took a fifth of the gateway's own time.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    onceward::cli::main()
}
