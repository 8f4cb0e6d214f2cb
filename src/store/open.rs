//! Opens stores: the only module that names all kinds of stores, with their capabilities.

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
use super::sealed::{InvalidSealingKey, Sealed, SealingKey};
use super::{Remark, Store};
use crate::clock::Clock;
use crate::telemetry::CacheMeter;

/// Shortest timeout of a call during a copy. No client waits for the answer, and batches are large.
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
    /// Whether its records outlive the process.
    pub durable: bool,
    /// Whether several processes can use it at the same time: gateways, and readers of its event
    /// log.
    pub shared: bool,
    /// Whether it can be copied, and copied into.
    pub copyable: bool,
    /// Whether completed records may be cached in the process: the store reports when they change.
    pub cacheable: bool,
}

/// Error of opening a store.
#[derive(Debug, thiserror::Error)]
pub enum StoreOpenError {
    /// The folder or the file can't be used.
    #[error(transparent)]
    File(#[from] OpenError),
    /// The options are invalid.
    #[cfg(feature = "redis")]
    #[error(transparent)]
    Redis(#[from] ConnectError),
    /// The store can't be copied.
    #[error(transparent)]
    Copy(#[from] CopyError),
    /// There is no key to seal records with.
    #[error(transparent)]
    Sealing(#[from] InvalidSealingKey),
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
    /// Its size, in bytes; 0: no cache.
    pub bytes: usize,
    /// The clock by which records end.
    pub clock: Clock,
    /// Counts hits and losses.
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

    /// Returns the folder of a store in a file.
    pub fn folder(&self) -> Option<&Path> {
        match self {
            StoreSettings::File(folder) => Some(folder),
            StoreSettings::Memory => None,
            #[cfg(feature = "redis")]
            StoreSettings::Redis(_) => None,
        }
    }

    /// Whether the store may hold something before it is opened. A store in memory never does.
    pub fn may_exist(&self) -> bool {
        self.capabilities().durable && self.folder().is_none_or(Path::exists)
    }

    /// Opens the store. Must be called within a tokio runtime. Blocks for the disk. Does not wait
    /// for servers: while they are out of reach, calls fail.
    ///
    /// # Errors
    /// A folder that can't be used, or invalid options.
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
    /// Returns the store as gateways use it: sealed if there are `keys`, and cached if that is
    /// configured and possible.
    ///
    /// The cache is the outermost wrapper, so that a cached replay is not decrypted again.
    ///
    /// # Errors
    /// The cache can't be set up.
    #[cfg_attr(
        not(feature = "redis"),
        allow(unused_variables, reason = "only records in Redis are cached")
    )]
    pub fn for_gateway(
        &self,
        keys: Vec<SealingKey>,
        cache: CacheSettings,
    ) -> Result<Store, StoreOpenError> {
        let mut store = self.store.clone();
        if !keys.is_empty() {
            store.records = Arc::new(Sealed::new(store.records, keys)?);
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

    /// Announces to other processes that a gateway uses the store. The lock of a file does that by
    /// itself.
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

    /// Ends the use of the store: completes earlier requests, then releases files and
    /// announcements.
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
