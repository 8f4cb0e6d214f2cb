//! Metrics in the OpenMetrics format. Labels are bounded: configured route names and closed sets of words.

use std::fmt;
use std::sync::Arc;

use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};
use tokio::time::Instant;

use super::line_queue::log_meter;
use super::{BreakerMeter, ProjectionMeter, ReloadMeter, TellingMeter, VanishedRoutes};

/// How a request was answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)] // The names are the documentation: they are the label's values.
pub enum Answer {
    Executed,
    Replayed,
    Released,
    Uncertain,
    InFlight,
    KeyReused,
    KeyMissing,
    KeyInvalid,
    ScopeMissing,
    ScopeInvalid,
    ScopeUnavailable,
    ResponseNotStored,
    ResultExpired,
    NotSent,
    UpstreamUnreachable,
    StoreUnavailable,
    Overloaded,
    BodyTooLarge,
    BodyIncomplete,
    BodyUnreadable,
    BadRequest,
    Passed,
    Published,
    Unprotected,
}

/// What upstreams said of uncertain operations.
#[derive(Debug, Clone, Default)]
pub struct Probes {
    /// Executed.
    pub found: Counter,
    /// Not known.
    pub absent: Counter,
    /// No usable answer.
    pub unclear: Counter,
    /// Not sent: the key can't be filled into the path.
    pub withheld: Counter,
}

/// The completed records that are kept in the process.
#[derive(Debug, Clone, Default)]
pub struct CacheMeter {
    /// Duplicates answered from them.
    pub hits: Counter,
    /// Records dropped because they changed.
    pub invalidations: Counter,
    /// How often all were dropped, because the store no longer told of changes or was emptied.
    pub losses: Counter,
    /// How many there are.
    pub entries: Gauge,
    /// What they weigh.
    pub bytes: Gauge,
}

impl Answer {
    const ALL: [Answer; 24] = [
        Answer::Executed,
        Answer::Replayed,
        Answer::Released,
        Answer::Uncertain,
        Answer::InFlight,
        Answer::KeyReused,
        Answer::KeyMissing,
        Answer::KeyInvalid,
        Answer::ScopeMissing,
        Answer::ScopeInvalid,
        Answer::ScopeUnavailable,
        Answer::ResponseNotStored,
        Answer::ResultExpired,
        Answer::NotSent,
        Answer::UpstreamUnreachable,
        Answer::StoreUnavailable,
        Answer::Overloaded,
        Answer::BodyTooLarge,
        Answer::BodyIncomplete,
        Answer::BodyUnreadable,
        Answer::BadRequest,
        Answer::Passed,
        Answer::Published,
        Answer::Unprotected,
    ];

    /// The label's value.
    pub fn name(self) -> &'static str {
        match self {
            Answer::Executed => "executed",
            Answer::Replayed => "replayed",
            Answer::Released => "released",
            Answer::Uncertain => "uncertain",
            Answer::InFlight => "in_flight",
            Answer::KeyReused => "key_reused",
            Answer::KeyMissing => "key_missing",
            Answer::KeyInvalid => "key_invalid",
            Answer::ScopeMissing => "scope_missing",
            Answer::ScopeInvalid => "scope_invalid",
            Answer::ScopeUnavailable => "scope_unavailable",
            Answer::ResponseNotStored => "response_not_stored",
            Answer::ResultExpired => "result_expired",
            Answer::NotSent => "not_sent",
            Answer::UpstreamUnreachable => "upstream_unreachable",
            Answer::StoreUnavailable => "store_unavailable",
            Answer::Overloaded => "overloaded",
            Answer::BodyTooLarge => "body_too_large",
            Answer::BodyIncomplete => "body_incomplete",
            Answer::BodyUnreadable => "body_unreadable",
            Answer::BadRequest => "bad_request",
            Answer::Passed => "passed",
            Answer::Published => "published",
            Answer::Unprotected => "unprotected",
        }
    }
}

/// A call to the store that is timed.
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
    claim: Histogram,
    settle: Histogram,
    /// Attempts under way.
    pub in_flight: Gauge,
    /// Duplicates that are held until the first request is answered.
    pub waiters: Gauge,
    /// Client connections.
    pub connections: Gauge,
    /// Bytes of request and response bodies held in memory.
    pub buffered_bytes: Gauge,
    /// What upstreams said when they were asked about uncertain operations.
    pub probes: Probes,
    /// Outcomes that ended uncertain, sweeps included.
    pub uncertain: Counter,
    /// Attempts whose lease was taken from them while they ran.
    pub lost_leases: Counter,
    /// Store calls that failed.
    pub store_errors: Counter,
    /// Stored records that could not be read.
    pub corrupt_records: Counter,
    /// Observations of duplicates that were not told.
    pub observations_lost: Counter,
    /// Results that could not be stored yet and are retried in the background.
    pub unsettled_in_background: Gauge,
    /// Completed records kept in the process.
    pub cache: CacheMeter,
    /// Whether calls to the store's servers are spared.
    pub breakers: BreakerMeter,
    /// The configurations that were read.
    pub reloads: ReloadMeter,
    /// Routes that are not configured any more.
    pub vanished: VanishedRoutes,
    /// How far the read model is behind.
    pub projection: ProjectionMeter,
    /// Lines of the access log.
    pub access_log: TellingMeter,
    /// Spans of traces.
    pub spans: TellingMeter,
}

/// The metrics of one route, found once at the start.
#[derive(Clone)]
pub struct RouteMeter {
    answers: Arc<[Counter]>,
    prevented: Counter,
    /// Seconds from sending a request to the end of its response.
    pub upstream: Histogram,
    shadow: Family<ShadowLabels, Counter>,
    route: Arc<str>,
}

