//! The standard policy: the rules of a route that sets none.

use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use http::header::{AUTHORIZATION, COOKIE, HeaderName};

use super::policy::{
    CallerRule, Dialect, FingerprintRule, KeyRule, KeySource, Mode, OnFailure, OnInFlight,
    OnMismatch, OnUncertain, Policy, ScopeRule,
};
use super::statuses::StatusRules;
use crate::key::KeySyntax;
use crate::key::path::PathCase;

const HOUR: Duration = Duration::from_secs(3600);

impl Policy {
    /// Returns the policy that a route of this name has by default: the profile "ietf" of
    /// `config/profiles.toml`. A test compares the two. `response_timeout` is how long an uncertain
    /// operation rests.
    pub fn standard(route: &str, response_timeout: Duration) -> Policy {
        Policy {
            route: Arc::from(route),
            mode: Mode::Enforce,
            path_case: PathCase::Sensitive,
            key: KeyRule {
                source: KeySource::Sent {
                    header: Some(HeaderName::from_static("idempotency-key")),
                    body: None,
                    form: None,
                },
                required: false,
                min_length: 1,
                max_length: 255,
                syntax: KeySyntax::Lenient,
            },
            by_path: false,
            echo_key: false,
            upstream_key: None,
            scope: ScopeRule::Shared,
            caller: CallerRule::Headers(vec![
                AUTHORIZATION,
                HeaderName::from_static("x-api-key"),
                COOKIE,
            ]),
            fingerprint: FingerprintRule::Json(Vec::new()),
            on_in_flight: OnInFlight::Reject,
            wait_timeout: Duration::from_secs(10),
            on_mismatch: OnMismatch::Reject,
            mismatch_status: StatusCode::UNPROCESSABLE_ENTITY,
            on_uncertain: OnUncertain::Hold,
            uncertain_after: response_timeout,
            statuses: StatusRules::standard(),
            drop_headers: Vec::new(),
            redact: Vec::new(),
            retention: 24 * HOUR,
            tombstone: Duration::ZERO,
            unsettled_retention: 30 * 24 * HOUR,
            lease: Duration::from_secs(30),
            on_failure: OnFailure::FailClosed,
            stripe_should_retry: false,
            errors: Dialect::Problem,
            fields: Vec::new(),
            publish: None,
            resource: None,
            cors: None,
            explain: false,
        }
    }
}
