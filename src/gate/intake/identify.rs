//! Which operation a request belongs to: key, scope, caller and fingerprint, by the route's policy.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use http::header::{AUTHORIZATION, COOKIE, PROXY_AUTHORIZATION};
use http::request::Parts;
use http::{Extensions, HeaderMap, HeaderName, HeaderValue};
use percent_encoding::percent_decode_str;

use crate::engine::{
    CallerRule, FingerprintRule, KeyPart, KeyRule, KeySource, Policy, ScopeRule, Side, any_chosen,
    chosen,
};
use crate::gate::intake::content::{Content, can_decode};
use crate::gate::intake::scope::VerifiedScope;
use crate::gate::{is_per_fingerprint, is_shadow};
use crate::key::{
    BodyHash, Caller, CookieName, Fingerprint, FormField, Hashing, Key, OperationParts, PartHasher,
    Reading, Scope, Slot, Space, fingerprint, form_boundary, hash_body, path,
};
use crate::refusal::{KeyFault, Refusal};

mod body;

pub use body::BodyKind;
use body::{body_key, content_type, document_with_key, field_of_form, form_key, missing_in_body};
pub(in crate::gate) use body::{essence_has, is_json};

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
pub fn identify(
    policy: &Policy,
    hashing: &Hashing,
    parts: &Parts,
    content: &Content,
) -> Result<Option<Identified>, Refusal> {
    readable(policy, content.is_decoded())?;
    let body = Reading::new(content.bytes());
    let sent = match &policy.key.source {
        KeySource::Sent { .. } => {
            // Without a key there is nothing to ask whose it is.
            let Some(key) = sent_key(&policy.key, parts, &body)? else { return Ok(None) };
            Some(key)
        }
        KeySource::Derived(_) => None,
    };
    let how = match body_hash(&policy.fingerprint, &parts.headers) {
        how @ BodyHash::None => how,
        how if content.is_decoded() => how,
        // A body that can't be decoded is only equal to itself.
        _ => BodyHash::Raw,
    };
    let scope = scope(&policy.scope, &parts.headers, &parts.extensions)?;
    let caller = caller(&policy.caller, &scope, &parts.headers)?;
    // Without a scope the caller keeps tenants apart: a key made of order numbers alone would join them.
    let whose =
        if policy.scope == ScopeRule::Shared { caller.as_bytes() } else { scope.as_bytes() };
    let derived = match &policy.key.source {
        // Made without secrets: the upstream may know it, and must know it again when they are rotated.
        KeySource::Derived(wanted) => derived_key(policy, wanted, whose, parts, &body, how)?,
        KeySource::Sent { .. } => Vec::new(),
    };
    let key = sent.as_ref().map_or(derived.as_slice(), |key| key.as_str().as_bytes());
    let space = if is_shadow(policy) { Space::Shadow } else { Space::Enforced };
    // Of what is only watched nothing is told.
    let fields = match (space, any_chosen(&policy.fields, Side::Request)) {
        (Space::Enforced, true) => body
            .document()
            .map(|found| chosen(&policy.fields, Side::Request, found))
            .unwrap_or_default(),
        _ => BTreeMap::new(),
    };
    let fingerprint =
        fingerprint(parts.method.as_str(), parts.uri.path(), parts.uri.query(), body, how);
    let variant = variant(policy, parts.uri.path(), Some(&fingerprint));
    let named =
        OperationParts { space, route: &policy.route, scope: &scope, key, variant: &variant };
    let (slot, hashed) = hashing.identity(&named, caller);
    let others = hashing.other_identities(&named, caller);
    Ok(Some(Identified { slot, caller: hashed, fingerprint, whose: *whose, others, fields }))
}

/// Returns what tells apart the operations under one key of one scope: nothing, except where the route's identities have
/// the path in them, or there is a record for each fingerprint. What it returns is a storage format.
pub(in crate::gate) fn variant(
    policy: &Policy,
    path: &str,
    fingerprint: Option<&Fingerprint>,
) -> Vec<u8> {
    let per_fingerprint = fingerprint.filter(|_| is_per_fingerprint(policy));
    let of_fingerprint =
        per_fingerprint.map(|fingerprint| fingerprint.as_bytes().as_slice()).unwrap_or_default();
    if !policy.by_path {
        return of_fingerprint.to_vec();
    }
    let mut hasher = PartHasher::new("variant:path");
    hasher.part(&path::identity(path, policy.path_case)).part(of_fingerprint);
    hasher.finish().to_vec()
}

