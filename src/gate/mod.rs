//! The story of a protected request: identify, claim, forward in a task of its own, settle, answer.
//!
//! Danger: between the claim and the settled record the process may be stopped, the client may leave and the store may
//! fall silent. Nothing here guesses: what can't be known becomes uncertain, and no answer leaves before it is stored.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http::request::Parts;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::clock::Clock;
use crate::engine::{Mode, OnMismatch};
use crate::entropy::Entropy;
use crate::key::Hashing;
use crate::route::Route;
use crate::store::Store;
use crate::telemetry::{Answer, Meter, RouteMeter, Trail, Work};
use crate::token::Keyring;

mod answer;
mod attempt;
mod background;
mod budget;
mod call;
mod claim;
mod close_delimited;
mod explain;
mod identity_check;
mod intake;
mod lookup;
mod operator;
mod outflow;
mod passing;
mod payload;
mod permits;
mod quota;
mod response;
mod run;
mod shadow;
mod share;
mod stream;
mod trailers;
mod upstream_service;

pub use crate::refusal::{ForwardError, Malformation, Refusal};
use answer::SettledAnswer;
pub use answer::{Answered, IDEMPOTENT_REPLAYED};
pub use attempt::lease::SendRule;
use background::ObservationBuffer;
pub use background::{reconcile, sweep};
pub use budget::{Budget, Hold};
pub use call::{CallOutcome, InternalCaller, InternalOperation};
use claim::{AdmitResult, Sender};
pub use close_delimited::CloseDelimited;
pub use explain::Explanation;
pub use identity_check::{IdentityCheckError, agree, notes};
pub use intake::{
    BodyKind, ClientSubject, Content, Identified, VerifiedScope, identify, keep_identifying_fields,
    wants_protection,
};
use intake::{CarriedKey, heavy_work};
pub use lookup::{LookupError, scope_names, whose_names};
pub use operator::OperatorError;
pub use outflow::Outflow;
pub use passing::ForwardPermit;
pub use payload::{AnswerBody, BoxError, Payload};
use permits::{InFlightPermits, Permits};
use quota::Quota;
use run::IdentifiedRequest;
pub use shadow::Observation;
pub use share::AddressShare;
pub use stream::{Movement, Stream};
pub use upstream_service::UpstreamService;

/// Claims whose fate is unknown that are given up at once, at most: each holds a record's head in memory until the store
/// answers again.
const GIVING_UP_MAX: usize = 10_000;

/// What a request takes in memory besides its bodies, at most: its fields, and the state of those who work on it.
const EXCHANGE_BYTES: usize = 96 * 1024;

/// What the gate needs to know besides the routes' policies.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Requests that are worked on at once: attempts, and requests that pass through.
    pub in_flight: usize,
    /// Duplicates held at once.
    pub waiters: usize,
    /// Duplicates held at once for one key.
    pub waiters_per_key: usize,
    /// Largest request body that is buffered, in bytes.
    pub request_body: usize,
    /// Largest response body that is stored, in bytes.
    pub response_body: usize,
    /// All buffered bodies together, in bytes.
    pub buffered_bytes: usize,
    /// New operations that one scope of a route may begin within the route's retention; 0 for any number.
    pub records_per_scope: usize,
    /// What identities are hashed with.
    pub hashing: Hashing,
    /// Whether records may have trailers, which version 0.1.0 does not read. Without, answers that have some are not stored.
    pub trailers: bool,
    /// How long the event log keeps what it is told; `None`: it is told nothing.
    pub log_keep: Option<Duration>,
}

impl Default for Settings {
    fn default() -> Settings {
        const MIB: usize = 1 << 20;
        Settings {
            in_flight: 5000,
            waiters: 5000,
            waiters_per_key: 64,
            request_body: MIB,
            response_body: MIB,
            buffered_bytes: 256 * MIB,
            records_per_scope: 0,
            hashing: Hashing::default(),
            trailers: false,
            log_keep: None,
        }
    }
}

impl Settings {
    /// How many of the buffered bytes one client address may hold: half of them, or what one request and its answer take
    /// at most, where that is more.
    fn address_bytes(&self) -> usize {
        let exchange =
            self.request_body.saturating_add(self.response_body).saturating_add(EXCHANGE_BYTES);
        (self.buffered_bytes / 2).max(exchange).min(self.buffered_bytes)
    }
}

