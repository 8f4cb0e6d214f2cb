//! The store: where gateways keep the records of operations, the event log, and the notes about identities.
//!
//! A [`Store`] has three parts, one trait each: [`Records`], [`EventLog`] and [`IdentityNotes`]. `memory`, `embedded` and
//! `redis` implement all three. A wrapper (`sealed`, `cached`, `pending`) takes the place of the parts that it changes.
//!
//! There is one write verb, [`Records::write`]: it compares the version, then writes the record and its event in one atomic
//! step. All rules about records are in `engine`.
//!
//! Danger: the result of a call can be unknown. [`StoreError::NotApplied`] means that nothing was written. After
//! [`StoreError::MaybeApplied`] the caller must load the record and look for its own fence.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use crate::key::{Slot, Space};
use crate::record::{CodecError, Fence, Held, Lifetime, Record, Version};

pub mod cache;
pub mod cached;
pub mod copy;
pub mod embedded;
mod large;
pub mod log;
pub mod memory;
pub mod pending;
pub mod redis;
pub mod sealed;
mod watch;

#[cfg(test)]
pub(crate) mod suite;

pub use log::EventLog;
pub use watch::{Hub, Watch};

/// A store, part by part. Cheap to clone.
#[derive(Clone)]
pub struct Store {
    /// The records of operations.
    pub records: Arc<dyn Records>,
    /// The log of their changes.
    pub log: Arc<dyn EventLog>,
    /// What the gateways of the store have agreed on.
    pub identities: Arc<dyn IdentityNotes>,
}

impl<T: Records + EventLog + IdentityNotes> From<Arc<T>> for Store {
    fn from(store: Arc<T>) -> Store {
        Store { records: store.clone(), log: store.clone(), identities: store }
    }
}

/// Result of [`Records::write`].
#[derive(Debug, Clone, PartialEq)]
pub enum Swap {
    /// The record is written, as durably as the store promises.
    Stored,
    /// Another version is there (`None`: nothing is); nothing was written.
    Stale(Option<Held>),
    /// Another version is there, under this fence, in a record so large that it is read by itself: [`Records::load`]. Nothing was
    /// written.
    Large(Fence),
}

/// Which records to list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Listing {
    /// In flight and uncertain ones, from the index.
    Unsettled,
    /// Every record, in no order.
    All,
}

/// A text about all records that the gateways of a store have agreed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Note {
    /// What identities are made of.
    Identities,
    /// Which requests the routes cover.
    Paths,
}

impl Note {
    /// All notes, in the order in which a copy writes them: once there are identities, gateways compare them with the rest.
    pub const ALL: [Note; 2] = [Note::Paths, Note::Identities];
}

/// A page of a listing.
#[derive(Debug, Clone, Default)]
pub struct Page {
    /// The records found, of enforcing routes only.
    pub records: Vec<(Slot, Held)>,
    /// Where the next page begins; `None` at the end.
    pub cursor: Option<String>,
}

/// A store call without a result.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// Nothing was written.
    #[error("the store refused or could not be reached, nothing was written: {0}")]
    NotApplied(String),
    /// The call may have been carried out, or may still be.
    #[error("the store did not confirm, the write may have happened: {0}")]
    MaybeApplied(String),
    /// There is a large record, and it was not read in time. Nothing was written; the record stands in the way of a claim.
    #[error("a large record could not be read now: {0}")]
    Unread(String),
    /// There is a record, and it can't be read. It is neither replayed nor run again.
    #[error("a stored record cannot be read: {0}")]
    Corrupt(#[from] CodecError),
}

/// Why there is no page of a listing.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ListError {
    /// Where it was to go on is no place in one. Asking again changes nothing: begin without a cursor.
    #[error("that is not the cursor of a listing")]
    Cursor,
    /// The store did not tell.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Makes the event of a change, for the [log](EventLog). Called only where the event may be appended: most claims of
/// duplicates append nothing, and making an event for each of them would cost more than the duplicate itself.
///
/// An empty event is not appended.
pub type EventSource<'a> = &'a (dyn Fn() -> Vec<u8> + Send + Sync);

/// Makes no event.
pub const NO_EVENT: EventSource<'static> = &Vec::new;

/// Keeps the records of operations. Every method is safe to cancel; a cancelled write counts as
/// [`StoreError::MaybeApplied`].
#[async_trait]
pub trait Records: Send + Sync + 'static {
    /// Writes `next` if the slot's version is `expected` (`None`: if nothing is there), atomically with the index of
    /// unsettled records and the tombstone, and wakes who watches the slot.
    ///
    /// Re-entrant: where the slot already holds a record of `next`'s version, fence and state, it was this very call
    /// that wrote it, and the answer is `Stored`.
    ///
    /// Appends the event to the [log](EventLog) in the same atomic step: once, however often the call is repeated, and never
    /// when the answer is `Stale`.
    async fn write(
        &self,
        slot: &Slot,
        expected: Option<Version>,
        next: &Record,
        lifetime: Lifetime,
        event: EventSource<'_>,
    ) -> Result<Swap, StoreError>;

    /// Writes without an event.
    async fn swap(
        &self,
        slot: &Slot,
        expected: Option<Version>,
        next: &Record,
        lifetime: Lifetime,
    ) -> Result<Swap, StoreError> {
        self.write(slot, expected, next, lifetime, NO_EVENT).await
    }

    /// Reads a record.
    async fn load(&self, slot: &Slot) -> Result<Option<Held>, StoreError>;

    /// Reads a record, or where none is left the tombstone that it left.
    async fn remains(&self, slot: &Slot) -> Result<Option<Held>, StoreError>;

    /// Extends the lease of the attempt `fence`, if the record is still in flight under it and the lease isn't over: a
    /// lease that somebody has seen end stays ended. Changes no version.
    async fn renew(
        &self,
        slot: &Slot,
        fence: Fence,
        lease: Duration,
        keep: Duration,
    ) -> Result<bool, StoreError>;

    /// Up to `limit` slots of unsettled records that are overdue. What it lists that is gone, it forgets.
    async fn due(&self, limit: usize) -> Result<Vec<Slot>, StoreError>;

    /// Lists up to `limit` records from `cursor` on. For people: it may miss what changes meanwhile. A page may be short, and
    /// even empty, before the end: that has no cursor.
    async fn list(
        &self,
        listing: Listing,
        cursor: Option<&str>,
        limit: usize,
    ) -> Result<Page, ListError>;

    /// Watches a slot: [`Watch::changed`] returns when the record may have changed, and once at the start.
    fn watch(&self, slot: &Slot) -> Watch;

    /// Whether the store answers and accepts writes.
    async fn ping(&self) -> Result<(), StoreError>;
}

/// Keeps notes: texts that all gateways of a store compare with their configuration before they use it.
#[async_trait]
pub trait IdentityNotes: Send + Sync + 'static {
    /// Reads a note. Notes are kept for as long as the store.
    async fn note(&self, note: Note) -> Result<Option<String>, StoreError>;

    /// Writes a note if it is `expected`, or is that very text already; `false` where it is another.
    async fn set_note(
        &self,
        note: Note,
        expected: Option<&str>,
        next: &str,
    ) -> Result<bool, StoreError>;
}

/// Whether a slot belongs to a listing for people.
pub(crate) fn is_listed(slot: &Slot) -> bool {
    slot.space == Space::Enforced
}
