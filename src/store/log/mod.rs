//! The event log: the events of record changes, each appended in the same atomic step as its
//! record.
//!
//! The log is divided into partitions. All entries of an operation are in the same partition, in
//! the order of their writes. Each entry has a link: a digest over the link before it and a digest
//! of the entry. So [`verify`] finds an entry that was changed, removed or inserted. It also finds
//! an end that was cut off, because the last link is stored beside the log.
//!
//! Danger: links are not signatures. Whoever may write to the store can compute all of them anew.
//! Only a copy of a link outside the store can reveal such a change.

mod entry;
mod event_log;
pub mod reader;
mod verify;

#[cfg(feature = "redis")]
pub(super) use entry::digest;
pub use entry::{
    DIGEST_BYTES, Ends, EntryId, InvalidPosition, LINK_BYTES, Link, LogEntry, MEMBER_BYTES, Mark,
    OBSERVED_BYTES_MAX, OBSERVED_ENTRY_BYTES, Position, Trimmed, member, slot_of_member,
};
pub use event_log::EventLog;
pub use verify::{ChainBreak, ChainCursor, ChainFault, Verification, verify};
