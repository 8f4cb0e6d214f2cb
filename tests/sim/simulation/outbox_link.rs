//! The connection between a relay and the store. Its commands have the faults of all commands.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use onceward::key::Slot;
use onceward::store::dead_letters::{
    Burial, DeadLetter, DeadLetterCursor, DeadLetterFilter, DeadLetterId, DeadLetterPage,
    RoundChange,
};
use onceward::store::outbox::{
    DeliveryAttempts, DueEvents, EventContent, EventKey, OutboxWake, RelayFence, SinkBacklog,
    WaitingEvent,
};
use onceward::store::{DeadLetters, IdentityNotes, Note, Outbox, StoreError};
use tokio::sync::broadcast;
use tokio::time::Instant;

use super::link::{Link, at_once};
use super::world::World;

/// A relay's store: the shared one, over a network.
pub struct RelayLink {
    pub link: Arc<Link>,
    /// The number of the relay. A process that starts its relay again has another one.
    pub relay: u64,
}

impl RelayLink {
    async fn send<T: Send + 'static>(
        &self,
        carry_out: impl Fn(&World) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        self.link.process.runs().await;
        self.link.send(self.link.fate(), carry_out).await
    }

    /// Sends a command about an event. The process may stop or die when it has its answer.
    async fn change(
        &self,
        event: &EventKey,
        carry_out: impl Fn(&World) -> Result<bool, StoreError> + Send + 'static,
    ) -> Result<bool, StoreError> {
        let result = self.send(carry_out).await;
        let Link { world, process, .. } = &*self.link;
        world.strike(process, world.key_of(&event.slot));
        process.runs().await;
        result
    }
}

#[async_trait]
impl Outbox for RelayLink {
    fn partition_count(&self) -> u16 {
        1
    }

    async fn attend(
        &self,
        relay: RelayFence,
        lease: Duration,
    ) -> Result<Vec<RelayFence>, StoreError> {
        let number = self.relay;
        self.send(move |world| world.attends(number, relay, lease)).await
    }

    async fn leave(&self, relay: RelayFence) -> Result<(), StoreError> {
        self.send(move |world| {
            at_once(world.store.leave(relay))?;
            let (partition, sink) = (OutboxWake::LEFT, String::new());
            world.wake_relays(&OutboxWake { partition, sink });
            Ok(())
        })
        .await
    }

    async fn own_partition(
        &self,
        _: u16,
        fence: RelayFence,
        over: Option<RelayFence>,
    ) -> Result<bool, StoreError> {
        let (number, sent) = (self.relay, Instant::now());
        self.send(move |world| world.owns(number, sent, fence, over)).await
    }

    async fn partition_owners(&self) -> Result<Vec<Option<RelayFence>>, StoreError> {
        self.send(|world| world.owners()).await
    }

    async fn due_events(&self, _: u16, sink: &str, limit: usize) -> Result<DueEvents, StoreError> {
        let sink = sink.to_owned();
        self.send(move |world| world.due_events(&sink, limit)).await
    }

    async fn postpone(
        &self,
        fence: RelayFence,
        event: &EventKey,
        round: u32,
        attempts: DeliveryAttempts,
        pause: Duration,
    ) -> Result<bool, StoreError> {
        let key = event.clone();
        self.change(event, move |world| world.postpone(fence, &key, round, attempts, pause)).await
    }

    async fn replace_content(
        &self,
        fence: RelayFence,
        event: &EventKey,
        round: u32,
        content: &EventContent,
    ) -> Result<bool, StoreError> {
        let (key, content) = (event.clone(), content.clone());
        self.change(event, move |world| {
            at_once(world.store.replace_content(fence, &key, round, &content))
        })
        .await
    }

    async fn remove(
        &self,
        fence: RelayFence,
        event: &EventKey,
        round: u32,
    ) -> Result<bool, StoreError> {
        let key = event.clone();
        self.change(event, move |world| world.remove(fence, &key, round)).await
    }

    async fn bury(
        &self,
        fence: RelayFence,
        event: &EventKey,
        round: u32,
        burial: &Burial,
    ) -> Result<bool, StoreError> {
        let (key, burial) = (event.clone(), burial.clone());
        self.change(event, move |world| world.bury(fence, &key, round, &burial)).await
    }

    async fn backlog(&self) -> Result<Vec<SinkBacklog>, StoreError> {
        self.send(|world| at_once(world.store.backlog())).await
    }

    async fn oldest_waiting_ms(
        &self,
        sink: &str,
        partitions: &BTreeSet<u16>,
    ) -> Result<Option<u64>, StoreError> {
        let (sink, partitions) = (sink.to_owned(), partitions.clone());
        self.send(move |world| at_once(world.store.oldest_waiting_ms(&sink, &partitions))).await
    }

    async fn waiting_of(&self, sink: &str, slot: &Slot) -> Result<Vec<WaitingEvent>, StoreError> {
        let (sink, slot) = (sink.to_owned(), *slot);
        self.send(move |world| at_once(world.store.waiting_of(&sink, &slot))).await
    }

    fn wakes(&self) -> broadcast::Receiver<OutboxWake> {
        self.link.process.wakes.subscribe()
    }
}

#[async_trait]
impl DeadLetters for RelayLink {
    async fn dead_letters(
        &self,
        filter: &DeadLetterFilter,
        cursor: Option<DeadLetterCursor>,
        limit: usize,
    ) -> Result<DeadLetterPage, StoreError> {
        let filter = filter.clone();
        self.send(move |world| at_once(world.store.dead_letters(&filter, cursor, limit))).await
    }

    async fn dead_letter(&self, id: DeadLetterId) -> Result<Option<DeadLetter>, StoreError> {
        self.send(move |world| at_once(world.store.dead_letter(id))).await
    }

    async fn requeue(&self, id: DeadLetterId, round: RoundChange) -> Result<bool, StoreError> {
        self.send(move |world| world.requeue(id, round)).await
    }

    async fn discard(&self, id: DeadLetterId) -> Result<bool, StoreError> {
        self.send(move |world| world.discard(id)).await
    }
}

#[async_trait]
impl IdentityNotes for RelayLink {
    async fn note(&self, note: Note) -> Result<Option<String>, StoreError> {
        self.send(move |world| at_once(world.store.note(note))).await
    }

    async fn set_note(
        &self,
        note: Note,
        expected: Option<&str>,
        next: &str,
    ) -> Result<bool, StoreError> {
        let (expected, next) = (expected.map(str::to_owned), next.to_owned());
        self.send(move |world| at_once(world.store.set_note(note, expected.as_deref(), &next)))
            .await
    }
}
