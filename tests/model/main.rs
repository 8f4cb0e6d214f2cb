//! The protocol, model-checked: every order of steps within the bounds is explored, not a sample of them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod bridge;
mod explore;
mod flaws;
mod holds;
mod properties;
mod protocol;
mod rules;
mod state;
