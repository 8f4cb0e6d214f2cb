//! Writes on resources: their conditions, the look at the current version, and the answers.

use serde_json::json;

use crate::harness::{Answer, Documents, Gateway, Request};

pub const PATH: &str = "/v1/subscriptions/s1";

/// Returns a route with resources.
pub fn route(resource: &str, more: &str) -> String {
    format!(
        "[[routes]]\nname = \"subscriptions\"\npath = \"/v1/subscriptions/{{id}}\"\n\
         methods = [\"GET\", \"HEAD\", \"PUT\", \"PATCH\", \"DELETE\"]\n\
         lease = \"3s\"\nuncertain_after = \"2s\"\nresource = {{ {resource} }}\n{more}\n"
    )
}

pub fn gateway(upstream: &Documents, resource: &str, more: &str) -> Gateway {
    Gateway::with(upstream.port, "", &route(resource, more))
}

/// Returns the current tag of a resource.
pub fn tag(gateway: &Gateway, path: &str) -> String {
    let read = Request::new("GET", path).send(gateway.port);
    assert_eq!(read.status, 200, "{}", read.text());
    read.get("etag").unwrap().to_owned()
}

/// Returns a PUT of a document with one number.
pub fn put(path: &str, plan: u64) -> Request {
    Request::new("PUT", path).json(&json!({ "plan": plan }).to_string())
}

/// Returns the status and the problem of a refusal.
pub fn refusal(answer: &Answer) -> (u16, String) {
    (answer.status, answer.problem())
}

fn refused(status: u16, problem: &str) -> (u16, String) {
    (status, problem.to_owned())
}

#[test]
fn the_second_of_two_writers_does_not_undo_the_first() {
    let upstream = Documents::start();
    upstream.put(PATH, json!({ "plan": 1 }));
    let gateway = gateway(&upstream, "versions = \"hash\"", "");
    let (mine, yours) = (tag(&gateway, PATH), tag(&gateway, PATH));
    let first = put(PATH, 2).field("If-Match", &mine).send(gateway.port);
    assert_eq!((first.status, first.json()), (200, json!({ "plan": 2 })));
    let second = put(PATH, 3).field("If-Match", &yours).send(gateway.port);
    assert_eq!(refusal(&second), refused(412, "precondition-failed"));
    assert_eq!(second.json()["retryable"], false);
    assert_eq!(second.get("etag"), Some(tag(&gateway, PATH).as_str()), "the current tag");
    assert_eq!(upstream.get(PATH), Some(json!({ "plan": 2 })));
    let again = put(PATH, 3).field("If-Match", second.get("etag").unwrap()).send(gateway.port);
    assert_eq!(again.status, 200);
    assert_eq!(upstream.ledger().len(), 2);
}

#[test]
fn a_write_without_a_condition_is_refused_unless_the_route_lets_it_pass() {
    let upstream = Documents::start();
    upstream.put(PATH, json!({ "plan": 1 }));
    let strict = gateway(&upstream, "versions = \"hash\"", "");
    for request in [put(PATH, 2), put(PATH, 2).field("Idempotency-Key", "k1")] {
        let answer = request.send(strict.port);
        assert_eq!(refusal(&answer), refused(428, "precondition-required"));
        assert_eq!(answer.json()["retryable"], false);
    }
    let unmodified = put(PATH, 2).field("If-Unmodified-Since", "Thu, 01 Dec 1994 16:00:00 GMT");
    assert_eq!(unmodified.send(strict.port).status, 428, "a date is no condition");
    assert_eq!(upstream.ledger(), []);
    let lenient = gateway(&upstream, "if_match = \"optional\"", "");
    assert_eq!(put(PATH, 2).send(lenient.port).status, 200);
    let stale = put(PATH, 3).field("If-Match", "\"old\"").send(lenient.port);
    assert_eq!(stale.status, 412, "a condition counts, though it is optional");
    assert_eq!(upstream.ledger().len(), 1);
}

