//! Observations: what happened to requests that changed no record. They may be lost.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::EventDecodeError;
use super::json::{Object, list};

/// Room for one observation of a batch.
const USUAL_BYTES: usize = 160;

/// As many requests as one observation tells of at most: what counts them stays a number also where somebody wrote nonsense.
const TIMES_MAX: u64 = u32::MAX as u64;

/// What happened to a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ObservationKind {
    /// It was answered with the operation's result.
    Replayed,
    /// It was answered so after it had waited for the first request.
    Waited,
    /// It was refused.
    Refused,
    /// On a shadow route: enforcing would have answered it with the operation's result, at once or after waiting.
    WouldReplay,
    /// On a shadow route: enforcing would have refused it.
    WouldRefuse,
}

impl ObservationKind {
    /// Its name in a batch.
    pub fn name(self) -> &'static str {
        match self {
            ObservationKind::Replayed => "replayed",
            ObservationKind::Waited => "waited",
            ObservationKind::Refused => "refused",
            ObservationKind::WouldReplay => "would_replay",
            ObservationKind::WouldRefuse => "would_refuse",
        }
    }
}

/// A place in which a duplicate differs from the first request.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Difference {
    /// A JSON pointer into the request's body.
    pub pointer: String,
}

/// A request, as it was seen by its gateway: or several that were alike in all that is said here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Observation {
    /// What happened.
    pub kind: ObservationKind,
    /// When, in ms since 1970 by the gateway's clock; of several, the first.
    pub at_ms: u64,
    /// When the last of several came.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until_ms: Option<u64>,
    /// How many they are; `None`: one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub times: Option<u64>,
    /// The operation's public reference; empty where a request of a shadow route could not be told to be one.
    pub operation: String,
    /// The route.
    pub route: String,
    /// The scope's hash, shortened: operations of one tenant have the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scope: Option<String>,
    /// The status of the answer; of a shadow route's request the one that enforcing would have given, where that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// How long it waited, in ms; of several, the longest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waited_ms: Option<u64>,
    /// Why it was refused: the short name of the problem's type.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
    /// Where it differs from the first request, if that is known.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub differing: Vec<Difference>,
    /// The trace that the request belongs to: 32 hexadecimal digits. Of several, the first one's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trace: Option<String>,
}

/// Requests that have all this in common: a batch is a list of such groups.
#[derive(Deserialize)]
struct Group {
    kind: ObservationKind,
    route: String,
    scope: Option<String>,
    status: Option<u16>,
    problem: Option<String>,
    seen: Vec<Request>,
}

/// What each has of its own.
#[derive(Deserialize)]
struct Request {
    #[serde(default)]
    operation: String,
    at_ms: u64,
    until_ms: Option<u64>,
    times: Option<u64>,
    waited_ms: Option<u64>,
    #[serde(default)]
    differing: Vec<Difference>,
    trace: Option<String>,
}

impl Observation {
    /// How many requests it tells of.
    pub fn requests(&self) -> u64 {
        self.times.unwrap_or(1).clamp(1, TIMES_MAX)
    }

    /// When the last of them came, in ms since 1970.
    pub fn last_ms(&self) -> u64 {
        self.until_ms.unwrap_or(self.at_ms).max(self.at_ms)
    }

    /// One more of them came.
    pub fn again(&mut self, at_ms: u64, waited_ms: Option<u64>) {
        self.times = Some(self.requests().saturating_add(1));
        (self.at_ms, self.until_ms) = (self.at_ms.min(at_ms), Some(self.last_ms().max(at_ms)));
        self.waited_ms = self.waited_ms.max(waited_ms);
    }

    /// A batch as it is kept: a JSON array of groups, each with what its observations have in common.
    pub fn encode(batch: &[Observation]) -> Vec<u8> {
        let mut groups = BTreeMap::<_, Vec<&Observation>>::new();
        for one in batch {
            let Observation { kind, route, scope, status, problem, .. } = one;
            groups.entry((*kind, route, scope, *status, problem)).or_default().push(one);
        }
        let mut encoded = Vec::with_capacity(batch.len() * USUAL_BYTES);
        list(&mut encoded, groups, |out, ((kind, route, scope, status, problem), seen)| {
            let mut group = Object::begin(out);
            group.text("kind", kind.name());
            group.text("route", route);
            group.text_if("scope", scope.as_deref());
            group.number_if("status", status.map(u64::from));
            group.text_if("problem", problem.as_deref());
            list(group.name("seen"), seen, |out, one| one.encode_alone(out));
            group.end();
        });
        encoded
    }

    /// What it has of its own.
    fn encode_alone(&self, out: &mut Vec<u8>) {
        let mut one = Object::begin(out);
        if !self.operation.is_empty() {
            one.text("operation", &self.operation);
        }
        one.number("at_ms", self.at_ms);
        one.number_if("until_ms", self.until_ms);
        one.number_if("times", self.times);
        one.number_if("waited_ms", self.waited_ms);
        if !self.differing.is_empty() {
            list(one.name("differing"), &self.differing, |out, difference| {
                let mut place = Object::begin(out);
                place.text("pointer", &difference.pointer);
                place.end();
            });
        }
        one.text_if("trace", self.trace.as_deref());
        one.end();
    }

    /// Reads a batch. Groups that this version doesn't know, and members that it doesn't, are passed over.
    ///
    /// # Errors
    /// It is no batch.
    pub fn decode(batch: &[u8]) -> Result<Vec<Observation>, EventDecodeError> {
        let groups: Vec<serde_json::Value> = serde_json::from_slice(batch)?;
        let known = groups.into_iter().filter_map(|group| serde_json::from_value(group).ok());
        Ok(known.flat_map(Group::observations).collect())
    }
}

impl Group {
    fn observations(self) -> Vec<Observation> {
        let Group { kind, route, scope, status, problem, seen } = self;
        let of_group =
            |Request { operation, at_ms, until_ms, times, waited_ms, differing, trace }| {
                Observation {
                    kind,
                    at_ms,
                    until_ms,
                    times,
                    operation,
                    route: route.clone(),
                    scope: scope.clone(),
                    status,
                    waited_ms,
                    problem: problem.clone(),
                    differing,
                    trace,
                }
            };
        seen.into_iter().map(of_group).collect()
    }
}
