//! The part of a store that keeps the records of operations.
//!
//! Danger: the result of a call can be unknown. [`StoreError::NotApplied`] means that nothing was
//! written. After [`StoreError::MaybeApplied`] the caller must load the record and look for its own
//! fence.

use std::time::Duration;

use async_trait::async_trait;

use super::error::{ListError, StoreError};
use super::outbox::OutboxEvent;
use super::watch::Watch;
use crate::key::{Slot, Space};
use crate::record::{Fence, Held, Lifetime, Record, Version};

/// Result of [`Records::write`].
#[derive(Debug, Clone, PartialEq)]
pub enum Swap {
    /// The record is written, as durably as the store promises.
    Stored,
    /// The slot holds another version, or is empty (`None`). Nothing was written.
    Stale(Option<Held>),
    /// The slot holds another version, under this fence. The record is so large that only
    /// [`Records::load`] returns it. Nothing was written.
    Large(Fence),
}

/// Selects the records of a listing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Listing {
    /// Records that are in flight or uncertain, from the index of unsettled records. Sagas are not
    /// among them.
    Unsettled,
    /// Every record, in no particular order.
    All,
    /// Sagas that have not ended, from the index of sagas.
    Sagas,
}

/// A page of a listing.
#[derive(Debug, Clone, Default)]
pub struct Page {
    /// The records found. Records of shadow routes are left out.
    pub records: Vec<(Slot, Held)>,
    /// Where the next page begins; `None` at the end.
    pub cursor: Option<String>,
}

/// Sagas with an ended lease.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DueSagas {
    /// Their slots.
    pub slots: Vec<Slot>,
    /// The store's time at the read, in ms since 1970.
    pub now_ms: u64,
}

/// Makes the event of a change, for the [event log](super::EventLog). An empty event is not
/// appended.
///
/// A store calls the function only when it is about to append the event. Most claims of duplicates
/// append nothing, and encoding an event for each of them would cost more than the duplicate
/// itself.
pub type EventSource<'a> = &'a (dyn Fn() -> Vec<u8> + Send + Sync);

/// The events of a change. They are written in the same step as its record.
#[derive(Clone, Copy)]
pub struct Events<'a> {
    /// The event for the [event log](super::EventLog).
    pub log: EventSource<'a>,
    /// The events for sinks.
    pub outbox: &'a [OutboxEvent],
}

impl Events<'static> {
    /// No events.
    pub const NONE: Events<'static> = Events { log: &Vec::new, outbox: &[] };
}

impl<'a> Events<'a> {
    /// Returns an event for the event log alone.
    pub fn logged(log: EventSource<'a>) -> Events<'a> {
        Events { log, outbox: &[] }
    }
}

/// Keeps the records of operations. Every method is safe to cancel; a cancelled write counts as
/// [`StoreError::MaybeApplied`].
#[async_trait]
pub trait Records: Send + Sync + 'static {
    /// Writes `next` if the slot holds version `expected` (`None`: if the slot is empty).
    ///
    /// The same atomic step updates the indexes and the tombstone, and writes the events. A saga is
    /// in an index of its own, and never in that of unsettled records: older gateways remove states
    /// from it that they don't know. After that, the watchers of the slot are woken. If the answer
    /// is `Stale` or `Large`, no event is written.
    ///
    /// Idempotent: if the slot already holds a record with `next`'s version, fence and state, an
    /// earlier try of the same write has stored it. Then the answer is `Stored`, and the events are
    /// not written again.
    async fn write(
        &self,
        slot: &Slot,
        expected: Option<Version>,
        next: &Record,
        lifetime: Lifetime,
        events: Events<'_>,
    ) -> Result<Swap, StoreError>;

    /// Writes without events.
    async fn swap(
        &self,
        slot: &Slot,
        expected: Option<Version>,
        next: &Record,
        lifetime: Lifetime,
    ) -> Result<Swap, StoreError> {
        self.write(slot, expected, next, lifetime, Events::NONE).await
    }

    /// Reads a record.
    async fn load(&self, slot: &Slot) -> Result<Option<Held>, StoreError>;

    /// Reads a record, or its tombstone if the record has ended.
    async fn remains(&self, slot: &Slot) -> Result<Option<Held>, StoreError>;

    /// Extends the lease of the attempt, or of the saga's owner, with this fence. The lease then
    /// ends after `lease`, and the record disappears after `keep`, both counted from now. `keep`
    /// replaces [`Lifetime::keep`] of the last write, and should be longer than `lease`: a record
    /// that disappears frees its key. A `lease` of zero gives a saga back.
    ///
    /// Returns `false`, and changes nothing, if the record is neither in flight nor a saga under
    /// that fence, or if its lease has ended. Another gateway may already have acted on the end of
    /// that lease.
    ///
    /// Neither changes the version nor appends an event.
    async fn renew(
        &self,
        slot: &Slot,
        fence: Fence,
        lease: Duration,
        keep: Duration,
    ) -> Result<bool, StoreError>;

    /// Returns up to `limit` slots of unsettled records with a due time in the past. Removes index
    /// entries of records that are gone.
    async fn due(&self, limit: usize) -> Result<Vec<Slot>, StoreError>;

    /// Returns up to `limit` slots of sagas with an ended lease: other gateways may take them over.
    /// Removes index entries of records that are gone, or that are no sagas.
    ///
    /// Without sagas the call is so cheap that a gateway can make it every second.
    async fn due_sagas(&self, limit: usize) -> Result<DueSagas, StoreError>;

    /// Lists up to `limit` records from `cursor` on. The listing is for people: it may miss records
    /// that change meanwhile.
    ///
    /// Only a page without a cursor is the last one. Earlier pages may be short, or even empty.
    async fn list(
        &self,
        listing: Listing,
        cursor: Option<&str>,
        limit: usize,
    ) -> Result<Page, ListError>;

    /// Watches a slot: [`Watch::changed`] returns when the record may have changed, and once at the
    /// start.
    fn watch(&self, slot: &Slot) -> Watch;

    /// Checks that the store answers and accepts writes.
    async fn ping(&self) -> Result<(), StoreError>;
}

/// Whether listings show the slot: they leave out the slots of shadow routes.
pub(crate) fn is_listed(slot: &Slot) -> bool {
    slot.space == Space::Enforced
}
