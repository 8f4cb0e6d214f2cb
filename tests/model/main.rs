//! The protocol, model-checked: within the bounds every order of steps is explored, not a sample of them.
//!
//! # What is modelled
//!
//! One key. Up to three requests on two gateways, of one caller or of two. Each claims, reads back a claim without an
//! answer, gives it up, waits, probes or forwards where the outcome is uncertain, renews its lease, sends in two writes,
//! settles and answers. Sweepers mark ended leases, an operator resolves or releases, a gateway dies, and the upstream
//! executes a request, declines it, or does either later, out of its queue, when nobody listens any more.
//!
//! The rules are the product's own: `admit`, `claim`, `settle`, `expire` and `decide` of [`onceward::engine`] are called
//! with real records (`bridge.rs`); `rules.rs` has the flaws beside them. Around them, `protocol.rs` is a model of the gate
//! and `state.rs` one of the store: those are copies, and what they leave out is not checked.
//!
//! Time is a few ticks: a lease has three, `uncertain_after` and the upstream's queue one each, a marker and the longest
//! way of a store command two. Deadlines and ages are relative, so time has no end. Any process may be slow for any time
//! at any step: that covers processes that are stopped, and slow commands and answers. A command can also get no answer
//! at all and be carried out later or never, which covers lost commands and lost answers.
//!
//! # What is checked
//!
//! In every state: at most one execution; all answers are equal; what was answered is stored and stays; no stranger gets
//! an answer; a claim that was never sent does not end uncertain while its gateway lives (`properties.rs`). There is no
//! exception for operators and probes, who release only what they see was not executed, nor for forwarding, whose
//! upstream executes once for each of its callers. `flaws.rs` takes one rule out at a time, and the checker shows what
//! breaks.
//!
//! # Bounds
//!
//! Exhausted by `cargo test` (about 4 million states, a minute on two cores), each with a crash, an operator's decision,
//! renewals and release statuses: two requests under hold, probe and forward, and a request and a stranger's under hold,
//! with two store commands without an answer; three requests of one caller, and two and a stranger's, under each of
//! hold, probe and forward, with none.
//!
//! Three requests with one or two such commands are for an optimised build, and were not exhausted:
//!
//! ```text
//! ONCEWARD_MODEL_LATE=1 cargo test --test model --config 'profile.test.package.onceward.opt-level=3' -- --nocapture three
//! ```
//!
//! Cut: more than one decision of operators, one crash or three requests; `retry` by an operator, which differs from a
//! probe's `absent` only in who looks; the end of retention, tombstones, `fail_open`, unreadable records; requests that
//! differ in their fingerprint, which `admit` treats as it treats strangers; re-sending on another connection. A stop
//! between the send rule's check and the write is not survived by any protocol of this kind, and is left out.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod bridge;
mod explore;
mod flaws;
mod holds;
mod properties;
mod protocol;
mod rules;
mod state;
