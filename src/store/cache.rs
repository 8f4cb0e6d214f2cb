//! Completed records kept in the process, so that their replays ask no server: only while the store tells of every change.
//!
//! Danger: a record that is gone from the store must not be answered for ever. So a record is kept only once the store has
//! confirmed it on the connection on which it tells of changes, nothing is answered unless that connection has answered a
//! moment ago, and with it everything is dropped.

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

/// How long after the last question that was answered in time records may still be given out: so long a change may go
/// unnoticed where the connection hangs.
pub const UNHEARD_MAX: Duration = Duration::from_secs(1);

/// Records that are being confirmed at once. What comes while there are as many is kept when it comes again.
const PENDING_MAX: usize = 1024;

/// What a record takes besides its texts: its places in the index and on the heap.
const OVERHEAD_BYTES: usize = 512;

/// What a header field takes besides its texts.
const FIELD_BYTES: usize = 64;

/// A usual record, from which the first size of the index follows.
const USUAL_BYTES: usize = 2048;

/// The records that are kept. Whoever tracks their changes holds the other end, see [`LocalCache::new`].
pub struct LocalCache {
    kept: Cache<Slot, Entry, Weight>,
    /// What waits to be confirmed. A change that is heard of in between takes it out, so that it is not kept.
    pending: Mutex<HashMap<Slot, Held>>,
    wanted: mpsc::Sender<Slot>,
    /// In ms of the boot clock.
    fresh_until_ms: AtomicU64,
    clock: Clock,
    meter: CacheMeter,
}

#[derive(Clone)]
struct Entry {
    held: Held,
    /// When the store lets go of it at the earliest, in ms of the boot clock.
    ends_ms: u64,
}

/// What the store holds in a slot, as it was read while its changes began to be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Confirmed {
    /// The version of a completed record.
    pub version: Version,
    /// Its fence.
    pub fence: Fence,
    /// How long it is still kept there, from `asked_ms` on.
    pub life: Duration,
    /// When it was asked for, in ms of the boot clock.
    pub asked_ms: u64,
}

impl LocalCache {
    /// Room for so many bytes, and the slots whose records are to be confirmed.
    pub fn new(
        bytes: usize,
        clock: Clock,
        meter: CacheMeter,
    ) -> (Arc<LocalCache>, mpsc::Receiver<Slot>) {
        let (wanted, asked) = mpsc::channel(PENDING_MAX);
        let kept = Cache::with_weighter(bytes / USUAL_BYTES, bytes as u64, Weight);
        let cache = LocalCache {
            kept,
            pending: Mutex::default(),
            wanted,
            fresh_until_ms: AtomicU64::new(0),
            clock,
            meter,
        };
        (Arc::new(cache), asked)
    }

    /// The clock by which records end.
    pub fn clock(&self) -> &Clock {
        &self.clock
    }

    /// The record in a slot, if it is kept and may be given out now.
    pub fn get(&self, slot: &Slot) -> Option<Held> {
        let now_ms = self.clock.boot_ms();
        if now_ms >= self.fresh_until_ms.load(Ordering::Acquire) {
            return None;
        }
        let entry = self.kept.get(slot)?;
        if now_ms >= entry.ends_ms {
            self.kept.remove(slot);
            self.measure();
            return None;
        }
        self.meter.hits.inc();
        Some(entry.held)
    }

    /// A record that the store answered with: it is kept once it is confirmed. Of no use are those that may still change by
    /// themselves, and those that nobody replays.
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

    /// What the store holds in a slot that was asked for; `None`: no completed record, or one that can't be relied on.
    pub fn confirm(&self, slot: &Slot, found: Option<Confirmed>) {
        let mut pending = self.pending();
        let Some(held) = pending.remove(slot) else { return };
        // A version is never written twice in a slot, so this is the record that was offered, to the last byte.
        let same = found.filter(|found| {
            (found.version, found.fence) == (held.record.version, held.record.fence)
        });
        if let Some(Confirmed { life, asked_ms, .. }) = same {
            let ends_ms =
                asked_ms.saturating_add(u64::try_from(life.as_millis()).unwrap_or(u64::MAX));
            self.kept.insert(*slot, Entry { held, ends_ms });
            self.measure();
        }
    }

    /// The record in a slot has changed.
    pub fn changed(&self, slot: &Slot) {
        let mut pending = self.pending();
        pending.remove(slot);
        if self.kept.remove(slot).is_some() {
            self.meter.invalidations.inc();
            self.measure();
        }
    }

    /// Changes are no longer told, or all records are gone.
    pub fn lost(&self) {
        let was_fresh = self.fresh_until_ms.swap(0, Ordering::AcqRel) > 0;
        let mut pending = self.pending();
        pending.clear();
        self.kept.clear();
        self.measure();
        if was_fresh {
            self.meter.losses.inc();
        }
    }

    /// All that changed before `asked_ms` (of the boot clock) was told.
    pub fn heard(&self, asked_ms: u64) {
        self.fresh_until_ms.store(asked_ms + UNHEARD_MAX.as_millis() as u64, Ordering::Release);
    }

    fn measure(&self) {
        self.meter.entries.set(i64::try_from(self.kept.len()).unwrap_or(i64::MAX));
        self.meter.bytes.set(i64::try_from(self.kept.weight()).unwrap_or(i64::MAX));
    }

    /// What goes in and out goes under this lock, so that a change can't slip in between. A panic leaves it whole: every
    /// change is a single insert or removal.
    fn pending(&self) -> MutexGuard<'_, HashMap<Slot, Held>> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Clone)]
struct Weight;

impl Weighter<Slot, Entry> for Weight {
    fn weight(&self, _: &Slot, entry: &Entry) -> u64 {
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
    fn so_many_records_are_confirmed_at_once_and_the_next_waits_its_turn() {
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
            Weight.weight(&slot(Space::Enforced, 1), &Entry { held: held(record), ends_ms: 0 })
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
