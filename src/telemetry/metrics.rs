//! Metrics in the OpenMetrics format. Labels are bounded: configured route names and closed sets of
//! words.

use std::fmt;
use std::sync::Arc;

use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};
use tokio::time::Instant;

use super::answer::Answer;
use super::line_queue::log_meter;
use super::resources::ResourceMeter;
use super::{
    BreakerMeter, ExportMetrics, OutboxMeter, ProjectionMeter, ReloadMeter, SagaMeter,
    VanishedRoutes,
};

/// Results of probes of uncertain operations.
#[derive(Debug, Clone, Default)]
pub struct Probes {
    /// The operation was executed.
    pub found: Counter,
    /// The upstream has no such operation.
    pub absent: Counter,
    /// The upstream gave no usable answer.
    pub unclear: Counter,
    /// Not sent: the key can't be filled into the path.
    pub withheld: Counter,
}

/// The local cache of completed records.
#[derive(Debug, Clone, Default)]
pub struct CacheMeter {
    /// Duplicates answered from the cache.
    pub hits: Counter,
    /// Records dropped because they changed.
    pub invalidations: Counter,
    /// How often all records were dropped, because the store no longer reported changes or was
    /// emptied.
    pub losses: Counter,
    /// Records in the cache.
    pub entries: Gauge,
    /// Memory of these records, in bytes.
    pub bytes: Gauge,
}

