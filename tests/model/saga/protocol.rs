//! The possible steps: gateways, the client, the upstream, operators, time.
//!
//! Every gateway may be as slow as it likes at any step, so one that sleeps needs no step of its
//! own. A store call and the decision about its answer are one step where nothing but the store
//! could come between.

use onceward::saga::log::StepDirection;
use onceward::saga::machine::{SagaTodo, StateChange};
use stateright::{Model, Property};

use super::properties;
use super::rules::{Event, Flaw, Outcome, Rules, Shape, WaitingStep};
use super::state::{
    Budget, End, GATEWAYS, LogId, Memory, Operation, Record, SAGAS, Slot, SlotRecord, State,
};

/// The bounds of the exploration.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    pub shape: Shape,
    /// Attempts that may be without an execution before an action is given up.
    pub attempts: u32,
    pub budget: Budget,
}

/// Sagas, with their rules and within their bounds.
pub struct Protocol {
    pub rules: Rules,
    pub bounds: Bounds,
}

/// The end of an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AttemptEnd {
    Done,
    Refused,
    Released,
    /// The answer is lost: the upstream executed it.
    LostAnswer,
    /// The request is lost, or the upstream executes it later.
    LostRequest,
}

/// One step of one participant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// A client's request, or a duplicate of it, arrives at a gateway.
    Request(u8),
    /// The record of an ended saga disappears.
    Forget,
    /// A gateway does what its memory of the log asks for, by number.
    Work(u8, u8),
    /// A gateway writes that the saga is late.
    TimeOut(u8),
    /// A gateway takes the saga over.
    TakeOver(u8),
    /// An owner sees that the record was changed, and reads it.
    Read(u8),
    Die(u8),
    /// An attempt ends.
    End(Operation, AttemptEnd),
    /// The upstream executes a request that waits there (`true`), or never will.
    Late(Operation, bool),
    /// An operator or a probe settles an uncertain operation.
    Settle(Operation),
    Cancel,
    /// An operator decides about a step that waits for that.
    Decide(u8, bool),
    /// All settled records of operations end.
    LifeEnds,
}

const ENDS: [AttemptEnd; 5] = [
    AttemptEnd::Done,
    AttemptEnd::Refused,
    AttemptEnd::Released,
    AttemptEnd::LostAnswer,
    AttemptEnd::LostRequest,
];

impl Model for Protocol {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        vec![State::new(self.bounds.budget)]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        for gateway in 0..GATEWAYS as u8 {
            actions.extend([Action::Request(gateway), Action::TakeOver(gateway)]);
            if let Some(memory) = state.memories[usize::from(gateway)] {
                let todos = self.rules.todos(memory.log, state.is_old).len() as u8;
                actions.extend((0..todos).map(|todo| Action::Work(gateway, todo)));
                actions.extend([Action::Die(gateway), Action::TimeOut(gateway)]);
                actions.push(Action::Read(gateway));
            }
        }
        actions.extend([Action::Forget, Action::Cancel, Action::LifeEnds]);
        for step in 0..self.rules.steps() {
            actions.extend([Action::Decide(step, false), Action::Decide(step, true)]);
        }
        for operation in (0..SAGAS as u8).flat_map(Operation::all) {
            let slot = state.slots[operation.index()];
            match slot.record {
                SlotRecord::InFlight(_) => {
                    actions.extend(ENDS.map(|end| Action::End(operation, end)));
                }
                SlotRecord::Uncertain => actions.push(Action::Settle(operation)),
                _ => {}
            }
            if slot.queued {
                actions.extend([Action::Late(operation, false), Action::Late(operation, true)]);
            }
        }
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = *last;
        self.step(&mut state, action)?;
        state.rename_gateways();
        (state != *last).then_some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        properties::all(&self.bounds)
    }
}

