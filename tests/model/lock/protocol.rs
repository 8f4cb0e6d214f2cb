//! The possible steps: gateways, sweepers, the store's network, the upstream, operators, time.
//!
//! Every process may be as slow as it likes at any step. A stopped process, or a slow command or
//! answer, therefore needs no step of its own. A store call and the decision about its answer are
//! one step where nothing but the store could come between.

use stateright::{Model, Property};

use super::properties;
use super::rules::{Becomes, Flaw, May, Proof, Rules};
use super::state::{
    Attempt, Budget, Entry, Held, Id, LATE_MAX, Lease, Lock, OPERATIONS, OPERATOR, Operation,
    Outcome, Phase, SWEEPERS, Stage, Stand, State, Sweep, SweepStage, Wire, Write,
};

/// An attempt in the bounds.
#[derive(Debug, Clone, Copy)]
pub struct Place {
    pub operation: Operation,
    pub gateway: usize,
}

/// The bounds of the exploration.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// The attempts. Those of one operation begin in this order.
    pub attempts: &'static [Place],
    /// Whether a duplicate of an uncertain operation is sent again.
    pub forwards: bool,
    /// Operations whose writes have a condition. The other writes are compared with no version.
    pub has_condition: [bool; OPERATIONS],
    pub sweepers: usize,
    pub budget: Budget,
}

/// Writes, with their rules and within their bounds.
pub struct Protocol {
    pub rules: Rules,
    pub bounds: Bounds,
}

/// The end of a store command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// The store carries it out, and its sender gets the result.
    Now,
    /// It gets no answer; the store carries it out later or never.
    Late,
}

/// An operator's decision.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decided {
    Resolve,
    Release,
    Retry,
}

/// One step of one participant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// An attempt claims its operation. Its client names the current version, or the one that the
    /// operation's first request named (`true`).
    Claim(Id, bool),
    /// An attempt reads the lock, and the record of its holder.
    ReadLock(Id),
    /// An attempt relies on what its gateway remembers of the lock.
    RememberLock(Id),
    Take(Id, Way),
    Look(Id),
    MarkSent(Id, Way),
    Send(Id),
    /// An attempt ends, and its gateway writes the outcome.
    End(Id, Outcome, Way),
    Execute(Id),
    Decline(Id),
    /// A sweeper finds an operation with an ended lease, and reads the lock.
    Sweep(Operation, Way),
    SweepOn(usize, Way),
    Arrive(usize),
    Decide(Operation, Decided),
    LeaseEnds(Operation),
    /// All gateways are down for long after the end of a lease.
    Outage(Operation),
    /// The record of the lock ends.
    LockEnds,
    Rest(Operation),
}

const WAYS: [Way; 2] = [Way::Now, Way::Late];

impl Model for Protocol {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        vec![State::new(self.bounds.budget)]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        for id in 0..self.bounds.attempts.len() {
            self.attempt_actions(state, id, actions);
        }
        let places = 0..LATE_MAX;
        actions.extend(places.filter(|place| state.late[*place].is_some()).map(Action::Arrive));
        for operation in 0..OPERATIONS as Operation {
            let Some(held) = state.operation(operation) else { continue };
            actions.extend([
                Action::LeaseEnds(operation),
                Action::Outage(operation),
                Action::Rest(operation),
            ]);
            if matches!(held.entry.stand, Stand::Uncertain { .. }) && state.budget.decisions > 0 {
                let all = [Decided::Resolve, Decided::Release, Decided::Retry];
                actions.extend(all.map(|decided| Action::Decide(operation, decided)));
            }
            if held.entry.stand.is_in_flight() && held.lease != Lease::Runs {
                actions.extend(WAYS.map(|way| Action::Sweep(operation, way)));
            }
        }
        for (sweeper, sweep) in state.sweeps.iter().enumerate() {
            if sweep.is_some() {
                actions.extend(WAYS.map(|way| Action::SweepOn(sweeper, way)));
            }
        }
        actions.push(Action::LockEnds);
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = *last;
        self.step(&mut state, action)?;
        self.simplify(&mut state);
        (state != *last).then_some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        properties::all(&self.bounds)
    }
}