/// A timed call to the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum StoreCall {
    Claim,
    Settle,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct AnswerLabels {
    route: String,
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RouteLabel {
    route: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CallLabel {
    call: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ShadowLabels {
    route: String,
    would: &'static str,
}

/// All metrics of a process. Cheap to clone.
#[derive(Clone)]
pub struct Meter {
    registry: Arc<Registry>,
    answers: Family<AnswerLabels, Counter>,
    prevented: Family<RouteLabel, Counter>,
    upstream: Family<RouteLabel, Histogram, fn() -> Histogram>,
    shadow: Family<ShadowLabels, Counter>,
    resources: ResourceMeter,
    claim: Histogram,
    settle: Histogram,
    /// Active attempts, requests that pass through, and tunnels.
    pub in_flight: Gauge,
    /// Duplicates that wait for the response to the first request.
    pub waiters: Gauge,
    /// Client connections.
    pub connections: Gauge,
    /// Bytes of request and response bodies held in memory.
    pub buffered_bytes: Gauge,
    /// Results of probes of uncertain operations.
    pub probes: Probes,
    /// Operations that became uncertain, including those that a sweep found.
    pub uncertain: Counter,
    /// Attempts that lost their lease while they ran.
    pub lost_leases: Counter,
    /// Store calls that failed.
    pub store_errors: Counter,
    /// Stored records that could not be read.
    pub corrupt_records: Counter,
    /// Observations of duplicates that were not written to the event log.
    pub observations_lost: Counter,
    /// Results that could not be stored yet and are retried in the background.
    pub unsettled_in_background: Gauge,
    /// The local cache of completed records.
    pub cache: CacheMeter,
    /// Circuit breakers of the store's servers.
    pub breakers: BreakerMeter,
    /// Configuration reloads.
    pub reloads: ReloadMeter,
    /// Routes that are no longer configured.
    pub vanished: VanishedRoutes,
    /// The read model's lag.
    pub projection: ProjectionMeter,
    /// The outbox.
    pub outbox: OutboxMeter,
    /// Sagas.
    pub sagas: SagaMeter,
    /// Lines of the access log.
    pub access_log: ExportMetrics,
    /// Spans of traces.
    pub spans: ExportMetrics,
}

/// The metrics of one route. Look them up once, at the start.
#[derive(Clone)]
pub struct RouteMeter {
    answers: Arc<[Counter]>,
    prevented: Counter,
    /// Seconds from sending a request to the end of its response.
    pub upstream: Histogram,
    shadow: Family<ShadowLabels, Counter>,
    /// The metrics of resources.
    pub resources: ResourceMeter,
    route: Arc<str>,
}

/// Measures a duration in seconds, with tokio's clock, so that tests can simulate time.
pub struct Timer(Instant);

impl Timer {
    /// Starts the timer.
    pub fn start() -> Timer {
        Timer(Instant::now())
    }

    /// Stops, and records the duration in a histogram.
    pub fn stop(self, histogram: &Histogram) {
        histogram.observe(self.0.elapsed().as_secs_f64());
    }
}

/// Creates a histogram with bounds in seconds: a local store answers below a millisecond, and a
/// payment API within a minute.
fn buckets() -> Histogram {
    Histogram::new([
        0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0,
        60.0,
    ])
}

impl Default for Meter {
    fn default() -> Meter {
        Meter::new()
    }
}

impl Meter {
    /// Creates and registers all metrics.
    pub fn new() -> Meter {
        let mut meter = Meter {
            registry: Arc::default(),
            answers: Family::default(),
            prevented: Family::default(),
            upstream: Family::new_with_constructor(buckets as fn() -> Histogram),
            shadow: Family::default(),
            resources: ResourceMeter::default(),
            claim: buckets(),
            settle: buckets(),
            in_flight: Gauge::default(),
            waiters: Gauge::default(),
            connections: Gauge::default(),
            buffered_bytes: Gauge::default(),
            probes: Probes::default(),
            uncertain: Counter::default(),
            lost_leases: Counter::default(),
            store_errors: Counter::default(),
            corrupt_records: Counter::default(),
            observations_lost: Counter::default(),
            unsettled_in_background: Gauge::default(),
            cache: CacheMeter::default(),
            breakers: BreakerMeter::default(),
            reloads: ReloadMeter::default(),
            vanished: VanishedRoutes::default(),
            projection: ProjectionMeter::default(),
            outbox: OutboxMeter::default(),
            sagas: SagaMeter::default(),
            access_log: ExportMetrics::default(),
            spans: ExportMetrics::default(),
        };
        let calls: Family<CallLabel, Histogram, fn() -> Histogram> =
            Family::new_with_constructor(buckets as fn() -> Histogram);
        meter.claim = calls.get_or_create(&CallLabel { call: "claim" }).clone();
        meter.settle = calls.get_or_create(&CallLabel { call: "settle" }).clone();
        let mut registry = Registry::with_prefix("onceward");
        meter.register_requests(&mut registry, calls);
        meter.register_load(&mut registry);
        meter.probes.register(&mut registry);
        meter.register_troubles(&mut registry);
        meter.cache.register(&mut registry);
        meter.breakers.register(&mut registry);
        meter.reloads.register(&mut registry);
        meter.vanished.register(&mut registry);
        meter.projection.register(&mut registry);
        meter.outbox.register(&mut registry);
        meter.sagas.register(&mut registry);
        meter.access_log.register(&mut registry, "access_log_lines", "Lines of the access log");
        log_meter().register(&mut registry, "log_lines", "Lines of the process log");
        meter.spans.register(&mut registry, "trace_spans", "Spans of traces");
        meter.registry = Arc::new(registry);
        meter
    }

    fn register_requests(
        &self,
        registry: &mut Registry,
        calls: Family<CallLabel, Histogram, fn() -> Histogram>,
    ) {
        registry.register("requests", "Requests by route and outcome", self.answers.clone());
        registry.register(
            "duplicates_prevented",
            "Duplicates that did not reach the upstream",
            self.prevented.clone(),
        );
        registry.register(
            "shadow",
            "What enforcing would have done, on routes in shadow mode",
            self.shadow.clone(),
        );
        self.resources.register(registry);
        registry.register_with_unit(
            "upstream",
            "From sending a request to the end of its response",
            Unit::Seconds,
            self.upstream.clone(),
        );
        registry.register_with_unit(
            "store",
            "Store calls of the request path",
            Unit::Seconds,
            calls,
        );
    }

    fn register_load(&self, registry: &mut Registry) {
        registry.register(
            "in_flight",
            "Active attempts, requests that pass through, and tunnels",
            self.in_flight.clone(),
        );
        registry.register(
            "waiters",
            "Duplicates that wait for the response to the first request",
            self.waiters.clone(),
        );
        registry.register("connections", "Client connections", self.connections.clone());
        registry.register_with_unit(
            "buffered",
            "Bodies held in memory",
            Unit::Bytes,
            self.buffered_bytes.clone(),
        );
    }

    fn register_troubles(&self, registry: &mut Registry) {
        registry.register(
            "uncertain_outcomes",
            "Operations that became uncertain",
            self.uncertain.clone(),
        );
        registry.register(
            "lost_leases",
            "Attempts that lost their lease while they ran",
            self.lost_leases.clone(),
        );
        registry.register("store_errors", "Store calls that failed", self.store_errors.clone());
        registry.register(
            "observations_lost",
            "Observations of duplicates that were not written to the event log",
            self.observations_lost.clone(),
        );
        registry.register(
            "corrupt_records",
            "Stored records that could not be read",
            self.corrupt_records.clone(),
        );
        registry.register(
            "unsettled_in_background",
            "Results that are still being stored",
            self.unsettled_in_background.clone(),
        );
    }

    /// Returns the metrics of a route.
    pub fn route(&self, name: &str) -> RouteMeter {
        let label = RouteLabel { route: name.to_owned() };
        let answer = |answer: Answer| {
            self.answers
                .get_or_create(&AnswerLabels { route: name.to_owned(), outcome: answer.name() })
                .clone()
        };
        RouteMeter {
            answers: Answer::ALL.into_iter().map(answer).collect(),
            prevented: self.prevented.get_or_create(&label).clone(),
            upstream: self.upstream.get_or_create(&label).clone(),
            shadow: self.shadow.clone(),
            resources: self.resources.of_route(name),
            route: name.into(),
        }
    }

    /// Returns the histogram of a store call.
    pub fn store(&self, call: StoreCall) -> &Histogram {
        match call {
            StoreCall::Claim => &self.claim,
            StoreCall::Settle => &self.settle,
        }
    }

    /// Encodes all metrics, as `/metrics` serves them.
    pub fn encode(&self) -> Result<String, fmt::Error> {
        let mut out = String::new();
        text::encode(&mut out, &self.registry)?;
        Ok(out)
    }
}

impl Probes {
    fn register(&self, registry: &mut Registry) {
        registry.register(
            "probes_found",
            "Probes that found the operation executed",
            self.found.clone(),
        );
        registry.register(
            "probes_absent",
            "Probes that found no trace of the operation",
            self.absent.clone(),
        );
        registry.register("probes_unclear", "Probes without a usable answer", self.unclear.clone());
        registry.register(
            "probes_withheld",
            "Probes not sent because of the key",
            self.withheld.clone(),
        );
    }
}

impl CacheMeter {
    fn register(&self, registry: &mut Registry) {
        registry.register(
            "local_cache_hits",
            "Duplicates answered from the local cache",
            self.hits.clone(),
        );
        registry.register(
            "local_cache_invalidations",
            "Records dropped because they changed",
            self.invalidations.clone(),
        );
        registry.register(
            "local_cache_losses",
            "Times that all records were dropped",
            self.losses.clone(),
        );
        registry.register(
            "local_cache_entries",
            "Completed records in the local cache",
            self.entries.clone(),
        );
        registry.register_with_unit(
            "local_cache",
            "Memory of the local cache",
            Unit::Bytes,
            self.bytes.clone(),
        );
    }
}

impl RouteMeter {
    /// Counts an answered request.
    pub fn count(&self, answer: Answer) {
        self.answers[answer as usize].inc();
        let duplicate = matches!(
            answer,
            Answer::Replayed | Answer::InFlight | Answer::ResponseNotStored | Answer::ResultExpired
        );
        if duplicate {
            self.prevented.inc();
        }
    }

    /// Counts a duplicate that was held because the outcome of the first request is unknown.
    pub fn count_held(&self) {
        self.prevented.inc();
    }

    /// Counts a request by what enforcing would have done.
    pub fn count_shadow(&self, would: &'static str) {
        self.shadow.get_or_create(&ShadowLabels { route: self.route.to_string(), would }).inc();
    }
}
