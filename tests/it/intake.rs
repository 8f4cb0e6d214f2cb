//! Intake: the key's spelling in the upstream's request, and the fields that identify the caller.

use crate::admin::cli;
use crate::harness::{Gateway, Request, Streams, Upstream, until};

/// Spellings of one key, `k`.
const SPELLINGS: [&str; 5] = ["\"k\"", "\"k\";v=1", "k", "  \"k\"", "\"k\";a; b=2"];

fn gateway(upstream: &Upstream, route: &str) -> Gateway {
    Gateway::with(
        upstream.port,
        "[upstream]\nresponse_timeout = \"1s\"\n",
        &format!("[[routes]]\npath = \"/v1/payments\"\n{route}"),
    )
}

/// Returns the values of a field that the upstream received, one list per request.
fn seen(upstream: &Upstream, name: &str) -> Vec<Vec<String>> {
    upstream
        .seen()
        .iter()
        .map(|seen| seen.all(name).into_iter().map(str::to_owned).collect())
        .collect()
}

#[test]
fn the_upstream_gets_one_spelling_of_a_key_however_a_retry_spells_it() {
    for (route, expected) in [
        ("", "k"),
        ("key = { syntax = \"strict\" }", "\"k\""),
        ("upstream_key = { header = \"X-Request-Id\" }", "k"),
        ("upstream_key = { max_length = 30 }\nkey = { syntax = \"strict\" }", "\"k\""),
    ] {
        let upstream = Upstream::start();
        let gateway = gateway(&upstream, &format!("on_uncertain = \"forward\"\n{route}"));
        let spellings =
            SPELLINGS.iter().filter(|spelling| !route.contains("strict") || spelling.contains('"'));
        let mut sent = 0;
        for spelling in spellings {
            let lost = Request::pay(spelling, "{}").act("drop").send(gateway.port);
            assert_eq!(lost.problem(), "outcome-uncertain", "{route}: {spelling}");
            sent += 1;
        }
        let client = Streams::open(gateway.port);
        assert_eq!(client.send(Streams::pay("\"k\";over=2", "{}", &[])).status, 201);
        let field = if route.contains("X-Request-Id") { "x-request-id" } else { "idempotency-key" };
        assert_eq!(seen(&upstream, field), vec![[expected]; sent + 1], "{route}");
    }
}

