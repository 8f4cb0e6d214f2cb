//! What enforcing would have done on shadow routes, as JSON.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::clock::rfc3339;
use crate::read_model::{ReportRow, ShadowReport};

/// What enforcing would have done on routes in shadow mode.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct ReportView {
    /// From when on (RFC 3339): hours are counted whole, so this is where the hour began that was asked for.
    pub since: String,
    /// Duplicates that would have got the stored answer, at once or after waiting for it; those of rows that are cut too.
    pub would_replay: u64,
    /// Requests that would have been refused, likewise.
    pub would_refuse: u64,
    /// By route, client and reason, those with the most requests first.
    pub rows: Vec<ReportRowView>,
    /// Whether there are more rows: those with the fewest requests are left out.
    pub cut: bool,
    /// The routes that are in shadow mode now, in the configuration of the gateway that was asked.
    pub shadow_routes: Vec<String>,
    /// How far behind this is, in ms; absent: nobody knows.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub lag_ms: Option<u64>,
}

/// What enforcing would have done with requests of one client on one route.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ReportRowView {
    /// The route.
    pub route: String,
    /// The client: the beginning of its scope's hash, as operations show it; absent: the scope is not known.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub scope: Option<String>,
    /// `replay` or `refuse`.
    pub would: String,
    /// Why they would have been refused: the end of the problem's type.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub problem: Option<String>,
    /// How many.
    pub requests: u64,
}

impl ReportView {
    /// A report, so far behind, of a gateway with these routes in shadow mode.
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
