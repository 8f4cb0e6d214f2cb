//! The confirmed writes of this process that the servers may still lose: claims of running
//! attempts, sagas that it owns, and all other writes of the last seconds.
//!
//! A server that fails over to a replica, restarts from its disk or restarts empty continues
//! without some writes that it confirmed. So this process keeps them, limited in bytes and in time,
//! and writes them again afterwards.
//!
//! An entry also has the events of earlier writes of its slot: they may still wait for their sinks.
//!
//! Danger: a restored write counts as confirmed. So a write without an answer must never enter the
//! table. It would displace the confirmed write of a running attempt, and after a loss the slot
//! would get a claim without an attempt. A confirmed write replaces the entry of its slot, unless
//! that entry would be restored over it after a loss ([`RecentWrite::restore_decision`]).

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::earlier_events::EARLIER_BYTES_MAX;
use super::restore_decision::{RecentWrite, RestoreDecision};
use super::written_events::WrittenEvents;
use crate::key::{Slot, Space};
use crate::record::{Encoded, Fence, Lifetime, Record, Version, head_has_lease};
use crate::store::outbox::EventKey;

/// How long a write other than a claim or a saga is kept. Healthy replicas lag by less than a
/// second, and a server that syncs its file every second loses two seconds at most. A write is kept
/// longer while no later moment is known at which the servers had their records
/// ([`RecentWrites::note_intact`]): a hung server may be replaced much later.
pub const RECENT_WRITE_TTL: Duration = Duration::from_secs(3);

/// Limit for the bytes of the settled writes and of the events of earlier writes: about 4,000
/// operations, or more than 1,000 a second. Beyond it, the oldest writes are removed first. It also
/// limits the time of a restore, in which new operations wait, to a few tenths of a second.
const BYTES_MAX: usize = 4 << 20;

/// Bytes of an entry without payload and event: the entry itself, its parts of the table and the
/// queue, and their spare capacity.
const ENTRY_BYTES: usize = 400;

/// The recent writes of a process.
pub struct RecentWrites(Mutex<RecentTable>);

struct RecentTable {
    /// The last moment at which the servers had all confirmed records.
    intact_at: Instant,
    /// Claims and sagas with a running lease, which renewals extend. There is at most one claim for
    /// each active request, and active requests and sagas have their own limits.
    claims: HashMap<Slot, Box<RecentWrite>>,
    /// Number of claims at which expired ones are removed.
    claims_until_swept: usize,
    settled: HashMap<Slot, Box<RecentWrite>>,
    /// The settled writes in the order of their ends.
    ends: VecDeque<(Instant, Slot)>,
    /// Bytes of the settled writes, and of the earlier events of claims.
    bytes: usize,
}

/// Below this number, claims with an expired lease are not removed. So few claims do no harm, and
/// each is removed when its operation is settled.
const CLAIMS_MIN: usize = 1024;

impl Default for RecentWrites {
    fn default() -> RecentWrites {
        RecentWrites(Mutex::new(RecentTable {
            intact_at: Instant::now(),
            claims: HashMap::new(),
            claims_until_swept: 0,
            settled: HashMap::new(),
            ends: VecDeque::new(),
            bytes: 0,
        }))
    }
}

impl RecentWrites {
    /// Keeps a confirmed write, unless the slot's present entry would prevail over it after a loss.
    /// Ignores shadow records: no decision depends on them.
    pub fn record_confirmed(
        &self,
        slot: &Slot,
        record: &Record,
        encoded: Encoded,
        lifetime: Lifetime,
        events: WrittenEvents,
    ) {
        if slot.space != Space::Enforced {
            return;
        }
        let has_lease = head_has_lease(&encoded.head);
        let span = lifetime.due.filter(|_| has_lease).unwrap_or(RECENT_WRITE_TTL);
        let until = Instant::now() + span;
        let recent = Box::new(RecentWrite::new(record, encoded, lifetime, events, until));
        let mut inner = self.lock();
        let prevails = |held: &RecentWrite| {
            matches!(
                held.restore_decision(record),
                RestoreDecision::OverEarlierState(_) | RestoreDecision::UnderNewVersion(_)
            )
        };
        match inner.take(slot) {
            Some(held) if held.until > inner.intact_at && prevails(&held) => {
                inner.put(slot, held, Some(recent));
            }
            held => {
                if !has_lease {
                    inner.ends.push_back((recent.until, *slot));
                }
                inner.put(slot, recent, held);
            }
        }
    }

