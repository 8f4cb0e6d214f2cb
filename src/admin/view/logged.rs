//! Entries of the event log, as JSON.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::MomentView;
use crate::clock::rfc3339;
use crate::store::log::LogEntry;

/// What an entry is told to be that is no event.
const UNREADABLE: &str = "unreadable";

/// A piece of the event log.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct LoggedView {
    /// The changes: those of one operation in their order, those of different ones by time, as far as they were read together.
    pub events: Vec<EventView>,
    /// Where to go on: `after` of the next request.
    pub cursor: String,
    /// Whether entries that should have been told here, behind the cursor or the time that was asked for, were trimmed: nobody
    /// can tell them any more.
    #[serde(default)]
    pub trimmed: bool,
}

/// A change of an operation's record, as the event log tells it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct EventView {
    /// The operation's reference.
    #[serde(default)]
    pub operation: String,
    /// The entry: its partition and its id there.
    #[serde(default)]
    pub entry: String,
    /// The route.
    #[serde(default)]
    pub route: String,
    /// Whose it is: the beginning of the scope's hash.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub scope: Option<String>,
    /// What happened. The kind is `unreadable` where somebody else wrote what is no event.
    #[serde(flatten)]
    pub moment: MomentView,
}

impl From<&LogEntry> for EventView {
    fn from(entry: &LogEntry) -> EventView {
        let mut view: EventView = serde_json::from_slice(&entry.event).unwrap_or_else(|_| {
            let moment = MomentView { kind: UNREADABLE.to_owned(), ..MomentView::default() };
            EventView { moment, ..EventView::default() }
        });
        // Whatever the event says: these are the log's to tell.
        view.operation = entry.slot.to_string();
        view.entry = format!("{}:{}", entry.partition, entry.id);
        view.moment.at = rfc3339(entry.id.ms);
        view
    }
}
