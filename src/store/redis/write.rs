//! The one write: how a record goes through the swap script, and what a claim needs besides.

use redis::Value;
use tokio::time::Instant;

use super::epoch::Standing;
use super::holdings::{Assertion, Holding};
use super::link::Failure;
use super::{Redis, held, large, layout, millis, time_ms, unexpected};
use crate::key::{Slot, Space};
use crate::record::{
    Encoded, Held, Lifetime, Record, State, Version, encode, head_completed, head_fence,
};
use crate::store::{Records, StoreError, Swap, log};

/// A change that is to be written.
pub(super) struct Change<'a> {
    pub slot: &'a Slot,
    pub expected: Option<Version>,
    pub next: &'a Record,
    /// `next`, as it is stored.
    pub encoded: Encoded,
    pub lifetime: Lifetime,
    /// What is appended to the event log; empty: nothing.
    pub event: Vec<u8>,
}

/// What became of it.
pub(super) enum Written {
    Swapped(Swap),
    /// The server isn't the one, or hasn't the epoch, that the claim goes by. Nothing was written.
    OtherEpoch,
}

impl Redis {
    /// Claims: only under the epoch that the partition is known to have, and not while new operations are refused.
    pub(super) async fn claim(
        &self,
        change: Change<'_>,
        deadline: Instant,
    ) -> Result<Swap, StoreError> {
        let partition = change.slot.partition();
        loop {
            let standing = self.epochs.standing(partition, deadline).await?;
            if standing.quiet_until.is_some_and(|until| Instant::now() < until) {
                return Box::pin(self.known_only(&change)).await;
            }
            match self.swap_script(&change, Some(&standing), deadline).await? {
                Written::Swapped(Swap::Stored) => return self.keep(change, Some(standing)),
                Written::Swapped(swap) => return Ok(swap),
                Written::OtherEpoch => self.epochs.doubt(partition, &standing),
            }
        }
    }

    /// The completed record that stands in a claim's way. Of anything else, and of nothing, the script decides.
    pub(super) async fn completed(
        &self,
        slot: &Slot,
        deadline: Instant,
    ) -> Result<Option<Swap>, StoreError> {
        let standing = self.epochs.standing(slot.partition(), deadline).await?;
        let get = large::first_bytes(&self.names.record_key(slot));
        match self.confirmed(slot.partition(), get, Some(standing.generation), deadline).await {
            Ok(Value::BulkString(value)) if value.first_chunk().is_some_and(head_completed) => {
                match large::large(&value) {
                    Some(fence) => Ok(Some(Swap::Large(fence))),
                    None => self
                        .settled_one(Value::BulkString(value))
                        .map(|held| Some(Swap::Stale(held))),
                }
            }
            Ok(_) | Err(Failure::Replaced) => Ok(None),
            Err(failure) => Err(match StoreError::from(failure) {
                // It was to be read alone.
                StoreError::MaybeApplied(why) => StoreError::NotApplied(why),
                error => error,
            }),
        }
    }

    /// The record that stands in a claim's way, while nothing may be claimed.
    async fn known_only(&self, change: &Change<'_>) -> Result<Swap, StoreError> {
        let stands = self.load(change.slot).await?;
        match stands {
            Some(stands) if change.expected != Some(stands.record.version) => {
                Ok(Swap::Stale(Some(stands)))
            }
            _ => Err(quiet()),
        }
    }

