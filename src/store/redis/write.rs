//! The rules of a write: the basis that it requires, and the reaction if the server may have lost
//! records.

use redis::Value;
use tokio::time::Instant;

use super::client::Redis;
use super::connection::CallError;
use super::epochs::{ClaimBasis, paused};
use super::large;
use super::restore_decision::{RecentWrite, RestoreDecision};
use super::swap::{RecordWrite, SwapOutcome};
use crate::key::{Slot, Space};
use crate::record::{Held, head_completed};
use crate::store::{StoreError, Swap};

impl Redis {
    /// Writes a claim. It requires the basis of its partition, and fails while new operations are
    /// refused.
    pub(super) async fn claim(
        &self,
        write: RecordWrite<'_>,
        deadline: Instant,
    ) -> Result<Swap, StoreError> {
        let partition = write.slot.partition();
        loop {
            let basis = self.epochs.basis(partition, deadline).await?;
            if basis.is_paused() {
                return Box::pin(self.existing_only(&write)).await;
            }
            match self.run_swap(&write, Some(&basis), deadline).await? {
                SwapOutcome::Swapped(Swap::Stored) => {
                    return self.keep_recent(write, Some(basis));
                }
                SwapOutcome::Swapped(swap) => return Ok(swap),
                SwapOutcome::OtherEpoch => self.epochs.invalidate(partition, &basis),
            }
        }
    }

    /// Returns the completed record that a claim would meet. Returns `None` for any other record
    /// and for an empty slot: the claim script decides on those.
    pub(super) async fn completed(
        &self,
        slot: &Slot,
        deadline: Instant,
    ) -> Result<Option<Swap>, StoreError> {
        let lineage = self.epochs.basis(slot.partition(), deadline).await?.lineage_id;
        let get = large::first_bytes(&self.names.record_key(slot));
        match self.call_confirmed(slot.partition(), get, Some(lineage), deadline).await {
            Ok(Value::BulkString(value)) if value.first_chunk().is_some_and(head_completed) => {
                match large::large(&value) {
                    Some(fence) => Ok(Some(Swap::Large(fence))),
                    None => {
                        let held = self.settled_record(Value::BulkString(value))?;
                        Ok(Some(Swap::Stale(held)))
                    }
                }
            }
            Ok(_) | Err(CallError::Replaced) => Ok(None),
            Err(error) => Err(match StoreError::from(error) {
                // The command only reads, so nothing was written.
                StoreError::MaybeApplied(why) => StoreError::NotApplied(why),
                error => error,
            }),
        }
    }

    /// Answers a claim with the record in its slot, while new operations are refused.
    ///
    /// # Errors
    /// No record stops the claim, so it is refused.
    async fn existing_only(&self, write: &RecordWrite<'_>) -> Result<Swap, StoreError> {
        match self.read(write.slot, false).await? {
            Some(current) if write.expected != Some(current.record.version) => {
                Ok(Swap::Stale(Some(current)))
            }
            _ => Err(paused()),
        }
    }

    /// Writes a record that is not a claim. If the expected record was lost, waits until it is
    /// restored, and tries again.
    pub(super) async fn change(
        &self,
        write: RecordWrite<'_>,
        deadline: Instant,
    ) -> Result<Swap, StoreError> {
        let partition = write.slot.partition();
        loop {
            let bases = match self.bases(&write, deadline).await? {
                // A duplicate of a saga's request gets the record of the first one.
                None if write.is_guarded() => {
                    return Box::pin(self.existing_only(&write)).await;
                }
                None => return Err(paused()),
                Some(bases) => bases,
            };
            let required = bases.required.as_ref();
            let swapped = match self.run_swap(&write, required, deadline).await? {
                // A recent write may prevail over the large record.
                SwapOutcome::Swapped(Swap::Large(_))
                    if self.recent_writes.holds(write.slot, |_| true) =>
                {
                    Swap::Stale(self.read(write.slot, false).await?)
                }
                SwapOutcome::Swapped(swapped) => swapped,
                SwapOutcome::OtherEpoch => {
                    required.into_iter().for_each(|basis| self.epochs.invalidate(partition, basis));
                    continue;
                }
            };
            match &swapped {
                Swap::Stored => return self.keep_recent(write, bases.before),
                Swap::Stale(current) if !self.is_missing(&write, current.as_ref()) => {
                    return Ok(swapped);
                }
                Swap::Large(_) => return Ok(swapped),
                Swap::Stale(_) => {}
            }
            if !Box::pin(self.may_have_lost(partition, bases.before)).await? {
                return Ok(swapped);
            }
            // This waits for a lookup, which restores the record.
            self.epochs.basis(partition, deadline).await?;
        }
    }

