//! Keeps the read model up to date beside the gateway, where there is an event log to read.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result};
use tokio_util::task::AbortOnDropHandle;

use crate::clock::Clock;
use crate::config::{Config, StoreUrl};
use crate::query::{Projector, ReadModel};
use crate::store::Store;

/// The file's name, in whatever folder it lies.
const FILE: &str = "read-model.sqlite";

/// A read model that follows a store's log for as long as this is held.
pub(super) struct Following {
    /// What is asked.
    pub model: Arc<ReadModel>,
    _projector: AbortOnDropHandle<()>,
}

/// Opens the read model and begins to follow; `None` where the log is off.
pub(super) async fn follow(config: &Config, store: Arc<dyn Store>, clock: &Clock) -> Result<Option<Following>> {
    let Some(keep) = config.log_keep else { return Ok(None) };
    let place = place(&config.store.url, std::env::var_os("STATE_DIRECTORY").map(PathBuf::from));
    let opened = tokio::task::spawn_blocking(move || match &place {
        Some(file) => ReadModel::open(file),
        None => ReadModel::in_memory(),
    });
    let model = Arc::new(opened.await?.context("the read model can't be opened")?);
    let now = clock.clone();
    let projector = Projector::new(model.clone(), store, keep, Arc::new(move || now.unix_ms()));
    Ok(Some(Following { model, _projector: AbortOnDropHandle::new(tokio::spawn(projector.follow())) }))
}

/// Where the file is: beside an embedded store; for one that is elsewhere in the folder that a service manager gives (the first, where
/// it gives several). Without such a folder it is in memory: it is made of the log, and is made of it anew after a restart.
fn place(store: &StoreUrl, state_directory: Option<PathBuf>) -> Option<PathBuf> {
    match store {
        StoreUrl::Memory => None,
        StoreUrl::File(folder) => Some(folder.join(FILE)),
        StoreUrl::Redis { .. } | StoreUrl::Cluster { .. } | StoreUrl::Sentinel { .. } => {
            let folders = state_directory?;
            let first = folders.to_str()?.split(':').next().filter(|first| !first.is_empty())?;
            Some(PathBuf::from(first).join(FILE))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_lies_beside_the_store_or_where_the_service_manager_says() {
        let beside = place(&StoreUrl::File("/data".into()), Some("/state".into()));
        assert_eq!(beside, Some("/data/read-model.sqlite".into()));
        assert_eq!(place(&StoreUrl::Memory, Some("/state".into())), None);
        let redis = Config::load(
            None,
            crate::config::Overrides {
                upstream: Some("http://localhost".into()),
                store: Some("redis://localhost".into()),
                ..Default::default()
            },
        );
        let redis = redis.unwrap().store.url;
        assert_eq!(place(&redis, Some("/state:/other".into())), Some("/state/read-model.sqlite".into()));
        assert_eq!(place(&redis, None), None);
    }
}
