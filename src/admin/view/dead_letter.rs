//! Dead letters, as JSON, and the requests that decide about them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::value::{RawValue, to_raw_value};
use utoipa::ToSchema;

use crate::clock::rfc3339;
use crate::event::finished;
use crate::outbox::{AttemptsReport, OUTCOME_EXPIRED};
use crate::store::dead_letters::{DeadLetter, DeadLetterId};
use crate::store::outbox::EventContent;

/// A dead letter: an event that its sink did not take.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct DeadLetterView {
    /// The id. It stays the same if the event is requeued and buried again.
    pub id: String,
    /// The event (CloudEvents 1.0, JSON). Null if it can't be read: it is malformed, or sealed
    /// under a key that this gateway does not have. The role `read` gets it without `data`.
    #[schema(value_type = Object)]
    pub event: Option<Box<RawValue>>,
    /// The name of the sink.
    pub sink: String,
    /// `receiver`: the receiver refused it, or did not take it in time. `gateway`: the gateway
    /// can't send it.
    pub kind: String,
    /// The attempts of its last round. A requeue begins a new round.
    pub attempts: DeadLetterAttemptsView,
    /// When it became a dead letter (RFC 3339).
    pub buried_at: String,
}

/// The attempts to deliver an event before it became a dead letter.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DeadLetterAttemptsView {
    /// The time of the first attempt (RFC 3339); null if there was no attempt.
    pub first: Option<String>,
    /// The time of the last attempt (RFC 3339).
    pub last: Option<String>,
    /// The number of attempts.
    pub count: u32,
    /// The status of the last answer.
    pub status: Option<u16>,
    /// The first bytes of the last answer, at most 256. Bytes that are not text are replaced. Null
    /// for the role `read`.
    pub answer: Option<String>,
    /// Why there is no answer, or why the event can't be sent.
    pub error: Option<String>,
}

/// A page of dead letters.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct DeadLetterListView {
    /// The dead letters, latest burial first.
    pub dead_letters: Vec<DeadLetterView>,
    /// The cursor of the next page; null on the last page.
    pub cursor: Option<String>,
}

/// A decision, with its reason.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ReasonRequest {
    /// The reason, for the log: at most 1024 bytes. A pause and a discard need one.
    #[serde(default)]
    pub reason: Option<String>,
}

/// The requeue of one dead letter.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RequeueOneRequest {
    /// The reason, for the log: at most 1024 bytes.
    #[serde(default)]
    pub reason: Option<String>,
    /// Whether a call is made again although nobody knows the outcome of the last one.
    #[serde(default)]
    pub again: bool,
}

/// The dead letters to requeue.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RequeueRequest {
    /// The name of the sink.
    pub sink: String,
    /// Only dead letters that were buried at this time or later (RFC 3339).
    #[serde(default)]
    pub since: Option<String>,
    /// Only dead letters that were buried before this time.
    #[serde(default)]
    pub until: Option<String>,
    /// The maximum of this request: 1 to 200, default 100.
    #[serde(default)]
    pub limit: Option<usize>,
    /// The `cursor` of the previous answer, with the same members otherwise.
    #[serde(default)]
    pub cursor: Option<String>,
    /// Whether calls are made again although nobody knows the outcome of the last one.
    #[serde(default)]
    pub again: bool,
}

/// The result of a requeue.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RequeuedView {
    /// The number of dead letters that wait for delivery again.
    pub requeued: usize,
    /// The number of dead letters that stay, because nobody knows the outcome of their call. They
    /// need `again`.
    #[serde(default)]
    pub refused: usize,
    /// The cursor of the next request; null at the end.
    pub cursor: Option<String>,
}

/// The result of a discard.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DiscardedView {
    /// The number of dead letters that do not exist any more.
    pub discarded: usize,
}

/// The members of an event that the page shows outside of the event.
#[derive(Debug, Deserialize)]
pub(in crate::admin) struct EventTitle {
    pub id: String,
    #[serde(rename = "type")]
    pub event_type: String,
}

impl EventTitle {
    /// Reads the members from an event in JSON.
    pub(in crate::admin) fn of(event: &[u8]) -> Option<EventTitle> {
        serde_json::from_slice(event).ok()
    }
}

impl DeadLetterView {
    /// Returns the event's id and type, if the event can be read.
    pub(in crate::admin) fn head(&self) -> Option<EventTitle> {
        EventTitle::of(self.event.as_ref()?.get().as_bytes())
    }

    /// Returns whether it is a call with an outcome that nobody knows any more.
    pub(in crate::admin) fn is_outcome_expired(&self) -> bool {
        self.attempts.error.as_ref().is_some_and(|error| error.starts_with(OUTCOME_EXPIRED))
    }

