//! The possible steps: gateways, the store's network, the upstream, operators, time.
//!
//! Every process may be as slow as it likes at any step. A stopped process, or a slow command or
//! answer, therefore needs no step of its own. Steps that only one process can observe are combined
//! with the next observable step.

use stateright::{Model, Property};

use crate::properties;
use crate::rules::{Becomes, COMMAND, Flaw, LEASE, May, OnUncertain, QUEUE, Rules, SEND_SPAN};
use crate::state::{
    Answer, Budget, Command, Entry, Held, Id, Next, OPERATOR, Outcome, Request, Stage, Stand,
    State, UNREAD, Version, Who, Wire,
};

/// The bounds of the exploration.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// The callers of the requests, one each. Requests of one caller are interchangeable, and begin
    /// in their order.
    pub callers: &'static [Who],
    pub on_uncertain: OnUncertain,
    pub budget: Budget,
    /// Whether leases are renewed.
    pub renews: bool,
    /// Whether the upstream may answer a release status.
    pub declines: bool,
}

/// The protocol, with its rules and within its bounds.
pub struct Protocol {
    pub rules: Rules,
    pub bounds: Bounds,
    /// Steps that have happened already, where the whole path is too long to search.
    pub story: &'static [Action],
}

/// The end of a store command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// The store carries it out, and its sender gets the result.
    Now,
    /// It gets no answer; the store carries it out later or never.
    Late,
}

/// One step of one participant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    Claim(Id, Way),
    ReadBack(Id),
    /// The claim can't be read back, or the client leaves.
    GiveUp(Id),
    Wake(Id),
    WaitTimeout(Id),
    /// The gateway reads the claim's answer: a separate step only where the send rule counts from
    /// it.
    ReadAnswer(Id),
    StoreFound(Id, Way),
    Renew(Id, Way),
    /// The upstream can't be reached, or the send rule no longer holds.
    NotSent(Id),
    WriteFirst(Id),
    WriteRest(Id),
    /// The exchange with the upstream timed out, broke or was reset.
    Lose(Id),
    TakeAnswer(Id),
    Settle(Id, Way),
    StepGivingUp(Id, Way),
    Execute(Id),
    Decline(Id),
    Arrive(usize),
    Sweep(Way),
    Resolve(Way),
    Release(Way),
    Crash(usize),
    /// One tick passes; this gateway was stopped during it.
    Tick(Option<usize>),
}

/// The result of a settlement.
enum Settled {
    Written,
    Stale,
    Unknown,
}

const WAYS: [Way; 2] = [Way::Now, Way::Late];
const GATEWAYS: usize = 2;

/// The gateway of a request.
fn gateway(id: Id) -> usize {
    id % GATEWAYS
}

impl Model for Protocol {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let mut state = State::new(self.bounds.budget);
        for action in self.story {
            self.step(&mut state, *action).expect("a story is made of steps that can be taken");
        }
        vec![state]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        for id in 0..self.bounds.callers.len() {
            self.request_actions(state, id, actions);
        }
        actions.extend(
            (0..state.late.len()).filter(|place| state.late[*place].is_some()).map(Action::Arrive),
        );
        let stand = state.slot.map(|held| held.entry.stand);
        match stand {
            Some(Stand::InFlight(_)) => actions.extend(WAYS.map(Action::Sweep)),
            Some(Stand::Uncertain(_)) if state.budget.operator > 0 => {
                actions.extend(WAYS.map(Action::Resolve));
                actions.extend(WAYS.map(Action::Release));
            }
            _ => {}
        }
        if state.budget.crashes > 0 {
            actions.extend((0..GATEWAYS).map(Action::Crash));
        }
        actions.push(Action::Tick(None));
        // With a running clock, a stopped process is the same as a slow one.
        if self.rules.has(Flaw::ClockStops) {
            actions.extend((0..GATEWAYS).map(|stopped| Action::Tick(Some(stopped))));
        }
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = *last;
        self.step(&mut state, action)?;
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        properties::all()
    }
}

