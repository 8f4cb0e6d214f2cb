//! The outbox and the dead letters of a store in memory.

use std::collections::BTreeSet;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::broadcast;

use super::Memory;
use super::waiting_events::ContentsPlace;
use crate::hex;
use crate::key::Slot;
use crate::store::dead_letters::{
    Burial, DeadLetter, DeadLetterCursor, DeadLetterFilter, DeadLetterId, DeadLetterPage,
    DeadLetters, RoundChange,
};
use crate::store::error::{ListError, StoreError};
use crate::store::log::{MEMBER_BYTES, member, slot_of_member};
use crate::store::outbox::{
    DeliveryAttempts, DueEvents, EventContent, EventKey, EventOrder, Outbox, OutboxWake,
    RelayFence, SinkBacklog, WaitingEvent,
};
use crate::store::outbox_contents::{ContentsPage, OutboxContents, StoredContents};

#[async_trait]
impl Outbox for Memory {
    fn partition_count(&self) -> u16 {
        1
    }

    async fn attend(
        &self,
        relay: RelayFence,
        lease: Duration,
    ) -> Result<Vec<RelayFence>, StoreError> {
        Ok(self.relays.attend(relay, lease, (self.clock)()))
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
        Ok(self.lock().0.outbox.own(fence, over))
    }

    async fn partition_owners(&self) -> Result<Vec<Option<RelayFence>>, StoreError> {
        Ok(vec![self.lock().0.outbox.owner()])
    }

    async fn due_events(
        &self,
        _partition: u16,
        sink: &str,
        limit: usize,
    ) -> Result<DueEvents, StoreError> {
        let (contents, now_ms) = self.lock();
        Ok(contents.outbox.due(sink, limit, now_ms))
    }

    async fn postpone(
        &self,
        fence: RelayFence,
        event: &EventKey,
        round: u32,
        attempts: DeliveryAttempts,
        pause: Duration,
    ) -> Result<bool, StoreError> {
        let (mut contents, now_ms) = self.lock();
        Ok(contents.outbox.postpone(fence, event, round, attempts, pause, now_ms))
    }

    async fn replace_content(
        &self,
        fence: RelayFence,
        event: &EventKey,
        round: u32,
        content: &EventContent,
    ) -> Result<bool, StoreError> {
        Ok(self.lock().0.outbox.replace_content(fence, event, round, content))
    }

    async fn remove(
        &self,
        fence: RelayFence,
        event: &EventKey,
        round: u32,
    ) -> Result<bool, StoreError> {
        let (mut contents, now_ms) = self.lock();
        Ok(contents.outbox.remove(fence, event, round, now_ms))
    }

    async fn bury(
        &self,
        fence: RelayFence,
        event: &EventKey,
        round: u32,
        burial: &Burial,
    ) -> Result<bool, StoreError> {
        let (mut contents, now_ms) = self.lock();
        Ok(contents.outbox.bury(fence, event, round, burial, now_ms))
    }

    async fn backlog(&self) -> Result<Vec<SinkBacklog>, StoreError> {
        Ok(self.lock().0.outbox.backlog())
    }

    async fn oldest_waiting_ms(
        &self,
        sink: &str,
        _: &BTreeSet<u16>,
    ) -> Result<Option<u64>, StoreError> {
        Ok(self.lock().0.outbox.oldest_waiting_ms(sink))
    }

    async fn waiting_of(&self, sink: &str, slot: &Slot) -> Result<Vec<WaitingEvent>, StoreError> {
        Ok(self.lock().0.outbox.waiting_of(sink, slot))
    }

    fn wakes(&self) -> broadcast::Receiver<OutboxWake> {
        self.relays.wakes()
    }
}

#[async_trait]
impl DeadLetters for Memory {
    async fn dead_letters(
        &self,
        filter: &DeadLetterFilter,
        cursor: Option<DeadLetterCursor>,
        limit: usize,
    ) -> Result<DeadLetterPage, StoreError> {
        Ok(self.lock().0.outbox.dead_letters(filter, cursor, limit))
    }

    async fn dead_letter(&self, id: DeadLetterId) -> Result<Option<DeadLetter>, StoreError> {
        Ok(self.lock().0.outbox.dead_letter(id))
    }

    async fn requeue(&self, id: DeadLetterId, round: RoundChange) -> Result<bool, StoreError> {
        let (mut contents, now_ms) = self.lock();
        let requeued = contents.outbox.requeue(id, round, now_ms);
        drop(contents);
        requeued.iter().for_each(|key| self.relays.wake(&key.sink));
        Ok(requeued.is_some())
    }

    async fn discard(&self, id: DeadLetterId) -> Result<bool, StoreError> {
        Ok(self.lock().0.outbox.discard(id).is_some())
    }
}

#[async_trait]
impl OutboxContents for Memory {
    async fn contents(&self, cursor: Option<&str>) -> Result<ContentsPage, ListError> {
        let from = match cursor {
            Some(cursor) => Some(ContentsPlace::parse(cursor).ok_or(ListError::Cursor)?),
            None => None,
        };
        let (page, next) = self.lock().0.outbox.contents(from);
        Ok(page.with_cursor(next.map(|place| place.cursor())))
    }

    async fn replace_contents(
        &self,
        before: &StoredContents,
        after: &StoredContents,
    ) -> Result<bool, StoreError> {
        Ok(self.lock().0.outbox.replace(before, after))
    }
}

impl ContentsPlace {
    const WAITING: &str = "waiting ";
    const DEAD: &str = "dead ";

    /// Reads a cursor; `None` for any other text.
    fn parse(cursor: &str) -> Option<ContentsPlace> {
        if let Some(event) = cursor.strip_prefix(ContentsPlace::WAITING) {
            let event = hex::decode_all(event)?;
            let (operation, rest) = event.split_at_checked(MEMBER_BYTES)?;
            let (order, sink) = rest.split_first_chunk()?;
            return Some(ContentsPlace::Waiting(EventKey {
                sink: String::from_utf8(sink.to_vec()).ok()?,
                slot: slot_of_member(operation)?,
                order: EventOrder::decode(order),
            }));
        }
        let place = cursor.strip_prefix(ContentsPlace::DEAD)?;
        if place.is_empty() {
            return Some(ContentsPlace::Dead(None));
        }
        let (buried_ms, id) = place.split_once(' ')?;
        let (buried_ms, id) = (buried_ms.parse().ok()?, id.parse().ok()?);
        Some(ContentsPlace::Dead(Some(DeadLetterCursor { buried_ms, id })))
    }

    fn cursor(&self) -> String {
        match self {
            ContentsPlace::Waiting(EventKey { sink, slot, order }) => {
                let event = [&member(slot)[..], &order.encode(), sink.as_bytes()].concat();
                [ContentsPlace::WAITING, &hex::encode(&event)].concat()
            }
            ContentsPlace::Dead(None) => ContentsPlace::DEAD.to_owned(),
            ContentsPlace::Dead(Some(DeadLetterCursor { buried_ms, id })) => {
                format!("{}{buried_ms} {id}", ContentsPlace::DEAD)
            }
        }
    }
}
