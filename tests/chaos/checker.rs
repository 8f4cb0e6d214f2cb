//! The checker: reads a run's history and reports broken promises.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use crate::harness::Answer;

/// The parts of a final answer that must not change: status, end-to-end fields, body.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct FinalAnswer {
    pub status: u16,
    pub fields: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl FinalAnswer {
    pub fn of(answer: &Answer) -> FinalAnswer {
        // Fields of the connection, and fields that each answer gets anew.
        const OUTSIDE: [&str; 5] =
            ["connection", "keep-alive", "transfer-encoding", "via", "idempotent-replayed"];
        let mut fields = answer.fields.clone();
        fields.retain(|(name, _)| !OUTSIDE.contains(&name.as_str()));
        fields.sort();
        FinalAnswer { status: answer.status, fields, body: answer.body.clone() }
    }

    /// Returns the execution in the answer.
    pub fn execution(&self) -> Option<u64> {
        serde_json::from_slice::<serde_json::Value>(&self.body).ok()?["payment"].as_u64()
    }
}

/// A client's result of one try.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Saw {
    /// The answer of its operation.
    Final { answer: FinalAnswer, replayed: bool },
    /// A refusal: the same request may be sent again.
    Again(String),
    /// A refusal that allows a retry: the first outcome is unknown.
    Uncertain,
    /// A refusal without a retry, for this reason.
    Refused(String),
    /// No answer.
    Broken,
    /// The client left before an answer.
    Left,
}

/// A try, with times since the tests began.
#[derive(Debug, Clone)]
pub struct Try {
    pub key: usize,
    pub gateway: usize,
    pub from: Duration,
    pub to: Duration,
    pub saw: Saw,
}

/// The kind of an outage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lack {
    /// The gateway was killed or stopped.
    Life,
    /// The gateway could not reach the store.
    Store,
}

/// The time of a gateway's outage.
#[derive(Debug, Clone)]
pub struct Outage {
    pub gateway: usize,
    pub from: Duration,
    pub to: Duration,
    pub lack: Lack,
}

/// The complete history of a run.
#[derive(Debug, Clone, Default)]
pub struct History {
    pub keys: usize,
    pub tries: Vec<Try>,
    /// The ledger: the executions of each key.
    pub executed: HashMap<usize, Vec<u64>>,
    /// The keys that a gateway wrote a byte of to the upstream, and when that was first observed.
    pub written: HashMap<usize, Duration>,
    pub outages: Vec<Outage>,
    /// Each gateway's answer at the end, for each key with a final answer. `None` if that is no
    /// final answer.
    pub replays: Vec<(usize, usize, Option<FinalAnswer>)>,
    /// Operations in flight or uncertain at the end of the time to settle, or keys without an
    /// answer, if more.
    pub unsettled: usize,
}

/// A broken promise.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Violation {
    /// A key has more than one execution.
    ExecutedAgain { key: usize, executions: usize },
    /// Final answers of a key differ.
    AnswersDiffer { key: usize },
    /// A final answer has no matching execution of its key.
    Invented { key: usize },
    /// More than one answer of a key is not marked as a replay.
    NotMarked { key: usize },
    /// A final answer is not repeated at the end.
    Lost { key: usize, gateway: usize },
    /// An outcome was uncertain although nothing was written and no gateway with the request
    /// failed.
    NeedlesslyUncertain { key: usize },
    /// A client got a refusal without a retry.
    Refused { key: usize, why: String },
    /// Too many operations stayed unsettled.
    Unsettled { operations: usize },
}

impl Violation {
    /// The history of the violation.
    pub fn key(&self) -> Option<usize> {
        match self {
            Violation::ExecutedAgain { key, .. }
            | Violation::AnswersDiffer { key }
            | Violation::Invented { key }
            | Violation::NotMarked { key }
            | Violation::Lost { key, .. }
            | Violation::NeedlesslyUncertain { key }
            | Violation::Refused { key, .. } => Some(*key),
            Violation::Unsettled { .. } => None,
        }
    }
}

