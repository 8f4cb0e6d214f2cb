//! The story of a protected request: identify, claim, forward in a task of its own, settle, answer.
//!
//! Danger: between the claim and the settled record the process may be stopped, the client may leave and the store may
//! fall silent. Nothing here guesses: what can't be known becomes uncertain, and no answer leaves before it is stored.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::request::Parts;
use http::{Request, Response};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::clock::Clock;
use crate::engine::{Mode, OnMismatch};
use crate::entropy::Entropy;
use crate::key::{Hashing, Slot};
use crate::record::{Reply, ReplyBody};
use crate::route::Route;
use crate::store::Store;
use crate::telemetry::{Answer, Meter, RouteMeter, Trail, Work};
use crate::token::Keyring;

mod attempt;
mod background;
mod budget;
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
mod shadow;
mod share;
mod stream;
mod trailers;
mod upstream_service;

pub use crate::forwarding::{BoxError, ForwardError};
pub use crate::refusal::{BodyKind, Explanation, Malformation, Refusal};
use attempt::Attempt;
pub use attempt::SendRule;
use background::ObservationBuffer;
pub use background::{reconcile, sweep};
pub use budget::{Budget, Hold};
use claim::{Asker, is_never_probed};
pub use close_delimited::CloseDelimited;
pub use identity_check::{IdentityCheckError, agree, notes};
use intake::{CarriedKey, heavy_work};
pub use intake::{
    ClientSubject, Content, Identified, VerifiedScope, identify, keep_identifying_fields,
    wants_protection,
};
pub use lookup::{LookupError, scope_names, whose_names};
pub use operator::OperatorError;
pub use outflow::Outflow;
pub use passing::Permit;
pub use payload::{AnswerBody, Payload};
use permits::{InFlight, Places};
use quota::Quota;
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
    in_flight: InFlight,
    waiters: Places,
    /// Requests in shadow mode that are watched; they take no place from those that are protected.
    watched: Places,
    giving_up: Places,
    /// Turns for heavy work.
    heavy: Arc<Semaphore>,
    quota: Arc<Quota>,
    observed: Arc<ObservationBuffer>,
    closed: Arc<AtomicBool>,
    tasks: TaskTracker,
    abandoned: CancellationToken,
}

/// An answer, and what to count it as.
pub struct Answered<B> {
    /// The response.
    pub response: Response<AnswerBody<B>>,
    /// How it came about.
    pub answer: Answer,
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
            in_flight: InFlight::new(settings.in_flight),
            waiters: Places::new(settings.waiters),
            watched: Places::new(settings.in_flight),
            giving_up: Places::new(GIVING_UP_MAX),
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
        mut parts: Box<Parts>,
        mut body: Bytes,
        mut hold: Hold,
        mut service: S,
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
        let carried = CarriedKey::new(policy, &parts, &content, &body)?;
        let permit = self
            .in_flight
            .protected(AddressShare::of(&parts.extensions))
            .ok_or(Refusal::Overloaded)?;
        let mut asker = Asker {
            parts: &parts,
            content: content.bytes(),
            request_bytes: body.len() as u64,
            service: &mut service,
            hold: &mut hold,
            waited: None,
        };
        let whose = identified.whose;
        let admitted = self.admit_under_all_secrets(guarded, identified, permit, &mut asker).await;
        let waited = asker.waited;
        self.observe_duplicate(policy, (&whose, &parts.headers), &admitted, waited);
        let claimed = match admitted? {
            claim::Entry::Run(claimed) => claimed,
            claim::Entry::Replay(slot, reply) => return replay(slot, reply, hold),
            claim::Entry::Unprotected => {
                tracing::warn!(route = %policy.route, "the store is unavailable: request forwarded without protection");
                // The upstream's own deduplication is all that is left.
                carried.apply(&mut parts, &mut body);
                return Box::pin(self.pass(guarded, parts, body, service, Answer::Unprotected))
                    .await;
            }
        };
        let slot = claimed.slot;
        let trail = Trail::of(&parts.extensions);
        let never_probed = is_never_probed(policy, &parts, content.bytes());
        drop((content, decoded));
        carried.apply(&mut parts, &mut body);
        let request = Request::from_parts(*parts, Payload::whole(body, Some(claimed.rule.clone())));
        let attempt = Attempt {
            gate: self.clone(),
            guarded: guarded.clone(),
            claimed,
            request,
            service,
            hold,
            trail,
        };
        let answer = match self.tasks.spawn(Box::pin(Box::new(attempt).run())).await {
            Ok(answer) => answer,
            // The task panicked: its lease will end, and the record then says what is true.
            Err(_) => Err(Refusal::OutcomeUncertain {
                slot: Some(slot),
                status: None,
                retry_after: policy.uncertain_retry_after(),
            }),
        };
        match answer {
            // Where no probe is ever sent, the same request again finds nothing out: an operator has to settle it.
            Err(Refusal::OutcomeUncertain { slot, status, .. }) if never_probed => {
                Err(Refusal::OutcomeUncertain { slot, status, retry_after: None })
            }
            answer => answer,
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

fn replay<RB>(slot: Slot, reply: Arc<Reply>, mut hold: Hold) -> Result<Answered<RB>, Refusal> {
    let reply = Arc::unwrap_or_clone(reply);
    let ReplyBody::Whole(body) = reply.body else {
        return Err(Refusal::ResponseNotStored { slot, status: reply.status.as_u16() });
    };
    if !hold.grow(body.len()) {
        return Err(Refusal::Overloaded);
    }
    let mut response =
        Response::new(AnswerBody::whole(body).with_trailers(reply.trailers).holding(hold));
    *response.status_mut() = reply.status;
    *response.headers_mut() = reply.headers;
    response.headers_mut().insert(IDEMPOTENT_REPLAYED, http::HeaderValue::from_static("true"));
    Ok(Answered { response, answer: Answer::Replayed })
}

/// The field that marks a replay.
pub const IDEMPOTENT_REPLAYED: http::HeaderName =
    http::HeaderName::from_static("idempotent-replayed");

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