/// Whose operation a request would be, as far as that can be told of one that is not identified.
pub(in crate::gate) fn whose(policy: &Policy, parts: &Parts) -> Option<[u8; 32]> {
    let scope = scope(&policy.scope, &parts.headers, &parts.extensions).ok()?;
    let caller = caller(&policy.caller, &scope, &parts.headers).ok()?;
    Some(if policy.scope == ScopeRule::Shared { *caller.as_bytes() } else { *scope.as_bytes() })
}

/// The key in plain text, of a request that was identified: as sent, or the digest that a derived one is.
pub(in crate::gate) fn key_text(
    policy: &Policy,
    parts: &Parts,
    body: &Bytes,
) -> Result<String, Refusal> {
    match &policy.key.source {
        KeySource::Sent { header, .. } => {
            let in_header = header
                .as_ref()
                .map(|name| header_key(&policy.key, name, &parts.headers))
                .transpose()?;
            let key = match in_header.flatten() {
                // The request was identified, so a key in the body is the same one.
                Some(key) => Some(key),
                None => sent_key(&policy.key, parts, &Reading::new(body))?,
            };
            key.map(|key| key.as_str().to_owned())
                .ok_or_else(|| Refusal::KeyMissing { what: describe(&policy.key), body: None })
        }
        KeySource::Derived(wanted) => {
            let scope = scope(&policy.scope, &parts.headers, &parts.extensions)?;
            let caller = caller(&policy.caller, &scope, &parts.headers)?;
            let whose = if policy.scope == ScopeRule::Shared {
                caller.as_bytes()
            } else {
                scope.as_bytes()
            };
            let how = body_hash(&policy.fingerprint, &parts.headers);
            let key = derived_key(policy, wanted, whose, parts, &Reading::new(body), how)?;
            Ok(URL_SAFE_NO_PAD.encode(key))
        }
    }
}

/// Looks at the header fields alone: whether the request asks for protection, before its body is read. A request that
/// can be refused is refused here, and one that can pass streams through whatever its size.
pub fn wants_protection(
    policy: &Policy,
    headers: &HeaderMap,
    extensions: &Extensions,
) -> Result<bool, Refusal> {
    if let KeySource::Sent { header: Some(name), body: None, form: None } = &policy.key.source
        && header_key(&policy.key, name, headers)?.is_none()
    {
        let missing = || Refusal::KeyMissing { what: describe(&policy.key), body: None };
        return if policy.key.required { Err(missing()) } else { Ok(false) };
    }
    readable(policy, can_decode(headers))?;
    let scope = scope(&policy.scope, headers, extensions)?;
    caller(&policy.caller, &scope, headers)?;
    Ok(true)
}

pub(in crate::gate) fn scope(
    rule: &ScopeRule,
    headers: &HeaderMap,
    extensions: &Extensions,
) -> Result<Scope, Refusal> {
    match rule {
        ScopeRule::Token(_) | ScopeRule::ClientCertificate => {
            let unasked = || Refusal::ScopeMissing { what: "a verified account".to_owned() };
            let said = extensions.get::<VerifiedScope>().ok_or_else(unasked)?.said()?;
            Ok(Scope::of_fields(said.iter().map(|(name, value)| (name.as_str(), value.as_slice()))))
        }
        ScopeRule::Shared => Ok(Scope::shared()),
        ScopeRule::Headers(names) => {
            let fields: Vec<_> = names
                .iter()
                .map(|name| scope_field(name, headers))
                .collect::<Result<_, Refusal>>()?;
            Ok(Scope::of_fields(fields))
        }
        ScopeRule::Cookie(name) => {
            let value = cookie(name, headers)?;
            let value = value.ok_or_else(|| Refusal::ScopeMissing {
                what: format!("the cookie {}", name.as_str()),
            })?;
            Ok(Scope::of_fields([(name.label(), value)]))
        }
    }
}

/// Returns the value of a cookie; `None` where it is absent or empty.
///
/// # Errors
/// The cookie comes more than once with different values, of which an upstream reads the first or the last.
fn cookie<'h>(name: &CookieName, headers: &'h HeaderMap) -> Result<Option<&'h [u8]>, Refusal> {
    let lines = headers.get_all(COOKIE).iter().map(HeaderValue::as_bytes);
    name.value(lines)
        .map_err(|_| Refusal::ScopeRepeated { what: format!("the cookie {}", name.as_str()) })
}

