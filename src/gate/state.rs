//! The gate's state: its store, settings, limits and tasks.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::full_sinks::FullSinks;
pub use super::protected_route::ProtectedRoute;
use crate::clock::Clock;
use crate::entropy::Entropy;
use crate::gate::budget::Budget;
use crate::gate::intake::heavy_work::HeavyWork;
use crate::gate::kept_versions::KeptVersions;
use crate::gate::observation_buffer::ObservationBuffer;
use crate::gate::permits::{InFlightPermits, Permits};
use crate::gate::quota::Quota;
use crate::gate::resource_turns::ResourceTurns;
use crate::key::Hashing;
use crate::store::Store;
use crate::telemetry::Meter;

/// Maximum number of unconfirmed claims that are being given up at the same time. Each one keeps a
/// record's head in memory until the store answers again.
const GIVING_UP_MAX: usize = 10_000;

/// Maximum memory of a request besides its bodies, in bytes: its fields, and the state of its
/// tasks.
const EXCHANGE_BYTES: usize = 96 * 1024;

/// Settings of a gate besides the policies of its routes.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Maximum requests in flight: attempts, and requests that pass through without protection.
    pub in_flight: usize,
    /// Maximum duplicates that wait at the same time.
    pub waiters: usize,
    /// Maximum duplicates that wait at the same time for one key.
    pub waiters_per_key: usize,
    /// Largest request body that is buffered, in bytes.
    pub request_body: usize,
    /// Largest response body that is stored, in bytes.
    pub response_body: usize,
    /// Maximum size of all buffered bodies together, in bytes.
    pub buffered_bytes: usize,
    /// Maximum new operations of one scope of a route within the route's retention; 0 means no
    /// limit.
    pub records_per_scope: usize,
    /// Maximum sagas that run at the same time.
    pub sagas: usize,
    /// The secrets that identities are hashed with.
    pub hashing: Hashing,
    /// Whether records may have trailers, which version 0.1.0 can't read. If not, the record of an
    /// answer with trailers has neither the body nor the trailers.
    pub trailers: bool,
    /// How long the event log keeps its entries; `None` if the log is disabled.
    pub log_keep: Option<Duration>,
}

impl Default for Settings {
    fn default() -> Settings {
        const MIB: usize = 1 << 20;
        Settings {
            in_flight: 5000,
            waiters: 5000,
            waiters_per_key: 64,
            request_body: MIB,
            response_body: MIB,
            buffered_bytes: 256 * MIB,
            records_per_scope: 0,
            sagas: 1000,
            hashing: Hashing::default(),
            trailers: false,
            log_keep: None,
        }
    }
}

impl Settings {
    /// Returns the maximum of the buffered bytes that one client address may hold: half of all, or
    /// the largest request with its answer, if that is more.
    fn address_bytes(&self) -> usize {
        let exchange =
            self.request_body.saturating_add(self.response_body).saturating_add(EXCHANGE_BYTES);
        (self.buffered_bytes / 2).max(exchange).min(self.buffered_bytes)
    }
}

/// The gate in front of an upstream. All connections share it.
pub struct Gate {
    pub(super) store: Store,
    pub(super) clock: Clock,
    pub(super) entropy: Arc<Entropy>,
    pub(super) meter: Meter,
    pub(super) settings: Settings,
    pub(super) budget: Budget,
    pub(super) in_flight: InFlightPermits,
    pub(super) waiters: Permits,
    /// Permits of requests in shadow mode, which use no permits of protected requests.
    pub(super) watched: Permits,
    pub(super) giving_up: Permits,
    /// Permits of the gateway's own calls, which use no permits of clients' requests.
    pub(super) internal: Permits,
    /// Permits of sagas that run.
    pub(super) sagas: Permits,
    pub(super) heavy_work: HeavyWork,
    pub(super) resource_turns: ResourceTurns,
    pub(super) kept_versions: KeptVersions,
    pub(super) quota: Arc<Quota>,
    pub(super) full_sinks: FullSinks,
    pub(super) observed: Arc<ObservationBuffer>,
    pub(super) closed: Arc<AtomicBool>,
    pub(super) tasks: TaskTracker,
    pub(super) abandoned: CancellationToken,
}

