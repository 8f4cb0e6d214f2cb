//! A model of the outbox: from the change of an operation to the delivery or the burial of its
//! events.
//!
//! # What is modelled
//!
//! One operation with up to two changes, each with an event for one sink. A gateway writes the
//! changes. Up to two relays attend, take and hand over the events' partition, attempt, retry and
//! bury. The receiver takes an event, refuses it, or takes it and its answer is lost. An operator
//! requeues or discards dead letters. Relays die or stop in order. The store loses the changes that
//! no replica has yet, and the gateway writes them again if it lives.
//!
//! The store is the product's: `store.rs` carries out every command on
//! [`onceward::store::memory::Memory`], and remembers its results. The events are those of
//! [`onceward::event::events_of`]. The rules of relays are the product's, too (`rules.rs`): who
//! gets the partition ([`onceward::outbox::shares`]), when an attempt may begin, whether it is
//! counted, and what follows it ([`onceward::outbox::rules`]). `protocol.rs` is a copy of the order
//! in which a relay uses them, because the product's own runs in tasks; the parts that it omits are
//! not checked. Its time is relative, as in the other model: a lease has three ticks, a pause and a
//! timeout one each, the age of a burial two.
//!
//! # What is checked
//!
//! See `properties.rs`. `flaws.rs` removes one rule at a time, and the checker finds the violation.
//! An attempt counts as under way only while its relay has a lease: a receiver may get an event
//! from a stopped relay and from its successor at the same time.
//!
//! # Bounds
//!
//! `holds.rs` has them: about a million states together. Left out: several sinks, operations and
//! partitions, which share nothing but the relay; the pause and the removal of sinks; sealed
//! events; a loss while two relays attend; store calls of relays without an answer.

mod explore;
mod flaws;
mod holds;
mod properties;
mod protocol;
mod rules;
mod state;
mod store;
