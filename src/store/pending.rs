//! A wrapper that refuses calls until the gateway has compared its identities of operations and its
//! keys with those of the store.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;

use super::Store;
use super::error::{ListError, StoreError};
use super::identities::{IdentityNotes, Note};
use super::pending_outbox::{PendingOutbox, not_compared};
use super::records::{DueSagas, Events, Listing, Page, Records, Swap};
use super::watch::Watch;
use crate::key::Slot;
use crate::record::{Fence, Held, Lifetime, Record, Version};

/// Refuses every call about records, notes and waiting events until [`PendingStore::open`], with
/// the error of a store that is out of reach. Until then, routes fail closed or open as configured,
/// and the gateway is not ready and delivers nothing: it would bury what it has no key for. The
/// event log and the dead letters stay usable.
pub struct PendingStore {
    inner: Store,
    is_open: Arc<AtomicBool>,
    outbox: Arc<PendingOutbox>,
}

impl PendingStore {
    /// Returns a closed wrapper of a store.
    pub fn new(inner: Store) -> Arc<PendingStore> {
        let is_open = Arc::<AtomicBool>::default();
        let outbox = Arc::new(PendingOutbox::new(inner.outbox.clone(), is_open.clone()));
        Arc::new(PendingStore { inner, is_open, outbox })
    }

    /// Returns the store as gateways use it.
    pub fn store(self: &Arc<Self>) -> Store {
        Store {
            records: self.clone(),
            log: self.inner.log.clone(),
            outbox: self.outbox.clone(),
            dead_letters: self.inner.dead_letters.clone(),
            contents: self.inner.contents.clone(),
            identities: self.clone(),
        }
    }

    /// Opens the wrapper permanently.
    pub fn open(&self) {
        self.is_open.store(true, Ordering::Release);
    }

    fn opened(&self) -> Result<&Store, StoreError> {
        if self.is_open.load(Ordering::Acquire) {
            return Ok(&self.inner);
        }
        Err(not_compared())
    }

    fn records(&self) -> Result<&dyn Records, StoreError> {
        Ok(&*self.opened()?.records)
    }
}

#[async_trait]
impl Records for PendingStore {
    async fn write(
        &self,
        slot: &Slot,
        expected: Option<Version>,
        next: &Record,
        lifetime: Lifetime,
        events: Events<'_>,
    ) -> Result<Swap, StoreError> {
        self.records()?.write(slot, expected, next, lifetime, events).await
    }

    async fn load(&self, slot: &Slot) -> Result<Option<Held>, StoreError> {
        self.records()?.load(slot).await
    }

    async fn remains(&self, slot: &Slot) -> Result<Option<Held>, StoreError> {
        self.records()?.remains(slot).await
    }

    async fn renew(
        &self,
        slot: &Slot,
        fence: Fence,
        lease: Duration,
        keep: Duration,
    ) -> Result<bool, StoreError> {
        self.records()?.renew(slot, fence, lease, keep).await
    }

    async fn due(&self, limit: usize) -> Result<Vec<Slot>, StoreError> {
        self.records()?.due(limit).await
    }

    async fn due_sagas(&self, limit: usize) -> Result<DueSagas, StoreError> {
        self.records()?.due_sagas(limit).await
    }

    async fn list(
        &self,
        listing: Listing,
        cursor: Option<&str>,
        limit: usize,
    ) -> Result<Page, ListError> {
        self.records()?.list(listing, cursor, limit).await
    }

    fn watch(&self, slot: &Slot) -> Watch {
        self.inner.records.watch(slot)
    }

    async fn ping(&self) -> Result<(), StoreError> {
        self.records()?.ping().await
    }
}

#[async_trait]
impl IdentityNotes for PendingStore {
    async fn note(&self, note: Note) -> Result<Option<String>, StoreError> {
        self.opened()?.identities.note(note).await
    }

    async fn set_note(
        &self,
        note: Note,
        expected: Option<&str>,
        next: &str,
    ) -> Result<bool, StoreError> {
        self.opened()?.identities.set_note(note, expected, next).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::Space;
    use crate::store::memory::Memory;
    use crate::store::suite::{Stage, Time, claim, slot};

    async fn opened() -> Stage {
        let time = Time::by_hand();
        let pending = PendingStore::new(Arc::new(Memory::new(time.clock())).into());
        pending.open();
        Stage::of_shared(pending.store(), time)
    }

    mod as_any_store {
        crate::store::suite::stories!(super::opened);
    }

    #[tokio::test]
    async fn nothing_passes_until_it_is_opened() {
        let inner = Arc::new(Memory::new(Arc::new(|| 1000)));
        let pending = PendingStore::new(inner.clone().into());
        let (slot, lifetime) = (
            slot(Space::Enforced, 1),
            Lifetime { keep: Duration::from_secs(60), due: None, tombstone: None },
        );
        let refused = pending.swap(&slot, None, &claim(1, 1), lifetime).await;
        assert!(matches!(refused, Err(StoreError::NotApplied(_))), "{refused:?}");
        assert!(
            pending.ping().await.is_err()
                && pending.load(&slot).await.is_err()
                && pending.remains(&slot).await.is_err()
        );
        assert_eq!(inner.load(&slot).await.unwrap(), None);
        pending.open();
        assert_eq!(pending.swap(&slot, None, &claim(1, 1), lifetime).await.unwrap(), Swap::Stored);
        assert!(pending.ping().await.is_ok() && pending.load(&slot).await.unwrap().is_some());
    }
}
