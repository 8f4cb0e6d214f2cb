//! Sinks, as JSON.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::clock::rfc3339;
use crate::outbox::SinkTest;
use crate::outbox::backlog::BacklogSum;
use crate::outbox::delivery::AttemptResult;
use crate::outbox::sink::Sink;
use crate::outbox::states::SinkState;

/// A sink.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SinkView {
    /// The name.
    pub name: String,
    /// The kind of the receiver, such as `webhook`; null if the sink is not configured.
    pub kind: Option<String>,
    /// `running`, `paused`, or `not configured`: the configuration does not name the sink, but
    /// something waits for it.
    pub state: String,
    /// Why the sink is paused. `gone`: its receiver answered 410.
    pub reason: Option<String>,
    /// Who paused the sink; null for the gateway itself.
    pub paused_by: Option<String>,
    /// Since when the sink is paused (RFC 3339).
    pub paused_at: Option<String>,
    /// Scheme, host and port of the receiver.
    pub url: Option<String>,
    /// The number of waiting events.
    pub backlog: u64,
    /// The time of the change of the oldest waiting event (RFC 3339).
    pub oldest: Option<String>,
    /// The dead letters.
    pub dead_letters: DeadLetterCounts,
    /// The bytes of waiting events and dead letters.
    pub bytes: u64,
    /// The time of the last delivery by this gateway since its start (RFC 3339).
    pub last_delivered: Option<String>,
    /// The time of this gateway's first failed attempt since its last delivery (RFC 3339).
    pub failing_since: Option<String>,
}

/// The number of a sink's dead letters, by kind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DeadLetterCounts {
    /// The receiver refused them, or did not take them in time.
    pub receiver: u64,
    /// The gateway can't send them.
    pub gateway: u64,
}

/// All sinks.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SinkListView {
    /// The sinks, by name.
    pub sinks: Vec<SinkView>,
}

/// The result of a test of a sink.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SinkTestView {
    /// The name of the sink.
    pub sink: String,
    /// The `id` of the test event.
    pub event: String,
    /// Whether the receiver has the event.
    pub delivered: bool,
    /// The status of the receiver's answer, for receivers that have one.
    pub status: Option<u16>,
    /// The first bytes of the answer of a receiver that did not take the event. Bytes that are not
    /// text are replaced.
    pub answer: Option<String>,
    /// Why there is no answer.
    pub error: Option<String>,
}

impl SinkView {
    /// Creates the view of a sink. `sink` is `None` if the configuration does not name it.
    pub(in crate::admin) fn new(
        name: &str,
        sink: Option<&Sink>,
        state: SinkState,
        backlog: &BacklogSum,
    ) -> SinkView {
        let health = sink.map(Sink::health).unwrap_or_default();
        let word = match (sink, &state.pause) {
            (None, _) => "not configured",
            (Some(_), Some(_)) => "paused",
            (Some(_), None) => "running",
        };
        let (reason, paused_by, paused_at) = match state.pause {
            Some(pause) => (Some(pause.reason), pause.by, Some(rfc3339(pause.since_ms))),
            None => (None, None, None),
        };
        SinkView {
            name: name.to_owned(),
            kind: sink.map(|sink| sink.settings.target.kind().to_owned()),
            state: word.to_owned(),
            reason,
            paused_by,
            paused_at,
            url: sink.map(|sink| sink.settings.target.location()),
            backlog: backlog.waiting,
            oldest: backlog.oldest_ms.map(rfc3339),
            dead_letters: DeadLetterCounts {
                receiver: backlog.dead_by_receiver,
                gateway: backlog.dead_by_gateway,
            },
            bytes: backlog.bytes,
            last_delivered: health.last_delivered_ms.map(rfc3339),
            failing_since: health.failing_since_ms.map(rfc3339),
        }
    }
}

impl SinkTestView {
    /// Creates the view of a test.
    pub(in crate::admin) fn new(sink: &str, test: SinkTest) -> SinkTestView {
        let (status, answer, error) = match &test.result {
            AttemptResult::Delivered { status } => (*status, None, None),
            AttemptResult::Refused { status, answer, .. } => {
                (Some(*status), Some(String::from_utf8_lossy(answer).into_owned()), None)
            }
            AttemptResult::Failed { error } => (None, None, Some(error.clone())),
        };
        SinkTestView {
            sink: sink.to_owned(),
            event: test.event_id,
            delivered: test.result.is_delivered(),
            status,
            answer,
            error,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::outbox::settings::{SinkSettings, SinkTarget, WebhookTarget};
    use crate::outbox::states::Pause;

    fn sink() -> std::sync::Arc<Sink> {
        let target = SinkTarget::Webhook(WebhookTarget {
            url: axum::http::Uri::from_static("https://ledger.test:8443/hooks/secret?token=x"),
            secrets: vec![vec![7; 32]],
            headers: axum::http::HeaderMap::new(),
            ca_file: None,
        });
        Sink::new(SinkSettings::new("ledger", target)).unwrap()
    }

    fn paused() -> SinkState {
        let pause = Pause { reason: "moved".into(), by: Some("ann".into()), since_ms: 0 };
        SinkState { pause: Some(pause), resumed_ms: 0 }
    }

    #[test]
    fn a_sink_has_its_state_and_shows_no_path_of_its_receiver() {
        let sum = BacklogSum { waiting: 3, oldest_ms: Some(5_000), ..BacklogSum::default() };
        let view = SinkView::new("ledger", Some(&sink()), SinkState::default(), &sum);
        assert_eq!((view.state.as_str(), view.reason.as_deref()), ("running", None));
        assert_eq!(view.url.as_deref(), Some("https://ledger.test:8443"));
        assert_eq!((view.backlog, view.oldest.as_deref()), (3, Some("1970-01-01T00:00:05.000Z")));
        let view = SinkView::new("ledger", Some(&sink()), paused(), &sum);
        assert_eq!((view.state.as_str(), view.reason.as_deref()), ("paused", Some("moved")));
        assert_eq!(view.paused_by.as_deref(), Some("ann"));
        let view = serde_json::to_value(SinkView::new("old", None, paused(), &sum)).unwrap();
        assert_eq!((&view["state"], &view["kind"]), (&"not configured".into(), &().into()));
        assert!(view.as_object().unwrap().contains_key("last_delivered"), "null, and not absent");
    }

    #[test]
    fn a_test_shows_what_came_back() {
        let view =
            |result| SinkTestView::new("ledger", SinkTest { event_id: "ev_1".into(), result });
        let delivered = view(AttemptResult::Delivered { status: Some(204) });
        assert_eq!((delivered.delivered, delivered.status), (true, Some(204)));
        let refused = view(AttemptResult::Refused {
            status: 500,
            answer: b"no\xff".as_slice().into(),
            retry_after: Some(Duration::ZERO),
        });
        assert_eq!((refused.delivered, refused.status), (false, Some(500)));
        assert_eq!(refused.answer.as_deref(), Some("no\u{fffd}"));
        let failed = view(AttemptResult::Failed { error: "refused".into() });
        assert_eq!((failed.delivered, failed.error.as_deref()), (false, Some("refused")));
    }
}
