//! Metrics of sagas.

use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

/// Metrics of the sagas that this gateway runs. The label `saga` has the names of configured sagas,
/// and of sagas that began under an earlier configuration.
#[derive(Debug, Clone)]
pub struct SagaMeter {
    running: Gauge,
    stuck: Gauge,
    ended: Family<EndLabels, Counter>,
    seconds: Family<SagaLabel, Histogram, fn() -> Histogram>,
    steps: Family<SettledLabels, Counter>,
    compensations: Family<SettledLabels, Counter>,
    unrendered: Family<SagaLabel, Counter>,
}

/// A saga in the gauges. Dropping it removes the saga from them.
#[derive(Debug)]
pub struct CountedSaga {
    meter: SagaMeter,
    is_stuck: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct SagaLabel {
    saga: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct EndLabels {
    saga: String,
    status: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct SettledLabels {
    saga: String,
    result: &'static str,
}

/// The statuses of sagas that ended, and the results of actions and of compensations.
const STATUSES: [&str; 2] = ["completed", "failed"];
const STEP_RESULTS: [&str; 4] = ["done", "failed", "skipped", "barred"];
const COMPENSATION_RESULTS: [&str; 2] = ["undone", "refused"];

/// Upper bounds of the durations of sagas, in seconds. A stuck saga may wait for a person over a
/// night.
const SECONDS: [f64; 15] = [
    0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0, 14_400.0, 86_400.0,
];

fn seconds() -> Histogram {
    Histogram::new(SECONDS)
}

impl Default for SagaMeter {
    fn default() -> SagaMeter {
        SagaMeter {
            running: Gauge::default(),
            stuck: Gauge::default(),
            ended: Family::default(),
            seconds: Family::new_with_constructor(seconds as fn() -> Histogram),
            steps: Family::default(),
            compensations: Family::default(),
            unrendered: Family::default(),
        }
    }
}

impl SagaMeter {
    /// Creates the counters of a configured saga. A counter that begins with its first event has no
    /// first increase.
    pub fn configured(&self, saga: &str) {
        for status in STATUSES {
            drop(self.ended.get_or_create(&EndLabels { saga: saga.to_owned(), status }));
        }
        let labels = |result| SettledLabels { saga: saga.to_owned(), result };
        drop(self.seconds.get_or_create(&SagaLabel { saga: saga.to_owned() }));
        drop(self.unrendered.get_or_create(&SagaLabel { saga: saga.to_owned() }));
        for result in STEP_RESULTS {
            drop(self.steps.get_or_create(&labels(result)));
        }
        for result in COMPENSATION_RESULTS {
            drop(self.compensations.get_or_create(&labels(result)));
        }
    }

    /// Adds a saga to the gauges.
    pub fn began(&self) -> CountedSaga {
        self.running.inc();
        CountedSaga { meter: self.clone(), is_stuck: false }
    }

    /// Counts a saga that ended, so long after its start.
    pub fn ended(&self, saga: &str, status: &'static str, took: Duration) {
        self.ended.get_or_create(&EndLabels { saga: saga.to_owned(), status }).inc();
        let label = SagaLabel { saga: saga.to_owned() };
        self.seconds.get_or_create(&label).observe(took.as_secs_f64());
    }

    /// Counts an action that was settled.
    pub fn step(&self, saga: &str, result: &'static str) {
        self.steps.get_or_create(&SettledLabels { saga: saga.to_owned(), result }).inc();
    }

    /// Counts a compensation that was settled.
    pub fn compensation(&self, saga: &str, result: &'static str) {
        self.compensations.get_or_create(&SettledLabels { saga: saga.to_owned(), result }).inc();
    }

    /// Counts an answer with the default body, because its template can't be rendered.
    pub fn unrendered(&self, saga: &str) {
        self.unrendered.get_or_create(&SagaLabel { saga: saga.to_owned() }).inc();
    }

    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register("sagas_running", "Sagas that this gateway runs", self.running.clone());
        registry.register(
            "sagas_stuck",
            "Sagas of this gateway that wait for a person or an upstream",
            self.stuck.clone(),
        );
        registry.register("sagas_ended", "Sagas that ended, by status", self.ended.clone());
        registry.register_with_unit(
            "saga",
            "Time from the start of a saga to its end",
            Unit::Seconds,
            self.seconds.clone(),
        );
        registry.register("saga_steps", "Actions of steps, by result", self.steps.clone());
        registry.register(
            "saga_compensations",
            "Compensations of steps, by result",
            self.compensations.clone(),
        );
        registry.register(
            "saga_unrendered_answers",
            "Answers of sagas with the default body, because their template could not be rendered",
            self.unrendered.clone(),
        );
    }
}

impl CountedSaga {
    /// Sets whether the saga is stuck.
    pub fn set_stuck(&mut self, is_stuck: bool) {
        match (self.is_stuck, is_stuck) {
            (false, true) => _ = self.meter.stuck.inc(),
            (true, false) => _ = self.meter.stuck.dec(),
            _ => {}
        }
        self.is_stuck = is_stuck;
    }
}

impl Drop for CountedSaga {
    fn drop(&mut self) {
        self.set_stuck(false);
        self.meter.running.dec();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_saga_leaves_the_gauges_however_it_ends() {
        let meter = SagaMeter::default();
        let (mut one, two) = (meter.began(), meter.began());
        one.set_stuck(true);
        one.set_stuck(true);
        assert_eq!((meter.running.get(), meter.stuck.get()), (2, 1));
        drop(two);
        assert_eq!((meter.running.get(), meter.stuck.get()), (1, 1));
        drop(one);
        assert_eq!((meter.running.get(), meter.stuck.get()), (0, 0));
    }
}
