//! Keeps the read model up to date where there is an event log to read: beside the gateway, or in a process of its own.

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

/// The file's name, in whatever folder it lies.
const FILE: &str = "read-model.sqlite";

/// How often a gateway looks how far another process has brought the file.
const LOOK_PERIOD: Duration = Duration::from_secs(1);

/// A read model that follows a store's log for as long as this is held.
pub(super) struct Following {
    /// What is asked.
    pub model: Arc<ReadModel>,
    _task: AbortOnDropHandle<()>,
}

/// Opens the read model and begins to follow, or to look how far who follows is; `None` where there is none, or no log.
pub(super) async fn follow(
    config: &Config,
    store: Store,
    clock: &Clock,
) -> Result<Option<Following>> {
    let (Some(keep), Some(wanted)) = (config.log_keep, &config.read_model) else { return Ok(None) };
    let model = open(configured_place(config, wanted)).await?;
    let task = if wanted.project {
        tokio::spawn(projector(model.clone(), store, keep, clock.clone()).follow())
    } else {
        tokio::spawn(look(model.clone()))
    };
    Ok(Some(Following { model, _task: AbortOnDropHandle::new(task) }))
}

/// A read model that a process without a gateway keeps up to date.
pub struct Projection(Following);

impl Projection {
    /// Opens the configured store and read model, and begins to follow; `rebuild`: from the beginning of the log. It reads no
    /// records, and needs no secret beside the store's own.
    ///
    /// # Errors
    /// There is no log, no file, or a store that no other process can read; or one of them can't be opened.
    pub async fn start(config: &Config, rebuild: bool) -> Result<Projection> {
        let Some(keep) = config.log_keep else {
            bail!("the event log is off: set enabled = true under [log]")
        };
        let Some(wanted) = &config.read_model else {
            bail!("the read model is switched off: set enabled = true under [read_model]")
        };
        if !store::settings(config, BreakerMeter::default()).capabilities().shared {
            bail!(
                "the store {} can't be read by another process: its gateway keeps the read model itself",
                config.store.url
            );
        }
        let Some(place) = configured_place(config, wanted) else {
            bail!("nobody else could read what is built in memory: set path under [read_model]")
        };
        let clock = Clock::system();
        let store = store::open(config, &clock, &Meter::new()).await?.store;
        let model = open(Some(place)).await?;
        if rebuild {
            let emptied = model.clone();
            tokio::task::spawn_blocking(move || emptied.clear()).await??;
        }
        let task = tokio::spawn(projector(model.clone(), store, keep, clock).follow());
        Ok(Projection(Following { model, _task: AbortOnDropHandle::new(task) }))
    }

    /// How far it is.
    pub fn freshness(&self) -> Freshness {
        self.0.model.freshness()
    }
}

async fn open(place: Option<PathBuf>) -> Result<Arc<ReadModel>> {
    let opened = tokio::task::spawn_blocking(move || match &place {
        Some(file) => ReadModel::open(file),
        None => ReadModel::in_memory(),
    });
    Ok(Arc::new(opened.await?.context("the read model can't be opened")?))
}

fn projector(model: Arc<ReadModel>, store: Store, keep: Duration, clock: Clock) -> Projector {
    Projector::new(model, store.log, keep, Arc::new(move || clock.unix_ms()))
}

/// Looks again and again how far the file is. A look that fails is followed by another: the lag that is shown grows meanwhile.
async fn look(model: Arc<ReadModel>) {
    loop {
        let looked = model.clone();
        let look = move || looked.repair().and_then(|_| looked.refresh());
        if let Ok(Err(error)) = tokio::task::spawn_blocking(look).await {
            tracing::warn!(%error, "how far the read model is can't be seen");
        }
        sleep(LOOK_PERIOD).await;
    }
}

fn configured_place(config: &Config, wanted: &ReadModelConfig) -> Option<PathBuf> {
    let state = || std::env::var_os("STATE_DIRECTORY").map(PathBuf::from);
    wanted
        .path
        .clone()
        .or_else(|| place(&store::settings(config, BreakerMeter::default()), state()))
}

/// Where the file is: beside an embedded store; for one that is elsewhere in the folder that a service manager gives (the first, where
/// it gives several). Without such a folder it is in memory: it is made of the log, and is made of it anew after a restart.
fn place(store: &StoreSettings, state_directory: Option<PathBuf>) -> Option<PathBuf> {
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
    fn the_file_lies_beside_the_store_or_where_the_service_manager_says() {
        let beside = place(&StoreSettings::File("/data".into()), Some("/state".into()));
        assert_eq!(beside, Some("/data/read-model.sqlite".into()));
        assert_eq!(place(&StoreSettings::Memory, Some("/state".into())), None);
        let redis = Config::load(
            None,
            crate::config::Overrides {
                upstream: Some("http://localhost".into()),
                store: Some("redis://localhost".into()),
                ..Default::default()
            },
        );
        let redis = store::settings(&redis.unwrap(), BreakerMeter::default());
        assert_eq!(
            place(&redis, Some("/state:/other".into())),
            Some("/state/read-model.sqlite".into())
        );
        assert_eq!(place(&redis, None), None);
    }
}
