//! Writing down how an attempt ended, until it is written.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout_at};

use crate::engine::{Claim, Outcome, Policy, Settlement, settle};
use crate::event::Context;
use crate::gate::{Gate, ProtectedRoute};
use crate::key::Slot;
use crate::record::{Record, State, Version};
use crate::store::{StoreError, Swap};
use crate::telemetry::{StoreCall, Timer};

/// Longest time that a client waits for its result to be stored; then the answer is uncertain and storing goes on.
const SETTLE_MAX: Duration = Duration::from_secs(10);

/// First and longest pause between tries to write an outcome.
const RETRY_MIN: Duration = Duration::from_millis(20);
const RETRY_MAX: Duration = Duration::from_secs(2);

/// What became of an outcome.
pub(in crate::gate) enum Settled {
    /// It is written.
    Written,
    /// Another has settled the operation.
    Stale,
    /// The time was over before the store confirmed.
    Unconfirmed,
}

impl Gate {
    /// Writes an outcome, trying for at most min(lease, 10 s). `told` is what the event log is told beside it.
    pub(in crate::gate) async fn settle(
        &self,
        slot: &Slot,
        claim: &Claim,
        outcome: &Outcome,
        policy: &Policy,
        told: &Context,
    ) -> Settled {
        let timer = Timer::start();
        let until = Instant::now() + policy.lease.min(SETTLE_MAX);
        let settled = timeout_at(
            until,
            self.settle_until_done(slot, claim, Some(&claim.record), (outcome, told), policy),
        )
        .await;
        timer.stop(self.meter.store(StoreCall::Settle));
        settled.unwrap_or(Settled::Unconfirmed)
    }

    /// Goes on trying in a task of its own. What `keep` holds (a permit, room for the body) bounds how many there are.
    pub(in crate::gate) fn settle_in_background(
        self: &Arc<Self>,
        slot: Slot,
        claim: Claim,
        current: Option<Record>,
        (outcome, told): (Outcome, Context),
        guarded: Arc<ProtectedRoute>,
        keep: impl Send + 'static,
    ) {
        let gate = self.clone();
        self.meter.unsettled_in_background.inc();
        self.tasks.spawn(async move {
            let _keep = keep;
            let policy = &guarded.route.policy;
            tokio::select! {
                biased;
                _ = gate.settle_until_done(&slot, &claim, current.as_ref(), (&outcome, &told), policy) => {}
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
        (outcome, told): (&Outcome, &Context),
        policy: &Policy,
    ) -> Settled {
        // What stands there instead of the known record, where a write met something else.
        let mut found: Option<Option<Record>> = None;
        let mut pause = RETRY_MIN;
        loop {
            // Anew for each try: the slot may have held others' records in between, whose versions went on from an earlier
            // try's, and a late command that names one of those must find it nowhere else.
            let fresh = Version(self.entropy.next());
            let current = found.as_ref().map_or(known, Option::as_ref);
            let next = match settle(current, claim, outcome, policy, fresh) {
                Settlement::Write(next) => next,
                Settlement::Done => return Settled::Written,
                Settlement::Stale => return Settled::Stale,
            };
            let expected = current.map(|record| record.version);
            match self
                .write(slot, expected, (&next.record, next.lifetime), policy, || told.clone())
                .await
            {
                Ok(Swap::Stored) => {
                    if matches!(next.record.state, State::Uncertain { .. }) {
                        self.meter.uncertain.inc();
                    }
                    return Settled::Written;
                }
                Ok(Swap::Large(fence)) if fence != claim.fence => return Settled::Stale,
                Ok(Swap::Large(_)) => match self.store.records.load(slot).await {
                    Ok(held) => found = Some(held.map(|held| held.record)),
                    Err(error) => {
                        tracing::warn!(route = %policy.route, operation = %slot, %error, "an outcome is not stored yet");
                        sleep(self.entropy.jitter(pause)).await;
                        pause = (pause * 2).min(RETRY_MAX);
                    }
                },
                Ok(Swap::Stale(held)) => found = Some(held.map(|held| held.record)),
                Err(error) => {
                    self.meter.store_errors.inc();
                    tracing::warn!(route = %policy.route, operation = %slot, %error, "an outcome is not stored yet");
                    if matches!(error, StoreError::Corrupt(_)) {
                        self.meter.corrupt_records.inc();
                        return Settled::Stale;
                    }
                    sleep(self.entropy.jitter(pause)).await;
                    pause = (pause * 2).min(RETRY_MAX);
                }
            }
        }
    }
}
