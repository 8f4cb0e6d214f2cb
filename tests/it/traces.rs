//! Spans that a collector receives: a tree for each request, and a link from a replay to the
//! original trace.

use serde_json::Value;

use crate::harness::{Gateway, ROUTES, RedisServer, Request, Upstream, free_port, until};

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const CLIENT_SPAN: &str = "b7ad6b7169203331";

pub fn settings(collector: u16, more: &str) -> String {
    format!("[tracing]\notlp_endpoint = \"http://127.0.0.1:{collector}/otlp\"\n{more}\n")
}

/// Returns all spans that a collector received.
pub fn spans(collector: &Upstream) -> Vec<Value> {
    let mut spans = Vec::new();
    for message in collector.seen() {
        assert_eq!(message.line, "POST /otlp/v1/traces HTTP/1.1");
        assert_eq!(message.get("content-type"), Some("application/json"));
        let body: Value = serde_json::from_slice(&message.body).unwrap();
        let resource = &body["resourceSpans"][0];
        assert_eq!(resource["resource"]["attributes"][0]["value"]["stringValue"], "onceward");
        spans.extend(resource["scopeSpans"][0]["spans"].as_array().unwrap().iter().cloned());
    }
    spans
}

pub fn attribute<'s>(span: &'s Value, name: &str) -> &'s str {
    let found =
        span["attributes"].as_array().unwrap().iter().find(|attribute| attribute["key"] == name);
    let value = &found.unwrap_or_else(|| panic!("no {name} in {span}"))["value"];
    value["stringValue"].as_str().or(value["intValue"].as_str()).unwrap()
}

/// Returns the server span with this outcome.
#[track_caller]
fn server_span(collector: &Upstream, outcome: &str) -> Value {
    let find = || {
        let mut all = spans(collector).into_iter();
        all.find(|span| span["kind"] == 2 && attribute(span, "onceward.outcome") == outcome)
    };
    until(&format!("a span of a request that was {outcome}"), || find().is_some());
    find().unwrap()
}

#[test]
fn a_request_is_a_tree_of_spans_in_the_clients_trace_and_its_replay_has_a_link_to_it() {
    let (upstream, collector, redis) = (Upstream::start(), Upstream::start(), RedisServer::start());
    let more = "headers = { X-Tenant = \"t1\", Authorization = { env = \"ADMIN_TOKEN\" } }";
    let gateway = Gateway::on(upstream.port, &redis.url(), &settings(collector.port, more), ROUTES);
    let pay = |trace: &str| {
        let request = Request::pay("canary-key", "{\"card\":\"canary\"}")
            .field("Authorization", "canary-token");
        request.field("traceparent", &format!("00-{trace}-{CLIENT_SPAN}-01"))
    };
    assert_eq!(pay(TRACE).send(gateway.port).status, 201);
    let executed = server_span(&collector, "executed");
    assert_eq!(
        (&executed["traceId"], &executed["parentSpanId"]),
        (&TRACE.into(), &CLIENT_SPAN.into())
    );
    assert_eq!(
        (&executed["name"], attribute(&executed, "http.response.status_code")),
        (&"POST payments".into(), "201")
    );
    assert!(attribute(&executed, "onceward.operation").starts_with("op_"));

    let all = spans(&collector);
    let child = |name: &str| {
        all.iter().find(|span| span["name"] == name).unwrap_or_else(|| panic!("no {name}: {all:?}"))
    };
    let number = |span: &Value, name: &str| span[name].as_str().unwrap().parse::<u64>().unwrap();
    for name in ["store claim", "forward", "store settle"] {
        let span = child(name);
        assert_eq!(
            (&span["traceId"], &span["parentSpanId"], &span["kind"]),
            (&TRACE.into(), &executed["spanId"], &3.into())
        );
        assert!(number(span, "startTimeUnixNano") >= number(&executed, "startTimeUnixNano"));
        assert!(number(span, "startTimeUnixNano") <= number(span, "endTimeUnixNano"));
    }
    assert_eq!(attribute(child("store claim"), "onceward.result"), "stored");
    let forward = child("forward")["spanId"].as_str().unwrap();
    assert_eq!(
        upstream.seen()[0].get("traceparent"),
        Some(&*format!("00-{TRACE}-{forward}-01")),
        "the upstream's parent"
    );

    // The retry has a trace of its own.
    let other = TRACE.replace("0af7", "1bf7");
    assert!(pay(&other).send(gateway.port).replayed());
    let replayed = server_span(&collector, "replayed");
    assert_eq!(replayed["traceId"], other.as_str());
    let link = &replayed["links"][0];
    assert_eq!((&link["traceId"], &link["spanId"]), (&TRACE.into(), &executed["spanId"]));
    assert!(executed.get("links").is_none());

    for message in collector.seen() {
        assert!(!String::from_utf8_lossy(&message.body).contains("canary"));
        assert_eq!(
            (message.get("x-tenant"), message.get("authorization")),
            (Some("t1"), Some("letmein"))
        );
    }
    until("the spans to be counted", || {
        gateway.metric("onceward_trace_spans_total{result=\"exported\"}") >= 6.0
    });
    assert_eq!(upstream.executed(), 1);
}

