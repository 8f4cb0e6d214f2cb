//! The example in config/examples/choreography, run as a new user runs it.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Command, Output};

use crate::harness::run_example;

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/config/examples/choreography");

fn play(arguments: &[&Path]) -> (Output, String) {
    run_example("choreography", arguments)
}

/// The keys of the requests to a path, in the order of the lines.
fn keys<'p>(printed: &'p str, path: &str) -> Vec<&'p str> {
    let words = printed.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    words.filter(|words| words.starts_with(&["POST", path])).map(|words| words[2]).collect()
}

#[test]
fn a_payment_books_a_shipment_and_a_refused_shipment_refunds_the_payment() {
    let (output, printed) = play(&[]);
    let complaints = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}\n{printed}\n{complaints}", output.status);
    assert_eq!(complaints, "", "nothing but the story");

    assert_eq!(keys(&printed, "/v1/payments"), ["pay-order-1", "pay-order-2"], "{printed}");
    let shipments = keys(&printed, "/v1/shipments");
    let refunds = keys(&printed, "/v1/refunds");
    assert_eq!((shipments.len(), refunds.len()), (2, 1), "{printed}");
    let called: BTreeSet<_> = [shipments, refunds].concat().into_iter().collect();
    assert_eq!(called.len(), 3, "a key per call:\n{printed}");
    for line in [
        r#"{"amount":2500,"order":"order-1","payment":"payment-1"}"#,
        r#"422 {"reason":"no carrier goes there"}"#,
        r#"{"amount":4200,"order":"order-2","payment":"payment-2","reason":"no carrier goes there"}"#,
        r#"201 {"id":"refund-1"}"#,
        "Each service executed each request once.",
    ] {
        assert!(printed.lines().any(|printed| printed.trim() == line), "no {line} in:\n{printed}");
    }
    assert!(!printed.contains("Wrong"), "{printed}");
}

#[test]
fn the_example_fails_if_a_refused_shipment_is_not_compensated() {
    let text = std::fs::read_to_string(format!("{FOLDER}/onceward.toml")).unwrap();
    // The service refuses with 422.
    let text = text.replace(r#"status = ["4xx"]"#, r#"status = ["404"]"#);
    let file = tempfile::NamedTempFile::with_suffix(".toml").unwrap();
    std::fs::write(file.path(), text).unwrap();
    let (output, printed) = play(&[file.path()]);
    assert_eq!(output.status.code(), Some(1), "{printed}");
    let wrong: Vec<&str> = printed.lines().filter(|line| line.starts_with("Wrong: ")).collect();
    let [dead_letter, no_refund] = wrong[..] else { panic!("{printed}") };
    assert!(dead_letter.contains("dead letter of the sink book-shipment: 422"), "{printed}");
    assert!(no_refund.contains("POST /v1/refunds for order-2"), "{printed}");
    assert!(!printed.contains("Each service executed each request once."), "{printed}");
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
