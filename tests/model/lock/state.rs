//! The state of the model: the records of the operations and of the lock, the attempts, sweepers,
//! store writes in transit, and the upstream.

pub const GATEWAYS: usize = 2;
pub const OPERATIONS: usize = 2;
pub const ATTEMPTS_MAX: usize = 4;
pub const SWEEPERS_MAX: usize = 2;
pub const LATE_MAX: usize = 2;

/// The number of an attempt. Also its fence.
pub type Id = usize;
/// The number of an operation.
pub type Operation = u8;
/// Counts the changes of a record.
pub type Version = u16;
/// The fence of operators' decisions.
pub const OPERATOR: u8 = 20;
/// The fences of locks that sweepers free start here.
pub const SWEEPERS: u8 = 10;

/// Whether a time is at least `uncertain_after` ago.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Age {
    Fresh,
    Rested,
}

/// The lease of a claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Lease {
    Runs,
    Ended,
    /// Ended so long ago that the lock of the attempt may have ended, too.
    EndedLongAgo,
}

/// The state of an operation: [`State`](onceward::record::State) without the parts that no rule
/// reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Stand {
    /// With the age of the uncertainty, for an attempt from uncertain.
    InFlight(Option<Age>),
    Uncertain {
        age: Age,
        /// Whether the record names the time since when it is uncertain. If not, it is the time at
        /// which the record was written.
        is_given: bool,
        /// The fence of the lost attempt, if an operator lets the next duplicate run.
        retry: Option<u8>,
    },
    Completed,
    Released,
}

/// The record of an operation, as one write writes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Entry {
    pub version: Version,
    pub fence: u8,
    pub stand: Stand,
}

/// The record of an operation in the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Held {
    pub entry: Entry,
    /// The lease of the last claim.
    pub lease: Lease,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Phase {
    Free,
    Looking,
    Sent,
}

/// The record of the lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Lock {
    pub version: Version,
    pub fence: u8,
    pub operation: Operation,
    pub phase: Phase,
}

/// A write to the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Write {
    /// Writes a lock, into the lock's slot with this number.
    Lock {
        slot: usize,
        expected: Option<Version>,
        next: Lock,
    },
    Operation {
        operation: Operation,
        expected: Option<Version>,
        next: Entry,
    },
}

/// What an attempt observed of its exchange with the upstream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Outcome {
    Answered,
    Declined,
    NeverSent,
    InDoubt,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Stage {
    Idle,
    /// Has claimed its operation. Wants the lock.
    Claimed,
    /// About to write its lock over this version.
    Taking(Option<Version>),
    /// Holds the lock. About to look.
    Looking,
    /// Has compared the version. About to mark the lock as sent.
    Compared,
    /// May send.
    Ready,
    /// Waits for the upstream's answer.
    Sent,
    /// Has tried to write its outcome, without an answer.
    Settling(Outcome),
    /// It has ended, or its gateway died.
    Done,
}

/// The upstream's progress with a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Wire {
    Unsent,
    /// The upstream may execute it.
    Queued,
    /// It answered that it executed it.
    Executed,
    /// It answered that it did nothing.
    Declined,
    /// It does nothing more with it.
    Gone,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Attempt {
    pub stage: Stage,
    /// The version of its claim.
    pub claim: Version,
    /// For an attempt from uncertain: the age of the uncertainty.
    pub doubt: Option<Age>,
    /// Whether the send rule allows sending.
    pub may_send: bool,
    /// The version that its client names.
    pub condition: u8,
    /// The version that its look found. It is compared with the condition, if there is one.
    pub seen: u8,
    /// The lock as it wrote it.
    pub lock: Option<(Version, Phase)>,
    pub wire: Wire,
}

/// A process that has found an operation with an ended lease, and a lock that it may free.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Sweep {
    pub operation: Operation,
    pub found: Held,
    pub stage: SweepStage,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum SweepStage {
    /// About to free the lock.
    Freeing { expected: Version, next: Lock },
    /// Has freed the lock. About to release the operation.
    Releasing,
}

/// Faults and interventions that may still happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Budget {
    pub late: u8,
    pub decisions: u8,
    /// Times for which all gateways are down for long.
    pub outages: u8,
    /// Requests that the upstream declines.
    pub declines: u8,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct State {
    /// The version of the resource.
    pub version: u8,
    /// Executions of each operation.
    pub executed: [u8; OPERATIONS],
    pub operations: [Option<Held>; OPERATIONS],
    /// The lock of the resource. The second slot is unused, except by a flaw.
    pub locks: [Option<Lock>; OPERATIONS],
    pub attempts: [Attempt; ATTEMPTS_MAX],
    /// Sorted, because sweepers are alike.
    pub sweeps: [Option<Sweep>; SWEEPERS_MAX],
    /// Sorted, so that equal sets are equal.
    pub late: [Option<Write>; LATE_MAX],
    /// The version of the lock that a gateway remembers as free.
    pub known: [Option<Version>; GATEWAYS],
    pub budget: Budget,
    /// Whether a write replaced another version than the one that it was compared with.
    pub is_lost_update: bool,
}