#[test]
fn conditions_are_compared_as_the_standard_compares_them() {
    let upstream = Documents::start();
    let gateway = gateway(&upstream, "versions = \"hash\"", "");
    for (condition, status) in [
        (vec![("If-Match", "*")], 200),
        (vec![("If-Match", "\"a\", CURRENT")], 200),
        (vec![("If-Match", "\"a\""), ("If-Match", "CURRENT")], 200),
        (vec![("If-Match", "W/CURRENT")], 412),
        (vec![("If-Match", "\"a\", \"b\"")], 412),
        (vec![("If-None-Match", "*")], 412),
        (vec![("If-None-Match", "\"a\"")], 400),
        (vec![("If-None-Match", "*"), ("If-Match", "CURRENT")], 400),
        (vec![("If-Match", "unquoted")], 400),
    ] {
        upstream.put(PATH, json!({ "plan": 1 }));
        let current = tag(&gateway, PATH);
        let mut request = put(PATH, 2);
        for (name, value) in &condition {
            request = request.field(name, &value.replace("CURRENT", &current));
        }
        let answer = request.send(gateway.port);
        assert_eq!(answer.status, status, "{condition:?}: {}", answer.text());
        let executed = upstream.get(PATH) == Some(json!({ "plan": 2 }));
        assert_eq!(executed, status == 200, "{condition:?}");
    }
}

#[test]
fn a_resource_is_created_once() {
    let upstream = Documents::start();
    let gateway = gateway(&upstream, "versions = \"hash\"", "");
    let create = |plan| put(PATH, plan).field("If-None-Match", "*").send(gateway.port);
    assert_eq!(create(1).status, 200);
    let second = create(2);
    assert_eq!(refusal(&second), refused(412, "precondition-failed"));
    assert_eq!(second.get("etag"), Some(tag(&gateway, PATH).as_str()));
    let delete = Request::new("DELETE", PATH).field("If-Match", &tag(&gateway, PATH));
    assert_eq!(delete.send(gateway.port).status, 204);
    let gone = delete.send(gateway.port);
    assert_eq!((refusal(&gone), gone.get("etag")), (refused(412, "precondition-failed"), None));
    assert_eq!(put(PATH, 3).field("If-Match", "*").send(gateway.port).status, 412, "missing");
    assert_eq!(create(4).status, 200);
    assert_eq!(upstream.ledger().len(), 3);
}

#[test]
fn the_key_comes_before_the_condition() {
    let upstream = Documents::start();
    upstream.put(PATH, json!({ "plan": 1 }));
    let gateway = gateway(&upstream, "versions = \"hash\"", "");
    let write = put(PATH, 2).field("Idempotency-Key", "k");
    let stale = write.clone().field("If-Match", "\"old\"").send(gateway.port);
    assert_eq!(stale.status, 412);
    let first = write.clone().field("If-Match", stale.get("etag").unwrap()).send(gateway.port);
    assert!(first.status == 200 && !first.replayed(), "the 412 had released the key");
    for duplicate in [write.clone(), write.field("If-Match", "\"older\"")] {
        let answer = duplicate.send(gateway.port);
        assert!(answer.status == 200 && answer.replayed(), "{}", answer.text());
        assert_eq!(answer.json(), json!({ "plan": 2 }));
    }
    assert_eq!(upstream.ledger().len(), 1);
}

#[test]
fn the_look_has_the_writers_credentials_and_nothing_of_the_write() {
    let upstream = Documents::start();
    upstream.put(PATH, json!({ "plan": 1 }));
    let gateway = gateway(&upstream, "accept = \"application/vnd.plan+json\"", "");
    let current = tag(&gateway, PATH);
    let write = put(&format!("{PATH}?notify=1"), 2)
        .field("If-Match", &current)
        .field("Authorization", "Bearer mine")
        .field("Cookie", "a=1")
        .field("Accept", "text/html")
        .field("X-HTTP-Method-Override", "DELETE")
        .field("Prefer", "respond-async")
        .field("Idempotency-Key", "k")
        .send(gateway.port);
    assert_eq!(write.status, 200, "{}", write.text());
    let seen = upstream.seen();
    let [_, look, sent] = &seen[..] else { panic!("{seen:?}") };
    assert!(look.line.starts_with("GET /v1/subscriptions/s1?notify=1 "), "{}", look.line);
    assert_eq!(
        ["authorization", "cookie", "accept", "accept-encoding"].map(|name| look.get(name)),
        [Some("Bearer mine"), Some("a=1"), Some("application/vnd.plan+json"), Some("identity")]
    );
    for name in ["if-match", "idempotency-key", "content-type", "x-http-method-override", "prefer"]
    {
        assert_eq!(look.get(name), None, "{name}");
    }
    assert!(look.get("content-length").is_none_or(|length| length == "0"));
    assert!(sent.line.starts_with("PUT "), "{}", sent.line);
    assert_eq!(sent.get("if-match"), None, "the upstream has no versions");
    assert_eq!((sent.get("idempotency-key"), sent.get("accept")), (Some("k"), Some("text/html")));
}

