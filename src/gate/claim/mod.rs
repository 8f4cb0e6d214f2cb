//! Getting in: claim the operation, or be told what its record says; wait where the route waits.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body::Body;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::timeout;
use tower_service::Service;

use super::payload::{BoxError, Payload};
use super::quota::Counted;
use super::{AddressShare, Gate, ProtectedRoute, Refusal};
use crate::engine::{
    Admission, Asked, Claim, ClaimOver, DuplicateRefusal, OnFailure, OnUncertain, Outcome, Policy,
    admit, claim, expire,
};
use crate::event::Context;
use crate::gate::background::event_log::trace_of;
use crate::gate::claim::wait::Waiting;
use crate::gate::explain::{ComparedRequest, key_reused, leaves};
use crate::gate::intake::RequestedOperation;
use crate::gate::intake::upstream_key::key_for_upstream;
use crate::gate::permits::Place;
use crate::gate::send_rule::SendRule;
use crate::gate::shared_permit::SharedPermit;
use crate::key::{Slot, TenantId};
use crate::record::{Extras, Fence, Held, Lifetime, Reply, SpanId, State, Version};
use crate::store::{StoreError, Swap};
use crate::telemetry::{StoreCall, Timer, Trail, Work};
use probe::Told;

pub(super) mod probe;
mod rotation;
mod wait;

pub(super) use probe::{Asker, is_never_probed};

/// A claim that stands, with what an attempt needs to use it.
pub(super) struct Claimed {
    pub slot: Slot,
    pub asked: Asked,
    pub claim: Claim,
    pub rule: Arc<SendRule>,
    pub permit: SharedPermit,
    /// That it is one more operation of its scope.
    pub counted: Option<Counted>,
    /// What the event log is told with its outcome.
    pub told: Context,
}

/// What a claim has beside what it is for.
pub(super) struct First<'r> {
    /// The key, where it is kept so that the upstream can be asked in the background.
    kept: Option<Bytes>,
    extras: Extras,
    pub trail: Option<Trail>,
    fields: BTreeMap<String, String>,
    headers: &'r HeaderMap,
    request_bytes: u64,
}

impl First<'_> {
    /// What the event log is told with the claim.
    fn told(&self, scope: String) -> Context {
        Context { scope: Some(scope), fields: self.fields.clone(), ..self.told_later() }
    }

    /// What it is told again with the outcome.
    fn told_later(&self) -> Context {
        Context {
            trace: trace_of(self.headers),
            request_bytes: Some(self.request_bytes),
            ..Context::default()
        }
    }

    /// The request is answered with what another brought about.
    fn links_to(&self, held: &Held) {
        if let (Some(trail), Some(SpanId { trace, span })) = (&self.trail, held.record.extras.span)
        {
            trail.links(trace, span);
        }
    }
}

/// A request on its way in.
pub(super) struct Entrant<'r> {
    pub guarded: &'r Arc<ProtectedRoute>,
    pub slot: Slot,
    pub whose: [u8; 32],
    pub asked: Asked,
    pub first: First<'r>,
    /// Among those who use the upstream.
    pub place: Option<Place>,
    /// The share of the client's address.
    pub address: Option<&'r Arc<AddressShare>>,
    /// Since it waits for the first request.
    pub waiting: Option<Waiting>,
}

/// What a request may do.
pub(super) enum Entry {
    Run(Claimed),
    Replay(Slot, Arc<Reply>),
    /// The store is out of reach, nothing is known of the operation, and the route does without.
    Unprotected,
}

/// How often a request looks at a record that keeps changing under it before it gives up: a guard against a livelock,
/// far above what real races need.
const LOOKS_MAX: usize = 32;

/// How long a client should wait before it tries a store that failed.
const STORE_RETRY_AFTER: Duration = Duration::from_secs(1);

/// How long a claim waits for its turn among those of its address. A store that answers gives a turn within milliseconds.
const TURN_MAX: Duration = Duration::from_millis(500);

/// What one try at a claim came to.
enum Tried {
    Stands(Claim, Arc<SendRule>),
    Held(Option<Held>),
    /// Another's record stands there; the claim may still arrive, and is given up.
    GivenUp(Option<Held>),
    /// Nothing is known; the claim may still arrive where it is given here.
    Unknown(Option<Claim>),
}

