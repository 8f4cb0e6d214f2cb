//! The policy of a route: every rule that an operator can configure, parsed and checked.

use std::sync::Arc;
use std::time::Duration;

use http::header::COOKIE;
use http::{HeaderName, HeaderValue, StatusCode};

use super::chosen::ChosenField;
use super::probe::Probe;
use super::publish::PublishRules;
use super::resource::ResourceRule;
use super::statuses::StatusRules;
use crate::key::path::PathCase;
use crate::key::{CookieName, KeySyntax, Pointer};

/// Longest time for which a refusal lets a client wait before it sends the same request again: long
/// enough to bound the load, short enough that a payment page does not stall.
pub const RETRY_AFTER_MAX: Duration = Duration::from_secs(2);

/// The rules of one route. Durations are as configured; the store applies them by its own clock.
#[derive(Debug, Clone)]
pub struct Policy {
    /// The route's name, part of every record's identity.
    pub route: Arc<str>,
    /// Whether the route protects requests, only counts duplicates, or does nothing.
    pub mode: Mode,
    /// Whether the upstream treats paths that differ in letter case as different paths.
    pub path_case: PathCase,
    /// Where the key is, and its form.
    pub key: KeyRule,
    /// Whether the path is part of an operation's identity, beside route, scope and key. If not, a
    /// key names one operation on all paths of the route.
    pub by_path: bool,
    /// Whether answers repeat the client's key field, as the client sent it.
    pub echo_key: bool,
    /// Where the upstream gets the key; `None` for the place in which the client sent it.
    pub upstream_key: Option<UpstreamKey>,
    /// What separates the keys of one client from the keys of another.
    pub scope: ScopeRule,
    /// Who may get a replay.
    pub caller: CallerRule,
    /// What two requests must have in common to be duplicates.
    pub fingerprint: FingerprintRule,
    /// How a duplicate of an active request is answered.
    pub on_in_flight: OnInFlight,
    /// How long a duplicate waits under [`OnInFlight::Wait`].
    pub wait_timeout: Duration,
    /// How another request under the same key is answered.
    pub on_mismatch: OnMismatch,
    /// The status of a `key-reused` answer: 422, or the status that a vendor's API uses.
    pub mismatch_status: StatusCode,
    /// How a duplicate of an uncertain operation is answered.
    pub on_uncertain: OnUncertain,
    /// How long an uncertain operation must rest before it may be released: the lost request may
    /// wait in a queue of the upstream.
    pub uncertain_after: Duration,
    /// What the upstream's statuses mean.
    pub statuses: StatusRules,
    /// Response fields that are sent to the first client and never stored.
    pub drop_headers: Vec<HeaderName>,
    /// Members of JSON results that must not be stored. They are replaced before any client gets
    /// the result.
    pub redact: Vec<Pointer>,
    /// How long a result is kept, from completion.
    pub retention: Duration,
    /// How long a tombstone is kept after the retention; zero for no tombstone.
    pub tombstone: Duration,
    /// How long in-flight and uncertain records are kept after their last change or renewal.
    pub unsettled_retention: Duration,
    /// How long a claim holds without renewal.
    pub lease: Duration,
    /// Whether requests are forwarded while the store is unreachable.
    pub on_failure: OnFailure,
    /// Whether answers have `Stripe-Should-Retry: true` where a retry is safe.
    pub stripe_should_retry: bool,
    /// The format of refusals.
    pub errors: Dialect,
    /// Members of bodies that are written to the event log.
    pub fields: Vec<ChosenField>,
    /// The events that sinks get; `None`: the route publishes nothing.
    pub publish: Option<Arc<PublishRules>>,
    /// The rules of the resources on the route's paths; `None`: its paths name no resources.
    pub resource: Option<Arc<ResourceRule>>,
    /// Which web pages may read refusals and replays; `None`: the gateway adds no CORS fields.
    pub cors: Option<CrossOrigin>,
    /// Whether records keep digests of the parts of a request, so that a refusal can name the parts
    /// that differ.
    pub explain: bool,
}

