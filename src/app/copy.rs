//! Copies one store into another.

use std::sync::Arc;
use std::time::Duration;

use crate::clock::Clock;
use crate::config::{Config, StoreUrl};
pub use crate::store::copy::{Copied, CopyError, Step};
use crate::store::copy::{Target, copy};
use crate::store::embedded::{CopiedFile, Options as EmbeddedOptions};
use crate::store::redis::CopiedRedis;
use crate::telemetry::Meter;

use super::store::redis_options;

/// Shortest timeout of a call: nobody waits for its result, and batches are large.
const CALL_MIN: Duration = Duration::from_secs(10);

/// The role of a store in a copy.
#[derive(Clone, Copy, PartialEq, Eq)]
enum CopyRole {
    Source,
    Target,
}

/// Copies the store of one configuration into the store of another, which must be empty or hold an
/// interrupted copy of the same store. `report` is called with the current step and the number of
/// items it has processed.
///
/// # Errors
/// Why nothing, or not everything, was copied. Gateways can't use the second store until a copy is
/// complete.
pub async fn copy_store(
    from: &Config,
    to: &Config,
    report: &(dyn Fn(Step, u64) + Send + Sync),
) -> Result<Copied, CopyError> {
    let source = open(from, CopyRole::Source)?;
    let target = open(to, CopyRole::Target)?;
    copy(&*source, &*target, report).await
}

fn open(config: &Config, role: CopyRole) -> Result<Box<dyn Target>, CopyError> {
    let refused =
        |error: anyhow::Error| CopyError::Refused(format!("{}: {error:#}", config.store.place()));
    match &config.store.url {
        StoreUrl::Memory => {
            Err(CopyError::Refused("memory: belongs to one process, and can't be copied".into()))
        }
        StoreUrl::File(dir) => {
            let clock = Clock::system();
            let unix_ms = clock.unix_ms();
            let options = EmbeddedOptions::new(Arc::new(move || clock.boot_ms()), unix_ms);
            Ok(Box::new(if role == CopyRole::Source {
                CopiedFile::source(dir, options)?
            } else {
                CopiedFile::target(dir, options)?
            }))
        }
        StoreUrl::Redis { .. } | StoreUrl::Cluster { .. } | StoreUrl::Sentinel { .. } => {
            let mut options = redis_options(config, &Meter::new()).map_err(refused)?;
            options.timeout = options.timeout.max(CALL_MIN);
            Ok(Box::new(CopiedRedis::connect(options).map_err(|error| refused(error.into()))?))
        }
    }
}
