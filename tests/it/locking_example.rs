//! The example in config/examples/optimistic-locking, run as a new user runs it.

use std::path::Path;
use std::process::{Command, Output};

use crate::harness::run_example;

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/config/examples/optimistic-locking");

fn play(arguments: &[&Path]) -> (Output, String) {
    run_example("optimistic-locking", arguments)
}

#[test]
fn the_second_writer_is_refused_and_a_patch_of_another_member_is_merged() {
    let (output, printed) = play(&[]);
    let complaints = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}\n{printed}\n{complaints}", output.status);
    assert_eq!(complaints, "", "nothing but the story");
    for part in ["412 \"The resource has changed", "Onceward-Merged: true", "All three changes"] {
        assert!(printed.contains(part), "no {part} in:\n{printed}");
    }
}

#[test]
fn the_example_fails_if_the_last_write_wins() {
    let text = std::fs::read_to_string(format!("{FOLDER}/onceward.toml")).unwrap();
    let text = text.replace("on_stale = \"merge\"", "on_stale = \"overwrite\"");
    let file = tempfile::NamedTempFile::with_suffix(".toml").unwrap();
    std::fs::write(file.path(), text).unwrap();
    let (output, printed) = play(&[file.path()]);
    assert_eq!(output.status.code(), Some(1), "{printed}");
    assert!(printed.contains("Wrong: expected"), "{printed}");
}

#[test]
fn the_configuration_of_the_example_passes_the_check() {
    let output = Command::new(env!("CARGO_BIN_EXE_onceward"))
        .args(["check", "--config", &format!("{FOLDER}/onceward.toml")])
        .output()
        .unwrap();
    let printed = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{printed}{}", String::from_utf8_lossy(&output.stderr));
}
