//! The read model: kept by a separate projector process, its reported age, and its rebuild.

use std::process::{Child, Command, Output, Stdio};

use crate::harness::{Gateway, ROUTES, RedisServer, Request, Upstream, until};

const LOG: &str = "[log]\nenabled = true\n";

fn onceward(words: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_onceward"));
    command.args(words).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Runs the program to its end. Returns its exit code and its output.
fn run(words: &[&str]) -> (i32, String) {
    let Output { status, stdout, stderr } = onceward(words).output().unwrap();
    (status.code().unwrap(), String::from_utf8_lossy(&[stdout, stderr].concat()).into_owned())
}

fn by_cli(gateway: &Gateway, words: &[&str]) -> (i32, String) {
    run(&[&["projection"], words, &["--admin", &format!("127.0.0.1:{}", gateway.admin)]].concat())
}

/// A projector process; killed when dropped.
struct Projector(Child);

impl Projector {
    fn start(gateway: &Gateway, redis: &RedisServer) -> Projector {
        let config = gateway.config().display().to_string();
        Projector(
            onceward(&["projector", "--config", &config, "--store", &redis.url()]).spawn().unwrap(),
        )
    }

    /// Sends SIGTERM and returns the exit status.
    fn end(mut self) -> Option<i32> {
        let sent = Command::new("kill").args(["-TERM", &self.0.id().to_string()]).status().unwrap();
        assert!(sent.success());
        self.0.wait().unwrap().code()
    }
}

impl Drop for Projector {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn known(gateway: &Gateway) -> usize {
    gateway.ask("GET", "/v1/operations?route=payments").json()["operations"]
        .as_array()
        .unwrap()
        .len()
}

#[test]
fn a_separate_projector_keeps_the_file_and_the_gateway_reports_its_age() {
    let (upstream, redis) = (Upstream::start(), RedisServer::start());
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("model.sqlite");
    let settings = format!("{LOG}[read_model]\nproject = false\npath = \"{}\"\n", file.display());
    let gateway = Gateway::on(upstream.port, &redis.url(), &settings, ROUTES);
    let lag = || gateway.metric("onceward_projection_lag_seconds");
    assert_eq!(Request::pay("a", "{}").send(gateway.port).status, 201);
    until("the lag to grow, since nobody follows", || lag() > 1.0);
    let (code, text) = by_cli(&gateway, &["status"]);
    assert_eq!(
        (code, text.trim(), known(&gateway)),
        (0, "0 entries of the event log; it is not known yet until when they are complete.", 0)
    );

    let projector = Projector::start(&gateway, &redis);
    until("the operation to be known", || known(&gateway) == 1);
    until("the gateway to see how far the file is", || {
        gateway.metric("onceward_projection_entries") == 2.0 && lag() < 5.0
    });
    assert_eq!(projector.end(), Some(0));
    let ended = gateway.ask("GET", "/v1/projection").json()["as_of"].as_str().unwrap().to_owned();
    assert_eq!(Request::pay("b", "{}").send(gateway.port).status, 201);
    until("the lag to grow again", || lag() > 2.0);
    let answer = gateway.ask("GET", "/v1/operations?route=payments").json();
    assert!(
        answer["lag_ms"].as_u64().unwrap() > 1000
            && answer["operations"].as_array().unwrap().len() == 1,
        "{answer}"
    );

    let _projector = Projector::start(&gateway, &redis);
    until("the next one to go on from there", || known(&gateway) == 2);
    until("the file to be newer", || {
        gateway.ask("GET", "/v1/projection").json()["as_of"].as_str().unwrap() > ended.as_str()
    });
    let rebuilt = by_cli(&gateway, &["rebuild"]);
    assert!(
        rebuilt.0 == 0 && rebuilt.1.starts_with("Rebuilt from 4 entries of the event log in "),
        "{rebuilt:?}"
    );
    assert_eq!(known(&gateway), 2);
}

#[test]
fn a_rebuilt_read_model_gives_the_same_answers() {
    let upstream = Upstream::start();
    let gateway = Gateway::with(upstream.port, LOG, ROUTES);
    for n in 0..20 {
        assert_eq!(Request::pay(&format!("k-{n}"), "{}").send(gateway.port).status, 201);
        assert!(Request::pay(&format!("k-{n}"), "{}").send(gateway.port).replayed());
    }
    let hour = || {
        let overview = gateway.ask("GET", "/v1/overview").json();
        ["executed", "duplicates_prevented"].map(|name| overview["hour"][name].as_u64().unwrap())
    };
    let listed =
        || gateway.ask("GET", "/v1/operations?route=payments").json()["operations"].clone();
    until("all to be known", || known(&gateway) == 20 && hour() == [20, 20]);
    let (before, status) = (listed(), gateway.ask("GET", "/v1/projection").json());
    assert_eq!(status["entries"], 40);

    let (code, text) = by_cli(&gateway, &["rebuild"]);
    assert!(code == 0 && text.starts_with("Rebuilt from 40 entries"), "{text}");
    assert_eq!((listed(), hour()), (before, [20, 20]));
    gateway.logged("read model emptied by an operator");
    let (code, text) = by_cli(&gateway, &["status", "--json"]);
    let status: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!((code, &status["entries"]), (0, &40.into()));
}

#[test]
fn a_reader_cannot_rebuild_it_and_a_missing_read_model_is_reported() {
    let upstream = Upstream::start();
    let tokens =
        "[admin_auth]\ntokens = [{ name = \"a\", role = \"read\", env = \"READ_TOKEN\" }]\n";
    let gateway = Gateway::with(upstream.port, &format!("{LOG}{tokens}"), ROUTES);
    let ask = |method: &str, target: &str| {
        Request::new(method, target)
            .host("127.0.0.1")
            .field("Authorization", "Bearer letmesee")
            .send(gateway.admin)
    };
    assert_eq!(
        (ask("GET", "/v1/projection").status, ask("POST", "/v1/projection/rebuild").status),
        (200, 403)
    );

    let without =
        Gateway::with(upstream.port, &format!("{LOG}[read_model]\nenabled = false\n"), ROUTES);
    assert_eq!(without.ask("GET", "/v1/projection").problem(), "read-model-off");
    let (code, text) = by_cli(&without, &["rebuild"]);
    assert!(code == 1 && text.contains("keep it so under [read_model]"), "{text}");
}

#[test]
fn a_projector_that_could_not_work_reports_why_and_ends() {
    let folder = tempfile::tempdir().unwrap();
    let of = |settings: &str| {
        let file = folder.path().join("onceward.toml");
        std::fs::write(&file, settings).unwrap();
        run(&["projector", "--config", &file.display().to_string()])
    };
    for (settings, why) in [
        ("[store]\nurl = \"redis://127.0.0.1:1\"", "the event log is off"),
        (
            "[store]\nurl = \"redis://127.0.0.1:1\"\n[log]\nenabled = true",
            "set path under [read_model]",
        ),
        ("[log]\nenabled = true", "can't be read by another process"),
        ("[log]\nenabled = true\n[read_model]\nenabled = false", "the read model is switched off"),
    ] {
        let (code, text) = of(settings);
        assert!(code == 1 && text.contains(why), "{settings}\n{text}");
    }
    let (code, text) = of("[log]\nenabled = 1");
    assert!(code == 2 && text.contains("log.enabled"), "{text}");
}
