//! Agreeing with the store on what identities are made of, before anything is claimed.

use crate::engine::{Change, Identities};
use crate::store::{Store, StoreError};

/// How often the comparison is begun anew because another gateway has written meanwhile.
const TRIES_MAX: usize = 16;

/// A configuration that is not agreed on.
#[derive(Debug, Clone, thiserror::Error)]
pub enum AgreeError {
    /// It would change identities.
    #[error("{}", told(.0))]
    Changed(Vec<Change>),
    /// The store can't tell.
    #[error(transparent)]
    Store(#[from] StoreError),
}

fn told(changes: &[Change]) -> String {
    let changes: Vec<String> = changes.iter().map(|change| format!("\n  - {change}")).collect();
    format!(
        "this configuration gives operations other identities than those that the store keeps, so that duplicates of what was \
         answered would run again:{}\nIf nothing that was answered is sent again any more, accept it once with \
         --accept-new-identities (or ONCEWARD_ACCEPT_NEW_IDENTITIES=true).",
        changes.concat()
    )
}

/// Compares a configuration with what the store keeps, and has it kept where nothing changes or `accept` says so.
///
/// # Errors
/// It would change identities; the store can't tell, and may be asked again.
pub async fn agree(store: &dyn Store, configured: &Identities, accept: bool) -> Result<(), AgreeError> {
    for _ in 0..TRIES_MAX {
        let kept = store.identities().await?;
        let compared = configured.compare(kept.as_deref());
        if !compared.changes.is_empty() {
            if !accept {
                return Err(AgreeError::Changed(compared.changes));
            }
            compared.changes.iter().for_each(|change| tracing::warn!("new identities are accepted: {change}"));
        }
        if kept.as_ref() == Some(&compared.next) || store.set_identities(kept.as_deref(), &compared.next).await? {
            compared.remarks.iter().for_each(|remark| tracing::warn!("{remark}"));
            return Ok(());
        }
    }
    Err(StoreError::NotApplied("other gateways keep changing what identities are made of".into()).into())
}