impl Protocol {
    pub fn who(&self, id: Id) -> Who {
        self.bounds.callers[id]
    }

    fn request_actions(&self, state: &State, id: Id, actions: &mut Vec<Action>) {
        let request = &state.requests[id];
        match request.stage {
            Stage::Idle => {
                let waits_its_turn = |before: Id| {
                    self.who(before) == self.who(id) && state.requests[before].stage == Stage::Idle
                };
                if !(0..id).any(waits_its_turn) {
                    actions.extend(WAYS.map(|way| Action::Claim(id, way)));
                }
            }
            Stage::Ready { .. } => actions.extend(WAYS.map(|way| Action::Claim(id, way))),
            Stage::Unknown { .. } => actions.extend([Action::ReadBack(id), Action::GiveUp(id)]),
            Stage::Waiting => actions.extend([Action::Wake(id), Action::WaitTimeout(id)]),
            Stage::Found { .. } => actions.extend(WAYS.map(|way| Action::StoreFound(id, way))),
            Stage::Claimed { rule: UNREAD, .. } => actions.push(Action::ReadAnswer(id)),
            Stage::Claimed { .. } => {
                if self.bounds.renews {
                    actions.extend(WAYS.map(|way| Action::Renew(id, way)));
                }
                match request.wire {
                    Wire::Unsent => actions.extend([Action::NotSent(id), Action::WriteFirst(id)]),
                    Wire::Partial => actions.extend([Action::WriteRest(id), Action::Lose(id)]),
                    Wire::Executed | Wire::Declined => {
                        actions.extend([Action::TakeAnswer(id), Action::Lose(id)])
                    }
                    Wire::Queued(_) | Wire::Gone => actions.push(Action::Lose(id)),
                }
            }
            Stage::Settling { .. } => actions.extend(WAYS.map(|way| Action::Settle(id, way))),
            Stage::Done | Stage::Dead => {}
        }
        if request.giving_up.is_some() {
            actions.extend(WAYS.map(|way| Action::StepGivingUp(id, way)));
        }
        if matches!(request.wire, Wire::Queued(_)) {
            actions.push(Action::Execute(id));
            if self.bounds.declines {
                actions.push(Action::Decline(id));
            }
        }
    }

    /// Takes a step. Returns `None` if the step is not possible.
    fn step(&self, state: &mut State, action: Action) -> Option<()> {
        match action {
            Action::Claim(id, way) => self.claim(state, id, way),
            Action::ReadBack(id) => self.read_back(state, id),
            Action::GiveUp(id) => {
                state.requests[id].owes = true;
                self.finish(state, id)
            }
            Action::Wake(id) => self.look(state, id),
            Action::WaitTimeout(id) => self.finish(state, id),
            Action::ReadAnswer(id) => self.set_rule(state, id, SEND_SPAN),
            Action::StoreFound(id, way) => self.store_found(state, id, way),
            Action::Renew(id, way) => self.renew(state, id, way),
            Action::NotSent(id) => self.end(state, id, Outcome::NeverSent),
            Action::WriteFirst(id) => self.write(state, id, Wire::Partial),
            Action::WriteRest(id) => self.write(state, id, Wire::Queued(QUEUE)),
            Action::Lose(id) => self.end(state, id, Outcome::InDoubt),
            Action::TakeAnswer(id) => {
                let outcome = if state.requests[id].wire == Wire::Executed {
                    Outcome::Answered
                } else {
                    Outcome::Declined
                };
                if outcome == Outcome::Answered && self.rules.has(Flaw::AnswersBeforeStoring) {
                    self.answer(state, id, own_copy(id), self.who(id));
                }
                self.end(state, id, outcome)
            }
            Action::Settle(id, way) => self.settle(state, id, way),
            Action::StepGivingUp(id, way) => self.step_giving_up(state, id, way),
            Action::Execute(id) => self.execute(state, id),
            Action::Decline(id) => self.reach_client(state, id, Wire::Declined),
            Action::Arrive(place) => self.arrive(state, place),
            Action::Sweep(way) => {
                let held = state.slot?;
                self.store(state, held, self.rules.expire(&held)?, way)
            }
            Action::Resolve(way) => {
                let held = state.slot?;
                state.budget.operator = state.budget.operator.checked_sub(1)?;
                self.store(state, held, self.rules.resolve(&held, OPERATOR, Answer::Operator)?, way)
            }
            Action::Release(way) => {
                let held = state.slot?;
                state.budget.operator = state.budget.operator.checked_sub(1)?;
                // An operator does not release an executed operation: the upstream's books show the
                // execution.
                (state.executions() == 0).then_some(())?;
                self.store(state, held, self.rules.release(&held, OPERATOR)?, way)
            }
            Action::Crash(gateway) => self.crash(state, gateway),
            Action::Tick(stopped) => {
                state.tick(|id| stopped == Some(gateway(id)));
                Some(())
            }
        }
    }

