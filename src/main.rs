//! The `onceward` command.

use std::process::ExitCode;

/// A request makes some dozens of small allocations; the system's allocator took a fifth of the gateway's own time.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    // The allocator spreads over few bytes of many pages: huge ones would double what an idle gateway holds. Where the
    // system has none, there is nothing to turn off.
    #[cfg(target_os = "linux")]
    let _ = rustix::thread::disable_transparent_huge_pages(true);
    onceward::cli::main()
}