impl Gate {
    /// Claims an operation, or says what else the request may do.
    pub(super) async fn admit<S, B, RB>(
        self: &Arc<Self>,
        guarded: &Arc<ProtectedRoute>,
        mut operation: RequestedOperation,
        place: Place,
        asker: &mut Asker<'_, S>,
    ) -> Result<Entry, Refusal>
    where
        S: Service<Request<Payload<B>>, Response = Response<RB>>,
        S::Error: Into<BoxError>,
        RB: Body<Data = Bytes> + Unpin,
        RB::Error: Into<BoxError>,
    {
        let policy = &guarded.route.policy;
        let first = self.first(policy, &mut operation, asker);
        let RequestedOperation { slot, caller, fingerprint, tenant, .. } = operation;
        let asked = Asked { caller, fingerprint, fence: Fence(self.entropy.next()) };
        let address = asker.context.address_share.as_ref();
        let mut entrant = Entrant {
            guarded,
            slot,
            whose: *tenant.as_bytes(),
            asked,
            first,
            place: Some(place),
            address,
            waiting: None,
        };
        let mut admission = Admission::Claim(ClaimOver::Nothing);
        // The record that an answer of the upstream would be about.
        let mut doubted: Option<Held> = None;
        for look in 0..LOOKS_MAX {
            let held = match admission {
                Admission::Claim(over) => match self.claim(&mut entrant, over, look == 0).await? {
                    ControlFlow::Break(entry) => return Ok(entry),
                    ControlFlow::Continue(held) => held,
                },
                Admission::Run => {
                    return Err(Refusal::StoreUnavailable { retry_after: STORE_RETRY_AFTER });
                }
                Admission::Replay(reply) => return Ok(Entry::Replay(slot, reply)),
                Admission::Refuse(refusal) => return Err(Refusal::of_refusal(refusal, slot)),
                Admission::MarkUncertain => Box::pin(self.mark_overdue(&slot, policy))
                    .await
                    .map_err(|error| self.store_failed(&slot, &error))?,
                Admission::Probe => {
                    match Box::pin(self.probe(&mut entrant, doubted.take(), asker)).await? {
                        Told::Result(reply) => return Ok(Entry::Replay(slot, reply)),
                        Told::Admit(told) => {
                            admission = told;
                            continue;
                        }
                        Told::Moved(held) => held,
                    }
                }
                Admission::Wait => Box::pin(self.wait(&mut entrant, &mut asker.waited)).await?,
            };
            admission = admit(held.as_ref(), &entrant.asked, policy);
            match (&admission, &held) {
                (Admission::Replay(_), Some(held)) => entrant.first.links_to(held),
                (Admission::Refuse(DuplicateRefusal::KeyReused), held) => {
                    return Err(key_reused(
                        policy,
                        slot,
                        &entrant.asked,
                        held.as_ref(),
                        ComparedRequest { parts: asker.parts, content: asker.content },
                    ));
                }
                _ => {}
            }
            doubted = held.filter(|_| admission == Admission::Probe);
        }
        Err(Refusal::of_refusal(DuplicateRefusal::in_flight(policy), slot))
    }

    /// One try at a claim: the way in, or the record that is in its way. `first_look`: nothing was seen of the operation yet.
    async fn claim(
        self: &Arc<Self>,
        entrant: &mut Entrant<'_>,
        over: ClaimOver,
        first_look: bool,
    ) -> Result<ControlFlow<Entry, Option<Held>>, Refusal> {
        let Entrant { guarded, slot, whose, .. } = *entrant;
        let policy = &guarded.route.policy;
        if over == ClaimOver::Nothing && entrant.waiting.is_some() {
            // What it waited for is gone. Running now could repeat an operation whose retention just ended.
            return Err(Refusal::of_refusal(DuplicateRefusal::in_flight(policy), slot));
        }
        let place = self.place(entrant)?;
        let turn = match entrant.address {
            Some(address) => {
                timeout(TURN_MAX, address.turn()).await.map_err(|_| Refusal::Overloaded)?
            }
            None => None,
        };
        match self
            .try_claim(guarded, (&slot, &whose), &entrant.asked, over, (&entrant.first, turn))
            .await?
        {
            Tried::Stands(claim, rule) => {
                let counted = self.counted(guarded, (&slot, &whose), &claim, over)?;
                let told = if self.event_log_enabled() {
                    entrant.first.told_later()
                } else {
                    Context::default()
                };
                let claimed = Claimed {
                    slot,
                    asked: entrant.asked,
                    claim,
                    rule,
                    permit: SharedPermit::new(place),
                    counted,
                    told,
                };
                Ok(ControlFlow::Break(Entry::Run(claimed)))
            }
            Tried::Held(held) => Ok(ControlFlow::Continue(held)),
            Tried::GivenUp(held) => {
                // What gives the old claim up, in the background, must not release the next one.
                entrant.asked.fence = Fence(self.entropy.next());
                Ok(ControlFlow::Continue(held))
            }
            // Only while nothing was seen: what is known to run, or to be settled, must not run beside it.
            Tried::Unknown(_) if first_look && policy.on_failure == OnFailure::FailOpen => {
                Ok(ControlFlow::Break(Entry::Unprotected))
            }
            Tried::Unknown(own) => {
                own.into_iter().for_each(|own| self.give_up(slot, own, guarded, None));
                Err(Refusal::StoreUnavailable { retry_after: STORE_RETRY_AFTER })
            }
        }
    }

