//! Redis users with limited rights by an access control list (ACL).

use std::process::Command;

use crate::admin::cli;
use crate::harness::{Cluster, Gateway, Hooks, ROUTES, RedisServer, Request, Upstream, until};

/// Starts a server with a user `limited`, password `pw`, and these rights.
fn server_with_user(rights: &[&str]) -> (RedisServer, String) {
    let redis = RedisServer::with(
        crate::harness::free_port(),
        &["--appendonly", "yes", "--appendfsync", "always"],
    );
    let user = [&["acl", "setuser", "limited", "reset", "on", ">pw"], rights].concat();
    assert_eq!(redis.cli(&user), "OK", "{rights:?}");
    let url = format!("redis://limited:pw@127.0.0.1:{}", redis.port);
    (redis, url)
}

fn doctor(store: &str, settings: &str) -> (i32, String) {
    let file = tempfile::NamedTempFile::with_suffix(".toml").unwrap();
    std::fs::write(file.path(), format!("[upstream]\nurl = \"http://127.0.0.1:9\"\n{settings}"))
        .unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_onceward"));
    let out =
        command.args(["doctor", "--store", store, "--config"]).arg(file.path()).output().unwrap();
    (
        out.status.code().unwrap(),
        String::from_utf8_lossy(&[out.stdout, out.stderr].concat()).into_owned(),
    )
}

#[test]
fn a_user_without_rights_to_channels_stores_every_outcome_at_the_first_attempt() {
    let upstream = Upstream::start();
    let (redis, url) = server_with_user(&["~onceward:*", "resetchannels", "+@all", "-@admin"]);
    let gateway =
        Gateway::on(upstream.port, &url, "", &format!("{ROUTES}on_in_flight = \"wait\"\n"));
    let pay = Request::pay("k", "{}").act("hold");
    let first = pay.send_aside(gateway.port);
    upstream.reached(1);
    let waiter = pay.send_aside(gateway.port);
    until("it to wait", || gateway.metric("onceward_waiters") == 1.0);
    upstream.release();
    #[allow(clippy::disallowed_methods)]
    let began = std::time::Instant::now();
    assert_eq!(waiter.join().unwrap().body, first.join().unwrap().body);
    assert!(began.elapsed().as_millis() < 1000, "{:?}", began.elapsed());
    assert!(pay.send(gateway.port).replayed() && upstream.executed() == 1);
    // An operator's decision is reported as stored.
    let lost = Request::pay("lost", "{}").act("drop");
    let operation = lost.send(gateway.port).json()["operation"].as_str().unwrap().to_owned();
    until("the lost request to be over", || {
        let (code, output) = cli(
            &gateway,
            &["resolve", &operation, "--status", "200", "--reason", "seen in the ledger"],
        );
        assert!(code == 0 || output.contains("too early"), "{code}: {output}");
        code == 0
    });
    assert!(lost.send(gateway.port).replayed());
    let logs = gateway.logs();
    assert!(
        !logs.contains("did not confirm") && !logs.contains("NOPERM to EVAL"),
        "each write is confirmed at once: {logs}"
    );
    assert_eq!(
        redis.cli(&["acl", "getuser", "limited"]).matches("onceward").count(),
        1,
        "the user stayed as it was"
    );
}

#[test]
fn the_doctor_and_the_start_name_each_missing_right() {
    let rights = [
        "~onceward:{p*}:r:*",
        "~onceward:{p*}:epoch",
        "resetchannels",
        "+@all",
        "-zadd",
        "-zrange",
        "-config",
        "-acl",
    ];
    let (_redis, url) = server_with_user(&rights);
    let (code, output) = doctor(&url, "");
    assert_eq!(code, 1, "{output}");
    for right in [
        "(+zadd)",
        "(+zrange)",
        "(+config|get)",
        "(&onceward:*)",
        "(~onceward:{p*}:due)",
        "(~onceward:ping)",
    ] {
        assert_eq!(output.matches(right).count(), 1, "{right} in {output}");
    }
    for granted in [
        "(+get)",
        "(+evalsha)",
        "(~onceward:{p*}:r:*)",
        "(~onceward:{p*}:epoch)",
        "(~onceward:*)",
        "(+xadd)",
    ] {
        assert!(!output.contains(granted), "{granted} in {output}");
    }
    assert!(
        doctor(&url, "[log]\nenabled = true\n").1.contains("(~onceward:{p*}:events)"),
        "with the event log"
    );
    let upstream = Upstream::start();
    let gateway = Gateway::spawn(upstream.port, &url, "", ROUTES);
    until("the start to name them", || {
        gateway.logs().contains("(+zadd)") && gateway.logs().contains("(~onceward:ping)")
    });
    until("the refused command to be named", || {
        gateway.logs().contains("the server answered NOPERM to MGET: its user")
    });
}

