//! Copies one store into another: opens both ends, and has them copied.

use crate::config::{Config, StoreUrl};
pub use crate::store::copy::{Copied, CopyError, CopyStep};
use crate::store::copy::{CopyTarget, copy};
use crate::store::embedded::CopiedFile;
use crate::store::redis::CopiedRedis;

use super::*;

/// How long one call may take at least: nobody waits for an answer, and batches are large.
const CALL_MIN: Duration = Duration::from_secs(10);

/// Which end of a copy a store is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    From,
    To,
}

/// Copies the store of one configuration into the store of another, which has to be empty or to hold an interrupted copy of the
/// same store. `report` is called with what is done, and how many items of it.
///
/// # Errors
/// Why nothing, or not everything, was copied. Gateways are kept from the second store until a copy is complete.
pub async fn copy_store(
    from: &Config,
    to: &Config,
    report: &(dyn Fn(CopyStep, u64) + Send + Sync),
) -> Result<Copied, CopyError> {
    let source = open(from, End::From)?;
    let target = open(to, End::To)?;
    copy(&*source, &*target, report).await
}

fn open(config: &Config, end: End) -> Result<Box<dyn CopyTarget>, CopyError> {
    let refused = |error: anyhow::Error| {
        CopyError::Refused(format!("{}: {error:#}", config.store.location()))
    };
    match &config.store.url {
        StoreUrl::Memory => {
            Err(CopyError::Refused("memory: belongs to one process, and can't be copied".into()))
        }
        StoreUrl::File(dir) => {
            let clock = Clock::system();
            let unix_ms = clock.unix_ms();
            let options = EmbeddedOptions::new(Arc::new(move || clock.boot_ms()), unix_ms);
            Ok(Box::new(if end == End::From {
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
