//! Waiting: duplicates wait for the first request, if the route allows that.

use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use prometheus_client::metrics::gauge::Gauge;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep_until, timeout_at};
use tokio_util::sync::CancellationToken;

use crate::engine::{Admission, ClaimRequest, DuplicateRefusal, Policy, admit};
use crate::gate::permits::Permit;
use crate::gate::share::AddressShare;
use crate::gate::state::{Gate, ProtectedRoute};
use crate::key::Slot;
use crate::record::{Held, Reply, State};
use crate::refusal::Refusal;
use crate::store::Watch;

/// Time between two reads of a record while no notification of a change arrives. These reads matter
/// only if a notification was lost.
const POLL: Duration = Duration::from_secs(2);

/// A duplicate that waits.
pub(in crate::gate) struct WaitingDuplicate {
    watch: Watch,
    until: Instant,
    /// Cancelled when the sagas of this gateway stop; `None` if the operation is no saga.
    stop: Option<CancellationToken>,
    gauge: Gauge,
    _permit: Permit,
}

impl WaitingDuplicate {
    /// Waits until the record may have changed. Returns `false` when the wait timeout is over, or
    /// when the sagas of this gateway stop: another gateway then continues the saga.
    pub(in crate::gate) async fn next(&mut self, gate: &Gate) -> bool {
        let poll = Instant::now() + gate.entropy.jitter(POLL);
        let WaitingDuplicate { watch, until, stop, .. } = self;
        tokio::select! {
            biased;
            changed = timeout_at(*until, watch.changed()) => changed.is_ok(),
            () = stopped(stop.as_ref()) => false,
            () = sleep_until(poll) => true,
        }
    }

    /// Waits for the owner of a saga in this process, which sends the answer, or drops the other
    /// end of `news` when the record is worth reading. Otherwise each progress of the saga would be
    /// read from the store. Returns `None` when the wait timeout is over, too, or when the sagas of
    /// this gateway stop.
    pub(in crate::gate) async fn news_of_owner(
        &mut self,
        news: oneshot::Receiver<Arc<Reply>>,
    ) -> Option<Arc<Reply>> {
        tokio::select! {
            biased;
            news = timeout_at(self.until, news) => news.ok()?.ok(),
            () = stopped(self.stop.as_ref()) => None,
        }
    }
}

/// Returns when the sagas of this gateway stop; never for an operation that is no saga.
async fn stopped(stop: Option<&CancellationToken>) {
    match stop {
        Some(stop) => stop.cancelled().await,
        None => pending().await,
    }
}

impl Drop for WaitingDuplicate {
    fn drop(&mut self) {
        self.gauge.dec();
    }
}

impl Gate {
    /// Begins to wait for a change of a record, up to the route's wait timeout, and up to `at_most`
    /// if the client wants to wait less.
    ///
    /// # Errors
    /// [`Refusal::Overloaded`], if too many duplicates already wait.
    pub(in crate::gate) fn begin_to_wait(
        &self,
        guarded: &ProtectedRoute,
        slot: &Slot,
        address: Option<&Arc<AddressShare>>,
        at_most: Option<Duration>,
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
        let timeout = guarded.route.policy.wait_timeout;
        Ok(WaitingDuplicate {
            watch,
            until: Instant::now() + at_most.unwrap_or(timeout).min(timeout),
            stop: guarded.saga.as_ref().map(|runner| runner.stopping()),
            gauge,
            _permit: permit,
        })
    }

    /// Waits until the record no longer makes the duplicate wait, and returns the record. Refuses
    /// the duplicate when the wait timeout is over.
    pub(in crate::gate) async fn wait_for_change(
        &self,
        waiting: &mut WaitingDuplicate,
        policy: &Policy,
        slot: &Slot,
        asked: &ClaimRequest,
    ) -> Result<Option<Held>, Refusal> {
        let mut refusal = match waiting.stop {
            Some(_) => DuplicateRefusal::saga_in_flight(policy),
            None => DuplicateRefusal::in_flight(policy),
        };
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
            if held.is_some_and(|held| matches!(held.record.state, State::Saga { .. })) {
                refusal = DuplicateRefusal::saga_in_flight(policy);
            }
        }
        Err(Refusal::of_refusal(refusal, *slot))
    }
}
