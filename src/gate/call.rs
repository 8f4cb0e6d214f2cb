//! Internal calls: the gateway's own components (a sink, a saga) run operations here, and nowhere
//! else.
//!
//! A call is an operation like a client's: it is claimed, attempted and settled by the same code,
//! under a lease, a fence and the send rule, with events, metrics and drain. So the upstream sees
//! it at most once, whichever gateway calls and however often.
//!
//! # Reserved identities
//! No client's request can reach the record of a call, whatever its route, scope, caller, key and
//! configuration. A slot is the hash of route, scope, key and variant, each with its length. The
//! scope of a call is hashed for the purpose `scope:internal`. Every client's scope, also one from
//! a token, a cookie or a certificate, is hashed for `scope:none` or `scope:fields`. The purpose is
//! the first part of the hash, so equal scopes would be a collision of SHA-256. The caller has a
//! purpose of its own as well (`caller:internal`): a client that met the slot by a collision would
//! still get `key-reused`, and never the stored answer.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Request, StatusCode};

use super::answer::SettledAnswer;
use super::claim::records::STORE_RETRY_AFTER;
use super::claim::{AdmitResult, Sender};
use super::context::RequestContext;
use super::intake::fingerprint::body_hash;
use super::intake::upstream_key::UpstreamKeyPlacement;
use super::intake::{Content, OperationKey, RequestedOperation, key_in_head};
use super::run::IdentifiedRequest;
use super::state::{Gate, ProtectedRoute};
use super::upstream_service::UpstreamService;
use crate::engine::{KeySource, Policy, Side, any_chosen, chosen};
use crate::key::{
    Caller, Hashing, OperationParts, Reading, Scope, Slot, Space, fingerprint, key_field_value,
};
use crate::record::{Reply, ReplyBody};
use crate::refusal::Refusal;
use crate::telemetry::Answer;

/// The component that calls, by its configured name. It is the reserved scope and the caller of its
/// operations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InternalCaller<'n> {
    /// A sink of the outbox.
    Sink(&'n str),
    /// A saga.
    Saga(&'n str),
}

/// An operation of the gateway itself. Calls with the same route, caller and key are one operation:
/// it runs once, and a call with another request is refused.
#[derive(Clone, Copy)]
pub struct InternalOperation<'o> {
    /// The route: its policy decides how the operation is protected, and its name is part of the
    /// identity. The route needs a header field for the key.
    pub guarded: &'o Arc<ProtectedRoute>,
    /// The calling component.
    pub caller: InternalCaller<'o>,
    /// The key, in plain text. The upstream gets it as it gets a client's key.
    pub key: &'o str,
}

/// The outcome of a call.
#[derive(Debug, Clone, PartialEq)]
pub enum CallOutcome {
    /// The upstream has answered, and the store keeps the answer for the route's retention.
    Answered {
        /// The operation.
        operation: Slot,
        /// The stored reply. Its body is [`ReplyBody::NotStored`] where the store does not keep it;
        /// a repeated call then gets no fields either.
        reply: Arc<Reply>,
        /// Whether an earlier attempt of the operation was answered.
        replayed: bool,
    },
    /// The upstream has answered that it did nothing. The next call with the same key runs.
    Released {
        /// The operation.
        operation: Slot,
        /// The upstream's answer, which is not stored.
        reply: Arc<Reply>,
    },
    /// Nothing was sent, and the operation is as it was before.
    NotSent {
        /// The reason.
        refusal: Refusal,
        /// Whether the same call may succeed later. Otherwise the call itself is wrong.
        retryable: bool,
    },
    /// Another attempt of the operation is active, in this gateway or another one.
    InFlight {
        /// The operation.
        operation: Slot,
        /// When to call again.
        retry_after: Duration,
    },
    /// It is unknown whether the upstream has executed the operation: by this attempt, or by an
    /// earlier one that nobody has settled yet.
    Uncertain {
        /// The operation.
        operation: Slot,
        /// When to call again; `None` where an operator has to settle the operation first.
        retry_after: Option<Duration>,
    },
    /// The operation was completed, and the retention of its answer has ended.
    Expired {
        /// The operation.
        operation: Slot,
    },
    /// The store is unavailable. Nothing was sent.
    StoreUnavailable {
        /// When to call again.
        retry_after: Duration,
    },
    /// The process shuts down. Nothing was sent; another gateway may call.
    Draining,
}

