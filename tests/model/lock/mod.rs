//! A model of the lock of a resource: writes that take it, look, and are sent.
//!
//! # What is modelled
//!
//! One resource with a counter for its version, and two operations that write it. Each has a first
//! attempt, and duplicates under its key. An attempt claims its operation, takes the lock, looks at
//! the current version, marks the lock as sent, sends, and settles. Any of these can be slow for
//! any time, which covers gateways that are stopped or die. A write to the store can get no answer:
//! it is carried out later or never. The upstream executes a write at once, late or never, or
//! declines it. Sweepers look at operations with an ended lease, and an operator resolves, releases
//! or retries truthfully. A lock ends with its time if all gateways are down for long.
//!
//! The rules are the product's own, called with real records (`rules.rs`): `lock_holder`,
//! `lock_admission`, `taken_lock`, `sent_lock`, `unsent_proof`, `release_unsent`, and `admit`,
//! `claim`, `settle`, `expire` and `decide`. `protocol.rs` is a copy of the order in which a
//! gateway uses them.
//!
//! Time is abstract: a lease ends at any time, and then its attempt may not send any more. An
//! operation that has rested for `uncertain_after` has no request at the upstream that could still
//! be executed. These are the assumptions of the product, and a write that is executed later is
//! excepted from its promise.
//!
//! # What is checked
//!
//! See `properties.rs`. `flaws.rs` removes one rule at a time, and the checker finds the violation.
//!
//! # Bounds
//!
//! `holds.rs` has them: about 2.5 million states, less than a minute on two cores. Left out: claims
//! without an answer, which the model of operations has; the end of an operation's record; a store
//! that loses records; more than one resource, because locks do not depend on each other.

mod explore;
mod flaws;
mod holds;
mod properties;
mod protocol;
mod rules;
mod simplify;
mod state;
