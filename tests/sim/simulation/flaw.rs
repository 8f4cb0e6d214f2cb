//! Wrong variants of what the gate relies on. A simulation that finds nothing wrong with them could find nothing at all.

/// What is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flaw {
    /// The store writes whatever version is there.
    IgnoresVersion,
    /// The store drops in-flight records when their lease ends.
    LeaseEndIsAbsent,
    /// The store drops one result in four after a few seconds.
    ForgetsResults,
    /// The store drops released markers at once.
    ForgetsMarkers,
    /// The store says that nothing was written where it doesn't know.
    SaysNotApplied,
    /// The clock that the send rule asks stops with its process.
    ClockStops,
    /// Operations are released and run again without having rested.
    NoRest,
    /// The upstream begins later than operations rest. Not the gateway's fault, and the documents say so.
    UpstreamActsLater,
    /// Everybody is the same caller.
    OneCallerForAll,
    /// A gateway keeps claims without an answer for writing them again, in the place of those that run.
    HoldsUnanswered,
    /// After a loss, a released marker in the slot counts as a later state of the operation that was lost.
    MarkersPrevail,
}

impl Flaw {
    pub const ALL: [Flaw; 11] = [
        Flaw::IgnoresVersion,
        Flaw::LeaseEndIsAbsent,
        Flaw::ForgetsResults,
        Flaw::ForgetsMarkers,
        Flaw::SaysNotApplied,
        Flaw::ClockStops,
        Flaw::NoRest,
        Flaw::UpstreamActsLater,
        Flaw::OneCallerForAll,
        Flaw::HoldsUnanswered,
        Flaw::MarkersPrevail,
    ];

    /// By its name, as `--flaw` takes it.
    pub fn named(name: &str) -> Option<Flaw> {
        Flaw::ALL.into_iter().find(|flaw| format!("{flaw:?}") == name)
    }
}
