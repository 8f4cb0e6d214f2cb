//! Decides after a loss of records whether a confirmed write must be restored.

use tokio::time::Instant;

use super::earlier_events::EarlierEvents;
use super::written_events::WrittenEvents;
use crate::record::{
    Encoded, Fence, Lifetime, Record, State, Version, head_fence, head_has_lease, head_is_saga,
    head_version,
};

/// A later change of an operation has a version that is at most this much higher. Versions of other
/// operations in the slot are random. A saga has the most changes: some for each of its 32 steps in
/// both directions, and operators' decisions, which skip versions.
const LATER_MAX: u64 = 2_048 * Version::SKIPPED_MAX;

/// A confirmed write of this process.
#[derive(Clone)]
pub struct RecentWrite {
    /// The record as it was written.
    pub encoded: Encoded,
    /// Its lifetime.
    pub lifetime: Lifetime,
    /// The events that were written with it.
    pub(super) events: WrittenEvents,
    /// The events of earlier writes of its slot.
    pub(super) earlier: EarlierEvents,
    /// Time at which its operation began, in ms since 1970.
    opened_unix_ms: u64,
    kind: WriteKind,
    /// Time at which the write is removed.
    pub(super) until: Instant,
}

/// How final a written record is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum WriteKind {
    /// The attempt runs, or its outcome is unknown.
    Unsettled,
    /// A result, possibly expired, or a bar. A client or a saga may have received it, and no other
    /// outcome follows.
    Final,
    /// A released marker.
    Marker,
}

/// The decision about a confirmed write after a loss, given the record that is now in its slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RestoreDecision {
    /// The slot has an earlier state of the same operation, in this version. Overwrite it.
    OverEarlierState(Version),
    /// The slot has a record in this version that was written after the confirmed write was lost.
    /// Overwrite it under a new random version.
    ///
    /// The record in the slot is the released marker of another attempt, which would let the next
    /// request run. If the confirmed write is a result, the record can also be an earlier state
    /// that was changed after the loss. The new version is random. Otherwise it could equal the
    /// version that a request has read in the slot and expects there.
    UnderNewVersion(Version),
    /// The slot has the confirmed write itself, a later change of the operation, or a record that
    /// must not be overwritten. Write nothing.
    Obsolete,
    /// Another attempt began or settled the operation after the loss: it may have been executed
    /// twice.
    BegunAgain,
}

impl RecentWrite {
    pub(super) fn new(
        record: &Record,
        encoded: Encoded,
        lifetime: Lifetime,
        events: WrittenEvents,
        until: Instant,
    ) -> RecentWrite {
        let kind = match record.state {
            State::InFlight { .. }
            | State::Uncertain { .. }
            | State::Saga { .. }
            | State::Lock(_)
            | State::Review { .. }
            | State::Versions { .. } => WriteKind::Unsettled,
            State::Completed { .. } | State::Expired | State::Barred => WriteKind::Final,
            State::Released => WriteKind::Marker,
        };
        let opened_unix_ms = record.opened_unix_ms;
        let earlier = EarlierEvents::default();
        RecentWrite { encoded, lifetime, events, earlier, opened_unix_ms, kind, until }
    }

    /// Keeps the events of another write of the slot, which this write displaces. They have at most
    /// `limit` bytes.
    pub(super) fn keep_events_of(&mut self, other: RecentWrite, limit: usize) {
        self.earlier.add(other.earlier, other.events.outbox, other.until);
        self.earlier.remove_all(&self.events.outbox);
        self.earlier.shrink(limit);
    }

    /// Returns its events, together with those of earlier writes of its slot.
    pub(super) fn all_events(&self) -> WrittenEvents {
        let outbox = self.earlier.with(&self.events.outbox);
        WrittenEvents { log: self.events.log.clone(), outbox }
    }

    /// Whether both are about the same operation.
    pub(super) fn is_about(&self, record: &Record) -> bool {
        self.opened_unix_ms == record.opened_unix_ms
    }

    /// Returns the record's version.
    pub fn version(&self) -> Version {
        head_version(&self.encoded.head)
    }

    /// Returns the record's fence.
    pub fn fence(&self) -> Fence {
        head_fence(&self.encoded.head)
    }