    fn claim(&self, state: &mut State, id: Id, way: Way) -> Option<()> {
        let (over, doubt) = match state.requests[id].stage {
            Stage::Ready { over, doubt } => (over, doubt),
            _ => (None, None),
        };
        let too_early = |age| {
            self.bounds.on_uncertain == OnUncertain::Probe && !self.rules.absent_is_believed(age)
        };
        if doubt.is_some_and(too_early) {
            return None;
        }
        let draw =
            if state.requests[id].is_giving_up() { Fresh::SecondClaim } else { Fresh::Claim };
        let version = over.map_or(fresh(id, draw), |over| over + 1);
        let next = self.rules.claim(id as u8, self.who(id), over, version, doubt);
        state.requests[id].again = doubt.map(|age| (version, age));
        if way == Way::Late {
            state.send_late(Command::Swap { expected: over, next }, COMMAND)?;
            state.requests[id].stage = match self.rules.flaw {
                Some(Flaw::NoReadBack) => Stage::Claimed { version, doubt, rule: SEND_SPAN },
                _ => Stage::Unknown { version, doubt, rule: SEND_SPAN },
            };
            return Some(());
        }
        match state.swap(over, next, self.rules.has(Flaw::MarkerWithoutVersion)) {
            Ok(()) => {
                let rule =
                    if self.rules.has(Flaw::CountsFromTheAnswer) { UNREAD } else { SEND_SPAN };
                self.stands(state, id, Stage::Claimed { version, doubt, rule })
            }
            Err(_) => self.look(state, id),
        }
    }

    fn stands(&self, state: &mut State, id: Id, claimed: Stage) -> Option<()> {
        let request = &mut state.requests[id];
        // This request's remaining commands can't succeed any more: the record has a later version.
        *request = Request { stage: claimed, waited: false, owes: false, ..*request };
        Some(())
    }

    fn read_back(&self, state: &mut State, id: Id) -> Option<()> {
        let Stage::Unknown { version, doubt, rule } = state.requests[id].stage else { return None };
        let may = self.rules.admit(state.slot.as_ref(), id as u8, self.who(id));
        if may == May::Run && rule > 0 {
            return self.stands(state, id, Stage::Claimed { version, doubt, rule });
        }
        state.requests[id].owes = true;
        // The claim may still arrive over the unchanged record, with a lease that begins at an
        // unknown time.
        let may_arrive = match may {
            May::Run | May::Claim(_) => true,
            May::Doubt(_) => state.slot.is_some_and(|held| held.entry.version + 1 == version),
            _ => false,
        };
        if may_arrive && !(self.rules.has(Flaw::RetryCountsAnew) && matches!(may, May::Doubt(_))) {
            return self.finish(state, id);
        }
        if self.rules.has(Flaw::GivesUpBesideNewClaim) {
            state.requests[id].owes = false;
            state.requests[id].giving_up = Some(None);
        }
        self.look(state, id)
    }