impl Gate {
    /// Runs an operation of the gateway itself, or returns the outcome that it already has.
    ///
    /// `request` has the method, the target, the fields (credentials too) and the body; the key's
    /// field is added here. Method, target and body are the fingerprint: a call with another
    /// fingerprint is refused as `key-reused`. `request` also carries the extensions that `service`
    /// needs to find the upstream.
    ///
    /// The attempt runs in a task of its own. A caller that is dropped cancels nothing, and gets
    /// the outcome by calling again. A call does not wait for an active attempt of its operation.
    /// Quotas do not count calls, and calls do not take permits from clients.
    pub async fn call<S, B>(
        self: &Arc<Self>,
        operation: InternalOperation<'_>,
        request: Request<Bytes>,
        service: S,
    ) -> CallOutcome
    where
        S: UpstreamService<B>,
        B: Send + 'static,
    {
        // Checked before the claim: a claim of an ending process would be left to its lease.
        if self.tasks.is_closed() {
            return CallOutcome::Draining;
        }
        let guarded = operation.guarded;
        let identity = operation.identity(&self.settings.hashing);
        let slot = identity.0;
        let called = self.call_identified(operation, identity, request, service).await;
        let (outcome, answer) = match called {
            Ok(settled) => answered(settled),
            Err(refusal) => {
                if matches!(refusal, Refusal::OutcomeUncertain { status: None, .. }) {
                    guarded.meter.count_held();
                }
                refused(slot, refusal)
            }
        };
        guarded.meter.count(answer);
        tracing::debug!(
            route = %guarded.route.policy.route,
            operation = %slot,
            outcome = answer.name(),
            "internal call"
        );
        outcome
    }

    /// Returns the settled answer.
    async fn call_identified<S, B>(
        self: &Arc<Self>,
        operation: InternalOperation<'_>,
        identity: (Slot, Caller),
        request: Request<Bytes>,
        service: S,
    ) -> Result<SettledAnswer<S::ResponseBody>, Refusal>
    where
        S: UpstreamService<B>,
        B: Send + 'static,
    {
        let guarded = operation.guarded;
        let policy = &guarded.route.policy;
        let (mut parts, body) = request.into_parts();
        let limit = self.settings.request_body;
        if body.len() > limit {
            return Err(Refusal::BodyTooLarge { limit });
        }
        let mut hold = self.budget.hold();
        if !hold.grow(body.len()) {
            return Err(Refusal::Overloaded);
        }
        let key = put_key(policy, operation.key, &mut parts.headers)?;
        let content = Content::from(body.clone());
        let requested = operation.requested(identity, &self.settings.hashing, &parts, &body);
        let upstream_key = UpstreamKeyPlacement::new(policy, &parts, &body, &key)?;
        let permit = self.permit_for(Sender::Gateway, None)?;
        let mut request = IdentifiedRequest {
            sender: Sender::Gateway,
            context: RequestContext::from_extensions(&parts.extensions),
            parts: Box::new(parts),
            key,
            _content_hold: hold.beside(),
            body,
            content,
            upstream_key,
            hold,
            service,
        };
        match Box::pin(self.admit_identified(guarded, requested, permit, &mut request)).await? {
            AdmitResult::Run(claimed) => {
                Box::pin(self.run_claimed(guarded, claimed, request)).await
            }
            AdmitResult::Replay(slot, reply) => {
                Ok(SettledAnswer::replayed(slot, reply, request.hold))
            }
            // Never admitted so for the gateway's own calls: see `Sender::passes_without_store`.
            AdmitResult::Unprotected => {
                Err(Refusal::StoreUnavailable { retry_after: STORE_RETRY_AFTER })
            }
        }
    }
}

impl InternalCaller<'_> {
    fn component_and_name(&self) -> (&'static str, &str) {
        match self {
            InternalCaller::Sink(name) => ("sink", name),
            InternalCaller::Saga(name) => ("saga", name),
        }
    }

    fn scope(&self) -> Scope {
        let (component, name) = self.component_and_name();
        Scope::internal(component, name)
    }

    fn caller(&self) -> Caller {
        let (component, name) = self.component_and_name();
        Caller::internal(component, name)
    }
}

impl InternalOperation<'_> {
    /// Returns the slot of the operation, and the caller as the record has it.
    fn identity(&self, hashing: &Hashing) -> (Slot, Caller) {
        hashing.identity(&self.named(&self.caller.scope()), self.caller.caller())
    }

    fn named<'n>(&'n self, scope: &'n Scope) -> OperationParts<'n> {
        OperationParts {
            // Enforced, whatever the route's mode is: a call is never unprotected.
            space: Space::Enforced,
            route: &self.guarded.route.policy.route,
            scope,
            key: self.key.as_bytes(),
            // Empty, also on routes with one record per fingerprint or path: the key alone names a
            // call, so another request under the same key is refused and does not run.
            variant: &[],
        }
    }

    fn requested(
        &self,
        (slot, hashed_caller): (Slot, Caller),
        hashing: &Hashing,
        parts: &Parts,
        body: &Bytes,
    ) -> RequestedOperation {
        let policy = &self.guarded.route.policy;
        let (scope, caller) = (self.caller.scope(), self.caller.caller());
        let reading = Reading::new(body);
        let fields = if any_chosen(&policy.fields, Side::Request) {
            let document = reading.document();
            document.map(|found| chosen(&policy.fields, Side::Request, found)).unwrap_or_default()
        } else {
            BTreeMap::new()
        };
        let how = body_hash(&policy.fingerprint, &parts.headers);
        let (path, query) = (parts.uri.path(), parts.uri.query());
        RequestedOperation {
            slot,
            caller: hashed_caller,
            fingerprint: fingerprint(parts.method.as_str(), path, query, reading, how),
            tenant: scope.into(),
            others: hashing.other_identities(&self.named(&scope), caller),
            fields,
        }
    }
}