/// The percentage of keys that must be settled at the end of the time to settle.
const SETTLED_PERCENT: usize = 95;

/// Returns the broken promises, each once, in order.
pub fn check(history: &History) -> Vec<Violation> {
    let mut found = Vec::new();
    for (key, executions) in &history.executed {
        if executions.len() > 1 {
            found.push(Violation::ExecutedAgain { key: *key, executions: executions.len() });
        }
    }
    for (key, finals) in finals(history) {
        let executed = history.executed.get(&key).map_or(&[][..], Vec::as_slice);
        let first = finals[0].0;
        if finals.iter().any(|(answer, _)| *answer != first) {
            found.push(Violation::AnswersDiffer { key });
        }
        if finals.iter().any(|(answer, _)| {
            answer.execution().is_none_or(|execution| !executed.contains(&execution))
        }) {
            found.push(Violation::Invented { key });
        }
        if finals.iter().filter(|(_, replayed)| !replayed).count() > 1 {
            found.push(Violation::NotMarked { key });
        }
        let mut kept = history.replays.iter().filter(|(of, ..)| *of == key).peekable();
        if kept.peek().is_none() {
            found.push(Violation::Lost { key, gateway: 0 });
        }
        found.extend(kept.filter_map(|(_, gateway, answer)| match answer {
            Some(answer) if answer == first => None,
            _ => Some(Violation::Lost { key, gateway: *gateway }),
        }));
    }
    for attempt in &history.tries {
        match &attempt.saw {
            Saw::Uncertain if !may_be_uncertain(history, attempt) => {
                found.push(Violation::NeedlesslyUncertain { key: attempt.key });
            }
            Saw::Refused(why) => {
                found.push(Violation::Refused { key: attempt.key, why: why.clone() })
            }
            _ => {}
        }
    }
    if history.unsettled * 100 > history.keys * (100 - SETTLED_PERCENT) {
        found.push(Violation::Unsettled { operations: history.unsettled });
    }
    found.sort();
    found.dedup();
    found
}

/// The final answers of each key, and whether they were marked as replays.
fn finals(history: &History) -> BTreeMap<usize, Vec<(&FinalAnswer, bool)>> {
    let mut finals: BTreeMap<usize, Vec<(&FinalAnswer, bool)>> = BTreeMap::new();
    for attempt in &history.tries {
        if let Saw::Final { answer, replayed } = &attempt.saw {
            finals.entry(attempt.key).or_default().push((answer, *replayed));
        }
    }
    finals
}

/// The longest time after the store is back in which a gateway gives up an unused claim.
const GIVING_UP: Duration = Duration::from_secs(4);

/// The longest delay, after the client's answer, until a proxy observes an earlier write.
const SEEING: Duration = Duration::from_secs(1);

/// Whether an uncertain outcome had a reason: a byte was written to the upstream before, or a
/// gateway with an earlier request was killed, stopped, or prevented from giving its claim up.
fn may_be_uncertain(history: &History, seen: &Try) -> bool {
    let earlier = || {
        history.tries.iter().filter(|earlier| earlier.key == seen.key && earlier.from <= seen.to)
    };
    let had_it = |outage: &Outage, earlier: &Try| {
        // Without an answer, the gateway's working time is unknown.
        let open = matches!(earlier.saw, Saw::Left | Saw::Broken);
        earlier.gateway == outage.gateway
            && earlier.from <= outage.to
            && (open || earlier.to >= outage.from)
    };
    let explains = |outage: &Outage| {
        let over = outage.lack == Lack::Store && outage.to + GIVING_UP < seen.from;
        outage.from <= seen.to && !over && earlier().any(|earlier| had_it(outage, earlier))
    };
    let written = history.written.get(&seen.key);
    written.is_some_and(|written| *written <= seen.to + SEEING)
        || history.outages.iter().any(explains)
}

#[cfg(test)]
mod tests;
