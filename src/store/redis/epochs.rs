//! The epochs of all partitions, as this process last read them, and the conditions of claims.
//!
//! An epoch is a random name under one key of each partition. That key never expires. Every claim
//! names the epoch that it expects, and the claim script compares it with the stored one. A server
//! that lost all records lost its epochs too, so its script refuses the claim.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use redis::Value;
use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};

use super::lineage::LineageId;
use crate::key::PARTITIONS;
use crate::store::StoreError;

/// How long new operations are refused with `durability = "strict"`, after the servers may have
/// lost records. The other gateways notice a loss in a fraction of this time.
pub const LOSS_PAUSE: Duration = Duration::from_secs(5);

/// Bytes of an epoch: a random name, and the time at which the epoch began (ms since 1970 by the
/// server's clock).
const EPOCH_BYTES: usize = 16;

/// The name of a partition's history, and the time at which that history began.
pub(super) type Epoch = [u8; EPOCH_BYTES];

/// Reads an epoch from an answer to GET; `None` for an absent or foreign value.
pub(super) fn epoch_of(answer: &Value) -> Option<Epoch> {
    match answer {
        Value::BulkString(bytes) => bytes.as_slice().try_into().ok(),
        _ => None,
    }
}

/// Returns the time at which an epoch began, in ms since 1970 by the server's clock.
pub(super) fn began_ms(epoch: &Epoch) -> u64 {
    epoch.iter().skip(8).fold(0, |n, byte| n << 8 | u64::from(*byte))
}

/// The error of a store with an unfinished copy. There, the mark of the copy replaces the epoch of
/// each partition.
pub(super) fn unfinished_copy() -> StoreError {
    StoreError::NotApplied(
        "a copy into this store isn't finished: run the same `onceward store copy` again".into(),
    )
}

/// The error of a call that is refused during the pause after a loss.
pub(super) fn paused() -> StoreError {
    StoreError::NotApplied(
        "the store may have lost records a moment ago: \
         what it doesn't know is refused for some seconds"
            .into(),
    )
}

/// The conditions of a partition's claims: the lineage and the epoch that its server must have.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct ClaimBasis {
    pub lineage_id: LineageId,
    pub epoch: Epoch,
    /// Time until which new operations are refused.
    pub paused_until: Option<Instant>,
}

impl ClaimBasis {
    /// Whether new operations are refused now.
    pub(super) fn is_paused(&self) -> bool {
        self.paused_until.is_some_and(|until| Instant::now() < until)
    }
}

/// The known epochs of all partitions.
pub(super) struct EpochTable {
    partitions: RwLock<Vec<KnownEpoch>>,
    /// Notified when a call needs an unknown epoch, or a server changed.
    lookup_wanted: Arc<Notify>,
    /// Notified when a lookup at a server has ended.
    lookup_done: Notify,
    /// Lookups that have ended.
    lookups: AtomicU64,
    /// The error of the last lookup that failed.
    failure: RwLock<Option<StoreError>>,
    loss_pause: Duration,
}

/// The epoch of one partition, as this process last read it.
#[derive(Clone, Copy, Default)]
struct KnownEpoch {
    basis: Option<ClaimBasis>,
    /// The last confirmed epoch. It stays while the basis is invalid.
    last: Option<Epoch>,
    /// Number of the last lookup that failed for this partition.
    failed_lookup: u64,
}

impl EpochTable {
    /// Makes an empty table. `lookup_wanted` wakes the task that reads epochs; new operations are
    /// refused for `loss_pause` after a loss.
    pub(super) fn new(lookup_wanted: Arc<Notify>, loss_pause: Duration) -> EpochTable {
        EpochTable {
            partitions: RwLock::new(vec![KnownEpoch::default(); usize::from(PARTITIONS)]),
            lookup_wanted,
            lookup_done: Notify::new(),
            lookups: AtomicU64::new(0),
            failure: RwLock::default(),
            loss_pause,
        }
    }

    fn known(&self, partition: u16) -> KnownEpoch {
        let partitions = self.partitions.read().unwrap_or_else(PoisonError::into_inner);
        partitions.get(usize::from(partition)).copied().unwrap_or_default()
    }

    /// Changes a partition's entry under one lock, because requests invalidate entries while a
    /// lookup sets them.
    fn update(&self, partition: u16, change: impl FnOnce(&mut KnownEpoch)) {
        let mut partitions = self.partitions.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = partitions.get_mut(usize::from(partition)) {
            change(known);
        }
    }

