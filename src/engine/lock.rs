//! The lock of a resource: who may take it, and what its record proves.
//!
//! A write claims its own operation first. Then it takes the lock, looks at the current version,
//! and is sent. The lock names the operation, and has no lease of its own: it is held for as long
//! as the outcome of the operation may still be open. So whatever settles the operation frees the
//! lock in the same step: an answer, an operator's decision or a probe.
//!
//! Danger: a write that was sent may be executed long after its gateway is gone. If the lock were
//! free at the end of the lease, the next write would compare a version that is about to change.

use std::time::Duration;

use super::policy::Policy;
use super::settle::{Next, released};
use super::uncertain::uncertain_since_ms;
use crate::key::Slot;
use crate::record::{Extras, Fence, Held, Lifetime, Lock, LockPhase, Record, State, Version};

/// A write that wants the lock of its resource.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LockRequest {
    /// The operation of the write.
    pub operation: Slot,
    /// The fence of the attempt.
    pub fence: Fence,
    /// Whether the attempt began from an uncertain operation. An earlier attempt of it may still be
    /// executed, so the lock counts as sent from the beginning.
    pub was_uncertain: bool,
}

/// Whether a write may take the lock of its resource.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LockAdmission {
    /// Nobody holds it: write the lock over this version.
    Take(Option<Version>),
    /// The attempt of this operation is active: wait until its record changes.
    Wait(Slot),
    /// The attempt of this operation has ended without an outcome: mark the operation, then ask
    /// again.
    MarkOverdue(Slot),
    /// The write of this operation may still be executed.
    Uncertain {
        /// The operation.
        operation: Slot,
        /// How long it may still be executed.
        rest: Duration,
    },
    /// The write has lost its claim: nothing may be sent.
    Lost,
}

/// What a lock proves about an attempt that has ended without an outcome.
#[derive(Debug, Clone, PartialEq)]
pub enum UnsentProof {
    /// Nothing was sent.
    Proven,
    /// Nothing was sent if this record can be written: the attempt then can't be sent any more.
    IfWritten(Box<Next>),
    /// The write may have been sent.
    None,
}

/// Returns the operation that may hold the lock; `None` if nobody holds it.
pub fn lock_holder(lock: Option<&Held>) -> Option<Slot> {
    match lock?.record.state {
        State::Lock(Lock { phase: LockPhase::Free, .. }) => None,
        State::Lock(Lock { operation, .. }) => Some(operation),
        _ => None,
    }
}

/// Decides whether a write may take the lock. `holder` is the record of the operation that
/// [`lock_holder`] names. Pure and total.
pub fn lock_admission(
    lock: Option<&Held>,
    holder: Option<&Held>,
    request: &LockRequest,
) -> LockAdmission {
    let Some(held) = lock else { return LockAdmission::Take(None) };
    let free = LockAdmission::Take(Some(held.record.version));
    let State::Lock(lock) = held.record.state else { return free };
    let Some(operation) = lock_holder(Some(held)) else { return free };
    if operation == request.operation {
        // The lock is that of an earlier attempt, or of a later one: this attempt may have been
        // stopped since its claim, and a duplicate may have begun.
        let is_claimed = holder.is_some_and(|holder| {
            matches!(holder.record.state, State::InFlight { .. })
                && holder.record.fence == request.fence
        });
        return if is_claimed { free } else { LockAdmission::Lost };
    }
    let Some(holder) = holder else { return free };
    match &holder.record.state {
        // Another attempt has begun the operation anew, after the attempt with the lock had
        // released it.
        State::InFlight { uncertain_since_ms: None }
            if holder.record.fence != held.record.fence =>
        {
            free
        }
        State::InFlight { .. } if holder.lease_is_over() => LockAdmission::MarkOverdue(operation),
        State::InFlight { .. } => LockAdmission::Wait(operation),
        State::Uncertain { .. } => {
            let age_ms = holder.now_ms.saturating_sub(uncertain_since_ms(holder));
            match lock.rest_ms.checked_sub(age_ms) {
                Some(rest_ms) if rest_ms > 0 => {
                    LockAdmission::Uncertain { operation, rest: Duration::from_millis(rest_ms) }
                }
                _ => free,
            }
        }
        // A write that waits for a person was not sent.
        State::Review { .. }
        | State::Completed { .. }
        | State::Released
        | State::Expired
        | State::Saga { .. }
        | State::Barred
        | State::Lock(_)
        | State::Versions { .. } => free,
    }
}

