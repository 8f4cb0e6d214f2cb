//! Progress and result of a copy.

/// Steps of a copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CopyStep {
    /// Copies records and tombstones.
    Items,
    /// Copies entries of the event log.
    Events,
    /// Compares records and tombstones.
    CheckItems,
    /// Compares entries of the event log.
    CheckEvents,
}

/// Called with the current step, and the number of items or entries done.
pub type CopyReport<'a> = &'a (dyn Fn(CopyStep, u64) + Send + Sync);

/// Result of a copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Copied {
    /// Number of records and tombstones compared.
    pub items: u64,
    /// Number of entries of the event log compared.
    pub events: u64,
    /// Whether the copy continued an interrupted one.
    pub resumed: bool,
    /// Whether the links of the event log were computed anew, because the target has other
    /// partitions.
    pub relinked: bool,
    /// Number of broken links in the original log. Counted only if links are computed anew, because
    /// the new links hide the breaks.
    pub breaks: usize,
}
