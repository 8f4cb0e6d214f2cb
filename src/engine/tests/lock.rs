//! Tables of the lock of a resource.

use super::*;
use crate::key::Slot;
use crate::record::{Lock, LockPhase};

const HOLDER: &str = "holder";
const ASKING: &str = "asking";
const NOW_MS: u64 = 1_000_000;
const LOCKED: Version = Version(40);
const TAKE: LockAdmission = LockAdmission::Take(Some(LOCKED));
const PHASES: [LockPhase; 3] = [LockPhase::Free, LockPhase::Looking, LockPhase::Sent];

fn slot(name: &str) -> Slot {
    Slot::of_resource(name, b"", [])
}

/// A write of the operation `ASKING`, under the fence `OWN`.
fn request(was_uncertain: bool) -> LockRequest {
    LockRequest { operation: slot(ASKING), fence: OWN, was_uncertain }
}

/// The lock of an operation, taken by the attempt with this fence.
fn lock(operation: &str, fence: Fence, phase: LockPhase) -> Held {
    let request = LockRequest { operation: slot(operation), fence, was_uncertain: false };
    let mut record = taken_lock(&request, None, LOCKED, 0, &policy(), SECOND).record;
    let State::Lock(lock) = record.state else { unreachable!() };
    record.state = State::Lock(Lock { phase, ..lock });
    Held { record, written_ms: 0, due_ms: 0, now_ms: NOW_MS }
}

/// The record of an operation, with this time since the end of its lease.
fn operation(state: State, fence: Fence, overdue_ms: i64) -> Held {
    let asked = ClaimRequest { fence, ..asked() };
    let claimed = claim(&asked, ClaimOver::Nothing, Version(7), 0, &policy());
    let due_ms = NOW_MS.checked_add_signed(-overdue_ms).unwrap();
    let record = Record { state, ..claimed.record };
    Held { record, written_ms: NOW_MS - 1000, due_ms, now_ms: NOW_MS }
}

fn in_flight(uncertain_since_ms: Option<u64>) -> State {
    State::InFlight { uncertain_since_ms }
}

fn uncertain_since(age_ms: u64, retry: Option<Fence>) -> State {
    let since_ms = Some(NOW_MS - age_ms);
    State::Uncertain { cause: Cause::Broken, since_ms, retry }
}

fn settled() -> [State; 4] {
    let completed = State::Completed { reply: whole(200), by: Settler::Upstream };
    [completed, State::Released, State::Expired, State::Barred]
}

#[test]
fn a_lock_is_held_while_the_outcome_of_its_operation_is_open() {
    let (runs, over) = (-1, 0);
    let refused = |rest_ms| LockAdmission::Uncertain {
        operation: slot(HOLDER),
        rest: Duration::from_millis(rest_ms),
    };
    let (wait, overdue) =
        (LockAdmission::Wait(slot(HOLDER)), LockAdmission::MarkOverdue(slot(HOLDER)));
    let rest_ms = 60_000;
    let since = Some(NOW_MS - 1000);
    for phase in [LockPhase::Looking, LockPhase::Sent] {
        let held = lock(HOLDER, OTHER, phase);
        for (state, fence, overdue_ms, expected) in [
            (in_flight(None), OTHER, runs, wait),
            (in_flight(None), OTHER, over, overdue),
            // The attempt with the lock had released the operation.
            (in_flight(None), OWN, runs, TAKE),
            (in_flight(None), OWN, over, TAKE),
            // It had not: it may still be executed.
            (in_flight(since), OWN, runs, wait),
            (in_flight(since), OWN, over, overdue),
            (in_flight(since), OTHER, runs, wait),
            (in_flight(since), OTHER, over, overdue),
            (uncertain_since(0, None), OTHER, over, refused(rest_ms)),
            (uncertain_since(rest_ms - 1, None), OTHER, over, refused(1)),
            (uncertain_since(rest_ms - 1, None), OWN, over, refused(1)),
            (uncertain_since(rest_ms - 1, Some(OTHER)), OWN, over, refused(1)),
            (uncertain_since(rest_ms, None), OTHER, over, TAKE),
            (uncertain_since(rest_ms + 1, Some(OTHER)), OWN, over, TAKE),
        ] {
            let holder = operation(state, fence, overdue_ms);
            let admitted = lock_admission(Some(&held), Some(&holder), &request(false));
            assert_eq!(admitted, expected, "{phase:?} {holder:?}");
            assert_eq!(lock_holder(Some(&held)), Some(slot(HOLDER)));
        }
        for state in settled() {
            let holder = operation(state, OTHER, over);
            assert_eq!(lock_admission(Some(&held), Some(&holder), &request(false)), TAKE);
        }
        assert_eq!(lock_admission(Some(&held), None, &request(false)), TAKE, "no record");
    }
}