    /// Asks the upstream about an uncertain operation.
    async fn probe<S, B, RB>(
        &self,
        entrant: &mut Entrant<'_>,
        doubted: Option<Held>,
        asker: &mut Asker<'_, S>,
    ) -> Result<Told, Refusal>
    where
        S: Service<Request<Payload<B>>, Response = Response<RB>>,
        S::Error: Into<BoxError>,
        RB: Body<Data = Bytes> + Unpin,
        RB::Error: Into<BoxError>,
    {
        let (Some(held), OnUncertain::Probe(probe)) =
            (doubted, &entrant.guarded.route.policy.on_uncertain)
        else {
            return Err(Refusal::of_refusal(DuplicateRefusal::uncertain(None), entrant.slot));
        };
        // Asking takes a place like any other request to the upstream.
        entrant.place = Some(self.place(entrant)?);
        self.ask(entrant.guarded, probe, (&entrant.slot, &entrant.asked), &held, asker).await
    }

    /// What a claim has beside what it is for.
    fn first<'r, S>(
        &self,
        policy: &Policy,
        operation: &mut RequestedOperation,
        asker: &Asker<'r, S>,
    ) -> First<'r> {
        let Asker { parts, key, content, request_bytes, context, .. } = *asker;
        let trail = context.trail.clone();
        if let Some(trail) = &trail {
            trail.identified(
                operation.slot.to_string(),
                self.settings.hashing.tenant_mark(&operation.tenant),
            );
        }
        let kept = match &policy.on_uncertain {
            OnUncertain::Probe(probe) if probe.background => {
                Some(key_for_upstream(policy, key).into_owned().into())
            }
            _ => None,
        };
        let span = trail.as_ref().and_then(Trail::span).map(|(trace, span)| SpanId { trace, span });
        let extras = Extras {
            leaves: leaves(&self.entropy, policy, ComparedRequest { parts, content }),
            span,
        };
        let fields = std::mem::take(&mut operation.fields);
        First { kept, extras, trail, fields, headers: &parts.headers, request_bytes }
    }

    /// A place among those who use the upstream: the request's own, or a new one after it has waited.
    fn place(&self, entrant: &mut Entrant<'_>) -> Result<Place, Refusal> {
        let Entrant { place, address, .. } = entrant;
        match place.take() {
            Some(permit) => Ok(permit),
            None => self.in_flight.protected(*address).ok_or(Refusal::Overloaded),
        }
    }

    /// One round trip: the claim stands, or the record that is in its way comes back.
    async fn try_claim(
        self: &Arc<Self>,
        guarded: &Arc<ProtectedRoute>,
        (slot, whose): (&Slot, &[u8; 32]),
        asked: &Asked,
        over: ClaimOver,
        (first, turn): (&First<'_>, Option<OwnedSemaphorePermit>),
    ) -> Result<Tried, Refusal> {
        let policy = &guarded.route.policy;
        if let Err(retry_after) = self.room(policy, whose, over) {
            return Box::pin(self.look_instead(policy, slot, retry_after)).await;
        }
        let mut next =
            claim(asked, over, Version(self.entropy.next()), self.clock.unix_ms(), policy);
        next.record.kept = first.kept.clone();
        next.record.extras = first.extras.clone();
        // Counted from before the command leaves: the store's lease can only begin later.
        let from_ms = self.clock.boot_ms();
        let claim = Claim { fence: asked.fence, record: next.record };
        let mut own = Unconfirmed::new(self, guarded, slot, claim);
        own.turn = turn;
        let told = || first.told(self.settings.hashing.tenant_mark(&TenantId::from_bytes(*whose)));
        let timer = Timer::start();
        let mut step = Trail::step(first.trail.as_ref(), Work::Claim);
        let swapped = self
            .write(slot, over.version(), (&own.claim.record, next.lifetime), policy, told)
            .await;
        timer.stop(self.meter.store(StoreCall::Claim));
        step.result(match &swapped {
            Ok(Swap::Stored) => "stored",
            Ok(Swap::Stale(_) | Swap::Large(_)) => "stale",
            Err(_) => "failed",
        });
        drop(step);
        let rule = || Arc::new(SendRule::new(self.clock.clone(), from_ms, policy.lease));
        match swapped {
            Ok(Swap::Stored) => Ok(Tried::Stands(own.known(), rule())),
            Ok(Swap::Stale(held)) => {
                own.known();
                Ok(Tried::Held(held))
            }
            // The claim can't arrive any more: a client that leaves meanwhile leaves nothing behind.
            Ok(Swap::Large(_)) => {
                own.known();
                let held = Box::pin(self.store.records.load(slot))
                    .await
                    .map_err(|error| self.store_failed(slot, &error))?;
                Ok(Tried::Held(held))
            }
            Err(StoreError::MaybeApplied(_)) => {
                let unanswered = Unanswered { own, over, lifetime: next.lifetime, rule: rule() };
                Box::pin(self.read_back(policy, slot, asked, unanswered, told)).await
            }
            Err(StoreError::NotApplied(why)) => {
                own.known();
                self.meter.store_errors.inc();
                tracing::debug!(operation = %slot, why, "a claim was not stored");
                Ok(Tried::Unknown(None))
            }
            // A record stands there: the request must not run, whatever the route does without a store.
            Err(error @ (StoreError::Corrupt(_) | StoreError::Unread(_))) => {
                own.known();
                Err(self.store_failed(slot, &error))
            }
        }
    }

    /// Whether one more operation may begin; an uncertain one that is tried once more is none.
    fn room(&self, policy: &Policy, whose: &[u8; 32], over: ClaimOver) -> Result<(), Duration> {
        match over {
            ClaimOver::Uncertain { .. } => Ok(()),
            ClaimOver::Nothing | ClaimOver::Marker(_) => {
                self.quota.room(&policy.route, whose, self.clock.boot_ms())
            }
        }
    }

    /// Counts a claim that stands. Others of its scope may have taken the last room meanwhile: then it is given up.
    fn counted(
        self: &Arc<Self>,
        guarded: &Arc<ProtectedRoute>,
        (slot, whose): (&Slot, &[u8; 32]),
        claim: &Claim,
        over: ClaimOver,
    ) -> Result<Option<Counted>, Refusal> {
        let policy = &guarded.route.policy;
        if matches!(over, ClaimOver::Uncertain { .. }) {
            return Ok(None);
        }
        self.quota.take(&policy.route, whose, policy.retention, self.clock.boot_ms()).map_err(
            |retry_after| {
                self.give_up(*slot, claim.clone(), guarded, None);
                Refusal::QuotaReached { retry_after }
            },
        )
    }

    /// Where no new operation may begin: a duplicate is none, and is answered by its record.
    async fn look_instead(
        &self,
        policy: &Policy,
        slot: &Slot,
        retry_after: Duration,
    ) -> Result<Tried, Refusal> {
        match self.bars(policy, slot).await.map_err(|error| self.store_failed(slot, &error))? {
            Some(held) if !matches!(held.record.state, State::Released) => {
                Ok(Tried::Held(Some(held)))
            }
            _ => Err(Refusal::QuotaReached { retry_after }),
        }
    }

    /// The claim's answer is lost: it stands only if it reads back under its own fence, and in time.
    async fn read_back(
        &self,
        policy: &Policy,
        slot: &Slot,
        asked: &Asked,
        unanswered: Unanswered<'_>,
        told: impl Fn() -> Context + Send + Sync,
    ) -> Result<Tried, Refusal> {
        self.meter.store_errors.inc();
        let Unanswered { own, over, lifetime, rule } = unanswered;
        let held = match self.store.records.load(slot).await {
            Ok(held) => held,
            Err(error @ (StoreError::Corrupt(_) | StoreError::Unread(_))) => {
                return Err(self.store_failed(slot, &error));
            }
            Err(_) => return Ok(Tried::Unknown(Some(own.known()))),
        };
        match admit(held.as_ref(), asked, policy) {
            // Written once more, which changes nothing there: a store may restore after a loss only what it has confirmed.
            Admission::Run => match self
                .write(slot, over.version(), (&own.claim.record, lifetime), policy, told)
                .await
            {
                Ok(Swap::Stored) if rule.allows() => Ok(Tried::Stands(own.known(), rule)),
                _ => Ok(Tried::Unknown(Some(own.known()))),
            },
            // Nothing, or a marker: the claim may still arrive there.
            Admission::Claim(_) => Ok(Tried::Unknown(Some(own.known()))),
            // What it claimed over still stands.
            _ if over.version().is_some_and(|over| {
                held.as_ref().is_some_and(|held| held.record.version == over)
            }) =>
            {
                Ok(Tried::Unknown(Some(own.known())))
            }
            // Another's record: the late claim is given up all the same, since that may have made way for a marker by then.
            _ => {
                drop(own);
                Ok(Tried::GivenUp(held))
            }
        }
    }

    /// A claim that may still arrive is released, in the background and for as long as it takes.
    fn give_up(
        self: &Arc<Self>,
        slot: Slot,
        own: Claim,
        guarded: &Arc<ProtectedRoute>,
        turn: Option<OwnedSemaphorePermit>,
    ) {
        match self.giving_up.take() {
            Some(place) => {
                let told = (Outcome::NeverSent, Context::default());
                self.settle_in_background(slot, own, None, told, guarded.clone(), (place, turn));
            }
            None => {
                tracing::warn!(operation = %slot, "too many claims to give up at once: this one may end uncertain")
            }
        }
    }

    /// An attempt's lease is over: it becomes uncertain. Returns the record as it then is.
    pub(super) async fn mark_overdue(
        &self,
        slot: &Slot,
        policy: &Policy,
    ) -> Result<Option<Held>, StoreError> {
        let Some(held) = self.store.records.load(slot).await? else { return Ok(None) };
        let Some(next) = expire(&held, policy) else { return Ok(Some(held)) };
        match self
            .write(
                slot,
                Some(held.record.version),
                (&next.record, next.lifetime),
                policy,
                Context::default,
            )
            .await?
        {
            Swap::Stored => {
                self.meter.uncertain.inc();
                tracing::warn!(route = %held.record.route, operation = %slot, "a lease ended without an outcome: the operation is uncertain");
                Ok(Some(Held {
                    record: next.record,
                    written_ms: held.now_ms,
                    due_ms: 0,
                    now_ms: held.now_ms,
                }))
            }
            Swap::Stale(current) => Ok(current),
            Swap::Large(_) => self.store.records.load(slot).await,
        }
    }

    /// What a failed store call means for the request.
    pub(super) fn store_failed(&self, slot: &Slot, error: &StoreError) -> Refusal {
        self.meter.store_errors.inc();
        if matches!(error, StoreError::Corrupt(_)) {
            self.meter.corrupt_records.inc();
            tracing::error!(operation = %slot, %error, "a stored record cannot be read: its duplicates are refused");
            return Refusal::RecordUnreadable { slot: *slot };
        }
        tracing::debug!(operation = %slot, %error, "a store call failed");
        Refusal::StoreUnavailable { retry_after: STORE_RETRY_AFTER }
    }
}

