//! The rules, and nothing else: no clock, no network, no randomness. `admit` says what a request may do, given the
//! record; `settle` says what an attempt's outcome makes of the record.

mod admit;
mod chosen;
mod grpc;
mod identities;
mod operator;
mod policy;
mod probe;
mod redact;
mod settle;
mod standard;
mod statuses;

pub use admit::{Admission, Asked, ClaimOver, DuplicateRefusal, admit};
pub use chosen::{CHOSEN_BYTES_MAX, CHOSEN_MAX, ChosenField, Side, any_chosen, chosen};
pub use grpc::{grpc_doubt, is_grpc};
pub use identities::{Change, Compared, Identities, Notes, Vanished};
pub use operator::{Decision, DecisionDenied, decide, expire};
pub use policy::{
    CallerRule, CrossOrigin, Dialect, FingerprintRule, KeyPart, KeyPlace, KeyRule, KeySource, Mode,
    OnFailure, OnInFlight, OnMismatch, OnUncertain, Origins, Policy, ScopeRule, TokenRule,
    UpstreamKey,
};
pub use probe::{Belief, Finding, Probe, believe, believe_unasked};
pub use redact::redacted;
pub use settle::{Claim, Next, Outcome, Settlement, claim, settle};
pub use statuses::{StatusRules, StatusRulesError, Verdict};

#[cfg(test)]
pub(crate) mod tests;
