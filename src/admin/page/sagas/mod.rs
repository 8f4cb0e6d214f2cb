//! Sagas: the list of those that have not ended, and the page of one saga.
//!
//! - `list`: the list; `query`: its address
//! - `one`: the page of one saga, and its forms; `decisions`: the forms
//! - `graph`: the graph of the steps; `graph_layout`: the places of its steps and edges
//! - `steps`: the table of the steps; `timeline`: the timeline; `words`: the words of states
//! - `stuck`: the stuck sagas among what waits for a decision

mod decisions;
mod graph;
mod graph_layout;
mod list;
mod one;
mod query;
mod steps;
mod stuck;
mod timeline;
mod words;

pub(super) use list::show;
pub(super) use one::{decide, path, show as show_one};
pub(super) use stuck::{StuckSagas, summary as stuck_summary};
