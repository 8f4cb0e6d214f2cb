//! The checker: reads a run's history, and says where a promise was broken.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use crate::harness::Answer;

/// A final answer as far as it has to stay the same: status, end-to-end fields, body.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Told {
    pub status: u16,
    pub fields: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Told {
    pub fn of(answer: &Answer) -> Told {
        // Of the connection, or added to each answer anew.
        const OUTSIDE: [&str; 5] =
            ["connection", "keep-alive", "transfer-encoding", "via", "idempotent-replayed"];
        let mut fields = answer.fields.clone();
        fields.retain(|(name, _)| !OUTSIDE.contains(&name.as_str()));
        fields.sort();
        Told { status: answer.status, fields, body: answer.body.clone() }
    }

    /// The execution that it is the answer of.
    fn execution(&self) -> Option<u64> {
        serde_json::from_slice::<serde_json::Value>(&self.body).ok()?["payment"].as_u64()
    }
}

/// What a client saw of one try.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Saw {
    /// The answer of its operation.
    Final { told: Told, replayed: bool },
    /// That the same request may be sent again.
    Again(String),
    /// The same, because nobody knows yet what became of the first.
    Uncertain,
    /// That it may not be sent again, for this reason.
    Refused(String),
    /// No answer.
    Broken,
    /// It did not wait for one.
    Left,
}

/// A try, in time since the tests began.
#[derive(Debug, Clone)]
pub struct Try {
    pub key: usize,
    pub gateway: usize,
    pub from: Duration,
    pub to: Duration,
    pub saw: Saw,
}

/// What a gateway was kept from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lack {
    /// From running: it was killed or stopped.
    Life,
    /// From reaching the store.
    Store,
}

/// A time during which a gateway lacked something.
#[derive(Debug, Clone)]
pub struct Outage {
    pub gateway: usize,
    pub from: Duration,
    pub to: Duration,
    pub lack: Lack,
}

/// All that is known of a run when it is over.
#[derive(Debug, Clone, Default)]
pub struct History {
    pub keys: usize,
    pub tries: Vec<Try>,
    /// The ledger: the executions of each key.
    pub executed: HashMap<usize, Vec<u64>>,
    /// Keys of which a gateway wrote a byte to the upstream, and when that was first seen.
    pub written: HashMap<usize, Duration>,
    pub outages: Vec<Outage>,
    /// What each gateway answers in the end to those whose answer was final; `None` where that is no final answer.
    pub replays: Vec<(usize, usize, Option<Told>)>,
    /// Operations that were in flight or uncertain at the end of the time to settle, or keys without an answer, if more.
    pub unsettled: usize,
}

/// A promise that was broken.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Violation {
    /// A key has more than one execution.
    ExecutedAgain { key: usize, executions: usize },
    /// Final answers of a key differ.
    AnswersDiffer { key: usize },
    /// A final answer is of no execution of its key.
    Invented { key: usize },
    /// More than one answer of a key passes for the first.
    NotMarked { key: usize },
    /// What was answered is not answered in the end.
    Lost { key: usize, gateway: usize },
    /// An outcome was called uncertain although nothing was written and no gateway failed that had the request.
    NeedlesslyUncertain { key: usize },
    /// A client was told to give up.
    Refused { key: usize, why: String },
    /// Too much was left in doubt.
    Unsettled { operations: usize },
}

impl Violation {
    /// The history that it is about.
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

/// Of a hundred keys, how many have to be settled when the time to settle is over.
const SETTLED_PERCENT: usize = 95;

/// Says what was broken, each once, in order.
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
        if finals.iter().any(|(told, _)| *told != first) {
            found.push(Violation::AnswersDiffer { key });
        }
        if finals.iter().any(|(told, _)| {
            told.execution().is_none_or(|execution| !executed.contains(&execution))
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
        found.extend(kept.filter_map(|(_, gateway, told)| match told {
            Some(told) if told == first => None,
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
fn finals(history: &History) -> BTreeMap<usize, Vec<(&Told, bool)>> {
    let mut finals: BTreeMap<usize, Vec<(&Told, bool)>> = BTreeMap::new();
    for attempt in &history.tries {
        if let Saw::Final { told, replayed } = &attempt.saw {
            finals.entry(attempt.key).or_default().push((told, *replayed));
        }
    }
    finals
}

/// How long after the store is back a gateway may take to give up a claim that it did not use.
const GIVING_UP: Duration = Duration::from_secs(4);

/// How much later than the client's answer a proxy may see what was written before it.
const SEEING: Duration = Duration::from_secs(1);

/// Whether there was a reason to call a key's outcome uncertain: a byte was written to the upstream before, or a gateway
/// that had the request before was killed, stopped, or kept from giving its claim up.
fn may_be_uncertain(history: &History, seen: &Try) -> bool {
    let earlier = || {
        history.tries.iter().filter(|earlier| earlier.key == seen.key && earlier.from <= seen.to)
    };
    let had_it = |outage: &Outage, earlier: &Try| {
        // Without an answer nobody knows how long the gateway was at it.
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