impl Protocol {
    /// Takes a step. Returns `None` if the step is not possible.
    fn step(&self, state: &mut State, action: Action) -> Option<()> {
        match action {
            Action::Request(gateway) => self.request(state, gateway),
            Action::Forget => {
                let record = state.record?;
                self.rules.end(record.log)?;
                (state.budget.sagas > 0).then_some(())?;
                state.record = None;
                state.change_record(None);
                Some(())
            }
            Action::Work(gateway, todo) => self.work(state, gateway, todo),
            Action::TimeOut(gateway) => {
                state.budget.turns = state.budget.turns.checked_sub(1)?;
                let memory = state.memories[usize::from(gateway)]?;
                let (log, change) = self.rules.apply(memory.log, state.is_old, Event::TimedOut)?;
                (log != memory.log).then_some(())?;
                self.write(state, gateway, log, change);
                Some(())
            }
            Action::TakeOver(gateway) => self.take_over(state, gateway),
            Action::Read(gateway) => {
                let record = state.record.filter(|record| record.owner == gateway)?;
                let memory = state.memories[usize::from(gateway)].as_mut()?;
                (!memory.is_current && memory.saga == record.saga).then_some(())?;
                (memory.is_current, memory.log) = (true, record.log);
                Some(())
            }
            Action::Die(gateway) => self.die(state, gateway),
            Action::End(operation, end) => self.end(state, operation, end),
            Action::Late(operation, executes) => {
                state.slots[operation.index()].queued = false;
                if executes {
                    self.execute(state, operation);
                }
                Some(())
            }
            Action::Settle(operation) => {
                let slot = &mut state.slots[operation.index()];
                (!slot.queued).then_some(())?;
                let is_executed = slot.executed > 0;
                slot.record = if is_executed { SlotRecord::Done } else { SlotRecord::Released };
                Some(())
            }
            Action::Cancel => {
                state.budget.turns = state.budget.turns.checked_sub(1)?;
                self.decided(state, Event::Cancelled)
            }
            Action::Decide(step, retries) => self.decide(state, step, retries),
            Action::LifeEnds => {
                state.budget.lives = state.budget.lives.checked_sub(1)?;
                state.is_old = true;
                let settled = state.slots.iter_mut().filter(|slot| !slot.is_unsettled());
                settled.for_each(|slot| slot.record = SlotRecord::Absent);
                Some(())
            }
        }
    }

    /// Begins a saga. If there is one, the request is a duplicate, which waits.
    fn request(&self, state: &mut State, gateway: u8) -> Option<()> {
        state.record.is_none().then_some(())?;
        let saga = state.ends.iter().position(Option::is_none)? as u8;
        state.budget.sagas = state.budget.sagas.checked_sub(1)?;
        let log = self.rules.new_log();
        state.record = Some(Record { saga, owner: gateway, log });
        state.memories[usize::from(gateway)] = Some(Memory { saga, is_current: true, log });
        Some(())
    }

    fn take_over(&self, state: &mut State, gateway: u8) -> Option<()> {
        let record = state.record.as_mut()?;
        self.rules.end(record.log).is_none().then_some(())?;
        let owner = state.memories[usize::from(record.owner)];
        let has_owner = owner.is_some_and(|memory| memory.saga == record.saga);
        if has_owner {
            (record.owner != gateway).then_some(())?;
            state.budget.takeovers = state.budget.takeovers.checked_sub(1)?;
        }
        record.owner = gateway;
        let Record { saga, log, .. } = *record;
        state.memories[usize::from(gateway)] = Some(Memory { saga, is_current: true, log });
        state.change_record(Some(gateway));
        Some(())
    }

    /// A gateway dies and starts again. Its attempts end with their leases.
    fn die(&self, state: &mut State, gateway: u8) -> Option<()> {
        state.memories[usize::from(gateway)].take()?;
        state.budget.deaths = state.budget.deaths.checked_sub(1)?;
        for slot in &mut state.slots {
            if slot.record == SlotRecord::InFlight(gateway) {
                (slot.record, slot.queued) = (SlotRecord::Uncertain, true);
            }
        }
        Some(())
    }

    fn work(&self, state: &mut State, gateway: u8, todo: u8) -> Option<()> {
        let memory = state.memories[usize::from(gateway)]?;
        let todos = self.rules.todos(memory.log, state.is_old);
        let event = match *todos.get(usize::from(todo))? {
            SagaTodo::Refresh => Event::TimePassed,
            SagaTodo::Begin { step } => Event::Begun(step as u8, StepDirection::Action),
            SagaTodo::Compensate { step } => Event::Begun(step as u8, StepDirection::Compensation),
            SagaTodo::Settle { .. } => Event::Settled,
            SagaTodo::Call { step, direction, generation, continues } => {
                let place = (step as u8, direction, generation as u8);
                let operation = self.operation(memory, place);
                let outcome = call(state, gateway, operation, continues)?;
                Event::Outcome(place.0, direction, place.2, outcome)
            }
            SagaTodo::Bar { step, direction, generation } => {
                let place = (step as u8, direction, generation as u8);
                let outcome = self.bar(state, self.operation(memory, place));
                Event::Outcome(place.0, direction, place.2, outcome)
            }
        };
        // A call that only began has no outcome yet.
        if let Event::Outcome(_, _, _, Outcome::InFlight) = event
            && is_own_attempt(state, gateway, event, self, memory)
        {
            return Some(());
        }
        let (log, change) = self.rules.apply(memory.log, state.is_old, event)?;
        let is_unwritten =
            matches!(event, Event::Begun(..)) && self.rules.has(Flaw::LogsAfterEffect);
        let change = if is_unwritten { StateChange::Memory } else { change };
        self.write(state, gateway, log, change);
        Some(())
    }

