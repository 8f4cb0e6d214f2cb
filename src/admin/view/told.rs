//! What the read model tells, as JSON: an operation's timeline, statistics, the overview.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::OperationView;
use crate::clock::rfc3339;
use crate::event::EventKind;
use crate::read_model::{
    HourRow, Latency, MinuteRow, Moment, MomentDetail, Operation, OperationState, Overview, Tally,
    Timeline,
};

/// An operation from its beginning to now, as far as the event log tells.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct TimelineView {
    /// Where the log says that it stands. What it is now is told by `/v1/operations/{operation}`.
    pub operation: OperationView,
    /// What happened, the oldest first; also to what lay under its key before.
    pub moments: Vec<MomentView>,
    /// Whether there is more than is told here: the first changes, or the last duplicates.
    pub cut: bool,
    /// How far behind this is, in ms; absent: nobody knows.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub lag_ms: Option<u64>,
}

/// Something that happened to an operation: a change of its record, or a duplicate that was answered.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct MomentView {
    /// When (RFC 3339): of a change by the store's clock, of a duplicate by its gateway's.
    #[serde(default)]
    pub at: String,
    /// When the last of several duplicates came (RFC 3339) that were answered alike within a moment.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub until: Option<String>,
    /// How many duplicates that were; absent: one.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub times: Option<u64>,
    /// Of a change `claimed`, `completed`, `uncertain`, `released`, `resolved`, `found`, `retried` or `expired`; of a duplicate
    /// `replayed`, `waited` or `refused`.
    pub kind: String,
    /// The version that the change wrote; none: it was no change.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub version: Option<String>,
    /// The status of the result, or of the answer to the duplicate.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub status: Option<u16>,
    /// Bytes of the request's body.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub request_bytes: Option<u64>,
    /// Bytes of the result's body.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub response_bytes: Option<u64>,
    /// How long the upstream took, in ms.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub upstream_ms: Option<u64>,
    /// Why the outcome is uncertain.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub cause: Option<String>,
    /// Who decided.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub operator: Option<String>,
    /// The reason that they gave.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub reason: Option<String>,
    /// The trace that the request belongs to.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub trace: Option<String>,
    /// How long the duplicate waited for the answer, in ms; of several, the longest.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub waited_ms: Option<u64>,
    /// Why the duplicate was refused: the end of the problem's type.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub problem: Option<String>,
    /// The route's chosen fields that this told: with a claim those of the request, with a result those of the result.
    #[serde(skip_serializing_if = "BTreeMap::is_empty", default)]
    pub fields: BTreeMap<String, String>,
    /// Where the duplicate differed from the first request.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub differing: Vec<DifferenceView>,
}

/// A place in which a duplicate differs. What stands there is kept nowhere.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct DifferenceView {
    /// The JSON pointer (RFC 6901).
    pub pointer: String,
}

/// What happened by route and hour.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct StatisticsView {
    /// The hours, the oldest first, each route for itself.
    pub hours: Vec<HourView>,
    /// How far behind this is, in ms; absent: nobody knows.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub lag_ms: Option<u64>,
}

/// What happened on a route in an hour.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct HourView {
    /// When the hour began (RFC 3339).
    pub start: String,
    /// The route.
    pub route: String,
    /// What happened.
    #[serde(flatten)]
    pub tally: TallyView,
}

/// What is going on.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct OverviewView {
    /// The last 60 minutes, the one under way included.
    pub hour: TallyView,
    /// The last 24 hours.
    pub day: TallyView,
    /// Attempts under way.
    pub in_flight: u64,
    /// Uncertain outcomes.
    pub uncertain: u64,
    /// When the oldest of those began (RFC 3339).
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub oldest_uncertain_at: Option<String>,
    /// The last 60 minutes one by one, the oldest first.
    pub minutes: Vec<MinuteView>,
    /// How far behind this is, in ms; absent: nobody knows.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub lag_ms: Option<u64>,
}

/// What happened in a minute, on all routes.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct MinuteView {
    /// When it began (RFC 3339).
    pub start: String,
    /// What happened.
    #[serde(flatten)]
    pub tally: TallyView,
}

/// What happened in a span of time.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct TallyView {
    /// Requests with a key that were answered.
    pub requests: u64,
    /// Attempts whose answer became the result.
    pub executed: u64,
    /// Attempts that provably did nothing.
    pub released: u64,
    /// Outcomes that became uncertain.
    pub uncertain: u64,
    /// Decisions of operators and probes.
    pub decided: u64,
    /// Duplicates that did not reach the upstream.
    pub duplicates_prevented: u64,
    /// Of those: got the stored answer at once.
    pub replayed: u64,
    /// Of those: waited for it.
    pub waited: u64,
    /// Of those: refused, because there was no result to give.
    pub held: u64,
    /// Refused, because they were other requests than the first with the key.
    pub conflicts: u64,
    /// Refused for another reason.
    pub refused: u64,
    /// How long the upstream took.
    pub upstream: LatencyView,
}

/// How long the upstream took.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct LatencyView {
    /// Answers that were timed.
    pub count: u64,
    /// On average, in ms.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub mean_ms: Option<u64>,
    /// Half of them took no longer, in ms: the bound of a bucket.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub p50_ms: Option<u64>,
    /// 95 of 100 took no longer, in ms.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub p95_ms: Option<u64>,
    /// 99 of 100 took no longer, in ms.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub p99_ms: Option<u64>,
    /// The longest, in ms.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub max_ms: Option<u64>,
}