#[test]
fn an_uncertain_operation_without_a_time_rests_since_it_was_written() {
    let state = State::Uncertain { cause: Cause::LeaseEnded, since_ms: None, retry: None };
    let holder = operation(state, OTHER, 0);
    let held = lock(HOLDER, OTHER, LockPhase::Sent);
    let rest = Duration::from_secs(59);
    let refused = LockAdmission::Uncertain { operation: slot(HOLDER), rest };
    assert_eq!(lock_admission(Some(&held), Some(&holder), &request(false)), refused);
}

#[test]
fn nobody_holds_a_lock_that_is_absent_or_free() {
    assert_eq!(lock_admission(None, None, &request(false)), LockAdmission::Take(None));
    assert_eq!(lock_holder(None), None);
    let free = lock(HOLDER, OTHER, LockPhase::Free);
    let holder = operation(in_flight(None), OTHER, -1);
    assert_eq!(lock_holder(Some(&free)), None);
    assert_eq!(lock_admission(Some(&free), Some(&holder), &request(false)), TAKE);
}

#[test]
fn only_the_attempt_that_has_claimed_its_operation_takes_the_lock_of_another_attempt() {
    for (phase, fence) in [LockPhase::Looking, LockPhase::Sent]
        .into_iter()
        .flat_map(|phase| [(phase, OWN), (phase, OTHER)])
    {
        let held = lock(ASKING, fence, phase);
        let admitted = |holder: Option<&Held>| lock_admission(Some(&held), holder, &request(false));
        for since in [None, Some(NOW_MS - 1000)] {
            assert_eq!(admitted(Some(&operation(in_flight(since), OWN, -1))), TAKE);
            let later = operation(in_flight(since), OTHER, -1);
            assert_eq!(admitted(Some(&later)), LockAdmission::Lost, "a later attempt runs");
        }
        let unsettled = [uncertain_since(0, None), uncertain_since(90_000, Some(OWN))];
        for state in settled().into_iter().chain(unsettled) {
            assert_eq!(admitted(Some(&operation(state, OWN, 0))), LockAdmission::Lost);
        }
        assert_eq!(admitted(None), LockAdmission::Lost);
    }
}

#[test]
fn a_lock_is_taken_as_looking_or_as_sent_and_then_marked_over_its_own_version() {
    for (was_uncertain, phase) in [(false, LockPhase::Looking), (true, LockPhase::Sent)] {
        for (over, version) in [(None, Version(5)), (Some(LOCKED), LOCKED.next())] {
            let request = request(was_uncertain);
            let taken = taken_lock(&request, over, Version(5), 0, &policy(), SECOND).record;
            let expected = Lock { phase, operation: slot(ASKING), rest_ms: 60_000 };
            assert_eq!((taken.version, taken.fence), (version, OWN));
            assert_eq!(taken.state, State::Lock(expected));
            let sent = sent_lock(&taken, &policy(), SECOND).unwrap().record;
            let state = State::Lock(Lock { phase: LockPhase::Sent, ..expected });
            assert_eq!(sent, Record { version: version.next(), state, ..taken });
        }
    }
    let operation = operation(in_flight(None), OWN, 0);
    assert!(sent_lock(&operation.record, &policy(), SECOND).is_none());
}

#[test]
fn a_lock_outlives_its_lease_and_the_rest_of_its_write() {
    let policy = policy();
    let busy = 20 * SECOND;
    let taken = taken_lock(&request(false), None, LOCKED, 0, &policy, busy);
    let sent = sent_lock(&taken.record, &policy, busy).unwrap();
    for lifetime in [taken.lifetime, sent.lifetime] {
        // The last renewal can be as late as the end of the attempt.
        let lease_ends = busy + policy.lease;
        assert!(lifetime.keep >= lease_ends + policy.uncertain_after + 60 * SECOND);
        assert_eq!((lifetime.due, lifetime.tombstone), (None, None));
    }
}

