//! A route's policy: every rule that an operator can choose, parsed and checked.

use std::sync::Arc;
use std::time::Duration;

use http::header::COOKIE;
use http::{HeaderName, HeaderValue, StatusCode};

use super::admit::DuplicateRefusal;
use super::chosen::ChosenField;
use super::probe::Probe;
use super::statuses::StatusRules;
use crate::key::path::PathCase;
use crate::key::{CookieName, KeySyntax, Pointer};

/// All that is decided per route. Durations as configured; the store counts them by its own clock.
#[derive(Debug, Clone)]
pub struct Policy {
    /// The route's name, part of every record's identity.
    pub route: Arc<str>,
    /// Whether the route protects, watches or does nothing.
    pub mode: Mode,
    /// Whether the upstream tells paths apart by letter case.
    pub path_case: PathCase,
    /// Where the key is.
    pub key: KeyRule,
    /// Whether the path of a request is a part of its operation's identity, beside route, scope and key. Of a route without
    /// it, one key names one operation on all paths.
    pub by_path: bool,
    /// Whether every answer to a request with a key in a header field carries that field as the client sent it.
    pub echo_key: bool,
    /// Where the upstream gets the key, if not in the field or member that the client sent it in.
    pub upstream_key: Option<UpstreamKey>,
    /// Whose keys these are.
    pub scope: ScopeRule,
    /// Who may get a replay.
    pub caller: CallerRule,
    /// What makes two requests the same.
    pub fingerprint: FingerprintRule,
    /// What a duplicate of a running request gets.
    pub on_in_flight: OnInFlight,
    /// How long a duplicate is held under [`OnInFlight::Wait`].
    pub wait_timeout: Duration,
    /// What another request under the same key gets.
    pub on_mismatch: OnMismatch,
    /// The status of a `key-reused` answer, 422 except where a vendor's dialect uses another.
    pub mismatch_status: StatusCode,
    /// What a duplicate of an uncertain operation gets.
    pub on_uncertain: OnUncertain,
    /// How long an uncertain operation has to rest before anybody may release it: the lost request may sit in a queue.
    pub uncertain_after: Duration,
    /// What the upstream's statuses mean.
    pub statuses: StatusRules,
    /// Response fields that are relayed once, never stored.
    pub drop_headers: Vec<HeaderName>,
    /// Members of JSON results that nobody is to find in the store: they are replaced before anybody gets the result.
    pub redact: Vec<Pointer>,
    /// How long a result is kept, from completion.
    pub retention: Duration,
    /// How long a tombstone stays after that; zero for none.
    pub tombstone: Duration,
    /// How long in-flight and uncertain records are kept, from their last change or renewal.
    pub unsettled_retention: Duration,
    /// How long a claim holds without renewal.
    pub lease: Duration,
    /// What happens when the store can't be reached.
    pub on_failure: OnFailure,
    /// Whether answers also carry `Stripe-Should-Retry: true` where a retry is safe.
    pub stripe_should_retry: bool,
    /// In whose words refusals are told.
    pub errors: Dialect,
    /// Members of bodies that are told to the event log.
    pub fields: Vec<ChosenField>,
    /// Which pages may read refusals and replays; `None`: those fields are not the gateway's matter.
    pub cors: Option<CrossOrigin>,
    /// Whether records keep digests of what a request is made of, so that its caller can be told where another one differs.
    pub explain: bool,
}

/// Whether a route protects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Protects.
    Enforce,
    /// Watches and counts; never refuses.
    Shadow,
    /// Passes through.
    Off,
}

/// Where a route's key is, and how it must look.
#[derive(Debug, Clone)]
pub struct KeyRule {
    /// Where it is.
    pub source: KeySource,
    /// Whether a request without one is refused; a derived key is always required.
    pub required: bool,
    /// Shortest decoded key, in bytes: 1 for any.
    pub min_length: usize,
    /// Longest decoded key, in bytes.
    pub max_length: usize,
    /// Its form.
    pub syntax: KeySyntax,
}

