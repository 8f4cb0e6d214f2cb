//! The store: where gateways keep the records of operations, the event log, and notes about
//! identities.
//!
//! A [`Store`] has six parts, with one trait each: [`Records`], [`EventLog`], [`Outbox`],
//! [`DeadLetters`], [`OutboxContents`] and [`IdentityNotes`].
//!
//! - [`open`]: builds a store from its settings, and states its capabilities
//! - [`memory`], [`embedded`], [`redis`]: stores; each implements all six traits
//! - [`sealed`], [`cached`], [`pending`]: wrappers; each replaces the parts that it changes
//! - [`log`]: entries of the event log, the chain that links them, and the reader of a log
//! - [`copy`]: copies one store into another
//! - `suite`: the tests that every store must pass, and a recipe for a new store (feature
//!   `test-suite`)
//!
//! Every change of a record goes through [`Records::write`], except the renewal of a lease. It
//! compares the version of the stored record, then writes the new record and its event in one
//! atomic step. The rules about the states of a record are in `engine`.

use std::sync::Arc;

pub mod cache;
pub mod cached;
pub mod copy;
pub mod dead_letters;
#[cfg(feature = "embedded")]
pub mod embedded;
mod error;
mod identities;
#[cfg(any(feature = "embedded", feature = "redis"))]
mod large;
mod local_relays;
pub mod log;
pub mod memory;
#[cfg(feature = "gateway")]
pub mod open;
pub mod outbox;
pub mod outbox_contents;
pub mod outbox_key_check;
pub mod pending;
mod pending_outbox;
mod records;
#[cfg(feature = "redis")]
pub mod redis;
mod remark;
pub mod resealing;
pub mod sealed;
mod sealed_outbox;
mod sealing;
#[cfg(any(test, feature = "test-suite"))]
pub mod suite;
mod watch;

pub use dead_letters::DeadLetters;
pub use error::{ListError, StoreError};
pub use identities::{IdentityNotes, Note};
pub use log::EventLog;
pub use outbox::{Outbox, OutboxEvent};
pub use outbox_contents::OutboxContents;
#[cfg(feature = "redis")]
pub(crate) use records::is_listed;
pub use records::{DueSagas, EventSource, Events, Listing, Page, Records, Swap};
pub use remark::{Grade, Remark};
pub use watch::{Hub, Watch};

/// A store: one object for each of its parts. Cheap to clone.
#[derive(Clone)]
pub struct Store {
    /// The records of operations.
    pub records: Arc<dyn Records>,
    /// The event log: the changes of the records, in order.
    pub log: Arc<dyn EventLog>,
    /// The events that wait for their sinks.
    pub outbox: Arc<dyn Outbox>,
    /// The events that their sinks did not take.
    pub dead_letters: Arc<dyn DeadLetters>,
    /// The contents of both, as they are stored: a wrapper that seals does not change this part.
    pub contents: Arc<dyn OutboxContents>,
    /// The notes that the gateways of the store have agreed on.
    pub identities: Arc<dyn IdentityNotes>,
}

impl<T> From<Arc<T>> for Store
where
    T: Records + EventLog + Outbox + DeadLetters + OutboxContents + IdentityNotes,
{
    fn from(store: Arc<T>) -> Store {
        Store {
            records: store.clone(),
            log: store.clone(),
            outbox: store.clone(),
            dead_letters: store.clone(),
            contents: store.clone(),
            identities: store,
        }
    }
}
