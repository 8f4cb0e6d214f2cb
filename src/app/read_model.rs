//! Keeps the read model up to date with the event log, in the gateway's process or in a separate
//! one.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tokio::time::sleep;
use tokio_util::task::AbortOnDropHandle;

use super::store;
use crate::clock::Clock;
use crate::config::{Config, ReadModelConfig};
pub use crate::read_model::Freshness;
use crate::read_model::{Projector, ReadModel};
use crate::store::Store;
use crate::store::open::StoreSettings;
use crate::telemetry::{BreakerMeter, Meter};

/// The name of the file.
const FILE: &str = "read-model.sqlite";

/// How often a gateway reads the file's position, if another process updates the file.
const REFRESH_PERIOD: Duration = Duration::from_secs(1);

/// A read model that follows the event log while this is held.
pub(super) struct FollowedReadModel {
    /// The read model.
    pub model: Arc<ReadModel>,
    _task: AbortOnDropHandle<()>,
}

/// Opens the read model, and starts to follow the log. If another process updates the file, only
/// refreshes the position from the file. Returns `None` if there is no read model or no log.
pub(super) async fn follow(
    config: &Config,
    store: Store,
    clock: &Clock,
) -> Result<Option<FollowedReadModel>> {
    let (Some(keep), Some(wanted)) = (config.log_keep, &config.read_model) else { return Ok(None) };
    let model = open(configured_path(config, wanted)?).await?;
    let task = if wanted.project {
        tokio::spawn(projector(model.clone(), store, keep, clock.clone()).follow())
    } else {
        tokio::spawn(refresh(model.clone()))
    };
    Ok(Some(FollowedReadModel { model, _task: AbortOnDropHandle::new(task) }))
}

/// A read model that a process without a gateway keeps up to date.
pub struct Projection(FollowedReadModel);

impl Projection {
    /// Opens the configured store and read model, and starts to follow the log. With `rebuild`, it
    /// begins at the start of the log. It reads no records, and needs no secrets except the store's
    /// own.
    ///
    /// # Errors
    /// There is no log, no file, or no store that several processes can read, or one of them can't
    /// be opened.
    pub async fn start(config: &Config, rebuild: bool) -> Result<Projection> {
        let Some(keep) = config.log_keep else {
            bail!("the event log is off: set enabled = true under [log]")
        };
        let Some(wanted) = &config.read_model else {
            bail!("the read model is switched off: set enabled = true under [read_model]")
        };
        if !store::settings(config, BreakerMeter::default())?.capabilities().shared {
            bail!(
                "the store {} can't be read by another process: its gateway keeps the read model \
                 itself",
                config.store.url
            );
        }
        let Some(path) = configured_path(config, wanted)? else {
            bail!(
                "a read model in memory can't be read by another process: set path under \
                 [read_model]"
            )
        };
        let clock = Clock::system();
        let store = store::open(config, &clock, &Meter::new()).await?.store;
        let model = open(Some(path)).await?;
        if rebuild {
            let emptied = model.clone();
            tokio::task::spawn_blocking(move || emptied.clear()).await??;
        }
        let task = tokio::spawn(projector(model.clone(), store, keep, clock).follow());
        Ok(Projection(FollowedReadModel { model, _task: AbortOnDropHandle::new(task) }))
    }

    /// Returns the position of the read model.
    pub fn freshness(&self) -> Freshness {
        self.0.model.freshness()
    }
}

async fn open(path: Option<PathBuf>) -> Result<Arc<ReadModel>> {
    let opened = tokio::task::spawn_blocking(move || match &path {
        Some(file) => ReadModel::open(file),
        None => ReadModel::in_memory(),
    });
    Ok(Arc::new(opened.await?.context("the read model can't be opened")?))
}

fn projector(model: Arc<ReadModel>, store: Store, keep: Duration, clock: Clock) -> Projector {
    Projector::new(model, store.log, keep, Arc::new(move || clock.unix_ms()))
}

/// Refreshes the position of the file forever. A failed refresh is tried again. Until it succeeds,
/// the displayed lag grows.
async fn refresh(model: Arc<ReadModel>) {
    loop {
        let refreshed = model.clone();
        let refresh = move || refreshed.repair().and_then(|_| refreshed.refresh());
        if let Ok(Err(error)) = tokio::task::spawn_blocking(refresh).await {
            tracing::warn!(%error, "the position of the read model can't be read");
        }
        sleep(REFRESH_PERIOD).await;
    }
}

fn configured_path(config: &Config, read_model: &ReadModelConfig) -> Result<Option<PathBuf>> {
    let state = || std::env::var_os("STATE_DIRECTORY").map(PathBuf::from);
    if let Some(path) = &read_model.path {
        return Ok(Some(path.clone()));
    }
    Ok(default_path(&store::settings(config, BreakerMeter::default())?, state()))
}

/// Returns the path of the file. It is in the folder of an embedded store. For other stores, it is
/// in the folder that the service manager provides (the first one, if there are several). Without
/// such a folder the read model is in memory, and is rebuilt after a restart.
fn default_path(store: &StoreSettings, state_directory: Option<PathBuf>) -> Option<PathBuf> {
    if let Some(folder) = store.folder() {
        return Some(folder.join(FILE));
    }
    let folders = state_directory.filter(|_| store.capabilities().durable)?;
    let first = folders.to_str()?.split(':').next().filter(|first| !first.is_empty())?;
    Some(PathBuf::from(first).join(FILE))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_is_beside_the_store_or_in_the_service_managers_folder() {
        let beside = default_path(&StoreSettings::File("/data".into()), Some("/state".into()));
        assert_eq!(beside, Some("/data/read-model.sqlite".into()));
        assert_eq!(default_path(&StoreSettings::Memory, Some("/state".into())), None);
        let redis = Config::load(
            None,
            crate::config::Overrides {
                upstream: Some("http://localhost".into()),
                store: Some("redis://localhost".into()),
                ..Default::default()
            },
        );
        let redis = store::settings(&redis.unwrap(), BreakerMeter::default()).unwrap();
        assert_eq!(
            default_path(&redis, Some("/state:/other".into())),
            Some("/state/read-model.sqlite".into())
        );
        assert_eq!(default_path(&redis, None), None);
    }
}
