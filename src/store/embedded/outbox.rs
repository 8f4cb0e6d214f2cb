//! The outbox and the dead letters of an embedded store.

use std::collections::BTreeSet;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::broadcast;

use super::jobs::{Job, WriteReply};
use super::outbox_change::OutboxChange;
use super::outbox_copy::OutboxPlace;
use super::outbox_tables;
use super::store::Embedded;
use super::{dead_letter_tables, outbox_copy, outbox_counts};
use crate::key::Slot;
use crate::store::copy::OutboxItem;
use crate::store::dead_letters::{
    Burial, DeadLetter, DeadLetterCursor, DeadLetterFilter, DeadLetterId, DeadLetterPage,
    DeadLetters, RoundChange,
};
use crate::store::error::{ListError, StoreError};
use crate::store::outbox::{
    DeliveryAttempts, DueEvents, EventContent, EventKey, Outbox, OutboxWake, RelayFence,
    SinkBacklog, WaitingEvent,
};
use crate::store::outbox_contents::{ContentsPage, OutboxContents, StoredContents};

#[async_trait]
impl Outbox for Embedded {
    fn partition_count(&self) -> u16 {
        1
    }

    /// The leases are not in the file: no other process uses it, and after a restart the relay has
    /// a new fence.
    async fn attend(
        &self,
        relay: RelayFence,
        lease: Duration,
    ) -> Result<Vec<RelayFence>, StoreError> {
        Ok(self.relays.attend(relay, lease, self.shared.clock.now_ms()))
    }

    async fn leave(&self, relay: RelayFence) -> Result<(), StoreError> {
        self.relays.leave(relay);
        Ok(())
    }

    async fn own_partition(
        &self,
        _partition: u16,
        fence: RelayFence,
        over: Option<RelayFence>,
    ) -> Result<bool, StoreError> {
        self.change_outbox(OutboxChange::Own { fence, over }).await
    }

    async fn partition_owners(&self) -> Result<Vec<Option<RelayFence>>, StoreError> {
        let owner = self.blocking(|shared| shared.reading(outbox_tables::owner)).await?;
        Ok(vec![owner])
    }

    async fn due_events(
        &self,
        _partition: u16,
        sink: &str,
        limit: usize,
    ) -> Result<DueEvents, StoreError> {
        let sink = sink.to_owned();
        self.blocking(move |shared| {
            let now_ms = shared.clock.now_ms();
            shared.reading(|txn| outbox_tables::due(txn, &sink, limit, now_ms))
        })
        .await
    }

    async fn postpone(
        &self,
        fence: RelayFence,
        event: &EventKey,
        round: u32,
        attempts: DeliveryAttempts,
        pause: Duration,
    ) -> Result<bool, StoreError> {
        let event = event.clone();
        self.change_outbox(OutboxChange::Postpone { fence, event, round, attempts, pause }).await
    }

    async fn replace_content(
        &self,
        fence: RelayFence,
        event: &EventKey,
        round: u32,
        content: &EventContent,
    ) -> Result<bool, StoreError> {
        let (event, content) = (event.clone(), content.clone());
        self.change_outbox(OutboxChange::ReplaceContent { fence, event, round, content }).await
    }

    async fn remove(
        &self,
        fence: RelayFence,
        event: &EventKey,
        round: u32,
    ) -> Result<bool, StoreError> {
        self.change_outbox(OutboxChange::Remove { fence, event: event.clone(), round }).await
    }

    async fn bury(
        &self,
        fence: RelayFence,
        event: &EventKey,
        round: u32,
        burial: &Burial,
    ) -> Result<bool, StoreError> {
        let (event, burial) = (event.clone(), burial.clone());
        self.change_outbox(OutboxChange::Bury { fence, event, round, burial }).await
    }

    async fn backlog(&self) -> Result<Vec<SinkBacklog>, StoreError> {
        self.blocking(|shared| shared.reading(outbox_counts::backlog)).await
    }

    async fn oldest_waiting_ms(
        &self,
        sink: &str,
        _: &BTreeSet<u16>,
    ) -> Result<Option<u64>, StoreError> {
        let sink = sink.to_owned();
        self.blocking(move |shared| shared.reading(|txn| outbox_tables::oldest_ms(txn, &sink)))
            .await
    }

    async fn waiting_of(&self, sink: &str, slot: &Slot) -> Result<Vec<WaitingEvent>, StoreError> {
        let (sink, slot) = (sink.to_owned(), *slot);
        self.blocking(move |shared| {
            shared.reading(|txn| outbox_tables::waiting_of(txn, &sink, &slot))
        })
        .await
    }

    fn wakes(&self) -> broadcast::Receiver<OutboxWake> {
        self.relays.wakes()
    }
}

#[async_trait]
impl DeadLetters for Embedded {
    async fn dead_letters(
        &self,
        filter: &DeadLetterFilter,
        cursor: Option<DeadLetterCursor>,
        limit: usize,
    ) -> Result<DeadLetterPage, StoreError> {
        let filter = filter.clone();
        self.blocking(move |shared| {
            shared.reading(|txn| dead_letter_tables::list(txn, &filter, cursor, limit))
        })
        .await
    }

    async fn dead_letter(&self, id: DeadLetterId) -> Result<Option<DeadLetter>, StoreError> {
        self.blocking(move |shared| shared.reading(|txn| dead_letter_tables::get(txn, id))).await
    }

    async fn requeue(&self, id: DeadLetterId, round: RoundChange) -> Result<bool, StoreError> {
        let Some(letter) = self.dead_letter(id).await? else { return Ok(false) };
        let is_requeued = self.change_outbox(OutboxChange::Requeue { id, round }).await?;
        self.relays.wake(&letter.key.sink);
        Ok(is_requeued)
    }

    async fn discard(&self, id: DeadLetterId) -> Result<bool, StoreError> {
        self.change_outbox(OutboxChange::Discard { id }).await
    }
}

#[async_trait]
impl OutboxContents for Embedded {
    async fn contents(&self, cursor: Option<&str>) -> Result<ContentsPage, ListError> {
        let from = OutboxPlace::parse(cursor).ok_or(ListError::Cursor)?;
        let read = self
            .blocking(move |shared| shared.reading(|txn| outbox_copy::page(txn, &from)))
            .await?;
        let mut page = ContentsPage::default().with_cursor(read.cursor);
        for item in read.items {
            page.add(match item {
                OutboxItem::Waiting { event, .. } => {
                    StoredContents { key: event.key, content: event.content, report: None }
                }
                OutboxItem::Dead(letter) => StoredContents {
                    key: letter.key,
                    content: letter.content,
                    report: Some(letter.burial.report),
                },
            });
        }
        Ok(page)
    }

    async fn replace_contents(
        &self,
        before: &StoredContents,
        after: &StoredContents,
    ) -> Result<bool, StoreError> {
        let (before, after) = (before.clone(), after.clone());
        self.change_outbox(OutboxChange::Replace { before, after }).await
    }
}

impl Embedded {
    async fn change_outbox(&self, change: OutboxChange) -> Result<bool, StoreError> {
        let reply = self.request(Job::Outbox(Box::new(change))).await?;
        Ok(matches!(reply, WriteReply::Outbox(true)))
    }
}
