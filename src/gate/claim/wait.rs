//! Waiting for the first request, where the route lets its duplicates wait.

use std::sync::Arc;
use std::time::Duration;

use prometheus_client::metrics::gauge::Gauge;
use tokio::time::{Instant, sleep_until, timeout_at};

use crate::engine::{Admission, Asked, DuplicateRefusal, Policy, admit};
use crate::gate::claim::Entrant;
use crate::gate::permits::Place;
use crate::gate::{AddressShare, Gate, Refusal};
use crate::key::Slot;
use crate::record::Held;
use crate::store::Watch;
use crate::telemetry::{Trail, Work};

/// Between looks at a record without being told of a change: only a safety net under the subscription.
const POLL: Duration = Duration::from_secs(2);

impl Gate {
    /// Waits until the record says something else than to wait, and adds how long that took.
    pub(in crate::gate) async fn wait(
        &self,
        entrant: &mut Entrant<'_>,
        waited: &mut Option<Duration>,
    ) -> Result<Option<Held>, Refusal> {
        // A duplicate that waits runs nothing; its place belongs to those who do.
        entrant.place = None;
        let Entrant { guarded, slot, asked, first, waiting, address, .. } = entrant;
        let policy = &guarded.route.policy;
        let waiting = match waiting {
            Some(waiting) => waiting,
            none => none.insert(self.begin_to_wait(policy, slot, *address)?),
        };
        let _step = Trail::step(first.trail.as_ref(), Work::Wait);
        let began = Instant::now();
        let found = self.changed(waiting, policy, slot, asked).await;
        *waited.get_or_insert_default() += began.elapsed();
        found
    }

    /// The record, once it says something else than to wait.
    async fn changed(
        &self,
        waiting: &mut Waiting,
        policy: &Policy,
        slot: &Slot,
        asked: &Asked,
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

    fn begin_to_wait(
        &self,
        policy: &Policy,
        slot: &Slot,
        address: Option<&Arc<AddressShare>>,
    ) -> Result<Waiting, Refusal> {
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
        Ok(Waiting { watch, until: Instant::now() + policy.wait_timeout, gauge, _permit: permit })
    }
}

/// A duplicate that is held.
pub(in crate::gate) struct Waiting {
    watch: Watch,
    until: Instant,
    gauge: Gauge,
    _permit: Place,
}

impl Waiting {
    /// Waits until the record may have changed; `false` when the time is over.
    async fn next(&mut self, gate: &Gate) -> bool {
        let poll = Instant::now() + gate.entropy.jitter(POLL);
        tokio::select! {
            biased;
            changed = timeout_at(self.until, self.watch.changed()) => changed.is_ok(),
            () = sleep_until(poll) => true,
        }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.gauge.dec();
    }
}
