//! Model checks of the protocol: within the bounds every order of steps is explored, not a sample.
//!
//! The events of an operation, and their relays, have a model of their own: see `outbox`. So have
//! sagas: see `saga`, and the locks of resources: see `lock`.
//!
//! # What is modelled
//!
//! One key. Up to three requests on two gateways, of one caller or of two. Each request claims,
//! reads back a claim without an answer, gives it up, waits, probes or forwards where the outcome
//! is uncertain, renews its lease, sends in two writes, settles and answers. Sweepers mark expired
//! leases. An operator resolves or releases. A gateway dies. The upstream executes a request,
//! declines it, or does either later from its queue, when no gateway waits any more.
//!
//! The rules are the product's own: `bridge.rs` calls `admit`, `claim`, `settle`, `expire` and
//! `decide` of [`onceward::engine`] with real records. `rules.rs` has the flaws beside them.
//! `protocol.rs` models the gate and `state.rs` the store: these are copies, and the parts that
//! they omit are not checked.
//!
//! Time is a few ticks: a lease has three, `uncertain_after` and the upstream's queue one each, a
//! marker and the slowest store command two. Deadlines and ages are relative, so time has no end.
//! Any process may be slow for any time at any step: that covers stopped processes and slow
//! commands and answers. A command can also get no answer and be carried out later or never, which
//! covers lost commands and lost answers.
//!
//! # What is checked
//!
//! In every state: at most one execution; all answers are equal; an answer that was given is stored
//! and stays stored; no other caller gets an answer; a claim that was never sent does not end
//! uncertain while its gateway lives (`properties.rs`). There is no exception for operators and
//! probes, which release only operations that were not executed. There is no exception for
//! forwarding either, where the upstream executes once for each of its callers. `flaws.rs` removes
//! one rule at a time, and the checker finds the violation.
//!
//! # Bounds
//!
//! `cargo test` explores all of these (about 4 million states, a minute on two cores), each with a
//! crash, an operator's decision, renewals and release statuses. With two store commands without an
//! answer: two requests under hold, probe and forward, and a request and another caller's under
//! hold. Without such commands: three requests of one caller, and two and another caller's, under
//! each of hold, probe and forward.
//!
//! Three requests with one or two such commands need an optimised build, and were not explored to
//! the end:
//!
//! ```text
//! ONCEWARD_MODEL_LATE=1 cargo test --test model --config 'profile.test.package.onceward.opt-level=3' -- --nocapture three
//! ```
//!
//! Left out: more than one decision of operators, one crash or three requests; `retry` by an
//! operator, which differs from a probe's `absent` only in who checks; the end of retention,
//! tombstones, `fail_open`, unreadable records; requests that differ in their fingerprint, which
//! `admit` treats like other callers; re-sending on another connection. A stop between the send
//! rule's check and the write is also left out: no protocol of this kind survives it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod bridge;
mod explore;
mod flaws;
mod holds;
mod lock;
#[cfg(feature = "gateway")]
mod outbox;
mod properties;
mod protocol;
mod rules;
#[cfg(feature = "gateway")]
mod saga;
mod state;