impl Gate {
    /// Creates a gate over a store.
    pub fn new(
        store: impl Into<Store>,
        clock: Clock,
        entropy: Entropy,
        meter: Meter,
        settings: Settings,
    ) -> Arc<Gate> {
        Arc::new(Gate {
            budget: Budget::new(
                settings.buffered_bytes,
                settings.address_bytes(),
                meter.buffered_bytes.clone(),
            ),
            in_flight: InFlightPermits::new(settings.in_flight),
            waiters: Permits::new(settings.waiters),
            watched: Permits::new(settings.in_flight),
            giving_up: Permits::new(GIVING_UP_MAX),
            internal: Permits::new(settings.in_flight),
            sagas: Permits::new(settings.sagas),
            heavy_work: HeavyWork::new(),
            resource_turns: ResourceTurns::default(),
            kept_versions: KeptVersions::default(),
            quota: Quota::new(settings.records_per_scope),
            full_sinks: FullSinks::default(),
            observed: Arc::default(),
            closed: Arc::default(),
            tasks: TaskTracker::new(),
            abandoned: CancellationToken::new(),
            store: store.into(),
            clock,
            entropy: Arc::new(entropy),
            meter,
            settings,
        })
    }

    /// Creates a gate with other settings, for future requests. Active requests keep their
    /// settings. Both gates share the store, tasks, permits, buffered bytes and counts. So active
    /// requests count against the new limits, and a drain of one gate also drains the other.
    pub fn under(&self, settings: Settings) -> Arc<Gate> {
        Arc::new(Gate {
            store: self.store.clone(),
            clock: self.clock.clone(),
            entropy: self.entropy.clone(),
            meter: self.meter.clone(),
            budget: self.budget.limited_to(settings.buffered_bytes, settings.address_bytes()),
            in_flight: self.in_flight.limited_to(settings.in_flight),
            waiters: self.waiters.limited_to(settings.waiters),
            watched: self.watched.limited_to(settings.in_flight),
            giving_up: self.giving_up.clone(),
            internal: self.internal.limited_to(settings.in_flight),
            sagas: self.sagas.limited_to(settings.sagas),
            heavy_work: self.heavy_work.clone(),
            resource_turns: self.resource_turns.clone(),
            kept_versions: self.kept_versions.clone(),
            quota: self.quota.limited_to(settings.records_per_scope),
            full_sinks: self.full_sinks.clone(),
            observed: self.observed.clone(),
            closed: self.closed.clone(),
            tasks: self.tasks.clone(),
            abandoned: self.abandoned.clone(),
            settings,
        })
    }

    /// Returns the memory budget of buffered bodies.
    pub fn budget(&self) -> &Budget {
        &self.budget
    }

    /// Returns the settings.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Returns the process's metrics.
    pub fn meter(&self) -> &Meter {
        &self.meter
    }

    /// Returns the process's randomness.
    pub fn entropy(&self) -> &Arc<Entropy> {
        &self.entropy
    }

    /// Returns the names of the sinks that are full.
    pub fn full_sinks(&self) -> &FullSinks {
        &self.full_sinks
    }

    /// Returns the store, for listing and watching.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Waits until no attempt is active, for at most `timeout`. Then marks the attempts that are
    /// still active as uncertain. Returns whether every attempt was settled before that.
    pub async fn drain(&self, timeout: Duration) -> bool {
        /// Time to mark attempts. Each attempt needs one store call.
        const MARKING: Duration = Duration::from_secs(5);
        self.tasks.close();
        let settled = tokio::time::timeout(timeout, self.tasks.wait()).await.is_ok();
        self.closed.store(true, Ordering::Release);
        if settled && self.tasks.is_empty() {
            return true;
        }
        self.abandoned.cancel();
        let _ = tokio::time::timeout(MARKING, self.tasks.wait()).await;
        false
    }
}
