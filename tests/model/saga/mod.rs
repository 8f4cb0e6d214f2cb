//! A model of sagas: from the client's request to the end, with two gateways.
//!
//! # What is modelled
//!
//! One client's key and up to two sagas under it, one after the other: the client repeats its
//! request after the first saga's record has ended. The saga's record is in the store, changed by
//! compare-and-swap. A gateway owns it, and another one takes it over: after the owner's death, or
//! while the owner only sleeps and later continues with what it remembers. A gateway writes the log
//! and then acts: a claim, a bar or a look at the slot of an operation. It can die or sleep between
//! any two of these. The upstream executes an operation, refuses it, does nothing, or leaves it
//! uncertain: executed, not executed, or executed late. An operator or a probe settles uncertain
//! operations truthfully. An operator cancels, retries and skips, and the timeout can come at any
//! time.
//!
//! The rules are the product's: [`decide`](onceward::saga::machine::decide) and
//! [`apply`](onceward::saga::machine::apply), called with real plans and logs (`rules.rs`).
//! `protocol.rs` is a copy of the order in which a gateway uses them. The gate is abstract here: a
//! slot admits one attempt at a time, as the other model shows. Pauses have no length: a gateway
//! may be slow at any step, and no rule needs it to be fast.
//!
//! # What is checked
//!
//! See `properties.rs`. `flaws.rs` removes one rule at a time, and the checker finds the violation.
//!
//! # Bounds
//!
//! `holds.rs` has them. Left out: a gateway that sleeps for the whole life of a record between the
//! decision and the claim; conditions and templates, which are a definite no or skip a step; the
//! configuration of gateways; a store that loses records.

mod explore;
mod flaws;
mod holds;
mod properties;
mod protocol;
mod rules;
mod state;