/// Measures a span, in seconds. Tokio's clock, so that simulated time is measured as such.
pub struct Timer(Instant);

impl Timer {
    /// Starts.
    pub fn start() -> Timer {
        Timer(Instant::now())
    }

    /// Stops, and puts the span into a histogram.
    pub fn stop(self, histogram: &Histogram) {
        histogram.observe(self.0.elapsed().as_secs_f64());
    }
}

/// Bounds in seconds: a local store answers below a millisecond, a payment API within a minute.
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
    /// Registers everything.
    pub fn new() -> Meter {
        let mut meter = Meter {
            registry: Arc::default(),
            answers: Family::default(),
            prevented: Family::default(),
            upstream: Family::new_with_constructor(buckets as fn() -> Histogram),
            shadow: Family::default(),
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
            access_log: TellingMeter::default(),
            spans: TellingMeter::default(),
        };
        let calls: Family<CallLabel, Histogram, fn() -> Histogram> =
            Family::new_with_constructor(buckets as fn() -> Histogram);
        meter.claim = calls.get_or_create(&CallLabel { call: "claim" }).clone();
        meter.settle = calls.get_or_create(&CallLabel { call: "settle" }).clone();
        let mut registry = Registry::with_prefix("onceward");
        let m = &meter;
        registry.register("requests", "Requests by route and outcome", m.answers.clone());
        registry.register(
            "duplicates_prevented",
            "Duplicates that did not reach the upstream",
            m.prevented.clone(),
        );
        registry.register(
            "shadow",
            "What enforcing would have done, on routes in shadow mode",
            m.shadow.clone(),
        );
        registry.register_with_unit(
            "upstream",
            "From sending a request to the end of its response",
            Unit::Seconds,
            m.upstream.clone(),
        );
        registry.register_with_unit(
            "store",
            "Store calls of the request path",
            Unit::Seconds,
            calls,
        );
        registry.register(
            "in_flight",
            "Attempts under way, requests that pass through, and tunnels",
            m.in_flight.clone(),
        );
        registry.register(
            "waiters",
            "Duplicates held until the first request is answered",
            m.waiters.clone(),
        );
        registry.register("connections", "Client connections", m.connections.clone());
        registry.register_with_unit(
            "buffered",
            "Bodies held in memory",
            Unit::Bytes,
            m.buffered_bytes.clone(),
        );
        registry.register(
            "probes_found",
            "Questions that found the operation executed",
            m.probes.found.clone(),
        );
        registry.register(
            "probes_absent",
            "Questions that found no trace of the operation",
            m.probes.absent.clone(),
        );
        registry.register(
            "probes_unclear",
            "Questions without a usable answer",
            m.probes.unclear.clone(),
        );
        registry.register(
            "probes_withheld",
            "Probes not sent because of the key",
            m.probes.withheld.clone(),
        );
        registry.register(
            "uncertain_outcomes",
            "Operations that became uncertain",
            m.uncertain.clone(),
        );
        registry.register(
            "lost_leases",
            "Attempts that lost their lease while they ran",
            m.lost_leases.clone(),
        );
        registry.register("store_errors", "Store calls that failed", m.store_errors.clone());
        registry.register(
            "observations_lost",
            "Observations of duplicates that were not told",
            m.observations_lost.clone(),
        );
        registry.register(
            "corrupt_records",
            "Stored records that could not be read",
            m.corrupt_records.clone(),
        );
        registry.register(
            "unsettled_in_background",
            "Results that are still being stored",
            m.unsettled_in_background.clone(),
        );
        register_cache(&mut registry, &m.cache);
        m.breakers.register(&mut registry);
        m.reloads.register(&mut registry);
        m.vanished.register(&mut registry);
        m.projection.register(&mut registry);
        m.access_log.register(&mut registry, "access_log_lines", "Lines of the access log");
        log_meter().register(&mut registry, "log_lines", "Lines of the log");
        m.spans.register(&mut registry, "trace_spans", "Spans of traces");
        meter.registry = Arc::new(registry);
        meter
    }

    /// The metrics of a route.
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
            route: name.into(),
        }
    }

    /// The histogram of a store call.
    pub fn store(&self, call: StoreCall) -> &Histogram {
        match call {
            StoreCall::Claim => &self.claim,
            StoreCall::Settle => &self.settle,
        }
    }

    /// Everything, as `/metrics` serves it.
    pub fn encode(&self) -> Result<String, fmt::Error> {
        let mut out = String::new();
        text::encode(&mut out, &self.registry)?;
        Ok(out)
    }
}

fn register_cache(registry: &mut Registry, cache: &CacheMeter) {
    registry.register(
        "local_cache_hits",
        "Duplicates answered from the process",
        cache.hits.clone(),
    );
    registry.register(
        "local_cache_invalidations",
        "Records dropped because they changed",
        cache.invalidations.clone(),
    );
    registry.register(
        "local_cache_losses",
        "Times that all records were dropped",
        cache.losses.clone(),
    );
    registry.register(
        "local_cache_entries",
        "Completed records kept in the process",
        cache.entries.clone(),
    );
    registry.register_with_unit(
        "local_cache",
        "Completed records kept in the process",
        Unit::Bytes,
        cache.bytes.clone(),
    );
}

impl RouteMeter {
    /// Counts an answer.
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

    /// Counts a duplicate that was held back because nobody knows how the first request ended.
    pub fn count_held(&self) {
        self.prevented.inc();
    }

    /// Counts what enforcing would have done.
    pub fn count_shadow(&self, would: &'static str) {
        self.shadow.get_or_create(&ShadowLabels { route: self.route.to_string(), would }).inc();
    }
}
