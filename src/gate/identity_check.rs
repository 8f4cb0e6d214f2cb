//! Compares how a configuration makes identities with the store's notes, before anything is
//! claimed.

use crate::engine::{Identities, IdentityChange, Notes};
use crate::store::{IdentityNotes, Note, StoreError};

/// How often the comparison starts again because another gateway has written in the meantime.
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

/// Compares a configuration with the store's notes, and writes its own notes where no identity
/// changes, or `accept` is set. Returns how many routes that protected operations are not
/// configured any more, and logs a warning for each.
///
/// # Errors
/// The configuration would change identities. Or the store failed: then the check may be repeated.
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

/// Reads the notes about identities. The identities come first: the paths of a route in them are
/// already in the store.
pub async fn notes(store: &dyn IdentityNotes) -> Result<Notes, StoreError> {
    let identities = store.note(Note::Identities).await?;
    Ok(Notes { identities, paths: store.note(Note::Paths).await? })
}

/// Writes the notes that change. The paths come first: a route without paths would look like a
/// renamed one. Returns `false`, where another gateway has written since the notes were read.
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
