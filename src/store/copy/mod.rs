//! Copies a store that no gateway uses into another one: for back-ups, and for moves between a file
//! and Redis.
//!
//! A copy has the records and tombstones of all routes, the index of unsettled records, the event
//! log and the notes. The target is closed meanwhile: no gateway can claim there before everything
//! was copied and compared.
//!
//! Danger: after a copy, two gateways that use one store each execute what the other has executed.
//! After a move, the old store must not be used any more.

mod endpoint;
mod merge;
mod progress;
mod run;
mod sum;

pub use endpoint::{
    CopyError, CopyProgress, CopySource, CopyStart, CopyTarget, Item, ItemKey, Items,
};
pub use progress::{Copied, CopyReport, CopyStep};
pub use run::copy;

#[cfg(test)]
#[cfg(feature = "embedded")]
mod tests;
