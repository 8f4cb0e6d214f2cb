//! A cache of completed records in the process. Replays of cached records need no server, as long
//! as the store reports every change of a record.
//!
//! Danger: a record that is gone from the store must not be replayed for ever. So a record is
//! cached only after the store has confirmed it on the connection that reports changes. Cached
//! records are used only if that connection has answered within [`UNHEARD_MAX`]. When the
//! connection is lost, all cached records are dropped.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use quick_cache::Weighter;
use quick_cache::sync::Cache;
use tokio::sync::mpsc;

use crate::clock::Clock;
use crate::key::{Slot, Space};
use crate::record::{Fence, Held, Reply, ReplyBody, State, Version};
use crate::telemetry::CacheMeter;

/// How long cached records may be used after the last request that the connection answered. While
/// the connection hangs, a change can go unnoticed for this long.
pub const UNHEARD_MAX: Duration = Duration::from_secs(1);

/// Limit for the records that wait for confirmation. Further records are ignored until they are
/// offered again.
const PENDING_MAX: usize = 1024;

/// Overhead of a cached record, in bytes: its entry in the index, and its allocations on the heap.
const OVERHEAD_BYTES: usize = 512;

/// Overhead of a header field, in bytes.
const FIELD_BYTES: usize = 64;

/// Size of a typical record, in bytes. It determines the initial size of the index.
const USUAL_BYTES: usize = 2048;

/// The cache. [`LocalCache::new`] also returns a channel for the tracker of changes.
pub struct LocalCache {
    records: Cache<Slot, CachedRecord, Weight>,
    /// Records that wait for confirmation. If a change of such a record is reported first, the
    /// record is removed and not cached.
    pending: Mutex<HashMap<Slot, Held>>,
    wanted: mpsc::Sender<Slot>,
    /// Time until which cached records may be used, in ms of the boot clock.
    fresh_until_ms: AtomicU64,
    clock: Clock,
    meter: CacheMeter,
}

#[derive(Clone)]
struct CachedRecord {
    held: Held,
    /// Earliest end of its retention in the store, in ms of the boot clock.
    ends_ms: u64,
}

/// A completed record in the store. The tracker read it after the server had begun to track the
/// slot's changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Confirmed {
    /// Its version.
    pub version: Version,
    /// Its fence.
    pub fence: Fence,
    /// Its remaining retention, from `asked_ms` on.
    pub life: Duration,
    /// Time of the read, in ms of the boot clock.
    pub asked_ms: u64,
}

impl LocalCache {
    /// Returns a cache of this size in bytes, and a channel with the slots of the records to
    /// confirm.
    pub fn new(
        bytes: usize,
        clock: Clock,
        meter: CacheMeter,
    ) -> (Arc<LocalCache>, mpsc::Receiver<Slot>) {
        let (wanted, unconfirmed) = mpsc::channel(PENDING_MAX);
        let records = Cache::with_weighter(bytes / USUAL_BYTES, bytes as u64, Weight);
        let cache = LocalCache {
            records,
            pending: Mutex::default(),
            wanted,
            fresh_until_ms: AtomicU64::new(0),
            clock,
            meter,
        };
        (Arc::new(cache), unconfirmed)
    }

    /// Returns the clock that decides when cached records end.
    pub fn clock(&self) -> &Clock {
        &self.clock
    }

    /// Returns the record of a slot, if it is cached and may be used now.
    pub fn get(&self, slot: &Slot) -> Option<Held> {
        let now_ms = self.clock.boot_ms();
        if now_ms >= self.fresh_until_ms.load(Ordering::Acquire) {
            return None;
        }
        let entry = self.records.get(slot)?;
        if now_ms >= entry.ends_ms {
            self.records.remove(slot);
            self.measure();
            return None;
        }
        self.meter.hits.inc();
        Some(entry.held)
    }

    /// Offers a record that the store returned. The record is cached after it is confirmed. Ignores
    /// records that are not completed, and records of shadow routes, which are never replayed.
    pub fn offer(&self, slot: &Slot, held: &Held) {
        let replayed =
            slot.space == Space::Enforced && matches!(held.record.state, State::Completed { .. });
        if !replayed || self.clock.boot_ms() >= self.fresh_until_ms.load(Ordering::Acquire) {
            return;
        }
        let mut pending = self.pending();
        if pending.len() < PENDING_MAX
            && !pending.contains_key(slot)
            && self.wanted.try_send(*slot).is_ok()
        {
            pending.insert(*slot, held.clone());
        }
    }

    /// Caches the offered record of a slot if the tracker `found` the same record. `None`: the
    /// store has no completed record, or one that is not safe to cache.
    pub fn confirm(&self, slot: &Slot, found: Option<Confirmed>) {
        let mut pending = self.pending();
        let Some(held) = pending.remove(slot) else { return };
        // A version is never written twice in a slot. So equal versions mean that this is the
        // record that was offered.
        let same = found.filter(|found| {
            (found.version, found.fence) == (held.record.version, held.record.fence)
        });
        if let Some(Confirmed { life, asked_ms, .. }) = same {
            let ends_ms =
                asked_ms.saturating_add(u64::try_from(life.as_millis()).unwrap_or(u64::MAX));
            self.records.insert(*slot, CachedRecord { held, ends_ms });
            self.measure();
        }
    }

