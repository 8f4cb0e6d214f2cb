//! Onceward forwards every payment request once and replays its answer to every duplicate.
//!
//! The rooms, in reading order. A [`key`] names an operation; a [`record`] is what is known about it; the [`engine`]
//! holds the rules, pure; a [`store`] keeps records; the [`config`] says what is protected, and how.

pub mod clock;
pub mod config;
pub mod engine;
pub mod key;
pub mod record;
pub mod store;
