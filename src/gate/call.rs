//! Internal calls: the gateway's own components, such as a sink or a saga, run their operations
//! only with [`Gate::call`].
//!
//! A call is protected like a client's request. The same code claims, attempts and settles the
//! operation, under a lease, a fence and the send rule. Calls also write events and count in
//! metrics, and a shutdown waits for them. Several gateways may make the same call, and one gateway
//! may repeat it: the upstream executes the operation at most once. The exception is an uncertain
//! operation that the route (`on_uncertain = "forward"`) or an operator sends again.
//!
//! # Reserved identities
//! No request of a client can reach the record of a call, with any route, scope, caller, key or
//! configuration. A slot is the hash of route, scope, key and variant, each with its length. A
//! scope is itself a hash, and the first input of this hash is a label. The label of a call's scope
//! is `scope:internal`. The label of a client's scope is `scope:none` or `scope:fields`, even if
//! the scope comes from a token, a cookie or a certificate. So a call and a client could have the
//! same scope only through a collision of SHA-256. The caller of a call has its own label too,
//! `caller:internal`. After a collision of two slots a client would therefore get `key-reused`, and
//! never the stored answer.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Request, StatusCode};

use super::answer::SettledAnswer;
use super::claim::records::STORE_RETRY_AFTER;
use super::claim::{AdmitResult, CallTerms, Sender};
use super::context::RequestContext;
use super::intake::fingerprint::body_hash;
use super::intake::upstream_key::UpstreamKeyPlacement;
use super::intake::{Content, OperationKey, RequestedOperation, key_in_head};
use super::resource_write::ResourceWrite;
use super::run::IdentifiedRequest;
use super::state::{Gate, ProtectedRoute};
use super::upstream_service::UpstreamService;
use crate::engine::{KeySource, Policy, Side, any_chosen, chosen};
use crate::key::{
    Caller, Hashing, OperationParts, Reading, Scope, Slot, Space, fingerprint, key_field_value,
};
use crate::record::{Record, Reply, ReplyBody};
use crate::refusal::Refusal;
use crate::telemetry::Answer;

/// The calling component, with its configured name. Component and name together are the reserved
/// scope and the caller of its operations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InternalCaller<'n> {
    /// A sink of the outbox.
    Sink(&'n str),
    /// A saga.
    Saga(&'n str),
}

/// An operation of the gateway itself. Calls with the same route, caller and key are one operation.
/// It runs once, and a call with a different request is refused.
#[derive(Clone, Copy)]
pub struct InternalOperation<'o> {
    /// The route. Its policy decides how the operation is protected, and its name is part of the
    /// operation's identity. The route must have a header field for the key.
    pub guarded: &'o Arc<ProtectedRoute>,
    /// The calling component.
    pub caller: InternalCaller<'o>,
    /// The key, in plain text. The gate passes it to the upstream like a client's key.
    pub key: &'o str,
    /// Number of events that led to the call; 0 if a client's request did. Events of the operation
    /// carry it on, so that a circle of calls ends.
    pub hops: u8,
    /// Whether the operation began earlier. Such a call never begins the operation anew, even if
    /// its record and its tombstone are gone.
    pub continues: bool,
    /// Whether the call only finds out what became of the operation. An answer to a probe that
    /// shows that nothing was done releases the operation, instead of sending it again. A route
    /// that sends uncertain operations again still does: it has no other way to find out.
    pub only_asks: bool,
}

