//! Compares the identities of a configuration with the store's notes about identities, before
//! anything is claimed.

use crate::engine::{Identities, IdentityChange, Notes};
use crate::store::{IdentityNotes, Note, StoreError};

/// Maximum number of comparisons. A comparison is repeated if another gateway has written notes in
/// the meantime.
const TRIES_MAX: usize = 16;

/// Why a configuration must not be used with this store.
#[derive(Debug, Clone, thiserror::Error)]
pub enum IdentityCheckError {
    /// The configuration would change identities.
    #[error("{}", change_text(.0))]
    Changed(Vec<IdentityChange>),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

fn change_text(changes: &[IdentityChange]) -> String {
    let changes: Vec<String> = changes.iter().map(|change| format!("\n  - {change}")).collect();
    format!(
        "this configuration gives operations other identities than those that the store keeps, \
         so that duplicates of what was answered would run again:{}\n\
         If nothing that was answered is sent again any more, accept it once with \
         --accept-new-identities (or ONCEWARD_ACCEPT_NEW_IDENTITIES=true).",
        changes.concat()
    )
}

/// Compares a configuration with the store's notes. If no identity changes, or if `accept` is set,
/// writes the configuration's notes. Logs a warning for each route that has notes and is not
/// configured any more. Returns the number of these routes; with `accept` their notes are removed,
/// and the number is 0.
///
/// # Errors
/// The configuration would change identities, or the store failed. After a failure of the store the
/// check may be repeated.
pub async fn check_identities(
    store: &dyn IdentityNotes,
    configured: &Identities,
    accept: bool,
) -> Result<usize, IdentityCheckError> {
    for _ in 0..TRIES_MAX {
        let kept = notes(store).await?;
        let compared = configured.compare(&kept);
        if !compared.changes.is_empty() {
            if !accept {
                return Err(IdentityCheckError::Changed(compared.changes));
            }
            compared
                .changes
                .iter()
                .for_each(|change| tracing::warn!("new identities are accepted: {change}"));
        }
        let next = if accept { &compared.accepted } else { &compared.next };
        if write_notes(store, &kept, next).await? {
            compared.remarks.iter().for_each(|remark| tracing::warn!("{remark}"));
            if accept {
                compared.vanished.iter().for_each(|gone| {
                    tracing::warn!(
                        route = gone.route,
                        "a route that is not configured any more is forgotten"
                    )
                });
                return Ok(0);
            }
            compared.vanished.iter().for_each(|gone| tracing::warn!("{gone}"));
            return Ok(compared.vanished.len());
        }
    }
    Err(StoreError::NotApplied("other gateways keep changing what identities are made of".into())
        .into())
}

/// Reads the notes about identities. The identities are read before the paths, because gateways
/// write them after the paths. So the store has the paths of every route that was read.
pub async fn notes(store: &dyn IdentityNotes) -> Result<Notes, StoreError> {
    let identities = store.note(Note::Identities).await?;
    Ok(Notes { identities, paths: store.note(Note::Paths).await? })
}

/// Writes the notes that change. The paths are written first, because a route without paths would
/// look like a renamed one. Returns `false` if another gateway has written since the notes were
/// read.
async fn write_notes(
    store: &dyn IdentityNotes,
    kept: &Notes,
    next: &Notes,
) -> Result<bool, StoreError> {
    for (note, kept, next) in [
        (Note::Paths, &kept.paths, &next.paths),
        (Note::Identities, &kept.identities, &next.identities),
    ] {
        if let Some(text) = next
            && kept != next
            && !store.set_note(note, kept.as_deref(), text).await?
        {
            return Ok(false);
        }
    }
    Ok(true)
}