    /// Drops the record of a slot, after it changed.
    pub fn changed(&self, slot: &Slot) {
        let mut pending = self.pending();
        pending.remove(slot);
        if self.records.remove(slot).is_some() {
            self.meter.invalidations.inc();
            self.measure();
        }
    }

    /// Drops all records, after the connection that reports changes was lost, or the store was
    /// emptied.
    pub fn lost(&self) {
        let was_fresh = self.fresh_until_ms.swap(0, Ordering::AcqRel) > 0;
        let mut pending = self.pending();
        pending.clear();
        self.records.clear();
        self.measure();
        if was_fresh {
            self.meter.losses.inc();
        }
    }

    /// Notes that the store has reported all changes before `asked_ms` (of the boot clock).
    pub fn heard(&self, asked_ms: u64) {
        self.fresh_until_ms.store(asked_ms + UNHEARD_MAX.as_millis() as u64, Ordering::Release);
    }

    fn measure(&self) {
        self.meter.entries.set(i64::try_from(self.records.len()).unwrap_or(i64::MAX));
        self.meter.bytes.set(i64::try_from(self.records.weight()).unwrap_or(i64::MAX));
    }

    /// Locks the pending records. Insertions into the cache and removals hold this lock, too:
    /// otherwise a change could come between the confirmation and the insertion, and be missed. A
    /// panic leaves the map consistent: every change is a single insert or removal.
    fn pending(&self) -> MutexGuard<'_, HashMap<Slot, Held>> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Clone)]
struct Weight;

impl Weighter<Slot, CachedRecord> for Weight {
    fn weight(&self, _: &Slot, entry: &CachedRecord) -> u64 {
        let record = &entry.held.record;
        let reply = match &record.state {
            State::Completed { reply, .. } => reply_bytes(reply),
            _ => 0,
        };
        (OVERHEAD_BYTES
            + record.route.len()
            + record.kept.as_ref().map_or(0, bytes::Bytes::len)
            + reply) as u64
    }
}

fn reply_bytes(reply: &Reply) -> usize {
    let fields = reply.headers.iter().chain(reply.trailers.iter().flatten());
    let fields: usize =
        fields.map(|(name, value)| FIELD_BYTES + name.as_str().len() + value.len()).sum();
    match &reply.body {
        ReplyBody::Whole(body) | ReplyBody::Sealed(body) => fields + body.len(),
        ReplyBody::NotStored => fields,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use bytes::Bytes;
    use http::{HeaderMap, HeaderValue, header};

    use super::*;
    use crate::record::Record;
    use crate::store::suite::{claim, completed, slot};

    fn held(record: Record) -> Held {
        Held { record, written_ms: 1000, due_ms: 0, now_ms: 1000 }
    }

    #[test]
    fn records_beyond_the_limit_wait_for_their_confirmation() {
        let (clock, _) = Clock::manual(5000, 1000);
        let (cache, mut wanted) = LocalCache::new(1 << 20, clock, CacheMeter::default());
        cache.heard(5000);
        let mut offered = |n: u64| {
            cache.offer(&slot(Space::Enforced, n), &held(completed(n)));
            wanted.try_recv().is_ok()
        };
        let most = PENDING_MAX as u64;
        assert!((0..most).all(&mut offered));
        assert!(!offered(most));
        cache.confirm(&slot(Space::Enforced, 0), None);
        assert!(offered(most));
    }

    #[test]
    fn a_record_weighs_what_it_holds() {
        let weight = |record| {
            Weight
                .weight(&slot(Space::Enforced, 1), &CachedRecord { held: held(record), ends_ms: 0 })
        };
        let empty = (OVERHEAD_BYTES + "payments".len()) as u64;
        assert_eq!(weight(claim(1, 1)), empty);
        assert_eq!(
            weight(Record { kept: Some(Bytes::from_static(b"key")), ..claim(1, 1) }),
            empty + 3
        );
        let State::Completed { reply, by } = completed(1).state else { panic!("completed") };
        let of = |body| {
            let headers = HeaderMap::from_iter([
                (header::DATE, HeaderValue::from_static("now")),
                (header::AGE, HeaderValue::from(17)),
            ]);
            let state = State::Completed {
                reply: Arc::new(Reply { headers, body, status: reply.status, trailers: None }),
                by,
            };
            weight(Record { state, ..completed(1) })
        };
        let fields = empty + 2 * FIELD_BYTES as u64 + ("date".len() + 3 + "age".len() + 2) as u64;
        assert_eq!(of(ReplyBody::NotStored), fields);
        assert_eq!(of(ReplyBody::Whole(Bytes::from_static(b"paid"))), fields + 4);
        assert_eq!(of(ReplyBody::Sealed(Bytes::from_static(b"sealed"))), fields + 6);
    }
}
