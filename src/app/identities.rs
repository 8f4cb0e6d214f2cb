//! Whether a configuration's identities are those that its store keeps: asked before anything is claimed.

use std::sync::Arc;

use anyhow::Result;
use tokio::sync::oneshot;
use tokio::time::sleep;

use super::*;
use crate::engine::Identities;
use crate::gate::{AgreeError, agree};
use crate::store::latched::Latched;

/// How often a store that doesn't answer yet is asked again.
const ASK_AGAIN: Duration = Duration::from_millis(500);

/// A store whose identities are agreed on, or will be before it opens.
pub(super) struct Agreed {
    pub store: Arc<dyn Store>,
    /// Where it doesn't answer yet: asks on, and tells if it disagrees.
    pub pending: Option<Pending>,
}

/// A comparison that waits for its store.
pub(super) struct Pending {
    pub disagreement: oneshot::Receiver<AgreeError>,
    pub asking: AbortOnDropHandle<()>,
}

/// What identities are made of by a configuration.
pub(super) fn configured(config: &Config, hashing: &Hashing) -> Identities {
    Identities::of(config.routes.iter().map(|route| &route.policy), hashing.checks())
}

/// Compares with what the store keeps. One that doesn't answer stays latched until it has told: its gateway starts not ready.
///
/// # Errors
/// The configuration would change identities.
pub(super) async fn agreed(store: Arc<dyn Store>, configured: Identities, accept: bool) -> Result<Agreed> {
    match agree(&*store, &configured, accept).await {
        Ok(()) => return Ok(Agreed { store, pending: None }),
        Err(error @ AgreeError::Changed(_)) => return Err(error.into()),
        Err(AgreeError::Store(error)) => {
            tracing::warn!(%error, "the store doesn't tell yet what identities are made of: nothing is claimed until it does");
        }
    }
    let latched = Latched::new(store.clone());
    let (tell, disagreement) = oneshot::channel();
    let asking = tokio::spawn({
        let latched = latched.clone();
        async move {
            loop {
                sleep(ASK_AGAIN).await;
                match agree(&*store, &configured, accept).await {
                    Ok(()) => return latched.open(),
                    Err(error @ AgreeError::Changed(_)) => {
                        // Who started this gateway has left.
                        let _ = tell.send(error);
                        return;
                    }
                    Err(AgreeError::Store(error)) => {
                        tracing::debug!(%error, "the store doesn't tell yet what identities are made of")
                    }
                }
            }
        }
    });
    let pending = Pending { disagreement, asking: AbortOnDropHandle::new(asking) };
    Ok(Agreed { store: latched, pending: Some(pending) })
}

/// Looks whether a configuration's identities are those that its store keeps. `None` where it keeps none, as in memory or in
/// a directory that is not there yet.
///
/// # Errors
/// A store that can't be asked; a secret that is none.
pub async fn identity_changes(config: &Config, secrets: &Secrets) -> Result<Option<Vec<String>>> {
    let kept = match &config.store.url {
        StoreUrl::Memory => None,
        StoreUrl::File(dir) if !dir.exists() => None,
        _ => {
            let kept = open_store(config, &Clock::system(), &Meter::new()).await?;
            let told = kept.store.identities().await;
            kept.close().await;
            told?
        }
    };
    let Some(kept) = kept else { return Ok(None) };
    let compared = configured(config, &hashing(secrets)?).compare(Some(&kept));
    let changes = compared.changes.iter().map(ToString::to_string);
    Ok(Some(changes.chain(compared.remarks.iter().map(ToString::to_string)).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::{Scope, Slot, Space};

    fn identities(route: &str) -> Identities {
        let policy = Policy { route: route.into(), ..fallback().unwrap() };
        Identities::of([&policy], Vec::new())
    }

    fn out_of_reach() -> (Arc<Latched>, Arc<Memory>) {
        let memory = Arc::new(Memory::new(Clock::system().anchored()));
        (Latched::new(memory.clone()), memory)
    }

    #[tokio::test(start_paused = true)]
    async fn a_store_that_comes_back_is_compared_before_it_is_used() {
        let (server, _) = out_of_reach();
        let Agreed { store, pending } = agreed(server.clone(), identities("payments"), false).await.unwrap();
        assert!(pending.is_some());
        let slot = Slot::of(Space::Enforced, "payments", &Scope::shared(), b"k", b"");
        server.open();
        assert!(server.load(&slot).await.is_ok() && store.load(&slot).await.is_err(), "it answers, and is not compared yet");
        sleep(ASK_AGAIN * 2).await;
        assert_eq!(store.load(&slot).await.unwrap(), None);
        assert_eq!(server.identities().await.unwrap(), Some(identities("payments").compare(None).next));
    }

    #[tokio::test(start_paused = true)]
    async fn a_store_that_comes_back_and_disagrees_is_never_used() {
        let (server, memory) = out_of_reach();
        let kept = identities("payments").compare(None).next;
        assert!(memory.set_identities(None, &kept).await.unwrap());
        let Agreed { store, pending } = agreed(server.clone(), identities("payouts"), false).await.unwrap();
        server.open();
        let told = pending.unwrap().disagreement.await.unwrap().to_string();
        assert!(told.contains("route \"payments\" is not configured any more"), "{told}");
        assert!(store.ping().await.is_err());
        assert_eq!(memory.identities().await.unwrap(), Some(kept));
        // Had it answered at once, there would have been no start.
        assert!(agreed(memory.clone(), identities("payouts"), false).await.is_err());
        assert!(agreed(memory, identities("payouts"), true).await.is_ok());
    }
}
