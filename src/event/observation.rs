//! Observations: duplicates and refused requests, which changed no record. They may be lost.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::EventDecodeError;
use super::json::{Object, list};

/// Initial capacity per observation of a batch.
const USUAL_BYTES: usize = 160;

/// Most requests of one observation. Bounds the counters even if a batch contains nonsense.
const TIMES_MAX: u64 = u32::MAX as u64;

/// Kind of an observation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ObservationKind {
    /// The request was answered with the operation's result.
    Replayed,
    /// The request was answered with the operation's result after waiting for the first request.
    Waited,
    /// The request was refused.
    Refused,
    /// On a shadow route: enforcing would have answered with the operation's result, at once or
    /// after waiting.
    WouldReplay,
    /// On a shadow route: enforcing would have refused the request.
    WouldRefuse,
}

impl ObservationKind {
    /// Returns the name in a batch.
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
    /// JSON pointer into the request's body.
    pub pointer: String,
}

/// A duplicate or refused request, or several that are equal in all members but times.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Observation {
    /// Kind of the observation.
    pub kind: ObservationKind,
    /// Time of the request, or of the first of several, in ms since 1970 by the gateway's clock.
    pub at_ms: u64,
    /// Time of the last request, if there are several.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until_ms: Option<u64>,
    /// Number of requests; `None`: one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub times: Option<u64>,
    /// The operation reference; empty for a request of a shadow route that can't be identified.
    pub operation: String,
    /// The route.
    pub route: String,
    /// The mark of the tenant: all operations of one tenant have the same mark.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scope: Option<String>,
    /// Status of the answer; on a shadow route, the status that enforcing would have given, if
    /// known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// Waiting time in ms; for several requests, the longest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waited_ms: Option<u64>,
    /// Reason of the refusal: the short name of the problem's type.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
    /// Places that differ from the first request, if known.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub differing: Vec<Difference>,
    /// Id of the request's trace, or of the first of several, in 32 hexadecimal digits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trace: Option<String>,
}

/// Observations with common members: a batch is a list of such groups.
#[derive(Deserialize)]
struct ObservationGroup {
    kind: ObservationKind,
    route: String,
    scope: Option<String>,
    status: Option<u16>,
    problem: Option<String>,
    seen: Vec<GroupMember>,
}

/// Members of one observation in a group.
#[derive(Deserialize)]
struct GroupMember {
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
    /// Returns the number of requests.
    pub fn requests(&self) -> u64 {
        self.times.unwrap_or(1).clamp(1, TIMES_MAX)
    }

    /// Returns the time of the last request, in ms since 1970.
    pub fn last_ms(&self) -> u64 {
        self.until_ms.unwrap_or(self.at_ms).max(self.at_ms)
    }

    /// Adds one request.
    pub fn again(&mut self, at_ms: u64, waited_ms: Option<u64>) {
        self.times = Some(self.requests().saturating_add(1));
        (self.at_ms, self.until_ms) = (self.at_ms.min(at_ms), Some(self.last_ms().max(at_ms)));
        self.waited_ms = self.waited_ms.max(waited_ms);
    }

    /// Encodes a batch: a JSON array of groups, each with the members that its observations have in
    /// common.
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

    /// Writes the members that are not in the group.
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

    /// Decodes a batch. Unknown groups and members are ignored.
    ///
    /// # Errors
    /// The bytes are not a batch.
    pub fn decode(batch: &[u8]) -> Result<Vec<Observation>, EventDecodeError> {
        let groups: Vec<serde_json::Value> = serde_json::from_slice(batch)?;
        let known = groups.into_iter().filter_map(|group| serde_json::from_value(group).ok());
        Ok(known.flat_map(ObservationGroup::observations).collect())
    }
}

impl ObservationGroup {
    fn observations(self) -> Vec<Observation> {
        let ObservationGroup { kind, route, scope, status, problem, seen } = self;
        let of_group =
            |GroupMember { operation, at_ms, until_ms, times, waited_ms, differing, trace }| {
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
