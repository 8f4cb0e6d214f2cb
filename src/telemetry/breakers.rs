//! Metrics of the circuit breakers of the store's servers.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// The state of a server's circuit breaker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BreakerState {
    /// Calls go through.
    Closed,
    /// One call at a time goes through, as a test.
    HalfOpen,
    /// Calls fail at once.
    Open,
}

impl BreakerState {
    const ALL: [BreakerState; 3] =
        [BreakerState::Closed, BreakerState::HalfOpen, BreakerState::Open];

    fn name(self) -> &'static str {
        match self {
            BreakerState::Closed => "closed",
            BreakerState::HalfOpen => "half_open",
            BreakerState::Open => "open",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StateLabel {
    state: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ToLabel {
    to: &'static str,
}

/// The breakers of a process, one per server. Cheap to clone.
#[derive(Debug, Clone)]
pub struct BreakerMeter {
    servers: Family<StateLabel, Gauge>,
    transitions: Family<ToLabel, Counter>,
}

impl Default for BreakerMeter {
    fn default() -> BreakerMeter {
        let meter = BreakerMeter { servers: Family::default(), transitions: Family::default() };
        // All label values exist from the start, so that the first transition is an increase for
        // alerts.
        for state in BreakerState::ALL {
            meter.gauge(state);
            meter.counter(state);
        }
        meter
    }
}

impl BreakerMeter {
    /// Counts a new breaker, which is closed.
    pub fn begun(&self) {
        self.gauge(BreakerState::Closed).inc();
    }

    /// Counts a transition.
    pub fn turned(&self, from: BreakerState, to: BreakerState) {
        self.gauge(from).dec();
        self.gauge(to).inc();
        self.counter(to).inc();
    }

    /// Removes a breaker that was in this state.
    pub fn ended(&self, state: BreakerState) {
        self.gauge(state).dec();
    }

    /// Returns how many breakers are in this state.
    pub fn servers(&self, state: BreakerState) -> i64 {
        self.gauge(state).get()
    }

    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register(
            "store_breakers",
            "Servers of the store by whether calls go through to them",
            self.servers.clone(),
        );
        registry.register(
            "store_breaker_transitions",
            "Transitions of the servers' circuit breakers",
            self.transitions.clone(),
        );
    }

    fn gauge(&self, state: BreakerState) -> Gauge {
        self.servers.get_or_create(&StateLabel { state: state.name() }).clone()
    }

    fn counter(&self, to: BreakerState) -> Counter {
        self.transitions.get_or_create(&ToLabel { to: to.name() }).clone()
    }
}
