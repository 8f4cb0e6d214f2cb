//! Metrics of the read model's position in the event log.

use std::sync::atomic::AtomicU64;
use std::time::Duration;

use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};
use tokio::time::Instant;

/// The read model's position; the lag is 0 if there is no read model.
#[derive(Debug, Clone)]
pub struct ProjectionMeter {
    began: Instant,
    lag: Gauge<f64, AtomicU64>,
    entries: Gauge,
}

impl Default for ProjectionMeter {
    fn default() -> ProjectionMeter {
        ProjectionMeter { began: Instant::now(), lag: Gauge::default(), entries: Gauge::default() }
    }
}

impl ProjectionMeter {
    /// Sets the lag, and the number of applied entries. An unknown lag counts as the age of the
    /// process, so that a lag that stays unknown becomes visible.
    pub fn set(&self, lag: Option<Duration>, entries: u64) {
        self.lag.set(lag.unwrap_or_else(|| self.began.elapsed()).as_secs_f64());
        self.entries.set(i64::try_from(entries).unwrap_or(i64::MAX));
    }

    pub(super) fn register(&self, registry: &mut Registry) {
        let lag = "How far the read model is behind the event log";
        registry.register_with_unit("projection_lag", lag, Unit::Seconds, self.lag.clone());
        registry.register(
            "projection_entries",
            "Entries that the read model was built of",
            self.entries.clone(),
        );
    }
}
