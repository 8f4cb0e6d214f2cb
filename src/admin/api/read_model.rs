//! `/v1/operations/{operation}/timeline`, `/v1/statistics`, `/v1/overview` and `/v1/report`:
//! answers from the read model. Each answer has the lag of the read model.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, Query, State};
use serde::Deserialize;

use super::refusals::{ReadModelRefusals, TimelineRefusals};
use crate::admin::problem::AdminRefusal;
use crate::admin::queries::{ask, invalid, lag_ms, moment, timeline_of};
use crate::admin::state::Admin;
use crate::admin::view::{OverviewView, ReportView, StatisticsView, TimelineView};
use crate::engine::Mode;
use crate::key::Slot;
use crate::read_model::ReadModel;

/// The longest time range of one statistics response, in ms: a quarter of a year.
const SPAN_MS_MAX: u64 = 92 * 24 * HOUR_MS;
const HOUR_MS: u64 = 60 * 60 * 1000;

/// Returns an operation's timeline, beginning with its first event.
#[utoipa::path(
    get, path = "/v1/operations/{operation}/timeline", tag = "read model",
    params(("operation" = String, Path,
        description = "The reference, `op_` and 40 hexadecimal digits")),
    responses((status = 200, body = TimelineView,
        description = "The operation and its events"), TimelineRefusals),
)]
pub(super) async fn timeline(
    State(admin): State<Arc<Admin>>,
    Path(operation): Path<String>,
) -> Result<Json<TimelineView>, AdminRefusal> {
    let slot = Slot::from_reference(&operation)?;
    Ok(Json(timeline_of(&admin, &slot).await?.ok_or(AdminRefusal::NoEvents)?))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct StatisticsQuery {
    from: Option<String>,
    until: Option<String>,
}

/// Returns the counts of each route and hour.
#[utoipa::path(
    get, path = "/v1/statistics", tag = "read model",
    params(
        ("from" = Option<String>, Query,
            description = "Starts at the hour of this time (RFC 3339); default: 24 h before the \
                end"),
        ("until" = Option<String>, Query,
            description = "Ends at the hour of this time; default: now. At most 92 days"),
    ),
    responses((status = 200, body = StatisticsView, description = "The hours"), ReadModelRefusals),
)]
pub(super) async fn statistics(
    State(admin): State<Arc<Admin>>,
    Query(query): Query<StatisticsQuery>,
) -> Result<Json<StatisticsView>, AdminRefusal> {
    let until_ms =
        query.until.as_deref().map(moment).transpose()?.unwrap_or_else(|| admin.clock.unix_ms());
    let from_ms = query
        .from
        .as_deref()
        .map(moment)
        .transpose()?
        .unwrap_or_else(|| until_ms.saturating_sub(24 * HOUR_MS));
    if until_ms.saturating_sub(from_ms) > SPAN_MS_MAX {
        return Err(invalid("statistics cover at most 92 days: split the range"));
    }
    let rows = ask(&admin, move |model, _| model.statistics(from_ms, until_ms)).await?;
    Ok(Json(StatisticsView {
        hours: rows.iter().map(Into::into).collect(),
        lag_ms: lag_ms(&admin),
    }))
}

/// Returns the counts of the last hour and day, and the open operations.
#[utoipa::path(
    get, path = "/v1/overview", tag = "read model",
    responses((status = 200, body = OverviewView, description = "The overview"), ReadModelRefusals),
)]
pub(super) async fn overview(
    State(admin): State<Arc<Admin>>,
) -> Result<Json<OverviewView>, AdminRefusal> {
    Ok(Json((&ask(&admin, ReadModel::overview).await?).into()))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ReportQuery {
    since: Option<String>,
}

/// Returns how many requests on shadow routes enforcing would have replayed or refused, by route,
/// client and reason.
#[utoipa::path(
    get, path = "/v1/report", tag = "read model",
    params(("since" = Option<String>, Query,
        description = "Starts at the hour of this time (RFC 3339); default: 24 h ago")),
    responses((status = 200, body = ReportView, description = "The report"), ReadModelRefusals),
)]
pub(super) async fn report(
    State(admin): State<Arc<Admin>>,
    Query(query): Query<ReportQuery>,
) -> Result<Json<ReportView>, AdminRefusal> {
    let since_ms = query.since.as_deref().map(moment).transpose()?;
    let report = ask(&admin, move |model, now_ms| {
        model.report(since_ms.unwrap_or(now_ms.saturating_sub(24 * HOUR_MS)))
    });
    let report = report.await?;
    let watched = admin.policies.iter().filter(|(_, policy)| policy.mode == Mode::Shadow);
    let mut shadow_routes: Vec<String> = watched.map(|(name, _)| name.clone()).collect();
    shadow_routes.sort();
    Ok(Json(ReportView::new(report, shadow_routes, lag_ms(&admin))))
}