impl Protocol {
    /// Returns the attempts of an operation.
    pub fn attempts_of(&self, operation: Operation) -> impl Iterator<Item = Id> {
        let attempts = self.bounds.attempts.iter().enumerate();
        attempts.filter(move |(_, place)| place.operation == operation).map(|(id, _)| id)
    }

    /// Whether the upstream may still execute a request of the operation.
    pub fn is_queued(&self, state: &State, operation: Operation) -> bool {
        self.attempts_of(operation).any(|id| state.attempts[id].wire == Wire::Queued)
    }

    fn attempt_actions(&self, state: &State, id: Id, actions: &mut Vec<Action>) {
        let attempt = &state.attempts[id];
        match attempt.stage {
            Stage::Idle => {
                let operation = self.operation(id);
                let mut earlier = self.attempts_of(operation).take_while(|other| *other < id);
                if earlier.all(|earlier| state.attempts[earlier].stage != Stage::Idle) {
                    actions.extend([Action::Claim(id, false), Action::Claim(id, true)]);
                }
            }
            Stage::Claimed => {
                actions.extend([Action::ReadLock(id), Action::RememberLock(id)]);
            }
            Stage::Taking(_) => actions.extend(WAYS.map(|way| Action::Take(id, way))),
            Stage::Looking => actions.push(Action::Look(id)),
            Stage::Compared => {
                actions.extend(WAYS.map(|way| Action::MarkSent(id, way)));
                if self.rules.has(Flaw::SendsBeforeMark) {
                    actions.push(Action::Send(id));
                }
            }
            Stage::Ready => actions.push(Action::Send(id)),
            Stage::Sent | Stage::Settling(_) | Stage::Done => {}
        }
        let outcomes: &[Outcome] = match (attempt.stage, attempt.wire) {
            (Stage::Idle | Stage::Done, _) => &[],
            (Stage::Settling(outcome), _) => &[outcome],
            (Stage::Sent, Wire::Executed) => &[Outcome::Answered, Outcome::InDoubt],
            (Stage::Sent, Wire::Declined) => &[Outcome::Declined, Outcome::InDoubt],
            (Stage::Sent, _) => &[Outcome::InDoubt],
            _ => &[Outcome::NeverSent],
        };
        for outcome in outcomes {
            actions.extend(WAYS.map(|way| Action::End(id, *outcome, way)));
        }
        if attempt.wire == Wire::Queued {
            actions.extend([Action::Execute(id), Action::Decline(id)]);
        }
    }

    /// Takes a step. Returns `None` if the step is not possible.
    fn step(&self, state: &mut State, action: Action) -> Option<()> {
        match action {
            Action::Claim(id, as_first) => self.claim(state, id, as_first),
            Action::ReadLock(id) => self.read_lock(state, id),
            Action::RememberLock(id) => {
                let known = state.known[self.gateway(id)].take()?;
                state.attempts[id].stage = Stage::Taking(Some(known));
                Some(())
            }
            Action::Take(id, way) => self.take(state, id, way),
            Action::Look(id) => self.look(state, id),
            Action::MarkSent(id, way) => self.mark_sent(state, id, way),
            Action::Send(id) => {
                let attempt = &mut state.attempts[id];
                (attempt.may_send || self.rules.has(Flaw::NoSendRule)).then_some(())?;
                (attempt.stage, attempt.wire) = (Stage::Sent, Wire::Queued);
                Some(())
            }
            Action::End(id, outcome, way) => self.end(state, id, outcome, way),
            Action::Execute(id) => self.execute(state, id),
            Action::Decline(id) => {
                state.budget.declines = state.budget.declines.checked_sub(1)?;
                self.answer(state, id, Wire::Declined)
            }
            Action::Sweep(operation, way) => self.sweep(state, operation, way),
            Action::SweepOn(sweeper, way) => self.sweep_on(state, sweeper, way),
            Action::Arrive(place) => {
                let write = state.late[place].take()?;
                state.late.sort_unstable();
                state.write(write);
                Some(())
            }
            Action::Decide(operation, decided) => self.decide(state, operation, decided),
            Action::LeaseEnds(operation) => self.end_lease(state, operation),
            Action::Outage(operation) => self.outage(state, operation),
            Action::LockEnds => self.end_lock(state),
            Action::Rest(operation) => {
                state.rest(operation, |id| self.operation_of(id) == Some(operation))
            }
        }
    }