/// A claim whose answer is lost, and what it takes to write it again.
struct Unanswered<'g> {
    own: Unconfirmed<'g>,
    over: ClaimOver,
    lifetime: Lifetime,
    rule: Arc<SendRule>,
}

/// A claim on its way. A request whose client leaves is dropped in the middle of it, and nobody would then run or settle
/// what arrives: so it is given up.
pub(super) struct Unconfirmed<'g> {
    gate: &'g Arc<Gate>,
    guarded: &'g Arc<ProtectedRoute>,
    slot: &'g Slot,
    claim: Claim,
    /// The turn of its address. It is kept until the claim is given up: the store's answer to the claim comes before that, and may
    /// be large. Or who claims and leaves, again and again, would have the store send any number of answers.
    turn: Option<OwnedSemaphorePermit>,
    open: bool,
}

impl<'g> Unconfirmed<'g> {
    pub fn new(
        gate: &'g Arc<Gate>,
        guarded: &'g Arc<ProtectedRoute>,
        slot: &'g Slot,
        claim: Claim,
    ) -> Unconfirmed<'g> {
        Unconfirmed { gate, guarded, slot, claim, turn: None, open: true }
    }

    /// Its fate is known, or in the hands of whoever takes it.
    pub fn known(mut self) -> Claim {
        self.open = false;
        self.claim.clone()
    }
}

impl Drop for Unconfirmed<'_> {
    fn drop(&mut self) {
        if self.open {
            self.gate.give_up(*self.slot, self.claim.clone(), self.guarded, self.turn.take());
        }
    }
}
