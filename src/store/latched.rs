//! A store that can't be used until it is opened: to whoever asks it is out of reach.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;

use super::{ListError, Listing, Log, Note, Page, Says, Store, StoreError, Swap, Watch};
use crate::key::Slot;
use crate::record::{Fence, Held, Lifetime, Record, Version};

/// A store behind a latch. What holds for one that is out of reach holds for it: fail closed or open, not ready.
pub struct Latched {
    inner: Arc<dyn Store>,
    open: AtomicBool,
}

impl Latched {
    /// A store that is not open yet.
    pub fn new(inner: Arc<dyn Store>) -> Arc<Latched> {
        Arc::new(Latched { inner, open: AtomicBool::new(false) })
    }

    /// Opens it, for good.
    pub fn open(&self) {
        self.open.store(true, Ordering::Release);
    }

    fn opened(&self) -> Result<&dyn Store, StoreError> {
        if self.open.load(Ordering::Acquire) {
            return Ok(&*self.inner);
        }
        Err(StoreError::NotApplied("it has not told yet what identities are made of".into()))
    }
}

#[async_trait]
impl Store for Latched {
    async fn write(
        &self,
        slot: &Slot,
        expected: Option<Version>,
        next: &Record,
        lifetime: Lifetime,
        says: Says<'_>,
    ) -> Result<Swap, StoreError> {
        self.opened()?.write(slot, expected, next, lifetime, says).await
    }

    fn log(&self) -> &dyn Log {
        self.inner.log()
    }

    async fn load(&self, slot: &Slot) -> Result<Option<Held>, StoreError> {
        self.opened()?.load(slot).await
    }

    async fn remains(&self, slot: &Slot) -> Result<Option<Held>, StoreError> {
        self.opened()?.remains(slot).await
    }

    async fn renew(
        &self,
        slot: &Slot,
        fence: Fence,
        lease: Duration,
        keep: Duration,
    ) -> Result<bool, StoreError> {
        self.opened()?.renew(slot, fence, lease, keep).await
    }

    async fn due(&self, limit: usize) -> Result<Vec<Slot>, StoreError> {
        self.opened()?.due(limit).await
    }

    async fn list(
        &self,
        listing: Listing,
        cursor: Option<&str>,
        limit: usize,
    ) -> Result<Page, ListError> {
        self.opened()?.list(listing, cursor, limit).await
    }

    fn watch(&self, slot: &Slot) -> Watch {
        self.inner.watch(slot)
    }

    async fn ping(&self) -> Result<(), StoreError> {
        self.opened()?.ping().await
    }

    async fn note(&self, note: Note) -> Result<Option<String>, StoreError> {
        self.opened()?.note(note).await
    }

    async fn set_note(
        &self,
        note: Note,
        expected: Option<&str>,
        next: &str,
    ) -> Result<bool, StoreError> {
        self.opened()?.set_note(note, expected, next).await
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
        let latched = Latched::new(Arc::new(Memory::new(time.clock())));
        latched.open();
        Stage::of_shared(latched, time)
    }

    mod as_any_store {
        crate::store::suite::stories!(super::opened);
    }

    #[tokio::test]
    async fn nothing_passes_until_it_is_opened() {
        let inner = Arc::new(Memory::new(Arc::new(|| 1000)));
        let latched = Latched::new(inner.clone());
        let (slot, lifetime) = (
            slot(Space::Enforced, 1),
            Lifetime { keep: Duration::from_secs(60), due: None, tombstone: None },
        );
        let refused = latched.swap(&slot, None, &claim(1, 1), lifetime).await;
        assert!(matches!(refused, Err(StoreError::NotApplied(_))), "{refused:?}");
        assert!(
            latched.ping().await.is_err()
                && latched.load(&slot).await.is_err()
                && latched.remains(&slot).await.is_err()
        );
        assert_eq!(inner.load(&slot).await.unwrap(), None);
        latched.open();
        assert_eq!(latched.swap(&slot, None, &claim(1, 1), lifetime).await.unwrap(), Swap::Stored);
        assert!(latched.ping().await.is_ok() && latched.load(&slot).await.unwrap().is_some());
    }
}
