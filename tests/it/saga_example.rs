//! The example in config/examples/saga, run as a new user runs it.

use std::path::Path;
use std::process::{Command, Output};

use crate::harness::run_example;

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/config/examples/saga");

fn play(arguments: &[&Path]) -> (Output, String) {
    run_example("saga", arguments)
}

#[test]
fn a_checkout_is_completed_and_a_refused_shipment_undoes_another_one() {
    let (output, printed) = play(&[]);
    let complaints = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}\n{printed}\n{complaints}", output.status);
    assert_eq!(complaints, "", "nothing but the story");
    let answer =
        r#"201 {"order":"order-1","payment":"charge-of-order-1","shipment":"shipment-of-order-1"}"#;
    for part in [
        answer,
        "urn:onceward:problem:saga-failed",
        "422 POST /v1/shipments",
        "204 DELETE /v1/reservations/reservation-of-order-2",
        "Each request was executed once, with a key of its own.",
    ] {
        assert!(printed.contains(part), "no {part} in:\n{printed}");
    }
}

#[test]
fn the_example_fails_if_a_charge_is_not_undone() {
    let text = std::fs::read_to_string(format!("{FOLDER}/onceward.toml")).unwrap();
    // The service answers requests to this path with 404, and then nothing is left to undo.
    let text = text.replace("path = \"/v1/refunds\"", "gone = [\"404\"]\npath = \"/v1/returns\"");
    let file = tempfile::NamedTempFile::with_suffix(".toml").unwrap();
    std::fs::write(file.path(), text).unwrap();
    let (output, printed) = play(&[file.path()]);
    assert_eq!(output.status.code(), Some(1), "{printed}");
    assert!(printed.contains("404 POST /v1/returns"), "{printed}");
    assert!(printed.contains("Wrong: expected"), "{printed}");
    assert!(!printed.contains("Each request was executed once"), "{printed}");
}

#[test]
fn the_configuration_of_the_example_passes_the_check() {
    let output = Command::new(env!("CARGO_BIN_EXE_onceward"))
        .args(["check", "--config", &format!("{FOLDER}/onceward.toml")])
        .output()
        .unwrap();
    let printed = String::from_utf8_lossy(&output.stdout);
    let complaints = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{printed}\n{complaints}");
    assert!(!format!("{printed}{complaints}").contains("warning"), "{printed}\n{complaints}");
}
