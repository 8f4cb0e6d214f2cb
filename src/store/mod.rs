//! The store: where gateways keep the records of operations, the event log, and notes about
//! identities.
//!
//! A [`Store`] has three parts, with one trait each: [`Records`], [`EventLog`] and
//! [`IdentityNotes`].
//!
//! - [`open`]: builds a store from its settings, and states its capabilities
//! - [`memory`], [`embedded`], [`redis`]: stores; each implements all three traits
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
#[cfg(feature = "embedded")]
pub mod embedded;
mod error;
mod identities;
#[cfg(any(feature = "embedded", feature = "redis"))]
mod large;
pub mod log;
pub mod memory;
#[cfg(feature = "gateway")]
pub mod open;
pub mod pending;
mod records;
#[cfg(feature = "redis")]
pub mod redis;
mod remark;
pub mod sealed;
#[cfg(any(test, feature = "test-suite"))]
pub mod suite;
mod watch;

pub use error::{ListError, StoreError};
pub use identities::{IdentityNotes, Note};
pub use log::EventLog;
#[cfg(feature = "redis")]
pub(crate) use records::is_listed;
pub use records::{EventSource, Listing, NO_EVENT, Page, Records, Swap};
pub use remark::{Grade, Remark};
pub use watch::{Hub, Watch};

/// A store: one object for each of its three parts. Cheap to clone.
#[derive(Clone)]
pub struct Store {
    /// The records of operations.
    pub records: Arc<dyn Records>,
    /// The event log: the changes of the records, in order.
    pub log: Arc<dyn EventLog>,
    /// The notes that the gateways of the store have agreed on.
    pub identities: Arc<dyn IdentityNotes>,
}

impl<T: Records + EventLog + IdentityNotes> From<Arc<T>> for Store {
    fn from(store: Arc<T>) -> Store {
        Store { records: store.clone(), log: store.clone(), identities: store }
    }
}
