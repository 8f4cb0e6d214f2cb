//! The rules, as pure functions: no clock, no network, no randomness.
//!
//! [`admit`] decides what a request may do, given the record of its operation. [`settle`] decides
//! how an attempt's outcome changes the record. [`decide`] returns the record after an operator's
//! decision, and [`expire`] the record after the end of a lease. [`believe`] decides what the
//! answer to a probe changes. [`saga_claim`], [`saga_progress`], [`saga_takeover`] and [`saga_end`]
//! return the records of a saga, and [`bar`] the record that keeps a step of a saga from running.
//! [`lock_admission`] decides who may take the lock of a resource, and [`WriteCondition`] what a
//! write may do with the current version.

mod admit;
mod announce;
mod belief;
mod chosen;
mod grpc;
mod identities;
mod lock;
mod operator;
mod policy;
mod probe;
mod publish;
mod redact;
mod resource;
mod saga;
mod settle;
mod standard;
mod statuses;
mod tag;
mod tag_history;
mod uncertain;
mod write_condition;

pub use admit::{Admission, ClaimOver, ClaimRequest, DuplicateRefusal, admit};
pub use announce::{Announcement, SettledBy, announcements_of_saga, publication_of_claim};
pub use belief::{Belief, believe, believe_in_background};
pub use chosen::{CHOSEN_BYTES_MAX, CHOSEN_MAX, ChosenField, Side, any_chosen, chosen};
pub use grpc::{grpc_uncertainty, is_grpc};
pub use identities::{Identities, IdentityChange, IdentityComparison, Notes, VanishedRoute};
pub use lock::{
    LockAdmission, LockRequest, UnsentProof, lock_admission, lock_holder, release_unsent,
    sent_lock, taken_lock, unsent_proof,
};
pub use operator::{Decision, DecisionDenied, decide, expire};
pub use policy::{
    CallerRule, CrossOrigin, Dialect, FingerprintRule, KeyPart, KeyPlace, KeyRule, KeySource, Mode,
    OnFailure, OnInFlight, OnMismatch, OnUncertain, Origins, Policy, RETRY_AFTER_MAX, ScopeRule,
    TokenRule, UpstreamKey,
};
pub use probe::{Finding, Probe};
pub use publish::{
    PUBLISH_RULES_MAX, PublishRule, PublishRules, PublishedMember, PublishedRequest,
};
pub use redact::redacted;
pub use resource::{IfMatchRule, OnStale, ResourceRule, VersionSource};
pub use saga::{
    bar, kept, saga_acceptance, saga_claim, saga_decision, saga_end, saga_progress, saga_takeover,
};
pub use settle::{Claim, Next, Outcome, Settlement, claim, settle};
pub use statuses::{StatusRules, StatusRulesError, Verdict};
pub use tag::{
    CONDITIONAL_FIELDS, EntityTag, MalformedTagList, ReadConditions, ReadVerdict, TagList,
};
pub use tag_history::{TAGS_MAX, TagHistory, kept_versions};
pub use write_condition::{CurrentVersion, InvalidCondition, WriteCondition, WriteVerdict};

#[cfg(test)]
pub(crate) mod tests;
