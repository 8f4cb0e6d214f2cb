//! Recovers from servers that lost acknowledged records: a server restarts empty, is flushed, or is
//! replaced by a replica that lags behind. Such a server answers like any other, but operations
//! that ran look new.
//!
//! Two signs reveal such a loss. Each partition has an **epoch** ([`super::epochs`]). A server that
//! lost all records lost its epochs too. Each server has a **lineage** ([`super::lineage`]), which
//! a restart or a promotion changes. The lineage is read after every connect, before the first
//! claim.
//!
//! If an epoch or a lineage has changed, this process writes its recent writes again before the
//! next claim. With `durability = "strict"`, it also refuses new operations for
//! [`super::LOSS_PAUSE`]. In that time, the other gateways write their recent writes again.
//!
//! Danger: if all gateways and servers start empty at the same time, there is no sign of a loss.

use std::collections::HashSet;
use std::sync::{Arc, Weak};
use std::time::Duration;

use futures_util::StreamExt;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, timeout};

use super::answer::{array, time_ms, unexpected};
use super::client::Redis;
use super::connection::Commands;
use super::epochs::{ClaimBasis, Epoch, epoch_of, unfinished_copy};
use super::lineage::LineageId;
use super::restore_decision::{RecentWrite, RestoreDecision};
use super::servers::ServerPartitions;
use super::swap::{RecordWrite, SwapOutcome};
use crate::key::Slot;
use crate::record::{CodecError, Held, Record, State, Version, decode, encode};
use crate::store::{StoreError, Swap};

/// How often the task reads an epoch of each server even if nothing seems wrong. A flush has no
/// other sign.
const PERIOD: Duration = Duration::from_secs(1);

/// Pause before a lookup that failed is repeated.
const RETRY_PAUSE: Duration = Duration::from_millis(50);

/// Attempts to restore one record while its slot keeps changing.
const ATTEMPTS_MAX: usize = 8;

/// Records that are restored at the same time.
const RESTORES_AT_ONCE: usize = 64;

/// Looks up the epochs of all partitions again and again, for as long as the store exists.
pub(super) async fn run(store: Weak<Redis>, lookup_wanted: Arc<Notify>) {
    loop {
        let done = match store.upgrade() {
            None => return,
            Some(store) => store.look_up_epochs().await,
        };
        if done.is_err() {
            sleep(RETRY_PAUSE).await;
        }
        let _ = timeout(PERIOD, lookup_wanted.notified()).await;
    }
}

impl Redis {
    /// Looks up unknown epochs at all servers, and checks the known ones.
    async fn look_up_epochs(&self) -> Result<(), StoreError> {
        let begun = Instant::now();
        // At all servers at once: a server that doesn't answer must not delay the lookups at the
        // others.
        let lookups = self.servers.groups().into_iter().map(async |group| {
            let done = self.look_up_epochs_at(&group).await;
            self.epochs.lookup_ended(&group.partitions, &done);
            done
        });
        futures_util::future::join_all(lookups).await.into_iter().collect::<Result<(), _>>()?;
        self.servers.complete()?;
        self.recent_writes.note_intact(begun);
        Ok(())
    }

    async fn look_up_epochs_at(&self, group: &ServerPartitions) -> Result<(), StoreError> {
        let lineage = group.server.lineage_id(self.deadline()).await?;
        let is_known = |partition: &u16| {
            let basis = self.epochs.current(*partition);
            basis.is_some_and(|basis| basis.lineage_id == lineage)
        };
        let (known, unknown): (Vec<u16>, Vec<u16>) =
            group.partitions.iter().copied().partition(is_known);
        // A server that loses one epoch loses all.
        let is_lost = match known.first() {
            Some(first) => self.is_basis_lost(*first).await?,
            None => false,
        };
        match (is_lost, unknown.is_empty()) {
            (true, _) => self.recover(group, lineage, group.partitions.clone()).await,
            (false, false) => self.recover(group, lineage, unknown).await,
            (false, true) => Ok(()),
        }
    }

