//! Background work of the gate: overdue leases, uncertain operations, the event log and
//! observations.

pub(super) mod event_log;
pub(super) mod observations;
mod reconcile;
mod sweep;

pub use reconcile::reconcile;
pub use sweep::sweep;