#[test]
fn a_writer_who_may_not_read_gets_the_upstreams_refusal() {
    let upstream = Documents::start();
    upstream.put(PATH, json!({ "plan": 1 }));
    let gateway = gateway(&upstream, "versions = \"hash\"", "");
    for status in [401, 403] {
        let write = put(PATH, 2).field("If-Match", "*").field("Idempotency-Key", "k");
        let refused =
            write.clone().field("X-Read-Fault", &format!("status {status}")).send(gateway.port);
        assert_eq!((refused.status, refused.json()), (status, json!({ "read": "refused" })));
        assert!(!refused.replayed(), "the key is free again");
    }
    assert_eq!(upstream.ledger(), []);
}

#[test]
fn a_resource_that_cannot_be_read_is_written_only_without_a_comparison() {
    let upstream = Documents::start();
    upstream.put(PATH, json!({ "plan": 1 }));
    let gateway = gateway(&upstream, "if_match = \"optional\", bytes = \"64B\"", "");
    let broken = |request: Request| request.field("X-Read-Fault", "status 500").send(gateway.port);
    let compared = broken(put(PATH, 2).field("If-Match", "\"a\""));
    assert_eq!(refusal(&compared), refused(502, "resource-unreadable"));
    assert_eq!(compared.json()["retryable"], true);
    let created = broken(put(PATH, 2).field("If-None-Match", "*"));
    assert_eq!(created.status, 502, "whether it exists is not known");
    assert_eq!(upstream.ledger(), []);
    assert_eq!(broken(put(PATH, 2).field("If-Match", "*")).status, 200);
    assert_eq!(broken(put(PATH, 3)).status, 200);

    upstream.put(PATH, json!({ "text": "x".repeat(100) }));
    let large = put(PATH, 4).field("If-Match", "\"a\"").send(gateway.port);
    assert_eq!(refusal(&large), refused(502, "resource-unreadable"));
    let exists = put(PATH, 4).field("If-None-Match", "*").send(gateway.port);
    assert_eq!(exists.status, 412, "it exists, though it has no tag");
    assert_eq!(put(PATH, 4).field("If-Match", "*").send(gateway.port).status, 200);
}

#[test]
fn a_tag_of_a_member_ignores_what_else_changes() {
    let upstream = Documents::start();
    upstream.put(PATH, json!({ "version": 7, "seen": 1 }));
    let gateway = gateway(&upstream, "versions = { body = \"/version\" }", "");
    let current = tag(&gateway, PATH);
    upstream.put(PATH, json!({ "version": 7, "seen": 2 }));
    let write = || {
        let body = json!({ "version": 8 }).to_string();
        Request::new("PUT", PATH).json(&body).field("If-Match", &current).send(gateway.port)
    };
    assert_eq!(write().status, 200);
    assert_eq!(write().status, 412);
    upstream.put(PATH, json!({ "seen": 2 }));
    assert_eq!(write().status, 502, "without the member there is nothing to compare");
}

#[test]
fn an_answer_has_a_tag_only_if_it_has_the_new_representation() {
    let upstream = Documents::start();
    upstream.put(PATH, json!({ "plan": 1 }));
    let gateway = gateway(&upstream, "versions = \"hash\"", "");
    let write = |plan| put(PATH, plan).field("If-Match", "*").field("Idempotency-Key", "k");
    let plain = write(2).send(gateway.port);
    assert_eq!((plain.status, plain.get("etag")), (200, None), "the upstream's own tag is no tag");
    let preferred = put(PATH, 3).field("If-Match", "*").field("Prefer", "return=representation");
    let keyed = preferred.field("Idempotency-Key", "k2");
    for answer in [keyed.send(gateway.port), keyed.send(gateway.port)] {
        assert_eq!(answer.get("etag"), Some(tag(&gateway, PATH).as_str()), "also of the replay");
    }
    let located = put(PATH, 4).field("If-Match", "*").field("X-Locate", "yes").send(gateway.port);
    assert_eq!(located.get("etag"), Some(tag(&gateway, PATH).as_str()));
}

