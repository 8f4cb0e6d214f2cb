//! Writes that this process made and the servers confirmed, kept for as long as the servers may still lose them: claims of
//! running attempts, and all other writes of the last seconds.
//!
//! A server that fails over to a replica, restarts from its disk or restarts empty goes on without writes that it
//! confirmed. So they are kept here and written again afterwards. Bounded in bytes and in time.
//!
//! Danger: each entry is asserted as a fact. A write without an answer must never enter: it would displace the confirmed
//! write of a running attempt, and after a loss the slot would get a claim that nobody runs. A confirmed write replaces an
//! entry only if it is a later change of the same operation ([`RecentWrite::restore_decision`]).

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::key::{Slot, Space};
use crate::record::{
    Encoded, Fence, Lifetime, Record, State, Version, head_fence, head_in_flight, head_version,
};

/// How long a write other than a claim is kept. Replicas are behind by less than a second unless something is wrong with
/// them, and a server that syncs its file every second loses two at most. Time counts only up to the last moment at which
/// the servers were seen to have their records ([`RecentWrites::note_intact`]): a hung server may be replaced much later.
pub const RECENT_WRITE_TTL: Duration = Duration::from_secs(3);

/// Bytes held at most: some 4,000 operations, more than 1,000 a second for as long as they are held. Beyond, the oldest go
/// first. It is what writing them again may take, too: a few tenths of a second, in which new operations wait.
const BYTES_MAX: usize = 4 << 20;

/// What an entry takes beside its payload: itself, its places in the table and in the queue, and what those have to spare.
const ENTRY_BYTES: usize = 400;

/// A later change has a version so little further: versions of other operations in the slot are random.
const LATER_MAX: u64 = 16;

/// A confirmed write.
#[derive(Clone)]
pub struct RecentWrite {
    /// The record as it was written.
    pub encoded: Encoded,
    /// Its life.
    pub lifetime: Lifetime,
    /// The event that was appended to the log with it; empty: none.
    pub event: Vec<u8>,
    /// When its operation began, in ms since 1970.
    opened_unix_ms: u64,
    kind: WriteKind,
    until: Instant,
}

/// What a write asserts.
#[derive(Clone, Copy, PartialEq, Eq)]
enum WriteKind {
    /// An attempt runs, or nobody knows what became of it.
    Unsettled,
    /// A result, or that it has expired. A client may have seen it, and no attempt's outcome follows.
    Final,
    /// A released marker.
    Marker,
}

/// What to do with a confirmed write after a loss, given the record that its slot has now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RestoreDecision {
    /// The slot has an earlier state of the same operation, in this version: write over it.
    OverEarlierState(Version),
    /// The slot has a record in this version that was written where this write was lost: the released marker of another
    /// attempt, which permits the next request to run; or of a result, an earlier state that was changed since. Write over
    /// it. The written record gets a new random version: requests that have read the slot name a version which may be one
    /// of this operation's own.
    UnderNewVersion(Version),
    /// The slot has this write, a later change of the operation, or nothing that this write has to prevail over.
    Obsolete,
    /// Another attempt began or settled the operation after the loss: it may have been executed twice.
    BegunAgain,
}

/// The holdings of a process.
pub struct RecentWrites(Mutex<RecentTable>);

struct RecentTable {
    /// The last moment at which the servers were seen to have all that they confirmed.
    intact_at: Instant,
    /// While their lease runs, which renewals extend. As many as requests are under way: their own limit bounds them.
    claims: HashMap<Slot, Box<RecentWrite>>,
    /// How many claims there may be until those whose lease is over are looked for.
    claims_until_swept: usize,
    settled: HashMap<Slot, Box<RecentWrite>>,
    /// The settled ones in the order in which they end.
    ends: VecDeque<(Instant, Slot)>,
    /// Of the settled ones.
    bytes: usize,
}

/// Claims below which none is looked for whose lease is over: those are few, and go when their operation is settled.
const CLAIMS_MIN: usize = 1024;

impl RecentWrite {
    fn new(record: &Record, encoded: Encoded, lifetime: Lifetime, event: Vec<u8>) -> RecentWrite {
        let span = if head_in_flight(&encoded.head) {
            lifetime.due.unwrap_or(RECENT_WRITE_TTL)
        } else {
            RECENT_WRITE_TTL
        };
        RecentWrite {
            encoded,
            lifetime,
            event,
            opened_unix_ms: record.opened_unix_ms,
            kind: match record.state {
                State::InFlight { .. } | State::Uncertain { .. } => WriteKind::Unsettled,
                State::Completed { .. } | State::Expired => WriteKind::Final,
                State::Released => WriteKind::Marker,
            },
            until: Instant::now() + span,
        }
    }

