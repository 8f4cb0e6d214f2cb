//! `[log]`: whether changes are written to the event log, and how long it keeps them.

use std::time::Duration;

use super::read::Table;

/// Reads `[log]`. The inner value is how long entries are kept; `None`: the log is off.
pub(super) fn read(table: Table<'_>) -> Option<Option<Duration>> {
    let enabled = table.get("enabled").and_then(|value| value.boolean());
    let keep = table.get("keep").and_then(|value| value.duration());
    table.finish();
    let keep = keep?;
    Some(enabled?.then_some(keep))
}
