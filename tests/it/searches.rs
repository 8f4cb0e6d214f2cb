//! Answers of the admin API from the read model, and its description of itself.

use crate::admin::{cli, lose};
use crate::harness::{Answer, Gateway, ROUTES, Request, Upstream, until};

const LOG: &str = "[log]\nenabled = true";

/// Requests `target` until the answer has this number of operations.
fn answer(gateway: &Gateway, target: &str, operations: usize) -> serde_json::Value {
    let ask = || gateway.ask("GET", target).json();
    until("the read model to know them", || {
        ask()["operations"].as_array().is_some_and(|all| all.len() >= operations)
    });
    ask()
}

/// Returns the references of the operations of a page.
fn references(page: &serde_json::Value) -> Vec<serde_json::Value> {
    let operations = page["operations"].as_array().unwrap();
    operations.iter().map(|one| one["operation"].clone()).collect()
}

#[test]
fn operations_are_found_newest_first_a_page_at_a_time_with_their_whole_timeline() {
    let upstream = Upstream::start();
    let gateway = Gateway::with(upstream.port, LOG, ROUTES);
    for key in ["a", "b", "c"] {
        assert_eq!(Request::pay(key, "{}").send(gateway.port).status, 201);
    }
    let lost = lose(&gateway, "k");
    let all = answer(&gateway, "/v1/operations?route=payments", 4);
    assert_eq!(
        (&all["source"], &all["operations"][0]["operation"]),
        (&"read_model".into(), &lost.as_str().into())
    );
    assert!(all["lag_ms"].is_u64(), "how far behind it is: {all}");
    let (mut seen, mut cursor) = (Vec::new(), String::new());
    loop {
        let page =
            gateway.ask("GET", &format!("/v1/operations?route=payments&limit=3{cursor}")).json();
        seen.extend(references(&page));
        let Some(next) = page["cursor"].as_str() else { break };
        cursor = format!("&cursor={next}");
    }
    assert_eq!(seen, references(&all));
    for (query, count) in [
        ("status=201", 3),
        ("route=nowhere", 0),
        ("state=uncertain&source=read_model", 1),
        ("text=nothing", 0),
    ] {
        let found = gateway.ask("GET", &format!("/v1/operations?{query}")).json();
        assert_eq!(references(&found).len(), count, "{query}");
    }
    assert_eq!(
        gateway.ask("GET", "/v1/operations?state=uncertain").json()["source"],
        "store",
        "as it is now"
    );

    assert_eq!(cli(&gateway, &["resolve", &lost, "--status", "201", "--reason", "seen"]).0, 0);
    let timeline = || gateway.ask("GET", &format!("/v1/operations/{lost}/timeline")).json();
    until("the decision to be shown", || timeline()["moments"].as_array().unwrap().len() == 3);
    let timeline = timeline();
    let kinds: Vec<_> = timeline["moments"]
        .as_array()
        .unwrap()
        .iter()
        .map(|moment| moment["kind"].as_str().unwrap())
        .collect();
    assert_eq!(kinds, ["claimed", "uncertain", "resolved"]);
    let decided = &timeline["moments"][2];
    assert_eq!(
        (&decided["operator"], &decided["reason"], &decided["status"]),
        (&"loopback".into(), &"seen".into(), &201.into())
    );

    let hours = gateway.ask("GET", "/v1/statistics").json();
    let sum = |name: &str| {
        hours["hours"]
            .as_array()
            .unwrap()
            .iter()
            .map(|hour| hour[name].as_u64().unwrap())
            .sum::<u64>()
    };
    assert_eq!((sum("executed"), sum("uncertain"), sum("decided")), (3, 1, 1), "{hours}");
    let overview = gateway.ask("GET", "/v1/overview").json();
    assert_eq!(
        (&overview["hour"]["executed"], &overview["uncertain"]),
        (&3.into(), &0.into()),
        "{overview}"
    );
}

