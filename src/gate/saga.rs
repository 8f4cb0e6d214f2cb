//! Sagas at the gate: a client's request begins a saga in the slot of its operation, and then waits
//! for the end of the saga like a duplicate.
//!
//! The gate writes and renews the records of sagas. What a saga does next is the business of its
//! [`SagaRunner`].

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep};

use super::answer::{Answered, SettledAnswer};
use super::attempt::Claimed;
use super::budget::Hold;
use super::claim::{IncomingRequest, UnconfirmedClaim};
use super::protected_route::{NextSaga, OwnedSaga, ProtectedRoute, SagaRequest, SagaRunner};
use super::record_change::RecordChange;
use super::saga_place::{NewSaga, SagaPlace};
use super::saga_summary::SagaSummary;
use super::share::AddressShare;
use super::state::Gate;
use crate::engine::{
    Admission, ClaimRequest, DuplicateRefusal, Next, OnInFlight, Policy, admit, saga_end,
    saga_progress, saga_takeover,
};
use crate::event::{ChangedSaga, Context};
use crate::key::Slot;
use crate::record::{Fence, Held, PrivateContent, Reply, SagaPhase, State};
use crate::refusal::Refusal;
use crate::store::{StoreError, Swap};
use crate::telemetry::Answer;

/// Pause before a write without an answer is repeated.
const REPEAT_PAUSE: Duration = Duration::from_millis(200);

/// The result of a takeover.
pub enum SagaTake {
    /// This gateway owns the saga.
    Taken(OwnedSaga),
    /// The saga has an owner, or has ended.
    Gone,
    /// This gateway can't read the content: another gateway may continue the saga.
    Unreadable,
}

/// The result of a write of an owned saga.
#[derive(Debug)]
pub enum SagaWrite {
    /// The record is stored.
    Stored,
    /// An operator has changed the saga meanwhile. Nothing was written, and the owner continues
    /// from the changed content.
    Changed,
    /// The saga has ended or has another owner, or the lease has ended without a confirmed write.
    Lost,
}

impl Gate {
    /// Returns a place for a saga, if this gateway may run one more.
    pub fn saga_place(&self) -> Option<SagaPlace> {
        let permit = self.sagas.take().filter(|_| !self.budget.is_exhausted())?;
        Some(SagaPlace::new(permit, self.budget.hold()))
    }

    /// Gives the place of a stuck saga to others, or takes one for a saga that goes on. Otherwise
    /// stuck sagas would keep this gateway from running any other one.
    pub fn place_saga(&self, saga: &mut OwnedSaga, is_stuck: bool) {
        match is_stuck {
            true => saga.place.rest(),
            false => saga.place.resume(|| self.sagas.take()),
        }
    }

    /// Returns the saga that a request would begin; `None` if the request is for no saga. Whether
    /// it is a duplicate is only known after the claim.
    pub(in crate::gate) fn new_saga<S>(
        &self,
        guarded: &ProtectedRoute,
        slot: &Slot,
        request: &IncomingRequest<'_, S>,
    ) -> Option<Result<NewSaga, Refusal>> {
        let runner = guarded.saga.as_ref()?;
        let uri = &request.parts.uri;
        let begins = SagaRequest {
            slot,
            path: uri.path(),
            query: uri.query(),
            headers: &request.parts.headers,
            body: request.content,
        };
        let Some(mut place) = self.saga_place() else { return Some(Err(Refusal::Overloaded)) };
        let content = runner.first_content(&guarded.route.policy.route, &begins);
        Some(content.and_then(|content| match place.admits(&content) {
            true => Ok(NewSaga { content, place }),
            false => Err(Refusal::Overloaded),
        }))
    }

