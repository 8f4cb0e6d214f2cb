//! Checks that the store has the identities of the configuration, at the start and before the first
//! claim.

use std::time::Duration;

use anyhow::Result;
use tokio::sync::oneshot;
use tokio::time::sleep;
use tokio_util::task::AbortOnDropHandle;

use super::settings::hashing;
use super::store;
use crate::clock::Clock;
use crate::config::{Config, Secrets};
use crate::engine::{Identities, Notes};
use crate::gate::{IdentityCheckError, check_identities, notes};
use crate::key::Hashing;
use crate::store::Store;
use crate::store::pending::PendingStore;
use crate::telemetry::{BreakerMeter, Meter, VanishedRoutes};

/// The pause between two tries to read from a store that does not answer yet.
const RETRY_PERIOD: Duration = Duration::from_millis(500);

/// A store with checked identities, or a closed store with a check that has to pass first.
pub(super) struct CheckedStore {
    pub store: Store,
    /// The pending check, if the store does not answer yet.
    pub pending: Option<PendingCheck>,
}

/// A check that waits for the store to answer.
pub(super) struct PendingCheck {
    pub disagreement: oneshot::Receiver<IdentityCheckError>,
    pub task: AbortOnDropHandle<()>,
}

/// Returns the identities of a configuration.
pub(super) fn configured(config: &Config, hashing: &Hashing) -> Identities {
    Identities::of(
        config.routes.iter().map(|route| (&route.policy, &*route.methods, &*route.paths)),
        hashing.checks(),
    )
}

/// Compares the identities of the configuration with the ones in the store. A store that does not
/// answer stays closed until the check has passed. Until then, the gateway is not ready.
///
/// # Errors
/// The configuration would change identities.
pub(super) async fn check(
    store: Store,
    configured: Identities,
    accept: bool,
    vanished: &VanishedRoutes,
) -> Result<CheckedStore> {
    match check_identities(&*store.identities, &configured, accept).await {
        Ok(count) => {
            vanished.set(count);
            return Ok(CheckedStore { store, pending: None });
        }
        Err(error @ IdentityCheckError::Changed(_)) => return Err(error.into()),
        Err(IdentityCheckError::Store(error)) => {
            tracing::warn!(
                %error,
                "the store has not returned its identities yet: nothing is claimed until it does"
            );
        }
    }
    let waiting = PendingStore::new(store.clone());
    let (report, disagreement) = oneshot::channel();
    let task = tokio::spawn({
        let (waiting, vanished) = (waiting.clone(), vanished.clone());
        async move {
            loop {
                sleep(RETRY_PERIOD).await;
                match check_identities(&*store.identities, &configured, accept).await {
                    Ok(count) => {
                        vanished.set(count);
                        return waiting.open();
                    }
                    Err(error @ IdentityCheckError::Changed(_)) => {
                        // The gateway may have ended meanwhile.
                        let _ = report.send(error);
                        return;
                    }
                    Err(IdentityCheckError::Store(error)) => {
                        tracing::debug!(%error, "the store has not returned its identities yet")
                    }
                }
            }
        }
    });
    let pending = PendingCheck { disagreement, task: AbortOnDropHandle::new(task) };
    Ok(CheckedStore { store: waiting.store(), pending: Some(pending) })
}

/// Returns the differences between the identities and routes of a configuration and the ones in the
/// store. Returns `None` if the store has no identities, for example in memory or in a directory
/// that does not exist yet.
///
/// # Errors
/// The store can't be read, or a secret is unusable.
pub async fn identity_changes(config: &Config, secrets: &Secrets) -> Result<Option<Vec<String>>> {
    let kept = if store::settings(config, BreakerMeter::default())?.may_exist() {
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
    use std::sync::Arc;

    use http::Method;

    use super::*;
    use crate::app::settings::fallback;
    use crate::engine::Policy;
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
        let CheckedStore { store, pending } =
            check(server.store(), identities("payments"), false, &VanishedRoutes::default())
                .await
                .unwrap();
        assert!(pending.is_some());
        let slot = Slot::of(Space::Enforced, "payments", &Scope::shared(), b"k", b"");
        server.open();
        assert!(
            server.load(&slot).await.is_ok() && store.records.load(&slot).await.is_err(),
            "it answers, and is not compared yet"
        );
        sleep(RETRY_PERIOD * 2).await;
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
        let CheckedStore { store, pending } =
            check(server.store(), identities("payouts"), false, &VanishedRoutes::default())
                .await
                .unwrap();
        server.open();
        let error = pending.unwrap().disagreement.await.unwrap().to_string();
        assert!(error.contains("route \"payments\" is not configured any more"), "{error}");
        assert!(store.records.ping().await.is_err());
        assert_eq!(notes(&*memory).await.unwrap(), kept);
        // With an answer of the store at the start, the gateway would not have started.
        assert!(
            check(memory.clone().into(), identities("payouts"), false, &VanishedRoutes::default())
                .await
                .is_err()
        );
        assert!(
            check(memory.into(), identities("payouts"), true, &VanishedRoutes::default())
                .await
                .is_ok()
        );
    }
}
