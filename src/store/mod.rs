//! Where records are kept. One write verb, [`Store::write`]: compare the version, then write; all rules are elsewhere.
//!
//! Danger: the result of a call can be unknown. An error says whether the write was certainly not applied or may have
//! been; who gets a [`StoreError::MaybeApplied`] reads back and looks for its own fence.

use std::time::Duration;

use async_trait::async_trait;

use crate::key::{Slot, Space};
use crate::record::{CodecError, Fence, Held, Lifetime, Record, Version};

pub mod cache;
pub mod cached;
pub mod copy;
pub mod embedded;
mod large;
pub mod latched;
pub mod log;
pub mod memory;
pub mod redis;
pub mod sealed;
mod watch;

#[cfg(test)]
pub(crate) mod suite;

pub use log::Log;
pub use watch::{Hub, Watch};

/// What [`Store::write`] did.
#[derive(Debug, Clone, PartialEq)]
pub enum Swap {
    /// The record is written, as durably as the store promises.
    Stored,
    /// Another version is there (`None`: nothing is); nothing was written.
    Stale(Option<Held>),
    /// Another version is there, under this fence, in a record so large that it is read by itself: [`Store::load`]. Nothing was
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

/// What a change says of itself to the [log](Log); it is asked for that only where it may be appended. Most claims of duplicates
/// append nothing, and making an event for each of them would cost more than noting the duplicate does.
pub type Says<'a> = &'a (dyn Fn() -> Vec<u8> + Send + Sync);

/// What a change says that is not to be told.
pub const NOTHING: Says<'static> = &Vec::new;

/// A keeper of records. Every method is safe to cancel; a cancelled write counts as [`StoreError::MaybeApplied`].
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// Writes `next` if the slot's version is `expected` (`None`: if nothing is there), atomically with the index of
    /// unsettled records and the tombstone, and wakes who watches the slot.
    ///
    /// Re-entrant: where the slot already holds a record of `next`'s version, fence and state, it was this very call
    /// that wrote it, and the answer is `Stored`.
    ///
    /// In the same atomic step what the change says is appended to the [log](Store::log): once, however often the call is
    /// repeated, and not at all where the answer is `Stale`, or where it says nothing.
    async fn write(
        &self,
        slot: &Slot,
        expected: Option<Version>,
        next: &Record,
        lifetime: Lifetime,
        says: Says<'_>,
    ) -> Result<Swap, StoreError>;

    /// Writes without an event.
    async fn swap(
        &self,
        slot: &Slot,
        expected: Option<Version>,
        next: &Record,
        lifetime: Lifetime,
    ) -> Result<Swap, StoreError> {
        self.write(slot, expected, next, lifetime, NOTHING).await
    }

    /// The event log.
    fn log(&self) -> &dyn Log;

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