/// What a proof is, without the record to write.
#[derive(Debug, PartialEq)]
enum Proof {
    Proven,
    IfWritten,
    None,
}

fn proof(lock: Option<&Held>, attempt: &Held) -> Proof {
    match unsent_proof(lock, attempt, &slot(HOLDER), Fence(99)) {
        UnsentProof::Proven => Proof::Proven,
        UnsentProof::IfWritten(_) => Proof::IfWritten,
        UnsentProof::None => Proof::None,
    }
}

#[test]
fn a_lock_proves_that_nothing_was_sent_unless_its_attempt_has_marked_it_or_it_may_have_ended() {
    const KEPT_MS: i64 = 60_000;
    for phase in PHASES {
        for (name, fence) in [(HOLDER, OTHER), (HOLDER, OWN), (ASKING, OTHER), (ASKING, OWN)] {
            for overdue_ms in [-1, 0, KEPT_MS - 1, KEPT_MS, 10 * KEPT_MS] {
                let is_own = (name, fence) == (HOLDER, OTHER);
                let held = lock(name, fence, phase);
                let attempt = operation(in_flight(None), OTHER, overdue_ms);
                let expected = match phase {
                    _ if overdue_ms < 0 => Proof::None,
                    LockPhase::Sent if is_own => Proof::None,
                    LockPhase::Looking if is_own => Proof::IfWritten,
                    _ if overdue_ms >= KEPT_MS => Proof::None,
                    _ => Proof::Proven,
                };
                let row = (phase, name, fence, overdue_ms);
                assert_eq!(proof(Some(&held), &attempt), expected, "{row:?}");
                assert_eq!(proof(None, &attempt), Proof::None, "{row:?}: absent");
                let again = operation(in_flight(Some(1)), OTHER, overdue_ms);
                assert_eq!(proof(Some(&held), &again), Proof::None, "{row:?}: from uncertain");
                let uncertain = operation(uncertain_since(0, None), OTHER, overdue_ms);
                assert_eq!(proof(Some(&held), &uncertain), Proof::None, "{row:?}: uncertain");
            }
        }
    }
}

#[test]
fn the_later_one_of_the_two_reads_decides_whether_a_lock_may_have_ended() {
    let mut held = lock(ASKING, OWN, LockPhase::Sent);
    let attempt = operation(in_flight(None), OTHER, 0);
    assert_eq!(proof(Some(&held), &attempt), Proof::Proven);
    held.now_ms = NOW_MS + 60_000;
    assert_eq!(proof(Some(&held), &attempt), Proof::None, "the sweeper was stopped in between");
}

#[test]
fn a_freed_lock_has_a_fence_of_its_own_and_is_kept_for_longer_than_a_command_is_in_transit() {
    let held = lock(HOLDER, OTHER, LockPhase::Looking);
    let attempt = operation(in_flight(None), OTHER, 0);
    let UnsentProof::IfWritten(next) =
        unsent_proof(Some(&held), &attempt, &slot(HOLDER), Fence(99))
    else {
        panic!("a looking lock")
    };
    let State::Lock(freed) = next.record.state else { panic!("a lock") };
    assert_eq!(freed.phase, LockPhase::Free);
    assert_eq!((next.record.version, next.record.fence), (LOCKED.next(), Fence(99)));
    assert!(next.lifetime.keep >= policy().marker_retention().min(60 * SECOND));
    let sent = sent_lock(&held.record, &policy(), SECOND).unwrap().record;
    assert!(!sent.is_same_write(&next.record), "the mark of the attempt is another write");
}

#[test]
fn a_released_write_leaves_a_marker_that_no_write_of_its_attempt_equals() {
    let attempt = operation(in_flight(None), OTHER, 0);
    let released = release_unsent(&attempt, &policy());
    let Record { version, fence, state, caller, .. } = released.record;
    assert_eq!((version, fence), (attempt.record.version.after_next(), OTHER));
    assert_eq!((state, caller), (State::Released, None));
    assert_eq!(released.lifetime.keep, policy().marker_retention());
}
