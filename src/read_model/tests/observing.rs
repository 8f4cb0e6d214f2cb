//! Observations: the results of duplicates, and the effects of enforcing on requests that are
//! only watched.

use serde_json::{Value, json};

use super::*;

const HOUR_MS: u64 = 3_600_000;

/// A batch with this sequence number in the log.
fn batch(seq: u64, seen: &Value) -> (EntryId, bytes::Bytes) {
    (EntryId { ms: T0, seq }, serde_json::to_vec(seen).unwrap().into())
}

fn watched(kind: &str, at_ms: u64, scope: &str, problem: Option<&str>) -> Value {
    let mut seen =
        json!({"kind": kind, "route": "payments", "scope": scope, "seen": [{"at_ms": at_ms}]});
    if let Some(problem) = problem {
        seen["problem"] = problem.into();
    }
    seen
}

#[test]
fn what_this_version_cannot_read_is_passed_over_and_a_batch_that_comes_again_counts_once() {
    let model = ReadModel::in_memory().unwrap();
    let mut entries = TestLog::default();
    entries.append(1, T0, &event(EventKind::Claimed, T0));
    applied(&model, &entries);
    let one = json!({"operation": slot(1).to_string(), "at_ms": T0});
    let replayed = json!({"kind": "replayed", "route": "payments", "status": 201, "seen": [one]});
    let seen = json!([{"kind": "from a later version"}, replayed, "no group", replayed]);
    let batches = [batch(0, &seen), batch(1, &json!("no batch"))];
    let generation = model.progress().unwrap().checkpoint.fence;
    assert_eq!(model.apply_observations(generation, &batches).unwrap(), 2);
    assert_eq!(model.apply_observations(generation, &batches).unwrap(), 0);
    assert_eq!(model.overview(T0).unwrap().hour.replayed, 2);
    let timeline = model.timeline(&slot(1).to_string(), T0).unwrap().unwrap();
    assert_eq!((timeline.moments.len(), timeline.operation.duplicates), (3, 2));
}

#[test]
fn a_report_has_the_hours_since_then_by_route_client_and_reason_and_sums_them_up() {
    let model = ReadModel::in_memory().unwrap();
    let seen = json!([
        watched("would_replay", T0 - HOUR_MS, "alice", None),
        watched("would_replay", T0, "alice", None),
        watched("would_refuse", T0, "bob", Some("key-reused")),
        watched("would_refuse", T0 + HOUR_MS, "bob", Some("key-reused")),
        watched("would_refuse", T0 + HOUR_MS, "bob", Some("key-missing")),
        watched("would_replay", T0 + HOUR_MS, "bob", None),
    ]);
    model
        .apply_observations(model.progress().unwrap().checkpoint.fence, &[batch(0, &seen)])
        .unwrap();
    // The whole hour of that minute is included.
    let report = model.report(T0 / HOUR_MS * HOUR_MS + 60_000).unwrap();
    let row = |scope: &str, problem: Option<&str>, requests| ReportRow {
        route: "payments".into(),
        scope: Some(scope.into()),
        refused: problem.is_some(),
        problem: problem.map(str::to_owned),
        requests,
    };
    let once = [row("alice", None, 1), row("bob", Some("key-missing"), 1), row("bob", None, 1)];
    assert_eq!(
        (&report.rows[0], &report.rows[1..]),
        (&row("bob", Some("key-reused"), 2), &once[..])
    );
    assert_eq!((report.replayed, report.refused, report.cut), (2, 3, false));
    assert_eq!(report.since_ms, T0 / HOUR_MS * HOUR_MS);
    let model = ReadModel::in_memory().unwrap();
    assert!(model.report(0).unwrap().rows.is_empty());
}

#[test]
fn a_merged_observation_counts_each_request_and_takes_one_place() {
    let model = ReadModel::in_memory().unwrap();
    let mut entries = TestLog::default();
    entries.append(1, T0, &event(EventKind::Claimed, T0));
    applied(&model, &entries);
    let storm =
        json!({"operation": slot(1).to_string(), "at_ms": T0, "until_ms": T0 + 400, "times": 150});
    let storms = [&storm, &storm, &storm];
    let replayed = json!({"kind": "replayed", "route": "payments", "status": 201, "seen": storms});
    let watched =
        json!({"kind": "would_replay", "route": "payments", "seen": [{"at_ms": T0, "times": 7}]});
    let generation = model.progress().unwrap().checkpoint.fence;
    assert_eq!(
        model.apply_observations(generation, &[batch(0, &json!([replayed, watched]))]).unwrap(),
        457
    );
    assert_eq!(model.overview(T0).unwrap().hour.replayed, 450);
    assert_eq!(model.report(T0).unwrap().replayed, 7);
    let timeline = model.timeline(&slot(1).to_string(), T0).unwrap().unwrap();
    assert_eq!(timeline.operation.duplicates, 450);
    assert_eq!(
        (timeline.moments.len(), timeline.cut),
        (4, false),
        "the claim, and the repeated requests as they were observed"
    );
}

#[test]
fn a_storm_of_retries_leaves_room_for_what_else_happened_to_the_operation() {
    let model = ReadModel::in_memory().unwrap();
    let mut entries = TestLog::default();
    entries.append(1, T0, &event(EventKind::Claimed, T0));
    applied(&model, &entries);
    let operation = slot(1).to_string();
    let seen =
        |at_ms: u64, times: u64| json!({"operation": operation, "at_ms": at_ms, "times": times});
    let first = [seen(T0 + 10, 100_000)];
    let replayed = json!({"kind": "replayed", "route": "payments", "status": 201, "seen": first});
    let mut later = seen(T0 + 20, 1);
    later["differing"] = json!([{"pointer": "/amount"}]);
    let refused =
        json!({"kind": "refused", "route": "payments", "problem": "key-reused", "seen": [later]});
    let many =
        json!({"kind": "replayed", "route": "payments", "seen": vec![seen(T0 + 30, 1); 300]});
    let generation = model.progress().unwrap().checkpoint.fence;
    let batches = [batch(0, &json!([replayed, refused])), batch(1, &json!([many]))];
    assert_eq!(model.apply_observations(generation, &batches).unwrap(), 100_301);
    let timeline = model.timeline(&slot(1).to_string(), T0).unwrap().unwrap();
    let places = timeline.moments.iter().filter_map(|moment| match &moment.detail {
        MomentDetail::Observed(observation) => observation.differing.first(),
        MomentDetail::Changed(_) => None,
    });
    assert_eq!(places.map(|place| place.pointer.as_str()).collect::<Vec<_>>(), ["/amount"]);
    assert_eq!(
        (timeline.moments.len(), timeline.cut, timeline.operation.duplicates),
        (201, true, 100_301),
        "and no more"
    );
}
