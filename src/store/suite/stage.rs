//! The stage of a story: a fresh store, and control over its time.

use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::clock::StoreClock;
use crate::key::Slot;
use crate::record::{Held, Lifetime, Record, Version};
use crate::store::Store;
use crate::store::dead_letters::DeadLetters;
use crate::store::identities::IdentityNotes;
use crate::store::log::EventLog;
use crate::store::outbox::Outbox;
use crate::store::outbox_contents::OutboxContents;
use crate::store::records::{Listing, Records, Swap};

/// Limit for the time until a condition holds.
pub(super) const PATIENCE: Duration = Duration::from_secs(20);
/// Time between two checks of a condition.
const STEP: Duration = Duration::from_millis(20);

/// A fresh store, its time, and a guard for resources that must outlive it (a folder, a server).
pub struct Stage {
    /// The store.
    pub store: Store,
    pub(super) time: Time,
    _guard: Option<Box<dyn Any + Send + Sync>>,
}

/// Passage of a store's time.
#[derive(Clone)]
pub enum Time {
    /// Passes only when the test moves it.
    ByHand(Arc<AtomicU64>),
    /// Passes in real time.
    Real,
}

impl Time {
    /// Returns a time that only the test moves.
    pub fn by_hand() -> Time {
        Time::ByHand(Arc::new(AtomicU64::new(1_800_000_000_000)))
    }

    /// Returns the clock for a store that takes one.
    pub fn clock(&self) -> StoreClock {
        let Time::ByHand(ms) = self else { panic!("a store in real time has its own clock") };
        let ms = ms.clone();
        Arc::new(move || ms.load(Ordering::SeqCst))
    }

    /// Lets a span of time pass.
    pub async fn pass(&self, span: Duration) {
        match self {
            Time::ByHand(ms) => _ = ms.fetch_add(span.as_millis() as u64, Ordering::SeqCst),
            Time::Real => tokio::time::sleep(span).await,
        }
    }
}

impl Stage {
    /// Returns a stage with a store that implements all parts.
    pub fn new(
        store: impl Records + EventLog + Outbox + DeadLetters + OutboxContents + IdentityNotes,
        time: Time,
    ) -> Stage {
        Stage::of_shared(Arc::new(store), time)
    }

    /// Returns a stage with a store in parts, for example with a wrapper.
    pub fn of_shared(store: impl Into<Store>, time: Time) -> Stage {
        Stage { store: store.into(), time, _guard: None }
    }

    /// Keeps a guard alive as long as the stage.
    pub fn with_guard(self, guard: impl Any + Send + Sync) -> Stage {
        Stage { _guard: Some(Box::new(guard)), ..self }
    }

    pub(super) async fn swap(
        &self,
        slot: &Slot,
        expected: Option<u64>,
        next: &Record,
        lifetime: Lifetime,
    ) -> Swap {
        self.store.records.swap(slot, expected.map(Version), next, lifetime).await.unwrap()
    }

    pub(super) async fn stored(
        &self,
        slot: &Slot,
        expected: Option<u64>,
        next: &Record,
        lifetime: Lifetime,
    ) {
        assert_eq!(self.swap(slot, expected, next, lifetime).await, Swap::Stored);
    }

    /// Writes, expecting `Stale`. Returns the current record.
    pub(super) async fn stale(
        &self,
        slot: &Slot,
        expected: Option<u64>,
        next: &Record,
        lifetime: Lifetime,
    ) -> Option<Held> {
        match self.swap(slot, expected, next, lifetime).await {
            Swap::Stale(held) => held,
            Swap::Large(fence) => {
                let held = self.load(slot).await;
                assert_eq!(held.as_ref().map(|held| held.record.fence), Some(fence));
                held
            }
            Swap::Stored => panic!("stored over {expected:?}"),
        }
    }

    pub(super) async fn load(&self, slot: &Slot) -> Option<Held> {
        self.store.records.load(slot).await.unwrap()
    }

    pub(super) async fn is_due(&self, slot: &Slot) -> bool {
        self.store.records.due(100).await.unwrap().contains(slot)
    }

    pub(super) async fn listed(&self, listing: Listing, limit: usize) -> Vec<(Slot, Held)> {
        let (mut all, mut cursor) = (Vec::new(), None);
        for _ in 0..10_000 {
            let page = self.store.records.list(listing, cursor.as_deref(), limit).await.unwrap();
            assert!(page.records.len() <= limit, "{} of {limit}", page.records.len());
            all.extend(page.records);
            cursor = page.cursor;
            if cursor.is_none() {
                return all;
            }
        }
        panic!("the listing has no end");
    }

    pub(super) async fn is_listed(&self, listing: Listing, slot: &Slot) -> bool {
        self.listed(listing, 100).await.iter().any(|(listed, _)| listed == slot)
    }

    /// Lets time pass until `holds` returns `true`.
    pub(super) async fn until(&self, what: &str, mut holds: impl AsyncFnMut() -> bool) {
        for _ in 0..PATIENCE.as_millis() / STEP.as_millis() {
            if holds().await {
                return;
            }
            self.time.pass(STEP).await;
        }
        panic!("never: {what}");
    }
}
