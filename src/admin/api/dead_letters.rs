//! `/v1/dead-letters`: lists, shows, requeues and discards dead letters.

use std::sync::Arc;

use axum::extract::rejection::JsonRejection;
use axum::extract::{Path, Query, State};
use axum::{Extension, Json};
use serde::Deserialize;

use super::refusals::{
    DeadLetterChangeRefusals, DeadLetterListRefusals, DeadLetterRequeueRefusals,
    DeadLetterShowRefusals, SinkChangeRefusals,
};
use crate::admin::auth::{Operator, Permission};
use crate::admin::dead_letters::{
    DeadLetterQuery, dead_letter, dead_letters, discard as discard_one, requeue as requeue_one,
    requeue_part,
};
use crate::admin::decision::Reason;
use crate::admin::problem::AdminRefusal;
use crate::admin::state::Admin;
use crate::admin::view::{
    DeadLetterListView, DeadLetterView, DiscardedView, ReasonRequest, RequeueOneRequest,
    RequeueRequest, RequeuedView,
};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ListQuery {
    sink: Option<String>,
    kind: Option<String>,
    since: Option<String>,
    until: Option<String>,
    limit: Option<usize>,
    cursor: Option<String>,
}

/// Returns dead letters, one page at a time, latest burial first.
///
/// The role `read` gets the events without `data`, and the attempts without `answer`.
#[utoipa::path(
    get, path = "/v1/dead-letters", operation_id = "list_dead_letters", tag = "dead letters",
    params(
        ("sink" = Option<String>, Query, description = "The name of the sink"),
        ("kind" = Option<String>, Query,
            description = "`receiver`: the receiver did not take it; `gateway`: the gateway can't \
                send it"),
        ("since" = Option<String>, Query,
            description = "Buried at this time or later (RFC 3339)"),
        ("until" = Option<String>, Query, description = "Buried before this time"),
        ("limit" = Option<usize>, Query,
            description = "Dead letters per page: 1 to 200, default 100. A page may have fewer; \
                only the last page has no `cursor`"),
        ("cursor" = Option<String>, Query,
            description = "The `cursor` of the previous page, with the same parameters"),
    ),
    responses((status = 200, body = DeadLetterListView,
        description = "A page of dead letters"), DeadLetterListRefusals),
)]
pub(super) async fn list(
    State(admin): State<Arc<Admin>>,
    Extension(permission): Extension<Permission>,
    Query(query): Query<ListQuery>,
) -> Result<Json<DeadLetterListView>, AdminRefusal> {
    let ListQuery { sink, kind, since, until, limit, cursor } = query;
    let query = DeadLetterQuery { sink, kind, since, until, limit, cursor };
    dead_letters(&admin, permission, query).await.map(Json)
}

/// Returns a dead letter. The role `read` gets the event without `data`, and the attempts without
/// `answer`.
#[utoipa::path(
    get, path = "/v1/dead-letters/{id}", operation_id = "show_dead_letter", tag = "dead letters",
    params(("id" = String, Path, description = "The id, `dl_` and 32 hexadecimal digits")),
    responses((status = 200, body = DeadLetterView,
        description = "The dead letter"), DeadLetterShowRefusals),
)]
pub(super) async fn show(
    State(admin): State<Arc<Admin>>,
    Extension(permission): Extension<Permission>,
    Path(id): Path<String>,
) -> Result<Json<DeadLetterView>, AdminRefusal> {
    dead_letter(&admin, permission, &id).await.map(Json)
}

/// Makes a dead letter a waiting event again. It is sent in a new round, with the same event id and
/// new attempts. A call that was released or never sent goes on in its round, and a call with an
/// open outcome only waits for it.
#[utoipa::path(
    post, path = "/v1/dead-letters/{id}/requeue", operation_id = "requeue_dead_letter",
    tag = "dead letters", request_body = Option<RequeueOneRequest>,
    params(("id" = String, Path, description = "The id")),
    responses((status = 200, body = RequeuedView,
        description = "It waits"), DeadLetterRequeueRefusals),
)]
pub(super) async fn requeue(
    State(admin): State<Arc<Admin>>,
    Path(id): Path<String>,
    Extension(operator): Extension<Operator>,
    sent: Result<Option<Json<RequeueOneRequest>>, JsonRejection>,
) -> Result<Json<RequeuedView>, AdminRefusal> {
    let RequeueOneRequest { reason, again } = sent?.map(|Json(sent)| sent).unwrap_or_default();
    let reason = Reason::parse_optional(reason.as_deref())?;
    requeue_one(&admin, &operator, &id, reason.as_ref(), again).await?;
    Ok(Json(RequeuedView { requeued: 1, ..RequeuedView::default() }))
}

/// Removes a dead letter. Its event is never sent again.
#[utoipa::path(
    post, path = "/v1/dead-letters/{id}/discard", operation_id = "discard_dead_letter",
    tag = "dead letters", request_body = ReasonRequest,
    params(("id" = String, Path, description = "The id")),
    responses((status = 200, body = DiscardedView,
        description = "It is removed"), DeadLetterChangeRefusals),
)]
pub(super) async fn discard(
    State(admin): State<Arc<Admin>>,
    Path(id): Path<String>,
    Extension(operator): Extension<Operator>,
    sent: Result<Json<ReasonRequest>, JsonRejection>,
) -> Result<Json<DiscardedView>, AdminRefusal> {
    let Json(ReasonRequest { reason }) = sent?;
    let reason = Reason::parse(reason.as_deref())?;
    discard_one(&admin, &operator, &id, &reason).await?;
    Ok(Json(DiscardedView { discarded: 1 }))
}

/// Makes a part of a sink's dead letters waiting events again, latest burial first. With the
/// `cursor` of the answer, the next request continues. Dead letters that were buried after the
/// first request began are never requeued.
///
/// If the store fails, some may have been requeued. The same request continues.
#[utoipa::path(
    post, path = "/v1/dead-letters/requeue", operation_id = "requeue_dead_letters",
    tag = "dead letters", request_body = RequeueRequest,
    responses((status = 200, body = RequeuedView,
        description = "The number, and where to continue"), SinkChangeRefusals),
)]
pub(super) async fn requeue_many(
    State(admin): State<Arc<Admin>>,
    Extension(operator): Extension<Operator>,
    sent: Result<Json<RequeueRequest>, JsonRejection>,
) -> Result<Json<RequeuedView>, AdminRefusal> {
    let Json(request) = sent?;
    requeue_part(&admin, &operator, request).await.map(Json)
}