    /// Creates the view of a dead letter. Only with `shows_contents` it has the event's data and
    /// the receiver's answer.
    pub(in crate::admin) fn new(
        id: DeadLetterId,
        letter: &DeadLetter,
        shows_contents: bool,
    ) -> DeadLetterView {
        let event = event_of(letter, shows_contents);
        DeadLetterView {
            id: id.to_string(),
            event,
            sink: letter.key.sink.clone(),
            kind: letter.burial.kind.name().to_owned(),
            attempts: DeadLetterAttemptsView::new(&letter.burial.report, shows_contents),
            buried_at: rfc3339(letter.buried_ms),
        }
    }
}

impl DeadLetterAttemptsView {
    fn new(report: &EventContent, shows_contents: bool) -> DeadLetterAttemptsView {
        let unread = |why: &str| DeadLetterAttemptsView {
            error: Some(why.to_owned()),
            ..DeadLetterAttemptsView::default()
        };
        let EventContent::Plain(report) = report else {
            return unread("sealed under a key that this gateway does not have");
        };
        let Ok(report) = serde_json::from_slice::<AttemptsReport>(report) else {
            return unread("the stored report of the attempts is malformed");
        };
        DeadLetterAttemptsView {
            first: report.first_ms.map(rfc3339),
            last: report.last_ms.map(rfc3339),
            count: report.count,
            status: report.status,
            answer: report.answer.filter(|_| shows_contents),
            error: report.error,
        }
    }
}

/// Returns the event as it is delivered, with its own spelling of numbers.
fn event_of(letter: &DeadLetter, shows_data: bool) -> Option<Box<RawValue>> {
    let EventContent::Plain(content) = &letter.content else { return None };
    let event = finished(content, letter.written_ms).ok()?;
    if shows_data {
        return serde_json::from_slice(&event).ok();
    }
    let mut members: BTreeMap<String, Box<RawValue>> = serde_json::from_slice(&event).ok()?;
    members.remove("data");
    to_raw_value(&members).ok()
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::key::Slot;
    use crate::store::dead_letters::{Burial, DeadLetterKind};
    use crate::store::outbox::{EventKey, EventOrder};

    fn letter(content: EventContent, report: EventContent) -> DeadLetter {
        let order = EventOrder { opened_unix_ms: 1, version: 2, number: 0 };
        let slot = Slot::from_reference("op_0123456789abcdef0123456789abcdef01234567").unwrap();
        DeadLetter {
            key: EventKey { sink: "ledger".into(), slot, order },
            content,
            written_ms: 1_000,
            round: 0,
            buried_ms: 9_000,
            burial: Burial { kind: DeadLetterKind::Receiver, report },
        }
    }

    fn plain(text: &str) -> EventContent {
        EventContent::Plain(Bytes::copy_from_slice(text.as_bytes()))
    }

    fn view(letter: &DeadLetter, shows_contents: bool) -> serde_json::Value {
        let id = DeadLetterId::of(&letter.key);
        serde_json::to_value(DeadLetterView::new(id, letter, shows_contents)).unwrap()
    }

    #[test]
    fn a_reader_gets_neither_the_data_nor_the_answer() {
        let content = plain("\u{1}{\"id\":\"ev_1\",\"data\":{\"amount\":12.340");
        let report = r#"{"first_ms":2000,"last_ms":3000,"count":2,"status":500,"answer":"no"}"#;
        let letter = letter(content, plain(report));
        let whole = DeadLetterView::new(DeadLetterId::of(&letter.key), &letter, true);
        let event = whole.event.unwrap();
        assert!(event.get().contains("\"amount\":12.340,"), "the spelling stays: {event}");
        let operators = view(&letter, true);
        assert_eq!(operators["event"]["time"], "1970-01-01T00:00:01.000Z");
        assert_eq!(
            operators["attempts"],
            serde_json::json!({
                "first": "1970-01-01T00:00:02.000Z", "last": "1970-01-01T00:00:03.000Z",
                "count": 2, "status": 500, "answer": "no", "error": null,
            })
        );
        assert_eq!(
            (&operators["kind"], &operators["buried_at"]),
            (&"receiver".into(), &"1970-01-01T00:00:09.000Z".into())
        );
        let readers = view(&letter, false);
        assert_eq!(readers["event"]["id"], "ev_1");
        assert!(!readers.to_string().contains("amount"), "{readers}");
        assert_eq!(
            (&readers["attempts"]["answer"], &readers["attempts"]["status"]),
            (&().into(), &500.into())
        );
    }

    #[test]
    fn a_dead_letter_that_can_not_be_read_is_shown_without_its_event() {
        let sealed = || EventContent::Sealed(Bytes::from_static(b"x"));
        for (letter, why) in [
            (letter(sealed(), sealed()), "a key"),
            (letter(plain("\u{1}{no json"), plain("no json")), "malformed"),
        ] {
            let view = view(&letter, true);
            assert_eq!(view["event"], serde_json::Value::Null);
            assert!(view["attempts"]["error"].as_str().unwrap().contains(why), "{view}");
        }
    }
}
