//! The event log of real gateways, and its verification after tampering.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::Value;

use crate::admin::{cli, lose};
use crate::harness::{Gateway, ROUTES, RedisServer, Request, Upstream, until};

const LOG: &str = "[log]\nenabled = true\n";

fn verify(gateway: &Gateway) -> (i32, String) {
    let out = Command::new(env!("CARGO_BIN_EXE_onceward"))
        .args(["log", "verify", "--admin", &format!("127.0.0.1:{}", gateway.admin)])
        .output()
        .unwrap();
    (
        out.status.code().unwrap(),
        String::from_utf8_lossy(&[out.stdout, out.stderr].concat()).into_owned(),
    )
}

#[test]
fn the_log_of_an_embedded_store_verifies_and_duplicates_add_nothing_to_it() {
    let upstream = Upstream::start();
    let gateway = Gateway::with(upstream.port, LOG, ROUTES);
    let pay = Request::pay("k", "{}");
    for _ in 0..3 {
        assert_eq!(pay.send(gateway.port).status, 201);
    }
    let (code, output) = verify(&gateway);
    assert!(code == 0 && output.contains("2 entries"), "{output}");
}

#[test]
fn an_entry_that_is_taken_out_of_redis_or_written_anew_is_found() {
    let (upstream, redis) = (Upstream::start(), RedisServer::start());
    let gateway = Gateway::on(upstream.port, &redis.url(), LOG, ROUTES);
    for n in 0..20 {
        assert_eq!(
            Request::pay(&format!("secret-key-{n}"), r#"{"amount":1}"#).send(gateway.port).status,
            201
        );
    }
    let (code, output) = verify(&gateway);
    assert!(code == 0 && output.contains("40 entries"), "{output}");

    let names = redis.cli(&["keys", "onceward:*:events"]);
    let (first, second) = (names.lines().next().unwrap(), names.lines().nth(1).unwrap());
    let shown = redis.cli(&["xrange", first, "-", "+", "count", "1"]);
    assert!(shown.contains("claimed") && !shown.contains("secret-key"), "{shown}");
    redis.cli(&["xdel", first, shown.lines().next().unwrap().trim()]);
    let (code, output) = verify(&gateway);
    let partition = |name: &str| name.split(['p', '}']).nth(1).unwrap().to_owned();
    assert!(code == 1 && output.contains(&format!("partition {},", partition(first))), "{output}");
    assert!(output.contains("in 1 places"), "{output}");

    redis.cli(&["del", second]);
    redis.cli(&["xadd", second, "*", &"0".repeat(40), &("0".repeat(48) + "{}")]);
    let (code, output) = verify(&gateway);
    assert!(code == 1 && output.contains(&format!("partition {},", partition(second))), "{output}");
}

#[test]
fn without_the_log_nothing_is_written_for_it() {
    let (upstream, redis) = (Upstream::start(), RedisServer::start());
    let gateway = Gateway::on(upstream.port, &redis.url(), "", ROUTES);
    assert_eq!(Request::pay("k", "{}").send(gateway.port).status, 201);
    let (code, output) = verify(&gateway);
    assert!(code == 1 && output.contains("the event log is off"), "nothing was verified: {output}");
    assert_eq!(redis.cli(&["keys", "onceward:*:events"]).trim(), "");
    assert_eq!(redis.cli(&["keys", "onceward:*:chain"]).trim(), "");
}

/// A process that follows the log; killed when dropped.
struct Tail {
    child: Child,
    lines: Arc<Mutex<Vec<String>>>,
    stderr: Arc<Mutex<Vec<String>>>,
}

/// Collects the lines of a stream as they arrive.
fn gathered(stream: Option<impl Read + Send + 'static>) -> Arc<Mutex<Vec<String>>> {
    let lines = Arc::new(Mutex::new(Vec::new()));
    let sink = lines.clone();
    let stream = BufReader::new(stream.unwrap());
    std::thread::spawn(move || {
        stream.lines().map_while(Result::ok).for_each(|line| sink.lock().unwrap().push(line))
    });
    lines
}

impl Tail {
    fn start(gateway: &Gateway, words: &[&str]) -> Tail {
        let (mut tail, stdout) = Tail::unread(gateway, words);
        tail.lines = gathered(Some(stdout));
        tail
    }

    /// Starts a tail and leaves its output to the caller.
    fn unread(gateway: &Gateway, words: &[&str]) -> (Tail, ChildStdout) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_onceward"));
        command
            .args(["log", "tail", "--admin", &format!("127.0.0.1:{}", gateway.admin)])
            .args(words);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let stdout = child.stdout.take().unwrap();
        let stderr = gathered(child.stderr.take());
        (Tail { child, lines: Arc::default(), stderr }, stdout)
    }

    fn lines(&self) -> Vec<String> {
        self.lines.lock().unwrap().clone()
    }

    /// Returns the lines of its standard error.
    fn stderr(&self) -> Vec<String> {
        self.stderr.lock().unwrap().clone()
    }

    /// Waits for its end, and returns its exit status and standard error.
    fn end(&mut self) -> (ExitStatus, String) {
        until("the tail to end", || self.child.try_wait().unwrap().is_some());
        // The collecting thread holds the list until the stream has ended.
        until("its standard error to be read", || Arc::strong_count(&self.stderr) == 1);
        (self.child.wait().unwrap(), self.stderr().join("\n"))
    }
}

