//! The possible steps: the gateway, the relays, the receiver, operators, the store's losses, time.
//!
//! Every process may be as slow as it likes at any step, so a stopped relay needs no step of its
//! own. A store call and the decision about its answer are one step where nothing but the store
//! could come between.

use stateright::{Model, Property};

use super::properties;
use super::rules::{Flaw, Rules};
use super::state::{
    Attempt, Attempts, Budget, Contents, EVENTS, LEASE, RELAYS, Relay, State, Stored, Waiting,
};
use super::store::{Answered, Command, DueEvent, ProductStore};

/// The bounds of the exploration.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    pub relays: usize,
    pub changes: u8,
    /// The limit of attempts in a round; 0: events are buried for their age.
    pub attempts: u32,
    pub budget: Budget,
}

/// The outbox, with its rules and within its bounds.
pub struct Protocol {
    pub rules: Rules,
    pub bounds: Bounds,
    pub store: ProductStore,
}

/// How an attempt ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    Delivered,
    /// The receiver did not take the event. The pause is the shortest or the longest.
    Refused(Pause),
    /// The receiver took the event, and its answer is lost.
    AnswerLost(Pause),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pause {
    Shortest,
    Longest,
}

/// One step of one participant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// The gateway changes the operation.
    Change,
    /// The gateway writes the event of its last change.
    AddEvent,
    /// The gateway writes a lost change again.
    Restore,
    GatewayDies,
    /// The replica gets everything.
    Replicate,
    /// The store loses what the replica does not have.
    Lose,
    /// A relay renews its lease, and learns who attends. After a look it takes the partition, or
    /// hands it over.
    Attend(usize),
    /// A relay reads the owner of the partition.
    Look(usize),
    /// A relay reads the event that is due, and begins an attempt. It sends a first attempt at
    /// once, and counts any other before.
    Begin(usize),
    /// A relay sends an attempt that it has counted.
    Send(usize),
    /// A relay gives up an attempt that it has counted.
    GiveUp(usize),
    /// An attempt ends, and its relay writes that.
    End(usize, End),
    RelayDies(usize),
    /// A relay stops in order.
    RelayStops(usize),
    Requeue(usize),
    Discard(usize),
    Tick,
}

const ENDS: [End; 5] = [
    End::Delivered,
    End::Refused(Pause::Shortest),
    End::Refused(Pause::Longest),
    End::AnswerLost(Pause::Shortest),
    End::AnswerLost(Pause::Longest),
];

impl Model for Protocol {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        vec![State::new(self.bounds.relays, self.bounds.budget)]
    }

    fn actions(&self, _: &State, actions: &mut Vec<Action>) {
        use Action::{
            AddEvent, Attend, Begin, Change, Discard, GatewayDies, GiveUp, Look, Lose, RelayDies,
            RelayStops, Replicate, Requeue, Restore, Send, Tick,
        };
        actions.extend([Change, AddEvent, Restore, GatewayDies, Replicate, Lose, Tick]);
        actions.extend((0..EVENTS).flat_map(|event| [Requeue(event), Discard(event)]));
        for relay in 0..self.bounds.relays {
            actions.extend([Attend(relay), Look(relay), Begin(relay), Send(relay)]);
            actions.extend([GiveUp(relay), RelayDies(relay), RelayStops(relay)]);
            actions.extend(ENDS.map(|end| Action::End(relay, end)));
        }
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        if self.is_over(last) {
            return None;
        }
        let mut state = *last;
        self.step(&mut state, action)?;
        if state.budget.losses == 0 {
            // Nothing can be lost any more, so the replica does not matter.
            state.replica = state.store;
        }
        if !self.rules.buries_for_age() {
            state.forget_ages();
        }
        (state != *last).then_some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        properties::all(&self.bounds)
    }
}

impl Protocol {
    /// Whether every event was delivered or discarded, and nothing is left that could be lost.
    fn is_over(&self, state: &State) -> bool {
        let Contents { waiting, dead, .. } = state.store;
        state.made == self.bounds.changes
            && state.budget.losses == 0
            && !state.owes_event
            && waiting.iter().all(Option::is_none)
            && dead.iter().all(Option::is_none)
    }

