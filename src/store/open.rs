//! Opens a store from its settings. Only this module names all kinds of stores, with their
//! capabilities.

use std::path::{Path, PathBuf};
use std::sync::Arc;
#[cfg(feature = "redis")]
use std::time::Duration;

#[cfg(feature = "redis")]
use super::cache::LocalCache;
#[cfg(feature = "redis")]
use super::cached::Cached;
use super::copy::{CopyError, CopyTarget};
use super::embedded::{CopiedFile, Embedded, EmbeddedOptions, OpenError};
use super::error::StoreError;
use super::memory::Memory;
#[cfg(feature = "redis")]
use super::redis::{self, ConnectError, CopiedRedis, Presence, Redis};
use super::sealed::{Sealed, SealingKeys};
use super::{Remark, Store};
use crate::clock::Clock;
use crate::telemetry::CacheMeter;

/// Lower limit for the timeout of a call during a copy. Batches are large, and no client waits for
/// the answer.
#[cfg(feature = "redis")]
const COPY_CALL_TIMEOUT_MIN: Duration = Duration::from_secs(10);

/// A kind of store, with the settings to open it.
#[derive(Clone)]
pub enum StoreSettings {
    /// The memory of this process.
    Memory,
    /// A file in this folder.
    File(PathBuf),
    /// Redis servers.
    #[cfg(feature = "redis")]
    Redis(Box<redis::RedisOptions>),
}

/// Capabilities of a store, known before it is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capabilities {
    /// Whether the records outlive the process.
    pub durable: bool,
    /// Whether several processes can use the store at the same time: gateways, and readers of the
    /// event log.
    pub shared: bool,
    /// Whether the store can be the source and the target of a copy.
    pub copyable: bool,
    /// Whether the process may cache completed records, because the store reports their changes.
    pub cacheable: bool,
}

