//! Wrong variants of the gate's dependencies. A simulation that misses them would miss any error.

/// The flaw.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flaw {
    /// The store writes over any version.
    IgnoresVersion,
    /// The store drops in-flight records when their lease ends.
    LeaseEndIsAbsent,
    /// The store drops one result in four after a few seconds.
    ForgetsResults,
    /// The store drops released markers at once.
    ForgetsMarkers,
    /// The store reports that nothing was written where it doesn't know.
    ReportsNotApplied,
    /// The send rule's clock stops with its process.
    ClockStops,
    /// Operations are released and run again without the required rest.
    NoRest,
    /// The upstream begins later than operations rest. This is not the gateway's fault, and the
    /// documentation mentions it.
    UpstreamActsLater,
    /// All callers are the same.
    OneCallerForAll,
    /// A gateway keeps claims without an answer, in the place of running ones, to write them again.
    HoldsUnanswered,
    /// After a loss, a released marker in the slot counts as a later state of the lost operation.
    MarkersPrevail,
}

impl Flaw {
    pub const ALL: [Flaw; 11] = [
        Flaw::IgnoresVersion,
        Flaw::LeaseEndIsAbsent,
        Flaw::ForgetsResults,
        Flaw::ForgetsMarkers,
        Flaw::ReportsNotApplied,
        Flaw::ClockStops,
        Flaw::NoRest,
        Flaw::UpstreamActsLater,
        Flaw::OneCallerForAll,
        Flaw::HoldsUnanswered,
        Flaw::MarkersPrevail,
    ];

    /// Parses the name that `--flaw` takes.
    pub fn named(name: &str) -> Option<Flaw> {
        Flaw::ALL.into_iter().find(|flaw| format!("{flaw:?}") == name)
    }
}