    /// Takes a step. Returns `None` if the step is not possible.
    fn step(&self, state: &mut State, action: Action) -> Option<()> {
        match action {
            Action::Change => {
                let is_next = state.made < self.bounds.changes && state.store.version == state.made;
                (is_next && state.gateway_lives && !state.owes_event).then_some(())?;
                state.made += 1;
                self.change(state)
            }
            Action::AddEvent => self.add_event(state),
            Action::Restore => {
                let is_lost = state.store.version < state.made;
                (is_lost && state.gateway_lives && !state.owes_event).then_some(())?;
                self.change(state)
            }
            Action::GatewayDies => {
                state.gateway_lives.then_some(())?;
                state.budget.gateway_deaths = state.budget.gateway_deaths.checked_sub(1)?;
                state.gateway_lives = false;
                Some(())
            }
            Action::Replicate => {
                state.replica = state.store;
                Some(())
            }
            Action::Lose => {
                state.budget.losses = state.budget.losses.checked_sub(1)?;
                state.store = state.replica;
                Some(())
            }
            Action::Attend(relay) => self.attend(state, relay),
            Action::Look(relay) => self.look(state, relay),
            Action::Begin(relay) => self.begin(state, relay),
            Action::Send(relay) => self.send(state, relay),
            Action::GiveUp(relay) => {
                state.relays[relay].attempt.take_if(|attempt| !attempt.sent).map(|_| ())
            }
            Action::End(relay, end) => self.end(state, relay, end),
            Action::RelayDies(relay) | Action::RelayStops(relay) => {
                state.relays[relay].lives.then_some(())?;
                state.budget.relay_ends = state.budget.relay_ends.checked_sub(1)?;
                if action == Action::RelayStops(relay) {
                    state.relays[relay].attempt.is_none().then_some(())?;
                    self.store.run(&mut state.store, Command::Leave(relay as u8));
                }
                state.relays[relay] = Relay { lives: false, ..Relay::NEW };
                Some(())
            }
            Action::Requeue(event) => self.requeue(state, event),
            Action::Discard(event) => {
                state.store.dead[event]?;
                state.budget.discards = state.budget.discards.checked_sub(1)?;
                state.ways[event].ended = true;
                self.store.run(&mut state.store, Command::Discard(event as u8));
                Some(())
            }
            Action::Tick => {
                state.tick(self.bounds.relays == 1);
                Some(())
            }
        }
    }

    /// Writes the change behind the stored version, with its event.
    fn change(&self, state: &mut State) -> Option<()> {
        let with_event = !self.rules.has(Flaw::EventAfterRecord);
        state.owes_event = !with_event;
        let change = state.store.version;
        self.store.run(&mut state.store, Command::Change { change, with_event });
        Some(())
    }

    fn add_event(&self, state: &mut State) -> Option<()> {
        (state.owes_event && state.gateway_lives).then_some(())?;
        state.owes_event = false;
        let order = state.store.version;
        let event = Stored { order, round: 0, written_ago: 0 };
        let place = &mut state.store.waiting[usize::from(order.checked_sub(1)?)];
        *place = Some(Waiting { event, attempts: Attempts::default() });
        Some(())
    }

    fn attend(&self, state: &mut State, id: usize) -> Option<()> {
        state.relays[id].lives.then_some(())?;
        let answered = self.store.run(&mut state.store, Command::Attend(id as u8));
        let Answered::Relays(seen) = answered else { return None };
        let owner = state.store.owner;
        let relay = &mut state.relays[id];
        let mut looked = relay.looked.take();
        if self.rules.has_ended(relay.lease) {
            // A new term has no partitions, and looks again.
            relay.owns &= self.rules.has(Flaw::OwnsAfterLeaseEnd);
            looked = None;
        }
        relay.lease = LEASE;
        if self.rules.has(Flaw::TakesFromNewcomer) {
            relay.seen = seen;
        }
        // A lone relay always sees the same.
        let looked = if self.bounds.relays == 1 { Some(owner) } else { looked };
        if let Some(owner) = looked {
            self.act(state, id, seen, owner);
        }
        Some(())
    }

