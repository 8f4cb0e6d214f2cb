//! The machine: the rules of a saga, as pure and total functions.
//!
//! [`decide`] returns what to do now, and [`apply`] changes the state after something happened.
//! Neither has a clock, and neither reads or writes anything.
//!
//! - **Log before effect.** If a change is [`StateChange::Write`], the state is written before
//!   anything of [`SagaWork`] is carried out. So an operation never begins without its log entry.
//! - **Unsettled is not failed.** While an action is begun and not settled, no compensation begins.
//!   While an outcome is uncertain, or after a definite no, no action begins.
//! - **Bars.** Going back, each action that was begun and not executed is barred: a record that
//!   admits no claim is written over its slot. Otherwise a gateway that slept between log and claim
//!   could execute the action after the undo. The same holds for an operation that is given up,
//!   before it counts as refused or done by hand.
//! - **Keys.** An operation has one key ([`StepKey`](super::step_key::StepKey)) for all attempts.
//!   Only a retry of a definite no raises the generation.
//! - **Life.** An operation without a record, which began longer ago than a record lives, is lost:
//!   it may have been executed, so it neither begins again nor is barred by itself.
//!
//! A caller skips work that it already does: a call stays in [`SagaWork`] while it is under way.

mod apply;
mod change;
mod decide;
mod operator;
mod order;
mod run;
mod settle;
mod turn;

pub use apply::apply;
pub use change::{Happening, HappeningDenied, StateChange};
pub use decide::{SagaFailure, SagaTodo, SagaWork, decide, failure};
pub use order::StepSet;
pub use run::is_evidence_due;
