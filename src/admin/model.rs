//! What the read model answers: searches, timelines, statistics, the overview. All of it says how far behind it is.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, Query, State};
use serde::Deserialize;

use super::Admin;
use super::problem::AdminRefusal;
use super::view::{OperationView, OverviewView, ReportView, StatisticsView, TimelineView};
use crate::engine::Mode;
use crate::key::Slot;
use crate::read_model::{Filter, QueryError, ReadModel};

/// Longest span of one answer's statistics: a quarter of a year, in ms.
const SPAN_MS_MAX: u64 = 92 * 24 * HOUR_MS;
const HOUR_MS: u64 = 60 * 60 * 1000;

/// Asks the read model, away from what serves requests: it reads from a disk.
pub(super) async fn ask<T: Send + 'static>(
    admin: &Admin,
    question: impl FnOnce(&ReadModel, u64) -> Result<T, QueryError> + Send + 'static,
) -> Result<T, AdminRefusal> {
    let model = admin.read_model.clone().ok_or(AdminRefusal::ReadModelOff)?;
    let now_ms = admin.clock.unix_ms();
    let asked = tokio::task::spawn_blocking(move || question(&model, now_ms)).await;
    Ok(asked.map_err(|_| AdminRefusal::Unanswered)??)
}

/// How far behind the read model is, in ms.
pub(super) fn lag_ms(admin: &Admin) -> Option<u64> {
    admin.read_model.as_ref().and_then(|model| model.freshness().lag_ms(admin.clock.unix_ms()))
}

/// What a search asks for, by names and values: one of the names below, or `field.` and the name of a chosen field.
pub(super) fn filter<'q>(
    pairs: impl IntoIterator<Item = (&'q str, &'q str)>,
) -> Result<Filter, AdminRefusal> {
    let mut filter = Filter::default();
    for (name, value) in pairs {
        let value = value.to_owned();
        match name {
            "route" => filter.route = Some(value),
            "state" => filter.state = Some(value.parse().map_err(|_| AdminRefusal::StateUnknown)?),
            "status" => filter.status = Some(status(&value)?),
            "scope" => filter.scopes = scopes(&value)?,
            "text" => filter.text = Some(value),
            "from" => filter.from_ms = Some(moment(&value)?),
            "until" => filter.until_ms = Some(moment(&value)?),
            other => match other.strip_prefix("field.") {
                Some(field) if filter.field.is_none() => {
                    filter.field = Some((field.to_owned(), value))
                }
                Some(_) => return Err(invalid("a search goes by one field")),
                None => {
                    return Err(invalid(&format!(
                        "{other} is nothing that operations are searched by"
                    )));
                }
            },
        }
    }
    Ok(filter)
}

/// Scopes that one search asks for, at most: as many as there are hashing secrets during a rotation, for both readings of a claim.
const SCOPES_MAX: usize = 16;

fn scopes(text: &str) -> Result<Vec<String>, AdminRefusal> {
    let scopes: Vec<String> = text.split(',').map(|mark| mark.trim().to_owned()).collect();
    if scopes.len() <= SCOPES_MAX {
        Ok(scopes)
    } else {
        Err(invalid("a search goes by 16 scopes at most"))
    }
}

fn status(text: &str) -> Result<u16, AdminRefusal> {
    let status = text.parse().ok().filter(|status| (100..=599).contains(status));
    status.ok_or_else(|| invalid("status is an HTTP status such as 201"))
}

fn invalid(why: &str) -> AdminRefusal {
    AdminRefusal::Invalid(why.to_owned())
}

/// A moment as RFC 3339 writes it, in ms since 1970.
pub(super) fn moment(text: &str) -> Result<u64, AdminRefusal> {
    let time = humantime::parse_rfc3339_weak(text).ok();
    let since = time.and_then(|time| time.duration_since(std::time::UNIX_EPOCH).ok());
    let millis = since.and_then(|since| u64::try_from(since.as_millis()).ok());
    millis.ok_or_else(|| invalid("a time is written as 2026-11-25T03:00:00Z, in UTC"))
}

/// A page of a search, newest first, and where the next one begins.
pub(super) async fn search(
    admin: &Admin,
    filter: Filter,
    cursor: Option<String>,
    limit: usize,
) -> Result<(Vec<OperationView>, Option<String>), AdminRefusal> {
    let found =
        ask(admin, move |model, now_ms| model.search(&filter, now_ms, cursor.as_deref(), limit))
            .await?;
    Ok((found.operations.iter().map(OperationView::from).collect(), found.cursor))
}

/// An operation's timeline; `None` where the log does not know it, or not yet.
pub(super) async fn told(admin: &Admin, slot: &Slot) -> Result<Option<TimelineView>, AdminRefusal> {
    let reference = slot.to_string();
    let timeline = ask(admin, move |model, now_ms| model.timeline(&reference, now_ms)).await?;
    Ok(timeline.map(|timeline| TimelineView::new(&timeline, lag_ms(admin))))
}