    /// Returns the operation that a step's key names.
    fn operation(
        &self,
        memory: Memory,
        (step, direction, generation): (u8, StepDirection, u8),
    ) -> Operation {
        let saga = if self.rules.has(Flaw::KeysFromClient) { 0 } else { memory.saga };
        let generation = if self.rules.has(Flaw::KeyPerAttempt) {
            self.rules.released(memory.log, step, direction).min(1) as u8
        } else {
            generation
        };
        Operation { saga, step, direction, generation }
    }

    fn bar(&self, state: &mut State, operation: Operation) -> Outcome {
        let slot = &mut state.slots[operation.index()];
        match slot.record {
            _ if self.rules.has(Flaw::NoBars) => Outcome::Barred,
            SlotRecord::Absent | SlotRecord::Released => {
                slot.record = SlotRecord::Barred;
                Outcome::Barred
            }
            record => settled(record).unwrap_or(Outcome::InFlight),
        }
    }

    fn end(&self, state: &mut State, operation: Operation, end: AttemptEnd) -> Option<()> {
        let slot = &mut state.slots[operation.index()];
        let SlotRecord::InFlight(gateway) = slot.record else { return None };
        let budget = match end {
            AttemptEnd::Done => None,
            AttemptEnd::Refused => Some(&mut state.budget.refusals),
            AttemptEnd::Released => Some(&mut state.budget.releases),
            AttemptEnd::LostAnswer | AttemptEnd::LostRequest => Some(&mut state.budget.doubts),
        };
        if let Some(budget) = budget {
            *budget = budget.checked_sub(1)?;
        }
        slot.record = match end {
            AttemptEnd::Done => SlotRecord::Done,
            AttemptEnd::Refused => SlotRecord::Refused,
            AttemptEnd::Released => SlotRecord::Released,
            AttemptEnd::LostAnswer | AttemptEnd::LostRequest => SlotRecord::Uncertain,
        };
        slot.queued = end == AttemptEnd::LostRequest;
        if matches!(end, AttemptEnd::Done | AttemptEnd::LostAnswer) {
            self.execute(state, operation);
        }
        if end == AttemptEnd::Released
            && let Some(memory) = state.memories[usize::from(gateway)]
            && memory.saga == operation.saga
        {
            let Operation { step, direction, generation, .. } = operation;
            let generation = if self.rules.has(Flaw::KeyPerAttempt) { 0 } else { generation };
            let event = Event::Outcome(step, direction, generation, Outcome::NotExecuted);
            let (log, change) = self.rules.apply(memory.log, state.is_old, event)?;
            self.write(state, gateway, log, change);
        }
        Some(())
    }

    /// The upstream executes an operation.
    fn execute(&self, state: &mut State, operation: Operation) {
        let Operation { saga, step, direction, .. } = operation;
        state.slots[operation.index()].executed += 1;
        let actions = || {
            let all = Operation::all(saga);
            all.filter(|operation| operation.direction == StepDirection::Action)
        };
        let executions = |step, direction| state.executions(saga, step, direction);
        let is_undone = |step| executions(step, StepDirection::Compensation) > 0;
        let mut steps = 0..self.rules.steps();
        if direction == StepDirection::Action {
            state.violations.after_undo |= steps.any(is_undone);
            return;
        }
        let later = self.rules.later_steps[usize::from(step)];
        let is_open = |step: u8| {
            executions(step, StepDirection::Action) > 0
                && self.rules.is_undoable(step)
                && !is_undone(step)
        };
        let is_out_of_order = steps.any(|step| later.contains(step.into()) && is_open(step));
        let is_in_doubt = actions().any(|action| state.slots[action.index()].is_unsettled());
        state.violations.out_of_order |= is_out_of_order;
        state.violations.in_doubt |= is_in_doubt;
    }

