//! Which operation a request belongs to: key, scope, caller and fingerprint, by the route's policy.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use http::header::{CONTENT_ENCODING, CONTENT_TYPE};
use http::request::Parts;
use http::{Extensions, HeaderMap, HeaderName, HeaderValue};
use percent_encoding::percent_decode_str;

use super::problem::{KeyFault, Problem};
use super::vouch::Vouched;
use super::{is_per_fingerprint, is_shadow};
use crate::engine::{CallerRule, FingerprintRule, KeyPart, KeyRule, KeySource, Policy, ScopeRule, Side, any_chosen, chosen};
use crate::key::{
    BodyHash, Caller, Fingerprint, Hashing, Key, Member, Named, PartHasher, Pointer, Reading, Scope, Slot, Space, Unclear,
    fingerprint, form_boundary, hash_body,
};

/// A request's place among operations.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identified {
    /// Where its record lies.
    pub slot: Slot,
    /// Who asks.
    pub caller: Caller,
    /// For what.
    pub fingerprint: Fingerprint,
    /// Whose operation it is, as far as quotas tell: the scope, or where there is none the caller.
    pub whose: [u8; 32],
    /// Slot and caller under the secrets that don't write, where there are any: an earlier one, or the next.
    pub others: Vec<(Slot, Caller)>,
    /// The route's chosen fields that the request has.
    pub fields: BTreeMap<String, String>,
}

/// Identifies a request; `None` where the route doesn't require a key and there is none.
pub fn identify(policy: &Policy, hashing: &Hashing, parts: &Parts, body: &Bytes) -> Result<Option<Identified>, Problem> {
    let body = Reading::new(body);
    let sent = match &policy.key.source {
        KeySource::Sent { header, body: pointer } => {
            if pointer.is_some() {
                readable(policy, &parts.headers)?;
            }
            // Without a key there is nothing to ask whose it is.
            let Some(key) = sent_key(&policy.key, header.as_ref(), pointer.as_ref(), parts, &body)? else { return Ok(None) };
            Some(key)
        }
        KeySource::Derived(_) => None,
    };
    readable(policy, &parts.headers)?;
    let how = body_hash(&policy.fingerprint, &parts.headers);
    let scope = scope(&policy.scope, &parts.headers, &parts.extensions)?;
    let caller = caller(&policy.caller, &scope, &parts.headers);
    // Without a scope the caller keeps tenants apart: a key made of order numbers alone would join them.
    let whose = if policy.scope == ScopeRule::Shared { caller.as_bytes() } else { scope.as_bytes() };
    let derived = match &policy.key.source {
        // Made without secrets: the upstream may know it, and must know it again when they are rotated.
        KeySource::Derived(wanted) => derived_key(wanted, whose, parts, &body, how)?,
        KeySource::Sent { .. } => Vec::new(),
    };
    let key = sent.as_ref().map_or(derived.as_slice(), |key| key.as_str().as_bytes());
    let space = if is_shadow(policy) { Space::Shadow } else { Space::Enforced };
    // Of what is only watched nothing is told.
    let fields = match (space, any_chosen(&policy.fields, Side::Request)) {
        (Space::Enforced, true) => body.document().map(|found| chosen(&policy.fields, Side::Request, found)).unwrap_or_default(),
        _ => BTreeMap::new(),
    };
    let fingerprint = fingerprint(parts.method.as_str(), parts.uri.path(), parts.uri.query(), body, how);
    let variant: &[u8] = if is_per_fingerprint(policy) { fingerprint.as_bytes() } else { b"" };
    let named = Named { space, route: &policy.route, scope: &scope, key, variant };
    let (slot, hashed) = hashing.identity(&named, caller);
    let others = hashing.other_identities(&named, caller);
    Ok(Some(Identified { slot, caller: hashed, fingerprint, whose: *whose, others, fields }))
}

/// Whose operation a request would be, as far as that can be told of one that is not identified.
pub(super) fn whose(policy: &Policy, parts: &Parts) -> Option<[u8; 32]> {
    let scope = scope(&policy.scope, &parts.headers, &parts.extensions).ok()?;
    let caller = caller(&policy.caller, &scope, &parts.headers);
    Some(if policy.scope == ScopeRule::Shared { *caller.as_bytes() } else { *scope.as_bytes() })
}

/// The key in plain text, of a request that was identified: as sent, or the digest that a derived one is.
pub(super) fn key_text(policy: &Policy, parts: &Parts, body: &Bytes) -> Result<String, Problem> {
    match &policy.key.source {
        KeySource::Sent { header, body: pointer } => {
            let key = sent_key(&policy.key, header.as_ref(), pointer.as_ref(), parts, &Reading::new(body))?;
            key.map(|key| key.as_str().to_owned())
                .ok_or_else(|| Problem::KeyMissing { what: describe(header.as_ref(), pointer.as_ref()) })
        }
        KeySource::Derived(wanted) => {
            let scope = scope(&policy.scope, &parts.headers, &parts.extensions)?;
            let caller = caller(&policy.caller, &scope, &parts.headers);
            let whose = if policy.scope == ScopeRule::Shared { caller.as_bytes() } else { scope.as_bytes() };
            let key = derived_key(wanted, whose, parts, &Reading::new(body), body_hash(&policy.fingerprint, &parts.headers))?;
            Ok(URL_SAFE_NO_PAD.encode(key))
        }
    }
}

