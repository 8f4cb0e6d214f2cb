//! Writes of records: each is written in one step with the events of its change, for the event log
//! and for the operation's sinks.

use super::state::Gate;
use crate::engine::{
    Announcement, Next, Policy, SettledBy, Side, announcements_of_saga, any_chosen, chosen,
};
use crate::event::{AnnouncedChange, ChangedSaga, Context, Event, events_of};
use crate::key::{Document, Slot, Space};
use crate::record::{
    AnnouncedState, CodecError, Lifetime, Publication, Record, ReplyBody, State, Version,
};
use crate::store::outbox::{EventContent, EventOrder};
use crate::store::{EventSource, Events, OutboxEvent, StoreError, Swap};

/// A record to write, with its events.
#[derive(Clone, Copy)]
pub(crate) struct RecordChange<'c> {
    pub next: &'c Record,
    pub lifetime: Lifetime,
    pub announcement: Option<&'c Announcement>,
    /// What changes in a saga.
    pub saga: Option<&'c ChangedSaga>,
}

impl<'c> From<&'c Next> for RecordChange<'c> {
    fn from(next: &'c Next) -> RecordChange<'c> {
        let Next { record, lifetime, announcement } = next;
        let announcement = announcement.as_ref();
        RecordChange { next: record, lifetime: *lifetime, announcement, saga: None }
    }
}

impl Gate {
    /// Writes a record and the events of that change, in one step. `event_context` returns the
    /// content of the log's event that is not in the record; a write may call it more than once.
    /// Records of shadow routes have no events.
    ///
    /// # Errors
    /// The store failed, or the record has a publication that no configured key opens: the change
    /// would lose its events.
    pub(crate) async fn write(
        &self,
        slot: &Slot,
        expected: Option<Version>,
        change: RecordChange<'_>,
        policy: &Policy,
        event_context: impl Fn() -> Context + Send + Sync,
    ) -> Result<Swap, StoreError> {
        let RecordChange { next, lifetime, .. } = change;
        if matches!(next.publication, Some(Publication::Sealed(_))) {
            return Err(CodecError::Sealed.into());
        }
        let event = || {
            let mut context = event_context();
            add_response_fields(&mut context, next, policy);
            context.saga = change.saga.cloned().map(Box::new);
            Event::of(next, lifetime, context).encode()
        };
        let has_event = self.event_log_enabled() && slot.space == Space::Enforced;
        let log: EventSource<'_> = if has_event { &event } else { Events::NONE.log };
        let outbox = match slot.space {
            Space::Enforced => change.outbox_events(slot),
            Space::Shadow => Vec::new(),
        };
        let events = Events { log, outbox: &outbox };
        self.store.records.write(slot, expected, next, lifetime, events).await
    }
}

impl RecordChange<'_> {
    /// Returns the events of the change, one for each sink of each event.
    fn outbox_events(&self, slot: &Slot) -> Vec<OutboxEvent> {
        let RecordChange { next, announcement, .. } = *self;
        let announcements = announcement.map(|announcement| &announcement.announcements);
        let announcements =
            announcements.or_else(|| self.saga.and_then(|_| announcements_of_saga(next)));
        let Some(announcements) = announcements else { return Vec::new() };
        let of_record = announcement.map(|announcement| announcement.state);
        let withdrawn =
            (of_record == Some(AnnouncedState::SagaFailed)).then(ChangedSaga::withdrawn);
        let of_saga = self.saga.into_iter().flat_map(ChangedSaga::announced);
        let states: Vec<AnnouncedState> = of_saga.chain(of_record).collect();
        let reply = match &next.state {
            State::Completed { reply, .. } => Some(&**reply),
            _ => None,
        };
        let change = AnnouncedChange {
            slot,
            record: next,
            announcements,
            states: &states,
            status: announcement.and_then(|announced| announced.status).map(|code| code.as_u16()),
            settled_by: announcement
                .and_then(|announced| announced.settled_by)
                .map(SettledBy::name),
            reply,
            saga: self.saga.or(withdrawn.as_ref()),
        };
        let (opened_unix_ms, version) = (next.opened_unix_ms, next.version.0);
        let events = (0..).zip(events_of(change)).flat_map(|(number, event)| {
            let order = EventOrder { opened_unix_ms, version, number };
            let content = event.content;
            event.to.into_iter().map(move |sink| OutboxEvent {
                sink,
                order,
                content: EventContent::Plain(content.clone()),
            })
        });
        events.collect()
    }
}

/// Adds the route's chosen fields of a result, from the upstream, a probe or an operator. They are
/// taken from the stored reply, so redacted members are not among them.
fn add_response_fields(context: &mut Context, next: &Record, policy: &Policy) {
    let State::Completed { reply, .. } = &next.state else { return };
    let ReplyBody::Whole(body) = &reply.body else { return };
    if any_chosen(&policy.fields, Side::Response)
        && let Ok(document) = Document::parse(body)
    {
        context.fields.extend(chosen(&policy.fields, Side::Response, &document));
    }
}
