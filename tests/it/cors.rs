//! CORS: which of the gateway's own answers a browser lets a page of another origin read.

use crate::harness::{Answer, Gateway, Request, Upstream};

const SHOP: &str = "https://shop.example";
const ADMIN: &str = "https://admin.shop.example:8443";

fn gateway(upstream: &Upstream, route: &str) -> Gateway {
    Gateway::with(upstream.port, "", &format!("[[routes]]\npath = \"/v1/payments\"\n{route}"))
}

fn pay(gateway: &Gateway, origin: &str, body: &str) -> Answer {
    Request::pay("k", body).field("Origin", origin).send(gateway.port)
}

fn allowed(answer: &Answer) -> Option<&str> {
    answer.get("access-control-allow-origin")
}

fn exposes(answer: &Answer, name: &str) -> bool {
    answer
        .get("access-control-expose-headers")
        .is_some_and(|names| names.split(", ").any(|exposed| exposed == name))
}

#[test]
fn a_page_can_read_the_gateways_refusals_and_replays() {
    let upstream = Upstream::start();
    let gateway = gateway(
        &upstream,
        &format!("key = {{ required = true }}\ncors = {{ origins = [\"{SHOP}\", \"{ADMIN}\"] }}"),
    );
    let first = pay(&gateway, SHOP, "{}");
    assert_eq!(
        (first.status, allowed(&first), first.get("vary")),
        (201, None, None),
        "a first answer is the upstream's own"
    );
    for origin in [SHOP, ADMIN] {
        let replayed = pay(&gateway, origin, "{}");
        assert!(
            replayed.replayed()
                && allowed(&replayed) == Some(origin)
                && exposes(&replayed, "Idempotent-Replayed")
        );
        let reused = pay(&gateway, origin, "{\"amount\":1}");
        assert_eq!(
            (reused.problem().as_str(), allowed(&reused), reused.get("vary")),
            ("key-reused", Some(origin), Some("Origin"))
        );
        assert_eq!(reused.get("access-control-allow-credentials"), None, "nobody asked for it");
        assert!(exposes(&reused, "Retry-After"));
        let missing =
            Request::new("POST", "/v1/payments").field("Origin", origin).send(gateway.port);
        assert_eq!((missing.problem().as_str(), allowed(&missing)), ("key-missing", Some(origin)));
    }
    let stranger = pay(&gateway, "https://evil.example", "{\"amount\":1}");
    assert_eq!(
        (stranger.problem().as_str(), allowed(&stranger), stranger.get("vary")),
        ("key-reused", None, Some("Origin"))
    );
    assert_eq!(upstream.executed(), 1);
}

#[test]
fn a_replay_fits_the_page_that_asks_and_not_the_one_that_asked_first() {
    let upstream = Upstream::start();
    let gateway = gateway(&upstream, &format!("cors = {{ origins = [\"{SHOP}\", \"{ADMIN}\"] }}"));
    let fields = format!(
        "field Access-Control-Allow-Origin={SHOP}, field Access-Control-Allow-Credentials=true, \
         field Access-Control-Expose-Headers=X-Request-Id"
    );
    let pay = |origin: &str| {
        Request::pay("k", "{}").act(&fields).field("Origin", origin).send(gateway.port)
    };
    let first = pay(SHOP);
    let own =
        [first.get("access-control-allow-credentials"), first.get("access-control-expose-headers")];
    assert_eq!(
        (allowed(&first), own),
        (Some(SHOP), [Some("true"), Some("X-Request-Id")]),
        "as the upstream answers"
    );
    let replayed = pay(ADMIN);
    assert!(replayed.replayed() && allowed(&replayed) == Some(ADMIN), "{replayed:?}");
    assert_eq!(replayed.get("access-control-allow-credentials"), None);
    let exposed: Vec<_> = replayed
        .fields
        .iter()
        .filter(|(name, _)| name == "access-control-expose-headers")
        .collect();
    assert!(
        exposed.len() == 2 && exposed[0].1 == "X-Request-Id",
        "what the upstream exposes stays: {exposed:?}"
    );
    let stranger = pay("https://evil.example");
    assert!(
        stranger.replayed()
            && allowed(&stranger).is_none()
            && stranger.get("vary") == Some("Origin")
    );
    assert_eq!(upstream.executed(), 1);
}

#[test]
fn a_preflight_goes_to_the_upstream() {
    let upstream = Upstream::start();
    let gateway = gateway(
        &upstream,
        &format!("key = {{ required = true }}\ncors = {{ origins = [\"{SHOP}\"] }}"),
    );
    let preflight = Request::new("OPTIONS", "/v1/payments")
        .field("Origin", SHOP)
        .field("Access-Control-Request-Method", "POST");
    let answer = preflight.send(gateway.port);
    assert_eq!(allowed(&answer), None, "the gateway adds nothing");
    assert!(upstream.seen().pop().is_some_and(|seen| seen.line.starts_with("OPTIONS ")));
}

#[test]
fn any_origin_and_credentials_are_allowed_only_where_they_are_configured() {
    let upstream = Upstream::start();
    let any = gateway(&upstream, "key = { required = true }\ncors = { origins = [\"*\"] }");
    let with_cookies = gateway(
        &upstream,
        &format!(
            "key = {{ required = true }}\ncors = {{ origins = [\"{SHOP}\"], credentials = true }}"
        ),
    );
    let none = gateway(&upstream, "key = { required = true }");
    for (gateway, origin, credentials) in
        [(&any, Some("*"), None), (&with_cookies, Some(SHOP), Some("true")), (&none, None, None)]
    {
        let refused = Request::new("POST", "/v1/payments").field("Origin", SHOP).send(gateway.port);
        assert_eq!((refused.problem().as_str(), allowed(&refused)), ("key-missing", origin));
        assert_eq!(refused.get("access-control-allow-credentials"), credentials);
    }
}