    /// Writes what is no claim. Where the record that it names was lost with others, that is written again first.
    pub(super) async fn change(
        &self,
        change: Change<'_>,
        deadline: Instant,
    ) -> Result<Swap, StoreError> {
        let partition = change.slot.partition();
        loop {
            let (before, founded) = self.foundation(&change, deadline).await?;
            let swapped = match self.swap_script(&change, founded.as_ref(), deadline).await? {
                // What is held here may prevail over it.
                Written::Swapped(Swap::Large(_)) if self.holdings.holds(change.slot, |_| true) => {
                    Swap::Stale(self.load(change.slot).await?)
                }
                Written::Swapped(swapped) => swapped,
                Written::OtherEpoch => {
                    founded.iter().for_each(|standing| self.epochs.doubt(partition, standing));
                    continue;
                }
            };
            match &swapped {
                Swap::Stored => return self.keep(change, before),
                Swap::Stale(stands) if !self.is_missing(&change, stands.as_ref()) => {
                    return Ok(swapped);
                }
                Swap::Large(_) => return Ok(swapped),
                Swap::Stale(_) => {}
            }
            if !Box::pin(self.may_have_lost(partition, before)).await? {
                return Ok(swapped);
            }
            // Whoever finds out what the server holds writes the record again.
            self.epochs.standing(partition, deadline).await?;
        }
    }

    /// What the partition's claims go by now, and what a change goes by. Attempts of this process settle their operations
    /// on whatever the server has. Everybody else decides on a record that was read, which may be an earlier state of what
    /// was lost: those changes go by what claims go by, and wait like new operations.
    async fn foundation(
        &self,
        change: &Change<'_>,
        deadline: Instant,
    ) -> Result<(Option<Standing>, Option<Standing>), StoreError> {
        let partition = change.slot.partition();
        let Some(expected) = change.expected else {
            return Ok((self.epochs.current(partition), None));
        };
        let is_own =
            |holding: &Holding| holding.fence() == change.next.fence && !holding.follows(expected);
        if change.slot.space == Space::Shadow || self.holdings.holds(change.slot, is_own) {
            return Ok((self.epochs.current(partition), None));
        }
        let standing = self.epochs.standing(partition, deadline).await?;
        if standing.quiet_until.is_some_and(|until| Instant::now() < until) {
            return Err(quiet());
        }
        Ok((Some(standing), Some(standing)))
    }

    /// Whether the record that a change names is held here, and would be written again where this stands. An attempt that
    /// settles its operation names the version that it claimed, which is another one after a loss.
    fn is_missing(&self, change: &Change<'_>, stands: Option<&Held>) -> bool {
        let prevails = |holding: &Holding, stands: &Held| {
            matches!(holding.assertion(&stands.record), Assertion::Forward(_) | Assertion::Anew(_))
        };
        let is_it = |holding: &Holding| {
            let is_named =
                Some(holding.version()) == change.expected || holding.fence() == change.next.fence;
            is_named && stands.is_none_or(|stands| prevails(holding, stands))
        };
        self.holdings.holds(change.slot, is_it)
    }

    /// Keeps a confirmed write for as long as the servers may lose it. `before` is what the partition's claims went by when
    /// the write was sent.
    ///
    /// # Errors
    /// The server was found out anew meanwhile. Its successor may lack the write, and what was written again to it did not
    /// include this.
    fn keep(&self, change: Change<'_>, before: Option<Standing>) -> Result<Swap, StoreError> {
        let Change { slot, next, encoded, lifetime, event, .. } = change;
        self.holdings.acknowledged(slot, next, encoded, lifetime, event);
        if before.is_some() && self.epochs.current(slot.partition()) != before {
            return Err(StoreError::MaybeApplied(
                "the server was replaced right after it had confirmed the write".into(),
            ));
        }
        Ok(Swap::Stored)
    }