    fn look(&self, state: &mut State, id: usize) -> Option<()> {
        let (owner, relay) = (state.store.owner, &mut state.relays[id]);
        (relay.lives && self.bounds.relays > 1).then_some(())?;
        if !self.rules.has(Flaw::TakesFromNewcomer) {
            relay.looked = Some(owner);
            return Some(());
        }
        let seen = std::mem::take(&mut relay.seen);
        (seen != 0).then_some(())?;
        self.act(state, id, seen, owner);
        Some(())
    }

    /// A relay takes the partition, or hands it over. The relays and the owner are those that it
    /// has seen.
    fn act(&self, state: &mut State, id: usize, seen: u8, owner: u8) {
        let (own, is_running) = (id as u8, state.relays[id].attempt.is_some());
        let share = self.rules.share(own, seen, owner);
        let next = share.leaving.first().map(|(_, next)| next.0 as u8);
        let relay = &mut state.relays[id];
        (relay.owns, relay.leaving) = (!share.owned.is_empty(), next.is_some());
        let (next, over) = match next {
            Some(next) if !is_running => (next, own),
            None if !share.taken.is_empty() => (own, owner),
            _ => return,
        };
        let before = state.store.owner;
        let owned = self.store.run(&mut state.store, Command::Own { next, over });
        let relay = &mut state.relays[id];
        (relay.owns, relay.leaving) = (next == own && owned == Answered::Done(true), false);
        if state.store.owner != before {
            let attempts = state.relays.iter_mut().filter_map(|relay| relay.attempt.as_mut());
            attempts.for_each(|attempt| attempt.owner_changed = true);
        }
    }

    fn begin(&self, state: &mut State, id: usize) -> Option<()> {
        let relay = &state.relays[id];
        let may_begin = self.may_send(relay) && !relay.leaving && relay.attempt.is_none();
        may_begin.then_some(())?;
        let Answered::Due(due) = self.store.run(&mut state.store, Command::Due) else {
            return None;
        };
        let DueEvent { event, waiting, is_intact } = due?;
        let n = usize::from(event);
        let has_met_ack = state.replica.version > event;
        (has_met_ack || self.rules.has(Flaw::SendsBeforeAck)).then_some(())?;
        state.violations.other_content |= !is_intact;
        state.violations.out_of_order |= state.store.has_earlier(n);
        state.ways[n].begun = state.ways[n].begun.and_another();
        let attempts = waiting.attempts.and_another();
        let round = waiting.event.round;
        let (sent, lease_ended, owner_changed) = (false, false, false);
        let attempt = Attempt { event, round, attempts, sent, lease_ended, owner_changed };
        let is_counted = self.rules.is_counted_before(attempts, waiting.event.written_ago);
        if is_counted {
            let pause = self.rules.counted_pause(attempts);
            let count = Command::Postpone { fence: id as u8, event, round, attempts, pause };
            if !self.settle(state, id, count) {
                return Some(());
            }
        }
        state.relays[id].attempt = Some(attempt);
        if is_counted { Some(()) } else { self.send(state, id) }
    }

    fn send(&self, state: &mut State, id: usize) -> Option<()> {
        let is_checked = self.may_send(&state.relays[id]);
        (is_checked || self.rules.has(Flaw::UncheckedAfterCounting)).then_some(())?;
        let attempt = state.relays[id].attempt.as_mut().filter(|attempt| !attempt.sent)?;
        attempt.sent = true;
        state.ways[usize::from(attempt.event)].sent = true;
        let is_other_sending =
            (0..RELAYS).any(|other| other != id && state.relays[other].is_sending());
        state.violations.two_at_once |= is_other_sending;
        Some(())
    }