    /// Returns the basis of a partition's claims. While it is unknown, waits for a lookup until the
    /// deadline.
    ///
    /// # Errors
    /// A lookup failed, or the deadline came. Nothing of a claim was sent.
    pub(super) async fn basis(
        &self,
        partition: u16,
        deadline: Instant,
    ) -> Result<ClaimBasis, StoreError> {
        let at_start = self.lookups.load(Ordering::Acquire);
        loop {
            let lookup_done = self.lookup_done.notified();
            let known = self.known(partition);
            if let Some(basis) = known.basis {
                return Ok(basis);
            }
            self.lookup_wanted.notify_one();
            // A lookup that began before this call may fail during the call. Its failure counts
            // too, because the next lookup would hardly succeed.
            if known.failed_lookup > at_start || timeout_at(deadline, lookup_done).await.is_err() {
                return Err(self.failure());
            }
        }
    }

    /// Waits until claims are possible in all partitions.
    ///
    /// # Errors
    /// See [`EpochTable::basis`].
    pub(super) async fn wait_for_all(&self, deadline: Instant) -> Result<(), StoreError> {
        for partition in 0..PARTITIONS {
            self.basis(partition, deadline).await?;
        }
        Ok(())
    }

    /// Returns the reason why nothing can be claimed. Never `MaybeApplied`: nothing of a claim was
    /// sent, even if a lookup failed with that error.
    fn failure(&self) -> StoreError {
        match &*self.failure.read().unwrap_or_else(PoisonError::into_inner) {
            Some(
                StoreError::NotApplied(why)
                | StoreError::MaybeApplied(why)
                | StoreError::Unread(why),
            ) => StoreError::NotApplied(why.clone()),
            Some(error @ StoreError::Corrupt(_)) => error.clone(),
            None => StoreError::NotApplied("the store's server has not been checked yet".into()),
        }
    }

    /// Records the end of a lookup at the server that holds these partitions, and wakes waiting
    /// calls.
    pub(super) fn lookup_ended(&self, partitions: &[u16], done: &Result<(), StoreError>) {
        let lookup = self.lookups.fetch_add(1, Ordering::AcqRel) + 1;
        if let Err(error) = done {
            *self.failure.write().unwrap_or_else(PoisonError::into_inner) = Some(error.clone());
            partitions.iter().for_each(|partition| {
                self.update(*partition, |known| known.failed_lookup = lookup)
            });
        }
        self.lookup_done.notify_waiters();
    }

    /// Returns the basis of a partition's claims; `None` while it is unknown.
    pub(super) fn current(&self, partition: u16) -> Option<ClaimBasis> {
        self.known(partition).basis
    }

    /// Returns the last confirmed epoch of a partition, even if its basis is invalid now.
    pub(super) fn last(&self, partition: u16) -> Option<Epoch> {
        self.known(partition).last
    }

    /// Makes a basis invalid, because the partition's server doesn't match it.
    pub(super) fn invalidate(&self, partition: u16, basis: &ClaimBasis) {
        self.update(partition, |known| {
            known.basis.take_if(|current| current == basis);
        });
        self.lookup_wanted.notify_one();
    }

    /// Makes the basis of a partition invalid during a lookup.
    pub(super) fn clear(&self, partition: u16) {
        self.update(partition, |known| known.basis = None);
    }

    /// Sets the basis of a partition after a lookup.
    pub(super) fn confirm(&self, partition: u16, basis: ClaimBasis) {
        self.update(partition, |known| {
            known.basis = Some(basis);
            known.last = Some(basis.epoch);
        });
    }

    /// Returns the time until which new operations are refused. If this process noticed the change,
    /// it refuses them for the whole pause. Otherwise other gateways may have noticed a loss when
    /// the epoch began, so this process refuses them for the rest of the pause since that time.
    pub(super) fn paused_until(
        &self,
        is_known_before: bool,
        epoch: &Epoch,
        now_ms: u64,
    ) -> Option<Instant> {
        let age = Duration::from_millis(now_ms.saturating_sub(began_ms(epoch)));
        let left =
            if is_known_before { self.loss_pause } else { self.loss_pause.saturating_sub(age) };
        (!left.is_zero()).then(|| Instant::now() + left)
    }
}
