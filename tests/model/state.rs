//! The state of the model: the record, requests, active store commands, the upstream.
//!
//! Time is relative: a deadline is the number of ticks left, and an age is the number of ticks
//! since then. States that differ only in the date are therefore equal, and the model is finite
//! without a last day.

/// Ticks left, or ticks that have passed.
pub type Ticks = u8;

/// Never ends. Not counted down.
pub const FOREVER: Ticks = Ticks::MAX;

/// The claim's answer was not read yet, and the send rule does not count
/// ([`Flaw::CountsFromTheAnswer`](crate::rules::Flaw)).
pub const UNREAD: Ticks = Ticks::MAX;

/// The largest number of requests in a model, under one key.
pub const REQUESTS_MAX: usize = 3;

/// The largest number of store commands that can be active unnoticed at one time.
pub const LATE_MAX: usize = 2;

/// Counts a record's changes.
pub type Version = u16;

/// Identifies a request. Also its fence: a request keeps one fence through all its tries.
pub type Id = usize;

/// The fence of operators' decisions.
pub const OPERATOR: u8 = 9;

/// The caller of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Who {
    /// Usually the first user of the key.
    Alice,
    /// Another caller with the same key.
    Stranger,
}

/// A response. No two are equal: the `Date` alone would distinguish an attempt's own copy from the
/// stored one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Answer {
    /// The upstream's answer to this request.
    Upstream(u8),
    /// An operator's manual outcome.
    Operator,
    /// A probe's outcome.
    Probe,
}

/// The state of an operation: [`State`](onceward::record::State) without the parts that no rule
/// reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Stand {
    /// An attempt is active. One that began from uncertain keeps the time since then.
    InFlight(Option<Ticks>),
    /// The outcome is uncertain. `None`: since the record was written.
    Uncertain(Option<Ticks>),
    /// Duplicates get this response.
    Completed(Answer),
    /// A released marker.
    Released,
}

/// A record as written by one write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Entry {
    pub version: Version,
    pub fence: u8,
    pub who: Option<Who>,
    pub stand: Stand,
}

/// A write, with the lifetime of the record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Next {
    pub entry: Entry,
    /// The lease; 0 without one.
    pub due: Ticks,
    pub keep: Ticks,
}

/// The record as the store holds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Held {
    pub entry: Entry,
    pub due: Ticks,
    pub keep: Ticks,
    /// Ticks since it was written; counted only where a rule needs it.
    pub age: Ticks,
}

/// A store command.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Command {
    Swap { expected: Option<Version>, next: Next },
    Renew { fence: u8 },
}

/// A command without an answer: it is carried out later, or never.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Late {
    pub left: Ticks,
    pub command: Command,
}

/// The settled outcome of an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// The upstream's result.
    Answered,
    /// The upstream's release status: it did not execute the request.
    Declined,
    NeverSent,
    InDoubt,
}

/// The stage of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Stage {
    /// Its client has not sent it yet.
    Idle,
    /// About to claim over this version. Over an uncertain record, with the time since then.
    Ready { over: Option<Version>, doubt: Option<Ticks> },
    /// The claim's result is unknown. The version is the one that the claim would write.
    Unknown { version: Version, doubt: Option<Ticks>, rule: Ticks },
    /// Held until the record changes.
    Waiting,
    /// A probe found that the operation was executed.
    Found { version: Version },
    /// The claim is stored; `rule` is the time that the send rule still holds.
    Claimed { version: Version, doubt: Option<Ticks>, rule: Ticks },
    /// Writes its outcome over the last known record.
    Settling { outcome: Outcome, known: Option<Entry> },
    /// Its client has an answer, or a refusal.
    Done,
    /// Its gateway died.
    Dead,
}

/// A request, and the tasks that its gateway still runs for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Request {
    pub stage: Stage,
    /// The request was held. If the record that it waited for is gone, it does not run.
    pub waited: bool,
    /// An unconfirmed claim must be given up when the request ends without running.
    pub owes: bool,
    /// The task that gives up a claim, with the last record that it read.
    pub giving_up: Option<Option<Entry>>,
    /// The number of tries to write its marker over nothing that got no answer.
    pub markers: u8,
    /// Its claim over an uncertain record: the version that it writes, and the age of the
    /// uncertainty.
    pub again: Option<(Version, Ticks)>,
    pub wire: Wire,
}

/// The upstream's progress with a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Wire {
    /// No byte.
    Unsent,
    /// Some bytes arrived; the upstream acts only on a complete request.
    Partial,
    /// The whole request waits in a queue. It is dropped if it does not begin within this number of
    /// ticks.
    Queued(Ticks),
    /// It answered that it acted.
    Executed,
    /// It answered that it did not act.
    Declined,
    /// The upstream does nothing more with it.
    Gone,
}

/// Faults and interventions that may still happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Budget {
    pub late: u8,
    pub crashes: u8,
    pub operator: u8,
}

/// Violations that are visible in a step but not in a state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct StepViolations {
    pub two_answers: bool,
    pub stranger_answered: bool,
}

/// A state of the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct State {
    pub slot: Option<Held>,
    pub requests: [Request; REQUESTS_MAX],
    /// Sorted, so that equal sets are equal.
    pub late: [Option<Late>; LATE_MAX],
    /// The number of executions for each caller.
    pub executed: [u8; 2],
    /// The first client's answer.
    pub answered: Option<Answer>,
    pub budget: Budget,
    pub violations: StepViolations,
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

    /// Whether a claim of its own is unconfirmed, and the gateway knows it.
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
    /// The time since its outcome became uncertain.
    pub fn uncertain_for(&self) -> Ticks {
        match self.entry.stand {
            Stand::Uncertain(since) => since.unwrap_or(self.age),
            _ => 0,
        }
    }
}

impl Entry {
    /// Whether the same call wrote both, from the store's view.
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

/// Counts an age up to `uncertain_after`: no rule distinguishes longer ones.
pub const AGE_MAX: Ticks = crate::rules::UNCERTAIN_AFTER;

fn older(since: &mut Option<Ticks>) {
    if let Some(age) = since {
        *age = (*age + 1).min(AGE_MAX);
    }
}

impl State {
    /// The state before the first step.
    pub fn new(budget: Budget) -> State {
        State {
            slot: None,
            requests: [Request::IDLE; REQUESTS_MAX],
            late: [None; LATE_MAX],
            executed: [0; 2],
            answered: None,
            budget,
            violations: StepViolations::default(),
        }
    }

    /// Returns the number of executions.
    pub fn executions(&self) -> u8 {
        self.executed.iter().sum()
    }

    /// Advances time by a tick. The clocks of the requests for which `stopped` is true stand still.
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

    /// Starts a command without an answer. Returns `None` at the limit of such commands.
    pub fn send_late(&mut self, command: Command, left: Ticks) -> Option<()> {
        let place = self.late.iter_mut().find(|place| place.is_none())?;
        self.budget.late = self.budget.late.checked_sub(1)?;
        *place = Some(Late { left, command });
        self.late.sort_unstable();
        Some(())
    }

    /// The store's only write command. `Err` has the current record.
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

    /// Extends the lease of the current attempt. Returns whether this is the current attempt. An
    /// expired lease stays expired: a renewal changes no version, so a process that has read the
    /// expired lease may still mark it.
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