#[test]
fn a_query_that_can_not_be_answered_is_refused() {
    let upstream = Upstream::start();
    let gateway = Gateway::with(upstream.port, LOG, ROUTES);
    for (target, problem) in [
        ("/v1/operations?status=many", "request-invalid"),
        ("/v1/operations?status=99", "request-invalid"),
        ("/v1/operations?amount=7", "request-invalid"),
        ("/v1/operations?state=completed&state=uncertain", "request-invalid"),
        ("/v1/statistics?since=2026-11-25T03:00:00Z", "request-invalid"),
        ("/v1/report?from=2026-11-25T03:00:00Z", "request-invalid"),
        ("/v1/log/verify?after=1", "request-invalid"),
        ("/v1/operations?route=payments&cursor=nowhere", "request-invalid"),
        ("/v1/operations?cursor=nowhere", "request-invalid"),
        ("/v1/operations?state=uncertain&cursor=nowhere", "request-invalid"),
        ("/v1/statistics?from=2020-01-01T00:00:00Z", "request-invalid"),
        (
            "/v1/operations/op_0000000000000000000000000000000000000000/timeline",
            "operation-unknown",
        ),
    ] {
        assert_eq!(gateway.ask("GET", target).problem(), problem, "{target}");
    }
}

/// Routes that identify clients by two scope fields, or only by a field that they send.
const TENANTS: &str = r#"
[hashing]
secrets = [{ env = "HASHING_SECRET" }]
[[routes]]
name = "payments"
path = "/v1/payments"
scope = { headers = ["X-Shop", "X-Till"] }
[[routes]]
name = "orders"
path = "/v1/orders"
[[routes]]
name = "open"
path = "/v1/open"
mode = "off"
"#;

