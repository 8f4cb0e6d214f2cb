//! The rules, and nothing else: no clock, no network, no randomness. `admit` says what a request may do, given the
//! record; `settle` says what an attempt's outcome makes of the record.

mod admit;
mod chosen;
mod doubt;
mod grpc;
mod identities;
mod operate;
mod policy;
mod redact;
mod settle;
mod statuses;

pub use admit::{Admission, Asked, Over, Refusal, admit};
pub use chosen::{CHOSEN_BYTES_MAX, CHOSEN_MAX, ChosenField, Side, any_chosen, chosen};
pub use doubt::{Believed, Finding, Probe, believe, believe_unasked};
pub use grpc::{grpc_doubt, is_grpc};
pub use identities::{Change, Compared, Identities, Notes, Vanished};
pub use operate::{Decision, Denied, decide, expire};
pub use policy::{
    CallerRule, CrossOrigin, Dialect, FingerprintRule, KeyPart, KeyPlace, KeyRule, KeySource, Mode,
    OnFailure, OnInFlight, OnMismatch, OnUncertain, Origins, Policy, ScopeRule, TokenRule,
    UpstreamKey,
};
pub use redact::redacted;
pub use settle::{Claim, Next, Outcome, Settlement, claim, settle};
pub use statuses::{StatusRules, StatusRulesError, Verdict};

#[cfg(test)]
pub(crate) mod tests;
