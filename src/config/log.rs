//! `[log]`: whether changes are written to the event log, and how long the log keeps them.

use std::time::Duration;

use super::read::Table;

/// Reads `[log]`. The inner value is the time for which entries are kept. It is `None` if the log
/// is off.
pub(super) fn read(table: Table<'_>) -> Option<Option<Duration>> {
    let enabled = table.get("enabled").and_then(|value| value.boolean());
    let keep = table.get("keep").and_then(|value| value.duration());
    table.finish();
    let keep = keep?;
    Some(enabled?.then_some(keep))
}
