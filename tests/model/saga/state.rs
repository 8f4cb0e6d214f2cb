//! The state of the model: the saga's record, the gateways, the slots and the upstream.

use onceward::saga::log::StepDirection;

pub const GATEWAYS: usize = 2;
pub const SAGAS: usize = 2;
pub const STEPS: usize = 3;
/// Generations of a key that are distinguished.
pub const GENERATIONS: usize = 2;
pub const SLOTS: usize = SAGAS * STEPS * 2 * GENERATIONS;

/// The number of a log in [`Rules`](super::rules::Rules).
pub type LogId = u16;

/// An operation of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Operation {
    pub saga: u8,
    pub step: u8,
    pub direction: StepDirection,
    pub generation: u8,
}

/// The record of an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SlotRecord {
    Absent,
    /// This gateway runs an attempt.
    InFlight(u8),
    Uncertain,
    Done,
    Refused,
    Released,
    Barred,
}

/// The slot of an operation, and what the upstream did with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Slot {
    pub record: SlotRecord,
    /// Number of executions. Those by hand count, too.
    pub executed: u8,
    /// The request waits at the upstream, which executes it later or never.
    pub queued: bool,
}

/// The saga's record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Record {
    pub saga: u8,
    pub owner: u8,
    pub log: LogId,
}

/// What a gateway remembers of the saga that it owns, or owned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Memory {
    pub saga: u8,
    /// Whether the record still has the version that the gateway read or wrote last.
    pub is_current: bool,
    pub log: LogId,
}

/// Faults and interventions that may still happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Budget {
    /// Requests of the client that begin a saga.
    pub sagas: u8,
    /// Gateways that take the saga from an owner that only sleeps.
    pub takeovers: u8,
    pub deaths: u8,
    /// A timeout or a cancel.
    pub turns: u8,
    pub refusals: u8,
    pub releases: u8,
    /// Attempts without a known outcome.
    pub doubts: u8,
    /// Retries of a definite no.
    pub retries: u8,
    /// Times in which all settled records end.
    pub lives: u8,
}

/// Violations that are visible in a step but not in a state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct StepViolations {
    pub out_of_order: bool,
    pub in_doubt: bool,
    pub after_undo: bool,
}

/// How a saga ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum End {
    Completed,
    Failed,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct State {
    pub record: Option<Record>,
    pub memories: [Option<Memory>; GATEWAYS],
    pub slots: [Slot; SLOTS],
    pub ends: [Option<End>; SAGAS],
    /// Whether longer has passed than a record lives.
    pub is_old: bool,
    pub budget: Budget,
    pub violations: StepViolations,
}

impl Slot {
    const EMPTY: Slot = Slot { record: SlotRecord::Absent, executed: 0, queued: false };

    pub fn is_unsettled(&self) -> bool {
        matches!(self.record, SlotRecord::InFlight(_) | SlotRecord::Uncertain) || self.queued
    }
}

impl Operation {
    pub fn index(self) -> usize {
        let direction = usize::from(self.direction == StepDirection::Compensation);
        let place = (usize::from(self.saga) * STEPS + usize::from(self.step)) * 2 + direction;
        place * GENERATIONS + usize::from(self.generation).min(GENERATIONS - 1)
    }

    /// Returns all operations of a saga.
    pub fn all(saga: u8) -> impl Iterator<Item = Operation> {
        let directions = [StepDirection::Action, StepDirection::Compensation];
        let of_step = move |step| {
            directions.into_iter().flat_map(move |direction| {
                (0..GENERATIONS as u8).map(move |generation| Operation {
                    saga,
                    step,
                    direction,
                    generation,
                })
            })
        };
        (0..STEPS as u8).flat_map(of_step)
    }
}

impl State {
    pub fn new(budget: Budget) -> State {
        State {
            record: None,
            memories: [None; GATEWAYS],
            slots: [Slot::EMPTY; SLOTS],
            ends: [None; SAGAS],
            is_old: false,
            budget,
            violations: StepViolations::default(),
        }
    }

    /// Changes the record. Only `writer` has its version then.
    pub fn change_record(&mut self, writer: Option<u8>) {
        for (gateway, memory) in self.memories.iter_mut().enumerate() {
            if let Some(memory) = memory {
                memory.is_current = writer == Some(gateway as u8);
            }
        }
    }

    /// Names the gateways so that the first one owns the saga: they are alike.
    pub fn rename_gateways(&mut self) {
        let Some(record) = self.record.as_mut().filter(|record| record.owner == 1) else { return };
        record.owner = 0;
        self.memories.swap(0, 1);
        for slot in &mut self.slots {
            if let SlotRecord::InFlight(gateway) = &mut slot.record {
                *gateway = 1 - *gateway;
            }
        }
    }

    /// Returns the number of executions of a step's operations, under all keys.
    pub fn executions(&self, saga: u8, step: u8, direction: StepDirection) -> u8 {
        let generations = 0..GENERATIONS as u8;
        let of = |generation| Operation { saga, step, direction, generation };
        generations.map(|generation| self.slots[of(generation).index()].executed).sum()
    }
}
