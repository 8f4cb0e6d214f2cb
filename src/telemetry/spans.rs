//! Spans for an OpenTelemetry collector: a bounded queue, and OTLP's JSON form.
//!
//! The encoder is written by hand, because there are only a few spans of one shape, and OTLP over
//! HTTP accepts JSON. The crates for OTLP would add a second HTTP client and protobuf.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout_at};

use super::line_queue::ExportMetrics;
use crate::hex;

/// Most requests with queued spans. The spans take some megabytes.
const REQUESTS_MAX: usize = 2048;
/// Most spans per message, approximately.
const BATCH_SPANS: usize = 512;
/// Longest time that the first span of a message waits for others.
const BATCH_WAIT: Duration = Duration::from_secs(1);

/// The kind of a span in OTLP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SpanKind {
    Internal = 1,
    Server = 2,
    Client = 3,
}

/// The ids of a request's spans: derived from one random number, and distinct within their trace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ids {
    pub trace: [u8; 16],
    pub parent: Option<[u8; 8]>,
    own: u64,
}

impl Ids {
    pub fn new(trace: [u8; 16], parent: Option<[u8; 8]>, own: u64) -> Ids {
        Ids { trace, parent, own }
    }

    /// Returns the id of the request's span.
    pub fn own(&self) -> [u8; 8] {
        self.at(0)
    }

    /// Returns the id of the span of forwarding.
    pub fn forward(&self) -> [u8; 8] {
        self.at(1)
    }

    /// Returns the id of the nth step's span.
    pub fn nth(&self, number: u64) -> [u8; 8] {
        self.at(number + 2)
    }

    fn at(&self, number: u64) -> [u8; 8] {
        // Multiples of an odd number repeat only after 2^64 steps; an id of all zeros is invalid.
        const STRIDE: u64 = 0x9e37_79b9_7f4a_7c15;
        self.own.wrapping_add(number.wrapping_mul(STRIDE)).max(1).to_be_bytes()
    }
}

/// A span that ended.
#[derive(Debug, Clone)]
pub struct Span {
    trace: [u8; 16],
    id: [u8; 8],
    parent: Option<[u8; 8]>,
    pub(super) name: String,
    kind: SpanKind,
    from_unix_ns: u64,
    to_unix_ns: u64,
    attributes: Vec<(&'static str, Value)>,
    pub(super) link: Option<([u8; 16], [u8; 8])>,
    pub(super) failed: bool,
}

impl Span {
    pub(super) fn new(
        trace: [u8; 16],
        id: [u8; 8],
        parent: Option<[u8; 8]>,
        name: String,
        kind: SpanKind,
    ) -> Span {
        let (from_unix_ns, to_unix_ns) = (0, 0);
        Span {
            trace,
            id,
            parent,
            name,
            kind,
            from_unix_ns,
            to_unix_ns,
            attributes: Vec::new(),
            link: None,
            failed: false,
        }
    }

    pub(super) fn lasted(&mut self, base_unix_ns: u64, from: Duration, to: Duration) {
        let at = |after: Duration| {
            base_unix_ns.saturating_add(u64::try_from(after.as_nanos()).unwrap_or(u64::MAX))
        };
        (self.from_unix_ns, self.to_unix_ns) = (at(from), at(to));
    }

    pub(super) fn text(&mut self, name: &'static str, value: &str) {
        self.attributes.push((name, json!({ "stringValue": value })));
    }

    pub(super) fn number(&mut self, name: &'static str, value: i64) {
        self.attributes.push((name, json!({ "intValue": value.to_string() })));
    }

    fn json(&self) -> Value {
        let attributes: Vec<Value> = self
            .attributes
            .iter()
            .map(|(key, value)| json!({ "key": key, "value": value }))
            .collect();
        let mut span = json!({
            "traceId": hex::encode(&self.trace),
            "spanId": hex::encode(&self.id),
            "name": self.name,
            "kind": self.kind as u8,
            "startTimeUnixNano": self.from_unix_ns.to_string(),
            "endTimeUnixNano": self.to_unix_ns.to_string(),
            "attributes": attributes,
        });
        if let Some(parent) = &self.parent {
            span["parentSpanId"] = json!(hex::encode(parent));
        }
        if let Some((trace, of)) = &self.link {
            span["links"] = json!([{ "traceId": hex::encode(trace), "spanId": hex::encode(of) }]);
        }
        if self.failed {
            // STATUS_CODE_ERROR
            span["status"] = json!({ "code": 2 });
        }
        span
    }
}

/// The sender of spans. Cheap to clone. The exporter ends after the last clone is dropped.
#[derive(Clone)]
pub struct Tracer {
    queue: mpsc::Sender<Vec<Span>>,
    /// A new trace is sampled if the lower half of its id is below this.
    threshold: u64,
    meter: ExportMetrics,
}

/// The receiver of spans.
pub struct SpanQueue(mpsc::Receiver<Vec<Span>>);

impl Tracer {
    /// Creates a tracer. `sample_ratio`, from 0 to 1, is the share of new traces that are exported;
    /// if a client began the trace, the client decides.
    pub fn new(sample_ratio: f64, meter: ExportMetrics) -> (Tracer, SpanQueue) {
        let (queue, spans) = mpsc::channel(REQUESTS_MAX);
        // A ratio of 1 gives `u64::MAX`, which samples every trace.
        let threshold = (sample_ratio.clamp(0.0, 1.0) * u64::MAX as f64) as u64;
        (Tracer { queue, threshold, meter }, SpanQueue(spans))
    }

