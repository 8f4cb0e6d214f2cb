//! Everything that can be the case: the record, requests, store commands under way, the upstream.
//!
//! Time is relative. What has a deadline keeps the ticks that are left, what has an age keeps the ticks since then, so
//! that two states which differ only in the date are one, and a model without a last day is finite.

/// Ticks that are left, or that have passed.
pub type Ticks = u8;

/// Stands for ever. Not counted down.
pub const FOREVER: Ticks = Ticks::MAX;

/// A claim's answer was not read yet, and the send rule not counted ([`Flaw::CountsFromTheAnswer`](crate::rules::Flaw)).
pub const UNREAD: Ticks = Ticks::MAX;

/// The most requests that a model has, under one key.
pub const REQUESTS_MAX: usize = 3;

/// The most store commands that can be under way unnoticed at one time.
pub const LATE_MAX: usize = 2;

/// Counts a record's changes.
pub type Version = u16;

/// Names a request. Also its fence: a request keeps one through all its tries.
pub type Id = usize;

/// The fence of operators' decisions.
pub const OPERATOR: u8 = 9;

/// Who asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Who {
    /// The key's first user, as a rule.
    Alice,
    /// Another caller with the same key.
    Stranger,
}

/// A response. No two are alike: the `Date` alone would tell an attempt's own copy from what was stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Answer {
    /// What the upstream answered to this request.
    Upstream(u8),
    /// What an operator settled by hand.
    Operator,
    /// What a probe found.
    Probe,
}

/// Where an operation stands: [`State`](onceward::record::State) without what no rule reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Stand {
    /// An attempt is under way; one that began from uncertain carries since when.
    InFlight(Option<Ticks>),
    /// Nobody knows; `None`: since it was written.
    Uncertain(Option<Ticks>),
    /// Duplicates get this.
    Completed(Answer),
    /// A marker.
    Released,
}

/// A record as one write leaves it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Entry {
    pub version: Version,
    pub fence: u8,
    pub who: Option<Who>,
    pub stand: Stand,
}

/// A write, with the life of what it writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Next {
    pub entry: Entry,
    /// The lease; 0 where none.
    pub due: Ticks,
    pub keep: Ticks,
}

/// The record as the store holds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Held {
    pub entry: Entry,
    pub due: Ticks,
    pub keep: Ticks,
    /// Since it was written; counted only where a rule asks for it.
    pub age: Ticks,
}

/// A store command.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Command {
    Swap { expected: Option<Version>, next: Next },
    Renew { fence: u8 },
}

/// A command that nobody hears of any more: it is carried out later, or never.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Late {
    pub left: Ticks,
    pub command: Command,
}

/// What was settled about an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// The upstream's result.
    Answered,
    /// The upstream's release status: it did nothing.
    Declined,
    NeverSent,
    InDoubt,
}

/// Where a request stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Stage {
    /// Its client has not sent it yet.
    Idle,
    /// About to claim, over this version; over an uncertain record with the time of that.
    Ready { over: Option<Version>, doubt: Option<Ticks> },
    /// The claim's result is unknown. The version is the one that it would write.
    Unknown { version: Version, doubt: Option<Ticks>, rule: Ticks },
    /// Held until the record says something else.
    Waiting,
    /// A probe found that the operation was executed.
    Found { version: Version },
    /// The claim stands; `rule` is how long the send rule holds.
    Claimed { version: Version, doubt: Option<Ticks>, rule: Ticks },
    /// Writing down how it ended, over the record last known.
    Settling { outcome: Outcome, known: Option<Entry> },
    /// Its client has an answer, or a refusal.
    Done,
    /// Its gateway died.
    Dead,
}

/// A request and what its gateway still does for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Request {
    pub stage: Stage,
    /// It was held: what it waited for may be gone altogether, and then it does not run.
    pub waited: bool,
    /// An unconfirmed claim has to be given up when the request ends otherwise than by running.
    pub owes: bool,
    /// The task that gives up a claim, with the record that it last saw.
    pub giving_up: Option<Option<Entry>>,
    /// How many tries to write its marker over nothing got no answer.
    pub markers: u8,
    /// Its claim over an uncertain record: the version that it writes, and how old the doubt is.
    pub again: Option<(Version, Ticks)>,
    pub wire: Wire,
}

/// What the upstream has of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Wire {
    /// No byte.
    Unsent,
    /// Some bytes; it acts only on all of them.
    Partial,
    /// All of it, in a queue; what is not begun after so many ticks is dropped.
    Queued(Ticks),
    /// It answered that it acted.
    Executed,
    /// It answered that it did nothing.
    Declined,
    /// Nothing more will come of it.
    Gone,
}

/// Faults and interventions that may still happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Budget {
    pub late: u8,
    pub crashes: u8,
    pub operator: u8,
}

/// What happened that must not: seen in a step, not in a state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Seen {
    pub two_answers: bool,
    pub stranger_answered: bool,
}

/// A state of the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct State {
    pub slot: Option<Held>,
    pub requests: [Request; REQUESTS_MAX],
    /// In order, so that equal sets are equal.
    pub late: [Option<Late>; LATE_MAX],
    /// How often the upstream acted, for each caller.
    pub executed: [u8; 2],
    /// What the first client got.
    pub answered: Option<Answer>,
    pub budget: Budget,
    pub seen: Seen,
}

impl Request {
    pub const IDLE: Request = Request {
        stage: Stage::Idle,
        waited: false,
        owes: false,
        giving_up: None,
        markers: 0,
        again: None,
        wire: Wire::Unsent,
    };

