//! Tests of the rules of sagas.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod actions;
mod back;
mod changes;
mod log;
mod operators;
mod outcomes;
mod random;
mod story;
mod timeouts;