    /// A request reads the record and acts on it.
    fn look(&self, state: &mut State, id: Id) -> Option<()> {
        let may = self.rules.admit(state.slot.as_ref(), id as u8, self.who(id));
        let stage = match may {
            May::Claim(None) if state.requests[id].waited => return self.finish(state, id),
            May::Claim(over) => Stage::Ready { over, doubt: None },
            May::Replay(answer) => {
                let owner = state.slot?.entry.who?;
                self.answer(state, id, answer, owner);
                return self.finish(state, id);
            }
            May::Wait => {
                state.requests[id].waited = true;
                Stage::Waiting
            }
            May::MarkUncertain => {
                let held = state.slot?;
                self.store(state, held, self.rules.expire(&held)?, Way::Now)?;
                return self.look(state, id);
            }
            May::Doubt(age) => {
                let version = state.slot?.entry.version;
                let run = Stage::Ready { over: Some(version), doubt: Some(age) };
                let believed =
                    self.rules.absent_is_believed(age) || self.rules.has(Flaw::EarlyProbeBelieved);
                match self.bounds.on_uncertain {
                    OnUncertain::Forward => run,
                    // The upstream checks as early as possible, and its answer may be as slow as it
                    // likes.
                    OnUncertain::Probe if state.executed[self.who(id) as usize] > 0 => {
                        Stage::Found { version }
                    }
                    OnUncertain::Probe if believed => run,
                    OnUncertain::Probe | OnUncertain::Hold => return self.finish(state, id),
                }
            }
            May::Run | May::Nothing => return self.finish(state, id),
        };
        state.requests[id].stage = stage;
        Some(())
    }

    fn store_found(&self, state: &mut State, id: Id, way: Way) -> Option<()> {
        let Stage::Found { version } = state.requests[id].stage else { return None };
        let Some(held) = state.slot.filter(|held| held.entry.version == version) else {
            return self.look(state, id);
        };
        let next = self.rules.resolve(&held, id as u8, Answer::Probe)?;
        self.store(state, held, next, way)?;
        if way == Way::Now {
            self.answer(state, id, Answer::Probe, self.who(id));
        }
        self.finish(state, id)
    }

    fn renew(&self, state: &mut State, id: Id, way: Way) -> Option<()> {
        if way == Way::Late {
            return state.send_late(Command::Renew { fence: id as u8 }, COMMAND);
        }
        let ended_too = self.rules.has(Flaw::RenewsEndedLease);
        state.renew(id as u8, LEASE, self.rules.unsettled_keep(), ended_too).then_some(())?;
        self.set_rule(state, id, SEND_SPAN)
    }

    fn set_rule(&self, state: &mut State, id: Id, span: u8) -> Option<()> {
        let request = &mut state.requests[id];
        let Stage::Claimed { rule, .. } = &mut request.stage else { return None };
        // Once everything is written, the send rule is not checked again.
        *rule = if matches!(request.wire, Wire::Unsent | Wire::Partial) { span } else { 0 };
        Some(())
    }

    fn write(&self, state: &mut State, id: Id, wire: Wire) -> Option<()> {
        let Stage::Claimed { rule, .. } = state.requests[id].stage else { return None };
        let unchecked = match self.rules.flaw {
            Some(Flaw::NoSendRule) => true,
            Some(Flaw::LaterBytesUnchecked) => state.requests[id].wire == Wire::Partial,
            _ => false,
        };
        (rule > 0 || unchecked).then_some(())?;
        state.requests[id].wire = wire;
        self.set_rule(state, id, rule)
    }

    /// Ends an attempt, as its gateway observes it.
    fn end(&self, state: &mut State, id: Id, outcome: Outcome) -> Option<()> {
        let known = Some(self.claim_entry(&state.requests[id], id)?);
        let request = &mut state.requests[id];
        request.stage = Stage::Settling { outcome, known };
        // The upstream may still execute a complete request that no gateway waits for. A partly
        // written request is reset.
        if matches!(request.wire, Wire::Partial | Wire::Executed | Wire::Declined) {
            request.wire = Wire::Gone;
        }
        Some(())
    }

