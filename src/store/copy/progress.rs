//! Progress and result of a copy.

/// Steps of a copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CopyStep {
    /// Copies records and tombstones.
    Items,
    /// Copies entries of the event log.
    Events,
    /// Copies waiting events and dead letters.
    Outbox,
    /// Compares records and tombstones.
    CheckItems,
    /// Compares entries of the event log.
    CheckEvents,
    /// Compares waiting events and dead letters.
    CheckOutbox,
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
    /// Number of events compared that wait for their sinks.
    pub waiting: u64,
    /// Number of dead letters compared.
    pub dead_letters: u64,
    /// Whether the copy continued an interrupted one.
    pub resumed: bool,
    /// Whether the links of the event log were computed anew, because the target has other
    /// partitions.
    pub relinked: bool,
    /// Number of broken links in the original log. Counted only if links are computed anew, because
    /// the new links hide the breaks.
    pub breaks: usize,
}
