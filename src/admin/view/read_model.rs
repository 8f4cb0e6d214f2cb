//! The read model as JSON: an operation's timeline, statistics, the overview.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::operation::OperationView;
use super::saga_change::SagaChangeView;
use crate::clock::rfc3339;
use crate::event::EventKind;
use crate::read_model::{
    Freshness, HourRow, Latency, MinuteRow, Moment, MomentDetail, Operation, OperationState,
    Overview, Tally, Timeline,
};

/// The history of an operation, from the event log.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct TimelineView {
    /// The state according to the event log. `/v1/operations/{operation}` has the current state.
    pub operation: OperationView,
    /// The events, oldest first, including those of earlier operations under the same key.
    pub moments: Vec<MomentView>,
    /// Whether the first changes or the last duplicates are omitted.
    pub cut: bool,
    /// How far behind the read model is, in ms; absent: unknown.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub lag_ms: Option<u64>,
}

/// An event of an operation: a change of its record, or a duplicate that was answered.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct MomentView {
    /// The time of the event (RFC 3339). For a change it is the store's clock, for a duplicate the
    /// gateway's clock.
    #[serde(default)]
    pub at: String,
    /// When the last duplicate arrived (RFC 3339), if the event describes several.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub until: Option<String>,
    /// The number of duplicates; absent: one.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub times: Option<u64>,
    /// A change: `claimed`, `completed`, `uncertain`, `released`, `resolved`, `found`, `retried`,
    /// `expired`, `saga` or `barred`. A duplicate: `replayed`, `waited` or `refused`.
    pub kind: String,
    /// The version that the change wrote; absent: the event is a duplicate.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub version: Option<String>,
    /// The status of the result, or of the response to the duplicate.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub status: Option<u16>,
    /// The size of the request's body, in bytes.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub request_bytes: Option<u64>,
    /// The size of the result's body, in bytes.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub response_bytes: Option<u64>,
    /// How long the upstream took, in ms.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub upstream_ms: Option<u64>,
    /// The reason why the outcome is uncertain.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub cause: Option<String>,
    /// The operator who decided.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub operator: Option<String>,
    /// The operator's reason.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub reason: Option<String>,
    /// The tag of the version that a write on a resource overwrote, although its writer named
    /// another version.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub overwrote: Option<String>,
    /// The trace of the request.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub trace: Option<String>,
    /// How long the duplicate waited for the response, in ms. If there are several, the longest
    /// wait.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub waited_ms: Option<u64>,
    /// The reason why the duplicate was refused: the end of the problem's type.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub problem: Option<String>,
    /// The route's chosen fields in this event. A claim has the fields of the request, a result the
    /// fields of the response.
    #[serde(skip_serializing_if = "BTreeMap::is_empty", default)]
    pub fields: BTreeMap<String, String>,
    /// What the change changed in a saga; absent: it is no saga, or no status changed.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub saga: Option<SagaChangeView>,
    /// The places in which the duplicate differed from the first request.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub differing: Vec<DifferenceView>,
}

/// A place in which a duplicate differs. Its value is not stored.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct DifferenceView {
    /// The JSON pointer (RFC 6901).
    pub pointer: String,
}

/// Counts by route and hour.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct StatisticsView {
    /// The hours, oldest first, with one entry per route and hour.
    pub hours: Vec<HourView>,
    /// How far behind the read model is, in ms; absent: unknown.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub lag_ms: Option<u64>,
}

/// The counts of a route in an hour.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct HourView {
    /// When the hour began (RFC 3339).
    pub start: String,
    /// The route.
    pub route: String,
    /// The counts.
    #[serde(flatten)]
    pub tally: TallyView,
}

/// The counts of the last hour and day, and the open operations.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct OverviewView {
    /// The last 60 minutes, including the current one.
    pub hour: TallyView,
    /// The last 24 hours.
    pub day: TallyView,
    /// Active attempts.
    pub in_flight: u64,
    /// Uncertain outcomes.
    pub uncertain: u64,
    /// When the oldest uncertain operation was opened (RFC 3339).
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub oldest_uncertain_at: Option<String>,
    /// The last 60 minutes one by one, oldest first.
    pub minutes: Vec<MinuteView>,
    /// How far behind the read model is, in ms; absent: unknown.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub lag_ms: Option<u64>,
}

