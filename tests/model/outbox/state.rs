//! The state of the model: the store's contents, the relays, and the way of each event.

use crate::state::Ticks;

/// Events of the operation, each of a change of its own.
pub const EVENTS: usize = 2;
pub const RELAYS: usize = 2;

/// The lease of a relay. An attempt begins only while a third of it remains.
pub const LEASE: Ticks = 3;
/// The time after which an event can be buried. Ages are counted up to it.
pub const AGE: Ticks = 2;
/// Attempts are counted up to this number: no rule distinguishes larger ones.
pub const COUNT_MAX: u8 = 6;

/// The largest limit of attempts.
pub const LIMIT_MAX: u8 = 2;

/// The owner of the partition at the beginning: a relay that died.
pub const DEAD_RELAY: u8 = 9;

/// An event in the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Stored {
    /// The place among the operation's events.
    pub order: u8,
    pub round: u8,
    pub written_ago: Ticks,
}

/// The attempts of an event, as the store counts them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Attempts {
    pub count: u8,
    pub first_ago: Ticks,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Waiting {
    pub event: Stored,
    pub attempts: Attempts,
}

/// The contents of the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Contents {
    /// The version of the record; 0 without one. Change `n` writes version `n + 1`.
    pub version: u8,
    pub owner: u8,
    /// What is left of the relays' leases; 0 without one.
    pub attends: [Ticks; RELAYS],
    pub waiting: [Option<Waiting>; EVENTS],
    pub dead: [Option<Stored>; EVENTS],
    /// The time until the first waiting event is due.
    pub due: Ticks,
}

/// An attempt of a relay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Attempt {
    pub event: u8,
    pub round: u8,
    pub attempts: Attempts,
    /// Whether its event may have left. A retry is counted in the store before.
    pub sent: bool,
    /// Its relay's lease has ended since it began.
    pub lease_ended: bool,
    /// The partition has had another owner since it began.
    pub owner_changed: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Relay {
    pub lives: bool,
    /// What is left of its lease, by its own clock.
    pub lease: Ticks,
    /// It owns the partition, as far as it knows.
    pub owns: bool,
    /// The partition is another one's share, and an attempt is still under way.
    pub leaving: bool,
    /// The owner of the partition at its last look, until it attends and acts on both.
    pub looked: Option<u8>,
    /// The relays at its last attendance, bit by bit; 0: none. Only for
    /// [`Flaw::TakesFromNewcomer`](super::rules::Flaw), which looks after that.
    pub seen: u8,
    pub attempt: Option<Attempt>,
}

/// What has happened to an event, however much of it the store still knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Way {
    /// An attempt has sent it.
    pub sent: bool,
    /// It was delivered, or an operator discarded it.
    pub ended: bool,
    /// The message ids that the receiver knows, by round.
    pub known_ids: u8,
    /// The rounds in which the receiver took it as new.
    pub taken: u8,
    /// Attempts that began in its present round, and the age of the first one.
    pub begun: Attempts,
}

/// Faults and interventions that may still happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Budget {
    /// Losses of changes that no replica has.
    pub losses: u8,
    /// Deaths of relays, or their ends in order.
    pub relay_ends: u8,
    pub gateway_deaths: u8,
    pub requeues: u8,
    pub discards: u8,
}

/// Violations that are visible in a step but not in a state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct StepViolations {
    pub out_of_order: bool,
    pub two_at_once: bool,
    pub changed_without_owning: bool,
    pub buried_too_early: bool,
    pub not_sent_again: bool,
    pub other_content: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct State {
    pub store: Contents,
    /// What remains of the store after a loss.
    pub replica: Contents,
    pub gateway_lives: bool,
    /// Number of changes that the gateway has made.
    pub made: u8,
    /// The gateway still has to write the event of its last change
    /// ([`Flaw::EventAfterRecord`](super::rules::Flaw)).
    pub owes_event: bool,
    pub relays: [Relay; RELAYS],
    pub ways: [Way; EVENTS],
    pub budget: Budget,
    pub violations: StepViolations,
}