/// Looks at the header fields alone: whether the request asks for protection, before its body is read. A request that
/// can be refused is refused here, and one that can pass streams through whatever its size.
pub fn wants_protection(policy: &Policy, headers: &HeaderMap, extensions: &Extensions) -> Result<bool, Problem> {
    if let KeySource::Sent { header: Some(name), body: None } = &policy.key.source
        && header_key(&policy.key, name, headers)?.is_none()
    {
        let missing = || Problem::KeyMissing { what: describe(Some(name), None) };
        return if policy.key.required { Err(missing()) } else { Ok(false) };
    }
    readable(policy, headers)?;
    scope(&policy.scope, headers, extensions)?;
    Ok(true)
}

pub(super) fn scope(rule: &ScopeRule, headers: &HeaderMap, extensions: &Extensions) -> Result<Scope, Problem> {
    match rule {
        ScopeRule::Token(_) | ScopeRule::ClientCertificate => {
            let unasked = || Problem::ScopeMissing { what: "a verified account".to_owned() };
            let said = extensions.get::<Vouched>().ok_or_else(unasked)?.said()?;
            Ok(Scope::of_fields(said.iter().map(|(name, value)| (name.as_str(), value.as_slice()))))
        }
        ScopeRule::Shared => Ok(Scope::shared()),
        ScopeRule::Headers(names) => {
            let missing = |name: &&HeaderName| headers.get(*name).is_none_or(HeaderValue::is_empty);
            if let Some(name) = names.iter().find(missing) {
                return Err(Problem::ScopeMissing { what: format!("the field {name}") });
            }
            Ok(Scope::of_fields(names.iter().flat_map(|name| lines(headers, name).map(|line| (name.as_str(), line)))))
        }
    }
}

pub(super) fn caller(rule: &CallerRule, scope: &Scope, headers: &HeaderMap) -> Caller {
    match rule {
        CallerRule::Scope => Caller::nobody().with_scope(scope),
        CallerRule::Headers(names) => names
            .iter()
            .find(|name| headers.contains_key(*name))
            .map(|name| Caller::of_lines(name.as_str(), lines(headers, name)))
            .unwrap_or_else(Caller::nobody),
    }
}

/// All lines of a field: which of two an upstream believes is not known here.
fn lines<'h>(headers: &'h HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'h [u8]> {
    headers.get_all(name).iter().map(HeaderValue::as_bytes)
}

pub(super) fn body_hash<'p>(rule: &'p FingerprintRule, headers: &'p HeaderMap) -> BodyHash<'p> {
    match rule {
        FingerprintRule::Json(ignore) => match content_type(headers).and_then(form_boundary) {
            Some(boundary) => BodyHash::Form { boundary },
            None => BodyHash::Json { is_json: is_json(headers), ignore },
        },
        FingerprintRule::Raw => BodyHash::Raw,
        FingerprintRule::WithoutBody => BodyHash::None,
    }
}

/// The media type, where there is exactly one: which of two a reader believes is not known here.
fn content_type(headers: &HeaderMap) -> Option<&str> {
    let mut values = headers.get_all(CONTENT_TYPE).iter();
    let value = values.next()?.to_str().ok()?;
    values.next().is_none().then_some(value)
}

/// Whether a route takes the key, or what to leave out, from members of the body.
fn reads_members(policy: &Policy) -> bool {
    let in_key = match &policy.key.source {
        KeySource::Sent { body, .. } => body.is_some(),
        KeySource::Derived(parts) => parts.iter().any(|part| matches!(part, KeyPart::Body(_))),
    };
    in_key || matches!(&policy.fingerprint, FingerprintRule::Json(ignore) if !ignore.is_empty())
}

/// Refuses a body that has to be read and is encoded. Taken as it is, its key would be missing, and a request that the
/// upstream decodes and executes would go unprotected.
fn readable(policy: &Policy, headers: &HeaderMap) -> Result<(), Problem> {
    let codings = headers.get_all(CONTENT_ENCODING).iter().flat_map(|value| value.as_bytes().split(|byte| *byte == b','));
    let is_plain = |coding: &[u8]| coding.trim_ascii().is_empty() || coding.trim_ascii().eq_ignore_ascii_case(b"identity");
    if reads_members(policy) && !codings.into_iter().all(is_plain) {
        return Err(Problem::UnsupportedEncoding);
    }
    Ok(())
}