    /// Returns the record as this request claimed it.
    fn claim_entry(&self, request: &Request, id: Id) -> Option<Entry> {
        let Stage::Claimed { version, doubt, .. } = request.stage else { return None };
        Some(Entry {
            version,
            fence: id as u8,
            who: Some(self.who(id)),
            stand: Stand::InFlight(doubt),
        })
    }

    fn settle(&self, state: &mut State, id: Id, way: Way) -> Option<()> {
        let Stage::Settling { outcome, mut known } = state.requests[id].stage else { return None };
        let settled = self.settle_until_done(state, id, outcome, &mut known, way)?;
        match settled {
            Settled::Unknown => {
                state.requests[id].stage = Stage::Settling { outcome, known };
                return Some(());
            }
            Settled::Written if outcome == Outcome::Answered => {
                self.answer(state, id, own_copy(id), self.who(id))
            }
            Settled::Written => {}
            Settled::Stale => self.answer_as_duplicate(state, id, outcome),
        }
        self.finish(state, id)
    }

    /// A stale attempt's client gets the same answer as any duplicate.
    fn answer_as_duplicate(&self, state: &mut State, id: Id, outcome: Outcome) {
        let Some(held) = state.slot else { return };
        match (held.entry.stand, self.rules.flaw) {
            (_, Some(Flaw::StaleAnswersOwnCopy)) if outcome == Outcome::Answered => {
                self.answer(state, id, own_copy(id), self.who(id));
            }
            (Stand::Completed(answer), Some(Flaw::StaleIgnoresCaller)) => {
                let owner = held.entry.who.unwrap_or(self.who(id));
                self.answer(state, id, answer, owner);
            }
            _ => {
                if let May::Replay(answer) =
                    self.rules.admit(state.slot.as_ref(), id as u8, self.who(id))
                {
                    let owner = held.entry.who.unwrap_or(self.who(id));
                    self.answer(state, id, answer, owner);
                }
            }
        }
    }

    fn step_giving_up(&self, state: &mut State, id: Id, way: Way) -> Option<()> {
        let mut known = state.requests[id].giving_up?;
        let settled = self.settle_until_done(state, id, Outcome::NeverSent, &mut known, way)?;
        let request = &mut state.requests[id];
        match settled {
            Settled::Unknown => request.giving_up = Some(known),
            Settled::Written | Settled::Stale => {
                (request.giving_up, request.markers, request.again) = (None, 0, None)
            }
        }
        Some(())
    }

    /// Writes an outcome over the current record, in a loop. Tries that meet another record change
    /// nothing, so they are one step with the deciding try.
    fn settle_until_done(
        &self,
        state: &mut State,
        id: Id,
        outcome: Outcome,
        known: &mut Option<Entry>,
        way: Way,
    ) -> Option<Settled> {
        let tries =
            if self.rules.has(Flaw::MarkerVersionRepeats) { 0 } else { state.requests[id].markers };
        let again = state.requests[id].again;
        let claim = Entry {
            version: again.map_or(0, |(version, _)| version),
            fence: id as u8,
            who: Some(self.who(id)),
            stand: Stand::InFlight(again.map(|(_, age)| age)),
        };
        loop {
            let settled =
                match self.rules.settle(*known, claim, outcome, fresh(id, Fresh::Marker(tries))) {
                    Becomes::Write(next) => {
                        let expected = known.map(|entry| entry.version);
                        if way == Way::Late && expected == state.slot.map(|held| held.entry.version)
                        {
                            state.send_late(Command::Swap { expected, next }, COMMAND)?;
                            state.requests[id].markers += u8::from(expected.is_none());
                            return Some(Settled::Unknown);
                        }
                        match state.swap(expected, next, false) {
                            Ok(()) => Settled::Written,
                            Err(held) => {
                                *known = held.map(|held| held.entry);
                                continue;
                            }
                        }
                    }
                    Becomes::Done => Settled::Written,
                    Becomes::Stale => Settled::Stale,
                };
            // Nothing was left to send, so nothing could be late.
            return (way == Way::Now).then_some(settled);
        }
    }

