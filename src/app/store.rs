//! Opens the configured store.

use std::sync::Arc;
#[cfg(feature = "redis")]
use std::time::Duration;

use anyhow::{Context, Result};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;

use crate::clock::Clock;
#[cfg(feature = "redis")]
use crate::config::AckPolicy;
use crate::config::{Config, Durability, Secret, Secrets, StoreUrl};
use crate::store::open::{CacheSettings, OpenStore, StoreSettings};
#[cfg(feature = "redis")]
use crate::store::redis::{Endpoint, Features, LOSS_PAUSE, RedisAck, RedisOptions};
use crate::store::sealed::{SealingKey, SealingKeys};
use crate::store::{Grade, Remark, Store};
use crate::telemetry::{BreakerMeter, Meter};

/// Returns the settings of the configured store.
///
/// # Errors
/// The store is in Redis, and this build has no Redis.
pub(super) fn settings(config: &Config, breakers: BreakerMeter) -> Result<StoreSettings> {
    match &config.store.url {
        StoreUrl::Memory => Ok(StoreSettings::Memory),
        StoreUrl::File(folder) => Ok(StoreSettings::File(folder.clone())),
        StoreUrl::Redis { .. } | StoreUrl::Cluster { .. } | StoreUrl::Sentinel { .. } => {
            redis_settings(config, breakers)
        }
    }
}

#[cfg(feature = "redis")]
fn redis_settings(config: &Config, breakers: BreakerMeter) -> Result<StoreSettings> {
    let all = |urls: &[Secret]| urls.iter().map(|url| url.expose().to_owned()).collect();
    let endpoint = match &config.store.url {
        StoreUrl::Memory | StoreUrl::File(_) => anyhow::bail!("the store is not in Redis"),
        StoreUrl::Redis { url, .. } => Endpoint::Server(url.expose().to_owned()),
        StoreUrl::Cluster { nodes, .. } => Endpoint::Cluster(all(nodes)),
        StoreUrl::Sentinel { sentinels, primary, name, .. } => Endpoint::Sentinel {
            sentinels: all(sentinels),
            primary: primary.expose().to_owned(),
            name: name.clone(),
        },
    };
    Ok(StoreSettings::Redis(Box::new(RedisOptions {
        endpoint,
        timeout: config.store.timeout,
        ca_file: config.store.ca_file.clone(),
        client: config.store.client.clone(),
        ack: match config.store.ack {
            AckPolicy::Memory => RedisAck::Memory,
            AckPolicy::Replicas(wanted) => RedisAck::Replicas(wanted),
            AckPolicy::Fsync => RedisAck::Fsync,
        },
        loss_pause: if config.store.durability == Durability::Strict {
            LOSS_PAUSE
        } else {
            Duration::ZERO
        },
        breakers,
        namespace: config.store.namespace.clone(),
        features: Features {
            event_log: config.log_keep.is_some(),
            local_cache: config.store.local_cache > 0,
            outbox: !config.sinks.is_empty(),
        },
    })))
}

/// Returns an error, because this build has no Redis. The configuration already refuses the urls of
/// Redis.
#[cfg(not(feature = "redis"))]
fn redis_settings(_: &Config, _: BreakerMeter) -> Result<StoreSettings> {
    anyhow::bail!(crate::config::WITHOUT_REDIS)
}

/// Opens the configured store, and checks the settings of its servers for risks to records.
///
/// # Errors
/// The store can't be opened, or `durability = "strict"` refuses it.
pub(super) async fn open(config: &Config, clock: &Clock, meter: &Meter) -> Result<OpenStore> {
    let opened = settings(config, meter.breakers.clone())?.open(clock)?;
    check_durability(&opened, config.store.durability).await?;
    Ok(opened)
}

/// Returns the keys that seal the contents of the store; `None` without `[encryption]`.
///
/// # Errors
/// A key is malformed.
pub(super) fn sealing_keys(secrets: &Secrets) -> Result<Option<Arc<SealingKeys>>> {
    if secrets.encryption_keys.is_empty() {
        return Ok(None);
    }
    let key = |(id, text): &(String, Secret)| {
        anyhow::Ok(SealingKey::new(id, &BASE64.decode(text.expose())?)?)
    };
    let keys = secrets.encryption_keys.iter().map(key).collect::<Result<Vec<_>>>()?;
    Ok(Some(Arc::new(SealingKeys::new(keys)?)))
}

/// Returns the store for gateways, with the keys and the configured cache.
///
/// # Errors
/// The cache can't be set up.
pub(super) fn for_gateway(
    opened: &OpenStore,
    config: &Config,
    keys: Option<Arc<SealingKeys>>,
    clock: &Clock,
    meter: &Meter,
) -> Result<Store> {
    let cache = CacheSettings {
        bytes: config.store.local_cache,
        clock: clock.clone(),
        meter: meter.cache.clone(),
    };
    Ok(opened.for_gateway(keys, cache)?)
}

/// Checks the servers of the configured store. Returns `None` if the store has no servers.
///
/// # Errors
/// A url is invalid, or a server can't be reached.
pub async fn survey(config: &Config) -> Result<Option<Vec<Remark>>> {
    let settings = settings(config, BreakerMeter::default())?;
    if !settings.capabilities().shared {
        return Ok(None);
    }
    Ok(settings.open(&Clock::system())?.survey().await?)
}

/// Logs the risks in the servers' settings. With "strict", a risk is an error, and so are settings
/// that can't be read.
async fn check_durability(opened: &OpenStore, durability: Durability) -> Result<()> {
    let strict = durability == Durability::Strict;
    let remarks = match opened.survey().await {
        Ok(remarks) => remarks.unwrap_or_default(),
        Err(error) if strict => {
            return Err(error)
                .context("durability = \"strict\" needs a store with settings that can be read");
        }
        // This is not fatal: the gateway becomes ready when the store answers.
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
