//! Checks that the store has the identities of the configuration, and that the configuration has
//! the keys of the store's outbox, at the start and before the first claim.

use std::time::Duration;

use anyhow::Result;
use tokio::sync::oneshot;
use tokio::time::{sleep, timeout};
use tokio_util::task::AbortOnDropHandle;

use super::settings::hashing;
use super::store;
use crate::clock::Clock;
use crate::config::{Config, Secrets};
use crate::engine::{Identities, Notes};
use crate::gate::{IdentityCheckError, check_identities, notes};
use crate::key::Hashing;
use crate::store::outbox_key_check::{OutboxKeyError, check_outbox_keys};
use crate::store::pending::PendingStore;
use crate::store::{Store, StoreError};
use crate::telemetry::{BreakerMeter, Meter, VanishedRoutes};

/// The pause between two tries to read from a store that does not answer yet.
const RETRY_PERIOD: Duration = Duration::from_millis(500);

/// Time after which the start goes on, and the check in the background. If a key was removed, the
/// check of a large backlog takes longer. An orchestrator must not end the process meanwhile.
const FIRST_CHECK_MAX: Duration = Duration::from_secs(5);

/// The parts of a configuration that must agree with the store.
#[derive(Clone)]
pub(super) struct StoreCheck {
    pub identities: Identities,
    /// Whether new identities are accepted.
    pub accept: bool,
    /// The metric of routes that are not configured any more.
    pub vanished: VanishedRoutes,
    /// The names of the keys that seal the contents of the store.
    pub keys: Vec<String>,
}

/// Why a store was not checked, or must not be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum StoreCheckError {
    /// The configuration would change identities.
    #[error(transparent)]
    Identities(IdentityCheckError),
    /// A key is missing.
    #[error(transparent)]
    Keys(OutboxKeyError),
    /// The store failed. The check may be repeated.
    #[error(transparent)]
    Store(StoreError),
}

impl From<IdentityCheckError> for StoreCheckError {
    fn from(error: IdentityCheckError) -> StoreCheckError {
        match error {
            IdentityCheckError::Store(error) => StoreCheckError::Store(error),
            error @ IdentityCheckError::Changed(_) => StoreCheckError::Identities(error),
        }
    }
}

impl From<OutboxKeyError> for StoreCheckError {
    fn from(error: OutboxKeyError) -> StoreCheckError {
        match error {
            OutboxKeyError::Store(error) => StoreCheckError::Store(error),
            error @ OutboxKeyError::Missing(_) => StoreCheckError::Keys(error),
        }
    }
}

impl StoreCheck {
    /// Checks a store. First the identities, which are read quickly.
    async fn run(&self, store: &Store) -> Result<(), StoreCheckError> {
        let vanished = check_identities(&*store.identities, &self.identities, self.accept).await?;
        check_outbox_keys(store, &self.keys).await?;
        self.vanished.set(vanished);
        Ok(())
    }
}

/// A store with checked identities, or a closed store with a check that has to pass first.
pub(super) struct CheckedStore {
    pub store: Store,
    /// The pending check, if the store does not answer yet.
    pub pending: Option<PendingCheck>,
}

/// A check that waits for the store to answer.
pub(super) struct PendingCheck {
    pub disagreement: oneshot::Receiver<StoreCheckError>,
    pub task: AbortOnDropHandle<()>,
}

/// Returns the identities of a configuration.
pub(super) fn configured(config: &Config, hashing: &Hashing) -> Identities {
    Identities::of(
        config.all_routes().map(|route| (&route.policy, &*route.methods, &*route.paths)),
        hashing.checks(),
    )
}

/// Compares the configuration with the store. A store that does not answer stays closed until the
/// check has passed. Until then, the gateway is not ready.
///
/// # Errors
/// The configuration would change identities, or lacks a key.
pub(super) async fn check(store: Store, check: StoreCheck) -> Result<CheckedStore> {
    match timeout(FIRST_CHECK_MAX, check.run(&store)).await {
        Ok(Ok(())) => return Ok(CheckedStore { store, pending: None }),
        Ok(Err(StoreCheckError::Store(error))) => {
            tracing::warn!(
                %error,
                "the store has not returned its identities yet: nothing is claimed until it does"
            );
        }
        Ok(Err(refusal)) => return Err(refusal.into()),
        Err(_) => tracing::warn!(
            "the check of identities and keys takes long: nothing is claimed until it has passed"
        ),
    }
    let waiting = PendingStore::new(store.clone());
    let (report, disagreement) = oneshot::channel();
    let task = tokio::spawn({
        let waiting = waiting.clone();
        async move {
            loop {
                sleep(RETRY_PERIOD).await;
                match check.run(&store).await {
                    Ok(()) => return waiting.open(),
                    Err(StoreCheckError::Store(error)) => {
                        tracing::debug!(%error, "the store has not returned its identities yet")
                    }
                    Err(refusal) => {
                        // The gateway may have ended meanwhile.
                        let _ = report.send(refusal);
                        return;
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

    fn check_of(route: &str, accept: bool) -> StoreCheck {
        StoreCheck {
            identities: identities(route),
            accept,
            vanished: VanishedRoutes::default(),
            keys: Vec::new(),
        }
    }

    fn out_of_reach() -> (Arc<PendingStore>, Arc<Memory>) {
        let memory = Arc::new(Memory::new(Clock::system().anchored()));
        (PendingStore::new(memory.clone().into()), memory)
    }

    #[tokio::test(start_paused = true)]
    async fn a_store_that_comes_back_is_compared_before_it_is_used() {
        let (server, _) = out_of_reach();
        let CheckedStore { store, pending } =
            check(server.store(), check_of("payments", false)).await.unwrap();
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
            check(server.store(), check_of("payouts", false)).await.unwrap();
        server.open();
        let error = pending.unwrap().disagreement.await.unwrap().to_string();
        assert!(error.contains("route \"payments\" is not configured any more"), "{error}");
        assert!(store.records.ping().await.is_err());
        assert_eq!(notes(&*memory).await.unwrap(), kept);
        // With an answer of the store at the start, the gateway would not have started.
        assert!(check(memory.clone().into(), check_of("payouts", false)).await.is_err());
        assert!(check(memory.into(), check_of("payouts", true)).await.is_ok());
    }
}