/// How far a route acts on requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Protects: at most one execution per key.
    Enforce,
    /// Counts the refusals and replays that [`Mode::Enforce`] would give; changes no answer.
    Shadow,
    /// Forwards requests unchanged.
    Off,
}

/// Where a route's key is, and its form.
#[derive(Debug, Clone)]
pub struct KeyRule {
    /// Where it is.
    pub source: KeySource,
    /// Whether a request without a key is refused. A derived key is always required.
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
    /// In a header field, a member of a JSON body or a field of a form body: any of those that are
    /// configured.
    Sent {
        /// The header field.
        header: Option<HeaderName>,
        /// The member.
        body: Option<Pointer>,
        /// The field of the form, by its decoded name.
        form: Option<String>,
    },
    /// Derived from parts of the request and from the scope. On a route without a scope, the caller
    /// takes its place.
    Derived(Vec<KeyPart>),
}

/// How the upstream gets the key: renamed, moved or shortened. The same key always gives the same
/// result.
#[derive(Debug, Clone)]
pub struct UpstreamKey {
    /// Where the upstream looks for it.
    pub place: KeyPlace,
    /// Longest key that the upstream accepts, in bytes of the decoded key. A longer key is replaced
    /// by a digest of at most this length.
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

/// What separates the keys of one client from the keys of another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ScopeRule {
    /// One key space for all clients of the route.
    Shared,
    /// One key space per value of these fields. All must be present.
    Headers(Vec<HeaderName>),
    /// One key space per value of this cookie. It must be present.
    Cookie(CookieName),
    /// One key space per claim value of verified tokens.
    Token(Arc<TokenRule>),
    /// One key space per subject of verified client certificates.
    ClientCertificate,
}

impl ScopeRule {
    /// Returns whether the scope is verified by a signature, so that it also identifies the caller.
    pub fn is_verified(&self) -> bool {
        matches!(self, ScopeRule::Token(_) | ScopeRule::ClientCertificate)
    }
}

/// The token that has the scope.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenRule {
    /// The header field with the token.
    pub header: HeaderName,
    /// The claim with the scope.
    pub claim: String,
    /// The required issuer; `None` accepts any issuer with a valid key.
    pub issuer: Option<String>,
    /// The required audience; `None` accepts any audience.
    pub audience: Option<String>,
}

/// Who may get a replay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CallerRule {
    /// A client with the same value in the first present of these fields, and the same scope.
    Headers(Vec<HeaderName>),
    /// A client with the same value of this cookie, and the same scope.
    Cookie(CookieName),
    /// A client with the same scope, which a proxy in front of the gateway must verify.
    Scope,
}

/// What two requests must have in common to be duplicates.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FingerprintRule {
    /// Method, path, query and body: JSON bodies by value without these members, other bodies byte
    /// by byte.
    Json(Vec<Pointer>),
    /// Method, path, query and body, byte by byte.
    Raw,
    /// Method, path and query.
    WithoutBody,
}

/// How a duplicate of an active request is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnInFlight {
    /// With 409 at once.
    Reject,
    /// With the first request's answer, once it exists.
    Wait,
}

/// How another request under the same key is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnMismatch {
    /// With a refusal.
    Reject,
    /// With the stored response of the first request, if the caller is the same.
    Replay,
    /// It is executed too: at most once per key and fingerprint.
    Supersede,
}

/// How a duplicate of an uncertain operation is answered.
#[derive(Debug, Clone)]
pub enum OnUncertain {
    /// With 409 until an operator decides.
    Hold,
    /// It is forwarded under the same key: the upstream removes duplicates.
    Forward,
    /// After a probe of the upstream.
    Probe(Arc<Probe>),
}

/// Web pages of other origins that may read the gateway's own answers (the CORS protocol of the
/// Fetch standard).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CrossOrigin {
    /// The origins of these pages.
    pub origins: Origins,
    /// Whether they may also read answers to requests with cookies.
    pub credentials: bool,
}

/// Origins of pages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origins {
    /// Every origin.
    Any,
    /// These origins, as browsers write them.
    Listed(Vec<HeaderValue>),
}