    /// Removes an event that its sink has. It is not restored any more.
    pub(super) fn remove_delivered(&self, event: &EventKey) {
        let EventKey { sink, slot, order } = event;
        let mut inner = self.lock();
        let Some(mut held) = inner.take(slot) else { return };
        held.events.outbox.0.retain(|stamped| !stamped.is(sink, *order));
        held.earlier.remove(sink, *order);
        inner.put(slot, held, None);
    }

    /// Records that at this time the servers had all records that they confirmed before.
    pub fn note_intact(&self, at: Instant) {
        let mut inner = self.lock();
        inner.intact_at = inner.intact_at.max(at);
    }

    /// Extends the lease of a claim, whatever the store answers. The attempt runs, so its claim
    /// must be restored after a loss.
    pub fn extend_lease(&self, slot: &Slot, fence: Fence, lease: Duration) {
        if let Some(recent) =
            self.lock().claims.get_mut(slot).filter(|recent| recent.fence() == fence)
        {
            recent.until = Instant::now() + lease;
        }
    }

    /// Removes an entry that doesn't prevail over the record in its slot. An entry with another
    /// version stays.
    pub fn remove_superseded(&self, slot: &Slot, version: Version) {
        let mut inner = self.lock();
        if inner.get(slot).is_some_and(|held| held.version() == version) {
            inner.take(slot);
        }
    }

    /// Whether the slot has an entry that matches.
    pub fn holds(&self, slot: &Slot, matches: impl Fn(&RecentWrite) -> bool) -> bool {
        self.lock().get(slot).is_some_and(matches)
    }

    /// Returns the entries of these partitions.
    pub fn in_partitions(&self, partitions: &HashSet<u16>) -> Vec<(Slot, RecentWrite)> {
        let inner = self.lock();
        let all = inner.claims.iter().chain(&inner.settled);
        let present = all.filter(|(slot, recent)| {
            recent.until > inner.intact_at && partitions.contains(&slot.partition())
        });
        let copies = present.map(|(slot, recent)| {
            let mut recent = RecentWrite::clone(recent);
            recent.earlier.remove_intact(inner.intact_at);
            (*slot, recent)
        });
        copies.collect()
    }

    fn lock(&self) -> MutexGuard<'_, RecentTable> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl RecentTable {
    fn get(&self, slot: &Slot) -> Option<&RecentWrite> {
        self.claims.get(slot).or_else(|| self.settled.get(slot)).map(Box::as_ref)
    }

    fn take(&mut self, slot: &Slot) -> Option<Box<RecentWrite>> {
        let taken = self.claims.remove(slot).or_else(|| self.settled.remove(slot))?;
        self.bytes -= weight(&taken);
        Some(taken)
    }

    /// Adds an entry, with the events of another write that it displaces.
    fn put(&mut self, slot: &Slot, mut recent: Box<RecentWrite>, other: Option<Box<RecentWrite>>) {
        if let Some(other) = other {
            // Events of earlier writes displace no other entry.
            let room = BYTES_MAX.saturating_sub(self.bytes + weight(&recent));
            recent.keep_events_of(*other, room.min(EARLIER_BYTES_MAX));
            recent.earlier.remove_intact(self.intact_at);
        }
        self.bytes += weight(&recent);
        if recent.has_lease() {
            self.claims.insert(*slot, recent);
            self.sweep();
        } else {
            self.settled.insert(*slot, recent);
            self.prune();
        }
    }

