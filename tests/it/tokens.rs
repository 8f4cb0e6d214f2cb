//! Scopes from tokens: only a token with a valid signature gets its subject's answers.

use std::path::Path;

use serde_json::json;

use crate::harness::tokens::{Issuer, encode, in_seconds, unsigned};
use crate::harness::{Answer, Authority, Connection, Gateway, Request, Upstream, until};

fn gateway(upstream: &Upstream, jwks: &str, more: &str) -> Gateway {
    let routes = format!(
        "[[routes]]\nname = \"payments\"\npath = \"/v1/payments\"\nscope = {{ jwt = {{ jwks = {jwks:?} {more} }} }}"
    );
    Gateway::with(upstream.port, "", &routes)
}

/// Starts an issuer with its keys in a file, and a gateway that trusts it.
fn believing(upstream: &Upstream, more: &str) -> (Issuer, tempfile::TempDir, Gateway) {
    let (issuer, dir) = (Issuer::new("a"), tempfile::tempdir().unwrap());
    let file = publish(dir.path(), &Issuer::jwks(&[&issuer]));
    let gateway = gateway(upstream, &file, more);
    (issuer, dir, gateway)
}

fn publish(dir: &Path, text: &str) -> String {
    let file = dir.join("jwks.json");
    std::fs::write(&file, text).unwrap();
    file.to_str().unwrap().to_owned()
}

fn pay(key: &str, token: &str) -> Request {
    Request::pay(key, "{}").field("Authorization", &format!("Bearer {token}"))
}

fn is_refused(answer: &Answer) -> bool {
    answer.get("www-authenticate") == Some("Bearer error=\"invalid_token\"")
        && (answer.status, answer.problem().as_str()) == (401, "scope-invalid")
}

#[test]
fn another_token_of_the_same_subject_gets_the_replay_and_another_subject_never() {
    let upstream = Upstream::start();
    let (issuer, _dir, gateway) = believing(&upstream, "");
    let first = pay("k", &issuer.token("shop-1", 60)).send(gateway.port);
    assert_eq!((first.status, first.replayed()), (201, false), "{first:?}");
    let renewed = pay("k", &issuer.token("shop-1", 600)).send(gateway.port);
    assert!(renewed.replayed() && renewed.body == first.body, "{renewed:?}");
    let other = pay("k", &issuer.token("shop-2", 60)).send(gateway.port);
    assert!(other.status == 201 && !other.replayed() && other.body != first.body, "{other:?}");
    assert_eq!(upstream.executed(), 2);
    let missing = Request::pay("k", "{}").send(gateway.port);
    assert_eq!((missing.status, missing.problem().as_str()), (400, "scope-missing"));
    let without_key = Request::new("POST", "/v1/payments").json("{}").send(gateway.port);
    assert_eq!(without_key.status, 201, "what no key protects passes through");
}