    /// The record's version.
    pub fn version(&self) -> Version {
        head_version(&self.encoded.head)
    }

    /// The record's fence.
    pub fn fence(&self) -> Fence {
        head_fence(&self.encoded.head)
    }

    /// Whether this is a later change of the record that has this version.
    pub fn follows(&self, version: Version) -> bool {
        is_later(self.version(), version)
    }

    /// Decides whether this write has to be made again where the slot has `stands`. Pure and total.
    ///
    /// Versions alone don't show which of two writes is the later one: after a loss both histories count on from the same
    /// version. But only an attempt itself, or a decision about its operation, releases what it claimed. All other markers
    /// are of attempts that never ran, so any other write prevails over them. A marker in turn prevails only over states
    /// of its own operation: another attempt may be running by now. A result prevails over all that is not settled of its
    /// operation.
    pub fn restore_decision(&self, stands: &Record) -> RestoreDecision {
        let (own, other) = (self.version(), stands.version);
        let same_operation =
            stands.fence == self.fence() || stands.opened_unix_ms == self.opened_unix_ms;
        let may_be_earlier = match stands.state {
            State::Released => true,
            State::InFlight { .. } | State::Uncertain { .. } => {
                same_operation || self.kind != WriteKind::Marker
            }
            State::Completed { .. } | State::Expired => same_operation,
        };
        let releases_it = stands.fence == self.fence() || same_operation && is_later(other, own);
        let is_unfounded = match stands.state {
            State::Released => {
                self.kind == WriteKind::Final || self.kind == WriteKind::Unsettled && !releases_it
            }
            State::InFlight { .. } | State::Uncertain { .. } => {
                self.kind == WriteKind::Final && same_operation
            }
            State::Completed { .. } | State::Expired => false,
        };
        if self.follows(other) && may_be_earlier {
            RestoreDecision::OverEarlierState(other)
        } else if is_unfounded {
            RestoreDecision::UnderNewVersion(other)
        } else if own == other
            || is_later(other, own)
            || same_operation
            || self.kind == WriteKind::Marker
        {
            RestoreDecision::Obsolete
        } else {
            RestoreDecision::BegunAgain
        }
    }

    fn weight(&self) -> usize {
        ENTRY_BYTES + self.encoded.payload.len() + self.event.capacity()
    }
}