/// The outcome of a call.
#[derive(Debug, Clone, PartialEq)]
pub enum CallOutcome {
    /// The upstream has answered, and the store keeps the answer for the route's retention.
    Answered {
        /// The operation.
        operation: Slot,
        /// The stored reply. If the store does not keep the body, the body is
        /// [`ReplyBody::NotStored`], and a repeated call gets no header fields either.
        reply: Arc<Reply>,
        /// Whether the reply comes from another attempt of the operation, a probe or an operator.
        replayed: bool,
    },
    /// The upstream answered that it did nothing. The next call with the same key runs.
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
        /// Whether the same call may succeed later. If not, the call itself is wrong.
        retryable: bool,
    },
    /// Another attempt of the operation is active, in this gateway or in another.
    InFlight {
        /// The operation.
        operation: Slot,
        /// How long to wait before the next call.
        retry_after: Duration,
    },
    /// It is unknown whether the upstream has executed the operation, in this attempt or in an
    /// earlier attempt that nobody has settled yet.
    Uncertain {
        /// The operation.
        operation: Slot,
        /// How long to wait before the next call; `None` if an operator has to settle the operation
        /// first.
        retry_after: Option<Duration>,
    },
    /// The operation was completed, and the retention of its answer has ended.
    Expired {
        /// The operation.
        operation: Slot,
    },
    /// The operation is a step of a saga that has gone back: it may never run. Nothing was sent.
    Barred {
        /// The operation.
        operation: Slot,
    },
    /// The call continues an operation, and there is nothing to continue. Nothing was sent.
    NothingToContinue {
        /// The operation.
        operation: Slot,
        /// Whether the operation was provably not executed. If not, its record and its tombstone
        /// are gone, and nobody knows.
        was_released: bool,
    },
    /// The store is unavailable. Nothing was sent.
    StoreUnavailable {
        /// How long to wait before the next call.
        retry_after: Duration,
    },
    /// The process is shutting down. Nothing was sent, and another gateway may make the call.
    Draining,
}

/// A call without a refusal.
enum Called<B> {
    Settled(SettledAnswer<B>),
    NothingToContinue { operation: Slot, was_released: bool },
}

impl Gate {
    /// Returns the slot in which a call's record is stored, unless it was stored under an earlier
    /// hashing secret.
    pub fn slot_of_call(&self, operation: &InternalOperation<'_>) -> Slot {
        operation.identity(&self.settings.hashing).0
    }

    /// Returns the slot of a call on the route with this name, as [`Gate::slot_of_call`] does.
    pub fn slot_of_key(&self, route: &str, caller: InternalCaller<'_>, key: &str) -> Slot {
        let scope = caller.scope();
        self.settings.hashing.identity(&named(route, &scope, key), caller.caller()).0
    }

    /// Returns whether a component of gateways called the operation of a record. A released record
    /// has no caller, so nothing is known about it.
    pub fn is_called_by(&self, record: &Record, caller: InternalCaller<'_>) -> bool {
        let callers = self.settings.hashing.stored_callers(caller.caller());
        record.caller.is_some_and(|caller| callers.contains(&caller))
    }

    /// Runs an operation of the gateway itself. If the operation already has an outcome, returns
    /// that outcome.
    ///
    /// `request` has the method, the target, the header fields (including credentials) and the
    /// body. This method adds the header field of the key. The fingerprint is a hash of method,
    /// target and body. A call with another fingerprint is refused as `key-reused`. `request` also
    /// carries the extensions that `service` needs to find the upstream.
    ///
    /// The attempt runs in a task of its own. It continues if the caller drops this future, and the
    /// next call returns its outcome. A call does not wait for an active attempt of its operation.
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
        // Checked before the claim: an ending process could not settle a new claim before the
        // claim's lease ends.
        if self.tasks.is_closed() {
            return CallOutcome::Draining;
        }
        let guarded = operation.guarded;
        let identity = operation.identity(&self.settings.hashing);
        let slot = identity.0;
        let called = self.call_identified(operation, identity, request, service).await;
        let (outcome, answer) = match called {
            Ok(Called::Settled(settled)) => answered(settled),
            Ok(Called::NothingToContinue { operation, was_released }) => {
                let answer = if was_released { Answer::Released } else { Answer::ResultExpired };
                (CallOutcome::NothingToContinue { operation, was_released }, answer)
            }
            Err(refusal) => {
                let is_held = matches!(refusal, Refusal::OutcomeUncertain { status: None, .. });
                if is_held && !operation.continues {
                    guarded.meter.count_held();
                }
                refused(slot, refusal)
            }
        };
        // A look at a call is no answer to a request.
        if !operation.continues || answer == Answer::Executed {
            guarded.meter.count(answer);
        }
        tracing::debug!(
            route = %guarded.route.policy.route,
            operation = %slot,
            outcome = answer.name(),
            "internal call"
        );
        outcome
    }

    /// Runs the identified operation, and returns its settled answer.
    async fn call_identified<S, B>(
        self: &Arc<Self>,
        operation: InternalOperation<'_>,
        identity: (Slot, Caller),
        request: Request<Bytes>,
        service: S,
    ) -> Result<Called<S::ResponseBody>, Refusal>
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
        let InternalOperation { hops, continues, only_asks, .. } = operation;
        let sender = Sender::Gateway(CallTerms { hops, continues, only_asks });
        let permit = self.permit_for(sender, None)?;
        let mut parts = Box::new(parts);
        let write = ResourceWrite::take(policy, &mut parts)?;
        let mut request = IdentifiedRequest {
            sender,
            write,
            context: RequestContext::from_extensions(&parts.extensions),
            parts,
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
                Box::pin(self.run_claimed(guarded, claimed, request)).await.map(Called::Settled)
            }
            AdmitResult::Replay(slot, reply) => {
                Ok(Called::Settled(SettledAnswer::replayed(slot, reply, request.hold)))
            }
            AdmitResult::NothingToContinue { slot, was_released } => {
                Ok(Called::NothingToContinue { operation: slot, was_released })
            }
            // Does not occur: `Sender::passes_without_store` is false for the gateway's own calls.
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
    /// Returns the slots of the operation under all hashing secrets, the first secret's first.
    pub(super) fn slots(&self, hashing: &Hashing) -> Vec<Slot> {
        let scope = self.caller.scope();
        let others = hashing.other_identities(&self.named(&scope), self.caller.caller());
        let others = others.into_iter().map(|(slot, _)| slot);
        std::iter::once(self.identity(hashing).0).chain(others).collect()
    }

    /// Returns the slot of the operation, and the caller as the record stores it.
    fn identity(&self, hashing: &Hashing) -> (Slot, Caller) {
        hashing.identity(&self.named(&self.caller.scope()), self.caller.caller())
    }

    fn named<'n>(&'n self, scope: &'n Scope) -> OperationParts<'n> {
        named(&self.guarded.route.policy.route, scope, self.key)
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

fn named<'n>(route: &'n str, scope: &'n Scope, key: &'n str) -> OperationParts<'n> {
    OperationParts {
        // Enforced in every mode of the route, because a call is never unprotected.
        space: Space::Enforced,
        route,
        scope,
        key: key.as_bytes(),
        // Empty even on routes with one record per fingerprint or path. So a different request with
        // the same key finds the record of the first one, and is refused.
        variant: &[],
    }
}