    /// Removes claims with an expired lease: their attempts ended without a settlement.
    fn sweep(&mut self) {
        if self.claims.len() > self.claims_until_swept.max(CLAIMS_MIN) {
            let (intact_at, bytes) = (self.intact_at, &mut self.bytes);
            self.claims.retain(|_, recent| {
                let is_running = recent.until > intact_at;
                if !is_running {
                    *bytes -= weight(recent);
                }
                is_running
            });
            self.claims_until_swept = 2 * self.claims.len();
        }
    }

    /// Removes the settled writes that have ended, and the oldest while there are too many.
    fn prune(&mut self) {
        while let Some((end, slot)) = self.ends.front().copied() {
            if end > self.intact_at && self.bytes <= BYTES_MAX {
                return;
            }
            self.ends.pop_front();
            if self.settled.get(&slot).is_some_and(|recent| recent.until == end) {
                self.take(&slot);
            }
        }
    }
}

/// Returns the bytes of an entry that count. Of a claim, only the events of earlier writes do.
fn weight(recent: &RecentWrite) -> usize {
    let earlier = recent.earlier.bytes();
    if recent.has_lease() {
        return earlier;
    }
    ENTRY_BYTES + recent.encoded.payload.len() + recent.events.bytes() + earlier
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{Cause, State, encode};
    use crate::store::outbox::{EventContent, EventOrder, OutboxEvent};
    use crate::store::redis::written_events::{StampedEvent, StampedEvents};
    use crate::store::suite::{claim, completed, slot};

    const LEASE: Lifetime = Lifetime {
        keep: Duration::from_secs(600),
        due: Some(Duration::from_secs(30)),
        tombstone: None,
    };
    const KEEP: Lifetime = Lifetime { due: None, ..LEASE };

    fn of(recent_writes: &RecentWrites, n: u64) -> Vec<Version> {
        let partitions = HashSet::from([slot(Space::Enforced, n).partition()]);
        recent_writes
            .in_partitions(&partitions)
            .into_iter()
            .map(|(_, recent)| recent.version())
            .collect()
    }

    fn keep(recent_writes: &RecentWrites, n: u64, record: &Record, lifetime: Lifetime) {
        recent_writes.record_confirmed(
            &slot(Space::Enforced, n),
            record,
            encode(record),
            lifetime,
            WrittenEvents::default(),
        );
    }

    /// Lets time pass while the servers still have their records.
    async fn pass(recent_writes: &RecentWrites, span: Duration) {
        tokio::time::advance(span).await;
        recent_writes.note_intact(Instant::now());
    }

    /// Makes a record of a history that began with version `first`, `changes` changes later.
    fn record(first: u64, changes: u64, fence: u64, opened_unix_ms: u64, state: State) -> Record {
        Record {
            version: Version(first + changes),
            fence: Fence(fence),
            opened_unix_ms,
            state,
            ..claim(0, 0)
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_claim_is_held_while_its_lease_runs_and_a_result_for_seconds() {
        let recent_writes = RecentWrites::default();
        let running = claim(7, 1);
        keep(&recent_writes, 1, &running, LEASE);
        pass(&recent_writes, Duration::from_secs(29)).await;
        recent_writes.extend_lease(
            &slot(Space::Enforced, 1),
            running.fence,
            Duration::from_secs(30),
        );
        pass(&recent_writes, Duration::from_secs(29)).await;
        assert_eq!(of(&recent_writes, 1), [running.version], "renewed");
        let result =
            Record { version: running.version.next(), fence: running.fence, ..completed(8) };
        keep(&recent_writes, 1, &result, KEEP);
        assert_eq!(of(&recent_writes, 1), [result.version], "the latest change alone");
        pass(&recent_writes, RECENT_WRITE_TTL).await;
        assert_eq!(of(&recent_writes, 1), []);
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_is_removed_while_the_servers_may_lack_their_records() {
        let recent_writes = RecentWrites::default();
        keep(&recent_writes, 1, &claim(7, 1), LEASE);
        keep(&recent_writes, 2, &completed(9), KEEP);
        tokio::time::advance(Duration::from_secs(600)).await;
        keep(&recent_writes, 3, &completed(11), KEEP);
        assert_eq!(
            [of(&recent_writes, 1), of(&recent_writes, 2)],
            [[Version(7)], [Version(9)]],
            "a hung server may be replaced late"
        );
        pass(&recent_writes, Duration::ZERO).await;
        assert_eq!([of(&recent_writes, 1), of(&recent_writes, 2)], [[], []]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_write_that_is_confirmed_again_is_kept_as_long_as_any_other() {
        let recent_writes = RecentWrites::default();
        keep(&recent_writes, 1, &completed(1), KEEP);
        pass(&recent_writes, RECENT_WRITE_TTL / 2).await;
        keep(&recent_writes, 1, &completed(1), KEEP);
        pass(&recent_writes, RECENT_WRITE_TTL / 2).await;
        keep(&recent_writes, 2, &completed(2), KEEP);
        assert_eq!(of(&recent_writes, 1), [Version(1)]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_running_claim_stays_when_a_duplicates_marker_lands_in_its_lost_slot() {
        let recent_writes = RecentWrites::default();
        let running = record(100, 0, 1, 10, State::InFlight { uncertain_since_ms: None });
        keep(&recent_writes, 1, &running, LEASE);
        for marker in
            [record(900, 0, 2, 20, State::Released), record(100, 1, 2, 20, State::Released)]
        {
            keep(&recent_writes, 1, &marker, KEEP);
            assert_eq!(of(&recent_writes, 1), [running.version], "{:?}", marker.version);
        }
        let own = record(500, 0, 1, 10, State::Released);
        keep(&recent_writes, 1, &own, KEEP);
        assert_eq!(of(&recent_writes, 1), [own.version], "the attempt itself gave it up");
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_that_is_processed_late_displaces_no_later_change() {
        let recent_writes = RecentWrites::default();
        let running = record(100, 0, 1, 10, State::InFlight { uncertain_since_ms: None });
        let result =
            Record { version: Version(102), fence: Fence(1), opened_unix_ms: 10, ..completed(0) };
        keep(&recent_writes, 1, &result, KEEP);
        for late in [running, record(100, 1, 1, 10, uncertain())] {
            keep(&recent_writes, 1, &late, LEASE);
            recent_writes.remove_superseded(&slot(Space::Enforced, 1), late.version);
            assert_eq!(of(&recent_writes, 1), [result.version]);
        }
        recent_writes.remove_superseded(&slot(Space::Enforced, 1), result.version);
        assert_eq!(of(&recent_writes, 1), []);
    }

    #[tokio::test(start_paused = true)]
    async fn settled_writes_are_limited_and_displace_no_claim() {
        let recent_writes = RecentWrites::default();
        keep(&recent_writes, 0, &claim(1, 1), LEASE);
        let large = Encoded { payload: vec![0; 1 << 18].into(), ..encode(&completed(2)) };
        for n in 1..=40 {
            recent_writes.record_confirmed(
                &slot(Space::Enforced, n),
                &completed(2),
                large.clone(),
                KEEP,
                WrittenEvents::default(),
            );
        }
        let inner = recent_writes.lock();
        assert!(
            inner.bytes <= BYTES_MAX && inner.settled.len() == 15,
            "{} in {} bytes",
            inner.settled.len(),
            inner.bytes
        );
        assert_eq!((inner.claims.len(), inner.ends.len()), (1, 15));
        assert!(inner.settled.contains_key(&slot(Space::Enforced, 40)), "the oldest went first");
    }

    #[tokio::test(start_paused = true)]
    async fn claims_with_an_expired_lease_are_removed_now_and_then() {
        let recent_writes = RecentWrites::default();
        for n in 0..=1024 {
            keep(&recent_writes, n, &claim(n, n), LEASE);
        }
        pass(&recent_writes, Duration::from_secs(31)).await;
        for n in 2000..4100 {
            keep(&recent_writes, n, &claim(n, n), LEASE);
        }
        assert!(recent_writes.lock().claims.len() <= 2100);
    }

    fn uncertain() -> State {
        State::Uncertain { cause: Cause::Broken, since_ms: None, retry: None }
    }

    /// Keeps a change of slot 1 with an event of some bytes.
    fn announce(recent_writes: &RecentWrites, record: &Record, bytes: usize) {
        let (order, content) =
            (order(record.version.0), EventContent::Plain(vec![0; bytes].into()));
        let event = OutboxEvent { sink: LEDGER.into(), order, content };
        let outbox = StampedEvents(vec![StampedEvent { changed_ms: 5, event }]);
        let events = WrittenEvents { log: Vec::new(), outbox };
        let slot = slot(Space::Enforced, 1);
        recent_writes.record_confirmed(&slot, record, encode(record), KEEP, events);
    }

    fn order(version: u64) -> EventOrder {
        EventOrder { opened_unix_ms: 10, version, number: 0 }
    }

    const LEDGER: &str = "ledger";

    /// Returns the versions of all events that would be restored in slot 1.
    fn events(recent_writes: &RecentWrites) -> Vec<u64> {
        let partitions = HashSet::from([slot(Space::Enforced, 1).partition()]);
        let kept = recent_writes.in_partitions(&partitions);
        let all = kept.into_iter().flat_map(|(_, recent)| recent.all_events().outbox.0);
        all.map(|stamped| stamped.event.order.version).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn events_of_earlier_writes_are_kept_for_their_time_unless_they_are_delivered() {
        let recent_writes = RecentWrites::default();
        // The answer to the first change is processed late.
        for changes in [1, 2, 2, 0] {
            announce(&recent_writes, &record(100, changes, 1, 10, State::Released), 10);
        }
        assert_eq!(events(&recent_writes), [100, 101, 102]);
        let claim = record(100, 3, 1, 10, State::InFlight { uncertain_since_ms: None });
        keep(&recent_writes, 1, &claim, LEASE);
        let (sink, slot) = (LEDGER.into(), slot(Space::Enforced, 1));
        let delivered = EventKey { sink, slot, order: order(101) };
        recent_writes.remove_delivered(&delivered);
        assert_eq!(events(&recent_writes), [100, 102]);
        pass(&recent_writes, RECENT_WRITE_TTL).await;
        assert_eq!((of(&recent_writes, 1), events(&recent_writes)), (vec![claim.version], vec![]));
    }

    #[tokio::test(start_paused = true)]
    async fn events_of_earlier_writes_are_limited_and_displace_no_write() {
        let recent_writes = RecentWrites::default();
        for changes in 0..12 {
            let change = record(100, changes, 1, 10, State::Released);
            announce(&recent_writes, &change, EARLIER_BYTES_MAX / 4);
        }
        assert_eq!(events(&recent_writes), [108, 109, 110, 111], "three earlier ones, and its own");
        let large = Encoded { payload: vec![0; 1 << 18].into(), ..encode(&completed(2)) };
        for n in 2..=15 {
            let (here, events) = (slot(Space::Enforced, n), WrittenEvents::default());
            recent_writes.record_confirmed(&here, &completed(2), large.clone(), KEEP, events);
        }
        let before = recent_writes.lock().settled.len();
        let claim = record(100, 12, 1, 10, State::InFlight { uncertain_since_ms: None });
        keep(&recent_writes, 1, &claim, LEASE);
        let inner = recent_writes.lock();
        assert!(inner.bytes <= BYTES_MAX, "{}", inner.bytes);
        assert_eq!((inner.settled.len(), inner.claims.len()), (before - 1, 1));
        drop(inner);
        recent_writes.remove_superseded(&slot(Space::Enforced, 1), claim.version);
        let inner = recent_writes.lock();
        let bytes: usize = inner.settled.values().map(|settled| weight(settled)).sum();
        assert_eq!(inner.bytes, bytes);
    }

    #[test]
    fn shadow_records_are_not_kept() {
        let recent_writes = RecentWrites::default();
        recent_writes.record_confirmed(
            &slot(Space::Shadow, 1),
            &claim(1, 1),
            encode(&claim(1, 1)),
            LEASE,
            WrittenEvents::default(),
        );
        assert!(recent_writes.lock().claims.is_empty());
        assert!(matches!(claim(1, 1).state, State::InFlight { .. }));
    }
}