#[test]
fn traces_begin_here_where_clients_begin_none_and_are_exported_as_far_as_they_are_sampled() {
    let (upstream, collector) = (Upstream::start(), Upstream::start());
    let mut gateway = Gateway::with(upstream.port, &settings(collector.port, ""), ROUTES);
    let unsampled = format!("00-{TRACE}-{CLIENT_SPAN}-00");
    assert_eq!(
        Request::pay("a", "{}").field("traceparent", &unsampled).send(gateway.port).status,
        201
    );
    assert_eq!(
        upstream.seen()[0].get("traceparent"),
        Some(&*unsampled),
        "the client decided, for all of it"
    );
    assert_eq!(
        Request::pay("b", "{}").field("traceparent", "00-nonsense").send(gateway.port).status,
        201
    );
    let refused = Request::pay("", "{}").send(gateway.port);
    assert_eq!(refused.status, 400);
    let begun = server_span(&collector, "executed");
    assert!(
        begun.get("parentSpanId").is_none() && begun["traceId"].as_str().unwrap().len() == 32,
        "{begun}"
    );
    let sent = upstream.seen()[1].get("traceparent").unwrap().to_owned();
    assert!(sent.contains(begun["traceId"].as_str().unwrap()) && sent.ends_with("-01"), "{sent}");
    server_span(&collector, "key_invalid");

    // The last answers are exported before the process ends.
    let last = Request::pay("c", "{}").act("status 503").send_aside(gateway.port);
    upstream.reached(3);
    gateway.signal("TERM");
    assert_eq!(last.join().unwrap().status, 503);
    assert!(gateway.wait().success());
    let exported = spans(&collector);
    let failed: Vec<_> = exported.iter().filter(|span| span["status"]["code"] == 2).collect();
    assert!(
        failed
            .iter()
            .any(|span| span["kind"] == 2 && attribute(span, "onceward.outcome") == "uncertain"),
        "{exported:?}"
    );
    assert!(exported.iter().all(|span| span["traceId"] != TRACE), "{exported:?}");
}

#[test]
fn nothing_is_exported_where_nothing_is_sampled() {
    let (upstream, collector) = (Upstream::start(), Upstream::start());
    let mut gateway =
        Gateway::with(upstream.port, &settings(collector.port, "sample_ratio = 0"), ROUTES);
    assert_eq!(Request::pay("a", "{}").send(gateway.port).status, 201);
    gateway.signal("TERM");
    assert!(gateway.wait().success());
    assert_eq!(
        (collector.executed(), upstream.seen()[0].get("traceparent").map(|it| it.ends_with("-00"))),
        (0, Some(true))
    );
}

#[test]
fn a_collector_that_is_not_there_costs_spans_and_no_request() {
    let upstream = Upstream::start();
    let gateway = Gateway::with(upstream.port, &settings(free_port(), ""), ROUTES);
    for key in ["a", "b"] {
        assert_eq!(Request::pay(key, "{}").send(gateway.port).status, 201);
    }
    until("the spans to be counted", || {
        gateway.metric("onceward_trace_spans_total{result=\"dropped\"}") >= 8.0
    });
    until("the reason", || gateway.logs().contains("the trace collector accepts no spans"));
    assert_eq!(upstream.executed(), 2);
}