    /// Whether a claim of its own is unconfirmed, and known to be.
    pub fn is_giving_up(&self) -> bool {
        self.owes || self.giving_up.is_some()
    }

    fn tick(&mut self, runs_on: bool) {
        let older_entry = |known: &mut Option<Entry>| known.iter_mut().for_each(Entry::tick);
        match &mut self.stage {
            Stage::Ready { doubt, .. } => older(doubt),
            Stage::Unknown { doubt, rule, .. } | Stage::Claimed { doubt, rule, .. } => {
                older(doubt);
                if runs_on && *rule != UNREAD {
                    *rule = rule.saturating_sub(1);
                }
            }
            Stage::Settling { known, .. } => older_entry(known),
            Stage::Idle | Stage::Waiting | Stage::Found { .. } | Stage::Done | Stage::Dead => {}
        }
        self.giving_up.iter_mut().for_each(older_entry);
        if let Some((version, age)) = self.again {
            let mut age = Some(age);
            older(&mut age);
            self.again = age.map(|age| (version, age));
        }
        if let Wire::Queued(left) = self.wire {
            self.wire = if left > 1 { Wire::Queued(left - 1) } else { Wire::Gone };
        }
    }
}

impl Held {
    /// Since when its outcome is uncertain.
    pub fn uncertain_for(&self) -> Ticks {
        match self.entry.stand {
            Stand::Uncertain(since) => since.unwrap_or(self.age),
            _ => 0,
        }
    }
}

impl Entry {
    /// Whether both were written by the same call, as the store sees it.
    pub fn is_same_write(&self, other: &Entry) -> bool {
        let stand = |entry: &Entry| std::mem::discriminant(&entry.stand);
        (self.version, self.fence, stand(self)) == (other.version, other.fence, stand(other))
    }

    fn tick(&mut self) {
        match &mut self.stand {
            Stand::InFlight(since) | Stand::Uncertain(since) => older(since),
            Stand::Completed(_) | Stand::Released => {}
        }
    }
}

/// Ages are counted as far as a rule can tell them apart: up to `uncertain_after`.
pub const AGE_MAX: Ticks = crate::rules::UNCERTAIN_AFTER;

fn older(since: &mut Option<Ticks>) {
    if let Some(age) = since {
        *age = (*age + 1).min(AGE_MAX);
    }
}

impl State {
    /// Before anything happened.
    pub fn new(budget: Budget) -> State {
        State {
            slot: None,
            requests: [Request::IDLE; REQUESTS_MAX],
            late: [None; LATE_MAX],
            executed: [0; 2],
            answered: None,
            budget,
            seen: Seen::default(),
        }
    }

    /// How often the upstream acted.
    pub fn executions(&self) -> u8 {
        self.executed.iter().sum()
    }

    /// Time passes. The clocks of the requests for which `stopped` holds stand still.
    pub fn tick(&mut self, stopped: impl Fn(Id) -> bool) {
        if let Some(held) = &mut self.slot {
            held.entry.tick();
            held.due = held.due.saturating_sub(1);
            if held.entry.stand == Stand::Uncertain(None) {
                held.age = (held.age + 1).min(AGE_MAX);
            }
            if held.keep != FOREVER {
                held.keep -= 1;
                if held.keep == 0 {
                    self.slot = None;
                }
            }
        }
        for (id, request) in self.requests.iter_mut().enumerate() {
            request.tick(!stopped(id));
        }
        for place in &mut self.late {
            let Some(late) = place else { continue };
            late.left -= 1;
            if let Command::Swap { next, .. } = &mut late.command {
                next.entry.tick();
            }
            if late.left == 0 {
                *place = None;
            }
        }
        self.late.sort_unstable();
    }

    /// A command gets under way that nobody hears of any more. `None` where no more may.
    pub fn send_late(&mut self, command: Command, left: Ticks) -> Option<()> {
        let place = self.late.iter_mut().find(|place| place.is_none())?;
        self.budget.late = self.budget.late.checked_sub(1)?;
        *place = Some(Late { left, command });
        self.late.sort_unstable();
        Some(())
    }

    /// The store's one write verb. `Err` carries what stands.
    pub fn swap(
        &mut self,
        expected: Option<Version>,
        next: Next,
        unversioned_markers: bool,
    ) -> Result<(), Option<Held>> {
        if let Some(held) = &self.slot {
            if held.entry.is_same_write(&next.entry) {
                return Ok(());
            }
            let takes_any_marker = unversioned_markers
                && held.entry.stand == Stand::Released
                && held.entry.fence != next.entry.fence
                && matches!(next.entry.stand, Stand::InFlight(_));
            if expected != Some(held.entry.version) && !takes_any_marker {
                return Err(self.slot);
            }
        } else if expected.is_some() {
            return Err(None);
        }
        self.slot = Some(Held { entry: next.entry, due: next.due, keep: next.keep, age: 0 });
        Ok(())
    }

    /// Extends the lease of the attempt under way. EventSource whether it is this one. A lease that is over stays over: a renewal
    /// changes no version, so whoever has seen the end may still mark it.
    pub fn renew(&mut self, fence: u8, due: Ticks, keep: Ticks, ended_too: bool) -> bool {
        match &mut self.slot {
            Some(held)
                if held.entry.fence == fence
                    && matches!(held.entry.stand, Stand::InFlight(_))
                    && (held.due > 0 || ended_too) =>
            {
                (held.due, held.keep) = (due, keep);
                true
            }
            _ => false,
        }
    }
}
