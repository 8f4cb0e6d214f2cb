//! A store in a file of this machine, for one process at a time. A write is on the disk before it
//! is acknowledged.
//!
//! Danger: a lost disk loses the store. A full disk must not prevent results from being stored, so
//! new claims are refused while there is still space for results.

mod copy;
mod dead_letter_tables;
mod disk;
mod error;
mod event_log;
mod event_tables;
mod jobs;
mod layout;
mod options;
mod outbox;
mod outbox_change;
mod outbox_contents;
mod outbox_copy;
mod outbox_counts;
mod outbox_keys;
mod outbox_tables;
mod shared_file;
mod store;
mod stored_event;
mod tables;
mod writer;

pub use self::copy::CopiedFile;
pub use self::error::{OpenError, Trouble, Unusable};
pub use self::options::{BootClock, EmbeddedOptions};
pub use self::store::Embedded;

#[cfg(test)]
mod tests;