impl Contents {
    pub const EMPTY: Contents = Contents {
        version: 0,
        owner: DEAD_RELAY,
        attends: [0; RELAYS],
        waiting: [None; EVENTS],
        dead: [None; EVENTS],
        due: 0,
    };

    /// Whether an event waits that comes before this one.
    pub fn has_earlier(&self, event: usize) -> bool {
        self.waiting[..event].iter().any(Option::is_some)
    }

    fn tick(&mut self) {
        self.attends.iter_mut().for_each(|left| *left = left.saturating_sub(1));
        self.due = self.due.saturating_sub(1);
        for waiting in self.waiting.iter_mut().flatten() {
            waiting.event.tick();
            waiting.attempts.tick();
        }
        self.dead.iter_mut().flatten().for_each(Stored::tick);
    }
}

impl Stored {
    fn tick(&mut self) {
        self.written_ago = (self.written_ago + 1).min(AGE);
    }
}

impl Attempts {
    /// These attempts and one that begins now.
    pub fn and_another(self) -> Attempts {
        let first_ago = if self.count == 0 { 0 } else { self.first_ago };
        Attempts { count: (self.count + 1).min(COUNT_MAX), first_ago }
    }

    fn tick(&mut self) {
        if self.count > 0 {
            self.first_ago = (self.first_ago + 1).min(AGE);
        }
    }
}

impl Relay {
    pub const NEW: Relay = Relay {
        lives: true,
        lease: 0,
        owns: false,
        leaving: false,
        looked: None,
        seen: 0,
        attempt: None,
    };

    /// Whether an attempt may have left, and its relay has had a lease since it began.
    pub fn is_sending(&self) -> bool {
        self.attempt.is_some_and(|attempt| attempt.sent && !attempt.lease_ended)
    }
}

impl State {
    pub fn new(relays: usize, budget: Budget) -> State {
        let mut all = [Relay::NEW; RELAYS];
        all[relays..].iter_mut().for_each(|relay| relay.lives = false);
        State {
            store: Contents::EMPTY,
            replica: Contents::EMPTY,
            gateway_lives: true,
            made: 0,
            owes_event: false,
            relays: all,
            ways: [Way::default(); EVENTS],
            budget,
            violations: StepViolations::default(),
        }
    }

    /// Forgets the ages and the counts that no rule distinguishes where events are buried after at
    /// most [`LIMIT_MAX`] attempts.
    pub fn forget_ages(&mut self) {
        let forget = |attempts: &mut Attempts| {
            *attempts = Attempts { count: attempts.count.min(LIMIT_MAX), first_ago: 0 };
        };
        for contents in [&mut self.store, &mut self.replica] {
            for waiting in contents.waiting.iter_mut().flatten() {
                forget(&mut waiting.attempts);
                waiting.event.written_ago = waiting.event.written_ago.min(1);
            }
            // A requeued event is old: its first attempt is counted.
            contents.dead.iter_mut().flatten().for_each(|event| event.written_ago = 1);
        }
        for attempt in self.relays.iter_mut().filter_map(|relay| relay.attempt.as_mut()) {
            forget(&mut attempt.attempts);
        }
        let once = |way: &mut Way| {
            way.begun = Attempts { count: way.begun.count.min(1), first_ago: 0 };
        };
        self.ways.iter_mut().for_each(once);
    }

    /// Advances time by a tick. Stopped relays have the same time. A lone relay's lease never ends:
    /// without another relay, its end is the same as slowness.
    pub fn tick(&mut self, is_lone: bool) {
        let leases = self.store.attends;
        self.store.tick();
        self.replica.tick();
        if is_lone {
            self.store.attends = leases;
        }
        for relay in &mut self.relays {
            relay.lease -= u8::from(relay.lease > 0 && !is_lone);
            if let Some(attempt) = &mut relay.attempt {
                attempt.attempts.tick();
                attempt.lease_ended |= relay.lease == 0;
            }
        }
        self.ways.iter_mut().for_each(|way| way.begun.tick());
    }
}
