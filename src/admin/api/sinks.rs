//! `/v1/sinks`: lists, pauses, resumes and tests sinks.

use std::sync::Arc;

use axum::extract::rejection::JsonRejection;
use axum::extract::{Path, State};
use axum::{Extension, Json};

use super::refusals::{SinkChangeRefusals, SinkListRefusals, SinkTestRefusals};
use crate::admin::auth::Operator;
use crate::admin::decision::Reason;
use crate::admin::problem::AdminRefusal;
use crate::admin::sinks::{pause_sink, resume_sink, sinks, test_sink};
use crate::admin::state::Admin;
use crate::admin::view::{ReasonRequest, SinkListView, SinkTestView, SinkView};

/// Returns the sinks: those of the configuration, and those for which something waits.
#[utoipa::path(
    get, path = "/v1/sinks", operation_id = "list_sinks", tag = "sinks",
    responses((status = 200, body = SinkListView, description = "The sinks"), SinkListRefusals),
)]
pub(super) async fn list(
    State(admin): State<Arc<Admin>>,
) -> Result<Json<SinkListView>, AdminRefusal> {
    Ok(Json(SinkListView { sinks: sinks(&admin).await? }))
}

/// Pauses a sink: no gateway of the store begins an attempt until the sink is resumed, not even
/// after a restart. Its events wait. A sink that is paused keeps its reason.
#[utoipa::path(
    post, path = "/v1/sinks/{name}/pause", operation_id = "pause_sink", tag = "sinks",
    request_body = ReasonRequest,
    params(("name" = String, Path, description = "The name")),
    responses((status = 200, body = SinkView, description = "The sink"), SinkChangeRefusals),
)]
pub(super) async fn pause(
    State(admin): State<Arc<Admin>>,
    Path(name): Path<String>,
    Extension(operator): Extension<Operator>,
    sent: Result<Json<ReasonRequest>, JsonRejection>,
) -> Result<Json<SinkView>, AdminRefusal> {
    let Json(ReasonRequest { reason }) = sent?;
    let reason = Reason::parse(reason.as_deref())?;
    pause_sink(&admin, &operator, &name, &reason).await.map(Json)
}

/// Resumes a sink. The age of its waiting events is counted anew.
#[utoipa::path(
    post, path = "/v1/sinks/{name}/resume", operation_id = "resume_sink", tag = "sinks",
    request_body = Option<ReasonRequest>,
    params(("name" = String, Path, description = "The name")),
    responses((status = 200, body = SinkView, description = "The sink"), SinkChangeRefusals),
)]
pub(super) async fn resume(
    State(admin): State<Arc<Admin>>,
    Path(name): Path<String>,
    Extension(operator): Extension<Operator>,
    sent: Result<Option<Json<ReasonRequest>>, JsonRejection>,
) -> Result<Json<SinkView>, AdminRefusal> {
    let reason = sent?.and_then(|Json(request)| request.reason);
    let reason = Reason::parse_optional(reason.as_deref())?;
    resume_sink(&admin, &operator, &name, reason.as_ref()).await.map(Json)
}

/// Sends an event of the type `onceward.test` with an empty `data` to a sink, once, even if the
/// sink is paused. It is never stored. A test takes at most the sink's timeout, and at most 30 s.
#[utoipa::path(
    post, path = "/v1/sinks/{name}/test", operation_id = "test_sink", tag = "sinks",
    params(("name" = String, Path, description = "The name")),
    responses(
        (status = 200, body = SinkTestView,
            description = "The result, also if the receiver did not take the event"),
        SinkTestRefusals,
    ),
)]
pub(super) async fn test(
    State(admin): State<Arc<Admin>>,
    Path(name): Path<String>,
    Extension(operator): Extension<Operator>,
) -> Result<Json<SinkTestView>, AdminRefusal> {
    test_sink(&admin, &operator, &name).await.map(Json)
}
