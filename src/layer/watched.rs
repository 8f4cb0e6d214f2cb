//! The watcher of a request in shadow mode, once its body has told whom to watch.

use std::sync::{Arc, Mutex, PoisonError};

use crate::engine::Outcome;
use crate::gate::{Refusal, ShadowObserver};

/// Shared by the body, which tells whom to watch, and the request, which tells how it ended.
#[derive(Clone, Default)]
pub(super) struct Watched(Arc<Mutex<Option<ShadowObserver>>>);

impl Watched {
    /// The body is whole: this is watched, if there is room.
    pub fn put(&self, observation: Option<ShadowObserver>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = observation;
    }

    /// The request has ended so.
    pub fn ended(&self, outcome: Outcome) {
        if let Some(observation) = self.0.lock().unwrap_or_else(PoisonError::into_inner).take() {
            observation.ended(outcome);
        }
    }
}

/// What enforcing would have answered to a request that it can't identify.
pub(super) fn would_refuse(problem: &Refusal) -> &'static str {
    match problem {
        Refusal::KeyMissing { .. } => "refuse_key_missing",
        Refusal::KeyInvalid { .. } => "refuse_key_invalid",
        Refusal::ScopeMissing { .. } => "refuse_scope_missing",
        Refusal::ScopeInvalid { .. } | Refusal::ScopeRepeated { .. } => "refuse_scope_invalid",
        Refusal::ScopeUnavailable => "refuse_scope_unavailable",
        Refusal::UnsupportedEncoding => "refuse_unsupported_encoding",
        Refusal::BodyUnreadable => "refuse_body_unreadable",
        _ => "refuse",
    }
}