impl Attempt {
    pub const IDLE: Attempt = Attempt {
        stage: Stage::Idle,
        claim: 0,
        doubt: None,
        may_send: false,
        condition: 0,
        seen: 0,
        lock: None,
        wire: Wire::Unsent,
    };

    /// Whether its gateway still works on it.
    pub fn is_active(&self) -> bool {
        !matches!(self.stage, Stage::Idle | Stage::Done)
    }
}

impl Stand {
    pub fn is_in_flight(self) -> bool {
        matches!(self, Stand::InFlight(_))
    }

    /// The age of the uncertainty.
    pub fn doubt(self) -> Option<Age> {
        match self {
            Stand::InFlight(age) => age,
            Stand::Uncertain { age, .. } => Some(age),
            Stand::Completed | Stand::Released => None,
        }
    }

    /// Lets `uncertain_after` pass.
    fn rest(&mut self) {
        if let Stand::InFlight(Some(age)) | Stand::Uncertain { age, .. } = self {
            *age = Age::Rested;
        }
    }

    /// Whether a store takes both for the same state.
    fn is_same(self, other: Stand) -> bool {
        std::mem::discriminant(&self) == std::mem::discriminant(&other)
    }
}

impl State {
    pub fn new(budget: Budget) -> State {
        State {
            version: 0,
            executed: [0; OPERATIONS],
            operations: [None; OPERATIONS],
            locks: [None; OPERATIONS],
            attempts: [Attempt::IDLE; ATTEMPTS_MAX],
            sweeps: [None; SWEEPERS_MAX],
            late: [None; LATE_MAX],
            known: [None; GATEWAYS],
            budget,
            is_lost_update: false,
        }
    }

    pub fn operation(&self, operation: Operation) -> Option<&Held> {
        self.operations[usize::from(operation)].as_ref()
    }

    /// The store's only write command. Returns whether the record was written, now or earlier by
    /// the same write.
    pub fn write(&mut self, write: Write) -> bool {
        match write {
            Write::Lock { slot, expected, next } => {
                let current = self.locks[slot];
                let is_same = current
                    .is_some_and(|lock| (lock.version, lock.fence) == (next.version, next.fence));
                let is_written = expected == current.map(|lock| lock.version);
                if is_written && !is_same {
                    self.locks[slot] = Some(next);
                }
                is_written || is_same
            }
            Write::Operation { operation, expected, next } => {
                let current = &mut self.operations[usize::from(operation)];
                let is_same = current.is_some_and(|Held { entry, .. }| {
                    (entry.version, entry.fence) == (next.version, next.fence)
                        && entry.stand.is_same(next.stand)
                });
                let is_written = expected == current.map(|held| held.entry.version);
                if is_written && !is_same {
                    let lease = match (next.stand, &current) {
                        (Stand::InFlight(_), _) | (_, None) => Lease::Runs,
                        (_, Some(held)) => held.lease,
                    };
                    *current = Some(Held { entry: next, lease });
                }
                is_written || is_same
            }
        }
    }

    /// Starts a write without an answer. Returns `None` at the limit of such writes.
    pub fn send_late(&mut self, write: Write) -> Option<()> {
        let place = self.late.iter_mut().find(|place| place.is_none())?;
        self.budget.late = self.budget.late.checked_sub(1)?;
        *place = Some(write);
        self.late.sort_unstable();
        Some(())
    }

    /// Lets `uncertain_after` pass since the operation became uncertain.
    pub fn rest(&mut self, operation: Operation, of: impl Fn(Id) -> bool) -> Option<()> {
        let held = self.operations[usize::from(operation)].as_mut()?;
        (held.entry.stand.doubt()? == Age::Fresh).then_some(())?;
        held.entry.stand.rest();
        let active = held.entry.stand.is_in_flight().then_some(held.entry.fence);
        let older = |write: &mut Write| match write {
            Write::Operation { operation: of, next, .. } if *of == operation => match next.stand {
                Stand::Uncertain { is_given: false, .. } => {}
                _ => next.stand.rest(),
            },
            _ => {}
        };
        self.late.iter_mut().flatten().for_each(older);
        self.late.sort_unstable();
        for sweep in self.sweeps.iter_mut().flatten() {
            if sweep.operation == operation {
                sweep.found.entry.stand.rest();
            }
        }
        self.lose(|id| of(id) && active != Some(id as u8));
        for (_, attempt) in self.attempts.iter_mut().enumerate().filter(|(id, _)| of(*id)) {
            attempt.doubt = attempt.doubt.map(|_| Age::Rested);
        }
        Some(())
    }

    /// The upstream executes nothing of these attempts any more.
    pub fn lose(&mut self, of: impl Fn(Id) -> bool) {
        for (_, attempt) in self.attempts.iter_mut().enumerate().filter(|(id, _)| of(*id)) {
            if attempt.wire == Wire::Queued {
                attempt.wire = Wire::Gone;
            }
        }
    }
}
