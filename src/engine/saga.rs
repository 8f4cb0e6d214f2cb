//! The records of sagas: how a saga begins, goes on, changes its owner and ends, and how the
//! operation of a step is barred.

use std::sync::Arc;
use std::time::Duration;

use super::admit::{ClaimOver, ClaimRequest};
use super::policy::Policy;
use super::settle::{Next, claim, completed, unsettled};
use super::uncertain::uncertain_since_ms;
use crate::record::{
    Extras, Fence, Held, Lifetime, PrivateContent, Record, Reply, SagaPhase, State, Version,
};

/// Returns the record that begins a saga, as [`claim`] does for an attempt. `fresh` is a random
/// version for an empty slot.
pub fn saga_claim(
    asked: &ClaimRequest,
    over: ClaimOver,
    fresh: Version,
    now_unix_ms: u64,
    policy: &Policy,
    content: PrivateContent,
) -> Next {
    let Next { record, lifetime, announcement } = claim(asked, over, fresh, now_unix_ms, policy);
    let state = State::Saga { phase: SagaPhase::Running, content };
    Next { record: Record { state, ..record }, lifetime, announcement }
}

/// Returns the next record of a saga, under the same owner. It has a whole lease again.
///
/// The owner must not make two different records from one `record`: a store takes a second write of
/// one version, under one fence, for a repetition of the first. So if the result of a write is
/// unknown, the owner repeats the same write, or loads the record.
pub fn saga_progress(
    record: &Record,
    phase: SagaPhase,
    content: PrivateContent,
    policy: &Policy,
) -> Next {
    let state = State::Saga { phase, content };
    owned(Record { version: record.version.next(), state, ..record.clone() }, policy)
}

/// Returns the record of a saga under its next owner. Returns `None` if the record is no saga, if
/// its owner's lease has not ended, or if this gateway lacks the key of its content: another
/// gateway can continue it.
///
/// The version skips one, because the owner may be writing its next version at the same time.
pub fn saga_takeover(held: &Held, fence: Fence, policy: &Policy) -> Option<Next> {
    let record = &held.record;
    let is_open = matches!(record.state, State::Saga { content: PrivateContent::Open(_), .. });
    let version = record.version.after_next();
    (is_open && held.lease_is_over())
        .then(|| owned(Record { version, fence, ..record.clone() }, policy))
}

/// Returns the record of a saga that an operator changes. It stays with its owner: the owner's next
/// write finds another version under its own fence, and continues from the changed content.
///
/// `random` distinguishes the version from those that the owner writes at the same time. An ended
/// lease stays ended, so that a gateway takes the saga over at once.
pub fn saga_decision(
    held: &Held,
    phase: SagaPhase,
    content: PrivateContent,
    random: u64,
    policy: &Policy,
) -> Next {
    let record = &held.record;
    let (version, state) = (record.version.skip(random), State::Saga { phase, content });
    let mut next = owned(Record { version, state, ..record.clone() }, policy);
    if held.lease_is_over() {
        next.lifetime.due = Some(Duration::ZERO);
    }
    next
}

/// Returns the record of a saga after a duplicate of its request was accepted. Its claim can't be
/// given up any more: see [`settle`](super::settle::settle). The owner finds another version under
/// its own fence, as after a decision, and the lease stays. `random` is as for a decision.
pub fn saga_acceptance(held: &Held, random: u64, policy: &Policy) -> Next {
    let version = held.record.version.skip(random);
    let mut next = owned(Record { version, ..held.record.clone() }, policy);
    let left_ms = held.due_ms.saturating_sub(held.now_ms);
    next.lifetime.due = Some(Duration::from_millis(left_ms));
    next
}

/// Returns the completed record of a saga that ends with this reply, and what the end announces.
pub fn saga_end(record: &Record, reply: &Arc<Reply>, policy: &Policy) -> Next {
    completed(record, record.fence, reply, record.version.next(), policy).announced(record, None)
}

/// Returns the record that bars the operation of a step, over the record that was seen in its slot.
/// `fresh` is a random version for an empty slot.
///
/// Returns `None` if the operation may have run or may still run: its outcome decides what the saga
/// does. A bar needs no second bar.
pub fn bar(
    over: Option<&Record>,
    fence: Fence,
    fresh: Version,
    now_unix_ms: u64,
    policy: &Policy,
) -> Option<Next> {
    let (version, opened_unix_ms) = match over {
        None => (fresh, now_unix_ms),
        Some(record) if record.state == State::Released => {
            (record.version.next(), record.opened_unix_ms)
        }
        Some(_) => return None,
    };
    let record = Record {
        version,
        fence,
        route: policy.route.clone(),
        fingerprint: None,
        caller: None,
        opened_unix_ms,
        kept: None,
        publication: None,
        extras: Extras::default(),
        state: State::Barred,
    };
    let lifetime = Lifetime { keep: policy.unsettled_retention, due: None, tombstone: None };
    Some(Next { record, lifetime, announcement: None })
}

/// Returns the record of a step's uncertain operation with a whole retention from now on; `None`
/// for every other record. The operation stays uncertain since the same time.
///
/// The version skips one: the attempt in doubt may be writing its outcome at the same time.
pub fn kept(held: &Held, policy: &Policy) -> Option<Next> {
    let State::Uncertain { cause, retry, .. } = held.record.state else { return None };
    let state = State::Uncertain { cause, since_ms: Some(uncertain_since_ms(held)), retry };
    let version = held.record.version.after_next();
    Some(unsettled(Record { version, state, ..held.record.clone() }, policy))
}

/// Returns a record under its owner's lease.
fn owned(record: Record, policy: &Policy) -> Next {
    let lifetime =
        Lifetime { keep: policy.unsettled_retention, due: Some(policy.lease), tombstone: None };
    Next { record, lifetime, announcement: None }
}
