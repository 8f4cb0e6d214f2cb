//! Whether a configuration's identities are those that its store keeps: asked before anything is claimed.

use anyhow::Result;
use tokio::sync::oneshot;
use tokio::time::sleep;

use super::*;
use crate::engine::{Identities, Notes};
use crate::gate::{IdentityCheckError, check_identities, notes};
use crate::store::Store;
use crate::store::pending::PendingStore;
use crate::telemetry::{BreakerMeter, VanishedRoutes};

/// How often a store that doesn't answer yet is asked again.
const ASK_AGAIN: Duration = Duration::from_millis(500);

/// A store whose identities are agreed on, or will be before it opens.
pub(super) struct Agreed {
    pub store: Store,
    /// Where it doesn't answer yet: asks on, and tells if it disagrees.
    pub pending: Option<Pending>,
}

/// A comparison that waits for its store.
pub(super) struct Pending {
    pub disagreement: oneshot::Receiver<IdentityCheckError>,
    pub asking: AbortOnDropHandle<()>,
}

/// What identities are made of by a configuration.
pub(super) fn configured(config: &Config, hashing: &Hashing) -> Identities {
    Identities::of(
        config.routes.iter().map(|route| (&route.policy, &*route.methods, &*route.paths)),
        hashing.checks(),
    )
}

/// Compares with what the store keeps. One that doesn't answer stays latched until it has told: its gateway starts not ready.
///
/// # Errors
/// The configuration would change identities.
pub(super) async fn agreed(
    store: Store,
    configured: Identities,
    accept: bool,
    vanished: &VanishedRoutes,
) -> Result<Agreed> {
    match check_identities(&*store.identities, &configured, accept).await {
        Ok(count) => {
            vanished.set(count);
            return Ok(Agreed { store, pending: None });
        }
        Err(error @ IdentityCheckError::Changed(_)) => return Err(error.into()),
        Err(IdentityCheckError::Store(error)) => {
            tracing::warn!(%error, "the store doesn't tell yet what identities are made of: nothing is claimed until it does");
        }
    }
    let waiting = PendingStore::new(store.clone());
    let (tell, disagreement) = oneshot::channel();
    let asking = tokio::spawn({
        let (waiting, vanished) = (waiting.clone(), vanished.clone());
        async move {
            loop {
                sleep(ASK_AGAIN).await;
                match check_identities(&*store.identities, &configured, accept).await {
                    Ok(count) => {
                        vanished.set(count);
                        return waiting.open();
                    }
                    Err(error @ IdentityCheckError::Changed(_)) => {
                        // Who started this gateway has left.
                        let _ = tell.send(error);
                        return;
                    }
                    Err(IdentityCheckError::Store(error)) => {
                        tracing::debug!(%error, "the store doesn't tell yet what identities are made of")
                    }
                }
            }
        }
    });
    let pending = Pending { disagreement, asking: AbortOnDropHandle::new(asking) };
    Ok(Agreed { store: waiting.store(), pending: Some(pending) })
}

/// Looks whether a configuration's identities are those that its store keeps, and whether all routes are still configured. `None` where it keeps none, as in memory or in
/// a directory that is not there yet.
///
/// # Errors
/// A store that can't be asked; a secret that is none.
pub async fn identity_changes(config: &Config, secrets: &Secrets) -> Result<Option<Vec<String>>> {
    let kept = if store::settings(config, BreakerMeter::default()).may_exist() {
        let opened = store::open(config, &Clock::system(), &Meter::new()).await?;
        let read = notes(&*opened.store.identities).await;
        opened.close().await;
        read?
    } else {
        Notes::default()
    };
    if kept.identities.is_none() {
        return Ok(None);
    }
    let compared = configured(config, &hashing(secrets)?).compare(&kept);
    let (changes, vanished) = (compared.changes.iter(), compared.vanished.iter());
    let changes = changes.map(ToString::to_string).chain(vanished.map(ToString::to_string));
    Ok(Some(changes.chain(compared.remarks.iter().map(ToString::to_string)).collect()))
}

#[cfg(test)]
mod tests {
    use http::Method;

    use super::*;
    use crate::key::{Scope, Slot, Space};
    use crate::store::Records;
    use crate::store::memory::Memory;

    fn identities(route: &str) -> Identities {
        let policy = Policy { route: route.into(), ..fallback().unwrap() };
        Identities::of(
            [(&policy, &[Method::POST][..], &["/v1/payments".to_owned()][..])],
            Vec::new(),
        )
    }

    fn out_of_reach() -> (Arc<PendingStore>, Arc<Memory>) {
        let memory = Arc::new(Memory::new(Clock::system().anchored()));
        (PendingStore::new(memory.clone().into()), memory)
    }

    #[tokio::test(start_paused = true)]
    async fn a_store_that_comes_back_is_compared_before_it_is_used() {
        let (server, _) = out_of_reach();
        let Agreed { store, pending } =
            agreed(server.store(), identities("payments"), false, &VanishedRoutes::default())
                .await
                .unwrap();
        assert!(pending.is_some());
        let slot = Slot::of(Space::Enforced, "payments", &Scope::shared(), b"k", b"");
        server.open();
        assert!(
            server.load(&slot).await.is_ok() && store.records.load(&slot).await.is_err(),
            "it answers, and is not compared yet"
        );
        sleep(ASK_AGAIN * 2).await;
        assert_eq!(store.records.load(&slot).await.unwrap(), None);
        assert_eq!(
            notes(&*server).await.unwrap(),
            identities("payments").compare(&Notes::default()).next
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_store_that_comes_back_and_disagrees_is_never_used() {
        let (server, memory) = out_of_reach();
        check_identities(&*memory, &identities("payments"), false).await.unwrap();
        let kept = notes(&*memory).await.unwrap();
        let Agreed { store, pending } =
            agreed(server.store(), identities("payouts"), false, &VanishedRoutes::default())
                .await
                .unwrap();
        server.open();
        let told = pending.unwrap().disagreement.await.unwrap().to_string();
        assert!(told.contains("route \"payments\" is not configured any more"), "{told}");
        assert!(store.records.ping().await.is_err());
        assert_eq!(notes(&*memory).await.unwrap(), kept);
        // Had it answered at once, there would have been no start.
        assert!(
            agreed(memory.clone().into(), identities("payouts"), false, &VanishedRoutes::default())
                .await
                .is_err()
        );
        assert!(
            agreed(memory.into(), identities("payouts"), true, &VanishedRoutes::default())
                .await
                .is_ok()
        );
    }
}
