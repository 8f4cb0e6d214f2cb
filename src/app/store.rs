//! Opens the configured store, wrapped in encryption and a local cache.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;

use crate::clock::Clock;
use crate::config::{Ack, Config, Durability, Secret, Secrets, StoreUrl};
use crate::store::Store;
use crate::store::cache::LocalCache;
use crate::store::cached::Cached;
use crate::store::embedded::{Embedded, Options as EmbeddedOptions};
use crate::store::memory::Memory;
use crate::store::redis::{
    self, Ack as RedisAck, Features, Options as RedisOptions, Place as RedisPlace, Presence, QUIET,
    Redis,
};
pub use crate::store::redis::{Grade, Remark};
use crate::store::sealed::{Sealed, SealingKey};
use crate::telemetry::Meter;

/// An open store, and the parts that have to be closed.
pub(super) struct OpenStore {
    pub store: Arc<dyn Store>,
    embedded: Option<Arc<Embedded>>,
    redis: Option<Arc<Redis>>,
    /// Announces to other processes that a gateway uses the servers.
    presence: Option<Presence>,
}

impl OpenStore {
    /// Announces that a gateway uses the store. A file needs no announcement: it is locked.
    pub fn announce(&mut self) {
        self.presence = self.redis.as_ref().map(Presence::announce);
    }

    pub async fn close(&self) {
        if let Some(presence) = &self.presence {
            presence.end().await;
        }
        if let Some(embedded) = &self.embedded {
            embedded.close().await;
        }
    }
}

/// Logs settings of the servers that put records at risk. Under `strict` they prevent the start,
/// and so do unknown settings.
async fn check_durability(store: &Redis, durability: Durability) -> Result<()> {
    let strict = durability == Durability::Strict;
    let remarks = match store.survey().await {
        Ok(remarks) => remarks,
        Err(error) if strict => {
            return Err(error)
                .context("durability = \"strict\" needs a store with readable settings");
        }
        Err(error) => {
            tracing::warn!(%error, "the store does not answer yet");
            return Ok(());
        }
    };
    let faults: Vec<_> = remarks.iter().filter(|remark| remark.grade != Grade::Sound).collect();
    for remark in &faults {
        tracing::warn!(advice = remark.advice, "store: {}", remark.text);
    }
    match faults.iter().find(|remark| remark.grade != Grade::Limited) {
        Some(first) if strict => anyhow::bail!(
            "durability = \"strict\" refuses this store: {}; {}",
            first.text,
            first.advice
        ),
        _ => Ok(()),
    }
}

/// Returns the store, wrapped in encryption if there are keys.
pub(super) fn sealed(store: Arc<dyn Store>, secrets: &Secrets) -> Result<Arc<dyn Store>> {
    if secrets.encryption_keys.is_empty() {
        return Ok(store);
    }
    let key = |(id, text): &(String, Secret)| {
        anyhow::Ok(SealingKey::new(id, &BASE64.decode(text.expose())?)?)
    };
    let keys = secrets.encryption_keys.iter().map(key).collect::<Result<Vec<_>>>()?;
    Ok(Arc::new(Sealed::new(store, keys)?))
}

/// Returns the store, wrapped in a local cache of completed records if it is configured. The cache
/// is the outermost layer, so that a replay decrypts nothing.
pub(super) fn cached(
    store: Arc<dyn Store>,
    config: &Config,
    clock: &Clock,
    meter: &Meter,
) -> Result<Arc<dyn Store>> {
    let bytes = config.store.local_cache;
    if bytes == 0 || !matches!(config.store.url, StoreUrl::Redis { .. } | StoreUrl::Sentinel { .. })
    {
        return Ok(store);
    }
    let (cache, wanted) = LocalCache::new(bytes, clock.clone(), meter.cache.clone());
    let tracker = redis::track(&redis_options(config, meter)?, cache.clone(), wanted)?;
    Ok(Arc::new(Cached::new(store, cache, tracker)))
}

/// Inspects the servers of a configured store. `None` if the store has no servers.
///
/// # Errors
/// A malformed url, or a server that can't be inspected.
pub async fn survey(config: &Config) -> Result<Option<Vec<Remark>>> {
    match &config.store.url {
        StoreUrl::Memory | StoreUrl::File(_) => Ok(None),
        _ => Ok(Some(Redis::connect(redis_options(config, &Meter::new())?)?.survey().await?)),
    }
}

pub(super) fn redis_options(config: &Config, meter: &Meter) -> Result<RedisOptions> {
    Ok(RedisOptions {
        place: redis_endpoint(&config.store.url)?,
        timeout: config.store.timeout,
        ca_file: config.store.ca_file.clone(),
        client: config.store.client.clone(),
        ack: match config.store.ack {
            Ack::Memory => RedisAck::Memory,
            Ack::Replicas(wanted) => RedisAck::Replicas(wanted),
            Ack::Fsync => RedisAck::Fsync,
        },
        quiet: if config.store.durability == Durability::Strict { QUIET } else { Duration::ZERO },
        breakers: meter.breakers.clone(),
        namespace: config.store.namespace.clone(),
        features: Features {
            event_log: config.log_keep.is_some(),
            local_cache: config.store.local_cache > 0,
        },
    })
}

fn redis_endpoint(url: &StoreUrl) -> Result<RedisPlace> {
    let all = |urls: &[Secret]| urls.iter().map(|url| url.expose().to_owned()).collect();
    Ok(match url {
        StoreUrl::Redis { url, .. } => RedisPlace::Server(url.expose().to_owned()),
        StoreUrl::Cluster { nodes, .. } => RedisPlace::Cluster(all(nodes)),
        StoreUrl::Sentinel { sentinels, primary, name, .. } => RedisPlace::Sentinel {
            sentinels: all(sentinels),
            primary: primary.expose().to_owned(),
            name: name.clone(),
        },
        StoreUrl::Memory | StoreUrl::File(_) => anyhow::bail!("the store is not in Redis"),
    })
}

pub(super) async fn open_store(config: &Config, clock: &Clock, meter: &Meter) -> Result<OpenStore> {
    match &config.store.url {
        StoreUrl::Memory => Ok(OpenStore {
            store: Arc::new(Memory::new(clock.anchored())),
            embedded: None,
            redis: None,
            presence: None,
        }),
        StoreUrl::File(dir) => {
            let span = clock.clone();
            let options = EmbeddedOptions::new(Arc::new(move || span.boot_ms()), clock.unix_ms());
            let embedded = Arc::new(Embedded::open(dir, options)?);
            Ok(OpenStore {
                store: embedded.clone(),
                embedded: Some(embedded),
                redis: None,
                presence: None,
            })
        }
        StoreUrl::Redis { .. } | StoreUrl::Cluster { .. } | StoreUrl::Sentinel { .. } => {
            let store = Redis::connect(redis_options(config, meter)?)?;
            // Not fatal: the gateway starts not ready, and becomes ready when the store answers.
            check_durability(&store, config.store.durability).await?;
            Ok(OpenStore {
                store: store.clone(),
                embedded: None,
                redis: Some(store),
                presence: None,
            })
        }
    }
}
