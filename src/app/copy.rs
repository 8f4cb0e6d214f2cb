//! Copies one store into another.

use super::store::settings;
use crate::clock::Clock;
use crate::config::Config;
pub use crate::store::copy::{Copied, CopyError, CopyStep};
use crate::store::copy::{CopyTarget, copy};
use crate::store::open::{CopyEnd, StoreOpenError};
use crate::telemetry::BreakerMeter;

/// Copies the store of one configuration into the store of another. The second store must be empty,
/// or hold an interrupted copy of the first one. Calls `report` with the current step and the
/// number of copied items.
///
/// # Errors
/// The reason why the copy failed or is incomplete. Gateways can't open the second store until a
/// copy is complete.
pub async fn copy_store(
    from: &Config,
    to: &Config,
    report: &(dyn Fn(CopyStep, u64) + Send + Sync),
) -> Result<Copied, CopyError> {
    let source = open(from, CopyEnd::Source)?;
    let target = open(to, CopyEnd::Target)?;
    copy(&*source, &*target, report).await
}

fn open(config: &Config, end: CopyEnd) -> Result<Box<dyn CopyTarget>, CopyError> {
    let refused = |error: anyhow::Error| {
        CopyError::Refused(format!("{}: {error:#}", config.store.location()))
    };
    let settings = settings(config, BreakerMeter::default()).map_err(refused)?;
    settings.open_for_copy(end, &Clock::system()).map_err(|error| match error {
        StoreOpenError::Copy(error) => error,
        other => refused(other.into()),
    })
}
