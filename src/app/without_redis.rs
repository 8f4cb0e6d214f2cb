//! Takes the place of `redis_store` in a build without the feature `redis`. The configuration
//! refuses urls of Redis in such a build, so nothing here is reached by a configured gateway.

use std::sync::Arc;

use anyhow::{Result, bail};
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;

use crate::config::{Config, WITHOUT_REDIS};
use crate::key::Slot;
use crate::store::cache::LocalCache;
use crate::store::copy::CopyTarget;
use crate::store::{Remark, Store};
use crate::telemetry::Meter;

/// A store that does not exist in this build.
pub(super) enum RedisStore {}

impl RedisStore {
    pub async fn connect(_: &Config, _: &Meter) -> Result<RedisStore> {
        bail!(WITHOUT_REDIS)
    }

    pub fn store(&self) -> Store {
        match *self {}
    }

    pub fn announce(&mut self) {
        match *self {}
    }

    pub async fn end_presence(&self) {
        match *self {}
    }
}

pub(super) fn track_changes(
    _: &Config,
    _: &Meter,
    _: Arc<LocalCache>,
    _: mpsc::Receiver<Slot>,
) -> Result<AbortOnDropHandle<()>> {
    bail!(WITHOUT_REDIS)
}

pub(super) async fn survey(_: &Config) -> Result<Vec<Remark>> {
    bail!(WITHOUT_REDIS)
}

pub(super) fn copied(_: &Config) -> Result<Box<dyn CopyTarget>> {
    bail!(WITHOUT_REDIS)
}
