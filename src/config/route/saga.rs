//! The own route of a saga: the requests that begin it.

use std::time::Duration;

use super::{
    RouteConfig, RouteContext, RouteExtras, above_its_profile, read_methods, read_name, read_path,
    read_policy,
};
use crate::config::read::Table;
use crate::engine::{OnFailure, OnInFlight, OnUncertain, StatusRules};
use crate::record::AnnouncedState;

/// How long a duplicate and the first request wait, if the saga sets no `wait_timeout`.
const WAIT_TIMEOUT_DEFAULT: Duration = Duration::from_secs(30);

/// Keys of a route that a saga can't have, each with the reason.
const NOT_FOR_SAGAS: [(&str, &str); 14] = [
    ("mode", "a saga always enforces"),
    ("upstream", OF_A_STEP),
    ("upstream_key", "a step has `key`"),
    ("on_uncertain", OF_A_STEP),
    ("probe", OF_A_STEP),
    ("uncertain_after", OF_A_STEP),
    ("lease", OF_A_STEP),
    ("store_status", "a step has `success` and `failure`"),
    ("release_status", OF_A_STEP),
    ("uncertain_status", OF_A_STEP),
    ("resource", "its request begins a saga, and its path names none"),
    ("on_stale", "it has no resource"),
    ("redact", "its answer has only what `answer` writes"),
    ("drop_headers", "its answer has only what `answer` writes"),
];
const OF_A_STEP: &str = "set it for a step";
/// Values that would weaken a saga, each with the reason.
const WORDS_NOT_FOR_SAGAS: [(&str, &str, &str); 2] = [
    ("on_mismatch", "supersede", "a duplicate has to find the one saga of its key"),
    ("on_failure", "fail_open", "what runs without the store can't be undone"),
];

/// Reads the own route of a saga. Also returns the saga's table above its profile, for further
/// keys.
pub(in crate::config) fn read_saga_route<'a>(
    table: Table<'a>,
    context: &RouteContext<'a>,
    names: &mut Vec<String>,
) -> Option<(Table<'a>, Option<RouteConfig>)> {
    let (table, profile) = above_its_profile(table, context)?;
    let sound = refuse_other_keys(&table);
    let path = read_path(&table, "a saga");
    let name = read_name(&table, names, "route or saga");
    let methods = table.get("methods").and_then(|value| read_methods(&value));
    let mut extras = RouteExtras::default();
    let route = name.as_deref().unwrap_or_default();
    let terms = (&AnnouncedState::OF_SAGAS[..], context);
    let policy = read_policy(&table, route, context.response_timeout, terms, &mut extras);
    let route = || {
        let mut policy = policy?;
        policy.key.required = true;
        policy.on_failure = OnFailure::FailClosed;
        policy.on_uncertain = OnUncertain::Hold;
        policy.statuses = every_status_is_a_result();
        if !is_given(&table, "on_in_flight") {
            policy.on_in_flight = OnInFlight::Wait;
        }
        if !is_given(&table, "wait_timeout") {
            policy.wait_timeout = WAIT_TIMEOUT_DEFAULT;
        }
        sound.then_some(())?;
        Some(RouteConfig {
            name: name?,
            paths: vec![path?],
            methods: methods?,
            upstream: None,
            profile: profile?.to_owned(),
            policy,
            probe_headers: Vec::new(),
            jwks: extras.jwks,
        })
    };
    let route = route();
    Some((table, route))
}

/// Returns rules by which a saga's own answer is stored, whatever its status is.
fn every_status_is_a_result() -> StatusRules {
    let classes: Vec<String> = (1..=5).map(|class| format!("{class}xx")).collect();
    StatusRules::new(&classes, &[], &[]).unwrap_or_else(|_| StatusRules::standard())
}

fn is_given(table: &Table<'_>, name: &'static str) -> bool {
    table.get(name).is_some_and(|value| value.span.given)
}

/// Notes a fault at each key that a saga can't have, and at each value that would weaken it.
fn refuse_other_keys(table: &Table<'_>) -> bool {
    let mut sound = true;
    for (name, why) in NOT_FOR_SAGAS {
        if let Some(value) = table.get(name).filter(|value| value.span.given) {
            value.fault(format!("a saga has no {name}: {why}"));
            sound = false;
        }
    }
    for (name, word, why) in WORDS_NOT_FOR_SAGAS {
        let value = table.get(name).filter(|value| value.span.given && value.is_text());
        if let Some(value) = value.filter(|value| value.text(word) == Some(word)) {
            value.fault(format!("\"{word}\" is not for sagas: {why}"));
            sound = false;
        }
    }
    let key = table.table("key", "a table such as { header = \"Idempotency-Key\" }");
    if let Some(value) = key.get("required").filter(|value| value.span.given)
        && value.boolean() == Some(false)
    {
        value.fault("a saga always requires a key: remove it");
        sound = false;
    }
    sound
}