impl Drop for Tail {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn what_happens_to_payments_is_printed_as_it_happens() {
    let upstream = Upstream::start();
    let gateway = Gateway::with(upstream.port, LOG, ROUTES);
    let before = lose(&gateway, "before");
    let mut tail = Tail::start(&gateway, &[]);
    let mut n = 0;
    until("it to have begun", || {
        n += 1;
        Request::pay(&format!("k{n}"), "{}").send(gateway.port);
        !tail.lines().is_empty()
    });
    assert_eq!(Request::pay("after", "{}").send(gateway.port).status, 201);
    let lost = lose(&gateway, "k");
    assert_eq!(
        cli(&gateway, &["resolve", &lost, "--status", "402", "--reason", "ticket 4711"]).0,
        0
    );
    let of = |operation: &str| -> Vec<Vec<String>> {
        let lines = tail.lines().into_iter().filter(|line| line.contains(operation));
        lines
            .map(|line| {
                line.split("  ")
                    .map(|word| word.trim().to_owned())
                    .filter(|word| !word.is_empty())
                    .collect()
            })
            .collect()
    };
    until("the decision to be printed", || of(&lost).len() == 3);
    let events: Vec<Vec<String>> = of(&lost).into_iter().map(|words| words[2..].to_vec()).collect();
    assert_eq!(events[0], ["claimed", "payments"]);
    assert!(
        events[1][..2] == ["uncertain", "payments"] && events[1][2].contains("broke"),
        "{events:?}"
    );
    assert_eq!(events[2], ["resolved", "payments", "status 402", "by loopback: ticket 4711"]);
    // At least one payment was printed from its claim on.
    let paid_line = |line: &String| line.contains("  completed  payments  status 201");
    let from_its_claim = |line: &String| {
        let paid = line.split("  ").nth(1).unwrap();
        paid.starts_with("op_")
            && of(paid).iter().map(|words| words[2].as_str()).eq(["claimed", "completed"])
    };
    until("a payment to be printed whole", || {
        tail.lines().iter().filter(|line| paid_line(line)).any(from_its_claim)
    });
    assert!(of(&before).is_empty(), "it begins at the end");