#[test]
fn a_clients_operations_are_found_by_what_it_is_known_by_which_is_in_no_log() {
    let upstream = Upstream::start();
    let gateway = Gateway::with(upstream.port, LOG, TENANTS);
    for shop in ["canary-shop", "shop-8"] {
        let pay = Request::pay("k", "{}").field("X-Shop", shop).field("X-Till", "7");
        assert_eq!(pay.send(gateway.port).status, 201);
    }
    let order = Request::new("POST", "/v1/orders")
        .json("{}")
        .field("Idempotency-Key", "k")
        .field("Authorization", "canary-key");
    assert_eq!(order.send(gateway.port).status, 201);
    let all = answer(&gateway, "/v1/operations?source=read_model", 3);
    let of = |body: &str| {
        Request::new("POST", "/v1/scope").host("127.0.0.1").json(body).send(gateway.admin)
    };
    let found = |answer: &Answer| {
        let mark = answer.json()["scope"]
            .as_str()
            .unwrap_or_else(|| panic!("{}", answer.text()))
            .to_owned();
        gateway.ask("GET", &format!("/v1/operations?scope={mark}")).json()["operations"].clone()
    };
    let payments =
        found(&of(r#"{"route":"payments","scope":{"x-shop":"canary-shop","X-Till":" 7 "}}"#));
    assert_eq!(payments, serde_json::json!([all["operations"][2]]));
    let orders = found(&of(r#"{"route":"orders","scope":{"authorization":"canary-key"}}"#));
    assert_eq!(orders, serde_json::json!([all["operations"][0]]));
    assert_eq!(
        found(&of(r#"{"route":"orders","scope":{"authorization":"canary-2"}}"#)),
        serde_json::json!([])
    );

    for (body, status, problem) in [
        (r#"{"route":"payments","scope":{"x-shop":"canary-shop"}}"#, 400, "lookup-invalid"),
        (r#"{"route":"orders","scope":{"x-shop":"canary-shop"}}"#, 400, "lookup-invalid"),
        (r#"{"route":"open","scope":{"authorization":"canary-key"}}"#, 400, "lookup-invalid"),
        (r#"{"route":"payment","scope":{"x-shop":"canary-shop"}}"#, 404, "route-unknown"),
        (r#"{"scope":{"x-shop":"canary-shop"}}"#, 400, "request-invalid"),
    ] {
        let answer = of(body);
        assert_eq!((answer.status, answer.problem().as_str()), (status, problem), "{body}");
        assert!(!answer.text().contains("canary"), "{}", answer.text());
    }

    let file = tempfile::NamedTempFile::new().unwrap();
    let list = |text: &str| {
        std::fs::write(file.path(), text).unwrap();
        cli(&gateway, &["list", "--route", "payments", "--client", file.path().to_str().unwrap()])
    };
    let (code, listed) = list("X-Shop: canary-shop\n\nX-Till: 7\n");
    assert_eq!((code, listed.lines().count()), (0, 1), "{listed}");
    assert!(listed.contains(payments[0]["operation"].as_str().unwrap()), "{listed}");
    let (code, output) = list("canary-shop");
    assert!(code == 2 && output.contains("line 1 of") && !output.contains("canary"), "{output}");
    let mark = payments[0]["scope"].as_str().unwrap();
    assert_eq!(cli(&gateway, &["list", "--scope", mark]), (0, listed));
    assert!(!gateway.logs().contains("canary"));
}

#[test]
fn duplicates_are_counted_and_shown_with_the_places_that_differed_and_never_with_the_values() {
    let upstream = Upstream::start();
    let gateway = Gateway::with(upstream.port, LOG, &format!("{ROUTES}explain = true\n"));
    let pay = |body: &str| Request::pay("k", body).send(gateway.port);
    assert_eq!(pay(r#"{"amount":4200,"card":"canary-1"}"#).status, 201);
    for _ in 0..3 {
        assert!(pay(r#"{"amount":4200,"card":"canary-1"}"#).replayed());
    }
    assert_eq!(pay(r#"{"amount":9900,"card":"canary-2"}"#).status, 422);
    let operation =
        answer(&gateway, "/v1/operations?route=payments", 1)["operations"][0]["operation"]
            .as_str()
            .unwrap()
            .to_owned();
    let timeline = || gateway.ask("GET", &format!("/v1/operations/{operation}/timeline")).json();
    // Duplicates that got the same answer within a short time become one moment.
    let times = |timeline: &serde_json::Value| {
        timeline["moments"]
            .as_array()
            .unwrap()
            .iter()
            .map(|moment| moment["times"].as_u64().unwrap_or(1))
            .sum::<u64>()
    };
    until("the duplicates to be shown", || times(&timeline()) == 6);
    let timeline = timeline();
    let refused = timeline["moments"]
        .as_array()
        .unwrap()
        .iter()
        .find(|moment| moment["kind"] == "refused")
        .unwrap();
    assert_eq!((&refused["problem"], &refused["status"]), (&"key-reused".into(), &422.into()));
    let pointers: Vec<_> = refused["differing"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| one["pointer"].as_str().unwrap())
        .collect();
    assert_eq!(pointers, ["/amount", "/card"], "{refused}");
    assert!(!timeline.to_string().contains("canary"), "{timeline}");
    let overview = gateway.ask("GET", "/v1/overview").json();
    assert_eq!(
        (&overview["hour"]["duplicates_prevented"], &overview["hour"]["conflicts"]),
        (&3.into(), &1.into()),
        "{overview}"
    );
    let page = gateway.ask("GET", &format!("/operations/{operation}")).text();
    assert!(
        page.contains("<code>/amount</code>")
            && page.contains("got the stored response 201, 3 times"),
        "{page}"
    );
    assert_eq!(gateway.metric("onceward_observations_lost_total"), 0.0);
}

#[test]
fn without_the_log_the_store_is_listed_and_other_answers_name_the_setting_to_turn_on() {
    let upstream = Upstream::start();
    let gateway = Gateway::start(upstream.port);
    let lost = lose(&gateway, "k");
    assert_eq!(gateway.ask("GET", "/v1/operations").json()["operations"][0]["operation"], lost);
    for target in [
        "/v1/operations?route=payments",
        "/v1/overview",
        "/v1/statistics",
        &format!("/v1/operations/{lost}/timeline"),
    ] {
        let refused = gateway.ask("GET", target);
        assert_eq!(
            (refused.status, refused.problem().as_str()),
            (501, "read-model-off"),
            "{target}"
        );
        assert!(refused.text().contains("[log]"), "{}", refused.text());
    }
}

#[test]
fn the_openapi_document_lists_the_methods_that_paths_take() {
    let upstream = Upstream::start();
    let gateway = Gateway::start(upstream.port);
    let document = gateway.ask("GET", "/v1/openapi.json").json();
    for (path, methods) in document["paths"].as_object().unwrap() {
        let target = path.replace("{operation}", "op_0000000000000000000000000000000000000000");
        let refused = gateway.ask("DELETE", &target);
        assert_eq!(refused.status, 405, "{path}");
        let mut taken: Vec<String> = refused
            .get("allow")
            .unwrap()
            .split(',')
            .map(|method| method.trim().to_lowercase())
            .collect();
        taken.retain(|method| method != "head");
        taken.sort();
        assert_eq!(
            taken,
            methods.as_object().unwrap().keys().cloned().collect::<Vec<_>>(),
            "{path}"
        );
    }
}
