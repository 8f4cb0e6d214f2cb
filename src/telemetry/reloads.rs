//! Metrics of configuration reloads, and of routes that are no longer configured.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ResultLabel {
    result: &'static str,
}

/// The reloads of a process, and when the current configuration was applied.
#[derive(Debug, Clone)]
pub struct ReloadMeter {
    applied: Counter,
    refused: Counter,
    all: Family<ResultLabel, Counter>,
    /// When the current configuration was applied, in seconds since 1970.
    in_force_since: Gauge,
}

impl Default for ReloadMeter {
    fn default() -> ReloadMeter {
        let all: Family<ResultLabel, Counter> = Family::default();
        let of = |result| all.get_or_create(&ResultLabel { result }).clone();
        ReloadMeter {
            applied: of("applied"),
            refused: of("refused"),
            all,
            in_force_since: Gauge::default(),
        }
    }
}

impl ReloadMeter {
    /// Records that the first configuration is in force.
    pub fn began(&self, unix_ms: u64) {
        self.in_force_since.set(i64::try_from(unix_ms / 1000).unwrap_or(i64::MAX));
    }

    /// Records that a reload was applied.
    pub fn applied(&self, unix_ms: u64) {
        self.applied.inc();
        self.began(unix_ms);
    }

    /// Records that a reload was refused.
    pub fn refused(&self) {
        self.refused.inc();
    }

    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register(
            "config_reloads",
            "Configurations that were read while the process ran",
            self.all.clone(),
        );
        registry.register_with_unit(
            "config_in_force_since_timestamp",
            "When the configuration in force was taken, since 1970",
            Unit::Seconds,
            self.in_force_since.clone(),
        );
    }
}

/// How many routes protected operations of the store and are no longer configured, as of the last
/// comparison.
#[derive(Debug, Clone, Default)]
pub struct VanishedRoutes(Gauge);

impl VanishedRoutes {
    /// Sets the count.
    pub fn set(&self, count: usize) {
        self.0.set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register(
            "vanished_routes",
            "Routes that protected operations and are not configured any more",
            self.0.clone(),
        );
    }
}