    /// Runs the saga that a claim began, and waits for its end.
    ///
    /// # Errors
    /// The saga runs longer than the client waits, or is stuck.
    pub(in crate::gate) async fn begin_saga<B>(
        self: &Arc<Self>,
        guarded: &Arc<ProtectedRoute>,
        runner: &Arc<dyn SagaRunner>,
        claimed: Claimed,
        (address, hold, wait): (Option<&Arc<AddressShare>>, Hold, Option<Duration>),
    ) -> Result<Answered<B>, Refusal> {
        let Claimed { slot, asked, claim, saga, rule, .. } = claimed;
        // `on_in_flight` is for duplicates: the client that began the saga waits.
        let own = &guarded.route.policy;
        let waits = (own.on_in_flight != OnInFlight::Wait)
            .then(|| Policy { on_in_flight: OnInFlight::Wait, ..own.clone() });
        let policy = waits.as_ref().unwrap_or(own);
        let in_flight = || Refusal::of_refusal(DuplicateRefusal::saga_in_flight(policy), slot);
        // Does not occur: the claim of a saga's request begins a saga.
        let NewSaga { content, place } = saga.ok_or_else(in_flight)?;
        let mut owned = OwnedSaga {
            slot,
            guarded: guarded.clone(),
            record: claim.record.clone(),
            lease_end: Instant::now() + rule.lease_left(),
            place,
            waiting_client: None,
        };
        if !matches!(owned.record.state, State::Saga { .. }) {
            // Dropping `own` gives the claim up, for example if the client leaves now. That has no
            // effect if the claim has become a saga.
            let own = UnconfirmedClaim::new(self, guarded, &slot, claim, None);
            let change = runner.started(&content);
            let next = NextSaga { phase: SagaPhase::Running, content, change };
            let begun = self.progress_saga(&mut owned, next).await;
            if !matches!(begun, SagaWrite::Stored) {
                // Not as a saga that runs: that could be accepted.
                return Err(Refusal::of_refusal(DuplicateRefusal::in_flight(policy), slot));
            }
            own.close();
        }
        let (client, news) = oneshot::channel();
        owned.waiting_client = Some(client);
        runner.run(owned);
        let mut waiting =
            self.begin_to_wait(guarded, &slot, address, wait).map_err(|_| in_flight())?;
        let answered = |reply| {
            let answer = Answer::Executed;
            SettledAnswer { slot, answer, reply, first_fields: None, body: None, hold }
                .into_response()
        };
        if let Some(reply) = waiting.news_of_owner(news).await {
            return answered(reply);
        }
        // Not the fence of the claim: from now on the request is a duplicate.
        let asked = ClaimRequest { fence: Fence(self.entropy.next()), ..asked };
        let held = self
            .wait_for_change(&mut waiting, policy, &slot, &asked)
            .await
            .map_err(|_| in_flight())?;
        match admit(held.as_ref(), &asked, policy) {
            Admission::Replay(reply) => answered(reply),
            Admission::Refuse(refusal) => Err(Refusal::of_refusal(refusal, slot)),
            _ => Err(in_flight()),
        }
    }

    /// Takes over a saga with an ended lease. `route_of` returns the route with a name.
    ///
    /// # Errors
    /// The store failed.
    pub async fn take_saga(
        &self,
        slot: &Slot,
        place: SagaPlace,
        is_readable: impl FnOnce(&Bytes) -> bool,
        route_of: impl FnOnce(&str) -> Arc<ProtectedRoute>,
    ) -> Result<SagaTake, StoreError> {
        let Some(held) = self.store.records.load(slot).await? else { return Ok(SagaTake::Gone) };
        if !matches!(held.record.state, State::Saga { .. }) {
            return Ok(SagaTake::Gone);
        }
        if !held.record.saga_content().is_some_and(is_readable) {
            return Ok(SagaTake::Unreadable);
        }
        let guarded = route_of(&held.record.route);
        let policy = &guarded.route.policy;
        let Some(next) = saga_takeover(&held, Fence(self.entropy.next()), policy) else {
            return Ok(SagaTake::Gone);
        };
        let (began, expected) = (Instant::now(), Some(held.record.version));
        match self.write(slot, expected, (&next).into(), policy, Context::default).await? {
            Swap::Stored => {
                let (record, lease_end) = (held.record, began + policy.lease);
                let mut saga = OwnedSaga {
                    slot: *slot,
                    guarded,
                    record,
                    lease_end,
                    place,
                    waiting_client: None,
                };
                saga.wrote(next.record, began);
                Ok(SagaTake::Taken(saga))
            }
            Swap::Stale(_) | Swap::Large(_) => Ok(SagaTake::Gone),
        }
    }