    fn claim(&self, state: &mut State, id: Id, as_first: bool) -> Option<()> {
        let operation = self.operation(id);
        let first = self.attempts_of(operation).next()?;
        let condition = match (as_first, id == first) {
            (true, true) => return None,
            (true, false) => state.attempts[first].condition,
            (false, _) => state.version,
        };
        if !as_first && id != first && condition == state.attempts[first].condition {
            return None;
        }
        let entry = self.rules.claim(state.operation(operation), id as u8)?;
        let expected = state.operation(operation).map(|held| held.entry.version);
        state.write(Write::Operation { operation, expected, next: entry });
        let attempt = &mut state.attempts[id];
        *attempt = Attempt {
            stage: Stage::Claimed,
            claim: entry.version,
            doubt: entry.stand.doubt(),
            may_send: true,
            condition,
            seen: if self.rules.has(Flaw::LooksBeforeLock) { state.version } else { condition },
            ..*attempt
        };
        Some(())
    }

    fn read_lock(&self, state: &mut State, id: Id) -> Option<()> {
        let lock = state.locks[self.lock_slot(id)];
        let holder = |operation| state.operation(operation);
        let may = self.rules.lock_admission(lock.as_ref(), holder, self.request(state, id));
        // Waiting changes nothing. An attempt that does not get the lock ends, which it may do at
        // any time.
        let May::Take(over) = may else { return None };
        state.attempts[id].stage = Stage::Taking(over);
        Some(())
    }

    fn take(&self, state: &mut State, id: Id, way: Way) -> Option<()> {
        /// The versions over nothing are far from all others, in place of random ones.
        const APART: u16 = 100;
        let Stage::Taking(over) = state.attempts[id].stage else { return None };
        let fresh = APART * (1 + id as u16);
        let next = self.rules.taken_lock(self.request(state, id), over, fresh);
        let write = Write::Lock { slot: self.lock_slot(id), expected: over, next };
        if way == Way::Late {
            return state.send_late(write);
        }
        if state.write(write) {
            state.attempts[id].stage = Stage::Looking;
            state.attempts[id].lock = Some((next.version, next.phase));
        } else {
            state.attempts[id].stage = Stage::Claimed;
        }
        Some(())
    }

    fn look(&self, state: &mut State, id: Id) -> Option<()> {
        let attempt = &mut state.attempts[id];
        if !self.rules.has(Flaw::LooksBeforeLock) {
            attempt.seen = state.version;
        }
        let is_compared = self.bounds.has_condition[usize::from(self.operation(id))];
        // An attempt that may not be sent ends, which it may do at any time.
        (!is_compared || attempt.seen == attempt.condition).then_some(())?;
        attempt.stage = Stage::Compared;
        Some(())
    }

    fn mark_sent(&self, state: &mut State, id: Id, way: Way) -> Option<()> {
        let (version, phase) = state.attempts[id].lock?;
        if phase == Phase::Sent {
            (way == Way::Now).then_some(())?;
            state.attempts[id].stage = Stage::Ready;
            return Some(());
        }
        let slot = self.lock_slot(id);
        let (operation, fence) = (self.operation(id), id as u8);
        let next = self.rules.sent_lock(&Lock { version, fence, operation, phase })?;
        let expected = match self.rules.has(Flaw::MarksAnyVersion) {
            true => state.locks[slot].map(|lock| lock.version),
            false => Some(version),
        };
        let write = Write::Lock { slot, expected, next };
        if way == Way::Late {
            return state.send_late(write);
        }
        state.write(write).then_some(())?;
        let attempt = &mut state.attempts[id];
        (attempt.stage, attempt.lock) = (Stage::Ready, Some((next.version, next.phase)));
        Some(())
    }

