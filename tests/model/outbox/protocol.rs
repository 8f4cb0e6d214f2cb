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
    /// A relay renews its lease, and learns who attends.
    Attend(usize),
    /// A relay reads the owner of the partition; it takes it, or hands it over.
    Share(usize),
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
            AddEvent, Attend, Begin, Change, Discard, GatewayDies, GiveUp, Lose, RelayDies,
            RelayStops, Replicate, Requeue, Restore, Send, Share, Tick,
        };
        actions.extend([Change, AddEvent, Restore, GatewayDies, Replicate, Lose, Tick]);
        actions.extend((0..EVENTS).flat_map(|event| [Requeue(event), Discard(event)]));
        for relay in 0..self.bounds.relays {
            actions.extend([Attend(relay), Share(relay), Begin(relay), Send(relay)]);
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
            Action::Share(relay) => self.share(state, relay),
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
        let relay = &mut state.relays[id];
        if relay.lease == 0 {
            relay.owns &= self.rules.has(Flaw::OwnsAfterLeaseEnd);
        }
        *relay = Relay { lease: LEASE, seen, ..*relay };
        // A lone relay always sees the same.
        if self.bounds.relays == 1 { self.share(state, id) } else { Some(()) }
    }

    /// The relays share the partitions in the order of their fences, so the first one gets the only
    /// partition.
    fn share(&self, state: &mut State, id: usize) -> Option<()> {
        let seen = std::mem::take(&mut state.relays[id].seen);
        (seen != 0).then_some(())?;
        let (next, own) = (seen.trailing_zeros() as u8, id as u8);
        let owner = state.store.owner;
        let is_seen = seen & 1 << owner.min(7) != 0;
        let attends = state.store.attends.get(usize::from(owner)).is_some_and(|left| *left > 0);
        let may_take = !is_seen && (!attends || self.rules.has(Flaw::TakesFromNewcomer));
        let (owns, over) = if owner == own {
            let must_hand_over = next != own && state.relays[id].attempt.is_none();
            (!must_hand_over, must_hand_over.then_some(own))
        } else if next == own && may_take {
            (true, Some(owner))
        } else {
            (false, None)
        };
        if let Some(over) = over {
            self.store.run(&mut state.store, Command::Own { next, over });
            let attempts = state.relays.iter_mut().filter_map(|relay| relay.attempt.as_mut());
            attempts.for_each(|attempt| attempt.owner_changed = true);
        }
        let relay = &mut state.relays[id];
        (relay.owns, relay.leaving) = (owns, owns && next != own);
        Some(())
    }

    fn begin(&self, state: &mut State, id: usize) -> Option<()> {
        let relay = &state.relays[id];
        (may_send(relay) && !relay.leaving && relay.attempt.is_none()).then_some(())?;
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
        // A tick is longer than the age from which a first attempt is counted, too.
        let is_counted = attempts.count > 1 || waiting.event.written_ago > 0;
        if is_counted {
            let pause = self.rules.counted_pause(attempts);
            let count = Command::Postpone { fence: id as u8, event, attempts, pause };
            if !self.settle(state, id, count) {
                return Some(());
            }
        }
        state.relays[id].attempt = Some(attempt);
        if is_counted { Some(()) } else { self.send(state, id) }
    }

    fn send(&self, state: &mut State, id: usize) -> Option<()> {
        let is_checked = may_send(&state.relays[id]);
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
        let draw = match end {
            End::Delivered => {
                self.settle(state, id, Command::Remove { fence, event });
                return Some(());
            }
            End::Refused(Pause::Shortest) | End::AnswerLost(Pause::Shortest) => 0,
            End::Refused(Pause::Longest) | End::AnswerLost(Pause::Longest) => u64::MAX,
        };
        let command = match self.rules.pause(attempts, state.store.waiting[n], draw) {
            Some(pause) => Command::Postpone { fence, event, attempts, pause },
            None => Command::Bury { fence, event },
        };
        self.settle(state, id, command);
        Some(())
    }

    /// Makes a relay's change of an event. Returns whether the relay still owns the partition.
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
        let is_owner = answered == Answered::Done(true);
        state.relays[id].owns &= is_owner;
        is_owner
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

/// Whether a relay may begin an attempt: a third of its lease remains.
fn may_send(relay: &Relay) -> bool {
    relay.lives && relay.owns && relay.lease >= LEASE / 3
}

fn with_fence(command: Command, fence: u8) -> Command {
    match command {
        Command::Postpone { event, attempts, pause, .. } => {
            Command::Postpone { fence, event, attempts, pause }
        }
        Command::Remove { event, .. } => Command::Remove { fence, event },
        Command::Bury { event, .. } => Command::Bury { fence, event },
        other => other,
    }
}