/// A route as the gate runs it.
pub struct ProtectedRoute {
    /// The route.
    pub route: Arc<Route>,
    /// From sending a request to the end of its response.
    pub response_timeout: Duration,
    /// Its metrics.
    pub meter: RouteMeter,
    /// What its tokens are verified with, where its scope is in one.
    pub keyring: Option<Arc<Keyring>>,
}

/// The gate in front of an upstream. Shared by all connections.
pub struct Gate {
    store: Store,
    clock: Clock,
    entropy: Arc<Entropy>,
    meter: Meter,
    settings: Settings,
    budget: Budget,
    in_flight: InFlightPermits,
    waiters: Permits,
    /// Requests in shadow mode that are watched; they take no place from those that are protected.
    watched: Permits,
    giving_up: Permits,
    /// Calls of the gateway's own components; they take no permit from clients' requests.
    internal: Permits,
    /// Turns for heavy work.
    heavy: Arc<Semaphore>,
    quota: Arc<Quota>,
    observed: Arc<ObservationBuffer>,
    closed: Arc<AtomicBool>,
    tasks: TaskTracker,
    abandoned: CancellationToken,
}

impl Gate {
    /// A gate over a store.
    pub fn new(
        store: impl Into<Store>,
        clock: Clock,
        entropy: Entropy,
        meter: Meter,
        settings: Settings,
    ) -> Arc<Gate> {
        Arc::new(Gate {
            budget: Budget::new(
                settings.buffered_bytes,
                settings.address_bytes(),
                meter.buffered_bytes.clone(),
            ),
            in_flight: InFlightPermits::new(settings.in_flight),
            waiters: Permits::new(settings.waiters),
            watched: Permits::new(settings.in_flight),
            giving_up: Permits::new(GIVING_UP_MAX),
            internal: Permits::new(settings.in_flight),
            heavy: heavy_work::turns(),
            quota: Quota::new(settings.records_per_scope),
            observed: Arc::default(),
            closed: Arc::default(),
            tasks: TaskTracker::new(),
            abandoned: CancellationToken::new(),
            store: store.into(),
            clock,
            entropy: Arc::new(entropy),
            meter,
            settings,
        })
    }

    /// The same gate under other settings, for the requests to come. What is under way goes on under its own, and counts here:
    /// the two share their tasks, places, buffered bytes and counts, and end together.
    pub fn under(&self, settings: Settings) -> Arc<Gate> {
        Arc::new(Gate {
            store: self.store.clone(),
            clock: self.clock.clone(),
            entropy: self.entropy.clone(),
            meter: self.meter.clone(),
            budget: self.budget.limited_to(settings.buffered_bytes, settings.address_bytes()),
            in_flight: self.in_flight.limited_to(settings.in_flight),
            waiters: self.waiters.limited_to(settings.waiters),
            watched: self.watched.limited_to(settings.in_flight),
            giving_up: self.giving_up.clone(),
            internal: self.internal.limited_to(settings.in_flight),
            heavy: self.heavy.clone(),
            quota: self.quota.limited_to(settings.records_per_scope),
            observed: self.observed.clone(),
            closed: self.closed.clone(),
            tasks: self.tasks.clone(),
            abandoned: self.abandoned.clone(),
            settings,
        })
    }

