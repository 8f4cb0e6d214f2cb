//! Writes one record with a script, if its slot has the expected version.

use redis::Value;
use tokio::time::Instant;

use super::answer::{held, time_ms, unexpected};
use super::client::Redis;
use super::connection::CallError;
use super::epochs::ClaimBasis;
use super::layout;
use super::restore_decision::RecentWrite;
use super::time::millis;
use super::written_events::WrittenEvents;
use crate::key::Slot;
use crate::record::{
    Encoded, Held, Lifetime, Record, State, Version, encode, head_completed, head_fence,
};
use crate::store::{StoreError, Swap, log};

/// A record to write.
pub(super) struct RecordWrite<'a> {
    pub slot: &'a Slot,
    pub expected: Option<Version>,
    pub next: &'a Record,
    /// `next`, as it is stored.
    pub encoded: Encoded,
    pub lifetime: Lifetime,
    /// Its events.
    pub events: WrittenEvents,
}

impl RecordWrite<'_> {
    /// Returns whether the write has the conditions of a claim, unless it is one of the process
    /// that owns the record: the slot may be empty, or have an old state, because records were
    /// lost.
    pub(super) fn is_guarded(&self) -> bool {
        matches!(self.next.state, State::Saga { .. } | State::Barred | State::Lock(_))
    }
}

/// The outcome of a [`RecordWrite`].
pub(super) enum SwapOutcome {
    Swapped(Swap),
    /// The server has another lineage or epoch than the write required. Nothing was written.
    OtherEpoch,
}

impl Redis {
    /// Runs the claim script for a claim, and the change script for other records.
    ///
    /// With a `basis`, a claim, a saga and a bar require its lineage and its epoch. Other records
    /// require only its lineage. A record that is written again after a loss has no basis.
    pub(super) async fn run_swap(
        &self,
        write: &RecordWrite<'_>,
        basis: Option<&ClaimBasis>,
        deadline: Instant,
    ) -> Result<SwapOutcome, StoreError> {
        let is_claim = matches!(write.next.state, State::InFlight { .. });
        let answer = if is_claim {
            // A claim without a lease runs the claim script, too, because only that script checks
            // the tombstone.
            let due = write.lifetime.due.unwrap_or(write.lifetime.keep);
            self.run_claim(write, &millis(due), basis, deadline).await
        } else {
            self.run_change(write, basis, deadline).await
        };
        match answer {
            Err(CallError::Replaced) | Ok(OTHER_EPOCH) => Ok(SwapOutcome::OtherEpoch),
            answer => Ok(SwapOutcome::Swapped(self.swap_of(write.slot, answer?)?)),
        }
    }

    async fn run_claim(
        &self,
        write: &RecordWrite<'_>,
        due: &[u8],
        basis: Option<&ClaimBasis>,
        deadline: Instant,
    ) -> Result<Value, CallError> {
        let RecordWrite { slot, encoded: Encoded { head, payload }, lifetime, .. } = write;
        let partition = slot.partition();
        let mut keys = vec![
            self.names.record_key(slot),
            self.names.due_key(partition),
            self.names.epoch_key(partition),
        ];
        if lifetime.tombstone.is_some() {
            keys.push(self.names.tombstone_key(slot));
        }
        self.push_log_keys(&mut keys, write);
        let (expected, keep) = (expected_bytes(write), millis(lifetime.keep));
        let (member, entry) = (layout::member(slot), log_entry(write));
        let epoch = basis.map_or(&b""[..], |basis| &basis.epoch);
        let args: [&[u8]; 8] = [&expected, &keep, &member, head, &entry, due, payload, epoch];
        let lineage = basis.map(|basis| basis.lineage_id);
        self.run(partition, &self.scripts.claim, (&keys, &args), lineage, deadline).await
    }

    async fn run_change(
        &self,
        write: &RecordWrite<'_>,
        basis: Option<&ClaimBasis>,
        deadline: Instant,
    ) -> Result<Value, CallError> {
        let RecordWrite { slot, next, encoded: Encoded { head, payload }, lifetime, .. } = write;
        let partition = slot.partition();
        let tombstone_ms = lifetime
            .tombstone
            .filter(|_| matches!(next.state, State::Completed { .. }))
            .map(millis);
        let mut keys = vec![self.names.record_key(slot), self.due_index_key(slot, next)];
        if tombstone_ms.is_some() {
            keys.push(self.names.tombstone_key(slot));
        }
        self.push_log_keys(&mut keys, write);
        let (expected, keep) = (expected_bytes(write), millis(lifetime.keep));
        let (member, entry) = (layout::member(slot), log_entry(write));
        let lineage = basis.map(|basis| basis.lineage_id);
        let outbox = write.events.outbox.script_args(&self.names, slot, &mut keys);
        let guard = basis.filter(|_| write.is_guarded()).map(|basis| self.guard(write, basis));
        keys.extend(guard.iter().flat_map(|(guard_keys, _)| guard_keys).cloned());
        let run = async |args: &[&[u8]]| {
            let (mut args, mut script) = (args.to_vec(), &self.scripts.change);
            if !outbox.is_empty() {
                args.splice(OUTBOX_ARGS_AT..OUTBOX_ARGS_AT, outbox.iter().map(Vec::as_slice));
                script = &self.scripts.change_and_send;
            }
            if let Some((_, guard_args)) = &guard {
                args.extend(guard_args);
                script = match outbox.is_empty() {
                    true => &self.scripts.guarded_change,
                    false => &self.scripts.guarded_change_and_send,
                };
            }
            self.run(partition, script, (&keys, &args), lineage, deadline).await
        };
        if let Some(due) = lifetime.due {
            let due = millis(due);
            return run(&[&expected, &keep, &member, head, &entry, &due, payload]).await;
        }
        let now_ms = self.now_ms(partition).await.map_err(CallError::Store)?;
        let value = layout::stamped(head, now_ms, payload);
        let Some(tombstone_ms) = tombstone_ms else {
            return run(&[&expected, &keep, &member, &value, &entry]).await;
        };
        let expired = encode(&next.tombstone());
        let tombstone = layout::stamped(&expired.head, now_ms, &expired.payload);
        let tombstone: [&[u8]; 2] = [&tombstone_ms, &tombstone];
        let args: [&[u8]; 7] = [&expected, &keep, &member, &value, &entry, b"", b""];
        run(&[&args[..], &tombstone].concat()).await
    }

