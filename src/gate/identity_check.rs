//! Agreeing with the store on what identities are made of, before anything is claimed.

use crate::engine::{Change, Identities, Notes};
use crate::store::{IdentityNotes, Note, StoreError};

/// How often the comparison is begun anew because another gateway has written meanwhile.
const TRIES_MAX: usize = 16;

/// A configuration that is not agreed on.
#[derive(Debug, Clone, thiserror::Error)]
pub enum IdentityCheckError {
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

/// Compares a configuration with what the store keeps, and has it kept where nothing changes or `accept` says so. Returns how
/// many routes that protected operations are not configured any more, each of which is a warning in the log.
///
/// # Errors
/// It would change identities; the store can't tell, and may be asked again.
pub async fn agree(
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

/// Reads the notes of identities. The identities come first: a route that is in them has its paths in the store already.
pub async fn notes(store: &dyn IdentityNotes) -> Result<Notes, StoreError> {
    let identities = store.note(Note::Identities).await?;
    Ok(Notes { identities, paths: store.note(Note::Paths).await? })
}

/// Writes the notes that change. The paths come first: a route whose paths are missing can't be told from a renamed one.
/// Returns whether the store held what was read before.
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
