//! Copies a store that no gateway uses into another one: for back-ups, and for moves between a file
//! and Redis.
//!
//! A copy has the records and tombstones of all routes, the index of unsettled records, the event
//! log, the outbox and the notes. The target is closed during the copy: no gateway can claim there
//! before everything is copied and compared.
//!
//! Danger: after a copy, a gateway on the source and a gateway on the target share no new records.
//! So each of them executes duplicates of the other's requests. After a move, no gateway may use
//! the old store any more.

mod endpoint;
mod merge;
mod outbox;
mod outbox_item;
mod progress;
mod run;
mod sum;

pub use endpoint::{
    CopyError, CopyProgress, CopySource, CopyStart, CopyTarget, Item, ItemKey, Items,
};
pub use outbox_item::{OutboxItem, OutboxItems};
pub use progress::{Copied, CopyReport, CopyStep};
pub use run::copy;

#[cfg(test)]
#[cfg(feature = "embedded")]
mod tests;
