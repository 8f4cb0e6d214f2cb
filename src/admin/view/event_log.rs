//! Entries of the event log, as JSON.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::read_model::MomentView;
use crate::clock::rfc3339;
use crate::store::log::LogEntry;

/// The kind of an entry that can't be parsed.
const UNREADABLE: &str = "unreadable";

/// A part of the event log.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct LoggedView {
    /// The changes. Changes of one operation are in their order. Changes of different operations
    /// are sorted by time only within one page.
    pub events: Vec<EventView>,
    /// The value of `after` in the next request.
    pub cursor: String,
    /// Whether the log has already deleted entries after the cursor or the requested time. Such
    /// entries are missing here.
    #[serde(default)]
    pub trimmed: bool,
}

/// A change of an operation's record, from the event log.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct EventView {
    /// The operation's reference.
    #[serde(default)]
    pub operation: String,
    /// The entry: its partition, and its id in the partition.
    #[serde(default)]
    pub entry: String,
    /// The route.
    #[serde(default)]
    pub route: String,
    /// The beginning of the scope's hash.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub scope: Option<String>,
    /// The event. Its kind is `unreadable` if something other than a gateway wrote the entry.
    #[serde(flatten)]
    pub moment: MomentView,
}

impl From<&LogEntry> for EventView {
    fn from(entry: &LogEntry) -> EventView {
        let mut view: EventView = serde_json::from_slice(&entry.event).unwrap_or_else(|_| {
            let moment = MomentView { kind: UNREADABLE.to_owned(), ..MomentView::default() };
            EventView { moment, ..EventView::default() }
        });
        // The position in the log determines the operation, even if the event names another one.
        view.operation = entry.slot.to_string();
        view.entry = format!("{}:{}", entry.partition, entry.id);
        view.moment.at = rfc3339(entry.id.ms);
        view
    }
}

/// A verified part of the event log.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct VerifiedView {
    /// Entries that were verified.
    pub entries: usize,
    /// The entries at which the verification failed.
    pub breaks: Vec<BreakView>,
    /// The cursor of the next part; absent at the end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cursor: Option<String>,
}

/// An entry of the event log at which the verification failed.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct BreakView {
    /// The partition.
    pub partition: u16,
    /// The entry's id.
    pub entry: String,
    /// What is wrong with the entry.
    pub fault: String,
}