#[test]
fn a_key_that_can_not_be_bare_is_quoted_towards_the_upstream() {
    let upstream = Upstream::start();
    for route in ["", "upstream_key = { header = \"Idempotency-Key\", max_length = 40 }"] {
        let gateway = gateway(&upstream, &format!("on_uncertain = \"forward\"\n{route}"));
        for spelling in [r#""a \"b\"""#, r#""a \"b\"";v=1"#] {
            assert_eq!(
                Request::pay(spelling, "{}").act("drop").send(gateway.port).problem(),
                "outcome-uncertain"
            );
        }
        assert_eq!(Request::pay("\" k\"", "{}").send(gateway.port).status, 201, "not the key k");
    }
    let quoted = [r#""a \"b\"""#];
    let once = [quoted, quoted, ["\" k\""]];
    assert_eq!(seen(&upstream, "idempotency-key"), [once, once].concat());
}

#[test]
fn connection_removes_no_field_that_identifies_a_request() {
    for (route, field) in [
        ("", "idempotency-key"),
        ("upstream_key = { header = \"X-Request-Id\" }", "x-request-id"),
        ("key = { header = \"Idempotency-Key\", body = \"/key\" }", "idempotency-key"),
    ] {
        let upstream = Upstream::start();
        let gateway = gateway(
            &upstream,
            &format!("on_uncertain = \"forward\"\nscope = {{ header = \"X-Tenant\" }}\n{route}"),
        );
        let pay = Request::pay("k", "{}")
            .field("X-Tenant", "a")
            .field("Authorization", "Bearer t")
            .field("X-Private", "1");
        assert_eq!(pay.clone().act("drop").send(gateway.port).problem(), "outcome-uncertain");
        let names = "close, idempotency-KEY,X-Tenant , authorization";
        let named = pay.field("Connection", names).field("Connection", "X-Request-Id, X-Private");
        assert_eq!(named.send(gateway.port).status, 201);
        assert_eq!(seen(&upstream, field), [["k"], ["k"]], "{route}");
        let last = upstream.seen().pop().unwrap();
        assert_eq!(
            (last.all("x-tenant"), last.all("authorization")),
            (vec!["a"], vec!["Bearer t"]),
            "{route}"
        );
        assert_eq!(
            (last.get("x-private"), last.get("connection")),
            (None, None),
            "what else it names goes, and so does it"
        );
    }
}

#[test]
fn parts_of_a_derived_key_stay_though_connection_names_them() {
    let upstream = Upstream::start();
    let gateway = gateway(
        &upstream,
        "key = { derive = [\"path\", \"header:X-Order\"] }\nupstream_key = { header = \"K\" }",
    );
    let order = Request::new("POST", "/v1/payments")
        .field("X-Order", "7")
        .field("Connection", "x-order, k");
    assert_eq!(order.send(gateway.port).status, 201);
    let seen = upstream.seen().pop().unwrap();
    assert_eq!((seen.get("x-order"), seen.all("k").len()), (Some("7"), 1));
}

#[test]
fn a_part_of_a_derived_key_that_is_empty_or_comes_twice_derives_no_key() {
    let upstream = Upstream::start();
    let gateway = gateway(&upstream, "key = { derive = [\"path\", \"header:X-Order\"] }");
    let order = |values: &[&str]| {
        let request = Request::new("POST", "/v1/payments");
        values
            .iter()
            .fold(request, |request, value| request.field("X-Order", value))
            .send(gateway.port)
    };
    assert_eq!(order(&["7"]).status, 201);
    assert!(order(&["7"]).replayed());
    for (values, problem) in
        [(&[""][..], "key-missing"), (&["7", "7"], "key-invalid"), (&["7", ""], "key-invalid")]
    {
        let refused = order(values);
        assert_eq!((refused.status, refused.problem().as_str()), (400, problem), "{values:?}");
    }
    assert_eq!(upstream.executed(), 1);
}

#[test]
fn the_field_for_the_upstream_is_the_gateways_even_if_the_client_sends_it() {
    let upstream = Upstream::start();
    let gateway = gateway(
        &upstream,
        "on_uncertain = \"forward\"\nupstream_key = { header = \"X-Request-Id\", max_length = 22 }",
    );
    let long = "k".repeat(80);
    let pay = |key: &str| {
        Request::pay(key, "{}").field("X-Request-Id", "mine").field("X-Request-Id", "too")
    };
    assert_eq!(
        pay(&format!("\"{long}\"")).act("drop").send(gateway.port).problem(),
        "outcome-uncertain"
    );
    assert_eq!(pay(&long).send(gateway.port).status, 201);
    let named = seen(&upstream, "x-request-id");
    assert!(named.len() == 2 && named[0] == named[1], "{named:?}");
    assert!(named[0].len() == 1 && named[0][0].len() == 22, "once, and shortened: {named:?}");
    assert_eq!(seen(&upstream, "idempotency-key"), [[""; 0], [""; 0]]);
}

#[test]
fn a_key_in_the_body_stays_as_it_is_and_the_field_has_its_one_spelling() {
    let upstream = Upstream::start();
    let either =
        "on_uncertain = \"forward\"\nkey = { header = \"Idempotency-Key\", body = \"/key\" }";
    let gateway = gateway(&upstream, either);
    let body = r#"{ "key":"k" }"#;
    let pay = Request::new("POST", "/v1/payments").json(body);
    assert_eq!(pay.clone().act("drop").send(gateway.port).problem(), "outcome-uncertain");
    assert_eq!(pay.field("Idempotency-Key", "\"k\";v=1").send(gateway.port).status, 201);
    assert_eq!(seen(&upstream, "idempotency-key"), [["k"], ["k"]]);
    assert!(upstream.seen().iter().all(|seen| seen.body == body.as_bytes()));
}

#[test]
fn a_probe_and_an_operators_retry_have_the_one_spelling_too() {
    let upstream = Upstream::start();
    upstream.answer_questions("status 500");
    let probe =
        "on_uncertain = \"probe\"\nprobe = { path = \"/by-key/{key}\" }\nuncertain_after = \"0s\"";
    let gateway = gateway(&upstream, probe);
    let lost = Request::pay("\"a b\"", "{}").act("drop").send(gateway.port);
    let operation = lost.json()["operation"].as_str().unwrap().to_owned();
    for spelling in ["\"a b\";v=1", "\"a b\""] {
        assert_eq!(Request::pay(spelling, "{}").send(gateway.port).problem(), "outcome-uncertain");
    }
    let asked: Vec<_> = upstream
        .seen()
        .into_iter()
        .map(|seen| seen.line)
        .filter(|line| line.starts_with("GET"))
        .collect();
    assert_eq!(asked, ["GET /by-key/a%20b HTTP/1.1"; 2]);
    until("the retry to be allowed", || {
        cli(&gateway, &["retry", &operation, "--reason", "not there"]).0 == 0
    });
    let named = Request::pay("\"a b\";v=2", "{}").field("Connection", "Idempotency-Key");
    assert_eq!(named.send(gateway.port).status, 201);
    let keys: Vec<_> = seen(&upstream, "idempotency-key").into_iter().flatten().collect();
    assert_eq!(keys, ["\"a b\""; 2]);
}

#[test]
fn an_empty_credential_or_a_scheme_alone_is_no_caller() {
    let upstream = Upstream::start();
    let gateway = gateway(&upstream, "");
    let nothing = ["", "Bearer", "bearer ", "BASIC", "DPoP", "dpop", "Digest", "Negotiate"];
    for (n, empty) in nothing.iter().enumerate() {
        let pay = |api_key: &str| {
            let pay = Request::pay(&format!("k{n}"), "{}")
                .field("Authorization", empty)
                .field("X-Api-Key", api_key);
            pay.send(gateway.port)
        };
        assert_eq!(pay("mine").status, 201, "{empty:?}");
        assert_eq!(pay("theirs").problem(), "key-reused", "{empty:?} is not who asks");
        assert!(pay("mine").replayed(), "{empty:?}");
        let other =
            Request::pay(&format!("k{n}"), "{}").field("X-Api-Key", "mine").send(gateway.port);
        assert!(other.replayed(), "without the field it is the same caller");
    }
    assert_eq!(upstream.executed(), nothing.len());
}

#[test]
fn any_other_single_word_is_a_credential() {
    let upstream = Upstream::start();
    let gateway = gateway(&upstream, "");
    let words = ["sk_live_a", "sk_live_b", "Bearer:", "BearerToken", "Basic Og=="];
    for (n, word) in words.iter().enumerate() {
        let pay = |word: &str| {
            let pay = Request::pay(&format!("k{n}"), "{}")
                .field("Authorization", word)
                .field("X-Api-Key", "shared");
            pay.send(gateway.port)
        };
        assert_eq!(pay(word).status, 201);
        assert_eq!(pay("sk_live_c").problem(), "key-reused", "{word}");
        assert!(pay(word).replayed());
    }
    // The upstream may believe either line, so every line counts.
    let twice = Request::pay("k0", "{}")
        .field("Authorization", "sk_live_a")
        .field("Authorization", "sk_live_a");
    assert_eq!(twice.send(gateway.port).problem(), "key-reused");
}

#[test]
fn a_plain_scope_field_that_comes_twice_is_refused_over_both_versions() {
    let upstream = Upstream::start();
    for route in
        ["scope = { header = \"X-Tenant\" }", "scope = { headers = [\"X-Region\", \"X-Tenant\"] }"]
    {
        let gateway = gateway(&upstream, route);
        let client = Streams::open(gateway.port);
        for second in ["alice", "bob", ""] {
            let pay = Request::pay("k", "{}")
                .field("X-Region", "eu")
                .field("X-Tenant", "alice")
                .field("X-Tenant", second);
            let over_2 = [("x-region", "eu"), ("x-tenant", "alice"), ("x-tenant", second)];
            for refused in [pay.send(gateway.port), client.send(Streams::pay("k", "{}", &over_2))] {
                assert_eq!(
                    (refused.status, refused.problem().as_str()),
                    (400, "scope-invalid"),
                    "{route}: {second:?}"
                );
                assert_eq!(
                    (refused.get("www-authenticate"), &refused.json()["retryable"]),
                    (None, &false.into())
                );
                assert!(
                    refused.json()["detail"].as_str().unwrap().contains("x-tenant"),
                    "{}",
                    refused.text()
                );
            }
        }
        let empty = Request::pay("k", "{}")
            .field("X-Region", "eu")
            .field("X-Tenant", "")
            .send(gateway.port);
        assert_eq!(empty.problem(), "scope-missing");
    }
    assert_eq!(upstream.executed(), 0);
}

#[test]
fn a_scope_in_authorization_needs_more_than_a_scheme() {
    let upstream = Upstream::start();
    let gateway = gateway(&upstream, "scope = { header = \"Authorization\" }");
    for (credential, status) in [("Bearer", 400), ("", 400), ("Bearer a", 201), ("sk_live_a", 201)]
    {
        let paid = Request::pay("k", "{}").field("Authorization", credential).send(gateway.port);
        assert_eq!(paid.status, status, "{credential:?}");
        assert!(status == 201 || paid.problem() == "scope-missing", "{credential:?}");
    }
    assert_eq!(upstream.executed(), 2);
}

#[test]
fn a_key_shorter_than_the_route_asks_for_reaches_nobody() {
    let upstream = Upstream::start();
    for (place, spell) in [("header = \"Idempotency-Key\"", true), ("body = \"/key\"", false)] {
        let gateway = gateway(&upstream, &format!("key = {{ {place}, min_length = 22 }}"));
        let pay = |key: &str| {
            let request =
                Request::new("POST", "/v1/payments").json(&format!(r#"{{"key":"{key}"}}"#));
            if spell { request.field("Idempotency-Key", key) } else { request }.send(gateway.port)
        };
        let refused = pay(&"k".repeat(21));
        assert_eq!((refused.status, refused.problem().as_str()), (400, "key-invalid"));
        let detail = refused.json()["detail"].as_str().unwrap().to_owned();
        assert!(
            detail.contains("is shorter than 22 characters") && !detail.contains("kkk"),
            "{detail}"
        );
        assert_eq!(pay(&"k".repeat(22)).status, 201);
        let published = Request::new("GET", "/.well-known/idempotency").send(gateway.port).json();
        assert_eq!(published["routes"][0]["key"]["min_length"], 22);
    }
    assert_eq!(upstream.executed(), 2);
    // Quotes are not part of the key.
    let gateway = gateway(&upstream, "key = { min_length = 3 }");
    assert_eq!(Request::pay("\"ab\"", "{}").send(gateway.port).problem(), "key-invalid");
}

#[test]
fn a_bare_key_goes_on_as_the_client_sent_it_and_every_other_spelling_is_refused() {
    let upstream = Upstream::start();
    let gateway = gateway(&upstream, "key = { syntax = \"bare\" }");
    let keys = ["550e8400-e29b-41d4-a716-446655440000", r"a\b;c=d,e", "~"];
    for key in keys {
        assert_eq!(Request::pay(key, "{}").send(gateway.port).status, 201, "{key}");
        for other in [
            format!("\"{key}\""),
            format!("\"{key}\";v=1"),
            format!("{key}\""),
            format!("{key} {key}"),
        ] {
            let refused = Request::pay(&other, "{}").send(gateway.port);
            assert_eq!(
                (refused.status, refused.problem().as_str()),
                (400, "key-invalid"),
                "{other}"
            );
        }
    }
    assert_eq!(seen(&upstream, "idempotency-key"), keys.map(|key| [key]));
    assert_eq!(
        Request::new("GET", "/.well-known/idempotency").send(gateway.port).json()["routes"][0]["key"]
            ["syntax"],
        "bare"
    );
}
