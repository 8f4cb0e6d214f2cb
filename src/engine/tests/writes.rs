//! No two different writes have the same version, fence and state. A store recognises a repeated
//! write by these alone.

use super::*;

/// The fence and the version of the first attempt.
const FIRST: Fence = Fence(1);
const BEGIN: Version = Version(10);

/// Decisions have different fences above this number.
const DECISIONS: u64 = 1000;

/// The length of a history, in writes.
const WRITES_MAX: usize = 5;

/// The possible outcomes of an attempt.
fn outcomes() -> [Outcome; 4] {
    [
        Outcome::Answered(whole(201)),
        Outcome::Answered(whole(429)),
        Outcome::NeverSent,
        Outcome::InDoubt(Cause::Broken),
    ]
}

/// One possible history of an operation.
struct History {
    /// The stored records, in order.
    records: Vec<Record>,
    /// The outcome of every attempt. An attempt has one outcome, even if it writes it several
    /// times.
    outcome: Outcome,
    next_decision: u64,
    /// How many writes were compared.
    checked: usize,
}

impl History {
    /// Returns the claim over the record at this index, if there can be one.
    fn claim_over(&self, index: usize) -> Option<Claim> {
        let over = ClaimOver::over_uncertain(&held(self.records.get(index)?.clone(), 99_000));
        let fence = Fence(100 + index as u64);
        let record = claim(&ClaimRequest { fence, ..asked() }, over, BEGIN, 5, &policy()).record;
        Some(Claim { fence, record })
    }

    /// Returns every write that attempts, the sweeper, operators and probes may try if the record
    /// at `index` is the last one that they read.
    fn writes(&mut self, index: usize) -> Vec<Record> {
        let read = self.records[index].clone();
        let now = held(read.clone(), 99_000);
        let first = Claim { fence: FIRST, record: self.records[0].clone() };
        let is_uncertain = |at: &usize| matches!(self.records[*at].state, State::Uncertain { .. });
        let again: Vec<Claim> =
            (0..=index).filter(is_uncertain).filter_map(|at| self.claim_over(at)).collect();
        let mut writes = Vec::new();
        for attempt in again.iter().chain([&first]) {
            if let Settlement::Write(next) =
                settle(Some(&read), attempt, &self.outcome, &policy(), Version(77))
            {
                writes.push(next.record);
            }
        }
        writes.extend(
            again
                .into_iter()
                .map(|claim| claim.record)
                .filter(|record| record.version == read.version.next()),
        );
        writes.extend(expire(&now, &policy()).map(|next| next.record));
        let decisions = [
            Decision::Retry,
            Decision::Retry,
            Decision::Release,
            Decision::Found(whole(202)),
            Decision::NotFound,
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

    /// Tries all possible continuations.
    fn explore(&mut self) {
        let last = self.records.len() - 1;
        for index in 0..=last {
            for write in self.writes(index) {
                let current = &self.records[last];
                self.checked += 1;
                let brief =
                    |record: &Record| (record.version.0, record.fence.0, record.state.clone());
                assert!(
                    !current.is_same_write(&write) || *current == write,
                    "{:?}: {:?} is mistaken for the last",
                    self.records.iter().map(brief).collect::<Vec<_>>(),
                    brief(&write)
                );
                if index == last && self.records.len() < WRITES_MAX {
                    self.records.push(write);
                    self.explore();
                    self.records.pop();
                }
            }
        }
    }
}

#[test]
fn no_write_is_taken_for_another_whatever_happened_before() {
    for outcome in outcomes() {
        let first = claim(
            &ClaimRequest { fence: FIRST, ..asked() },
            ClaimOver::Nothing,
            BEGIN,
            5,
            &policy(),
        )
        .record;
        let mut history =
            History { records: vec![first], outcome, next_decision: DECISIONS, checked: 0 };
        history.explore();
        assert!(history.checked > 1000, "{} writes were compared", history.checked);
    }
}
