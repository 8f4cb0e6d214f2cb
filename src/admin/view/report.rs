//! The report on shadow routes, as JSON.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::clock::rfc3339;
use crate::read_model::{ReportRow, ShadowReport};

/// The requests on routes in shadow mode that enforcing would have replayed or refused.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct ReportView {
    /// The start of the report (RFC 3339). Hours are counted whole, so this is the start of the
    /// first hour.
    pub since: String,
    /// Duplicates that would have got the stored response, at once or after a wait, including those
    /// of omitted rows.
    pub would_replay: u64,
    /// Requests that would have been refused, including those of omitted rows.
    pub would_refuse: u64,
    /// The counts by route, client and reason. Rows with the most requests are first.
    pub rows: Vec<ReportRowView>,
    /// Whether the rows with the fewest requests were omitted.
    pub cut: bool,
    /// The routes that are in shadow mode now, in the configuration of this gateway.
    pub shadow_routes: Vec<String>,
    /// How far behind the read model is, in ms; absent: unknown.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub lag_ms: Option<u64>,
}

/// The requests of one client on one route that enforcing would have replayed or refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ReportRowView {
    /// The route.
    pub route: String,
    /// The client: the beginning of its scope's hash, as operations show it; absent if the scope is
    /// unknown.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub scope: Option<String>,
    /// `replay` or `refuse`.
    pub would: String,
    /// The reason why the requests would have been refused: the end of the problem's type.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub problem: Option<String>,
    /// The number of requests.
    pub requests: u64,
}

impl ReportView {
    /// Creates the view of a report.
    pub fn new(
        report: ShadowReport,
        shadow_routes: Vec<String>,
        lag_ms: Option<u64>,
    ) -> ReportView {
        ReportView {
            since: rfc3339(report.since_ms),
            would_replay: report.replayed,
            would_refuse: report.refused,
            rows: report.rows.into_iter().map(ReportRowView::from).collect(),
            cut: report.cut,
            shadow_routes,
            lag_ms,
        }
    }
}

impl From<ReportRow> for ReportRowView {
    fn from(row: ReportRow) -> ReportRowView {
        let ReportRow { route, scope, refused, problem, requests } = row;
        ReportRowView {
            route,
            scope,
            would: if refused { "refuse" } else { "replay" }.to_owned(),
            problem,
            requests,
        }
    }
}
