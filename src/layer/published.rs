//! The published policy: the document at `/.well-known/idempotency`. The IETF draft
//! (draft-ietf-httpapi-idempotency-key-header, section 2) asks resources to publish when keys
//! expire and which form they have.
//!
//! Danger: anybody may read the document. So it has only the facts that a client needs to send a
//! request and to understand the answer. It has no names, upstreams, scopes, callers or parts of
//! derived keys.

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use serde_json::{Value, json};

use super::tagged::TaggedDocument;
use crate::engine::{
    FingerprintRule, KeySource, Mode, OnInFlight, OnMismatch, Policy, ResourceRule,
};
use crate::gate::AnswerBody;
use crate::key::KeySyntax;
use crate::refusal::{RefusalKind, RefusalRenderer};
use crate::route::{Route, Routes};

/// The path of the document.
const PATH: &str = "/.well-known/idempotency";
/// A policy changes rarely, and most clients read it at their own start: five minutes of staleness
/// do no harm.
const FRESH: HeaderValue = HeaderValue::from_static("public, max-age=300");

/// The document, rendered once.
#[derive(Debug)]
pub(super) struct Published(TaggedDocument);

impl Published {
    /// Renders the policy of these routes.
    pub fn of(routes: &Routes, renderer: &RefusalRenderer) -> Published {
        let all: Vec<_> = routes.iter().collect();
        // The first match wins: an unprotected route matters only if it hides a later protected
        // route.
        let last = all
            .iter()
            .rposition(|route| !protected_methods(route).is_empty())
            .map_or(0, |at| at + 1);
        let listed: Vec<Value> =
            all[..last].iter().map(|route| describe(route, renderer)).collect();
        let body = Bytes::from(json!({ "routes": listed }).to_string());
        Published(TaggedDocument::new("published policy", body))
    }

    /// Returns whether a request that no route covers is for the document.
    pub fn is_asked<B>(request: &Request<B>) -> bool {
        request.uri().path() == PATH && matches!(*request.method(), Method::GET | Method::HEAD)
    }

    /// Returns the answer to a request with this method and these fields.
    pub fn answer<B>(&self, method: &Method, asked: &HeaderMap) -> Response<AnswerBody<B>> {
        self.0.answer(method, asked, FRESH)
    }
}

/// Returns the methods of the requests that a key protects. Reads of a resource have no key.
fn protected_methods(route: &Route) -> Vec<&str> {
    let policy = &route.policy;
    let is_protected = |method: &&Method| {
        policy.mode == Mode::Enforce
            && (policy.resource.is_none() || !ResourceRule::is_read(method))
    };
    route.methods.iter().filter(is_protected).map(Method::as_str).collect()
}

fn describe(route: &Route, renderer: &RefusalRenderer) -> Value {
    let policy = &route.policy;
    let methods = protected_methods(route);
    if methods.is_empty() {
        let methods: Vec<&str> = route.methods.iter().map(Method::as_str).collect();
        return json!({ "paths": route.paths, "methods": methods, "protected": false });
    }
    json!({
        "paths": route.paths,
        "methods": methods,
        "protected": true,
        "key": key(policy),
        "compared": compared(&policy.fingerprint),
        // Cut to whole seconds: a result is kept at least as long as the document promises.
        "retention_seconds": policy.retention.as_secs(),
        "duplicates": duplicates(policy, renderer),
    })
}

/// Describes the place and the form of the key.
fn key(policy: &Policy) -> Value {
    let rule = &policy.key;
    match &rule.source {
        KeySource::Derived(_) => json!({ "derived": true }),
        KeySource::Sent { header, body, form } => {
            let mut key = json!({
                "required": rule.required,
                "syntax": syntax(rule.syntax),
                "max_length": rule.max_length,
            });
            if rule.min_length > 1 {
                key["min_length"] = rule.min_length.into();
            }
            if let Some(header) = header {
                key["header"] = header.as_str().into();
            }
            if let Some(body) = body {
                key["body"] = body.to_string().into();
            }
            if let Some(form) = form {
                key["form"] = form.as_str().into();
            }
            key
        }
    }
}

/// Describes the answers to requests with a used key. `may_retry`: whether the same request may be
/// sent again with the same key.
fn duplicates(policy: &Policy, renderer: &RefusalRenderer) -> Value {
    let refused = |status: u16, kind: RefusalKind, may_retry| {
        let problem_type = renderer.problem_type(kind.problem_name());
        json!({ "status": status, "type": problem_type, "may_retry": may_retry })
    };
    let conflict = StatusCode::CONFLICT.as_u16();
    let comes_back =
        policy.uncertain_retry_after().is_some() || policy.errors.sends_retry_after_while_held();
    let reused = refused(policy.mismatch_status.as_u16(), RefusalKind::KeyReused, false);
    let mut in_flight = refused(conflict, RefusalKind::InFlight, true);
    if policy.on_in_flight == OnInFlight::Wait {
        in_flight["after_seconds"] = policy.wait_timeout.as_secs().into();
    }
    let mut cases = json!({
        "completed": { "replayed": true },
        "in_flight": in_flight,
        "another_request": match policy.on_mismatch {
            OnMismatch::Reject => reused.clone(),
            OnMismatch::Replay => json!({ "replayed": true }),
            OnMismatch::Supersede => json!({ "executed": true }),
        },
        "another_caller": reused,
        "uncertain": refused(conflict, RefusalKind::OutcomeUncertain, comes_back),
    });
    if policy.keeps_tombstones() {
        let mut expired = refused(conflict, RefusalKind::ResultExpired, false);
        expired["for_seconds"] = policy.tombstone.as_secs().into();
        cases["expired"] = expired;
    }
    cases
}

fn syntax(syntax: KeySyntax) -> &'static str {
    match syntax {
        KeySyntax::Lenient => "lenient",
        KeySyntax::Strict => "strict",
        KeySyntax::Bare => "bare",
        KeySyntax::UuidV4 => "uuid4",
        KeySyntax::Uuid => "uuid",
        KeySyntax::Word => "word",
    }
}

fn compared(rule: &FingerprintRule) -> &'static str {
    match rule {
        FingerprintRule::Json(_) => "json",
        FingerprintRule::Raw => "raw",
        FingerprintRule::WithoutBody => "none",
    }
}