/// The counts of a minute, on all routes.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct MinuteView {
    /// When the minute began (RFC 3339).
    pub start: String,
    /// The counts.
    #[serde(flatten)]
    pub tally: TallyView,
}

/// The counts of a time range.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct TallyView {
    /// Requests with a key that were answered.
    pub requests: u64,
    /// Attempts that ended with a result.
    pub executed: u64,
    /// Attempts that were provably not executed.
    pub released: u64,
    /// Outcomes that became uncertain.
    pub uncertain: u64,
    /// Decisions of operators and probes.
    pub decided: u64,
    /// Duplicates that did not reach the upstream.
    pub duplicates_prevented: u64,
    /// Of these: got the stored response at once.
    pub replayed: u64,
    /// Of these: waited for the response.
    pub waited: u64,
    /// Of these: refused, because there was no result.
    pub held: u64,
    /// Refused, because they differed from the first request with the key.
    pub conflicts: u64,
    /// Refused for another reason.
    pub refused: u64,
    /// How long the upstream took.
    pub upstream: LatencyView,
}

/// How long the upstream took.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct LatencyView {
    /// Responses that were timed.
    pub count: u64,
    /// The mean, in ms.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub mean_ms: Option<u64>,
    /// The 50th percentile, in ms: the upper bound of a bucket.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub p50_ms: Option<u64>,
    /// The 95th percentile, in ms.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub p95_ms: Option<u64>,
    /// The 99th percentile, in ms.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub p99_ms: Option<u64>,
    /// The maximum, in ms.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub max_ms: Option<u64>,
}

/// The position of the read model in the event log.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ProjectionView {
    /// Entries of the event log that it has applied.
    pub entries: u64,
    /// The read model holds all entries written until this time (RFC 3339); absent: not known yet.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub as_of: Option<String>,
    /// The age of `as_of`, in ms.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub lag_ms: Option<u64>,
}

impl TimelineView {
    /// Creates the view of a timeline.
    pub fn new(timeline: &Timeline, lag_ms: Option<u64>) -> TimelineView {
        let moments = timeline.moments.iter().filter_map(MomentView::new).collect();
        TimelineView { operation: (&timeline.operation).into(), moments, cut: timeline.cut, lag_ms }
    }
}

impl MomentView {
    /// Creates the view of an event; `None` if it can't be converted.
    fn new(moment: &Moment) -> Option<MomentView> {
        // Events and observations have the members of this view, and may have others.
        let members = match &moment.detail {
            MomentDetail::Changed(event) => serde_json::to_value(event),
            MomentDetail::Observed(observation) => serde_json::to_value(observation),
        };
        let mut view: MomentView = serde_json::from_value(members.ok()?).ok()?;
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
            sink: None,
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

impl ProjectionView {
    /// Creates the view of a position; `now_ms`: the time in ms since 1970.
    pub fn new(freshness: Freshness, now_ms: u64) -> ProjectionView {
        ProjectionView {
            entries: freshness.entries,
            as_of: freshness.as_of_ms.map(rfc3339),
            lag_ms: freshness.lag_ms(now_ms),
        }
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
    fn the_number_of_duplicates_can_be_summed_up_whatever_was_written() {
        let times_of = |times: u64| {
            let batch = format!(
                r#"[{{"kind":"replayed","route":"payments",
                    "seen":[{{"at_ms":1,"times":{times}}}]}}]"#
            );
            let observation = Observation::decode(batch.as_bytes()).unwrap().remove(0);
            MomentView::new(&Moment { at_ms: 1, detail: MomentDetail::Observed(observation) })
                .unwrap()
                .times
        };
        assert_eq!(
            [times_of(2), times_of(0), times_of(u64::MAX)],
            [Some(2), Some(1), Some(u64::from(u32::MAX))]
        );
    }
}