/// Where a key is.
#[derive(Debug, Clone)]
pub enum KeySource {
    /// In a header field, in a member of a JSON body, in a field of a form body, or in any of those that are named.
    Sent {
        /// The header field.
        header: Option<HeaderName>,
        /// The member.
        body: Option<Pointer>,
        /// The form's field, by its decoded name.
        form: Option<String>,
    },
    /// Made from parts of the request, together with the scope or else the caller.
    Derived(Vec<KeyPart>),
}

/// How the upstream gets the key: renamed, moved or shortened, always the same way for the same key.
#[derive(Debug, Clone)]
pub struct UpstreamKey {
    /// Where the upstream looks for it.
    pub place: KeyPlace,
    /// Longest key that the upstream takes, in bytes of the decoded key; longer ones are replaced by a digest of this
    /// length at most.
    pub max_length: usize,
}

/// Where an upstream looks for a key.
#[derive(Debug, Clone)]
pub enum KeyPlace {
    /// In a header field.
    Header(HeaderName),
    /// In a member of a JSON body.
    Body(Pointer),
}

/// A part of a derived key.
#[derive(Debug, Clone, PartialEq)]
pub enum KeyPart {
    /// The path as [`identity`](crate::key::path::identity) writes it: one form for all spellings.
    Path,
    /// A query parameter, by its first value, decoded as forms are (`+` is a space).
    Query(String),
    /// A header field.
    Header(HeaderName),
    /// A member of the JSON body.
    Body(Pointer),
    /// A field of the form body, by its decoded name.
    Form(String),
    /// The body as the route fingerprints it.
    BodyHash,
}

/// Whose keys these are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ScopeRule {
    /// One key space for all clients of the route.
    Shared,
    /// One per value of these fields; all must be present.
    Headers(Vec<HeaderName>),
    /// One per value of this cookie, which must be present.
    Cookie(CookieName),
    /// One per subject of verified tokens.
    Token(Arc<TokenRule>),
    /// One per subject of the certificates that clients show.
    ClientCertificate,
}

impl ScopeRule {
    /// Whether somebody vouches for it, so that it says who asks as well.
    pub fn is_verified(&self) -> bool {
        matches!(self, ScopeRule::Token(_) | ScopeRule::ClientCertificate)
    }
}

/// Which token names a scope.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenRule {
    /// The field that it comes in.
    pub header: HeaderName,
    /// The claim that is the scope.
    pub claim: String,
    /// Who has to have issued it; `None`: whoever has the keys.
    pub issuer: Option<String>,
    /// For whom it has to be; `None`: for anybody.
    pub audience: Option<String>,
}

/// Who may get a replay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CallerRule {
    /// Whoever sends the same value in the first present of these fields; a scope adds to it.
    Headers(Vec<HeaderName>),
    /// Whoever sends the same value of this cookie; a scope adds to it.
    Cookie(CookieName),
    /// Whoever has the same scope: a proxy in front vouches for it.
    Scope,
}

/// What makes two requests the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FingerprintRule {
    /// JSON bodies by value without these members, others as bytes.
    Json(Vec<Pointer>),
    /// Bodies as bytes.
    Raw,
    /// Method, path and query alone.
    WithoutBody,
}

/// What a duplicate of a running request gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnInFlight {
    /// 409 at once.
    Reject,
    /// The answer, when it is there.
    Wait,
}

/// What another request under the same key gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnMismatch {
    /// A refusal.
    Reject,
    /// The stored response of the first, for the same caller.
    Replay,
    /// An execution of its own: at most one per key and fingerprint.
    Supersede,
}

/// What a duplicate of an uncertain operation gets.
#[derive(Debug, Clone)]
pub enum OnUncertain {
    /// 409 until an operator decides.
    Hold,
    /// It is forwarded again under the same key: the upstream deduplicates.
    Forward,
    /// The upstream is asked what became of the first.
    Probe(Arc<Probe>),
}

/// Which pages of other origins may read the gateway's own answers (the CORS protocol of the Fetch standard).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CrossOrigin {
    /// The origins of these pages.
    pub origins: Origins,
    /// Whether they may also where the browser sends cookies.
    pub credentials: bool,
}

