//! `onceward sagas test`: renders the templates of sagas against a sample, and sends nothing.

use std::fs;
use std::io::Write;
use std::process::{Command, Output, Stdio};

use serde_json::Value;
use tempfile::TempDir;

/// A checkout, with amounts that must keep their digits.
const CONFIG: &str = r#"
[upstream]
url = "http://127.0.0.1:9"
[store]
format = 3
[encryption]
keys = [{ id = "a", env = "UNSET_KEY" }]
[[sagas]]
name = "checkout"
path = "/v1/shops/{shop}/checkouts"
keep_headers = ["X-Region"]
answer = { status = 201, body = '{"order": {{ steps.reserve.body.id }}}' }
[[sagas.steps]]
name = "reserve"
compensate = { method = "DELETE", path = "/v1/reservations/{{ steps.reserve.body.id }}" }
[sagas.steps.request]
path = "/v1/shops/{{ request.path.shop }}/reservations?dry={{ request.query.dry }}"
headers = { Authorization = { env = "STOCK_TOKEN" }, X-Region = "{{ request.headers['x-region'] }}" }
body = '{"sku": {{ request.body.sku }}}'
[[sagas.steps]]
name = "charge"
pivot = true
when = "request.body.amount > 0"
request = { path = "/v1/charges", body = '{"amount": {{ request.body.amount }}, "hold": {{ steps.reserve.body.hold }}}' }
[[sagas]]
name = "return"
path = "/v1/returns"
[[sagas.steps]]
name = "refund"
compensate = "none"
request = { path = "/v1/refunds" }
"#;

const SAMPLE: &str = r#"{"body": {"sku": "A/1", "amount": 10.00}, "headers": {"x-region": "eu"},
    "path": {"shop": "s 7"}, "query": {"dry": "no"}}"#;

/// Runs the command with a configuration, and with a sample on stdin.
fn run(config: &str, sample: &str, more: &[&str]) -> Output {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("onceward.toml");
    fs::write(&file, config).unwrap();
    let mut child = Command::new(env!("CARGO_BIN_EXE_onceward"))
        .args(["sagas", "test", file.to_str().unwrap(), "--request", "-"])
        .args(more)
        .env("STOCK_TOKEN", "hunter2")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A command that refuses its arguments does not read the sample.
    let _ = child.stdin.take().unwrap().write_all(sample.as_bytes());
    child.wait_with_output().unwrap()
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&[&output.stdout[..], &output.stderr].concat()).into_owned()
}

#[test]
fn each_request_is_printed_as_it_would_be_sent() {
    let output = run(CONFIG, SAMPLE, &["--saga", "checkout"]);
    let printed = text(&output);
    assert_eq!(output.status.code(), Some(0), "{printed}");
    let lines: Vec<&str> = printed.lines().collect();
    let expected = [
        "saga \"checkout\"; nothing was sent, and the answers of the steps are made up",
        "step \"reserve\": at once, to default",
        "  request: POST /v1/shops/s%207/reservations?dry=no",
        "    idempotency-key: (the key of the step)",
        "    content-type: application/json",
        "    authorization: (the environment variable STOCK_TOKEN)",
        "    x-region: eu",
        "    {\"sku\": \"A/1\"}",
        "  made-up answer: 200 {\"hold\":\"reserve-1\",\"id\":\"reserve-1\"}",
        "  undone by: DELETE /v1/reservations/reserve-1",
        "    idempotency-key: (the key of the step)",
        "step \"charge\": after reserve, pivot, to default",
        "  when request.body.amount > 0: true",
        "  request: POST /v1/charges",
        "    idempotency-key: (the key of the step)",
        "    content-type: application/json",
        "    {\"amount\": 10.00, \"hold\": \"reserve-1\"}",
        "  made-up answer: 200 {\"id\":\"charge-1\"}",
        "  never undone",
        "answer if completed: 201 {\"order\": \"reserve-1\"}",
        "answer if failed: a problem document",
    ];
    assert_eq!(lines, expected, "{printed}");
    let all = text(&run(CONFIG, SAMPLE, &[]));
    assert!(all.contains("saga \"return\""), "{all}");
}

#[test]
fn a_part_that_can_not_be_rendered_is_named_and_the_rest_is_printed() {
    let sample = r#"{"body": {"amount": 0.00}, "path": {"shop": ".."}}"#;
    let output = run(CONFIG, sample, &["--saga", "checkout", "--json"]);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    let error = String::from_utf8_lossy(&output.stderr);
    let fault = "onceward: saga \"checkout\": step \"reserve\": request.path: line 1: `.` and `..` \
                 are no parts of a path";
    assert_eq!(error.trim_end(), fault);
    let view: Value = serde_json::from_slice(&output.stdout).unwrap();
    let saga = &view["sagas"][0];
    let [reserve, charge] = saga["steps"].as_array().unwrap().as_slice() else { panic!("{view}") };
    assert!(reserve["request"]["error"].as_str().unwrap().starts_with("path: "), "{view}");
    assert_eq!(reserve["compensation"]["path"], "/v1/reservations/reserve-1");
    assert_eq!((&charge["when"]["holds"], &charge["request"]), (&false.into(), &Value::Null));
    assert_eq!((&saga["failures"], &saga["answer"]["status"]), (&1.into(), &201.into()));

    let given =
        SAMPLE.replace("\"path\"", "\"steps\": {\"reserve\": {\"body\": {\"id\": 7}}}, \"path\"");
    let output = run(CONFIG, &given, &["--saga", "checkout", "--json"]);
    assert!(text(&output).contains("request.body: `steps.reserve.body.hold` is undefined"));
    let view: Value = serde_json::from_slice(&output.stdout).unwrap();
    let reserve = &view["sagas"][0]["steps"][0];
    assert_eq!(reserve["request"]["headers"]["authorization"]["env"], "STOCK_TOKEN");
    assert_eq!(reserve["answer"]["is_made_up"], false);
    assert!(!text(&output).contains("hunter2"), "{}", text(&output));
}

#[test]
fn a_faulty_sample_configuration_or_name_is_a_usage_error() {
    for (config, sample, more, piece) in [
        (CONFIG, "[]", &[][..], "the sample is a JSON object"),
        (CONFIG, "{\"bdy\": 1}", &[], "unknown field `bdy`"),
        (CONFIG, "{\"steps\": {\"ship\": {}}}", &["--saga", "checkout"], "\"ship\""),
        (CONFIG, SAMPLE, &["--saga", "other"], "no saga \"other\"; it has checkout, return"),
        ("[upstream]\nurl = \"http://a\"", SAMPLE, &[], "has no [[sagas]]"),
        ("[[sagas]]\n", SAMPLE, &[], "the configuration is faulty"),
    ] {
        let output = run(config, sample, more);
        assert_eq!(output.status.code(), Some(2), "{}", text(&output));
        assert!(text(&output).contains(piece), "{piece}\n{}", text(&output));
    }
}