    /// Reads the epochs of a server's partitions. Restores the recent writes of the partitions that
    /// may have lost records. Begins an epoch in each partition without one.
    async fn recover(
        &self,
        group: &ServerPartitions,
        lineage: LineageId,
        partitions: Vec<u16>,
    ) -> Result<(), StoreError> {
        // This comes before the recent writes are read. A write that is confirmed from now on finds
        // that its basis has changed, so its caller learns that this recovery may not include the
        // write.
        partitions.iter().for_each(|partition| self.epochs.clear(*partition));
        let (now_ms, mut found) = self.epochs_at(group, lineage, &partitions).await?;
        let last = |partition: &u16| self.epochs.last(*partition);
        let known_before: HashSet<u16> =
            partitions.iter().copied().filter(|partition| last(partition).is_some()).collect();
        let lost = partitions
            .iter()
            .zip(&found)
            .filter(|(partition, found)| last(partition).is_some_and(|last| **found != Some(last)));
        report(lost.count(), known_before.len());
        self.restore_recent_writes(&known_before).await?;
        if found.iter().any(Option::is_none) {
            let absent = partitions
                .iter()
                .zip(&found)
                .filter(|(_, found)| found.is_none())
                .map(|(partition, _)| *partition);
            self.begin_epochs(group, lineage, absent, now_ms).await?;
            // Another gateway may have been faster: the stored epoch counts.
            found = self.epochs_at(group, lineage, &partitions).await?.1;
        }
        for (partition, epoch) in partitions.iter().zip(found) {
            let epoch = epoch.ok_or_else(unfinished_copy)?;
            let is_known_before = known_before.contains(partition);
            let paused_until = self.epochs.paused_until(is_known_before, &epoch, now_ms);
            let basis = ClaimBasis { lineage_id: lineage, epoch, paused_until };
            self.epochs.confirm(*partition, basis);
        }
        Ok(())
    }

    /// Reads a server's time, and the epochs of its partitions.
    async fn epochs_at(
        &self,
        group: &ServerPartitions,
        lineage: LineageId,
        partitions: &[u16],
    ) -> Result<(u64, Vec<Option<Epoch>>), StoreError> {
        let mut reading = redis::pipe();
        reading.cmd("TIME");
        for partition in partitions {
            reading.cmd("GET").arg(self.names.epoch_key(*partition));
        }
        let commands = Commands::Many(&reading);
        let answer = group.server.call_strict(commands, Some(lineage), self.deadline()).await?;
        let mut answers = array(answer)?.into_iter();
        let now_ms = time_ms(answers.next().ok_or_else(unexpected)?)?;
        Ok((now_ms, answers.map(|answer| epoch_of(&answer)).collect()))
    }

    async fn begin_epochs(
        &self,
        group: &ServerPartitions,
        lineage: LineageId,
        partitions: impl Iterator<Item = u16>,
        now_ms: u64,
    ) -> Result<(), StoreError> {
        let name = random()?;
        let fresh = [name.to_be_bytes(), now_ms.to_be_bytes()].concat();
        let mut writing = redis::pipe();
        for partition in partitions {
            writing.cmd("SET").arg(self.names.epoch_key(partition)).arg(&fresh).arg("NX");
        }
        let written = writing.len();
        if let Some(wait) = self.wait_command() {
            writing.add_command(wait);
        }
        let commands = Commands::Many(&writing);
        let answer = group.server.call_strict(commands, Some(lineage), self.deadline()).await?;
        self.require_confirmed(array(answer)?.into_iter().nth(written))
    }

    /// Writes the recent writes of these partitions again.
    async fn restore_recent_writes(&self, partitions: &HashSet<u16>) -> Result<(), StoreError> {
        let restores = self
            .recent_writes
            .in_partitions(partitions)
            .into_iter()
            .map(|(slot, recent)| self.restore(slot, recent));
        let done: Vec<_> =
            futures_util::stream::iter(restores).buffer_unordered(RESTORES_AT_ONCE).collect().await;
        done.into_iter().collect()
    }

