//! Sagas: several operations that are completed or undone as a whole.
//!
//! A saga's request begins a saga record. The record contains the plan, the request and the log,
//! sealed. Each step's action and each compensation is an operation of its own in the gate, so the
//! upstream executes it at most once.
//!
//! - [`plan`]: the steps of a saga, as the configuration has them and as the saga's record keeps
//!   them
//! - [`kept`]: the parts of the saga's request and of its steps' answers that templates use
//! - [`log`]: the state of a saga, as its record keeps it beside the plan
//! - [`document`]: the content of the record: plan, request and log
//! - [`machine`]: the rules of the next step, as pure functions
//! - [`decision`]: operators' decisions about sagas that run
//! - [`references`]: the operations of a saga's steps, for operators
//! - [`outcome`]: what the outcome of a step's operation means
//! - [`status`]: the words in which clients and operators read a saga
//! - [`step_key`]: the key of a step's operation
//! - [`render`]: the requests, conditions and answers of a plan, made from the kept documents
//! - `changes`: what a write of the record changes, for the event log and for sinks
//! - `trace`: the spans of a saga and its steps
//! - `report`: the state of a saga, as its client reads it
//! - [`trial`]: renders a whole plan against a sample
//! - [`runner`]: runs the sagas of a gateway, and takes over those of gateways that are gone
//!
//! Sources: Garcia-Molina and Salem, Sagas (SIGMOD 1987): backward and forward recovery, pivot.

mod changes;
mod count;
pub mod decision;
pub mod document;
mod ending;
pub mod gateway;
pub mod kept;
pub mod log;
pub mod machine;
pub mod outcome;
pub mod plan;
pub mod references;
pub mod render;
mod report;
pub mod runner;
mod running;
mod shared;
pub mod status;
mod step_call;
pub mod step_key;
pub mod step_route;
mod store_time;
mod trace;
pub mod trial;
mod unreadable;

#[cfg(test)]
mod tests;