/// An operation from its beginning to now.
#[utoipa::path(
    get, path = "/v1/operations/{operation}/timeline", tag = "read model",
    params(("operation" = String, Path, description = "The reference, `op_` and 40 hexadecimal digits")),
    responses((status = 200, body = TimelineView, description = "The operation and what happened to it"), super::openapi::Told),
)]
pub(super) async fn timeline(
    State(admin): State<Arc<Admin>>,
    Path(operation): Path<String>,
) -> Result<Json<TimelineView>, AdminRefusal> {
    let slot = Slot::from_reference(&operation)?;
    Ok(Json(told(&admin, &slot).await?.ok_or(AdminRefusal::Untold)?))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Span {
    from: Option<String>,
    until: Option<String>,
}

/// What happened, by route and hour.
#[utoipa::path(
    get, path = "/v1/statistics", tag = "read model",
    params(
        ("from" = Option<String>, Query, description = "From the hour in which this is (RFC 3339); otherwise 24 h before the end"),
        ("until" = Option<String>, Query, description = "To the hour in which this is; otherwise to now. At most 92 days"),
    ),
    responses((status = 200, body = StatisticsView, description = "The hours"), super::openapi::Asked),
)]
pub(super) async fn statistics(
    State(admin): State<Arc<Admin>>,
    Query(span): Query<Span>,
) -> Result<Json<StatisticsView>, AdminRefusal> {
    let until_ms =
        span.until.as_deref().map(moment).transpose()?.unwrap_or_else(|| admin.clock.unix_ms());
    let from_ms = span
        .from
        .as_deref()
        .map(moment)
        .transpose()?
        .unwrap_or_else(|| until_ms.saturating_sub(24 * HOUR_MS));
    if until_ms.saturating_sub(from_ms) > SPAN_MS_MAX {
        return Err(invalid("statistics are told of 92 days at most: ask for the rest apart"));
    }
    let rows = ask(&admin, move |model, _| model.statistics(from_ms, until_ms)).await?;
    Ok(Json(StatisticsView {
        hours: rows.iter().map(Into::into).collect(),
        lag_ms: lag_ms(&admin),
    }))
}

/// What is going on.
#[utoipa::path(
    get, path = "/v1/overview", tag = "read model",
    responses((status = 200, body = OverviewView, description = "The last hour and day, and what is open"), super::openapi::Asked),
)]
pub(super) async fn overview(
    State(admin): State<Arc<Admin>>,
) -> Result<Json<OverviewView>, AdminRefusal> {
    Ok(Json((&ask(&admin, ReadModel::overview).await?).into()))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Since {
    since: Option<String>,
}

/// What enforcing would have done on shadow routes, by route, client and reason.
#[utoipa::path(
    get, path = "/v1/report", tag = "read model",
    params(("since" = Option<String>, Query, description = "From the hour in which this is (RFC 3339); otherwise 24 h before now")),
    responses((status = 200, body = ReportView, description = "The report"), super::openapi::Asked),
)]
pub(super) async fn report(
    State(admin): State<Arc<Admin>>,
    Query(asked): Query<Since>,
) -> Result<Json<ReportView>, AdminRefusal> {
    let since_ms = asked.since.as_deref().map(moment).transpose()?;
    let report = ask(&admin, move |model, now_ms| {
        model.report(since_ms.unwrap_or(now_ms.saturating_sub(24 * HOUR_MS)))
    });
    let report = report.await?;
    let watched = admin.policies.iter().filter(|(_, policy)| policy.mode == Mode::Shadow);
    let mut shadow_routes: Vec<String> = watched.map(|(name, _)| name.clone()).collect();
    shadow_routes.sort();
    Ok(Json(ReportView::new(report, shadow_routes, lag_ms(&admin))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::read_model::OperationState;

    #[test]
    fn a_search_is_read_from_names_and_values_and_nothing_is_passed_over() {
        let asked = [
            ("route", "payments"),
            ("state", "uncertain"),
            ("status", "201"),
            ("field.order", "A-17"),
            ("from", "2026-11-25T03:00:00Z"),
            ("text", "x"),
            ("scope", "0a,1b"),
        ];
        let filter = filter(asked).unwrap();
        assert_eq!(
            (filter.route.as_deref(), filter.state, filter.status),
            (Some("payments"), Some(OperationState::Uncertain), Some(201))
        );
        assert_eq!(filter.scopes, ["0a", "1b"]);
        assert_eq!(filter.field, Some(("order".to_owned(), "A-17".to_owned())));
        assert_eq!(
            (filter.from_ms, filter.until_ms, filter.text.as_deref()),
            (Some(1_795_575_600_000), None, Some("x"))
        );
    }

    #[test]
    fn what_can_not_be_searched_by_is_refused() {
        for pairs in [
            vec![("stat", "201")],
            vec![("state", "lost")],
            vec![("status", "many")],
            vec![("from", "yesterday")],
            vec![("field.a", "1"), ("field.b", "2")],
            vec![("scope", ",".repeat(SCOPES_MAX).as_str())],
        ] {
            assert!(filter(pairs.clone()).is_err(), "{pairs:?}");
        }
    }
}