#[test]
fn an_upstream_with_versions_of_its_own_gets_the_condition() {
    let upstream = Documents::start();
    upstream.put(PATH, json!({ "plan": 1 }));
    let gateway = gateway(&upstream, "versions = \"upstream\"", "");
    for request in [put(PATH, 2), put(PATH, 2).field("Idempotency-Key", "k")] {
        assert_eq!(refusal(&request.send(gateway.port)), refused(428, "precondition-required"));
    }
    assert_eq!(upstream.seen().len(), 0);
    let write = put(PATH, 2).field("If-Match", "\"v1\"").field("Idempotency-Key", "k");
    let stale = write.clone().field("X-Fault", "status 412").send(gateway.port);
    assert_eq!((stale.status, stale.json()), (412, json!({ "write": "refused" })));
    let fresh = write.send(gateway.port);
    assert!(fresh.status == 200 && !fresh.replayed(), "a 412 is not the result of the key");
    let keyless = put(PATH, 3).field("If-None-Match", "*").send(gateway.port);
    assert_eq!((keyless.status, keyless.get("etag")), (200, Some("W/\"own\"")));
    let in_body = "versions = \"upstream\"";
    let by_body = self::gateway(
        &upstream,
        in_body,
        "key = { header = \"Idempotency-Key\", body = \"/key\" }",
    );
    assert_eq!(put(PATH, 4).send(by_body.port).status, 428, "also if the key may be in the body");
    let seen = upstream.seen();
    assert!(seen.iter().all(|seen| seen.line.starts_with("PUT ")), "no look");
    let conditions = ["if-match", "if-none-match"].map(|name| seen.last().unwrap().get(name));
    assert_eq!(conditions, [None, Some("*")]);
}

#[test]
fn the_last_write_wins_where_the_route_overwrites_and_the_log_names_what_was_lost() {
    let upstream = Documents::start();
    upstream.put(PATH, json!({ "plan": 1 }));
    let log = "[log]\nenabled = true\n";
    let more = "on_stale = \"overwrite\"";
    let gateway = Gateway::with(upstream.port, log, &route("versions = \"hash\"", more));
    let first = tag(&gateway, PATH);
    upstream.put(PATH, json!({ "plan": 2 }));
    let lost = tag(&gateway, PATH);
    let write = put(PATH, 3).field("If-Match", &first).field("Idempotency-Key", "k");
    assert_eq!(write.send(gateway.port).status, 200);
    assert_eq!(upstream.get(PATH), Some(json!({ "plan": 3 })));
    let counted = "onceward_resource_overwrites_total{route=\"subscriptions\"}";
    assert_eq!(gateway.metric(counted), 1.0);
    gateway.logged(&format!("tag={lost:?}"));
    let events = gateway.ask("GET", "/v1/log?since=2020-01-01T00:00:00Z").text();
    assert!(events.contains(&format!("\"overwrote\":{}", json!(lost))), "{events}");
    let missing = put("/v1/subscriptions/none", 1).field("If-Match", &first).send(gateway.port);
    assert_eq!(missing.status, 412, "a resource that is missing is not overwritten");
}

/// A merge patch of one resource.
fn patch(body: serde_json::Value, tag: &str) -> Request {
    let request = Request::new("PATCH", PATH).body(body.to_string());
    request.field("Content-Type", "application/merge-patch+json").field("If-Match", tag)
}

#[test]
fn a_patch_of_other_members_is_merged_and_one_of_the_same_members_is_not() {
    let upstream = Documents::start();
    upstream.put(PATH, json!({ "plan": 1, "card": { "name": "a", "ends": 5 } }));
    let gateway = gateway(&upstream, "versions = \"hash\"", "on_stale = \"merge\"");
    let read = tag(&gateway, PATH);
    let first = patch(json!({ "plan": 2 }), &read).send(gateway.port);
    assert_eq!((first.status, first.get("onceward-merged")), (200, None), "nothing had changed");
    let keyed = patch(json!({ "card": { "name": "b" } }), &read).field("Idempotency-Key", "k");
    for is_replay in [false, true] {
        let merged = keyed.send(gateway.port);
        assert_eq!((merged.status, merged.replayed()), (200, is_replay));
        assert_eq!(merged.get("onceward-merged"), Some("true"));
    }
    let current = json!({ "plan": 2, "card": { "name": "b", "ends": 5 } });
    assert_eq!(upstream.get(PATH), Some(current.clone()));

    let conflict = patch(json!({ "plan": 3, "new": 1 }), &read).send(gateway.port);
    assert_eq!(refusal(&conflict), refused(412, "merge-conflict"));
    assert_eq!(conflict.json()["members"], json!(["/plan"]));
    assert_eq!(conflict.get("etag"), Some(tag(&gateway, PATH).as_str()));
    let put = put(PATH, 3).field("If-Match", &read).send(gateway.port);
    assert_eq!(refusal(&put), refused(412, "precondition-failed"), "only patches are merged");
    let unknown = patch(json!({ "new": 1 }), "\"never-issued\"").send(gateway.port);
    assert_eq!(refusal(&unknown), refused(412, "precondition-failed"));
    let twice = Request::new("PATCH", PATH)
        .body("{\"new\":1,\"new\":2}")
        .field("Content-Type", "application/merge-patch+json")
        .field("If-Match", &read);
    assert_eq!(twice.send(gateway.port).status, 412, "a patch with duplicate members");
    assert_eq!(upstream.get(PATH), Some(current));
    let counted = "onceward_resource_merges_total{route=\"subscriptions\"}";
    assert_eq!(gateway.metric(counted), 1.0);
}