    assert!(
        Command::new("kill")
            .args(["-INT", &tail.child.id().to_string()])
            .status()
            .unwrap()
            .success()
    );
    assert_eq!(tail.end().1, "");
    let since = Tail::start(&gateway, &["--since", "1h", "--json"]);
    until("all to be printed", || since.lines().len() >= tail.lines().len() + 2);
    let first: Value = serde_json::from_str(&since.lines()[0]).unwrap();
    assert_eq!(
        (&first["operation"], &first["kind"], &first["route"]),
        (&before.into(), &"claimed".into(), &"payments".into())
    );
}

#[test]
fn a_tail_outlives_its_gateway_and_goes_on_behind_what_it_printed_and_ends_at_a_refusal() {
    let upstream = Upstream::start();
    let mut gateway = Gateway::with(upstream.port, LOG, ROUTES);
    Request::pay("before", "{}").send(gateway.port);
    let mut tail = Tail::start(&gateway, &["--since", "1h"]);
    until("the first to be printed", || tail.lines().len() == 2);
    gateway.kill();
    until("the tail to report that it waits", || !tail.stderr().is_empty());
    let mut another = Tail::start(&gateway, &[]);
    let (status, stderr) = another.end();
    assert!(
        status.code() == Some(1) && stderr.contains("can't be reached"),
        "one that was never answered: {stderr}"
    );
    gateway.start_again();
    Request::pay("after", "{}").send(gateway.port);
    until("the second to be printed", || tail.lines().len() >= 4);
    let words = |line: &String| line.split("  ").map(str::to_owned).nth(1).unwrap();
    let operations: Vec<String> = tail.lines().iter().map(words).collect();
    assert!(
        operations[0] == operations[1]
            && operations[1] != operations[2]
            && operations[2] == operations[3],
        "{operations:?}"
    );

    gateway.kill();
    until("the tail to report it again", || tail.stderr().len() == 2);
    std::fs::write(gateway.config(), ROUTES).unwrap();
    gateway.start_again();
    let (status, stderr) = tail.end();
    let stderr: Vec<&str> = stderr.lines().collect();
    assert!(
        stderr[..2]
            .iter()
            .all(|line| line.contains("can't be reached") && line.contains("trying again")),
        "{stderr:?}"
    );
    assert!(
        status.code() == Some(1) && stderr.len() == 3 && stderr[2].contains("the event log is off"),
        "{stderr:?}"
    );
    assert_eq!(tail.lines().len(), 4);
}

#[test]
fn a_tail_reports_that_trimmed_entries_are_left_out() {
    let upstream = Upstream::start();
    let mut gateway =
        Gateway::with(upstream.port, "[log]\nenabled = true\nkeep = \"1s\"\n", ROUTES);
    Request::pay("before", "{}").send(gateway.port);
    until("both entries to be trimmed", || {
        // A start trims the log at once.
        gateway.kill();
        gateway.start_again();
        let piece = gateway.ask("GET", "/v1/log?since=2020-01-01T00:00:00Z").json();
        piece["trimmed"] == true && piece["events"] == Value::Array(Vec::new())
    });
    Request::pay("after", "{}").send(gateway.port);
    let tail = Tail::start(&gateway, &["--since", "1h"]);
    until("what is left to be printed, and a word about the rest", || {
        tail.lines().len() == 2 && !tail.stderr().is_empty()
    });
    assert!(
        tail.stderr().len() == 1 && tail.stderr()[0].contains("no longer in the event log"),
        "{:?}",
        tail.stderr()
    );
    let now = Tail::start(&gateway, &[]);
    until("it to have begun", || {
        Request::pay(&format!("k{}", upstream.executed()), "{}").send(gateway.port);
        !now.lines().is_empty()
    });
    assert_eq!(now.stderr(), Vec::<String>::new());
}

#[test]
fn a_tail_ends_quietly_when_its_reader_goes_away_though_nothing_happens() {
    let upstream = Upstream::start();
    let gateway = Gateway::with(upstream.port, LOG, ROUTES);
    Request::pay("k", "{}").send(gateway.port);
    let (mut tail, stdout) = Tail::unread(&gateway, &["--since", "1h"]);
    let mut stdout = BufReader::new(stdout);
    stdout.read_line(&mut String::new()).unwrap();
    drop(stdout);
    let (status, stderr) = tail.end();
    assert_eq!((status.code(), stderr.as_str()), (Some(0), ""));
}

#[test]
fn a_tail_ends_when_its_reader_goes_away_while_it_waits_for_its_gateway() {
    let upstream = Upstream::start();
    let mut gateway = Gateway::with(upstream.port, LOG, ROUTES);
    Request::pay("k", "{}").send(gateway.port);
    let (mut tail, stdout) = Tail::unread(&gateway, &["--since", "1h"]);
    let mut stdout = BufReader::new(stdout);
    stdout.read_line(&mut String::new()).unwrap();
    gateway.kill();
    until("the tail to report that it waits", || !tail.stderr().is_empty());
    drop(stdout);
    let (status, stderr) = tail.end();
    assert!(status.code() == Some(0) && stderr.lines().count() == 1, "{stderr}");
}

/// Reads the log to its end, in small pieces. Returns the events of each operation, and the last
/// cursor.
fn walk(gateway: &Gateway, start: &str) -> (BTreeMap<String, Vec<String>>, String) {
    let mut kinds: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut from = start.to_owned();
    for _ in 0..100 {
        let piece = gateway.ask("GET", &format!("/v1/log?limit=7&{from}")).json();
        let cursor = piece["cursor"].as_str().unwrap();
        let events = piece["events"].as_array().unwrap();
        assert!(events.len() <= 7, "{piece}");
        for event in events {
            let kind = event["kind"].as_str().unwrap().to_owned();
            kinds.entry(event["operation"].as_str().unwrap().to_owned()).or_default().push(kind);
        }
        if events.is_empty() {
            return (kinds, cursor.to_owned());
        }
        from = format!("after={cursor}");
    }
    panic!("it never ends: {kinds:?}");
}

#[test]
fn the_log_is_read_piece_by_piece_across_all_partitions_and_waited_for() {
    let (upstream, redis) = (Upstream::start(), RedisServer::start());
    let gateway = Gateway::on(upstream.port, &redis.url(), LOG, ROUTES);
    let (kinds, beginning) = walk(&gateway, "");
    assert!(kinds.is_empty());
    for n in 0..20 {
        assert_eq!(Request::pay(&format!("k{n}"), "{}").send(gateway.port).status, 201);
    }
    let (kinds, cursor) = walk(&gateway, &format!("after={beginning}"));
    assert!(
        kinds.len() == 20 && kinds.values().all(|kinds| kinds == &["claimed", "completed"]),
        "{kinds:?}"
    );
    assert_eq!(walk(&gateway, "since=2020-01-01T00:00:00Z").0, kinds);
    for start in ["", "since=2100-01-01T00:00:00Z"] {
        assert!(walk(&gateway, start).0.is_empty(), "{start}");
    }
    let next = std::thread::scope(|scope| {
        let waiting =
            scope.spawn(|| gateway.ask("GET", &format!("/v1/log?wait=5&after={cursor}")).json());
        Request::pay("k", "{}").send(gateway.port);
        waiting.join().unwrap()
    });
    assert_eq!(next["events"][0]["kind"], "claimed", "{next}");
    for target in [
        "/v1/log?after=nowhere!",
        "/v1/log?since=yesterday",
        "/v1/log?after=&since=2026-11-25T03:00:00Z",
    ] {
        assert_eq!(gateway.ask("GET", target).problem(), "request-invalid", "{target}");
    }
}

#[test]
fn whoever_asks_without_end_spares_the_store() {
    const ASKED: u32 = 50;
    let upstream = Upstream::start();
    let gateway = Gateway::with(upstream.port, LOG, ROUTES);
    let began = tokio::time::Instant::now();
    for _ in 0..ASKED {
        assert_eq!(gateway.ask("GET", "/v1/log").status, 200);
    }
    assert!(began.elapsed() >= Duration::from_millis(16) * (ASKED - 1), "{:?}", began.elapsed());
}

#[test]
fn a_log_that_is_off_is_not_waited_for() {
    let upstream = Upstream::start();
    let gateway = Gateway::start(upstream.port);
    let (status, stderr) = Tail::start(&gateway, &[]).end();
    assert!(
        status.code() == Some(1)
            && stderr.contains("the event log is off: set enabled = true under [log]"),
        "{stderr}"
    );
    let refused = gateway.ask("GET", "/v1/log?wait=5");
    assert_eq!((refused.status, refused.problem().as_str()), (501, "log-off"));
}