    /// Answers a request of a protected route, whose body is read.
    ///
    /// The attempt runs in a task of its own: a client who leaves, or a future that is dropped, cancels nothing.
    pub async fn handle<S, B>(
        self: &Arc<Self>,
        guarded: &Arc<ProtectedRoute>,
        parts: Box<Parts>,
        body: Bytes,
        hold: Hold,
        service: S,
    ) -> Result<Answered<S::ResponseBody>, Refusal>
    where
        S: UpstreamService<B>,
        B: Send + 'static,
    {
        let policy = &guarded.route.policy;
        let turn = self.turn_to_read(&parts, &body).await?;
        let mut decoded = hold.beside();
        let content =
            Content::read(&parts.headers, &body, self.settings.request_body, &mut decoded).await?;
        let Some(identified) = identify(policy, &self.settings.hashing, &parts, &content)? else {
            return Box::pin(self.pass(guarded, parts, body, service, Answer::Passed)).await;
        };
        drop(turn);
        if self.closed.load(Ordering::Acquire) {
            // The process is about to end: a claim made now would be left to its lease.
            return Err(Refusal::Overloaded);
        }
        let upstream_key = CarriedKey::new(policy, &parts, &content, &body)?;
        let permit = self.permit_for(Sender::Client, AddressShare::of(&parts.extensions))?;
        let mut request = IdentifiedRequest {
            sender: Sender::Client,
            parts,
            body,
            content,
            _content_hold: decoded,
            upstream_key,
            hold,
            service,
        };
        match self.admit_identified(guarded, identified, permit, &mut request).await? {
            AdmitResult::Run(claimed) => {
                self.run_claimed(guarded, claimed, request).await?.into_response()
            }
            AdmitResult::Replay(slot, reply) => {
                SettledAnswer::replayed(slot, reply, request.hold).into_response()
            }
            AdmitResult::Unprotected => {
                tracing::warn!(route = %policy.route, "request forwarded without protection: the store is unavailable");
                // Only the upstream can still deduplicate, by the key.
                let (parts, body, _hold, service) = request.carry_key();
                Box::pin(self.pass(guarded, parts, body, service, Answer::Unprotected)).await
            }
        }
    }

    /// Forwards a request that no key protects.
    async fn pass<S, B>(
        &self,
        guarded: &ProtectedRoute,
        parts: Box<Parts>,
        body: Bytes,
        mut service: S,
        answer: Answer,
    ) -> Result<Answered<S::ResponseBody>, Refusal>
    where
        S: UpstreamService<B>,
    {
        let mut step = Trail::step(parts.extensions.get(), Work::Forward);
        step.result("failed");
        let idempotent = parts.method.is_idempotent();
        let permit = self.admit_passing(&parts.extensions, false)?;
        let mut request = Request::from_parts(*parts, Payload::whole(body, None));
        permit.accompany(&mut request);
        let sent = async {
            std::future::poll_fn(|cx| service.poll_ready(cx)).await?;
            service.call(request).await
        };
        match tokio::time::timeout(guarded.response_timeout, sent).await {
            Ok(Ok(response)) => {
                step.answered(response.status().as_u16());
                Ok(Answered {
                    response: response.map(|body| AnswerBody::stream(body).keeping(permit)),
                    answer,
                })
            }
            Ok(Err(error)) => Err(ForwardError::of(error.into()).unprotected(idempotent)),
            Err(_) => Err(ForwardError::TimedOut.unprotected(idempotent)),
        }
    }

    /// Reserves room for a request body.
    pub fn budget(&self) -> &Budget {
        &self.budget
    }

    /// The configured limits.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The process's metrics.
    pub fn meter(&self) -> &Meter {
        &self.meter
    }

    /// The process's randomness.
    pub fn entropy(&self) -> &Entropy {
        &self.entropy
    }

    /// The store, for those who list and watch.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Waits until no attempt is under way, at most this long; what still runs then is marked uncertain.
    /// Returns whether everything was settled.
    pub async fn drain(&self, timeout: Duration) -> bool {
        self.tasks.close();
        let settled = tokio::time::timeout(timeout, self.tasks.wait()).await.is_ok();
        self.closed.store(true, Ordering::Release);
        if settled && self.tasks.is_empty() {
            return true;
        }
        self.abandoned.cancel();
        // Time to mark them, which takes a store call each.
        const MARKING: Duration = Duration::from_secs(5);
        let _ = tokio::time::timeout(MARKING, self.tasks.wait()).await;
        false
    }
}

/// Whether a policy has one record per fingerprint rather than per key.
fn is_per_fingerprint(policy: &crate::engine::Policy) -> bool {
    policy.on_mismatch == OnMismatch::Supersede
}

/// Whether a policy only watches.
fn is_shadow(policy: &crate::engine::Policy) -> bool {
    policy.mode == Mode::Shadow
}

#[cfg(test)]
mod tests;
