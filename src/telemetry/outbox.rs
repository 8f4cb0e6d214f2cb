//! Metrics of the outbox.

use std::sync::atomic::AtomicU64;
use std::time::Duration;

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

/// Bounds of the time from a change to the delivery of its event, in seconds: from a prompt
/// delivery to one after days of retries.
const DELIVERY_BOUNDS: [f64; 12] =
    [0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0, 10.0, 60.0, 600.0, 3600.0, 86400.0];

/// The result of an attempt to deliver an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DeliveryResult {
    /// The receiver has the event.
    Delivered,
    /// The called API has refused the event, and another event about the refusal follows.
    Refused,
    /// The attempt failed, and another one follows.
    Retried,
    /// The event became a dead letter.
    Buried,
}

/// The events of a sink in the store.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct SinkGauges {
    /// Waiting events.
    pub waiting: u64,
    /// Age of the oldest waiting event; zero without one.
    pub oldest: Duration,
    /// Dead letters by receiver.
    pub dead_by_receiver: u64,
    /// Dead letters by gateway.
    pub dead_by_gateway: u64,
    /// Whether the sink is paused.
    pub is_paused: bool,
}

/// Metrics of the outbox. The label `sink` has the names of configured sinks, and of other sinks
/// while their events wait.
#[derive(Debug, Clone)]
pub struct OutboxMeter {
    backlog: Family<SinkLabel, Gauge>,
    oldest: Family<SinkLabel, Gauge<f64, AtomicU64>>,
    deliveries: Family<DeliveryLabel, Counter>,
    delays: Family<SinkLabel, Histogram, fn() -> Histogram>,
    dead_letters: Family<DeadLetterLabel, Gauge>,
    paused: Family<SinkLabel, Gauge>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct SinkLabel {
    sink: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DeliveryLabel {
    sink: String,
    result: DeliveryResult,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DeadLetterLabel {
    sink: String,
    kind: &'static str,
}

impl DeliveryResult {
    const ALL: [DeliveryResult; 4] = [
        DeliveryResult::Delivered,
        DeliveryResult::Refused,
        DeliveryResult::Retried,
        DeliveryResult::Buried,
    ];
}

impl EncodeLabelValue for DeliveryResult {
    fn encode(&self, encoder: &mut LabelValueEncoder) -> Result<(), std::fmt::Error> {
        let name = match self {
            DeliveryResult::Delivered => "delivered",
            DeliveryResult::Refused => "refused",
            DeliveryResult::Retried => "retried",
            DeliveryResult::Buried => "buried",
        };
        name.encode(encoder)
    }
}

impl Default for OutboxMeter {
    fn default() -> OutboxMeter {
        let histogram: fn() -> Histogram = || Histogram::new(DELIVERY_BOUNDS);
        OutboxMeter {
            backlog: Family::default(),
            oldest: Family::default(),
            deliveries: Family::default(),
            delays: Family::new_with_constructor(histogram),
            dead_letters: Family::default(),
            paused: Family::default(),
        }
    }
}

impl OutboxMeter {
    /// Counts an event that the receiver has: `Delivered` or `Refused`. `since_change` is the time
    /// from the change to the delivery.
    pub fn delivered(&self, sink: &str, result: DeliveryResult, since_change: Duration) {
        self.counted(sink, result);
        let label = SinkLabel { sink: sink.to_owned() };
        self.delays.get_or_create(&label).observe(since_change.as_secs_f64());
    }

    /// Counts an attempt.
    pub fn counted(&self, sink: &str, result: DeliveryResult) {
        let label = DeliveryLabel { sink: sink.to_owned(), result };
        self.deliveries.get_or_create(&label).inc();
    }

    /// Sets the gauges of a sink.
    pub fn set(&self, sink: &str, gauges: &SinkGauges) {
        let number = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
        let label = SinkLabel { sink: sink.to_owned() };
        self.backlog.get_or_create(&label).set(number(gauges.waiting));
        self.oldest.get_or_create(&label).set(gauges.oldest.as_secs_f64());
        self.paused.get_or_create(&label).set(i64::from(gauges.is_paused));
        // A counter that begins with its first event has no first increase.
        for result in DeliveryResult::ALL {
            let label = DeliveryLabel { sink: sink.to_owned(), result };
            drop(self.deliveries.get_or_create(&label));
        }
        let kinds = [("receiver", gauges.dead_by_receiver), ("gateway", gauges.dead_by_gateway)];
        for (kind, count) in kinds {
            let label = DeadLetterLabel { sink: sink.to_owned(), kind };
            self.dead_letters.get_or_create(&label).set(number(count));
        }
    }

    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register("outbox_backlog", "Events that wait for a sink", self.backlog.clone());
        registry.register_with_unit(
            "outbox_oldest",
            "Age of the oldest event that waits for a sink",
            Unit::Seconds,
            self.oldest.clone(),
        );
        registry.register(
            "outbox_deliveries",
            "Attempts to deliver an event, by result",
            self.deliveries.clone(),
        );
        registry.register_with_unit(
            "outbox_delivery",
            "Time from a change to the delivery of its event",
            Unit::Seconds,
            self.delays.clone(),
        );
        registry.register(
            "dead_letters",
            "Events that a sink did not take",
            self.dead_letters.clone(),
        );
        registry.register("sink_paused", "Whether a sink is paused", self.paused.clone());
    }
}