    /// Runs the script. `claims` is what a claim goes by, and of other changes the history of writes; what repeats a claim goes
    /// by nothing.
    pub(super) async fn swap_script(
        &self,
        change: &Change<'_>,
        claims: Option<&Standing>,
        deadline: Instant,
    ) -> Result<Written, StoreError> {
        let Change { slot, expected, next, encoded: Encoded { head, payload }, lifetime, event } =
            change;
        let partition = slot.partition();
        let in_flight = matches!(next.state, State::InFlight { .. });
        let tombstone_ms = lifetime
            .tombstone
            .filter(|_| matches!(next.state, State::Completed { .. }))
            .map(millis);
        let mut keys = vec![self.names.record_key(slot), self.names.due_key(partition)];
        if in_flight {
            keys.push(self.names.epoch_key(partition));
        }
        if in_flight && lifetime.tombstone.is_some() || tombstone_ms.is_some() {
            keys.push(self.names.tombstone_key(slot));
        }
        if !event.is_empty() {
            keys.extend([self.names.events_key(partition), self.names.chain_key(partition)]);
        }
        let expected = expected.map(|version| version.0.to_be_bytes());
        let expected: &[u8] = expected.as_ref().map_or(b"", |version| version);
        let (keep, member) = (millis(lifetime.keep), layout::member(slot));
        let under = claims.map(|standing| standing.generation);
        let told = if event.is_empty() {
            Vec::new()
        } else {
            [&log::digest(&member, event)[..], &member, event].concat()
        };
        let run = async |args: &[&[u8]]| {
            self.run(partition, &self.scripts.swap, (&keys, args), under, deadline).await
        };
        let answer = match (lifetime.due, tombstone_ms) {
            (Some(due), _) => {
                let due = millis(due);
                let epoch = claims.map_or(&b""[..], |standing| &standing.epoch);
                let args: [&[u8]; 8] =
                    [expected, &keep, &member, head, &told, &due, payload, epoch];
                run(args.get(..if claims.is_some() { 8 } else { 7 }).unwrap_or(&args)).await
            }
            (None, None) => {
                let value = layout::stamped(head, self.now_ms(partition).await?, payload);
                run(&[expected, &keep, &member, &value, &told]).await
            }
            (None, Some(tombstone_ms)) => {
                let now_ms = self.now_ms(partition).await?;
                let value = layout::stamped(head, now_ms, payload);
                let expired = encode(&next.tombstone());
                let tombstone = layout::stamped(&expired.head, now_ms, &expired.payload);
                run(&[expected, &keep, &member, &value, &told, b"", &tombstone_ms, &tombstone])
                    .await
            }
        };
        match answer {
            Err(Failure::Replaced) | Ok(OTHER_EPOCH) => Ok(Written::OtherEpoch),
            answer => Ok(Written::Swapped(self.swap_of(answer?)?)),
        }
    }

    /// A settled record, which comes without the time.
    fn settled_one(&self, value: Value) -> Result<Option<Held>, StoreError> {
        let mut held = held(value, 0)?;
        held.iter_mut()
            .for_each(|held| held.now_ms = held.written_ms.max(self.time.now_ms().unwrap_or(0)));
        Ok(held)
    }

    /// What the swap script answered.
    fn swap_of(&self, answer: Value) -> Result<Swap, StoreError> {
        match answer {
            Value::Int(1) => Ok(Swap::Stored),
            // Written, at this time.
            Value::Int(now_ms) => {
                self.time.told(u64::try_from(now_ms).map_err(|_| unexpected())?);
                Ok(Swap::Stored)
            }
            Value::Nil => Ok(Swap::Stale(None)),
            Value::BulkString(_) => self.settled_one(answer).map(Swap::Stale),
            Value::Array(parts) => {
                let mut parts = parts.into_iter();
                let value = parts.next().ok_or_else(unexpected)?;
                // A head alone, without the time: of a large record.
                if let (Value::BulkString(head), 0) = (&value, parts.len()) {
                    let head = head.first_chunk().ok_or_else(unexpected)?;
                    return Ok(Swap::Large(head_fence(head)));
                }
                let now_ms = time_ms(Value::Array(parts.collect()))?;
                self.time.told(now_ms);
                Ok(Swap::Stale(held(value, now_ms)?))
            }
            _ => Err(unexpected()),
        }
    }
}

fn quiet() -> StoreError {
    StoreError::NotApplied(
        "the store may have lost records a moment ago: what it doesn't know is refused for some seconds".into(),
    )
}

/// The script's answer to a claim that names another epoch than the partition has.
const OTHER_EPOCH: Value = Value::Int(0);
