//! Settling: writes the outcome of an attempt to the store, and tries again until the store
//! confirms it.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout_at};

use crate::engine::{Claim, Outcome, Policy, Settlement, settle};
use crate::event::Context;
use crate::gate::state::{Gate, ProtectedRoute};
use crate::key::Slot;
use crate::record::{Record, State, Version};
use crate::store::{StoreError, Swap};
use crate::telemetry::{StoreCall, Timer};

/// Longest time that a client waits for its result to be stored. Then the client gets an uncertain
/// answer, and the gate continues to write in the background.
const SETTLE_MAX: Duration = Duration::from_secs(10);

/// First and longest pause between tries to write an outcome.
const RETRY_MIN: Duration = Duration::from_millis(20);
const RETRY_MAX: Duration = Duration::from_secs(2);

/// The result of settling.
pub(in crate::gate) enum SettleResult {
    /// The store has the outcome.
    Written,
    /// Another attempt or an operator has settled the operation.
    Stale,
    /// The store did not confirm the outcome in time.
    Unconfirmed,
}

/// An outcome that is not settled yet.
pub(in crate::gate) struct UnsettledOutcome {
    pub slot: Slot,
    pub claim: Claim,
    /// The record that the slot is expected to hold.
    pub known: Option<Record>,
    pub outcome: Outcome,
    /// The context of the outcome's event.
    pub event_context: Context,
}

impl Gate {
    /// Tries to write an outcome, for at most the lease or 10 s, whichever is shorter.
    pub(in crate::gate) async fn settle(
        &self,
        slot: &Slot,
        claim: &Claim,
        outcome: &Outcome,
        policy: &Policy,
        event_context: &Context,
    ) -> SettleResult {
        let timer = Timer::start();
        let until = Instant::now() + policy.lease.min(SETTLE_MAX);
        let known = Some(&claim.record);
        let settling = self.settle_until_done(slot, claim, known, outcome, policy, event_context);
        let settled = timeout_at(until, settling).await;
        timer.stop(self.meter.store(StoreCall::Settle));
        settled.unwrap_or(SettleResult::Unconfirmed)
    }

    /// Writes an outcome in a task of its own, and tries again until the store confirms it. The
    /// task holds `keep` (a permit, the memory of a body) until then, which limits the number of
    /// these tasks.
    pub(in crate::gate) fn settle_in_background(
        self: &Arc<Self>,
        unsettled: UnsettledOutcome,
        guarded: Arc<ProtectedRoute>,
        keep: impl Send + 'static,
    ) {
        let gate = self.clone();
        self.meter.unsettled_in_background.inc();
        self.tasks.spawn(async move {
            let _keep = keep;
            let UnsettledOutcome { slot, claim, known, outcome, event_context } = unsettled;
            let policy = &guarded.route.policy;
            let known = known.as_ref();
            tokio::select! {
                biased;
                _ = gate.settle_until_done(
                    &slot, &claim, known, &outcome, policy, &event_context,
                ) => {}
                () = gate.abandoned.cancelled() => {}
            }
            gate.meter.unsettled_in_background.dec();
        });
    }

    async fn settle_until_done(
        &self,
        slot: &Slot,
        claim: &Claim,
        known: Option<&Record>,
        outcome: &Outcome,
        policy: &Policy,
        event_context: &Context,
    ) -> SettleResult {
        // The record that a write found instead of the known one.
        let mut found: Option<Option<Record>> = None;
        let mut pause = RETRY_MIN;
        loop {
            // Each try writes its marker under a new version. Between two tries other attempts may
            // have written records, with the versions that follow the version of the first try. If
            // these versions occurred again, a late command that expects one of them would succeed
            // by mistake.
            let fresh = Version(self.entropy.next());
            let current = found.as_ref().map_or(known, Option::as_ref);
            let next = match settle(current, claim, outcome, policy, fresh) {
                Settlement::Write(next) => next,
                Settlement::Done => return SettleResult::Written,
                Settlement::Stale => return SettleResult::Stale,
            };
            let expected = current.map(|record| record.version);
            let context = || event_context.clone();
            let error = match self.write(slot, expected, (&next).into(), policy, context).await {
                Ok(Swap::Stored) => {
                    if matches!(next.record.state, State::Uncertain { .. }) {
                        self.meter.uncertain.inc();
                    }
                    return SettleResult::Written;
                }
                Ok(Swap::Stale(held)) => {
                    found = Some(held.map(|held| held.record));
                    continue;
                }
                Ok(Swap::Large(fence)) if fence != claim.fence => return SettleResult::Stale,
                Ok(Swap::Large(_)) => match self.store.records.load(slot).await {
                    Ok(held) => {
                        found = Some(held.map(|held| held.record));
                        continue;
                    }
                    Err(error) => error,
                },
                Err(error) => {
                    self.meter.store_errors.inc();
                    if matches!(error, StoreError::Corrupt(_)) {
                        self.meter.corrupt_records.inc();
                        log_not_stored(slot, policy, &error);
                        return SettleResult::Stale;
                    }
                    error
                }
            };
            log_not_stored(slot, policy, &error);
            sleep(self.entropy.jitter(pause)).await;
            pause = (pause * 2).min(RETRY_MAX);
        }
    }
}

fn log_not_stored(slot: &Slot, policy: &Policy, error: &StoreError) {
    tracing::warn!(route = %policy.route, operation = %slot, %error, "outcome not stored yet");
}
