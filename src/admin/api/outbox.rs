//! `/v1/outbox/reseal`: seals waiting events and dead letters anew.

use std::sync::Arc;

use axum::extract::State;
use axum::extract::rejection::JsonRejection;
use axum::{Extension, Json};

use super::refusals::ResealRefusals;
use crate::admin::auth::Operator;
use crate::admin::outbox::reseal as reseal_part;
use crate::admin::problem::AdminRefusal;
use crate::admin::state::Admin;
use crate::admin::view::{ResealRequest, ResealedView};

/// Seals a part of the waiting events and dead letters under the first key of `[encryption]`. With
/// the `cursor` of the answer, the next request continues.
///
/// If the store fails, a part may be sealed anew. The same request continues.
#[utoipa::path(
    post, path = "/v1/outbox/reseal", operation_id = "reseal_outbox", tag = "outbox",
    request_body = ResealRequest,
    responses((status = 200, body = ResealedView,
        description = "The number, and where to continue"), ResealRefusals),
)]
pub(super) async fn reseal(
    State(admin): State<Arc<Admin>>,
    Extension(operator): Extension<Operator>,
    sent: Result<Json<ResealRequest>, JsonRejection>,
) -> Result<Json<ResealedView>, AdminRefusal> {
    let Json(request) = sent?;
    reseal_part(&admin, &operator, request).await.map(Json)
}
