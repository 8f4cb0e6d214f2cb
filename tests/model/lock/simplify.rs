//! Makes states equal that differ only in what no later step reads, so that there are fewer states.
//! Versions count from the current one: only whether a remembered version is the current one, or
//! one of the last, makes a difference, because a slot never has the same version twice.

use super::protocol::Protocol;
use super::state::{
    Attempt, Held, Lease, Operation, Stage, State, SweepStage, Version, Wire, Write,
};

/// The current version of each record.
const CURRENT: Version = 10;
/// A version that no record has any more.
const NEVER: Version = 0;
/// How many versions a write is higher than the version that it expects, at most.
const AHEAD: Version = 2;

impl Protocol {
    pub fn simplify(&self, state: &mut State) {
        self.drop_dead_writes(state);
        self.simplify_attempts(state);
        self.simplify_known(state);
        let locks = state.locks.map(|lock| lock.map(|lock| lock.version));
        let operations = state.operations.map(|held| held.map(|held| held.entry.version));
        for (id, place) in self.bounds.attempts.iter().enumerate() {
            let attempt = &mut state.attempts[id];
            let current = operations[usize::from(place.operation)];
            attempt.claim = count(attempt.claim, current);
            let lock = locks[self.slot_of(place.operation)];
            if let Some((version, _)) = &mut attempt.lock {
                *version = count(*version, lock);
            }
            if let Stage::Taking(Some(over)) = &mut attempt.stage {
                *over = count(*over, lock);
            }
        }
        for known in state.known.iter_mut().flatten() {
            *known = count(*known, locks[0]);
        }
        for sweep in state.sweeps.iter_mut().flatten() {
            let found = &mut sweep.found.entry.version;
            *found = count(*found, operations[usize::from(sweep.operation)]);
            if let SweepStage::Freeing { expected, next } = &mut sweep.stage {
                let ahead = next.version - *expected;
                *expected = count(*expected, locks[self.slot_of(sweep.operation)]);
                next.version = *expected + ahead;
            }
        }
        for write in state.late.iter_mut().flatten() {
            let (expected, version, current) = match write {
                Write::Lock { slot, expected, next } => (expected, &mut next.version, locks[*slot]),
                Write::Operation { operation, expected, next } => {
                    (expected, &mut next.version, operations[usize::from(*operation)])
                }
            };
            if let Some(expected) = expected {
                let ahead = *version - *expected;
                *expected = count(*expected, current);
                *version = *expected + ahead;
            }
        }
        state.late.sort_unstable();
        state.locks.iter_mut().flatten().for_each(|lock| lock.version = CURRENT);
        for Held { entry, lease } in state.operations.iter_mut().flatten() {
            entry.version = CURRENT;
            if !entry.stand.is_in_flight()
                && *lease == Lease::Runs
                && self.bounds.budget.outages == 0
            {
                *lease = Lease::Ended;
            }
        }
    }

    /// Removes writes that the store would refuse, now and later.
    fn drop_dead_writes(&self, state: &mut State) {
        let State { locks, operations, late, sweeps, .. } = state;
        let version_of = |operation: Operation| {
            operations[usize::from(operation)].map(|held| held.entry.version)
        };
        for place in late.iter_mut() {
            let is_dead = place.is_some_and(|write| match write {
                Write::Lock { slot, expected, .. } => {
                    expected.is_some() && expected != locks[slot].map(|lock| lock.version)
                }
                Write::Operation { operation, expected, .. } => expected != version_of(operation),
            });
            if is_dead {
                *place = None;
            }
        }
        for place in sweeps.iter_mut() {
            let is_dead = place.is_some_and(|sweep| {
                sweep.stage == SweepStage::Releasing
                    && Some(sweep.found.entry.version) != version_of(sweep.operation)
            });
            if is_dead {
                *place = None;
            }
        }
    }

    fn simplify_attempts(&self, state: &mut State) {
        for (id, place) in self.bounds.attempts.iter().enumerate() {
            let current = state.locks[self.slot_of(place.operation)].map(|lock| lock.version);
            let is_read = self.reads_known(state, place.gateway);
            let names_condition = self.names_condition(state, id);
            let attempt = &mut state.attempts[id];
            match attempt.stage {
                Stage::Taking(over) if over != current => attempt.stage = Stage::Claimed,
                Stage::Sent | Stage::Settling(_) => {
                    attempt.may_send = false;
                    attempt.lock = attempt.lock.filter(|_| is_read);
                }
                Stage::Done => {
                    let is_queued = attempt.wire == Wire::Queued;
                    *attempt = Attempt {
                        stage: Stage::Done,
                        condition: if names_condition { attempt.condition } else { 0 },
                        seen: if is_queued { attempt.seen } else { 0 },
                        wire: if is_queued { Wire::Queued } else { Wire::Gone },
                        ..Attempt::IDLE
                    };
                }
                _ => {}
            }
        }
    }

    fn simplify_known(&self, state: &mut State) {
        let current = state.locks[0].map(|lock| lock.version);
        for gateway in 0..state.known.len() {
            if state.known[gateway] != current || !self.reads_known(state, gateway) {
                state.known[gateway] = None;
            }
        }
    }

    /// Whether an attempt can still read what its gateway remembers.
    fn reads_known(&self, state: &State, gateway: usize) -> bool {
        let attempts = self.bounds.attempts.iter().zip(&state.attempts);
        let mut of_gateway = attempts.filter(|(place, _)| place.gateway == gateway);
        of_gateway.any(|(_, attempt)| {
            matches!(attempt.stage, Stage::Idle | Stage::Claimed | Stage::Taking(_))
        })
    }

    /// Whether a later attempt can name the condition of this one.
    fn names_condition(&self, state: &State, id: usize) -> bool {
        let operation = self.bounds.attempts[id].operation;
        self.attempts_of(operation).next() == Some(id)
            && self.attempts_of(operation).any(|other| state.attempts[other].stage == Stage::Idle)
    }
}

/// Returns a version as counted from the current one.
fn count(version: Version, current: Option<Version>) -> Version {
    match current.and_then(|current| current.checked_sub(version)) {
        Some(behind) if behind <= AHEAD => CURRENT - behind,
        _ => NEVER,
    }
}