    /// Writes an outcome: first over the claim, then over what is there. Tries that meet another
    /// record change nothing, so they are one step with the deciding try.
    fn end(&self, state: &mut State, id: Id, outcome: Outcome, way: Way) -> Option<()> {
        let operation = self.operation(id);
        let Attempt { claim: version, doubt, .. } = state.attempts[id];
        let claim = Entry { version, fence: id as u8, stand: Stand::InFlight(doubt) };
        let current = state.operation(operation).map(|held| held.entry);
        let written = [Some(claim), current].into_iter().find_map(|known| {
            match self.rules.settle(known.as_ref(), &claim, outcome) {
                Becomes::Write(next) => {
                    let expected = known.map(|entry| entry.version);
                    let write = Write::Operation { operation, expected, next };
                    let is_current = expected == current.map(|entry| entry.version);
                    if way == Way::Late {
                        return is_current.then_some(Ok(Some(write)));
                    }
                    state.write(write).then_some(Ok(None))
                }
                Becomes::Done => Some(Ok(None)),
                Becomes::Stale => Some(Err(())),
            }
        })?;
        match (way, written) {
            (Way::Late, Ok(Some(write))) => {
                state.attempts[id].stage = Stage::Settling(outcome);
                return state.send_late(write);
            }
            (Way::Late, _) => return None,
            (Way::Now, written) => self.remember(state, id, written.is_ok()),
        }
        let attempt = &mut state.attempts[id];
        (attempt.stage, attempt.lock) = (Stage::Done, None);
        Some(())
    }

    /// A gateway remembers the version of its lock if the operation is settled.
    fn remember(&self, state: &mut State, id: Id, is_written: bool) {
        let Some((version, _)) = state.attempts[id].lock else { return };
        let Some(held) = state.operation(self.operation(id)) else { return };
        let is_settled = match held.entry.stand {
            Stand::Completed | Stand::Released => true,
            Stand::InFlight(_) => !is_written && self.rules.has(Flaw::RemembersStale),
            Stand::Uncertain { .. } => false,
        };
        state.known[self.gateway(id)] = is_settled.then_some(version);
    }

    fn execute(&self, state: &mut State, id: Id) -> Option<()> {
        let executed = &mut state.executed[usize::from(self.operation(id))];
        // An upstream behind "forward" executes a key once.
        if !self.rules.forwards || *executed == 0 {
            *executed += 1;
            state.is_lost_update |= state.attempts[id].seen != state.version;
            state.version += 1;
        }
        self.answer(state, id, Wire::Executed)
    }

    /// The upstream answers, if the attempt still waits.
    fn answer(&self, state: &mut State, id: Id, wire: Wire) -> Option<()> {
        let attempt = &mut state.attempts[id];
        attempt.wire = if attempt.stage == Stage::Sent { wire } else { Wire::Gone };
        Some(())
    }

    /// A sweeper's reads are one step with its write, unless it frees a lock: if something changes
    /// in between, the write fails.
    fn sweep(&self, state: &mut State, operation: Operation, way: Way) -> Option<()> {
        let found = *state.operation(operation)?;
        let lock = state.locks[self.slot_of(operation)];
        let places = &mut state.sweeps[..self.bounds.sweepers];
        let free = places.iter_mut().enumerate().find(|(_, sweep)| sweep.is_none());
        let fence = SWEEPERS + free.as_ref().map_or(0, |(place, _)| *place as u8);
        match self.rules.unsent_proof(lock.as_ref(), &found, operation, fence) {
            Proof::Proven => self.mark(state, operation, &found, true, way),
            Proof::Nothing => self.mark(state, operation, &found, false, way),
            Proof::IfWritten(next) => {
                (way == Way::Now).then_some(())?;
                let stage = SweepStage::Freeing { expected: lock?.version, next };
                *free?.1 = Some(Sweep { operation, found, stage });
                Some(())
            }
        }
    }

