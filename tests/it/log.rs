//! The event log of real gateways, and somebody who changes it.

use std::process::Command;

use crate::harness::{Gateway, ROUTES, RedisServer, Request, Upstream};

const LOG: &str = "[log]\nenabled = true\n";

fn verify(gateway: &Gateway) -> (i32, String) {
    let out = Command::new(env!("CARGO_BIN_EXE_onceward"))
        .args(["log", "verify", "--admin", &format!("127.0.0.1:{}", gateway.admin)])
        .output()
        .unwrap();
    (out.status.code().unwrap(), String::from_utf8_lossy(&[out.stdout, out.stderr].concat()).into_owned())
}

#[test]
fn the_log_of_an_embedded_store_verifies_and_duplicates_add_nothing_to_it() {
    let upstream = Upstream::start();
    let gateway = Gateway::with(upstream.port, LOG, ROUTES);
    let pay = Request::pay("k", "{}");
    for _ in 0..3 {
        assert_eq!(pay.send(gateway.port).status, 201);
    }
    let (code, said) = verify(&gateway);
    assert!(code == 0 && said.contains("2 entries"), "{said}");
}

#[test]
fn an_entry_that_is_taken_out_of_redis_or_written_anew_is_found() {
    let (upstream, redis) = (Upstream::start(), RedisServer::start());
    let gateway = Gateway::on(upstream.port, &redis.url(), LOG, ROUTES);
    for n in 0..20 {
        assert_eq!(Request::pay(&format!("secret-key-{n}"), r#"{"amount":1}"#).send(gateway.port).status, 201);
    }
    let (code, said) = verify(&gateway);
    assert!(code == 0 && said.contains("40 entries"), "{said}");

    let names = redis.cli(&["keys", "onceward:*:events"]);
    let (first, second) = (names.lines().next().unwrap(), names.lines().nth(1).unwrap());
    let shown = redis.cli(&["xrange", first, "-", "+", "count", "1"]);
    assert!(shown.contains("claimed") && !shown.contains("secret-key"), "{shown}");
    redis.cli(&["xdel", first, shown.lines().next().unwrap().trim()]);
    let (code, said) = verify(&gateway);
    let partition = |name: &str| name.split(['p', '}']).nth(1).unwrap().to_owned();
    assert!(code == 1 && said.contains(&format!("partition {},", partition(first))), "{said}");
    assert!(said.contains("in 1 places"), "{said}");

    redis.cli(&["del", second]);
    redis.cli(&["xadd", second, "*", "m", &"0".repeat(33), "e", "{}", "l", &"0".repeat(40)]);
    let (code, said) = verify(&gateway);
    assert!(code == 1 && said.contains(&format!("partition {},", partition(second))), "{said}");
}

#[test]
fn without_the_log_nothing_is_written_for_it() {
    let (upstream, redis) = (Upstream::start(), RedisServer::start());
    let gateway = Gateway::on(upstream.port, &redis.url(), "", ROUTES);
    assert_eq!(Request::pay("k", "{}").send(gateway.port).status, 201);
    assert_eq!(redis.cli(&["keys", "onceward:*:events"]).trim(), "");
    assert_eq!(redis.cli(&["keys", "onceward:*:chain"]).trim(), "");
}
