//! Reads the records that block claims, marks records with an ended lease, and refuses requests if
//! a store call fails.

use std::time::Duration;

use crate::engine::{Policy, UnsentProof, expire, release_unsent, unsent_proof};
use crate::event::Context;
use crate::gate::state::Gate;
use crate::key::Slot;
use crate::record::{Fence, Held};
use crate::refusal::Refusal;
use crate::store::{StoreError, Swap};

/// How long a client should wait before it retries after a failed store call.
pub(in crate::gate) const STORE_RETRY_AFTER: Duration = Duration::from_secs(1);

/// How often the lock of an attempt is read that changes all the time.
const LOCK_LOOKS_MAX: usize = 4;

impl Gate {
    /// Returns the record or tombstone in a slot. Either would block a claim that expects an empty
    /// slot.
    pub(in crate::gate) async fn blocking_record(
        &self,
        policy: &Policy,
        slot: &Slot,
    ) -> Result<Option<Held>, StoreError> {
        if policy.keeps_tombstones() {
            self.store.records.remains(slot).await
        } else {
            self.store.records.load(slot).await
        }
    }

    /// Marks the operation uncertain if the lease of its attempt has ended. Returns the resulting
    /// record.
    pub(in crate::gate) async fn mark_overdue(
        &self,
        slot: &Slot,
        policy: &Policy,
    ) -> Result<Option<Held>, StoreError> {
        let Some(held) = self.store.records.load(slot).await? else { return Ok(None) };
        let Some(mut next) = expire(&held, policy) else { return Ok(Some(held)) };
        let is_unsent = match held.record.extras.resource {
            Some(resource) => Box::pin(self.prove_unsent(slot, &held, &resource)).await?,
            None => false,
        };
        if is_unsent {
            next = release_unsent(&held, policy);
        }
        let expected = Some(held.record.version);
        match self.write(slot, expected, (&next).into(), policy, Context::default).await? {
            Swap::Stored if is_unsent => {
                tracing::info!(
                    route = %held.record.route,
                    operation = %slot,
                    "operation released: its gateway went silent before it sent the write"
                );
                let now_ms = held.now_ms;
                Ok(Some(Held { record: next.record, written_ms: now_ms, due_ms: 0, now_ms }))
            }
            Swap::Stored => {
                self.meter.uncertain.inc();
                tracing::warn!(
                    route = %held.record.route,
                    operation = %slot,
                    "operation uncertain: a lease ended without an outcome"
                );
                let now_ms = held.now_ms;
                Ok(Some(Held { record: next.record, written_ms: now_ms, due_ms: 0, now_ms }))
            }
            Swap::Stale(current) => Ok(current),
            Swap::Large(_) => self.store.records.load(slot).await,
        }
    }

    /// Returns whether an attempt that has ended without an outcome provably sent nothing. If so,
    /// it can't send anything any more: its lock is freed.
    async fn prove_unsent(
        &self,
        operation: &Slot,
        attempt: &Held,
        resource: &Slot,
    ) -> Result<bool, StoreError> {
        for _ in 0..LOCK_LOOKS_MAX {
            let lock = self.store.records.load(resource).await?;
            let fence = Fence(self.entropy.next());
            let next = match unsent_proof(lock.as_ref(), attempt, operation, fence) {
                UnsentProof::Proven => return Ok(true),
                UnsentProof::None => return Ok(false),
                UnsentProof::IfWritten(next) => next,
            };
            let expected = lock.map(|lock| lock.record.version);
            let (record, lifetime) = (&next.record, next.lifetime);
            let written = self.store.records.swap(resource, expected, record, lifetime).await?;
            if written == Swap::Stored {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Counts a failed store call, and returns the refusal of the request that needed the call.
    pub(in crate::gate) fn store_failed(&self, slot: &Slot, error: &StoreError) -> Refusal {
        self.meter.store_errors.inc();
        if matches!(error, StoreError::Corrupt(_)) {
            self.meter.corrupt_records.inc();
            tracing::error!(
                operation = %slot,
                %error,
                "stored record not readable: its duplicates are refused"
            );
            return Refusal::RecordUnreadable { slot: *slot };
        }
        tracing::debug!(operation = %slot, %error, "store call failed");
        Refusal::StoreUnavailable { retry_after: STORE_RETRY_AFTER }
    }
}