/// Returns the one value of a plain scope field, with its name.
///
/// # Errors
/// The field is absent, has no value, or came more than once: an upstream reads the first or the last
/// line, and each pair of lines would be a key space of its own.
fn scope_field<'h>(
    name: &'h HeaderName,
    headers: &'h HeaderMap,
) -> Result<(&'h str, &'h [u8]), Refusal> {
    let mut values = lines(headers, name);
    let value = values.next().unwrap_or_default();
    if values.next().is_some() {
        return Err(Refusal::ScopeRepeated { what: format!("the field {name}") });
    }
    // In other fields these words are names like any others: a tenant may be called "basic".
    let has_schemes = [AUTHORIZATION, PROXY_AUTHORIZATION].contains(name);
    if value.is_empty() || has_schemes && is_scheme_alone(value) {
        return Err(Refusal::ScopeMissing { what: format!("the field {name}") });
    }
    Ok((name.as_str(), value))
}

/// Returns who asks.
///
/// # Errors
/// The caller's cookie comes more than once with different values.
pub(in crate::gate) fn caller(
    rule: &CallerRule,
    scope: &Scope,
    headers: &HeaderMap,
) -> Result<Caller, Refusal> {
    Ok(match rule {
        CallerRule::Scope => Caller::nobody().with_scope(scope),
        CallerRule::Headers(names) => names
            .iter()
            .find(|name| lines(headers, name).any(is_credential))
            .map(|name| Caller::of_lines(name.as_str(), lines(headers, name)))
            .unwrap_or_else(Caller::nobody),
        CallerRule::Cookie(name) => match cookie(name, headers)? {
            Some(value) => Caller::of_field(name.label(), value),
            None => Caller::nobody(),
        },
    })
}

/// All lines of a field: which of two an upstream believes is not known here. White space around a value
/// is no part of it (RFC 9110, section 5.5), and HTTP/2 leaves it there.
fn lines<'h>(headers: &'h HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'h [u8]> {
    headers.get_all(name).iter().map(|value| value.as_bytes().trim_ascii())
}

/// Returns whether a caller field's value says who asks. An empty value, or an authentication scheme
/// without credentials, is sent by clients that have none: it would be one caller for all of them.
pub(in crate::gate) fn is_credential(value: &[u8]) -> bool {
    let value = value.trim_ascii();
    !value.is_empty() && !is_scheme_alone(value)
}

/// Returns whether a value is the name of an authentication scheme and nothing else. Every other single
/// word may be a credential: some APIs take `Authorization: sk_live_a`.
fn is_scheme_alone(value: &[u8]) -> bool {
    const SCHEMES: [&str; 5] = ["Basic", "Bearer", "DPoP", "Digest", "Negotiate"];
    SCHEMES.iter().any(|scheme| value.eq_ignore_ascii_case(scheme.as_bytes()))
}

pub(in crate::gate) fn body_hash<'p>(
    rule: &'p FingerprintRule,
    headers: &'p HeaderMap,
) -> BodyHash<'p> {
    match rule {
        FingerprintRule::Json(ignore) => match content_type(headers).and_then(form_boundary) {
            Some(boundary) => BodyHash::Form { boundary },
            None => BodyHash::Json { is_json: is_json(headers), ignore },
        },
        FingerprintRule::Raw => BodyHash::Raw,
        FingerprintRule::WithoutBody => BodyHash::None,
    }
}

/// Returns whether a route takes the key, or a part of it, from members or fields of the body.
fn reads_body_for_key(policy: &Policy) -> bool {
    match &policy.key.source {
        KeySource::Sent { body, form, .. } => body.is_some() || form.is_some(),
        KeySource::Derived(parts) => {
            parts.iter().any(|part| matches!(part, KeyPart::Body(_) | KeyPart::Form(_)))
        }
    }
}

/// Refuses a body in which the key has to be looked for, or of which it is made, and that can't be decoded. Taken as it is, its
/// key would be missing, and a request that the upstream decodes and executes would go unprotected; or it would be another key
/// each time that a client compresses the body.
fn readable(policy: &Policy, is_decoded: bool) -> Result<(), Refusal> {
    let is_made_of_body = matches!(&policy.key.source, KeySource::Derived(parts) if parts.contains(&KeyPart::BodyHash));
    if (reads_body_for_key(policy) || is_made_of_body) && !is_decoded {
        Err(Refusal::UnsupportedEncoding)
    } else {
        Ok(())
    }
}

fn sent_key(rule: &KeyRule, parts: &Parts, body: &Reading<'_>) -> Result<Option<Key>, Refusal> {
    let KeySource::Sent { header, body: pointer, form } = &rule.source else { return Ok(None) };
    let in_header =
        header.as_ref().map(|name| header_key(rule, name, &parts.headers)).transpose()?.flatten();
    let in_body = pointer
        .as_ref()
        .map(|pointer| body_key(rule, pointer, &parts.headers, body))
        .transpose()?
        .flatten();
    let in_form =
        form.as_ref().map(|name| form_key(rule, name, &parts.headers, body)).transpose()?.flatten();
    let mut found = [in_header, in_body, in_form].into_iter().flatten();
    let first = found.next();
    if found.any(|other| first.as_ref() != Some(&other)) {
        return Err(invalid(KeyFault::Differs));
    }
    if first.is_none() && rule.required {
        let kind = reads_body(rule).then(|| BodyKind::of(&parts.headers, body.bytes()));
        return Err(Refusal::KeyMissing { what: describe(rule), body: kind });
    }
    Ok(first)
}