/// Returns the lock of a write, over the version that it replaces. `fresh` is a random version for
/// an empty slot, `busy` the longest time until the attempt has an outcome.
pub fn taken_lock(
    request: &LockRequest,
    over: Option<Version>,
    fresh: Version,
    now_unix_ms: u64,
    policy: &Policy,
    busy: Duration,
) -> Next {
    let phase = if request.was_uncertain { LockPhase::Sent } else { LockPhase::Looking };
    let rest_ms = u64::try_from(policy.uncertain_after.as_millis()).unwrap_or(u64::MAX);
    let lock = Lock { phase, operation: request.operation, rest_ms };
    Next {
        record: Record {
            version: over.map_or(fresh, Version::next),
            fence: request.fence,
            route: policy.route.clone(),
            fingerprint: None,
            caller: None,
            opened_unix_ms: now_unix_ms,
            kept: None,
            publication: None,
            extras: Extras::default(),
            state: State::Lock(lock),
        },
        lifetime: lock_lifetime(policy, busy),
        announcement: None,
    }
}

/// Returns the lock of a write that is about to be sent. It replaces exactly the lock that the
/// write took: if another write has taken the lock since, it can't be written, and nothing is sent.
pub fn sent_lock(taken: &Record, policy: &Policy, busy: Duration) -> Option<Next> {
    let State::Lock(lock) = taken.state else { return None };
    let state = State::Lock(Lock { phase: LockPhase::Sent, ..lock });
    let record = Record { version: taken.version.next(), state, ..taken.clone() };
    Some(Next { record, lifetime: lock_lifetime(policy, busy), announcement: None })
}

/// Returns how long the record of a lock is kept: until the write can't be executed any more,
/// whatever becomes of its gateway, and for longer than [`LOCK_OUTLIVES_LEASE`] after the end of
/// its lease. Nothing has to remove the record earlier, because the operation's record shows
/// whether the lock is held.
fn lock_lifetime(policy: &Policy, busy: Duration) -> Lifetime {
    let keep = busy + 2 * policy.lease + policy.uncertain_after + policy.marker_retention();
    Lifetime { keep, due: None, tombstone: None }
}

/// Returns what the lock of a resource proves about an attempt that has ended without an outcome.
/// `fence` is a random fence for a lock that is freed. Pure and total.
pub fn unsent_proof(
    lock: Option<&Held>,
    attempt: &Held,
    operation: &Slot,
    fence: Fence,
) -> UnsentProof {
    let is_first = matches!(attempt.record.state, State::InFlight { uncertain_since_ms: None });
    if !is_first || !attempt.lease_is_over() {
        return UnsentProof::None;
    }
    // A lock that is gone proves nothing: it may have been lost, or its time was over.
    let Some(held) = lock else { return UnsentProof::None };
    let State::Lock(lock) = held.record.state else { return UnsentProof::None };
    let is_own = lock.operation == *operation && held.record.fence == attempt.record.fence;
    match lock.phase {
        LockPhase::Sent if is_own => UnsentProof::None,
        LockPhase::Looking if is_own => {
            let state = State::Lock(Lock { phase: LockPhase::Free, ..lock });
            // Another fence: the attempt may write the same version at the same time.
            let version = held.record.version.next();
            let record = Record { version, fence, state, ..held.record.clone() };
            let lifetime = Lifetime { keep: LOCK_OUTLIVES_LEASE, due: None, tombstone: None };
            UnsentProof::IfWritten(Box::new(Next { record, lifetime, announcement: None }))
        }
        // The lock of a write that was sent is held until its operation is settled. So if it can't
        // have ended since, the attempt never got that far. If all gateways were down for longer,
        // this lock may be that of a write which has found the slot empty.
        LockPhase::Sent | LockPhase::Looking | LockPhase::Free => {
            let now_ms = attempt.now_ms.max(held.now_ms);
            let since_lease = Duration::from_millis(now_ms.saturating_sub(attempt.due_ms));
            match since_lease < LOCK_OUTLIVES_LEASE {
                true => UnsentProof::Proven,
                false => UnsentProof::None,
            }
        }
    }
}

/// How long a lock outlives the lease of its attempt, at least (see [`lock_lifetime`]). A freed
/// lock is kept as long: longer than a store command can be in transit.
const LOCK_OUTLIVES_LEASE: Duration = Duration::from_secs(60);

/// Returns the released marker of an attempt that has ended, if nothing was sent.
pub fn release_unsent(held: &Held, policy: &Policy) -> Next {
    let record = &held.record;
    released(record.fence, record.version.after_next(), record, policy)
}
