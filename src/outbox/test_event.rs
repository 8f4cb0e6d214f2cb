//! The event with which an operator tests a sink. It is sent once and never stored.

use std::time::Duration;

use bytes::Bytes;
use serde::Serialize;

use super::delivery::{AttemptResult, Delivery};
use super::sink::{Sink, SinkChannel};
use crate::clock::rfc3339;

/// The `type` of the event.
const TEST_EVENT_TYPE: &str = "onceward.test";

/// Limit for a test, because an operator waits for its result. The timeout of a sink can be
/// shorter.
const TEST_MAX: Duration = Duration::from_secs(30);

/// A test of a sink.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SinkTest {
    /// The event's `id`.
    pub event_id: String,
    /// Whether the receiver has the event, or what it answered.
    pub result: AttemptResult,
}

/// An event with the members that all events have, except for `traceparent`. It belongs to no
/// operation, so the sink takes the operation's place.
#[derive(Serialize)]
struct TestEvent<'e> {
    specversion: &'static str,
    id: &'e str,
    source: &'e str,
    r#type: &'static str,
    subject: &'e str,
    datacontenttype: &'static str,
    partitionkey: &'e str,
    sequence: &'static str,
    data: EmptyData,
    time: String,
}

/// The event's `data`: an object without members.
#[derive(Serialize)]
struct EmptyData {}

/// A sink that can't be tested: it calls an API, and a test would be a real call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the sink calls an API: a test would be a real call")]
pub struct NotTestable;

/// Sends a test event to a sink, once. `random` makes its id unique, and `now_ms` is the time, in
/// ms since 1970. The result changes neither the sink's health nor its metrics.
pub(super) async fn send_test(
    sink: &Sink,
    source: &str,
    random: u128,
    now_ms: u64,
) -> Result<SinkTest, NotTestable> {
    let SinkChannel::Receiver(client) = &sink.channel else { return Err(NotTestable) };
    let event_id = format!("ev_{random:032x}");
    let event = TestEvent {
        specversion: "1.0",
        id: &event_id,
        source,
        r#type: TEST_EVENT_TYPE,
        subject: sink.name(),
        datacontenttype: "application/json",
        partitionkey: sink.name(),
        sequence: "00000000000000000000",
        data: EmptyData {},
        time: rfc3339(now_ms),
    };
    // The event consists of texts, so it always has a JSON form.
    let event = Bytes::from(serde_json::to_vec(&event).unwrap_or_default());
    let delivery = Delivery { event_id, round: 0, event };
    let within = sink.settings.timeout.min(TEST_MAX);
    let result = client.attempt(&delivery, now_ms / 1000, within).await;
    Ok(SinkTest { event_id: delivery.event_id, result })
}