fn reads_body(rule: &KeyRule) -> bool {
    matches!(&rule.source, KeySource::Sent { body, form, .. } if body.is_some() || form.is_some())
}

/// Returns the places of a sent key, in words.
fn describe(rule: &KeyRule) -> String {
    let KeySource::Sent { header, body, form } = &rule.source else { return String::new() };
    let header = header.as_ref().map(|name| format!("the header field {name}"));
    let member = body.as_ref().map(|pointer| format!("the body member {pointer}"));
    let field = form.as_ref().map(|name| format!("the form field {name}"));
    [header, member, field].into_iter().flatten().collect::<Vec<_>>().join(" or ")
}

fn invalid(why: impl Into<KeyFault>) -> Refusal {
    Refusal::KeyInvalid { why: why.into() }
}

fn header_key(
    rule: &KeyRule,
    name: &HeaderName,
    headers: &HeaderMap,
) -> Result<Option<Key>, Refusal> {
    let mut values = headers.get_all(name).iter();
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err(invalid(KeyFault::Twice));
    }
    let key = Key::parse(value.as_bytes(), rule.syntax, rule.max_length);
    key.and_then(|key| key.at_least(rule.min_length)).map(Some).map_err(invalid)
}

fn derived_key(
    policy: &Policy,
    wanted: &[KeyPart],
    whose: &[u8; 32],
    parts: &Parts,
    body: &Reading<'_>,
    how: BodyHash<'_>,
) -> Result<Vec<u8>, Refusal> {
    let missing = |what: String| Refusal::KeyMissing { what, body: None };
    let mut hasher = PartHasher::new("key:derived");
    hasher.part(whose);
    for part in wanted {
        match part {
            KeyPart::Path => {
                hasher.part(b"path").part(&path::identity(parts.uri.path(), policy.path_case));
            }
            KeyPart::Query(name) => {
                let value = query_parameter(parts.uri.query().unwrap_or_default(), name)
                    .ok_or_else(|| missing(format!("the query parameter {name}")))?;
                hasher.part(b"query").part(name.as_bytes()).part(&value);
            }
            KeyPart::Header(name) => {
                let mut lines = lines(&parts.headers, name);
                // An empty value would be one part for all who have none, and of two lines each upstream reads another.
                let line = lines.next().filter(|line| !line.is_empty());
                let line = line.ok_or_else(|| missing(format!("the header field {name}")))?;
                if lines.next().is_some() {
                    return Err(invalid(KeyFault::Twice));
                }
                hasher.part(b"header").part(name.as_str().as_bytes()).part(line);
            }
            KeyPart::Body(pointer) => {
                // As identities have it since the first version: without the escapes of a pointer.
                let name = format!("the body member /{}", pointer.tokens().join("/"));
                let missing =
                    || missing_in_body(format!("the body member {pointer}"), &parts.headers, body);
                let document = document_with_key(&parts.headers, body)?.ok_or_else(missing)?;
                hasher.part(b"body").part(name.as_bytes());
                if !document.hash_member(&mut hasher, pointer) {
                    return Err(missing());
                }
            }
            KeyPart::Form(name) => {
                let missing =
                    || missing_in_body(format!("the form field {name}"), &parts.headers, body);
                match field_of_form(name, &parts.headers, body) {
                    FormField::Repeated => return Err(invalid(KeyFault::Twice)),
                    // An empty value would be one part for all who have none.
                    FormField::Value(value) if !value.is_empty() => {
                        hasher.part(b"form").part(name.as_bytes()).part(&value);
                    }
                    FormField::Missing | FormField::Value(_) => return Err(missing()),
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

/// The first value of a query parameter, decoded as forms are: `+` and `%20` are one value.
fn query_parameter(query: &str, name: &str) -> Option<Vec<u8>> {
    let decoded = |text: &str| percent_decode_str(&text.replace('+', " ")).collect::<Vec<u8>>();
    let mut pairs = query.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
    pairs.find(|(key, _)| decoded(key) == name.as_bytes()).map(|(_, value)| decoded(value))
}

#[cfg(test)]
mod tests;
