//! `onceward demo --once`, run as a new user runs it.

use std::process::Command;

/// The numbers of the line that begins with `start`.
fn totals(printed: &str, start: &str) -> [usize; 3] {
    let line = printed
        .lines()
        .find(|line| line.starts_with(start))
        .unwrap_or_else(|| panic!("no `{start}` in:\n{printed}"));
    let numbers: Vec<usize> =
        line.split(|c: char| !c.is_ascii_digit()).filter_map(|word| word.parse().ok()).collect();
    numbers.try_into().unwrap_or_else(|_| panic!("not three numbers: {line}"))
}

#[test]
fn the_demo_charges_twice_without_the_gateway_and_once_with_it() {
    let scratch = tempfile::tempdir().expect("a directory");
    let output = Command::new(env!("CARGO_BIN_EXE_onceward"))
        .args(["demo", "--once"])
        .env("TMPDIR", scratch.path())
        .env_remove("ONCEWARD_LOG")
        .output()
        .expect("the demo runs");
    let printed = String::from_utf8(output.stdout).expect("text");
    let complaints = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}\n{printed}\n{complaints}", output.status);
    assert_eq!(complaints, "", "nothing between the tables");

    let [orders, charges, doubled] = totals(&printed, "without Onceward:");
    assert!(charges > orders && doubled > 0, "{printed}");
    let [orders, charges, doubled] = totals(&printed, "with Onceward:");
    assert_eq!((charges, doubled), (orders, 0), "{printed}");
    assert!(printed.contains("outcome-uncertain"), "{printed}");
    assert!(printed.contains("5  DELETE /v1/reservations/res_1"), "{printed}");
    assert!(printed.contains("request again: 409 replayed saga-failed"), "{printed}");
    let more: Vec<&str> =
        printed.lines().skip_while(|line| !line.contains("without --once")).collect();
    assert!(
        more.iter().any(|line| line.contains("page for the browser"))
            && more.iter().any(|line| line.contains("curl")),
        "{printed}"
    );

    let left = std::fs::read_dir(scratch.path()).expect("the directory").count();
    assert_eq!(left, 0, "the demo removes its files");
}