/// Writes the key into the route's header field, and then reads the field like a client's. So the
/// rules for clients' keys also apply to this key.
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
    // A body that is too large to store is dropped here, which closes the upstream's connection.
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

/// Returns the outcome of a refused call. `slot` is the operation if the refusal does not name one.
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
        Refusal::Barred { .. } => return (CallOutcome::Barred { operation }, Answer::NotSent),
        // Does not occur: a saga is no operation of the gateway itself.
        Refusal::SagaStuck { .. } => (true, Answer::SagaStuck),
        Refusal::NotSent { .. } => (true, Answer::NotSent),
        Refusal::UpstreamUnreachable { .. } => (true, Answer::UpstreamUnreachable),
        Refusal::Overloaded | Refusal::QuotaReached { .. } => (true, Answer::Overloaded),
        Refusal::OutboxFull { .. } => (true, Answer::OutboxFull),
        Refusal::ResourceBusy { .. } => (true, Answer::ResourceBusy),
        Refusal::ResourceUncertain { .. } => (true, Answer::ResourceUncertain),
        Refusal::ResourceUnreadable => (true, Answer::ResourceUnreadable),
        Refusal::PreconditionFailed { .. } | Refusal::MergeConflict { .. } => {
            (false, Answer::PreconditionFailed)
        }
        Refusal::PreconditionRequired => (false, Answer::PreconditionRequired),
        Refusal::KeyReused { .. } => (false, Answer::KeyReused),
        Refusal::KeyMissing { .. } => (false, Answer::KeyMissing),
        Refusal::KeyInvalid { .. } => (false, Answer::KeyInvalid),
        Refusal::BodyTooLarge { .. } => (false, Answer::BodyTooLarge),
        Refusal::RecordUnreadable { .. } => (true, Answer::StoreUnavailable),
        Refusal::BodyUnreadable => (false, Answer::BodyUnreadable),
        // `UnsupportedEncoding`: the key can't be written into an encoded body. The other refusals
        // here concern a client's bytes, scope, path or saga, or a request without protection.
        Refusal::ScopeMissing { .. }
        | Refusal::ScopeRepeated { .. }
        | Refusal::ScopeInvalid { .. }
        | Refusal::ScopeUnavailable
        | Refusal::SagaNotFound
        | Refusal::ConditionInvalid { .. }
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