impl TimelineView {
    /// A timeline, so far behind.
    pub fn new(timeline: &Timeline, lag_ms: Option<u64>) -> TimelineView {
        let moments = timeline.moments.iter().filter_map(MomentView::new).collect();
        TimelineView { operation: (&timeline.operation).into(), moments, cut: timeline.cut, lag_ms }
    }
}

impl MomentView {
    /// A moment; `None` if it can't be told.
    fn new(moment: &Moment) -> Option<MomentView> {
        // Events and observations have the names that are told, and may have more.
        let told = match &moment.detail {
            MomentDetail::Changed(event) => serde_json::to_value(event),
            MomentDetail::Observed(observation) => serde_json::to_value(observation),
        };
        let mut view: MomentView = serde_json::from_value(told.ok()?).ok()?;
        view.at = rfc3339(moment.at_ms);
        if let MomentDetail::Observed(observation) = &moment.detail {
            view.until = observation.until_ms.map(rfc3339);
            view.times = observation.times.map(|_| observation.requests());
        }
        Some(view)
    }
}

impl From<&Operation> for OperationView {
    fn from(operation: &Operation) -> OperationView {
        let is_result = operation.state == OperationState::Completed;
        OperationView {
            operation: operation.reference.clone(),
            state: operation.state.name().to_owned(),
            route: operation.route.clone(),
            version: operation.version.to_string(),
            opened_at: rfc3339(operation.opened_ms),
            changed_at: rfc3339(operation.changed_ms),
            lease_ends_at: operation.lease_ends_ms.map(rfc3339),
            cause: operation.cause.clone().filter(|_| operation.state == OperationState::Uncertain),
            retry: (operation.state == OperationState::Uncertain
                && operation.last == EventKind::Retried)
                .then_some(true),
            status: operation.status.filter(|_| is_result),
            body_bytes: operation
                .response_bytes
                .and_then(|bytes| bytes.try_into().ok())
                .filter(|_| is_result),
            settled_by: is_result.then(|| settler(operation.last).to_owned()),
            scope: operation.scope.clone(),
            fields: operation.fields.iter().cloned().collect(),
            duplicates: Some(operation.duplicates),
            upstream_ms: operation.upstream_ms,
            trace: operation.trace.clone(),
        }
    }
}

fn settler(kind: EventKind) -> &'static str {
    match kind {
        EventKind::Resolved => "operator",
        EventKind::Found => "probe",
        _ => "upstream",
    }
}

impl From<&HourRow> for HourView {
    fn from(row: &HourRow) -> HourView {
        HourView {
            start: rfc3339(row.start_ms),
            route: row.route.clone(),
            tally: (&row.tally).into(),
        }
    }
}

impl From<&MinuteRow> for MinuteView {
    fn from(row: &MinuteRow) -> MinuteView {
        MinuteView { start: rfc3339(row.start_ms), tally: (&row.tally).into() }
    }
}

impl From<&Overview> for OverviewView {
    fn from(overview: &Overview) -> OverviewView {
        OverviewView {
            hour: (&overview.hour).into(),
            day: (&overview.day).into(),
            in_flight: overview.in_flight,
            uncertain: overview.uncertain,
            oldest_uncertain_at: overview.oldest_uncertain_ms.map(rfc3339),
            minutes: overview.series.iter().map(MinuteView::from).collect(),
            lag_ms: overview.freshness.lag_ms(overview.now_ms),
        }
    }
}

impl From<&Tally> for TallyView {
    fn from(tally: &Tally) -> TallyView {
        TallyView {
            requests: tally.requests(),
            executed: tally.executed,
            released: tally.released,
            uncertain: tally.uncertain,
            decided: tally.decided,
            duplicates_prevented: tally.prevented(),
            replayed: tally.replayed,
            waited: tally.waited,
            held: tally.held,
            conflicts: tally.conflicts,
            refused: tally.refused,
            upstream: (&tally.latency).into(),
        }
    }
}

impl From<&Latency> for LatencyView {
    fn from(latency: &Latency) -> LatencyView {
        let quantile = |share| latency.quantile_ms(share);
        LatencyView {
            count: latency.count,
            mean_ms: latency.sum_ms.checked_div(latency.count),
            p50_ms: quantile(0.5),
            p95_ms: quantile(0.95),
            p99_ms: quantile(0.99),
            max_ms: (latency.count > 0).then_some(latency.max_ms),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Observation;

    #[test]
    fn how_many_duplicates_a_moment_tells_of_can_be_summed_up_whatever_was_written() {
        let told = |times: u64| {
            let batch = format!(
                r#"[{{"kind":"replayed","route":"payments","seen":[{{"at_ms":1,"times":{times}}}]}}]"#
            );
            let observation = Observation::decode(batch.as_bytes()).unwrap().remove(0);
            MomentView::new(&Moment { at_ms: 1, detail: MomentDetail::Observed(observation) })
                .unwrap()
                .times
        };
        assert_eq!(
            [told(2), told(0), told(u64::MAX)],
            [Some(2), Some(1), Some(u64::from(u32::MAX))]
        );
    }
}
