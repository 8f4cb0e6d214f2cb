//! The read model: data from the event log, laid out so that people can find operations by route,
//! state, scope or chosen fields.
//!
//! The read model is an SQLite file. All its data comes from the event log, so the file may be
//! deleted at any time: then it is built anew.
//!
//! Danger: the read model is behind the store, by the time that [`Freshness`] reports. So no
//! decision uses the read model, and no request of a client reads it or waits for it.

mod apply;
mod counts;
mod error;
mod fold;
mod freshness;
mod model;
mod observations;
mod operation;
mod overview;
mod projector;
mod report;
mod schema;
mod search;
mod timeline;
mod upkeep;
mod values;

pub use apply::Applied;
pub use counts::{LATENCY_BOUNDS_MS, Latency, Tally};
pub use error::QueryError;
pub use freshness::{Freshness, ModelGeneration, ModelProgress};
pub use model::ReadModel;
pub use operation::{Operation, OperationState, UnknownState};
pub use overview::{HourRow, MinuteRow, Overview};
pub use projector::{Projector, UnixClock};
pub use report::{ReportRow, ShadowReport};
pub use search::{Filter, OperationPage, PAGE_MAX};
pub use timeline::{Moment, MomentDetail, Timeline};

#[cfg(test)]
mod tests;