#[test]
fn the_operations_of_a_subject_are_found_by_the_claims_of_its_tokens() {
    let upstream = Upstream::start();
    let (issuer, dir) = (Issuer::new("a"), tempfile::tempdir().unwrap());
    let jwks = publish(dir.path(), &Issuer::jwks(&[&issuer]));
    let routes = format!(
        "[[routes]]\nname = \"payments\"\npath = \"/v1/payments\"\nscope = {{ jwt = {{ jwks = {jwks:?} }} }}"
    );
    let gateway = Gateway::with(upstream.port, "[log]\nenabled = true", &routes);
    for shop in ["shop-1", "shop-2"] {
        assert_eq!(pay("k", &issuer.token(shop, 60)).send(gateway.port).status, 201);
    }
    let listed = |query: &str| {
        gateway.ask("GET", &format!("/v1/operations?{query}")).json()["operations"]
            .as_array()
            .unwrap()
            .clone()
    };
    until("both to be listed", || listed("route=payments").len() == 2);
    let of = |scope: &str| {
        let body = format!(r#"{{"route":"payments","scope":{scope}}}"#);
        Request::new("POST", "/v1/scope").host("127.0.0.1").json(&body).send(gateway.admin)
    };
    let found =
        |scope: &str| listed(&format!("scope={}", of(scope).json()["scope"].as_str().unwrap()));
    assert_eq!(found(r#"{"sub":"shop-1"}"#), [listed("route=payments")[1].clone()]);
    assert!(found(r#"{"sub":"shop-1","iss":"another"}"#).is_empty());
    assert_eq!(of(r#"{"iss":"another"}"#).problem(), "lookup-invalid");
}

#[test]
fn what_does_not_verify_reaches_nobody_and_gets_no_replay() {
    let upstream = Upstream::start();
    let (issuer, _dir, gateway) = believing(&upstream, "");
    let claims = json!({ "sub": "shop-1", "exp": in_seconds(60) });
    let header = |algorithm: &str| json!({ "alg": algorithm, "kid": "a" });
    let good = issuer.token("shop-1", 60);
    let by_secret = {
        let text = unsigned(&header("HS256"), &claims);
        let secret = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, issuer.point());
        format!("{text}.{}", encode(ring::hmac::sign(&secret, text.as_bytes()).as_ref()))
    };
    let bad = [
        ("expired", issuer.token("shop-1", -31)),
        ("signed by somebody else", Issuer::new("a").token("shop-1", 60)),
        ("under an unknown key", Issuer::new("b").token("shop-1", 60)),
        ("without a signature", format!("{}.", unsigned(&header("none"), &claims))),
        ("with the public key as a secret", by_secret),
        ("of another algorithm", issuer.sign(header("ES384"), claims.clone())),
        (
            "for later",
            issuer.sign(
                header("ES256"),
                json!({ "sub": "shop-1", "exp": in_seconds(600), "nbf": in_seconds(300) }),
            ),
        ),
        ("without an end", issuer.sign(header("ES256"), json!({ "sub": "shop-1" }))),
        ("without a subject", issuer.sign(header("ES256"), json!({ "exp": in_seconds(60) }))),
        ("for another's claims", {
            let (_, signature) = good.rsplit_once('.').unwrap();
            format!(
                "{}.{signature}",
                unsigned(&header("ES256"), &json!({ "sub": "shop-2", "exp": in_seconds(60) }))
            )
        }),
        ("no token", "s3cret".to_owned()),
    ];
    for (what, token) in &bad {
        let refused = pay("k", token).send(gateway.port);
        assert!(is_refused(&refused), "{what}: {refused:?}");
        assert_eq!(refused.text().contains("expired"), *what == "expired", "{what}");
    }
    assert_eq!(upstream.executed(), 0);
    assert_eq!(pay("k", &good).send(gateway.port).status, 201);
    for (what, token) in &bad {
        assert!(is_refused(&pay("k", token).send(gateway.port)), "a duplicate {what}");
    }
    assert!(
        is_refused(
            &pay("k", &good).field("Authorization", &format!("Bearer {good}")).send(gateway.port)
        ),
        "two lines"
    );
    assert!(pay("k", &good).send(gateway.port).replayed());
    assert_eq!(upstream.executed(), 1);
    assert!(
        !gateway.logs().contains(&good) && !gateway.logs().contains("shop-1"),
        "no token is logged"
    );
    assert_eq!(
        gateway.metric("onceward_requests_total{route=\"payments\",outcome=\"scope_invalid\"}"),
        23.0
    );
}

#[test]
fn a_token_is_judged_before_the_body_is_waited_for() {
    let upstream = Upstream::start();
    let (_issuer, _dir, gateway) = believing(&upstream, "");
    let mut client = Connection::open(gateway.port);
    client.write(
        b"POST /v1/payments HTTP/1.1\r\nHost: a\r\nIdempotency-Key: k\r\nAuthorization: Bearer x\r\nContent-Length: 9\r\n\r\n",
    );
    assert!(is_refused(&client.read()));
}

#[test]
fn issuer_and_audience_are_asked_for_where_they_are_configured() {
    let upstream = Upstream::start();
    let more = ", header = \"X-Jwt\", claim = \"tenant\", issuer = \"https://id.example\", audience = \"payments\"";
    let (issuer, _dir, gateway) = believing(&upstream, more);
    let token = |iss: &str, aud: &str| {
        let claims = json!({ "tenant": 7, "exp": in_seconds(60), "iss": iss, "aud": [aud] });
        issuer.sign(json!({ "alg": "ES256", "kid": "a" }), claims)
    };
    let send = |token: &str| Request::pay("k", "{}").field("X-Jwt", token).send(gateway.port);
    assert_eq!(send(&token("https://id.example", "payments")).status, 201);
    assert!(send(&token("https://id.example", "payments")).replayed());
    for (iss, aud) in [("https://id.example", "reports"), ("https://other.example", "payments")] {
        assert!(is_refused(&send(&token(iss, aud))), "{iss} {aud}");
    }
    assert_eq!(upstream.executed(), 1);
}

#[test]
fn keys_in_a_file_are_read_again_and_a_broken_file_is_not_believed() {
    let upstream = Upstream::start();
    let (old, dir, gateway) = believing(&upstream, "");
    let new = Issuer::new("b");
    publish(dir.path(), "{\"keys\": [");
    until("the change to be seen", || gateway.logs().contains("the current keys stay in use"));
    assert_eq!(pay("k", &old.token("shop-1", 60)).send(gateway.port).status, 201);
    publish(dir.path(), &Issuer::jwks(&[&new]));
    until("the new key to be known", || {
        pay("k", &new.token("shop-1", 60)).send(gateway.port).replayed()
    });
    assert!(
        is_refused(&pay("k", &old.token("shop-1", 60)).send(gateway.port)),
        "the old one is gone"
    );
    assert_eq!(upstream.executed(), 1);
}

#[test]
fn keys_on_a_server_are_asked_for_without_anybody_waiting() {
    let (upstream, server) = (Upstream::start(), Upstream::start());
    let (old, new) = (Issuer::new("a"), Issuer::new("b"));
    server.answer_questions("hold");
    let gateway = gateway(&upstream, &format!("http://127.0.0.1:{}/keys?set=1", server.port), "");
    let early = pay("k", &old.token("shop-1", 60)).send(gateway.port);
    assert_eq!((early.status, early.problem().as_str()), (503, "scope-unavailable"));
    assert_eq!(
        (early.get("retry-after"), early.get("x-should-retry"), upstream.executed()),
        (Some("1"), Some("true"), 0)
    );

    let serve = |issuers: &[&Issuer]| {
        server.answer_questions(&format!("status 200, hex {}", hex(&Issuer::jwks(issuers))))
    };
    serve(&[&old]);
    server.release();
    until("the keys to be known", || {
        pay("k", &old.token("shop-1", 60)).send(gateway.port).status == 201
    });
    assert!(server.seen().iter().all(|seen| seen.line == "GET /keys?set=1 HTTP/1.1"));

    let asked = server.executed();
    serve(&[&old, &new]);
    assert!(is_refused(&pay("k", &new.token("shop-1", 60)).send(gateway.port)), "nobody waits");
    until("the new key to be known", || {
        pay("k", &new.token("shop-1", 60)).send(gateway.port).replayed()
    });
    for _ in 0..5 {
        assert!(is_refused(&pay("k", &Issuer::new("c").token("shop-1", 60)).send(gateway.port)));
    }
    assert!(pay("k", &old.token("shop-1", 60)).send(gateway.port).replayed());
    assert_eq!(
        (server.executed(), upstream.executed()),
        (asked + 1, 1),
        "tokens that are made up don't make it ask again"
    );
}

#[test]
fn keys_come_by_tls_from_whom_the_authority_vouches_for() {
    let (authority, upstream, issuer) = (Authority::new(), Upstream::start(), Issuer::new("a"));
    let answer = format!("status 200, hex {}", hex(&Issuer::jwks(&[&issuer])));
    let send = |server: &Upstream, ready: &dyn Fn(&Gateway) -> bool| {
        server.answer_questions(&answer);
        let trust = format!(", ca_file = {:?}", authority.ca_file());
        let gateway =
            gateway(&upstream, &format!("https://127.0.0.1:{}/jwks", server.port), &trust);
        until("the server to be asked", || ready(&gateway));
        pay("k", &issuer.token("shop-1", 60)).send(gateway.port).status
    };
    let pays =
        |gateway: &Gateway| pay("k", &issuer.token("shop-1", 60)).send(gateway.port).status == 201;
    assert_eq!(send(&Upstream::with_tls(authority.server("127.0.0.1", &["http/1.1"])), &pays), 201);
    let stranger = Upstream::with_tls(Authority::new().server("127.0.0.1", &["http/1.1"]));
    assert_eq!(send(&stranger, &|gateway| gateway.logs().contains("token keys not read")), 503);
}

#[test]
fn a_file_without_usable_keys_ends_the_start() {
    let (upstream, dir) = (Upstream::start(), tempfile::tempdir().unwrap());
    let empty = publish(dir.path(), "{\"keys\":[]}");
    for (file, reason) in [
        ("/nowhere/jwks.json", "can't read /nowhere/jwks.json"),
        (empty.as_str(), "no key that can verify tokens"),
    ] {
        let routes = format!(
            "[[routes]]\npath = \"/v1/payments\"\nscope = {{ jwt = {{ jwks = {file:?} }} }}"
        );
        let mut refused = Gateway::spawn(upstream.port, "memory:", "", &routes);
        assert!(!refused.wait().success());
        until("the reason", || refused.logs().contains(reason));
    }
}

#[test]
fn in_shadow_mode_a_bad_token_is_counted_and_refuses_nobody() {
    let (upstream, issuer, dir) =
        (Upstream::start(), Issuer::new("a"), tempfile::tempdir().unwrap());
    let file = publish(dir.path(), &Issuer::jwks(&[&issuer]));
    let routes = format!(
        "[[routes]]\nname = \"watched\"\npath = \"/v1/payments\"\nmode = \"shadow\"\nscope = {{ jwt = {{ jwks = {file:?} }} }}"
    );
    let gateway = Gateway::with(upstream.port, "", &routes);
    assert_eq!(pay("k", "x").send(gateway.port).status, 201);
    assert_eq!(pay("k", &issuer.token("shop-1", 60)).send(gateway.port).status, 201);
    let counted = |would: &str| {
        gateway.metric(&format!("onceward_shadow_total{{route=\"watched\",would=\"{would}\"}}"))
    };
    until("both to be counted", || {
        (counted("refuse_scope_invalid"), counted("execute")) == (1.0, 1.0)
    });
}

fn hex(text: &str) -> String {
    text.bytes().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn keys_that_are_known_stay_known_over_a_reload_though_their_server_is_silent() {
    let (upstream, server) = (Upstream::start(), Upstream::start());
    let issuer = Issuer::new("a");
    server.answer_questions(&format!("status 200, hex {}", hex(&Issuer::jwks(&[&issuer]))));
    let gateway = gateway(&upstream, &format!("http://127.0.0.1:{}/keys", server.port), "");
    let charge = || pay("k", &issuer.token("shop-1", 60)).send(gateway.port);
    until("the keys to be known", || charge().status == 201);
    server.answer_questions("drop");
    let config = std::fs::read_to_string(gateway.config()).unwrap();
    std::fs::write(gateway.config(), format!("{config}\n[[routes]]\npath = \"/v1/refunds\"\n"))
        .unwrap();
    assert_eq!(gateway.ask("POST", "/v1/reload").status, 200);
    assert!(charge().replayed());
    assert!(is_refused(&pay("k", &Issuer::new("b").token("shop-1", 60)).send(gateway.port)));
}