/// Whether a version is of a later change of the record that has the other one.
fn is_later(version: Version, than: Version) -> bool {
    (1..=LATER_MAX).contains(&version.0.wrapping_sub(than.0))
}

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
    /// A write was confirmed. It is kept unless the slot's entry would have to be written over it after a loss. Shadow
    /// records decide nothing and are not kept.
    pub fn record_confirmed(
        &self,
        slot: &Slot,
        record: &Record,
        encoded: Encoded,
        lifetime: Lifetime,
        event: Vec<u8>,
    ) {
        if slot.space != Space::Enforced {
            return;
        }
        let in_flight = head_in_flight(&encoded.head);
        let recent = Box::new(RecentWrite::new(record, encoded, lifetime, event));
        let mut inner = self.lock();
        let prevails = |held: &RecentWrite| {
            matches!(
                held.restore_decision(record),
                RestoreDecision::OverEarlierState(_) | RestoreDecision::UnderNewVersion(_)
            )
        };
        if inner.get(slot).is_some_and(|held| held.until > inner.intact_at && prevails(held)) {
            return;
        }
        inner.forget(slot);
        if in_flight {
            inner.claims.insert(*slot, recent);
            inner.sweep();
        } else {
            inner.bytes += recent.weight();
            inner.ends.push_back((recent.until, *slot));
            inner.settled.insert(*slot, recent);
            inner.prune();
        }
    }

    /// The servers were seen, at this time or later, to have all that they confirmed before.
    pub fn note_intact(&self, at: Instant) {
        let mut inner = self.lock();
        inner.intact_at = inner.intact_at.max(at);
    }

    /// The attempt of a claim renews its lease. Whatever the store answers, it runs, and its claim has to be asserted.
    pub fn extend_lease(&self, slot: &Slot, fence: Fence, lease: Duration) {
        if let Some(recent) =
            self.lock().claims.get_mut(slot).filter(|recent| recent.fence() == fence)
        {
            recent.until = Instant::now() + lease;
        }
    }

    /// The slot has a record that this version doesn't prevail over: it is kept no longer. A later entry stays.
    pub fn remove_superseded(&self, slot: &Slot, version: Version) {
        let mut inner = self.lock();
        if inner.get(slot).is_some_and(|held| held.version() == version) {
            inner.forget(slot);
        }
    }

    /// Whether this very record is held.
    pub fn holds(&self, slot: &Slot, is_it: impl Fn(&RecentWrite) -> bool) -> bool {
        self.lock().get(slot).is_some_and(is_it)
    }

    /// What is held of some partitions.
    pub fn in_partitions(&self, partitions: &HashSet<u16>) -> Vec<(Slot, RecentWrite)> {
        let inner = self.lock();
        let all = inner.claims.iter().chain(&inner.settled);
        let standing = all.filter(|(slot, recent)| {
            recent.until > inner.intact_at && partitions.contains(&slot.partition())
        });
        standing.map(|(slot, recent)| (*slot, RecentWrite::clone(recent))).collect()
    }

    fn lock(&self) -> MutexGuard<'_, RecentTable> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl RecentTable {
    fn get(&self, slot: &Slot) -> Option<&RecentWrite> {
        self.claims.get(slot).or_else(|| self.settled.get(slot)).map(Box::as_ref)
    }

    fn forget(&mut self, slot: &Slot) {
        self.claims.remove(slot);
        self.forget_settled(slot);
    }

    /// Drops claims whose lease is over: those of attempts that ended without being settled.
    fn sweep(&mut self) {
        if self.claims.len() > self.claims_until_swept.max(CLAIMS_MIN) {
            self.claims.retain(|_, recent| recent.until > self.intact_at);
            self.claims_until_swept = 2 * self.claims.len();
        }
    }

    /// Drops the settled ones that have ended, and the oldest while there are too many.
    fn prune(&mut self) {
        while let Some((end, slot)) = self.ends.front().copied() {
            if end > self.intact_at && self.bytes <= BYTES_MAX {
                return;
            }
            self.ends.pop_front();
            if self.settled.get(&slot).is_some_and(|recent| recent.until == end) {
                self.forget_settled(&slot);
            }
        }
    }

    fn forget_settled(&mut self, slot: &Slot) {
        if let Some(recent) = self.settled.remove(slot) {
            self.bytes -= recent.weight();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{Cause, encode};
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
            Vec::new(),
        );
    }

    /// Time passes, and the servers still have their records.
    async fn pass(recent_writes: &RecentWrites, span: Duration) {
        tokio::time::advance(span).await;
        recent_writes.note_intact(Instant::now());
    }

    /// A record of a history that began with `first`, so many changes later.
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
    async fn while_the_servers_are_not_seen_to_have_their_records_nothing_is_let_go() {
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
    async fn what_is_confirmed_again_is_kept_as_long_as_any_other() {
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
        let running = record(100, 0, 1, 10, State::InFlight { doubt_since_ms: None });
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
        let running = record(100, 0, 1, 10, State::InFlight { doubt_since_ms: None });
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
    async fn what_is_held_has_a_bound_and_claims_are_not_crowded_out() {
        let recent_writes = RecentWrites::default();
        keep(&recent_writes, 0, &claim(1, 1), LEASE);
        let large = Encoded { payload: vec![0; 1 << 18].into(), ..encode(&completed(2)) };
        for n in 1..=40 {
            recent_writes.record_confirmed(
                &slot(Space::Enforced, n),
                &completed(2),
                large.clone(),
                KEEP,
                Vec::new(),
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
    async fn claims_whose_lease_is_over_are_looked_for_now_and_then() {
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

    fn result() -> State {
        completed(1).state
    }

    #[test]
    fn after_a_loss_a_write_prevails_over_earlier_states_and_over_markers_of_attempts_that_never_ran()
     {
        use RestoreDecision::{BegunAgain, Obsolete, OverEarlierState, UnderNewVersion};
        let in_flight = State::InFlight { doubt_since_ms: None };
        let asserted = |held: Record, stands: Record| {
            RecentWrite::new(&held, encode(&held), LEASE, Vec::new()).restore_decision(&stands)
        };
        // A history counts from 100. The attempt has fence 1 and began at 10; others have fence 2 and began at 20.
        let own = |changes, state: &State| record(100, changes, 1, 10, state.clone());
        let other = |changes, state: &State| record(100, changes, 2, 20, state.clone());
        let elsewhere = |state: &State| record(900, 0, 2, 20, state.clone());
        let decided = |changes, state: &State| record(100, changes, 3, 10, state.clone());
        let (marker, doubt, done) = (State::Released, uncertain(), result());
        for held in [&in_flight, &doubt, &done] {
            // What a replica that lags behind goes on with.
            assert_eq!(
                asserted(own(2, held), other(1, &marker)),
                OverEarlierState(Version(101)),
                "claimed over a marker"
            );
            assert_eq!(
                asserted(own(2, held), other(0, &in_flight)),
                OverEarlierState(Version(100)),
                "that another left"
            );
            assert_eq!(asserted(own(2, held), own(1, &doubt)), OverEarlierState(Version(101)));
            // Duplicates that were given up, wherever their versions come from.
            assert_eq!(asserted(own(2, held), elsewhere(&marker)), UnderNewVersion(Version(900)));
            assert_eq!(asserted(own(2, held), other(2, &marker)), UnderNewVersion(Version(102)));
            assert_eq!(asserted(own(2, held), other(3, &marker)), UnderNewVersion(Version(103)));
            // Another history.
            for stands in [&in_flight, &doubt, &done, &State::Expired] {
                assert_eq!(asserted(own(2, held), elsewhere(stands)), BegunAgain);
            }
            assert_eq!(
                asserted(own(2, held), other(1, &done)),
                BegunAgain,
                "somebody may have had that answer"
            );
            assert_eq!(asserted(own(2, held), own(3, &done)), Obsolete);
        }
        let again = |state: &State| record(900, 0, 1, 10, state.clone());
        for held in [&in_flight, &doubt] {
            assert_eq!(
                asserted(own(2, held), decided(4, &marker)),
                Obsolete,
                "released by a decision"
            );
            assert_eq!(asserted(own(2, held), own(3, &marker)), Obsolete);
            assert_eq!(asserted(own(2, held), again(&marker)), Obsolete, "its own, over nothing");
            assert_eq!(
                asserted(own(2, held), again(&in_flight)),
                Obsolete,
                "written again already"
            );
            assert_eq!(asserted(own(2, held), own(4, &doubt)), Obsolete, "its lease is over");
        }
        // No outcome follows a result: its earlier state was marked, released or claimed by who didn't know of it.
        for stands in [&in_flight, &doubt, &marker] {
            assert_eq!(asserted(own(2, &done), decided(4, stands)), UnderNewVersion(Version(104)));
            assert_eq!(asserted(own(2, &done), again(stands)), UnderNewVersion(Version(900)));
        }
        assert_eq!(asserted(own(2, &done), decided(3, &State::Expired)), Obsolete);
        // A marker protects nothing from those who run.
        assert_eq!(asserted(own(1, &marker), own(0, &in_flight)), OverEarlierState(Version(100)));
        assert_eq!(asserted(decided(2, &marker), own(1, &doubt)), OverEarlierState(Version(101)));
        assert_eq!(asserted(own(1, &marker), other(0, &marker)), OverEarlierState(Version(100)));
        for stands in [
            other(0, &in_flight),
            other(0, &doubt),
            other(0, &done),
            elsewhere(&in_flight),
            elsewhere(&marker),
        ] {
            assert_eq!(asserted(own(1, &marker), stands), Obsolete);
        }
        let far = LATER_MAX + 1;
        assert_eq!(
            asserted(record(100, far, 1, 10, done), record(100, 0, 2, 20, in_flight)),
            BegunAgain
        );
    }

    #[test]
    fn shadow_records_are_not_held() {
        let recent_writes = RecentWrites::default();
        recent_writes.record_confirmed(
            &slot(Space::Shadow, 1),
            &claim(1, 1),
            encode(&claim(1, 1)),
            LEASE,
            Vec::new(),
        );
        assert!(recent_writes.lock().claims.is_empty());
        assert!(matches!(claim(1, 1).state, State::InFlight { .. }));
    }
}
