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
    /// The store drops the events of one change in four.
    DropsEvents,
    /// The store writes the events of a change that it refuses.
    WritesEventsAlone,
    /// The store drops an event in the place of its burial.
    BuriesNothing,
    /// The store forgets a dead letter that is requeued.
    RequeueForgets,
    /// The store returns the last event of an operation in the place of the first.
    LatestFirst,
    /// The store names to each relay only itself, and lets it own everything.
    EachRelayAlone,
    /// The store makes the changes of a relay that lost its partition.
    IgnoresFence,
    /// The store makes the changes of an earlier round of an event.
    IgnoresRound,
}

impl Flaw {
    pub const ALL: [Flaw; 19] = [
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
        Flaw::DropsEvents,
        Flaw::WritesEventsAlone,
        Flaw::BuriesNothing,
        Flaw::RequeueForgets,
        Flaw::LatestFirst,
        Flaw::EachRelayAlone,
        Flaw::IgnoresFence,
        Flaw::IgnoresRound,
    ];

    /// Whether it shows only where there are sinks.
    pub fn needs_sinks(self) -> bool {
        matches!(
            self,
            Flaw::DropsEvents
                | Flaw::WritesEventsAlone
                | Flaw::BuriesNothing
                | Flaw::RequeueForgets
                | Flaw::LatestFirst
                | Flaw::EachRelayAlone
                | Flaw::IgnoresFence
                | Flaw::IgnoresRound
        )
    }

    /// Parses the name that `--flaw` takes.
    pub fn named(name: &str) -> Option<Flaw> {
        Flaw::ALL.into_iter().find(|flaw| format!("{flaw:?}") == name)
    }
}