    /// Takes a change into a gateway's memory, and into the record if it must be written. A gateway
    /// that finds another version reads the record again, or has lost the saga.
    fn write(&self, state: &mut State, gateway: u8, log: LogId, change: StateChange) {
        let place = &mut state.memories[usize::from(gateway)];
        let (Some(memory), Some(record)) = (place.as_mut(), state.record.as_mut()) else {
            *place = None;
            return;
        };
        memory.log = log;
        if change != StateChange::Write {
            return;
        }
        if !memory.is_current && !self.rules.has(Flaw::NoFence) {
            let is_owner = record.saga == memory.saga && record.owner == gateway;
            let Record { saga, log, .. } = *record;
            *place = is_owner.then_some(Memory { saga, is_current: true, log });
            return;
        }
        record.log = log;
        if let Some(end) = self.rules.end(log) {
            state.ends[usize::from(memory.saga)] = Some(end);
            *place = None;
            // Nobody takes over an ended saga, or turns it back.
            if state.budget.sagas == 0 {
                let Budget { takeovers, turns, retries, .. } = &mut state.budget;
                (*takeovers, *turns, *retries) = (0, 0, 0);
            }
        }
        state.change_record(Some(gateway));
    }

    /// An operator's decision changes the record, whichever gateway owns it.
    fn decided(&self, state: &mut State, event: Event) -> Option<()> {
        let record = state.record.as_mut()?;
        let (log, change) = self.rules.apply(record.log, state.is_old, event)?;
        (change == StateChange::Write).then_some(())?;
        record.log = log;
        state.change_record(None);
        Some(())
    }

    /// An operator decides about a step, truthfully: a retry of a lost operation means that it was
    /// not executed. A skip of a definite no means that the operator has executed it.
    fn decide(&self, state: &mut State, step: u8, retries: bool) -> Option<()> {
        let record = state.record?;
        let waiting = self.rules.waiting(record.log, state.is_old);
        let waiting = waiting.into_iter().find(|waiting| waiting.step == step)?;
        let WaitingStep { direction, is_lost, generation, .. } = waiting;
        let operation = Operation { saga: record.saga, step, direction, generation };
        let slot = &mut state.slots[operation.index()];
        if is_lost {
            let is_known = !slot.is_unsettled();
            (is_known && retries == (slot.executed == 0)).then_some(())?;
        } else if retries {
            state.budget.retries = state.budget.retries.checked_sub(1)?;
        } else {
            self.execute(state, operation);
        }
        let event = if retries { Event::Retried(step) } else { Event::Skipped(step) };
        self.decided(state, event)
    }
}

/// Claims an operation, or looks at it. Returns `None` if nothing happens.
fn call(state: &mut State, gateway: u8, operation: Operation, continues: bool) -> Option<Outcome> {
    let slot: &mut Slot = &mut state.slots[operation.index()];
    match slot.record {
        SlotRecord::Absent if continues => Some(Outcome::Absent),
        SlotRecord::Released if continues => Some(Outcome::Released),
        SlotRecord::Absent | SlotRecord::Released => {
            slot.record = SlotRecord::InFlight(gateway);
            Some(Outcome::InFlight)
        }
        record => settled(record),
    }
}

/// Returns the outcome of a look at a record that admits no claim.
fn settled(record: SlotRecord) -> Option<Outcome> {
    match record {
        SlotRecord::Absent | SlotRecord::Released => None,
        SlotRecord::InFlight(_) => Some(Outcome::InFlight),
        SlotRecord::Uncertain => Some(Outcome::Held),
        SlotRecord::Done => Some(Outcome::Success),
        SlotRecord::Refused => Some(Outcome::Failure),
        SlotRecord::Barred => Some(Outcome::Barred),
    }
}

/// Whether an event is about an attempt that the gateway itself runs.
fn is_own_attempt(
    state: &State,
    gateway: u8,
    event: Event,
    protocol: &Protocol,
    memory: Memory,
) -> bool {
    let Event::Outcome(step, direction, generation, _) = event else { return false };
    let operation = protocol.operation(memory, (step, direction, generation));
    state.slots[operation.index()].record == SlotRecord::InFlight(gateway)
}

impl State {
    pub fn ended(&self, end: End) -> bool {
        self.ends.contains(&Some(end))
    }
}
