//! The store in Redis: opened from the configuration, looked over, announced to others, copied.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;

use crate::config::{AckPolicy, Config, Durability, Secret, StoreUrl};
use crate::key::Slot;
use crate::store::cache::LocalCache;
use crate::store::copy::CopyTarget;
use crate::store::redis::{
    Ack as RedisAck, CopiedRedis, Features, Options as RedisOptions, Place as RedisPlace, Presence,
    QUIET, Redis, track,
};
use crate::store::{Grade, Remark, Store};
use crate::telemetry::Meter;

/// How long one call of a copy may take at least: nobody waits for an answer, and batches are
/// large.
const COPY_CALL_MIN: Duration = Duration::from_secs(10);

/// A connected store in Redis.
pub(super) struct RedisStore {
    redis: Arc<Redis>,
    /// Marks the servers as used by a gateway.
    presence: Option<Presence>,
}

impl RedisStore {
    /// Connects, and logs what the settings of the servers put at risk.
    ///
    /// A server that does not answer is not an error: the gateway starts not ready, and becomes
    /// ready when the store answers.
    ///
    /// # Errors
    /// The url leads nowhere, or `durability = "strict"` refuses the servers.
    pub async fn connect(config: &Config, meter: &Meter) -> Result<RedisStore> {
        let redis = Redis::connect(options(config, meter)?)?;
        look_over(&redis, config.store.durability).await?;
        Ok(RedisStore { redis, presence: None })
    }

    /// Returns the store.
    pub fn store(&self) -> Store {
        self.redis.clone().into()
    }

    /// Marks the servers as used by a gateway, until [`RedisStore::end_presence`].
    pub fn announce(&mut self) {
        self.presence = Some(Presence::announce(&self.redis));
    }

    /// Removes the mark.
    pub async fn end_presence(&self) {
        if let Some(presence) = &self.presence {
            presence.end().await;
        }
    }
}

/// Keeps a cache of completed records valid, for as long as the returned task exists.
pub(super) fn track_changes(
    config: &Config,
    meter: &Meter,
    cache: Arc<LocalCache>,
    wanted: mpsc::Receiver<Slot>,
) -> Result<AbortOnDropHandle<()>> {
    Ok(track(&options(config, meter)?, cache, wanted)?)
}

/// Returns remarks about the settings of the servers.
///
/// # Errors
/// The url leads nowhere, or a server does not answer.
pub(super) async fn survey(config: &Config) -> Result<Vec<Remark>> {
    Ok(Redis::connect(options(config, &Meter::new())?)?.survey().await?)
}

/// Returns one end of a copy.
///
/// # Errors
/// The url leads nowhere.
pub(super) fn copied(config: &Config) -> Result<Box<dyn CopyTarget>> {
    let mut options = options(config, &Meter::new())?;
    options.timeout = options.timeout.max(COPY_CALL_MIN);
    Ok(Box::new(CopiedRedis::connect(options)?))
}

/// Logs what the settings of the servers put at risk. Under "strict" a risk ends the start, and so
/// do servers that can't be asked.
async fn look_over(store: &Redis, durability: Durability) -> Result<()> {
    let strict = durability == Durability::Strict;
    let remarks = match store.survey().await {
        Ok(remarks) => remarks,
        Err(error) if strict => {
            return Err(error)
                .context("durability = \"strict\" needs a store whose settings can be asked");
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

fn options(config: &Config, meter: &Meter) -> Result<RedisOptions> {
    Ok(RedisOptions {
        place: place(&config.store.url)?,
        timeout: config.store.timeout,
        ca_file: config.store.ca_file.clone(),
        client: config.store.client.clone(),
        ack: match config.store.ack {
            AckPolicy::Memory => RedisAck::Memory,
            AckPolicy::Replicas(wanted) => RedisAck::Replicas(wanted),
            AckPolicy::Fsync => RedisAck::Fsync,
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

fn place(url: &StoreUrl) -> Result<RedisPlace> {
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
