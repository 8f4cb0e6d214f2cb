//! The outbox of a store that is not open yet: see [`super::pending`].

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::broadcast;

use super::dead_letters::Burial;
use super::error::StoreError;
use super::outbox::{
    DeliveryAttempts, DueEvents, EventContent, EventKey, Outbox, OutboxWake, RelayFence,
    SinkBacklog, WaitingEvent,
};
use crate::key::Slot;

/// Refuses every call until the store is open.
pub(super) struct PendingOutbox {
    inner: Arc<dyn Outbox>,
    is_open: Arc<AtomicBool>,
}

/// Returns the error of a call before the store is open.
pub(super) fn not_compared() -> StoreError {
    StoreError::NotApplied("its identities and keys are not compared yet".into())
}

impl PendingOutbox {
    pub fn new(inner: Arc<dyn Outbox>, is_open: Arc<AtomicBool>) -> PendingOutbox {
        PendingOutbox { inner, is_open }
    }

    fn opened(&self) -> Result<&dyn Outbox, StoreError> {
        self.is_open.load(Ordering::Acquire).then_some(&*self.inner).ok_or_else(not_compared)
    }
}

#[async_trait]
impl Outbox for PendingOutbox {
    fn partition_count(&self) -> u16 {
        self.inner.partition_count()
    }

    fn partition_of(&self, slot: &Slot) -> u16 {
        self.inner.partition_of(slot)
    }

    async fn attend(
        &self,
        relay: RelayFence,
        lease: Duration,
    ) -> Result<Vec<RelayFence>, StoreError> {
        self.opened()?.attend(relay, lease).await
    }

    async fn leave(&self, relay: RelayFence) -> Result<(), StoreError> {
        self.opened()?.leave(relay).await
    }

    async fn own_partition(
        &self,
        partition: u16,
        fence: RelayFence,
        over: Option<RelayFence>,
    ) -> Result<bool, StoreError> {
        self.opened()?.own_partition(partition, fence, over).await
    }

    async fn partition_owners(&self) -> Result<Vec<Option<RelayFence>>, StoreError> {
        self.opened()?.partition_owners().await
    }

    async fn due_events(
        &self,
        partition: u16,
        sink: &str,
        limit: usize,
    ) -> Result<DueEvents, StoreError> {
        self.opened()?.due_events(partition, sink, limit).await
    }

    async fn postpone(
        &self,
        fence: RelayFence,
        event: &EventKey,
        round: u32,
        attempts: DeliveryAttempts,
        pause: Duration,
    ) -> Result<bool, StoreError> {
        self.opened()?.postpone(fence, event, round, attempts, pause).await
    }

    async fn replace_content(
        &self,
        fence: RelayFence,
        event: &EventKey,
        round: u32,
        content: &EventContent,
    ) -> Result<bool, StoreError> {
        self.opened()?.replace_content(fence, event, round, content).await
    }

    async fn remove(
        &self,
        fence: RelayFence,
        event: &EventKey,
        round: u32,
    ) -> Result<bool, StoreError> {
        self.opened()?.remove(fence, event, round).await
    }

    async fn bury(
        &self,
        fence: RelayFence,
        event: &EventKey,
        round: u32,
        burial: &Burial,
    ) -> Result<bool, StoreError> {
        self.opened()?.bury(fence, event, round, burial).await
    }

    async fn backlog(&self) -> Result<Vec<SinkBacklog>, StoreError> {
        self.opened()?.backlog().await
    }

    async fn oldest_waiting_ms(
        &self,
        sink: &str,
        partitions: &BTreeSet<u16>,
    ) -> Result<Option<u64>, StoreError> {
        self.opened()?.oldest_waiting_ms(sink, partitions).await
    }

    async fn waiting_of(&self, sink: &str, slot: &Slot) -> Result<Vec<WaitingEvent>, StoreError> {
        self.opened()?.waiting_of(sink, slot).await
    }

    fn wakes(&self) -> broadcast::Receiver<OutboxWake> {
        self.inner.wakes()
    }
}