    fn sweep_on(&self, state: &mut State, sweeper: usize, way: Way) -> Option<()> {
        let Sweep { operation, found, stage } = state.sweeps[sweeper].take()?;
        match stage {
            SweepStage::Freeing { expected, next } => {
                let slot = self.slot_of(operation);
                let write = Write::Lock { slot, expected: Some(expected), next };
                if way == Way::Late {
                    return state.send_late(write);
                }
                if state.write(write) {
                    let stage = SweepStage::Releasing;
                    state.sweeps[sweeper] = Some(Sweep { operation, found, stage });
                }
                Some(())
            }
            SweepStage::Releasing => self.mark(state, operation, &found, true, way),
        }
    }

    /// Releases an operation, or marks it as uncertain.
    fn mark(
        &self,
        state: &mut State,
        operation: Operation,
        found: &Held,
        is_unsent: bool,
        way: Way,
    ) -> Option<()> {
        let next = match is_unsent {
            true => self.rules.release_unsent(found),
            false => self.rules.expire(found)?,
        };
        let expected = Some(found.entry.version);
        let write = Write::Operation { operation, expected, next };
        if way == Way::Late {
            return state.send_late(write);
        }
        state.write(write);
        Some(())
    }

    /// Operators decide truthfully: the upstream's books show whether it has executed an operation.
    fn decide(&self, state: &mut State, operation: Operation, decided: Decided) -> Option<()> {
        let held = *state.operation(operation)?;
        state.budget.decisions = state.budget.decisions.checked_sub(1)?;
        let is_executed = state.executed[usize::from(operation)] > 0;
        (is_executed == (decided == Decided::Resolve)).then_some(())?;
        let next = match decided {
            Decided::Resolve => self.rules.resolve(&held, OPERATOR),
            Decided::Release => self.rules.release(&held, OPERATOR),
            Decided::Retry => self.rules.retry(&held, OPERATOR),
        }?;
        let expected = Some(held.entry.version);
        state.write(Write::Operation { operation, expected, next }).then_some(())
    }

    fn end_lease(&self, state: &mut State, operation: Operation) -> Option<()> {
        let held = state.operations[usize::from(operation)].as_mut()?;
        (held.lease == Lease::Runs && held.entry.stand.is_in_flight()).then_some(())?;
        held.lease = Lease::Ended;
        state.attempts[usize::from(held.entry.fence)].may_send = false;
        Some(())
    }

    fn outage(&self, state: &mut State, operation: Operation) -> Option<()> {
        let held = state.operations[usize::from(operation)].as_mut()?;
        (held.lease == Lease::Ended).then_some(())?;
        state.budget.outages = state.budget.outages.checked_sub(1)?;
        held.lease = Lease::EndedLongAgo;
        // Requests that the upstream has got before the end of the lease rest meanwhile.
        state.lose(|id| self.operation_of(id) == Some(operation));
        Some(())
    }

    /// A lock outlives the lease of its attempt, and the time in which its write may be executed.
    fn end_lock(&self, state: &mut State) -> Option<()> {
        let lock = state.locks[0].as_ref()?;
        let held = state.operation(lock.operation)?;
        (lock.phase == Phase::Free || held.lease == Lease::EndedLongAgo).then_some(())?;
        state.locks[0] = None;
        Some(())
    }

    fn request(&self, state: &State, id: Id) -> (Operation, u8, bool) {
        (self.operation(id), id as u8, state.attempts[id].doubt.is_some())
    }

    fn operation(&self, id: Id) -> Operation {
        self.bounds.attempts[id].operation
    }

    fn operation_of(&self, id: Id) -> Option<Operation> {
        self.bounds.attempts.get(id).map(|place| place.operation)
    }

    fn gateway(&self, id: Id) -> usize {
        self.bounds.attempts[id].gateway
    }

    fn lock_slot(&self, id: Id) -> usize {
        self.slot_of(self.operation(id))
    }

    pub fn slot_of(&self, operation: Operation) -> usize {
        if self.rules.has(Flaw::LockPerScope) { usize::from(operation) } else { 0 }
    }
}