    /// Whether the record has a lease: a claim or a saga.
    pub(super) fn has_lease(&self) -> bool {
        head_has_lease(&self.encoded.head)
    }

    /// Whether the record is a saga.
    pub(super) fn is_saga(&self) -> bool {
        head_is_saga(&self.encoded.head)
    }

    /// Whether this write is a later change of the record with this version.
    pub fn follows(&self, version: Version) -> bool {
        is_later(self.version(), version)
    }

    /// Decides whether this write must be restored if the slot has `current`. Pure and total.
    ///
    /// Versions alone don't show which of two writes is later: after a loss, both histories
    /// continue from the same version. So these rules decide:
    ///
    /// - Only the attempt itself, or a decision about its operation, releases the attempt's claim.
    ///   All other markers come from attempts that never ran. Every write except a marker prevails
    ///   over them.
    /// - A marker prevails only over states of its own operation, because another attempt may run
    ///   by now.
    /// - A result prevails over all unsettled states of its operation.
    pub fn restore_decision(&self, current: &Record) -> RestoreDecision {
        let (own, other) = (self.version(), current.version);
        let same_operation =
            current.fence == self.fence() || current.opened_unix_ms == self.opened_unix_ms;
        let may_be_earlier = match current.state {
            State::Released => true,
            State::InFlight { .. }
            | State::Uncertain { .. }
            | State::Saga { .. }
            | State::Lock(_)
            | State::Review { .. }
            | State::Versions { .. } => same_operation || self.kind != WriteKind::Marker,
            State::Completed { .. } | State::Expired | State::Barred => same_operation,
        };
        let releases_it = current.fence == self.fence() || same_operation && is_later(other, own);
        let is_unfounded = match current.state {
            State::Released => {
                self.kind == WriteKind::Final || self.kind == WriteKind::Unsettled && !releases_it
            }
            State::InFlight { .. }
            | State::Uncertain { .. }
            | State::Saga { .. }
            | State::Lock(_)
            | State::Review { .. }
            | State::Versions { .. } => self.kind == WriteKind::Final && same_operation,
            State::Completed { .. } | State::Expired | State::Barred => false,
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
}

/// Whether `version` belongs to a later change of the record with version `than`.
fn is_later(version: Version, than: Version) -> bool {
    (1..=LATER_MAX).contains(&version.0.wrapping_sub(than.0))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::record::{Cause, encode};
    use crate::store::suite::{claim, completed};

    const LEASE: Lifetime = Lifetime {
        keep: Duration::from_secs(600),
        due: Some(Duration::from_secs(30)),
        tombstone: None,
    };

    /// Makes a record that is `changes` changes after the version `first` of its history.
    fn record(first: u64, changes: u64, fence: u64, opened_unix_ms: u64, state: State) -> Record {
        Record {
            version: Version(first + changes),
            fence: Fence(fence),
            opened_unix_ms,
            state,
            ..claim(0, 0)
        }
    }

    /// A version of another history.
    const ELSEWHERE: u64 = 1 << 60;

    const IN_FLIGHT: State = State::InFlight { uncertain_since_ms: None };

    fn uncertain() -> State {
        State::Uncertain { cause: Cause::Broken, since_ms: None, retry: None }
    }

    fn result() -> State {
        completed(1).state
    }

    fn decision(held: Record, current: Record) -> RestoreDecision {
        let write =
            RecentWrite::new(&held, encode(&held), LEASE, WrittenEvents::default(), Instant::now());
        write.restore_decision(&current)
    }

    // A history counts from 100. The attempt has fence 1, and began at 10. Other attempts have
    // fence 2, and began at 20.

    fn own(changes: u64, state: &State) -> Record {
        record(100, changes, 1, 10, state.clone())
    }

    fn other(changes: u64, state: &State) -> Record {
        record(100, changes, 2, 20, state.clone())
    }

    fn elsewhere(state: &State) -> Record {
        record(ELSEWHERE, 0, 2, 20, state.clone())
    }

    fn decided(changes: u64, state: &State) -> Record {
        record(100, changes, 3, 10, state.clone())
    }

    #[test]
    fn after_a_loss_a_write_prevails_over_earlier_states_and_over_markers_of_attempts_that_never_ran()
     {
        use RestoreDecision::{BegunAgain, Obsolete, OverEarlierState, UnderNewVersion};
        let (in_flight, marker, unsure, done) = (IN_FLIGHT, State::Released, uncertain(), result());
        for held in [&in_flight, &unsure, &done] {
            // Records in a replica that lags behind.
            assert_eq!(
                decision(own(2, held), other(1, &marker)),
                OverEarlierState(Version(101)),
                "claimed over a marker"
            );
            assert_eq!(
                decision(own(2, held), other(0, &in_flight)),
                OverEarlierState(Version(100)),
                "that another left"
            );
            assert_eq!(decision(own(2, held), own(1, &unsure)), OverEarlierState(Version(101)));
            // Markers of duplicates that were given up, with versions of any origin.
            assert_eq!(
                decision(own(2, held), elsewhere(&marker)),
                UnderNewVersion(Version(ELSEWHERE))
            );
            assert_eq!(decision(own(2, held), other(2, &marker)), UnderNewVersion(Version(102)));
            assert_eq!(decision(own(2, held), other(3, &marker)), UnderNewVersion(Version(103)));
            // Records of another history.
            for current in [&in_flight, &unsure, &done, &State::Expired] {
                assert_eq!(decision(own(2, held), elsewhere(current)), BegunAgain);
            }
            assert_eq!(
                decision(own(2, held), other(1, &done)),
                BegunAgain,
                "somebody may have had that answer"
            );
            assert_eq!(decision(own(2, held), own(3, &done)), Obsolete);
        }
        let again = |state: &State| record(ELSEWHERE, 0, 1, 10, state.clone());
        for held in [&in_flight, &unsure] {
            assert_eq!(
                decision(own(2, held), decided(4, &marker)),
                Obsolete,
                "released by a decision"
            );
            assert_eq!(decision(own(2, held), own(3, &marker)), Obsolete);
            assert_eq!(decision(own(2, held), again(&marker)), Obsolete, "its own, over nothing");
            assert_eq!(
                decision(own(2, held), again(&in_flight)),
                Obsolete,
                "written again already"
            );
            assert_eq!(decision(own(2, held), own(4, &unsure)), Obsolete, "its lease is over");
        }
        // A result is the last outcome. A gateway that lacks the result may have marked the earlier
        // state as uncertain, released it or claimed it.
        for current in [&in_flight, &unsure, &marker] {
            assert_eq!(decision(own(2, &done), decided(4, current)), UnderNewVersion(Version(104)));
            assert_eq!(
                decision(own(2, &done), again(current)),
                UnderNewVersion(Version(ELSEWHERE))
            );
        }
        assert_eq!(decision(own(2, &done), decided(3, &State::Expired)), Obsolete);
    }

    #[test]
    fn after_a_loss_a_marker_prevails_over_earlier_states_and_not_over_other_attempts() {
        use RestoreDecision::{BegunAgain, Obsolete, OverEarlierState};
        let (in_flight, marker, unsure, done) = (IN_FLIGHT, State::Released, uncertain(), result());
        assert_eq!(decision(own(1, &marker), own(0, &in_flight)), OverEarlierState(Version(100)));
        assert_eq!(decision(decided(2, &marker), own(1, &unsure)), OverEarlierState(Version(101)));
        assert_eq!(decision(own(1, &marker), other(0, &marker)), OverEarlierState(Version(100)));
        for current in [
            other(0, &in_flight),
            other(0, &unsure),
            other(0, &done),
            elsewhere(&in_flight),
            elsewhere(&marker),
        ] {
            assert_eq!(decision(own(1, &marker), current), Obsolete);
        }
        // An operator's decision about a saga skips versions.
        let skipped = Version(100).skip(u64::MAX).0 - 100;
        let (held, current) = (own(skipped, &in_flight), own(0, &in_flight));
        assert_eq!(decision(held, current), OverEarlierState(Version(100)));
        let far = LATER_MAX + 1;
        assert_eq!(
            decision(record(100, far, 1, 10, done), record(100, 0, 2, 20, in_flight)),
            BegunAgain
        );
    }
}