#[test]
fn the_smallest_list_of_the_documents_is_enough_for_everything() {
    let operating = include_str!("../../docs/OPERATING.md");
    let (_, rest) = operating.split_once("ACL SETUSER onceward on >PASSWORD ").unwrap();
    let listed = rest.split_once("```").unwrap().0.replace("\\\n", " ");
    let rights: Vec<&str> = listed.split_whitespace().collect();
    let (redis, url) = server_with_user(&rights);
    let settings = "[log]\nenabled = true\n[store]\nlocal_cache = \"1MiB\"\n";
    let (code, output) = doctor(&url, settings);
    assert_eq!(code, 0, "{output}");
    let upstream = Upstream::start();
    let gateway = Gateway::on(upstream.port, &url, settings, ROUTES);
    for n in 0..3 {
        assert_eq!(Request::pay("k", "{}").send(gateway.port).replayed(), n > 0);
    }
    assert_eq!(cli(&gateway, &["list"]).0, 0);
    assert!(!gateway.logs().contains("NOPERM"), "{}", gateway.logs());
    // Each of these rights is necessary.
    for right in rights.iter().filter(|right| right.starts_with('+') && !right.starts_with("+@")) {
        let fewer = right.replacen('+', "-", 1);
        assert_eq!(redis.cli(&["acl", "setuser", "limited", &fewer]), "OK");
        let (_, output) = doctor(&url, settings);
        assert!(output.split([' ', '(', ')']).any(|word| word == *right), "{right}: {output}");
        assert_eq!(redis.cli(&["acl", "setuser", "limited", right]), "OK");
    }
}

#[test]
fn with_sinks_the_listed_rights_are_enough_for_gateway_relay_and_operators() {
    let operating = include_str!("../../docs/OPERATING.md");
    let (_, rest) = operating.split_once("ACL SETUSER onceward on >PASSWORD ").unwrap();
    let listed = rest.split_once("```").unwrap().0.replace("\\\n", " ");
    let (_, rest) = rest.split_once("\n| `[[sinks]]` | `").unwrap();
    let of_sinks: Vec<&str> = rest.split_once('`').unwrap().0.split_whitespace().collect();
    let rights: Vec<&str> = listed.split_whitespace().chain(of_sinks.iter().copied()).collect();
    let (redis, url) = server_with_user(&rights);

    let (upstream, hooks) = (Upstream::start(), Hooks::deciding(|_, before| [500, 200][before]));
    let key = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(key.path(), "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=").unwrap();
    let with_sinks = format!(
        "[store]\nformat = 2\n[[sinks]]\nname = \"ledger\"\n\
         webhook = {{ url = \"http://127.0.0.1:1/\", secrets = [{{ file = \"{}\" }}] }}\n",
        key.path().display()
    );
    let (code, output) = doctor(&url, &with_sinks);
    assert_eq!(code, 0, "{output}");
    let settings = format!(
        "[store]\nformat = 2\n[encryption]\nkeys = [{{ id = \"a\", file = \"{}\" }}]\n\
         [outbox]\nrelay = false\n[[sinks]]\nname = \"ledger\"\n\
         webhook = {{ url = \"http://127.0.0.1:{}/\", \
         secrets = [{{ env = \"HASHING_SECRET\" }}] }}\n\
         retry = {{ attempts = 1 }}\n",
        key.path().display(),
        hooks.port
    );
    let publish = "[[routes.publish]]\non = [\"completed\"]\nto = [\"ledger\"]\n";
    let routes = format!("{ROUTES}{publish}");
    let gateway = Gateway::on(upstream.port, &url, &settings, &routes);
    let api = format!("http://127.0.0.1:{}", upstream.port);
    let relay = Gateway::relay(&api, &url, &format!("{settings}{routes}"), |_| {});
    until("the relay to be ready", || relay.is_ready());

    assert_eq!(Request::pay("k", "{}").send(gateway.port).status, 201);
    let post = |path: &str, body: &str| {
        let request = Request::new("POST", path).host("127.0.0.1").json(body);
        let answer = request.send(relay.admin);
        assert_eq!(answer.status, 200, "{path}: {}", answer.text());
    };
    let dead = || relay.ask("GET", "/v1/dead-letters").json()["dead_letters"].clone();
    until("a dead letter", || dead().as_array().unwrap().len() == 1);
    post("/v1/outbox/reseal", "{}");
    post("/v1/sinks/ledger/pause", r#"{"reason":"a test"}"#);
    post("/v1/sinks/ledger/resume", "{}");
    post("/v1/dead-letters/requeue", r#"{"sink":"ledger"}"#);
    hooks.wait_for(1);
    for logs in [gateway.logs(), relay.logs()] {
        assert!(!logs.contains("NOPERM"), "{logs}");
    }
    for right in of_sinks {
        let fewer = right.replacen('+', "-", 1);
        assert_eq!(redis.cli(&["acl", "setuser", "limited", &fewer]), "OK");
        let (_, output) = doctor(&url, &with_sinks);
        assert!(output.split([' ', '(', ')']).any(|word| word == right), "{right}: {output}");
        assert_eq!(redis.cli(&["acl", "setuser", "limited", right]), "OK");
    }
}

#[test]
fn a_cluster_is_checked_server_by_server_and_without_a_map_the_doctor_gives_the_reason() {
    let cluster = Cluster::start();
    let (_, output) = doctor(&cluster.url(), "");
    let servers = cluster.primaries().len();
    assert_eq!((output.matches("it is a master").count(), servers), (servers, 3), "{output}");
    let user = |rights: &[&str]| {
        let words =
            [&["acl", "setuser", "limited", "reset", "on", ">pw", "~*", "&*"], rights].concat();
        cluster.primaries().iter().for_each(|server| assert_eq!(server.cli(&words), "OK"));
    };
    let url = cluster.url().replacen("://", "://limited:pw@", 1);
    user(&["+@all", "-asking", "-zcount"]);
    let (code, output) = doctor(&url, "");
    assert_eq!(
        (code, output.matches("(+asking)").count(), output.matches("(+zcount)").count()),
        (1, servers, servers),
        "{output}"
    );
    user(&["+@all", "-cluster"]);
    let (code, output) = doctor(&url, "");
    assert!(
        code == 1 && output.contains("map is not known") && output.contains("NOPERM to CLUSTER"),
        "{output}"
    );
}