/// The format of a refusal: existing clients of a payment API expect the format of that API.
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
    /// Returns whether a duplicate of a held operation gets a `Retry-After`, although an operator
    /// must decide first. The Agentic Commerce Protocol treats a held operation as in flight, and
    /// its clients take a new key if the field is missing.
    pub fn sends_retry_after_while_held(self) -> bool {
        self == Dialect::Acp
    }
}

/// Whether requests are forwarded while the store is unreachable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnFailure {
    /// They are answered with 503 and not forwarded.
    FailClosed,
    /// They are forwarded without protection, counted and logged.
    FailOpen,
}

impl Policy {
    /// Returns the field in which answers repeat the client's key, if they do.
    pub fn echoed_field(&self) -> Option<&HeaderName> {
        match &self.key.source {
            KeySource::Sent { header, .. } if self.echo_key => header.as_ref(),
            KeySource::Sent { .. } | KeySource::Derived(_) => None,
        }
    }

    /// Returns the response fields that are never stored: the dropped fields, and the echoed key.
    /// Keys are only stored as hashes, and each client gets the key back as it wrote it.
    pub fn unstored_fields(&self) -> impl Iterator<Item = &HeaderName> {
        self.drop_headers.iter().chain(self.echoed_field())
    }

    /// Returns whether requests with different paths are about different things: the path is part
    /// of the identity, of a derived key or of a resource.
    pub fn separates_paths(&self) -> bool {
        self.by_path
            || self.resource.as_ref().is_some_and(|rule| rule.makes_tags())
            || matches!(
                &self.key.source,
                KeySource::Derived(parts) if parts.contains(&KeyPart::Path)
            )
    }

    /// Returns whether a header field has a part of this route's identities: the key, a part of a
    /// derived key, the scope, the caller, the tenant of a resource, or the key for the upstream.
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
        let in_resource = self.resource.as_ref().is_some_and(|rule| rule.per.contains(name));
        let for_upstream = self.upstream_key.as_ref().map(|wanted| &wanted.place);
        in_key
            || in_scope
            || in_caller
            || in_resource
            || matches!(for_upstream, Some(KeyPlace::Header(header)) if header == name)
    }

    /// Returns when a client may send a request again after its outcome became uncertain; `None` if
    /// an operator must decide first.
    pub fn uncertain_retry_after(&self) -> Option<Duration> {
        match self.on_uncertain {
            OnUncertain::Hold => None,
            OnUncertain::Forward | OnUncertain::Probe(_) => Some(RETRY_AFTER_MAX),
        }
    }

    /// Returns the policy for requests without a key that are protected nevertheless. No duplicate
    /// asks for their results, so the results are kept only for a short time.
    pub fn unkeyed(&self) -> Policy {
        Policy {
            key: KeyRule { source: KeySource::Derived(Vec::new()), ..self.key.clone() },
            by_path: false,
            echo_key: false,
            upstream_key: None,
            on_mismatch: OnMismatch::Reject,
            on_uncertain: OnUncertain::Hold,
            retention: self.marker_retention(),
            tombstone: Duration::ZERO,
            explain: false,
            ..self.clone()
        }
    }

    /// Returns the field in which the upstream gets the key, if it gets it in a field.
    pub fn upstream_key_field(&self) -> Option<&HeaderName> {
        match (&self.upstream_key, &self.key.source) {
            (Some(UpstreamKey { place: KeyPlace::Header(name), .. }), _) => Some(name),
            (Some(UpstreamKey { place: KeyPlace::Body(_), .. }), _) => None,
            (None, KeySource::Sent { header, .. }) => header.as_ref(),
            (None, KeySource::Derived(_)) => None,
        }
    }

    /// Returns whether results leave a tombstone when their retention ends.
    pub fn keeps_tombstones(&self) -> bool {
        !self.tombstone.is_zero()
    }

    /// Returns how long a released marker is kept. It must outlive every store command that can
    /// still be in transit: a claim that arrives after the marker is gone would be stored, and no
    /// attempt would run or settle it.
    pub fn marker_retention(&self) -> Duration {
        const MARKER_MIN: Duration = Duration::from_secs(60);
        self.wait_timeout.max(MARKER_MIN)
    }
}
