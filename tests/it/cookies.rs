//! Callers that are identified by a cookie: other cookies in the same field change nothing.

use crate::harness::{Answer, Gateway, Request, Streams, Upstream, until};

fn gateway(upstream: &Upstream, route: &str) -> Gateway {
    Gateway::with(upstream.port, "", &format!("[[routes]]\npath = \"/v1/payments\"\n{route}"))
}

fn pay(gateway: &Gateway, cookies: &[&str]) -> Answer {
    cookies
        .iter()
        .fold(Request::pay("k", "{}"), |request, cookies| request.field("Cookie", cookies))
        .send(gateway.port)
}

#[test]
fn a_retry_under_other_cookies_of_analytics_is_the_same_caller() {
    let upstream = Upstream::start();
    let gateway = gateway(&upstream, "caller = { cookie = \"session\" }");
    assert_eq!(pay(&gateway, &["session=alice; _ga=1"]).status, 201);
    for cookies in
        [&["_ga=2;session=alice"][..], &["session=alice"], &["_gid=3", "session=alice; _ga=1"]]
    {
        assert!(pay(&gateway, cookies).replayed(), "{cookies:?}");
    }
    for cookies in [
        &["session=bob; _ga=1"][..],
        &["_ga=1"],
        &["session="],
        &["Session=alice"],
        &["xsession=alice"],
    ] {
        assert_eq!(pay(&gateway, cookies).problem(), "key-reused", "{cookies:?}");
    }
    let names = [("cookie", "_ga=9"), ("cookie", "session=alice"), ("cookie", "_gid=1")];
    let client = Streams::open(gateway.port);
    assert!(client.send(Streams::pay("k", "{}", &names)).replayed(), "a field for each cookie");
    assert_eq!(upstream.executed(), 1);
}

#[test]
fn a_callers_cookie_with_two_values_is_refused_before_anything_is_forwarded() {
    let upstream = Upstream::start();
    for route in ["caller = { cookie = \"session\" }", "scope = { cookie = \"session\" }"] {
        let gateway = gateway(&upstream, route);
        for cookies in [
            &["session=alice; session=bob"][..],
            &["session=alice", "session=bob"],
            &["session=alice; session="],
        ] {
            let refused = pay(&gateway, cookies);
            assert_eq!(
                (refused.status, refused.problem().as_str()),
                (400, "scope-invalid"),
                "{route}: {cookies:?}"
            );
            let text = refused.text();
            assert!(
                text.contains("cookie session") && !text.contains("alice"),
                "it is named, and its value is not: {text}"
            );
        }
        assert_eq!(
            pay(&gateway, &["session=alice; session=alice"]).status,
            201,
            "{route}: one value"
        );
    }
    assert_eq!(upstream.executed(), 2);
}

#[test]
fn a_scope_by_cookie_is_a_key_space_for_each_value() {
    let upstream = Upstream::start();
    let gateway = gateway(&upstream, "scope = { cookie = \"session\" }\ncaller = \"scope\"");
    assert_eq!(pay(&gateway, &["session=alice; _ga=1"]).status, 201);
    assert_eq!(pay(&gateway, &["session=bob; _ga=1"]).status, 201, "a key of its own");
    assert!(pay(&gateway, &["_ga=2; session=alice"]).replayed());
    for cookies in [&[][..], &["_ga=1"], &["session="]] {
        let refused = pay(&gateway, cookies);
        assert_eq!(
            (refused.status, refused.problem().as_str()),
            (400, "scope-missing"),
            "{cookies:?}"
        );
    }
    let named =
        Request::pay("k", "{}").field("Cookie", "session=alice").field("Connection", "cookie");
    assert!(named.send(gateway.port).replayed(), "Connection does not remove it");
    assert_eq!(upstream.executed(), 2);
}

#[test]
fn an_operator_finds_a_browsers_operations_by_its_cookie() {
    let upstream = Upstream::start();
    let routes = "[[routes]]\nname = \"scoped\"\npath = \"/v1/payments\"\nscope = { cookie = \"Session\" }\n\
                  [[routes]]\nname = \"called\"\npath = \"/v1/orders\"\ncaller = { cookie = \"Session\" }\n";
    let gateway = Gateway::with(upstream.port, "[log]\nenabled = true\n", routes);
    for path in ["/v1/payments", "/v1/orders"] {
        let sent = Request::new("POST", path)
            .field("Idempotency-Key", "k")
            .field("Cookie", "_ga=1; Session=alice");
        assert_eq!(sent.send(gateway.port).status, 201);
    }
    let ask = |path: &str, body: &str| {
        Request::new("POST", path).host("127.0.0.1").json(body).send(gateway.admin)
    };
    let look = |who: &str| {
        ask(
            "/v1/operations/lookup",
            &format!(r#"{{"route":"scoped","key":"k","scope":{{{who}}}}}"#),
        )
    };
    assert_eq!(look(r#""Session":"alice""#).json()["route"], "scoped");
    assert_eq!(look(r#""Session":"bob""#).problem(), "operation-unknown");
    for none in [r#""session":"alice""#, r#""Session":"""#, r#""Session":"alice; Session=bob""#] {
        assert_eq!(look(none).problem(), "lookup-invalid", "{none}");
    }
    for route in ["scoped", "called"] {
        let answer =
            ask("/v1/scope", &format!(r#"{{"route":"{route}","scope":{{"Session":"alice"}}}}"#));
        let mark = answer.json()["scope"]
            .as_str()
            .unwrap_or_else(|| panic!("{}", answer.text()))
            .to_owned();
        until("the operation under its mark", || {
            let listed = gateway.ask("GET", &format!("/v1/operations?scope={mark}")).json();
            listed["operations"]
                .as_array()
                .is_some_and(|found| found.len() == 1 && found[0]["route"] == route)
        });
    }
}