    /// Returns the bases of a change.
    ///
    /// An attempt of this process may settle its operation on any server, and a saga of this
    /// process may go on there. Every other change is based on a record that was read, and that
    /// record may be an earlier state of a lost one. So such a change has the conditions of a
    /// claim. Returns `None` if it is refused, because new operations are refused.
    async fn bases(
        &self,
        write: &RecordWrite<'_>,
        deadline: Instant,
    ) -> Result<Option<ChangeBases>, StoreError> {
        let partition = write.slot.partition();
        let unconditional =
            || Some(ChangeBases { before: self.epochs.current(partition), required: None });
        let is_own = |recent: &RecentWrite| match write.expected {
            Some(expected) => recent.fence() == write.next.fence && !recent.follows(expected),
            None => false,
        };
        let is_marker = write.expected.is_none() && !write.is_guarded();
        if is_marker
            || write.slot.space == Space::Shadow
            || self.recent_writes.holds(write.slot, is_own)
        {
            return Ok(unconditional());
        }
        let basis = self.epochs.basis(partition, deadline).await?;
        if basis.is_paused() {
            return Ok(None);
        }
        Ok(Some(ChangeBases { before: Some(basis), required: Some(basis) }))
    }

    /// Whether the expected record is among the recent writes and would be restored over `current`.
    /// An attempt that settles its operation expects the version of its claim. After a loss, the
    /// claim may have another version, so a recent write with the attempt's fence counts too.
    fn is_missing(&self, write: &RecordWrite<'_>, current: Option<&Held>) -> bool {
        let prevails = |recent: &RecentWrite, current: &Held| {
            matches!(
                recent.restore_decision(&current.record),
                RestoreDecision::OverEarlierState(_) | RestoreDecision::UnderNewVersion(_)
            )
        };
        let is_it = |recent: &RecentWrite| {
            let is_expected =
                Some(recent.version()) == write.expected || recent.fence() == write.next.fence;
            is_expected && current.is_none_or(|current| prevails(recent, current))
        };
        self.recent_writes.holds(write.slot, is_it)
    }

    /// Keeps a confirmed write for as long as the servers may lose it. `before` was the basis of
    /// the partition's claims when the write was sent.
    ///
    /// # Errors
    /// The basis has changed since. The new server may lack the write, and the recent writes that
    /// were restored there did not include it.
    fn keep_recent(
        &self,
        write: RecordWrite<'_>,
        before: Option<ClaimBasis>,
    ) -> Result<Swap, StoreError> {
        let RecordWrite { slot, next, encoded, lifetime, events, .. } = write;
        self.recent_writes.record_confirmed(slot, next, encoded, lifetime, events);
        if before.is_some() && self.epochs.current(slot.partition()) != before {
            return Err(StoreError::MaybeApplied(
                "the server was replaced right after it had confirmed the write".into(),
            ));
        }
        Ok(Swap::Stored)
    }
}

/// The bases of a change.
struct ChangeBases {
    /// The basis of the partition's claims when the change is sent.
    before: Option<ClaimBasis>,
    /// The basis that the server must match; `None`: any server.
    required: Option<ClaimBasis>,
}