/// Reasons why a store can't be opened.
#[derive(Debug, thiserror::Error)]
pub enum StoreOpenError {
    /// The folder or the file can't be used.
    #[error(transparent)]
    File(#[from] OpenError),
    /// The options are invalid.
    #[cfg(feature = "redis")]
    #[error(transparent)]
    Redis(#[from] ConnectError),
    /// The store can't be this end of a copy.
    #[error(transparent)]
    Copy(#[from] CopyError),
}

/// End of a copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CopyEnd {
    /// The store that is copied.
    Source,
    /// The store that is copied into.
    Target,
}

/// A cache of completed records in the process.
pub struct CacheSettings {
    /// Size in bytes; 0: no cache.
    pub bytes: usize,
    /// The clock that decides when cached records end.
    pub clock: Clock,
    /// Metrics of the cache, such as hits.
    pub meter: CacheMeter,
}

impl StoreSettings {
    /// Returns the capabilities of the store.
    pub fn capabilities(&self) -> Capabilities {
        match self {
            StoreSettings::Memory => {
                Capabilities { durable: false, shared: false, copyable: false, cacheable: false }
            }
            StoreSettings::File(_) => {
                Capabilities { durable: true, shared: false, copyable: true, cacheable: false }
            }
            #[cfg(feature = "redis")]
            StoreSettings::Redis(options) => Capabilities {
                durable: true,
                shared: true,
                copyable: true,
                // Nodes of a cluster don't report changes of each other's keys.
                cacheable: !matches!(options.endpoint, redis::Endpoint::Cluster(_)),
            },
        }
    }

    /// Returns the folder of the store's file; `None` if the store is not in a file.
    pub fn folder(&self) -> Option<&Path> {
        match self {
            StoreSettings::File(folder) => Some(folder),
            StoreSettings::Memory => None,
            #[cfg(feature = "redis")]
            StoreSettings::Redis(_) => None,
        }
    }

    /// Whether the store may have contents before it is opened. A store in memory has none.
    pub fn may_exist(&self) -> bool {
        self.capabilities().durable && self.folder().is_none_or(Path::exists)
    }

    /// Opens the store. Must be called within a tokio runtime. Blocks for the disk. Does not wait
    /// for servers: calls fail while the servers are out of reach.
    ///
    /// # Errors
    /// The folder can't be used, or the options are invalid.
    pub fn open(&self, clock: &Clock) -> Result<OpenStore, StoreOpenError> {
        let (store, backend) = match self {
            StoreSettings::Memory => {
                (Arc::new(Memory::new(clock.anchored())).into(), Backend::Memory)
            }
            StoreSettings::File(folder) => {
                let embedded = Arc::new(Embedded::open(folder, embedded_options(clock))?);
                (embedded.clone().into(), Backend::Embedded(embedded))
            }
            #[cfg(feature = "redis")]
            StoreSettings::Redis(options) => {
                let redis = Redis::connect((**options).clone())?;
                (redis.clone().into(), Backend::Redis { redis, presence: None })
            }
        };
        Ok(OpenStore { store, settings: self.clone(), backend })
    }

    /// Opens the store as one end of a copy.
    ///
    /// # Errors
    /// The store can't be copied, or can't be used.
    pub fn open_for_copy(
        &self,
        end: CopyEnd,
        clock: &Clock,
    ) -> Result<Box<dyn CopyTarget>, StoreOpenError> {
        match self {
            StoreSettings::Memory => Err(CopyError::Refused(
                "memory: belongs to one process, and can't be copied".into(),
            )
            .into()),
            StoreSettings::File(folder) => {
                let options = embedded_options(clock);
                Ok(Box::new(match end {
                    CopyEnd::Source => CopiedFile::source(folder, options)?,
                    CopyEnd::Target => CopiedFile::target(folder, options)?,
                }))
            }
            #[cfg(feature = "redis")]
            StoreSettings::Redis(options) => {
                let mut options = (**options).clone();
                options.timeout = options.timeout.max(COPY_CALL_TIMEOUT_MIN);
                Ok(Box::new(CopiedRedis::connect(options)?))
            }
        }
    }
}

fn embedded_options(clock: &Clock) -> EmbeddedOptions {
    let boot = clock.clone();
    EmbeddedOptions::new(Arc::new(move || boot.boot_ms()), clock.unix_ms())
}

/// An open store.
pub struct OpenStore {
    /// The store, without wrappers.
    pub store: Store,
    settings: StoreSettings,
    backend: Backend,
}

enum Backend {
    Memory,
    Embedded(Arc<Embedded>),
    #[cfg(feature = "redis")]
    Redis {
        redis: Arc<Redis>,
        presence: Option<Presence>,
    },
}

impl OpenStore {
    /// Returns the store as gateways use it: sealed with `keys`, if there are any, and cached if
    /// `cache` has a size and the store permits a cache.
    ///
    /// The cache is the outermost wrapper. It keeps decrypted records, so a replay from the cache
    /// needs no decryption.
    ///
    /// # Errors
    /// The cache can't be set up.
    #[cfg_attr(
        not(feature = "redis"),
        allow(unused_variables, reason = "only records in Redis are cached")
    )]
    pub fn for_gateway(
        &self,
        keys: Option<Arc<SealingKeys>>,
        cache: CacheSettings,
    ) -> Result<Store, StoreOpenError> {
        let mut store = self.store.clone();
        if let Some(keys) = keys {
            store = Sealed::store(store, keys);
        }
        match &self.settings {
            #[cfg(feature = "redis")]
            StoreSettings::Redis(options)
                if cache.bytes > 0 && self.settings.capabilities().cacheable =>
            {
                let (local, wanted) = LocalCache::new(cache.bytes, cache.clock, cache.meter);
                let tracker = redis::track(options, local.clone(), wanted)?;
                store.records = Arc::new(Cached::new(store.records, local, tracker));
                Ok(store)
            }
            #[cfg(feature = "redis")]
            StoreSettings::Redis(_) => Ok(store),
            StoreSettings::Memory | StoreSettings::File(_) => Ok(store),
        }
    }

    /// Announces to other processes that a gateway uses the store. A store in a file needs no
    /// announcement, because its file is locked.
    pub fn announce(&mut self) {
        match &mut self.backend {
            Backend::Memory | Backend::Embedded(_) => {}
            #[cfg(feature = "redis")]
            Backend::Redis { redis, presence } => *presence = Some(Presence::announce(redis)),
        }
    }

    /// Checks the settings of the servers; `None` if the store has no servers.
    ///
    /// # Errors
    /// A server can't be reached.
    pub async fn survey(&self) -> Result<Option<Vec<Remark>>, StoreError> {
        match &self.backend {
            Backend::Memory | Backend::Embedded(_) => Ok(None),
            #[cfg(feature = "redis")]
            Backend::Redis { redis, .. } => redis.preflight().await.map(Some),
        }
    }

    /// Completes earlier requests, then releases the file or ends the announcement.
    pub async fn close(&self) {
        match &self.backend {
            Backend::Memory => {}
            Backend::Embedded(embedded) => embedded.close().await,
            #[cfg(feature = "redis")]
            Backend::Redis { presence, .. } => {
                if let Some(presence) = presence {
                    presence.end().await;
                }
            }
        }
    }
}
