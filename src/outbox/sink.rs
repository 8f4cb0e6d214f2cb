//! A sink of the running configuration, and its health.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use tokio::time::Instant;

use super::delivery::{AttemptResult, Delivery};
#[cfg(feature = "nats")]
use super::nats::{Nats, NatsError};
#[cfg(feature = "redis")]
use super::redis_stream::{RedisStream, RedisStreamError};
use super::settings::{CallTarget, SinkSettings, SinkTarget};
use super::webhook::{Webhook, WebhookError};
use crate::key::Slot;

/// Operations with an event that the receiver answers with 410 (Gone), before its sink is paused.
const GONE_OPERATIONS: usize = 3;
/// Time within which these answers count.
const GONE_WITHIN: Duration = Duration::from_secs(60);

/// Sends an event to a receiver.
#[async_trait]
pub trait SinkClient: Send + Sync + 'static {
    /// Makes one attempt, which takes at most `timeout` until the receiver's answer. `now_unix_s`
    /// is the time of the attempt, in seconds since 1970.
    async fn attempt(
        &self,
        delivery: &Delivery,
        now_unix_s: u64,
        timeout: Duration,
    ) -> AttemptResult;
}

#[async_trait]
impl SinkClient for Webhook {
    async fn attempt(
        &self,
        delivery: &Delivery,
        now_unix_s: u64,
        timeout: Duration,
    ) -> AttemptResult {
        Webhook::attempt(self, delivery, now_unix_s, timeout).await
    }
}

#[cfg(feature = "redis")]
#[async_trait]
impl SinkClient for RedisStream {
    async fn attempt(&self, delivery: &Delivery, _: u64, timeout: Duration) -> AttemptResult {
        RedisStream::attempt(self, delivery, timeout).await
    }
}

#[cfg(feature = "nats")]
#[async_trait]
impl SinkClient for Nats {
    async fn attempt(&self, delivery: &Delivery, _: u64, timeout: Duration) -> AttemptResult {
        Nats::attempt(self, delivery, timeout).await
    }
}

/// The reason why a sink can't be set up. No text has a credential.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SinkError {
    /// Of a receiver of webhooks.
    #[error(transparent)]
    Webhook(#[from] WebhookError),
    /// Of a stream of Redis.
    #[cfg(feature = "redis")]
    #[error(transparent)]
    RedisStream(#[from] RedisStreamError),
    /// Of a stream of NATS.
    #[cfg(feature = "nats")]
    #[error(transparent)]
    Nats(#[from] NatsError),
    /// It is a stream of Redis, and this build has no Redis.
    #[error("this build has no Redis")]
    WithoutRedis,
    /// It is a stream of NATS, and this build has no NATS.
    #[error("this build has no NATS")]
    WithoutNats,
}

/// The way of a sink's events.
pub(super) enum SinkChannel {
    /// To a receiver.
    Receiver(Arc<dyn SinkClient>),
    /// Through the gateway's own gate.
    Calls(Arc<CallTarget>),
}

/// A sink.
pub struct Sink {
    /// Its settings.
    pub settings: SinkSettings,
    pub(super) channel: SinkChannel,
    health: Mutex<Health>,
}

/// The deliveries of this process to a sink.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SinkHealth {
    /// Time of the last delivery, in ms since 1970; `None` before the first one.
    pub last_delivered_ms: Option<u64>,
    /// Time of the first failed attempt since the last delivery, in ms since 1970.
    pub failing_since_ms: Option<u64>,
}

#[derive(Default)]
struct Health {
    known: SinkHealth,
    /// The operations with an event that was answered with 410 since the last delivery.
    gone: BTreeMap<Slot, Instant>,
}

impl Sink {
    /// Sets a sink up.
    ///
    /// # Errors
    /// Its settings can't be used, or a file that they name can't be read.
    pub fn new(settings: SinkSettings) -> Result<Arc<Sink>, SinkError> {
        let client: Arc<dyn SinkClient> = match &settings.target {
            SinkTarget::Call(target) => {
                let channel = SinkChannel::Calls(Arc::new(target.clone()));
                return Ok(Sink::with_channel(settings, channel));
            }
            SinkTarget::Webhook(target) => Arc::new(Webhook::new(target)?),
            #[cfg(feature = "redis")]
            SinkTarget::RedisStream(target) => Arc::new(RedisStream::new(target)?),
            #[cfg(not(feature = "redis"))]
            SinkTarget::RedisStream(_) => return Err(SinkError::WithoutRedis),
            #[cfg(feature = "nats")]
            SinkTarget::Nats(target) => Arc::new(Nats::new(target)?),
            #[cfg(not(feature = "nats"))]
            SinkTarget::Nats(_) => return Err(SinkError::WithoutNats),
        };
        Ok(Sink::with_client(settings, client))
    }

    /// Returns a sink with a client of its own.
    pub fn with_client(settings: SinkSettings, client: Arc<dyn SinkClient>) -> Arc<Sink> {
        Sink::with_channel(settings, SinkChannel::Receiver(client))
    }

    fn with_channel(settings: SinkSettings, channel: SinkChannel) -> Arc<Sink> {
        Arc::new(Sink { settings, channel, health: Mutex::default() })
    }

    /// Returns the name.
    pub fn name(&self) -> &str {
        &self.settings.name
    }

    /// Returns the deliveries of this process.
    pub fn health(&self) -> SinkHealth {
        self.lock().known
    }

    /// Takes over the health of a sink that this one replaces.
    pub(super) fn follow(&self, before: &Sink) {
        self.lock().known = before.health();
    }

    /// Records a delivery.
    pub(super) fn record_delivery(&self, now_ms: u64) {
        let mut health = self.lock();
        health.known = SinkHealth { last_delivered_ms: Some(now_ms), failing_since_ms: None };
        health.gone.clear();
    }

    /// Records a failed attempt. Returns whether the receiver is gone: it answered 410 for some
    /// operations within a minute, and took nothing meanwhile.
    pub(super) fn record_failure(&self, slot: &Slot, status: Option<u16>, now_ms: u64) -> bool {
        let mut health = self.lock();
        health.known.failing_since_ms.get_or_insert(now_ms);
        if status != Some(410) {
            return false;
        }
        let now = Instant::now();
        health.gone.retain(|_, at| now.duration_since(*at) < GONE_WITHIN);
        health.gone.insert(*slot, now);
        let is_gone = health.gone.len() >= GONE_OPERATIONS;
        if is_gone {
            health.gone.clear();
        }
        is_gone
    }

    fn lock(&self) -> MutexGuard<'_, Health> {
        self.health.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