#[test]
fn only_the_last_eight_versions_are_kept_for_a_merge() {
    let upstream = Documents::start();
    let gateway = gateway(&upstream, "versions = \"hash\"", "on_stale = \"merge\"");
    let mut tags = Vec::new();
    for plan in 0..9 {
        upstream.put(PATH, json!({ "plan": plan, "note": "a" }));
        tags.push(tag(&gateway, PATH));
    }
    upstream.put(PATH, json!({ "plan": 10, "note": "a" }));
    let write = |tag: &str| patch(json!({ "note": "b" }), tag).send(gateway.port);
    // The refusal keeps the current version, too.
    assert_eq!(write(&tags[0]).status, 412, "the oldest is gone");
    let merged = write(&tags[8]);
    assert_eq!((merged.status, merged.get("onceward-merged")), (200, Some("true")));
    assert_eq!(upstream.get(PATH), Some(json!({ "plan": 10, "note": "b" })));
}

#[test]
fn the_oldest_kept_version_is_found_and_one_that_is_read_again_is_the_newest() {
    let upstream = Documents::start();
    let gateway = gateway(&upstream, "versions = \"hash\"", "on_stale = \"merge\"");
    let read = |plan: u64| {
        upstream.put(PATH, json!({ "plan": plan, "note": "a" }));
        tag(&gateway, PATH)
    };
    let merges = |base: &str| {
        let answer = patch(json!({ "note": "b" }), base).send(gateway.port);
        (answer.status, answer.get("onceward-merged").is_some())
    };
    let tags: Vec<String> = (0..8).map(read).collect();
    // Nobody has read this version, so no tag was given out for it.
    upstream.put(PATH, json!({ "plan": 9, "note": "a" }));
    assert_eq!(merges(&tags[0]), (200, true), "the oldest of eight");

    assert_eq!(read(0), tags[0], "the same version again");
    (20..27).for_each(|plan| drop(read(plan)));
    upstream.put(PATH, json!({ "plan": 30, "note": "a" }));
    assert_eq!(merges(&tags[0]), (200, true), "it was given out again, and seven after it");
    assert_eq!(merges(&tags[7]), (412, false));
}

#[test]
fn a_path_that_can_be_read_as_that_of_another_resource_is_refused() {
    let upstream = Documents::start();
    upstream.put(PATH, json!({ "plan": 1 }));
    let gateway = gateway(&upstream, "versions = \"hash\"", "");
    for path in ["/v1/subscriptions/s1;a=1", "/v1/subscriptions/s1%2f", "/v1/subscriptions/s1%253b"]
    {
        let answer = put(path, 2).field("If-Match", "*").send(gateway.port);
        assert_eq!(refusal(&answer), refused(400, "path-ambiguous"), "{path}");
    }
    assert_eq!(upstream.seen().len(), 0);
}

#[test]
fn a_look_ends_with_the_response_timeout() {
    let upstream = Documents::start();
    upstream.put(PATH, json!({ "plan": 1 }));
    let soon = "[upstream]\nresponse_timeout = \"500ms\"\n";
    let gateway = Gateway::with(upstream.port, soon, &route("versions = \"hash\"", ""));
    let write = put(PATH, 2).field("If-Match", "\"a\"").field("X-Read-Fault", "hold");
    let answer = write.send(gateway.port);
    assert_eq!(refusal(&answer), refused(502, "resource-unreadable"));
    upstream.release();
    assert_eq!(upstream.ledger(), []);
}