/// Whether the media type is a JSON one (RFC 8259; RFC 6839, section 3.1).
pub(super) fn is_json(headers: &HeaderMap) -> bool {
    let Some(value) = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()) else { return false };
    let essence = value.split(';').next().unwrap_or_default().trim();
    essence.eq_ignore_ascii_case("application/json")
        || essence.len() > 5 && essence.get(essence.len() - 5..).is_some_and(|suffix| suffix.eq_ignore_ascii_case("+json"))
}

fn sent_key(
    rule: &KeyRule,
    header: Option<&HeaderName>,
    pointer: Option<&Pointer>,
    parts: &Parts,
    body: &Reading<'_>,
) -> Result<Option<Key>, Problem> {
    let in_header = header.map(|name| header_key(rule, name, &parts.headers)).transpose()?.flatten();
    let in_body = pointer.map(|pointer| body_key(rule, pointer, body)).transpose()?.flatten();
    match (in_header, in_body) {
        (Some(a), Some(b)) if a != b => Err(invalid(KeyFault::Differs)),
        (None, None) if rule.required => Err(Problem::KeyMissing { what: describe(header, pointer) }),
        (a, b) => Ok(a.or(b)),
    }
}

fn describe(header: Option<&HeaderName>, pointer: Option<&Pointer>) -> String {
    let header = header.map(|name| format!("the header field {name}"));
    let member = pointer.map(|pointer| format!("the body member /{}", pointer.tokens().join("/")));
    [header, member].into_iter().flatten().collect::<Vec<_>>().join(" or ")
}

fn invalid(why: impl Into<KeyFault>) -> Problem {
    Problem::KeyInvalid { why: why.into() }
}

fn header_key(rule: &KeyRule, name: &HeaderName, headers: &HeaderMap) -> Result<Option<Key>, Problem> {
    let mut values = headers.get_all(name).iter();
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err(invalid(KeyFault::Twice));
    }
    Key::parse(value.as_bytes(), rule.syntax, rule.max_length).map(Some).map_err(invalid)
}

fn body_key(rule: &KeyRule, pointer: &Pointer, body: &Reading<'_>) -> Result<Option<Key>, Problem> {
    let document = match body.document() {
        Ok(document) => document,
        Err(Unclear::NotJson) => return Ok(None),
        Err(Unclear::Ambiguous) => return Err(invalid(KeyFault::AmbiguousBody)),
    };
    match document.member(pointer) {
        Member::Missing => Ok(None),
        Member::Text(text) => Key::from_body(text, rule.syntax, rule.max_length).map(Some).map_err(invalid),
        Member::Other => Err(invalid(KeyFault::NotText)),
    }
}

fn derived_key(
    wanted: &[KeyPart],
    whose: &[u8; 32],
    parts: &Parts,
    body: &Reading<'_>,
    how: BodyHash<'_>,
) -> Result<Vec<u8>, Problem> {
    let missing = |what: String| Problem::KeyMissing { what };
    let mut hasher = PartHasher::new("key:derived");
    hasher.part(whose);
    for part in wanted {
        match part {
            KeyPart::Path => {
                hasher.part(b"path").part(parts.uri.path().as_bytes());
            }
            KeyPart::Query(name) => {
                let value = query_parameter(parts.uri.query().unwrap_or_default(), name)
                    .ok_or_else(|| missing(format!("the query parameter {name}")))?;
                hasher.part(b"query").part(name.as_bytes()).part(&value);
            }
            KeyPart::Header(name) => {
                if !parts.headers.contains_key(name) {
                    return Err(missing(format!("the header field {name}")));
                }
                for line in lines(&parts.headers, name) {
                    hasher.part(b"header").part(name.as_str().as_bytes()).part(line);
                }
            }
            KeyPart::Body(pointer) => {
                let name = format!("the body member /{}", pointer.tokens().join("/"));
                let document = match body.document() {
                    Ok(document) => document,
                    Err(Unclear::NotJson) => return Err(missing(name)),
                    Err(Unclear::Ambiguous) => return Err(invalid(KeyFault::AmbiguousBody)),
                };
                hasher.part(b"body").part(name.as_bytes());
                if !document.hash_member(&mut hasher, pointer) {
                    return Err(missing(name));
                }
            }
            KeyPart::BodyHash => {
                hasher.part(b"body_hash");
                hash_body(&mut hasher, Reading::new(body.bytes()), how);
            }
        }
    }
    Ok(hasher.finish().to_vec())
}

/// The first value of a query parameter, percent-decoded.
fn query_parameter(query: &str, name: &str) -> Option<Vec<u8>> {
    let pairs = query.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
    let mut values = pairs.filter(|(key, _)| percent_decode_str(key).eq(name.bytes()));
    values.next().map(|(_, value)| percent_decode_str(value).collect())
}
