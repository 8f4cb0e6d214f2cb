//! The JSON of the admin API. It never contains a client's key, header fields or body, except for
//! the members that a rule of events chooses: dead letters show these to the role `operate`.

mod dead_letter;
mod event_log;
mod log_level;
mod lookup;
mod operation;
mod outbox;
mod read_model;
mod report;
mod saga;
mod saga_change;
mod sink;

pub(super) use dead_letter::EventTitle;
pub use dead_letter::{
    DeadLetterAttemptsView, DeadLetterListView, DeadLetterView, DiscardedView, ReasonRequest,
    RequeueOneRequest, RequeueRequest, RequeuedView,
};
pub use event_log::{BreakView, EventView, LoggedView, VerifiedView};
pub use log_level::LogLevelView;
pub use lookup::{LookupRequest, ScopeRequest, ScopeView};
pub use operation::{DecisionRequest, OperationListView, OperationView, ResolveRequest};
pub use outbox::{ResealRequest, ResealedView};
pub use read_model::{
    DifferenceView, HourView, LatencyView, MinuteView, MomentView, OverviewView, ProjectionView,
    StatisticsView, TallyView, TimelineView,
};
pub use report::{ReportRowView, ReportView};
pub(super) use saga::document_of;
pub use saga::{
    SagaCompensationView, SagaDecisionRequest, SagaDecisionView, SagaListView, SagaStepSummaryView,
    SagaStepView, SagaView, StuckStepView,
};
pub use saga_change::{ChangedStepView, SagaChangeView, SagaFailureView, StoppedStepView};
pub use sink::{DeadLetterCounts, SinkListView, SinkTestView, SinkView};