    /// Writes over a record that was just read.
    fn store(&self, state: &mut State, held: Held, next: Next, way: Way) -> Option<()> {
        let expected = Some(held.entry.version);
        match way {
            Way::Late => state.send_late(Command::Swap { expected, next }, COMMAND),
            Way::Now => state.swap(expected, next, false).ok(),
        }
    }

    fn arrive(&self, state: &mut State, place: usize) -> Option<()> {
        let late = state.late[place].take()?;
        state.late.sort_unstable();
        // No process reads the result of this command.
        match late.command {
            Command::Swap { expected, next } => {
                let _ = state.swap(expected, next, self.rules.has(Flaw::MarkerWithoutVersion));
            }
            Command::Renew { fence } => {
                state.renew(
                    fence,
                    LEASE,
                    self.rules.unsettled_keep(),
                    self.rules.has(Flaw::RenewsEndedLease),
                );
            }
        }
        Some(())
    }

    fn execute(&self, state: &mut State, id: Id) -> Option<()> {
        let count = &mut state.executed[self.who(id) as usize];
        // An upstream behind "forward" deduplicates for each of its clients.
        if self.bounds.on_uncertain != OnUncertain::Forward || *count == 0 {
            *count += 1;
        }
        self.reach_client(state, id, Wire::Executed)
    }

    /// The upstream answers, if the attempt still waits.
    fn reach_client(&self, state: &mut State, id: Id, wire: Wire) -> Option<()> {
        let request = &mut state.requests[id];
        request.wire =
            if matches!(request.stage, Stage::Claimed { .. }) { wire } else { Wire::Gone };
        Some(())
    }

    fn crash(&self, state: &mut State, dead: usize) -> Option<()> {
        state.budget.crashes -= 1;
        let mut any = false;
        for (id, request) in state.requests.iter_mut().enumerate() {
            let idle = matches!(request.stage, Stage::Idle | Stage::Dead);
            let done = request.stage == Stage::Done && request.giving_up.is_none();
            if gateway(id) != dead || idle || done {
                continue;
            }
            let wire = match request.wire {
                Wire::Unsent | Wire::Queued(_) => request.wire,
                _ => Wire::Gone,
            };
            *request = Request { stage: Stage::Dead, wire, ..Request::IDLE };
            any = true;
        }
        any.then_some(())
    }

    fn answer(&self, state: &mut State, id: Id, answer: Answer, owner: Who) {
        state.violations.two_answers |= state.answered.is_some_and(|first| first != answer);
        state.violations.stranger_answered |= owner != self.who(id);
        state.answered = state.answered.or(Some(answer));
    }

    /// The client gets its answer, or a refusal.
    fn finish(&self, state: &mut State, id: Id) -> Option<()> {
        let request = &mut state.requests[id];
        let giving_up = if request.owes { Some(None) } else { request.giving_up };
        let again = request.again.filter(|_| giving_up.is_some());
        *request =
            Request { stage: Stage::Done, giving_up, again, wire: request.wire, ..Request::IDLE };
        Some(())
    }
}

fn own_copy(id: Id) -> Answer {
    Answer::Upstream(id as u8)
}

/// The purpose of a version that is written over nothing. A request claims a second time over
/// nothing only if its first try was unconfirmed, and the slot was released and became empty again.
#[derive(Clone, Copy)]
enum Fresh {
    Claim,
    SecondClaim,
    /// A marker, after this number of tries without an answer.
    Marker(u8),
}

/// Returns a version far from all others, in place of a random one.
fn fresh(id: Id, of: Fresh) -> Version {
    const APART: Version = 100;
    const DRAWS: usize = 8;
    let draw = match of {
        Fresh::Claim => 0,
        Fresh::SecondClaim => 1,
        Fresh::Marker(tries) => 2 + usize::from(tries),
    };
    1 + APART * (DRAWS * id + draw) as Version
}
