//! The telemetry of the process: metrics, logs and traces. Telemetry never contains keys,
//! credentials or bodies.

mod access;
mod answer;
mod breakers;
mod escape;
mod internal_span;
mod line_queue;
#[cfg(feature = "gateway")]
mod logs;
mod metrics;
mod outbox;
mod projection;
mod reloads;
mod resources;
mod sagas;
mod spans;
mod trail;

pub use access::{AccessFormat, AccessLog, AccessLogEnd};
pub use answer::Answer;
pub use breakers::{BreakerMeter, BreakerState};
pub use escape::{escape, escape_block, escape_json};
pub use internal_span::InternalSpan;
pub use line_queue::ExportMetrics;
#[cfg(feature = "gateway")]
pub use logs::{
    FilterError, LogFormat, flush_logs, init as init_logs, log_filter, print_error, set_log_filter,
};
pub use metrics::{CacheMeter, Meter, RouteMeter, StoreCall, Timer};
pub use outbox::{DeliveryResult, OutboxMeter, SinkGauges};
pub use projection::ProjectionMeter;
pub use reloads::{ReloadMeter, VanishedRoutes};
pub use resources::{ResourceMeter, UntaggedReason};
pub use sagas::{CountedSaga, SagaMeter};
pub use spans::{Span, SpanQueue, Tracer, export_request};
pub use trail::{Arrival, EnabledObservers, Observers, Trail, TrailStep, Work};
