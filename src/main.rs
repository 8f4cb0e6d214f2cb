//! The `onceward` command.

use std::process::ExitCode;

/// Requests take and give back dozens of small blocks, many at once. This allocator hands out the
/// block that was given back last, which is still in the processor's cache; others walk through
/// fresh memory and cost a fifth more per request.
#[cfg(feature = "jemalloc")]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    onceward::cli::main()
}
