//! The runnable examples in config/examples, run as a new user runs them.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// Runs an example with these arguments. It must have been built.
pub fn run_example(name: &str, arguments: &[&Path]) -> (Output, String) {
    let gateway = PathBuf::from(env!("CARGO_BIN_EXE_onceward"));
    let example = gateway.with_file_name("examples").join(name);
    assert!(
        example.exists(),
        "{} is missing; `cargo build --example {name}` builds it, and so do `cargo test` without a \
         choice of targets, and tests/run",
        example.display()
    );
    let output = Command::new(example).args(arguments).output().expect("the example runs");
    let printed = String::from_utf8(output.stdout.clone()).expect("text");
    (output, printed)
}
