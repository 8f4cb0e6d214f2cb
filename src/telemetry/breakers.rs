//! How many of the store's servers are spared calls, and how often that turned.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// Whether calls go through to a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BreakerState {
    /// They do.
    Closed,
    /// One at a time does, to see.
    HalfOpen,
    /// They fail at once.
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

/// The breakers of a process, one for each server. Cheap to clone.
#[derive(Debug, Clone)]
pub struct BreakerMeter {
    servers: Family<StateLabel, Gauge>,
    turns: Family<ToLabel, Counter>,
}

impl Default for BreakerMeter {
    fn default() -> BreakerMeter {
        let meter = BreakerMeter { servers: Family::default(), turns: Family::default() };
        // Seen from the start, so that an alert on one that opens has something to compare with.
        for state in BreakerState::ALL {
            meter.gauge(state);
            meter.counter(state);
        }
        meter
    }
}

impl BreakerMeter {
    /// There is one more, closed.
    pub fn begun(&self) {
        self.gauge(BreakerState::Closed).inc();
    }

    /// One changed its state.
    pub fn turned(&self, from: BreakerState, to: BreakerState) {
        self.gauge(from).dec();
        self.gauge(to).inc();
        self.counter(to).inc();
    }

    /// One is gone, in this state.
    pub fn ended(&self, state: BreakerState) {
        self.gauge(state).dec();
    }

    /// How many are in this state.
    pub fn servers(&self, state: BreakerState) -> i64 {
        self.gauge(state).get()
    }

    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register(
            "store_breakers",
            "Servers of the store by whether calls go through to them",
            self.servers.clone(),
        );
        registry.register("store_breaker_turns", "Changes of that state", self.turns.clone());
    }

    fn gauge(&self, state: BreakerState) -> Gauge {
        self.servers.get_or_create(&StateLabel { state: state.name() }).clone()
    }

    fn counter(&self, to: BreakerState) -> Counter {
        self.turns.get_or_create(&ToLabel { to: to.name() }).clone()
    }
}