/// Origins of pages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origins {
    /// Every origin.
    Any,
    /// These, as browsers write them.
    Listed(Vec<HeaderValue>),
}

/// In whose words a refusal is told, so that the clients that are there understand it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Dialect {
    /// A problem document (RFC 9457).
    #[default]
    Problem,
    /// Stripe's error object.
    Stripe,
    /// Square's list of errors.
    Square,
    /// PayPal's error object.
    PayPal,
    /// The flat error of the Agentic Commerce Protocol.
    Acp,
    /// The error of the Universal Commerce Protocol.
    Ucp,
}

impl Dialect {
    /// Returns whether a request whose outcome is uncertain is told to come back although an operator has to decide first. To
    /// the Agentic Commerce Protocol it is one that is still in flight, and a client without a `Retry-After` would take a
    /// new key.
    pub fn calls_back_what_is_held(self) -> bool {
        self == Dialect::Acp
    }
}

/// What happens when the store can't be reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnFailure {
    /// 503, nothing is forwarded.
    FailClosed,
    /// Forwarded without protection, counted and logged.
    FailOpen,
}

impl Policy {
    /// Returns the field in which the client's key is echoed, if it is.
    pub fn echoed_field(&self) -> Option<&HeaderName> {
        match &self.key.source {
            KeySource::Sent { header, .. } if self.echo_key => header.as_ref(),
            KeySource::Sent { .. } | KeySource::Derived(_) => None,
        }
    }

    /// Returns the response fields that are never stored: those that the route drops, and the one in which the key is
    /// echoed, since keys are stored hashed only and each client is echoed its own spelling.
    pub fn unstored_fields(&self) -> impl Iterator<Item = &HeaderName> {
        self.drop_headers.iter().chain(self.echoed_field())
    }

    /// Returns whether two paths are two operations under one key: the path is a part of the identity or of a derived key.
    pub fn tells_paths_apart(&self) -> bool {
        self.by_path
            || matches!(&self.key.source, KeySource::Derived(parts) if parts.contains(&KeyPart::Path))
    }

    /// Returns whether a request of this route is identified by this header field: it carries the key,
    /// a part of a derived key, the scope or the caller, or the upstream gets the key in it.
    pub fn identifies_by(&self, name: &HeaderName) -> bool {
        let in_key = match &self.key.source {
            KeySource::Sent { header, .. } => header.as_ref() == Some(name),
            KeySource::Derived(parts) => {
                parts.iter().any(|part| matches!(part, KeyPart::Header(header) if header == name))
            }
        };
        let in_scope = match &self.scope {
            ScopeRule::Headers(names) => names.contains(name),
            ScopeRule::Cookie(_) => *name == COOKIE,
            ScopeRule::Token(rule) => rule.header == *name,
            ScopeRule::Shared | ScopeRule::ClientCertificate => false,
        };
        let in_caller = match &self.caller {
            CallerRule::Headers(names) => names.contains(name),
            CallerRule::Cookie(_) => *name == COOKIE,
            CallerRule::Scope => false,
        };
        let for_upstream = self.upstream_key.as_ref().map(|wanted| &wanted.place);
        in_key
            || in_scope
            || in_caller
            || matches!(for_upstream, Some(KeyPlace::Header(header)) if header == name)
    }

    /// When a client may send the same request again whose outcome has just become uncertain; `None` where an operator
    /// has to decide first.
    pub fn uncertain_retry_after(&self) -> Option<Duration> {
        match self.on_uncertain {
            OnUncertain::Hold => None,
            OnUncertain::Forward | OnUncertain::Probe(_) => Some(DuplicateRefusal::RETRY_AFTER_MAX),
        }
    }

    /// Whether results leave a tombstone when their retention ends.
    pub fn keeps_tombstones(&self) -> bool {
        !self.tombstone.is_zero()
    }

    /// How long a released marker stays. It must outlive every store command that can still be under way: a claim
    /// that arrives after the marker is gone would stand, with nobody left to run or settle it.
    pub fn marker_retention(&self) -> Duration {
        const MARKER_MIN: Duration = Duration::from_secs(60);
        self.wait_timeout.max(MARKER_MIN)
    }
}
