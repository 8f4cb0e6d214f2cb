//! `[read_model]`: the searchable copy of the event log, its file and its projector.

use std::path::PathBuf;

use super::read::Table;
use super::store::StoreUrl;
use super::texts::file_name;

/// Settings of the read model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReadModelConfig {
    /// The file. `None`: a file in the folder of an embedded store, or else in the service
    /// manager's state folder. Without either folder, the read model is in memory.
    pub path: Option<PathBuf>,
    /// Whether the gateway updates the read model. Otherwise `onceward projector` does.
    pub project: bool,
}

/// Reads `[read_model]`. The inner value is `None` if the read model is off.
pub(super) fn read(
    table: Table<'_>,
    store: Option<&StoreUrl>,
    log: Option<bool>,
) -> Option<Option<ReadModelConfig>> {
    let enabled = table.get("enabled").and_then(|value| value.boolean());
    let path = table
        .get("path")
        .map_or(Some(None), |value| value.parsed("a file's name", file_name).map(Some));
    let project = table.get("project").and_then(|value| value.boolean());
    if project == Some(false) {
        let span = table.span_of("project");
        match store {
            Some(StoreUrl::Memory | StoreUrl::File(_)) => {
                table.report.note(
                    &span,
                    "no other process can read this store: set it to true, or use a store in Redis",
                );
            }
            _ if path == Some(None) => {
                table.report.note(
                    &span,
                    "another process updates the read model: set path to the file that both \
                     processes open",
                );
            }
            _ => {}
        }
    }
    if log == Some(false) && path.as_ref().is_some_and(Option::is_some) {
        table
            .report
            .warn(&table.path_of("path"), "not used: the event log is off ([log] enabled = true)");
    }
    table.finish();
    let config = ReadModelConfig { path: path?, project: project? };
    Some(enabled?.then_some(config))
}
