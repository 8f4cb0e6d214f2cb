//! The delivery of events: the sinks and their health, and the dead letters, with the decisions
//! about them.
//!
//! - `list`: the page with both; `sinks` and `dead_letters`: its tables; `look`: its data; `query`:
//!   its address
//! - `dead_letter`: the page of one dead letter
//! - `changes`: the forms; `requeue_all`: the form that needs a confirmation; `form_fields`: the
//!   fields of both

mod changes;
mod dead_letter;
mod dead_letters;
mod form_fields;
mod list;
mod look;
mod query;
mod requeue_all;
mod sinks;

pub(super) use changes::{change_dead_letter, change_sink};
pub(super) use dead_letter::show as show_dead_letter;
pub(super) use dead_letters::{path as dead_letter_path, result};
pub(super) use list::show;
pub(super) use requeue_all::{ask, carry_out as requeue_all};