    /// Returns the key of the index for the due time of the next record. A completed record leaves
    /// the index in which the record before it was.
    fn due_index_key(&self, slot: &Slot, next: &Record) -> Vec<u8> {
        let is_saga = match next.state {
            State::Saga { .. } => true,
            // Only a saga's end replaces a saga. If this process has forgotten the saga, its entry
            // is removed when it falls due.
            State::Completed { .. } => self.recent_writes.holds(slot, RecentWrite::is_saga),
            _ => false,
        };
        self.names.index_key(slot.partition(), is_saga)
    }

    /// Returns the keys and the arguments of the script's guard.
    fn guard<'b>(
        &self,
        write: &RecordWrite<'_>,
        basis: &'b ClaimBasis,
    ) -> ([Vec<u8>; 2], [&'b [u8]; 2]) {
        let heeds_tombstone: &[u8] = if write.lifetime.tombstone.is_some() { b"1" } else { b"" };
        let tombstone_key = self.names.tombstone_key(write.slot);
        let epoch_key = self.names.epoch_key(write.slot.partition());
        ([tombstone_key, epoch_key], [heeds_tombstone, &basis.epoch])
    }

    /// Appends the keys of the event log, if the write has an event.
    fn push_log_keys(&self, keys: &mut Vec<Vec<u8>>, write: &RecordWrite<'_>) {
        if !write.events.log.is_empty() {
            let partition = write.slot.partition();
            keys.extend([self.names.events_key(partition), self.names.chain_key(partition)]);
        }
    }

    /// Decodes a settled record. The scripts return it without the server's time.
    pub(super) fn settled_record(&self, value: Value) -> Result<Option<Held>, StoreError> {
        let mut held = held(value, 0)?;
        held.iter_mut()
            .for_each(|held| held.now_ms = held.written_ms.max(self.time.now_ms().unwrap_or(0)));
        Ok(held)
    }

    /// Decodes the answer of a script.
    fn swap_of(&self, slot: &Slot, answer: Value) -> Result<Swap, StoreError> {
        match answer {
            Value::Int(1) => Ok(Swap::Stored),
            // The record was written at this time.
            Value::Int(now_ms) => {
                self.time.set(u64::try_from(now_ms).map_err(|_| unexpected())?);
                Ok(Swap::Stored)
            }
            Value::Nil => Ok(Swap::Stale(None)),
            Value::BulkString(_) => self.settled_record(answer).map(Swap::Stale),
            Value::Array(parts) => {
                let mut parts = parts.into_iter();
                let value = parts.next().ok_or_else(unexpected)?;
                // A head without the time belongs to a large record.
                if let (Value::BulkString(head), 0) = (&value, parts.len()) {
                    let head = head.first_chunk().ok_or_else(unexpected)?;
                    if head_completed(head) {
                        self.completed_hint.record(slot);
                    }
                    return Ok(Swap::Large(head_fence(head)));
                }
                let now_ms = time_ms(Value::Array(parts.collect()))?;
                self.time.set(now_ms);
                Ok(Swap::Stale(held(value, now_ms)?))
            }
            _ => Err(unexpected()),
        }
    }
}

/// Returns the expected version in the form that the scripts take: 8 bytes, or no bytes for an
/// empty slot.
fn expected_bytes(write: &RecordWrite<'_>) -> Vec<u8> {
    write.expected.map_or(Vec::new(), |version| version.0.to_be_bytes().into())
}

/// Returns the log entry in the form that the scripts take: digest, member and event, or no bytes
/// if there is no event.
fn log_entry(write: &RecordWrite<'_>) -> Vec<u8> {
    if write.events.log.is_empty() {
        return Vec::new();
    }
    let member = layout::member(write.slot);
    [&log::digest(&member, &write.events.log)[..], &member, &write.events.log].concat()
}

/// The number of arguments of the change script before those of the outbox. Optional ones follow.
const OUTBOX_ARGS_AT: usize = 5;

/// The claim script's answer if the partition has another epoch than the claim requires.
const OTHER_EPOCH: Value = Value::Int(0);
