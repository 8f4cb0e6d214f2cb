//! The `onceward` command.

use std::process::ExitCode;

/// Every request allocates and frees dozens of small blocks, and many requests run at once. This
/// allocator hands out the block that was freed last, which is still in the processor's cache.
/// Other allocators hand out fresh memory, and a request costs a fifth more.
#[cfg(feature = "jemalloc")]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    onceward::cli::main()
}
