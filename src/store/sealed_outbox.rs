//! The outbox and the dead letters with sealed contents. [`super::sealed`] seals an event when its
//! change is written; this wrapper opens it for the relay and for operators.
//!
//! A content that can't be opened stays sealed. A relay must not deliver it, and it must not stop
//! the events behind it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::broadcast;

use super::dead_letters::{
    Burial, DeadLetter, DeadLetterCursor, DeadLetterFilter, DeadLetterId, DeadLetterPage,
    DeadLetters, RoundChange,
};
use super::error::StoreError;
use super::outbox::{
    DeliveryAttempts, DueEvents, EventContent, EventKey, Outbox, OutboxWake, RelayFence,
    SinkBacklog, WaitingEvent,
};
use super::sealing::SealingKeys;
use crate::key::Slot;

/// Purpose of a sealed event.
pub(super) const EVENT: &[u8] = b"event";
/// Purpose of a sealed report of a dead letter.
pub(super) const REPORT: &[u8] = b"report";

/// An outbox and dead letters with sealed contents.
pub(super) struct SealedOutbox {
    outbox: Arc<dyn Outbox>,
    dead_letters: Arc<dyn DeadLetters>,
    keys: Arc<SealingKeys>,
}

impl SealedOutbox {
    pub fn new(
        outbox: Arc<dyn Outbox>,
        dead_letters: Arc<dyn DeadLetters>,
        keys: Arc<SealingKeys>,
    ) -> SealedOutbox {
        SealedOutbox { outbox, dead_letters, keys }
    }

    fn opened(&self, letter: DeadLetter) -> DeadLetter {
        let content = self.keys.open_event(&letter.key, EVENT, letter.content);
        let report = self.keys.open_event(&letter.key, REPORT, letter.burial.report);
        DeadLetter { content, burial: Burial { report, ..letter.burial }, ..letter }
    }
}

#[async_trait]
impl Outbox for SealedOutbox {
    fn partition_count(&self) -> u16 {
        self.outbox.partition_count()
    }

    fn partition_of(&self, slot: &Slot) -> u16 {
        self.outbox.partition_of(slot)
    }

    async fn attend(
        &self,
        relay: RelayFence,
        lease: Duration,
    ) -> Result<Vec<RelayFence>, StoreError> {
        self.outbox.attend(relay, lease).await
    }

    async fn leave(&self, relay: RelayFence) -> Result<(), StoreError> {
        self.outbox.leave(relay).await
    }

    async fn own_partition(
        &self,
        partition: u16,
        fence: RelayFence,
        over: Option<RelayFence>,
    ) -> Result<bool, StoreError> {
        self.outbox.own_partition(partition, fence, over).await
    }

    async fn partition_owners(&self) -> Result<Vec<Option<RelayFence>>, StoreError> {
        self.outbox.partition_owners().await
    }

    async fn due_events(
        &self,
        partition: u16,
        sink: &str,
        limit: usize,
    ) -> Result<DueEvents, StoreError> {
        let mut due = self.outbox.due_events(partition, sink, limit).await?;
        for event in &mut due.events {
            event.content = self.keys.open_event(&event.key, EVENT, event.content.clone());
        }
        Ok(due)
    }

    async fn postpone(
        &self,
        fence: RelayFence,
        event: &EventKey,
        round: u32,
        attempts: DeliveryAttempts,
        pause: Duration,
    ) -> Result<bool, StoreError> {
        self.outbox.postpone(fence, event, round, attempts, pause).await
    }

    async fn replace_content(
        &self,
        fence: RelayFence,
        event: &EventKey,
        round: u32,
        content: &EventContent,
    ) -> Result<bool, StoreError> {
        let content = self.keys.seal_event(event, EVENT, content)?;
        self.outbox.replace_content(fence, event, round, &content).await
    }

    async fn remove(
        &self,
        fence: RelayFence,
        event: &EventKey,
        round: u32,
    ) -> Result<bool, StoreError> {
        self.outbox.remove(fence, event, round).await
    }

    async fn bury(
        &self,
        fence: RelayFence,
        event: &EventKey,
        round: u32,
        burial: &Burial,
    ) -> Result<bool, StoreError> {
        let report = self.keys.seal_event(event, REPORT, &burial.report)?;
        let burial = Burial { report, kind: burial.kind };
        self.outbox.bury(fence, event, round, &burial).await
    }

    async fn backlog(&self) -> Result<Vec<SinkBacklog>, StoreError> {
        self.outbox.backlog().await
    }

    async fn oldest_waiting_ms(
        &self,
        sink: &str,
        partitions: &BTreeSet<u16>,
    ) -> Result<Option<u64>, StoreError> {
        self.outbox.oldest_waiting_ms(sink, partitions).await
    }

    async fn waiting_of(&self, sink: &str, slot: &Slot) -> Result<Vec<WaitingEvent>, StoreError> {
        let mut waiting = self.outbox.waiting_of(sink, slot).await?;
        for event in &mut waiting {
            event.content = self.keys.open_event(&event.key, EVENT, event.content.clone());
        }
        Ok(waiting)
    }

    fn wakes(&self) -> broadcast::Receiver<OutboxWake> {
        self.outbox.wakes()
    }
}

#[async_trait]
impl DeadLetters for SealedOutbox {
    async fn dead_letters(
        &self,
        filter: &DeadLetterFilter,
        cursor: Option<DeadLetterCursor>,
        limit: usize,
    ) -> Result<DeadLetterPage, StoreError> {
        let page = self.dead_letters.dead_letters(filter, cursor, limit).await?;
        let letters = page.letters.into_iter().map(|letter| self.opened(letter)).collect();
        Ok(DeadLetterPage { letters, cursor: page.cursor })
    }

    async fn dead_letter(&self, id: DeadLetterId) -> Result<Option<DeadLetter>, StoreError> {
        Ok(self.dead_letters.dead_letter(id).await?.map(|letter| self.opened(letter)))
    }

    async fn requeue(&self, id: DeadLetterId, round: RoundChange) -> Result<bool, StoreError> {
        self.dead_letters.requeue(id, round).await
    }

    async fn discard(&self, id: DeadLetterId) -> Result<bool, StoreError> {
        self.dead_letters.discard(id).await
    }
}