    pub(super) fn samples(&self, trace: &[u8; 16]) -> bool {
        let low = trace[8..].iter().fold(0_u64, |low, byte| low << 8 | u64::from(*byte));
        self.threshold == u64::MAX || low < self.threshold
    }

    pub(super) fn export(&self, spans: Vec<Span>) {
        let count = spans.len() as u64;
        if self.queue.try_send(spans).is_err() {
            self.meter.dropped.inc_by(count);
        }
    }
}

impl SpanQueue {
    /// Returns the next batch; `None` after the last one.
    pub async fn next(&mut self) -> Option<Vec<Span>> {
        let mut batch = self.0.recv().await?;
        let until = Instant::now() + BATCH_WAIT;
        while batch.len() < BATCH_SPANS {
            match timeout_at(until, self.0.recv()).await {
                Ok(Some(more)) => batch.extend(more),
                Ok(None) | Err(_) => break,
            }
        }
        Some(batch)
    }
}

/// Encodes a message of OTLP over HTTP in its JSON form (opentelemetry-proto,
/// ExportTraceServiceRequest).
pub fn export_request(spans: &[Span]) -> Vec<u8> {
    let text = |value: &str| json!({ "stringValue": value });
    let spans: Vec<Value> = spans.iter().map(Span::json).collect();
    let message = json!({ "resourceSpans": [{
        "resource": { "attributes": [{ "key": "service.name", "value": text("onceward") }] },
        "scopeSpans": [{
            "scope": { "name": "onceward", "version": env!("CARGO_PKG_VERSION") },
            "spans": spans,
        }],
    }] });
    message.to_string().into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_of_new_traces_is_exported_and_the_queue_is_bounded() {
        let traces = (0..1000_u64).map(|n| {
            let mut trace = [7; 16];
            trace[8..].copy_from_slice(&n.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes());
            trace
        });
        let sampled = |ratio: f64| {
            let tracer = Tracer::new(ratio, ExportMetrics::default()).0;
            traces.clone().filter(|trace| tracer.samples(trace)).count()
        };
        assert_eq!((sampled(0.0), sampled(1.0)), (0, 1000));
        assert!((150..250).contains(&sampled(0.2)), "{}", sampled(0.2));
        let (tracer, queue) = Tracer::new(1.0, ExportMetrics::default());
        let span = Span::new([1; 16], [2; 8], None, "POST payments".into(), SpanKind::Server);
        (0..REQUESTS_MAX + 3).for_each(|_| tracer.export(vec![span.clone(), span.clone()]));
        assert_eq!(tracer.meter.dropped.get(), 6);
        drop(queue);
    }

    #[tokio::test(start_paused = true)]
    async fn queued_spans_are_sent_together_also_after_the_end() {
        let (tracer, mut queue) = Tracer::new(1.0, ExportMetrics::default());
        let span = Span::new([1; 16], [2; 8], None, "forward".into(), SpanKind::Client);
        (0..3).for_each(|_| tracer.export(vec![span.clone()]));
        assert_eq!(queue.next().await.map(|batch| batch.len()), Some(3));
        tracer.export(vec![span]);
        drop(tracer);
        assert_eq!(queue.next().await.map(|batch| batch.len()), Some(1));
        assert!(queue.next().await.is_none());
    }

    #[test]
    fn a_message_has_the_form_of_the_protocol() {
        let ids = Ids::new([0xab; 16], Some([0xcd; 8]), 5);
        let mut span =
            Span::new(ids.trace, ids.own(), ids.parent, "POST payments".into(), SpanKind::Server);
        span.lasted(1_000, Duration::ZERO, Duration::from_nanos(7));
        span.text("onceward.outcome", "replayed");
        span.number("http.response.status_code", 201);
        span.link = Some(([1; 16], [2; 8]));
        let message: Value = serde_json::from_slice(&export_request(&[span])).unwrap();
        let exported = &message["resourceSpans"][0]["scopeSpans"][0]["spans"][0];
        let expected = json!({
            "traceId": "ab".repeat(16),
            "spanId": "0000000000000005",
            "parentSpanId": "cd".repeat(8),
            "name": "POST payments",
            "kind": 2,
            "startTimeUnixNano": "1000",
            "endTimeUnixNano": "1007",
            "attributes": [
                { "key": "onceward.outcome", "value": { "stringValue": "replayed" } },
                { "key": "http.response.status_code", "value": { "intValue": "201" } },
            ],
            "links": [{ "traceId": "01".repeat(16), "spanId": "02".repeat(8) }],
        });
        assert_eq!(*exported, expected);
        let own = [ids.own(), ids.forward(), ids.nth(0), ids.nth(1)];
        assert!((0..4).all(|n| !own[n + 1..].contains(&own[n])));
    }
}