/// Writes the key into the route's field, and reads it back as a client's key is read: the same
/// rules apply to it.
fn put_key(policy: &Policy, key: &str, headers: &mut HeaderMap) -> Result<OperationKey, Refusal> {
    let KeySource::Sent { header: Some(name), .. } = &policy.key.source else {
        return Err(no_key_field());
    };
    let value = HeaderValue::try_from(key_field_value(key, policy.key.syntax));
    let value =
        value.map_err(|_| Refusal::KeyInvalid { why: crate::key::KeyError::Character.into() })?;
    headers.insert(name, value);
    key_in_head(&policy.key, name, headers)?.map(OperationKey::Sent).ok_or_else(no_key_field)
}

fn no_key_field() -> Refusal {
    let what = "a header field for the key, in the route's configuration,".to_owned();
    Refusal::KeyMissing { what, body: None }
}

fn answered<B>(settled: SettledAnswer<B>) -> (CallOutcome, Answer) {
    // Dropping the rest of a body that is too large to store closes the upstream's connection.
    let SettledAnswer { slot, answer, reply, .. } = settled;
    let replayed = answer == Answer::Replayed;
    let outcome = match answer {
        Answer::Released => CallOutcome::Released { operation: slot, reply },
        _ => CallOutcome::Answered { operation: slot, reply, replayed },
    };
    (outcome, answer)
}

fn unavailable(retry_after: Duration) -> (CallOutcome, Answer) {
    (CallOutcome::StoreUnavailable { retry_after }, Answer::StoreUnavailable)
}

/// Returns the outcome of a refused call. `slot` is the operation, where the refusal does not name
/// it.
fn refused(slot: Slot, refusal: Refusal) -> (CallOutcome, Answer) {
    let operation = refusal.operation().unwrap_or(slot);
    let (retryable, answer) = match refusal {
        Refusal::InFlight { retry_after, .. } => {
            return (CallOutcome::InFlight { operation, retry_after }, Answer::InFlight);
        }
        Refusal::OutcomeUncertain { retry_after, .. } => {
            return (CallOutcome::Uncertain { operation, retry_after }, Answer::Uncertain);
        }
        Refusal::StoreUnavailable { retry_after } => return unavailable(retry_after),
        Refusal::ResultExpired { .. } => {
            return (CallOutcome::Expired { operation }, Answer::ResultExpired);
        }
        Refusal::ResponseNotStored { status, .. } => {
            let reply = Arc::new(Reply {
                status: StatusCode::from_u16(status).unwrap_or(StatusCode::OK),
                headers: HeaderMap::new(),
                body: ReplyBody::NotStored,
                trailers: None,
            });
            let outcome = CallOutcome::Answered { operation, reply, replayed: true };
            return (outcome, Answer::ResponseNotStored);
        }
        Refusal::NotSent { .. } => (true, Answer::NotSent),
        Refusal::UpstreamUnreachable { .. } => (true, Answer::UpstreamUnreachable),
        Refusal::Overloaded | Refusal::QuotaReached { .. } => (true, Answer::Overloaded),
        Refusal::KeyReused { .. } => (false, Answer::KeyReused),
        Refusal::KeyMissing { .. } => (false, Answer::KeyMissing),
        Refusal::KeyInvalid { .. } => (false, Answer::KeyInvalid),
        Refusal::BodyTooLarge { .. } => (false, Answer::BodyTooLarge),
        Refusal::RecordUnreadable { .. } => (true, Answer::StoreUnavailable),
        Refusal::BodyUnreadable => (false, Answer::BodyUnreadable),
        // A key in the body of an encoded request can't be written. The others are refusals of a
        // client's bytes, scope or path, and of requests that pass through.
        Refusal::ScopeMissing { .. }
        | Refusal::ScopeRepeated { .. }
        | Refusal::ScopeInvalid { .. }
        | Refusal::ScopeUnavailable
        | Refusal::UnsupportedEncoding
        | Refusal::UpstreamFailed { .. }
        | Refusal::BodyTimeout
        | Refusal::BodyBroken
        | Refusal::PathAmbiguous
        | Refusal::MethodNotAllowed
        | Refusal::HostInvalid
        | Refusal::Malformed { .. }
        | Refusal::HeaderTooLarge { .. } => (false, Answer::BadRequest),
    };
    (CallOutcome::NotSent { refusal, retryable }, answer)
}
