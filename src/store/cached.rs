//! Records with a cache in the process: a claim that meets a cached record needs no round trip and
//! no decryption.
//!
//! The cache answers only claims that expect an empty slot. All other calls go to the store.
//! Waiters and operators, for example, read a record because it may have just changed.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio_util::task::AbortOnDropHandle;

use super::cache::LocalCache;
use super::error::{ListError, StoreError};
use super::records::{DueSagas, Events, Listing, Page, Records, Swap};
use super::watch::Watch;
use crate::key::Slot;
use crate::record::{Fence, Held, Lifetime, Record, Version};

/// Records with a cache in front.
pub struct Cached {
    inner: Arc<dyn Records>,
    cache: Arc<LocalCache>,
    _tracker: AbortOnDropHandle<()>,
}

impl Cached {
    /// Caches the records that `inner` returns. If `inner` encrypts, the cached records are
    /// decrypted. `tracker` reports changes to the cache. Dropping the store aborts it.
    pub fn new(
        inner: Arc<dyn Records>,
        cache: Arc<LocalCache>,
        tracker: AbortOnDropHandle<()>,
    ) -> Cached {
        Cached { inner, cache, _tracker: tracker }
    }
}

#[async_trait]
impl Records for Cached {
    async fn write(
        &self,
        slot: &Slot,
        expected: Option<Version>,
        next: &Record,
        lifetime: Lifetime,
        events: Events<'_>,
    ) -> Result<Swap, StoreError> {
        if expected.is_some() || !next.state.has_lease() {
            // The write replaces the cached record. Drop that record now: the report of the change
            // may come later.
            self.cache.changed(slot);
            return self.inner.write(slot, expected, next, lifetime, events).await;
        }
        if let Some(held) = self.cache.get(slot) {
            return Ok(Swap::Stale(Some(held)));
        }
        let swapped = self.inner.write(slot, expected, next, lifetime, events).await?;
        if let Swap::Stale(Some(held)) = &swapped {
            self.cache.offer(slot, held);
        }
        Ok(swapped)
    }

    async fn load(&self, slot: &Slot) -> Result<Option<Held>, StoreError> {
        let found = self.inner.load(slot).await?;
        // Only `load` returns large records.
        if let Some(held) = &found {
            self.cache.offer(slot, held);
        }
        Ok(found)
    }

    async fn remains(&self, slot: &Slot) -> Result<Option<Held>, StoreError> {
        self.inner.remains(slot).await
    }

    async fn renew(
        &self,
        slot: &Slot,
        fence: Fence,
        lease: Duration,
        keep: Duration,
    ) -> Result<bool, StoreError> {
        self.inner.renew(slot, fence, lease, keep).await
    }

    async fn due(&self, limit: usize) -> Result<Vec<Slot>, StoreError> {
        self.inner.due(limit).await
    }

    async fn due_sagas(&self, limit: usize) -> Result<DueSagas, StoreError> {
        self.inner.due_sagas(limit).await
    }

    async fn list(
        &self,
        listing: Listing,
        cursor: Option<&str>,
        limit: usize,
    ) -> Result<Page, ListError> {
        self.inner.list(listing, cursor, limit).await
    }

    fn watch(&self, slot: &Slot) -> Watch {
        self.inner.watch(slot)
    }

    async fn ping(&self) -> Result<(), StoreError> {
        self.inner.ping().await
    }
}

#[cfg(test)]
mod tests;
