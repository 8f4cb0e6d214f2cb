//! The `onceward` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    onceward::cli::main()
}