    fn end(&self, state: &mut State, id: usize, end: End) -> Option<()> {
        let attempt = state.relays[id].attempt.take_if(|attempt| attempt.sent)?;
        let Attempt { event, round, attempts, .. } = attempt;
        let n = usize::from(event);
        if !matches!(end, End::Refused(_)) {
            let id = if self.rules.has(Flaw::RoundNotCounted) { 1 } else { 1 << round };
            let way = &mut state.ways[n];
            if way.known_ids & id == 0 {
                way.taken |= 1 << round;
            }
            way.known_ids |= id;
        }
        let is_unchecked =
            self.rules.has(Flaw::SettlesAfterReturn) || self.rules.has(Flaw::NoFence);
        if attempt.owner_changed && !is_unchecked {
            return Some(());
        }
        let fence = id as u8;
        let waiting = state.store.waiting[n].map(|waiting| waiting.event.round);
        // Without terms, the round would still prevent the violation.
        let round = waiting.filter(|_| is_unchecked).unwrap_or(round);
        let draw = match end {
            End::Delivered => {
                self.settle(state, id, Command::Remove { fence, event, round });
                return Some(());
            }
            End::Refused(Pause::Shortest) | End::AnswerLost(Pause::Shortest) => 0,
            End::Refused(Pause::Longest) | End::AnswerLost(Pause::Longest) => u64::MAX,
        };
        let command = match self.rules.pause(attempts, state.store.waiting[n], draw) {
            Some(pause) => Command::Postpone { fence, event, round, attempts, pause },
            None => Command::Bury { fence, event, round },
        };
        self.settle(state, id, command);
        Some(())
    }

    /// Makes a relay's change of an event. Returns whether it found the event, and the relay as the
    /// owner of the partition.
    fn settle(&self, state: &mut State, id: usize, command: Command) -> bool {
        let before = state.store;
        let command =
            if self.rules.has(Flaw::NoFence) { with_fence(command, before.owner) } else { command };
        let answered = self.store.run(&mut state.store, command);
        let has_changed = state.store != before;
        state.violations.changed_without_owning |= has_changed && before.owner != id as u8;
        if has_changed {
            self.judge(state, &before, command);
        }
        let is_done = answered == Answered::Done(true);
        // A relay that finds its event gone asks the store who owns the partition.
        state.relays[id].owns &= is_done || before.owner == id as u8;
        is_done
    }

    /// Notes what a removal or a burial means for its event.
    fn judge(&self, state: &mut State, before: &Contents, command: Command) {
        let (Command::Remove { event, .. } | Command::Bury { event, .. }) = command else { return };
        let n = usize::from(event);
        let Some(waiting) = before.waiting[n] else { return };
        let (way, violations) = (&mut state.ways[n], &mut state.violations);
        if let Command::Remove { .. } = command {
            way.ended = true;
            // After a loss, the store may have an earlier round than the receiver.
            violations.not_sent_again |= way.taken >> waiting.event.round == 0;
            return;
        }
        violations.not_sent_again |= way.begun.count == 0;
        let is_old = way.begun.count >= 5 && way.begun.first_ago >= super::state::AGE;
        violations.buried_too_early |= self.rules.buries_for_age() && !is_old;
    }

    /// Whether a relay may send.
    fn may_send(&self, relay: &Relay) -> bool {
        relay.lives && relay.owns && self.rules.may_begin(relay.lease)
    }

    fn requeue(&self, state: &mut State, event: usize) -> Option<()> {
        state.store.dead[event]?;
        state.budget.requeues = state.budget.requeues.checked_sub(1)?;
        self.store.run(&mut state.store, Command::Requeue(event as u8));
        state.ways[event].begun = Attempts::default();
        if let (true, Some(waiting)) =
            (self.rules.has(Flaw::OrderByArrival), &mut state.store.waiting[event])
        {
            waiting.event.order = EVENTS as u8 + 1;
        }
        Some(())
    }
}

fn with_fence(command: Command, fence: u8) -> Command {
    match command {
        Command::Postpone { event, round, attempts, pause, .. } => {
            Command::Postpone { fence, event, round, attempts, pause }
        }
        Command::Remove { event, round, .. } => Command::Remove { fence, event, round },
        Command::Bury { event, round, .. } => Command::Bury { fence, event, round },
        other => other,
    }
}