    /// Writes the next content of an owned saga.
    pub async fn progress_saga(&self, saga: &mut OwnedSaga, next: NextSaga) -> SagaWrite {
        let NextSaga { phase, content, change } = next;
        let policy = &saga.guarded.route.policy;
        let next = saga_progress(&saga.record, phase, PrivateContent::Open(content), policy);
        self.write_saga(saga, next, change.as_ref()).await
    }

    /// Ends an owned saga with its answer. The summary stays beside the answer, for the client.
    /// `change` is what the end changes.
    pub async fn end_saga(
        &self,
        saga: &mut OwnedSaga,
        reply: Arc<Reply>,
        summary: &SagaSummary,
        change: Option<&ChangedSaga>,
    ) -> SagaWrite {
        let mut next = saga_end(&saga.record, &reply, &saga.guarded.route.policy);
        if let (Some(note), Ok(summary)) =
            (&mut next.record.extras.saga, serde_json::to_vec(summary))
        {
            note.summary = summary.into();
        }
        self.write_saga(saga, next, change).await
    }

    /// Writes the next content of an owned saga and ends its lease, so that another gateway can
    /// take the saga over at once.
    pub async fn hand_saga_over(&self, saga: &mut OwnedSaga, next: NextSaga) -> SagaWrite {
        let NextSaga { phase, content, change } = next;
        let policy = &saga.guarded.route.policy;
        let mut next = saga_progress(&saga.record, phase, PrivateContent::Open(content), policy);
        next.lifetime.due = Some(Duration::ZERO);
        self.write_saga(saga, next, change.as_ref()).await
    }

    /// Renews the lease of an owned saga. Returns whether this gateway still owns the saga.
    pub async fn renew_saga(&self, saga: &mut OwnedSaga) -> bool {
        let policy = &saga.guarded.route.policy;
        let (lease, keep) = (policy.lease, policy.unsettled_retention);
        loop {
            let began = Instant::now();
            match self.store.records.renew(&saga.slot, saga.record.fence, lease, keep).await {
                Ok(true) => {
                    saga.lease_end = began + lease;
                    return true;
                }
                Ok(false) => return false,
                Err(_) if Instant::now() < saga.lease_end => sleep(REPEAT_PAUSE).await,
                Err(_) => return false,
            }
        }
    }

    /// Reads an owned saga again, after an operator may have changed it. Returns whether this
    /// gateway still owns the saga.
    pub async fn reread_saga(&self, saga: &mut OwnedSaga) -> bool {
        match self.store.records.load(&saga.slot).await {
            Ok(held) => adopt(saga, held.as_ref()),
            // The next write or renewal finds out.
            Err(_) => true,
        }
    }

    /// Writes a record of an owned saga. A write without an answer is repeated until the lease
    /// ends: another write under the same version and fence would be taken for this one.
    async fn write_saga(
        &self,
        saga: &mut OwnedSaga,
        next: Next,
        change: Option<&ChangedSaga>,
    ) -> SagaWrite {
        let policy = saga.guarded.route.policy.clone();
        let expected = Some(saga.record.version);
        loop {
            let began = Instant::now();
            let write = RecordChange { saga: change, ..(&next).into() };
            let written = self.write(&saga.slot, expected, write, &policy, Context::default).await;
            let current = match written {
                Ok(Swap::Stored) => {
                    saga.wrote(next.record, began);
                    return SagaWrite::Stored;
                }
                Ok(Swap::Stale(held)) => Ok(held),
                Ok(Swap::Large(_)) => self.store.records.load(&saga.slot).await,
                Err(error) => Err(error),
            };
            match current {
                Ok(held) if adopt(saga, held.as_ref()) => return SagaWrite::Changed,
                Ok(_) => return SagaWrite::Lost,
                Err(error) if Instant::now() >= saga.lease_end => {
                    tracing::warn!(operation = %saga.slot, %error, "the saga could not be written");
                    return SagaWrite::Lost;
                }
                Err(_) => sleep(self.entropy.jitter(REPEAT_PAUSE)).await,
            }
        }
    }
}

/// Takes the stored record, if it still is the owner's: an operator's change keeps the fence.
fn adopt(saga: &mut OwnedSaga, held: Option<&Held>) -> bool {
    let Some(Held { record, .. }) = held else { return false };
    let is_own = record.fence == saga.record.fence && matches!(record.state, State::Saga { .. });
    if is_own {
        saga.has(record.clone());
    }
    is_own
}
