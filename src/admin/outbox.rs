//! The outbox as a whole: an operator's decision to seal it anew.

use super::auth::Operator;
use super::problem::AdminRefusal;
use super::state::Admin;
use super::view::{ResealRequest, ResealedView};

/// Seals a page of the outbox under the first key of `[encryption]`. If it fails, a part may be
/// sealed anew; the same request continues.
pub(super) async fn reseal(
    admin: &Admin,
    operator: &Operator,
    request: ResealRequest,
) -> Result<ResealedView, AdminRefusal> {
    let resealer = admin.resealer.as_ref().ok_or(AdminRefusal::EncryptionOff)?;
    let done = resealer.reseal(request.cursor.as_deref()).await?;
    tracing::info!(
        resealed = done.resealed,
        unreadable = done.unreadable,
        operator = operator.0,
        "outbox sealed anew by an operator"
    );
    Ok(ResealedView { resealed: done.resealed, unreadable: done.unreadable, cursor: done.cursor })
}
