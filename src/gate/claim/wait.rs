//! Waiting: duplicates wait for the first request, if the route allows that.

use std::sync::Arc;
use std::time::Duration;

use prometheus_client::metrics::gauge::Gauge;
use tokio::time::{Instant, sleep_until, timeout_at};

use crate::engine::{Admission, ClaimRequest, DuplicateRefusal, Policy, admit};
use crate::gate::permits::Permit;
use crate::gate::share::AddressShare;
use crate::gate::state::Gate;
use crate::key::Slot;
use crate::record::Held;
use crate::refusal::Refusal;
use crate::store::Watch;

/// Time between two reads of a record while no notification of a change arrives. These reads matter
/// only if a notification was lost.
const POLL: Duration = Duration::from_secs(2);

/// A duplicate that waits.
pub(in crate::gate) struct WaitingDuplicate {
    watch: Watch,
    until: Instant,
    gauge: Gauge,
    _permit: Permit,
}

impl WaitingDuplicate {
    /// Waits until the record may have changed. Returns `false` when the wait timeout is over.
    async fn next(&mut self, gate: &Gate) -> bool {
        let poll = Instant::now() + gate.entropy.jitter(POLL);
        tokio::select! {
            biased;
            changed = timeout_at(self.until, self.watch.changed()) => changed.is_ok(),
            () = sleep_until(poll) => true,
        }
    }
}

impl Drop for WaitingDuplicate {
    fn drop(&mut self) {
        self.gauge.dec();
    }
}

impl Gate {
    /// Begins to wait for a change of a record, up to the route's wait timeout.
    ///
    /// # Errors
    /// [`Refusal::Overloaded`], if too many duplicates already wait.
    pub(super) fn begin_to_wait(
        &self,
        policy: &Policy,
        slot: &Slot,
        address: Option<&Arc<AddressShare>>,
    ) -> Result<WaitingDuplicate, Refusal> {
        let permit = self
            .waiters
            .take_for(address.map(|address| &address.waiters))
            .ok_or(Refusal::Overloaded)?;
        let watch = self.store.records.watch(slot);
        if watch.peers() > self.settings.waiters_per_key {
            return Err(Refusal::Overloaded);
        }
        self.meter.waiters.inc();
        let gauge = self.meter.waiters.clone();
        Ok(WaitingDuplicate {
            watch,
            until: Instant::now() + policy.wait_timeout,
            gauge,
            _permit: permit,
        })
    }

    /// Waits until the record no longer makes the duplicate wait, and returns the record. Refuses
    /// the duplicate when the wait timeout is over.
    pub(super) async fn wait_for_change(
        &self,
        waiting: &mut WaitingDuplicate,
        policy: &Policy,
        slot: &Slot,
        asked: &ClaimRequest,
    ) -> Result<Option<Held>, Refusal> {
        while waiting.next(self).await {
            let held = self
                .store
                .records
                .load(slot)
                .await
                .map_err(|error| self.store_failed(slot, &error))?;
            if admit(held.as_ref(), asked, policy) != Admission::Wait {
                return Ok(held);
            }
        }
        Err(Refusal::of_refusal(DuplicateRefusal::in_flight(policy), *slot))
    }
}
