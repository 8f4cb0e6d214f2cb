//! No two different writes share version, fence and state: by that alone a store recognises a write that is repeated.

use super::*;

/// The first attempt and its version.
const FIRST: Fence = Fence(1);
const BEGIN: Version = Version(10);

/// Decisions have fences from here on, each its own.
const DECISIONS: u64 = 1000;

/// How many writes a history has.
const WRITES_MAX: usize = 5;

/// The outcomes of an attempt.
fn outcomes() -> [Outcome; 4] {
    [
        Outcome::Answered(whole(201)),
        Outcome::Answered(whole(429)),
        Outcome::NeverSent,
        Outcome::InDoubt(Cause::Broken),
    ]
}

/// All that happened to one operation, in one order.
struct History {
    /// The records that stood, one after the other.
    stood: Vec<Record>,
    /// The outcome of every attempt. An attempt has one, however often it writes that down.
    outcome: Outcome,
    next_decision: u64,
    checked: usize,
}

impl History {
    /// The claim over the record at this place in the history, if one was made there.
    fn claim_over(&self, place: usize) -> Option<Claim> {
        let over = ClaimOver::over_uncertain(&held(self.stood.get(place)?.clone(), 99_000));
        let fence = Fence(100 + place as u64);
        let record = claim(&Asked { fence, ..asked() }, over, BEGIN, 5, &policy()).record;
        Some(Claim { fence, record })
    }

    /// Every write that somebody who last saw the record at `place` may still try: attempts, the sweeper, operators, probes.
    fn writes(&mut self, place: usize) -> Vec<Record> {
        let seen = self.stood[place].clone();
        let now = held(seen.clone(), 99_000);
        let first = Claim { fence: FIRST, record: self.stood[0].clone() };
        let doubted = |at: &usize| matches!(self.stood[*at].state, State::Uncertain { .. });
        let again: Vec<Claim> =
            (0..=place).filter(doubted).filter_map(|at| self.claim_over(at)).collect();
        let mut writes = Vec::new();
        for attempt in again.iter().chain([&first]) {
            if let Settlement::Write(next) =
                settle(Some(&seen), attempt, &self.outcome, &policy(), Version(77))
            {
                writes.push(next.record);
            }
        }
        writes.extend(
            again
                .into_iter()
                .map(|claim| claim.record)
                .filter(|record| record.version == seen.version.next()),
        );
        writes.extend(expire(&now, &policy()).map(|next| next.record));
        let decisions = [
            Decision::Retry,
            Decision::Retry,
            Decision::Release,
            Decision::Found(whole(202)),
            Decision::Expire,
        ];
        for decision in decisions {
            self.next_decision += 1;
            writes.extend(
                decide(&now, decision, Fence(self.next_decision), &policy())
                    .map(|next| next.record),
            );
        }
        writes
    }

    /// Goes through all that can still happen.
    fn explore(&mut self) {
        let last = self.stood.len() - 1;
        for place in 0..=last {
            for write in self.writes(place) {
                let stands = &self.stood[last];
                self.checked += 1;
                let brief =
                    |record: &Record| (record.version.0, record.fence.0, record.state.clone());
                assert!(
                    !stands.is_same_write(&write) || *stands == write,
                    "{:?}: {:?} is taken for the last",
                    self.stood.iter().map(brief).collect::<Vec<_>>(),
                    brief(&write)
                );
                if place == last && self.stood.len() < WRITES_MAX {
                    self.stood.push(write);
                    self.explore();
                    self.stood.pop();
                }
            }
        }
    }
}

#[test]
fn no_write_is_taken_for_another_whatever_happened_before() {
    for outcome in outcomes() {
        let first =
            claim(&Asked { fence: FIRST, ..asked() }, ClaimOver::Nothing, BEGIN, 5, &policy())
                .record;
        let mut history =
            History { stood: vec![first], outcome, next_decision: DECISIONS, checked: 0 };
        history.explore();
        assert!(history.checked > 1000, "{} writes were compared", history.checked);
    }
}