    async fn restore(&self, slot: Slot, recent: RecentWrite) -> Result<(), StoreError> {
        let mut record = decode(&recent.encoded.head, recent.encoded.payload.clone())?;
        let mut encoded = recent.encoded.clone();
        let mut expected = None;
        for _ in 0..ATTEMPTS_MAX {
            let (lifetime, events) = (recent.lifetime, recent.all_events());
            let write = RecordWrite {
                slot: &slot,
                expected,
                next: &record,
                encoded: encoded.clone(),
                lifetime,
                events,
            };
            let current = match self.run_swap(&write, None, self.deadline()).await {
                Ok(SwapOutcome::Swapped(Swap::Stored)) => {
                    let RecordWrite { encoded, events, .. } = write;
                    if matches!(record.state, State::InFlight { .. }) {
                        // The claim script writes no events for sinks.
                        self.restore_events(&slot, &events.outbox).await?;
                    }
                    let own = recent.events;
                    self.recent_writes.record_confirmed(&slot, &record, encoded, lifetime, own);
                    return Ok(());
                }
                Ok(SwapOutcome::Swapped(Swap::Stale(current))) => current,
                Ok(SwapOutcome::Swapped(Swap::Large(_))) => match self.read(&slot, false).await {
                    Err(StoreError::Corrupt(error)) => return skip_unreadable(&slot, &error),
                    current => current?,
                },
                Ok(SwapOutcome::OtherEpoch) => return Err(unexpected()),
                Err(StoreError::Corrupt(error)) => return skip_unreadable(&slot, &error),
                Err(error) => return Err(error),
            };
            // The record in the way is gone meanwhile.
            let Some(Held { record: current, .. }) = current else {
                expected = None;
                continue;
            };
            match recent.restore_decision(&current) {
                RestoreDecision::OverEarlierState(version) => expected = Some(version),
                RestoreDecision::UnderNewVersion(version) => {
                    expected = Some(version);
                    record = Record { version: Version(random()?), ..record };
                    encoded = encode(&record);
                }
                RestoreDecision::Obsolete => {
                    return self.restore_behind(&slot, &recent, &record, &current).await;
                }
                RestoreDecision::BegunAgain => {
                    tracing::error!(
                        operation = %slot,
                        "the store lost this operation and it was begun again: \
                         it may have been executed twice"
                    );
                    self.recent_writes.remove_superseded(&slot, recent.version());
                    return Ok(());
                }
            }
        }
        Err(StoreError::NotApplied(
            "a record that the store may have lost changes again and again".into(),
        ))
    }

    /// Writes the events of a recent write again, although its record is obsolete: the slot has
    /// `current`. Another gateway may have restored a later state of the operation, without the
    /// events that only this gateway keeps.
    async fn restore_behind(
        &self,
        slot: &Slot,
        recent: &RecentWrite,
        record: &Record,
        current: &Record,
    ) -> Result<(), StoreError> {
        if recent.is_about(current) {
            self.restore_events(slot, &recent.all_events().outbox).await?;
        }
        // Otherwise an earlier recovery restored the record under another version, and failed
        // afterwards.
        if !current.is_same_state(record) {
            self.recent_writes.remove_superseded(slot, recent.version());
        }
        Ok(())
    }
}

/// Leaves an unreadable record alone, so that the other recent writes are still restored.
fn skip_unreadable(slot: &Slot, error: &CodecError) -> Result<(), StoreError> {
    tracing::error!(
        operation = %slot,
        %error,
        "a record that the store may have lost can't be written again: \
         the stored record can't be read"
    );
    Ok(())
}

fn random() -> Result<u64, StoreError> {
    getrandom::u64()
        .map_err(|_| StoreError::NotApplied("the system gives no random numbers".into()))
}

fn report(lost: usize, known_before: usize) {
    if lost > 0 {
        tracing::error!(
            partitions = lost,
            "the store has lost its records: this gateway writes its recent ones again"
        );
    } else if known_before > 0 {
        tracing::warn!(
            partitions = known_before,
            "the store's server was restarted or replaced: \
             this gateway writes its recent records again"
        );
    }
}
